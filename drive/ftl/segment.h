// SPDX-License-Identifier: Apache-2.0
// Allocation of flash. A segment is one block of every die (block number s of each); it is filled
// with rows of one size and one lifetime, front to back, and erased as a whole once nobody refers
// to any of its rows: not at once, but when the drive is idle or erased segments run low. No valid
// page is ever copied.
//
// Striping: page i of the segment's row r lies on die (i + r) mod dies, so that the same head's
// slots of consecutive rows meet on different dies. Within a die pages are taken in order.
//
// Every page has a 32-byte record (whose it is, and its checksum). While a segment is open the
// records wait in DRAM; when it closes they are programmed behind the data of each block (summary
// pages). Where flash has OOB a record is programmed with its page instead, and there are no
// summary pages.
#ifndef INST_DRIVE_FTL_SEGMENT_H
#define INST_DRIVE_FTL_SEGMENT_H

#include "base/budget.h"
#include "drive/flash/flash.h"

enum {
    PAGE_RECORD_BYTES = FLASH_OOB_BYTES,
    SEGMENTS_DEAD_MAX = 32, // that may wait for being erased
};

// Physical place of a row. segment == PLACE_NONE: nowhere.
struct place {
    uint32_t segment;
    uint32_t row;
};
#define PLACE_NONE UINT32_MAX

// What a page belongs to; with the checksum of its data this is its record.
struct page_identity {
    uint32_t space, seq, epoch;
    uint16_t layer, stream;
    uint32_t group; // token or channel group
    uint32_t page;  // within the group's rows
};

// Where the rows of one stream and one lifetime are appended: the segment that they fill, and
// promises of room for rows to come.
struct frontier {
    struct segment_owner *owner; // of the segments that it filled, NULL: none yet
    uint32_t open;               // segment being filled, PLACE_NONE = none
    uint32_t row_pages;          // of every row
    uint32_t capacity;           // rows per segment
    uint64_t row_stream_bytes;   // without the padding to whole pages
    uint64_t reserved;           // rows promised
    uint64_t segments;           // whole segments set aside for `reserved`
};

struct segments;

int segments_open(struct segments **out, struct flash *flash, struct budget *budget,
                  struct inst_msg *msg);
void segments_close(struct segments *segments);

// Rows of row_pages that fit in one segment (0: none does).
uint32_t segment_capacity(const struct flash_geometry *geometry, uint32_t row_pages);
// Summary pages at the end of each block; none where flash has OOB.
uint32_t segment_summary_pages(const struct flash_geometry *geometry);
// DRAM for the records of a segment while it is open.
uint64_t segment_record_bytes(const struct flash_geometry *geometry);

// What is behind PAGE_RECORD_BYTES of OOB or of a summary page.
void page_record_read(const uint8_t *record, struct page_identity *identity, uint64_t *checksum);

void frontier_init(struct segments *segments, struct frontier *frontier, uint32_t row_pages,
                   uint64_t row_stream_bytes);

// Promises room for so many more rows, or INST_ENOSPC. `*wait` says that blocks will come free.
int segments_reserve(struct segments *segments, struct frontier *frontier, uint64_t rows,
                     bool *wait);
void segments_unreserve(struct segments *segments, struct frontier *frontier, uint64_t rows);
// Turns a promise into a place, with one reference. INST_ENOMEM when DRAM for records is short.
int segments_place(struct segments *segments, struct frontier *frontier, struct place *out,
                   struct inst_msg *msg);
// Nobody will append here any more: the open segment is closed as it is.
void segments_end(struct segments *segments, struct frontier *frontier);
// References that wait for being given up: while there are any, room will come free.
void segments_giving_up(struct segments *segments, bool any);

void segments_ref(struct segments *segments, struct place place);
// True: nobody refers to the row any more.
bool segments_unref(struct segments *segments, struct place place);
// A flash operation on the segment is in flight; it is not erased before the last unpin.
void segments_pin(struct segments *segments, struct place place);
void segments_unpin(struct segments *segments, struct place place);

// Address of page `page` of a row.
void segments_address(const struct segments *segments, struct place place, uint32_t page,
                      uint64_t *block, uint32_t *page_in_block);
// Keeps the record of page `page` of a row, which is about to be programmed.
void segments_record(struct segments *segments, struct place place, uint32_t page,
                     const struct page_identity *identity, uint64_t checksum);

// The record of a page of a block, others of the block behind it, where it is programmed with the
// page; else NULL. Stays until the segment has no pins.
void *segments_oob(const struct segments *segments, uint64_t block, uint32_t page);

// Submits what is due (summaries, erases); `idle`: erases disturb nobody. True when a segment was
// closed that needs no operation for it. segments_done takes back a finished operation whose owner
// is the segments object.
bool segments_pump(struct segments *segments, uint64_t now_ns, bool idle);
// All that is dead now is to be erased soon.
void segments_press(struct segments *segments);
void segments_done(struct segments *segments, struct flash_io *io);
bool segments_working(const struct segments *segments);   // summaries or erases are to be done
bool segments_busy(const struct segments *segments);      // some of them can go on
bool segments_in_flight(const struct segments *segments); // operations of its own

struct segment_counters {
    uint64_t allocated_blocks, free_blocks, erased_blocks;
    uint64_t dead_blocks; // of the allocated ones: wait for being erased
    uint64_t live_bytes;  // stream bytes of rows that somebody refers to
    uint64_t summary_bytes, failed_summaries;
};
void segments_counters(const struct segments *segments, struct segment_counters *out);
// For drive_check: references to a row, to all rows.
uint32_t segments_references(const struct segments *segments, struct place place);
uint64_t segments_all_references(const struct segments *segments);
#endif
