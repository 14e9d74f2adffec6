// SPDX-License-Identifier: Apache-2.0
// A disk that fills up while the drive works. Whoever needs a row that did not fit any more is told
// that there was no space: whether the row was found missing when it was programmed, by a command
// that was at work then, or by a sequence that shares it. What is left in its place on the disk is
// never taken for data that went bad.
#include "drive_harness.h"

#include <stdlib.h>
#include <string.h>

enum { GROUP = 16, GROUPS = 24, TOKENS = GROUP * GROUPS };

// As a sparse file does: programs beyond `room` fail some time later, and reading their pages gives
// zeros.
struct disk {
    struct flash flash;
    struct flash *inner;
    uint64_t programs, room;
    unsigned delay, polls; // failures come with every delay-th poll
    struct flash_io *failing;
};

static void disk_submit(struct flash *flash, struct flash_io *list, uint64_t now_ns)
{
    struct disk *d = (struct disk *)flash;
    for (struct flash_io *io = list, *next; io; io = next) {
        next = io->next;
        io->next = NULL;
        if (io->op == FLASH_PROGRAM && d->programs++ >= d->room) {
            io->status = INST_ENOSPC;
            io->next = d->failing;
            d->failing = io;
        } else {
            d->inner->ops->submit(d->inner, io, now_ns);
        }
    }
}

static struct flash_io *disk_poll(struct flash *flash, uint64_t now_ns)
{
    struct disk *d = (struct disk *)flash;
    struct flash_io *done = d->inner->ops->poll(d->inner, now_ns);
    for (struct flash_io *io = done; io; io = io->next) {
        if (io->op != FLASH_READ || !io->status)
            continue;
        memset(io->data, 0, (size_t)io->pages * flash->geometry.page_bytes);
        io->status = 0;
    }
    if (++d->polls % d->delay == 0 && d->failing) {
        struct flash_io *failed = d->failing;
        d->failing = failed->next;
        failed->next = done;
        done = failed;
    }
    return done;
}

static void disk_close(struct flash *flash)
{
    struct disk *d = (struct disk *)flash;
    flash_close(d->inner);
    free(d);
}

static const struct flash_ops disk_ops = {
    .submit = disk_submit, .poll = disk_poll, .close = disk_close};

static void open_disk(struct rig *rig, uint64_t room, unsigned delay, bool read_ahead)
{
    struct rig_options o = {
        .config = {.layers = 1, .kv_heads = 2, .head_dim = 16, .group_tokens = GROUP},
        .q_heads = 4,
        .page_bytes = 2048,
        .pages_per_block = 60,
        .blocks = 200,
        .no_read_ahead = !read_ahead,
    };
    struct disk *d = calloc(1, sizeof *d);
    struct drive_plan plan;
    struct flash_geometry g = {.page_bytes = o.page_bytes,
                               .pages_per_block = o.pages_per_block,
                               .blocks = o.blocks,
                               .dies = 1,
                               .channels = 1,
                               .read_bytes = 128 * 1024};
    struct space_config config = o.config;
    config.q_heads = o.q_heads;
    config.max_sequences = o.config.max_sequences = 2;
    config.max_tokens = o.config.max_tokens = TOKENS;
    assert_int_equal(drive_plan(&plan, &g, &config, 0, NULL), 0);
    o.dram_bytes = plan.min_dram_bytes; // few rows at a time, so that most come from flash
    d->flash.ops = &disk_ops;
    d->room = room;
    d->delay = delay;
    o.wrap = &d->flash;
    o.wrap_inner = &d->inner;
    rig_open(rig, &o);
}

struct tally {
    unsigned good, full, corrupt, other;
};

static void count(struct rig *rig, int status, struct tally *tally)
{
    tally->good += !status;
    tally->full += status == INST_ENOSPC;
    tally->corrupt += status == INST_ECORRUPT;
    tally->other += status && status != INST_ENOSPC && status != INST_ECORRUPT;
    if (status && status != INST_ENOSPC)
        print_message("%s\n", rig->text);
    if (status == INST_ENOSPC)
        assert_non_null(strstr(rig->text, "no space"));
}

static void expect(const struct tally *tally)
{
    print_message("%u right, %u without space, %u corrupt, %u others\n", tally->good, tally->full,
                  tally->corrupt, tally->other);
    assert_int_equal(tally->corrupt + tally->other, 0);
    assert_true(tally->good && tally->full);
}

static void a_full_disk_is_not_a_corrupt_one(void **state)
{
    (void)state;
    struct tally tally = {0};
    for (uint64_t room = 0; room <= GROUPS; room++)
        for (unsigned delay = 1; delay <= 64; delay *= 2) {
            struct rig rig;
            float out[4 * 16], lse[4];
            uint16_t *kv = malloc(2ull * 2 * TOKENS * 16 * sizeof *kv);
            open_disk(&rig, room, delay, delay & 1);
            int status = rig_write(&rig, 0, 0, 0, 0, TOKENS, 0, 2);
            count(&rig, status, &tally);
            if (!status) {
                struct rig_query query = {.pos = TOKENS};
                status = rig_attend(&rig, 0, &query, 1, out, lse);
                count(&rig, status, &tally);
                if (!status)
                    rig_expect_attention(&rig, 0, &query, out, lse);
                count(&rig, rig_read(&rig, 0, 0, 0, TOKENS, 0, 2, kv), &tally);
            }
            free(kv);
            rig_close(&rig);
        }
    expect(&tally);
}

// A sequence that shares a row has lost it too when the row does not get to the disk.
static void whoever_shares_a_row_loses_it(void **state)
{
    (void)state;
    struct tally tally = {0};
    for (uint64_t room = GROUPS - 8; room <= GROUPS; room++)
        for (unsigned delay = 4; delay <= 1024; delay *= 4)
            for (int gone = 0; gone < 2; gone++) {
                struct rig rig;
                float out[4 * 16], lse[4];
                open_disk(&rig, room, delay, false);
                int status = rig_write(&rig, 0, 0, 0, 0, TOKENS, 0, 2);
                if (!status)
                    status = rig_fork(&rig, 0, 1, TOKENS);
                if (!status && gone)
                    assert_int_equal(rig_reclaim(&rig, 0, 0, UINT64_MAX, 0, 1), 0);
                for (int i = 0; !status && i < 2; i++) {
                    struct rig_query query = {.seq = 1, .pos = TOKENS};
                    status = rig_attend(&rig, 0, &query, 1, out, lse);
                    count(&rig, status, &tally);
                    if (!status)
                        rig_expect_attention(&rig, 0, &query, out, lse);
                    struct command flush = {.opcode = OP_FLUSH}; // now all of them have failed
                    assert_int_equal(rig_call(&rig, &flush, NULL, NULL, NULL), 0);
                }
                rig_close(&rig);
            }
    expect(&tally);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_full_disk_is_not_a_corrupt_one),
        cmocka_unit_test(whoever_shares_a_row_loses_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
