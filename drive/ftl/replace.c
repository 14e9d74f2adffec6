// SPDX-License-Identifier: Apache-2.0
// Rows whose program failed. What they hold is still in DRAM, readable, and is placed again, for
// all sequences that refer to the row. Only where that fails several times, or there is no room and
// none will come, is the row lost, and those sequences are told.
#include "drive/ftl/space.h"

enum { PROGRAM_TRIES = 4 };

static struct row *row_of(const struct space *space, const struct sequence *sequence,
                          const struct frame *frame)
{
    struct row *row = sequence_row(space, sequence, frame->identity.layer, frame->identity.group);
    bool same =
        row && row->place.segment == frame->place.segment && row->place.row == frame->place.row;
    return same ? row : NULL;
}

static struct sequence *next_owner(const struct space *space, const struct sequence *sequence,
                                   const struct frame *frame)
{
    struct sequence *next = space_next(space, sequence);
    while (next && !row_of(space, next, frame))
        next = space_next(space, next);
    return next;
}

static enum progress place_again(struct space *space, struct frame *frame)
{
    struct sequence *first = next_owner(space, NULL, frame);
    if (!first || frame->tries++ >= PROGRAM_TRIES)
        return FAILED;
    struct frontier *frontier = &first->lifetime->frontiers[STREAM_KV];
    struct place old = frame->place, place;
    bool wait = true;
    if (!frames_can_program(space->frames, 1, 0) ||
        segments_reserve(space->segments, frontier, 1, &wait)) {
        frame->tries -= wait;
        if (!wait) // what it failed of would have been mended
            frame->status = INST_ENOSPC;
        return wait ? WAIT : FAILED;
    }
    if (segments_place(space->segments, frontier, &place, NULL)) {
        segments_unreserve(space->segments, frontier, 1);
        wait = segments_working(space->segments);
        frame->tries -= wait;
        return wait ? WAIT : FAILED;
    }
    bool counted = true; // the place comes with one reference
    // Sequences that share the map entry have it all at once.
    for (struct sequence *s = first; s; s = next_owner(space, s, frame)) {
        if (!counted)
            segments_ref(space->segments, place);
        counted = false;
        segments_unref(space->segments, old);
        row_of(space, s, frame)->place = place;
    }
    frames_program_again(space->frames, frame, place);
    space->replaced_rows++;
    return DONE;
}

static void lose(struct space *space, struct frame *frame)
{
    const struct stream *stream = &space->streams[frame->identity.stream];
    if (stream->ops)
        stream->ops->lost(space, frame->place, &frame->identity);
    for (struct sequence *s = NULL; !stream->ops && (s = next_owner(space, s, frame));)
        sequence_lost(s, frame->status, &frame->identity);
    // What is on flash in its place is of no kind: nobody is to read it. All have been told by now
    // that refer to it, some of them through the same map entry.
    for (struct sequence *s = NULL; !stream->ops && (s = next_owner(space, s, frame));)
        row_drop(space, STREAM_KV, row_of(space, s, frame));
    frames_program_ended(space->frames, frame);
}

void space_program_failed(struct space *space, struct frame *frame)
{
    // Derived rows are given up: they can be done without.
    enum progress progress =
        space->streams[frame->identity.stream].ops ? FAILED : place_again(space, frame);
    if (progress == FAILED) {
        lose(space, frame);
    } else if (progress == WAIT) {
        frame->older = space->stranded;
        space->stranded = frame;
    }
}

bool space_retry(struct space *space)
{
    struct frame *list = space->stranded, *next;
    bool moved = false;
    space->stranded = NULL;
    for (; list; list = next) {
        next = list->older;
        space_program_failed(space, list);
        moved |= space->stranded != list;
    }
    return moved;
}
