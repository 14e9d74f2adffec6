// SPDX-License-Identifier: Apache-2.0
// Predicts which pieces of a long sequence hold most of the softmax from a few of its keys, those
// of the likeliest clusters (ftl/clusters.h): what it takes hangs little on the length of the
// sequence.
//
//   coarse   the means of all coarse clusters are scored by each query; the best are opened until
//            they hold SPREAD times as many keys as are to be looked at
//   fine     the same of the clusters in these, until they hold as many keys
//   keys     the keys of these are scored by the mean of their piece and their codes, and make the
//            mass of their pieces; a piece that none of them is of is not chosen
//
// A cluster's score is that of its mean and some deviations of its keys'. The first piece, the
// newest ones and what lies behind the last whole block of clusters are weighed as in pages.c,
// whatever is likely. What is not looked at counts for nothing in the output; in the promised mass
// it counts as its cluster's mean. Pieces get a *slot* each when they are first met with, and
// all that is known of them lies there.
#include "drive/attend/pages.h"
#include "drive/attend/select.h"
#include "base/checked.h"

#include <math.h>
#include <string.h>

enum {
    LOOK_MORE = 2,  // times as many keys are looked at as can be read
    LOOK_PART = 8,  // and no more than this part of all
    SPREAD = 8,     // times as many keys lie in the coarse clusters that are opened
    DEVIATIONS = 3, // of its keys by which a cluster may be better than its mean
    MIDDLES = 64,   // means of pieces that are scored together
};
#define WEIGHT_LEAST 0x1p-24f // of a key, relative to a query's greatest

// A heap of clusters by how likely they are, the greatest key first: the rank, so that it sorts as
// a whole number, above the complement of the number that the cluster has here.
struct likely_heap {
    uint64_t *keys;
    uint64_t n;
};

// Clusters that a query chooses from: how they rank, what their means score, how many keys they
// have.
struct likely_clusters {
    struct likely_heap heap;
    float *rank, *nats, *keys;
    uint32_t *block, *cluster;
    uint64_t n;
};

// What is known of a head.
struct likely {
    uint64_t *bits; // first of all, see pages_view_of
    uint64_t *seen; // bits of pieces that have a slot
    uint32_t *n;    // [2]: slots of the head, of those the ones that are weighed whatever is likely
    uint32_t *slot; // [pieces]
    uint32_t *piece;         // [slots]
    float *total;            // [slots]: the sum of normalised weights
    uint32_t *named;         // [slots]: pieces in ascending order,
    float *ranked;           // and their totals
    float *weights;          // [slots][group], relative to a query's greatest score
    float *left;             // [group]: the same of what is not looked at
    float *tops;             // [group][blocks] of pieces that are always weighed
    float *turned;           // [group][stride]: queries, times the scale
    float *means;            // [group][coarse]: scores
    float *score;            // [looked]: of keys,
    uint32_t *key_slot;      // and the slots of their pieces
    float *common;           // [queries][pieces]: what means of pieces score, by slot,
    uint64_t known;          // of so many of them,
    uint32_t first, queries; // for the queries that look together
    uint8_t *middles;        // [MIDDLES]: some of these means
    struct likely_clusters coarse, fine;
    uint64_t stride; // of turned
};

uint64_t likely_look(const struct space_config *config, const struct table_header *header,
                     uint64_t tokens)
{
    const struct index_shape shape = index_shape(config);
    const uint64_t keys = tokens / shape.piece * shape.keys;
    if (!config->piece_look || header->pages_mass != 0)
        return 0;
    const double read = (double)header->pages_ratio * (double)keys;
    const uint64_t look = max_u64(config->piece_look, LOOK_MORE * (uint64_t)read);
    return clusters_least(&shape, tokens / shape.piece) && look <= keys / LOOK_PART ? look : 0;
}

// A head's arrays in its memory, one behind the other; NULL: only how long that is.
static uint64_t carve(struct likely *l, const struct index_shape *shape, uint64_t pieces,
                      uint32_t group, uint8_t *memory)
{
    const uint64_t looked = pieces * shape->keys / LOOK_PART + CLUSTER_KEYS_MOST;
    const uint64_t coarse = clusters_coarse_most(shape, pieces);
    const uint64_t fine = clusters_fine_most(shape, pieces);
    uint64_t at = 0;
    l->coarse.n = l->fine.n = 0;
    l->stride = index_middle_dim(shape);
#define CARVE(field, number) l->field = budget_carve(memory, &at, (number) * sizeof *l->field)
    CARVE(bits, pieces / 64 + 1);
    CARVE(seen, pieces / 64 + 1);
    CARVE(n, 2);
    CARVE(slot, pieces);
    CARVE(piece, pieces);
    CARVE(total, pieces);
    CARVE(named, pieces);
    CARVE(ranked, pieces);
    CARVE(weights, pieces * group);
    CARVE(left, group);
    CARVE(tops, div_round_up(pieces, block_pieces(shape)) * group);
    CARVE(turned, l->stride * group);
    CARVE(means, coarse * group);
    CARVE(score, looked);
    CARVE(key_slot, looked);
    CARVE(common, pieces * min_u64(group, QUERIES));
    CARVE(middles, MIDDLES * (uint64_t)shape->middle);
#define CARVE_CLUSTERS(field, number)                                                              \
    CARVE(field.heap.keys, number);                                                                \
    CARVE(field.rank, number);                                                                     \
    CARVE(field.nats, number);                                                                     \
    CARVE(field.keys, number);                                                                     \
    CARVE(field.block, number);                                                                    \
    CARVE(field.cluster, number)
    CARVE_CLUSTERS(coarse, coarse);
    CARVE_CLUSTERS(fine, fine);
#undef CARVE_CLUSTERS
#undef CARVE
    return at;
}

uint64_t likely_floats(const struct space_config *config, uint64_t tokens, uint32_t group)
{
    const struct index_shape shape = index_shape(config);
    struct likely l;
    return carve(&l, &shape, tokens / shape.piece, group, NULL) / sizeof(float);
}

static struct likely likely_of(const struct pages_view *p)
{
    struct likely l;
    carve(&l, &p->shape, p->pieces, p->v.group, (uint8_t *)p->v.scores);
    for (uint32_t b = 0; b < p->v.u->clusters->n; b++)
        l.coarse.n += p->v.u->clusters->block[b]->head[0].coarse; // the same of all heads
    return l;
}

static const struct clusters_head *head_of(const struct pages_view *p, uint32_t block)
{
    return &p->v.u->clusters->block[block]->head[p->v.unit->head_first + p->v.head];
}

// ---- order of clusters -------------------------------------------------------------------------

static uint64_t heap_key(float rank, uint64_t number)
{
    uint32_t bits = 0;
    if (rank >= -INFINITY) { // not a number: last of all
        memcpy(&bits, &rank, sizeof bits);
        bits = bits >> 31 ? ~bits : bits | 1u << 31;
    }
    return (uint64_t)bits << 32 | (uint32_t)~number;
}

static uint64_t heap_number(uint64_t key)
{
    return (uint32_t)~key;
}

static void sift(const struct likely_heap *heap, uint64_t at)
{
    uint64_t *keys = heap->keys;
    const uint64_t moved = keys[at];
    for (uint64_t child; (child = 2 * at + 1) < heap->n; at = child) {
        child += child + 1 < heap->n && keys[child + 1] > keys[child];
        if (keys[child] < moved)
            break;
        keys[at] = keys[child];
    }
    keys[at] = moved;
}

// Puts all clusters in.
static void order(struct likely_clusters *c)
{
    c->heap.n = c->n;
    for (uint64_t i = 0; i < c->n; i++)
        c->heap.keys[i] = heap_key(c->rank[i], i);
    for (uint64_t i = c->n / 2; i-- > 0;)
        sift(&c->heap, i);
}

// Takes the best one out; the i-th that is taken then lies at keys[n - 1 - i].
static uint64_t take_best(struct likely_heap *heap)
{
    const uint64_t best = heap->keys[0];
    heap->keys[0] = heap->keys[--heap->n];
    heap->keys[heap->n] = best;
    if (heap->n)
        sift(heap, 0);
    return heap_number(best);
}

// The cluster that was taken out i-th.
static uint64_t taken_at(const struct likely_clusters *c, uint64_t i)
{
    return heap_number(c->heap.keys[c->n - 1 - i]);
}

// ---- slots -------------------------------------------------------------------------------------

static uint32_t slot_of(const struct pages_view *p, const struct likely *l, uint64_t piece)
{
    uint64_t *word = &l->seen[piece / 64], bit = 1ull << piece % 64;
    if (*word & bit)
        return l->slot[piece];
    *word |= bit;
    const uint32_t slot = l->n[0]++;
    l->slot[piece] = slot;
    l->piece[slot] = (uint32_t)piece;
    memset(l->weights + (uint64_t)slot * p->v.group, 0, p->v.group * sizeof *l->weights);
    return slot;
}

// Those that are always weighed come first.
static void begin_slots(const struct pages_view *p, const struct likely *l)
{
    const uint64_t local = p->pieces - pages_budget(p).local;
    memset(l->seen, 0, (p->pieces / 64 + 1) * sizeof *l->seen);
    l->n[0] = 0;
    slot_of(p, l, 0);
    for (uint64_t i = min_u64(local, p->v.u->clusters->pieces); i < p->pieces; i++)
        slot_of(p, l, i);
    l->n[1] = l->n[0];
}

// ---- keys and pieces ---------------------------------------------------------------------------

// Masses of the pieces that are always weighed, for n queries from `first` on, and their tops in
// nats.
static void weigh_always(const struct pages_view *p, const struct likely *l, uint32_t first,
                         uint32_t n, const float *factors, struct pages_scratch *own)
{
    const uint64_t each = block_pieces(&p->shape);
    struct mass_pieces block = pages_block(p);
    float masses[QUERIES][MASS_SLICES];
    for (uint64_t at = 0; at < l->n[1]; at += each) {
        block.n = min_u64(each, l->n[1] - at);
        for (uint64_t i = 0; i < block.n; i++)
            block.summary[i] = pages_run_at(p, l->piece[at + i]).summary;
        pages_weigh_middles(p, &block, n, own);
        p->v.k->piece_masses(&block, own->tables, factors, n,
                             l->tops + first * p->blocks + at / each, p->blocks, masses[0],
                             MASS_SLICES, own->masses);
        for (uint64_t i = 0; i < block.n; i++)
            for (uint32_t j = 0; j < n; j++)
                l->weights[(at + i) * p->v.group + first + j] = masses[j][i];
    }
    for (uint32_t i = first; i < first + n; i++)
        p->v.k->scale(l->tops + i * p->blocks, LN2, div_round_up(l->n[1], each));
}

// What the means of their keys score for the queries that look together, for all slots there are.
static void know_middles(const struct pages_view *p, struct likely *l, struct pages_scratch *own)
{
    const uint32_t bytes = p->shape.middle;
    const uint64_t at = index_middle_at(&p->shape);
    for (uint64_t n; l->known < l->n[0]; l->known += n) {
        const uint8_t *from[MIDDLES];
        uint8_t *row = l->middles;
        n = min_u64(l->n[0] - l->known, MIDDLES);
        for (uint64_t i = 0; i < n; i++) { // all of them on their way at once
            from[i] = pages_run_at(p, l->piece[l->known + i]).summary + at;
            __builtin_prefetch(from[i]);
            __builtin_prefetch(from[i] + bytes - 1);
        }
        for (uint64_t i = 0; i < n; i++)
            for (uint32_t b = 0; b < bytes; b += INDEX_MIDDLE_BYTES, row += INDEX_MIDDLE_BYTES)
                memcpy(row, from[i] + b, INDEX_MIDDLE_BYTES);
        const struct weight rows = {.data = l->middles,
                                    .rows = n,
                                    .cols = l->stride,
                                    .row_bytes = bytes,
                                    .type = TENSOR_Q4_0};
        p->v.k->matmul(&rows, 0, n, l->turned + l->first * l->stride, l->stride, l->queries,
                       l->common + l->known, p->pieces, own->kernels);
    }
}

// Scores of the keys of a cluster that is opened, whose pieces have these slots. Returns how many
// they are.
static uint64_t look_at(const struct pages_view *p, const struct likely *l, uint32_t block,
                        uint32_t cluster, uint32_t query, const int8_t *table, float factor,
                        const uint32_t *slot, float *out, struct pages_scratch *own)
{
    enum { LANES = KERNEL_LANES };
    const struct clusters_head *h = head_of(p, block);
    const float *common = l->common + (query - l->first) * p->pieces;
    const uint64_t bytes = clusters_slice_bytes(&p->shape);
    const uint32_t first = h->key_first[cluster], n = h->key_first[cluster + 1] - first;
    struct mass_pieces slices = pages_block(p);
    float scores[MASS_SLICES * LANES];
    slices.n = 0;
    slices.keys = LANES;
    slices.counted = 0;
    slices.softcap = 0;
    for (uint32_t s = first / LANES; s * LANES < first + n; s++)
        slices.summary[slices.n++] = h->slices + s * bytes;
    p->v.k->piece_scores(&slices, table, factor, scores, own->masses);
    for (uint32_t i = 0; i < n; i++)
        out[i] = scores[first % LANES + i] + common[slot[i]];
    if (p->v.job->header.softcap != 0)
        p->v.k->softcap(out, p->v.job->header.softcap, n);
    return n;
}

// Adds what its keys weigh to their pieces, unless these are always weighed, or a key weighs so
// little that it makes no difference.
static uint64_t add_weights(const struct pages_view *p, const struct likely *l, uint32_t block,
                            uint32_t cluster, const uint32_t *slot, const float *weight,
                            float *weights)
{
    const struct clusters_head *h = head_of(p, block);
    const uint32_t first = h->key_first[cluster], n = h->key_first[cluster + 1] - first;
    const uint32_t always = l->n[1];
    for (uint32_t i = 0; i < n; i++)
        if (weight[i] >= WEIGHT_LEAST && slot[i] >= always)
            weights[(uint64_t)slot[i] * p->v.group] +=
                h->count ? weight[i] * (float)h->count[first + i] : weight[i];
    return n;
}

// ---- clusters ----------------------------------------------------------------------------------

static void score_means(const struct pages_view *p, uint32_t block, uint64_t first, uint64_t n,
                        const float *q, uint32_t queries, float *out, uint64_t out_stride,
                        struct pages_scratch *own)
{
    const struct clusters_head *h = head_of(p, block);
    const struct weight means = {.data = h->mean,
                                 .rows = h->coarse + h->fine,
                                 .cols = p->v.dim,
                                 .row_bytes = 2ull * p->v.dim,
                                 .type = TENSOR_F16};
    p->v.k->matmul(&means, first, n, q, index_middle_dim(&p->shape), queries, out, out_stride,
                   own->kernels);
}

// What n clusters score and how they rank, from products with their means.
static void rank_clusters(const struct pages_view *p, float length, const float *spread, uint64_t n,
                          float *nats, float *rank)
{
    const float cap = p->v.job->header.softcap;
    memcpy(rank, nats, n * sizeof *rank);
    p->v.k->axpy(rank, DEVIATIONS * length, spread, n);
    if (cap != 0)
        p->v.k->softcap(nats, cap, n);
}

// Puts a query's coarse clusters in order.
static void order_coarse(const struct pages_view *p, const struct likely *l,
                         struct likely_clusters *coarse, uint32_t query, float length)
{
    memcpy(coarse->nats, l->means + query * coarse->n, coarse->n * sizeof *coarse->nats);
    for (uint64_t b = 0, at = 0; b < p->v.u->clusters->n; b++) {
        const struct clusters_head *h = head_of(p, (uint32_t)b);
        rank_clusters(p, length, h->spread, h->coarse, coarse->nats + at, coarse->rank + at);
        at += h->coarse;
    }
    for (uint64_t i = 0; i < coarse->n; i++)
        if (coarse->keys[i] == 0) // else its mean, 0, may be the greatest score of all
            coarse->nats[i] = coarse->rank[i] = -INFINITY;
    order(coarse);
}

// Opens the best of them: all fine ones in these.
static void open_coarse(const struct pages_view *p, const struct likely *l,
                        struct likely_clusters *coarse, struct likely_clusters *fine,
                        uint32_t query, float length, struct pages_scratch *own)
{
    const float *q = l->turned + query * l->stride;
    float keys = 0;
    while (coarse->heap.n && keys < (float)(SPREAD * p->v.u->look)) {
        const uint64_t best = take_best(&coarse->heap);
        const struct clusters_head *h = head_of(p, coarse->block[best]);
        const uint32_t first = h->fine_first[coarse->cluster[best]];
        const uint32_t n = h->fine_first[coarse->cluster[best] + 1] - first;
        keys += coarse->keys[best];
        score_means(p, coarse->block[best], h->coarse + first, n, q, 1, fine->nats + fine->n, n,
                    own);
        rank_clusters(p, length, h->spread + h->coarse + first, n, fine->nats + fine->n,
                      fine->rank + fine->n);
        for (uint32_t i = first; i < first + n; i++, fine->n++) {
            fine->keys[fine->n] = (float)(h->key_first[i + 1] - h->key_first[i]);
            fine->block[fine->n] = coarse->block[best];
            fine->cluster[fine->n] = i;
        }
    }
    order(fine);
}

// What is read of a cluster's keys is asked for.
static void call_keys(const struct pages_view *p, const struct clusters_head *h, uint32_t cluster)
{
    const uint32_t first = h->key_first[cluster], end = h->key_first[cluster + 1];
    const uint64_t bytes = clusters_slice_bytes(&p->shape);
    const uint8_t *slice = h->slices + first / KERNEL_LANES * bytes;
    const uint8_t *slices_end = h->slices + div_round_up(end, KERNEL_LANES) * bytes;
    for (uint32_t i = first; i < end; i += 64 / sizeof *h->piece)
        __builtin_prefetch(h->piece + i);
    for (; slice < slices_end; slice += 64)
        __builtin_prefetch(slice);
}

// Opens the best of the fine ones until they hold as many keys as are to be looked at, and gives
// the pieces of these slots. Returns how many keys they hold.
static uint64_t open_fine(const struct pages_view *p, struct likely *l,
                          struct likely_clusters *fine)
{
    uint64_t n = 0, at = 0;
    while (fine->heap.n && n < p->v.u->look) {
        const uint64_t best = take_best(&fine->heap);
        const struct clusters_head *h = head_of(p, fine->block[best]);
        const uint32_t cluster = fine->cluster[best];
        n += h->key_first[cluster + 1] - h->key_first[cluster];
        call_keys(p, h, cluster);
    }
    for (uint64_t i = 0; i < fine->n - fine->heap.n; i++) {
        const uint64_t taken = taken_at(fine, i);
        const struct clusters_head *h = head_of(p, fine->block[taken]);
        const uint64_t base = p->v.u->clusters->block[fine->block[taken]]->first;
        const uint16_t *piece = h->piece;
        const uint32_t end = h->key_first[fine->cluster[taken] + 1];
        for (uint32_t k = h->key_first[fine->cluster[taken]]; k < end; k++, at++)
            l->key_slot[at] = slot_of(p, l, base + piece[k]);
    }
    return n;
}

// What the clusters weigh, as their means, that were not opened: in the end of the heap are those
// that were.
static float sum_of(const struct kernels *k, struct likely_clusters *c, float max)
{
    if (!c->n)
        return 0;
    k->exp_sum(c->nats, c->n, max);
    for (uint64_t i = c->heap.n; i < c->n; i++)
        c->nats[heap_number(c->heap.keys[i])] = 0;
    return k->dot(c->nats, c->keys, c->n);
}

// Weights of a query, all relative to the greatest score.
static void weigh_query(const struct pages_view *p, struct likely *l, uint32_t query,
                        const int8_t *table, float factor, struct pages_scratch *own)
{
    const struct sparf_view *v = &p->v;
    const uint64_t each = block_pieces(&p->shape), blocks = div_round_up(l->n[1], each);
    const float *q = l->turned + query * l->stride;
    const float length = sqrtf(v->k->dot(q, q, v->dim));
    float *weights = l->weights + query, *tops = l->tops + query * p->blocks;
    struct likely_clusters *coarse = &l->coarse, *fine = &l->fine;
    uint64_t at = 0, done = 0;
    fine->n = 0;
    order_coarse(p, l, coarse, query, length);
    open_coarse(p, l, coarse, fine, query, length, own);
    const uint64_t n = open_fine(p, l, fine);
    know_middles(p, l, own);
    for (uint64_t i = 0; i < fine->n - fine->heap.n; i++) {
        const uint64_t taken = taken_at(fine, i);
        at += look_at(p, l, fine->block[taken], fine->cluster[taken], query, table, factor,
                      l->key_slot + at, l->score + at, own);
    }
    float max = fmaxf(v->k->max(tops, blocks), v->k->max(coarse->nats, coarse->n));
    max = fine->n ? fmaxf(max, v->k->max(fine->nats, fine->n)) : max;
    max = n ? fmaxf(max, v->k->max(l->score, n)) : max;
    v->k->exp_sum(tops, blocks, max);
    for (uint64_t slot = 0; slot < l->n[1]; slot++)
        weights[slot * v->group] *= tops[slot / each];
    v->k->exp_sum(l->score, n, max);
    for (uint64_t i = 0; i < fine->n - fine->heap.n; i++) {
        const uint64_t taken = taken_at(fine, i);
        done += add_weights(p, l, fine->block[taken], fine->cluster[taken], l->key_slot + done,
                            l->score + done, weights);
    }
    l->left[query] = sum_of(v->k, coarse, max) + sum_of(v->k, fine, max);
}

// The coarse clusters of all blocks, for all queries.
static void list_coarse(const struct pages_view *p, struct likely_clusters *coarse)
{
    uint64_t n = 0;
    for (uint32_t b = 0; b < p->v.u->clusters->n; b++) {
        const struct clusters_head *h = head_of(p, b);
        for (uint32_t c = 0; c < h->coarse; c++, n++) {
            coarse->keys[n] = (float)h->keys[c];
            coarse->block[n] = b;
            coarse->cluster[n] = c;
        }
    }
}

// What each piece holds of all queries together, the sum of each one's weights being 1.
static void normalise(const struct pages_view *p, const struct likely *l)
{
    const uint32_t group = p->v.group;
    float sums[MAX_GROUP_HEADS];
    memcpy(sums, l->left, group * sizeof *sums);
    for (uint64_t slot = 0; slot < l->n[0]; slot++)
        for (uint32_t i = 0; i < group; i++)
            sums[i] += l->weights[slot * group + i];
    for (uint32_t i = 0; i < group; i++)
        sums[i] = sums[i] > 0 ? 1 / sums[i] : 0; // a query that finds nothing has no say
    for (uint64_t slot = 0; slot < l->n[0]; slot++) {
        float total = 0;
        for (uint32_t i = 0; i < group; i++)
            total += l->weights[slot * group + i] * sums[i];
        l->total[slot] = total;
    }
}

void likely_predict(const struct pages_view *p, uint8_t *scratch)
{
    const struct sparf_view *v = &p->v;
    struct likely l = likely_of(p);
    struct pages_scratch *own = (struct pages_scratch *)scratch;
    const size_t table_bytes = index_table_bytes(&p->shape);
    const float scale = fabsf(v->job->header.scale);
    float factors[QUERIES];
    begin_slots(p, &l);
    list_coarse(p, &l.coarse);
    for (uint32_t first = 0; first < v->group; first += QUERIES) {
        const uint32_t n = (uint32_t)min_u64(v->group - first, QUERIES);
        uint64_t at = 0;
        l.first = first;
        l.queries = n;
        l.known = 0;
        for (uint32_t i = 0; i < n; i++) {
            float *q = l.turned + (first + i) * l.stride;
            factors[i] = pages_query(p, first + i, own->tables + i * table_bytes, own->q);
            pages_in_steps(p, own->steps + i * l.stride, own->q, factors[i]);
            memset(q, 0, l.stride * sizeof *q);
            for (uint32_t d = 0; factors[i] > 0 && d < v->dim; d++) // as in its table
                q[d] = isfinite(own->q[d]) ? own->q[d] * scale : 0;
        }
        weigh_always(p, &l, first, n, factors, own);
        for (uint32_t b = 0; b < v->u->clusters->n; b++) {
            const uint32_t coarse = head_of(p, b)->coarse;
            score_means(p, b, 0, coarse, l.turned + first * l.stride, n,
                        l.means + first * l.coarse.n + at, l.coarse.n, own);
            at += coarse;
        }
        for (uint32_t i = 0; i < n; i++)
            weigh_query(p, &l, first + i, own->tables + i * table_bytes, factors[i], own);
    }
    normalise(p, &l);
    pages_doubts(p, v->u->factor + v->head * v->group);
}

// ---- choice ------------------------------------------------------------------------------------

// The pieces of all heads that choose together get slots of the first one of these.
static void join(const struct pages_view *p, const struct likely *l)
{
    uint64_t n = l->n[0];
    for (uint32_t head = p->set + 1; head < p->set_end; head++) {
        const struct pages_view other = pages_view_of(p->v.unit, head);
        const struct likely more = likely_of(&other);
        for (uint32_t i = 0; i < more.n[0]; i++) {
            const uint64_t piece = more.piece[i], bit = 1ull << piece % 64;
            if (!(l->seen[piece / 64] & bit)) {
                l->seen[piece / 64] |= bit;
                l->slot[piece] = (uint32_t)n;
                l->total[n++] = 0;
            }
            l->total[l->slot[piece]] += more.total[i];
        }
    }
}

// The share of each query's mass that the chosen pieces hold, predicted with caution.
static void promise(const struct pages_view *p, const struct likely *l)
{
    const uint32_t group = p->v.group;
    double held[2][MAX_GROUP_HEADS] = {{0}}; // of what is not chosen, of what is
    for (uint64_t i = 0; i < l->n[0]; i++) {
        const uint64_t piece = l->piece[i], chosen = p->bits[piece / 64] >> piece % 64 & 1;
        for (uint32_t j = 0; j < group; j++)
            held[chosen][j] += (double)l->weights[i * group + j];
    }
    for (uint32_t j = 0; j < group; j++) {
        const uint32_t query = p->v.head * group + j;
        const double left =
            (held[0][j] + (double)l->left[j]) * (double)kernel_exp(p->v.u->factor[query]);
        p->v.u->predicted[query] = left > 0 ? (float)(held[1][j] / (held[1][j] + left)) : 1;
    }
}

// Those that have mass, in the order of pieces, so that of equal ones the lower is chosen, whatever
// was met with first. Returns how many these are.
static uint64_t rank_pieces(const struct pages_view *p, const struct likely *l)
{
    uint64_t n = 0;
    for (uint64_t i = 0; i < p->pieces; i += 64)
        for (uint64_t bits = l->seen[i / 64]; bits; bits &= bits - 1) {
            const uint64_t piece = i + (uint64_t)__builtin_ctzll(bits);
            const float total = l->total[l->slot[piece]];
            l->named[n] = (uint32_t)piece;
            l->ranked[n] = total;
            n += total != 0;
        }
    return n;
}

void likely_choose(const struct pages_view *p)
{
    const struct likely l = likely_of(p);
    const struct pages_budget budget = pages_budget(p);
    const uint64_t words = p->pieces / 64 + 1;
    join(p, &l);
    l.total[0] = INFINITY; // the first piece, and the newest ones
    for (uint64_t piece = p->pieces - budget.local; piece < p->pieces; piece++)
        l.total[l.slot[piece]] = INFINITY;
    const uint64_t n = rank_pieces(p, &l);
    select_tokens(l.ranked, n, min_u64(n, budget.most), 0, l.seen);
    memset(p->bits, 0, words * sizeof *p->bits);
    for (uint64_t i = 0; i < n; i++)
        if (l.seen[i / 64] >> i % 64 & 1)
            p->bits[l.named[i] / 64] |= 1ull << l.named[i] % 64;
    for (uint32_t head = p->set; head < p->set_end; head++) {
        const struct pages_view other = pages_view_of(p->v.unit, head);
        const struct likely own = likely_of(&other);
        if (head > p->set)
            memcpy(other.bits, p->bits, words * sizeof *p->bits);
        promise(&other, &own);
        pages_choose_tokens(&other);
    }
}
