// SPDX-License-Identifier: Apache-2.0
// A compute device as a GPU is one, with the CPU's arithmetic: a thread for each queue, that comes
// late by chance; memory of its own, which the host has no pointer to; results that are rubbish
// until the point behind them is done, and sources that are rubbish once they were used; gates. It
// proves that an engine waits where it must, and nowhere counts on the host's memory.
#ifndef INST_TESTS_HOST_COMPUTE_ASYNC_H
#define INST_TESTS_HOST_COMPUTE_ASYNC_H

#include "host/compute/compute.h"

extern const struct compute_kind compute_async;

// Of a device that was opened: its n-th call from now is where it is lost (0: never); and gates
// that do not open when they are told to.
void compute_async_lose(struct compute *compute, uint64_t call);
void compute_async_hold_gates(struct compute *compute);
// Calls that it had.
uint64_t compute_async_calls(const struct compute *compute);

#endif
