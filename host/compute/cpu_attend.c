// SPDX-License-Identifier: Apache-2.0
// Attention of queries that stayed here, over runs of K and V. It walks tiles of 64 absolute
// positions in ascending order (contract point 8). A tile whose tokens lie in two runs, of one call
// or two, is put together in `stage`, because a tile is the unit of rounding and must not be
// evaluated in two parts. Work is spread by (KV head, block of queries).
#include "host/compute/cpu.h"
#include "base/checked.h"

#include <string.h>

// Queries of a KV head that share a tile once it is turned and converted: fewer where that many
// would leave workers without a block.
enum { BLOCK_QUERIES = 256, BLOCK_QUERIES_LEAST = 64, BLOCKS_PER_WORKER = 4 };
enum { QUERIES_MOST = 256, RUNS_MOST = 4 };
_Static_assert((int)QUERIES_MOST >= (int)BLOCK_QUERIES, "a block has at most this many queries");

// Tokens that begin at a tile; the last tile of the last run may be short.
struct tiles {
    const uint16_t *slab;
    uint64_t slab_tokens, offset, pos, tokens;
};

struct attend_job {
    const struct compute_cpu *cpu;
    struct cpu_slot *slot;
    uint32_t layer;
    size_t first, n; // rows
    uint64_t pos0;   // of the first
    float *q, *partials;
    bool clear;
    struct tiles run[RUNS_MOST];
    size_t n_runs;
};

// Rows of q and partials: [kv_heads][n][group].
static size_t query_index(const struct attend_job *job, size_t head, size_t row)
{
    return (head * job->n + row) * job->cpu->group;
}

// One tile for a block of rows; a row sees the tokens up to its own.
static void attend_tile(const struct attend_job *job, const struct tiles *run, uint64_t first,
                        size_t head, size_t row, size_t rows, void *scratch)
{
    const struct model_config *c = job->cpu->with.config;
    size_t dim = c->head_dim, group = job->cpu->group;
    uint64_t tile_pos = run->pos + first;
    struct attention_tile tile = {
        .k = {run->slab + (head * 2 * run->slab_tokens + run->offset + first) * dim},
        .v = {run->slab + ((head * 2 + 1) * run->slab_tokens + run->offset + first) * dim},
        .tokens = (uint32_t)min_u64(ATTENTION_TILE, run->tokens - first),
        .head_dim = (uint32_t)dim,
        .scale = c->score_scale,
        .softcap = c->score_softcap,
    };
    uint32_t limit[QUERIES_MOST], start[QUERIES_MOST];
    bool limited = job->pos0 + row + 1 < tile_pos + tile.tokens;
    for (size_t i = 0; limited && i < rows * group; i++) {
        uint64_t end = job->pos0 + row + i / group + 1; // tokens that this query sees
        limit[i] = end > tile_pos ? (uint32_t)min_u64(end - tile_pos, tile.tokens) : 0;
    }
    // The last row's window starts last.
    bool windowed = compute_window_start(c, job->layer, job->pos0 + row + rows - 1) > tile_pos;
    for (size_t i = 0; windowed && i < rows * group; i++) {
        uint64_t window = compute_window_start(c, job->layer, job->pos0 + row + i / group);
        start[i] = window > tile_pos ? (uint32_t)min_u64(window - tile_pos, ATTENTION_TILE) : 0;
    }
    tile.first = windowed ? start : NULL;
    size_t index = query_index(job, head, row);
    job->cpu->with.kernels->attention_tile(
        &tile, job->q + index * dim, dim, rows * group, limited ? limit : NULL,
        (float *)partial_at(job->partials, index, dim), 1, scratch);
}

static size_t block_rows(const struct attend_job *job)
{
    const struct compute_cpu *cpu = job->cpu;
    size_t queries = BLOCK_QUERIES, all = job->n * cpu->with.config->heads;
    while (queries > BLOCK_QUERIES_LEAST &&
           all / queries < (uint64_t)BLOCKS_PER_WORKER * pool_threads(cpu->with.pool))
        queries /= 2;
    return max_u64(queries / cpu->group, 1);
}

static void attend_item(void *arg, size_t item, unsigned worker)
{
    const struct attend_job *job = arg;
    const struct compute_cpu *cpu = job->cpu;
    size_t step = block_rows(job), blocks = div_round_up(job->n, step);
    size_t head = item / blocks, row = item % blocks * step, rows = min_u64(step, job->n - row);
    size_t index = query_index(job, head, row);
    for (size_t i = 0; job->clear && i < rows * cpu->group; i++)
        partial_clear(partial_at(job->partials, index + i, cpu->with.config->head_dim));
    // What this block sees.
    uint64_t start = compute_window_start(cpu->with.config, job->layer, job->pos0 + row);
    uint64_t end = job->pos0 + row + rows;
    for (size_t i = 0; i < job->n_runs; i++) {
        for (uint64_t n = 0; n < job->run[i].tokens; n += ATTENTION_TILE) {
            uint64_t pos = job->run[i].pos + n;
            if (pos < end && pos + ATTENTION_TILE > start)
                attend_tile(job, &job->run[i], n, head, row, rows,
                            pool_scratch(cpu->with.pool, worker));
        }
    }
}

// All that was gathered.
static void attend_runs(struct attend_job *job)
{
    const struct compute_cpu *cpu = job->cpu;
    const struct model_config *c = cpu->with.config;
    uint64_t tokens = job->clear;
    for (size_t i = 0; i < job->n_runs; i++)
        tokens += job->run[i].tokens;
    uint64_t values = tokens * job->n * c->heads * c->head_dim;
    if (tokens)
        pool_run(values < PARALLEL_VALUES ? NULL : cpu->with.pool, attend_item, job,
                 c->kv_heads * div_round_up(job->n, block_rows(job)));
    job->n_runs = 0;
    job->clear = false;
    cpu_tick(cpu);
}

static void gather(struct attend_job *job, struct tiles tiles)
{
    if (!tiles.tokens)
        return;
    if (job->n_runs == RUNS_MOST)
        attend_runs(job);
    job->run[job->n_runs++] = tiles;
}

// Copies n tokens of a slab, from token `from` on, behind those of the stage.
static void stage_copy(struct attend_job *job, const struct tiles *run, uint64_t from, uint64_t n)
{
    size_t dim = job->cpu->with.config->head_dim;
    uint16_t *stage = (uint16_t *)job->slot->work[WORK_stage];
    // K and V of all heads follow each other, so both kinds are one loop.
    for (uint64_t i = 0; i < 2 * (uint64_t)job->cpu->with.config->kv_heads; i++)
        memcpy(stage + (i * ATTENTION_TILE + job->slot->staged) * dim,
               run->slab + (i * run->slab_tokens + run->offset + from) * dim,
               n * dim * sizeof *stage);
    job->slot->staged += n;
}

// One run; nothing comes behind the last one. False: it does not go on where the others ended.
static bool add_run(struct attend_job *job, const struct tiles *run, bool last)
{
    uint64_t at = 0, staged = job->slot->staged;
    if (run->pos % ATTENTION_TILE != staged)
        return false;
    if (staged) {
        at = min_u64(ATTENTION_TILE - staged, run->tokens);
        stage_copy(job, run, 0, at);
        if (job->slot->staged < ATTENTION_TILE && !last)
            return true;
        gather(job, (struct tiles){.slab = (const uint16_t *)job->slot->work[WORK_stage],
                                   .slab_tokens = ATTENTION_TILE,
                                   .pos = run->pos - staged,
                                   .tokens = job->slot->staged});
        job->slot->staged = 0;
    }
    struct tiles rest = *run;
    rest.offset += at;
    rest.pos += at;
    rest.tokens -= at;
    uint64_t tail = last ? 0 : rest.tokens % ATTENTION_TILE;
    rest.tokens -= tail;
    gather(job, rest);
    if (tail) {
        if (at)
            attend_runs(job); // before the stage is filled again
        stage_copy(job, run, run->tokens - tail, tail);
    }
    return true;
}

static void output_row(void *arg, size_t row, unsigned worker)
{
    (void)worker;
    const struct attend_job *job = arg;
    const struct compute_cpu *cpu = job->cpu;
    size_t dim = cpu->with.config->head_dim;
    float *out = job->q + row * cpu_q_stride(cpu); // queries are gone
    for (size_t h = 0; h < cpu->with.config->kv_heads; h++)
        for (size_t g = 0; g < cpu->group; g++)
            cpu->with.kernels->partial_output(
                partial_at(job->partials, query_index(job, h, row) + g, dim),
                out + (h * cpu->group + g) * dim, dim);
}

int cpu_attend(struct compute *compute, uint32_t slot, uint32_t layer, uint32_t first, uint32_t n,
               const struct compute_run *runs, uint32_t n_runs, uint32_t flags)
{
    struct compute_cpu *cpu = cpu_of(compute);
    const struct model_config *c = cpu->with.config;
    struct attend_job job = {.cpu = cpu,
                             .slot = &cpu->slot[slot],
                             .layer = layer,
                             .first = first,
                             .n = n,
                             .clear = flags & ATTEND_FIRST};
    job.pos0 = job.slot->rows.position[first];
    job.q = job.slot->work[WORK_q] + first * cpu_q_stride(cpu);
    job.partials =
        (float *)partial_at(job.slot->work[WORK_partials],
                            (size_t)(first - job.slot->rows.own) * c->heads, c->head_dim);
    if (flags & ATTEND_FIRST)
        job.slot->staged = 0;
    for (uint32_t i = 0; i < n_runs; i++) {
        const struct compute_run *r = &runs[i];
        const struct tiles run = {.slab = cpu_at(r->slab),
                                  .slab_tokens = r->slab_tokens,
                                  .offset = r->offset,
                                  .pos = r->pos,
                                  .tokens = r->tokens};
        if (!add_run(&job, &run, i + 1 == n_runs && flags & ATTEND_LAST))
            return INST_EINTERNAL;
    }
    attend_runs(&job);
    if (flags & ATTEND_LAST)
        pool_run(n > 1 ? cpu->with.pool : NULL, output_row, &job, n);
    return 0;
}

int cpu_queries(struct compute *compute, uint32_t slot, uint32_t first, uint32_t n,
                struct compute_slice to)
{
    const struct compute_cpu *cpu = cpu_of(compute);
    const struct model_config *c = cpu->with.config;
    memcpy(cpu_at(to), cpu->slot[slot].work[WORK_q] + first * cpu_q_stride(cpu),
           (size_t)n * c->heads * c->head_dim * sizeof(float));
    return 0;
}

int cpu_outputs(struct compute *compute, uint32_t slot, uint32_t first, uint32_t n,
                struct compute_slice from)
{
    const struct compute_cpu *cpu = cpu_of(compute);
    size_t stride = cpu_q_stride(cpu);
    size_t dim = (size_t)cpu->with.config->heads * cpu->with.config->head_dim;
    float *out = cpu->slot[slot].work[WORK_q] + first * stride;
    for (size_t i = 0; i < n; i++)
        memcpy(out + i * stride, (const float *)cpu_at(from) + i * dim, dim * sizeof *out);
    return 0;
}
