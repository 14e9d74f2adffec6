// SPDX-License-Identifier: Apache-2.0
// Overflow-checked 64-bit arithmetic for every size and offset.
#ifndef INST_BASE_CHECKED_H
#define INST_BASE_CHECKED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Each returns true and stores the result, or returns false and leaves *out alone.
static inline bool checked_add(uint64_t a, uint64_t b, uint64_t *out)
{
    uint64_t r;
    if (__builtin_add_overflow(a, b, &r))
        return false;
    *out = r;
    return true;
}

static inline bool checked_mul(uint64_t a, uint64_t b, uint64_t *out)
{
    uint64_t r;
    if (__builtin_mul_overflow(a, b, &r))
        return false;
    *out = r;
    return true;
}

// Rounds up to a multiple of unit (any unit > 0).
static inline bool checked_round_up(uint64_t a, uint64_t unit, uint64_t *out)
{
    uint64_t rest = a % unit;
    return checked_add(a, rest ? unit - rest : 0, out);
}

static inline uint64_t div_round_up(uint64_t a, uint64_t unit)
{
    return a / unit + (a % unit != 0);
}

static inline uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline uint64_t max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static inline bool is_power_of_two(uint64_t a)
{
    return a && !(a & (a - 1));
}

#endif
