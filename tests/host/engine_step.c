// SPDX-License-Identifier: Apache-2.0
// One step over any mixture of prompts and decode rows: the bits of every session are those that it
// gets alone, whatever is beside it, however its prompt is cut and whatever fails for others; and
// the mixture really is one pass over the weights.
#include "base/checked.h"
#include "tests/host/engine_helper.h"
#include "tests/more.h"

enum { SESSIONS = 6, N = 150, CHUNK = 48 };

static const size_t prompt[SESSIONS] = {1, 40, 64, 65, 100, 147};
static char model[64];
static int32_t text[SESSIONS][N];

static uint64_t draw(uint64_t *state)
{
    *state = *state * UINT64_C(6364136223846793005) + 1442695040888963407u;
    return *state >> 33;
}

// Logits of session s after n tokens, n >= its prompt.
struct truth {
    size_t vocab;
    float *logits[SESSIONS];
};

static struct truth dense; // on the fake drive

static const float *truth_at(const struct truth *t, size_t s, size_t n)
{
    return t->logits[s] + (n - 1) * t->vocab;
}

// Every session alone, its prompt in one call and the rest token by token.
static void truth_make(struct truth *t, const char *kv, const struct inst_options *options)
{
    struct inst_options o = *options;
    o.max_sessions = 1;
    o.chunk = 0;
    struct fixture f = {0};
    open_engine(&f, model, kv, &o);
    t->vocab = f.engine->config.vocab;
    for (size_t s = 0; s < SESSIONS; s++) {
        t->logits[s] = calloc(N * t->vocab, sizeof(float));
        for (size_t n = prompt[s]; n <= N; n++) {
            assert_int_equal(sync_tokens(&f, 0, text[s], n), 0);
            memcpy(t->logits[s] + (n - 1) * t->vocab, inst_logits(f.session[0]), logits_bytes(&f));
        }
    }
    close_engine(&f);
}

static void truth_free(struct truth *t)
{
    for (size_t s = 0; s < SESSIONS; s++)
        free(t->logits[s]);
}

static int setup(void **state)
{
    (void)state;
    write_model(model, TENSOR_F16);
    for (uint32_t s = 0; s < SESSIONS; s++)
        for (size_t i = 0; i < N; i++)
            text[s][i] = text_token(s, i);
    truth_make(&dense, NULL, &(struct inst_options){.threads = 2});
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    truth_free(&dense);
    unlink(model);
    return 0;
}

// What session s gets next, at most `most` tokens of its prompt.
static struct inst_segment next_segment(struct fixture *f, size_t s, size_t most, uint64_t *random)
{
    size_t length = inst_session_length(f->session[s]);
    struct inst_segment segment = {
        .session = f->session[s], .tokens = text[s] + length, .n_tokens = 1, .status = 1};
    segment.prompt = length < prompt[s];
    if (segment.prompt)
        segment.n_tokens = 1 + draw(random) % min_u64(prompt[s] - length, most);
    segment.logits = length + segment.n_tokens >= prompt[s] && draw(random) % 4;
    return segment;
}

static void check_logits(struct fixture *f, const struct truth *t, size_t s, bool wanted)
{
    size_t length = inst_session_length(f->session[s]);
    if (!wanted) {
        assert_null(inst_logits(f->session[s]));
        return;
    }
    assert_non_null(inst_logits(f->session[s]));
    if (memcmp(inst_logits(f->session[s]), truth_at(t, s, length), logits_bytes(f)))
        fail_msg("session %zu: other logits after %zu tokens", s, length);
}

// Random steps until all sessions have all tokens.
static void walk(const char *kv, const struct inst_options *o, const struct truth *t, uint64_t seed)
{
    struct fixture f = {0};
    uint64_t random = seed;
    open_engine(&f, model, kv, o);
    for (size_t left = SESSIONS; left;) {
        struct inst_segment segment[SESSIONS];
        size_t n = 0, who[SESSIONS], room = o->chunk, first = draw(&random) % SESSIONS;
        left = 0;
        for (size_t i = 0; i < SESSIONS; i++) {
            size_t s = (first + i) % SESSIONS;
            bool more = inst_session_length(f.session[s]) < N;
            left += more;
            if (!more || !room || draw(&random) % 3 == 0)
                continue;
            segment[n] = next_segment(&f, s, room, &random);
            room -= segment[n].prompt ? segment[n].n_tokens : 0;
            who[n++] = s;
        }
        if (!n)
            continue;
        if (inst_step(f.engine, segment, n, NULL, NULL, &f.msg))
            fail_msg("%s", f.msg.text);
        for (size_t i = 0; i < n; i++) {
            assert_int_equal(segment[i].status, 0);
            check_logits(&f, t, who[i], segment[i].logits);
        }
    }
    assert_int_equal(f.engine->stats.prefill_tokens + f.engine->stats.decode_tokens, SESSIONS * N);
    close_engine(&f);
}

static void any_mixture_gives_the_bits_of_each_alone(void **state)
{
    (void)state;
    static const struct {
        const char *kv, *attention;
        uint32_t group, threads, chunk;
    } cases[] = {
        {NULL, NULL, 16, 1, CHUNK},      {"/tmp", NULL, 16, 2, CHUNK},
        {"ram:64M", NULL, 64, 3, 200},   {"ram:64M@200M", NULL, 32, 2, 7},
        {"/tmp", "sparf", 16, 2, CHUNK}, {"ram:64M", "sparf", 32, 1, 7},
    };
    struct truth sparf;
    struct inst_options base = {.group = 16, .threads = 2, .attention = "sparf"};
    truth_make(&sparf, "ram:64M", &base);
    assert_memory_not_equal(truth_at(&dense, 4, N), truth_at(&sparf, 4, N),
                            dense.vocab * sizeof(float));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (THREAD_SANITIZER && i != 1 && i != 4) // a file, two threads, both methods
            continue;
        struct inst_options o = {.max_sessions = SESSIONS,
                                 .group = cases[i].group,
                                 .threads = cases[i].threads,
                                 .chunk = cases[i].chunk,
                                 .micro_batches = 2 - (uint32_t)i % 3,
                                 .attention = cases[i].attention};
        for (uint64_t seed = 0; seed < (more() ? 8 : THREAD_SANITIZER ? 1 : 2); seed++)
            walk(cases[i].kv, &o, cases[i].attention ? &sparf : &dense, seed);
    }
    truth_free(&sparf);
}

// Three that decode and three whose prompts come in, all at their places before the step.
static void mixture_open(struct fixture *f, struct inst_segment segment[SESSIONS],
                         const struct inst_options *o)
{
    open_engine(f, model, NULL, o);
    for (size_t s = 0; s < SESSIONS; s++) {
        size_t n = s % 2 ? prompt[s] - 20 : prompt[s];
        assert_int_equal(sync_tokens(f, s, text[s], n), 0);
        segment[s] = (struct inst_segment){.session = f->session[s],
                                           .tokens = text[s] + n,
                                           .n_tokens = s % 2 ? 20 : 1,
                                           .prompt = s % 2,
                                           .logits = true};
    }
}

static void a_failed_segment_harms_nobody_else(void **state)
{
    (void)state;
    static const struct {
        uint8_t opcode;
        uint64_t nth;
        int item;
        unsigned failed; // bits of sessions
    } cases[] = {
        {OP_WRITE, 1, -1, 1 << 1},
        {OP_WRITE, 5, -1, 1 << 3},
        {OP_WRITE, 9, -1, 1 << 5},
        {OP_READ, 2, -1, 1 << 3},
        {OP_READ, 3, -1, 1 << 5},
        {OP_READ, 7, -1, 1 << 1},
        {OP_ATTEND, 1, 0, 1 << 0},
        {OP_ATTEND, 2, 2, 1 << 4},
        {OP_ATTEND, 3, 1, 1 << 2},
        {OP_ATTEND, 2, -1, 1 << 0 | 1 << 2 | 1 << 4},
        // The first ones are of pieces, which are asked for before anything else.
        {OP_COLLECT, 1, -1, 1 << 1},
    };
    struct inst_options o = {.max_sessions = SESSIONS, .chunk = 100, .threads = 2};
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        struct fixture f = {0};
        struct inst_segment segment[SESSIONS];
        struct inst_msg why[SESSIONS] = {0};
        mixture_open(&f, segment, &o);
        for (size_t s = 0; s < SESSIONS; s++)
            segment[s].msg = &why[s];
        fake_drive_faults(f.link, &(struct fake_faults){.opcode = cases[c].opcode,
                                                        .fail_command = cases[c].nth,
                                                        .code = INST_EIO,
                                                        .fail_item = cases[c].item});
        assert_int_equal(inst_step(f.engine, segment, SESSIONS, NULL, NULL, &f.msg), INST_EIO);
        assert_non_null(strstr(f.msg.text, "injected"));
        for (size_t s = 0; s < SESSIONS; s++) {
            bool failed = cases[c].failed >> s & 1;
            if (segment[s].status != (failed ? INST_EIO : 0))
                fail_msg("case %zu: session %zu has status %d", c, s, segment[s].status);
            assert_int_equal(*why[s].text != 0, failed);
            if (failed)
                assert_null(inst_logits(f.session[s]));
            for (uint32_t layer = 0; layer < 3; layer++)
                assert_int_equal(fake_drive_length(f.link, (uint32_t)s, layer),
                                 inst_session_length(f.session[s]));
            // It was cut back, and goes on like the others.
            if (failed)
                assert_int_equal(inst_step(f.engine, &segment[s], 1, NULL, NULL, &f.msg), 0);
            check_logits(&f, &dense, s, true);
        }
        assert_int_equal(f.engine->port.in_flight, 0);
        close_engine(&f);
    }
}

// A token whose embedding is no number, in a prompt and as a decode row.
static void numbers_that_are_none_fail_their_segment(void **state)
{
    (void)state;
    enum { BAD = 2 };
    struct inst_options o = {.max_sessions = SESSIONS, .chunk = 100, .threads = 2};
    struct fixture f = {0};
    struct inst_segment segment[SESSIONS];
    mixture_open(&f, segment, &o);
    int32_t bad[20];
    memcpy(bad, segment[3].tokens, sizeof bad);
    bad[11] = BAD;
    segment[3].tokens = bad;
    segment[2].tokens = &bad[11];
    // The weights are a private mapping of the file, so a copy of the tensor takes their place.
    struct weight *w = &f.engine->weights.token_embd;
    size_t bytes = (size_t)w->rows * w->row_bytes;
    uint16_t *copy = aligned_alloc(64, (bytes + 63) / 64 * 64);
    memcpy(copy, w->data, bytes);
    copy[BAD * w->row_bytes / 2 + 5] = 0x7e00;
    const void *data = w->data;
    w->data = (void *)copy;
    struct inst_msg why[2] = {0};
    segment[2].msg = &why[0];
    segment[3].msg = &why[1];
    assert_int_equal(inst_step(f.engine, segment, SESSIONS, NULL, NULL, &f.msg), INST_ERANGE);
    assert_non_null(strstr(why[0].text, "layer 0: q of token 64 is not a number"));
    assert_non_null(strstr(why[1].text, "layer 0: q of token 56 is not a number"));
    w->data = (void *)data;
    free(copy);
    for (size_t s = 0; s < SESSIONS; s++) {
        bool failed = s == 2 || s == 3;
        assert_int_equal(segment[s].status, failed ? INST_ERANGE : 0);
        if (failed)
            assert_int_equal(sync_tokens(&f, s, text[s], 65), 0);
        check_logits(&f, &dense, s, true);
    }
    close_engine(&f);
}

// Counts what goes through the engine's table.
static struct counting {
    struct compute_ops ops;
    const struct compute_ops *inner;
    size_t parts, most_rows, logits_rows;
} counting;

static int counted_qkv(struct compute *compute, uint32_t slot, uint32_t layer, uint32_t first,
                       uint32_t n, const struct compute_wire *wires, uint32_t n_wires,
                       struct compute_slice faults)
{
    counting.parts++;
    counting.most_rows = n > counting.most_rows ? n : counting.most_rows;
    return counting.inner->qkv(compute, slot, layer, first, n, wires, n_wires, faults);
}

static int counted_finish(struct compute *compute, uint32_t slot, uint32_t layer, uint32_t first,
                          uint32_t n)
{
    counting.parts++;
    return counting.inner->finish(compute, slot, layer, first, n);
}

static int counted_logits(struct compute *compute, uint32_t slot, const uint32_t *row, uint32_t n,
                          struct compute_slice out, uint64_t stride, struct compute_slice faults)
{
    counting.parts++;
    counting.logits_rows += n;
    return counting.inner->logits(compute, slot, row, n, out, stride, faults);
}

static void count_begin(struct fixture *f)
{
    counting = (struct counting){.inner = f->engine->compute->ops};
    counting.ops = *counting.inner;
    counting.ops.qkv = counted_qkv;
    counting.ops.finish = counted_finish;
    counting.ops.logits = counted_logits;
    f->engine->compute->ops = &counting.ops;
}

static void count_end(struct fixture *f)
{
    f->engine->compute->ops = counting.inner;
}

static void a_mixture_is_one_pass_over_the_weights(void **state)
{
    (void)state;
    struct inst_options o = {.max_sessions = SESSIONS, .chunk = 100, .threads = 2};
    struct fixture f = {0};
    struct inst_segment segment[SESSIONS];
    mixture_open(&f, segment, &o);
    count_begin(&f);
    assert_int_equal(inst_step(f.engine, &segment[5], 1, NULL, NULL, &f.msg), 0);
    count_end(&f);
    const size_t parts = 3 * 2 + 1; // of each layer two, and logits
    assert_int_equal(counting.parts, parts);
    assert_int_equal(counting.logits_rows, 1);
    segment[1].logits = false;
    count_begin(&f);
    assert_int_equal(inst_step(f.engine, segment, 5, NULL, NULL, &f.msg), 0);
    count_end(&f);
    assert_int_equal(counting.parts, parts);
    assert_int_equal(counting.most_rows, 43);
    assert_int_equal(counting.logits_rows, 4); // only those that are sampled
    // inst_sync does the same: some decode, some have prompts.
    struct inst_prefix p[4] = {{f.session[0], text[0], 3, 0, NULL},
                               {f.session[2], text[2], 80, 0, NULL},
                               {f.session[3], text[3], 66, 0, NULL},
                               {f.session[4], text[4], 120, 0, NULL}};
    count_begin(&f);
    assert_int_equal(inst_sync(f.engine, p, 4, NULL, NULL, &f.msg), 0);
    count_end(&f);
    assert_int_equal(counting.parts, parts);
    assert_int_equal(counting.logits_rows, 4);
    close_engine(&f);
}

// More sessions than a command has items, and more short prompts than WRITEs go out at a time.
static void many_sessions_take_turns(void **state)
{
    (void)state;
    enum { MANY = 24 };
    for (int real = 0; real < 2; real++) {
        struct inst_options o = {
            .max_sessions = MANY, .group = 16, .chunk = 200, .threads = 2, .context = 256};
        struct fixture f = {0}, alone = {0};
        struct inst_prefix p[MANY];
        struct inst_model_info info;
        inst_session *session[MANY];
        open_engine(&f, model, real ? "ram:64M" : NULL, &o);
        inst_engine_info(f.engine, &info);
        assert_int_equal(info.step_sessions, real ? MANY : 8);
        for (size_t i = 0; i < MANY; i++) {
            session[i] = f.session[i % 8];
            if (i >= 8)
                assert_int_equal(inst_session_open(&session[i], f.engine, &f.msg), 0);
            p[i] = (struct inst_prefix){session[i], text[i % SESSIONS] + i, 2 + i % 7, -1, NULL};
        }
        for (int step = 0; step < 3; step++) {
            if (inst_sync(f.engine, p, MANY, NULL, NULL, &f.msg))
                fail_msg("%s", f.msg.text);
            for (size_t i = 0; i < MANY; i++)
                p[i].n_tokens++;
        }
        assert_int_equal(f.engine->stats.decode_tokens, 2 * MANY);
        open_engine(&alone, model, NULL, NULL);
        for (size_t i = 0; i < MANY; i++) {
            assert_int_equal(sync_tokens(&alone, 0, p[i].tokens, p[i].n_tokens - 1), 0);
            if (memcmp(inst_logits(alone.session[0]), inst_logits(session[i]), logits_bytes(&f)))
                fail_msg("session %zu: other logits", i);
        }
        close_engine(&f);
        close_engine(&alone);
    }
}

static bool at_once(void *user, uint64_t done, uint64_t total)
{
    assert_true(done < total);
    assert_int_equal(total, 63);
    ++*(int *)user;
    return false;
}

static void a_cancelled_step_changes_nothing(void **state)
{
    (void)state;
    struct inst_options o = {.max_sessions = SESSIONS, .chunk = 100, .threads = 2};
    struct fixture f = {0};
    struct inst_segment segment[SESSIONS];
    int calls = 0;
    mixture_open(&f, segment, &o);
    assert_int_equal(inst_step(f.engine, segment, SESSIONS, at_once, &calls, &f.msg),
                     INST_ECANCELLED);
    assert_int_equal(calls, 1);
    for (size_t s = 0; s < SESSIONS; s++) {
        assert_int_equal(segment[s].status, INST_ECANCELLED);
        for (uint32_t layer = 0; layer < 3; layer++)
            assert_int_equal(fake_drive_length(f.link, (uint32_t)s, layer),
                             prompt[s] - (s % 2 ? 20 : 0));
    }
    assert_int_equal(inst_step(f.engine, segment, SESSIONS, NULL, NULL, &f.msg), 0);
    for (size_t s = 0; s < SESSIONS; s++)
        check_logits(&f, &dense, s, true);
    close_engine(&f);
}

struct told {
    char stage[64]; // first letters, in the order in which they ended
    size_t n;
};

static void tell(void *user, const struct inst_trace_event *event)
{
    struct told *told = user;
    if (event->kind != INST_TRACE_STAGE)
        return;
    assert_true(told->n + 1 < sizeof told->stage && event->start_ns <= event->end_ns);
    told->stage[told->n++] = event->name[0];
}

// While one micro-batch is sent to the drive and not collected, the other is computed.
static void micro_batches_take_turns(void **state)
{
    (void)state;
    // embed, qkv, send, collect, finish; end, logits
    static const char *const order[] = {"eqscfqscfqscfel", "eqsqscfqscfqscfqscfqscfcfel"};
    for (uint32_t batches = 1; batches <= 2; batches++) {
        for (size_t rows = 1; rows <= SESSIONS; rows += 2) {
            struct told told = {0};
            struct inst_options o = {.max_sessions = SESSIONS,
                                     .micro_batches = batches,
                                     .trace = tell,
                                     .trace_user = &told};
            struct fixture f = {0};
            struct inst_segment segment[SESSIONS];
            open_engine(&f, model, NULL, &o);
            for (size_t s = 0; s < rows; s++) {
                told.n = 0;
                assert_int_equal(sync_tokens(&f, s, text[s], prompt[s]), 0);
                segment[s] = (struct inst_segment){
                    f.session[s], text[s] + prompt[s], 1, false, true, 0, NULL};
            }
            memset(&told, 0, sizeof told);
            assert_int_equal(inst_step(f.engine, segment, rows, NULL, NULL, &f.msg), 0);
            assert_string_equal(told.stage, order[rows > 1 ? batches - 1 : 0]);
            for (size_t s = 0; s < rows; s++)
                assert_memory_equal(inst_logits(f.session[s]), truth_at(&dense, s, prompt[s] + 1),
                                    logits_bytes(&f));
            close_engine(&f);
        }
    }
}

static void bad_segments_are_refused(void **state)
{
    (void)state;
    struct inst_options o = {.max_sessions = SESSIONS, .chunk = CHUNK, .context = N};
    struct fixture f = {0}, other = {0};
    struct inst_model_info info;
    open_engine(&f, model, NULL, &o);
    open_engine(&other, model, NULL, NULL);
    inst_engine_info(f.engine, &info);
    assert_int_equal(info.chunk, CHUNK);
    assert_int_equal(info.step_sessions, SESSIONS);
    assert_in_range(info.mixed_chunk, 1, CHUNK);
    // The whole of it, and nothing is changed.
    struct inst_segment two[SESSIONS + 1] = {{f.session[0], text[0], 30, true, true, 0, NULL},
                                             {f.session[1], text[1], 19, true, true, 0, NULL}};
    assert_int_equal(inst_step(f.engine, two, 2, NULL, NULL, &f.msg), INST_EINVAL);
    assert_non_null(strstr(f.msg.text, "up to 48 tokens of prompts, not 49"));
    assert_int_equal(two[0].status, INST_EINVAL);
    assert_int_equal(two[1].status, INST_EINVAL);
    assert_int_equal(inst_session_length(f.session[0]), 0);
    assert_int_equal(inst_step(f.engine, two, 0, NULL, NULL, NULL), INST_EINVAL);
    assert_int_equal(inst_step(f.engine, two, SESSIONS + 1, NULL, NULL, NULL), INST_EINVAL);
    // One of them.
    struct inst_msg why = {0};
    struct inst_segment bad[] = {{f.session[0], text[1], 5, true, true, 0, &why},
                                 {other.session[0], text[1], 5, true, true, 0, &why},
                                 {NULL, text[1], 5, true, true, 0, &why},
                                 {f.session[1], NULL, 5, true, true, 0, &why},
                                 {f.session[1], (int32_t[]){SYNTH_VOCAB_MIN}, 1, 0, 1, 0, &why}};
    two[1].n_tokens = 18;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct inst_segment pair[2] = {{f.session[0], text[0] + 10 * i, 10, true, true, 0, NULL},
                                       bad[i]};
        why.text[0] = 0;
        assert_int_equal(inst_step(f.engine, pair, 2, NULL, NULL, NULL), INST_EINVAL);
        assert_int_equal(pair[0].status, 0);
        assert_int_equal(pair[1].status, INST_EINVAL);
        assert_true(*why.text);
        assert_int_equal(inst_session_length(f.session[0]), 10 * (i + 1));
    }
    // Beyond the context.
    assert_int_equal(sync_tokens(&f, 1, text[1], N), 0);
    assert_int_equal(inst_step(f.engine, &two[1], 1, NULL, NULL, NULL), INST_EINVAL);
    close_engine(&f);
    close_engine(&other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_mixture_gives_the_bits_of_each_alone),
        cmocka_unit_test(a_failed_segment_harms_nobody_else),
        cmocka_unit_test(numbers_that_are_none_fail_their_segment),
        cmocka_unit_test(a_mixture_is_one_pass_over_the_weights),
        cmocka_unit_test(many_sessions_take_turns),
        cmocka_unit_test(a_cancelled_step_changes_nothing),
        cmocka_unit_test(micro_batches_take_turns),
        cmocka_unit_test(bad_segments_are_refused),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
