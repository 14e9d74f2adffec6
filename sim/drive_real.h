// SPDX-License-Identifier: Apache-2.0
// The project's own drive as a simulated one: control, FTL, methods and kernels as they are, over
// emulated NAND and timed units, in virtual time. It is filled by WRITE, asked by ATTEND and
// COLLECT, and what it read, wrote and how long it took are its own account. One layer, the heads
// of one drive, and some of the sequences stand for all.
#ifndef INST_SIM_DRIVE_REAL_H
#define INST_SIM_DRIVE_REAL_H

#include "drive/drive.h"
#include "sim/drive_timing.h"

// K and V of tokens [pos, pos + n) of one head, fp16; the query heads of one KV head.
struct drive_content {
    void (*kv)(void *user, uint32_t sequence, uint32_t head, uint64_t pos, uint64_t n, uint16_t *k,
               uint16_t *v);
    void (*query)(void *user, uint32_t sequence, uint32_t head, uint64_t pos, uint32_t group,
                  float *q);
    void *user;
};

struct drive_real_options {
    const char *profile; // of the drive
    uint32_t sequences;  // of the sample, at most the batch
    uint64_t memory;     // that payload and drive may take; 0: 4 GiB
    // NULL, or told of what the drive chooses in the ATTEND over the whole sample. Recorded
    // selections (selection.recorded) take the place of its own.
    drive_selection_fn *selected;
    void *selected_user;
    struct drive_content content;
};

struct drive_real_report {
    struct drive_stats stats; // of one ATTEND over the sample
    double waf;               // of filling it
    double programmed;        // bytes over those of K and V
    double erased;            // bytes of blocks erased when the sample ends, over those of K and V
    double write_rate;        // bytes of K and V per virtual second
    uint64_t steps;           // times the drive was asked
};

int drive_real_run(struct drive_timing *out, struct drive_real_report *report,
                   const struct drive_real_options *options, const struct machine *machine,
                   const struct workload *workload, enum method_kind method,
                   const struct selection *selection, double context, struct inst_msg *msg);

// As a source of times: two contexts are measured for each method, the others lie on the line
// through them.
struct drive_real_line {
    bool known;
    struct workload workload;
    uint32_t drives;
    double context[2];
    struct drive_timing at[2];
    struct drive_real_report report[2];
};
struct drive_real_source {
    struct drive_source source;
    struct drive_real_options options;
    struct drive_real_line lines[3]; // by method
};
void drive_real_source_open(struct drive_real_source *source,
                            const struct drive_real_options *options);

#endif
