// SPDX-License-Identifier: Apache-2.0
// SparF attention, Algorithm 1 of the paper, as a state machine over single pages. The work on one
// item and one bundle of KV heads is a *unit*; several are under way, so that the reads of one
// overlap the arithmetic of another:
//
//   prepare  the r channels with the largest |q| (summed over the group's query heads)
//   rank     scores of all S tokens from these channels: from channel rows, by pages that hold a
//            chosen channel; where there is no channel row, from token-indexed K
//   select   softmax of each query head, summed over the group; the k best tokens, the most recent
//            ones forced in; alpha = share of each head's softmax that they hold
//   tokens   exact attention over the chosen tokens, by pages that hold one of them
//   finish   out = alpha * attention + (1 - alpha) * mean V
//
// Orders are fixed (kernels.h; tiles of 64 absolute positions, ascending), so that results depend
// on neither page size, page_channels, T, threads, nor on where data lies.
#ifndef INST_DRIVE_ATTEND_SPARF_H
#define INST_DRIVE_ATTEND_SPARF_H

#include "drive/ftl/channels.h"
#include "drive/control/internal.h"

// How large things are for METHOD_SPARF; level 0 is the least that works, SPARF_LEVELS - 1 as much
// as is of use.
enum { SPARF_LEVELS = 6 };
struct sparf_size {
    struct channels_size channels;
    uint32_t group;          // query heads per KV head
    uint64_t tokens;         // S at most; multiple of the tile
    uint32_t units;          // under way
    uint32_t steps;          // under way, of all units
    uint32_t span;           // tokens of one, at most
    uint32_t step_rows;      // of one
    uint32_t step_pages;     // at most
    uint32_t pages;          // page frames for reads, builds included
    uint64_t partial_floats; // of a step
    uint64_t unit_bytes;
    uint64_t bytes; // of everything, channels.bytes included
};
int sparf_size(struct sparf_size *size, const struct flash_geometry *geometry,
               const struct space_config *config, const struct stream *streams, unsigned level,
               struct inst_msg *msg);

int sparf_open(struct space *space, const struct sparf_size *size, struct inst_msg *msg);
void sparf_close(struct sparf *sparf);
struct frames *sparf_pages(const struct sparf *sparf);
uint64_t sparf_bytes(const struct sparf *sparf);
bool sparf_idle(const struct sparf *sparf);

// Refuses an ATTEND that the space was not planned for, and fills in what its header leaves to
// defaults.
int sparf_check(const struct space *space, struct table_header *header, struct inst_msg *msg);
uint64_t sparf_max_tokens(const struct space *space);

void sparf_begin(struct drive *drive, struct job *job); // it has become the active one
bool sparf_fetch(struct drive *drive);                  // true when something moved
// Computes what is ready. *done: the job's last unit has ended.
bool sparf_compute(struct drive *drive, bool *done);
// Reads on behalf of channel rows come from here, too.
struct step_source sparf_source(struct drive *drive, struct space *space);

#endif
