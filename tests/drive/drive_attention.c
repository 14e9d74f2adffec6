// SPDX-License-Identifier: Apache-2.0
// Attention of the whole drive against plain double arithmetic, and equal bits whatever the token
// group, page size, back end, thread count, budget and batch.
#include "drive_harness.h"
#include "tests/more.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void decode_against_double(const struct rig_options *options, uint64_t prompt,
                                  uint64_t steps)
{
    struct rig rig;
    rig_open(&rig, options);
    size_t floats = (size_t)rig.q_heads * rig.config.head_dim;
    float *out = malloc(floats * sizeof *out), *lse = malloc(rig.q_heads * sizeof *lse);
    if (prompt)
        assert_int_equal(rig_write_all(&rig, 5, 0, 0, prompt), 0);
    for (uint64_t step = 0; step < steps; step++) {
        for (uint32_t l = 0; l < rig.config.layers; l++) {
            struct rig_query query = {.seq = 5, .pos = prompt + step, .append = true};
            assert_int_equal(rig_attend(&rig, l, &query, 1, out, lse), 0);
            if (step % 7 == 0 || step + 1 == steps)
                rig_expect_attention(&rig, l, &query, out, lse);
        }
    }
    for (uint32_t l = 0; l < rig.config.layers; l++)
        rig_expect_content(&rig, 5, 0, l, 0, prompt + steps);
    free(out);
    free(lse);
    rig_close(&rig);
}

static void test_shapes(void **state)
{
    (void)state;
    static const struct {
        uint32_t kv_heads, q_heads, head_dim, group, dies, page;
    } shapes[] = {
        {1, 1, 8, 16, 1, 4096},   {2, 8, 64, 16, 1, 4096},   {2, 4, 80, 32, 1, 4096},
        {4, 4, 128, 64, 1, 4096}, {1, 8, 96, 128, 1, 16384}, {3, 3, 24, 16, 8, 512},
        {8, 8, 128, 16, 4, 4096}, {2, 2, 72, 32, 3, 1024},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        for (size_t rate = 0; rate < 2; rate++) {
            if ((i + rate) % 2 && !more())
                continue;
            struct rig_options options = {
                .config = {.layers = 2,
                           .kv_heads = shapes[i].kv_heads,
                           .head_dim = shapes[i].head_dim,
                           .group_tokens = shapes[i].group},
                .q_heads = shapes[i].q_heads,
                .threads = 1 + (uint32_t)i % 3,
                .dies = shapes[i].dies,
                .page_bytes = shapes[i].page,
                .blocks = 512 * shapes[i].dies,
                .pages_per_block = 301,
                .ram_rate = rate ? 1000000000000u : 0,
            };
            decode_against_double(&options, 0, 70);
            decode_against_double(&options, 333, 30);
            options.no_read_ahead = true;
            decode_against_double(&options, 129, 3);
        }
    }
}

static void test_file(void **state)
{
    (void)state;
    struct rig_options options = {
        .config = {.layers = 3, .kv_heads = 2, .head_dim = 64, .group_tokens = 32},
        .q_heads = 8,
        .threads = 2,
        .directory = INST_BINARY_DIR,
    };
    decode_against_double(&options, 500, 40);
}

// Windows that start anywhere in a tile and a soft cap, whatever the token group; what lies before
// a window is neither counted nor, from the second step on, read.
static void test_window(void **state)
{
    (void)state;
    static const uint32_t groups[] = {16, 64, 128};
    static const uint64_t windows[] = {1, 63, 64, 65, 200, 331, 340};
    for (size_t g = 0; g < 3; g++) {
        struct rig rig;
        struct rig_options options = {
            .config = {.layers = 2, .kv_heads = 2, .head_dim = 40, .group_tokens = groups[g]},
            .q_heads = 6,
            .threads = 2,
            .ram_rate = 1000000000000u,
        };
        rig_open(&rig, &options);
        rig.softcap = 0.7f;
        float out[6 * 40], lse[6];
        assert_int_equal(rig_write_all(&rig, 5, 0, 0, 340), 0);
        for (size_t w = 0; w < sizeof windows / sizeof windows[0]; w++) {
            for (uint32_t l = 0; l < 2; l++) {
                struct drive_stats before, after;
                struct rig_query query = {.seq = 5, .pos = 340 + w, .append = true};
                query.window = l ? windows[w] : 0;
                rig_stats(&rig, &before);
                assert_int_equal(rig_attend(&rig, l, &query, 1, out, lse), 0);
                rig_expect_attention(&rig, l, &query, out, lse);
                rig_stats(&rig, &after);
                assert_int_equal(after.attended_tokens - before.attended_tokens,
                                 query.pos + 1 - query.window);
            }
        }
        struct rig_query bad = {.seq = 5, .pos = 347, .window = 347};
        assert_int_equal(rig_attend(&rig, 0, &bad, 1, out, lse), INST_EINVAL);
        bad.append = true;
        assert_int_equal(rig_attend(&rig, 0, &bad, 1, out, lse), 0); // its own token alone
        rig_expect_attention(&rig, 0, &bad, out, lse);
        bad.pos = 348;
        rig.softcap = -1;
        assert_int_equal(rig_attend(&rig, 0, &bad, 1, out, lse), INST_EINVAL);
        rig.softcap = NAN;
        assert_int_equal(rig_attend(&rig, 0, &bad, 1, out, lse), INST_EINVAL);
        rig_close(&rig);
    }
}

// Runs one scenario and hashes every output bit.
static uint64_t scenario_bits(const struct rig_options *options, uint32_t batch, bool chunked)
{
    struct rig rig;
    rig_open(&rig, options);
    size_t floats = (size_t)rig.q_heads * rig.config.head_dim;
    float *out = malloc(batch * floats * sizeof *out);
    float *lse = malloc(batch * rig.q_heads * sizeof *lse);
    uint64_t hash = 1469598103934665603u;
    for (uint32_t s = 0; s < batch; s++) {
        uint64_t length = 200 + 77 * s, step = chunked ? 53 : length;
        for (uint64_t pos = 0; pos < length; pos += step)
            assert_int_equal(
                rig_write_all(&rig, s, s, pos, pos + step < length ? step : length - pos), 0);
    }
    for (uint64_t step = 0; step < 40; step++) {
        for (uint32_t l = 0; l < rig.config.layers; l++) {
            struct rig_query queries[8];
            for (uint32_t s = 0; s < batch; s++)
                queries[s] = (struct rig_query){
                    .seq = s, .content = s, .pos = 200 + 77 * s + step, .append = true};
            assert_int_equal(rig_attend(&rig, l, queries, batch, out, lse), 0);
            // Only sequence 0 counts: the others are company.
            const uint8_t *bytes = (const uint8_t *)out;
            for (size_t i = 0; i < floats * sizeof *out; i++)
                hash = (hash ^ bytes[i]) * 1099511628211u;
            bytes = (const uint8_t *)lse;
            for (size_t i = 0; i < rig.q_heads * sizeof *lse; i++)
                hash = (hash ^ bytes[i]) * 1099511628211u;
        }
    }
    free(out);
    free(lse);
    rig_close(&rig);
    return hash;
}

static void test_equal_bits(void **state)
{
    (void)state;
    struct rig_options base = {
        .config = {.layers = 2, .kv_heads = 2, .head_dim = 80, .group_tokens = 16},
        .q_heads = 6,
    };
    uint64_t expected = scenario_bits(&base, 1, false);
    for (uint32_t group = 16; group <= 256; group *= 4) {
        struct rig_options o = base;
        o.config.group_tokens = group;
        o.pages_per_block = 300;
        o.threads = group == 64 ? 4 : 1;
        assert_true(scenario_bits(&o, 1, true) == expected);
        o.ram_rate = 1000000000000u;
        assert_true(scenario_bits(&o, 4, true) == expected);
        o.ram_rate = 0;
        o.dies = 5;
        o.blocks = 500;
        o.threads = 3;
        assert_true(scenario_bits(&o, 2, false) == expected);
    }
    struct rig_options o = base;
    o.directory = INST_BINARY_DIR;
    assert_true(scenario_bits(&o, 3, true) == expected);
    for (const char *const *name = kernels_available(); *name; name++) {
        o = base;
        o.kernels = *name;
        o.threads = 2;
        assert_true(scenario_bits(&o, 2, true) == expected);
    }
}

// K and V in blocks: against double arithmetic over what is stored, and with the bits of a space
// that holds the same numbers as fp16, whatever cuts rows and tiles.
static void test_blocks(void **state)
{
    (void)state;
    static const uint32_t dims[] = {64, 80, 20, 8};
    for (uint32_t type = KV_Q8; type < KV_TYPES; type++) {
        for (size_t i = 0; i < sizeof dims / sizeof dims[0]; i++) {
            struct rig_options o = {
                .config = {.layers = 2,
                           .kv_heads = 2,
                           .head_dim = dims[i],
                           .group_tokens = 16u << i % 3,
                           .kv_type = type},
                .q_heads = i % 2 ? 6 : 2,
                .threads = 1 + (uint32_t)i % 3,
                .dies = 1 + (uint32_t)i,
                .page_bytes = i % 2 ? 512 : 4096,
                .blocks = 512 * (1 + i),
                .pages_per_block = 301,
            };
            decode_against_double(&o, 150 + 33 * i, 30);
        }
        struct rig_options base = {
            .config = {.layers = 2, .kv_heads = 2, .head_dim = 80, .group_tokens = 16},
            .q_heads = 6,
            .round = type,
        };
        uint64_t expected = scenario_bits(&base, 1, false);
        base.round = KV_F16;
        base.config.kv_type = type;
        assert_true(scenario_bits(&base, 1, false) == expected);
        base.round = type; // twice is once
        for (uint32_t group = 16; group <= 256; group *= 4) {
            struct rig_options o = base;
            o.config.group_tokens = group;
            o.pages_per_block = 300;
            o.threads = group == 64 ? 4 : 1;
            o.ram_rate = group == 16 ? 1000000000000u : 0;
            o.kernels = group == 256 ? "reference" : NULL;
            assert_true(scenario_bits(&o, group == 64 ? 3 : 1, true) == expected);
        }
    }
}

// The least DRAM that the plan allows must do.
static void test_least_dram(void **state)
{
    (void)state;
    struct rig_options o = {
        .config = {.layers = 4,
                   .kv_heads = 2,
                   .head_dim = 64,
                   .max_sequences = 1,
                   .max_tokens = 2000,
                   .q_heads = 8},
        .q_heads = 8,
        .ram_rate = 1000000000000u,
    };
    for (o.config.group_tokens = 16; o.config.group_tokens <= 256; o.config.group_tokens *= 4) {
        struct flash_geometry g = rig_geometry(&o);
        struct drive_plan plan;
        assert_int_equal(drive_plan(&plan, &g, &o.config, 0, NULL), 0);
        o.dram_bytes = plan.min_dram_bytes;
        decode_against_double(&o, more() ? 1900 : 600, more() ? 100 : 30);
        o.threads = 4;
        o.directory = INST_BINARY_DIR;
        decode_against_double(&o, more() ? 700 : 400, more() ? 66 : 30);
        o.directory = NULL;
    }
}

// Reads that finish in any order, with as little DRAM as is allowed: nothing is lost or stuck.
static void test_reads_out_of_order(void **state)
{
    (void)state;
    const struct flash_fault_plan delays = {.seed = 11, .delay = 300000};
    struct rig_options o = {
        .config = {.layers = 3,
                   .kv_heads = 2,
                   .head_dim = 16,
                   .max_sequences = 1,
                   .max_tokens = 1200,
                   .q_heads = 4},
        .q_heads = 4,
        .faults = &delays,
    };
    uint32_t times = more() ? 2 : 4;
    for (o.config.group_tokens = 16; o.config.group_tokens <= 128; o.config.group_tokens *= times) {
        struct flash_geometry g = rig_geometry(&o);
        struct drive_plan plan;
        assert_int_equal(drive_plan(&plan, &g, &o.config, 0, NULL), 0);
        o.dram_bytes = plan.min_dram_bytes;
        decode_against_double(&o, 5, more() ? 400 : 200);
        o.threads = 3;
        decode_against_double(&o, 1000, 40);
    }
}

static void test_share_from_flash(void **state)
{
    (void)state;
    struct rig_options o = {
        .config = {.layers = 3, .kv_heads = 2, .head_dim = 8, .group_tokens = 16},
        .q_heads = 2,
    };
    // Exactly sum of floor((p + 1) / T) * T over sum of p + 1.
    const double shares[] = {0.9211, 0.8374, 0.6699};
    for (int i = 0; i < 3; i++, o.config.group_tokens *= 2) {
        struct rig rig;
        struct drive_stats stats;
        float out[16], lse[2];
        rig_open(&rig, &o);
        assert_int_equal(rig_write_all(&rig, 1, 0, 0, 5), 0);
        for (uint64_t pos = 5; pos < 184; pos++) {
            for (uint32_t l = 0; l < 3; l++) {
                struct rig_query query = {.seq = 1, .pos = pos, .append = true};
                assert_int_equal(rig_attend(&rig, l, &query, 1, out, lse), 0);
            }
        }
        rig_stats(&rig, &stats);
        double share = (double)stats.attended_tokens_from_flash / (double)stats.attended_tokens;
        print_message("group %u: %.4f of the attended tokens came from flash\n",
                      o.config.group_tokens, share);
        assert_true(fabs(share - shares[i]) < 1e-4);
        assert_int_equal(stats.attended_tokens, 3 * (184 * 185 / 2 - 15));
        rig_close(&rig);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shapes),           cmocka_unit_test(test_file),
        cmocka_unit_test(test_window),           cmocka_unit_test(test_equal_bits),
        cmocka_unit_test(test_least_dram),       cmocka_unit_test(test_reads_out_of_order),
        cmocka_unit_test(test_share_from_flash), cmocka_unit_test(test_blocks),
    };
    if (THREAD_SANITIZER)
        cmocka_set_test_filter("test_equal_bits");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
