// SPDX-License-Identifier: Apache-2.0
// Block types against values that another program gave the same blocks (tests/data/quants.bin, by
// tools/reference/make_quant_goldens.py): every set, bit for bit, because a value is rounded at
// most once. And the type table: geometry, and the rows it refuses.
#include "cases.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TYPES = 11, DATA_MAX = 16384, VALUES_MAX = 2048 };

struct golden {
    uint32_t type, blocks, block_bytes, block_elements;
    uint8_t data[DATA_MAX];
    float values[VALUES_MAX];
};

static int read_golden(FILE *f, struct golden *g)
{
    if (fread(g, 4, 4, f) != 4) // little-endian machines
        return 0;
    size_t bytes = (size_t)g->blocks * g->block_bytes, n = (size_t)g->blocks * g->block_elements;
    assert_true(bytes > 0 && bytes <= DATA_MAX && n > 0 && n <= VALUES_MAX);
    assert_int_equal(fread(g->data, 1, bytes, f), bytes);
    assert_int_equal(fread(g->values, sizeof(float), n, f), n);
    return 1;
}

static void check_golden(const struct kernels *k, const struct golden *g)
{
    // One row of all blocks, and each block as a row of its own.
    float out[VALUES_MAX];
    const size_t n = (size_t)g->blocks * g->block_elements;
    struct weight row = {g->data, 1, n, tensor_type_row_bytes(g->type, n), g->type};
    k->weight_row(&row, 0, out);
    for (size_t i = 0; i < n; i++) {
        if (memcmp(out + i, g->values + i, sizeof out[0])) {
            print_error("%s, %s, element %zu: %.9g instead of %.9g\n", k->name,
                        tensor_type_info(g->type)->name, i, (double)out[i], (double)g->values[i]);
            fail();
        }
    }
    struct weight rows = {g->data, g->blocks, g->block_elements, g->block_bytes, g->type};
    for (uint32_t b = 0; b < g->blocks; b++) {
        k->weight_row(&rows, b, out);
        assert_memory_equal(out, g->values + (size_t)b * g->block_elements,
                            g->block_elements * sizeof out[0]);
    }
}

static void values(void **state)
{
    (void)state;
    static struct golden g;
    FILE *f = fopen(INST_SOURCE_DIR "/tests/data/quants.bin", "rb");
    assert_non_null(f);
    size_t types = 0;
    for (; read_golden(f, &g); types++) {
        const struct tensor_type_info *info = tensor_type_info(g.type);
        assert_non_null(info);
        assert_true(info->supported);
        assert_int_equal(info->block_bytes, g.block_bytes);
        assert_int_equal(info->block_elements, g.block_elements);
        for (const char *const *name = kernels_available(); *name; name++)
            check_golden(kernels_by_name(*name), &g);
    }
    assert_int_equal(types, TYPES);
    fclose(f);
}

// The product of one row of x, which reads blocks in its own way, against the row's values.
static void products(void **state)
{
    (void)state;
    static struct golden g;
    _Alignas(64) static float x[VALUES_MAX], row[VALUES_MAX];
    void *scratch = aligned_alloc(64, KERNEL_SCRATCH_BYTES);
    uint64_t random = 21;
    for (size_t i = 0; i < VALUES_MAX; i++)
        x[i] = cases_uniform(&random);
    FILE *f = fopen(INST_SOURCE_DIR "/tests/data/quants.bin", "rb");
    assert_non_null(f);
    while (read_golden(f, &g)) {
        struct weight w = {g.data, g.blocks, g.block_elements, g.block_bytes, g.type};
        for (const char *const *name = kernels_available(); *name; name++) {
            const struct kernels *k = kernels_by_name(*name);
            for (uint32_t b = 0; b < g.blocks; b++) {
                const float *want = g.values + (size_t)b * g.block_elements;
                float got, dot = kernels_reference.dot(x, want, g.block_elements);
                double sum = 0, magnitude = 0;
                for (size_t i = 0; i < g.block_elements; i++) {
                    sum += (double)x[i] * (double)want[i];
                    magnitude += fabs((double)x[i] * (double)want[i]);
                }
                size_t stride = VALUES_MAX;
                float *rounded = cases_rounded(k, g.type, x, &stride, g.block_elements, 1);
                k->matmul(&w, b, 1, rounded ? rounded : x, stride, 1, &got, 1, scratch);
                // A type that rounds x has no digits beyond the 14th bit of the greatest.
                assert_true(fabs((double)got - sum) <= (rounded ? 6e-5 : 1e-6) * magnitude);
                if (!rounded)
                    assert_memory_equal(&got, &dot, sizeof got);
                free(rounded);
                k->weight_row(&w, b, row);
                assert_memory_equal(row, want, g.block_elements * sizeof row[0]);
            }
        }
    }
    fclose(f);
    free(scratch);
}

static void row_bytes(void **state)
{
    (void)state;
    assert_int_equal(tensor_type_row_bytes(TENSOR_F32, 3), 12);
    assert_int_equal(tensor_type_row_bytes(TENSOR_Q4_0, 96), 54);
    assert_int_equal(tensor_type_row_bytes(TENSOR_Q4_K, 512), 288);
    // Rows that are not whole blocks: the file reader refuses them by the same numbers.
    assert_int_equal(tensor_type_row_bytes(TENSOR_Q4_K, 288), 0);
    assert_int_equal(tensor_type_row_bytes(TENSOR_Q6_K, 255), 0);
    assert_int_equal(tensor_type_row_bytes(TENSOR_Q5_1, 40), 0);
    assert_int_equal(tensor_type_row_bytes(5, 256), 0);
    assert_int_equal(tensor_type_row_bytes(TENSOR_F32, UINT64_MAX / 2), 0);
    for (uint32_t type = 0; type < 64; type++) {
        const struct tensor_type_info *info = tensor_type_info(type);
        if (!info || !info->supported || info->block_elements == 1)
            continue;
        assert_true(info->block_elements == 32 || info->block_elements == 256);
        assert_int_equal(tensor_type_row_bytes(type, info->block_elements), info->block_bytes);
        assert_int_equal(tensor_type_row_bytes(type, info->block_elements + 16), 0);
        assert_true(info->scale_at + 2 <= info->block_bytes);
        assert_true(info->min_at + 2 <= info->block_bytes);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values),
        cmocka_unit_test(products),
        cmocka_unit_test(row_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
