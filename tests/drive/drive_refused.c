// SPDX-License-Identifier: Apache-2.0
// A command that is refused leaves no trace, one that is repeated has no effect, and what CONFIG
// promises is there until the space is removed.
#include "drive_harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { GROUP = 16 };

static const struct rig_options small = {
    .config = {.layers = 2, .kv_heads = 2, .head_dim = 16, .group_tokens = GROUP},
    .q_heads = 4,
};

static uint8_t data[1 << 18] __attribute__((aligned(64)));

static int call(struct rig *rig, struct command command, struct table_header header,
                const struct table_item *items)
{
    uint8_t table[64 * 10];
    command.space = 1;
    table_put_header(table, &header);
    for (uint32_t i = 0; i < command.count; i++)
        table_put_item(table, i, &items[i]);
    return rig_call(rig, &command, table, data, NULL);
}

static int write_items(struct rig *rig, uint32_t count, uint32_t heads,
                       const struct table_item *items)
{
    return call(rig, (struct command){.opcode = OP_WRITE, .count = count, .length = sizeof data},
                (struct table_header){.head_count = heads}, items);
}

// The status of the first item of an ATTEND.
static int attend_items(struct rig *rig, uint32_t count, const struct table_item *items)
{
    struct attend_layout layout;
    attend_layout(&layout, count, 4, 2, 16, true);
    struct command command = {
        .opcode = OP_ATTEND, .count = count, .ticket = 7, .length = (uint32_t)layout.in_bytes};
    int status = call(rig, command, (struct table_header){.q_heads = 4, .scale = 1}, items);
    if (status)
        return status;
    command = (struct command){.opcode = OP_COLLECT, .ticket = 7, .length = sizeof data};
    assert_int_equal(rig_call(rig, &command, NULL, data, NULL), 0);
    return inst_status_from_nvme((uint16_t) * (uint32_t *)(data + layout.status));
}

static int reclaim_items(struct rig *rig, uint32_t count, const struct table_item *items)
{
    return call(rig, (struct command){.opcode = OP_RECLAIM, .count = count},
                (struct table_header){0}, items);
}

static int fork_items(struct rig *rig, uint32_t count, const struct table_item *items)
{
    return call(rig, (struct command){.opcode = OP_FORK, .count = count}, (struct table_header){0},
                items);
}

static int config_space(struct rig *rig, uint32_t id, const struct space_config *config,
                        uint64_t *group)
{
    uint8_t table[CONFIG_BYTES];
    space_config_encode(table, config);
    return rig_call(rig, &(struct command){.opcode = OP_CONFIG, .space = id}, table, NULL, group);
}

static int remove_space(struct rig *rig, uint32_t id)
{
    return rig_call(rig, &(struct command){.opcode = OP_REMOVE, .space = id}, NULL, NULL, NULL);
}

static struct drive_stats stats_of(struct rig *rig)
{
    struct drive_stats stats;
    rig_stats(rig, &stats);
    stats.write_wait_ns = stats.dram_peak_bytes = 0; // may grow whatever comes of a command
    return stats;
}

#define REFUSED(call, code)                                                                        \
    do {                                                                                           \
        struct drive_stats before_ = stats_of(&rig);                                               \
        assert_int_equal(call, code);                                                              \
        struct drive_stats after_ = stats_of(&rig);                                                \
        assert_memory_equal(&before_, &after_, sizeof before_);                                    \
    } while (0)

#define ITEMS(...)                                                                                 \
    (const struct table_item[])                                                                    \
    {                                                                                              \
        __VA_ARGS__                                                                                \
    }

static void test_malformed(void **state)
{
    (void)state;
    struct rig rig;
    rig_open(&rig, &small);
    assert_int_equal(rig_write_all(&rig, 1, 0, 0, 40), 0);
    assert_int_equal(rig_write_all(&rig, 2, 2, 0, 5), 0);
    // The second item is wrong; the first one is not done.
    REFUSED(write_items(&rig, 2, 2,
                        ITEMS({.seq = 1, .epoch = 1, .pos = 40, .n_tokens = 4},
                              {.seq = 3, .epoch = 1, .pos = 1, .n_tokens = 4})),
            INST_ENOENT);
    REFUSED(write_items(&rig, 2, 2,
                        ITEMS({.seq = 3, .epoch = 1, .n_tokens = 4},
                              {.seq = 1, .epoch = 1, .pos = 41, .n_tokens = 4})),
            INST_ESEQUENCE);
    REFUSED(write_items(&rig, 2, 2,
                        ITEMS({.seq = 3, .epoch = 1, .n_tokens = 4},
                              {.seq = 4, .epoch = 1, .n_tokens = 1 << 20})),
            INST_EINVAL);
    // One head runs ahead of the other, by one token too many.
    REFUSED(write_items(&rig, 1, 1, ITEMS({.seq = 3, .epoch = 1, .n_tokens = GROUP + 1})),
            INST_ESEQUENCE);
    REFUSED(write_items(&rig, 1, 1, ITEMS({.seq = 1, .epoch = 1, .pos = 40, .n_tokens = 9})),
            INST_ESEQUENCE);
    assert_int_equal(write_items(&rig, 1, 1, ITEMS({.seq = 3, .epoch = 1, .n_tokens = GROUP})), 0);
    REFUSED(fork_items(&rig, 2,
                       ITEMS({.seq = 5, .epoch = 1, .pos = 20, .parent = 1, .parent_epoch = 1},
                             {.seq = 6, .epoch = 1, .pos = 6, .parent = 2, .parent_epoch = 1})),
            INST_ESEQUENCE);
    REFUSED(fork_items(&rig, 2,
                       ITEMS({.seq = 5, .epoch = 1, .pos = 20, .parent = 1, .parent_epoch = 1},
                             {.seq = 5, .epoch = 1, .pos = 21, .parent = 1, .parent_epoch = 1})),
            INST_EEXIST);
    REFUSED(reclaim_items(&rig, 2,
                          ITEMS({.seq = 1, .epoch = 1, .n_tokens = UINT64_MAX, .layer_count = 2},
                                {.seq = 2, .epoch = 1, .layer_first = 1, .layer_count = 2})),
            INST_EINVAL);
    REFUSED(attend_items(&rig, 1, ITEMS({.seq = 9, .epoch = 1, .pos = 3, .n_tokens = 1})),
            INST_ENOENT);
    REFUSED(call(&rig, (struct command){.opcode = OP_READ, .count = 2, .ticket = 8},
                 (struct table_header){.head_count = 2},
                 ITEMS({.seq = 1, .epoch = 1, .n_tokens = 40},
                       {.seq = 1, .epoch = 1, .pos = 40, .n_tokens = 1})),
            INST_ESEQUENCE);
    rig_expect_content(&rig, 1, 0, 0, 0, 40);
    rig_close(&rig);
}

// More sequences than there are group buffers for: the drive pushes back and keeps nothing of it.
static void test_no_group_buffers(void **state)
{
    (void)state;
    struct rig_options o = small;
    struct drive_plan plan;
    struct flash_geometry g = rig_geometry(&o);
    struct rig rig;
    o.config.max_sequences = 2;
    o.config.max_tokens = 100;
    o.config.q_heads = o.q_heads;
    assert_int_equal(drive_plan(&plan, &g, &o.config, 0, NULL), 0);
    o.dram_bytes = plan.min_dram_bytes;
    rig_open(&rig, &o);
    uint32_t seq = 0;
    while (seq < 100 && !rig_write(&rig, seq, 0, 0, 0, 5, 0, 2))
        seq++;
    assert_true(seq >= 4 && seq < 100);
    for (uint32_t i = 0; i < 30; i++) {
        REFUSED(rig_write(&rig, 1000 + i, 0, 0, 0, 5, 0, 2), INST_ENORESOURCE);
        REFUSED(attend_items(&rig, 1, ITEMS({.seq = 1000 + i, .epoch = 1, .n_tokens = 1})),
                INST_ENORESOURCE);
        REFUSED(fork_items(&rig, 1, ITEMS({.seq = 1000, .epoch = 1, .pos = 5, .parent = i % 4})),
                INST_ENOENT);
    }
    // Of several new ones there would be room for the first.
    assert_int_equal(rig_reclaim(&rig, 0, 0, UINT64_MAX, 0, 2), 0);
    REFUSED(write_items(&rig, 3, 2,
                        ITEMS({.seq = 500, .epoch = 1, .n_tokens = 5},
                              {.seq = 501, .epoch = 1, .n_tokens = 5},
                              {.seq = 502, .epoch = 1, .n_tokens = 5})),
            INST_ENORESOURCE);
    // Who was there goes on to the end that was planned.
    for (uint64_t pos = 5; pos < 100; pos += 5)
        assert_int_equal(rig_write(&rig, 1, 0, 0, pos, 5, 0, 2), 0);
    rig_expect_content(&rig, 1, 0, 0, 0, 100);
    rig_close(&rig);
}

// A WRITE that is longer than what the flash still holds stores none of it.
static void test_no_flash(void **state)
{
    (void)state;
    struct rig_options o = small;
    struct rig rig;
    o.blocks = 6;
    o.pages_per_block = 17; // a row is one page: 16 rows and a summary page
    rig_open(&rig, &o);
    assert_int_equal(rig_write(&rig, 1, 0, 0, 0, 16 * GROUP, 0, 2), 0); // a block
    REFUSED(rig_write(&rig, 1, 0, 0, 16 * GROUP, 5 * 16 * GROUP + 1, 0, 2), INST_ENOSPC);
    REFUSED(rig_write(&rig, 2, 0, 0, 0, 5 * 16 * GROUP + 1, 0, 2), INST_ENOSPC);
    assert_int_equal(rig_write(&rig, 1, 0, 0, 16 * GROUP, 5 * 16 * GROUP, 0, 2), 0);
    REFUSED(attend_items(&rig, 1, ITEMS({.seq = 3, .epoch = 1, .n_tokens = 1})), INST_ENOSPC);
    rig_expect_content(&rig, 1, 0, 0, 0, 6 * 16 * GROUP);
    rig_close(&rig);
}

static void test_repeated(void **state)
{
    (void)state;
    struct rig rig;
    uint64_t group;
    rig_open(&rig, &small);
    assert_int_equal(rig_write_all(&rig, 1, 0, 0, 40), 0);
    const struct table_item forks[] = {
        {.seq = 2, .epoch = 1, .pos = 30, .parent = 1, .parent_epoch = 1},
        {.seq = 3, .epoch = 4, .pos = 0, .parent = 1, .parent_epoch = 1},
        {.seq = 2, .epoch = 1, .pos = 30, .parent = 1, .parent_epoch = 1},
    };
    assert_int_equal(fork_items(&rig, 3, forks), 0);
    assert_int_equal(stats_of(&rig).sequences, 3);
    assert_int_equal(rig_write_all(&rig, 2, 2, 30, 10), 0);
    REFUSED(fork_items(&rig, 3, forks), 0);
    // Also when the parent has gone meanwhile.
    const struct table_item end = {.seq = 1, .epoch = 1, .n_tokens = UINT64_MAX, .layer_count = 2};
    assert_int_equal(reclaim_items(&rig, 1, &end), 0);
    REFUSED(fork_items(&rig, 3, forks), 0);
    REFUSED(reclaim_items(&rig, 1, &end), 0);
    // The number is another sequence's now.
    assert_int_equal(write_items(&rig, 1, 2, ITEMS({.seq = 1, .epoch = 2, .n_tokens = 3})), 0);
    REFUSED(reclaim_items(&rig, 1, &end), 0);
    REFUSED(config_space(&rig, 1, &rig.config, &group), 0);
    assert_int_equal(group, GROUP);
    rig_expect_content(&rig, 2, 0, 1, 0, 30);
    rig_expect_content(&rig, 2, 2, 1, 30, 10);
    rig_close(&rig);
}

static void test_remove_space(void **state)
{
    (void)state;
    for (uint32_t method = METHOD_DENSE; method <= METHOD_SPARF; method++) {
        struct rig_options o = small;
        struct rig rig;
        struct space_config other = {.layers = 3,
                                     .kv_heads = 1,
                                     .head_dim = 32,
                                     .group_tokens = 16,
                                     .max_sequences = 3,
                                     .max_tokens = 900,
                                     .q_heads = 2,
                                     .method = method};
        o.dram_bytes = 8 << 20;
        rig_open(&rig, &o);
        assert_int_equal(rig_write_all(&rig, 1, 0, 0, 40), 0);
        assert_int_equal(remove_space(&rig, 2), 0); // a repetition, as far as anybody knows
        uint64_t live = stats_of(&rig).live_bytes, first = 0;
        for (int round = 0; round < 20; round++) {
            assert_int_equal(config_space(&rig, 2, &other, NULL), 0);
            struct command command = {
                .opcode = OP_WRITE, .space = 2, .count = 1, .length = sizeof data};
            uint8_t table[128];
            table_put_header(table, &(struct table_header){.head_count = 1});
            table_put_item(table, 0, &(struct table_item){.seq = 7, .epoch = 1, .n_tokens = 850});
            for (command.layer = 0; command.layer < 3; command.layer++)
                assert_int_equal(rig_call(&rig, &command, table, data, NULL), 0);
            // Tickets: one READ that nobody collects, one ATTEND that is done.
            command = (struct command){.opcode = OP_READ, .space = 2, .count = 1, .ticket = 1};
            assert_int_equal(rig_call(&rig, &command, table, NULL, NULL), 0);
            struct attend_layout layout;
            attend_layout(&layout, 1, 2, 1, 32, false);
            memset(data, 0, layout.in_bytes);
            table_put_header(table,
                             &(struct table_header){.method = method, .q_heads = 2, .scale = 1});
            table_put_item(table, 0, &(struct table_item){.seq = 7, .epoch = 1, .pos = 850});
            command = (struct command){.opcode = OP_ATTEND,
                                       .space = 2,
                                       .count = 1,
                                       .ticket = 2,
                                       .length = (uint32_t)layout.in_bytes};
            assert_int_equal(rig_call(&rig, &command, table, data, NULL), 0);
            assert_int_equal(remove_space(&rig, 2), 0);
            assert_int_equal(rig_call(&rig, &command, table, data, NULL), INST_ENOENT);
            command = (struct command){
                .opcode = OP_COLLECT, .ticket = 2, .length = sizeof data, .timeout_ms = 1};
            assert_int_equal(rig_call(&rig, &command, NULL, data, NULL), 0);
            command.ticket = 1;
            assert_int_equal(rig_call(&rig, &command, NULL, data, NULL), INST_ETIMEOUT);
            struct drive_stats stats = stats_of(&rig);
            assert_int_equal(stats.live_bytes, live);
            assert_int_equal(stats.sequences, 1);
            if (!round)
                first = stats.dram_used_bytes;
            assert_int_equal(stats.dram_used_bytes, first);
        }
        rig_expect_content(&rig, 1, 0, 0, 0, 40);
        assert_int_equal(remove_space(&rig, 1), 0);
        assert_int_equal(stats_of(&rig).live_bytes, 0);
        rig_close(&rig);
    }
}

// Spaces are promised DRAM until there is no more; each gets all that it was promised.
static void test_promises(void **state)
{
    (void)state;
    struct rig_options o = small;
    struct rig rig;
    struct space_config config = {.layers = 2,
                                  .kv_heads = 2,
                                  .head_dim = 16,
                                  .group_tokens = GROUP,
                                  .max_sequences = 1,
                                  .max_tokens = 20000,
                                  .q_heads = 4};
    uint32_t spaces = 1;
    o.config = config;
    o.dram_bytes = 8 << 20;
    rig_open(&rig, &o);
    while (spaces < 200 && !config_space(&rig, spaces + 1, &config, NULL))
        spaces++;
    assert_true(spaces > 1 && spaces < 200);
    unsigned long long left, needed;
    assert_int_equal(sscanf(rig.text,
                            "CONFIG: %llu bytes of DRAM are left, this space needs at least %llu",
                            &left, &needed),
                     2);
    assert_true(left < needed);
    REFUSED(config_space(&rig, 900, &config, NULL), INST_ENOMEM);
    uint8_t table[128];
    for (uint32_t id = 1; id <= spaces; id++)
        for (uint64_t pos = 0; pos < 20000; pos += 1000)
            for (uint32_t layer = 0; layer < 2; layer++) {
                table_put_header(table, &(struct table_header){.head_count = 2});
                table_put_item(
                    table, 0,
                    &(struct table_item){.seq = 1, .epoch = 1, .pos = pos, .n_tokens = 1000});
                struct command command = {.opcode = OP_WRITE,
                                          .space = id,
                                          .layer = layer,
                                          .count = 1,
                                          .length = sizeof data};
                assert_int_equal(rig_call(&rig, &command, table, data, NULL), 0);
            }
    // One that ends makes room for another one.
    assert_int_equal(remove_space(&rig, 2), 0);
    assert_int_equal(config_space(&rig, 900, &config, NULL), 0);
    REFUSED(config_space(&rig, 901, &config, NULL), INST_ENOMEM);
    rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_malformed),    cmocka_unit_test(test_no_group_buffers),
        cmocka_unit_test(test_no_flash),     cmocka_unit_test(test_repeated),
        cmocka_unit_test(test_remove_space), cmocka_unit_test(test_promises),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
