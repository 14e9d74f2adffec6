// SPDX-License-Identifier: Apache-2.0
// The engine of a profile (docs/profiles.md, [engine]) in the place of the pool: a task is computed
// when it is submitted, and is done when the profile's units would be. GeMV and softmax units of
// all kernels share a task and work on its tiles in turn, so it takes as long as the slower of
// them; what is chosen from goes through argtopk after that. Tasks follow each other. Checking
// pages, merging partials and making derived streams takes no time: it is done while data passes.
//
// Time is what is handed in, a virtual one or the real one, to which tasks are then held back.
// Where reads do not overlap with products, flash channels begin nothing while GeMV units work.
#ifndef INST_DRIVE_ENGINE_MODEL_H
#define INST_DRIVE_ENGINE_MODEL_H

#include "base/profile.h"
#include "base/timeline.h"
#include "drive/engine.h"
#include "drive/flash/flash.h"

struct engine_params {
    uint64_t kernels;
    uint64_t gemv_units, softmax_units; // of a kernel
    double gemv;                        // of a unit: operations per second, two for a product
    double softmax;                     // of a unit: elements per second
    double argtopk;                     // elements per second
    uint64_t filter;                    // bytes per second, in each flash controller
    uint64_t staging;                   // bytes of pages that are read before the units compute
    uint64_t overlap;                   // 1: reads go on meanwhile, 0: they do not
};

// [engine] of a profile, checked.
int engine_params_read(struct engine_params *out, const struct profile *profile,
                       struct inst_msg *msg);

// What takes time in an emulated drive beside its flash: of the profile of its flash, what that
// has, but for engine=off.
struct emulated_units {
    bool has_engine;
    struct engine_params engine;
    uint64_t link; // bytes per second to the host; 0: takes no time
};
// Tells the flash of its filters, too.
int emulated_units_read(struct emulated_units *out, struct flash_nand_options *options,
                        struct inst_msg *msg);

// How long the units take for this work, by kind of unit; the whole is the return value.
struct engine_times {
    uint64_t gemv_ns, softmax_ns, argtopk_ns;
};
uint64_t engine_model_ns(const struct engine_params *params, const struct engine_work *work,
                         struct engine_times *times);

// The pool stays the caller's; so does `nand`, the emulated flash beside it, NULL: none.
int engine_model_open(struct engine **out, const struct engine_params *params, struct pool *pool,
                      struct flash *nand, struct inst_msg *msg);
struct engine_model_counters {
    struct engine_times units; // that each kind was busy
    uint64_t busy_ns;          // that any was
};
void engine_model_counters(const struct engine *engine, struct engine_model_counters *out);

#endif
