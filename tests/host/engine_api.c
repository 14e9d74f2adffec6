// SPDX-License-Identifier: Apache-2.0
// What the public header promises of structs and threads: callers that were compiled with shorter
// or longer structs are served, engines do not know of each other, and a cancel may come from
// anywhere.
#include "instinfer_generate.h"
#include "tests/host/engine_helper.h"

#include <pthread.h>
#include <stddef.h>

enum { PROMPT = 40, TOKENS = 48 };

static char model[64];
static const char *const kv[] = {"ram:8M@4G", "ram:8M@4G"};

static struct inst_options small_options(void)
{
    return (struct inst_options){.size = sizeof(struct inst_options),
                                 .model = model,
                                 .kv = kv,
                                 .n_kv = 1,
                                 .memory = 16 << 20,
                                 .context = 128,
                                 .group = 16,
                                 .threads = 1};
}

static int try_open(const void *options, struct inst_msg *msg)
{
    inst_engine *e;
    msg->text[0] = 0;
    int err = inst_engine_open(&e, options, msg);
    assert_true(!err == (e != NULL));
    inst_engine_close(e);
    return err;
}

// ---- sizes -------------------------------------------------------------------------------------

static void options_of_other_versions(void **state)
{
    (void)state;
    struct inst_msg msg;
    struct {
        struct inst_options o;
        unsigned char newer[24];
    } longer = {.o = small_options()};
    longer.o.size = sizeof longer;
    assert_int_equal(try_open(&longer, &msg), 0);
    longer.newer[23] = 1; // something that matters to the caller
    assert_int_equal(try_open(&longer, &msg), INST_ENOTSUP);
    assert_non_null(strstr(msg.text, "inst_options"));
    longer.o.size = 0; // as in version 0.1
    assert_int_equal(try_open(&longer, &msg), 0);
    // What lies behind a shorter one is not looked at.
    struct inst_options shorter = small_options();
    shorter.size = offsetof(struct inst_options, attention);
    memset((unsigned char *)&shorter + shorter.size, 0xee, sizeof shorter - shorter.size);
    assert_int_equal(try_open(&shorter, &msg), 0);
    shorter.size = sizeof shorter.size - 1;
    assert_int_equal(try_open(&shorter, &msg), INST_EINVAL);
    shorter.size = sizeof shorter.size;
    assert_int_equal(try_open(&shorter, &msg), INST_EINVAL);
    assert_string_equal(msg.text, "no model is named");
    // The check alone says the same, and looks at no file.
    struct inst_options o = small_options();
    o.model = "/no/such/file";
    msg.text[0] = 0;
    assert_int_equal(inst_options_check(&o, &msg), 0);
    o.group = 24;
    assert_int_equal(inst_options_check(&o, &msg), INST_EINVAL);
    assert_int_equal(try_open(&o, &(struct inst_msg){0}), INST_EINVAL);
    assert_int_equal(inst_options_check(NULL, &(struct inst_msg){0}), INST_EINVAL);
}

static void options_of_generations_too(void **state)
{
    (void)state;
    struct inst_msg msg = {0};
    struct inst_options o = small_options();
    inst_engine *e;
    inst_generation *g;
    inst_scheduler *s;
    const int32_t token = 5;
    assert_int_equal(inst_engine_open(&e, &o, &msg), 0);
    struct {
        struct inst_generation_options o;
        unsigned char newer[8];
    } longer = {.o = {.size = sizeof longer, .max_tokens = 1}};
    inst_sampling_default(&longer.o.sampling);
    assert_int_equal(inst_generation_open(&g, e, &token, 1, &longer.o, &msg), 0);
    inst_generation_close(g);
    longer.newer[0] = 1;
    assert_int_equal(inst_generation_open(&g, e, &token, 1, &longer.o, &msg), INST_ENOTSUP);
    struct inst_scheduler_options so = {.size = offsetof(struct inst_scheduler_options, chunk),
                                        .chunk = 7};
    assert_int_equal(inst_scheduler_open(&s, e, &so, &msg), 0);
    inst_scheduler_close(s);
    so.size = 1;
    assert_int_equal(inst_scheduler_open(&s, e, &so, &msg), INST_EINVAL);
    inst_engine_close(e);
}

static void expect_bytes(const unsigned char *bytes, size_t first, size_t end, unsigned char value)
{
    for (size_t i = first; i < end; i++)
        assert_int_equal(bytes[i], value);
}

// The front of what the whole struct has; nothing behind `size` is written.
static void results_of_other_versions(void **state)
{
    (void)state;
    struct inst_msg msg = {0};
    struct inst_options o = small_options();
    o.n_kv = 2;
    inst_engine *e;
    assert_int_equal(inst_engine_open(&e, &o, &msg), 0);
    unsigned char bytes[2048];

    struct inst_stats stats;
    size_t half = offsetof(struct inst_stats, waf);
    assert_int_equal(inst_engine_stats(e, &stats, &msg), 0);
    for (size_t size = half; size < sizeof bytes; size = size == half ? 1024 : sizeof bytes) {
        memset(bytes, 0xaa, sizeof bytes);
        assert_int_equal(inst_engine_stats_sized(e, (void *)bytes, size, &msg), 0);
        assert_memory_equal(bytes, &stats, size < sizeof stats ? size : sizeof stats);
        expect_bytes(bytes, sizeof stats, size, 0);
        expect_bytes(bytes, size, sizeof bytes, 0xaa);
    }
    struct inst_model_info info;
    half = offsetof(struct inst_model_info, kv_place);
    inst_engine_info(e, &info);
    for (size_t size = half; size < sizeof bytes; size = size == half ? 1024 : sizeof bytes) {
        memset(bytes, 0xaa, sizeof bytes);
        inst_engine_info_sized(e, (void *)bytes, size);
        assert_memory_equal(bytes, &info, size < sizeof info ? size : sizeof info);
        expect_bytes(bytes, sizeof info, size, 0);
        expect_bytes(bytes, size, sizeof bytes, 0xaa);
    }
    // An array: each where the caller has it.
    struct inst_drive_stats drives[2];
    assert_int_equal(inst_engine_drives(e, drives, 2, &msg), 0);
    for (size_t size = sizeof(char *); size < 200; size += 96) {
        memset(bytes, 0xaa, sizeof bytes);
        assert_int_equal(inst_engine_drives_sized(e, (void *)bytes, 2, size, &msg), 0);
        for (size_t i = 0; i < 2; i++)
            assert_memory_equal(bytes + i * size, &drives[i],
                                size < sizeof *drives ? size : sizeof *drives);
        expect_bytes(bytes, 2 * size, sizeof bytes, 0xaa);
    }
    inst_engine_close(e);
}

// ---- what a method counts ----------------------------------------------------------------------

static void a_method_has_a_list(void **state)
{
    (void)state;
    static const char *const methods[] = {"dense", "host", "sparf"};
    for (size_t m = 0; m < 3; m++) {
        struct inst_msg msg = {0};
        struct inst_options o = small_options();
        inst_engine *e;
        struct inst_stats stats;
        o.attention = methods[m];
        assert_int_equal(inst_engine_open(&e, &o, &msg), 0);
        assert_int_equal(inst_engine_stats(e, &stats, &msg), 0);
        if (m < 2) {
            assert_int_equal(stats.n_method, 0);
        } else {
            assert_string_equal(stats.method[0].name, "sparf_steps");
            for (size_t i = 0; i < stats.n_method; i++) {
                assert_true(*stats.method[i].text && strlen(stats.method[i].name) > 3);
                for (size_t j = 0; j < i; j++)
                    assert_string_not_equal(stats.method[i].name, stats.method[j].name);
            }
            assert_string_equal(stats.method[stats.n_method - 1].name, "flips");
        }
        assert_true(inst_stats_method(&stats, "no such counter") == 0);
        inst_engine_close(e);
    }
}

// ---- threads -----------------------------------------------------------------------------------

struct caller {
    inst_engine *e;
    inst_generation *g;
    int32_t tokens[TOKENS];
    float logits[4];
    unsigned cancelled;
    _Atomic bool done;
};

// A prompt and greedy decode; a call that somebody cancelled is made again.
static void *call(void *arg)
{
    struct caller *c = arg;
    struct inst_msg msg = {0};
    inst_session *session;
    assert_int_equal(inst_session_open(&session, c->e, &msg), 0);
    for (size_t i = 0; i < TOKENS; i++)
        c->tokens[i] = text_token(9, i);
    for (size_t n = PROMPT; n <= TOKENS;) {
        struct inst_prefix p = {.session = session, .tokens = c->tokens, .n_tokens = n};
        int err = inst_sync(c->e, &p, 1, NULL, NULL, &msg);
        assert_true(!err || err == INST_ECANCELLED);
        c->cancelled += err != 0;
        n += !err;
    }
    memcpy(c->logits, inst_logits(session), sizeof c->logits);
    struct inst_stats stats;
    assert_int_equal(inst_engine_stats(c->e, &stats, &msg), 0);
    inst_session_close(session);
    atomic_store(&c->done, true);
    return NULL;
}

static void engines_of_several_threads(void **state)
{
    (void)state;
    struct caller c[3] = {{0}};
    struct inst_msg msg = {0};
    pthread_t thread[3];
    for (int i = 0; i < 3; i++) { // opened here, used there: handed over by pthread_create
        struct inst_options o = small_options();
        o.n_kv = 1 + (size_t)i % 2;
        o.threads = 1 + (uint32_t)i;
        assert_int_equal(inst_engine_open(&c[i].e, &o, &msg), 0);
    }
    inst_engine_cancel(c[2].e, true);
    for (int i = 0; i < 3; i++)
        pthread_create(&thread[i], NULL, call, &c[i]);
    // Somebody else does not let the last one work in peace.
    for (int n = 0; n < 200 && !atomic_load(&c[2].done); n++) {
        usleep(3000);
        inst_engine_cancel(c[2].e, false);
        usleep(1000);
        inst_engine_cancel(c[2].e, true);
    }
    inst_engine_cancel(c[2].e, false);
    for (int i = 0; i < 3; i++) {
        pthread_join(thread[i], NULL);
        inst_engine_close(c[i].e);
        assert_memory_equal(c[i].logits, c[0].logits, sizeof c[0].logits);
    }
    assert_true(c[2].cancelled > 0);
}

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(options_of_other_versions),  cmocka_unit_test(options_of_generations_too),
        cmocka_unit_test(results_of_other_versions),  cmocka_unit_test(a_method_has_a_list),
        cmocka_unit_test(engines_of_several_threads),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
