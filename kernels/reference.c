// SPDX-License-Identifier: Apache-2.0
// The plain C reference: the meaning of every kernel, in loops that can be checked by eye. It is
// never tuned; the other sets are compared with it bit for bit. NaN results equal NaN results:
// their payload and sign are not part of the meaning.
#include "kernels/sets.h"

#include <string.h>

static float bits_to_float(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static uint32_t float_to_bits(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

float kernel_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    uint32_t exponent = h >> 10 & 31, mantissa = h & 0x3ff;
    if (exponent == 31)
        return bits_to_float(sign | 0x7f800000 | mantissa << 13 | (mantissa ? 0x400000 : 0));
    if (exponent == 0) {
        float f = (float)mantissa * 0x1p-24f;
        return sign ? -f : f;
    }
    return bits_to_float(sign | (exponent + 112) << 23 | mantissa << 13);
}

uint16_t kernel_f32_to_f16(float f)
{
    uint32_t bits = float_to_bits(f);
    uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000)
        return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
    if (magnitude >= 0x477ff000) // 65520 and more round to infinity
        return (uint16_t)(sign | 0x7c00);
    if (magnitude < 0x38800000) {
        // Subnormal: adding 0.5 leaves the value in units of 2^-24 in the low bits, rounded.
        uint32_t rounded = float_to_bits(bits_to_float(magnitude) + 0.5f) - float_to_bits(0.5f);
        return (uint16_t)(sign | rounded);
    }
    uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1); // to nearest, ties to even
    return (uint16_t)(sign | ((rounded >> 13) - (112u << 10)));
}

float kernel_exp(float x)
{
    if (x < EXP_MIN)
        return 0;
    if (x > EXP_MAX)
        return INFINITY;
    float t = fmaf(x, EXP_LOG2E, EXP_ROUND);
    float n = t - EXP_ROUND;
    float r = fmaf(n, -EXP_LN2_HI, x);
    r = fmaf(n, -EXP_LN2_LO, r);
    float p = fmaf(EXP_C6, r, EXP_C5);
    p = fmaf(p, r, EXP_C4);
    p = fmaf(p, r, EXP_C3);
    p = fmaf(p, r, EXP_C2);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    return p * bits_to_float((float_to_bits(t) + 127) << 23);
}

static void ref_f16_to_f32(float *out, const uint16_t *in, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = kernel_f16_to_f32(in[i]);
}

static void ref_f32_to_f16(uint16_t *out, const float *in, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = kernel_f32_to_f16(in[i]);
}

static float weight_element(const struct weight *w, const uint8_t *row, uint64_t c)
{
    uint16_t h;
    float f;
    switch (w->type) {
    case TENSOR_F32:
        memcpy(&f, row + 4 * c, sizeof f);
        return f;
    case TENSOR_F16:
        memcpy(&h, row + 2 * c, sizeof h);
        return kernel_f16_to_f32(h);
    case TENSOR_BF16:
        memcpy(&h, row + 2 * c, sizeof h);
        return bits_to_float((uint32_t)h << 16);
    case TENSOR_Q8_0:
        memcpy(&h, row + c / 32 * 34, sizeof h); // 11 bits x 8 bits: the product is exact
        return kernel_f16_to_f32(h) * (float)(int8_t)row[c / 32 * 34 + 2 + c % 32];
    default:
        return NAN;
    }
}

static void ref_weight_row(const struct weight *w, uint64_t row, float *out)
{
    for (uint64_t c = 0; c < w->cols; c++)
        out[c] = weight_element(w, (const uint8_t *)w->data + row * w->row_bytes, c);
}

static float tree(float lane[KERNEL_LANES])
{
    for (int half = KERNEL_LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++)
            lane[i] += lane[i + half];
    return lane[0];
}

static float ref_dot(const float *a, const float *b, size_t n)
{
    float lane[KERNEL_LANES] = {0};
    for (size_t i = 0; i < n; i++)
        lane[i % KERNEL_LANES] = fmaf(a[i], b[i], lane[i % KERNEL_LANES]);
    return tree(lane);
}

static float ref_sum(const float *a, size_t n)
{
    float lane[KERNEL_LANES] = {0};
    for (size_t i = 0; i < n; i++)
        lane[i % KERNEL_LANES] += a[i];
    return tree(lane);
}

// NaN are passed over (they reach the result through the sum); the + 0 makes a zero positive.
static float ref_max(const float *a, size_t n)
{
    float m = -INFINITY;
    for (size_t i = 0; i < n; i++)
        m = a[i] > m ? a[i] : m;
    return m + 0.0f;
}

static void ref_matmul(const struct weight *w, uint64_t first, uint64_t count, const float *x,
                       size_t x_stride, size_t n_rows, float *out, size_t out_stride, void *scratch)
{
    (void)scratch;
    for (size_t i = 0; i < n_rows; i++) {
        for (uint64_t j = 0; j < count; j++) {
            const uint8_t *row = (const uint8_t *)w->data + (first + j) * w->row_bytes;
            float lane[KERNEL_LANES] = {0};
            for (uint64_t c = 0; c < w->cols; c++)
                lane[c % KERNEL_LANES] =
                    fmaf(x[i * x_stride + c], weight_element(w, row, c), lane[c % KERNEL_LANES]);
            out[i * out_stride + j] = tree(lane);
        }
    }
}

static void ref_partial_merge(struct partial *into, const struct partial *next, size_t head_dim)
{
    if (next->sum == 0)
        return;
    if (into->sum == 0) {
        into->max = next->max;
        into->sum = next->sum;
        memcpy(into->acc, next->acc, head_dim * sizeof into->acc[0]);
        return;
    }
    float max = into->max > next->max ? into->max : next->max;
    float a = kernel_exp(into->max - max), b = kernel_exp(next->max - max);
    into->max = max;
    into->sum = fmaf(into->sum, a, next->sum * b);
    for (size_t d = 0; d < head_dim; d++)
        into->acc[d] = fmaf(into->acc[d], a, next->acc[d] * b);
}

static void ref_partial_output(const struct partial *p, float *out, size_t head_dim)
{
    for (size_t d = 0; d < head_dim; d++)
        out[d] = p->sum == 0 ? 0 : p->acc[d] / p->sum;
}

static void ref_tile_partial(const struct attention_tile *tile, const float *q, uint32_t tokens,
                             struct partial *p)
{
    float row[KERNEL_HEAD_DIM_MAX], s[ATTENTION_TILE];
    partial_clear(p);
    memset(p->acc, 0, tile->head_dim * sizeof p->acc[0]);
    if (!tokens)
        return;
    for (uint32_t t = 0; t < tokens; t++) {
        ref_f16_to_f32(row, tile->k + t * tile->k_stride, tile->head_dim);
        s[t] = tile->scale * ref_dot(q, row, tile->head_dim);
    }
    p->max = ref_max(s, tokens);
    for (uint32_t t = 0; t < tokens; t++)
        s[t] = kernel_exp(s[t] - p->max);
    p->sum = ref_sum(s, tokens);
    for (uint32_t t = 0; t < tokens; t++) {
        ref_f16_to_f32(row, tile->v + t * tile->v_stride, tile->head_dim);
        for (uint32_t d = 0; d < tile->head_dim; d++)
            p->acc[d] = fmaf(s[t], row[d], p->acc[d]);
    }
}

static void ref_attention_tile(const struct attention_tile *tile, const float *q, size_t q_stride,
                               size_t n_q, const uint32_t *limit, float *out, int fold,
                               void *scratch)
{
    for (size_t i = 0; i < n_q; i++) {
        struct partial *p = fold ? scratch : partial_at(out, i, tile->head_dim);
        ref_tile_partial(tile, q + i * q_stride, limit ? limit[i] : tile->tokens, p);
        if (fold)
            ref_partial_merge(partial_at(out, i, tile->head_dim), p, tile->head_dim);
    }
}

static void ref_rms_norm(float *out, const float *x, const float *weight, size_t n, float eps)
{
    float r = 1.0f / sqrtf(ref_dot(x, x, n) / (float)n + eps);
    for (size_t i = 0; i < n; i++)
        out[i] = x[i] * r * weight[i];
}

static void ref_silu_mul(float *gate, const float *up, size_t n)
{
    for (size_t i = 0; i < n; i++)
        gate[i] = gate[i] / (1.0f + kernel_exp(-gate[i])) * up[i];
}

static void ref_add(float *x, const float *y, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] += y[i];
}

static void ref_rope(float *x, const float *cos_sin, size_t n)
{
    const float *cosine = cos_sin, *sine = cos_sin + n / 2;
    for (size_t i = 0; i < n / 2; i++) {
        float a = x[2 * i], b = x[2 * i + 1];
        x[2 * i] = fmaf(a, cosine[i], -(b * sine[i]));
        x[2 * i + 1] = fmaf(a, sine[i], b * cosine[i]);
    }
}

const struct kernels kernels_reference = {
    .name = "reference",
    .f16_to_f32 = ref_f16_to_f32,
    .f32_to_f16 = ref_f32_to_f16,
    .weight_row = ref_weight_row,
    .dot = ref_dot,
    .sum = ref_sum,
    .max = ref_max,
    .matmul = ref_matmul,
    .attention_tile = ref_attention_tile,
    .partial_merge = ref_partial_merge,
    .partial_output = ref_partial_output,
    .rms_norm = ref_rms_norm,
    .silu_mul = ref_silu_mul,
    .add = ref_add,
    .rope = ref_rope,
};
