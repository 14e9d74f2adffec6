// SPDX-License-Identifier: Apache-2.0
// Sampling in the order and with the defaults of llama.cpp: repeat penalty, top-k, top-p, min-p,
// temperature, draw. Candidates are ordered by logit, then by id, so a seed gives the same tokens
// everywhere. Greedy takes the lowest id of the largest logit.
//
// Weights are added in the order of candidates, best first, and a token is defined by those sums to
// the last bit. Yet a vocabulary is not sorted for a draw that looks at its head: candidates get
// their ranks from a heap as they are asked for, and a sum over all of them is taken in any order,
// with a bound on how far that can be from the defined one. Only where the difference could decide,
// which hardly ever happens, everything is sorted.
#include "host/engine/engine.h"

#include <math.h>
#include <stdlib.h>
#include <sys/random.h>
#include <time.h>

struct candidate {
    float logit;
    int32_t id;
};

struct inst_sampler {
    inst_engine *engine;
    struct inst_sampling sampling;
    uint64_t state;
    struct candidate *candidates; // [vocab]: a heap of those without a rank, then rank n to rank 0
    size_t vocab, ranked;
};

void inst_sampling_default(struct inst_sampling *sampling)
{
    uint32_t seed;
    if (getrandom(&seed, sizeof seed, GRND_NONBLOCK) != (ssize_t)sizeof seed)
        seed = (uint32_t)time(NULL);
    *sampling = (struct inst_sampling){.temperature = 0.8f,
                                       .top_k = 40,
                                       .top_p = 0.95f,
                                       .min_p = 0.05f,
                                       .repeat_penalty = 1.0f,
                                       .repeat_last = 64,
                                       .seed = seed};
}

int inst_sampler_open(inst_sampler **out, inst_engine *engine, const struct inst_sampling *sampling,
                      struct inst_msg *msg)
{
    *out = NULL;
    if (!engine || !sampling)
        return inst_fail(msg, INST_EINVAL, "a sampler needs an engine and its settings");
    if (!isfinite(sampling->temperature) || !(sampling->top_p >= 0) || !(sampling->min_p >= 0) ||
        !(sampling->repeat_penalty > 0) || !isfinite(sampling->repeat_penalty))
        return inst_fail(msg, INST_EINVAL,
                         "sampling: temperature must be finite, top-p and min-p 0 or more, the "
                         "repeat penalty above 0");
    inst_sampler *s = calloc(1, sizeof *s);
    if (!s)
        return inst_fail(msg, INST_ENOMEM, "sampler: out of memory");
    *s = (inst_sampler){.engine = engine,
                        .sampling = *sampling,
                        .state = sampling->seed,
                        .vocab = engine->config.vocab};
    s->candidates = budget_alloc(&engine->budget, s->vocab, sizeof *s->candidates,
                                 "the sampler's candidates", msg);
    if (!s->candidates) {
        free(s);
        return INST_ENOMEM;
    }
    *out = s;
    return 0;
}

void inst_sampler_close(inst_sampler *sampler)
{
    if (!sampler)
        return;
    budget_free(&sampler->engine->budget, sampler->candidates);
    free(sampler);
}

// SplitMix64: a counter through a bijective mixer. Uniform in [0, 1).
static double next_uniform(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

static float penalised(float logit, float penalty)
{
    return logit <= 0 ? logit * penalty : logit / penalty;
}

static void load(inst_sampler *s, const float *logits, const int32_t *tokens, size_t n_tokens)
{
    const struct inst_sampling *o = &s->sampling;
    for (size_t i = 0; i < s->vocab; i++)
        // What is not a number can only come from a null drive; it must not upset the order.
        s->candidates[i] = (struct candidate){isnan(logits[i]) ? -INFINITY : logits[i], (int32_t)i};
    if (o->repeat_penalty == 1.0f)
        return;
    size_t last = o->repeat_last < 0 ? n_tokens : (size_t)o->repeat_last;
    for (size_t i = n_tokens > last ? n_tokens - last : 0; i < n_tokens; i++) {
        // From the original logit, so that a token that occurs twice is punished once.
        size_t id = (size_t)tokens[i];
        if (tokens[i] >= 0 && id < s->vocab && !isnan(logits[id]))
            s->candidates[id].logit = penalised(logits[id], o->repeat_penalty);
    }
}

static bool better(const struct candidate *a, const struct candidate *b)
{
    return a->logit > b->logit || (a->logit == b->logit && a->id < b->id);
}

static void sift_down(struct candidate *c, size_t at, size_t n)
{
    for (;;) {
        size_t best = 2 * at + 1;
        if (best >= n)
            return;
        if (best + 1 < n && better(&c[best + 1], &c[best]))
            best++;
        if (!better(&c[best], &c[at]))
            return;
        struct candidate swap = c[at];
        c[at] = c[best];
        c[best] = swap;
        at = best;
    }
}

// The candidate of a rank, 0 the best. In place: qsort would allocate.
static struct candidate ranked(inst_sampler *s, size_t rank)
{
    struct candidate *c = s->candidates;
    while (s->ranked <= rank) {
        size_t last = s->vocab - 1 - s->ranked++;
        struct candidate best = c[0];
        c[0] = c[last];
        c[last] = best;
        sift_down(c, 0, last);
    }
    return c[s->vocab - 1 - rank];
}

size_t sampler_ranked(const inst_sampler *sampler)
{
    return sampler->ranked;
}

static double weight(struct candidate c, double max, double temperature)
{
    return exp(((double)c.logit - max) / temperature);
}

struct sum {
    double value, error; // how far the value may be from the sum in order of rank; 0: it is that
};

// Of the n best weights. Either order of n additions is within n units in the last place of the
// exact sum, so they are within 2 n of each other; the rest is for what is done with the sum.
static struct sum add_weights(inst_sampler *s, size_t n, double max, double temperature,
                              bool in_order)
{
    struct sum sum = {0, 0};
    if (in_order || n < s->vocab) {
        for (size_t i = 0; i < n; i++)
            sum.value += weight(ranked(s, i), max, temperature);
        return sum;
    }
    for (size_t i = 0; i < n; i++)
        sum.value += weight(s->candidates[i], max, temperature);
    sum.error = (2 * (double)n + 16) * 0x1p-53 * sum.value;
    return sum;
}

static bool unsure(const struct sum *sum, double difference)
{
    return sum->error > 0 && fabs(difference) <= 2 * sum->error;
}

// How many of the k best top-p and min-p leave, at least one; 0 when that is unsure.
static size_t count_kept(inst_sampler *s, size_t k, double max, bool in_order)
{
    const struct inst_sampling *o = &s->sampling;
    double least = max + log((double)o->min_p), sum = 0;
    struct sum total = {0, 0};
    if (o->top_p >= 1 && !(o->min_p > 0))
        return k;
    if (o->top_p < 1)
        total = add_weights(s, k, max, 1, in_order);
    double enough = (double)o->top_p * total.value;
    for (size_t n = 0; n < k; n++) {
        struct candidate c = ranked(s, n);
        if (n && o->min_p > 0 && !((double)c.logit >= least))
            return n;
        if (o->top_p >= 1)
            continue;
        sum += weight(c, max, 1);
        if (unsure(&total, sum - enough))
            return 0;
        if (sum >= enough)
            return n + 1;
    }
    return k;
}

// Draws among the n best; -1 when the result is unsure.
static int32_t draw(inst_sampler *s, size_t n, double max, double uniform, bool in_order)
{
    double temperature = (double)s->sampling.temperature;
    struct sum total = add_weights(s, n, max, temperature, in_order);
    double left = uniform * total.value;
    for (size_t i = 0; i < n; i++) {
        struct candidate c = ranked(s, i);
        left -= weight(c, max, temperature);
        if (unsure(&total, left))
            return -1;
        if (left < 0)
            return c.id;
    }
    return ranked(s, n - 1).id;
}

static int32_t greedy(const struct candidate *c, size_t n)
{
    const struct candidate *best = c;
    for (size_t i = 1; i < n; i++)
        if (better(&c[i], best))
            best = &c[i];
    return best->id;
}

int32_t inst_sample(inst_sampler *s, const inst_session *session, const int32_t *tokens,
                    size_t n_tokens)
{
    const struct inst_sampling *o = &s->sampling;
    const float *logits = inst_logits(session);
    if (!logits)
        return -1;
    load(s, logits, tokens, n_tokens);
    if (o->temperature <= 0)
        return greedy(s->candidates, s->vocab);
    size_t k = o->top_k > 0 && (size_t)o->top_k < s->vocab ? (size_t)o->top_k : s->vocab;
    for (size_t i = s->vocab / 2; i-- > 0;)
        sift_down(s->candidates, i, s->vocab);
    s->ranked = 0;
    double max = (double)ranked(s, 0).logit, uniform = next_uniform(&s->state);
    // Bounds hold for finite weights only.
    for (bool in_order = !isfinite(max);; in_order = true) {
        size_t n = count_kept(s, k, max, in_order);
        int32_t id = n ? draw(s, n, max, uniform, in_order) : -1;
        if (id >= 0)
            return id;
    }
}
