// SPDX-License-Identifier: Apache-2.0
#include "late_engine.h"

enum { ITEMS_AT_ONCE = 7 };

static void work(struct late_engine *self, struct late_task *late, size_t items)
{
    const struct engine_task *task = late->task;
    for (; items && late->done < task->items; items--, late->done++) {
        size_t item = (late->first + late->done) % task->items;
        self->items++;
        if (!self->null)
            task->fn(task->arg, item, below(&self->chance, self->workers));
    }
}

static void late_submit(struct engine *engine, struct engine_task *task, uint64_t now_ns)
{
    struct late_engine *self = (struct late_engine *)engine;
    struct late_task *late = self->tasks;
    (void)now_ns;
    self->submitted[task->kind]++;
    while (late < self->tasks + LATE_TASKS && late->task)
        late++;
    self->overflow |= late == self->tasks + LATE_TASKS;
    if (self->overflow) // the test that sees it fails
        return;
    *late = (struct late_task){
        .task = task,
        .order = self->orders++,
        .first = below(&self->chance, task->items < 1000 ? (uint32_t)task->items : 1000),
    };
}

static struct engine_task *late_poll(struct engine *engine, uint64_t now_ns)
{
    struct late_engine *self = (struct late_engine *)engine;
    struct engine_task *list = NULL;
    uint32_t from = below(&self->chance, LATE_TASKS);
    for (uint32_t i = 0; i < LATE_TASKS; i++) {
        struct late_task *late = &self->tasks[(from + i) % LATE_TASKS];
        bool end = now_ns >= UINT64_MAX / 2 || self->null;
        if (!late->task || (!end && self->hold >> late->task->kind & 1))
            continue;
        bool all = end || !below(&self->chance, 2);
        work(self, late, all ? late->task->items : below(&self->chance, ITEMS_AT_ONCE));
        if (late->done < late->task->items || !(end || below(&self->chance, 3) < 2))
            continue;
        for (uint32_t j = 0; j < LATE_TASKS; j++)
            self->overtaken += self->tasks[j].task && self->tasks[j].order < late->order;
        late->task->done_ns = now_ns;
        late->task->next = list;
        list = late->task;
        late->task = NULL;
    }
    return list;
}

static uint64_t late_next_ns(struct engine *engine)
{
    return late_engine_has((const struct late_engine *)engine, UINT32_MAX) ? 0 : UINT64_MAX;
}

static void late_close(struct engine *engine)
{
    (void)engine;
}

static const struct engine_ops late_ops = {
    .submit = late_submit, .poll = late_poll, .next_ns = late_next_ns, .close = late_close};

void late_engine_init(struct late_engine *self, uint64_t seed, unsigned workers)
{
    *self = (struct late_engine){
        .engine.ops = &late_ops, .chance.state = seed, .workers = workers ? workers : 1};
}

bool late_engine_has(const struct late_engine *self, uint32_t kinds)
{
    for (uint32_t i = 0; i < LATE_TASKS; i++) {
        if (self->tasks[i].task && kinds >> self->tasks[i].task->kind & 1)
            return true;
    }
    return false;
}
