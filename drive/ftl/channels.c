// SPDX-License-Identifier: Apache-2.0
#include "drive/ftl/channels.h"
#include "base/checked.h"
#include "kernels/kernels.h"

#include <string.h>

enum {
    PAGE_CHANNELS_MAX = 16,
    COVER_MIN = 256, // tokens that a page covers where the drive chooses
    COVER_MAX = 1024,
    COVER_SHARE = 8, // but no more than this part of the context
    STEPS_MAX = 8,
    PROGRAM_BYTES = 1 << 20, // on their way to flash, doubled by every level
};

// The one group that is being built, for one bundle of heads.
struct build {
    struct layer_state *layer; // NULL: none
    uint64_t group, next;      // next: token to read
    uint32_t head_first, n_heads;
    uint32_t waiting;           // steps that are not computed
    struct step *steps, **last; // oldest first; only the last can be partly acquired
    struct frame **out;         // [bundle][row_pages]
    bool failed;
};

struct channels {
    struct space *space;
    struct channels_size size;
    struct frames *programs;
    struct steps steps;
    struct build build;
    struct frame **unverified;
    struct step **ready;
    size_t n_ready;
    struct layer_state *first, **last; // queue
    struct channel_counters counters;
};

// ---- layout ------------------------------------------------------------------------------------

void channels_choose(struct space_config *c, const struct flash_geometry *g)
{
    if (c->method != METHOD_SPARF || c->page_channels)
        return;
    uint64_t cover = c->max_tokens / COVER_SHARE;
    cover = min_u64(max_u64(cover, max_u64(COVER_MIN, c->group_tokens)), COVER_MAX);
    c->page_channels = PAGE_CHANNELS_MAX;
    // More channels than a head has would only be padding.
    while (c->page_channels > 1 && (g->page_bytes / (2ull * c->page_channels) < cover ||
                                    c->page_channels / 2 >= c->head_dim))
        c->page_channels /= 2;
}

int channels_layout(struct stream *stream, const struct flash_geometry *g,
                    const struct space_config *c, struct inst_msg *msg)
{
    if (!is_power_of_two(c->page_channels) || c->page_channels > PAGE_CHANNELS_MAX)
        return inst_fail(msg, INST_EINVAL,
                         "CONFIG: %u channels in a page, must be a power of two up to %u",
                         c->page_channels, PAGE_CHANNELS_MAX);
    stream->row_tokens = g->page_bytes / (2 * c->page_channels);
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

void channels_size(struct channels_size *s, const struct flash_geometry *g,
                   const struct space_config *c, const struct stream *streams, unsigned level)
{
    const struct stream *kv = &streams[STREAM_KV], *channels = &streams[STREAM_CHANNELS];
    uint64_t unit = kv->slot_bytes, page = g->page_bytes, rest;
    uint64_t a = unit, b = page;
    while (b) { // greatest common divisor
        rest = a % b;
        a = b;
        b = rest;
    }
    *s = (struct channels_size){.bundle = (uint32_t)min_u64(page / a, c->kv_heads)};
    s->steps = (uint32_t)min_u64(1u << level, STEPS_MAX);
    s->step_rows = span_rows(c);
    s->step_pages = s->step_rows * (uint32_t)(div_round_up(s->bundle * unit, page) + 1);
    uint64_t bundle_pages = (uint64_t)s->bundle * channels->row_pages;
    uint64_t most = 2ull * c->kv_heads * channels->row_pages;
    uint64_t room = level ? ((uint64_t)PROGRAM_BYTES << level) / page : 0;
    s->programs = (uint32_t)max_u64(bundle_pages, min_u64(most, room));
    s->bytes = sizeof(struct channels) + steps_bytes(s->steps, s->step_rows, s->step_pages) +
               s->programs * frames_bytes_each(g, 1) +
               s->steps * (sizeof(struct step *) + s->step_pages * sizeof(struct frame *)) +
               bundle_pages * sizeof(struct frame *) + 12 * (4096 + 64);
}

int channels_open(struct space *space, const struct channels_size *size, struct inst_msg *msg)
{
    struct channels *c = budget_alloc(space->budget, 1, sizeof *c, "channel rows", msg);
    if (!c)
        return INST_ENOMEM;
    space->channels = c;
    c->space = space;
    c->size = *size;
    c->last = &c->first;
    c->build.last = &c->build.steps;
    c->build.out = budget_alloc(space->budget, size->bundle,
                                space->streams[STREAM_CHANNELS].row_pages * sizeof *c->build.out,
                                "channel rows", msg);
    c->ready = budget_alloc(space->budget, size->steps, sizeof *c->ready, "channel rows", msg);
    c->unverified = budget_alloc(space->budget, (uint64_t)size->steps * size->step_pages,
                                 sizeof *c->unverified, "channel rows", msg);
    if (!c->build.out || !c->ready || !c->unverified)
        return INST_ENOMEM;
    int status = steps_open(&c->steps, space, size->steps, size->step_rows, size->step_pages, msg);
    return status ? status
                  : frames_open(&c->programs, space->flash, space->segments, space->budget,
                                size->programs, 1, msg);
}

void channels_close(struct channels *c)
{
    if (!c)
        return;
    struct budget *budget = c->space->budget;
    steps_close(&c->steps);
    frames_close(c->programs);
    budget_free(budget, c->build.out);
    budget_free(budget, c->ready);
    budget_free(budget, c->unverified);
    budget_free(budget, c);
}

struct frames *channels_programs(const struct channels *c)
{
    return c->programs;
}

const struct channel_counters *channels_counters(const struct channels *c)
{
    return &c->counters;
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

struct row *channels_row(const struct space *space, const struct layer_state *layer, uint64_t group,
                         uint32_t head)
{
    uint64_t i = index_of(space, group, head);
    if (i >= layer->channels.n)
        return NULL;
    struct row *row = row_map_at(space, STREAM_CHANNELS, &layer->channels, i);
    return row_placed(row) ? row : NULL;
}

// Makes the entries of all groups up to this one exist.
static int ensure_group(struct space *space, struct layer_state *layer, uint64_t group,
                        struct inst_msg *msg)
{
    struct row_map *map = &layer->channels;
    while (map->n < index_of(space, group + 1, 0)) {
        int status = row_map_ensure(space, STREAM_CHANNELS, map, map->n, msg);
        if (status)
            return status;
        row_map_at(space, STREAM_CHANNELS, map, map->n++)->place.segment = PLACE_NONE;
    }
    return 0;
}

// Gives the group's row of a head, whose pages are there, a place and programs it. False: there is
// no room for it; the frames are free again.
static bool program_row(struct space *space, struct layer_state *layer, uint64_t group,
                        uint32_t head, struct frame **pages)
{
    struct channels *c = space->channels;
    struct sequence *sequence = layer->sequence;
    const struct stream *stream = &space->streams[STREAM_CHANNELS];
    struct frontier *frontier = &sequence->lifetime->frontiers[STREAM_CHANNELS];
    struct place place;
    bool wait;
    int status = ensure_group(space, layer, group, NULL);
    if (!status)
        status = segments_reserve(space->segments, frontier, &wait);
    if (!status) {
        status = segments_place(space->segments, frontier, &place, NULL);
        if (status)
            segments_unreserve(space->segments, frontier);
    }
    if (status) {
        for (uint32_t page = 0; page < stream->row_pages; page++)
            frames_free_open(c->programs, pages[page]);
        return false;
    }
    struct row *row =
        row_map_at(space, STREAM_CHANNELS, &layer->channels, index_of(space, group, head));
    row->place = place;
    row->seq = sequence->id;
    row->epoch = sequence->epoch;
    struct page_identity identity;
    row_identity(space, row, (uint32_t)(layer - sequence->layers), STREAM_CHANNELS, group,
                 &identity);
    identity.page = head * stream->row_pages;
    for (uint32_t page = 0; page < stream->row_pages; page++, identity.page++) {
        frames_program(c->programs, pages[page], place, page, &identity);
        row->sums[page] = pages[page]->sums[0];
    }
    c->counters.program_bytes += stream->row_bytes;
    space->stream_bytes += stream->data_bytes;
    return true;
}

// A complete group is not settled.
static bool pending(const struct space *space, const struct layer_state *layer)
{
    return layer->tokens >= (layer->channel_groups + 1) * group_tokens(space);
}

void channels_lost(struct space *space, struct place place, const struct page_identity *identity)
{
    const struct stream *stream = &space->streams[STREAM_CHANNELS];
    bool any = false;
    for (struct sequence *s = NULL; (s = space_next(space, s));) {
        struct row *row = channels_row(space, &s->layers[identity->layer], identity->group,
                                       identity->page / stream->row_pages);
        if (!row || row->place.segment != place.segment || row->place.row != place.row)
            continue;
        row_drop(space, row);
        any = true;
        // Not tried again and again: the group is settled without it.
        struct layer_state *layer = &s->layers[identity->layer];
        if (layer->channel_groups == identity->group && pending(space, layer))
            layer->channel_groups++;
    }
    space->channels->counters.lost_rows += any;
}

// ---- transposing -------------------------------------------------------------------------------

// Puts K of n tokens, rows of head_dim, at token t of the row in `pages`. The scratch memory holds
// a tile.
static void put_tokens(const struct space *space, struct frame **pages, uint64_t t,
                       const uint16_t *k, uint64_t n, uint16_t *scratch)
{
    uint32_t dim = space->config.head_dim, per_page = space->config.page_channels;
    uint64_t tokens = group_tokens(space);
    for (; n; k += ATTENTION_TILE * dim, t += ATTENTION_TILE) {
        uint64_t step = min_u64(n, ATTENTION_TILE);
        kernel_transpose16(scratch, ATTENTION_TILE, k, dim, step, dim);
        for (uint32_t c = 0; c < dim; c++) {
            uint16_t *page = (uint16_t *)pages[c / per_page]->data;
            memcpy(page + c % per_page * tokens + t, scratch + (size_t)c * ATTENTION_TILE,
                   step * sizeof *page);
        }
        n -= step;
    }
}

// Takes the pages of some rows. False: not enough of them are free.
static bool take_rows(const struct space *space, struct frame **out, uint32_t rows)
{
    const struct stream *stream = &space->streams[STREAM_CHANNELS];
    struct frames *set = space->channels->programs;
    uint32_t dim = space->config.head_dim, per_page = space->config.page_channels;
    if (frames_free(set) < rows * stream->row_pages)
        return false;
    for (uint32_t i = 0; i < rows * stream->row_pages; i++) {
        out[i] = frames_take(set, false);
        uint64_t used =
            2ull * stream->row_tokens * min_u64(dim - i % stream->row_pages * per_page, per_page);
        memset(out[i]->data + used, 0, space->flash->geometry.page_bytes - used);
    }
    return true;
}

struct payload {
    const struct space *space;
    struct frame **out;
    const uint16_t *k;
    size_t stride;
    struct pool *pool;
};

static void put_payload(void *arg, size_t index, unsigned worker)
{
    const struct payload *p = arg;
    put_tokens(p->space, p->out + index * p->space->streams[STREAM_CHANNELS].row_pages, 0,
               p->k + index * p->stride, group_tokens(p->space), pool_scratch(p->pool, worker));
}

int channels_write(struct space *space, struct pool *pool, struct sequence *sequence,
                   uint32_t layer_index, uint64_t group, uint32_t head_first, uint32_t count,
                   const uint16_t *k, size_t stride)
{
    enum { HEADS = 16, PAGES = 256 };
    struct layer_state *layer = &sequence->layers[layer_index];
    uint32_t row_pages = space->streams[STREAM_CHANNELS].row_pages;
    struct frame *out[PAGES];
    if (group < layer->channel_groups || row_pages > PAGES)
        return 0; // given up; or rows so long that they are built from flash
    for (uint32_t i = 0; i < count;) {
        uint32_t n = 0;
        for (; i < count && channels_row(space, layer, group, head_first + i); i++)
            ;
        while (i + n < count && n < HEADS && (n + 1) * row_pages <= PAGES &&
               !channels_row(space, layer, group, head_first + i + n))
            n++;
        while (n && frames_free(space->channels->programs) < n * row_pages)
            n--;
        if (!n && i < count)
            return 1;
        struct payload payload = {space, out, k + i * stride, stride, pool};
        take_rows(space, out, n);
        pool_run(pool, put_payload, &payload, n);
        bool placed = true;
        for (uint32_t j = 0; j < n; j++)
            placed &= program_row(space, layer, group, head_first + i + j, out + j * row_pages);
        if (!placed)
            return 0;
        i += n;
    }
    return 0;
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

static void unqueue(struct channels *c, struct layer_state *layer)
{
    struct layer_state **link = &c->first;
    if (!layer->build_queued)
        return;
    while (*link != layer)
        link = &(*link)->build_next;
    *link = layer->build_next;
    if (!*link)
        c->last = link;
    layer->build_queued = false;
}

void channels_appended(struct space *space, struct layer_state *layer)
{
    struct channels *c = space->channels;
    while (pending(space, layer) &&
           missing_head(space, layer, layer->channel_groups) == space->config.kv_heads)
        layer->channel_groups++;
    if (layer->build_queued || !pending(space, layer))
        return;
    layer->build_queued = true;
    layer->build_next = NULL;
    *c->last = layer;
    c->last = &layer->build_next;
}

static bool build_start(struct space *space)
{
    struct channels *c = space->channels;
    struct build *b = &c->build;
    while (c->first) {
        struct layer_state *layer = c->first;
        uint64_t group = layer->channel_groups;
        if (!pending(space, layer)) {
            unqueue(c, layer);
            continue;
        }
        uint32_t head = missing_head(space, layer, group);
        if (head == space->config.kv_heads) {
            layer->channel_groups++;
            continue;
        }
        b->head_first = head / c->size.bundle * c->size.bundle;
        b->n_heads = (uint32_t)min_u64(c->size.bundle, space->config.kv_heads - b->head_first);
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

// A step for the next tokens, with the bundle's K wanted.
static struct step *build_step(struct space *space)
{
    struct channels *c = space->channels;
    struct build *b = &c->build;
    const struct stream *kv = &space->streams[STREAM_KV];
    uint64_t end = (b->group + 1) * group_tokens(space), page = space->flash->geometry.page_bytes;
    struct step *step = b->next < end ? step_get(&c->steps) : NULL;
    if (!step)
        return NULL;
    step->stream = STREAM_KV;
    step->first = b->next;
    step->tokens = (uint32_t)min_u64(span_tokens(&space->config), end - b->next);
    b->next += step->tokens;
    uint64_t slots = b->head_first * kv->slot_bytes;
    uint32_t first_page = (uint32_t)(slots / page);
    uint32_t n_pages =
        (uint32_t)(div_round_up(slots + b->n_heads * kv->slot_bytes, page) - first_page);
    for (uint64_t t = step->first; t < step->first + step->tokens; t += kv->row_tokens) {
        step_add_row(step, (uint32_t)(t / kv->row_tokens), first_page, n_pages);
        struct slot_range k = slot_k(&kv->slot, 0, kv->row_tokens);
        for (uint32_t h = 0; h < b->n_heads; h++)
            step_want(space, step, step->n_rows - 1, slots + h * kv->slot_bytes + k.offset, k.bytes,
                      false);
    }
    *b->last = step;
    b->last = &step->next;
    step->next = NULL;
    b->waiting++;
    return step;
}

static bool build_acquire(struct space *space, const struct step_source *source)
{
    struct build *b = &space->channels->build;
    const struct sequence *sequence = b->layer->sequence;
    uint32_t layer = (uint32_t)(b->layer - sequence->layers);
    bool moved = false;
    while (!b->failed) {
        struct step *step = b->steps;
        while (step && (step->acquired || step->computed))
            step = step->next;
        if (!step)
            step = build_step(space);
        if (!step)
            break;
        enum step_result result = step_acquire(source, sequence, layer, step);
        space->channels->counters.build_read_bytes +=
            (uint64_t)step->read_pages * space->flash->geometry.page_bytes;
        step->read_pages = 0;
        if (result == STEP_NO_FRAME)
            break;
        moved = true;
        b->failed |= result == STEP_FAILED;
    }
    return moved;
}

// One step, one head of the bundle.
static void put_step(void *arg, size_t index, unsigned worker)
{
    const struct payload *p = arg;
    const struct space *space = p->space;
    const struct channels *c = space->channels;
    const struct build *b = &c->build;
    const struct stream *kv = &space->streams[STREAM_KV];
    const struct step *step = c->ready[index / b->n_heads];
    uint32_t h = (uint32_t)(index % b->n_heads), dim = space->config.head_dim;
    uint32_t per_page = space->config.page_channels;
    struct frame **out = b->out + h * space->streams[STREAM_CHANNELS].row_pages;
    uint64_t base = (b->head_first + h) * kv->slot_bytes, bytes = 2ull * kv->slot.k_tokens;
    (void)worker;
    for (uint32_t r = 0; r < step->n_rows; r++) {
        uint64_t at = step->first + (uint64_t)r * kv->row_tokens - b->group * group_tokens(space);
        for (uint32_t c = 0; c < dim; c++) {
            uint16_t *channel =
                (uint16_t *)out[c / per_page]->data + c % per_page * group_tokens(space) + at;
            for (uint64_t t = 0; t < kv->row_tokens; t += kv->slot.k_tokens)
                memcpy(channel + t,
                       step_at(space, step, r, base + slot_channel(&kv->slot, t, c), bytes), bytes);
        }
    }
}

static bool build_compute(struct space *space, struct pool *pool, const struct step_source *source)
{
    struct channels *c = space->channels;
    struct build *b = &c->build;
    size_t n_unverified = 0;
    uint64_t group;
    c->n_ready = 0;
    for (struct step *step = b->steps; step && !b->failed; step = step->next) {
        if (!step->acquired || !step_ready(step))
            continue;
        c->ready[c->n_ready++] = step;
        n_unverified = step_unverified(step, c->unverified, n_unverified);
    }
    if (!c->n_ready)
        return false;
    step_verify(pool, source, c->unverified, n_unverified);
    for (size_t i = 0; i < c->n_ready; i++)
        b->failed |= step_read_status(c->ready[i], &group) != 0;
    struct payload payload = {.space = space, .pool = pool};
    if (!b->failed)
        pool_run(pool, put_step, &payload, c->n_ready * b->n_heads);
    for (struct step **link = &b->steps; *link && !b->failed;) {
        struct step *step = *link;
        if (!step->acquired || !step_ready(step)) {
            link = &step->next;
            continue;
        }
        *link = step->next;
        step_release(source, step);
        step_put(&c->steps, step);
        b->waiting--;
    }
    b->last = &b->steps;
    while (*b->last)
        b->last = &(*b->last)->next;
    return true;
}

// Gives everything back that an unfinished build holds.
static void build_abandon(struct space *space)
{
    struct channels *c = space->channels;
    struct build *b = &c->build;
    const struct step_source source = {.space = space};
    for (struct step *next, *step = b->steps; step; step = next) {
        next = step->next;
        step_release(&source, step);
        step_put(&c->steps, step);
    }
    b->steps = NULL;
    b->last = &b->steps;
    b->waiting = 0;
    for (uint32_t i = 0; i < b->n_heads * space->streams[STREAM_CHANNELS].row_pages; i++)
        frames_free_open(c->programs, b->out[i]);
    b->layer = NULL;
}

static void build_finish(struct space *space)
{
    struct channels *c = space->channels;
    struct build *b = &c->build;
    uint32_t row_pages = space->streams[STREAM_CHANNELS].row_pages;
    bool placed = true;
    for (uint32_t h = 0; h < b->n_heads; h++) {
        struct frame **pages = b->out + h * row_pages;
        if (!channels_row(space, b->layer, b->group, b->head_first + h)) {
            placed &= program_row(space, b->layer, b->group, b->head_first + h, pages);
            continue;
        }
        for (uint32_t i = 0; i < row_pages; i++)
            frames_free_open(c->programs, pages[i]);
    }
    // Without room the group is given up: it will be ranked by token.
    if (!placed)
        b->layer->channel_groups = max_u64(b->layer->channel_groups, b->group + 1);
    b->layer = NULL;
}

bool channels_build(struct space *space, struct pool *pool, const struct step_source *source)
{
    struct build *b = &space->channels->build;
    bool moved = false, queued = channels_building(space->channels);
    if (!b->layer && !build_start(space))
        return queued && !channels_building(space->channels); // FLUSH waits for that
    for (;;) {
        bool more = build_acquire(space, source);
        more |= build_compute(space, pool, source);
        moved |= more;
        if (b->failed) {
            struct layer_state *layer = b->layer;
            layer->channel_groups = max_u64(layer->channel_groups, b->group + 1);
            build_abandon(space);
            return true;
        }
        if (!b->waiting && b->next == (b->group + 1) * group_tokens(space)) {
            build_finish(space);
            return true;
        }
        if (!more)
            return moved;
    }
}

bool channels_building(const struct channels *c)
{
    return c->first != NULL;
}

// ---- what happens to sequences -----------------------------------------------------------------

void channels_truncate(struct space *space, struct layer_state *layer, uint64_t tokens)
{
    struct channels *c = space->channels;
    uint64_t groups = tokens / group_tokens(space);
    while (layer->channels.n > index_of(space, groups, 0))
        row_drop(space, row_map_at(space, STREAM_CHANNELS, &layer->channels, --layer->channels.n));
    layer->channel_groups = min_u64(layer->channel_groups, groups);
    if (c->build.layer == layer && c->build.group >= groups)
        build_abandon(space);
    if (layer->channel_groups >= groups)
        unqueue(c, layer);
}

void channels_punch(struct space *space, struct layer_state *layer, uint64_t first, uint64_t end)
{
    uint64_t tokens = group_tokens(space);
    if (space->channels->build.layer == layer)
        build_abandon(space); // it starts again, and fails where K is gone
    for (uint64_t g = first / tokens; g < div_round_up(end, tokens); g++) {
        for (uint32_t h = 0; h < space->config.kv_heads; h++) {
            struct row *row = channels_row(space, layer, g, h);
            if (row)
                row_drop(space, row);
        }
    }
}

int channels_fork(struct space *space, const struct layer_state *from, struct layer_state *to,
                  uint64_t tokens, struct inst_msg *msg)
{
    uint64_t groups = tokens / group_tokens(space);
    uint64_t n = min_u64(from->channels.n, index_of(space, groups, 0));
    size_t bytes =
        sizeof(struct row) + space->streams[STREAM_CHANNELS].row_pages * sizeof(uint64_t);
    for (uint64_t i = 0; i < n; i++) {
        int status = row_map_ensure(space, STREAM_CHANNELS, &to->channels, i, msg);
        if (status)
            return status;
        struct row *row = row_map_at(space, STREAM_CHANNELS, &to->channels, i);
        memcpy(row, row_map_at(space, STREAM_CHANNELS, &from->channels, i), bytes);
        to->channels.n++;
        if (row_placed(row))
            segments_ref(space->segments, row->place);
    }
    to->channel_groups = min_u64(from->channel_groups, groups);
    return 0;
}
