// SPDX-License-Identifier: Apache-2.0
// Where the pages of rows lie: page i of a segment's row r on die (i + r) mod dies, within a die
// one after another, so that programs in the order of rows meet every block's pages in order and
// fill it.
#include "drive/ftl/segment.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

enum { PAGE = 512, PAGES = 97, DIES_MOST = 70 };

static void expect_stripes(uint32_t dies, uint32_t row_pages)
{
    struct flash_geometry g = {.page_bytes = PAGE,
                               .pages_per_block = PAGES,
                               .blocks = 4ull * dies,
                               .dies = dies,
                               .channels = 1,
                               .read_bytes = PAGE};
    uint32_t capacity = segment_capacity(&g, row_pages), next[DIES_MOST] = {0};
    uint32_t data = PAGES - segment_summary_pages(&g);
    struct budget budget;
    struct flash *flash;
    struct segments *segments;
    struct frontier frontier;
    bool wait;
    assert_true(capacity > 0);
    budget_init(&budget, 1 << 30);
    assert_int_equal(flash_null_open(&flash, &g, NULL), 0);
    assert_int_equal(segments_open(&segments, flash, &budget, NULL), 0);
    frontier_init(segments, &frontier, row_pages, 1);
    uint32_t first = 0;
    for (uint32_t r = 0; r < capacity; r++) {
        struct place place;
        assert_int_equal(segments_reserve(segments, &frontier, 1, &wait), 0);
        assert_int_equal(segments_place(segments, &frontier, &place, NULL), 0);
        first = r ? first : place.segment;
        assert_int_equal(place.segment, first);
        assert_int_equal(place.row, r);
        for (uint32_t i = 0; i < row_pages; i++) {
            uint64_t block;
            uint32_t page, die = (i + r) % dies;
            segments_address(segments, place, i, &block, &page);
            if (block != (uint64_t)first * dies + die || page != next[die])
                fail_msg("%u dies, rows of %u pages: page %u of row %u lies on block %llu page %u",
                         dies, row_pages, i, r, (unsigned long long)block, page);
            next[die]++;
        }
    }
    for (uint32_t die = 0; die < dies; die++)
        assert_true(next[die] <= data);
    // One row more would not fit.
    uint32_t most = 0;
    for (uint32_t i = 0; i < row_pages; i++)
        next[(i + capacity) % dies]++;
    for (uint32_t die = 0; die < dies; die++)
        most = next[die] > most ? next[die] : most;
    assert_true(most > data);
    segments_end(segments, &frontier);
    segments_close(segments);
    flash_close(flash);
    assert_int_equal(budget.used, 0);
}

static void test_stripes(void **state)
{
    (void)state;
    for (uint32_t dies = 1; dies <= DIES_MOST; dies += dies < 12 ? 1 : 29)
        for (uint32_t row_pages = 1; row_pages <= 90; row_pages += row_pages < 20 ? 1 : 23)
            expect_stripes(dies, row_pages);
}

// A full segment is closed once nobody looks at it. With OOB that takes no operation, so that no
// other event tells who waits for it, as a FLUSH does.
static void test_closing(void **state)
{
    (void)state;
    const struct flash_geometry g = {.page_bytes = PAGE,
                                     .pages_per_block = PAGES,
                                     .blocks = 4,
                                     .dies = 1,
                                     .channels = 1,
                                     .read_bytes = PAGE};
    struct budget budget;
    struct flash *flash;
    struct segments *segments;
    struct frontier frontier;
    struct place place;
    bool wait;
    budget_init(&budget, 1 << 30);
    assert_int_equal(flash_null_open(&flash, &g, NULL), 0);
    flash->geometry.oob = true; // emulated NAND alone has it
    assert_int_equal(segments_open(&segments, flash, &budget, NULL), 0);
    frontier_init(segments, &frontier, 1, 1);
    for (uint32_t r = 0; r < segment_capacity(&flash->geometry, 1); r++) {
        assert_int_equal(segments_reserve(segments, &frontier, 1, &wait), 0);
        assert_int_equal(segments_place(segments, &frontier, &place, NULL), 0);
    }
    segments_pin(segments, place);
    assert_false(segments_busy(segments)); // nothing can go on
    assert_false(segments_pump(segments, 0, false));
    segments_unpin(segments, place);
    assert_true(segments_busy(segments));
    assert_true(segments_pump(segments, 0, false));
    assert_false(segments_busy(segments));
    assert_false(segments_in_flight(segments));
    assert_false(segments_pump(segments, 0, false));
    segments_end(segments, &frontier);
    segments_close(segments);
    flash_close(flash);
    assert_int_equal(budget.used, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stripes),
        cmocka_unit_test(test_closing),
    };
    return cmocka_run_group_tests_name("ftl_segment", tests, NULL, NULL);
}
