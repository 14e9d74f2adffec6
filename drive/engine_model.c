// SPDX-License-Identifier: Apache-2.0
#include "drive/engine_model.h"
#include "base/checked.h"

#include <stdlib.h>

struct engine_model {
    struct engine engine;
    struct engine_params params;
    struct pool *pool;
    struct flash *nand;
    struct timeline units;
    struct engine_task *first, **end; // in the order of their ends
    struct engine_times times;
};

int engine_params_read(struct engine_params *out, const struct profile *profile,
                       struct inst_msg *msg)
{
    enum { UNITS_MOST = 4096 };
    const struct profile_field fields[] = {
        {"kernels", PROFILE_COUNT, &out->kernels, 1, UNITS_MOST, false},
        {"gemv_units", PROFILE_COUNT, &out->gemv_units, 1, UNITS_MOST, false},
        {"gemv", PROFILE_FLOPS, &out->gemv, 1e6, 1e18, false},
        {"softmax_units", PROFILE_COUNT, &out->softmax_units, 1, UNITS_MOST, false},
        {"softmax", PROFILE_FLOPS, &out->softmax, 1e3, 1e15, false},
        {"filter", PROFILE_RATE, &out->filter, 1e6, 1e12, false},
        {"argtopk", PROFILE_HERTZ, &out->argtopk, 1e3, 1e15, false},
        {"staging", PROFILE_BYTES, &out->staging, 1, 0, false},
        {"overlap", PROFILE_COUNT, &out->overlap, 0, 1, false},
    };
    *out = (struct engine_params){0};
    return profile_read(profile, "engine", fields, sizeof fields / sizeof *fields, msg);
}

int emulated_units_read(struct emulated_units *out, struct flash_nand_options *options,
                        struct inst_msg *msg)
{
    struct flash_nand_about about = flash_nand_about(options);
    const struct profile_field link[] = {{"rate", PROFILE_RATE, &out->link, 1e6, 1e12, false}};
    *out = (struct emulated_units){0};
    if (about.no_engine)
        return 0;
    struct profile *profile = malloc(sizeof *profile); // too large for small stacks
    int err = profile ? profile_open(profile, about.profile, msg)
                      : inst_fail(msg, INST_ENOMEM, "engine: no memory");
    out->has_engine = !err && profile_has(profile, "engine");
    if (out->has_engine)
        err = engine_params_read(&out->engine, profile, msg);
    if (out->has_engine && !err)
        flash_nand_options_filter(options, out->engine.filter);
    if (!err && profile_has(profile, "link"))
        err = profile_read(profile, "link", link, 1, msg);
    free(profile);
    return err;
}

uint64_t engine_model_ns(const struct engine_params *p, const struct engine_work *work,
                         struct engine_times *times)
{
    double kernels = (double)p->kernels;
    *times = (struct engine_times){
        .gemv_ns =
            duration_ns(2.0 * (double)work->products, kernels * (double)p->gemv_units * p->gemv),
        .softmax_ns =
            duration_ns((double)work->elements, kernels * (double)p->softmax_units * p->softmax),
        .argtopk_ns = duration_ns((double)work->ranked, p->argtopk),
    };
    uint64_t ns = max_u64(times->gemv_ns, times->softmax_ns);
    return ns > UINT64_MAX - times->argtopk_ns ? UINT64_MAX : ns + times->argtopk_ns;
}

static void model_submit(struct engine *engine, struct engine_task *task, uint64_t now_ns)
{
    struct engine_model *self = (struct engine_model *)engine;
    struct engine_times times;
    uint64_t ns = engine_model_ns(&self->params, &task->work, &times);
    self->times.gemv_ns += times.gemv_ns;
    self->times.softmax_ns += times.softmax_ns;
    self->times.argtopk_ns += times.argtopk_ns;
    pool_run(self->pool, task->fn, task->arg, task->items);
    task->took_ns = ns;
    task->done_ns = timeline_take(&self->units, now_ns, ns);
    if (self->nand && !self->params.overlap && times.gemv_ns)
        flash_nand_hold(self->nand, task->done_ns - ns + times.gemv_ns);
    task->next = NULL;
    *self->end = task;
    self->end = &task->next;
}

static struct engine_task *model_poll(struct engine *engine, uint64_t now_ns)
{
    struct engine_model *self = (struct engine_model *)engine;
    struct engine_task *task = self->first;
    if (!task || task->done_ns > now_ns)
        return NULL;
    self->first = task->next;
    if (!self->first)
        self->end = &self->first;
    task->next = NULL;
    return task;
}

static uint64_t model_next_ns(struct engine *engine)
{
    const struct engine_model *self = (const struct engine_model *)engine;
    return self->first ? self->first->done_ns : UINT64_MAX;
}

static void model_close(struct engine *engine)
{
    free(engine);
}

static const struct engine_ops model_ops = {
    .submit = model_submit, .poll = model_poll, .next_ns = model_next_ns, .close = model_close};

int engine_model_open(struct engine **out, const struct engine_params *params, struct pool *pool,
                      struct flash *nand, struct inst_msg *msg)
{
    struct engine_model *self = calloc(1, sizeof *self);
    if (!self)
        return inst_fail(msg, INST_ENOMEM, "engine: no memory");
    *self = (struct engine_model){.engine = {.ops = &model_ops, .counts = true},
                                  .params = *params,
                                  .pool = pool,
                                  .nand = nand};
    self->end = &self->first;
    *out = &self->engine;
    return 0;
}

void engine_model_counters(const struct engine *engine, struct engine_model_counters *out)
{
    const struct engine_model *self = (const struct engine_model *)engine;
    *out = (struct engine_model_counters){.units = self->times, .busy_ns = self->units.busy_ns};
}
