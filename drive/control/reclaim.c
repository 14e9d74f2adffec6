// SPDX-License-Identifier: Apache-2.0
// RECLAIM: gives up ranges of sequences, layers and tokens. What becomes of the flash behind them
// is the business of segment.c.
#include "drive/control/internal.h"
#include "base/checked.h"
#include "drive/attend/ahead.h"

// READs that nobody collects must not keep a sequence alive.
static void cancel_reads(struct drive *drive, const struct sequence *sequence)
{
    for (struct job *job = drive->first_job; job; job = job->next) {
        for (uint32_t i = 0; job->opcode == OP_READ && !job->dest && i < job->count; i++) {
            struct job_item *item = &job->items[i];
            if (item->sequence != sequence)
                continue;
            item->sequence->jobs--;
            item->sequence = NULL;
            item->status =
                inst_fail(&job->error, INST_ECANCELLED,
                          "READ: sequence %u was cut before it was collected", sequence->id);
        }
    }
}

// 1: wait.
static int reclaim_sequence(struct drive *drive, struct space *space, struct sequence *sequence,
                            const struct table_item *item)
{
    cancel_reads(drive, sequence);
    if (sequence->jobs)
        return 1;
    bool to_end = item->n_tokens == UINT64_MAX;
    if (to_end && !item->pos && item->layer_count == space->config.layers) {
        ahead_forget(space, sequence);
        space_remove(space, sequence);
        return 0;
    }
    for (uint32_t l = item->layer_first; l < item->layer_first + item->layer_count; l++) {
        uint64_t tokens = sequence->layers[l].tokens;
        if (to_end || item->n_tokens >= tokens - min_u64(item->pos, tokens))
            sequence_truncate(space, sequence, l, item->pos);
        else
            sequence_punch(space, sequence, l, item->pos, item->n_tokens);
    }
    return 0;
}

int reclaim_range(struct drive *drive, struct space *space, const struct table_item *item)
{
    uint32_t layers = space->config.layers;
    if (item->layer_first >= layers || !item->layer_count ||
        item->layer_count > layers - item->layer_first)
        return inst_fail(&drive->msg, INST_EINVAL, "RECLAIM: layers %u + %u of %u",
                         item->layer_first, item->layer_count, layers);
    if (!item->seq_count) {
        struct table_item lookup = *item;
        struct sequence *sequence;
        lookup.pos = 1; // must exist
        int status = space_lookup(space, &lookup, &sequence, &drive->msg);
        if (status && (!sequence || sequence->epoch != item->epoch))
            return status;
        drive->msg.text[0] = 0; // a sequence that lost a row can still be given up
        return reclaim_sequence(drive, space, sequence, item);
    }
    int wait = 0;
    struct sequence *next = space_next(space, NULL);
    while (next) {
        struct sequence *sequence = next;
        next = space_next(space, sequence);
        if (sequence->id >= item->seq && sequence->id - item->seq < item->seq_count)
            wait |= reclaim_sequence(drive, space, sequence, item);
    }
    return wait;
}
