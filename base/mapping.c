// SPDX-License-Identifier: Apache-2.0
#include "base/mapping.h"
#include "base/checked.h"

#include <sys/mman.h>

bool mapping_open(struct mapping *mapping, uint64_t bytes, bool large)
{
    uint64_t all = bytes;
    if ((large && !checked_add(bytes, HUGE_PAGE, &all)) || all > PTRDIFF_MAX)
        return false;
    void *base =
        mmap(NULL, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED)
        return false;
    *mapping = (struct mapping){.data = base, .base = base, .bytes = all};
    if (large) {
        mapping->data += -(uintptr_t)base & (HUGE_PAGE - 1);
        (void)madvise(mapping->data, bytes, MADV_HUGEPAGE);
    }
    return true;
}

void mapping_close(struct mapping *mapping)
{
    if (mapping->base)
        munmap(mapping->base, mapping->bytes);
    *mapping = (struct mapping){0};
}
