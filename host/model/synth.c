// SPDX-License-Identifier: Apache-2.0
#include "host/model/synth.h"

#include "base/checked.h"
#include "base/le.h"
#include "host/model/gguf_write.h"
#include "kernels/kernels.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    CHUNK = 4096, // elements made at a time; a multiple of every block size
    FILLER_DIGITS = 9,
};

static uint64_t splitmix64(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

// About normal with mean 0 and deviation 1: the sum of the four 16-bit parts of one random word.
static float random_normal(uint64_t *state)
{
    uint64_t r = splitmix64(state);
    int32_t sum = (int32_t)((r & 0xffff) + (r >> 16 & 0xffff) + (r >> 32 & 0xffff) + (r >> 48));
    return (float)(sum - 2 * 65535) * (1.0f / 37837.2f); // sqrt(4 / 12) * 65536
}

// 1 / sqrt(n) by Newton's iteration in doubles: the same bits whatever the C library.
static float inverse_sqrt(uint32_t n)
{
    double root = 1;
    for (int i = 0; i < 64; i++)
        root = 0.5 * (root + (double)n / root);
    return (float)(1 / root);
}

static uint16_t to_bf16(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static void put_q8_0(uint8_t *out, const float *x)
{
    float largest = 0;
    for (int i = 0; i < 32; i++)
        largest = largest > (x[i] < 0 ? -x[i] : x[i]) ? largest : (x[i] < 0 ? -x[i] : x[i]);
    uint16_t scale = kernel_f32_to_f16(largest / 127);
    float d = kernel_f16_to_f32(scale);
    le_put16(out, scale);
    for (int i = 0; i < 32; i++) {
        float q = d > 0 ? x[i] / d : 0;
        q = q > 127 ? 127 : q < -127 ? -127 : q;
        out[2 + i] = (uint8_t)(int8_t)(q + (q < 0 ? -0.5f : 0.5f));
    }
}

// Stored form of n elements; returns its bytes.
static uint64_t convert(uint32_t type, const float *x, uint64_t n, uint8_t *out)
{
    switch (type) {
    case TENSOR_F16:
        for (uint64_t i = 0; i < n; i++)
            le_put16(out + 2 * i, kernel_f32_to_f16(x[i]));
        return 2 * n;
    case TENSOR_BF16:
        for (uint64_t i = 0; i < n; i++)
            le_put16(out + 2 * i, to_bf16(x[i]));
        return 2 * n;
    case TENSOR_Q8_0:
        for (uint64_t i = 0; i < n; i += 32)
            put_q8_0(out + i / 32 * 34, x + i);
        return n / 32 * 34;
    default:
        memcpy(out, x, n * sizeof *x);
        return n * sizeof *x;
    }
}

// Spread of the values of block types when all of a block but its fp16 scale d (and minimum) is
// random bytes: with d = 1 and the minimum `minimum` times d, the deviation is `deviation` and the
// mean about 0. So every code and every scale inside a block is met.
static const struct block_spread {
    uint32_t type;
    float deviation, minimum;
} block_spreads[] = {
    {TENSOR_Q4_0, 4.61f, 0},      {TENSOR_Q4_1, 4.61f, -7.5f}, {TENSOR_Q5_0, 9.23f, 0},
    {TENSOR_Q5_1, 9.23f, -15.5f}, {TENSOR_IQ4_NL, 67.2f, 0},   {TENSOR_Q2_K, 13.85f, 1.5f},
    {TENSOR_Q3_K, 43.4f, 0},      {TENSOR_Q4_K, 257.5f, 7.5f}, {TENSOR_Q5_K, 527.3f, 15.5f},
    {TENSOR_Q6_K, 1364.8f, 0},
};

static const struct block_spread *block_spread(uint32_t type)
{
    for (size_t i = 0; i < sizeof block_spreads / sizeof *block_spreads; i++)
        if (block_spreads[i].type == type)
            return &block_spreads[i];
    return NULL;
}

// n elements as random blocks whose values have about this deviation; returns their bytes.
static uint64_t random_blocks(const struct block_spread *spread, float deviation, uint64_t *state,
                              uint64_t n, uint8_t *out)
{
    const struct tensor_type_info *info = tensor_type_info(spread->type);
    uint64_t bytes = n / info->block_elements * info->block_bytes;
    for (uint64_t i = 0; i < bytes; i++)
        out[i] = (uint8_t)(splitmix64(state) >> 56);
    for (uint64_t at = 0; at < bytes; at += info->block_bytes) {
        // 0.75 to 1.25 times the scale that gives the deviation.
        float part = (float)(splitmix64(state) >> 40) * (0.5f / 16777216.0f) + 0.75f;
        uint16_t d = kernel_f32_to_f16(deviation * part / spread->deviation);
        le_put16(out + at + info->scale_at, d);
        if (info->min_at != info->scale_at)
            le_put16(out + at + info->min_at,
                     kernel_f32_to_f16(kernel_f16_to_f32(d) * spread->minimum));
    }
    return bytes;
}

// The tensors in the order of the file. Called twice: once for the entries, once for the data.
struct synth {
    const struct synth_options *o;
    struct gguf_writer *w;
    bool data;
    uint64_t index; // of the tensor; each has its own random stream
    float values[CHUNK];
    uint8_t raw[CHUNK * sizeof(float)]; // the values as stored
};

static void put_tensor(struct synth *s, const char *name, uint32_t type, uint32_t n_dims,
                       uint64_t cols, uint64_t rows, float mean, float deviation)
{
    uint64_t dims[2] = {cols, rows}, total = cols * rows;
    uint64_t state = s->o->seed * 0xd1342543de82ef95u + ++s->index * 0xaef17502108ef2d9u;
    if (!s->data) {
        gguf_writer_tensor(s->w, name, type, n_dims, dims);
        return;
    }
    for (uint64_t done = 0; done < total; done += CHUNK) {
        uint64_t n = min_u64(CHUNK, total - done);
        if (block_spread(type)) {
            gguf_writer_data(s->w, s->raw,
                             random_blocks(block_spread(type), deviation, &state, n, s->raw));
            continue;
        }
        for (uint64_t i = 0; i < n; i++)
            s->values[i] = mean + deviation * random_normal(&state);
        gguf_writer_data(s->w, s->raw, convert(type, s->values, n, s->raw));
    }
}

static void put_vector(struct synth *s, const char *name, uint64_t n)
{
    put_tensor(s, name, TENSOR_F32, 1, n, 1, 1, 0.05f);
}

static void put_matrix(struct synth *s, const char *name, uint32_t cols, uint64_t rows)
{
    put_tensor(s, name, s->o->type, 2, cols, rows, 0, inverse_sqrt(cols));
}

// Divisors as Llama 3 has them: 1 for fast rotations, growing to `most` for the slow ones.
static void put_rope_freqs(struct synth *s, const char *name, float most)
{
    uint64_t n = s->o->head_dim / 2;
    s->index++;
    if (!s->data) {
        gguf_writer_tensor(s->w, name, TENSOR_F32, 1, &n);
        return;
    }
    for (uint64_t i = 0; i < n; i++) {
        float divisor = i < n / 2 ? 1 : 1 + (most - 1) * (float)(i - n / 2) / (float)(n - n / 2);
        gguf_writer_data(s->w, &divisor, sizeof divisor);
    }
}

// What a model of this architecture has. Every tensor draws from a stream of its own number, so the
// order matters: what is not there must not count.
enum {
    PLAIN_QKV = 1,
    FUSED = 2, // q, k, v in one and gate, up in one
    GATE = 4,
    QKV_BIAS = 8,
    ALL_BIASES = 16, // of norms and the other products
    QK_NORM = 32,
    POST_NORM = 64,
    POSITIONS = 128,
};

static const struct synth_architecture {
    const char *name;
    unsigned has;
} architectures[] = {
    {"llama", PLAIN_QKV | GATE},
    {"qwen2", PLAIN_QKV | GATE | QKV_BIAS},
    {"qwen3", PLAIN_QKV | GATE | QK_NORM},
    {"phi3", FUSED},
    {"gemma2", PLAIN_QKV | GATE | POST_NORM},
    {"gemma3", PLAIN_QKV | GATE | QK_NORM | POST_NORM},
    {"opt", PLAIN_QKV | QKV_BIAS | ALL_BIASES | POSITIONS},
};

static const struct synth_architecture *find_architecture(const struct synth_options *o)
{
    for (size_t i = 0; i < sizeof architectures / sizeof *architectures; i++)
        if (!strcmp(architectures[i].name, o->architecture))
            return &architectures[i];
    return NULL;
}

static void put_layer(struct synth *s, uint32_t layer, unsigned has)
{
    const struct synth_options *o = s->o;
    uint32_t q = o->heads * o->head_dim, kv = o->kv_heads * o->head_dim;
    const struct {
        const char *name;
        uint32_t cols, rows; // cols 0: a vector
        unsigned needs;      // 0 = always there
    } parts[] = {
        {"attn_norm.weight", 0, o->width, 0},
        {"attn_norm.bias", 0, o->width, ALL_BIASES},
        {"attn_qkv.weight", o->width, q + 2 * kv, FUSED},
        {"attn_q.weight", o->width, q, PLAIN_QKV},
        {"attn_k.weight", o->width, kv, PLAIN_QKV},
        {"attn_v.weight", o->width, kv, PLAIN_QKV},
        {"attn_q.bias", 0, q, QKV_BIAS},
        {"attn_k.bias", 0, kv, QKV_BIAS},
        {"attn_v.bias", 0, kv, QKV_BIAS},
        {"attn_q_norm.weight", 0, o->head_dim, QK_NORM},
        {"attn_k_norm.weight", 0, o->head_dim, QK_NORM},
        {"attn_output.weight", q, o->width, 0},
        {"attn_output.bias", 0, o->width, ALL_BIASES},
        {"post_attention_norm.weight", 0, o->width, POST_NORM},
        {"ffn_norm.weight", 0, o->width, 0},
        {"ffn_norm.bias", 0, o->width, ALL_BIASES},
        {"ffn_gate.weight", o->width, o->ffn, GATE},
        {"ffn_up.weight", o->width, has & FUSED ? 2 * o->ffn : o->ffn, 0},
        {"ffn_up.bias", 0, o->ffn, ALL_BIASES},
        {"ffn_down.weight", o->ffn, o->width, 0},
        {"ffn_down.bias", 0, o->width, ALL_BIASES},
        {"post_ffw_norm.weight", 0, o->width, POST_NORM},
    };
    for (size_t p = 0; p < sizeof parts / sizeof *parts; p++) {
        char name[64];
        if (parts[p].needs && !(parts[p].needs & has))
            continue;
        snprintf(name, sizeof name, "blk.%" PRIu32 ".%s", layer, parts[p].name);
        if (parts[p].cols)
            put_matrix(s, name, parts[p].cols, parts[p].rows);
        else if (strstr(name, ".bias"))
            put_tensor(s, name, TENSOR_F32, 1, parts[p].rows, 1, 0, 0.3f);
        else
            put_vector(s, name, parts[p].rows);
    }
}

static void put_tensors(struct synth *s)
{
    const struct synth_options *o = s->o;
    unsigned has = find_architecture(o)->has;
    s->index = 0;
    put_matrix(s, "token_embd.weight", o->width, o->vocab);
    if (has & POSITIONS)
        put_matrix(s, "position_embd.weight", o->width, o->context + 2);
    if (o->rope_freqs)
        put_rope_freqs(s, "rope_freqs.weight", 8);
    if (has & FUSED && o->rope_original) {
        put_rope_freqs(s, "rope_factors_long.weight", 16);
        put_rope_freqs(s, "rope_factors_short.weight", 2);
    }
    for (uint32_t i = 0; i < o->layers; i++)
        put_layer(s, i, has);
    put_vector(s, "output_norm.weight", o->width);
    if (has & ALL_BIASES)
        put_tensor(s, "output_norm.bias", TENSOR_F32, 1, o->width, 1, 0, 0.3f);
    if (!o->tied)
        put_matrix(s, "output.weight", o->width, o->vocab);
}

// Token texts beyond the bytes: numbers in base four whose digits have no width on a screen. No two
// digits together are a token, so no text ever merges into one.
static void put_filler(struct gguf_writer *w, uint32_t id)
{
    static const char digits[4][4] = {"\xe2\x80\x8b", "\xe2\x80\x8c", "\xe2\x80\x8d",
                                      "\xe2\x81\xa0"};
    char text[3 * FILLER_DIGITS];
    for (int i = 0; i < FILLER_DIGITS; i++, id /= 4)
        memcpy(text + 3 * i, digits[id % 4], 3);
    gguf_writer_element(w, text, sizeof text);
}

static int put_vocabulary(struct gguf_writer *w, uint32_t vocab, struct inst_msg *msg)
{
    enum { NORMAL = 1, UNKNOWN = 2, CONTROL = 3, BYTE = 6 };
    char name[16];
    float *scores = calloc(vocab, sizeof *scores);
    int32_t *types = calloc(vocab, sizeof *types);
    if (!scores || !types) {
        free(scores);
        free(types);
        return inst_fail(msg, INST_ENOMEM, "no memory");
    }
    gguf_writer_string(w, "tokenizer.ggml.model", "llama");
    gguf_writer_strings(w, "tokenizer.ggml.tokens", vocab);
    for (uint32_t id = 0; id < vocab; id++) {
        types[id] = id == 0 ? UNKNOWN : id < SYNTH_BYTE_BASE ? CONTROL : NORMAL;
        if (id >= SYNTH_BYTE_BASE && id < SYNTH_BYTE_BASE + 256)
            types[id] = BYTE;
        if (id >= SYNTH_VOCAB_MIN) {
            put_filler(w, id);
            continue;
        }
        snprintf(name, sizeof name, "<0x%02X>", (id - SYNTH_BYTE_BASE) & 0xff);
        const char *text = id == 0             ? "<unk>"
                           : id == 1           ? "<s>"
                           : id == 2           ? "</s>"
                           : types[id] == BYTE ? name
                                               : "\xe2\x96\x81";
        gguf_writer_element(w, text, strlen(text));
    }
    gguf_writer_array(w, "tokenizer.ggml.scores", GGUF_F32, vocab, scores);
    gguf_writer_array(w, "tokenizer.ggml.token_type", GGUF_I32, vocab, types);
    gguf_writer_u32(w, "tokenizer.ggml.unknown_token_id", 0);
    gguf_writer_u32(w, "tokenizer.ggml.bos_token_id", 1);
    gguf_writer_u32(w, "tokenizer.ggml.eos_token_id", 2);
    gguf_writer_bool(w, "tokenizer.ggml.add_bos_token", true);
    gguf_writer_bool(w, "tokenizer.ggml.add_eos_token", false);
    gguf_writer_bool(w, "tokenizer.ggml.add_space_prefix", false);
    free(scores);
    free(types);
    return 0;
}

static void put_u32(struct gguf_writer *w, const struct synth_options *o, const char *key,
                    uint32_t value)
{
    char name[96];
    snprintf(name, sizeof name, "%s.%s", o->architecture, key);
    gguf_writer_u32(w, name, value);
}

static void put_f32(struct gguf_writer *w, const struct synth_options *o, const char *key,
                    float value)
{
    char name[96];
    snprintf(name, sizeof name, "%s.%s", o->architecture, key);
    gguf_writer_f32(w, name, value);
}

static void put_keys(struct gguf_writer *w, const struct synth_options *o)
{
    unsigned has = find_architecture(o)->has;
    gguf_writer_string(w, "general.architecture", o->architecture);
    gguf_writer_string(w, "general.name", "synthetic");
    put_u32(w, o, "vocab_size", o->vocab);
    put_u32(w, o, "context_length", o->context);
    put_u32(w, o, "embedding_length", o->width);
    put_u32(w, o, "block_count", o->layers);
    put_u32(w, o, "feed_forward_length", o->ffn);
    put_u32(w, o, "attention.head_count", o->heads);
    put_u32(w, o, "attention.head_count_kv", o->kv_heads);
    put_u32(w, o, "attention.key_length", o->head_dim);
    put_u32(w, o, "attention.value_length", o->head_dim);
    if (has & POSITIONS) {
        put_f32(w, o, "attention.layer_norm_epsilon", 1e-5f);
        return;
    }
    put_f32(w, o, "attention.layer_norm_rms_epsilon", 1e-5f);
    put_u32(w, o, "rope.dimension_count", o->head_dim);
    put_f32(w, o, "rope.freq_base", o->rope_base);
    if (o->rope_scaling) {
        char name[96];
        snprintf(name, sizeof name, "%s.rope.scaling.type", o->architecture);
        gguf_writer_string(w, name, o->rope_scaling);
        put_f32(w, o, "rope.scaling.factor", o->rope_factor);
    }
    if (o->rope_original)
        put_u32(w, o, "rope.scaling.original_context_length", o->rope_original);
    if (o->rope_original && has & FUSED)
        put_f32(w, o, "rope.scaling.attn_factor", 1.19f);
    if (o->window)
        put_u32(w, o, "attention.sliding_window", o->window);
    if (!strcmp(o->architecture, "gemma2")) {
        put_f32(w, o, "attn_logit_softcapping", 1.5f); // small, so that it matters
        put_f32(w, o, "final_logit_softcapping", 2);
    }
}

static int check(const struct synth_options *o, struct inst_msg *msg)
{
    const struct tensor_type_info *type = tensor_type_info(o->type);
    if (!find_architecture(o))
        return inst_fail(msg, INST_EINVAL, "models of architecture '%s' cannot be made",
                         o->architecture);
    if (o->rope_scaling && strcmp(o->rope_scaling, "linear") && strcmp(o->rope_scaling, "yarn"))
        return inst_fail(msg, INST_EINVAL, "rope scaling '%s' is not linear or yarn",
                         o->rope_scaling);
    const struct {
        const char *name;
        uint32_t value, min, max;
    } ranges[] = {
        {"layers", o->layers, 1, 4096},
        {"width", o->width, 1, 1 << 20},
        {"heads", o->heads, 1, 1 << 14},
        {"KV heads", o->kv_heads, 1, o->heads},
        {"head_dim", o->head_dim, 2, KERNEL_HEAD_DIM_MAX},
        {"FFN size", o->ffn, 1, 1 << 24},
        {"vocabulary", o->vocab, SYNTH_VOCAB_MIN, 1 << 18},
        {"context", o->context, 1, 1 << 30},
    };
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++)
        if (ranges[i].value < ranges[i].min || ranges[i].value > ranges[i].max)
            return inst_fail(msg, INST_EINVAL,
                             "%s %" PRIu32 " is out of range (%" PRIu32 " to %" PRIu32 ")",
                             ranges[i].name, ranges[i].value, ranges[i].min, ranges[i].max);
    if (o->heads % o->kv_heads)
        return inst_fail(msg, INST_EINVAL, "%" PRIu32 " KV heads do not divide %" PRIu32 " heads",
                         o->kv_heads, o->heads);
    if (o->head_dim % 2)
        return inst_fail(msg, INST_EINVAL, "head_dim %" PRIu32 " is odd", o->head_dim);
    if (o->type != TENSOR_F32 && o->type != TENSOR_F16 && o->type != TENSOR_BF16 &&
        o->type != TENSOR_Q8_0 && !block_spread(o->type))
        return inst_fail(msg, INST_ENOTSUP, "models of type %s cannot be made",
                         type ? type->name : "unknown");
    uint32_t block = type->block_elements;
    if (o->width % block || o->ffn % block || o->heads * o->head_dim % block)
        return inst_fail(msg, INST_EINVAL,
                         "type %s needs width, FFN size and heads x head_dim in multiples of "
                         "%" PRIu32,
                         type->name, block);
    if (!(o->rope_base >= 1 && o->rope_base <= 1e15f))
        return inst_fail(msg, INST_EINVAL, "rope base %g is out of range", (double)o->rope_base);
    return 0;
}

void synth_defaults(struct synth_options *options)
{
    *options = (struct synth_options){
        .architecture = "llama",
        .layers = 2,
        .width = 256,
        .heads = 4,
        .kv_heads = 4,
        .head_dim = 64,
        .ffn = 512,
        .vocab = SYNTH_VOCAB_MIN,
        .context = 4096,
        .type = TENSOR_F16,
        .seed = 1,
        .rope_base = 10000,
    };
}

int synth_write(const struct synth_options *options, FILE *file, const char *name,
                struct inst_msg *msg)
{
    struct synth_options o = *options;
    if (!o.vocab)
        o.vocab = SYNTH_VOCAB_MIN;
    if (o.rope_base == 0)
        o.rope_base = 10000;
    if (!o.architecture)
        o.architecture = "llama";
    struct synth s = {.o = &o};
    int rc = check(&o, msg);
    if (!rc)
        rc = gguf_writer_open(&s.w, file, name, msg);
    if (rc)
        return rc;
    put_keys(s.w, &o);
    rc = put_vocabulary(s.w, o.vocab, msg);
    put_tensors(&s);
    s.data = true;
    if (!rc)
        put_tensors(&s);
    int closed = gguf_writer_close(s.w, msg);
    return rc ? rc : closed;
}
