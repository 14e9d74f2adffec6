// SPDX-License-Identifier: Apache-2.0
#include "drive/ftl/piece.h"
#include "base/checked.h"

#include <string.h>

// Stand in pages[] for a page that is wanted and not there yet.
#define WANTED ((struct frame *)1)
#define EXTRA  ((struct frame *)2)

static bool missing(const struct frame *frame)
{
    return frame == WANTED || frame == EXTRA;
}

static bool held(const struct frame *frame)
{
    return frame && !missing(frame);
}

static void count_read(struct piece *piece, const struct frame *mark)
{
    *(mark == EXTRA ? &piece->read_extra : &piece->read_pages) += 1;
}

uint64_t pieces_bytes(uint32_t count, uint32_t rows_each, uint32_t pages_each)
{
    return (uint64_t)count * (sizeof(struct piece) + rows_each * sizeof(struct piece_row) +
                              pages_each * sizeof(struct frame *)) +
           3 * (4096 + 64);
}

int pieces_open(struct pieces *s, struct space *space, uint32_t count, uint32_t rows_each,
                uint32_t pages_each, struct inst_msg *msg)
{
    *s = (struct pieces){
        .space = space, .count = count, .rows_each = rows_each, .pages_each = pages_each};
    s->all = budget_alloc(space->budget, count, sizeof *s->all, "pieces", msg);
    s->rows =
        budget_alloc(space->budget, (uint64_t)count * rows_each, sizeof *s->rows, "pieces", msg);
    if (pages_each)
        s->pages = budget_alloc(space->budget, (uint64_t)count * pages_each, sizeof *s->pages,
                                "pieces", msg);
    if (!s->all || !s->rows || (pages_each && !s->pages))
        return INST_ENOMEM;
    for (uint32_t i = count; i-- > 0;) {
        s->all[i].next = s->free;
        s->free = &s->all[i];
    }
    return 0;
}

void pieces_close(struct pieces *s)
{
    if (!s->space)
        return;
    budget_free(s->space->budget, s->all);
    budget_free(s->space->budget, s->rows);
    budget_free(s->space->budget, s->pages);
    *s = (struct pieces){0};
}

struct piece *piece_get(struct pieces *s)
{
    struct piece *piece = s->free;
    if (!piece)
        return NULL;
    s->free = piece->next;
    size_t i = (size_t)(piece - s->all);
    float *partials = piece->partials;
    *piece = (struct piece){
        .set = s,
        .rows = s->rows + i * s->rows_each,
        .pages = s->pages ? s->pages + i * s->pages_each : NULL,
        .partials = partials,
    };
    return piece;
}

void piece_put(struct piece *piece)
{
    piece->next = piece->set->free;
    piece->set->free = piece;
}

void piece_add_row(struct piece *piece, uint32_t index)
{
    piece->rows[piece->n_rows++] = (struct piece_row){.index = index};
}

void piece_add_pages(struct piece *piece, uint32_t index, uint32_t first_page, uint32_t n_pages)
{
    struct piece_row *row = &piece->rows[piece->n_rows++];
    *row = (struct piece_row){
        .index = index,
        .first_page = first_page,
        .n_pages = n_pages,
        .pages = piece->pages + piece->n_pages,
    };
    memset(row->pages, 0, n_pages * sizeof *row->pages);
    piece->n_pages += n_pages;
}

void piece_want(const struct space *space, struct piece *piece, uint32_t row, uint64_t offset,
                uint64_t bytes, bool extra)
{
    uint64_t page_bytes = space->flash->geometry.page_bytes;
    const struct piece_row *r = &piece->rows[row];
    uint64_t last = (offset + bytes - 1) / page_bytes;
    for (uint64_t page = offset / page_bytes; page <= last; page++) {
        struct frame **mark = &r->pages[page - r->first_page];
        if (!*mark || !extra)
            *mark = extra ? EXTRA : WANTED;
    }
}

// ---- acquiring ---------------------------------------------------------------------------------

static enum progress failed(struct piece *piece, int status, uint64_t index)
{
    piece->status = status;
    piece->failed_index = index;
    return FAILED;
}

static void hold_row(struct space *space, struct piece_row *r, struct frame *frame)
{
    frame_use(space->frames, frame, frame->state == FRAME_READY);
    r->frame = frame;
    r->data = frame->data;
    r->programming = r->on_flash && frame->state == FRAME_PROGRAM;
}

static bool view_row(struct space *space, struct piece *piece, struct piece_row *r)
{
    uint64_t block;
    uint32_t page;
    if (!space->views)
        return false;
    segments_address(space->segments, r->place, 0, &block, &page);
    r->data = space->flash->ops->view(space->flash, block, page);
    if (!r->data)
        return false;
    segments_pin(space->segments, r->place);
    r->pinned = true;
    uint32_t pages = r->pages ? 0 : space->streams[piece->stream].row_pages;
    for (uint32_t i = 0; i < r->n_pages; i++) {
        if (!missing(r->pages[i]))
            continue;
        count_read(piece, r->pages[i]);
        pages++;
    }
    space->view_bytes += (uint64_t)pages * space->flash->geometry.page_bytes;
    return true;
}

// A page of a row that is on its way to flash is not to be seen there yet.
static bool page_programming(struct space *space, const struct page_identity *first,
                             const struct piece_row *r, uint32_t row_pages)
{
    if (!frames_programming(space->frames))
        return false;
    struct page_identity identity = *first;
    identity.page += row_pages - 1; // pages are programmed in order
    const struct frame *frame = frames_find_page(space->frames, r->place, row_pages - 1, &identity);
    return frame && frame->state == FRAME_PROGRAM;
}

// Every page of a row of K and V is wanted, and none is in DRAM by itself: one frame holds them
// with less ado. Derived rows are always had as they are asked for.
static bool wants_all(const struct space *space, const struct piece *piece,
                      const struct piece_row *r, const struct page_identity *first)
{
    const uint32_t row_pages = space->streams[STREAM_KV].row_pages;
    struct page_identity identity = *first;
    if (!r->pages)
        return true;
    if (piece->stream != STREAM_KV || r->n_pages < row_pages)
        return false;
    for (uint32_t i = 0; i < row_pages; i++) {
        if (!r->pages[i])
            return false;
    }
    for (uint32_t i = 0; i < row_pages; i++) {
        identity.page = first->page + i;
        if (frames_find_page(space->frames, r->place, i, &identity))
            return false;
    }
    return true;
}

// Starts reading the row as a whole. WAIT: not now.
static enum progress read_row(struct space *space, struct piece *piece, struct piece_row *r,
                              const struct row *row, const struct page_identity *identity,
                              uint32_t row_pages)
{
    struct frame *frame = frames_take_row(space->frames);
    if (!frame)
        return WAIT;
    if (!frames_read(space->frames, frame, row->place, 0, identity, row->sums)) {
        frames_give(space->frames, frame);
        return WAIT;
    }
    for (uint32_t i = 0; i < row_pages; i++)
        count_read(piece, r->pages ? r->pages[i] : NULL);
    hold_row(space, r, frame);
    return DONE;
}

// Where the row's data comes from.
static enum progress open_row(struct space *space, const struct sequence *sequence, uint32_t layer,
                              struct piece *piece, struct piece_row *r)
{
    const struct stream *stream = &space->streams[piece->stream];
    struct page_identity identity;
    struct row *row = stream_row(space, sequence, layer, piece->stream, r->index);
    r->on_flash = row != NULL;
    if (!row) {
        struct frame *open = piece->stream == STREAM_KV ? sequence->layers[layer].open : NULL;
        if (!open)
            return failed(piece, INST_EINTERNAL, r->index);
        r->opened = true;
        hold_row(space, r, open);
        return DONE;
    }
    if (!row_placed(row))
        return failed(piece, INST_ENOENT, r->index);
    stream_identity(space, row, layer, piece->stream, r->index, &identity);
    r->place = row->place;
    struct frame *frame = frames_find_row(space->frames, row->place, &identity);
    if (frame) {
        hold_row(space, r, frame);
    } else if (page_programming(space, &identity, r, stream->row_pages) ||
               !view_row(space, piece, r)) {
        if (wants_all(space, piece, r, &identity) &&
            read_row(space, piece, r, row, &identity, stream->row_pages) == WAIT && !r->pages)
            return WAIT; // else there may be pages
    }
    r->opened = true;
    return DONE;
}

// Starts reading one page of a row; `before` holds the one before it, or is NULL. NULL: not now.
static struct frame *read_page(struct space *space, const struct row *row, uint32_t page,
                               const struct page_identity *identity, const struct frame *before)
{
    struct frame *frame = frames_take_page(space->frames, before);
    if (frame && !frames_read(space->frames, frame, row->place, page, identity, &row->sums[page])) {
        frames_give(space->frames, frame);
        return NULL;
    }
    return frame;
}

// Pages between two that are read cost less than another request would, if none of them is in DRAM:
// a request ends there. `before` holds the first of the two; returned is what holds the one before
// the second, NULL: no new frame does.
static const struct frame *bridge(struct space *space, const struct row *row, uint32_t from,
                                  uint32_t to, const struct page_identity *first,
                                  const struct frame *before)
{
    const struct flash_geometry *g = &space->flash->geometry;
    struct page_identity identity = *first;
    if ((uint64_t)(to - from - 1) * g->page_bytes > g->request_bytes)
        return NULL;
    for (uint32_t page = from + 1; page < to; page++) {
        identity.page = first->page + page;
        if (frames_find_page(space->frames, row->place, page, &identity))
            return NULL;
    }
    for (uint32_t page = from + 1; page < to && before; page++) {
        identity.page = first->page + page;
        before = read_page(space, row, page, &identity, before);
        space->bridged_bytes += before ? g->page_bytes : 0;
    }
    return before;
}

static void look_for_pages(const struct space *space, const struct piece_row *r)
{
    for (int step = 0; step < 2; step++)
        for (uint32_t i = 0; i < r->n_pages; i++)
            if (missing(r->pages[i]))
                frames_look_for(space->frames, r->place, r->first_page + i, step);
}

static enum progress acquire_pages(struct space *space, const struct sequence *sequence,
                                   uint32_t layer, struct piece *piece, struct piece_row *r)
{
    struct page_identity first;
    struct row *row = NULL;
    uint32_t last = UINT32_MAX; // page that was read last, and its frame
    const struct frame *before = NULL;
    if (!r->data)
        look_for_pages(space, r);
    for (uint32_t i = 0; i < r->n_pages; i++) {
        if (!missing(r->pages[i]) || r->data) // the marks stay, for another try
            continue;
        if (!row) {
            row = stream_row(space, sequence, layer, piece->stream, r->index);
            stream_identity(space, row, layer, piece->stream, r->index, &first);
        }
        struct page_identity identity = first;
        uint32_t page = r->first_page + i;
        identity.page += page;
        struct frame *frame = frames_find_page(space->frames, r->place, page, &identity);
        bool hit = frame != NULL;
        if (!frame) {
            if (last != UINT32_MAX)
                before = bridge(space, row, last, page, &first, before);
            frame = read_page(space, row, page, &identity, before);
            if (!frame)
                return WAIT;
            last = page;
            before = frame;
            count_read(piece, r->pages[i]);
        }
        frame_use(space->frames, frame, hit);
        r->pages[i] = frame;
    }
    return DONE;
}

// An append took the row into a group buffer again, its program was placed elsewhere, or it was
// lost.
static bool moved_away(const struct space *space, const struct sequence *sequence, uint32_t layer,
                       const struct piece *piece, const struct piece_row *r)
{
    if (r->data)
        return false;
    const struct row *row = stream_row(space, sequence, layer, piece->stream, r->index);
    return !row || row->place.segment != r->place.segment || row->place.row != r->place.row;
}

enum progress piece_acquire(struct space *space, const struct sequence *sequence, uint32_t layer,
                            struct piece *piece)
{
    for (; piece->row_at < piece->n_rows; piece->row_at++) {
        struct piece_row *r = &piece->rows[piece->row_at];
        enum progress progress = DONE;
        if (!r->opened || moved_away(space, sequence, layer, piece, r))
            progress = open_row(space, sequence, layer, piece, r);
        if (progress == DONE)
            progress = acquire_pages(space, sequence, layer, piece, r);
        if (progress != DONE)
            return progress;
    }
    piece->acquired = true;
    return DONE;
}

// ---- what was acquired -------------------------------------------------------------------------

static bool frame_ready(const struct frame *frame)
{
    return frame->state != FRAME_READ && frame->check != CHECK_RUNNING;
}

bool piece_ready(const struct piece *piece)
{
    if (!piece->acquired)
        return false;
    for (uint32_t i = 0; i < piece->n_rows; i++) {
        if (piece->rows[i].frame && !frame_ready(piece->rows[i].frame))
            return false;
    }
    for (uint32_t i = 0; i < piece->n_pages; i++) {
        if (held(piece->pages[i]) && !frame_ready(piece->pages[i]))
            return false;
    }
    return true;
}

static size_t add_unchecked(struct frame *frame, struct frame **list, size_t n)
{
    if (frame && frame->check == CHECK_DUE) {
        frame->check = CHECK_RUNNING;
        list[n++] = frame;
    }
    return n;
}

size_t piece_unchecked(const struct piece *piece, struct frame **list, size_t n)
{
    for (uint32_t i = 0; i < piece->n_rows; i++)
        n = add_unchecked(piece->rows[i].frame, list, n);
    for (uint32_t i = 0; i < piece->n_pages; i++) {
        if (held(piece->pages[i]))
            n = add_unchecked(piece->pages[i], list, n);
    }
    return n;
}

void piece_check_frame(struct frame **list, size_t index)
{
    if (!list[index]->status && !frame_verify(list[index]))
        list[index]->status = INST_ECORRUPT;
}

void piece_checked(struct space *space, struct frame **list, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        list[i]->check = CHECK_DONE;
        if (list[i]->status != INST_ECORRUPT)
            continue;
        space->checksum_errors++;
        frame_spoiled(space->frames, list[i], INST_ECORRUPT);
    }
}

int piece_read_status(const struct piece *piece, uint64_t *index)
{
    for (uint32_t r = 0; r < piece->n_rows; r++) {
        const struct piece_row *row = &piece->rows[r];
        const struct frame *bad = row->frame && row->frame->read ? row->frame : NULL;
        for (uint32_t i = 0; i < row->n_pages && !(bad && bad->status); i++)
            bad = held(row->pages[i]) && row->pages[i]->read ? row->pages[i] : bad;
        if (bad && bad->status) {
            *index = row->index;
            return bad->status;
        }
    }
    return 0;
}

static void let_go(struct space *space, struct piece *piece)
{
    for (uint32_t i = 0; i < piece->n_rows; i++) {
        struct piece_row *r = &piece->rows[i];
        if (r->frame)
            frame_unuse(space->frames, r->frame, piece->use);
        if (r->pinned)
            segments_unpin(space->segments, r->place);
        r->frame = NULL;
        r->data = NULL;
        r->pinned = r->opened = false;
    }
    for (uint32_t i = 0; i < piece->n_pages; i++) {
        if (!held(piece->pages[i]))
            continue;
        frame_unuse(space->frames, piece->pages[i], piece->use);
        piece->pages[i] = WANTED;
    }
}

void piece_release(struct space *space, struct piece *piece)
{
    let_go(space, piece);
    piece->n_rows = piece->n_pages = 0;
}

void piece_again(struct space *space, struct piece *piece)
{
    let_go(space, piece);
    piece->row_at = 0;
    piece->acquired = false;
    piece->status = 0;
    piece->tries++;
}

const void *piece_at(const struct space *space, const struct piece *piece, uint32_t row,
                     uint64_t offset, size_t bytes)
{
    const struct piece_row *r = &piece->rows[row];
    uint64_t page_bytes = space->flash->geometry.page_bytes;
    if (r->data)
        return r->data + offset;
    if (offset % page_bytes + bytes > page_bytes)
        return NULL;
    return r->pages[offset / page_bytes - r->first_page]->data + offset % page_bytes;
}

void piece_copy(const struct space *space, const struct piece *piece, uint32_t row, uint64_t offset,
                size_t bytes, void *out)
{
    uint64_t page_bytes = space->flash->geometry.page_bytes;
    uint8_t *to = out;
    while (bytes) {
        const struct piece_row *r = &piece->rows[row];
        size_t n = r->data ? bytes : min_u64(bytes, page_bytes - offset % page_bytes);
        memcpy(to, piece_at(space, piece, row, offset, n), n);
        to += n;
        offset += n;
        bytes -= n;
    }
}
