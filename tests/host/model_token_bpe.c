// SPDX-License-Identifier: Apache-2.0
// Kind "gpt2" on vocabularies of its own: the definition (naive_bpe) on random merges, the words of
// each pre-tokenizer against llama.cpp's ids (tests/data/tokens_pre.json), odd vocabularies, broken
// UTF-8, long texts, small budgets. Real vocabularies are in model_tokens_golden.c.
#include "host/model/text.h"
#include "host/model/tokenizer_pre.h"
#include "tests/host/model_build.h"
#include "tests/processor_time.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cjson/cJSON.h>
#include <cmocka.h>

enum { PIECES_MAX = 8000 };

struct vocabulary {
    struct build_token token[PIECES_MAX], merge[PIECES_MAX];
    char names[256][3];
    size_t n, n_merges;
    struct build b;
    struct budget budget;
    struct gguf *gguf;
    struct tokenizer *t;
};

static struct vocabulary v;
static uint64_t rng = 88172645463325252u;

static uint32_t random_below(uint32_t n)
{
    rng ^= rng << 13;
    rng ^= rng >> 7;
    rng ^= rng << 17;
    return (uint32_t)(rng >> 33) % n;
}

static void add(const char *text, int32_t type)
{
    v.token[v.n++] = (struct build_token){text, strlen(text), 0, type};
}

static void merge(const char *text)
{
    v.merge[v.n_merges++] = (struct build_token){text, strlen(text), 0, 1};
}

// The 256 bytes are tokens 0 to 255.
static void start(void)
{
    memset(&v, 0, sizeof v);
    for (unsigned b = 0; b < 256; b++) {
        build_visible(b, v.names[b]);
        add(v.names[b], 1);
    }
    build_begin(&v.b);
}

static void finish(const char *pre)
{
    struct inst_msg msg = {{0}};
    budget_init(&v.budget, 256 << 20);
    build_bpe(&v.b, pre, v.token, v.n, v.merge, v.n_merges);
    if (gguf_open_memory(&v.gguf, v.b.data, v.b.bytes, "test", &v.budget, &msg) ||
        tokenizer_open(&v.t, v.gguf, &v.budget, &msg))
        fail_msg("%s", msg.text);
}

static void end(void)
{
    tokenizer_free(v.t);
    gguf_close(v.gguf);
    assert_int_equal(v.budget.used, 0);
    free(v.b.data);
}

// Expects the ids (given as token texts, NULL at the end) for a text.
static void expect(const char *text, unsigned flags, ...)
{
    struct token_list list = {.budget = &v.budget};
    struct inst_msg msg = {{0}};
    va_list args;
    uint64_t i = 0;
    if (tokenizer_encode(v.t, text, strlen(text), flags, &list, &msg))
        fail_msg("%s", msg.text);
    va_start(args, flags);
    for (const char *want; (want = va_arg(args, const char *)); i++) {
        assert_true(i < list.count);
        struct gguf_string got = tokenizer_text(v.t, list.ids[i]);
        if (!gguf_string_is(got, want))
            fail_msg("'%s': token %d is '%.*s', not '%s'", text, (int)i, (int)got.bytes, got.data,
                     want);
    }
    va_end(args);
    assert_int_equal(i, list.count);
    token_list_free(&list);
}

#define G     "\xc4\xa0" // the visible space
#define PARSE TOKENIZER_PARSE_SPECIAL
#define ADD   TOKENIZER_ADD_SPECIAL
#define END   ((const char *)NULL)

static void test_merges(void **state)
{
    (void)state;
    start();
    static const char *const tokens[] = {"ab", "bc", "abc", "aa", "aaaa", G "a", "xyz"};
    for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++)
        add(tokens[i], 1);
    merge("b c"); // before "a b"
    merge("a b");
    merge("a bc");
    merge("a a");
    merge("aa aa");
    merge("a a"); // again: the earlier one counts
    merge(G " a");
    merge("x y"); // "xy" is no token, yet "xyz" is made through it
    merge("xy z");
    merge("nothing");
    merge("half ");
    merge(" space first");
    finish("gpt-2");
    expect("", 0, END);
    expect("", ADD, END); // this pre-tokenizer adds no bos
    expect("abc", 0, "abc", END);
    expect("ab", 0, "ab", END);
    expect("aab", 0, "a", "ab", END);
    expect("aaaaa", 0, "aaaa", "a", END); // the leftmost of equal pairs first
    expect("aaabc", 0, "aa", "abc", END);
    expect(" a", 0, G "a", END);
    expect("  a", 0, G, G "a", END);
    expect("xyz", 0, "xyz", END);
    expect("xy", 0, "x", "y", END); // made, but no token: its bytes
    expect("a b", 0, "a", G, "b", END);
    end();
}

static void test_whole_words(void **state)
{
    (void)state;
    for (int ignore = 0; ignore < 2; ignore++) {
        start();
        add("ab", 1);
        add("abc", 1); // no merges lead here
        add(G "abc", 1);
        add("<|bos|>", 3);
        merge("a b");
        build_key_u32(&v.b, "tokenizer.ggml.bos_token_id", 259);
        finish(ignore ? "llama-bpe" : "qwen2");
        if (ignore) { // adds bos unless the file says otherwise
            expect("abc abc", ADD, "<|bos|>", "abc", G "abc", END);
            expect("abcab", 0, "ab", "c", "ab", END);
        } else {
            expect("abc abc", ADD, "ab", "c", G, "ab", "c", END);
        }
        assert_int_equal(tokenizer_adds_bos(v.t), ignore);
        end();
    }
}

static void test_special(void **state)
{
    (void)state;
    start();
    add("<|a|>", 3);
    add("<user>", 4);
    add("", 1);
    add("<|im_end|>", 1); // ends generation by its name
    add("two words", 1);  // not written in visible bytes
    add("a", 1);          // twice there: this one is found
    add("b", 77);         // of no known type
    add("odd byte", 6);
    build_key_bool(&v.b, "tokenizer.ggml.add_bos_token", true);
    build_key_bool(&v.b, "tokenizer.ggml.add_eos_token", true);
    build_key_u32(&v.b, "tokenizer.ggml.bos_token_id", 256);
    build_key_u32(&v.b, "tokenizer.ggml.eos_token_id", 259);
    build_key_u32(&v.b, "tokenizer.ggml.padding_token_id", 99999);
    build_key_bool(&v.b, "tokenizer.ggml.add_space_prefix", true);
    finish(NULL);
    expect("x<|a|>x", PARSE, "x", "<|a|>", "x", END);
    expect("<|a|>", 0, "<", "|", "a", "|", ">", END);
    expect("<user>", 0, "<user>", END);
    expect("x", ADD, "<|a|>", "x", "<|im_end|>", END);
    assert_int_equal(tokenizer_find(v.t, "a", 1), 261);
    assert_int_equal(tokenizer_find(v.t, "b", 1), 262);
    assert_true(tokenizer_is_end(v.t, 259));
    char out[64];
    assert_int_equal(tokenizer_piece(v.t, 256, 0, out), 0);
    assert_int_equal(tokenizer_piece(v.t, 256, TOKENIZER_SHOW_SPECIAL, out), 5);
    assert_int_equal(tokenizer_piece(v.t, 260, 0, out), 9);
    assert_memory_equal(out, "two words", 9);
    assert_int_equal(tokenizer_piece(v.t, 97, 0, out), 1); // the other "a" still prints
    assert_int_equal(tokenizer_piece(v.t, 262, 0, out), 0);
    assert_int_equal(tokenizer_piece(v.t, 263, 0, out), 0);
    for (uint32_t b = 0; b < 256; b++) {
        assert_int_equal(tokenizer_piece(v.t, b, 0, out), 1);
        assert_int_equal((unsigned char)out[0], b);
    }
    // The key for a leading space means nothing to this kind.
    struct token_list list = {.budget = &v.budget};
    assert_int_equal(tokenizer_encode(v.t, " x", 2, 0, &list, NULL), 0);
    assert_int_equal(tokenizer_decode(v.t, list.ids, list.count, 0, out, sizeof out), 2);
    assert_memory_equal(out, " x", 2);
    token_list_free(&list);
    end();
}

static void test_few_bytes(void **state)
{
    (void)state;
    memset(&v, 0, sizeof v);
    add("a", 1);
    build_begin(&v.b);
    finish("qwen2");
    expect("xay", 0, "a", END); // bytes that are no token vanish, as in llama.cpp
    expect("\xc3\xa4", 0, END);
    end();
}

// Broken UTF-8 becomes U+FFFD byte by byte, but overlong forms and surrogates are let through.
static void test_broken(void **state)
{
    (void)state;
    static const struct {
        const char *text, *back;
    } cases[] = {
        {"\xff", "\xef\xbf\xbd"},
        {"a\x80\x80z", "a\xef\xbf\xbd\xef\xbf\xbdz"},
        {"\xe4\xbd", "\xef\xbf\xbd\xef\xbf\xbd"},
        {"\xe4\xbd ", "\xef\xbf\xbd\xef\xbf\xbd "},
        {"\xc1\x81", "A"},
        {"\xe0\x81\x81", "A"},
        {"\xf0\x82\x82\xac", "\xe2\x82\xac"},
        {"\xed\xa0\x80", "\xed\xa0\x80"},
        {"\xf4\x90\x80\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
        {"\xf8\x88\x80\x80\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
    };
    static const char *const pres[] = {"gpt-2",  "llama-bpe", "qwen2",        "smollm",
                                       "tekken", "gpt-4o",    "deepseek-llm", "default"};
    for (size_t p = 0; p < sizeof pres / sizeof *pres; p++) {
        start();
        finish(pres[p]);
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            struct token_list list = {.budget = &v.budget};
            char out[64];
            assert_int_equal(
                tokenizer_encode(v.t, cases[i].text, strlen(cases[i].text), 0, &list, NULL), 0);
            uint64_t n = tokenizer_decode(v.t, list.ids, list.count, 0, out, sizeof out);
            assert_int_equal(n, strlen(cases[i].back));
            assert_memory_equal(out, cases[i].back, n);
            token_list_free(&list);
        }
        end();
    }
}

struct naive {
    uint32_t *ids;
    size_t n;
};

static int naive_word(void *context, const char *text, uint64_t bytes)
{
    struct naive *naive = context;
    assert_true(bytes > 0);
    naive->n += naive_bpe(v.t, v.merge, v.n_merges, text, bytes, naive->ids + naive->n);
    return 0;
}

// Random merges over few letters against the definition, in short words and in long ones.
static void test_against_definition(void **state)
{
    (void)state;
    enum { ROUNDS = 40, TEXTS = 40, LONGEST = 300 };
    static char texts[400][48], merges[400][48];
    static const char *const pres[] = {"gpt-2", "default", "gpt-4o", "deepseek-llm"};
    for (int round = 0; round < ROUNDS; round++) {
        start();
        static const char *parts[500] = {"a", "b", "c", G, "1"};
        size_t n_parts = 5;
        for (size_t i = 0; i < 5 + random_below(120); i++) {
            const char *left = parts[random_below((uint32_t)n_parts)],
                       *right = parts[random_below((uint32_t)n_parts)];
            if (strlen(left) + strlen(right) > 20)
                continue;
            snprintf(merges[i], sizeof merges[i], "%s %s", left, right);
            snprintf(texts[i], sizeof texts[i], "%s%s", left, right);
            merge(merges[i]);
            parts[n_parts++] = texts[i];
            if (random_below(6)) // some merges make no token, some tokens are there twice
                add(texts[i], 1);
        }
        finish(pres[round % 4]);
        struct pre *pre;
        struct pre_splitter *splitter;
        assert_int_equal(pre_open(&pre, v.gguf, &v.budget, NULL), 0);
        assert_int_equal(pre_splitter_new(&splitter, pre, &v.budget, NULL), 0);
        for (int i = 0; i < TEXTS; i++) {
            char text[LONGEST];
            size_t bytes = random_below(i % 8 ? 60 : LONGEST);
            for (size_t j = 0; j < bytes; j++)
                text[j] = "abcabcabc 1"[random_below(i % 2 ? 11 : 9)];
            uint32_t ids[2 * LONGEST];
            struct naive naive = {ids, 0};
            struct token_list list = {.budget = &v.budget};
            if (!pre_ignores_merges(pre)) {
                assert_int_equal(pre_split(splitter, text, bytes, naive_word, &naive, NULL), 0);
                assert_int_equal(tokenizer_encode(v.t, text, bytes, 0, &list, NULL), 0);
                assert_int_equal(list.count, naive.n);
                if (naive.n)
                    assert_memory_equal(list.ids, ids, naive.n * sizeof *ids);
            }
            token_list_free(&list);
        }
        pre_splitter_free(splitter);
        pre_close(pre);
        end();
    }
}

static cJSON *read_json(const char *path)
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    fseek(f, 0, SEEK_END);
    size_t size = (size_t)ftell(f);
    rewind(f);
    char *json = malloc(size + 1);
    json[fread(json, 1, size, f)] = 0;
    fclose(f);
    cJSON *root = cJSON_Parse(json);
    free(json);
    assert_non_null(root);
    return root;
}

static size_t unhex(const char *hex, char *out)
{
    size_t n = strlen(hex) / 2;
    for (size_t i = 0; i < n; i++) {
        unsigned value;
        sscanf(hex + 2 * i, "%2x", &value);
        out[i] = (char)value;
    }
    return n;
}

// The vocabulary as the script makes it: bytes, what the merges make, a special token.
static void golden_vocabulary(const cJSON *merges, const char *pre)
{
    static char joined[PIECES_MAX][64];
    const cJSON *m;
    start();
    cJSON_ArrayForEach(m, merges)
    {
        const char *space = strchr(m->valuestring, ' ');
        char *text = joined[v.n_merges];
        snprintf(text, sizeof joined[0], "%.*s%s", (int)(space - m->valuestring), m->valuestring,
                 space + 1);
        merge(m->valuestring);
        size_t i = 0;
        while (i < v.n && strcmp(v.token[i].text, text))
            i++;
        if (i == v.n)
            add(text, 1);
    }
    add("<|endoftext|>", 3);
    finish(pre);
}

static void test_pre_tokenizers(void **state)
{
    (void)state;
    cJSON *root = read_json(INST_SOURCE_DIR "/tests/data/tokens_pre.json");
    const cJSON *texts = cJSON_GetObjectItem(root, "texts"), *pre, *first = NULL;
    int compared = 0, wrong = 0;
    cJSON_ArrayForEach(pre, cJSON_GetObjectItem(root, "pre"))
    {
        const char *name = cJSON_GetObjectItem(pre, "name")->valuestring;
        const cJSON *ids = cJSON_GetObjectItem(pre, "plain")->child, *text;
        golden_vocabulary(cJSON_GetObjectItem(root, "merges"), name);
        if (!first)
            first = ids;
        const cJSON *same = first;
        cJSON_ArrayForEach(text, texts)
        {
            char raw[2000];
            struct token_list list = {.budget = &v.budget};
            size_t bytes = unhex(text->valuestring, raw);
            const cJSON *want = cJSON_IsNumber(ids) ? same : ids;
            assert_int_equal(tokenizer_encode(v.t, raw, bytes, 0, &list, NULL), 0);
            if (!cJSON_IsNull(want)) {
                const cJSON *id = want->child;
                bool equal = (uint64_t)cJSON_GetArraySize(want) == list.count;
                for (uint64_t i = 0; equal && i < list.count; i++, id = id->next)
                    equal = list.ids[i] == (uint32_t)id->valuedouble;
                if (!equal)
                    print_error("%s: text %s\n", name, text->valuestring);
                wrong += !equal;
                compared++;
            }
            token_list_free(&list);
            ids = ids->next;
            same = same->next;
        }
        end();
    }
    cJSON_Delete(root);
    print_message("%d texts compared with llama.cpp, %d wrong\n", compared, wrong);
    assert_int_equal(wrong, 0);
    assert_true(compared > 4800);
}

// A quarter of a megabyte of each kind of text that a pattern could stumble over, in little more
// than linear time.
static void test_long(void **state)
{
    (void)state;
    enum { BYTES = 1 << 18 };
    static const struct {
        const char *what, *unit;
    } kinds[] = {
        {"words", "the quick brown fox jumps over the lazy dog, 12 times. "},
        {"one letter", "a"},
        {"capitals", "A"},
        {"spaces", " "},
        {"line breaks", "\r\n"},
        {"digits", "7"},
        {"marks", "!"},
        {"Chinese", "\xe4\xb8\xad"},
        {"accents", "\xcc\x81"},
        {"broken", "\xff"},
    };
    static const char *const pres[] = {"gpt-2",  "llama-bpe", "qwen2",        "smollm",
                                       "tekken", "gpt-4o",    "deepseek-llm", "default"};
    char *text = malloc(BYTES + 64);
    for (size_t p = 0; p < sizeof pres / sizeof *pres; p++) {
        start();
        add("aa", 1);
        add("th", 1);
        add("the", 1);
        merge("a a");
        merge("t h");
        merge("th e");
        finish(pres[p]);
        for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
            struct token_list list = {.budget = &v.budget};
            struct inst_msg msg = {{0}};
            size_t unit = strlen(kinds[k].unit), bytes = 0;
            for (; bytes + unit < BYTES; bytes += unit)
                memcpy(text + bytes, kinds[k].unit, unit);
            text[bytes++] = 'x'; // a run that ends with something else
            double begin = processor_seconds();
            if (tokenizer_encode(v.t, text, bytes, 0, &list, &msg))
                fail_msg("%s, %s: %s", pres[p], kinds[k].what, msg.text);
            double took = processor_seconds() - begin;
            if (k == 0 || took > 0.2)
                print_message("%s, %s: %.0f ms/MB\n", pres[p], kinds[k].what,
                              1e3 * took / ((double)bytes / 1e6));
            assert_true(took < 10);
            assert_true(list.count > 0);
            token_list_free(&list);
        }
        end();
    }
    free(text);
}

// Wherever the budget gives out: INST_ENOMEM, the list as before, nothing lost.
static void test_budget(void **state)
{
    (void)state;
    char text[4000];
    int refused = 0;
    start();
    add("aa", 1);
    merge("a a");
    merge("b b"); // makes a string that is no token
    finish("llama-bpe");
    memset(text, 'a', sizeof text);
    memset(text + 1500, '\xff', 300);
    for (uint64_t limit = 0; limit < 600 << 10; limit += 4 << 10) {
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
    assert_true(refused > 3 && refused < 149);
    refused = 0;
    for (uint64_t limit = 0; limit < 256 << 10; limit += 512) {
        struct budget small;
        struct tokenizer *t;
        struct inst_msg msg = {{0}};
        budget_init(&small, limit);
        int rc = tokenizer_open(&t, v.gguf, &small, &msg);
        refused += rc != 0;
        if (rc) {
            assert_int_equal(rc, INST_ENOMEM);
            assert_true(msg.text[0]);
        }
        tokenizer_free(t);
        assert_int_equal(small.used, 0);
    }
    assert_true(refused > 3 && refused < 511);
    end();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_merges),         cmocka_unit_test(test_whole_words),
        cmocka_unit_test(test_special),        cmocka_unit_test(test_few_bytes),
        cmocka_unit_test(test_broken),         cmocka_unit_test(test_against_definition),
        cmocka_unit_test(test_pre_tokenizers), cmocka_unit_test(test_long),
        cmocka_unit_test(test_budget),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
