// SPDX-License-Identifier: Apache-2.0
// The reference of SparF on cases that were worked out by hand, and what must always hold of it.
#include "sparf_float64.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static void near(double got, double expected)
{
    if (!(fabs(got - expected) < 1e-12))
        fail_msg("%.17g instead of %.17g", got, expected);
}

// Three tokens, two channels; channel 0 alone gives predicted logits 0, ln 2, 0.
static const double q1[] = {2, 1};
static const double v1[] = {1, 0, 0, 1, 3, 3};

static struct sparf_problem by_hand(double *k)
{
    double scale = 1 / sqrt(2.0);
    double factor = sqrt(3.0 / 2.0); // |q| is 3 in all, 2 on the chosen channel
    double step = log(2.0) / (2 * scale * factor);
    k[0] = 0;
    k[1] = 5;
    k[2] = step;
    k[3] = -2 * step; // the exact score of token 1 is 0
    k[4] = 0;
    k[5] = 1;
    return (struct sparf_problem){.head_dim = 2,
                                  .group = 1,
                                  .tokens = 3,
                                  .channels = 1,
                                  .keep = 1,
                                  .scale = scale,
                                  .q = q1,
                                  .k = k,
                                  .v = v1};
}

static void test_one_token_of_three(void **state)
{
    (void)state;
    double k[6];
    struct sparf_problem p = by_hand(k);
    struct sparf_answer a;
    assert_int_equal(sparf_answer_alloc(&a, &p), 0);
    sparf_solve(&p, &a);
    assert_true(a.channel[0] && !a.channel[1]);
    assert_true(!a.token[0] && a.token[1] && !a.token[2]);
    near(a.rank[0], 0.25);
    near(a.rank[1], 0.5);
    near(a.alpha[0], 0.5);
    near(a.lse[0], 0);
    // Exact scores: 5 scale, 0, scale.
    near(a.captured[0], 1 / (exp(5 / sqrt(2.0)) + 1 + exp(1 / sqrt(2.0))));
    // Half of V[1] and half of the mean (4/3, 4/3).
    near(a.out[0], 2.0 / 3);
    near(a.out[1], 7.0 / 6);
    near(a.least_chosen, 0.5);
    near(a.best_left, 0.25);
    sparf_answer_free(&a);
}

static void test_ties_and_local_window(void **state)
{
    (void)state;
    static const struct {
        uint32_t keep, local;
        bool token[3];
        double alpha;
    } cases[] = {
        {2, 0, {true, true, false}, 0.75},  // tokens 0 and 2 rank alike: the lower index
        {1, 1, {false, false, true}, 0.25}, // the window fills k
        {2, 1, {false, true, true}, 0.75},  // the window counts in k
        {0, 2, {false, true, true}, 0.75},  // k is at least the window
        {3, 0, {true, true, true}, 1},      {9, 9, {true, true, true}, 1},
    };
    double k[6];
    struct sparf_problem p = by_hand(k);
    struct sparf_answer a;
    assert_int_equal(sparf_answer_alloc(&a, &p), 0);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        p.keep = cases[i].keep;
        p.local = cases[i].local;
        sparf_solve(&p, &a);
        assert_memory_equal(a.token, cases[i].token, sizeof cases[i].token);
        near(a.alpha[0], cases[i].alpha);
    }
    // Tokens 1 and 2 with exact scores 0 and scale, alpha 3/4.
    p.keep = 2;
    p.local = 1;
    sparf_solve(&p, &a);
    double e = exp(p.scale), w1 = 1 / (1 + e), w2 = e / (1 + e);
    near(a.out[0], 0.75 * 3 * w2 + 0.25 * 4 / 3);
    near(a.out[1], 0.75 * (w1 + 3 * w2) + 0.25 * 4 / 3);
    near(a.lse[0], log(1 + e));
    sparf_answer_free(&a);
}

static void test_equal_channels(void **state)
{
    (void)state;
    static const double q[] = {1, -2, 2, 0};
    double k[4] = {0}, v[4] = {0};
    static const bool expected[5][4] = {
        {0}, {0, 1, 0, 0}, {0, 1, 1, 0}, {1, 1, 1, 0}, {1, 1, 1, 1}};
    for (uint32_t r = 1; r <= 4; r++) {
        struct sparf_problem p = {
            .head_dim = 4, .group = 1, .tokens = 1, .channels = r, .keep = 1, .scale = 0.5};
        p.q = q;
        p.k = k;
        p.v = v;
        struct sparf_answer a;
        assert_int_equal(sparf_answer_alloc(&a, &p), 0);
        sparf_solve(&p, &a);
        assert_memory_equal(a.channel, expected[r], 4);
        sparf_answer_free(&a);
    }
}

// Two query heads choose together: |q| sums to (3, 5), so channel 1, though head 0 is blind there
// and ranks all tokens alike.
static void test_group_of_two(void **state)
{
    (void)state;
    static const double q[] = {3, 0, 0, 5};
    static const double v[] = {1, 1, 2, 2, 3, 3, 4, 4};
    double k[8] = {1, 0, 2, 0, 3, 0, 4, 0};
    double scale = 0.25;
    k[5] = log(5.0) / (5 * scale); // token 2 for head 1: s^ = 1/8, 1/8, 5/8, 1/8; factor 1
    struct sparf_problem p = {.head_dim = 2,
                              .group = 2,
                              .tokens = 4,
                              .channels = 1,
                              .keep = 2,
                              .scale = scale,
                              .q = q,
                              .k = k,
                              .v = v};
    struct sparf_answer a;
    assert_int_equal(sparf_answer_alloc(&a, &p), 0);
    sparf_solve(&p, &a);
    assert_true(!a.channel[0] && a.channel[1]);
    near(a.rank[0], 0.25 + 0.125);
    near(a.rank[2], 0.25 + 0.625);
    assert_true(a.token[0] && !a.token[1] && a.token[2] && !a.token[3]);
    near(a.alpha[0], 0.5);
    near(a.alpha[1], 0.75);
    // Head 0 scores tokens 0 and 2 with 3/4 and 9/4; head 1 with 0 and ln 5.
    double w = exp(1.5) / (1 + exp(1.5));
    near(a.out[0], 0.5 * (1 - w + 3 * w) + 0.5 * 2.5);
    near(a.out[2], 0.75 * (1.0 / 6 + 3 * 5.0 / 6) + 0.25 * 2.5);
    near(a.lse[1], log(6));
    sparf_answer_free(&a);
}

static void test_zero_query(void **state)
{
    (void)state;
    static const double q[2] = {0}, k[] = {1, 2, 3, 4, 5, 6}, v[] = {1, 2, 3, 4, 5, 6};
    struct sparf_problem p = {.head_dim = 2,
                              .group = 1,
                              .tokens = 3,
                              .channels = 1,
                              .keep = 1,
                              .scale = 1,
                              .q = q,
                              .k = k,
                              .v = v};
    struct sparf_answer a;
    assert_int_equal(sparf_answer_alloc(&a, &p), 0);
    sparf_solve(&p, &a);
    assert_true(a.channel[0] && a.token[0] && !a.token[1]);
    near(a.alpha[0], 1.0 / 3);
    near(a.out[0], 1.0 / 3 + 2.0 / 3 * 3);
    sparf_answer_free(&a);
}

static uint64_t seed = 1;
static double noise(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (double)(int64_t)seed / 9.2e18;
}

static void test_what_always_holds(void **state)
{
    (void)state;
    enum { DIM = 12, GROUP = 3, TOKENS = 50 };
    double q[GROUP * DIM], k[TOKENS * DIM], v[TOKENS * DIM], dense[DIM], lse;
    for (int round = 0; round < 20; round++) {
        struct sparf_problem p = {.head_dim = DIM,
                                  .group = GROUP,
                                  .tokens = TOKENS,
                                  .scale = 0.7,
                                  .q = q,
                                  .k = k,
                                  .v = v};
        for (size_t i = 0; i < GROUP * DIM; i++)
            q[i] = 3 * noise();
        for (size_t i = 0; i < TOKENS * DIM; i++) {
            k[i] = noise();
            v[i] = noise();
        }
        p.softcap = round % 3 ? 0 : 2.5;
        struct sparf_answer a;
        assert_int_equal(sparf_answer_alloc(&a, &p), 0);
        double alpha = 0;
        for (p.keep = 1; p.keep <= TOKENS; p.keep++) {
            p.channels = DIM;
            sparf_solve(&p, &a);
            uint32_t chosen = 0;
            double ranks = 0;
            for (uint32_t t = 0; t < TOKENS; t++) {
                chosen += a.token[t];
                ranks += a.rank[t];
                assert_true(a.token[t] ? a.rank[t] >= a.least_chosen : a.rank[t] <= a.best_left);
            }
            assert_int_equal(chosen, p.keep);
            near(ranks, GROUP);
            assert_true(a.alpha[0] + a.alpha[1] + a.alpha[2] >= alpha);
            alpha = a.alpha[0] + a.alpha[1] + a.alpha[2];
            // With every channel the prediction is the truth.
            for (uint32_t g = 0; g < GROUP; g++)
                near(a.alpha[g], a.captured[g]);
        }
        for (uint32_t g = 0; g < GROUP; g++) { // all channels, all tokens: dense
            sparf_dense(&p, g, dense, &lse);
            near(a.lse[g], lse);
            near(a.alpha[g], 1);
            for (uint32_t d = 0; d < DIM; d++)
                near(a.out[g * DIM + d], dense[d]);
        }
        sparf_answer_free(&a);
    }
    assert_int_equal(sparf_share(128, 8), 16);
    assert_int_equal(sparf_share(80, 8), 10);
    assert_int_equal(sparf_share(1, 8), 1);
    assert_int_equal(sparf_share(17, 8), 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_token_of_three), cmocka_unit_test(test_ties_and_local_window),
        cmocka_unit_test(test_equal_channels),     cmocka_unit_test(test_group_of_two),
        cmocka_unit_test(test_zero_query),         cmocka_unit_test(test_what_always_holds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
