// SPDX-License-Identifier: Apache-2.0
// Segments of prompts in a step. K and V are rounded to fp16 into a slab that is both the WRITE
// payload and what the segment itself attends over, so every token sees exactly what decode would
// see. Earlier KV comes back through READ in pieces of whole tiles, two in flight, those of the
// next segment and layer already while this one computes. Attention walks tiles of 64 absolute
// positions in ascending order (contract point 8); the one tile that holds stored tokens and the
// segment's own is put together in `stage`, because a tile is the unit of rounding and must not be
// evaluated in two parts. Work is spread by (KV head, block of queries).
#include "host/engine/step.h"
#include "base/checked.h"
#include "host/engine/guest.h"

#include <string.h>

// Queries of a KV head that share a tile once it is turned and converted: fewer where that many
// would leave workers without a block.
enum { BLOCK_QUERIES = 256, BLOCK_QUERIES_LEAST = 64, BLOCKS_PER_WORKER = 4 };

void prefill_place(struct step *t)
{
    size_t query = 0, slab = 0;
    for (size_t i = t->n_decode; i < t->n_seg; i++) {
        t->seg[i].query = query;
        t->seg[i].slab = slab;
        query += t->seg[i].n * t->e->config.heads;
        slab += engine_slab_bytes(t->e, t->seg[i].n);
    }
    t->reader = (struct step_reader){.segment = t->n_decode};
    t->writes.issued = t->writes.done = 0;
}

// K, V of a segment in the current layer.
static uint16_t *own_slab(const struct step *t, const struct step_segment *seg)
{
    enum buffer_id buffer = t->layer & 1 ? BUFFER_slab1 : BUFFER_slab0;
    return (uint16_t *)(engine_bytes(t->e, buffer) + seg->slab);
}

// ---- READ --------------------------------------------------------------------------------------

static uint64_t pieces(const struct step *t, const struct step_segment *seg)
{
    return div_round_up(seg->pos0, t->e->plan.piece);
}

static uint64_t piece_tokens(const struct step *t, const struct step_segment *seg, uint64_t piece)
{
    uint64_t tokens = t->e->plan.piece;
    return min_u64(tokens, seg->pos0 - piece * tokens);
}

static unsigned char *piece_buffer(const struct step *t, uint64_t index)
{
    return engine_bytes(t->e, index & 1 ? BUFFER_piece1 : BUFFER_piece0);
}

static bool guest_attends(const struct step *t, const struct step_segment *seg)
{
    return t->e->guest && seg->n == 1 && !seg->out->prompt;
}

// The first piece that the queries of a layer see.
static uint64_t first_piece(const struct step *t, const struct step_segment *seg, uint32_t layer)
{
    if (guest_attends(t, seg))
        return pieces(t, seg);
    return min_u64(layer_window_start(t->e, layer, seg->pos0) / t->e->plan.piece, pieces(t, seg));
}

static int issue_piece(struct step *t, const struct step_segment *seg, struct inst_msg *msg)
{
    struct step_reader *r = &t->reader;
    struct port *port = &t->e->port;
    struct one_item table;
    uint32_t bytes = engine_put_item(t->e, seg->s->seq, (uint64_t)r->piece * t->e->plan.piece,
                                     piece_tokens(t, seg, r->piece), &table);
    struct command read = {
        .opcode = OP_READ, .layer = r->layer, .count = 1, .ticket = port_ticket(port)};
    struct command collect = {
        .opcode = OP_COLLECT, .layer = r->layer, .ticket = read.ticket, .length = bytes};
    // A READ is complete once it is admitted and does its work when COLLECT has come. COLLECT
    // goes only after one that was accepted: a refused READ leaves no ticket to wait for.
    int err = port_call(port, read, table.bytes, NULL, NULL, msg);
    if (err)
        return err;
    int handle = port_submit(port, collect, NULL, piece_buffer(t, r->issued), msg);
    if (handle < 0)
        return handle;
    r->piece_of[r->issued & 1].handle = handle;
    r->piece_of[r->issued & 1].segment = r->segment;
    r->issued++;
    r->piece++;
    return 0;
}

void prefill_issue(struct step *t)
{
    struct step_reader *r = &t->reader;
    while (r->issued - r->consumed < 2 && r->layer < t->e->config.layers) {
        if (r->segment == t->n_seg) {
            r->segment = t->n_decode;
            r->piece = 0;
            r->layer++;
            continue;
        }
        struct step_segment *seg = &t->seg[r->segment];
        r->piece = (uint32_t)max_u64(r->piece, first_piece(t, seg, r->layer));
        if (seg->status || r->piece == pieces(t, seg)) {
            r->segment++;
            r->piece = 0;
            continue;
        }
        struct inst_msg msg = {0};
        int err = issue_piece(t, seg, &msg);
        if (err)
            step_fail(t, seg, err, msg.text);
    }
}

// The oldest piece in flight.
static int piece_wait(struct step *t, struct inst_msg *msg)
{
    return port_wait(&t->e->port, t->reader.piece_of[t->reader.consumed & 1].handle, NULL, msg);
}

// The next piece of a segment, complete, behind what segments had asked for that failed since.
// NULL: this one has failed.
static const uint16_t *next_piece(struct step *t, struct step_segment *seg)
{
    struct step_reader *r = &t->reader;
    while (!seg->status) {
        struct inst_msg msg = {0};
        bool own = &t->seg[r->piece_of[r->consumed & 1].segment] == seg;
        int err = piece_wait(t, &msg);
        if (own && !err)
            return (const uint16_t *)piece_buffer(t, r->consumed);
        if (own)
            step_fail(t, seg, err, msg.text);
        r->consumed++;
        prefill_issue(t);
    }
    return NULL;
}

// ---- WRITE -------------------------------------------------------------------------------------

static void write_wait(struct step *t)
{
    struct inst_msg msg = {0};
    size_t i = t->writes.done++ % STEP_WRITES;
    int err = port_wait(&t->e->port, t->writes.slot[i].handle, NULL, &msg);
    if (err)
        step_fail(t, &t->seg[t->writes.slot[i].segment], err, msg.text);
}

void prefill_write_room(struct step *t, uint32_t layer)
{
    struct step_writes *w = &t->writes;
    while (w->done < w->issued && w->slot[w->done % STEP_WRITES].layer + 2 <= layer)
        write_wait(t);
}

void prefill_write(struct step *t)
{
    struct step_writes *w = &t->writes;
    for (size_t i = t->n_decode; i < t->n_seg; i++) {
        struct step_segment *seg = &t->seg[i];
        if (w->issued - w->done == STEP_WRITES)
            write_wait(t);
        if (seg->status)
            continue;
        struct inst_msg msg = {0};
        size_t slot = w->issued % STEP_WRITES;
        struct command write = {.opcode = OP_WRITE, .layer = t->layer, .count = 1};
        write.length = engine_put_item(t->e, seg->s->seq, seg->pos0, seg->n, &w->slot[slot].table);
        int handle =
            port_submit(&t->e->port, write, w->slot[slot].table.bytes, own_slab(t, seg), &msg);
        if (handle < 0) {
            step_fail(t, seg, handle, msg.text);
            continue;
        }
        w->slot[slot].handle = handle;
        w->slot[slot].segment = i;
        w->slot[slot].layer = t->layer;
        w->issued++;
    }
}

void prefill_end(struct step *t)
{
    while (t->writes.done < t->writes.issued)
        write_wait(t);
    for (; t->reader.consumed < t->reader.issued; t->reader.consumed++)
        piece_wait(t, NULL);
}

// ---- Attention ---------------------------------------------------------------------------------

// Rows of q and partials: [kv_heads][n][group] of each segment.
static size_t query_index(const struct step *t, const struct step_segment *seg, size_t head,
                          size_t row)
{
    return seg->query + (head * seg->n + row) * t->group;
}

void prefill_put_row(struct step *t, struct step_segment *seg, size_t row, const float *q,
                     const float *k, const float *v)
{
    const struct inst_engine *e = t->e;
    size_t dim = e->config.head_dim, group_dim = t->group * dim;
    uint16_t *slab = own_slab(t, seg);
    for (size_t h = 0; h < e->config.kv_heads; h++) {
        memcpy(engine_f32(e, BUFFER_q) + query_index(t, seg, h, row) * dim, q + h * group_dim,
               group_dim * sizeof *q);
        uint16_t *head = slab + h * 2 * seg->n * dim;
        e->kernels->f32_to_f16(head + row * dim, k + h * dim, dim);
        e->kernels->f32_to_f16(head + (seg->n + row) * dim, v + h * dim, dim);
        numbers_check_f16(&seg->fault, row, NUMBER_K, head + row * dim, k + h * dim, dim);
        numbers_check_f16(&seg->fault, row, NUMBER_V, head + (seg->n + row) * dim, v + h * dim,
                          dim);
    }
    numbers_check(&seg->fault, row, NUMBER_Q, q, e->config.kv_heads * group_dim);
}

// One tile for a block of rows; a row sees the tokens up to its own.
static void attend_tile(const struct step *t, const struct step_run *run, uint64_t first,
                        size_t head, size_t row, size_t rows, void *scratch)
{
    const struct inst_engine *e = t->e;
    const struct step_segment *seg = t->at;
    size_t dim = e->config.head_dim;
    uint64_t tile_pos = run->pos + first;
    struct attention_tile tile = {
        .k = {run->slab + (head * 2 * run->slab_tokens + run->offset + first) * dim},
        .v = {run->slab + ((head * 2 + 1) * run->slab_tokens + run->offset + first) * dim},
        .tokens = (uint32_t)min_u64(ATTENTION_TILE, run->tokens - first),
        .head_dim = (uint32_t)dim,
        .scale = e->config.score_scale,
        .softcap = e->config.score_softcap,
    };
    _Static_assert((int)GROUP_MAX >= (int)BLOCK_QUERIES, "a block has at most this many queries");
    uint32_t limit[GROUP_MAX], start[GROUP_MAX];
    bool limited = seg->pos0 + row + 1 < tile_pos + tile.tokens;
    for (size_t i = 0; limited && i < rows * t->group; i++) {
        uint64_t end = seg->pos0 + row + i / t->group + 1; // tokens that this query sees
        limit[i] = end > tile_pos ? (uint32_t)min_u64(end - tile_pos, tile.tokens) : 0;
    }
    // The last row's window starts last.
    bool windowed = layer_window_start(e, t->layer, seg->pos0 + row + rows - 1) > tile_pos;
    for (size_t i = 0; windowed && i < rows * t->group; i++) {
        uint64_t window = layer_window_start(e, t->layer, seg->pos0 + row + i / t->group);
        start[i] = window > tile_pos ? (uint32_t)min_u64(window - tile_pos, ATTENTION_TILE) : 0;
    }
    tile.first = windowed ? start : NULL;
    size_t index = query_index(t, seg, head, row);
    e->kernels->attention_tile(
        &tile, engine_f32(e, BUFFER_q) + index * dim, dim, rows * t->group, limited ? limit : NULL,
        (float *)partial_at(engine_f32(e, BUFFER_partials), index, dim), 1, scratch);
}

static size_t block_rows(const struct step *t)
{
    const struct inst_engine *e = t->e;
    size_t queries = BLOCK_QUERIES, all = t->at->n * t->group * e->config.kv_heads;
    while (queries > BLOCK_QUERIES_LEAST &&
           all / queries < (uint64_t)BLOCKS_PER_WORKER * pool_threads(e->pool))
        queries /= 2;
    return max_u64(queries / t->group, 1);
}

static void attend_item(void *arg, size_t item, unsigned worker)
{
    const struct step *t = arg;
    const struct step_segment *seg = t->at;
    size_t blocks = div_round_up(seg->n, block_rows(t));
    size_t head = item / blocks, row = item % blocks * block_rows(t);
    size_t rows = min_u64(block_rows(t), seg->n - row);
    // What this block sees.
    uint64_t start = layer_window_start(t->e, t->layer, seg->pos0 + row);
    uint64_t end = seg->pos0 + row + rows;
    for (size_t i = 0; i < t->n_runs; i++) {
        for (uint64_t n = 0; n < t->run[i].tokens; n += ATTENTION_TILE) {
            uint64_t pos = t->run[i].pos + n;
            if (pos < end && pos + ATTENTION_TILE > start)
                attend_tile(t, &t->run[i], n, head, row, rows, pool_scratch(t->e->pool, worker));
        }
    }
}

static void attend_runs(struct step *t)
{
    if (t->n_runs)
        pool_run(t->at->n > 1 || t->e->host_attention ? t->e->pool : NULL, attend_item, t,
                 t->e->config.kv_heads * div_round_up(t->at->n, block_rows(t)));
    port_tick(&t->e->port);
}

// Copies tokens [from, from + n) of a slab to tokens [to, to + n) of the stage.
static void stage_copy(const struct step *t, const uint16_t *slab, uint64_t slab_tokens,
                       uint64_t from, uint64_t to, uint64_t n)
{
    size_t dim = t->e->config.head_dim;
    uint16_t *stage = (uint16_t *)engine_bytes(t->e, BUFFER_stage);
    // K and V of all heads follow each other, so both kinds are one loop.
    for (uint64_t i = 0; i < 2 * (uint64_t)t->e->config.kv_heads; i++)
        memcpy(stage + (i * ATTENTION_TILE + to) * dim, slab + (i * slab_tokens + from) * dim,
               n * dim * sizeof *slab);
}

static void attend_earlier(struct step *t, struct step_segment *seg)
{
    for (uint64_t i = first_piece(t, seg, t->layer); i < pieces(t, seg); i++) {
        const uint16_t *slab = next_piece(t, seg);
        if (!slab)
            return;
        uint64_t tokens = piece_tokens(t, seg, i), tail = tokens % ATTENTION_TILE;
        t->run[0] = (struct step_run){.slab = slab,
                                      .slab_tokens = tokens,
                                      .tokens = tokens - tail,
                                      .pos = i * t->e->plan.piece};
        t->n_runs = tokens > tail;
        attend_runs(t);
        if (tail)
            stage_copy(t, slab, tokens, tokens - tail, 0, tail);
        t->reader.consumed++;
        prefill_issue(t);
    }
}

static void attend_own(struct step *t, const struct step_segment *seg)
{
    const uint16_t *slab = own_slab(t, seg);
    uint64_t tail = seg->pos0 % ATTENTION_TILE, own = 0;
    t->n_runs = 0;
    if (tail) {
        own = min_u64(ATTENTION_TILE - tail, seg->n);
        stage_copy(t, slab, seg->n, 0, tail, own);
        t->run[t->n_runs++] =
            (struct step_run){.slab = (const uint16_t *)engine_bytes(t->e, BUFFER_stage),
                              .slab_tokens = ATTENTION_TILE,
                              .pos = seg->pos0 - tail,
                              .tokens = tail + own};
    }
    if (own < seg->n)
        t->run[t->n_runs++] = (struct step_run){.slab = slab,
                                                .slab_tokens = seg->n,
                                                .offset = own,
                                                .pos = seg->pos0 + own,
                                                .tokens = seg->n - own};
    attend_runs(t);
}

// Shows a segment to the guest; a decode row's outputs become partials that stand for themselves.
static void ask_guest(struct step *t, const struct step_segment *seg)
{
    const struct inst_engine *e = t->e;
    const struct model_config *c = &e->config;
    struct guest_rows rows = {.layer = t->layer,
                              .heads = c->heads,
                              .kv_heads = c->kv_heads,
                              .head_dim = c->head_dim,
                              .pos = seg->pos0,
                              .n = seg->n,
                              .window = model_layer_window(c, t->layer),
                              .scale = c->score_scale,
                              .softcap = c->score_softcap,
                              .q = engine_f32(e, BUFFER_q) + seg->query * c->head_dim,
                              .kv = own_slab(t, seg)};
    if (guest_attends(t, seg)) {
        float *partials = engine_f32(e, BUFFER_partials);
        for (size_t q = 0; q < c->heads; q++) {
            struct partial *p = partial_at(partials, seg->query + q, c->head_dim);
            p->max = 0;
            p->sum = 1;
        }
        struct partial *first = partial_at(partials, seg->query, c->head_dim);
        rows.out = first->acc;
        rows.out_stride = partial_stride(c->head_dim);
    }
    e->guest->attend(e->guest->user, &rows);
}

void prefill_attend(struct step *t)
{
    float *partials = engine_f32(t->e, BUFFER_partials);
    for (size_t i = t->n_decode; i < t->n_seg; i++) {
        struct step_segment *seg = &t->seg[i];
        if (seg->status)
            continue;
        for (size_t q = 0; q < seg->n * t->e->config.heads; q++)
            partial_clear(partial_at(partials, seg->query + q, t->e->config.head_dim));
        if (t->e->guest)
            ask_guest(t, seg);
        if (guest_attends(t, seg))
            continue;
        t->at = seg;
        attend_earlier(t, seg);
        if (!seg->status)
            attend_own(t, seg);
    }
}

static void output_row(void *arg, size_t index, unsigned worker)
{
    (void)worker;
    const struct step *t = arg;
    const struct model_config *c = &t->e->config;
    float *partials = engine_f32(t->e, BUFFER_partials);
    size_t row = t->n_decode + index;
    const struct step_segment *seg = &t->seg[t->segment_of[row]];
    if (seg->status)
        return;
    float *out = step_output(t, row);
    for (size_t h = 0; h < c->kv_heads; h++) {
        size_t query = query_index(t, seg, h, row - seg->row);
        for (size_t g = 0; g < t->group; g++)
            t->e->kernels->partial_output(partial_at(partials, query + g, c->head_dim),
                                          out + (h * t->group + g) * c->head_dim, c->head_dim);
    }
}

void prefill_outputs(struct step *t)
{
    size_t rows = t->n_rows - t->n_decode;
    pool_run(rows > 1 ? t->e->pool : NULL, output_row, t, rows);
}
