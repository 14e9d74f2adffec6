// SPDX-License-Identifier: Apache-2.0
// K lies by channel and V by token, both as floats of what the drive holds in fp16. A method marks
// tokens for one KV head; attention over the marked ones is the same for all. Bytes are counted in
// tokens of a KV head, K and V together: that is what dense attention reads of each.
#include "cmd/eval_here.h"
#include "base/status.h"
#include "kernels/kernels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SINKS = 4, QUEST_PAGE = 16, GROUP_MOST = 256 };

// Of one layer and KV head.
struct store {
    float *k;            // [head_dim][room]
    float *v;            // [room][head_dim]
    float *sums, *now;   // h2o, [room]: mass that came to a token, after the context and since
    unsigned char *kept; // h2o, [room]
};

struct eval_here {
    struct eval_here_shape shape;
    size_t room, group;
    struct guest guest;
    enum eval_here_method method;
    uint32_t divisor;
    uint64_t context;
    struct store *stores; // [layers][kv_heads]
    float *scores;        // [group][room]
    float *ranks, *spare; // [room]
    unsigned char *marked;
    double tokens; // read, of one KV head
};

// One query group.
struct task {
    struct eval_here *h;
    struct store *s;
    const float *q;  // [group][head_dim]
    size_t from, to; // tokens that it sees
    float scale, softcap;
    float *alpha; // sparq, [group]; NULL: the marked tokens stand for all
};

// ---- Arithmetic --------------------------------------------------------------------------------

// Scores of tokens [from, to) by some channels; all where `channels` is NULL.
static void score(const struct task *t, const float *q, const uint32_t *channels, size_t n,
                  float scale, float *out)
{
    memset(out + t->from, 0, (t->to - t->from) * sizeof *out);
    for (size_t i = 0; i < n; i++) {
        size_t c = channels ? channels[i] : i;
        const float *k = t->s->k + c * t->h->room;
        float x = q[c] * scale;
        for (size_t p = t->from; p < t->to; p++)
            out[p] += x * k[p];
    }
    for (size_t p = t->from; t->softcap > 0 && p < t->to; p++)
        out[p] = t->softcap * tanhf(out[p] / t->softcap);
}

// In place, over [from, to).
static void softmax(float *x, size_t from, size_t to)
{
    float most = -INFINITY;
    double sum = 0;
    for (size_t p = from; p < to; p++)
        most = fmaxf(most, x[p]);
    for (size_t p = from; p < to; p++) {
        x[p] = expf(x[p] - most);
        sum += (double)x[p];
    }
    float inverse = (float)(1 / sum);
    for (size_t p = from; p < to; p++)
        x[p] *= inverse;
}

// Softmax of the scores of each query of the group, and the sum over the group in ranks.
static void rank_by_mass(const struct task *t)
{
    struct eval_here *h = t->h;
    memset(h->ranks + t->from, 0, (t->to - t->from) * sizeof *h->ranks);
    for (size_t g = 0; g < h->group; g++) {
        float *x = h->scores + g * h->room;
        score(t, t->q + g * h->shape.head_dim, NULL, h->shape.head_dim, t->scale, x);
        softmax(x, t->from, t->to);
        for (size_t p = t->from; p < t->to; p++)
            h->ranks[p] += x[p];
    }
}

// The k-th largest of x[0..n), which is put in another order.
static float kth(float *x, size_t n, size_t k)
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

// Marks the k largest of ranks[from, to); of equal ones, the earlier.
static void mark_best(struct eval_here *h, const float *ranks, size_t from, size_t to, size_t k)
{
    if (k >= to - from) {
        memset(h->marked + from, 1, to - from);
        return;
    }
    if (!k)
        return;
    memcpy(h->spare, ranks + from, (to - from) * sizeof *h->spare);
    float least = kth(h->spare, to - from, k);
    for (size_t p = from; p < to; p++)
        if (ranks[p] > least) {
            h->marked[p] = 1;
            k--;
        }
    for (size_t p = from; p < to && k; p++)
        if (ranks[p] == least) {
            h->marked[p] = 1;
            k--;
        }
}

// ---- Methods: mark tokens, and count what marking them has read, in tokens
// -----------------------

static size_t share(size_t tokens, uint32_t divisor)
{
    return (tokens + divisor - 1) / divisor;
}

static void mark_newest(const struct task *t, size_t n)
{
    size_t seen = t->to - t->from;
    n = n < seen ? n : seen;
    memset(t->h->marked + t->to - n, 1, n);
}

static double choose_window(const struct task *t)
{
    mark_newest(t, share(t->to - t->from, t->h->divisor));
    return 0;
}

static double choose_streaming(const struct task *t)
{
    size_t n = share(t->to - t->from, t->h->divisor), sinks = n > SINKS ? SINKS : n - 1;
    memset(t->h->marked + t->from, 1, sinks);
    mark_newest(t, n - sinks);
    return 0;
}

static double choose_oracle(const struct task *t)
{
    rank_by_mass(t);
    mark_best(t->h, t->h->ranks, t->from, t->to, share(t->to - t->from, t->h->divisor));
    return 0;
}

// As docs/sparf.md, with the newest token always among the chosen. Half of the bytes rank.
static double choose_sparq(const struct task *t)
{
    struct eval_here *h = t->h;
    size_t dim = h->shape.head_dim, r = dim / h->divisor ? dim / h->divisor : 1;
    size_t seen = t->to - t->from;
    double ranking = (double)(seen * r) / (double)(2 * dim);
    double left = (double)seen / h->divisor - ranking;
    float size[1024];
    uint32_t channels[1024];
    for (size_t c = 0; c < dim; c++) {
        size[c] = 0;
        for (size_t g = 0; g < h->group; g++)
            size[c] += fabsf(t->q[g * dim + c]);
    }
    for (size_t i = 0; i < r; i++) {
        size_t best = 0;
        for (size_t c = 1; c < dim; c++)
            best = size[c] > size[best] ? c : best;
        size[best] = -1;
        channels[i] = (uint32_t)best;
    }
    memset(h->ranks + t->from, 0, seen * sizeof *h->ranks);
    for (size_t g = 0; g < h->group; g++) {
        const float *q = t->q + g * dim;
        float *x = h->scores + g * h->room;
        double some = 0, all = 0;
        for (size_t c = 0; c < dim; c++)
            all += (double)fabsf(q[c]);
        for (size_t i = 0; i < r; i++)
            some += (double)fabsf(q[channels[i]]);
        score(t, q, channels, r, t->scale * (float)(some > 0 ? sqrt(all / some) : 1), x);
        softmax(x, t->from, t->to);
        for (size_t p = t->from; p < t->to; p++)
            h->ranks[p] += x[p];
    }
    mark_newest(t, 1);
    size_t k = left > 1 ? (size_t)left : 1;
    mark_best(h, h->ranks, t->from, t->to - 1, k - 1);
    for (size_t g = 0; g < h->group; g++) {
        double alpha = 0;
        for (size_t p = t->from; p < t->to; p++)
            alpha += h->marked[p] ? (double)h->scores[g * h->room + p] : 0;
        t->alpha[g] = (float)alpha;
    }
    return ranking;
}

// Bounds of the scores of a page, for each query, in x[page].
static void quest_bounds(const struct task *t, size_t page, size_t pages)
{
    struct eval_here *h = t->h;
    size_t dim = h->shape.head_dim;
    for (size_t g = 0; g < h->group; g++)
        memset(h->scores + g * h->room, 0, pages * sizeof *h->scores);
    for (size_t c = 0; c < dim; c++) {
        const float *k = t->s->k + c * h->room;
        for (size_t i = 0; i < pages; i++) {
            size_t p = t->from + i * page, end = p + page < t->to ? p + page : t->to;
            float least = k[p], most = k[p];
            for (p++; p < end; p++) {
                least = k[p] < least ? k[p] : least;
                most = k[p] > most ? k[p] : most;
            }
            for (size_t g = 0; g < h->group; g++) {
                float q = t->q[g * dim + c] * t->scale;
                h->scores[g * h->room + i] += q * (q < 0 ? least : most);
            }
        }
    }
}

// A page is ranked by the softmax of its bounds, summed over the group. The newest page is always
// read. Pages are as long as the budget of the summaries demands: half of it at most.
static double choose_quest(const struct task *t)
{
    struct eval_here *h = t->h;
    size_t seen = t->to - t->from;
    size_t page = 2 * (size_t)h->divisor > QUEST_PAGE ? 2 * (size_t)h->divisor : QUEST_PAGE;
    size_t pages = (seen + page - 1) / page;
    double left = (double)seen / h->divisor - (double)pages;
    size_t n = left > (double)page ? (size_t)(left / (double)page) : 1;
    quest_bounds(t, page, pages);
    memset(h->ranks, 0, pages * sizeof *h->ranks);
    for (size_t g = 0; g < h->group; g++) {
        float *x = h->scores + g * h->room;
        softmax(x, 0, pages);
        for (size_t i = 0; i < pages; i++)
            h->ranks[i] += x[i];
    }
    // Pages are marked in front of `marked`, then each mark becomes its tokens, from the end.
    mark_best(h, h->ranks, 0, pages - 1, n - 1);
    h->marked[pages - 1] = 1;
    for (size_t i = pages; i-- > 0;) {
        size_t p = t->from + i * page, end = p + page < t->to ? p + page : t->to;
        unsigned char mark = h->marked[i];
        h->marked[i] = 0;
        memset(h->marked + p, mark, end - p);
    }
    return (double)pages;
}

// What is dropped never comes back: its mass would be that of the tokens left, so it only grows.
static double choose_h2o(const struct task *t)
{
    struct eval_here *h = t->h;
    struct store *s = t->s;
    size_t k = share(h->context, h->divisor), heavy = k / 2, recent = k - heavy;
    size_t own = t->to - 1;
    if (own == h->context) { // a new question
        memcpy(s->now, s->sums, own * sizeof *s->now);
        memset(s->kept, 1, own);
    }
    s->kept[own] = 1;
    s->now[own] = 0;
    mark_newest(t, recent);
    if (t->to > recent) {
        size_t old = t->to - recent;
        for (size_t p = 0; p < old; p++)
            h->ranks[p] = s->kept[p] ? s->now[p] : -1;
        mark_best(h, h->ranks, 0, old, heavy);
    }
    for (size_t p = 0; p < t->to; p++)
        s->kept[p] = h->marked[p] = h->marked[p] && s->kept[p];
    return 0;
}

static double (*const choose[])(const struct task *t) = {
#define CHOOSE(name, text) choose_##name,
    EVAL_HERE_MAP(CHOOSE)
#undef CHOOSE
};

// ---- Attention ---------------------------------------------------------------------------------

// The marked tokens, moved together: how many; their places in `place`.
static size_t gather(const struct eval_here *h, size_t from, size_t to, uint32_t *place)
{
    size_t n = 0;
    for (size_t p = from; p < to; p++)
        if (h->marked[p])
            place[n++] = (uint32_t)p;
    return n;
}

static void add_mean(const struct task *t, float alpha, float *out)
{
    size_t dim = t->h->shape.head_dim, n = t->to - t->from;
    double mean[1024] = {0};
    for (size_t p = t->from; p < t->to; p++)
        for (size_t d = 0; d < dim; d++)
            mean[d] += (double)t->s->v[p * dim + d];
    for (size_t d = 0; d < dim; d++)
        out[d] = alpha * out[d] + (1 - alpha) * (float)(mean[d] / (double)n);
}

static void attend(const struct task *t, const uint32_t *place, size_t n, float *out, size_t stride)
{
    struct eval_here *h = t->h;
    struct store *s = t->s;
    size_t dim = h->shape.head_dim;
    for (size_t g = 0; g < h->group; g++) {
        float *x = h->spare, *o = out + g * stride;
        memset(x, 0, n * sizeof *x);
        for (size_t c = 0; c < dim; c++) {
            const float *k = s->k + c * h->room;
            float q = t->q[g * dim + c] * t->scale;
            for (size_t i = 0; i < n; i++)
                x[i] += q * k[place[i]];
        }
        for (size_t i = 0; t->softcap > 0 && i < n; i++)
            x[i] = t->softcap * tanhf(x[i] / t->softcap);
        softmax(x, 0, n);
        memset(o, 0, dim * sizeof *o);
        for (size_t i = 0; i < n; i++)
            for (size_t d = 0; d < dim; d++)
                o[d] += x[i] * s->v[place[i] * dim + d];
        for (size_t i = 0; s->now && i < n; i++)
            s->now[place[i]] += x[i];
        if (t->alpha)
            add_mean(t, t->alpha[g], o);
    }
}

static void answer(struct task *t, bool windowed, float *out, size_t stride, uint32_t *place)
{
    struct eval_here *h = t->h;
    float alpha[GROUP_MOST];
    double ranking = 0;
    t->alpha = NULL;
    memset(h->marked, 0, t->to);
    if (windowed || h->divisor == 1) { // a window is short: nobody chooses in it
        memset(h->marked + t->from, 1, t->to - t->from);
    } else {
        t->alpha = h->method == EVAL_HERE_sparq ? alpha : NULL;
        ranking = choose[h->method](t);
    }
    size_t n = gather(h, t->from, t->to, place);
    h->tokens += (double)n + ranking;
    attend(t, place, n, out, stride);
}

// Mass that the rows of a prompt give to the tokens before them.
static void note_mass(struct task *t, const struct guest_rows *rows, size_t kv_head)
{
    struct eval_here *h = t->h;
    size_t group_dim = h->group * h->shape.head_dim;
    for (size_t row = 0; row < rows->n; row++) {
        t->q = rows->q + (kv_head * rows->n + row) * group_dim;
        t->to = rows->pos + row + 1;
        t->from = rows->window && t->to > rows->window ? t->to - rows->window : 0;
        t->s->sums[t->to - 1] = 0;
        rank_by_mass(t);
        for (size_t p = t->from; p < t->to; p++)
            t->s->sums[p] += h->ranks[p];
    }
}

static void keep(const struct eval_here *h, struct store *s, const struct guest_rows *rows,
                 size_t kv_head)
{
    size_t dim = h->shape.head_dim;
    const uint16_t *k = rows->kv + kv_head * 2 * rows->n * dim, *v = k + rows->n * dim;
    for (size_t row = 0; row < rows->n; row++)
        for (size_t d = 0; d < dim; d++) {
            s->k[d * h->room + rows->pos + row] = kernel_f16_to_f32(k[row * dim + d]);
            s->v[(rows->pos + row) * dim + d] = kernel_f16_to_f32(v[row * dim + d]);
        }
}

static void on_rows(void *user, const struct guest_rows *rows)
{
    struct eval_here *h = user;
    for (size_t head = 0; head < h->shape.kv_heads; head++) {
        struct store *s = &h->stores[rows->layer * h->shape.kv_heads + head];
        struct task t = {.h = h, .s = s, .scale = rows->scale, .softcap = rows->softcap};
        keep(h, s, rows, head);
        if (!rows->out) {
            if (h->shape.sums)
                note_mass(&t, rows, head);
            continue;
        }
        t.q = rows->q + head * h->group * h->shape.head_dim;
        t.to = rows->pos + 1;
        t.from = rows->window && t.to > rows->window ? t.to - rows->window : 0;
        answer(&t, rows->window, rows->out + head * h->group * rows->out_stride, rows->out_stride,
               (uint32_t *)h->ranks);
    }
}

// ---- Open, close -------------------------------------------------------------------------------

static bool open_store(const struct eval_here *h, struct store *s)
{
    s->k = calloc(h->room, h->shape.head_dim * sizeof *s->k);
    s->v = calloc(h->room, h->shape.head_dim * sizeof *s->v);
    if (!s->k || !s->v)
        return false;
    if (!h->shape.sums)
        return true;
    s->sums = calloc(h->room, sizeof *s->sums);
    s->now = calloc(h->room, sizeof *s->now);
    s->kept = calloc(h->room, 1);
    return s->sums && s->now && s->kept;
}

int eval_here_open(struct eval_here **out, const struct eval_here_shape *shape,
                   struct inst_msg *msg)
{
    *out = NULL;
    if (shape->head_dim > 1024 || shape->heads / shape->kv_heads > GROUP_MOST)
        return inst_fail(msg, INST_EINVAL, "heads of %u channels, %u for each KV head: too many",
                         shape->head_dim, shape->heads / shape->kv_heads);
    struct eval_here *h = calloc(1, sizeof *h);
    if (!h)
        return inst_fail(msg, INST_ENOMEM, "out of memory");
    h->shape = *shape;
    h->room = (size_t)shape->tokens;
    h->group = shape->heads / shape->kv_heads;
    h->divisor = 1;
    h->guest = (struct guest){.attend = on_rows, .user = h};
    size_t n = (size_t)shape->layers * shape->kv_heads;
    h->stores = calloc(n, sizeof *h->stores);
    h->scores = calloc(h->room, h->group * sizeof *h->scores);
    h->ranks = calloc(h->room, sizeof *h->ranks);
    h->spare = calloc(h->room, sizeof *h->spare);
    h->marked = calloc(h->room, 1);
    bool ok = h->stores && h->scores && h->ranks && h->spare && h->marked;
    for (size_t i = 0; i < n && ok; i++)
        ok = open_store(h, &h->stores[i]);
    if (!ok) {
        eval_here_close(h);
        return inst_fail(msg, INST_ENOMEM, "no memory for K and V of %llu tokens",
                         (unsigned long long)shape->tokens);
    }
    *out = h;
    return 0;
}

void eval_here_close(struct eval_here *h)
{
    if (!h)
        return;
    for (size_t i = 0; h->stores && i < (size_t)h->shape.layers * h->shape.kv_heads; i++) {
        free(h->stores[i].k);
        free(h->stores[i].v);
        free(h->stores[i].sums);
        free(h->stores[i].now);
        free(h->stores[i].kept);
    }
    free(h->stores);
    free(h->scores);
    free(h->ranks);
    free(h->spare);
    free(h->marked);
    free(h);
}

const struct guest *eval_here_guest(struct eval_here *h)
{
    return &h->guest;
}

void eval_here_set(struct eval_here *h, enum eval_here_method method, uint32_t divisor,
                   uint64_t context)
{
    h->method = method;
    h->divisor = divisor;
    h->context = context;
    h->tokens = 0;
}

double eval_here_bytes(const struct eval_here *h)
{
    return h->tokens * 2 * h->shape.head_dim * sizeof(uint16_t);
}

double eval_here_index(const struct eval_here *h)
{
    double heads = (double)h->shape.layers * h->shape.kv_heads;
    if (h->divisor == 1)
        return 0;
    if (h->method == EVAL_HERE_h2o) // the mass of each token that is kept
        return heads * (double)share(h->context, h->divisor) * sizeof(float);
    if (h->method == EVAL_HERE_sparq) // the mean of V
        return heads * h->shape.head_dim * sizeof(float);
    return 0;
}
