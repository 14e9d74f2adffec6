// SPDX-License-Identifier: Apache-2.0
// Attention over the pieces of the KV cache that hold most of the softmax:
//
//   select   the mass of every complete index piece is predicted from its summary (ftl/index.h) for
//            each query head, normalised and summed over the heads that share a KV head; the best
//            pieces are chosen until the budget is used up, or until they hold the mass asked for;
//            the first piece, those with any of the `pages_local` newest tokens, and the tokens
//            without a summary are chosen whatever their rank
//   tokens   exact attention over every token of what was chosen: that of sparf
//   finish   what was not read takes part by its predicted weight and its mean V
//
// A piece stands or falls for each KV head on its own, so that a drive array, which divides heads,
// chooses as one drive does. The choice depends on q, the K and V of the sequence and its length
// alone. Where all is chosen nothing is estimated: that is dense attention to the bit.
#include "drive/attend/select.h"
#include "drive/attend/sparf.h"
#include "drive/ftl/index.h"
#include "base/checked.h"

#include <math.h>
#include <string.h>

// Newest tokens where ATTEND says nothing: a quarter of what may be read, but from 16 to 64.
enum { LOCAL_LEAST = 16, LOCAL_MOST = 64, LOCAL_PART = 4 };

// ---- sizes -------------------------------------------------------------------------------------

static uint64_t pieces_of(const struct space_config *config, uint64_t tokens)
{
    return tokens / index_piece(config);
}

// A head's: weights and tops [group][pieces], their sum over the group [pieces], and bits of the
// chosen pieces.
uint64_t pages_floats(const struct space_config *config, uint64_t tokens, uint32_t group)
{
    uint64_t pieces = pieces_of(config, tokens);
    return pieces * (2ull * group + 1) + 2 * (pieces / 64 + 2);
}

// Queries that look at a summary while it is at hand.
enum { QUERIES = 8 };

static size_t query_table_bytes(uint32_t head_dim)
{
    return (head_dim + 7) / 8 * (size_t)32;
}

// A query, turned, and the tables of some.
size_t pages_scratch(uint32_t head_dim)
{
    return 2 * (size_t)KERNEL_HEAD_DIM_MAX * sizeof(float) + QUERIES * query_table_bytes(head_dim);
}

struct pages_view {
    struct sparf_view v;
    struct index_shape shape;
    uint64_t pieces, tokens; // complete pieces; tokens of one
    float *weights, *tops, *total;
    uint64_t *bits;
};

static struct pages_view view_of(const struct unit *unit, uint32_t head)
{
    struct pages_view p = {.v = sparf_view_of(unit, head)};
    const struct space_config *config = &p.v.s->space->config;
    p.shape = index_shape(config);
    p.tokens = p.shape.piece;
    p.pieces = pieces_of(config, p.v.u->tokens);
    p.weights = p.v.scores;
    p.tops = p.weights + p.v.group * p.pieces;
    p.total = p.tops + p.v.group * p.pieces;
    uint64_t used = p.pieces * (2ull * p.v.group + 1);
    p.bits = (uint64_t *)(p.v.scores + used + used % 2); // scores are aligned to 64 bytes
    return p;
}

static struct index_run run_at(const struct pages_view *p, uint64_t piece)
{
    return index_held(p->v.s->space, &p->v.u->index, piece, p->v.unit->head_first + p->v.head);
}

// ---- select ------------------------------------------------------------------------------------

// table[j][code]: what four channels with these bits add to a score, as a multiple of the step that
// is returned: whole numbers, so that sums of them are the same in any order.
static float make_table(int8_t (*table)[16], const float *q, uint32_t dim)
{
    const uint32_t n = (dim + 7) / 8 * 2;
    float most = 0;
    for (uint32_t j = 0; j < n; j++) { // the greatest sum is that of sizes
        float sum = 0;
        for (uint32_t c = 4 * j; c < 4 * j + 4 && c < dim; c++)
            sum += fabsf(q[c]);
        most = sum > most ? sum : most;
    }
    for (uint32_t j = 0; j < n; j++) {
        for (uint32_t code = 0; code < 16; code++) {
            float sum = 0;
            for (uint32_t c = 0; c < 4 && 4 * j + c < dim; c++)
                sum += code >> c & 1 ? q[4 * j + c] : -q[4 * j + c];
            // What is no number, or infinite, counts for nothing.
            table[j][code] = most > 0 && fabsf(sum) <= most && most < INFINITY
                                 ? (int8_t)rintf(sum / most * 127)
                                 : 0;
        }
    }
    return most / 127;
}

// The mass of a piece for one query, relative to its largest score *top.
static float weigh_piece(const struct pages_view *p, const uint8_t *summary, const float *scales,
                         const int8_t (*table)[16], float scale, float *top)
{
    const struct kernels *k = p->v.k;
    const uint32_t keys = p->shape.keys;
    float softcap = p->v.job->header.softcap, scores[INDEX_PIECE_MAX], sum = 0;
    int16_t sums[INDEX_PIECE_MAX];
    k->code_sums(index_codes(&p->shape, summary), keys, (p->shape.head_dim + 7) / 8, table, sums);
    for (uint32_t i = 0; i < keys; i++)
        scores[i] = scale * (scales[i] * (float)sums[i]);
    if (softcap != 0)
        k->softcap(scores, softcap, keys);
    *top = k->max(scores, keys);
    float all = k->exp_sum(scores, keys, *top);
    if (keys == p->shape.piece) // each stands for itself
        return all;
    for (uint32_t i = 0; i < keys; i++)
        sum += (float)index_count(&p->shape, summary, i) * scores[i];
    return sum;
}

// Weights of all pieces for n queries of the head from `first` on, each relative to its top.
static void weigh(const struct pages_view *p, uint32_t first, uint32_t n, uint8_t *scratch)
{
    const struct sparf_view *v = &p->v;
    float *q = (float *)scratch, scale[QUERIES], scales[INDEX_PIECE_MAX];
    int8_t(*table[QUERIES])[16];
    for (uint32_t i = 0; i < n; i++) {
        table[i] = (int8_t(*)[16])(scratch + 2 * KERNEL_HEAD_DIM_MAX * sizeof(float) +
                                   i * query_table_bytes(v->dim));
        memcpy(q, v->q + (first + i) * v->dim, v->dim * sizeof *q);
        index_turn(q, v->dim);
        scale[i] = v->job->header.scale * (make_table(table[i], q, v->dim) / 2);
    }
    const uint64_t bytes = index_bytes(&p->shape);
    for (uint64_t piece = 0; piece < p->pieces;) {
        struct index_run run = run_at(p, piece);
        for (uint64_t end = piece + run.n; piece < end; piece++, run.summary += run.stride) {
            // What comes next lies a row of heads away, where no prefetcher looks.
            for (uint64_t at = 0; at < bytes; at += 64)
                __builtin_prefetch((const void *)((uintptr_t)run.summary + 2 * run.stride + at));
            index_scales(&p->shape, run.summary, scales);
            for (uint32_t i = 0; i < n; i++) {
                uint64_t at = (first + i) * p->pieces + piece;
                p->weights[at] = weigh_piece(p, run.summary, scales, (const int8_t(*)[16])table[i],
                                             scale[i], &p->tops[at]);
            }
        }
    }
}

// Tokens that n chosen pieces and those without a summary have, and the other way round.
static uint64_t affordable(const struct pages_view *p, double tokens)
{
    uint64_t tail = p->v.u->tokens - p->pieces * p->tokens;
    double pieces = (tokens - (double)tail) / (double)p->tokens;
    return pieces <= 0 ? 0 : pieces >= (double)p->pieces ? p->pieces : (uint64_t)pieces;
}

static double chosen_mass(const struct pages_view *p, double first)
{
    double sum = 0;
    for (uint64_t i = 0; i < p->pieces; i++) {
        if (p->bits[i / 64] >> i % 64 & 1)
            sum += i ? (double)p->total[i] : first;
    }
    return sum;
}

// Chooses pieces: p->bits. total[i]: predicted mass of piece i, summed over the group.
static void choose_pieces(const struct pages_view *p)
{
    const struct table_header *h = &p->v.job->header;
    uint64_t tokens = p->v.u->tokens, free_end = tokens - min_u64(p->v.u->local, tokens);
    uint64_t local = p->pieces - min_u64(p->pieces, free_end / p->tokens);
    double ratio = h->pages_ratio != 0 ? (double)h->pages_ratio : 1, first = (double)p->total[0];
    uint64_t least = min_u64(p->pieces, local + 1);
    uint64_t most = max_u64(least, affordable(p, ratio * (double)tokens));
    p->total[0] = INFINITY;   // first of all
    if (h->pages_mass != 0) { // the fewest pieces that hold as much
        double all = first, wanted;
        for (uint64_t i = 1; i < p->pieces; i++)
            all += (double)p->total[i];
        wanted = (double)h->pages_mass * all;
        while (least < most) {
            uint64_t middle = least + (most - least) / 2;
            select_tokens(p->total, p->pieces, middle, local, p->bits);
            if (chosen_mass(p, first) >= wanted)
                most = middle;
            else
                least = middle + 1;
        }
    }
    select_tokens(p->total, p->pieces, most, local, p->bits);
}

// Chosen pieces become chosen tokens, with those behind the last piece.
static void choose_tokens(const struct pages_view *p)
{
    uint64_t tiles = div_round_up(p->v.u->tokens, ATTENTION_TILE), each = 64 / p->tokens;
    uint64_t ones = p->tokens < 64 ? (1ull << p->tokens) - 1 : ~0ull;
    for (uint64_t tile = 0; tile < tiles; tile++) {
        uint64_t word = 0;
        for (uint64_t i = 0; i < each; i++) {
            uint64_t piece = tile * each + i;
            bool taken = piece >= p->pieces || (p->bits[piece / 64] >> piece % 64 & 1);
            word |= taken ? ones << i * p->tokens : 0;
        }
        p->v.chosen[tile] = word;
    }
}

static void add_rest(const struct pages_view *p, uint64_t piece, const uint8_t *summary,
                     const float *max, float *rest, float *value)
{
    const struct sparf_view *v = &p->v;
    index_value(&p->shape, summary, value);
    for (uint32_t i = 0; i < v->group; i++) {
        struct partial *partial = partial_at(rest, i, v->dim);
        float weight = p->weights[i * p->pieces + piece];
        if (!(weight > 0))
            continue;
        partial->max = max[i];
        partial->sum += weight;
        v->k->axpy(partial->acc, weight, value, v->dim);
    }
}

// What was not chosen, as one partial for each query: predicted weights and mean values.
static void estimate_rest(const struct pages_view *p, const float *max, uint8_t *scratch)
{
    const struct sparf_view *v = &p->v;
    float *value = (float *)scratch;
    float *rest = (float *)partial_at(v->u->rest, v->head * v->group, v->dim);
    for (uint32_t i = 0; i < v->group; i++)
        memset(partial_at(rest, i, v->dim)->acc, 0, v->dim * sizeof(float));
    for (uint64_t piece = 0; piece < p->pieces;) {
        struct index_run run = run_at(p, piece);
        for (uint64_t end = piece + run.n; piece < end; piece++, run.summary += run.stride) {
            if (!(p->bits[piece / 64] >> piece % 64 & 1))
                add_rest(p, piece, run.summary, max, rest, value);
        }
    }
    for (uint32_t i = 0; i < v->group; i++)
        index_turn(partial_at(rest, i, v->dim)->acc, v->dim);
}

static void choose(const struct pages_view *p, uint8_t *scratch)
{
    const struct sparf_view *v = &p->v;
    float max[MAX_GROUP_HEADS];
    memset(p->total, 0, p->pieces * sizeof *p->total);
    for (uint32_t i = 0; i < v->group; i += QUERIES)
        weigh(p, i, v->group - i < QUERIES ? v->group - i : QUERIES, scratch);
    for (uint32_t i = 0; i < v->group; i++) {
        float *weights = p->weights + i * p->pieces, *tops = p->tops + i * p->pieces;
        max[i] = v->k->max(tops, p->pieces);
        v->k->exp_sum(tops, p->pieces, max[i]);
        for (uint64_t piece = 0; piece < p->pieces; piece++)
            weights[piece] *= tops[piece];
        v->k->axpy(p->total, 1.0f / v->k->sum(weights, p->pieces), weights, p->pieces);
    }
    choose_pieces(p);
    choose_tokens(p);
    estimate_rest(p, max, scratch);
}

// ---- finish ------------------------------------------------------------------------------------

static void finish(const struct pages_view *p)
{
    const struct sparf_view *v = &p->v;
    const struct job *job = v->job;
    uint64_t first = (uint64_t)v->unit->item * job->header.q_heads +
                     (uint64_t)(v->unit->head_first + v->head) * v->group;
    for (uint32_t i = 0; i < v->group; i++) {
        uint32_t query = v->head * v->group + i;
        struct partial *chosen = partial_at(sparf_partials(v), i, v->dim);
        const struct partial *rest = partial_at(v->u->rest, query, v->dim);
        float *captured = &((float *)(job->result + job->layout.captured))[first + i];
        float share = v->u->tokens ? 1 : 0;
        if (rest->sum > 0) {
            float most = fmaxf(chosen->max, rest->max);
            float own = chosen->sum * kernel_exp(chosen->max - most);
            share = own / (own + rest->sum * kernel_exp(rest->max - most));
        }
        v->u->predicted[query] = share;
        v->u->captured[query] = v->u->audit && v->u->tokens ? sparf_audited(v, i) : share;
        *captured = v->u->captured[query];
        if (!job->header.pages_no_rest)
            v->k->partial_merge(chosen, rest, v->dim);
        v->k->partial_output(
            chosen, (float *)(job->result + job->layout.out) + (first + i) * v->dim, v->dim);
        ((float *)(job->result + job->layout.lse))[first + i] =
            chosen->sum > 0 ? chosen->max + logf(chosen->sum) : -INFINITY;
    }
}

static void pages_think(const struct unit_task *task, uint8_t *scratch)
{
    for (uint32_t head = task->head; head < task->head + task->heads; head++) {
        const struct pages_view p = view_of(task->unit, head);
        if (task->unit->phase == SPARF_SELECT)
            choose(&p, scratch);
        else
            finish(&p);
    }
}

// Looking at the index has no unit; choosing from it has.
static void pages_work(const struct unit *unit, const struct piece *piece, struct engine_work *work)
{
    const struct sparf_unit *u = unit->own;
    if (piece)
        sparf_work_tokens(unit, piece, work);
    else if (unit->phase == SPARF_SELECT)
        work->ranked += unit->n_heads * pieces_of(&unit->state->space->config, u->tokens);
}

// ---- the method --------------------------------------------------------------------------------

static int pages_check(struct method_state *s, struct table_header *h,
                       const struct table_item *item, struct inst_msg *msg)
{
    int status = sparf_check_heads(s, h, item, msg);
    if (status)
        return status;
    // Written so that NaN is refused.
    if (!(h->pages_ratio >= 0 && h->pages_ratio <= 1 && h->pages_mass >= 0 && h->pages_mass < 1) ||
        h->pages_no_rest > 1 || h->audit > 1)
        return inst_fail(msg, INST_EINVAL,
                         "ATTEND: pages: ratio %g, mass %g, without the rest %u, audit %u",
                         (double)h->pages_ratio, (double)h->pages_mass, h->pages_no_rest, h->audit);
    if (h->pages_ratio == 0 && h->pages_mass == 0)
        h->pages_ratio = 0.125f;
    return 0;
}

static uint64_t local_tokens(const struct table_header *h, uint64_t tokens)
{
    double ratio = h->pages_ratio != 0 ? (double)h->pages_ratio : 1;
    uint64_t part = (uint64_t)(ratio * (double)tokens) / LOCAL_PART;
    return min_u64(LOCAL_MOST, max_u64(LOCAL_LEAST, part));
}

static bool pages_begin(struct unit *unit)
{
    const struct table_header *h = &unit->job->header;
    const struct job_item *item = &unit->job->items[unit->item];
    const struct method_state *s = unit->state;
    uint32_t dim = s->space->config.head_dim;
    uint64_t pieces = pieces_of(&s->space->config, item->end);
    // Too short to leave anything out.
    bool all = h->pages_ratio == 1 || pieces < 2;
    struct map held = {0};
    if (!all && index_hold(s->space, &item->sequence->layers[unit->job->layer], pieces, &held))
        return false;
    struct sparf_unit *u = sparf_take(unit, all ? item->end : 0, h->audit != 0);
    if (!u) {
        index_let_go(s->space, &held);
        return false;
    }
    u->index = held;
    u->local = h->pages_local ? h->pages_local : local_tokens(h, item->end);
    for (uint32_t i = 0; i < unit->n_heads * unit->group; i++)
        partial_clear(partial_at(u->rest, i, dim));
    if (u->all)
        return true;
    unit->phase = SPARF_SELECT;
    unit->kind = UNIT_THINKS;
    return true;
}

static void pages_advance(struct unit *unit)
{
    struct method_state *s = unit->state;
    const struct sparf_unit *u = unit->own;
    for (uint32_t i = 0; unit->phase == SPARF_FINISH && i < unit->n_heads * unit->group; i++) {
        double share = u->predicted[i] >= 0 ? (double)u->predicted[i] : 0; // not NaN
        s->predicted_sum += (uint64_t)(share * 1e6 + 0.5);
        s->predicted++;
    }
    sparf_advance(unit);
}

static void pages_end(struct unit *unit)
{
    struct sparf_unit *u = unit->own;
    index_let_go(unit->state->space, &u->index);
    sparf_end(unit);
}

// A drive that is closed does not wait for units under way.
static void pages_close(struct method_state *s)
{
    for (uint32_t i = 0; s->units && i < s->size.units; i++)
        index_let_go(s->space, &s->units[i].index);
    sparf_close(s);
}

static void pages_stats(const struct method_state *s, struct drive_stats *stats)
{
    uint64_t page = s->space->flash->geometry.page_bytes;
    stats->pages_steps += s->steps;
    stats->pages_dense_bytes += s->dense_pages * page;
    stats->pages_read_bytes += s->token_pages * page;
    stats->pages_predicted += s->predicted;
    stats->pages_predicted_sum += s->predicted_sum;
    stats->pages_dram_bytes += s->bytes;
    sparf_audit_stats(s, stats);
}

const struct method method_pages = {
    .id = METHOD_PAGES,
    .name = "pages",
    .streams = 1u << STREAM_INDEX,
    .use = USE_CHOICE,
    .plan = sparf_plan,
    .open = sparf_open,
    .close = pages_close,
    .check = pages_check,
    .check_item = sparf_check_item,
    .bundle = sparf_bundle,
    .begin = pages_begin,
    .want = sparf_want,
    .compute = sparf_compute,
    .computed = sparf_computed,
    .folds = sparf_folds,
    .fold = sparf_fold,
    .think = pages_think,
    .work = pages_work,
    .advance = pages_advance,
    .end = pages_end,
    .stats = pages_stats,
};
