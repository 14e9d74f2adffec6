// SPDX-License-Identifier: Apache-2.0
// The in-process link over a real drive, and link_call over any.
#include "base/clock.h"
#include "drive/drive.h"
#include "link/link.h"
#include "tests/host/fake_drive.h"

#include <setjmp.h>
#include <stdalign.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static const struct space_config config = {.layers = 1,
                                           .kv_heads = 1,
                                           .head_dim = 16,
                                           .group_tokens = 16,
                                           .max_sequences = 1,
                                           .max_tokens = 64};

struct rig {
    struct flash *flash;
    struct pool *pool;
    struct drive *drive;
    struct link *link;
};

typedef int open_fn(struct link **, struct drive *, struct flash *, struct inst_msg *);

static struct link *rig_open(struct rig *rig, open_fn *open_link)
{
    struct flash_geometry geometry;
    struct drive_plan plan;
    assert_int_equal(drive_geometry_for(&geometry, &config, 1 << 22, 0, NULL), 0);
    assert_int_equal(drive_plan(&plan, &geometry, &config, 0, NULL), 0);
    assert_int_equal(flash_ram_open(&rig->flash, &geometry, 0, NULL), 0);
    assert_int_equal(pool_new(&rig->pool, 1, NULL), 0);
    struct drive_limits limits = {.dram_bytes = plan.good_dram_bytes, .pool = rig->pool};
    assert_int_equal(drive_open(&rig->drive, rig->flash, &limits, NULL), 0);
    assert_int_equal(open_link(&rig->link, rig->drive, rig->flash, NULL), 0);
    return rig->link;
}

static void rig_close(struct rig *rig)
{
    link_close(rig->link);
    drive_close(rig->drive);
    flash_close(rig->flash);
    pool_free(rig->pool);
}

static void commands_reach_the_drive(void **state)
{
    (void)state;
    struct rig rig;
    struct inst_msg msg = {0};
    struct link *link = rig_open(&rig, link_local_open);
    alignas(64) uint8_t data[1024];
    uint64_t result = 0;
    struct command c = {.opcode = OP_IDENTIFY, .length = IDENTIFY_TABLE_BYTES};
    struct drive_identity identity;
    assert_int_equal(link_call(link, &c, NULL, data, NULL, &msg), 0);
    assert_int_equal(identity_decode(&identity, data, IDENTIFY_TABLE_BYTES), 0);
    assert_true(identity.max_items >= 1);
    space_config_encode(data, &config);
    c = (struct command){.opcode = OP_CONFIG, .cid = 7, .space = 3};
    assert_int_equal(link_call(link, &c, data, NULL, &result, &msg), 0);
    assert_int_equal(result, 16);

    // A failure comes back with the drive's words, and the link goes on.
    c = (struct command){.opcode = OP_RECLAIM, .space = 99, .count = 1};
    memset(data, 0, 128);
    assert_true(link_call(link, &c, data, NULL, NULL, &msg) < 0);
    assert_non_null(strstr(msg.text, "RECLAIM"));
    c = (struct command){.opcode = OP_SEAL, .space = 3};
    assert_int_equal(link_call(link, &c, NULL, NULL, NULL, NULL), INST_ENOTSUP);

    // What is in flight is forgotten, and the data can go at once.
    uint8_t *gone = aligned_alloc(64, 4096);
    struct completion done;
    c = (struct command){.opcode = OP_COLLECT, .cid = 9, .ticket = 77, .length = 4096};
    assert_int_equal(link->ops->submit(link, &c, NULL, gone), 0);
    link->ops->abort(link);
    free(gone);

    // Waiting for nothing takes the time that was given.
    double start = clock_seconds();
    assert_int_equal(link->ops->poll(link, &done, 1, 20 * 1000 * 1000), 0);
    assert_true(clock_seconds() - start >= 0.019);
    assert_int_equal(link->ops->poll(link, &done, 1, 0), 0);
    rig_close(&rig);
}

// A nanosecond for each byte, on a drive that takes no time itself.
static void commands_take_the_time_of_the_wire(void **state)
{
    (void)state;
    struct rig rig;
    struct link *link = rig_open(&rig, link_local_open_virtual);
    alignas(64) uint8_t data[4096] = {0}, table[128];
    assert_int_equal(link_local_wire(link, 1000000000, NULL), 0);

    // An entry down, a completion and the table up.
    uint64_t at = link_local_virtual_ns(link);
    struct command c = {.opcode = OP_IDENTIFY, .length = IDENTIFY_TABLE_BYTES};
    assert_int_equal(link_call(link, &c, NULL, data, NULL, NULL), 0);
    at += 64 + 16 + IDENTIFY_TABLE_BYTES;
    assert_int_equal(link_local_virtual_ns(link), at);
    // Entry and configuration down.
    space_config_encode(table, &config);
    c = (struct command){.opcode = OP_CONFIG, .space = 3};
    assert_int_equal(link_call(link, &c, table, NULL, NULL, NULL), 0);
    at += 64 + 64 + 16;
    assert_int_equal(link_local_virtual_ns(link), at);
    // K and V of 8 tokens, twice at once: the second follows the first, and its completion it.
    table_put_header(table, &(struct table_header){.head_count = 1});
    table_put_item(table, 0, &(struct table_item){.seq = 1, .epoch = 1, .n_tokens = 8});
    struct completion done[2];
    for (uint16_t i = 0; i < 2; i++) {
        c = (struct command){
            .opcode = OP_WRITE, .cid = i, .space = 3, .count = 1, .length = 8 * 16 * 2 * 2};
        assert_int_equal(link->ops->submit(link, &c, table, data), 0);
    }
    assert_int_equal(link->ops->poll(link, done, 1, 1000000000), 1);
    if (done[0].cid || done[0].status)
        fail_msg("%d %d %s", done[0].cid, done[0].status, done[0].text);
    assert_int_equal(link_local_virtual_ns(link), at + 64 + 128 + 512 + 16);
    assert_int_equal(link->ops->poll(link, done, 1, 1000000000), 1);
    assert_true(done[0].cid == 1 && !done[0].status); // a repetition
    at += 2 * (64 + 128 + 512) + 16;
    assert_int_equal(link_local_virtual_ns(link), at);
    // What the wire carried: all of it, but for what was idle, which is nothing here.
    assert_int_equal(link_local_wire_ns(link), at - 1 + 16);
    // What is under way is forgotten.
    c = (struct command){.opcode = OP_IDENTIFY, .cid = 5, .length = IDENTIFY_TABLE_BYTES};
    assert_int_equal(link->ops->submit(link, &c, NULL, data), 0);
    link->ops->abort(link);
    assert_int_equal(link->ops->poll(link, done, 1, 1000000), 0);
    // More than the wire holds.
    int err = 0;
    unsigned n = 0;
    for (; !err && n < 10000; n++)
        err = link->ops->submit(link, &c, NULL, data);
    assert_true(err == INST_ENORESOURCE && n > 64);
    rig_close(&rig);
}

static void link_call_refuses_foreign_completions(void **state)
{
    (void)state;
    struct link *link = fake_drive_open();
    alignas(64) uint8_t data[STAT_TABLE_BYTES];
    struct inst_msg msg = {0};
    struct command c = {.opcode = OP_STAT, .cid = 1, .length = sizeof data};
    assert_int_equal(link_call(link, &c, NULL, data, NULL, &msg), 0);
    c.cid = 2;
    assert_int_equal(link->ops->submit(link, &c, NULL, data), 0);
    c.cid = 3;
    assert_int_equal(link_call(link, &c, NULL, data, NULL, &msg), INST_EINTERNAL);
    link_close(link);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(commands_reach_the_drive),
        cmocka_unit_test(commands_take_the_time_of_the_wire),
        cmocka_unit_test(link_call_refuses_foreign_completions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
