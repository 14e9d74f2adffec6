// SPDX-License-Identifier: Apache-2.0
// KV in blocks of 8 and 4 bits inside a trained model: the same bits whatever cuts the prompt,
// whoever else decodes, wherever KV lies and whoever attends; how far the predictions are from
// those with fp16; how much less is stored; what is refused.
#include "tests/host/engine_helper.h"

#include <math.h>

static const char model[] = TREE_MODEL("stories260K.gguf");
static const char *const types[] = {"f16", "q8", "q4"};
static const char *const ram[] = {"ram:64M", "ram:64M", "ram:64M", "ram:64M"};

enum { PROMPT = 210, STEPS = 6 };

static void open_kv(struct fixture *f, const struct inst_options *base, size_t n_kv)
{
    struct inst_options o = *base;
    o.model = model;
    o.kv = ram;
    o.n_kv = n_kv;
    o.memory = 64 << 20;
    o.row_cache = o.row_cache ? o.row_cache : INST_NO_ROW_CACHE;
    if (engine_open_on(&f->engine, &o, NULL, &f->msg))
        fail_msg("%s", f->msg.text);
    for (uint32_t i = 0; i < f->engine->max_sessions; i++)
        assert_int_equal(inst_session_open(&f->session[i], f->engine, &f->msg), 0);
}

// Of the logits after a prompt that comes in one sync or, from `cut` on, token by token.
static uint64_t decode(const struct inst_options *o, size_t n_kv, size_t cut)
{
    struct fixture f = {0};
    int32_t tokens[PROMPT + STEPS];
    uint64_t hash = 1469598103934665603u;
    for (size_t i = 0; i < PROMPT + STEPS; i++)
        tokens[i] = text_token(3, i);
    open_kv(&f, o, n_kv);
    for (size_t i = cut; i < PROMPT + STEPS; i++) {
        if (sync_tokens(&f, 0, tokens, i + 1))
            fail_msg("%s", f.msg.text);
        const uint8_t *bytes = (const uint8_t *)inst_logits(f.session[0]);
        for (size_t b = 0; b < logits_bytes(&f) && i >= PROMPT; b++)
            hash = (hash ^ bytes[b]) * 1099511628211u;
    }
    struct inst_stats stats;
    assert_int_equal(inst_engine_stats(f.engine, &stats, &f.msg), 0);
    assert_true(o->group != 16 || stats.attended_tokens_from_flash > 0);
    close_engine(&f);
    return hash;
}

static void the_same_bits_everywhere(void **state)
{
    (void)state;
    uint64_t plain = decode(&(struct inst_options){.group = 16}, 1, PROMPT);
    for (int t = 1; t < 3; t++) {
        struct inst_options o = {.kv_type = types[t], .group = 16};
        uint64_t expected = decode(&o, 1, PROMPT);
        assert_true(expected != plain);
        assert_true(decode(&o, 1, 20) == expected); // most of the prompt decoded
        for (size_t drives = 2; drives <= 4; drives *= 2) {
            struct inst_options other = o;
            other.chunk = 37;
            other.threads = 3;
            assert_true(decode(&other, drives, PROMPT) == expected);
        }
        struct inst_options other = o;
        other.group = 64;
        other.chunk = 100;
        other.row_cache = 1 << 20;
        assert_true(decode(&other, 1, PROMPT) == expected);
        other.attention = "host";
        assert_true(decode(&other, 2, PROMPT) == expected);
        other.attention = "pages"; // all of it
        other.pages_ratio = 1;
        assert_true(decode(&other, 1, PROMPT) == expected);
        other = o;
        other.kernels = "reference";
        assert_true(decode(&other, 1, PROMPT) == expected);
    }
}

static void batch_equals_alone(void **state)
{
    (void)state;
    enum { SESSIONS = 3, ROUNDS = 4 };
    static const size_t lengths[SESSIONS] = {1, 70, 133};
    for (int t = 1; t < 3; t++) {
        struct inst_options o = {
            .kv_type = types[t], .group = 16, .max_sessions = SESSIONS, .threads = 2};
        struct fixture f = {0}, alone = {0};
        int32_t tokens[SESSIONS][150];
        open_kv(&f, &o, 1);
        o.max_sessions = 1;
        open_kv(&alone, &o, 1);
        for (uint32_t i = 0; i < SESSIONS * 150; i++)
            tokens[i / 150][i % 150] = text_token(i / 150, i % 150);
        for (size_t round = 0; round < ROUNDS; round++) {
            struct inst_prefix p[SESSIONS];
            for (size_t i = 0; i < SESSIONS; i++)
                p[i] = (struct inst_prefix){f.session[i], tokens[i], lengths[i] + round, -1, NULL};
            if (inst_sync(f.engine, p, SESSIONS, NULL, NULL, &f.msg))
                fail_msg("%s", f.msg.text);
        }
        for (size_t i = 0; i < SESSIONS; i++) {
            assert_int_equal(sync_tokens(&alone, 0, tokens[i], lengths[i] + ROUNDS - 1), 0);
            assert_memory_equal(inst_logits(f.session[i]), inst_logits(alone.session[0]),
                                logits_bytes(&f));
        }
        close_engine(&f);
        close_engine(&alone);
    }
}

static const char story[] =
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball. She wanted to play with it, but it was too high.\n"
    "Lily's mom said, \"Lily, let's go to the park.\" Lily was sad and didn't know what to do. She "
    "said, \"I want to play with you, mom.\" Her mom said, \"Okay, let's go to the park.\"";

static void log_softmax(double *out, const float *x, size_t n)
{
    double most = -INFINITY, sum = 0;
    for (size_t i = 0; i < n; i++)
        most = fmax(most, (double)x[i]);
    for (size_t i = 0; i < n; i++)
        sum += exp((double)x[i] - most);
    for (size_t i = 0; i < n; i++)
        out[i] = (double)x[i] - most - log(sum);
}

// KL to fp16 in nats for each token of a story.
static void close_to_f16(void **state)
{
    (void)state;
    enum { VOCAB = 512, TOKENS = 256 };
    struct fixture f[3] = {0};
    int32_t *tokens;
    size_t n = 0;
    double kl[3] = {0};
    for (int t = 0; t < 3; t++)
        open_kv(&f[t], &(struct inst_options){.kv_type = types[t], .group = 16}, 1);
    assert_int_equal(inst_tokenize(f[0].engine, story, strlen(story), 0, &tokens, &n, &f[0].msg),
                     0);
    assert_in_range(n, 80, TOKENS);
    for (size_t i = 1; i <= n; i++) {
        double want[VOCAB], got[VOCAB];
        for (int t = 0; t < 3; t++) {
            assert_int_equal(sync_tokens(&f[t], 0, tokens, i), 0);
            assert_int_equal(logits_bytes(&f[t]), VOCAB * sizeof(float));
            log_softmax(t ? got : want, inst_logits(f[t].session[0]), VOCAB);
            for (size_t v = 0; t && v < VOCAB; v++)
                kl[t] += exp(want[v]) * (want[v] - got[v]) / (double)n;
        }
    }
    print_message("KL to f16 over %zu tokens: q8 %.6f, q4 %.6f nats each\n", n, kl[1], kl[2]);
    assert_true(kl[1] > 1e-7 &&
                kl[1] <= 3.2e-4); // 3.6e-4 and 0.15, were K rounded channel by channel
    assert_true(kl[2] > kl[1] && kl[2] < 0.1);
    struct inst_model_info info[3];
    for (int t = 0; t < 3; t++) {
        inst_engine_info(f[t].engine, &info[t]);
        assert_string_equal(info[t].kv_type, types[t]);
        close_engine(&f[t]);
    }
    free(tokens);
    // Heads of 8 channels: a block each.
    assert_int_equal(info[0].kv_bytes_per_token, 5 * 4 * 32);
    assert_int_equal(info[1].kv_bytes_per_token, 5 * 4 * 18);
    assert_int_equal(info[2].kv_bytes_per_token, 5 * 4 * (6 + 10));
}

static void refused(void **state)
{
    (void)state;
    struct inst_msg msg = {0};
    inst_engine *e;
    struct inst_options o = {.model = model, .kv = ram, .n_kv = 1, .kv_type = "q5"};
    memset(&msg, 0, sizeof msg);
    assert_int_equal(inst_engine_open(&e, &o, &msg), INST_ENOTSUP);
    assert_string_equal(msg.text, "KV as 'q5' is not supported: f16, q8 or q4 is");
    o.kv_type = "q8";
    o.attention = "sparf";
    memset(&msg, 0, sizeof msg);
    assert_int_equal(inst_engine_open(&e, &o, &msg), INST_ENOTSUP);
    assert_string_equal(msg.text, "attention 'sparf' needs KV as f16, not q8");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_same_bits_everywhere),
        cmocka_unit_test(batch_equals_alone),
        cmocka_unit_test(close_to_f16),
        cmocka_unit_test(refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
