// SPDX-License-Identifier: Apache-2.0
#include "sparf_float64.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LEAST_EXPONENT = -87 };

uint32_t sparf_share(uint32_t x, uint32_t divisor)
{
    return x / divisor + (x % divisor != 0);
}

int sparf_answer_alloc(struct sparf_answer *a, const struct sparf_problem *p)
{
    size_t heads = p->group, dim = p->head_dim, tokens = p->tokens;
    memset(a, 0, sizeof *a);
    a->out = calloc(heads * dim, sizeof *a->out);
    a->lse = calloc(heads, sizeof *a->lse);
    a->alpha = calloc(heads, sizeof *a->alpha);
    a->captured = calloc(heads, sizeof *a->captured);
    a->rank = calloc(tokens, sizeof *a->rank);
    a->channel = calloc(dim, sizeof *a->channel);
    a->token = calloc(tokens, sizeof *a->token);
    if (a->out && a->lse && a->alpha && a->captured && a->rank && a->channel && a->token)
        return 0;
    sparf_answer_free(a);
    return -1;
}

void sparf_answer_free(struct sparf_answer *a)
{
    free(a->out);
    free(a->lse);
    free(a->alpha);
    free(a->captured);
    free(a->rank);
    free(a->channel);
    free(a->token);
    memset(a, 0, sizeof *a);
}

static double capped(const struct sparf_problem *p, double score)
{
    return p->softcap != 0 ? p->softcap * tanh(score / p->softcap) : score;
}

static const double *query(const struct sparf_problem *p, uint32_t head)
{
    return p->q + (size_t)head * p->head_dim;
}

// Marks the `count` largest of values[0..n), the lower index first among equals. Those marked
// already stay and do not count. *least and *left: the last taken, the best not taken.
static void take_largest(const double *values, uint32_t n, uint32_t count, bool *taken,
                         double *least, double *left)
{
    *least = *left = -1;
    for (uint32_t step = 0; step <= count; step++) {
        uint32_t best = n;
        for (uint32_t i = 0; i < n; i++)
            if (!taken[i] && (best == n || values[i] > values[best]))
                best = i;
        if (best == n)
            return;
        if (step == count) {
            *left = values[best];
            return;
        }
        *least = values[best];
        taken[best] = true;
    }
}

static void choose_channels(const struct sparf_problem *p, struct sparf_answer *a)
{
    double *size = calloc(p->head_dim, sizeof *size);
    for (uint32_t g = 0; g < p->group; g++)
        for (uint32_t c = 0; c < p->head_dim; c++)
            size[c] += fabs(query(p, g)[c]);
    memset(a->channel, 0, p->head_dim * sizeof *a->channel);
    take_largest(size, p->head_dim, p->channels, a->channel, &a->least_channel,
                 &a->best_left_channel);
    free(size);
}

// s^ of one query head.
static void predict(const struct sparf_problem *p, const struct sparf_answer *a, uint32_t head,
                    double *s_hat)
{
    const double *q = query(p, head);
    double all = 0, chosen = 0, most = -INFINITY, sum = 0;
    for (uint32_t c = 0; c < p->head_dim; c++) {
        all += fabs(q[c]);
        chosen += a->channel[c] ? fabs(q[c]) : 0;
    }
    double factor = chosen > 0 ? sqrt(all / chosen) : 1;
    for (uint32_t t = 0; t < p->tokens; t++) {
        double dot = 0;
        for (uint32_t c = 0; c < p->head_dim; c++)
            dot += a->channel[c] ? q[c] * p->k[(size_t)t * p->head_dim + c] : 0;
        s_hat[t] = capped(p, p->scale * factor * dot);
        most = fmax(most, s_hat[t]);
    }
    for (uint32_t t = 0; t < p->tokens; t++)
        sum += s_hat[t] = s_hat[t] - most < LEAST_EXPONENT ? 0 : exp(s_hat[t] - most);
    for (uint32_t t = 0; t < p->tokens; t++)
        s_hat[t] /= sum;
}

static void choose_tokens(const struct sparf_problem *p, struct sparf_answer *a)
{
    uint32_t keep = p->keep > p->local ? p->keep : p->local;
    uint32_t forced = p->local < p->tokens ? p->local : p->tokens;
    keep = keep < p->tokens ? keep : p->tokens;
    memset(a->token, 0, p->tokens * sizeof *a->token);
    for (uint32_t t = p->tokens - forced; t < p->tokens; t++)
        a->token[t] = true;
    take_largest(a->rank, p->tokens, keep - forced, a->token, &a->least_chosen, &a->best_left);
}

// exp(score - the largest score of the set), and log sum exp; `set` NULL: all tokens.
static double weights(const struct sparf_problem *p, uint32_t head, const bool *set, double *weight)
{
    double most = -INFINITY, sum = 0;
    for (uint32_t t = 0; t < p->tokens; t++) {
        double dot = 0;
        for (uint32_t c = 0; c < p->head_dim; c++)
            dot += query(p, head)[c] * p->k[(size_t)t * p->head_dim + c];
        weight[t] = set && !set[t] ? -INFINITY : capped(p, p->scale * dot);
        most = fmax(most, weight[t]);
    }
    for (uint32_t t = 0; t < p->tokens; t++)
        sum += weight[t] = exp(weight[t] - most);
    for (uint32_t t = 0; t < p->tokens; t++)
        weight[t] /= sum;
    return most + log(sum);
}

static void mix(const struct sparf_problem *p, const double *weight, double *out)
{
    for (uint32_t d = 0; d < p->head_dim; d++) {
        out[d] = 0;
        for (uint32_t t = 0; t < p->tokens; t++)
            out[d] += weight[t] * p->v[(size_t)t * p->head_dim + d];
    }
}

void sparf_dense(const struct sparf_problem *p, uint32_t head, double *out, double *lse)
{
    double *weight = calloc(p->tokens, sizeof *weight);
    *lse = weights(p, head, NULL, weight);
    mix(p, weight, out);
    free(weight);
}

void sparf_finish(const struct sparf_problem *p, struct sparf_answer *a)
{
    double *weight = calloc(p->tokens, sizeof *weight);
    for (uint32_t g = 0; g < p->group; g++) {
        predict(p, a, g, weight);
        a->alpha[g] = 0;
        for (uint32_t t = 0; t < p->tokens; t++)
            a->alpha[g] += a->token[t] ? weight[t] : 0;
        weights(p, g, NULL, weight);
        a->captured[g] = 0;
        for (uint32_t t = 0; t < p->tokens; t++)
            a->captured[g] += a->token[t] ? weight[t] : 0;
        double *out = a->out + (size_t)g * p->head_dim;
        a->lse[g] = weights(p, g, a->token, weight);
        mix(p, weight, out);
        for (uint32_t d = 0; d < p->head_dim; d++) {
            double mean = 0;
            for (uint32_t t = 0; t < p->tokens; t++)
                mean += p->v[(size_t)t * p->head_dim + d];
            mean /= p->tokens;
            out[d] = a->alpha[g] * out[d] + (1 - a->alpha[g]) * mean;
        }
    }
    free(weight);
}

void sparf_solve(const struct sparf_problem *p, struct sparf_answer *a)
{
    double *s_hat = calloc(p->tokens, sizeof *s_hat);
    choose_channels(p, a);
    memset(a->rank, 0, p->tokens * sizeof *a->rank);
    for (uint32_t g = 0; g < p->group; g++) {
        predict(p, a, g, s_hat);
        for (uint32_t t = 0; t < p->tokens; t++)
            a->rank[t] += s_hat[t];
    }
    choose_tokens(p, a);
    sparf_finish(p, a);
    free(s_hat);
}
