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

// The definition: sort everything, add in order, cut, draw.
struct rank {
    float logit;
    int32_t id;
};

static int by_logit(const void *a, const void *b)
{
    const struct rank *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit < y->logit ? 1 : -1;
    return x->id < y->id ? -1 : 1;
}

static int32_t plain_draw(const float *values, size_t vocab, const struct inst_sampling *o,
                          double uniform)
{
    struct rank *r = calloc(vocab, sizeof *r);
    for (size_t i = 0; i < vocab; i++)
        r[i] = (struct rank){isnan(values[i]) ? -INFINITY : values[i], (int32_t)i};
    qsort(r, vocab, sizeof *r, by_logit);
    size_t n = o->top_k > 0 && (size_t)o->top_k < vocab ? (size_t)o->top_k : vocab;
    double max = (double)r[0].logit, total = 0, sum = 0;
    for (size_t i = 0; i < n; i++)
        total += exp((double)r[i].logit - max);
    for (size_t i = 0; i < n && o->top_p < 1; i++) {
        sum += exp((double)r[i].logit - max);
        if (sum >= (double)o->top_p * total)
            n = i + 1;
    }
    size_t kept = 1;
    while (kept < n && (o->min_p <= 0 || (double)r[kept].logit >= max + log((double)o->min_p)))
        kept++;
    total = 0;
    for (size_t i = 0; i < kept; i++)
        total += exp(((double)r[i].logit - max) / (double)o->temperature);
    double left = uniform * total;
    int32_t id = r[kept - 1].id;
    for (size_t i = 0; i < kept; i++) {
        left -= exp(((double)r[i].logit - max) / (double)o->temperature);
        if (left < 0) {
            id = r[i].id;
            break;
        }
    }
    free(r);
    return id;
}

// The sampler's generator, to know what it draws with.
static double uniform_of(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

static float noise(uint64_t *state)
{
    return (float)(uniform_of(state) + uniform_of(state) + uniform_of(state) - 1.5);
}

enum { BIG = 150000 };

static struct inst_engine big_engine;
static float big_logits[BIG];
static struct inst_session big_session = {
    .engine = &big_engine, .logits = big_logits, .has_logits = true};

static void big_start(uint32_t vocab)
{
    budget_init(&big_engine.budget, 16 << 20);
    big_engine.config.vocab = vocab;
}

// Whatever is not sorted: the same tokens as by the definition, also where sums are exactly what
// they are compared with, and where logits are no numbers.
static void draws_equal_the_definition(void **state)
{
    (void)state;
    static const float top_p[] = {0, 0.25f, 0.5f, 0.95f, 1}, min_p[] = {0, 0.05f, 0.5f};
    static const float heat[] = {0.1f, 0.8f, 1, 7};
    static const uint32_t vocabs[] = {1, 2, 16, 100, 1024};
    uint64_t rng = 1;
    for (unsigned trial = 0; trial < 1500; trial++) {
        uint32_t vocab = vocabs[trial % 5];
        struct inst_sampling o = plain;
        o.seed = trial;
        o.top_k = trial % 3 == 0 ? (int32_t)(1 + (uint32_t)(uniform_of(&rng) * vocab)) : 0;
        o.top_p = top_p[(size_t)(uniform_of(&rng) * 5)];
        o.min_p = min_p[(size_t)(uniform_of(&rng) * 3)];
        o.temperature = heat[(size_t)(uniform_of(&rng) * 4)];
        double steps = uniform_of(&rng) < 0.3 ? 0 : uniform_of(&rng) < 0.5 ? 2 : 1e6, odd = 0;
        if (trial % 7 == 0)
            odd = uniform_of(&rng) < 0.5 ? 0.1 : 1;
        for (uint32_t i = 0; i < vocab; i++) {
            big_logits[i] = steps > 0 ? (float)(round((double)noise(&rng) * 9 * steps) / steps) : 1;
            if (odd > 0 && uniform_of(&rng) < odd)
                big_logits[i] = uniform_of(&rng) < 0.5 ? NAN : -INFINITY;
        }
        big_start(vocab);
        inst_sampler *s;
        assert_int_equal(inst_sampler_open(&s, &big_engine, &o, NULL), 0);
        uint64_t twin = o.seed;
        for (int i = 0; i < 8; i++) {
            int32_t want = plain_draw(big_logits, vocab, &o, uniform_of(&twin));
            assert_int_equal(inst_sample(s, &big_session, NULL, 0), want);
        }
        inst_sampler_close(s);
    }
}

// A whole vocabulary whose head holds the weight, as models give: nothing near all of it is sorted.
static void a_vocabulary_is_not_sorted(void **state)
{
    (void)state;
    uint64_t rng = 3;
    for (uint32_t i = 0; i < BIG; i++)
        big_logits[i] = noise(&rng) * 2 + (i % 5000 ? 0 : 14);
    big_start(BIG);
    for (int filtered = 0; filtered < 2; filtered++) {
        struct inst_sampling o = plain;
        o.top_p = filtered ? 0.95f : 1;
        o.min_p = filtered ? 0.05f : 0;
        inst_sampler *s;
        size_t most = 0;
        assert_int_equal(inst_sampler_open(&s, &big_engine, &o, NULL), 0);
        uint64_t twin = o.seed;
        for (int i = 0; i < 5; i++) {
            int32_t want = plain_draw(big_logits, BIG, &o, uniform_of(&twin));
            assert_int_equal(inst_sample(s, &big_session, NULL, 0), want);
            most = sampler_ranked(s) > most ? sampler_ranked(s) : most;
        }
        assert_in_range(most, 1, 100);
        inst_sampler_close(s);
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
        cmocka_unit_test(draws_equal_the_definition),
        cmocka_unit_test(a_vocabulary_is_not_sorted),
        cmocka_unit_test(bad_settings_are_refused),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
