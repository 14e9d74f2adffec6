// SPDX-License-Identifier: Apache-2.0
// Hyper-parameters and weights by table: an architecture is a row that lists its tensors (name,
// shape in words, place in the structs) and the keys that must have their neutral value because
// nothing here implements another one.
#include "host/model/config.h"

#include "base/checked.h"
#include "base/le.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum {
    LAYERS_MAX = 4096,
    WIDTH_MAX = 1 << 20,
    HEADS_MAX = 1 << 14,
    FFN_MAX = 1 << 24,
    VOCAB_MAX = 1 << 24,
    CONTEXT_MAX = 1 << 30,
};

enum dimension {
    DIM_ONE,
    DIM_WIDTH,
    DIM_Q,
    DIM_KV,
    DIM_Q_K,
    DIM_Q_K_V,
    DIM_HEAD,
    DIM_FFN,
    DIM_GATE_UP,
    DIM_VOCAB,
    DIM_POSITIONS,
    DIM_ROPE_HALF,
};

// A tensor of the architecture. Vectors are F32 and go to a `const float *`, matrices to a struct
// weight. Where `whole` is not DIM_ONE the tensor has that many rows, of which this is a part.
struct tensor_rule {
    const char *name; // global, or what follows "blk.N."
    size_t place;     // offset in model_weights or model_layer
    enum dimension rows, cols;
    bool vector, optional;
    enum dimension whole, start;
};

// What only some architectures have.
enum { HAS_WINDOW = 1, HAS_SOFTCAP = 2, HAS_LONGROPE = 4 };

// A key ("ARCH." left out), the one number that changes nothing, and which of the above must be
// there for another number to be heeded.
struct neutral_key {
    const char *key;
    double value;
    unsigned unless;
};

struct architecture {
    const char *name;
    const struct tensor_rule *global, *layer;
    unsigned has;
    enum model_activation activation;
    bool layer_norm, rope_halves, learned_positions, scaled_embeddings;
    uint32_t window, window_period; // defaults
    uint32_t wide_layers;           // with so many layers scores are scaled by width / heads
    float rope_window_base;         // default
};

#define GLOBAL(field) offsetof(struct model_weights, field)
#define LAYER(field)  offsetof(struct model_layer, field)

#define VECTOR(name, place, n)                                                                     \
    {                                                                                              \
        name, place, DIM_ONE, n, true, false, DIM_ONE, DIM_ONE                                     \
    }
#define VECTOR_OR_NONE(name, place, n)                                                             \
    {                                                                                              \
        name, place, DIM_ONE, n, true, true, DIM_ONE, DIM_ONE                                      \
    }
#define MATRIX(name, place, rows, cols)                                                            \
    {                                                                                              \
        name, place, rows, cols, false, false, DIM_ONE, DIM_ONE                                    \
    }
#define MATRIX_OR_NONE(name, place, rows, cols)                                                    \
    {                                                                                              \
        name, place, rows, cols, false, true, DIM_ONE, DIM_ONE                                     \
    }
#define PART(name, place, rows, cols, whole, start)                                                \
    {                                                                                              \
        name, place, rows, cols, false, false, whole, start                                        \
    }
#define END                                                                                        \
    {                                                                                              \
        NULL, 0, DIM_ONE, DIM_ONE, false, false, DIM_ONE, DIM_ONE                                  \
    }

#define EMBEDDINGS                                                                                 \
    MATRIX("token_embd.weight", GLOBAL(token_embd), DIM_VOCAB, DIM_WIDTH),                         \
        VECTOR("output_norm.weight", GLOBAL(output_norm), DIM_WIDTH),                              \
        MATRIX_OR_NONE("output.weight", GLOBAL(output), DIM_VOCAB, DIM_WIDTH)
#define NORMS                                                                                      \
    VECTOR("attn_norm.weight", LAYER(attn_norm), DIM_WIDTH),                                       \
        VECTOR("ffn_norm.weight", LAYER(ffn_norm), DIM_WIDTH)
#define QKV                                                                                        \
    MATRIX("attn_q.weight", LAYER(attn_q), DIM_Q, DIM_WIDTH),                                      \
        MATRIX("attn_k.weight", LAYER(attn_k), DIM_KV, DIM_WIDTH),                                 \
        MATRIX("attn_v.weight", LAYER(attn_v), DIM_KV, DIM_WIDTH)
#define QKV_BIAS                                                                                   \
    VECTOR("attn_q.bias", LAYER(attn_q_bias), DIM_Q),                                              \
        VECTOR("attn_k.bias", LAYER(attn_k_bias), DIM_KV),                                         \
        VECTOR("attn_v.bias", LAYER(attn_v_bias), DIM_KV)
#define QK_NORM                                                                                    \
    VECTOR("attn_q_norm.weight", LAYER(attn_q_norm), DIM_HEAD),                                    \
        VECTOR("attn_k_norm.weight", LAYER(attn_k_norm), DIM_HEAD)
#define POST_NORM                                                                                  \
    VECTOR("post_attention_norm.weight", LAYER(attn_post_norm), DIM_WIDTH),                        \
        VECTOR("post_ffw_norm.weight", LAYER(ffn_post_norm), DIM_WIDTH)
#define OUTPUT MATRIX("attn_output.weight", LAYER(attn_output), DIM_WIDTH, DIM_Q)
#define GATE   MATRIX("ffn_gate.weight", LAYER(ffn_gate), DIM_FFN, DIM_WIDTH)
#define UP     MATRIX("ffn_up.weight", LAYER(ffn_up), DIM_FFN, DIM_WIDTH)
#define DOWN   MATRIX("ffn_down.weight", LAYER(ffn_down), DIM_WIDTH, DIM_FFN)

static const struct tensor_rule plain_global[] = {EMBEDDINGS, END};
static const struct tensor_rule llama_global[] = {
    EMBEDDINGS, VECTOR_OR_NONE("rope_freqs.weight", GLOBAL(rope_freqs), DIM_ROPE_HALF), END};
static const struct tensor_rule phi3_global[] = {
    EMBEDDINGS, VECTOR_OR_NONE("rope_factors_long.weight", GLOBAL(rope_long), DIM_ROPE_HALF),
    VECTOR_OR_NONE("rope_factors_short.weight", GLOBAL(rope_short), DIM_ROPE_HALF), END};
static const struct tensor_rule opt_global[] = {
    EMBEDDINGS, MATRIX("position_embd.weight", GLOBAL(position_embd), DIM_POSITIONS, DIM_WIDTH),
    VECTOR("output_norm.bias", GLOBAL(output_norm_bias), DIM_WIDTH), END};

static const struct tensor_rule llama_layer[] = {NORMS, QKV, OUTPUT, GATE, UP, DOWN, END};
static const struct tensor_rule qwen2_layer[] = {NORMS, QKV, QKV_BIAS, OUTPUT, GATE, UP, DOWN, END};
static const struct tensor_rule qwen3_layer[] = {NORMS, QKV, QK_NORM, OUTPUT, GATE, UP, DOWN, END};
static const struct tensor_rule phi3_layer[] = {
    NORMS,
    PART("attn_qkv.weight", LAYER(attn_q), DIM_Q, DIM_WIDTH, DIM_Q_K_V, DIM_ONE),
    PART("attn_qkv.weight", LAYER(attn_k), DIM_KV, DIM_WIDTH, DIM_Q_K_V, DIM_Q),
    PART("attn_qkv.weight", LAYER(attn_v), DIM_KV, DIM_WIDTH, DIM_Q_K_V, DIM_Q_K),
    OUTPUT,
    PART("ffn_up.weight", LAYER(ffn_gate), DIM_FFN, DIM_WIDTH, DIM_GATE_UP, DIM_ONE),
    PART("ffn_up.weight", LAYER(ffn_up), DIM_FFN, DIM_WIDTH, DIM_GATE_UP, DIM_FFN),
    DOWN,
    END,
};
static const struct tensor_rule gemma2_layer[] = {NORMS, POST_NORM, QKV,  OUTPUT,
                                                  GATE,  UP,        DOWN, END};
static const struct tensor_rule gemma3_layer[] = {NORMS, POST_NORM, QKV,  QK_NORM, OUTPUT,
                                                  GATE,  UP,        DOWN, END};
static const struct tensor_rule opt_layer[] = {
    NORMS,
    VECTOR("attn_norm.bias", LAYER(attn_norm_bias), DIM_WIDTH),
    QKV,
    QKV_BIAS,
    OUTPUT,
    VECTOR("attn_output.bias", LAYER(attn_output_bias), DIM_WIDTH),
    VECTOR("ffn_norm.bias", LAYER(ffn_norm_bias), DIM_WIDTH),
    UP,
    VECTOR("ffn_up.bias", LAYER(ffn_up_bias), DIM_FFN),
    DOWN,
    VECTOR("ffn_down.bias", LAYER(ffn_down_bias), DIM_WIDTH),
    END,
};

static const struct neutral_key neutral_keys[] = {
    {"expert_count", 0, 0},
    {"expert_used_count", 0, 0},
    {"attention.sliding_window", 0, HAS_WINDOW},
    {"attention.clamp_kqv", 0, 0},
    {"attention.max_alibi_bias", 0, 0},
    {"attention.scale", 0, 0},
    {"attention.causal", 1, 0},
    {"attn_logit_softcapping", 0, HAS_SOFTCAP},
    {"final_logit_softcapping", 0, HAS_SOFTCAP},
    {"logit_scale", 0, 0},
    {"residual_scale", 0, 0},
    {"embedding_scale", 0, 0},
    {"rope.scaling.alpha", 0, 0},
    {"rope.scaling.yarn_log_multiplier", 0, 0},
    {"rope.scaling.yarn_ext_factor", 1, 0},
    {"rope.scaling.yarn_attn_factor", 1, 0},
    {"do_layer_norm_before", 1, 0},
    {NULL, 0, 0},
};

// Tensors that tell a variant which nothing here computes, and what it is called.
static const struct {
    const char *tensor, *variant;
} refused_tensors[] = {
    {"project_in.weight", "a projection behind the embeddings"},
    {"project_out.weight", "a projection before the output"},
    {"blk.0.ffn_gate_inp.weight", "experts"},
};

static const struct architecture architectures[] = {
    {.name = "llama", .global = llama_global, .layer = llama_layer, .has = HAS_WINDOW},
    {.name = "qwen2", .global = plain_global, .layer = qwen2_layer, .rope_halves = true},
    {.name = "qwen3", .global = plain_global, .layer = qwen3_layer, .rope_halves = true},
    {.name = "phi3",
     .global = phi3_global,
     .layer = phi3_layer,
     .has = HAS_WINDOW | HAS_LONGROPE,
     .rope_halves = true},
    {.name = "gemma2",
     .global = plain_global,
     .layer = gemma2_layer,
     .has = HAS_WINDOW | HAS_SOFTCAP,
     .activation = ACTIVATION_GELU_TANH,
     .rope_halves = true,
     .scaled_embeddings = true,
     .window = 4096,
     .window_period = 2,
     .wide_layers = 46},
    {.name = "gemma3",
     .global = plain_global,
     .layer = gemma3_layer,
     .has = HAS_WINDOW | HAS_SOFTCAP,
     .activation = ACTIVATION_GELU_TANH,
     .rope_halves = true,
     .scaled_embeddings = true,
     .window_period = 6,
     .wide_layers = 62,
     .rope_window_base = 10000},
    {.name = "opt",
     .global = opt_global,
     .layer = opt_layer,
     .activation = ACTIVATION_RELU,
     .layer_norm = true,
     .learned_positions = true},
};

static const struct architecture *architecture_find(struct gguf_string name)
{
    for (size_t i = 0; i < sizeof architectures / sizeof *architectures; i++)
        if (gguf_string_is(name, architectures[i].name))
            return &architectures[i];
    return NULL;
}

static int read_architecture(const struct gguf *g, const struct architecture **out,
                             struct inst_msg *msg)
{
    struct gguf_string name;
    struct gguf_print print;
    int rc = gguf_get_string(g, "general.architecture", GGUF_REQUIRED, &name, msg);
    if (rc)
        return rc;
    *out = architecture_find(name);
    if (!*out)
        return gguf_fail_key(g, gguf_find(g, "general.architecture"), INST_ENOTSUP, msg,
                             "architecture '%s' is not supported", gguf_printable(name, &print));
    return 0;
}

// A key of the architecture, written out.
struct key_name {
    char text[96];
};

static const char *arch_key(const struct architecture *arch, const char *key, struct key_name *out)
{
    snprintf(out->text, sizeof out->text, "%s.%s", arch->name, key);
    return out->text;
}

static int check_neutral(const struct gguf *g, const struct architecture *arch,
                         struct inst_msg *msg)
{
    struct key_name name;
    for (const struct neutral_key *n = neutral_keys; n->key; n++) {
        const struct gguf_key *key = gguf_find(g, arch_key(arch, n->key, &name));
        double value;
        bool flag = false;
        float real = 0;
        uint64_t integer = 0;
        int rc = 0;
        if (!key || arch->has & n->unless)
            continue;
        if (key->type == GGUF_F32 || key->type == GGUF_F64)
            rc = gguf_get_f32(g, name.text, GGUF_REQUIRED, -3e38f, 3e38f, &real, msg);
        else if (key->type == GGUF_BOOL)
            rc = gguf_get_bool(g, name.text, GGUF_REQUIRED, &flag, msg);
        else
            rc = gguf_get_u64(g, name.text, GGUF_REQUIRED, 0, UINT64_MAX, &integer, msg);
        if (rc)
            return rc;
        value = (double)real + (double)integer + (double)flag;
        // 0 stands for "not set" in every one of these keys that is a number.
        if (value != n->value && (value != 0 || key->type == GGUF_BOOL))
            return gguf_fail_key(g, key, INST_ENOTSUP, msg, "value %g is not supported", value);
    }
    return 0;
}

static int read_rope_scaling(const struct gguf *g, const struct architecture *arch,
                             struct model_config *config, struct inst_msg *msg)
{
    static const char *const names[] = {"none", "linear", "yarn", "longrope"}; // enum rope_scaling
    struct key_name name;
    struct gguf_string type = {"none", 4};
    struct gguf_print print;
    float legacy = 0;
    config->rope_factor = 0;
    config->rope_attention = 1;
    config->rope_original = config->context;
    config->rope_fast = 32;
    config->rope_slow = 1;
    const struct {
        const char *key;
        float min, max, *value;
    } numbers[] = {
        {"rope.scale_linear", 0, 1e6f, &legacy},
        {"rope.scaling.factor", 0, 1e6f, &config->rope_factor},
        {"rope.scaling.attn_factor", 1e-3f, 1e3f, &config->rope_attention},
        {"rope.scaling.yarn_beta_fast", 1e-3f, 1e6f, &config->rope_fast},
        {"rope.scaling.yarn_beta_slow", 1e-3f, 1e6f, &config->rope_slow},
    };
    int rc = gguf_get_u32(g, arch_key(arch, "rope.scaling.original_context_length", &name),
                          GGUF_OPTIONAL, 1, CONTEXT_MAX, &config->rope_original, msg);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers && !rc; i++)
        rc = gguf_get_f32(g, arch_key(arch, numbers[i].key, &name), GGUF_OPTIONAL, numbers[i].min,
                          numbers[i].max, numbers[i].value, msg);
    if (!rc)
        rc = gguf_get_string(g, arch_key(arch, "rope.scaling.type", &name), GGUF_OPTIONAL, &type,
                             msg);
    if (rc)
        return rc;
    uint32_t kind = 0;
    while (kind < sizeof names / sizeof *names && !gguf_string_is(type, names[kind]))
        kind++;
    if (kind == sizeof names / sizeof *names ||
        (kind == ROPE_LONGROPE && !(arch->has & HAS_LONGROPE)))
        return gguf_fail_key(g, gguf_find(g, name.text), INST_ENOTSUP, msg,
                             "rope scaling '%s' is not supported", gguf_printable(type, &print));
    config->rope_scaling = kind;
    if (config->rope_factor == 0) // 0 stands for "not set"
        config->rope_factor = legacy == 0 ? 1 : legacy;
    // A factor without a type is linear.
    if (kind == ROPE_PLAIN && config->rope_factor != 1 && !gguf_find(g, name.text))
        config->rope_scaling = ROPE_LINEAR;
    return 0;
}

static int read_rope(const struct gguf *g, const struct architecture *arch,
                     struct model_config *config, struct inst_msg *msg)
{
    struct key_name name;
    if (arch->learned_positions)
        return 0;
    config->rope_halves = arch->rope_halves;
    config->rope_base = 10000;
    int rc = read_rope_scaling(g, arch, config, msg);
    if (!rc)
        rc = gguf_get_f32(g, arch_key(arch, "rope.freq_base", &name), GGUF_OPTIONAL, 1, 1e15f,
                          &config->rope_base, msg);
    config->rope_window_base = config->window ? arch->rope_window_base : 0;
    if (!rc && config->rope_window_base > 0)
        rc = gguf_get_f32(g, arch_key(arch, "rope.freq_base_swa", &name), GGUF_OPTIONAL, 1, 1e15f,
                          &config->rope_window_base, msg);
    config->rope_dims = config->head_dim;
    if (!rc)
        rc = gguf_get_u32(g, arch_key(arch, "rope.dimension_count", &name), GGUF_OPTIONAL, 2,
                          config->head_dim, &config->rope_dims, msg);
    if (!rc && config->rope_dims % 2)
        rc = gguf_fail_key(g, gguf_find(g, name.text), INST_EFORMAT, msg, "%" PRIu32 " is odd",
                           config->rope_dims);
    return rc;
}

// Scales, caps, windows and norms: what changes numbers but no shape.
static int read_scales(const struct gguf *g, const struct architecture *arch,
                       struct model_config *config, struct inst_msg *msg)
{
    struct key_name name;
    int rc = gguf_get_f32(g,
                          arch_key(arch,
                                   arch->layer_norm ? "attention.layer_norm_epsilon"
                                                    : "attention.layer_norm_rms_epsilon",
                                   &name),
                          GGUF_REQUIRED, 1e-20f, 1, &config->norm_eps, msg);
    config->activation = arch->activation;
    config->embedding_scale = arch->scaled_embeddings ? sqrtf((float)config->width) : 1;
    bool wide = arch->wide_layers && config->layers == arch->wide_layers;
    config->score_scale =
        1 / sqrtf((float)(wide ? config->width / config->heads : config->head_dim));
    if (!rc && arch->has & HAS_SOFTCAP)
        rc = gguf_get_f32(g, arch_key(arch, "attn_logit_softcapping", &name), GGUF_OPTIONAL, 0,
                          1e6f, &config->score_softcap, msg);
    if (!rc && arch->has & HAS_SOFTCAP)
        rc = gguf_get_f32(g, arch_key(arch, "final_logit_softcapping", &name), GGUF_OPTIONAL, 0,
                          1e6f, &config->logit_softcap, msg);
    config->window = arch->window;
    config->window_period = arch->window_period;
    if (!rc && arch->has & HAS_WINDOW)
        rc = gguf_get_u32(g, arch_key(arch, "attention.sliding_window", &name), GGUF_OPTIONAL, 0,
                          UINT32_MAX, &config->window, msg);
    if (!rc && arch->window_period)
        rc = gguf_get_u32(g, arch_key(arch, "attention.sliding_window_pattern", &name),
                          GGUF_OPTIONAL, 0, LAYERS_MAX, &config->window_period, msg);
    return rc;
}

static int read_heads(const struct gguf *g, const struct architecture *arch,
                      struct model_config *config, struct inst_msg *msg)
{
    struct key_name name;
    uint32_t key_length, value_length;
    int rc = gguf_get_u32(g, arch_key(arch, "attention.head_count", &name), GGUF_REQUIRED, 1,
                          HEADS_MAX, &config->heads, msg);
    if (rc)
        return rc;
    config->kv_heads = config->heads;
    rc = gguf_get_u32(g, arch_key(arch, "attention.head_count_kv", &name), GGUF_OPTIONAL, 1,
                      config->heads, &config->kv_heads, msg);
    if (!rc && config->heads % config->kv_heads)
        rc = gguf_fail_key(g, gguf_find(g, name.text), INST_EFORMAT, msg,
                           "%" PRIu32 " KV heads do not divide %" PRIu32 " heads", config->kv_heads,
                           config->heads);
    if (rc)
        return rc;
    key_length = config->width / config->heads;
    if (!gguf_find(g, arch_key(arch, "attention.key_length", &name)) &&
        config->width % config->heads)
        return gguf_fail_key(
            g, gguf_find(g, arch_key(arch, "attention.head_count", &name)), INST_EFORMAT, msg,
            "%" PRIu32 " heads do not divide a width of %" PRIu32, config->heads, config->width);
    rc = gguf_get_u32(g, arch_key(arch, "attention.key_length", &name), GGUF_OPTIONAL, 2,
                      KERNEL_HEAD_DIM_MAX, &key_length, msg);
    if (rc)
        return rc;
    if (key_length < 2 || key_length > KERNEL_HEAD_DIM_MAX || key_length % 2)
        return inst_fail(msg, INST_ENOTSUP,
                         "%s: a head_dim of %" PRIu32 " is not supported (even, 2 to %d)",
                         gguf_name(g), key_length, KERNEL_HEAD_DIM_MAX);
    value_length = key_length;
    rc = gguf_get_u32(g, arch_key(arch, "attention.value_length", &name), GGUF_OPTIONAL, 1,
                      UINT32_MAX, &value_length, msg);
    if (!rc && value_length != key_length)
        rc = gguf_fail_key(g, gguf_find(g, name.text), INST_ENOTSUP, msg,
                           "values of %" PRIu32 " and keys of %" PRIu32
                           " elements: only equal lengths are supported",
                           value_length, key_length);
    config->head_dim = key_length;
    return rc;
}

// The embedding's rows are the vocabulary; a tokenizer in the file must have as many tokens.
static int read_vocab(const struct gguf *g, const struct architecture *arch,
                      struct model_config *config, struct inst_msg *msg)
{
    const struct gguf_key *tokens;
    const struct gguf_tensor *embd = gguf_tensor(g, "token_embd.weight");
    struct key_name name;
    uint64_t vocab = 0;
    int rc = gguf_get_array(g, "tokenizer.ggml.tokens", GGUF_OPTIONAL, GGUF_STRING, &tokens, msg);
    if (rc)
        return rc;
    if (embd)
        vocab = embd->dims[1];
    else if (tokens)
        vocab = tokens->count;
    else
        rc = gguf_get_u64(g, arch_key(arch, "vocab_size", &name), GGUF_REQUIRED, 1, VOCAB_MAX,
                          &vocab, msg);
    if (!rc && embd && (vocab == 0 || vocab > VOCAB_MAX))
        rc = gguf_fail_tensor(g, embd, INST_EFORMAT, msg, "a vocabulary of %" PRIu64 " (1 to %d)",
                              vocab, VOCAB_MAX);
    if (!rc && tokens && (tokens->count != vocab || vocab > VOCAB_MAX))
        rc = gguf_fail_key(g, tokens, INST_EFORMAT, msg,
                           "%" PRIu64 " tokens, but token_embd.weight has %" PRIu64 " rows",
                           tokens->count, vocab);
    config->vocab = (uint32_t)vocab;
    return rc;
}

int model_config_read(const struct gguf *g, struct model_config *config, struct inst_msg *msg)
{
    const struct architecture *arch;
    struct key_name name;
    memset(config, 0, sizeof *config);
    int rc = read_architecture(g, &arch, msg);
    if (rc)
        return rc;
    config->architecture = arch->name;
    rc = check_neutral(g, arch, msg);
    const struct {
        const char *key;
        uint32_t max, *value;
    } counts[] = {
        {"block_count", LAYERS_MAX, &config->layers},
        {"embedding_length", WIDTH_MAX, &config->width},
        {"feed_forward_length", FFN_MAX, &config->ffn},
        {"context_length", CONTEXT_MAX, &config->context},
    };
    for (size_t i = 0; i < sizeof counts / sizeof *counts && !rc; i++)
        rc = gguf_get_u32(g, arch_key(arch, counts[i].key, &name), GGUF_REQUIRED, 1, counts[i].max,
                          counts[i].value, msg);
    if (!rc)
        rc = read_heads(g, arch, config, msg);
    if (!rc)
        rc = read_scales(g, arch, config, msg);
    if (!rc)
        rc = read_rope(g, arch, config, msg);
    if (!rc)
        rc = read_vocab(g, arch, config, msg);
    config->tied = !gguf_tensor(g, "output.weight");
    return rc;
}

static uint64_t dimension(const struct model_config *c, enum dimension d)
{
    uint64_t q = (uint64_t)c->heads * c->head_dim, kv = (uint64_t)c->kv_heads * c->head_dim;
    switch (d) {
    case DIM_ONE:
        return 1;
    case DIM_WIDTH:
        return c->width;
    case DIM_Q:
        return q;
    case DIM_KV:
        return kv;
    case DIM_Q_K:
        return q + kv;
    case DIM_Q_K_V:
        return q + 2 * kv;
    case DIM_HEAD:
        return c->head_dim;
    case DIM_FFN:
        return c->ffn;
    case DIM_GATE_UP:
        return 2 * (uint64_t)c->ffn;
    case DIM_VOCAB:
        return c->vocab;
    case DIM_POSITIONS:
        return (uint64_t)c->context + POSITION_OFFSET;
    case DIM_ROPE_HALF:
        return c->rope_dims / 2;
    }
    return 0;
}

struct binder {
    const struct gguf *gguf;
    const struct model_config *config;
    uint8_t *bound; // one per tensor of the file
    uint64_t bytes;
    struct inst_msg *msg;
};

static int check_tensor(struct binder *b, const struct tensor_rule *rule,
                        const struct gguf_tensor *t)
{
    uint64_t cols = dimension(b->config, rule->cols);
    uint64_t rows = dimension(b->config, rule->whole ? rule->whole : rule->rows);
    const struct tensor_type_info *type = tensor_type_info(t->type);
    if (t->dims[0] != cols || t->dims[1] != rows || t->dims[2] != 1 || t->dims[3] != 1)
        return gguf_fail_tensor(b->gguf, t, INST_EFORMAT, b->msg,
                                "shape %" PRIu64 " x %" PRIu64 " x %" PRIu64 " x %" PRIu64
                                " where %" PRIu64 " x %" PRIu64 " is expected",
                                t->dims[0], t->dims[1], t->dims[2], t->dims[3], cols, rows);
    if (rule->vector ? t->type != TENSOR_F32 : !type->supported)
        return gguf_fail_tensor(b->gguf, t, INST_ENOTSUP, b->msg, "type %s is not supported here",
                                type->name);
    return 0;
}

static int bind_tensor(struct binder *b, const struct tensor_rule *rule, const char *name,
                       void *place)
{
    const struct gguf_tensor *t = gguf_tensor(b->gguf, name);
    if (!t)
        return rule->optional ? 0
                              : inst_fail(b->msg, INST_EFORMAT, "%s: tensor '%s' is missing",
                                          gguf_name(b->gguf), name);
    int rc = check_tensor(b, rule, t);
    if (rc)
        return rc;
    uint8_t *bound = &b->bound[t - gguf_tensor_at(b->gguf, 0)];
    b->bytes += *bound ? 0 : t->bytes; // parts share it
    *bound = 1;
    if (rule->vector) {
        *(const float **)place = t->data;
        return 0;
    }
    uint64_t row_bytes = t->bytes / t->dims[1];
    uint64_t start = rule->start ? dimension(b->config, rule->start) : 0;
    *(struct weight *)place = (struct weight){.data = (const uint8_t *)t->data + start * row_bytes,
                                              .rows = dimension(b->config, rule->rows),
                                              .cols = t->dims[0],
                                              .row_bytes = row_bytes,
                                              .type = t->type};
    return 0;
}

// A divisor of 0 or NaN would spread over the whole context.
static int check_rope_freqs(struct binder *b, const float *freqs, const char *tensor)
{
    for (uint32_t i = 0; freqs && i < b->config->rope_dims / 2; i++)
        if (!(freqs[i] > 0 && freqs[i] <= 1e30f))
            return gguf_fail_tensor(b->gguf, gguf_tensor(b->gguf, tensor), INST_EFORMAT, b->msg,
                                    "element %" PRIu32 " (%g) is not a positive number", i,
                                    (double)freqs[i]);
    return 0;
}

static int check_rope(struct binder *b, const struct model_weights *w)
{
    int rc = check_rope_freqs(b, w->rope_freqs, "rope_freqs.weight");
    if (!rc)
        rc = check_rope_freqs(b, w->rope_long, "rope_factors_long.weight");
    if (!rc)
        rc = check_rope_freqs(b, w->rope_short, "rope_factors_short.weight");
    bool factors = w->rope_long && w->rope_short;
    if (!rc && (b->config->rope_scaling == ROPE_LONGROPE || w->rope_long || w->rope_short) &&
        !factors)
        rc = inst_fail(b->msg, INST_EFORMAT,
                       "%s: longrope needs both rope_factors_long.weight and "
                       "rope_factors_short.weight",
                       gguf_name(b->gguf));
    return rc;
}

static int check_variant(const struct gguf *g, struct inst_msg *msg)
{
    for (size_t i = 0; i < sizeof refused_tensors / sizeof *refused_tensors; i++) {
        const struct gguf_tensor *t = gguf_tensor(g, refused_tensors[i].tensor);
        if (t)
            return gguf_fail_tensor(g, t, INST_ENOTSUP, msg, "a model with %s is not supported",
                                    refused_tensors[i].variant);
    }
    return 0;
}

static int bind_all(struct binder *b, const struct architecture *arch, struct model_weights *w)
{
    char name[80];
    int rc = check_variant(b->gguf, b->msg);
    for (const struct tensor_rule *r = arch->global; r->name && !rc; r++)
        rc = bind_tensor(b, r, r->name, (char *)w + r->place);
    if (!rc)
        rc = check_rope(b, w);
    for (uint32_t i = 0; i < b->config->layers && !rc; i++)
        for (const struct tensor_rule *r = arch->layer; r->name && !rc; r++) {
            snprintf(name, sizeof name, "blk.%" PRIu32 ".%s", i, r->name);
            rc = bind_tensor(b, r, name, (char *)&w->layer[i] + r->place);
        }
    for (uint64_t i = 0; i < gguf_tensor_count(b->gguf) && !rc; i++)
        if (!b->bound[i])
            rc = gguf_fail_tensor(b->gguf, gguf_tensor_at(b->gguf, i), INST_ENOTSUP, b->msg,
                                  "architecture %s does not use such a tensor; the result would "
                                  "be wrong without it",
                                  arch->name);
    return rc;
}

int model_weights_bind(const struct gguf *g, const struct model_config *config,
                       struct budget *budget, struct model_weights *weights, struct inst_msg *msg)
{
    struct binder b = {g, config, NULL, 0, msg};
    const struct architecture *arch =
        architecture_find((struct gguf_string){config->architecture, strlen(config->architecture)});
    memset(weights, 0, sizeof *weights);
    weights->budget = budget;
    if (!arch)
        return inst_fail(msg, INST_EINVAL, "unknown architecture");
    if (!gguf_tensor_count(g))
        return inst_fail(msg, INST_EFORMAT, "%s: no tensors in it (a vocabulary only)",
                         gguf_name(g));
    b.bound = budget_alloc(budget, gguf_tensor_count(g), 1, "the model's tensors", msg);
    weights->layer =
        budget_alloc(budget, config->layers, sizeof *weights->layer, "the model's layers", msg);
    int rc = b.bound && weights->layer ? bind_all(&b, arch, weights) : INST_ENOMEM;
    budget_free(budget, b.bound);
    weights->bytes = b.bytes;
    if (config->tied)
        weights->output = weights->token_embd;
    if (rc)
        model_weights_free(weights);
    return rc;
}

void model_weights_free(struct model_weights *weights)
{
    if (weights->layer)
        budget_free(weights->budget, weights->layer);
    memset(weights, 0, sizeof *weights);
}
