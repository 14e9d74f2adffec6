// SPDX-License-Identifier: Apache-2.0
// The attention tile kernel over K,V far larger than the caches, beside a plain fp16 dot product
// over the same bytes with the same threads: decode attention should be bound by memory, so its
// rate should be the dot's. Both take turns in each round.
//   bench_attention_kernel [--threads N] [--mib SIZE] [--set NAME] [--rounds N] [--part 16|32|64]
//                          [--kv-type f16|q8|q4]
// K,V lie as slots: K of 64 tokens, channel by channel in parts of so many tokens, then V of 64
// tokens, per KV head.
#include "base/pool.h"
#include "bench/measure.h"
#include "kernels/kernels.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SLOTS_PER_ITEM = 16,
    WORKERS_MAX = 256,
    QUERIES_MAX = 8,
    HEAD_DIM_MAX = 128,
    DOT_COLS = 4096
};

struct setup {
    const struct kernels *k;
    struct pool *pool;
    uint8_t *kv;
    const uint16_t *plain; // for the dot product
    uint32_t type;         // enum kv_type
    size_t bytes;
    uint32_t head_dim, part_tokens;
    size_t n_q;
    float *q;        // DOT_COLS, of which [n_q][head_dim] are the queries
    float *partials; // [item][n_q]
    float *sums;     // [item]
    char *scratch;
};

static size_t slot_bytes(const struct setup *s)
{
    return kv_key_bytes(s->type, s->head_dim, ATTENTION_TILE) +
           kv_value_bytes(s->type, s->head_dim, ATTENTION_TILE);
}

static struct attention_tile tile_at(const struct setup *s, size_t index)
{
    uint8_t *slot = s->kv + index * slot_bytes(s);
    size_t part = s->part_tokens;
    struct attention_tile tile = {.type = s->type,
                                  .part_tokens = s->part_tokens,
                                  .tokens = ATTENTION_TILE,
                                  .head_dim = s->head_dim,
                                  .scale = 0.1f};
    for (size_t i = 0; i < ATTENTION_TILE / part; i++) {
        tile.k[i] = slot + i * kv_key_bytes(s->type, s->head_dim, part);
        tile.v[i] = slot + kv_key_bytes(s->type, s->head_dim, ATTENTION_TILE) +
                    i * kv_value_bytes(s->type, s->head_dim, part);
    }
    return tile;
}

// Blocks are not any bytes: one slot of them, everywhere.
static void fill_slots(const struct setup *s)
{
    static uint16_t rows[ATTENTION_TILE * HEAD_DIM_MAX];
    struct attention_tile tile = tile_at(s, 0);
    size_t bytes = slot_bytes(s), part = s->part_tokens, row = s->head_dim;
    for (size_t i = 0; i < ATTENTION_TILE * row; i++)
        rows[i] = kernel_f32_to_f16((float)(i * 2654435761u % 1009) / 504.5f - 1);
    for (size_t i = 0; i < ATTENTION_TILE / part; i++) {
        const uint16_t *from = rows + i * part * row;
        kv_put(s->type, (void *)(uintptr_t)tile.k[i], (void *)(uintptr_t)tile.v[i], part, row, 0,
               part, from, from);
    }
    for (size_t at = bytes; at + bytes <= s->bytes; at += bytes)
        memcpy(s->kv + at, s->kv, bytes);
}

static void attend_item(void *arg, size_t item, unsigned worker)
{
    struct setup *s = arg;
    float *out = s->partials + item * s->n_q * partial_stride(s->head_dim);
    for (size_t i = 0; i < SLOTS_PER_ITEM; i++) {
        struct attention_tile tile = tile_at(s, item * SLOTS_PER_ITEM + i);
        struct attention_tile next = tile_at(s, item * SLOTS_PER_ITEM + i + 1);
        tile.next = &next;
        s->k->attention_tile(&tile, s->q, s->head_dim, s->n_q, NULL, out, i > 0,
                             s->scratch + (size_t)worker * KERNEL_SCRATCH_BYTES);
    }
}

// As a product of one row with long weight rows: several rows at once, so it is memory that limits.
static void dot_item(void *arg, size_t item, unsigned worker)
{
    struct setup *s = arg;
    size_t per_row = DOT_COLS, rows = SLOTS_PER_ITEM * slot_bytes(s) / (2 * per_row);
    struct weight w = {.data = s->plain + item * rows * per_row,
                       .rows = rows,
                       .cols = per_row,
                       .row_bytes = 2 * per_row,
                       .type = TENSOR_F16};
    float out[SLOTS_PER_ITEM * 2 * ATTENTION_TILE * HEAD_DIM_MAX / DOT_COLS];
    s->k->matmul(&w, 0, rows, s->q, per_row, 1, out, rows,
                 s->scratch + (size_t)worker * KERNEL_SCRATCH_BYTES);
    s->sums[item] = s->k->sum(out, rows);
}

static size_t items(const struct setup *s)
{
    return s->bytes / slot_bytes(s) / SLOTS_PER_ITEM;
}

static void attend_run(void *arg)
{
    struct setup *s = arg;
    pool_run(s->pool, attend_item, s, items(s));
}

static void dot_run(void *arg)
{
    struct setup *s = arg;
    pool_run(s->pool, dot_item, s, items(s));
}

static void bench(struct setup *s, uint32_t head_dim, size_t n_q, int rounds)
{
    struct measure attend = {0}, dot = {0};
    s->head_dim = head_dim;
    s->n_q = n_q;
    if (s->type != KV_F16)
        fill_slots(s);
    for (int round = -1; round < rounds; round++) { // the first one warms up
        measure_round(&attend, attend_run, s, 0.05);
        measure_round(&dot, dot_run, s, 0.05);
        if (round < 0)
            attend.rounds = dot.rounds = 0;
    }
    double bytes = (double)(items(s) * SLOTS_PER_ITEM * slot_bytes(s));
    struct measure_ratio r = measure_speedup(&attend, &dot);
    printf("head_dim %3u, %zu quer%s per KV head: attention %5.1f GB/s (best %5.1f), "
           "fp16 dot %5.1f (%5.1f), ratio %.2f (%.2f to %.2f)\n",
           head_dim, n_q, n_q == 1 ? "y  " : "ies", bytes / measure_median(&attend) * 1e-9,
           bytes / measure_best(&attend) * 1e-9, bytes / measure_median(&dot) * 1e-9,
           bytes / measure_best(&dot) * 1e-9, r.median, r.min, r.max);
}

int main(int argc, char **argv)
{
    unsigned threads = 1;
    int rounds = 9;
    struct setup s = {.k = kernels_best(), .part_tokens = 64, .bytes = (size_t)256 << 20};
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--threads"))
            threads = (unsigned)atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--mib"))
            s.bytes = (size_t)atoll(argv[i + 1]) << 20;
        else if (!strcmp(argv[i], "--rounds"))
            rounds = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--set"))
            s.k = kernels_by_name(argv[i + 1]);
        else if (!strcmp(argv[i], "--part"))
            s.part_tokens = (uint32_t)atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--kv-type"))
            s.type = kv_type_named(argv[i + 1]);
    }
    struct inst_msg msg = {0};
    if (!s.k || s.type == KV_TYPES || rounds < 1 || rounds > MEASURE_ROUNDS_MAX || !s.bytes ||
        threads < 1 || threads > WORKERS_MAX ||
        (s.part_tokens != 16 && s.part_tokens != 32 && s.part_tokens != 64) ||
        pool_new(&s.pool, threads, &msg)) {
        fprintf(stderr, "bench_attention_kernel: bad arguments or no such set here %s\n", msg.text);
        return 2;
    }
    char cpu[128];
    measure_cpu_name(cpu, sizeof cpu);
    printf("%s, %u thread%s, set %s, %zu MiB of K,V as %s\n", cpu, threads, threads == 1 ? "" : "s",
           s.k->name, s.bytes >> 20, kv_type_name(s.type));
    uint16_t *kv = measure_alloc(s.bytes);
    measure_random(kv, s.bytes, 1);
    for (size_t i = 0; i < s.bytes / 2; i++)
        kv[i] = (uint16_t)(kv[i] & 0x8fff) | 0x3000; // 0.125 to 0.25, both signs
    s.plain = kv;
    s.kv = s.type == KV_F16 ? (uint8_t *)kv : measure_alloc(s.bytes);
    s.q = measure_alloc(DOT_COLS * sizeof *s.q);
    for (size_t i = 0; i < DOT_COLS; i++)
        s.q[i] = (float)(i % 17) * 0.1f - 0.8f;
    // The smallest slot makes the most items.
    s.head_dim = 64;
    size_t most = s.bytes / slot_bytes(&s) / SLOTS_PER_ITEM + 1;
    s.partials = measure_alloc(most * QUERIES_MAX * partial_stride(HEAD_DIM_MAX) * sizeof(float));
    s.sums = measure_alloc(most * sizeof *s.sums);
    s.scratch = measure_alloc((size_t)threads * KERNEL_SCRATCH_BYTES);
    static const uint32_t dims[] = {64, 128};
    static const size_t queries[] = {1, 4, 8};
    for (int d = 0; d < 2; d++)
        for (int i = 0; i < 3; i++)
            bench(&s, dims[d], queries[i], rounds);
    pool_free(s.pool);
    return 0; // the buffers go with the process
}
