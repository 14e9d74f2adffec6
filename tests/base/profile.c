// SPDX-License-Identifier: Apache-2.0
// Profiles: what is understood, that whatever is not says file and line in one line, and that every
// number of those that come along has its source.
#include "base/profile.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#define HEAD "instinfer profile 1\n"

static struct profile profile;

static int parse(const char *text, struct inst_msg *msg)
{
    msg->text[0] = 0;
    return profile_parse(&profile, "x.profile", text, strlen(text), msg);
}

static void test_values(void **state)
{
    (void)state;
    struct inst_msg msg;
    uint64_t count, bytes, tb, k, read, days, rate, mib;
    double flops, hertz, number, share, ppm, missing = 7;
    const char *text;
    const struct profile_field fields[] = {
        {"count", PROFILE_COUNT, &count, 1, 10, false},
        {"bytes", PROFILE_BYTES, &bytes, 0, 0, false},
        {"tb", PROFILE_BYTES, &tb, 0, 0, false},
        {"k", PROFILE_BYTES, &k, 0, 0, false},
        {"read", PROFILE_NS, &read, 0, 0, false},
        {"days", PROFILE_NS, &days, 0, 0, false},
        {"rate", PROFILE_RATE, &rate, 0, 0, false},
        {"mib", PROFILE_RATE, &mib, 0, 0, false},
        {"flops", PROFILE_FLOPS, &flops, 0, 0, false},
        {"hertz", PROFILE_HERTZ, &hertz, 0, 0, false},
        {"number", PROFILE_NUMBER, &number, 0, 0, false},
        {"share", PROFILE_NUMBER, &share, 0, 1, false},
        {"ppm", PROFILE_NUMBER, &ppm, 0, 1, false},
        {"text", PROFILE_TEXT, &text, 0, 0, false},
        {"missing", PROFILE_NUMBER, &missing, 0, 0, true},
    };
    int err = parse(HEAD "# comment\n\n[flash]\r\n count=8\nbytes = 4 KiB # source\n"
                         "# above\ntb = 3.84 TB\nk = 16K\n\nread = 0.32 us\ndays = 30 days\n"
                         "rate = 1.4 GB/s\nmib = 2 MiB/s\nflops = 12.7 GFLOPS\nhertz = 285 MHz\n"
                         "number = 0.85\nshare = 12 %\nppm = 120 ppm\ntext = a b = c\n"
                         "[gpu]\ncount = 9",
                    &msg);
    assert_int_equal(err, 0);
    err = profile_read(&profile, "flash", fields, sizeof fields / sizeof *fields, &msg);
    if (err)
        fail_msg("%s", msg.text);
    assert_int_equal(count, 8);
    assert_int_equal(bytes, 4096);
    assert_int_equal(tb, 3840000000000);
    assert_int_equal(k, 16384);
    assert_int_equal(read, 320);
    assert_int_equal(days, 30ull * 86400 * 1000000000);
    assert_int_equal(rate, 1400000000);
    assert_int_equal(mib, 2 << 20);
    assert_true(flops == 12.7e9 && hertz == 285e6 && number == 0.85);
    assert_true(share > 0.1199 && share < 0.1201 && ppm > 0.000119 && ppm < 0.000121);
    assert_string_equal(text, "a b = c");
    assert_true(missing == 7);
    assert_false(profile.entries[0].sourced);
    assert_true(profile.entries[1].sourced);
    assert_true(profile.entries[2].sourced);
    assert_true(profile.entries[3].sourced); // the same comment
    assert_false(profile.entries[4].sourced);
    assert_true(profile_has(&profile, "gpu"));
    assert_false(profile_has(&profile, "link"));
    char at[PROFILE_PLACE_MAX + 64];
    assert_string_equal(profile_at(&profile, "gpu", "count", at), "x.profile:22: count");
    assert_int_equal(profile_read(&profile, "link", fields, 0, &msg), INST_ENOENT);
}

static void test_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"", "x.profile: an empty profile"},
        {HEAD "# nothing\n", "x.profile: an empty profile"},
        {"# a\n" HEAD, "x.profile:1: not a profile: it does not begin 'instinfer profile 1'"},
        {"instinfer profile 2\n", "x.profile:1: not a profile"},
        {HEAD "[flush]\n", "x.profile:2: '[flush]' is not a section that is known"},
        {HEAD "[flash\n", "x.profile:2: '[flash' is not a [section]"},
        {HEAD "read = 1 us\n", "x.profile:2: 'read' stands in front of the first [section]"},
        {HEAD "[flash]\nread\n", "x.profile:3: 'read' is neither [section] nor key = value"},
        {HEAD "[flash]\nRead = 1 us\n", "x.profile:3: 'Read' is not a key"},
        {HEAD "[flash]\nread = # 1 us\n", "x.profile:3: 'read' has no value"},
        {HEAD "[flash]\nread = 1 us\n\nread = 2 us\n", "x.profile:5: 'read' is said twice"},
        {HEAD "[flash]\nread = 1\x01\n", "x.profile:3: not a text file"},
    };
    struct inst_msg msg;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(parse(cases[i].text, &msg), INST_EINVAL);
        if (strncmp(msg.text, cases[i].message, strlen(cases[i].message)) != 0)
            fail_msg("case %zu: %s", i, msg.text);
    }
    char many[8192] = HEAD "[flash]\n";
    for (int i = 0; i <= PROFILE_ENTRIES_MAX; i++)
        snprintf(many + strlen(many), sizeof many - strlen(many), "k%d = 1\n", i);
    assert_int_equal(parse(many, &msg), INST_EINVAL);
    assert_string_equal(msg.text, "x.profile:195: 'k192' is one key too many");
}

static void test_bad_values(void **state)
{
    (void)state;
    static const struct {
        enum profile_kind kind;
        const char *value;
        const char *message; // NULL: fine
    } cases[] = {
        {PROFILE_COUNT, "8", NULL},
        {PROFILE_COUNT, "11", "x.profile:3: k: '11' is more than 10"},
        {PROFILE_COUNT, "0", "x.profile:3: k: '0' is less than 1"},
        {PROFILE_COUNT, "-1", "x.profile:3: k: '-1' is not a whole number, like 8"},
        {PROFILE_COUNT, "1.5", "x.profile:3: k: '1.5' is not a whole number, like 8"},
        {PROFILE_COUNT, "0x8", "is not a whole number"},
        {PROFILE_COUNT, "8 B", "is not a whole number"},
        {PROFILE_NS, "8", "is not a time, like 50 us or 30 days"},
        {PROFILE_NS, "0.5 ns", "is not a time"},
        {PROFILE_NS, "8 u s", "is not a time"},
        {PROFILE_NS, "1. us", "is not a time"},
        {PROFILE_NS, ".1 us", "is not a time"},
        {PROFILE_NS, "1e3 us", "is not a time"},
        {PROFILE_NS, "inf", "is not a time"},
        {PROFILE_RATE, "1.4 GB", "is not a rate, like 1.4 GB/s"},
        {PROFILE_BYTES, "99999999999 TB", "is not a size, like 4 KiB or 2 TB"},
        {PROFILE_BYTES, "9999999999999999", "is not a size"},
        {PROFILE_NUMBER, "1,5", "is not a number"},
        {PROFILE_NUMBER, "5 %", "is less than 1"},
    };
    struct inst_msg msg;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[128];
        union {
            uint64_t whole;
            double number;
        } out;
        const struct profile_field field = {"k", cases[i].kind, &out, 1, 10, false};
        snprintf(text, sizeof text, HEAD "[gpu]\nk = %s\n", cases[i].value);
        assert_int_equal(parse(text, &msg), 0);
        int err = profile_read(&profile, "gpu", &field, 1, &msg);
        assert_int_equal(err, cases[i].message ? INST_EINVAL : 0);
        if (err && !strstr(msg.text, cases[i].message))
            fail_msg("case %zu: %s", i, msg.text);
    }
    uint64_t a;
    const struct profile_field field = {"a", PROFILE_COUNT, &a, 0, 0, false};
    assert_int_equal(parse(HEAD "[gpu]\nb = 1\n", &msg), 0);
    assert_int_equal(profile_read(&profile, "gpu", &field, 1, &msg), INST_EINVAL);
    assert_string_equal(msg.text, "x.profile:3: [gpu] knows no 'b'");
    assert_int_equal(parse(HEAD "[gpu]\n[flash]\nb = 1\n", &msg), 0);
    assert_int_equal(profile_read(&profile, "gpu", &field, 1, &msg), INST_ENOENT);
    msg.text[0] = 0;
    assert_int_equal(profile_read(&profile, "flash", NULL, 0, &msg), INST_EINVAL);
    assert_int_equal(parse(HEAD "[gpu]\nc = 1\n", &msg), 0);
    const struct profile_field both[] = {{"c", PROFILE_COUNT, &a, 0, 0, false}, field};
    assert_int_equal(profile_read(&profile, "gpu", both, 2, &msg), INST_EINVAL);
    assert_string_equal(msg.text, "x.profile: [gpu] lacks 'a'");
}

static void test_files(void **state)
{
    (void)state;
    struct inst_msg msg = {0};
    assert_int_equal(profile_open(&profile, "no-such", &msg), INST_ENOENT);
    assert_non_null(strstr(msg.text, "instcsd-zynq7045"));
    msg.text[0] = 0;
    assert_int_equal(profile_open(&profile, "/no/such", &msg), INST_ENOENT);
    assert_string_equal(msg.text, "/no/such: No such file or directory");
    msg.text[0] = 0;
    assert_int_equal(profile_open(&profile, "/", &msg), INST_EIO);
    msg.text[0] = 0;
    assert_int_equal(profile_open(&profile, "/dev/zero", &msg), INST_EINVAL);
    // As a name, and as the file that it was made of.
    static struct profile file;
    char path[512];
    size_t n = 0;
    for (const char *name; (name = profile_builtin_name(n)); n++) {
        snprintf(path, sizeof path, "%s/profiles/%s.profile", INST_SOURCE_DIR, name);
        if (profile_open(&profile, name, &msg) || profile_open(&file, path, &msg))
            fail_msg("%s", msg.text);
        assert_int_equal(profile.n, file.n);
        for (size_t i = 0; i < profile.n; i++) {
            assert_string_equal(profile.entries[i].value, file.entries[i].value);
            if (!profile.entries[i].sourced)
                fail_msg("%s:%u: %s has no source", path, file.entries[i].line,
                         file.entries[i].key);
        }
    }
    assert_true(n >= 4);
    assert_null(profile_builtin_name(n + 5));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_bad_values),
        cmocka_unit_test(test_files),
    };
    return cmocka_run_group_tests_name("profile", tests, NULL, NULL);
}
