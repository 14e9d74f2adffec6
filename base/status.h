// SPDX-License-Identifier: Apache-2.0
// The one error convention of the tree: every fallible function returns int, 0 or a negative
// INST_E* code. Human detail (what and where) goes into an optional struct inst_msg that the first
// failing function fills. Nothing below cmd/ prints, exits or aborts.
#ifndef INST_BASE_STATUS_H
#define INST_BASE_STATUS_H

#include "instinfer_status.h"

#include <stdbool.h>
#include <stdint.h>

// Fills *msg (unless NULL or already filled: the first failure is the cause) and returns code.
int inst_fail(struct inst_msg *msg, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

// NVMe status field (SCT << 8 | SC) of a code, and back. Unknown numbers map to "internal".
uint16_t inst_status_to_nvme(int code);
int inst_status_from_nvme(uint16_t status);

// Whether a drive that says this has lost what it was given.
static inline bool inst_status_is_loss(int code)
{
    return code == INST_EIO || code == INST_ECORRUPT;
}

#endif
