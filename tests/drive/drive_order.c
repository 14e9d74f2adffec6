// SPDX-License-Identifier: Apache-2.0
// What goes to flash first: a read that somebody waits for overtakes reading ahead and programs
// that have not been handed over yet, however many there are; a row read ahead that is asked for
// becomes such a read; and nothing is read twice for all that.
#include "drive_harness.h"

#include <stdlib.h>
#include <string.h>

enum {
    HEADS = 8,
    DIM = 64,
    GROUP = 64,
    ROW_BYTES = HEADS * DIM * GROUP * 4,
    ROWS = 200,             // of a layer of the long sequence: more than may be on their way
    ON_THEIR_WAY = 8 << 20, // bytes of reading ahead, and of programs
    LOG = 4096,
};

// A device that does one operation at a time, in the order in which it got them, and remembers
// that.
struct slow {
    struct flash flash, *inner;
    struct flash_io *first, **end;
    uint32_t waiting; // submitted and not finished
    bool fast;        // finishes all at once
    uint32_t n;
    struct {
        enum flash_op op;
        uint64_t place;  // first byte
        uint32_t before; // operations that were waiting when it came
    } log[LOG];
};

static void slow_submit(struct flash *flash, struct flash_io *list, uint64_t now_ns)
{
    struct slow *s = (struct slow *)flash;
    for (struct flash_io *io = list, *next; io; io = next) {
        next = io->next;
        io->next = NULL;
        assert_true(s->n < LOG);
        s->log[s->n].op = io->op;
        s->log[s->n].place =
            (io->block * flash->geometry.pages_per_block + io->page) * flash->geometry.page_bytes;
        s->log[s->n++].before = s->waiting++;
        s->inner->ops->submit(s->inner, io, now_ns);
        assert_ptr_equal(s->inner->ops->poll(s->inner, now_ns), io);
        io->next = NULL;
        *s->end = io;
        s->end = &io->next;
    }
}

static struct flash_io *slow_poll(struct flash *flash, uint64_t now_ns)
{
    struct slow *s = (struct slow *)flash;
    struct flash_io *io = s->first;
    (void)now_ns;
    if (!io)
        return NULL;
    if (s->fast) {
        s->first = NULL;
        s->end = &s->first;
        s->waiting = 0;
        return io;
    }
    s->first = io->next;
    if (!s->first)
        s->end = &s->first;
    s->waiting--;
    io->next = NULL;
    return io;
}

static void slow_wait(struct flash *flash, uint64_t max_ns)
{
    (void)flash, (void)max_ns;
}

static void slow_close(struct flash *flash)
{
    flash_close(((struct slow *)flash)->inner);
}

static const struct flash_ops slow_ops = {
    .submit = slow_submit, .poll = slow_poll, .wait = slow_wait, .close = slow_close};

static struct slow *open_slow(struct rig *rig)
{
    struct slow *s = calloc(1, sizeof *s);
    s->flash.ops = &slow_ops;
    s->end = &s->first;
    s->fast = true;
    struct rig_options o = {
        .config = {.layers = 2,
                   .kv_heads = HEADS,
                   .head_dim = DIM,
                   .group_tokens = GROUP,
                   .max_sequences = 2,
                   .max_tokens = (ROWS + 1) * GROUP},
        .q_heads = HEADS,
        .page_bytes = 16384,
        .pages_per_block = 257,
        .blocks = 256,
        .wrap = &s->flash,
        .wrap_inner = &s->inner,
    };
    rig_open(rig, &o);
    return s;
}

static uint32_t count(const struct slow *s, enum flash_op op, uint32_t from, uint32_t to)
{
    uint32_t n = 0;
    for (uint32_t i = from; i < to; i++)
        n += s->log[i].op == op;
    return n;
}

// READ of one row; returns the number that its operation has in the log.
static uint32_t read_row(struct rig *rig, struct slow *s, uint32_t seq, uint32_t layer,
                         uint64_t row)
{
    static uint16_t out[ROW_BYTES / 2];
    uint32_t mark = s->n;
    assert_int_equal(rig_read(rig, seq, layer, row * GROUP, GROUP, 0, HEADS, out), 0);
    assert_true(s->n > mark);
    return mark;
}

static void test_read_before_read_ahead(void **state)
{
    (void)state;
    struct rig rig;
    struct drive_stats before, after;
    float *out = calloc(HEADS * DIM, sizeof *out), lse[HEADS];
    struct slow *s = open_slow(&rig);
    assert_int_equal(rig_write_all(&rig, 1, 1, 0, ROWS * GROUP), 0);
    assert_int_equal(rig_write_all(&rig, 2, 2, 0, GROUP), 0);
    rig_stats(&rig, &before);
    struct rig_query query = {.seq = 1, .content = 1, .pos = ROWS * GROUP - 1};
    s->n = 0;
    s->fast = false;
    // Each row of this layer is read, then those of the next one ahead.
    assert_int_equal(rig_attend(&rig, 0, &query, 1, out, lse), 0);
    assert_true(count(s, FLASH_READ, 0, s->n) > ROWS);
    assert_true(s->waiting && s->waiting <= ON_THEIR_WAY / ROW_BYTES);
    uint32_t sent = s->n;
    assert_true(sent < 2 * ROWS);
    // Somebody else's row is the next one that is handed over ...
    uint32_t at = read_row(&rig, s, 2, 0, 0);
    assert_true(s->log[at].before <= ON_THEIR_WAY / ROW_BYTES);
    // ... and so is the last one that was to be read ahead.
    at = read_row(&rig, s, 1, 1, ROWS - 1);
    assert_true(s->log[at].before <= ON_THEIR_WAY / ROW_BYTES);
    assert_true(at < 2 * ROWS); // it was waiting
    assert_int_equal(rig_attend(&rig, 1, &query, 1, out, lse), 0);
    rig_expect_attention(&rig, 1, &query, out, lse);
    s->fast = true;
    rig_stats(&rig, &after);
    // Both layers, two READs (nothing is kept); the first layer is expected again, and what was
    // read of it ahead comes on top.
    uint64_t ahead = (after.read_ahead_rows - before.read_ahead_rows) -
                     (after.read_ahead_hits - before.read_ahead_hits);
    assert_int_equal(after.flash_read_bytes - before.flash_read_bytes,
                     (2 * ROWS + 2 + ahead) * ROW_BYTES);
    rig_close(&rig);
    free(s);
    free(out);
}

static void test_read_before_programs(void **state)
{
    (void)state;
    struct rig rig;
    struct slow *s = open_slow(&rig);
    assert_int_equal(rig_write_all(&rig, 2, 2, 0, GROUP), 0);
    rig_expect_content(&rig, 2, 2, 0, 0, GROUP);
    s->n = 0;
    s->fast = false;
    assert_int_equal(rig_write(&rig, 1, 1, 0, 0, ROWS * GROUP, 0, HEADS), 0);
    uint32_t sent = count(s, FLASH_PROGRAM, 0, s->n);
    assert_true(sent >= ON_THEIR_WAY / ROW_BYTES / 2 && sent < ROWS);
    uint32_t at = read_row(&rig, s, 2, 0, 0);
    while (s->log[at].op != FLASH_READ)
        at++;
    assert_true(s->log[at].before <= ON_THEIR_WAY / ROW_BYTES + 1);
    assert_true(count(s, FLASH_PROGRAM, 0, at) < ROWS);
    // All of them get there, in order (the flash below would refuse others).
    struct drive_stats stats;
    rig_stats(&rig, &stats);
    assert_true(count(s, FLASH_PROGRAM, 0, s->n) >= ROWS);
    s->fast = true;
    rig_expect_content(&rig, 1, 1, 0, 0, ROWS * GROUP);
    rig_close(&rig);
    free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read_before_read_ahead),
        cmocka_unit_test(test_read_before_programs),
    };
    return cmocka_run_group_tests_name("drive_order", tests, NULL, NULL);
}
