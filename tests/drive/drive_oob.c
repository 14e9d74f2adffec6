// SPDX-License-Identifier: Apache-2.0
// What the FTL keeps in OOB: a record with each page, programmed with it, so that flash alone says
// whose pages it holds. After a drive is gone without a word, a scan of all programmed pages finds
// every row that it had, each page under its own checksum, also where programs failed and rows lie
// twice. Flash with OOB needs no summary pages.
#include "drive_harness.h"

#include "drive/flash/nand_flash.h"
#include "drive/ftl/frame.h"
#include "drive/ftl/segment.h"

#include <stdlib.h>
#include <string.h>

enum {
    PAGE = 4096,
    LAYERS = 2,
    HEADS = 2,
    DIM = 64,
    GROUP = 64,
    ROW_PAGES = HEADS * DIM * GROUP * 4 / PAGE,
    SEQUENCES = 3,
    GROUPS = 40, // of a sequence
    TAIL = 17,   // tokens that fill no group
};

static struct flash_nand_options nand_options(void)
{
    struct flash_nand_options o = {.profile.time = {.channels = 2,
                                                    .dies = 2,
                                                    .planes = 1,
                                                    .page_bytes = PAGE,
                                                    .spare_bytes = 218,
                                                    .pages_per_block = 32,
                                                    .read_ns = 1000,
                                                    .program_ns = 3000,
                                                    .erase_ns = 10000,
                                                    .command_ns = 20,
                                                    .bus = 100000000000,
                                                    .registers = 2},
                                   .profile.size_bytes = 64 << 20,
                                   .name = "tests"};
    return o;
}

static void open_rig(struct rig *rig, const struct flash_nand_options *nand,
                     const struct flash_fault_plan *faults)
{
    const struct rig_options o = {
        .config = {.layers = LAYERS, .kv_heads = HEADS, .head_dim = DIM, .group_tokens = GROUP},
        .q_heads = HEADS,
        .nand = nand,
        .pages_per_block = 32,
        .dies = 4,
        .blocks = 512,
        .faults = faults,
    };
    rig_open(rig, &o);
}

// Copies of each page of the map, as flash tells it.
struct found {
    uint8_t copies[SEQUENCES + 1][LAYERS][GROUPS][ROW_PAGES];
    unsigned pages, torn; // torn: data and record do not agree
};

static int read_page(struct flash *flash, uint64_t *now, struct flash_io *io)
{
    flash->ops->submit(flash, io, *now);
    while (!flash->ops->poll(flash, *now))
        *now = flash->ops->next_ns ? flash->ops->next_ns(flash) : *now + 1000;
    return io->status;
}

static void scan(struct flash *flash, uint64_t now, struct found *found)
{
    static _Alignas(PAGE) unsigned char data[PAGE];
    uint8_t record[PAGE_RECORD_BYTES];
    memset(found, 0, sizeof *found);
    for (uint64_t b = 0; b < flash->geometry.blocks; b++) {
        for (uint32_t p = 0; p < flash->geometry.pages_per_block; p++) {
            struct flash_io io = {.block = b, .page = p, .pages = 1, .data = data, .oob = record};
            struct page_identity id;
            uint64_t sum;
            int status = read_page(flash, &now, &io);
            if (status == INST_EINVAL) // not programmed
                break;
            assert_int_equal(status, 0);
            page_record_read(record, &id, &sum);
            found->pages++;
            if (page_checksum(&id, data, PAGE) != sum) {
                found->torn++;
                continue;
            }
            assert_true(id.space == 1 && id.seq >= 1 && id.seq <= SEQUENCES && id.layer < LAYERS);
            assert_true(id.stream == 0 && id.group < GROUPS && id.page < ROW_PAGES);
            found->copies[id.seq][id.layer][id.group][id.page]++;
        }
    }
}

static void expect_rows(const struct found *f, uint32_t seq, bool once)
{
    for (uint32_t l = 0; l < LAYERS; l++)
        for (uint32_t g = 0; g < GROUPS; g++)
            for (uint32_t p = 0; p < ROW_PAGES; p++)
                if (!f->copies[seq][l][g][p] || (once && f->copies[seq][l][g][p] != 1))
                    fail_msg("sequence %u layer %u group %u page %u: %u copies", seq, l, g, p,
                             f->copies[seq][l][g][p]);
}

// The drive is gone as it is; flash is read by who knows nothing of it.
static void cut(struct rig *rig, struct found *found)
{
    drive_close(rig->drive);
    scan(rig->flash, rig->now_ns, found);
    flash_close(rig->flash);
    pool_free(rig->pool);
}

static void test_scan(void **state)
{
    (void)state;
    struct flash_nand_options nand = nand_options();
    struct rig rig;
    struct drive_stats stats;
    static struct found found;
    open_rig(&rig, &nand, NULL);
    for (uint32_t s = 1; s <= SEQUENCES; s++)
        assert_int_equal(rig_write_all(&rig, s, s, 0, GROUPS * GROUP + TAIL), 0);
    rig_stats(&rig, &stats);
    uint64_t rows = (uint64_t)SEQUENCES * LAYERS * GROUPS;
    assert_int_equal(stats.flash_program_bytes, rows * ROW_PAGES * PAGE); // no summaries
    // A sequence that ends leaves nothing behind once its blocks are erased.
    assert_int_equal(rig_reclaim(&rig, 2, 0, UINT64_MAX, 0, LAYERS), 0);
    rig_stats(&rig, &stats);
    assert_true(stats.flash_erased_blocks > 0);
    cut(&rig, &found);
    assert_int_equal(found.torn, 0);
    expect_rows(&found, 1, true);
    expect_rows(&found, 3, true);
    assert_int_equal(found.pages, 2 * LAYERS * GROUPS * ROW_PAGES);
}

static void test_failed_programs(void **state)
{
    (void)state;
    struct flash_nand_options nand = nand_options();
    const struct flash_fault_plan plan = {.seed = 5, .program_error = 30000};
    struct rig rig;
    struct drive_stats stats;
    static struct found found;
    open_rig(&rig, &nand, &plan);
    for (uint32_t s = 1; s <= SEQUENCES; s++)
        assert_int_equal(rig_write_all(&rig, s, s, 0, GROUPS * GROUP + TAIL), 0);
    rig_stats(&rig, &stats);
    assert_true(flash_fault_count(rig.flash) > 10 && stats.replaced_rows > 10);
    for (uint32_t s = 1; s <= SEQUENCES; s++)
        rig_expect_content(&rig, s, s, 1, 0, GROUPS * GROUP + TAIL);
    cut(&rig, &found);
    for (uint32_t s = 1; s <= SEQUENCES; s++)
        expect_rows(&found, s, false);
}

// The same work without OOB: summaries are programmed behind the data.
static void test_without(void **state)
{
    (void)state;
    struct flash_nand_options nand = nand_options();
    nand.profile.time.spare_bytes = FLASH_OOB_BYTES - 1; // ECC takes it all
    struct rig rig;
    struct drive_stats stats;
    open_rig(&rig, &nand, NULL);
    assert_false(rig.flash->geometry.oob);
    assert_int_equal(rig_write_all(&rig, 1, 1, 0, GROUPS * GROUP), 0);
    rig_stats(&rig, &stats);
    assert_true(stats.flash_program_bytes > (uint64_t)LAYERS * GROUPS * ROW_PAGES * PAGE);
    rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_scan),
                                       cmocka_unit_test(test_failed_programs),
                                       cmocka_unit_test(test_without)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
