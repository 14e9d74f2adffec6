// SPDX-License-Identifier: Apache-2.0
// Configuration and weights of models that exist and of made ones with unusual but valid files.
// What is refused, and in which words, is in model_bad.c.
#include "host/model/config.h"
#include "host/model/gguf_write.h"
#include "kernels/tensor_type.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define MODELS       INST_SOURCE_DIR "/models/"
#define VOCABULARIES INST_SOURCE_DIR "/tests/data/vocab/"
#define PATH         INST_BINARY_DIR "/model_config_test.gguf"

struct opened {
    struct budget budget;
    struct gguf *gguf;
    struct model_config config;
    struct model_weights weights;
};

static int model_open(struct opened *m, const char *path, struct inst_msg *msg)
{
    memset(m, 0, sizeof *m);
    budget_init(&m->budget, 16 << 20);
    int rc = gguf_open(&m->gguf, path, &m->budget, msg);
    if (!rc)
        rc = model_config_read(m->gguf, &m->config, msg);
    if (!rc)
        rc = model_weights_bind(m->gguf, &m->config, &m->budget, &m->weights, msg);
    return rc;
}

static void model_close(struct opened *m)
{
    model_weights_free(&m->weights);
    gguf_close(m->gguf);
    assert_int_equal(m->budget.used, 0);
}

static void check_config(const struct model_config *got, const struct model_config *want)
{
    assert_string_equal(got->architecture, "llama");
    assert_int_equal(got->layers, want->layers);
    assert_int_equal(got->width, want->width);
    assert_int_equal(got->heads, want->heads);
    assert_int_equal(got->kv_heads, want->kv_heads);
    assert_int_equal(got->head_dim, want->head_dim);
    assert_int_equal(got->ffn, want->ffn);
    assert_int_equal(got->vocab, want->vocab);
    assert_int_equal(got->context, want->context);
    assert_int_equal(got->rope_dims, want->rope_dims);
    assert_true(got->rope_base == want->rope_base);
    assert_true(got->norm_eps == want->norm_eps);
    assert_int_equal(got->tied, want->tied);
}

static void test_real_models(void **state)
{
    (void)state;
    struct opened m;
    struct inst_msg msg = {{0}};
    if (model_open(&m, MODELS "stories260K.gguf", &msg))
        fail_msg("%s", msg.text);
    check_config(&m.config, &(struct model_config){.architecture = "llama",
                                                   .layers = 5,
                                                   .width = 64,
                                                   .heads = 8,
                                                   .kv_heads = 4,
                                                   .head_dim = 8,
                                                   .ffn = 172,
                                                   .vocab = 512,
                                                   .context = 2048,
                                                   .rope_dims = 8,
                                                   .rope_base = 10000,
                                                   .norm_eps = 1e-5f,
                                                   .tied = false});
    assert_int_equal(m.weights.layer[4].ffn_down.cols, 172);
    assert_int_equal(m.weights.layer[4].ffn_down.rows, 64);
    assert_int_equal(m.weights.layer[4].attn_k.rows, 32);
    assert_int_equal(m.weights.output.type, TENSOR_F32);
    assert_int_equal(m.weights.output.row_bytes, 256);
    assert_null(m.weights.rope_freqs);
    model_close(&m);
    if (model_open(&m, MODELS "recall.gguf", &msg))
        fail_msg("%s", msg.text);
    check_config(&m.config, &(struct model_config){.architecture = "llama",
                                                   .layers = 3,
                                                   .width = 256,
                                                   .heads = 8,
                                                   .kv_heads = 2,
                                                   .head_dim = 64,
                                                   .ffn = 512,
                                                   .vocab = 1314,
                                                   .context = 131072,
                                                   .rope_dims = 64,
                                                   .rope_base = 10000,
                                                   .norm_eps = 1e-5f,
                                                   .tied = false});
    assert_int_equal(m.weights.layer[0].attn_output.cols, 512);
    assert_int_equal(m.weights.token_embd.type, TENSOR_F16);
    assert_non_null(m.weights.rope_freqs);
    // The weights stay in the file: the budget saw only tables.
    assert_true(m.weights.bytes > 5000000 && m.budget.peak < 100000);
    model_close(&m);
    // A vocabulary only: the configuration can be read, the weights are missing.
    assert_int_equal(model_open(&m, VOCABULARIES "ggml-vocab-qwen2.gguf", &msg), INST_EFORMAT);
    assert_string_equal(msg.text, "ggml-vocab-qwen2.gguf: no tensors in it (a vocabulary only)");
    assert_int_equal(m.config.vocab, 151936);
    assert_int_equal(m.config.head_dim, 128);
    model_close(&m);
}

static void put_tensor(struct gguf_writer *w, const char *name, uint64_t cols, uint64_t rows)
{
    uint64_t dims[2] = {cols, rows};
    gguf_writer_tensor(w, name, TENSOR_F32, rows ? 2 : 1, dims);
}

// Per-layer arrays of equal values, no own output, head_dim apart from width / heads, rotation of
// half a head, keys that state what is the default.
static void test_unusual(void **state)
{
    (void)state;
    const uint32_t kv_heads[2] = {1, 1};
    const int32_t ffn[2] = {16, 16};
    struct opened m;
    struct inst_msg msg = {{0}};
    struct gguf_writer *w;
    uint64_t elements = 24 * 5 + 24;
    FILE *file = fopen(PATH, "wb");
    assert_int_equal(gguf_writer_open(&w, file, PATH, &msg), 0);
    gguf_writer_string(w, "general.architecture", "llama");
    gguf_writer_u32(w, "llama.context_length", 100);
    gguf_writer_u32(w, "llama.embedding_length", 24);
    gguf_writer_u32(w, "llama.block_count", 2);
    gguf_writer_array(w, "llama.feed_forward_length", GGUF_I32, 2, ffn);
    gguf_writer_u32(w, "llama.attention.head_count", 5);
    gguf_writer_array(w, "llama.attention.head_count_kv", GGUF_U32, 2, kv_heads);
    gguf_writer_u32(w, "llama.attention.key_length", 6);
    gguf_writer_u32(w, "llama.attention.value_length", 6);
    gguf_writer_u32(w, "llama.rope.dimension_count", 4);
    gguf_writer_f32(w, "llama.rope.freq_base", 500000);
    gguf_writer_string(w, "llama.rope.scaling.type", "none");
    gguf_writer_f32(w, "llama.rope.scaling.factor", 1);
    gguf_writer_f32(w, "llama.rope.scale_linear", 1);
    gguf_writer_u32(w, "llama.expert_count", 0);
    gguf_writer_bool(w, "llama.attention.causal", true);
    gguf_writer_f32(w, "llama.attention.layer_norm_rms_epsilon", 1e-6f);
    put_tensor(w, "token_embd.weight", 24, 5);
    put_tensor(w, "output_norm.weight", 24, 0);
    for (int i = 0; i < 2; i++) {
        const struct {
            const char *name;
            uint64_t cols, rows;
        } parts[] = {
            {"attn_norm", 24, 0}, {"attn_q", 24, 30},      {"attn_k", 24, 6},
            {"attn_v", 24, 6},    {"attn_output", 30, 24}, {"ffn_norm", 24, 0},
            {"ffn_gate", 24, 16}, {"ffn_up", 24, 16},      {"ffn_down", 16, 24},
        };
        for (size_t p = 0; p < sizeof parts / sizeof *parts; p++) {
            char name[64];
            snprintf(name, sizeof name, "blk.%d.%s.weight", i, parts[p].name);
            put_tensor(w, name, parts[p].cols, parts[p].rows);
            elements += parts[p].cols * (parts[p].rows ? parts[p].rows : 1);
        }
    }
    for (uint64_t i = 0; i < elements; i++) {
        float value = (float)i;
        gguf_writer_data(w, &value, sizeof value);
    }
    if (gguf_writer_close(w, &msg) || fclose(file) || model_open(&m, PATH, &msg))
        fail_msg("%s", msg.text);
    check_config(&m.config, &(struct model_config){.architecture = "llama",
                                                   .layers = 2,
                                                   .width = 24,
                                                   .heads = 5,
                                                   .kv_heads = 1,
                                                   .head_dim = 6,
                                                   .ffn = 16,
                                                   .vocab = 5,
                                                   .context = 100,
                                                   .rope_dims = 4,
                                                   .rope_base = 500000,
                                                   .norm_eps = 1e-6f,
                                                   .tied = true});
    assert_ptr_equal(m.weights.output.data, m.weights.token_embd.data);
    assert_int_equal(m.weights.bytes, elements * 4);
    // Each in its place: the first values follow the order of the file.
    assert_true(((const float *)m.weights.token_embd.data)[0] == 0);
    assert_true(m.weights.output_norm[0] == 120);
    assert_true(m.weights.layer[0].attn_norm[0] == 144);
    assert_true(((const float *)m.weights.layer[0].attn_q.data)[0] == 168);
    assert_true(((const float *)m.weights.layer[0].attn_k.data)[0] == 168 + 720);
    assert_true(((const float *)m.weights.layer[1].ffn_down.data)[0] ==
                (float)(elements - 16 * 24));
    model_close(&m);
    unlink(PATH);
}

// Variants that nothing computes are refused by their name.
static void test_refused_variants(void **state)
{
    (void)state;
    static const struct {
        const char *key, *tensor, *text;
        bool flag;
    } cases[] = {
        {NULL, "project_in.weight", "a projection behind the embeddings is not supported", false},
        {NULL, "project_out.weight", "a projection before the output is not supported", false},
        {NULL, "blk.0.ffn_gate_inp.weight", "experts is not supported", false},
        {"opt.do_layer_norm_before", NULL, "key 'opt.do_layer_norm_before'", false},
        {"opt.do_layer_norm_before", NULL, "tensor 'position_embd.weight' is missing", true},
        {"opt.attention.sliding_window", NULL, "value 1 is not supported", true},
        {"opt.attn_logit_softcapping", NULL, "value 1 is not supported", true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct opened m;
        struct inst_msg msg = {{0}};
        struct gguf_writer *w;
        FILE *file = fopen(PATH, "wb");
        assert_int_equal(gguf_writer_open(&w, file, PATH, &msg), 0);
        gguf_writer_string(w, "general.architecture", "opt");
        gguf_writer_u32(w, "opt.context_length", 100);
        gguf_writer_u32(w, "opt.embedding_length", 24);
        gguf_writer_u32(w, "opt.block_count", 1);
        gguf_writer_u32(w, "opt.feed_forward_length", 32);
        gguf_writer_u32(w, "opt.attention.head_count", 3);
        gguf_writer_f32(w, "opt.attention.layer_norm_epsilon", 1e-5f);
        if (cases[i].key)
            gguf_writer_bool(w, cases[i].key, cases[i].flag);
        float zeros[24 * 9] = {0};
        put_tensor(w, "token_embd.weight", 24, 5);
        put_tensor(w, "output_norm.weight", 24, 0);
        put_tensor(w, cases[i].tensor ? cases[i].tensor : "blk.0.attn_norm.weight", 24, 3);
        gguf_writer_data(w, zeros, sizeof zeros);
        assert_int_equal(gguf_writer_close(w, &msg), 0);
        fclose(file);
        assert_true(model_open(&m, PATH, &msg) < 0);
        if (!strstr(msg.text, cases[i].text))
            fail_msg("case %zu: %s", i, msg.text);
        model_close(&m);
    }
    unlink(PATH);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_real_models),
        cmocka_unit_test(test_unusual),
        cmocka_unit_test(test_refused_variants),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
