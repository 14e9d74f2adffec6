// SPDX-License-Identifier: Apache-2.0
#include "drive/ftl/frame.h"
#include "base/checked.h"
#include "base/mapping.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#ifdef INST_XXHASH_DISPATCHES
#include <xxh_x86dispatch.h>
#else
#include <xxhash.h>
#endif

enum {
    SCAN_KEEP = 32,       // one in so many frames of a scan is remembered as if it were found again
    IOS_MAX = 2048,       // operations in flight
    IO_ROWS_RESERVED = 2, // rows' worth of operations that reads leave to programs
    // Bytes that are on their way for nobody in particular: a few milliseconds of any device.
    AHEAD_BYTES = 8 << 20,
    PROGRAM_BYTES = 8 << 20,
};

struct list {
    struct frame *newest, *oldest;
    uint64_t n;
};

struct frames {
    struct flash *flash;
    struct segments *segments;
    struct budget *budget;
    struct frames_size size;
    uint64_t row_bytes, page_bytes;
    struct mapping mapping; // the slabs
    struct frame *rows;     // [slabs]
    struct frame *pages;    // [slabs][row_pages], NULL when no slab may be split
    uint64_t *sums;         // [slabs][row_pages]
    uint32_t *split_used;   // [slabs] pages of a split slab that are not free
    struct flash_io *ios, *free_ios;
    uint32_t n_ios, ios_per_row, ios_reserved;
    uint32_t n_free_ios; // that are not promised to a frame either
    struct list free_rows, free_pages, cached_rows, cached_pages, ahead;
    struct list held_ahead, held_programs;       // oldest go first
    uint64_t ahead_in_flight, program_in_flight; // bytes
    uint32_t split;                              // slabs that are split
    uint32_t given;                              // slabs whose memory went back to the budget
    struct frame *given_rows;                    // these, by `older`
    bool no_growth;                              // what was given is not taken back
    uint32_t window;                             // frames that may be read ahead
    uint32_t n_programming, n_in_flight;
    struct frame **table; // by place, chained
    uint64_t table_mask;
    struct flash_io *queue, **queue_end;
    uint64_t clock;
    uint32_t scanned; // towards SCAN_KEEP
    struct frame_counters counters;
};

// ---- lists -------------------------------------------------------------------------------------

static void list_push(struct list *list, struct frame *frame)
{
    frame->newer = NULL;
    frame->older = list->newest;
    *(list->newest ? &list->newest->newer : &list->oldest) = frame;
    list->newest = frame;
    list->n++;
}

static void list_push_oldest(struct list *list, struct frame *frame)
{
    frame->older = NULL;
    frame->newer = list->oldest;
    *(list->oldest ? &list->oldest->older : &list->newest) = frame;
    list->oldest = frame;
    list->n++;
}

static void list_remove(struct list *list, struct frame *frame)
{
    *(frame->newer ? &frame->newer->older : &list->newest) = frame->older;
    *(frame->older ? &frame->older->newer : &list->oldest) = frame->newer;
    list->n--;
}

// ---- opening -----------------------------------------------------------------------------------

static uint32_t ios_per_row(const struct flash_geometry *g, uint32_t row_pages)
{
    return g->dies == 1 ? 1 : row_pages; // on one die a row is contiguous
}

static uint64_t n_ios(const struct flash_geometry *g, const struct frames_size *size)
{
    uint64_t each = ios_per_row(g, size->row_pages), all = size->slabs * each;
    if (size->split)
        all += (uint64_t)size->split * size->row_pages;
    // A large row must be able to go to flash while others are read.
    return min_u64(all, IOS_MAX + 4 * IO_ROWS_RESERVED * each);
}

static uint64_t table_slots(const struct frames_size *size)
{
    uint64_t frames = size->slabs + (size->split ? (uint64_t)size->split * size->row_pages : 0);
    uint64_t slots = 2;
    while (slots < frames)
        slots *= 2;
    return slots;
}

uint64_t frames_slab_bytes(const struct flash_geometry *g, uint32_t row_pages, bool split)
{
    uint64_t pages = row_pages, each = sizeof(struct frame) + 2 * sizeof(struct frame *);
    uint64_t bytes = pages * (g->page_bytes + sizeof(uint64_t)) + each + sizeof(uint32_t);
    return bytes + (split ? pages * each : 0);
}

uint64_t frames_bytes(const struct flash_geometry *g, const struct frames_size *size)
{
    return size->slabs * frames_slab_bytes(g, size->row_pages, size->split != 0) +
           n_ios(g, size) * sizeof(struct flash_io) + sizeof(struct frames) + 8 * (4096 + 64);
}

// The slabs: mapped apart, so that they can be given back one by one.
static int map_slabs(struct frames *f, struct inst_msg *msg)
{
    uint64_t bytes;
    if (!checked_mul(f->size.slabs, f->row_bytes, &bytes))
        return inst_fail(msg, INST_ENOMEM, "row buffers: sizes overflow");
    int status = budget_take(f->budget, bytes, "row buffers", msg);
    if (status)
        return status;
    if (!mapping_open(&f->mapping, bytes, bytes >= HUGE_PAGES_LEAST)) {
        budget_give(f->budget, bytes);
        return inst_fail(msg, INST_ENOMEM, "row buffers: the system refused %llu bytes",
                         (unsigned long long)bytes);
    }
    return 0;
}

static void make_frames(struct frames *f)
{
    for (uint32_t i = f->size.slabs; i-- > 0;) {
        struct frame *row = &f->rows[i];
        row->set = f;
        row->data = f->mapping.data + i * f->row_bytes;
        list_push(&f->free_rows, row);
        for (uint32_t p = 0; f->pages && p < f->size.row_pages; p++) {
            struct frame *page = &f->pages[(uint64_t)i * f->size.row_pages + p];
            page->set = f;
            page->single = true;
            page->data = row->data + p * f->page_bytes;
        }
    }
    for (uint32_t i = f->n_ios; i-- > 0;) {
        f->ios[i].next = f->free_ios;
        f->free_ios = &f->ios[i];
    }
    f->n_free_ios = f->n_ios;
}

int frames_open(struct frames **out, struct flash *flash, struct segments *segments,
                struct budget *budget, const struct frames_size *size, struct inst_msg *msg)
{
    const char *what = "row buffers";
    struct frames *f = budget_alloc(budget, 1, sizeof *f, what, msg);
    if (!f)
        return INST_ENOMEM;
    f->flash = flash;
    f->segments = segments;
    f->budget = budget;
    f->size = *size;
    f->size.split = (uint32_t)min_u64(size->split, size->slabs);
    f->page_bytes = flash->geometry.page_bytes;
    f->row_bytes = size->row_pages * f->page_bytes;
    f->ios_per_row = ios_per_row(&flash->geometry, size->row_pages);
    f->n_ios = (uint32_t)n_ios(&flash->geometry, size);
    f->ios_reserved = (uint32_t)min_u64(IO_ROWS_RESERVED * f->ios_per_row, f->n_ios / 4);
    f->window = size->slabs;
    f->table_mask = table_slots(size) - 1;
    f->queue_end = &f->queue;
    uint64_t pages = (uint64_t)size->slabs * size->row_pages;
    f->table = budget_alloc(budget, f->table_mask + 1, sizeof *f->table, what, msg);
    f->rows = budget_alloc(budget, size->slabs, sizeof *f->rows, what, msg);
    if (size->split)
        f->pages = budget_alloc(budget, pages, sizeof *f->pages, what, msg);
    f->sums = budget_alloc(budget, pages, sizeof *f->sums, what, msg);
    f->split_used = budget_alloc(budget, size->slabs, sizeof *f->split_used, what, msg);
    f->ios = budget_alloc(budget, f->n_ios, sizeof *f->ios, what, msg);
    int status = INST_ENOMEM;
    if (f->table && f->rows && (f->pages || !size->split) && f->sums && f->split_used && f->ios)
        status = map_slabs(f, msg);
    if (status) {
        frames_close(f);
        return status;
    }
    make_frames(f);
    *out = f;
    return 0;
}

void frames_close(struct frames *f)
{
    if (!f)
        return;
    if (f->mapping.data) {
        mapping_close(&f->mapping);
        budget_give(f->budget, (uint64_t)(f->size.slabs - f->given) * f->row_bytes);
    }
    budget_free(f->budget, f->table);
    budget_free(f->budget, f->rows);
    budget_free(f->budget, f->pages);
    budget_free(f->budget, f->sums);
    budget_free(f->budget, f->split_used);
    budget_free(f->budget, f->ios);
    budget_free(f->budget, f);
}

// ---- where frames are --------------------------------------------------------------------------

static uint32_t frame_pages(const struct frame *frame)
{
    return frame->single ? 1 : frame->set->size.row_pages;
}

static uint32_t slab_of(const struct frames *f, const struct frame *frame)
{
    return frame->single ? (uint32_t)((uint64_t)(frame - f->pages) / f->size.row_pages)
                         : (uint32_t)(frame - f->rows);
}

static uint64_t *sums_of(const struct frame *frame)
{
    const struct frames *f = frame->set;
    return f->sums + (frame->data - f->mapping.data) / (ptrdiff_t)f->page_bytes;
}

static struct frame **table_slot(const struct frames *f, struct place place, uint32_t page)
{
    uint64_t key = ((uint64_t)place.segment << 32 | place.row) * 0x9e3779b97f4a7c15u;
    return &f->table[(key + page * 0xd6e8feb86659fd93u) >> 20 & f->table_mask];
}

static void table_insert(struct frames *f, struct frame *frame)
{
    struct frame **slot = table_slot(f, frame->place, frame->page);
    frame->next = *slot;
    *slot = frame;
    frame->found = true;
}

static void table_remove(struct frames *f, struct frame *frame)
{
    if (!frame->found)
        return;
    struct frame **slot = table_slot(f, frame->place, frame->page);
    while (*slot != frame)
        slot = &(*slot)->next;
    *slot = frame->next;
    frame->found = false;
}

static bool same_identity(const struct page_identity *a, const struct page_identity *b)
{
    return a->space == b->space && a->seq == b->seq && a->epoch == b->epoch &&
           a->layer == b->layer && a->stream == b->stream && a->group == b->group &&
           a->page == b->page;
}

static struct frame *find(struct frames *f, struct place place, uint32_t page, bool single,
                          const struct page_identity *identity)
{
    struct frame *frame = *table_slot(f, place, page);
    while (frame && (frame->single != single || frame->page != page ||
                     frame->place.segment != place.segment || frame->place.row != place.row ||
                     !same_identity(&frame->identity, identity)))
        frame = frame->next;
    return frame;
}

struct frame *frames_find_row(struct frames *f, struct place place,
                              const struct page_identity *identity)
{
    return find(f, place, 0, false, identity);
}

struct frame *frames_find_page(struct frames *f, struct place place, uint32_t page,
                               const struct page_identity *identity)
{
    return find(f, place, page, true, identity);
}

void frames_look_for(const struct frames *f, struct place place, uint32_t page, int step)
{
    struct frame **slot = table_slot(f, place, page);
    __builtin_prefetch(step ? (const void *)*slot : slot);
}

// ---- free, cached, read ahead ------------------------------------------------------------------

static void join_slab(struct frames *f, uint32_t slab)
{
    for (uint32_t p = 0; p < f->size.row_pages; p++)
        list_remove(&f->free_pages, &f->pages[(uint64_t)slab * f->size.row_pages + p]);
    f->split--;
    f->rows[slab].state = FRAME_FREE;
    list_push(&f->free_rows, &f->rows[slab]);
}

static void put_free(struct frames *f, struct frame *frame)
{
    frame->state = FRAME_FREE;
    if (!frame->single) {
        list_push(&f->free_rows, frame);
        return;
    }
    uint32_t slab = slab_of(f, frame);
    list_push(&f->free_pages, frame);
    if (!--f->split_used[slab])
        join_slab(f, slab);
}

static struct list *cache_of(struct frames *f, const struct frame *frame)
{
    return frame->single ? &f->cached_pages : &f->cached_rows;
}

static bool is_cached(const struct frame *frame)
{
    return frame->state == FRAME_READY && frame->found && !frame->users && !frame->ahead;
}

static void ahead_remove(struct frames *f, struct frame *frame)
{
    if (!frame->ahead)
        return;
    list_remove(frame->held ? &f->held_ahead : &f->ahead, frame);
    frame->ahead = false;
}

// Forgets a READY frame that nobody uses.
static void drop(struct frames *f, struct frame *frame)
{
    if (is_cached(frame)) {
        list_remove(cache_of(f, frame), frame);
        f->counters.cached_bytes -= frame_pages(frame) * f->page_bytes;
    }
    ahead_remove(f, frame);
    table_remove(f, frame);
    put_free(f, frame);
}

static struct frame *oldest(struct frames *f)
{
    struct frame *row = f->cached_rows.oldest, *page = f->cached_pages.oldest;
    if (!row || !page)
        return row ? row : page;
    return row->stamp < page->stamp ? row : page;
}

// The frame joins the cache, if that may be so large.
static void cache(struct frames *f, struct frame *frame, bool keep)
{
    struct list *list = cache_of(f, frame);
    if (!frame->found || frame->status) {
        table_remove(f, frame);
        put_free(f, frame);
        return;
    }
    if (keep || !list->oldest) {
        frame->stamp = ++f->clock;
        list_push(list, frame);
    } else {
        frame->stamp = list->oldest->stamp;
        list_push_oldest(list, frame);
    }
    f->counters.cached_bytes += frame_pages(frame) * f->page_bytes;
    while (f->counters.cached_bytes > f->size.cache_bytes)
        drop(f, oldest(f));
}

static struct frame *take(struct list *list, struct frame *frame)
{
    if (!frame)
        return NULL;
    list_remove(list, frame);
    frame->state = FRAME_OPEN;
    frame->status = 0;
    frame->users = 0;
    frame->check = CHECK_DONE;
    frame->read = frame->again = false;
    frame->tries = 0;
    return frame;
}

// Frees every page of a slab that nobody uses.
static void empty_slab(struct frames *f, uint32_t slab)
{
    for (uint32_t p = 0; p < f->size.row_pages && f->rows[slab].state == FRAME_SPLIT; p++) {
        struct frame *page = &f->pages[(uint64_t)slab * f->size.row_pages + p];
        if (is_cached(page))
            drop(f, page);
    }
}

static uint32_t operations(const struct frames *f, const struct frame *frame)
{
    return frame->single ? 1 : f->ios_per_row;
}

// A row that was to be read ahead and is not wanted any more.
static void drop_held(struct frames *f, struct frame *frame)
{
    ahead_remove(f, frame);
    table_remove(f, frame);
    frame->held = false;
    f->n_free_ios += operations(f, frame);
    segments_unpin(f->segments, frame->place);
    f->counters.read_bytes -= f->row_bytes;
    f->counters.ahead_rows--;
    put_free(f, frame);
}

// A row that was read ahead last and that nobody has asked for.
static bool steal_ahead(struct frames *f)
{
    struct frame *frame = f->held_ahead.newest;
    if (frame) {
        drop_held(f, frame);
    } else {
        frame = f->ahead.newest;
        while (frame && frame->state != FRAME_READY)
            frame = frame->older;
        if (frame)
            drop(f, frame);
    }
    f->counters.ahead_lost += frame != NULL;
    return frame != NULL;
}

bool frames_grow(struct frames *f)
{
    if (!f->given || f->no_growth || budget_take(f->budget, f->row_bytes, "row buffers", NULL))
        return false;
    struct frame *frame = f->given_rows;
    f->given_rows = frame->older;
    f->given--;
    list_push(&f->free_rows, frame);
    return true;
}

void frames_may_grow(struct frames *f, bool may)
{
    f->no_growth = !may;
}

static struct frame *take_row(struct frames *f, bool grow)
{
    while (!f->free_rows.n && !(grow && frames_grow(f))) {
        struct frame *frame = oldest(f);
        if (!frame && !steal_ahead(f))
            return NULL;
        if (frame && frame->single)
            empty_slab(f, slab_of(f, frame));
        else if (frame)
            drop(f, frame);
    }
    return take(&f->free_rows, f->free_rows.newest);
}

struct frame *frames_take_row(struct frames *f)
{
    return take_row(f, true);
}

static bool split_slab(struct frames *f)
{
    struct frame *row = f->free_rows.newest;
    if (!row || f->split == f->size.split)
        return false;
    uint32_t slab = slab_of(f, row);
    list_remove(&f->free_rows, row);
    row->state = FRAME_SPLIT;
    f->split++;
    f->split_used[slab] = 0;
    for (uint32_t p = 0; p < f->size.row_pages; p++)
        list_push(&f->free_pages, &f->pages[(uint64_t)slab * f->size.row_pages + p]);
    return true;
}

// The page of the same slab behind this one, if it is free, or cached and about as old as what the
// cache would forget now: used before the oldest one's next NEAR_USES uses. NULL: it is not.
static struct frame *page_behind(struct frames *f, const struct frame *frame)
{
    enum { NEAR_USES = 64 };
    uint32_t slab = slab_of(f, frame);
    struct frame *next = &f->pages[frame - f->pages + 1];
    if ((uint64_t)(next - f->pages) == ((uint64_t)slab + 1) * f->size.row_pages)
        return NULL;
    if (next->state == FRAME_FREE)
        return next;
    if (!is_cached(next) || next->stamp > f->cached_pages.oldest->stamp + NEAR_USES)
        return NULL;
    drop(f, next); // no slab is joined by that: `frame` is in use
    return next;
}

struct frame *frames_take_page(struct frames *f, const struct frame *after)
{
    struct frame *page = after ? page_behind(f, after) : NULL;
    while (!page && !f->free_pages.n) {
        if ((f->free_rows.n || frames_grow(f)) && split_slab(f))
            break;
        struct frame *frame = f->split == f->size.split ? f->cached_pages.oldest : oldest(f);
        if (!frame && (f->split == f->size.split || !steal_ahead(f)))
            return NULL;
        if (frame)
            drop(f, frame);
    }
    page = take(&f->free_pages, page ? page : f->free_pages.oldest);
    f->split_used[slab_of(f, page)]++;
    return page;
}

void frames_give(struct frames *f, struct frame *frame)
{
    put_free(f, frame);
}

uint32_t frames_slabs(const struct frames *f)
{
    return f->size.slabs - f->given;
}

uint64_t frames_free_pages(const struct frames *f)
{
    uint64_t slabs = min_u64(f->free_rows.n + f->cached_rows.n, f->size.split - f->split);
    return f->free_pages.n + f->cached_pages.n + slabs * f->size.row_pages;
}

bool frames_programming(const struct frames *f)
{
    return f->n_programming != 0;
}

bool frames_in_flight(const struct frames *f)
{
    return f->n_in_flight != 0;
}

bool frames_can_program(const struct frames *f, uint32_t rows, uint32_t pages)
{
    return rows * f->ios_per_row + pages <= f->n_free_ios;
}

// ---- flash operations --------------------------------------------------------------------------

uint64_t page_checksum(const struct page_identity *id, const void *data, size_t bytes)
{
    // The seed binds the data to whose page it is: a page read from a wrong place never verifies.
    uint32_t words[6] = {id->space, id->seq, id->epoch, (uint32_t)id->layer << 16 | id->stream,
                         id->group, id->page};
    return XXH3_64bits_withSeed(data, bytes, XXH64(words, sizeof words, 0));
}

bool frame_verify(const struct frame *frame)
{
    const uint64_t *sums = sums_of(frame);
    uint64_t page_bytes = frame->set->page_bytes;
    struct page_identity identity = frame->identity;
    for (uint32_t page = 0; page < frame_pages(frame); page++, identity.page++) {
        if (page_checksum(&identity, frame->data + page * page_bytes, page_bytes) != sums[page])
            return false;
    }
    return true;
}

// Promises the operations of a frame that is to be read or programmed, and holds its segment.
static void promise(struct frames *f, struct frame *frame)
{
    uint64_t *bytes =
        frame->state == FRAME_READ ? &f->counters.read_bytes : &f->counters.program_bytes;
    f->n_free_ios -= operations(f, frame);
    segments_pin(f->segments, frame->place);
    *bytes += frame_pages(frame) * f->page_bytes;
}

// Queues them for flash.
static void queue_frame(struct frames *f, struct frame *frame)
{
    uint32_t n = operations(f, frame), step = frame_pages(frame) / n;
    frame->held = false;
    frame->pending = n;
    for (uint32_t i = 0; i < n; i++) {
        struct flash_io *io = f->free_ios;
        f->free_ios = io->next;
        *io = (struct flash_io){
            .op = frame->state == FRAME_READ ? FLASH_READ : FLASH_PROGRAM,
            .priority = frame->state == FRAME_PROGRAM ? FLASH_BACKGROUND
                        : frame->ahead                ? FLASH_AHEAD
                                                      : FLASH_DEMAND,
            .pages = step,
            .data = frame->data + (uint64_t)i * step * f->page_bytes,
            .owner = frame,
        };
        segments_address(f->segments, frame->place, frame->page + i * step, &io->block, &io->page);
        if (io->op == FLASH_PROGRAM)
            io->oob = segments_oob(f->segments, io->block, io->page);
        *f->queue_end = io;
        f->queue_end = &io->next;
    }
    f->n_in_flight++;
}

static bool begin_read(struct frames *f, struct frame *frame, struct place place, uint32_t page,
                       const struct page_identity *identity, const uint64_t *sums)
{
    if (operations(f, frame) + f->ios_reserved > f->n_free_ios)
        return false;
    frame->state = FRAME_READ;
    frame->read = true;
    frame->check = f->flash->geometry.no_data ? CHECK_DONE : CHECK_DUE;
    frame->place = place;
    frame->page = page;
    frame->identity = *identity;
    memcpy(sums_of(frame), sums, frame_pages(frame) * sizeof *sums);
    table_insert(f, frame);
    promise(f, frame);
    return true;
}

bool frames_read(struct frames *f, struct frame *frame, struct place place, uint32_t page,
                 const struct page_identity *identity, const uint64_t *sums)
{
    if (!begin_read(f, frame, place, page, identity, sums))
        return false;
    queue_frame(f, frame);
    return true;
}

bool frames_read_ahead(struct frames *f, struct frame *frame, struct place place,
                       const struct page_identity *identity, const uint64_t *sums, uint64_t stamp)
{
    if (!begin_read(f, frame, place, 0, identity, sums))
        return false;
    frame->ahead = frame->held = true;
    frame->stamp = stamp;
    list_push(&f->held_ahead, frame);
    f->counters.ahead_rows++;
    return true;
}

static void start_program(struct frames *f, struct frame *frame)
{
    const uint64_t *sums = sums_of(frame);
    struct page_identity identity = frame->identity;
    for (uint32_t i = 0; i < frame_pages(frame); i++, identity.page++)
        segments_record(f->segments, frame->place, frame->page + i, &identity, sums[i]);
    table_insert(f, frame);
    promise(f, frame);
    frame->held = true;
    list_push(&f->held_programs, frame);
}

void frames_program(struct frames *f, struct frame *frame, struct place place, uint32_t page,
                    const struct page_identity *identity, uint64_t *sums)
{
    struct page_identity page_identity = *identity;
    uint64_t *own = sums_of(frame);
    frame->state = FRAME_PROGRAM;
    frame->place = place;
    frame->page = page;
    frame->identity = *identity;
    for (uint32_t i = 0; i < frame_pages(frame); i++, page_identity.page++)
        own[i] = page_checksum(&page_identity, frame->data + i * f->page_bytes, f->page_bytes);
    memcpy(sums, own, frame_pages(frame) * sizeof *own);
    f->n_programming++;
    start_program(f, frame);
}

void frames_program_again(struct frames *f, struct frame *frame, struct place place)
{
    table_remove(f, frame);
    frame->place = place;
    frame->status = 0;
    start_program(f, frame);
}

// Lets go what waits, once half of what may be on its way has arrived: several at a time, so that a
// back end can join them. Programs keep their order, as pages of a block must.
static void let_go(struct frames *f, struct list *held, uint64_t *in_flight, uint64_t most)
{
    uint64_t bytes;
    if (*in_flight > most / 2)
        return;
    for (struct frame *frame; (frame = held->oldest); *in_flight += bytes) {
        bytes = frame_pages(frame) * f->page_bytes;
        if (*in_flight && *in_flight + bytes > most)
            break;
        list_remove(held, frame);
        queue_frame(f, frame);
        if (held == &f->held_ahead) {
            frame->early = true;
            list_push(&f->ahead, frame);
        }
    }
}

void frames_submit(struct frames *f, uint64_t now_ns)
{
    let_go(f, &f->held_ahead, &f->ahead_in_flight, AHEAD_BYTES);
    let_go(f, &f->held_programs, &f->program_in_flight, PROGRAM_BYTES);
    struct flash_io *list = f->queue;
    if (!list)
        return;
    f->queue = NULL;
    f->queue_end = &f->queue;
    f->flash->ops->submit(f->flash, list, now_ns);
}

// A frame whose operations have ended and that nobody uses.
static void settle(struct frames *f, struct frame *frame)
{
    if (frame->users || (frame->ahead && frame->found && !frame->status))
        return;
    ahead_remove(f, frame);
    cache(f, frame, false);
}

void frames_program_ended(struct frames *f, struct frame *frame)
{
    f->n_programming--;
    frame->state = FRAME_READY;
    if (frame->status) // what was written is only here, and here it must not be taken for stored
        table_remove(f, frame);
    settle(f, frame);
}

struct frame *frames_done(struct flash_io *io)
{
    struct frame *frame = io->owner;
    struct frames *f = frame->set;
    if (io->status && !frame->status)
        frame->status = io->status;
    io->next = f->free_ios;
    f->free_ios = io;
    f->n_free_ios++;
    if (--frame->pending)
        return NULL;
    f->n_in_flight--;
    segments_unpin(f->segments, frame->place);
    if (frame->early)
        f->ahead_in_flight -= f->row_bytes;
    frame->early = false;
    if (frame->state == FRAME_PROGRAM) {
        f->program_in_flight -= frame_pages(frame) * f->page_bytes;
        if (!frame->status)
            frames_program_ended(f, frame);
        return frame;
    }
    frame->state = FRAME_READY;
    if (frame->status) { // the next one to ask reads it again
        frame->check = CHECK_DONE;
        table_remove(f, frame);
    }
    settle(f, frame);
    return frame;
}

// ---- users -------------------------------------------------------------------------------------

void frame_use(struct frames *f, struct frame *frame, bool hit)
{
    if (is_cached(frame)) {
        list_remove(cache_of(f, frame), frame);
        f->counters.cached_bytes -= frame_pages(frame) * f->page_bytes;
        if (hit) {
            f->counters.hit_bytes += frame_pages(frame) * f->page_bytes;
            frame->again = true;
        }
    }
    if (frame->ahead) {
        ahead_remove(f, frame);
        f->counters.ahead_hits++;
        if (frame->held)
            queue_frame(f, frame);
    }
    frame->users++;
}

void frame_unuse(struct frames *f, struct frame *frame, enum frame_use use)
{
    if (--frame->users || frame->state != FRAME_READY)
        return;
    bool keep = use == USE_CHOICE || frame->again;
    if (!keep && ++f->scanned >= SCAN_KEEP) {
        f->scanned = 0;
        keep = true;
    }
    cache(f, frame, keep);
}

void frame_spoiled(struct frames *f, struct frame *frame, int status)
{
    frame->status = status;
    table_remove(f, frame);
}

void frames_set_window(struct frames *f, uint32_t slabs)
{
    f->window = slabs;
}

bool frames_ahead_room(struct frames *f, uint64_t stamp)
{
    while (f->ahead.n + f->held_ahead.n >= f->window) {
        struct frame *frame = f->ahead.n ? f->ahead.oldest : f->held_ahead.oldest;
        if (!frame || frame->stamp >= stamp)
            return false;
        f->counters.ahead_lost++;
        if (frame->held) {
            drop_held(f, frame);
            continue;
        }
        ahead_remove(f, frame);
        if (frame->state == FRAME_READY)
            cache(f, frame, false);
    }
    return true;
}

static void forget(struct frames *f, struct frame *frame)
{
    if (frame->state == FRAME_READY && !frame->users) {
        drop(f, frame);
        return;
    }
    if (frame->ahead && frame->held) {
        drop_held(f, frame);
        return;
    }
    ahead_remove(f, frame);
    table_remove(f, frame);
}

// Any frame of the row, whatever its identity.
static struct frame *find_any(const struct frames *f, struct place place, uint32_t page)
{
    struct frame *frame = *table_slot(f, place, page);
    while (frame && (frame->page != page || frame->place.segment != place.segment ||
                     frame->place.row != place.row))
        frame = frame->next;
    return frame;
}

void frames_forget_row(struct frames *f, struct place place, uint32_t row_pages)
{
    for (uint32_t page = 0; page < (f->split ? row_pages : 1); page++) {
        struct frame *frame;
        while ((frame = find_any(f, place, page)))
            forget(f, frame);
    }
}

uint64_t frames_spare(const struct frames *f)
{
    return (f->size.slabs - f->given - f->size.least) * f->row_bytes;
}

// The system's pages that lie in the slab as a whole: its neighbours may be in use.
static void release_slab(const struct frames *f, const struct frame *frame)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t first = ((uintptr_t)frame->data + page - 1) / page * page;
    uintptr_t end = ((uintptr_t)frame->data + f->row_bytes) / page * page;
    if (first < end)
        (void)madvise((void *)first, end - first, MADV_DONTNEED);
}

uint64_t frames_shrink(struct frames *f, uint64_t bytes)
{
    uint64_t given = 0;
    while (given < bytes && f->given + f->size.least < f->size.slabs) {
        struct frame *frame = take_row(f, false);
        if (!frame)
            break;
        frame->state = FRAME_FREE;
        frame->older = f->given_rows;
        f->given_rows = frame;
        release_slab(f, frame);
        budget_give(f->budget, f->row_bytes);
        f->given++;
        given += f->row_bytes;
    }
    return given;
}

// ---- for others --------------------------------------------------------------------------------

const struct frame_counters *frames_counters(const struct frames *f)
{
    return &f->counters;
}

static void census_of(const struct frame *frame, struct frame_census *out)
{
    out->open += frame->state == FRAME_OPEN;
    out->users += frame->state != FRAME_FREE ? frame->users : 0;
    out->stray += frame->state == FRAME_READY && !frame->ahead && !frame->users && !frame->found;
}

void frames_census(const struct frames *f, struct frame_census *out)
{
    *out = (struct frame_census){0};
    uint64_t free_rows = f->given, free_pages = 0, cached = 0;
    for (uint32_t i = 0; i < f->size.slabs; i++) {
        uint32_t used = 0;
        free_rows += f->rows[i].state == FRAME_FREE;
        cached += f->rows[i].state != FRAME_SPLIT && is_cached(&f->rows[i]);
        if (f->rows[i].state != FRAME_SPLIT)
            census_of(&f->rows[i], out);
        for (uint32_t p = 0; f->rows[i].state == FRAME_SPLIT && p < f->size.row_pages; p++) {
            const struct frame *page = &f->pages[(uint64_t)i * f->size.row_pages + p];
            census_of(page, out);
            used += page->state != FRAME_FREE;
            free_pages += page->state == FRAME_FREE;
            cached += is_cached(page);
        }
        if (f->rows[i].state == FRAME_SPLIT && used != f->split_used[i])
            out->unlisted++;
    }
    out->unlisted += free_rows != f->free_rows.n + 2ull * f->given;
    out->unlisted += free_pages != f->free_pages.n;
    out->unlisted += cached != f->cached_rows.n + f->cached_pages.n;
}
