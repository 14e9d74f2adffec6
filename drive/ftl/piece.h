// SPDX-License-Identifier: Apache-2.0
// The one unit that every method acquires. A piece is some work over consecutive tokens of one
// layer of a sequence: it names rows of a stream and marks what it wants of them, the whole row or
// single pages; gets that from group buffers, from rows on their way to flash, from the row cache,
// in place where the flash is memory, else by reads; is computed once all is there, and gives it
// back. Wanted pages go out in address order; a gap between two of them that costs less than a
// request of its own is read as well and stays in the cache.
//
// Only one piece of a user may be partly acquired at a time. With room for the largest piece of
// each user this makes sure that somebody can always go on.
#ifndef INST_DRIVE_FTL_PIECE_H
#define INST_DRIVE_FTL_PIECE_H

#include "drive/ftl/space.h"

// Part of a row that a piece wants.
struct piece_row {
    const uint8_t *data; // the whole row where that is possible, else NULL
    struct frame *frame; // it is in this one
    struct place place;
    bool pinned;                  // viewed in place
    bool opened;                  // where its data comes from has been decided
    bool on_flash;                // not in a group buffer
    bool programming;             // on its way there: DRAM has it all the same
    uint32_t index;               // of the stream's map
    uint32_t first_page, n_pages; // what pages[] is about
    struct frame **pages;         // NULL entries: not wanted. NULL: the row as a whole is
};

struct pieces;
struct piece {
    struct pieces *set; // it belongs to
    struct piece *next; // list of its user, or free
    struct piece_row *rows;
    struct frame **pages; // those of all rows
    uint32_t stream;
    uint32_t n_rows, n_pages;
    uint32_t row_at; // acquisition has come this far
    uint32_t tokens;
    uint64_t first; // token
    uint32_t kind;  // the user's
    enum frame_use use;
    bool acquired, computed;         // computed: the pages are given back
    uint8_t tries;                   // reads of it that failed
    uint32_t read_pages, read_extra; // brought from flash for it; extra: only `extra` pages
    int status;                      // why acquiring or reading failed
    uint64_t failed_index;           // of which row
    float *partials;                 // the user's
};

// A user's set of pieces.
struct pieces {
    struct space *space;
    struct piece *all, *free;
    struct piece_row *rows;
    struct frame **pages;
    uint32_t count, rows_each, pages_each;
};

// Bytes of a set.
uint64_t pieces_bytes(uint32_t count, uint32_t rows_each, uint32_t pages_each);
int pieces_open(struct pieces *pieces, struct space *space, uint32_t count, uint32_t rows_each,
                uint32_t pages_each, struct inst_msg *msg);
void pieces_close(struct pieces *pieces);

// A fresh piece, NULL when all are in use; piece_put takes a released one back.
struct piece *piece_get(struct pieces *pieces);
void piece_put(struct piece *piece);

// Adds a row that is wanted as a whole, or one of whose pages [first_page, first_page + n_pages)
// some will be.
void piece_add_row(struct piece *piece, uint32_t index);
void piece_add_pages(struct piece *piece, uint32_t index, uint32_t first_page, uint32_t n_pages);
// Marks the pages that hold these bytes of row `row` of the piece. `extra`: counted apart, where no
// other mark is.
void piece_want(const struct space *space, struct piece *piece, uint32_t row, uint64_t offset,
                uint64_t bytes, bool extra);

// Goes on acquiring. WAIT: no frame is free now. FAILED: piece->status and failed_index say why.
enum progress piece_acquire(struct space *space, const struct sequence *sequence, uint32_t layer,
                            struct piece *piece);
// All reads have finished, and nobody is comparing their checksums right now.
bool piece_ready(const struct piece *piece);
// Appends the frames whose checksums nobody has compared yet, and marks them as being compared.
// Returns the new number.
size_t piece_unchecked(const struct piece *piece, struct frame **list, size_t n);
// Of such a list: compares one (in any worker), and settles all of them.
void piece_check_frame(struct frame **list, size_t index);
void piece_checked(struct space *space, struct frame **list, size_t n);
// After that: the status of the reads.
int piece_read_status(const struct piece *piece, uint64_t *index);
void piece_release(struct space *space, struct piece *piece);
// After a failed read: it is to be acquired anew.
void piece_again(struct space *space, struct piece *piece);

// Address of bytes that lie in one page (or in a row that is there as a whole); NULL when they
// straddle pages. They were wanted.
const void *piece_at(const struct space *space, const struct piece *piece, uint32_t row,
                     uint64_t offset, size_t bytes);
void piece_copy(const struct space *space, const struct piece *piece, uint32_t row, uint64_t offset,
                size_t bytes, void *out);

#endif
