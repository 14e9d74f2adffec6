// SPDX-License-Identifier: Apache-2.0
// A drive array: a link made of links. To the host it is one drive; every command becomes one about
// the own heads and sequences of each drive (array_split.c), goes to all of them before any is
// waited for, and completes when they all have. Attention of a head needs no other head, so results
// are the same bits as with one drive.
//
// What a drive refuses while others accept:
// - READ, ATTEND: the others are told to ABORT the ticket, a refused one leaves none.
// - CONFIG of a new space, FORK of new sequences: the others give them up again (REMOVE, RECLAIM).
// - WRITE, and what an ATTEND appended: it stays. Sent again the command completes, because for the
//   drives that have done their part it is a repetition (contract 6); a host that gives up instead
//   cuts the sequence with RECLAIM, as after any failure.
// Lack of room on one drive is lack of room of the array; a failure of another kind comes first.
//
// A COLLECT goes to the drives when its READ or ATTEND was accepted by all. Results of an ATTEND
// are gathered in the ticket, so that a COLLECT that times out loses nothing.
#include "link/array.h"
#include "base/checked.h"
#include "base/clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    TICKET_MS = 60000,    // as a drive's
    SLICE_NS = 50 * 1000, // somebody else may have something meanwhile
    POLL_MAX = 16,
    STATE_BYTES = 1024, // of STAT and IDENTIFY, of one drive
    TASKS = ARRAY_REQUESTS + ARRAY_TICKETS,
};

_Static_assert((int)STATE_BYTES >= (int)STAT_TABLE_BYTES, "a drive's counters have room");
_Static_assert((int)STATE_BYTES >= (int)IDENTIFY_TABLE_BYTES, "a drive's identity has room");

static struct array *array_of(const struct link *link)
{
    return (struct array *)link;
}

// ---- tasks -------------------------------------------------------------------------------------

static uint16_t task_number(const struct array *a, const struct task *task)
{
    return (uint16_t)((size_t)(task->part - a->parts) / a->drives);
}

static struct task *task_by_number(struct array *a, uint16_t number)
{
    if (number < ARRAY_REQUESTS)
        return &a->request[number].task;
    return number < ARRAY_REQUESTS + ARRAY_TICKETS ? &a->ticket[number - ARRAY_REQUESTS].task
                                                   : NULL;
}

static void part_done(struct array *a, struct task *task, uint32_t drive, int status,
                      uint64_t result, const char *text)
{
    struct part *part = &task->part[drive];
    bool replaces = status && (!task->status ||
                               (task->status == INST_ENORESOURCE && status != INST_ENORESOURCE));
    part->state = PART_DONE;
    part->status = status;
    task->open--;
    a->failed |= (uint64_t)inst_status_is_loss(status) << drive;
    if (task->undoing) // what failed first is the cause
        return;
    task->result = max_u64(task->result, result);
    if (!replaces && (status || !*text || task->text.text[0]))
        return;
    if (status)
        task->status = status;
    task->text.text[0] = 0;
    inst_fail(&task->text, status, "%s: %s", a->name[drive],
              *text ? text : inst_status_text(status));
}

static void enqueue(struct array *a, struct task *task)
{
    task->next = NULL;
    *a->last = task;
    a->last = &task->next;
}

// Sends the parts that the caller has filled in, as soon as the drives take them.
static void task_send(struct array *a, struct task *task)
{
    task->open = 0;
    for (uint32_t i = 0; i < a->drives; i++) {
        if (task->part[i].state != PART_WAITS)
            continue;
        task->part[i].command.cid = task_number(a, task);
        task->open++;
    }
    enqueue(a, task);
}

static void task_clear(struct array *a, struct task *task)
{
    for (uint32_t i = 0; i < a->drives; i++)
        task->part[i] = (struct part){.state = PART_NONE};
    task->open = 0;
    task->undoing = false;
    task->status = 0;
    task->result = 0;
    task->text.text[0] = 0;
}

// ---- requests ----------------------------------------------------------------------------------

static void complete(struct array *a, struct request *r, int status, uint64_t result,
                     const struct inst_msg *text)
{
    r->state = REQUEST_DONE;
    r->completion = (struct completion){.cid = r->command.cid, .status = status, .result = result};
    if (text)
        snprintf(r->completion.text, sizeof r->completion.text, "%.*s", COMPLETION_TEXT_BYTES - 1,
                 text->text);
    r->next = NULL;
    *a->done_last = r;
    a->done_last = &r->next;
}

static struct ticket *find_ticket(struct array *a, uint32_t number)
{
    for (int i = 0; i < ARRAY_TICKETS; i++) {
        if (a->ticket[i].state != TICKET_FREE && a->ticket[i].number == number)
            return &a->ticket[i];
    }
    return NULL;
}

static struct request *find_collect(struct array *a, uint32_t number)
{
    for (int i = 0; i < ARRAY_REQUESTS; i++) {
        struct request *r = &a->request[i];
        if (r->state == REQUEST_HELD && r->command.ticket == number)
            return r;
    }
    return NULL;
}

// Nobody waits for it, and no drive is at work for it.
static bool idle(const struct ticket *t)
{
    return t->state == TICKET_READY ||
           (t->state == TICKET_COLLECTING && !t->collector && !t->task.open);
}

// A free one, or one that nobody has collected for too long: the drives give it up by themselves.
static struct ticket *free_ticket(struct array *a)
{
    struct ticket *oldest = NULL;
    for (int i = 0; i < ARRAY_TICKETS; i++) {
        struct ticket *t = &a->ticket[i];
        if (t->state == TICKET_FREE)
            return t;
        if (idle(t) && clock_ns() - t->since_ns >= TICKET_MS * 1000000ull &&
            (!oldest || t->since_ns < oldest->since_ns))
            oldest = t;
    }
    return oldest;
}

static int take_ticket(struct array *a, struct request *r, struct inst_msg *msg)
{
    const struct command *c = &r->command;
    if (find_ticket(a, c->ticket))
        return inst_fail(msg, INST_EEXIST, "%s: ticket %u is in use", opcode_name(c->opcode),
                         c->ticket);
    struct ticket *t = free_ticket(a);
    if (!t)
        return inst_fail(msg, INST_ENORESOURCE, "%s: all %d tickets are in use",
                         opcode_name(c->opcode), ARRAY_TICKETS);
    task_clear(a, &t->task);
    t->state = TICKET_PENDING;
    t->number = c->ticket;
    t->collector = NULL;
    r->ticket = t;
    return 0;
}

// The drives' answers to a ticket's COLLECT are all there.
static void ticket_ended(struct array *a, struct ticket *t)
{
    struct request *r = t->collector;
    const struct task *task = &t->task;
    t->since_ns = clock_ns();
    if (!r && !task->status)
        return; // the results wait for another COLLECT
    if (r && !task->status)
        array_gather(a, t, r->data);
    if (r)
        complete(a, r, task->status, task->status ? 0 : t->layout.out_bytes, &task->text);
    t->state = TICKET_FREE;
}

static void begin_collect(struct array *a, struct ticket *t, struct request *r)
{
    struct inst_msg msg = {0};
    int err = 0;
    if (r->command.length < t->layout.out_bytes)
        err = inst_fail(&msg, INST_EINVAL, "COLLECT: ticket %u needs %llu bytes", t->number,
                        (unsigned long long)t->layout.out_bytes);
    if (!err && t->state == TICKET_READY)
        err = array_collect(a, t, r->data, &msg);
    if (err) {
        complete(a, r, err, 0, &msg);
        return;
    }
    t->collector = r;
    if (t->state == TICKET_READY)
        task_send(a, &t->task);
    else if (!t->task.open) // for one that has timed out
        ticket_ended(a, t);
    if (t->state == TICKET_READY)
        t->state = TICKET_COLLECTING;
}

static int hold_collect(struct array *a, struct request *r, struct inst_msg *msg)
{
    const struct command *c = &r->command;
    if (find_collect(a, c->ticket))
        return inst_fail(msg, INST_EEXIST, "COLLECT: ticket %u is being collected", c->ticket);
    uint64_t ms = c->timeout_ms ? c->timeout_ms : TICKET_MS;
    r->deadline_ns = clock_ns() + ms * 1000000;
    r->state = REQUEST_HELD;
    struct ticket *t = find_ticket(a, c->ticket);
    if (t && t->state != TICKET_PENDING)
        begin_collect(a, t, r);
    return 0;
}

// The same to all drives; `bytes` of data from each into the stage.
static int broadcast(struct array *a, struct request *r, uint32_t bytes, struct inst_msg *msg)
{
    int err = array_stage(a, &r->task, bytes ? (uint64_t)a->drives * STATE_BYTES : 0, msg);
    for (uint32_t i = 0; i < a->drives && !err; i++) {
        struct part *part = &r->task.part[i];
        part->command = r->command;
        part->table = r->table;
        if (bytes) {
            part->command.length = bytes;
            part->data = r->task.stage + (size_t)i * STATE_BYTES;
        }
        part->state = PART_WAITS;
    }
    return err;
}

static int ask_all(struct array *a, struct request *r, uint32_t bytes, struct inst_msg *msg)
{
    return r->command.length < bytes ? inst_fail(msg, INST_EINVAL, "%s: %u bytes are too few",
                                                 opcode_name(r->command.opcode), r->command.length)
                                     : broadcast(a, r, bytes, msg);
}

static int begin_config(struct array *a, struct request *r, struct inst_msg *msg)
{
    struct space_config config;
    uint8_t asked[CONFIG_BYTES], known[CONFIG_BYTES];
    if (space_config_decode(&config, r->table, CONFIG_BYTES))
        return inst_fail(msg, INST_EINVAL, "CONFIG: malformed table");
    struct array_space *space = array_space(a, r->command.space);
    int err = 0;
    if (!space)
        err = array_space_new(a, r->command.space, &config, &space, msg);
    else if (!space->known) // by a CONFIG that is under way
        return inst_fail(msg, INST_EEXIST, "CONFIG: space %u is being made", r->command.space);
    if (err)
        return err;
    r->space = space->known ? NULL : space;
    space_config_encode(asked, &config);
    space_config_encode(known, &space->config);
    if (memcmp(asked, known, CONFIG_BYTES))
        return inst_fail(msg, INST_EEXIST, "CONFIG: space %u exists and is another one",
                         r->command.space);
    err = array_stage(a, &r->task, (uint64_t)a->drives * CONFIG_BYTES, msg);
    for (uint32_t i = 0; i < a->drives && !err; i++) {
        struct part *part = &r->task.part[i];
        unsigned char *table = r->task.stage + (size_t)i * CONFIG_BYTES;
        struct space_config share = array_share_config(a, space, i);
        space_config_encode(table, &share);
        part->command = r->command;
        part->table = table;
        part->state = PART_WAITS;
    }
    if (err && r->space)
        array_space_end(a, space);
    return err;
}

static int begin(struct array *a, struct request *r, struct inst_msg *msg)
{
    int err;
    switch (r->command.opcode) {
    case OP_COLLECT:
        return hold_collect(a, r, msg);
    case OP_STAT:
        return ask_all(a, r, STAT_TABLE_BYTES, msg);
    case OP_IDENTIFY:
        return ask_all(a, r, IDENTIFY_TABLE_BYTES, msg);
    case OP_CONFIG:
        return begin_config(a, r, msg);
    case OP_REMOVE:
    case OP_FLUSH:
    case OP_ABORT:
    case OP_RECLAIM: // a drive without the sequence has nothing to do
        return broadcast(a, r, 0, msg);
    case OP_READ:
    case OP_ATTEND:
        err = take_ticket(a, r, msg);
        if (!err && (err = array_split(a, r, msg)))
            r->ticket->state = TICKET_FREE;
        return err;
    case OP_WRITE:
    case OP_FORK:
        return array_split(a, r, msg);
    default:
        return inst_fail(msg, INST_ENOTSUP, "opcode 0x%02x is not a command of a drive array",
                         r->command.opcode);
    }
}

// ---- what has ended ----------------------------------------------------------------------------

// Some drives have refused what others have done: fills in the parts that take it back. False:
// there is nothing.
static bool undo(struct array *a, struct request *r)
{
    struct array_space *space = array_space(a, r->command.space);
    struct command c = {.space = r->command.space};
    const void *table = NULL;
    switch (r->command.opcode) {
    case OP_READ:
    case OP_ATTEND:
        c.opcode = OP_ABORT;
        c.ticket = r->command.ticket;
        break;
    case OP_CONFIG:
        c.opcode = OP_REMOVE;
        if (!r->space)
            return false;
        break;
    case OP_FORK:
        c.opcode = OP_RECLAIM;
        if (!space || !(table = array_unfork(space, r, &c.count)))
            return false;
        break;
    default:
        return false;
    }
    for (uint32_t i = 0; i < a->drives; i++) {
        struct part *part = &r->task.part[i];
        if (part->state == PART_DONE && !part->status)
            *part = (struct part){.state = PART_WAITS, .command = c, .table = table};
    }
    return true;
}

static void ticket_ready(struct array *a, struct ticket *t)
{
    t->state = TICKET_READY;
    t->since_ns = clock_ns();
    struct request *collect = find_collect(a, t->number);
    if (collect)
        begin_collect(a, t, collect);
}

// Groups differ with the space; a drive counts for all of them, so its numbers are taken for those
// of the first.
static uint32_t sets_of_first(const struct array *a)
{
    for (int i = 0; i < ARRAY_SPACES; i++) {
        if (a->space[i].known)
            return a->space[i].shape.kv_heads / a->space[i].shape.together;
    }
    return a->drives;
}

static int merge_state(struct array *a, struct request *r, struct inst_msg *msg)
{
    struct drive_identity identity, one;
    struct drive_stats stats;
    for (uint32_t i = 0; i < a->drives; i++) {
        const unsigned char *table = r->task.stage + (size_t)i * STATE_BYTES;
        bool is_stat = r->command.opcode == OP_STAT;
        if (is_stat ? stats_decode(&a->stats[i], table, STAT_TABLE_BYTES)
                    : identity_decode(&one, table, IDENTIFY_TABLE_BYTES))
            return inst_fail(msg, INST_EIO, "%s: %s is malformed", a->name[i],
                             opcode_name(r->command.opcode));
        if (!is_stat && i)
            array_merge_identity(&identity, &one);
        else if (!is_stat)
            identity = one;
    }
    if (r->command.opcode == OP_IDENTIFY) {
        identity_encode(r->data, &identity);
        return 0;
    }
    link_array_merge(a->stats, a->drives, sets_of_first(a), &stats);
    stats_encode(r->data, &stats);
    return 0;
}

// All drives have done their parts.
static void succeeded(struct array *a, struct request *r)
{
    struct array_space *space = array_space(a, r->command.space);
    struct ticket *t = NULL;
    struct inst_msg msg = {0};
    int err = 0;
    switch (r->command.opcode) {
    case OP_STAT:
    case OP_IDENTIFY:
        err = merge_state(a, r, &msg);
        break;
    case OP_CONFIG:
        if (r->space)
            r->space->known = true;
        break;
    case OP_REMOVE:
        if (space)
            array_space_end(a, space);
        break;
    case OP_RECLAIM:
        if (space)
            array_reclaimed(space, &r->command, r->table);
        break;
    case OP_ABORT:
        t = find_ticket(a, r->command.ticket);
        if (t && idle(t))
            t->state = TICKET_FREE;
        break;
    default:
        break;
    }
    complete(a, r, err, err ? 0 : r->task.result, &msg);
    if (r->ticket)
        ticket_ready(a, r->ticket);
}

// Sequences that it would have made do not exist: no drive has made them, or they are given up.
static void unplace(struct array *a, const struct request *r, bool some_done)
{
    struct array_space *space = array_space(a, r->command.space);
    uint8_t opcode = r->command.opcode;
    if (space && (opcode == OP_FORK || (!some_done && (opcode == OP_WRITE || opcode == OP_ATTEND))))
        array_unplace(space, r);
}

static void request_ended(struct array *a, struct request *r)
{
    struct task *task = &r->task;
    if (!task->status) {
        succeeded(a, r);
        return;
    }
    if (!task->undoing) {
        bool some_done = false;
        for (uint32_t i = 0; i < a->drives; i++)
            some_done |= task->part[i].state == PART_DONE && !task->part[i].status;
        task->undoing = some_done && undo(a, r);
        unplace(a, r, some_done);
        if (task->undoing) {
            task_send(a, task);
            return;
        }
    }
    if (r->space)
        array_space_end(a, r->space);
    if (r->ticket)
        r->ticket->state = TICKET_FREE;
    complete(a, r, task->status, 0, &task->text);
}

static void task_ended(struct array *a, struct task *task)
{
    uint16_t number = task_number(a, task);
    if (number < ARRAY_REQUESTS)
        request_ended(a, &a->request[number]);
    else
        ticket_ended(a, &a->ticket[number - ARRAY_REQUESTS]);
}

// Hands over what waits, in the order in which it came.
static void pump(struct array *a)
{
    uint64_t full = 0; // drives whose queue is
    struct task *next, *task = a->first;
    a->first = NULL;
    a->last = &a->first;
    for (; task; task = next) {
        bool waits = false;
        next = task->next;
        for (uint32_t i = 0; i < a->drives; i++) {
            struct part *part = &task->part[i];
            struct link *link = a->links[i];
            if (part->state != PART_WAITS)
                continue;
            int err = full >> i & 1
                          ? INST_ENORESOURCE
                          : link->ops->submit(link, &part->command, part->table, part->data);
            if (err == INST_ENORESOURCE) {
                full |= (uint64_t)1 << i;
                waits = true;
            } else if (err) {
                part_done(a, task, i, err, 0, "");
            } else {
                part->state = PART_SENT;
                part->since_ns = a->waited_ns;
                a->in_flight[i]++;
            }
        }
        if (waits)
            enqueue(a, task);
        else if (!task->open)
            task_ended(a, task);
    }
}

static size_t poll_drive(struct array *a, uint32_t drive, uint64_t max_wait_ns)
{
    struct completion done[POLL_MAX];
    size_t n = a->links[drive]->ops->poll(a->links[drive], done, POLL_MAX, max_wait_ns);
    for (size_t i = 0; i < n; i++) {
        struct task *task = task_by_number(a, done[i].cid);
        // A completion that nobody asked for cannot come from a correct drive; it is dropped.
        if (!task || task->part[drive].state != PART_SENT)
            continue;
        a->in_flight[drive]--;
        a->late &= ~((uint64_t)1 << drive);
        part_done(a, task, drive, done[i].status, done[i].result, done[i].text);
        if (!task->open)
            task_ended(a, task);
    }
    return n;
}

static int array_submit(struct link *link, const struct command *command, const void *table,
                        void *data)
{
    struct array *a = array_of(link);
    struct request *r = a->request;
    while (r < a->request + ARRAY_REQUESTS && r->state != REQUEST_FREE)
        r++;
    if (r == a->request + ARRAY_REQUESTS)
        return INST_ENORESOURCE;
    r->state = REQUEST_OPEN;
    r->command = *command;
    r->table = table;
    r->data = data;
    r->ticket = NULL;
    r->space = NULL;
    task_clear(a, &r->task);
    struct inst_msg msg = {0};
    int err = begin(a, r, &msg);
    if (err)
        complete(a, r, err, 0, &msg);
    else if (r->state == REQUEST_OPEN)
        task_send(a, &r->task);
    pump(a);
    return 0;
}

// COLLECTs that have waited long enough: for their ticket, or for an ATTEND's result. What a READ
// copies into the data is not interrupted: it ends by itself.
static void expire(struct array *a, uint64_t now)
{
    for (int i = 0; i < ARRAY_REQUESTS; i++) {
        struct request *r = &a->request[i];
        if (r->state != REQUEST_HELD || now < r->deadline_ns)
            continue;
        struct ticket *t = find_ticket(a, r->command.ticket);
        if (t &&
            (!r->command.timeout_ms || (t->opcode == OP_READ && t->state == TICKET_COLLECTING)))
            continue;
        if (t)
            t->collector = NULL;
        struct inst_msg msg = {0};
        inst_fail(&msg, INST_ETIMEOUT, "COLLECT: ticket %u did not come in %u ms",
                  r->command.ticket, r->command.timeout_ms ? r->command.timeout_ms : TICKET_MS);
        complete(a, r, INST_ETIMEOUT, 0, &msg);
    }
}

// ---- drives that do not answer -----------------------------------------------------------------

// What one that has failed so before is waited for is a moment.
static uint64_t limit_of(const struct array *a, uint32_t drive, const struct part *part)
{
    enum { MOMENT_NS = 1000 * 1000 * 1000, FLUSH_LIMITS = 20 };
    if (a->late >> drive & 1)
        return min_u64(a->limit_ns, MOMENT_NS);
    return part->command.opcode == OP_FLUSH ? a->limit_ns * FLUSH_LIMITS : a->limit_ns;
}

static bool is_late(const struct array *a, uint32_t drive)
{
    for (size_t i = drive; i < (size_t)a->drives * TASKS; i += a->drives) {
        const struct part *part = &a->parts[i];
        if (part->state == PART_SENT && a->waited_ns - part->since_ns >= limit_of(a, drive, part))
            return true;
    }
    return false;
}

// Nothing that the drive was given writes to anybody's data any more.
static void give_up_waiting(struct array *a, uint32_t drive)
{
    char text[COMPLETION_TEXT_BYTES];
    snprintf(text, sizeof text, "no answer in %.3g s", 1e-9 * (double)a->limit_ns);
    a->links[drive]->ops->abort(a->links[drive]);
    a->in_flight[drive] = 0;
    a->late |= (uint64_t)1 << drive;
    for (uint16_t i = 0; i < TASKS; i++) {
        struct task *task = task_by_number(a, i);
        if (task->part[drive].state != PART_SENT)
            continue;
        part_done(a, task, drive, INST_EIO, 0, text);
        if (!task->open)
            task_ended(a, task);
    }
}

static void look_at_drives(struct array *a)
{
    for (uint32_t i = 0; a->limit_ns && i < a->drives; i++) {
        if (a->in_flight[i] && is_late(a, i))
            give_up_waiting(a, i);
    }
}

static size_t hand_out(struct array *a, struct completion *out, size_t max)
{
    size_t n = 0;
    while (n < max && a->done) {
        struct request *r = a->done;
        out[n++] = r->completion;
        a->done = r->next;
        r->state = REQUEST_FREE;
    }
    if (!a->done)
        a->done_last = &a->done;
    return n;
}

// The next drive, in turn, that has something to do for us; any when none has.
static uint32_t next_turn(struct array *a)
{
    for (uint32_t i = 0; i < a->drives; i++) {
        a->turn = (a->turn + 1) % a->drives;
        if (a->in_flight[a->turn])
            break;
    }
    return a->turn;
}

// Some drive has something to do that nothing must be waited for.
static bool array_runnable(const struct link *link)
{
    const struct array *a = array_of(link);
    for (uint32_t i = 0; i < a->drives; i++) {
        if (a->links[i]->ops->runnable && a->links[i]->ops->runnable(a->links[i]))
            return true;
    }
    return a->done != NULL;
}

// In-process drives do their work in here. Only one at a time is waited for, and not for long.
static size_t array_poll(struct link *link, struct completion *out, size_t max,
                         uint64_t max_wait_ns)
{
    struct array *a = array_of(link);
    uint64_t now = clock_ns(), end = now + max_wait_ns;
    bool moved = true;
    for (;;) {
        uint32_t turn = moved ? a->drives : next_turn(a);
        size_t got = 0;
        for (uint32_t i = 0; i < a->drives; i++)
            got += poll_drive(a, i, i == turn && now < end ? min_u64(end - now, SLICE_NS) : 0);
        uint64_t before = now;
        now = clock_ns();
        a->waited_ns += max_wait_ns ? now - before : 0;
        look_at_drives(a);
        pump(a);
        expire(a, now);
        size_t n = hand_out(a, out, max);
        if (n || now >= end)
            return n;
        moved = got || array_runnable(link);
    }
}

static void array_abort(struct link *link)
{
    struct array *a = array_of(link);
    for (uint32_t i = 0; i < a->drives; i++) {
        a->links[i]->ops->abort(a->links[i]);
        a->in_flight[i] = 0;
    }
    for (int i = 0; i < ARRAY_REQUESTS; i++) {
        a->request[i].state = REQUEST_FREE;
        task_clear(a, &a->request[i].task);
    }
    for (int i = 0; i < ARRAY_TICKETS; i++) {
        a->ticket[i].state = TICKET_FREE;
        task_clear(a, &a->ticket[i].task);
    }
    for (int i = 0; i < ARRAY_SPACES; i++)
        // Nobody knows whether the drives have got it; CONFIG can be sent again.
        if (a->space[i].used && !a->space[i].known)
            array_space_end(a, &a->space[i]);
    a->first = NULL;
    a->last = &a->first;
    a->done = NULL;
    a->done_last = &a->done;
}

static void array_free(struct array *a)
{
    for (int i = 0; i < ARRAY_SPACES; i++)
        array_space_end(a, &a->space[i]);
    for (int i = 0; i < ARRAY_REQUESTS; i++)
        budget_free(a->budget, a->request[i].task.stage);
    for (int i = 0; i < ARRAY_TICKETS; i++)
        budget_free(a->budget, a->ticket[i].task.stage);
    budget_free(a->budget, a->parts);
    budget_free(a->budget, a->links);
    budget_free(a->budget, a->name);
    budget_free(a->budget, a->stats);
    budget_free(a->budget, a->in_flight);
    budget_free(a->budget, a);
}

static void array_close(struct link *link)
{
    array_abort(link);
    array_free(array_of(link));
}

static const struct link_ops array_ops = {
    .submit = array_submit,
    .poll = array_poll,
    .abort = array_abort,
    .close = array_close,
    .runnable = array_runnable,
};

// What messages call a drive; of a long path, its end.
static void put_name(char out[64], uint32_t index, uint32_t drives, const char *name)
{
    enum { NAME_MOST = 36 };
    size_t n = strlen(name);
    snprintf(out, 64, "drive %u of %u (%s%s)", index + 1, drives, n > NAME_MOST ? "..." : "",
             n > NAME_MOST ? name + n - NAME_MOST : name);
}

int link_array_open(struct link **out, const struct link_array_options *o, struct inst_msg *msg)
{
    uint32_t n = o->drives;
    if (!n || n > LINK_ARRAY_MOST)
        return inst_fail(msg, INST_EINVAL, "an array of %u drives: must be 1 to %d", n,
                         LINK_ARRAY_MOST);
    struct array *a = budget_alloc(o->budget, 1, sizeof *a, "a drive array", msg);
    if (!a)
        return INST_ENOMEM;
    a->link.ops = &array_ops;
    a->budget = o->budget;
    a->drives = n;
    a->limit_ns = o->limit_ns;
    a->links = budget_alloc(o->budget, n, sizeof(struct link *), "a drive array", msg);
    a->name = budget_alloc(o->budget, n, sizeof *a->name, "a drive array", msg);
    a->stats = budget_alloc(o->budget, n, sizeof *a->stats, "a drive array", msg);
    a->in_flight = budget_alloc(o->budget, n, sizeof *a->in_flight, "a drive array", msg);
    a->parts = budget_alloc(o->budget, (uint64_t)n * TASKS, sizeof *a->parts, "a drive array", msg);
    if (!a->links || !a->name || !a->stats || !a->in_flight || !a->parts) {
        array_free(a);
        return INST_ENOMEM;
    }
    for (uint32_t i = 0; i < n; i++) {
        a->links[i] = o->links[i];
        put_name(a->name[i], i, n, o->names[i]);
    }
    for (uint32_t i = 0; i < TASKS; i++)
        task_by_number(a, (uint16_t)i)->part = a->parts + (size_t)i * n;
    a->last = &a->first;
    a->done_last = &a->done;
    *out = &a->link;
    return 0;
}

const struct drive_stats *link_array_stats(const struct link *link, uint32_t drive)
{
    return &array_of(link)->stats[drive];
}

uint64_t link_array_failed(const struct link *link)
{
    return array_of(link)->failed;
}

uint64_t link_array_late(const struct link *link)
{
    return array_of(link)->late;
}
