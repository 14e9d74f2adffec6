// SPDX-License-Identifier: Apache-2.0
#include "host/engine/plan.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

// The model of the README's demo: 3 layers, 2 KV heads of 64.
static const struct model_config small = {
    .layers = 3,
    .width = 256,
    .heads = 8,
    .kv_heads = 2,
    .head_dim = 64,
    .ffn = 512,
    .vocab = 1296,
    .context = 65536,
    .rope_dims = 64,
};
// MHA, 64 KiB of KV per token.
static const struct model_config wide = {
    .layers = 16,
    .width = 1024,
    .heads = 8,
    .kv_heads = 8,
    .head_dim = 128,
    .ffn = 1024,
    .vocab = 260,
    .context = 8192,
    .rope_dims = 128,
};

static uint64_t total(const struct engine_plan *p, const struct plan_input *in)
{
    uint64_t sum = in->tables + p->fixed + p->text + p->sessions + p->drive + p->compute;
    for (int i = 0; i < BUFFER_COUNT; i++)
        sum += p->buffer[i];
    return sum;
}

static void plans_fit(const struct model_config *config, const struct plan_input *in)
{
    struct engine_plan p;
    struct inst_msg msg = {0};
    if (engine_plan(&p, config, in, &msg))
        fail_msg("%s", msg.text);
    assert_true(total(&p, in) <= in->memory);
    assert_true(p.needed <= in->memory);
    assert_in_range(p.threads, 1, in->max_threads);
    assert_in_range(p.chunk, 1, 512);
    assert_true(p.piece % ATTENTION_TILE == 0 && p.piece > 0);
    assert_true(p.rows >= in->sessions && p.rows >= p.chunk);
    assert_true(p.group >= 16 && p.group <= 1024);
    assert_true(p.capacity >=
                in->context * config->layers * config->kv_heads * config->head_dim * 4);
}

// Lists of tokens are planned for those that live: many sessions with a large context, of which
// each could fill it but not all, take what their work takes.
static void tokens_that_live(void **state)
{
    (void)state;
    struct engine_plan p;
    struct inst_msg msg = {0};
    struct plan_input in = {.memory = 64 << 20,
                            .tables = 200 << 10,
                            .context = 1 << 20,
                            .sessions = 256,
                            .chunk = 64,
                            .max_threads = 2};
    plans_fit(&small, &in); // 256 contexts are a gigabyte of tokens
    assert_int_equal(engine_plan(&p, &small, &in, &msg), 0);
    assert_int_equal(p.tokens, (1 << 20) + 256 * 512);
    in.memory = 1ull << 31;
    assert_int_equal(engine_plan(&p, &small, &in, &msg), 0);
    assert_int_equal(p.tokens, in.memory / 32 / 4);
    in.sessions = 3;
    assert_int_equal(engine_plan(&p, &small, &in, &msg), 0);
    assert_int_equal(p.tokens, 3 << 20); // all of them
}

static void the_promised_budgets_work(void **state)
{
    (void)state;
    plans_fit(&small, &(struct plan_input){.memory = 8 << 20,
                                           .tables = 200 << 10,
                                           .context = 17000,
                                           .sessions = 1,
                                           .max_threads = 4});
    plans_fit(&wide, &(struct plan_input){.memory = 16 << 20,
                                          .tables = 100 << 10,
                                          .context = 5100,
                                          .sessions = 1,
                                          .max_threads = 4});
    plans_fit(&wide, &(struct plan_input){.memory = 1 << 30,
                                          .tables = 100 << 10,
                                          .context = 8192,
                                          .sessions = 8,
                                          .max_threads = 64});
}

// The promises hold for sparf too, which needs more and says so.
static void sparf_is_in_the_plan(void **state)
{
    (void)state;
    for (uint32_t channels = 0; channels <= 16; channels = channels ? 2 * channels : 1) {
        struct plan_input in = {.memory = 16 << 20,
                                .tables = 100 << 10,
                                .context = 5100,
                                .sessions = 1,
                                .max_threads = 4,
                                .method = METHOD_SPARF,
                                .page_channels = channels};
        struct engine_plan dense, sparf;
        struct inst_msg msg = {0};
        plans_fit(&wide, &in);
        plans_fit(&small, &in);
        assert_int_equal(engine_plan(&sparf, &wide, &in, NULL), 0);
        in.method = METHOD_DENSE;
        assert_int_equal(engine_plan(&dense, &wide, &in, NULL), 0);
        assert_true(sparf.capacity > dense.capacity); // K twice
        in.method = METHOD_SPARF;
        in.memory = 1 << 20;
        assert_int_equal(engine_plan(&sparf, &wide, &in, &msg), INST_ENOMEM);
        uint64_t need = sparf.needed;
        in.method = METHOD_DENSE;
        assert_int_equal(engine_plan(&dense, &wide, &in, NULL), INST_ENOMEM);
        assert_true(need > dense.needed);
        in.method = METHOD_SPARF;
        in.memory = need;
        plans_fit(&wide, &in);
    }
}

static void more_memory_never_means_a_smaller_chunk(void **state)
{
    (void)state;
    uint32_t chunk = 0;
    struct plan_input in = {.tables = 100 << 10, .context = 5100, .sessions = 1, .max_threads = 2};
    unsigned fitted = 0;
    for (in.memory = 1 << 20; in.memory <= 1ull << 31; in.memory += in.memory / 4) {
        struct engine_plan p;
        int err = engine_plan(&p, &wide, &in, NULL);
        if (err) {
            assert_int_equal(err, INST_ENOMEM);
            assert_int_equal(fitted, 0); // once it fits, it fits with more
            continue;
        }
        fitted++;
        assert_true(p.needed <= in.memory);
        // Threads are worth more than chunk, so a plan with more of them may start smaller.
        if (p.threads == 2) {
            assert_true(p.chunk >= chunk);
            chunk = p.chunk;
        }
    }
    assert_true(fitted > 20);
    assert_int_equal(chunk, 512);
}

// Once a budget is enough, more of it is enough too; and the number that a refusal names is.
static void enough_stays_enough(void **state)
{
    (void)state;
    static const struct {
        uint32_t kv_heads, head_dim, sessions, threads, chunk, method;
        uint64_t context, kv_limit;
    } cases[] = {
        {2, 64, 1, 4, 1, METHOD_DENSE, 300, 0},   {2, 64, 4, 0, 1, METHOD_DENSE, 5000, 1 << 20},
        {2, 80, 1, 0, 0, METHOD_DENSE, 1000, 0},  {2, 80, 4, 4, 1, METHOD_DENSE, 300, 1 << 20},
        {8, 128, 1, 4, 1, METHOD_DENSE, 1000, 0}, {8, 128, 4, 0, 0, METHOD_DENSE, 1000, 4 << 20},
        {2, 80, 1, 0, 1, METHOD_SPARF, 1000, 0},  {4, 96, 1, 4, 7, METHOD_DENSE, 333, 300 << 10},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct model_config config = small;
        config.kv_heads = cases[i].kv_heads;
        config.heads = 4 * config.kv_heads;
        config.head_dim = config.rope_dims = cases[i].head_dim;
        struct plan_input in = {.tables = 100 << 10,
                                .context = cases[i].context,
                                .kv_limit = cases[i].kv_limit,
                                .sessions = cases[i].sessions,
                                .threads = cases[i].threads,
                                .max_threads = 4,
                                .chunk = cases[i].chunk,
                                .method = cases[i].method};
        struct engine_plan p, q;
        uint64_t first = 0, named = 0;
        for (in.memory = 1 << 20; in.memory < 32 << 20; in.memory += in.memory / 300) {
            struct inst_msg msg = {0};
            int err = engine_plan(&p, &config, &in, &msg);
            if (err && first)
                fail_msg("case %zu: %llu bytes are enough and %llu are not: %s", i,
                         (unsigned long long)first, (unsigned long long)in.memory, msg.text);
            if (err) {
                assert_int_equal(err, INST_ENOMEM);
                struct plan_input enough = in;
                enough.memory = named = p.needed + p.needed / 16;
                assert_int_equal(engine_plan(&q, &config, &enough, NULL), 0);
            } else {
                assert_true(total(&p, &in) <= in.memory);
                first = first ? first : in.memory;
            }
        }
        assert_true(first && named);
    }
}

static void a_refusal_names_what_works(void **state)
{
    (void)state;
    struct engine_plan p;
    struct inst_msg msg = {0};
    struct plan_input in = {
        .memory = 2 << 20, .tables = 100 << 10, .context = 5100, .sessions = 1, .max_threads = 4};
    assert_int_equal(engine_plan(&p, &wide, &in, &msg), INST_ENOMEM);
    assert_non_null(strstr(msg.text, "--memory 2.0M is too small for this model at context 5100"));
    const char *need = strstr(msg.text, "at least ");
    assert_non_null(need);
    double mib = strtod(need + strlen("at least "), NULL);
    in.memory = (uint64_t)(mib * 1024 * 1024);
    msg.text[0] = 0;
    if (engine_plan(&p, &wide, &in, &msg))
        fail_msg("%s", msg.text);
}

static void wishes_are_kept(void **state)
{
    (void)state;
    struct engine_plan p;
    struct plan_input in = {.memory = 256 << 20,
                            .context = 4000,
                            .sessions = 1,
                            .threads = 3,
                            .max_threads = 8,
                            .group = 64,
                            .chunk = 7,
                            .kv_limit = 600 << 20};
    assert_int_equal(engine_plan(&p, &wide, &in, NULL), 0);
    assert_int_equal(p.threads, 3);
    assert_int_equal(p.group, 64);
    assert_int_equal(p.chunk, 7);
    assert_true(p.capacity <= 600 << 20);
    assert_true(p.capacity > 500 << 20);
    in.chunk = 4000; // more than fits beside all else in 16M
    in.memory = 16 << 20;
    assert_int_equal(engine_plan(&p, &wide, &in, NULL), INST_ENOMEM);
}

static void short_memory_costs_threads(void **state)
{
    (void)state;
    struct engine_plan p;
    struct plan_input in = {.memory = 8 << 20, .context = 2048, .sessions = 1, .max_threads = 64};
    assert_int_equal(engine_plan(&p, &small, &in, NULL), 0);
    assert_in_range(p.threads, 1, 16);
    in.threads = 64;
    assert_int_equal(engine_plan(&p, &small, &in, NULL), INST_ENOMEM);
}

static void huge_numbers_do_not_wrap(void **state)
{
    (void)state;
    struct engine_plan p;
    struct model_config huge = wide;
    huge.width = huge.ffn = huge.vocab = UINT32_MAX;
    struct plan_input in = {
        .memory = UINT64_MAX, .context = 1ull << 32, .sessions = 65536, .max_threads = 1024};
    assert_true(engine_plan(&p, &huge, &in, NULL) < 0 || total(&p, &in) <= in.memory);
    in.memory = 1ull << 40;
    assert_true(engine_plan(&p, &huge, &in, NULL) < 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tokens_that_live),
        cmocka_unit_test(the_promised_budgets_work),
        cmocka_unit_test(sparf_is_in_the_plan),
        cmocka_unit_test(more_memory_never_means_a_smaller_chunk),
        cmocka_unit_test(enough_stays_enough),
        cmocka_unit_test(a_refusal_names_what_works),
        cmocka_unit_test(wishes_are_kept),
        cmocka_unit_test(short_memory_costs_threads),
        cmocka_unit_test(huge_numbers_do_not_wrap),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
