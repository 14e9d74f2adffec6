// SPDX-License-Identifier: Apache-2.0
// instinfer sim --paper: every figure and table of the paper that has numbers, as files, and the
// deviations of ours from those that its text states. The paper's bars carry no numbers, so a
// figure as a whole can only be looked at; its own choice of batches is taken from its text.
#include "cmd/options.h"
#include "cmd/sim/sim.h"
#include "cmd/sim/figures.h"
#include "sim/paper.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS_MAX = 64 };

struct paper {
    const char *folder;
    const struct constants *c;
    struct drive_source *drives;
    struct figure figure;
    struct paper_row rows[ROWS_MAX];
    int code; // of the first failure; nothing is done after it
};

static struct sim_result run(struct paper *p, struct paper_case what, const struct constants *c,
                             uint32_t tokens)
{
    struct sim_result r = {0};
    struct machine m;
    struct workload w;
    struct inst_msg msg = {0};
    if (p->code)
        return r;
    int err = paper_machine(&m, what.drives, what.gpus, &msg);
    err = err ? err : paper_workload(&w, what.shape, what.batch, &msg);
    if (!err && tokens)
        w.input = w.output = tokens;
    err = err ? err : sim_run(&r, what.system, &m, &w, c, p->drives, &msg);
    if (err)
        p->code = fail(EXIT_FAILED, "sim: %s", msg.text);
    return r;
}

static struct figure *begin(struct paper *p, const char *name, const char *title, const char *x,
                            const char *y)
{
    p->figure = (struct figure){.name = name, .title = title, .x_label = x, .y_label = y};
    return &p->figure;
}

static void end(struct paper *p)
{
    if (!p->code)
        p->code = figure_write(p->folder, &p->figure);
}

static double speed(const struct sim_result *r)
{
    return *r->oom ? NAN : r->tokens_per_s;
}

// Tokens per second over the batch.
static void throughput(struct paper *p, const char *name, const char *title, struct paper_case what,
                       uint32_t most, const enum system_id *systems, size_t n)
{
    struct figure *f = begin(p, name, title, "batch", "tokens/s");
    f->x_log = f->y_log = true;
    for (f->n_series = 0; f->n_series < n; f->n_series++) {
        what.system = systems[f->n_series];
        f->series[f->n_series] = system_names[what.system];
        f->n = 0;
        for (what.batch = 4; what.batch <= most; what.batch *= 2) {
            struct sim_result r = run(p, what, p->c, 0);
            f->x[f->n] = what.batch;
            f->y[f->n_series][f->n++] = speed(&r);
        }
    }
    end(p);
}

static void add_parts(struct figure *f, const struct sim_result *r, double x)
{
    const double parts[] = {r->parts.kv,   r->parts.engine, r->parts.transfer,
                            r->parts.host, r->parts.gpu,    r->step};
    static const char *const names[] = {
        "KV access", "engine or GPU attention", "q k v out", "host", "GPU", "step"};
    f->n_series = 6;
    for (size_t s = 0; s < 6; s++) {
        f->series[s] = names[s];
        f->y[s][f->n] = parts[s];
    }
    f->x[f->n++] = x;
}

static void motivation(struct paper *p)
{
    struct figure *f = begin(p, "fig04", "FlexGen: a decode step by its parts", "batch", "seconds");
    f->x_log = f->y_log = true;
    for (uint32_t batch = 4; batch <= 64; batch *= 2) {
        struct sim_result r =
            run(p, (struct paper_case){SIM_flexgen, "opt-13b", batch, 1, 1}, p->c, 0);
        add_parts(f, &r, batch);
    }
    end(p);
    static const enum system_id rivals[] = {SIM_deepspeed, SIM_flexgen};
    throughput(p, "fig05", "Offline inference without computational drives: OPT-13B",
               (struct paper_case){.shape = "opt-13b", .drives = 1, .gpus = 1}, 64, rivals, 2);
    // The roofline of the GPU: what an operator does with a byte bounds what it reaches.
    f = begin(p, "fig06", "Operators on the A6000's roofline: OPT-13B", "batch", "TFLOPS");
    struct machine m = {0};
    struct workload w = {0};
    struct inst_msg msg = {0};
    if (paper_machine(&m, 1, 1, &msg) || paper_workload(&w, "opt-13b", 1, &msg)) {
        p->code = p->code ? p->code : fail(EXIT_FAILED, "sim: %s", msg.text);
        return;
    }
    f->x_log = f->y_log = true;
    static const char *const names[] = {"prefill: products", "prefill: attention",
                                        "decode: products", "decode: attention"};
    double rate = m.gpu.vram_rate * m.gpu.vram_efficiency,
           peak = m.gpu.flops * m.gpu.flops_efficiency;
    for (uint32_t batch = 1; batch <= 256; batch *= 2, f->n++) {
        const double intensity[] = {(double)batch * w.input, w.input / 2.0, batch, 1};
        f->x[f->n] = batch;
        f->n_series = 4;
        for (size_t s = 0; s < 4; s++) {
            f->series[s] = names[s];
            f->y[s][f->n] = fmin(peak, rate * intensity[s]) / 1e12;
        }
    }
    end(p);
}

static void comparisons(struct paper *p)
{
    static const enum system_id all[] = {
        SIM_insta,         SIM_insta_sparf, SIM_insta_pages, SIM_flexgen,  SIM_flexgen_gds,
        SIM_flexgen_sparq, SIM_deepspeed,   SIM_recompute,   SIM_queueing, SIM_hilos};
    throughput(p, "fig14", "OPT-13B, 1 drive",
               (struct paper_case){.shape = "opt-13b", .drives = 1, .gpus = 1}, 256, all, 10);
    throughput(p, "fig15", "OPT-13B, 2 drives",
               (struct paper_case){.shape = "opt-13b", .drives = 2, .gpus = 1}, 256, all, 10);
    throughput(p, "fig16", "OPT-30B, 2 GPUs, 1 drive",
               (struct paper_case){.shape = "opt-30b", .drives = 1, .gpus = 2}, 128, all, 6);
    throughput(p, "fig17", "Llama-2-13B, 1 drive",
               (struct paper_case){.shape = "llama-2-13b", .drives = 1, .gpus = 1}, 128, all, 10);
}

static void breakdown(struct paper *p)
{
    static const struct {
        const char *name, *title;
        enum system_id host, drive;
    } two[] = {
        {"fig18", "A decode step by its parts, batch 64, dense; 0 drives: FlexGen", SIM_flexgen,
         SIM_insta},
        {"fig19", "The same, 1/8; 0 drives: FlexGen-SparQ", SIM_flexgen_sparq, SIM_insta_sparf}};
    for (size_t i = 0; i < 2; i++) {
        struct figure *f = begin(p, two[i].name, two[i].title, "drives", "seconds");
        f->y_log = true;
        for (uint32_t drives = 0; drives <= 4; drives = drives ? 2 * drives : 1) {
            struct paper_case what = {drives ? two[i].drive : two[i].host, "opt-13b", 64,
                                      drives ? drives : 1, 1};
            struct sim_result r = run(p, what, p->c, 0);
            add_parts(f, &r, drives);
        }
        end(p);
    }
}

static void sweeps(struct paper *p)
{
    static const enum system_id ours[] = {SIM_insta, SIM_insta_sparf};
    struct figure *f = begin(p, "fig20", "Drives, OPT-13B, batch 256", "drives", "times one drive");
    for (f->n_series = 0; f->n_series < 2; f->n_series++) {
        f->series[f->n_series] = system_names[ours[f->n_series]];
        f->n = 0;
        double one = 0;
        for (uint32_t drives = 1; drives <= 20; drives++) {
            struct paper_case what = {ours[f->n_series], "opt-13b", 256, drives, 1};
            struct sim_result r = run(p, what, p->c, 0);
            one = drives == 1 ? r.tokens_per_s : one;
            f->x[f->n] = drives;
            f->y[f->n_series][f->n++] = r.tokens_per_s / one;
        }
    }
    end(p);
    f = begin(p, "fig21", "Compression: r / head_dim = k / tokens, OPT-13B, batch 64", "1 / share",
              "tokens/s");
    f->x_log = true;
    f->n_series = 2;
    f->series[0] = system_names[SIM_insta_sparf];
    f->series[1] = "phi";
    for (uint32_t by = 1; by <= 32; by *= 2, f->n++) {
        struct constants c = *p->c;
        c.channel_share = c.token_share = 1.0 / by;
        c.run = fmax(c.run, 1 / (1 - fmin(c.token_share, 0.5))); // no run is shorter than chance
        struct sim_result r =
            run(p, (struct paper_case){SIM_insta_sparf, "opt-13b", 64, 1, 1}, &c, 0);
        f->x[f->n] = by;
        f->y[0][f->n] = r.tokens_per_s;
        f->y[1][f->n] = r.phi;
    }
    end(p);
    static const enum system_id lengths[] = {SIM_insta, SIM_insta_sparf, SIM_flexgen, SIM_deepspeed,
                                             SIM_queueing};
    f = begin(p, "fig22", "Length, OPT-13B, batch 16", "tokens in and out", "tokens/s");
    f->x_log = f->y_log = true;
    for (f->n_series = 0; f->n_series < 5; f->n_series++) {
        f->series[f->n_series] = system_names[lengths[f->n_series]];
        f->n = 0;
        for (uint32_t tokens = 256; tokens <= 16384; tokens *= 2) {
            struct paper_case what = {lengths[f->n_series], "opt-13b", 16, 1, 1};
            struct sim_result r = run(p, what, p->c, tokens);
            f->x[f->n] = tokens;
            f->y[f->n_series][f->n++] = speed(&r);
        }
    }
    end(p);
    f = begin(p, "fig23", "Read retries, batch 64", "% of pages read twice", "% slower");
    f->n_series = 2;
    for (size_t s = 0; s < 2; s++) {
        struct sim_result r = run(p, (struct paper_case){ours[s], "opt-13b", 64, 1, 1}, p->c, 0);
        f->series[s] = system_names[ours[s]];
        f->n = 0;
        for (double share = 0; share <= 2; share += 0.25) {
            f->x[f->n] = share;
            f->y[s][f->n++] = share * r.parts.kv / r.step;
        }
    }
    end(p);
}

// ---- tables ------------------------------------------------------------------------------------

static void write_rows(FILE *f, const void *arg, const char *only)
{
    const struct paper *p = arg;
    fputs("figure,quantity,paper,ours,deviation,class,least,most,reason\n", f);
    for (uint32_t i = 0; i < paper_rows(); i++) {
        const struct paper_row *r = &p->rows[i];
        if (only && strcmp(r->figure, only) != 0)
            continue;
        fprintf(f, "%s,\"%s\",%.6g,%.6g,%.4f,%s,%.6g,%.6g,\"%s\"\n", r->figure, r->quantity,
                r->paper, r->ours, r->ours / r->paper - 1, row_class_names[r->kind], r->least,
                r->most, r->reason);
    }
}

static void write_deviations(FILE *f, const void *arg)
{
    write_rows(f, arg, NULL);
}

static void write_table1(FILE *f, const void *arg)
{
    write_rows(f, arg, "Table I");
}

static void write_table3(FILE *f, const void *arg)
{
    write_rows(f, arg, "Table III");
}

static void write_endurance(FILE *f, const void *arg)
{
    write_rows(f, arg, "endurance");
}

static void write_constants(FILE *f, const void *arg)
{
    static const char *const kinds[] = {"fitted", "assumption", "stated"};
    const struct paper *p = arg;
    fputs("kind,name,value,least,most,what\n", f);
    for (uint32_t i = 0; i < CONSTANT_COUNT; i++) {
        const struct constant_info *info = &constant_infos[i];
        fprintf(f, "%s,%s,%.6g,%.6g,%.6g,\"%s\"\n", kinds[info->kind], info->name,
                ((const double *)p->c)[i], info->least, info->most, info->what);
    }
}

static void compute_rows(struct paper *p, bool ranges)
{
    struct inst_msg msg = {0};
    int err = 0;
    for (uint32_t i = 0; i < paper_rows() && i < ROWS_MAX && !err; i++)
        err = paper_row(&p->rows[i], i, p->c, p->drives, &msg);
    if (!err && ranges)
        err = paper_ranges(p->rows, p->c, p->drives, &msg);
    if (err && !p->code)
        p->code = fail(EXIT_FAILED, "sim: %s", msg.text);
}

static void print_rows(const struct paper *p)
{
    uint32_t counts[3] = {0}, far = 0;
    for (uint32_t i = 0; i < CONSTANT_COUNT; i++)
        counts[constant_infos[i].kind]++;
    printf("| figure | quantity | paper | ours | deviation | class | range over the assumptions | "
           "reason beyond 10 %% |\n|---|---|---|---|---|---|---|---|\n");
    for (uint32_t i = 0; i < paper_rows(); i++) {
        const struct paper_row *r = &p->rows[i];
        double off = r->ours / r->paper - 1;
        bool beyond = fabs(off) > 0.1;
        far += beyond;
        char range[48] = "";
        if (r->least > 0)
            snprintf(range, sizeof range, "%+.0f to %+.0f %%", 100 * (r->least / r->paper - 1),
                     100 * (r->most / r->paper - 1));
        printf("| %s | %s | %.5g | %.4g | %s%+.1f %%%s | %s | %s | %s |\n", r->figure, r->quantity,
               r->paper, r->ours, beyond ? "**" : "", 100 * off, beyond ? "**" : "",
               row_class_names[r->kind], range, beyond ? r->reason : "");
    }
    printf("\n%u rows, %u beyond 10 %%; %u fitted constants, %u assumptions.\n", paper_rows(), far,
           counts[CONSTANT_FITTED], counts[CONSTANT_ASSUMED]);
}

int sim_paper(const char *folder, const struct constants *constants, bool ranges)
{
    static struct paper p;
    struct drive_memory *memory;
    struct inst_msg msg = {0};
    p = (struct paper){.folder = folder, .c = constants, .code = folder_open(folder)};
    if (p.code)
        return p.code;
    if (drive_memory_new(&memory, NULL, &msg))
        return fail(EXIT_FAILED, "sim: %s", msg.text);
    p.drives = drive_memory_source(memory);
    compute_rows(&p, ranges);
    motivation(&p);
    comparisons(&p);
    breakdown(&p);
    sweeps(&p);
    static const struct {
        const char *name;
        void (*write)(FILE *file, const void *arg);
    } tables[] = {{"table1.csv", write_table1},
                  {"table3.csv", write_table3},
                  {"endurance.csv", write_endurance},
                  {"constants.csv", write_constants},
                  {"deviations.csv", write_deviations}};
    for (size_t i = 0; i < sizeof tables / sizeof *tables && !p.code; i++)
        p.code = folder_file(folder, tables[i].name, tables[i].write, &p);
    drive_memory_free(memory);
    if (!p.code)
        print_rows(&p);
    return p.code;
}
