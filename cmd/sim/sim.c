// SPDX-License-Identifier: Apache-2.0
// instinfer sim: how fast machines that nobody has would be, by the models of sim/.
#include "cmd/commands.h"
#include "cmd/options.h"
#include "cmd/output_file.h"
#include "cmd/sim/recorded.h"
#include "cmd/sim/sim.h"
#include "cmd/sim/wear.h"
#include "cmd/sim/real.h"
#include "sim/paper.h"

#include <math.h>
#include <sys/resource.h>
#include <stdlib.h>
#include <string.h>

struct sim {
    const char *model, *gpu, *host, *drive, *folder;
    struct option_list systems, settings, recorded;
    struct shape shape; // given, where model is NULL
    uint32_t billions;  // of its parameters, in tenths
    uint32_t batch, input, output, drives, gpus;
    bool paper, beyond, fit, constants, no_ranges, real, wear, own_blocks;
    uint32_t sample, generations;
    struct output_file csv;
    struct constants c;
};

static int unknown(const char *what, const char *given, const char *const *names, size_t n)
{
    char list[256] = "";
    for (size_t i = 0; i < n; i++)
        snprintf(list + strlen(list), sizeof list - strlen(list), "%s%s", i ? ", " : "", names[i]);
    return fail(EXIT_USAGE, "sim: %s: '%s' is not one of %s", what, given, list);
}

// --set NAME=VALUE
static int apply_settings(struct sim *s)
{
    constants_default(&s->c);
    for (size_t i = 0; i < s->settings.n; i++) {
        const char *text = s->settings.items[i], *equals = strchr(text, '=');
        uint32_t id = 0;
        while (equals && id < CONSTANT_COUNT &&
               (strlen(constant_infos[id].name) != (size_t)(equals - text) ||
                memcmp(constant_infos[id].name, text, (size_t)(equals - text))))
            id++;
        if (!equals || id == CONSTANT_COUNT)
            return fail(EXIT_USAGE, "sim: --set: '%s' is not NAME=VALUE (see --constants)", text);
        const struct constant_info *info = &constant_infos[id];
        char *end;
        double value = strtod(equals + 1, &end);
        if (end == equals + 1 || *end || !(value >= info->least && value <= info->most))
            return fail(EXIT_USAGE, "sim: --set: '%s' is out of range (%g to %g)", text,
                        info->least, info->most);
        *constant_at(&s->c, id) = value;
    }
    return 0;
}

static int find_shape(struct sim *s, struct shape *shape)
{
    const struct shape *known = shape_find(s->model ? s->model : "opt-13b");
    if (!known) {
        const char *names[16];
        size_t n = 0;
        for (const struct shape *at; n < 16 && (at = shape_at((uint32_t)n)); n++)
            names[n] = at->name;
        return unknown("--model", s->model, names, n);
    }
    *shape = *known;
    const struct shape *g = &s->shape;
    uint32_t *to[] = {&shape->layers, &shape->heads, &shape->kv_heads, &shape->head_dim};
    const uint32_t from[] = {g->layers, g->heads, g->kv_heads, g->head_dim};
    for (size_t i = 0; i < 4; i++)
        if (from[i])
            *to[i] = from[i];
    if (g->heads && !g->kv_heads)
        shape->kv_heads = g->heads;
    if (s->billions)
        shape->parameters = s->billions * 1e8;
    return 0;
}

static void print_constants(const struct constants *c)
{
    static const char *const kinds[] = {"fitted", "assumed", "stated"};
    uint32_t counts[3] = {0};
    for (uint32_t i = 0; i < CONSTANT_COUNT; i++) {
        const struct constant_info *info = &constant_infos[i];
        counts[info->kind]++;
        printf("%-8s %-20s %12.6g   %g to %g   %s\n", kinds[info->kind], info->name,
               ((const double *)c)[i], info->least, info->most, info->what);
    }
    printf("%u fitted constants, %u assumptions\n", counts[CONSTANT_FITTED],
           counts[CONSTANT_ASSUMED]);
}

static int print_fit(struct constants *c)
{
    struct inst_msg msg = {0};
    struct drive_memory *memory;
    double rms = 0;
    int err = drive_memory_new(&memory, NULL, &msg);
    if (!err) {
        err = sim_fit(c, &rms, drive_memory_source(memory), &msg);
        drive_memory_free(memory);
    }
    if (err)
        return fail(EXIT_FAILED, "sim: %s", msg.text);
    for (uint32_t i = 0; i < CONSTANT_COUNT; i++)
        if (constant_infos[i].kind == CONSTANT_FITTED)
            printf("%-20s %.4g\n", constant_infos[i].name, ((const double *)c)[i]);
    printf("rms of the logarithms: %.3f\n", rms);
    return 0;
}

static void print_result(enum system_id id, const struct sim_result *r)
{
    const struct sim_parts *p = &r->parts;
    printf("%-14s ", system_names[id]);
    if (*r->oom) {
        printf("out of memory: %s\n", r->oom);
        return;
    }
    printf(
        "%9.3f tokens/s  step %9.4g s = KV %.4g + engine %.3g + q,k,v,out %.3g + host %.3g + GPU "
        "%.3g; prefill %.4g s\n",
        r->tokens_per_s, r->step, p->kv, p->engine, p->transfer, p->host, p->gpu, r->prefill);
    printf("%14s GB/step: flash %.4g (%.3f of dense), drive link %.4g, GPU link %.4g, VRAM %.4g",
           "", r->flash_read / 1e9, r->phi, r->drive_link / 1e9, r->gpu_link / 1e9, r->vram / 1e9);
    if (r->waf > 0)
        printf("; WAF %.4f, stored %.4g GB, endurance %.3g tokens", r->waf, r->stored / 1e9,
               r->endurance);
    if (r->tail_bytes > 0)
        printf("; K that waits in drive DRAM %.3g GB", r->tail_bytes / 1e9);
    if (r->x_share > 0)
        printf("; %.2f of the batch as X", r->x_share);
    if (r->error > 0)
        printf("; sampling error %.2g %%", 100 * r->error);
    putchar('\n');
}

static void csv_head(FILE *f)
{
    fputs("system,model,batch,input,output,drives,gpus,tokens_per_s,step_s,prefill_s,kv_s,engine_s,"
          "transfer_s,host_s,gpu_s,flash_read,drive_link,gpu_link,vram,phi,waf,stored,endurance,"
          "error,out_of_memory\n",
          f);
}

static void csv_row(FILE *f, enum system_id id, const struct machine *m, const struct workload *w,
                    const struct sim_result *r)
{
    const struct sim_parts *p = &r->parts;
    fprintf(f, "%s,%s,%u,%u,%u,%u,%u,%.6g,%.6g,%.6g,%.6g,%.6g,%.6g,%.6g,%.6g,", system_names[id],
            w->shape.name, w->batch, w->input, w->output, m->drives, m->gpus, r->tokens_per_s,
            r->step, r->prefill, p->kv, p->engine, p->transfer, p->host, p->gpu);
    fprintf(f, "%.6g,%.6g,%.6g,%.6g,%.6g,%.6g,%.6g,%.6g,%.3g,%s\n", r->flash_read, r->drive_link,
            r->gpu_link, r->vram, r->phi, r->waf, r->stored, r->endurance, r->error,
            *r->oom ? "yes" : "no");
}

static int run_each(struct sim *s, const bool wanted[SYSTEM_COUNT], const struct machine *m,
                    const struct workload *w, struct drive_source *drives)
{
    struct inst_msg msg = {0};
    if (s->csv.stream)
        csv_head(s->csv.stream);
    for (int id = 0; id < SYSTEM_COUNT; id++) {
        struct sim_result r;
        if (!wanted[id])
            continue;
        int err = sim_run(&r, (enum system_id)id, m, w, &s->c, drives, &msg);
        if (err)
            return fail(EXIT_FAILED, "sim: %s: %s", system_names[id], msg.text);
        print_result((enum system_id)id, &r);
        if (s->csv.stream)
            csv_row(s->csv.stream, (enum system_id)id, m, w, &r);
    }
    return 0;
}

static uint32_t page_tokens(const struct machine *m, const struct workload *w)
{
    return (uint32_t)fmax(1, m->csd.page_bytes / (2.0 * w->shape.head_dim));
}

// What it took, for whoever plans larger ones.
static void print_cost(void)
{
    struct rusage use;
    if (getrusage(RUSAGE_SELF, &use))
        return;
    double cpu = (double)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) +
                 1e-6 * (double)(use.ru_utime.tv_usec + use.ru_stime.tv_usec);
    printf("simulated in %.2f s of one core, with %.0f MiB\n", cpu, (double)use.ru_maxrss / 1024);
}

static int run_wear(const struct sim *s, const bool wanted[SYSTEM_COUNT], const struct machine *m,
                    const struct workload *w)
{
    const struct drive_wear_options options = {.profile = s->drive,
                                               .generations = s->generations,
                                               .page_channels = (uint32_t)s->c.page_channels,
                                               .room = 1.5,
                                               .own_blocks = s->own_blocks};
    int code = sim_wear(wanted, &options, m, w, &s->c);
    if (!code)
        print_cost();
    return code;
}

static int run_paper(const struct sim *s)
{
    struct sim_recorded recorded;
    int code = sim_recorded_open(&recorded, &s->recorded);
    code = code ? code : sim_paper(s->folder, &s->c, !s->no_ranges);
    code = code ? code : sim_recorded_phi(&recorded, &s->c);
    sim_recorded_close(&recorded);
    return code;
}

static int run_systems(struct sim *s, const bool wanted[SYSTEM_COUNT])
{
    struct machine m = {.drives = s->drives, .gpus = s->gpus};
    struct workload w = {.batch = s->batch, .input = s->input, .output = s->output};
    struct inst_msg msg = {0};
    int code = find_shape(s, &w.shape);
    if (code)
        return code;
    int err = machine_load(&m, s->gpu, s->host, s->drive, &msg);
    err = err ? err : machine_check(&m, &msg);
    err = err ? err : workload_check(&w, &msg);
    if (err)
        return fail(EXIT_USAGE, "sim: %s", msg.text);
    struct sim_recorded recorded;
    code = sim_recorded_open(&recorded, &s->recorded);
    if (code) {
        sim_recorded_close(&recorded);
        return code;
    }
    printf("%s: %u layers, %u/%u heads of %u; %u x (%u + %u) tokens; %u %s, %u %s, %s\n",
           w.shape.name, w.shape.layers, w.shape.heads, w.shape.kv_heads, w.shape.head_dim, w.batch,
           w.input, w.output, m.drives, s->drive, m.gpus, s->gpu, s->host);
    if (s->wear) {
        sim_recorded_close(&recorded);
        return run_wear(s, wanted, &m, &w);
    }
    struct sim_real real = {0};
    struct drive_source *drives = NULL;
    if (s->real) {
        m.csd.overlap = 1; // as our drive works
        code = sim_real_open(&real, s->drive, s->sample, &m, &w);
        drives = &real.drive.source;
    }
    if (s->recorded.n) {
        recorded.drive.inner = drives;
        drives = &recorded.drive.source;
    }
    if (!code)
        code = sim_recorded_print(&recorded, page_tokens(&m, &w));
    if (!code)
        code = run_each(s, wanted, &m, &w, drives);
    if (!code && s->real)
        sim_real_print(&real, &m, &w);
    if (!code)
        print_cost();
    sim_recorded_close(&recorded);
    sim_real_close(&real);
    return code ? code : output_file_close(&s->csv);
}

static int run(struct sim *s, const struct options *options)
{
    bool wanted[SYSTEM_COUNT];
    int code = apply_settings(s);
    if (code)
        return code;
    for (int id = 0; id < SYSTEM_COUNT; id++)
        wanted[id] = !s->systems.n;
    for (size_t i = 0; i < s->systems.n; i++) {
        int id = 0;
        while (id < SYSTEM_COUNT && strcmp(system_names[id], s->systems.items[i]) != 0)
            id++;
        if (id == SYSTEM_COUNT)
            return unknown("--system", s->systems.items[i], system_names, SYSTEM_COUNT);
        wanted[id] = true;
    }
    if (s->folder && !s->paper && !s->beyond)
        return fail(EXIT_USAGE, "sim: -o goes with --paper or --beyond");
    if ((s->paper || s->beyond) && !s->folder)
        return fail(EXIT_USAGE, "sim: %s: no folder given: use -o DIR",
                    s->paper ? "--paper" : "--beyond");
    if (s->recorded.n && (s->beyond || s->fit || s->constants))
        return fail(EXIT_USAGE, "sim: --trace-selections goes with systems, --real and --paper");
    if (s->wear && (s->paper || s->beyond || s->real || s->recorded.n || s->csv.path))
        return fail(EXIT_USAGE, "sim: --wear goes alone: a workload, a machine, and -s");
    if (s->own_blocks && !s->wear)
        return fail(EXIT_USAGE, "sim: --own-blocks goes with --wear");
    if (s->paper && s->beyond)
        return fail(EXIT_USAGE, "sim: --paper and --beyond: one at a time");
    code = output_files_open(options);
    if (code)
        return code;
    if (s->constants) {
        print_constants(&s->c);
        return 0;
    }
    if (s->fit)
        return print_fit(&s->c);
    if (s->beyond)
        return sim_beyond(s->folder, &s->c);
    return s->paper ? run_paper(s) : run_systems(s, wanted);
}

int command_sim(int argc, char **argv)
{
    static struct sim s;
    s = (struct sim){.gpu = "a6000",
                     .host = "xeon-5320",
                     .drive = "instcsd-zynq7045",
                     .batch = 64,
                     .input = 1024,
                     .output = 1024,
                     .drives = 1,
                     .gpus = 1,
                     .sample = 4,
                     .generations = 6};
    const struct option rows[] = {
        {"Workload", 0, OPTION_HEADING, NULL, 0, 0, NULL, NULL},
        {"--model", 'm', OPTION_TEXT, &s.model, 0, 0, "NAME",
         "shape: opt-13b (default), opt-30b, llama-2-13b, llama-3.1-8b, llama-3.1-70b, "
         "qwen2.5-32b"},
        {"--layers", 0, OPTION_U32, &s.shape.layers, 1, 10000, "N", "instead of the shape's"},
        {"--heads", 0, OPTION_U32, &s.shape.heads, 1, 10000, "N", "query heads"},
        {"--kv-heads", 0, OPTION_U32, &s.shape.kv_heads, 1, 10000, "N", "KV heads"},
        {"--head-dim", 0, OPTION_U32, &s.shape.head_dim, 1, 4096, "N", "elements of a head"},
        {"--parameters", 0, OPTION_U32, &s.billions, 1, 1e6, "N", "in units of 100 million"},
        {"--batch", 'b', OPTION_U32, &s.batch, 1, 1 << 20, "N", "sequences; default 64"},
        {"--input", 0, OPTION_U32, &s.input, 1, 1 << 24, "N", "tokens of a prompt; default 1024"},
        {"--output", 0, OPTION_U32, &s.output, 1, 1 << 24, "N", "generated tokens; default 1024"},
        {"Machine", 0, OPTION_HEADING, NULL, 0, 0, NULL, NULL},
        {"--drives", 'd', OPTION_U32, &s.drives, 1, 100000, "N", "default 1"},
        {"--gpus", 0, OPTION_U32, &s.gpus, 1, 16, "N", "default 1"},
        {"--drive", 0, OPTION_TEXT, &s.drive, 0, 0, "PROFILE",
         "a name or a file (docs/profiles.md); default instcsd-zynq7045"},
        {"--gpu", 0, OPTION_TEXT, &s.gpu, 0, 0, "PROFILE", "default a6000"},
        {"--host", 0, OPTION_TEXT, &s.host, 0, 0, "PROFILE", "default xeon-5320"},
        {"System", 0, OPTION_HEADING, NULL, 0, 0, NULL, NULL},
        {"--system", 's', OPTION_LIST, &s.systems, 0, 0, "NAME",
         "insta, insta_sparf, insta_pages, hilos, direct, flexgen, flexgen_gds, flexgen_sparq, "
         "deepspeed, "
         "recompute, queueing; may be given several times; default: all"},
        {"--set", 0, OPTION_LIST, &s.settings, 0, 0, "NAME=VALUE",
         "a constant or an assumption; may be given several times"},
        {"--constants", 0, OPTION_FLAG, &s.constants, 0, 0, NULL, "print them all, and end"},
        {"--fit", 0, OPTION_FLAG, &s.fit, 0, 0, NULL, "fit the fitted ones again, and end"},
        {"--real", 0, OPTION_FLAG, &s.real, 0, 0, NULL,
         "the project's own drive over emulated NAND in virtual time, instead of a model of one"},
        {"--sample", 0, OPTION_U32, &s.sample, 1, 256, "N",
         "sequences of the batch that --real runs; default 4"},
        {"--trace-selections", 0, OPTION_LIST, &s.recorded, 0, 0, "FILE",
         "what sparf or pages chose in a real run, as run and batch record it, instead of a "
         "statistical model; once for each of them"},
        {"--wear", 0, OPTION_FLAG, &s.wear, 0, 0, NULL,
         "all writes of insta, insta_sparf and insta_pages on one drive, by the real FTL: write "
         "amplification, erases of blocks, endurance"},
        {"--generations", 0, OPTION_U32, &s.generations, 1, 1000, "N",
         "batches that --wear writes one after another; default 6"},
        {"--own-blocks", 0, OPTION_FLAG, &s.own_blocks, 0, 0, NULL,
         "--wear: every sequence fills blocks of its own, not the batch together"},
        {"Reports", 0, OPTION_HEADING, NULL, 0, 0, NULL, NULL},
        {"--csv", 0, OPTION_OUTPUT, &s.csv, 0, 0, "FILE", "a line for each system"},
        {"--paper", 0, OPTION_FLAG, &s.paper, 0, 0, NULL,
         "every figure and table of the paper that has numbers, beside the paper's"},
        {"--no-ranges", 0, OPTION_FLAG, &s.no_ranges, 0, 0, NULL,
         "--paper without the ranges over the assumptions, which take most of its time"},
        {"--beyond", 0, OPTION_FLAG, &s.beyond, 0, 0, NULL,
         "when attention near storage pays: GQA, long contexts, many drives "
         "(docs/near-storage.md)"},
        {"--output-dir", 'o', OPTION_TEXT, &s.folder, 0, 0, "DIR",
         "where --paper and --beyond write"},
    };
    const struct options options = {"sim", NULL,
                                    "Simulates systems of GPUs, hosts and computational drives.",
                                    rows, sizeof rows / sizeof *rows};
    int n, code;
    if (options_parse(&options, argc, argv, &n, &code))
        code = run(&s, &options);
    options_free(&options);
    return code;
}
