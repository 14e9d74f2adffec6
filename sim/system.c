// SPDX-License-Identifier: Apache-2.0
#include "sim/system.h"
#include "base/timeline.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum {
    CONTEXTS = 16,      // of the drives: linear between the steps of a page
    CONTEXTS_FINE = 64, // of rivals: where the page cache ends counts
    STAGES_MAX = 16,
    MICRO_MAX = 16,
    ROUNDS = 3, // tokens until a pipeline is steady
};

const char *const system_names[SYSTEM_COUNT] = {
#define SYSTEM_NAME(name, what) #name,
    SYSTEMS(SYSTEM_NAME)
#undef SYSTEM_NAME
};
const char *const system_texts[SYSTEM_COUNT] = {
#define SYSTEM_TEXT(name, what) what,
    SYSTEMS(SYSTEM_TEXT)
#undef SYSTEM_TEXT
};

struct run {
    const struct machine *m;
    const struct workload *w;
    const struct constants *c;
    struct drive_source *drives;
    struct sim_result *r;
    struct inst_msg *msg;
};

static double gpu_vram_rate(const struct run *s)
{
    return s->m->gpu.vram_rate * s->m->gpu.vram_efficiency;
}

static double gpu_flops(const struct run *s)
{
    return s->m->gpu.flops * s->m->gpu.flops_efficiency;
}

// Projections and FFN of one decode step for `batch` sequences, on one GPU: a roofline.
static double linear(const struct run *s, double batch)
{
    double p = s->w->shape.parameters;
    return fmax(2 * p / gpu_vram_rate(s), 2 * p * batch / gpu_flops(s));
}

static double prefill_compute(const struct run *s, double batch)
{
    const struct shape *m = &s->w->shape;
    double in = s->w->input;
    return (2 * m->parameters + 2.0 * m->layers * m->heads * m->head_dim * in) * in * batch /
           gpu_flops(s) / s->m->gpus;
}

static double host_work(const struct run *s, double batch)
{
    const struct shape *m = &s->w->shape;
    return 1e-9 * (s->c->command_ns * batch * m->kv_heads + s->c->layer_ns) * m->layers;
}

static double context_at(const struct run *s, int i, int n)
{
    return s->w->input + (i + 0.5) / n * s->w->output;
}

static void verdict(struct sim_result *r, const char *where, double need, double room)
{
    if (need > room && !*r->oom)
        snprintf(r->oom, sizeof r->oom, "%s: %.1f GB needed, %.1f GB there", where, need / 1e9,
                 room / 1e9);
}

static void finish(struct run *s)
{
    struct sim_result *r = s->r;
    r->tokens_per_s = s->w->batch * (double)s->w->output / (r->prefill + r->step * s->w->output);
    r->not_kv = 1 - r->parts.kv / r->step;
    r->phi = r->dense_bytes > 0 ? r->flash_read / r->dense_bytes : 0;
}

// ---- on computational drives -------------------------------------------------------------------

// What one layer of a micro-batch takes of each thing.
struct layer_times {
    uint64_t before, after, host, link, drive; // before and after attention: the GPU
};

// Micro-batches go through the layers, the GPUs have equal parts of these, the drives are shared.
// Seconds of one token of all micro-batches once the pipeline is full.
static double pipeline(const struct layer_times *t, uint32_t layers, uint32_t gpus, uint32_t micro)
{
    struct timeline gpu[STAGES_MAX] = {0}, host[STAGES_MAX] = {0}, drives = {0}, link = {0};
    uint64_t ready[MICRO_MAX] = {0}, done[ROUNDS] = {0};
    uint32_t at[MICRO_MAX] = {0};
    for (;;) {
        uint32_t next = micro;
        for (uint32_t i = 0; i < micro; i++)
            if (at[i] < ROUNDS * layers && (next == micro || ready[i] < ready[next]))
                next = i;
        if (next == micro)
            break;
        uint32_t stage = at[next] % layers * gpus / layers;
        uint64_t now = timeline_take(&gpu[stage], ready[next], t->before);
        now = timeline_take(&host[stage], now, t->host);
        now = timeline_take(&link, now, t->link);
        now = timeline_take(&drives, now, t->drive);
        now = timeline_take(&gpu[stage], now, t->after);
        ready[next] = now;
        uint32_t round = at[next]++ / layers;
        if (at[next] % layers == 0)
            done[round] = later(done[round], now);
    }
    return 1e-9 * (double)(done[ROUNDS - 1] - done[ROUNDS - 2]);
}

static struct selection selection_of(const struct constants *c, enum method_kind method)
{
    if (method == SIM_PAGES)
        return (struct selection){.tokens = c->pages_share,
                                  .run = c->pages_share < 1 ? 1 / (1 - c->pages_share) : 1};
    return (struct selection){.channels = c->channel_share,
                              .tokens = c->token_share,
                              .run = c->run,
                              .page_channels = (uint32_t)c->page_channels,
                              .tail_in_dram = c->tail_in_dram > 0};
}

static double q_and_out_bytes(const struct shape *m, double batch) // of a layer
{
    return batch * 2.0 * (2.0 * m->heads + 2.0 * m->kv_heads) * m->head_dim;
}

// A step at one context; adds its parts.
static int insta_step(struct run *s, enum method_kind method, double context, double *seconds)
{
    const struct machine *m = s->m;
    const struct shape *shape = &s->w->shape;
    uint32_t micro = m->gpus > 1 ? (uint32_t)s->c->micro_batches : 1;
    struct workload part = *s->w;
    struct drive_timing d;
    struct selection sel = selection_of(s->c, method);
    part.batch = (part.batch + micro - 1) / micro;
    int err = s->drives ? s->drives->timing(s->drives, &d, m, &part, method, &sel, context, s->msg)
                        : drive_timing(&d, m, &part, method, &sel, context, s->msg);
    if (err)
        return err;
    double jobs = (double)part.batch * shape->kv_heads, layers = shape->layers;
    double drives = jobs / ((double)drive_heads(m, shape) * drive_sequences(m, &part));
    double lin = linear(s, part.batch) / layers,
           link = q_and_out_bytes(shape, part.batch) / drives / m->csd.link_rate,
           host = host_work(s, part.batch) / layers;
    struct layer_times t = {.before = duration_ns(lin / 4, 1),
                            .after = duration_ns(lin * 3 / 4, 1),
                            .host = duration_ns(host, 1),
                            .link = duration_ns(link, 1),
                            .drive = duration_ns(d.seconds, 1)};
    *seconds = pipeline(&t, shape->layers, m->gpus, micro);
    struct sim_parts *p = &s->r->parts;
    double all = layers * micro;
    p->kv += all * (m->csd.overlap > 0 ? d.seconds : d.read);
    p->engine += all * (m->csd.overlap > 0 ? 0 : d.seconds - d.read);
    p->transfer += all * link;
    p->host += all * host / m->gpus;
    p->gpu += all * lin / m->gpus;
    s->r->flash_read += all * d.bytes * drives;
    s->r->dense_bytes += all * d.dense * drives;
    s->r->tail_bytes = fmax(s->r->tail_bytes, all * d.tail_bytes * drives);
    s->r->error = fmax(s->r->error, d.error / sqrt(CONTEXTS));
    return 0;
}

static void scale_parts(struct sim_result *r, double by)
{
    double *parts[] = {&r->parts.kv,  &r->parts.engine, &r->parts.transfer, &r->parts.host,
                       &r->parts.gpu, &r->flash_read,   &r->dense_bytes,    &r->step};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        *parts[i] *= by;
}

static void insta_storage(struct run *s, enum method_kind method)
{
    struct sim_result *r = s->r;
    const struct shape *m = &s->w->shape;
    double copies = method == SIM_SPARF ? 1.5 : 1, tokens = (double)s->w->input + s->w->output;
    double token_bytes = shape_kv_bytes(m) * copies;
    r->waf = 1; // the drive copies nothing, and keeps its records in spare areas: drive_wear.h
    r->stored = s->w->batch * tokens * token_bytes;
    r->written = r->stored * r->waf;
    r->flash_written = s->w->batch * token_bytes * r->waf;
    r->endurance =
        s->m->drives * s->m->csd.capacity_bytes * s->m->csd.cycles / (token_bytes * r->waf);
    r->drive_link = q_and_out_bytes(m, s->w->batch) * m->layers;
    r->gpu_link = r->drive_link;
    // Prefill goes in parts of the batch where the KV of a layer of all of it has no room.
    double fresh = (double)s->w->input * shape_kv_bytes(m) / m->layers;
    verdict(r, "VRAM (weights, KV of a sequence and layer)",
            shape_weight_bytes(m) / s->m->gpus + fresh, s->m->gpu.vram_bytes);
    verdict(r, "drives", r->written, s->m->drives * s->m->csd.capacity_bytes);
    double write = r->written * s->w->input / tokens / (s->m->drives * s->m->csd.program_rate);
    r->prefill = fmax(prefill_compute(s, s->w->batch), write);
}

static int run_insta(struct run *s, enum method_kind method)
{
    double half = 0;
    for (int i = 0; i < CONTEXTS; i++) {
        double seconds;
        int err = insta_step(s, method, context_at(s, i, CONTEXTS), &seconds);
        if (err)
            return err;
        s->r->step += seconds;
        half += i % 4 == 1 || i % 4 == 2 ? seconds : 0; // as good a sample, half as large
    }
    s->r->error = hypot(s->r->error, (2 * half - s->r->step) / s->r->step);
    scale_parts(s->r, 1.0 / CONTEXTS);
    insta_storage(s, method);
    return 0;
}

// Part of the batch is kept as the inputs of the layers, half as large as K and V of as many heads:
// the GPU fetches it over the drives' links and computes K and V again.
static int run_hilos(struct run *s)
{
    struct machine m = *s->m;
    const struct shape *shape = &s->w->shape;
    m.csd.overlap = 1; // streams
    s->m = &m;
    int err = run_insta(s, SIM_DENSE);
    if (err)
        return err;
    double hidden = (double)shape->heads * shape->head_dim,
           kv_dim = 2.0 * shape->kv_heads * shape->head_dim,
           tokens = s->w->batch * (s->w->input + s->w->output / 2.0),
           x_bytes = tokens * 2 * hidden * shape->layers;
    double fetch = x_bytes / fmin(m.drives * m.csd.link_rate, m.gpu.link_rate),
           again = tokens * 2 * hidden * kv_dim * shape->layers / gpu_flops(s) / m.gpus,
           path = fmax(fetch, again);
    double share = hidden < kv_dim ? s->r->parts.kv / (s->r->parts.kv + path) : 0;
    s->r->x_share = share;
    s->r->step -= s->r->parts.kv * share;
    s->r->parts.kv *= 1 - share;
    s->r->gpu_link += share * x_bytes;
    s->r->drive_link += share * x_bytes;
    s->r->flash_read = s->r->flash_read * (1 - share) + share * x_bytes;
    return 0;
}

// ---- on host memory and SSDs -------------------------------------------------------------------

static int run_flexgen(struct run *s, enum system_id system)
{
    const struct shape *m = &s->w->shape;
    const struct constants *c = s->c;
    struct sim_result *r = s->r;
    bool sparq = system == SIM_flexgen_sparq, gds = system == SIM_flexgen_gds;
    uint32_t gpus = s->m->gpus;
    double moved_share = sparq ? c->sparq_bytes : 1, stored_share = sparq ? c->sparq_store : 1;
    double cache =
        (s->m->host.dram_bytes - s->m->host.system_bytes - shape_weight_bytes(m)) * c->page_cache;
    for (int i = 0; i < CONTEXTS_FINE; i++) {
        double all = workload_kv_bytes(s->w, context_at(s, i, CONTEXTS_FINE)),
               kv = all * moved_share;
        // A cyclic scan through a cache that gives up the oldest first: all of it hits or nothing.
        bool from_ssd = all * stored_share > cache || gds;
        double disk = from_ssd ? kv / (gds ? c->direct_rate : c->filesystem_rate) : 0;
        r->parts.kv += disk + (gds ? 0 : kv / c->path_rate);
        r->parts.engine += kv / gpu_vram_rate(s);
        r->flash_read += from_ssd ? kv : 0;
        r->gpu_link += kv;
        r->vram += kv + shape_weight_bytes(m);
        r->dense_bytes += all;
    }
    r->parts.host = host_work(s, s->w->batch) * CONTEXTS_FINE;
    r->parts.gpu = linear(s, s->w->batch) * CONTEXTS_FINE / gpus;
    r->step = r->parts.kv + r->parts.engine + r->parts.host + r->parts.gpu;
    double filled = gpus > 1 ? (c->micro_batches + gpus - 1) / (gpus * c->micro_batches) : 1;
    scale_parts(r, 1.0 / CONTEXTS_FINE);
    scale_parts(r, filled);
    r->flash_read /= filled;
    r->dense_bytes /= filled;
    r->gpu_link /= CONTEXTS_FINE;
    r->vram /= CONTEXTS_FINE;
    r->drive_link = r->flash_read;
    double tokens = (double)s->w->input + s->w->output;
    r->stored = r->written = s->w->batch * tokens * shape_kv_bytes(m) * stored_share;
    r->flash_written = r->stored / tokens;
    r->prefill = prefill_compute(s, s->w->batch) +
                 s->w->batch * s->w->input * shape_kv_bytes(m) / c->flexgen_write_rate;
    double scores = c->score_copies * s->w->batch * m->heads * 2.0 * s->w->input * s->w->input;
    verdict(r, "VRAM (weights, scores of prefill)", (shape_weight_bytes(m) + scores) / gpus,
            s->m->gpu.vram_bytes);
    verdict(r, "drives", r->stored, s->m->drives * s->m->csd.capacity_bytes);
    return 0;
}

// As good as it gets without computing in the drives.
static int run_direct(struct run *s)
{
    const struct machine *m = s->m;
    struct sim_result *r = s->r;
    double kv = workload_kv_bytes(s->w, s->w->input + s->w->output / 2.0),
           tokens = (double)s->w->input + s->w->output;
    r->parts.kv = kv / fmin(m->drives * m->csd.link_rate, m->gpus * m->gpu.link_rate);
    r->parts.engine = kv / gpu_vram_rate(s) / m->gpus;
    r->parts.host = host_work(s, s->w->batch) / m->gpus;
    r->parts.gpu = linear(s, s->w->batch) / m->gpus;
    r->step = r->parts.kv + r->parts.engine + r->parts.host + r->parts.gpu;
    r->flash_read = r->drive_link = r->gpu_link = r->dense_bytes = kv;
    r->vram = kv + shape_weight_bytes(&s->w->shape);
    r->stored = r->written = workload_kv_bytes(s->w, tokens);
    r->prefill = fmax(prefill_compute(s, s->w->batch),
                      workload_kv_bytes(s->w, s->w->input) / (m->drives * m->csd.program_rate));
    verdict(r, "VRAM (weights)", shape_weight_bytes(&s->w->shape) / m->gpus, m->gpu.vram_bytes);
    verdict(r, "drives", r->stored, m->drives * m->csd.capacity_bytes);
    return 0;
}

static int run_deepspeed(struct run *s)
{
    struct sim_result *r = s->r;
    double tokens = (double)s->w->input + s->w->output,
           room = s->m->host.dram_bytes - s->m->host.system_bytes;
    // The old and the longer copy are there at the same time.
    double need = 2 * workload_kv_bytes(s->w, tokens);
    double kv = workload_kv_bytes(s->w, s->w->input + s->w->output / 2.0);
    r->parts.kv = kv / (need < room ? s->c->dram_path_rate : s->c->swap_rate);
    r->parts.gpu = linear(s, s->w->batch) / s->m->gpus;
    r->step = r->parts.kv + r->parts.gpu;
    r->gpu_link = r->dense_bytes = kv;
    r->vram = kv + shape_weight_bytes(&s->w->shape);
    r->stored = workload_kv_bytes(s->w, tokens);
    r->prefill = fmax(prefill_compute(s, s->w->batch),
                      workload_kv_bytes(s->w, s->w->input) / s->m->gpu.link_rate);
    verdict(r, "VRAM (weights)", shape_weight_bytes(&s->w->shape) / s->m->gpus,
            s->m->gpu.vram_bytes);
    return 0;
}

static double vram_room(const struct run *s)
{
    return s->m->gpus * (s->m->gpu.vram_bytes * s->m->gpu.usable - 1e9) -
           shape_weight_bytes(&s->w->shape);
}

static int run_recompute(struct run *s)
{
    const struct shape *m = &s->w->shape;
    struct sim_result *r = s->r;
    double room = fmax(0, vram_room(s)), per_token = shape_kv_bytes(m), batch = s->w->batch;
    for (int i = 0; i < CONTEXTS_FINE; i++) {
        double context = context_at(s, i, CONTEXTS_FINE), kv = workload_kv_bytes(s->w, context);
        double miss = fmax(0, batch - room / (context * per_token));
        double flops = miss * context *
                       (2 * m->parameters + 2.0 * m->layers * m->heads * m->head_dim * context);
        r->parts.gpu += flops / gpu_flops(s) / s->c->recompute_every / s->m->gpus;
        r->parts.kv += fmin(kv, room) / gpu_vram_rate(s) / s->m->gpus;
        r->vram += fmin(kv, room) + shape_weight_bytes(m);
        r->dense_bytes += kv;
    }
    r->parts.gpu += linear(s, batch) * CONTEXTS_FINE / s->m->gpus;
    r->step = r->parts.kv + r->parts.gpu;
    r->vram /= CONTEXTS_FINE;
    scale_parts(r, 1.0 / CONTEXTS_FINE);
    r->prefill = prefill_compute(s, batch);
    verdict(r, "VRAM (weights)", shape_weight_bytes(m) / s->m->gpus, s->m->gpu.vram_bytes);
    return 0;
}

static int run_queueing(struct run *s)
{
    const struct shape *m = &s->w->shape;
    struct sim_result *r = s->r;
    double context = s->w->input + s->w->output / 2.0, batch = s->w->batch;
    double fit = fmin(batch, fmax(0, vram_room(s)) / (context * shape_kv_bytes(m)));
    verdict(r, "VRAM (weights and one sequence)", fit < 1 ? 2 : 0, 1);
    fit = fmax(fit, 1);
    double waves = batch / fit, kv = fit * context * shape_kv_bytes(m);
    r->parts.kv = waves * kv / gpu_vram_rate(s) / s->m->gpus;
    r->parts.gpu = waves * linear(s, fit) / s->m->gpus;
    r->step = r->parts.kv + r->parts.gpu;
    r->vram = waves * (kv + shape_weight_bytes(m));
    r->dense_bytes = batch * context * shape_kv_bytes(m);
    r->prefill = prefill_compute(s, batch);
    return 0;
}

int sim_run(struct sim_result *out, enum system_id system, const struct machine *machine,
            const struct workload *workload, const struct constants *constants,
            struct drive_source *drives, struct inst_msg *msg)
{
    int err = machine_check(machine, msg);
    err = err ? err : workload_check(workload, msg);
    if (err)
        return err;
    if (machine->gpus > STAGES_MAX)
        return inst_fail(msg, INST_EINVAL, "%u GPUs: at most %d", machine->gpus, STAGES_MAX);
    for (uint32_t i = 0; i < CONSTANT_COUNT; i++) {
        double v = ((const double *)constants)[i];
        const struct constant_info *info = &constant_infos[i];
        if (info->kind != CONSTANT_FITTED && !(v >= info->least && v <= info->most))
            return inst_fail(msg, INST_EINVAL, "%s = %g is out of range (%g to %g)", info->name, v,
                             info->least, info->most);
    }
    struct sim_result result = {0};
    struct run s = {
        .m = machine, .w = workload, .c = constants, .drives = drives, .r = &result, .msg = msg};
    switch (system) {
    case SIM_insta:
        err = run_insta(&s, SIM_DENSE);
        break;
    case SIM_insta_sparf:
        err = run_insta(&s, SIM_SPARF);
        break;
    case SIM_insta_pages:
        err = run_insta(&s, SIM_PAGES);
        break;
    case SIM_hilos:
        err = run_hilos(&s);
        break;
    case SIM_flexgen:
    case SIM_flexgen_gds:
    case SIM_flexgen_sparq:
        err = run_flexgen(&s, system);
        break;
    case SIM_direct:
        err = run_direct(&s);
        break;
    case SIM_deepspeed:
        err = run_deepspeed(&s);
        break;
    case SIM_recompute:
        err = run_recompute(&s);
        break;
    case SIM_queueing:
        err = run_queueing(&s);
        break;
    case SYSTEM_COUNT:
        return inst_fail(msg, INST_EINVAL, "no such system");
    }
    if (err)
        return err;
    s.m = machine;
    finish(&s);
    *out = result;
    return 0;
}
