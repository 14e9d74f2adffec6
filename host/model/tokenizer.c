// SPDX-License-Identifier: Apache-2.0
// From text to tokens and back to bytes. Where a text has special tokens is found out in
// tokenizer_special.c; how plain text becomes tokens is the business of the kind.
#include "host/model/tokenizer_internal.h"

#include "base/checked.h"
#include "base/le.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { TEXT_BYTES_MAX = 1 << 30 }; // positions inside are 32 bits, and spaces grow to three bytes

static const struct tokenizer_kind *const kinds[] = {&tokenizer_spm, &tokenizer_bpe};

void token_list_free(struct token_list *list)
{
    if (list->ids)
        budget_free(list->budget, list->ids);
    *list = (struct token_list){.budget = list->budget};
}

int token_list_add(struct token_list *list, uint32_t id, struct inst_msg *msg)
{
    int rc = list_reserve(list->budget, (void **)&list->ids, &list->capacity, list->count,
                          list->count + 1, sizeof *list->ids, msg);
    if (!rc)
        list->ids[list->count++] = id;
    return rc;
}

static int read_rules(struct tokenizer *t, struct inst_msg *msg)
{
    int rc = t->kind->defaults(t, msg);
    if (!rc)
        rc = vocab_read_id(t, "tokenizer.ggml.bos_token_id", &t->bos, msg);
    if (!rc)
        rc = vocab_read_id(t, "tokenizer.ggml.eos_token_id", &t->eos, msg);
    if (!rc)
        rc = vocab_read_id(t, "tokenizer.ggml.unknown_token_id", &t->unk, msg);
    if (!rc)
        rc =
            gguf_get_bool(t->gguf, "tokenizer.ggml.add_bos_token", GGUF_OPTIONAL, &t->add_bos, msg);
    if (!rc)
        rc =
            gguf_get_bool(t->gguf, "tokenizer.ggml.add_eos_token", GGUF_OPTIONAL, &t->add_eos, msg);
    if (!rc)
        rc = gguf_get_bool(t->gguf, "tokenizer.ggml.add_space_prefix", GGUF_OPTIONAL,
                           &t->add_space_prefix, msg);
    t->add_bos = t->add_bos && t->bos != TOKENIZER_NONE;
    t->add_eos = t->add_eos && t->eos != TOKENIZER_NONE;
    return rc;
}

static int tokenizer_load(struct tokenizer *t, struct inst_msg *msg)
{
    struct gguf_string kind;
    struct gguf_print print;
    int rc = gguf_get_string(t->gguf, "tokenizer.ggml.model", GGUF_REQUIRED, &kind, msg);
    if (rc)
        return rc;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (gguf_string_is(kind, kinds[i]->name))
            t->kind = kinds[i];
    if (!t->kind)
        return gguf_fail_key(t->gguf, gguf_find(t->gguf, "tokenizer.ggml.model"), INST_ENOTSUP, msg,
                             "tokenizer '%s' is not supported", gguf_printable(kind, &print));
    rc = vocab_open(t, msg);
    if (!rc)
        rc = read_rules(t, msg);
    if (!rc)
        rc = names_mark(t, msg);
    if (!rc)
        rc = special_open(t, msg);
    return rc ? rc : t->kind->open(t, msg);
}

int tokenizer_open(struct tokenizer **out, const struct gguf *gguf, struct budget *budget,
                   struct inst_msg *msg)
{
    struct tokenizer *t = budget_alloc(budget, 1, sizeof *t, "the tokenizer", msg);
    *out = NULL;
    if (!t)
        return INST_ENOMEM;
    t->gguf = gguf;
    t->budget = budget;
    int rc = tokenizer_load(t, msg);
    if (rc)
        tokenizer_free(t);
    else
        *out = t;
    return rc;
}

void tokenizer_free(struct tokenizer *t)
{
    if (!t)
        return;
    if (t->kind)
        t->kind->close(t);
    special_close(t);
    vocab_close(t);
    budget_free(t->budget, t);
}

const char *tokenizer_kind(const struct tokenizer *t)
{
    return t->kind->name;
}

uint32_t tokenizer_count(const struct tokenizer *t)
{
    return t->count;
}

uint32_t tokenizer_bos(const struct tokenizer *t)
{
    return t->bos;
}

uint32_t tokenizer_eos(const struct tokenizer *t)
{
    return t->eos;
}

bool tokenizer_adds_bos(const struct tokenizer *t)
{
    return t->add_bos;
}

bool tokenizer_is_end(const struct tokenizer *t, uint32_t id)
{
    return id < t->count && t->attribute[id] & TOKEN_END;
}

bool tokenizer_is_control(const struct tokenizer *t, uint32_t id)
{
    return id < t->count && t->attribute[id] & TOKEN_CONTROL;
}

struct gguf_string tokenizer_text(const struct tokenizer *t, uint32_t id)
{
    if (id >= t->count)
        return (struct gguf_string){"", 0};
    return (struct gguf_string){token_text(t, id), t->token[id].bytes};
}

static int encode_source(const struct source *src, unsigned flags, struct token_list *list)
{
    const struct tokenizer *t = src->t;
    struct fragments f = {0};
    uint64_t before = list->count;
    if (src->bytes > TEXT_BYTES_MAX)
        return inst_fail(src->msg, INST_EINVAL,
                         "a text of %" PRIu64 " bytes is too long (at most %d)", src->bytes,
                         TEXT_BYTES_MAX);
    int rc = special_cut(src, &f);
    if (!rc && f.count && f.at[0].token == TOKENIZER_NONE)
        f.at[0].continues = flags & TOKENIZER_CONTINUES;
    if (!rc && flags & TOKENIZER_ADD_SPECIAL && t->add_bos)
        rc = token_list_add(list, t->bos, src->msg);
    if (!rc)
        rc = t->kind->encode(t, f.at, f.count, list, src->msg);
    if (!rc && flags & TOKENIZER_ADD_SPECIAL && t->add_eos)
        rc = token_list_add(list, t->eos, src->msg);
    budget_free(list->budget, f.at);
    if (rc)
        list->count = before;
    return rc;
}

int tokenizer_encode(const struct tokenizer *t, const char *text, uint64_t bytes, unsigned flags,
                     struct token_list *list, struct inst_msg *msg)
{
    struct source src = {.t = t,
                         .text = text,
                         .bytes = bytes,
                         .parse = flags & TOKENIZER_PARSE_SPECIAL,
                         .budget = list->budget,
                         .msg = msg};
    return encode_source(&src, flags, list);
}

int tokenizer_encode_spans(const struct tokenizer *t, const char *text,
                           const struct token_span *spans, uint64_t n_spans, unsigned flags,
                           struct token_list *list, struct inst_msg *msg)
{
    struct source src = {.t = t,
                         .text = text,
                         .spans = spans,
                         .n_spans = n_spans,
                         .parse = flags & TOKENIZER_PARSE_SPECIAL,
                         .budget = list->budget,
                         .msg = msg};
    for (uint64_t i = 0; i < n_spans; i++)
        if (!checked_add(src.bytes, spans[i].bytes, &src.bytes))
            return inst_fail(msg, INST_EINVAL, "a text longer than memory");
    return encode_source(&src, flags, list);
}

uint32_t tokenizer_piece_room(const struct tokenizer *t)
{
    return (uint32_t)max_u64(t->bytes_max, 1);
}

uint32_t tokenizer_piece(const struct tokenizer *t, uint32_t id, unsigned flags, char *out)
{
    if (id >= t->count)
        return 0;
    const char *text = token_text(t, id);
    uint32_t bytes = t->token[id].bytes;
    uint8_t attribute = t->attribute[id];
    if (attribute & TOKEN_HIDDEN && !(flags & TOKENIZER_SHOW_SPECIAL))
        return 0;
    if (attribute & TOKEN_SPECIAL) {
        memcpy(out, text, bytes);
        return bytes;
    }
    if (attribute & TOKEN_BYTE) {
        out[0] = (char)vocab_byte(text, bytes);
        return 1;
    }
    if (!(attribute & TOKEN_NORMAL)) // unused and undefined tokens print nothing
        return 0;
    return t->kind->plain(text, bytes, out);
}

uint64_t tokenizer_decode(const struct tokenizer *t, const uint32_t *ids, uint64_t count,
                          unsigned flags, char *out, uint64_t capacity)
{
    char piece[TOKEN_BYTES_MAX + 1];
    uint64_t total = 0;
    for (uint64_t i = 0; i < count; i++) {
        uint32_t n = tokenizer_piece(t, ids[i], flags, piece);
        uint32_t skip = i == 0 && t->add_space_prefix && n && piece[0] == ' ';
        if (total < capacity)
            memcpy(out + total, piece + skip, min_u64(n - skip, capacity - total));
        total += n - skip;
    }
    return total;
}
