// SPDX-License-Identifier: Apache-2.0
// What run and its chat share: a scheduler with one session and the tokens of its text.
#ifndef INST_CMD_RUN_H
#define INST_CMD_RUN_H

#include "cmd/engine_options.h"
#include "cmd/output.h"
#include "cmd/output_file.h"
#include "cmd/terminal.h"
#include "cmd/trace.h"
#include "instinfer_generate.h"

struct run {
    struct engine_options engine;
    struct inst_sampling sampling;
    const char *prompt, *file;
    struct output_file stats;
    struct trace_file trace;
    const char *system, *template; // of a chat
    uint64_t predict;              // tokens to generate at most, per answer
    struct option_list stops;
    bool ignore_eos, verbose, chat, raw, no_special;

    inst_engine *e;
    inst_scheduler *scheduler;
    inst_sampler *sampler;
    int32_t *tokens; // prompt, then what was generated
    size_t n_tokens;
    struct terminal terminal;
    struct meter meter;
    struct output output;
    struct inst_model_info info;
    struct run_result result;
};

// From now on Ctrl-C is noted instead of ending the program, the first one, or with `again` each,
// and cancels what the engine does. Until run_unwatch_interrupt, before the engine is closed: what
// is left of a drive may have to be waited for.
void run_watch_interrupt(inst_engine *engine, bool again);
void run_unwatch_interrupt(void);
// Whether Ctrl-C was pressed since it was last forgotten.
bool run_interrupted(void);
void run_forget_interrupt(void);

// Generates and prints until something ends it, and says in result.stop_reason what. r->tokens has
// room for all of it. 0 or an exit code, with the error line printed.
int run_generate(struct run *r);

// The whole of --chat, with engine, session and sampler open. The same.
int chat_run(struct run *r);

#endif
