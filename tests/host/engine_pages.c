// SPDX-License-Identifier: Apache-2.0
// Pages attention inside a trained model: with everything chosen the logits are those of dense
// attention to the bit; with a part, they have the same bits wherever KV lies, however it lies
// there and on how many drives, for any batch; the knobs reach the drive, and what is wrong is
// refused.
#include "tests/host/engine_helper.h"

static const char model[] = TREE_MODEL("stories260K.gguf");

enum { PROMPT = 330, STEPS = 10 };

static uint64_t decode(const struct inst_options *base, const char *const *kv, size_t n_kv,
                       struct inst_stats *stats)
{
    struct fixture f = {0};
    struct inst_options o = *base;
    int32_t tokens[PROMPT + STEPS];
    uint64_t hash = 1469598103934665603u;
    for (size_t i = 0; i < PROMPT + STEPS; i++)
        tokens[i] = text_token(3, i);
    o.model = model;
    o.kv = kv;
    o.n_kv = n_kv;
    o.memory = o.memory ? o.memory : 64 << 20;
    o.row_cache = o.row_cache ? o.row_cache : INST_NO_ROW_CACHE;
    if (engine_open_on(&f.engine, &o, NULL, &f.msg) ||
        inst_session_open(&f.session[0], f.engine, &f.msg))
        fail_msg("%s", f.msg.text);
    for (size_t i = 0; i <= STEPS; i++) {
        if (sync_tokens(&f, 0, tokens, PROMPT + i - (i == STEPS)))
            fail_msg("%s", f.msg.text);
        const uint8_t *bytes = (const uint8_t *)inst_logits(f.session[0]);
        for (size_t b = 0; b < logits_bytes(&f); b++)
            hash = (hash ^ bytes[b]) * 1099511628211u;
    }
    assert_int_equal(inst_engine_stats(f.engine, stats, NULL), 0);
    // The engine's list ends with it.
    static struct inst_counter kept[64];
    assert_true(stats->n_method <= sizeof kept / sizeof *kept);
    for (size_t i = 0; i < stats->n_method; i++)
        kept[i] = stats->method[i];
    stats->method = kept;
    close_engine(&f);
    return hash;
}

static const char *const ram[] = {"ram:64M"};

static void all_is_dense(void **state)
{
    (void)state;
    struct inst_stats stats;
    uint64_t dense = decode(&(struct inst_options){.threads = 2}, ram, 1, &stats);
    struct inst_options o = {.attention = "pages", .pages_ratio = 1, .pages_piece = 16};
    assert_true(decode(&o, ram, 1, &stats) == dense);
    assert_int_equal((int)inst_stats_method(&stats, "pages_steps"), 5 * (STEPS - 1));
    o.pages_ratio = 0;
    o.pages_newest = 512;
    assert_true(decode(&o, ram, 1, &stats) == dense);
    o.pages_newest = 16; // a part of it is something else
    assert_true(decode(&o, ram, 1, &stats) != dense);
    assert_true(inst_stats_method(&stats, "pages_predicted_sum") <
                1e6 * inst_stats_method(&stats, "pages_predicted"));
    double choose_ns = inst_stats_method(&stats, "pages_choose_ns");
    assert_true(choose_ns > 0 && choose_ns <= 1e9 * stats.decode_seconds);
}

static void the_same_bits_everywhere(void **state)
{
    (void)state;
    static const char *const places[] = {"ram:64M", "ram:64M", "ram:64M", "ram:64M"};
    static const char *const disk[] = {"/tmp"};
    struct inst_stats stats;
    struct inst_options o = {
        .attention = "pages", .pages_ratio = 0.25, .pages_piece = 16, .pages_newest = 20};
    enum { RATIO, MASS, FLASH, LOOK, KINDS };
    for (int kind = RATIO; kind < KINDS; kind++) {
        o.pages_mass = kind == MASS ? 0.8 : 0;
        o.pages_look = kind == LOOK ? 12 : 0;
        o.pages_flash = kind == FLASH;
        o.pages_ratio = kind == LOOK ? 0.06 : 0.25;
        uint64_t expected = decode(&o, ram, 1, &stats);
        for (size_t drives = 2; drives <= 4; drives *= 2)
            assert_true(decode(&o, places, drives, &stats) == expected);
        for (uint32_t group = 16; group <= 128; group *= 2) {
            struct inst_options other = o;
            other.group = group;
            other.threads = 1 + group / 32;
            other.chunk = group + 3;
            other.audit = group == 32 ? 0.5 : 0;
            other.row_cache = group == 64 ? 8 << 20 : 0;
            assert_true(decode(&other, group % 32 ? disk : ram, 1, &stats) == expected);
            assert_true((inst_stats_method(&stats, "audits") > 0) == (group == 32));
        }
    }
    // Something else is predicted if all keys are looked at, and of all.
    double likely = inst_stats_method(&stats, "pages_predicted_sum");
    o.pages_look = 0;
    uint64_t without = decode(&o, ram, 1, &stats);
    assert_true(inst_stats_method(&stats, "pages_predicted_sum") != likely);
    o.pages_rest = true;
    assert_true(decode(&o, ram, 1, &stats) != without);
}

static void batch_of(uint32_t look, bool flash)
{
    enum { SESSIONS = 4, ROUNDS = 6 };
    static const size_t lengths[SESSIONS] = {1, 70, 200, 333};
    int32_t tokens[SESSIONS][400];
    struct inst_options o = {.attention = "pages",
                             .pages_piece = 16,
                             .pages_newest = 16,
                             .pages_look = look,
                             .pages_flash = flash,
                             .pages_ratio = look ? 0.06 : 0,
                             .max_sessions = SESSIONS,
                             .threads = 2};
    struct fixture f = {0}, alone = {0};
    open_engine(&f, model, "/tmp", &o);
    o.max_sessions = 1;
    open_engine(&alone, model, "ram:64M", &o);
    for (uint32_t i = 0; i < SESSIONS * 400; i++)
        tokens[i / 400][i % 400] = text_token(i / 400, i % 400);
    for (size_t round = 0; round < ROUNDS; round++) {
        struct inst_prefix p[SESSIONS];
        for (size_t i = 0; i < SESSIONS; i++)
            p[i] = (struct inst_prefix){f.session[i], tokens[i], lengths[i] + round, -1, NULL};
        if (inst_sync(f.engine, p, SESSIONS, NULL, NULL, &f.msg))
            fail_msg("%s", f.msg.text);
    }
    for (size_t i = 0; i < SESSIONS; i++) {
        inst_session_close(alone.session[0]);
        assert_int_equal(inst_session_open(&alone.session[0], alone.engine, &alone.msg), 0);
        for (size_t round = 0; round < ROUNDS; round++)
            assert_int_equal(sync_tokens(&alone, 0, tokens[i], lengths[i] + round), 0);
        assert_memory_equal(inst_logits(alone.session[0]), inst_logits(f.session[i]),
                            logits_bytes(&f));
    }
    close_engine(&f);
    close_engine(&alone);
}

static void batch_equals_alone(void **state)
{
    (void)state;
    batch_of(0, false);
    batch_of(10, false);
    batch_of(0, true);
}

static void wrong_knobs_are_refused(void **state)
{
    (void)state;
    const struct inst_options wrong[] = {{.pages_ratio = 1.5},
                                         {.pages_ratio = -1},
                                         {.pages_mass = 1},
                                         {.pages_piece = 48},
                                         {.pages_heads = 5},
                                         {.pages_piece = 64, .group = 32},
                                         {.pages_flash = true, .pages_look = 5},
                                         {.pages_flash = true, .pages_rest = true}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        struct inst_options o = wrong[i];
        struct inst_msg msg = {0};
        inst_engine *e = NULL;
        o.model = model;
        o.kv = ram;
        o.n_kv = 1;
        o.attention = "pages";
        assert_int_equal(engine_open_on(&e, &o, NULL, &msg), INST_EINVAL);
        assert_non_null(strstr(msg.text, i < 3    ? "pages with a ratio"
                                         : i == 4 ? "do not choose together by 5"
                                         : i > 5  ? "an index on the disk goes without"
                                                  : "pieces of"));
        inst_engine_close(e);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_is_dense),
        cmocka_unit_test(the_same_bits_everywhere),
        cmocka_unit_test(batch_equals_alone),
        cmocka_unit_test(wrong_knobs_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
