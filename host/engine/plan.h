// SPDX-License-Identifier: Apache-2.0
// The memory plan: from a budget and a model to chunk, buffers, token group and the drive's DRAM,
// or to a refusal that says what would be needed. Pure arithmetic: no allocation, no system call.
//
//   budget = fixed overhead + tables + text + sessions + buffers + array + drives
//
// fixed:    what no budget sees: libc, relocations, stacks and scratch of the workers.
// tables:   indexes of file and vocabulary, known after loading.
// text:     prompt text and token lists of the caller, which lie in the same process.
// sessions: tokens, as many as are likely to live at a time, logits and the sampler's candidates.
// buffers:  activations of a chunk or a batch, KV in transit.
// array:    what a drive array adds: the drives' parts of commands.
// drives:   their DRAM. Each has its share of what is left, by the heads that it holds.
#ifndef INST_HOST_ENGINE_PLAN_H
#define INST_HOST_ENGINE_PLAN_H

#include "drive/drive.h"
#include "host/compute/compute.h"
#include "host/model/config.h"
#include "link/link.h"

// What a session has in the engine's own tables.
enum { PLAN_SESSION_BYTES = 1024 };

// X(name, where, what it holds). n = rows of a step, C = chunk, of which all segments of prompts in
// a step together have no more. What else computing takes is its own (host/compute). Those that a
// drive writes or reads must be the host's: where the device's memory is not, `slab_out` and
// `piece_in` lie between.
#define BUFFER_MAP(X)                                                                              \
    X(tokens, PINNED, "of each row, i32 [n]")                                                      \
    X(positions, PINNED, "of each row, u64 [n]")                                                   \
    X(wires, PINNED, "where q, K and V of a layer go [sessions + 1]")                              \
    X(faults, PINNED, "of each row, u32 [n]")                                                      \
    X(slab, DEVICE,                                                                                \
      "data of a layer's WRITEs: K, V of the host rows; the same for the next layer")              \
    X(slab_out, PINNED, "the same on its way out")                                                 \
    X(piece, DEVICE, "earlier K, V of one piece, and of the next one")                             \
    X(piece_in, PINNED, "the same on its way in")                                                  \
    X(attend_table, PINNED, "table of an ATTEND")                                                  \
    X(attend_in, PINNED, "its data: q, k, v")                                                      \
    X(attend_out, PINNED, "what its COLLECT returns")                                              \
    X(logits, PINNED, "logits of several rows [l][vocab]")

enum buffer_id {
#define BUFFER_ENUM(name, where, text) BUFFER_##name,
    BUFFER_MAP(BUFFER_ENUM)
#undef BUFFER_ENUM
        BUFFER_COUNT
};

// A place for KV.
struct plan_place {
    uint64_t limit;    // bytes it has; 0: no limit of its own
    bool in_place;     // memory, or nothing at all: a row cache would be of no use
    bool has_geometry; // it is a device with one of its own
    struct flash_geometry geometry;
};

struct plan_input {
    uint64_t memory;                 // --memory
    uint64_t tables;                 // already taken from the budget
    uint64_t context;                // tokens
    uint64_t kv_limit;               // 0: what the context needs
    uint64_t row_cache;              // bytes; 0: all that is left; UINT64_MAX: none
    const struct plan_place *places; // [drives]; NULL: without limits
    uint32_t drives;                 // 0: 1
    uint32_t sessions;               // alive at a time
    uint32_t threads;                // 0: up to max_threads, fewer when memory is short
    uint32_t max_threads;            // CPUs of the process
    uint32_t group, chunk;           // 0: to be chosen
    uint32_t method;                 // enum attend_method
    uint32_t page_channels;          // 0: the drive chooses
    uint32_t piece_tokens;           // the same
    uint32_t piece_keys;             // the same
    uint32_t piece_heads;            // the same
    uint32_t piece_look;             // 0: all keys
    uint32_t piece_bits;             // 0: the drive chooses
    bool piece_flash;
    uint32_t kv_type;       // enum kv_type
    uint32_t request_bytes; // of the drives; 0: measured
    bool rounds_x;          // some weights take x rounded
    bool host_attention;    // decode rows attend on the host, as prompts do
    bool apart;             // the memory of what computes is not the host's
};

// One drive of the plan.
struct plan_drive {
    uint32_t heads;
    struct flash_geometry geometry;
    uint64_t dram;
    uint64_t row_cache; // as in drive_limits; UINT64_MAX: none
    uint64_t capacity;  // flash bytes
    uint64_t kv_bytes;  // of these, what full contexts take when each token is written once
};

struct engine_plan {
    uint32_t threads, chunk, group;
    uint32_t mixed_chunk;          // the part of a chunk for a step in which others decode
    uint32_t rows;                 // of a step: a chunk and a decode row of every other session
    uint32_t host_rows;            // those that attend on the host: the chunk, or all of them
    uint32_t strip;                // rows that a matrix product takes at a time
    uint32_t piece;                // tokens of one READ; multiple of the tile
    uint32_t logits_rows;          // rows of the logits buffer
    uint64_t buffer[BUFFER_COUNT]; // bytes
    uint64_t slab, piece_bytes;    // of one slab and one piece
    uint64_t compute;              // what computing takes beside them
    uint64_t scratch;              // bytes for each worker
    uint64_t fixed;                // scratch of all workers included
    uint64_t tokens;               // in the lists of all sequences together
    uint64_t text, sessions, buffers;
    uint64_t array;            // what a drive array takes beside its drives
    uint64_t drive;            // the drives' DRAM
    uint64_t needed;           // all of it; of a refused plan what would do, text included
    uint64_t capacity;         // flash bytes of all drives
    uint64_t kv_bytes;         // of these, what full contexts take when each token is written once
    struct space_config space; // of all heads
    uint32_t drives;
    struct plan_drive part[LINK_ARRAY_MOST]; // [drives]
};

// INST_ENOMEM when the budget is too small: the message says what would do.
int engine_plan(struct engine_plan *plan, const struct model_config *config,
                const struct plan_input *input, struct inst_msg *msg);

// Other drives for a plan whose buffers are there already, and stay.
int engine_plan_drives(struct engine_plan *plan, const struct model_config *config,
                       const struct plan_input *input, struct inst_msg *msg);

// The part of it that those who compute need.
struct compute_plan engine_compute_plan(const struct engine_plan *plan,
                                        const struct plan_input *input);

// What one drive keeps of a sequence of so many tokens, when each is written once. False: too much.
bool plan_flash_bytes(const struct engine_plan *plan, uint32_t drive, uint64_t tokens,
                      uint64_t *bytes);

// Where the part of one micro-batch ends and the next one's begins, in bytes.
static inline uint64_t plan_attend_align(uint64_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

#endif
