// SPDX-License-Identifier: Apache-2.0
// The systems that are compared: ours and the paper's on computational drives, its rivals on host
// memory and SSDs. Each is a model of one prefill and of decode steps at sampled contexts; parts of
// a step that wait for each other are taken in turn on timelines, so that what overlaps follows
// from what is busy. Nothing here knows a figure of the paper.
#ifndef INST_SIM_SYSTEM_H
#define INST_SIM_SYSTEM_H

#include "sim/constants.h"
#include "sim/drive_timing.h"

// X(name on the command line, what)
#define SYSTEMS(X)                                                                                 \
    X(insta, "dense attention in the drives")                                                      \
    X(insta_sparf, "SparF in the drives: r channels, k tokens, K stored twice")                    \
    X(insta_pages, "whole pages in the drives, ranked by an index in their DRAM")                  \
    X(hilos, "exact, near storage: part of the batch as layer inputs X, writes delayed")           \
    X(direct, "KV on plain SSDs, striped and sent to the GPU at the rate of their links: a bound") \
    X(flexgen, "KV on an SSD behind a file system and the page cache")                             \
    X(flexgen_gds, "the same by GPUDirect Storage, without page cache")                            \
    X(flexgen_sparq, "the same with SparQ on the GPU, K stored twice")                             \
    X(deepspeed, "KV in host memory")                                                              \
    X(recompute, "KV in VRAM, what does not fit is recomputed in lock step")                       \
    X(queueing, "KV in VRAM, what does not fit waits (as vLLM does)")

enum system_id {
#define SYSTEM_ENUM(name, what) SIM_##name,
    SYSTEMS(SYSTEM_ENUM)
#undef SYSTEM_ENUM
        SYSTEM_COUNT
};
extern const char *const system_names[SYSTEM_COUNT], *const system_texts[SYSTEM_COUNT];

// Seconds of a decode step, mean over its contexts. They add up to `step` unless parts overlap (two
// GPUs, a profile with overlap).
struct sim_parts {
    double kv;       // K and V on their way: flash reads, or the path to the GPU
    double engine;   // products that hold up the next reads, GPU attention over what was moved
    double transfer; // q, k, v and outputs
    double host;     // framework
    double gpu;      // projections, FFN; recomputation
};

struct sim_result {
    double tokens_per_s, step, prefill;
    struct sim_parts parts;
    double not_kv; // 1 - kv / step
    // Bytes of a decode step, all drives together.
    double flash_read, flash_written, drive_link, gpu_link, vram;
    double dense_bytes;     // what dense attention reads in a step
    double phi;             // flash_read / that
    double tail_bytes;      // drive DRAM that K without a channel page takes, all drives
    double stored, written; // bytes of KV at the end; programmed in the whole run
    double waf, endurance;  // tokens until the cycles are used up
    double x_share;         // hilos: sequences kept as X
    double error;           // relative sampling error of step
    char oom[96];           // "" or what does not fit where
};

// `drives`: where the time of a drive comes from; NULL: drive_timing().
int sim_run(struct sim_result *out, enum system_id system, const struct machine *machine,
            const struct workload *workload, const struct constants *constants,
            struct drive_source *drives, struct inst_msg *msg);

#endif
