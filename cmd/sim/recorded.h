// SPDX-License-Identifier: Apache-2.0
// instinfer sim --trace-selections: recorded selections of real runs, one file for a method.
#ifndef INST_CMD_SIM_RECORDED_H
#define INST_CMD_SIM_RECORDED_H

#include "cmd/options.h"
#include "sim/constants.h"
#include "sim/drive_timing.h"
#include "sim/selections.h"

enum { RECORDED_MAX = 2 };

struct sim_recorded {
    struct drive_recorded drive;
    struct selections *files[RECORDED_MAX];
    const struct option_list *paths;
};

// Reads them; an exit code. Then `recorded->drive.source` asks the model, or its `inner`, with
// them.
int sim_recorded_open(struct sim_recorded *recorded, const struct option_list *paths);
void sim_recorded_close(struct sim_recorded *recorded);
// A line for each: what it holds, what its own run read, and what that is in pages of
// `page_tokens` tokens of this model, beside the statistical model.
int sim_recorded_print(const struct sim_recorded *recorded, uint32_t page_tokens);
// What table III's phi would be with them, printed.
int sim_recorded_phi(struct sim_recorded *recorded, const struct constants *constants);

#endif
