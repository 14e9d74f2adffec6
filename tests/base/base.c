// SPDX-License-Identifier: Apache-2.0
#include "base/budget.h"
#include "base/checked.h"
#include "base/le.h"
#include "base/size.h"
#include "base/status.h"

#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <cmocka.h>
#include <string.h>

static void test_status(void **state)
{
    (void)state;
    struct inst_msg msg = {0};
    assert_int_equal(inst_fail(&msg, INST_EIO, "file %s at %d", "a", 7), INST_EIO);
    assert_string_equal(msg.text, "file a at 7");
    inst_fail(&msg, INST_EINVAL, "a later failure"); // the first failure is the cause
    assert_string_equal(msg.text, "file a at 7");
    assert_int_equal(inst_fail(NULL, INST_ENOMEM, "nobody listens"), INST_ENOMEM);
    assert_string_equal(inst_status_text(0), "success");
    assert_string_equal(inst_status_text(-12345), "unknown status");
#define CHECK(name, number, text, nvme)                                                            \
    assert_int_equal(inst_status_from_nvme(inst_status_to_nvme(name)), name);                      \
    assert_string_equal(inst_status_text(name), text);
    INST_STATUS_MAP(CHECK)
#undef CHECK
    assert_int_equal(inst_status_from_nvme(0x123), INST_EINTERNAL);
}

static void test_checked(void **state)
{
    (void)state;
    uint64_t r = 5;
    assert_false(checked_add(UINT64_MAX, 1, &r));
    assert_int_equal(r, 5);
    assert_true(checked_add(UINT64_MAX - 1, 1, &r));
    assert_true(r == UINT64_MAX);
    assert_false(checked_mul(1ull << 32, 1ull << 32, &r));
    assert_true(checked_mul(1ull << 32, (1ull << 32) - 1, &r));
    assert_false(checked_round_up(UINT64_MAX - 3, 64, &r));
    assert_true(checked_round_up(65, 64, &r));
    assert_int_equal(r, 128);
    assert_int_equal(div_round_up(0, 7), 0);
    assert_true(div_round_up(UINT64_MAX, 2) == 1ull << 63);
}

static void test_little_endian(void **state)
{
    (void)state;
    uint8_t b[16] = {0};
    le_put64(b + 1, 0x0102030405060708u);
    assert_int_equal(b[1], 8);
    assert_int_equal(b[8], 1);
    assert_true(le_get64(b + 1) == 0x0102030405060708u);
    assert_int_equal(le_get32(b + 1), 0x05060708);
    assert_int_equal(le_get16(b + 2), 0x0607);
}

static void test_budget(void **state)
{
    (void)state;
    struct budget budget;
    struct inst_msg msg = {0};
    budget_init(&budget, 1 << 20);
    uint8_t *small = budget_alloc(&budget, 10, 100, "small", &msg);
    uint8_t *large = budget_alloc(&budget, 1, 500000, "large", &msg);
    assert_non_null(small);
    assert_non_null(large);
    assert_int_equal((uintptr_t)small % 64, 0);
    assert_int_equal((uintptr_t)large % 4096, 0);
    for (int i = 0; i < 1000; i++)
        assert_int_equal(small[i], 0);
    large[499999] = 1;
    assert_null(budget_alloc(&budget, 1, 600000, "the third thing", &msg));
    assert_non_null(strstr(msg.text, "the third thing needs"));
    msg.text[0] = 0;
    assert_null(budget_alloc(&budget, UINT64_MAX / 2, 3, "an overflow", &msg));
    assert_non_null(strstr(msg.text, "overflows"));
    assert_null(budget_alloc(&budget, UINT64_MAX, 1, "an overflow", NULL));
    uint64_t used = budget.used;
    budget_free(&budget, large);
    budget_free(&budget, NULL);
    assert_true(budget.used < used - 500000 + 8192);
    assert_true(budget.peak == used);
    void *page = budget_alloc_pages(&budget, 100, "a page", NULL);
    assert_int_equal((uintptr_t)page % 4096, 0);
    budget_free(&budget, page);
    budget_free(&budget, small);
    assert_int_equal(budget.used, 0);
}

// From small to mapped, larger, and back: what was there stays, and what is counted is what is
// held.
static void test_resize(void **state)
{
    (void)state;
    struct budget budget;
    struct inst_msg msg = {{0}};
    budget_init(&budget, 1 << 20);
    const uint64_t sizes[] = {10, 100, 60000, 70000, 500000, 900000, 500000, 70000, 10};
    uint8_t *p = NULL;
    uint64_t kept = 0;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        p = budget_resize(&budget, p, sizes[i], "text", &msg);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % 64, 0);
        kept = kept < sizes[i] ? kept : sizes[i];
        for (uint64_t k = 0; k < kept; k++)
            if (p[k] != (uint8_t)(k * 7))
                fail_msg("byte %llu after %llu", (unsigned long long)k,
                         (unsigned long long)sizes[i]);
        for (uint64_t k = 0; k < sizes[i]; k++)
            p[k] = (uint8_t)(k * 7);
        kept = sizes[i];
        assert_true(budget.used >= sizes[i] && budget.used < sizes[i] + 8192);
    }
    // 900,000 bytes grew from 500,000 without both being there.
    assert_true(budget.peak < 910000);
    assert_null(budget_resize(&budget, p, 1 << 21, "text", &msg));
    assert_non_null(strstr(msg.text, "text needs"));
    p = budget_resize(&budget, p, 100000, "text", NULL);
    assert_null(budget_resize(&budget, p, 1 << 21, "text", NULL));
    assert_null(budget_resize(&budget, p, UINT64_MAX, "text", NULL));
    assert_int_equal(p[9], 63);
    budget_free(&budget, p);
    assert_int_equal(budget.used, 0);
}

// A reservation is the part's own; beyond it a part competes with all others.
static void test_budget_parts(void **state)
{
    (void)state;
    struct budget whole, a, b;
    struct inst_msg msg = {0};
    budget_init(&whole, 1000);
    budget_init_part(&a, &whole);
    budget_init_part(&b, &whole);
    assert_int_equal(budget_reserve(&a, 600, "part a", &msg), 0);
    assert_int_equal(whole.used, 600);
    assert_int_equal(budget_reserve(&b, 500, "part b", &msg), INST_ENOMEM);
    assert_non_null(strstr(msg.text, "part b needs 500 bytes, but only 400"));
    assert_int_equal(b.reserved, 0);
    assert_int_equal(budget_take(&b, 400, "b", NULL), 0);
    assert_int_equal(budget_take(&b, 1, "b", NULL), INST_ENOMEM);
    assert_int_equal(b.used, 400);
    // What is reserved is there although the whole is used up.
    assert_int_equal(budget_take(&a, 600, "a", NULL), 0);
    assert_int_equal(whole.used, 1000);
    assert_int_equal(budget_take(&a, 1, "a", NULL), INST_ENOMEM);
    assert_int_equal(a.used, 600);
    budget_give(&b, 300);
    assert_int_equal(whole.used, 700);
    assert_int_equal(budget_take(&a, 200, "a", NULL), 0);
    assert_int_equal(whole.used, 900);
    budget_give(&a, 500); // 200 of them were not reserved
    assert_int_equal(whole.used, 700);
    // A smaller and a larger reservation, around what is used.
    assert_int_equal(budget_reserve(&a, 100, "a", NULL), 0);
    assert_int_equal(whole.used, 400);
    assert_int_equal(budget_reserve(&a, 1000, "a", NULL), INST_ENOMEM);
    assert_int_equal(budget_reserve(&a, 900, "a", NULL), 0);
    assert_int_equal(whole.used, 1000);
    budget_give(&a, 300);
    budget_give(&b, 100);
    assert_int_equal(budget_reserve(&a, 0, "a", NULL), 0);
    assert_int_equal(whole.used, 0);
    assert_int_equal(whole.peak, 1000);
}

static void test_size(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        size_t bytes; // 0: all of it
        int status;
        uint64_t value;
    } cases[] = {
        {"0", 0, 0, 0},
        {"1", 0, 0, 1},
        {"512K", 0, 0, 512 << 10},
        {"64m", 0, 0, 64 << 20},
        {"2G@1G", 2, 0, 2ull << 30},
        {"1T", 0, 0, 1ull << 40},
        {"2.5K", 0, 0, 2560},
        {"0.25g", 0, 0, 256 << 20},
        {"1.125M", 0, 0, (1 << 20) + (1 << 17)},
        {"16777215T", 0, 0, 16777215ull << 40},
        {"18446744073709551615", 0, INST_EINVAL, 0}, // 20 digits
        {"9999999999999999999", 0, 0, 9999999999999999999ull},
        {"16777216T", 0, INST_ERANGE, 0},
        {"99999999999999999K", 0, INST_ERANGE, 0},
        {"", 0, INST_EINVAL, 0},
        {"K", 0, INST_EINVAL, 0},
        {"-1", 0, INST_EINVAL, 0},
        {" 1", 0, INST_EINVAL, 0},
        {"1 ", 0, INST_EINVAL, 0},
        {"1KB", 0, INST_EINVAL, 0},
        {"1.", 0, INST_EINVAL, 0},
        {"1.K", 0, INST_EINVAL, 0},
        {".5K", 0, INST_EINVAL, 0},
        {"1.5", 0, INST_EINVAL, 0},
        {"1.1234K", 0, INST_EINVAL, 0},
        {"1X", 0, INST_EINVAL, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint64_t value = 0;
        const char *text = cases[i].text;
        size_t bytes = cases[i].bytes ? cases[i].bytes : strlen(text);
        if (size_parse(text, bytes, &value) != cases[i].status || value != cases[i].value)
            fail_msg("'%s'", text);
    }
}

static void sizes_read_well(void **state)
{
    (void)state;
    char text[SIZE_TEXT_BYTES];
    assert_string_equal(size_text(100, text), "100 bytes");
    assert_string_equal(size_text(1536, text), "1.5K");
    assert_string_equal(size_text(300 << 20, text), "300M");
    assert_string_equal(size_text(1023, text), "1023 bytes");
    assert_string_equal(size_text((uint64_t)5 << 40, text), "5.0T");
    assert_string_equal(size_text(UINT64_MAX, text), "16.0E");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_read_well),   cmocka_unit_test(test_status),
        cmocka_unit_test(test_checked),      cmocka_unit_test(test_little_endian),
        cmocka_unit_test(test_budget),       cmocka_unit_test(test_resize),
        cmocka_unit_test(test_budget_parts), cmocka_unit_test(test_size),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
