// SPDX-License-Identifier: Apache-2.0
// Tickets that nobody collects, that are aborted, and whose owner goes: their places and their
// memory come back, and nobody else notices.
#include "drive_harness.h"

#include <stdlib.h>
#include <string.h>

enum { MINUTE_NS = 60000000000u, TICKETS = 64, TOKENS = 40 };

static const struct rig_options small = {
    .config = {.layers = 2, .kv_heads = 2, .head_dim = 16, .group_tokens = 16},
    .q_heads = 4,
};

static uint8_t data[1 << 16] __attribute__((aligned(64)));

static void submit(struct rig *rig, uint32_t owner, const struct command *command,
                   const void *table, void *to)
{
    uint8_t entry[COMMAND_BYTES];
    command_encode(entry, command);
    assert_int_equal(drive_submit(rig->drive, owner, entry, table, command_table_bytes(command), to,
                                  rig->now_ns),
                     0);
}

// Steps until nothing moves; stores what completes.
static size_t settle(struct rig *rig, struct completion *done, size_t max)
{
    size_t n = 0;
    for (int idle = 0; idle < 1000; idle++) {
        size_t got = drive_step(rig->drive, rig->now_ns += 1000, done + n, max - n);
        n += got;
        idle = got || drive_runnable(rig->drive) ? 0 : idle;
    }
    return n;
}

static uint64_t dram_used(struct rig *rig)
{
    struct drive_stats stats;
    rig_stats(rig, &stats);
    return stats.dram_used_bytes;
}

static int call(struct rig *rig, struct command command)
{
    return rig_call(rig, &command, NULL, data, NULL);
}

static int collect(struct rig *rig, uint32_t ticket)
{
    return call(
        rig, (struct command){
                 .opcode = OP_COLLECT, .ticket = ticket, .length = sizeof data, .timeout_ms = 1});
}

static struct command read_command(uint8_t table[128], uint32_t ticket)
{
    table_put_header(table, &(struct table_header){.head_count = 2});
    table_put_item(table, 0, &(struct table_item){.seq = 1, .epoch = 1, .n_tokens = TOKENS});
    return (struct command){.opcode = OP_READ, .space = 1, .count = 1, .ticket = ticket};
}

// An ATTEND of so many items over sequence 1; `heads` query heads.
static int attend(struct rig *rig, uint32_t owner, uint32_t ticket, uint32_t items, uint32_t heads)
{
    struct attend_layout layout;
    assert_true(attend_layout(&layout, items, heads, 2, 16, false));
    uint8_t *in = aligned_alloc(64, (layout.in_bytes + 63) / 64 * 64);
    uint8_t *table = aligned_alloc(64, table_bytes(items));
    memset(in, 0, layout.in_bytes);
    table_put_header(table, &(struct table_header){.q_heads = heads, .scale = 1});
    for (uint32_t i = 0; i < items; i++)
        table_put_item(table, i, &(struct table_item){.seq = 1, .epoch = 1, .pos = TOKENS});
    submit(rig, owner,
           &(struct command){.opcode = OP_ATTEND,
                             .cid = 77,
                             .space = 1,
                             .count = items,
                             .ticket = ticket,
                             .length = (uint32_t)layout.in_bytes},
           table, in);
    struct completion done;
    assert_int_equal(settle(rig, &done, 1), 1);
    assert_int_equal(done.cid, 77);
    memcpy(rig->text, done.text, sizeof rig->text);
    free(in);
    free(table);
    return done.status;
}

// COLLECTs whose tickets never come end by themselves, also those that name no time.
static void test_collects_end(void **state)
{
    (void)state;
    struct rig rig;
    struct completion done[TICKETS];
    rig_open(&rig, &small);
    for (uint32_t t = 0; t < TICKETS; t++)
        submit(&rig, 0, &(struct command){.opcode = OP_COLLECT, .cid = (uint16_t)t, .ticket = t},
               NULL, NULL);
    assert_int_equal(settle(&rig, done, TICKETS), 0);
    assert_int_equal(collect(&rig, 900), INST_ENORESOURCE);
    rig.now_ns += MINUTE_NS;
    assert_int_equal(settle(&rig, done, TICKETS), TICKETS);
    for (uint32_t t = 0; t < TICKETS; t++)
        assert_int_equal(done[t].status, INST_ETIMEOUT);
    assert_int_equal(collect(&rig, 900), INST_ETIMEOUT);
    rig_close(&rig);
}

// Tickets that nobody collects are given up when another one needs their place, but not early.
static void test_tickets_expire(void **state)
{
    (void)state;
    struct rig rig;
    uint8_t table[128];
    rig_open(&rig, &small);
    assert_int_equal(rig_write_all(&rig, 1, 0, 0, TOKENS), 0);
    struct command read = read_command(table, 0);
    for (uint32_t t = 0; t < TICKETS; t++) {
        read.ticket = t;
        if (t % 2)
            assert_int_equal(attend(&rig, 0, t, 1, 4), 0);
        else
            assert_int_equal(rig_call(&rig, &read, table, NULL, NULL), 0);
        rig.now_ns += 1000000;
    }
    assert_int_equal(attend(&rig, 0, 100, 1, 4), INST_ENORESOURCE);
    rig.now_ns += MINUTE_NS - 60 * 1000000; // the first few are too old now
    assert_int_equal(attend(&rig, 0, 100, 1, 4), 0);
    assert_int_equal(attend(&rig, 0, 101, 1, 4), 0);
    assert_int_equal(collect(&rig, 0), INST_ETIMEOUT);
    assert_int_equal(collect(&rig, 1), INST_ETIMEOUT);
    assert_int_equal(collect(&rig, 62), 0);
    assert_int_equal(collect(&rig, 63), 0);
    assert_int_equal(collect(&rig, 100), 0);
    assert_int_equal(rig_reclaim(&rig, 1, 0, UINT64_MAX, 0, 2), 0);
    rig_close(&rig);
}

static void test_abort_tickets(void **state)
{
    (void)state;
    struct rig rig;
    uint8_t table[128];
    struct completion done[4];
    uint64_t there;
    struct command abort = {.opcode = OP_ABORT, .ticket = 5};
    rig_open(&rig, &small);
    assert_int_equal(rig_write_all(&rig, 1, 0, 0, TOKENS), 0);
    // Never there, and there no more.
    assert_int_equal(rig_call(&rig, &abort, NULL, NULL, &there), 0);
    assert_int_equal(there, 0);
    assert_int_equal(attend(&rig, 0, 5, 1, 4), 0);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(rig_call(&rig, &abort, NULL, NULL, &there), 0);
        assert_int_equal(there, i == 0);
    }
    assert_int_equal(collect(&rig, 5), INST_ETIMEOUT);
    // A READ that nobody has collected yet does not hold its sequence.
    struct command read = read_command(table, 5);
    assert_int_equal(rig_call(&rig, &read, table, NULL, NULL), 0);
    assert_int_equal(rig_call(&rig, &abort, NULL, NULL, &there), 0);
    assert_int_equal(there, 1);
    assert_int_equal(attend(&rig, 0, 5, 1, 4), 0);
    assert_int_equal(collect(&rig, 5), 0);
    // Its COLLECT came first, and another owner's ticket has the same number.
    assert_int_equal(attend(&rig, 1, 5, 1, 4), 0);
    submit(&rig, 0,
           &(struct command){.opcode = OP_COLLECT, .cid = 1, .ticket = 5, .length = sizeof data},
           NULL, data);
    read.cid = 2;
    submit(&rig, 0, &read, table, NULL);
    submit(&rig, 0, &abort, NULL, NULL); // before any step: the READ is not admitted yet
    size_t n = settle(&rig, done, 4);
    assert_int_equal(n, 2);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(done[i].status, done[i].cid == 2 ? INST_ECANCELLED : 0);
    rig.now_ns += MINUTE_NS;
    assert_int_equal(settle(&rig, done, 4), 1); // the COLLECT
    assert_int_equal(done[0].status, INST_ETIMEOUT);
    submit(&rig, 1, &(struct command){.opcode = OP_COLLECT, .ticket = 5, .length = sizeof data},
           NULL, data);
    assert_int_equal(settle(&rig, done, 4), 1);
    assert_int_equal(done[0].status, 0);
    rig_close(&rig);
}

// A READ that is under way ends before its COLLECT is told, and writes nothing afterwards.
static void test_abort_under_way(void **state)
{
    (void)state;
    for (int step = 0; step < 40; step++) {
        struct rig_options o = small;
        struct rig rig;
        uint8_t table[128];
        struct completion done[4];
        o.ram_rate = 1000000000;
        o.no_read_ahead = true;
        rig_open(&rig, &o);
        assert_int_equal(rig_write_all(&rig, 1, 0, 0, 400), 0);
        struct drive_stats stats;
        rig_stats(&rig, &stats);
        struct command read = read_command(table, 5);
        table_put_item(table, 0, &(struct table_item){.seq = 1, .epoch = 1, .n_tokens = 400});
        assert_int_equal(rig_call(&rig, &read, table, NULL, NULL), 0);
        submit(
            &rig, 0,
            &(struct command){.opcode = OP_COLLECT, .cid = 9, .ticket = 5, .length = sizeof data},
            NULL, data);
        size_t n = 0;
        for (int i = 0; i < step && !n; i++)
            n = drive_step(rig.drive, rig.now_ns += 500, done, 4);
        if (!n) {
            struct command abort = {.opcode = OP_ABORT, .cid = 8, .ticket = 5};
            submit(&rig, 0, &abort, NULL, NULL);
            for (int i = 0; i < 10000 && n < 2; i++) {
                size_t got = drive_step(rig.drive, rig.now_ns += 500, done + n, 1);
                if (got && done[n].cid == 9) {
                    assert_int_equal(done[n].status, INST_ECANCELLED);
                    memset(data, 0x55, sizeof data);
                }
                n += got;
            }
            assert_int_equal(n, 2);
            settle(&rig, done, 4);
            for (size_t i = 0; i < sizeof data; i++)
                assert_int_equal(data[i], 0x55);
        }
        rig_expect_content(&rig, 1, 0, 0, 0, 400);
        assert_int_equal(rig_reclaim(&rig, 1, 0, UINT64_MAX, 0, 2), 0);
        rig_close(&rig);
    }
}

// A connection that goes takes all that is its own with it and nothing else.
static void test_owner_goes(void **state)
{
    (void)state;
    for (int step = 0; step < 30; step++) {
        struct rig_options o = small;
        struct rig rig;
        uint8_t table[128];
        struct completion done[16];
        o.ram_rate = 1000000000;
        rig_open(&rig, &o);
        assert_int_equal(rig_write_all(&rig, 1, 0, 0, 400), 0);
        uint64_t used = dram_used(&rig);
        uint8_t *mine = aligned_alloc(64, sizeof data), *in = aligned_alloc(64, 1 << 14);
        struct command read = read_command(table, 1);
        memset(in, 0, 1 << 14);
        for (uint32_t owner = 7; owner <= 8; owner++) {
            uint8_t *to = owner == 7 ? mine : data;
            read.cid = 1;
            submit(&rig, owner, &read, table, NULL);
            submit(&rig, owner,
                   &(struct command){
                       .opcode = OP_COLLECT, .cid = 2, .ticket = 1, .length = sizeof data},
                   NULL, to);
            submit(&rig, owner,
                   &(struct command){
                       .opcode = OP_COLLECT, .cid = 3, .ticket = 99, .length = sizeof data},
                   NULL, to);
            submit(&rig, owner, &(struct command){.opcode = OP_FLUSH, .cid = 4}, NULL, NULL);
        }
        size_t n = 0, of_mine = 0;
        for (int i = 0; i < step; i++)
            n += drive_step(rig.drive, rig.now_ns += 500, done + n, 16 - n);
        for (size_t i = 0; i < n; i++)
            of_mine += done[i].owner == 7;
        for (int i = 0; i < 10000 && !drive_abort(rig.drive, 7); i++)
            n += drive_step(rig.drive, rig.now_ns += 500, done + n, 16 - n);
        assert_true(drive_abort(rig.drive, 7));
        free(mine);
        n += settle(&rig, done + n, 16 - n);
        size_t later = 0;
        for (size_t i = 0; i < n; i++)
            later += done[i].owner == 7;
        assert_int_equal(later, of_mine);
        assert_int_equal(n - of_mine, 3); // all but the COLLECT of a ticket that does not come
        // The ticket is free for whoever has the number next.
        submit(&rig, 7, &read, table, NULL);
        assert_int_equal(settle(&rig, done, 16), 1);
        assert_int_equal(done[0].status, 0);
        assert_true(drive_abort(rig.drive, 7));
        assert_true(drive_abort(rig.drive, 8));
        assert_int_equal(dram_used(&rig), used);
        free(in);
        rig_close(&rig);
    }
}

// Many large tickets take what nobody else needs, and give it back.
static void test_memory_comes_back(void **state)
{
    (void)state;
    struct rig_options o = small;
    struct rig rig;
    o.dram_bytes = 24 << 20;
    o.config.max_tokens = 4096;
    o.config.max_sequences = 8;
    rig_open(&rig, &o);
    assert_int_equal(rig_write_all(&rig, 1, 0, 0, TOKENS), 0);
    uint64_t used = dram_used(&rig);
    uint32_t tickets = 0;
    int status = 0;
    for (uint32_t items = 4096; items && tickets < TICKETS; items /= 2)
        while (tickets < TICKETS && !(status = attend(&rig, 0, tickets, items, 4)))
            tickets++;
    assert_int_equal(status, INST_ENORESOURCE);
    assert_true(tickets > 4);
    static uint8_t result[64 << 20] __attribute__((aligned(64)));
    for (uint32_t t = 0; t < tickets; t++)
        assert_int_equal(
            rig_call(&rig,
                     &(struct command){.opcode = OP_COLLECT, .ticket = t, .length = sizeof result},
                     NULL, result, NULL),
            0);
    assert_true(dram_used(&rig) <= used); // the row cache gave way, and may grow again
    // What was planned is there.
    for (uint64_t pos = TOKENS; pos < 4096; pos += 8)
        assert_int_equal(rig_write_all(&rig, 1, 0, pos, 8), 0);
    rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_collects_end),  cmocka_unit_test(test_tickets_expire),
        cmocka_unit_test(test_abort_tickets), cmocka_unit_test(test_abort_under_way),
        cmocka_unit_test(test_owner_goes),    cmocka_unit_test(test_memory_comes_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
