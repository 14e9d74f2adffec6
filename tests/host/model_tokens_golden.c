// SPDX-License-Identifier: Apache-2.0
// Ids against llama.cpp's for the texts of tests/data/tokens_llama_spm.json and tokens_bpe.json, on
// the vocabularies of the tree and, where they are at hand, on those that may not lie in it.
// Decoding must give each text back.
#include "host/model/text.h"
#include "host/model/tokenizer.h"
#include "tests/needs.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>
#include <cmocka.h>

static int cases, round_trips;

static char *unhex(const char *hex, uint64_t *bytes)
{
    *bytes = strlen(hex) / 2;
    char *out = malloc(*bytes + 1);
    for (uint64_t i = 0; i < *bytes; i++) {
        unsigned value;
        sscanf(hex + 2 * i, "%2x", &value);
        out[i] = (char)value;
    }
    out[*bytes] = 0;
    return out;
}

static int compare(const struct token_list *list, const cJSON *ids, const char *what, int index)
{
    int n = cJSON_GetArraySize(ids);
    const cJSON *id = ids->child;
    if (cJSON_IsNull(ids)) // llama.cpp has no answer
        return 0;
    bool same = (uint64_t)n == list->count;
    cases++;
    for (uint64_t i = 0; same && i < list->count; i++, id = id->next)
        same = list->ids[i] == (uint32_t)id->valuedouble;
    if (!same)
        print_error("text %d (%s): %d ids expected, got %llu\n", index, what, n,
                    (unsigned long long)list->count);
    return !same;
}

// U+2581 and a space are one thing to this kind of tokenizer, which may come back as either where
// broken UTF-8 stands before it.
static uint64_t with_spaces(char *text, uint64_t bytes)
{
    uint64_t n = 0;
    for (uint64_t i = 0; i < bytes;) {
        if (bytes - i >= 3 && !memcmp(text + i, "\xe2\x96\x81", 3)) {
            text[n++] = ' ';
            i += 3;
        } else {
            text[n++] = text[i++];
        }
    }
    return n;
}

static bool is_utf8(const char *text, uint64_t bytes)
{
    for (uint64_t i = 0; i < bytes;) {
        int length = text_utf8_length((const unsigned char *)text + i, bytes - i);
        if (length < 1)
            return false;
        i += (uint64_t)length;
    }
    return true;
}

// "gpt2" gives back what is UTF-8, "llama" everything.
static int round_trip(const struct tokenizer *t, const struct token_list *list, unsigned flags,
                      const char *text, uint64_t bytes, int index)
{
    bool spm = !strcmp(tokenizer_kind(t), "llama");
    if (!spm && !is_utf8(text, bytes))
        return 0;
    uint64_t room = 3 * bytes + 64;
    char *want = malloc(bytes + 1), *back = malloc(room);
    memcpy(want, text, bytes);
    uint64_t n = tokenizer_decode(t, list->ids, list->count, flags, back, room);
    if (spm) {
        bytes = with_spaces(want, bytes);
        n = with_spaces(back, n);
    }
    bool same = n == bytes && !memcmp(back, want, n);
    if (!same)
        print_error("text %d: decoding gives %llu bytes, not %llu\n", index, (unsigned long long)n,
                    (unsigned long long)bytes);
    round_trips++;
    free(back);
    free(want);
    return !same;
}

static int check_model(const cJSON *golden, const cJSON *model, const char *path)
{
    struct gguf *gguf;
    struct tokenizer *t;
    struct inst_msg msg = {{0}};
    struct budget budget;
    int wrong = 0, index = 0;
    budget_init(&budget, 32 << 20);
    if (gguf_open(&gguf, path, &budget, &msg) || tokenizer_open(&t, gguf, &budget, &msg))
        fail_msg("%s", msg.text);
    const cJSON *plain = cJSON_GetObjectItem(model, "plain")->child;
    const cJSON *parsed = cJSON_GetObjectItem(model, "parsed")->child;
    const cJSON *bos = cJSON_GetObjectItem(model, "bos")->child;
    const cJSON *text;
    cJSON_ArrayForEach(text, cJSON_GetObjectItem(golden, "texts"))
    {
        uint64_t bytes;
        char *raw = unhex(text->valuestring, &bytes);
        struct token_list list = {.budget = &budget};
        assert_int_equal(tokenizer_encode(t, raw, bytes, 0, &list, &msg), 0);
        wrong += compare(&list, plain, "plain", index);

        wrong += round_trip(t, &list, 0, raw, bytes, index);
        list.count = 0;
        assert_int_equal(tokenizer_encode(t, raw, bytes, TOKENIZER_PARSE_SPECIAL, &list, &msg), 0);
        wrong += compare(&list, cJSON_IsNumber(parsed) ? plain : parsed, "parsed", index);
        if (!strcmp(tokenizer_kind(t), "gpt2"))
            wrong += round_trip(t, &list, TOKENIZER_SHOW_SPECIAL, raw, bytes, index);
        if (bos) {
            list.count = 0;
            assert_int_equal(tokenizer_encode(t, raw, bytes,
                                              TOKENIZER_PARSE_SPECIAL | TOKENIZER_ADD_SPECIAL,
                                              &list, &msg),
                             0);
            wrong += compare(&list, bos, "bos", index);
            bos = bos->next;
        }
        free(raw);
        token_list_free(&list);
        plain = plain->next;
        parsed = parsed->next;
        index++;
    }
    tokenizer_free(t);
    gguf_close(gguf);
    assert_int_equal(budget.used, 0);
    return wrong;
}

// least: how many of its vocabularies lie in the tree.
static void check_file(const char *path, int models, int least, int texts)
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    fseek(f, 0, SEEK_END);
    size_t size = (size_t)ftell(f);
    rewind(f);
    char *json = malloc(size + 1);
    json[fread(json, 1, size, f)] = 0;
    fclose(f);
    cJSON *golden = cJSON_Parse(json);
    free(json);
    assert_non_null(golden);
    const cJSON *model;
    int wrong = 0, compared = 0;
    cases = round_trips = 0;
    assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItem(golden, "models")), models);
    assert_true(cJSON_GetArraySize(cJSON_GetObjectItem(golden, "texts")) >= texts);
    cJSON_ArrayForEach(model, cJSON_GetObjectItem(golden, "models"))
    {
        char vocabulary[512];
        const char *name = cJSON_GetObjectItem(model, "file")->valuestring;
        if (!model_path(vocabulary, sizeof vocabulary, name))
            continue;
        int bad = check_model(golden, model, vocabulary);
        if (bad)
            print_error("%s: %d wrong\n", name, bad);
        wrong += bad;
        compared++;
    }
    print_message("%d encodings compared with llama.cpp, %d texts decoded, %d wrong\n", cases,
                  round_trips, wrong);
    assert_int_equal(wrong, 0);
    assert_true(compared >= least);
    assert_true(cases >= 2 * compared * texts - 20 && round_trips > texts);
    cJSON_Delete(golden);
}

static void test_spm(void **state)
{
    (void)state;
    check_file(INST_SOURCE_DIR "/tests/data/tokens_llama_spm.json", 3, 2, 300);
}

static void test_bpe(void **state)
{
    (void)state;
    check_file(INST_SOURCE_DIR "/tests/data/tokens_bpe.json", 3, 2, 300);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_spm), cmocka_unit_test(test_bpe)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
