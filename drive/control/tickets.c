// SPDX-License-Identifier: Apache-2.0
// Tickets: what READ and ATTEND leave behind until it is collected. A ticket belongs to the owner
// that chose its number. Their number is bounded, and so is their memory: spaces have reserved what
// two full batches need, more is lent while nobody else wants it. A ticket that nobody collects for
// TICKET_MS is given up as soon as another one needs its place or its memory.
#include "drive/control/internal.h"
#include "base/checked.h"

#include <string.h>

static struct job *find(struct drive *drive, uint32_t owner, uint32_t ticket)
{
    for (int i = 0; i < MAX_TICKETS; i++) {
        struct job *job = &drive->jobs[i];
        if (job->state != JOB_FREE && job->owner == owner && job->ticket == ticket)
            return job;
    }
    return NULL;
}

static struct request *find_collect(struct drive *drive, uint32_t owner, uint32_t ticket)
{
    struct request *collect = drive->collects.first;
    while (collect && (collect->owner != owner || collect->command.ticket != ticket))
        collect = collect->next;
    return collect;
}

// ---- memory ------------------------------------------------------------------------------------

static void drop_memory(struct drive *drive, struct job *job)
{
    budget_free(&drive->tickets, job->memory);
    job->memory = NULL;
    job->memory_bytes = 0;
}

// Memory stays with a job that is free, for the next one; what goes beyond the reservation does
// not.
static void ticket_give(struct drive *drive, struct job *job)
{
    job->state = JOB_FREE;
    if (drive->tickets.used > drive->tickets.reserved)
        drop_memory(drive, job);
}

uint64_t tickets_kept(const struct drive *drive)
{
    uint64_t bytes = 0;
    for (int i = 0; i < MAX_TICKETS; i++)
        bytes += drive->jobs[i].state == JOB_FREE ? drive->jobs[i].memory_bytes : 0;
    uint64_t beyond = drive->tickets.used - min_u64(drive->tickets.used, drive->tickets.reserved);
    return min_u64(bytes, beyond);
}

// Nobody waits for the job, or is going to.
static bool idle(const struct job *job)
{
    return job->state == JOB_DONE || (job->state == JOB_ADMITTED && !job_runnable(job));
}

// Gives up the ticket that has been waiting for its COLLECT the longest, if that is too long.
static bool expire_one(struct drive *drive)
{
    struct job *oldest = NULL;
    for (int i = 0; i < MAX_TICKETS; i++) {
        struct job *job = &drive->jobs[i];
        if (idle(job) && drive->now_ns - job->since_ns >= TICKET_MS * 1000000ull &&
            (!oldest || job->since_ns < oldest->since_ns))
            oldest = job;
    }
    if (oldest)
        job_cancel(drive, oldest);
    return oldest != NULL;
}

uint64_t tickets_shrink(struct drive *drive)
{
    uint64_t before = drive->budget.used;
    for (int i = 0; i < MAX_TICKETS; i++) {
        struct job *job = &drive->jobs[i];
        if (job->state == JOB_FREE)
            drop_memory(drive, job);
    }
    return before - drive->budget.used;
}

static int get_memory(struct drive *drive, struct job *job, uint64_t bytes)
{
    struct inst_msg *msg = &drive->msg;
    drop_memory(drive, job);
    do {
        msg->text[0] = 0;
        job->memory = budget_alloc(&drive->tickets, bytes, 1, "a ticket", msg);
    } while (!job->memory && (make_room(drive, bytes) || expire_one(drive)));
    if (!job->memory)
        return INST_ENOMEM;
    job->memory_bytes = bytes;
    return 0;
}

// The free job whose memory fits best; NULL: all are in use.
static struct job *free_job(struct drive *drive, uint64_t bytes)
{
    struct job *best = NULL;
    for (int i = 0; i < MAX_TICKETS; i++) {
        struct job *job = &drive->jobs[i];
        if (job->state != JOB_FREE)
            continue;
        bool fits = job->memory_bytes >= bytes;
        bool better =
            !best || (fits ? best->memory_bytes < bytes || job->memory_bytes < best->memory_bytes
                           : best->memory_bytes < bytes && job->memory_bytes > best->memory_bytes);
        best = better ? job : best;
    }
    return best;
}

// Some ticket that was aborted is about to be free.
static bool ending(const struct drive *drive)
{
    for (int i = 0; i < MAX_TICKETS; i++) {
        if (drive->jobs[i].state == JOB_ADMITTED && drive->jobs[i].cancelled)
            return true;
    }
    return false;
}

// ---- taking one --------------------------------------------------------------------------------

// Where items, q, partials and result lie, one behind the other.
static bool lay_out(const struct job_size *size, uint32_t count, uint64_t *q, uint64_t *partials,
                    uint64_t *result, uint64_t *bytes)
{
    return checked_round_up(count * sizeof(struct job_item), 64, q) &&
           checked_mul(size->q_floats, sizeof(float), partials) &&
           checked_add(*q, *partials, partials) && checked_round_up(*partials, 64, partials) &&
           checked_mul(size->partial_floats, sizeof(float), result) &&
           checked_add(*partials, *result, result) && checked_round_up(*result, 64, result) &&
           checked_add(*result, size->result_bytes, bytes);
}

int ticket_free(struct drive *drive, const struct request *request)
{
    const struct command *c = &request->command;
    return find(drive, request->owner, c->ticket)
               ? inst_fail(&drive->msg, INST_EEXIST, "%s: ticket %u is in use",
                           opcode_name(c->opcode), c->ticket)
               : 0;
}

int ticket_take(struct drive *drive, const struct request *request, struct space *space,
                const struct table_header *header, const struct job_size *size, struct job **out)
{
    const struct command *c = &request->command;
    uint64_t q, partials, result, bytes;
    int status = ticket_free(drive, request);
    if (status)
        return status;
    if (!lay_out(size, c->count, &q, &partials, &result, &bytes))
        return inst_fail(&drive->msg, INST_EINVAL, "%s: sizes overflow", opcode_name(c->opcode));
    struct job *job = free_job(drive, bytes);
    while (!job && expire_one(drive))
        job = free_job(drive, bytes);
    if (!job && ending(drive))
        return WAIT;
    if (!job)
        return inst_fail(&drive->msg, INST_ENORESOURCE, "%s: all %d tickets are in use",
                         opcode_name(c->opcode), MAX_TICKETS);
    status = job->memory_bytes < bytes ? get_memory(drive, job, bytes) : 0;
    if (status)
        return status;
    uint8_t *memory = job->memory;
    *job = (struct job){
        .opcode = c->opcode,
        .owner = request->owner,
        .ticket = c->ticket,
        .space = space,
        .layer = c->layer,
        .count = c->count,
        .header = *header,
        .items = (struct job_item *)memory,
        .q = (float *)(memory + q),
        .partials = (float *)(memory + partials),
        .result = memory + result,
        .memory = memory,
        .memory_bytes = job->memory_bytes,
    };
    memset(job->items, 0, c->count * sizeof *job->items);
    *out = job;
    return 0;
}

// ---- COLLECT -----------------------------------------------------------------------------------

int collect_begin(struct drive *drive, struct request *request)
{
    const struct command *c = &request->command;
    uint32_t n = 0;
    for (const struct request *r = drive->collects.first; r; r = r->next)
        n++;
    if (find_collect(drive, request->owner, c->ticket))
        return inst_fail(&drive->msg, INST_EEXIST, "COLLECT: ticket %u is being collected",
                         c->ticket);
    if (n == MAX_TICKETS)
        return inst_fail(&drive->msg, INST_ENORESOURCE, "COLLECT: %d are waiting", MAX_TICKETS);
    uint64_t ms = c->timeout_ms ? c->timeout_ms : TICKET_MS;
    request->deadline_ns = drive->now_ns + ms * 1000000;
    request_append(&drive->collects, request);
    return 0;
}

// True: the request has completed.
static bool serve(struct drive *drive, struct request *request)
{
    const struct command *c = &request->command;
    struct job *job = find(drive, request->owner, c->ticket);
    struct inst_msg msg = {0};
    if (job && job->cancelled) {
        inst_fail(&msg, INST_ECANCELLED, "COLLECT: ticket %u was aborted", c->ticket);
        if (job->state != JOB_DONE)
            return false; // it may still write to the data
        complete(drive, request, INST_ECANCELLED, 0, &msg);
        ticket_give(drive, job);
        return true;
    }
    if (job && c->length < job->layout.out_bytes) {
        inst_fail(&msg, INST_EINVAL, "COLLECT: ticket %u needs %llu bytes", job->ticket,
                  (unsigned long long)job->layout.out_bytes);
        complete(drive, request, INST_EINVAL, 0, &msg);
        return true;
    }
    if (job && job->state == JOB_DONE) {
        if (job->opcode == OP_ATTEND)
            memcpy(request->data, job->result, job->layout.out_bytes);
        // READ fails as a whole; the items of an ATTEND have codes, this is the text beside them.
        complete(drive, request, job->opcode == OP_READ ? job->status : 0, job->layout.out_bytes,
                 &job->error);
        ticket_give(drive, job);
        return true;
    }
    if (job && job->opcode == OP_READ && !job->dest) {
        job->dest = request->data;
        drive->runnable = true;
    }
    // Without a time of its own it waits no longer than that for the ticket to come, then for as
    // long as the work takes. A READ that copies into the data is not interrupted: it ends by
    // itself.
    bool limited = !job || (c->timeout_ms && !job->dest);
    if (!limited || drive->now_ns < request->deadline_ns)
        return false;
    inst_fail(&msg, INST_ETIMEOUT, "COLLECT: ticket %u did not come in %u ms", c->ticket,
              c->timeout_ms ? c->timeout_ms : TICKET_MS);
    complete(drive, request, INST_ETIMEOUT, 0, &msg);
    return true;
}

void collect_serve(struct drive *drive)
{
    struct request *next, *request = drive->collects.first;
    drive->collects = (struct request_list){.last = &drive->collects.first};
    for (; request; request = next) {
        next = request->next;
        if (serve(drive, request))
            drive->runnable = true;
        else
            request_append(&drive->collects, request);
    }
}

// ---- giving up ---------------------------------------------------------------------------------

void job_cancel(struct drive *drive, struct job *job)
{
    if (job->state == JOB_DONE) {
        ticket_give(drive, job);
        return;
    }
    job->cancelled = true;
    for (uint32_t i = 0; i < job->count; i++) {
        if (!job->items[i].status)
            job->items[i].status = INST_ECANCELLED;
    }
    if (!job->units) // none has begun, or all have ended
        job->item_at = job->count;
    finish_jobs(drive);
    drive->runnable = true;
}

void ticket_done(struct drive *drive, struct job *job)
{
    job->state = JOB_DONE;
    job->since_ns = drive->now_ns;
    if (job->cancelled && !find_collect(drive, job->owner, job->ticket))
        ticket_give(drive, job);
}

int do_abort(struct drive *drive, const struct request *request, uint64_t *result)
{
    uint32_t ticket = request->command.ticket;
    struct job *job = find(drive, request->owner, ticket);
    struct request *r = drive->queue.first;
    while (r && (r->owner != request->owner || r->command.ticket != ticket ||
                 (r->command.opcode != OP_READ && r->command.opcode != OP_ATTEND)))
        r = r->next;
    struct inst_msg msg = {0};
    *result = job || r;
    if (r) { // READ or ATTEND that is not admitted yet; what it appended stays
        request_remove(&drive->queue, r);
        request_end(drive, r, INST_ECANCELLED);
        if (r->job)
            ticket_give(drive, r->job);
        inst_fail(&msg, INST_ECANCELLED, "%s: ticket %u was aborted",
                  opcode_name(r->command.opcode), ticket);
        complete(drive, r, INST_ECANCELLED, 0, &msg);
    }
    if (!job || (r && r->job))
        return 0;
    job_cancel(drive, job);
    return 0;
}

// Drops the owner's requests of a list.
static void forget(struct drive *drive, struct request_list *list, uint32_t owner)
{
    for (struct request *next, *r = list->first; r; r = next) {
        next = r->next;
        if (r->owner != owner)
            continue;
        request_remove(list, r);
        if (list == &drive->queue) {
            request_end(drive, r, INST_ECANCELLED);
            if (r->job)
                ticket_give(drive, r->job);
        }
        request_append(&drive->free, r);
    }
}

bool drive_abort(struct drive *drive, uint32_t owner)
{
    forget(drive, &drive->queue, owner);
    forget(drive, &drive->collects, owner);
    forget(drive, &drive->done, owner);
    bool clear = true;
    for (int i = 0; i < MAX_TICKETS; i++) {
        struct job *job = &drive->jobs[i];
        if (job->state == JOB_FREE || job->owner != owner)
            continue;
        job_cancel(drive, job);
        clear &= job->state == JOB_FREE || !job->dest;
    }
    return clear;
}
