// SPDX-License-Identifier: Apache-2.0
#include "host/compute/fault.h"

#include <string.h>

bool numbers_are_finite(const float *x, size_t n)
{
    uint32_t bad = 0;
    for (size_t i = 0; i < n; i++) { // without a branch: it is vectorised
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        bad |= (bits & 0x7f800000) == 0x7f800000;
    }
    return !bad;
}

static bool f16_are_finite(const uint16_t *h, size_t n)
{
    uint16_t bad = 0;
    for (size_t i = 0; i < n; i++)
        bad = (uint16_t)(bad | ((h[i] & 0x7c00) == 0x7c00));
    return !bad;
}

static void note(uint32_t *word, uint32_t found)
{
    if (!*word || found < *word)
        *word = found;
}

void fault_check(uint32_t *word, enum fault_kind kind, const float *x, size_t n)
{
    if (!numbers_are_finite(x, n))
        note(word, fault_word(kind, true));
}

void fault_check_f16(uint32_t *word, enum fault_kind kind, const uint16_t *h, const float *x,
                     size_t n)
{
    if (!f16_are_finite(h, n))
        note(word, fault_word(kind, !numbers_are_finite(x, n)));
}
