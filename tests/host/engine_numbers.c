// SPDX-License-Identifier: Apache-2.0
// Numbers that are none: one bad weight in any tensor of any architecture, keys and values beyond
// fp16. Every way to logits ends with INST_ERANGE and a line that names the tensor or the layer; in
// a batch only the session that is concerned ends, and it goes on with other tokens.
#include "tests/host/engine_helper.h"

#include "base/le.h"

#include <math.h>

enum { N = 20, SESSIONS = 4 };

static const struct shape {
    const char *architecture;
    uint32_t width, heads, kv_heads, head_dim, ffn, type;
    bool tied;
} shapes[] = {
    {"llama", 70, 6, 2, 10, 90, TENSOR_F16, false},
    {"qwen2", 70, 6, 2, 10, 90, TENSOR_F32, true},
    {"qwen3", 70, 4, 2, 24, 90, TENSOR_BF16, true},
    {"gemma2", 70, 4, 1, 36, 90, TENSOR_F32, true},
    {"opt", 70, 5, 5, 14, 90, TENSOR_F16, true},
    {"llama", 64, 2, 1, 32, 96, TENSOR_Q8_0, false},
    {"llama", 256, 2, 1, 128, 256, TENSOR_Q4_K, false},
};
enum { SHAPES = sizeof shapes / sizeof *shapes };

static char model[64];
static int32_t text[SESSIONS][2 * N];

static void write_shape(const struct shape *s)
{
    struct synth_options o;
    struct inst_msg msg = {0};
    synth_defaults(&o);
    o.architecture = s->architecture;
    o.layers = 2;
    o.width = s->width;
    o.heads = s->heads;
    o.kv_heads = s->kv_heads;
    o.head_dim = s->head_dim;
    o.ffn = s->ffn;
    o.context = 128;
    o.type = s->type;
    o.tied = s->tied;
    snprintf(model, sizeof model, "/tmp/instinfer-numbers-%d.gguf", (int)getpid());
    if (synth_to(&o, model, &msg))
        fail_msg("%s: %s", s->architecture, msg.text);
}

enum value { VALUE_NAN, VALUE_INFINITY, VALUE_MINUS_INFINITY, VALUES };

static void write_at(uint64_t offset, const void *bytes, size_t n, void *before)
{
    FILE *f = fopen(model, "r+b");
    assert_non_null(f);
    assert_int_equal(fseek(f, (long)offset, SEEK_SET), 0);
    assert_int_equal(fread(before, 1, n, f), n);
    assert_int_equal(fseek(f, (long)offset, SEEK_SET), 0);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

// An element of a tensor, or the scale of its block.
struct patch {
    uint64_t offset;
    size_t bytes;
    unsigned char good[4];
};

static void poison(struct patch *p, const struct gguf_tensor *t, uint64_t element, enum value value)
{
    static const uint16_t halves[] = {0x7e00, 0x7c00, 0xfc00}, brains[] = {0x7fc0, 0x7f80, 0xff80};
    const struct tensor_type_info *info = tensor_type_info(t->type);
    unsigned char bad[4];
    p->bytes = t->type == TENSOR_F32 ? 4 : 2;
    if (t->type == TENSOR_F32)
        le_put32(bad, (uint32_t)brains[value] << 16);
    else
        le_put16(bad, t->type == TENSOR_BF16 ? brains[value] : halves[value]);
    p->offset = t->offset + element / info->block_elements * info->block_bytes + info->scale_at;
    write_at(p->offset, bad, p->bytes, p->good);
}

static void cure(const struct patch *p)
{
    unsigned char bad[4];
    write_at(p->offset, p->good, p->bytes, bad);
}

static bool take_all(void *user, uint64_t position, const float *logits)
{
    (void)position, (void)logits;
    ++*(size_t *)user;
    return true;
}

enum way { PREFILL, SMALL_CHUNKS, ALL_LOGITS, DECODE, SPARF, WAYS };

// The status after N tokens.
static int run(enum way way, struct inst_msg *msg)
{
    struct fixture f = {0};
    size_t seen = 0;
    struct inst_options o = {.threads = 2, .group = 16};
    o.chunk = way == SMALL_CHUNKS ? 3 : 0;
    o.attention = way == SPARF ? "sparf" : NULL;
    open_engine(&f, model, way == SPARF ? "ram:4M" : NULL, &o);
    if (way == ALL_LOGITS)
        inst_session_on_logits(f.session[0], take_all, &seen);
    int err = 0;
    for (size_t n = way == DECODE ? 1 : way == SPARF ? N - 2 : N; n <= N && !err; n++)
        err = sync_tokens(&f, 0, text[0], n);
    if (err)
        assert_null(inst_logits(f.session[0]));
    *msg = f.msg;
    close_engine(&f);
    return err;
}

// Element of a tensor that the text's tokens surely use.
static uint64_t element_of(const struct gguf_tensor *t, const char *name)
{
    if (!strcmp(name, "token_embd.weight"))
        return (uint64_t)text[0][N / 2] * t->dims[0] + t->dims[0] / 2;
    if (!strcmp(name, "position_embd.weight"))
        return (POSITION_OFFSET + N - 1) * t->dims[0] + 1;
    return t->dims[1] / 2 * t->dims[0] + t->dims[0] / 3;
}

static void any_bad_weight_is_found(void **state)
{
    (void)state;
    for (size_t s = 0; s < SHAPES; s++) {
        write_shape(&shapes[s]);
        struct budget budget;
        struct gguf *gguf;
        struct inst_msg msg = {0};
        budget_init(&budget, UINT64_MAX);
        assert_int_equal(gguf_open(&gguf, model, &budget, &msg), 0);
        assert_int_equal(run(PREFILL, &msg), 0);
        for (uint64_t i = 0; i < gguf_tensor_count(gguf); i++) {
            const struct gguf_tensor *t = gguf_tensor_at(gguf, i);
            struct gguf_print print;
            const char *name = gguf_printable(t->name, &print);
            enum value value = (enum value)(i % VALUES);
            struct patch patch;
            poison(&patch, t, element_of(t, name), value);
            for (int way = 0; way < WAYS; way++) {
                if (way != (int)(i % WAYS) && way != DECODE && way != PREFILL)
                    continue;
                int err = run((enum way)way, &msg);
                if (err != INST_ERANGE || !strstr(msg.text, name) || strchr(msg.text, '\n'))
                    fail_msg("%s %s, value %d, way %d: status %d: %s", shapes[s].architecture, name,
                             value, way, err, msg.text);
            }
            cure(&patch);
        }
        assert_int_equal(run(DECODE, &msg), 0);
        gguf_close(gguf);
        unlink(model);
    }
}

// Multiplies a tensor's numbers (F32).
static void scale(const char *name, float factor)
{
    struct budget budget;
    struct gguf *gguf;
    budget_init(&budget, UINT64_MAX);
    assert_int_equal(gguf_open(&gguf, model, &budget, NULL), 0);
    const struct gguf_tensor *t = gguf_tensor(gguf, name);
    assert_non_null(t);
    float *x = malloc(t->bytes), *before = malloc(t->bytes);
    memcpy(x, t->data, t->bytes);
    for (uint64_t i = 0; i < t->bytes / sizeof *x; i++)
        x[i] *= factor;
    write_at(t->offset, x, t->bytes, before);
    free(x);
    free(before);
    gguf_close(gguf);
}

static void beyond_fp16_names_the_layer(void **state)
{
    (void)state;
    static const struct {
        const char *tensor;
        float factor;
        const char *text;
    } cases[] = {
        {"blk.1.attn_k.weight", 3e6f, "layer 1: K of token "},
        {"blk.0.attn_v.weight", 3e6f, "layer 0: V of token "},
        {"blk.1.attn_v.weight", 1e30f, "layer 1: V of token "},
        {"blk.0.attn_q.weight", 1e38f, ": q of token "},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int way = 0; way < WAYS; way++) {
            struct inst_msg msg;
            write_shape(&shapes[1]); // F32
            scale(cases[i].tensor, cases[i].factor);
            int err = run((enum way)way, &msg);
            if (err != INST_ERANGE || !strstr(msg.text, cases[i].text) ||
                strstr(msg.text, "tensor"))
                fail_msg("case %zu: status %d: %s", i, err, msg.text);
            bool overflow = i < 3; // of fp16; those of scores are seen in what attention gives
            assert_true(!strstr(msg.text, "exceeds fp16") == !overflow);
            unlink(model);
        }
}

static void the_bounds_are_those_of_fp16(void **state)
{
    (void)state;
    static const struct {
        float value;
        bool good;
    } cases[] = {{65504, true},     {65519.9f, true},   {65520, false},   {-65519.9f, true},
                 {-65520, false},   {1e30f, false},     {5.96e-8f, true}, {0, true},
                 {INFINITY, false}, {-INFINITY, false}, {NAN, false},     {-NAN, false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (size_t n = 1; n < 70; n += 7) {
            float x[70] = {1, -2};
            uint16_t h[70];
            uint32_t fault = 0;
            x[n - 1] = cases[i].value;
            kernels_best()->f32_to_f16(h, x, n);
            fault_check_f16(&fault, FAULT_K, h, x, n);
            assert_int_equal(!fault, cases[i].good);
            assert_int_equal(numbers_are_finite(x, n), isfinite(cases[i].value) != 0);
            if (!cases[i].good) { // the least is the one that counts
                bool no_number = !isfinite(cases[i].value);
                assert_int_equal(fault, fault_word(FAULT_K, no_number));
                fault_check_f16(&fault, FAULT_V, h, x, n);
                assert_int_equal(fault, fault_word(FAULT_K, no_number));
                if (no_number)
                    fault_check(&fault, FAULT_Q, x, n);
                assert_int_equal(fault_kind(fault), no_number ? FAULT_Q : FAULT_K);
                assert_int_equal(fault_no_number(fault), no_number);
            }
        }
}

// Two of four sessions get a token whose embedding is no number.
static void others_in_the_batch_are_unharmed(void **state)
{
    (void)state;
    enum { BAD = 200 };
    for (int real = 0; real < 2; real++) {
        struct fixture f = {0}, clean = {0};
        struct inst_options o = {.max_sessions = SESSIONS, .threads = 2, .group = 16};
        write_shape(&shapes[0]);
        open_engine(&clean, model, real ? "ram:4M" : NULL, &o);
        struct budget budget;
        struct gguf *gguf;
        struct patch patch;
        budget_init(&budget, UINT64_MAX);
        assert_int_equal(gguf_open(&gguf, model, &budget, NULL), 0);
        const struct gguf_tensor *t = gguf_tensor(gguf, "token_embd.weight");
        poison(&patch, t, BAD * t->dims[0], VALUE_NAN); // for both: only one uses it
        open_engine(&f, model, real ? "ram:4M" : NULL, &o);
        struct inst_prefix p[SESSIONS];
        int32_t good[SESSIONS];
        for (size_t step = 0; step < 3; step++) {
            for (size_t i = 0; i < SESSIONS; i++) {
                size_t n = N + i + step;
                bool bad = step == 1 && (i == 0 || i == 2);
                p[i] = (struct inst_prefix){f.session[i], text[i], n, 0, NULL};
                assert_int_equal(sync_tokens(&clean, i, text[i], n), 0);
                good[i] = text[i][n - 1];
                text[i][n - 1] = bad ? BAD : good[i];
            }
            memset(&f.msg, 0, sizeof f.msg);
            int err = inst_sync(f.engine, p, SESSIONS, NULL, NULL, &f.msg);
            assert_int_equal(err, step == 1 ? INST_ERANGE : 0);
            for (size_t i = 0; i < SESSIONS; i++) {
                bool bad = step == 1 && (i == 0 || i == 2);
                assert_int_equal(p[i].status, bad ? INST_ERANGE : 0);
                if (bad) { // as if it had not been asked for
                    char line[64];
                    snprintf(line, sizeof line, "layer 0: q of token %d is not a number", N);
                    assert_null(inst_logits(f.session[i]));
                    assert_true(i || !strncmp(f.msg.text, line, strlen(line)));
                    assert_non_null(strstr(f.msg.text, "token_embd.weight"));
                    text[i][N + i + step - 1] = good[i];
                    continue;
                }
                assert_memory_equal(inst_logits(f.session[i]), inst_logits(clean.session[i]),
                                    logits_bytes(&f));
            }
        }
        close_engine(&f);
        close_engine(&clean);
        gguf_close(gguf);
        unlink(model);
    }
}

static int setup(void **state)
{
    (void)state;
    for (uint32_t s = 0; s < SESSIONS; s++)
        for (size_t i = 0; i < 2 * N; i++)
            text[s][i] = (text_token(s, i) + 3) % 190 + 3;
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_bad_weight_is_found),
        cmocka_unit_test(beyond_fp16_names_the_layer),
        cmocka_unit_test(the_bounds_are_those_of_fp16),
        cmocka_unit_test(others_in_the_batch_are_unharmed),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
