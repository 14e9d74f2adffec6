// SPDX-License-Identifier: Apache-2.0
// Generations and the scheduler: what each says is what it says alone, whatever runs beside it,
// joins and leaves; nobody fails because there is no room for all.
#include "instinfer_generate.h"
#include "tests/host/engine_helper.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>

enum { COUNT = 14 };

static char model[64];
static const size_t prompt_tokens[COUNT] = {1, 40, 7, 64, 65, 16, 17, 100, 3, 30, 128, 15, 50, 5};

struct request {
    int32_t prompt[160];
    size_t n;
    struct inst_generation_options options;
};

static int setup(void **state)
{
    (void)state;
    write_model(model, TENSOR_F16);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    unlink(model);
    return 0;
}

static struct request request(size_t i)
{
    struct request r = {.n = prompt_tokens[i % COUNT], .options = {.size = sizeof r.options}};
    for (size_t k = 0; k < r.n; k++)
        r.prompt[k] = text_token((uint32_t)i, k);
    inst_sampling_default(&r.options.sampling);
    r.options.sampling.seed = (uint32_t)i * 77;
    r.options.sampling.temperature = i % 3 ? 0.9f : 0;
    r.options.sampling.repeat_penalty = i % 4 ? 1.0f : 1.2f;
    r.options.max_tokens = 3 + i % 5 * 7;
    r.options.ignore_end = true;
    return r;
}

// The library's parts put together by hand: tokens of the generation alone.
static size_t alone(struct fixture *f, const struct request *r, int32_t *tokens)
{
    inst_sampler *sampler;
    size_t n = r->n;
    memcpy(tokens, r->prompt, n * sizeof *tokens);
    assert_int_equal(inst_sampler_open(&sampler, f->engine, &r->options.sampling, NULL), 0);
    for (; n < r->n + r->options.max_tokens; n++) {
        assert_int_equal(sync_tokens(f, 0, tokens, n), 0);
        tokens[n] = inst_sample(sampler, f->session[0], tokens, n);
    }
    inst_sampler_close(sampler);
    return n;
}

static int32_t expected[COUNT][256];
static size_t expected_n[COUNT];
static bool expected_dense; // they are those of the requests with dense attention

static void make_expected(const struct inst_options *base)
{
    struct inst_options o = *base;
    struct fixture f = {0};
    if (expected_dense && !base->attention)
        return;
    expected_dense = !base->attention;
    o.max_sessions = 1;
    for (size_t i = 0; i < COUNT; i++) {
        struct request r = request(i);
        open_engine(&f, model, "ram:64M", &o);
        expected_n[i] = alone(&f, &r, expected[i]);
        close_engine(&f);
    }
}

// The scheduler opens the sessions itself.
static inst_scheduler *scheduler(struct fixture *f, bool independent)
{
    inst_scheduler *s;
    for (size_t i = 0; i < 8; i++) {
        inst_session_close(f->session[i]);
        f->session[i] = NULL;
    }
    assert_int_equal(inst_scheduler_open(&s, f->engine,
                                         &(struct inst_scheduler_options){
                                             .size = sizeof(struct inst_scheduler_options),
                                             .independent = independent},
                                         &f->msg),
                     0);
    return s;
}

static inst_generation *add(struct fixture *f, inst_scheduler *s, const struct request *r)
{
    inst_generation *g;
    if (inst_generation_open(&g, f->engine, r->prompt, r->n, &r->options, &f->msg) ||
        inst_scheduler_add(s, g, &f->msg))
        fail_msg("%s", f->msg.text);
    return g;
}

static void finish(struct fixture *f, inst_scheduler *s)
{
    while (inst_scheduler_running(s) + inst_scheduler_waiting(s))
        if (inst_scheduler_round(s, NULL, NULL, &f->msg))
            fail_msg("%s", f->msg.text);
}

static void assert_expected(const inst_generation *g, size_t i)
{
    size_t n;
    struct inst_msg msg = {0};
    if (inst_generation_error(g, &msg))
        fail_msg("generation %zu: %s", i, msg.text);
    const int32_t *tokens = inst_generation_tokens(g, &n);
    assert_int_equal(inst_generation_finish(g), INST_FINISH_LENGTH);
    assert_int_equal(n, expected_n[i]);
    for (size_t k = 0; k < n; k++)
        if (tokens[k] != expected[i][k])
            fail_msg("generation %zu: token %zu is %d, alone it is %d", i, k, tokens[k],
                     expected[i][k]);
}

// Joining late, too: the second half comes while the first one runs.
static void run_all(struct fixture *f, bool independent)
{
    inst_scheduler *s = scheduler(f, independent);
    inst_generation *g[COUNT];
    for (size_t i = 0; i < COUNT; i++) {
        struct request r = request(i);
        g[i] = add(f, s, &r);
        if (i >= COUNT / 2 && inst_scheduler_round(s, NULL, NULL, &f->msg))
            fail_msg("%s", f->msg.text);
    }
    finish(f, s);
    for (size_t i = 0; i < COUNT; i++) {
        assert_expected(g[i], i);
        inst_generation_close(g[i]);
    }
    inst_scheduler_close(s);
}

static void a_batch_says_what_each_says_alone(void **state)
{
    (void)state;
    static const char *const kv[] = {NULL, "ram:64M", "/tmp"};
    make_expected(&(struct inst_options){.group = 16, .threads = 1});
    for (size_t i = 0; i < 3; i++)
        for (uint32_t sessions = 1 + (uint32_t)i; sessions <= 8; sessions += 5) {
            struct fixture f = {0};
            struct inst_stats stats;
            open_engine(
                &f, model, kv[i],
                &(struct inst_options){
                    .max_sessions = sessions, .group = 16, .chunk = 20 + sessions, .threads = 2});
            run_all(&f, true);
            assert_int_equal(inst_engine_stats(f.engine, &stats, NULL), 0);
            if (i == 2)
                assert_true(stats.attended_tokens_from_flash > 0);
            close_engine(&f);
        }
}

// KV computed by sparf decode is not what prefill computes: no session goes on with another's.
static void sparf_does_not_depend_on_what_ran_before(void **state)
{
    (void)state;
    const struct inst_options o = {
        .group = 16, .threads = 2, .attention = "sparf", .sparf_tokens = 8, .max_sessions = 3};
    make_expected(&o);
    struct fixture f = {0};
    open_engine(&f, model, "ram:64M", &o);
    run_all(&f, true);
    run_all(&f, true);
    // One whose prompt is another's answer: only that one's prompt is of use.
    inst_scheduler *s = scheduler(&f, true);
    struct request r = request(7), longer = {.options = r.options};
    inst_generation *g = add(&f, s, &r);
    finish(&f, s);
    longer.n = expected_n[7] - 2;
    memcpy(longer.prompt, expected[7], longer.n * sizeof *longer.prompt);
    inst_generation *after = add(&f, s, &longer);
    finish(&f, s);
    struct inst_usage usage;
    inst_generation_usage(after, &usage);
    assert_true(usage.reused_tokens > 0 && usage.reused_tokens <= r.n);
    struct fixture fresh = {0};
    open_engine(&fresh, model, "ram:64M", &o);
    expected_n[7] = alone(&fresh, &longer, expected[7]);
    close_engine(&fresh);
    assert_expected(after, 7);
    inst_generation_close(after);
    inst_generation_close(g);
    inst_scheduler_close(s);
    close_engine(&f);
}

// Whatever command is refused for want of room, as long as there is some for one.
static void no_room_makes_fewer_run(void **state)
{
    (void)state;
    static const struct fake_faults faults[] = {
        {.opcode = OP_ATTEND, .fail_command = 40, .code = INST_ENOSPC, .fail_item = 1},
        {.opcode = OP_ATTEND,
         .fail_command = 20,
         .fail_count = 2,
         .code = INST_ENOSPC,
         .fail_item = -1},
        {.opcode = OP_WRITE,
         .fail_command = 9,
         .fail_count = 2,
         .code = INST_ENOMEM,
         .fail_item = -1},
        {.opcode = OP_ATTEND,
         .fail_command = 33,
         .fail_count = 120,
         .code = INST_ENORESOURCE,
         .fail_item = 0},
    };
    make_expected(&(struct inst_options){.group = 16, .threads = 1});
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        struct fixture f = {0};
        open_engine(&f, model, NULL, &(struct inst_options){.max_sessions = 4, .threads = 1});
        fake_drive_faults(f.link, &faults[i]);
        run_all(&f, true);
        close_engine(&f);
    }
    // Lists of tokens that have room for two of them
    struct fixture f = {0};
    open_engine(&f, model, NULL, &(struct inst_options){.max_sessions = 4, .threads = 1});
    f.engine->plan.tokens = 330;
    run_all(&f, true);
    close_engine(&f);
}

// A store too small for all: they take turns.
static void a_small_store_serves_all(void **state)
{
    (void)state;
    struct fixture f = {0};
    make_expected(&(struct inst_options){.group = 16, .threads = 1});
    // 240 bytes a token (3 layers, 2 heads of 10, K and V): the longest has some 160 tokens.
    open_engine(&f, model, "/tmp",
                &(struct inst_options){
                    .max_sessions = 8, .group = 16, .context = 200, .kv_limit = 500 << 10});
    run_all(&f, true);
    close_engine(&f);
}

static void reasons_to_end(void **state)
{
    (void)state;
    struct fixture f = {0};
    open_engine(&f, model, NULL, &(struct inst_options){.max_sessions = 2, .context = 64});
    inst_scheduler *s = scheduler(&f, false);
    size_t n, bytes;
    // The context
    struct request r = request(1);
    r.options.max_tokens = UINT64_MAX;
    inst_generation *g = add(&f, s, &r), *other;
    finish(&f, s);
    assert_int_equal(inst_generation_finish(g), INST_FINISH_CONTEXT);
    inst_generation_tokens(g, &n);
    assert_int_equal(n, 64);
    char whole[1024] = {0};
    const char *piece = inst_generation_text(g, &bytes);
    assert_true(bytes > 4 && bytes < sizeof whole);
    memcpy(whole, piece, bytes);
    inst_generation_close(g);
    // A text of its own in the middle; the same tokens reused
    char stop[4] = {0};
    size_t at = bytes / 2;
    while ((whole[at] & 0xc0) == 0x80)
        at++;
    memcpy(stop, whole + at, 1);
    const char *stops[] = {"no such text", stop};
    r.options.stops = stops;
    r.options.n_stops = 2;
    g = add(&f, s, &r);
    finish(&f, s);
    assert_int_equal(inst_generation_finish(g), INST_FINISH_STOP);
    piece = inst_generation_text(g, &bytes);
    assert_int_equal(bytes, (size_t)(strstr(whole, stop) - whole));
    assert_memory_equal(piece, whole, bytes);
    struct inst_usage usage;
    inst_generation_usage(g, &usage);
    assert_int_equal(usage.prompt_tokens, 40);
    assert_true(usage.reused_tokens >= 39);
    inst_generation_close(g);
    // Cancelled while it runs and while it waits; closed while it runs
    r.options.n_stops = 0;
    g = add(&f, s, &r);
    other = add(&f, s, &r);
    inst_generation *waits = add(&f, s, &r);
    assert_int_equal(inst_scheduler_round(s, NULL, NULL, &f.msg), 0);
    assert_int_equal(inst_scheduler_running(s), 2);
    inst_generation_cancel(g);
    inst_generation_cancel(waits);
    inst_generation_close(other);
    assert_int_equal(inst_scheduler_round(s, NULL, NULL, &f.msg), 0);
    assert_int_equal(inst_generation_finish(g), INST_FINISH_CANCELLED);
    assert_int_equal(inst_generation_finish(waits), INST_FINISH_CANCELLED);
    inst_generation_usage(g, &usage);
    assert_int_equal(usage.completion_tokens, 1);
    assert_int_equal(inst_scheduler_running(s) + inst_scheduler_waiting(s), 0);
    assert_int_equal(inst_scheduler_add(s, g, &f.msg), INST_EINVAL);
    inst_generation_close(g);
    inst_generation_close(waits);
    // Nothing to generate, and what cannot be asked
    r.options.max_tokens = 0;
    g = add(&f, s, &r);
    finish(&f, s);
    assert_int_equal(inst_generation_finish(g), INST_FINISH_LENGTH);
    inst_generation_close(g);
    assert_int_equal(inst_generation_open(&g, f.engine, r.prompt, 65, &r.options, &f.msg),
                     INST_EINVAL);
    r.prompt[3] = 1 << 30;
    assert_int_equal(inst_generation_open(&g, f.engine, r.prompt, 5, &r.options, &f.msg),
                     INST_EINVAL);
    assert_int_equal(inst_generation_open(&g, f.engine, r.prompt, 0, &r.options, &f.msg),
                     INST_EINVAL);
    r.options.size = 1;
    assert_int_equal(inst_generation_open(&g, f.engine, r.prompt, 2, &r.options, &f.msg),
                     INST_EINVAL);
    inst_scheduler_close(s);
    close_engine(&f);
}

static void a_failure_is_one_generations(void **state)
{
    (void)state;
    struct fixture f = {0};
    make_expected(&(struct inst_options){.group = 16, .threads = 1});
    open_engine(&f, model, NULL,
                &(struct inst_options){.max_sessions = 4, .threads = 1, .micro_batches = 1});
    inst_scheduler *s = scheduler(&f, true);
    fake_drive_faults(
        f.link, &(struct fake_faults){
                    .opcode = OP_ATTEND, .fail_command = 10, .code = INST_EIO, .fail_item = 2});
    inst_generation *g[COUNT];
    size_t failed = 0;
    for (size_t i = 0; i < COUNT; i++) {
        struct request r = request(i);
        g[i] = add(&f, s, &r);
    }
    finish(&f, s);
    for (size_t i = 0; i < COUNT; i++) {
        struct inst_msg msg = {0};
        if (inst_generation_error(g[i], &msg)) {
            failed++;
            assert_int_equal(inst_generation_finish(g[i]), INST_FINISH_ERROR);
            assert_non_null(strstr(msg.text, "injected"));
        } else {
            assert_expected(g[i], i);
        }
        inst_generation_close(g[i]);
    }
    assert_int_equal(failed, 1);
    inst_scheduler_close(s);
    close_engine(&f);
}

static bool stop_often(void *user, uint64_t done, uint64_t total)
{
    (void)done;
    (void)total;
    return ++*(int *)user % 7 != 0;
}

static void a_round_can_be_interrupted_and_called_again(void **state)
{
    (void)state;
    struct fixture f = {0};
    int calls = 0;
    make_expected(&(struct inst_options){.group = 16, .threads = 1});
    open_engine(&f, model, NULL, &(struct inst_options){.max_sessions = 2, .chunk = 8});
    inst_scheduler *s = scheduler(&f, true);
    inst_generation *g[3];
    for (size_t i = 0; i < 3; i++) {
        struct request r = request(i);
        g[i] = add(&f, s, &r);
    }
    while (inst_scheduler_running(s) + inst_scheduler_waiting(s)) {
        int err = inst_scheduler_round(s, stop_often, &calls, &f.msg);
        assert_true(!err || err == INST_ECANCELLED);
    }
    assert_true(calls > 40);
    for (size_t i = 0; i < 3; i++) {
        assert_expected(g[i], i);
        inst_generation_close(g[i]);
    }
    inst_scheduler_close(s);
    close_engine(&f);
}

struct canceller {
    inst_generation *g;
    _Atomic int rounds;
};

static void *cancel_later(void *arg)
{
    struct canceller *c = arg;
    while (atomic_load(&c->rounds) < 5)
        usleep(100);
    inst_generation_cancel(c->g);
    return NULL;
}

// From another thread, while rounds go on.
static void cancelled_from_another_thread(void **state)
{
    (void)state;
    struct fixture f = {0};
    pthread_t thread;
    struct canceller c = {0};
    open_engine(&f, model, "ram:64M", &(struct inst_options){.max_sessions = 2, .threads = 2});
    inst_scheduler *s = scheduler(&f, true);
    struct request r = request(1);
    r.options.max_tokens = UINT64_MAX;
    c.g = add(&f, s, &r);
    r.options.max_tokens = 900;
    inst_generation *other = add(&f, s, &r);
    assert_int_equal(pthread_create(&thread, NULL, cancel_later, &c), 0);
    while (!inst_generation_finish(c.g)) {
        assert_int_equal(inst_scheduler_round(s, NULL, NULL, &f.msg), 0);
        c.rounds++;
    }
    pthread_join(thread, NULL);
    assert_int_equal(inst_generation_finish(c.g), INST_FINISH_CANCELLED);
    assert_int_equal(inst_generation_finish(other), INST_FINISH_NOT);
    inst_generation_close(c.g);
    inst_generation_close(other);
    inst_scheduler_close(s);
    close_engine(&f);
}

static uint64_t generated(const inst_generation *g)
{
    struct inst_usage usage;
    inst_generation_usage(g, &usage);
    return usage.completion_tokens;
}

// A prompt takes rounds, and in each of them the others get their token.
static void a_prompt_stops_nobody(void **state)
{
    (void)state;
    static const uint32_t beside[] = {0, 10, 50};
    for (size_t i = 0; i < 3; i++) {
        struct fixture f = {0};
        open_engine(&f, model, NULL, &(struct inst_options){.max_sessions = 3, .chunk = 40});
        inst_scheduler_close(scheduler(&f, true)); // closes the fixture's sessions
        const struct inst_scheduler_options o = {
            .size = sizeof o, .chunk = beside[i], .independent = true};
        inst_scheduler *s;
        assert_int_equal(inst_scheduler_open(&s, f.engine, &o, &f.msg), 0);
        struct request r = request(1), long_one = request(10);
        r.options.max_tokens = 60;
        inst_generation *g = add(&f, s, &r), *other = NULL;
        assert_int_equal(inst_scheduler_round(s, NULL, NULL, &f.msg), 0); // 40 tokens of a chunk
        assert_int_equal(generated(g), 1);
        other = add(&f, s, &long_one);
        size_t rounds = 0, chunk = beside[i] == 10 ? 10 : 40;
        while (!generated(other)) {
            uint64_t before = generated(g);
            assert_int_equal(inst_scheduler_round(s, NULL, NULL, &f.msg), 0);
            assert_int_equal(generated(g), before + 1);
            rounds++;
        }
        assert_int_equal(rounds, (long_one.n + chunk - 1) / chunk);
        inst_generation_close(other);
        inst_generation_close(g);
        inst_scheduler_close(s);
        close_engine(&f);
    }
}

// What prompts begin with is computed once, although they come at the same time; with sparf, too.
static void shared_prompts_are_computed_once(void **state)
{
    (void)state;
    enum { EACH = 4, SHARED = 112, OWN = 8 };
    for (int sparf = 0; sparf < 2; sparf++) {
        const struct inst_options o = {.max_sessions = 6,
                                       .group = 16,
                                       .chunk = 48,
                                       .attention = sparf ? "sparf" : NULL,
                                       .sparf_tokens = sparf ? 8 : 0};
        struct fixture f = {0}, fresh = {0};
        struct request r[2 * EACH];
        inst_generation *g[2 * EACH];
        open_engine(&f, model, "ram:64M", &o);
        inst_scheduler *s = scheduler(&f, true);
        for (size_t i = 0; i < 2 * EACH; i++) { // one prompt several times, then a common start
            r[i] = request(10);
            r[i].options.sampling.seed = (uint32_t)i;
            r[i].options.max_tokens = 12;
            r[i].n = SHARED + OWN;
            for (size_t k = SHARED; k < r[i].n && i >= EACH; k++)
                r[i].prompt[k] = text_token((uint32_t)i + 100, k);
            g[i] = add(&f, s, &r[i]);
        }
        finish(&f, s);
        struct inst_stats stats;
        assert_int_equal(inst_engine_stats(f.engine, &stats, NULL), 0);
        // The whole, then one token of each that is the same, and what others have of their own.
        assert_true(stats.prefill_tokens <= SHARED + OWN + (EACH - 1) * 1 + EACH * (OWN + 16));
        for (size_t i = 0; i < 2 * EACH; i++) {
            open_engine(&fresh, model, "ram:64M", &o);
            expected_dense = false;
            expected_n[0] = alone(&fresh, &r[i], expected[0]);
            close_engine(&fresh);
            assert_expected(g[i], 0);
            inst_generation_close(g[i]);
        }
        inst_scheduler_close(s);
        close_engine(&f);
    }
}

static void logprobs_are_the_models(void **state)
{
    (void)state;
    struct fixture f = {0};
    struct request r = request(2);
    size_t n, vocab;
    r.options.logprobs = true;
    r.options.top_logprobs = 20;
    open_engine(&f, model, NULL, &(struct inst_options){.max_sessions = 1});
    vocab = f.engine->config.vocab;
    expected_dense = false;
    size_t end = alone(&f, &r, expected[0]);
    inst_session *own = f.session[0];
    f.session[0] = NULL;
    inst_session_close(own);
    inst_scheduler *s = scheduler(&f, true);
    inst_generation *g = add(&f, s, &r);
    finish(&f, s);
    inst_scheduler_close(s);
    assert_int_equal(inst_session_open(&f.session[0], f.engine, &f.msg), 0);
    for (size_t k = 0; k < end - r.n; k++) {
        assert_int_equal(sync_tokens(&f, 0, expected[0], r.n + k), 0);
        const float *logits = inst_logits(f.session[0]);
        const struct inst_logprob *row = inst_generation_logprobs(g, k, &n);
        assert_non_null(row);
        assert_int_equal(n, 21);
        assert_int_equal(row[0].token, expected[0][r.n + k]);
        double sum = 0;
        for (size_t i = 0; i < vocab; i++)
            sum += exp((double)logits[i]);
        for (size_t i = 0; i < n; i++) {
            double want = (double)logits[row[i].token] - log(sum);
            assert_true(fabs(want - (double)row[i].logprob) < 1e-4);
        }
        for (size_t i = 1; i < n; i++) {
            size_t better = 0;
            for (size_t t = 0; t < vocab; t++)
                better += logits[t] > logits[row[i].token] ||
                          (logits[t] == logits[row[i].token] && (int32_t)t < row[i].token);
            assert_int_equal(better, i - 1);
        }
    }
    assert_null(inst_generation_logprobs(g, end - r.n, &n));
    inst_generation_close(g);
    close_engine(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_batch_says_what_each_says_alone),
        cmocka_unit_test(sparf_does_not_depend_on_what_ran_before),
        cmocka_unit_test(no_room_makes_fewer_run),
        cmocka_unit_test(a_small_store_serves_all),
        cmocka_unit_test(reasons_to_end),
        cmocka_unit_test(a_failure_is_one_generations),
        cmocka_unit_test(a_round_can_be_interrupted_and_called_again),
        cmocka_unit_test(cancelled_from_another_thread),
        cmocka_unit_test(a_prompt_stops_nobody),
        cmocka_unit_test(shared_prompts_are_computed_once),
        cmocka_unit_test(logprobs_are_the_models),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
