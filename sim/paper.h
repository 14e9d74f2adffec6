// SPDX-License-Identifier: Apache-2.0
// The paper's numbers (HPCA 2025, arXiv 2409.04992) beside ours: one row for each number that its
// text states. A row says how it came about: fitted (a constant was chosen by it), held out,
// decided by an assumption, or implied by other rows. Shares of a step are judged by what is not
// KV access: at 98.9 % the share itself cannot be missed.
#ifndef INST_SIM_PAPER_H
#define INST_SIM_PAPER_H

#include "sim/system.h"

enum row_class { ROW_FITTED, ROW_HELD_OUT, ROW_ASSUMED, ROW_IMPLIED };
extern const char *const row_class_names[];

struct paper_row {
    const char *figure, *quantity, *reason; // reason: "" or why it is beyond 10 %
    enum row_class kind;
    double paper, ours;
    double least, most; // of ours, over the ranges of the assumptions, refitted; 0, 0: not computed
};

// A case of the evaluation: which system on which model; batch 0: FlexGen's best.
struct paper_case {
    enum system_id system;
    const char *shape;
    uint32_t batch, drives, gpus;
};

// The testbed of the paper with so many drives and GPUs, the length of its texts.
int paper_machine(struct machine *machine, uint32_t drives, uint32_t gpus, struct inst_msg *msg);
int paper_workload(struct workload *workload, const char *shape, uint32_t batch,
                   struct inst_msg *msg);
int paper_run(struct sim_result *out, const struct paper_case *what,
              const struct constants *constants, struct drive_source *drives, struct inst_msg *msg);
// Its best batch of 4, 8, ... that fits in memory; SIM_flexgen or another.
int paper_best(struct sim_result *out, uint32_t *batch, const struct paper_case *what,
               const struct constants *constants, struct drive_source *drives,
               struct inst_msg *msg);

uint32_t paper_rows(void);
enum row_class paper_row_class(uint32_t i);
bool paper_row_is_phi(uint32_t i); // the share of the pages that SparF reads
// Row i, `ours` computed with these constants.
int paper_row(struct paper_row *out, uint32_t i, const struct constants *constants,
              struct drive_source *drives, struct inst_msg *msg);

// The fitted constants, from the values they have, by least squares over the fitted rows'
// log(ours / paper). `rms`: what is left.
int sim_fit(struct constants *constants, double *rms, struct drive_source *drives,
            struct inst_msg *msg);

// least and most of all paper_rows() rows, whose `ours` are there: every assumption in turn at both
// ends of its range, the constants fitted again.
int paper_ranges(struct paper_row *rows, const struct constants *constants,
                 struct drive_source *drives, struct inst_msg *msg);

#endif
