// SPDX-License-Identifier: Apache-2.0
// A method that the drive does not bring: handed over when it is opened, it is planned for, named
// by CONFIG and ATTEND, and answers by its own rule, beside dense attention and READ of the same
// space; with as little memory as its plan allows, from memory and from a file, whatever the
// threads. Nothing in control/ or ftl/ knows it.
#include "drive_harness.h"
#include "late_engine.h"
#include "method_mean.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const struct method *const own[] = {&method_mean, NULL};

enum { LAYERS = 2, KV_HEADS = 3, Q_HEADS = 6, DIM = 72, PROMPT = 400, STEPS = 20 };

static const struct rig_options base = {
    .config = {.layers = LAYERS,
               .kv_heads = KV_HEADS,
               .head_dim = DIM,
               .group_tokens = 32,
               .max_sequences = 2,
               .max_tokens = 600,
               .method = METHOD_MEAN},
    .q_heads = Q_HEADS,
    .methods = own,
    .ram_rate = 1000000000000u, // no views
};

static void expect_mean(const struct rig *rig, uint32_t layer, const struct rig_query *query,
                        const float *out, const float *lse)
{
    uint64_t end = query->pos + query->append;
    for (uint32_t h = 0; h < Q_HEADS; h++) {
        assert_true(fabs((double)lse[h] - log((double)(end - query->window))) < 1e-5);
        for (uint32_t d = 0; d < DIM; d++) {
            double sum = 0;
            for (uint64_t t = query->window; t < end; t++)
                sum += (double)kernel_f16_to_f32(
                    rig_value(rig, query->content, layer, h * KV_HEADS / Q_HEADS, t, d, true));
            double mean = sum / (double)(end - query->window);
            if (!(fabs(mean - (double)out[h * DIM + d]) < 1e-5))
                fail_msg("layer %u head %u dim %u: %.9g instead of %.9g", layer, h, d,
                         (double)out[h * DIM + d], mean);
        }
    }
}

// Two sequences, decode with and without a window. Returns a copy of the last outputs.
static void run(const struct rig_options *options, float last[2 * Q_HEADS * DIM],
                struct drive_stats *stats)
{
    struct rig rig;
    float out[2 * Q_HEADS * DIM], lse[2 * Q_HEADS];
    rig_open(&rig, options);
    assert_int_equal(rig_write_all(&rig, 0, 0, 0, PROMPT), 0);
    assert_int_equal(rig_write_all(&rig, 1, 1, 0, PROMPT / 3), 0);
    for (uint64_t step = 0; step < STEPS; step++) {
        for (uint32_t l = 0; l < LAYERS; l++) {
            struct rig_query queries[2] = {
                {.seq = 0, .content = 0, .pos = PROMPT + step, .append = true},
                {.seq = 1, .content = 1, .pos = PROMPT / 3 + step, .append = true}};
            queries[1].window = step % 2 ? 40 + step : 0;
            rig.method = METHOD_MEAN;
            assert_int_equal(rig_attend(&rig, l, queries, 2, out, lse), 0);
            expect_mean(&rig, l, &queries[0], out, lse);
            expect_mean(&rig, l, &queries[1], out + Q_HEADS * DIM, lse + Q_HEADS);
            if (step % 5)
                continue;
            rig.method = METHOD_DENSE; // of the same tokens, that are there by now
            queries[0].append = false;
            queries[0].pos++;
            assert_int_equal(rig_attend(&rig, l, queries, 1, out, lse), 0);
            rig_expect_attention(&rig, l, queries, out, lse);
        }
    }
    memcpy(last, out, sizeof out);
    rig_stats(&rig, stats);
    assert_true(stats->attended_tokens_from_flash > stats->attended_tokens / 2);
    for (uint32_t l = 0; l < LAYERS; l++)
        rig_expect_content(&rig, 0, 0, l, 0, PROMPT + STEPS);
    rig_close(&rig);
}

static void test_answers(void **state)
{
    (void)state;
    float expected[2 * Q_HEADS * DIM], got[2 * Q_HEADS * DIM];
    struct drive_stats stats;
    run(&base, expected, &stats);
    for (uint32_t group = 16; group <= 128; group *= 2) {
        for (int place = 0; place < 3; place++) {
            static struct late_engine late;
            struct rig_options o = base;
            o.config.group_tokens = group;
            o.threads = 1 + (uint32_t)place + group / 64;
            o.ram_rate = place == 1 ? 0 : base.ram_rate;
            o.directory = place == 2 ? INST_BINARY_DIR : NULL;
            o.row_cache = group == 64;
            late_engine_init(&late, group, o.threads);
            o.engine = group == 32 ? &late.engine : NULL;
            run(&o, got, &stats);
            if (group <= 64) // pieces of as many tokens: sums in the same order
                assert_memory_equal(got, expected, sizeof got);
        }
    }
}

// V alone is read.
static void test_reads_half(void **state)
{
    (void)state;
    struct rig rig;
    struct rig_options o = base;
    struct drive_stats before, after;
    float out[Q_HEADS * DIM], lse[Q_HEADS];
    uint64_t bytes[2];
    o.page_bytes = 512; // K and V of a head meet in one page of nine at most
    o.no_read_ahead = true;
    rig_open(&rig, &o);
    assert_int_equal(rig_write_all(&rig, 0, 0, 0, PROMPT), 0);
    for (int dense = 0; dense < 2; dense++) {
        struct rig_query query = {.seq = 0, .pos = PROMPT};
        rig.method = dense ? METHOD_DENSE : METHOD_MEAN;
        rig_stats(&rig, &before);
        assert_int_equal(rig_attend(&rig, 1, &query, 1, out, lse), 0);
        rig_stats(&rig, &after);
        bytes[dense] = after.flash_read_bytes - before.flash_read_bytes;
        assert_int_equal(after.attended_tokens - before.attended_tokens, PROMPT);
    }
    print_message("read %llu bytes, dense attention %llu\n", (unsigned long long)bytes[0],
                  (unsigned long long)bytes[1]);
    assert_in_range(bytes[0], bytes[1] * 45 / 100, bytes[1] * 60 / 100);
    rig_close(&rig);
}

// The status of CONFIG with so much DRAM.
static int config_status(const struct rig_options *o, uint64_t dram_bytes, const char **text)
{
    static struct rig rig;
    struct flash_geometry g = rig_geometry(o);
    struct drive_limits limits = {.dram_bytes = dram_bytes, .methods = o->methods};
    uint8_t payload[CONFIG_BYTES] __attribute__((aligned(64)));
    rig = (struct rig){0};
    assert_int_equal(pool_new(&rig.pool, 1, NULL), 0);
    assert_int_equal(flash_ram_open(&rig.flash, &g, o->ram_rate, NULL), 0);
    limits.pool = rig.pool;
    int status = drive_open(&rig.drive, rig.flash, &limits, NULL);
    if (!status) {
        struct command config = {.opcode = OP_CONFIG, .space = 1};
        struct space_config c = o->config;
        c.q_heads = o->q_heads;
        space_config_encode(payload, &c);
        status = rig_call(&rig, &config, payload, NULL, NULL);
        *text = rig.text;
        drive_close(rig.drive);
    }
    flash_close(rig.flash);
    pool_free(rig.pool);
    return status;
}

static uint64_t least_dram(const struct rig_options *o)
{
    const char *text;
    uint64_t low = 0, high = 64 << 20;
    assert_int_equal(config_status(o, high, &text), 0);
    while (low + 1024 < high) {
        uint64_t middle = (low + high) / 2;
        *(config_status(o, middle, &text) ? &low : &high) = middle;
    }
    return high;
}

enum { LARGE = 3 << 20 };

static int large_plan(struct method_plan *plan, const struct flash_geometry *geometry,
                      const struct space_config *config, const struct stream *streams,
                      unsigned level, struct inst_msg *msg)
{
    int status = method_mean.plan(plan, geometry, config, streams, level, msg);
    plan->bytes += LARGE;
    return status;
}

// Its part of the plan is reserved at CONFIG: with the least DRAM that does, and frames as short as
// that makes them, every ATTEND comes through.
static void test_plan(void **state)
{
    (void)state;
    static struct method large;
    static const struct method *const larger[] = {&large, NULL};
    const struct flash_fault_plan delays = {.seed = 3, .delay = 200000};
    struct rig_options o = base, dense = base;
    struct drive_stats stats;
    float last[2 * Q_HEADS * DIM];
    dense.config.method = METHOD_DENSE;
    for (o.config.group_tokens = 16; o.config.group_tokens <= 64; o.config.group_tokens *= 2) {
        dense.config.group_tokens = o.config.group_tokens;
        uint64_t least = least_dram(&o);
        assert_true(least > least_dram(&dense));
        o.dram_bytes = least;
        o.faults = &delays;
        o.row_cache = true;
        run(&o, last, &stats);
        assert_true(stats.dram_used_bytes <= least);
        o.faults = NULL;
        o.directory = INST_BINARY_DIR;
        o.threads = 3;
        run(&o, last, &stats);
        o.directory = NULL;
    }
    // What a method says of itself is believed.
    large = method_mean;
    struct rig_options more = base;
    more.methods = larger;
    uint64_t least = least_dram(&base);
    large.plan = large_plan;
    assert_in_range(least_dram(&more), least + LARGE - 4096, least + LARGE + 4096);
}

static void test_refused(void **state)
{
    (void)state;
    const char *text = "";
    struct rig rig;
    struct rig_options o = base;
    struct rig_query query = {.seq = 0, .pos = 20};
    float out[Q_HEADS * DIM], lse[Q_HEADS];
    o.methods = NULL; // a drive that has not got it
    assert_int_equal(config_status(&o, 64 << 20, &text), INST_ENOTSUP);
    assert_non_null(strstr(text, "unknown method"));
    o.config.method = METHOD_DENSE;
    o.config.kv_type = KV_TYPES; // nor this one
    assert_int_equal(config_status(&o, 64 << 20, &text), INST_ENOTSUP);
    assert_non_null(strstr(text, "unknown type 3 of K and V"));
    o.config.method = METHOD_SPARF;
    o.config.kv_type = KV_Q8;
    assert_int_equal(config_status(&o, 64 << 20, &text), INST_ENOTSUP);
    assert_non_null(strstr(text, "sparf needs K and V as f16, not q8"));
    o = base;
    o.config.method = METHOD_DENSE; // a space that was not made for it
    rig_open(&rig, &o);
    assert_int_equal(rig_write_all(&rig, 0, 0, 0, 20), 0);
    rig.method = METHOD_MEAN;
    assert_int_not_equal(rig_attend(&rig, 0, &query, 1, out, lse), 0);
    assert_non_null(strstr(rig.text, "mean"));
    rig.method = METHOD_MEAN + 1;
    assert_int_equal(rig_attend(&rig, 0, &query, 1, out, lse), INST_ENOTSUP);
    rig.method = METHOD_DENSE;
    assert_int_equal(rig_attend(&rig, 0, &query, 1, out, lse), 0);
    rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answers),
        cmocka_unit_test(test_reads_half),
        cmocka_unit_test(test_plan),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
