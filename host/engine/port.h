// SPDX-License-Identifier: Apache-2.0
// Commands in flight between the engine and its drive: hands out cids and tickets, keeps what
// completed until it is asked for, and drives the link while it waits. One thread.
#ifndef INST_HOST_ENGINE_PORT_H
#define INST_HOST_ENGINE_PORT_H

#include "link/link.h"

enum { PORT_SLOTS = 64, PORT_SPACE = 1 };

struct port {
    struct link *link;
    uint32_t next_ticket;
    uint32_t in_flight;
    uint64_t wait_ns; // time spent waiting since the port was opened
    struct port_slot {
        enum { PORT_FREE, PORT_BUSY, PORT_DONE } state;
        int status;
        uint8_t opcode;
        uint32_t layer;
        uint64_t result;
        struct inst_msg msg; // when status is not 0
    } slot[PORT_SLOTS];
};

void port_open(struct port *port, struct link *link);
uint32_t port_ticket(struct port *port);

// Fills in cid and space and hands the command over; waits for room in the drive's queue. Returns
// the command's handle (>= 0) or INST_E*. Table and data stay the caller's until port_wait or
// port_drain.
int port_submit(struct port *port, struct command command, const void *table, void *data,
                struct inst_msg *msg);
// Waits for one command; its status. The handle is free afterwards. A COLLECT of which some items
// failed is a success that fills *msg.
int port_wait(struct port *port, int handle, uint64_t *result, struct inst_msg *msg);
// Submit and wait.
int port_call(struct port *port, struct command command, const void *table, void *data,
              uint64_t *result, struct inst_msg *msg);
// Lets the drive work without waiting.
void port_tick(struct port *port);
// Waits for everything in flight and forgets it: after a failure.
void port_drain(struct port *port);

#endif
