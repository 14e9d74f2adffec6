// SPDX-License-Identifier: Apache-2.0
// Matrix work behind one small table: CPU now, CUDA later. Every implementation that calls itself
// exact keeps row invariance (contract point 9): row i of a product depends on row i of x alone.
#ifndef INST_HOST_COMPUTE_COMPUTE_H
#define INST_HOST_COMPUTE_COMPUTE_H

#include "base/budget.h"
#include "base/pool.h"
#include "kernels/kernels.h"

struct compute;

// One matrix product of several that share their input: out[i * out_stride + j] = row i of x times
// row j of w, for j < w->rows.
struct product {
    const struct weight *w;
    float *out;
    size_t out_stride;
};

struct compute_ops {
    // x: n_rows rows of w->cols floats (the same for all products), x_stride floats apart.
    void (*matmul)(struct compute *compute, const struct product *products, size_t n_products,
                   const float *x, size_t x_stride, size_t n_rows);
    void (*close)(struct compute *compute);
};

struct compute {
    const struct compute_ops *ops;
};

// Over kernels and a pool, both the caller's; uses the pool's scratch memory. `rounded` (64-byte
// aligned) has room for rounded_floats of any n_rows x cols whose type takes x rounded; NULL where
// none does.
int compute_cpu_open(struct compute **out, const struct kernels *kernels, struct pool *pool,
                     float *rounded, struct inst_msg *msg);

static inline void compute_close(struct compute *compute)
{
    if (compute)
        compute->ops->close(compute);
}

#endif
