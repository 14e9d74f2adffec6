// SPDX-License-Identifier: Apache-2.0
// The engine on a compute device that does its work later and elsewhere (compute_async.h): bits
// equal the CPU's, and a device that is lost or never gets on ends a step with one clear message.
#include "tests/host/compute_async.h"
#include "tests/host/engine_helper.h"

enum { PROMPT = 150, SESSIONS = 4 };

static void open_async(struct fixture *f, const char *model, bool async)
{
    struct inst_options o = {.model = model,
                             .kv = (const char *const[]){"null:"},
                             .n_kv = 1,
                             .memory = 64 << 20,
                             .max_sessions = SESSIONS,
                             .chunk = 100,
                             .threads = 2};
    memset(f, 0, sizeof *f);
    f->link = fake_drive_open();
    if (engine_open_with(&f->engine, &o, f->link, async ? &compute_async : &compute_cpu, &f->msg))
        fail_msg("%s", f->msg.text);
    for (uint32_t i = 0; i < SESSIONS; i++)
        assert_int_equal(inst_session_open(&f->session[i], f->engine, &f->msg), 0);
}

static int32_t text[SESSIONS][PROMPT];

// Session 3 decodes, the others have pieces of prompts; with what they had before, session 0's
// tile lies in a stored and an own run.
static int mixture(struct fixture *f)
{
    struct inst_segment s[SESSIONS] = {
        {.session = f->session[0], .tokens = text[0] + 70, .n_tokens = 40, .logits = true},
        {.session = f->session[1], .tokens = text[1], .n_tokens = 20, .logits = true},
        {.session = f->session[2], .tokens = text[2] + 1, .n_tokens = 1, .logits = true},
        {.session = f->session[3], .tokens = text[3] + 140, .n_tokens = 1, .logits = true},
    };
    memset(&f->msg, 0, sizeof f->msg);
    int err = inst_step(f->engine, s, SESSIONS, NULL, NULL, &f->msg);
    for (int i = 0; i < SESSIONS; i++)
        assert_int_equal(s[i].status, err);
    return err;
}

static int before_mixture(struct fixture *f)
{
    int err = sync_tokens(f, 0, text[0], 70);
    err = err ? err : sync_tokens(f, 2, text[2], 1);
    return err ? err : sync_tokens(f, 3, text[3], 140);
}

static void has_lengths(struct fixture *f, uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
    const uint64_t want[SESSIONS] = {a, b, c, d};
    for (int i = 0; i < SESSIONS; i++)
        assert_int_equal(inst_session_length(f->session[i]), want[i]);
}

static void bits_equal_the_cpus(void **state)
{
    struct fixture cpu, f;
    open_async(&cpu, *state, false);
    open_async(&f, *state, true);
    assert_null(f.engine->buffer[BUFFER_slab]->host); // as a GPU's memory
    for (int i = 0; i < 2; i++) {
        assert_int_equal(before_mixture(i ? &f : &cpu), 0);
        assert_int_equal(mixture(i ? &f : &cpu), 0);
    }
    for (int i = 0; i < SESSIONS; i++)
        assert_memory_equal(inst_logits(cpu.session[i]), inst_logits(f.session[i]),
                            logits_bytes(&f));
    close_engine(&cpu);
    close_engine(&f);
}

// Wherever the device is lost: all fail with the same text, have what they had, and the next step
// fails at once.
static void a_lost_device_ends_the_step(void **state)
{
    struct fixture f;
    open_async(&f, *state, true);
    assert_int_equal(before_mixture(&f), 0);
    uint64_t calls = compute_async_calls(f.engine->compute);
    assert_int_equal(mixture(&f), 0);
    calls = compute_async_calls(f.engine->compute) - calls;
    close_engine(&f);
    assert_true(calls > 30);
    for (uint64_t at = 1; at <= calls; at += at < 20 ? 1 : 7) {
        open_async(&f, *state, true);
        assert_int_equal(before_mixture(&f), 0);
        compute_async_lose(f.engine->compute, at);
        assert_int_equal(mixture(&f), INST_EINTERNAL);
        assert_string_equal(f.msg.text, "computing failed: the device was lost");
        has_lengths(&f, 70, 0, 1, 140);
        assert_int_equal(mixture(&f), INST_EINTERNAL);
        assert_string_equal(f.msg.text, "computing failed: the device was lost");
        close_engine(&f);
    }
}

static void a_gate_that_never_opens_ends_the_step(void **state)
{
    struct fixture f;
    open_async(&f, *state, true);
    assert_int_equal(before_mixture(&f), 0);
    f.engine->compute_limit_ns = 50000000;
    compute_async_hold_gates(f.engine->compute);
    assert_int_equal(mixture(&f), INST_ETIMEOUT);
    assert_string_equal(f.msg.text, "computing failed: no answer in 0.05 s");
    has_lengths(&f, 70, 0, 1, 140);
    assert_int_equal(mixture(&f), INST_ETIMEOUT);
    close_engine(&f); // ends
}

static int write_once(void **state)
{
    static char path[64];
    for (uint32_t s = 0; s < SESSIONS; s++)
        for (size_t i = 0; i < PROMPT; i++)
            text[s][i] = text_token(s, i);
    write_model(path, TENSOR_F32);
    *state = path;
    return 0;
}

static int remove_it(void **state)
{
    return unlink(*state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bits_equal_the_cpus),
        cmocka_unit_test(a_lost_device_ends_the_step),
        cmocka_unit_test(a_gate_that_never_opens_ends_the_step),
    };
    return cmocka_run_group_tests(tests, write_once, remove_it);
}
