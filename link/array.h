// SPDX-License-Identifier: Apache-2.0
// What the two files of the drive array share. array.c is the machine: requests of the host, their
// parts on the drives, tickets. array_split.c is arithmetic and copying: which drive holds what,
// what a drive gets of a table and of data, what becomes of the drives' answers.
#ifndef INST_LINK_ARRAY_H
#define INST_LINK_ARRAY_H

#include "link/link.h"

enum {
    ARRAY_REQUESTS = 64,
    ARRAY_TICKETS = 64,
    ARRAY_SPACES = 16,
    ARRAY_SEQUENCES = 1 << 20, // sequences have numbers below this
    ARRAY_ALIGN = 64,
};

// What one drive gets of a command with items.
struct cut {
    uint32_t items;                  // 0: nothing
    uint32_t head_first, head_count; // of the host's KV heads
    uint64_t bytes;                  // of the data that goes or comes
    uint64_t at;                     // in the host's data or in the stage
    bool in_place;                   // the data is a part of the host's
    bool append;                     // ATTEND: some item does
};

// One drive's part of a task.
struct part {
    enum { PART_NONE, PART_WAITS, PART_SENT, PART_DONE } state;
    int status;
    uint64_t since_ns; // of waited_ns, when it was sent
    struct command command;
    const void *table;
    void *data;
    struct cut cut;
};

// Commands to the drives that belong together.
struct task {
    struct part *part;    // [drives]
    uint32_t open;        // parts that wait or were sent
    int status;           // what failed first; other failures come before lack of room
    uint64_t result;      // the largest
    struct inst_msg text; // of what failed, or of an item that did
    struct note *notes;   // of the items, at the start of the stage
    unsigned char *stage; // tables and data of parts that lie nowhere else; only grows
    uint64_t stage_bytes;
    bool undoing;      // the parts take back what some drives have done; what failed is known
    struct task *next; // of those with parts that wait
};

// What is remembered of an item.
struct note {
    uint64_t n_tokens;
    uint32_t group;
    bool fresh; // this command has given the sequence its place
};

// Of the space, as the host knows it.
struct shape {
    uint32_t kv_heads, head_dim;
    uint32_t together; // heads that are on one drive
};

struct place {
    uint32_t epoch, group; // group + 1; 0: none
    bool relied;           // by other commands than the one that gave it
};

struct array_space {
    bool used, known; // known: the drives have it
    uint32_t id, groups;
    struct space_config config; // as the host asked
    struct shape shape;
    uint32_t *load;      // [groups] sequences
    struct place *place; // [places], by the number of the sequence
    uint64_t places;
};

// A READ or an ATTEND, for its COLLECT.
struct ticket {
    enum { TICKET_FREE, TICKET_PENDING, TICKET_READY, TICKET_COLLECTING } state;
    uint32_t number, space, count;
    uint8_t opcode;
    uint64_t since_ns; // it was ready
    struct table_header header;
    struct shape shape;
    struct attend_layout layout; // READ: only out_bytes
    struct task task;            // the COLLECTs
    struct request *collector;   // NULL: none, or it has waited long enough
};

struct request {
    enum { REQUEST_FREE, REQUEST_OPEN, REQUEST_HELD, REQUEST_DONE } state;
    struct command command;
    const void *table;
    void *data;
    struct task task;
    struct ticket *ticket;     // of a READ or an ATTEND
    struct array_space *space; // a CONFIG that makes it
    uint64_t deadline_ns;      // COLLECT
    struct completion completion;
    struct request *next; // of those that are done
};

struct array {
    struct link link;
    struct budget *budget;
    uint32_t drives;
    struct link **links;       // [drives]
    char (*name)[64];          // [drives], for messages
    struct drive_stats *stats; // [drives], of the last STAT
    uint32_t *in_flight;       // [drives]
    struct part *parts;        // of all tasks
    struct task *first, **last;
    struct request *done, **done_last;
    uint64_t failed;              // drives that have lost something
    uint64_t late;                // that have not answered in time, and nothing since
    uint64_t limit_ns, waited_ns; // waited_ns: time in poll, since the array was opened
    uint32_t turn;                // of the drive that is waited for next
    struct request request[ARRAY_REQUESTS];
    struct ticket ticket[ARRAY_TICKETS];
    struct array_space space[ARRAY_SPACES];
};

// ---- array_split.c -----------------------------------------------------------------------------

struct array_space *array_space(struct array *a, uint32_t id); // NULL: there is none
int array_space_new(struct array *a, uint32_t id, const struct space_config *config,
                    struct array_space **out, struct inst_msg *msg);
void array_space_end(struct array *a, struct array_space *space);
// What CONFIG says to one drive.
struct space_config array_share_config(const struct array *a, const struct array_space *space,
                                       uint32_t drive);
// A RECLAIM has succeeded: sequences that it ended have no place any more.
void array_reclaimed(struct array_space *space, const struct command *command, const void *table);
// Sequences that a refused command has placed, and nobody else has relied on, lose their places.
void array_unplace(struct array_space *space, const struct request *r);
// A RECLAIM's table of the children that a FORK has placed, which lies in the request's stage, and
// how many there are. NULL: none.
const void *array_unfork(const struct array_space *space, struct request *r, uint32_t *count);

int array_stage(struct array *a, struct task *task, uint64_t bytes, struct inst_msg *msg);
// Fills in the parts of a WRITE, READ, ATTEND or FORK, and the ticket.
int array_split(struct array *a, struct request *r, struct inst_msg *msg);
// The parts of a ticket's COLLECT, for the host's `data`. What the ticket needs outlives its space.
int array_collect(struct array *a, struct ticket *t, unsigned char *data, struct inst_msg *msg);
// What the drives' answers make together, in `data`.
void array_gather(struct array *a, struct ticket *t, unsigned char *data);
void array_merge_identity(struct drive_identity *all, const struct drive_identity *one);

#endif
