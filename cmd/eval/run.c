// SPDX-License-Identifier: Apache-2.0
// Answers the questions behind one context, cell by cell. The context is a prompt: it is attended
// exactly, whatever the method. A question and its answer are decoded token by token behind it, in
// a fork of the context's session, with the right answer whatever the model would have said: so all
// methods are asked the same at every token.
#include "cmd/eval/eval.h"
#include "base/status.h"
#include "host/engine/engine.h"
#include "instinfer_stats.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct eval_method methods[] = {
#define DRIVE(name, whole, adapts, text) {#name, text, whole, adapts, false, 0},
    EVAL_DRIVE_MAP(DRIVE)
#undef DRIVE
#define HERE(name, text) {#name, text, false, false, true, EVAL_HERE_##name},
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

enum { LINES_MOST = 16 }; // answered side by side

// What is open for the cells that share an engine.
struct bench {
    struct eval_runner *r;
    const struct eval_context *context;
    inst_engine *e;
    inst_session *session; // holds the context
    struct inst_model_info info;
    float *dense; // log probabilities of the first cell, [predictions][vocab]
    bool is_dense;
};

// Questions that a cell answers side by side. What is read for several of them at the same time
// would be read, and counted, once: only in memory that is attended in place everyone reads alone.
static size_t lines_of(const struct bench *b, const struct eval_cell *cell)
{
    const struct inst_options *o = &b->r->options;
    size_t n = b->context->n_asks < LINES_MOST ? b->context->n_asks : LINES_MOST;
    bool in_place = o->n_kv && !cell->cached;
    for (size_t i = 0; i < o->n_kv; i++)
        in_place &= !strncmp(o->kv[i], "ram:", 4) && !strchr(o->kv[i], '@');
    return in_place || cell->method->here ? n : 1;
}

// The drive's method and its knobs.
static struct inst_options options_of(const struct bench *b, const struct eval_cell *cell)
{
    struct inst_options o = b->r->options;
    const char *name = cell->method->name;
    o.context = b->context->n + b->context->longest;
    o.max_sessions = 1 + (uint32_t)lines_of(b, cell);
    if (!cell->cached)
        o.row_cache = INST_NO_ROW_CACHE;
    o.kv_type = cell->type;
    o.attention = cell->method->here ? "host" : name;
    if (!strcmp(name, "sparf")) { // as published: one share for channels and tokens
        o.sparf_divisor = cell->divisor;
        o.sparf_channels = (b->info.head_dim + cell->divisor - 1) / cell->divisor;
    }
    if (!strcmp(name, "pages")) {
        o.pages_ratio = cell->mass > 0 ? 0 : 1.0 / cell->divisor;
        o.pages_mass = cell->mass;
    }
    return o;
}

static int open_engine(struct bench *b, const struct inst_options *o)
{
    int err = inst_engine_open(&b->e, o, b->r->msg);
    if (!err)
        inst_engine_info(b->e, &b->info);
    return err;
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

// A question on its way.
struct line {
    inst_session *s;
    const struct eval_ask *ask;
    struct eval_answer *a;
    size_t scored, hits;
};

// The next token of each line that has one left. *n_lines = how many had.
static int step_lines(struct bench *b, struct line *lines, size_t n, size_t token,
                      struct eval_result *r, size_t *n_lines)
{
    struct inst_segment segment[LINES_MOST];
    struct line *of[LINES_MOST];
    *n_lines = 0;
    for (size_t i = 0; i < n; i++) {
        const struct eval_ask *ask = lines[i].ask;
        if (token + 1 >= ask->n)
            continue;
        of[*n_lines] = &lines[i];
        segment[(*n_lines)++] = (struct inst_segment){.session = lines[i].s,
                                                      .tokens = &ask->tokens[token],
                                                      .n_tokens = 1,
                                                      .logits = ask->scored[token + 1]};
        r->all +=
            (double)(b->context->n + token + 1) * (double)b->r->info->kv_bytes_per_token; // in fp16
        r->tokens++;
    }
    int err = *n_lines ? inst_step(b->e, segment, *n_lines, NULL, NULL, b->r->msg) : 0;
    for (size_t i = 0; i < *n_lines && !err; i++) {
        struct line *l = of[i];
        bool right;
        if (!segment[i].logits)
            continue;
        float *dense = b->dense + (l->ask->first + l->scored++) * b->info.vocab;
        judge(b, inst_logits(l->s), l->ask->tokens[token + 1], dense, l->a, &right);
        l->hits += right;
    }
    return err;
}

// Questions side by side: what one gives depends on it alone.
static int answer(struct bench *b, size_t first, size_t n, struct eval_result *r)
{
    struct line lines[LINES_MOST] = {{0}};
    size_t going = n;
    int err = 0;
    for (size_t i = 0; i < n && !err; i++) {
        lines[i].ask = &b->context->asks[first + i];
        lines[i].a = &r->answers[r->n + i];
        *lines[i].a = (struct eval_answer){0};
        err = inst_session_fork(&lines[i].s, b->session, b->r->msg);
    }
    for (size_t token = 0; going && !err; token++)
        err = step_lines(b, lines, n, token, r, &going);
    for (size_t i = 0; i < n; i++)
        inst_session_close(lines[i].s);
    inst_engine_forget(b->e);
    if (err)
        return err;
    for (size_t i = 0; i < n; i++) {
        struct line *l = &lines[i];
        double scored = (double)l->scored;
        l->a->score = b->context->by_token ? (double)l->hits / scored : l->hits == l->scored;
        l->a->nll /= scored;
        l->a->kl /= scored;
    }
    r->n += n;
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

bool eval_result_add(struct eval_result *to, const struct eval_result *more)
{
    if (!room(to, more->n))
        return false;
    if (more->n)
        memcpy(to->answers + to->n, more->answers, more->n * sizeof *more->answers);
    to->n += more->n;
    to->tokens += more->tokens;
    to->read += more->read;
    to->counted += more->counted;
    to->all += more->all;
    to->index = fmax(to->index, more->index);
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
static int answer_all(struct bench *b, const struct eval_cell *cell, struct eval_here *here,
                      struct eval_result *r)
{
    struct inst_stats before, after;
    size_t n = b->context->n_asks, most = lines_of(b, cell);
    most = most < b->info.step_sessions ? most : b->info.step_sessions;
    if (!room(r, n))
        return inst_fail(b->r->msg, INST_ENOMEM, "out of memory");
    int err = inst_engine_stats(b->e, &before, b->r->msg);
    for (size_t i = 0; i < n && !err; i += most)
        err = answer(b, i, n - i < most ? n - i : most, r);
    if (!err)
        err = inst_engine_stats(b->e, &after, b->r->msg);
    if (err)
        return err;
    double flash = (double)(after.flash_read_bytes - before.flash_read_bytes);
    r->read += here ? eval_here_page_bytes(here) : flash;
    r->counted += here ? eval_here_bytes(here) : flash;
    r->index = fmax(r->index, here ? eval_here_index(here) : dram(&after));
    b->r->answered(b->r->user, n);
    return 0;
}

// ---- Cells -------------------------------------------------------------------------------------

// Whether two cells can share an engine, and the context in it. A row cache is a cell's own: it is
// warm from the questions before. Of fp16 dense reads the same in token groups of any size; of
// quantised tokens it reads less in the longer groups that it has by itself.
static bool shares(const struct eval_cell *a, const struct eval_cell *b)
{
    bool sparf = !strcmp(a->method->name, "sparf");
    if (a->type && a->method->whole != b->method->whole)
        return false;
    return !a->cached && !b->cached && a->type == b->type && a->method->here == b->method->here &&
           (a->method->here || sparf == !strcmp(b->method->name, "sparf"));
}

static int run_on_drive(struct bench *b, const struct eval_cell *const *cells, size_t n,
                        struct eval_result *const *results)
{
    const struct eval_cell *widest = cells[0]; // dense can be had from any drive
    for (size_t i = 0; i < n; i++)
        widest = cells[i]->method->whole ? widest : cells[i];
    struct inst_options o = options_of(b, widest);
    int err = open_engine(b, &o);
    if (!err)
        err = read_context(b);
    for (size_t i = 0; i < n && !err; i++) {
        o = options_of(b, cells[i]);
        err = engine_attend_as(b->e, &o, b->r->msg);
        if (!err)
            err = answer_all(b, cells[i], NULL, results[i]);
        b->is_dense = false; // only the first of all is what KL is to
    }
    close_engine(b);
    return err;
}

static int run_here(struct bench *b, const struct eval_cell *const *cells, size_t n,
                    struct eval_result *const *results)
{
    struct eval_here *here = NULL;
    struct inst_options o = options_of(b, cells[0]);
    struct eval_here_shape shape = {.layers = b->info.layers,
                                    .heads = b->info.heads,
                                    .kv_heads = b->info.kv_heads,
                                    .head_dim = b->info.head_dim,
                                    .context = b->context->n,
                                    .longest = b->context->longest,
                                    .lines = o.max_sessions - 1};
    for (size_t i = 0; i < n; i++)
        shape.sums |= cells[i]->method->id == EVAL_HERE_h2o;
    int err = open_engine(b, &o);
    if (!err)
        err = eval_here_open(&here, &shape, b->r->msg);
    if (!err)
        err = engine_set_guest(b->e, eval_here_guest(here), b->r->msg);
    if (!err)
        err = read_context(b);
    for (size_t i = 0; i < n && !err; i++) {
        err = eval_here_set(here, cells[i]->method->id, cells[i]->divisor, b->r->msg);
        if (!err)
            err = answer_all(b, cells[i], here, results[i]);
    }
    close_engine(b);
    eval_here_close(here);
    return err;
}

int eval_run(struct eval_runner *r, const struct eval_context *context,
             const struct eval_cell *cells, size_t n_cells, struct eval_result *results)
{
    struct bench b = {.r = r, .context = context, .info = *r->info, .is_dense = true};
    const struct eval_cell **some = calloc(n_cells, sizeof(void *));
    struct eval_result **of = calloc(n_cells, sizeof(void *));
    bool *done = calloc(n_cells, sizeof *done);
    int err = 0;
    b.dense = calloc(context->predictions + 1, b.info.vocab * sizeof *b.dense);
    if (!b.dense || !some || !of || !done)
        err = inst_fail(r->msg, INST_ENOMEM, "no memory for %llu predictions of dense attention",
                        (unsigned long long)context->predictions);
    for (size_t i = 0; i < n_cells && !err; i++) {
        size_t n = 0;
        for (size_t k = i; k < n_cells && (n || !done[i]); k++)
            if (!done[k] && (k == i || shares(&cells[i], &cells[k]))) {
                some[n] = &cells[k];
                of[n++] = &results[k];
                done[k] = true;
            }
        if (n)
            err = cells[i].method->here ? run_here(&b, some, n, of) : run_on_drive(&b, some, n, of);
    }
    free(b.dense);
    free(some);
    free(of);
    free(done);
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
