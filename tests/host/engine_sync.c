// SPDX-License-Identifier: Apache-2.0
// Row invariance of the whole engine (contract point 9), reuse of prefixes, batches and failures,
// on the fake drive and on the real one: all of them must give the same bits.
#include "tests/host/engine_helper.h"
#include "tests/more.h"

enum { N = 197 };

static char model[64];
static int32_t text[8][N + 1];

static int setup(void **state)
{
    (void)state;
    write_model(model, TENSOR_F16);
    for (uint32_t s = 0; s < 8; s++)
        for (size_t i = 0; i <= N; i++)
            text[s][i] = text_token(s, i);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    unlink(model);
    return 0;
}

static bool collect_logits(void *user, uint64_t position, const float *logits)
{
    struct fixture *f = ((void **)user)[0];
    float *all = ((void **)user)[1];
    memcpy((char *)all + position * logits_bytes(f), logits, logits_bytes(f));
    return true;
}

// Logits of all N positions.
static float *all_logits(const char *kv, const struct inst_options *options)
{
    struct fixture f = {0};
    open_engine(&f, model, kv, options);
    float *all = calloc(N, logits_bytes(&f));
    inst_session_on_logits(f.session[0], collect_logits, (void *[]){&f, all});
    assert_int_equal(sync_tokens(&f, 0, text[0], N), 0);
    assert_memory_equal(inst_logits(f.session[0]), (char *)all + (N - 1) * logits_bytes(&f),
                        logits_bytes(&f));
    close_engine(&f);
    return all;
}

static void chunks_threads_stores_give_equal_bits(void **state)
{
    (void)state;
    static const struct {
        const char *kv;
        struct inst_options o;
    } cases[] = {
        {NULL, {.chunk = 1, .threads = 1}},
        {NULL, {.chunk = 7, .threads = 3}},
        {NULL, {.chunk = 64, .threads = 2}},
        {NULL, {.chunk = 65, .threads = 4, .kernels = "reference"}},
        {"ram:64M", {.chunk = 512, .threads = 1, .group = 16}},
        {"ram:64M", {.chunk = 7, .threads = 2, .group = 32}},
        {"ram:64M@200M", {.chunk = 33, .threads = 2, .group = 64}},
        {"/tmp", {.chunk = 1, .threads = 1, .group = 16}},
        {"/tmp", {.chunk = 64, .threads = 4, .group = 128}},
    };
    float *expected = all_logits(NULL, &(struct inst_options){.chunk = 512, .threads = 1});
    double sum = 0;
    for (size_t i = 0; i < N * SYNTH_VOCAB_MIN; i++)
        sum += fabs((double)expected[i]);
    assert_true(isfinite(sum) && sum > 1);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        float *got = all_logits(cases[i].kv, &cases[i].o);
        for (size_t p = 0; p < N; p++)
            if (memcmp(got + p * SYNTH_VOCAB_MIN, expected + p * SYNTH_VOCAB_MIN,
                       SYNTH_VOCAB_MIN * sizeof *got))
                fail_msg("case %zu: logits of position %zu differ", i, p);
        free(got);
    }
    free(expected);
}

// Token by token through ATTEND gives what prefill gives, and so does the host when the drive only
// stores.
static void decode_equals_prefill(void **state)
{
    (void)state;
    float *expected = all_logits(NULL, &(struct inst_options){.threads = 2});
    static const struct {
        const char *kv, *attention;
    } cases[] = {{NULL, NULL}, {"ram:64M", NULL}, {"ram:64M", "host"}, {"/tmp", "host"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i += THREAD_SANITIZER ? 3 : 1) {
        struct fixture f = {0};
        bool host = cases[i].attention;
        open_engine(&f, model, cases[i].kv,
                    &(struct inst_options){.group = 16,
                                           .threads = 2,
                                           .attention = cases[i].attention,
                                           .row_cache = INST_NO_ROW_CACHE});
        for (size_t n = 1; n <= N; n++) {
            assert_int_equal(sync_tokens(&f, 0, text[0], n), 0);
            assert_memory_equal(inst_logits(f.session[0]),
                                (char *)expected + (n - 1) * logits_bytes(&f), logits_bytes(&f));
        }
        struct inst_stats stats;
        assert_int_equal(inst_engine_stats(f.engine, &stats, NULL), 0);
        assert_int_equal(stats.decode_tokens, N);
        assert_int_equal(stats.prefill_tokens, 0);
        if (cases[i].kv && !host) // 3 layers; every token attends to itself and all before it
            assert_int_equal(stats.attended_tokens, 3 * N * (N + 1) / 2);
        if (host) { // the drive attended nothing, and what came back was for decode
            assert_int_equal(stats.attended_tokens, 0);
            assert_int_equal(stats.decode_flash_read_bytes, stats.flash_read_bytes);
        }
        close_engine(&f);
    }
    free(expected);
}

static void batch_equals_alone(void **state)
{
    (void)state;
    static const size_t lengths[8] = {1, 15, 16, 64, 65, 100, 128, 190};
    for (int way = THREAD_SANITIZER; way < 3; way++) { // memory, file, attended on the host
        const char *kv = way ? "/tmp" : NULL;
        struct inst_options o = {.max_sessions = 8, .group = 16, .chunk = 50, .threads = 2};
        if (way == 2) {
            o.attention = "host";
            o.chunk = 3; // more decode rows than that
        }
        struct fixture f = {0}, alone = {0};
        open_engine(&f, model, kv, &o);
        o.max_sessions = 1;
        open_engine(&alone, model, kv, &o);
        for (size_t step = 0; step < 5; step++) {
            struct inst_prefix p[8];
            for (size_t i = 0; i < 8; i++)
                p[i] = (struct inst_prefix){f.session[i], text[i], lengths[i] + step, -1, NULL};
            if (inst_sync(f.engine, p, 8, NULL, NULL, &f.msg))
                fail_msg("%s", f.msg.text);
            for (size_t i = 0; i < 8; i++)
                assert_int_equal(p[i].status, 0);
        }
        for (size_t i = 0; i < 8; i++) {
            assert_int_equal(sync_tokens(&alone, 0, text[i], lengths[i] + 4), 0);
            assert_memory_equal(inst_logits(alone.session[0]), inst_logits(f.session[i]),
                                logits_bytes(&f));
        }
        close_engine(&f);
        close_engine(&alone);
    }
}

static uint64_t computed(const struct fixture *f)
{
    return f->engine->stats.prefill_tokens + f->engine->stats.decode_tokens;
}

static void sync_computes_only_what_is_missing(void **state)
{
    (void)state;
    for (int real = 0; real < 2; real++) {
        struct fixture f = {0}, fresh = {0};
        struct inst_options o = {.group = 16, .threads = 1};
        open_engine(&f, model, real ? "ram:64M" : NULL, &o);
        open_engine(&fresh, model, NULL, &o);
        assert_null(inst_logits(f.session[0]));
        assert_int_equal(sync_tokens(&f, 0, text[0], 150), 0);
        assert_int_equal(computed(&f), 150);
        assert_int_equal(sync_tokens(&f, 0, text[0], 150), 0); // nothing to do
        assert_int_equal(computed(&f), 150);
        assert_int_equal(sync_tokens(&f, 0, text[0], 100), 0); // shorter: the last one again
        assert_int_equal(computed(&f), 151);
        int32_t other[160];
        memcpy(other, text[0], sizeof other);
        other[70]++;
        assert_int_equal(sync_tokens(&f, 0, other, 160), 0); // 70 are shared
        assert_int_equal(computed(&f), 151 + 90);
        assert_int_equal(sync_tokens(&fresh, 0, other, 160), 0);
        assert_memory_equal(inst_logits(f.session[0]), inst_logits(fresh.session[0]),
                            logits_bytes(&f));
        assert_int_equal(sync_tokens(&f, 0, text[1], 90), 0); // nothing is shared
        assert_int_equal(computed(&f), 151 + 90 + 90);
        assert_int_equal(sync_tokens(&fresh, 0, text[1], 90), 0);
        assert_memory_equal(inst_logits(f.session[0]), inst_logits(fresh.session[0]),
                            logits_bytes(&f));
        if (!real)
            assert_int_equal(fake_drive_length(f.link, f.session[0]->seq->slot, 2), 90);
        close_engine(&f);
        close_engine(&fresh);
    }
}

static void bad_prefixes_are_refused(void **state)
{
    (void)state;
    struct fixture f = {0}, other = {0};
    open_engine(&f, model, NULL, &(struct inst_options){.context = 64, .max_sessions = 2});
    open_engine(&other, model, NULL, NULL);
    int32_t tokens[65] = {3};
    assert_int_equal(sync_tokens(&f, 0, tokens, 65), INST_EINVAL);
    assert_non_null(strstr(f.msg.text, "65 tokens do not fit in the context of 64"));
    assert_int_equal(sync_tokens(&f, 0, tokens, 0), INST_EINVAL);
    tokens[1] = SYNTH_VOCAB_MIN;
    assert_int_equal(sync_tokens(&f, 0, tokens, 2), INST_EINVAL);
    assert_non_null(strstr(f.msg.text, "token 260 at position 1"));
    tokens[1] = -1;
    assert_int_equal(sync_tokens(&f, 0, tokens, 2), INST_EINVAL);
    struct inst_prefix p[2] = {{f.session[0], text[0], 3, 0, NULL},
                               {f.session[0], text[0], 4, 0, NULL}};
    assert_int_equal(inst_sync(f.engine, p, 2, NULL, NULL, NULL), INST_EINVAL);
    assert_int_equal(p[0].status, 0); // the good one went on
    assert_int_equal(p[1].status, INST_EINVAL);
    p[0].session = other.session[0];
    assert_int_equal(inst_sync(f.engine, p, 1, NULL, NULL, NULL), INST_EINVAL);
    assert_int_equal(inst_sync(f.engine, p, 3, NULL, NULL, NULL), INST_EINVAL);
    inst_session *third;
    assert_int_equal(inst_session_open(&third, f.engine, NULL), INST_ENORESOURCE);
    close_engine(&f);
    close_engine(&other);
}

// After any failed command the session is where it was after the last good chunk and can go on.
static void failures_leave_sessions_usable(void **state)
{
    (void)state;
    static const struct {
        uint8_t opcode;
        uint64_t nth;
        size_t kept; // of 120 tokens in chunks of 50, after 20 decoded ones
    } cases[] = {
        {OP_WRITE, 1, 20}, {OP_WRITE, 3, 20}, {OP_WRITE, 4, 70},
        {OP_READ, 1, 20},  {OP_READ, 5, 70},  {OP_COLLECT, 2, 20},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct fixture f = {0}, fresh = {0};
        open_engine(&f, model, NULL, &(struct inst_options){.chunk = 50});
        open_engine(&fresh, model, NULL, NULL);
        assert_int_equal(sync_tokens(&f, 0, text[0], 20), 0);
        fake_drive_faults(f.link, &(struct fake_faults){.opcode = cases[i].opcode,
                                                        .fail_command = cases[i].nth,
                                                        .code = INST_EIO,
                                                        .fail_item = -1});
        assert_int_equal(sync_tokens(&f, 0, text[0], 140), INST_EIO);
        assert_non_null(strstr(f.msg.text, "injected"));
        for (uint32_t layer = 0; layer < 3; layer++)
            assert_int_equal(fake_drive_length(f.link, 0, layer), cases[i].kept);
        assert_int_equal(sync_tokens(&f, 0, text[0], 140), 0);
        assert_int_equal(sync_tokens(&fresh, 0, text[0], 140), 0);
        assert_memory_equal(inst_logits(f.session[0]), inst_logits(fresh.session[0]),
                            logits_bytes(&f));
        close_engine(&f);
        close_engine(&fresh);
    }
}

static void a_failed_item_harms_nobody_else(void **state)
{
    (void)state;
    for (uint64_t n = 0; n < 6; n++) {
        uint64_t nth = 1 + n / 2;
        uint32_t batches = 1 + (uint32_t)n % 2;
        // Of two micro-batches every other ATTEND is the second one's.
        size_t victim = batches == 2 && nth % 2 == 0 ? 3 : 1;
        struct fixture f = {0}, fresh = {0};
        open_engine(&f, model, NULL,
                    &(struct inst_options){.max_sessions = 4, .micro_batches = batches});
        open_engine(&fresh, model, NULL, NULL);
        struct inst_prefix p[4];
        for (int step = 0; step < 2; step++) {
            for (size_t i = 0; i < 4; i++)
                p[i] = (struct inst_prefix){f.session[i], text[i], 40 + 10 * i + (size_t)step, 0,
                                            NULL};
            if (step)
                fake_drive_faults(f.link, &(struct fake_faults){.opcode = OP_ATTEND,
                                                                .fail_command = nth,
                                                                .code = INST_ECORRUPT,
                                                                .fail_item = 1});
            int err = inst_sync(f.engine, p, 4, NULL, NULL, &f.msg);
            assert_int_equal(err, step ? INST_ECORRUPT : 0);
        }
        for (size_t i = 0; i < 4; i++) {
            assert_int_equal(p[i].status, i == victim ? INST_ECORRUPT : 0);
            if (i == victim) { // cut back, and good again
                assert_int_equal(fake_drive_length(f.link, (uint32_t)i, 0), 40 + 10 * i);
                assert_int_equal(sync_tokens(&f, i, text[i], 41 + 10 * i), 0);
            }
            assert_int_equal(sync_tokens(&fresh, 0, text[i], 41 + 10 * i), 0);
            assert_memory_equal(inst_logits(f.session[i]), inst_logits(fresh.session[0]),
                                logits_bytes(&f));
        }
        close_engine(&f);
        close_engine(&fresh);
    }
}

// Every prefix has the text of its own failure, and those that did not fail have none.
static void every_prefix_has_its_own_text(void **state)
{
    (void)state;
    struct fixture f = {0};
    int32_t bad[] = {3, 4, SYNTH_VOCAB_MIN};
    struct inst_msg why[4];
    struct inst_prefix p[4];
    open_engine(&f, model, NULL, &(struct inst_options){.max_sessions = 4, .context = 180});
    memset(why, 'x', sizeof why); // of an earlier call
    for (size_t i = 0; i < 4; i++)
        p[i] = (struct inst_prefix){f.session[i], text[i], 40, 0, &why[i]};
    p[0].n_tokens = N;
    p[1].tokens = bad;
    p[1].n_tokens = 3;
    // The second WRITE of the first step is the last prefix's.
    fake_drive_faults(
        f.link, &(struct fake_faults){
                    .opcode = OP_WRITE, .fail_command = 2, .code = INST_EIO, .fail_item = -1});
    assert_int_equal(inst_sync(f.engine, p, 4, NULL, NULL, &f.msg), INST_EINVAL);
    assert_non_null(strstr(why[0].text, "do not fit in the context of 180"));
    assert_string_equal(f.msg.text, why[0].text);
    assert_non_null(strstr(why[1].text, "is not in the vocabulary"));
    assert_int_equal(p[2].status, 0);
    assert_string_equal(why[2].text, "");
    assert_int_equal(p[3].status, INST_EIO);
    assert_non_null(strstr(why[3].text, "injected"));
    close_engine(&f);
}

// Back-pressure: the drive is asked again until it has room, for a command or for some of its
// items.
static void no_room_is_waited_for(void **state)
{
    (void)state;
    static const struct fake_faults cases[] = {
        {.opcode = OP_WRITE, .fail_command = 2, .fail_count = 3, .fail_item = -1},
        {.opcode = OP_READ, .fail_command = 1, .fail_count = 2, .fail_item = -1},
        {.opcode = OP_ATTEND, .fail_command = 2, .fail_count = 3, .fail_item = -1},
        {.opcode = OP_ATTEND, .fail_command = 1, .fail_count = 4, .fail_item = 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct fixture f = {0}, fresh = {0};
        struct inst_prefix p[3];
        struct fake_faults fault = cases[i];
        fault.code = INST_ENORESOURCE;
        open_engine(&f, model, NULL, &(struct inst_options){.max_sessions = 3, .chunk = 50});
        open_engine(&fresh, model, NULL, NULL);
        for (int step = 0; step < 2; step++) {
            for (size_t s = 0; s < 3; s++)
                p[s] = (struct inst_prefix){f.session[s], text[s], 130 + (size_t)step, 0, NULL};
            if (step == (fault.opcode == OP_ATTEND))
                fake_drive_faults(f.link, &fault);
            assert_int_equal(inst_sync(f.engine, p, 3, NULL, NULL, &f.msg), 0);
        }
        for (size_t s = 0; s < 3; s++) {
            assert_int_equal(sync_tokens(&fresh, 0, text[s], 131), 0);
            assert_memory_equal(inst_logits(f.session[s]), inst_logits(fresh.session[0]),
                                logits_bytes(&f));
        }
        close_engine(&f);
        close_engine(&fresh);
    }
}

// But not for ever; then the session is where it was.
static void no_room_for_long_is_an_error(void **state)
{
    (void)state;
    static const struct fake_faults cases[] = {{.opcode = OP_WRITE, .fail_item = -1},
                                               {.opcode = OP_ATTEND, .fail_item = 0}};
    for (size_t i = 0; i < 2; i++) {
        struct fixture f = {0}, fresh = {0};
        struct fake_faults fault = cases[i];
        fault.code = INST_ENORESOURCE;
        fault.fail_command = 1;
        fault.fail_count = UINT32_MAX;
        open_engine(&f, model, NULL, NULL);
        open_engine(&fresh, model, NULL, NULL);
        assert_int_equal(sync_tokens(&f, 0, text[0], 30), 0);
        fake_drive_faults(f.link, &fault);
        size_t n = fault.opcode == OP_WRITE ? 80 : 31;
        assert_int_equal(sync_tokens(&f, 0, text[0], n), INST_ENORESOURCE);
        assert_non_null(strstr(f.msg.text, "injected"));
        fake_drive_faults(f.link, &(struct fake_faults){0});
        assert_int_equal(sync_tokens(&f, 0, text[0], n), 0);
        assert_int_equal(sync_tokens(&fresh, 0, text[0], n), 0);
        assert_memory_equal(inst_logits(f.session[0]), inst_logits(fresh.session[0]),
                            logits_bytes(&f));
        close_engine(&f);
        close_engine(&fresh);
    }
}

static void a_session_that_cannot_be_cut_back_is_dead(void **state)
{
    (void)state;
    struct fixture f = {0};
    open_engine(&f, model, NULL, NULL);
    assert_int_equal(sync_tokens(&f, 0, text[0], 30), 0);
    fake_drive_faults(
        f.link, &(struct fake_faults){
                    .opcode = OP_RECLAIM, .fail_command = 1, .code = INST_EIO, .fail_item = -1});
    assert_int_equal(sync_tokens(&f, 0, text[0], 20), INST_EIO);
    assert_null(inst_logits(f.session[0]));
    assert_int_equal(sync_tokens(&f, 0, text[0], 20), INST_EIO);
    assert_non_null(strstr(f.msg.text, "open a new one"));
    inst_session_close(f.session[0]);
    assert_int_equal(inst_session_open(&f.session[0], f.engine, NULL), 0);
    assert_int_equal(sync_tokens(&f, 0, text[0], 20), 0);
    close_engine(&f);
}

// A sequence that the drive does not give up keeps its place, and no other; the places come back.
static void a_failed_close_costs_nothing_for_good(void **state)
{
    (void)state;
    struct fixture f = {0}, fresh = {0};
    struct inst_msg msg = {0};
    open_engine(&f, model, NULL, NULL);
    open_engine(&fresh, model, NULL, NULL);
    uint32_t places = seqs_most(1);
    for (int round = 0; round < 2; round++) {
        fake_drive_faults(f.link, &(struct fake_faults){.opcode = OP_RECLAIM,
                                                        .fail_command = 1,
                                                        .fail_count = UINT32_MAX,
                                                        .code = INST_EIO,
                                                        .fail_item = -1});
        for (uint32_t i = 0; i < places; i++) { // too few tokens to be kept
            if (i || round)
                assert_int_equal(inst_session_open(&f.session[0], f.engine, NULL), 0);
            assert_int_equal(sync_tokens(&f, 0, text[i], 30), 0);
            inst_session_close(f.session[0]);
            f.session[0] = NULL;
        }
        msg.text[0] = 0;
        assert_int_equal(inst_session_open(&f.session[0], f.engine, &msg), INST_EIO);
        assert_non_null(strstr(msg.text, "closed session"));
        fake_drive_faults(f.link, &(struct fake_faults){0});
        assert_int_equal(inst_session_open(&f.session[0], f.engine, NULL), 0);
        if (sync_tokens(&f, 0, text[1], 40))
            fail_msg("%s", f.msg.text);
        assert_int_equal(sync_tokens(&fresh, 0, text[1], 40), 0);
        assert_memory_equal(inst_logits(f.session[0]), inst_logits(fresh.session[0]),
                            logits_bytes(&f));
        inst_session_close(f.session[0]);
        f.session[0] = NULL;
    }
    close_engine(&f);
    close_engine(&fresh);
}

static bool cancel_late(void *user, uint64_t done, uint64_t total)
{
    uint64_t *calls = user;
    assert_true(done <= total);
    return ++*calls < 5;
}

static void cancelling_keeps_whole_chunks(void **state)
{
    (void)state;
    struct fixture f = {0};
    open_engine(&f, model, NULL, &(struct inst_options){.chunk = 50});
    uint64_t calls = 0;
    struct inst_prefix p = {f.session[0], text[0], 190, 0, NULL};
    assert_int_equal(inst_sync(f.engine, &p, 1, cancel_late, &calls, &f.msg), INST_ECANCELLED);
    assert_int_equal(p.status, INST_ECANCELLED);
    assert_int_equal(f.session[0]->seq->length,
                     50); // two layers and the chunk, then two layers more
    assert_int_equal(fake_drive_length(f.link, 0, 0), 50);
    assert_int_equal(sync_tokens(&f, 0, text[0], 190), 0);
    close_engine(&f);
}

// Sanitizers see to it that nothing is copied from nowhere.
static void a_text_may_have_no_tokens(void **state)
{
    (void)state;
    struct fixture f = {0};
    struct inst_model_info info;
    int32_t *tokens;
    size_t n = 7;
    open_engine(&f, model, NULL, NULL);
    assert_int_equal(inst_tokenize(f.engine, "", 0, INST_TOKENIZE_NO_BOS, &tokens, &n, &f.msg), 0);
    assert_non_null(tokens);
    assert_int_equal(n, 0);
    free(tokens);
    inst_engine_info(f.engine, &info);
    assert_int_equal(inst_tokenize(f.engine, NULL, 0, 0, &tokens, &n, &f.msg), 0);
    assert_int_equal(n, 1);
    assert_int_equal(tokens[0], info.begin_token);
    free(tokens);
    close_engine(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chunks_threads_stores_give_equal_bits),
        cmocka_unit_test(decode_equals_prefill),
        cmocka_unit_test(batch_equals_alone),
        cmocka_unit_test(sync_computes_only_what_is_missing),
        cmocka_unit_test(bad_prefixes_are_refused),
        cmocka_unit_test(failures_leave_sessions_usable),
        cmocka_unit_test(a_failed_item_harms_nobody_else),
        cmocka_unit_test(every_prefix_has_its_own_text),
        cmocka_unit_test(no_room_is_waited_for),
        cmocka_unit_test(no_room_for_long_is_an_error),
        cmocka_unit_test(a_session_that_cannot_be_cut_back_is_dead),
        cmocka_unit_test(a_failed_close_costs_nothing_for_good),
        cmocka_unit_test(cancelling_keeps_whole_chunks),
        cmocka_unit_test(a_text_may_have_no_tokens),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
