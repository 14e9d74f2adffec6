// SPDX-License-Identifier: Apache-2.0
// The arithmetic of SparF on pages that are there. Every function works on one KV head of one unit.
#include "drive/attend/select.h"
#include "drive/attend/sparf.h"
#include "base/checked.h"

#include <math.h>
#include <string.h>

struct sparf_view sparf_view_of(const struct unit *unit, uint32_t head)
{
    const struct method_state *s = unit->state;
    struct sparf_unit *u = unit->own;
    struct sparf_view v = {
        .s = s,
        .k = s->env->kernels,
        .job = unit->job,
        .unit = unit,
        .u = u,
        .head = head,
        .dim = s->space->config.head_dim,
        .group = unit->group,
    };
    uint64_t q_head = (uint64_t)unit->item * unit->job->header.q_heads +
                      (uint64_t)(unit->head_first + head) * v.group;
    v.q = unit->job->q + q_head * v.dim;
    v.scores = u->scores + head * s->size.head_floats;
    v.chosen = u->chosen + head * (s->size.tokens / 64);
    return v;
}

// ---- prepare -----------------------------------------------------------------------------------

// Scores from channels i are multiplied by scale * sqrt(|q|_1 / |q[i]|_1): with the usual scale of
// 1 / sqrt(d) that is 1 / sqrt(d |q[i]|_1 / |q|_1). A query head that is zero in all chosen
// channels takes the scale as it is.
static void prepare(const struct sparf_view *v)
{
    struct sparf_unit *u = v->u;
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
static void score(const struct sparf_view *v, const uint16_t *const *channels, uint64_t first,
                  uint64_t n)
{
    const struct sparf_unit *u = v->u;
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

static void rank_channels(const struct sparf_view *v, const struct piece *piece)
{
    const struct space *space = v->s->space;
    const uint16_t *channels[KERNEL_HEAD_DIM_MAX];
    const uint32_t *list = v->u->channels + v->head * v->dim;
    for (uint32_t c = 0; c < v->u->n_channels; c++)
        channels[c] = piece_at(space, piece, v->head, sparf_channel_offset(space, list[c]),
                               2 * piece->tokens);
    score(v, channels, piece->first, piece->tokens);
}

// Bytes of the head's slot in the token group of token t: in place where they do not straddle
// pages, else NULL.
static const uint16_t *slot_at(const struct sparf_view *v, const struct piece *piece, uint64_t t,
                               uint64_t offset, uint64_t bytes)
{
    const struct stream *kv = &v->s->space->streams[STREAM_KV];
    uint64_t row = t / kv->row_tokens - piece->first / kv->row_tokens;
    return piece_at(v->s->space, piece, (uint32_t)row,
                    (v->unit->head_first + v->head) * kv->slot_bytes + offset, bytes);
}

static void slot_copy(const struct sparf_view *v, const struct piece *piece, uint64_t t,
                      uint64_t offset, uint64_t bytes, uint16_t *out)
{
    const struct stream *kv = &v->s->space->streams[STREAM_KV];
    uint64_t row = t / kv->row_tokens - piece->first / kv->row_tokens;
    piece_copy(v->s->space, piece, (uint32_t)row,
               (v->unit->head_first + v->head) * kv->slot_bytes + offset, bytes, out);
}

static void rank_tail(const struct sparf_view *v, const struct piece *piece)
{
    const struct slot *slot = &v->s->space->streams[STREAM_KV].slot;
    const uint16_t *channels[KERNEL_HEAD_DIM_MAX];
    const uint32_t *list = v->u->channels + v->head * v->dim;
    uint64_t end = piece->first + piece->tokens, n;
    for (uint64_t t = piece->first; t < end; t += n) {
        n = min_u64(slot->k_tokens - t % slot->k_tokens, end - t);
        for (uint32_t c = 0; c < v->u->n_channels; c++)
            channels[c] =
                slot_at(v, piece, t, slot_channel(slot, t % slot->tokens, list[c]), 2 * n);
        score(v, channels, t, n);
    }
}

// ---- select ------------------------------------------------------------------------------------

// Softmax over all S tokens of each query head, by tiles; their sum in ascending order of heads.
static void softmax(const struct sparf_view *v, float *totals)
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
static void sum_chosen(const struct sparf_view *v, const float *totals)
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

static void choose(const struct sparf_view *v)
{
    float totals[MAX_GROUP_HEADS];
    softmax(v, totals);
    select_tokens(v->scores + v->group * v->s->size.tokens, v->u->tokens, v->u->k, v->u->local,
                  v->chosen);
    sum_chosen(v, totals);
}

// ---- tokens ------------------------------------------------------------------------------------

// V of the tokens first + i, i < n, whose bits are set, in their places from `stage` on.
static void copy_values(const struct sparf_view *v, const struct piece *piece, uint64_t first,
                        uint64_t bits, uint64_t n, uint16_t *stage)
{
    const struct slot *slot = &v->s->space->streams[STREAM_KV].slot;
    for (uint64_t i = 0; i < n; i++) {
        struct slot_range row = slot_v(slot, (first + i) % slot->tokens, 1);
        if (bits >> i & 1)
            slot_copy(v, piece, first + i, row.offset, row.bytes, stage + i * v->dim);
    }
}

// K and V of a tile's tokens whose bits are set: in place where a part lies in one page, else
// copied to `stage`.
static void gather(const struct sparf_view *v, const struct piece *piece, uint64_t first,
                   uint64_t bits, uint16_t *stage, struct attention_tile *tile)
{
    const struct slot *slot = &v->s->space->streams[STREAM_KV].slot;
    uint64_t w = slot->k_tokens, row = sparf_stage_row(v->dim);
    bool leading = !(bits & (bits + 1));
    tile->type = slot->type;
    tile->part_tokens = slot->k_tokens;
    tile->tokens = 64 - (uint32_t)__builtin_clzll(bits);
    tile->chosen = leading ? 0 : bits;
    for (uint64_t t = 0; t < tile->tokens; t += w) {
        uint64_t part = bits >> t & (w < 64 ? (1ull << w) - 1 : ~0ull), at = first + t;
        struct slot_range k = slot_k(slot, at % slot->tokens, w);
        struct slot_range values = slot_v(slot, at % slot->tokens, w);
        if (!part)
            continue;
        tile->k[t / w] = slot_at(v, piece, at, k.offset, k.bytes);
        if (!tile->k[t / w]) {
            tile->k[t / w] = stage + t * row;
            slot_copy(v, piece, at, k.offset, k.bytes, stage + t * row);
        }
        tile->v[t / w] = slot_at(v, piece, at, values.offset, values.bytes);
        if (!tile->v[t / w]) {
            tile->v[t / w] = stage + (ATTENTION_TILE + t) * row;
            if (slot->type == KV_F16)
                copy_values(v, piece, at, part, w, stage + (ATTENTION_TILE + t) * row);
            else
                slot_copy(v, piece, at, values.offset, values.bytes,
                          stage + (ATTENTION_TILE + t) * row);
        }
    }
}

static float *piece_partials(const struct sparf_view *v, const struct piece *piece, bool audit,
                             uint64_t tile)
{
    uint64_t tiles = v->s->size.span / ATTENTION_TILE;
    uint64_t index = (((audit ? tiles : 0) + tile) * v->unit->n_heads + v->head) * v->group;
    return (float *)partial_at(piece->partials, index, v->dim);
}

static void attend_tile(const struct sparf_view *v, const struct piece *piece, uint64_t first,
                        uint64_t bits, float *out, uint8_t *scratch)
{
    struct attention_tile tile = {
        .head_dim = v->dim, .scale = v->job->header.scale, .softcap = v->job->header.softcap};
    if (!bits) {
        for (uint32_t i = 0; i < v->group; i++)
            partial_clear(partial_at(out, i, v->dim));
        return;
    }
    gather(v, piece, first, bits, (uint16_t *)(scratch + KERNEL_SCRATCH_BYTES), &tile);
    v->k->attention_tile(&tile, v->q, v->dim, v->group, NULL, out, 0, scratch);
}

static void attend_piece(const struct sparf_view *v, const struct piece *piece, uint8_t *scratch)
{
    uint64_t end = piece->first + piece->tokens;
    for (uint64_t t = piece->first; t < end; t += ATTENTION_TILE) {
        uint64_t n = min_u64(ATTENTION_TILE, end - t), tile = (t - piece->first) / ATTENTION_TILE;
        uint64_t every = n == 64 ? ~0ull : (1ull << n) - 1, bits = v->chosen[t / 64] & every;
        attend_tile(v, piece, t, bits, piece_partials(v, piece, false, tile), scratch);
        if (v->u->audit)
            attend_tile(v, piece, t, every, piece_partials(v, piece, true, tile), scratch);
    }
}

static void add_gap(const struct sparf_view *v, const struct piece *piece, uint16_t *copy)
{
    const struct mean_gap *gap = &v->u->gaps[v->head];
    uint64_t end = min_u64(piece->first + piece->tokens, gap->end);
    const struct slot *slot = &v->s->space->streams[STREAM_KV].slot;
    for (uint64_t t = max_u64(piece->first, gap->first); t < end; t++) {
        struct slot_range row = slot_v(slot, t % slot->tokens, 1);
        slot_copy(v, piece, t, row.offset, row.bytes, copy);
        means_add(v->u->gap_sums + v->head * v->dim, copy, 1, v->dim);
    }
}

void sparf_compute(const struct unit_task *task, uint8_t *scratch)
{
    uint16_t *stage = (uint16_t *)(scratch + KERNEL_SCRATCH_BYTES);
    for (uint32_t head = task->head; head < task->head + task->heads; head++) {
        const struct sparf_view v = sparf_view_of(task->unit, head);
        switch ((enum sparf_piece)task->piece->kind) {
        case PIECE_CHANNELS:
            rank_channels(&v, task->piece);
            break;
        case PIECE_TAIL:
            rank_tail(&v, task->piece);
            break;
        case PIECE_MEAN:
            add_gap(&v, task->piece, stage);
            break;
        case PIECE_TOKENS:
            attend_piece(&v, task->piece, scratch);
            break;
        case PIECE_INDEX:
            break; // pages.c
        }
    }
}

float *sparf_partials(const struct sparf_view *v)
{
    uint64_t index = (uint64_t)v->unit->item * v->job->header.q_heads +
                     (uint64_t)(v->unit->head_first + v->head) * v->group;
    return (float *)partial_at(v->job->partials, index, v->dim);
}

static void fold_head(const struct sparf_view *v)
{
    float *dense = (float *)partial_at(v->u->dense, v->head * v->group, v->dim);
    const struct piece *p = NULL;
    for (uint32_t n = 0; n < v->unit->folding; n++) {
        p = n ? p->next : v->unit->pieces;
        uint64_t tiles = div_round_up(p->tokens, ATTENTION_TILE);
        for (uint64_t t = 0; t < tiles; t++) {
            float *next = piece_partials(v, p, false, t);
            for (uint32_t i = 0; i < v->group; i++)
                v->k->partial_merge(partial_at(sparf_partials(v), i, v->dim),
                                    partial_at(next, i, v->dim), v->dim);
            next = piece_partials(v, p, true, t);
            for (uint32_t i = 0; v->u->audit && i < v->group; i++)
                v->k->partial_merge(partial_at(dense, i, v->dim), partial_at(next, i, v->dim),
                                    v->dim);
        }
    }
}

void sparf_fold(const struct unit_task *task)
{
    for (uint32_t head = task->head; head < task->head + task->heads; head++) {
        const struct sparf_view v = sparf_view_of(task->unit, head);
        fold_head(&v);
    }
}

// ---- finish ------------------------------------------------------------------------------------

float sparf_audited(const struct sparf_view *v, uint32_t i)
{
    const struct partial *chosen = partial_at(sparf_partials(v), i, v->dim);
    const struct partial *all = partial_at(v->u->dense, v->head * v->group + i, v->dim);
    if (!(all->sum > 0))
        return 1;
    return fminf(1, chosen->sum / all->sum * kernel_exp(chosen->max - all->max));
}

static void finish(const struct sparf_view *v)
{
    const struct sparf_unit *u = v->u;
    const struct job *job = v->job;
    uint64_t first = (uint64_t)v->unit->item * job->header.q_heads +
                     (uint64_t)(v->unit->head_first + v->head) * v->group;
    float *lse = (float *)(job->result + job->layout.lse);
    float *captured = (float *)(job->result + job->layout.captured);
    for (uint32_t i = 0; i < v->group; i++) {
        uint32_t query = v->head * v->group + i;
        const struct partial *chosen = partial_at(sparf_partials(v), i, v->dim);
        float *out = (float *)(job->result + job->layout.out) + (first + i) * v->dim;
        float alpha = u->alpha[query];
        v->k->partial_output(chosen, out, v->dim);
        for (uint32_t d = 0; d < v->dim && alpha != 1; d++) {
            uint64_t sum = u->means[v->head * v->dim + d] + u->gap_sums[v->head * v->dim + d];
            out[d] = fmaf(alpha, out[d], (1 - alpha) * means_value(sum, u->tokens));
        }
        lse[first + i] = chosen->sum > 0 ? chosen->max + logf(chosen->sum) : -INFINITY;
        u->captured[query] = !u->tokens ? 0 : u->audit ? sparf_audited(v, i) : alpha;
        captured[first + i] = u->captured[query];
    }
}

void sparf_think(const struct unit_task *task, uint8_t *scratch)
{
    (void)scratch;
    for (uint32_t head = task->head; head < task->head + task->heads; head++) {
        const struct sparf_view v = sparf_view_of(task->unit, head);
        if (task->unit->phase == SPARF_PREPARE)
            prepare(&v);
        else if (task->unit->phase == SPARF_SELECT)
            choose(&v);
        else
            finish(&v);
    }
}
