// SPDX-License-Identifier: Apache-2.0
// A large piece of memory from the system, all zero, whose pages come when they are touched. Where
// asked for it begins on a large page and is made of such: a scan has fewer TLB misses, and a read
// from a device fewer pieces. The caller accounts for it.
#ifndef INST_BASE_MAPPING_H
#define INST_BASE_MAPPING_H

#include <stdbool.h>
#include <stdint.h>

enum {
    HUGE_PAGE = 2 << 20,
    HUGE_PAGES_LEAST = 8 * HUGE_PAGE, // of less it is not worth its rest
};

struct mapping {
    uint8_t *data;
    void *base;
    uint64_t bytes; // from base
};

// False: the system refuses.
bool mapping_open(struct mapping *mapping, uint64_t bytes, bool large);
void mapping_close(struct mapping *mapping);

#endif
