// SPDX-License-Identifier: Apache-2.0
// instinfer bench drive: decode attention in the drive alone, over a KV cache of stated locality,
// for every method, context and shape asked for: bytes by stream and filter, pages beside what
// dense attention reads, time and what choosing takes of it, and the softmax weight that was
// captured.
//
// A run is a drive and the methods that a space of it serves: sparf and dense, or pages. Steps of
// sparf and pages append a token each, as decode does, those of dense do not, so that both see the
// same cache. With one round runs come one after the other; with more they are all open and take
// turns, since a disk is not the same from one minute to the next, and how many times as fast as
// dense each is is said round by round. Captured mass is measured in steps of its own, which are
// not timed.
#include "bench/attend.h"
#include "bench/chart.h"
#include "bench/measure.h"
#include "cmd/bench/bench.h"
#include "cmd/options.h"
#include "cmd/output_file.h"
#include "cmd/sparf_option.h"
#include "host/engine/kv_place.h"
#include "host/engine/system.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SHAPES_MAX = 8, RESULTS_MAX = 512, RUNS_MAX = 64 };

struct shape {
    uint32_t q_heads, kv_heads, head_dim;
};

struct result {
    struct shape shape;
    uint64_t context;
    uint32_t method, kv_type;
    uint32_t asked_channels, page_channels, group, page_bytes; // asked: 0 = the drive's choice
    uint64_t steps;
    struct drive_stats d;  // what the steps added
    double read, dense;    // bytes of a step
    struct measure rounds; // of each the median step
    double seconds;        // of a step, median of rounds
    double all, chose;     // of all steps, and the part in which the drive only chose
    double choosing;       // share of the steps' time in which the drive chose, and nothing else
    double captured, worst;
    double waf, amplification; // of the drive, filling included
    double written;            // bytes programmed beside those of K and V
    uint64_t dram, dram_peak, dram_sparf, dram_pages;
};

struct bench {
    struct attend_options o;
    struct sparf_option sparf;
    struct option_list shapes, methods;
    struct option_numbers contexts, page_channels;
    uint64_t budget;
    uint32_t steps, audits, rounds;
    const char *kv, *kv_type, *ratio;
    double part; // of --ratio
    struct output_file csv, svg;
    bool types[KV_TYPES];
    struct shape shape[SHAPES_MAX];
    size_t n_shapes;
    bool dense, with_sparf, pages;
    struct result results[RESULTS_MAX];
    size_t n_results;
};

static void add_stats(struct drive_stats *sum, const struct drive_stats *after,
                      const struct drive_stats *before)
{
    for (size_t i = 0; i < STAT_ROWS; i++)
        *stat_at(sum, i) += stat_of(after, i) - stat_of(before, i);
}

// Bytes that sparf read for attention, gaps included, audits left out.
static uint64_t sparf_bytes(const struct drive_stats *d)
{
    return d->channel_bytes + d->token_bytes + d->tail_bytes + d->mean_bytes + d->build_read_bytes +
           d->bridged_bytes;
}

static int step(struct attend_bench *b, const struct table_header *header, bool append,
                double *seconds, float *captured)
{
    struct inst_msg msg = {0};
    const struct attend_step what = {.header = *header, .append = append};
    int err = attend_bench_step(b, &what, seconds, captured, &msg);
    return err ? fail(EXIT_FAILED, "bench drive: %s", msg.text) : 0;
}

static int read_stats(struct attend_bench *b, struct drive_stats *stats)
{
    struct inst_msg msg = {0};
    int err = attend_bench_stats(b, stats, &msg);
    return err ? fail(EXIT_FAILED, "bench drive: %s", msg.text) : 0;
}

// Mean and least captured mass over a few audited steps.
static int audit(const struct bench *bench, struct attend_bench *b, struct table_header header,
                 struct result *r)
{
    size_t heads = (size_t)b->o.layers * b->o.sequences * b->o.q_heads;
    float *captured = malloc(heads * sizeof *captured);
    double sum = 0, seconds;
    int code = captured ? 0 : fail(EXIT_FAILED, "out of memory");
    r->worst = 1;
    header.audit = 1;
    for (uint32_t i = 0; i < bench->audits && !code; i++) {
        code = step(b, &header, true, &seconds, captured);
        for (size_t h = 0; h < heads && !code; h++) {
            sum += (double)captured[h];
            r->worst = (double)captured[h] < r->worst ? (double)captured[h] : r->worst;
        }
    }
    r->captured = bench->audits ? sum / (double)(bench->audits * heads) : 0;
    free(captured);
    return code;
}

// K and V that came to the drive.
static double kv_bytes(const struct attend_bench *b)
{
    return (double)kv_token_bytes(b->o.kv_type, b->o.head_dim) * b->o.kv_heads *
           (double)b->o.layers * b->o.sequences * (double)b->tokens;
}

static struct table_header header_of(const struct bench *bench, const struct attend_bench *b,
                                     uint32_t method)
{
    struct table_header header = {.method = method};
    if (method == METHOD_SPARF)
        header = (struct table_header){.method = METHOD_SPARF,
                                       .sparf_channels = bench->sparf.channels,
                                       .sparf_tokens = bench->sparf.tokens,
                                       .sparf_divisor = bench->sparf.divisor,
                                       .sparf_local = bench->sparf.local};
    if (method == METHOD_PAGES)
        header.pages_ratio = (float)bench->part;
    if (method == METHOD_PAGES && bench->budget)
        header.pages_ratio = (float)fmin(1, (double)bench->budget / kv_bytes(b));
    return header;
}

// One round of steps.
static int measure_round_of(const struct bench *bench, struct attend_bench *b, struct result *r)
{
    struct measure times = {0};
    struct drive_stats before, after;
    const struct table_header header = header_of(bench, b, r->method);
    const double choosing = attend_bench_choosing(b);
    int code = read_stats(b, &before);
    for (uint32_t i = 0; i < bench->steps && !code; i++) {
        double seconds;
        code = step(b, &header, r->method != METHOD_DENSE, &seconds, NULL);
        r->all += seconds;
        if (times.rounds < MEASURE_ROUNDS_MAX)
            times.seconds[times.rounds++] = seconds;
    }
    if (!code)
        code = read_stats(b, &after);
    if (code)
        return code;
    add_stats(&r->d, &after, &before);
    r->steps += bench->steps;
    r->chose += attend_bench_choosing(b) - choosing;
    r->rounds.seconds[r->rounds.rounds++] = measure_median(&times);
    return 0;
}

// What follows from the rounds; audits.
static int conclude(const struct bench *bench, struct attend_bench *b, struct result *r)
{
    const bool sparf = r->method == METHOD_SPARF, dense = r->method == METHOD_DENSE;
    const double steps = (double)r->steps;
    r->seconds = measure_median(&r->rounds);
    r->choosing = !dense && r->all > 0 ? r->chose / r->all : 0;
    r->read = (double)(sparf ? sparf_bytes(&r->d) : r->d.flash_read_bytes) / steps;
    r->dense = (double)(sparf   ? r->d.dense_bytes
                        : dense ? r->d.flash_read_bytes
                                : r->d.pages_dense_bytes) /
               steps;
    r->captured = r->worst = 1;
    return dense || !bench->audits ? 0 : audit(bench, b, header_of(bench, b, r->method), r);
}

static const char header_line[] =
    "heads      context  method    ch/page  read MB  of dense  channel    token     tail    build"
    "  pages of dense  kept    ms/step   GB/s  captured  worst  choosing\n";

static double share(uint64_t part, uint64_t whole)
{
    return whole ? (double)part / (double)whole : 0;
}

static const char *name_of(const struct result *r)
{
    return r->method == METHOD_SPARF ? "sparf" : r->method == METHOD_PAGES ? "pages" : "dense";
}

// "pages", "pages q8"
static const char *title_of(const struct result *r, char out[16])
{
    bool plain = r->kv_type == KV_F16;
    snprintf(out, 16, "%s%s%s", name_of(r), plain ? "" : " ",
             plain ? "" : kv_type_name(r->kv_type));
    return out;
}

static void print_result(const struct result *r)
{
    char heads[32], title[16];
    const struct drive_stats *d = &r->d;
    double steps = (double)r->steps * 1e6, of_dense = r->dense > 0 ? r->read / r->dense : 0;
    snprintf(heads, sizeof heads, "%u/%ux%u", r->shape.q_heads, r->shape.kv_heads,
             r->shape.head_dim);
    printf("%-10s %7llu  %-8s", heads, (unsigned long long)r->context, title_of(r, title));
    if (r->method != METHOD_SPARF)
        printf("        -  %7.2f     %5.3f        -        -        -        -           %5.3f"
               "     -  ",
               r->read / 1e6, of_dense, of_dense);
    else
        printf(
            "  %7u  %7.2f     %5.3f  %7.2f  %7.2f  %7.2f  %7.2f           %5.3f  %4.2f  ",
            r->page_channels, r->read / 1e6, of_dense, (double)d->channel_bytes / steps,
            (double)d->token_bytes / steps, (double)(d->tail_bytes + d->mean_bytes) / steps,
            (double)d->build_read_bytes / steps,
            share(d->channel_pages + d->token_pages +
                      (d->tail_bytes + d->mean_bytes + d->build_read_bytes) / r->page_bytes,
                  d->dense_pages),
            share(d->channel_kept_bytes + d->token_kept_bytes, d->channel_bytes + d->token_bytes));
    printf("%9.3f  %5.2f     %5.3f  %5.3f     %5.3f\n", r->seconds * 1e3,
           r->read / r->seconds / 1e9, r->captured, r->worst, r->choosing);
    fflush(stdout);
}

// One line for the drive itself: what it wrote.
static void print_drive(const struct attend_bench *b, const struct drive_stats *s)
{
    printf("# %s: page %u, %u dies, token group %u; written: %.3f of K and V (second copy of K "
           "%.3f); WAF %.4f, allocated/live %.3f; DRAM peak %.1f of %.1f MiB, of it sparf %.1f, "
           "pages %.1f (of K and V: 1/%.0f); filled in %.1f s\n",
           b->flash->path, b->geometry.page_bytes, b->geometry.dies, b->group,
           (double)s->flash_program_bytes / kv_bytes(b),
           (double)s->channel_program_bytes / kv_bytes(b),
           share(s->flash_program_bytes, s->stream_bytes), share(s->allocated_bytes, s->live_bytes),
           (double)s->dram_peak_bytes / 1048576, (double)b->dram / 1048576,
           (double)s->sparf_dram_bytes / 1048576, (double)s->pages_dram_bytes / 1048576,
           s->pages_dram_bytes ? kv_bytes(b) / (double)s->pages_dram_bytes : INFINITY,
           b->fill_seconds);
}

struct run {
    struct attend_bench *b;
    size_t first, end; // its results
};

static int open_run(struct bench *bench, const struct shape *shape, uint64_t context,
                    const struct attend_options *variant, struct run *run)
{
    const bool pages = variant->method == METHOD_PAGES;
    const uint32_t methods[] = {pages ? METHOD_PAGES : METHOD_SPARF, METHOD_DENSE};
    const bool wanted[] = {pages || variant->method == METHOD_SPARF, !pages && bench->dense};
    struct inst_msg msg = {0};
    struct attend_options o = *variant;
    o.q_heads = shape->q_heads;
    o.kv_heads = shape->kv_heads;
    o.head_dim = shape->head_dim;
    o.context = context;
    o.room = (uint64_t)bench->steps * bench->rounds + bench->audits;
    o.memory = system_memory_available();
    if (attend_bench_open(&run->b, &o, &msg))
        return fail(EXIT_FAILED, "bench drive: %s", msg.text);
    run->first = bench->n_results;
    for (int i = 0; i < 2; i++) {
        if (!wanted[i] || bench->n_results == RESULTS_MAX)
            continue;
        bench->results[bench->n_results++] =
            (struct result){.shape = *shape,
                            .context = context,
                            .method = methods[i],
                            .kv_type = o.kv_type,
                            .asked_channels = o.page_channels,
                            .page_channels = methods[i] == METHOD_SPARF ? run->b->page_channels : 0,
                            .group = run->b->group,
                            .page_bytes = run->b->geometry.page_bytes};
    }
    run->end = bench->n_results;
    return 0;
}

static int round_of_run(struct bench *bench, const struct run *run)
{
    int code = 0;
    for (size_t i = run->first; i < run->end && !code; i++)
        code = measure_round_of(bench, run->b, &bench->results[i]);
    return code;
}

static int finish_run(struct bench *bench, const struct run *run)
{
    struct drive_stats stats;
    struct inst_msg msg = {0};
    int code = 0;
    for (size_t i = run->first; i < run->end && !code; i++)
        code = conclude(bench, run->b, &bench->results[i]);
    if (!code && attend_bench_flush(run->b, &msg))
        code = fail(EXIT_FAILED, "bench drive: %s", msg.text);
    if (!code)
        code = read_stats(run->b, &stats);
    if (code)
        return code;
    for (size_t i = run->first; i < run->end; i++) {
        struct result *r = &bench->results[i];
        r->waf = share(stats.flash_program_bytes, stats.stream_bytes);
        r->amplification = share(stats.allocated_bytes, stats.live_bytes);
        r->written = (double)stats.flash_program_bytes / kv_bytes(run->b);
        r->dram = run->b->dram;
        r->dram_peak = stats.dram_peak_bytes;
        r->dram_sparf = stats.sparf_dram_bytes;
        r->dram_pages = stats.pages_dram_bytes;
        print_result(r);
    }
    print_drive(run->b, &stats);
    return 0;
}

// Dense attention among the results from `first` on, NULL: was not asked for.
static const struct result *dense_of(const struct bench *bench, size_t first, uint32_t kv_type)
{
    for (size_t i = first; i < bench->n_results; i++)
        if (bench->results[i].method == METHOD_DENSE && bench->results[i].kv_type == kv_type)
            return &bench->results[i];
    return NULL;
}

static void print_speedup(const struct result *r, const struct result *beside, const char *name)
{
    char title[16], text[48];
    if (beside && beside != r)
        printf("# %-8s %s times as fast as %s\n", title_of(r, title),
               measure_text(measure_speedup(&r->rounds, &beside->rounds), 2, text), name);
}

// Round by round: beside dense over the same K and V, and beside dense over fp16.
static void print_speedups(const struct bench *bench, size_t first)
{
    const struct result *f16 = dense_of(bench, first, KV_F16);
    for (size_t i = first; i < bench->n_results; i++) {
        const struct result *r = &bench->results[i];
        if (r->kv_type != KV_F16)
            print_speedup(r, dense_of(bench, first, r->kv_type), "dense of the same type");
        print_speedup(r, f16, "dense");
    }
    fflush(stdout);
}

// The runs of a shape and a context, one for each type of K and V and what a space has to be.
static size_t variants_of(const struct bench *bench, struct attend_options *out)
{
    static uint64_t any = 0;
    const struct option_numbers p = bench->page_channels.n && bench->with_sparf
                                        ? bench->page_channels
                                        : (struct option_numbers){&any, 1};
    size_t n = 0;
    for (uint32_t type = 0; type < KV_TYPES; type++) {
        if (!bench->types[type])
            continue;
        const bool sparf = bench->with_sparf && type == KV_F16;
        for (size_t j = 0; j < p.n && (sparf || (bench->dense && !j)) && n < RUNS_MAX; j++) {
            out[n] = bench->o;
            out[n].kv_type = type;
            out[n].page_channels = (uint32_t)p.items[j];
            out[n++].method = sparf ? METHOD_SPARF : METHOD_DENSE;
        }
        if (bench->pages && n < RUNS_MAX) {
            out[n] = bench->o;
            out[n].kv_type = type;
            out[n++].method = METHOD_PAGES;
        }
    }
    return n;
}

static int measure_context(struct bench *bench, const struct shape *shape, uint64_t context)
{
    struct attend_options variants[RUNS_MAX];
    struct run runs[RUNS_MAX] = {{0}};
    const size_t n = variants_of(bench, variants), first = bench->n_results;
    const size_t together = bench->rounds > 1 ? n : 1;
    int code = 0;
    for (size_t at = 0; at < n && !code; at += together) {
        for (size_t i = at; i < at + together && !code; i++)
            code = open_run(bench, shape, context, &variants[i], &runs[i]);
        for (uint32_t round = 0; round < bench->rounds && !code; round++)
            for (size_t i = at; i < at + together && !code; i++)
                code = round_of_run(bench, &runs[i]);
        for (size_t i = at; i < at + together; i++) {
            code = code ? code : finish_run(bench, &runs[i]);
            attend_bench_close(runs[i].b);
        }
    }
    if (!code && bench->rounds > 1)
        print_speedups(bench, first);
    return code;
}

static int write_csv(struct bench *bench)
{
    FILE *f = bench->csv.stream;
    fputs("q_heads,kv_heads,head_dim,context,method,kv_type,page_channels,page_bytes,group,steps,"
          "read_bytes,dense_bytes,seconds,captured,worst,written_of_kv,waf,space_amplification,"
          "dram_bytes,dram_peak_bytes,sparf_dram_bytes,pages_dram_bytes,choosing",
          f);
    for (size_t row = 0; row < STAT_ROWS; row++)
        fprintf(f, ",steps_%s", stat_rows[row].name);
    fputc('\n', f);
    for (size_t i = 0; i < bench->n_results; i++) {
        const struct result *r = &bench->results[i];
        fprintf(f,
                "%u,%u,%u,%llu,%s,%s,%u,%u,%u,%llu,%.0f,%.0f,%.9g,%.6f,%.6f,%.5f,%.5f,%.4f,"
                "%llu,%llu,%llu,%llu,%.4f",
                r->shape.q_heads, r->shape.kv_heads, r->shape.head_dim,
                (unsigned long long)r->context, name_of(r), kv_type_name(r->kv_type),
                r->page_channels, r->page_bytes, r->group, (unsigned long long)r->steps, r->read,
                r->dense, r->seconds, r->captured, r->worst, r->written, r->waf, r->amplification,
                (unsigned long long)r->dram, (unsigned long long)r->dram_peak,
                (unsigned long long)r->dram_sparf, (unsigned long long)r->dram_pages, r->choosing);
        for (size_t row = 0; row < STAT_ROWS; row++)
            fprintf(f, ",%lld", (long long)stat_of(&r->d, row)); // some go down
        fputc('\n', f);
    }
    return output_file_close(&bench->csv);
}

struct line {
    char name[48];
    double x[RESULTS_MAX], read[RESULTS_MAX], seconds[RESULTS_MAX];
    size_t n;
};

// The lines of one shape: dense, pages, and sparf for each number of channels in a page.
static size_t lines_of(const struct bench *bench, const struct shape *shape, struct line *lines,
                       size_t max)
{
    size_t n = 0;
    for (size_t i = 0; i < bench->n_results; i++) {
        const struct result *r = &bench->results[i];
        if (memcmp(&r->shape, shape, sizeof *shape))
            continue;
        char name[48];
        title_of(r, name);
        if (r->asked_channels && r->method == METHOD_SPARF)
            snprintf(name, sizeof name, "sparf, %u channels/page", r->asked_channels);
        size_t at = 0;
        while (at < n && strcmp(lines[at].name, name))
            at++;
        if (at == max)
            continue;
        if (at == n)
            memcpy(lines[n++].name, name, sizeof name);
        struct line *line = &lines[at];
        if (line->n && line->x[line->n - 1] == (double)r->context)
            continue; // dense was measured beside every other line
        line->x[line->n] = (double)r->context;
        line->read[line->n] = r->read / 1e6;
        line->seconds[line->n++] = r->seconds * 1e3;
    }
    return n;
}

static int write_svg(struct bench *bench)
{
    enum { LINES = 8 };
    struct line *lines = calloc(bench->n_shapes * LINES, sizeof *lines);
    struct chart_series *series = calloc(2 * bench->n_shapes * LINES, sizeof *series);
    struct chart charts[2 * SHAPES_MAX] = {0};
    char titles[2 * SHAPES_MAX][64];
    int code = lines && series ? 0 : fail(EXIT_FAILED, "out of memory");
    for (size_t s = 0; s < bench->n_shapes && !code; s++) {
        const struct shape *shape = &bench->shape[s];
        struct line *mine = lines + s * LINES;
        size_t n = lines_of(bench, shape, mine, LINES);
        for (size_t what = 0; what < 2; what++) {
            struct chart_series *out = series + (2 * s + what) * LINES;
            char *title = titles[2 * s + what];
            for (size_t i = 0; i < n; i++)
                out[i] = (struct chart_series){.name = mine[i].name,
                                               .x = mine[i].x,
                                               .y = what ? mine[i].seconds : mine[i].read,
                                               .n = mine[i].n};
            snprintf(title, sizeof titles[0], "%u query heads on %u KV heads of %u", shape->q_heads,
                     shape->kv_heads, shape->head_dim);
            charts[2 * s + what] =
                (struct chart){.title = title,
                               .x_label = "context in tokens",
                               .y_label = what ? "ms per step" : "MB read per step",
                               .x_log = true,
                               .y_log = true,
                               .series = out,
                               .n_series = n};
        }
    }
    if (!code && !charts_write(bench->svg.stream, charts, 2 * bench->n_shapes))
        code = output_file_failed(&bench->svg);
    if (!code)
        code = output_file_close(&bench->svg);
    free(lines);
    free(series);
    return code;
}

static bool read_shape(struct bench *bench, const char *text)
{
    struct shape *s = &bench->shape[bench->n_shapes];
    int end = -1;
    if (bench->n_shapes == SHAPES_MAX)
        return false;
    sscanf(text, "%u/%ux%u%n", &s->q_heads, &s->kv_heads, &s->head_dim, &end);
    if (end < 0 || text[end] || !s->q_heads || !s->kv_heads || s->q_heads % s->kv_heads ||
        !s->head_dim || s->q_heads > 4096 || s->head_dim > 512)
        return false;
    bench->n_shapes++;
    return true;
}

static bool read_types(struct bench *bench)
{
    char text[64], *rest = text;
    if (!bench->kv_type)
        return bench->types[KV_F16] = true;
    if (snprintf(text, sizeof text, "%s", bench->kv_type) >= (int)sizeof text)
        return false;
    for (char *name; (name = strsep(&rest, ","));) {
        uint32_t type = kv_type_named(name);
        if (type == KV_TYPES)
            return false;
        bench->types[type] = true;
    }
    return true;
}

static int check_options(struct bench *bench)
{
    static const char *const shapes[] = {"40/40x128", "32/8x128", "32/8x64"};
    static const char *const methods[] = {"dense", "sparf"};
    size_t n_shapes = bench->shapes.n ? bench->shapes.n : 3;
    size_t n_methods = bench->methods.n ? bench->methods.n : 2;
    for (size_t i = 0; i < n_shapes; i++) {
        const char *text = bench->shapes.n ? bench->shapes.items[i] : shapes[i];
        if (!read_shape(bench, text))
            return fail(EXIT_USAGE, "bench drive: --shape: '%s' is not a shape like 32/8x128",
                        text);
    }
    for (size_t i = 0; i < n_methods; i++) {
        const char *text = bench->methods.n ? bench->methods.items[i] : methods[i];
        if (!strcmp(text, "dense"))
            bench->dense = true;
        else if (!strcmp(text, "sparf"))
            bench->with_sparf = true;
        else if (!strcmp(text, "pages"))
            bench->pages = true;
        else
            return fail(EXIT_USAGE, "bench drive: --method: '%s' is unknown (dense, sparf, pages)",
                        text);
    }
    int code = sparf_option_read(&bench->sparf, "bench drive");
    if (code)
        return code;
    struct attend_options *o = &bench->o;
    if (!bench->pages && (bench->ratio || bench->budget || o->piece || o->keys || o->look ||
                          o->bits || o->heads_together || o->index_flash))
        return fail(EXIT_USAGE,
                    "bench drive: --ratio, --budget, --piece, --keys, --bits, --look, --heads and "
                    "--index-on-disk need --method pages");
    bench->part = 1.0 / 8;
    if (bench->ratio && !option_part(bench->ratio, &bench->part))
        return fail(EXIT_USAGE, "bench drive: --ratio: '%s' is not like 1/8", bench->ratio);
    if (bench->ratio && bench->budget)
        return fail(EXIT_USAGE, "bench drive: --ratio and --budget are two sizes of one thing");
    for (size_t i = 0; i < bench->n_shapes && bench->with_sparf; i++)
        if (bench->sparf.channels > bench->shape[i].head_dim)
            return fail(EXIT_USAGE, "bench drive: --sparf: r=%u of %u channels",
                        bench->sparf.channels, bench->shape[i].head_dim);
    if (bench->kv && !strncmp(bench->kv, "ram:", 4) && bench->kv[4])
        return fail(EXIT_USAGE,
                    "bench drive: --kv: '%s': ram: takes no size, it is as large as "
                    "the context needs",
                    bench->kv);
    if (bench->kv && !strncmp(bench->kv, "nand:", 5))
        o->nand = bench->kv + 5;
    else if (bench->kv && strcmp(bench->kv, "ram:"))
        o->directory = bench->kv;
    if (o->group & (o->group - 1))
        return fail(EXIT_USAGE, "bench drive: --group: '%u' is not a power of two", o->group);
    if (!read_types(bench))
        return fail(EXIT_USAGE, "bench drive: --kv-type: '%s' is not like f16,q8,q4",
                    bench->kv_type);
    if (!bench->types[KV_F16] && bench->with_sparf && bench->methods.n)
        return fail(EXIT_USAGE, "bench drive: sparf needs K and V as f16");
    if (!bench->types[KV_F16])
        bench->with_sparf = false;
    if (o->clusters.topics > 65535 || o->clusters.focus > o->clusters.topics)
        return fail(EXIT_USAGE, "bench drive: --focus is more than --topics");
    return 0;
}

// A directory can be memory, and then no disk is measured.
static int look_at_place(const struct bench *bench)
{
    struct kv_place place = {0};
    struct inst_msg msg = {0};
    int err = bench->o.directory ? kv_place_look(&place, bench->o.directory, &msg) : 0;
    if (err)
        return fail(EXIT_FAILED, "%s", msg.text);
    if (place.memory)
        warn("%s is memory (%s): no disk is measured", bench->o.directory, place.type);
    return 0;
}

static int measure_all(struct bench *bench)
{
    static uint64_t contexts[] = {2048, 4096, 8192, 16384, 32768, 65536};
    const struct option_numbers c =
        bench->contexts.n ? bench->contexts : (struct option_numbers){contexts, 6};
    const struct clusters_options *k = &bench->o.clusters;
    char cpu[128], sparf[64];
    int code = look_at_place(bench);
    if (code)
        return code;
    measure_cpu_name(cpu, sizeof cpu);
    sparf_option_text(&bench->sparf, sparf, sizeof sparf);
    printf("# %s, %u threads; %u sequences, %u layers; %u rounds of %u steps; sparf %s\n"
           "# K: segments of %u tokens, %u topics, cohesion %.2f, query on %u topics, "
           "each for %u tokens, with sharpness %.1f, channel sizes of sigma %.2f, seed %llu "
           "(bench/clusters.h)\n",
           cpu, bench->o.threads, bench->o.sequences, bench->o.layers, bench->rounds, bench->steps,
           sparf, k->segment, k->topics, (double)k->cohesion, k->focus, k->stay ? k->stay : 1,
           (double)k->sharpness, (double)k->outliers, (unsigned long long)k->seed);
    fputs(header_line, stdout);
    for (size_t s = 0; s < bench->n_shapes && !code; s++)
        for (size_t i = 0; i < c.n && !code; i++)
            code = measure_context(bench, &bench->shape[s], c.items[i]);
    if (!code && bench->csv.stream)
        code = write_csv(bench);
    if (!code && bench->svg.stream)
        code = write_svg(bench);
    return code;
}

int bench_drive(int argc, char **argv)
{
    static struct bench b = {.steps = 16, .rounds = 1, .audits = 4};
    b.o = (struct attend_options){.layers = 1,
                                  .sequences = 1,
                                  .page_bytes = 4096,
                                  .pages_per_block = 256,
                                  .dies = 8,
                                  .dram_limit = 512 << 20,
                                  .threads = 4,
                                  .clusters = clusters_usual};
    const struct option rows[] = {
        {"The KV cache", 0, OPTION_HEADING, NULL, 0, 0, NULL, NULL},
        {"--kv", 0, OPTION_TEXT, &b.kv, 0, 0, "WHERE",
         "ram: (default) = memory with the geometry of NAND, a directory, or nand:PROFILE = "
         "emulated, times are the model's"},
        {"--shape", 0, OPTION_LIST, &b.shapes, 0, 0, "Q/KVxD",
         "query heads / KV heads x head_dim; may be repeated; default: 40/40x128, 32/8x128, "
         "32/8x64"},
        {"--contexts", 'c', OPTION_NUMBERS, &b.contexts, 64, 1e8, "N,N,...",
         "tokens; default: 2K to 64K"},
        {"--layers", 0, OPTION_U32, &b.o.layers, 1, 1024, "N", "default 1"},
        {"--sequences", 0, OPTION_U32, &b.o.sequences, 1, 4096, "N", "default 1"},
        {"--segment", 0, OPTION_U32, &b.o.clusters.segment, 1, 1e6, "N",
         "mean tokens on one topic; default 32"},
        {"--topics", 0, OPTION_U32, &b.o.clusters.topics, 1, 65535, "N", "default 64"},
        {"--focus", 0, OPTION_U32, &b.o.clusters.focus, 0, 65535, "N",
         "topics that a query looks for; default 4"},
        {"--stay", 0, OPTION_U32, &b.o.clusters.stay, 1, 1e6, "N",
         "tokens for which it looks for one of them; default 1"},
        {"--cohesion", 0, OPTION_F32, &b.o.clusters.cohesion, 0, 1, "C",
         "how alike tokens of a topic are; default 0.8"},
        {"--sharpness", 0, OPTION_F32, &b.o.clusters.sharpness, 0, 100, "S",
         "score of a token that is looked for; default 6"},
        {"--outliers", 0, OPTION_F32, &b.o.clusters.outliers, 0, 5, "S",
         "spread of channel sizes; default 0.6"},
        {"--seed", 0, OPTION_U64, &b.o.clusters.seed, 0, 1e18, "S", "default 1"},
        {"The drive", 0, OPTION_HEADING, NULL, 0, 0, NULL, NULL},
        {"--page", 0, OPTION_U32, &b.o.page_bytes, 512, 1 << 20, "BYTES", "of ram:; default 4096"},
        {"--block", 0, OPTION_U32, &b.o.pages_per_block, 4, 65535, "N",
         "pages of a block of ram:; default 256"},
        {"--dies", 0, OPTION_U32, &b.o.dies, 1, 4096, "N", "of ram:; default 8"},
        {"--row-cache", 0, OPTION_SIZE, &b.o.row_cache, 0, 0, "SIZE",
         "rows kept in --dram; default: none, so that all is read"},
        {"--request-cost", 0, OPTION_SIZE, &b.o.request_cost, 0, 0, "SIZE",
         "gaps between pages that cost less are read; default: measured, none on ram:"},
        {"--dram", 0, OPTION_SIZE, &b.o.dram, 0, 0, "SIZE",
         "of the drive; default: what it asks for, up to 512M"},
        {"--group", 0, OPTION_U32, &b.o.group, 16, 1024, "T",
         "token group; default: one page of K on ram:, chosen by the drive on disk"},
        {"--kv-type", 0, OPTION_TEXT, &b.kv_type, 0, 0, "TYPE,...",
         "how K and V are stored: f16, q8, q4, or several, as f16,q8; default: f16"},
        {"--page-channels", 0, OPTION_NUMBERS, &b.page_channels, 0, 16, "N,N,...",
         "channels of K in a page; default: chosen by the drive"},
        {"--threads", 't', OPTION_U32, &b.o.threads, 1, 1024, "N", "default 4"},
        {"Attention", 0, OPTION_HEADING, NULL, 0, 0, NULL, NULL},
        {"--method", 0, OPTION_LIST, &b.methods, 0, 0, "NAME",
         "dense, sparf or pages; may be repeated; default: the first two"},
        {"--ratio", 0, OPTION_TEXT, &b.ratio, 0, 0, "R",
         "pages: part of the tokens that is read, as 1/8 or 0.125; default: 1/8"},
        {"--budget", 0, OPTION_SIZE, &b.budget, 0, 0, "SIZE",
         "pages: bytes of K and V of a step instead, all of them where there are no more"},
        {"--piece", 0, OPTION_U32, &b.o.piece, 16, 64, "N",
         "pages: tokens of a piece; default: the fewest that fill pages"},
        {"--keys", 0, OPTION_U32, &b.o.keys, 1, 64, "N",
         "pages: keys of a piece's summary; default: as many as tokens"},
        {"--bits", 0, OPTION_U32, &b.o.bits, 1, 2, "N",
         "pages: bits for each channel of these keys, 1 or 2; default: 2, with --look or "
         "--index-on-disk 1"},
        {"--look", 0, OPTION_U32, &b.o.look, 1, UINT32_MAX, "N",
         "pages: keys that a query looks at, the likeliest, where there are many more; default: "
         "all"},
        {"--heads", 0, OPTION_U32, &b.o.heads_together, 1, 4096, "N",
         "pages: neighbouring KV heads that choose the same tokens; default: 1"},
        {"--index-on-disk", 0, OPTION_FLAG, &b.o.index_flash, 0, 0, NULL,
         "pages: keys lie on flash, not in DRAM, and reading them counts in --ratio"},
        SPARF_OPTION_ROW(b.sparf),
        {"--steps", 'n', OPTION_U32, &b.steps, 1, 1e6, "N", "tokens decoded; default 16"},
        {"--rounds", 0, OPTION_U32, &b.rounds, 1, MEASURE_ROUNDS_MAX, "N",
         "of steps, in which all that is compared takes turns; default 1"},
        {"--audits", 0, OPTION_U32, &b.audits, 0, 1e6, "N",
         "steps that measure the captured mass; default 4"},
        {"Reports", 0, OPTION_HEADING, NULL, 0, 0, NULL, NULL},
        {"--csv", 0, OPTION_OUTPUT, &b.csv, 0, 0, "FILE", "everything measured"},
        {"--svg", 0, OPTION_OUTPUT, &b.svg, 0, 0, "FILE", "bytes and time over the context"},
    };
    const struct options options = {"bench drive", NULL,
                                    "Decode attention in the drive, over K and V of stated "
                                    "locality.",
                                    rows, sizeof rows / sizeof *rows};
    int n, code;
    if (options_parse(&options, argc, argv, &n, &code)) {
        code = check_options(&b);
        code = code ? code : output_files_open(&options);
        code = code ? code : measure_all(&b);
    }
    options_free(&options);
    return code;
}
