// SPDX-License-Identifier: Apache-2.0
#include "drive/attend/ahead.h"
#include "base/checked.h"

static void push_last(struct space *space, struct sequence *sequence)
{
    struct ahead_queue *queue = &space->ahead;
    sequence->ahead.queued = true;
    sequence->ahead.next = NULL;
    sequence->ahead.before = queue->last;
    *(queue->last ? &queue->last->ahead.next : &queue->first) = sequence;
    queue->last = sequence;
}

static void push_first(struct space *space, struct sequence *sequence)
{
    struct ahead_queue *queue = &space->ahead;
    sequence->ahead.queued = true;
    sequence->ahead.next = queue->first;
    sequence->ahead.before = NULL;
    *(queue->first ? &queue->first->ahead.before : &queue->last) = sequence;
    queue->first = sequence;
}

void ahead_forget(struct space *space, struct sequence *sequence)
{
    struct ahead_queue *queue = &space->ahead;
    struct ahead_cursor *a = &sequence->ahead;
    if (!a->queued)
        return;
    *(a->before ? &a->before->ahead.next : &queue->first) = a->next;
    *(a->next ? &a->next->ahead.before : &queue->last) = a->before;
    a->queued = false;
}

// Who is attended now is attended again soonest: they go to the front, in this order, those who
// are furthest behind first.
static void queue_items(struct space *space, const struct job *job, uint32_t least)
{
    for (int nearest = 0; nearest < 2; nearest++)
        for (uint32_t i = job->count; i-- > 0;) {
            struct sequence *sequence = job->items[i].sequence;
            if (!sequence || (sequence->ahead.distance == least) != nearest)
                continue;
            ahead_forget(space, sequence); // named twice perhaps
            push_first(space, sequence);
        }
}

void ahead_expect(struct space *space, const struct job *job, bool scans)
{
    const uint64_t lost = frames_counters(space->frames)->ahead_lost;
    uint32_t layers = space->config.layers, least = layers;
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
        // Where frames went to somebody else the cursor may have left rows behind that are gone.
        bool expected = a->distance > 1 && a->lost == lost && job->layer == (a->layer + 1) % layers;
        a->layer = job->layer;
        a->lost = lost;
        ahead_forget(space, sequence);
        if (!scans) { // what it reads depends on q
            a->distance = 0;
            continue;
        }
        if (expected) {
            a->distance--;
        } else {
            a->distance = 1;
            a->group = 0;
        }
        least = (uint32_t)min_u64(least, a->distance);
    }
    if (scans)
        queue_items(space, job, least);
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
        ahead_forget(space, sequence);
        a->group = 0;
        // The layer that is attended right now is there, and will not be when its turn comes again.
        if (++a->distance < space->config.layers)
            push_last(space, sequence);
    }
}
