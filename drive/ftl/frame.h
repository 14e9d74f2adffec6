// SPDX-License-Identifier: Apache-2.0
// The drive's DRAM for rows: one pool of a space, with the row cache. The pool is cut into slabs of
// one row of K and V each. A slab is one frame (a whole row, contiguous), or it is split into
// frames of one page for streams and methods that work on single pages.
//
// A frame is a group buffer that is filling (OPEN), on its way to flash (PROGRAM; readable until
// its program completes, whatever becomes of that), being read (READ) or there (READY). READY
// frames that nobody uses are the row cache: they are found again, and they are what a new frame is
// taken from. A frame in the table is the row that its identity names; when a row dies (nobody
// refers to it) or a read fails, its frames leave the table at once, and their memory follows when
// the last user lets go.
//
// What goes to flash first: reads that somebody waits for, at once. Reading ahead and programs wait
// here, and only so many of each are on their way that the device is not idle; so a read never
// finds more than these before it. A row read ahead that is asked for while it waits goes at once,
// too.
//
// What is forgotten first: frames used once by a scan (dense attention reads all rows in a cycle)
// go before everything that was found again, so that a cycle longer than the cache still finds a
// cache full of it; one in SCAN_KEEP of them is kept, so that what nobody asks for any more goes in
// the end. What a method chose goes by age. Frames read ahead stand apart until they are used.
#ifndef INST_DRIVE_FTL_FRAME_H
#define INST_DRIVE_FTL_FRAME_H

#include "drive/ftl/segment.h"

enum frame_state {
    FRAME_FREE,
    FRAME_SPLIT,   // a slab whose pages are frames of their own
    FRAME_OPEN,    // being filled; not in the table
    FRAME_PROGRAM, // programming; readable
    FRAME_READ,    // being read
    FRAME_READY,   // read or programmed
};

// Why a frame was used: decides how long it is remembered.
enum frame_use { USE_SCAN, USE_CHOICE };

enum frame_check { CHECK_DONE, CHECK_DUE, CHECK_RUNNING };

struct frame {
    uint8_t *data; // pages * page_bytes
    uint8_t state; // enum frame_state
    uint8_t check; // enum frame_check: checksums of what came from flash
    bool single;   // one page of a split slab
    bool found;    // in the table
    bool read;     // came from flash, not from a WRITE
    bool ahead;    // read ahead, nobody has asked for it yet
    bool held;     // its operations have not been handed to flash yet
    bool early;    // they were, as reading ahead
    bool again;    // was found in the cache at least once
    uint8_t tries; // programs of it that failed
    int status;    // of the flash operations
    uint32_t users;
    uint32_t pending;              // flash operations in flight
    struct place place;            // PROGRAM, READ, READY
    uint32_t page;                 // of the row: the first one held here
    struct page_identity identity; // of that page
    uint64_t stamp;                // of the last use, or of the reading ahead
    struct frame *next;            // table chain
    struct frame *newer, *older;   // list of free, cached, held or read-ahead frames
    struct frames *set;
};

struct frames;

// How a pool is made. Slabs of which at most `split` may be split into pages; the others serve
// group buffers and whole rows.
struct frames_size {
    uint32_t slabs, split;
    uint32_t least; // slabs that are never given back
    uint32_t row_pages;
    uint64_t cache_bytes; // unused frames that are remembered, at most; UINT64_MAX: all
};
// Bytes of DRAM for it.
uint64_t frames_bytes(const struct flash_geometry *geometry, const struct frames_size *size);
// Of which this much belongs to each slab.
uint64_t frames_slab_bytes(const struct flash_geometry *geometry, uint32_t row_pages, bool split);

int frames_open(struct frames **out, struct flash *flash, struct segments *segments,
                struct budget *budget, const struct frames_size *size, struct inst_msg *msg);
void frames_close(struct frames *frames);

// A frame for a row or a page: free, or what the cache misses least. In state OPEN, with no user.
// NULL: all are in use now.
struct frame *frames_take_row(struct frames *frames);
// The page behind `after` in memory if that can be had, so that pages that lie side by side on
// flash do so in memory, too: each stretch of memory costs the system, and a virtual machine's most
// of all, about as much as a request. NULL: any, the longest free first, as its neighbours are
// free.
struct frame *frames_take_page(struct frames *frames, const struct frame *after);
void frames_give(struct frames *frames, struct frame *frame); // an OPEN frame back

uint32_t frames_slabs(const struct frames *frames);
// Pages that can be taken one after another right now.
uint64_t frames_free_pages(const struct frames *frames);
bool frames_programming(const struct frames *frames);
bool frames_in_flight(const struct frames *frames); // any operation
// Operations for programs of n extents (rows or pages) can be begun.
bool frames_can_program(const struct frames *frames, uint32_t rows, uint32_t pages);

// The frame that holds the whole row, or the single page of it that identity->page names (counted
// from page 0 of the group); NULL: none. A frame of another identity is never returned.
struct frame *frames_find_row(struct frames *frames, struct place place,
                              const struct page_identity *identity);
struct frame *frames_find_page(struct frames *frames, struct place place, uint32_t page,
                               const struct page_identity *identity);
// Before many pages of a row are looked for: brings closer where page is found, in two steps, so
// that none waits for the one before.
void frames_look_for(const struct frames *frames, struct place place, uint32_t page, int step);

// Starts reading into a taken frame, or programming what it holds. identity is that of its first
// page, `page` its number within the row; sums are the checksums of its pages from the map (read),
// or are stored there (program; also put on record). False: too many reads are in flight; the frame
// stays taken. Programs always begin.
bool frames_read(struct frames *frames, struct frame *frame, struct place place, uint32_t page,
                 const struct page_identity *identity, const uint64_t *sums);
// A whole row that nobody has asked for yet. `stamp`: see frames_ahead_room.
bool frames_read_ahead(struct frames *frames, struct frame *frame, struct place place,
                       const struct page_identity *identity, const uint64_t *sums, uint64_t stamp);
void frames_program(struct frames *frames, struct frame *frame, struct place place, uint32_t page,
                    const struct page_identity *identity, uint64_t *sums);
// The program of a frame failed and the row has another place now.
void frames_program_again(struct frames *frames, struct frame *frame, struct place place);
// Operations queued since the last call go to flash as one list, so that a back end can join
// neighbours, and with them what waits and may go.
void frames_submit(struct frames *frames, uint64_t now_ns);

// Takes back a finished operation whose owner is a frame. Returns the frame when that was its last
// one, else NULL. A failed program stays FRAME_PROGRAM, readable, until frames_program_again or
// frames_program_ended.
struct frame *frames_done(struct flash_io *io);
void frames_program_ended(struct frames *frames, struct frame *frame);

// A user more; hit: it was there for this user without a read of its own.
void frame_use(struct frames *frames, struct frame *frame, bool hit);
void frame_unuse(struct frames *frames, struct frame *frame, enum frame_use use);
// What was found wrong is not found again.
void frame_spoiled(struct frames *frames, struct frame *frame, int status);

// Reading ahead: at most `window` slabs' worth of frames. A frame that waits unused since before
// `stamp` makes room for others.
bool frames_ahead_room(struct frames *frames, uint64_t stamp);
void frames_set_window(struct frames *frames, uint32_t slabs);

// The row has died: its frames are not found again.
void frames_forget_row(struct frames *frames, struct place place, uint32_t row_pages);
// Gives at least `bytes` of DRAM back to the budget, as far as frames are unused and there are more
// than the least; returns how much.
uint64_t frames_shrink(struct frames *frames, uint64_t bytes);
bool frames_grow(struct frames *frames); // takes a slab back, if the budget has room for it again
// Whether it may: not while what was given is for somebody who has not taken it yet.
void frames_may_grow(struct frames *frames, bool may);
uint64_t frames_spare(const struct frames *frames); // what that could give if all were unused

// Compares all page checksums; false when one differs. Pure, may run in any worker.
bool frame_verify(const struct frame *frame);
uint64_t page_checksum(const struct page_identity *identity, const void *data, size_t bytes);

// For drive_check.
struct frame_census {
    uint64_t open, users;
    uint64_t stray;    // neither free, open, in flight, cached nor read ahead, and without a user
    uint64_t unlisted; // free or cached frames that no list holds, slabs with a wrong count
};
void frames_census(const struct frames *frames, struct frame_census *out);

struct frame_counters {
    uint64_t read_bytes, program_bytes, ahead_rows, ahead_hits;
    uint64_t ahead_lost;   // rows read ahead, or to be, whose frames somebody else needed
    uint64_t hit_bytes;    // found in DRAM instead of being read
    uint64_t cached_bytes; // of the row cache, now
};
const struct frame_counters *frames_counters(const struct frames *frames);

#endif
