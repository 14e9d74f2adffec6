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

enum {
    RADIX_BITS = 11,
    RADIX = 1 << RADIX_BITS,
    BLOCK = 16,
    FEW = 256,
    PLUS_INFINITY = 0x7f800000
};

// Larger for a larger score: bits of floats above 0 sort as integers; all else is 0.
static inline uint32_t key(float score)
{
    int32_t bits;
    memcpy(&bits, &score, sizeof bits);
    return bits > 0 && bits <= PLUS_INFINITY ? (uint32_t)bits : 0;
}

typedef int32_t keys __attribute__((vector_size(16)));

static inline keys keys_at(const float *scores)
{
    keys k;
    memcpy(&k, scores, sizeof k);
    return k & (k > 0) & (k <= PLUS_INFINITY);
}

static inline bool any(keys mask)
{
    uint64_t words[2];
    memcpy(words, &mask, sizeof words);
    return (words[0] | words[1]) != 0;
}

// Few blocks of scores hold what is looked for: these two find them, as vectors.
static inline bool block_has(const float *scores, uint32_t mask, uint32_t prefix)
{
    keys found = {0};
    for (int i = 0; i < BLOCK; i += 4)
        found |= (keys_at(scores + i) & (int32_t)mask) == (int32_t)prefix;
    return any(found);
}

static inline bool block_reaches(const float *scores, uint32_t least)
{
    keys found = {0};
    for (int i = 0; i < BLOCK; i += 4)
        found |= keys_at(scores + i) >= (int32_t)least;
    return any(found);
}

// count[digit]: how many scores with that prefix have that digit.
static void count_digits(const float *scores, uint64_t n, uint32_t mask, uint32_t prefix, int shift,
                         uint32_t count[RADIX])
{
    uint64_t i = 0, end;
    memset(count, 0, RADIX * sizeof *count);
    while (i < n) {
        end = min_u64(i + BLOCK, n);
        if (end == i + BLOCK && !block_has(scores + i, mask, prefix))
            i = end;
        for (; i < end; i++) {
            uint32_t k = key(scores[i]);
            if ((k & mask) == prefix)
                count[k >> shift & (RADIX - 1)]++;
        }
    }
}

// The same of the first digit, which all have. Neighbours are often alike: two sets of counters, so
// that none waits for the one before.
static void count_first(const float *scores, uint64_t n, int shift, uint32_t count[RADIX])
{
    uint32_t odd[RADIX] = {0};
    memset(count, 0, RADIX * sizeof *count);
    for (uint64_t i = 0; i + 2 <= n; i += 2) {
        count[key(scores[i]) >> shift]++;
        odd[key(scores[i + 1]) >> shift]++;
    }
    if (n % 2)
        count[key(scores[n - 1]) >> shift]++;
    for (int d = 0; d < RADIX; d++)
        count[d] += odd[d];
}

// Scores whose key is `least` or more.
static uint64_t count_from(const float *scores, uint64_t n, uint32_t least)
{
    keys lanes = {0};
    uint64_t i = 0, count = 0;
    for (; i + 4 <= n; i += 4)
        lanes -= keys_at(scores + i) >= (int32_t)least;
    for (int lane = 0; lane < 4; lane++)
        count += (uint32_t)lanes[lane];
    for (; i < n; i++)
        count += key(scores[i]) >= least;
    return count;
}

// As threshold, of few scores: bit by bit of the key, which takes less than clearing counters does.
static uint32_t threshold_few(const float *scores, uint64_t n, uint64_t m, uint64_t *equal)
{
    uint32_t found = 0;
    for (uint32_t bit = 1u << 30; bit; bit >>= 1)
        found |= count_from(scores, n, found | bit) >= m ? bit : 0;
    *equal = m - count_from(scores, n, found + 1);
    return found;
}

// The key of the m-th largest of n scores, 1 <= m <= n; *equal = how many of that key are among
// the m.
static uint32_t threshold(const float *scores, uint64_t n, uint64_t m, uint64_t *equal)
{
    static const int shifts[] = {22, 11, 0};
    uint32_t prefix = 0, mask = 0, count[RADIX];
    if (n <= FEW)
        return threshold_few(scores, n, m, equal);
    for (int pass = 0; pass < 3; pass++) {
        if (pass)
            count_digits(scores, n, mask, prefix, shifts[pass], count);
        else
            count_first(scores, n, shifts[pass], count);
        uint32_t digit = RADIX - 1;
        while (count[digit] < m)
            m -= count[digit--];
        prefix |= digit << shifts[pass];
        mask |= (uint32_t)(RADIX - 1) << shifts[pass];
    }
    *equal = m;
    return prefix;
}

// Bits of up to 64 scores that are above `least`, or equal to it as long as *equal lasts.
static uint64_t word_above(const float *scores, uint64_t n, uint32_t least, uint64_t *equal)
{
    uint64_t bits = 0, i = 0, end;
    while (i < n) {
        end = min_u64(i + BLOCK, n);
        if (end == i + BLOCK && !block_reaches(scores + i, least))
            i = end;
        for (; i < end; i++) {
            uint32_t at = key(scores[i]);
            bool take = at > least || (at == least && *equal);
            *equal -= take && at == least;
            bits |= (uint64_t)take << i;
        }
    }
    return bits;
}

void select_tokens(const float *scores, uint64_t n, uint64_t k, uint64_t local, uint64_t *chosen)
{
    uint64_t rest = n - local, equal = 0;
    memset(chosen, 0, div_round_up(n, 64) * sizeof *chosen);
    if (k > local) {
        uint32_t least = threshold(scores, rest, k - local, &equal);
        for (uint64_t i = 0; i < rest; i += 64)
            chosen[i / 64] = word_above(scores + i, min_u64(64, rest - i), least, &equal);
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

uint64_t select_next(const uint64_t *chosen, bool value, uint64_t first, uint64_t end)
{
    while (first < end) {
        uint64_t word = value ? chosen[first / 64] : ~chosen[first / 64], bits = word >> first % 64;
        if (bits)
            return min_u64(first + (uint64_t)__builtin_ctzll(bits), end);
        first += 64 - first % 64;
    }
    return end;
}
