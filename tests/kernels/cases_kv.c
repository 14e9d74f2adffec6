// SPDX-License-Identifier: Apache-2.0
// Blocks, and tiles in blocks: their partials, as one hash for each shape.
#include "cases.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct attention_tile cases_tile_of(uint32_t type, const uint16_t *k, const uint16_t *v,
                                    uint32_t tokens, uint32_t head_dim, uint32_t part_tokens)
{
    struct attention_tile tile = {
        .type = type, .part_tokens = part_tokens, .tokens = tokens, .head_dim = head_dim};
    for (uint32_t t = 0; t < tokens; t += part_tokens) {
        uint32_t n = tokens - t < part_tokens ? tokens - t : part_tokens;
        size_t bytes = kv_key_bytes(type, head_dim, part_tokens);
        void *key = malloc(bytes), *value = malloc(bytes + KV_BLOCK * part_tokens);
        memset(key, 0xff, bytes); // NaN in the place of the others
        memset(value, 0xff, kv_value_bytes(type, head_dim, part_tokens));
        kv_put(type, key, value, part_tokens, head_dim, 0, n, k + (size_t)t * head_dim,
               v + (size_t)t * head_dim);
        tile.k[t / part_tokens] = key;
        tile.v[t / part_tokens] = realloc(value, kv_value_bytes(type, head_dim, part_tokens));
    }
    return tile;
}

static uint64_t hash_floats(uint64_t hash, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        hash = (hash ^ (x[i] != x[i] ? 0x7fc00000u : bits)) * 0x100000001b3u;
    }
    return hash;
}

static void run(const struct kernels *kernels, case_fn *emit, void *arg, uint32_t type,
                uint32_t dim, uint32_t tokens, size_t n_q, uint64_t *state, void *scratch)
{
    static const uint32_t parts[] = {16, 32, 64};
    size_t n = (size_t)tokens * dim;
    uint16_t *k = malloc(n * 2), *v = malloc(n * 2);
    float *q = malloc(n_q * dim * sizeof *q);
    float *out = aligned_alloc(64, n_q * partial_stride(dim) * sizeof *out);
    uint32_t *limit = malloc(n_q * sizeof *limit);
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++) {
        float size = i / dim % 5 ? 1 : 1e-6f; // subnormal scales too
        k[i] = kernel_f32_to_f16(cases_uniform(state) * size);
        v[i] = kernel_f32_to_f16(cases_uniform(state) * size);
    }
    v[n / 2] = n_q % 5 ? v[n / 2] : 0x7c00; // a block of NaN
    for (size_t i = 0; i < n_q * dim; i++)
        q[i] = cases_uniform(state);
    for (size_t i = 0; i < n_q; i++)
        limit[i] = (uint32_t)((tokens + i * 5) % (tokens + 1));
    struct attention_tile tile =
        cases_tile_of(type, k, v, tokens, dim, parts[(tokens / 3 + n_q + dim) % 3]);
    struct attention_tile next = tile;
    tile.next = &next;
    tile.scale = 0.3f;
    for (int way = 0; way < 3; way++) {
        tile.chosen = way < 2 ? 0 : cases_random(state) | 1ull << (tokens - 1);
        tile.chosen &= (2ull << (tokens - 1)) - 1;
        kernels->attention_tile(&tile, q, dim, n_q, way == 1 ? limit : NULL, out, way > 0, scratch);
        for (size_t i = 0; i < n_q; i++) {
            const struct partial *p = partial_at(out, i, dim);
            hash = hash_floats(hash, &p->max, 2);
            hash = hash_floats(hash, p->acc, p->sum == 0 ? 0 : dim);
        }
    }
    char name[96];
    snprintf(name, sizeof name, "tile %s part %u: %u %u %zu", kv_type_name(type), tile.part_tokens,
             dim, tokens, n_q);
    emit(arg, name, hash);
    cases_tile_free(&tile);
    free(k);
    free(v);
    free(q);
    free(out);
    free(limit);
}

// Numbers of one size, of one sign, with a few large ones, small integers, none at all.
static void draw_block(uint64_t *state, uint16_t *x)
{
    const int exponent = (int)(cases_random(state) % 42) - 25;
    const uint64_t kind = cases_random(state) % 6;
    for (size_t i = 0; i < KV_BLOCK; i++) {
        const float u = cases_uniform(state);
        float f = kind == 0   ? u
                  : kind == 1 ? fabsf(u)
                  : kind == 2 ? u * u * u * u * u
                  : kind == 3 ? (float)((int)(cases_random(state) % 31) - 15) / 15
                  : kind == 4 ? u - 0.7f
                              : 0 * u; // zeros of both signs
        x[i] = kernel_f32_to_f16(fminf(fmaxf(ldexpf(f, exponent), -65504), 65504));
    }
}

static uint64_t hash_bytes(uint64_t hash, const void *data, size_t n)
{
    for (const uint8_t *p = data; n; n--, p++)
        hash = (hash ^ *p) * 0x100000001b3u;
    return hash;
}

// A block by itself and beside a key, what both hold, and that once more.
static uint64_t hash_block(const struct kernels *kernels, uint32_t type, size_t n, uint64_t *state,
                           uint64_t hash)
{
    uint16_t x[KV_BLOCK], out[KV_BLOCK] = {0};
    struct kv_block key, b;
    draw_block(state, x);
    if (cases_random(state) % 16 == 0)
        x[cases_random(state) % n] = cases_random(state) % 2 ? 0x7c00 : 0xfe01;
    kernels->kv_make(type, &key, x, n);
    draw_block(state, x);
    if (cases_random(state) % 16 == 0)
        x[cases_random(state) % KV_BLOCK] = 0xfc00;
    hash = hash_bytes(hash, &key, sizeof key);
    for (int way = 0; way < 3; way++) {
        if (way == 0)
            kernels->kv_make(type, &b, x, n);
        else
            kernels->kv_make_value(type, &b, x, &key);
        hash = hash_bytes(hash, &b, sizeof b);
        kernels->kv_numbers(type, &b, way ? x : out, way ? KV_BLOCK : n);
        for (size_t i = 0; i < n; i++) {
            const uint16_t h = way ? x[i] : out[i];
            hash = hash_bytes(hash, (h & 0x7fff) > 0x7c00 ? &(uint16_t){0x7e00} : &h, sizeof h);
        }
    }
    return hash;
}

static void planes(const struct kernels *kernels, case_fn *emit, void *arg, uint64_t *state)
{
    static const size_t dims[] = {1, 15, 16, 33, 64, 80, 130};
    float x[KV_PLANES][130], *factor = malloc(130 * 131 / 2 * sizeof *factor);
    struct kv_block block[KV_PLANES][5];
    for (size_t d = 0; d < 7 * 2 * KV_PLANES; d++) {
        const size_t dim = dims[d % 7], n = 1 + d / 14;
        const uint32_t type = KV_Q8 + d / 7 % 2;
        uint64_t hash = 0xcbf29ce484222325u;
        // Its own end is its end.
        float *own = realloc(factor, dim * (dim + 1) / 2 * sizeof *factor);
        factor = own ? own : factor;
        for (size_t i = 0; i < dim * (dim + 1) / 2; i++)
            factor[i] = cases_uniform(state) / 4;
        struct kv_plane plane[KV_PLANES];
        for (size_t k = 0; k < n; k++) {
            plane[k] = (struct kv_plane){x[k], block[k], factor};
            for (size_t i = 0; i < dim; i++)
                x[k][i] = cases_uniform(state);
            for (size_t b = 0; b < 5; b++)
                block[k][b] = (struct kv_block){.scale = (uint8_t)(70 + cases_random(state) % 12),
                                                .zero = type == KV_Q4 ? 7 : 0};
        }
        kernels->kv_planes(type, plane, n, dim);
        for (size_t k = 0; k < n; k++)
            hash = hash_floats(hash, x[k], dim);
        char name[96];
        snprintf(name, sizeof name, "planes %s: %zu of %zu", kv_type_name(type), n, dim);
        emit(arg, name, hash);
    }
    free(factor);
}

static void blocks(const struct kernels *kernels, case_fn *emit, void *arg)
{
    uint64_t state = 27;
    char name[96];
    for (uint32_t type = KV_Q8; type < KV_TYPES; type++) {
        for (size_t n = 1; n <= KV_BLOCK; n += n == 1 ? 1 : 6) {
            uint64_t hash = 0xcbf29ce484222325u;
            for (int i = 0; i < (n == KV_BLOCK ? 20000 : 300); i++)
                hash = hash_block(kernels, type, n, &state, hash);
            snprintf(name, sizeof name, "blocks %s: %zu", kv_type_name(type), n);
            emit(arg, name, hash);
        }
    }
    planes(kernels, emit, arg, &state);
    for (size_t n = 1; n <= 2 * KERNEL_HEAD_DIM_MAX; n *= 2) {
        float x[2 * KERNEL_HEAD_DIM_MAX];
        for (size_t i = 0; i < n; i++)
            x[i] = i % 7 ? cases_uniform(&state) : -0.0f;
        kernels->hadamard(x, n);
        snprintf(name, sizeof name, "hadamard %zu", n);
        emit(arg, name, hash_floats(0xcbf29ce484222325u, x, n));
    }
}

void cases_kv(const struct kernels *kernels, case_fn *emit, void *arg)
{
    static const uint32_t dims[] = {1,  3,  8,  16, 17, 20,  24,  31,  32, 33,
                                    48, 64, 72, 80, 96, 112, 128, 130, 512};
    void *scratch = aligned_alloc(64, KERNEL_SCRATCH_BYTES);
    uint64_t state = 18;
    blocks(kernels, emit, arg);
    for (uint32_t type = KV_Q8; type < KV_TYPES; type++) {
        for (size_t d = 0; d < sizeof dims / sizeof dims[0]; d++) {
            for (uint32_t tokens = 1; tokens <= 64; tokens += 9)
                run(kernels, emit, arg, type, dims[d], tokens, 1 + (tokens / 9 + d) % 5, &state,
                    scratch);
            run(kernels, emit, arg, type, dims[d], 61, 4, &state, scratch);
            run(kernels, emit, arg, type, dims[d], 64, 19, &state, scratch);
        }
    }
    free(scratch);
}
