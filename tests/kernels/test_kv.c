// SPDX-License-Identifier: Apache-2.0
// K and V in blocks: what rounding keeps, that it does nothing twice, that parts give back what
// kv_round says, token for token, and that a tile in blocks has the bits of one of those numbers.
#include "cases.h"
#include "kernels/kv_keys.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { DIM_MAX = 130 };

static const uint32_t dims[] = {1, 8, 16, 20, 24, 33, 64, 80, 96, 128, 130};

// Numbers of many sizes and shapes: around 0, of one sign, with a few large ones, small integers.
static void draw(uint64_t *state, uint16_t *x, size_t n)
{
    int exponent = (int)(cases_random(state) % 40) - 24, kind = (int)(cases_random(state) % 5);
    for (size_t i = 0; i < n; i++) {
        float u = cases_uniform(state);
        float f = kind == 0   ? u
                  : kind == 1 ? fabsf(u)
                  : kind == 2 ? u * u * u * u * u
                  : kind == 3 ? (float)((int)(cases_random(state) % 31) - 15) / 15
                              : u - 0.7f;
        f = ldexpf(f, exponent);
        x[i] = kernel_f32_to_f16(f > 65504 ? 65504 : f < -65504 ? -65504 : f);
    }
}

static float most_of(const uint16_t *x, size_t n)
{
    float most = 0;
    for (size_t i = 0; i < n; i++)
        most = fmaxf(most, fabsf(kernel_f16_to_f32(x[i])));
    return most;
}

static void round_token(uint32_t type, uint16_t *k, uint16_t *v, size_t dim)
{
    kv_round(type, k, dim);
    kv_round_value(type, v, k, dim);
}

static void rounding(void **unused)
{
    (void)unused;
    uint64_t state = 1;
    for (int round = 0; round < 40000; round++) {
        uint32_t type = KV_Q8 + (uint32_t)round % 2;
        size_t n = 1 + cases_random(&state) % 40;
        uint16_t x[40], once[40], twice[40];
        draw(&state, x, n);
        memcpy(once, x, sizeof once);
        kv_round(type, once, n);
        memcpy(twice, once, sizeof twice);
        kv_round(type, twice, n);
        assert_memory_equal(once, twice, n * sizeof *once);
        for (size_t c = 0; c < n; c += KV_BLOCK) {
            size_t m = n - c < KV_BLOCK ? n - c : KV_BLOCK;
            float most = most_of(x + c, m), error = 0, square = 0;
            for (size_t i = c; i < c + m; i++) {
                float d = fabsf(kernel_f16_to_f32(x[i]) - kernel_f16_to_f32(once[i]));
                error = fmaxf(error, d);
                square += d * d;
            }
            // Half a step of a scale that is at most 1/8 too large; near 65504 fp16 ends.
            if (type == KV_Q8)
                assert_true(error <= most / 127 * (most < 60000 ? 0.57f : 1) + 0x1p-24f);
            // A block of Q4 with one number cut off is worth it where the others gain.
            if (type == KV_Q4 && most < 30000)
                assert_true(sqrtf(square / (float)m) <= 2 * most / 15 * 0.57f + 0x1p-21f);
        }
    }
}

// What a block of V carries, bit by bit.
static uint32_t hidden_bits(uint32_t type, const uint8_t *codes)
{
    uint32_t bits = 0, most = type == KV_Q8 ? 16 : 24;
    for (uint32_t i = 0; i < most; i++) {
        uint32_t low = codes[i % 16], high = type == KV_Q8 ? codes[i + 16] : codes[i % 16] >> 4;
        bits |= ((i < 16 ? low ^ high : low) & 1) << i;
    }
    return bits;
}

// V beside K: rounded once is rounded for good, whatever K is, and no number is far from its own;
// what its block carries are the scales that K and V have.
static void beside(void **unused)
{
    (void)unused;
    uint64_t state = 6;
    for (int round = 0; round < 40000; round++) {
        uint32_t type = KV_Q8 + (uint32_t)round % 2;
        size_t n = round % 8 ? KV_BLOCK : 1 + cases_random(&state) % 70;
        uint16_t k[70], v[70], once[70], twice[70], got[2][70];
        draw(&state, k, n);
        draw(&state, v, n);
        memcpy(once, v, sizeof once);
        kv_round_value(type, once, k, n);
        kv_round(type, k, n); // nothing else is seen of it
        memcpy(twice, once, sizeof twice);
        kv_round_value(type, twice, k, n);
        assert_memory_equal(once, twice, n * sizeof *once);
        uint8_t keys[16 * 80], values[16 * 80];
        kv_put(type, keys, values, 16, n, 3, 1, k, v);
        kv_get(type, keys, values, 16, n, 3, 1, got[0], got[1]);
        assert_memory_equal(got[0], k, n * sizeof *k);
        assert_memory_equal(got[1], once, n * sizeof *k);
        const uint8_t *codes = values + 3 * kv_value_codes(type, n);
        assert_true(n < KV_BLOCK || hidden_bits(type, codes) == kv_hidden(type, codes));
        // No number goes farther than to the second nearest code of the least scale that reaches
        // all of them; another scale is taken where it has less error.
        float most = most_of(v, n), step = 2 * most / (type == KV_Q8 ? 2 * 127 : 15) * 1.13f;
        float square = 0;
        for (size_t i = 0; i < n; i++)
            square += powf(kernel_f16_to_f32(v[i]) - kernel_f16_to_f32(once[i]), 2);
        assert_true(most > 30000 || sqrtf(square / (float)n) <= step + 0x1p-20f);
    }
}

// On average V pays for that with twice the squared error of rounding alone, of Q4 three times.
static void beside_costs(void **unused)
{
    (void)unused;
    uint64_t state = 8;
    double plain[2] = {0}, carrying[2] = {0};
    for (int round = 0; round < 4000; round++) {
        uint32_t type = KV_Q8 + (uint32_t)round % 2;
        uint16_t k[KV_BLOCK], v[KV_BLOCK], alone[KV_BLOCK], with[KV_BLOCK];
        for (int i = 0; i < KV_BLOCK; i++) {
            k[i] = kernel_f32_to_f16(cases_uniform(&state) + cases_uniform(&state));
            v[i] = kernel_f32_to_f16(cases_uniform(&state) + cases_uniform(&state));
        }
        memcpy(alone, v, sizeof v);
        memcpy(with, v, sizeof v);
        kv_round(type, alone, KV_BLOCK);
        kv_round_value(type, with, k, KV_BLOCK);
        for (int i = 0; i < KV_BLOCK; i++) {
            double x = (double)kernel_f16_to_f32(v[i]);
            plain[round % 2] += pow((double)kernel_f16_to_f32(alone[i]) - x, 2);
            carrying[round % 2] += pow((double)kernel_f16_to_f32(with[i]) - x, 2);
        }
    }
    if (carrying[0] > 2.1 * plain[0] || carrying[1] > 3.2 * plain[1])
        fail_msg("squared error of V that carries scales: %.2f and %.2f times",
                 carrying[0] / plain[0], carrying[1] / plain[1]);
}

// What was turned has the products it had, no channel is much larger than the others, and the
// Hadamard matrix does not turn it back.
static void turning(void **unused)
{
    (void)unused;
    uint64_t state = 9;
    for (int d = 0; d < 11; d++) {
        size_t n = dims[d], block = n & -n;
        float q[DIM_MAX], k[DIM_MAX];
        double before = 0, after = 0;
        for (size_t i = 0; i < n; i++) {
            q[i] = cases_uniform(&state);
            k[i] = cases_uniform(&state) * (i == n / 2 ? 50 : 1);
            before += (double)q[i] * (double)k[i];
        }
        kv_turn(q, n);
        kv_turn(k, n);
        for (size_t i = 0; i < n; i++)
            after += (double)q[i] * (double)k[i];
        assert_true(fabs(after - before) < 1e-4);
        for (size_t i = 0; i < n; i++)
            assert_true(block < 8 || fabsf(k[i]) < 51 / sqrtf((float)block) + 4);
        size_t negative = 0;
        for (size_t i = 0; i < n; i++) {
            float one[DIM_MAX] = {0};
            one[i / block * block] = 1;
            kv_turn(one, n);
            negative += one[i] < 0;
        }
        assert_true(block < 16 || (negative > n / 8 && negative < n - n / 8));
    }
}

static void hard_numbers(void **unused)
{
    (void)unused;
    for (uint32_t type = KV_Q8; type <= KV_Q4; type++) {
        uint16_t x[64] = {0};
        kv_round(type, x, 64);
        for (int i = 0; i < 64; i++)
            assert_int_equal(x[i], 0);
        x[40] = 0x7bff; // 65504
        x[50] = 0xfbff;
        kv_round(type, x, 64);
        for (int i = 0; i < 64; i++)
            assert_int_not_equal(x[i] & 0x7c00, 0x7c00); // stays finite
        static const uint16_t none[] = {0x7c00, 0xfc00, 0x7e00};
        for (int k = 0; k < 3; k++) {
            memset(x, 0, sizeof x);
            x[3] = none[k];
            x[33] = 0x3c00;
            kv_round(type, x, 64);
            for (int i = 0; i < 64; i++)
                assert_int_equal((x[i] & 0x7fff) > 0x7c00, i < 32);
        }
    }
}

// Sum of squares of what rounding changed in the products of k with n queries.
static double product_errors(const uint16_t *k, const uint16_t *rounded, const float *q, size_t n,
                             size_t dim)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        double d = 0;
        for (size_t c = 0; c < dim; c++)
            d += (double)q[i * dim + c] *
                 (double)(kernel_f16_to_f32(rounded[c]) - kernel_f16_to_f32(k[c]));
        sum += d * d;
    }
    return sum;
}

// Queries that lie in a third of all directions, and a little in the others.
static void draw_queries(uint64_t *state, float *q, size_t n, size_t dim)
{
    float way[DIM_MAX / 3 + 1][DIM_MAX];
    for (size_t w = 0; w < dim / 3 + 1; w++)
        for (size_t c = 0; c < dim; c++)
            way[w][c] = cases_uniform(state);
    for (size_t i = 0; i < n; i++) {
        for (size_t c = 0; c < dim; c++)
            q[i * dim + c] = 0.05f * cases_uniform(state);
        for (size_t w = 0; w < dim / 3 + 1; w++) {
            float much = cases_uniform(state);
            for (size_t c = 0; c < dim; c++)
                q[i * dim + c] += much * way[w][c];
        }
    }
}

static void moments_of(float *m, const float *q, size_t n, size_t dim)
{
    memset(m, 0, kv_triangle(dim) * sizeof *m);
    for (size_t i = 0; i < n; i++, q += dim)
        for (size_t r = 0; r < dim; r++)
            for (size_t c = 0; c <= r; c++)
                m[kv_triangle(r) + c] += q[r] * q[c];
}

// Keys rounded for queries like these: a fixed point of rounding, and products that change less.
// Where all directions are alike, or nothing can be learned, it is plain rounding.
static void for_queries(void **unused)
{
    (void)unused;
    enum { QUERIES = 300, KEYS = 60 };
    uint64_t state = 12;
    float *q = malloc(QUERIES * DIM_MAX * sizeof *q);
    float *m = malloc(kv_triangle(DIM_MAX) * sizeof *m);
    for (int round = 0; round < 22; round++) {
        uint32_t type = KV_Q8 + (uint32_t)round / 11;
        size_t dim = dims[round % 11], same = 0;
        double plain = 0, better = 0;
        draw_queries(&state, q, QUERIES, dim);
        moments_of(m, q, QUERIES, dim);
        kv_factor(m, dim);
        for (int i = 0; i < KEYS; i++) {
            uint16_t k[DIM_MAX], once[DIM_MAX], rounded[DIM_MAX], twice[DIM_MAX];
            for (size_t c = 0; c < dim; c++)
                k[c] = kernel_f32_to_f16(cases_uniform(&state) + cases_uniform(&state));
            memcpy(once, k, sizeof k);
            memcpy(rounded, k, sizeof k);
            kv_round(type, once, dim);
            kv_round_keys(type, rounded, dim, 1, dim, m);
            memcpy(twice, rounded, sizeof k);
            kv_round(type, twice, dim);
            assert_memory_equal(twice, rounded, dim * sizeof *k);
            same += !memcmp(once, rounded, dim * sizeof *k);
            plain += product_errors(k, once, q, QUERIES, dim);
            better += product_errors(k, rounded, q, QUERIES, dim);
        }
        if (dim >= 16 && (same > KEYS / 4 || better > 0.6 * plain))
            fail_msg("%s, %zu channels: %g of the error, %zu of %d as before", kv_type_name(type),
                     dim, better / plain, same, KEYS);
    }
    for (int round = 0; round < 2000; round++) {
        uint32_t type = KV_Q8 + (uint32_t)round % 2;
        size_t dim = dims[round / 2 % 11];
        uint16_t k[DIM_MAX], once[DIM_MAX];
        draw(&state, k, dim);
        if (round % 7 == 0)
            k[dim / 2] = 0x7e00;
        memcpy(once, k, sizeof k);
        memset(m, 0, kv_triangle(dim) * sizeof *m);
        for (size_t c = 0; c < dim; c++)
            m[kv_triangle(c) + c] = round % 3 ? 5 : NAN;
        kv_factor(m, dim);
        kv_round_keys(type, k, dim, 1, dim, m);
        kv_round(type, once, dim);
        assert_memory_equal(k, once, dim * sizeof *k);
    }
    free(q);
    free(m);
}

// Tokens put in any pieces come back as kv_round made them; the others stay as they are.
static void parts(void **unused)
{
    (void)unused;
    static const uint32_t lengths[] = {16, 32, 64};
    uint64_t state = 3;
    uint16_t *x = malloc(2 * 64 * DIM_MAX * sizeof *x), *y = malloc(2 * 64 * DIM_MAX * sizeof *y);
    for (int round = 0; round < 300; round++) {
        uint32_t type = (uint32_t)round % KV_TYPES;
        size_t dim = dims[cases_random(&state) % 11], w = lengths[cases_random(&state) % 3];
        size_t keys = kv_key_bytes(type, dim, w), values = kv_value_bytes(type, dim, w);
        uint8_t *k = malloc(keys), *v = malloc(values); // their ends are their ends
        memset(k, 0x5a, keys);
        memset(v, 0x5a, values);
        for (size_t t = 0; t < 2 * w; t++)
            draw(&state, x + t * dim, dim);
        size_t first = cases_random(&state) % w, n;
        for (size_t t = first; t < w; t += n) {
            n = 1 + cases_random(&state) % (w - t);
            kv_put(type, k, v, w, dim, t, n, x + t * dim, x + (w + t) * dim);
        }
        kv_get(type, k, v, w, dim, 0, w, y, y + w * dim);
        for (size_t t = 0; t < w; t++)
            round_token(type, x + t * dim, x + (w + t) * dim, dim);
        assert_memory_equal(y + first * dim, x + first * dim, (w - first) * dim * sizeof *x);
        assert_memory_equal(y + (w + first) * dim, x + (w + first) * dim,
                            (w - first) * dim * sizeof *x);
        for (size_t t = first; t < w; t++) {
            assert_true(kv_key(type, k, v, w, dim, t, dim / 2) ==
                        kernel_f16_to_f32(x[t * dim + dim / 2]));
            assert_true(kv_value(type, v, w, dim, t, dim - 1) ==
                        kernel_f16_to_f32(x[(w + t) * dim + dim - 1]));
        }
        if (first) { // again, over what is there
            kv_put(type, k, v, w, dim, 0, first, x, x + w * dim);
            kv_put(type, k, v, w, dim, first, w - first, x + first * dim, x + (w + first) * dim);
            kv_get(type, k, v, w, dim, 0, w, y, y + w * dim);
            assert_memory_equal(y, x, 2 * w * dim * sizeof *x);
        }
        free(k);
        free(v);
    }
    free(x);
    free(y);
}

static void tiles(void **unused)
{
    (void)unused;
    enum { QUERIES = 20 };
    static const uint32_t lengths[] = {16, 32, 64};
    uint64_t state = 4;
    uint16_t *k = malloc(64 * DIM_MAX * sizeof *k), *v = malloc(64 * DIM_MAX * sizeof *v);
    float *q = malloc(QUERIES * DIM_MAX * sizeof *q);
    size_t floats = QUERIES * partial_stride(DIM_MAX);
    float *got = aligned_alloc(64, floats * sizeof *got);
    float *want = aligned_alloc(64, floats * sizeof *want);
    void *scratch = aligned_alloc(64, KERNEL_SCRATCH_BYTES);
    const struct kernels *kernels = kernels_best();
    for (int round = 0; round < 400; round++) {
        uint32_t type = KV_Q8 + (uint32_t)round % 2, tokens = 1 + cases_random(&state) % 64;
        uint32_t dim = dims[cases_random(&state) % 11], w = lengths[cases_random(&state) % 3];
        size_t n_q = 1 + cases_random(&state) % (round % 8 ? 5 : QUERIES);
        for (size_t i = 0; i < tokens * dim; i++) {
            k[i] = kernel_f32_to_f16(3 * cases_uniform(&state));
            v[i] = kernel_f32_to_f16(cases_uniform(&state));
        }
        for (size_t i = 0; i < n_q * dim; i++)
            q[i] = cases_uniform(&state);
        struct attention_tile tile = cases_tile_of(type, k, v, tokens, dim, w);
        for (size_t t = 0; t < tokens; t++) {
            round_token(type, k + t * dim, v + t * dim, dim);
        }
        struct attention_tile plain = cases_tile(k, v, tokens, dim, round % 3 ? w : 0);
        tile.scale = plain.scale = 0.4f;
        kernels->attention_tile(&tile, q, dim, n_q, NULL, got, 0, scratch);
        kernels->attention_tile(&plain, q, dim, n_q, NULL, want, 0, scratch);
        for (size_t i = 0; i < n_q; i++) {
            assert_memory_equal(partial_at(got, i, dim), partial_at(want, i, dim), 8);
            assert_memory_equal(partial_at(got, i, dim)->acc, partial_at(want, i, dim)->acc,
                                dim * sizeof(float));
        }
        cases_tile_free(&tile);
        cases_tile_free(&plain);
    }
    free(k);
    free(v);
    free(q);
    free(got);
    free(want);
    free(scratch);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rounding), cmocka_unit_test(turning),      cmocka_unit_test(hard_numbers),
        cmocka_unit_test(parts),    cmocka_unit_test(tiles),        cmocka_unit_test(for_queries),
        cmocka_unit_test(beside),   cmocka_unit_test(beside_costs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
