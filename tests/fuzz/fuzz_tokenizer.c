// SPDX-License-Identifier: Apache-2.0
// Any vocabulary and any text: encoding equals the plain definition, and decoding gives the text
// back. Input: one byte of flags; then tokens, each as (length, score, bytes), until a length of 0;
// then the text. With flag 4 the vocabulary is BPE, the pre-tokenizer in the bits above, and each
// token also a merge, cut where its score says. The text also goes through the UTF-8 stream in two
// different cuts.
#include "host/model/text.h"
#include "host/model/tokenizer_pre.h"
#include "tests/host/model_build.h"

#include <stdio.h>

enum { TOKENS = 512, FIXED = 3 + 256 };

static size_t make_tokens(struct build_token *token, char (*names)[8], const uint8_t **p,
                          const uint8_t *end, bool special)
{
    static const char *const fixed[] = {"<unk>", "<s>", "</s>"};
    size_t n = 0;
    for (; n < 3; n++)
        token[n] = (struct build_token){fixed[n], strlen(fixed[n]), 0, n ? 3 : 2};
    for (unsigned b = 0; b < 256; b++, n++) {
        snprintf(names[b], sizeof names[b], "<0x%02X>", b);
        token[n] = (struct build_token){names[b], 6, 0, 6};
    }
    while (n < TOKENS && end - *p >= 2 && **p) {
        size_t length = **p % 16, i;
        float score = (float)(int8_t)(*p)[1];
        *p += 2;
        if (length > (size_t)(end - *p))
            length = (size_t)(end - *p);
        for (i = 0; i < n; i++)
            if (token[i].bytes == length && !memcmp(token[i].text, *p, length))
                break;
        if (i == n && length)
            token[n++] = (struct build_token){(const char *)*p, length, score,
                                              special && (int)score % 5 == 0 ? 4 : 1};
        *p += length;
    }
    if (*p < end)
        ++*p;
    return n;
}

static void check_stream(const char *text, size_t bytes)
{
    char *whole = malloc(text_stream_room(bytes)), *parts = malloc(text_stream_room(bytes) + 64);
    struct text_stream a = {{0}, 0}, b = {{0}, 0};
    size_t n = text_stream_push(&a, text, bytes, whole), m = 0;
    n += text_stream_end(&a, whole + n);
    for (size_t i = 0; i < bytes; i++)
        m += text_stream_push(&b, text + i, 1, parts + m);
    m += text_stream_end(&b, parts + m);
    if (n != m || memcmp(whole, parts, n))
        abort();
    for (size_t i = 0; i < n;) {
        int length = text_utf8_length((const unsigned char *)whole + i, n - i);
        if (length < 1)
            abort();
        i += (size_t)length;
    }
    free(whole);
    free(parts);
}

static void check_text(const struct tokenizer *t, const struct build_token *token, const char *text,
                       size_t bytes, bool special, bool prefix, struct budget *budget)
{
    struct token_list list = {.budget = budget};
    struct inst_msg msg = {{0}};
    if (tokenizer_encode(t, text, bytes, special ? TOKENIZER_PARSE_SPECIAL : 0, &list, &msg))
        abort();
    if (!special) {
        uint32_t *ids = malloc((3 * bytes + 4) * sizeof *ids);
        size_t n = naive_encode(t, token, text, bytes, prefix, ids);
        if (n != list.count || (n && memcmp(ids, list.ids, n * sizeof *ids)))
            abort();
        free(ids);
    }
    char *out = malloc(list.count * 16 + 1);
    uint64_t n =
        tokenizer_decode(t, list.ids, list.count, TOKENIZER_SHOW_SPECIAL, out, list.count * 16 + 1);
    if (n > list.count * 16)
        abort();
    free(out);
    token_list_free(&list);
}

static const char *const pres[] = {"gpt-2",        "llama-bpe", "qwen2", "smollm", "tekken",
                                   "deepseek-llm", "default",   "dbrx",  "gpt-4o"};

struct bpe_input {
    struct build_token token[TOKENS], merge[TOKENS];
    char text[TOKENS][40], joined[TOKENS][40];
    size_t n, n_merges;
    bool whole; // every merge makes a token: otherwise bytes may vanish, as in llama.cpp
};

static void bpe_tokens(struct bpe_input *in, const uint8_t **p, const uint8_t *end)
{
    in->n = in->n_merges = 0;
    in->whole = true;
    for (unsigned b = 0; b < 256; b++) {
        size_t bytes = build_visible(b, in->text[in->n]);
        in->token[in->n] = (struct build_token){in->text[in->n], bytes, 0, 1};
        in->n++;
    }
    while (in->n < TOKENS && end - *p >= 2 && **p) {
        size_t length = **p % 16, cut = (*p)[1] % 16, left = 0, bytes = 0, i;
        bool is_token = (*p)[1] & 16;
        in->whole = in->whole && is_token;
        char *text = in->text[in->n], *merge = in->joined[in->n];
        *p += 2;
        if (length > (size_t)(end - *p))
            length = (size_t)(end - *p);
        for (i = 0; i < length; i++) {
            if (i == cut)
                left = bytes;
            bytes += build_visible((*p)[i], text + bytes);
        }
        *p += length;
        memcpy(merge, text, left);
        merge[left] = ' ';
        memcpy(merge + left + 1, text + left, bytes - left);
        in->merge[in->n_merges++] = (struct build_token){merge, bytes + 1, 0, 1};
        in->token[in->n++] = (struct build_token){text, is_token ? bytes : 0, 0, 1};
    }
    if (*p < end)
        ++*p;
}

struct words {
    const struct tokenizer *t;
    const struct bpe_input *in;
    bool whole;
    uint32_t *ids;
    char *text;
    size_t n, bytes;
};

static int add_word(void *context, const char *text, uint64_t bytes)
{
    struct words *w = context;
    char *visible = malloc(2 * bytes + 1);
    size_t n = 0;
    if (!bytes)
        abort();
    memcpy(w->text + w->bytes, text, bytes);
    w->bytes += bytes;
    for (uint64_t i = 0; i < bytes; i++)
        n += build_visible((unsigned char)text[i], visible + n);
    uint32_t id = w->whole ? tokenizer_find(w->t, visible, n) : TOKENIZER_NONE;
    if (id != TOKENIZER_NONE)
        w->ids[w->n++] = id;
    else
        w->n += naive_bpe(w->t, w->in->merge, w->in->n_merges, text, bytes, w->ids + w->n);
    free(visible);
    return 0;
}

static void check_bpe_text(const struct tokenizer *t, const struct gguf *gguf,
                           const struct bpe_input *in, const char *text, size_t bytes,
                           struct budget *budget)
{
    struct pre *pre;
    struct pre_splitter *splitter;
    struct token_list list = {.budget = budget};
    if (pre_open(&pre, gguf, budget, NULL) || pre_splitter_new(&splitter, pre, budget, NULL) ||
        tokenizer_encode(t, text, bytes, 0, &list, NULL))
        abort();
    struct words w = {.t = t, .in = in, .whole = pre_ignores_merges(pre)};
    w.ids = malloc((6 * bytes + 1) * sizeof *w.ids);
    w.text = malloc(3 * bytes + 1);
    if (pre_split(splitter, text, bytes, add_word, &w, NULL))
        abort();
    if (w.n != list.count || (w.n && memcmp(w.ids, list.ids, w.n * sizeof *w.ids)))
        abort();
    char *out = malloc(w.bytes + 1);
    uint64_t n = tokenizer_decode(t, list.ids, list.count, 0, out, w.bytes);
    if (in->whole && (n != w.bytes || memcmp(out, w.text, n)))
        abort();
    bool valid = true;
    for (size_t i = 0; i < bytes && valid;) {
        int length = text_utf8_length((const unsigned char *)text + i, bytes - i);
        valid = length > 0;
        i += valid ? (size_t)length : 0;
    }
    if (in->whole && valid && (n != bytes || memcmp(out, text, n)))
        abort();
    free(out);
    free(w.text);
    free(w.ids);
    token_list_free(&list);
    pre_splitter_free(splitter);
    pre_close(pre);
}

static int test_bpe(uint8_t flags, const uint8_t *p, const uint8_t *end)
{
    static struct bpe_input in;
    struct build b;
    struct budget budget;
    struct gguf *gguf;
    struct tokenizer *t;
    struct inst_msg msg = {{0}};
    bpe_tokens(&in, &p, end);
    budget_init(&budget, 64 << 20);
    build_begin(&b);
    build_bpe(&b, pres[(flags >> 3) % (sizeof pres / sizeof *pres)], in.token, in.n, in.merge,
              in.n_merges);
    if (gguf_open_memory(&gguf, b.data, b.bytes, "fuzz", &budget, &msg) ||
        tokenizer_open(&t, gguf, &budget, &msg))
        abort();
    size_t bytes = (size_t)(end - p);
    char *text = malloc(bytes + 1);
    if (bytes)
        memcpy(text, p, bytes);
    check_bpe_text(t, gguf, &in, text, bytes > 600 ? 600 : bytes, &budget);
    free(text);
    tokenizer_free(t);
    gguf_close(gguf);
    free(b.data);
    if (budget.used)
        abort();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct build_token token[TOKENS];
    static char names[256][8];
    const uint8_t *p = data, *end = data + size;
    struct build b;
    struct budget budget;
    struct gguf *gguf;
    struct tokenizer *t;
    struct inst_msg msg = {{0}};
    if (!size)
        return 0;
    if (*p & 4)
        return test_bpe(*p, p + 1, end);
    bool special = *p & 1, prefix = *p & 2;
    p++;
    size_t n = make_tokens(token, names, &p, end, special);
    budget_init(&budget, 64 << 20);
    build_begin(&b);
    build_vocabulary(&b, token, n);
    build_key_bool(&b, "tokenizer.ggml.add_space_prefix", prefix);
    if (gguf_open_memory(&gguf, b.data, b.bytes, "fuzz", &budget, &msg) ||
        tokenizer_open(&t, gguf, &budget, &msg))
        abort();
    size_t bytes = (size_t)(end - p);
    char *text = malloc(bytes + 1);
    if (bytes)
        memcpy(text, p, bytes);
    check_text(t, token, text, bytes, special, prefix, &budget);
    check_stream(text, bytes);
    free(text);
    tokenizer_free(t);
    gguf_close(gguf);
    free(b.data);
    if (budget.used)
        abort();
    return 0;
}
