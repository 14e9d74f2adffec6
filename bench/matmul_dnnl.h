// SPDX-License-Identifier: Apache-2.0
// oneDNN's fp32 matrix product, for comparison. Layouts as in kernels.h: x [n_rows][cols],
// weights [rows][cols], out [n_rows][rows].
#ifndef INST_BENCH_MATMUL_DNNL_H
#define INST_BENCH_MATMUL_DNNL_H

#include <stddef.h>

void dnnl_set_threads(int threads);
// Returns 0 or a negative number.
int dnnl_product(const float *x, const float *weights, float *out, size_t n_rows, size_t rows,
                 size_t cols);

#endif
