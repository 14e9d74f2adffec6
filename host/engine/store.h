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
    } * drives; // [n]
    uint32_t n;
    struct link *link; // the only drive's, or the array's
    struct budget *budget;
    uint64_t drive_bytes; // taken from the budget
};

// A drive in each of plan->drives places.
int store_open(struct store *store, const struct store_where *where, const struct engine_plan *plan,
               struct budget *budget, struct pool *pool, const struct kernels *kernels,
               struct inst_msg *msg);
void store_close(struct store *store); // zeroed is fine

#endif
