// SPDX-License-Identifier: Apache-2.0
// A link whose drive is a few plain loops: KV in one growing array per sequence and layer,
// attention by the reference kernels tile by tile, commands done in the order they came. The real
// drive and this one share only kernels and the wire format, so each is a check of the other, and a
// host can be tested without any flash.
#ifndef INST_TESTS_HOST_FAKE_DRIVE_H
#define INST_TESTS_HOST_FAKE_DRIVE_H

#include "link/link.h"

struct fake_faults {
    uint64_t fail_command; // the n-th command (from 1) of `opcode` fails with `code`; 0 = none
    uint64_t fail_count;   // so many in a row from there; 0 = 1
    uint8_t opcode;
    int code;
    int fail_item; // ATTEND: only this item fails, by its status; -1 = the whole command
};

struct link *fake_drive_open(void);
void fake_drive_faults(struct link *link, const struct fake_faults *faults);
// Tokens that the drive holds of a sequence in a layer.
uint64_t fake_drive_length(struct link *link, uint32_t seq, uint32_t layer);

#endif
