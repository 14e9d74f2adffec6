// SPDX-License-Identifier: Apache-2.0
// Inside of the CPU's implementation: what its files share. Every call is done when it returns.
#ifndef INST_HOST_COMPUTE_CPU_H
#define INST_HOST_COMPUTE_CPU_H

#include "host/compute/compute.h"
#include "kernels/kv_keys.h"

// Work for fewer values than this is not worth waking the pool.
enum { PARALLEL_VALUES = 16 * 1024 };

// X(name, what it holds). n = rows of a step, C = those that are attended here, s = strip rows;
// strides are padded to 16 floats. The first ones are there for each slot.
#define WORK_MAP(X)                                                                                \
    X(x, "residual stream [n][width]")                                                             \
    X(q,                                                                                           \
      "queries of a wire [kv_heads][rows][group], then attention outputs [n][heads * head_dim]")   \
    X(partials, "struct partial [C][heads]")                                                       \
    X(rope, "cosines and sines [n][compute_rope_values]")                                          \
    X(stage, "slab of one tile whose tokens lie in two runs")                                      \
    X(norm, "normed input or block output [s][width]")                                             \
    X(t1, "q or gate [s][max(heads * head_dim, ffn)]")                                             \
    X(t2, "k and v, or up [s][max(2 * kv_heads * head_dim, ffn)]")                                 \
    X(rounded, "x of a product as the K types take it [s][rounded_floats of the widest]")          \
    X(keys, "how K is rounded to blocks [layers][kv_heads][kv_triangle(head_dim)]")

enum work_id {
#define WORK_ENUM(name, text) WORK_##name,
    WORK_MAP(WORK_ENUM)
#undef WORK_ENUM
        WORK_COUNT,
    WORK_OF_SLOT = WORK_norm
};

struct region;

struct cpu_slot {
    float *work[WORK_OF_SLOT];
    struct compute_rows rows;
    uint64_t staged; // tokens in stage
};

struct compute_cpu {
    struct compute compute;
    struct compute_setup with;
    size_t group; // query heads of a KV head
    void *memory;
    float *work[WORK_COUNT]; // those of slots are NULL here
    struct cpu_slot slot[COMPUTE_SLOTS];
    struct region *region; // one for each worker
};

// One matrix product of several that share their input: out[i * out_stride + j] = row i of x times
// row j of w, for j < w->rows.
struct product {
    const struct weight *w;
    float *out;
    size_t out_stride;
};

// x: n_rows rows of w->cols floats (the same for all products), x_stride floats apart.
void cpu_matmul(struct compute_cpu *cpu, const struct product *products, size_t n_products,
                const float *x, size_t x_stride, size_t n_rows);

static inline struct compute_cpu *cpu_of(struct compute *compute)
{
    return (struct compute_cpu *)compute;
}

static inline void *cpu_at(struct compute_slice slice)
{
    return (char *)slice.buffer->host + slice.offset;
}

static inline size_t cpu_q_stride(const struct compute_cpu *cpu)
{
    return row_stride((uint64_t)cpu->with.config->heads * cpu->with.config->head_dim);
}

static inline void cpu_tick(const struct compute_cpu *cpu)
{
    if (cpu->with.tick)
        cpu->with.tick(cpu->with.tick_user);
}

// cpu_layers.c
int cpu_embed(struct compute *, uint32_t slot, const struct compute_rows *);
int cpu_qkv(struct compute *, uint32_t slot, uint32_t layer, uint32_t first, uint32_t n,
            const struct compute_wire *, uint32_t n_wires, struct compute_slice faults);
// q and v of rows [first, first + n), a strip at most, as attention would take them, in t1 and t2,
// `q_stride` and `v_stride` floats apart; for cpu_keys.c.
void cpu_queries_of(struct compute_cpu *, uint32_t layer, size_t first, size_t n, const float **q,
                    const float **v, size_t *v_stride);
int cpu_finish(struct compute *, uint32_t slot, uint32_t layer, uint32_t first, uint32_t n);
int cpu_logits(struct compute *, uint32_t slot, const uint32_t *row, uint32_t n,
               struct compute_slice out, uint64_t stride, struct compute_slice faults);
// cpu_keys.c
// Fills WORK_keys, where K is rounded to blocks.
void cpu_measure_queries(struct compute_cpu *);
static inline float *cpu_keys(const struct compute_cpu *cpu, size_t layer, size_t head)
{
    const struct model_config *c = cpu->with.config;
    return cpu->work[WORK_keys] + (layer * c->kv_heads + head) * kv_triangle(c->head_dim);
}
// cpu_attend.c
int cpu_queries(struct compute *, uint32_t slot, uint32_t first, uint32_t n,
                struct compute_slice to);
int cpu_outputs(struct compute *, uint32_t slot, uint32_t first, uint32_t n,
                struct compute_slice from);
int cpu_attend(struct compute *, uint32_t slot, uint32_t layer, uint32_t first, uint32_t n,
               const struct compute_run *, uint32_t n_runs, uint32_t flags);

#endif
