// SPDX-License-Identifier: Apache-2.0
// Every code point in every pre-tokenizer against llama.cpp: tests/data/tokens_points.json has a
// checksum of its ids for each 4,096 of them, with what stands around each. And nothing of that is
// asked of the installed PCRE2, whose classes are of one version of Unicode or another: it is never
// told to know Unicode. Every day each block of the planes where classes vary meets two of the eight
// pre-tokenizers, otherwise all.
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "host/model/unicode.h"
#include "tests/host/model_build.h"
#include "tests/more.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cjson/cJSON.h>
#include <cmocka.h>

enum { BLOCK = 4096, POINTS = 0x110000, TOKENS_MAX = 4000 };

static int compiled;

// The linker puts this in the place of pcre2_compile (tests/host/model.cmake).
pcre2_code *__real_pcre2_compile_8(PCRE2_SPTR pattern, PCRE2_SIZE length, uint32_t options,
                                   int *error, PCRE2_SIZE *at, pcre2_compile_context *context);
pcre2_code *__wrap_pcre2_compile_8(PCRE2_SPTR pattern, PCRE2_SIZE length, uint32_t options,
                                   int *error, PCRE2_SIZE *at, pcre2_compile_context *context);
pcre2_code *__wrap_pcre2_compile_8(PCRE2_SPTR pattern, PCRE2_SIZE length, uint32_t options,
                                   int *error, PCRE2_SIZE *at, pcre2_compile_context *context)
{
    static const char *const asked[] = {"\\p", "\\P", "\\s", "\\S", "\\w", "\\W", "\\d", "\\D",
                                        "\\b", "\\h", "\\X", "\\R", "[:",  "(?i", "(*"};
    assert_false(options & (PCRE2_UTF | PCRE2_UCP | PCRE2_CASELESS | PCRE2_MATCH_INVALID_UTF));
    assert_true(options & PCRE2_NEVER_UTF && options & PCRE2_NEVER_UCP);
    for (size_t i = 0; i < sizeof asked / sizeof *asked; i++)
        if (strstr((const char *)pattern, asked[i]))
            fail_msg("a pattern asks PCRE2 for %s: %s", asked[i], (const char *)pattern);
    compiled++;
    return __real_pcre2_compile_8(pattern, length, options, error, at, context);
}

struct vocabulary {
    struct build_token token[TOKENS_MAX], merge[TOKENS_MAX];
    char tokens[TOKENS_MAX][6], merges[TOKENS_MAX][6];
    size_t n, n_merges;
    struct budget budget;
    struct build b;
    struct gguf *gguf;
    struct tokenizer *t;
};

static struct vocabulary v;

static void add_pair(unsigned left, unsigned right)
{
    char *merge = v.merges[v.n_merges], *text = v.tokens[v.n];
    size_t bytes = build_visible(left, merge);
    memcpy(text, merge, bytes);
    merge[bytes] = ' ';
    size_t more = build_visible(right, merge + bytes + 1);
    memcpy(text + bytes, merge + bytes + 1, more);
    for (size_t i = 0; i < v.n_merges; i++)
        if (!strcmp(v.merges[i], merge))
            return;
    v.merge[v.n_merges++] = (struct build_token){merge, bytes + 1 + more, 0, 1};
    v.token[v.n++] = (struct build_token){text, bytes + more, 0, 1};
}

// As the script makes it: bytes, and a merge of each two that may meet where one character ends and
// the other begins, so that ids tell whether both are in one word.
static void make_vocabulary(void)
{
    static const char left[] = "a1!\x80"
                               "A'x",
                      right[] = "x1!\xe4"
                                "A'\n";
    memset(&v, 0, sizeof v);
    for (unsigned b = 0; b < 256; b++, v.n++)
        v.token[v.n] = (struct build_token){v.tokens[v.n], build_visible(b, v.tokens[v.n]), 0, 1};
    for (const char *r = right; *r; r++)
        for (unsigned b = 0; b < 0xc0; b++)
            add_pair(b, (unsigned char)*r);
    for (const char *l = left; *l; l++)
        for (unsigned b = 0; b < 0xf5; b++)
            if (b < 0x80 || b >= 0xc2)
                add_pair((unsigned char)*l, b);
}

static void open_as(const char *pre)
{
    struct inst_msg msg = {{0}};
    budget_init(&v.budget, 64 << 20);
    build_begin(&v.b);
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

static size_t put_point(char *out, uint32_t point)
{
    if (point < 0x80) {
        out[0] = (char)point;
        return 1;
    }
    size_t bytes = point < 0x800 ? 2 : point < 0x10000 ? 3 : 4;
    for (size_t i = bytes - 1; i > 0; i--, point >>= 6)
        out[i] = (char)(0x80 | (point & 0x3f));
    out[0] = (char)(0xf0u << (4 - bytes) | point);
    return bytes;
}

// zlib's, of the ids in little-endian order.
static uint32_t crc32(const uint32_t *ids, uint64_t n)
{
    static uint32_t table[256];
    uint32_t crc = ~0u;
    for (uint32_t byte = 0; !table[255] && byte < 256; byte++) {
        uint32_t value = byte;
        for (int bit = 0; bit < 8; bit++)
            value = value >> 1 ^ (value & 1 ? 0xedb88320u : 0);
        table[byte] = value;
    }
    for (uint64_t i = 0; i < n; i++)
        for (unsigned shift = 0; shift < 32; shift += 8)
            crc = crc >> 8 ^ table[(crc ^ ids[i] >> shift) & 0xff];
    return ~crc;
}

static uint32_t checksum(uint32_t block)
{
    static char text[BLOCK * 48];
    struct token_list list = {.budget = &v.budget};
    struct inst_msg msg = {{0}};
    size_t bytes = 0;
    for (uint32_t point = block * BLOCK; point < (block + 1) * BLOCK; point++) {
        static const char *const before[] = {"a", "1", "!", "\xe4\xb8\x80", "A", "'", "x"};
        for (size_t i = 0; i < sizeof before / sizeof *before; i++) {
            memcpy(text + bytes, before[i], strlen(before[i]));
            bytes += strlen(before[i]);
            bytes += put_point(text + bytes, point);
        }
        text[bytes++] = '\n';
    }
    if (tokenizer_encode(v.t, text, bytes, 0, &list, &msg))
        fail_msg("%s", msg.text);
    uint32_t crc = crc32(list.ids, list.count);
    token_list_free(&list);
    return crc;
}

static cJSON *read_golden(void)
{
    FILE *f = fopen(INST_SOURCE_DIR "/tests/data/tokens_points.json", "rb");
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

// The planes beyond U+1FFFF hold one class nearly everywhere.
static bool is_skipped(int pre, uint32_t block)
{
    if (more() || block == 0)
        return false;
    return block < 0x20 || block == 0xe0 ? block % 4 != (unsigned)pre % 4
                                         : pre > 0 || block % 16 != 0;
}

static void test_every_code_point(void **state)
{
    (void)state;
    cJSON *root = read_golden();
    const cJSON *pre, *crc;
    int wrong = 0, compared = 0, pres = 0;
    make_vocabulary();
    cJSON_ArrayForEach(pre, cJSON_GetObjectItem(root, "pre"))
    {
        const char *name = cJSON_GetObjectItem(pre, "name")->valuestring;
        uint32_t block = 0;
        open_as(name);
        cJSON_ArrayForEach(crc, cJSON_GetObjectItem(pre, "crc"))
        {
            if (!is_skipped(pres, block)) {
                bool same = checksum(block) == strtoul(crc->valuestring, NULL, 16);
                if (!same)
                    print_error("%s: other ids in U+%04X to U+%04X\n", name, block * BLOCK,
                                block * BLOCK + BLOCK - 1);
                wrong += !same;
                compared++;
            }
            block++;
        }
        assert_int_equal(block, POINTS / BLOCK);
        end();
        pres++;
    }
    cJSON_Delete(root);
    print_message("%d blocks of code points compared with llama.cpp, %d wrong\n", compared, wrong);
    assert_int_equal(wrong, 0);
    assert_int_equal(pres, 8);
    assert_true(compiled > pres);
}

// The whole range without a hole, and as many of each class as Unicode 15.1 counts in
// DerivedGeneralCategory.txt; six controls are white space.
static void test_classes(void **state)
{
    (void)state;
    static const uint32_t want[] = {964469 - 6, 136726, 2450, 1831, 842, 7775, 19 + 6};
    uint32_t count[8] = {0}, end = 0, last = 7;
    while (end < POINTS) {
        struct unicode_run run = unicode_run_of(end);
        assert_int_equal(run.first, end);
        assert_true(run.end > end && run.class != last);
        struct unicode_run same = unicode_run_of(run.end - 1);
        assert_memory_equal(&same, &run, sizeof run);
        count[run.class] += run.end - run.first;
        last = run.class;
        end = run.end;
    }
    assert_int_equal(end, POINTS);
    assert_memory_equal(count, want, sizeof want);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_classes),
        cmocka_unit_test(test_every_code_point),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
