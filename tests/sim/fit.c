// SPDX-License-Identifier: Apache-2.0
// The committed constants are those that the fit finds, whatever it starts from; and there are no
// more of them than the evaluation allows itself.
#include "sim/paper.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

static void test_committed(void **state)
{
    (void)state;
    struct drive_memory *memory;
    assert_int_equal(drive_memory_new(&memory, NULL, NULL), 0);
    uint32_t fitted = 0, rows = 0;
    for (uint32_t i = 0; i < paper_rows(); i++)
        rows += paper_row_class(i) == ROW_FITTED;
    for (int turn = 0; turn < 2; turn++) {
        struct constants c;
        double rms;
        constants_default(&c);
        for (uint32_t i = 0; i < CONSTANT_COUNT && turn; i++)
            if (constant_infos[i].kind == CONSTANT_FITTED)
                *constant_at(&c, i) *= i % 2 ? 1.5 : 0.7;
        assert_int_equal(sim_fit(&c, &rms, drive_memory_source(memory), NULL), 0);
        fitted = 0;
        for (uint32_t i = 0; i < CONSTANT_COUNT; i++) {
            double is = constant_infos[i].value, now = *constant_at(&c, i);
            if (constant_infos[i].kind == CONSTANT_FITTED) {
                fitted++;
                if (fabs(now / is - 1) > 1e-3)
                    fail_msg("%s: %g is committed, the fit says %g", constant_infos[i].name, is,
                             now);
            } else {
                assert_true(now == is);
                assert_true(is >= constant_infos[i].least && is <= constant_infos[i].most);
            }
        }
        assert_true(rms < 0.1);
    }
    assert_true(fitted <= 6 && fitted < rows);
    drive_memory_free(memory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_committed)};
    return cmocka_run_group_tests_name("fit", tests, NULL, NULL);
}
