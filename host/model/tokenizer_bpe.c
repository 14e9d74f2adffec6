// SPDX-License-Identifier: Apache-2.0
// Kind "gpt2": byte-pair encoding. A text is cut into words (tokenizer_pre.c); the bytes of a word
// are written as 256 visible characters, in which tokens and merges are stored, and then, again and
// again, the neighbours that the earliest merge of the file names are joined, the leftmost first
// among equals.
//
// Inside, a string that can arise is a symbol: a token id or, for strings that are no token, a
// number from there on. So a merge is (left, right) -> result, one look-up of two integers. Short
// words are searched pair by pair, long ones through a heap.
#include "host/model/tokenizer_internal.h"

#include "base/checked.h"
#include "host/model/tokenizer_pre.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <inttypes.h>
#include <string.h>

enum {
    NONE = UINT32_MAX,
    MERGES_MAX = 1 << 24,
    SHORT_WORD = 48, // symbols; up to here the search for the best pair beats the heap
};

struct merge {
    uint32_t left, right, result; // symbols; the row is the rank
};

struct text_at {
    uint64_t offset;
    uint32_t bytes;
};

struct bpe {
    struct pre *pre;
    struct merge *merge;
    uint32_t *slot; // hash table (left, right) -> row + 1, 0 = free
    uint64_t slot_mask;
    uint32_t byte_symbol[256];

    // Strings that are no token: symbol t->count + i is string i.
    struct text_at *other;
    char *other_text;
    uint32_t *other_slot; // hash table text -> i + 1
    uint64_t n_other, other_bytes, other_capacity, text_capacity, other_slots;
};

// The visible character of a byte: itself where ISO 8859-1 shows something, the others in order
// from U+0100 on.
static uint32_t byte_point(unsigned byte)
{
    if (byte <= 0x20)
        return 0x100 + byte;
    if (byte >= 0x7f && byte <= 0xa0)
        return 0x121 + byte - 0x7f;
    return byte == 0xad ? 0x143 : byte;
}

static uint32_t put_byte(char *out, unsigned byte)
{
    uint32_t point = byte_point(byte);
    if (point < 0x80) {
        out[0] = (char)point;
        return 1;
    }
    out[0] = (char)(0xc0 | point >> 6);
    out[1] = (char)(0x80 | (point & 0x3f));
    return 2;
}

// The byte behind the character at `text`, -1 when there is none; *length is that of the character.
static int get_byte(const char *text, uint32_t bytes, uint32_t *length)
{
    unsigned char a = (unsigned char)text[0], b;
    *length = 1;
    if (a < 0x80)
        return a > 0x20 && a < 0x7f ? a : -1;
    if (bytes < 2 || a < 0xc2 || a > 0xc5)
        return -1;
    b = (unsigned char)text[1];
    if (b < 0x80 || b > 0xbf)
        return -1;
    *length = 2;
    uint32_t point = (a & 0x1fu) << 6 | (b & 0x3fu);
    if (point > 0xa0 && point <= 0xff && point != 0xad)
        return (int)point;
    if (point >= 0x100 && point <= 0x120)
        return (int)(point - 0x100);
    if (point >= 0x121 && point <= 0x142)
        return (int)(point - 0x121 + 0x7f);
    return point == 0x143 ? 0xad : -1;
}

// A token that is not written in visible bytes (an added one with spaces, say) stands for itself.
static uint32_t bpe_plain(const char *text, uint32_t bytes, char *out)
{
    uint32_t n = 0, length;
    for (uint32_t i = 0; i < bytes; i += length) {
        int byte = get_byte(text + i, bytes - i, &length);
        if (byte < 0) {
            memcpy(out, text, bytes);
            return bytes;
        }
        out[n++] = (char)byte;
    }
    return n;
}

static const char *other_text(const struct bpe *b, uint64_t i)
{
    return b->other_text + b->other[i].offset;
}

static void other_place(struct bpe *b, uint64_t i)
{
    uint64_t at = XXH3_64bits(other_text(b, i), b->other[i].bytes) & (b->other_slots - 1);
    while (b->other_slot[at])
        at = (at + 1) & (b->other_slots - 1);
    b->other_slot[at] = (uint32_t)(i + 1);
}

static int other_grow(struct tokenizer *t, struct bpe *b, struct inst_msg *msg)
{
    uint64_t slots = max_u64(b->other_slots * 2, 64);
    uint32_t *slot = budget_alloc(t->budget, slots, sizeof *slot, "the vocabulary", msg);
    if (!slot)
        return INST_ENOMEM;
    budget_free(t->budget, b->other_slot);
    b->other_slot = slot;
    b->other_slots = slots;
    for (uint64_t i = 0; i < b->n_other; i++)
        other_place(b, i);
    return 0;
}

// The symbol of a string; makes one for a string not seen before.
static int symbol_of(struct tokenizer *t, const char *text, uint32_t bytes, uint32_t *symbol,
                     struct inst_msg *msg)
{
    struct bpe *b = t->bpe;
    *symbol = tokenizer_find(t, text, bytes);
    if (*symbol != TOKENIZER_NONE)
        return 0;
    for (uint64_t at = b->other_slots ? XXH3_64bits(text, bytes) & (b->other_slots - 1) : 0;
         b->other_slots && b->other_slot[at]; at = (at + 1) & (b->other_slots - 1)) {
        uint64_t i = b->other_slot[at] - 1;
        if (b->other[i].bytes == bytes && !memcmp(other_text(b, i), text, bytes)) {
            *symbol = t->count + (uint32_t)i;
            return 0;
        }
    }
    int rc = b->n_other * 2 >= b->other_slots ? other_grow(t, b, msg) : 0;
    if (!rc)
        rc = list_reserve(t->budget, (void **)&b->other, &b->other_capacity, b->n_other,
                          b->n_other + 1, sizeof *b->other, msg);
    if (!rc)
        rc = list_reserve(t->budget, (void **)&b->other_text, &b->text_capacity, b->other_bytes,
                          b->other_bytes + bytes, 1, msg);
    if (rc)
        return rc;
    memcpy(b->other_text + b->other_bytes, text, bytes);
    b->other[b->n_other] = (struct text_at){b->other_bytes, bytes};
    b->other_bytes += bytes;
    other_place(b, b->n_other);
    *symbol = t->count + (uint32_t)b->n_other++;
    return 0;
}

static uint64_t pair_hash(uint32_t left, uint32_t right)
{
    uint64_t h = ((uint64_t)left << 32 | right) * 0x9e3779b97f4a7c15u;
    return h >> 32 ^ h;
}

// Rank of the merge of two symbols, NONE when there is none.
static uint32_t find_merge(const struct bpe *b, uint32_t left, uint32_t right)
{
    uint64_t at = pair_hash(left, right) & b->slot_mask;
    for (; b->slot[at]; at = (at + 1) & b->slot_mask) {
        const struct merge *m = &b->merge[b->slot[at] - 1];
        if (m->left == left && m->right == right)
            return b->slot[at] - 1;
    }
    return NONE;
}

// Enters merge `rank`, "LEFT RIGHT". One that is there already keeps its earlier rank; a string
// without two parts stands for nothing.
static int add_merge(struct tokenizer *t, struct gguf_string s, uint32_t rank, char *joined,
                     struct inst_msg *msg)
{
    struct bpe *b = t->bpe;
    struct merge *m = &b->merge[rank];
    const char *space = s.bytes > 1 ? memchr(s.data + 1, ' ', s.bytes - 1) : NULL;
    *m = (struct merge){NONE, NONE, NONE};
    if (!space || space + 1 == s.data + s.bytes)
        return 0;
    uint32_t left = (uint32_t)(space - s.data), right = (uint32_t)s.bytes - left - 1;
    memcpy(joined, s.data, left);
    memcpy(joined + left, space + 1, right);
    int rc = symbol_of(t, joined, left, &m->left, msg);
    if (!rc)
        rc = symbol_of(t, joined + left, right, &m->right, msg);
    if (!rc)
        rc = symbol_of(t, joined, left + right, &m->result, msg);
    if (rc || find_merge(b, m->left, m->right) != NONE)
        return rc;
    uint64_t at = pair_hash(m->left, m->right) & b->slot_mask;
    while (b->slot[at])
        at = (at + 1) & b->slot_mask;
    b->slot[at] = rank + 1;
    return 0;
}

static int read_merges(struct tokenizer *t, struct inst_msg *msg)
{
    struct bpe *b = t->bpe;
    const struct gguf_key *merges;
    uint64_t at = 0, slots = 8;
    char *joined = NULL;
    int rc =
        gguf_get_array(t->gguf, "tokenizer.ggml.merges", GGUF_REQUIRED, GGUF_STRING, &merges, msg);
    if (rc)
        return rc;
    if (merges->count > MERGES_MAX || merges->bytes > UINT32_MAX)
        return gguf_fail_key(t->gguf, merges, INST_EFORMAT, msg, "%" PRIu64 " merges (at most %d)",
                             merges->count, MERGES_MAX);
    while (slots < merges->count * 2)
        slots *= 2;
    b->merge =
        budget_alloc(t->budget, max_u64(merges->count, 1), sizeof *b->merge, "the vocabulary", msg);
    b->slot = budget_alloc(t->budget, slots, sizeof *b->slot, "the vocabulary", msg);
    joined = budget_alloc(t->budget, TOKEN_BYTES_MAX, 1, "the vocabulary", msg);
    if (!b->merge || !b->slot || !joined)
        rc = INST_ENOMEM;
    b->slot_mask = slots - 1;
    for (uint32_t rank = 0; !rc && rank < merges->count; rank++) {
        struct gguf_string s = gguf_next_string(merges, &at);
        if (s.bytes > TOKEN_BYTES_MAX)
            rc = gguf_fail_key(t->gguf, merges, INST_EFORMAT, msg,
                               "merge %" PRIu32 " has %" PRIu64 " bytes (at most %d)", rank,
                               s.bytes, TOKEN_BYTES_MAX);
        else
            rc = add_merge(t, s, rank, joined, msg);
    }
    budget_free(t->budget, joined);
    return rc;
}

static int bpe_defaults(struct tokenizer *t, struct inst_msg *msg)
{
    t->bos = t->eos = 11; // llama.cpp's; every file says better
    t->unk = TOKENIZER_NONE;
    t->bpe = budget_alloc(t->budget, 1, sizeof *t->bpe, "the tokenizer", msg);
    if (!t->bpe)
        return INST_ENOMEM;
    int rc = pre_open(&t->bpe->pre, t->gguf, t->budget, msg);
    if (!rc)
        t->add_bos = pre_adds_bos(t->bpe->pre);
    return rc;
}

static int bpe_open(struct tokenizer *t, struct inst_msg *msg)
{
    int rc = read_merges(t, msg);
    t->add_space_prefix = false; // some files have the key, which means nothing here
    for (unsigned byte = 0; byte < 256 && !rc; byte++) {
        char text[2], raw = (char)byte;
        t->byte_id[byte] = tokenizer_find(t, &raw, 1);
        rc = symbol_of(t, text, put_byte(text, byte), &t->bpe->byte_symbol[byte], msg);
    }
    return rc;
}

static void bpe_close(struct tokenizer *t)
{
    struct bpe *b = t->bpe;
    if (!b)
        return;
    pre_close(b->pre);
    budget_free(t->budget, b->merge);
    budget_free(t->budget, b->slot);
    budget_free(t->budget, b->other);
    budget_free(t->budget, b->other_text);
    budget_free(t->budget, b->other_slot);
    budget_free(t->budget, b);
}

struct symbol {
    uint32_t id; // NONE = merged into its left neighbour
    uint32_t prev, next;
};

struct candidate {
    uint32_t rank, left, right; // rank says which symbols stood there when this was pushed
};

struct encoder {
    const struct tokenizer *t;
    const struct bpe *bpe;
    struct token_list *list;
    struct inst_msg *msg;
    struct symbol *symbol;
    struct candidate *heap;
    char *visible;
    uint64_t n_heap, symbol_capacity, heap_capacity, visible_capacity;
};

static int emit(struct encoder *e, uint32_t symbol)
{
    const struct bpe *b = e->bpe;
    if (symbol < e->t->count)
        return token_list_add(e->list, symbol, e->msg);
    // No token: those of its bytes, as they are written, that are; llama.cpp drops the others.
    const struct text_at *other = &b->other[symbol - e->t->count];
    int rc = 0;
    for (uint32_t i = 0; i < other->bytes && !rc; i++) {
        uint32_t id = e->t->byte_id[(unsigned char)b->other_text[other->offset + i]];
        if (id != TOKENIZER_NONE)
            rc = token_list_add(e->list, id, e->msg);
    }
    return rc;
}

static int short_word(struct encoder *e, const char *text, uint32_t n)
{
    uint32_t id[SHORT_WORD], rank[SHORT_WORD];
    for (uint32_t i = 0; i < n; i++)
        id[i] = e->bpe->byte_symbol[(unsigned char)text[i]];
    for (uint32_t i = 0; i + 1 < n; i++)
        rank[i] = find_merge(e->bpe, id[i], id[i + 1]);
    while (n > 1) {
        uint32_t best = 0;
        for (uint32_t i = 1; i + 1 < n; i++)
            if (rank[i] < rank[best])
                best = i;
        if (rank[best] == NONE)
            break;
        id[best] = e->bpe->merge[rank[best]].result;
        n--;
        memmove(id + best + 1, id + best + 2, (n - best - 1) * sizeof *id);
        memmove(rank + best, rank + best + 1, (n - best - 1) * sizeof *rank);
        if (best)
            rank[best - 1] = find_merge(e->bpe, id[best - 1], id[best]);
        if (best + 1 < n)
            rank[best] = find_merge(e->bpe, id[best], id[best + 1]);
    }
    int rc = 0;
    for (uint32_t i = 0; i < n && !rc; i++)
        rc = emit(e, id[i]);
    return rc;
}

// Earliest merge first, then leftmost.
static bool before(const struct candidate *a, const struct candidate *b)
{
    return a->rank < b->rank || (a->rank == b->rank && a->left < b->left);
}

static void heap_push(struct encoder *e, uint32_t left, uint32_t right)
{
    if (left == NONE || right == NONE)
        return;
    uint32_t rank = find_merge(e->bpe, e->symbol[left].id, e->symbol[right].id);
    struct candidate c = {rank, left, right};
    if (rank == NONE)
        return;
    uint64_t i = e->n_heap++;
    for (; i && before(&c, &e->heap[(i - 1) / 2]); i = (i - 1) / 2)
        e->heap[i] = e->heap[(i - 1) / 2];
    e->heap[i] = c;
}

static struct candidate heap_pop(struct encoder *e)
{
    struct candidate top = e->heap[0], last = e->heap[--e->n_heap];
    uint64_t i = 0, child;
    while ((child = 2 * i + 1) < e->n_heap) {
        if (child + 1 < e->n_heap && before(&e->heap[child + 1], &e->heap[child]))
            child++;
        if (!before(&e->heap[child], &last))
            break;
        e->heap[i] = e->heap[child];
        i = child;
    }
    e->heap[i] = last;
    return top;
}

static int long_word(struct encoder *e, const char *text, uint64_t bytes)
{
    struct budget *budget = e->list->budget;
    uint32_t n = (uint32_t)bytes;
    int rc = list_reserve(budget, (void **)&e->symbol, &e->symbol_capacity, 0, n, sizeof *e->symbol,
                          e->msg);
    // n - 1 pairs at first, and each of at most n - 1 merges pushes two for the one popped.
    if (!rc)
        rc = list_reserve(budget, (void **)&e->heap, &e->heap_capacity, 0, 2 * bytes,
                          sizeof *e->heap, e->msg);
    if (rc)
        return rc;
    for (uint32_t i = 0; i < n; i++)
        e->symbol[i] = (struct symbol){e->bpe->byte_symbol[(unsigned char)text[i]],
                                       i ? i - 1 : NONE, i + 1 < n ? i + 1 : NONE};
    e->n_heap = 0;
    for (uint32_t i = 1; i < n; i++)
        heap_push(e, i - 1, i);
    while (e->n_heap) {
        struct candidate c = heap_pop(e);
        struct symbol *left = &e->symbol[c.left], *right = &e->symbol[c.right];
        const struct merge *m = &e->bpe->merge[c.rank];
        if (left->id != m->left || right->id != m->right || left->next != c.right)
            continue; // one of them has been merged since
        left->id = m->result;
        right->id = NONE;
        left->next = right->next;
        if (right->next != NONE)
            e->symbol[right->next].prev = c.left;
        heap_push(e, left->prev, c.left);
        heap_push(e, c.left, left->next);
    }
    for (uint32_t i = 0; i != NONE && !rc; i = e->symbol[i].next)
        rc = emit(e, e->symbol[i].id);
    return rc;
}

// A word that is a token as it stands is that token, whatever the merges would make of it.
static int whole_word(struct encoder *e, const char *text, uint64_t bytes, uint32_t *id)
{
    uint32_t n = 0;
    *id = TOKENIZER_NONE;
    if (!pre_ignores_merges(e->bpe->pre) || bytes > e->t->bytes_max)
        return 0;
    int rc = list_reserve(e->list->budget, (void **)&e->visible, &e->visible_capacity, 0, 2 * bytes,
                          1, e->msg);
    for (uint64_t i = 0; i < bytes && !rc; i++)
        n += put_byte(e->visible + n, (unsigned char)text[i]);
    if (!rc)
        *id = tokenizer_find(e->t, e->visible, n);
    return rc;
}

static int add_word(void *context, const char *text, uint64_t bytes)
{
    struct encoder *e = context;
    uint32_t id;
    int rc = whole_word(e, text, bytes, &id);
    if (rc)
        return rc;
    if (id != TOKENIZER_NONE)
        return token_list_add(e->list, id, e->msg);
    return bytes <= SHORT_WORD ? short_word(e, text, (uint32_t)bytes) : long_word(e, text, bytes);
}

static int bpe_encode(const struct tokenizer *t, const struct fragment *fragment, uint64_t count,
                      struct token_list *list, struct inst_msg *msg)
{
    struct encoder e = {.t = t, .bpe = t->bpe, .list = list, .msg = msg};
    struct pre_splitter *splitter = NULL;
    int rc = pre_splitter_new(&splitter, t->bpe->pre, list->budget, msg);
    for (uint64_t i = 0; i < count && !rc; i++) {
        if (fragment[i].token != TOKENIZER_NONE)
            rc = token_list_add(list, fragment[i].token, msg);
        else
            rc = pre_split(splitter, fragment[i].text, fragment[i].bytes, add_word, &e, msg);
    }
    pre_splitter_free(splitter);
    budget_free(list->budget, e.symbol);
    budget_free(list->budget, e.heap);
    budget_free(list->budget, e.visible);
    return rc;
}

const struct tokenizer_kind tokenizer_bpe = {"gpt2",    bpe_defaults, bpe_open,
                                             bpe_close, bpe_encode,   bpe_plain};
