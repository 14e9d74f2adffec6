// SPDX-License-Identifier: Apache-2.0
// The arithmetic beside the flash, behind one small table: tasks are submitted and polled like
// flash operations, so that a drive never waits for them and a timing model can stand in. In this
// process it is the worker pool.
#ifndef INST_DRIVE_ENGINE_H
#define INST_DRIVE_ENGINE_H

#include "base/pool.h"
#include "base/status.h"

#include <stdbool.h>
#include <stdint.h>

enum engine_kind { ENGINE_CHECK, ENGINE_ATTEND, ENGINE_FOLD, ENGINE_SELECT, ENGINE_BUILD };

// What a task makes of arithmetic, for models; counted where engine.counts.
struct engine_work {
    uint64_t products; // of an element of K or V with one of a query or a weight
    uint64_t elements; // that softmax goes through
    uint64_t ranked;   // elements that are chosen from
};

// `items` independent calls of fn(arg, item, worker). Owned by the submitter; the engine holds it
// from submit until poll hands it back.
struct engine_task {
    pool_fn *fn;
    void *arg;
    size_t items;
    // What a model goes by: the kind, and the bytes of K and V (or of scores) that all items touch.
    enum engine_kind kind;
    uint64_t bytes;
    struct engine_work work;
    void (*done)(struct engine_task *task); // called once it was polled, by whoever polls
    uint64_t done_ns;                       // out: when it finished
    uint64_t took_ns; // out: how long the engine worked on it, by a clock or by the model
    struct engine_task *next;
    void *owner; // the submitter's
};

struct engine;

struct engine_ops {
    void (*submit)(struct engine *engine, struct engine_task *task, uint64_t now_ns);
    // Returns finished tasks as a list, NULL when there are none now. May do the work in here.
    struct engine_task *(*poll)(struct engine *engine, uint64_t now_ns);
    // When the next task finishes, UINT64_MAX when none is under way. At or before now: poll.
    uint64_t (*next_ns)(struct engine *engine);
    void (*close)(struct engine *engine);
};

struct engine {
    const struct engine_ops *ops;
    bool counts; // wants to know of each task's work
};

// Runs tasks in `pool`, which stays the caller's, when it is polled.
int engine_pool_open(struct engine **out, struct pool *pool, struct inst_msg *msg);

// Polls, and tells the submitters; true when something had finished.
static inline bool engine_take(struct engine *engine, uint64_t now_ns)
{
    struct engine_task *next, *task = engine->ops->poll(engine, now_ns);
    bool any = task != NULL;
    for (; task; task = next) {
        next = task->next; // the submitter may use it again
        task->done(task);
    }
    return any;
}

static inline void engine_close(struct engine *engine)
{
    if (engine)
        engine->ops->close(engine);
}

#endif
