// SPDX-License-Identifier: Apache-2.0
#include "host/engine/engine.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { VOCAB = 8 };

static struct inst_engine engine;
static float logits[VOCAB];
static struct inst_session session;

static int setup(void **state)
{
    (void)state;
    budget_init(&engine.budget, 1 << 20);
    engine.config.vocab = VOCAB;
    session = (struct inst_session){.engine = &engine, .logits = logits, .has_logits = true};
    return 0;
}

static void set_logits(const float values[VOCAB])
{
    memcpy(logits, values, sizeof logits);
}

// How often each token is drawn in n draws.
static void draw(const struct inst_sampling *sampling, const int32_t *history, size_t n_history,
                 unsigned n, unsigned count[VOCAB])
{
    inst_sampler *s;
    assert_int_equal(inst_sampler_open(&s, &engine, sampling, NULL), 0);
    memset(count, 0, VOCAB * sizeof *count);
    for (unsigned i = 0; i < n; i++) {
        int32_t id = inst_sample(s, &session, history, n_history);
        assert_in_range(id, 0, VOCAB - 1);
        count[id]++;
    }
    inst_sampler_close(s);
    assert_int_equal(engine.budget.used, 0);
}

static const struct inst_sampling plain = {
    .temperature = 1, .top_k = 0, .top_p = 1, .repeat_penalty = 1, .repeat_last = 64, .seed = 5};

static void greedy_takes_the_lowest_of_equals(void **state)
{
    (void)state;
    unsigned count[VOCAB];
    set_logits((float[VOCAB]){1, 3, 2, 3, -1, NAN, 3, 0});
    struct inst_sampling s = plain;
    s.temperature = 0;
    draw(&s, NULL, 0, 3, count);
    assert_int_equal(count[1], 3);
    set_logits((float[VOCAB]){NAN, NAN, -5, NAN, NAN, NAN, NAN, NAN});
    draw(&s, NULL, 0, 1, count);
    assert_int_equal(count[2], 1);
}

static void draws_follow_the_softmax(void **state)
{
    (void)state;
    enum { DRAWS = 100000 };
    unsigned count[VOCAB];
    double p[VOCAB] = {.02, .3, .05, .2, .08, .25, .1, 0}, total = 0;
    for (int i = 0; i < VOCAB; i++)
        logits[i] = p[i] > 0 ? (float)log(p[i]) + 3 : -INFINITY;
    for (int heat = 1; heat <= 2; heat++) {
        struct inst_sampling s = plain;
        s.temperature = (float)heat;
        draw(&s, NULL, 0, DRAWS, count);
        total = 0;
        for (int i = 0; i < VOCAB; i++)
            total += pow(p[i], 1.0 / heat);
        for (int i = 0; i < VOCAB; i++) {
            double expected = pow(p[i], 1.0 / heat) / total * DRAWS;
            // Five standard deviations.
            assert_true(fabs(count[i] - expected) <= 5 * sqrt(expected) + 1e-9);
        }
    }
}

static void filters_cut_where_they_should(void **state)
{
    (void)state;
    unsigned count[VOCAB];
    double p[VOCAB] = {.02, .3, .05, .2, .08, .25, .1, 0};
    for (int i = 0; i < VOCAB; i++)
        logits[i] = p[i] > 0 ? (float)log(p[i]) : -INFINITY;
    struct inst_sampling s = plain;
    s.top_k = 3; // 1, 5, 3
    draw(&s, NULL, 0, 2000, count);
    assert_true(count[1] && count[5] && count[3]);
    assert_int_equal(count[1] + count[5] + count[3], 2000);
    s = plain;
    s.top_p = 0.54f; // .3 + .25 reaches it
    draw(&s, NULL, 0, 2000, count);
    assert_true(count[1] && count[5]);
    assert_int_equal(count[1] + count[5], 2000);
    s = plain;
    s.min_p = 0.3f; // .09 and more
    draw(&s, NULL, 0, 5000, count);
    assert_true(count[1] && count[5] && count[3] && count[6]);
    assert_int_equal(count[1] + count[5] + count[3] + count[6], 5000);
    s = plain;
    s.top_p = 0; // the best one always stays
    draw(&s, NULL, 0, 10, count);
    assert_int_equal(count[1], 10);
    s = plain;
    s.min_p = 1;
    draw(&s, NULL, 0, 10, count);
    assert_int_equal(count[1], 10);
    s = plain;
    s.top_k = 1;
    draw(&s, NULL, 0, 10, count);
    assert_int_equal(count[1], 10);
}

static void repetition_is_punished_once_and_only_lately(void **state)
{
    (void)state;
    unsigned count[VOCAB];
    set_logits((float[VOCAB]){4, 3, 1.5f, -1, -9, -9, -9, -9});
    struct inst_sampling s = plain;
    s.temperature = 0;
    s.repeat_penalty = 2; // 4 -> 2 once, would be 1 twice
    const int32_t history[] = {1, 0, 0, 0};
    draw(&s, history, 4, 1, count);
    assert_int_equal(count[0], 1); // 2 against 1.5 and 1.5
    s.repeat_last = 3;
    draw(&s, history, 4, 1, count);
    assert_int_equal(count[1], 1); // token 1 is out of sight
    s.repeat_last = 0;
    draw(&s, history, 4, 1, count);
    assert_int_equal(count[0], 1);
    // A negative logit moves away from zero.
    set_logits((float[VOCAB]){-1, -1.5f, -9, -9, -9, -9, -9, -9});
    s.repeat_last = -1;
    draw(&s, (const int32_t[]){0, 99, -7}, 3, 1, count);
    assert_int_equal(count[1], 1);
}

static void a_seed_repeats_its_tokens(void **state)
{
    (void)state;
    set_logits((float[VOCAB]){1, 1, 1, 1, 1, 1, 1, 1});
    int32_t first[50];
    for (int round = 0; round < 3; round++) {
        struct inst_sampling s = plain;
        s.seed = round == 2 ? 6 : 5;
        inst_sampler *sampler;
        assert_int_equal(inst_sampler_open(&sampler, &engine, &s, NULL), 0);
        bool equal = true;
        for (int i = 0; i < 50; i++) {
            int32_t id = inst_sample(sampler, &session, NULL, 0);
            if (!round)
                first[i] = id;
            equal &= id == first[i];
        }
        assert_int_equal(equal, round < 2);
        inst_sampler_close(sampler);
    }
}

static void bad_settings_are_refused(void **state)
{
    (void)state;
    struct inst_sampling bad[4] = {plain, plain, plain, plain};
    bad[0].temperature = NAN;
    bad[1].top_p = -1;
    bad[2].min_p = NAN;
    bad[3].repeat_penalty = 0;
    inst_sampler *s;
    for (int i = 0; i < 4; i++)
        assert_int_equal(inst_sampler_open(&s, &engine, &bad[i], NULL), INST_EINVAL);
    struct inst_sampling d;
    inst_sampling_default(&d);
    assert_true(d.temperature == 0.8f && d.top_k == 40 && d.top_p == 0.95f && d.min_p == 0.05f &&
                d.repeat_penalty == 1.0f && d.repeat_last == 64);
    session.has_logits = false;
    assert_int_equal(inst_sampler_open(&s, &engine, &plain, NULL), 0);
    assert_int_equal(inst_sample(s, &session, NULL, 0), -1);
    inst_sampler_close(s);
    session.has_logits = true;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greedy_takes_the_lowest_of_equals),
        cmocka_unit_test(draws_follow_the_softmax),
        cmocka_unit_test(filters_cut_where_they_should),
        cmocka_unit_test(repetition_is_punished_once_and_only_lately),
        cmocka_unit_test(a_seed_repeats_its_tokens),
        cmocka_unit_test(bad_settings_are_refused),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
