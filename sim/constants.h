// SPDX-License-Identifier: Apache-2.0
// What no data sheet and no table of the paper states. Fitted: found by sim_fit() from rows of
// OPT-13B on one drive, and committed. Assumed: chosen, with the range in which it could as well
// be; the paper's text decides none of them. Both are counted and printed with every result.
// Stated: what a method is told to do.
#ifndef INST_SIM_CONSTANTS_H
#define INST_SIM_CONSTANTS_H

#include <stddef.h>
#include <stdint.h>

enum constant_kind { CONSTANT_FITTED, CONSTANT_ASSUMED, CONSTANT_STATED };

// X(kind, name, value, least, most, what)
#define CONSTANTS(X)                                                                               \
    X(FITTED, command_ns, 4830, 100, 1e6,                                                          \
      "host framework, ns per sequence, layer and KV head, one after another")                     \
    X(FITTED, path_rate, 1.659e9, 1e7, 1e11,                                                       \
      "FlexGen: bytes/s from page cache to GPU (file map, pinned buffer)")                         \
    X(FITTED, dram_path_rate, 8.907e9, 1e7, 1e12, "DeepSpeed: bytes/s from host memory to GPU")    \
    X(FITTED, swap_rate, 0.2681e9, 1e6, 1e11, "DeepSpeed: bytes/s once the system swaps")          \
    X(ASSUMED, layer_ns, 2e6, 0, 4e6, "host framework, ns per layer and step")                     \
    X(ASSUMED, filesystem_rate, 4.5e9, 3e9, 6e9, "SSD through a file system, bytes/s")             \
    X(ASSUMED, direct_rate, 5.5e9, 3e9, 7e9, "SSD to GPU by GPUDirect Storage, bytes/s")           \
    X(ASSUMED, page_cache, 1, 0, 1, "FlexGen: memory beside the weights caches pages (LRU)")       \
    X(ASSUMED, micro_batches, 2, 1, 4, "of the pipeline of 2 GPUs")                                \
    X(ASSUMED, score_copies, 3, 1, 4, "attention scores that FlexGen's prefill holds in VRAM")     \
    X(ASSUMED, sparq_bytes, 0.125, 0.125, 0.1875,                                                  \
      "share of the KV bytes that FlexGen-SparQ moves")                                            \
    X(ASSUMED, sparq_store, 1.5, 1, 1.5, "KV bytes that FlexGen-SparQ stores (1.5: K twice)")      \
    X(STATED, channel_share, 0.125, 0.01, 1, "SparF: r / head_dim; the paper: about 1/8")          \
    X(STATED, token_share, 0.125, 0.01, 1, "SparF: k / tokens; the paper: about 1/8")              \
    X(ASSUMED, page_channels, 2, 2, 8, "channels of K that share a page; the paper: 2 to 8")       \
    X(ASSUMED, run, 4.633, 1.143, 9.3,                                                             \
      "SparF: mean run of neighbours among chosen tokens (docs/sim.md)")                           \
    X(ASSUMED, tail_in_dram, 1, 0, 1, "K without a channel page yet is ranked from DRAM")          \
    X(ASSUMED, flexgen_write_rate, 1.5e9, 0.5e9, 3e9, "FlexGen: bytes/s of prefill writes")        \
    X(ASSUMED, recompute_every, 3.2, 1, 10, "Recompute, lock step: tokens between recomputations") \
    X(STATED, pages_share, 0.125, 0.02, 1, "pages: share of the pages that are read, ours")

enum constant_id {
#define CONSTANT_ENUM(kind, name, value, least, most, what) CONSTANT_##name,
    CONSTANTS(CONSTANT_ENUM)
#undef CONSTANT_ENUM
        CONSTANT_COUNT
};

struct constants {
#define CONSTANT_FIELD(kind, name, value, least, most, what) double name;
    CONSTANTS(CONSTANT_FIELD)
#undef CONSTANT_FIELD
};

struct constant_info {
    enum constant_kind kind;
    const char *name, *what;
    double value, least, most;
};
extern const struct constant_info constant_infos[CONSTANT_COUNT];

void constants_default(struct constants *constants);
static inline double *constant_at(struct constants *constants, uint32_t i)
{
    return (double *)constants + i;
}

#endif
