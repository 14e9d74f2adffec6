// SPDX-License-Identifier: Apache-2.0
// instinfer bench batch: tokens per second of decode with many sequences at a time behind contexts
// of given depths, by method, beside the disk's own rate and beside FlexGen. All sides take turns,
// and what counts is the ratio of a round's turns.
//
// A turn opens an engine for the batch, times steps behind an empty context, fills all contexts
// with made-up K and V, and times steps again. The first says what the model costs without KV
// (weights are read once for the batch), the difference what attention does. The prediction of a
// batch is its own cost without KV, and for each sequence the attention that the smallest batch
// measured.
#include "bench/bandwidth_raw.h"
#include "base/clock.h"
#include "bench/chart.h"
#include "bench/measure.h"
#include "cmd/bench/bench.h"
#include "cmd/bench/flexgen.h"
#include "cmd/engine_options.h"
#include "cmd/output_file.h"
#include "cmd/terminal.h"
#include "host/engine/fill.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    METHODS_MAX = 8,
    RIVALS = 2, // FlexGen's two ways
    RAW_BYTES = 128 << 20,
    RAW_REQUEST = 1 << 20,
};
#define RAW_SECONDS 0.5

// Of one method and batch; what is not a measure is of the last turn.
struct result {
    struct measure step, empty; // seconds
    double flash;               // bytes from flash per step
    double share;               // of the disk's own rate
    double captured;
    struct measure null;  // seconds of a step when nothing is stored and nothing read
    struct measure bound; // step over the larger of null and bytes over the disk's own rate
};

struct bench {
    struct engine_options engine;
    struct option_numbers batches, depths;
    struct option_list methods, flexgen_args;
    struct inst_options pages; // as they were given
    uint32_t steps, rounds;
    struct flexgen flexgen;
    struct output_file csv, svg;
    struct terminal terminal;
    bool bound; // measured, too
    bool told;  // what is measured
    int raw_fd; // a file on the disk where KV lies; -1: it lies elsewhere
    double raw; // bytes per second, of the latest round

    inst_engine *e;
    inst_session **sessions;
    struct inst_segment *segments;
    int32_t *tokens;
    struct inst_model_info info;
    uint64_t turns, turns_done;
    // For the picture: [method][depth][batch].
    double *rates;
};

static int32_t token_of(const struct bench *b, uint64_t session, uint64_t position)
{
    uint64_t x = (session << 32 ^ position) * 6364136223846793005u + 1442695040888963407u;
    return (int32_t)((x >> 33) % b->info.vocab);
}

static void close_turn(struct bench *b)
{
    inst_engine_close(b->e);
    free(b->sessions);
    free(b->segments);
    free(b->tokens);
    b->e = NULL;
    b->sessions = NULL;
    b->segments = NULL;
    b->tokens = NULL;
}

// Once, while there is an engine to tell of.
static void print_head(struct bench *b)
{
    const struct inst_model_info *i = &b->info;
    char cpu[128];
    if (b->told)
        return;
    b->told = true;
    measure_cpu_name(cpu, sizeof cpu);
    printf("%s; instinfer %s, kernels %s, %u threads\n", cpu, inst_version(), i->kernels,
           i->threads);
    printf("%s (%s): weights %.3g GB, KV %llu bytes per token in %s\n\n", i->name, i->architecture,
           (double)i->weight_bytes / 1e9, (unsigned long long)i->kv_bytes_per_token, i->kv_place);
    printf("| %6s | %5s | %7s | %-24s | %9s | %5s | %9s | %9s |%s%s\n", "method", "batch", "depth",
           "tokens/s", "MB/step", "GB/s", "of disk's", "predicted", b->bound ? " of bound |" : "",
           b->flexgen.path
               ? " FlexGen                  | its host cache           | of the better |"
               : "");
    printf("|---|---|---|---|---|---|---|---|%s%s\n", b->bound ? "---|" : "",
           b->flexgen.path ? "---|---|---|" : "");
    if (b->csv.stream)
        fputs(
            "method,batch,depth,rounds,tokens_per_s,least,most,empty_tokens_per_s,flash_bytes_per_"
            "step,gb_per_s,of_raw,predicted_tokens_per_s,captured,null_tokens_per_s,of_bound,"
            "flexgen_tokens_per_s,flexgen_host_tokens_per_s,ratio,ratio_least,ratio_most\n",
            b->csv.stream);
}

// FlexGen knows one model; the comparison is about KV of the same size, on one disk.
static int check_flexgen(struct bench *b)
{
    enum { LAYERS = 24, WIDTH = 2048 };
    const struct inst_model_info *i = &b->info;
    struct stat status;
    if (!b->flexgen.path)
        return 0;
    if (i->layers != LAYERS || i->kv_heads * i->head_dim != WIDTH)
        return fail(EXIT_FAILED,
                    "bench batch: FlexGen's OPT-1.3B has %d layers and KV of %d bytes per token; "
                    "%s has %llu bytes",
                    LAYERS, LAYERS * WIDTH * 4, b->engine.engine.model,
                    (unsigned long long)i->kv_bytes_per_token);
    b->flexgen.directory = b->engine.kv.n ? b->engine.kv.items[0] : NULL;
    if (!b->flexgen.directory || stat(b->flexgen.directory, &status) || !S_ISDIR(status.st_mode))
        return fail(EXIT_USAGE, "bench batch: --flexgen needs --kv DIRECTORY");
    return 0;
}

// What is said of pages holds for them alone.
static void choose_method(struct bench *b, const char *method)
{
    struct inst_options *o = &b->engine.engine;
    const bool pages = !strcmp(method, "pages");
    o->attention = method;
    o->pages_piece = pages ? b->pages.pages_piece : 0;
    o->pages_keys = pages ? b->pages.pages_keys : 0;
    o->pages_heads = pages ? b->pages.pages_heads : 0;
    o->pages_look = pages ? b->pages.pages_look : 0;
    o->pages_bits = pages ? b->pages.pages_bits : 0;
    o->pages_flash = pages && b->pages.pages_flash;
}

static int open_turn(struct bench *b, const char *method, uint32_t batch, uint64_t depth)
{
    struct inst_msg msg = {0};
    choose_method(b, method);
    b->engine.engine.max_sessions = batch;
    b->engine.engine.context = depth + 2 * (uint64_t)b->steps + 2;
    int code = engine_options_open(&b->e, &b->engine, "bench batch");
    if (code)
        return code;
    inst_engine_info(b->e, &b->info);
    code = b->told ? 0 : check_flexgen(b);
    if (code)
        return code;
    if (batch > b->info.step_sessions)
        return fail(EXIT_FAILED, "bench batch: a step takes %u sequences at most, not %u",
                    b->info.step_sessions, batch);
    b->sessions = calloc(batch, sizeof *b->sessions);
    b->segments = calloc(batch, sizeof *b->segments);
    // Of one context, or a token for each sequence.
    b->tokens =
        calloc(b->info.context > batch ? (size_t)b->info.context : batch, sizeof *b->tokens);
    if (!b->sessions || !b->segments || !b->tokens)
        return fail(EXIT_FAILED, "out of memory");
    print_head(b);
    for (uint32_t i = 0; i < batch; i++) {
        int err = inst_session_open(&b->sessions[i], b->e, &msg);
        if (err)
            return failed(err, &msg);
    }
    return 0;
}

static int run_steps(struct bench *b, uint32_t batch, uint32_t n)
{
    struct inst_msg msg = {0};
    for (uint32_t step = 0; step < n; step++) {
        for (uint32_t i = 0; i < batch; i++) {
            b->tokens[i] = token_of(b, i, inst_session_length(b->sessions[i]));
            b->segments[i] = (struct inst_segment){
                .session = b->sessions[i], .tokens = &b->tokens[i], .n_tokens = 1, .logits = true};
        }
        int err = inst_step(b->e, b->segments, batch, NULL, NULL, &msg);
        if (err)
            return failed(err, &msg);
    }
    return 0;
}

static int fill(struct bench *b, uint32_t batch, uint64_t depth)
{
    struct inst_msg msg = {0};
    for (uint32_t i = 0; i < batch; i++) {
        uint64_t length = inst_session_length(b->sessions[i]);
        for (uint64_t p = length; p < depth; p++)
            b->tokens[p] = token_of(b, i, p);
        if (depth <= length)
            continue;
        int err = engine_fill(b->sessions[i], b->tokens + length, (size_t)(depth - length), &msg);
        if (err)
            return failed(err, &msg);
    }
    return 0;
}

static int timed_steps(struct bench *b, uint32_t batch, struct measure *m,
                       struct inst_stats *before, struct inst_stats *after)
{
    struct inst_msg msg = {0};
    int code = run_steps(b, batch, 1); // nobody is used to it yet
    int err = code ? 0 : inst_engine_stats(b->e, before, &msg);
    double start = clock_seconds();
    if (!code && !err)
        code = run_steps(b, batch, b->steps);
    double seconds = clock_seconds() - start;
    if (!code && !err)
        err = inst_engine_stats(b->e, after, &msg);
    if (code || err)
        return code ? code : failed(err, &msg);
    m->seconds[m->rounds++] = seconds / b->steps;
    return 0;
}

static void progress(struct bench *b)
{
    terminal_progress(&b->terminal, ++b->turns_done, b->turns);
}

// The same without a disk: what is computed, attention included, takes so long.
static int null_turn(struct bench *b, const char *method, uint32_t batch, uint64_t depth,
                     struct result *r)
{
    static const char *null[] = {"null:"};
    struct option_list kv = b->engine.kv;
    struct inst_stats before, after;
    if (!b->bound)
        return 0;
    b->engine.kv = (struct option_list){.items = null, .n = 1};
    int code = open_turn(b, method, batch, depth);
    if (!code)
        code = fill(b, batch, depth);
    if (!code)
        code = timed_steps(b, batch, &r->null, &before, &after);
    close_turn(b);
    b->engine.kv = kv;
    progress(b);
    double least = code ? 0 : r->null.seconds[r->null.rounds - 1];
    double reading = b->raw > 0 ? r->flash / b->raw : 0;
    if (!code)
        r->bound.seconds[r->bound.rounds++] =
            r->step.seconds[r->step.rounds - 1] / (reading > least ? reading : least);
    return code;
}

static int our_turn(struct bench *b, const char *method, uint32_t batch, uint64_t depth,
                    struct result *r)
{
    struct inst_stats before, after;
    int code = open_turn(b, method, batch, depth);
    if (!code)
        code = timed_steps(b, batch, &r->empty, &before, &after);
    if (!code)
        code = fill(b, batch, depth);
    if (!code)
        code = timed_steps(b, batch, &r->step, &before, &after);
    r->captured = code ? 0 : inst_stats_method(&after, "captured_mean");
    close_turn(b);
    progress(b);
    if (code)
        return code;
    r->flash = (double)(after.flash_read_bytes - before.flash_read_bytes) / b->steps;
    r->share = b->raw > 0 ? r->flash / r->step.seconds[r->step.rounds - 1] / b->raw : 0;
    return null_turn(b, method, batch, depth, r);
}

// ---- the disk's own rate -----------------------------------------------------------------------

// Where all of KV lies in one directory: a file without a name there.
static int open_raw(struct bench *b)
{
    const char *where = b->engine.kv.n == 1 ? b->engine.kv.items[0] : NULL;
    struct stat status;
    b->raw_fd = -1;
    if (!where || stat(where, &status) || !S_ISDIR(status.st_mode))
        return 0;
    char *piece = NULL;
    if (posix_memalign((void **)&piece, 4096, RAW_REQUEST))
        return fail(EXIT_FAILED, "out of memory");
    measure_random(piece, RAW_REQUEST, 1);
    b->raw_fd = open(where, O_TMPFILE | O_RDWR | O_DIRECT | O_CLOEXEC, 0600);
    for (uint64_t at = 0; b->raw_fd >= 0 && at < RAW_BYTES; at += RAW_REQUEST) {
        if (pwrite(b->raw_fd, piece, RAW_REQUEST, (off_t)at) != RAW_REQUEST) {
            close(b->raw_fd); // then there is no such number
            b->raw_fd = -1;
        }
    }
    free(piece);
    return 0;
}

static int raw_turn(struct bench *b)
{
    struct inst_msg msg = {0};
    b->raw = 0;
    if (b->raw_fd < 0)
        return 0;
    int err = raw_read_bandwidth(b->raw_fd, 0, RAW_BYTES, RAW_REQUEST, RAW_DEPTH, RAW_SECONDS,
                                 &b->raw, &msg);
    return err ? failed(err, &msg) : 0;
}

// ---- output ------------------------------------------------------------------------------------

// Tokens per second of the batch, from its own time without KV and the smallest batch's attention.
static double predict(const struct result *r, const struct result *first, uint32_t batch,
                      uint32_t first_batch)
{
    double each = (measure_median(&first->step) - measure_median(&first->empty)) / first_batch;
    return batch / (measure_median(&r->empty) + (each > 0 ? each : 0) * batch);
}

static void print_row(const struct bench *b, const char *method, uint32_t batch, uint64_t depth,
                      const struct result *r, double predicted, const struct measure rival[RIVALS])
{
    char ours[48], theirs[RIVALS][48], ratio[48], share[16] = "";
    struct measure_ratio rate = measure_rate(&r->step, batch), better = {0};
    double gb = r->flash / measure_median(&r->step) / 1e9;
    if (r->share > 0)
        snprintf(share, sizeof share, "%.2f", r->share);
    printf("| %6s | %5u | %7llu | %-24s | %9.4g | %5.2f | %9s | %9.2f |", method, batch,
           (unsigned long long)depth, measure_text(rate, 2, ours), r->flash / 1e6, gb, share,
           predicted);
    if (b->bound)
        printf(" %8.2f |", measure_median(&r->bound));
    if (b->flexgen.path) {
        for (int i = 0; i < RIVALS; i++)
            measure_text(measure_rate(&rival[i], batch), 2, theirs[i]);
        int best = measure_median(&rival[1]) < measure_median(&rival[0]);
        better = measure_speedup(&r->step, &rival[best]);
        printf(" %-24s | %-24s | %-20s |", theirs[0], theirs[1], measure_text(better, 2, ratio));
    }
    putchar('\n');
    fflush(stdout);
    if (!b->csv.stream)
        return;
    fprintf(b->csv.stream, "%s,%u,%llu,%d,%.6g,%.6g,%.6g,%.6g,%.6g,%.4g,%.4g,%.6g,%.4g", method,
            batch, (unsigned long long)depth, r->step.rounds, rate.median, rate.min, rate.max,
            batch / measure_median(&r->empty), r->flash, gb, r->share, predicted, r->captured);
    if (b->bound)
        fprintf(b->csv.stream, ",%.6g,%.4g", batch / measure_median(&r->null),
                measure_median(&r->bound));
    else
        fputs(",,", b->csv.stream);
    if (b->flexgen.path)
        fprintf(b->csv.stream, ",%.6g,%.6g,%.4g,%.4g,%.4g\n", batch / measure_median(&rival[0]),
                batch / measure_median(&rival[1]), better.median, better.min, better.max);
    else
        fputs(",,,,,\n", b->csv.stream);
    fflush(b->csv.stream);
}

static int write_svg(struct bench *b)
{
    size_t n_series = b->methods.n * b->depths.n, n = b->batches.n;
    if (!b->svg.stream)
        return 0;
    struct chart_series *series = calloc(n_series, sizeof *series);
    char(*names)[48] = calloc(n_series, sizeof *names);
    double *x = calloc(n, sizeof *x);
    int code = 0;
    if (!series || !names || !x) {
        code = fail(EXIT_FAILED, "out of memory");
    } else {
        for (size_t i = 0; i < n; i++)
            x[i] = (double)b->batches.items[i];
        for (size_t s = 0; s < n_series; s++) {
            snprintf(names[s], sizeof names[s], "%s, %llu tokens",
                     b->methods.items[s / b->depths.n],
                     (unsigned long long)b->depths.items[s % b->depths.n]);
            series[s] =
                (struct chart_series){.name = names[s], .x = x, .y = b->rates + s * n, .n = n};
        }
        struct chart chart = {.title = "decode, tokens per second",
                              .x_label = "sequences",
                              .y_label = "tokens/s",
                              .x_log = true,
                              .y_log = true,
                              .series = series,
                              .n_series = n_series};
        if (!charts_write(b->svg.stream, &chart, 1))
            code = fail(EXIT_FAILED, "%s: %s", b->svg.path, strerror(errno));
    }
    free(series);
    free(names);
    free(x);
    return code ? code : output_file_close(&b->svg);
}

// ---- measurement -------------------------------------------------------------------------------

static int rival_turns(struct bench *b, uint32_t batch, uint64_t depth,
                       struct measure rival[RIVALS])
{
    for (int i = 0; i < RIVALS && b->flexgen.path; i++) {
        struct flexgen_turn turn = {
            .batch = batch, .steps = b->steps, .depth = depth, .host_cache = i == 1};
        int code = flexgen_turn(&b->flexgen, &turn);
        if (code)
            return code;
        rival[i].seconds[rival[i].rounds++] = turn.step;
        progress(b);
    }
    return 0;
}

// All sides in turns; who goes first changes with every round.
static int measure_batch(struct bench *b, uint32_t batch, uint64_t depth,
                         struct result results[METHODS_MAX], struct measure rival[RIVALS])
{
    size_t n = b->methods.n;
    for (uint32_t round = 0; round < b->rounds; round++) {
        int code = raw_turn(b);
        if (!code && round % 2)
            code = rival_turns(b, batch, depth, rival);
        for (size_t i = 0; i < n && !code; i++) {
            size_t m = (i + round) % n;
            code = our_turn(b, b->methods.items[m], batch, depth, &results[m]);
        }
        if (!code && round % 2 == 0)
            code = rival_turns(b, batch, depth, rival);
        if (code)
            return code;
    }
    return 0;
}

static int measure_depth(struct bench *b, size_t d)
{
    static struct result first[METHODS_MAX];
    uint64_t depth = b->depths.items[d];
    for (size_t i = 0; i < b->batches.n; i++) {
        uint32_t batch = (uint32_t)b->batches.items[i];
        struct result results[METHODS_MAX] = {0};
        struct measure rival[RIVALS] = {0};
        int code = measure_batch(b, batch, depth, results, rival);
        terminal_end_progress(&b->terminal);
        if (code)
            return code;
        if (!i)
            memcpy(first, results, sizeof first);
        for (size_t m = 0; m < b->methods.n; m++) {
            double predicted =
                predict(&results[m], &first[m], batch, (uint32_t)b->batches.items[0]);
            print_row(b, b->methods.items[m], batch, depth, &results[m], predicted, rival);
            b->rates[(m * b->depths.n + d) * b->batches.n + i] =
                batch / measure_median(&results[m].step);
        }
    }
    return 0;
}

// Which method's options may be given: of several, that with most of them.
static const char *options_of(const struct bench *b)
{
    static const char *const with[] = {"pages", "sparf"};
    for (size_t w = 0; w < 2; w++)
        for (size_t i = 0; i < b->methods.n; i++)
            if (!strcmp(b->methods.items[i], with[w]))
                return with[w];
    return NULL;
}

static int prepare(struct bench *b, const struct options *options)
{
    static const char *one[] = {"dense"};
    if (!b->engine.engine.model)
        return fail(EXIT_USAGE, "bench batch: no model given (-m MODEL.gguf)");
    if (b->flexgen_args.n && !b->flexgen.path)
        return fail(EXIT_USAGE, "bench batch: --flexgen-arg needs --flexgen SCRIPT");
    if (!option_numbers_default(&b->batches, 8) || !option_numbers_default(&b->depths, 1024))
        return fail(EXIT_FAILED, "out of memory");
    if (b->methods.n > METHODS_MAX)
        return fail(EXIT_USAGE, "bench batch: more than %d methods", METHODS_MAX);
    if (!b->methods.n) {
        one[0] = b->engine.engine.attention ? b->engine.engine.attention : one[0];
        b->methods = (struct option_list){.items = one, .n = 1};
    }
    b->rates = calloc(b->methods.n * b->depths.n * b->batches.n, sizeof *b->rates);
    if (!b->rates)
        return fail(EXIT_FAILED, "out of memory");
    b->turns = (uint64_t)b->rounds * b->depths.n * b->batches.n *
               (b->methods.n * (b->bound ? 2 : 1) + (b->flexgen.path ? RIVALS : 0));
    b->engine.engine.attention = options_of(b);
    int code = engine_options_read(&b->engine, "bench batch");
    b->pages = b->engine.engine;
    if (!code)
        code = output_files_open(options);
    return code ? code : open_raw(b);
}

static int measure(struct bench *b, const struct options *options)
{
    int code = prepare(b, options);
    for (size_t d = 0; d < b->depths.n && !code; d++)
        code = measure_depth(b, d);
    if (code)
        return code;
    if (b->flexgen.path)
        printf("\nFlexGen: %s\n", b->flexgen.build);
    if (fflush(stdout) || ferror(stdout))
        return fail(EXIT_FAILED, "standard output: %s", strerror(errno));
    code = output_file_close(&b->csv);
    return code ? code : write_svg(b);
}

int bench_batch(int argc, char **argv)
{
    static struct bench b = {.steps = 8, .rounds = 3, .raw_fd = -1};
    struct option_list given = {0};
    const struct option rows[] = {
        {"Measurement", 0, OPTION_HEADING, NULL, 0, 0, NULL, NULL},
        {"--batch", 'b', OPTION_NUMBERS, &b.batches, 1, 65536, "B,...",
         "sequences at a time; default 8"},
        {"--depth", 'd', OPTION_NUMBERS, &b.depths, 1, 4294967295.0, "D,...",
         "tokens in each context, their K and V made up; default 1024"},
        {"--method", 0, OPTION_LIST, &given, 0, 0, "METHOD",
         "as --attention of run; may be given several times; default: dense"},
        {"--tokens", 'n', OPTION_U32, &b.steps, 1, 65536, "N", "steps of a turn; default 8"},
        {"--rounds", 'r', OPTION_U32, &b.rounds, 1, MEASURE_ROUNDS_MAX, "R",
         "turns of each side; default 3"},
        {"--bound", 0, OPTION_FLAG, &b.bound, 0, 0, NULL,
         "turns without a disk, too: a step's time over the larger of those and its bytes at the "
         "disk's own rate"},
        {"--threads", 't', OPTION_U32, &b.engine.engine.threads, 1, 1024, "N", "default: all CPUs"},
        {"--csv", 0, OPTION_OUTPUT, &b.csv, 0, 0, "FILE", "the table as numbers"},
        {"--svg", 0, OPTION_OUTPUT, &b.svg, 0, 0, "FILE", "tokens per second over sequences"},
        {"FlexGen", 0, OPTION_HEADING, NULL, 0, 0, NULL, NULL},
        {"--flexgen", 0, OPTION_INPUT, &b.flexgen.path, 0, 0, "SCRIPT",
         "runs FlexGen on the CPU and prints a line of JSON; measured in turns, with the cache of "
         "OPT-1.3B on the disk of --kv"},
        {"--flexgen-arg", 0, OPTION_LIST, &b.flexgen_args, 0, 0, "ARG",
         "one argument more for it; may be given several times"},
        ENGINE_MODEL_ROWS(b.engine),
        ENGINE_MEMORY_ROWS(b.engine),
    };
    const struct options options = {
        "bench batch", NULL, "Measures decode of many sequences, beside FlexGen where it is given.",
        rows, sizeof rows / sizeof *rows};
    int n, code;
    terminal_open(&b.terminal, false);
    b.flexgen.extra = &b.flexgen_args;
    if (options_parse(&options, argc, argv, &n, &code)) {
        b.methods = given;
        code = measure(&b, &options);
    }
    close_turn(&b);
    if (b.raw_fd >= 0)
        close(b.raw_fd);
    free(b.rates);
    options_free(&options);
    return code;
}
