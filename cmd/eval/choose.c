// SPDX-License-Identifier: Apache-2.0
// How each method chooses. It marks tokens for one KV head and counts what finding them has read,
// in tokens of a KV head, K and V together, and in pages. Knows K and V as choose.h lays them out,
// and nothing of who fills them in or attends (here.c).
#include "cmd/eval/choose.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SINKS = 4, QUEST_PAGE = 16, BUCKETS = 4096, BUCKET_SHIFT = 19 };

// ---- Scores ------------------------------------------------------------------------------------

void eval_score(const struct eval_choice *c, const float *q, size_t n,
                const struct eval_channels *some, const uint64_t *only)
{
    struct eval_here *h = c->h;
    size_t dim = h->shape.head_dim, width = some ? some->n : dim;
    const uint16_t *channel[KERNEL_HEAD_DIM_MAX];
    for (size_t i = 0; i < n; i++) {
        float factor = some ? c->scale * some->factor[i] : c->scale;
        for (size_t k = 0; k < width; k++)
            h->q[i * width + k] = q[i * dim + (some ? some->channel[k] : k)] * factor;
    }
    for (size_t tile = 0; tile * ATTENTION_TILE < c->to; tile++) {
        if (only && !only[tile])
            continue;
        const uint16_t *k = eval_tile(c, tile);
        for (size_t i = 0; i < width; i++)
            channel[i] = k + (some ? some->channel[i] : i) * ATTENTION_TILE;
        h->kernels->channel_scores(channel, width, ATTENTION_TILE, h->q, width, n,
                                   h->scores + tile * ATTENTION_TILE, h->room);
    }
    for (size_t i = 0; c->softcap > 0 && i < n; i++)
        h->kernels->softcap(h->scores + i * h->room, c->softcap, c->to);
}

void eval_softmax(const struct eval_here *h, float *x, size_t n)
{
    float sum = h->kernels->exp_sum(x, n, h->kernels->max(x, n));
    h->kernels->scale(x, 1 / sum, n);
}

// ---- The best of many --------------------------------------------------------------------------

// The k-th largest of x[0..n), which is put in another order.
static float kth_of_few(float *x, size_t n, size_t k)
{
    size_t low = 0, high = n;
    while (high - low > 1) {
        float pivot = x[low + (high - low - 1) / 2]; // not the last: both sides get some
        size_t i = low, j = high - 1;
        for (;;) {
            while (x[i] > pivot)
                i++;
            while (x[j] < pivot)
                j--;
            if (i >= j)
                break;
            float swap = x[i];
            x[i++] = x[j];
            x[j--] = swap;
        }
        size_t middle = i == j ? i + 1 : i;
        if (k <= middle)
            high = middle;
        else
            low = middle;
    }
    return x[low];
}

// Grows with x; all that is below 0 is one.
static uint32_t bucket(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits >> 31 ? 0 : bits >> BUCKET_SHIFT;
}

// The same of any x; those that may be it are put into `few`.
static float kth(const float *x, size_t n, size_t k, float *few)
{
    uint32_t count[BUCKETS] = {0};
    for (size_t i = 0; i < n; i++)
        count[bucket(x[i])]++;
    uint32_t b = BUCKETS - 1;
    for (; count[b] < k; b--)
        k -= count[b];
    size_t n_few = 0;
    for (size_t i = 0; i < n; i++) {
        few[n_few] = x[i];
        n_few += bucket(x[i]) == b;
    }
    return kth_of_few(few, n_few, k);
}

void eval_mark_all(uint64_t *marks, size_t from, size_t to)
{
    for (size_t p = from; p < to;) {
        size_t end = (p / 64 + 1) * 64;
        size_t n = (end < to ? end : to) - p;
        marks[p / 64] |= (n == 64 ? ~0ull : (1ull << n) - 1) << p % 64;
        p += n;
    }
}

// Marks the k largest of ranks[0, n); of equal ones, the earlier.
static void mark_best(const struct eval_here *h, const float *ranks, size_t n, size_t k,
                      uint64_t *marks)
{
    if (k >= n) {
        eval_mark_all(marks, 0, n);
        return;
    }
    if (!k)
        return;
    float least = kth(ranks, n, k, h->spare);
    for (size_t tile = 0; tile * 64 < n; tile++) {
        uint64_t above = 0;
        size_t first = tile * 64, end = first + 64 < n ? first + 64 : n;
        for (size_t p = first; p < end; p++)
            above |= (uint64_t)(ranks[p] > least) << (p - first);
        marks[tile] |= above;
        k -= (size_t)__builtin_popcountll(above);
    }
    for (size_t p = 0; p < n && k; p++)
        if (ranks[p] == least) {
            marks[p / 64] |= 1ull << p % 64;
            k--;
        }
}

// ---- Ranks -------------------------------------------------------------------------------------

// The softmax of the first n scores of each query of the group, summed over the group in ranks.
static void rank_by_softmax(const struct eval_choice *c, size_t n)
{
    struct eval_here *h = c->h;
    memset(h->ranks, 0, n * sizeof *h->ranks);
    for (size_t g = 0; g < h->group; g++) {
        float *x = h->scores + g * h->room;
        eval_softmax(h, x, n);
        h->kernels->add(h->ranks, x, n);
    }
}

static void rank_by_mass(const struct eval_choice *c)
{
    eval_score(c, c->q, c->h->group, NULL, NULL);
    rank_by_softmax(c, c->to);
}

static size_t share(size_t tokens, uint32_t divisor)
{
    return (tokens + divisor - 1) / divisor;
}

static size_t whole_pages(double bytes)
{
    return (size_t)ceil(bytes / EVAL_PAGE);
}

static void mark_newest(const struct eval_choice *c, size_t n)
{
    eval_mark_all(c->h->marks, n < c->to ? c->to - n : 0, c->to);
}

// ---- Methods -----------------------------------------------------------------------------------

static void choose_window(const struct eval_choice *c)
{
    mark_newest(c, share(c->to, c->h->divisor));
}

static void choose_streaming(const struct eval_choice *c)
{
    size_t n = share(c->to, c->h->divisor), sinks = n > SINKS ? SINKS : n - 1;
    eval_mark_all(c->h->marks, 0, sinks);
    mark_newest(c, n - sinks);
}

static void choose_oracle(const struct eval_choice *c)
{
    rank_by_mass(c);
    mark_best(c->h, c->h->ranks, c->to, share(c->to, c->h->divisor), c->h->marks);
}

// Items of `size` tokens become their tokens.
static void mark_items(const struct eval_choice *c, const uint64_t *picks, size_t items,
                       size_t size)
{
    for (size_t i = 0; i < items; i++) {
        size_t end = (i + 1) * size;
        if (picks[i / 64] >> i % 64 & 1)
            eval_mark_all(c->h->marks, i * size, end < c->to ? end : c->to);
    }
}

static void choose_pieces(const struct eval_choice *c, size_t size)
{
    struct eval_here *h = c->h;
    size_t pieces = (c->to + size - 1) / size, n = share(c->to, h->divisor) / size;
    rank_by_mass(c);
    for (size_t i = 0; i < pieces; i++) { // in place: no piece lies before its sum
        float sum = 0;
        for (size_t p = i * size; p < (i + 1) * size && p < c->to; p++)
            sum += h->ranks[p];
        h->ranks[i] = sum;
    }
    memset(h->picks, 0, (pieces + 63) / 64 * sizeof *h->picks);
    mark_best(h, h->ranks, pieces, n ? n : 1, h->picks);
    mark_items(c, h->picks, pieces, size);
}

static void choose_oracle16(const struct eval_choice *c)
{
    choose_pieces(c, 16);
}

static void choose_oracle32(const struct eval_choice *c)
{
    choose_pieces(c, 32);
}

// The r channels with the most of abs(q), summed over the group.
static void best_channels(const struct eval_choice *c, size_t r, uint32_t *channels)
{
    size_t dim = c->h->shape.head_dim;
    float size[KERNEL_HEAD_DIM_MAX];
    for (size_t i = 0; i < dim; i++) {
        size[i] = 0;
        for (size_t g = 0; g < c->h->group; g++)
            size[i] += fabsf(c->q[g * dim + i]);
    }
    for (size_t i = 0; i < r; i++) {
        size_t best = 0;
        for (size_t k = 1; k < dim; k++)
            best = size[k] > size[best] ? k : best;
        size[best] = -1;
        channels[i] = (uint32_t)best;
    }
}

// As docs/sparf.md, with the newest token always among the chosen. Half of the bytes rank.
static void choose_sparq(const struct eval_choice *c)
{
    struct eval_here *h = c->h;
    size_t dim = h->shape.head_dim, r = dim / h->divisor ? dim / h->divisor : 1;
    double ranking = (double)(c->to * r) / (double)(2 * dim);
    double left = (double)c->to / h->divisor - ranking;
    uint32_t channels[KERNEL_HEAD_DIM_MAX];
    best_channels(c, r, channels);
    for (size_t g = 0; g < h->group; g++) {
        double some = 0, all = 0;
        for (size_t i = 0; i < dim; i++)
            all += (double)fabsf(c->q[g * dim + i]);
        for (size_t i = 0; i < r; i++)
            some += (double)fabsf(c->q[g * dim + channels[i]]);
        c->alpha[g] = some > 0 ? (float)sqrt(all / some) : 1;
    }
    eval_score(c, c->q, h->group, &(struct eval_channels){channels, r, c->alpha}, NULL);
    rank_by_softmax(c, c->to);
    mark_newest(c, 1);
    size_t k = left > 1 ? (size_t)left : 1;
    mark_best(h, h->ranks, c->to - 1, k - 1, h->marks);
    for (size_t g = 0; g < h->group; g++) {
        const float *x = h->scores + g * h->room;
        double alpha = 0;
        for (size_t tile = 0; tile * 64 < c->to; tile++)
            for (uint64_t m = h->marks[tile]; m; m &= m - 1)
                alpha += (double)x[tile * 64 + (size_t)__builtin_ctzll(m)];
        c->alpha[g] = (float)alpha;
    }
    // K lies a second time, a channel's tokens together.
    h->tokens += ranking;
    h->pages += (double)(r * whole_pages(2.0 * (double)c->to));
}

// Pages are as long as the budget of the summaries demands: half of it at most.
static size_t quest_page(uint32_t divisor)
{
    return 2 * (size_t)divisor > QUEST_PAGE ? 2 * (size_t)divisor : QUEST_PAGE;
}

// Order of fp16 as integers.
static int16_t f16_order(uint16_t x)
{
    return (int16_t)(x >> 15 ? x ^ 0x7fff : x);
}

// The largest and the least of each channel over tokens [from, to), as channels of page `at`.
static void summarise(const struct eval_choice *c, size_t from, size_t to, uint16_t *pages,
                      size_t stride, size_t at)
{
    size_t dim = c->h->shape.head_dim;
    for (size_t i = 0; i < dim; i++) {
        int16_t most = INT16_MIN, least = INT16_MAX;
        for (size_t p = from; p < to; p++) {
            int16_t x = f16_order(eval_tile(c, p / 64)[i * ATTENTION_TILE + p % 64]);
            most = x > most ? x : most;
            least = x < least ? x : least;
        }
        // The map is its own inverse.
        pages[i * stride + at] = (uint16_t)f16_order((uint16_t)most);
        pages[(dim + i) * stride + at] = (uint16_t)f16_order((uint16_t)least);
    }
}

static void quest_bounds(const struct eval_choice *c, const uint16_t *pages, size_t n, float *out)
{
    struct eval_here *h = c->h;
    size_t dim = h->shape.head_dim, stride = h->room / QUEST_PAGE;
    const uint16_t *channel[2 * KERNEL_HEAD_DIM_MAX];
    for (size_t i = 0; i < 2 * dim; i++)
        channel[i] = pages + i * stride;
    for (size_t g = 0; g < h->group; g++)
        for (size_t i = 0; i < dim; i++) {
            float x = c->q[g * dim + i] * c->scale;
            h->q[g * 2 * dim + i] = x > 0 ? x : 0;
            h->q[g * 2 * dim + dim + i] = x < 0 ? x : 0;
        }
    h->kernels->channel_scores(channel, 2 * dim, n, h->q, 2 * dim, h->group, out, h->room);
}

// A page is ranked by the softmax of its bounds, summed over the group. The newest page is always
// read.
static void choose_quest(const struct eval_choice *c)
{
    struct eval_here *h = c->h;
    size_t page = quest_page(h->divisor), pages = (c->to + page - 1) / page;
    size_t known = h->shape.context / page, stride = h->room / QUEST_PAGE;
    double left = (double)c->to / h->divisor - (double)pages;
    size_t n = left > (double)page ? (size_t)(left / (double)page) : 1;
    for (size_t i = known; i < pages; i++) {
        size_t end = (i + 1) * page;
        summarise(c, i * page, end < c->to ? end : c->to, h->late_pages, stride, i - known);
    }
    quest_bounds(c, c->s->pages, known, h->scores);
    quest_bounds(c, h->late_pages, pages - known, h->scores + known);
    rank_by_softmax(c, pages);
    memset(h->picks, 0, (pages + 63) / 64 * sizeof *h->picks);
    mark_best(h, h->ranks, pages - 1, n - 1, h->picks);
    h->picks[(pages - 1) / 64] |= 1ull << (pages - 1) % 64;
    mark_items(c, h->picks, pages, page);
    h->tokens += (double)pages;
    h->pages += (double)whole_pages((double)(pages * 4 * h->shape.head_dim));
}

// What is dropped never comes back: its mass would be that of the tokens left, so it only grows.
static void choose_h2o(const struct eval_choice *c)
{
    struct eval_here *h = c->h;
    struct eval_tail *tail = c->tail;
    size_t k = share((size_t)h->shape.context, h->divisor), heavy = k / 2, recent = k - heavy;
    size_t own = c->to - 1;
    tail->kept[own / 64] |= 1ull << own % 64;
    tail->now[own] = 0;
    mark_newest(c, recent);
    if (c->to > recent) {
        size_t old = c->to - recent;
        for (size_t p = 0; p < old; p++)
            h->ranks[p] = tail->kept[p / 64] >> p % 64 & 1 ? tail->now[p] : -1;
        mark_best(h, h->ranks, old, heavy, h->marks);
    }
    for (size_t tile = 0; tile * 64 < c->to; tile++)
        tail->kept[tile] = h->marks[tile] &= tail->kept[tile];
}

static void (*const choose[])(const struct eval_choice *c) = {
#define CHOOSE(name, text) choose_##name,
    EVAL_HERE_MAP(CHOOSE)
#undef CHOOSE
};

void eval_choose(struct eval_choice *c)
{
    choose[c->h->method](c);
}

void eval_choose_after(struct eval_choice *c)
{
    struct eval_here *h = c->h;
    if (h->method != EVAL_HERE_h2o)
        return;
    eval_score(c, c->q, h->group, NULL, h->marks);
    for (size_t g = 0; g < h->group; g++) {
        float *x = h->scores + g * h->room;
        for (size_t tile = 0; tile * 64 < c->to; tile++)
            for (uint64_t m = ~h->marks[tile]; m; m &= m - 1)
                x[tile * 64 + (size_t)__builtin_ctzll(m)] = -INFINITY;
        eval_softmax(h, x, c->to);
        h->kernels->add(c->tail->now, x, c->to);
    }
}

// ---- What is known of a context ----------------------------------------------------------------

static void sum_values(const struct eval_choice *c)
{
    size_t dim = c->h->shape.head_dim;
    memset(c->s->v_sum, 0, dim * sizeof *c->s->v_sum);
    for (size_t p = 0; p < c->h->shape.context; p++) {
        const uint16_t *v =
            c->s->tiles + p / 64 * eval_tile_words(c->h) + (ATTENTION_TILE + p % 64) * dim;
        for (size_t d = 0; d < dim; d++)
            c->s->v_sum[d] += (double)kernel_f16_to_f32(v[d]);
    }
}

bool eval_choose_prepare(struct eval_here *h)
{
    size_t dim = h->shape.head_dim, stride = h->room / QUEST_PAGE, page = quest_page(h->divisor);
    for (size_t i = 0; i < (size_t)h->shape.layers * h->shape.kv_heads; i++) {
        struct eval_store *s = &h->stores[i];
        struct eval_tail end = {.tiles = s->tiles + h->context_tiles * eval_tile_words(h)};
        struct eval_choice c = {.h = h, .s = s, .tail = &end};
        if (h->method == EVAL_HERE_sparq)
            sum_values(&c);
        if (h->method != EVAL_HERE_quest)
            continue;
        if (!s->pages)
            s->pages = calloc(2 * dim * stride, sizeof *s->pages);
        if (!s->pages)
            return false;
        for (size_t k = 0; k < h->shape.context / page; k++)
            summarise(&c, k * page, (k + 1) * page, s->pages, stride, k);
    }
    return true;
}
