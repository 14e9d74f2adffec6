// SPDX-License-Identifier: Apache-2.0
#include "cases.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint64_t cases_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

float cases_uniform(uint64_t *state)
{
    return (float)((int64_t)cases_random(state) >> 40) * 0x1p-23f;
}

struct runner {
    const struct kernels *k;
    case_fn *emit;
    void *arg;
    uint64_t state, hash;
    void *scratch;
};

static void hash_bits(struct runner *r, uint64_t bits)
{
    r->hash = (r->hash ^ bits) * 0x100000001b3u;
    r->hash ^= r->hash >> 29;
}

static void hash_floats(struct runner *r, const float *f, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, f + i, sizeof bits);
        hash_bits(r, f[i] != f[i] ? 0x7fc00000 : bits);
    }
}

static void finish(struct runner *r, const char *what, size_t a, size_t b, size_t c)
{
    char name[96];
    snprintf(name, sizeof name, "%s %zu %zu %zu", what, a, b, c);
    r->emit(r->arg, name, r->hash);
    r->hash = 0xcbf29ce484222325u;
}

// Kinds of input: 0 ordinary, 1 wide range with subnormal products, 2 with special values.
enum { KINDS = 3 };

static void fill(struct runner *r, float *out, size_t n, int kind)
{
    static const float hard[] = {0.0f,   -0.0f,   INFINITY,  -INFINITY, 1e-40f,   -1e-40f, 3e38f,
                                 -3e38f, 65504.f, 65520.f,   6e-8f,     5.9e-8f,  88.0f,   88.5f,
                                 -87.0f, -87.5f,  0x1p-149f, 104.0f,    -0x1p-24f};
    for (size_t i = 0; i < n; i++) {
        uint64_t u = cases_random(&r->state);
        out[i] = cases_uniform(&r->state);
        if (kind == 1) {
            uint32_t power = (uint32_t)(27 + u % 200) << 23; // 2^-100 to 2^99
            float scale;
            memcpy(&scale, &power, sizeof scale);
            out[i] *= scale;
        }
        if (kind == 2 && u % 5 == 0)
            out[i] = u >> 8 & 31 ? hard[(u >> 16) % (sizeof hard / sizeof hard[0])] : (float)NAN;
    }
}

static void fill_f16(struct runner *r, uint16_t *out, size_t n, int kind)
{
    for (size_t i = 0; i < n; i++) {
        uint64_t u = cases_random(&r->state);
        uint16_t ordinary = kernel_f32_to_f16(cases_uniform(&r->state));
        out[i] = kind == 2 && u % 7 == 0 ? (uint16_t)(u >> 20) : ordinary;
        if (kind == 1 && u % 3 == 0)
            out[i] &= 0x83ff; // subnormal
    }
}

struct weight cases_weight(uint64_t *state, uint32_t type, size_t rows, size_t cols, uint8_t *data)
{
    const struct tensor_type_info *info = tensor_type_info(type);
    struct weight w = {data, rows, cols, cols / info->block_elements * info->block_bytes, type};
    for (size_t i = 0; i < rows * w.row_bytes; i++)
        data[i] = (uint8_t)(cases_random(state) >> 24);
    for (size_t b = 0; b < rows * cols / info->block_elements; b++) {
        float f = cases_uniform(state);
        uint16_t h = kernel_f32_to_f16(f);
        uint32_t bits;
        memcpy(&bits, &f, sizeof bits);
        if (type == TENSOR_BF16)
            h = (uint16_t)(bits >> 16);
        if (type == TENSOR_F32)
            memcpy(data + b * 4, &f, sizeof f);
        else
            memcpy(data + b * info->block_bytes + info->scale_at, &h, sizeof h);
        if (info->min_at != info->scale_at) {
            h = kernel_f32_to_f16(cases_uniform(state));
            memcpy(data + b * info->block_bytes + info->min_at, &h, sizeof h);
        }
    }
    return w;
}

float *cases_rounded(const struct kernels *k, uint32_t type, const float *x, size_t *stride,
                     size_t cols, size_t n_rows)
{
    if (!kernel_rounds_x(type))
        return NULL;
    size_t floats = rounded_floats(cols);
    float *out = aligned_alloc(64, (n_rows * floats + 16) * sizeof *out);
    for (size_t i = 0; i < n_rows; i++)
        k->round_x(out + i * floats, x + i * *stride, cols);
    *stride = floats;
    return out;
}

static void run_conversions(struct runner *r)
{
    enum { ALL = 65536 };
    uint16_t *half = malloc(ALL * sizeof *half);
    float *wide = malloc(ALL * sizeof *wide);
    for (uint32_t i = 0; i < ALL; i++)
        half[i] = (uint16_t)i;
    r->k->f16_to_f32(wide, half, ALL);
    for (uint32_t i = 0; i < ALL; i++) { // NaN payloads count here
        uint32_t bits;
        memcpy(&bits, wide + i, sizeof bits);
        hash_bits(r, bits);
    }
    finish(r, "f16_to_f32 all", ALL, 0, 0);
    for (uint32_t round = 0; round < 4; round++) {
        for (uint32_t i = 0; i < ALL; i++) { // every upper half, lower halves around the ties
            uint32_t low = (uint32_t)(cases_random(&r->state) & 0xffff);
            uint32_t bits = i << 16 | (round == 0 ? 0 : round == 1 ? 0x1000 : low);
            memcpy(wide + i, &bits, sizeof bits);
        }
        r->k->f32_to_f16(half, wide, ALL);
        for (uint32_t i = 0; i < ALL; i++)
            hash_bits(r, half[i]);
        finish(r, "f32_to_f16", round, 0, 0);
    }
    for (size_t n = 0; n <= 67; n++) {
        memset(half, 0, ALL * sizeof *half);
        r->k->f32_to_f16(half, wide + 4096, n);
        memset(wide, 0, 80 * sizeof *wide);
        r->k->f16_to_f32(wide, half, n);
        hash_floats(r, wide, 80); // nothing is written beyond n
        hash_bits(r, half[n]);
        finish(r, "conversions", n, 0, 0);
    }
    free(half);
    free(wide);
}

enum { MAX = 1100 };

static void run_activations(struct runner *r, const float *a, const float *b, size_t n, int kind)
{
    float c[MAX] = {0};
    r->k->layer_norm(c, a, b, a, n, 1e-5f);
    r->k->layer_norm(c, c, b, a, n, 1e-5f);
    hash_floats(r, c, n + 3);
    finish(r, "layer_norm", n, (size_t)kind, 0);
    for (size_t i = 0; i < n; i++)
        c[i] = a[i] * (kind == 0 ? 9 : 1);
    r->k->gelu_mul(c, b, n);
    hash_floats(r, c, n + 3);
    finish(r, "gelu_mul", n, (size_t)kind, 0);
    for (size_t i = 0; i < n; i++)
        c[i] = a[i] * (kind == 0 ? 90 : 1);
    r->k->softcap(c, 30.0f, n);
    hash_floats(r, c, n + 3);
    finish(r, "softcap", n, (size_t)kind, 0);
    memcpy(c, a, n * sizeof a[0]);
    r->k->relu(c, n);
    r->k->scale(c, 0.3f, n);
    hash_floats(r, c, n + 3);
    finish(r, "relu and scale", n, (size_t)kind, 0);
}

static void run_vectors(struct runner *r, size_t n, int kind)
{
    static const float eps[] = {1e-5f, 1e-6f, 0};
    float a[MAX], b[MAX], c[MAX] = {0};
    fill(r, a, n, kind);
    fill(r, b, n, kind);
    float one = r->k->dot(a, b, n);
    hash_floats(r, &one, 1);
    finish(r, "dot", n, (size_t)kind, 0);
    one = r->k->sum(a, n);
    hash_floats(r, &one, 1);
    finish(r, "sum", n, (size_t)kind, 0);
    if (n) {
        one = r->k->max(a, n);
        hash_floats(r, &one, 1);
        finish(r, "max", n, (size_t)kind, 0);
        r->k->rms_norm(c, a, b, n, eps[kind]);
        hash_floats(r, c, n + 3);
        finish(r, "rms_norm", n, (size_t)kind, 0);
    }
    memcpy(c, a, n * sizeof a[0]);
    for (size_t i = 0; i < n && kind == 0; i++)
        c[i] *= 100;
    r->k->silu_mul(c, b, n);
    hash_floats(r, c, n + 3);
    finish(r, "silu_mul", n, (size_t)kind, 0);
    memcpy(c, a, n * sizeof a[0]);
    r->k->add(c, b, n);
    hash_floats(r, c, n + 3);
    finish(r, "add", n, (size_t)kind, 0);
    r->k->rope(c, b, n / 2 * 2);
    hash_floats(r, c, n + 3);
    finish(r, "rope", n, (size_t)kind, 0);
    r->k->rope_halves(c, b, n / 2 * 2);
    hash_floats(r, c, n + 3);
    finish(r, "rope_halves", n, (size_t)kind, 0);
    run_activations(r, a, b, n, kind);
}

static void run_merge(struct runner *r, size_t head_dim, int kind)
{
    _Alignas(64) float memory[3][16 + KERNEL_HEAD_DIM_MAX] = {{0}};
    struct partial *p[3];
    for (int i = 0; i < 3; i++) {
        p[i] = (struct partial *)memory[i];
        fill(r, &p[i]->max, 1, kind);
        p[i]->sum = 1 + (float)(cases_random(&r->state) % 1000) * 0.01f;
        fill(r, p[i]->acc, head_dim, kind);
    }
    float out[KERNEL_HEAD_DIM_MAX];
    r->k->partial_merge(p[0], p[1], head_dim);
    hash_floats(r, &p[0]->max, 2);
    hash_floats(r, p[0]->acc, head_dim);
    partial_clear(p[1]);
    r->k->partial_merge(p[0], p[1], head_dim); // no effect
    r->k->partial_merge(p[1], p[2], head_dim); // a copy
    r->k->partial_merge(p[1], p[0], head_dim);
    hash_floats(r, &p[1]->max, 2);
    hash_floats(r, p[1]->acc, head_dim);
    r->k->partial_output(p[1], out, head_dim);
    hash_floats(r, out, head_dim);
    partial_clear(p[2]);
    r->k->partial_output(p[2], out, head_dim);
    hash_floats(r, out, head_dim);
    finish(r, "merge", head_dim, (size_t)kind, 0);
}

static void run_weights(struct runner *r, uint32_t type, size_t cols, size_t rows, size_t n_rows,
                        int kind)
{
    enum { X_PAD = 3 };
    size_t stride = cols + (cols % 2 ? X_PAD : 0), out_stride = rows + 1;
    uint8_t *data = malloc(rows * cols * 4 + 2);
    float *x = malloc((n_rows * stride + 64) * sizeof *x);
    float *out = malloc((n_rows * out_stride + cols + 1) * sizeof *out);
    struct weight w = cases_weight(&r->state, type, rows, cols, data + 2); // odd alignment
    fill(r, x, n_rows * stride, kind);
    r->k->weight_row(&w, rows - 1, out);
    hash_floats(r, out, cols);
    finish(r, "weight_row", type, cols, rows);
    for (size_t i = 0; i < n_rows * out_stride; i++)
        out[i] = 7;
    size_t first = rows / 3;
    float *rounded = cases_rounded(r->k, type, x, &stride, cols, n_rows);
    for (size_t i = 0; rounded && i < n_rows * cols / ROUNDED_BLOCK; i++) {
        const struct rounded_x *block = (const struct rounded_x *)rounded + i;
        for (size_t c = 0; c < ROUNDED_BLOCK; c++)
            hash_bits(r, (uint16_t)block->q[c]);
        hash_floats(r, block->sum, KERNEL_LANES + 1);
    }
    r->k->matmul(&w, first, rows - first, rounded ? rounded : x, stride, n_rows, out, out_stride,
                 r->scratch);
    hash_floats(r, out, n_rows * out_stride);
    free(rounded);
    char name[64];
    snprintf(name, sizeof name, "matmul type %u kind %d:", (unsigned)type, kind);
    finish(r, name, cols, rows, n_rows);
    free(data);
    free(x);
    free(out);
}

static void run_matmul(struct runner *r)
{
    static const uint32_t types[] = {TENSOR_F32,    TENSOR_F16,  TENSOR_BF16, TENSOR_Q8_0,
                                     TENSOR_Q4_0,   TENSOR_Q4_1, TENSOR_Q5_0, TENSOR_Q5_1,
                                     TENSOR_IQ4_NL, TENSOR_Q2_K, TENSOR_Q3_K, TENSOR_Q4_K,
                                     TENSOR_Q5_K,   TENSOR_Q6_K};
    static const size_t rows[] = {1, 2, 3, 4, 6, 9, 24, 25, 26, 37};
    static const size_t some[] = {5, 7, 8, 11, 14, 16};
    for (size_t t = 0; t < sizeof types / sizeof types[0]; t++) {
        size_t step = tensor_type_info(types[t])->block_elements;
        size_t many = step == 1 ? 67 : step == 32 ? 201 : 1300;
        for (size_t cols = step; cols <= many; cols += step)
            run_weights(r, types[t], cols, 1 + cols % 23, rows[cols % 10], (int)(cols % KINDS));
        for (size_t i = 0; i < 10; i++)
            for (size_t outputs = 1; outputs < 20; outputs += 3)
                run_weights(r, types[t], step == 1 ? 70 : step * (step == 32 ? 3 : 1), outputs,
                            rows[i], 0);
        for (size_t i = 0; i < sizeof some / sizeof some[0]; i++)
            run_weights(r, types[t], 2048 + step * (step == 1 ? 19 : 1), 90 + i * 7, some[i], 0);
        // Several pieces, blocks of rows and of outputs; rows of more than half the scratch, and
        // beyond it.
        run_weights(r, types[t], step == 1 ? 300 : step == 32 ? 288 : 512, 150, 37, 0);
        run_weights(r, types[t], 4096 + step, step == 1 ? 100 : 70, 26, 0);
        if (types[t] == TENSOR_F32 || types[t] == TENSOR_Q8_0 || types[t] == TENSOR_Q5_K) {
            run_weights(r, types[t], 80000 / step * step, 3, 25, 0);
            run_weights(r, types[t], 140032, 2, 24, 0); // 547 x 256
        }
    }
}

struct attention_tile cases_tile(const uint16_t *k, const uint16_t *v, uint32_t tokens,
                                 uint32_t head_dim, uint32_t part_tokens)
{
    struct attention_tile tile = {
        .part_tokens = part_tokens, .tokens = tokens, .head_dim = head_dim};
    uint32_t part = part_tokens ? part_tokens : ATTENTION_TILE;
    for (uint32_t t = 0; t < tokens; t += part) {
        uint32_t n = tokens - t < part ? tokens - t : part; // V ends where the tokens end
        size_t bytes = (size_t)n * head_dim * 2, whole = (size_t)part * head_dim * 2;
        uint16_t *to = malloc(part_tokens ? whole : bytes), *values = malloc(bytes);
        memcpy(values, v + (size_t)t * head_dim, bytes);
        if (part_tokens) {
            memset(to, 0xff, whole); // NaN in the place of the others
            for (size_t i = 0; i < n * head_dim; i++)
                to[i % head_dim * part + i / head_dim] = k[(size_t)t * head_dim + i];
        } else {
            memcpy(to, k, bytes);
        }
        tile.k[t / part] = to;
        tile.v[t / part] = values;
    }
    return tile;
}

void cases_tile_free(struct attention_tile *tile)
{
    for (size_t i = 0; i < ATTENTION_PARTS; i++) {
        free((void *)(uintptr_t)tile->k[i]);
        free((void *)(uintptr_t)tile->v[i]);
    }
}

enum { TILE_LIMIT = 1, TILE_FIRST = 2, TILE_WAYS = 4 };

static void hash_partials(struct runner *r, const float *out, size_t n_q, uint32_t head_dim)
{
    for (size_t i = 0; i < n_q; i++) {
        const struct partial *p = partial_at((float *)(uintptr_t)out, i, head_dim);
        hash_floats(r, &p->max, 2);
        hash_floats(r, p->acc, p->sum == 0 ? 0 : head_dim);
    }
}

// The tile with limits, windows and caps, and with chosen tokens.
static void tile_ways(struct runner *r, struct attention_tile *tile, const float *q,
                      size_t q_stride, size_t n_q, int kind, float *out)
{
    const uint32_t tokens = tile->tokens;
    uint32_t *limit = malloc(n_q * sizeof *limit), *start = malloc(n_q * sizeof *start);
    for (int way = 0; way <= TILE_WAYS; way++) {
        for (size_t i = 0; i < n_q; i++) {
            start[i] = (uint32_t)((i * 7 + n_q) % (tokens + 1));
            limit[i] = (uint32_t)((tokens + cases_random(&r->state) % 7 + i) % (tokens + 1));
        }
        int limited = way != TILE_WAYS && way & TILE_LIMIT;
        tile->first = way != TILE_WAYS && way & TILE_FIRST ? start : NULL;
        tile->softcap = way & TILE_FIRST ? 0.4f : 0;
        tile->scale = 0.125f;
        if (way == TILE_WAYS) {
            tile->chosen = cases_random(&r->state) & cases_random(&r->state);
            tile->chosen = (tile->chosen & ((2ull << (tokens - 1)) - 1)) | 1ull << (tokens - 1);
        }
        for (int fold = 0; fold < 3; fold++) {
            r->k->attention_tile(tile, q, q_stride, n_q, limited ? limit : NULL, out, fold > 0,
                                 r->scratch);
            hash_partials(r, out, n_q, tile->head_dim);
            for (size_t i = 0; i < n_q; i++)
                limit[i] = (limit[i] + 3) % (tokens + 1);
            tile->scale = -0.11f;
        }
        char name[64];
        snprintf(name, sizeof name, "tile kind %d way %d part %u:", kind, way, tile->part_tokens);
        finish(r, name, tile->head_dim, tokens, n_q);
    }
    tile->chosen = 0;
    free(limit);
    free(start);
}

static void run_tile(struct runner *r, uint32_t head_dim, uint32_t tokens, size_t n_q, int kind)
{
    static const uint32_t parts[] = {0, 16, 32, 64};
    size_t q_stride = head_dim + (n_q % 2 ? 5 : 0), n = (size_t)tokens * head_dim;
    uint16_t *k = malloc(n * 2), *v = malloc(n * 2);
    float *q = malloc(n_q * q_stride * sizeof *q);
    float *out = aligned_alloc(64, n_q * partial_stride(head_dim) * sizeof *out);
    fill_f16(r, k, n, kind);
    fill_f16(r, v, n, kind);
    fill(r, q, n_q * q_stride, kind == 2 ? 0 : kind);
    struct attention_tile tile =
        cases_tile(k, v, tokens, head_dim, parts[(tokens / 3 + n_q + head_dim) % 4]);
    struct attention_tile next = tile;
    tile.next = n_q % 3 ? &next : NULL;
    tile_ways(r, &tile, q, q_stride, n_q, kind, out);
    cases_tile_free(&tile);
    free(k);
    free(v);
    free(q);
    free(out);
}

static void run_attention(struct runner *r)
{
    static const uint32_t dims[] = {1,  3,  7,  8,  9,   16,  17,  24,  33,  64,
                                    72, 80, 96, 99, 112, 128, 130, 256, 511, 512};
    for (size_t d = 0; d < sizeof dims / sizeof dims[0]; d++) {
        for (uint32_t tokens = 1; tokens <= 64; tokens += dims[d] > 128 ? 21 : 3)
            run_tile(r, dims[d], tokens, 1 + (tokens + d) % 8, (int)(tokens / 3 + d) % KINDS);
        for (size_t n_q = 1; n_q <= 37; n_q += n_q < 10 ? 1 : 7)
            run_tile(r, dims[d], 64, n_q, (int)n_q % KINDS);
        run_tile(r, dims[d], 61, 70, 0);
        run_tile(r, dims[d], 17, 103, 1);
    }
}

void cases_run(const struct kernels *k, case_fn *emit, void *arg)
{
    struct runner r = {.k = k, .emit = emit, .arg = arg, .state = 1, .hash = 0xcbf29ce484222325u};
    r.scratch = aligned_alloc(64, KERNEL_SCRATCH_BYTES);
    run_conversions(&r);
    for (int kind = 0; kind < KINDS; kind++) {
        for (size_t n = 0; n <= 67; n++)
            run_vectors(&r, n, kind);
        run_vectors(&r, 1000 + (size_t)kind, kind);
        for (size_t d = 8; d <= 128; d += 8)
            run_merge(&r, d, kind);
    }
    run_matmul(&r);
    run_attention(&r);
    free(r.scratch);
    cases_kv(k, emit, arg);
    cases_sparf(k, emit, arg);
}
