// SPDX-License-Identifier: Apache-2.0
// The model's arithmetic behind one table, at the height of the parts of a layer: CPU now, a GPU
// later. Whoever calls says which rows, where q, K and V go and where attention comes from, and
// knows neither tiles nor kernels. Every implementation keeps row invariance (contract point 9):
// what a row gives depends on that row alone.
//
// Work is put into queues and may be done later; a point says when. Until then nobody but the
// device touches what the work reads and writes; what a call got by pointer (wires, runs, rows of
// logits) it has read when it returns, but compute_rows' arrays, which stay until the slot's next
// embed. Work of one queue is done in the order of the calls. One thread calls.
//
// A call gives 0 or a code; after a loss of the device every call gives the same one and nothing is
// done any more.
#ifndef INST_HOST_COMPUTE_COMPUTE_H
#define INST_HOST_COMPUTE_COMPUTE_H

#include "base/budget.h"
#include "base/pool.h"
#include "host/compute/fault.h"
#include "host/model/config.h"
#include "kernels/kernels.h"

struct compute;

enum compute_place {
    PLACE_DEVICE, // the device's memory; the host touches it only where `host` is not NULL
    PLACE_PINNED, // the host's memory, which the device uses in place
};
enum compute_queue { QUEUE_MAIN, QUEUE_IN, QUEUE_OUT, COMPUTE_QUEUES };
enum { COMPUTE_SLOTS = 2 };

struct compute_buffer {
    void *host; // NULL: not for the host
    uint64_t bytes;
};

struct compute_slice {
    struct compute_buffer *buffer;
    uint64_t offset; // bytes
};

struct compute_point {
    uint32_t queue;
    uint64_t value;
};

// The rows of a step. Rows from `own` on are attended by attend(), those before it elsewhere.
struct compute_rows {
    uint32_t n, own;
    const int32_t *token;     // [n]
    const uint64_t *position; // [n]
};

// Where q (fp32), K and V (fp16; in spaces of blocks q and K are turned, K and V rounded, so that
// who attends here sees what the drive stores: kernels/kv.h) of rows [first, first + n) go, in the
// order of the wire. Without q.buffer it stays for attend(). Distances count elements; heads of q
// follow each other.
struct compute_wire {
    uint32_t first, n;
    struct compute_slice q, k, v;
    uint64_t q_row, kv_row, kv_head;
};

// Consecutive tokens in a slab: [kv_heads]{K [slab_tokens][head_dim], V the same}, fp16.
struct compute_run {
    struct compute_slice slab;
    uint64_t slab_tokens;
    uint64_t offset; // of the first token in the slab
    uint64_t pos, tokens;
};

enum { ATTEND_FIRST = 1, ATTEND_LAST = 2 };
enum { COMPUTE_BUSY = 1 };

struct compute_ops {
    int (*buffer_new)(struct compute *, uint64_t bytes, enum compute_place, const char *what,
                      struct compute_buffer **out, struct inst_msg *);
    void (*buffer_free)(struct compute *, struct compute_buffer *); // NULL is fine

    // QUEUE_MAIN. `slot`: which of the steps in flight.
    // Embeddings of all rows, and what their positions need.
    int (*embed)(struct compute *, uint32_t slot, const struct compute_rows *);
    // Norm, products, rope of rows [first, first + n), which the wires cover in order. Word r of
    // `faults` tells of row r.
    int (*qkv)(struct compute *, uint32_t slot, uint32_t layer, uint32_t first, uint32_t n,
               const struct compute_wire *, uint32_t n_wires, struct compute_slice faults);
    // Queries of rows [first, first + n), one wire whose q stayed, with positions that follow each
    // other, attend over runs, in one call or several: each goes on where the one before it ended,
    // and the first begins at a multiple of ATTENTION_TILE. FIRST begins anew, LAST makes outputs;
    // they are 0 where there was no token.
    int (*attend)(struct compute *, uint32_t slot, uint32_t layer, uint32_t first, uint32_t n,
                  const struct compute_run *, uint32_t n_runs, uint32_t flags);
    // For those who attend elsewhere: the queries of a wire whose q stayed, [kv_heads][n][heads of
    // one KV head][head_dim], and attention outputs of rows, [n][heads][head_dim].
    int (*queries)(struct compute *, uint32_t slot, uint32_t first, uint32_t n,
                   struct compute_slice to);
    int (*outputs)(struct compute *, uint32_t slot, uint32_t first, uint32_t n,
                   struct compute_slice from);
    // The rest of the layer for rows [first, first + n), from their attention outputs.
    int (*finish)(struct compute *, uint32_t slot, uint32_t layer, uint32_t first, uint32_t n);
    // Logits of n rows, a strip at most, `stride` floats apart. Word i of `faults`: of row[i].
    int (*logits)(struct compute *, uint32_t slot, const uint32_t *row, uint32_t n,
                  struct compute_slice out, uint64_t stride, struct compute_slice faults);

    int (*copy)(struct compute *, enum compute_queue, struct compute_slice to,
                struct compute_slice from, uint64_t bytes);

    // Order. A point is behind all that its queue was given before; a gate is one that the host
    // passes. NULL: what is called is done when the call returns, so a gate would never open.
    int (*record)(struct compute *, enum compute_queue, struct compute_point *out);
    int (*gate)(struct compute *, struct compute_point *out);
    int (*after)(struct compute *, enum compute_queue, struct compute_point); // it waits there
    void (*open)(struct compute *, struct compute_point gate);
    // 0, COMPUTE_BUSY, or how the device was lost, with *msg.
    int (*done)(struct compute *, struct compute_point, uint64_t max_wait_ns, struct inst_msg *);

    // Opens every gate and returns when nothing is under way; what was, may be dropped. Only
    // buffer_free and close come after it.
    void (*stop)(struct compute *);
    void (*close)(struct compute *);
};

struct compute {
    const struct compute_ops *ops;
};

// What an engine lets compute: the rows that are planned for. All of it stays the engine's.
struct compute_plan {
    uint32_t rows, own_rows; // of a step; of these attend()'s
    uint32_t strip;          // that a product takes at a time: 64 at most
    uint32_t slots;          // steps in flight
    bool rounds_x;           // some weights take x rounded
    uint32_t kv_type;        // enum kv_type: K and V are rounded so
};

struct compute_setup {
    struct compute_plan plan;
    const struct model_config *config;
    const struct model_weights *weights;
    const double *rope_freq; // angle per position of pair i; of both sets where there are two
    const struct kernels *kernels;
    struct pool *pool;
    struct budget *budget;
    // Called by who computes in the caller's thread, between two pieces of work.
    void (*tick)(void *user);
    void *tick_user;
};

// A sort of device. `apart`: what lies in PLACE_DEVICE is not for the host.
struct compute_kind {
    const char *name;
    bool apart;
    int (*open)(struct compute **out, const struct compute_setup *, struct inst_msg *);
};

extern const struct compute_kind compute_cpu;

// What compute_cpu takes of the budget when it is opened. False: it overflows.
bool compute_cpu_bytes(const struct model_config *config, const struct compute_plan *plan,
                       uint64_t *bytes);

// Floats of the rope table for one position: a second set for layers whose angles are others.
static inline uint64_t compute_rope_values(const struct model_config *config)
{
    return (uint64_t)config->rope_dims * (config->rope_window_base > 0 ? 2 : 1);
}

// First token that a layer's query at `position` sees.
static inline uint64_t compute_window_start(const struct model_config *config, uint32_t layer,
                                            uint64_t position)
{
    uint32_t window = model_layer_window(config, layer);
    return window && position >= window ? position + 1 - window : 0;
}

// Floats between rows of n.
static inline size_t row_stride(uint64_t n)
{
    return (size_t)((n + 15) / 16 * 16);
}

static inline struct compute_slice compute_at(struct compute_slice slice, uint64_t bytes)
{
    return (struct compute_slice){slice.buffer, slice.offset + bytes};
}

static inline void compute_close(struct compute *compute)
{
    if (compute)
        compute->ops->close(compute);
}

#endif
