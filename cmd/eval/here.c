// SPDX-License-Identifier: Apache-2.0
// Holds K and V of a context and of what several sessions have behind it, in fp16 as the drive
// does, and attends to what a method has marked (choose.c), by the drive's own kernels. Bytes
// are counted in tokens of a KV head, K and V together: that is what dense attention reads of each.
#include "cmd/eval/choose.h"
#include "base/status.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { GROUP_MOST = 256, SCORED_MOST = 32, ALIGNED = 64 };

// ---- Attention ---------------------------------------------------------------------------------

// Pages of 4 KiB that hold marked tokens, where K and V of a token lie together, and tokens of a
// KV head one behind the other.
static void count_marked(const struct eval_choice *c)
{
    struct eval_here *h = c->h;
    size_t bytes = 2 * h->shape.head_dim * sizeof(uint16_t), next = 0, pages = 0, tokens = 0;
    for (size_t tile = 0; tile * 64 < c->to; tile++) {
        tokens += (size_t)__builtin_popcountll(h->marks[tile]);
        for (uint64_t m = h->marks[tile]; m; m &= m - 1) {
            size_t at = (tile * 64 + (size_t)__builtin_ctzll(m)) * bytes;
            size_t first = at / EVAL_PAGE, end = (at + bytes - 1) / EVAL_PAGE + 1;
            first = first > next ? first : next;
            pages += end > first ? end - first : 0;
            next = end;
        }
    }
    h->tokens += (double)tokens;
    h->pages += (double)pages;
}

static void add_mean(const struct eval_choice *c, float alpha, float *out)
{
    const struct eval_here *h = c->h;
    size_t dim = h->shape.head_dim;
    for (size_t d = 0; d < dim; d++) {
        double sum = c->s->v_sum[d];
        for (size_t p = h->shape.context; p < c->to; p++) {
            const uint16_t *v = eval_tile(c, p / 64) + (ATTENTION_TILE + p % 64) * dim;
            sum += (double)kernel_f16_to_f32(v[d]);
        }
        out[d] = alpha * out[d] + (1 - alpha) * (float)(sum / (double)c->to);
    }
}

static void attend(const struct eval_choice *c, float *out, size_t stride)
{
    struct eval_here *h = c->h;
    size_t dim = h->shape.head_dim;
    int fold = 0;
    for (size_t tile = 0; tile * 64 < c->to; tile++) {
        const uint16_t *k = eval_tile(c, tile);
        const struct attention_tile t = {.k = {k},
                                         .v = {k + dim * ATTENTION_TILE},
                                         .part_tokens = ATTENTION_TILE,
                                         .tokens = ATTENTION_TILE,
                                         .head_dim = (uint32_t)dim,
                                         .scale = c->scale,
                                         .softcap = c->softcap,
                                         .chosen = h->marks[tile]};
        if (!t.chosen)
            continue;
        h->kernels->attention_tile(&t, c->q, dim, h->group, NULL, h->partials, fold, h->scratch);
        fold = 1;
    }
    for (size_t g = 0; g < h->group; g++) {
        h->kernels->partial_output(partial_at(h->partials, g, dim), out + g * stride, dim);
        if (c->alpha)
            add_mean(c, c->alpha[g], out + g * stride);
    }
}

static void answer(struct eval_choice *c, uint32_t window, float *out, size_t stride)
{
    struct eval_here *h = c->h;
    float alpha[GROUP_MOST];
    c->alpha = NULL;
    memset(h->marks, 0, h->tiles * sizeof *h->marks);
    if (window || h->divisor == 1) { // a window is short: nobody chooses in it
        eval_mark_all(h->marks, window && c->to > window ? c->to - window : 0, c->to);
    } else {
        c->alpha = h->method == EVAL_HERE_sparq ? alpha : NULL;
        eval_choose(c);
    }
    count_marked(c);
    attend(c, out, stride);
    if (!window && h->divisor > 1)
        eval_choose_after(c);
}

// ---- Rows --------------------------------------------------------------------------------------

// Mass that the rows of a context give to the tokens before them.
static void note_mass(struct eval_choice *c, const struct guest_rows *rows, size_t kv_head)
{
    struct eval_here *h = c->h;
    const float *q = rows->q + kv_head * rows->n * h->group * h->shape.head_dim;
    size_t most = h->rows / h->group;
    for (size_t row = 0; row < rows->n; row += most) {
        size_t n = rows->n - row < most ? rows->n - row : most;
        c->to = rows->pos + row + n;
        eval_score(c, q + row * h->group * h->shape.head_dim, n * h->group, NULL, NULL);
        for (size_t i = 0; i < n * h->group; i++) {
            size_t seen = rows->pos + row + i / h->group + 1;
            eval_softmax(h, h->scores + i * h->room, seen);
            h->kernels->add(c->s->sums, h->scores + i * h->room, seen);
        }
    }
}

static void keep(struct eval_choice *c, const struct guest_rows *rows, size_t kv_head)
{
    struct eval_here *h = c->h;
    size_t dim = h->shape.head_dim;
    const uint16_t *k = rows->kv + kv_head * 2 * rows->n * dim, *v = k + rows->n * dim;
    for (size_t row = 0; row < rows->n; row++) {
        size_t p = rows->pos + row;
        uint16_t *tile = (uint16_t *)eval_tile(c, p / 64);
        for (size_t d = 0; d < dim; d++)
            tile[d * ATTENTION_TILE + p % 64] = k[row * dim + d];
        memcpy(tile + (ATTENTION_TILE + p % 64) * dim, v + row * dim, dim * sizeof *v);
    }
}

// A session begins where the context ends.
static void begin(struct eval_choice *c)
{
    struct eval_here *h = c->h;
    size_t words = eval_tile_words(h), context = h->shape.context;
    memcpy(c->tail->tiles, c->s->tiles + h->context_tiles * words, words * sizeof(uint16_t));
    if (!h->shape.sums)
        return;
    memcpy(c->tail->now, c->s->sums, context * sizeof *c->tail->now);
    memset(c->tail->kept, 0, h->tiles * sizeof *c->tail->kept);
    eval_mark_all(c->tail->kept, 0, context);
}

static void on_rows(void *user, const struct guest_rows *rows)
{
    struct eval_here *h = user;
    for (size_t head = 0; head < h->shape.kv_heads; head++) {
        struct eval_store *s = &h->stores[rows->layer * h->shape.kv_heads + head];
        struct eval_tail end = {.tiles = s->tiles + h->context_tiles * eval_tile_words(h)};
        struct eval_choice c = {.h = h,
                                .s = s,
                                .tail = rows->session ? &s->tail[rows->session - 1] : &end,
                                .scale = rows->scale,
                                .softcap = rows->softcap};
        if (rows->session && rows->pos == h->shape.context)
            begin(&c);
        keep(&c, rows, head);
        if (!rows->out) {
            if (h->shape.sums && !rows->window)
                note_mass(&c, rows, head);
            continue;
        }
        c.q = rows->q + head * h->group * h->shape.head_dim;
        c.to = rows->pos + 1;
        answer(&c, rows->window, rows->out + head * h->group * rows->out_stride, rows->out_stride);
    }
}

// ---- Open, close -------------------------------------------------------------------------------

static bool open_tail(const struct eval_here *h, struct eval_tail *t)
{
    t->tiles = calloc(h->tiles - h->context_tiles, eval_tile_words(h) * sizeof *t->tiles);
    if (!t->tiles || !h->shape.sums)
        return t->tiles;
    t->now = calloc(h->room, sizeof *t->now);
    t->kept = calloc(h->tiles, sizeof *t->kept);
    return t->now && t->kept;
}

static bool open_store(const struct eval_here *h, struct eval_store *s)
{
    s->tiles = calloc(h->context_tiles + 1, eval_tile_words(h) * sizeof *s->tiles);
    s->v_sum = calloc(h->shape.head_dim, sizeof *s->v_sum);
    s->tail = calloc(h->shape.lines, sizeof *s->tail);
    s->sums = h->shape.sums ? calloc(h->room, sizeof *s->sums) : NULL;
    bool ok = s->tiles && s->v_sum && s->tail && (s->sums || !h->shape.sums);
    for (size_t i = 0; i < h->shape.lines && ok; i++)
        ok = open_tail(h, &s->tail[i]);
    return ok;
}

static bool open_scratch(struct eval_here *h)
{
    size_t dim = h->shape.head_dim;
    h->rows = h->group > SCORED_MOST ? h->group : SCORED_MOST / h->group * h->group;
    h->scores = calloc(h->room, h->rows * sizeof *h->scores);
    h->q = calloc(h->rows, 2 * dim * sizeof *h->q);
    h->ranks = calloc(h->room, sizeof *h->ranks);
    h->spare = calloc(h->room, sizeof *h->spare);
    h->marks = calloc(h->tiles, sizeof *h->marks);
    h->picks = calloc(h->tiles, sizeof *h->picks);
    h->late_pages = calloc(h->room, 2 * dim * sizeof *h->late_pages / 16);
    h->partials = aligned_alloc(ALIGNED, h->group * partial_stride(dim) * sizeof *h->partials);
    h->scratch = aligned_alloc(ALIGNED, KERNEL_SCRATCH_BYTES);
    return h->scores && h->q && h->ranks && h->spare && h->marks && h->picks && h->late_pages &&
           h->partials && h->scratch;
}

int eval_here_open(struct eval_here **out, const struct eval_here_shape *shape,
                   struct inst_msg *msg)
{
    *out = NULL;
    if (shape->head_dim > KERNEL_HEAD_DIM_MAX || shape->heads / shape->kv_heads > GROUP_MOST)
        return inst_fail(msg, INST_EINVAL, "heads of %u channels, %u for each KV head: too many",
                         shape->head_dim, shape->heads / shape->kv_heads);
    struct eval_here *h = calloc(1, sizeof *h);
    if (!h)
        return inst_fail(msg, INST_ENOMEM, "out of memory");
    h->shape = *shape;
    h->kernels = kernels_best();
    h->context_tiles = (size_t)shape->context / ATTENTION_TILE;
    h->tiles = (size_t)(shape->context + shape->longest) / ATTENTION_TILE + 1;
    h->room = h->tiles * ATTENTION_TILE;
    h->group = shape->heads / shape->kv_heads;
    h->divisor = 1;
    h->guest = (struct guest){.attend = on_rows, .user = h};
    size_t n = (size_t)shape->layers * shape->kv_heads;
    h->stores = calloc(n, sizeof *h->stores);
    bool ok = open_scratch(h) && h->stores;
    for (size_t i = 0; i < n && ok; i++)
        ok = open_store(h, &h->stores[i]);
    if (!ok) {
        eval_here_close(h);
        return inst_fail(msg, INST_ENOMEM, "no memory for K and V of %llu tokens",
                         (unsigned long long)shape->context);
    }
    *out = h;
    return 0;
}

static void close_store(const struct eval_here *h, struct eval_store *s)
{
    for (size_t i = 0; s->tail && i < h->shape.lines; i++) {
        free(s->tail[i].tiles);
        free(s->tail[i].now);
        free(s->tail[i].kept);
    }
    free(s->tail);
    free(s->tiles);
    free(s->v_sum);
    free(s->sums);
    free(s->pages);
}

void eval_here_close(struct eval_here *h)
{
    if (!h)
        return;
    for (size_t i = 0; h->stores && i < (size_t)h->shape.layers * h->shape.kv_heads; i++)
        close_store(h, &h->stores[i]);
    free(h->stores);
    free(h->scores);
    free(h->q);
    free(h->ranks);
    free(h->spare);
    free(h->marks);
    free(h->picks);
    free(h->late_pages);
    free(h->partials);
    free(h->scratch);
    free(h);
}

const struct guest *eval_here_guest(struct eval_here *h)
{
    return &h->guest;
}

int eval_here_set(struct eval_here *h, enum eval_here_method method, uint32_t divisor,
                  struct inst_msg *msg)
{
    h->method = method;
    h->divisor = divisor;
    h->tokens = h->pages = 0;
    return eval_choose_prepare(h) ? 0 : inst_fail(msg, INST_ENOMEM, "out of memory");
}

double eval_here_bytes(const struct eval_here *h)
{
    return h->tokens * 2 * h->shape.head_dim * sizeof(uint16_t);
}

double eval_here_page_bytes(const struct eval_here *h)
{
    return h->pages * EVAL_PAGE;
}

double eval_here_index(const struct eval_here *h)
{
    double heads = (double)h->shape.layers * h->shape.kv_heads;
    double kept = ceil((double)h->shape.context / h->divisor);
    if (h->divisor == 1)
        return 0;
    if (h->method == EVAL_HERE_h2o) // the mass of each token that is kept
        return heads * kept * sizeof(float);
    if (h->method == EVAL_HERE_sparq) // the mean of V
        return heads * h->shape.head_dim * sizeof(float);
    return 0;
}
