// SPDX-License-Identifier: Apache-2.0
#include "sim/engine_timed.h"

static void timed_submit(struct engine *engine, struct engine_task *task, uint64_t now_ns)
{
    struct engine_timed *t = (struct engine_timed *)engine;
    uint64_t ns = 0;
    pool_run(t->pool, task->fn, task->arg, task->items);
    if (task->kind == ENGINE_ATTEND) { // a product and a sum for each fp16 element and query head
        t->bytes += task->bytes;
        ns = duration_ns((double)task->bytes * t->group,
                         t->csd->kernels * t->csd->gemv_units * t->csd->gemv_flops);
    }
    task->done_ns = timeline_take(&t->units, now_ns, ns);
    task->next = NULL;
    *t->end = task;
    t->end = &task->next;
}

static struct engine_task *timed_poll(struct engine *engine, uint64_t now_ns)
{
    struct engine_timed *t = (struct engine_timed *)engine;
    struct engine_task *task = t->first;
    if (!task || task->done_ns > now_ns)
        return NULL;
    t->first = task->next;
    if (!t->first)
        t->end = &t->first;
    task->next = NULL;
    return task;
}

static uint64_t timed_next_ns(struct engine *engine)
{
    const struct engine_timed *t = (const struct engine_timed *)engine;
    return t->first ? t->first->done_ns : UINT64_MAX;
}

static void timed_close(struct engine *engine)
{
    (void)engine;
}

void engine_timed_open(struct engine_timed *timed, const struct csd *csd, double group,
                       struct pool *pool)
{
    static const struct engine_ops ops = {
        .submit = timed_submit, .poll = timed_poll, .next_ns = timed_next_ns, .close = timed_close};
    *timed =
        (struct engine_timed){.engine = {.ops = &ops}, .pool = pool, .csd = csd, .group = group};
    timed->end = &timed->first;
}
