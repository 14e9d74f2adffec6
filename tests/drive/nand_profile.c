// SPDX-License-Identifier: Apache-2.0
// [flash] and [wear] of profiles: those that come along are what their comments say, and what does
// not fit together is refused.
#include "drive/flash/nand_profile.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>

static struct profile profile;

static void test_known(void **state)
{
    (void)state;
    struct inst_msg msg = {0};
    struct nand_profile nand;
    struct flash_geometry g;
    size_t n = 0;
    for (size_t i = 0; profile_builtin_name(i); i++) {
        if (profile_open(&profile, profile_builtin_name(i), &msg))
            fail_msg("%s", msg.text);
        if (!profile_has(&profile, "flash"))
            continue;
        n++;
        if (nand_profile_read(&nand, &profile, &msg) || nand_profile_geometry(&nand, 0, &g, &msg))
            fail_msg("%s", msg.text);
        double bytes = (double)g.blocks * g.pages_per_block * g.page_bytes;
        assert_true(bytes > 0.99 * (double)nand.size_bytes && bytes <= (double)nand.size_bytes);
        // The dies of a channel read as fast as it carries: else the bus means nothing.
        double dies = (double)(nand.time.dies * nand.time.planes * nand.time.page_bytes) /
                      (1e-9 * (double)nand.time.read_ns);
        assert_true(dies > (double)nand.time.bus);
        assert_true(g.oob); // room for what the FTL says of a page
    }
    assert_true(n >= 4);
    assert_int_equal(profile_open(&profile, "instcsd-zynq7045", &msg), 0);
    assert_int_equal(nand_profile_read(&nand, &profile, &msg), 0);
    assert_int_equal(nand.time.channels * nand.time.bus, 11200000000);
    assert_int_equal(nand.time.page_bytes, 4096);
    assert_int_equal(nand.wear.endurance, 3000);
    assert_int_equal(nand_profile_geometry(&nand, 1 << 30, &g, &msg), 0);
    assert_int_equal(g.blocks, 1024);
    assert_int_equal(g.dies, 256);
    assert_int_equal(nand_profile_geometry(&nand, (256 << 20) - 1, &g, &msg), INST_EINVAL);
    assert_non_null(strstr(msg.text, "one block of each of 256 planes are 268435456"));
}

static void test_refused(void **state)
{
    (void)state;
    static const char base[] = "instinfer profile 1\n[flash]\nchannels = 2\ndies = 2\nplanes = 1\n"
                               "page = 4 KiB\npages_per_block = 16\nsize = 1 GB\nread = 50 us\n"
                               "program = 500 us\nerase = 3 ms\nbus = 1 GB/s\n";
    static const struct {
        const char *more, *message;
    } cases[] = {
        {"", NULL},
        {"[wear]\nendurance = 3000\n", NULL},
        {"registers = 3\n", "x: [flash]: NAND: registers: 3 is not in 1 to 2"},
        {"spare = 8 KiB\n", "x: [flash]: NAND: spare: 8192 is not in 0 to 4096"},
        {"suspend = 1 us\n", "x: [flash]: NAND: suspend needs suspends"},
        {"port = 7 GB\n", "x:13: port: '7 GB' is not a rate, like 1.4 GB/s"},
        {"planes = 2\n", "x:13: 'planes' is said twice"},
        {"ways = 2\n", "x:13: [flash] knows no 'ways'"},
        {"[wear]\n bad_blocks = 1 %\n", "x: [wear] lacks 'endurance'"},
        {"[wear]\nendurance = 0\n", "x:14: endurance: '0' is less than 1"},
        {"[wear]\nendurance = 3000\nbad_blocks = 1 %\n", "x: [wear]: spare_blocks is less"},
        {"[wear]\nendurance = 3000\nretries_aged = 1\n", "x: [wear]: retries_aged needs"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[1024];
        struct inst_msg msg = {0};
        struct nand_profile nand;
        snprintf(text, sizeof text, "%s%s", base, cases[i].more);
        int err = profile_parse(&profile, "x", text, strlen(text), &msg);
        err = err ? err : nand_profile_read(&nand, &profile, &msg);
        assert_int_equal(err, cases[i].message ? INST_EINVAL : 0);
        if (err && strncmp(msg.text, cases[i].message, strlen(cases[i].message)) != 0)
            fail_msg("case %zu: %s", i, msg.text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_known),
                                       cmocka_unit_test(test_refused)};
    return cmocka_run_group_tests_name("nand_profile", tests, NULL, NULL);
}
