// SPDX-License-Identifier: Apache-2.0
// The CPU implementation: its memory, and matrix products. Outputs (weight rows) are cut into
// blocks, and the workers of the pool take blocks. A block is computed for all rows of x by one
// kernel call, so each weight is read once per call from memory and the result does not depend on
// who computed it. Types that want x rounded share one rounding of it.
//
// Every worker has a region of neighbouring blocks and helps others when it is through: what a
// kernel prefetches at the end of a block is then the worker's own next block, and workers meet at
// the same counter only at the end.
#include "host/compute/cpu.h"
#include "base/checked.h"

#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

struct region {
    alignas(64) _Atomic size_t next; // block
    size_t end;
};

struct matmul_job {
    struct compute_cpu *cpu;
    const struct product *products;
    size_t n_products;
    const float *x;
    size_t x_stride, n_rows;
    uint64_t block;   // outputs per item
    unsigned regions; // and items
};

static void matmul_block(const struct matmul_job *job, size_t block, unsigned worker)
{
    const struct product *p = job->products;
    uint64_t blocks;
    while (block >= (blocks = div_round_up(p->w->rows, job->block))) {
        block -= blocks;
        p++;
    }
    uint64_t first = block * job->block;
    uint64_t count = min_u64(job->block, p->w->rows - first);
    bool rounds = kernel_rounds_x(p->w->type);
    const float *x = rounds ? job->cpu->work[WORK_rounded] : job->x;
    size_t x_stride = rounds ? rounded_floats(p->w->cols) : job->x_stride;
    job->cpu->with.kernels->matmul(p->w, first, count, x, x_stride, job->n_rows, p->out + first,
                                   p->out_stride, pool_scratch(job->cpu->with.pool, worker));
}

// Takes blocks until there are none, of its own region first.
static void matmul_item(void *arg, size_t item, unsigned worker)
{
    const struct matmul_job *job = arg;
    for (size_t i = 0; i < job->regions; i++) {
        struct region *r = &job->cpu->region[(item + i) % job->regions];
        size_t block;
        while ((block = atomic_fetch_add_explicit(&r->next, 1, memory_order_relaxed)) < r->end)
            matmul_block(job, block, worker);
    }
}

static void round_item(void *arg, size_t row, unsigned worker)
{
    (void)worker;
    const struct matmul_job *job = arg;
    size_t cols = job->products->w->cols;
    job->cpu->with.kernels->round_x(job->cpu->work[WORK_rounded] + row * rounded_floats(cols),
                                    job->x + row * job->x_stride, cols);
}

void cpu_matmul(struct compute_cpu *cpu, const struct product *products, size_t n_products,
                const float *x, size_t x_stride, size_t n_rows)
{
    // Small enough that the slowest worker waits for little, large enough that a kernel call is
    // worth it; a multiple of the lanes so that kernels see whole column tiles. Few rows of x
    // wait for memory, where a worker falls behind easily.
    enum { BLOCKS_PER_THREAD = 8, BLOCKS_FEW_ROWS = 16, FEW_ROWS = 9 };
    enum { BLOCK_MIN = 16, BLOCK_MAX = 256 };
    // Multiply-adds that take no longer than waking the workers.
    enum { ALONE = 128 * 1024 };
    // Rows whose rounding is worth it.
    enum { ROUND_ROWS = 8 };
    uint64_t outputs = 0, blocks = 0;
    bool rounds = false;
    for (size_t i = 0; i < n_products; i++) {
        outputs += products[i].w->rows;
        rounds |= kernel_rounds_x(products[i].w->type);
    }
    struct pool *pool = outputs * products->w->cols * n_rows <= ALONE ? NULL : cpu->with.pool;
    unsigned threads = pool_threads(pool);
    uint64_t wanted = threads * (n_rows < FEW_ROWS ? BLOCKS_FEW_ROWS : BLOCKS_PER_THREAD);
    uint64_t block = outputs / wanted / BLOCK_MIN * BLOCK_MIN;
    block = min_u64(max_u64(block, BLOCK_MIN), BLOCK_MAX);
    for (size_t i = 0; i < n_products; i++)
        blocks += div_round_up(products[i].w->rows, block);
    struct matmul_job job = {cpu, products, n_products, x, x_stride, n_rows, block, threads};
    for (unsigned i = 0; i < threads; i++) {
        atomic_store_explicit(&cpu->region[i].next, blocks * i / threads, memory_order_relaxed);
        cpu->region[i].end = blocks * (i + 1) / threads;
    }
    if (rounds)
        pool_run(n_rows < ROUND_ROWS ? NULL : pool, round_item, &job, n_rows);
    pool_run(pool, matmul_item, &job, threads);
    cpu_tick(cpu);
}

// ---- memory ------------------------------------------------------------------------------------

static int cpu_buffer_new(struct compute *compute, uint64_t bytes, enum compute_place place,
                          const char *what, struct compute_buffer **out, struct inst_msg *msg)
{
    (void)place; // there is one memory
    struct compute_buffer *b = calloc(1, sizeof *b);
    *out = NULL;
    if (!b)
        return inst_fail(msg, INST_ENOMEM, "out of memory");
    b->bytes = bytes;
    b->host = budget_alloc_pages(cpu_of(compute)->with.budget, bytes, what, msg);
    if (!b->host) {
        free(b);
        return INST_ENOMEM;
    }
    *out = b;
    return 0;
}

static void cpu_buffer_free(struct compute *compute, struct compute_buffer *buffer)
{
    if (buffer)
        budget_free(cpu_of(compute)->with.budget, buffer->host);
    free(buffer);
}

static int cpu_copy(struct compute *compute, enum compute_queue queue, struct compute_slice to,
                    struct compute_slice from, uint64_t bytes)
{
    (void)compute;
    (void)queue;
    memmove(cpu_at(to), cpu_at(from), (size_t)bytes);
    return 0;
}

static int cpu_record(struct compute *compute, enum compute_queue queue, struct compute_point *out)
{
    (void)compute;
    *out = (struct compute_point){.queue = queue};
    return 0;
}

static int cpu_after(struct compute *compute, enum compute_queue queue, struct compute_point point)
{
    (void)compute;
    (void)queue;
    (void)point; // it is done
    return 0;
}

static int cpu_done(struct compute *compute, struct compute_point point, uint64_t max_wait_ns,
                    struct inst_msg *msg)
{
    (void)compute;
    (void)point;
    (void)max_wait_ns;
    (void)msg;
    return 0;
}

static void cpu_stop(struct compute *compute)
{
    (void)compute; // nothing is
}

static void cpu_close(struct compute *compute)
{
    struct compute_cpu *cpu = cpu_of(compute);
    budget_free(cpu->with.budget, cpu->memory);
    free(cpu->region);
    free(cpu);
}

static const struct compute_ops cpu_ops = {
    .buffer_new = cpu_buffer_new,
    .buffer_free = cpu_buffer_free,
    .embed = cpu_embed,
    .qkv = cpu_qkv,
    .attend = cpu_attend,
    .queries = cpu_queries,
    .outputs = cpu_outputs,
    .finish = cpu_finish,
    .logits = cpu_logits,
    .copy = cpu_copy,
    .record = cpu_record,
    .after = cpu_after,
    .done = cpu_done,
    .stop = cpu_stop,
    .close = cpu_close,
};

// Sets *sum to a * b * c bytes more, whole pages.
static bool add_bytes(uint64_t a, uint64_t b, uint64_t c, uint64_t *each, uint64_t *sum)
{
    if (!checked_mul(a, b, each) || !checked_mul(*each, c, each) || !checked_add(*each, 4095, each))
        return false;
    *each = *each / 4096 * 4096;
    return checked_add(*sum, *each, sum);
}

// Each part of the memory, one slot's of those that slots have; *sum: all of it.
static bool size_work(uint64_t work[WORK_COUNT], const struct model_config *c,
                      const struct compute_plan *p, uint64_t *sum)
{
    enum { F = sizeof(float) };
    uint64_t q_dim = (uint64_t)c->heads * c->head_dim, kv_dim = (uint64_t)c->kv_heads * c->head_dim;
    uint64_t widest = max_u64(max_u64(c->width, q_dim), c->ffn), slot = 0;
    *sum = 0;
    bool ok =
        add_bytes(p->rows, row_stride(c->width), F, &work[WORK_x], &slot) &&
        add_bytes(p->rows, row_stride(q_dim), F, &work[WORK_q], &slot) &&
        add_bytes((uint64_t)p->own_rows * c->heads, partial_stride(c->head_dim), F,
                  &work[WORK_partials], &slot) &&
        add_bytes(p->rows, row_stride(compute_rope_values(c)), F, &work[WORK_rope], &slot) &&
        add_bytes(ATTENTION_TILE, 2 * kv_dim, sizeof(uint16_t), &work[WORK_stage], &slot) &&
        add_bytes(p->strip, row_stride(c->width), F, &work[WORK_norm], sum) &&
        add_bytes(p->strip, row_stride(max_u64(q_dim, c->ffn)), F, &work[WORK_t1], sum) &&
        add_bytes(p->strip, row_stride(max_u64(2 * kv_dim, c->ffn)), F, &work[WORK_t2], sum) &&
        add_bytes(p->rounds_x ? p->strip : 0, rounded_floats(widest), F, &work[WORK_rounded],
                  sum) &&
        add_bytes(p->kv_type == KV_F16 ? 0 : (uint64_t)c->layers * c->kv_heads,
                  kv_triangle(c->head_dim), F, &work[WORK_keys], sum);
    return ok && checked_mul(slot, p->slots, &slot) && checked_add(*sum, slot, sum);
}

bool compute_cpu_bytes(const struct model_config *config, const struct compute_plan *plan,
                       uint64_t *bytes)
{
    uint64_t work[WORK_COUNT];
    return size_work(work, config, plan, bytes);
}

static int make_work(struct compute_cpu *cpu, struct inst_msg *msg)
{
    uint64_t work[WORK_COUNT], bytes;
    const struct compute_plan *p = &cpu->with.plan;
    if (p->slots > COMPUTE_SLOTS || !size_work(work, cpu->with.config, p, &bytes))
        return inst_fail(msg, INST_EINTERNAL, "compute: a plan that overflows");
    char *at = cpu->memory = budget_alloc_pages(cpu->with.budget, bytes, "what computes", msg);
    if (!at)
        return INST_ENOMEM;
    for (uint32_t s = 0; s < p->slots; s++)
        for (int i = 0; i < WORK_OF_SLOT; at += work[i++])
            cpu->slot[s].work[i] = (float *)at;
    for (int i = WORK_OF_SLOT; i < WORK_COUNT; at += work[i++])
        cpu->work[i] = (float *)at;
    return 0;
}

static int cpu_open(struct compute **out, const struct compute_setup *setup, struct inst_msg *msg)
{
    int err = pool_reserve_scratch(setup->pool, KERNEL_SCRATCH_BYTES, msg);
    if (err)
        return err;
    struct compute_cpu *cpu = calloc(1, sizeof *cpu);
    struct region *region = aligned_alloc(64, pool_threads(setup->pool) * sizeof *region);
    if (!cpu || !region) {
        free(cpu);
        free(region);
        return inst_fail(msg, INST_ENOMEM, "compute: out of memory");
    }
    *cpu = (struct compute_cpu){.compute = {&cpu_ops},
                                .with = *setup,
                                .group = setup->config->heads / setup->config->kv_heads,
                                .region = region};
    err = make_work(cpu, msg);
    if (err) {
        cpu_close(&cpu->compute);
        return err;
    }
    if (setup->plan.kv_type != KV_F16)
        cpu_measure_queries(cpu);
    *out = &cpu->compute;
    return 0;
}

const struct compute_kind compute_cpu = {.name = "cpu", .open = cpu_open};
