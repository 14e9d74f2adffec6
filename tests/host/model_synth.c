// SPDX-License-Identifier: Apache-2.0
// Synthetic models: the same bytes everywhere, sane numbers, types that agree with each other, a
// vocabulary of bytes.
#include "host/model/config.h"
#include "host/model/tokenizer.h"
#include "tests/host/synth_to.h"
#include "tests/needs.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define PATH INST_BINARY_DIR "/model_synth_test"

struct opened {
    struct budget budget;
    struct gguf *gguf;
    struct model_config config;
    struct model_weights weights;
    struct tokenizer *tokenizer;
};

static struct opened *synth_open(const struct synth_options *o, const char *path)
{
    struct opened *m = calloc(1, sizeof *m);
    struct inst_msg msg = {{0}};
    unlink(path);
    budget_init(&m->budget, 16 << 20);
    if (synth_to(o, path, &msg) || gguf_open(&m->gguf, path, &m->budget, &msg) ||
        model_config_read(m->gguf, &m->config, &msg) ||
        model_weights_bind(m->gguf, &m->config, &m->budget, &m->weights, &msg) ||
        tokenizer_open(&m->tokenizer, m->gguf, &m->budget, &msg))
        fail_msg("%s", msg.text);
    return m;
}

static void synth_close(struct opened *m, const char *path)
{
    tokenizer_free(m->tokenizer);
    model_weights_free(&m->weights);
    gguf_close(m->gguf);
    assert_int_equal(m->budget.used, 0);
    free(m);
    unlink(path);
}

static uint64_t file_hash(const char *path)
{
    static char data[1 << 20];
    FILE *f = fopen(path, "rb");
    size_t n = fread(data, 1, sizeof data, f);
    assert_true(n > 0 && n < sizeof data);
    fclose(f);
    return XXH64(data, n, 0);
}

// The hashes were the same from gcc and clang, on x86-64 and on aarch64.
static void test_same_bytes(void **state)
{
    (void)state;
    const struct {
        uint32_t type;
        uint64_t seed, hash;
    } files[] = {
        {TENSOR_F32, 1, 0x1d10535e9d7d1044},
        {TENSOR_F16, 1, 0xf7187ae4f13309ec},
        {TENSOR_BF16, 1, 0xb1a68f4598aecdd4},
        {TENSOR_Q8_0, 7, 0x5c606dd630fe8401},
    };
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        struct synth_options o;
        struct inst_msg msg = {{0}};
        synth_defaults(&o);
        o.width = 64;
        o.heads = 2;
        o.kv_heads = 1;
        o.head_dim = 32;
        o.ffn = 96;
        o.type = files[i].type;
        o.seed = files[i].seed;
        o.rope_freqs = true;
        assert_int_equal(synth_to(&o, PATH, &msg), 0);
        if (file_hash(PATH) != files[i].hash)
            fail_msg("type %u: 0x%016" PRIx64, files[i].type, file_hash(PATH));
    }
    unlink(PATH);
}

static void statistics(const struct kernels *k, const struct weight *w, double *mean, double *dev)
{
    float *row = aligned_alloc(64, (w->cols * 4 + 63) / 64 * 64);
    double sum = 0, squares = 0, n = (double)w->rows * (double)w->cols;
    for (uint64_t r = 0; r < w->rows; r++) {
        k->weight_row(w, r, row);
        for (uint64_t c = 0; c < w->cols; c++) {
            sum += (double)row[c];
            squares += (double)row[c] * (double)row[c];
        }
    }
    free(row);
    *mean = sum / n;
    *dev = sqrt(squares / n - *mean * *mean);
}

static void test_numbers(void **state)
{
    (void)state;
    struct synth_options o;
    synth_defaults(&o);
    o.layers = 3;
    o.width = 192;
    o.heads = 6;
    o.kv_heads = 2;
    o.head_dim = 80;
    o.ffn = 320;
    o.context = 777;
    o.type = TENSOR_F32;
    o.rope_freqs = true;
    o.rope_base = 500000;
    struct opened *m = synth_open(&o, PATH);
    const struct model_config *c = &m->config;
    assert_string_equal(c->architecture, "llama");
    assert_int_equal(c->layers, 3);
    assert_int_equal(c->width, 192);
    assert_int_equal(c->heads, 6);
    assert_int_equal(c->kv_heads, 2);
    assert_int_equal(c->head_dim, 80);
    assert_int_equal(c->ffn, 320);
    assert_int_equal(c->vocab, SYNTH_VOCAB_MIN);
    assert_int_equal(c->context, 777);
    assert_int_equal(c->rope_dims, 80);
    assert_true(c->rope_base == 500000.0f && c->norm_eps == 1e-5f && !c->tied);
    assert_non_null(m->weights.rope_freqs);
    assert_true(m->weights.rope_freqs[0] == 1 && m->weights.rope_freqs[39] > 7);
    double mean, dev;
    const struct weight *matrices[] = {&m->weights.token_embd, &m->weights.output,
                                       &m->weights.layer[0].attn_q, &m->weights.layer[2].ffn_down};
    for (size_t i = 0; i < 4; i++) {
        statistics(&kernels_reference, matrices[i], &mean, &dev);
        double want = 1 / sqrt((double)matrices[i]->cols);
        assert_true(fabs(mean) < 0.03 * want && fabs(dev / want - 1) < 0.02);
    }
    // Different tensors are different numbers.
    assert_memory_not_equal(m->weights.layer[0].attn_k.data, m->weights.layer[1].attn_k.data, 64);
    assert_memory_not_equal(m->weights.layer[0].attn_k.data, m->weights.layer[0].attn_v.data, 64);
    for (int i = 0; i < 192; i++)
        assert_true(fabsf(m->weights.output_norm[i] - 1) < 0.2f);
    synth_close(m, PATH);
}

// Block types are random blocks: every code and every scale, values of the usual spread. The bytes
// were the same from gcc and clang, on x86-64 and on aarch64.
static void test_block_types(void **state)
{
    (void)state;
    const struct {
        uint32_t type;
        uint64_t hash;
    } files[] = {{TENSOR_Q4_0, 0xe5cc6fb45b38ec34},   {TENSOR_Q4_1, 0x274be48b88c6b297},
                 {TENSOR_Q5_0, 0x924ea9d5f412d45c},   {TENSOR_Q5_1, 0xc1f8d8cb16ceb176},
                 {TENSOR_IQ4_NL, 0x8b6cfc17ad9223c1}, {TENSOR_Q2_K, 0x36916d072da3b7a1},
                 {TENSOR_Q3_K, 0xb14fda8cfd90a701},   {TENSOR_Q4_K, 0xd596423788d169d4},
                 {TENSOR_Q5_K, 0xe7f6b2496824f35e},   {TENSOR_Q6_K, 0x64fcfca05c1f3f8d}};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        struct synth_options o;
        synth_defaults(&o);
        o.layers = 1;
        o.heads = o.kv_heads = 1;
        o.head_dim = 256;
        o.ffn = 256;
        o.type = files[i].type;
        struct opened *m = synth_open(&o, PATH);
        double mean, dev;
        statistics(&kernels_reference, &m->weights.token_embd, &mean, &dev);
        assert_true(fabs(mean) < 0.12 / 16 && fabs(dev * 16 - 1) < 0.06);
        uint64_t hash = file_hash(PATH);
        synth_close(m, PATH);
        if (hash != files[i].hash)
            fail_msg("type %u: 0x%016" PRIx64, files[i].type, hash);
    }
}

// The same seed in another type is the same numbers, rounded.
static void test_types_agree(void **state)
{
    (void)state;
    const struct {
        uint32_t type;
        double error; // relative to the row's largest value
    } types[] = {{TENSOR_F16, 1.0 / 2048}, {TENSOR_BF16, 1.0 / 256}, {TENSOR_Q8_0, 0.51 / 127}};
    struct synth_options o;
    synth_defaults(&o);
    o.type = TENSOR_F32;
    struct opened *exact = synth_open(&o, PATH);
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        o.type = types[i].type;
        struct opened *m = synth_open(&o, PATH ".other");
        const struct weight *w = &m->weights.layer[1].ffn_down;
        const struct weight *e = &exact->weights.layer[1].ffn_down;
        float *row = aligned_alloc(64, w->cols * 4);
        assert_int_equal(w->cols, 512);
        for (uint64_t r = 0; r < w->rows; r++) {
            const float *want = (const float *)e->data + r * e->cols;
            kernels_reference.weight_row(w, r, row);
            for (uint64_t c = 0; c < w->cols; c++) {
                double largest = 0;
                uint64_t block = o.type == TENSOR_Q8_0 ? 32 : 1, first = c / block * block;
                for (uint64_t b = first; b < first + block; b++)
                    largest = fmax(largest, fabs((double)want[b]));
                assert_true(fabs((double)row[c] - (double)want[c]) <=
                            largest * types[i].error + 1e-7);
            }
        }
        free(row);
        synth_close(m, PATH ".other");
    }
    synth_close(exact, PATH);
}

static void test_vocabulary(void **state)
{
    (void)state;
    struct synth_options o;
    synth_defaults(&o);
    o.vocab = 1000;
    o.tied = true;
    struct opened *m = synth_open(&o, PATH);
    assert_true(m->config.tied);
    assert_ptr_equal(m->weights.output.data, m->weights.token_embd.data);
    assert_int_equal(m->weights.output.rows, 1000);
    assert_null(m->weights.rope_freqs);
    // One token a byte, the space too; every byte comes back.
    char text[256], back[256];
    for (int i = 0; i < 256; i++)
        text[i] = (char)i;
    struct token_list list = {.budget = &m->budget};
    assert_int_equal(
        tokenizer_encode(m->tokenizer, "a word", 6, TOKENIZER_ADD_SPECIAL, &list, NULL), 0);
    assert_int_equal(list.count, 7);
    assert_int_equal(list.ids[0], 1);
    assert_int_equal(list.ids[1], SYNTH_BYTE_BASE + 'a');
    list.count = 0;
    assert_int_equal(tokenizer_encode(m->tokenizer, text, 256, 0, &list, NULL), 0);
    assert_int_equal(list.count, 256);
    assert_int_equal(tokenizer_decode(m->tokenizer, list.ids, 256, 0, back, 256), 256);
    assert_memory_equal(back, text, 256);
    list.count = 0;
    // The text of a filler token stays bytes.
    struct gguf_string filler = tokenizer_text(m->tokenizer, 999);
    assert_int_equal(tokenizer_encode(m->tokenizer, filler.data, filler.bytes, 0, &list, NULL), 0);
    assert_int_equal(list.count, filler.bytes);
    token_list_free(&list);
    synth_close(m, PATH);
}

static void test_refusals(void **state)
{
    (void)state;
    struct synth_options o;
    struct inst_msg msg = {{0}};
    struct stat st;
#define REFUSED(change, code, line)                                                                \
    synth_defaults(&o);                                                                            \
    change;                                                                                        \
    msg.text[0] = 0;                                                                               \
    assert_int_equal(synth_to(&o, PATH, &msg), code);                                              \
    assert_string_equal(msg.text, line);                                                           \
    assert_true(!stat(PATH, &st) && !st.st_size)
    unlink(PATH);
    REFUSED(o.layers = 0, INST_EINVAL, "layers 0 is out of range (1 to 4096)");
    REFUSED(o.kv_heads = 3, INST_EINVAL, "3 KV heads do not divide 4 heads");
    REFUSED(o.kv_heads = 8, INST_EINVAL, "KV heads 8 is out of range (1 to 4)");
    REFUSED(o.head_dim = 63, INST_EINVAL, "head_dim 63 is odd");
    REFUSED(o.vocab = 100, INST_EINVAL, "vocabulary 100 is out of range (260 to 262144)");
    REFUSED(o.type = 23, INST_ENOTSUP, "models of type IQ4_XS cannot be made");
    REFUSED(o.type = 999, INST_ENOTSUP, "models of type unknown cannot be made");
    REFUSED((o.type = TENSOR_Q8_0, o.ffn = 100), INST_EINVAL,
            "type Q8_0 needs width, FFN size and heads x head_dim in multiples of 32");
    REFUSED(o.rope_base = NAN, INST_EINVAL, "rope base nan is out of range");
    unlink(PATH);
    // What is written first is corrected last.
    synth_defaults(&o);
    FILE *pipe = popen("cat >/dev/null", "w"), *more = fopen(PATH, "ab");
    msg.text[0] = 0;
    assert_int_equal(synth_write(&o, pipe, "pipe", &msg), INST_ENOTSUP);
    assert_int_equal(synth_write(&o, more, "more", NULL), INST_ENOTSUP);
    assert_string_equal(msg.text,
                        "pipe: a GGUF file can neither go through a pipe nor be appended");
    pclose(pipe);
    fclose(more);
    unlink(PATH);
}

// A disk that fills up: a clear code.
static void test_disk_full(void **state)
{
    (void)state;
    struct synth_options o;
    struct inst_msg msg = {{0}};
    synth_defaults(&o);
    if (access("/dev/full", W_OK))
        leave_out("a full disk: there is no /dev/full");
    assert_int_equal(synth_to(&o, "/dev/full", &msg), INST_ENOSPC);
    assert_non_null(strstr(msg.text, "No space left"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bytes),  cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_block_types), cmocka_unit_test(test_types_agree),
        cmocka_unit_test(test_vocabulary),  cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_disk_full),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
