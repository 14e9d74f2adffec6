// SPDX-License-Identifier: Apache-2.0
// What the row cache and reading ahead do to the bytes that come from flash: counted, not timed.
// The shape is that of a model of 1 B parameters made small: many layers, rows of several pages,
// decode that goes through all layers again and again, prefill that reads back what came before.
#include "drive_harness.h"
#include "flash_harness.h"
#include "tests/needs.h"

#include <stdlib.h>
#include <string.h>

enum {
    LAYERS = 12,
    HEADS = 2,
    Q_HEADS = 4,
    DIM = 32,
    GROUP = 32,
    ROW_BYTES = HEADS * DIM * GROUP * 4,
    TOKENS = 512, // of a sequence
    KV_BYTES = LAYERS * (TOKENS / GROUP) * ROW_BYTES,
    STEPS = 12,
};

enum room { ROOM_OFF, ROOM_ALL, ROOM_HALF, ROOM_EIGHTH, ROOMS, ROOM_LEAST };

static const char *const room_names[ROOMS] = {"off", "all", "1/2", "1/8"};

// A drive with a row cache for so much of K and V; LEAST: none, and no DRAM that it can do without.
static void open_with(struct rig *rig, enum room room, uint32_t sequences)
{
    static const uint32_t shares[ROOMS] = {0, 1, 2, 8};
    struct rig_options o = {
        .config = {.layers = LAYERS,
                   .kv_heads = HEADS,
                   .head_dim = DIM,
                   .group_tokens = GROUP,
                   .max_sequences = sequences,
                   .max_tokens = TOKENS + 64,
                   .q_heads = Q_HEADS},
        .q_heads = Q_HEADS,
        .threads = 2,
        .pages_per_block = 66,
        .ram_rate = UINT64_C(1000000000000), // no views
        .row_cache = room == ROOM_ALL || room == ROOM_HALF || room == ROOM_EIGHTH,
    };
    struct flash_geometry g = rig_geometry(&o);
    struct drive_plan plan;
    assert_int_equal(drive_plan(&plan, &g, &o.config, 0, NULL), 0);
    o.dram_bytes = room == ROOM_LEAST ? plan.min_dram_bytes : plan.full_dram_bytes;
    if (o.row_cache)
        o.row_cache_bytes = sequences * (uint64_t)KV_BYTES / shares[room];
    rig_open(rig, &o);
}

static uint64_t read_bytes(struct rig *rig)
{
    struct drive_stats stats;
    rig_stats(rig, &stats);
    return stats.flash_read_bytes;
}

// Prefill: chunks of `chunk` tokens; each reads what came before it, layer by layer.
static uint64_t prefill(struct rig *rig, uint32_t seq, uint64_t chunk)
{
    static uint16_t earlier[TOKENS * HEADS * DIM * 2];
    uint64_t start = read_bytes(rig);
    for (uint64_t pos = 0; pos < TOKENS; pos += chunk)
        for (uint32_t l = 0; l < LAYERS; l++) {
            for (uint64_t at = 0; at < pos; at += 128) // in pieces
                assert_int_equal(rig_read(rig, seq, l, at, 128, 0, HEADS, earlier), 0);
            assert_int_equal(rig_write(rig, seq, seq, l, pos, chunk, 0, HEADS), 0);
        }
    return read_bytes(rig) - start;
}

// One token of each of n sequences; lengths[seq] says how many they have.
static void step_at(struct rig *rig, const uint32_t *seqs, uint32_t n, const uint64_t *lengths)
{
    struct rig_query queries[8];
    static float out[8 * Q_HEADS * DIM], lse[8 * Q_HEADS];
    for (uint32_t l = 0; l < LAYERS; l++) {
        for (uint32_t i = 0; i < n; i++)
            queries[i] = (struct rig_query){
                .seq = seqs[i], .content = seqs[i], .pos = lengths[seqs[i]], .append = true};
        assert_int_equal(rig_attend(rig, l, queries, n, out, lse), 0);
        for (uint32_t i = 0; i < n; i++)
            assert_int_equal(queries[i].status, 0);
    }
    if (lengths[seqs[0]] % 8 == 0)
        rig_expect_attention(rig, LAYERS - 1, &queries[n - 1], out + (n - 1) * Q_HEADS * DIM,
                             lse + (n - 1) * Q_HEADS);
}

static uint64_t decode(struct rig *rig, uint32_t seq)
{
    uint64_t start = read_bytes(rig);
    for (uint64_t i = 0; i < STEPS; i++)
        step_at(rig, &seq, 1, (uint64_t[]){TOKENS + i, TOKENS + i});
    return read_bytes(rig) - start;
}

static void test_budgets(void **state)
{
    (void)state;
    uint64_t prefilled[ROOMS], decoded[ROOMS];
    for (enum room b = 0; b < ROOMS; b++) {
        struct rig rig;
        open_with(&rig, b, 1);
        prefilled[b] = prefill(&rig, 1, 128);
        decoded[b] = decode(&rig, 1);
        struct drive_stats s;
        rig_stats(&rig, &s);
        print_message("row cache %s: prefill read %.3f of what it reads without, decode %.3f; %.2f "
                      "of KV in the cache\n",
                      room_names[b], (double)prefilled[b] / (double)prefilled[0],
                      (double)decoded[b] / (double)decoded[0], (double)s.cached_bytes / KV_BYTES);
        rig_close(&rig);
    }
    assert_true(prefilled[ROOM_ALL] == 0 && decoded[ROOM_ALL] == 0);
    assert_true(10 * prefilled[ROOM_HALF] <= 6 * prefilled[0]);
    assert_true(10 * decoded[ROOM_HALF] <= 6 * decoded[0]);
    assert_true(100 * prefilled[ROOM_EIGHTH] <= 95 * prefilled[0]);
    assert_true(100 * decoded[ROOM_EIGHTH] <= 95 * decoded[0]);
}

// ---- a whole drive's DRAM ----------------------------------------------------------------------

enum { WHOLE_STEPS = 6 };

// A model of 1 B parameters at 8K tokens, 256 MiB of KV, in a drive of so much DRAM for everything,
// group buffers and what keeps the device busy included. Bytes read by a few decode steps.
static uint64_t whole_drive(uint64_t dram, bool row_cache)
{
    enum { SHAPE_LAYERS = 16, SHAPE_HEADS = 8, SHAPE_DIM = 64, CONTEXT = 8192, CHUNK = 512 };
    struct rig rig;
    struct rig_options o = {
        .config = {.layers = SHAPE_LAYERS,
                   .kv_heads = SHAPE_HEADS,
                   .head_dim = SHAPE_DIM,
                   .max_sequences = 1,
                   .max_tokens = CONTEXT + 64,
                   .q_heads = SHAPE_HEADS},
        .q_heads = SHAPE_HEADS,
        .threads = 2,
        .dram_bytes = dram,
        .page_bytes = 16384,
        .ram_rate = UINT64_C(1000000000000),
        .row_cache = row_cache,
    };
    struct flash_geometry g;
    assert_int_equal(drive_geometry_for(&g, &o.config, 0, dram, NULL), 0);
    o.pages_per_block = g.pages_per_block;
    o.blocks = g.blocks;
    rig_open(&rig, &o);
    uint64_t bytes;
    slab_bytes(SHAPE_HEADS, CHUNK, SHAPE_DIM, &bytes);
    uint16_t *data = aligned_alloc(64, bytes);
    for (size_t i = 0; i < bytes / sizeof *data; i++)
        data[i] = rig_value(&rig, 1, 0, 0, i, 0, false);
    uint8_t table[128] __attribute__((aligned(64)));
    table_put_header(table, &(struct table_header){.head_count = SHAPE_HEADS});
    for (uint64_t pos = 0; pos < CONTEXT; pos += CHUNK)
        for (uint32_t l = 0; l < SHAPE_LAYERS; l++) {
            table_put_item(
                table, 0,
                &(struct table_item){.seq = 1, .epoch = 1, .pos = pos, .n_tokens = CHUNK});
            struct command write = {
                .opcode = OP_WRITE, .space = 1, .layer = l, .count = 1, .length = (uint32_t)bytes};
            if (rig_call(&rig, &write, table, data, NULL))
                fail_msg("%s", rig.text);
        }
    free(data);
    static float out[SHAPE_HEADS * SHAPE_DIM], lse[SHAPE_HEADS];
    uint64_t start = read_bytes(&rig);
    for (uint64_t i = 0; i < WHOLE_STEPS; i++)
        for (uint32_t l = 0; l < SHAPE_LAYERS; l++) {
            struct rig_query query = {.seq = 1, .content = 1, .pos = CONTEXT + i, .append = true};
            assert_int_equal(rig_attend(&rig, l, &query, 1, out, lse), 0);
        }
    uint64_t read = read_bytes(&rig) - start;
    rig_close(&rig);
    return read;
}

static void test_whole_drive(void **state)
{
    (void)state;
    if (SANITIZED)
        leave_out("a row cache of real size: a sanitizer is too slow");
    const uint64_t kv = 256 << 20;
    const double needed = (double)kv * WHOLE_STEPS;
    double off = (double)whole_drive(kv / 2, false) / needed;
    double half = (double)whole_drive(kv / 2, true) / needed;
    double eighth = (double)whole_drive(kv / 8, true) / needed;
    print_message("read of all KV: without a cache %.3f, with DRAM of half the KV %.3f, of an "
                  "eighth %.3f\n",
                  off, half, eighth);
    // Reading ahead gives its rows up where frames are short, and begins where the next ones lie.
    assert_true(off <= 1.02);
    assert_true(half <= 0.62 && eighth <= 0.99);
}

// ---- reading ahead -----------------------------------------------------------------------------

enum { ALTERNATING, TOGETHER, COMING_AND_GOING, WAYS };
enum { ROUNDS = 48 };

static const char *const way_names[WAYS] = {"in turn", "together", "coming and going"};

// Decode steps of several sequences; returns the bytes that they need: all rows on flash.
static uint64_t run_way(struct rig *rig, int way)
{
    uint64_t length[8], needed = 0;
    for (uint32_t s = 0; s < 8; s++)
        length[s] = TOKENS;
    for (uint32_t round = 0; round < ROUNDS; round++) {
        uint32_t seqs[8], n = 0;
        if (way == ALTERNATING) { // 1 and 2, then 3, then 1 and 2
            seqs[n++] = round % 2 ? 3 : 1;
            if (round % 2 == 0)
                seqs[n++] = 2;
        } else {
            for (uint32_t s = 1; s <= 3; s++)
                if (way == TOGETHER || (round / 3 + s) % 3)
                    seqs[n++] = s;
        }
        for (uint32_t i = 0; i < n; i++)
            needed += (uint64_t)LAYERS * (length[seqs[i]] / GROUP) * ROW_BYTES;
        step_at(rig, seqs, n, length);
        for (uint32_t i = 0; i < n; i++)
            length[seqs[i]]++;
    }
    return needed;
}

// Micro-batches that take turns, and sequences that join and leave: nothing is read in vain, with
// plenty of DRAM and with the least.
static void test_read_ahead(void **state)
{
    (void)state;
    for (int scarce = 0; scarce < 2; scarce++)
        for (int way = 0; way < WAYS; way++) {
            struct rig rig;
            struct drive_stats before, after;
            open_with(&rig, scarce ? ROOM_LEAST : ROOM_OFF, 3);
            for (uint32_t s = 1; s <= 3; s++)
                assert_int_equal(rig_write_all(&rig, s, s, 0, TOKENS), 0);
            rig_stats(&rig, &before);
            uint64_t needed = run_way(&rig, way);
            rig_stats(&rig, &after);
            double share =
                (double)(after.flash_read_bytes - before.flash_read_bytes) / (double)needed;
            print_message("%s, %s memory: read %.3f of what is needed, %llu rows ahead, %llu of "
                          "them used\n",
                          way_names[way], scarce ? "the least" : "plenty of", share,
                          (unsigned long long)after.read_ahead_rows,
                          (unsigned long long)after.read_ahead_hits);
            assert_true(share >= 0.95 && share <= 1.05);
            assert_true(scarce || after.read_ahead_hits > after.read_ahead_rows / 2);
            rig_close(&rig);
        }
}

// ---- what gives way ----------------------------------------------------------------------------

enum { MANY = 8, LONG = 2000, NARROW = 64, PAGE = 4096, NARROW_LAYERS = 2 };

// What units of pages answer over more sequences than were planned, `spare` bytes of DRAM beyond
// the least; look: see space_config. Returns how many began when less than a row was left, as the
// cache had grown.
static unsigned attend_many(float *out, uint64_t spare, uint32_t look)
{
    struct rig rig;
    unsigned tight = 0;
    struct rig_options o = {
        .config = {.layers = NARROW_LAYERS,
                   .kv_heads = 1,
                   .head_dim = NARROW,
                   .group_tokens = 16, // a row is a page
                   .piece_tokens = 16,
                   .max_sequences = 2,
                   .max_tokens = LONG,
                   .q_heads = 1,
                   .piece_look = look,
                   .method = METHOD_PAGES},
        .q_heads = 1,
        .page_bytes = PAGE,
        .ram_rate = UINT64_C(1000000000000),
        .no_read_ahead = true,
        .row_cache = true,
    };
    struct flash_geometry g = rig_geometry(&o);
    struct drive_plan plan;
    struct drive_stats stats;
    assert_int_equal(drive_plan(&plan, &g, &o.config, 0, NULL), 0);
    o.dram_bytes = plan.min_dram_bytes + spare;
    rig_open(&rig, &o);
    rig.ratio = look ? 1.0f / 32 : 0;
    for (uint64_t pos = 0; pos < LONG; pos += 250)
        for (uint32_t s = 1; s <= MANY; s++)
            assert_int_equal(rig_write_all(&rig, s, s, pos, 250), 0);
    for (uint32_t s = 1; s <= MANY; s++)
        for (uint32_t l = 0; l < NARROW_LAYERS; l++, out += NARROW) {
            float lse;
            // Not the index's last piece: of the node that holds it a copy is made.
            struct rig_query query = {.seq = s, .content = s, .pos = LONG - 20};
            rig.method = METHOD_DENSE; // the rows go into the cache
            assert_int_equal(rig_attend(&rig, l, &query, 1, out, &lse), 0);
            rig_stats(&rig, &stats);
            tight += o.dram_bytes - stats.dram_used_bytes < PAGE;
            rig.method = METHOD_PAGES;
            assert_int_equal(rig_attend(&rig, l, &query, 1, out, &lse), 0);
        }
    rig_close(&rig);
    return tight;
}

// Indexes that need more than CONFIG promised, and a cache that has taken all that was left of DRAM
// but less than a row: less than it takes to hold an index while a unit looks at it. Units start
// all the same, as the cache gives way to them.
static void test_gives_way(void **state)
{
    (void)state;
    static float scarce[MANY * NARROW_LAYERS * NARROW], plenty[MANY * NARROW_LAYERS * NARROW];
    assert_true(attend_many(scarce, 1792 << 10, 0) > 0);
    assert_int_equal(attend_many(plenty, 64 << 20, 0), 0);
    assert_memory_equal(scarce, plenty, sizeof scarce);
}

// The same of clusters of keys. Where the cache has nothing more to give those of other sequences
// go, and are made again.
static void test_clusters_give_way(void **state)
{
    (void)state;
    static float scarce[MANY * NARROW_LAYERS * NARROW], plenty[MANY * NARROW_LAYERS * NARROW];
    static const uint64_t spare[] = {64 << 10, 384 << 10, 1 << 20};
    assert_int_equal(attend_many(plenty, 64 << 20, 64), 0);
    for (size_t i = 0; i < sizeof spare / sizeof *spare; i++) {
        assert_true(attend_many(scarce, spare[i], 64) > 0);
        assert_memory_equal(scarce, plenty, sizeof scarce);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_budgets),           cmocka_unit_test(test_whole_drive),
        cmocka_unit_test(test_read_ahead),        cmocka_unit_test(test_gives_way),
        cmocka_unit_test(test_clusters_give_way),
    };
    return cmocka_run_group_tests_name("drive_cache", tests, NULL, NULL);
}
