// SPDX-License-Identifier: Apache-2.0
// The engine of a drive in a process: tasks wait until they are polled for, and are then run one
// after another by the pool, the caller's thread included.
#include "drive/engine.h"
#include "base/clock.h"

#include <stdlib.h>

struct engine_pool {
    struct engine engine;
    struct pool *pool;
    struct engine_task *first, **last;
    uint64_t now_ns;
};

static void engine_pool_submit(struct engine *engine, struct engine_task *task, uint64_t now_ns)
{
    struct engine_pool *self = (struct engine_pool *)engine;
    self->now_ns = now_ns;
    task->next = NULL;
    *self->last = task;
    self->last = &task->next;
}

static struct engine_task *engine_pool_poll(struct engine *engine, uint64_t now_ns)
{
    struct engine_pool *self = (struct engine_pool *)engine;
    struct engine_task *list = self->first;
    self->now_ns = now_ns;
    for (struct engine_task *task = list; task; task = task->next) {
        uint64_t started_ns = clock_ns(); // the drive reads none; this is told and decides nothing
        pool_run(self->pool, task->fn, task->arg, task->items);
        task->took_ns = clock_ns() - started_ns;
        task->done_ns = now_ns;
    }
    self->first = NULL;
    self->last = &self->first;
    return list;
}

static uint64_t engine_pool_next_ns(struct engine *engine)
{
    const struct engine_pool *self = (struct engine_pool *)engine;
    return self->first ? self->now_ns : UINT64_MAX;
}

static void engine_pool_close(struct engine *engine)
{
    free(engine);
}

static const struct engine_ops engine_pool_ops = {
    .submit = engine_pool_submit,
    .poll = engine_pool_poll,
    .next_ns = engine_pool_next_ns,
    .close = engine_pool_close,
};

int engine_pool_open(struct engine **out, struct pool *pool, struct inst_msg *msg)
{
    struct engine_pool *self = calloc(1, sizeof *self);
    if (!self)
        return inst_fail(msg, INST_ENOMEM, "engine: no memory");
    self->engine.ops = &engine_pool_ops;
    self->pool = pool;
    self->last = &self->first;
    *out = &self->engine;
    return 0;
}
