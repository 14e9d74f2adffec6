// SPDX-License-Identifier: Apache-2.0
#include "host/model/unicode.h"

#include <stddef.h>

static const uint32_t runs[] = {
#include "host/model/unicode_runs.h"
};

struct unicode_run unicode_run_of(uint32_t point)
{
    size_t first = 0, end = sizeof runs / sizeof *runs;
    while (end - first > 1) {
        size_t middle = first + (end - first) / 2;
        if (runs[middle] >> 3 <= point)
            first = middle;
        else
            end = middle;
    }
    uint32_t next = end < sizeof runs / sizeof *runs ? runs[end] >> 3 : 0x110000;
    return (struct unicode_run){runs[first] >> 3, next, runs[first] & 7};
}
