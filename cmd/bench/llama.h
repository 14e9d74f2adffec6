// SPDX-License-Identifier: Apache-2.0
// The rival of `instinfer bench model`: llama.cpp's llama-bench, run as another process once per
// turn.
#ifndef INST_CMD_BENCH_LLAMA_H
#define INST_CMD_BENCH_LLAMA_H

#include "cmd/options.h"

struct llama_bench {
    const char *path;                // NULL: there is none
    const struct option_list *extra; // arguments of the user, behind ours
    char build[64];                  // out: commit that it names, after the first turn
};

struct llama_turn {
    const char *model;
    uint32_t threads, prompt, tokens; // prompt or tokens 0: that test is left out
    uint64_t depth;
    double prefill, decode; // out: seconds per token
};

// 0 or an exit code, with the error line printed.
int llama_bench_turn(struct llama_bench *bench, struct llama_turn *turn);

#endif
