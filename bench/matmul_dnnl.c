// SPDX-License-Identifier: Apache-2.0
#include "bench/matmul_dnnl.h"

#include <oneapi/dnnl/dnnl.h>
#include <omp.h>

void dnnl_set_threads(int threads)
{
    omp_set_num_threads(threads);
}

int dnnl_product(const float *x, const float *weights, float *out, size_t n_rows, size_t rows,
                 size_t cols)
{
    dnnl_dim_t m = (dnnl_dim_t)n_rows, n = (dnnl_dim_t)rows, k = (dnnl_dim_t)cols;
    return dnnl_sgemm('N', 'T', m, n, k, 1, x, k, weights, k, 0, out, n) == dnnl_success ? 0 : -1;
}
