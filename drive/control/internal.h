// SPDX-License-Identifier: Apache-2.0
// What the parts of the drive share: the controller (control.c: commands, tickets), fetch.c
// (rows into DRAM) and dense.c (the mathematics on rows that are there).
//
// A job is a READ or an ATTEND from its admission to its COLLECT. One job at a time is active; its
// tokens are cut into spans of max(T, 64), which are fetched in ascending order into a ring, used
// as soon as their rows are there, in any order, and folded in ascending order.
#ifndef INST_DRIVE_CONTROL_INTERNAL_H
#define INST_DRIVE_CONTROL_INTERNAL_H

#include "drive/drive.h"
#include "drive/ftl/space.h"

enum {
    MAX_TICKETS = 64,
    MAX_PENDING = 128,
    MAX_ITEMS = 4096,
    MAX_GROUP_HEADS = 256, // query heads of one KV head
    SPANS_MAX = SPAN_LIMIT_MAX,
    SPAN_ROWS_MAX = ATTENTION_TILE / GROUP_MIN,
};

struct job_item {
    struct sequence *sequence; // NULL once the job lets go of it
    uint64_t first, end;       // tokens wanted
    uint64_t window;           // ATTEND: the first one that counts, in the tile of `first`
    uint64_t offset;           // READ: of the item's slab in the destination
    uint32_t units;            // sparf: those that have not ended
    uint64_t flash_tokens, programming_tokens; // sparf: chosen, summed over KV heads
    int status;
};

enum job_state { JOB_FREE, JOB_ADMITTED, JOB_DONE };

struct job {
    enum job_state state;
    uint8_t opcode; // OP_READ or OP_ATTEND
    uint32_t owner, ticket;
    struct space *space;
    uint32_t layer, count;
    struct table_header header;
    struct job_item *items;
    struct attend_layout layout; // ATTEND
    float *q;                    // ATTEND: [count][q_heads][head_dim]
    float *partials;             // ATTEND: [count][q_heads]
    uint64_t span_floats;        // ATTEND: partials of one span
    uint8_t *result;             // ATTEND: layout.out_bytes
    uint8_t *dest;               // READ: where COLLECT wants it, NULL = no COLLECT yet
    int status;                  // READ: of the whole
    struct inst_msg error;       // of the first item that failed
    uint32_t fetch_item;         // next span to fetch
    uint64_t fetch_token;
    uint32_t ahead_item; // next row to read ahead while the job is not active
    uint64_t ahead_group;
    struct job *next; // FIFO of jobs that are not done
    void *memory;     // items .. result; kept for the next job
    uint64_t memory_bytes;
};

struct span {
    uint32_t item;
    uint32_t tokens, n_rows;
    uint64_t first;                      // token
    uint32_t have;                       // rows acquired
    uint32_t from_flash, programming;    // tokens: in rows on flash; of these, on their way there
    struct frame *frames[SPAN_ROWS_MAX]; // NULL: viewed in place
    struct place places[SPAN_ROWS_MAX];
    const uint8_t *rows[SPAN_ROWS_MAX];
    bool computed;
    int status;
    float *partials; // [tiles][q_heads]
};

// Decode visits the layers in turn with the same sequences, and dense reads do not depend on q: so
// the rows of the next layers can be read before their ATTEND comes.
struct prediction {
    bool valid;
    struct space *space;
    uint32_t layer;    // of the last ATTEND
    uint32_t distance; // layers ahead of it that are being read, 1 to layers
    uint32_t count, capacity;
    uint32_t item;
    uint64_t group;
    struct prediction_item {
        uint32_t seq, epoch;
    } * items;
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
    bool views, read_ahead;
    struct segments *segments;
    struct space *spaces;
    struct pending pending[MAX_PENDING]; // ring
    uint32_t pending_first, n_pending;
    struct collect collects[MAX_TICKETS];
    struct job jobs[MAX_TICKETS];
    struct job *first_job, **last_job;
    struct job *active;
    struct span spans[SPANS_MAX]; // ring
    uint32_t first_span, n_spans, max_spans;
    float *span_partials; // of the active job's spans
    uint64_t span_partial_floats;
    struct batch *batch; // dense.c
    struct prediction prediction;
    struct flash_io sync_io;
    bool syncing;
    struct completion done[MAX_PENDING + MAX_TICKETS]; // ring
    uint32_t first_done, n_done;
    uint64_t view_bytes, attended, attended_from_flash, attended_programming, checksum_errors,
        write_wait_ns;
    struct inst_msg msg; // of the command at work
    uint64_t busy_ns;    // when a command or a job was last there
    bool runnable;
};

// fetch.c
// Picks the active job and acquires rows for its spans; true when something moved.
bool fetch_demand(struct drive *drive);
void fetch_ahead(struct drive *drive);
void fetch_release(struct drive *drive, struct span *span);
// Ends an item of a job because of a group of a stream; what went wrong first is kept.
void item_failed(struct job *job, uint32_t item, int status, uint32_t stream, uint64_t group);
void predict_next(struct drive *drive, const struct job *job);
bool span_ready(const struct span *span);

// reclaim.c
// Gives up the range of a RECLAIM item. 1: wait for jobs that look at it; asking again is harmless.
int reclaim_range(struct drive *drive, struct space *space, const struct table_item *item);

// counters.c
int counters_stat(struct drive *drive, const struct command *command, uint8_t *data);
int counters_identify(struct drive *drive, const struct command *command, uint8_t *data);

// dense.c
// Verifies, computes and folds what is ready; true when something moved. A finished job becomes
// JOB_DONE.
bool attention_step(struct drive *drive);
int attention_open(struct drive *drive, struct inst_msg *msg);
// Memory for an ATTEND of this shape. 1: wait until the active job is done.
int attention_prepare(struct drive *drive, struct job *job, struct inst_msg *msg);

static inline bool job_is_sparf(const struct job *job)
{
    return job->opcode == OP_ATTEND && job->header.method == METHOD_SPARF;
}

static inline struct span *ring_span(struct drive *drive, uint32_t i)
{
    return &drive->spans[(drive->first_span + i) % drive->max_spans];
}

#endif
