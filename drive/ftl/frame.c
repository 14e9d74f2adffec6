// SPDX-License-Identifier: Apache-2.0
#include "drive/ftl/frame.h"
#include "base/checked.h"

#include <string.h>
#include <xxhash.h>

struct frames {
    struct flash *flash;
    struct segments *segments;
    struct budget *budget;
    struct frame *all;
    uint8_t *data;
    uint64_t *sums;
    struct flash_io *ios;
    uint32_t count, row_pages, ios_per_frame;
    uint64_t row_bytes;
    struct frame *free;
    uint32_t n_free, n_programming, n_in_flight;
    struct frame **table; // by place, chained
    uint32_t table_mask;
    struct frame *newest, *oldest; // read-ahead list
    struct flash_io *queue, **queue_end;
    struct frame_counters counters;
};

int frames_open(struct frames **out, struct flash *flash, struct segments *segments,
                struct budget *budget, uint32_t count, uint32_t pages, struct inst_msg *msg)
{
    struct frames *f = budget_alloc(budget, 1, sizeof *f, "row buffers", msg);
    if (!f)
        return INST_ENOMEM;
    f->flash = flash;
    f->segments = segments;
    f->budget = budget;
    f->count = count;
    f->row_pages = pages;
    f->row_bytes = (uint64_t)pages * flash->geometry.page_bytes;
    // On one die a row is contiguous: one operation. Else one per page.
    f->ios_per_frame = flash->geometry.dies == 1 ? 1 : pages;
    f->table_mask = 1;
    while (f->table_mask < 2 * count)
        f->table_mask *= 2;
    f->table = budget_alloc(budget, f->table_mask, sizeof *f->table, "row buffers", msg);
    f->table_mask--;
    f->all = budget_alloc(budget, count, sizeof *f->all, "row buffers", msg);
    uint64_t bytes;
    if (checked_mul(count, f->row_bytes, &bytes))
        f->data = budget_alloc_pages(budget, bytes, "row buffers", msg);
    f->sums = budget_alloc(budget, count, pages * sizeof *f->sums, "row buffers", msg);
    f->ios = budget_alloc(budget, count, f->ios_per_frame * sizeof *f->ios, "row buffers", msg);
    f->queue_end = &f->queue;
    if (!f->table || !f->all || !f->data || !f->sums || !f->ios) {
        frames_close(f);
        return INST_ENOMEM;
    }
    for (uint32_t i = count; i-- > 0;) {
        struct frame *frame = &f->all[i];
        frame->set = f;
        frame->data = f->data + i * f->row_bytes;
        frame->sums = f->sums + (uint64_t)i * pages;
        frame->ios = f->ios + (uint64_t)i * f->ios_per_frame;
        frame->next = f->free;
        f->free = frame;
    }
    f->n_free = count;
    *out = f;
    return 0;
}

void frames_close(struct frames *f)
{
    if (!f)
        return;
    budget_free(f->budget, f->table);
    budget_free(f->budget, f->all);
    budget_free(f->budget, f->data);
    budget_free(f->budget, f->sums);
    budget_free(f->budget, f->ios);
    budget_free(f->budget, f);
}

static struct frame **table_slot(struct frames *f, struct place place, uint32_t page)
{
    // Rows have far fewer pages than 2^20 on any real flash; more only make longer chains.
    uint64_t key = ((uint64_t)place.segment << 32 | place.row) + ((uint64_t)page << 44);
    return &f->table[(key * 0x9e3779b97f4a7c15u >> 32) & f->table_mask];
}

bool frames_in_flight(const struct frames *f)
{
    return f->n_in_flight != 0;
}

struct frame *frames_find(struct frames *f, struct place place, uint32_t page)
{
    struct frame *frame = *table_slot(f, place, page);
    while (frame && (frame->place.segment != place.segment || frame->place.row != place.row ||
                     frame->page != page))
        frame = frame->next;
    return frame;
}

static void table_insert(struct frames *f, struct frame *frame)
{
    struct frame **slot = table_slot(f, frame->place, frame->page);
    frame->next = *slot;
    *slot = frame;
}

static void table_remove(struct frames *f, struct frame *frame)
{
    struct frame **slot = table_slot(f, frame->place, frame->page);
    while (*slot != frame)
        slot = &(*slot)->next;
    *slot = frame->next;
}

static void ahead_insert(struct frames *f, struct frame *frame)
{
    frame->ahead = true;
    frame->newer = NULL;
    frame->older = f->newest;
    if (f->newest)
        f->newest->newer = frame;
    else
        f->oldest = frame;
    f->newest = frame;
}

static void ahead_remove(struct frames *f, struct frame *frame)
{
    if (!frame->ahead)
        return;
    frame->ahead = false;
    *(frame->newer ? &frame->newer->older : &f->newest) = frame->older;
    *(frame->older ? &frame->older->newer : &f->oldest) = frame->newer;
}

static void put_free(struct frames *f, struct frame *frame)
{
    frame->state = FRAME_FREE;
    frame->next = f->free;
    f->free = frame;
    f->n_free++;
}

// Forgets a READY row that nobody uses.
static void drop(struct frames *f, struct frame *frame)
{
    ahead_remove(f, frame);
    table_remove(f, frame);
    put_free(f, frame);
}

struct frame *frames_take(struct frames *f, bool steal)
{
    if (!f->free && steal) {
        struct frame *frame = f->newest;
        while (frame && frame->state != FRAME_READY)
            frame = frame->older;
        if (frame)
            drop(f, frame);
    }
    struct frame *frame = f->free;
    if (!frame)
        return NULL;
    f->free = frame->next;
    f->n_free--;
    frame->state = FRAME_OPEN;
    frame->status = 0;
    frame->users = 0;
    frame->verify = frame->ahead = frame->read = false;
    frame->owner = NULL;
    return frame;
}

uint32_t frames_free(const struct frames *f)
{
    return f->n_free;
}

uint32_t frames_count(const struct frames *f)
{
    return f->count;
}

bool frames_programming(const struct frames *f)
{
    return f->n_programming != 0;
}

uint64_t page_checksum(const struct page_identity *id, const void *data, size_t bytes)
{
    // The seed binds the data to whose page it is: a page read from a wrong place never verifies.
    uint32_t words[6] = {id->space, id->seq, id->epoch, (uint32_t)id->layer << 16 | id->stream,
                         id->group, id->page};
    return XXH3_64bits_withSeed(data, bytes, XXH64(words, sizeof words, 0));
}

bool frame_verify(const struct frames *f, const struct frame *frame)
{
    size_t page_bytes = f->flash->geometry.page_bytes;
    struct page_identity identity = frame->identity;
    for (uint32_t page = 0; page < f->row_pages; page++) {
        identity.page = frame->identity.page + page;
        if (page_checksum(&identity, frame->data + page * page_bytes, page_bytes) !=
            frame->sums[page])
            return false;
    }
    return true;
}

static void queue_row(struct frames *f, struct frame *frame, enum flash_op op)
{
    uint32_t step = f->ios_per_frame == 1 ? f->row_pages : 1;
    frame->pending = f->ios_per_frame;
    for (uint32_t i = 0; i < f->ios_per_frame; i++) {
        struct flash_io *io = &frame->ios[i];
        *io = (struct flash_io){
            .op = op,
            .pages = step,
            .data = frame->data + (uint64_t)i * step * f->flash->geometry.page_bytes,
            .owner = frame,
        };
        segments_address(f->segments, frame->place, frame->page + i * step, &io->block, &io->page);
        *f->queue_end = io;
        f->queue_end = &io->next;
    }
    f->n_in_flight++;
    segments_pin(f->segments, frame->place);
    uint64_t *bytes = op == FLASH_READ ? &f->counters.read_bytes : &f->counters.program_bytes;
    *bytes += f->row_bytes;
}

void frames_read(struct frames *f, struct frame *frame, struct place place, uint32_t page,
                 const struct page_identity *identity, const uint64_t *sums, bool ahead)
{
    frame->state = FRAME_READ;
    frame->read = true;
    frame->verify = !f->flash->geometry.no_data;
    frame->place = place;
    frame->page = page;
    frame->identity = *identity;
    memcpy(frame->sums, sums, f->row_pages * sizeof *sums);
    table_insert(f, frame);
    if (ahead) {
        ahead_insert(f, frame);
        f->counters.ahead_rows++;
    }
    queue_row(f, frame, FLASH_READ);
}

void frames_program(struct frames *f, struct frame *frame, struct place place, uint32_t page,
                    const struct page_identity *identity)
{
    size_t page_bytes = f->flash->geometry.page_bytes;
    struct page_identity page_identity = *identity;
    frame->state = FRAME_PROGRAM;
    frame->place = place;
    frame->page = page;
    frame->identity = *identity;
    for (uint32_t i = 0; i < f->row_pages; i++) {
        page_identity.page = identity->page + i;
        frame->sums[i] = page_checksum(&page_identity, frame->data + i * page_bytes, page_bytes);
        segments_record(f->segments, place, page + i, &page_identity, frame->sums[i]);
    }
    table_insert(f, frame);
    f->n_programming++;
    queue_row(f, frame, FLASH_PROGRAM);
}

void frames_submit(struct frames *f, uint64_t now_ns)
{
    struct flash_io *list = f->queue;
    if (!list)
        return;
    f->queue = NULL;
    f->queue_end = &f->queue;
    f->flash->ops->submit(f->flash, list, now_ns);
}

struct frame *frames_done(struct flash_io *io)
{
    struct frame *frame = io->owner;
    struct frames *f = frame->set;
    if (io->status && !frame->status)
        frame->status = io->status;
    if (--frame->pending)
        return NULL;
    f->n_in_flight--;
    segments_unpin(f->segments, frame->place);
    if (frame->state == FRAME_PROGRAM)
        f->n_programming--;
    frame->state = FRAME_READY;
    frame->verify = frame->verify && !frame->status;
    if (!frame->users && !frame->ahead) {
        table_remove(f, frame);
        put_free(f, frame);
    }
    return frame;
}

void frame_use(struct frames *f, struct frame *frame)
{
    if (frame->ahead) {
        ahead_remove(f, frame);
        f->counters.ahead_hits++;
    }
    frame->users++;
}

void frame_unuse(struct frames *f, struct frame *frame)
{
    if (!--frame->users && frame->state == FRAME_READY)
        drop(f, frame);
}

void frames_free_open(struct frames *f, struct frame *frame)
{
    put_free(f, frame);
}

void frames_disown(struct frames *f, const void *owner)
{
    for (uint32_t i = 0; i < f->count; i++) {
        if (f->all[i].owner == owner)
            f->all[i].owner = NULL;
    }
}

void frames_drop_ahead(struct frames *f)
{
    struct frame *older;
    for (struct frame *frame = f->newest; frame; frame = older) {
        older = frame->older;
        if (frame->state == FRAME_READY)
            drop(f, frame);
        else
            ahead_remove(f, frame); // goes when its read completes
    }
}

void frames_forget(struct frames *f, uint32_t segment)
{
    for (uint32_t i = 0; i < f->count; i++) {
        struct frame *frame = &f->all[i];
        if (frame->place.segment != segment || frame->users)
            continue;
        if (frame->state == FRAME_READY)
            drop(f, frame);
        else if (frame->state == FRAME_READ)
            ahead_remove(f, frame); // goes when its read completes
    }
}

const struct frame_counters *frames_counters(const struct frames *f)
{
    return &f->counters;
}

void frames_census(const struct frames *f, struct frame_census *out)
{
    *out = (struct frame_census){0};
    for (uint32_t i = 0; i < f->count; i++) {
        const struct frame *frame = &f->all[i];
        if (frame->state == FRAME_FREE) {
            out->free++;
            continue;
        }
        out->open += frame->state == FRAME_OPEN;
        out->users += frame->users;
        out->stray += frame->state == FRAME_READY && !frame->ahead && !frame->users;
    }
}
