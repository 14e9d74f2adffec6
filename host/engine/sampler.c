// SPDX-License-Identifier: Apache-2.0
// Sampling in the order and with the defaults of llama.cpp: repeat penalty, top-k, top-p, min-p,
// temperature, draw. Candidates are ordered by logit, then by id, so a seed gives the same tokens
// everywhere. Greedy takes the lowest id of the largest logit.
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
    struct candidate *candidates; // [vocab]
    size_t vocab;
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

// Moves the k best of n, ascending, to the end of the array. In place: qsort would allocate.
static void select_best(struct candidate *c, size_t n, size_t k)
{
    for (size_t i = n / 2; i-- > 0;)
        sift_down(c, i, n);
    for (size_t i = 0; i < k; i++) {
        size_t last = n - 1 - i;
        struct candidate best = c[0];
        c[0] = c[last];
        c[last] = best;
        sift_down(c, 0, last);
    }
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
    select_best(s->candidates, s->vocab, k);
    const struct candidate *best = s->candidates + s->vocab - 1; // best[-i] has rank i
    double max = (double)best->logit, total = 0, sum = 0;
    size_t n = k;
    if (o->top_p < 1) {
        for (size_t i = 0; i < n; i++)
            total += exp((double)best[-(ptrdiff_t)i].logit - max);
        for (size_t i = 0; i < n; i++) {
            sum += exp((double)best[-(ptrdiff_t)i].logit - max);
            if (sum >= (double)o->top_p * total)
                n = i + 1;
        }
    }
    if (o->min_p > 0) {
        double least = max + log((double)o->min_p);
        size_t kept = 1; // the best one always stays
        while (kept < n && (double)best[-(ptrdiff_t)kept].logit >= least)
            kept++;
        n = kept;
    }
    total = 0;
    for (size_t i = 0; i < n; i++)
        total += exp(((double)best[-(ptrdiff_t)i].logit - max) / (double)o->temperature);
    double draw = next_uniform(&s->state) * total;
    for (size_t i = 0; i < n; i++) {
        draw -= exp(((double)best[-(ptrdiff_t)i].logit - max) / (double)o->temperature);
        if (draw < 0)
            return best[-(ptrdiff_t)i].id;
    }
    return best[-(ptrdiff_t)(n - 1)].id;
}
