// SPDX-License-Identifier: Apache-2.0
// Single pages of rows in DRAM. A step is a piece of work over some consecutive tokens of one layer
// of a sequence: it marks the pages it wants, gets them (from group buffers, from rows on their way
// to flash, in place where the flash is memory, else by reads of single pages, many of them in
// flight), is computed once all are there, and gives them back.
//
// Only one step of a user may be partly acquired at a time. With room for the largest step of each
// user this makes sure that somebody can always go on.
#ifndef INST_DRIVE_FTL_STEP_H
#define INST_DRIVE_FTL_STEP_H

#include "base/pool.h"
#include "drive/ftl/space.h"

// Part of a row that a step wants.
struct step_row {
    const uint8_t *data; // the whole row where that is possible, else NULL
    struct frame *frame; // it is in this one
    struct place place;  // while pinned
    bool pinned, opened; // opened: where its data comes from has been decided
    bool on_flash;       // not in a group buffer
    uint32_t index;      // token group, or channel group * kv_heads + KV head
    uint32_t first_page; // the pages that pages[] is about
    uint32_t n_pages;
    struct frame **pages; // NULL: not wanted
};

struct step {
    struct step *next; // list of its user, or free
    struct step_row *rows;
    struct frame **pages; // those of all rows
    uint32_t stream;
    uint32_t n_rows, n_pages;
    uint32_t row_at; // acquisition has come this far
    uint32_t tokens;
    uint64_t first;                  // token
    uint32_t kind;                   // the user's
    bool acquired, computed;         // computed: the pages are given back
    uint32_t read_pages, read_extra; // brought from flash for it; extra: only `extra` pages
    int status;                      // why acquiring or reading failed
    uint64_t failed_group;
    float *partials; // the user's
};

// A user's set of steps.
struct steps {
    struct space *space;
    struct step *all, *free;
    struct step_row *rows;
    struct frame **pages;
    uint32_t count, rows_each, pages_each;
};

// Bytes of a set.
uint64_t steps_bytes(uint32_t count, uint32_t rows_each, uint32_t pages_each);
int steps_open(struct steps *steps, struct space *space, uint32_t count, uint32_t rows_each,
               uint32_t pages_each, struct inst_msg *msg);
void steps_close(struct steps *steps);

// A fresh step, NULL when all are in use; step_put takes a released one back.
struct step *step_get(struct steps *steps);
void step_put(struct steps *steps, struct step *step);

// Adds a row whose pages [first_page, first_page + n_pages) may be wanted.
void step_add_row(struct step *step, uint32_t index, uint32_t first_page, uint32_t n_pages);
// Marks the pages that hold these bytes of row `row` of the step. `extra`: counted apart, where no
// other mark is.
void step_want(const struct space *space, struct step *step, uint32_t row, uint64_t offset,
               uint64_t bytes, bool extra);

// The drive as far as steps are concerned.
struct step_source {
    struct space *space;
    struct frames *pages;                   // for pages that are read
    struct frames *programs;                // channel rows' pages on their way to flash
    bool views;                             // the flash may be memory
    uint32_t reserve;                       // page frames left to others
    uint64_t *view_bytes, *checksum_errors; // counters; view: bytes used in place
};

enum step_result { STEP_ACQUIRED, STEP_NO_FRAME, STEP_FAILED };
// Goes on acquiring. STEP_FAILED: step->status and failed_group say why.
enum step_result step_acquire(const struct step_source *source, const struct sequence *sequence,
                              uint32_t layer, struct step *step);
// All reads have finished.
bool step_ready(const struct step *step);
// Appends the frames whose checksums nobody has compared yet; each is told only once. Returns the
// new number.
size_t step_unverified(const struct step *step, struct frame **list, size_t n);
void step_verify(struct pool *pool, const struct step_source *source, struct frame **list,
                 size_t n);
// After verification: the status of the reads.
int step_read_status(const struct step *step, uint64_t *group);
void step_release(const struct step_source *source, struct step *step);

// Address of bytes that lie in one page (or in a row that is there as a whole); NULL when they
// straddle pages. They were wanted.
const void *step_at(const struct space *space, const struct step *step, uint32_t row,
                    uint64_t offset, size_t bytes);
void step_copy(const struct space *space, const struct step *step, uint32_t row, uint64_t offset,
               size_t bytes, void *out);

#endif
