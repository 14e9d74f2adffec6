// SPDX-License-Identifier: Apache-2.0
// Where KV lives: parses a WHERE ("ram:SIZE[@RATE]", "null:", "nand:PROFILE..." or a directory),
// makes flash, drive and link of each, and an array of several.
#ifndef INST_HOST_ENGINE_STORE_H
#define INST_HOST_ENGINE_STORE_H

#include "drive/engine_model.h"
#include "host/engine/plan.h"
#include "instinfer_trace.h"
#include "link/link.h"

struct store_where {
    enum { STORE_DIRECTORY, STORE_RAM, STORE_NULL, STORE_NAND } kind;
    uint64_t size, rate; // RAM: bytes, bytes/s (0 = no limit)
    char *path;          // what the user named, or the directory
    bool is_default;     // the directory is made when the store is opened
    struct flash_nand_options *nand;
    struct emulated_units units; // that take time beside the flash of `nand`
};
// The directory that takes KV, NULL: none does. Whether memory beside the budget does.
const char *store_where_directory(const struct store_where *where);
bool store_where_is_memory(const struct store_where *where);

// NULL: the default directory. Checks that a directory is one.
int store_where_open(struct store_where *where, const char *text, struct inst_msg *msg);
void store_where_free(struct store_where *where);

struct store {
    struct store_drive {
        struct flash *flash;
        struct drive *drive;
        struct link *link;
        struct engine *engine; // a model, NULL: the pool
        uint64_t bytes;        // taken from the budget
        struct flash *nand;    // of these the emulated one, NULL: none
        inst_flash_trace_fn *trace;
        void *trace_user;
        inst_selection_trace_fn *selected;
        void *selected_user;
        uint32_t place; // among all that were named
    } * drives;         // [n]
    uint32_t n;
    struct link *link; // the only drive's, or the array's
    struct budget *budget;
    uint64_t passed_ns; // up to when drives in virtual time know of the host's
};

// A drive in each of plan->drives places.
struct store_options {
    const struct engine_plan *plan;
    struct budget *budget;
    struct pool *pool;
    const struct kernels *kernels;
    uint64_t limit_ns;          // that an array waits for a drive
    inst_flash_trace_fn *trace; // NULL, or told of every flash operation
    void *trace_user;
    inst_selection_trace_fn *selected; // NULL, or told of all that methods choose
    void *selected_user;
    const uint32_t *place; // [drives], as events name them
};
int store_open(struct store *store, const struct store_where *where,
               const struct store_options *options, struct inst_msg *msg);
// For drives in virtual time, of which waiting takes only what they say: at `now_ns` the host has
// spent the time since the last call on its own, or waiting.
void store_pass(struct store *store, uint64_t now_ns, bool waiting);
// The most that one of them has waited for since its time was `since` [n], which becomes the time
// now.
uint64_t store_waited_ns(const struct store *store, uint64_t *since);
// Of an emulated drive i: what there is to say about it. False: it is not emulated.
struct store_modelled {
    struct flash_nand_counters flash;
    struct engine_model_counters engine;
    uint64_t link_ns; // that it was busy
};
bool store_emulated(const struct store *store, uint32_t i, struct store_modelled *out);
// Waits for what flash is doing, but not longer than that: what then is left of a drive stays in
// memory, as the disk may still write to it. Returns its bytes, of the budget. Zeroed is fine.
uint64_t store_close(struct store *store, uint64_t limit_ns);

#endif
