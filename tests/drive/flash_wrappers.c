// SPDX-License-Identifier: Apache-2.0
// The wrappers for tests are tested too: each fault does what it says, equal seeds give equal
// plans, the checker sees what breaks the contract.
#include "flash_harness.h"

#include <stdlib.h>
#include <string.h>

enum { PAGE = 4096, ALWAYS = 1000000 };
static const struct flash_geometry geometry = {.page_bytes = PAGE,
                                               .pages_per_block = 64,
                                               .blocks = 64,
                                               .dies = 4,
                                               .channels = 2,
                                               .read_bytes = 16384};

static struct flash *faulty(struct flash_fault_plan plan)
{
    struct flash *ram, *flash;
    assert_int_equal(flash_ram_open(&ram, &geometry, 0, NULL), 0);
    assert_int_equal(flash_fault_open(&flash, ram, &plan, NULL), 0);
    assert_null(flash->ops->view);
    return flash;
}

static void test_errors(void **state)
{
    (void)state;
    unsigned char *data = pages_new(4 * PAGE);
    // Two programs pass untouched, then everything fails.
    struct flash *flash = faulty((struct flash_fault_plan){.seed = 1,
                                                           .read_error = ALWAYS,
                                                           .program_error = ALWAYS,
                                                           .erase_error = ALWAYS,
                                                           .after = 2,
                                                           .count = 4});
    assert_int_equal(run_one(flash, FLASH_PROGRAM, 0, 0, 4, data), 0);
    assert_int_equal(run_one(flash, FLASH_PROGRAM, 1, 0, 1, data), 0);
    assert_int_equal(flash_fault_count(flash), 0);
    assert_int_equal(run_one(flash, FLASH_PROGRAM, 1, 1, 1, data), INST_EIO);
    assert_int_equal(run_one(flash, FLASH_READ, 0, 0, 4, data), INST_EIO);
    assert_int_equal(run_one(flash, FLASH_ERASE, 0, 0, 0, NULL), INST_EIO);
    assert_int_equal(run_one(flash, FLASH_SYNC, 0, 0, 0, NULL), 0);
    assert_int_equal(run_one(flash, FLASH_READ, 0, 0, 4, data), INST_EIO);
    assert_int_equal(flash_fault_count(flash), 4);
    // The count is used up. A failed program used its page; a failed erase left the block alone.
    assert_int_equal(run_one(flash, FLASH_PROGRAM, 1, 2, 1, data), 0);
    assert_int_equal(run_one(flash, FLASH_READ, 0, 0, 4, data), 0);
    assert_int_equal(run_one(flash, FLASH_PROGRAM, 0, 0, 1, data), INST_EINVAL);
    assert_int_equal(flash_fault_count(flash), 4);
    flash_close(flash);

    flash = faulty((struct flash_fault_plan){.seed = 1, .no_space = ALWAYS});
    assert_int_equal(run_one(flash, FLASH_PROGRAM, 0, 0, 4, data), INST_ENOSPC);
    assert_int_equal(run_one(flash, FLASH_READ, 0, 0, 4, data), 0);
    assert_int_equal(run_one(flash, FLASH_ERASE, 0, 0, 0, NULL), 0);
    flash_close(flash);
    free(data);
}

static size_t bits_changed(const unsigned char *a, const unsigned char *b, size_t bytes)
{
    size_t n = 0;
    for (size_t i = 0; i < bytes; i++)
        n += (size_t)__builtin_popcount((unsigned)(a[i] ^ b[i]));
    return n;
}

static void test_data_faults(void **state)
{
    (void)state;
    unsigned char *data = pages_new(4 * PAGE), *back = pages_new(4 * PAGE);
    for (unsigned i = 0; i < 4; i++)
        page_fill(data + i * PAGE, PAGE, i);
    struct flash *flash = faulty((struct flash_fault_plan){.seed = 3, .bit_flip = ALWAYS});
    assert_int_equal(run_one(flash, FLASH_PROGRAM, 0, 0, 4, data), 0);
    size_t places = 0, last = 0;
    for (unsigned i = 0; i < 100; i++) {
        assert_int_equal(run_one(flash, FLASH_READ, 0, 0, 4, back), 0); // reported as success
        assert_int_equal(bits_changed(data, back, 4 * PAGE), 1);
        size_t at = 0;
        while (data[at] == back[at])
            at++;
        places += at != last;
        last = at;
    }
    assert_true(places > 90);
    flash_close(flash);

    flash = faulty((struct flash_fault_plan){.seed = 3, .short_transfer = ALWAYS, .after = 1});
    assert_int_equal(run_one(flash, FLASH_PROGRAM, 0, 0, 4, data), 0);
    size_t cut = 0;
    for (unsigned i = 0; i < 100; i++) {
        memset(back, 0, 4 * PAGE);
        assert_int_equal(run_one(flash, FLASH_READ, 0, 0, 4, back), INST_EIO);
        cut += memcmp(back, data, 4 * PAGE) != 0;
    }
    assert_true(cut > 95);
    assert_int_equal(run_one(flash, FLASH_PROGRAM, 0, 4, 4, data), INST_EIO);
    assert_int_equal(run_one(flash, FLASH_PROGRAM, 0, 8, 4, data), INST_EIO); // pages used up
    flash_close(flash);
    free(data);
    free(back);
}

static void test_delay(void **state)
{
    (void)state;
    unsigned char *data = pages_new(PAGE);
    struct flash *flash = faulty((struct flash_fault_plan){.seed = 5, .delay = ALWAYS});
    uint64_t polls = 0;
    for (unsigned i = 0; i < 64; i++) {
        struct flash_io io = {.op = FLASH_PROGRAM, .page = i, .pages = 1, .data = data}, *done;
        flash->ops->submit(flash, &io, clock_ns());
        uint64_t n = 0;
        while (!(done = flash->ops->poll(flash, clock_ns()))) {
            flash->ops->wait(flash, 100000);
            assert_true(++n < 100);
        }
        assert_ptr_equal(done, &io);
        assert_int_equal(io.status, 0);
        assert_true(n >= 1);
        polls += n;
    }
    assert_true(polls > 4 * 64);
    struct flash_io left = {.op = FLASH_ERASE}; // closed while withheld: no leak
    flash->ops->submit(flash, &left, 0);
    assert_null(flash->ops->poll(flash, 0));
    flash_close(flash);
    free(data);
}

// The statuses of a fixed run under a plan, folded into one number.
static uint64_t fingerprint(uint64_t seed, uint64_t *faults)
{
    unsigned char *data = pages_new(PAGE);
    struct flash *flash = faulty((struct flash_fault_plan){.seed = seed,
                                                           .read_error = 50000,
                                                           .program_error = 50000,
                                                           .erase_error = 50000,
                                                           .short_transfer = 50000,
                                                           .no_space = 50000,
                                                           .bit_flip = 50000,
                                                           .delay = 50000});
    uint64_t sum = 0;
    for (unsigned i = 0; i < 64 * 64; i++) {
        int a = run_one(flash, FLASH_PROGRAM, i / 64, i % 64, 1, data);
        int b = run_one(flash, FLASH_READ, i / 64, i % 64, 1, data);
        int c = i % 64 == 63 ? run_one(flash, FLASH_ERASE, i / 64, 0, 0, NULL) : 0;
        sum = sum * 31 + (uint64_t)(a * 25 + b * 5 + c);
    }
    *faults = flash_fault_count(flash);
    flash_close(flash);
    free(data);
    return sum;
}

static void test_seeds(void **state)
{
    (void)state;
    uint64_t f1, f2, f3;
    uint64_t a = fingerprint(11, &f1), b = fingerprint(11, &f2), c = fingerprint(12, &f3);
    assert_int_equal(a, b);
    assert_int_equal(f1, f2);
    assert_int_not_equal(a, c);
    // 4096 programs and reads with four faults of 5 % each: 18.5 %.
    assert_in_range(f1, 1300, 1750);
}

static void test_check(void **state)
{
    (void)state;
    struct flash *ram, *fault, *flash;
    unsigned char *data = pages_new(2 * PAGE);
    assert_int_equal(flash_ram_open(&ram, &geometry, 0, NULL), 0);
    assert_int_equal(flash_check_open(&flash, ram, NULL), 0);
    assert_null(flash->ops->wait); // as below
    assert_int_equal(run_one(flash, FLASH_PROGRAM, 0, 0, 2, data), 0);
    assert_non_null(flash->ops->view(flash, 0, 1));
    assert_int_equal(flash_check_violations(flash), 0);
    assert_int_equal(run_one(flash, FLASH_PROGRAM, 0, 0, 1, data), INST_EINVAL); // not erased
    assert_int_equal(run_one(flash, FLASH_PROGRAM, 0, 3, 1, data), INST_EINVAL); // page skipped
    assert_int_equal(run_one(flash, FLASH_READ, 0, 2, 1, data), INST_EINVAL);
    assert_null(flash->ops->view(flash, 0, 2));
    assert_int_equal(flash_check_violations(flash), 4);
    assert_int_equal(run_one(flash, FLASH_ERASE, 0, 0, 0, NULL), 0);
    assert_int_equal(run_one(flash, FLASH_PROGRAM, 0, 0, 1, data), 0);
    assert_int_equal(flash_check_violations(flash), 4);
    flash_close(flash);

    // After a failed erase the block must be erased again.
    struct flash_fault_plan plan = {.seed = 1, .erase_error = ALWAYS, .count = 1};
    assert_int_equal(flash_ram_open(&ram, &geometry, 0, NULL), 0);
    assert_int_equal(flash_fault_open(&fault, ram, &plan, NULL), 0);
    assert_int_equal(flash_check_open(&flash, fault, NULL), 0);
    assert_null(flash->ops->view);
    assert_int_equal(run_one(flash, FLASH_PROGRAM, 0, 0, 1, data), 0);
    assert_int_equal(run_one(flash, FLASH_ERASE, 0, 0, 0, NULL), INST_EIO);
    assert_int_equal(run_one(flash, FLASH_PROGRAM, 0, 0, 1, data), INST_EINVAL);
    assert_int_equal(flash_check_violations(flash), 1);
    assert_int_equal(run_one(flash, FLASH_ERASE, 0, 0, 0, NULL), 0);
    assert_int_equal(run_one(flash, FLASH_PROGRAM, 0, 0, 1, data), 0);
    flash_close(flash);
    free(data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_errors), cmocka_unit_test(test_data_faults),
        cmocka_unit_test(test_delay),  cmocka_unit_test(test_seeds),
        cmocka_unit_test(test_check),
    };
    return cmocka_run_group_tests_name("flash_wrappers", tests, NULL, NULL);
}
