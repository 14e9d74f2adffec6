// SPDX-License-Identifier: Apache-2.0
// Prefill of a chunk, layer by layer. K and V are rounded to fp16 into a slab that is both the
// WRITE payload and what the chunk itself attends over, so every token sees exactly what decode
// would see. Earlier KV comes back through READ in pieces of whole tiles, two in flight, those of
// the next layer already while this one computes. Attention walks tiles of 64 absolute positions in
// ascending order (contract point 8); the one tile that holds stored tokens and the chunk's own is
// put together in `stage`, because a tile is the unit of rounding and must not be evaluated in two
// parts. Work is spread by (KV head, block of queries).
#include "host/engine/engine.h"
#include "base/checked.h"

#include <stdalign.h>
#include <string.h>

// Queries of a KV head that share a tile once it is turned and converted: fewer where that many
// would leave workers without a block.
enum { BLOCK_QUERIES = 256, BLOCK_QUERIES_LEAST = 64, BLOCKS_PER_WORKER = 4 };

// Consecutive tokens in a slab, from a position that the tile divides.
struct run {
    const uint16_t *slab; // [kv_heads]{K [slab_tokens][head_dim], V the same}
    uint64_t slab_tokens;
    uint64_t offset; // of the first token in the slab
    uint64_t pos, tokens;
};

// The table of a command with one item.
struct one_item {
    alignas(64) unsigned char bytes[TABLE_HEADER_BYTES + TABLE_ITEM_BYTES];
};

// READs of the pieces of [0, pos0) that a layer's queries see, of every layer, in the order in
// which prefill wants them.
struct reader {
    struct inst_session *s;
    uint64_t pos0;
    uint32_t pieces;       // of one layer
    uint32_t layer, piece; // next to issue
    uint64_t issued, consumed;
    int collect[2]; // handles
};

struct chunk {
    struct inst_engine *e;
    struct inst_session *s;
    size_t n;
    uint64_t pos0;
    uint32_t layer;
    size_t group;             // query heads of a KV head
    uint16_t *slab;           // K, V of the current layer
    struct one_item table[2]; // of the WRITEs in flight, by parity of the layer
    int write[2];             // their handles, -1 = none
    struct number_fault fault;
    struct reader reader;
    struct run run[2];
    size_t n_runs;
};

static uint64_t piece_tokens(const struct reader *r, uint64_t piece)
{
    uint64_t tokens = r->s->engine->plan.piece;
    return min_u64(tokens, r->pos0 - piece * tokens);
}

static unsigned char *piece_buffer(const struct inst_engine *e, uint64_t index)
{
    return engine_bytes(e, index & 1 ? BUFFER_piece1 : BUFFER_piece0);
}

// The first piece that the queries of a layer see.
static uint32_t first_piece(const struct reader *r, uint32_t layer)
{
    const struct inst_engine *e = r->s->engine;
    return (uint32_t)min_u64(layer_window_start(e, layer, r->pos0) / e->plan.piece, r->pieces);
}

static struct table_item session_item(const struct inst_session *s, uint64_t pos, uint64_t n)
{
    return (struct table_item){.seq = s->slot, .epoch = s->epoch, .pos = pos, .n_tokens = n};
}

// The table of a command about n tokens; returns the slab's bytes.
static uint32_t put_table(struct inst_session *s, struct one_item *table, uint64_t pos, uint64_t n)
{
    const struct model_config *c = &s->engine->config;
    table_put_header(table->bytes, &(struct table_header){.head_count = c->kv_heads});
    struct table_item item = session_item(s, pos, n);
    table_put_item(table->bytes, 0, &item);
    return (uint32_t)((n * c->kv_heads * c->head_dim * 4 + 63) / 64 * 64);
}

// Keeps both piece buffers busy.
static int reader_issue(struct reader *r, struct inst_msg *msg)
{
    struct inst_engine *e = r->s->engine;
    while (r->issued - r->consumed < 2 && r->layer < e->config.layers) {
        if (r->piece < first_piece(r, r->layer))
            r->piece = first_piece(r, r->layer);
        if (r->piece == r->pieces) {
            r->piece = 0;
            r->layer++;
            continue;
        }
        uint64_t n = piece_tokens(r, r->piece);
        struct one_item table;
        uint32_t bytes = put_table(r->s, &table, (uint64_t)r->piece * e->plan.piece, n);
        struct command read = {
            .opcode = OP_READ, .layer = r->layer, .count = 1, .ticket = port_ticket(&e->port)};
        struct command collect = {
            .opcode = OP_COLLECT, .layer = r->layer, .ticket = read.ticket, .length = bytes};
        // A READ is complete once it is admitted and does its work when COLLECT has come. COLLECT
        // goes only after one that was accepted: a refused READ leaves no ticket to wait for.
        int err = port_call(&e->port, read, table.bytes, NULL, NULL, msg);
        if (err)
            return err;
        int handle = port_submit(&e->port, collect, NULL, piece_buffer(e, r->issued), msg);
        if (handle < 0)
            return handle;
        r->collect[r->issued & 1] = handle;
        r->issued++;
        r->piece++;
    }
    return 0;
}

// The oldest piece in flight, complete.
static int reader_wait(struct reader *r, const uint16_t **slab, struct inst_msg *msg)
{
    struct inst_engine *e = r->s->engine;
    int err = port_wait(&e->port, r->collect[r->consumed & 1], NULL, msg);
    *slab = (const uint16_t *)piece_buffer(e, r->consumed);
    return err;
}

static int reader_next(struct reader *r, struct inst_msg *msg)
{
    r->consumed++;
    return reader_issue(r, msg);
}

// Rows of q and partials: [kv_heads][n][group].
static size_t query_index(const struct chunk *ch, size_t head, size_t row)
{
    return (head * ch->n + row) * ch->group;
}

static void put_row(void *arg, size_t row, const float *q, const float *k, const float *v)
{
    struct chunk *ch = arg;
    const struct inst_engine *e = ch->e;
    size_t dim = e->config.head_dim, group_dim = ch->group * dim;
    for (size_t h = 0; h < e->config.kv_heads; h++) {
        memcpy(engine_f32(e, BUFFER_q) + query_index(ch, h, row) * dim, q + h * group_dim,
               group_dim * sizeof *q);
        uint16_t *head = ch->slab + h * 2 * ch->n * dim;
        e->kernels->f32_to_f16(head + row * dim, k + h * dim, dim);
        e->kernels->f32_to_f16(head + (ch->n + row) * dim, v + h * dim, dim);
        numbers_check_f16(&ch->fault, row, NUMBER_K, head + row * dim, k + h * dim, dim);
        numbers_check_f16(&ch->fault, row, NUMBER_V, head + (ch->n + row) * dim, v + h * dim, dim);
    }
    numbers_check(&ch->fault, row, NUMBER_Q, q, e->config.kv_heads * group_dim);
}

// One tile for a block of rows; a row sees the tokens up to its own.
static void attend_tile(const struct chunk *ch, const struct run *run, uint64_t first, size_t head,
                        size_t row, size_t rows, void *scratch)
{
    const struct inst_engine *e = ch->e;
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
    bool limited = ch->pos0 + row + 1 < tile_pos + tile.tokens;
    for (size_t i = 0; limited && i < rows * ch->group; i++) {
        uint64_t end = ch->pos0 + row + i / ch->group + 1; // tokens that this query sees
        limit[i] = end > tile_pos ? (uint32_t)min_u64(end - tile_pos, tile.tokens) : 0;
    }
    // The last row's window starts last.
    bool windowed = layer_window_start(e, ch->layer, ch->pos0 + row + rows - 1) > tile_pos;
    for (size_t i = 0; windowed && i < rows * ch->group; i++) {
        uint64_t window = layer_window_start(e, ch->layer, ch->pos0 + row + i / ch->group);
        start[i] = window > tile_pos ? (uint32_t)min_u64(window - tile_pos, ATTENTION_TILE) : 0;
    }
    tile.first = windowed ? start : NULL;
    size_t index = query_index(ch, head, row);
    e->kernels->attention_tile(
        &tile, engine_f32(e, BUFFER_q) + index * dim, dim, rows * ch->group, limited ? limit : NULL,
        (float *)partial_at(engine_f32(e, BUFFER_partials), index, dim), 1, scratch);
}

static size_t block_rows(const struct chunk *ch)
{
    const struct inst_engine *e = ch->e;
    size_t queries = BLOCK_QUERIES;
    while (queries > BLOCK_QUERIES_LEAST && ch->n * ch->group * e->config.kv_heads / queries <
                                                (uint64_t)BLOCKS_PER_WORKER * pool_threads(e->pool))
        queries /= 2;
    return max_u64(queries / ch->group, 1);
}

static void attend_item(void *arg, size_t item, unsigned worker)
{
    const struct chunk *ch = arg;
    size_t blocks = div_round_up(ch->n, block_rows(ch));
    size_t head = item / blocks, row = item % blocks * block_rows(ch);
    size_t rows = min_u64(block_rows(ch), ch->n - row);
    // What this block sees.
    uint64_t start = layer_window_start(ch->e, ch->layer, ch->pos0 + row);
    uint64_t end = ch->pos0 + row + rows;
    for (size_t i = 0; i < ch->n_runs; i++) {
        for (uint64_t t = 0; t < ch->run[i].tokens; t += ATTENTION_TILE) {
            uint64_t pos = ch->run[i].pos + t;
            if (pos < end && pos + ATTENTION_TILE > start)
                attend_tile(ch, &ch->run[i], t, head, row, rows, pool_scratch(ch->e->pool, worker));
        }
    }
}

static void attend_runs(struct chunk *ch)
{
    if (ch->n_runs)
        pool_run(ch->n > 1 ? ch->e->pool : NULL, attend_item, ch,
                 ch->e->config.kv_heads * div_round_up(ch->n, block_rows(ch)));
    port_tick(&ch->e->port);
}

// Copies tokens [from, from + n) of a slab to tokens [to, to + n) of the stage.
static void stage_copy(const struct chunk *ch, const uint16_t *slab, uint64_t slab_tokens,
                       uint64_t from, uint64_t to, uint64_t n)
{
    size_t dim = ch->e->config.head_dim;
    uint16_t *stage = (uint16_t *)engine_bytes(ch->e, BUFFER_stage);
    // K and V of all heads follow each other, so both kinds are one loop.
    for (uint64_t i = 0; i < 2 * (uint64_t)ch->e->config.kv_heads; i++)
        memcpy(stage + (i * ATTENTION_TILE + to) * dim, slab + (i * slab_tokens + from) * dim,
               n * dim * sizeof *slab);
}

static int attend_earlier(struct chunk *ch, struct inst_msg *msg)
{
    struct reader *r = &ch->reader;
    for (uint32_t i = first_piece(r, ch->layer); i < r->pieces; i++) {
        const uint16_t *slab;
        int err = reader_wait(r, &slab, msg);
        if (err)
            return err;
        uint64_t tokens = piece_tokens(r, i), tail = tokens % ATTENTION_TILE;
        ch->run[0] = (struct run){.slab = slab,
                                  .slab_tokens = tokens,
                                  .tokens = tokens - tail,
                                  .pos = (uint64_t)i * ch->e->plan.piece};
        ch->n_runs = tokens > tail;
        attend_runs(ch);
        if (tail)
            stage_copy(ch, slab, tokens, tokens - tail, 0, tail);
        if ((err = reader_next(r, msg)))
            return err;
    }
    return 0;
}

static void attend_own(struct chunk *ch)
{
    uint64_t tail = ch->pos0 % ATTENTION_TILE, own = 0;
    ch->n_runs = 0;
    if (tail) {
        own = min_u64(ATTENTION_TILE - tail, ch->n);
        stage_copy(ch, ch->slab, ch->n, 0, tail, own);
        ch->run[ch->n_runs++] =
            (struct run){.slab = (const uint16_t *)engine_bytes(ch->e, BUFFER_stage),
                         .slab_tokens = ATTENTION_TILE,
                         .pos = ch->pos0 - tail,
                         .tokens = tail + own};
    }
    if (own < ch->n)
        ch->run[ch->n_runs++] = (struct run){.slab = ch->slab,
                                             .slab_tokens = ch->n,
                                             .offset = own,
                                             .pos = ch->pos0 + own,
                                             .tokens = ch->n - own};
    attend_runs(ch);
}

static void clear_row(const struct chunk *ch, size_t row)
{
    for (size_t h = 0; h < ch->e->config.kv_heads; h++)
        for (size_t g = 0; g < ch->group; g++)
            partial_clear(partial_at(engine_f32(ch->e, BUFFER_partials),
                                     query_index(ch, h, row) + g, ch->e->config.head_dim));
}

// Partials to [n][heads * head_dim] in q: the queries are no longer needed.
static void output_row(void *arg, size_t row, unsigned worker)
{
    (void)worker;
    const struct chunk *ch = arg;
    const struct model_config *c = &ch->e->config;
    float *out = engine_f32(ch->e, BUFFER_q) + row * row_stride((uint64_t)c->heads * c->head_dim);
    for (size_t h = 0; h < c->kv_heads; h++)
        for (size_t g = 0; g < ch->group; g++)
            ch->e->kernels->partial_output(partial_at(engine_f32(ch->e, BUFFER_partials),
                                                      query_index(ch, h, row) + g, c->head_dim),
                                           out + (h * ch->group + g) * c->head_dim, c->head_dim);
}

static int write_wait(struct chunk *ch, int index, struct inst_msg *msg)
{
    int handle = ch->write[index];
    ch->write[index] = -1;
    return handle < 0 ? 0 : port_wait(&ch->e->port, handle, NULL, msg);
}

static int write_slab(struct chunk *ch, uint32_t layer, struct inst_msg *msg)
{
    struct one_item *table = &ch->table[layer & 1];
    struct command write = {.opcode = OP_WRITE,
                            .layer = layer,
                            .count = 1,
                            .length = put_table(ch->s, table, ch->pos0, ch->n)};
    int handle = port_submit(&ch->e->port, write, table->bytes, ch->slab, msg);
    if (handle < 0)
        return handle;
    ch->write[layer & 1] = handle;
    return 0;
}

static int chunk_layer(struct chunk *ch, uint32_t layer, struct inst_msg *msg)
{
    struct inst_engine *e = ch->e;
    int err = write_wait(ch, layer & 1, msg);
    if (err)
        return err;
    ch->slab = (uint16_t *)engine_bytes(e, layer & 1 ? BUFFER_slab1 : BUFFER_slab0);
    ch->layer = layer;
    numbers_clear(&ch->fault);
    layer_qkv(e, layer, ch->n, put_row, ch);
    size_t bad;
    if (numbers_fault_row(&ch->fault, &bad))
        return numbers_fail(e, &ch->fault, layer, ch->pos0 + bad, msg);
    err = write_slab(ch, layer, msg);
    if (err)
        return err;
    for (size_t row = 0; row < ch->n; row++)
        clear_row(ch, row);
    err = attend_earlier(ch, msg);
    if (err)
        return err;
    attend_own(ch);
    pool_run(ch->n > 1 ? e->pool : NULL, output_row, ch, ch->n);
    layer_finish(e, layer, engine_f32(e, BUFFER_q),
                 row_stride((uint64_t)e->config.heads * e->config.head_dim), ch->n);
    return 0;
}

// Logits of all positions for whoever asked for them.
static int chunk_logits(struct chunk *ch, struct inst_msg *msg)
{
    struct inst_engine *e = ch->e;
    size_t vocab = e->config.vocab;
    // The strip buffers are free now; their room decides how many rows share one pass over the
    // output matrix.
    size_t room = e->plan.buffer[BUFFER_t1] / sizeof(float);
    size_t rows = min_u64(max_u64(room / row_stride(vocab), 1), e->plan.strip);
    float *out = room < row_stride(vocab) ? ch->s->logits : engine_f32(e, BUFFER_t1);
    for (size_t first = 0; first < ch->n; first += rows) {
        size_t n = min_u64(rows, ch->n - first);
        uint64_t bad = layer_logits(e, first, n, out, row_stride(vocab));
        for (size_t i = 0; i < n; i++) {
            if (bad >> i & 1)
                return numbers_fail_logits(e, ch->pos0 + first + i, msg);
            if (!ch->s->on_logits(ch->s->on_logits_user, ch->pos0 + first + i,
                                  out + i * row_stride(vocab)))
                return inst_fail(msg, INST_ECANCELLED, "cancelled");
        }
    }
    return 0;
}

static int chunk_work(struct chunk *ch, const int32_t *tokens,
                      const struct prefill_progress *progress, struct inst_msg *msg)
{
    struct inst_engine *e = ch->e;
    struct inst_session *s = ch->s;
    size_t n = ch->n;
    int err = reader_issue(&ch->reader, msg);
    if (err)
        return err;
    layer_embed(e, tokens, n);
    layer_positions(e, s->length, n);
    for (uint32_t layer = 0; layer < e->config.layers; layer++) {
        err = chunk_layer(ch, layer, msg);
        if (err)
            return err;
        uint64_t done = progress->before + n * (layer + 1) / e->config.layers;
        // The last layer's call would say that tokens are done which may still fail.
        if (progress->fn && layer + 1 < e->config.layers &&
            !progress->fn(progress->user, done, progress->total))
            return inst_fail(msg, INST_ECANCELLED, "cancelled");
    }
    for (int i = 0; i < 2; i++)
        if ((err = write_wait(ch, i, msg)))
            return err;
    if (s->on_logits && (err = chunk_logits(ch, msg)))
        return err;
    if (layer_logits(e, n - 1, 1, s->logits, row_stride(e->config.vocab)))
        return numbers_fail_logits(e, ch->pos0 + n - 1, msg);
    s->has_logits = true;
    return 0;
}

static int chunk_run(struct inst_session *s, const int32_t *tokens, size_t n,
                     const struct prefill_progress *progress, struct inst_msg *msg)
{
    struct inst_engine *e = s->engine;
    struct chunk ch = {.e = e,
                       .s = s,
                       .n = n,
                       .pos0 = s->length,
                       .group = e->config.heads / e->config.kv_heads,
                       .write = {-1, -1}};
    ch.reader = (struct reader){
        .s = s, .pos0 = s->length, .pieces = (uint32_t)div_round_up(s->length, e->plan.piece)};
    int err = chunk_work(&ch, tokens, progress, msg);
    if (err)
        port_drain(&e->port); // the tables of what is in flight lie in ch
    return err;
}

int prefill_run(struct inst_session *s, const int32_t *tokens, size_t n,
                const struct prefill_progress *progress, struct inst_msg *msg)
{
    struct inst_engine *e = s->engine;
    struct prefill_progress now = *progress;
    for (size_t done = 0; done < n;) {
        size_t count = min_u64(e->plan.chunk, n - done);
        int err = chunk_run(s, tokens + done, count, &now, msg);
        if (err) {
            session_cut(s, s->length, NULL);
            return err;
        }
        memcpy(s->tokens + s->length, tokens + done, count * sizeof *tokens);
        s->length += count;
        done += count;
        now.before += count;
        e->stats.prefill_tokens += count;
        if (now.fn && !now.fn(now.user, now.before, now.total) && done < n)
            return inst_fail(msg, INST_ECANCELLED, "cancelled");
    }
    return 0;
}
