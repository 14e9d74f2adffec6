// SPDX-License-Identifier: Apache-2.0
#include "drive/ftl/step.h"
#include "base/checked.h"
#include "drive/ftl/channels.h"

#include <string.h>

// Stand in pages[] for a page that is wanted and not there yet.
#define WANTED ((struct frame *)1)
#define EXTRA  ((struct frame *)2)

static bool missing(const struct frame *frame)
{
    return frame == WANTED || frame == EXTRA;
}

static void count_read(struct step *step, const struct frame *mark)
{
    *(mark == EXTRA ? &step->read_extra : &step->read_pages) += 1;
}

uint64_t steps_bytes(uint32_t count, uint32_t rows_each, uint32_t pages_each)
{
    return (uint64_t)count * (sizeof(struct step) + rows_each * sizeof(struct step_row) +
                              pages_each * sizeof(struct frame *));
}

int steps_open(struct steps *s, struct space *space, uint32_t count, uint32_t rows_each,
               uint32_t pages_each, struct inst_msg *msg)
{
    *s = (struct steps){
        .space = space, .count = count, .rows_each = rows_each, .pages_each = pages_each};
    s->all = budget_alloc(space->budget, count, sizeof *s->all, "steps", msg);
    s->rows =
        budget_alloc(space->budget, (uint64_t)count * rows_each, sizeof *s->rows, "steps", msg);
    s->pages =
        budget_alloc(space->budget, (uint64_t)count * pages_each, sizeof *s->pages, "steps", msg);
    if (!s->all || !s->rows || !s->pages)
        return INST_ENOMEM;
    for (uint32_t i = count; i-- > 0;) {
        s->all[i].next = s->free;
        s->free = &s->all[i];
    }
    return 0;
}

void steps_close(struct steps *s)
{
    if (!s->space)
        return;
    budget_free(s->space->budget, s->all);
    budget_free(s->space->budget, s->rows);
    budget_free(s->space->budget, s->pages);
    *s = (struct steps){0};
}

struct step *step_get(struct steps *s)
{
    struct step *step = s->free;
    if (!step)
        return NULL;
    s->free = step->next;
    size_t i = (size_t)(step - s->all);
    float *partials = step->partials;
    *step = (struct step){
        .rows = s->rows + i * s->rows_each,
        .pages = s->pages + i * s->pages_each,
        .partials = partials,
    };
    return step;
}

void step_put(struct steps *s, struct step *step)
{
    step->next = s->free;
    s->free = step;
}

void step_add_row(struct step *step, uint32_t index, uint32_t first_page, uint32_t n_pages)
{
    struct step_row *row = &step->rows[step->n_rows++];
    *row = (struct step_row){
        .index = index,
        .first_page = first_page,
        .n_pages = n_pages,
        .pages = step->pages + step->n_pages,
    };
    memset(row->pages, 0, n_pages * sizeof *row->pages);
    step->n_pages += n_pages;
}

void step_want(const struct space *space, struct step *step, uint32_t row, uint64_t offset,
               uint64_t bytes, bool extra)
{
    uint64_t page_bytes = space->flash->geometry.page_bytes;
    const struct step_row *r = &step->rows[row];
    uint64_t last = (offset + bytes - 1) / page_bytes;
    for (uint64_t page = offset / page_bytes; page <= last; page++) {
        struct frame **mark = &r->pages[page - r->first_page];
        if (!*mark || !extra)
            *mark = extra ? EXTRA : WANTED;
    }
}

static void failed(struct step *step, int status, uint64_t group)
{
    step->status = status;
    step->failed_group = group;
}

static struct row *find_row(const struct space *space, const struct sequence *sequence,
                            uint32_t layer, const struct step *step, const struct step_row *r)
{
    if (step->stream == STREAM_KV)
        return sequence_row(space, sequence, layer, r->index);
    return row_map_at(space, STREAM_CHANNELS, &sequence->layers[layer].channels, r->index);
}

static uint64_t group_of(const struct space *space, const struct step *step,
                         const struct step_row *r)
{
    return step->stream == STREAM_KV ? r->index : r->index / space->config.kv_heads;
}

// Where the row's data comes from. False: failed.
static bool open_row(const struct step_source *source, const struct sequence *sequence,
                     uint32_t layer, struct step *step, struct step_row *r)
{
    struct space *space = source->space;
    struct row *row = find_row(space, sequence, layer, step, r);
    r->opened = true;
    r->on_flash = row != NULL;
    if (row && !row_placed(row)) {
        failed(step, INST_ENOENT, group_of(space, step, r));
        return false;
    }
    if (step->stream == STREAM_KV) {
        struct frame *frame =
            row ? frames_find(space->frames, row->place, 0) : sequence->layers[layer].open;
        if (!row && !frame) {
            failed(step, INST_EINTERNAL, r->index);
            return false;
        }
        if (frame && !frame->read) {
            frame_use(space->frames, frame);
            r->frame = frame;
            r->data = frame->data;
        }
        if (r->frame)
            return true;
    }
    r->place = row->place;
    if (!source->views ||
        (step->stream == STREAM_CHANNELS &&
         frames_find(source->programs, row->place, space->streams[STREAM_CHANNELS].row_pages - 1)))
        return true;
    uint64_t block;
    uint32_t page;
    segments_address(space->segments, row->place, 0, &block, &page);
    r->data = space->flash->ops->view(space->flash, block, page);
    if (r->data) {
        segments_pin(space->segments, row->place);
        r->pinned = true;
        for (uint32_t i = 0; i < r->n_pages; i++) {
            if (!missing(r->pages[i]))
                continue;
            count_read(step, r->pages[i]);
            *source->view_bytes += space->flash->geometry.page_bytes;
        }
    }
    return true;
}

static bool acquire_page(const struct step_source *source, const struct sequence *sequence,
                         uint32_t layer, struct step *step, struct step_row *r, uint32_t i)
{
    struct space *space = source->space;
    uint32_t page = r->first_page + i;
    struct frames *set = source->pages;
    struct frame *frame = frames_find(set, r->place, page);
    if (!frame && step->stream == STREAM_CHANNELS) {
        frame = frames_find(source->programs, r->place, page);
        set = frame ? source->programs : set;
    }
    if (!frame) {
        if (frames_free(set) <= source->reserve)
            return false;
        const struct row *row = find_row(space, sequence, layer, step, r);
        struct page_identity identity;
        frame = frames_take(set, false);
        row_identity(space, row, layer, step->stream, group_of(space, step, r), &identity);
        identity.page = page;
        if (step->stream == STREAM_CHANNELS)
            identity.page +=
                r->index % space->config.kv_heads * space->streams[STREAM_CHANNELS].row_pages;
        frames_read(set, frame, r->place, page, &identity, &row->sums[page], false);
        count_read(step, r->pages[i]);
    }
    frame_use(set, frame);
    r->pages[i] = frame;
    return true;
}

// An append took the row into a group buffer again, or it was lost.
static bool moved_away(const struct space *space, const struct sequence *sequence, uint32_t layer,
                       const struct step *step, const struct step_row *r)
{
    if (r->data)
        return false;
    const struct row *row = find_row(space, sequence, layer, step, r);
    return !row || row->place.segment != r->place.segment || row->place.row != r->place.row;
}

enum step_result step_acquire(const struct step_source *source, const struct sequence *sequence,
                              uint32_t layer, struct step *step)
{
    for (; step->row_at < step->n_rows; step->row_at++) {
        struct step_row *r = &step->rows[step->row_at];
        bool open = r->opened && !moved_away(source->space, sequence, layer, step, r);
        if (!open && !open_row(source, sequence, layer, step, r))
            return STEP_FAILED;
        for (uint32_t i = 0; i < r->n_pages; i++) {
            if (!missing(r->pages[i]))
                continue;
            if (r->data)
                r->pages[i] = NULL;
            else if (!acquire_page(source, sequence, layer, step, r, i))
                return STEP_NO_FRAME;
        }
    }
    step->acquired = true;
    return STEP_ACQUIRED;
}

static bool held(const struct frame *frame)
{
    return frame && !missing(frame);
}

bool step_ready(const struct step *step)
{
    if (!step->acquired)
        return false;
    for (uint32_t i = 0; i < step->n_pages; i++) {
        if (step->pages[i] && step->pages[i]->state == FRAME_READ)
            return false;
    }
    return true;
}

size_t step_unverified(const struct step *step, struct frame **list, size_t n)
{
    for (uint32_t i = 0; i < step->n_pages; i++) {
        struct frame *frame = step->pages[i];
        if (frame && frame->verify) {
            frame->verify = false;
            list[n++] = frame;
        }
    }
    return n;
}

static void verify_frame(void *arg, size_t index, unsigned worker)
{
    struct frame *frame = ((struct frame **)arg)[index];
    (void)worker;
    if (!frame->status && !frame_verify(frame->set, frame))
        frame->status = INST_ECORRUPT;
}

void step_verify(struct pool *pool, const struct step_source *source, struct frame **list, size_t n)
{
    pool_run(pool, verify_frame, list, n);
    for (size_t i = 0; i < n; i++)
        *source->checksum_errors += list[i]->status == INST_ECORRUPT;
}

int step_read_status(const struct step *step, uint64_t *group)
{
    for (uint32_t i = 0; i < step->n_pages; i++) {
        const struct frame *frame = step->pages[i];
        if (frame && frame->read && frame->status) {
            *group = frame->identity.group;
            return frame->status;
        }
    }
    return 0;
}

void step_release(const struct step_source *source, struct step *step)
{
    struct space *space = source->space;
    for (uint32_t row = 0; row < step->n_rows; row++) {
        struct step_row *r = &step->rows[row];
        if (r->frame)
            frame_unuse(space->frames, r->frame);
        if (r->pinned)
            segments_unpin(space->segments, r->place);
    }
    for (uint32_t i = 0; i < step->n_pages; i++) {
        if (held(step->pages[i]))
            frame_unuse(step->pages[i]->set, step->pages[i]);
    }
    step->n_rows = step->n_pages = 0;
}

const void *step_at(const struct space *space, const struct step *step, uint32_t row,
                    uint64_t offset, size_t bytes)
{
    const struct step_row *r = &step->rows[row];
    uint64_t page_bytes = space->flash->geometry.page_bytes;
    if (r->data)
        return r->data + offset;
    if (offset % page_bytes + bytes > page_bytes)
        return NULL;
    return r->pages[offset / page_bytes - r->first_page]->data + offset % page_bytes;
}

void step_copy(const struct space *space, const struct step *step, uint32_t row, uint64_t offset,
               size_t bytes, void *out)
{
    uint64_t page_bytes = space->flash->geometry.page_bytes;
    uint8_t *to = out;
    while (bytes) {
        const struct step_row *r = &step->rows[row];
        size_t n = r->data ? bytes : min_u64(bytes, page_bytes - offset % page_bytes);
        memcpy(to, step_at(space, step, row, offset, n), n);
        to += n;
        offset += n;
        bytes -= n;
    }
}
