// SPDX-License-Identifier: Apache-2.0
// Products of the K types, which take x rounded: each set's rounding against its definition, what
// is not finite or next to nothing, blocks whose integer sums come closest to 2^31, and how far
// products lie from float64 on the same weights. That all sets agree is test_equal's.
#include "cases.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK = ROUNDED_BLOCK, BLOCKS = 5, COLS = BLOCKS * BLOCK, ROWS = 7, OUTPUTS = 41 };

static const uint32_t types[] = {TENSOR_Q2_K, TENSOR_Q3_K, TENSOR_Q4_K, TENSOR_Q5_K, TENSOR_Q6_K};
enum { TYPES = sizeof types / sizeof types[0], ROW_BYTES_MAX = BLOCKS * 210 };

// Where element i of a block lies in q.
static size_t place(size_t i)
{
    return i / 64 * 64 + i % 2 * 32 + i % 64 / 2;
}

static void check_block(const struct rounded_x *got, const float *x)
{
    float greatest = 0;
    for (size_t i = 0; i < BLOCK; i++)
        greatest = fabsf(x[i]) > greatest ? fabsf(x[i]) : greatest;
    assert_true(fabs(got->scale * 16383.0 / greatest - 1) < 1e-6);
    for (size_t g = 0; g < KERNEL_LANES; g++) {
        double sum = 0;
        for (size_t i = 16 * g; i < 16 * g + 16; i++) {
            double q = got->q[place(i)];
            assert_true(fabs(q) <= 16383 && fabs(q * got->scale - x[i]) <= 0.501 * got->scale);
            sum += q;
        }
        assert_true(got->sum[g] == (float)sum * got->scale);
    }
}

static void rounding(void **state)
{
    (void)state;
    static float x[COLS];
    size_t floats = rounded_floats(COLS);
    float *out = aligned_alloc(64, floats * sizeof *out);
    uint64_t random = 5;
    assert_int_equal(sizeof(struct rounded_x) % 64, 0);
    for (const char *const *name = kernels_available(); *name; name++) {
        for (int power = -90; power <= 120; power += 30) {
            for (size_t i = 0; i < COLS; i++)
                x[i] = ldexpf(cases_uniform(&random), power) / (float)(1 + i % BLOCK % 17);
            kernels_by_name(*name)->round_x(out, x, COLS);
            for (size_t b = 0; b < BLOCKS; b++)
                check_block((const struct rounded_x *)out + b, x + b * BLOCK);
        }
    }
    free(out);
}

// The greatest magnitude is at each place once; a block's neighbour says nothing about it.
static void greatest_anywhere(void **state)
{
    (void)state;
    static float x[2 * BLOCK];
    float *out = aligned_alloc(64, rounded_floats(2 * BLOCK) * sizeof *out);
    const struct rounded_x *got = (const struct rounded_x *)out;
    for (const char *const *name = kernels_available(); *name; name++) {
        for (size_t at = 0; at < BLOCK; at++) {
            for (size_t i = 0; i < 2 * BLOCK; i++)
                x[i] = i < BLOCK ? 0.5f : 64;
            x[at] = -2;
            kernels_by_name(*name)->round_x(out, x, 2 * BLOCK);
            for (size_t i = 0; i < BLOCK; i++)
                assert_int_equal(got->q[place(i)], i == at ? -16383 : 4096);
            assert_int_equal(got[1].q[0], 16383);
        }
    }
    free(out);
}

static void nothing_and_not_finite(void **state)
{
    (void)state;
    static const float values[] = {0, -0.0f, 0x1p-140f, 0x1p-101f, INFINITY, -INFINITY, (float)NAN};
    static float x[BLOCK];
    static uint8_t data[210];
    float *out = aligned_alloc(64, rounded_floats(BLOCK) * sizeof *out);
    const struct rounded_x *got = (const struct rounded_x *)out;
    void *scratch = aligned_alloc(64, KERNEL_SCRATCH_BYTES);
    uint64_t random = 6;
    for (const char *const *name = kernels_available(); *name; name++) {
        const struct kernels *k = kernels_by_name(*name);
        for (size_t v = 0; v < sizeof values / sizeof values[0]; v++) {
            int finite = isfinite(values[v]);
            for (size_t i = 0; i < BLOCK; i++)
                x[i] = finite ? 0 : 1;
            x[77] = values[v];
            k->round_x(out, x, BLOCK);
            for (size_t i = 0; i < BLOCK; i++)
                assert_int_equal(got->q[i], 0);
            for (size_t t = 0; t < TYPES; t++) {
                float product;
                struct weight w = cases_weight(&random, types[t], 1, BLOCK, data);
                k->matmul(&w, 0, 1, out, rounded_floats(BLOCK), 1, &product, 1, scratch);
                assert_true(finite ? product == 0 : isnan(product));
            }
        }
    }
    free(out);
    free(scratch);
}

static void check_products(const struct kernels *k, const struct weight *w, const float *x,
                           double tolerance)
{
    static float row[COLS], got[ROWS * OUTPUTS];
    void *scratch = aligned_alloc(64, KERNEL_SCRATCH_BYTES);
    size_t stride = w->cols, outputs = w->rows;
    float *rounded = cases_rounded(k, w->type, x, &stride, w->cols, ROWS);
    k->matmul(w, 0, outputs, rounded, stride, ROWS, got, outputs, scratch);
    double error = 0, square = 0;
    for (size_t j = 0; j < outputs; j++) {
        k->weight_row(w, j, row);
        for (size_t i = 0; i < ROWS; i++) {
            double want = 0;
            for (size_t c = 0; c < w->cols; c++)
                want += (double)x[i * w->cols + c] * (double)row[c];
            error += pow((double)got[i * outputs + j] - want, 2);
            square += want * want;
        }
    }
    if (!(sqrt(error / square) <= tolerance)) {
        print_error("%s, %s: relative rms error %g\n", k->name, tensor_type_info(w->type)->name,
                    sqrt(error / square));
        fail();
    }
    free(rounded);
    free(scratch);
}

static void close_to_float64(void **state)
{
    (void)state;
    static float x[ROWS * COLS];
    static uint8_t data[OUTPUTS * ROW_BYTES_MAX];
    uint64_t random = 7;
    for (size_t i = 0; i < ROWS * COLS; i++)
        x[i] = cases_uniform(&random) * cases_uniform(&random);
    for (const char *const *name = kernels_available(); *name; name++)
        for (size_t t = 0; t < TYPES; t++) {
            struct weight w = cases_weight(&random, types[t], OUTPUTS, COLS, data);
            check_products(kernels_by_name(*name), &w, x, 1e-4);
        }
}

// All codes and scales at their limits, all of x at its greatest, with equal and with changing
// signs: a sum beyond 32 bits would be off by 2^32.
static void no_overflow(void **state)
{
    (void)state;
    static float x[ROWS * BLOCK];
    static uint8_t data[ROWS * 210];
    const uint16_t one = kernel_f32_to_f16(1);
    for (size_t i = 0; i < ROWS * BLOCK; i++)
        x[i] = i / BLOCK == 0 ? 3 : i / BLOCK == 1 ? -3 : i >> (i / BLOCK - 2) & 1 ? 3 : -3;
    for (size_t t = 0; t < TYPES; t++) {
        const struct tensor_type_info *info = tensor_type_info(types[t]);
        for (int limit = 0; limit < 3; limit++) {
            struct weight w = {data, 1, BLOCK, info->block_bytes, types[t]};
            memset(data, 0xff, info->block_bytes);
            if (types[t] == TENSOR_Q6_K) // 16 scales of int8
                memset(data + 192, limit == 0 ? 0x80 : limit == 1 ? 0x7f : 0xff, 16);
            if (types[t] == TENSOR_Q3_K) // scales of 6 bits: 32 is subtracted
                memset(data + 96, limit ? 0xff : 0, 12);
            memcpy(data + info->min_at, &(uint16_t){0}, 2);
            memcpy(data + info->scale_at, &one, 2);
            for (const char *const *name = kernels_available(); *name; name++)
                check_products(kernels_by_name(*name), &w, x, 1e-5);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rounding),
        cmocka_unit_test(greatest_anywhere),
        cmocka_unit_test(nothing_and_not_finite),
        cmocka_unit_test(close_to_float64),
        cmocka_unit_test(no_overflow),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
