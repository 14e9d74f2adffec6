// SPDX-License-Identifier: Apache-2.0
// STAT and IDENTIFY.
#include "drive/attend/sparf_unit.h"

// Program and read bytes of a set of page frames.
static void add_frames(const struct frames *frames, struct drive_stats *stats)
{
    const struct frame_counters *c = frames_counters(frames);
    stats->flash_program_bytes += c->program_bytes;
    stats->flash_read_bytes += c->read_bytes;
}

static void add_sparf(const struct space *space, struct drive_stats *stats)
{
    const struct sparf_counters *c = sparf_counters(space->sparf);
    const struct channel_counters *channels = channels_counters(space->channels);
    uint64_t page = space->flash->geometry.page_bytes;
    add_frames(sparf_pages(space->sparf), stats);
    add_frames(channels_programs(space->channels), stats);
    stats->sparf_steps += c->steps;
    stats->dense_pages += c->dense_pages;
    stats->dense_bytes += c->dense_pages * page;
    stats->channel_pages += c->channel_pages;
    stats->channel_bytes += c->channel_pages * page;
    stats->channel_kept_bytes += c->channel_kept_bytes;
    stats->token_pages += c->token_pages;
    stats->token_bytes += c->token_pages * page;
    stats->token_kept_bytes += c->token_kept_bytes;
    stats->tail_bytes += c->tail_bytes;
    stats->mean_bytes += c->mean_bytes;
    stats->build_read_bytes += channels->build_read_bytes;
    stats->channel_program_bytes += channels->program_bytes;
    stats->channel_lost_rows += channels->lost_rows;
    stats->audit_read_bytes += c->audit_pages * page;
    if (c->audits && (!stats->audits || c->captured_worst < stats->captured_worst))
        stats->captured_worst = c->captured_worst;
    stats->audits += c->audits;
    stats->captured_sum += c->captured_sum;
    stats->sparf_dram_bytes += sparf_bytes(space->sparf);
    struct sequence *sequence = NULL;
    while ((sequence = space_next(space, sequence))) {
        for (uint32_t l = 0; l < space->config.layers; l++)
            stats->sparf_dram_bytes += means_bytes(space->config.kv_heads, space->config.head_dim,
                                                   sequence->layers[l].tokens);
    }
}

static void get_stats(const struct drive *drive, struct drive_stats *stats)
{
    const struct flash_geometry *g = &drive->flash->geometry;
    uint64_t block_bytes = (uint64_t)g->page_bytes * g->pages_per_block;
    struct segment_counters segments;
    segments_counters(drive->segments, &segments);
    *stats = (struct drive_stats){
        .flash_program_bytes = segments.summary_bytes,
        .flash_read_bytes = drive->view_bytes,
        .flash_erased_blocks = segments.erased_blocks,
        .live_bytes = segments.live_bytes,
        .allocated_bytes = segments.allocated_blocks * block_bytes,
        .free_bytes = segments.free_blocks * block_bytes,
        .dead_bytes = segments.dead_blocks * block_bytes,
        .attended_tokens = drive->attended,
        .attended_tokens_from_flash = drive->attended_from_flash,
        .attended_tokens_programming = drive->attended_programming,
        .checksum_errors = drive->checksum_errors,
        .dram_used_bytes = drive->budget.used,
        .dram_peak_bytes = drive->budget.peak,
        .write_wait_ns = drive->write_wait_ns,
    };
    for (const struct space *space = drive->spaces; space; space = space->next) {
        const struct frame_counters *frames = frames_counters(space->frames);
        stats->stream_bytes += space->stream_bytes;
        stats->flash_program_bytes += frames->program_bytes;
        stats->flash_read_bytes += frames->read_bytes;
        stats->read_ahead_rows += frames->ahead_rows;
        stats->read_ahead_hits += frames->ahead_hits;
        stats->sequences += space->n_sequences;
        stats->rows_in_dram += space->n_open_frames;
        if (space_is_sparf(space))
            add_sparf(space, stats);
    }
}

int counters_stat(struct drive *drive, const struct command *command, uint8_t *data)
{
    struct drive_stats stats;
    if (command->length < STAT_TABLE_BYTES)
        return inst_fail(&drive->msg, INST_EINVAL, "STAT: %u bytes are too few", command->length);
    get_stats(drive, &stats);
    stats_encode(data, &stats);
    return 0;
}

int counters_identify(struct drive *drive, const struct command *command, uint8_t *data)
{
    const struct flash_geometry *g = &drive->flash->geometry;
    uint64_t block_bytes = (uint64_t)g->page_bytes * g->pages_per_block;
    struct drive_identity identity = {
        .dram_bytes = drive->budget.limit,
        .capacity_bytes = block_bytes * g->blocks,
        .page_bytes = g->page_bytes,
        .block_bytes = block_bytes,
        .dies = g->dies,
        .read_bytes = g->read_bytes,
        .max_tickets = MAX_TICKETS,
        .max_items = MAX_ITEMS,
    };
    if (command->length < IDENTIFY_TABLE_BYTES)
        return inst_fail(&drive->msg, INST_EINVAL, "IDENTIFY: %u bytes are too few",
                         command->length);
    identity_encode(data, &identity);
    return 0;
}
