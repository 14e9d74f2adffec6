// SPDX-License-Identifier: Apache-2.0
// The arithmetic of SparF on pages that are there. Every function works on one KV head of one unit.
#include "drive/attend/select.h"
#include "drive/attend/sparf_unit.h"
#include "base/checked.h"

#include <math.h>
#include <string.h>

struct view { // what all functions need
    const struct sparf *s;
    const struct kernels *k;
    const struct job *job;
    struct unit *u;
    uint32_t head, dim, group;
    const float *q; // [group][dim]
    float *scores;  // [group + 1][size.tokens]
    uint64_t *chosen;
};

static struct view view_of(const struct sparf *s, const struct task *task)
{
    struct unit *u = task->unit;
    struct view v = {
        .s = s,
        .k = s->drive->kernels,
        .job = s->job,
        .u = u,
        .head = task->head,
        .dim = s->space->config.head_dim,
        .group = u->group,
    };
    uint64_t q_head =
        (uint64_t)u->item * s->job->header.q_heads + (uint64_t)(u->head_first + v.head) * v.group;
    v.q = s->job->q + q_head * v.dim;
    v.scores = u->scores + v.head * (v.group + 1) * s->size.tokens;
    v.chosen = u->chosen + v.head * (s->size.tokens / 64);
    return v;
}

// ---- prepare -----------------------------------------------------------------------------------

// Scores from channels i are multiplied by scale * sqrt(|q|_1 / |q[i]|_1): with the usual scale of
// 1 / sqrt(d) that is 1 / sqrt(d |q[i]|_1 / |q|_1). A query head that is zero in all chosen
// channels takes the scale as it is.
static void prepare(const struct view *v)
{
    struct unit *u = v->u;
    double weight[KERNEL_HEAD_DIM_MAX] = {0};
    uint32_t *channels = u->channels + v->head * v->dim, r = u->n_channels;
    for (uint32_t i = 0; i < v->group; i++) {
        for (uint32_t d = 0; d < v->dim; d++)
            weight[d] += fabs((double)v->q[i * v->dim + d]);
    }
    select_channels(weight, v->dim, r, channels);
    for (uint32_t i = 0; i < v->group; i++) {
        const float *q = v->q + i * v->dim;
        float *kept = u->q_kept + (v->head * v->group + i) * v->dim;
        double all = 0, some = 0;
        for (uint32_t d = 0; d < v->dim; d++)
            all += fabs((double)q[d]);
        for (uint32_t c = 0; c < r; c++) {
            kept[c] = q[channels[c]];
            some += fabs((double)kept[c]);
        }
        double scale = (double)v->job->header.scale;
        u->factor[v->head * v->group + i] = (float)(some > 0 ? scale * sqrt(all / some) : scale);
    }
}

// ---- rank --------------------------------------------------------------------------------------

// Scores of n tokens from position `first` on; channels[c][t] are the chosen ones.
static void score(const struct view *v, const uint16_t *const *channels, uint64_t first, uint64_t n)
{
    const struct unit *u = v->u;
    uint64_t stride = v->s->size.tokens;
    v->k->channel_scores(channels, u->n_channels, n, u->q_kept + v->head * v->group * v->dim,
                         v->dim, v->group, v->scores + first, stride);
    for (uint32_t i = 0; i < v->group; i++) {
        float *x = v->scores + i * stride + first;
        v->k->scale(x, u->factor[v->head * v->group + i], n);
        if (v->job->header.softcap != 0)
            v->k->softcap(x, v->job->header.softcap, n);
    }
}

static void rank_channels(const struct view *v, const struct step *step)
{
    const struct space *space = v->s->space;
    const uint16_t *channels[KERNEL_HEAD_DIM_MAX];
    const uint32_t *list = v->u->channels + v->head * v->dim;
    for (uint32_t c = 0; c < v->u->n_channels; c++)
        channels[c] =
            step_at(space, step, v->head, sparf_channel_offset(space, list[c]), 2 * step->tokens);
    score(v, channels, step->first, step->tokens);
}

// Bytes of the head's slot in the token group of token t: in place where they do not straddle
// pages, else NULL.
static const uint16_t *slot_at(const struct view *v, const struct step *step, uint64_t t,
                               uint64_t offset, uint64_t bytes)
{
    const struct stream *kv = &v->s->space->streams[STREAM_KV];
    uint64_t row = t / kv->row_tokens - step->first / kv->row_tokens;
    return step_at(v->s->space, step, (uint32_t)row,
                   (v->u->head_first + v->head) * kv->slot_bytes + offset, bytes);
}

static void slot_copy(const struct view *v, const struct step *step, uint64_t t, uint64_t offset,
                      uint64_t bytes, uint16_t *out)
{
    const struct stream *kv = &v->s->space->streams[STREAM_KV];
    uint64_t row = t / kv->row_tokens - step->first / kv->row_tokens;
    step_copy(v->s->space, step, (uint32_t)row,
              (v->u->head_first + v->head) * kv->slot_bytes + offset, bytes, out);
}

static void rank_tail(const struct view *v, const struct step *step)
{
    const struct slot *slot = &v->s->space->streams[STREAM_KV].slot;
    const uint16_t *channels[KERNEL_HEAD_DIM_MAX];
    const uint32_t *list = v->u->channels + v->head * v->dim;
    uint64_t end = step->first + step->tokens, n;
    for (uint64_t t = step->first; t < end; t += n) {
        n = min_u64(slot->k_tokens - t % slot->k_tokens, end - t);
        for (uint32_t c = 0; c < v->u->n_channels; c++)
            channels[c] = slot_at(v, step, t, slot_channel(slot, t % slot->tokens, list[c]), 2 * n);
        score(v, channels, t, n);
    }
}

// ---- select ------------------------------------------------------------------------------------

// Softmax over all S tokens of each query head, by tiles; their sum in ascending order of heads.
static void softmax(const struct view *v, float *totals)
{
    uint64_t n = v->u->tokens, stride = v->s->size.tokens;
    float *sum = v->scores + v->group * stride;
    memset(sum, 0, n * sizeof *sum);
    for (uint32_t i = 0; i < v->group; i++) {
        float *x = v->scores + i * stride, total = 0, max = v->k->max(x, n);
        for (uint64_t t = 0; t < n; t += ATTENTION_TILE)
            total += v->k->exp_sum(x + t, min_u64(ATTENTION_TILE, n - t), max);
        v->k->axpy(sum, 1.0f / total, x, n);
        totals[i] = total;
    }
}

// Share of each query head's softmax that the chosen tokens hold.
static void sum_chosen(const struct view *v, const float *totals)
{
    uint64_t tiles = div_round_up(v->u->tokens, ATTENTION_TILE);
    for (uint32_t i = 0; i < v->group; i++) {
        const float *x = v->scores + i * v->s->size.tokens;
        float total = 0, packed[ATTENTION_TILE];
        for (uint64_t tile = 0; tile < tiles; tile++) {
            size_t n = 0;
            for (uint64_t bits = v->chosen[tile]; bits; bits &= bits - 1)
                packed[n++] = x[tile * ATTENTION_TILE + (uint64_t)__builtin_ctzll(bits)];
            if (n)
                total += v->k->sum(packed, n);
        }
        float alpha = total / totals[i];
        v->u->alpha[v->head * v->group + i] = alpha > 1 ? 1 : alpha;
    }
}

static void choose(const struct view *v)
{
    float totals[MAX_GROUP_HEADS];
    softmax(v, totals);
    select_tokens(v->scores + v->group * v->s->size.tokens, v->u->tokens, v->u->k, v->u->local,
                  v->chosen);
    sum_chosen(v, totals);
}

// ---- tokens ------------------------------------------------------------------------------------

// V of the tokens first + i, i < n, whose bits are set, in their places from `stage` on.
static void copy_values(const struct view *v, const struct step *step, uint64_t first,
                        uint64_t bits, uint64_t n, uint16_t *stage)
{
    const struct slot *slot = &v->s->space->streams[STREAM_KV].slot;
    for (uint64_t i = 0; i < n; i++) {
        struct slot_range row = slot_v(slot, (first + i) % slot->tokens, 1);
        if (bits >> i & 1)
            slot_copy(v, step, first + i, row.offset, row.bytes, stage + i * v->dim);
    }
}

// K and V of a tile's tokens whose bits are set: in place where a part lies in one page, else
// copied to `stage`.
static void gather(const struct view *v, const struct step *step, uint64_t first, uint64_t bits,
                   uint16_t *stage, struct attention_tile *tile)
{
    const struct slot *slot = &v->s->space->streams[STREAM_KV].slot;
    uint64_t w = slot->k_tokens;
    bool leading = !(bits & (bits + 1));
    tile->part_tokens = slot->k_tokens;
    tile->tokens = 64 - (uint32_t)__builtin_clzll(bits);
    tile->chosen = leading ? 0 : bits;
    for (uint64_t t = 0; t < tile->tokens; t += w) {
        uint64_t part = bits >> t & (w < 64 ? (1ull << w) - 1 : ~0ull), at = first + t;
        struct slot_range k = slot_k(slot, at % slot->tokens, w);
        struct slot_range values = slot_v(slot, at % slot->tokens, w);
        if (!part)
            continue;
        tile->k[t / w] = slot_at(v, step, at, k.offset, k.bytes);
        if (!tile->k[t / w]) {
            tile->k[t / w] = stage + t * v->dim;
            slot_copy(v, step, at, k.offset, k.bytes, stage + t * v->dim);
        }
        tile->v[t / w] = slot_at(v, step, at, values.offset, values.bytes);
        if (!tile->v[t / w]) {
            tile->v[t / w] = stage + (ATTENTION_TILE + t) * v->dim;
            copy_values(v, step, at, part, w, stage + (ATTENTION_TILE + t) * v->dim);
        }
    }
}

static float *step_partials(const struct view *v, const struct step *step, bool audit,
                            uint64_t tile)
{
    uint64_t tiles = v->s->size.span / ATTENTION_TILE;
    uint64_t index = (((audit ? tiles : 0) + tile) * v->u->n_heads + v->head) * v->group;
    return (float *)partial_at(step->partials, index, v->dim);
}

static void attend_tile(const struct view *v, const struct step *step, uint64_t first,
                        uint64_t bits, float *out, uint8_t *scratch)
{
    struct attention_tile tile = {
        .head_dim = v->dim, .scale = v->job->header.scale, .softcap = v->job->header.softcap};
    if (!bits) {
        for (uint32_t i = 0; i < v->group; i++)
            partial_clear(partial_at(out, i, v->dim));
        return;
    }
    gather(v, step, first, bits, (uint16_t *)(scratch + KERNEL_SCRATCH_BYTES), &tile);
    v->k->attention_tile(&tile, v->q, v->dim, v->group, NULL, out, 0, scratch);
}

static void attend_step(const struct view *v, const struct step *step, uint8_t *scratch)
{
    uint64_t end = step->first + step->tokens;
    for (uint64_t t = step->first; t < end; t += ATTENTION_TILE) {
        uint64_t n = min_u64(ATTENTION_TILE, end - t), tile = (t - step->first) / ATTENTION_TILE;
        uint64_t every = n == 64 ? ~0ull : (1ull << n) - 1, bits = v->chosen[t / 64] & every;
        attend_tile(v, step, t, bits, step_partials(v, step, false, tile), scratch);
        if (v->u->audit)
            attend_tile(v, step, t, every, step_partials(v, step, true, tile), scratch);
    }
}

static void add_gap(const struct view *v, const struct step *step, uint16_t *copy)
{
    const struct mean_gap *gap = &v->u->gaps[v->head];
    uint64_t end = min_u64(step->first + step->tokens, gap->end);
    const struct slot *slot = &v->s->space->streams[STREAM_KV].slot;
    for (uint64_t t = max_u64(step->first, gap->first); t < end; t++) {
        struct slot_range row = slot_v(slot, t % slot->tokens, 1);
        slot_copy(v, step, t, row.offset, row.bytes, copy);
        means_add(v->u->gap_sums + v->head * v->dim, copy, 1, v->dim);
    }
}

void sparf_step(void *arg, size_t index, unsigned worker)
{
    const struct sparf *s = arg;
    const struct task *task = &s->tasks[index];
    const struct view v = view_of(s, task);
    uint8_t *scratch = pool_scratch(s->drive->pool, worker);
    uint16_t *stage = (uint16_t *)(scratch + KERNEL_SCRATCH_BYTES);
    switch ((enum step_kind)task->step->kind) {
    case STEP_CHANNELS:
        rank_channels(&v, task->step);
        break;
    case STEP_TAIL:
        rank_tail(&v, task->step);
        break;
    case STEP_MEAN:
        add_gap(&v, task->step, stage);
        break;
    case STEP_TOKENS:
        attend_step(&v, task->step, scratch);
        break;
    }
}

static float *job_partials(const struct view *v)
{
    uint64_t index = (uint64_t)v->u->item * v->job->header.q_heads +
                     (uint64_t)(v->u->head_first + v->head) * v->group;
    return (float *)partial_at(v->job->partials, index, v->dim);
}

void sparf_fold(void *arg, size_t index, unsigned worker)
{
    const struct sparf *s = arg;
    const struct view v = view_of(s, &s->tasks[index]);
    float *dense = (float *)partial_at(v.u->dense, v.head * v.group, v.dim);
    (void)worker;
    for (const struct step *step = v.u->steps; step && step->computed; step = step->next) {
        uint64_t tiles = div_round_up(step->tokens, ATTENTION_TILE);
        for (uint64_t t = 0; t < tiles; t++) {
            const float *next = step_partials(&v, step, false, t);
            for (uint32_t i = 0; i < v.group; i++)
                v.k->partial_merge(partial_at(job_partials(&v), i, v.dim),
                                   partial_at((float *)next, i, v.dim), v.dim);
            next = step_partials(&v, step, true, t);
            for (uint32_t i = 0; v.u->audit && i < v.group; i++)
                v.k->partial_merge(partial_at(dense, i, v.dim), partial_at((float *)next, i, v.dim),
                                   v.dim);
        }
    }
}

// ---- finish ------------------------------------------------------------------------------------

static void finish(const struct view *v)
{
    const struct unit *u = v->u;
    const struct job *job = v->job;
    uint64_t first =
        (uint64_t)u->item * job->header.q_heads + (uint64_t)(u->head_first + v->head) * v->group;
    float *lse = (float *)(job->result + job->layout.lse);
    float *captured = (float *)(job->result + job->layout.captured);
    for (uint32_t i = 0; i < v->group; i++) {
        uint32_t query = v->head * v->group + i;
        const struct partial *chosen = partial_at(job_partials(v), i, v->dim);
        const struct partial *all = partial_at(u->dense, query, v->dim);
        float *out = (float *)(job->result + job->layout.out) + (first + i) * v->dim;
        float alpha = u->alpha[query];
        v->k->partial_output(chosen, out, v->dim);
        for (uint32_t d = 0; d < v->dim && alpha != 1; d++) {
            uint64_t sum = u->means[v->head * v->dim + d] + u->gap_sums[v->head * v->dim + d];
            out[d] = fmaf(alpha, out[d], (1 - alpha) * means_value(sum, u->tokens));
        }
        lse[first + i] = chosen->sum > 0 ? chosen->max + logf(chosen->sum) : -INFINITY;
        if (u->audit && all->sum > 0)
            alpha = fminf(1, chosen->sum / all->sum * kernel_exp(chosen->max - all->max));
        u->captured[query] = u->tokens ? alpha : 0;
        captured[first + i] = u->captured[query];
    }
}

void sparf_phase(void *arg, size_t index, unsigned worker)
{
    const struct sparf *s = arg;
    const struct task *task = &s->tasks[index];
    const struct view v = view_of(s, task);
    (void)worker;
    if (task->unit->phase == UNIT_PREPARE)
        prepare(&v);
    else if (task->unit->phase == UNIT_SELECT)
        choose(&v);
    else
        finish(&v);
}
