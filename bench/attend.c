// SPDX-License-Identifier: Apache-2.0
#include "bench/attend.h"
#include "base/clock.h"
#include "base/checked.h"
#include "bench/measure.h"
#include "drive/engine.h"
#include "kernels/kernels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK = 512 }; // tokens of a WRITE

// ---- the pool's engine, with a clock -----------------------------------------------------------

struct attend_clock {
    struct engine engine;
    struct engine *pool;
    double choosing;
};

static void clock_submit(struct engine *engine, struct engine_task *task, uint64_t now_ns)
{
    struct engine *pool = ((struct attend_clock *)engine)->pool;
    pool->ops->submit(pool, task, now_ns);
}

static struct engine_task *clock_poll(struct engine *engine, uint64_t now_ns)
{
    struct attend_clock *self = (struct attend_clock *)engine;
    struct engine_task *done = self->pool->ops->poll(self->pool, now_ns);
    for (const struct engine_task *task = done; task; task = task->next)
        self->choosing += task->kind == ENGINE_SELECT ? 1e-9 * (double)task->took_ns : 0;
    return done;
}

static uint64_t clock_next_ns(struct engine *engine)
{
    struct engine *pool = ((struct attend_clock *)engine)->pool;
    return pool->ops->next_ns(pool);
}

static void clock_close(struct engine *engine)
{
    engine_close(((struct attend_clock *)engine)->pool);
    free(engine);
}

static int clock_open(struct attend_clock **out, struct pool *pool, struct inst_msg *msg)
{
    static const struct engine_ops ops = {
        .submit = clock_submit, .poll = clock_poll, .next_ns = clock_next_ns, .close = clock_close};
    struct attend_clock *self = calloc(1, sizeof *self);
    if (!self)
        return inst_fail(msg, INST_ENOMEM, "no memory");
    self->engine.ops = &ops;
    int err = engine_pool_open(&self->pool, pool, msg);
    if (err)
        free(self);
    else
        *out = self;
    return err;
}

double attend_bench_choosing(const struct attend_bench *b)
{
    return b->clock ? b->clock->choosing : 0;
}

// ---- the drive ---------------------------------------------------------------------------------

static int call(struct attend_bench *b, struct command c, const void *table, void *data,
                struct inst_msg *msg)
{
    return link_call(b->link, &c, table, data, NULL, msg);
}

int attend_bench_stats(struct attend_bench *b, struct drive_stats *stats, struct inst_msg *msg)
{
    return link_stat(b->link, stats, msg);
}

int attend_bench_flush(struct attend_bench *b, struct inst_msg *msg)
{
    return call(b, (struct command){.opcode = OP_FLUSH}, NULL, NULL, msg);
}

static struct space_config config_of(const struct attend_options *o, uint32_t page_bytes)
{
    uint32_t group = o->group;
    if (!group && !o->directory &&
        o->method != METHOD_PAGES) // the largest power of two whose K fits a page
        for (group = 16; 2 * kv_key_bytes(o->kv_type, o->head_dim, group) <= page_bytes;)
            group *= 2;
    return (struct space_config){.layers = o->layers,
                                 .kv_heads = o->kv_heads,
                                 .head_dim = o->head_dim,
                                 .group_tokens = group,
                                 .max_sequences = o->sequences,
                                 .max_tokens = o->context + o->room,
                                 .q_heads = o->q_heads,
                                 .method = o->method,
                                 .page_channels = o->page_channels,
                                 .kv_type = o->kv_type,
                                 .piece_tokens = o->piece,
                                 .piece_keys = o->keys,
                                 .piece_heads = o->heads_together,
                                 .piece_look = o->look,
                                 .piece_bits = o->bits,
                                 .piece_flash = o->index_flash};
}

// The texts' topics are the only thing that grows with the context besides the flash itself.
static int check_memory(const struct attend_options *o, const struct flash_geometry *g,
                        struct inst_msg *msg)
{
    double flash = (double)g->page_bytes * (double)g->pages_per_block * (double)g->blocks;
    double texts = 2.0 * o->sequences * o->layers * o->kv_heads * (double)(o->context + o->room);
    // Emulated NAND takes what is written to it.
    double needed = texts + (o->directory || o->nand ? 0 : flash);
    if (!o->memory || needed <= (double)o->memory)
        return 0;
    return inst_fail(msg, INST_ENOMEM, "%llu tokens need %.1f GiB of memory, %.1f are available",
                     (unsigned long long)o->context, needed / 0x1p30, (double)o->memory / 0x1p30);
}

// NAND: as many whole blocks on every die as the plan asks for.
static int nand_geometry(struct flash_geometry *g, const struct attend_options *o,
                         const struct space_config *config, struct inst_msg *msg)
{
    struct drive_plan plan;
    *g = (struct flash_geometry){.page_bytes = o->page_bytes,
                                 .pages_per_block = o->pages_per_block,
                                 .dies = o->dies,
                                 .channels = o->dies,
                                 .blocks = o->dies,
                                 .read_bytes = o->page_bytes};
    int err = drive_plan(&plan, g, config, 0, msg);
    uint64_t segment = (uint64_t)g->page_bytes * g->pages_per_block * g->dies;
    g->blocks = (div_round_up(plan.flash_bytes, segment) + 1) * g->dies;
    return err;
}

static int open_drive(struct attend_bench *b, struct inst_msg *msg)
{
    const struct attend_options *o = &b->o;
    struct drive_plan plan;
    uint64_t limit = o->dram ? o->dram : o->dram_limit, group;
    int err = pool_new(&b->pool, o->threads, msg);
    if (!err && o->nand)
        err = flash_nand_options_new(&b->nand, o->nand, msg);
    if (!err && b->nand)
        err = emulated_units_read(&b->units, b->nand, msg);
    if (err)
        return err;
    struct flash_nand_about nand = {0};
    if (b->nand)
        b->geometry = (nand = flash_nand_about(b->nand)).geometry;
    struct space_config config = config_of(o, b->nand ? b->geometry.page_bytes : o->page_bytes);
    if (!b->nand && o->directory)
        err = drive_geometry_for(&b->geometry, &config, 0, limit, msg);
    else if (!b->nand)
        err = nand_geometry(&b->geometry, o, &config, msg);
    if (!err)
        err = check_memory(o, &b->geometry, msg);
    if (!err)
        err = drive_plan(&plan, &b->geometry, &config, limit, msg);
    if (err)
        return err;
    b->page_channels = plan.page_channels;
    b->dram = o->dram;
    if (!b->dram)
        b->dram = max_u64(plan.min_dram_bytes, min_u64(plan.good_dram_bytes, o->dram_limit));
    b->geometry.request_bytes = (uint32_t)min_u64(o->request_cost, UINT32_MAX);
    struct flash_file_options file = {
        .directory = o->directory,
        .geometry = b->geometry,
        .clock_ns = o->method == METHOD_DENSE ? NULL : clock_ns,
    };
    err = b->nand        ? flash_nand_open(&b->flash, b->nand, &b->geometry, NULL, msg)
          : o->directory ? flash_file_open(&b->flash, &file, msg)
                         : flash_ram_open(&b->flash, &b->geometry, 0, msg);
    if (!err && b->units.has_engine)
        err = engine_model_open(&b->engine, &b->units.engine, b->pool, b->flash, msg);
    if (!err && !b->engine && !(err = clock_open(&b->clock, b->pool, msg)))
        b->engine = &b->clock->engine;
    struct drive_limits limits = {
        .dram_bytes = b->dram,
        .pool = b->pool,
        .engine = b->engine,
        .row_cache = o->row_cache,
        .no_row_cache = !o->row_cache,
    };
    if (!err)
        err = drive_open(&b->drive, b->flash, &limits, msg);
    if (!err)
        err = b->nand && !nand.paced ? link_local_open_virtual(&b->link, b->drive, b->flash, msg)
                                     : link_local_open(&b->link, b->drive, b->flash, msg);
    if (!err && b->units.link)
        err = link_local_wire(b->link, b->units.link, msg);
    if (err)
        return err;
    unsigned char payload[CONFIG_BYTES] __attribute__((aligned(64)));
    space_config_encode(payload, &config);
    struct command c = {.opcode = OP_CONFIG, .space = 1};
    err = link_call(b->link, &c, payload, NULL, &group, msg);
    b->group = (uint32_t)group;
    return err;
}

struct fill {
    struct attend_bench *b;
    uint32_t sequence, layer;
    uint64_t pos, n;
    uint16_t *data;
};

static void fill_head(void *arg, size_t head, unsigned worker)
{
    const struct fill *f = arg;
    uint64_t half = f->n * f->b->o.head_dim;
    uint16_t *k = f->data + 2 * head * half;
    (void)worker;
    clusters_kv(f->b->clusters, f->sequence, f->layer, (uint32_t)head, f->pos, f->n, k, k + half);
}

static int fill(struct attend_bench *b, struct inst_msg *msg)
{
    const struct attend_options *o = &b->o;
    uint64_t most;
    slab_bytes(o->kv_heads, CHUNK, o->head_dim, &most);
    unsigned char table[TABLE_HEADER_BYTES + TABLE_ITEM_BYTES], *data = aligned_alloc(64, most);
    int err = data ? 0 : inst_fail(msg, INST_ENOMEM, "no memory for %d tokens of K and V", CHUNK);
    double start = clock_seconds();
    struct fill f = {.b = b, .data = (uint16_t *)data};
    for (f.sequence = 0; !err && f.sequence < o->sequences; f.sequence++)
        for (f.pos = 0; !err && f.pos < o->context; f.pos += f.n)
            for (f.layer = 0; !err && f.layer < o->layers; f.layer++) {
                uint64_t bytes;
                f.n = min_u64(CHUNK, o->context - f.pos);
                slab_bytes(o->kv_heads, f.n, o->head_dim, &bytes);
                table_put_header(table, &(struct table_header){.head_count = o->kv_heads});
                table_put_item(table, 0,
                               &(struct table_item){
                                   .seq = f.sequence, .epoch = 1, .pos = f.pos, .n_tokens = f.n});
                pool_run(b->pool, fill_head, &f, o->kv_heads);
                err = call(b,
                           (struct command){.opcode = OP_WRITE,
                                            .space = 1,
                                            .layer = f.layer,
                                            .count = 1,
                                            .length = (uint32_t)bytes},
                           table, data, msg);
            }
    if (!err)
        err = attend_bench_flush(b, msg);
    b->tokens = o->context;
    b->fill_seconds = clock_seconds() - start;
    free(data);
    return err;
}

int attend_bench_open(struct attend_bench **out, const struct attend_options *o,
                      struct inst_msg *msg)
{
    struct attend_bench *b = calloc(1, sizeof *b);
    *out = b;
    if (!b)
        return inst_fail(msg, INST_ENOMEM, "no memory");
    b->o = *o;
    int err = open_drive(b, msg);
    if (!err)
        err = clusters_new(&b->clusters, &o->clusters, o->sequences, o->layers, o->kv_heads,
                           o->head_dim, o->context + o->room, msg);
    if (!err &&
        !attend_layout(&b->layout, o->sequences, o->q_heads, o->kv_heads, o->head_dim, true))
        err = inst_fail(msg, INST_EINVAL, "the shape overflows");
    if (!err) {
        b->table = aligned_alloc(64, table_bytes(o->sequences));
        b->in = aligned_alloc(64, (b->layout.in_bytes + 63) / 64 * 64);
        b->out = aligned_alloc(64, (b->layout.out_bytes + 63) / 64 * 64);
        if (!b->table || !b->in || !b->out)
            err = inst_fail(msg, INST_ENOMEM, "no memory");
    }
    if (!err)
        err = fill(b, msg);
    if (err) {
        attend_bench_close(b);
        *out = NULL;
    }
    return err;
}

void attend_bench_close(struct attend_bench *b)
{
    if (!b)
        return;
    link_close(b->link);
    drive_close(b->drive);
    engine_close(b->engine);
    flash_close(b->flash);
    flash_nand_options_free(b->nand);
    pool_free(b->pool);
    clusters_free(b->clusters);
    free(b->table);
    free(b->in);
    free(b->out);
    free(b);
}

struct query {
    struct attend_bench *b;
    uint32_t layer;
    uint64_t pos;
    bool append;
};

static void query_head(void *arg, size_t index, unsigned worker)
{
    const struct query *query = arg;
    struct attend_bench *b = query->b;
    const struct attend_options *o = &b->o;
    uint32_t group = o->q_heads / o->kv_heads;
    uint32_t sequence = (uint32_t)(index / o->kv_heads), head = (uint32_t)(index % o->kv_heads);
    float *q = (float *)(b->in + b->layout.q) +
               ((size_t)sequence * o->q_heads + (size_t)head * group) * o->head_dim;
    (void)worker;
    clusters_query(b->clusters, sequence, query->layer, head, query->pos, group, q);
    if (query->append)
        clusters_kv(b->clusters, sequence, query->layer, head, query->pos, 1,
                    (uint16_t *)(b->in + b->layout.k) + index * o->head_dim,
                    (uint16_t *)(b->in + b->layout.v) + index * o->head_dim);
}

// The time by the drive's clock.
static double seconds_of(const struct attend_bench *b)
{
    uint64_t ns = link_local_virtual_ns(b->link);
    return ns ? 1e-9 * (double)ns : clock_seconds();
}

int attend_bench_step(struct attend_bench *b, const struct attend_step *step, double *seconds,
                      float *captured, struct inst_msg *msg)
{
    const struct attend_options *o = &b->o;
    struct attend_layout layout;
    struct table_header header = step->header;
    // A step that does not append looks as the last one did that appended.
    uint64_t pos = step->append ? b->tokens : b->tokens - 1;
    int err = 0;
    header.q_heads = o->q_heads;
    header.scale = 1 / sqrtf((float)o->head_dim);
    attend_layout(&layout, o->sequences, o->q_heads, o->kv_heads, o->head_dim, step->append);
    *seconds = 0;
    for (uint32_t l = 0; l < o->layers && !err; l++) {
        struct query query = {.b = b, .layer = l, .pos = pos, .append = step->append};
        pool_run(b->pool, query_head, &query, (size_t)o->sequences * o->kv_heads);
        table_put_header(b->table, &header);
        for (uint32_t s = 0; s < o->sequences; s++)
            table_put_item(b->table, s,
                           &(struct table_item){
                               .seq = s, .epoch = 1, .pos = b->tokens, .n_tokens = step->append});
        double start = seconds_of(b);
        err = call(b,
                   (struct command){.opcode = OP_ATTEND,
                                    .space = 1,
                                    .layer = l,
                                    .count = o->sequences,
                                    .ticket = ++b->ticket,
                                    .length = (uint32_t)layout.in_bytes},
                   b->table, b->in, msg);
        if (!err)
            err = call(b,
                       (struct command){.opcode = OP_COLLECT,
                                        .space = 1,
                                        .ticket = b->ticket,
                                        .length = (uint32_t)layout.out_bytes},
                       NULL, b->out, msg);
        *seconds += seconds_of(b) - start;
        for (uint32_t i = 0; i < o->sequences && !err; i++) {
            err = inst_status_from_nvme((uint16_t)((uint32_t *)(b->out + layout.status))[i]);
            if (err)
                inst_fail(msg, err, "ATTEND: %s", inst_status_text(err));
        }
        size_t heads = (size_t)o->sequences * o->q_heads;
        if (!err && captured)
            memcpy(captured + l * heads, b->out + layout.captured, heads * sizeof *captured);
    }
    b->tokens += step->append && !err;
    return err;
}
