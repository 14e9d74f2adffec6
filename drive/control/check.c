// SPDX-License-Identifier: Apache-2.0
// Invariant walker for tests and fuzzing: compares what the parts of an idle drive believe about
// each other. Slow; never called by the drive itself.
#include "drive/control/internal.h"
#include "base/checked.h"

static int broken(struct inst_msg *msg, const char *what, uint64_t a, uint64_t b)
{
    return inst_fail(msg, INST_EINTERNAL, "%s: %llu and %llu", what, (unsigned long long)a,
                     (unsigned long long)b);
}

static int check_layer(const struct space *space, const struct sequence *sequence,
                       uint32_t layer_index, uint64_t *open, struct inst_msg *msg)
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
        if (row_placed(row) && !segments_references(space->segments, row->place))
            return broken(msg, "row that the flash does not count", row->place.segment,
                          row->place.row);
    }
    int status = 0;
    for (uint32_t i = 1; i < STREAM_MAX && !status; i++) {
        const struct stream_ops *ops = space->streams[i].ops;
        status = ops ? ops->check(space, layer, msg) : 0;
    }
    return status;
}

static void count_row(void *arg, void *entry)
{
    *(uint64_t *)arg += row_placed(entry);
}

// Every map entry that refers to a row, those that several sequences share once.
static uint64_t count_references(struct space *space)
{
    uint64_t references = 0;
    for (uint32_t i = 0; i < STREAM_MAX; i++) {
        if (!space_has(space, i))
            continue;
        struct map_kind *kind = &space->maps[i].kind;
        map_walk_begin(kind, count_row, &references);
        for (struct sequence *s = NULL; (s = space_next(space, s));) {
            for (uint32_t l = 0; l < space->config.layers; l++) {
                const struct layer_state *layer = &s->layers[l];
                const struct stream_ops *ops = space->streams[i].ops;
                map_walk(kind, ops ? ops->rows_of(layer) : &layer->rows, count_row, &references);
            }
        }
    }
    return references;
}

static int check_frames(const struct space *space, uint64_t open, bool idle, struct inst_msg *msg)
{
    struct frame_census census;
    frames_census(space->frames, &census);
    if ((idle && census.open != open) || open != space->n_open_frames)
        return broken(msg, "group buffers in frames, in sequences", census.open, open);
    if (census.unlisted)
        return broken(msg, "lists of frames, frames", census.unlisted, 0);
    if (idle && !walk_idle(space->walk))
        return broken(msg, "units under way in an idle drive", 1, 0);
    if (idle && census.users)
        return broken(msg, "users of frames, of an idle drive", census.users, 0);
    if (idle && census.stray)
        return broken(msg, "frames that nobody will free", census.stray, 0);
    return 0;
}

int drive_check(struct drive *drive, struct inst_msg *msg)
{
    uint64_t references = 0, live_rows = segments_all_references(drive->segments);
    for (struct space *space = drive->spaces; space; space = space->next) {
        references += count_references(space);
        uint64_t open = 0, sequences = 0;
        struct sequence *sequence = NULL;
        while ((sequence = space_next(space, sequence))) {
            sequences++;
            for (uint32_t l = 0; l < space->config.layers; l++) {
                int status = check_layer(space, sequence, l, &open, msg);
                if (status)
                    return status;
            }
        }
        if (sequences != space->n_sequences)
            return broken(msg, "sequences found, counted", sequences, space->n_sequences);
        bool idle = !drive->first_job && !drive->queue.first && !frames_in_flight(space->frames) &&
                    !streams_working(space);
        int status = check_frames(space, open, idle, msg);
        if (status)
            return status;
    }
    if (references != live_rows)
        return broken(msg, "references in maps, on flash", references, live_rows);
    return 0;
}
