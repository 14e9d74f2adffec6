// SPDX-License-Identifier: Apache-2.0
// K and V in blocks: rounding of whole tokens, and parts. Blocks are made by the set of kernels.
#include "kernels/kv_blocks.h"
#include "kernels/kv_keys.h"
#include "kernels/kernels.h"

#include <math.h>
#include <stdbool.h>

const char *kv_type_name(uint32_t type)
{
    static const char *const names[KV_TYPES] = {"f16", "q8", "q4"};
    return type < KV_TYPES ? names[type] : NULL;
}

uint32_t kv_type_named(const char *name)
{
    uint32_t type = KV_F16;
    while (name && type < KV_TYPES && strcmp(name, kv_type_name(type)) != 0)
        type++;
    return type;
}

static void make_block(uint32_t type, struct kv_block *b, const uint16_t *in, size_t n)
{
    kernels_best()->kv_make(type, b, in, n);
}

static void numbers(uint32_t type, const struct kv_block *b, uint16_t *out, size_t n)
{
    kernels_best()->kv_numbers(type, b, out, n);
}

// Of K: with the scale that rounding what was rounded comes to. V of the token depends on it.
static void make_key(uint32_t type, struct kv_block *b, const uint16_t *in, size_t n)
{
    uint16_t out[KV_BLOCK];
    make_block(type, b, in, n);
    if (b->scale == SCALE_NAN)
        return;
    numbers(type, b, out, n);
    if (memcmp(out, in, n * sizeof *in) != 0)
        make_block(type, b, out, n);
}

// ---- rounding ----------------------------------------------------------------------------------

void kv_round(uint32_t type, uint16_t *k, size_t head_dim)
{
    struct kv_block b;
    for (size_t c = 0; type != KV_F16 && c < head_dim; c += KV_BLOCK) {
        size_t n = head_dim - c < KV_BLOCK ? head_dim - c : KV_BLOCK;
        make_block(type, &b, k + c, n);
        numbers(type, &b, k + c, n);
    }
}

// Block of channels c and on of K and V of a token.
static void make_blocks(uint32_t type, struct kv_block *key, struct kv_block *value,
                        const uint16_t *k, const uint16_t *v, size_t c, size_t head_dim)
{
    make_key(type, key, k + c, head_dim - c < KV_BLOCK ? head_dim - c : KV_BLOCK);
    if (head_dim - c < KV_BLOCK)
        make_block(type, value, v + c, head_dim - c);
    else
        kernels_best()->kv_make_value(type, value, v + c, key);
}

void kv_round_value(uint32_t type, uint16_t *v, const uint16_t *k, size_t head_dim)
{
    struct kv_block key, value;
    for (size_t c = 0; type != KV_F16 && c < head_dim; c += KV_BLOCK) {
        make_blocks(type, &key, &value, k, v, c, head_dim);
        numbers(type, &value, v + c, head_dim - c < KV_BLOCK ? head_dim - c : KV_BLOCK);
    }
}

// ---- rounding for queries ----------------------------------------------------------------------

void kv_factor(float *m, size_t head_dim)
{
    // Of the mean of the diagonal, so that directions no query was seen in do not run away.
    const double some = 0x1p-5;
    double mean = 0, scaled[KERNEL_HEAD_DIM_MAX];
    for (size_t i = 0; i < head_dim; i++)
        mean += (double)m[kv_triangle(i) + i];
    mean /= (double)head_dim;
    const bool usable = mean > 0 && mean < 0x1p100; // not NaN
    for (size_t i = 0; i < head_dim; i++) {
        float *row = m + kv_triangle(i);
        double d = usable ? (double)row[i] / mean + some : 1;
        for (size_t j = 0; j < i; j++) {
            const float *other = m + kv_triangle(j);
            double x = usable ? (double)row[j] / mean : 0;
            for (size_t c = 0; c < j; c++)
                x -= scaled[c] * (double)other[c];
            scaled[j] = x;
            row[j] = (float)(x / (double)other[j]);
            d -= x * (double)row[j];
        }
        row[i] = (float)(d > some / 2 ? d : some / 2);
    }
}

// Scale and zero point of blocks, `by` scales above those that make_block chose.
static bool other_scale(uint32_t type, struct kv_block *b, int by)
{
    int scale = b->scale + by;
    float low = -scale_of(type, b->scale) * (float)b->zero;
    if (!b->scale)
        return true;
    if (b->scale == SCALE_NAN || scale < 0)
        return false;
    b->scale = (uint8_t)scale;
    float s = scale_of(type, b->scale);
    if (type == KV_Q4)
        b->zero = (uint8_t)(s > 0 ? between(nearest(-low * (1 / s)), 0, Q4_CODE) : 0);
    return s * Q4_CODE <= kv_largest / 2; // far from where codes end to be fp16
}

// Keys that are rounded side by side.
struct keys {
    uint16_t *k[KV_PLANES];
    const float *factor[KV_PLANES];
    struct kv_block blocks[KV_PLANES][KERNEL_HEAD_DIM_MAX / KV_BLOCK];
    float x[KV_PLANES][KERNEL_HEAD_DIM_MAX];
    size_t n;
};

// Key `from` goes on as key `to`, no later one.
static void keep(struct keys *keys, size_t to, size_t from)
{
    keys->k[to] = keys->k[from];
    keys->factor[to] = keys->factor[from];
    memmove(keys->blocks[to], keys->blocks[from], sizeof keys->blocks[from]);
}

// Takes the keys out whose scales cannot be moved: they are rounded plainly.
static void move_scales(uint32_t type, struct keys *keys, size_t head_dim, int by)
{
    size_t left = 0;
    for (size_t i = 0; i < keys->n; i++) {
        bool good = true;
        for (size_t b = 0; b < kv_blocks(head_dim); b++)
            good &= other_scale(type, &keys->blocks[i][b], by);
        if (!good) {
            kv_round(type, keys->k[i], head_dim);
            continue;
        }
        keep(keys, left++, i);
    }
    keys->n = left;
}

// Keeps what became a fixed point of rounding, and takes it out.
static void keep_fixed(uint32_t type, struct keys *keys, size_t head_dim)
{
    size_t left = 0;
    for (size_t i = 0; i < keys->n; i++) {
        uint16_t out[KERNEL_HEAD_DIM_MAX], again[KERNEL_HEAD_DIM_MAX];
        kernels_best()->f32_to_f16(out, keys->x[i], head_dim);
        memcpy(again, out, head_dim * sizeof *out);
        kv_round(type, again, head_dim);
        if (!memcmp(again, out, head_dim * sizeof *out)) {
            memcpy(keys->k[i], out, head_dim * sizeof *out);
            continue;
        }
        keep(keys, left++, i);
    }
    keys->n = left;
}

static void round_side_by_side(uint32_t type, struct keys *keys, size_t head_dim)
{
    enum { TRIES = 4 };
    for (size_t i = 0; i < keys->n; i++)
        for (size_t c = 0; c < head_dim; c += KV_BLOCK)
            make_block(type, &keys->blocks[i][c / KV_BLOCK], keys->k[i] + c,
                       head_dim - c < KV_BLOCK ? head_dim - c : KV_BLOCK);
    // Where rounding again would find a smaller scale, that one is tried.
    for (int try = 0; try < TRIES && keys->n; try++) {
        struct kv_plane planes[KV_PLANES];
        move_scales(type, keys, head_dim, try ? -1 : 0);
        for (size_t i = 0; i < keys->n; i++) {
            kernels_best()->f16_to_f32(keys->x[i], keys->k[i], head_dim);
            planes[i] = (struct kv_plane){keys->x[i], keys->blocks[i], keys->factor[i]};
        }
        kernels_best()->kv_planes(type, planes, keys->n, head_dim);
        keep_fixed(type, keys, head_dim);
    }
    for (size_t i = 0; i < keys->n; i++)
        kv_round(type, keys->k[i], head_dim);
}

void kv_round_keys(uint32_t type, uint16_t *k, size_t stride, size_t heads, size_t head_dim,
                   const float *factors)
{
    struct keys keys;
    for (size_t h = 0; type != KV_F16 && h < heads; h += keys.n) {
        const size_t n = heads - h < KV_PLANES ? heads - h : KV_PLANES;
        for (size_t i = 0; i < n; i++) {
            keys.k[i] = k + (h + i) * stride;
            keys.factor[i] = factors + (h + i) * kv_triangle(head_dim);
        }
        keys.n = n;
        round_side_by_side(type, &keys, head_dim);
        keys.n = n;
    }
}

void kv_hadamard(float *x, size_t n)
{
    kernels_best()->hadamard(x, n);
}

void kv_turn(float *x, size_t head_dim)
{
    const size_t block = head_dim & -head_dim;
    const float size = 1 / sqrtf((float)block);
    for (size_t at = 0; at < head_dim; at += block)
        kv_hadamard(x + at, block);
    uint32_t sign = 0x9e3779b9u;
    for (size_t i = 0; i < head_dim; i++, sign += 0x9e3779b9u)
        x[i] *= sign >> 31 ? -size : size;
}

// ---- parts -------------------------------------------------------------------------------------

// Parts of K and V, and a token of them.
struct parts {
    uint32_t type;
    size_t tokens, head_dim, row; // bytes of V's codes
    uint8_t *keys, *values;
};

static struct parts parts_of(uint32_t type, const void *keys, const void *values, size_t tokens,
                             size_t head_dim)
{
    return (struct parts){type,
                          tokens,
                          head_dim,
                          kv_value_codes(type, head_dim),
                          (uint8_t *)(uintptr_t)keys,
                          (uint8_t *)(uintptr_t)values};
}

// Where the scales of the last block of token t lie, of K and of V.
static uint8_t *key_tail(const struct parts *p, size_t t)
{
    return p->keys + kv_key_rows(p->type, p->head_dim) * p->tokens +
           t * kv_tail_bytes(p->type, p->head_dim);
}

static uint8_t *value_tail(const struct parts *p, size_t t)
{
    return p->values + p->row * p->tokens + t * kv_tail_bytes(p->type, p->head_dim);
}

static void put_tail(uint32_t type, uint8_t *at, const struct kv_block *b)
{
    uint16_t word = (uint16_t)(b->scale << SCALE_SHIFT | b->zero);
    if (type == KV_Q8)
        *at = b->scale;
    else
        memcpy(at, &word, sizeof word);
}

static struct kv_block tail_at(uint32_t type, const uint8_t *at)
{
    uint16_t word;
    if (type == KV_Q8)
        return (struct kv_block){.scale = *at};
    memcpy(&word, at, sizeof word);
    return (struct kv_block){.scale = (uint8_t)(word >> SCALE_SHIFT), .zero = word & 15};
}

// Scale and zero point of the block of channel c of K or V of token t.
static struct kv_block block_at(const struct parts *p, size_t t, size_t c, bool of_key)
{
    size_t begin = c / KV_BLOCK * KV_BLOCK;
    if (p->head_dim - begin < KV_BLOCK)
        return tail_at(p->type, of_key ? key_tail(p, t) : value_tail(p, t));
    uint32_t hidden = kv_hidden(p->type, p->values + t * p->row + kv_value_codes(p->type, begin)) >>
                      (of_key ? 0 : 8);
    return (struct kv_block){
        .scale = hidden & 0xff,
        .zero = (uint8_t)(p->type == KV_Q4 ? hidden >> (of_key ? 16 : 12) & 15 : 0)};
}

static void put_key(const struct parts *p, size_t t, size_t c, const struct kv_block *b, size_t n)
{
    uint8_t *codes = p->keys + (p->type == KV_Q8 ? c : c / 2) * p->tokens + t;
    if (p->type == KV_Q8)
        for (size_t i = 0; i < n; i++)
            codes[i * p->tokens] = (uint8_t)b->code[i];
    else
        for (size_t i = 0; i < n; i += 2)
            codes[i / 2 * p->tokens] = (uint8_t)(b->code[i] | b->code[i + 1] << 4);
    if (n < KV_BLOCK)
        put_tail(p->type, key_tail(p, t), b);
}

static void put_value(const struct parts *p, size_t t, size_t c, const struct kv_block *b, size_t n)
{
    const size_t half = KV_BLOCK / 2;
    uint8_t *codes = p->values + t * p->row + kv_value_codes(p->type, c);
    if (p->type == KV_Q8)
        memcpy(codes, b->code, n);
    else
        for (size_t i = 0; i < n && i < half; i++)
            codes[i] = (uint8_t)(b->code[i] | b->code[i + half] << 4);
    if (n < KV_BLOCK)
        put_tail(p->type, value_tail(p, t), b);
}

void kv_put(uint32_t type, void *keys, void *values, size_t tokens, size_t head_dim, size_t t,
            size_t n, const uint16_t *k, const uint16_t *v)
{
    const struct parts p = parts_of(type, keys, values, tokens, head_dim);
    if (type == KV_F16) {
        kernel_transpose16((uint16_t *)keys + t, tokens, k, head_dim, n, head_dim);
        memcpy(p.values + t * p.row, v, n * p.row);
        return;
    }
    for (; n; n--, t++, k += head_dim, v += head_dim) {
        for (size_t c = 0; c < head_dim; c += KV_BLOCK) {
            size_t left = head_dim - c < KV_BLOCK ? head_dim - c : KV_BLOCK;
            struct kv_block key, value;
            make_blocks(type, &key, &value, k, v, c, head_dim);
            put_key(&p, t, c, &key, left);
            put_value(&p, t, c, &value, left);
        }
    }
}

// Code of channel c of token t.
static int key_code(const struct parts *p, size_t t, size_t c)
{
    return p->type == KV_Q8 ? (int8_t)p->keys[c * p->tokens + t]
                            : p->keys[c / 2 * p->tokens + t] >> c % 2 * 4 & 15;
}

static int value_code(const struct parts *p, size_t t, size_t c)
{
    const size_t half = KV_BLOCK / 2, in = c % KV_BLOCK;
    const uint8_t *codes = p->values + t * p->row;
    return p->type == KV_Q8 ? (int8_t)codes[c]
                            : codes[c / KV_BLOCK * half + in % half] >> in / half * 4 & 15;
}

void kv_get(uint32_t type, const void *keys, const void *values, size_t tokens, size_t head_dim,
            size_t t, size_t n, uint16_t *k, uint16_t *v)
{
    const struct parts p = parts_of(type, keys, values, tokens, head_dim);
    if (type == KV_F16) {
        kernel_transpose16(k, head_dim, (const uint16_t *)keys + t, tokens, head_dim, n);
        memcpy(v, p.values + t * p.row, n * p.row);
        return;
    }
    for (; n; n--, t++, k += head_dim, v += head_dim) {
        for (size_t c = 0; c < head_dim; c += KV_BLOCK) {
            size_t left = head_dim - c < KV_BLOCK ? head_dim - c : KV_BLOCK;
            struct kv_block key = block_at(&p, t, c, true), value = block_at(&p, t, c, false);
            for (size_t i = 0; i < left; i++) {
                key.code[i] = (int8_t)key_code(&p, t, c + i);
                value.code[i] = (int8_t)value_code(&p, t, c + i);
            }
            numbers(type, &key, k + c, left);
            numbers(type, &value, v + c, left);
        }
    }
}

static float number(const struct kv_block *b, uint32_t type, int code)
{
    return scale_of(type, b->scale) * (float)(code - b->zero) + 0.0f; // a zero is positive
}

float kv_key(uint32_t type, const void *keys, const void *values, size_t tokens, size_t head_dim,
             size_t t, size_t c)
{
    const struct parts p = parts_of(type, keys, values, tokens, head_dim);
    if (type == KV_F16)
        return kernel_f16_to_f32(((const uint16_t *)keys)[c * tokens + t]);
    struct kv_block b = block_at(&p, t, c, true);
    return number(&b, type, key_code(&p, t, c));
}

float kv_value(uint32_t type, const void *values, size_t tokens, size_t head_dim, size_t t,
               size_t c)
{
    const struct parts p = parts_of(type, NULL, values, tokens, head_dim);
    if (type == KV_F16)
        return kernel_f16_to_f32(((const uint16_t *)values)[t * head_dim + c]);
    struct kv_block b = block_at(&p, t, c, false);
    return number(&b, type, value_code(&p, t, c));
}
