// SPDX-License-Identifier: Apache-2.0
// Pure arithmetic about what a space needs, so that a host can plan its memory and refuse before
// it starts. The figures bound what drive_open and CONFIG really allocate.
#include "drive/attend/sparf.h"
#include "base/checked.h"

enum {
    DEFAULT_GROUP_MAX = 256,      // a larger group would hold whole short contexts back from flash
    ALLOCATION_EXTRA = 4096 + 64, // what one budget_alloc may add
    GOOD_WINDOW = 32 << 20,       // bytes in flight or in use that keep any device busy
    STORE_PAGE = 16 * 1024,       // page of a private store, where rows are that large
    STORE_PAGE_SPARF = 4096,      // of one where single pages are read
    // Ordinary disks: a request costs as much as reading 35 to 100 KiB. Rows of that size also hold
    // whole tiles for most models, so that none has to be put together from several.
    STORE_READ = 256 * 1024,
    STORE_BLOCK = 4 << 20,
    STORE_BLOCKS_MIN = 32, // a store is at least so many blocks, to keep space amplification low
};

// Bytes of one row entry of the map, records of its pages included.
static uint64_t row_map_bytes(const struct stream *stream)
{
    return sizeof(struct row) + stream->row_pages * sizeof(uint64_t) + 8;
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

// What METHOD_SPARF adds: the map of channel rows, sums of V, page buffers and scores.
static int plan_sparf(struct drive_plan *plan, const struct flash_geometry *g,
                      const struct space_config *c, struct stream *streams, struct inst_msg *msg)
{
    struct stream *channels = &streams[STREAM_CHANNELS];
    struct sparf_size least, most;
    uint64_t sequences = max_u64(c->max_sequences, 1), rows, map, means;
    int status = channels_layout(channels, g, c, msg);
    if (!status)
        status = sparf_size(&least, g, c, streams, 0, msg);
    if (!status)
        status = sparf_size(&most, g, c, streams, SPARF_LEVELS - 1, msg);
    if (status)
        return status;
    plan->page_channels = c->page_channels;
    plan->min_sparf_bytes = least.bytes;
    plan->good_sparf_bytes = max_u64(most.bytes, least.bytes);
    uint64_t groups = c->max_tokens / channels->row_tokens + 16;
    if (!checked_mul(c->layers * sequences, groups * c->kv_heads, &rows) ||
        !checked_mul(rows, row_map_bytes(channels), &map) || map > INT64_MAX / 4 ||
        !checked_mul(c->layers * sequences, means_bytes(c->kv_heads, c->head_dim, c->max_tokens),
                     &means) ||
        means > INT64_MAX / 4)
        return inst_fail(msg, INST_EINVAL, "CONFIG: %llu tokens in %llu sequences overflow",
                         (unsigned long long)c->max_tokens, (unsigned long long)sequences);
    plan->other_bytes += map + means;
    return 0;
}

// DRAM and flash that follow from how many segments rows need.
static int plan_segments(struct drive_plan *plan, const struct flash_geometry *g,
                         const struct space_config *c, const struct stream *streams,
                         struct inst_msg *msg)
{
    uint64_t sequences = max_u64(c->max_sequences, 1), device = g->blocks / g->dies;
    uint64_t summary = (uint64_t)segment_summary_pages(g) * g->page_bytes * g->dies;
    uint64_t total = 0, full = 0, tables = div_round_up(device, 64) * sizeof(void *) + 64 * 128;
    for (uint32_t i = 0; i < (c->method == METHOD_SPARF ? 2u : 1u); i++) {
        const struct stream *stream = &streams[i];
        uint64_t rows = c->layers * (i == STREAM_KV ? groups_of(c)
                                                    : c->max_tokens / stream->row_tokens *
                                                          (uint64_t)c->kv_heads);
        // As much again for rows that truncation and forks left dead in segments that live on.
        uint64_t once = segments_for(g, stream, rows), each = 2 * once + 2, all;
        full += once * sequences; // no more than the sum that is checked
        if (!checked_mul(each, sequences, &all) || !checked_add(total, all, &total))
            return inst_fail(msg, INST_EINVAL, "CONFIG: the KV cache overflows 64 bits");
        tables += min_u64(all + SEGMENTS_DEAD_MAX, device) * segment_bytes(g, stream);
        // While a segment is open, and while its summary is programmed.
        tables +=
            (sequences + 2) * (summary + g->dies * sizeof(struct flash_io) + 3 * ALLOCATION_EXTRA);
    }
    plan->other_bytes += tables;
    uint64_t segment = (uint64_t)g->page_bytes * g->pages_per_block * g->dies;
    if (!checked_mul(total, segment, &plan->flash_bytes))
        return inst_fail(msg, INST_EINVAL, "CONFIG: the KV cache overflows 64 bits");
    plan->full_bytes = full * segment;
    return 0;
}

static int plan_group(struct drive_plan *plan, const struct flash_geometry *g,
                      const struct space_config *config, struct inst_msg *msg)
{
    struct space_config chosen = *config;
    const struct space_config *c = &chosen;
    struct stream streams[STREAM_MAX] = {0}, *kv = &streams[STREAM_KV];
    if (c->method > METHOD_SPARF)
        return inst_fail(msg, INST_ENOTSUP, "CONFIG: unknown method %u", c->method);
    int status = stream_layout(kv, g, c, msg);
    if (status)
        return status;
    channels_choose(&chosen, g);
    uint64_t sequences = c->max_sequences ? c->max_sequences : 1;
    uint64_t q_heads = c->q_heads ? c->q_heads : 8ull * c->kv_heads;
    uint64_t stride = partial_stride(c->head_dim) * sizeof(float);
    uint32_t rows_per_span = span_rows(c);
    uint64_t span_partials = div_round_up(span_tokens(c), ATTENTION_TILE) * q_heads * stride;
    *plan = (struct drive_plan){.group_tokens = c->group_tokens, .row_bytes = kv->row_bytes};
    plan->frame_bytes =
        frames_bytes_each(g, kv->row_pages) + div_round_up(span_partials, rows_per_span);
    // Group buffers of every layer, two spans for reads and a little for programs under way.
    uint64_t open = c->layers * sequences;
    plan->min_frames = open + 4ull * rows_per_span + 4;
    plan->good_frames = plan->min_frames + div_round_up(GOOD_WINDOW, kv->row_bytes);
    uint64_t rows, map, tickets;
    if (!checked_mul(open, groups_of(c) + 16, &rows) ||
        !checked_mul(rows, row_map_bytes(kv), &map) || map > INT64_MAX / 4)
        return inst_fail(msg, INST_EINVAL, "CONFIG: %llu tokens in %llu sequences overflow",
                         (unsigned long long)c->max_tokens, (unsigned long long)sequences);
    // Two tickets' worth of queries, partials and results for a full batch.
    tickets = 2 * (sequences * (q_heads * (stride + 2ull * c->head_dim * sizeof(float) + 8) + 128) +
                   2 * ALLOCATION_EXTRA);
    plan->other_bytes =
        sizeof(struct drive) + 64 * 1024 /* batch, tables, headers */ + map + tickets +
        sequences * (c->layers * (sizeof(struct layer_state) + 8ull * c->kv_heads + 1024) + 4096);
    if (c->method == METHOD_SPARF)
        status = plan_sparf(plan, g, c, streams, msg);
    if (!status)
        status = plan_segments(plan, g, c, streams, msg);
    if (status)
        return status;
    plan->min_dram_bytes =
        plan->other_bytes + plan->min_frames * plan->frame_bytes + plan->min_sparf_bytes;
    plan->good_dram_bytes =
        plan->other_bytes + plan->good_frames * plan->frame_bytes + plan->good_sparf_bytes;
    return 0;
}

int drive_plan(struct drive_plan *plan, const struct flash_geometry *g,
               const struct space_config *config, uint64_t dram_bytes, struct inst_msg *msg)
{
    struct space_config c = *config;
    *plan = (struct drive_plan){0};
    if (c.group_tokens)
        return plan_group(plan, g, &c, msg);
    // The largest group whose rows stay within the best read and whose buffers fit.
    for (c.group_tokens = DEFAULT_GROUP_MAX; c.group_tokens > GROUP_MIN; c.group_tokens /= 2) {
        if (plan_group(plan, g, &c, NULL) || plan->row_bytes > g->read_bytes)
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
    uint64_t row = 4ull * c->group_tokens * c->head_dim * c->kv_heads;
    *g = (struct flash_geometry){.dies = 1, .channels = 1, .read_bytes = STORE_READ};
    g->page_bytes = row >= STORE_PAGE && c->method != METHOD_SPARF ? STORE_PAGE : STORE_PAGE_SPARF;
    g->pages_per_block = 65535;
    g->blocks = 1;
    struct stream kv, channels = {0};
    int status = stream_layout(&kv, g, c, msg);
    if (!status && c->method == METHOD_SPARF) {
        struct space_config chosen = *c;
        channels_choose(&chosen, g);
        status = channels_layout(&channels, g, &chosen, msg);
    }
    if (status)
        return status;
    uint64_t total = c->layers * groups_of(c) * kv.row_bytes;
    uint64_t target = min_u64(STORE_BLOCK, max_u64(total / STORE_BLOCKS_MIN, 16ull * 4096));
    uint64_t data = max_u64(1, target / kv.row_bytes) * kv.row_pages;
    data = max_u64(data, div_round_up(channels.row_pages, kv.row_pages) * kv.row_pages);
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
        for (c.group_tokens = DEFAULT_GROUP_MAX;; c.group_tokens /= 2) {
            bool least = c.group_tokens == GROUP_MIN;
            struct inst_msg *why = least ? msg : NULL;
            status = store_geometry(geometry, &c, why);
            if (!status)
                status = drive_plan(&plan, geometry, &c, dram_bytes, why);
            // A group may be too large for rows, blocks or channel rows.
            if (least || (!status && plan.row_bytes <= geometry->read_bytes &&
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
