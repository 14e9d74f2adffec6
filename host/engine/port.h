// SPDX-License-Identifier: Apache-2.0
// Commands in flight between the engine and its drive: hands out cids and tickets, keeps what
// completed until it is asked for, and drives the link while it waits. One thread.
//
// No wait is for ever. A command that has been waited for longer than the limit is taken back: what
// has a ticket by ABORT, everything else, and what that does not end either, by forgetting all that
// is in flight on the link, whose data is not touched any more then. Time counts only while
// somebody waits, because a drive of this process does not work meanwhile. A cancel ends waits in
// the same way, but not those for commands that give something back or only ask.
#ifndef INST_HOST_ENGINE_PORT_H
#define INST_HOST_ENGINE_PORT_H

#include "host/engine/trace.h"
#include "link/link.h"

#include <stdatomic.h>

enum { PORT_SLOTS = 64, PORT_SPACE = 1 };

struct port_options {
    struct link *link;
    const struct trace *trace;
    const char *place;         // of the drive, for messages
    uint64_t limit_ns;         // that a command is waited for; a FLUSH twenty times that
    const atomic_bool *cancel; // true: what computes fails with INST_ECANCELLED
};

struct port {
    struct port_options with;
    uint32_t next_ticket;
    uint32_t in_flight;
    uint64_t wait_ns;    // time spent waiting since the port was opened
    bool late;           // it has not answered in time, and nothing since: others get a moment only
    uint16_t generation; // of cids
    struct port_slot {
        enum { PORT_FREE, PORT_BUSY, PORT_ABORTED, PORT_FORGOTTEN, PORT_DONE } state;
        int status;
        uint64_t result;
        uint64_t start_ns;      // for the trace
        uint64_t since_ns;      // of wait_ns, when it was submitted or aborted
        uint64_t limit_ns;      // not 0: it was waited for so long
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

// What the options name stays the caller's.
void port_open(struct port *port, const struct port_options *options);
uint32_t port_ticket(struct port *port);

// Fills in cid and space and hands the command over; waits for room in the drive's queue. Returns
// the command's handle (>= 0) or INST_E*. Table and data stay the caller's until port_wait.
int port_submit(struct port *port, struct command command, const void *table, void *data,
                struct inst_msg *msg);
// Waits for one command; its status. The handle is free afterwards. INST_ENORESOURCE is
// back-pressure: the command is sent again until port_patient says no. INST_ETIMEOUT and
// INST_ECANCELLED: it was taken back, and what it has done is not known. A COLLECT of which some
// items failed is a success that fills *msg.
int port_wait(struct port *port, int handle, uint64_t *result, struct inst_msg *msg);
// Submit and wait.
int port_call(struct port *port, struct command command, const void *table, void *data,
              uint64_t *result, struct inst_msg *msg);
// The drive has no room for now, which others may give back: waits a moment, longer every time.
// False after two seconds of that, and when somebody cancels.
bool port_patient(struct port *port, struct port_patience *patience);
// Lets the drive work without waiting.
void port_tick(struct port *port);

#endif
