// SPDX-License-Identifier: Apache-2.0
// The drive's DRAM for rows. A frame holds one row: a token group that is still filling (open), a
// row on its way to flash (it stays readable until its program completes) or a row that was read.
// Frames are found by the place of their row. Rows read ahead of any demand may be dropped again
// when demand needs their frame. A set of frames of one page each holds single pages of rows in the
// same way.
#ifndef INST_DRIVE_FTL_FRAME_H
#define INST_DRIVE_FTL_FRAME_H

#include "drive/ftl/segment.h"

enum frame_state {
    FRAME_FREE,
    FRAME_OPEN,    // being filled; not in the table
    FRAME_PROGRAM, // programming; readable
    FRAME_READ,    // being read
    FRAME_READY,   // read; checksums not verified yet when `verify`
};

struct frame {
    uint8_t *data; // pages * page_bytes
    enum frame_state state;
    bool verify;                   // page checksums still to be compared (by whoever uses it first)
    bool read;                     // came from flash, not from a WRITE
    bool ahead;                    // read ahead, nobody has asked for it yet
    int status;                    // of the flash operations; a failed row is not found again
    uint32_t users;                // spans that look at data
    uint32_t pending;              // flash operations in flight
    struct place place;            // PROGRAM, READ, READY
    uint32_t page;                 // of the row: the first one held here
    struct page_identity identity; // of that page
    uint64_t *sums;                // checksum of each page
    struct flash_io *ios;
    struct frame *next;          // free list or table chain
    struct frame *newer, *older; // read-ahead list
    struct frames *set;          // it belongs to
    void *owner;                 // PROGRAM: whom a failure concerns (a sequence)
};

struct frames;

// Bytes that each frame of `pages` pages takes, its share of the tables included.
static inline uint64_t frames_bytes_each(const struct flash_geometry *geometry, uint32_t pages)
{
    uint64_t ios = geometry->dies == 1 ? 1 : pages;
    return (uint64_t)pages * geometry->page_bytes + sizeof(struct frame) +
           pages * sizeof(uint64_t) + ios * sizeof(struct flash_io) + 4 * sizeof(void *);
}

int frames_open(struct frames **out, struct flash *flash, struct segments *segments,
                struct budget *budget, uint32_t count, uint32_t pages, struct inst_msg *msg);
void frames_close(struct frames *frames);

// A free frame; else the row read ahead last is dropped for it when `steal`. NULL: none now.
struct frame *frames_take(struct frames *frames, bool steal);
// Frames that can be taken without stealing.
uint32_t frames_free(const struct frames *frames);
uint32_t frames_count(const struct frames *frames);
bool frames_programming(const struct frames *frames);
bool frames_in_flight(const struct frames *frames); // any operation

// The frame whose pages start with page `page` of the row; NULL: none.
struct frame *frames_find(struct frames *frames, struct place place, uint32_t page);

// Starts reading the row's pages from `page` on into a taken frame, or programming those that an
// open frame holds. The identity is that of the first page; sums are the checksums from the map
// (read) or are computed here (program; also put on record).
void frames_read(struct frames *frames, struct frame *frame, struct place place, uint32_t page,
                 const struct page_identity *identity, const uint64_t *sums, bool ahead);
void frames_program(struct frames *frames, struct frame *frame, struct place place, uint32_t page,
                    const struct page_identity *identity);
// Operations queued by the two above since the last call go to flash as one list, so that a back
// end can join neighbours.
void frames_submit(struct frames *frames, uint64_t now_ns);

// Takes back a finished operation whose owner is a frame. Returns the frame when that was its last
// one, else NULL.
struct frame *frames_done(struct flash_io *io);

void frame_use(struct frames *frames, struct frame *frame); // demand: no longer merely ahead
// The last user of a read row frees its frame.
void frame_unuse(struct frames *frames, struct frame *frame);
void frames_free_open(struct frames *frames, struct frame *frame); // gives an OPEN frame back
// Nobody is to be told about programs of this owner any more.
void frames_disown(struct frames *frames, const void *owner);
void frames_drop_ahead(struct frames *frames); // what was read ahead will not be needed
// The segment is being erased: forget rows of it that nobody uses.
void frames_forget(struct frames *frames, uint32_t segment);

// Compares all page checksums; false when one differs. Pure, may run in any worker.
bool frame_verify(const struct frames *frames, const struct frame *frame);
uint64_t page_checksum(const struct page_identity *identity, const void *data, size_t bytes);

// For drive_check.
struct frame_census {
    uint64_t free, open, users;
    uint64_t stray; // neither free, open, in flight nor read ahead, and without a user
};
void frames_census(const struct frames *frames, struct frame_census *out);

struct frame_counters {
    uint64_t read_bytes, program_bytes, ahead_rows, ahead_hits;
};
const struct frame_counters *frames_counters(const struct frames *frames);

#endif
