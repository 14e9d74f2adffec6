// SPDX-License-Identifier: Apache-2.0
// The time that only goes forward. The drive reads no clock: who steps it passes `now`.
#ifndef INST_BASE_CLOCK_H
#define INST_BASE_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline uint64_t clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline double clock_seconds(void)
{
    return 1e-9 * (double)clock_ns();
}

#endif
