// SPDX-License-Identifier: Apache-2.0
// An engine that takes its time: it works on several tasks at once, a few items of one and then of
// another, ends them in any order and later than asked for. Or one that ends tasks and does
// nothing.
#ifndef INST_TESTS_LATE_ENGINE_H
#define INST_TESTS_LATE_ENGINE_H

#include "chance.h"
#include "drive/engine.h"

enum { LATE_TASKS = 16, LATE_KINDS = 8 };

struct late_task {
    struct engine_task *task; // NULL: free
    uint64_t order;           // in which it was submitted
    size_t done, first;       // items, the one it began with
};

struct late_engine {
    struct engine engine;
    struct chance chance;
    unsigned workers;
    bool null;     // does nothing, at once
    uint32_t hold; // kinds that are not touched before the drive is closed: bits 1 << kind
    struct late_task tasks[LATE_TASKS];
    // What it has seen
    uint64_t submitted[LATE_KINDS]; // by kind
    uint64_t orders, items;
    uint64_t overtaken; // tasks that ended before one that came earlier
    bool overflow;      // more tasks at once than it can hold: they never end
};

// It lies in the caller's memory; the drive's pool must have that many workers.
void late_engine_init(struct late_engine *engine, uint64_t seed, unsigned workers);
// It has tasks of these kinds.
bool late_engine_has(const struct late_engine *engine, uint32_t kinds);

#endif
