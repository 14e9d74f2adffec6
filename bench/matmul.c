// SPDX-License-Identifier: Apache-2.0
// Row-invariant matrix products, GFLOPS and GB/s of weights for 1, 8, 64 and 512 rows of x, beside
// oneDNN's fp32 product where it was found. All contenders take turns in each round; the ratio is
// oneDNN's time over ours, with its spread over the rounds.
//   bench_matmul [--threads N] [--cols K] [--rows N] [--set NAME] [--type NAME] [--rounds N]
//                [--x N] [--cpu 1]
// Few rows of x use a matrix far larger than the last cache, as decode does. --x measures that many
// rows alone; --cpu counts the process's own time, for one thread beside other work.
#include "base/pool.h"
#include "bench/measure.h"
#include "kernels/kernels.h"
#ifdef INST_BENCH_DNNL
#include "bench/matmul_dnnl.h"
#endif

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK = 128, ROWS_MAX = 512, WORKERS_MAX = 256, STREAM_ROWS = 32768 };

// Rows of x that are measured; so few of them wait for memory.
static const size_t x_rows[] = {1, 8, 64, 512};
enum { FEW = 33 };

// --type NAME measures one of them.
static const uint32_t types[] = {TENSOR_F32,  TENSOR_F16,  TENSOR_BF16, TENSOR_Q8_0,   TENSOR_Q4_0,
                                 TENSOR_Q4_1, TENSOR_Q5_0, TENSOR_Q5_1, TENSOR_IQ4_NL, TENSOR_Q2_K,
                                 TENSOR_Q3_K, TENSOR_Q4_K, TENSOR_Q5_K, TENSOR_Q6_K};
enum { TYPES = sizeof types / sizeof types[0] };

static int wanted(const char *only, int t)
{
    return !only || !strcmp(only, tensor_type_info(types[t])->name);
}

struct product {
    const struct kernels *k;
    struct pool *pool;
    struct weight w;
    const float *x;
    const float *rounded; // the same rows as the K types take them
    float *out;
    size_t n_rows;
    char *scratch;
};

static void product_chunk(void *arg, size_t item, unsigned worker)
{
    struct product *p = arg;
    uint64_t first = (uint64_t)item * CHUNK;
    uint64_t count = p->w.rows - first < CHUNK ? p->w.rows - first : CHUNK;
    int rounds = kernel_rounds_x(p->w.type);
    p->k->matmul(&p->w, first, count, rounds ? p->rounded : p->x,
                 rounds ? rounded_floats(p->w.cols) : p->w.cols, p->n_rows, p->out + first,
                 p->w.rows, p->scratch + (size_t)worker * KERNEL_SCRATCH_BYTES);
}

static void product_run(void *arg)
{
    struct product *p = arg;
    pool_run(p->pool, product_chunk, p, (p->w.rows + CHUNK - 1) / CHUNK);
}

#ifdef INST_BENCH_DNNL
static void dnnl_run(void *arg)
{
    struct product *p = arg;
    if (dnnl_product(p->x, p->w.data, p->out, p->n_rows, p->w.rows, p->w.cols))
        exit(1);
}
#endif

static void fill_weights(struct weight *w, uint64_t seed)
{
    const struct tensor_type_info *info = tensor_type_info(w->type);
    w->row_bytes = w->cols / info->block_elements * info->block_bytes;
    uint8_t *data = measure_alloc(w->rows * w->row_bytes);
    measure_random(data, w->rows * w->row_bytes, seed);
    for (uint64_t b = 0; b < w->rows * w->cols / info->block_elements; b++) {
        float f = (float)(data[b * info->block_bytes] - 128) / 128;
        uint16_t h = kernel_f32_to_f16(f), bf = 0;
        memcpy(&bf, (char *)&f + 2, 2);
        uint8_t *block = data + b * info->block_bytes;
        if (w->type == TENSOR_F32) {
            memcpy(block, &f, 4);
            continue;
        }
        memcpy(block + info->scale_at, w->type == TENSOR_BF16 ? &bf : &h, 2);
        if (info->min_at != info->scale_at)
            memcpy(block + info->min_at, &h, 2);
    }
    w->data = data;
}

static void report(const struct product *p, const char *name, const struct measure *m,
                   const struct measure *other)
{
    double t = measure_median(m);
    double flops = 2.0 * (double)p->n_rows * (double)p->w.rows * (double)p->w.cols;
    printf("  %-6s %7.1f GFLOPS (best %7.1f) %6.1f GB/s and %5.2f G/s of weights", name,
           flops / t * 1e-9, flops / measure_best(m) * 1e-9,
           (double)(p->w.rows * p->w.row_bytes) / t * 1e-9,
           (double)(p->w.rows * p->w.cols) / t * 1e-9);
    if (other) {
        struct measure_ratio r = measure_speedup(m, other);
        printf("   %.2fx oneDNN f32 (%.2f to %.2f)", r.median, r.min, r.max);
    }
    printf("\n");
}

static void bench_rows(struct product *p, struct weight *weights, size_t n_rows, int rounds,
                       const char *only)
{
    struct measure ours[TYPES] = {0}, theirs = {0};
    p->n_rows = n_rows;
    for (int round = -1; round < rounds; round++) { // the first one warms up
        for (int t = 0; t < TYPES; t++) {
            p->w = weights[t];
            if (wanted(only, t))
                measure_round(&ours[t], product_run, p, 0.03);
        }
#ifdef INST_BENCH_DNNL
        p->w = weights[0];
        if (p->w.data)
            measure_round(&theirs, dnnl_run, p, 0.03);
#endif
        if (round < 0)
            memset(ours, 0, sizeof ours), memset(&theirs, 0, sizeof theirs);
    }
    printf("%zu row%s of x, weights %llu x %llu\n", n_rows, n_rows == 1 ? "" : "s",
           (unsigned long long)weights[0].rows, (unsigned long long)weights[0].cols);
    for (int t = 0; t < TYPES; t++) {
        p->w = weights[t];
        if (wanted(only, t))
            report(p, tensor_type_info(weights[t].type)->name, &ours[t],
                   theirs.rounds ? &theirs : NULL);
    }
    p->w = weights[0];
    if (theirs.rounds)
        report(p, "oneDNN", &theirs, NULL);
}

int main(int argc, char **argv)
{
    unsigned threads = 1;
    uint64_t cols = 2048, rows = 2048;
    int rounds = 9, alone = 0;
    const char *only = NULL;
    struct product p = {.k = kernels_best()};
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--threads"))
            threads = (unsigned)atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--cols"))
            cols = (uint64_t)atoll(argv[i + 1]) / 256 * 256;
        else if (!strcmp(argv[i], "--rows"))
            rows = (uint64_t)atoll(argv[i + 1]);
        else if (!strcmp(argv[i], "--rounds"))
            rounds = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--type"))
            only = argv[i + 1];
        else if (!strcmp(argv[i], "--x"))
            alone = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--cpu"))
            measure_cpu_time(atoi(argv[i + 1]));
        else if (!strcmp(argv[i], "--set"))
            p.k = kernels_by_name(argv[i + 1]);
    }
    struct inst_msg msg = {0};
    if (!p.k || !cols || !rows || rounds < 1 || rounds > MEASURE_ROUNDS_MAX || alone < 0 ||
        alone > ROWS_MAX || threads < 1 || threads > WORKERS_MAX ||
        pool_new(&p.pool, threads, &msg)) {
        fprintf(stderr, "bench_matmul: bad arguments or no such set here %s\n", msg.text);
        return 2;
    }
    char cpu[128];
    measure_cpu_name(cpu, sizeof cpu);
    printf("%s, %u thread%s, set %s\n", cpu, threads, threads == 1 ? "" : "s", p.k->name);
#ifdef INST_BENCH_DNNL
    dnnl_set_threads((int)threads);
#else
    printf("oneDNN was not found when this was built: no comparison\n");
#endif
    struct weight small[TYPES], large[TYPES];
    for (uint32_t t = 0; t < TYPES; t++) {
        small[t] = (struct weight){.rows = rows, .cols = cols, .type = types[t]};
        large[t] = (struct weight){.rows = STREAM_ROWS, .cols = cols, .type = types[t]};
        if (wanted(only, (int)t)) {
            fill_weights(&small[t], t + 1);
            fill_weights(&large[t], t + 1);
        }
    }
    float *x = measure_alloc(ROWS_MAX * cols * sizeof *x);
    for (size_t i = 0; i < ROWS_MAX * cols; i++)
        x[i] = (float)(int)(i * 2654435761u % 2001) * 1e-3f - 1;
    size_t widest = rows > STREAM_ROWS ? rows : STREAM_ROWS;
    float *rounded = measure_alloc(ROWS_MAX * rounded_floats(cols) * sizeof *rounded);
    for (size_t i = 0; i < ROWS_MAX; i++)
        p.k->round_x(rounded + i * rounded_floats(cols), x + i * cols, cols);
    p.x = x;
    p.rounded = rounded;
    p.out = measure_alloc(ROWS_MAX * widest * sizeof *p.out);
    p.scratch = measure_alloc((size_t)threads * KERNEL_SCRATCH_BYTES);
    const size_t one[] = {(size_t)alone}, *x_n = alone ? one : x_rows;
    for (size_t i = 0; i < (alone ? 1 : sizeof x_rows / sizeof x_rows[0]); i++)
        bench_rows(&p, x_n[i] < FEW ? large : small, x_n[i], rounds, only);
    pool_free(p.pool);
    return 0; // the matrices go with the process
}
