// SPDX-License-Identifier: Apache-2.0
// Methods that choose, on flash that fails: one fault at every operation of a run in turn. A read
// that fails costs the one item that wanted it, which succeeds when it is asked for again; a
// program that fails costs the sequence whose K and V it was, and nothing where it was SparF's
// channel copy, or a row of the index of pages. All else gives the bits of a run without faults, so
// whatever a fault met, an index of pages is that of K and V. The argument is the method: sparf,
// pages, or index, which is pages with its index on flash.
#include "sparf_scene.h"
#include "tests/more.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DIM = 64, Q_HEADS = 4, LAYERS = 2, PROMPT = 505, SEQUENCES = 3, ANSWERS_MAX = 96 };

static uint32_t method = METHOD_SPARF;
static bool index_on_flash; // of pages

struct run {
    struct rig rig;
    const struct scene *scene;
    struct scene_result r;
    bool programs;            // faults hit programs: a sequence may be lost
    bool lost[SEQUENCES + 1]; // by number
    unsigned failures;
    uint64_t hash[ANSWERS_MAX]; // 0: no answer
    size_t n;
};

static void expect_text(const struct run *run, uint32_t seq)
{
    char name[32];
    snprintf(name, sizeof name, "sequence %u ", seq);
    if (!strstr(run->rig.text, name))
        fail_msg("'%s' does not name %s", run->rig.text, name);
}

static void write_tokens(struct run *run, uint32_t seq, uint64_t pos, uint64_t n)
{
    for (uint32_t l = 0; l < LAYERS && !run->lost[seq]; l++) {
        int status = scene_try_write(&run->rig, run->scene, seq, l, pos, n);
        if (status && !run->programs) { // the row that is appended to was not read
            run->failures++;
            expect_text(run, seq);
            status = scene_try_write(&run->rig, run->scene, seq, l, pos, n);
            assert_int_equal(status, 0);
        }
        run->lost[seq] |= status != 0;
    }
}

static void attend(struct run *run, uint32_t seq, uint64_t pos, const struct scene_knobs *knobs)
{
    for (uint32_t l = 0; l < LAYERS; l++) {
        uint64_t *hash = &run->hash[run->n++];
        assert_true(run->n <= ANSWERS_MAX);
        *hash = 0;
        if (run->lost[seq])
            continue;
        int status = scene_attend(&run->rig, run->scene, l, seq, pos, true, knobs, &run->r);
        if (status) {
            run->failures++;
            expect_text(run, seq);
            if (!run->programs)
                assert_true(status == INST_EIO || status == INST_ECORRUPT);
            status = scene_attend(&run->rig, run->scene, l, seq, pos, true, knobs, &run->r);
            assert_true(run->programs || !status);
        }
        run->lost[seq] |= status != 0;
        *hash = 1469598103934665603u;
        const uint8_t *p = (const uint8_t *)run->r.out;
        for (size_t i = 0; i < Q_HEADS * DIM * sizeof(float) && !status; i++)
            *hash = (*hash ^ p[i]) * 1099511628211u;
        if (status)
            *hash = 0;
    }
}

// Prefill, decode over the end of a channel row, a fork into a row and a mean, audits.
static uint64_t play(struct run *run, const struct scene *s, const struct flash_fault_plan *plan,
                     bool programs, uint32_t dies)
{
    struct rig_options o = {
        .config = {.layers = LAYERS,
                   .kv_heads = 2,
                   .head_dim = DIM,
                   .group_tokens = 32,
                   .method = method,
                   .page_channels = method == METHOD_SPARF ? 8 : 0,
                   .piece_flash = index_on_flash,
                   .max_tokens = s->tokens,
                   .max_sequences = SEQUENCES},
        .q_heads = Q_HEADS,
        .threads = 1,
        .page_bytes = 4096,
        .pages_per_block = 80,
        .dies = dies,
        .blocks = 64 * dies,
        .faults = plan,
    };
    *run = (struct run){.scene = s, .programs = programs};
    scene_result_new(&run->r, s);
    rig_open(&run->rig, &o);
    write_tokens(run, 1, 0, 300);
    write_tokens(run, 1, 300, PROMPT - 300);
    bool forked = !run->lost[1] && !rig_fork(&run->rig, 1, 2, 300);
    assert_true(forked || programs);
    run->lost[2] = !forked;
    write_tokens(run, 3, 0, 250);
    write_tokens(run, 3, 250, 40); // its channel row is built from flash
    for (uint64_t i = 0; i < 10; i++) {
        struct scene_knobs knobs = {
            .channels = 1 + (uint32_t)i % 9, .local = 3, .audit = i % 4 == 1};
        if (method == METHOD_PAGES)
            knobs = (struct scene_knobs){.pages = true,
                                         .ratio = 0.1f + 0.05f * (float)i,
                                         .local = 16,
                                         .no_rest = i % 3 == 2 || index_on_flash,
                                         .audit = i % 4 == 1};
        attend(run, 1, PROMPT + i, &knobs);
        if (i % 3 == 0)
            attend(run, 2, 300 + i / 3, &knobs);
        if (i % 4 == 0)
            attend(run, 3, 290 + i / 4, &knobs);
    }
    struct drive_stats stats;
    if (!programs)
        rig_stats(&run->rig, &stats);
    uint64_t faults = plan ? flash_fault_count(run->rig.flash) : 0;
    scene_result_free(&run->r);
    rig_close(&run->rig);
    return faults;
}

static void new_scene(struct scene *s)
{
    *s = (struct scene){.kind = SCENE_CLUSTERED,
                        .layers = LAYERS,
                        .kv_heads = 2,
                        .q_heads = Q_HEADS,
                        .head_dim = DIM,
                        .tokens = PROMPT + 12};
    scene_new(s, 8);
}

// Plays the run with `count` faults of this kind in a row, from every operation that can have it
// on. One is mended without a word; several in a row fail no more than `most` items.
static void some_faults(const struct scene *s, const char *what, struct flash_fault_plan plan,
                        uint64_t count, bool programs, uint32_t dies, unsigned most)
{
    static struct run clean, run;
    // Of pages there are fewer programs: they have no channel rows.
    bool few = method == METHOD_PAGES && (plan.program_error || plan.no_space);
    unsigned step = more() ? 29 : few ? 37 : 121;
    unsigned failures = 0, runs = 0, worst = 0;
    play(&clean, s, NULL, programs, dies);
    assert_int_equal(clean.failures, 0);
    plan.count = count;
    for (plan.after = 0;; plan.after += 1 + plan.after % step, runs++) {
        plan.seed = plan.after;
        if (!play(&run, s, &plan, programs, dies))
            break;
        assert_int_equal(run.n, clean.n);
        unsigned lost = 0;
        for (int i = 1; i <= SEQUENCES; i++)
            lost += run.lost[i];
        for (size_t i = 0; i < run.n; i++)
            if (run.hash[i] ? run.hash[i] != clean.hash[i] : !lost)
                fail_msg("%s at operation %llu, %u dies: answer %zu is another", what,
                         (unsigned long long)plan.after, dies, i);
        failures += run.failures;
        worst = run.failures > worst ? run.failures : worst;
        if (run.failures > most)
            fail_msg("%s at operation %llu, %u dies: %u items failed", what,
                     (unsigned long long)plan.after, dies, run.failures);
    }
    print_message("%llu x %s, %u dies: %u runs, %u items failed, at most %u in one\n",
                  (unsigned long long)count, what, dies, runs, failures, worst);
    assert_true(runs > 20 && (count == 1 ? failures == 0 : failures > 5));
}

enum { ALWAYS = 1000000 };

static void test_reads(void **state)
{
    (void)state;
    struct scene s;
    new_scene(&s);
    for (uint32_t dies = 1; dies <= 4; dies += 3) {
        const struct flash_fault_plan error = {.read_error = ALWAYS}, flip = {.bit_flip = ALWAYS};
        some_faults(&s, "read error", error, 1, false, dies, 0);
        some_faults(&s, "bit flip", flip, 1, false, dies, 0);
        some_faults(&s, "read error", error, 60, true, dies, 20);
        some_faults(&s, "bit flip", flip, 60, true, dies, 20);
    }
    scene_free(&s);
}

static void test_programs(void **state)
{
    (void)state;
    struct scene s;
    new_scene(&s);
    const struct flash_fault_plan error = {.program_error = ALWAYS}, full = {.no_space = ALWAYS};
    some_faults(&s, "program error", error, 1, true, 1, 0);
    some_faults(&s, "no space", full, 1, true, 4, 0);
    some_faults(&s, "program error", error, 40, true, 1, 20);
    some_faults(&s, "no space", full, 80, true, 4, 20);
    scene_free(&s);
}

// Everything at once, again and again: nobody hangs, nothing leaks, and what is answered is right.
static void test_storm(void **state)
{
    (void)state;
    static struct run clean, run;
    struct scene s;
    new_scene(&s);
    play(&clean, &s, NULL, true, 1);
    unsigned failures = 0, answers = 0, runs = 0;
    for (uint64_t seed = 1; seed <= 40; seed += more() ? 1 : 3, runs++) {
        const struct flash_fault_plan plan = {.seed = seed,
                                              .read_error = 3000 * (uint32_t)seed,
                                              .short_transfer = 1000 * (uint32_t)seed,
                                              .bit_flip = 2000 * (uint32_t)seed,
                                              .erase_error = 30000,
                                              .program_error = seed % 4 ? 0 : 1500,
                                              .delay = 200000};
        play(&run, &s, &plan, true, 1);
        for (size_t i = 0; i < run.n; i++) {
            assert_true(!run.hash[i] || run.hash[i] == clean.hash[i]);
            answers += run.hash[i] != 0;
        }
        failures += run.failures;
    }
    print_message("storm: %u answers, %u failures\n", answers, failures);
    assert_true(answers > 5 * runs && failures > runs);
    scene_free(&s);
}

int main(int argc, char **argv)
{
    if (argc > 1)
        method = METHOD_PAGES;
    index_on_flash = argc > 1 && !strcmp(argv[1], "index");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads),
        cmocka_unit_test(test_programs),
        cmocka_unit_test(test_storm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
