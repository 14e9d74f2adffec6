// SPDX-License-Identifier: Apache-2.0
#include "drive/attend/ahead.h"
#include "base/checked.h"

static void push(struct space *space, struct sequence *sequence)
{
    struct ahead_queue *queue = &space->ahead;
    sequence->ahead.queued = true;
    sequence->ahead.next = NULL;
    *(queue->last ? &queue->last->ahead.next : &queue->first) = sequence;
    queue->last = sequence;
}

static void pop(struct space *space)
{
    struct ahead_queue *queue = &space->ahead;
    struct sequence *sequence = queue->first;
    queue->first = sequence->ahead.next;
    if (!queue->first)
        queue->last = NULL;
    sequence->ahead.queued = false;
}

void ahead_forget(struct space *space, struct sequence *sequence)
{
    struct ahead_queue *queue = &space->ahead;
    struct sequence *before = NULL, *at = queue->first;
    if (!sequence->ahead.queued)
        return;
    while (at != sequence) {
        before = at;
        at = at->ahead.next;
    }
    *(before ? &before->ahead.next : &queue->first) = sequence->ahead.next;
    if (queue->last == sequence)
        queue->last = before;
    sequence->ahead.queued = false;
}

void ahead_expect(struct space *space, const struct job *job, bool scans)
{
    uint32_t layers = space->config.layers;
    space->ahead.clock++;
    for (uint32_t i = 0; i < job->count; i++) {
        struct sequence *sequence = job->items[i].sequence;
        if (!sequence)
            continue;
        struct ahead_cursor *a = &sequence->ahead;
        sequence->layers[job->layer].ahead_first = job->items[i].first;
        if (job->layer <= a->layer) {
            a->round_before = a->round;
            a->round = space->ahead.clock;
        }
        bool expected = a->distance > 1 && job->layer == (a->layer + 1) % layers;
        a->layer = job->layer;
        if (!scans) { // what it reads depends on q
            ahead_forget(space, sequence);
            a->distance = 0;
            continue;
        }
        if (expected) {
            a->distance--;
        } else {
            a->distance = 1;
            a->group = 0;
        }
        if (!a->queued)
            push(space, sequence);
    }
}

// Reads one row ahead; false when there is no room for it.
static bool read_row(struct space *space, struct sequence *sequence, uint32_t layer, uint64_t group)
{
    struct row *row = sequence_row(space, sequence, layer, group);
    struct page_identity identity;
    if (!row || !row_placed(row))
        return true;
    stream_identity(space, row, layer, STREAM_KV, group, &identity);
    if (frames_find_row(space->frames, row->place, &identity))
        return true;
    if (!frames_ahead_room(space->frames, sequence->ahead.round_before))
        return false;
    struct frame *frame = frames_take_row(space->frames);
    if (!frame)
        return false;
    if (!frames_read_ahead(space->frames, frame, row->place, &identity, row->sums,
                           space->ahead.clock)) {
        frames_give(space->frames, frame);
        return false;
    }
    return true;
}

void ahead_fetch(struct space *space)
{
    struct sequence *sequence;
    while ((sequence = space->ahead.first)) {
        struct ahead_cursor *a = &sequence->ahead;
        uint32_t layer = (a->layer + a->distance) % space->config.layers;
        const struct layer_state *state = &sequence->layers[layer];
        // What a window left out last time is not wanted this time either.
        uint64_t first = state->ahead_first / space->config.group_tokens;
        for (a->group = max_u64(a->group, first); a->group < state->rows.n; a->group++) {
            if (!read_row(space, sequence, layer, a->group))
                return;
        }
        // The others' next layers come before this one's next but one.
        pop(space);
        a->group = 0;
        if (a->distance++ < space->config.layers)
            push(space, sequence);
    }
}
