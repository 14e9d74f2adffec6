// SPDX-License-Identifier: Apache-2.0
#include "pages_float64.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { KEYS = 10, PIECE = 64, DIM = 512 };

struct summary {
    double key[KEYS][DIM], value[DIM]; // not turned: as they stand for tokens
    uint32_t count[KEYS];
};

// The Sylvester matrix, entry by entry.
static void turn(double *x, uint32_t dim)
{
    double y[DIM];
    for (uint32_t at = 0; at < dim;) {
        uint32_t n = 1;
        while (2 * n <= dim - at)
            n *= 2;
        for (uint32_t i = 0; i < n; i++) {
            y[i] = 0;
            for (uint32_t j = 0; j < n; j++)
                y[i] += __builtin_parity(i & j) ? -x[at + j] : x[at + j];
        }
        for (uint32_t i = 0; i < n; i++)
            x[at + i] = y[i] / sqrt(n);
        at += n;
    }
}

static double distance(const double *a, const double *b, uint32_t dim)
{
    double sum = 0;
    for (uint32_t d = 0; d < dim; d++)
        sum += (a[d] - b[d]) * (a[d] - b[d]);
    return sum;
}

static void average(double *out, const double *x, uint32_t n, uint32_t dim, const uint32_t *which,
                    uint32_t value)
{
    double sum[DIM] = {0};
    uint32_t count = 0;
    for (uint32_t t = 0; t < n; t++) {
        if (which && which[t] != value)
            continue;
        count++;
        for (uint32_t d = 0; d < dim; d++)
            sum[d] += x[t * dim + d];
    }
    for (uint32_t d = 0; d < dim && count; d++)
        out[d] = sum[d] / count;
}

static void summarise(const struct pages_problem *p, uint32_t piece, struct summary *s)
{
    uint32_t dim = p->head_dim, n = p->piece, which[PIECE] = {0};
    const double *k = p->k + (size_t)piece * n * dim;
    double middle[DIM], steps[KEYS], most = 0, size = 0;
    average(s->value, p->v + (size_t)piece * n * dim, n, dim, NULL, 0);
    average(middle, k, n, dim, NULL, 0);
    for (uint32_t i = 0; i < KEYS; i++) {
        uint32_t farthest = 0;
        double best = -1;
        for (uint32_t t = 0; t < n; t++) {
            double least = i ? INFINITY : distance(middle, k + t * dim, dim);
            for (uint32_t j = 0; j < i; j++)
                least = fmin(least, distance(s->key[j], k + t * dim, dim));
            if (least > best) {
                best = least;
                farthest = t;
            }
        }
        memcpy(s->key[i], k + farthest * dim, dim * sizeof(double));
    }
    for (int round = 0; round < 2; round++) {
        for (uint32_t t = 0; t < n; t++) {
            which[t] = 0;
            for (uint32_t i = 1; i < KEYS; i++) {
                if (distance(s->key[i], k + t * dim, dim) <
                    distance(s->key[which[t]], k + t * dim, dim))
                    which[t] = i;
            }
        }
        for (uint32_t i = 0; i < KEYS; i++)
            average(s->key[i], k, n, dim, which, i);
    }
    memset(s->count, 0, sizeof s->count);
    for (uint32_t t = 0; t < n; t++)
        s->count[which[t]]++;
    // Rounding: one bit for a channel of a key, two for one of V, both after turning.
    for (uint32_t i = 0; i < KEYS; i++) {
        turn(s->key[i], dim);
        steps[i] = 0;
        for (uint32_t d = 0; d < dim; d++)
            steps[i] += 2 * fabs(s->key[i][d]) / dim;
        most = fmax(most, steps[i]);
    }
    for (uint32_t i = 0; i < KEYS; i++) {
        double step = most > 0 ? most * floor(steps[i] / most * 255 + 0.5) / 255 : 0;
        for (uint32_t d = 0; d < dim; d++)
            s->key[i][d] = s->key[i][d] < 0 ? -step / 2 : step / 2;
        turn(s->key[i], dim);
    }
    turn(s->value, dim);
    for (uint32_t d = 0; d < dim; d++)
        size += s->value[d] * s->value[d];
    size = sqrt(size / dim);
    for (uint32_t d = 0; d < dim; d++) {
        double level = size > 0 ? floor(s->value[d] / size) + 0.5 : 0;
        s->value[d] = size * fmax(-1.5, fmin(1.5, level));
    }
    turn(s->value, dim);
}

static double dot(const double *a, const double *b, uint32_t dim)
{
    double sum = 0;
    for (uint32_t d = 0; d < dim; d++)
        sum += a[d] * b[d];
    return sum;
}

// The best pieces so far, one more at a time: the first, the newest, then by mass.
static void choose(const struct pages_problem *p, uint32_t pieces, const double *mass, bool *chosen)
{
    double budget = p->ratio * p->tokens, held = 0, all = 0;
    uint32_t used = p->tokens - pieces * p->piece, newest = p->tokens - p->local;
    for (uint32_t i = 0; i < pieces; i++) {
        chosen[i] = !i || p->local >= p->tokens || (i + 1) * p->piece > newest;
        used += chosen[i] ? p->piece : 0;
        held += chosen[i] ? mass[i] : 0;
        all += mass[i];
    }
    while (used + p->piece <= budget && !(p->mass > 0 && held >= p->mass * all)) {
        uint32_t best = UINT32_MAX;
        for (uint32_t i = 0; i < pieces; i++) {
            if (!chosen[i] && (best == UINT32_MAX || mass[i] > mass[best]))
                best = i;
        }
        if (best == UINT32_MAX)
            break;
        chosen[best] = true;
        used += p->piece;
        held += mass[best];
    }
}

static void attend(const struct pages_problem *p, const struct summary *summaries, uint32_t pieces,
                   const bool *chosen, uint32_t query, struct pages_answer *a)
{
    uint32_t dim = p->head_dim;
    const double *q = p->q + query * dim;
    double *out = a->out + query * dim, max = -INFINITY, sum = 0, rest = 0, every = 0;
    for (uint32_t t = 0; t < p->tokens; t++)
        max = fmax(max, p->scale * dot(q, p->k + (size_t)t * dim, dim));
    memset(out, 0, dim * sizeof *out);
    for (uint32_t t = 0; t < p->tokens; t++) {
        double w = exp(p->scale * dot(q, p->k + (size_t)t * dim, dim) - max);
        every += w;
        if (!a->token[t])
            continue;
        sum += w;
        for (uint32_t d = 0; d < dim; d++)
            out[d] += w * p->v[(size_t)t * dim + d];
    }
    a->captured[query] = sum / every;
    for (uint32_t i = 0; i < pieces && !p->no_rest; i++) {
        double w = 0;
        for (uint32_t key = 0; key < KEYS && !chosen[i]; key++)
            w += summaries[i].count[key] * exp(p->scale * dot(q, summaries[i].key[key], dim) - max);
        rest += w;
        for (uint32_t d = 0; d < dim; d++)
            out[d] += w * summaries[i].value[d];
    }
    for (uint32_t d = 0; d < dim; d++)
        out[d] /= sum + rest;
}

void pages_solve(const struct pages_problem *p, struct pages_answer *a)
{
    uint32_t pieces = p->tokens / p->piece, dim = p->head_dim;
    struct summary *summaries = calloc(pieces ? pieces : 1, sizeof *summaries);
    double *mass = calloc(pieces + 1, sizeof *mass), *one = calloc(pieces + 1, sizeof *one);
    bool *chosen = calloc(pieces + 1, sizeof *chosen);
    for (uint32_t i = 0; i < pieces; i++)
        summarise(p, i, &summaries[i]);
    for (uint32_t g = 0; g < p->group; g++) {
        double max = -INFINITY, sum = 0;
        for (uint32_t i = 0; i < pieces; i++)
            for (uint32_t key = 0; key < KEYS; key++)
                max = fmax(max, p->scale * dot(p->q + g * dim, summaries[i].key[key], dim));
        for (uint32_t i = 0; i < pieces; i++) {
            one[i] = 0;
            for (uint32_t key = 0; key < KEYS; key++)
                one[i] += summaries[i].count[key] *
                          exp(p->scale * dot(p->q + g * dim, summaries[i].key[key], dim) - max);
            sum += one[i];
        }
        for (uint32_t i = 0; i < pieces; i++)
            mass[i] += one[i] / sum;
    }
    choose(p, pieces, mass, chosen);
    for (uint32_t t = 0; t < p->tokens; t++)
        a->token[t] = t / p->piece >= pieces || chosen[t / p->piece];
    for (uint32_t g = 0; g < p->group; g++)
        attend(p, summaries, pieces, chosen, g, a);
    free(summaries);
    free(mass);
    free(one);
    free(chosen);
}
