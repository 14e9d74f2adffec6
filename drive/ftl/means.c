// SPDX-License-Identifier: Apache-2.0
#include "drive/ftl/means.h"
#include "base/checked.h"

#include <stdbool.h>
#include <string.h>

static size_t head_bytes(const struct means *m)
{
    return m->head_dim * sizeof(uint64_t);
}

static uint64_t *mark(const struct means *m, uint64_t tokens, uint32_t head)
{
    uint64_t *sums = map_at(m->kind, &m->marks, tokens / MEANS_STEP - 1);
    return sums + (size_t)head * m->head_dim;
}

uint64_t means_bytes(uint32_t kv_heads, uint32_t head_dim, uint64_t tokens)
{
    struct map_kind kind;
    means_kind(&kind, kv_heads, head_dim, NULL);
    // A path of nodes of its own, where most is shared.
    return map_bytes(&kind, tokens / MEANS_STEP + 1) + kind.entry_bytes + 32ull * kv_heads +
           2 * (4096 + 64) + 1024;
}

void means_kind(struct map_kind *kind, uint32_t kv_heads, uint32_t head_dim, struct budget *budget)
{
    *kind = (struct map_kind){
        .entry_bytes = (size_t)kv_heads * head_dim * sizeof(uint64_t),
        .leaf_entries = 1,
        .budget = budget,
    };
}

int means_open(struct means *m, struct map_kind *kind, uint32_t kv_heads, uint32_t head_dim,
               struct budget *budget, struct inst_msg *msg)
{
    m->kind = kind;
    m->kv_heads = kv_heads;
    m->head_dim = head_dim;
    m->budget = budget;
    m->heads = budget_alloc(budget, kv_heads, sizeof *m->heads, "sums of V", msg);
    m->sums = budget_alloc(budget, kv_heads, head_bytes(m), "sums of V", msg);
    return m->heads && m->sums ? 0 : INST_ENOMEM; // means_close frees what is there
}

void means_close(struct means *m, struct budget *budget)
{
    if (m->kind)
        map_truncate(m->kind, &m->marks, 0);
    budget_free(budget, m->sums);
    budget_free(budget, m->heads);
    *m = (struct means){0};
}

int means_reserve(struct means *m, uint64_t tokens, struct inst_msg *msg)
{
    while (m->marks.n < tokens / MEANS_STEP) {
        if (!map_append(m->kind, &m->marks, msg))
            return INST_ENOMEM;
    }
    return 0;
}

// An fp16 number in units of 2^-24.
static inline uint64_t fixed(uint16_t h)
{
    uint64_t exponent = h >> 10 & 31, fraction = h & 1023;
    uint64_t value = exponent ? (fraction | 1024) << (exponent - 1) : fraction;
    return h & 0x8000 ? -value : value;
}

void means_add(uint64_t *sums, const uint16_t *v, uint64_t n, uint32_t head_dim)
{
    for (uint64_t i = 0; i < n; i++, v += head_dim) {
        for (uint32_t d = 0; d < head_dim; d++)
            sums[d] += fixed(v[d]);
    }
}

void means_append(struct means *m, uint32_t head, uint64_t first, const uint16_t *v, uint64_t n)
{
    uint64_t *sums = m->sums + (size_t)head * m->head_dim;
    while (n) {
        uint64_t step = min_u64(n, MEANS_STEP - first % MEANS_STEP);
        means_add(sums, v, step, m->head_dim);
        first += step;
        v += step * m->head_dim;
        n -= step;
        if (first % MEANS_STEP == 0)
            memcpy(mark(m, first, head), sums, head_bytes(m));
    }
}

static bool empty(const struct mean_gap *gap)
{
    return gap->first == gap->end;
}

// The last mark at or before `tokens` that can be relied on; *sums are there.
static uint64_t whole_mark(const struct means *m, uint32_t head, uint64_t tokens, uint64_t *sums)
{
    const struct mean_gap *gap = &m->heads[head].gap, *hole = &m->heads[head].hole;
    uint64_t at = tokens;
    if (!empty(gap))
        at = min_u64(at, gap->first);
    at -= at % MEANS_STEP;
    if (at > hole->first && at <= hole->end)
        at = hole->first;
    if (at)
        memcpy(sums, mark(m, at, head), head_bytes(m));
    else
        memset(sums, 0, head_bytes(m));
    return at;
}

// The hole as the first `tokens` tokens have it.
static struct mean_gap cut_hole(struct mean_gap hole, uint64_t tokens)
{
    hole.end = min_u64(hole.end, tokens);
    return hole.end > hole.first ? hole : (struct mean_gap){0, 0};
}

void means_truncate(struct means *m, const uint64_t *head_tokens, uint64_t tokens)
{
    for (uint32_t head = 0; m->heads && head < m->kv_heads; head++) {
        struct mean_head *own = &m->heads[head];
        if (head_tokens[head] <= tokens)
            continue;
        uint64_t at = whole_mark(m, head, tokens, m->sums + (size_t)head * m->head_dim);
        own->gap = (struct mean_gap){at, tokens};
        own->hole = cut_hole(own->hole, tokens);
    }
    // What comes instead is written to marks of its own: these may be shared.
    if (m->heads)
        map_truncate(m->kind, &m->marks, tokens / MEANS_STEP);
}

int means_fork(const struct means *from, const uint64_t *head_tokens, struct means *to,
               uint64_t tokens, struct inst_msg *msg)
{
    int status = map_fork(to->kind, &from->marks, &to->marks, tokens / MEANS_STEP, msg);
    if (status)
        return status;
    for (uint32_t head = 0; head < to->kv_heads; head++) {
        means_get(from, head, head_tokens[head], tokens, to->sums + (size_t)head * to->head_dim,
                  &to->heads[head].gap);
        to->heads[head].hole = cut_hole(from->heads[head].hole, tokens);
    }
    return 0;
}

void means_get(const struct means *m, uint32_t head, uint64_t head_tokens, uint64_t tokens,
               uint64_t *sums, struct mean_gap *gap)
{
    if (tokens == head_tokens) {
        memcpy(sums, m->sums + (size_t)head * m->head_dim, head_bytes(m));
        *gap = m->heads[head].gap;
        return;
    }
    uint64_t at = whole_mark(m, head, tokens, sums);
    *gap = (struct mean_gap){at, tokens};
}

void means_fill(struct means *m, uint32_t head, uint64_t head_tokens, const struct mean_gap *gap,
                const uint64_t *sums)
{
    struct mean_head *own = &m->heads[head];
    if (empty(&own->gap) || own->gap.first != gap->first || own->gap.end != gap->end)
        return;
    uint64_t at = gap->end / MEANS_STEP * MEANS_STEP;
    if (at > gap->first) { // marks within it are of no use from now on
        own->hole.first = empty(&own->hole) ? gap->first : min_u64(own->hole.first, gap->first);
        own->hole.end = gap->end;
    }
    // Whoever shares these marks has a gap of its own from before them on.
    while ((at += MEANS_STEP) <= head_tokens) {
        for (uint32_t d = 0; d < m->head_dim; d++)
            mark(m, at, head)[d] += sums[d];
    }
    for (uint32_t d = 0; d < m->head_dim; d++)
        m->sums[(size_t)head * m->head_dim + d] += sums[d];
    own->gap = (struct mean_gap){0, 0};
}

float means_value(uint64_t sum, uint64_t tokens)
{
    return (float)((double)(int64_t)sum * 0x1p-24 / (double)tokens);
}
