// SPDX-License-Identifier: Apache-2.0
// Where a random test takes its choices from: a seed, or the bytes of a fuzzer. Fuzz bytes that
// have run out give zeros, and choice 0 is the plain one everywhere.
#ifndef INST_TESTS_DRIVE_CHANCE_H
#define INST_TESTS_DRIVE_CHANCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct chance {
    uint64_t state;
    const uint8_t *bytes; // NULL: by seed
    size_t n, at;
};

// splitmix64
static inline uint64_t chance_mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static inline bool chance_over(const struct chance *c)
{
    return c->bytes && c->at >= c->n;
}

// A number below n.
static inline uint32_t below(struct chance *c, uint32_t n)
{
    if (n <= 1)
        return 0;
    if (!c->bytes) {
        c->state += UINT64_C(0x9e3779b97f4a7c15);
        return (uint32_t)(((chance_mix(c->state) >> 32) * n) >> 32);
    }
    uint32_t value = 0;
    for (uint32_t left = n - 1; left; left >>= 8)
        value = value << 8 | (c->at < c->n ? c->bytes[c->at++] : 0);
    return value % n;
}

// True one time in n; never when n is 0.
static inline bool one_in(struct chance *c, uint32_t n)
{
    return n && below(c, n) == n - 1;
}

#endif
