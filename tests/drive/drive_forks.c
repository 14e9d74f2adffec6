// SPDX-License-Identifier: Apache-2.0
// Forks share maps by reference: what each sequence sees, what it costs, and what an end costs.
#include "drive_harness.h"

#include <stdlib.h>
#include <string.h>

enum { GROUP = 16 };

static uint64_t draw(uint64_t *state, uint64_t below)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (*state >> 33) % below;
}

// ---- contents ----------------------------------------------------------------------------------

enum { SEQUENCES = 8, TOKENS = 1200, HOLE = UINT32_MAX };

struct family {
    struct rig rig;
    uint64_t random, length[SEQUENCES];
    uint32_t epoch[SEQUENCES], content[SEQUENCES][TOKENS], next;
};

static int fork_to(struct family *f, uint32_t parent, uint32_t child, uint64_t at)
{
    uint8_t table[128];
    table_put_header(table, &(struct table_header){0});
    table_put_item(table, 0,
                   &(struct table_item){
                       .seq = child, .epoch = 1, .pos = at, .parent = parent, .parent_epoch = 1});
    return rig_call(&f->rig, &(struct command){.opcode = OP_FORK, .space = 1, .count = 1}, table,
                    NULL, NULL);
}

static void check_tokens(struct family *f, uint32_t s, uint64_t first, uint64_t n)
{
    uint32_t content = f->content[s][first];
    if (content != HOLE) {
        rig_expect_content(&f->rig, s, content, 0, first, n);
        return;
    }
    uint16_t token[64];
    assert_int_equal(rig_read(&f->rig, s, 0, first, 1, 0, 1, token), INST_ENOENT);
}

static void check_all(struct family *f)
{
    for (uint32_t s = 0; s < SEQUENCES; s++)
        for (uint64_t t = 0, n; t < f->length[s]; t += n) {
            for (n = 1; t + n < f->length[s] && f->content[s][t + n] == f->content[s][t]; n++)
                ;
            check_tokens(f, s, t, n);
        }
}

static void append(struct family *f, uint32_t s)
{
    uint64_t n = 1 + draw(&f->random, 150);
    n = n < TOKENS - f->length[s] ? n : TOKENS - f->length[s];
    // A group that was given up cannot be continued.
    if (!n || (f->length[s] % GROUP && f->content[s][f->length[s] - 1] == HOLE))
        return;
    assert_int_equal(rig_write_all(&f->rig, s, ++f->next, f->length[s], n), 0);
    while (n--)
        f->content[s][f->length[s]++] = f->next;
}

static void punch(struct family *f, uint32_t s)
{
    uint64_t rows = f->length[s] / GROUP;
    if (rows < 3)
        return;
    uint64_t first = draw(&f->random, rows - 1), n = 1 + draw(&f->random, rows - 1 - first);
    assert_int_equal(rig_reclaim(&f->rig, s, first * GROUP, n * GROUP, 0, 1), 0);
    for (uint64_t t = first * GROUP; t < (first + n) * GROUP; t++)
        f->content[s][t] = HOLE;
}

static void round_of(struct family *f)
{
    uint32_t s = (uint32_t)draw(&f->random, SEQUENCES), to = (uint32_t)draw(&f->random, SEQUENCES);
    uint64_t n = f->length[s], at = draw(&f->random, 3) ? n : draw(&f->random, n + 1);
    switch (draw(&f->random, 8)) {
    case 0:
    case 1:
        if (f->length[to] || !at)
            return;
        assert_int_equal(fork_to(f, s, to, at), 0);
        memcpy(f->content[to], f->content[s], sizeof f->content[0]);
        f->length[to] = at;
        return;
    case 2:
        if (!n)
            return;
        f->length[s] = draw(&f->random, n);
        assert_int_equal(rig_reclaim(&f->rig, s, f->length[s], UINT64_MAX, 0, 1), 0);
        return;
    case 3:
        punch(f, s);
        return;
    default:
        append(f, s);
    }
}

static void test_contents(void **state)
{
    (void)state;
    for (uint32_t dies = 1; dies <= 3; dies += 2) {
        struct family *f = calloc(1, sizeof *f);
        struct rig_options o = {
            .config = {.layers = 1,
                       .kv_heads = 1,
                       .head_dim = 16,
                       .group_tokens = GROUP,
                       .max_sequences = SEQUENCES,
                       .max_tokens = TOKENS},
            .q_heads = 1,
            .page_bytes = 512,
            .pages_per_block = 40,
            .dies = dies,
            .blocks = 600,
        };
        struct drive_stats stats;
        f->random = dies;
        rig_open(&f->rig, &o);
        for (int i = 0; i < 1500; i++) {
            round_of(f);
            if (i % 50 == 0) {
                check_all(f);
                rig_stats(&f->rig, &stats); // walks over the invariants
            }
        }
        for (uint32_t s = 0; s < SEQUENCES; s++)
            assert_int_equal(rig_reclaim(&f->rig, s, 0, UINT64_MAX, 0, 1), 0);
        rig_stats(&f->rig, &stats);
        assert_int_equal(stats.live_bytes, 0);
        assert_int_equal(stats.allocated_bytes, 0);
        rig_close(&f->rig);
        free(f);
    }
}

// ---- costs -------------------------------------------------------------------------------------

enum { LAYERS = 4, LONG = 1 << 18, CHUNK = 1 << 15 };

// One long sequence over flash that keeps nothing. What its maps take is beyond what the space was
// promised, so that it shows in dram_used_bytes.
static void open_long(struct rig *rig, uint32_t method)
{
    struct flash_geometry g = {.page_bytes = 4096,
                               .pages_per_block = 1024,
                               .blocks = 1024,
                               .dies = 1,
                               .channels = 1,
                               .read_bytes = 4096,
                               .no_data = true};
    *rig = (struct rig){.q_heads = 1,
                        .config = {.layers = LAYERS,
                                   .kv_heads = 1,
                                   .head_dim = 8,
                                   .group_tokens = GROUP,
                                   .max_sequences = 1,
                                   .max_tokens = GROUP,
                                   .q_heads = 1,
                                   .method = method}};
    struct drive_limits limits = {.dram_bytes = 256 << 20, .no_row_cache = true};
    assert_int_equal(pool_new(&rig->pool, 1, NULL), 0);
    limits.pool = rig->pool;
    assert_int_equal(flash_null_open(&rig->flash, &g, NULL), 0);
    assert_int_equal(drive_open(&rig->drive, rig->flash, &limits, NULL), 0);
    uint8_t table[128];
    space_config_encode(table, &rig->config);
    assert_int_equal(
        rig_call(rig, &(struct command){.opcode = OP_CONFIG, .space = 1}, table, NULL, NULL), 0);
    uint8_t *data = aligned_alloc(64, CHUNK * 32);
    memset(data, 0, CHUNK * 32);
    for (uint64_t pos = 0; pos < LONG; pos += CHUNK)
        for (uint32_t layer = 0; layer < LAYERS; layer++) {
            table_put_header(table, &(struct table_header){.head_count = 1});
            table_put_item(
                table, 0,
                &(struct table_item){.seq = 1, .epoch = 1, .pos = pos, .n_tokens = CHUNK});
            struct command command = {
                .opcode = OP_WRITE, .space = 1, .layer = layer, .count = 1, .length = CHUNK * 32};
            assert_int_equal(rig_call(rig, &command, table, data, NULL), 0);
        }
    free(data);
}

static struct drive_stats stats_now(struct rig *rig)
{
    uint8_t table[STAT_TABLE_BYTES] __attribute__((aligned(64)));
    struct drive_stats stats;
    struct command command = {.opcode = OP_STAT, .length = sizeof table};
    assert_int_equal(rig_call(rig, &command, NULL, table, NULL), 0);
    stats_decode(&stats, table, sizeof table);
    return stats;
}

static void test_costs(void **state)
{
    (void)state;
    static const uint64_t at[] = {LONG, LONG / 2, LONG - 7 * GROUP, 3 * GROUP};
    for (uint32_t method = METHOD_DENSE; method <= METHOD_SPARF; method++) {
        struct rig rig;
        struct drive_stats before, after;
        open_long(&rig, method);
        rig_stats(&rig, &before);
        assert_true(before.dram_used_bytes > LAYERS * (LONG / GROUP) * 32);
        for (uint32_t i = 0; i < sizeof at / sizeof *at; i++) {
            assert_int_equal(rig_fork(&rig, 1, 2 + i, at[i]), 0);
            after = stats_now(&rig);
            uint64_t cost = after.dram_used_bytes - before.dram_used_bytes;
            if (cost > LAYERS * 8192 + 8192)
                fail_msg("a fork at %llu takes %llu bytes", (unsigned long long)at[i],
                         (unsigned long long)cost);
            before = after;
        }
        // The longest one ends; what its forks share stays, and so it does when these are cut.
        uint64_t live = before.live_bytes;
        assert_int_equal(rig_reclaim(&rig, 1, 0, UINT64_MAX, 0, LAYERS), 0);
        rig_stats(&rig, &after);
        assert_int_equal(after.live_bytes, live);
        assert_int_equal(rig_reclaim(&rig, 2, 0, UINT64_MAX, 0, LAYERS), 0);
        assert_int_equal(rig_reclaim(&rig, 4, 9 * GROUP, UINT64_MAX, 0, LAYERS), 0);
        rig_stats(&rig, &after);
        assert_true(after.live_bytes <= live / 2 + live / 16);
        // Half of it is one sequence's now. Its end is quick; rows go in slices.
        live = after.live_bytes;
        assert_int_equal(rig_reclaim(&rig, 3, 0, UINT64_MAX, 0, LAYERS), 0);
        uint64_t now, most = 0;
        unsigned steps = 0;
        do {
            struct completion done;
            drive_step(rig.drive, rig.now_ns += 1000, &done, 1);
            now = stats_now(&rig).live_bytes;
            most = most > live - now ? most : live - now;
            steps += now != live;
            live = now;
        } while (live > 64 * 1024);
        if (steps < 5 || most > 4096 * (method ? 4096 : GROUP * 32))
            fail_msg("%u slices, the largest of %llu bytes", steps, (unsigned long long)most);
        rig_close(&rig);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_contents),
        cmocka_unit_test(test_costs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
