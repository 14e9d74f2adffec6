// SPDX-License-Identifier: Apache-2.0
// Streaming of text: characters stay whole whatever the cuts, and stop texts never show.
#include "cmd/output.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

static FILE *real_stdout;
static char printed[256];

// Puts `text` in pieces of `step` bytes and returns whether a stop text came.
static bool put(const char *text, size_t n, size_t step, const struct option_list *stops)
{
    static const struct option_list none = {0};
    struct output out;
    fflush(stdout);
    real_stdout = stdout;
    memset(printed, 0, sizeof printed);
    stdout = fmemopen(printed, sizeof printed, "w");
    output_open(&out, stops ? stops : &none);
    for (size_t i = 0; i < n; i += step)
        if (!output_put(&out, text + i, n - i < step ? n - i : step))
            break;
    output_end(&out);
    bool stopped = out.stopped;
    output_close(&out);
    fclose(stdout);
    stdout = real_stdout;
    return stopped;
}

static void characters_stay_whole(void **state)
{
    (void)state;
    static const struct {
        const char *in, *out;
    } cases[] = {
        {"a\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80.", "a\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80."},
        {"\xff", "\xef\xbf\xbd"},
        {"\xe2\x82", "\xef\xbf\xbd"},                             // cut at the end
        {"\xe2\x82x", "\xef\xbf\xbdx"},                           // cut by another character
        {"\xc0\xaf", "\xef\xbf\xbd\xef\xbf\xbd"},                 // overlong
        {"\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"}, // surrogate
        {"\xf0\x9f\xc3\xa9", "\xef\xbf\xbd\xc3\xa9"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (size_t step = 1; step <= 4; step++) {
            assert_false(put(cases[i].in, strlen(cases[i].in), step, NULL));
            assert_string_equal(printed, cases[i].out);
        }
}

static void stop_texts_never_show(void **state)
{
    (void)state;
    const char *texts[] = {"END", "\n\n", "ENDING"};
    struct option_list stops = {texts, 3};
    for (size_t step = 1; step <= 6; step++) {
        assert_true(put("one END two", 11, step, &stops));
        assert_string_equal(printed, "one ");
        assert_true(put("line\n\nmore", 10, step, &stops));
        assert_string_equal(printed, "line");
        assert_false(put("EN E EEN\n", 9, step, &stops)); // beginnings only
        assert_string_equal(printed, "EN E EEN\n");
        assert_true(put("EENEND", 6, step, &stops));
        assert_string_equal(printed, "EEN");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(characters_stay_whole),
        cmocka_unit_test(stop_texts_never_show),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
