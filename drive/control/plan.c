// SPDX-License-Identifier: Apache-2.0
// Pure arithmetic about what a space needs, so that a host can plan its memory and refuse before it
// starts; each owner says its own part. The figures bound what drive_open and CONFIG really
// allocate. Above the least, DRAM goes first to what keeps the device busy (levels of the methods,
// a window for reads), then to the row cache.
#include "drive/control/internal.h"
#include "base/checked.h"
#include "drive/ftl/index.h"

#include <string.h>

enum {
    DEFAULT_GROUP_MAX = 256,      // a larger group would hold whole short contexts back from flash
    ALLOCATION_EXTRA = 4096 + 64, // what one budget_alloc may add
    // Bytes of pieces in progress, and of reading ahead, up to which these may take all that there
    // is; less of the former slows the device down sooner.
    PIECES_LEAST = 24 << 20,
    WINDOW_LEAST = 4 << 20,
    WINDOW_MOST = 32 << 20,   // keeps any device of a few dies busy
    WINDOW_DIES = 512 << 20,  // and any other one
    WINDOW_SHARE = 16,        // in between: this part, as the rest serves the row cache better
    STORE_PAGE = 16 * 1024,   // page of a private store, where rows are that large
    STORE_PAGE_SINGLE = 4096, // of one where single pages are read
    PADDING_PART = 64,        // of a row, that may be empty for the sake of large pages
    OVER_READ = 16,           // by this part rows of blocks may exceed the best read
    // Ordinary disks: a request costs as much as reading 35 to 100 KiB. Rows of that size also hold
    // whole tiles for most models, so that none has to be put together from several.
    STORE_READ = 256 * 1024,
    STORE_BLOCK = 4 << 20,
    STORE_BLOCKS_MIN = 32, // a store is at least so many blocks, to keep space amplification low
};

// Reads under way that keep the device busy. Rows lie across dies; single pages are read in slabs
// of a row each, and each of many dies wants several of them.
static uint64_t window_most(const struct flash_geometry *g, const struct stream *kv)
{
    uint64_t rows = 4ull * g->dies;
    return max_u64(WINDOW_MOST, min_u64(rows * kv->row_bytes, WINDOW_DIES));
}

// Segments for `rows` rows, and DRAM for the tables of each.
static uint64_t segments_for(const struct flash_geometry *g, const struct stream *stream,
                             uint64_t rows)
{
    return div_round_up(rows, segment_capacity(g, stream->row_pages));
}

static uint64_t segment_bytes(const struct flash_geometry *g, const struct stream *stream)
{
    return 128 + g->dies * sizeof(struct flash_io) +
           segment_capacity(g, stream->row_pages) * sizeof(uint32_t) + 2 * 128;
}

static uint64_t groups_of(const struct space_config *c)
{
    return div_round_up(c->max_tokens ? c->max_tokens : 1, c->group_tokens);
}

// DRAM and flash that follow from how many segments rows need.
static int plan_segments(struct control_plan *plan, const struct flash_geometry *g,
                         const struct space_config *c, struct inst_msg *msg)
{
    uint64_t sequences = max_u64(c->max_sequences, 1), device = g->blocks / g->dies;
    uint64_t records = segment_record_bytes(g);
    uint64_t total = 0, full = 0, more = 0;
    uint64_t tables = div_round_up(device, 64) * sizeof(void *) + 64 * 128;
    for (uint32_t i = 0; i < STREAM_MAX; i++) {
        const struct stream *stream = &plan->streams[i];
        if (!stream->row_pages)
            continue;
        uint64_t rows =
            stream->ops ? stream->ops->rows(c, plan->streams) : c->layers * groups_of(c);
        // As much again for rows that truncation and forks left dead in segments that live on.
        uint64_t once = segments_for(g, stream, rows), each = 2 * once + 2, all;
        if (!checked_mul(each, sequences, &all) || !checked_add(total, all, &total))
            return inst_fail(msg, INST_EINVAL, "CONFIG: the KV cache overflows 64 bits");
        full += once * sequences; // no more than the sum that is checked
        // Promised: what one full sequence fills, and one that each of the others is filling.
        uint64_t some = min_u64(each + 2 * (sequences - 1) + SEGMENTS_DEAD_MAX, device);
        tables += some * segment_bytes(g, stream);
        more += (min_u64(all + SEGMENTS_DEAD_MAX, device) - some) * segment_bytes(g, stream);
        // While a segment is open, and until all of it is programmed.
        tables +=
            (sequences + 2) * (records + g->dies * sizeof(struct flash_io) + 3 * ALLOCATION_EXTRA);
    }
    plan->tables = tables;
    plan->more_tables = more;
    uint64_t segment = (uint64_t)g->page_bytes * g->pages_per_block * g->dies;
    if (!checked_mul(total, segment, &plan->flash_bytes))
        return inst_fail(msg, INST_EINVAL, "CONFIG: the KV cache overflows 64 bits");
    plan->once_bytes = full * segment;
    return 0;
}

// Two tickets' worth of queries, partials and results for a full batch.
static uint64_t ticket_bytes(const struct space_config *c)
{
    uint64_t sequences = max_u64(c->max_sequences, 1);
    uint64_t q_heads = c->q_heads ? c->q_heads : 8ull * c->kv_heads;
    uint64_t stride = partial_stride(c->head_dim) * sizeof(float);
    uint64_t item = q_heads * (stride + 2ull * c->head_dim * sizeof(float) + 8) + 256;
    return 2 * (sequences * item + 2 * ALLOCATION_EXTRA);
}

// What a level of the methods needs, its least pool included.
static int plan_level(struct control_plan *plan, const struct attend_env *env,
                      const struct flash_geometry *g, const struct space_config *c, unsigned level,
                      struct inst_msg *msg)
{
    struct walk_plan walk;
    struct space_plan space;
    const struct stream *kv = &plan->streams[STREAM_KV];
    int status = walk_plan(&walk, env, g, c, plan->streams, level, msg);
    if (!status)
        status = space_plan(&space, g, c, plan->streams, level, msg);
    if (status)
        return status;
    uint64_t open = (uint64_t)c->layers * max_u64(c->max_sequences, 1);
    uint64_t pages = div_round_up((uint64_t)walk.pages + space.pages, kv->row_pages);
    plan->level = level;
    plan->scratch = max_u64(walk.scratch, space.scratch);
    plan->tickets = ticket_bytes(c);
    plan->fixed =
        plan->tables + walk.bytes + space.bytes + plan->tickets + sizeof(struct drive) + 64 * 1024;
    // Group buffers of every layer, two pieces of whole rows and a little for programs under way,
    // and the slabs that are split for single pages.
    plan->reserve = (uint32_t)(2 * walk.rows + 2 + pages);
    plan->window = walk.window;
    if (open > UINT32_MAX / 2)
        return inst_fail(msg, INST_EINVAL, "CONFIG: %llu group buffers overflow",
                         (unsigned long long)open);
    plan->open = (uint32_t)open;
    plan->frames = (struct frames_size){
        .slabs = plan->open + plan->reserve + 2 * walk.rows + 2,
        .least = plan->open + plan->reserve + 2 * walk.rows + 2,
        .row_pages = kv->row_pages,
        .split = pages ? plan->reserve + 2 * walk.rows : 0,
    };
    plan->single_pages = pages != 0;
    plan->own = walk.bytes + space.bytes;
    plan->more = plan->more_tables + space.more;
    return 0;
}

static uint64_t level_bytes(const struct control_plan *plan, const struct flash_geometry *g)
{
    return plan->fixed + frames_bytes(g, &plan->frames);
}

// As many slabs as `dram` allows and all rows, a window and the cache could use.
static void plan_slabs(struct control_plan *plan, const struct flash_geometry *g,
                       const struct space_config *c, uint64_t dram, bool cache)
{
    const struct stream *kv = &plan->streams[STREAM_KV];
    uint64_t least = plan->frames.slabs;
    uint64_t each = frames_slab_bytes(g, kv->row_pages, plan->single_pages);
    uint64_t more = least + div_round_up(window_most(g, kv), kv->row_bytes);
    if (cache) {
        more += groups_of(c) * c->layers * max_u64(c->max_sequences, 1);
        for (uint32_t i = 1; i < STREAM_MAX; i++) {
            const struct stream *s = &plan->streams[i];
            if (s->ops)
                more += s->ops->rows(c, plan->streams) * s->row_bytes / kv->row_bytes + 1;
        }
    }
    uint64_t slabs = min_u64(min_u64(more, UINT32_MAX / 4), least + dram / each);
    plan->frames.slabs = (uint32_t)slabs;
    while (slabs > least && level_bytes(plan, g) > dram) {
        uint64_t over = div_round_up(level_bytes(plan, g) - dram, each);
        slabs = slabs > least + over ? slabs - over : least;
        plan->frames.slabs = (uint32_t)slabs;
    }
    plan->promised = plan->own + frames_bytes(g, &plan->frames) - (slabs - least) * kv->row_bytes;
    uint64_t rest = slabs - plan->open - plan->reserve;
    if (plan->single_pages)
        plan->frames.split = (uint32_t)(slabs - plan->open - 2 * span_rows(c) - 2);
    uint64_t share = cache ? rest / WINDOW_SHARE : rest;
    uint64_t window = max_u64(share, min_u64(rest, WINDOW_LEAST / kv->row_bytes));
    plan->ahead = (uint32_t)min_u64(window, max_u64(1, window_most(g, kv) / kv->row_bytes));
}

int control_plan(struct control_plan *plan, const struct attend_env *env,
                 const struct flash_geometry *g, struct space_config *c, uint64_t dram, bool cache,
                 struct inst_msg *msg)
{
    const struct method *method = attend_method(env, c->method);
    struct control_plan tried = {0};
    if (!method)
        return inst_fail(msg, INST_ENOTSUP, "CONFIG: unknown method %u", c->method);
    int status = stream_layouts(tried.streams, c, method->streams, g, msg);
    if (!status)
        status = plan_segments(&tried, g, c, msg);
    if (!status)
        status = plan_level(&tried, env, g, c, 0, msg);
    if (status)
        return status;
    *plan = tried;
    plan->min_bytes = level_bytes(&tried, g);
    uint64_t extra = dram > plan->min_bytes ? dram - plan->min_bytes : 0;
    uint64_t share = cache ? extra / WINDOW_SHARE : extra;
    uint64_t room = max_u64(min_u64(extra, PIECES_LEAST), share);
    uint64_t least_fixed = tried.fixed, most = window_most(g, &tried.streams[STREAM_KV]);
    for (unsigned level = METHOD_LEVELS - 1; level > 0; level--) {
        status = plan_level(&tried, env, g, c, level, msg);
        if (status)
            return status;
        bool fits = level_bytes(&tried, g) <= dram &&
                    tried.fixed - least_fixed + tried.window <= min_u64(room, most);
        if (level == METHOD_LEVELS - 1)
            plan->good_bytes = level_bytes(&tried, g) + most + tried.more;
        if (!fits)
            continue;
        uint64_t min = plan->min_bytes, good = plan->good_bytes;
        *plan = tried;
        plan->min_bytes = min;
        plan->good_bytes = good;
        break;
    }
    if (!plan->good_bytes)
        plan->good_bytes = plan->min_bytes + most + plan->more;
    tried = *plan;
    plan_slabs(&tried, g, c, INT64_MAX, true);
    plan->full_bytes = max_u64(level_bytes(&tried, g) + tried.more, plan->good_bytes);
    if (plan->min_bytes <= dram)
        plan_slabs(plan, g, c, dram, cache);
    return 0;
}

static int plan_group(struct drive_plan *out, const struct flash_geometry *g,
                      const struct space_config *config, struct inst_msg *msg)
{
    struct space_config c = *config;
    struct attend_env env = {0};
    struct control_plan plan;
    attend_methods(&env, NULL);
    int status = control_plan(&plan, &env, g, &c, 0, true, msg);
    if (status)
        return status;
    *out = (struct drive_plan){
        .group_tokens = c.group_tokens,
        .page_channels = c.page_channels,
        .row_bytes = plan.streams[STREAM_KV].row_bytes,
        .min_dram_bytes = plan.min_bytes,
        .good_dram_bytes = plan.good_bytes,
        .full_dram_bytes = plan.full_bytes,
        .flash_bytes = plan.flash_bytes,
        .full_bytes = plan.once_bytes,
    };
    return 0;
}

// Token groups that are tried where the drive chooses. A piece that is chosen alone is a request
// alone where its K and V lie side by side: in a group of its size.
static bool group_is_piece(const struct space_config *c)
{
    uint32_t piece = index_piece(c); // one that is none is refused later
    return c->method == METHOD_PAGES && is_power_of_two(piece) && piece >= INDEX_PIECE_MIN &&
           piece <= INDEX_PIECE_MAX;
}

static uint32_t group_most(const struct space_config *c)
{
    return group_is_piece(c) ? index_piece(c) : DEFAULT_GROUP_MAX;
}

static uint32_t group_least(const struct space_config *c)
{
    return group_is_piece(c) ? index_piece(c) : GROUP_MIN;
}

// Rows within the best read. Scales make rows of blocks a little larger than half or a quarter of
// those of twice or four times the tokens as fp16.
static bool row_fits(const struct drive_plan *plan, const struct flash_geometry *g,
                     const struct space_config *c)
{
    uint64_t over = c->kv_type == KV_F16 ? 0 : plan->row_bytes / OVER_READ;
    return plan->row_bytes - over <= g->read_bytes;
}

int drive_plan(struct drive_plan *plan, const struct flash_geometry *g,
               const struct space_config *config, uint64_t dram_bytes, struct inst_msg *msg)
{
    struct space_config c = *config;
    *plan = (struct drive_plan){0};
    if (c.group_tokens)
        return plan_group(plan, g, &c, msg);
    // The largest group whose rows stay within the best read and whose buffers fit.
    for (c.group_tokens = group_most(&c); c.group_tokens > group_least(&c); c.group_tokens /= 2) {
        if (plan_group(plan, g, &c, NULL) || !row_fits(plan, g, &c))
            continue;
        if (!dram_bytes || plan->min_dram_bytes <= dram_bytes)
            return 0;
    }
    *plan = (struct drive_plan){0};
    return plan_group(plan, g, &c, msg);
}

// Geometry whose blocks hold whole rows of the group, summary behind them.
static int store_geometry(struct flash_geometry *g, const struct space_config *c,
                          struct inst_msg *msg)
{
    const struct slot slot = slot_layout(c->kv_type, c->group_tokens, c->head_dim, 0, UINT32_MAX);
    uint64_t row = slot_bytes(&slot) * c->kv_heads;
    *g = (struct flash_geometry){.dies = 1, .channels = 1, .read_bytes = STORE_READ};
    struct attend_env env = {0};
    attend_methods(&env, NULL);
    const struct method *method = attend_method(&env, c->method);
    if (!method)
        return inst_fail(msg, INST_ENOTSUP, "CONFIG: unknown method %u", c->method);
    // Methods that read single pages have streams of their own. Of rows of no round size, as blocks
    // of K and V make them, small pages leave less empty.
    uint64_t padding = STORE_PAGE - 1 - (row + STORE_PAGE - 1) % STORE_PAGE;
    bool large = row >= STORE_PAGE && (c->kv_type == KV_F16 || padding <= row / PADDING_PART);
    g->page_bytes = large && !method->streams ? STORE_PAGE : STORE_PAGE_SINGLE;
    g->pages_per_block = 65535;
    g->blocks = 1;
    struct space_config chosen = *c;
    struct stream streams[STREAM_MAX];
    int status = stream_layouts(streams, &chosen, method->streams, g, msg);
    if (status)
        return status;
    const struct stream *kv = &streams[STREAM_KV];
    uint64_t total = c->layers * groups_of(c) * kv->row_bytes;
    uint64_t target = min_u64(STORE_BLOCK, max_u64(total / STORE_BLOCKS_MIN, 16ull * 4096));
    uint64_t data = max_u64(1, target / kv->row_bytes) * kv->row_pages;
    for (uint32_t i = 1; i < STREAM_MAX; i++)
        data = max_u64(data, div_round_up(streams[i].row_pages, kv->row_pages) * kv->row_pages);
    uint64_t pages = data;
    do { // the smallest block with room for the rows and their summary
        g->pages_per_block = (uint32_t)++pages;
    } while (pages - segment_summary_pages(g) < data);
    return 0;
}

int drive_geometry_for(struct flash_geometry *geometry, const struct space_config *config,
                       uint64_t capacity_bytes, uint64_t dram_bytes, struct inst_msg *msg)
{
    struct space_config c = *config;
    struct drive_plan plan;
    int status = 0;
    if (c.group_tokens) {
        status = store_geometry(geometry, &c, msg);
        if (!status)
            status = drive_plan(&plan, geometry, &c, dram_bytes, msg);
    } else {
        for (c.group_tokens = group_most(&c);; c.group_tokens /= 2) {
            bool least = c.group_tokens == group_least(&c);
            struct inst_msg *why = least ? msg : NULL;
            status = store_geometry(geometry, &c, why);
            if (!status)
                status = drive_plan(&plan, geometry, &c, dram_bytes, why);
            // A group may be too large for rows, blocks or channel rows.
            if (least || (!status && row_fits(&plan, geometry, &c) &&
                          (!dram_bytes || plan.min_dram_bytes <= dram_bytes)))
                break;
        }
    }
    if (status)
        return status;
    uint64_t block_bytes = (uint64_t)geometry->page_bytes * geometry->pages_per_block;
    uint64_t bytes = capacity_bytes ? capacity_bytes : plan.flash_bytes;
    geometry->blocks = bytes / block_bytes;
    if (!geometry->blocks)
        return inst_fail(msg, INST_EINVAL,
                         "a store of %llu bytes is smaller than one block of %llu",
                         (unsigned long long)bytes, (unsigned long long)block_bytes);
    return 0;
}
