// SPDX-License-Identifier: Apache-2.0
// The UTF-8 stream: Unicode's own examples, every two-byte string, and cuts at every place.
#include "host/model/text.h"

#include <setjmp.h>
#include <stdbool.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void check(const char *in, size_t n, const char *expected)
{
    char out[256];
    for (size_t cut = 0; cut <= n; cut++) {
        struct text_stream s = {{0}, 0};
        size_t m = text_stream_push(&s, in, cut, out);
        m += text_stream_push(&s, in + cut, n - cut, out + m);
        m += text_stream_end(&s, out + m);
        out[m] = 0;
        assert_string_equal(out, expected);
    }
}

#define R "\xef\xbf\xbd"

static void test_examples(void **state)
{
    (void)state;
    check("plain", 5, "plain");
    check("\xf0\x9f\x98\x80", 4, "\xf0\x9f\x98\x80");
    check("a\xc3\xa9z", 4, "a\xc3\xa9z");
    // Tables 3-8 to 3-11 of the Unicode standard.
    check("\xc0\xaf\xe0\x80\xbf\xf0\x81\x82\x41", 9, R R R R R R R R "A");
    check("\xed\xa0\x80\xed\xbf\xbf\xed\xaf\x41", 9, R R R R R R R R "A");
    check("\xf4\x91\x92\x93\xff\x41\x80\xbf\x42", 9, R R R R R "A" R R "B");
    check("\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41", 9, R R R R "A");
    check("\xf0\x9f\x98", 3, R);
    check("\xe2\x82", 2, R);
    check("\xc3\xc3\xa9", 3, R "\xc3\xa9");
}

// Nothing comes out before it is whole.
static void test_holds_back(void **state)
{
    (void)state;
    struct text_stream s = {{0}, 0};
    char out[64];
    assert_int_equal(text_stream_push(&s, "\xf0", 1, out), 0);
    assert_int_equal(text_stream_push(&s, "\x9f\x98", 2, out), 0);
    assert_int_equal(text_stream_push(&s, "\x80", 1, out), 4);
    assert_int_equal(text_stream_end(&s, out), 0);
}

// Every two bytes: the output is valid, and equals the input where that was valid.
static void test_pairs(void **state)
{
    (void)state;
    for (unsigned v = 0; v < 65536; v++) {
        unsigned char in[2] = {(unsigned char)(v >> 8), (unsigned char)v};
        char out[64];
        struct text_stream s = {{0}, 0};
        size_t n = text_stream_push(&s, (const char *)in, 2, out);
        n += text_stream_end(&s, out + n);
        for (size_t i = 0; i < n;) {
            int length = text_utf8_length((unsigned char *)out + i, n - i);
            assert_true(length > 0);
            i += (size_t)length;
        }
        bool valid = (in[0] < 0x80 && in[1] < 0x80) ||
                     (in[0] >= 0xc2 && in[0] < 0xe0 && in[1] >= 0x80 && in[1] < 0xc0);
        assert_int_equal(valid, n == 2 && !memcmp(in, out, 2));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_examples),
        cmocka_unit_test(test_holds_back),
        cmocka_unit_test(test_pairs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
