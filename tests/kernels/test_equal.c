// SPDX-License-Identifier: Apache-2.0
// Every set of this machine gives the reference's bits on every case; a row of a matrix product
// and a query of a tile depend on nothing but themselves.
#include "cases.h"
#include "tests/more.h"
#include "tests/needs.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CASES_MAX = 16384 };

struct record {
    size_t n;
    struct {
        char name[96];
        uint64_t hash;
    } cases[CASES_MAX];
};

static void keep(void *arg, const char *name, uint64_t hash)
{
    struct record *r = arg;
    assert_true(r->n < CASES_MAX);
    snprintf(r->cases[r->n].name, sizeof r->cases[0].name, "%s", name);
    r->cases[r->n++].hash = hash;
}

static struct record reference; // the reference's, made once

static void sets_equal_reference(void **state)
{
    (void)state;
    const struct record *want = &reference;
    struct record *got = calloc(1, sizeof *got);
    assert_true(want->n > 7000);
    for (const char *const *name = kernels_available(); *name; name++) {
        const struct kernels *k = kernels_by_name(*name);
        assert_string_equal(k->name, *name);
        if (k == &kernels_reference)
            continue;
        got->n = 0;
        cases_run(k, keep, got);
        assert_int_equal(got->n, want->n);
        size_t wrong = 0;
        for (size_t i = 0; i < want->n; i++) {
            assert_string_equal(got->cases[i].name, want->cases[i].name);
            if (got->cases[i].hash != want->cases[i].hash && wrong++ < 10)
                print_error("%s: other bits in case '%s'\n", *name, want->cases[i].name);
        }
        assert_int_equal(wrong, 0);
        print_message("%s: %zu cases\n", *name, got->n);
    }
    free(got);
}

static void dispatch(void **state)
{
    (void)state;
    assert_null(kernels_by_name("mmx"));
    assert_ptr_equal(kernels_by_name("reference"), &kernels_reference);
    const char *const *names = kernels_available();
    assert_string_equal(names[0], "reference");
    size_t last = 0;
    while (names[last + 1])
        last++;
    assert_string_equal(names[last], kernels_best()->name);
#ifdef __x86_64__
    static const char *const sets[] = {"avx2", "avx512", "avx512vnni"};
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++)
        if (!kernels_by_name(sets[i]))
            not_tested("the kernels %s: not for this CPU", sets[i]);
#endif
}

static void wrong_set_is_caught(void **state)
{
    (void)state;
    // The comparison itself can fail: a set that is wrong on purpose is caught.
    struct record *wrong = calloc(1, sizeof *wrong);
    struct kernels off = *kernels_best(); // fast, and of the reference's bits
    off.sum = off.max;
    cases_run(&off, keep, wrong);
    size_t differ = 0;
    for (size_t i = 0; i < wrong->n; i++)
        differ += wrong->cases[i].hash != reference.cases[i].hash;
    assert_true(differ > 100);
    free(wrong);
}

// Rows alone, in batches of 1 to 70, and with the outputs split anywhere: the same bits.
static void row_invariance(void **state)
{
    (void)state;
    enum { ROWS = 70, OUTPUTS = 45, COLS_MAX = 512 };
    static const uint32_t types[] = {TENSOR_F32,    TENSOR_F16,  TENSOR_BF16, TENSOR_Q8_0,
                                     TENSOR_Q4_0,   TENSOR_Q4_1, TENSOR_Q5_0, TENSOR_Q5_1,
                                     TENSOR_IQ4_NL, TENSOR_Q2_K, TENSOR_Q3_K, TENSOR_Q4_K,
                                     TENSOR_Q5_K,   TENSOR_Q6_K};
    static uint8_t data[OUTPUTS * COLS_MAX * 4];
    _Alignas(64) static float x[ROWS * COLS_MAX], alone[ROWS][OUTPUTS], out[ROWS][OUTPUTS];
    void *scratch = aligned_alloc(64, KERNEL_SCRATCH_BYTES);
    uint64_t random = 7;
    for (size_t i = 0; i < ROWS * COLS_MAX; i++)
        x[i] = cases_uniform(&random);
    for (const char *const *name = kernels_available(); *name; name++) {
        const struct kernels *k = kernels_by_name(*name);
        for (size_t t = 0; t < sizeof types / sizeof types[0]; t++) {
            size_t block = tensor_type_info(types[t])->block_elements;
            size_t cols = block == 1 ? 341 : block == 32 ? 352 : 512;
            struct weight w = cases_weight(&random, types[t], OUTPUTS, cols, data);
            size_t stride = COLS_MAX;
            float *rounded = cases_rounded(k, types[t], x, &stride, cols, ROWS);
            const float *in = rounded ? rounded : x;
            for (size_t i = 0; i < ROWS; i++)
                k->matmul(&w, 0, OUTPUTS, in + i * stride, stride, 1, alone[i], OUTPUTS, scratch);
            size_t step = k == &kernels_reference && !more() ? 23 : 1; // plain loops, and slow
            for (size_t n = 1; n <= ROWS; n += step) {
                size_t start = n < ROWS ? (n * 7) % (ROWS - n) : 0, split = n % OUTPUTS;
                memset(out, 0, sizeof out);
                k->matmul(&w, 0, split, in + start * stride, stride, n, out[0], OUTPUTS, scratch);
                k->matmul(&w, split, OUTPUTS - split, in + start * stride, stride, n,
                          out[0] + split, OUTPUTS, scratch);
                assert_memory_equal(out, alone[start], n * sizeof out[0]);
            }
            free(rounded);
        }
    }
    free(scratch);
}

// A query's partial is the same alone, in a group, in a chunk of prefill, and however K and V lie;
// tokens beyond its limit have no influence, whatever they hold.
static void query_invariance(void **state)
{
    (void)state;
    enum { HD_MAX = 80, QUERIES = 110 };
    static const uint32_t parts[] = {0, 16, 32, 64}, dims[] = {80, 13};
    static uint16_t key[ATTENTION_TILE * HD_MAX], value[ATTENTION_TILE * HD_MAX];
    static uint16_t cut_key[ATTENTION_TILE * HD_MAX], cut_value[ATTENTION_TILE * HD_MAX];
    float *q = malloc(QUERIES * HD_MAX * sizeof *q);
    float *all = aligned_alloc(64, QUERIES * partial_stride(HD_MAX) * sizeof *all);
    float *one = aligned_alloc(64, partial_stride(HD_MAX) * sizeof *one);
    void *scratch = aligned_alloc(64, KERNEL_SCRATCH_BYTES);
    uint64_t random = 11;
    uint32_t limit[QUERIES];
    for (size_t i = 0; i < ATTENTION_TILE * HD_MAX; i++) {
        key[i] = kernel_f32_to_f16(cases_uniform(&random));
        value[i] = kernel_f32_to_f16(cases_uniform(&random));
    }
    for (size_t i = 0; i < QUERIES * HD_MAX; i++)
        q[i] = cases_uniform(&random) * 3;
    for (const char *const *name = kernels_available(); *name; name++) {
        const struct kernels *k = kernels_by_name(*name);
        for (size_t n = 1; n <= QUERIES; n += n < 20 ? 1 : 15) {
            uint32_t hd = dims[n % 2];
            struct attention_tile tile = cases_tile(key, value, ATTENTION_TILE, hd, parts[n % 4]);
            tile.scale = 0.3f;
            for (size_t i = 0; i < n; i++)
                limit[i] = (uint32_t)(n * 5 + i) % (ATTENTION_TILE + 1);
            k->attention_tile(&tile, q, hd, n, limit, all, 0, scratch);
            cases_tile_free(&tile);
            for (size_t i = 0; i < n; i++) {
                memcpy(cut_key, key, sizeof key);
                memcpy(cut_value, value, sizeof value);
                size_t seen = (size_t)limit[i] * hd, rest = sizeof key - seen * sizeof key[0];
                memset(cut_key + seen, 0xff, rest);
                memset(cut_value + seen, 0xff, rest);
                tile = cases_tile(cut_key, cut_value, ATTENTION_TILE, hd, parts[i % 4]);
                tile.scale = 0.3f;
                k->attention_tile(&tile, q + i * hd, hd, 1, &limit[i], one, 0, scratch);
                cases_tile_free(&tile);
                const struct partial *p = partial_at(all, i, hd), *o = partial_at(one, 0, hd);
                assert_memory_equal(p, o, 2 * sizeof(float));
                assert_memory_equal(p->acc, o->acc, limit[i] ? hd * sizeof(float) : 0);
                assert_true(limit[i] ? p->sum >= 1 : p->sum == 0 && p->max == -INFINITY);
            }
        }
    }
    free(q);
    free(all);
    free(one);
    free(scratch);
}

// Chosen tokens of a tile give the bits of a tile that holds nothing else; parts without any of
// them may be missing, and what the others hold has no influence.
static void chosen_tokens(void **state)
{
    (void)state;
    enum { HD = 40, QUERIES = 70 };
    static const uint32_t parts[] = {16, 32, 64};
    static uint16_t key[ATTENTION_TILE * HD], value[ATTENTION_TILE * HD];
    static uint16_t packed_key[ATTENTION_TILE * HD], packed_value[ATTENTION_TILE * HD];
    _Alignas(64) static float got[QUERIES * (16 + 48)], want[QUERIES * (16 + 48)];
    _Static_assert(HD > 32 && HD <= 48, "stride of the partials");
    float q[QUERIES * HD];
    void *scratch = aligned_alloc(64, KERNEL_SCRATCH_BYTES);
    uint64_t random = 5;
    for (size_t i = 0; i < QUERIES * HD; i++)
        q[i] = cases_uniform(&random) * 3;
    for (size_t round = 0; round < 200; round++) {
        uint64_t chosen = 1ull << cases_random(&random) % 64;
        for (size_t more = cases_random(&random) % 30; more; more--)
            chosen |= 1ull << cases_random(&random) % (round % 3 ? 64 : 20);
        uint32_t n = 0, w = parts[round % 3];
        memset(key, 0xff, sizeof key);
        memset(value, 0xff, sizeof value);
        for (size_t t = 0; t < ATTENTION_TILE; t++) {
            if (!(chosen >> t & 1))
                continue;
            for (size_t d = 0; d < HD; d++) {
                packed_key[n * HD + d] = key[t * HD + d] =
                    kernel_f32_to_f16(cases_uniform(&random));
                packed_value[n * HD + d] = value[t * HD + d] =
                    kernel_f32_to_f16(cases_uniform(&random));
            }
            n++;
        }
        struct attention_tile tile = cases_tile(key, value, ATTENTION_TILE, HD, w), some = tile;
        struct attention_tile packed = cases_tile(packed_key, packed_value, n, HD, w);
        some.scale = packed.scale = 0.5f;
        some.chosen = chosen;
        some.tokens = 64 - (uint32_t)__builtin_clzll(chosen);
        for (uint32_t i = 0; i < ATTENTION_TILE; i += w)
            if (!(chosen >> i & (w < 64 ? (1ull << w) - 1 : ~0ull)))
                some.k[i / w] = some.v[i / w] = NULL;
        size_t n_q = 1 + round * 7 % QUERIES;
        for (const char *const *name = kernels_available(); *name; name++) {
            const struct kernels *k = kernels_by_name(*name);
            memset(got, 0, sizeof got);
            memset(want, 0, sizeof want);
            k->attention_tile(&some, q, HD, n_q, NULL, got, 0, scratch);
            k->attention_tile(&packed, q, HD, n_q, NULL, want, 0, scratch);
            for (size_t i = 0; i < n_q; i++)
                assert_memory_equal(partial_at(got, i, HD), partial_at(want, i, HD),
                                    (16 + HD) * sizeof(float));
        }
        cases_tile_free(&tile);
        cases_tile_free(&packed);
    }
    free(scratch);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dispatch),
        cmocka_unit_test(sets_equal_reference),
        cmocka_unit_test(wrong_set_is_caught),
        cmocka_unit_test(row_invariance),
        cmocka_unit_test(query_invariance),
        cmocka_unit_test(chosen_tokens),
    };
    cases_run(&kernels_reference, keep, &reference);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
