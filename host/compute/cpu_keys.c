// SPDX-License-Identifier: Apache-2.0
// What queries of the model are like, so that rounding K to blocks changes their products least
// (kernels/kv.h). Measured once, when the model is opened: tokens drawn evenly go through the
// layers, each of them seeing nothing but itself. A property of the model alone: neither prompts
// nor chunks nor threads have a part in it, and whoever opens the model rounds alike.
#include "host/compute/cpu.h"
#include "base/checked.h"

#include <string.h>

enum {
    QUERIES = 128, // of a KV head
    TOKENS_LEAST = 32,
    SPREAD = 4096, // positions, at most
};

struct measure_job {
    const struct compute_cpu *cpu;
    uint32_t layer;
    const float *q;
    size_t rows;
};

static void head_moments(void *arg, size_t head, unsigned worker)
{
    (void)worker;
    const struct measure_job *job = arg;
    const struct compute_cpu *cpu = job->cpu;
    size_t dim = cpu->with.config->head_dim;
    float *m = cpu_keys(cpu, job->layer, head);
    for (size_t row = 0; row < job->rows; row++) {
        const float *q = job->q + row * cpu_q_stride(cpu) + head * cpu->group * dim;
        for (size_t i = 0; i < cpu->group; i++, q += dim)
            for (size_t c = 0; c < dim; c++)
                cpu->with.kernels->axpy(m + kv_triangle(c), q[c], q, c + 1);
    }
}

static void head_factor(void *arg, size_t index, unsigned worker)
{
    (void)worker;
    const struct compute_cpu *cpu = arg;
    size_t dim = cpu->with.config->head_dim;
    kv_factor(cpu->work[WORK_keys] + index * kv_triangle(dim), dim);
}

static void layer_moments(struct compute_cpu *cpu, uint32_t layer, size_t n)
{
    const struct model_config *c = cpu->with.config;
    size_t strip = cpu->with.plan.strip, stride = cpu_q_stride(cpu), dim = c->head_dim, v_stride;
    for (size_t at = 0, rows; at < n; at += rows) {
        struct measure_job job = {.cpu = cpu, .layer = layer};
        const float *v;
        job.rows = rows = min_u64(strip, n - at);
        cpu_queries_of(cpu, layer, at, rows, &job.q, &v, &v_stride);
        pool_run(cpu->with.pool, head_moments, &job, c->kv_heads);
        for (size_t row = 0; row < rows; row++) {
            float *out = cpu->slot[0].work[WORK_q] + (at + row) * stride;
            for (size_t h = 0; h < c->heads; h++)
                memcpy(out + h * dim, v + row * v_stride + h / cpu->group * dim, dim * sizeof *v);
        }
    }
    cpu_finish(&cpu->compute, 0, layer, 0, (uint32_t)n);
}

static uint32_t below(uint32_t *state, uint32_t n)
{
    *state = *state * 1664525 + 1013904223;
    return (uint32_t)((uint64_t)*state * n >> 32);
}

void cpu_measure_queries(struct compute_cpu *cpu)
{
    const struct model_config *c = cpu->with.config;
    const size_t tokens = max_u64(QUERIES / cpu->group, TOKENS_LEAST);
    const uint32_t spread = (uint32_t)min_u64(max_u64(c->context, 1), SPREAD);
    int32_t token[QUERIES];
    uint64_t position[QUERIES];
    uint32_t state = 1;
    void (*tick)(void *) = cpu->with.tick;
    cpu->with.tick = NULL; // who opens has nothing under way
    for (size_t i = 0; i < tokens; i++) {
        token[i] = (int32_t)below(&state, c->vocab);
        position[i] = i * 13 % spread; // angles of all sizes come around
    }
    memset(cpu_keys(cpu, 0, 0), 0,
           (size_t)c->layers * c->kv_heads * kv_triangle(c->head_dim) * sizeof(float));
    for (size_t at = 0, n; at < tokens; at += n) {
        n = min_u64(tokens - at, cpu->with.plan.rows);
        cpu_embed(&cpu->compute, 0,
                  &(struct compute_rows){
                      .n = (uint32_t)n, .token = token + at, .position = position + at});
        for (uint32_t layer = 0; layer < c->layers; layer++)
            layer_moments(cpu, layer, n);
    }
    pool_run(cpu->with.pool, head_factor, cpu, (size_t)c->layers * c->kv_heads);
    cpu->with.tick = tick;
}
