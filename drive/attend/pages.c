// SPDX-License-Identifier: Apache-2.0
// Attention over the pieces of the KV cache that hold most of the softmax:
//
//   select   the mass of every complete index piece is predicted from its summary (ftl/index.h) for
//            each query head, normalised and summed over the heads that choose together: those that
//            share a KV head, or `piece_heads` neighbouring KV heads; the best pieces are chosen
//            until the budget is used up, or until they hold the mass asked for; the first piece,
//            those with any of the `pages_local` newest tokens, and the tokens without a summary
//            are chosen whatever their rank
//   tokens   exact attention over every token of what was chosen: that of sparf
//   finish   where ATTEND wants it, what was not read takes part by its predicted weight, as far as
//            that is to be trusted, and its mean V
//
// Heads that choose together are on one drive, so that a drive array, which divides heads, chooses
// as one drive does. The choice depends on q, the K and V of the sequence and its length
// alone. Where all is chosen nothing is estimated: that is dense attention to the bit.
#include "drive/attend/pages.h"
#include "drive/attend/select.h"
#include "drive/ftl/index_rows.h"
#include "base/checked.h"

#include <math.h>
#include <string.h>

// Newest tokens where ATTEND says nothing. More of them found less (docs/decisions/0016-pages.md).
enum { NEWEST = 16 };
#define DOUBT_MOST 80.0f // nats
// What rounding to signs loses of the variance of a channel that is normal, by the square of the
// size a that it is rounded to: a = m sqrt(2 / pi) deviations with m = 1 + INDEX_SHARPER (pi / 2 -
// 1), and (1 - 4 m / pi + 2 m^2 / pi) / (2 m^2 / pi) of a^2 are lost.
#define SIGNS_LOSE 0.41842f
// And rounding to steps of one deviation, -1.5 to 1.5 of them, by the square of half of that.
#define STEPS_LOSE 0.47541f

// ---- sizes -------------------------------------------------------------------------------------

static uint64_t pieces_of(const struct space_config *config, uint64_t tokens)
{
    return tokens / index_piece(config);
}

static uint64_t blocks_of(const struct index_shape *shape, uint64_t pieces)
{
    return div_round_up(pieces, block_pieces(shape));
}

// A head's: weights [group][pieces], relative to tops [group][blocks], their sum over the group
// [pieces], the same over all heads that choose together, and bits of the chosen pieces.
static uint64_t weight_floats(const struct index_shape *shape, uint64_t pieces, uint32_t group)
{
    return pieces * (group + 2ull) + blocks_of(shape, pieces) * group;
}

uint64_t pages_floats(const struct space_config *config, uint64_t tokens, uint32_t group)
{
    const struct index_shape shape = index_shape(config);
    uint64_t pieces = pieces_of(config, tokens);
    uint64_t floats = weight_floats(&shape, pieces, group) + 2 * (pieces / 64 + 2);
    if (config->piece_look)
        floats = max_u64(floats, likely_floats(config, tokens, group));
    return div_round_up(floats, 16) * 16; // the next head's are aligned to 64 bytes, too
}

size_t pages_scratch(const struct space_config *config)
{
    const struct index_shape shape = index_shape(config);
    size_t bytes = sizeof(struct pages_scratch) + QUERIES * index_table_bytes(&shape);
    if (config->piece_flash)
        bytes += index_row(config).head_bytes;
    return config->piece_look ? max_u64(bytes, clusters_scratch(config)) : bytes;
}

struct pages_view pages_view_of(const struct unit *unit, uint32_t head)
{
    struct pages_view p = {.v = sparf_view_of(unit, head)};
    const struct space_config *config = &p.v.s->space->config;
    p.shape = p.v.s->shape;
    p.tokens = p.shape.piece;
    p.pieces = p.v.u->tokens / p.tokens;
    p.blocks = blocks_of(&p.shape, p.pieces);
    p.weights = p.v.scores;
    p.tops = p.weights + p.v.group * p.pieces;
    p.total = p.tops + p.v.group * p.blocks;
    p.together = p.total + p.pieces;
    const uint32_t each = space_config_together(config);
    p.set = head / each * each;
    p.set_end = p.set + each;
    uint64_t used = weight_floats(&p.shape, p.pieces, p.v.group);
    p.bits = (uint64_t *)(p.v.scores + used + used % 2); // scores are aligned to 64 bytes
    if (p.v.u->clusters)
        p.bits = (uint64_t *)p.v.scores; // likely.c
    return p;
}

// ---- select ------------------------------------------------------------------------------------

float pages_query(const struct pages_view *p, uint32_t query, int8_t *table, float *q)
{
    const struct sparf_view *v = &p->v;
    float scale = v->job->header.scale;
    memcpy(q, v->q + query * v->dim, v->dim * sizeof *q);
    index_turn(q, v->dim);
    for (uint32_t d = 0; scale < 0 && d < v->dim; d++)
        q[d] = -q[d];
    float factor = fabsf(scale) * (index_table(&p->shape, table, q) / 2);
    return factor <= MASS_FACTOR ? factor : 0; // not a number: nothing
}

// Where the summaries of n pieces from `piece` on lie. Their bytes from `first` on are brought
// closer: those of a head lie side by side for some pieces only.
static void find_summaries(const struct pages_view *p, uint64_t piece, uint64_t n, uint64_t first,
                           const uint8_t **summaries)
{
    const uint64_t bytes = index_bytes(&p->shape);
    struct index_run run = {.n = 0};
    for (uint64_t i = 0; i < n; i++, run.n--, run.summary += bytes) {
        if (!run.n)
            run = pages_run_at(p, piece + i);
        summaries[i] = run.summary;
        for (uint64_t at = first; at < bytes; at += 64)
            __builtin_prefetch(run.summary + at);
        __builtin_prefetch(run.summary + bytes - 1);
    }
}

void pages_in_steps(const struct pages_view *p, float *out, const float *q, float factor)
{
    const float step = factor > 0 ? fabsf(p->v.job->header.scale) / factor : 0;
    memset(out, 0, index_middle_dim(&p->shape) * sizeof *out);
    for (uint32_t d = 0; d < p->v.dim; d++) {
        const float x = q[d] * step;
        out[d] = fabsf(x) <= 4 * MASS_ENTRY ? x : 0; // no NaN
    }
}

void pages_weigh_middles(const struct pages_view *p, struct mass_pieces *block, uint32_t n,
                         struct pages_scratch *own)
{
    const uint64_t bytes = index_bytes(&p->shape);
    const uint32_t dim = index_middle_dim(&p->shape);
    block->bias = own->bias;
    for (uint64_t at = 0, end; at < block->n; at = end) { // as far as they lie side by side
        end = at + 1;
        while (end < block->n && block->summary[end] == block->summary[end - 1] + bytes)
            end++;
        const struct weight middles = {.data = block->summary[at] + index_middle_at(&p->shape),
                                       .rows = end - at,
                                       .cols = dim,
                                       .row_bytes = bytes,
                                       .type = TENSOR_Q4_0};
        p->v.k->matmul(&middles, 0, end - at, own->steps, dim, n, own->bias + at, MASS_SLICES,
                       own->kernels);
    }
}

void pages_weigh_block(const struct pages_view *p, uint64_t at, struct mass_pieces *block,
                       uint32_t first, uint32_t n, const int8_t *tables, const float *factors,
                       struct pages_scratch *own)
{
    pages_weigh_middles(p, block, n, own);
    p->v.k->piece_masses(block, tables, factors, n, p->tops + first * p->blocks + at, p->blocks,
                         p->weights + first * p->pieces + at * block_pieces(&p->shape), p->pieces,
                         own->masses);
}

// The same of all pieces.
static void weigh(const struct pages_view *p, uint32_t first, uint32_t n, uint8_t *scratch)
{
    struct pages_scratch *own = (struct pages_scratch *)scratch;
    struct mass_pieces block = pages_block(p);
    const uint64_t each = block_pieces(&p->shape);
    const uint8_t *next[MASS_SLICES];
    float factors[QUERIES];
    for (uint32_t i = 0; i < n; i++) {
        factors[i] =
            pages_query(p, first + i, own->tables + i * index_table_bytes(&p->shape), own->q);
        pages_in_steps(p, own->steps + i * index_middle_dim(&p->shape), own->q, factors[i]);
    }
    find_summaries(p, 0, min_u64(each, p->pieces), 0, next);
    for (uint64_t at = 0; at < p->blocks; at++) {
        const uint64_t piece = at * each, end = min_u64(piece + each, p->pieces);
        block.n = end - piece;
        memcpy(block.summary, next, sizeof next);
        find_summaries(p, end, min_u64(each, p->pieces - end), 0, next);
        pages_weigh_block(p, at, &block, first, n, own->tables, factors, own);
    }
}

// What is chosen by itself fills pages, in most shapes. Where it does not, the part of the tokens
// whose pages are the part `ratio` of all, for pieces that lie anywhere: of a piece's pages,
// `shared` are its neighbour's, too, and read unless neither is chosen: with a part r of the pieces
// chosen r (pages - shared) + (1 - (1 - r)^2) shared = ratio pages.
static double part_of_tokens(const struct space_config *config, double ratio)
{
    const uint64_t bytes = (uint64_t)space_config_together(config) * index_piece(config) *
                           kv_token_bytes(config->kv_type, config->head_dim);
    const double pages = (double)bytes / INDEX_PAGE;
    const double shared =
        1 - (double)(bytes & -bytes) / INDEX_PAGE; // ends lie at multiples of that
    if (bytes < INDEX_PAGE || shared <= 0)
        return ratio;
    const double both = pages + shared;
    return (both - sqrt(both * both - 4 * shared * ratio * pages)) / (2 * shared);
}

// Tokens that n chosen pieces and those without a summary have, and the other way round.
static uint64_t affordable(const struct pages_view *p, double tokens)
{
    uint64_t tail = p->v.u->tokens - p->pieces * p->tokens;
    double pieces = (tokens - (double)tail) / (double)p->tokens;
    return pieces <= 0 ? 0 : pieces >= (double)p->pieces ? p->pieces : (uint64_t)pieces;
}

uint64_t pages_sample_every(const struct pages_view *p)
{
    return p->pieces / PAGES_SAMPLES + 1;
}

// By how much scores are off, in nats, for each query of the head: of a turned key codes and a step
// 2 a are kept, so that of the variance of a score, `lose` (scale |q| a)^2 is lost.
void pages_doubts(const struct pages_view *p, float *out)
{
    const struct sparf_view *v = &p->v;
    uint64_t every = pages_sample_every(p), n = 0;
    const float lose = p->shape.key_bits == 1 ? SIGNS_LOSE : STEPS_LOSE;
    const float *known = v->s->size.rows ? v->u->queries.squares + v->head * PAGES_SAMPLES : NULL;
    float squares = 0;
    for (uint64_t piece = 0; piece < p->pieces; piece += every) {
        squares +=
            known ? *known++ : index_key_squares(pages_run_at(p, piece).summary, p->shape.keys);
        n += p->shape.keys;
    }
    for (uint32_t i = 0; i < v->group; i++) {
        const float *q = v->q + i * v->dim;
        float size = v->job->header.scale * v->job->header.scale * v->k->dot(q, q, v->dim);
        out[i] = fminf(sqrtf(lose * size * (squares / (float)n)), DOUBT_MOST);
    }
}

// What is predicted of the chosen pieces.
static double sum_chosen(const struct pages_view *p, const float *weights)
{
    double sum = 0;
    for (uint64_t i = 0; i < p->pieces; i += 64)
        for (uint64_t bits = p->bits[i / 64]; bits; bits &= bits - 1)
            sum += (double)weights[i + (uint64_t)__builtin_ctzll(bits)];
    return sum;
}

// And of the others, not as a difference: a doubt may make much of very little. In several sums, so
// that none waits for the one before.
static double sum_left(const struct pages_view *p, const float *weights)
{
    enum { LANES = 8 };
    double lane[LANES] = {0}, sum = 0;
    for (uint64_t i = 0; i < p->pieces; i++) {
        const double left[2] = {(double)weights[i], 0};
        lane[i % LANES] += left[p->bits[i / 64] >> i % 64 & 1];
    }
    for (uint64_t l = 0; l < LANES; l++)
        sum += lane[l];
    return sum;
}

// The share of a query's mass that the chosen pieces hold at least, as far as is known. Those that
// are chosen by such scores came out too high; what is left, too low. So the rest counts as if its
// scores were higher by one deviation (docs/pages.md has what that is worth).
static double held(const struct pages_view *p, uint32_t query, float doubt)
{
    const float *weights = p->weights + query * p->pieces;
    double chosen = sum_chosen(p, weights), left = sum_left(p, weights);
    return left > 0 ? chosen / (chosen + (double)kernel_exp(doubt) * left) : 1;
}

// For the query that has least, of all heads that choose together.
static double least_held(const struct pages_view *p)
{
    double least = 1;
    for (uint32_t head = p->set; head < p->set_end; head++) {
        struct pages_view other = pages_view_of(p->v.unit, head);
        const float *doubt = p->v.u->factor + head * p->v.group;
        other.bits = p->bits;
        for (uint32_t i = 0; i < p->v.group; i++)
            least = fmin(least, held(&other, i, doubt[i]));
    }
    return least;
}

struct pages_budget pages_budget(const struct pages_view *p)
{
    const struct table_header *h = &p->v.job->header;
    uint64_t tokens = p->v.u->tokens, free_end = tokens - min_u64(p->v.u->local, tokens);
    const struct space_config *config = &p->v.s->space->config;
    double ratio = h->pages_ratio != 0 ? (double)h->pages_ratio : 1;
    if (p->v.s->size.rows && h->pages_ratio != 0) // what is read of the index; a third is left
        ratio -= fmin(index_row_share(config), ratio * 2 / 3);
    double part = part_of_tokens(config, ratio);
    struct pages_budget b = {.local = p->pieces - min_u64(p->pieces, free_end / p->tokens)};
    b.least = min_u64(p->pieces, b.local + 1);
    b.most = max_u64(b.least, affordable(p, part * (double)tokens));
    return b;
}

// The choice of the heads that choose together, of which this is the first: p->bits. A head's
// total[i] is the predicted mass of piece i, summed over the group.
static void choose_pieces(const struct pages_view *p)
{
    const struct table_header *h = &p->v.job->header;
    const struct pages_budget budget = pages_budget(p);
    uint64_t least = budget.least, most = budget.most, local = budget.local;
    memcpy(p->together, p->total, p->pieces * sizeof *p->together);
    for (uint32_t head = p->set + 1; head < p->set_end; head++)
        p->v.k->axpy(p->together, 1, pages_view_of(p->v.unit, head).total, p->pieces);
    p->together[0] = INFINITY;                   // first of all
    while (h->pages_mass != 0 && least < most) { // the fewest pieces that hold as much
        uint64_t middle = least + (most - least) / 2;
        select_tokens(p->together, p->pieces, middle, local, p->bits);
        if (least_held(p) >= (double)h->pages_mass)
            most = middle;
        else
            least = middle + 1;
    }
    select_tokens(p->together, p->pieces, most, local, p->bits);
}

void pages_choose_tokens(const struct pages_view *p)
{
    const uint64_t tiles = div_round_up(p->v.u->tokens, ATTENTION_TILE), each = 64 / p->tokens;
    const uint64_t ones = p->tokens < 64 ? (1ull << p->tokens) - 1 : ~0ull;
    uint64_t *marks = p->v.u->marks + p->v.head * sparf_marks(&p->v.s->size);
    memset(p->v.chosen, 0, tiles * sizeof *p->v.chosen);
    memset(marks, 0, sparf_marks(&p->v.s->size) * sizeof *marks);
    for (uint64_t i = 0; i < p->pieces; i += 64)
        for (uint64_t bits = p->bits[i / 64]; bits; bits &= bits - 1) {
            const uint64_t piece = i + (uint64_t)__builtin_ctzll(bits), tile = piece / each;
            p->v.chosen[tile] |= ones << piece % each * p->tokens;
            marks[tile / 64] |= 1ull << tile % 64;
        }
    for (uint64_t piece = p->pieces; piece < tiles * each; piece++) {
        p->v.chosen[piece / each] |= ones << piece % each * p->tokens;
        marks[piece / each / 64] |= 1ull << piece / each % 64;
    }
}

// Adds those of n pieces from `piece` on that are not read to the sums of the rest.
static void add_rest(const struct pages_view *p, uint32_t first, uint32_t n_q, uint64_t piece,
                     uint64_t unread, const uint8_t *const *summaries, struct pages_scratch *own)
{
    const struct sparf_view *v = &p->v;
    const uint8_t *codes[REST_PIECES];
    float *rest = (float *)partial_at(v->u->rest, v->head * v->group + first, v->dim);
    const uint64_t value_at = index_value_at(&p->shape);
    size_t n = 0;
    for (; unread; unread &= unread - 1, n++) {
        const size_t t = (size_t)__builtin_ctzll(unread);
        const float scale = index_value_scale(summaries[t]);
        codes[n] = summaries[t] + value_at;
        for (uint32_t i = 0; i < n_q; i++) {
            float weight = p->weights[(first + i) * p->pieces + piece + t];
            own->rest[i][n] = weight > 0 ? weight * scale : 0;
            partial_at(rest, i, v->dim)->sum += weight > 0 ? weight : 0;
        }
    }
    v->k->code_axpy(codes, n, p->shape.value_bits, v->dim, own->rest[0], REST_PIECES, n_q,
                    partial_at(rest, 0, v->dim)->acc, partial_stride(v->dim));
}

// What was not chosen, as one partial for each query: predicted weights and mean values.
static void estimate_rest(const struct pages_view *p, struct pages_scratch *own)
{
    const struct sparf_view *v = &p->v;
    const uint64_t from = index_value_at(&p->shape);
    float *rest = (float *)partial_at(v->u->rest, v->head * v->group, v->dim);
    const uint8_t *summaries[2][REST_PIECES];
    for (uint32_t i = 0; i < v->group; i++)
        memset(partial_at(rest, i, v->dim)->acc, 0, v->dim * sizeof(float));
    find_summaries(p, 0, min_u64(REST_PIECES, p->pieces), from, summaries[0]);
    for (uint64_t piece = 0, word = 0; piece < p->pieces; piece += REST_PIECES, word++) {
        const uint64_t n = min_u64(REST_PIECES, p->pieces - piece);
        const uint64_t unread = ~p->bits[word] & (~0ull >> (REST_PIECES - n));
        find_summaries(p, piece + n, min_u64(REST_PIECES, p->pieces - piece - n), from,
                       summaries[(word + 1) % 2]);
        for (uint32_t i = 0; i < v->group; i += QUERIES)
            add_rest(p, i, (uint32_t)min_u64(v->group - i, QUERIES), piece, unread,
                     summaries[word % 2], own);
    }
    for (uint32_t i = 0; i < v->group; i++) {
        struct partial *partial = partial_at(rest, i, v->dim);
        if (partial->sum > 0)
            partial->max = v->u->alpha[v->head * v->group + i];
        index_turn(partial->acc, v->dim);
    }
}

// Predicts the masses of a head.
static void predict(const struct pages_view *p, uint8_t *scratch)
{
    const struct sparf_view *v = &p->v;
    const uint64_t each = block_pieces(&p->shape);
    float *max = v->u->alpha + v->head * v->group;
    memset(p->total, 0, p->pieces * sizeof *p->total);
    for (uint32_t i = 0; i < v->group && !v->s->size.rows; i += QUERIES) // else that is done
        weigh(p, i, v->group - i < QUERIES ? v->group - i : QUERIES, scratch);
    for (uint32_t i = 0; i < v->group; i++) {
        float *weights = p->weights + i * p->pieces, *tops = p->tops + i * p->blocks;
        v->k->scale(tops, LN2, p->blocks);
        max[i] = v->k->max(tops, p->blocks);
        v->k->exp_sum(tops, p->blocks, max[i]);
        for (uint64_t at = 0; at < p->blocks; at++)
            v->k->scale(weights + at * each, tops[at], min_u64(each, p->pieces - at * each));
        v->k->axpy(p->total, 1.0f / v->k->sum(weights, p->pieces), weights, p->pieces);
    }
    pages_doubts(p, v->u->factor + v->head * v->group);
}

// Once that is known of all heads that choose together; for all of these.
static void choose(const struct pages_view *p, uint8_t *scratch)
{
    choose_pieces(p);
    for (uint32_t head = p->set; head < p->set_end; head++) {
        const struct pages_view own = pages_view_of(p->v.unit, head);
        const struct sparf_view *v = &own.v;
        const float *doubt = v->u->factor + head * v->group;
        if (head != p->set)
            memcpy(own.bits, p->bits, (p->pieces / 64 + 1) * sizeof *p->bits);
        for (uint32_t i = 0; i < v->group; i++)
            v->u->predicted[head * v->group + i] = (float)held(&own, i, doubt[i]);
        pages_choose_tokens(&own);
        if (v->job->header.pages_rest)
            estimate_rest(&own, (struct pages_scratch *)scratch);
    }
}

// ---- pieces -------------------------------------------------------------------------------------

static struct piece *pages_want(struct unit *unit)
{
    if (unit->phase != SPARF_RANK)
        return sparf_want(unit);
    return rows_want(unit);
}

static void pages_compute(const struct unit_task *task, uint8_t *scratch)
{
    if (task->piece->kind != PIECE_INDEX) {
        sparf_compute(task, scratch);
        return;
    }
    for (uint32_t head = task->head; head < task->head + task->heads; head++) {
        const struct pages_view p = pages_view_of(task->unit, head);
        rows_weigh(&p, task->piece, (struct pages_scratch *)scratch);
    }
}

// ---- finish ------------------------------------------------------------------------------------

// How much of what is predicted of the rest counts. Noise in a score makes its exponential too
// large on average, by half its variance; and where the chosen pieces turned out to hold less than
// was predicted of them, the others will, too. Never more than was predicted: where one token holds
// nearly all, all predictions are far too small and not to be measured by it.
static float rest_share(const struct pages_view *p, uint32_t i, const struct partial *chosen)
{
    const uint32_t query = p->v.head * p->v.group + i;
    const float doubt = p->v.u->factor[query];
    float promised =
        p->v.u->alpha[query] + logf((float)sum_chosen(p, p->weights + (uint64_t)i * p->pieces));
    float less = promised - (chosen->max + logf(chosen->sum));
    float share = kernel_exp(-fminf(doubt * doubt / 2 + (less > 0 ? less : 0), DOUBT_MOST));
    return share >= 0 ? share : 0; // not a number: nothing
}

static void finish(const struct pages_view *p)
{
    const struct sparf_view *v = &p->v;
    const struct job *job = v->job;
    uint64_t first = (uint64_t)v->unit->item * job->header.q_heads +
                     (uint64_t)(v->unit->head_first + v->head) * v->group;
    for (uint32_t i = 0; i < v->group; i++) {
        uint32_t query = v->head * v->group + i;
        struct partial *chosen = partial_at(sparf_partials(v), i, v->dim);
        struct partial *rest = partial_at(v->u->rest, query, v->dim);
        float *captured = &((float *)(job->result + job->layout.captured))[first + i];
        float share = !v->u->tokens ? 0 : v->u->all ? 1 : v->u->predicted[query];
        v->u->predicted[query] = share;
        v->u->captured[query] = v->u->audit && v->u->tokens ? sparf_audited(v, i) : share;
        *captured = v->u->captured[query];
        const bool none = !job->header.pages_rest || v->u->all || v->u->clusters;
        const float part = none ? 0 : rest_share(p, i, chosen);
        if (part > 0) {
            rest->sum *= part;
            v->k->scale(rest->acc, part, v->dim);
            v->k->partial_merge(chosen, rest, v->dim);
        }
        v->k->partial_output(
            chosen, (float *)(job->result + job->layout.out) + (first + i) * v->dim, v->dim);
        ((float *)(job->result + job->layout.lse))[first + i] =
            chosen->sum > 0 ? chosen->max + logf(chosen->sum) : -INFINITY;
    }
}

static void make_clusters(const struct pages_view *p, uint8_t *scratch)
{
    const struct sparf_unit *u = p->v.u;
    const uint32_t head = p->v.unit->head_first + p->v.head;
    for (uint32_t b = 0; b < u->clusters->n; b++) {
        struct clusters_head *h = &u->clusters->block[b]->head[head];
        if (h->state == CLUSTERS_MAKING)
            clusters_make(p->v.s->space, &u->index, u->clusters->block[b], h, head, scratch);
    }
}

static void pages_think(const struct unit_task *task, uint8_t *scratch)
{
    const uint32_t phase = task->unit->phase;
    for (uint32_t head = task->head; head < task->head + task->heads; head++) {
        const struct pages_view p = pages_view_of(task->unit, head);
        const bool together = p.set_end - p.set > 1, likely = p.v.u->clusters != NULL;
        if (phase == SPARF_PREPARE && p.v.s->size.rows) {
            rows_prepare(&p, (struct pages_scratch *)scratch);
        } else if (phase == SPARF_PREPARE) {
            make_clusters(&p, scratch);
        }
        if (phase == SPARF_RANK || (phase == SPARF_SELECT && !together)) {
            if (likely)
                likely_predict(&p, scratch);
            else
                predict(&p, scratch);
        }
        if (phase == SPARF_SELECT && head == p.set && likely)
            likely_choose(&p);
        else if (phase == SPARF_SELECT && head == p.set)
            choose(&p, scratch);
        if (phase == SPARF_FINISH)
            finish(&p);
    }
}

// Looking at the index has no unit; choosing from it has.
static void pages_work(const struct unit *unit, const struct piece *piece, struct engine_work *work)
{
    const struct sparf_unit *u = unit->own;
    if (piece && piece->kind != PIECE_INDEX)
        sparf_work_tokens(unit, piece, work);
    else if (!piece && unit->phase == SPARF_SELECT)
        work->ranked += unit->n_heads *
                        (u->clusters ? u->look : pieces_of(&unit->state->space->config, u->tokens));
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
        h->pages_rest > 1 || h->audit > 1)
        return inst_fail(msg, INST_EINVAL, "ATTEND: pages: ratio %g, mass %g, rest %u, audit %u",
                         (double)h->pages_ratio, (double)h->pages_mass, h->pages_rest, h->audit);
    if (h->pages_rest && s->size.rows)
        return inst_fail(msg, INST_ENOTSUP,
                         "ATTEND: pages: the index on flash knows nothing of the rest");
    if (h->pages_ratio == 0 && h->pages_mass == 0)
        h->pages_ratio = 0.125f;
    return 0;
}

// Clusters that the unit's heads lack are its to make. False: somebody else is about to.
static bool take_clusters(const struct unit *unit, struct clusters *clusters, bool *make)
{
    for (int pass = 0; pass < 2; pass++)
        for (uint32_t b = 0; b < clusters->n; b++)
            for (uint32_t i = 0; i < unit->n_heads; i++) {
                struct clusters_head *h = &clusters->block[b]->head[unit->head_first + i];
                if (h->state == CLUSTERS_MAKING && !pass)
                    return false;
                *make |= h->state == CLUSTERS_NEW;
                if (pass && h->state == CLUSTERS_NEW)
                    h->state = CLUSTERS_MAKING;
            }
    return true;
}

// They are made now, or will not be.
static void end_clusters(const struct unit *unit, enum clusters_state state)
{
    const struct sparf_unit *u = unit->own;
    for (uint32_t b = 0; b < u->clusters->n; b++)
        for (uint32_t i = 0; i < unit->n_heads; i++) {
            struct clusters_head *h = &u->clusters->block[b]->head[unit->head_first + i];
            h->state = h->state == CLUSTERS_MAKING ? state : h->state;
        }
}

// Heads that choose together wait for one another.
static uint32_t first_phase(const struct unit *unit)
{
    return space_config_together(&unit->state->space->config) > 1 ? SPARF_RANK : SPARF_SELECT;
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
    struct clusters *clusters = NULL;
    const uint64_t look = all ? 0 : likely_look(&s->space->config, h, item->end);
    struct layer_state *layer = &item->sequence->layers[unit->job->layer];
    if (!s->free_units || (!all && index_hold(s->space, layer, pieces, &held)))
        return false;
    bool make = false;
    if (look && (clusters_hold(s->space, index_clusters(layer), pieces, &clusters, NULL) ||
                 !take_clusters(unit, clusters, &make))) {
        clusters_let_go(s->space, clusters);
        index_let_go(s->space, &held);
        return false;
    }
    struct sparf_unit *u = sparf_take(unit, all ? item->end : 0, h->audit != 0);
    u->index = held;
    u->clusters = clusters;
    u->look = look;
    u->local = h->pages_local ? h->pages_local : NEWEST;
    for (uint32_t i = 0; i < unit->n_heads * unit->group; i++)
        partial_clear(partial_at(u->rest, i, dim));
    if (u->all)
        return true;
    unit->phase = make || s->size.rows ? SPARF_PREPARE : first_phase(unit);
    unit->kind = UNIT_THINKS;
    return true;
}

static void pages_advance(struct unit *unit)
{
    struct method_state *s = unit->state;
    const struct sparf_unit *u = unit->own;
    if (s->size.rows && unit->phase == SPARF_PREPARE) { // now it reads
        unit->phase = SPARF_RANK;
        unit->kind = UNIT_READS;
        unit->cursor = 0;
        return;
    }
    if (s->size.rows && unit->phase == SPARF_RANK && unit->kind == UNIT_READS) { // now it thinks
        unit->phase = first_phase(unit);
        unit->kind = UNIT_THINKS;
        return;
    }
    if (unit->phase == SPARF_PREPARE) {
        end_clusters(unit, CLUSTERS_MADE);
        unit->phase = first_phase(unit);
        return;
    }
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
    if (u->clusters && unit->phase == SPARF_PREPARE)
        end_clusters(unit, CLUSTERS_NEW);
    index_let_go(unit->state->space, &u->index);
    clusters_let_go(unit->state->space, u->clusters);
    u->clusters = NULL;
    sparf_end(unit);
}

// A drive that is closed does not wait for units under way.
static void pages_close(struct method_state *s)
{
    for (uint32_t i = 0; s->units && i < s->size.units; i++) {
        index_let_go(s->space, &s->units[i].index);
        clusters_let_go(s->space, s->units[i].clusters);
    }
    sparf_close(s);
}

static void pages_stats(const struct method_state *s, struct drive_stats *stats)
{
    uint64_t page = s->space->flash->geometry.page_bytes;
    const struct walk *walk = s->space->walk;
    stats->pages_steps += s->steps;
    stats->pages_dense_bytes += s->dense_pages * page;
    stats->pages_read_bytes += (s->token_pages + s->index_pages) * page;
    stats->pages_index_bytes += s->index_pages * page;
    stats->pages_predicted += s->predicted;
    stats->pages_predicted_sum += s->predicted_sum;
    stats->pages_dram_bytes += s->bytes;
    stats->pages_choose_ns += walk->think_ns; // nobody else thinks in such a space
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
    .want = pages_want,
    .compute = pages_compute,
    .computed = sparf_computed,
    .folds = sparf_folds,
    .fold = sparf_fold,
    .think = pages_think,
    .work = pages_work,
    .advance = pages_advance,
    .end = pages_end,
    .stats = pages_stats,
};
