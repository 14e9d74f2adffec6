// SPDX-License-Identifier: Apache-2.0
// STAT and IDENTIFY.
#include "drive/control/internal.h"

static void get_stats(const struct drive *drive, struct drive_stats *stats)
{
    const struct flash_geometry *g = &drive->flash->geometry;
    uint64_t block_bytes = (uint64_t)g->page_bytes * g->pages_per_block;
    struct segment_counters segments;
    segments_counters(drive->segments, &segments);
    *stats = (struct drive_stats){
        .flash_program_bytes = segments.summary_bytes,
        .flash_erased_blocks = segments.erased_blocks,
        .live_bytes = segments.live_bytes,
        .allocated_bytes = segments.allocated_blocks * block_bytes,
        .free_bytes = segments.free_blocks * block_bytes,
        .dead_bytes = segments.dead_blocks * block_bytes,
        .attended_tokens = drive->env.attended,
        .attended_tokens_from_flash = drive->env.from_flash,
        .attended_tokens_programming = drive->env.programming,
        .dram_used_bytes = drive->budget.used,
        .dram_peak_bytes = drive->budget.peak,
        .write_wait_ns = drive->write_wait_ns,
    };
    for (const struct space *space = drive->spaces; space; space = space->next) {
        const struct frame_counters *frames = frames_counters(space->frames);
        stats->stream_bytes += space->stream_bytes;
        stats->flash_program_bytes += frames->program_bytes;
        stats->flash_read_bytes += frames->read_bytes + space->view_bytes;
        stats->checksum_errors += space->checksum_errors;
        stats->cache_hit_bytes += frames->hit_bytes;
        stats->cached_bytes += frames->cached_bytes;
        stats->bridged_bytes += space->bridged_bytes;
        stats->replaced_rows += space->replaced_rows;
        stats->read_ahead_rows += frames->ahead_rows;
        stats->read_ahead_hits += frames->ahead_hits;
        stats->sequences += space->n_sequences;
        stats->rows_in_dram += space->n_open_frames;
        const struct walk *walk = space->walk;
        for (int i = 0; walk->methods[i]; i++)
            walk->methods[i]->stats(walk->states[i], stats);
        for (uint32_t i = 1; i < STREAM_MAX; i++) {
            if (space->streams[i].ops)
                space->streams[i].ops->stats(space, stats);
        }
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
        .ticket_ms = TICKET_MS,
    };
    for (int i = 0; drive->env.methods[i] && drive->env.methods[i]->id < 64; i++)
        identity.methods |= UINT64_C(1) << drive->env.methods[i]->id;
    identity.kv_types = (UINT64_C(1) << KV_TYPES) - 1;
    if (command->length < IDENTIFY_TABLE_BYTES)
        return inst_fail(&drive->msg, INST_EINVAL, "IDENTIFY: %u bytes are too few",
                         command->length);
    identity_encode(data, &identity);
    return 0;
}
