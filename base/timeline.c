// SPDX-License-Identifier: Apache-2.0
#include "base/timeline.h"

#include <math.h>

uint64_t timeline_take(struct timeline *t, uint64_t now_ns, uint64_t ns)
{
    uint64_t begin = later(t->free_ns, now_ns), end;
    if (__builtin_add_overflow(begin, ns, &end)) {
        t->overflowed = true;
        return UINT64_MAX;
    }
    t->free_ns = end;
    t->busy_ns += ns;
    return end;
}

uint64_t duration_ns(double amount, double rate)
{
    if (amount <= 0)
        return 0;
    double ns = ceil(amount / rate * 1e9);
    return ns < 0x1p63 ? (uint64_t)ns : UINT64_MAX;
}
