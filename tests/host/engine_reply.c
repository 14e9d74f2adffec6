// SPDX-License-Identifier: Apache-2.0
// The text of a generation: characters stay whole whatever the cuts, and stop texts never show.
#include "host/engine/reply.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static char printed[256];

// Puts `text` in pieces of `step` bytes, taking what is ready every `take` pieces, and returns
// whether a stop text came.
static bool put(const char *text, size_t n, size_t step, size_t take, const char *const *stops,
                size_t n_stops)
{
    struct budget budget;
    struct reply reply;
    size_t pieces = 0, got, all = 0;
    budget_init(&budget, 1 << 20);
    assert_int_equal(reply_open(&reply, &budget, stops, NULL, n_stops, NULL), 0);
    memset(printed, 0, sizeof printed);
    for (size_t i = 0; i < n; i += step) {
        size_t bytes = n - i < step ? n - i : step;
        assert_int_equal(reply_reserve(&reply, bytes, NULL), 0);
        bool goes_on = reply_put(&reply, text + i, bytes);
        if (!goes_on || ++pieces % take == 0) {
            const char *piece = reply_take(&reply, &got);
            memcpy(printed + all, piece, got);
            all += got;
        }
        if (!goes_on)
            break;
    }
    reply_end(&reply);
    const char *piece = reply_take(&reply, &got);
    memcpy(printed + all, piece, got);
    assert_int_equal(all + got, reply.put);
    bool stopped = reply.stopped;
    reply_close(&reply);
    assert_int_equal(budget.used, 0);
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
            for (size_t take = 1; take <= 3; take++) {
                assert_false(put(cases[i].in, strlen(cases[i].in), step, take, NULL, 0));
                assert_string_equal(printed, cases[i].out);
            }
        }
}

static void stop_texts_never_show(void **state)
{
    (void)state;
    const char *stops[] = {"END", "\n\n", "ENDING"};
    static const struct {
        const char *in, *out;
        bool stops;
    } cases[] = {
        {"one END two", "one ", true},
        {"line\n\nmore", "line", true},
        {"EN E EEN\n", "EN E EEN\n", false}, // beginnings only
        {"EENEND", "EEN", true},
        {"ENDING", "", true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (size_t step = 1; step <= 6; step++)
            for (size_t take = 1; take <= 4; take++) {
                assert_int_equal(put(cases[i].in, strlen(cases[i].in), step, take, stops, 3),
                                 cases[i].stops);
                assert_string_equal(printed, cases[i].out);
            }
}

// The longest beginning of a stop text is held back, no more.
static void only_what_may_stop_is_held_back(void **state)
{
    (void)state;
    struct budget budget;
    struct reply reply;
    const char *stops[] = {"abac"};
    size_t n;
    budget_init(&budget, 1 << 20);
    assert_int_equal(reply_open(&reply, &budget, stops, NULL, 1, NULL), 0);
    assert_int_equal(reply_reserve(&reply, 8, NULL), 0);
    assert_true(reply_put(&reply, "xaba", 4));
    assert_memory_equal(reply_take(&reply, &n), "x", 1);
    assert_int_equal(n, 1);
    assert_int_equal(reply_reserve(&reply, 8, NULL), 0);
    assert_true(reply_put(&reply, "b\xc3", 2)); // "abab": the last two may go on
    assert_memory_equal(reply_take(&reply, &n), "ab", 2);
    assert_int_equal(n, 2);
    assert_int_equal(reply_reserve(&reply, 8, NULL), 0);
    assert_true(reply_put(&reply, "\xa9", 1));
    assert_memory_equal(reply_take(&reply, &n), "ab\xc3\xa9", 4);
    assert_int_equal(n, 4);
    reply_close(&reply);
}

static void memory_is_asked_for_before(void **state)
{
    (void)state;
    struct budget budget;
    struct reply reply;
    const char *stops[] = {"", "x"};
    struct inst_msg msg = {0};
    size_t n;
    budget_init(&budget, 64 << 10);
    assert_int_equal(reply_open(&reply, &budget, stops, NULL, 2, &msg), INST_EINVAL);
    reply_close(&reply);
    assert_int_equal(reply_open(&reply, &budget, NULL, NULL, 0, &msg), 0);
    while (!reply_reserve(&reply, 100, &msg))
        assert_true(reply_put(&reply, "0123456789", 10));
    assert_true(reply.put > 1000); // what is there stays
    assert_memory_equal(reply_take(&reply, &n), "0123456789", 10);
    assert_int_equal(n, reply.put);
    reply_close(&reply);
    assert_int_equal(budget.used, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(characters_stay_whole),
        cmocka_unit_test(stop_texts_never_show),
        cmocka_unit_test(only_what_may_stop_is_held_back),
        cmocka_unit_test(memory_is_asked_for_before),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
