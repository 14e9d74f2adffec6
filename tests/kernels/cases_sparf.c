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

static uint64_t code_sums(const struct kernels *k, uint64_t *state, size_t n, size_t bytes)
{
    static uint8_t codes[70 * KERNEL_HEAD_DIM_MAX / 8];
    static int8_t table[KERNEL_HEAD_DIM_MAX / 4][16];
    int16_t sums[72];
    for (size_t i = 0; i < n * bytes; i++)
        codes[i] = (uint8_t)cases_random(state);
    for (size_t i = 0; i < 32 * bytes; i++) // the least and the largest are among them
        table[i / 16][i % 16] = (int8_t)(cases_random(state) % 3 ? cases_random(state) : 127);
    for (size_t i = 0; i < 72; i++)
        sums[i] = 7;
    k->code_sums(codes, n, bytes, (const int8_t(*)[16])table, sums);
    return hash_words(sums, sizeof sums / 4, 0xcbf29ce484222325u);
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
    for (size_t n = 1; n <= 70; n += n < 34 ? 1 : 9) {
        for (size_t bytes = 1; bytes <= KERNEL_HEAD_DIM_MAX / 8; bytes += bytes * n % 3 + bytes) {
            snprintf(name, sizeof name, "code_sums %zu %zu", n, bytes);
            emit(arg, name, code_sums(k, &state, n, bytes));
        }
    }
}
