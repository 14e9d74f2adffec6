// SPDX-License-Identifier: Apache-2.0
// Many long sequences: a drive takes them without DRAM for the longest that all of them could
// become, and pushes back where what they really are does not fit.
#include "drive_harness.h"

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

enum { SEQUENCES = 64, LAYERS = 16, HEADS = 8, DIM = 64, TOKENS = 131072 };

// Of a model of a billion parameters.
static const struct space_config shape = {
    .layers = LAYERS,
    .kv_heads = HEADS,
    .head_dim = DIM,
    .group_tokens = 64,
    .max_sequences = SEQUENCES,
    .max_tokens = TOKENS,
    .q_heads = 32,
};

static void test_worst_case_is_not_reserved(void **state)
{
    (void)state;
    struct rig_options o = {.config = shape,
                            .q_heads = 32,
                            .threads = 1,
                            .page_bytes = 4096,
                            .pages_per_block = 1024,
                            .dies = 1,
                            .blocks = 128,
                            .ram_rate = 1ull << 40};
    struct flash_geometry g = {.page_bytes = 4096,
                               .pages_per_block = 1024,
                               .dies = 1,
                               .channels = 1,
                               .blocks = 128,
                               .read_bytes = 262144};
    struct drive_plan plan;
    struct rig rig;
    assert_int_equal(drive_plan(&plan, &g, &o.config, 0, NULL), 0);
    // Group buffers of all sequences take 128 MiB of it; all of their maps would take 500 more.
    uint64_t buffers = (uint64_t)SEQUENCES * LAYERS * plan.row_bytes;
    print_message(
        "%u sequences of %u tokens: %.1f MiB, %.1f of them group buffers; %.1f with room for "
        "all at full length\n",
        SEQUENCES, TOKENS, (double)plan.min_dram_bytes / (1 << 20), (double)buffers / (1 << 20),
        (double)plan.good_dram_bytes / (1 << 20));
    assert_true(plan.min_dram_bytes < buffers + (24 << 20));
    o.dram_bytes = plan.min_dram_bytes;
    rig_open(&rig, &o);
    for (uint32_t seq = 0; seq < SEQUENCES; seq++)
        assert_int_equal(rig_write_all(&rig, seq, seq, 0, 3), 0);
    // One more has no place, and leaves no trace.
    struct drive_stats before, after;
    rig_stats(&rig, &before);
    int status = 0;
    for (uint32_t layer = 0; layer < LAYERS && !status; layer++)
        status = rig_write(&rig, SEQUENCES + layer, 0, layer, 0, 3, 0, HEADS);
    rig_stats(&rig, &after);
    if (status && status != INST_ENORESOURCE)
        fail_msg("%d: %s", status, rig.text);
    assert_true(after.dram_used_bytes <= plan.min_dram_bytes);
    for (uint32_t seq = 0; seq < SEQUENCES; seq += 21)
        rig_expect_content(&rig, seq, seq, LAYERS - 1, 0, 3);
    // Each goes on, whatever the others do.
    for (uint64_t pos = 3; pos < 300; pos += 99)
        assert_int_equal(rig_write(&rig, 7, 7, 5, pos, 99, 0, HEADS), 0);
    rig_expect_content(&rig, 7, 7, 5, 0, 300);
    rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_worst_case_is_not_reserved),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
