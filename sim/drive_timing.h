// SPDX-License-Identifier: Apache-2.0
// How long the drives of an array take for one layer of one decode step: flash channels, filters,
// attention engine, FTL cores and DRAM as timelines. Jobs are KV heads of sequences; a piece of
// jobs whose pages fit the staging buffer goes through the phases of its method (channel-indexed K,
// K, V), and with three pieces under way the softmax of one is computed while pages of another are
// read. Whether reads go on while the units compute on what is staged is the profile's `overlap`.
//
// Only the slowest drive is computed, the one with most heads, and of it a sample of pieces; the
// rest is like them, and how far that may be wrong is part of the answer.
#ifndef INST_SIM_DRIVE_TIMING_H
#define INST_SIM_DRIVE_TIMING_H

#include "sim/machine.h"
#include "sim/select.h"
#include "sim/workload.h"

enum method_kind { SIM_DENSE, SIM_SPARF, SIM_PAGES };

struct drive_timing {
    double seconds;
    double read;    // while pages come from flash
    double engine;  // while products hold up the next reads
    double lookup;  // the FTL cores' work, hidden or not
    double softmax; // the softmax units' work, hidden or not
    double bytes;   // read from flash, on this drive
    double dense;   // what dense attention reads
    double channel_bytes, token_bytes;
    double tail_bytes; // K in DRAM that waits for a channel page, on this drive
    double error;      // of seconds, relative: standard error of the sample
};

// `context` tokens of every sequence; heads are divided over machine->drives.
int drive_timing(struct drive_timing *out, const struct machine *machine,
                 const struct workload *workload, enum method_kind method,
                 const struct selection *selection, double context, struct inst_msg *msg);

// The same from elsewhere: remembered, or measured on a real drive in virtual time.
struct drive_source {
    int (*timing)(struct drive_source *source, struct drive_timing *out,
                  const struct machine *machine, const struct workload *workload,
                  enum method_kind method, const struct selection *selection, double context,
                  struct inst_msg *msg);
};

// With recorded selections (NULL: none) for the methods that they are of, instead of what the
// caller says. `inner` NULL: drive_timing().
struct selections;
struct drive_recorded {
    struct drive_source source, *inner;
    const struct selections *sparf, *pages;
};
void drive_recorded_open(struct drive_recorded *recorded, struct drive_source *inner);

// Remembers what `inner` (NULL: drive_timing()) said: fitting asks the same again and again.
struct drive_memory;
int drive_memory_new(struct drive_memory **out, struct drive_source *inner, struct inst_msg *msg);
void drive_memory_free(struct drive_memory *memory);
struct drive_source *drive_memory_source(struct drive_memory *memory);

// KV heads of the drive that has most, and sequences where drives outnumber heads: the array is
// then divided into groups that each have all heads (link/link.h).
uint32_t drive_heads(const struct machine *machine, const struct shape *shape);
uint32_t drive_sequences(const struct machine *machine, const struct workload *workload);

#endif
