// SPDX-License-Identifier: Apache-2.0
// Answers the questions behind one context, cell by cell. The context is a prompt: it is attended
// exactly, whatever the method. A question and its answer are decoded token by token behind it, in
// a fork of the context's session, with the right answer whatever the model would have said: so all
// methods are asked the same at every token.
#include "cmd/eval.h"
#include "base/status.h"
#include "instinfer_stats.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct eval_method methods[] = {
#define DRIVE(name, whole, text) {#name, text, whole, false, 0},
    EVAL_DRIVE_MAP(DRIVE)
#undef DRIVE
#define HERE(name, text) {#name, text, false, true, EVAL_HERE_##name},
        EVAL_HERE_MAP(HERE)
#undef HERE
};
enum { METHODS = sizeof methods / sizeof *methods };

const struct eval_method *eval_method_find(const char *name)
{
    for (size_t i = 0; i < METHODS; i++)
        if (!strcmp(methods[i].name, name))
            return &methods[i];
    return NULL;
}

_Static_assert((int)METHODS <= (int)EVAL_METHODS_MOST, "all of them fit");

size_t eval_methods_all(const struct eval_method *out[EVAL_METHODS_MOST])
{
    for (size_t i = 0; i < METHODS; i++)
        out[i] = &methods[i];
    return METHODS;
}

void eval_method_names(char *out, size_t size)
{
    for (size_t i = 0, used = 0; i < METHODS && used < size; i++)
        used += (size_t)snprintf(out + used, size - used, "%s%s", i ? ", " : "", methods[i].name);
}

void eval_context_free(struct eval_context *c)
{
    for (size_t i = 0; i < c->n_asks; i++) {
        free(c->asks[i].tokens);
        free(c->asks[i].scored);
    }
    free(c->asks);
    free(c->tokens);
    *c = (struct eval_context){0};
}

// What is open for a cell, or for all cells that share an engine.
struct bench {
    struct eval_runner *r;
    const struct eval_context *context;
    inst_engine *e;
    inst_session *session; // holds the context
    struct inst_model_info info;
    float *dense; // log probabilities of the first cell, [predictions][vocab]
    bool is_dense;
};

static int open_engine(struct bench *b, const struct eval_cell *cell)
{
    struct inst_options o = b->r->options;
    const char *name = cell->method->name;
    o.context = b->context->n + b->context->longest;
    o.max_sessions = 2;
    if (!cell->cached)
        o.row_cache = INST_NO_ROW_CACHE;
    o.attention = cell->method->here ? "host" : name;
    if (!strcmp(name, "sparf")) { // as published: one share for channels and tokens
        o.sparf_divisor = cell->divisor;
        o.sparf_channels = (b->info.head_dim + cell->divisor - 1) / cell->divisor;
    }
    if (!strcmp(name, "pages"))
        o.pages_ratio = 1.0 / cell->divisor;
    return inst_engine_open(&b->e, &o, b->r->msg);
}

static int read_context(struct bench *b)
{
    int err = inst_session_open(&b->session, b->e, b->r->msg);
    struct inst_prefix prefix = {
        .session = b->session, .tokens = b->context->tokens, .n_tokens = b->context->n};
    return err ? err : inst_sync(b->e, &prefix, 1, NULL, NULL, b->r->msg);
}

static void close_engine(struct bench *b)
{
    inst_engine_close(b->e);
    b->e = NULL;
    b->session = NULL;
}

// ---- An answer ---------------------------------------------------------------------------------

static double log_sum(const float *logits, size_t n)
{
    double most = -INFINITY, sum = 0;
    for (size_t i = 0; i < n; i++)
        most = fmax(most, (double)logits[i]);
    for (size_t i = 0; i < n; i++)
        sum += exp((double)logits[i] - most);
    return most + log(sum);
}

// One prediction. The likeliest token is the first of the largest logits, as in greedy sampling.
static void judge(const struct bench *b, const float *logits, int32_t token, float *dense,
                  struct eval_answer *a, bool *right)
{
    size_t vocab = b->info.vocab, best = 0;
    double sum = log_sum(logits, vocab), kl = 0;
    for (size_t i = 1; i < vocab; i++)
        best = logits[i] > logits[best] ? i : best;
    for (size_t i = 0; i < vocab; i++) {
        float log_q = (float)((double)logits[i] - sum);
        if (b->is_dense)
            dense[i] = log_q;
        // No term is below 0, and all are 0 where nothing differs.
        else if (dense[i] < log_q || dense[i] > log_q)
            kl += exp((double)dense[i]) * ((double)dense[i] - (double)log_q) -
                  exp((double)dense[i]) + exp((double)log_q);
    }
    *right = best == (size_t)token;
    a->nll += sum - (double)logits[token];
    a->kl += kl;
}

static int answer(struct bench *b, const struct eval_ask *ask, bool by_token, struct eval_result *r)
{
    inst_session *s;
    struct eval_answer *a = &r->answers[r->n];
    size_t scored = 0, hits = 0;
    int err = inst_session_fork(&s, b->session, b->r->msg);
    if (err)
        return err;
    *a = (struct eval_answer){0};
    for (size_t i = 0; i + 1 < ask->n && !err; i++) {
        struct inst_segment segment = {
            .session = s, .tokens = &ask->tokens[i], .n_tokens = 1, .logits = ask->scored[i + 1]};
        r->nominal += (double)(inst_session_length(s) + 1) * (double)b->info.kv_bytes_per_token;
        r->tokens++;
        err = inst_step(b->e, &segment, 1, NULL, NULL, b->r->msg);
        if (err || !segment.logits)
            continue;
        bool right;
        float *dense = b->dense + (ask->first + scored++) * b->info.vocab;
        judge(b, inst_logits(s), ask->tokens[i + 1], dense, a, &right);
        hits += right;
    }
    inst_session_close(s);
    inst_engine_forget(b->e);
    if (err)
        return err;
    double n = (double)scored;
    a->score = by_token ? (double)hits / n : hits == scored;
    a->nll /= n;
    a->kl /= n;
    r->n++;
    return 0;
}

static bool room(struct eval_result *r, size_t more)
{
    if (r->n + more <= r->room)
        return true;
    struct eval_answer *moved = realloc(r->answers, (r->n + more) * sizeof *moved);
    if (!moved)
        return false;
    r->answers = moved;
    r->room = r->n + more;
    return true;
}

// What a method of the drive keeps there.
static double dram(const struct inst_stats *stats)
{
    static const char name[] = "_dram_bytes";
    for (size_t i = 0; i < stats->n_method; i++) {
        size_t n = strlen(stats->method[i].name), end = sizeof name - 1;
        if (n > end && !strcmp(stats->method[i].name + n - end, name))
            return stats->method[i].value;
    }
    return 0;
}

// All questions, once the context is read.
static int answer_all(struct bench *b, struct eval_here *here, struct eval_result *r)
{
    struct inst_stats before, after;
    if (!room(r, b->context->n_asks))
        return inst_fail(b->r->msg, INST_ENOMEM, "out of memory");
    int err = inst_engine_stats(b->e, &before, b->r->msg);
    for (size_t i = 0; i < b->context->n_asks && !err; i++)
        err = answer(b, &b->context->asks[i], b->context->by_token, r);
    if (!err)
        err = inst_engine_stats(b->e, &after, b->r->msg);
    if (err)
        return err;
    r->read +=
        here ? eval_here_bytes(here) : (double)(after.flash_read_bytes - before.flash_read_bytes);
    r->index = fmax(r->index, here ? eval_here_index(here) : dram(&after));
    b->r->answered(b->r->user, b->context->n_asks);
    return 0;
}

// ---- Cells -------------------------------------------------------------------------------------

static int run_on_drive(struct bench *b, const struct eval_cell *cell, struct eval_result *r)
{
    int err = open_engine(b, cell);
    if (!err)
        err = read_context(b);
    if (!err)
        err = answer_all(b, NULL, r);
    close_engine(b);
    return err;
}

// They share an engine, and the context is read once.
static int run_here(struct bench *b, const struct eval_cell *cells, size_t n_cells,
                    struct eval_result *results)
{
    struct eval_here *here = NULL;
    struct eval_here_shape shape = {.layers = b->info.layers,
                                    .heads = b->info.heads,
                                    .kv_heads = b->info.kv_heads,
                                    .head_dim = b->info.head_dim,
                                    .tokens = b->context->n + b->context->longest};
    size_t first = n_cells;
    for (size_t i = n_cells; i-- > 0;)
        if (cells[i].method->here) {
            first = i;
            shape.sums |= cells[i].method->id == EVAL_HERE_h2o;
        }
    if (first == n_cells)
        return 0;
    int err = open_engine(b, &cells[first]);
    if (!err)
        err = eval_here_open(&here, &shape, b->r->msg);
    if (!err)
        err = engine_set_guest(b->e, eval_here_guest(here), b->r->msg);
    if (!err)
        err = read_context(b);
    for (size_t i = first; i < n_cells && !err; i++) {
        if (!cells[i].method->here)
            continue;
        eval_here_set(here, cells[i].method->id, cells[i].divisor, b->context->n);
        err = answer_all(b, here, &results[i]);
    }
    close_engine(b);
    eval_here_close(here);
    return err;
}

int eval_run(struct eval_runner *r, const struct eval_context *context,
             const struct eval_cell *cells, size_t n_cells, struct eval_result *results)
{
    struct bench b = {.r = r, .context = context};
    b.info = *r->info;
    b.dense = calloc(context->predictions + 1, b.info.vocab * sizeof *b.dense);
    if (!b.dense)
        return inst_fail(r->msg, INST_ENOMEM, "no memory for %llu predictions of dense attention",
                         (unsigned long long)context->predictions);
    int err = 0;
    for (size_t i = 0; i < n_cells && !err; i++) {
        b.is_dense = !i;
        if (!cells[i].method->here)
            err = run_on_drive(&b, &cells[i], &results[i]);
    }
    b.is_dense = false;
    if (!err)
        err = run_here(&b, cells, n_cells, results);
    free(b.dense);
    return err;
}

// ---- Figures -----------------------------------------------------------------------------------

static double figure_of(const struct eval_result *r, size_t i, enum eval_figure figure,
                        const struct eval_result *other)
{
    const struct eval_answer *a = &r->answers[i];
    switch (figure) {
    case EVAL_KL:
        return a->kl;
    case EVAL_NLL:
        return a->nll;
    case EVAL_GAIN:
        return a->score - other->answers[i].score;
    default:
        return a->score;
    }
}

struct eval_mean eval_mean_of(const struct eval_result *r, enum eval_figure figure,
                              const struct eval_result *other)
{
    struct eval_mean m = {0};
    double squares = 0, n = (double)r->n;
    for (size_t i = 0; i < r->n; i++)
        m.mean += figure_of(r, i, figure, other) / n;
    for (size_t i = 0; i < r->n; i++) {
        double off = figure_of(r, i, figure, other) - m.mean;
        squares += off * off;
    }
    m.error = r->n > 1 ? sqrt(squares / (n - 1) / n) : 0;
    return m;
}
