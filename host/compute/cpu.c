// SPDX-License-Identifier: Apache-2.0
// The CPU implementation: outputs (weight rows) are cut into blocks, and the workers of the pool
// take blocks. A block is computed for all rows of x by one kernel call, so each weight is read
// once per call from memory and the result does not depend on who computed it. Types that want x
// rounded share one rounding of it.
//
// Every worker has a region of neighbouring blocks and helps others when it is through: what a
// kernel prefetches at the end of a block is then the worker's own next block, and workers meet at
// the same counter only at the end.
#include "host/compute/compute.h"
#include "base/checked.h"

#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

struct region {
    alignas(64) _Atomic size_t next; // block
    size_t end;
};

struct compute_cpu {
    struct compute compute;
    const struct kernels *kernels;
    struct pool *pool;
    float *rounded;        // x of the products that want it rounded
    struct region *region; // one for each worker
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
    const float *x = rounds ? job->cpu->rounded : job->x;
    size_t x_stride = rounds ? rounded_floats(p->w->cols) : job->x_stride;
    job->cpu->kernels->matmul(p->w, first, count, x, x_stride, job->n_rows, p->out + first,
                              p->out_stride, pool_scratch(job->cpu->pool, worker));
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
    job->cpu->kernels->round_x(job->cpu->rounded + row * rounded_floats(cols),
                               job->x + row * job->x_stride, cols);
}

static void cpu_matmul(struct compute *compute, const struct product *products, size_t n_products,
                       const float *x, size_t x_stride, size_t n_rows)
{
    // Small enough that the slowest worker waits for little, large enough that a kernel call is
    // worth it; a multiple of the lanes so that kernels see whole column tiles. Few rows of x
    // wait for memory, where a worker falls behind easily.
    enum { BLOCKS_PER_THREAD = 8, BLOCKS_FEW_ROWS = 16, FEW_ROWS = 3 };
    enum { BLOCK_MIN = 16, BLOCK_MAX = 256 };
    // Multiply-adds that take no longer than waking the workers.
    enum { ALONE = 128 * 1024 };
    // Rows whose rounding is worth it.
    enum { ROUND_ROWS = 8 };
    struct compute_cpu *cpu = (struct compute_cpu *)compute;
    uint64_t outputs = 0, blocks = 0;
    bool rounds = false;
    for (size_t i = 0; i < n_products; i++) {
        outputs += products[i].w->rows;
        rounds |= kernel_rounds_x(products[i].w->type);
    }
    struct pool *pool = outputs * products->w->cols * n_rows <= ALONE ? NULL : cpu->pool;
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
}

static void cpu_close(struct compute *compute)
{
    free(((struct compute_cpu *)compute)->region);
    free(compute);
}

static const struct compute_ops cpu_ops = {.matmul = cpu_matmul, .close = cpu_close};

int compute_cpu_open(struct compute **out, const struct kernels *kernels, struct pool *pool,
                     float *rounded, struct inst_msg *msg)
{
    int err = pool_reserve_scratch(pool, KERNEL_SCRATCH_BYTES, msg);
    if (err)
        return err;
    struct compute_cpu *cpu = calloc(1, sizeof *cpu);
    struct region *region = aligned_alloc(64, pool_threads(pool) * sizeof *region);
    if (!cpu || !region) {
        free(cpu);
        free(region);
        return inst_fail(msg, INST_ENOMEM, "compute: out of memory");
    }
    *cpu = (struct compute_cpu){{&cpu_ops}, kernels, pool, rounded, region};
    *out = &cpu->compute;
    return 0;
}
