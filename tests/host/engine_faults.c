// SPDX-License-Identifier: Apache-2.0
// A flash that fails below a whole engine. Whatever happens down there, every position that is
// reported as computed has the bits of a run without faults; everything else is one clear error,
// from which the engine recovers.
#include "tests/host/engine_helper.h"
#include "tests/more.h"

#include <stdint.h>

enum {
    PROMPT = 70,
    STEPS = 120,
    TOKENS = PROMPT + STEPS,
    SESSIONS = 3,
    SEEDS = 25,
    SOME_SEEDS = 8,
    ROUNDS_MAX = 3,
    ALWAYS = 1000000, // in 1/1,000,000
};

static char model[64];
static int32_t text[SESSIONS][TOKENS];
static float *truth[SESSIONS]; // [STEPS + 1][vocab]: after the prompt and after each step

struct place {
    const char *name, *directory;
    uint64_t rate;
    struct flash_geometry geometry;
    unsigned seeds;
};

// Blocks of a few rows, so that summaries, erases and blocks with dead rows all take part.
static const struct place places[] = {
    {"RAM", NULL, 0, {512, 8, 200, 1, 1, 4096, false, 0, false}, SEEDS},
    {"RAM of two dies", NULL, 0, {512, 8, 200, 2, 1, 4096, false, 0, false}, SOME_SEEDS},
    {"RAM with a rate", NULL, 1 << 30, {4096, 16, 100, 1, 1, 4096, false, 0, false}, 3},
    {"file", "/tmp", 0, {4096, 16, 100, 1, 1, 4096, false, 0, false}, 3},
};

enum { PLACES = sizeof places / sizeof *places };

// Between the drive and the faults: knows how many operations are under way.
struct counted {
    struct flash flash;
    struct flash *inner;
    uint64_t under_way;
};

static void counted_submit(struct flash *flash, struct flash_io *list, uint64_t now_ns)
{
    struct counted *self = (struct counted *)flash;
    for (struct flash_io *io = list; io; io = io->next)
        self->under_way++;
    self->inner->ops->submit(self->inner, list, now_ns);
}

static struct flash_io *counted_poll(struct flash *flash, uint64_t now_ns)
{
    struct counted *self = (struct counted *)flash;
    struct flash_io *list = self->inner->ops->poll(self->inner, now_ns);
    for (struct flash_io *io = list; io; io = io->next)
        self->under_way--;
    return list;
}

static void counted_wait(struct flash *flash, uint64_t max_ns)
{
    struct counted *self = (struct counted *)flash;
    self->inner->ops->wait(self->inner, max_ns);
}

static const struct flash_ops counted_ops = {
    .submit = counted_submit,
    .poll = counted_poll,
    .wait = counted_wait,
};

struct rig {
    const struct place *place;
    struct flash *faults;
    struct counted counted;
    struct drive *drive;
    struct link *link;
    struct pool *pool;
    struct budget budget;
    inst_engine *engine;
    uint64_t engine_used; // budget without sessions
    inst_session *session[SESSIONS];
    struct inst_msg msg;
    unsigned failures;
};

static void must(int err, const struct inst_msg *msg)
{
    if (err)
        fail_msg("%s", msg->text);
}

static void rig_open(struct rig *r, const struct place *place, const struct flash_fault_plan *plan,
                     uint32_t threads)
{
    *r = (struct rig){.place = place};
    struct flash *inner;
    budget_init(&r->budget, 8 << 20);
    if (place->directory) {
        struct flash_file_options o = {
            .directory = place->directory, .geometry = place->geometry, .budget = &r->budget};
        must(flash_file_open(&inner, &o, &r->msg), &r->msg);
    } else {
        must(flash_ram_open(&inner, &place->geometry, place->rate, &r->msg), &r->msg);
    }
    must(flash_fault_open(&r->faults, inner, plan, &r->msg), &r->msg);
    r->counted.inner = r->faults;
    r->counted.flash = *r->faults;
    r->counted.flash.ops = &counted_ops;
    struct flash *flash = &r->counted.flash;
    must(pool_new(&r->pool, threads, &r->msg), &r->msg);
    struct drive_limits limits = {.dram_bytes = 2 << 20, .pool = r->pool, .no_row_cache = true};
    must(drive_open(&r->drive, flash, &limits, &r->msg), &r->msg);
    must(link_local_open(&r->link, r->drive, flash, &r->msg), &r->msg);
    struct inst_options o = {.model = model,
                             .kv = (const char *const[]){"null:"},
                             .n_kv = 1,
                             .memory = 64 << 20,
                             .context = 256,
                             .max_sessions = SESSIONS,
                             .threads = threads,
                             .group = 16,
                             .chunk = 33,
                             .micro_batches = 1 + threads % 2};
    must(engine_open_on(&r->engine, &o, r->link, &r->msg), &r->msg);
    r->engine_used = r->engine->budget.used;
}

static void rig_check(struct rig *r)
{
    struct inst_msg msg = {0};
    if (drive_check(r->drive, &msg))
        fail_msg("%s: %s", r->place->name, msg.text);
}

static void session_new(struct rig *r, unsigned s)
{
    must(inst_session_open(&r->session[s], r->engine, &r->msg), &r->msg);
}

static void session_end(struct rig *r, unsigned s)
{
    inst_session_close(r->session[s]);
    r->session[s] = NULL;
}

// Everything is given back, whatever went wrong before.
static void rig_close(struct rig *r)
{
    struct drive_stats stats;
    for (unsigned s = 0; s < SESSIONS; s++)
        session_end(r, s);
    inst_engine_forget(r->engine);
    must(engine_drive_stats(r->engine, &stats, &r->msg), &r->msg);
    assert_int_equal(stats.sequences, 0);
    assert_int_equal(stats.live_bytes, 0);
    assert_int_equal(stats.rows_in_dram, 0);
    assert_int_equal(r->engine->budget.used, r->engine_used);
    assert_int_equal(r->engine->port.in_flight, 0);
    rig_check(r);
    inst_engine_close(r->engine);
    link_close(r->link);
    drive_close(r->drive);
    flash_close(r->faults);
    pool_free(r->pool);
    assert_int_equal(r->budget.used, 0);
}

// A kind of fault, and what it may be seen as.
struct kind {
    const char *name;
    size_t field; // of flash_fault_plan
    int code;     // 0: must never be seen
    bool full;    // space is lost with it, so the drive may get full
};

#define FIELD(name) offsetof(struct flash_fault_plan, name)
static const struct kind kinds[] = {
    {"read error", FIELD(read_error), INST_EIO, false},
    {"program error", FIELD(program_error), INST_EIO, false},
    {"erase error", FIELD(erase_error), 0, true},
    {"short transfer", FIELD(short_transfer), INST_EIO, false},
    {"no space", FIELD(no_space), INST_ENOSPC, false},
    {"bit flip", FIELD(bit_flip), INST_ECORRUPT, false},
    {"delay", FIELD(delay), 0, false},
};

enum { KINDS = sizeof kinds / sizeof *kinds };

// The error is of the kind's sort and says in one line what happened where.
static void check_error(const struct rig *r, const struct kind *kind, int code)
{
    bool expected = code == kind->code || (kind->full && code == INST_ENOSPC);
    if (!code || !expected)
        fail_msg("%s on %s: unexpected failure %d: %s", kind->name, r->place->name, code,
                 r->msg.text);
    if (!strstr(r->msg.text, "layer") || !strstr(r->msg.text, "sequence") ||
        !strstr(r->msg.text, inst_status_text(code)) || strchr(r->msg.text, '\n'))
        fail_msg("%s: not a clear error: '%s'", kind->name, r->msg.text);
}

// Brings all open sessions to n tokens. Those that fail are closed; the others must be right.
static void step(struct rig *r, const struct kind *kind, size_t n)
{
    struct inst_prefix prefix[SESSIONS];
    unsigned which[SESSIONS], count = 0;
    for (unsigned s = 0; s < SESSIONS; s++) {
        if (!r->session[s])
            continue;
        which[count] = s;
        prefix[count++] =
            (struct inst_prefix){.session = r->session[s], .tokens = text[s], .n_tokens = n};
    }
    if (!count)
        return;
    memset(&r->msg, 0, sizeof r->msg);
    int err = inst_sync(r->engine, prefix, count, NULL, NULL, &r->msg), first = 0;
    bool seen = false;
    for (unsigned i = 0; i < count; i++) {
        inst_session *session = r->session[which[i]];
        first = first ? first : prefix[i].status;
        seen |= prefix[i].status && prefix[i].status == err;
        if (!prefix[i].status) {
            size_t bytes = r->engine->config.vocab * sizeof(float);
            const float *want = truth[which[i]] + (n - PROMPT) * r->engine->config.vocab;
            assert_non_null(inst_logits(session));
            if (memcmp(inst_logits(session), want, bytes))
                fail_msg("%s on %s: wrong logits of session %u after %zu tokens", kind->name,
                         r->place->name, which[i], n);
            continue;
        }
        r->failures++;
        check_error(r, kind, prefix[i].status);
        assert_null(inst_logits(session));
        session_end(r, which[i]);
        rig_check(r);
    }
    assert_int_equal(!err, !first);
    assert_true(!err || seen);
}

// Until nothing is under way: what was programmed is then read from flash and no longer from DRAM,
// however slow the disk is.
static void settle(struct rig *r)
{
    struct completion done;
    while (r->counted.under_way || drive_runnable(r->drive))
        assert_int_equal(r->link->ops->poll(r->link, &done, 1, 1000000), 0);
}

static void generate(struct rig *r, const struct kind *kind)
{
    step(r, kind, PROMPT);
    settle(r);
    for (size_t n = PROMPT + 1; n <= TOKENS; n++)
        step(r, kind, n);
    rig_check(r);
}

static bool all_alive(const struct rig *r, unsigned sessions)
{
    for (unsigned s = 0; s < sessions; s++)
        if (!r->session[s])
            return false;
    return true;
}

// One engine's life: sessions that fail are replaced until the faults are used up; then all of
// them come to their ends. Returns how often a session failed.
static unsigned live(const struct place *place, const struct kind *kind, uint32_t chance,
                     uint64_t count, uint64_t seed, unsigned sessions)
{
    struct flash_fault_plan plan = {.seed = seed, .after = seed * 7 % 200, .count = count};
    *(uint32_t *)((char *)&plan + kind->field) = chance;
    struct rig r;
    rig_open(&r, place, &plan, 1 + (uint32_t)(seed % 2));
    for (unsigned round = 0; round < ROUNDS_MAX; round++) {
        bool over = count && flash_fault_count(r.faults) == count;
        for (unsigned s = 0; s < sessions; s++) {
            session_end(&r, s);
            session_new(&r, s);
        }
        generate(&r, kind);
        if (over && !all_alive(&r, sessions) && !kind->full)
            fail_msg("%s on %s: not right after all %llu faults: %s", kind->name, place->name,
                     (unsigned long long)count, r.msg.text);
        if (over || (!count && round))
            break;
    }
    unsigned failures = r.failures;
    rig_close(&r);
    return failures;
}

static void compute_truth(void)
{
    struct rig r;
    rig_open(&r, &places[0], &(struct flash_fault_plan){0}, 1);
    for (unsigned s = 0; s < SESSIONS; s++) {
        size_t vocab = r.engine->config.vocab;
        truth[s] = calloc((STEPS + 1) * vocab, sizeof *truth[s]);
        for (size_t i = 0; i < TOKENS; i++)
            text[s][i] = text_token(s, i);
        session_new(&r, s);
        for (size_t n = PROMPT; n <= TOKENS; n++) {
            struct inst_prefix p = {.session = r.session[s], .tokens = text[s], .n_tokens = n};
            must(inst_sync(r.engine, &p, 1, NULL, NULL, &r.msg), &r.msg);
            memcpy(truth[s] + (n - PROMPT) * vocab, inst_logits(r.session[s]),
                   vocab * sizeof(float));
        }
    }
    rig_close(&r);
}

static int setup(void **state)
{
    (void)state;
    write_model(model, TENSOR_F16);
    compute_truth();
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    for (unsigned s = 0; s < SESSIONS; s++)
        free(truth[s]);
    unlink(model);
    return 0;
}

static void right_bits_or_a_clear_error(void **state)
{
    (void)state;
    static const struct {
        uint32_t chance;
        uint64_t count;
    } rates[] = {{2000, 3}, {ALWAYS, 1}, {ALWAYS, 60}, {ALWAYS / 5, 6}, {ALWAYS / 3, 0}};
    enum { RATES = sizeof rates / sizeof *rates };
    for (size_t k = 0; k < KINDS; k++) {
        for (size_t p = 0; p < PLACES; p++) {
            unsigned failures = 0;
            if (THREAD_SANITIZER && (k + p) % 2)
                continue;
            // All, or every rate once in the first place and another one for each kind elsewhere.
            bool all = p == 0 && !THREAD_SANITIZER;
            uint64_t first = more() || all ? 0 : (k + 2 * p) % RATES;
            uint64_t seeds = more() ? places[p].seeds : all ? RATES : 1;
            for (uint64_t seed = first; seed < first + seeds; seed++)
                failures += live(&places[p], &kinds[k], rates[seed % RATES].chance,
                                 rates[seed % RATES].count, seed, seed % 3 ? SESSIONS : 1);
            // Rows whose program fails are in DRAM and placed again: few runs may show none.
            if (kinds[k].code && !failures && seeds >= RATES)
                fail_msg("%s on %s: never seen", kinds[k].name, places[p].name);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(right_bits_or_a_clear_error),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
