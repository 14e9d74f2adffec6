// SPDX-License-Identifier: Apache-2.0
// Generating text, for run and its chat: brings the session to the tokens, samples the next one,
// prints it, until something ends that. Ctrl-C is one of these things.
#include "cmd/run.h"

#include <signal.h>

static volatile sig_atomic_t interrupted, interrupt_again;
static struct sigaction interrupt_before;

static void on_interrupt(int signal)
{
    interrupted = 1;
    if (!interrupt_again)
        sigaction(signal, &interrupt_before, NULL);
}

void run_watch_interrupt(bool again)
{
    struct sigaction action = {.sa_handler = on_interrupt};
    interrupt_again = again;
    sigaction(SIGINT, NULL, &interrupt_before);
    sigaction(SIGINT, &action, NULL);
}

bool run_interrupted(void)
{
    return interrupted;
}

void run_forget_interrupt(void)
{
    interrupted = 0;
}

static bool on_progress(void *user, uint64_t done, uint64_t total)
{
    struct run *r = user;
    terminal_progress(&r->terminal, done, total);
    meter_sample(&r->meter, false);
    return !interrupted;
}

static int sync_session(struct run *r)
{
    struct inst_msg msg = {0};
    struct inst_prefix prefix = {
        .session = r->session, .tokens = r->tokens, .n_tokens = r->n_tokens};
    int err = inst_sync(r->e, &prefix, 1, on_progress, r, &msg);
    if (err == INST_ECANCELLED && interrupted)
        return 0;
    terminal_end_progress(&r->terminal);
    return err ? failed(err, &msg) : 0;
}

int run_generate(struct run *r)
{
    uint64_t made = 0;
    r->result.stop_reason = "error";
    while (true) {
        int code = sync_session(r);
        if (code)
            return code;
        meter_sample(&r->meter, false);
        if (interrupted) {
            r->result.stop_reason = "interrupt";
            return 0;
        }
        if (made == r->predict || r->n_tokens == r->info.context) {
            r->result.stop_reason = made == r->predict ? "length" : "context";
            return 0;
        }
        int32_t token = inst_sample(r->sampler, r->session, r->tokens, r->n_tokens);
        if (inst_token_is_end(r->e, token) && !r->ignore_eos) {
            r->result.stop_reason = "end";
            return 0;
        }
        r->tokens[r->n_tokens++] = token;
        r->result.generated_tokens++;
        made++;
        size_t bytes;
        const char *text = inst_token_text(r->e, token, &bytes);
        if (!output_put(&r->output, text, bytes)) {
            r->result.stop_reason = "stop";
            return 0;
        }
    }
}
