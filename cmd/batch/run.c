// SPDX-License-Identifier: Apache-2.0
// The work of a batch: lines become requests, their choices generations, as many at a time as there
// are sessions; a line whose choices have all ended becomes an answer in the part file. Memory is
// that of the lines in work, however many the file has.
#include "base/status.h"
#include "cmd/batch/batch.h"
#include "cmd/run.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

// A line in work.
struct entry {
    struct entry *next;
    size_t line; // index
    uint64_t print;
    struct batch_request request;
    int32_t **prompts; // [n_prompts]
    size_t *n_tokens, n_prompts;
    inst_generation **choices; // [n_choices], the first n_open are there
    size_t n_choices, n_open;
};

// Requests that the engine fails in a row until that is no matter of the requests.
enum { FAILED_MOST = 16 };

struct work {
    struct batch *b;
    struct entry *first, **end; // in work, in the order of the file
    size_t next;                // line to be looked at
    size_t done, todo, errors;  // lines of ours: those now and in runs before, all, with errors
    size_t done_before;
    uint64_t tokens, prompts;    // generated in lines that are done; of their prompts
    size_t again, failed_in_row; // lines that are to be tried once more
};

static uint64_t print_of(const char *text, size_t bytes, uint32_t number)
{
    return XXH3_64bits_withSeed(text, bytes, number);
}

static void free_entry(struct entry *entry)
{
    for (size_t i = 0; i < entry->n_open; i++)
        inst_generation_close(entry->choices[i]);
    for (size_t i = 0; i < entry->n_prompts; i++)
        free(entry->prompts[i]);
    free(entry->choices);
    free(entry->prompts);
    free(entry->n_tokens);
    batch_request_free(&entry->request);
    free(entry);
}

static int keep(struct work *w, size_t line, struct batch_answer *answer)
{
    struct batch_line *l = &w->b->lines.line[line];
    int code = answer->no_memory
                   ? fail(EXIT_FAILED, "line %u: out of memory", l->number)
                   : batch_part_add(&w->b->part, l->number, answer->text, answer->n, &l->result);
    batch_answer_free(answer);
    w->done += !code;
    return code;
}

static int keep_error(struct work *w, size_t line, uint64_t print, const char *custom_id,
                      const struct batch_error *error)
{
    struct batch_answer answer = {0};
    batch_answer_error(&answer, print, w->b->lines.line[line].number, custom_id, error);
    w->errors++;
    return keep(w, line, &answer);
}

static void engine_error(struct batch_error *error, int code, const char *text)
{
    *error = (struct batch_error){.code = code == INST_ENOCHAT  ? "no_chat_template"
                                          : code == INST_EINVAL ? "invalid_request"
                                                                : "engine_error"};
    snprintf(error->text, sizeof error->text, "%.255s", text[0] ? text : inst_status_text(code));
}

// Whether something will end and give memory back.
static bool is_busy(const struct work *w)
{
    const struct batch *b = w->b;
    return inst_scheduler_running(b->scheduler) + inst_scheduler_waiting(b->scheduler) > 0;
}

// The tokens of every prompt. 0, INST_ENOMEM when there is no room for now, or another code with
// *error filled.
static int tokenize(struct work *w, struct entry *entry, struct batch_error *error)
{
    struct batch *b = w->b;
    struct batch_request *r = &entry->request;
    struct inst_msg msg = {0};
    size_t n = r->url == BATCH_CHAT ? 1 : r->n_prompts;
    int err = 0;
    if (r->url == BATCH_CHAT && b->no_chat)
        err = inst_fail(&msg, INST_ENOCHAT,
                        "the model has no chat template that is known (see --template)");
    entry->prompts = calloc(n, sizeof *entry->prompts);
    entry->n_tokens = calloc(n, sizeof *entry->n_tokens);
    entry->choices = calloc(n * r->n, sizeof(inst_generation *));
    if (!entry->prompts || !entry->n_tokens || !entry->choices)
        err = inst_fail(&msg, INST_ENOMEM, "out of memory");
    for (size_t i = 0; i < n && !err; i++) {
        const struct batch_prompt *p = r->url == BATCH_CHAT ? NULL : &r->prompts[i];
        if (!p) {
            err = inst_chat_messages(b->e, r->messages, r->n_messages, &entry->prompts[i],
                                     &entry->n_tokens[i], &msg);
        } else if (p->text) {
            err = inst_tokenize(b->e, p->text, strlen(p->text),
                                b->no_special ? INST_TOKENIZE_NO_SPECIAL : 0u, &entry->prompts[i],
                                &entry->n_tokens[i], &msg);
        } else {
            entry->prompts[i] = r->prompts[i].tokens;
            entry->n_tokens[i] = r->prompts[i].n_tokens;
            r->prompts[i].tokens = NULL;
        }
        entry->n_prompts = i + 1;
        if (!err && (!entry->n_tokens[i] || entry->n_tokens[i] > b->info.context)) {
            engine_error(error, INST_EINVAL, "the prompt has no tokens");
            if (entry->n_tokens[i]) {
                error->code = "context_length_exceeded";
                snprintf(error->text, sizeof error->text,
                         "the prompt of %zu tokens does not fit in the context of %llu",
                         entry->n_tokens[i], (unsigned long long)b->info.context);
            }
            return INST_EINVAL;
        }
    }
    if (!err && !batch_request_shrink(r))
        err = inst_fail(&msg, INST_ENOMEM, "out of memory");
    entry->n_choices = n * r->n;
    if (err)
        engine_error(error, err, msg.text);
    return err;
}

// The seed of a line that does not say one: lines draw different numbers.
static uint32_t seed_of(const struct batch *b, uint32_t number)
{
    const uint32_t both[2] = {b->sampling.seed, number};
    return (uint32_t)XXH3_64bits(both, sizeof both);
}

// Takes the next line into work. 0 or an exit code; *full: it has to wait.
static int take_line(struct work *w, bool *full)
{
    struct batch *b = w->b;
    const struct batch_line *line = &b->lines.line[w->next];
    struct batch_error error = {0};
    if (line->bytes > BATCH_LINE_MAX) {
        error.code = "line_too_long";
        snprintf(error.text, sizeof error.text, "it has more than %d bytes", BATCH_LINE_MAX);
        return keep_error(w, w->next++, print_of("", 0, line->number), NULL, &error);
    }
    const char *text = batch_lines_read(&b->lines, w->next);
    struct entry *entry = text ? calloc(1, sizeof *entry) : NULL;
    if (!entry)
        return text ? fail(EXIT_FAILED, "line %u: out of memory", line->number) : EXIT_FAILED;
    entry->line = w->next;
    entry->print = print_of(text, line->bytes, line->number);
    bool ok = batch_request_parse(&entry->request, text, line->bytes, &b->defaults, &error);
    if (ok && line->same_id) {
        error = (struct batch_error){.code = "duplicate_custom_id", .field = "custom_id"};
        snprintf(error.text, sizeof error.text, "is that of line %u", line->same_id);
        ok = false;
    }
    if (ok && !entry->request.seeded)
        entry->request.options.sampling.seed = seed_of(b, line->number);
    int err = ok ? tokenize(w, entry, &error) : 0, code = 0;
    if (err == INST_ENOMEM && is_busy(w)) {
        *full = true;
        free_entry(entry);
        return 0;
    }
    w->next++;
    if (ok && !err) {
        *w->end = entry;
        w->end = &entry->next;
        return 0;
    }
    code = keep_error(w, entry->line, entry->print, entry->request.custom_id, &error);
    free_entry(entry);
    return code;
}

// The next choice of an entry becomes a generation. 0 or INST_E*.
static int open_choice(struct work *w, struct entry *entry, struct inst_msg *msg)
{
    size_t i = entry->n_open, prompt = i / entry->request.n;
    struct inst_generation_options options = entry->request.options;
    options.sampling.seed += (uint32_t)i;
    inst_generation *g;
    int err = inst_generation_open(&g, w->b->e, entry->prompts[prompt], entry->n_tokens[prompt],
                                   &options, msg);
    if (!err)
        err = inst_scheduler_add(w->b->scheduler, g, msg);
    if (err)
        return err;
    entry->choices[entry->n_open++] = g;
    if (entry->n_open % entry->request.n == 0) {
        free(entry->prompts[prompt]);
        entry->prompts[prompt] = NULL;
    }
    return 0;
}

// Whether it says something of the request. Everything else may be different another time.
static bool is_about_request(int code)
{
    return code == INST_EINVAL || code == INST_ERANGE || code == INST_ENOCHAT;
}

// The engine failed an entry. 0 or an exit code.
static int fail_entry(struct work *w, const struct entry *entry, int err, const char *text)
{
    struct batch_line *line = &w->b->lines.line[entry->line];
    struct batch_error error;
    engine_error(&error, err, text);
    if (!is_about_request(err) && !line->failed++) {
        w->again++;
        if (++w->failed_in_row < FAILED_MOST)
            return 0;
        return fail(EXIT_FAILED,
                    "line %u and %d before it failed in a row: %s (%zu of %zu lines are answered; "
                    "the same command goes on)",
                    line->number, FAILED_MOST - 1, error.text, w->done, w->todo);
    }
    return keep_error(w, entry->line, entry->print, entry->request.custom_id, &error);
}

// An entry leaves: it failed with `err`, or all of it is there.
static int drop_entry(struct work *w, struct entry **at, int err, const char *text)
{
    struct entry *entry = *at;
    *at = entry->next;
    if (w->end == &entry->next)
        w->end = at;
    int code = 0;
    if (err) {
        code = fail_entry(w, entry, err, text);
    } else {
        struct batch_answer answer = {0};
        struct inst_usage usage;
        for (size_t i = 0; i < entry->n_choices; i++) {
            inst_generation_usage(entry->choices[i], &usage);
            w->tokens += usage.completion_tokens;
            w->prompts += usage.prompt_tokens;
        }
        batch_answer_write(&answer, w->b->e, entry->print, &entry->request, entry->choices,
                           entry->n_choices);
        code = keep(w, entry->line, &answer);
        w->failed_in_row = 0;
    }
    free_entry(entry);
    return code;
}

// As many generations as there are sessions.
static int feed(struct work *w)
{
    struct batch *b = w->b;
    bool full = false;
    int code = 0;
    while (!code && !full && !run_interrupted() &&
           inst_scheduler_running(b->scheduler) + inst_scheduler_waiting(b->scheduler) <
               b->parallel) {
        struct entry **at = &w->first;
        while (*at && (*at)->n_open == (*at)->n_choices)
            at = &(*at)->next;
        if (*at) {
            struct inst_msg msg = {0};
            int err = open_choice(w, *at, &msg);
            full = err == INST_ENOMEM && is_busy(w);
            if (err && !full)
                code = drop_entry(w, at, err, msg.text);
            continue;
        }
        while (w->next < b->lines.n &&
               (!batch_is_ours(b, w->next) || b->lines.line[w->next].result))
            w->next++;
        if (w->next == b->lines.n && w->again && !w->first) {
            w->next = w->again = 0;
            continue;
        }
        if (w->next == b->lines.n)
            return 0;
        code = take_line(w, &full);
    }
    return code;
}

static int collect(struct work *w)
{
    int code = 0;
    for (struct entry **at = &w->first; *at && !code;) {
        struct entry *entry = *at;
        struct inst_msg msg = {0};
        size_t ended = 0;
        int err = 0;
        for (size_t i = 0; i < entry->n_open && !err; i++) {
            err = inst_generation_error(entry->choices[i], &msg);
            ended += inst_generation_finish(entry->choices[i]) != INST_FINISH_NOT;
        }
        if (err) {
            code = drop_entry(w, at, err, msg.text);
        } else if (ended == entry->n_choices) {
            code = drop_entry(w, at, 0, NULL);
        } else {
            at = &entry->next;
        }
    }
    return code;
}

static void show(struct work *w)
{
    uint64_t tokens = w->tokens;
    for (const struct entry *entry = w->first; entry; entry = entry->next)
        for (size_t i = 0; i < entry->n_open; i++) {
            struct inst_usage usage;
            inst_generation_usage(entry->choices[i], &usage);
            tokens += usage.completion_tokens;
        }
    terminal_batch(&w->b->terminal, w->b->e, w->done, w->todo, w->done - w->done_before, tokens);
}

static bool on_progress(void *user, uint64_t done, uint64_t total)
{
    struct work *w = user;
    (void)done, (void)total;
    meter_sample(&w->b->meter, false);
    if (w->b->terminal.bar)
        show(w);
    return !run_interrupted();
}

static int rounds(struct work *w)
{
    struct batch *b = w->b;
    for (;;) {
        struct inst_msg msg = {0};
        int code = feed(w);
        if (code || run_interrupted() || !w->first)
            return code;
        int err = inst_scheduler_round(b->scheduler, on_progress, w, &msg);
        if (err == INST_ECANCELLED && run_interrupted())
            return 0;
        if (err)
            return failed(err, &msg);
        code = collect(w);
        if (code)
            return code;
    }
}

int batch_run(struct batch *b)
{
    struct work w = {.b = b};
    w.end = &w.first;
    for (size_t i = 0; i < b->lines.n; i++)
        if (batch_is_ours(b, i)) {
            w.todo++;
            w.done += b->lines.line[i].result != 0;
        }
    w.done_before = w.done;
    run_watch_interrupt(b->e, false);
    int code = rounds(&w);
    terminal_end_progress(&b->terminal);
    if (!code && run_interrupted())
        code =
            fail(EXIT_INTERRUPTED, "%zu of %zu lines are answered; the same command goes on (%s)",
                 w.done, w.todo, b->part.path);
    if (!code && b->errors + w.errors)
        warn("%zu of %zu lines are answered with an error", b->errors + w.errors, w.todo);
    b->result.batch = true;
    b->result.stop_reason = run_interrupted() ? "interrupt" : "end";
    b->result.lines = w.done - w.done_before;
    b->result.failed_lines = w.errors;
    b->result.prompt_tokens = w.prompts;
    b->result.generated_tokens = w.tokens;
    if (b->terminal.lines && !code)
        terminal_batch_summary(&b->terminal, b->e, w.done - w.done_before, w.tokens);
    while (w.first) {
        struct entry *entry = w.first;
        w.first = entry->next;
        free_entry(entry);
    }
    return code;
}
