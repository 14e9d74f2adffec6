// SPDX-License-Identifier: Apache-2.0
// What tests of chat templates share: a vocabulary of bytes and special tokens, the golden values
// and the template texts of tests/data.
#ifndef INST_TESTS_MODEL_CHAT_H
#define INST_TESTS_MODEL_CHAT_H

#include "host/model/template.h"
#include "tests/host/model_build.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cjson/cJSON.h>
#include <cmocka.h>

static inline struct gguf_string string_of(const char *text)
{
    return (struct gguf_string){text, strlen(text)};
}

// A vocabulary: bytes, and the special tokens given.
struct vocabulary {
    struct build b;
    struct budget budget;
    struct gguf *gguf;
    struct tokenizer *t;
};

struct special {
    const char *text;
    int32_t type;
};

static inline void open_vocabulary(struct vocabulary *v, const struct special *special, size_t n,
                                   const char *chat_template)
{
    static char names[256][8];
    struct build_token token[300] = {{"<unk>", 5, 0, 2}};
    size_t count = 1;
    for (unsigned b = 0; b < 256; b++) {
        snprintf(names[b], sizeof names[b], "<0x%02X>", b);
        token[count++] = (struct build_token){names[b], 6, 0, 6};
    }
    for (size_t i = 0; i < n; i++)
        token[count++] =
            (struct build_token){special[i].text, strlen(special[i].text), 0, special[i].type};
    build_begin(&v->b);
    build_vocabulary(&v->b, token, count);
    build_key_bool(&v->b, "tokenizer.ggml.add_space_prefix", false);
    build_key_bool(&v->b, "tokenizer.ggml.add_bos_token", false);
    build_key_u32(&v->b, "tokenizer.ggml.bos_token_id", 257);
    build_key_u32(&v->b, "tokenizer.ggml.eos_token_id", 258);
    if (chat_template)
        build_key_string(&v->b, "tokenizer.chat_template", chat_template);
    budget_init(&v->budget, 64 << 20);
    assert_int_equal(gguf_open_memory(&v->gguf, v->b.data, v->b.bytes, "test", &v->budget, NULL),
                     0);
    assert_int_equal(tokenizer_open(&v->t, v->gguf, &v->budget, NULL), 0);
}

static inline void close_vocabulary(struct vocabulary *v)
{
    tokenizer_free(v->t);
    gguf_close(v->gguf);
    free(v->b.data);
    assert_int_equal(v->budget.used, 0);
}

static inline const char *get(const cJSON *o, const char *name)
{
    return cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(o, name));
}

// A whole file with a 0 behind it; the caller frees it.
static inline char *read_file(const char *path)
{
    FILE *f = fopen(path, "rb");
    if (!f)
        print_error("%s cannot be read\n", path);
    assert_non_null(f);
    char *text = NULL;
    size_t n = 0, room = 0, got;
    do {
        text = realloc(text, (room += 1 << 20) + 1);
        n += got = fread(text + n, 1, room - n, f);
    } while (got);
    fclose(f);
    text[n] = 0;
    return text;
}

static inline char *read_template(const char *name)
{
    char path[4096];
    snprintf(path, sizeof path, INST_SOURCE_DIR "/tests/data/templates/%s.jinja", name);
    return read_file(path);
}

static inline cJSON *read_goldens(const char *path, struct tm *today)
{
    char *text = read_file(path);
    cJSON *json = cJSON_Parse(text);
    free(text);
    assert_non_null(json);
    assert_int_equal(
        sscanf(get(json, "today"), "%d-%d-%d", &today->tm_year, &today->tm_mon, &today->tm_mday),
        3);
    today->tm_year -= 1900;
    today->tm_mon--;
    return json;
}

// A model's template: word for word in the golden values, or in its file.
static inline char *text_of(const cJSON *model)
{
    const char *text = get(model, "template");
    return text ? strdup(text) : read_template(get(model, "name"));
}

#endif
