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

// ---- block types -----------------------------------------------------------------------------
// One element of one block at a time, as the formats define it. Products of scales and codes are
// exact in fp32 (at most 11 + 7 + 5 significant bits), so a value is rounded once, where a minimum
// is added: any order of operations, fused or not, gives the same bits.

static const int8_t iq4_nl_values[16] = {IQ4_NL_VALUES};

static float half_at(const uint8_t *p)
{
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return kernel_f16_to_f32(h);
}

// Bits of `width` at bit `shift` of a byte.
static int bits(uint8_t byte, unsigned shift, unsigned width)
{
    return byte >> shift & ((1 << width) - 1);
}

// Element i of 32 four-bit codes: the low halves of 16 bytes, then the high halves.
static int nibble_of_32(const uint8_t *q, unsigned i)
{
    return bits(q[i % 16], i / 16 * 4, 4);
}

// Element i of 256 four-bit codes: per 32 bytes first the low halves, then the high halves.
static int nibble_of_256(const uint8_t *q, unsigned i)
{
    return bits(q[i / 64 * 32 + i % 32], i / 32 % 2 * 4, 4);
}

// Element i of 256 two-bit codes: per 32 bytes four planes of 32 elements.
static int pair_of_256(const uint8_t *q, unsigned i)
{
    return bits(q[i / 128 * 32 + i % 32], i / 32 % 4 * 2, 2);
}

// Q4_K and Q5_K: 8 six-bit scales and 8 six-bit minima in 12 bytes. The first four of each lie in
// the low bits of bytes 0 to 7, the others in the halves of bytes 8 to 11 and the top bits of 0 to
// 7.
static int six_bit(const uint8_t *s, unsigned minimum, unsigned i)
{
    const uint8_t *low = s + 4 * minimum;
    if (i < 4)
        return bits(low[i], 0, 6);
    return bits(s[8 + i - 4], 4 * minimum, 4) | bits(low[i - 4], 6, 2) << 4;
}

// Q3_K: 16 signed six-bit scales in 12 bytes.
static int six_bit_q3(const uint8_t *s, unsigned i)
{
    return (bits(s[i % 8], i / 8 * 4, 4) | bits(s[8 + i % 4], i / 4 * 2, 2) << 4) - 32;
}

static float q5(const uint8_t *high, const uint8_t *low, unsigned i)
{
    return (float)(nibble_of_32(low, i) | bits(high[i / 8], i % 8, 1) << 4);
}

// What the products of the K types are made of: the code of element i, its group's integer scale,
// and minus what is subtracted.
static int k_code(uint32_t type, const uint8_t *b, unsigned i)
{
    switch (type) {
    case TENSOR_Q2_K: // 16 scales and minima of 4 bits, 64 bytes of codes, d, dmin
        return pair_of_256(b + 16, i);
    case TENSOR_Q3_K: // 32 bytes of high bits, 64 of codes, 12 of scales, d
        return pair_of_256(b + 32, i) + 4 * bits(b[i % 32], i / 32, 1);
    case TENSOR_Q4_K: // d, dmin, 12 bytes of scales and minima, 128 of codes
        return nibble_of_256(b + 16, i);
    case TENSOR_Q5_K: // the same with 32 bytes of high bits before the codes
        return nibble_of_256(b + 48, i) | bits(b[16 + i % 32], i / 32, 1) << 4;
    default: // Q6_K: 128 bytes of low halves, 64 of high pairs, 16 scales of int8, d
        return bits(b[i / 128 * 64 + i % 64], i / 64 % 2 * 4, 4) | pair_of_256(b + 128, i) << 4;
    }
}

static int k_scale(uint32_t type, const uint8_t *b, unsigned i)
{
    switch (type) {
    case TENSOR_Q2_K:
        return bits(b[i / 16], 0, 4);
    case TENSOR_Q3_K:
        return six_bit_q3(b + 96, i / 16);
    case TENSOR_Q6_K:
        return (int8_t)b[192 + i / 16];
    default:
        return six_bit(b + 4, 0, i / 32);
    }
}

static float k_minimum(uint32_t type, const uint8_t *b, unsigned i)
{
    float d = half_at(b + tensor_type_info(type)->scale_at);
    switch (type) {
    case TENSOR_Q2_K:
        return -half_at(b + 82) * (float)bits(b[i / 16], 4, 4);
    case TENSOR_Q3_K:
        return -4 * d * (float)k_scale(type, b, i);
    case TENSOR_Q6_K:
        return -32 * d * (float)k_scale(type, b, i);
    default:
        return -half_at(b + 2) * (float)six_bit(b + 4, 1, i / 32);
    }
}

static float k_value(uint32_t type, const uint8_t *b, unsigned i)
{
    float scale = half_at(b + tensor_type_info(type)->scale_at) * (float)k_scale(type, b, i);
    if (type == TENSOR_Q3_K || type == TENSOR_Q6_K)
        return scale * (float)(k_code(type, b, i) - (type == TENSOR_Q3_K ? 4 : 32));
    return fmaf(scale, (float)k_code(type, b, i), k_minimum(type, b, i));
}

static float block_element(uint32_t type, const uint8_t *b, unsigned i)
{
    switch (type) {
    case TENSOR_Q4_0: // d, 16 bytes of codes
        return half_at(b) * (float)(nibble_of_32(b + 2, i) - 8);
    case TENSOR_Q4_1: // d, m, codes
        return fmaf(half_at(b), (float)nibble_of_32(b + 4, i), half_at(b + 2));
    case TENSOR_Q5_0: // d, 4 bytes of high bits, codes
        return half_at(b) * (q5(b + 2, b + 6, i) - 16);
    case TENSOR_Q5_1: // d, m, 4 bytes of high bits, codes
        return fmaf(half_at(b), q5(b + 4, b + 8, i), half_at(b + 2));
    case TENSOR_Q8_0: // d, 32 x int8
        return half_at(b) * (float)(int8_t)b[2 + i];
    case TENSOR_IQ4_NL: // d, codes into a fixed table
        return half_at(b) * (float)iq4_nl_values[nibble_of_32(b + 2, i)];
    case TENSOR_Q2_K:
    case TENSOR_Q3_K:
    case TENSOR_Q4_K:
    case TENSOR_Q5_K:
    case TENSOR_Q6_K:
        return k_value(type, b, i);
    default:
        return NAN;
    }
}

static float weight_element(const struct weight *w, const struct tensor_type_info *info,
                            const uint8_t *row, uint64_t c)
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
    default:
        if (!info) // the loader refuses it
            return NAN;
        return block_element(w->type, row + c / info->block_elements * info->block_bytes,
                             (unsigned)(c % info->block_elements));
    }
}

static void ref_weight_row(const struct weight *w, uint64_t row, float *out)
{
    const struct tensor_type_info *info = tensor_type_info(w->type);
    for (uint64_t c = 0; c < w->cols; c++)
        out[c] = weight_element(w, info, (const uint8_t *)w->data + row * w->row_bytes, c);
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

static float k_product(const struct weight *w, const uint8_t *row, const struct rounded_x *x)
{
    const struct tensor_type_info *info = tensor_type_info(w->type);
    float lane[KERNEL_LANES] = {0};
    for (uint64_t c = 0; c < w->cols; c += ROUNDED_BLOCK, row += info->block_bytes, x++) {
        int32_t sum[KERNEL_LANES] = {0};
        for (unsigned i = 0; i < ROUNDED_BLOCK; i++)
            sum[i % 64 / 4] += k_code(w->type, row, i) * k_scale(w->type, row, i) *
                               x->q[i / 64 * 64 + i % 2 * 32 + i % 64 / 2];
        for (unsigned l = 0; l < KERNEL_LANES; l++) {
            lane[l] = fmaf((float)sum[l], half_at(row + info->scale_at) * x->scale, lane[l]);
            lane[l] = fmaf(k_minimum(w->type, row, 16 * l), x->sum[l], lane[l]);
        }
    }
    return tree(lane);
}

static void ref_round_x(float *out, const float *x, size_t n)
{
    struct rounded_x *to = (struct rounded_x *)out;
    for (size_t c = 0; c < n; c += ROUNDED_BLOCK, x += ROUNDED_BLOCK, to++) {
        uint32_t greatest = 0;
        for (unsigned i = 0; i < ROUNDED_BLOCK; i++) {
            uint32_t magnitude = float_to_bits(x[i]) & 0x7fffffff;
            greatest = magnitude > greatest ? magnitude : greatest;
        }
        float inverse;
        int some = rounded_scale(greatest, &to->scale, &inverse);
        int32_t sum[KERNEL_LANES] = {0};
        for (unsigned i = 0; i < ROUNDED_BLOCK; i++) {
            float q = some ? fmaf(x[i], inverse, EXP_ROUND) - EXP_ROUND : 0;
            to->q[i / 64 * 64 + i % 2 * 32 + i % 64 / 2] = (int16_t)q;
            sum[i / 16] += (int16_t)q;
        }
        for (unsigned g = 0; g < KERNEL_LANES; g++)
            to->sum[g] = some ? (float)sum[g] * to->scale : 0;
    }
}

static void ref_matmul(const struct weight *w, uint64_t first, uint64_t count, const float *x,
                       size_t x_stride, size_t n_rows, float *out, size_t out_stride, void *scratch)
{
    (void)scratch;
    const struct tensor_type_info *info = tensor_type_info(w->type);
    for (size_t i = 0; i < n_rows; i++) {
        for (uint64_t j = 0; j < count; j++) {
            const uint8_t *row = (const uint8_t *)w->data + (first + j) * w->row_bytes;
            if (kernel_rounds_x(w->type)) {
                out[i * out_stride + j] =
                    k_product(w, row, (const struct rounded_x *)(x + i * x_stride));
                continue;
            }
            float lane[KERNEL_LANES] = {0};
            for (uint64_t c = 0; c < w->cols; c++)
                lane[c % KERNEL_LANES] = fmaf(x[i * x_stride + c], weight_element(w, info, row, c),
                                              lane[c % KERNEL_LANES]);
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

static float softcap(float x, float cap)
{
    return cap * (1.0f - 2.0f / (1.0f + kernel_exp(x * (2.0f / cap))));
}

// Token t of a tile: element (c, t) of K and row t of V.
static float tile_key(const struct attention_tile *tile, uint32_t t, uint32_t c)
{
    uint32_t w = tile->part_tokens;
    if (tile->type != KV_F16)
        return kv_key(tile->type, tile->k[t / w], tile->v[t / w], w, tile->head_dim, t % w, c);
    return kernel_f16_to_f32(w ? ((const uint16_t *)tile->k[t / w])[c * w + t % w]
                               : ((const uint16_t *)tile->k[0])[t * tile->head_dim + c]);
}

static void tile_value(const struct attention_tile *tile, uint32_t t, float *row)
{
    uint32_t w = tile->part_tokens ? tile->part_tokens : ATTENTION_TILE, dim = tile->head_dim;
    const void *part = tile->v[t / w];
    if (tile->type == KV_F16)
        ref_f16_to_f32(row, (const uint16_t *)part + t % w * dim, dim);
    for (uint32_t c = 0; tile->type != KV_F16 && c < dim; c++)
        row[c] = kv_value(tile->type, part, w, dim, t % w, c);
}

static void ref_tile_partial(const struct attention_tile *tile, const float *q, uint32_t first,
                             uint32_t tokens, struct partial *p)
{
    float row[KERNEL_HEAD_DIM_MAX], s[ATTENTION_TILE];
    uint32_t n = 0, seen[ATTENTION_TILE];
    partial_clear(p);
    memset(p->acc, 0, tile->head_dim * sizeof p->acc[0]);
    if (tokens <= first)
        return;
    for (uint32_t t = 0; t < tokens; t++) {
        if (tile->chosen && !(tile->chosen >> t & 1))
            continue;
        float dot = 0;
        for (uint32_t c = 0; c < tile->head_dim; c++)
            dot = fmaf(q[c], tile_key(tile, t, c), dot);
        dot *= tile->scale;
        dot = tile->softcap != 0 ? softcap(dot, tile->softcap) : dot;
        s[n] = t < first ? -INFINITY : dot;
        seen[n++] = t;
    }
    p->max = ref_max(s, n);
    for (uint32_t i = 0; i < n; i++)
        s[i] = kernel_exp(s[i] - p->max);
    p->sum = ref_sum(s, n);
    for (uint32_t i = 0; i < n; i++) {
        tile_value(tile, seen[i], row);
        for (uint32_t d = 0; d < tile->head_dim; d++)
            p->acc[d] = fmaf(s[i], row[d], p->acc[d]);
    }
}

static void ref_attention_tile(const struct attention_tile *tile, const float *q, size_t q_stride,
                               size_t n_q, const uint32_t *limit, float *out, int fold,
                               void *scratch)
{
    for (size_t i = 0; i < n_q; i++) {
        struct partial *p = fold ? scratch : partial_at(out, i, tile->head_dim);
        ref_tile_partial(tile, q + i * q_stride, tile->first ? tile->first[i] : 0,
                         limit ? limit[i] : tile->tokens, p);
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

static void ref_rope_halves(float *x, const float *cos_sin, size_t n)
{
    for (size_t i = 0; i < n / 2; i++) {
        float a = x[i], b = x[i + n / 2], cosine = cos_sin[i], sine = cos_sin[i + n / 2];
        x[i] = fmaf(a, cosine, -(b * sine));
        x[i + n / 2] = fmaf(a, sine, b * cosine);
    }
}

static void ref_layer_norm(float *out, const float *x, const float *weight, const float *bias,
                           size_t n, float eps)
{
    float mean = ref_sum(x, n) / (float)n;
    for (size_t i = 0; i < n; i++)
        out[i] = x[i] - mean;
    float r = 1.0f / sqrtf(ref_dot(out, out, n) / (float)n + eps);
    for (size_t i = 0; i < n; i++)
        out[i] = fmaf(out[i] * r, weight[i], bias[i]);
}

static void ref_gelu_mul(float *gate, const float *up, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float x = gate[i], minus_2u = x * fmaf(x * x, GELU_CUBIC, GELU_LINEAR);
        gate[i] = x / (1.0f + kernel_exp(minus_2u)) * up[i];
    }
}

static void ref_relu(float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = x[i] > 0 ? x[i] : 0;
}

static void ref_scale(float *x, float factor, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] *= factor;
}

static void ref_softcap(float *x, float cap, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = softcap(x[i], cap);
}

#include "kernels/reference_sparf.h"
#include "kernels/reference_pages.h"
#include "kernels/reference_kv.h"

const struct kernels kernels_reference = {
    .name = "reference",
    .f16_to_f32 = ref_f16_to_f32,
    .f32_to_f16 = ref_f32_to_f16,
    .weight_row = ref_weight_row,
    .dot = ref_dot,
    .sum = ref_sum,
    .max = ref_max,
    .matmul = ref_matmul,
    .round_x = ref_round_x,
    .attention_tile = ref_attention_tile,
    .partial_merge = ref_partial_merge,
    .partial_output = ref_partial_output,
    .rms_norm = ref_rms_norm,
    .silu_mul = ref_silu_mul,
    .add = ref_add,
    .rope = ref_rope,
    .rope_halves = ref_rope_halves,
    .layer_norm = ref_layer_norm,
    .gelu_mul = ref_gelu_mul,
    .relu = ref_relu,
    .scale = ref_scale,
    .softcap = ref_softcap,
    .channel_scores = ref_channel_scores,
    .piece_masses = ref_piece_masses,
    .piece_scores = ref_piece_scores,
    .nearest_means = ref_nearest_means,
    .code_axpy = ref_code_axpy,
    .exp_sum = ref_exp_sum,
    .axpy = ref_axpy,
    .kv_make = ref_kv_make,
    .kv_make_value = ref_kv_make_value,
    .kv_numbers = ref_kv_numbers,
    .kv_planes = ref_kv_planes,
    .hadamard = ref_hadamard,
};
