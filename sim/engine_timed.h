// SPDX-License-Identifier: Apache-2.0
// The arithmetic of a real drive in virtual time: a task is computed when it is submitted, and is
// done when the profile's units would be. Tasks follow each other.
#ifndef INST_SIM_ENGINE_TIMED_H
#define INST_SIM_ENGINE_TIMED_H

#include "drive/engine.h"
#include "sim/machine.h"
#include "base/timeline.h"

struct engine_timed {
    struct engine engine; // to be handed to a drive
    struct pool *pool;
    const struct csd *csd;
    double group; // query heads of a KV head: products per byte of K and V
    struct timeline units;
    struct engine_task *first, **end;
    uint64_t bytes; // of K and V attended to
};

// Both stay the caller's.
void engine_timed_open(struct engine_timed *timed, const struct csd *csd, double group,
                       struct pool *pool);

#endif
