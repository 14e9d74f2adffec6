// SPDX-License-Identifier: Apache-2.0
// The drive in virtual time: nothing sleeps, time goes on to what drive_next_ns says and nowhere
// else. Attention over rows on flash then takes as long as the slower of flash and engine, which
// work at the same time, and the drive is asked no more often than things happen.
#include "drive_harness.h"

#include "drive/engine.h"

#include <stdlib.h>
#include <string.h>

enum {
    HEADS = 8,
    DIM = 64,
    GROUP = 64,
    ROW_BYTES = HEADS * DIM * GROUP * 4,
    ROWS = 200,
    FLASH_RATE = 1000, // bytes in a microsecond
};

// One pipe, as fast as FLASH_RATE once time matters.
struct timed_flash {
    struct flash flash, *inner;
    struct flash_io *first, **end;
    bool timed;
    uint64_t busy_until_ns, reads[3]; // by priority
};

static void timed_submit(struct flash *flash, struct flash_io *list, uint64_t now_ns)
{
    struct timed_flash *t = (struct timed_flash *)flash;
    for (struct flash_io *io = list, *next; io; io = next) {
        next = io->next;
        io->next = NULL;
        t->inner->ops->submit(t->inner, io, now_ns);
        assert_ptr_equal(t->inner->ops->poll(t->inner, now_ns), io);
        if (io->op == FLASH_READ)
            t->reads[io->priority]++;
        else
            assert_true(io->priority != FLASH_AHEAD);
        if (t->busy_until_ns < now_ns)
            t->busy_until_ns = now_ns;
        if (t->timed)
            t->busy_until_ns +=
                (uint64_t)io->pages * flash->geometry.page_bytes * 1000 / FLASH_RATE;
        io->done_ns = t->busy_until_ns;
        io->next = NULL;
        *t->end = io;
        t->end = &io->next;
    }
}

static struct flash_io *timed_poll(struct flash *flash, uint64_t now_ns)
{
    struct timed_flash *t = (struct timed_flash *)flash;
    struct flash_io *io = t->first;
    if (!io || (io->done_ns > now_ns && t->timed))
        return NULL;
    t->first = io->next;
    if (!t->first)
        t->end = &t->first;
    io->next = NULL;
    return io;
}

static uint64_t timed_next_ns(struct flash *flash)
{
    const struct timed_flash *t = (const struct timed_flash *)flash;
    return t->first ? t->first->done_ns : UINT64_MAX;
}

static void timed_close(struct flash *flash)
{
    flash_close(((struct timed_flash *)flash)->inner);
}

static const struct flash_ops timed_ops = {
    .submit = timed_submit, .poll = timed_poll, .next_ns = timed_next_ns, .close = timed_close};

// Does the work at once and says that it took `rate` bytes in a microsecond; 0: no time.
struct timed_engine {
    struct engine engine;
    struct engine_task *first, **end;
    uint64_t rate, busy_until_ns, bytes;
};

static void engine_submit(struct engine *engine, struct engine_task *task, uint64_t now_ns)
{
    struct timed_engine *t = (struct timed_engine *)engine;
    for (size_t i = 0; i < task->items; i++)
        task->fn(task->arg, i, 0);
    if (t->busy_until_ns < now_ns)
        t->busy_until_ns = now_ns;
    if (task->kind == ENGINE_ATTEND) {
        t->bytes += task->bytes;
        t->busy_until_ns += t->rate ? task->bytes * 1000 / t->rate : 0;
    }
    task->done_ns = t->busy_until_ns;
    task->next = NULL;
    *t->end = task;
    t->end = &task->next;
}

static struct engine_task *engine_poll(struct engine *engine, uint64_t now_ns)
{
    struct timed_engine *t = (struct timed_engine *)engine;
    struct engine_task *task = t->first;
    if (!task || task->done_ns > now_ns)
        return NULL;
    t->first = task->next;
    if (!t->first)
        t->end = &t->first;
    task->next = NULL;
    return task;
}

static uint64_t engine_next_ns(struct engine *engine)
{
    const struct timed_engine *t = (const struct timed_engine *)engine;
    return t->first ? t->first->done_ns : UINT64_MAX;
}

static void engine_end(struct engine *engine)
{
    (void)engine;
}

static const struct engine_ops engine_ops = {
    .submit = engine_submit, .poll = engine_poll, .next_ns = engine_next_ns, .close = engine_end};

struct scene {
    struct rig rig;
    struct timed_flash flash;
    struct timed_engine engine;
    uint64_t steps;
};

static void open_scene(struct scene *s, bool read_ahead)
{
    *s = (struct scene){.flash.flash.ops = &timed_ops, .engine.engine.ops = &engine_ops};
    s->flash.end = &s->flash.first;
    s->engine.end = &s->engine.first;
    struct rig_options o = {
        .config = {.layers = 2,
                   .kv_heads = HEADS,
                   .head_dim = DIM,
                   .group_tokens = GROUP,
                   .max_sequences = 1,
                   .max_tokens = (ROWS + 1) * GROUP},
        .q_heads = HEADS,
        .page_bytes = 16384,
        .pages_per_block = 257,
        .blocks = 256,
        .dram_bytes = 32 << 20,
        .no_read_ahead = !read_ahead,
        .wrap = &s->flash.flash,
        .wrap_inner = &s->flash.inner,
        .engine = &s->engine.engine,
    };
    rig_open(&s->rig, &o);
    assert_int_equal(rig_write_all(&s->rig, 0, 1, 0, ROWS * GROUP), 0);
    struct drive_stats stats;
    rig_stats(&s->rig, &stats);
    s->flash.timed = true;
}

// One command to its completion, by the drive's own account of time.
static void call(struct scene *s, const struct command *command, const void *table, void *data)
{
    uint8_t entry[COMMAND_BYTES];
    struct completion done;
    struct rig *rig = &s->rig;
    command_encode(entry, command);
    assert_int_equal(
        drive_submit(rig->drive, 0, entry, table, command_table_bytes(command), data, rig->now_ns),
        0);
    while (!drive_step(rig->drive, rig->now_ns, &done, 1)) {
        uint64_t next = drive_next_ns(rig->drive);
        assert_true(next != UINT64_MAX);
        if (next > rig->now_ns)
            rig->now_ns = next;
        s->steps++;
    }
    if (done.status)
        fail_msg("%s", done.text);
}

// Virtual nanoseconds of one ATTEND and its COLLECT over all rows of a layer.
static uint64_t attend(struct scene *s, uint32_t layer)
{
    struct attend_layout layout;
    uint8_t table[TABLE_HEADER_BYTES + TABLE_ITEM_BYTES];
    assert_true(attend_layout(&layout, 1, HEADS, HEADS, DIM, false));
    uint8_t *in = aligned_alloc(64, (layout.in_bytes + 63) / 64 * 64),
            *out = aligned_alloc(64, (layout.out_bytes + 63) / 64 * 64);
    memset(in, 0, layout.in_bytes);
    table_put_header(table, &(struct table_header){.q_heads = HEADS, .scale = 1});
    table_put_item(table, 0, &(struct table_item){.seq = 0, .epoch = 1, .pos = ROWS * GROUP});
    uint64_t start = s->rig.now_ns;
    struct command command = {.opcode = OP_ATTEND,
                              .space = 1,
                              .layer = layer,
                              .count = 1,
                              .ticket = 7,
                              .length = (uint32_t)layout.in_bytes};
    call(s, &command, table, in);
    command = (struct command){
        .opcode = OP_COLLECT, .space = 1, .ticket = 7, .length = (uint32_t)layout.out_bytes};
    call(s, &command, NULL, out);
    free(in);
    free(out);
    return s->rig.now_ns - start;
}

static void test_flash_is_the_limit(void **state)
{
    (void)state;
    struct scene s;
    uint64_t flash_ns = (uint64_t)ROWS * ROW_BYTES * 1000 / FLASH_RATE;
    open_scene(&s, false);
    uint64_t ns = attend(&s, 0);
    assert_true(ns >= flash_ns && ns < flash_ns + flash_ns / 50);
    assert_int_equal(s.flash.reads[FLASH_DEMAND], ROWS);
    assert_int_equal(s.flash.reads[FLASH_AHEAD] + s.flash.reads[FLASH_BACKGROUND], 0);
    // A read, its check, its arithmetic and their ends: no spinning.
    assert_true(s.steps < 12 * ROWS);
    // Half as fast again and overlapped: the time stays the same but for the last rows.
    s.engine.rate = FLASH_RATE * 3 / 2;
    s.engine.bytes = 0;
    ns = attend(&s, 1);
    assert_int_equal(s.engine.bytes, (uint64_t)ROWS * ROW_BYTES);
    assert_true(ns >= flash_ns && ns < flash_ns + flash_ns / 10);
    assert_true(drive_next_ns(s.rig.drive) <= s.rig.now_ns ||
                drive_next_ns(s.rig.drive) == UINT64_MAX);
    s.flash.timed = false;
    s.engine.rate = 0;
    rig_close(&s.rig);
}

static void test_engine_is_the_limit(void **state)
{
    (void)state;
    struct scene s;
    open_scene(&s, false);
    s.engine.rate = FLASH_RATE / 3;
    uint64_t engine_ns = (uint64_t)ROWS * ROW_BYTES * 1000 / s.engine.rate;
    uint64_t ns = attend(&s, 0);
    assert_true(ns >= engine_ns && ns < engine_ns + engine_ns / 20);
    s.flash.timed = false;
    s.engine.rate = 0;
    rig_close(&s.rig);
}

// What is read for the next layer meanwhile says so.
static void test_ahead_says_so(void **state)
{
    (void)state;
    struct scene s;
    open_scene(&s, true);
    s.engine.rate = FLASH_RATE / 3;
    (void)attend(&s, 0);
    assert_true(s.flash.reads[FLASH_DEMAND] == ROWS);
    uint64_t before = s.flash.reads[FLASH_DEMAND];
    (void)attend(&s, 1);
    assert_true(s.flash.reads[FLASH_AHEAD] > 0);
    assert_true(s.flash.reads[FLASH_DEMAND] < before + ROWS);
    assert_int_equal(s.flash.reads[FLASH_BACKGROUND], 0);
    s.flash.timed = false;
    s.engine.rate = 0;
    rig_close(&s.rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_flash_is_the_limit),
        cmocka_unit_test(test_engine_is_the_limit),
        cmocka_unit_test(test_ahead_says_so),
    };
    return cmocka_run_group_tests_name("drive_time", tests, NULL, NULL);
}
