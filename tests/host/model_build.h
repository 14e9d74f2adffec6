// SPDX-License-Identifier: Apache-2.0
// For tests and fuzz targets: GGUF bytes with a vocabulary, made in memory, and the plainest
// possible encoder to compare with.
#ifndef INST_TESTS_HOST_MODEL_BUILD_H
#define INST_TESTS_HOST_MODEL_BUILD_H

#include "base/le.h"
#include "host/model/tokenizer.h"

#include <stdlib.h>
#include <string.h>

struct build {
    uint8_t *data; // malloc'ed; the caller frees it
    size_t bytes, room;
    uint64_t keys;
};

static inline void build_put(struct build *b, const void *p, size_t n)
{
    if (b->bytes + n > b->room) {
        b->room = 2 * (b->bytes + n) + 256;
        b->data = realloc(b->data, b->room);
    }
    if (n)
        memcpy(b->data + b->bytes, p, n);
    b->bytes += n;
}

static inline void build_u32(struct build *b, uint32_t v)
{
    build_put(b, &v, sizeof v);
}

static inline void build_u64(struct build *b, uint64_t v)
{
    build_put(b, &v, sizeof v);
}

static inline void build_string(struct build *b, const char *p, size_t n)
{
    build_u64(b, n);
    build_put(b, p, n);
}

static inline void build_begin(struct build *b)
{
    memset(b, 0, sizeof *b);
    build_put(b, "GGUF", 4);
    build_u32(b, 3);
    build_u64(b, 0);
    build_u64(b, 0);
}

static inline void build_key(struct build *b, const char *name, uint32_t type)
{
    b->keys++;
    le_put64(b->data + 16, b->keys);
    build_string(b, name, strlen(name));
    build_u32(b, type);
}

static inline void build_key_u32(struct build *b, const char *name, uint32_t v)
{
    build_key(b, name, GGUF_U32);
    build_u32(b, v);
}

static inline void build_key_bool(struct build *b, const char *name, bool v)
{
    uint8_t byte = v;
    build_key(b, name, GGUF_BOOL);
    build_put(b, &byte, 1);
}

static inline void build_key_string(struct build *b, const char *name, const char *v)
{
    build_key(b, name, GGUF_STRING);
    build_string(b, v, strlen(v));
}

static inline void build_key_array(struct build *b, const char *name, uint32_t type, uint64_t n)
{
    build_key(b, name, GGUF_ARRAY);
    build_u32(b, type);
    build_u64(b, n);
}

struct build_token {
    const char *text;
    size_t bytes;
    float score;
    int32_t type; // as in GGUF: 1 normal, 2 unknown, 3 control, 4 user-defined, 6 byte
};

static inline void build_vocabulary(struct build *b, const struct build_token *token, size_t n)
{
    build_key_string(b, "tokenizer.ggml.model", "llama");
    build_key_array(b, "tokenizer.ggml.tokens", GGUF_STRING, n);
    for (size_t i = 0; i < n; i++)
        build_string(b, token[i].text, token[i].bytes);
    build_key_array(b, "tokenizer.ggml.scores", GGUF_F32, n);
    for (size_t i = 0; i < n; i++)
        build_put(b, &token[i].score, 4);
    build_key_array(b, "tokenizer.ggml.token_type", GGUF_I32, n);
    for (size_t i = 0; i < n; i++)
        build_put(b, &token[i].type, 4);
}

static inline void build_pieces(struct build *b, const char *key, const struct build_token *piece,
                                size_t n)
{
    build_key_array(b, key, GGUF_STRING, n);
    for (size_t i = 0; i < n; i++)
        build_string(b, piece[i].text, piece[i].bytes);
}

// A BPE vocabulary; merges are "LEFT RIGHT", in visible characters like the tokens. No scores.
static inline void build_bpe(struct build *b, const char *pre, const struct build_token *token,
                             size_t n, const struct build_token *merge, size_t n_merges)
{
    build_key_string(b, "tokenizer.ggml.model", "gpt2");
    if (pre)
        build_key_string(b, "tokenizer.ggml.pre", pre);
    build_pieces(b, "tokenizer.ggml.tokens", token, n);
    build_key_array(b, "tokenizer.ggml.token_type", GGUF_I32, n);
    for (size_t i = 0; i < n; i++)
        build_put(b, &token[i].type, 4);
    build_pieces(b, "tokenizer.ggml.merges", merge, n_merges);
}

// The visible character of a byte; returns its length. `out` has room for 3.
static inline size_t build_visible(unsigned byte, char *out)
{
    unsigned hidden = 0, point = byte;
    for (unsigned b = 0; b <= byte; b++) {
        bool shown = (b > 0x20 && b < 0x7f) || (b > 0xa0 && b != 0xad);
        if (b == byte && !shown)
            point = 256 + hidden;
        hidden += !shown;
    }
    memset(out, 0, 3);
    if (point < 0x80) {
        out[0] = (char)point;
        return 1;
    }
    out[0] = (char)(0xc0 | point >> 6);
    out[1] = (char)(0x80 | (point & 63));
    return 2;
}

// Encodes one word by the definition of BPE, on strings. Returns the number of ids.
static inline size_t naive_bpe(const struct tokenizer *t, const struct build_token *merge,
                               size_t n_merges, const char *word, size_t bytes, uint32_t *ids)
{
    char *s = malloc(2 * bytes + 3);
    size_t *start = malloc((bytes + 2) * sizeof *start), symbols = 0, n = 0, count = 0;
    for (size_t i = 0; i < bytes; i++) {
        start[symbols++] = n;
        n += build_visible((unsigned char)word[i], s + n);
    }
    start[symbols] = n;
    for (bool merged = true; merged;) {
        merged = false;
        for (size_t r = 0; r < n_merges && !merged; r++) {
            const char *space =
                merge[r].bytes > 1 ? memchr(merge[r].text + 1, ' ', merge[r].bytes - 1) : NULL;
            if (!space)
                continue;
            size_t left = (size_t)(space - merge[r].text), right = merge[r].bytes - left - 1;
            for (size_t i = 0; i + 1 < symbols && right; i++)
                if (start[i + 1] - start[i] == left && start[i + 2] - start[i + 1] == right &&
                    !memcmp(s + start[i], merge[r].text, left) &&
                    !memcmp(s + start[i + 1], space + 1, right)) {
                    memmove(start + i + 1, start + i + 2, (symbols - i - 1) * sizeof *start);
                    symbols--;
                    merged = true;
                    break;
                }
        }
    }
    for (size_t i = 0; i < symbols; i++) {
        uint32_t id = tokenizer_find(t, s + start[i], start[i + 1] - start[i]);
        for (size_t j = start[i]; id == TOKENIZER_NONE && j < start[i + 1]; j++) {
            uint32_t byte = tokenizer_find(t, s + j, 1);
            if (byte != TOKENIZER_NONE)
                ids[count++] = byte;
        }
        if (id != TOKENIZER_NONE)
            ids[count++] = id;
    }
    free(start);
    free(s);
    return count;
}

// Encodes text without special tokens by the definition: over the whole text, again and again the
// leftmost of the best pairs. Quadratic and worse. Returns the number of ids; `ids` has room for
// 3 * bytes + 3.
static inline size_t naive_encode(const struct tokenizer *t, const struct build_token *token,
                                  const char *text, size_t bytes, bool prefix, uint32_t *ids)
{
    char *s = malloc(3 * bytes + 3);
    size_t n = 0, count = 0, symbols = 0;
    size_t *start = malloc((3 * bytes + 4) * sizeof *start);
    if (prefix && bytes)
        memcpy(s, "\xe2\x96\x81", n = 3);
    for (size_t i = 0; i < bytes; i++)
        if (text[i] == ' ') {
            memcpy(s + n, "\xe2\x96\x81", 3);
            n += 3;
        } else {
            s[n++] = text[i];
        }
    for (size_t i = 0; i < n;) {
        unsigned char c = (unsigned char)s[i];
        start[symbols++] = i;
        i += c < 0xc0 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
    }
    start[symbols] = n;
    while (true) {
        size_t best = symbols;
        float score = 0;
        for (size_t i = 0; i + 1 < symbols; i++) {
            uint32_t id = tokenizer_find(t, s + start[i], start[i + 2] - start[i]);
            if (id != TOKENIZER_NONE && (best == symbols || token[id].score > score)) {
                best = i;
                score = token[id].score;
            }
        }
        if (best == symbols)
            break;
        memmove(start + best + 1, start + best + 2, (symbols - best - 1) * sizeof *start);
        symbols--;
    }
    for (size_t i = 0; i < symbols; i++) {
        uint32_t id = tokenizer_find(t, s + start[i], start[i + 1] - start[i]);
        for (size_t j = start[i]; id == TOKENIZER_NONE && j < start[i + 1]; j++) {
            static const char hex[] = "0123456789ABCDEF";
            unsigned char c = (unsigned char)s[j];
            char name[6] = {'<', '0', 'x', hex[c >> 4], hex[c & 15], '>'};
            uint32_t byte = tokenizer_find(t, name, 6);
            if (byte == TOKENIZER_NONE)
                byte = tokenizer_find(t, s + j, 1);
            ids[count++] = byte == TOKENIZER_NONE ? 0 : byte; // 0: the unknown token
        }
        if (id != TOKENIZER_NONE)
            ids[count++] = id;
    }
    free(start);
    free(s);
    return count;
}

#endif
