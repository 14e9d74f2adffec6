// SPDX-License-Identifier: Apache-2.0
#include "host/engine/port.h"
#include "base/clock.h"

#include <string.h>

enum { WAIT_NS = 100 * 1000 * 1000, POLL_MAX = 16 };

static const uint64_t patience_ns = 2000000000, first_pause_ns = 200000, last_pause_ns = 50000000;

void port_open(struct port *port, struct link *link, const struct trace *trace)
{
    memset(port, 0, sizeof *port);
    port->link = link;
    port->trace = trace;
}

uint32_t port_ticket(struct port *port)
{
    return ++port->next_ticket;
}

static void take(struct port *port, const struct completion *done)
{
    // A completion that nobody asked for cannot come from a correct drive; it is dropped.
    if (done->cid >= PORT_SLOTS || port->slot[done->cid].state != PORT_BUSY)
        return;
    struct port_slot *slot = &port->slot[done->cid];
    slot->state = PORT_DONE;
    slot->status = done->status;
    slot->result = done->result;
    port->in_flight--;
    trace_end(port->trace, INST_TRACE_COMMAND, opcode_name(slot->command.opcode),
              slot->command.layer, done->cid, slot->command.length, slot->start_ns);
    slot->msg.text[0] = 0;
    if (done->status || *done->text)
        inst_fail(&slot->msg, done->status, "%s of layer %u: %s", opcode_name(slot->command.opcode),
                  slot->command.layer, *done->text ? done->text : inst_status_text(done->status));
}

static void poll(struct port *port, uint64_t max_wait_ns)
{
    struct completion done[POLL_MAX];
    size_t n = port->link->ops->poll(port->link, done, POLL_MAX, max_wait_ns);
    for (size_t i = 0; i < n; i++)
        take(port, &done[i]);
}

static void wait_poll(struct port *port)
{
    uint64_t start = clock_ns();
    poll(port, WAIT_NS);
    port->wait_ns += clock_ns() - start;
    trace_end(port->trace, INST_TRACE_WAIT, "wait", INST_TRACE_NO_LAYER, 0, port->in_flight, start);
}

// Hands a slot's command over, waiting for room in the drive's queue.
static int send(struct port *port, struct port_slot *slot)
{
    int err;
    struct link *link = port->link;
    slot->start_ns = trace_begin(port->trace);
    while ((err = link->ops->submit(link, &slot->command, slot->table, slot->data)) ==
           INST_ENORESOURCE) {
        if (!port->in_flight)
            break;
        wait_poll(port);
    }
    slot->state = err ? PORT_FREE : PORT_BUSY;
    port->in_flight += !err;
    return err;
}

int port_submit(struct port *port, struct command command, const void *table, void *data,
                struct inst_msg *msg)
{
    int handle = 0;
    while (handle < PORT_SLOTS && port->slot[handle].state != PORT_FREE)
        handle++;
    if (handle == PORT_SLOTS)
        return inst_fail(msg, INST_EINTERNAL, "more than %d commands in flight", PORT_SLOTS);
    command.cid = (uint16_t)handle;
    command.space = PORT_SPACE;
    struct port_slot *slot = &port->slot[handle];
    slot->command = command;
    slot->table = table;
    slot->data = data;
    int err = send(port, slot);
    if (err)
        return inst_fail(msg, err, "%s of layer %u: %s", opcode_name(command.opcode), command.layer,
                         inst_status_text(err));
    return handle;
}

bool port_patient(struct port *port, struct port_patience *patience)
{
    uint64_t now = clock_ns();
    if (!patience->until_ns) {
        patience->until_ns = now + patience_ns;
        patience->pause_ns = first_pause_ns;
    }
    if (now >= patience->until_ns)
        return false;
    for (uint64_t end = now + patience->pause_ns; now < end; now = clock_ns())
        poll(port, end - now);
    port->wait_ns += patience->pause_ns;
    patience->pause_ns *= patience->pause_ns < last_pause_ns ? 2 : 1;
    return true;
}

int port_wait(struct port *port, int handle, uint64_t *result, struct inst_msg *msg)
{
    struct port_slot *slot = &port->slot[handle];
    struct port_patience patience = {0};
    for (;;) {
        while (slot->state == PORT_BUSY)
            wait_poll(port);
        if (slot->status != INST_ENORESOURCE || !port_patient(port, &patience) || send(port, slot))
            break;
    }
    slot->state = PORT_FREE;
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

void port_drain(struct port *port)
{
    while (port->in_flight)
        wait_poll(port);
    for (int i = 0; i < PORT_SLOTS; i++)
        port->slot[i].state = PORT_FREE;
}
