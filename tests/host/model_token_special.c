// SPDX-License-Identifier: Apache-2.0
// Special tokens in raw text against the definition, which takes them one by one: the longest
// first, then by id, each from left to right. Vocabularies whose tokens overlap, are there twice,
// swallow white space, count only for some writers; and ones with very many of them.
#include "tests/host/model_build.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

enum { FIXED = 3 + 256, TOKENS_MAX = FIXED + 64000, TEXT_MAX = 3 << 19 };

static struct build_token token[TOKENS_MAX];
static char names[TOKENS_MAX][24], text[TEXT_MAX];
static uint32_t want[TEXT_MAX];
static size_t n;
static struct build b;
static struct budget budget;
static struct gguf *gguf;
static struct tokenizer *t;
static uint64_t rng = 88172645463325252u;

static uint32_t random_below(uint32_t limit)
{
    rng ^= rng << 13;
    rng ^= rng >> 7;
    rng ^= rng << 17;
    return (uint32_t)(rng >> 33) % limit;
}

// A vocabulary without merges: a byte that belongs to no special token is the token of its value.
// Its visible form must not be a special token too.
static void start(void)
{
    static const char *const fixed[] = {"<unk>", "<s>", "</s>"};
    for (n = 0; n < 256; n++)
        token[n] = (struct build_token){names[n], build_visible((unsigned)n, names[n]), 0, 1};
    for (size_t i = 0; i < 3; i++, n++)
        token[n] = (struct build_token){fixed[i], strlen(fixed[i]), 0, i ? 3 : 2};
    build_begin(&b);
}

static void add(int32_t type)
{
    token[n] = (struct build_token){names[n], strlen(names[n]), 0, type};
    n++;
}

static void finish(void)
{
    struct inst_msg msg = {{0}};
    budget_init(&budget, 256 << 20);
    build_bpe(&b, "gpt-2", token, n, &(struct build_token){"q q", 3, 0, 1}, 1);
    if (gguf_open_memory(&gguf, b.data, b.bytes, "test", &budget, &msg) ||
        tokenizer_open(&t, gguf, &budget, &msg))
        fail_msg("%s", msg.text);
}

static void end(void)
{
    tokenizer_free(t);
    gguf_close(gguf);
    assert_int_equal(budget.used, 0);
    free(b.data);
}

static int by_length(const void *x, const void *y)
{
    const uint32_t a = *(const uint32_t *)x, c = *(const uint32_t *)y;
    if (token[a].bytes != token[c].bytes)
        return token[a].bytes < token[c].bytes ? 1 : -1;
    return a < c ? -1 : 1;
}

enum { FREE = -1, INSIDE = -2 }; // other marks: the id of the token that begins here

static bool fits(uint32_t id, const int32_t *mark, const bool *foreign, size_t at, size_t bytes)
{
    if (at + token[id].bytes > bytes || memcmp(text + at, token[id].text, token[id].bytes))
        return false;
    for (size_t i = at; i < at + token[id].bytes; i++)
        if (mark[i] != FREE || (foreign && foreign[i] && token[id].type != 4))
            return false;
    return true;
}

// The definition; the number of ids in `want`.
static size_t naive(size_t bytes, bool parse, bool strips, const bool *foreign)
{
    static uint32_t order[TOKENS_MAX];
    int32_t *mark = malloc((bytes + 1) * sizeof *mark);
    size_t n_order = 0, count = 0;
    for (size_t i = 0; i < bytes; i++)
        mark[i] = FREE;
    for (uint32_t id = 0; id < n; id++)
        if (token[id].type == 4 || (parse && (token[id].type == 2 || token[id].type == 3)))
            order[n_order++] = id;
    qsort(order, n_order, sizeof *order, by_length);
    for (size_t k = 0; k < n_order; k++) {
        uint32_t id = order[k];
        for (size_t at = 0; at < bytes;) {
            if (!fits(id, mark, foreign, at, bytes)) {
                at++;
                continue;
            }
            for (size_t i = 0; i < token[id].bytes; i++)
                mark[at + i] = i ? INSIDE : (int32_t)id;
            at += token[id].bytes;
            while (strips && id >= FIXED && at < bytes && mark[at] == FREE && text[at] <= ' ')
                mark[at++] = INSIDE;
        }
    }
    for (size_t i = 0; i < bytes; i++)
        if (mark[i] != INSIDE)
            want[count++] = mark[i] == FREE ? (unsigned char)text[i] : (uint32_t)mark[i];
    free(mark);
    return count;
}

static void compare(const struct token_list *list, size_t count)
{
    assert_int_equal(list->count, count);
    if (count)
        assert_memory_equal(list->ids, want, count * sizeof *want);
}

static void check(size_t bytes, bool parse, bool strips)
{
    struct token_list list = {.budget = &budget};
    struct inst_msg msg = {{0}};
    if (tokenizer_encode(t, text, bytes, parse ? TOKENIZER_PARSE_SPECIAL : 0, &list, &msg))
        fail_msg("%s", msg.text);
    compare(&list, naive(bytes, parse, strips, NULL));
    token_list_free(&list);
}

static void check_spans(size_t bytes, bool strips)
{
    struct token_list list = {.budget = &budget};
    struct inst_msg msg = {{0}};
    struct token_span span[8];
    bool foreign[64];
    size_t at = 0;
    for (int i = 0; i < 8; i++) {
        uint64_t length = i == 7 ? bytes - at : random_below((uint32_t)(bytes - at) / 3 + 1);
        span[i] = (struct token_span){length, random_below(2)};
        memset(foreign + at, span[i].foreign, length);
        at += length;
    }
    if (tokenizer_encode_spans(t, text, span, 8, TOKENIZER_PARSE_SPECIAL, &list, &msg))
        fail_msg("%s", msg.text);
    compare(&list, naive(bytes, true, strips, foreign));
    token_list_free(&list);
}

// Few letters, so that everything overlaps. White space, which is swallowed, is two of them.
static void test_against_definition(void **state)
{
    (void)state;
    for (int round = 0; round < 400; round++) {
        bool strips = round % 3 == 0;
        uint32_t letters = 2 + random_below(4), tokens = 1 + random_below(25);
        uint32_t longest = 1 + random_below(6);
        start();
        if (strips)
            build_key_string(&b, "general.name", "Phi-3 test");
        while (n < FIXED + tokens) {
            uint32_t length = 1 + random_below(longest);
            for (uint32_t i = 0; i < length; i++)
                names[n][i] = length > 1 ? "a\n\tbc"[random_below(letters)] : '\n';
            names[n][length] = 0;
            add(random_below(3) ? 4 : 3);
        }
        finish();
        for (int i = 0; i < 40; i++) {
            size_t bytes = random_below(60);
            for (size_t j = 0; j < bytes; j++)
                text[j] = "a\n\tbcx"[random_below(letters + (uint32_t)i % 2)];
            check(bytes, i % 4 < 2, strips);
            check_spans(bytes, strips);
        }
        end();
    }
}

// Runs: every length at every place, with what swallows it and what does not.
static void test_runs(void **state)
{
    (void)state;
    for (int strips = 0; strips < 2; strips++) {
        start();
        if (strips)
            build_key_string(&b, "general.name", "phi3");
        for (size_t length = 20; length > 0; length--) {
            memset(names[n], '\n', length);
            names[n][length] = 0;
            add(4);
        }
        snprintf(names[n], sizeof names[n], "x\n");
        add(4);
        finish();
        for (size_t i = 0; i < 1 << 14; i++)
            text[i] = i % 1024 >= 250 && !random_below(10) ? 'x' : '\n';
        check(1 << 14, true, strips);
        end();
    }
}

static size_t put(size_t at, const char *what)
{
    size_t bytes = strlen(what);
    memcpy(text + at, what, bytes);
    return at + bytes;
}

// 64,000 tokens that begin alike in a text that has each of them, whole and broken. Token by token
// that is hours of work.
static void test_many_alike(void **state)
{
    (void)state;
    size_t bytes = 0, count = 0;
    start();
    while (n < TOKENS_MAX) {
        snprintf(names[n], sizeof names[n], "<extra_token_%05zu>", n - FIXED);
        add(4);
    }
    finish();
    for (uint32_t i = 0; i < 64000; i++) {
        uint32_t id = FIXED + i * 7919 % 64000;
        bytes = put(bytes, token[id].text);
        want[count++] = id;
        if (i % 8 == 0) {
            static const char broken[] = "<extra_token_1234";
            bytes = put(bytes, broken);
            for (const char *c = broken; *c; c++)
                want[count++] = (unsigned char)*c;
        }
    }
    struct token_list list = {.budget = &budget};
    assert_int_equal(tokenizer_encode(t, text, bytes, 0, &list, NULL), 0);
    compare(&list, count);
    token_list_free(&list);
    end();
}

// Tokens that all overlap: every three letters of sixteen, in random order.
static void test_many_overlapping(void **state)
{
    (void)state;
    start();
    for (uint32_t i = 0; i < 4096; i++) {
        uint32_t v = (i * 1597 + 11) % 4096;
        snprintf(names[n], sizeof names[n], "%c%c%c", 'a' + (v & 15), 'a' + (v >> 4 & 15),
                 'a' + (v >> 8));
        add(4);
    }
    finish();
    for (size_t i = 0; i < 6000; i++)
        text[i] = (char)('a' + random_below(16));
    check(6000, false, false);
    for (size_t i = 0; i < 1 << 18; i++)
        text[i] = (char)('a' + random_below(16));
    struct token_list list = {.budget = &budget};
    assert_int_equal(tokenizer_encode(t, text, 1 << 18, 0, &list, NULL), 0);
    assert_in_range(list.count, (1 << 18) / 3, 1 << 18);
    token_list_free(&list);
    end();
}

// Wherever the budget gives out: INST_ENOMEM, the list as before, nothing lost.
static void test_budget(void **state)
{
    (void)state;
    int refused = 0;
    start();
    for (uint32_t i = 0; i < 27; i++) {
        snprintf(names[n], sizeof names[n], "%c%c%c", 'a' + i % 3, 'a' + i / 3 % 3, 'a' + i / 9);
        add(4);
    }
    finish();
    for (size_t i = 0; i < 4000; i++)
        text[i] = "abcx"[random_below(4)];
    for (uint64_t limit = 0; limit < 300 << 10; limit += 1 << 10) {
        struct budget small;
        struct inst_msg msg = {{0}};
        budget_init(&small, limit);
        struct token_list list = {.budget = &small};
        if (token_list_add(&list, 77, NULL) == 0) {
            int rc = tokenizer_encode(t, text, 4000, 0, &list, &msg);
            refused += rc != 0;
            if (rc) {
                assert_int_equal(rc, INST_ENOMEM);
                assert_int_equal(list.count, 1);
                assert_true(msg.text[0]);
            }
            assert_int_equal(list.ids[0], 77);
        }
        token_list_free(&list);
        assert_int_equal(small.used, 0);
    }
    assert_in_range(refused, 10, 280);
    end();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_definition),
        cmocka_unit_test(test_runs),
        cmocka_unit_test(test_many_alike),
        cmocka_unit_test(test_many_overlapping),
        cmocka_unit_test(test_budget),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
