// SPDX-License-Identifier: Apache-2.0
#include "drive/ftl/index_rows.h"
#include "base/checked.h"

#include <string.h>

enum {
    COVER_MIN = 256, // tokens of a row
    COVER_MAX = 1024,
    COVER_SHARE = 4,     // but no more than this part of the context
    ROW_BYTES = 2 << 20, // about as much at most, where that covers COVER_MIN tokens
    ROW_PAGES = 1024,    // at most: all of them are programmed at once
    BLOCKS_MORE = 8,     // beside one for each layer: rows on their way to flash
    PROGRAM_TRIES = 4,
    LEAF_BLOCKS = 16,
};

// Summaries of a run of pieces, as in a row: [kv_heads][pieces]. Shared by forks and units.
struct block {
    uint32_t refs;
    uint32_t first; // pieces before it are in the row
    uint8_t data[];
};

// Entry of the map of blocks. NULL: all of the run is in its row.
struct entry {
    struct block *block;
};

// Of a layer of a sequence.
struct rows_layer {
    struct layer_state *layer;
    struct map rows;   // PLACE_NONE: there is no row
    struct map blocks; // may end before the rows do
    uint64_t settled;  // runs before this one are complete and what becomes of them is done
    uint32_t tries;    // to program the next one
    bool queued;
    struct rows_layer *next; // in the queue of layers that have a complete run
};

// Of a space.
struct index_rows {
    struct space *space;
    struct index_maker maker;
    struct index_row row;
    struct map_kind blocks;
    struct frame **pages; // of a row that is about to be programmed
    struct rows_layer *first, **last;
    uint64_t n_blocks;
    bool starved; // all that are in the queue lack DRAM
};

static struct index_rows *index_of(const struct space *space)
{
    return space->derived[STREAM_INDEX];
}

static struct rows_layer *state_of(const struct layer_state *layer)
{
    return layer->derived[STREAM_INDEX];
}

// ---- sizes -------------------------------------------------------------------------------------

// Whole blocks of what is weighed together: as many as come to `most` tokens, of COVER_MIN at
// least.
static uint32_t cover(const struct index_shape *shape, uint64_t most)
{
    const uint64_t weighed = MASS_SLICES / div_round_up(shape->keys, KERNEL_LANES);
    uint64_t tokens = weighed * shape->piece;
    while (tokens < COVER_MIN || 2 * tokens <= most)
        tokens *= 2;
    return (uint32_t)tokens;
}

static struct index_row row_of(const struct space_config *c, uint64_t most)
{
    const struct index_shape shape = index_shape(c);
    struct index_row row = {.tokens = cover(&shape, most),
                            .together = space_config_together(c),
                            .summary_bytes = index_bytes(&shape)};
    while (row.tokens % c->group_tokens) // a token group lies in one
        row.tokens *= 2;
    row.pieces = row.tokens / shape.piece;
    row.head_bytes = row.pieces * row.summary_bytes;
    row.set_bytes = div_round_up(row.together * row.head_bytes, INDEX_PAGE) * INDEX_PAGE;
    row.bytes = c->kv_heads / row.together * row.set_bytes;
    return row;
}

struct index_row index_row(const struct space_config *c)
{
    uint64_t most = min_u64(COVER_MAX, c->max_tokens / COVER_SHARE);
    while (most > COVER_MIN && row_of(c, most).bytes > ROW_BYTES)
        most /= 2;
    return row_of(c, most);
}

double index_row_share(const struct space_config *config)
{
    struct space_config c = *config;
    c.group_tokens = 1;
    const struct index_row row = row_of(&c, COVER_MAX);
    return (double)row.set_bytes /
           ((double)row.together * row.tokens * (double)kv_token_bytes(c.kv_type, c.head_dim));
}

static int rows_layout(struct stream *stream, const struct flash_geometry *g,
                       const struct space_config *c, struct inst_msg *msg)
{
    int status = stream_index.layout(stream, g, c, msg);
    if (status)
        return status;
    if (c->piece_look)
        return inst_fail(msg, INST_EINVAL,
                         "CONFIG: an index on flash is read as a whole: no piece_look");
    const struct index_row row = index_row(c);
    stream->row_tokens = row.tokens;
    stream->slot_bytes = row.head_bytes;
    stream->data_bytes = row.bytes;
    stream->row_pages = (uint32_t)div_round_up(stream->data_bytes, g->page_bytes);
    stream->row_bytes = (uint64_t)stream->row_pages * g->page_bytes;
    if (!segment_capacity(g, stream->row_pages) || stream->row_pages > ROW_PAGES)
        return inst_fail(msg, INST_EINVAL,
                         "CONFIG: a row of the index of %u pages, no more than %u fit, or a block "
                         "of %u",
                         stream->row_pages, ROW_PAGES, g->pages_per_block);
    return 0;
}

static void share_block(void *arg, void *entry)
{
    const struct entry *e = entry;
    (void)arg;
    if (e->block)
        e->block->refs++;
}

static void drop_block(void *arg, void *entry)
{
    struct index_rows *own = arg;
    struct entry *e = entry;
    if (e->block && !--e->block->refs) {
        budget_free(own->space->budget, e->block);
        own->n_blocks--;
    }
    e->block = NULL;
}

static struct map_kind blocks_kind(struct index_rows *own)
{
    return (struct map_kind){.entry_bytes = sizeof(struct entry),
                             .leaf_entries = LEAF_BLOCKS,
                             .share = share_block,
                             .drop = drop_block,
                             .arg = own,
                             .budget = own ? own->space->budget : NULL};
}

uint64_t index_rows_hold_bytes(void)
{
    const struct map_kind kind = blocks_kind(NULL);
    return map_bytes(&kind, 1) + 4096;
}

static int rows_plan(struct stream_plan *plan, const struct flash_geometry *g,
                     const struct space_config *c, const struct stream *streams, unsigned level,
                     struct inst_msg *msg)
{
    const struct map_kind kind = blocks_kind(NULL);
    const struct stream *own = &streams[STREAM_INDEX];
    const uint64_t sequences = max_u64(c->max_sequences, 1), extra = 4096 + 64;
    const uint64_t block = sizeof(struct block) + own->data_bytes;
    uint64_t runs = c->max_tokens / own->row_tokens + 2, map, each, blocks, least, full, more;
    (void)g, (void)level;
    least = map_bytes(&kind, LEAF_BLOCKS) + 1024 + block + extra + sizeof(struct rows_layer) + 128;
    full = map_bytes(&kind, runs);
    if (!row_maps_bytes(own, c->layers, sequences, runs, &map) ||
        !row_maps_bytes(own, c->layers, 0, runs, &each) ||
        !checked_mul(least, sequences, &blocks) || !checked_add(blocks, full, &blocks) ||
        !checked_mul(blocks, c->layers, &blocks) ||
        !checked_mul(sequences - 1, each + c->layers * full, &more) || more > INT64_MAX / 8 ||
        blocks > INT64_MAX / 8)
        return inst_fail(msg, INST_EINVAL, "CONFIG: an index of %llu tokens overflows",
                         (unsigned long long)c->max_tokens);
    plan->pages = own->row_pages;
    plan->more = more;
    plan->bytes = map + blocks + BLOCKS_MORE * (block + extra) + sizeof(struct index_rows) +
                  own->row_pages * sizeof(struct frame *) + index_maker_bytes(c) + 2 * extra;
    return 0;
}

static uint64_t rows_rows(const struct space_config *c, const struct stream *streams)
{
    return c->max_tokens / streams[STREAM_INDEX].row_tokens * c->layers;
}

// ---- open and close ----------------------------------------------------------------------------

static int rows_open(struct space *space, unsigned level, struct inst_msg *msg)
{
    struct index_rows *own = budget_alloc(space->budget, 1, sizeof *own, "the index", msg);
    (void)level;
    if (!own)
        return INST_ENOMEM;
    space->derived[STREAM_INDEX] = own;
    own->space = space;
    own->row = index_row(&space->config);
    own->last = &own->first;
    own->blocks = blocks_kind(own);
    space->beside = &own->blocks;
    const int status = index_maker_open(&own->maker, space, msg);
    own->pages = budget_alloc(space->budget, space->streams[STREAM_INDEX].row_pages,
                              sizeof *own->pages, "the index", msg);
    return status || !own->pages ? INST_ENOMEM : 0;
}

static void rows_close(struct space *space)
{
    struct index_rows *own = index_of(space);
    if (!own)
        return;
    space->beside = NULL;
    index_maker_close(&own->maker, space);
    budget_free(space->budget, own->pages);
    budget_free(space->budget, own);
}

static int rows_layer_open(struct space *space, struct layer_state *layer, struct inst_msg *msg)
{
    struct rows_layer *own = budget_alloc(space->budget, 1, sizeof *own, "the index", msg);
    layer->derived[STREAM_INDEX] = own;
    if (!own)
        return INST_ENOMEM;
    own->layer = layer;
    return 0;
}

static void unqueue(struct index_rows *own, struct rows_layer *layer)
{
    struct rows_layer **link = &own->first;
    if (!layer->queued)
        return;
    while (*link != layer)
        link = &(*link)->next;
    *link = layer->next;
    if (!*link)
        own->last = link;
    layer->queued = false;
}

static void rows_layer_close(struct space *space, struct layer_state *layer)
{
    struct rows_layer *own = state_of(layer);
    if (!own)
        return;
    unqueue(index_of(space), own);
    map_truncate(&space->maps[STREAM_INDEX].kind, &own->rows, 0);
    map_truncate(&index_of(space)->blocks, &own->blocks, 0);
    budget_free(space->budget, own);
}

// ---- maps --------------------------------------------------------------------------------------

static struct row *row_at(const struct space *space, const struct layer_state *layer, uint64_t run)
{
    const struct map *rows = &state_of(layer)->rows;
    return run < rows->n ? row_map_at(space, STREAM_INDEX, rows, run) : NULL;
}

static struct block *block_at(const struct index_rows *own, const struct map *blocks, uint64_t run)
{
    return run < blocks->n ? ((struct entry *)map_at(&own->blocks, blocks, run))->block : NULL;
}

static uint64_t runs_of(const struct index_rows *own, uint64_t pieces)
{
    return div_round_up(pieces, own->row.pieces);
}

// Blocks that are of use where so many pieces are left: the last one may begin behind them.
static uint64_t blocks_left(const struct index_rows *own, const struct map *blocks, uint64_t pieces)
{
    const uint64_t n = min_u64(runs_of(own, pieces), blocks->n);
    const struct block *last = n ? block_at(own, blocks, n - 1) : NULL;
    return last && (n - 1) * own->row.pieces + last->first > pieces ? n - 1 : n;
}

// And rows: none of the last run where its block has all that is left.
static uint64_t rows_left(const struct index_rows *own, const struct rows_layer *layer,
                          uint64_t pieces)
{
    const uint64_t runs = runs_of(own, pieces), blocks = blocks_left(own, &layer->blocks, pieces);
    const bool part = pieces % own->row.pieces && blocks == runs;
    const struct block *last = part ? block_at(own, &layer->blocks, runs - 1) : NULL;
    return min_u64(last && !last->first ? runs - 1 : runs, layer->rows.n);
}

int index_rows_hold(const struct space *space, const struct layer_state *layer, uint64_t pieces,
                    struct map *held)
{
    struct index_rows *own = index_of(space);
    const struct map *blocks = &state_of(layer)->blocks;
    return map_fork(&own->blocks, blocks, held, min_u64(runs_of(own, pieces), blocks->n), NULL);
}

void index_rows_let_go(const struct space *space, struct map *held)
{
    map_truncate(&index_of(space)->blocks, held, 0);
}

struct index_part index_rows_part(const struct space *space, const struct map *held, uint64_t run,
                                  uint32_t head)
{
    const struct index_rows *own = index_of(space);
    const struct block *block = block_at(own, held, run);
    if (!block)
        return (struct index_part){.summaries = NULL};
    return (struct index_part){.summaries = block->data + index_row_at(&own->row, head),
                               .first = block->first};
}

// ---- appending ---------------------------------------------------------------------------------

static bool pending(const struct index_rows *own, const struct rows_layer *layer)
{
    return layer->layer->tokens / own->maker.shape.piece / own->row.pieces > layer->settled;
}

static void rows_appended(struct space *space, struct layer_state *layer)
{
    struct index_rows *own = index_of(space);
    struct rows_layer *state = state_of(layer);
    if (state->queued || !pending(own, state))
        return;
    state->queued = true;
    own->starved = false;
    state->next = NULL;
    *own->last = state;
    own->last = &state->next;
}

// The layer's own block of the run that its next tokens belong to.
static int rows_reserve(struct space *space, struct layer_state *layer, uint64_t tokens,
                        struct inst_msg *msg)
{
    struct index_rows *own = index_of(space);
    struct map *blocks = &state_of(layer)->blocks;
    const uint64_t run = layer->tokens / own->row.tokens;
    struct entry *entry = NULL;
    (void)tokens;                // of the same run: a token group lies in one
    rows_appended(space, layer); // a long WRITE may need what complete runs give back
    while (blocks->n <= run)
        if (!(entry = map_append(&own->blocks, blocks, msg)))
            return INST_ENOMEM;
    if (!entry && !(entry = map_edit(&own->blocks, blocks, run, msg)))
        return INST_ENOMEM;
    if (entry->block && entry->block->refs == 1)
        return 0;
    struct block *block =
        budget_alloc(space->budget, 1, sizeof *block + own->row.bytes, "a block of the index", msg);
    if (!block)
        return INST_ENOMEM;
    own->n_blocks++;
    block->refs = 1;
    block->first = (uint32_t)(layer->tokens % own->row.tokens / own->maker.shape.piece);
    if (entry->block) {
        block->first = entry->block->first;
        memcpy(block->data, entry->block->data, own->row.bytes);
        drop_block(own, entry);
    }
    entry->block = block;
    return 0;
}

// Summaries of the pieces that are complete now.
static void rows_append(struct space *space, struct layer_state *layer, uint32_t head,
                        uint64_t first, const uint16_t *k, const uint16_t *v, uint64_t n)
{
    struct index_rows *own = index_of(space);
    const uint32_t piece = own->maker.shape.piece;
    (void)k, (void)v;
    for (uint64_t p = first / piece; (p + 1) * piece <= first + n; p++) {
        struct block *block =
            block_at(own, &state_of(layer)->blocks, p / own->row.pieces); // reserved
        const uint64_t at =
            index_row_at(&own->row, head) + p % own->row.pieces * own->row.summary_bytes;
        index_make(&own->maker, space, layer, head, p, block->data + at);
    }
}

// ---- to flash ----------------------------------------------------------------------------------

static bool take_pages(struct space *space, struct frame **pages, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        pages[i] = frames_take_page(space->frames, i ? pages[i - 1] : NULL);
        if (pages[i])
            continue;
        while (i--)
            frames_give(space->frames, pages[i]);
        return false;
    }
    return true;
}

// WAIT: it is on its way, or cannot be yet. DONE: flash has no room. FAILED: no DRAM now.
static enum progress program_run(struct space *space, struct rows_layer *layer, uint64_t run,
                                 const struct block *block)
{
    struct index_rows *own = index_of(space);
    const struct stream *stream = &space->streams[STREAM_INDEX];
    const uint64_t page = space->flash->geometry.page_bytes;
    struct row *row = row_edit(space, STREAM_INDEX, &layer->rows, run, run + 1);
    if (!row)
        return FAILED;
    if (!frames_can_program(space->frames, 0, stream->row_pages) ||
        !take_pages(space, own->pages, stream->row_pages))
        return WAIT;
    for (uint32_t i = 0; i < stream->row_pages; i++) {
        const uint64_t n = min_u64(page, stream->data_bytes - i * page);
        memcpy(own->pages[i]->data, block->data + i * page, n);
        memset(own->pages[i]->data + n, 0, page - n);
    }
    const enum progress progress =
        row_program(space, layer->layer, STREAM_INDEX, run, row, own->pages);
    layer->tries += progress == DONE;
    return progress == FAILED ? DONE : WAIT;
}

// Some page of the row is on its way: the last ones longest, as a rule.
static bool programming(const struct space *space, const struct rows_layer *layer, uint64_t run,
                        const struct row *row)
{
    struct page_identity identity;
    if (!frames_programming(space->frames))
        return false;
    stream_identity(space, row, (uint32_t)(layer->layer - layer->layer->sequence->layers),
                    STREAM_INDEX, run, &identity);
    for (uint32_t i = space->streams[STREAM_INDEX].row_pages; i-- > 0;) {
        identity.page = i; // a group is one row
        const struct frame *frame = frames_find_page(space->frames, row->place, i, &identity);
        if (frame && frame->state == FRAME_PROGRAM)
            return true;
    }
    return false;
}

// The next complete run of a layer. DONE: it is settled. FAILED: no DRAM now.
static enum progress settle(struct space *space, struct rows_layer *layer)
{
    struct index_rows *own = index_of(space);
    const uint64_t run = layer->settled;
    const struct block *block = block_at(own, &layer->blocks, run);
    const struct row *row = row_at(space, layer->layer, run);
    if (!block || block->first)
        return DONE;              // it is all in the row, or stays in two parts
    if (!row || !row_placed(row)) // or stays where it is
        return layer->tries == PROGRAM_TRIES ? DONE : program_run(space, layer, run, block);
    if (programming(space, layer, run, row))
        return WAIT;
    struct entry *entry = map_edit(&own->blocks, &layer->blocks, run, NULL);
    if (!entry)
        return FAILED;
    drop_block(own, entry);
    return DONE;
}

static bool rows_work(struct space *space, struct engine *engine, uint64_t now_ns)
{
    struct index_rows *own = index_of(space);
    bool moved = false, waits = false;
    (void)engine, (void)now_ns;
    for (struct rows_layer *next, *layer = own->first; layer; layer = next) {
        next = layer->next;
        while (pending(own, layer)) {
            const uint32_t tries = layer->tries;
            const enum progress progress = settle(space, layer);
            moved |= progress == DONE || layer->tries != tries;
            waits |= progress == WAIT;
            if (progress != DONE)
                break;
            layer->settled++;
            layer->tries = 0;
        }
        if (!pending(own, layer)) {
            unqueue(own, layer);
            moved = true;
        }
    }
    own->starved = !moved && !waits;
    return moved;
}

// Those that lack DRAM alone go on when there is some: nobody is to wait for them meanwhile.
static bool rows_working(const struct space *space)
{
    const struct index_rows *own = index_of(space);
    return own->first && !own->starved;
}

// A page of a row did not get there: all that refer to the row have its block, too, and will try
// again.
static void rows_lost(struct space *space, struct place place, const struct page_identity *identity)
{
    for (struct sequence *s = NULL; (s = space_next(space, s));) {
        struct row *row = row_at(space, &s->layers[identity->layer], identity->group);
        if (row && row->place.segment == place.segment && row->place.row == place.row)
            row_drop(space, STREAM_INDEX, row);
    }
}

// ---- truncation and forks ----------------------------------------------------------------------

static void rows_truncate(struct space *space, struct layer_state *layer, uint64_t tokens)
{
    struct index_rows *own = index_of(space);
    struct rows_layer *state = state_of(layer);
    const uint64_t pieces = tokens / own->maker.shape.piece, whole = pieces / own->row.pieces;
    map_truncate(&space->maps[STREAM_INDEX].kind, &state->rows, rows_left(own, state, pieces));
    map_truncate(&own->blocks, &state->blocks, blocks_left(own, &state->blocks, pieces));
    state->settled = min_u64(state->settled, whole);
    state->tries = 0;
}

static int rows_fork(struct space *space, const struct layer_state *from, struct layer_state *to,
                     uint64_t tokens, struct inst_msg *msg)
{
    struct index_rows *own = index_of(space);
    const struct rows_layer *state = state_of(from);
    struct rows_layer *child = state_of(to);
    const uint64_t pieces = tokens / own->maker.shape.piece;
    int status = map_fork(&space->maps[STREAM_INDEX].kind, &state->rows, &child->rows,
                          rows_left(own, state, pieces), msg);
    if (!status)
        status = map_fork(&own->blocks, &state->blocks, &child->blocks,
                          blocks_left(own, &state->blocks, pieces), msg);
    child->settled = min_u64(state->settled, pieces / own->row.pieces);
    return status;
}

// ---- what is told ------------------------------------------------------------------------------

static void rows_stats(const struct space *space, struct drive_stats *stats)
{
    const struct index_rows *own = index_of(space);
    stats->pages_dram_bytes += own->n_blocks * (sizeof(struct block) + own->row.bytes);
    for (struct sequence *s = NULL; (s = space_next(space, s));) {
        for (uint32_t l = 0; l < space->config.layers; l++) {
            const struct rows_layer *layer = state_of(&s->layers[l]);
            stats->pages_dram_bytes += map_bytes(&own->blocks, layer->blocks.n) +
                                       map_bytes(&space->maps[STREAM_INDEX].kind, layer->rows.n);
        }
    }
}

static int rows_check(const struct space *space, const struct layer_state *layer,
                      struct inst_msg *msg)
{
    const struct index_rows *own = index_of(space);
    const struct rows_layer *state = state_of(layer);
    const uint64_t pieces = layer->tokens / own->maker.shape.piece;
    if (pending(own, state) && !state->queued)
        return inst_fail(msg, INST_EINTERNAL, "rows of an index, settled: %llu and %llu",
                         (unsigned long long)(pieces / own->row.pieces),
                         (unsigned long long)state->settled);
    for (uint64_t run = 0; run < runs_of(own, pieces); run++) {
        const struct block *block = block_at(own, &state->blocks, run);
        const struct row *row = row_at(space, layer, run);
        const bool placed = row && row_placed(row);
        if (placed ? !segments_references(space->segments, row->place) : !block || block->first)
            return inst_fail(msg, INST_EINTERNAL, "row %llu of an index is nowhere",
                             (unsigned long long)run);
    }
    return 0;
}

static const struct map *rows_of(const struct layer_state *layer)
{
    return &state_of(layer)->rows;
}

static int rows_take_slab(struct space *space, struct sequence *sequence,
                          const struct stream_slab *slab)
{
    (void)space, (void)sequence, (void)slab;
    return 0;
}

// Rows of K and V that were given up cannot be attended to; that says who reads them.
static int rows_punch(struct space *space, struct layer_state *layer, uint64_t first, uint64_t end,
                      struct inst_msg *msg)
{
    (void)space, (void)layer, (void)first, (void)end, (void)msg;
    return 0;
}

static void rows_choose(struct space_config *c, const struct flash_geometry *g)
{
    stream_index.choose(c, g);
}

const struct stream_ops stream_index_rows = {
    .name = "index",
    .choose = rows_choose,
    .layout = rows_layout,
    .plan = rows_plan,
    .rows = rows_rows,
    .open = rows_open,
    .close = rows_close,
    .layer_open = rows_layer_open,
    .layer_close = rows_layer_close,
    .row = row_at,
    .reserve = rows_reserve,
    .append = rows_append,
    .appended = rows_appended,
    .take_slab = rows_take_slab,
    .truncate = rows_truncate,
    .punch = rows_punch,
    .fork = rows_fork,
    .lost = rows_lost,
    .work = rows_work,
    .working = rows_working,
    .stats = rows_stats,
    .check = rows_check,
    .rows_of = rows_of,
};
