// SPDX-License-Identifier: Apache-2.0
// instinfer sim --beyond: when does attention near storage pay? Models with GQA, contexts of 32K to
// 1M tokens, drives of PCIe 5, one to a thousand of them over several hosts, and the lines at which
// it breaks even with reading K and V over the drives' links, and with VRAM alone.
#include "cmd/options.h"
#include "cmd/sim/sim.h"
#include "cmd/sim/figures.h"
#include "sim/system.h"

#include <math.h>

enum { DRIVES_OF_A_HOST = 16, DRIVES_MOST = 1 << 12 };

struct beyond {
    const char *folder;
    struct constants c;
    struct drive_source *drives;
    struct figure figure;
    int code; // of the first failure; nothing is done after it
};

struct place { // what runs where
    const char *shape, *gpu, *drive;
    uint32_t gpus, drives, batch;
    double context;
    double internal; // rate of a drive's flash over its link's; 0: the profile's
};

static const struct place small = {"llama-3.1-8b", "h100", "csd-pcie5", 1, 4, 32, 131072, 0};
static const struct place large = {"llama-3.1-70b", "h100", "csd-pcie5", 4, 16, 32, 131072, 0};

static struct sim_result run(struct beyond *b, const struct place *p, enum system_id id,
                             const struct constants *c)
{
    struct sim_result r = {0};
    struct machine m = {.drives = p->drives, .gpus = p->gpus};
    struct workload w = {.shape = *shape_find(p->shape), .batch = p->batch, .output = 1024};
    struct inst_msg msg = {0};
    if (b->code)
        return r;
    w.input = (uint32_t)p->context - w.output;
    int err = machine_load(&m, p->gpu, "server-1tb", p->drive, &msg);
    if (p->internal > 0) { // the units and the array keep up with it
        m.csd.channel_rate = p->internal * m.csd.link_rate / m.csd.flash_channels;
        m.csd.filter_rate = m.csd.channel_rate;
        m.csd.gemv_flops = 1e13;
        m.csd.softmax_rate = 1e13;
        m.csd.read_ns = 0;
    }
    err = err ? err : sim_run(&r, id, &m, &w, c, b->drives, &msg);
    if (err)
        b->code = fail(EXIT_FAILED, "sim: %s", msg.text);
    return r;
}

// Tokens per second while decoding: prompts of a million tokens are prefilled once.
static double speed(struct beyond *b, const struct place *p, enum system_id id)
{
    struct sim_result r = run(b, p, id, &b->c);
    return *r.oom ? NAN : p->batch / r.step;
}

static struct figure *begin(struct beyond *b, const char *name, const char *title, const char *x,
                            const char *y)
{
    b->figure = (struct figure){.name = name, .title = title, .x_label = x, .y_label = y};
    b->figure.x_log = b->figure.y_log = true;
    return &b->figure;
}

static void end(struct beyond *b)
{
    if (!b->code)
        b->code = figure_write(b->folder, &b->figure);
}

static const enum system_id compared[] = {SIM_queueing, SIM_direct, SIM_insta, SIM_insta_pages};
static const char *const compared_names[] = {"VRAM only", "plain SSDs", "in the drives",
                                             "in the drives 1/8"};

static void contexts(struct beyond *b, const char *name, const char *title, struct place p)
{
    struct figure *f = begin(b, name, title, "tokens", "tokens/s");
    for (f->n_series = 0; f->n_series < 4; f->n_series++) {
        f->series[f->n_series] = compared_names[f->n_series];
        f->n = 0;
        for (p.context = 32768; p.context <= 1 << 20; p.context *= 2) {
            f->x[f->n] = p.context;
            f->y[f->n_series][f->n++] = speed(b, &p, compared[f->n_series]);
        }
    }
    end(b);
}

static void batches(struct beyond *b)
{
    struct place p = small;
    struct figure *f =
        begin(b, "near03", "Llama-3.1-8B, 128K tokens, 1 H100, 4 drives", "batch", "tokens/s");
    for (f->n_series = 0; f->n_series < 4; f->n_series++) {
        f->series[f->n_series] = compared_names[f->n_series];
        f->n = 0;
        for (p.batch = 1; p.batch <= 1024; p.batch *= 2) {
            f->x[f->n] = p.batch;
            f->y[f->n_series][f->n++] = speed(b, &p, compared[f->n_series]);
        }
    }
    end(b);
}

// 1,024 sequences on one host with all drives, or on as many hosts as 16 drives each need.
static void arrays(struct beyond *b)
{
    static const uint32_t drives[] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024};
    static const char *const names[] = {"exact, 1 host", "1/8, 1 host", "exact, 16 a host",
                                        "1/8, 16 a host"};
    struct place p = large;
    struct figure *f =
        begin(b, "near04", "Llama-3.1-70B, 128K tokens, 1,024 sequences, 4 H100 a host", "drives",
              "tokens/s");
    for (f->n_series = 0; f->n_series < 4; f->n_series++) {
        f->series[f->n_series] = names[f->n_series];
        f->n = 0;
        for (size_t i = 0; i < sizeof drives / sizeof *drives; i++) {
            uint32_t hosts =
                f->n_series < 2 ? 1 : (drives[i] + DRIVES_OF_A_HOST - 1) / DRIVES_OF_A_HOST;
            p.drives = drives[i] / hosts;
            p.batch = (1024 + hosts - 1) / hosts;
            f->x[f->n] = drives[i];
            f->y[f->n_series][f->n++] =
                speed(b, &p, f->n_series % 2 ? SIM_insta_pages : SIM_insta) * 1024 / p.batch;
        }
    }
    end(b);
}

// How much faster than plain SSDs over the ratio of a drive's rates inside and outside.
static void ratios(struct beyond *b)
{
    static const uint32_t drives[] = {1, 4, 16, 64};
    static const char *const names[] = {"1 drive", "4 drives", "16 drives", "64 drives"};
    struct place p = small;
    p.batch = 64;
    struct figure *f =
        begin(b, "near05", "Llama-3.1-8B, 128K tokens, batch 64: exact, in the drives",
              "inside / outside", "times plain SSDs");
    for (f->n_series = 0; f->n_series < 4; f->n_series++) {
        f->series[f->n_series] = names[f->n_series];
        f->n = 0;
        p.drives = drives[f->n_series];
        for (p.internal = 0.25; p.internal <= 8; p.internal *= M_SQRT2) {
            f->x[f->n] = p.internal;
            f->y[f->n_series][f->n++] = speed(b, &p, SIM_insta) / speed(b, &p, SIM_direct);
        }
    }
    end(b);
}

// Over the share of K and V that is read; the host may read less, too.
static void shares(struct beyond *b)
{
    struct place p = small;
    struct figure *f = begin(b, "near06", "Llama-3.1-8B, 128K tokens, batch 32, 4 drives",
                             "1 / share", "times plain SSDs, all read");
    f->n_series = 2;
    f->series[0] = "in the drives";
    f->series[1] = "plain SSDs";
    struct sim_result all = run(b, &p, SIM_direct, &b->c);
    for (uint32_t by = 1; by <= 32; by *= 2, f->n++) {
        struct constants c = b->c;
        c.pages_share = 1.0 / by;
        struct sim_result r = run(b, &p, SIM_insta_pages, &c);
        f->x[f->n] = by;
        f->y[0][f->n] = all.step / r.step;
        double moved = all.parts.kv + all.parts.engine;
        f->y[1][f->n] = all.step / (all.step - moved + moved / by);
    }
    end(b);
}

// ---- where it breaks even ----------------------------------------------------------------------

// Inside over outside at which exact attention in the drives is as fast as plain SSDs; 0: always.
static double even_ratio(struct beyond *b, struct place p)
{
    double low = 0.01, high = 64;
    for (int i = 0; i < 20 && !b->code; i++) {
        p.internal = sqrt(low * high);
        if (speed(b, &p, SIM_insta) < speed(b, &p, SIM_direct))
            low = p.internal;
        else
            high = p.internal;
    }
    return high;
}

// The least number of drives with which decoding is as fast as with VRAM alone; 0: none.
static uint32_t even_drives(struct beyond *b, struct place p, double vram, enum system_id id)
{
    uint32_t low = 0, high = 1;
    for (p.drives = high; high <= DRIVES_MOST && !b->code; p.drives = high *= 2) {
        if (speed(b, &p, id) >= vram)
            break;
        low = high;
    }
    while (high <= DRIVES_MOST && high - low > 1 && !b->code) {
        p.drives = low + (high - low) / 2;
        if (speed(b, &p, id) >= vram)
            high = p.drives;
        else
            low = p.drives;
    }
    return high <= DRIVES_MOST ? high : 0;
}

static void put_drives(uint32_t drives)
{
    if (drives)
        printf(" %u |", drives);
    else
        printf(" none |");
}

static void table(struct beyond *b)
{
    static const double contexts_of[] = {32768, 131072, 1048576};
    printf("| model, GPUs, drives | tokens | VRAM only | plain SSDs | in the drives | 1/8 of it | "
           "as fast "
           "as VRAM with drives | 1/8 | even with plain SSDs at inside / outside |\n"
           "|---|---|---|---|---|---|---|---|---|\n");
    for (int i = 0; i < 4; i++) {
        struct place p = i / 2 ? large : small;
        p.drives = i % 2 ? 4 * p.drives : p.drives;
        for (size_t j = 0; j < 3 && !b->code; j++) {
            p.context = contexts_of[j];
            double s[4];
            for (size_t k = 0; k < 4; k++)
                s[k] = speed(b, &p, compared[k]);
            bool fits = isfinite(s[0]);
            uint32_t exact = fits ? even_drives(b, p, s[0], SIM_insta) : 1,
                     part = fits ? even_drives(b, p, s[0], SIM_insta_pages) : 1;
            double ratio = even_ratio(b, p);
            if (b->code)
                return;
            printf("| %s, %u, %u | %.0fK | ", p.shape, p.gpus, p.drives, p.context / 1024);
            if (fits)
                printf("%.3g |", s[0]);
            else
                printf("does not fit |");
            printf(" %.3g | %.3g | %.3g |", s[1], s[2], s[3]);
            put_drives(exact);
            put_drives(part);
            printf(" %.2f |\n", ratio);
        }
    }
}

int sim_beyond(const char *folder, const struct constants *constants)
{
    static struct beyond b;
    b = (struct beyond){.folder = folder, .c = *constants, .code = folder_open(folder)};
    struct drive_memory *memory = NULL;
    struct inst_msg msg = {0};
    if (!b.code && drive_memory_new(&memory, NULL, &msg))
        b.code = fail(EXIT_FAILED, "sim: %s", msg.text);
    if (b.code)
        return b.code;
    b.drives = drive_memory_source(memory);
    // The paper's framework is Python on one host; here a layer's commands go out together.
    b.c.command_ns = 100;
    b.c.layer_ns = 1e5;
    contexts(&b, "near01", "Llama-3.1-8B, batch 32, 1 H100, 4 drives", small);
    contexts(&b, "near02", "Llama-3.1-70B, batch 32, 4 H100, 16 drives", large);
    batches(&b);
    arrays(&b);
    ratios(&b);
    shares(&b);
    if (!b.code)
        table(&b);
    drive_memory_free(memory);
    return b.code;
}
