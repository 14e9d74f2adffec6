// SPDX-License-Identifier: Apache-2.0
// The engine of a profile beside a drive: how long its units take, worked out by hand, and that the
// methods tell it what they compute.
#include "drive/engine_model.h"
#include "sparf_scene.h"

#include <string.h>

enum { HEADS = 2, Q_HEADS = 4, DIM = 64, TOKENS = 600, CHOSEN = 40, CHANNELS = 5 };

// 60 billion operations, 40 million elements, 100 million to choose from, each second.
static const struct engine_params units = {.kernels = 2,
                                           .gemv_units = 3,
                                           .gemv = 10e9,
                                           .softmax_units = 2,
                                           .softmax = 10e6,
                                           .argtopk = 100e6,
                                           .filter = 1000000000,
                                           .staging = 1 << 20,
                                           .overlap = 1};

static uint64_t ns(uint64_t products, uint64_t elements, uint64_t ranked)
{
    struct engine_work work = {products, elements, ranked};
    struct engine_times times;
    return engine_model_ns(&units, &work, &times);
}

static void test_by_hand(void **state)
{
    (void)state;
    assert_int_equal(ns(0, 0, 0), 0);
    assert_int_equal(ns(3000000, 0, 0), 100000);       // two operations each
    assert_int_equal(ns(3000000, 2000, 0), 100000);    // softmax, 50,000, goes on beside
    assert_int_equal(ns(3000000, 8000, 0), 200000);    // and may be the slower one
    assert_int_equal(ns(3000000, 2000, 1000), 110000); // what is chosen comes after
    assert_int_equal(ns(1, 0, 0), 1);                  // a part of a nanosecond is one
    assert_true(ns(UINT64_MAX, UINT64_MAX, UINT64_MAX) > UINT64_MAX / 64); // and does not wrap
}

static void nothing(void *arg, size_t item, unsigned worker)
{
    (void)item, (void)worker;
    ++*(int *)arg;
}

// Tasks follow each other, from when they are handed in; they are computed at once.
static void test_tasks(void **state)
{
    (void)state;
    struct pool *pool;
    struct engine *engine;
    int calls = 0;
    assert_int_equal(pool_new(&pool, 1, NULL), 0);
    assert_int_equal(engine_model_open(&engine, &units, pool, NULL, NULL), 0);
    struct engine_task a = {.fn = nothing, .arg = &calls, .items = 3, .work = {.products = 3000}};
    struct engine_task b = a, c = a;
    assert_true(engine->ops->next_ns(engine) == UINT64_MAX);
    engine->ops->submit(engine, &a, 1000); // 100 ns
    engine->ops->submit(engine, &b, 1050);
    assert_int_equal(calls, 6);
    assert_int_equal(engine->ops->next_ns(engine), 1100);
    assert_null(engine->ops->poll(engine, 1099));
    assert_ptr_equal(engine->ops->poll(engine, 1100), &a);
    assert_null(engine->ops->poll(engine, 1199));
    assert_ptr_equal(engine->ops->poll(engine, 1500), &b);
    assert_int_equal(b.done_ns, 1200);
    engine->ops->submit(engine, &c, 1500);
    assert_ptr_equal(engine->ops->poll(engine, 1600), &c);
    assert_true(engine->ops->next_ns(engine) == UINT64_MAX);
    struct engine_model_counters n;
    engine_model_counters(engine, &n);
    assert_int_equal(n.busy_ns, 300);
    assert_int_equal(n.units.gemv_ns, 300);
    engine_close(engine);
    pool_free(pool);
}

static void test_profiles(void **state)
{
    (void)state;
    static struct profile p;
    struct engine_params e;
    struct inst_msg msg = {0};
    assert_int_equal(profile_open(&p, "instcsd-zynq7045", &msg), 0);
    assert_int_equal(engine_params_read(&e, &p, &msg), 0);
    assert_true(e.kernels == 2 && e.gemv_units == 3 && e.softmax_units == 3 && e.overlap == 0);
    assert_true(e.gemv == 12.7e9 && e.softmax == 14.2e6 && e.argtopk == 285e6);
    static const char bad[] = "instinfer profile 1\n[engine]\nkernels = 0\n";
    assert_int_equal(profile_parse(&p, "x", bad, strlen(bad), &msg), 0);
    assert_int_equal(engine_params_read(&e, &p, &msg), INST_EINVAL);
    assert_non_null(strstr(msg.text, "kernels"));
}

// Each kind of unit was busy for what the work takes, and a nanosecond more for each task at most.
static void expect(const char *what, uint64_t was, uint64_t exact)
{
    enum { TASKS_MOST = 300 };
    if (was < exact || was > exact + TASKS_MOST)
        fail_msg("%s: %llu ns, not %llu", what, (unsigned long long)was, (unsigned long long)exact);
}

static void attend(const struct scene *s, uint32_t method, const struct scene_knobs *knobs,
                   struct engine_model_counters *n)
{
    struct pool *pool;
    struct engine *engine;
    struct rig rig;
    struct scene_result r;
    assert_int_equal(pool_new(&pool, 1, NULL), 0);
    assert_int_equal(engine_model_open(&engine, &units, pool, NULL, NULL), 0);
    struct rig_options o = {.config = {.layers = 1,
                                       .kv_heads = HEADS,
                                       .head_dim = DIM,
                                       .group_tokens = 32,
                                       .method = method,
                                       .page_channels = method == METHOD_SPARF ? 8 : 0,
                                       .max_tokens = TOKENS},
                            .q_heads = Q_HEADS,
                            .engine = engine};
    rig_open(&rig, &o);
    scene_result_new(&r, s);
    assert_int_equal(scene_try_write(&rig, s, 1, 0, 0, TOKENS), 0);
    struct engine_model_counters before;
    engine_model_counters(engine, &before);
    assert_int_equal(before.busy_ns, 0); // writing takes no arithmetic
    assert_int_equal(scene_attend(&rig, s, 0, 1, TOKENS - 1, false, knobs, &r), 0);
    engine_model_counters(engine, n);
    scene_result_free(&r);
    rig_close(&rig);
    engine_close(engine);
    pool_free(pool);
}

static void test_methods(void **state)
{
    (void)state;
    struct scene s = {.kind = SCENE_CLUSTERED,
                      .layers = 1,
                      .kv_heads = HEADS,
                      .q_heads = Q_HEADS,
                      .head_dim = DIM,
                      .tokens = TOKENS};
    struct engine_model_counters n;
    scene_new(&s, 3);
    // 600 tokens, 4 queries, 64 channels of K and of V: 307,200 products, 2,400 scores.
    attend(&s, METHOD_DENSE, &(struct scene_knobs){.dense = true}, &n);
    expect("dense, GeMV", n.units.gemv_ns, 10240);
    expect("dense, softmax", n.units.softmax_ns, 60000);
    expect("dense, argtopk", n.units.argtopk_ns, 0);
    expect("dense", n.busy_ns, 60000);
    // First 5 channels of all tokens, 12,000 products and 2,400 scores; 4 x 64 channels and 2 x 600
    // tokens are chosen from. Then 40 tokens of each KV head for 2 queries: 20,480, and 160.
    attend(&s, METHOD_SPARF,
           &(struct scene_knobs){.channels = CHANNELS, .tokens = CHOSEN, .local = 4}, &n);
    expect("sparf, GeMV", n.units.gemv_ns, 2 * (12000 + 20480) / 60);
    expect("sparf, softmax", n.units.softmax_ns, 60000 + 4000);
    expect("sparf, argtopk", n.units.argtopk_ns, 14560);
    // Pieces of 16 tokens are chosen from, 37 whole ones of each KV head; a quarter is computed on.
    attend(&s, METHOD_PAGES, &(struct scene_knobs){.pages = true, .ratio = 0.25f}, &n);
    expect("pages, argtopk", n.units.argtopk_ns, 740);
    assert_true(n.units.gemv_ns > 10240 / 8 && n.units.gemv_ns < 10240 / 2);
    scene_free(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_by_hand), cmocka_unit_test(test_tasks),
                                       cmocka_unit_test(test_profiles),
                                       cmocka_unit_test(test_methods)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
