// SPDX-License-Identifier: Apache-2.0
#include "pages_parts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { KEYS = PAGES_KEYS, PIECE = PAGES_KEYS, DIM = PAGES_DIM };

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

// What is kept as fp16.
static double as_f16(double x)
{
    int exponent;
    frexp(x, &exponent); // 11 digits, or what there are of the least ones
    const double unit = ldexp(1, (exponent < -13 ? -13 : exponent) - 11);
    return rint(x / unit) * unit;
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

// Typical keys, each with the tokens that it stands for.
static void find_keys(const struct pages_problem *p, const double *k, struct pages_summary *s)
{
    uint32_t dim = p->head_dim, n = p->piece, which[PIECE] = {0};
    double middle[DIM];
    average(middle, k, n, dim, NULL, 0);
    for (uint32_t i = 0; i < p->keys; i++) {
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
            for (uint32_t i = 1; i < p->keys; i++) {
                if (distance(s->key[i], k + t * dim, dim) <
                    distance(s->key[which[t]], k + t * dim, dim))
                    which[t] = i;
            }
        }
        for (uint32_t i = 0; i < p->keys; i++)
            average(s->key[i], k, n, dim, which, i);
    }
    for (uint32_t t = 0; t < n; t++)
        s->count[which[t]]++;
}

// One bit a channel, of the size that is right on average; two: steps of the root mean square.
static double round_channel(double x, double step, uint32_t bits)
{
    if (bits == 1)
        return x < 0 ? -step / 2 : step / 2;
    return step > 0 ? step * fmax(-1.5, fmin(1.5, floor(x / step) + 0.5)) : 0;
}

// Three eighths of the way from the mean size to the mean square over it.
static double key_size(const double *x, uint32_t dim)
{
    double mean = 0, square = 0;
    for (uint32_t d = 0; d < dim; d++) {
        mean += fabs(x[d]) / dim;
        square += x[d] * x[d] / dim;
    }
    return mean > 0 ? 0.625 * mean + 0.375 * square / mean : 0;
}

// The mean of turned keys, by 32 channels of 4 bits: the one farthest from 0 is -8 steps. fp16 is
// what the step is kept in.
static void find_middle(const struct pages_problem *p, struct pages_summary *s)
{
    for (uint32_t d = 0; d < p->head_dim; d++)
        for (uint32_t i = 0; i < p->keys; i++)
            s->middle[d] += s->key[i][d] / p->keys;
    for (uint32_t at = 0; at < p->head_dim; at += 32) {
        const uint32_t end = at + 32 < p->head_dim ? at + 32 : p->head_dim;
        double far = 0;
        for (uint32_t d = at; d < end; d++)
            far = fabs(s->middle[d]) > fabs(far) ? s->middle[d] : far;
        const double step = as_f16(far / -8);
        for (uint32_t d = at; d < end; d++)
            s->middle[d] =
                step != 0 ? step * fmin(7, fmax(-8, floor(s->middle[d] / step + 0.5))) : 0;
    }
    for (uint32_t i = 0; i < p->keys; i++)
        for (uint32_t d = 0; d < p->head_dim; d++)
            s->key[i][d] -= s->middle[d];
}

void pages_summarise(const struct pages_problem *p, uint32_t piece, struct pages_summary *s)
{
    uint32_t dim = p->head_dim, n = p->piece, bits = n > 16 ? 2 : 1;
    const double *k = p->k + (size_t)piece * n * dim;
    double steps[KEYS], most = 0, size = 0, square = 0;
    memset(s->count, 0, sizeof s->count);
    if (p->keys == n) {
        for (uint32_t t = 0; t < n; t++) {
            memcpy(s->key[t], k + t * dim, dim * sizeof(double));
            s->count[t] = 1;
        }
    } else {
        find_keys(p, k, s);
    }
    memset(s->middle, 0, sizeof s->middle);
    for (uint32_t i = 0; i < p->keys; i++)
        turn(s->key[i], dim);
    find_middle(p, s);
    for (uint32_t i = 0; i < p->keys; i++) {
        steps[i] = p->bits == 1 ? 2 * key_size(s->key[i], dim)
                                : sqrt(pages_dot(s->key[i], s->key[i], dim) / dim);
        most = fmax(most, steps[i]);
    }
    most = as_f16(most);
    for (uint32_t i = 0; i < p->keys;
         i++) { // its own step rounds it, what is kept of that is its size
        double step = most > 0 ? most * floor(steps[i] / most * 255 + 0.5) / 255 : 0;
        for (uint32_t d = 0; d < dim; d++)
            s->key[i][d] =
                steps[i] > 0 ? step / steps[i] * round_channel(s->key[i][d], steps[i], p->bits) : 0;
        s->size[i] = p->bits == 1 ? step / 2 : step;
    }
    average(s->value, p->v + (size_t)piece * n * dim, n, dim, NULL, 0);
    turn(s->value, dim);
    for (uint32_t d = 0; d < dim; d++) {
        size += 2 * fabs(s->value[d]) / dim;
        square += s->value[d] * s->value[d] / dim;
    }
    size = as_f16(bits == 1 ? size : sqrt(square));
    for (uint32_t d = 0; d < dim; d++)
        s->value[d] = round_channel(s->value[d], size, bits);
    turn(s->value, dim);
}

double pages_dot(const double *a, const double *b, uint32_t dim)
{
    double sum = 0;
    for (uint32_t d = 0; d < dim; d++)
        sum += a[d] * b[d];
    return sum;
}

void pages_ask(const struct pages_problem *p, uint32_t g, struct pages_query *q)
{
    uint32_t dim = p->head_dim;
    memcpy(q->turned, p->q + g * dim, dim * sizeof(double));
    turn(q->turned, dim);
    q->most = 0;
    for (uint32_t d = 0; d < dim; d += 4 / p->bits) {
        double some = 0;
        for (uint32_t c = d; c < d + 4 / p->bits && c < dim; c++)
            some += fabs(q->turned[c]) * (p->bits == 1 ? 1 : 1.5);
        q->most = fmax(q->most, some);
    }
}

static double capped(const struct pages_problem *p, double score)
{
    return p->softcap > 0 ? p->softcap * tanh(score / p->softcap) : score;
}

// Score of a rounded key: channels in fours, or of two bits in twos; what each of the 16 codes of
// them adds rounded to 1/31 of the largest such sum.
double pages_score(const struct pages_problem *p, const struct pages_query *q, const double *key,
                   double size, const double *middle)
{
    const double common = pages_dot(q->turned, middle, p->head_dim);
    const uint32_t each = 4 / p->bits;
    double sum = 0;
    for (uint32_t d = 0; d < p->head_dim && q->most > 0 && size > 0; d += each) {
        double some = 0;
        for (uint32_t c = d; c < d + each && c < p->head_dim; c++)
            some += key[c] / size * q->turned[c];
        sum += rint(some / q->most * 31);
    }
    return capped(p, p->scale * (size * sum * q->most / 31 + common));
}

static double of_summary(const struct pages_problem *p, const struct pages_query *q,
                         const struct pages_summary *s, uint32_t key)
{
    return pages_score(p, q, s->key[key], s->size[key], s->middle);
}

// Scores of keys of which only signs are known are off by so much, for channels that are normal: of
// a key x with deviation 1, rounded to a = m sqrt(2 / pi) with its signs, (x - a sign x)^2 is 1 - 2
// a sqrt(2 / pi) + a^2; of one that is rounded to -1.5 to 1.5 it is 0.11885. Of up to 64 pieces at
// equal distances.
double pages_deviation(const struct pages_problem *p, const struct pages_summary *summaries,
                       uint32_t pieces, uint32_t g)
{
    const double *q = p->q + g * p->head_dim;
    uint32_t every = pieces / 16 + 1, n = 0;
    const double pi = acos(-1), mean = sqrt(2 / pi), a = 0.625 * mean + 0.375 / mean;
    const double lost = p->bits == 1 ? (1 - 2 * a * mean + a * a) / (a * a) : 0.1188535;
    double squares = 0;
    for (uint32_t i = 0; i < pieces; i += every) {
        for (uint32_t key = 0; key < p->keys; key++, n++)
            squares += summaries[i].size[key] * summaries[i].size[key];
    }
    return fabs(p->scale) * sqrt(lost * pages_dot(q, q, p->head_dim) * squares / n);
}

// The least that a query has of its mass, where what is not chosen may be larger than predicted.
static double held(const struct pages_problem *p, const struct pages_summary *summaries,
                   uint32_t pieces, const double *one, const bool *chosen)
{
    double least = 1;
    for (uint32_t g = 0; g < p->group; g++) {
        double sum[2] = {0};
        for (uint32_t i = 0; i < pieces; i++)
            sum[chosen[i]] += one[g * pieces + i];
        sum[0] *= exp(pages_deviation(p, summaries, pieces, g));
        least = fmin(least, sum[1] / (sum[0] + sum[1]));
    }
    return least;
}

// What is known of a head.
struct head {
    struct pages_problem p; // its own
    struct pages_summary *summaries;
    double *one; // [group][pieces]: mass of a piece for a query
};

// The least that a query of any head has.
static double least_held(const struct head *heads, uint32_t n, uint32_t pieces, const bool *chosen)
{
    double least = 1;
    for (uint32_t h = 0; h < n; h++)
        least = fmin(least, held(&heads[h].p, heads[h].summaries, pieces, heads[h].one, chosen));
    return least;
}

// The best pieces so far, one more at a time: the first, the newest, then by mass.
static void choose(const struct pages_problem *p, const struct head *heads, uint32_t pieces,
                   const double *mass, bool *chosen)
{
    double budget = p->ratio * p->tokens;
    uint32_t used = p->tokens - pieces * p->piece, newest = p->tokens - p->local;
    for (uint32_t i = 0; i < pieces; i++) {
        chosen[i] = !i || p->local >= p->tokens || (i + 1) * p->piece > newest;
        used += chosen[i] ? p->piece : 0;
    }
    while (used + p->piece <= budget &&
           !(p->mass > 0 && least_held(heads, p->heads, pieces, chosen) >= p->mass)) {
        uint32_t best = UINT32_MAX;
        for (uint32_t i = 0; i < pieces; i++) {
            if (!chosen[i] && (best == UINT32_MAX || mass[i] > mass[best]))
                best = i;
        }
        if (best == UINT32_MAX)
            break;
        chosen[best] = true;
        used += p->piece;
    }
}

// How much of what is predicted of the rest counts, beside what the chosen tokens hold (a
// logarithm): less by half the variance of its scores, and by what the chosen pieces were promised
// to hold beyond that.
static double rest_share(const struct pages_problem *p, const struct pages_summary *summaries,
                         uint32_t pieces, const bool *chosen, uint32_t query, double held)
{
    struct pages_query asked;
    double promised = 0, off = pages_deviation(p, summaries, pieces, query);
    pages_ask(p, query, &asked);
    for (uint32_t i = 0; i < pieces; i++)
        for (uint32_t key = 0; key < p->keys && chosen[i]; key++)
            promised +=
                summaries[i].count[key] * exp(of_summary(p, &asked, &summaries[i], key) - held);
    return exp(-off * off / 2) / fmax(1, promised);
}

void pages_attend(const struct pages_problem *p, const struct pages_summary *summaries,
                  uint32_t pieces, const bool *chosen, uint32_t query, struct pages_answer *a)
{
    uint32_t dim = p->head_dim;
    struct pages_query asked;
    const double *q = p->q + query * dim;
    pages_ask(p, query, &asked);
    double *out = a->out + query * dim, max = -INFINITY, sum = 0, rest = 0, every = 0, share = 0;
    for (uint32_t t = 0; t < p->tokens; t++)
        max = fmax(max, capped(p, p->scale * pages_dot(q, p->k + (size_t)t * dim, dim)));
    memset(out, 0, dim * sizeof *out);
    for (uint32_t t = 0; t < p->tokens; t++) {
        double w = exp(capped(p, p->scale * pages_dot(q, p->k + (size_t)t * dim, dim)) - max);
        every += w;
        if (!a->token[t])
            continue;
        sum += w;
        for (uint32_t d = 0; d < dim; d++)
            out[d] += w * p->v[(size_t)t * dim + d];
    }
    a->captured[query] = sum / every;
    if (pieces && !p->no_rest)
        share = rest_share(p, summaries, pieces, chosen, query, log(sum) + max);
    for (uint32_t i = 0; i < pieces && !p->no_rest; i++) {
        double w = 0;
        for (uint32_t key = 0; key < p->keys && !chosen[i]; key++)
            w += summaries[i].count[key] * exp(of_summary(p, &asked, &summaries[i], key) - max);
        w *= share;
        rest += w;
        for (uint32_t d = 0; d < dim; d++)
            out[d] += w * summaries[i].value[d];
    }
    for (uint32_t d = 0; d < dim; d++)
        out[d] /= sum + rest;
}

// Adds what a head's queries predict of each piece.
static void predict(struct head *head, uint32_t pieces, double *mass)
{
    const struct pages_problem *p = &head->p;
    for (uint32_t i = 0; i < pieces; i++)
        pages_summarise(p, i, &head->summaries[i]);
    for (uint32_t g = 0; g < p->group; g++) {
        struct pages_query asked;
        pages_ask(p, g, &asked);
        double max = -INFINITY, sum = 0, *one = head->one + g * pieces;
        for (uint32_t i = 0; i < pieces; i++)
            for (uint32_t key = 0; key < p->keys; key++)
                max = fmax(max, of_summary(p, &asked, &head->summaries[i], key));
        for (uint32_t i = 0; i < pieces; i++) {
            const struct pages_summary *s = &head->summaries[i];
            one[i] = 0;
            for (uint32_t key = 0; key < p->keys; key++)
                one[i] += s->count[key] * exp(of_summary(p, &asked, s, key) - max);
            sum += one[i];
        }
        for (uint32_t i = 0; i < pieces; i++)
            mass[i] += one[i] / sum;
    }
}

void pages_solve(const struct pages_problem *p, struct pages_answer *a)
{
    uint32_t pieces = p->tokens / p->piece;
    size_t queries = (size_t)p->group * p->head_dim, tokens = (size_t)p->tokens * p->head_dim;
    struct head *heads = calloc(p->heads, sizeof *heads);
    double *mass = calloc(pieces + 1, sizeof *mass);
    bool *chosen = calloc(pieces + 1, sizeof *chosen);
    for (uint32_t h = 0; h < p->heads; h++) {
        heads[h] = (struct head){.p = *p,
                                 .summaries = calloc(pieces + 1, sizeof(struct pages_summary)),
                                 .one = calloc(pieces * p->group + 1, sizeof(double))};
        heads[h].p.q += h * queries;
        heads[h].p.k += h * tokens;
        heads[h].p.v += h * tokens;
        predict(&heads[h], pieces, mass);
    }
    choose(p, heads, pieces, mass, chosen);
    for (uint32_t t = 0; t < p->tokens; t++)
        a->token[t] = t / p->piece >= pieces || chosen[t / p->piece];
    for (uint32_t h = 0; h < p->heads; h++) {
        struct pages_answer own = {
            .token = a->token, .out = a->out + h * queries, .captured = a->captured + h * p->group};
        for (uint32_t g = 0; g < p->group; g++)
            pages_attend(&heads[h].p, heads[h].summaries, pieces, chosen, g, &own);
        free(heads[h].summaries);
        free(heads[h].one);
    }
    free(heads);
    free(mass);
    free(chosen);
}
