// SPDX-License-Identifier: Apache-2.0
// What the files of control/ share: the state machine of the drive (control.c: commands, tickets),
// its plan of memory, and how ranges are given up.
#ifndef INST_DRIVE_CONTROL_INTERNAL_H
#define INST_DRIVE_CONTROL_INTERNAL_H

#include "drive/attend/walk.h"
#include "drive/drive.h"

enum {
    MAX_TICKETS = 64,
    MAX_PENDING = 128,
    MAX_ITEMS = 4096,
};

// How the DRAM of a space is divided.
struct control_plan {
    struct stream streams[STREAM_MAX];
    unsigned level;
    uint64_t tables;      // of the flash's segments
    uint64_t fixed;       // all but the pool, tables included
    uint64_t flash_bytes; // for max_sequences x max_tokens
    uint64_t once_bytes;  // of these, what they take when each token is written once
    uint32_t open;        // group buffers
    uint32_t reserve;     // slabs that appends leave to others
    uint32_t ahead;       // that may be read ahead
    bool single_pages;
    uint64_t window; // bytes of the pieces that all methods may have under way
    size_t scratch;  // of each worker
    struct frames_size frames;
    uint64_t bytes; // as it was made
    uint64_t min_bytes, good_bytes, full_bytes;
};

struct pending {
    struct command command;
    uint32_t owner;
    const uint8_t *table;
    size_t table_bytes;
    uint8_t *data;
    struct job *job;   // ATTEND that has begun
    uint32_t item;     // progress
    uint64_t done;     // tokens of the item
    uint64_t stored;   // WRITE: tokens that were there before the item
    uint64_t since_ns; // waiting
    bool waiting, begun, synced;
    int result_status;
};

struct collect {
    struct command command;
    uint32_t owner;
    uint8_t *data;
    uint64_t deadline_ns; // UINT64_MAX = none
    bool used;
};

struct drive {
    struct flash *flash;
    struct pool *pool;
    const struct kernels *kernels;
    struct budget budget;
    uint64_t own_bytes; // of the budget, before any space
    uint64_t row_cache; // bytes
    bool read_ahead;
    struct attend_env env;
    struct engine *own_engine; // NULL: the caller's
    struct segments *segments;
    struct space *spaces;
    struct pending pending[MAX_PENDING]; // ring
    uint32_t pending_first, n_pending;
    struct collect collects[MAX_TICKETS];
    struct job jobs[MAX_TICKETS];
    struct job *first_job, **last_job;
    struct flash_io sync_io;
    bool syncing;
    struct completion done[MAX_PENDING + MAX_TICKETS]; // ring
    uint32_t first_done, n_done;
    uint64_t write_wait_ns;
    struct inst_msg msg; // of the command at work
    uint64_t busy_ns;    // when a command or a job was last there
    bool runnable, closing;
};

// plan.c
void control_methods(struct attend_env *env, const struct method *const *extra);
// *config: what it leaves to the drive (but the token group) is filled in. dram 0: only the
// figures, no pool.
int control_plan(struct control_plan *plan, const struct attend_env *env,
                 const struct flash_geometry *geometry, struct space_config *config, uint64_t dram,
                 bool cache, struct inst_msg *msg);

// control.c
// Checks what WRITE, READ, ATTEND, FORK and RECLAIM have in common.
int check_table(struct drive *drive, const struct pending *pending, struct space **space,
                struct table_header *header);
// Adds the item's slab to *end; false when sizes overflow or tokens do not fit in 32-bit groups.
bool item_slab(const struct space *space, const struct table_header *header,
               const struct table_item *item, uint64_t *end);

// write.c: as all command handlers, 0, an error, or WAIT: not now.
int command_write(struct drive *drive, struct pending *pending);

// reclaim.c
// Gives up the range of a RECLAIM item. 1: wait for jobs that look at it; asking again is harmless.
int reclaim_range(struct drive *drive, struct space *space, const struct table_item *item);

// counters.c
int counters_stat(struct drive *drive, const struct command *command, uint8_t *data);
int counters_identify(struct drive *drive, const struct command *command, uint8_t *data);

#endif
