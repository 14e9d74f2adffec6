// SPDX-License-Identifier: Apache-2.0
// The rival of `instinfer bench batch`: FlexGen on a CPU, run as another process once per turn by a
// script that prints one line of JSON about its decode (decode_tok_s, disk_read_MB_step).
#ifndef INST_CMD_BENCH_FLEXGEN_H
#define INST_CMD_BENCH_FLEXGEN_H

#include "cmd/options.h"

struct flexgen {
    const char *path;                // of the script; NULL: there is none
    const struct option_list *extra; // arguments of the user, behind ours
    const char *directory;           // on the disk to measure
    char build[64];                  // out: which one it is, after the first turn
};

struct flexgen_turn {
    uint32_t batch, steps;
    uint64_t depth;
    bool host_cache;      // --cpu-cache-compute: attention where the cache comes to, no relay
    double step, read_mb; // out: seconds, MB read from the disk, per step
};

// 0 or an exit code, with the error line printed.
int flexgen_turn(struct flexgen *flexgen, struct flexgen_turn *turn);

#endif
