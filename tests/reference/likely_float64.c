// SPDX-License-Identifier: Apache-2.0
#include "likely_float64.h"
#include "pages_parts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// ---- blocks ------------------------------------------------------------------------------------

uint32_t likely_blocks(uint32_t look, uint32_t piece, uint64_t pieces, uint64_t first[16])
{
    uint64_t unit = 64, units, at = 0;
    uint32_t n = 0;
    while (unit < 4096 && unit * 2 <= look / 2)
        unit *= 2;
    first[0] = 0;
    for (units = pieces * piece / unit; units; n++) {
        uint64_t size = units < 262144 / unit ? units : 262144 / unit, digit = 1;
        while (size / digit > 7) // three digits are left
            digit *= 2;
        size -= size % digit;
        units -= size;
        at += size * unit;
        first[n + 1] = at / piece;
    }
    return n;
}

double likely_looked(const struct likely_problem *problem)
{
    const struct pages_problem *p = &problem->pages;
    const uint32_t pieces = p->tokens / p->piece;
    const double keys = (double)pieces * p->keys;
    const double n = fmax(problem->look, 2 * floor(p->ratio * keys));
    uint64_t first[16];
    const bool any = likely_blocks(problem->look, p->piece, pieces, first) > 0;
    return problem->look && !(p->mass > 0) && any && floor(keys / 8) >= n ? n : 0;
}

// ---- what a query weighs -----------------------------------------------------------------------

// Of one head.
struct head {
    struct pages_problem p;
    const struct likely_block *block;
    uint32_t blocks, pieces;
    double looked;
    struct pages_summary *summaries; // of pieces that are known[]
    bool *known;
    bool *always;               // [pieces]
    double *mass;               // [group][pieces], less than nothing: not weighed
    double sum[64], unseen[64]; // of all a query has weighed; of clusters that were not opened
};

struct cluster {
    uint32_t block, at; // coarse ones count first
    uint32_t first, end, keys;
    double rank, score;
    bool open;
};

static const struct pages_summary *summary(struct head *h, uint32_t piece)
{
    if (!h->known[piece])
        pages_summarise(&h->p, piece, &h->summaries[piece]);
    h->known[piece] = true;
    return &h->summaries[piece];
}

static double capped(const struct pages_problem *p, double score)
{
    return p->softcap > 0 ? p->softcap * tanh(score / p->softcap) : score;
}

static void rank(const struct head *h, const struct pages_query *q, struct cluster *c)
{
    const struct likely_block *b = &h->block[c->block];
    const uint32_t dim = h->p.head_dim;
    const double length = fabs(h->p.scale) * sqrt(pages_dot(q->turned, q->turned, dim));
    const double score = h->p.scale * pages_dot(q->turned, b->mean + (size_t)c->at * dim, dim);
    c->rank = score + 3 * length * b->spread[c->at];
    c->score = capped(&h->p, score);
    c->open = false;
}

// Opens the best ones until they have so many keys.
static void open_best(struct cluster *c, uint32_t n, double keys)
{
    for (double opened = 0; opened < keys;) {
        struct cluster *best = NULL;
        for (uint32_t i = 0; i < n; i++)
            if (!c[i].open && (!best || c[i].rank > best->rank))
                best = &c[i];
        if (!best)
            break;
        best->open = true;
        opened += best->keys;
    }
}

static uint32_t list_coarse(const struct head *h, const struct pages_query *q, struct cluster *c)
{
    uint32_t n = 0;
    for (uint32_t b = 0; b < h->blocks; b++) {
        const struct likely_block *block = &h->block[b];
        for (uint32_t i = 0; i < block->coarse; i++, n++) {
            c[n] = (struct cluster){.block = b,
                                    .at = i,
                                    .first = block->fine_first[i],
                                    .end = block->fine_first[i + 1]};
            c[n].keys = block->key_first[c[n].end] - block->key_first[c[n].first];
            rank(h, q, &c[n]);
        }
    }
    return n;
}

static uint32_t list_fine(const struct head *h, const struct pages_query *q,
                          const struct cluster *coarse, uint32_t n_coarse, struct cluster *c)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < n_coarse; i++) {
        const struct likely_block *block = &h->block[coarse[i].block];
        for (uint32_t f = coarse[i].first; f < coarse[i].end && coarse[i].open; f++, n++) {
            c[n] = (struct cluster){.block = coarse[i].block,
                                    .at = block->coarse + f,
                                    .first = block->key_first[f],
                                    .end = block->key_first[f + 1]};
            c[n].keys = c[n].end - c[n].first;
            rank(h, q, &c[n]);
        }
    }
    return n;
}

static double greatest(const struct cluster *c, uint32_t n, double than)
{
    for (uint32_t i = 0; i < n; i++)
        if (!c[i].open && c[i].keys)
            than = fmax(than, c[i].score);
    return than;
}

static double unseen(const struct cluster *c, uint32_t n, double max)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += c[i].open ? 0 : c[i].keys * exp(c[i].score - max);
    return sum;
}

// Keys of pieces that are always weighed: their greatest score, or their masses relative to max.
static double weigh_always(struct head *h, const struct pages_query *q, double *mass, double max)
{
    double most = -INFINITY;
    for (uint32_t i = 0; i < h->pieces; i++) {
        if (mass)
            mass[i] = h->always[i] ? 0 : -1;
        if (!h->always[i])
            continue;
        const struct pages_summary *s = summary(h, i);
        for (uint32_t key = 0; key < h->p.keys; key++) {
            const double score = pages_score(&h->p, q, s->key[key], s->size[key], s->middle);
            most = fmax(most, score);
            if (mass)
                mass[i] += s->count[key] * exp(score - max);
        }
    }
    return most;
}

static double key_score(struct head *h, const struct pages_query *q, const struct likely_block *b,
                        uint32_t key)
{
    const double *x = b->key + (size_t)key * h->p.head_dim;
    const double size = h->p.bits == 1 ? b->size[key] / 2 : b->size[key];
    return pages_score(&h->p, q, x, size, summary(h, b->first + b->piece[key])->middle);
}

static void weigh_keys(struct head *h, const struct pages_query *q, const struct cluster *c,
                       double *mass, double max)
{
    const struct likely_block *b = &h->block[c->block];
    for (uint32_t key = c->first; key < c->end; key++) {
        const double weight = exp(key_score(h, q, b, key) - max);
        double *to = &mass[b->first + b->piece[key]];
        if (weight < 0x1p-24 || h->always[b->first + b->piece[key]])
            continue;
        *to = fmax(*to, 0) + b->count[key] * weight;
    }
}

static void weigh(struct head *h, uint32_t g)
{
    struct pages_query q;
    uint32_t all = 0;
    for (uint32_t b = 0; b < h->blocks; b++)
        all += h->block[b].coarse + h->block[b].fine;
    struct cluster *coarse = calloc(2ull * all + 1, sizeof *coarse), *fine = coarse + all;
    double *mass = h->mass + (size_t)g * h->pieces;
    pages_ask(&h->p, g, &q);
    const uint32_t n_coarse = list_coarse(h, &q, coarse);
    open_best(coarse, n_coarse, 8 * h->looked);
    const uint32_t n_fine = list_fine(h, &q, coarse, n_coarse, fine);
    open_best(fine, n_fine, h->looked);
    double max = greatest(coarse, n_coarse, weigh_always(h, &q, NULL, 0));
    max = greatest(fine, n_fine, max);
    for (uint32_t i = 0; i < n_fine; i++)
        for (uint32_t key = fine[i].first; key < fine[i].end && fine[i].open; key++)
            max = fmax(max, key_score(h, &q, &h->block[fine[i].block], key));
    weigh_always(h, &q, mass, max);
    for (uint32_t i = 0; i < n_fine; i++)
        if (fine[i].open)
            weigh_keys(h, &q, &fine[i], mass, max);
    h->unseen[g] = unseen(coarse, n_coarse, max) + unseen(fine, n_fine, max);
    h->sum[g] = h->unseen[g];
    for (uint32_t i = 0; i < h->pieces; i++)
        h->sum[g] += fmax(mass[i], 0);
    free(coarse);
}

// ---- choice ------------------------------------------------------------------------------------

static void choose(const struct pages_problem *p, const double *total, const bool *sure,
                   uint32_t pieces, bool *chosen)
{
    uint32_t used = p->tokens - pieces * p->piece;
    for (uint32_t i = 0; i < pieces; i++) {
        chosen[i] = sure[i];
        used += sure[i] ? p->piece : 0;
    }
    for (; used + p->piece <= p->ratio * p->tokens; used += p->piece) {
        uint32_t best = UINT32_MAX;
        for (uint32_t i = 0; i < pieces; i++)
            if (!chosen[i] && total[i] > 0 && (best == UINT32_MAX || total[i] > total[best]))
                best = i;
        if (best == UINT32_MAX)
            return;
        chosen[best] = true;
    }
}

static double promise(struct head *h, uint32_t g, const bool *chosen)
{
    double sum[2] = {h->unseen[g], 0};
    for (uint32_t i = 0; i < h->pieces; i++)
        sum[chosen[i]] += fmax(h->mass[(size_t)g * h->pieces + i], 0);
    for (uint32_t i = 0; i < h->pieces; i += h->pieces / 16 + 1)
        summary(h, i);
    sum[0] *= exp(pages_deviation(&h->p, h->summaries, h->pieces, g));
    return sum[1] / (sum[0] + sum[1]);
}

static void begin_head(struct head *h, const struct likely_problem *problem, uint32_t at,
                       const bool *sure)
{
    const struct pages_problem *p = &problem->pages;
    uint64_t first[16];
    const uint32_t pieces = p->tokens / p->piece;
    *h = (struct head){.p = *p,
                       .block = problem->block + (size_t)at * problem->blocks,
                       .blocks = problem->blocks,
                       .pieces = pieces,
                       .looked = likely_looked(problem),
                       .summaries = calloc(pieces, sizeof *h->summaries),
                       .known = calloc(pieces, sizeof *h->known),
                       .always = calloc(pieces, sizeof *h->always),
                       .mass = calloc((size_t)pieces * p->group, sizeof *h->mass)};
    h->p.no_rest = true;
    h->p.q += (size_t)at * p->group * p->head_dim;
    h->p.k += (size_t)at * p->tokens * p->head_dim;
    h->p.v += (size_t)at * p->tokens * p->head_dim;
    const uint32_t blocks = likely_blocks(problem->look, p->piece, pieces, first);
    for (uint32_t i = 0; i < pieces; i++)
        h->always[i] = sure[i] || i >= first[blocks];
}

static void end_head(struct head *h)
{
    free(h->summaries);
    free(h->known);
    free(h->always);
    free(h->mass);
}

void likely_solve(const struct likely_problem *problem, struct likely_answer *a)
{
    const struct pages_problem *p = &problem->pages;
    const uint32_t pieces = p->tokens / p->piece;
    struct head *heads = calloc(p->heads, sizeof *heads);
    double *total = calloc(pieces, sizeof *total);
    bool *sure = calloc(pieces, sizeof *sure), *chosen = calloc(pieces, sizeof *chosen);
    for (uint32_t i = 0; i < pieces; i++)
        sure[i] = !i || p->local >= p->tokens || (i + 1) * p->piece > p->tokens - p->local;
    for (uint32_t h = 0; h < p->heads; h++) {
        begin_head(&heads[h], problem, h, sure);
        for (uint32_t g = 0; g < p->group; g++) {
            weigh(&heads[h], g);
            for (uint32_t i = 0; i < pieces; i++)
                total[i] += fmax(heads[h].mass[(size_t)g * pieces + i], 0) / heads[h].sum[g];
        }
    }
    choose(p, total, sure, pieces, chosen);
    for (uint32_t t = 0; t < p->tokens; t++)
        a->pages.token[t] = t / p->piece >= pieces || chosen[t / p->piece];
    for (uint32_t h = 0; h < p->heads; h++) {
        struct pages_answer own = {.token = a->pages.token,
                                   .out = a->pages.out + (size_t)h * p->group * p->head_dim,
                                   .captured = a->pages.captured + h * p->group};
        for (uint32_t g = 0; g < p->group; g++) {
            pages_attend(&heads[h].p, NULL, 0, chosen, g, &own);
            a->predicted[h * p->group + g] = promise(&heads[h], g, chosen);
        }
        end_head(&heads[h]);
    }
    free(heads);
    free(total);
    free(sure);
    free(chosen);
}

// ---- grouping ----------------------------------------------------------------------------------

static double distance(const double *a, const double *b, uint32_t dim)
{
    double sum = 0;
    for (uint32_t d = 0; d < dim; d++)
        sum += (a[d] - b[d]) * (a[d] - b[d]);
    return sum;
}

static void middles(const double *x, uint32_t n, uint32_t dim, const uint32_t *pick,
                    const uint32_t *which, uint32_t groups, double *middle)
{
    uint32_t *size = calloc(groups, sizeof *size);
    for (uint32_t i = 0; i < n; i++)
        if (!size[which[i]]++)
            memset(middle + (size_t)which[i] * dim, 0, dim * sizeof *middle);
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t d = 0; d < dim; d++)
            middle[(size_t)which[i] * dim + d] +=
                x[(size_t)(pick ? pick[i] : i) * dim + d] / size[which[i]];
    free(size);
}

double likely_scatter(const double *x, uint32_t n, uint32_t dim, const uint32_t *which,
                      uint32_t groups)
{
    double *middle = calloc((size_t)groups * dim, sizeof *middle), sum = 0;
    middles(x, n, dim, NULL, which, groups, middle);
    for (uint32_t i = 0; i < n; i++)
        sum += distance(x + (size_t)i * dim, middle + (size_t)which[i] * dim, dim);
    free(middle);
    return sum / n;
}

// k-means of keys pick[n].
static void group_some(const double *x, uint32_t dim, const uint32_t *pick, uint32_t n,
                       uint32_t groups, uint32_t *which)
{
    double *middle = calloc((size_t)groups * dim, sizeof *middle);
    for (uint32_t g = 0; g < groups; g++)
        memcpy(middle + (size_t)g * dim,
               x + (size_t)pick[(2ull * g + 1) * n / (2ull * groups)] * dim, dim * sizeof *middle);
    for (int round = 0; round < 10; round++) {
        for (uint32_t i = 0; i < n; i++) {
            double best = INFINITY;
            for (uint32_t g = 0; g < groups; g++) {
                const double d = distance(x + (size_t)pick[i] * dim, middle + (size_t)g * dim, dim);
                if (!(d < best))
                    continue;
                best = d;
                which[i] = g;
            }
        }
        middles(x, n, dim, pick, which, groups, middle);
    }
    free(middle);
}

uint32_t likely_group(const double *x, uint32_t n, uint32_t dim, uint32_t coarse, uint32_t each,
                      uint32_t *which)
{
    uint32_t *pick = calloc(4ull * n, sizeof *pick), *first = pick + n, groups = 0;
    uint32_t *some = first + n, *fine = some + n;
    for (uint32_t i = 0; i < n; i++)
        pick[i] = i;
    group_some(x, dim, pick, n, coarse, first);
    for (uint32_t c = 0; c < coarse; c++) {
        uint32_t m = 0;
        for (uint32_t i = 0; i < n; i++)
            if (first[i] == c)
                some[m++] = i;
        const uint32_t parts = m < each ? 1 : (m + each / 2) / each;
        if (m)
            group_some(x, dim, some, m, parts, fine);
        for (uint32_t i = 0; i < m; i++)
            which[some[i]] = groups + fine[i];
        groups += m ? parts : 0;
    }
    free(pick);
    return groups;
}
