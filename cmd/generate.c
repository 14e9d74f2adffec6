// SPDX-License-Identifier: Apache-2.0
// Generating text, for run and its chat: one generation, and what becomes certain of its text is
// printed until something ends that. Ctrl-C is one of these things.
#include "cmd/run.h"

#include <signal.h>
#include <string.h>

static volatile sig_atomic_t interrupted, interrupt_again;
static struct sigaction interrupt_before;
static inst_engine *volatile interrupt_engine; // NULL: nobody watches

static void on_interrupt(int signal)
{
    interrupted = 1;
    inst_engine_cancel(interrupt_engine, true);
    if (!interrupt_again)
        sigaction(signal, &interrupt_before, NULL);
}

void run_watch_interrupt(inst_engine *engine, bool again)
{
    struct sigaction action = {.sa_handler = on_interrupt};
    interrupt_again = again;
    interrupt_engine = engine;
    sigaction(SIGINT, NULL, &interrupt_before);
    sigaction(SIGINT, &action, NULL);
}

void run_unwatch_interrupt(void)
{
    if (interrupt_engine)
        sigaction(SIGINT, &interrupt_before, NULL);
    interrupt_engine = NULL;
}

bool run_interrupted(void)
{
    return interrupted;
}

void run_forget_interrupt(void)
{
    interrupted = 0;
    inst_engine_cancel(interrupt_engine, false);
}

static bool on_progress(void *user, uint64_t done, uint64_t total)
{
    struct run *r = user;
    terminal_progress(&r->terminal, done, total);
    meter_sample(&r->meter, false);
    return !interrupted;
}

static int open_generation(struct run *r, inst_generation **g)
{
    struct inst_msg msg = {0};
    struct inst_generation_options options = {.size = sizeof options,
                                              .sampler = r->sampler,
                                              .max_tokens = r->predict,
                                              .stops = r->stops.items,
                                              .n_stops = r->stops.n,
                                              .ignore_end = r->ignore_eos,
                                              .whole_kv = true};
    int err = inst_generation_open(g, r->e, r->tokens, r->n_tokens, &options, &msg);
    if (!err)
        err = inst_scheduler_add(r->scheduler, *g, &msg);
    return err ? failed(err, &msg) : 0;
}

// Prints what has become certain. False when the generation shall end.
static bool print_piece(struct run *r, inst_generation *g)
{
    size_t bytes;
    const char *text = inst_generation_text(g, &bytes);
    meter_sample(&r->meter, false);
    return output_put(&r->output, text, bytes);
}

// Nothing follows but what was held back.
static int interrupt(struct run *r, inst_generation *g)
{
    inst_generation_cancel(g);
    int err = inst_scheduler_round(r->scheduler, NULL, NULL, NULL);
    r->result.stop_reason = "interrupt";
    print_piece(r, g);
    return err;
}

static uint64_t generated(const inst_generation *g)
{
    struct inst_usage usage;
    inst_generation_usage(g, &usage);
    return usage.completion_tokens;
}

// Rounds until something ends them. 0 or an exit code.
static int rounds(struct run *r, inst_generation *g)
{
    static const char *const reason[] = {
        [INST_FINISH_END] = "end",
        [INST_FINISH_STOP] = "stop",
        [INST_FINISH_LENGTH] = "length",
        [INST_FINISH_CONTEXT] = "context",
        [INST_FINISH_CANCELLED] = "interrupt",
    };
    enum inst_finish finish;
    do {
        struct inst_msg msg = {0};
        int err = inst_scheduler_round(r->scheduler, on_progress, r, &msg);
        if (err == INST_ECANCELLED && interrupted)
            return interrupt(r, g);
        if (!err)
            err = inst_generation_error(g, &msg);
        if (err || inst_generation_finish(g) || generated(g) == 1)
            terminal_end_progress(&r->terminal);
        else if (generated(g) > 1)
            terminal_generated(&r->terminal, r->e, generated(g));
        bool printed = print_piece(r, g);
        if (err)
            return failed(err, &msg);
        finish = printed ? inst_generation_finish(g) : INST_FINISH_STOP;
    } while (!finish);
    r->result.stop_reason = reason[finish];
    return 0;
}

int run_generate(struct run *r)
{
    inst_generation *g = NULL;
    r->result.stop_reason = "error";
    int code = open_generation(r, &g);
    if (!code)
        code = rounds(r, g);
    if (g) {
        struct inst_usage usage;
        inst_generation_usage(g, &usage);
        size_t n;
        const int32_t *tokens = inst_generation_tokens(g, &n);
        memcpy(r->tokens + r->n_tokens, tokens + r->n_tokens,
               (n - r->n_tokens) * sizeof *r->tokens);
        r->n_tokens = n;
        r->result.generated_tokens += usage.completion_tokens;
    }
    inst_generation_close(g);
    return code;
}
