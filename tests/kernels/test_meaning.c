// SPDX-License-Identifier: Apache-2.0
// The reference set computes what kernels.h says: against float64 loops, against the definition
// of fp16, and merging in another order. The other sets equal the reference (test_equal).
#include "cases.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

static const struct kernels *const k = &kernels_reference;

static void close_to(double got, double want, double tolerance)
{
    if (!(fabs(got - want) <= tolerance)) {
        print_error("got %.9g, want %.9g +- %g\n", got, want, tolerance);
        fail();
    }
}

static double half_value(uint16_t h)
{
    double m = h & 0x3ff;
    int e = h >> 10 & 31;
    double magnitude = e ? ldexp(m + 1024, e - 25) : ldexp(m, -24);
    return h & 0x8000 ? -magnitude : magnitude;
}

static void half_precision(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 65536; i++) {
        uint16_t h = (uint16_t)i;
        float f = kernel_f16_to_f32(h);
        if ((h & 0x7fff) > 0x7c00) {
            assert_true(isnan(f));
            assert_true((kernel_f32_to_f16(f) & 0x7fff) > 0x7c00);
            continue;
        }
        if ((h & 0x7fff) == 0x7c00) {
            assert_true(isinf(f) && !signbit(f) == !(h & 0x8000));
            assert_int_equal(kernel_f32_to_f16(f), h);
            continue;
        }
        assert_true((double)f == half_value(h) && !signbit(f) == !(h & 0x8000));
        assert_int_equal(kernel_f32_to_f16(f), h);
        // Half way to the next magnitude goes to the even neighbour, anything else to the nearest.
        double next = (h & 0x7fff) == 0x7bff ? copysign(65536.0, f) : half_value((uint16_t)(h + 1));
        float middle = (float)((half_value(h) + next) / 2);
        uint16_t even = h & 1 ? (uint16_t)(h + 1) : h;
        assert_int_equal(kernel_f32_to_f16(middle), even);
        assert_int_equal(kernel_f32_to_f16(nextafterf(middle, 0)), h);
        assert_int_equal(kernel_f32_to_f16(nextafterf(middle, copysignf(INFINITY, f))), h + 1);
    }
    assert_int_equal(kernel_f32_to_f16(0x1p-149f), 0);
    assert_int_equal(kernel_f32_to_f16(-0.0f), 0x8000);
    assert_int_equal(kernel_f32_to_f16(1e30f), 0x7c00);
}

static void exponential(void **state)
{
    (void)state;
    double worst = 0;
    for (int i = -870000; i <= 880000; i += 3) {
        float x = (float)i * 1e-4f;
        double want = exp((double)x), got = kernel_exp(x);
        double ulp = ldexp(1, ilogb(want) - 23);
        if (fabs(got - want) / ulp > worst)
            worst = fabs(got - want) / ulp;
    }
    print_message("kernel_exp: largest error %.3f units in the last place\n", worst);
    assert_true(worst < 1.5);
    assert_true(kernel_exp(0) == 1 && kernel_exp(-0.0f) == 1);
    assert_true(kernel_exp(-87.01f) == 0 && kernel_exp(-INFINITY) == 0 && kernel_exp(-1e30f) == 0);
    assert_true(!signbit(kernel_exp(-INFINITY)));
    assert_true(kernel_exp(88.01f) == INFINITY && kernel_exp(INFINITY) == INFINITY);
    assert_true(isnan(kernel_exp((float)NAN)));
    assert_true(kernel_exp(-87) > 0 && kernel_exp(88) < INFINITY);
}

static void vectors(void **state)
{
    (void)state;
    enum { N = 1000 };
    float a[N], b[N], c[N];
    uint64_t random = 3;
    for (size_t n = 1; n <= N; n += n < 70 ? 1 : 155) {
        double dot = 0, magnitude = 0, sum = 0, max = -INFINITY, square = 0;
        for (size_t i = 0; i < n; i++) {
            a[i] = cases_uniform(&random) * 4;
            b[i] = cases_uniform(&random);
            dot += (double)a[i] * b[i];
            square += (double)a[i] * a[i];
            magnitude += fabs((double)a[i] * b[i]);
            sum += a[i];
            max = a[i] > max ? a[i] : max;
        }
        close_to(k->dot(a, b, n), dot, 1e-5 * magnitude);
        close_to(k->sum(a, n), sum, 1e-5 * (double)n);
        assert_true(k->max(a, n) == (float)max);
        k->rms_norm(c, a, b, n, 1e-5f);
        for (size_t i = 0; i < n; i++)
            close_to(c[i], a[i] / sqrt(square / (double)n + 1e-5) * b[i], 2e-6);
        memcpy(c, a, sizeof c);
        k->silu_mul(c, b, n);
        for (size_t i = 0; i < n; i++)
            close_to(c[i], a[i] / (1 + exp(-(double)a[i])) * b[i], 2e-6);
        memcpy(c, a, sizeof c);
        k->add(c, b, n);
        for (size_t i = 0; i < n; i++)
            assert_true(c[i] == a[i] + b[i]);
        k->layer_norm(c, a, b, a, n, 1e-5f);
        double mean = 0, spread = 0;
        for (size_t i = 0; i < n; i++)
            mean += a[i] / (double)n;
        for (size_t i = 0; i < n; i++)
            spread += (a[i] - mean) * (a[i] - mean) / (double)n;
        for (size_t i = 0; i < n; i++)
            close_to(c[i], (a[i] - mean) / sqrt(spread + 1e-5) * b[i] + a[i], 2e-5);
        memcpy(c, a, sizeof c);
        k->gelu_mul(c, b, n);
        for (size_t i = 0; i < n; i++) {
            double x = a[i], u = sqrt(2 / acos(-1)) * (x + 0.044715 * x * x * x);
            close_to(c[i], x / 2 * (1 + tanh(u)) * b[i], 2e-6);
        }
        memcpy(c, a, sizeof c);
        k->softcap(c, 0.5f, n);
        for (size_t i = 0; i < n; i++)
            close_to(c[i], 0.5 * tanh(a[i] / 0.5), 1e-6);
        memcpy(c, a, sizeof c);
        k->relu(c, n);
        k->scale(c, 3, n);
        for (size_t i = 0; i < n; i++)
            assert_true(c[i] == (a[i] > 0 ? 3 * a[i] : 0) && !signbit(c[i]));
    }
    float extremes[] = {-200, 200, -INFINITY, 90, -90}, ones[] = {1, 1, 1, 1, 1};
    k->silu_mul(extremes, ones, 5);
    assert_true(extremes[0] == 0 && extremes[1] == 200 && extremes[3] == 90 && extremes[4] == 0);
    float zeros[] = {-0.0f, 0.0f};
    assert_true(!signbit(k->max(zeros, 2)) && !signbit(k->max(zeros, 1)));
}

static void rotation(void **state)
{
    (void)state;
    enum { N = 80 };
    float x[N], y[N], cos_sin[N];
    uint64_t random = 5;
    for (size_t i = 0; i < N; i++)
        x[i] = y[i] = cases_uniform(&random);
    for (size_t i = 0; i < N / 2; i++) {
        cos_sin[i] = (float)cos((double)i * 0.37);
        cos_sin[N / 2 + i] = (float)sin((double)i * 0.37);
    }
    k->rope(y, cos_sin, N);
    for (size_t i = 0; i < N / 2; i++) {
        double a = x[2 * i], b = x[2 * i + 1], angle = (double)i * 0.37;
        close_to(y[2 * i], a * cos(angle) - b * sin(angle), 1e-6);
        close_to(y[2 * i + 1], a * sin(angle) + b * cos(angle), 1e-6);
    }
    memcpy(y, x, sizeof y);
    k->rope_halves(y, cos_sin, N);
    for (size_t i = 0; i < N / 2; i++) {
        double a = x[i], b = x[i + N / 2], angle = (double)i * 0.37;
        close_to(y[i], a * cos(angle) - b * sin(angle), 1e-6);
        close_to(y[i + N / 2], a * sin(angle) + b * cos(angle), 1e-6);
    }
}

// A tile with a soft cap and a first token, against double.
static void capped_window(void **state)
{
    (void)state;
    enum { HD = 32, TOKENS = 50 };
    static uint16_t key[TOKENS][HD], value[TOKENS][HD];
    static _Alignas(64) unsigned char scratch[KERNEL_SCRATCH_BYTES];
    _Alignas(64) float q[HD], out[16 + HD];
    uint64_t random = 9;
    for (size_t i = 0; i < TOKENS * HD; i++) {
        ((uint16_t *)key)[i] = kernel_f32_to_f16(cases_uniform(&random));
        ((uint16_t *)value)[i] = kernel_f32_to_f16(cases_uniform(&random));
    }
    for (size_t d = 0; d < HD; d++)
        q[d] = 4 * cases_uniform(&random);
    for (uint32_t first = 0; first < TOKENS; first += 7) {
        double sum = 0, acc[HD] = {0};
        for (uint32_t t = first; t < TOKENS; t++) {
            double s = 0;
            for (size_t d = 0; d < HD; d++)
                s += (double)q[d] * (double)kernel_f16_to_f32(key[t][d]);
            double p = exp(2 * tanh(s * 0.5 / 2));
            sum += p;
            for (size_t d = 0; d < HD; d++)
                acc[d] += p * (double)kernel_f16_to_f32(value[t][d]);
        }
        struct attention_tile tile = {.k = {key[0]},
                                      .v = {value[0]},
                                      .tokens = TOKENS,
                                      .head_dim = HD,
                                      .scale = 0.5f,
                                      .softcap = 2,
                                      .first = &first};
        k->attention_tile(&tile, q, HD, 1, NULL, out, 0, scratch);
        float result[HD];
        k->partial_output((struct partial *)out, result, HD);
        for (size_t d = 0; d < HD; d++)
            close_to(result[d], acc[d] / sum, 2e-6);
    }
}

// Decoders of their own, from the formats' definitions.
static double stored_value(const struct weight *w, size_t row, size_t c)
{
    const uint8_t *p = (const uint8_t *)w->data + row * w->row_bytes;
    uint16_t h;
    float f = 0;
    switch (w->type) {
    case TENSOR_F32:
        memcpy(&f, p + 4 * c, 4);
        return f;
    case TENSOR_F16:
        memcpy(&h, p + 2 * c, 2);
        return half_value(h);
    case TENSOR_BF16:
        memcpy((uint8_t *)&f + 2, p + 2 * c, 2); // little-endian machines
        return f;
    default:
        p += c / 32 * 34;
        memcpy(&h, p, 2);
        return half_value(h) * (p[2 + c % 32] < 128 ? p[2 + c % 32] : p[2 + c % 32] - 256);
    }
}

static void products(void **state)
{
    (void)state;
    enum { ROWS = 5, OUTPUTS = 7, COLS = 160 };
    static const uint32_t types[] = {TENSOR_F32, TENSOR_F16, TENSOR_BF16, TENSOR_Q8_0};
    uint8_t data[OUTPUTS * COLS * 4];
    float x[ROWS * COLS], out[ROWS][OUTPUTS], row[COLS];
    uint64_t random = 9;
    for (size_t i = 0; i < ROWS * COLS; i++)
        x[i] = cases_uniform(&random);
    for (size_t t = 0; t < 4; t++) {
        struct weight w = cases_weight(&random, types[t], OUTPUTS, COLS, data);
        k->matmul(&w, 0, OUTPUTS, x, COLS, ROWS, out[0], OUTPUTS, NULL);
        for (size_t j = 0; j < OUTPUTS; j++) {
            k->weight_row(&w, j, row);
            for (size_t i = 0; i < ROWS; i++) {
                double want = 0, magnitude = 0;
                for (size_t c = 0; c < COLS; c++) {
                    assert_true((double)row[c] == stored_value(&w, j, c));
                    want += x[i * COLS + c] * stored_value(&w, j, c);
                    magnitude += fabs(x[i * COLS + c] * stored_value(&w, j, c));
                }
                close_to(out[i][j], want, 1e-6 * magnitude);
            }
        }
    }
}

enum { HD = 24, TOKENS = 3 * ATTENTION_TILE };

// Three tiles merged in both orders of association, against float64 over all tokens.
static void attention_and_merge(void **state)
{
    (void)state;
    static uint16_t key[TOKENS][HD], value[TOKENS][HD];
    _Alignas(64) float parts[3][16 + 32], left[16 + 32], right[16 + 32], other[16 + 32];
    static _Alignas(64) unsigned char scratch[KERNEL_SCRATCH_BYTES];
    float q[HD], out[HD], out_right[HD];
    uint64_t random = 13;
    for (int round = 0; round < 20; round++) {
        for (size_t i = 0; i < TOKENS * HD; i++) {
            ((uint16_t *)key)[i] = kernel_f32_to_f16(cases_uniform(&random));
            ((uint16_t *)value)[i] = kernel_f32_to_f16(cases_uniform(&random));
        }
        for (size_t d = 0; d < HD; d++)
            q[d] = cases_uniform(&random) * (float)(1 + round);
        uint32_t tokens[3] = {64, 64, (uint32_t)(1 + round * 3)};
        for (size_t i = 0; i < 3; i++) {
            struct attention_tile tile = {.k = {key[i * 64]},
                                          .v = {value[i * 64]},
                                          .tokens = tokens[i],
                                          .head_dim = HD,
                                          .scale = 0.7f};
            k->attention_tile(&tile, q, HD, 1, NULL, parts[i], 0, scratch);
            k->attention_tile(&tile, q, HD, 1, NULL, left, i > 0, scratch);
        }
        memcpy(right, parts[1], sizeof right);
        k->partial_merge((struct partial *)right, (struct partial *)parts[2], HD);
        memcpy(other, parts[0], sizeof other);
        k->partial_merge((struct partial *)other, (struct partial *)right, HD);
        k->partial_output((struct partial *)left, out, HD);
        k->partial_output((struct partial *)other, out_right, HD);
        double s[TOKENS], max = -INFINITY, sum = 0, want[HD] = {0};
        size_t n = 128 + tokens[2];
        for (size_t t = 0; t < n; t++) {
            s[t] = 0;
            for (size_t d = 0; d < HD; d++)
                s[t] += q[d] * half_value(key[t][d]);
            s[t] *= (double)0.7f;
            max = s[t] > max ? s[t] : max;
        }
        for (size_t t = 0; t < n; t++) {
            sum += exp(s[t] - max);
            for (size_t d = 0; d < HD; d++)
                want[d] += exp(s[t] - max) * half_value(value[t][d]);
        }
        const struct partial *p = (struct partial *)left;
        close_to(p->max + logf(p->sum), max + log(sum), 1e-5 * (1 + fabs(max)));
        for (size_t d = 0; d < HD; d++) {
            close_to(out[d], want[d] / sum, 1e-5);
            close_to(out_right[d], out[d], 1e-6);
        }
    }
}

static void empty_partials(void **state)
{
    (void)state;
    _Alignas(64) float a[16 + 32] = {0}, b[16 + 32] = {0}, keep[16 + 32];
    float out[HD];
    struct partial *pa = (struct partial *)a, *pb = (struct partial *)b;
    partial_clear(pa);
    partial_clear(pb);
    k->partial_merge(pa, pb, HD);
    assert_true(pa->sum == 0 && pa->max == -INFINITY);
    k->partial_output(pa, out, HD);
    for (size_t d = 0; d < HD; d++)
        assert_true(out[d] == 0);
    pb->max = 3;
    pb->sum = 2;
    for (size_t d = 0; d < HD; d++)
        pb->acc[d] = (float)d - 7;
    k->partial_merge(pa, pb, HD);
    assert_memory_equal(&pa->max, &pb->max, 2 * sizeof(float));
    assert_memory_equal(pa->acc, pb->acc, HD * sizeof(float));
    memcpy(keep, a, sizeof keep);
    partial_clear(pb);
    k->partial_merge(pa, pb, HD);
    assert_memory_equal(a, keep, sizeof keep);
}

// Scores, softmax terms and weighted sums that rank tokens, against float64.
static void ranking(void **state)
{
    (void)state;
    enum { TOKENS = 77, CHANNELS = 9, QUERIES = 3, STRIDE = 80 };
    static uint16_t keys[CHANNELS][TOKENS];
    float q[QUERIES * CHANNELS], out[QUERIES * STRIDE], y[TOKENS];
    const uint16_t *list[CHANNELS];
    uint64_t random = 9;
    for (size_t i = 0; i < QUERIES * CHANNELS; i++)
        q[i] = cases_uniform(&random);
    for (size_t c = 0; c < CHANNELS; c++) {
        list[c] = keys[CHANNELS - 1 - c];
        for (size_t t = 0; t < TOKENS; t++)
            keys[c][t] = kernel_f32_to_f16(cases_uniform(&random));
    }
    k->channel_scores(list, CHANNELS, TOKENS, q, CHANNELS, QUERIES, out, STRIDE);
    for (size_t i = 0; i < QUERIES; i++) {
        double total = 0;
        float max = k->max(out + i * STRIDE, TOKENS), copy[TOKENS];
        memcpy(copy, out + i * STRIDE, sizeof copy);
        for (size_t t = 0; t < TOKENS; t++) {
            double s = 0;
            for (size_t c = 0; c < CHANNELS; c++)
                s += (double)q[i * CHANNELS + c] * half_value(list[c][t]);
            close_to((double)copy[t], s, 1e-6);
            total += exp((double)copy[t] - (double)max);
            y[t] = (float)t;
        }
        close_to((double)k->exp_sum(copy, TOKENS, max), total, 1e-5);
        k->axpy(y, 0.5f, copy, TOKENS);
        for (size_t t = 0; t < TOKENS; t++) {
            double e = exp((double)out[i * STRIDE + t] - (double)max);
            close_to((double)copy[t], e, 1e-6);
            close_to((double)y[t], (double)t + 0.5 * e, 1e-5);
        }
    }
    assert_true(k->exp_sum(out, 0, 0) == 0);
}

// A piece's mass in float64, key by key.
static void weighing(void **state)
{
    enum { KEYS = 21, BYTES = 9, N = 8, CHANNELS = 8 * BYTES };
    static uint8_t summary[N][MASS_HEADER + KEYS * (2 + BYTES)];
    static _Alignas(64) uint8_t scratch[MASS_SCRATCH];
    static int8_t table[8 * 2 * 2 * 16];
    struct mass_pieces m = {.n = N, .keys = KEYS, .bytes = BYTES};
    const float factor = 0.01f;
    float top, masses[N], weight[N], y[CHANNELS] = {0}, bias[MASS_SLICES];
    const uint8_t *codes[N];
    uint64_t random = 9;
    (void)state;
    assert_int_equal(mass_rows(BYTES), 32);
    for (size_t i = 0; i < sizeof table; i++)
        table[i] = (int8_t)(i / 16 % 16 < BYTES ? (int)(cases_random(&random) % 63) - 31 : 0);
    for (size_t p = 0; p < N; p++) {
        for (size_t i = 0; i < sizeof summary[p]; i++)
            summary[p][i] = (uint8_t)cases_random(&random);
        uint16_t scale = kernel_f32_to_f16(0.9f - 0.1f * (float)p);
        memcpy(summary[p], &scale, sizeof scale);
        m.summary[p] = summary[p];
        bias[p] = p == 3 ? -40.5f : 11 * (float)p;
    }
    for (m.counted = 0; m.counted < 2; m.counted++) {
        for (int kind = 0; kind < 4; kind++) {
            double want[N], most = -INFINITY, x[N][KEYS];
            const int capped = kind & 1;
            m.softcap = capped ? 3 : 0;
            m.bias = kind & 2 ? bias : NULL;
            k->piece_masses(&m, table, &factor, 1, &top, 1, masses, N, scratch);
            for (size_t p = 0; p < N; p++) {
                uint16_t scale;
                memcpy(&scale, summary[p], sizeof scale);
                for (size_t i = 0; i < KEYS; i++) {
                    const uint8_t *factors = summary[p] + MASS_HEADER;
                    const uint8_t *key = factors + (m.counted ? 2 : 1) * KEYS + i;
                    double sum = 0;
                    for (size_t j = 0; j < BYTES; j++)
                        sum += table[j * 16 + key[j * KEYS] % 16] +
                               table[(16 + j) * 16 + key[j * KEYS] / 16];
                    x[p][i] = sum * half_value(scale) * factors[i] / 255;
                    x[p][i] = (double)factor * (x[p][i] + (m.bias ? (double)bias[p] : 0));
                    x[p][i] = capped ? 3 * tanh(x[p][i] / 3) : x[p][i];
                    most = x[p][i] > most ? x[p][i] : most;
                }
            }
            close_to(top, most * 1.4426950408889634, 1e-5);
            for (size_t p = 0; p < N; p++) {
                want[p] = 0;
                for (size_t i = 0; i < KEYS; i++)
                    want[p] +=
                        exp(x[p][i] - most) * (m.counted ? summary[p][MASS_HEADER + KEYS + i] : 1);
                close_to(masses[p], want[p], 1e-5 * want[p]);
            }
        }
    }
    for (size_t bits = 1; bits <= 2; bits++) {
        memset(y, 0, sizeof y);
        for (size_t p = 0; p < N; p++) {
            codes[p] = summary[p];
            weight[p] = (float)(p + 1);
        }
        k->code_axpy(codes, N, bits, 35, weight, N, 1, y, CHANNELS);
        for (size_t d = 0; d < CHANNELS; d++) {
            double want = 0;
            for (size_t p = 0; p < N && d < 35; p++)
                want +=
                    (double)weight[p] * ((summary[p][d * bits / 8] >> d * bits % 8) % (1 << bits) -
                                         (bits == 1 ? 0.5 : 1.5));
            close_to(y[d], want, 0);
        }
    }
}

static void transposing(void **state)
{
    (void)state;
    enum { SIDE = 41 };
    static uint16_t in[SIDE * SIDE], out[SIDE * SIDE];
    for (size_t i = 0; i < SIDE * SIDE; i++)
        in[i] = (uint16_t)i;
    for (size_t rows = 0; rows <= SIDE; rows++) {
        for (size_t cols = 0; cols <= SIDE; cols += 3) {
            memset(out, 0xff, sizeof out);
            kernel_transpose16(out, SIDE, in, SIDE, rows, cols);
            for (size_t c = 0; c < SIDE; c++)
                for (size_t r = 0; r < SIDE; r++)
                    assert_int_equal(out[c * SIDE + r],
                                     r < rows && c < cols ? in[r * SIDE + c] : 0xffff);
        }
    }
}

static void type_table(void **state)
{
    (void)state;
    assert_string_equal(tensor_type_info(TENSOR_Q8_0)->name, "Q8_0");
    assert_int_equal(tensor_type_info(TENSOR_Q8_0)->block_bytes, 34);
    assert_int_equal(tensor_type_by_name("bf16")->type, TENSOR_BF16);
    assert_int_equal(tensor_type_by_name("q8_k")->supported, 0);
    assert_null(tensor_type_info(5)); // withdrawn
    assert_null(tensor_type_info(0xffffffff));
    assert_null(tensor_type_by_name("Q9_9"));
    static const uint32_t supported[] = {TENSOR_F32, TENSOR_F16, TENSOR_BF16, TENSOR_Q8_0};
    for (size_t i = 0; i < 4; i++)
        assert_true(tensor_type_info(supported[i])->supported);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(half_precision), cmocka_unit_test(exponential),
        cmocka_unit_test(vectors),        cmocka_unit_test(rotation),
        cmocka_unit_test(products),       cmocka_unit_test(attention_and_merge),
        cmocka_unit_test(empty_partials), cmocka_unit_test(capped_window),
        cmocka_unit_test(type_table),     cmocka_unit_test(ranking),
        cmocka_unit_test(transposing),    cmocka_unit_test(weighing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
