// SPDX-License-Identifier: Apache-2.0
#include "host/engine/port.h"
#include "base/checked.h"
#include "base/clock.h"

#include <stdio.h>
#include <string.h>

enum {
    WAIT_NS = 50 * 1000 * 1000, // a cancel is noticed after that
    MOMENT_NS = 1000 * 1000 * 1000,
    FLUSH_LIMITS = 20,
    POLL_MAX = 16,
    SLOT_BITS = 6,
};
_Static_assert(PORT_SLOTS == 1 << SLOT_BITS, "cids hold slots");

static const uint64_t patience_ns = 2000000000, first_pause_ns = 200000, last_pause_ns = 50000000;

void port_open(struct port *port, const struct port_options *options)
{
    memset(port, 0, sizeof *port);
    port->with = *options;
}

uint32_t port_ticket(struct port *port)
{
    return ++port->next_ticket;
}

// ---- giving up waiting -------------------------------------------------------------------------

static bool cancelled(const struct port *port)
{
    return port->with.cancel && atomic_load_explicit(port->with.cancel, memory_order_relaxed);
}

// Needs no answer to be of use, or is what comes after a failure.
static bool gives_back(const struct command *c)
{
    return c->opcode == OP_RECLAIM || c->opcode == OP_STAT || c->opcode == OP_IDENTIFY ||
           c->opcode == OP_ABORT;
}

static bool has_ticket(const struct command *c)
{
    return c->opcode == OP_COLLECT || c->opcode == OP_READ || c->opcode == OP_ATTEND;
}

static bool in_flight(const struct port_slot *slot)
{
    return slot->state != PORT_FREE && slot->state != PORT_DONE;
}

static uint64_t limit_of(const struct port *port, const struct port_slot *slot)
{
    uint64_t limit = port->with.limit_ns;
    if (slot->state != PORT_BUSY || port->late || cancelled(port))
        return limit < MOMENT_NS ? limit : MOMENT_NS;
    return slot->command.opcode == OP_FLUSH ? limit * FLUSH_LIMITS : limit;
}

static int refuse(const struct command *c, int code, const char *text, struct inst_msg *msg)
{
    return inst_fail(msg, code, "%s of layer %u: %s", opcode_name(c->opcode), c->layer, text);
}

// A command in flight has ended; what it says is the caller's.
static void end(struct port *port, struct port_slot *slot, int status)
{
    slot->state = slot->state == PORT_FORGOTTEN ? PORT_FREE : PORT_DONE;
    slot->status = status;
    slot->msg.text[0] = 0;
    port->in_flight--;
    trace_end(port->with.trace, INST_TRACE_COMMAND, opcode_name(slot->command.opcode),
              slot->command.layer, (uint32_t)(slot - port->slot), slot->command.length,
              slot->start_ns);
}

static void end_late(struct port *port, struct port_slot *slot)
{
    char text[sizeof slot->msg.text];
    snprintf(text, sizeof text, "%s: no answer in %.3g s", port->with.place,
             1e-9 * (double)(slot->limit_ns ? slot->limit_ns : port->with.limit_ns));
    end(port, slot, INST_ETIMEOUT);
    refuse(&slot->command, INST_ETIMEOUT, text, &slot->msg);
}

// Nothing that was sent is going to write to anybody's data any more.
static void forget_all(struct port *port, int code)
{
    port->with.link->ops->abort(port->with.link);
    for (int i = 0; i < PORT_SLOTS; i++) {
        struct port_slot *slot = &port->slot[i];
        if (!in_flight(slot))
            continue;
        if (code == INST_ETIMEOUT) {
            end_late(port, slot);
        } else {
            end(port, slot, code);
            inst_fail(&slot->msg, code, "%s", inst_status_text(code));
        }
    }
}

static int hand_over(struct port *port, struct port_slot *slot);

// Asks the drive to give up a ticket. False: it takes no more commands.
static bool abort_ticket(struct port *port, struct port_slot *late)
{
    struct port_slot *slot = port->slot;
    while (slot < port->slot + PORT_SLOTS && slot->state != PORT_FREE)
        slot++;
    if (slot == port->slot + PORT_SLOTS)
        return false;
    slot->command = (struct command){.opcode = OP_ABORT,
                                     .space = PORT_SPACE,
                                     .layer = late->command.layer,
                                     .ticket = late->command.ticket};
    slot->table = slot->data = NULL;
    if (hand_over(port, slot)) {
        slot->state = PORT_FREE;
        return false;
    }
    slot->state = PORT_FORGOTTEN;
    late->state = PORT_ABORTED;
    late->since_ns = slot->since_ns = port->wait_ns;
    return true;
}

// Ends what has been waited for too long, or is not wanted any more.
static void look(struct port *port)
{
    for (int i = 0; i < PORT_SLOTS; i++) {
        struct port_slot *slot = &port->slot[i];
        if (!in_flight(slot))
            continue;
        if (cancelled(port) && !gives_back(&slot->command)) {
            forget_all(port, INST_ECANCELLED);
            return;
        }
        uint64_t limit = limit_of(port, slot);
        if (port->wait_ns - slot->since_ns < limit)
            continue;
        if (slot->state == PORT_BUSY)
            slot->limit_ns = limit;
        port->late = true;
        if (slot->state == PORT_BUSY && has_ticket(&slot->command) && abort_ticket(port, slot))
            continue;
        forget_all(port, INST_ETIMEOUT);
        return;
    }
}

// ---- commands ----------------------------------------------------------------------------------

static void take(struct port *port, const struct completion *done)
{
    struct port_slot *slot = &port->slot[done->cid % PORT_SLOTS];
    // One that nobody asked for cannot come from a correct drive, nor one that was forgotten; it is
    // dropped.
    if (!in_flight(slot) || done->cid != slot->command.cid)
        return;
    if (slot->state == PORT_ABORTED && done->status) {
        end_late(port, slot);
        return;
    }
    port->late = false;
    end(port, slot, done->status);
    slot->result = done->result;
    if (done->status || *done->text)
        refuse(&slot->command, done->status,
               *done->text ? done->text : inst_status_text(done->status), &slot->msg);
}

static void poll(struct port *port, uint64_t max_wait_ns)
{
    struct completion done[POLL_MAX];
    size_t n = port->with.link->ops->poll(port->with.link, done, POLL_MAX, max_wait_ns);
    for (size_t i = 0; i < n; i++)
        take(port, &done[i]);
}

static void wait_poll(struct port *port)
{
    uint64_t start = clock_ns(), most = WAIT_NS;
    for (int i = 0; i < PORT_SLOTS; i++) {
        const struct port_slot *slot = &port->slot[i];
        if (!in_flight(slot))
            continue;
        uint64_t waited = port->wait_ns - slot->since_ns, limit = limit_of(port, slot);
        most = limit < waited + most ? limit - (waited < limit ? waited : limit) : most;
    }
    poll(port, most);
    port->wait_ns += clock_ns() - start;
    trace_end(port->with.trace, INST_TRACE_WAIT, "wait", INST_TRACE_NO_LAYER, 0, port->in_flight,
              start);
    look(port);
}

// Each time with another cid, so that the answer to what was forgotten is nobody's.
static int hand_over(struct port *port, struct port_slot *slot)
{
    struct link *link = port->with.link;
    slot->command.cid = (uint16_t)(++port->generation << SLOT_BITS | (slot - port->slot));
    slot->start_ns = trace_begin(port->with.trace);
    int err = link->ops->submit(link, &slot->command, slot->table, slot->data);
    slot->state = err ? PORT_DONE : PORT_BUSY; // not anybody else's yet
    port->in_flight += !err;
    return err;
}

// The same, waiting for room in the drive's queue.
static int send(struct port *port, struct port_slot *slot)
{
    for (;;) {
        if (cancelled(port) && !gives_back(&slot->command))
            return INST_ECANCELLED;
        int err = hand_over(port, slot);
        if (err != INST_ENORESOURCE || !port->in_flight)
            return err;
        wait_poll(port);
    }
}

int port_submit(struct port *port, struct command command, const void *table, void *data,
                struct inst_msg *msg)
{
    int handle = 0;
    while (handle < PORT_SLOTS && port->slot[handle].state != PORT_FREE)
        handle++;
    if (handle == PORT_SLOTS)
        return inst_fail(msg, INST_EINTERNAL, "more than %d commands in flight", PORT_SLOTS);
    command.space = PORT_SPACE;
    // The drive's own limit: it shall not keep what nobody waits for any more.
    if (command.opcode == OP_COLLECT)
        command.timeout_ms = (uint32_t)div_round_up(port->with.limit_ns, 1000000);
    struct port_slot *slot = &port->slot[handle];
    slot->command = command;
    slot->table = table;
    slot->data = data;
    slot->since_ns = port->wait_ns;
    slot->limit_ns = 0;
    int err = send(port, slot);
    if (!err)
        return handle;
    slot->state = PORT_FREE;
    return err == INST_ECANCELLED ? inst_fail(msg, err, "%s", inst_status_text(err))
                                  : refuse(&command, err, inst_status_text(err), msg);
}

bool port_patient(struct port *port, struct port_patience *patience)
{
    uint64_t now = clock_ns();
    if (!patience->until_ns) {
        patience->until_ns = now + patience_ns;
        patience->pause_ns = first_pause_ns;
    }
    if (now >= patience->until_ns || cancelled(port))
        return false;
    for (uint64_t until = now + patience->pause_ns; now < until; now = clock_ns())
        poll(port, until - now);
    port->wait_ns += patience->pause_ns;
    look(port);
    patience->pause_ns *= patience->pause_ns < last_pause_ns ? 2 : 1;
    return true;
}

// Whether a command that has ended goes out once more: there was no room for it, or the time of its
// own that a COLLECT has, by the drive's clock, is over before ours is.
static bool again(struct port *port, const struct port_slot *slot, struct port_patience *patience)
{
    if (slot->status == INST_ENORESOURCE)
        return port_patient(port, patience);
    return slot->status == INST_ETIMEOUT && slot->command.opcode == OP_COLLECT && !slot->limit_ns;
}

int port_wait(struct port *port, int handle, uint64_t *result, struct inst_msg *msg)
{
    struct port_slot *slot = &port->slot[handle];
    struct port_patience patience = {0};
    do {
        while (in_flight(slot))
            wait_poll(port);
    } while (again(port, slot, &patience) && !send(port, slot));
    slot->state = PORT_FREE;
    // What was short of room shall not be taken for that.
    if (slot->status == INST_ENORESOURCE && cancelled(port) && !gives_back(&slot->command))
        return inst_fail(msg, INST_ECANCELLED, "%s", inst_status_text(INST_ECANCELLED));
    if (slot->msg.text[0])
        inst_fail(msg, slot->status, "%s", slot->msg.text);
    if (result && !slot->status)
        *result = slot->result;
    return slot->status;
}

int port_call(struct port *port, struct command command, const void *table, void *data,
              uint64_t *result, struct inst_msg *msg)
{
    int handle = port_submit(port, command, table, data, msg);
    return handle < 0 ? handle : port_wait(port, handle, result, msg);
}

void port_tick(struct port *port)
{
    // Even with nothing in flight: the drive reads ahead for the ATTENDs that it expects.
    poll(port, 0);
}
