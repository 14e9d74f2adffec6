// SPDX-License-Identifier: Apache-2.0
// The vocabulary: reads and checks texts, scores and types of all tokens, and finds tokens by text.
#include "host/model/tokenizer_internal.h"

#include "base/checked.h"
#include "base/le.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <ctype.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { TOKENS_MAX = 1 << 24 };

float token_score(const struct tokenizer *t, uint32_t id)
{
    if (!t->scores)
        return 0;
    const uint8_t *p = t->scores + (uint64_t)id * 4;
    return t->scores_are_int ? (float)(int32_t)le_get32(p) : le_getf32(p);
}

// Where the text is in the hash table, or where it would go.
static uint64_t find_slot(const struct tokenizer *t, const char *text, uint64_t bytes)
{
    uint64_t i = XXH3_64bits(text, bytes) & t->slot_mask;
    for (; t->slot[i]; i = (i + 1) & t->slot_mask) {
        uint32_t id = t->slot[i] - 1;
        if (t->token[id].bytes == bytes && !memcmp(token_text(t, id), text, bytes))
            break;
    }
    return i;
}

uint32_t tokenizer_find(const struct tokenizer *t, const char *text, uint64_t bytes)
{
    if (bytes == 0 || bytes > t->bytes_max)
        return TOKENIZER_NONE;
    uint32_t found = t->slot[find_slot(t, text, bytes)];
    return found ? found - 1 : TOKENIZER_NONE;
}

static int read_texts(struct tokenizer *t, const struct gguf_key *tokens, struct inst_msg *msg)
{
    uint64_t slots = 8, at = 0;
    if (tokens->count == 0 || tokens->count > TOKENS_MAX || tokens->bytes > UINT32_MAX)
        return gguf_fail_key(t->gguf, tokens, INST_EFORMAT, msg,
                             "%" PRIu64 " tokens (1 to %d allowed)", tokens->count, TOKENS_MAX);
    t->count = (uint32_t)tokens->count;
    t->texts = (const char *)tokens->data;
    while (slots < (uint64_t)t->count * 2)
        slots *= 2;
    t->token = budget_alloc(t->budget, t->count, sizeof *t->token, "the vocabulary", msg);
    t->attribute = budget_alloc(t->budget, t->count, 1, "the vocabulary", msg);
    t->slot = budget_alloc(t->budget, slots, sizeof *t->slot, "the vocabulary", msg);
    if (!t->token || !t->attribute || !t->slot)
        return INST_ENOMEM;
    t->slot_mask = slots - 1;
    for (uint32_t id = 0; id < t->count; id++) {
        struct gguf_string s = gguf_next_string(tokens, &at);
        if (s.bytes > TOKEN_BYTES_MAX)
            return gguf_fail_key(t->gguf, tokens, INST_EFORMAT, msg,
                                 "token %" PRIu32 " has %" PRIu64 " bytes (at most %d)", id,
                                 s.bytes, TOKEN_BYTES_MAX);
        t->token[id] = (struct vocab_token){(uint32_t)(s.data - t->texts), (uint32_t)s.bytes};
        t->bytes_max = (uint32_t)max_u64(t->bytes_max, s.bytes);
        // Some files pad with empty tokens, which nothing ever matches, and some have a text twice:
        // the last one is found by it, the others can still be printed.
        if (s.bytes)
            t->slot[find_slot(t, s.data, s.bytes)] = id + 1;
    }
    return 0;
}

static int read_scores(struct tokenizer *t, struct inst_msg *msg)
{
    const struct gguf_key *scores = gguf_find(t->gguf, "tokenizer.ggml.scores");
    if (!scores)
        return 0;
    t->scores_are_int = scores->array_type == GGUF_I32;
    if (scores->type != GGUF_ARRAY || (scores->array_type != GGUF_F32 && !t->scores_are_int))
        return gguf_fail_key(t->gguf, scores, INST_EFORMAT, msg, "not an array of numbers");
    if (scores->count < t->count)
        return gguf_fail_key(t->gguf, scores, INST_EFORMAT, msg,
                             "%" PRIu64 " scores for %" PRIu32 " tokens", scores->count, t->count);
    t->scores = scores->data;
    for (uint32_t id = 0; id < t->count; id++)
        if (token_score(t, id) != token_score(t, id))
            return gguf_fail_key(t->gguf, scores, INST_EFORMAT, msg,
                                 "the score of token %" PRIu32 " is not a number", id);
    return 0;
}

int vocab_byte(const char *text, uint32_t bytes)
{
    char hex[3] = {0};
    if (bytes != 6 || memcmp(text, "<0x", 3) || text[5] != '>' ||
        !isxdigit((unsigned char)text[3]) || !isxdigit((unsigned char)text[4]))
        return -1;
    memcpy(hex, text + 3, 2);
    return (int)strtol(hex, NULL, 16);
}

static int read_types(struct tokenizer *t, struct inst_msg *msg)
{
    static const uint8_t attribute[] = {
        0, TOKEN_NORMAL, TOKEN_UNKNOWN, TOKEN_CONTROL, TOKEN_USER, 0, TOKEN_BYTE,
    };
    const struct gguf_key *types;
    int rc =
        gguf_get_array(t->gguf, "tokenizer.ggml.token_type", GGUF_OPTIONAL, GGUF_I32, &types, msg);
    if (rc)
        return rc;
    if (types && types->count < t->count)
        return gguf_fail_key(t->gguf, types, INST_EFORMAT, msg,
                             "%" PRIu64 " types for %" PRIu32 " tokens", types->count, t->count);
    for (uint32_t id = 0; id < t->count; id++) {
        uint32_t type = types ? le_get32(types->data + (uint64_t)id * 4) : 1;
        // Tokens of unknown types, and bytes not named like <0x0A>, can be read but print nothing.
        t->attribute[id] = type < sizeof attribute ? attribute[type] : 0;
        if (t->attribute[id] == TOKEN_BYTE && vocab_byte(token_text(t, id), t->token[id].bytes) < 0)
            t->attribute[id] = 0;
    }
    return 0;
}

int vocab_read_id(const struct tokenizer *t, const char *key, uint32_t *id, struct inst_msg *msg)
{
    uint32_t value = TOKENIZER_NONE;
    if (*id != TOKENIZER_NONE && *id >= t->count)
        *id = TOKENIZER_NONE;
    int rc = gguf_get_u32(t->gguf, key, GGUF_OPTIONAL, 0, UINT32_MAX, &value, msg);
    if (!rc && value < t->count)
        *id = value;
    return rc;
}

int vocab_open(struct tokenizer *t, struct inst_msg *msg)
{
    const struct gguf_key *tokens;
    int rc =
        gguf_get_array(t->gguf, "tokenizer.ggml.tokens", GGUF_REQUIRED, GGUF_STRING, &tokens, msg);
    if (!rc)
        rc = read_texts(t, tokens, msg);
    if (!rc)
        rc = read_scores(t, msg);
    return rc ? rc : read_types(t, msg);
}

void vocab_close(struct tokenizer *t)
{
    budget_free(t->budget, t->token);
    budget_free(t->budget, t->attribute);
    budget_free(t->budget, t->slot);
}
