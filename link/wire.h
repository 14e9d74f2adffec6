// SPDX-License-Identifier: Apache-2.0
// What carries commands between host and a drive whose time is modelled, as fast as a profile's
// link: entry, table and data of a command go down one after another, completions and what they
// bring come up beside them. A pure queue: time is handed in.
#ifndef INST_LINK_WIRE_H
#define INST_LINK_WIRE_H

#include "base/status.h"
#include "drive/command.h"

#include <stdbool.h>

struct wire;

int wire_open(struct wire **out, uint64_t bytes_per_s, struct inst_msg *msg);
void wire_close(struct wire *wire);

struct wire_command {
    struct command command;
    const void *table;
    void *data;
};
// Bytes that a command takes on its way down, and its answer on its way up.
uint64_t wire_down_bytes(const struct command *command);
uint64_t wire_up_bytes(const struct command *command);

// False: too many are under way.
bool wire_send(struct wire *wire, const struct wire_command *command, uint64_t now_ns);
// The oldest command that has arrived, until it is taken; NULL: none has.
const struct wire_command *wire_arrived(const struct wire *wire, uint64_t now_ns);
void wire_taken(struct wire *wire);
// The answer to one that was taken sets out.
void wire_answer(struct wire *wire, const struct completion *completion, uint64_t now_ns);
size_t wire_received(struct wire *wire, struct completion *out, size_t max, uint64_t now_ns);
// When something arrives next at the drive, or at the host; UINT64_MAX: nothing is on its way.
uint64_t wire_next_down_ns(const struct wire *wire);
uint64_t wire_next_up_ns(const struct wire *wire);
// All that is under way is dropped.
void wire_forget(struct wire *wire);
// That either direction was busy, summed.
uint64_t wire_busy_ns(const struct wire *wire);

#endif
