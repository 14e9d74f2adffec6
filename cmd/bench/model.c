// SPDX-License-Identifier: Apache-2.0
// instinfer bench model: tokens per second of prefill and decode behind contexts of given depths,
// of InstInfer and, where llama-bench is given, of llama.cpp on the same file. The two take turns,
// so a slow phase of the machine meets both, and what counts is the ratio of a round's two turns.
//
// One session is filled once to each depth with random tokens, or with made-up K and V, which takes
// no computing. Every turn starts by cutting it back there, which is not timed, so no round fills
// it again. llama-bench keeps nothing between its turns and does.
#include "bench/measure.h"
#include "base/clock.h"
#include "cmd/bench/bench.h"
#include "cmd/bench/llama.h"
#include "cmd/engine_options.h"
#include "cmd/output_file.h"
#include "cmd/terminal.h"
#include "host/engine/fill.h"
#include "host/model/gguf.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum test { PREFILL, DECODE, TESTS };
static const char *const test_name[TESTS] = {"prefill", "decode"};

// One line of the table.
struct result {
    struct measure ours, theirs; // seconds per token
    double bytes;                // that our last turn had to read per token: weights and KV
    double flash;                // and what came from flash for it
    double attention;            // part of it that decode waited for the drive
};

struct bench {
    struct engine_options engine;
    struct option_numbers threads, depths;
    uint32_t length[TESTS]; // tokens of a turn; 0: not measured
    uint32_t rounds;
    bool made_up; // K and V of the depth
    struct option_list llama_args;
    struct llama_bench llama;
    struct output_file csv;

    inst_engine *e;
    inst_session *session;
    struct inst_model_info info;
    uint64_t unread; // weight bytes of which a token needs one row
    int32_t *tokens; // random, as many as the context
    struct terminal terminal;
};

static bool on_progress(void *user, uint64_t done, uint64_t total)
{
    struct bench *b = user;
    terminal_progress(&b->terminal, done, total);
    return true;
}

// The first n of the random tokens and nothing else in the session.
static int sync_to(struct bench *b, uint64_t n, bool bar)
{
    struct inst_msg msg = {0};
    struct inst_prefix prefix = {.session = b->session, .tokens = b->tokens, .n_tokens = (size_t)n};
    int err = inst_sync(b->e, &prefix, 1, bar ? on_progress : NULL, b, &msg);
    if (bar)
        terminal_end_progress(&b->terminal);
    return err ? failed(err, &msg) : 0;
}

// Made-up K and V up to one token before the depth, as far as they are not there.
static int fill_to(struct bench *b, uint64_t depth)
{
    struct inst_msg msg = {0};
    uint64_t length = inst_session_length(b->session);
    if (length + 1 >= depth)
        return 0;
    int err = engine_fill(b->session, b->tokens + length, (size_t)(depth - 1 - length), &msg);
    return err ? failed(err, &msg) : 0;
}

static int settle(struct bench *b, uint64_t depth)
{
    if (depth) {
        int code = b->made_up ? fill_to(b, depth) : 0;
        code = code ? code : sync_to(b, depth, true);
        inst_engine_forget(b->e); // or what comes now would be found there
        return code;
    }
    struct inst_msg msg = {0};
    inst_session_close(b->session);
    inst_engine_forget(b->e);
    int err = inst_session_open(&b->session, b->e, &msg);
    return err ? failed(err, &msg) : 0;
}

static int read_stats(struct bench *b, struct inst_stats *stats)
{
    struct inst_msg msg = {0};
    int err = inst_engine_stats(b->e, stats, &msg);
    return err ? failed(err, &msg) : 0;
}

static int our_turn(struct bench *b, enum test test, uint64_t depth, struct result *r)
{
    uint64_t n = b->length[test], step = test == PREFILL ? n : 1;
    struct inst_stats before, after;
    int code = settle(b, depth);
    if (!code)
        code = read_stats(b, &before);
    double start = clock_seconds();
    for (uint64_t done = step; !code && done <= n; done += step)
        code = sync_to(b, depth + done, false);
    double seconds = clock_seconds() - start;
    if (!code)
        code = read_stats(b, &after);
    if (code)
        return code;
    double kv = (double)b->info.kv_bytes_per_token / b->info.layers;
    uint64_t computed =
        after.prefill_tokens - before.prefill_tokens + after.decode_tokens - before.decode_tokens;
    // inst_sync computes everything again where a store is too full of what was cut off.
    if (computed != n)
        return fail(EXIT_FAILED,
                    "bench model: the drive is too small to cut back to %llu tokens "
                    "again and again (see --kv-limit and --kv)",
                    (unsigned long long)depth);
    r->ours.seconds[r->ours.rounds++] = seconds / (double)n;
    r->bytes = (double)(b->info.weight_bytes - b->unread) +
               kv * (double)(after.attended_tokens - before.attended_tokens) / (double)n;
    r->flash = (double)(after.flash_read_bytes - before.flash_read_bytes) / (double)n;
    r->attention = (after.attention_seconds - before.attention_seconds) / seconds;
    return 0;
}

static int our_turns(struct bench *b, uint64_t depth, struct result results[TESTS])
{
    int code = 0;
    for (enum test t = 0; t < TESTS && !code; t++)
        if (b->length[t])
            code = our_turn(b, t, depth, &results[t]);
    return code;
}

static int their_turns(struct bench *b, uint64_t depth, struct result results[TESTS])
{
    struct llama_turn turn = {.model = b->engine.engine.model,
                              .threads = b->info.threads,
                              .prompt = b->length[PREFILL],
                              .tokens = b->length[DECODE],
                              .depth = depth};
    int code = llama_bench_turn(&b->llama, &turn);
    if (code)
        return code;
    results[PREFILL].theirs.seconds[results[PREFILL].theirs.rounds++] = turn.prefill;
    results[DECODE].theirs.seconds[results[DECODE].theirs.rounds++] = turn.decode;
    return 0;
}

static void print_csv(const struct bench *b, enum test test, uint64_t depth, const struct result *r)
{
    struct measure_ratio ours = measure_rate(&r->ours, 1);
    fprintf(b->csv.stream, "%u,%llu,%s,%u,%u,%.6g,%.6g,%.6g", b->info.threads,
            (unsigned long long)depth, test_name[test], b->length[test], b->rounds, ours.median,
            ours.min, ours.max);
    if (test == DECODE)
        fprintf(b->csv.stream, ",%.6g,%.4g", r->bytes * ours.median / 1e9, r->attention);
    else
        fputs(",,", b->csv.stream);
    fprintf(b->csv.stream, ",%.6g", r->flash);
    if (b->llama.path) {
        struct measure_ratio theirs = measure_rate(&r->theirs, 1);
        struct measure_ratio ratio = measure_speedup(&r->ours, &r->theirs);
        fprintf(b->csv.stream, ",%.6g,%.6g,%.6g,%.4g,%.4g,%.4g\n", theirs.median, theirs.min,
                theirs.max, ratio.median, ratio.min, ratio.max);
    } else {
        fputs(",,,,,,\n", b->csv.stream);
    }
    fflush(b->csv.stream);
}

static void print_row(const struct bench *b, enum test test, uint64_t depth, const struct result *r)
{
    char name[24], ours[48], theirs[48] = "", ratio[48] = "", speed[16] = "", flash[16];
    struct measure_ratio rate = measure_rate(&r->ours, 1);
    snprintf(name, sizeof name, "%s %u", test_name[test], b->length[test]);
    if (test == DECODE)
        snprintf(speed, sizeof speed, "%.1f", r->bytes * rate.median / 1e9);
    if (b->llama.path) {
        struct measure_ratio other = measure_rate(&r->theirs, 1);
        measure_text(other, other.median < 100 ? 2 : 1, theirs);
        measure_text(measure_speedup(&r->ours, &r->theirs), 2, ratio);
    }
    measure_text(rate, rate.median < 100 ? 2 : 1, ours);
    snprintf(flash, sizeof flash, "%.4g", r->flash / 1e6);
    printf("| %7u | %7llu | %-12s | %-26s | %6s | %15s |", b->info.threads,
           (unsigned long long)depth, name, ours, speed, flash);
    if (b->llama.path)
        printf(" %-26s | %-20s |", theirs, ratio);
    putchar('\n');
    fflush(stdout);
    if (b->csv.stream)
        print_csv(b, test, depth, r);
}

static void print_head(const struct bench *b)
{
    const struct inst_model_info *i = &b->info;
    char cpu[128];
    measure_cpu_name(cpu, sizeof cpu);
    printf("%s; instinfer %s, kernels %s\n", cpu, inst_version(), i->kernels);
    printf("%s (%s): weights %.3g GB, KV %llu bytes per token in %s%s%s%s\n\n", i->name,
           i->architecture, (double)i->weight_bytes / 1e9,
           (unsigned long long)i->kv_bytes_per_token, i->kv_place, *i->kv_path ? " (" : "",
           i->kv_path, *i->kv_path ? ")" : "");
    printf("| %7s | %7s | %-12s | %-26s | %6s | %15s |", "threads", "depth", "tokens",
           "InstInfer, tokens/s", "GB/s", "flash, MB/token");
    if (b->llama.path)
        printf(" %-26s | %-20s |", "llama.cpp, tokens/s", "ratio");
    printf("\n|---|---|---|---|---|---|%s\n", b->llama.path ? "---|---|" : "");
    if (b->csv.stream)
        fputs("threads,depth,test,tokens,rounds,tokens_per_s,least,most,gb_per_s,attention_share,"
              "flash_bytes_per_token,llama_tokens_per_s,llama_least,llama_most,ratio,ratio_least,"
              "ratio_most\n",
              b->csv.stream);
}

static int measure_depth(struct bench *b, uint64_t depth)
{
    struct result results[TESTS] = {0};
    int code = settle(b, depth);
    for (uint32_t round = 0; round < b->rounds && !code; round++) {
        // Who goes first changes with every round.
        for (unsigned turn = 0; turn < 2 && !code; turn++) {
            if ((round + turn) % 2 == 0)
                code = our_turns(b, depth, results);
            else if (b->llama.path)
                code = their_turns(b, depth, results);
        }
    }
    for (enum test t = 0; t < TESTS && !code; t++)
        if (b->length[t])
            print_row(b, t, depth, &results[t]);
    return code;
}

// Bytes of the matrices from which a token takes one row, where the output matrix is another one.
static int count_unread(struct bench *b)
{
    struct budget budget;
    struct inst_msg msg = {0};
    struct gguf *gguf;
    budget_init(&budget, UINT64_MAX);
    int err = gguf_open(&gguf, b->engine.engine.model, &budget, &msg);
    if (err)
        return failed(err, &msg);
    const struct gguf_tensor *embeddings = gguf_tensor(gguf, "token_embd.weight"),
                             *positions = gguf_tensor(gguf, "position_embd.weight");
    b->unread = embeddings && gguf_tensor(gguf, "output.weight") ? embeddings->bytes : 0;
    b->unread += positions ? positions->bytes : 0;
    gguf_close(gguf);
    return 0;
}

static int make_tokens(struct bench *b)
{
    uint64_t context = b->info.context;
    b->tokens = calloc((size_t)context, sizeof *b->tokens);
    if (!b->tokens)
        return fail(EXIT_FAILED, "out of memory");
    uint64_t x = 1;
    for (uint64_t i = 0; i < context; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        b->tokens[i] = (int32_t)((x >> 33) % b->info.vocab);
    }
    return 0;
}

static int open_engine(struct bench *b, uint32_t threads)
{
    uint64_t deepest = 0, turn = b->length[PREFILL];
    turn = turn > b->length[DECODE] ? turn : b->length[DECODE];
    for (size_t i = 0; i < b->depths.n; i++)
        deepest = b->depths.items[i] > deepest ? b->depths.items[i] : deepest;
    b->engine.engine.threads = threads;
    b->engine.engine.context = deepest + turn;
    int code = engine_options_open(&b->e, &b->engine, "bench model");
    if (code)
        return code;
    inst_engine_info(b->e, &b->info);
    if (!b->tokens)
        code = make_tokens(b);
    // Weights come from the disk the first time; llama-bench has a run before the timed one, too.
    if (!code)
        code = settle(b, 0);
    if (!code)
        code = sync_to(b, turn < 32 ? turn : 32, false);
    return code;
}

static void close_engine(struct bench *b)
{
    inst_engine_close(b->e);
    b->e = NULL;
    b->session = NULL;
}

static int measure(struct bench *b, const struct options *options)
{
    if (!b->length[PREFILL] && !b->length[DECODE])
        return fail(EXIT_USAGE, "bench model: nothing to measure with --prompt 0 and --tokens 0");
    if (b->llama_args.n && !b->llama.path)
        return fail(EXIT_USAGE, "bench model: --llama-arg needs --llama-bench PATH");
    // All threads; no depth.
    if (!option_numbers_default(&b->threads, 0) || !option_numbers_default(&b->depths, 0))
        return fail(EXIT_FAILED, "out of memory");
    int code = output_files_open(options);
    if (code)
        return code;
    for (size_t i = 0; i < b->threads.n; i++) {
        code = open_engine(b, (uint32_t)b->threads.items[i]);
        if (!code && i == 0)
            code = count_unread(b);
        if (code)
            return code;
        if (i == 0)
            print_head(b);
        for (size_t d = 0; d < b->depths.n && !code; d++)
            code = measure_depth(b, b->depths.items[d]);
        close_engine(b);
        if (code)
            return code;
    }
    if (b->llama.path)
        printf("\nllama.cpp: commit %s\n", b->llama.build);
    if (fflush(stdout) || ferror(stdout))
        return fail(EXIT_FAILED, "standard output: %s", strerror(errno));
    return output_file_close(&b->csv);
}

int bench_model(int argc, char **argv)
{
    static struct bench b = {.length = {512, 64}, .rounds = 3};
    const struct option rows[] = {
        {"Measurement", 0, OPTION_HEADING, NULL, 0, 0, NULL, NULL},
        {"--depth", 'd', OPTION_NUMBERS, &b.depths, 0, 4294967295.0, "D,...",
         "tokens in the context before those that are timed; default 0"},
        {"--made-up", 0, OPTION_FLAG, &b.made_up, 0, 0, NULL,
         "K and V of the depth are random numbers, not computed: deep contexts in little time; "
         "llama-bench still computes its own"},
        {"--prompt", 'p', OPTION_U32, &b.length[PREFILL], 0, 1 << 24, "N",
         "tokens of prefill, 0 = none; default 512"},
        {"--tokens", 'n', OPTION_U32, &b.length[DECODE], 0, 1 << 24, "N",
         "tokens of decode, 0 = none; default 64"},
        {"--rounds", 'r', OPTION_U32, &b.rounds, 1, MEASURE_ROUNDS_MAX, "R",
         "turns of each side; default 3"},
        {"--threads", 't', OPTION_NUMBERS, &b.threads, 1, 1024, "N,...", "default: all CPUs"},
        {"--csv", 0, OPTION_OUTPUT, &b.csv, 0, 0, "FILE", "the table as numbers"},
        {"llama.cpp", 0, OPTION_HEADING, NULL, 0, 0, NULL, NULL},
        {"--llama-bench", 0, OPTION_INPUT, &b.llama.path, 0, 0, "PATH",
         "measured in turns with it"},
        {"--llama-arg", 0, OPTION_LIST, &b.llama_args, 0, 0, "ARG",
         "one argument more for it; may be given several times"},
        ENGINE_MODEL_ROWS(b.engine),
        ENGINE_MEMORY_ROWS(b.engine),
    };
    const struct options options = {
        "bench model", NULL, "Measures prefill and decode, beside llama.cpp where it is given.",
        rows, sizeof rows / sizeof *rows};
    int n, code;
    terminal_open(&b.terminal, false);
    b.llama.extra = &b.llama_args;
    if (options_parse(&options, argc, argv, &n, &code))
        code = measure(&b, &options);
    close_engine(&b);
    free(b.tokens);
    options_free(&options);
    return code;
}
