// SPDX-License-Identifier: Apache-2.0
// Commands in flight between the engine and its drive: hands out cids and tickets, keeps what
// completed until it is asked for, and drives the link while it waits. One thread.
#ifndef INST_HOST_ENGINE_PORT_H
#define INST_HOST_ENGINE_PORT_H

#include "host/engine/trace.h"
#include "link/link.h"

enum { PORT_SLOTS = 64, PORT_SPACE = 1 };

struct port {
    struct link *link;
    const struct trace *trace;
    uint32_t next_ticket;
    uint32_t in_flight;
    uint64_t wait_ns; // time spent waiting since the port was opened
    struct port_slot {
        enum { PORT_FREE, PORT_BUSY, PORT_DONE } state;
        int status;
        uint64_t result;
        uint64_t start_ns;      // for the trace
        struct command command; // as it was sent: a drive without room is asked again
        const void *table;
        void *data;
        struct inst_msg msg; // when status is not 0
    } slot[PORT_SLOTS];
};

// How long the drive has been short of room for something; begins zeroed.
struct port_patience {
    uint64_t until_ns, pause_ns;
};

// The trace stays the caller's.
void port_open(struct port *port, struct link *link, const struct trace *trace);
uint32_t port_ticket(struct port *port);

// Fills in cid and space and hands the command over; waits for room in the drive's queue. Returns
// the command's handle (>= 0) or INST_E*. Table and data stay the caller's until port_wait or
// port_drain.
int port_submit(struct port *port, struct command command, const void *table, void *data,
                struct inst_msg *msg);
// Waits for one command; its status. The handle is free afterwards. INST_ENORESOURCE is
// back-pressure: the command is sent again until port_patient says no. A COLLECT of which some
// items failed is a success that fills *msg.
int port_wait(struct port *port, int handle, uint64_t *result, struct inst_msg *msg);
// Submit and wait.
int port_call(struct port *port, struct command command, const void *table, void *data,
              uint64_t *result, struct inst_msg *msg);
// The drive has no room for now, which others may give back: waits a moment, longer every time.
// False after two seconds of that.
bool port_patient(struct port *port, struct port_patience *patience);
// Lets the drive work without waiting.
void port_tick(struct port *port);
// Waits for everything in flight and forgets it: after a failure.
void port_drain(struct port *port);

#endif
