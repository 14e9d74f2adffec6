// SPDX-License-Identifier: Apache-2.0
#include "drive/ftl/channels.h"
#include "base/checked.h"
#include "drive/ftl/piece.h"
#include "kernels/kernels.h"

#include <string.h>

enum {
    PAGE_CHANNELS_MAX = 16,
    COVER_MIN = 256, // tokens that a page covers where the drive chooses
    COVER_MAX = 1024,
    COVER_SHARE = 8, // but no more than this part of the context
    PIECES_MAX = 8,
};

// What the engine was asked to do last, or nothing.
enum build_stage { BUILD_READS, BUILD_CHECKS, BUILD_PUTS };

// The one group that is being built, for one bundle of heads.
struct build {
    struct channel_layer *layer; // NULL: none, or one that was given up while the engine had it
    enum build_stage stage;
    uint64_t group, next; // next: token to read
    uint32_t head_first, n_heads;
    uint32_t waiting;             // pieces that are not computed
    struct piece *pieces, **last; // oldest first; only the last can be partly acquired
    struct frame **out;           // [bundle][row_pages]
    bool failed, given_up;
};

// Of a layer of a sequence.
struct channel_layer {
    struct layer_state *layer;
    struct map rows; // [channel group][kv_heads]; PLACE_NONE: there is no such row
    uint64_t groups; // before this one all are built or given up
    struct means means;
    struct channel_layer *next; // in the queue of layers with groups to be built
    bool queued;
};

// Of a space.
struct channels {
    struct space *space;
    uint32_t bundle;
    struct pieces pieces;
    struct build build;
    struct frame **unchecked;
    struct piece **ready; // what the engine works on
    size_t n_ready, n_unchecked;
    struct engine *engine;
    struct engine_task task;
    bool busy;                           // the engine has it
    struct map_kind sums;                // marks of the means
    struct channel_layer *first, **last; // queue
    uint64_t build_read_bytes, program_bytes, lost_rows;
};

struct channels_size {
    uint32_t pieces;      // reads of a build under way
    uint32_t piece_rows;  // token groups
    uint32_t piece_pages; // at most
};

static struct channels *channels_of(const struct space *space)
{
    return space->derived[STREAM_CHANNELS];
}

static struct channel_layer *state_of(const struct layer_state *layer)
{
    return layer->derived[STREAM_CHANNELS];
}

struct means *channels_means(const struct layer_state *layer)
{
    return &state_of(layer)->means;
}

// ---- layout ------------------------------------------------------------------------------------

static void channels_choose(struct space_config *c, const struct flash_geometry *g)
{
    if (c->page_channels)
        return;
    uint64_t cover = c->max_tokens / COVER_SHARE;
    cover = min_u64(max_u64(cover, max_u64(COVER_MIN, c->group_tokens)), COVER_MAX);
    c->page_channels = PAGE_CHANNELS_MAX;
    // More channels than a head has would only be padding.
    while (c->page_channels > 1 && (g->page_bytes / (2ull * c->page_channels) < cover ||
                                    c->page_channels / 2 >= c->head_dim))
        c->page_channels /= 2;
}

static int channels_layout(struct stream *stream, const struct flash_geometry *g,
                           const struct space_config *c, struct inst_msg *msg)
{
    if (c->kv_type != KV_F16)
        return inst_fail(msg, INST_ENOTSUP,
                         "CONFIG: sparf needs K and V as f16, not %s: its copy of K is of fp16",
                         kv_type_name(c->kv_type));
    if (!is_power_of_two(c->page_channels) || c->page_channels > PAGE_CHANNELS_MAX)
        return inst_fail(msg, INST_EINVAL,
                         "CONFIG: %u channels in a page, must be a power of two up to %u",
                         c->page_channels, PAGE_CHANNELS_MAX);
    stream->row_tokens = g->page_bytes / (2 * c->page_channels);
    stream->group_rows = c->kv_heads;
    if (stream->row_tokens < c->group_tokens)
        return inst_fail(msg, INST_EINVAL,
                         "CONFIG: %u channels in a page of %u bytes cover %u tokens, less than a "
                         "token group of %u",
                         c->page_channels, g->page_bytes, stream->row_tokens, c->group_tokens);
    stream->row_pages = (uint32_t)div_round_up(c->head_dim, c->page_channels);
    stream->data_bytes = stream->slot_bytes = 2ull * stream->row_tokens * c->head_dim;
    stream->row_bytes = (uint64_t)stream->row_pages * g->page_bytes;
    if (!segment_capacity(g, stream->row_pages))
        return inst_fail(msg, INST_EINVAL,
                         "CONFIG: a channel row of %u pages does not fit in a block of %u",
                         stream->row_pages, g->pages_per_block);
    return 0;
}

uint32_t channels_bundle(const struct flash_geometry *g, const struct space_config *c,
                         const struct stream *kv)
{
    uint64_t a = kv->slot_bytes, b = g->page_bytes, rest;
    while (b) { // greatest common divisor
        rest = a % b;
        a = b;
        b = rest;
    }
    return (uint32_t)min_u64(g->page_bytes / a, c->kv_heads);
}

static struct channels_size size_of(const struct flash_geometry *g, const struct space_config *c,
                                    const struct stream *kv, unsigned level)
{
    uint64_t slots = channels_bundle(g, c, kv) * kv->slot_bytes;
    return (struct channels_size){
        .pieces = (uint32_t)min_u64(1u << level, PIECES_MAX),
        .piece_rows = span_rows(c),
        .piece_pages = span_rows(c) * (uint32_t)(div_round_up(slots, g->page_bytes) + 1),
    };
}

static uint64_t channels_rows(const struct space_config *c, const struct stream *streams)
{
    return c->max_tokens / streams[STREAM_CHANNELS].row_tokens * (uint64_t)c->kv_heads * c->layers;
}

static int channels_plan(struct stream_plan *plan, const struct flash_geometry *g,
                         const struct space_config *c, const struct stream *streams, unsigned level,
                         struct inst_msg *msg)
{
    const struct stream *own = &streams[STREAM_CHANNELS];
    struct channels_size s = size_of(g, c, &streams[STREAM_KV], level);
    uint64_t sequences = max_u64(c->max_sequences, 1), rows, map, each, means, more;
    uint64_t least = means_bytes(c->kv_heads, c->head_dim, 0);
    uint64_t full = means_bytes(c->kv_heads, c->head_dim, c->max_tokens);
    if (!checked_mul(c->max_tokens / own->row_tokens + 1, c->kv_heads, &rows) ||
        !row_maps_bytes(own, c->layers, sequences, rows, &map) ||
        !row_maps_bytes(own, c->layers, 0, rows, &each) ||
        !checked_mul(sequences, c->layers * least, &means) ||
        !checked_add(means, c->layers * full, &means) ||
        !checked_add(each, c->layers * full, &each) || !checked_mul(sequences - 1, each, &more) ||
        more > INT64_MAX / 8 || means > INT64_MAX / 8)
        return inst_fail(msg, INST_EINVAL, "CONFIG: %llu tokens in %llu sequences overflow",
                         (unsigned long long)c->max_tokens, (unsigned long long)sequences);
    // A row being put together, the reads for it, and a row on its way to flash.
    uint32_t row_pages = channels_bundle(g, c, &streams[STREAM_KV]) * own->row_pages;
    plan->pages = 2 * row_pages + s.piece_pages;
    plan->more = more;
    plan->bytes = map + means + sequences * c->layers * (sizeof(struct channel_layer) + 128) +
                  sizeof(struct channels) + pieces_bytes(s.pieces, s.piece_rows, s.piece_pages) +
                  s.pieces * (sizeof(void *) + s.piece_pages * sizeof(void *)) +
                  row_pages * sizeof(struct frame *) + 4 * (4096 + 64);
    return 0;
}

static int channels_open(struct space *space, unsigned level, struct inst_msg *msg)
{
    const struct stream *kv = &space->streams[STREAM_KV];
    struct channels_size size = size_of(&space->flash->geometry, &space->config, kv, level);
    struct channels *c = budget_alloc(space->budget, 1, sizeof *c, "channel rows", msg);
    if (!c)
        return INST_ENOMEM;
    space->derived[STREAM_CHANNELS] = c;
    c->space = space;
    means_kind(&c->sums, space->config.kv_heads, space->config.head_dim, space->budget);
    space->beside = &c->sums;
    c->bundle = channels_bundle(&space->flash->geometry, &space->config, kv);
    c->last = &c->first;
    c->build.last = &c->build.pieces;
    c->build.out = budget_alloc(space->budget, c->bundle,
                                space->streams[STREAM_CHANNELS].row_pages * sizeof *c->build.out,
                                "channel rows", msg);
    c->ready = budget_alloc(space->budget, size.pieces, sizeof *c->ready, "channel rows", msg);
    c->unchecked = budget_alloc(space->budget, (uint64_t)size.pieces * size.piece_pages,
                                sizeof *c->unchecked, "channel rows", msg);
    if (!c->build.out || !c->ready || !c->unchecked)
        return INST_ENOMEM;
    return pieces_open(&c->pieces, space, size.pieces, size.piece_rows, size.piece_pages, msg);
}

static void channels_close(struct space *space)
{
    struct channels *c = channels_of(space);
    if (!c)
        return;
    while (c->busy) // far enough in the future for an engine with a time of its own
        engine_take(c->engine, UINT64_MAX / 2);
    space->beside = NULL;
    pieces_close(&c->pieces);
    budget_free(space->budget, c->build.out);
    budget_free(space->budget, c->ready);
    budget_free(space->budget, c->unchecked);
    budget_free(space->budget, c);
}

static int channels_layer_open(struct space *space, struct layer_state *layer, struct inst_msg *msg)
{
    struct channel_layer *own = budget_alloc(space->budget, 1, sizeof *own, "channel rows", msg);
    layer->derived[STREAM_CHANNELS] = own;
    if (!own)
        return INST_ENOMEM;
    own->layer = layer;
    return means_open(&own->means, &channels_of(space)->sums, space->config.kv_heads,
                      space->config.head_dim, space->budget, msg);
}

static void channels_layer_close(struct space *space, struct layer_state *layer)
{
    struct channel_layer *own = state_of(layer);
    if (!own)
        return;
    map_truncate(&space->maps[STREAM_CHANNELS].kind, &own->rows, 0);
    means_close(&own->means, space->budget);
    budget_free(space->budget, own);
}

// ---- map ---------------------------------------------------------------------------------------

static uint64_t index_of(const struct space *space, uint64_t group, uint32_t head)
{
    return group * space->config.kv_heads + head;
}

static uint32_t group_tokens(const struct space *space)
{
    return space->streams[STREAM_CHANNELS].row_tokens;
}

static struct row *channels_entry(const struct space *space, const struct layer_state *layer,
                                  uint64_t i)
{
    const struct map *map = &state_of(layer)->rows;
    return i < map->n ? row_map_at(space, STREAM_CHANNELS, map, i) : NULL;
}

struct row *channels_row(const struct space *space, const struct layer_state *layer, uint64_t group,
                         uint32_t head)
{
    struct row *row = channels_entry(space, layer, index_of(space, group, head));
    return row && row_placed(row) ? row : NULL;
}

// Gives the group's row of a head, whose pages are there, a place and programs it. False: there is
// no room for it; the frames are free again.
static bool program_row(struct space *space, struct layer_state *layer, uint64_t group,
                        uint32_t head, struct frame **pages)
{
    const struct stream *stream = &space->streams[STREAM_CHANNELS];
    struct row *row = row_edit(space, STREAM_CHANNELS, &state_of(layer)->rows,
                               index_of(space, group, head), index_of(space, group + 1, 0));
    for (uint32_t page = 0; !row && page < stream->row_pages; page++)
        frames_give(space->frames, pages[page]);
    if (!row || row_program(space, layer, STREAM_CHANNELS, index_of(space, group, head), row,
                            pages) != DONE)
        return false;
    channels_of(space)->program_bytes += stream->row_bytes;
    return true;
}

// A complete group is not settled.
static bool pending(const struct space *space, const struct layer_state *layer)
{
    return layer->tokens >= (state_of(layer)->groups + 1) * group_tokens(space);
}

static void channels_lost(struct space *space, struct place place,
                          const struct page_identity *identity)
{
    const struct stream *stream = &space->streams[STREAM_CHANNELS];
    bool any = false;
    for (struct sequence *s = NULL; (s = space_next(space, s));) {
        struct row *row = channels_row(space, &s->layers[identity->layer], identity->group,
                                       identity->page / stream->row_pages);
        if (!row || row->place.segment != place.segment || row->place.row != place.row)
            continue;
        row_drop(space, STREAM_CHANNELS, row);
        any = true;
        // Not tried again and again: the group is settled without it.
        struct layer_state *layer = &s->layers[identity->layer];
        if (state_of(layer)->groups == identity->group && pending(space, layer))
            state_of(layer)->groups++;
    }
    channels_of(space)->lost_rows += any;
}

// ---- transposing -------------------------------------------------------------------------------

// Puts K of n tokens, rows of head_dim, at token t of the row in `pages`.
static void put_tokens(const struct space *space, struct frame **pages, uint64_t t,
                       const uint16_t *k, uint64_t n)
{
    enum { CHANNELS = 16 };
    uint32_t dim = space->config.head_dim, per_page = space->config.page_channels;
    uint64_t tokens = group_tokens(space), step;
    uint16_t turned[CHANNELS * ATTENTION_TILE];
    for (; n; n -= step, k += step * dim, t += step) {
        step = min_u64(n, ATTENTION_TILE);
        for (uint32_t c = 0; c < dim; c++) {
            if (c % CHANNELS == 0)
                kernel_transpose16(turned, ATTENTION_TILE, k + c, dim, step,
                                   min_u64(CHANNELS, dim - c));
            uint16_t *page = (uint16_t *)pages[c / per_page]->data;
            memcpy(page + c % per_page * tokens + t, turned + c % CHANNELS * ATTENTION_TILE,
                   step * sizeof *page);
        }
    }
}

// Takes the pages of some rows. False: not enough of them are free.
static bool take_rows(const struct space *space, struct frame **out, uint32_t rows)
{
    const struct stream *stream = &space->streams[STREAM_CHANNELS];
    uint32_t dim = space->config.head_dim, per_page = space->config.page_channels;
    uint32_t pages = rows * stream->row_pages;
    for (uint32_t i = 0; i < pages; i++) {
        out[i] = frames_take_page(space->frames, i ? out[i - 1] : NULL);
        if (!out[i]) {
            while (i--)
                frames_give(space->frames, out[i]);
            return false;
        }
        uint64_t used =
            2ull * stream->row_tokens * min_u64(dim - i % stream->row_pages * per_page, per_page);
        memset(out[i]->data + used, 0, space->flash->geometry.page_bytes - used);
    }
    return true;
}

// The channel groups that a WRITE brought as a whole are transposed from its payload.
static int write_group(struct space *space, struct sequence *sequence,
                       const struct stream_slab *slab, uint64_t group)
{
    enum { HEADS = 16, PAGES = 256 };
    struct layer_state *layer = &sequence->layers[slab->layer];
    uint32_t row_pages = space->streams[STREAM_CHANNELS].row_pages;
    const uint16_t *k =
        slab->k + (group * group_tokens(space) - slab->from) * space->config.head_dim;
    struct frame *out[PAGES];
    if (group < state_of(layer)->groups || row_pages > PAGES)
        return 0; // given up; or rows so long that they are built from flash
    for (uint32_t i = 0; i < slab->head_count;) {
        uint32_t n = 0, first = slab->head_first;
        for (; i < slab->head_count && channels_row(space, layer, group, first + i); i++)
            ;
        while (i + n < slab->head_count && n < HEADS && (n + 1) * row_pages <= PAGES &&
               !channels_row(space, layer, group, first + i + n))
            n++;
        while (n && (frames_free_pages(space->frames) < n * row_pages ||
                     !frames_can_program(space->frames, 0, n * row_pages)))
            n--;
        if (i == slab->head_count)
            break;
        if (!n || !take_rows(space, out, n))
            return 1;
        bool placed = true;
        for (uint32_t j = 0; j < n; j++) {
            put_tokens(space, out + j * row_pages, 0, k + (i + j) * slab->stride,
                       group_tokens(space));
            placed &= program_row(space, layer, group, first + i + j, out + j * row_pages);
        }
        if (!placed)
            return 0;
        i += n;
    }
    return 0;
}

static int channels_take_slab(struct space *space, struct sequence *sequence,
                              const struct stream_slab *slab)
{
    uint64_t tokens = group_tokens(space);
    // Only the one that ends where the WRITE has come to: it calls after every row.
    if (slab->pos % tokens || slab->pos < slab->from + tokens)
        return 0;
    return write_group(space, sequence, slab, slab->pos / tokens - 1);
}

// ---- building in the background ----------------------------------------------------------------

// The first head of a group that has no row; kv_heads when there is none.
static uint32_t missing_head(const struct space *space, const struct layer_state *layer,
                             uint64_t group)
{
    uint32_t head = 0;
    while (head < space->config.kv_heads && channels_row(space, layer, group, head))
        head++;
    return head;
}

static void unqueue(struct channels *c, struct channel_layer *own)
{
    struct channel_layer **link = &c->first;
    if (!own->queued)
        return;
    while (*link != own)
        link = &(*link)->next;
    *link = own->next;
    if (!*link)
        c->last = link;
    own->queued = false;
}

static void channels_appended(struct space *space, struct layer_state *layer)
{
    struct channels *c = channels_of(space);
    struct channel_layer *own = state_of(layer);
    while (pending(space, layer) &&
           missing_head(space, layer, own->groups) == space->config.kv_heads)
        own->groups++;
    if (own->queued || !pending(space, layer))
        return;
    own->queued = true;
    own->next = NULL;
    *c->last = own;
    c->last = &own->next;
}

static bool build_start(struct space *space)
{
    struct channels *c = channels_of(space);
    struct build *b = &c->build;
    while (c->first) {
        struct channel_layer *layer = c->first;
        uint64_t group = layer->groups;
        if (!pending(space, layer->layer)) {
            unqueue(c, layer);
            continue;
        }
        uint32_t head = missing_head(space, layer->layer, group);
        if (head == space->config.kv_heads) {
            layer->groups++;
            continue;
        }
        b->head_first = head / c->bundle * c->bundle;
        b->n_heads = (uint32_t)min_u64(c->bundle, space->config.kv_heads - b->head_first);
        if (!take_rows(space, b->out, b->n_heads))
            return false;
        b->layer = layer;
        b->group = group;
        b->next = group * group_tokens(space);
        b->failed = false;
        return true;
    }
    return false;
}

// A piece for the next tokens, with the bundle's K wanted.
static struct piece *build_piece(struct space *space)
{
    struct channels *c = channels_of(space);
    struct build *b = &c->build;
    const struct stream *kv = &space->streams[STREAM_KV];
    uint64_t end = (b->group + 1) * group_tokens(space), page = space->flash->geometry.page_bytes;
    struct piece *piece = b->next < end ? piece_get(&c->pieces) : NULL;
    if (!piece)
        return NULL;
    piece->stream = STREAM_KV;
    piece->first = b->next;
    piece->tokens = (uint32_t)min_u64(span_tokens(&space->config), end - b->next);
    b->next += piece->tokens;
    uint64_t slots = b->head_first * kv->slot_bytes;
    uint32_t first_page = (uint32_t)(slots / page);
    uint32_t n_pages =
        (uint32_t)(div_round_up(slots + b->n_heads * kv->slot_bytes, page) - first_page);
    for (uint64_t t = piece->first; t < piece->first + piece->tokens; t += kv->row_tokens) {
        piece_add_pages(piece, (uint32_t)(t / kv->row_tokens), first_page, n_pages);
        struct slot_range k = slot_k(&kv->slot, 0, kv->row_tokens);
        for (uint32_t h = 0; h < b->n_heads; h++)
            piece_want(space, piece, piece->n_rows - 1, slots + h * kv->slot_bytes + k.offset,
                       k.bytes, false);
    }
    *b->last = piece;
    b->last = &piece->next;
    piece->next = NULL;
    b->waiting++;
    return piece;
}

static bool build_acquire(struct space *space)
{
    struct channels *c = channels_of(space);
    struct build *b = &c->build;
    const struct sequence *sequence = b->layer->layer->sequence;
    uint32_t layer = (uint32_t)(b->layer->layer - sequence->layers);
    bool moved = false;
    while (!b->failed) {
        struct piece *piece = b->pieces;
        while (piece && (piece->acquired || piece->computed))
            piece = piece->next;
        if (!piece)
            piece = build_piece(space);
        if (!piece)
            break;
        enum progress progress = piece_acquire(space, sequence, layer, piece);
        c->build_read_bytes += (uint64_t)piece->read_pages * space->flash->geometry.page_bytes;
        piece->read_pages = 0;
        if (progress == WAIT)
            break;
        moved = true;
        b->failed |= progress == FAILED;
    }
    return moved;
}

// One piece, one head of the bundle.
static void put_piece(void *arg, size_t index, unsigned worker)
{
    const struct channels *c = arg;
    const struct space *space = c->space;
    const struct build *b = &c->build;
    const struct stream *kv = &space->streams[STREAM_KV];
    const struct piece *piece = c->ready[index / b->n_heads];
    uint32_t h = (uint32_t)(index % b->n_heads), dim = space->config.head_dim;
    uint32_t per_page = space->config.page_channels;
    struct frame **out = b->out + h * space->streams[STREAM_CHANNELS].row_pages;
    uint64_t base = (b->head_first + h) * kv->slot_bytes, bytes = 2ull * kv->slot.k_tokens;
    (void)worker;
    for (uint32_t r = 0; r < piece->n_rows; r++) {
        uint64_t at = piece->first + (uint64_t)r * kv->row_tokens - b->group * group_tokens(space);
        for (uint32_t c = 0; c < dim; c++) {
            uint16_t *channel =
                (uint16_t *)out[c / per_page]->data + c % per_page * group_tokens(space) + at;
            for (uint64_t t = 0; t < kv->row_tokens; t += kv->slot.k_tokens)
                memcpy(channel + t,
                       piece_at(space, piece, r, base + slot_channel(&kv->slot, t, c), bytes),
                       bytes);
        }
    }
}

static void check_frame(void *arg, size_t index, unsigned worker)
{
    const struct channels *c = arg;
    (void)worker;
    piece_check_frame(c->unchecked, index);
}

static void task_done(struct engine_task *task)
{
    struct channels *c = task->owner;
    c->busy = false;
}

// Hands work to the engine; false: there is none.
static bool submit(struct channels *c, enum engine_kind kind, pool_fn *fn, size_t items,
                   uint64_t now_ns)
{
    uint64_t tokens = 0;
    for (size_t i = 0; i < c->n_ready; i++)
        tokens += c->ready[i]->tokens;
    c->task = (struct engine_task){
        .fn = fn,
        .arg = c,
        .items = items,
        .kind = kind,
        .bytes = tokens * 2 * c->space->config.head_dim * c->build.n_heads,
        .done = task_done,
        .owner = c,
    };
    c->busy = items != 0;
    if (items)
        c->engine->ops->submit(c->engine, &c->task, now_ns);
    return c->busy;
}

static bool build_collect(struct channels *c)
{
    c->n_ready = c->n_unchecked = 0;
    for (struct piece *piece = c->build.pieces; piece && !c->build.failed; piece = piece->next) {
        if (!piece->acquired || !piece_ready(piece))
            continue;
        c->ready[c->n_ready++] = piece;
        c->n_unchecked = piece_unchecked(piece, c->unchecked, c->n_unchecked);
    }
    return c->n_ready != 0;
}

// What was put in its place goes back.
static void build_settle(struct channels *c)
{
    struct build *b = &c->build;
    for (size_t i = 0; i < c->n_ready && !b->failed; i++) {
        struct piece **link = &b->pieces;
        while (*link != c->ready[i])
            link = &(*link)->next;
        *link = c->ready[i]->next;
        piece_release(c->space, c->ready[i]);
        piece_put(c->ready[i]);
        b->waiting--;
    }
    b->last = &b->pieces;
    while (*b->last)
        b->last = &(*b->last)->next;
    b->stage = BUILD_READS;
}

// Goes on with what the engine has done; true when something moved.
static bool build_compute(struct channels *c, uint64_t now_ns)
{
    struct build *b = &c->build;
    uint64_t index;
    if (c->busy)
        return false;
    switch (b->stage) {
    case BUILD_READS:
        if (!build_collect(c))
            return false;
        b->stage = BUILD_CHECKS;
        if (submit(c, ENGINE_CHECK, check_frame, c->n_unchecked, now_ns))
            return true;
        break;
    case BUILD_CHECKS:
        break;
    case BUILD_PUTS:
        build_settle(c);
        return true;
    }
    piece_checked(c->space, c->unchecked, c->n_unchecked);
    for (size_t i = 0; i < c->n_ready; i++)
        b->failed |= piece_read_status(c->ready[i], &index) != 0;
    b->stage = BUILD_PUTS;
    if (b->failed)
        build_settle(c);
    else
        submit(c, ENGINE_BUILD, put_piece, c->n_ready * b->n_heads, now_ns);
    return true;
}

// Gives everything back that an unfinished build holds, once the engine has done with it.
static void build_abandon(struct space *space)
{
    struct channels *c = channels_of(space);
    struct build *b = &c->build;
    b->layer = NULL;
    b->given_up = c->busy;
    if (b->given_up)
        return;
    if (b->stage == BUILD_CHECKS)
        piece_checked(space, c->unchecked, c->n_unchecked);
    b->stage = BUILD_READS;
    for (struct piece *next, *piece = b->pieces; piece; piece = next) {
        next = piece->next;
        piece_release(space, piece);
        piece_put(piece);
    }
    b->pieces = NULL;
    b->last = &b->pieces;
    b->waiting = 0;
    for (uint32_t i = 0; i < b->n_heads * space->streams[STREAM_CHANNELS].row_pages; i++)
        frames_give(space->frames, b->out[i]);
}

static void build_finish(struct space *space)
{
    struct build *b = &channels_of(space)->build;
    uint32_t row_pages = space->streams[STREAM_CHANNELS].row_pages;
    bool placed = true;
    for (uint32_t h = 0; h < b->n_heads; h++) {
        struct frame **pages = b->out + h * row_pages;
        if (!channels_row(space, b->layer->layer, b->group, b->head_first + h)) {
            placed &= program_row(space, b->layer->layer, b->group, b->head_first + h, pages);
            continue;
        }
        for (uint32_t i = 0; i < row_pages; i++)
            frames_give(space->frames, pages[i]);
    }
    // Without room the group is given up: it will be ranked by token.
    if (!placed)
        b->layer->groups = max_u64(b->layer->groups, b->group + 1);
    b->layer = NULL;
}

static bool channels_working(const struct space *space)
{
    const struct channels *c = channels_of(space);
    return c->first || c->build.given_up;
}

static bool channels_work(struct space *space, struct engine *engine, uint64_t now_ns)
{
    struct channels *c = channels_of(space);
    struct build *b = &c->build;
    bool moved = false, queued = c->first != NULL;
    c->engine = engine;
    if (b->given_up) {
        if (c->busy)
            return false;
        build_abandon(space);
        return true;
    }
    if (!b->layer && !build_start(space))
        return queued && !channels_working(space); // FLUSH waits for that
    for (;;) {
        // Programs of what is built need operations: with none to be had, not even a row is taken.
        bool more = build_acquire(space);
        more |= build_compute(c, now_ns);
        moved |= more;
        if (b->failed && !c->busy) {
            struct channel_layer *layer = b->layer;
            layer->groups = max_u64(layer->groups, b->group + 1);
            build_abandon(space);
            return true;
        }
        if (!b->waiting && b->next == (b->group + 1) * group_tokens(space)) {
            if (!frames_can_program(space->frames, 0,
                                    b->n_heads * space->streams[STREAM_CHANNELS].row_pages))
                return moved;
            build_finish(space);
            return true;
        }
        if (!more)
            return moved;
    }
}

static void channels_truncate(struct space *space, struct layer_state *layer, uint64_t tokens)
{
    struct channels *c = channels_of(space);
    struct channel_layer *own = state_of(layer);
    uint64_t groups = tokens / group_tokens(space);
    map_truncate(&space->maps[STREAM_CHANNELS].kind, &own->rows, index_of(space, groups, 0));
    own->groups = min_u64(own->groups, groups);
    if (c->build.layer == own && c->build.group >= groups)
        build_abandon(space);
    if (own->groups >= groups)
        unqueue(c, own);
    means_truncate(&own->means, layer->head_tokens, tokens);
}

// Gives up the rows that hold any of the tokens [first, end).
static int channels_punch(struct space *space, struct layer_state *layer, uint64_t first,
                          uint64_t end, struct inst_msg *msg)
{
    uint64_t tokens = group_tokens(space);
    if (channels_of(space)->build.layer == state_of(layer))
        build_abandon(space); // it starts again, and fails where K is gone
    for (uint64_t g = first / tokens; g < div_round_up(end, tokens); g++) {
        for (uint32_t h = 0; h < space->config.kv_heads; h++) {
            if (!channels_row(space, layer, g, h))
                continue;
            struct row *row = map_edit(&space->maps[STREAM_CHANNELS].kind, &state_of(layer)->rows,
                                       index_of(space, g, h), msg);
            if (!row)
                return INST_ENOMEM;
            row_drop(space, STREAM_CHANNELS, row);
        }
    }
    return 0;
}

static int channels_fork(struct space *space, const struct layer_state *from,
                         struct layer_state *to, uint64_t tokens, struct inst_msg *msg)
{
    const struct channel_layer *own = state_of(from);
    struct channel_layer *child = state_of(to);
    uint64_t groups = tokens / group_tokens(space);
    uint64_t n = min_u64(own->rows.n, index_of(space, groups, 0));
    int status = map_fork(&space->maps[STREAM_CHANNELS].kind, &own->rows, &child->rows, n, msg);
    if (status)
        return status;
    child->groups = min_u64(own->groups, groups);
    return means_fork(&own->means, from->head_tokens, &child->means, tokens, msg);
}

static int channels_reserve(struct space *space, struct layer_state *layer, uint64_t tokens,
                            struct inst_msg *msg)
{
    (void)space;
    return means_reserve(&state_of(layer)->means, tokens, msg);
}

static void channels_append(struct space *space, struct layer_state *layer, uint32_t head,
                            uint64_t first, const uint16_t *k, const uint16_t *v, uint64_t n)
{
    (void)space, (void)k;
    means_append(&state_of(layer)->means, head, first, v, n);
}

static void channels_stats(const struct space *space, struct drive_stats *stats)
{
    const struct channels *c = channels_of(space);
    stats->build_read_bytes += c->build_read_bytes;
    stats->channel_program_bytes += c->program_bytes;
    stats->channel_lost_rows += c->lost_rows;
    for (struct sequence *s = NULL; (s = space_next(space, s));) {
        for (uint32_t l = 0; l < space->config.layers; l++)
            stats->sparf_dram_bytes +=
                means_bytes(space->config.kv_heads, space->config.head_dim, s->layers[l].tokens);
    }
}

static int broken(struct inst_msg *msg, const char *what, uint64_t a, uint64_t b)
{
    return inst_fail(msg, INST_EINTERNAL, "%s: %llu and %llu", what, (unsigned long long)a,
                     (unsigned long long)b);
}

static int channels_check(const struct space *space, const struct layer_state *layer,
                          struct inst_msg *msg)
{
    const struct channel_layer *own = state_of(layer);
    uint64_t tokens = group_tokens(space), heads = space->config.kv_heads;
    uint64_t groups = own->rows.n / heads, most = 0;
    for (uint32_t h = 0; h < heads; h++) // a WRITE of some heads brings their rows
        most = max_u64(most, layer->head_tokens[h]);
    if (own->rows.n % heads || groups * tokens > most)
        return broken(msg, "channel rows, tokens", own->rows.n, layer->tokens);
    if (own->groups * tokens > layer->tokens)
        return broken(msg, "channel groups settled, tokens", own->groups, layer->tokens);
    if (pending(space, layer) && !own->queued)
        return broken(msg, "complete channel groups, settled", layer->tokens / tokens, own->groups);
    for (uint64_t i = 0; i < own->rows.n; i++) {
        const struct row *row = row_map_at(space, STREAM_CHANNELS, &own->rows, i);
        if (row_placed(row) && !segments_references(space->segments, row->place))
            return broken(msg, "channel row that the flash does not count", row->place.segment,
                          row->place.row);
    }
    for (uint32_t h = 0; h < heads; h++) {
        const struct mean_gap *gap = &own->means.heads[h].gap;
        if (gap->first > gap->end || gap->end > layer->head_tokens[h])
            return broken(msg, "gap of a mean, tokens", gap->end, layer->head_tokens[h]);
    }
    return 0;
}

static const struct map *channels_rows_of(const struct layer_state *layer)
{
    return &state_of(layer)->rows;
}

const struct stream_ops stream_channels = {
    .name = "channel",
    .choose = channels_choose,
    .layout = channels_layout,
    .plan = channels_plan,
    .rows = channels_rows,
    .open = channels_open,
    .close = channels_close,
    .layer_open = channels_layer_open,
    .layer_close = channels_layer_close,
    .row = channels_entry,
    .reserve = channels_reserve,
    .append = channels_append,
    .appended = channels_appended,
    .take_slab = channels_take_slab,
    .truncate = channels_truncate,
    .punch = channels_punch,
    .fork = channels_fork,
    .lost = channels_lost,
    .work = channels_work,
    .working = channels_working,
    .stats = channels_stats,
    .check = channels_check,
    .rows_of = channels_rows_of,
};
