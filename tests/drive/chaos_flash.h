// SPDX-License-Identifier: Apache-2.0
// Flash for tests of the drive that keeps the contract and no more: operations take as long as it
// pleases, finish in any order, and fail. What is drawn comes from the caller's chance, so a run
// can be repeated. Operations on one block take effect in the order of their submission, as late as
// their completion; a buffer that is being read into holds garbage until then. Single operations
// can be held back, made to fail and pages made to rot on purpose. Where it has OOB, records are
// looked at as late as data are.
#ifndef INST_TESTS_DRIVE_CHAOS_FLASH_H
#define INST_TESTS_DRIVE_CHAOS_FLASH_H

#include "chance.h"
#include "drive/flash/flash.h"

enum { CHAOS_EVER = 1 << 16, CHAOS_GOOD_PROGRAMS = 512 };

// Chances are in 1 / CHAOS_EVER of each operation.
struct chaos_plan {
    uint32_t polls;            // an operation takes up to so many
    uint32_t slow, slow_polls; // chance to take up to slow_polls instead
    uint32_t read_error;       // EIO, garbage in the buffer
    uint32_t bit_flip;         // one bit of what is read, status 0
    uint32_t rot;              // one bit of what is stored, from the read on
    uint32_t
        program_error; // EIO: pages are used up, their contents anything; see CHAOS_GOOD_PROGRAMS
    uint32_t no_space; // ENOSPC: the same
    uint32_t erase_error; // EIO: the block is as it was
    uint32_t sync_error;
};

struct chaos_counters {
    uint64_t operations;
    uint64_t violations;     // of the NAND contract
    uint64_t bad_records;    // programmed in OOB with a page that is not theirs
    uint64_t bad_reads;      // finished with an error or wrong data
    uint64_t wrong_data;     // of these, those with status 0
    uint64_t program_faults; // finished
    uint64_t erase_faults, sync_faults;
    uint64_t bad_stripes; // blocks b .. b + dies - 1 of which an erase failed
    uint64_t blocks_used; // 1 + the highest block ever programmed
};

// views: pages can be looked at in place (then only programs and erases take time).
int chaos_open(struct flash **out, const struct flash_geometry *geometry, struct chance *chance,
               bool views, struct inst_msg *msg);
void chaos_set(struct flash *flash, const struct chaos_plan *plan);
// On: everything in flight and to come takes effect at the next poll, without faults; nothing is
// held.
void chaos_calm(struct flash *flash, bool on);
const struct chaos_counters *chaos_count(const struct flash *flash);
uint32_t chaos_in_flight(const struct flash *flash); // submitted and not polled back
uint32_t chaos_held(const struct flash *flash);      // of these, those that wait for a release

// On purpose. Holds operations of this kind on a block (UINT64_MAX: on any) until the release.
void chaos_hold(struct flash *flash, enum flash_op op, uint64_t block);
void chaos_release(struct flash *flash);
// After `skip` operations of this kind, the next `count` finish with status.
void chaos_fail(struct flash *flash, enum flash_op op, int status, uint32_t skip, uint32_t count);
// Flips a bit of a programmed page; false when it is none.
bool chaos_rot(struct flash *flash, uint64_t block, uint32_t page);

#endif
