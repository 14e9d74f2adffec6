// SPDX-License-Identifier: Apache-2.0
// What happens to flash that nobody refers to any more: ranges that RECLAIM names, when blocks are
// erased, and in what order.
#include "drive_harness.h"

#include <stdlib.h>
#include <string.h>

enum { DEVICE = 200, GROUP = 16, ERASES_MAX = 256 };

// Notes the order of erases.
struct recorder {
    struct flash flash;
    struct flash *inner;
    uint64_t erased[ERASES_MAX];
    size_t n;
};

static void record_submit(struct flash *flash, struct flash_io *list, uint64_t now_ns)
{
    struct recorder *r = (struct recorder *)flash;
    for (const struct flash_io *io = list; io; io = io->next)
        if (io->op == FLASH_ERASE && r->n < ERASES_MAX)
            r->erased[r->n++] = io->block;
    r->inner->ops->submit(r->inner, list, now_ns);
}

static struct flash_io *record_poll(struct flash *flash, uint64_t now_ns)
{
    struct recorder *r = (struct recorder *)flash;
    return r->inner->ops->poll(r->inner, now_ns);
}

static void record_close(struct flash *flash)
{
    struct recorder *r = (struct recorder *)flash;
    flash_close(r->inner);
    free(r);
}

static const struct flash_ops record_ops = {
    .submit = record_submit, .poll = record_poll, .close = record_close};

// Blocks of 4 rows: 64 tokens of one layer of 2 KV heads of 16.
static const struct rig_options small = {
    .config = {.layers = 2, .kv_heads = 2, .head_dim = 16, .group_tokens = GROUP},
    .q_heads = 2,
    .page_bytes = 2048,
    .pages_per_block = 5,
    .blocks = DEVICE,
};

static struct recorder *open_recorded(struct rig *rig, struct rig_options *o)
{
    struct recorder *r = calloc(1, sizeof *r);
    o->wrap = &r->flash;
    o->wrap_inner = &r->inner;
    r->flash.ops = &record_ops;
    rig_open(rig, o);
    return r;
}

// The counters as they are, without the FLUSH that would change them.
static struct drive_stats stats_now(struct rig *rig)
{
    uint8_t table[STAT_TABLE_BYTES] __attribute__((aligned(64)));
    struct drive_stats stats;
    struct command command = {.opcode = OP_STAT, .length = sizeof table};
    assert_int_equal(rig_call(rig, &command, NULL, table, NULL), 0);
    assert_int_equal(stats_decode(&stats, table, sizeof table), 0);
    return stats;
}

static void pause_for(struct rig *rig, uint64_t ns)
{
    struct completion done;
    for (int i = 0; i < 20; i++)
        assert_int_equal(drive_step(rig->drive, rig->now_ns += ns / 20, &done, 1), 0);
}

static void give_up(struct rig *rig, uint32_t seq)
{
    assert_int_equal(rig_reclaim(rig, seq, 0, UINT64_MAX, 0, 2), 0);
}

static void test_erased_when_idle(void **state)
{
    (void)state;
    struct rig rig;
    struct rig_options o = small;
    struct recorder *r = open_recorded(&rig, &o);
    assert_int_equal(rig_write_all(&rig, 1, 0, 0, 256), 0);
    assert_int_equal(rig_write_all(&rig, 2, 0, 0, 64), 0);
    give_up(&rig, 1);
    struct drive_stats s = stats_now(&rig);
    assert_int_equal(s.dead_bytes, 2 * 4 * 5 * 2048);
    assert_int_equal(s.flash_erased_blocks, 0);
    for (int i = 0; i < 20; i++) { // commands come: not idle, and there is room
        pause_for(&rig, 2000000);
        rig_expect_content(&rig, 2, 0, 0, 0, 64);
    }
    assert_int_equal(r->n, 0);
    pause_for(&rig, 20000000);
    s = stats_now(&rig);
    assert_int_equal(s.dead_bytes, 0);
    assert_int_equal(s.flash_erased_blocks, 8);
    assert_int_equal(r->n, 8);
    rig_close(&rig);
}

static void test_erased_on_flush(void **state)
{
    (void)state;
    struct rig rig;
    struct rig_options o = small;
    struct drive_stats s;
    open_recorded(&rig, &o);
    assert_int_equal(rig_write_all(&rig, 1, 0, 0, 640), 0);
    give_up(&rig, 1);
    assert_true(stats_now(&rig).dead_bytes > 0);
    rig_stats(&rig, &s);
    assert_int_equal(s.dead_bytes, 0);
    assert_int_equal(s.allocated_bytes, 0);
    assert_int_equal(s.flash_erased_blocks, 20);
    rig_close(&rig);
}

// Never idle: the dead are bounded in number, and a drive that is nearly full does not say so.
static void test_erased_when_short(void **state)
{
    (void)state;
    struct rig rig;
    struct rig_options o = small;
    open_recorded(&rig, &o);
    uint64_t most = 0, block = 5 * 2048;
    for (uint32_t i = 0; i < 60; i++) {
        assert_int_equal(rig_write_all(&rig, 10 + i, i, 0, 192), 0);
        give_up(&rig, 10 + i);
        uint64_t dead = stats_now(&rig).dead_bytes / block;
        most = dead > most ? dead : most;
    }
    assert_true(most >= 20 && most <= 32 + 8);
    // 190 of 200 blocks alive; then there is room for one more sequence, again and again.
    for (uint32_t i = 0; i < 95; i++)
        assert_int_equal(rig_write_all(&rig, 100 + i, i, 0, 64), 0);
    for (uint32_t i = 0; i < 20; i++) {
        assert_int_equal(rig_write_all(&rig, 10, i, 0, 128), 0);
        rig_expect_content(&rig, 10, i, 1, 0, 128);
        give_up(&rig, 10);
    }
    rig_expect_content(&rig, 194, 94, 0, 0, 64);
    rig_close(&rig);
}

static void attend(struct rig *rig, uint32_t seq, uint64_t pos)
{
    float out[2 * 16], lse[2];
    struct rig_query query = {.seq = seq, .content = seq, .pos = pos};
    for (uint32_t l = 0; l < 2; l++)
        assert_int_equal(rig_attend(rig, l, &query, 1, out, lse), 0);
}

// Segments are taken in ascending order: sequence 1 has 0 to 3, 2 has 4 and 5, 3 has 6 and 7.
static void test_order(void **state)
{
    (void)state;
    struct rig rig;
    struct rig_options o = small;
    o.ram_rate = 1000000000000u; // no views: every use is a read
    o.no_read_ahead = true;
    struct recorder *r = open_recorded(&rig, &o);
    assert_int_equal(rig_write_all(&rig, 1, 1, 0, 128), 0);
    assert_int_equal(rig_write_all(&rig, 2, 2, 0, 64), 0);
    assert_int_equal(rig_write_all(&rig, 3, 3, 0, 64), 0);
    attend(&rig, 3, 64);
    attend(&rig, 2, 64);
    assert_int_equal(rig_reclaim(&rig, 1, 64, UINT64_MAX, 0, 2), 0); // lives on
    give_up(&rig, 2);
    give_up(&rig, 3);
    assert_int_equal(r->n, 0);
    pause_for(&rig, 20000000);
    assert_true(r->n >= 4);
    // Finished ones first, those of 3 before those of 2, which were used later.
    for (size_t i = 0; i < r->n; i++) {
        uint64_t from = i < 2 ? 6 : i < 4 ? 4 : 0;
        if (r->erased[i] < from || r->erased[i] > from + (from ? 1 : 3))
            fail_msg("erase %zu was of block %llu", i, (unsigned long long)r->erased[i]);
    }
    rig_expect_content(&rig, 1, 1, 0, 0, 64);
    rig_close(&rig);
}

static int reclaim(struct rig *rig, const struct table_item *item)
{
    uint8_t table[128] __attribute__((aligned(64)));
    memset(table, 0, sizeof table);
    table_put_header(table, &(struct table_header){0});
    table_put_item(table, 0, item);
    struct command command = {.opcode = OP_RECLAIM, .space = 1, .count = 1};
    return rig_call(rig, &command, table, NULL, NULL);
}

static void test_ranges(void **state)
{
    (void)state;
    struct rig rig;
    struct rig_options o = small;
    struct table_item item = {.n_tokens = UINT64_MAX, .layer_count = 2};
    open_recorded(&rig, &o);
    for (uint32_t seq = 0; seq < 8; seq++)
        assert_int_equal(rig_write_all(&rig, seq, seq, 0, 100), 0);
    // Sequences 2 to 4 lose tokens 64 on in layer 1; those that do not exist are no error.
    item = (struct table_item){.seq = 2,
                               .seq_count = 3,
                               .epoch = 77, // not looked at
                               .pos = 64,
                               .n_tokens = UINT64_MAX,
                               .layer_first = 1,
                               .layer_count = 1};
    assert_int_equal(reclaim(&rig, &item), 0);
    uint16_t rows[2 * 2 * 100 * 16];
    for (uint32_t seq = 0; seq < 8; seq++) {
        bool cut = seq >= 2 && seq < 5;
        rig_expect_content(&rig, seq, seq, 0, 0, 100);
        rig_expect_content(&rig, seq, seq, 1, 0, 64);
        assert_int_equal(rig_read(&rig, seq, 1, 0, 100, 0, 2, rows), cut ? INST_ESEQUENCE : 0);
    }
    // A hole in two of them.
    item = (struct table_item){
        .seq = 6, .seq_count = UINT32_MAX, .pos = 16, .n_tokens = 32, .layer_count = 1};
    assert_int_equal(reclaim(&rig, &item), 0);
    rig_expect_content(&rig, 7, 7, 0, 48, 52);
    assert_int_equal(rig_read(&rig, 7, 0, 0, 48, 0, 2, rows), INST_ENOENT);
    rig_expect_content(&rig, 5, 5, 0, 0, 100);
    // All of 1 to 5 end.
    item = (struct table_item){.seq = 1, .seq_count = 5, .n_tokens = UINT64_MAX, .layer_count = 2};
    assert_int_equal(reclaim(&rig, &item), 0);
    assert_int_equal(stats_now(&rig).sequences, 3);
    assert_int_equal(reclaim(&rig, &item), 0); // nobody there
    item.layer_count = 3;
    assert_int_equal(reclaim(&rig, &item), INST_EINVAL);
    item.layer_count = 0;
    assert_int_equal(reclaim(&rig, &item), INST_EINVAL);
    rig_expect_content(&rig, 0, 0, 1, 0, 100);
    rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_erased_when_idle),
        cmocka_unit_test(test_erased_on_flush),
        cmocka_unit_test(test_erased_when_short),
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_ranges),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
