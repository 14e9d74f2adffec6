// SPDX-License-Identifier: Apache-2.0
// The memory plan: from a budget and a model to chunk, buffers, token group and the drive's DRAM,
// or to a refusal that says what would be needed. Pure arithmetic: no allocation, no system call.
//
//   budget = fixed overhead + tables + text + sessions + buffers + drive
//
// fixed:    what no budget sees: libc, relocations, stacks and scratch of the workers.
// tables:   indexes of file and vocabulary, known after loading.
// text:     prompt text and token lists of the caller, which lie in the same process.
// sessions: tokens, logits and the sampler's candidates.
// buffers:  activations of a chunk or a batch, KV in transit.
#ifndef INST_HOST_ENGINE_PLAN_H
#define INST_HOST_ENGINE_PLAN_H

#include "drive/drive.h"
#include "host/model/config.h"

// What a session has in the engine's own tables.
enum { PLAN_SESSION_BYTES = 512 };

// X(name, what it holds). n = rows of a step, C = chunk, of which all segments of prompts in a step
// together have no more, s = strip rows; strides are padded to 16 floats.
#define BUFFER_MAP(X)                                                                              \
    X(x, "residual stream, fp32 [n][width]")                                                       \
    X(q, "queries of prompts [C][heads][head_dim], then attention outputs [n][heads][head_dim]")   \
    X(partials, "struct partial [C][heads]")                                                       \
    X(segment_of, "the segment of each row, u32 [n]")                                              \
    X(rope, "cosines and sines [n][plan_rope_values]")                                             \
    X(norm, "normed input or block output [s][width]")                                             \
    X(t1, "q or gate [s][max(heads * head_dim, ffn)]")                                             \
    X(t2, "k and v, or up [s][max(2 * kv_heads * head_dim, ffn)]")                                 \
    X(rounded, "x of a product as the K types take it [s][rounded_floats of the widest]")          \
    X(slab0, "data of a layer's WRITE: the chunk's K, V")                                          \
    X(slab1, "the same for the next layer")                                                        \
    X(piece0, "earlier K, V of one piece")                                                         \
    X(piece1, "the same for the next piece")                                                       \
    X(stage, "slab of one tile whose tokens are partly stored, partly the chunk's own")            \
    X(attend_table, "table of an ATTEND")                                                          \
    X(attend_in, "its data: q, k, v")                                                              \
    X(attend_out, "what its COLLECT returns")                                                      \
    X(logits, "logits of several rows [l][vocab]")

enum buffer_id {
#define BUFFER_ENUM(name, text) BUFFER_##name,
    BUFFER_MAP(BUFFER_ENUM)
#undef BUFFER_ENUM
        BUFFER_COUNT
};

struct plan_input {
    uint64_t memory;        // --memory
    uint64_t tables;        // already taken from the budget
    uint64_t context;       // tokens
    uint64_t kv_limit;      // 0: what the context needs
    uint64_t row_cache;     // bytes; 0: all that is left; UINT64_MAX: none, also for memory drives
    uint32_t sessions;      // alive at a time
    uint32_t threads;       // 0: up to max_threads, fewer when memory is short
    uint32_t max_threads;   // CPUs of the process
    uint32_t group, chunk;  // 0: to be chosen
    uint32_t method;        // enum attend_method
    uint32_t page_channels; // 0: the drive chooses
    bool rounds_x;          // some weights take x rounded
};

struct engine_plan {
    uint32_t threads, chunk, group;
    uint32_t mixed_chunk;          // the part of a chunk for a step in which others decode
    uint32_t rows;                 // of a step: a chunk and a decode row of every other session
    uint32_t strip;                // rows that a matrix product takes at a time
    uint32_t piece;                // tokens of one READ; multiple of the tile
    uint32_t logits_rows;          // rows of the logits buffer
    uint64_t buffer[BUFFER_COUNT]; // bytes
    uint64_t scratch;              // bytes for each worker
    uint64_t fixed;                // scratch of all workers included
    uint64_t text, sessions, buffers;
    uint64_t drive;    // the drive's DRAM
    uint64_t needed;   // all of it
    uint64_t capacity; // flash bytes
    uint64_t kv_bytes; // of these, what full contexts take when each token is written once
    struct space_config space;
    struct flash_geometry geometry;
};

// INST_ENOMEM when the budget is too small: the message says what would do.
int engine_plan(struct engine_plan *plan, const struct model_config *config,
                const struct plan_input *input, struct inst_msg *msg);

// Floats of the rope table for one position: a second set for layers whose angles are others.
static inline uint64_t plan_rope_values(const struct model_config *config)
{
    return (uint64_t)config->rope_dims * (config->rope_window_base > 0 ? 2 : 1);
}

// For people: "5.3M". `out` holds 24 bytes.
const char *plan_bytes_text(uint64_t bytes, char out[24]);

#endif
