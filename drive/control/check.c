// SPDX-License-Identifier: Apache-2.0
// Invariant walker for tests and fuzzing: compares what the parts of an idle drive believe about
// each other. Slow; never called by the drive itself.
#include "drive/attend/sparf.h"
#include "base/checked.h"

static int broken(struct inst_msg *msg, const char *what, uint64_t a, uint64_t b)
{
    return inst_fail(msg, INST_EINTERNAL, "%s: %llu and %llu", what, (unsigned long long)a,
                     (unsigned long long)b);
}

static int check_channels(const struct space *space, const struct layer_state *layer,
                          uint64_t *references, struct inst_msg *msg)
{
    uint64_t tokens = space->streams[STREAM_CHANNELS].row_tokens, heads = space->config.kv_heads;
    uint64_t groups = layer->channels.n / heads, most = 0;
    for (uint32_t h = 0; h < heads; h++) // a WRITE of some heads brings their rows
        most = max_u64(most, layer->head_tokens[h]);
    if (layer->channels.n % heads || groups * tokens > most)
        return broken(msg, "channel rows, tokens", layer->channels.n, layer->tokens);
    if (layer->channel_groups * tokens > layer->tokens)
        return broken(msg, "channel groups settled, tokens", layer->channel_groups, layer->tokens);
    if (layer->tokens >= (layer->channel_groups + 1) * tokens && !layer->build_queued)
        return broken(msg, "complete channel groups, settled", layer->tokens / tokens,
                      layer->channel_groups);
    for (uint64_t i = 0; i < layer->channels.n; i++) {
        const struct row *row = row_map_at(space, STREAM_CHANNELS, &layer->channels, i);
        if (!row_placed(row))
            continue;
        ++*references;
        if (!segments_references(space->segments, row->place))
            return broken(msg, "channel row that the flash does not count", row->place.segment,
                          row->place.row);
    }
    for (uint32_t h = 0; h < heads; h++) {
        const struct mean_head *mean = &layer->means.heads[h];
        if (mean->gap.first > mean->gap.end || mean->gap.end > layer->head_tokens[h])
            return broken(msg, "gap of a mean, tokens", mean->gap.end, layer->head_tokens[h]);
    }
    return 0;
}

static int check_layer(const struct space *space, const struct sequence *sequence,
                       uint32_t layer_index, uint64_t *references, uint64_t *open,
                       struct inst_msg *msg)
{
    const struct layer_state *layer = &sequence->layers[layer_index];
    uint64_t row_tokens = space->config.group_tokens;
    for (uint32_t h = 0; h < space->config.kv_heads; h++) {
        if (layer->head_tokens[h] < layer->tokens)
            return broken(msg, "tokens of a head, of the layer", layer->head_tokens[h],
                          layer->tokens);
    }
    uint64_t most = (layer->rows.n + (layer->open != NULL)) * row_tokens;
    if (layer->tokens > most)
        return broken(msg, "tokens stored, room in rows", layer->tokens, most);
    if (layer->open && layer->open->state != FRAME_OPEN)
        return broken(msg, "state of a group buffer", layer->open->state, FRAME_OPEN);
    *open += layer->open != NULL;
    for (uint64_t g = 0; g < layer->rows.n; g++) {
        const struct row *row = sequence_row(space, sequence, layer_index, g);
        if (row->place.segment == PLACE_NONE)
            continue;
        ++*references;
        if (!segments_references(space->segments, row->place))
            return broken(msg, "row that the flash does not count", row->place.segment,
                          row->place.row);
    }
    return space_is_sparf(space) ? check_channels(space, layer, references, msg) : 0;
}

// Page frames of an idle drive are all free.
static int check_pages(const struct space *space, bool idle, struct inst_msg *msg)
{
    if (!space_is_sparf(space))
        return 0;
    if (!sparf_idle(space->sparf) && idle)
        return broken(msg, "sparf under way in an idle drive", 1, 0);
    idle = idle && !channels_building(space->channels);
    for (int i = 1; space_frames(space)[i]; i++) {
        const struct frames *frames = space_frames(space)[i];
        struct frame_census census;
        frames_census(frames, &census);
        if (census.free != frames_free(frames))
            return broken(msg, "free page frames, in the list", census.free, frames_free(frames));
        if (idle && !frames_in_flight(frames) && census.free != frames_count(frames))
            return broken(msg, "free page frames, all", census.free, frames_count(frames));
    }
    return 0;
}

static int check_frames(const struct space *space, uint64_t open, bool idle, struct inst_msg *msg)
{
    struct frame_census census;
    frames_census(space->frames, &census);
    if (census.open != open || open != space->n_open_frames)
        return broken(msg, "group buffers in frames, in sequences", census.open, open);
    if (census.free != frames_free(space->frames))
        return broken(msg, "free frames, in the list", census.free, frames_free(space->frames));
    if (idle && census.users)
        return broken(msg, "users of frames, of an idle drive", census.users, 0);
    if (idle && census.stray)
        return broken(msg, "frames that nobody will free", census.stray, 0);
    return 0;
}

int drive_check(const struct drive *drive, struct inst_msg *msg)
{
    uint64_t references = 0, live_rows = segments_all_references(drive->segments);
    for (const struct space *space = drive->spaces; space; space = space->next) {
        uint64_t open = 0, sequences = 0;
        const struct sequence *sequence = NULL;
        while ((sequence = space_next(space, sequence))) {
            sequences++;
            for (uint32_t l = 0; l < space->config.layers; l++) {
                int status = check_layer(space, sequence, l, &references, &open, msg);
                if (status)
                    return status;
            }
        }
        if (sequences != space->n_sequences)
            return broken(msg, "sequences found, counted", sequences, space->n_sequences);
        bool idle = !drive->first_job && !drive->n_pending && !frames_in_flight(space->frames);
        int status = check_frames(space, open, idle, msg);
        if (!status)
            status = check_pages(space, idle, msg);
        if (status)
            return status;
    }
    if (references != live_rows)
        return broken(msg, "references in maps, on flash", references, live_rows);
    return 0;
}
