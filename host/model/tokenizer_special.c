// SPDX-License-Identifier: Apache-2.0
// Special tokens in raw text: which there are, and the text cut at them. As in llama.cpp the
// longest token is cut out first, everywhere, among equally long ones that with the lowest id, and
// its occurrences from left to right; what is left between is searched for the next.
//
// That order is kept, the work is not done token by token: a vocabulary may have tens of thousands
// of special tokens that begin alike, and a text may have them all. One pass over the text finds
// out which lengths occur, hardly ever more than a few. Then there is one pass for each length: at
// most one text of that length begins at a place, and only where such occurrences touch each other
// their ids decide.
#include "host/model/tokenizer_internal.h"

#include "base/checked.h"

#include <stdlib.h>
#include <string.h>

struct special {
    uint32_t *id;     // by falling length of text, then by id; the index is the rank
    uint32_t *sorted; // ranks in the order of the texts, equal ones by rank
    uint32_t *length; // that occur, rising
    uint32_t n, n_lengths;
    uint32_t first_byte[257]; // where the texts with a first byte begin in `sorted`
};

static const char *rank_text(const struct tokenizer *t, uint32_t rank)
{
    return token_text(t, t->special->id[rank]);
}

static uint32_t rank_bytes(const struct tokenizer *t, uint32_t rank)
{
    return t->token[t->special->id[rank]].bytes;
}

static int by_length(const void *a, const void *b, void *tokenizer)
{
    const struct tokenizer *t = tokenizer;
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    if (t->token[x].bytes != t->token[y].bytes)
        return t->token[x].bytes < t->token[y].bytes ? 1 : -1;
    return x < y ? -1 : x > y;
}

static int by_text(const void *a, const void *b, void *tokenizer)
{
    const struct tokenizer *t = tokenizer;
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    uint32_t x_bytes = rank_bytes(t, x), y_bytes = rank_bytes(t, y);
    int order = memcmp(rank_text(t, x), rank_text(t, y), min_u64(x_bytes, y_bytes));
    if (order || x_bytes != y_bytes)
        return order ? order : x_bytes < y_bytes ? -1 : 1;
    return x < y ? -1 : x > y;
}

static bool is_special(const struct tokenizer *t, uint32_t id)
{
    return t->attribute[id] & TOKEN_SPECIAL && t->token[id].bytes;
}

int special_open(struct tokenizer *t, struct inst_msg *msg)
{
    uint32_t n = 0;
    for (uint32_t id = 0; id < t->count; id++)
        n += is_special(t, id);
    struct special *s = budget_alloc(t->budget, 1, sizeof *s, "the special tokens", msg);
    if (!s)
        return INST_ENOMEM;
    t->special = s;
    if (!n)
        return 0;
    s->id = budget_alloc(t->budget, n, sizeof *s->id, "the special tokens", msg);
    s->sorted = budget_alloc(t->budget, n, sizeof *s->sorted, "the special tokens", msg);
    s->length = budget_alloc(t->budget, n, sizeof *s->length, "the special tokens", msg);
    if (!s->id || !s->sorted || !s->length)
        return INST_ENOMEM;
    for (uint32_t id = 0; id < t->count; id++)
        if (is_special(t, id))
            s->id[s->n++] = id;
    qsort_r(s->id, n, sizeof *s->id, by_length, t);
    for (uint32_t rank = 0; rank < n; rank++)
        s->sorted[rank] = rank;
    qsort_r(s->sorted, n, sizeof *s->sorted, by_text, t);
    for (uint32_t rank = n; rank-- > 0;)
        if (!s->n_lengths || s->length[s->n_lengths - 1] != rank_bytes(t, rank))
            s->length[s->n_lengths++] = rank_bytes(t, rank);
    for (uint32_t rank = 0; rank < n; rank++)
        s->first_byte[(unsigned char)*rank_text(t, rank) + 1]++;
    for (int b = 0; b < 256; b++)
        s->first_byte[b + 1] += s->first_byte[b];
    return 0;
}

void special_close(struct tokenizer *t)
{
    struct special *s = t->special;
    if (!s)
        return;
    budget_free(t->budget, s->id);
    budget_free(t->budget, s->sorted);
    budget_free(t->budget, s->length);
    budget_free(t->budget, s);
}

// Indices of `sorted`.
struct range {
    uint32_t first, end;
};

static struct range begin_with_byte(const struct special *s, char byte)
{
    return (struct range){s->first_byte[(unsigned char)byte],
                          s->first_byte[(unsigned char)byte + 1]};
}

// First of the range whose text comes after all that are less than text[0, bytes), or, with
// `after`, also after all that begin with it.
static uint32_t bound(const struct tokenizer *t, struct range in, const char *text, uint32_t bytes,
                      bool after)
{
    while (in.first < in.end) {
        uint32_t middle = in.first + (in.end - in.first) / 2, rank = t->special->sorted[middle];
        uint32_t length = rank_bytes(t, rank);
        int order = memcmp(rank_text(t, rank), text, min_u64(length, bytes));
        if (!order)
            order = length < bytes ? -1 : after ? -1 : 0;
        if (order < 0)
            in.first = middle + 1;
        else
            in.end = middle;
    }
    return in.first;
}

// Those of the range that begin with text[0, bytes); one that is just that comes first.
static struct range begin_with(const struct tokenizer *t, struct range in, const char *text,
                               uint32_t bytes)
{
    in.first = bound(t, in, text, bytes, false);
    uint32_t rank = in.first < in.end ? t->special->sorted[in.first] : 0;
    if (in.first < in.end &&
        (rank_bytes(t, rank) < bytes || memcmp(rank_text(t, rank), text, bytes)))
        in.end = in.first;
    in.end = bound(t, in, text, bytes, true);
    return in;
}

// Whether any byte of [text, text + bytes) is a stranger's.
static bool is_foreign(const struct source *src, const char *text, uint64_t bytes)
{
    uint64_t start = (uint64_t)(text - src->text), at = 0;
    for (uint64_t i = 0; i < src->n_spans && at < start + bytes; i++) {
        at += src->spans[i].bytes;
        if (src->spans[i].foreign && src->spans[i].bytes && at > start)
            return true;
    }
    return false;
}

// The lowest rank of the range whose text is text[0, bytes) and that counts there.
static uint32_t counting(const struct source *src, struct range in, const char *text,
                         uint32_t bytes)
{
    const struct tokenizer *t = src->t;
    uint8_t hide = src->parse ? 0 : TOKEN_HIDDEN;
    for (; in.first < in.end; in.first++) {
        uint32_t rank = t->special->sorted[in.first];
        uint8_t attribute = t->attribute[t->special->id[rank]];
        if (rank_bytes(t, rank) != bytes)
            break;
        if (!(attribute & hide) &&
            (!(attribute & (TOKEN_HIDDEN | TOKEN_MARKER)) || !is_foreign(src, text, bytes)))
            return rank;
    }
    return TOKENIZER_NONE;
}

// Marks the lengths that occur in the text.
static void find_lengths(const struct source *src, uint8_t *present)
{
    const struct tokenizer *t = src->t;
    const struct special *s = t->special;
    uint32_t found = 0;
    for (uint64_t i = 0; i < src->bytes && found < s->n_lengths; i++) {
        const char *text = src->text + i;
        struct range in = begin_with_byte(s, *text);
        for (uint32_t k = 0; in.first < in.end && k < s->n_lengths; k++) {
            if (s->length[k] > src->bytes - i)
                break;
            in = begin_with(t, in, text, s->length[k]);
            if (!present[k] && counting(src, in, text, s->length[k]) != TOKENIZER_NONE) {
                present[k] = 1;
                found++;
            }
        }
    }
}

enum { PENDING = 0, DROPPED = 1 }; // a taken hit ends at 1 or later, and that at 1 at least at 2

// An occurrence, in the text of a fragment.
struct hit {
    uint32_t at, rank;
    uint32_t end; // PENDING, DROPPED, or taken: 1 + where the text goes on
};

// One pass for one length.
struct cutter {
    const struct source *src;
    uint32_t length;
    const char *text; // of the fragment
    uint32_t bytes, done;
    struct fragments *to;
    // Occurrences that touch each other, or that one may swallow, by place.
    struct hit *hit;
    uint32_t *heap; // of their indices
    uint64_t n, hit_capacity, heap_capacity;
};

static int fragment_add(const struct source *src, struct fragments *f, const char *text,
                        uint64_t bytes, uint32_t token)
{
    if (!bytes && token == TOKENIZER_NONE)
        return 0;
    int rc = list_reserve(src->budget, (void **)&f->at, &f->capacity, f->count, f->count + 1,
                          sizeof *f->at, src->msg);
    if (!rc)
        f->at[f->count++] = (struct fragment){.text = text, .bytes = bytes, .token = token};
    return rc;
}

static bool is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static bool strips(const struct cutter *c, uint32_t rank)
{
    const struct tokenizer *t = c->src->t;
    return t->attribute[t->special->id[rank]] & TOKEN_RSTRIP;
}

static void take(struct cutter *c, uint64_t i)
{
    struct hit *hit = c->hit;
    uint32_t end = hit[i].at + c->length;
    uint64_t j = i;
    while (j > 0 && hit[j - 1].at + c->length > hit[i].at)
        if (hit[--j].end == PENDING)
            hit[j].end = DROPPED;
    for (j = i + 1; j < c->n && hit[j].at < end; j++)
        if (hit[j].end == PENDING)
            hit[j].end = DROPPED;
    // What is swallowed ends at the next one that was taken before.
    while (strips(c, hit[i].rank) && end < c->bytes && is_space(c->text[end])) {
        if (j < c->n && hit[j].at == end) {
            if (hit[j].end > DROPPED)
                break;
            hit[j++].end = DROPPED;
        }
        end++;
    }
    hit[i].end = end + 1;
}

static bool sooner(const struct cutter *c, uint32_t a, uint32_t b)
{
    const struct hit *x = &c->hit[a], *y = &c->hit[b];
    return x->rank < y->rank || (x->rank == y->rank && x->at < y->at);
}

static void sift_down(const struct cutter *c, uint64_t at, uint64_t n)
{
    uint32_t moved = c->heap[at];
    for (uint64_t child; (child = 2 * at + 1) < n; at = child) {
        child += child + 1 < n && sooner(c, c->heap[child + 1], c->heap[child]);
        if (!sooner(c, c->heap[child], moved))
            break;
        c->heap[at] = c->heap[child];
    }
    c->heap[at] = moved;
}

// Takes hits in the order of their ranks, then of their places, while they are there.
static int take_in_order(struct cutter *c)
{
    bool alike = true;
    for (uint64_t i = 1; i < c->n && alike; i++)
        alike = c->hit[i].rank == c->hit[0].rank;
    if (alike) {
        for (uint64_t i = 0; i < c->n; i++)
            if (c->hit[i].end == PENDING)
                take(c, i);
        return 0;
    }
    int rc = list_reserve(c->src->budget, (void **)&c->heap, &c->heap_capacity, 0, c->n,
                          sizeof *c->heap, c->src->msg);
    if (rc)
        return rc;
    for (uint64_t i = 0; i < c->n; i++)
        c->heap[i] = (uint32_t)i;
    for (uint64_t i = c->n / 2; i-- > 0;)
        sift_down(c, i, c->n);
    for (uint64_t n = c->n; n > 0; n--) {
        uint32_t first = c->heap[0];
        if (c->hit[first].end == PENDING)
            take(c, first);
        c->heap[0] = c->heap[n - 1];
        sift_down(c, 0, n - 1);
    }
    return 0;
}

static int finish_hits(struct cutter *c)
{
    int rc = take_in_order(c);
    for (uint64_t i = 0; i < c->n && !rc; i++) {
        const struct hit *hit = &c->hit[i];
        if (hit->end <= DROPPED)
            continue;
        rc = fragment_add(c->src, c->to, c->text + c->done, hit->at - c->done, TOKENIZER_NONE);
        if (!rc)
            rc = fragment_add(c->src, c->to, NULL, 0, c->src->t->special->id[hit->rank]);
        c->done = hit->end - 1;
    }
    c->n = 0;
    return rc;
}

// Copies a fragment to `to`, cut at the special tokens of one length.
static int cut_fragment(struct cutter *c, const struct fragment *fragment)
{
    const struct special *s = c->src->t->special;
    uint32_t reach = 0;
    int rc = 0;
    if (fragment->token != TOKENIZER_NONE)
        return fragment_add(c->src, c->to, NULL, 0, fragment->token);
    c->text = fragment->text;
    c->bytes = (uint32_t)fragment->bytes;
    c->done = 0;
    for (uint32_t at = 0; !rc && (uint64_t)at + c->length <= c->bytes; at++) {
        const char *text = c->text + at;
        struct range in = begin_with_byte(s, *text);
        if (in.first == in.end)
            continue;
        in = begin_with(c->src->t, in, text, c->length);
        uint32_t rank = counting(c->src, in, text, c->length);
        if (rank == TOKENIZER_NONE)
            continue;
        if (c->n && at >= reach)
            rc = finish_hits(c);
        if (!rc)
            rc = list_reserve(c->src->budget, (void **)&c->hit, &c->hit_capacity, c->n, c->n + 1,
                              sizeof *c->hit, c->src->msg);
        if (rc)
            return rc;
        c->hit[c->n++] = (struct hit){at, rank, PENDING};
        reach = (uint32_t)max_u64(reach, at + c->length);
        while (strips(c, rank) && reach < c->bytes && is_space(c->text[reach]))
            reach++;
    }
    if (!rc)
        rc = finish_hits(c);
    return rc ? rc
              : fragment_add(c->src, c->to, c->text + c->done, c->bytes - c->done, TOKENIZER_NONE);
}

int special_cut(const struct source *src, struct fragments *f)
{
    const struct special *s = src->t->special;
    struct fragments other = {0};
    struct cutter c = {.src = src};
    int rc = fragment_add(src, f, src->text, src->bytes, TOKENIZER_NONE);
    if (rc || !s->n || !src->bytes)
        return rc;
    uint8_t *present = budget_alloc(src->budget, s->n_lengths, 1, "tokenizing", src->msg);
    if (!present)
        return INST_ENOMEM;
    find_lengths(src, present);
    for (uint32_t k = s->n_lengths; k-- > 0 && !rc;) {
        if (!present[k])
            continue;
        c.length = s->length[k];
        c.to = &other;
        other.count = 0;
        for (uint64_t i = 0; i < f->count && !rc; i++)
            rc = cut_fragment(&c, &f->at[i]);
        struct fragments swap = *f;
        *f = other;
        other = swap;
    }
    budget_free(src->budget, other.at);
    budget_free(src->budget, c.hit);
    budget_free(src->budget, c.heap);
    budget_free(src->budget, present);
    return rc;
}
