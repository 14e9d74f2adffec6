// SPDX-License-Identifier: Apache-2.0
// Kind "llama": SentencePiece BPE. A text is cut into characters (by their first byte alone, valid
// or not); then, again and again, the neighbours whose concatenation is the token with the best
// score are merged, the leftmost first among equals. Characters that are no token become bytes.
//
// Merging works on segments: where two neighbouring characters stand side by side in no token of
// the vocabulary, no merge can ever cross, so both sides are independent. Ordinary text falls into
// words this way; memory and the logarithm follow the longest segment, not the text. The set of
// pairs is a bit table with one hash: a false "yes" only makes a segment longer.
#include "host/model/tokenizer_internal.h"

#include "base/checked.h"

#include <inttypes.h>
#include <string.h>

struct symbol {
    uint32_t start, bytes; // in the segment's text; bytes 0 = merged into its left neighbour
    uint32_t prev, next;   // symbols, NO_SYMBOL at the ends
};

enum { NO_SYMBOL = UINT32_MAX };

struct merge {
    float score;
    uint32_t left, right;
    uint32_t bytes; // of both when this was pushed: another sum now means the merge is stale
};

struct segment {
    const struct tokenizer *t;
    struct token_list *list;
    struct inst_msg *msg;
    char *text;
    struct symbol *symbol;
    struct merge *heap;
    uint64_t text_bytes, n_symbols, n_heap;
    uint64_t text_capacity, symbol_capacity, heap_capacity;
};

// The text with U+2581 in the place of each space, byte by byte.
struct escaped {
    const unsigned char *at, *end;
    unsigned pending; // bytes of a U+2581 still to come
};

static int escaped_next(struct escaped *e)
{
    static const unsigned char space[3] = {0xe2, 0x96, 0x81};
    if (!e->pending) {
        if (e->at == e->end)
            return -1;
        if (*e->at != ' ')
            return *e->at++;
        e->at++;
        e->pending = 3;
    }
    return space[3 - e->pending--];
}

// Bytes that a character has by its first byte; a byte that cannot be first counts as a character.
static uint32_t character_bytes(unsigned char first)
{
    if (first < 0xc0)
        return 1;
    return first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
}

struct character {
    unsigned char byte[4];
    uint32_t bytes;
};

static bool next_character(struct escaped *e, struct character *c)
{
    int byte = escaped_next(e);
    memset(c, 0, sizeof *c);
    if (byte < 0)
        return false;
    uint32_t want = character_bytes((unsigned char)byte);
    while (true) {
        c->byte[c->bytes++] = (unsigned char)byte;
        if (c->bytes == want)
            return true;
        byte = escaped_next(e);
        if (byte < 0)
            return true;
    }
}

static uint64_t pair_bit(const struct tokenizer *t, const struct character *a,
                         const struct character *b)
{
    uint32_t x, y;
    memcpy(&x, a->byte, 4);
    memcpy(&y, b->byte, 4);
    uint64_t h = ((uint64_t)x << 32 | y) * 0x9e3779b97f4a7c15u;
    return (h >> 32 ^ h) & t->pair_mask;
}

static bool pair_known(const struct tokenizer *t, const struct character *a,
                       const struct character *b)
{
    uint64_t bit = pair_bit(t, a, b);
    return t->pairs[bit / 64] >> (bit % 64) & 1;
}

static int spm_defaults(struct tokenizer *t, struct inst_msg *msg)
{
    (void)msg;
    t->bos = 1;
    t->eos = 2;
    t->unk = 0;
    t->add_bos = true;
    t->add_space_prefix = true;
    return 0;
}

static int spm_open(struct tokenizer *t, struct inst_msg *msg)
{
    static const char hex[] = "0123456789ABCDEF";
    uint64_t bits = 4096;
    for (int b = 0; b < 256; b++) {
        char name[7] = {'<', '0', 'x', hex[b >> 4], hex[b & 15], '>', 0}, raw = (char)b;
        t->byte_id[b] = tokenizer_find(t, name, 6);
        if (t->byte_id[b] == TOKENIZER_NONE)
            t->byte_id[b] = tokenizer_find(t, &raw, 1);
    }
    while (bits < (uint64_t)t->count * 16)
        bits *= 2;
    t->pairs = budget_alloc(t->budget, bits / 64, sizeof *t->pairs, "the tokenizer", msg);
    if (!t->pairs)
        return INST_ENOMEM;
    t->pair_mask = bits - 1;
    for (uint32_t id = 0; id < t->count; id++) {
        const unsigned char *text = (const unsigned char *)token_text(t, id);
        struct character previous = {{0}, 0};
        for (uint32_t at = 0; at < t->token[id].bytes;) {
            uint64_t left = t->token[id].bytes - at;
            struct character c = {{0}, (uint32_t)min_u64(character_bytes(text[at]), left)};
            memcpy(c.byte, text + at, c.bytes);
            at += c.bytes;
            if (previous.bytes) {
                uint64_t bit = pair_bit(t, &previous, &c);
                t->pairs[bit / 64] |= (uint64_t)1 << (bit % 64);
            }
            previous = c;
        }
    }
    return 0;
}

static void spm_close(struct tokenizer *t)
{
    budget_free(t->budget, t->pairs);
}

// Best score first, then leftmost.
static bool before(const struct merge *a, const struct merge *b)
{
    return a->score > b->score || (a->score == b->score && a->left < b->left);
}

static void heap_push(struct segment *s, struct merge m)
{
    uint64_t i = s->n_heap++;
    for (; i && before(&m, &s->heap[(i - 1) / 2]); i = (i - 1) / 2)
        s->heap[i] = s->heap[(i - 1) / 2];
    s->heap[i] = m;
}

static struct merge heap_pop(struct segment *s)
{
    struct merge top = s->heap[0], last = s->heap[--s->n_heap];
    uint64_t i = 0, child;
    while ((child = 2 * i + 1) < s->n_heap) {
        if (child + 1 < s->n_heap && before(&s->heap[child + 1], &s->heap[child]))
            child++;
        if (!before(&s->heap[child], &last))
            break;
        s->heap[i] = s->heap[child];
        i = child;
    }
    s->heap[i] = last;
    return top;
}

static void try_merge(struct segment *s, uint32_t left, uint32_t right)
{
    if (left == NO_SYMBOL || right == NO_SYMBOL)
        return;
    uint32_t bytes = s->symbol[left].bytes + s->symbol[right].bytes;
    uint32_t id = tokenizer_find(s->t, s->text + s->symbol[left].start, bytes);
    if (id != TOKENIZER_NONE)
        heap_push(s, (struct merge){token_score(s->t, id), left, right, bytes});
}

static int emit(struct segment *s, const char *text, uint32_t bytes)
{
    uint32_t id = tokenizer_find(s->t, text, bytes);
    if (id != TOKENIZER_NONE)
        return token_list_add(s->list, id, s->msg);
    for (uint32_t i = 0; i < bytes; i++) {
        id = s->t->byte_id[(unsigned char)text[i]];
        if (id == TOKENIZER_NONE)
            id = s->t->unk;
        if (id == TOKENIZER_NONE)
            return inst_fail(s->msg, INST_EFORMAT,
                             "%s: the vocabulary has no token for byte 0x%02x and no unknown token",
                             gguf_name(s->t->gguf), (unsigned char)text[i]);
        int rc = token_list_add(s->list, id, s->msg);
        if (rc)
            return rc;
    }
    return 0;
}

static int segment_finish(struct segment *s)
{
    uint32_t n = (uint32_t)s->n_symbols;
    int rc = 0;
    if (n > 1) {
        // Each of the n - 1 starting pairs and each of at most n - 1 merges that make two new
        // pairs out of one entry popped: never more than 2n at a time.
        rc = list_reserve(s->list->budget, (void **)&s->heap, &s->heap_capacity, 0, 2 * (uint64_t)n,
                          sizeof *s->heap, s->msg);
        if (rc)
            return rc;
        s->n_heap = 0;
        for (uint32_t i = 0; i < n; i++) {
            s->symbol[i].prev = i ? i - 1 : NO_SYMBOL;
            s->symbol[i].next = i + 1 < n ? i + 1 : NO_SYMBOL;
        }
        for (uint32_t i = 1; i < n; i++)
            try_merge(s, i - 1, i);
        while (s->n_heap) {
            struct merge m = heap_pop(s);
            struct symbol *left = &s->symbol[m.left], *right = &s->symbol[m.right];
            if (!left->bytes || !right->bytes || left->bytes + right->bytes != m.bytes)
                continue;
            left->bytes = m.bytes;
            right->bytes = 0;
            left->next = right->next;
            if (right->next != NO_SYMBOL)
                s->symbol[right->next].prev = m.left;
            try_merge(s, left->prev, m.left);
            try_merge(s, m.left, left->next);
        }
    }
    for (uint32_t i = 0; i < n && !rc; i++)
        if (s->symbol[i].bytes)
            rc = emit(s, s->text + s->symbol[i].start, s->symbol[i].bytes);
    s->n_symbols = 0;
    s->text_bytes = 0;
    return rc;
}

static int segment_add(struct segment *s, const struct character *c)
{
    struct budget *budget = s->list->budget;
    int rc = list_reserve(budget, (void **)&s->text, &s->text_capacity, s->text_bytes,
                          s->text_bytes + 4, 1, s->msg);
    if (!rc)
        rc = list_reserve(budget, (void **)&s->symbol, &s->symbol_capacity, s->n_symbols,
                          s->n_symbols + 1, sizeof *s->symbol, s->msg);
    if (rc)
        return rc;
    memcpy(s->text + s->text_bytes, c->byte, c->bytes);
    s->symbol[s->n_symbols++] = (struct symbol){(uint32_t)s->text_bytes, c->bytes, 0, 0};
    s->text_bytes += c->bytes;
    return 0;
}

static int encode_text(struct segment *s, const struct fragment *f, bool prefix)
{
    struct escaped e = {(const unsigned char *)f->text, (const unsigned char *)f->text + f->bytes,
                        prefix ? 3 : 0};
    struct character previous = {{0}, 0}, c;
    int rc = 0;
    while (!rc && next_character(&e, &c)) {
        if (s->n_symbols && !pair_known(s->t, &previous, &c))
            rc = segment_finish(s);
        if (!rc)
            rc = segment_add(s, &c);
        previous = c;
    }
    return rc ? rc : segment_finish(s);
}

static int spm_encode(const struct tokenizer *t, const struct fragment *fragment, uint64_t count,
                      struct token_list *list, struct inst_msg *msg)
{
    struct segment s = {.t = t, .list = list, .msg = msg};
    bool prefix = t->add_space_prefix; // at the start and after each special token
    int rc = 0;
    for (uint64_t i = 0; i < count && !rc; i++) {
        if (fragment[i].token != TOKENIZER_NONE)
            rc = token_list_add(list, fragment[i].token, msg);
        else
            rc = encode_text(&s, &fragment[i], prefix && !fragment[i].continues);
        prefix = t->add_space_prefix && fragment[i].token != TOKENIZER_NONE;
    }
    budget_free(list->budget, s.text);
    budget_free(list->budget, s.symbol);
    budget_free(list->budget, s.heap);
    return rc;
}

static uint32_t spm_plain(const char *text, uint32_t bytes, char *out)
{
    uint32_t written = 0;
    for (uint32_t i = 0; i < bytes;) {
        if (bytes - i >= 3 && !memcmp(text + i, "\xe2\x96\x81", 3)) {
            out[written++] = ' ';
            i += 3;
        } else {
            out[written++] = text[i++];
        }
    }
    return written;
}

const struct tokenizer_kind tokenizer_spm = {"llama",   spm_defaults, spm_open,
                                             spm_close, spm_encode,   spm_plain};
