// SPDX-License-Identifier: Apache-2.0
// The worker pool: one per process, made in cmd/ (or by the engine) and passed down. It runs
// independent items of one job at a time; the caller works too. Which worker runs which item is
// never part of a result.
#ifndef INST_BASE_POOL_H
#define INST_BASE_POOL_H

#include "base/status.h"

#include <stddef.h>

struct pool;

// item in [0, items); worker in [0, pool_threads) names the worker's scratch memory.
typedef void pool_fn(void *arg, size_t item, unsigned worker);

// threads counts the caller, so 1 starts none. Workers have small stacks (256 KiB).
int pool_new(struct pool **out, unsigned threads, struct inst_msg *msg);
void pool_free(struct pool *pool);
unsigned pool_threads(const struct pool *pool); // 1 for NULL

// Scratch memory of one worker, shared by everybody who runs jobs here and worth nothing between
// two items. Reserve makes each worker's piece at least `bytes` long (64-byte aligned); it is not
// part of a budget: who makes the pool accounts for threads * bytes. Not while a job runs.
int pool_reserve_scratch(struct pool *pool, size_t bytes, struct inst_msg *msg);
void *pool_scratch(const struct pool *pool, unsigned worker);

// Runs fn for every item and returns when all are done. A NULL pool runs them in the caller.
// One caller at a time; not to be called from inside an item.
void pool_run(struct pool *pool, pool_fn *fn, void *arg, size_t items);

#endif
