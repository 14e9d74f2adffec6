// SPDX-License-Identifier: Apache-2.0
// Rounding to blocks, and parts of K and V. Every operation on floats here is exact or has one
// fixed order, so that there is nothing for a set to differ in.
#include "kernels/kv.h"
#include "kernels/kv_keys.h"
#include "kernels/kernels.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

enum {
    SCALE_NAN = 0xff,
    SCALE_SHIFT = 7, // from the byte of a scale to fp16
    Q8_CODE = 127,
    Q8_SCALE = 0xf0, // of 512: with a greater one codes would not be fp16
    Q4_CODE = 15,
    Q4_SCALE = 0xf7, // the greatest
    SMALLER = 4,     // scales below the first one that are tried for Q4
};

static const float largest = 65504; // fp16

struct block {
    uint8_t scale, zero;
    int8_t code[KV_BLOCK];
};

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

static float scale_of(uint32_t type, uint8_t scale)
{
    float unit = type == KV_Q8 ? 1.0f / 64 : 1.0f / 8;
    return kernel_f16_to_f32((uint16_t)(scale << SCALE_SHIFT)) * unit;
}

// The least scale that is not below x, `most` at most.
static uint8_t scale_for(uint32_t type, float x, uint8_t most)
{
    union {
        float value;
        uint32_t bits;
    } u = {x};
    // Exponent and 3 bits, above those of the least scale with a leading 1.
    int32_t least = type == KV_Q8 ? 127 - 20 : 127 - 17;
    int32_t up = (int32_t)((u.bits + 0xfffff) >> 20) - (least << 3) + 8;
    if (up < 8) { // multiples of the least scale
        float n = x * (type == KV_Q8 ? 0x1p23f : 0x1p20f);
        up = (int32_t)n;
        up += (float)up < n;
    }
    return up < most ? (uint8_t)up : most;
}

// To the nearest integer, ties to even; |x| < 2^22.
static inline float nearest(float x)
{
    const float round = 0x1.8p23f;
    return (x + round) - round;
}

static inline float between(float x, float low, float high)
{
    return x < low ? low : x > high ? high : x;
}

static void q8_block(struct block *b, const float *x, float low, float high)
{
    float a = high > -low ? high : -low;
    b->scale = scale_for(KV_Q8, a / Q8_CODE, Q8_SCALE);
    float s = scale_of(KV_Q8, b->scale);
    // Where the greatest code would also fit in the next smaller scale, that one is taken, whether
    // or not it cuts something off: what comes out is then rounded in the same way again.
    if (b->scale) {
        float less = scale_of(KV_Q8, (uint8_t)(b->scale - 1));
        if (nearest(a / s) * s <= Q8_CODE * less) {
            b->scale--;
            s = less;
        }
    }
    float inverse = s > 0 ? 1 / s : 0;
    for (size_t i = 0; i < KV_BLOCK; i++)
        b->code[i] = (int8_t)between(nearest(x[i] * inverse), -Q8_CODE, Q8_CODE);
}

// Codes with one scale; their squared error, in a fixed order.
static float q4_try(struct block *b, uint8_t scale, const float *x, float low)
{
    float s = scale_of(KV_Q4, scale), inverse = s > 0 ? 1 / s : 0, error = 0, lane[8] = {0};
    float limit = s * Q4_CODE > largest ? (float)(int)(largest * inverse) : Q4_CODE;
    float zero = between(nearest(-low * inverse), 0, limit);
    float least = -zero, most = Q4_CODE - zero < limit ? Q4_CODE - zero : limit;
    b->scale = scale;
    b->zero = (uint8_t)zero;
    for (size_t i = 0; i < KV_BLOCK; i += 8) {
        for (size_t l = 0; l < 8; l++) {
            float code = between(nearest(x[i + l] * inverse), least, most);
            float d = code * s - x[i + l];
            lane[l] += d * d;
            b->code[i + l] = (int8_t)(code + zero);
        }
    }
    for (size_t l = 0; l < 8; l++)
        error += lane[l];
    return error;
}

// The scale of the least error: the least one that reaches all numbers, and some that cut the
// outermost off. Greater ones only where they are exact, as for numbers that were rounded before.
static void q4_block(struct block *b, const float *x, float low, float high)
{
    uint8_t first = scale_for(KV_Q4, (high - low) / Q4_CODE, Q4_SCALE);
    float least = q4_try(b, first, x, low);
    for (int by = 2; by >= -SMALLER && least > 0; by--) {
        int scale = first + by;
        struct block other;
        if (!by || scale < 0 || scale > Q4_SCALE)
            continue;
        float error = q4_try(&other, (uint8_t)scale, x, low);
        if (by > 0 ? error == 0 : error < least) {
            *b = other;
            least = error;
        }
    }
}

// Up to 32 channels.
static void make_block(uint32_t type, struct block *b, const uint16_t *in, size_t n)
{
    float x[KV_BLOCK] = {0}, low = 0, high = 0;
    bool finite = true;
    kernels_best()->f16_to_f32(x, in, n);
    for (size_t i = 0; i < n; i++) {
        finite &= (in[i] & 0x7c00) != 0x7c00;
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    memset(b, 0, sizeof *b);
    if (!finite)
        b->scale = SCALE_NAN;
    else if (type == KV_Q8)
        q8_block(b, x, low, high);
    else
        q4_block(b, x, low, high);
}

static uint16_t word_of(const struct block *b)
{
    return (uint16_t)(b->scale << SCALE_SHIFT | b->zero);
}

static float number(float scale, int code, int zero)
{
    return scale * (float)(code - zero) + 0.0f; // a zero is positive
}

void kv_round(uint32_t type, uint16_t *x, size_t head_dim)
{
    struct block b;
    for (size_t c = 0; type != KV_F16 && c < head_dim; c += KV_BLOCK) {
        size_t n = head_dim - c < KV_BLOCK ? head_dim - c : KV_BLOCK;
        make_block(type, &b, x + c, n);
        float s = scale_of(type, b.scale), out[KV_BLOCK];
        for (size_t i = 0; i < KV_BLOCK; i++)
            out[i] = number(s, b.code[i], b.zero);
        kernels_best()->f32_to_f16(x + c, out, n);
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
static bool other_scale(uint32_t type, struct block *b, int by)
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
    return s * Q4_CODE <= largest / 2; // far from where codes end to be fp16
}

// Babai's nearest plane: from the last channel on, each one is rounded after the errors of those
// behind it, weighted, were taken from it.
static void round_plane(uint32_t type, float *x, size_t n, const struct block *blocks,
                        const float *factor)
{
    float wanted[KERNEL_HEAD_DIM_MAX];
    memcpy(wanted, x, n * sizeof *x);
    for (size_t i = n; i-- > 0;) {
        const struct block *b = &blocks[i / KV_BLOCK];
        float s = scale_of(type, b->scale), inverse = s > 0 ? 1 / s : 0, zero = b->zero;
        float least = type == KV_Q8 ? -Q8_CODE : -zero;
        float most = type == KV_Q8 ? Q8_CODE : Q4_CODE - zero;
        float out = s * between(nearest(wanted[i] * inverse), least, most) + 0.0f;
        kernels_best()->axpy(wanted, x[i] - out, factor + kv_triangle(i), i);
        x[i] = out;
    }
}

void kv_round_keys(uint32_t type, uint16_t *k, size_t head_dim, const float *factor)
{
    enum { TRIES = 4 };
    struct block blocks[KERNEL_HEAD_DIM_MAX / KV_BLOCK];
    float x[KERNEL_HEAD_DIM_MAX];
    uint16_t out[KERNEL_HEAD_DIM_MAX], again[KERNEL_HEAD_DIM_MAX];
    bool good = type != KV_F16;
    if (!good)
        return;
    for (size_t c = 0; c < head_dim; c += KV_BLOCK)
        make_block(type, &blocks[c / KV_BLOCK], k + c,
                   head_dim - c < KV_BLOCK ? head_dim - c : KV_BLOCK);
    // Where rounding again would find a smaller scale, that one is tried.
    for (int i = 0; i < TRIES && good; i++) {
        for (size_t b = 0; b < kv_blocks(head_dim); b++)
            good &= other_scale(type, &blocks[b], i ? -1 : 0);
        if (!good)
            break;
        kernels_best()->f16_to_f32(x, k, head_dim);
        round_plane(type, x, head_dim, blocks, factor);
        kernels_best()->f32_to_f16(out, x, head_dim);
        memcpy(again, out, head_dim * sizeof *out);
        kv_round(type, again, head_dim);
        if (!memcmp(again, out, head_dim * sizeof *out)) {
            memcpy(k, out, head_dim * sizeof *out);
            return;
        }
    }
    kv_round(type, k, head_dim);
}

void kv_hadamard(float *x, size_t n)
{
    for (size_t step = 1; step < n; step *= 2)
        for (size_t first = 0; first < n; first += 2 * step)
            for (size_t i = first; i < first + step; i++) {
                float a = x[i], b = x[i + step];
                x[i] = a + b;
                x[i + step] = a - b;
            }
}

void kv_turn(float *x, size_t head_dim)
{
    const size_t block = head_dim & -head_dim;
    const float size = 1 / sqrtf((float)block);
    for (size_t at = 0; at < head_dim; at += block)
        kv_hadamard(x + at, block);
    for (size_t i = 0; i < head_dim; i++)
        x[i] *= ((uint32_t)i + 1) * 0x9e3779b9u >> 31 ? -size : size;
}

// Scale and zero point of block n.
static struct block block_at(uint32_t type, const uint8_t *scales, size_t n)
{
    uint16_t word;
    if (type == KV_Q8)
        return (struct block){.scale = scales[n]};
    memcpy(&word, scales + 2 * n, sizeof word);
    return (struct block){.scale = (uint8_t)(word >> SCALE_SHIFT), .zero = word & 15};
}

// Code of channel c: of K of the first token at `codes`, of V of the token whose codes they are.
static inline int key_code(uint32_t type, const uint8_t *codes, size_t tokens, size_t c)
{
    return type == KV_Q8 ? (int8_t)codes[c * tokens] : codes[c / 2 * tokens] >> c % 2 * 4 & 15;
}

static inline int value_code(uint32_t type, const uint8_t *codes, size_t c)
{
    const size_t half = KV_BLOCK / 2, in = c % KV_BLOCK;
    return type == KV_Q8 ? (int8_t)codes[c]
                         : codes[c / KV_BLOCK * half + in % half] >> in / half * 4 & 15;
}

// ---- parts of K --------------------------------------------------------------------------------

void kv_put_keys(uint32_t type, void *part, size_t tokens, size_t head_dim, size_t t, size_t n,
                 const uint16_t *k)
{
    if (type == KV_F16) {
        kernel_transpose16((uint16_t *)part + t, tokens, k, head_dim, n, head_dim);
        return;
    }
    uint8_t *codes = part, *scales = codes + kv_key_rows(type, head_dim) * tokens;
    for (; n; n--, t++, k += head_dim) {
        for (size_t i = 0, c = 0; c < head_dim; i++, c += KV_BLOCK) {
            size_t left = head_dim - c < KV_BLOCK ? head_dim - c : KV_BLOCK;
            struct block b;
            make_block(type, &b, k + c, left);
            if (type == KV_Q8) {
                for (size_t j = 0; j < left; j++)
                    codes[(c + j) * tokens + t] = (uint8_t)b.code[j];
                scales[i * tokens + t] = b.scale;
                continue;
            }
            for (size_t j = 0; j < left; j += 2)
                codes[(c + j) / 2 * tokens + t] = (uint8_t)(b.code[j] | b.code[j + 1] << 4);
            uint16_t word = word_of(&b);
            memcpy(scales + 2 * (i * tokens + t), &word, sizeof word);
        }
    }
}

float kv_key(uint32_t type, const void *part, size_t tokens, size_t head_dim, size_t t, size_t c)
{
    const uint8_t *codes = part, *scales = codes + kv_key_rows(type, head_dim) * tokens;
    if (type == KV_F16)
        return kernel_f16_to_f32(((const uint16_t *)part)[c * tokens + t]);
    struct block b = block_at(type, scales, c / KV_BLOCK * tokens + t);
    return number(scale_of(type, b.scale), key_code(type, codes + t, tokens, c), b.zero);
}

void kv_get_keys(uint32_t type, const void *part, size_t tokens, size_t head_dim, size_t t,
                 size_t n, uint16_t *k)
{
    if (type == KV_F16) {
        kernel_transpose16(k, head_dim, (const uint16_t *)part + t, tokens, head_dim, n);
        return;
    }
    const uint8_t *codes = part, *scales = codes + kv_key_rows(type, head_dim) * tokens;
    float row[KERNEL_HEAD_DIM_MAX];
    for (; n; n--, t++, k += head_dim) {
        for (size_t i = 0, c = 0; c < head_dim; i++) {
            struct block b = block_at(type, scales, i * tokens + t);
            float s = scale_of(type, b.scale);
            for (size_t in = 0; in < KV_BLOCK && c < head_dim; in++, c++)
                row[c] = number(s, key_code(type, codes + t, tokens, c), b.zero);
        }
        kernels_best()->f32_to_f16(k, row, head_dim);
    }
}

// ---- parts of V --------------------------------------------------------------------------------

void kv_put_values(uint32_t type, void *part, size_t tokens, size_t head_dim, size_t t, size_t n,
                   const uint16_t *v)
{
    size_t bytes = kv_value_codes(type, head_dim), blocks = kv_blocks(head_dim);
    if (type == KV_F16) {
        memcpy((uint8_t *)part + t * bytes, v, n * bytes);
        return;
    }
    for (; n; n--, t++, v += head_dim) {
        uint8_t *codes = (uint8_t *)part + t * bytes;
        uint8_t *scales = (uint8_t *)part + tokens * bytes + kv_scale_bytes(type, t * blocks);
        for (size_t i = 0, c = 0; c < head_dim; i++, c += KV_BLOCK) {
            size_t left = head_dim - c < KV_BLOCK ? head_dim - c : KV_BLOCK;
            struct block b;
            make_block(type, &b, v + c, left);
            if (type == KV_Q8) {
                memcpy(codes + c, b.code, left);
                scales[i] = b.scale;
                continue;
            }
            for (size_t j = 0; j < left && j < KV_BLOCK / 2; j++)
                codes[c / 2 + j] = (uint8_t)(b.code[j] | b.code[j + KV_BLOCK / 2] << 4);
            uint16_t word = word_of(&b);
            memcpy(scales + 2 * i, &word, sizeof word);
        }
    }
}

float kv_value(uint32_t type, const void *part, size_t tokens, size_t head_dim, size_t t, size_t c)
{
    size_t bytes = kv_value_codes(type, head_dim), block = t * kv_blocks(head_dim) + c / KV_BLOCK;
    const uint8_t *codes = (const uint8_t *)part + t * bytes;
    if (type == KV_F16)
        return kernel_f16_to_f32(((const uint16_t *)part)[t * head_dim + c]);
    struct block b = block_at(type, (const uint8_t *)part + tokens * bytes, block);
    return number(scale_of(type, b.scale), value_code(type, codes, c), b.zero);
}

void kv_get_values(uint32_t type, const void *part, size_t tokens, size_t head_dim, size_t t,
                   size_t n, uint16_t *v)
{
    size_t bytes = kv_value_codes(type, head_dim);
    if (type == KV_F16) {
        memcpy(v, (const uint8_t *)part + t * bytes, n * bytes);
        return;
    }
    const uint8_t *scales = (const uint8_t *)part + tokens * bytes;
    float row[KERNEL_HEAD_DIM_MAX];
    for (; n; n--, t++, v += head_dim) {
        for (size_t i = 0, c = 0; c < head_dim; i++) {
            struct block b = block_at(type, scales, t * kv_blocks(head_dim) + i);
            float s = scale_of(type, b.scale);
            for (size_t in = 0; in < KV_BLOCK && c < head_dim; in++, c++)
                row[c] = number(s, value_code(type, (const uint8_t *)part + t * bytes, c), b.zero);
        }
        kernels_best()->f32_to_f16(v, row, head_dim);
    }
}
