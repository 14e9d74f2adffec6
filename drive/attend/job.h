// SPDX-License-Identifier: Apache-2.0
// A job is a READ or an ATTEND from its admission to its COLLECT: what control hands to attend.
// Each of its items is worked on in units (method.h); several jobs are in progress at a time, the
// oldest first in line for frames.
#ifndef INST_DRIVE_ATTEND_JOB_H
#define INST_DRIVE_ATTEND_JOB_H

#include "drive/command.h"
#include "drive/ftl/space.h"

struct method;

struct job_item {
    struct sequence *sequence; // NULL once the job lets go of it
    uint64_t first, end;       // tokens wanted
    uint64_t window;           // ATTEND: the first one that counts, in the tile of `first`
    uint64_t offset;           // READ: of the item's slab in the destination
    uint32_t units;            // that have not ended
    // Attended so far, summed over KV heads; of these, in rows on flash, on their way there
    uint64_t attended, from_flash, programming;
    int status;
};

enum job_state { JOB_FREE, JOB_ADMITTED, JOB_DONE };

struct job {
    enum job_state state;
    uint8_t opcode; // OP_READ or OP_ATTEND
    uint32_t owner, ticket;
    const struct method *method;
    struct space *space;
    uint32_t layer, count;
    struct table_header header;
    struct job_item *items;
    struct attend_layout layout; // ATTEND
    float *q;                    // ATTEND: [count][q_heads][head_dim]
    float *partials;             // ATTEND: [count][q_heads]
    uint8_t *result;             // ATTEND: layout.out_bytes
    uint8_t *dest;               // READ: where COLLECT wants it, NULL = no COLLECT yet
    int status;                  // READ: of the whole
    bool cancelled;              // nobody wants the result
    uint64_t since_ns;           // READ: when it was admitted; once it has ended: when that was
    struct inst_msg error;       // of the first item that failed
    uint32_t item_at, head_at;   // of the next unit
    uint32_t units;              // started and not ended
    struct job *next;            // FIFO of jobs that are not done
    void *memory;                // items .. result; kept for the next job
    uint64_t memory_bytes;
};

// Ends an item of a job because of a row of a stream; what went wrong first is kept.
void item_failed(struct job *job, uint32_t item, int status, uint32_t stream, uint64_t index);

#endif
