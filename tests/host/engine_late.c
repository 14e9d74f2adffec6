// SPDX-License-Identifier: Apache-2.0
// Drives that do not answer: every wait ends at its limit or when somebody cancels, with one line
// that says what was waited for; what comes too late harms nobody, and a drive that answers again
// is as good as before.
#include "base/clock.h"
#include "instinfer_generate.h"
#include "tests/host/engine_helper.h"

#include <pthread.h>

enum { PROMPT = 70, TOKENS = 74, LIMIT_MS = 60, LONG_MS = 600000 };

static char model[64];
static int32_t text[TOKENS];
static unsigned char *expected[2]; // logits of the prompt and of all tokens

// ---- a drive that does not answer --------------------------------------------------------------

enum silence {
    SILENT_ONE,   // about one command; an ABORT ends it
    SILENT_STILL, // the same, but not even ABORT helps
    SILENT_DEAD,  // about that one and all that come after it, until it is woken
};

static struct silent {
    struct link *link;
    uint8_t opcode; // 0: none
    unsigned after; // commands of that kind that are answered first
    enum silence how;
    bool held, dead;
    struct command command; // held
    struct completion late[8];
    size_t n_late;
    unsigned aborts, links_aborted;
    bool says_late; // what it held back comes after all, once it was forgotten
} silent;
static const struct link_ops *inner;

static void say(uint16_t cid, int status)
{
    silent.late[silent.n_late++] = (struct completion){.cid = cid, .status = status};
}

static int silent_submit(struct link *link, const struct command *c, const void *table, void *data)
{
    if (silent.dead)
        return 0;
    if (silent.held && c->opcode == OP_ABORT) {
        assert_int_equal(c->ticket, silent.command.ticket);
        silent.aborts++;
        if (silent.how == SILENT_ONE) {
            say(silent.command.cid, INST_ECANCELLED);
            say(c->cid, 0);
            silent.held = false;
        }
        return 0;
    }
    if (c->opcode == silent.opcode && !silent.after--) {
        silent.opcode = 0;
        silent.held = true;
        silent.dead = silent.how == SILENT_DEAD;
        silent.command = *c;
        return 0;
    }
    return inner->submit(link, c, table, data);
}

static size_t silent_poll(struct link *link, struct completion *out, size_t max, uint64_t wait_ns)
{
    if (silent.n_late) {
        out[0] = silent.late[--silent.n_late];
        return 1;
    }
    size_t n = inner->poll(link, out, max, 0);
    if (!n && wait_ns)
        usleep(1000);
    return n;
}

static void silent_abort(struct link *link)
{
    silent.links_aborted++;
    if (silent.held && silent.says_late)
        say(silent.command.cid, 0);
    silent.held = false;
    inner->abort(link);
}

static void hush(struct fixture *f, uint8_t opcode, unsigned after, enum silence how)
{
    static struct link_ops ops;
    if (f->link->ops != &ops)
        inner = f->link->ops;
    ops = *inner;
    ops.submit = silent_submit;
    ops.poll = silent_poll;
    ops.abort = silent_abort;
    f->link->ops = &ops;
    silent = (struct silent){.opcode = opcode, .after = after, .how = how};
}

// ---- helpers -----------------------------------------------------------------------------------

static void open_late(struct fixture *f, uint32_t limit_ms)
{
    *f = (struct fixture){0};
    open_engine(f, model, NULL,
                &(struct inst_options){
                    .max_sessions = 2, .chunk = 32, .threads = 1, .drive_timeout_ms = limit_ms});
}

static double seconds_since(uint64_t start)
{
    return 1e-9 * (double)(clock_ns() - start);
}

static void expect_logits(struct fixture *f, size_t session, int which)
{
    assert_non_null(inst_logits(f->session[session]));
    assert_memory_equal(inst_logits(f->session[session]), expected[which], logits_bytes(f));
}

static void expect_line(const struct fixture *f, const char *what)
{
    if (!strstr(f->msg.text, what) || !strstr(f->msg.text, "null:: no answer in 0.06 s") ||
        strchr(f->msg.text, '\n'))
        fail_msg("not clear: '%s'", f->msg.text);
}

// A new session in the place of one that may have lost its KV.
static void open_again(struct fixture *f)
{
    inst_session_close(f->session[0]);
    assert_int_equal(inst_session_open(&f->session[0], f->engine, &f->msg), 0);
}

static void expect_whole(struct fixture *f)
{
    assert_int_equal(sync_tokens(f, 0, text, PROMPT), 0);
    expect_logits(f, 0, 0);
    for (size_t n = PROMPT + 1; n <= TOKENS; n++)
        assert_int_equal(sync_tokens(f, 0, text, n), 0);
    expect_logits(f, 0, 1);
}

// ---- deadlines ---------------------------------------------------------------------------------

static const struct {
    uint8_t opcode;
    const char *name;
    unsigned after;
    bool decode;
} places[] = {
    {OP_WRITE, "of layer", 0, false},          {OP_WRITE, "of layer", 4, false},
    {OP_READ, "READ of layer", 0, false},      {OP_COLLECT, "COLLECT of layer", 1, false},
    {OP_ATTEND, "ATTEND of layer 1", 1, true}, {OP_COLLECT, "COLLECT of layer 2", 2, true},
};

// Everything that is waited for, on a drive that answers nothing any more.
static void every_wait_has_an_end(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        struct fixture f;
        open_late(&f, LIMIT_MS);
        if (places[i].decode)
            assert_int_equal(sync_tokens(&f, 0, text, PROMPT), 0);
        hush(&f, places[i].opcode, places[i].after, SILENT_DEAD);
        uint64_t start = clock_ns();
        size_t n = places[i].decode ? PROMPT + 1 : PROMPT;
        assert_int_equal(sync_tokens(&f, 0, text, n), INST_ETIMEOUT);
        // One limit for what was waited for, one to ask for its end, one to cut the session.
        assert_true(seconds_since(start) >= 0.001 * LIMIT_MS && seconds_since(start) < 300);
        expect_line(&f, "of layer"); // one of those that were waited for
        assert_true(silent.links_aborted > 0);
        // Asked for anything, it is not waited for long.
        struct inst_stats stats;
        f.msg.text[0] = 0;
        assert_int_equal(inst_engine_stats(f.engine, &stats, &f.msg), INST_ETIMEOUT);
        expect_line(&f, "STAT");
        // Awake again it serves another session as if nothing had been.
        silent.dead = false;
        open_again(&f);
        expect_whole(&f);
        close_engine(&f);
    }
}

// The one command is ended by ABORT; the session is what it was, and others are not disturbed.
static void a_late_ticket_is_aborted(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        for (int still = 0; still < 2; still++) {
            struct fixture f;
            if (places[i].opcode == OP_WRITE)
                continue;
            open_late(&f, LIMIT_MS);
            if (places[i].decode)
                assert_int_equal(sync_tokens(&f, 0, text, PROMPT), 0);
            hush(&f, places[i].opcode, places[i].after, still ? SILENT_STILL : SILENT_ONE);
            // What comes when nobody waits any more is nobody's answer.
            silent.says_late = still;
            assert_int_equal(sync_tokens(&f, 0, text, places[i].decode ? PROMPT + 1 : PROMPT),
                             INST_ETIMEOUT);
            expect_line(&f, places[i].name);
            assert_int_equal(silent.aborts, 1);
            assert_int_equal(silent.links_aborted, still);
            expect_whole(&f);
            assert_int_equal(silent.n_late, 0);
            close_engine(&f);
        }
    }
}

// One of two segments of a step: the other one has its tokens.
static void the_others_of_a_step_go_on(void **state)
{
    (void)state;
    struct fixture f;
    open_late(&f, LIMIT_MS);
    assert_int_equal(sync_tokens(&f, 0, text, PROMPT - 1), 0);
    assert_int_equal(sync_tokens(&f, 1, text + 1, 20), 0);
    hush(&f, OP_COLLECT, 0, SILENT_ONE);
    struct inst_segment s[2] = {
        {.session = f.session[0], .tokens = text + PROMPT - 1, .n_tokens = 1, .prompt = true},
        {.session = f.session[1], .tokens = text + 21, .n_tokens = 1}};
    assert_int_equal(inst_step(f.engine, s, 2, NULL, NULL, &f.msg), INST_ETIMEOUT);
    assert_int_equal(s[0].status, INST_ETIMEOUT);
    assert_int_equal(s[1].status, 0);
    assert_int_equal(inst_session_length(f.session[0]), PROMPT - 1);
    expect_whole(&f);
    close_engine(&f);
}

// A disk so slow that reading takes longer than the limit: the real drive ends its own work.
static void the_real_drive_gives_up(void **state)
{
    (void)state;
    struct fixture f = {0};
    open_engine(&f, model, "ram:8M@20K",
                &(struct inst_options){
                    .threads = 1, .group = 16, .chunk = 32, .drive_timeout_ms = LIMIT_MS});
    int32_t tokens[200];
    for (size_t i = 0; i < 200; i++)
        tokens[i] = text_token(3, i);
    int err = sync_tokens(&f, 0, tokens, 200);
    // What is not programmed yet is attended from memory.
    for (uint64_t start = clock_ns(); !err && seconds_since(start) < 60;) {
        err = sync_tokens(&f, 0, tokens, 199);
        err = err ? err : sync_tokens(&f, 0, tokens, 200);
    }
    assert_int_equal(err, INST_ETIMEOUT);
    assert_non_null(strstr(f.msg.text, "ram:8M@20K: no answer in 0.06 s"));
    uint64_t start = clock_ns();
    close_engine(&f);
    assert_true(seconds_since(start) < 300);
}

// ---- cancel ------------------------------------------------------------------------------------

static void *cancel_soon(void *engine)
{
    usleep(50000);
    inst_engine_cancel(engine, true);
    return NULL;
}

static void a_cancel_ends_any_wait(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        struct fixture f;
        pthread_t thread;
        bool dead = i == 3; // what comes after a failure is not answered either
        open_late(&f, LONG_MS);
        if (places[i].decode)
            assert_int_equal(sync_tokens(&f, 0, text, PROMPT), 0);
        hush(&f, places[i].opcode, places[i].after, dead ? SILENT_DEAD : SILENT_STILL);
        uint64_t start = clock_ns();
        pthread_create(&thread, NULL, cancel_soon, f.engine);
        assert_int_equal(sync_tokens(&f, 0, text, places[i].decode ? PROMPT + 1 : PROMPT),
                         INST_ECANCELLED);
        assert_true(seconds_since(start) < 300);
        assert_string_equal(f.msg.text, "cancelled");
        pthread_join(thread, NULL);
        // It holds until it is taken back, and nothing is computed meanwhile.
        if (!dead)
            assert_int_equal(sync_tokens(&f, 1, text, 5), INST_ECANCELLED);
        silent.dead = false;
        inst_engine_cancel(f.engine, false);
        if (dead)
            open_again(&f);
        expect_whole(&f);
        close_engine(&f);
    }
}

// Between tokens, too, with nothing to wait for; and a round ends without a trace.
static void a_cancel_ends_decode(void **state)
{
    (void)state;
    struct fixture f;
    open_late(&f, LONG_MS);
    assert_int_equal(sync_tokens(&f, 0, text, PROMPT), 0);
    inst_engine_cancel(f.engine, true);
    assert_int_equal(sync_tokens(&f, 0, text, PROMPT + 1), INST_ECANCELLED);
    assert_int_equal(inst_session_length(f.session[0]), PROMPT);
    inst_session_close(f.session[1]);
    inst_scheduler *s;
    inst_generation *g;
    const struct inst_scheduler_options so = {.size = sizeof so, .sessions = 1};
    struct inst_generation_options go = {.size = sizeof go, .max_tokens = 3, .ignore_end = true};
    inst_sampling_default(&go.sampling);
    assert_int_equal(inst_scheduler_open(&s, f.engine, &so, &f.msg), 0);
    assert_int_equal(inst_generation_open(&g, f.engine, text, PROMPT, &go, &f.msg), 0);
    assert_int_equal(inst_scheduler_add(s, g, &f.msg), 0);
    for (int round = 0; round < 12; round++) {
        inst_engine_cancel(f.engine, round % 2 == 0);
        int err = inst_scheduler_round(s, NULL, NULL, &f.msg);
        assert_int_equal(err, inst_generation_finish(g) || round % 2 ? 0 : INST_ECANCELLED);
    }
    assert_int_equal(inst_generation_finish(g), INST_FINISH_LENGTH);
    inst_engine_cancel(f.engine, false);
    inst_generation_close(g);
    inst_scheduler_close(s);
    expect_whole(&f);
    close_engine(&f);
}

static int setup(void **state)
{
    (void)state;
    struct fixture f;
    write_model(model, TENSOR_F16);
    for (size_t i = 0; i < TOKENS; i++)
        text[i] = text_token(1, i);
    open_late(&f, 0);
    for (int which = 0; which < 2; which++) {
        for (size_t n = which ? PROMPT + 1 : PROMPT; n <= (which ? TOKENS : PROMPT); n++)
            assert_int_equal(sync_tokens(&f, 0, text, n), 0);
        expected[which] = malloc(logits_bytes(&f));
        memcpy(expected[which], inst_logits(f.session[0]), logits_bytes(&f));
    }
    close_engine(&f);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    free(expected[0]);
    free(expected[1]);
    unlink(model);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_wait_has_an_end),      cmocka_unit_test(a_late_ticket_is_aborted),
        cmocka_unit_test(the_others_of_a_step_go_on), cmocka_unit_test(the_real_drive_gives_up),
        cmocka_unit_test(a_cancel_ends_any_wait),     cmocka_unit_test(a_cancel_ends_decode),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
