// SPDX-License-Identifier: Apache-2.0
// Pure arithmetic about what a space needs, so that a host can plan its memory and refuse before
// it starts. The figures bound what drive_open and CONFIG really allocate.
#include "drive/internal.h"
#include "base/checked.h"

enum {
    DEFAULT_GROUP_MAX = 256,      // a larger group would hold whole short contexts back from flash
    ALLOCATION_EXTRA = 4096 + 64, // what one budget_alloc may add
    GOOD_WINDOW = 32 << 20,       // bytes in flight or in use that keep any device busy
    STORE_PAGE = 16 * 1024,       // page of a private store, where rows are that large
    // Ordinary disks: a request costs as much as reading 35 to 100 KiB. Rows of that size also hold
    // whole tiles for most models, so that none has to be put together from several.
    STORE_READ = 256 * 1024,
    STORE_BLOCK = 4 << 20,
    STORE_BLOCKS_MIN = 32, // a store is at least so many blocks, to keep space amplification low
};

// Bytes of one row entry of the map, records of its pages included.
static uint64_t row_map_bytes(const struct stream *kv)
{
    return sizeof(struct row) + kv->row_pages * sizeof(uint64_t) + 8;
}

static uint64_t groups_of(const struct space_config *c)
{
    return div_round_up(c->max_tokens ? c->max_tokens : 1, c->group_tokens);
}

static int plan_group(struct drive_plan *plan, const struct flash_geometry *g,
                      const struct space_config *c, struct inst_msg *msg)
{
    struct stream kv;
    int status = stream_layout(&kv, g, c, msg);
    if (status)
        return status;
    uint64_t sequences = c->max_sequences ? c->max_sequences : 1;
    uint64_t q_heads = c->q_heads ? c->q_heads : 8ull * c->kv_heads;
    uint64_t stride = partial_stride(c->head_dim) * sizeof(float);
    uint32_t rows_per_span = span_rows(c);
    uint64_t span_partials = div_round_up(span_tokens(c), ATTENTION_TILE) * q_heads * stride;
    uint64_t ios = g->dies == 1 ? 1 : kv.row_pages;
    plan->group_tokens = c->group_tokens;
    plan->row_bytes = kv.row_bytes;
    plan->frame_bytes = kv.row_bytes + sizeof(struct frame) + kv.row_pages * sizeof(uint64_t) +
                        ios * sizeof(struct flash_io) + 4 * sizeof(void *) +
                        div_round_up(span_partials, rows_per_span);
    // Group buffers of every layer, two spans for reads and a little for programs under way.
    uint64_t open = c->layers * sequences;
    plan->min_frames = open + 4ull * rows_per_span + 4;
    plan->good_frames = plan->min_frames + div_round_up(GOOD_WINDOW, kv.row_bytes);
    uint64_t rows, map, open_segments, tickets;
    uint64_t summary = (uint64_t)segment_summary_pages(g) * g->page_bytes * g->dies;
    if (!checked_mul(open, groups_of(c) + 16, &rows) ||
        !checked_mul(rows, row_map_bytes(&kv), &map) || map > INT64_MAX / 4)
        return inst_fail(msg, INST_EINVAL, "CONFIG: %llu tokens in %llu sequences overflow",
                         (unsigned long long)c->max_tokens, (unsigned long long)sequences);
    open_segments =
        (sequences + 2) * (summary + g->dies * sizeof(struct flash_io) + 3 * ALLOCATION_EXTRA);
    // Two tickets' worth of queries, partials and results for a full batch.
    tickets = 2 * (sequences * (q_heads * (stride + 2ull * c->head_dim * sizeof(float) + 8) + 128) +
                   2 * ALLOCATION_EXTRA);
    uint64_t segments = div_round_up(g->blocks / g->dies, 64) * sizeof(void *);
    uint64_t used = div_round_up(rows, segment_capacity(g, kv.row_pages)) + 2 * sequences;
    segments += min_u64(used, g->blocks / g->dies) *
                    (128 + g->dies * sizeof(struct flash_io) +
                     segment_capacity(g, kv.row_pages) * sizeof(uint32_t) + 2 * 128) +
                64 * 128;
    plan->other_bytes =
        sizeof(struct drive) + 64 * 1024 /* batch, tables, headers */ + segments + map +
        open_segments + tickets +
        sequences * (c->layers * (sizeof(struct layer_state) + 8ull * c->kv_heads + 1024) + 4096);
    plan->min_dram_bytes = plan->other_bytes + plan->min_frames * plan->frame_bytes;
    plan->good_dram_bytes = plan->other_bytes + plan->good_frames * plan->frame_bytes;
    uint64_t per_sequence =
        div_round_up(c->layers * groups_of(c), segment_capacity(g, kv.row_pages));
    // A quarter more for rows that truncation and forks left dead in segments that live on.
    if (!checked_mul((per_sequence + per_sequence / 4 + 2) * sequences,
                     (uint64_t)g->page_bytes * g->pages_per_block * g->dies, &plan->flash_bytes))
        return inst_fail(msg, INST_EINVAL, "CONFIG: the KV cache overflows 64 bits");
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
    g->page_bytes = row >= STORE_PAGE ? STORE_PAGE : 4096;
    g->pages_per_block = 65535;
    g->blocks = 1;
    struct stream kv;
    int status = stream_layout(&kv, g, c, msg);
    if (status)
        return status;
    uint64_t total = c->layers * groups_of(c) * kv.row_bytes;
    uint64_t target = min_u64(STORE_BLOCK, max_u64(total / STORE_BLOCKS_MIN, 16ull * 4096));
    uint64_t data = max_u64(1, target / kv.row_bytes) * kv.row_pages, pages = data;
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
            status = store_geometry(geometry, &c, msg);
            if (!status)
                status = drive_plan(&plan, geometry, &c, dram_bytes, msg);
            if (status || c.group_tokens == GROUP_MIN)
                break;
            if (plan.row_bytes <= geometry->read_bytes &&
                (!dram_bytes || plan.min_dram_bytes <= dram_bytes))
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
