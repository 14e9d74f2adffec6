// SPDX-License-Identifier: Apache-2.0
// What the files of control/ share. A command is a *request* from its submission until somebody has
// fetched its completion. control.c is the machine: it queues requests, admits them in order and
// hands completions out. What a command does is in config.c, write.c, jobs.c and sequences.c; what
// READ and ATTEND leave behind, in tickets.c.
//
// Handlers return 0, INST_E*, or WAIT: not now, the request stays at the head of the queue and is
// asked again. A command that is refused has changed nothing.
#ifndef INST_DRIVE_CONTROL_INTERNAL_H
#define INST_DRIVE_CONTROL_INTERNAL_H

#include "drive/attend/walk.h"
#include "drive/drive.h"

enum {
    MAX_TICKETS = 64,
    MAX_REQUESTS = 128,
    MAX_ITEMS = 4096,
    TICKET_MS = 60000,
};

// How the DRAM of a space is divided.
struct control_plan {
    struct stream streams[STREAM_MAX];
    unsigned level;
    uint64_t tables;      // of the flash's segments
    uint64_t tickets;     // for two full batches
    uint64_t more_tables; // beyond those, with all sequences at full length
    uint64_t more;        // and maps
    uint64_t own;         // of the space without its pool: methods and maps
    // To the space: that, and of the pool what is never given back: group buffers, the least number
    // of slabs, and what describes the others.
    uint64_t promised;
    uint64_t fixed;       // all but the pool, tables included
    uint64_t flash_bytes; // for max_sequences x max_tokens
    uint64_t once_bytes;  // of these, what they take when each token is written once
    uint32_t open;        // group buffers
    uint32_t reserve;     // slabs that appends leave to others
    uint32_t ahead;       // that may be read ahead
    bool single_pages;
    uint64_t window; // bytes of the pieces that a method may have under way
    size_t scratch;  // of each worker
    struct frames_size frames;
    uint64_t min_bytes, good_bytes, full_bytes;
};

struct request {
    struct command command;
    uint32_t owner;
    const uint8_t *table;
    size_t table_bytes;
    uint8_t *data;
    struct request *next;         // of its list
    struct completion completion; // once it is done
    uint64_t deadline_ns;         // COLLECT
    // How far it has come
    struct job *job;   // ATTEND that has begun
    uint64_t serial;   // of the youngest sequence there was before it
    uint32_t item;     // the next one
    uint64_t done;     // of it: WRITE: tokens; FORK: layers, once its child exists one more
    uint64_t stored;   // WRITE: tokens that were there before it
    uint64_t since_ns; // waiting
    bool waiting, begun, synced;
};

struct request_list {
    struct request *first, **last;
};

struct drive {
    struct flash *flash;
    struct pool *pool;
    const struct kernels *kernels;
    struct budget budget;
    struct budget tickets; // the part of it for what jobs need
    struct budget tables;  // and for what the allocation of flash needs
    uint64_t own_bytes;    // of the budget, before any space,
    uint64_t own_tables;   // and of `tables`
    uint64_t row_cache;    // bytes
    bool read_ahead;
    struct attend_env env;
    struct engine *own_engine; // NULL: the caller's
    struct segments *segments;
    struct space *spaces;
    struct request requests[MAX_REQUESTS];
    // Where they are: not in use, not admitted yet, COLLECTs that wait, done
    struct request_list free, queue, collects, done;
    struct job jobs[MAX_TICKETS];
    struct job *first_job, **last_job;
    struct flash_io sync_io;
    bool syncing;
    uint64_t write_wait_ns;
    struct inst_msg msg; // of the command at work
    uint64_t now_ns;     // as the caller said last
    uint64_t work;       // bytes that commands have moved in this step
    uint64_t busy_ns;    // when a command or a job was last there
    bool runnable, closing;
};

// plan.c
// *config: what it leaves to the drive (but the token group) is filled in. dram 0: only the
// figures, no pool.
int control_plan(struct control_plan *plan, const struct attend_env *env,
                 const struct flash_geometry *geometry, struct space_config *config, uint64_t dram,
                 bool cache, struct inst_msg *msg);

// control.c
struct space *find_space(const struct drive *drive, uint32_t id);
// Checks what WRITE, READ, ATTEND, FORK and RECLAIM have in common.
int check_table(struct drive *drive, const struct request *request, struct space **space,
                struct table_header *header);
// Adds the item's slab to *end; false when sizes overflow or tokens do not fit in 32-bit groups.
bool item_slab(const struct space *space, const struct table_header *header,
               const struct table_item *item, uint64_t *end);
// A derived stream of the space has something to do in the background.
bool streams_working(const struct space *space);
// The request has completed; the text is its own, NULL: none.
void complete(struct drive *drive, struct request *request, int status, uint64_t result,
              const struct inst_msg *text);
// A step does a bounded amount of work: true when this one has done its part. The handler returns
// WAIT and is asked again in the next step.
bool enough(struct drive *drive);
// Somebody is refused DRAM: what is only kept gives way. False: there is nothing.
bool make_room(struct drive *drive, uint64_t bytes);
// What INST_ENOMEM is to a command: WAIT while something is under way that will let go of memory,
// else INST_ENORESOURCE. Other codes stay what they are.
int no_room(const struct drive *drive, int status);
void request_append(struct request_list *list, struct request *request);
void request_remove(struct request_list *list, struct request *request);

// Handlers
int do_config(struct drive *drive, struct request *request, uint64_t *result);
int do_remove(struct drive *drive, const struct request *request);
int do_write(struct drive *drive, struct request *request);
// The request's sequences that are there, from its first item to the one before `items`; of these,
// `made`: it has created them.
typedef void request_sequence_fn(struct space *space, struct sequence *sequence, bool made,
                                 const struct request *request);
void request_sequences(struct space *space, const struct request *request, uint32_t items,
                       request_sequence_fn *fn);
// A request leaves the queue: what it holds goes back and, where it fails or is aborted, what it
// has made. Only here: a handler that ran out of memory is asked again.
void request_end(struct drive *drive, struct request *request, int status);
int do_read(struct drive *drive, struct request *request);
int do_attend(struct drive *drive, struct request *request);
int do_fork(struct drive *drive, struct request *request);
void fork_undo(struct space *space, const struct request *request);
int do_reclaim(struct drive *drive, struct request *request);

// jobs.c
bool finish_jobs(struct drive *drive); // those that have ended; true when there were any
// A READ runs only when somebody waits for its data, so that it cannot hold frames for ever.
bool job_runnable(const struct job *job);

// tickets.c
// Memory of a job, which its parts are laid out in.
struct job_size {
    uint64_t q_floats, partial_floats, result_bytes;
};
int ticket_free(struct drive *drive, const struct request *request); // INST_EEXIST
// A job for the ticket that the request names.
int ticket_take(struct drive *drive, const struct request *request, struct space *space,
                const struct table_header *header, const struct job_size *size, struct job **out);
uint64_t tickets_shrink(struct drive *drive);     // memory that free jobs keep; returns how much
uint64_t tickets_kept(const struct drive *drive); // that it would give
void ticket_done(struct drive *drive, struct job *job); // the job has ended
// Ends a job without a result, as soon as no arithmetic looks at it.
void job_cancel(struct drive *drive, struct job *job);
int collect_begin(struct drive *drive, struct request *request);
void collect_serve(struct drive *drive);
// *result = whether there was such a ticket
int do_abort(struct drive *drive, const struct request *request, uint64_t *result);

// counters.c
int counters_stat(struct drive *drive, const struct command *command, uint8_t *data);
int counters_identify(struct drive *drive, const struct command *command, uint8_t *data);

#endif
