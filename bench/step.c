// SPDX-License-Identifier: Apache-2.0
// Latency of decode while a prompt comes in: steps of some sessions that decode, pieces of a long
// prompt alone, and both in one step, taking turns, for pieces of several sizes. The third should
// take no more than 1.5 times the first and the second. Uses the public header only.
#include "bench/measure.h"
#include "base/clock.h"
#include "instinfer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SESSIONS_MAX = 64, ROUNDS = 5 };

struct setting {
    struct inst_options o;
    const char *kv;
    size_t sessions, depth, prompt; // that decode, their tokens, and the prompt's
};

struct bench {
    const struct setting *set;
    inst_engine *engine;
    inst_session *session[SESSIONS_MAX + 1]; // the last one's is the prompt
    int32_t *text;
};

static void must(int err, const struct inst_msg *msg)
{
    if (!err)
        return;
    fprintf(stderr, "bench_step: %s\n", msg->text);
    exit(1);
}

static void run(struct bench *b, bool decode, size_t piece, struct measure *m)
{
    struct inst_segment segment[SESSIONS_MAX + 1];
    struct inst_msg msg = {0};
    size_t n = 0, held;
    for (size_t i = 0; decode && i < b->set->sessions; i++)
        segment[n++] = (struct inst_segment){
            .session = b->session[i], .tokens = b->text + i, .n_tokens = 1, .logits = true};
    if (piece) {
        inst_session *s = b->session[b->set->sessions];
        must(inst_match(s, b->text, b->set->prompt + 1, &held, &msg), &msg);
        inst_engine_forget(b->engine); // the piece of before
        segment[n++] = (struct inst_segment){
            .session = s, .tokens = b->text + held, .n_tokens = piece, .prompt = true};
    }
    double start = clock_seconds();
    must(inst_step(b->engine, segment, n, NULL, NULL, &msg), &msg);
    m->seconds[m->rounds++] = clock_seconds() - start;
}

static void fill(struct bench *b)
{
    struct inst_msg msg = {0};
    for (size_t i = 0; i <= b->set->sessions; i++) {
        bool last = i == b->set->sessions;
        struct inst_prefix p = {.tokens = b->text,
                                .n_tokens = last ? b->set->prompt : b->set->depth};
        must(inst_session_open(&b->session[i], b->engine, &msg), &msg);
        p.session = b->session[i];
        must(inst_sync(b->engine, &p, 1, NULL, NULL, &msg), &msg);
    }
}

static void one_size(struct bench *b, size_t piece, uint32_t rule)
{
    struct measure alone = {0}, prompt = {0}, mixed = {0};
    double worst = 0;
    for (int round = 0; round < ROUNDS; round++) {
        run(b, true, 0, &alone);
        run(b, false, piece, &prompt);
        run(b, true, piece, &mixed);
    }
    double a = measure_median(&alone), p = measure_median(&prompt), m = measure_median(&mixed);
    worst = (m - p) / a;
    printf("%6zu%s %10.1f %10.1f %10.1f %12.2f %12.1f\n", piece, piece == rule ? "*" : " ", 1e3 * a,
           1e3 * p, 1e3 * m, worst, (double)piece / p);
    fflush(stdout);
}

static void parse(struct setting *s, int argc, char **argv)
{
    for (int i = 2; i + 1 < argc; i += 2) {
        unsigned long value = strtoul(argv[i + 1], NULL, 10);
        if (!strcmp(argv[i], "--kv"))
            s->kv = argv[i + 1];
        else if (!strcmp(argv[i], "-t"))
            s->o.threads = (uint32_t)value;
        else if (!strcmp(argv[i], "--sessions"))
            s->sessions = value < SESSIONS_MAX ? value : SESSIONS_MAX;
        else if (!strcmp(argv[i], "--depth"))
            s->depth = value;
        else if (!strcmp(argv[i], "--prompt"))
            s->prompt = value;
        else
            argc = 0;
    }
    if (argc < 2 || argc % 2 || !s->sessions || !s->depth || !s->prompt) {
        fprintf(stderr, "usage: bench_step MODEL.gguf [-t THREADS] [--kv PLACE] [--sessions N] "
                        "[--depth TOKENS] [--prompt TOKENS]\n");
        exit(2);
    }
}

int main(int argc, char **argv)
{
    struct setting set = {.kv = "ram:4G", .sessions = 4, .depth = 1024, .prompt = 4096};
    struct inst_model_info info;
    struct inst_msg msg = {0};
    char cpu[128];
    parse(&set, argc, argv);
    size_t most = (set.prompt > set.depth ? set.prompt : set.depth) + 1024;
    struct bench b = {.set = &set, .text = calloc(most, sizeof *b.text)};
    for (size_t i = 0; b.text && i < most; i++)
        b.text[i] = (int32_t)(3 + i * 7919 % 251);
    set.o.model = argv[1];
    set.o.kv = &set.kv;
    set.o.n_kv = 1;
    set.o.context = most;
    set.o.max_sessions = (uint32_t)set.sessions + 1;
    must(b.text ? inst_engine_open(&b.engine, &set.o, &msg) : INST_ENOMEM, &msg);
    fill(&b);
    inst_engine_info(b.engine, &info);
    measure_cpu_name(cpu, sizeof cpu);
    printf("%s, %u threads; %zu sessions at %zu tokens, a prompt at %zu; %s; medians of %d\n", cpu,
           info.threads, set.sessions, set.depth, set.prompt, set.kv, ROUNDS);
    printf("* the piece that a step takes while others decode (mixed_chunk)\n");
    printf("%7s %10s %10s %10s %12s %12s\n", "piece", "alone ms", "prompt ms", "both ms",
           "(b-p)/alone", "prompt tok/s");
    for (size_t piece = 8; piece <= info.chunk; piece *= 2)
        one_size(&b, piece, info.mixed_chunk);
    inst_engine_close(b.engine);
    free(b.text);
    return 0;
}
