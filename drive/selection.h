// SPDX-License-Identifier: Apache-2.0
// What a drive tells of the choices of its methods.
#ifndef INST_DRIVE_SELECTION_H
#define INST_DRIVE_SELECTION_H

#include "drive/command.h"

// What a method of chosen tokens reads of one KV head of a sequence, told before it does. Who
// listens may change channels and bits: that is read then, but what was computed from the drive's
// own choice (weights, estimates) stays, so it is for replays whose answers nobody looks at.
struct drive_selection {
    const struct space_config *config;
    uint32_t page_bytes, part_tokens; // part_tokens: of K in a slot (drive/ftl/slot.h)
    uint32_t method;
    uint32_t layer, seq, head;
    uint64_t tokens;        // attended
    uint64_t flash_tokens;  // of these, in rows of flash
    uint64_t ranked_tokens; // METHOD_SPARF: the first so many have K by channel
    uint32_t n_channels;    // METHOD_SPARF: those it ranks by, ascending; 0: nothing is ranked
    uint32_t *channels;
    uint64_t *chosen; // bits of the tokens; NULL: channels alone are known yet
};
typedef void drive_selection_fn(void *user, struct drive_selection *selection);

#endif
