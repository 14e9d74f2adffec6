// SPDX-License-Identifier: Apache-2.0
#include "drive/attend/select.h"
#include "base/checked.h"

#include <math.h>
#include <string.h>

void select_channels(const double *weight, uint32_t dim, uint32_t r, uint32_t *channels)
{
    // A sorted list of the best so far; r is small beside dim.
    uint32_t n = 0;
    if (r == dim) {
        for (; n < dim; n++)
            channels[n] = n;
        return;
    }
    for (uint32_t c = 0; c < dim; c++) {
        double w = isnan(weight[c]) ? -1 : weight[c];
        uint32_t at = n;
        while (at && w > (isnan(weight[channels[at - 1]]) ? -1 : weight[channels[at - 1]]))
            at--;
        if (at == r)
            continue;
        uint32_t last = n < r ? n++ : r - 1;
        memmove(channels + at + 1, channels + at, (last - at) * sizeof *channels);
        channels[at] = c;
    }
    for (uint32_t i = 1; i < r; i++) { // into ascending order
        uint32_t c = channels[i], at = i;
        for (; at && channels[at - 1] > c; at--)
            channels[at] = channels[at - 1];
        channels[at] = c;
    }
}

// Larger for a larger score; bits of floats that are not negative sort as integers.
static inline uint32_t key(float score)
{
    uint32_t bits;
    memcpy(&bits, &score, sizeof bits);
    return score > 0 ? bits : 0;
}

enum { RADIX_BITS = 11, RADIX = 1 << RADIX_BITS };

// The key of the m-th largest of n scores, 1 <= m <= n; *equal = how many of that key are among
// the m.
static uint32_t threshold(const float *scores, uint64_t n, uint64_t m, uint64_t *equal)
{
    static const int shifts[] = {22, 11, 0};
    uint32_t prefix = 0, mask = 0;
    for (int pass = 0; pass < 3; pass++) {
        uint32_t count[RADIX] = {0};
        for (uint64_t i = 0; i < n; i++) {
            uint32_t k = key(scores[i]);
            if ((k & mask) == prefix)
                count[k >> shifts[pass] & (RADIX - 1)]++;
        }
        uint32_t digit = RADIX - 1;
        while (count[digit] < m)
            m -= count[digit--];
        prefix |= digit << shifts[pass];
        mask |= (uint32_t)(RADIX - 1) << shifts[pass];
    }
    *equal = m;
    return prefix;
}

void select_tokens(const float *scores, uint64_t n, uint64_t k, uint64_t local, uint64_t *chosen)
{
    uint64_t rest = n - local, equal = 0;
    memset(chosen, 0, div_round_up(n, 64) * sizeof *chosen);
    if (k > local) {
        uint32_t least = threshold(scores, rest, k - local, &equal);
        for (uint64_t i = 0; i < rest; i++) {
            uint32_t at = key(scores[i]);
            bool take = at > least || (at == least && equal);
            equal -= take && at == least;
            chosen[i / 64] |= (uint64_t)take << i % 64;
        }
    }
    for (uint64_t i = rest; i < n; i++)
        chosen[i / 64] |= 1ull << i % 64;
}

uint64_t select_count(const uint64_t *chosen, uint64_t first, uint64_t end)
{
    uint64_t count = 0;
    while (first < end) {
        uint64_t bits = chosen[first / 64] >> first % 64, n = min_u64(64 - first % 64, end - first);
        if (n < 64)
            bits &= (1ull << n) - 1;
        count += (uint64_t)__builtin_popcountll(bits);
        first += n;
    }
    return count;
}
