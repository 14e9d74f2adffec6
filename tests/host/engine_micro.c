// SPDX-License-Identifier: Apache-2.0
// The choice between one and two micro-batches: what turns out to be faster is kept, and found
// again when that changes.
#include "host/engine/micro.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <cmocka.h>

// n steps that take `one` or `two` seconds; how many of them were of two micro-batches.
static size_t steps(struct micro *m, size_t rows, size_t n, double one, double two)
{
    size_t twos = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t batches = micro_choose(m, rows);
        assert_in_range(batches, 1, 2);
        twos += batches == 2;
        micro_note(m, rows, batches, batches == 2 ? two : one);
    }
    return twos;
}

static void the_faster_way_is_kept(void **state)
{
    (void)state;
    struct micro m = {0};
    assert_int_equal(steps(&m, 8, 640, 2, 1), 640 - 30); // 3 of each cycle of 64
    m = (struct micro){0};
    assert_int_equal(steps(&m, 8, 640, 1, 2), 30);
    // A tie is no reason to change.
    m = (struct micro){0};
    assert_int_equal(steps(&m, 8, 640, 1, 0.99), 30);
    // It changes within two cycles.
    m = (struct micro){0};
    steps(&m, 8, 640, 1, 2);
    steps(&m, 8, 128, 2, 1);
    assert_in_range(steps(&m, 8, 640, 2, 1), 600, 640);
}

static void one_slow_step_decides_nothing(void **state)
{
    (void)state;
    struct micro m = {0};
    for (size_t i = 0; i < 640; i++) {
        uint32_t batches = micro_choose(&m, 8);
        double seconds = batches == 2 ? 1 : 2;
        micro_note(&m, 8, batches, i % 3 == 0 ? 50 : seconds); // the first of each trial, too
    }
    assert_int_equal(m.best, 2);
}

static void widths_are_learned_apart(void **state)
{
    (void)state;
    struct micro m = {0};
    steps(&m, 8, 64, 2, 1);
    assert_int_equal(m.best, 2);
    steps(&m, 15, 1, 2, 1); // of the same width
    assert_int_equal(m.best, 2);
    micro_choose(&m, 16);
    assert_int_equal(m.best, 1);
}

static void few_rows_and_orders(void **state)
{
    (void)state;
    struct micro m = {0};
    assert_int_equal(micro_choose(&m, 1), 1);
    assert_int_equal(micro_choose(&m, 0), 1);
    m.asked = 2;
    assert_int_equal(micro_choose(&m, 1), 1);
    assert_int_equal(steps(&m, 2, 100, 1, 9), 100);
    m.asked = 1;
    assert_int_equal(steps(&m, 2, 100, 9, 1), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_faster_way_is_kept),
        cmocka_unit_test(one_slow_step_decides_nothing),
        cmocka_unit_test(widths_are_learned_apart),
        cmocka_unit_test(few_rows_and_orders),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
