// SPDX-License-Identifier: Apache-2.0
// The kernels that rank tokens by channels or codes, and the transposing that lays channels out.
#include "cases.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { TOKENS = 150, CHANNELS = 40, QUERIES = 11, PAD = 3 };

static uint64_t hash_words(const void *data, size_t n, uint64_t hash)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, (const char *)data + 4 * i, sizeof bits);
        if ((bits & 0x7fffffff) > 0x7f800000)
            bits = 0x7fc00000; // any NaN
        hash = (hash ^ bits) * 0x100000001b3u;
        hash ^= hash >> 29;
    }
    return hash;
}

static uint16_t half(uint64_t *state, int kind)
{
    uint64_t u = cases_random(state);
    uint16_t h = kernel_f32_to_f16(cases_uniform(state));
    if (kind == 1 && u % 3 == 0)
        h &= 0x83ff; // subnormal
    return kind == 2 && u % 7 == 0 ? (uint16_t)(u >> 20) : h;
}

static uint64_t scores(const struct kernels *k, uint64_t *state, size_t n, size_t channels,
                       size_t queries, int kind)
{
    static uint16_t keys[CHANNELS][TOKENS + 1];
    static float q[QUERIES * (CHANNELS + PAD)], out[QUERIES * (TOKENS + PAD)];
    const uint16_t *list[CHANNELS];
    for (size_t c = 0; c < channels; c++) {
        list[c] = keys[c] + (c & 1); // odd alignment
        for (size_t t = 0; t <= n; t++)
            keys[c][t] = half(state, kind);
    }
    size_t q_stride = channels + queries % PAD, stride = n + channels % PAD;
    for (size_t i = 0; i < queries * q_stride; i++)
        q[i] = cases_uniform(state) * (kind == 1 ? 0x1p-120f : 3);
    for (size_t i = 0; i < queries * stride + 1; i++)
        out[i] = 7; // nothing is written between the rows
    k->channel_scores(list, channels, n, q, q_stride, queries, out, stride);
    return hash_words(out, queries * stride + 1, 0xcbf29ce484222325u);
}

static uint64_t softmax(const struct kernels *k, uint64_t *state, size_t n, int kind)
{
    float x[TOKENS + 1], y[TOKENS + 1];
    for (size_t i = 0; i <= n; i++) {
        x[i] = cases_uniform(state) * (kind == 1 ? 200 : 4);
        y[i] = cases_uniform(state);
        if (kind == 2 && cases_random(state) % 5 == 0)
            x[i] = i & 1 ? -INFINITY : i & 2 ? -0.0f : (float)NAN;
    }
    float sum = k->exp_sum(x, n, kind == 1 ? 150 : 2);
    uint64_t hash = hash_words(&sum, 1, 0xcbf29ce484222325u);
    k->axpy(y, 0.37f, x, n);
    hash = hash_words(x, n + 1, hash);
    return hash_words(y, n + 1, hash);
}

// Pieces of codes and tables of some queries; the rows of tables without a byte are zeros.
static uint64_t masses(const struct kernels *k, uint64_t *state, size_t keys, size_t bytes,
                       size_t n_q, int kind)
{
    enum { BYTES = MASS_HEADER + 64 * (2 + MASS_BYTES), QUERIES_MAX = 8, STRIDE = 19 };
    static uint8_t summary[MASS_SLICES][BYTES];
    static int8_t tables[QUERIES_MAX * MASS_BYTES * 2 * 16];
    static _Alignas(64) uint8_t scratch[MASS_SCRATCH];
    float factors[QUERIES_MAX], tops[2 * QUERIES_MAX], out[QUERIES_MAX * STRIDE];
    float bias[QUERIES_MAX * MASS_SLICES];
    struct mass_pieces m = {.n = MASS_SLICES / ((keys + 15) / 16), .keys = keys, .bytes = bytes};
    const size_t rows = mass_rows(bytes);
    m.counted = kind & 1;
    m.softcap = kind & 2 ? 20 : 0;
    m.bias = keys % 3 ? bias : NULL;
    for (size_t i = 0; i < QUERIES_MAX * MASS_SLICES; i++)
        bias[i] = 300 * cases_uniform(state);
    m.n -= cases_random(state) % m.n;
    for (size_t i = 0; i < m.n; i++) {
        float scale = cases_uniform(state) * (kind & 4 ? 60000 : 0.2f);
        uint16_t half = kernel_f32_to_f16(scale < 0 ? -scale : scale);
        half = i == 3 && kind & 4 ? 0x7c01 : half; // no number
        for (size_t j = 0; j < BYTES; j++)
            summary[i][j] = (uint8_t)cases_random(state);
        memcpy(summary[i], &half, sizeof half);
        m.summary[i] = summary[i];
    }
    for (size_t i = 0; i < n_q * rows * 16; i++) { // the least and the largest are among them
        int entry = (int)(cases_random(state) % (2 * MASS_ENTRY + 1)) - MASS_ENTRY;
        tables[i] = (int8_t)(i / 16 % (rows / 2) < bytes ? entry : 0);
        if (i % 16 == 5 && tables[i])
            tables[i] = MASS_ENTRY;
    }
    for (size_t i = 0; i < n_q; i++)
        factors[i] = i == 2 ? 0 : kind & 4 ? MASS_FACTOR : 0.02f * (1 + cases_uniform(state));
    for (size_t i = 0; i < QUERIES_MAX * STRIDE; i++)
        out[i] = 7; // nothing is written between the rows
    for (size_t i = 0; i < 2 * QUERIES_MAX; i++)
        tops[i] = 7;
    k->piece_masses(&m, tables, factors, n_q, tops, 2, out, STRIDE, scratch);
    uint64_t hash = hash_words(tops, 2 * QUERIES_MAX, 0xcbf29ce484u);
    float key_scores[MASS_SLICES * 16 + 1];
    for (size_t i = 0; i < MASS_SLICES * 16 + 1; i++)
        key_scores[i] = 7;
    k->piece_scores(&m, tables, factors[0], key_scores, scratch);
    const size_t each = (keys + 15) / 16;
    for (size_t i = 0; i < m.n * each * 16; i++) { // lanes without a key hold anything
        const size_t key = i / 16 % each * 16 + (i % 16 < 8 ? 2 * (i % 16) : 2 * (i % 16) - 15);
        if (key >= keys)
            key_scores[i] = 7;
    }
    hash = hash_words(key_scores, MASS_SLICES * 16 + 1, hash);
    return hash_words(out, QUERIES_MAX * STRIDE, hash);
}

// Means of which some are alike, so that a key is as near to one as to another.
static uint64_t nearest(const struct kernels *k, uint64_t *state, size_t slices, size_t means,
                        size_t bytes)
{
    enum { SLICES = 5, MEANS = 70, ROWS = MASS_BYTES * 2 };
    static uint8_t codes[SLICES * ROWS / 2 * 16];
    static int8_t tables[MEANS * ROWS * 16];
    static _Alignas(64) uint8_t scratch[MASS_SCRATCH];
    const size_t rows = mass_rows(bytes);
    float steps[MEANS], sizes[MEANS];
    uint16_t which[SLICES * 16 + 2];
    for (size_t i = 0; i < slices * rows / 2 * 16; i++)
        codes[i] = i / 16 % (rows / 2) < bytes ? (uint8_t)cases_random(state) : 0;
    for (size_t m = 0; m < means; m++) {
        for (size_t i = 0; i < rows * 16; i++) {
            int entry = (int)(cases_random(state) % (2 * MASS_ENTRY + 1)) - MASS_ENTRY;
            tables[m * rows * 16 + i] = (int8_t)(i / 16 % (rows / 2) < bytes ? entry : 0);
        }
        if (m % 3 == 2)
            memcpy(tables + m * rows * 16, tables, rows * 16);
        steps[m] = m % 3 == 2 ? steps[0] : 0.01f * (1 + cases_uniform(state));
        sizes[m] = m % 3 == 2 ? sizes[0] : cases_uniform(state);
    }
    for (size_t i = 0; i < SLICES * 16 + 2; i++)
        which[i] = 7;
    k->nearest_means(codes, slices, bytes, tables, steps, sizes, means, which, scratch);
    return hash_words(which, (SLICES * 16 + 2) / 2, 0xcbf29ce484222325u);
}

static uint64_t code_axpy(const struct kernels *k, uint64_t *state, size_t n, size_t bits,
                          size_t dim, size_t n_q)
{
    enum { VECTORS = 9, PADDED = 203, STRIDE = 11 };
    uint8_t codes[VECTORS][PADDED / 4 + 1];
    const uint8_t *list[VECTORS];
    float weights[QUERIES * STRIDE], y[QUERIES * PADDED];
    for (size_t t = 0; t < VECTORS; t++) {
        for (size_t i = 0; i < sizeof codes[t]; i++)
            codes[t][i] = (uint8_t)cases_random(state);
        list[t] = codes[t];
    }
    for (size_t i = 0; i < QUERIES * STRIDE; i++)
        weights[i] = i % 7 ? cases_uniform(state) : 0;
    for (size_t i = 0; i < QUERIES * PADDED; i++)
        y[i] = cases_uniform(state);
    k->code_axpy(list, n, bits, dim, weights, STRIDE, n_q, y, PADDED);
    return hash_words(y, QUERIES * PADDED, 0xcbf29ce484222325u);
}

static uint64_t transpose(uint64_t *state, size_t rows, size_t cols)
{
    static uint16_t in[70 * 70], out[70 * 70];
    for (size_t i = 0; i < sizeof in / sizeof *in; i++) {
        in[i] = (uint16_t)cases_random(state);
        out[i] = 7;
    }
    kernel_transpose16(out, rows + 1, in, cols + 2, rows, cols);
    return hash_words(out, sizeof out / 4, 0xcbf29ce484222325u);
}

void cases_sparf(const struct kernels *k, case_fn *emit, void *arg)
{
    static const size_t queries[] = {1, 2, 3, 4, 5, 7, 8, QUERIES};
    char name[96];
    uint64_t state = 5;
    for (int kind = 0; kind < 3; kind++) {
        for (size_t n = 0; n <= TOKENS; n += n < 70 ? 1 : 13) {
            size_t channels = n * 7 % (CHANNELS + 1), nq = queries[n % 8];
            snprintf(name, sizeof name, "channel_scores kind %d: %zu %zu %zu", kind, n, channels,
                     nq);
            emit(arg, name, scores(k, &state, n, channels, nq, kind));
            snprintf(name, sizeof name, "exp_sum and axpy kind %d: %zu", kind, n);
            emit(arg, name, softmax(k, &state, n, kind));
        }
    }
    for (size_t rows = 0; rows <= 67; rows += rows < 18 ? 1 : 7) {
        for (size_t cols = 1; cols <= 66; cols += cols < 18 ? 2 : 8) {
            snprintf(name, sizeof name, "transpose %zu %zu", rows, cols);
            emit(arg, name, transpose(&state, rows, cols));
        }
    }
    for (size_t keys = 1; keys <= 64; keys += keys < 34 ? 1 : 6) {
        for (size_t bytes = 1; bytes <= MASS_BYTES; bytes += bytes < 9 ? 1 : bytes) {
            int kind = (int)((keys + bytes) % 8);
            size_t nq = 1 + keys * bytes % 8;
            snprintf(name, sizeof name, "piece_masses kind %d: %zu %zu %zu", kind, keys, bytes, nq);
            emit(arg, name, masses(k, &state, keys, bytes, nq, kind));
        }
    }
    for (size_t n = 0; n < 60; n++) {
        size_t means = 1 + n * 3 % 70, bytes = n % 3 ? 1 + n % 16 : 8;
        snprintf(name, sizeof name, "nearest_means %zu %zu %zu", n % 6, means, bytes);
        emit(arg, name, nearest(k, &state, n % 6, means, bytes));
    }
    for (size_t dim = 1; dim <= 200; dim += dim < 34 ? 1 : 15) {
        size_t n = dim % 10, nq = 1 + dim % QUERIES;
        snprintf(name, sizeof name, "code_axpy %zu %zu %zu", n, dim, nq);
        emit(arg, name, code_axpy(k, &state, n, 1, dim, nq));
        emit(arg, name, code_axpy(k, &state, n, 2, dim, nq));
    }
}
