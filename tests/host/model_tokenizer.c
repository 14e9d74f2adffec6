// SPDX-License-Identifier: Apache-2.0
// The tokenizer on vocabularies of its own: the definition (naive_encode) on random vocabularies,
// special tokens, byte fallback, round trips of any bytes, long texts in little memory. Ids of real
// vocabularies are compared with llama.cpp's in model_tokens_golden.c.
#include "host/model/text.h"
#include "tests/host/model_build.h"
#include "tests/processor_time.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

enum { TOKENS_MAX = 600 };

struct vocabulary {
    struct build_token token[TOKENS_MAX];
    char names[256][8];
    size_t n;
    struct build b;
    struct budget budget;
    struct gguf *gguf;
    struct tokenizer *t;
};

static uint64_t rng = 88172645463325252u;

static uint32_t random_below(uint32_t n)
{
    rng ^= rng << 13;
    rng ^= rng >> 7;
    rng ^= rng << 17;
    return (uint32_t)(rng >> 33) % n;
}

static void add(struct vocabulary *v, const char *text, float score, int32_t type)
{
    v->token[v->n++] = (struct build_token){text, strlen(text), score, type};
}

// <unk>, <s>, </s> and, with `bytes`, the 256 byte tokens from id 3 on.
static void start(struct vocabulary *v, bool bytes)
{
    memset(v, 0, sizeof *v);
    add(v, "<unk>", 0, 2);
    add(v, "<s>", 0, 3);
    add(v, "</s>", 0, 3);
    for (unsigned b = 0; bytes && b < 256; b++) {
        snprintf(v->names[b], sizeof v->names[b], "<0x%02X>", b);
        add(v, v->names[b], 0, 6);
    }
    build_begin(&v->b);
}

static void finish(struct vocabulary *v)
{
    struct inst_msg msg = {{0}};
    budget_init(&v->budget, 64 << 20);
    build_vocabulary(&v->b, v->token, v->n);
    if (gguf_open_memory(&v->gguf, v->b.data, v->b.bytes, "test", &v->budget, &msg) ||
        tokenizer_open(&v->t, v->gguf, &v->budget, &msg))
        fail_msg("%s", msg.text);
}

static void end(struct vocabulary *v)
{
    tokenizer_free(v->t);
    gguf_close(v->gguf);
    assert_int_equal(v->budget.used, 0);
    free(v->b.data);
}

// Expects the ids (given as token texts, NULL at the end) for a text.
static void expect(struct vocabulary *v, const char *text, unsigned flags, ...)
{
    struct token_list list = {.budget = &v->budget};
    struct inst_msg msg = {{0}};
    va_list args;
    uint64_t i = 0;
    assert_int_equal(tokenizer_encode(v->t, text, strlen(text), flags, &list, &msg), 0);
    va_start(args, flags);
    for (const char *want; (want = va_arg(args, const char *)); i++) {
        assert_true(i < list.count);
        struct gguf_string got = tokenizer_text(v->t, list.ids[i]);
        if (!gguf_string_is(got, want))
            fail_msg("'%s': token %d is '%.*s', not '%s'", text, (int)i, (int)got.bytes, got.data,
                     want);
    }
    va_end(args);
    assert_int_equal(i, list.count);
    token_list_free(&list);
}

#define SP    "\xe2\x96\x81"
#define PARSE TOKENIZER_PARSE_SPECIAL
#define ADD   TOKENIZER_ADD_SPECIAL
#define END   ((const char *)NULL)

static void test_merges(void **state)
{
    (void)state;
    struct vocabulary v;
    start(&v, true);
    add(&v, "a", -1, 1);
    add(&v, "b", -1, 1);
    add(&v, "c", -1, 1);
    add(&v, "ab", -2, 1);
    add(&v, "bc", -1.5f, 1); // better than "ab"
    add(&v, "aa", -3, 1);
    add(&v, "aaaa", -4, 1);
    add(&v, "abc", -9, 1);
    add(&v, SP, -5, 1);
    add(&v, SP "a", -6, 1);
    finish(&v);
    expect(&v, "", 0, END);
    expect(&v, "", ADD, "<s>", END);
    expect(&v, "b", 0, SP, "b", END);
    expect(&v, "a", 0, SP "a", END);
    expect(&v, "abc", ADD, "<s>", SP "a", "bc", END); // bc, then SP a before a + bc
    expect(&v, "cabc", 0, SP, "c", "abc", END);
    expect(&v, "bab", 0, SP, "b", "ab", END);
    expect(&v, "aaaaa", 0, SP, "aaaa", "a", END); // the leftmost of equal pairs first
    expect(&v, "baaaaa", 0, SP, "b", "aaaa", "a", END);
    expect(&v, "x", 0, SP, "<0x78>", END);
    expect(&v, "  ", 0, SP, SP, SP, END);
    expect(&v, "\xc3\xa4", 0, SP, "<0xC3>", "<0xA4>", END);
    // A broken first byte takes the following bytes with it, those of an escaped space too.
    expect(&v, "\xf0 a", 0, SP, "<0xF0>", "<0xE2>", "<0x96>", "<0x81>", "a", END);
    expect(&v, "\xe2", 0, SP, "<0xE2>", END);
    end(&v);
}

static void test_special(void **state)
{
    (void)state;
    struct vocabulary v;
    start(&v, true);
    add(&v, "a", -1, 1);
    add(&v, SP, -5, 1);
    add(&v, "<u>", 0, 4);
    add(&v, "<u><u>", 0, 4);
    add(&v, "<|im_end|>", 0, 1); // a normal token by its type, an end of generation by its name
    add(&v, "unused", 0, 5);
    add(&v, "", 0, 1);
    add(&v, "<fim_pad>", 0, 3);
    build_key_bool(&v.b, "tokenizer.ggml.add_eos_token", true);
    build_key_u32(&v.b, "tokenizer.ggml.eot_token_id", 259); // "a"
    build_key_u32(&v.b, "tokenizer.ggml.padding_token_id", UINT32_MAX);
    finish(&v);
    // Control tokens only when asked for, user-defined ones always, longer ones first.
    expect(&v, "a<s>a", PARSE, SP, "a", "<s>", SP, "a", END);
    expect(&v, "<s>", 0, SP, "<0x3C>", "<0x73>", "<0x3E>", END);
    expect(&v, "<s>", ADD | PARSE, "<s>", "<s>", "</s>", END);
    expect(&v, "<u>a", 0, "<u>", SP, "a", END);
    expect(&v, "<u><u><u>", 0, "<u><u>", "<u>", END);
    expect(&v, "<u></s><unk>", PARSE, "<u>", "</s>", "<unk>", END);
    expect(&v, "a", ADD, "<s>", SP, "a", "</s>", END);
    expect(&v, "<|im_end|>", PARSE, "<|im_end|>", END);
    const struct {
        const char *text;
        bool is_end;
    } ends[] = {{"</s>", true}, {"<|im_end|>", true}, {"<fim_pad>", true},
                {"<s>", false}, {"<u>", false},       {SP, false}};
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
        assert_int_equal(
            tokenizer_is_end(v.t, tokenizer_find(v.t, ends[i].text, strlen(ends[i].text))),
            ends[i].is_end);
    assert_false(tokenizer_is_end(v.t, TOKENIZER_NONE));
    assert_true(tokenizer_is_end(v.t, 259));
    assert_true(tokenizer_is_control(v.t, 2));
    assert_false(tokenizer_is_control(v.t, 259));
    // Control tokens print nothing unless asked for; user-defined ones always; unused ones never.
    char out[16];
    assert_int_equal(tokenizer_piece(v.t, 2, 0, out), 0);
    assert_int_equal(tokenizer_piece(v.t, 2, TOKENIZER_SHOW_SPECIAL, out), 4);
    assert_int_equal(tokenizer_piece(v.t, tokenizer_find(v.t, "<u>", 3), 0, out), 3);
    assert_int_equal(tokenizer_piece(v.t, tokenizer_find(v.t, "unused", 6), 4, out), 0);
    assert_int_equal(tokenizer_piece(v.t, tokenizer_find(v.t, SP, 3), 0, out), 1);
    assert_int_equal(out[0], ' ');
    assert_int_equal(tokenizer_piece(v.t, 3 + 0xe9, 0, out), 1);
    assert_int_equal((unsigned char)out[0], 0xe9);
    assert_int_equal(tokenizer_piece(v.t, 100000, 0, out), 0);
    end(&v);
}

static void test_no_prefix_no_bos(void **state)
{
    (void)state;
    struct vocabulary v;
    start(&v, true);
    add(&v, "a", -1, 1);
    build_key_bool(&v.b, "tokenizer.ggml.add_space_prefix", false);
    build_key_bool(&v.b, "tokenizer.ggml.add_bos_token", false);
    finish(&v);
    expect(&v, "a", ADD, "a", END);
    expect(&v, "a</s>a", PARSE, "a", "</s>", "a", END);
    expect(&v, " ", 0, "<0xE2>", "<0x96>", "<0x81>", END);
    assert_false(tokenizer_adds_bos(v.t));
    end(&v);
}

static void test_rstrip(void **state)
{
    (void)state;
    struct vocabulary v;
    start(&v, true);
    add(&v, "a", -1, 1);
    add(&v, SP, -1, 1);
    add(&v, "<|user|>", 0, 3);
    build_key_string(&v.b, "general.name", "My Phi-3 mini");
    finish(&v);
    expect(&v, "<|user|> \n a", PARSE, "<|user|>", SP, "a", END);
    expect(&v, "<|user|>  ", PARSE, "<|user|>", END);
    expect(&v, "<s> a", PARSE, "<s>", SP, SP, "a", END); // not this one
    end(&v);
}

static void test_no_bytes(void **state)
{
    (void)state;
    struct vocabulary v;
    struct inst_msg msg = {{0}};
    start(&v, false);
    add(&v, "a", -1, 1);
    finish(&v);
    expect(&v, "xa", 0, "<unk>", "<unk>", "<unk>", "<unk>", "a", END); // U+2581 and x
    end(&v);
    // "None" in the file leaves the default: id 0 is the unknown token, as in llama.cpp.
    memset(&v, 0, sizeof v);
    add(&v, "a", -1, 1);
    build_begin(&v.b);
    build_key_bool(&v.b, "tokenizer.ggml.add_space_prefix", false);
    build_key_u32(&v.b, "tokenizer.ggml.unknown_token_id", UINT32_MAX);
    finish(&v);
    struct token_list list = {.budget = &v.budget};
    assert_int_equal(token_list_add(&list, 0, NULL), 0);
    assert_int_equal(tokenizer_encode(v.t, "ax", 2, 0, &list, &msg), 0);
    assert_int_equal(list.count, 3);
    token_list_free(&list);
    end(&v);
}

static size_t random_text(char *text, size_t room)
{
    static const char *const parts[] = {
        "a",  "b", "c", "ab",   " ",    "  ",   "\xc3\xa4", "\xf0\x9f\x98\x80",
        "\n", "x", SP,  "\xf0", "\xe2", "\xc3", "\xff",     "aaaa"};
    size_t n = 0;
    for (uint32_t i = random_below(40); i > 0; i--) {
        const char *part = parts[random_below(sizeof parts / sizeof *parts)];
        if (n + strlen(part) > room)
            break;
        memcpy(text + n, part, strlen(part));
        n += strlen(part);
    }
    return n;
}

// Random vocabularies with few, often equal scores against the definition.
static void test_against_definition(void **state)
{
    (void)state;
    enum { ROUNDS = 60, TEXTS = 40, LONGEST = 160 };
    static char texts[TOKENS_MAX][16];
    for (int round = 0; round < ROUNDS; round++) {
        struct vocabulary v;
        bool prefix = round % 3 != 0;
        start(&v, round % 5 != 0);
        for (size_t want = v.n + 10 + random_below(150); v.n < want;) {
            char *text = texts[v.n];
            size_t n = 0, i;
            while (!n)
                n = random_text(text, 1 + random_below(12));
            for (i = 0; i < v.n; i++)
                if (v.token[i].bytes == n && !memcmp(v.token[i].text, text, n))
                    break;
            if (i == v.n)
                v.token[v.n++] = (struct build_token){text, n, (float)random_below(6) - 3, 1};
            else
                want--;
        }
        build_key_bool(&v.b, "tokenizer.ggml.add_space_prefix", prefix);
        finish(&v);
        for (int i = 0; i < TEXTS; i++) {
            char text[LONGEST];
            uint32_t ids[3 * LONGEST + 3];
            struct token_list list = {.budget = &v.budget};
            size_t bytes = random_text(text, sizeof text);
            size_t n = naive_encode(v.t, v.token, text, bytes, prefix, ids);
            assert_int_equal(tokenizer_encode(v.t, text, bytes, 0, &list, NULL), 0);
            assert_int_equal(list.count, n);
            if (n)
                assert_memory_equal(list.ids, ids, n * sizeof *ids);
            token_list_free(&list);
        }
        end(&v);
    }
}

// decode(encode(text)) == text for any bytes. U+2581 reads as a space, so the text has none.
static void test_round_trip(void **state)
{
    (void)state;
    for (int prefix = 0; prefix < 2; prefix++) {
        struct vocabulary v;
        start(&v, true);
        add(&v, "th", -1, 1);
        add(&v, "the", -2, 1);
        add(&v, "t", -3, 1);
        add(&v, "h", -3, 1);
        add(&v, "e", -3, 1);
        add(&v, SP, -4, 1);
        add(&v, SP SP, -1, 1);
        add(&v, SP "the", -1, 1);
        add(&v, "\xc3\xa4", -1, 1);
        build_key_bool(&v.b, "tokenizer.ggml.add_space_prefix", prefix);
        finish(&v);
        for (int round = 0; round < 3000; round++) {
            char text[64], out[256];
            size_t n = random_below(sizeof text + 1);
            bool valid = round % 2;
            for (size_t i = 0; i < n;) {
                static const char *const parts[] = {
                    "the", " ", "t", "\xc3\xa4", "\xf0\x9f\x98\x80", "\n", "\xe2\x82\xac"};
                const char *part = parts[random_below(7)];
                if (valid && i + strlen(part) <= n) {
                    memcpy(text + i, part, strlen(part));
                    i += strlen(part);
                } else {
                    // Invalid: any byte; a first byte of many right before a space would swallow
                    // it.
                    text[i] = (char)(valid ? 'e' : random_below(256));
                    if (text[i] == ' ' && !valid)
                        text[i] = 'h';
                    i++;
                }
            }
            struct token_list list = {.budget = &v.budget};
            assert_int_equal(tokenizer_encode(v.t, text, n, 0, &list, NULL), 0);
            assert_int_equal(tokenizer_decode(v.t, list.ids, list.count, 0, out, sizeof out), n);
            assert_memory_equal(out, text, n);
            // A buffer too small: the length still comes, and nothing beyond is written.
            memset(out, '#', sizeof out);
            assert_int_equal(tokenizer_decode(v.t, list.ids, list.count, 0, out, n / 2), n);
            assert_memory_equal(out, text, n / 2);
            assert_int_equal(out[n / 2], '#');
            token_list_free(&list);
        }
        end(&v);
    }
}

// Megabytes: ordinary words in little memory, one endless segment, special tokens everywhere.
static void test_long(void **state)
{
    (void)state;
    enum { BYTES = 4 << 20 };
    struct vocabulary v;
    static char spaces[32][3 * 32 + 1];
    start(&v, true);
    for (char *c = "abcdefghijklmnopqrstuvwxyz"; *c; c++) {
        static char letters[26][2];
        letters[*c - 'a'][0] = *c;
        add(&v, letters[*c - 'a'], -20, 1);
    }
    add(&v, SP, -20, 1);
    add(&v, "th", -1, 1);
    add(&v, "the", -2, 1);
    add(&v, SP "the", -3, 1);
    add(&v, "aa", -5, 1);
    add(&v, "aaaa", -4, 1);
    add(&v, "aaaaaaaa", -3, 1);
    for (int i = 1; i < 32; i++) {
        for (int j = 0; j < i; j++)
            strcat(spaces[i], "\n");
        if (i > 1)
            add(&v, spaces[i], 0, 4);
    }
    finish(&v);
    char *text = malloc(BYTES);
    static const char words[] = "the quick brown fox jumps over the lazy dog ";
    for (int kind = 0; kind < 2; kind++) {
        for (size_t i = 0; i < BYTES; i++)
            text[i] = kind ? 'a' : words[i % (sizeof words - 1)];
        uint64_t before = v.budget.used;
        struct token_list list = {.budget = &v.budget};
        struct inst_msg msg = {{0}};
        uint64_t bytes = kind ? BYTES / 8 : BYTES;
        v.budget.peak = before;
        double begin = processor_seconds();
        assert_int_equal(tokenizer_encode(v.t, text, bytes, 0, &list, &msg), 0);
        double took = processor_seconds() - begin;
        uint64_t lists = list.capacity * 6; // the last doubling holds old and new
        print_message("%s: %.1f MB in %.0f ms, %llu ids, working memory %.2f MB\n",
                      kind ? "one letter" : "words", (double)bytes / 1e6, 1e3 * took,
                      (unsigned long long)list.count,
                      ((double)v.budget.peak - (double)before - (double)lists) / 1e6);
        assert_true(took < 20);
        if (kind == 0) // hardly anything beside the list of ids
            assert_true(v.budget.peak - before < lists + (64 << 10));
        char *back = malloc(bytes + 1);
        assert_int_equal(tokenizer_decode(v.t, list.ids, list.count, 0, back, bytes), bytes);
        assert_memory_equal(back, text, bytes);
        free(back);
        token_list_free(&list);
        assert_int_equal(v.budget.used, before);
    }
    for (size_t i = 0; i < 3 << 16; i++)
        text[i] = "\n\na"[i % 3];
    struct token_list list = {.budget = &v.budget};
    assert_int_equal(tokenizer_encode(v.t, text, 3 << 16, 0, &list, NULL), 0);
    assert_int_equal(list.count, 3 << 16); // a special, the space, the letter
    token_list_free(&list);
    free(text);
    end(&v);
}

// Wherever the budget gives out: INST_ENOMEM, the list as before, nothing lost.
static void test_budget(void **state)
{
    (void)state;
    struct vocabulary v;
    char text[4000];
    int refused = 0;
    start(&v, true);
    add(&v, "a", -1, 1);
    add(&v, "aa", -1, 1);
    add(&v, "<u>", -1, 4);
    finish(&v);
    memset(text, 'a', sizeof text);
    memcpy(text + 2000, "<u>", 3);
    for (uint64_t limit = 0; limit < 400 << 10; limit += 4 << 10) {
        struct budget small;
        struct inst_msg msg = {{0}};
        budget_init(&small, limit);
        struct token_list list = {.budget = &small};
        if (token_list_add(&list, 77, NULL) == 0) {
            int rc = tokenizer_encode(v.t, text, sizeof text, 0, &list, &msg);
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
    assert_true(refused > 3 && refused < 99);
    refused = 0;
    for (uint64_t limit = 0; limit < 64 << 10; limit += 512) {
        struct budget small;
        struct tokenizer *t;
        budget_init(&small, limit);
        int rc = tokenizer_open(&t, v.gguf, &small, NULL);
        refused += rc != 0;
        assert_true(rc == 0 || rc == INST_ENOMEM);
        tokenizer_free(t);
        assert_int_equal(small.used, 0);
    }
    assert_true(refused > 3 && refused < 127);
    end(&v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_merges),     cmocka_unit_test(test_special),
        cmocka_unit_test(test_no_bytes),   cmocka_unit_test(test_no_prefix_no_bos),
        cmocka_unit_test(test_rstrip),     cmocka_unit_test(test_against_definition),
        cmocka_unit_test(test_round_trip), cmocka_unit_test(test_long),
        cmocka_unit_test(test_budget),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
