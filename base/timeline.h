// SPDX-License-Identifier: Apache-2.0
// What a model of a machine is made of: things that do one thing at a time, in 64-bit virtual
// nanoseconds. Everything here is a function of (state, request, now): no clock, no randomness. A
// request that comes while its timeline is busy waits its turn; what does not fit into 64 bits
// marks the timeline, which whoever reads the result has to look at.
#ifndef INST_BASE_TIMELINE_H
#define INST_BASE_TIMELINE_H

#include <stdbool.h>
#include <stdint.h>

struct timeline {
    uint64_t free_ns; // when the last request ends
    uint64_t busy_ns; // sum of all requests: never more than free_ns
    bool overflowed;
};

// A request of `ns` that may begin at `now_ns`: when it ends.
uint64_t timeline_take(struct timeline *t, uint64_t now_ns, uint64_t ns);

// How long `amount` takes at `rate` a second, rounded up; UINT64_MAX where that is no time.
uint64_t duration_ns(double amount, double rate);

static inline uint64_t later(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

#endif
