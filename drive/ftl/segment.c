// SPDX-License-Identifier: Apache-2.0
#include "drive/ftl/segment.h"
#include "base/checked.h"
#include "base/le.h"

#include <string.h>

enum {
    CHUNK = 64,      // segment descriptors are allocated in chunks, as the store grows
    ERASE_BATCH = 8, // erases that are begun together
    FREE_SHARE = 16, // erased segments are kept at this part of the device
    FREE_MIN = 4,    // or at so many
    DEAD_MAX = SEGMENTS_DEAD_MAX,
};

enum segment_state {
    SEGMENT_FREE, // erased
    SEGMENT_OPEN,
    SEGMENT_CLOSING, // full; its summary waits for the last data page, then is programmed
    SEGMENT_CLOSED,
    SEGMENT_DEAD,  // nobody refers to it any more: in the dead list
    SEGMENT_ERASE, // waits for pins, then is being erased
    SEGMENT_BAD,   // an erase failed: never used again
};

// What all segments of a frontier share, so that its end is one step.
struct segment_owner {
    uint64_t segments; // that are not erased
    bool finished;     // all sequences of the lifetime have ended
};

struct segment {
    enum segment_state state;
    uint32_t row_pages;
    uint32_t rows;  // placed so far
    uint32_t live;  // rows that somebody refers to
    uint32_t *refs; // [rows of a full segment] references of each
    uint64_t row_stream_bytes;
    uint32_t pins;    // flash operations in flight
    uint32_t pending; // own operations in flight
    bool submitted;   // own operations of this state are on their way
    bool failed;
    struct segment_owner *owner; // the frontier that filled it, until it is erased
    uint64_t used;               // when its rows were last read or programmed, by segments.clock
    uint8_t *records;            // [die][data page] 32 bytes, padded to summary pages; while open
    struct flash_io *ios;        // one per die, for summary and erase
    uint32_t next;               // in the free, work or dead list
};

struct segments {
    struct flash *flash;
    struct budget *budget;
    struct segment **chunks;
    uint64_t count;                // segments of the device
    uint64_t fresh;                // first never used
    uint32_t free_list, free_last; // erased after use, the oldest first
    uint64_t free_listed;
    uint32_t work_list;     // CLOSING and ERASE segments
    uint32_t dead_list;     // DEAD segments
    uint64_t dead;          // how many they are
    bool pressed;           // somebody waits for erases
    uint64_t clock;         // counts uses of segments
    bool giving_up;         // references wait for being given up
    uint64_t reserved;      // whole segments set aside by lifetimes
    uint32_t summary_pages; // per block
    uint32_t data_pages;    // per block
    struct segment_counters counters;
};

uint32_t segment_summary_pages(const struct flash_geometry *geometry)
{
    if (geometry->oob)
        return 0;
    // The records of the data pages must fit in the rest: s * page >= 32 * (n - s).
    uint64_t n = geometry->pages_per_block, page = geometry->page_bytes;
    return (uint32_t)div_round_up(n * PAGE_RECORD_BYTES, page + PAGE_RECORD_BYTES);
}

// Of one block.
static uint64_t block_record_bytes(const struct flash_geometry *g)
{
    if (g->oob)
        return (uint64_t)g->pages_per_block * PAGE_RECORD_BYTES;
    return (uint64_t)segment_summary_pages(g) * g->page_bytes;
}

uint64_t segment_record_bytes(const struct flash_geometry *geometry)
{
    return geometry->dies * block_record_bytes(geometry);
}

// Pages that rows 0 .. rows - 1 put on `die` beyond their whole stripes: row r covers dies
// r .. r + m - 1 (mod dies) with its last m = row_pages mod dies pages, so of any `dies` rows in a
// row the m that end with number `die` cover it. For every page that is read: no loop over dies.
static uint64_t partial_stripes(uint64_t rows, uint32_t die, uint32_t m, uint32_t dies)
{
    uint64_t rest = rows % dies, count = rows / dies * m;
    uint64_t first = die + 1 > m ? die + 1 - m : 0;               // of those up to `die`
    uint64_t wrapped = die + 1 < m ? dies - (m - die - 1) : dies; // the others, to the last
    uint64_t end = min_u64(rest, die + 1);
    count += end > first ? end - first : 0;
    return count + (rest > wrapped ? rest - wrapped : 0);
}

static uint64_t pages_on_die(uint64_t rows, uint32_t die, uint32_t row_pages, uint32_t dies)
{
    return rows * (row_pages / dies) + partial_stripes(rows, die, row_pages % dies, dies);
}

uint32_t segment_capacity(const struct flash_geometry *geometry, uint32_t row_pages)
{
    uint32_t dies = geometry->dies, data = geometry->pages_per_block;
    uint32_t summary = segment_summary_pages(geometry);
    if (!row_pages || data <= summary)
        return 0;
    data -= summary;
    uint64_t rows = (uint64_t)data * dies / row_pages;
    for (; rows; rows--) {
        uint64_t most = 0;
        for (uint32_t die = 0; die < dies; die++)
            most = max_u64(most, pages_on_die(rows, die, row_pages, dies));
        if (most <= data)
            break;
    }
    return (uint32_t)rows;
}

static struct segment *segment_at(const struct segments *s, uint32_t number)
{
    return &s->chunks[number / CHUNK][number % CHUNK];
}

int segments_open(struct segments **out, struct flash *flash, struct budget *budget,
                  struct inst_msg *msg)
{
    struct segments *s = budget_alloc(budget, 1, sizeof *s, "flash allocation", msg);
    if (!s)
        return INST_ENOMEM;
    const struct flash_geometry *g = &flash->geometry;
    s->flash = flash;
    s->budget = budget;
    s->count = min_u64(g->blocks / g->dies, PLACE_NONE);
    s->free_list = s->work_list = s->dead_list = PLACE_NONE;
    s->summary_pages = segment_summary_pages(g);
    s->data_pages = g->pages_per_block - s->summary_pages;
    s->chunks = budget_alloc(budget, div_round_up(s->count, CHUNK), sizeof *s->chunks,
                             "flash allocation", msg);
    if (!s->chunks) {
        budget_free(budget, s);
        return INST_ENOMEM;
    }
    *out = s;
    return 0;
}

static void drop_records(struct segments *s, struct segment *segment)
{
    budget_free(s->budget, segment->records);
    segment->records = NULL;
}

static void drop_buffers(struct segments *s, struct segment *segment)
{
    drop_records(s, segment);
    budget_free(s->budget, segment->ios);
    budget_free(s->budget, segment->refs);
    segment->ios = NULL;
    segment->refs = NULL;
}

static void free_owner(struct segments *s, struct segment_owner *owner)
{
    if (owner->finished && !owner->segments)
        budget_free(s->budget, owner);
}

static void leave_owner(struct segments *s, struct segment *segment)
{
    struct segment_owner *owner = segment->owner;
    segment->owner = NULL;
    if (!owner)
        return;
    owner->segments--;
    free_owner(s, owner);
}

void segments_close(struct segments *s)
{
    if (!s)
        return;
    for (uint64_t i = 0; i < s->fresh; i++) {
        drop_buffers(s, segment_at(s, (uint32_t)i));
        leave_owner(s, segment_at(s, (uint32_t)i));
    }
    for (uint64_t c = 0; c < div_round_up(s->count, CHUNK); c++)
        budget_free(s->budget, s->chunks[c]);
    budget_free(s->budget, s->chunks);
    budget_free(s->budget, s);
}

void frontier_init(struct segments *s, struct frontier *f, uint32_t row_pages,
                   uint64_t row_stream_bytes)
{
    *f = (struct frontier){
        .open = PLACE_NONE,
        .row_pages = row_pages,
        .row_stream_bytes = row_stream_bytes,
        .capacity = segment_capacity(&s->flash->geometry, row_pages),
    };
}

static uint64_t free_segments(const struct segments *s)
{
    return s->count - s->fresh + s->free_listed;
}

// Whole segments that `reserved` rows of the frontier need beyond its open one.
static uint64_t segments_needed(const struct segments *s, const struct frontier *f,
                                uint64_t reserved)
{
    uint64_t left = f->open == PLACE_NONE ? 0 : f->capacity - segment_at(s, f->open)->rows;
    return reserved > left ? div_round_up(reserved - left, f->capacity) : 0;
}

static void set_reserved(struct segments *s, struct frontier *f, uint64_t rows)
{
    f->reserved = rows;
    s->reserved -= f->segments;
    f->segments = segments_needed(s, f, rows);
    s->reserved += f->segments;
}

// True when a segment is on its way to being erased: also one whose last rows died before its
// summary was programmed.
static bool space_comes_free(const struct segments *s)
{
    if (s->dead || s->giving_up)
        return true;
    for (uint32_t i = s->work_list; i != PLACE_NONE; i = segment_at(s, i)->next) {
        if (segment_at(s, i)->state == SEGMENT_ERASE || !segment_at(s, i)->live)
            return true;
    }
    return false;
}

int segments_reserve(struct segments *s, struct frontier *f, uint64_t rows, bool *wait)
{
    uint64_t need = segments_needed(s, f, f->reserved + rows);
    *wait = false;
    if (s->reserved - f->segments + need > free_segments(s)) {
        *wait = space_comes_free(s);
        s->pressed = true;
        return INST_ENOSPC;
    }
    set_reserved(s, f, f->reserved + rows);
    return 0;
}

void segments_unreserve(struct segments *s, struct frontier *f, uint64_t rows)
{
    set_reserved(s, f, f->reserved - rows);
}

static void push_work(struct segments *s, uint32_t number, enum segment_state state)
{
    struct segment *segment = segment_at(s, number);
    segment->state = state;
    segment->submitted = segment->failed = false;
    segment->next = s->work_list;
    s->work_list = number;
}

static void push_dead(struct segments *s, uint32_t number)
{
    struct segment *segment = segment_at(s, number);
    segment->state = SEGMENT_DEAD;
    segment->next = s->dead_list;
    s->dead_list = number;
    s->dead++;
}

// An unreferenced segment that nobody fills can be erased. CLOSING ones get here from
// segments_pump.
static void note_if_dead(struct segments *s, uint32_t number)
{
    struct segment *segment = segment_at(s, number);
    if (segment->state == SEGMENT_CLOSED && !segment->live)
        push_dead(s, number);
}

static bool erase_before(const struct segment *a, const struct segment *b)
{
    if (a->owner->finished != b->owner->finished)
        return a->owner->finished;
    return a->used < b->used;
}

// Erases some dead segments: those of finished sequences first, and of these the least recently
// used.
static void erase_dead(struct segments *s)
{
    uint32_t best[ERASE_BATCH];
    unsigned n = 0;
    for (uint32_t i = s->dead_list; i != PLACE_NONE; i = segment_at(s, i)->next) {
        const struct segment *segment = segment_at(s, i);
        unsigned at = n;
        while (at && erase_before(segment, segment_at(s, best[at - 1])))
            at--;
        if (segment->pins || at == ERASE_BATCH)
            continue;
        n += n < ERASE_BATCH;
        memmove(best + at + 1, best + at, (n - at - 1) * sizeof *best);
        best[at] = i;
    }
    while (n--) { // the work list takes them at its front: the first one last
        uint32_t *link = &s->dead_list;
        while (*link != best[n])
            link = &segment_at(s, *link)->next;
        *link = segment_at(s, best[n])->next;
        s->dead--;
        push_work(s, best[n], SEGMENT_ERASE);
    }
    s->pressed = false; // who still waits says so again
}

static bool must_erase(const struct segments *s)
{
    uint64_t keep = max_u64(s->count / FREE_SHARE, FREE_MIN) + s->reserved;
    return s->pressed || s->dead > DEAD_MAX || free_segments(s) < keep;
}

void segments_press(struct segments *s)
{
    s->pressed = true;
}

// The segment to be filled next. What wears out is used evenly: first what never was, then what has
// been free for longest. Where that is a file, it stays as small as it can.
static uint32_t next_free(struct segments *s)
{
    uint32_t fresh = (uint32_t)s->fresh;
    bool have = s->free_list != PLACE_NONE;
    if (have && (!s->flash->geometry.oob || fresh >= s->count))
        return s->free_list;
    if (fresh < s->count && !s->chunks[fresh / CHUNK])
        s->chunks[fresh / CHUNK] =
            budget_alloc(s->budget, CHUNK, sizeof(struct segment), "flash allocation", NULL);
    return fresh < s->count && s->chunks[fresh / CHUNK] ? fresh : s->free_list;
}

static int open_segment(struct segments *s, struct frontier *f, struct inst_msg *msg)
{
    const struct flash_geometry *g = &s->flash->geometry;
    uint32_t number = next_free(s);
    if (number == PLACE_NONE && s->fresh >= s->count)
        return inst_fail(msg, INST_ENOSPC, "the drive is full");
    if (number == PLACE_NONE)
        return inst_fail(msg, INST_ENOMEM, "flash allocation: no memory for another segment");
    struct segment *segment = segment_at(s, number);
    segment->records = budget_alloc_pages(s->budget, segment_record_bytes(g), "page records", msg);
    segment->ios = budget_alloc(s->budget, g->dies, sizeof *segment->ios, "page records", msg);
    segment->refs =
        budget_alloc(s->budget, f->capacity, sizeof *segment->refs, "page records", msg);
    if (!f->owner)
        f->owner = budget_alloc(s->budget, 1, sizeof *f->owner, "page records", msg);
    if (!segment->records || !segment->ios || !segment->refs || !f->owner) {
        drop_buffers(s, segment);
        s->pressed = true; // dead ones hold memory, too
        return INST_ENOMEM;
    }
    if (number == s->free_list) {
        s->free_list = segment->next;
        s->free_listed--;
    } else {
        s->fresh++;
    }
    segment->state = SEGMENT_OPEN;
    segment->row_pages = f->row_pages;
    segment->row_stream_bytes = f->row_stream_bytes;
    segment->rows = segment->live = 0;
    segment->failed = false;
    segment->owner = f->owner;
    f->owner->segments++;
    f->open = number;
    s->counters.allocated_blocks += g->dies;
    return 0;
}

int segments_place(struct segments *s, struct frontier *f, struct place *out, struct inst_msg *msg)
{
    if (f->open == PLACE_NONE) {
        int status = open_segment(s, f, msg);
        if (status)
            return status;
    }
    uint32_t number = f->open;
    struct segment *segment = segment_at(s, number);
    *out = (struct place){.segment = number, .row = segment->rows++};
    segments_ref(s, *out);
    if (segment->rows == f->capacity) {
        f->open = PLACE_NONE;
        push_work(s, number, SEGMENT_CLOSING);
    }
    set_reserved(s, f, f->reserved - 1);
    return 0;
}

void segments_end(struct segments *s, struct frontier *f)
{
    uint32_t number = f->open;
    f->open = PLACE_NONE;
    set_reserved(s, f, 0);
    if (f->owner) {
        f->owner->finished = true;
        free_owner(s, f->owner);
        f->owner = NULL;
    }
    if (number != PLACE_NONE)
        push_work(s, number, SEGMENT_CLOSING);
}

void segments_giving_up(struct segments *s, bool any)
{
    s->giving_up = any;
}

void segments_ref(struct segments *s, struct place place)
{
    struct segment *segment = segment_at(s, place.segment);
    if (segment->refs[place.row]++)
        return;
    segment->live++;
    s->counters.live_bytes += segment->row_stream_bytes;
}

bool segments_unref(struct segments *s, struct place place)
{
    struct segment *segment = segment_at(s, place.segment);
    if (--segment->refs[place.row])
        return false;
    segment->live--;
    s->counters.live_bytes -= segment->row_stream_bytes;
    note_if_dead(s, place.segment);
    return true;
}

void segments_pin(struct segments *s, struct place place)
{
    struct segment *segment = segment_at(s, place.segment);
    segment->pins++;
    segment->used = ++s->clock;
}

void segments_unpin(struct segments *s, struct place place)
{
    segment_at(s, place.segment)->pins--;
}

void segments_address(const struct segments *s, struct place place, uint32_t page, uint64_t *block,
                      uint32_t *page_in_block)
{
    uint32_t dies = s->flash->geometry.dies;
    uint32_t die = (uint32_t)((page + (uint64_t)place.row) % dies);
    *block = (uint64_t)place.segment * dies + die;
    *page_in_block =
        (uint32_t)pages_on_die(place.row, die, segment_at(s, place.segment)->row_pages, dies) +
        page / dies;
}

static uint8_t *record_at(const struct segments *s, const struct segment *segment, uint32_t die,
                          uint32_t page)
{
    return segment->records + die * block_record_bytes(&s->flash->geometry) +
           (uint64_t)page * PAGE_RECORD_BYTES;
}

void segments_record(struct segments *s, struct place place, uint32_t page,
                     const struct page_identity *identity, uint64_t checksum)
{
    struct segment *segment = segment_at(s, place.segment);
    uint32_t dies = s->flash->geometry.dies, page_in_block;
    uint64_t block;
    segments_address(s, place, page, &block, &page_in_block);
    uint8_t *p = record_at(s, segment, (uint32_t)(block % dies), page_in_block);
    le_put32(p, identity->seq);
    le_put32(p + 4, identity->epoch);
    le_put16(p + 8, identity->layer);
    le_put16(p + 10, identity->stream);
    le_put32(p + 12, identity->group);
    le_put32(p + 16, identity->page);
    le_put32(p + 20, identity->space);
    le_put64(p + 24, checksum);
}

void page_record_read(const uint8_t *record, struct page_identity *identity, uint64_t *checksum)
{
    *identity = (struct page_identity){.space = le_get32(record + 20),
                                       .seq = le_get32(record),
                                       .epoch = le_get32(record + 4),
                                       .layer = le_get16(record + 8),
                                       .stream = le_get16(record + 10),
                                       .group = le_get32(record + 12),
                                       .page = le_get32(record + 16)};
    *checksum = le_get64(record + 24);
}

void *segments_oob(const struct segments *s, uint64_t block, uint32_t page)
{
    const struct flash_geometry *g = &s->flash->geometry;
    const struct segment *segment = segment_at(s, (uint32_t)(block / g->dies));
    return g->oob ? record_at(s, segment, (uint32_t)(block % g->dies), page) : NULL;
}

static void submit_own(struct segments *s, uint32_t number, enum flash_op op, uint64_t now_ns)
{
    struct segment *segment = segment_at(s, number);
    const struct flash_geometry *g = &s->flash->geometry;
    uint64_t summary_bytes = (uint64_t)s->summary_pages * g->page_bytes;
    struct flash_io *list = NULL;
    for (uint32_t die = g->dies; die-- > 0;) {
        struct flash_io *io = &segment->ios[die];
        *io = (struct flash_io){
            .op = op,
            .priority = FLASH_BACKGROUND,
            .block = (uint64_t)number * g->dies + die,
            .next = list,
            .owner = s,
        };
        if (op == FLASH_PROGRAM) {
            io->pages = s->summary_pages;
            io->page = (uint32_t)pages_on_die(segment->rows, die, segment->row_pages, g->dies);
            io->data = segment->records + die * summary_bytes;
            s->counters.summary_bytes += summary_bytes;
        }
        list = io;
    }
    segment->pending = g->dies;
    segment->submitted = true;
    s->flash->ops->submit(s->flash, list, now_ns);
}

bool segments_pump(struct segments *s, uint64_t now_ns, bool idle)
{
    uint32_t *link = &s->work_list;
    bool moved = false;
    while (*link != PLACE_NONE) {
        struct segment *segment = segment_at(s, *link);
        bool full = segment->state == SEGMENT_CLOSING && !segment->submitted && !segment->pins;
        if (!full || (segment->live && s->summary_pages)) {
            link = &segment->next;
            continue;
        }
        uint32_t number = *link; // needs no summary
        moved = true;
        *link = segment->next;
        if (s->summary_pages) {
            push_dead(s, number);
            continue;
        }
        drop_records(s, segment);
        segment->state = SEGMENT_CLOSED;
        note_if_dead(s, number);
    }
    if (s->dead && (idle || must_erase(s)))
        erase_dead(s);
    for (uint32_t i = s->work_list; i != PLACE_NONE; i = segment_at(s, i)->next) {
        struct segment *segment = segment_at(s, i);
        if (!segment->submitted && !segment->pins)
            submit_own(s, i, segment->state == SEGMENT_ERASE ? FLASH_ERASE : FLASH_PROGRAM, now_ns);
    }
    return moved;
}

static void remove_work(struct segments *s, uint32_t number)
{
    uint32_t *link = &s->work_list;
    while (*link != number)
        link = &segment_at(s, *link)->next;
    *link = segment_at(s, number)->next;
}

void segments_done(struct segments *s, struct flash_io *io)
{
    uint32_t number = (uint32_t)(io->block / s->flash->geometry.dies);
    struct segment *segment = segment_at(s, number);
    if (io->status)
        segment->failed = true;
    if (--segment->pending)
        return;
    remove_work(s, number);
    if (segment->state == SEGMENT_CLOSING) {
        drop_records(s, segment);
        // Without a summary the rows are still good: the map in DRAM knows them.
        s->counters.failed_summaries += segment->failed;
        segment->state = SEGMENT_CLOSED;
        note_if_dead(s, number);
        return;
    }
    drop_buffers(s, segment);
    leave_owner(s, segment);
    if (segment->failed) {
        segment->state = SEGMENT_BAD;
        return;
    }
    segment->state = SEGMENT_FREE;
    segment->next = PLACE_NONE;
    if (s->free_list == PLACE_NONE)
        s->free_list = number;
    else
        segment_at(s, s->free_last)->next = number;
    s->free_last = number;
    s->free_listed++;
    s->counters.erased_blocks += s->flash->geometry.dies;
    s->counters.allocated_blocks -= s->flash->geometry.dies;
}

bool segments_working(const struct segments *s)
{
    return s->work_list != PLACE_NONE || s->dead;
}

bool segments_busy(const struct segments *s)
{
    for (uint32_t i = s->dead_list; i != PLACE_NONE; i = segment_at(s, i)->next) {
        if (!segment_at(s, i)->pins)
            return true;
    }
    for (uint32_t i = s->work_list; i != PLACE_NONE; i = segment_at(s, i)->next) {
        if (!segment_at(s, i)->pins)
            return true;
    }
    return false;
}

bool segments_in_flight(const struct segments *s)
{
    for (uint32_t i = s->work_list; i != PLACE_NONE; i = segment_at(s, i)->next) {
        if (segment_at(s, i)->submitted)
            return true;
    }
    return false;
}

void segments_counters(const struct segments *s, struct segment_counters *out)
{
    *out = s->counters;
    out->free_blocks = free_segments(s) * s->flash->geometry.dies;
    out->dead_blocks = s->dead * s->flash->geometry.dies;
}

uint32_t segments_references(const struct segments *s, struct place place)
{
    const struct segment *segment = segment_at(s, place.segment);
    return segment->refs && place.row < segment->rows ? segment->refs[place.row] : 0;
}

uint64_t segments_all_references(const struct segments *s)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < s->fresh; i++) {
        const struct segment *segment = segment_at(s, (uint32_t)i);
        for (uint32_t r = 0; segment->refs && r < segment->rows; r++)
            sum += segment->refs[r];
    }
    return sum;
}
