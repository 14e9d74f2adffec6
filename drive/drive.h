// SPDX-License-Identifier: Apache-2.0
// The drive: a state machine fed with commands, `now` and finished flash operations. Submit and
// step never block, read no clock and own no thread; computation inside a step is spread over the
// pool that was handed in. One thread at a time uses a drive.
#ifndef INST_DRIVE_DRIVE_H
#define INST_DRIVE_DRIVE_H

#include "base/budget.h"
#include "base/pool.h"
#include "drive/command.h"
#include "drive/flash/flash.h"
#include "drive/selection.h"
#include "kernels/kernels.h"

struct drive;
struct engine;
struct method;

struct drive_limits {
    uint64_t dram_bytes;           // everything the drive allocates comes from here
    struct pool *pool;             // its scratch memory is reserved at CONFIG and ATTEND
    const struct kernels *kernels; // NULL: kernels_best()
    struct engine *engine;         // NULL: the pool; stays the caller's
    // Methods beside those that the drive brings, NULL behind the last one. NULL: none.
    const struct method *const *methods;
    uint64_t row_cache; // unused rows and pages that are remembered, in bytes; 0: as many as fit
    bool no_row_cache;  // for measurements
    bool no_read_ahead; // for measurements
    drive_selection_fn *selected; // NULL, or told of every choice, in drive_step
    void *selected_user;
};

// The flash stays the caller's and must outlive the drive.
int drive_open(struct drive **out, struct flash *flash, const struct drive_limits *limits,
               struct inst_msg *msg);
// Ends at once; waits for flash operations in flight, forgets every ticket.
void drive_close(struct drive *drive);
// Before it, for who does not want to wait for ever: nothing is begun any more. True: flash holds
// nothing of the drive's, and drive_close does not wait.
bool drive_ends(struct drive *drive);

// Hands over a command of `owner`, a connection: tickets and cids of different owners have nothing
// to do with each other. The table and the data (the entry's `length` bytes, 64-byte aligned) stay
// the caller's, unchanged and alive, until the completion. Fails with INST_ENORESOURCE when the
// queue is full: step and try again.
int drive_submit(struct drive *drive, uint32_t owner, const uint8_t entry[COMMAND_BYTES],
                 const void *table, size_t table_bytes, void *data, uint64_t now_ns);

// The owner has gone: its commands complete no more, its tickets are given up. False: arithmetic
// may still write to its data; step and ask again.
bool drive_abort(struct drive *drive, uint32_t owner);

// Does what can be done now; returns how many completions it stored.
size_t drive_step(struct drive *drive, uint64_t now_ns, struct completion *out, size_t max);

// True when step can do more without a flash operation finishing or time passing.
bool drive_runnable(const struct drive *drive);

// When step can do more, as far as flash and arithmetic say: at or before the last time handed in
// also where flash is busy and does not know, UINT64_MAX when nothing is under way. Where time is
// virtual it goes on to there. (Time limits of COLLECTs and tickets are not counted.)
uint64_t drive_next_ns(const struct drive *drive);

// For tests: do the parts of the drive agree with each other? INST_EINTERNAL says where not.
int drive_check(struct drive *drive, struct inst_msg *msg);

// What a space needs: pure arithmetic, for hosts that must say so before they start.
struct drive_plan {
    uint32_t group_tokens;
    uint32_t page_channels; // 0 where no method needs K by channel
    uint64_t row_bytes;     // padded to pages
    // With the least read window that works, group buffers of max_sequences, and maps of max_tokens
    // tokens, in one sequence or in several: CONFIG promises that.
    uint64_t min_dram_bytes;
    // With a read window that keeps the device busy and maps of max_sequences full sequences, and
    // no row cache.
    uint64_t good_dram_bytes;
    uint64_t flash_bytes;     // for max_sequences x max_tokens, summaries included
    uint64_t full_bytes;      // of these, what they take when each token is written once
    uint64_t full_dram_bytes; // with all of max_sequences x max_tokens in the row cache
};
// config->group_tokens 0: the largest group whose buffers fit in dram_bytes (0 = do not care) and
// whose rows are no larger than the device's best read.
int drive_plan(struct drive_plan *plan, const struct flash_geometry *geometry,
               const struct space_config *config, uint64_t dram_bytes, struct inst_msg *msg);

// Geometry of a private store for one space: pages and blocks that fit its rows, in blocks of
// about block_bytes (0 = default), for a capacity of capacity_bytes. Rows need the group: a config
// with group_tokens 0 gets one chosen as in drive_plan.
int drive_geometry_for(struct flash_geometry *geometry, const struct space_config *config,
                       uint64_t capacity_bytes, uint64_t dram_bytes, struct inst_msg *msg);

#endif
