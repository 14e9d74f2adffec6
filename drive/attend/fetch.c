// SPDX-License-Identifier: Apache-2.0
// Brings rows into DRAM: first what the active job asks for, then what queued jobs and the next
// layers will ask for, as far as frames are free. Where the flash is memory, rows are used in
// place.
#include "drive/attend/sparf.h"
#include "base/checked.h"

#include <string.h>

bool span_ready(const struct span *span)
{
    if (span->have < span->n_rows)
        return false;
    for (uint32_t i = 0; i < span->n_rows; i++) {
        if (span->frames[i] && span->frames[i]->state == FRAME_READ)
            return false;
    }
    return true;
}

void fetch_release(struct drive *drive, struct span *span)
{
    struct space *space = drive->active->space;
    for (uint32_t i = 0; i < span->have; i++) {
        if (span->frames[i])
            frame_unuse(space->frames, span->frames[i]);
        else if (span->rows[i])
            segments_unpin(drive->segments, span->places[i]);
    }
    span->have = 0;
}

// A READ runs only when somebody waits for its data, so that it cannot hold frames for ever.
static bool job_runnable(const struct job *job)
{
    return job->opcode == OP_ATTEND || job->dest;
}

static struct job *pick_job(struct drive *drive)
{
    struct job *job = drive->first_job;
    while (job && !job_runnable(job))
        job = job->next;
    return job;
}

void item_failed(struct job *job, uint32_t index, int status, uint32_t stream, uint64_t group)
{
    struct job_item *item = &job->items[index];
    if (item->status)
        return;
    // What a failed program left on flash is of no kind: that it failed is what is told. The text is
    // that of the first item that fails.
    item->status =
        item->sequence->failed
            ? sequence_refuse(item->sequence, &job->error)
            : inst_fail(&job->error, status, "sequence %u layer %u %s group %llu: %s",
                        item->sequence->id, job->layer, stream == STREAM_KV ? "token" : "channel",
                        (unsigned long long)group, inst_status_text(status));
}

// Moves the job's cursor to the next token that is wanted; false at the end.
static bool seek(struct job *job)
{
    while (job->fetch_item < job->count) {
        const struct job_item *item = &job->items[job->fetch_item];
        if (job->fetch_token < item->first)
            job->fetch_token = item->first;
        if (!item->status && job->fetch_token < item->end)
            return true;
        job->fetch_item++;
        job->fetch_token = 0;
    }
    return false;
}

// Computed spans have given their rows back but stay in the ring until it is their turn to fold.
static bool acquired_all(const struct span *span)
{
    return span->computed || span->status || span->have == span->n_rows;
}

static struct span *begin_span(struct drive *drive, struct job *job)
{
    if (drive->n_spans == drive->max_spans || !seek(job))
        return NULL;
    uint32_t slot = (drive->first_span + drive->n_spans++) % drive->max_spans;
    struct span *span = &drive->spans[slot];
    const struct job_item *item = &job->items[job->fetch_item];
    uint64_t length = span_tokens(&job->space->config),
             row_tokens = job->space->config.group_tokens;
    uint64_t first = job->fetch_token;
    uint64_t end = min_u64(first / length * length + length, item->end);
    *span = (struct span){
        .item = job->fetch_item,
        .first = first,
        .tokens = (uint32_t)(end - first),
        .n_rows = (uint32_t)(div_round_up(end, row_tokens) - first / row_tokens),
        .partials = job->span_floats ? drive->span_partials + slot * job->span_floats : NULL,
    };
    job->fetch_token = end;
    return span;
}

enum acquired { ACQUIRED, NO_FRAME, FAILED };

// Gets row `have` of the span: from a group buffer, a frame, in place, or starts reading it.
static enum acquired acquire_row(struct drive *drive, struct job *job, struct span *span)
{
    struct space *space = job->space;
    struct job_item *item = &job->items[span->item];
    uint64_t row_tokens = space->config.group_tokens;
    uint64_t group = span->first / row_tokens + span->have;
    uint32_t i = span->have;
    struct row *row = sequence_row(space, item->sequence, job->layer, group);
    struct frame *frame = NULL;
    if (!row) {
        frame = item->sequence->layers[job->layer].open;
        if (!frame) {
            item_failed(job, span->item, INST_EINTERNAL, STREAM_KV, group);
            return FAILED;
        }
    } else if (row->place.segment == PLACE_NONE) {
        item_failed(job, span->item, INST_ENOENT, STREAM_KV, group);
        return FAILED;
    } else {
        frame = frames_find(space->frames, row->place, 0);
    }
    if (frame && frame->state == FRAME_READY && frame->status) {
        item_failed(job, span->item, frame->status, STREAM_KV, group);
        return FAILED;
    }
    bool programming = frame && !frame->read;
    if (!frame && drive->views) {
        uint64_t block;
        uint32_t page;
        segments_address(drive->segments, row->place, 0, &block, &page);
        span->rows[i] = drive->flash->ops->view(drive->flash, block, page);
        if (span->rows[i]) {
            span->frames[i] = NULL;
            span->places[i] = row->place;
            segments_pin(drive->segments, row->place);
            drive->view_bytes += space->streams[STREAM_KV].row_bytes;
        }
    }
    if (!frame && !span->rows[i]) {
        struct page_identity identity;
        frame = frames_take(space->frames, true);
        if (!frame)
            return NO_FRAME;
        row_identity(space, row, job->layer, STREAM_KV, group, &identity);
        frames_read(space->frames, frame, row->place, 0, &identity, row->sums, false);
    }
    if (frame) {
        frame_use(space->frames, frame);
        span->frames[i] = frame;
        span->rows[i] = frame->data;
    }
    if (row) {
        uint64_t begin = max_u64(max_u64(group * row_tokens, span->first), item->window);
        uint64_t end = min_u64((group + 1) * row_tokens, span->first + span->tokens);
        begin = min_u64(begin, end);
        span->from_flash += (uint32_t)(end - begin);
        span->programming += programming ? (uint32_t)(end - begin) : 0;
    }
    span->have++;
    return ACQUIRED;
}

bool fetch_demand(struct drive *drive)
{
    bool moved = false;
    if (!drive->active) {
        drive->active = pick_job(drive);
        if (!drive->active)
            return false;
        drive->max_spans = drive->active->space->span_limit;
        drive->first_span = drive->n_spans = 0;
        if (job_is_sparf(drive->active))
            sparf_begin(drive, drive->active);
        moved = true;
    }
    struct job *job = drive->active;
    if (job_is_sparf(job))
        return sparf_fetch(drive) || moved;
    for (;;) {
        struct span *span = drive->n_spans ? ring_span(drive, drive->n_spans - 1) : NULL;
        if (!span || acquired_all(span))
            span = begin_span(drive, job);
        if (!span)
            return moved;
        while (span->have < span->n_rows) {
            enum acquired result = acquire_row(drive, job, span);
            if (result == NO_FRAME)
                return moved;
            moved = true;
            if (result == FAILED) {
                fetch_release(drive, span);
                span->status = job->items[span->item].status;
                span->n_rows = 0;
                break;
            }
        }
    }
}

// Reads one row ahead; false when no frame may be taken for it.
static bool read_ahead(struct space *space, const struct sequence *sequence, uint32_t layer,
                       uint64_t group)
{
    struct row *row = sequence_row(space, sequence, layer, group);
    if (!row || row->place.segment == PLACE_NONE || frames_find(space->frames, row->place, 0))
        return true;
    if (frames_free(space->frames) <= space->read_reserve)
        return false;
    struct page_identity identity;
    struct frame *frame = frames_take(space->frames, false);
    row_identity(space, row, layer, STREAM_KV, group, &identity);
    frames_read(space->frames, frame, row->place, 0, &identity, row->sums, true);
    return true;
}

static bool ahead_of_job(struct job *job)
{
    uint64_t row_tokens = job->space->config.group_tokens;
    for (; job->ahead_item < job->count; job->ahead_item++, job->ahead_group = 0) {
        const struct job_item *item = &job->items[job->ahead_item];
        if (item->status || item->first == item->end)
            continue;
        uint64_t group = max_u64(job->ahead_group, item->first / row_tokens);
        for (; group < div_round_up(item->end, row_tokens); group++) {
            job->ahead_group = group;
            if (!read_ahead(job->space, item->sequence, job->layer, group))
                return false;
        }
    }
    return true;
}

static void ahead_of_layer(struct drive *drive)
{
    struct prediction *p = &drive->prediction;
    struct space *space = p->space;
    for (; p->valid && p->distance <= space->config.layers; p->distance++, p->item = 0) {
        uint32_t layer = (p->layer + p->distance) % space->config.layers;
        for (; p->item < p->count; p->item++, p->group = 0) {
            const struct sequence *sequence = space_find(space, p->items[p->item].seq);
            if (!sequence || sequence->epoch != p->items[p->item].epoch)
                continue;
            // What a window left out last time is not wanted this time either.
            p->group =
                max_u64(p->group, sequence->layers[layer].ahead_first / space->config.group_tokens);
            for (; p->group < sequence->layers[layer].rows.n; p->group++) {
                if (!read_ahead(space, sequence, layer, p->group))
                    return;
            }
        }
    }
}

void fetch_ahead(struct drive *drive)
{
    if (!drive->read_ahead)
        return;
    struct job *active = drive->active;
    if (active && job_is_sparf(active))
        return;
    // Not before the active job has asked for all of its rows.
    if (active && (active->fetch_item < active->count ||
                   (drive->n_spans && !acquired_all(ring_span(drive, drive->n_spans - 1)))))
        return;
    for (struct job *job = drive->first_job; job; job = job->next) {
        if (job != active && !job_is_sparf(job) && !ahead_of_job(job))
            return;
    }
    ahead_of_layer(drive);
}

void predict_next(struct drive *drive, const struct job *job)
{
    struct prediction *p = &drive->prediction;
    if (job_is_sparf(job)) { // what it reads depends on q
        p->valid = false;
        return;
    }
    bool same = p->valid && p->space == job->space && p->count == job->count;
    for (uint32_t i = 0; same && i < job->count; i++) {
        const struct sequence *sequence = job->items[i].sequence;
        same = sequence && p->items[i].seq == sequence->id && p->items[i].epoch == sequence->epoch;
    }
    if (same && job->layer == (p->layer + 1) % job->space->config.layers && p->distance > 1) {
        p->distance--;
        p->layer = job->layer;
        return;
    }
    if (!same) {
        frames_drop_ahead(job->space->frames);
        if (job->count > p->capacity) {
            void *items =
                budget_alloc(&drive->budget, job->count, sizeof *p->items, "read-ahead", NULL);
            p->valid = items != NULL;
            if (!items)
                return;
            budget_free(&drive->budget, p->items);
            p->items = items;
            p->capacity = job->count;
        }
        p->count = 0;
        for (uint32_t i = 0; i < job->count; i++) {
            const struct sequence *sequence = job->items[i].sequence;
            if (sequence)
                p->items[p->count++] =
                    (struct prediction_item){.seq = sequence->id, .epoch = sequence->epoch};
        }
    }
    p->valid = true;
    p->space = job->space;
    p->layer = job->layer;
    p->distance = 1;
    p->item = 0;
    p->group = 0;
}
