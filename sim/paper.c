// SPDX-License-Identifier: Apache-2.0
#include "sim/paper.h"

#include <math.h>
#include <string.h>

const char *const row_class_names[] = {"fitted", "held out", "assumption", "implied"};

// How a row's number follows from its case a, or from a and b.
enum row_rule {
    RULE_SPEED,     // tokens/s of a / of b
    RULE_NOT_KV,    // share of a's step that is not KV access
    RULE_KV,        // share that is
    RULE_KV_LEFT,   // KV access of a / of b
    RULE_PHI,       // pages that a reads / pages that dense attention reads
    RULE_READS,     // GB that decode of one layer reads
    RULE_READ_RATE, // GB/s of flash over the whole step
    RULE_FILL,      // GB that prefill of one layer writes, K counted once
    RULE_WRITES,    // GB that decode of one layer writes
    RULE_BEST,      // batch with the most tokens/s
    RULE_OOM,       // the least batch that does not fit
    RULE_ENDURANCE, // tokens
    RULE_ONCE,      // tokens, K counted once
    RULE_RETRY,     // slowdown of a step when the worst share of its pages is read twice
    RULE_GEMV_US,   // 16 tokens of a head on one unit
    RULE_FILTER_US, // 16 pages through one filter
    RULE_GFLOPS,    // of all units
};

struct definition {
    const char *figure, *quantity;
    double paper;
    enum row_class kind;
    enum row_rule rule;
    struct paper_case a, b;
    const char *reason;
};

#define CASE(system, shape, batch, drives, gpus)                                                   \
    {                                                                                              \
        SIM_##system, shape, batch, drives, gpus                                                   \
    }
#define ONE(system, batch)   CASE(system, "opt-13b", batch, 1, 1)
#define TWO(system, batch)   CASE(system, "opt-13b", batch, 2, 1)
#define MANY(system)         CASE(system, "opt-13b", 256, 20, 1)
#define LLAMA(system, batch) CASE(system, "llama-2-13b", batch, 1, 1)
#define LARGE(system, batch) CASE(system, "opt-30b", batch, 1, 2)
#define NONE                                                                                       \
    {                                                                                              \
        0                                                                                          \
    }
#define ROW(figure, quantity, paper, kind, rule, a, b, reason)                                     \
    {figure, quantity, paper, ROW_##kind, RULE_##rule, a, b, reason},

static const struct definition definitions[] = {
#include "sim/paper_rows.h"
};

enum { ROWS = sizeof definitions / sizeof *definitions };

uint32_t paper_rows(void)
{
    return ROWS;
}

enum row_class paper_row_class(uint32_t i)
{
    return definitions[i].kind;
}

bool paper_row_is_phi(uint32_t i)
{
    return definitions[i].rule == RULE_PHI;
}

int paper_machine(struct machine *machine, uint32_t drives, uint32_t gpus, struct inst_msg *msg)
{
    machine->drives = drives;
    machine->gpus = gpus;
    return machine_load(machine, "a6000", "xeon-5320", "instcsd-zynq7045", msg);
}

int paper_workload(struct workload *workload, const char *shape, uint32_t batch,
                   struct inst_msg *msg)
{
    const struct shape *s = shape_find(shape);
    if (!s)
        return inst_fail(msg, INST_EINVAL, "no model shape '%s'", shape);
    uint32_t tokens = strncmp(shape, "llama", 5) ? 1024 : 2048;
    *workload = (struct workload){.shape = *s, .batch = batch, .input = tokens, .output = tokens};
    return 0;
}

int paper_run(struct sim_result *out, const struct paper_case *what,
              const struct constants *constants, struct drive_source *drives, struct inst_msg *msg)
{
    struct machine machine;
    struct workload workload;
    int err = paper_machine(&machine, what->drives, what->gpus, msg);
    err = err ? err : paper_workload(&workload, what->shape, what->batch, msg);
    return err ? err : sim_run(out, what->system, &machine, &workload, constants, drives, msg);
}

int paper_best(struct sim_result *out, uint32_t *batch, const struct paper_case *what,
               const struct constants *constants, struct drive_source *drives, struct inst_msg *msg)
{
    struct sim_result r;
    struct paper_case at = *what;
    *batch = 0;
    for (at.batch = 4; at.batch <= 256; at.batch *= 2) {
        int err = paper_run(&r, &at, constants, drives, msg);
        if (err)
            return err;
        if (*r.oom || (*batch && r.tokens_per_s <= out->tokens_per_s))
            continue;
        *out = r;
        *batch = at.batch;
    }
    return *batch ? 0 : inst_fail(msg, INST_ENOMEM, "%s fits at no batch", what->shape);
}

static int run_case(struct sim_result *r, const struct paper_case *what,
                    const struct constants *constants, struct drive_source *drives,
                    struct inst_msg *msg)
{
    uint32_t batch;
    if (what->batch)
        return paper_run(r, what, constants, drives, msg);
    return paper_best(r, &batch, what, constants, drives, msg);
}

// Rows about batches.
static int batch_row(struct paper_row *out, const struct definition *d,
                     const struct constants *constants, struct drive_source *drives,
                     struct inst_msg *msg)
{
    struct sim_result r = {0};
    struct paper_case at = d->a;
    uint32_t batch;
    if (d->rule == RULE_BEST) {
        int err = paper_best(&r, &batch, &d->a, constants, drives, msg);
        out->ours = batch;
        return err;
    }
    for (at.batch = 4; at.batch <= 1024; at.batch *= 2) {
        int err = paper_run(&r, &at, constants, drives, msg);
        if (err)
            return err;
        if (*r.oom)
            break;
    }
    out->ours = at.batch;
    return 0;
}

// Rows about bytes and about the units.
static int stored_row(struct paper_row *out, const struct definition *d, const struct sim_result *a,
                      struct inst_msg *msg)
{
    struct machine m;
    struct workload w;
    int err = paper_machine(&m, d->a.drives, d->a.gpus, msg);
    err = err ? err : paper_workload(&w, d->a.shape, d->a.batch, msg);
    if (err)
        return err;
    const struct csd *c = &m.csd;
    double layers = w.shape.layers, dim = w.shape.head_dim;
    switch (d->rule) {
    case RULE_PHI:
        out->ours = a->phi;
        break;
    case RULE_READS:
        out->ours = a->flash_read * w.output / layers / 1e9;
        break;
    case RULE_READ_RATE:
        out->ours = a->flash_read / a->step / 1e9;
        break;
    case RULE_FILL:
        out->ours = workload_kv_bytes(&w, w.input) / layers / 1e9;
        break;
    case RULE_WRITES:
        out->ours = a->flash_written * w.output / layers / 1e9;
        break;
    case RULE_ENDURANCE:
        out->ours = a->endurance;
        break;
    case RULE_ONCE:
        out->ours = a->endurance * 1.5;
        break;
    case RULE_RETRY: {
        // A page read twice holds its flash channel twice.
        const double worst = 0.0047 / 0.807;
        out->ours = worst * a->parts.kv / a->step;
        break;
    }
    case RULE_GEMV_US:
        out->ours = 2 * 16 * dim / c->gemv_flops * 1e6;
        break;
    case RULE_FILTER_US:
        out->ours = 16 * c->page_bytes / c->filter_rate * 1e6;
        break;
    default:
        out->ours = c->kernels * c->gemv_units * c->gemv_flops / 1e9;
    }
    return 0;
}

int paper_row(struct paper_row *out, uint32_t i, const struct constants *constants,
              struct drive_source *drives, struct inst_msg *msg)
{
    const struct definition *d = &definitions[i];
    struct sim_result a = {0}, b = {0};
    *out = (struct paper_row){.figure = d->figure,
                              .quantity = d->quantity,
                              .reason = d->reason,
                              .kind = d->kind,
                              .paper = d->paper};
    int err = run_case(&a, &d->a, constants, drives, msg);
    if (!err && d->b.shape)
        err = run_case(&b, &d->b, constants, drives, msg);
    if (err)
        return err;
    switch (d->rule) {
    case RULE_SPEED:
        out->ours = a.tokens_per_s / b.tokens_per_s;
        break;
    case RULE_NOT_KV:
        out->ours = a.not_kv;
        break;
    case RULE_KV:
        out->ours = 1 - a.not_kv;
        break;
    case RULE_KV_LEFT:
        out->ours = a.parts.kv / b.parts.kv;
        break;
    case RULE_BEST:
    case RULE_OOM:
        return batch_row(out, d, constants, drives, msg);
    default:
        return stored_row(out, d, &a, msg);
    }
    return 0;
}
