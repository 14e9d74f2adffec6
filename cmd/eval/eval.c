// SPDX-License-Identifier: Apache-2.0
// instinfer eval: how right a model's answers are with each attention method, by the bytes of KV
// that the method reads. All methods get the same questions behind the same contexts.
#include "cmd/eval/eval.h"
#include "cmd/commands.h"
#include "cmd/engine_options.h"
#include "cmd/eval/show.h"
#include "cmd/eval/text.h"
#include "cmd/input.h"
#include "cmd/output_file.h"
#include "cmd/terminal.h"
#include "host/engine/engine.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    TEXT_TASK = EVAL_TASKS,
    BUDGETS_MOST = 16,
    DIVISOR_MOST = 4096,
    CONTEXT_MOST = 1 << 24,
    WORKERS_MOST = 64,
    TYPES_MOST = 2,
};

static const uint64_t WORKER_BYTES = 128 << 20; // of memory, for a context at a time

static const char *const task_names[] = {
#define NAME(name, text) #name,
    EVAL_TASK_MAP(NAME)
#undef NAME
        "text"};

struct eval {
    struct engine_options engine;
    struct option_list tasks, methods;
    const char *types;
    struct option_numbers contexts;
    const char *budgets, *masses, *text, *row_cache;
    uint32_t questions, each, decoded, seed, piece, keys, heads, newest, look, bits;
    bool rest, flash;
    struct output_file csv, svg;

    uint32_t task[EVAL_TASKS + 1], divisor[BUDGETS_MOST];
    double mass[BUDGETS_MOST];
    const char *type[TYPES_MOST]; // beside fp16
    size_t n_tasks, n_divisors, n_masses, n_types;
    struct eval_cell *cells;
    size_t n_cells;
    struct eval_block *blocks;
    size_t n_blocks;
    inst_engine *asker; // has a tokenizer, and never a KV cache
    struct inst_model_info info;
    int32_t *text_tokens;
    size_t n_text;
    bool bar;
    uint32_t workers; // contexts at a time
};

// The contexts of a block, handed out in order to threads that answer what is asked.
struct work {
    struct eval *v;
    struct eval_block *block;
    uint32_t task;
    size_t windows;           // of a text
    struct eval_result *each; // [contexts][cells]
    struct inst_options engine;
    pthread_mutex_t lock; // of what follows, and of the asker
    size_t contexts, asked, answered, room;
    int code;
};

// ---- Contexts and questions, in tokens ---------------------------------------------------------

static int out_of_memory(void)
{
    return fail(EXIT_FAILED, "out of memory");
}

static int tokenize(const struct eval *v, const char *text, size_t bytes, unsigned flags,
                    int32_t **tokens, size_t *n)
{
    struct inst_msg msg = {0};
    int err = inst_tokenize(v->asker, text, bytes, flags, tokens, n, &msg);
    return err ? failed(err, &msg) : 0;
}

// The tokens of `text` behind others: a tokenizer may put something in front of a text's first word
// that is not there in the middle of one.
static int tokenize_behind(const struct eval *v, const char *text, int32_t **tokens, size_t *n)
{
    static const char before[] = ".";
    int32_t *first;
    size_t n_first, bytes = strlen(text);
    char *both = malloc(sizeof before + bytes);
    if (!both)
        return out_of_memory();
    memcpy(both, before, sizeof before - 1);
    memcpy(both + sizeof before - 1, text, bytes + 1);
    int code = tokenize(v, both, bytes + sizeof before - 1, INST_TOKENIZE_NO_BOS, tokens, n);
    free(both);
    if (code)
        return code;
    code = tokenize(v, before, sizeof before - 1, INST_TOKENIZE_NO_BOS, &first, &n_first);
    if (!code) {
        size_t same = 0;
        while (same < n_first && same < *n && first[same] == (*tokens)[same])
            same++;
        *n -= same;
        memmove(*tokens, *tokens + same, *n * sizeof **tokens);
        free(first);
    }
    return code;
}

// Adds what `more` has behind the tokens that are there; they are scored or not.
static int extend(const struct eval *v, struct eval_ask *ask, char *text, size_t room,
                  const char *more, bool scored)
{
    int32_t *tokens;
    size_t n, used = strlen(text), same = 0;
    if (used + strlen(more) + 1 > room)
        return fail(EXIT_FAILED, "eval: a question is too long");
    strcpy(text + used, more);
    int code = tokenize_behind(v, text, &tokens, &n);
    if (code)
        return code;
    bool *marks = calloc(n + 1, sizeof *marks);
    while (same < n && same < ask->n && tokens[same] == ask->tokens[same])
        same++;
    for (size_t i = 0; marks && i < n; i++)
        marks[i] = i < same ? ask->scored[i] : scored;
    free(ask->tokens);
    free(ask->scored);
    *ask = (struct eval_ask){.tokens = tokens, .scored = marks, .n = n};
    return marks ? 0 : out_of_memory();
}

static int ask_question(const struct eval *v, struct eval_ask *ask, const struct eval_question *q)
{
    char text[2048] = "";
    for (size_t i = 0; i < q->n_parts; i++) {
        int code = extend(v, ask, text, sizeof text, q->part[i].prompt, false);
        if (!code)
            code = extend(v, ask, text, sizeof text, q->part[i].answer, true);
        if (code)
            return code;
    }
    return 0;
}

static void count_ask(struct eval_context *c, struct eval_ask *ask)
{
    ask->first = c->predictions;
    for (size_t i = 1; i < ask->n; i++)
        c->predictions += ask->scored[i];
    if (ask->n > c->longest)
        c->longest = ask->n;
}

static int make_context(const struct eval *v, struct eval_context *c, enum eval_task task,
                        uint64_t tokens, size_t number, size_t questions)
{
    struct eval_document d;
    if (!eval_document_make(&d, task, tokens, v->seed + (uint32_t)number, questions))
        return out_of_memory();
    int code = tokenize(v, d.text, d.bytes, 0, &c->tokens, &c->n);
    c->asks = calloc(d.n_questions + 1, sizeof *c->asks);
    if (!code && !c->asks)
        code = out_of_memory();
    for (size_t i = 0; i < d.n_questions && !code; i++) {
        c->n_asks++;
        code = ask_question(v, &c->asks[i], &d.questions[i]);
        count_ask(c, &c->asks[i]);
    }
    eval_document_free(&d);
    return code;
}

// A piece of the text; the last tokens of it are decoded.
static int make_window(const struct eval *v, struct eval_context *c, uint64_t tokens, size_t number,
                       size_t windows)
{
    bool begins = v->info.begin_token >= 0;
    size_t whole = (size_t)tokens - begins, n = v->decoded + 1;
    if (tokens < n + 2)
        return fail(EXIT_USAGE, "eval: %u tokens to decode of contexts of %llu: too many",
                    v->decoded, (unsigned long long)tokens);
    if (v->n_text < whole)
        return fail(EXIT_FAILED, "%s: has %zu tokens, a context of %llu needs more", v->text,
                    v->n_text, (unsigned long long)tokens);
    size_t spare = v->n_text - whole;
    const int32_t *from = v->text_tokens + (windows > 1 ? spare * number / (windows - 1) : 0);
    c->by_token = true;
    c->n = (size_t)tokens - n;
    c->n_asks = 1;
    c->tokens = malloc(c->n * sizeof *c->tokens);
    c->asks = calloc(1, sizeof *c->asks);
    if (c->asks) {
        c->asks->n = n;
        c->asks->tokens = malloc(n * sizeof *c->asks->tokens);
        c->asks->scored = malloc(n * sizeof *c->asks->scored);
    }
    if (!c->tokens || !c->asks || !c->asks->tokens || !c->asks->scored)
        return out_of_memory();
    if (begins)
        c->tokens[0] = v->info.begin_token;
    memcpy(c->tokens + begins, from, (c->n - begins) * sizeof *from);
    memcpy(c->asks->tokens, from + c->n - begins, n * sizeof *from);
    for (size_t i = 0; i < n; i++)
        c->asks->scored[i] = i > 0;
    count_ask(c, c->asks);
    return 0;
}

static int read_text(struct eval *v)
{
    struct input input;
    struct text_room room = text_room_of_engine(v->asker, UINT32_MAX, UINT32_MAX);
    if (!v->text)
        return 0;
    room.most = UINT64_MAX;
    int code = input_open(&input, "eval", NULL, v->text, &room);
    if (code)
        return code;
    code = tokenize(v, input.text, input.bytes, INST_TOKENIZE_NO_BOS | INST_TOKENIZE_NO_SPECIAL,
                    &v->text_tokens, &v->n_text);
    input_close(&input);
    return code;
}

// ---- Asking ------------------------------------------------------------------------------------

static void answered(void *user, size_t asks)
{
    struct work *w = user;
    pthread_mutex_lock(&w->lock);
    w->answered += asks;
    if (w->v->bar)
        fprintf(stderr, "\r%s: %zu/%zu answers\033[K", w->block->task, w->answered,
                w->v->n_cells * (w->task == TEXT_TASK ? w->windows : w->v->questions));
    pthread_mutex_unlock(&w->lock);
}

// The next context; *number says which. False: there is none.
static bool next_context(struct work *w, struct eval_context *c, size_t *number)
{
    struct eval *v = w->v;
    bool text = w->task == TEXT_TASK;
    size_t wanted = text ? w->windows : v->questions;
    if (w->code || w->asked >= wanted || w->contexts == w->room)
        return false;
    size_t left = wanted - w->asked;
    *number = w->contexts++;
    w->code = text ? make_window(v, c, w->block->tokens, *number, w->windows)
                   : make_context(v, c, (enum eval_task)w->task, w->block->tokens, *number,
                                  left < v->each ? left : v->each);
    w->asked += c->n_asks;
    // A task that has nothing to ask about in one context has nothing in others.
    return !w->code && c->n_asks;
}

static void *answer_contexts(void *user)
{
    struct work *w = user;
    struct eval *v = w->v;
    for (;;) {
        struct inst_msg msg = {0};
        struct eval_runner runner = {
            .options = w->engine, .info = &v->info, .answered = answered, .user = w, .msg = &msg};
        struct eval_context c = {0};
        size_t number;
        pthread_mutex_lock(&w->lock);
        bool more = next_context(w, &c, &number);
        pthread_mutex_unlock(&w->lock);
        int err =
            more ? eval_run(&runner, &c, v->cells, v->n_cells, w->each + number * v->n_cells) : 0;
        eval_context_free(&c);
        if (!more)
            return NULL;
        pthread_mutex_lock(&w->lock);
        if (err && !w->code)
            w->code = failed(err, &msg);
        pthread_mutex_unlock(&w->lock);
    }
}

static void answer_all(struct work *w)
{
    pthread_t thread[WORKERS_MOST];
    uint32_t n = 0;
    while (n + 1 < w->v->workers && !pthread_create(&thread[n], NULL, answer_contexts, w))
        n++;
    answer_contexts(w);
    for (uint32_t i = 0; i < n; i++)
        pthread_join(thread[i], NULL);
}

static int run_block(struct eval *v, struct eval_block *block, uint32_t task)
{
    struct work w = {.v = v,
                     .block = block,
                     .task = task,
                     .windows = (v->questions + v->each - 1) / v->each,
                     .engine = v->engine.engine,
                     .lock = PTHREAD_MUTEX_INITIALIZER,
                     .room = v->questions};
    w.engine.threads = v->info.threads / v->workers;
    w.engine.memory = v->info.memory / v->workers;
    w.each = calloc(w.room, v->n_cells * sizeof *w.each);
    block->results = calloc(v->n_cells, sizeof *block->results);
    if (!block->results || !w.each)
        w.code = out_of_memory();
    else
        answer_all(&w);
    for (size_t i = 0; w.each && i < w.contexts * v->n_cells; i++) {
        if (!w.code && !eval_result_add(&block->results[i % v->n_cells], &w.each[i]))
            w.code = out_of_memory();
        free(w.each[i].answers);
    }
    free(w.each);
    if (v->bar)
        fputs("\r\033[K", stderr);
    if (!w.code && !block->results[0].n)
        w.code = fail(EXIT_FAILED, "%s: contexts of %llu tokens have nothing to ask about",
                      block->task, (unsigned long long)block->tokens);
    return w.code;
}

// ---- Options -----------------------------------------------------------------------------------

static int read_tasks(struct eval *v)
{
    for (size_t i = 0; i < v->tasks.n; i++) {
        uint32_t t = 0;
        while (t < EVAL_TASKS && strcmp(task_names[t], v->tasks.items[i]))
            t++;
        if (t == EVAL_TASKS)
            return fail(EXIT_USAGE, "eval: --task: '%s' is unknown (recall, keys, hop, vote, copy)",
                        v->tasks.items[i]);
        if (v->n_tasks == EVAL_TASKS)
            return fail(EXIT_USAGE, "eval: --task: more than there are");
        v->task[v->n_tasks++] = t;
    }
    if (!v->tasks.n && !v->text)
        v->task[v->n_tasks++] = EVAL_recall;
    if (v->text)
        v->task[v->n_tasks++] = TEXT_TASK;
    return 0;
}

static int read_budgets(struct eval *v)
{
    const char *p = v->budgets ? v->budgets : "1/8";
    for (;;) {
        char *end = NULL;
        unsigned long n = 0;
        if (!strncmp(p, "1/", 2) && p[2] >= '1' && p[2] <= '9')
            n = strtoul(p + 2, &end, 10);
        if (!n || n > DIVISOR_MOST || (*end && *end != ',') || v->n_divisors == BUDGETS_MOST)
            return fail(EXIT_USAGE, "eval: --budget: '%s' is not like 1/8,1/16 (up to 1/%d)",
                        v->budgets, DIVISOR_MOST);
        v->divisor[v->n_divisors++] = (uint32_t)n;
        if (!*end)
            return 0;
        p = end + 1;
    }
}

static int read_masses(struct eval *v)
{
    for (const char *p = v->masses; p;) {
        char *end;
        double mass = strtod(p, &end);
        if (end == p || !(mass > 0 && mass < 1) || (*end && *end != ',') ||
            v->n_masses == BUDGETS_MOST)
            return fail(EXIT_USAGE, "eval: --mass: '%s' is not like 0.9,0.95 (less than 1)",
                        v->masses);
        v->mass[v->n_masses++] = mass;
        p = *end ? end + 1 : NULL;
    }
    return 0;
}

static int read_types(struct eval *v)
{
    static const char *const known[] = {"q8", "q4"};
    for (const char *p = v->types; p;) {
        size_t n = strcspn(p, ","), k = 0;
        while (k < TYPES_MOST && (strlen(known[k]) != n || strncmp(known[k], p, n)))
            k++;
        bool again = false;
        for (size_t i = 0; i < v->n_types && k < TYPES_MOST; i++)
            again |= v->type[i] == known[k];
        if (again || (k == TYPES_MOST && (n != 3 || strncmp(p, "f16", 3))))
            return fail(EXIT_USAGE, "eval: --kv-types: '%s' is not like f16,q8,q4", v->types);
        if (k < TYPES_MOST)
            v->type[v->n_types++] = known[k];
        p = p[n] ? p + n + 1 : NULL;
    }
    return 0;
}

static void add_cells(struct eval *v, const struct eval_method *m, bool cached, const char *type)
{
    struct eval_cell cell = {.method = m, .divisor = 1, .cached = cached, .type = type};
    if (m->whole)
        v->cells[v->n_cells++] = cell;
    for (size_t i = 0; i < v->n_divisors && !m->whole; i++) {
        cell.divisor = v->divisor[i];
        v->cells[v->n_cells++] = cell;
    }
    cell.divisor = 1;
    for (size_t i = 0; i < v->n_masses && m->adapts; i++) {
        cell.mass = v->mass[i];
        v->cells[v->n_cells++] = cell;
    }
}

static int read_methods(struct eval *v)
{
    const struct eval_method *chosen[EVAL_METHODS_MOST];
    size_t n = 0;
    chosen[n++] = eval_method_find("dense");
    for (size_t i = 0; i < v->methods.n; i++) {
        char known[160];
        const struct eval_method *m = eval_method_find(v->methods.items[i]);
        eval_method_names(known, sizeof known);
        if (!m)
            return fail(EXIT_USAGE, "eval: --method: '%s' is unknown (%s)", v->methods.items[i],
                        known);
        bool there = false;
        for (size_t k = 0; k < n; k++)
            there |= chosen[k] == m;
        if (!there)
            chosen[n++] = m;
    }
    if (!v->methods.n)
        n = eval_methods_all(chosen);
    v->cells = calloc(4 * (1 + TYPES_MOST) * n * BUDGETS_MOST, sizeof *v->cells);
    if (!v->cells)
        return out_of_memory();
    for (int cached = 0; cached <= (v->row_cache != NULL); cached++)
        for (size_t t = 0; t <= v->n_types; t++)
            for (size_t i = 0; i < n; i++) {
                bool typed = !chosen[i]->here && strcmp(chosen[i]->name, "sparf") != 0;
                if ((!t || typed) && (!cached || !chosen[i]->here))
                    add_cells(v, chosen[i], cached, t ? v->type[t - 1] : NULL);
            }
    return 0;
}

static int open_asker(struct eval *v)
{
    struct inst_msg msg = {0};
    struct inst_options o = v->engine.engine;
    o.context = 1;
    int err = engine_prepare(&v->asker, &o, &msg);
    if (err)
        return failed(err, &msg);
    inst_engine_info(v->asker, &v->info);
    // A context for each thread, as far as memory reaches.
    uint64_t most = v->info.memory / WORKER_BYTES;
    most = most < WORKERS_MOST ? most : WORKERS_MOST;
    most = most < v->info.threads ? most : v->info.threads;
    uint64_t contexts = (v->questions + v->each - 1) / v->each;
    most = most < contexts ? most : contexts;
    v->workers = most ? (uint32_t)most : 1;
    return 0;
}

static int prepare(struct eval *v, const struct options *options)
{
    if (!v->engine.engine.model)
        return fail(EXIT_USAGE, "eval: no model given (-m MODEL.gguf)");
    if (!option_numbers_default(&v->contexts, 4096))
        return out_of_memory();
    int code = read_tasks(v);
    if (!code)
        code = read_budgets(v);
    if (!code)
        code = read_masses(v);
    if (!code)
        code = read_types(v);
    if (!code)
        code = read_methods(v);
    if (!code && v->row_cache)
        v->engine.row_cache = v->row_cache;
    if (!code)
        code = engine_options_read(&v->engine, "eval");
    v->engine.engine.pages_piece = v->piece; // of one method among others
    v->engine.engine.pages_keys = v->keys;
    v->engine.engine.pages_heads = v->heads;
    v->engine.engine.pages_newest = v->newest;
    v->engine.engine.pages_look = v->look;
    v->engine.engine.pages_bits = v->bits;
    v->engine.engine.pages_flash = v->flash;
    v->engine.engine.pages_rest = v->rest;
    // Nobody waits for an answer here: what was stopped for a while, as a whole, just goes on.
    v->engine.engine.drive_timeout_ms = UINT32_MAX;
    if (!code)
        code = output_files_open(options);
    if (!code)
        code = open_asker(v);
    if (!code)
        code = read_text(v);
    if (code)
        return code;
    v->bar = isatty(STDERR_FILENO);
    v->blocks = calloc(v->n_tasks * v->contexts.n, sizeof *v->blocks);
    return v->blocks ? 0 : out_of_memory();
}

static int evaluate(struct eval *v, const struct options *options)
{
    int code = prepare(v, options);
    if (code)
        return code;
    printf("%s (%s): KV %llu bytes per token; %u questions, seed %u\n", v->info.name,
           v->info.architecture, (unsigned long long)v->info.kv_bytes_per_token, v->questions,
           v->seed);
    if (v->csv.stream)
        eval_show_head(v->csv.stream);
    for (size_t c = 0; c < v->contexts.n && !code; c++)
        for (size_t t = 0; t < v->n_tasks && !code; t++) {
            struct eval_block *b = &v->blocks[v->n_blocks++];
            *b =
                (struct eval_block){.task = task_names[v->task[t]], .tokens = v->contexts.items[c]};
            code = run_block(v, b, v->task[t]);
            if (code)
                break;
            eval_show_table(b, v->cells, v->n_cells, false);
            if (v->row_cache)
                eval_show_table(b, v->cells, v->n_cells, true);
            if (v->csv.stream)
                eval_show_csv(v->csv.stream, b, v->cells, v->n_cells);
        }
    if (!code && (fflush(stdout) || ferror(stdout)))
        code = fail(EXIT_FAILED, "standard output: %s", strerror(errno));
    if (!code)
        code = output_file_close(&v->csv);
    if (!code && v->svg.stream)
        code = eval_show_svg(v->svg.stream, v->blocks, v->n_blocks, v->cells, v->n_cells);
    return code ? code : output_file_close(&v->svg);
}

static void close_all(struct eval *v)
{
    for (size_t i = 0; i < v->n_blocks; i++) {
        for (size_t k = 0; v->blocks[i].results && k < v->n_cells; k++)
            free(v->blocks[i].results[k].answers);
        free(v->blocks[i].results);
    }
    free(v->blocks);
    free(v->cells);
    free(v->text_tokens);
    inst_engine_close(v->asker);
}

int command_eval(int argc, char **argv)
{
    static struct eval v = {.questions = 200, .each = 20, .decoded = 64, .seed = 1000};
    struct inst_options *o = &v.engine.engine;
    const struct option rows[] = {
        {"Questions", 0, OPTION_HEADING, NULL, 0, 0, NULL, NULL},
        {"--task", 0, OPTION_LIST, &v.tasks, 0, 0, "TASK",
         "recall, keys, hop, vote or copy; may be given several times; default: recall"},
        {"--text", 0, OPTION_INPUT, &v.text, 0, 0, "FILE",
         "the next tokens of a text: perplexity, and KL to dense"},
        {"--context", 'c', OPTION_NUMBERS, &v.contexts, 64, CONTEXT_MOST, "N,...",
         "tokens of a context; default 4096"},
        {"--questions", 'n', OPTION_U32, &v.questions, 1, 1000000, "N",
         "of a task, in all; default 200"},
        {"--each", 0, OPTION_U32, &v.each, 1, 100000, "N",
         "of them behind one context, where it has as many; default 20"},
        {"--decode", 0, OPTION_U32, &v.decoded, 1, 65536, "N",
         "tokens to predict at the end of each piece of --text; default 64"},
        {"--seed", 0, OPTION_U32, &v.seed, 0, 4294967295.0, "S", "other contexts; default 1000"},
        {"Methods", 0, OPTION_HEADING, NULL, 0, 0, NULL, NULL},
        {"--method", 0, OPTION_LIST, &v.methods, 0, 0, "METHOD",
         "beside dense; may be given several times; default: all (docs/eval.md)"},
        {"--budget", 'b', OPTION_TEXT, &v.budgets, 0, 0, "1/N,...",
         "share of the bytes that dense attention reads; default 1/8"},
        {"--mass", 0, OPTION_TEXT, &v.masses, 0, 0, "P,...",
         "of pages, too: as many bytes as are predicted to hold this share of the softmax"},
        {"--kv-types", 0, OPTION_TEXT, &v.types, 0, 0, "T,...",
         "how the drive's dense and pages hold K and V, of f16, q8, q4; f16 always is"},
        {"--row-cache", 0, OPTION_TEXT, &v.row_cache, 0, 0, "SIZE",
         "a second table, of the drive's methods with a row cache; the first is without"},
        {"Output", 0, OPTION_HEADING, NULL, 0, 0, NULL, NULL},
        {"--csv", 0, OPTION_OUTPUT, &v.csv, 0, 0, "FILE", "the table as numbers"},
        {"--svg", 0, OPTION_OUTPUT, &v.svg, 0, 0, "FILE", "accuracy and KL over bytes read"},
        ENGINE_MODEL_ROWS(v.engine),
        {"--threads", 't', OPTION_U32, &o->threads, 1, 1024, "N",
         "contexts at a time, where there are as many; default: all CPUs"},
        {"--memory", 0, OPTION_SIZE, &o->memory, 0, 0, "SIZE",
         "for everything but weights, ram: drives and what is asked; default: a quarter of what is "
         "available"},
        {"--kv", 0, OPTION_LIST, &v.engine.kv, 0, 0, "WHERE",
         "a directory or ram:SIZE; default: the cache directory"},
        {"--request-cost", 0, OPTION_SIZE, &o->request_cost, 0, 0, "SIZE",
         "what could be read for a request to the disk, of single pages; default: measured"},
        {"--group", 0, OPTION_U32, &o->group, 16, 1024, "T",
         "tokens of a token group, a power of two; default: chosen by the drive"},
        {"--piece", 0, OPTION_U32, &v.piece, 16, 64, "N",
         "of pages: tokens chosen together, a power of two; default: what fills a page"},
        {"--keys", 0, OPTION_U32, &v.keys, 1, 64, "N",
         "of pages: keys kept of each piece; default: one for each token"},
        {"--heads", 0, OPTION_U32, &v.heads, 1, 4096, "N",
         "of pages: KV heads that choose the same tokens; default: for pieces of 16 KiB"},
        {"--bits", 0, OPTION_U32, &v.bits, 1, 2, "N",
         "of pages: bits for each channel of these keys, 1 or 2; default: 2, with --look or "
         "--index-on-disk 1"},
        {"--look", 0, OPTION_U32, &v.look, 1, UINT32_MAX, "N",
         "of pages: keys that a query looks at, the likeliest, where there are many more; default: "
         "all"},
        {"--newest", 0, OPTION_U32, &v.newest, 1, UINT32_MAX, "N",
         "of pages: newest tokens that are always read; default: 16"},
        {"--rest", 0, OPTION_FLAG, &v.rest, 0, 0, NULL,
         "of pages: what is not read is estimated; default: it counts for nothing"},
        {"--index-on-disk", 0, OPTION_FLAG, &v.flash, 0, 0, NULL,
         "of pages: keys lie on the disk, not in DRAM, and reading them counts in --ratio"},
    };
    const struct options options = {
        "eval", NULL, "Compares attention methods: how right answers are, by the bytes read.", rows,
        sizeof rows / sizeof *rows};
    int n, code;
    if (options_parse(&options, argc, argv, &n, &code))
        code = evaluate(&v, &options);
    close_all(&v);
    options_free(&options);
    return code;
}
