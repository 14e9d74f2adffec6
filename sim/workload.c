// SPDX-License-Identifier: Apache-2.0
#include "sim/workload.h"

#include <string.h>

static const struct shape shapes[] = {
    {"opt-13b", 40, 40, 40, 128, 12.85e9},      {"opt-30b", 48, 56, 56, 128, 29.97e9},
    {"llama-2-13b", 40, 40, 40, 128, 13.02e9},  {"llama-3.1-8b", 32, 32, 8, 128, 8.03e9},
    {"llama-3.1-70b", 80, 64, 8, 128, 70.55e9}, {"qwen2.5-32b", 64, 40, 8, 128, 32.76e9},
};

const struct shape *shape_at(uint32_t index)
{
    return index < sizeof shapes / sizeof *shapes ? &shapes[index] : NULL;
}

const struct shape *shape_find(const char *name)
{
    const struct shape *s = NULL;
    for (uint32_t i = 0; (s = shape_at(i)) && strcmp(s->name, name);)
        i++;
    return s;
}

int workload_check(const struct workload *w, struct inst_msg *msg)
{
    const struct shape *s = &w->shape;
    if (!s->layers || s->layers > 10000 || !s->heads || s->heads > 10000 || !s->kv_heads ||
        s->heads % s->kv_heads || !s->head_dim || s->head_dim > 4096 ||
        !(s->parameters >= 1e3 && s->parameters <= 1e14))
        return inst_fail(msg, INST_EINVAL, "a model of %u layers, %u/%u heads of %u, %g parameters",
                         s->layers, s->heads, s->kv_heads, s->head_dim, s->parameters);
    if (!w->batch || w->batch > 1 << 20 || !w->input || !w->output || w->input > 1 << 24 ||
        w->output > 1 << 24)
        return inst_fail(msg, INST_EINVAL, "%u sequences of %u + %u tokens", w->batch, w->input,
                         w->output);
    return 0;
}
