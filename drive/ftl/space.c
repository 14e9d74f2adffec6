// SPDX-License-Identifier: Apache-2.0
#include "drive/ftl/index_rows.h"
#include "drive/ftl/piece.h"
#include "base/checked.h"

#include <string.h>

enum { BUCKETS = 256, LEAF_ROWS = 16, LOAD_TRIES = 2 };

static const uint32_t max_layers = 4096, max_kv_heads = 4096;

static int kv_layout(struct stream *kv, const struct flash_geometry *geometry,
                     const struct space_config *c, bool single_pages, struct inst_msg *msg)
{
    if (!c->layers || c->layers > max_layers)
        return inst_fail(msg, INST_EINVAL, "CONFIG: %u layers, must be 1 to %u", c->layers,
                         max_layers);
    if (!c->kv_heads || c->kv_heads > max_kv_heads)
        return inst_fail(msg, INST_EINVAL, "CONFIG: %u KV heads, must be 1 to %u", c->kv_heads,
                         max_kv_heads);
    if (!c->head_dim || c->head_dim > KERNEL_HEAD_DIM_MAX)
        return inst_fail(msg, INST_EINVAL, "CONFIG: head_dim %u, must be 1 to %u", c->head_dim,
                         KERNEL_HEAD_DIM_MAX);
    if (c->group_tokens < GROUP_MIN || c->group_tokens > GROUP_MAX ||
        !is_power_of_two(c->group_tokens))
        return inst_fail(msg, INST_EINVAL,
                         "CONFIG: a token group of %u, must be a power of two from %u to %u",
                         c->group_tokens, GROUP_MIN, GROUP_MAX);
    if (!kv_type_name(c->kv_type))
        return inst_fail(msg, INST_ENOTSUP, "CONFIG: unknown type %u of K and V", c->kv_type);
    kv->row_tokens = c->group_tokens;
    kv->group_rows = 1;
    // Parts no larger than a page where single pages are read, nor than what is chosen together.
    kv->slot = slot_layout(
        c->kv_type, c->group_tokens, c->head_dim, single_pages ? geometry->page_bytes : 0,
        c->method == METHOD_PAGES && c->kv_type ? index_piece(c) : ATTENTION_TILE);
    kv->slot_bytes = slot_bytes(&kv->slot);
    uint64_t bytes = kv->slot_bytes * c->kv_heads; // below 2^12 * 2^21 by the limits above
    uint64_t pages = div_round_up(bytes, geometry->page_bytes);
    kv->data_bytes = bytes;
    kv->row_pages = (uint32_t)pages;
    kv->row_bytes = pages * geometry->page_bytes;
    if (!segment_capacity(geometry, kv->row_pages))
        return inst_fail(msg, INST_EINVAL,
                         "CONFIG: a row of %llu pages does not fit in a block of %u on %u dies",
                         (unsigned long long)pages, geometry->pages_per_block, geometry->dies);
    return 0;
}

int stream_layouts(struct stream streams[STREAM_MAX], struct space_config *config, uint32_t derived,
                   const struct flash_geometry *geometry, struct inst_msg *msg)
{
    static const struct stream_ops *const ops[STREAM_MAX] = {
        [STREAM_CHANNELS] = &stream_channels, [STREAM_INDEX] = &stream_index};
    memset(streams, 0, STREAM_MAX * sizeof *streams);
    int status = kv_layout(&streams[STREAM_KV], geometry, config, derived != 0, msg);
    for (uint32_t i = 1; i < STREAM_MAX && !status; i++) {
        if (!(derived >> i & 1))
            continue;
        streams[i].ops = i == STREAM_INDEX && config->piece_flash ? &stream_index_rows : ops[i];
        streams[i].ops->choose(config, geometry);
        status = streams[i].ops->layout(&streams[i], geometry, config, msg);
    }
    return status;
}

int space_plan(struct space_plan *plan, const struct flash_geometry *g,
               const struct space_config *c, const struct stream *streams, unsigned level,
               struct inst_msg *msg)
{
    enum { EACH = 4096 + 64 }; // what one budget_alloc may add
    uint64_t sequences = max_u64(c->max_sequences, 1);
    uint64_t groups = div_round_up(max_u64(c->max_tokens, 1), c->group_tokens);
    *plan = (struct space_plan){0};
    // Maps of one sequence of max_tokens, or of several that have as many together.
    uint64_t layer = sizeof(struct layer_state) + 8ull * c->kv_heads + 1024, maps, each;
    const struct stream *kv = &streams[STREAM_KV];
    if (!row_maps_bytes(kv, c->layers, sequences, groups, &maps) ||
        !row_maps_bytes(kv, c->layers, 0, groups, &each) ||
        !checked_mul(sequences - 1, each, &plan->more) || plan->more > INT64_MAX / 8)
        return inst_fail(msg, INST_EINVAL, "CONFIG: %llu tokens in %llu sequences overflow",
                         (unsigned long long)c->max_tokens, (unsigned long long)sequences);
    plan->bytes = sizeof(struct space) + BUCKETS * sizeof(void *) + 2 * EACH + maps +
                  sequences * (c->layers * layer + EACH);
    for (uint32_t i = 1; i < STREAM_MAX; i++) {
        struct stream_plan own = {0};
        int status = streams[i].ops ? streams[i].ops->plan(&own, g, c, streams, level, msg) : 0;
        if (status)
            return status;
        plan->bytes += own.bytes;
        plan->more += own.more;
        plan->pages += own.pages;
        plan->scratch = max_u64(plan->scratch, own.scratch);
    }
    return 0;
}

static void share_row(void *arg, void *entry)
{
    const struct row_maps *maps = arg;
    const struct row *row = entry;
    if (row_placed(row))
        segments_ref(maps->space->segments, row->place);
}

static void drop_row(void *arg, void *entry)
{
    const struct row_maps *maps = arg;
    row_drop(maps->space, maps->stream, entry);
}

static size_t row_bytes(const struct stream *stream)
{
    return sizeof(struct row) + stream->row_pages * sizeof(uint64_t);
}

static void open_maps(struct space *space, uint32_t stream)
{
    struct row_maps *maps = &space->maps[stream];
    *maps = (struct row_maps){.space = space, .stream = stream};
    maps->kind = (struct map_kind){
        .entry_bytes = row_bytes(&space->streams[stream]),
        .leaf_entries = LEAF_ROWS,
        .share = share_row,
        .drop = drop_row,
        .arg = maps,
        .budget = &space->own,
    };
}

bool row_maps_bytes(const struct stream *stream, uint32_t layers, uint64_t sequences, uint64_t rows,
                    uint64_t *out)
{
    const struct map_kind kind = {.entry_bytes = row_bytes(stream), .leaf_entries = LEAF_ROWS};
    uint64_t least;
    // A sequence has a leaf of its own at least, and a path to it. Rows are numbered in 32 bits.
    return rows < UINT32_MAX &&
           checked_mul(sequences, map_bytes(&kind, LEAF_ROWS) + 1024, &least) &&
           checked_add(least, map_bytes(&kind, rows), out) && checked_mul(*out, layers, out) &&
           *out < INT64_MAX / 8;
}

bool space_sweep(struct space *space, uint64_t work)
{
    for (uint32_t i = 0; i < STREAM_MAX; i++)
        map_sweep(&space->maps[i].kind, &work);
    if (space->beside)
        map_sweep(space->beside, &work);
    return !space_swept(space);
}

bool space_swept(const struct space *space)
{
    bool dead = space->beside && space->beside->dead;
    for (uint32_t i = 0; i < STREAM_MAX; i++)
        dead |= space->maps[i].kind.dead != NULL;
    return !dead;
}

int space_open(struct space **out, uint32_t id, const struct space_config *config,
               const struct stream *streams, struct flash *flash, struct segments *segments,
               struct budget *budget, struct inst_msg *msg)
{
    struct space *space = budget_alloc(budget, 1, sizeof *space, "space", msg);
    if (!space)
        return INST_ENOMEM;
    space->id = id;
    space->config = *config;
    space->flash = flash;
    space->segments = segments;
    space->budget = &space->own;
    budget_init_part(&space->own, budget);
    memcpy(space->streams, streams, sizeof space->streams);
    for (uint32_t i = 0; i < STREAM_MAX; i++)
        open_maps(space, i);
    space->table = budget_alloc(budget, BUCKETS, sizeof *space->table, "space", msg);
    if (!space->table) {
        space_close(space);
        return INST_ENOMEM;
    }
    *out = space;
    return 0;
}

int space_open_frames(struct space *space, const struct frames_size *size, uint32_t read_reserve,
                      unsigned level, struct inst_msg *msg)
{
    int status =
        frames_open(&space->frames, space->flash, space->segments, space->budget, size, msg);
    space->read_reserve = read_reserve;
    for (uint32_t i = 1; i < STREAM_MAX && !status; i++) {
        if (space->streams[i].ops)
            status = space->streams[i].ops->open(space, level, msg);
    }
    return status;
}

// The hook of every derived stream that the space has.
#define EACH_DERIVED(space, i)                                                                     \
    for (uint32_t i = 1; i < STREAM_MAX; i++)                                                      \
        if ((space)->streams[i].ops)

static void free_layers(struct space *space, struct sequence *sequence)
{
    for (uint32_t l = 0; sequence->layers && l < space->config.layers; l++) {
        struct layer_state *layer = &sequence->layers[l];
        map_truncate(&space->maps[STREAM_KV].kind, &layer->rows, 0);
        EACH_DERIVED(space, i)
        space->streams[i].ops->layer_close(space, layer);
    }
    if (sequence->layers)
        budget_free(space->budget, sequence->layers[0].head_tokens);
    budget_free(space->budget, sequence->layers);
    budget_free(space->budget, sequence);
}

static void end_frontiers(struct space *space, struct lifetime *lifetime)
{
    for (uint32_t i = 0; i < STREAM_MAX; i++) {
        if (space_has(space, i))
            segments_end(space->segments, &lifetime->frontiers[i]);
    }
}

void space_close(struct space *space)
{
    if (!space)
        return;
    for (int b = 0; space->table && b < BUCKETS; b++) {
        struct sequence *next, *sequence = space->table[b];
        for (; sequence; sequence = next) {
            next = sequence->next;
            free_layers(space, sequence);
        }
    }
    struct lifetime *next, *lifetime = space->lifetimes;
    for (; lifetime; lifetime = next) {
        next = lifetime->next;
        end_frontiers(space, lifetime);
        budget_free(space->budget, lifetime);
    }
    space_sweep(space, UINT64_MAX);
    EACH_DERIVED(space, i)
    space->streams[i].ops->close(space);
    frames_close(space->frames);
    budget_free(space->budget, space->table);
    budget_reserve(&space->own, 0, "", NULL); // the space itself is not of it
    budget_free(space->own.whole, space);
}

static struct sequence **bucket(const struct space *space, uint32_t id)
{
    return &space->table[(id * 0x9e3779b1u >> 24) % BUCKETS];
}

struct sequence *space_find(const struct space *space, uint32_t id)
{
    struct sequence *sequence = *bucket(space, id);
    while (sequence && sequence->id != id)
        sequence = sequence->next;
    return sequence;
}

struct sequence *space_next(const struct space *space, const struct sequence *sequence)
{
    if (sequence && sequence->next)
        return sequence->next;
    struct sequence **end = space->table + BUCKETS;
    struct sequence **slot = sequence ? bucket(space, sequence->id) + 1 : space->table;
    while (slot < end && !*slot)
        slot++;
    return slot < end ? *slot : NULL;
}

void sequence_lost(struct sequence *sequence, int status, const struct page_identity *row)
{
    if (sequence->failed)
        return;
    sequence->failed = status;
    sequence->lost_layer = row->layer;
    sequence->lost_group = row->group;
}

int sequence_refuse(const struct sequence *sequence, struct inst_msg *msg)
{
    return inst_fail(msg, sequence->failed,
                     "sequence %u lost what it wrote in layer %u token group %u: %s", sequence->id,
                     sequence->lost_layer, sequence->lost_group,
                     inst_status_text(sequence->failed));
}

int space_lookup(struct space *space, const struct table_item *item, struct sequence **out,
                 struct inst_msg *msg)
{
    struct sequence *sequence = space_find(space, item->seq);
    *out = sequence;
    if (!sequence)
        return item->pos ? inst_fail(msg, INST_ENOENT, "sequence %u does not exist", item->seq) : 0;
    if (sequence->epoch != item->epoch)
        return inst_fail(msg, INST_ENOENT, "sequence %u has epoch %u, the command names %u",
                         item->seq, sequence->epoch, item->epoch);
    if (sequence->failed)
        return sequence_refuse(sequence, msg);
    return 0;
}

static struct lifetime *join_lifetime(struct space *space, uint32_t handle, struct inst_msg *msg)
{
    for (struct lifetime *l = space->lifetimes; handle && l; l = l->next) {
        if (l->handle == handle) {
            l->sequences++;
            return l;
        }
    }
    struct lifetime *l = budget_alloc(space->budget, 1, sizeof *l, "sequence", msg);
    if (!l)
        return NULL;
    for (uint32_t i = 0; i < STREAM_MAX; i++) {
        if (space_has(space, i))
            frontier_init(space->segments, &l->frontiers[i], space->streams[i].row_pages,
                          space->streams[i].data_bytes);
    }
    l->handle = handle;
    l->sequences = 1;
    l->next = space->lifetimes;
    space->lifetimes = l;
    return l;
}

static void leave_lifetime(struct space *space, struct lifetime *lifetime)
{
    if (--lifetime->sequences)
        return;
    end_frontiers(space, lifetime);
    struct lifetime **link = &space->lifetimes;
    while (*link != lifetime)
        link = &(*link)->next;
    *link = lifetime->next;
    budget_free(space->budget, lifetime);
}

int space_create(struct space *space, const struct table_item *item, struct sequence **out,
                 struct inst_msg *msg)
{
    uint32_t layers = space->config.layers, heads = space->config.kv_heads;
    struct sequence *sequence = budget_alloc(space->budget, 1, sizeof *sequence, "sequence", msg);
    if (!sequence)
        return INST_ENOMEM;
    sequence->id = item->seq;
    sequence->epoch = item->epoch;
    sequence->serial = ++space->serial;
    sequence->layers =
        budget_alloc(space->budget, layers, sizeof *sequence->layers, "sequence", msg);
    uint64_t *head_tokens =
        budget_alloc(space->budget, (uint64_t)layers * heads, sizeof *head_tokens, "sequence", msg);
    if (!sequence->layers || !head_tokens) {
        budget_free(space->budget, head_tokens);
        budget_free(space->budget, sequence->layers);
        budget_free(space->budget, sequence);
        return INST_ENOMEM;
    }
    int status = 0;
    for (uint32_t l = 0; l < layers; l++) {
        struct layer_state *layer = &sequence->layers[l];
        layer->head_tokens = head_tokens + (uint64_t)l * heads;
        layer->sequence = sequence;
        EACH_DERIVED(space, i)
        status = status ? status : space->streams[i].ops->layer_open(space, layer, msg);
    }
    sequence->lifetime = status ? NULL : join_lifetime(space, item->lifetime, msg);
    if (!sequence->lifetime) {
        free_layers(space, sequence);
        return INST_ENOMEM;
    }
    struct sequence **slot = bucket(space, item->seq);
    sequence->next = *slot;
    *slot = sequence;
    space->n_sequences++;
    *out = sequence;
    return 0;
}

void space_remove(struct space *space, struct sequence *sequence)
{
    for (uint32_t l = 0; l < space->config.layers; l++)
        sequence_truncate(space, sequence, l, 0);
    struct sequence **link = bucket(space, sequence->id);
    while (*link != sequence)
        link = &(*link)->next;
    *link = sequence->next;
    leave_lifetime(space, sequence->lifetime);
    free_layers(space, sequence);
    space->n_sequences--;
}

static struct row *row_at(const struct space *space, const struct layer_state *layer,
                          uint64_t group)
{
    return row_map_at(space, STREAM_KV, &layer->rows, group);
}

struct row *sequence_row(const struct space *space, const struct sequence *sequence, uint32_t layer,
                         uint64_t group)
{
    const struct layer_state *state = &sequence->layers[layer];
    if (group >= state->rows.n)
        return NULL;
    return row_at(space, state, group);
}

struct row *stream_row(const struct space *space, const struct sequence *sequence, uint32_t layer,
                       uint32_t stream, uint64_t index)
{
    if (stream == STREAM_KV)
        return sequence_row(space, sequence, layer, index);
    return space->streams[stream].ops->row(space, &sequence->layers[layer], index);
}

void stream_identity(const struct space *space, const struct row *row, uint32_t layer,
                     uint32_t stream, uint64_t index, struct page_identity *out)
{
    const struct stream *s = &space->streams[stream];
    *out = (struct page_identity){
        .space = space->id,
        .seq = row->seq,
        .epoch = row->epoch,
        .layer = (uint16_t)layer,
        .stream = (uint16_t)stream,
        .group = (uint32_t)(index / s->group_rows),
        .page = (uint32_t)(index % s->group_rows) * s->row_pages,
    };
}

void row_drop(struct space *space, uint32_t stream, struct row *row)
{
    if (row_placed(row) && segments_unref(space->segments, row->place))
        frames_forget_row(space->frames, row->place, space->streams[stream].row_pages);
    row->place.segment = PLACE_NONE;
}

struct row *row_edit(struct space *space, uint32_t stream, struct map *map, uint64_t i, uint64_t n)
{
    struct map_kind *kind = &space->maps[stream].kind;
    while (map->n < n) {
        struct row *row = map_append(kind, map, NULL);
        if (!row)
            return NULL;
        row->place.segment = PLACE_NONE;
    }
    return map_edit(kind, map, i, NULL);
}

enum progress row_program(struct space *space, struct layer_state *layer, uint32_t stream,
                          uint64_t index, struct row *row, struct frame **pages)
{
    struct sequence *sequence = layer->sequence;
    const struct stream *own = &space->streams[stream];
    struct frontier *frontier = &sequence->lifetime->frontiers[stream];
    struct page_identity identity;
    struct place place;
    bool wait = !frames_can_program(space->frames, 0, own->row_pages);
    int status = wait ? INST_ENORESOURCE : segments_reserve(space->segments, frontier, 1, &wait);
    if (!status) {
        status = segments_place(space->segments, frontier, &place, NULL);
        wait = status == INST_ENOMEM && segments_working(space->segments);
        if (status)
            segments_unreserve(space->segments, frontier, 1);
    }
    if (status) {
        for (uint32_t page = 0; page < own->row_pages; page++)
            frames_give(space->frames, pages[page]);
        return wait ? WAIT : FAILED;
    }
    row->place = place;
    row->seq = sequence->id;
    row->epoch = sequence->epoch;
    stream_identity(space, row, (uint32_t)(layer - sequence->layers), stream, index, &identity);
    for (uint32_t page = 0; page < own->row_pages; page++, identity.page++)
        frames_program(space->frames, pages[page], place, page, &identity, &row->sums[page]);
    space->stream_bytes += own->data_bytes;
    return DONE;
}

static struct map_kind *kv_maps(struct space *space)
{
    return &space->maps[STREAM_KV].kind;
}

static struct frontier *kv_frontier(struct sequence *sequence)
{
    return &sequence->lifetime->frontiers[STREAM_KV];
}

uint64_t append_rows(const struct space *space, const struct layer_state *layer, uint64_t end,
                     bool *buffer)
{
    uint64_t row_tokens = space->config.group_tokens, groups = div_round_up(end, row_tokens);
    *buffer = !layer || !layer->open;
    if (!layer)
        return groups;
    // A row that reaches beyond the tokens goes to flash once more.
    uint64_t have = min_u64(layer->rows.n, layer->tokens / row_tokens) + (layer->open != NULL);
    return groups - min_u64(groups, have);
}

int space_buffers(const struct space *space, uint64_t more, struct inst_msg *msg)
{
    uint64_t slabs;
    do {
        slabs = frames_slabs(space->frames) - space->read_reserve;
        if (space->n_open_frames <= slabs && more <= slabs - space->n_open_frames)
            return 0;
    } while (frames_grow(space->frames));
    return inst_fail(msg, INST_ENORESOURCE,
                     "%llu of the %llu group buffers of the drive are in use, %llu more are needed",
                     (unsigned long long)space->n_open_frames, (unsigned long long)slabs,
                     (unsigned long long)more);
}

int sequence_promise(struct space *space, struct sequence *sequence, uint32_t layer, uint64_t rows,
                     struct inst_msg *msg)
{
    bool wait;
    if (!segments_reserve(space->segments, kv_frontier(sequence), rows, &wait)) {
        sequence->layers[layer].promised += rows;
        return 0;
    }
    return wait ? 1 : inst_fail(msg, INST_ENOSPC, "sequence %u: the drive is full", sequence->id);
}

void sequence_unpromise(struct space *space, struct sequence *sequence, uint32_t layer)
{
    uint64_t *rows = &sequence->layers[layer].promised;
    segments_unreserve(space->segments, kv_frontier(sequence), *rows);
    *rows = 0;
}

bool sequence_empty(const struct space *space, const struct sequence *sequence)
{
    const uint64_t *tokens = sequence->layers[0].head_tokens; // of all layers
    for (uint64_t i = 0; i < (uint64_t)space->config.layers * space->config.kv_heads; i++) {
        if (tokens[i])
            return false;
    }
    return true;
}

// The next token goes to a row which is on flash.
static bool continues_row(const struct space *space, const struct layer_state *layer)
{
    return !layer->open && layer->tokens < layer->rows.n * space->config.group_tokens;
}

int sequence_can_append(const struct space *space, const struct sequence *sequence, uint32_t layer,
                        struct inst_msg *msg)
{
    const struct layer_state *state = &sequence->layers[layer];
    if (sequence->failed)
        return sequence_refuse(sequence, msg);
    if (!continues_row(space, state) || row_placed(row_at(space, state, state->rows.n - 1)))
        return 0;
    return inst_fail(msg, INST_ENOENT, "sequence %u layer %u: token group %llu was given up",
                     sequence->id, layer, (unsigned long long)state->rows.n - 1);
}

// Takes a frame for a group buffer and a promise of flash for it. Result as prepare_append.
static int take_open_frame(struct space *space, struct sequence *sequence, uint32_t layer,
                           struct frame **out, struct inst_msg *msg)
{
    int status = space_buffers(space, 1, msg);
    bool promised = sequence->layers[layer].promised;
    if (!status && !promised)
        status = sequence_promise(space, sequence, layer, 1, msg);
    if (status)
        return status;
    struct frame *frame = frames_take_row(space->frames);
    if (!frame) {
        if (!promised)
            sequence_unpromise(space, sequence, layer);
        return 1;
    }
    sequence->layers[layer].promised--;
    const struct stream *kv = &space->streams[STREAM_KV];
    memset(frame->data + kv->data_bytes, 0,
           kv->row_bytes - kv->data_bytes); // padding goes to flash too
    space->n_open_frames++;
    *out = frame;
    return 0;
}

static void free_open_frame(struct space *space, struct sequence *sequence, struct frame *frame)
{
    frames_give(space->frames, frame);
    segments_unreserve(space->segments, kv_frontier(sequence), 1);
    space->n_open_frames--;
}

void sequence_unload(struct space *space, struct sequence *sequence, uint32_t layer)
{
    struct layer_state *state = &sequence->layers[layer];
    if (state->loading)
        frame_unuse(space->frames, state->loading, USE_SCAN);
    state->loading = NULL;
    state->load_tries = 0;
}

// Copy on append: the last row reaches beyond the layer's tokens. Its valid part becomes the
// group buffer again and the reference to the row is given up.
static int load_last_row(struct space *space, struct sequence *sequence, uint32_t layer_index,
                         struct inst_msg *msg)
{
    struct layer_state *layer = &sequence->layers[layer_index];
    uint64_t group = layer->rows.n - 1;
    struct row *row = row_at(space, layer, group);
    if (!layer->loading) {
        struct page_identity identity;
        stream_identity(space, row, layer_index, STREAM_KV, group, &identity);
        struct frame *frame = frames_find_row(space->frames, row->place, &identity);
        bool hit = frame != NULL;
        if (!frame) {
            frame = frames_take_row(space->frames);
            if (!frame)
                return 1;
            if (!frames_read(space->frames, frame, row->place, 0, &identity, row->sums)) {
                frames_give(space->frames, frame);
                return 1;
            }
        }
        frame_use(space->frames, frame, hit);
        layer->loading = frame;
    }
    struct frame *loaded = layer->loading, *open;
    if (loaded->state == FRAME_READ || loaded->check == CHECK_RUNNING)
        return 1;
    if (!loaded->status && loaded->check == CHECK_DUE) {
        loaded->check = CHECK_RUNNING;
        piece_check_frame(&loaded, 0);
        piece_checked(space, &loaded, 1);
    }
    int status = loaded->read ? loaded->status : 0;
    if (status) {
        frame_unuse(space->frames, loaded, USE_SCAN);
        layer->loading = NULL;
        if (layer->load_tries++ < LOAD_TRIES)
            return load_last_row(space, sequence, layer_index, msg);
        layer->load_tries = 0;
        return inst_fail(msg, status, "sequence %u layer %u token group %llu: %s", sequence->id,
                         layer_index, (unsigned long long)group, inst_status_text(status));
    }
    status = take_open_frame(space, sequence, layer_index, &open, msg);
    if (status)
        return status;
    memcpy(open->data, loaded->data, space->streams[STREAM_KV].row_bytes);
    sequence_unload(space, sequence, layer_index);
    layer->open = open;
    map_truncate(kv_maps(space), &layer->rows, group);
    return 0;
}

static bool group_complete(const struct space *space, const struct layer_state *layer)
{
    return layer->open && layer->tokens == (layer->rows.n + 1) * space->config.group_tokens;
}

// A complete group buffer becomes a row on flash. Room there was promised; DRAM for page records
// can be short for as long as other blocks are being closed (1: wait). Until it works the group
// stays where it is.
static int close_group(struct space *space, struct sequence *sequence, uint32_t layer_index,
                       struct inst_msg *msg)
{
    struct layer_state *layer = &sequence->layers[layer_index];
    struct frame *frame = layer->open;
    struct page_identity identity;
    struct place place;
    if (!frames_can_program(space->frames, 1, 0))
        return 1;
    int status = map_reserve(kv_maps(space), &layer->rows, NULL);
    if (!status)
        status = segments_place(space->segments, kv_frontier(sequence), &place, NULL);
    if (status == INST_ENOMEM && segments_working(space->segments))
        return 1;
    if (status)
        return inst_fail(msg, status, "sequence %u layer %u token group %llu: page records: %s",
                         sequence->id, layer_index, (unsigned long long)layer->rows.n,
                         inst_status_text(status));
    layer->open = NULL;
    space->n_open_frames--;
    struct row *row = map_append(kv_maps(space), &layer->rows, NULL); // was reserved
    row->place = place;
    row->seq = sequence->id;
    row->epoch = sequence->epoch;
    stream_identity(space, row, layer_index, STREAM_KV, layer->rows.n - 1, &identity);
    frames_program(space->frames, frame, row->place, 0, &identity, row->sums);
    space->stream_bytes += space->streams[STREAM_KV].data_bytes;
    return 0;
}

int sequence_prepare_append(struct space *space, struct sequence *sequence, uint32_t layer_index,
                            struct inst_msg *msg)
{
    struct layer_state *layer = &sequence->layers[layer_index];
    int status = sequence_can_append(space, sequence, layer_index, msg);
    if (!status && group_complete(space, layer))
        status = close_group(space, sequence, layer_index, msg);
    if (status)
        return status;
    uint64_t row_tokens = space->config.group_tokens;
    bool load = continues_row(space, layer);
    bool take = !layer->open && !load;
    if (take)
        status = take_open_frame(space, sequence, layer_index, &layer->open, msg);
    else if (load) // what could refuse it, before maps that others share are copied
        status = space_buffers(space, 1, msg);
    if (!status && load && !layer->promised)
        status = sequence_promise(space, sequence, layer_index, 1, msg);
    if (status)
        return status;
    // Memory for the map entry before there is something to be mapped.
    if (load)
        status = map_edit(kv_maps(space), &layer->rows, layer->rows.n - 1, msg) ? 0 : INST_ENOMEM;
    else
        status = map_reserve(kv_maps(space), &layer->rows, msg);
    EACH_DERIVED(space, i)
    status = status ? status
                    : space->streams[i].ops->reserve(
                          space, layer, (layer->tokens / row_tokens + 1) * row_tokens, msg);
    if (!status)
        return load ? load_last_row(space, sequence, layer_index, msg) : 0;
    if (take) {
        free_open_frame(space, sequence, layer->open);
        layer->open = NULL;
    }
    return status;
}

uint64_t sequence_append(struct space *space, struct sequence *sequence, uint32_t layer_index,
                         const struct append_source *source, uint64_t pos, uint64_t n)
{
    struct layer_state *layer = &sequence->layers[layer_index];
    const struct stream *kv = &space->streams[STREAM_KV];
    uint64_t dim = space->config.head_dim, row_tokens = kv->row_tokens;
    uint64_t first = layer->rows.n * row_tokens; // of the group buffer
    uint64_t end = min_u64(pos + n, first + row_tokens);
    for (uint32_t i = 0; i < source->head_count; i++) {
        uint32_t head = source->head_first + i;
        uint64_t t = layer->head_tokens[head]; // what lies below is a replay
        if (t >= end)
            continue;
        const uint16_t *k = source->k + i * source->k_head_stride + (t - pos) * dim;
        const uint16_t *v = source->v + i * source->v_head_stride + (t - pos) * dim;
        slot_put(&kv->slot, layer->open->data + head * kv->slot_bytes, t - first, end - t, k, v);
        EACH_DERIVED(space, s)
        space->streams[s].ops->append(space, layer, head, t, k, v, end - t);
        layer->head_tokens[head] = end;
    }
    uint64_t tokens = UINT64_MAX;
    for (uint32_t head = 0; head < space->config.kv_heads; head++)
        tokens = min_u64(tokens, layer->head_tokens[head]);
    layer->tokens = tokens;
    if (group_complete(space, layer))
        close_group(space, sequence, layer_index, NULL);
    return end - pos;
}

void sequence_truncate(struct space *space, struct sequence *sequence, uint32_t layer_index,
                       uint64_t tokens)
{
    struct layer_state *layer = &sequence->layers[layer_index];
    uint64_t row_tokens = space->config.group_tokens;
    sequence_unload(space, sequence, layer_index);
    if (layer->open && tokens <= layer->rows.n * row_tokens) {
        free_open_frame(space, sequence, layer->open);
        layer->open = NULL;
    }
    map_truncate(kv_maps(space), &layer->rows, div_round_up(tokens, row_tokens));
    EACH_DERIVED(space, i)
    space->streams[i].ops->truncate(space, layer, tokens);
    for (uint32_t head = 0; head < space->config.kv_heads; head++)
        layer->head_tokens[head] = min_u64(layer->head_tokens[head], tokens);
    layer->tokens = min_u64(layer->tokens, tokens);
}

int sequence_punch(struct space *space, struct sequence *sequence, uint32_t layer_index,
                   uint64_t pos, uint64_t n, struct inst_msg *msg)
{
    struct layer_state *layer = &sequence->layers[layer_index];
    uint64_t row_tokens = space->config.group_tokens, end;
    if (!checked_add(pos, n, &end))
        end = UINT64_MAX;
    uint64_t first = div_round_up(pos, row_tokens);
    uint64_t last = min_u64(end / row_tokens, layer->rows.n);
    for (uint64_t group = first; group < last; group++) {
        if (!row_placed(row_at(space, layer, group)))
            continue;
        struct row *row = map_edit(kv_maps(space), &layer->rows, group, msg);
        if (!row)
            return INST_ENOMEM;
        row_drop(space, STREAM_KV, row);
    }
    int status = 0;
    EACH_DERIVED(space, i)
    if (first < last && !status)
        status =
            space->streams[i].ops->punch(space, layer, first * row_tokens, last * row_tokens, msg);
    return status;
}

int sequence_fork_layer(struct space *space, struct sequence *parent, struct sequence *child,
                        uint32_t layer_index, uint64_t *bytes, struct inst_msg *msg)
{
    struct layer_state *from = &parent->layers[layer_index], *to = &child->layers[layer_index];
    uint64_t tokens = child->fork_pos;
    uint64_t groups = div_round_up(tokens, space->config.group_tokens);
    uint64_t shared = min_u64(groups, from->rows.n);
    int status = map_fork(kv_maps(space), &from->rows, &to->rows, shared, msg);
    if (!status && groups > shared) // the rest is in the parent's group buffer
        status = take_open_frame(space, child, layer_index, &to->open, msg);
    EACH_DERIVED(space, i)
    status = status ? status : space->streams[i].ops->fork(space, from, to, tokens, msg);
    if (status) {
        sequence_truncate(space, child, layer_index, 0);
        return status;
    }
    if (to->open)
        memcpy(to->open->data, from->open->data, space->streams[STREAM_KV].row_bytes);
    *bytes += to->open ? space->streams[STREAM_KV].row_bytes : 0;
    to->tokens = tokens;
    for (uint32_t head = 0; head < space->config.kv_heads; head++)
        to->head_tokens[head] = tokens;
    sequence_appended(space, to);
    return 0;
}

void sequence_appended(struct space *space, struct layer_state *layer)
{
    EACH_DERIVED(space, i)
    space->streams[i].ops->appended(space, layer);
}

int sequence_take_slab(struct space *space, struct sequence *sequence,
                       const struct stream_slab *slab)
{
    int status = 0;
    EACH_DERIVED(space, i)
    status = status ? status : space->streams[i].ops->take_slab(space, sequence, slab);
    return status;
}

int sequence_can_fork(const struct space *space, const struct sequence *parent, uint64_t pos,
                      uint64_t *buffers, struct inst_msg *msg)
{
    for (uint32_t l = 0; l < space->config.layers; l++) {
        const struct layer_state *layer = &parent->layers[l];
        if (layer->tokens < pos)
            return inst_fail(
                msg, INST_ESEQUENCE, "FORK at %llu: sequence %u has only %llu tokens in layer %u",
                (unsigned long long)pos, parent->id, (unsigned long long)layer->tokens, l);
        *buffers += pos > layer->rows.n * space->config.group_tokens;
    }
    return 0;
}

bool sequence_forked_by(const struct sequence *child, const struct table_item *item)
{
    return child->epoch == item->epoch && child->forked && child->parent == item->parent &&
           child->parent_epoch == item->parent_epoch && child->fork_pos == item->pos;
}

int sequence_fork(struct space *space, const struct sequence *parent, const struct table_item *item,
                  struct sequence **out, struct inst_msg *msg)
{
    int status = space_create(space, item, out, msg);
    if (status)
        return status;
    (*out)->forked = true;
    (*out)->parent = parent->id;
    (*out)->parent_epoch = parent->epoch;
    (*out)->fork_pos = item->pos;
    return 0;
}
