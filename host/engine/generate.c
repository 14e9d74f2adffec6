// SPDX-License-Identifier: Apache-2.0
// A generation: one request on its way, from the tokens of a prompt to text and the reason of its
// end. It owns what belongs to the request alone (tokens, text, sampler, probabilities) and no
// session: the scheduler lends it one.
#include "host/engine/generate.h"
#include "base/checked.h"
#include "host/engine/sized.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int check_options(const struct inst_engine *e, const int32_t *tokens, size_t n_tokens,
                         const struct inst_generation_options *o, struct inst_msg *msg)
{
    if (!tokens || !n_tokens)
        return inst_fail(msg, INST_EINVAL, "the prompt has no tokens");
    if (n_tokens > e->context)
        return inst_fail(msg, INST_EINVAL,
                         "the prompt of %zu tokens does not fit in the context of %llu", n_tokens,
                         (unsigned long long)e->context);
    int err = engine_check_tokens(e, tokens, 0, n_tokens, msg);
    if (err)
        return err;
    if (o->top_logprobs > INST_TOP_LOGPROBS_MAX || (o->top_logprobs && !o->logprobs))
        return inst_fail(msg, INST_EINVAL, "logprobs of at most %d tokens can be had",
                         INST_TOP_LOGPROBS_MAX);
    return 0;
}

int inst_generation_open(inst_generation **out, inst_engine *engine, const int32_t *tokens,
                         size_t n_tokens, const struct inst_generation_options *options,
                         struct inst_msg *msg)
{
    struct inst_generation_options o = {0};
    *out = NULL;
    if (!engine || !options)
        return inst_fail(msg, INST_EINVAL, "a generation needs an engine and its options");
    int err = sized_read(&o, sizeof o, sizeof o, options, "inst_generation_options", msg);
    if (!err)
        err = check_options(engine, tokens, n_tokens, &o, msg);
    if (err)
        return err;
    struct inst_generation *g = calloc(1, sizeof *g);
    if (!g)
        return inst_fail(msg, INST_ENOMEM, "generation: out of memory");
    g->engine = engine;
    g->options = o;
    g->sampler = o.sampler;
    g->n_tokens = g->n_prompt = g->at = n_tokens;
    err = reply_open(&g->reply, &engine->budget, o.stops, o.stop_bytes, o.n_stops, msg);
    g->options.stops = NULL; // the caller's
    g->options.stop_bytes = NULL;
    if (!err) {
        g->room = n_tokens;
        g->tokens = budget_alloc(&engine->budget, n_tokens, sizeof *tokens, "a prompt", msg);
        err = g->tokens ? 0 : INST_ENOMEM;
    }
    if (err) {
        inst_generation_close(g);
        return err;
    }
    memcpy(g->tokens, tokens, n_tokens * sizeof *tokens);
    *out = g;
    return 0;
}

void inst_generation_close(inst_generation *g)
{
    if (!g)
        return;
    if (g->scheduler)
        scheduler_remove(g->scheduler, g);
    if (g->sampler != g->options.sampler)
        inst_sampler_close(g->sampler);
    reply_close(&g->reply);
    budget_free(&g->engine->budget, g->tokens);
    budget_free(&g->engine->budget, g->logprobs);
    free(g);
}

void inst_generation_cancel(inst_generation *g)
{
    atomic_store(&g->cancelled, true);
}

enum inst_finish inst_generation_finish(const inst_generation *g)
{
    return g->finish;
}

int inst_generation_error(const inst_generation *g, struct inst_msg *msg)
{
    return g->error ? inst_fail(msg, g->error, "%s", g->why.text) : 0;
}

const char *inst_generation_text(inst_generation *g, size_t *bytes)
{
    return reply_take(&g->reply, bytes);
}

const int32_t *inst_generation_tokens(const inst_generation *g, size_t *n)
{
    *n = g->n_tokens;
    return g->tokens;
}

void inst_generation_usage_sized(const inst_generation *g, struct inst_usage *out, size_t size)
{
    const struct inst_usage usage = {.prompt_tokens = g->n_prompt,
                                     .completion_tokens = g->n_tokens - g->n_prompt,
                                     .reused_tokens = g->reused};
    sized_write(out, size, &usage, sizeof usage);
}

const struct inst_logprob *inst_generation_logprobs(const inst_generation *g, size_t index,
                                                    size_t *n)
{
    *n = g->options.logprobs ? 1 + (size_t)g->options.top_logprobs : 0;
    return index < g->n_logprobs ? g->logprobs + index * *n : NULL;
}

int generation_reserve(struct inst_generation *g, struct inst_msg *msg)
{
    size_t row = (1 + (size_t)g->options.top_logprobs) * sizeof *g->logprobs;
    struct budget *budget = &g->engine->budget;
    int err = budget_list(budget, (void **)&g->tokens, &g->room, g->n_tokens, g->n_tokens + 1,
                          sizeof *g->tokens, "a generation's tokens", msg);
    if (!err && g->options.logprobs)
        err = budget_list(budget, (void **)&g->logprobs, &g->logprob_room, g->n_logprobs,
                          g->n_logprobs + 1, row, "a generation's logprobs", msg);
    if (!err && !g->sampler)
        err = inst_sampler_open(&g->sampler, g->engine, &g->options.sampling, msg);
    return err ? err : reply_reserve(&g->reply, tokenizer_piece_room(g->engine->tokenizer), msg);
}

void generation_end(struct inst_generation *g, enum inst_finish finish)
{
    reply_end(&g->reply);
    g->finish = finish;
}

void generation_fail(struct inst_generation *g, int code, const char *text)
{
    g->error = inst_fail(&g->why, code, "%s", text);
    generation_end(g, INST_FINISH_ERROR);
}

// Logit of a token, as order and sums take it.
static double logit_of(const float *logits, size_t token)
{
    return isnan(logits[token]) ? -INFINITY : (double)logits[token];
}

// In one pass over the vocabulary: the best so far, in order, equal ones by id.
static void keep_logprobs(struct inst_generation *g, const float *logits, int32_t drawn)
{
    size_t vocab = g->engine->config.vocab, n = 0, most = g->options.top_logprobs;
    struct inst_logprob *row = g->logprobs + g->n_logprobs++ * (1 + most), *top = row + 1;
    double max = -INFINITY, sum = 0;
    most = min_u64(most, vocab);
    for (size_t i = 0; i < vocab; i++) {
        double logit = logit_of(logits, i);
        max = logit > max ? logit : max;
        if (!most || (n == most && !((float)logit > top[n - 1].logprob)))
            continue;
        size_t at = n < most ? n++ : n - 1;
        for (; at && (float)logit > top[at - 1].logprob; at--)
            top[at] = top[at - 1];
        top[at] = (struct inst_logprob){(int32_t)i, (float)logit};
    }
    for (size_t i = 0; i < vocab && isfinite(max); i++)
        sum += exp(logit_of(logits, i) - max);
    double base = isfinite(max) ? max + log(sum) : 0;
    row[0] = (struct inst_logprob){drawn, (float)(logit_of(logits, (size_t)drawn) - base)};
    for (size_t i = 0; i < n; i++)
        top[i].logprob = (float)((double)top[i].logprob - base);
    for (size_t i = n; i < g->options.top_logprobs; i++) // a vocabulary of fewer
        top[i] = (struct inst_logprob){-1, -INFINITY};
}

// What ends it before another token is drawn; INST_FINISH_NOT: nothing does.
static enum inst_finish full(const struct inst_generation *g)
{
    if (g->n_tokens - g->n_prompt >= g->options.max_tokens)
        return INST_FINISH_LENGTH;
    return g->n_tokens == g->engine->context ? INST_FINISH_CONTEXT : INST_FINISH_NOT;
}

void generation_draw(struct inst_generation *g, const struct inst_session *session)
{
    enum inst_finish finish = g->last ? g->last : full(g);
    if (finish) {
        generation_end(g, finish);
        return;
    }
    int32_t token = inst_sample(g->sampler, session, g->tokens, g->n_tokens);
    if (!g->options.ignore_end && inst_token_is_end(g->engine, token)) {
        generation_end(g, INST_FINISH_END);
        return;
    }
    if (g->options.logprobs)
        keep_logprobs(g, session->logits, token);
    g->tokens[g->n_tokens++] = token;
    size_t bytes;
    const char *text = inst_token_text(g->engine, token, &bytes);
    if (!reply_put(&g->reply, text, bytes)) {
        generation_end(g, INST_FINISH_STOP);
        return;
    }
    finish = full(g);
    if (finish && g->options.whole_kv)
        g->last = finish;
    else if (finish)
        generation_end(g, finish);
}
