// SPDX-License-Identifier: Apache-2.0
// The command set as a host sees it: replays, gaps, forks, ranges, tickets, exhaustion, corruption,
// and what hostile commands get.
#include "drive_harness.h"

#include <stdlib.h>
#include <string.h>

static const struct rig_options small = {
    .config = {.layers = 2, .kv_heads = 2, .head_dim = 16, .group_tokens = 16},
    .q_heads = 4,
};

static void test_replay_and_gap(void **state)
{
    (void)state;
    struct rig rig;
    float out[64], lse[4];
    rig_open(&rig, &small);
    assert_int_equal(rig_write_all(&rig, 1, 0, 0, 40), 0);
    assert_int_equal(rig_write_all(&rig, 1, 0, 0, 40), 0); // all of it again
    assert_int_equal(rig_write_all(&rig, 1, 9, 10, 20),
                     0); // other values below the length: no effect
    assert_int_equal(rig_write_all(&rig, 1, 0, 30, 30), 0); // half replay, half new
    assert_int_equal(rig_write(&rig, 1, 0, 0, 61, 5, 0, 2), INST_ESEQUENCE);
    assert_non_null(strstr(rig.text, "sequence 1 has 60 tokens in layer 0, not 61"));
    rig_expect_content(&rig, 1, 0, 0, 0, 60);
    rig_expect_content(&rig, 1, 0, 1, 7, 53);
    // An appended token is stored once, however often its ATTEND is sent.
    for (int i = 0; i < 3; i++) {
        struct rig_query query = {.seq = 1, .pos = 60, .append = true};
        assert_int_equal(rig_attend(&rig, 0, &query, 1, out, lse), 0);
        rig_expect_attention(&rig, 0, &query, out, lse);
    }
    struct rig_query query = {.seq = 1, .pos = 62, .append = true};
    assert_int_equal(rig_attend(&rig, 0, &query, 1, out, lse), INST_ESEQUENCE);
    query = (struct rig_query){.seq = 1, .pos = 30};
    assert_int_equal(rig_attend(&rig, 0, &query, 1, out, lse), 0); // attends to a prefix
    rig_expect_attention(&rig, 0, &query, out, lse);
    query = (struct rig_query){.seq = 1, .epoch = 2, .pos = 30};
    assert_int_equal(rig_attend(&rig, 0, &query, 1, out, lse), INST_ENOENT);
    query = (struct rig_query){.seq = 77, .pos = 3};
    assert_int_equal(rig_attend(&rig, 0, &query, 1, out, lse), INST_ENOENT);
    rig_close(&rig);
}

static void test_one_item_fails_alone(void **state)
{
    (void)state;
    struct rig rig;
    float out[3 * 64], lse[3 * 4];
    rig_open(&rig, &small);
    assert_int_equal(rig_write_all(&rig, 1, 1, 0, 100), 0);
    assert_int_equal(rig_write_all(&rig, 2, 2, 0, 50), 0);
    struct rig_query queries[] = {
        {.seq = 1, .content = 1, .pos = 100, .append = true},
        {.seq = 2, .content = 2, .pos = 70, .append = true}, // a gap
        {.seq = 2, .content = 2, .pos = 50, .append = true},
    };
    assert_int_equal(rig_attend(&rig, 1, queries, 3, out, lse), INST_ESEQUENCE);
    assert_non_null(strstr(rig.text, "sequence 2 has 50 tokens in layer 1, not 70"));
    assert_int_equal(queries[0].status, 0);
    assert_int_equal(queries[1].status, INST_ESEQUENCE);
    assert_int_equal(queries[2].status, 0);
    rig_expect_attention(&rig, 1, &queries[0], out, lse);
    rig_expect_attention(&rig, 1, &queries[2], out + 2 * 64, lse + 2 * 4);
    for (int i = 64; i < 128; i++)
        assert_true(out[i] == 0);
    rig_close(&rig);
}

static void test_heads_in_parts(void **state)
{
    (void)state;
    struct rig rig;
    uint16_t part[32 * 16 * 2];
    rig_open(&rig, &small);
    assert_int_equal(rig_write(&rig, 1, 0, 0, 0, 16, 0, 1), 0);
    assert_int_equal(rig_read(&rig, 1, 0, 0, 1, 0, 1, part), INST_ESEQUENCE); // head 1 lacks it
    assert_int_equal(rig_write(&rig, 1, 0, 0, 16, 1, 0, 1), INST_ESEQUENCE);  // runs ahead
    assert_int_equal(rig_write(&rig, 1, 0, 0, 0, 10, 1, 1), 0);
    assert_int_equal(rig_write(&rig, 1, 0, 0, 10, 6, 1, 1), 0);
    assert_int_equal(rig_write(&rig, 1, 0, 0, 16, 16, 1, 1), 0);
    assert_int_equal(rig_write(&rig, 1, 0, 0, 16, 16, 0, 1), 0);
    rig_expect_content(&rig, 1, 0, 0, 0, 32);
    assert_int_equal(rig_read(&rig, 1, 0, 5, 20, 1, 1, part), 0);
    assert_int_equal(part[0], rig_value(&rig, 0, 0, 1, 5, 0, false));
    assert_int_equal(part[20 * 16], rig_value(&rig, 0, 0, 1, 5, 0, true));
    assert_int_equal(rig_read(&rig, 1, 0, 5, 20, 1, 2, part), INST_EINVAL);
    rig_close(&rig);
}

static void test_truncate_and_ranges(void **state)
{
    (void)state;
    for (int dies = 1; dies <= 4; dies += 3) {
        struct rig_options o = small;
        struct rig rig;
        struct drive_stats stats;
        uint16_t token[64];
        o.dies = (uint32_t)dies;
        rig_open(&rig, &o);
        assert_int_equal(rig_write_all(&rig, 1, 0, 0, 200), 0);
        // To a length inside a row on flash, then other tokens from there.
        assert_int_equal(rig_reclaim(&rig, 1, 105, UINT64_MAX, 0, 2), 0);
        assert_int_equal(rig_read(&rig, 1, 0, 105, 1, 0, 2, token), INST_ESEQUENCE);
        rig_expect_content(&rig, 1, 0, 1, 0, 105);
        assert_int_equal(rig_write_all(&rig, 1, 3, 105, 100), 0);
        rig_expect_content(&rig, 1, 0, 0, 0, 105);
        rig_expect_content(&rig, 1, 3, 0, 105, 100);
        // Inside the group buffer, and to a group boundary.
        assert_int_equal(rig_reclaim(&rig, 1, 203, UINT64_MAX, 0, 2), 0);
        rig_expect_content(&rig, 1, 3, 1, 105, 98);
        assert_int_equal(rig_reclaim(&rig, 1, 192, 1000, 0, 2), 0); // reaches the end
        assert_int_equal(rig_write_all(&rig, 1, 4, 192, 40), 0);
        rig_expect_content(&rig, 1, 4, 1, 192, 40);
        // A hole: whole rows of tokens 16 to 47 in layer 1.
        assert_int_equal(rig_reclaim(&rig, 1, 10, 40, 1, 1), 0);
        assert_int_equal(rig_read(&rig, 1, 1, 20, 1, 0, 2, token), INST_ENOENT);
        rig_expect_content(&rig, 1, 0, 1, 0, 16);
        rig_expect_content(&rig, 1, 0, 1, 48, 57);
        rig_expect_content(&rig, 1, 0, 0, 0, 105);
        assert_int_equal(rig_reclaim(&rig, 1, 0, UINT64_MAX, 0, 2), 0);
        assert_int_equal(rig_read(&rig, 1, 0, 0, 1, 0, 2, token), INST_ESEQUENCE);
        rig_stats(&rig, &stats);
        assert_int_equal(stats.sequences, 0);
        assert_int_equal(stats.live_bytes, 0);
        assert_int_equal(stats.allocated_bytes, 0);
        assert_int_equal(stats.rows_in_dram, 0);
        assert_true(stats.flash_erased_blocks > 0);
        assert_int_equal(rig_reclaim(&rig, 1, 0, UINT64_MAX, 0, 2), 0); // repeated
        rig_close(&rig);
    }
}

static void test_fork(void **state)
{
    (void)state;
    for (uint64_t at = 1; at <= 100; at += 11) {
        struct rig rig;
        struct drive_stats before, after;
        float out[2 * 64], lse[2 * 4];
        rig_open(&rig, &small);
        assert_int_equal(rig_write_all(&rig, 1, 0, 0, 100), 0);
        rig_stats(&rig, &before);
        assert_int_equal(rig_fork(&rig, 1, 2, at), 0);
        rig_stats(&rig, &after);
        assert_int_equal(after.flash_program_bytes, before.flash_program_bytes); // nothing copied
        assert_int_equal(after.live_bytes, before.live_bytes);
        assert_int_equal(rig_fork(&rig, 1, 2, at), 0); // repeated
        assert_int_equal(rig_fork(&rig, 1, 2, at - 1), INST_EEXIST);
        assert_int_equal(rig_fork(&rig, 1, 3, 101), INST_ESEQUENCE);
        assert_int_equal(rig_fork(&rig, 9, 3, 1), INST_ENOENT);
        rig_expect_content(&rig, 2, 0, 1, 0, at);
        assert_int_equal(rig_write_all(&rig, 2, 7, at, 90), 0);
        assert_int_equal(rig_write_all(&rig, 1, 0, 100, 30), 0);
        rig_expect_content(&rig, 2, 0, 0, 0, at);
        rig_expect_content(&rig, 2, 7, 0, at, 90);
        rig_expect_content(&rig, 1, 0, 0, 0, 130);
        // Parent gone: what the child refers to stays.
        assert_int_equal(rig_reclaim(&rig, 1, 0, UINT64_MAX, 0, 2), 0);
        rig_expect_content(&rig, 2, 0, 1, 0, at);
        rig_expect_content(&rig, 2, 7, 1, at, 90);
        struct rig_query query = {.seq = 2, .pos = at};
        assert_int_equal(rig_attend(&rig, 0, &query, 1, out, lse), 0);
        rig_expect_attention(&rig, 0, &query, out, lse);
        assert_int_equal(rig_reclaim(&rig, 2, 0, UINT64_MAX, 0, 2), 0);
        rig_stats(&rig, &after);
        assert_int_equal(after.allocated_bytes, 0);
        assert_int_equal(after.copied_bytes, 0);
        rig_close(&rig);
    }
}

static void test_full_drive(void **state)
{
    (void)state;
    struct rig_options o = small;
    struct rig rig;
    o.blocks = 6;
    o.pages_per_block = 17; // a row is one page: 16 rows and a summary page
    rig_open(&rig, &o);
    assert_int_equal(rig_write_all(&rig, 1, 1, 0, 16 * 8 * 2), 0); // 2 blocks
    uint64_t pos = 0;
    int status = 0;
    while (!status && pos < 5000) {
        status = rig_write_all(&rig, 2, 2, pos, 16);
        pos += 16;
    }
    assert_int_equal(status, INST_ENOSPC);
    assert_non_null(strstr(rig.text, "the drive is full"));
    rig_expect_content(&rig, 1, 1, 0, 0, 16 * 8 * 2);
    rig_expect_content(&rig, 2, 2, 0, 0, pos - 16);
    // Giving the greedy one up makes room again.
    assert_int_equal(rig_reclaim(&rig, 2, 0, UINT64_MAX, 0, 2), 0);
    assert_int_equal(rig_write_all(&rig, 1, 1, 16 * 8 * 2, 16 * 8 * 2), 0);
    rig_expect_content(&rig, 1, 1, 1, 0, 16 * 8 * 4);
    rig_close(&rig);
}

static void test_group_buffers_exhausted(void **state)
{
    (void)state;
    struct rig_options o = small;
    struct flash_geometry g = rig_geometry(&o);
    struct drive_plan plan;
    struct rig rig;
    o.config.max_sequences = 2;
    o.config.max_tokens = 100;
    o.config.q_heads = o.q_heads;
    assert_int_equal(drive_plan(&plan, &g, &o.config, 0, NULL), 0);
    o.dram_bytes = plan.min_dram_bytes;
    rig_open(&rig, &o);
    int status = 0;
    uint32_t seq = 0;
    while (!status && seq < 100)
        status = rig_write_all(&rig, seq++, 0, 0, 5);
    assert_int_equal(status, INST_ENORESOURCE);
    assert_true(seq > 2); // what was planned for fits
    rig_expect_content(&rig, 0, 0, 1, 0, 5);
    assert_int_equal(rig_reclaim(&rig, 1, 0, UINT64_MAX, 0, 2), 0);
    assert_int_equal(rig_write_all(&rig, 50, 0, 0, 5), 0);
    rig_close(&rig);
}

static void test_corruption_is_found(void **state)
{
    (void)state;
    const struct flash_fault_plan flips = {.seed = 3, .bit_flip = 1000000, .after = 0};
    struct rig_options o = small;
    struct rig rig;
    struct drive_stats stats;
    float out[64], lse[4];
    uint16_t rows[2 * 2 * 64 * 16];
    o.faults = &flips;
    rig_open(&rig, &o);
    assert_int_equal(rig_write_all(&rig, 1, 0, 0, 64), 0);
    assert_int_equal(rig_read(&rig, 1, 0, 0, 64, 0, 2, rows), INST_ECORRUPT);
    struct rig_query query = {.seq = 1, .pos = 64, .append = true};
    assert_int_equal(rig_attend(&rig, 1, &query, 1, out, lse), INST_ECORRUPT);
    rig_stats(&rig, &stats);
    assert_true(stats.checksum_errors >= 2);
    rig_close(&rig);
}

// A program that fails: the row is still in DRAM, and is placed again.
static void test_failed_program(void **state)
{
    (void)state;
    const struct flash_fault_plan errors = {.seed = 3, .program_error = 1000000, .count = 3};
    struct rig_options o = small;
    struct rig rig;
    struct drive_stats stats;
    float out[64], lse[4];
    o.faults = &errors;
    rig_open(&rig, &o);
    assert_int_equal(rig_write_all(&rig, 1, 0, 0, 20), 0);
    struct rig_query query = {.seq = 1, .pos = 20, .append = true};
    assert_int_equal(rig_attend(&rig, 0, &query, 1, out, lse), 0);
    rig_expect_content(&rig, 1, 0, 0, 0, 20);
    rig_expect_content(&rig, 1, 0, 1, 0, 20);
    rig_stats(&rig, &stats);
    assert_true(stats.replaced_rows >= 1);
    rig_close(&rig);
}

// When it fails again and again the row is lost, and its sequence says so; others are unharmed.
static void test_lost_program(void **state)
{
    (void)state;
    const struct flash_fault_plan errors = {.seed = 3, .program_error = 1000000, .count = 5};
    struct rig_options o = small;
    struct rig rig;
    float out[64], lse[4];
    o.faults = &errors;
    rig_open(&rig, &o);
    assert_int_equal(rig_write(&rig, 1, 0, 0, 0, 20, 0, 2), 0); // to DRAM, its row is lost later
    struct command flush = {.opcode = OP_FLUSH, .space = 1};
    assert_int_equal(rig_call(&rig, &flush, NULL, NULL, NULL), 0);
    assert_int_equal(rig_write_all(&rig, 2, 2, 0, 40), 0);
    struct rig_query query = {.seq = 1, .pos = 20, .append = true};
    assert_int_equal(rig_attend(&rig, 0, &query, 1, out, lse), INST_EIO);
    rig_expect_content(&rig, 2, 2, 0, 0, 40);
    assert_int_equal(rig_reclaim(&rig, 1, 0, UINT64_MAX, 0, 2), 0);
    assert_int_equal(rig_write_all(&rig, 1, 5, 0, 40), 0);
    rig_expect_content(&rig, 1, 5, 0, 0, 40);
    rig_close(&rig);
}

static void test_tickets(void **state)
{
    (void)state;
    struct rig rig;
    uint8_t table[128] __attribute__((aligned(64)));
    uint8_t buffer[8192] __attribute__((aligned(64)));
    rig_open(&rig, &small);
    assert_int_equal(rig_write_all(&rig, 1, 0, 0, 40), 0);
    struct command collect = {
        .opcode = OP_COLLECT, .cid = 7, .ticket = 900, .timeout_ms = 5, .length = sizeof buffer};
    assert_int_equal(rig_call(&rig, &collect, NULL, buffer, NULL), INST_ETIMEOUT);
    // COLLECT first, then the READ that it waits for.
    uint8_t entry[COMMAND_BYTES];
    struct completion done[4];
    collect.timeout_ms = 0;
    command_encode(entry, &collect);
    assert_int_equal(drive_submit(rig.drive, 0, entry, NULL, 0, buffer, rig.now_ns), 0);
    table_put_header(table, &(struct table_header){.head_count = 2});
    table_put_item(table, 0, &(struct table_item){.seq = 1, .epoch = 1, .n_tokens = 40});
    struct command read = {.opcode = OP_READ, .cid = 8, .space = 1, .count = 1, .ticket = 900};
    command_encode(entry, &read);
    assert_int_equal(drive_submit(rig.drive, 0, entry, table, sizeof table, NULL, rig.now_ns), 0);
    size_t n = 0;
    for (int i = 0; i < 1000 && n < 2; i++)
        n += drive_step(rig.drive, rig.now_ns++, done + n, 4 - n);
    assert_int_equal(n, 2);
    assert_int_equal(done[0].status, 0);
    assert_int_equal(done[1].status, 0);
    assert_int_equal(((uint16_t *)buffer)[16], rig_value(&rig, 0, 0, 0, 1, 0, false));
    // A ticket is bound until it is collected; there are 64 of them.
    for (uint32_t t = 0; t < 64; t++) {
        read.ticket = t;
        assert_int_equal(rig_call(&rig, &read, table, NULL, NULL), 0);
    }
    read.ticket = 5;
    assert_int_equal(rig_call(&rig, &read, table, NULL, NULL), INST_EEXIST);
    read.ticket = 64;
    assert_int_equal(rig_call(&rig, &read, table, NULL, NULL), INST_ENORESOURCE);
    // READs that nobody collects do not keep a sequence alive.
    assert_int_equal(rig_reclaim(&rig, 1, 0, UINT64_MAX, 0, 2), 0);
    collect.ticket = 5;
    assert_int_equal(rig_call(&rig, &collect, NULL, buffer, NULL), INST_ECANCELLED);
    collect.length = 100;
    collect.ticket = 6;
    assert_int_equal(rig_call(&rig, &collect, NULL, buffer, NULL), INST_EINVAL);
    rig_close(&rig);
}

// Every completion carries the text of its own command, however many complete in one step.
static void test_texts(void **state)
{
    (void)state;
    struct rig rig;
    uint8_t table[128] __attribute__((aligned(64))), entry[COMMAND_BYTES];
    rig_open(&rig, &small);
    table_put_header(table, &(struct table_header){.head_count = 2});
    table_put_item(table, 0, &(struct table_item){.seq = 1, .epoch = 1, .n_tokens = 4});
    const struct command commands[] = {
        {.opcode = OP_READ, .cid = 1, .space = 77, .count = 1, .ticket = 1},
        {.opcode = OP_READ, .cid = 2, .space = 1, .layer = 9, .count = 1, .ticket = 2},
        {.opcode = OP_FLUSH, .cid = 3},
        {.opcode = OP_SEAL, .cid = 4},
        {.opcode = OP_COLLECT, .cid = 5, .ticket = 9, .timeout_ms = 1},
    };
    static const char *const texts[] = {"READ: space 77 does not exist", "READ: layer 9 of 2", "",
                                        "SEAL: not supported",
                                        "COLLECT: ticket 9 did not come in 1 ms"};
    enum { COMMANDS = sizeof commands / sizeof *commands };
    for (int i = 0; i < COMMANDS; i++) {
        command_encode(entry, &commands[i]);
        assert_int_equal(drive_submit(rig.drive, 7 + (uint32_t)i, entry, table,
                                      command_table_bytes(&commands[i]), NULL, rig.now_ns),
                         0);
    }
    struct completion done[COMMANDS];
    size_t n = 0;
    for (int i = 0; i < 1000 && n < COMMANDS; i++)
        n += drive_step(rig.drive, rig.now_ns += 1000000, done + n, COMMANDS - n);
    assert_int_equal(n, COMMANDS);
    for (size_t i = 0; i < COMMANDS; i++) {
        assert_in_range(done[i].cid, 1, COMMANDS);
        assert_string_equal(done[i].text, texts[done[i].cid - 1]);
        assert_int_equal(done[i].owner, 6 + done[i].cid);
    }
    rig_close(&rig);
}

static void test_other_commands(void **state)
{
    (void)state;
    struct rig rig;
    struct drive_identity identity;
    uint8_t table[512] __attribute__((aligned(64)));
    rig_open(&rig, &small);
    assert_int_equal(
        rig_call(&rig, &(struct command){.opcode = OP_SEAL, .space = 1}, NULL, NULL, NULL),
        INST_ENOTSUP);
    assert_int_equal(
        rig_call(&rig, &(struct command){.opcode = OP_OPEN, .space = 1}, NULL, NULL, NULL),
        INST_ENOTSUP);
    assert_int_equal(rig_call(&rig, &(struct command){.opcode = 0x7f}, NULL, NULL, NULL),
                     INST_ENOTSUP);
    assert_int_equal(rig_write_all(&rig, 1, 0, 0, 40), 0);
    assert_int_equal(rig_call(&rig, &(struct command){.opcode = OP_FLUSH}, NULL, NULL, NULL), 0);
    struct command command = {.opcode = OP_IDENTIFY, .length = sizeof table};
    assert_int_equal(rig_call(&rig, &command, NULL, table, NULL), 0);
    assert_int_equal(identity_decode(&identity, table, sizeof table), 0);
    assert_int_equal(identity.page_bytes, 4096);
    assert_int_equal(identity.dram_bytes, 256 << 20);
    command = (struct command){.opcode = OP_IDENTIFY, .length = 10};
    assert_int_equal(rig_call(&rig, &command, NULL, table, NULL), INST_EINVAL);
    space_config_encode(table, &small.config);
    command = (struct command){.opcode = OP_CONFIG, .space = 1};
    uint64_t group;
    assert_int_equal(rig_call(&rig, &command, table, NULL, NULL), INST_EEXIST);
    space_config_encode(table, &rig.config); // repeated
    assert_int_equal(rig_call(&rig, &command, table, NULL, &group), 0);
    assert_int_equal(group, 16);
    // A second space in the same drive.
    struct space_config other = {.layers = 1, .kv_heads = 1, .head_dim = 8, .max_tokens = 100};
    space_config_encode(table, &other);
    command.space = 2;
    assert_int_equal(rig_call(&rig, &command, table, NULL, &group), 0);
    assert_int_equal(group, 256);
    rig_expect_content(&rig, 1, 0, 0, 0, 40);
    rig_close(&rig);
}

static void test_null_drive(void **state)
{
    (void)state;
    struct flash_geometry g = {.page_bytes = 4096,
                               .pages_per_block = 64,
                               .blocks = 64,
                               .dies = 1,
                               .channels = 1,
                               .read_bytes = 4096,
                               .no_data = true};
    struct rig rig = {.q_heads = 4, .config = small.config, .next_ticket = 1};
    float out[64], lse[4];
    assert_int_equal(pool_new(&rig.pool, 1, NULL), 0);
    assert_int_equal(flash_null_open(&rig.flash, &g, NULL), 0);
    struct drive_limits limits = {.dram_bytes = 64 << 20, .pool = rig.pool};
    assert_int_equal(drive_open(&rig.drive, rig.flash, &limits, NULL), 0);
    uint8_t payload[CONFIG_BYTES] __attribute__((aligned(64)));
    space_config_encode(payload, &rig.config);
    assert_int_equal(
        rig_call(&rig, &(struct command){.opcode = OP_CONFIG, .space = 1}, payload, NULL, NULL), 0);
    assert_int_equal(rig_write_all(&rig, 1, 0, 0, 100), 0);
    struct rig_query query = {.seq = 1, .pos = 100, .append = true};
    assert_int_equal(rig_attend(&rig, 0, &query, 1, out, lse), 0);
    rig_close(&rig);
}

// What an enemy may send: every field wrong in turn. Nothing changes, nothing crashes.
static void test_hostile(void **state)
{
    (void)state;
    struct rig rig;
    uint8_t *data = aligned_alloc(64, 1 << 16), *table = calloc(1, table_bytes(4096));
    rig_open(&rig, &small);
    assert_int_equal(rig_write_all(&rig, 1, 0, 0, 40), 0);
    static const uint8_t opcodes[] = {OP_CONFIG, OP_WRITE,   OP_READ,    OP_ATTEND,
                                      OP_FORK,   OP_RECLAIM, OP_COLLECT, OP_STAT};
    static const uint32_t values[] = {0, 1, 2, 63, 64, 65, 4096, 0x7fffffff, 0xffffffff};
    srand(1);
    for (int round = 0; round < 20000; round++) {
        struct command command = {
            .opcode = opcodes[rand() % 8],
            .space = rand() % 8 ? 1 : values[rand() % 9],
            .layer = rand() % 2 ? 0 : values[rand() % 9],
            .count = rand() % 2 ? 1 : values[rand() % 9],
            .ticket = 1000 + (uint32_t)rand() % 80,
            .length = rand() % 2 ? 1 << 16 : values[rand() % 6],
            .timeout_ms = 1,
        };
        memset(data, 0, 1 << 12);
        table_put_header(table,
                         &(struct table_header){.head_first = values[rand() % 9],
                                                .head_count = rand() % 2 ? 2 : values[rand() % 9],
                                                .method = rand() % 4 == 0,
                                                .q_heads = rand() % 2 ? 4 : values[rand() % 9],
                                                .scale = 1});
        for (uint32_t i = 0; i < 8; i++)
            table_put_item(
                table, i,
                &(struct table_item){
                    .seq = 100 + (uint32_t)rand() % 3,
                    .epoch = 1,
                    .pos = rand() % 2 ? 0 : (uint64_t)values[rand() % 9] << rand() % 33,
                    .n_tokens = rand() % 2 ? 1 : (uint64_t)values[rand() % 9] << rand() % 33,
                    .parent = (uint32_t)rand() % 3,
                    .parent_epoch = 1,
                    .layer_count = values[rand() % 9]});
        size_t bytes = rand() % 4 ? table_bytes(4096) : (size_t)rand() % 300;
        rig_call_bytes(&rig, &command, table, bytes, data, NULL);
    }
    rig_expect_content(&rig, 1, 0, 0, 0, 40);
    rig_expect_content(&rig, 1, 0, 1, 0, 40);
    rig_close(&rig);
    free(table);
    free(data);
}

// Random creation, growth, forks, truncation and reclaim against a plain model of the contents.
static void churn(const struct rig_options *options, int rounds)
{
    enum { SEQS = 6, TOKENS = 400 };
    static uint32_t content[SEQS][TOKENS];
    uint64_t length[SEQS] = {0};
    uint32_t next = 1;
    struct rig rig;
    rig_open(&rig, options);
    srand(7);
    for (int round = 0; round < rounds; round++) {
        uint32_t s = (uint32_t)rand() % SEQS, other = (uint32_t)rand() % SEQS;
        int action = rand() % 8;
        if (action < 4) {
            uint64_t n = 1 + (uint64_t)rand() % 60;
            n = n < TOKENS - length[s] ? n : TOKENS - length[s];
            if (!n)
                continue;
            assert_int_equal(rig_write_all(&rig, s, next, length[s], n), 0);
            for (uint64_t t = 0; t < n; t++)
                content[s][length[s]++] = next;
            next++;
        } else if (action == 4 && length[s]) {
            length[s] = (uint64_t)rand() % (length[s] + 1);
            assert_int_equal(rig_reclaim(&rig, s, length[s], UINT64_MAX, 0, 2), 0);
        } else if (action == 5 && !length[s] && length[other]) {
            uint64_t at = 1 + (uint64_t)rand() % length[other];
            assert_int_equal(rig_fork(&rig, other, s, at), 0);
            memcpy(content[s], content[other], sizeof content[s]);
            length[s] = at;
        } else if (length[s]) {
            uint64_t first = (uint64_t)rand() % length[s], end = first;
            while (end < length[s] && content[s][end] == content[s][first])
                end++;
            rig_expect_content(&rig, s, content[s][first], (uint32_t)round % 2, first, end - first);
        }
        if (round % 50 == 0)
            rig_stats(&rig, &(struct drive_stats){0}); // walks the invariants
        if (action == 4 && !length[s])                 // pos 0 ended the sequence
            assert_int_equal(rig_reclaim(&rig, s, 0, UINT64_MAX, 0, 2), 0);
    }
    struct drive_stats stats;
    for (uint32_t s = 0; s < SEQS; s++) {
        if (length[s])
            assert_int_equal(rig_reclaim(&rig, s, 0, UINT64_MAX, 0, 2), 0);
    }
    rig_stats(&rig, &stats);
    assert_int_equal(stats.live_bytes, 0);
    assert_int_equal(stats.allocated_bytes, 0);
    assert_int_equal(stats.rows_in_dram, 0);
    assert_int_equal(stats.sequences, 0);
    rig_close(&rig);
}

static void test_churn(void **state)
{
    (void)state;
    struct rig_options o = small;
    churn(&o, 1500);
    o.dies = 3;
    o.page_bytes = 512;
    o.pages_per_block = 30;
    o.blocks = 300;
    churn(&o, 1500);
    o.ram_rate = 1000000000000u;
    o.threads = 3;
    churn(&o, 700);
    o = small;
    o.directory = INST_BINARY_DIR;
    churn(&o, 500);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_replay_and_gap),
        cmocka_unit_test(test_one_item_fails_alone),
        cmocka_unit_test(test_heads_in_parts),
        cmocka_unit_test(test_truncate_and_ranges),
        cmocka_unit_test(test_fork),
        cmocka_unit_test(test_full_drive),
        cmocka_unit_test(test_group_buffers_exhausted),
        cmocka_unit_test(test_corruption_is_found),
        cmocka_unit_test(test_failed_program),
        cmocka_unit_test(test_lost_program),
        cmocka_unit_test(test_tickets),
        cmocka_unit_test(test_texts),
        cmocka_unit_test(test_other_commands),
        cmocka_unit_test(test_null_drive),
        cmocka_unit_test(test_hostile),
        cmocka_unit_test(test_churn),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
