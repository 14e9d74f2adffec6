// SPDX-License-Identifier: Apache-2.0
// Row invariance (contract point 9) of every architecture: a token gets the same logits, bit for
// bit, in a chunk of any size and decoded, alone and in a batch, on the fake drive and the real
// one, with every kernel set. tests/logits says that they are the right ones.
#include "tests/host/engine_helper.h"
#include "tests/more.h"

enum { N = 211, WINDOW = 37, DECODED_FROM = 150 };

static const struct shape {
    const char *architecture, *rope_scaling;
    uint32_t layers, heads, kv_heads, head_dim, type, window, rope_original;
} shapes[] = {
    {"llama", "yarn", 2, 6, 2, 10, TENSOR_F16, 0, 32},
    {"llama", "linear", 2, 4, 4, 16, TENSOR_BF16, WINDOW, 0},
    {"qwen2", NULL, 2, 6, 2, 10, TENSOR_F16, 0, 0},
    {"qwen3", NULL, 2, 6, 3, 24, TENSOR_F32, 0, 0},
    {"phi3", NULL, 2, 4, 2, 18, TENSOR_F16, WINDOW, 100},
    {"gemma2", NULL, 3, 4, 1, 36, TENSOR_BF16, WINDOW, 0},
    {"gemma3", "linear", 7, 4, 2, 20, TENSOR_F16, WINDOW, 0},
    {"opt", NULL, 2, 5, 5, 14, TENSOR_F16, 0, 0},
};
enum { SHAPES = sizeof shapes / sizeof *shapes };

static char model[64];
static int32_t text[2][N];

static void write_shape(const struct shape *s)
{
    struct synth_options o;
    struct inst_msg msg = {0};
    synth_defaults(&o);
    o.architecture = s->architecture;
    o.layers = s->layers;
    o.width = 70;
    o.heads = s->heads;
    o.kv_heads = s->kv_heads;
    o.head_dim = s->head_dim;
    o.ffn = 90;
    o.context = 300;
    o.type = s->type;
    o.window = s->window;
    o.rope_original = s->rope_original;
    o.rope_scaling = s->rope_scaling;
    o.rope_factor = s->rope_scaling ? 4 : 0;
    snprintf(model, sizeof model, "/tmp/instinfer-arch-%d.gguf", (int)getpid());
    if (synth_to(&o, model, &msg))
        fail_msg("%s", msg.text);
    for (uint32_t t = 0; t < 2; t++)
        for (size_t i = 0; i < N; i++)
            text[t][i] = text_token(t, i);
}

struct collected {
    const struct fixture *f;
    char *all;
};

static bool collect(void *user, uint64_t position, const float *logits)
{
    struct collected *c = user;
    memcpy(c->all + position * logits_bytes(c->f), logits, logits_bytes(c->f));
    return true;
}

// Logits of all positions: the first `prefilled` tokens at once, the others one by one, beside a
// second session with other tokens where `company`.
static char *all_logits(const char *kv, const struct inst_options *base, size_t prefilled,
                        bool company)
{
    struct fixture f = {0};
    struct inst_options o = *base;
    o.max_sessions = company ? 2 : 1;
    open_engine(&f, model, kv, &o);
    struct collected c = {&f, calloc(N, logits_bytes(&f))};
    inst_session_on_logits(f.session[0], collect, &c);
    assert_int_equal(sync_tokens(&f, 0, text[0], prefilled), 0);
    if (company)
        assert_int_equal(sync_tokens(&f, 1, text[1], 20), 0);
    for (size_t n = prefilled + 1; n <= N; n++) {
        struct inst_prefix both[2] = {
            {.session = f.session[0], .tokens = text[0], .n_tokens = n},
            {.session = f.session[1], .tokens = text[1], .n_tokens = 20 + n - prefilled},
        };
        assert_int_equal(inst_sync(f.engine, both, company ? 2 : 1, NULL, NULL, &f.msg), 0);
    }
    close_engine(&f);
    return c.all;
}

static void equal_bits(void **state)
{
    (void)state;
    static const struct {
        const char *kv;
        struct inst_options o;
        size_t prefilled;
        bool company;
    } cases[] = {
        {NULL, {.chunk = 7, .threads = 2}, N, false},
        {NULL, {.chunk = 64, .threads = 1, .kernels = "reference"}, N, false},
        {"ram:64M", {.chunk = 50, .threads = 3, .group = 16}, N, false},
        {"ram:64M", {.group = 128, .threads = 2}, DECODED_FROM, true},
        {"/tmp", {.group = 16, .threads = 2, .chunk = 33}, DECODED_FROM, false},
        {NULL, {.threads = 1, .chunk = 1}, N, false},
    };
    for (size_t s = 0; s < SHAPES; s++) {
        write_shape(&shapes[s]);
        char *want = all_logits(NULL, &(struct inst_options){.chunk = N}, N, false);
        size_t bytes = SYNTH_VOCAB_MIN * sizeof(float);
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            if ((i + s) % 2 && !more())
                continue;
            char *got = all_logits(cases[i].kv, &cases[i].o, cases[i].prefilled, cases[i].company);
            for (size_t at = 0; at < N; at++)
                if (memcmp(got + at * bytes, want + at * bytes, bytes))
                    fail_msg("%s: case %zu differs at position %zu", shapes[s].architecture, i, at);
            free(got);
        }
        free(want);
        unlink(model);
    }
}

// Decode asks the drive for the window alone.
static void windows_limit_what_is_attended(void **state)
{
    (void)state;
    for (size_t s = 0; s < SHAPES; s++) {
        const struct shape *shape = &shapes[s];
        struct fixture f = {0};
        struct inst_stats before, after;
        write_shape(shape);
        open_engine(&f, model, "ram:64M", &(struct inst_options){.group = 16});
        assert_int_equal(sync_tokens(&f, 0, text[0], N - 1), 0);
        assert_int_equal(inst_engine_stats(f.engine, &before, NULL), 0);
        assert_int_equal(sync_tokens(&f, 0, text[0], N), 0);
        assert_int_equal(inst_engine_stats(f.engine, &after, NULL), 0);
        uint64_t expected = 0;
        for (uint32_t l = 0; l < shape->layers; l++) {
            uint32_t window = model_layer_window(&f.engine->config, l);
            bool full = !shape->window || (!strcmp(shape->architecture, "gemma2") && l % 2) ||
                        (!strcmp(shape->architecture, "gemma3") && l == 5);
            assert_int_equal(window, full ? 0 : WINDOW);
            expected += window ? window : N;
        }
        assert_int_equal(after.attended_tokens - before.attended_tokens, expected);
        close_engine(&f);
        unlink(model);
    }
}

static void learned_positions_bound_the_context(void **state)
{
    (void)state;
    write_shape(&shapes[SHAPES - 1]);
    struct inst_msg msg = {0};
    inst_engine *engine;
    struct inst_options o = {.model = model, .kv = (const char *[]){"ram:64M"}, .n_kv = 1};
    o.memory = 64 << 20;
    o.context = 301;
    assert_int_equal(inst_engine_open(&engine, &o, &msg), INST_EINVAL);
    assert_non_null(strstr(msg.text, "learned positions for 300 only"));
    o.context = 300;
    assert_int_equal(inst_engine_open(&engine, &o, &msg), 0);
    inst_engine_close(engine);
    unlink(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equal_bits),
        cmocka_unit_test(windows_limit_what_is_attended),
        cmocka_unit_test(learned_positions_bound_the_context),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
