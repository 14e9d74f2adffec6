// SPDX-License-Identifier: Apache-2.0
// The vocabulary: reading and checking it, finding tokens by text, and the way back to bytes. Where
// a text has special tokens is found out in tokenizer_special.c; how plain text becomes tokens is
// the business of the kind.
#include "host/model/tokenizer_internal.h"

#include "base/checked.h"
#include "base/le.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <ctype.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum {
    TOKENS_MAX = 1 << 24,
    TEXT_BYTES_MAX = 1 << 30, // positions inside are 32 bits, and spaces grow to three bytes
};

static const struct tokenizer_kind *const kinds[] = {&tokenizer_spm, &tokenizer_bpe};

// Tokens that mean something by their name, whatever type the file gives them. Names that stand for
// an end of generation in one model family are no text in another, so one list serves all.
static const struct {
    const char *text;
    uint8_t set; // attributes added
} known_tokens[] = {
    {"</s>", TOKEN_CONTROL | TOKEN_END},
    {"<eos>", TOKEN_CONTROL | TOKEN_END},
    {"<|eot_id|>", TOKEN_CONTROL | TOKEN_END},
    {"<|eom_id|>", TOKEN_CONTROL | TOKEN_END},
    {"<|im_end|>", TOKEN_CONTROL | TOKEN_END},
    {"<|end|>", TOKEN_CONTROL | TOKEN_END},
    {"<|return|>", TOKEN_CONTROL | TOKEN_END},
    {"<|call|>", TOKEN_CONTROL | TOKEN_END},
    {"<|flush|>", TOKEN_CONTROL | TOKEN_END},
    {"<|calls|>", TOKEN_CONTROL | TOKEN_END},
    {"<end_of_turn>", TOKEN_CONTROL | TOKEN_END},
    {"<turn|>", TOKEN_CONTROL | TOKEN_END},
    {"<|tool_response>", TOKEN_CONTROL | TOKEN_END},
    {"<end_of_utterance>", TOKEN_CONTROL | TOKEN_END},
    {"<|endoftext|>", TOKEN_CONTROL | TOKEN_END},
    {"<|end_of_text|>", TOKEN_CONTROL | TOKEN_END},
    {"<EOT>", TOKEN_CONTROL | TOKEN_END},
    {"_<EOT>", TOKEN_CONTROL | TOKEN_END},
    {"[EOT]", TOKEN_CONTROL | TOKEN_END},
    {"[EOS]", TOKEN_CONTROL | TOKEN_END},
    {"[e~[", TOKEN_CONTROL | TOKEN_END},
    {"<\xef\xbd\x9c"
     "end\xe2\x96\x81of\xe2\x96\x81sentence\xef\xbd\x9c>",
     TOKEN_CONTROL | TOKEN_END},
};

// What structures chats beside the ends above. Files give these any type; that of user-defined
// tokens, which are found in every text, must not let a stranger's words become structure.
static const char *const markers[] = {
    "<s>",
    "<|im_start|>",
    "<|im_sep|>",
    "<|start_header_id|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end_header_id|>",
    "[INST]",
    "[/INST]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CALLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[AVAILABLE_TOOLS]",
    "<|python_tag|>",
    "[/AVAILABLE_TOOLS]",
    "<start_of_turn>",
};

// Tokens for filling in the middle of a text: a key names them or, where it is absent, the first
// of these names that is there. Three of them also end generation.
static const struct {
    const char *key;
    uint8_t set;
    const char *names[10];
} fill_tokens[] = {
    {"tokenizer.ggml.fim_pre_token_id",
     TOKEN_CONTROL,
     {"<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<PRE>", "\xe2\x96\x81<PRE>",
      "<|code_prefix|>", "<|prefix|>",
      "<\xef\xbd\x9c"
      "fim\xe2\x96\x81"
      "begin\xef\xbd\x9c>"}},
    {"tokenizer.ggml.fim_suf_token_id",
     TOKEN_CONTROL,
     {"<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<SUF>", "\xe2\x96\x81<SUF>",
      "<|code_suffix|>", "<|suffix|>",
      "<\xef\xbd\x9c"
      "fim\xe2\x96\x81"
      "hole\xef\xbd\x9c>"}},
    {"tokenizer.ggml.fim_mid_token_id",
     TOKEN_CONTROL,
     {"<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<MID>", "\xe2\x96\x81<MID>",
      "<|code_middle|>", "<|middle|>",
      "<\xef\xbd\x9c"
      "fim\xe2\x96\x81"
      "end\xef\xbd\x9c>"}},
    {"tokenizer.ggml.fim_pad_token_id",
     TOKEN_CONTROL | TOKEN_END,
     {"<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"}},
    {"tokenizer.ggml.fim_rep_token_id",
     TOKEN_CONTROL | TOKEN_END,
     {"<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"}},
    {"tokenizer.ggml.fim_sep_token_id", TOKEN_CONTROL | TOKEN_END, {"<|file_sep|>"}},
};

int list_reserve(struct budget *budget, void **p, uint64_t *capacity, uint64_t used, uint64_t need,
                 uint64_t size, struct inst_msg *msg)
{
    if (need <= *capacity)
        return 0;
    uint64_t room = max_u64(max_u64(need, *capacity * 2), 64);
    if (!used) {
        budget_free(budget, *p);
        *p = NULL;
        *capacity = 0;
    }
    void *bigger = budget_resize(budget, *p, room * size, "tokenizing", msg);
    if (!bigger)
        return INST_ENOMEM;
    *p = bigger;
    *capacity = room;
    return 0;
}

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

static uint32_t find_name(const struct tokenizer *t, const char *name)
{
    return tokenizer_find(t, name, strlen(name));
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

// The byte that a token like <0x0A> stands for, -1 when the text is no such name.
static int byte_value(const char *text, uint32_t bytes)
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
        if (t->attribute[id] == TOKEN_BYTE && byte_value(token_text(t, id), t->token[id].bytes) < 0)
            t->attribute[id] = 0;
    }
    return 0;
}

// An id from a key. The default stays where the key is absent or names a token that does not exist,
// as converters do to say "none".
static int read_id(const struct tokenizer *t, const char *key, uint32_t *id, struct inst_msg *msg)
{
    uint32_t value = TOKENIZER_NONE;
    if (*id != TOKENIZER_NONE && *id >= t->count)
        *id = TOKENIZER_NONE;
    int rc = gguf_get_u32(t->gguf, key, GGUF_OPTIONAL, 0, UINT32_MAX, &value, msg);
    if (!rc && value < t->count)
        *id = value;
    return rc;
}

static int mark_special(struct tokenizer *t, struct inst_msg *msg)
{
    static const char *const ends[] = {"tokenizer.ggml.eot_token_id",
                                       "tokenizer.ggml.eom_token_id"};
    // The message tokens of harmony-style chats are always printed.
    static const char *const shown[] = {"<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"};
    for (size_t i = 0; i < sizeof fill_tokens / sizeof *fill_tokens; i++) {
        uint32_t id = TOKENIZER_NONE;
        int rc = read_id(t, fill_tokens[i].key, &id, msg);
        if (rc)
            return rc;
        if (id != TOKENIZER_NONE) {
            t->attribute[id] |= fill_tokens[i].set & TOKEN_END;
            continue;
        }
        for (size_t j = 0; fill_tokens[i].names[j] && id == TOKENIZER_NONE; j++)
            id = find_name(t, fill_tokens[i].names[j]);
        if (id != TOKENIZER_NONE)
            t->attribute[id] |= fill_tokens[i].set;
    }
    for (size_t i = 0; i < sizeof known_tokens / sizeof *known_tokens; i++) {
        uint32_t id = find_name(t, known_tokens[i].text);
        if (id != TOKENIZER_NONE)
            t->attribute[id] |= known_tokens[i].set;
    }
    for (size_t i = 0; i < sizeof shown / sizeof *shown; i++) {
        uint32_t id = find_name(t, shown[i]);
        if (id != TOKENIZER_NONE)
            t->attribute[id] = TOKEN_USER | TOKEN_MARKER;
    }
    for (size_t i = 0; i < sizeof markers / sizeof *markers; i++) {
        uint32_t id = find_name(t, markers[i]);
        if (id != TOKENIZER_NONE)
            t->attribute[id] |= TOKEN_MARKER;
    }
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        uint32_t id = TOKENIZER_NONE;
        int rc = read_id(t, ends[i], &id, msg);
        if (rc)
            return rc;
        if (id != TOKENIZER_NONE)
            t->attribute[id] |= TOKEN_END;
    }
    if (t->eos != TOKENIZER_NONE)
        t->attribute[t->eos] |= TOKEN_END;
    return 0;
}

// In the files of the Phi-3 family special tokens swallow the white space behind them, which no key
// says; they are known by the model's name.
static int mark_rstrip(struct tokenizer *t, struct inst_msg *msg)
{
    struct gguf_string name = {"", 0};
    bool phi3 = false;
    int rc = gguf_get_string(t->gguf, "general.name", GGUF_OPTIONAL, &name, msg);
    for (uint64_t i = 0; i + 4 <= name.bytes && !phi3; i++) {
        uint64_t dash = name.data[i + 3] == '-' && i + 5 <= name.bytes;
        phi3 = !strncasecmp(name.data + i, "phi", 3) && name.data[i + 3 + dash] == '3';
    }
    if (rc || !phi3)
        return rc;
    for (uint32_t id = 0; id < t->count; id++)
        if (t->attribute[id] & TOKEN_SPECIAL)
            t->attribute[id] |= TOKEN_RSTRIP;
    static const char *const keep[] = {"<unk>", "<s>", "<|endoftext|>"};
    for (size_t i = 0; i < sizeof keep / sizeof *keep; i++) {
        uint32_t id = find_name(t, keep[i]);
        if (id != TOKENIZER_NONE)
            t->attribute[id] &= (uint8_t)~TOKEN_RSTRIP;
    }
    return 0;
}

static int read_rules(struct tokenizer *t, struct inst_msg *msg)
{
    int rc = t->kind->defaults(t, msg);
    if (!rc)
        rc = read_id(t, "tokenizer.ggml.bos_token_id", &t->bos, msg);
    if (!rc)
        rc = read_id(t, "tokenizer.ggml.eos_token_id", &t->eos, msg);
    if (!rc)
        rc = read_id(t, "tokenizer.ggml.unknown_token_id", &t->unk, msg);
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
    const struct gguf_key *tokens;
    int rc = gguf_get_string(t->gguf, "tokenizer.ggml.model", GGUF_REQUIRED, &kind, msg);
    if (rc)
        return rc;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (gguf_string_is(kind, kinds[i]->name))
            t->kind = kinds[i];
    if (!t->kind)
        return gguf_fail_key(t->gguf, gguf_find(t->gguf, "tokenizer.ggml.model"), INST_ENOTSUP, msg,
                             "tokenizer '%s' is not supported", gguf_printable(kind, &print));
    rc = gguf_get_array(t->gguf, "tokenizer.ggml.tokens", GGUF_REQUIRED, GGUF_STRING, &tokens, msg);
    if (!rc)
        rc = read_texts(t, tokens, msg);
    if (!rc)
        rc = read_scores(t, msg);
    if (!rc)
        rc = read_types(t, msg);
    if (!rc)
        rc = read_rules(t, msg);
    if (!rc)
        rc = mark_special(t, msg);
    if (!rc)
        rc = mark_rstrip(t, msg);
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
    budget_free(t->budget, t->token);
    budget_free(t->budget, t->attribute);
    budget_free(t->budget, t->slot);
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
        out[0] = (char)byte_value(text, bytes);
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
