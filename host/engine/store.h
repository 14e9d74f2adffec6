// SPDX-License-Identifier: Apache-2.0
// Where KV lives: parses a WHERE ("ram:SIZE[@RATE]", "null:" or a directory), makes flash, drive
// and link of each, and an array of several.
#ifndef INST_HOST_ENGINE_STORE_H
#define INST_HOST_ENGINE_STORE_H

#include "host/engine/plan.h"
#include "link/link.h"

struct store_where {
    enum { STORE_DIRECTORY, STORE_RAM, STORE_NULL } kind;
    uint64_t size, rate; // RAM: bytes, bytes/s (0 = no limit)
    char *path;          // what the user named, or the directory
    bool is_default;     // the directory is made when the store is opened
};

// NULL: the default directory. Checks that a directory is one.
int store_where_open(struct store_where *where, const char *text, struct inst_msg *msg);
void store_where_free(struct store_where *where);

struct store {
    struct store_drive {
        struct flash *flash;
        struct drive *drive;
        struct link *link;
        uint64_t bytes; // taken from the budget
    } * drives;         // [n]
    uint32_t n;
    struct link *link; // the only drive's, or the array's
    struct budget *budget;
};

// A drive in each of plan->drives places.
struct store_options {
    const struct engine_plan *plan;
    struct budget *budget;
    struct pool *pool;
    const struct kernels *kernels;
    uint64_t limit_ns; // that an array waits for a drive
};
int store_open(struct store *store, const struct store_where *where,
               const struct store_options *options, struct inst_msg *msg);
// Waits for what flash is doing, but not longer than that: what then is left of a drive stays in
// memory, as the disk may still write to it. Returns its bytes, of the budget. Zeroed is fine.
uint64_t store_close(struct store *store, uint64_t limit_ns);

#endif
