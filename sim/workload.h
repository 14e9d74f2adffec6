// SPDX-License-Identifier: Apache-2.0
// What is asked of a machine: a model's shape, how many sequences, how long they are.
#ifndef INST_SIM_WORKLOAD_H
#define INST_SIM_WORKLOAD_H

#include "base/status.h"

#include <stdint.h>

struct shape {
    const char *name;
    uint32_t layers, heads, kv_heads, head_dim;
    double parameters;
};

struct workload {
    struct shape shape;
    uint32_t batch, input, output; // sequences; tokens of each
};

// NULL: no such shape. By index: NULL behind the last one.
const struct shape *shape_find(const char *name);
const struct shape *shape_at(uint32_t index);

int workload_check(const struct workload *workload, struct inst_msg *msg);

// fp16 everywhere.
static inline double shape_kv_bytes(const struct shape *s) // K and V of one token, all layers
{
    return 4.0 * s->layers * s->kv_heads * s->head_dim;
}
static inline double shape_weight_bytes(const struct shape *s)
{
    return 2 * s->parameters;
}
static inline double workload_kv_bytes(const struct workload *w, double context)
{
    return w->batch * context * shape_kv_bytes(&w->shape);
}

#endif
