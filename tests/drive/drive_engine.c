// SPDX-License-Identifier: Apache-2.0
// A drive whose arithmetic ends later and in another order than it was asked for: the same bits,
// nothing lost, nothing left behind. And one whose arithmetic does nothing: the same reads.
#include "late_engine.h"
#include "sparf_scene.h"

#include <stdlib.h>
#include <string.h>

enum { SEEDS = 6, THREADS = 3 };
#define KIND(kind) (1u << (kind))

// ---- dense -------------------------------------------------------------------------------------

static const struct rig_options dense = {
    .config = {.layers = 2, .kv_heads = 2, .head_dim = 80, .group_tokens = 32},
    .q_heads = 6,
    .threads = THREADS,
    .ram_rate = 1000000000000u, // no views: pages are read, and their checksums compared
};

enum { BATCH = 3, STEPS = 12, START = 150 };

// Outputs and LSE of every step; *stats: of the whole.
static float *dense_run(const struct rig_options *options, struct drive_stats *stats, size_t *n)
{
    struct rig rig;
    rig_open(&rig, options);
    size_t floats = (size_t)rig.q_heads * rig.config.head_dim;
    float *all = calloc(STEPS * 2 * BATCH * (floats + rig.q_heads), sizeof *all);
    *n = 0;
    for (uint32_t s = 0; s < BATCH; s++)
        assert_int_equal(rig_write_all(&rig, s, s, 0, START + 37 * s), 0);
    for (uint64_t step = 0; step < STEPS; step++) {
        for (uint32_t l = 0; l < 2; l++) {
            struct rig_query queries[BATCH];
            for (uint32_t s = 0; s < BATCH; s++)
                queries[s] = (struct rig_query){
                    .seq = s, .content = s, .pos = START + 37 * s + step, .append = true};
            assert_int_equal(
                rig_attend(&rig, l, queries, BATCH, all + *n, all + *n + BATCH * floats), 0);
            *n += BATCH * (floats + rig.q_heads);
        }
    }
    rig_stats(&rig, stats);
    for (uint32_t s = 0; s < BATCH; s++)
        rig_expect_content(&rig, s, s, 1, 0, START + 37 * s + STEPS);
    rig_close(&rig);
    return all;
}

static void test_dense(void **state)
{
    (void)state;
    struct drive_stats stats;
    struct rig_options o = dense;
    size_t n, m;
    float *expected = dense_run(&o, &stats, &n);
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        static struct late_engine late;
        const struct flash_fault_plan delays = {.seed = seed, .delay = 100000};
        late_engine_init(&late, seed, THREADS);
        o.engine = &late.engine;
        o.faults = seed % 2 ? &delays : NULL;
        float *got = dense_run(&o, &stats, &m);
        assert_int_equal(n, m);
        assert_memory_equal(got, expected, n * sizeof *got);
        assert_true(late.submitted[ENGINE_CHECK] && late.submitted[ENGINE_ATTEND] &&
                    late.submitted[ENGINE_FOLD]);
        assert_true(stats.attended_tokens_from_flash > 0 && !late.overflow);
        free(got);
    }
    free(expected);
}

// What moves does not depend on the numbers: a model of time can do without them.
static void test_null(void **state)
{
    (void)state;
    static struct late_engine null;
    struct drive_stats real, model;
    struct rig rig;
    struct rig_options o = dense;
    float out[6 * 80], lse[6];
    o.row_cache = true;
    for (int engine = 0; engine < 2; engine++) {
        late_engine_init(&null, 1, THREADS);
        null.null = true;
        o.engine = engine ? &null.engine : NULL;
        rig_open(&rig, &o);
        assert_int_equal(rig_write_all(&rig, 1, 0, 0, 500), 0);
        for (uint64_t pos = 500; pos < 540; pos++)
            for (uint32_t l = 0; l < 2; l++) {
                struct rig_query query = {.seq = 1, .pos = pos, .append = true};
                assert_int_equal(rig_attend(&rig, l, &query, 1, out, lse), 0);
            }
        rig_stats(&rig, engine ? &model : &real);
        rig_close(&rig);
    }
    for (size_t i = 0; i < sizeof out / sizeof out[0]; i++)
        assert_true(out[i] == 0); // nobody has computed anything
    assert_true(null.items > 0);
    assert_int_equal(real.attended_tokens, model.attended_tokens);
    assert_int_equal(real.attended_tokens_from_flash, model.attended_tokens_from_flash);
    assert_int_equal(real.flash_read_bytes, model.flash_read_bytes);
    assert_int_equal(real.flash_program_bytes, model.flash_program_bytes);
}

// ---- sparf -------------------------------------------------------------------------------------

static struct scene clustered = {.kind = SCENE_CLUSTERED,
                                 .layers = 2,
                                 .kv_heads = 3,
                                 .q_heads = 6,
                                 .head_dim = 72,
                                 .tokens = 900};

static const struct rig_options sparf = {
    .config = {.layers = 2,
               .kv_heads = 3,
               .head_dim = 72,
               .method = METHOD_SPARF,
               .group_tokens = 16,
               .page_channels = 8,
               .max_tokens = 900},
    .q_heads = 6,
    .page_bytes = 4096,
    .pages_per_block = 64,
    .dies = 4,
    .blocks = 800,
    .threads = THREADS,
};

// Channel rows are built in the background, from a prompt in pieces and from decode; a fork and the
// end of its parent come in between.
static float *sparf_run(const struct rig_options *options, struct drive_stats *stats, size_t *n)
{
    struct rig rig;
    struct scene_result r;
    rig_open(&rig, options);
    scene_result_new(&r, &clustered);
    size_t floats = (size_t)clustered.q_heads * clustered.head_dim;
    float *all = calloc(2 * 60 * floats, sizeof *all);
    *n = 0;
    scene_write(&rig, &clustered, 3, 0, 760, 100);
    for (uint64_t pos = 760; pos < 820; pos++) {
        if (pos == 770)
            assert_int_equal(rig_fork(&rig, 3, 4, 765), 0);
        if (pos == 780)
            assert_int_equal(rig_reclaim(&rig, 4, 0, UINT64_MAX / 2, 0, 2), 0);
        for (uint32_t l = 0; l < 2; l++) {
            const struct scene_knobs knobs = {.divisor = 8, .audit = pos % 7 == 0};
            assert_int_equal(scene_attend(&rig, &clustered, l, 3, pos, true, &knobs, &r), 0);
            memcpy(all + *n, r.out, floats * sizeof *all);
            *n += floats;
        }
    }
    rig_stats(&rig, stats);
    scene_result_free(&r);
    rig_close(&rig);
    return all;
}

static void test_sparf(void **state)
{
    (void)state;
    struct drive_stats stats;
    struct rig_options o = sparf;
    size_t n, m;
    uint64_t overtaken = 0;
    float *expected = sparf_run(&o, &stats, &n);
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        static struct late_engine late;
        late_engine_init(&late, seed, THREADS);
        o.engine = &late.engine;
        o.ram_rate = seed % 2 ? 1000000000000u : 0;
        float *got = sparf_run(&o, &stats, &m);
        assert_int_equal(n, m);
        assert_memory_equal(got, expected, n * sizeof *got);
        assert_true(late.submitted[ENGINE_BUILD] && late.submitted[ENGINE_SELECT]);
        assert_true(stats.channel_pages && stats.build_read_bytes && !late.overflow);
        overtaken += late.overtaken;
        free(got);
    }
    assert_true(overtaken > 0);
    free(expected);
}

// Steps until the engine has such a task. False: it never does.
static bool until_it_has(struct rig *rig, const struct late_engine *late, uint32_t kinds)
{
    uint8_t table[STAT_TABLE_BYTES] __attribute__((aligned(64)));
    struct command stat = {.opcode = OP_STAT, .length = sizeof table};
    for (int i = 0; i < 1000 && !late_engine_has(late, kinds); i++)
        assert_int_equal(rig_call(rig, &stat, NULL, table, NULL), 0);
    return late_engine_has(late, kinds);
}

enum loss { LOSE_ALL, LOSE_TAIL, LOSE_ROWS, LOSE_DRIVE, LOSSES };

// Tokens go while the engine puts their channel rows together, or compares the checksums of what
// was read for it.
static void test_lost_while_built(void **state)
{
    (void)state;
    for (enum loss loss = 0; loss < LOSSES; loss++) {
        for (int check = 0; check < 2; check++) {
            static struct late_engine late;
            struct rig rig;
            struct rig_options o = sparf;
            struct drive_stats stats;
            struct scene_result r;
            const struct scene_knobs knobs = {.divisor = 4};
            late_engine_init(&late, 1 + loss, THREADS);
            late.hold = KIND(check ? ENGINE_CHECK : ENGINE_BUILD);
            o.engine = &late.engine;
            o.ram_rate = 1000000000000u;
            rig_open(&rig, &o);
            scene_write(&rig, &clustered, 3, 0, 300, 100);
            assert_true(until_it_has(&rig, &late, late.hold));
            if (loss == LOSE_ALL)
                assert_int_equal(rig_reclaim(&rig, 3, 0, UINT64_MAX / 2, 0, 2), 0);
            else if (loss == LOSE_TAIL)
                assert_int_equal(rig_reclaim(&rig, 3, 100, UINT64_MAX / 2, 0, 2), 0);
            else if (loss == LOSE_ROWS)
                assert_int_equal(rig_reclaim(&rig, 3, 32, 64, 0, 1), 0);
            if (loss != LOSE_DRIVE) {
                assert_true(late_engine_has(&late, late.hold));
                late.hold = 0;
                if (loss == LOSE_ALL)
                    scene_write(&rig, &clustered, 3, 0, 300, 50);
                if (loss == LOSE_TAIL)
                    scene_write(&rig, &clustered, 3, 100, 200, 50);
                scene_result_new(&r, &clustered);
                struct scene_calls calls = {0};
                for (uint32_t l = loss == LOSE_ROWS; l < 2; l++) {
                    int status = scene_attend(&rig, &clustered, l, 3, 300, true, &knobs, &r);
                    assert_int_equal(status, 0);
                    scene_expect(&clustered, l, 300, &knobs, &r, &calls);
                }
                scene_result_free(&r);
                rig_stats(&rig, &stats); // and drive_check: no frame has been forgotten
                assert_true(stats.channel_program_bytes > 0);
            }
            rig_close(&rig);
            assert_false(late_engine_has(&late, UINT32_MAX));
        }
    }
}

// ATTEND of the tokens before `pos` in layer 0, without its COLLECT.
static void begin_attend(struct rig *rig, uint32_t seq, uint64_t pos, struct attend_layout *layout)
{
    uint8_t table[128];
    assert_true(attend_layout(layout, 1, 6, 3, 72, false));
    uint8_t *in = aligned_alloc(64, (layout->in_bytes + 63) / 64 * 64);
    memset(in, 0, layout->in_bytes);
    table_put_header(table,
                     &(struct table_header){.method = METHOD_SPARF, .q_heads = 6, .scale = 0.1f});
    table_put_item(table, 0, &(struct table_item){.seq = seq, .epoch = 1, .pos = pos});
    struct command attend = {.opcode = OP_ATTEND,
                             .space = 1,
                             .count = 1,
                             .ticket = 1,
                             .length = (uint32_t)layout->in_bytes};
    assert_int_equal(rig_call(rig, &attend, table, in, NULL), 0);
    free(in);
}

// A fork waits for pages whose checksums are compared for a build, which then is given up.
static void test_shared_while_checked(void **state)
{
    (void)state;
    static struct late_engine late;
    struct rig rig;
    struct rig_options o = sparf;
    struct attend_layout layout;
    late_engine_init(&late, 5, THREADS);
    o.engine = &late.engine;
    o.ram_rate = 1000000000000u;
    rig_open(&rig, &o);
    late.hold = KIND(ENGINE_CHECK);
    scene_write(&rig, &clustered, 3, 0, 250, 0);
    scene_write(&rig, &clustered, 3, 250, 50, 0);
    assert_int_equal(rig_fork(&rig, 3, 4, 290), 0);
    assert_true(until_it_has(&rig, &late, late.hold));
    begin_attend(&rig, 4, 290, &layout);
    assert_int_equal(rig_reclaim(&rig, 3, 0, UINT64_MAX / 2, 0, 2), 0);
    assert_true(late_engine_has(&late, late.hold));
    late.hold = 0;
    uint8_t *out = aligned_alloc(64, (layout.out_bytes + 63) / 64 * 64);
    struct command collect = {
        .opcode = OP_COLLECT, .space = 1, .ticket = 1, .length = (uint32_t)layout.out_bytes};
    assert_int_equal(rig_call(&rig, &collect, NULL, out, NULL), 0);
    assert_int_equal(*(uint32_t *)(out + layout.status), 0);
    free(out);
    rig_close(&rig);
}

// The drive is closed while attention is under way.
static void test_closed_while_attending(void **state)
{
    (void)state;
    static const enum engine_kind kinds[] = {ENGINE_CHECK, ENGINE_ATTEND, ENGINE_FOLD,
                                             ENGINE_SELECT};
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        static struct late_engine late;
        struct rig rig;
        struct rig_options o = sparf;
        struct attend_layout layout;
        late_engine_init(&late, i, THREADS);
        o.engine = &late.engine;
        o.ram_rate = 1000000000000u;
        rig_open(&rig, &o);
        scene_write(&rig, &clustered, 3, 0, 400, 0);
        late.hold = KIND(kinds[i]);
        begin_attend(&rig, 3, 400, &layout);
        assert_true(until_it_has(&rig, &late, late.hold));
        drive_close(rig.drive);
        assert_false(late_engine_has(&late, UINT32_MAX));
        flash_close(rig.flash);
        pool_free(rig.pool);
    }
}

static int scene_setup(void **state)
{
    (void)state;
    scene_new(&clustered, 77);
    return 0;
}

static int scene_teardown(void **state)
{
    (void)state;
    scene_free(&clustered);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dense),
        cmocka_unit_test(test_null),
        cmocka_unit_test(test_sparf),
        cmocka_unit_test(test_lost_while_built),
        cmocka_unit_test(test_shared_while_checked),
        cmocka_unit_test(test_closed_while_attending),
    };
    return cmocka_run_group_tests(tests, scene_setup, scene_teardown);
}
