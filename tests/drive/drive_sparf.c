// SPDX-License-Identifier: Apache-2.0
// SparF in the drive against Algorithm 1 in double: outputs, chosen tokens, captured mass and what
// the filters let through, on ordinary and on adversarial inputs; and equal bits wherever and
// however K and V lie.
#include "sparf_scene.h"
#include "tests/more.h"
#include "tests/needs.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef __SANITIZE_THREAD__ // ten times slower, and arithmetic is not what it is for
enum { NO_ARITHMETIC = 1 };
#else
enum { NO_ARITHMETIC = 0 };
#endif

static const struct rig_options nand = {
    .config = {.layers = 1, .method = METHOD_SPARF, .max_tokens = 1200},
    .page_bytes = 4096,
    .pages_per_block = 64,
    .dies = 8,
    .blocks = 1600,
    .threads = 2,
};

static struct rig_options options_for(const struct scene *s, uint32_t group, uint32_t page_channels)
{
    struct rig_options o = nand;
    o.config.layers = s->layers;
    o.config.kv_heads = s->kv_heads;
    o.config.head_dim = s->head_dim;
    o.config.group_tokens = group;
    o.config.page_channels = page_channels;
    o.config.max_tokens = s->tokens;
    o.q_heads = s->q_heads;
    return o;
}

static void say(const char *what, const struct scene_calls *calls)
{
    print_message("%s: %llu problems, %llu with close calls (%llu tokens, at most %.2g of the "
                  "weight)\n",
                  what, (unsigned long long)calls->problems, (unsigned long long)calls->close,
                  (unsigned long long)calls->tokens, calls->mass);
    // Where too many are close the comparison would say nothing.
    assert_true(calls->close * 10 <= calls->problems);
}

// The settings that a length deserves: all, some, one; with and without a window.
static struct scene_knobs knobs_for(uint64_t pos, uint32_t head_dim)
{
    const struct scene_knobs all[] = {
        {0},
        {.channels = 1, .tokens = 1},
        {.channels = head_dim / 4, .divisor = 3, .local = 5},
        {.channels = head_dim, .divisor = 16},
        {.tokens = 40, .local = 64},
        {.channels = head_dim / 2, .tokens = 1000000},
        {.channels = 3, .tokens = 16, .local = 16},
        {.channels = head_dim / 8, .divisor = 8, .audit = true},
        {.channels = 5, .local = 1000000},
        {.channels = 2, .divisor = 1, .audit = true},
    };
    return all[pos * 7 / 3 % (sizeof all / sizeof all[0])];
}

// Prefill to a few tokens before each border, decode over it, and compare there.
static void around_borders(const struct scene *s, const struct rig_options *o,
                           const uint64_t *borders, size_t n, struct scene_calls *calls)
{
    struct rig rig;
    struct scene_result r;
    uint64_t pos = 0;
    rig_open(&rig, o);
    scene_result_new(&r, s);
    for (size_t i = 0; i < n; i++) {
        uint64_t from = borders[i] < 3 ? 0 : borders[i] - 3;
        if (from > pos) {
            scene_write(&rig, s, 7, pos, from - pos, 0);
            pos = from;
        }
        for (; pos <= borders[i] + 1 && pos < s->tokens; pos++)
            for (uint32_t l = 0; l < s->layers; l++) {
                struct scene_knobs knobs = knobs_for(pos + l, s->head_dim);
                int status = scene_attend(&rig, s, l, 7, pos, true, &knobs, &r);
                if (status)
                    fail_msg("pos %llu: %s, %s", (unsigned long long)pos, inst_status_text(status),
                             rig.text);
                scene_expect(s, l, pos, &knobs, &r, calls);
            }
    }
    scene_result_free(&r);
    rig_close(&rig);
}

static void test_inputs_of_every_kind(void **state)
{
    (void)state;
    if (NO_ARITHMETIC)
        leave_out("sparf's inputs of every kind: too slow under the thread sanitizer");
    static const struct {
        uint32_t kv_heads, q_heads, head_dim, group, page_channels;
    } shapes[] = {{2, 2, 64, 16, 4}, {1, 4, 80, 32, 8}, {1, 8, 96, 16, 8}, {2, 8, 128, 16, 8}};
    // The first token; token groups of 16 and 32; channel rows of 256 and 512.
    static const uint64_t borders[] = {0, 15, 31, 63, 127, 255, 300, 511, 600};
    for (enum scene_kind kind = 0; kind < SCENE_KINDS; kind++) {
        struct scene_calls calls = {0};
        for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
            if ((i + kind) % 2 && !more())
                continue;
            struct scene s = {.kind = kind,
                              .layers = 1,
                              .kv_heads = shapes[i].kv_heads,
                              .q_heads = shapes[i].q_heads,
                              .head_dim = shapes[i].head_dim,
                              .tokens = 603};
            scene_new(&s, 100 * kind + i);
            struct rig_options o = options_for(&s, shapes[i].group, shapes[i].page_channels);
            around_borders(&s, &o, borders, sizeof borders / sizeof borders[0], &calls);
            scene_free(&s);
        }
        static const char *const names[] = {"random", "clustered", "equal", "steps",
                                            "huge",   "zero q",    "blind"};
        say(names[kind], &calls);
    }
}

// Which tokens were attended is read off the outputs: V of token t is 1 in one place of one layer.
static void test_chosen_sets(void **state)
{
    (void)state;
    if (NO_ARITHMETIC)
        leave_out("sparf's chosen sets: too slow under the thread sanitizer");
    static const enum scene_kind kinds[] = {SCENE_RANDOM, SCENE_CLUSTERED, SCENE_EQUAL,
                                            SCENE_STEPS,  SCENE_ZERO_Q,    SCENE_BLIND};
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        struct scene_calls calls = {0};
        struct scene s = {.kind = kinds[i],
                          .layers = 5,
                          .kv_heads = 2,
                          .q_heads = i % 2 ? 8 : 2,
                          .head_dim = 64,
                          .tokens = 64 * 5,
                          .one_hot = true,
                          .same = true};
        scene_new(&s, 40 + i);
        struct rig_options o = options_for(&s, 16, 8);
        struct rig rig;
        struct scene_result r[5];
        rig_open(&rig, &o);
        for (int l = 0; l < 5; l++)
            scene_result_new(&r[l], &s);
        for (uint64_t pos = 0; pos < s.tokens; pos++) {
            struct scene_knobs knobs = knobs_for(pos, 64);
            for (uint32_t l = 0; l < 5; l++)
                assert_int_equal(scene_attend(&rig, &s, l, 1, pos, true, &knobs, &r[l]), 0);
            if (pos < 40 || pos % 9 == 0)
                scene_expect_sets(&s, pos, &knobs, r, &calls);
        }
        say("sets", &calls);
        for (int l = 0; l < 5; l++)
            scene_result_free(&r[l]);
        rig_close(&rig);
        scene_free(&s);
    }
}

static void test_everything_chosen_is_dense(void **state)
{
    (void)state;
    static const uint32_t dims[] = {64, 80, 96, 128};
    for (size_t i = 0; i < 4; i++) {
        struct scene s = {.kind = i % 2 ? SCENE_CLUSTERED : SCENE_RANDOM,
                          .layers = 1,
                          .kv_heads = 2,
                          .q_heads = 2u << i,
                          .head_dim = dims[i],
                          .tokens = 700};
        const struct scene_knobs all = {.channels = dims[i], .tokens = 1u << 30};
        const struct scene_knobs dense = {.dense = true};
        struct scene_result a, b;
        struct rig rig;
        scene_new(&s, 60 + i);
        struct rig_options o = options_for(&s, i % 2 ? 32 : 16, 1u << i);
        rig_open(&rig, &o);
        scene_result_new(&a, &s);
        scene_result_new(&b, &s);
        double worst = 0;
        for (uint64_t pos = 0; pos < s.tokens; pos++) {
            if (pos % 50 == 7 && pos < 600) {
                scene_write(&rig, &s, 1, pos, 40, 13);
                pos += 40;
            }
            assert_int_equal(scene_attend(&rig, &s, 0, 1, pos, true, &all, &a), 0);
            assert_int_equal(scene_attend(&rig, &s, 0, 1, pos, false, &dense, &b), 0);
            for (uint32_t x = 0; x < s.q_heads * s.head_dim; x++)
                worst = fmax(worst, fabs((double)a.out[x] - (double)b.out[x]));
            for (uint32_t h = 0; h < s.q_heads; h++) {
                worst = fmax(worst, fabs((double)a.lse[h] - (double)b.lse[h]));
                worst = fmax(worst, fabs((double)a.captured[h] - 1));
            }
        }
        print_message("head_dim %u: r = head_dim and k = S is %.2g from dense\n", dims[i], worst);
        assert_true(worst < 1e-5);
        scene_result_free(&a);
        scene_result_free(&b);
        rig_close(&rig);
        scene_free(&s);
    }
}

enum way { WAY_PLAIN, WAY_CHUNKS, WAY_DECODE, WAY_FORK, WAY_TRUNCATE, WAYS };

// Tokens [0, n) of the scene, brought there in different ways, in sequence *seq.
static void bring(struct rig *rig, const struct scene *s, const struct scene *other, enum way way,
                  uint64_t n, uint32_t *seq)
{
    struct scene_result r;
    scene_result_new(&r, s);
    *seq = 1;
    switch (way) {
    case WAY_CHUNKS:
        scene_write(rig, s, 1, 0, n, 37);
        break;
    case WAY_DECODE: // most of it token by token, so that channel rows are built from flash
        scene_write(rig, s, 1, 0, 50, 0);
        for (uint64_t pos = 50; pos < n; pos++)
            for (uint32_t l = 0; l < s->layers; l++)
                assert_int_equal(
                    scene_attend(rig, s, l, 1, pos, true, &(struct scene_knobs){0}, &r), 0);
        break;
    case WAY_FORK: // twice, each time inside rows, and the parents go on and end
        scene_write(rig, s, 1, 0, n - 61, 0);
        scene_write(rig, other, 1, n - 61, 100, 0);
        assert_int_equal(rig_fork(rig, 1, 2, n - 61), 0);
        scene_write(rig, s, 2, n - 61, 41, 41);
        scene_write(rig, other, 2, n - 20, 30, 0);
        assert_int_equal(rig_fork(rig, 2, 3, n - 20), 0);
        assert_int_equal(rig_reclaim(rig, 1, 0, UINT64_MAX, 0, s->layers), 0);
        scene_write(rig, s, 3, n - 20, 20, 7);
        assert_int_equal(rig_reclaim(rig, 2, 0, UINT64_MAX, 0, s->layers), 0);
        *seq = 3;
        break;
    case WAY_TRUNCATE: // behind a channel row, then into one
        scene_write(rig, s, 1, 0, 100, 0);
        scene_write(rig, other, 1, 100, n - 80, 0);
        assert_int_equal(rig_reclaim(rig, 1, 100, UINT64_MAX, 0, s->layers), 0);
        scene_write(rig, s, 1, 100, n - 110, 0);
        scene_write(rig, other, 1, n - 10, 50, 0);
        assert_int_equal(rig_reclaim(rig, 1, n - 10, UINT64_MAX, 0, s->layers), 0);
        scene_write(rig, s, 1, n - 10, 10, 3);
        break;
    default:
        scene_write(rig, s, 1, 0, n, 0);
    }
    scene_result_free(&r);
}

static uint64_t hash_bytes(uint64_t hash, const void *data, size_t n)
{
    const uint8_t *p = data;
    for (size_t i = 0; i < n; i++)
        hash = (hash ^ p[i]) * 1099511628211u;
    return hash;
}

static uint64_t scenario_bits(const struct rig_options *o, const struct scene *s,
                              const struct scene *other, enum way way, uint64_t prompt)
{
    struct rig rig;
    struct scene_result r;
    uint32_t seq;
    uint64_t hash = 1469598103934665603u;
    rig_open(&rig, o);
    scene_result_new(&r, s);
    bring(&rig, s, other, way, prompt, &seq);
    for (uint64_t pos = prompt; pos < s->tokens; pos++)
        for (uint32_t l = 0; l < s->layers; l++) {
            struct scene_knobs knobs = knobs_for(pos + l, s->head_dim);
            assert_int_equal(scene_attend(&rig, s, l, seq, pos, true, &knobs, &r), 0);
            hash = hash_bytes(hash, r.out, (size_t)s->q_heads * s->head_dim * sizeof(float));
            hash = hash_bytes(hash, r.lse, s->q_heads * sizeof(float));
            hash = hash_bytes(hash, r.captured, s->q_heads * sizeof(float));
        }
    scene_result_free(&r);
    rig_close(&rig);
    return hash;
}

static void test_equal_bits(void **state)
{
    (void)state;
    struct scene s = {.kind = SCENE_CLUSTERED,
                      .layers = 2,
                      .kv_heads = 2,
                      .q_heads = 6,
                      .head_dim = 64,
                      .tokens = 600};
    struct scene other = s;
    other.kind = SCENE_RANDOM;
    scene_new(&s, 5);
    scene_new(&other, 6);
    other.tokens = s.tokens;
    struct rig_options base = options_for(&s, 16, 8);
    uint64_t expected = scenario_bits(&base, &s, &other, WAY_PLAIN, 480);
    unsigned runs = 0;
    for (enum way way = 0; way < WAYS; way++)
        for (uint32_t group = 16; group <= 64; group *= 2)
            for (uint32_t channels = 1; channels <= 8; channels *= 2, runs++) {
                if (runs % 7 && !more())
                    continue;
                struct rig_options o = base;
                o.config.group_tokens = group;
                o.config.page_channels = channels;
                o.threads = 1 + runs % 4;
                o.page_bytes = runs % 3 ? 4096 : 16384;
                o.dies = runs % 2 ? 8 : 1;
                o.pages_per_block = 80; // a channel row of 64 pages, on one die
                o.ram_rate = runs % 5 ? 0 : 1000000000000u;
                o.directory = runs % 4 == 3 ? INST_BINARY_DIR : NULL;
                o.request_bytes = runs % 7 < 3 ? 1u << (12 + runs % 7 * 2) : 0;
                o.row_cache = runs % 2;
                if (scenario_bits(&o, &s, &other, way, 480) != expected)
                    fail_msg("way %d, group %u, %u channels per page, page %u, %u dies, %u "
                             "threads, %s: other bits",
                             way, group, channels, o.page_bytes, o.dies, o.threads,
                             o.directory ? "file" : "RAM");
            }
    for (const char *const *name = kernels_available(); *name; name++) {
        struct rig_options o = base;
        o.kernels = *name;
        assert_true(scenario_bits(&o, &s, &other, WAY_CHUNKS, 480) == expected);
    }
    scene_free(&s);
    scene_free(&other);
}

// Gaps that cost less than a request are read, counted apart, and change nothing else.
static void test_gaps(void **state)
{
    (void)state;
    enum { LENGTH = 900 };
    struct scene s = {.kind = SCENE_CLUSTERED,
                      .layers = 1,
                      .kv_heads = 4,
                      .q_heads = 4,
                      .head_dim = 64,
                      .tokens = LENGTH + 1};
    const struct scene_knobs knobs = {.channels = 8, .divisor = 16};
    const uint32_t costs[] = {0, 4096, 3 * 4096};
    struct drive_stats before, after, first = {0};
    uint64_t bridged = 0;
    scene_new(&s, 9);
    float *out = calloc(s.q_heads * s.head_dim, sizeof *out);
    for (size_t i = 0; i < sizeof costs / sizeof *costs; i++) {
        struct scene_result r;
        struct rig rig;
        struct rig_options o = options_for(&s, 64, 8);
        o.dies = 1;
        o.ram_rate = 1000000000;
        o.no_read_ahead = true;
        o.request_bytes = costs[i];
        rig_open(&rig, &o);
        scene_result_new(&r, &s);
        scene_write(&rig, &s, 1, 0, LENGTH, 0);
        rig_stats(&rig, &before);
        assert_int_equal(scene_attend(&rig, &s, 0, 1, LENGTH, true, &knobs, &r), 0);
        rig_stats(&rig, &after);
        uint64_t gaps = after.bridged_bytes - before.bridged_bytes;
        uint64_t read = after.flash_read_bytes - before.flash_read_bytes;
        print_message("a request as %u bytes: %llu bytes read, %llu of them gaps\n", costs[i],
                      (unsigned long long)read, (unsigned long long)gaps);
        if (!i) {
            first = after;
            bridged = gaps;
            memcpy(out, r.out, s.q_heads * s.head_dim * sizeof *out);
            assert_int_equal(gaps, 0);
        } else {
            assert_true(gaps > bridged);
            bridged = gaps;
            assert_memory_equal(out, r.out, s.q_heads * s.head_dim * sizeof *out);
        }
        assert_int_equal(read - gaps, first.flash_read_bytes - before.flash_read_bytes);
        assert_int_equal(after.token_pages, first.token_pages);
        assert_int_equal(after.channel_pages, first.channel_pages);
        scene_result_free(&r);
        rig_close(&rig);
    }
    free(out);
    scene_free(&s);
}

// The paper's layout, so that the filters' work can be counted by hand: a page of 4 KiB holds K or
// V of 16 tokens, or 8 channels of 256.
static void test_counters(void **state)
{
    (void)state;
    enum { DIM = 128, TOKENS = 16, CHANNELS = 8, ROW = 256, LENGTH = 2 * ROW + 5 * TOKENS + 3 };
    struct scene s = {.kind = SCENE_CLUSTERED,
                      .layers = 1,
                      .kv_heads = 2,
                      .q_heads = 4,
                      .head_dim = DIM,
                      .tokens = LENGTH + 1};
    const struct scene_knobs knobs = {.channels = 16, .divisor = 8, .local = 4};
    struct drive_stats before, after;
    struct scene_result r;
    struct rig rig;
    scene_new(&s, 9);
    struct rig_options o = options_for(&s, TOKENS, CHANNELS);
    o.no_read_ahead = true;
    rig_open(&rig, &o);
    scene_result_new(&r, &s);
    scene_write(&rig, &s, 1, 0, LENGTH, 0);
    rig_stats(&rig, &before);
    assert_int_equal(scene_attend(&rig, &s, 0, 1, LENGTH, true, &knobs, &r), 0);
    rig_stats(&rig, &after);
    uint64_t channel_pages = 0, token_pages = 0, kept = 0;
    for (uint32_t head = 0; head < s.kv_heads; head++) {
        struct sparf_answer a;
        scene_solve(&s, 0, head, LENGTH, &knobs, &a);
        for (uint32_t c = 0; c < DIM; c += CHANNELS) {
            bool any = false;
            for (uint32_t i = c; i < c + CHANNELS; i++)
                any |= a.channel[i];
            channel_pages += 2 * any;
        }
        for (uint32_t t = 0; t + TOKENS <= LENGTH; t += TOKENS) {
            bool any = false;
            for (uint32_t i = t; i < t + TOKENS; i++) {
                any |= a.token[i];
                kept += a.token[i];
            }
            token_pages += 2 * any;
        }
        sparf_answer_free(&a);
    }
    uint64_t dense_pages = (uint64_t)s.kv_heads * 2 * (LENGTH / TOKENS);
#define DELTA(name) (after.name - before.name)
    assert_int_equal(DELTA(sparf_steps), 1);
    assert_int_equal(DELTA(dense_pages), dense_pages);
    assert_int_equal(DELTA(dense_bytes), dense_pages * 4096);
    assert_int_equal(DELTA(channel_pages), channel_pages);
    assert_int_equal(DELTA(channel_bytes), channel_pages * 4096);
    assert_int_equal(DELTA(channel_kept_bytes), s.kv_heads * 16 * 2 * ROW * 2);
    assert_int_equal(DELTA(token_pages), token_pages);
    assert_int_equal(DELTA(token_bytes), token_pages * 4096);
    assert_int_equal(DELTA(token_kept_bytes), kept * DIM * 2 * 2);
    // Five full token groups have no channel row yet; three tokens and the new one are in DRAM.
    assert_int_equal(DELTA(tail_bytes), s.kv_heads * 5 * 4096);
    assert_int_equal(DELTA(build_read_bytes), 0);
    assert_int_equal(DELTA(audit_read_bytes), 0);
    assert_int_equal(DELTA(flash_read_bytes), DELTA(channel_bytes) + DELTA(token_bytes) +
                                                  DELTA(tail_bytes) + DELTA(mean_bytes));
    // The copy for the channels: two rows of 16 pages for each head; no more than K itself.
    assert_int_equal(after.channel_program_bytes, s.kv_heads * 2 * 16 * 4096);
    assert_int_equal(after.checksum_errors, 0);
    print_message("%llu of %llu pages for channels, %llu for tokens\n",
                  (unsigned long long)channel_pages, (unsigned long long)dense_pages,
                  (unsigned long long)token_pages);
    // An audit reads everything, says so, and changes nothing else.
    struct scene_knobs audited = knobs;
    struct scene_result again;
    audited.audit = true;
    scene_result_new(&again, &s);
    rig_stats(&rig, &before);
    assert_int_equal(scene_attend(&rig, &s, 0, 1, LENGTH, false, &audited, &again), 0);
    rig_stats(&rig, &after);
    assert_memory_equal(r.out, again.out, s.q_heads * DIM * sizeof(float));
    assert_int_equal(DELTA(audits), s.q_heads);
    assert_true(DELTA(audit_read_bytes) > 0 && DELTA(audit_read_bytes) <= dense_pages * 4096);
    double sum = 0;
    for (uint32_t h = 0; h < s.q_heads; h++)
        sum += (double)again.captured[h];
    assert_true(fabs(sum * 1e6 - (double)DELTA(captured_sum)) <= 2.0 * s.q_heads);
#undef DELTA
    scene_result_free(&again);
    scene_result_free(&r);
    rig_close(&rig);
    scene_free(&s);
}

// With one token group per row of the channel copy, decode builds it by reading K back once.
static void test_built_in_decode(void **state)
{
    (void)state;
    enum { ROW = 256, LENGTH = 3 * ROW };
    struct scene s = {.kind = SCENE_CLUSTERED,
                      .layers = 1,
                      .kv_heads = 1,
                      .q_heads = 1,
                      .head_dim = 128,
                      .tokens = LENGTH};
    struct scene_calls calls = {0};
    struct drive_stats stats;
    struct scene_result r;
    struct rig rig;
    scene_new(&s, 10);
    struct rig_options o = options_for(&s, 16, 8);
    rig_open(&rig, &o);
    scene_result_new(&r, &s);
    for (uint64_t pos = 0; pos < LENGTH; pos++) {
        struct scene_knobs knobs = knobs_for(pos, 128);
        assert_int_equal(scene_attend(&rig, &s, 0, 1, pos, true, &knobs, &r), 0);
        if (pos % 17 == 0 || pos % ROW < 2 || pos % ROW > ROW - 2)
            scene_expect(&s, 0, pos, &knobs, &r, &calls);
    }
    rig_stats(&rig, &stats);
    say("decode from nothing", &calls);
    assert_int_equal(stats.channel_program_bytes, 3 * 16 * 4096);
    // Every K page at most once: what the step that completed the row was just reading to rank by
    // token, and the newest group, which may still be in DRAM, cost nothing.
    assert_true(stats.build_read_bytes <= 3 * 16 * 4096);
    assert_int_equal(stats.copied_bytes, 0);
    scene_result_free(&r);
    rig_close(&rig);
    scene_free(&s);
}

static void test_refusals(void **state)
{
    (void)state;
    struct scene s = {.kind = SCENE_RANDOM,
                      .layers = 1,
                      .kv_heads = 1,
                      .q_heads = 2,
                      .head_dim = 64,
                      .tokens = 40};
    struct scene_result r;
    struct rig rig;
    scene_new(&s, 3);
    scene_result_new(&r, &s);
    struct rig_options o = options_for(&s, 16, 0);
    o.config.method = METHOD_DENSE;
    rig_open(&rig, &o);
    scene_write(&rig, &s, 1, 0, 20, 0);
    assert_int_not_equal(
        scene_attend(&rig, &s, 0, 1, 20, true, &(struct scene_knobs){.channels = 4}, &r), 0);
    assert_int_equal(
        scene_attend(&rig, &s, 0, 1, 20, true, &(struct scene_knobs){.dense = true}, &r), 0);
    static const uint32_t bad[] = {3, 5, 32, 1u << 31, UINT32_MAX};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        uint8_t payload[CONFIG_BYTES] __attribute__((aligned(64)));
        struct space_config config = rig.config;
        config.method = METHOD_SPARF;
        config.page_channels = bad[i];
        space_config_encode(payload, &config);
        struct command command = {.opcode = OP_CONFIG, .space = 2};
        assert_int_equal(rig_call(&rig, &command, payload, NULL, NULL), INST_EINVAL);
    }
    rig_close(&rig);
    scene_result_free(&r);
    scene_free(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_inputs_of_every_kind),
        cmocka_unit_test(test_chosen_sets),
        cmocka_unit_test(test_everything_chosen_is_dense),
        cmocka_unit_test(test_equal_bits),
        cmocka_unit_test(test_gaps),
        cmocka_unit_test(test_counters),
        cmocka_unit_test(test_built_in_decode),
        cmocka_unit_test(test_refusals),
    };
    if (THREAD_SANITIZER)
        cmocka_set_test_filter("test_equal_bits");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
