// SPDX-License-Identifier: Apache-2.0
// FORK and RECLAIM: sequences that come from others, and ranges of sequences, layers and tokens
// that are given up. What becomes of the flash behind them is the business of segment.c.
#include "drive/control/internal.h"
#include "base/checked.h"
#include "drive/attend/ahead.h"

// ---- FORK --------------------------------------------------------------------------------------

// 0 also for an item that is a repetition, of an earlier command or within this one.
static int check_fork(struct drive *drive, struct space *space, const struct table_item *item,
                      uint64_t *buffers)
{
    const struct sequence *child = space_find(space, item->seq);
    if (child && sequence_forked_by(child, item))
        return 0;
    if (child)
        return inst_fail(&drive->msg, INST_EEXIST, "FORK: sequence %u exists", item->seq);
    struct table_item parent_item = {
        .seq = item->parent, .epoch = item->parent_epoch, .pos = 1 /* must exist */};
    struct sequence *parent;
    int status = space_lookup(space, &parent_item, &parent, &drive->msg);
    return status ? status : sequence_can_fork(space, parent, item->pos, buffers, &drive->msg);
}

static int begin_fork(struct drive *drive, struct request *request, struct space *space)
{
    uint64_t buffers = 0;
    int status = 0;
    for (uint32_t i = 0; i < request->command.count && !status; i++) {
        struct table_item item;
        table_get_item(&item, request->table, i);
        status = check_fork(drive, space, &item, &buffers);
    }
    if (!status)
        status = space_buffers(space, buffers, &drive->msg);
    if (status)
        return status;
    request->serial = space->serial;
    request->begun = true;
    return 0;
}

static int fork_item(struct drive *drive, struct request *request, struct space *space,
                     const struct table_item *item)
{
    enum { LAYER_BYTES = 8192 }; // a layer takes about as long as copying so many
    uint64_t buffers = 0;
    struct sequence *parent = space_find(space, item->parent);
    struct sequence *child = space_find(space, item->seq);
    if (!request->done) {
        int status = check_fork(drive, space, item, &buffers); // earlier items may have made it
        if (!status && !child)
            status = sequence_fork(space, parent, item, &child, &drive->msg);
        else if (!status)
            return 0;
        if (status)
            return status;
        request->done = 1;
    }
    for (; request->done <= space->config.layers; request->done++) {
        if (enough(drive))
            return WAIT;
        drive->work += LAYER_BYTES;
        int status = sequence_fork_layer(space, parent, child, (uint32_t)request->done - 1,
                                         &drive->work, &drive->msg);
        if (status)
            return status;
    }
    request->done = 0;
    return 0;
}

static void remove_made(struct space *space, struct sequence *sequence, bool made,
                        const struct request *request)
{
    (void)request;
    if (made)
        space_remove(space, sequence);
}

void fork_undo(struct space *space, const struct request *request)
{
    request_sequences(space, request, request->command.count, remove_made);
}

// All items or none.
int do_fork(struct drive *drive, struct request *request)
{
    struct space *space;
    struct table_header header;
    int status = check_table(drive, request, &space, &header);
    if (!status && !request->begun)
        status = begin_fork(drive, request, space);
    if (status)
        return status;
    while (!status && request->item < request->command.count) {
        struct table_item item;
        table_get_item(&item, request->table, request->item);
        status = fork_item(drive, request, space, &item);
        request->item += status == 0;
    }
    return status;
}

// ---- RECLAIM -----------------------------------------------------------------------------------

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

static int reclaim_sequence(struct drive *drive, struct space *space, struct sequence *sequence,
                            const struct table_item *item)
{
    enum { LAYER_BYTES = 1024 }; // giving one up takes about as long as copying so many
    drive->work += (uint64_t)item->layer_count * LAYER_BYTES;
    cancel_reads(drive, sequence);
    if (sequence->jobs)
        return WAIT;
    bool to_end = item->n_tokens == UINT64_MAX;
    if (to_end && !item->pos && item->layer_count == space->config.layers) {
        ahead_forget(space, sequence);
        space_remove(space, sequence);
        return 0;
    }
    int status = 0;
    for (uint32_t l = item->layer_first; l < item->layer_first + item->layer_count; l++) {
        uint64_t tokens = sequence->layers[l].tokens;
        if (to_end || item->n_tokens >= tokens - min_u64(item->pos, tokens))
            sequence_truncate(space, sequence, l, item->pos);
        else if (!status)
            status = sequence_punch(space, sequence, l, item->pos, item->n_tokens, &drive->msg);
    }
    return status;
}

// Gives up the range of an item, as far as it is there: it may be a repetition, and the sequence
// another one by now. Asking again is harmless.
static int reclaim_range(struct drive *drive, struct space *space, const struct table_item *item)
{
    if (!item->seq_count) {
        struct sequence *sequence = space_find(space, item->seq);
        if (!sequence || sequence->epoch != item->epoch)
            return 0;
        return reclaim_sequence(drive, space, sequence, item);
    }
    int wait = 0;
    struct sequence *next = space_next(space, NULL);
    while (next) {
        struct sequence *sequence = next;
        next = space_next(space, sequence);
        if (sequence->id < item->seq || sequence->id - item->seq >= item->seq_count)
            continue;
        int status = reclaim_sequence(drive, space, sequence, item);
        if (status < 0)
            return status;
        wait |= status;
    }
    return wait;
}

static int check_reclaim(struct drive *drive, const struct request *request,
                         const struct space *space)
{
    uint32_t layers = space->config.layers;
    for (uint32_t i = 0; i < request->command.count; i++) {
        struct table_item item;
        table_get_item(&item, request->table, i);
        if (item.layer_first >= layers || !item.layer_count ||
            item.layer_count > layers - item.layer_first)
            return inst_fail(&drive->msg, INST_EINVAL, "RECLAIM: layers %u + %u of %u",
                             item.layer_first, item.layer_count, layers);
    }
    return 0;
}

int do_reclaim(struct drive *drive, struct request *request)
{
    struct space *space;
    struct table_header header;
    int status = check_table(drive, request, &space, &header);
    if (!status)
        status = check_reclaim(drive, request, space);
    while (!status && request->item < request->command.count) {
        struct table_item item;
        if (enough(drive))
            return WAIT;
        table_get_item(&item, request->table, request->item);
        status = reclaim_range(drive, space, &item);
        request->item += status == 0;
    }
    return status;
}
