// SPDX-License-Identifier: Apache-2.0
// Rounding to blocks, and parts of K and V. Every operation on floats here is exact or has one
// fixed order, so that there is nothing for a set to differ in.
#include "kernels/kv.h"
#include "kernels/kv_keys.h"
#include "kernels/kernels.h"

#include <math.h>
#include <stdbool.h>

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
    } u = {x + 0.0f}; // not -0
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

// The greatest code, from 0 on, whose number is fp16.
static float code_limit(float s)
{
    return s * Q4_CODE > largest ? (float)(int)(largest / s) : Q4_CODE;
}

// Zero point of Q4 for numbers down to `low`.
static uint8_t zero_for(uint32_t type, uint8_t scale, float low)
{
    float s = scale_of(type, scale), inverse = s > 0 ? 1 / s : 0;
    return type == KV_Q8 ? 0 : (uint8_t)between(nearest(-low * inverse), 0, code_limit(s));
}

// Codes with one scale; their squared error, in a fixed order.
static float q4_try(struct block *b, uint8_t scale, const float *x, float low)
{
    float s = scale_of(KV_Q4, scale), inverse = s > 0 ? 1 / s : 0, error = 0, lane[8] = {0};
    float limit = code_limit(s), zero = zero_for(KV_Q4, scale, low);
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

// Up to 32 channels as fp32, and how far they reach to either side of 0. False: not all are
// finite.
static bool block_range(const uint16_t *in, size_t n, float *x, float *low, float *high)
{
    bool finite = true;
    *low = *high = 0;
    memset(x, 0, KV_BLOCK * sizeof *x);
    kernels_best()->f16_to_f32(x, in, n);
    for (size_t i = 0; i < n; i++) {
        finite &= (in[i] & 0x7c00) != 0x7c00;
        *low = x[i] < *low ? x[i] : *low;
        *high = x[i] > *high ? x[i] : *high;
    }
    return finite;
}

static void make_block(uint32_t type, struct block *b, const uint16_t *in, size_t n)
{
    float x[KV_BLOCK], low, high;
    memset(b, 0, sizeof *b);
    if (!block_range(in, n, x, &low, &high))
        b->scale = SCALE_NAN;
    else if (type == KV_Q8)
        q8_block(b, x, low, high);
    else
        q4_block(b, x, low, high);
}

static float number(float scale, int code, int zero)
{
    return scale * (float)(code - zero) + 0.0f; // a zero is positive
}

// What a block holds, as fp16.
static void numbers(uint32_t type, const struct block *b, uint16_t *out, size_t n)
{
    float s = scale_of(type, b->scale), x[KV_BLOCK];
    for (size_t i = 0; i < KV_BLOCK; i++)
        x[i] = number(s, b->code[i], b->zero);
    kernels_best()->f32_to_f16(out, x, n);
}

// Of K: with the scale that rounding what was rounded comes to. V of the token depends on it.
static void make_key(uint32_t type, struct block *b, const uint16_t *in, size_t n)
{
    uint16_t out[KV_BLOCK];
    make_block(type, b, in, n);
    if (b->scale == SCALE_NAN)
        return;
    numbers(type, b, out, n);
    if (memcmp(out, in, n * sizeof *in) != 0)
        make_block(type, b, out, n);
}

// ---- blocks of V, which carry scales -----------------------------------------------------------

// kv_hidden.
static uint32_t hidden_of(const struct block *key, const struct block *value)
{
    return key->scale | (uint32_t)value->scale << 8 | (uint32_t)key->zero << 16 |
           (uint32_t)value->zero << 20;
}

// Codes with scale and zero point as they are in *b, of which the scales beside K's can be had: the
// nearest ones, of which some are moved by one. Their squared error, in a fixed order.
static float value_try(uint32_t type, struct block *b, const float *x, const struct block *key)
{
    const float s = scale_of(type, b->scale), inverse = s > 0 ? 1 / s : 0, zero = b->zero;
    const float limit = type == KV_Q4 ? code_limit(s) : Q8_CODE;
    const float least = type == KV_Q4 ? -zero : -Q8_CODE;
    const float most = type == KV_Q4 && Q4_CODE - zero < limit ? Q4_CODE - zero : limit;
    const uint32_t hidden = hidden_of(key, b);
    float code[KV_BLOCK], other[KV_BLOCK], cost[KV_BLOCK], error = 0, lane[8] = {0};
    for (size_t i = 0; i < KV_BLOCK; i++) {
        float c = between(nearest(x[i] * inverse), least, most), d = c * s - x[i];
        float up = d <= 0 ? 1.0f : -1.0f;
        up = c + up > most ? -1.0f : c + up < least ? 1.0f : up;
        code[i] = c;
        other[i] = c + up;
        cost[i] = (other[i] * s - x[i]) * (other[i] * s - x[i]) - d * d;
    }
    for (size_t i = 0; i < KV_BLOCK / 2; i++) {
        const size_t j = i + KV_BLOCK / 2;
        const int forced = type == KV_Q4 && i < 8;
        if (forced && (((uint32_t)((int)code[i] + b->zero) ^ hidden >> (16 + i)) & 1))
            code[i] = other[i];
        if (!(((uint32_t)((int)code[i] + (int)code[j]) ^ hidden >> i) & 1))
            continue;
        const size_t moved = forced || cost[j] < cost[i] ? j : i;
        code[moved] = other[moved];
    }
    for (size_t i = 0; i < KV_BLOCK; i += 8)
        for (size_t l = 0; l < 8; l++) {
            float d = code[i + l] * s - x[i + l];
            lane[l] += d * d;
            b->code[i + l] = (int8_t)(code[i + l] + zero);
        }
    for (size_t l = 0; l < 8; l++)
        error += lane[l];
    return error;
}

static bool multiples_of(const float *x, float s)
{
    const float inverse = s > 0 ? 1 / s : 0;
    float off = 0;
    for (size_t i = 0; i < KV_BLOCK; i++)
        off += fabsf(nearest(x[i] * inverse) * s - x[i]);
    return off == 0;
}

// A whole block of V beside K's. What was rounded before is found as it was: its scale is the least
// that reaches both ends or one of some greater ones, as codes of the ends may have been moved, and
// so may its zero point be greater by one. Else it is the one of least error among the first and
// some smaller ones, as of K.
static void make_value(uint32_t type, struct block *b, const uint16_t *in, const struct block *key)
{
    enum { GREATER = 5 };
    float x[KV_BLOCK], low, high;
    memset(b, 0, sizeof *b);
    if (!block_range(in, KV_BLOCK, x, &low, &high)) {
        memset(x, 0, sizeof x);
        b->scale = SCALE_NAN;
        value_try(type, b, x, key);
        return;
    }
    const bool q8 = type == KV_Q8;
    const int largest_scale = q8 ? Q8_SCALE : Q4_SCALE;
    const float reach = q8 ? (high > -low ? high : -low) / Q8_CODE : (high - low) / Q4_CODE;
    const int first = scale_for(type, reach, (uint8_t)largest_scale);
    for (int scale = first; scale <= first + GREATER && scale <= largest_scale; scale++) {
        if (!multiples_of(x, scale_of(type, (uint8_t)scale)))
            continue;
        for (uint8_t up = 0; up <= !q8; up++) {
            b->scale = (uint8_t)scale;
            b->zero = (uint8_t)(zero_for(type, b->scale, low) + up);
            if (b->zero <= Q4_CODE && value_try(type, b, x, key) == 0)
                return;
        }
    }
    float least = INFINITY;
    for (int scale = first; scale >= 0 && scale >= first - (q8 ? 1 : SMALLER); scale--) {
        struct block tried = {.scale = (uint8_t)scale, .zero = zero_for(type, (uint8_t)scale, low)};
        float error = value_try(type, &tried, x, key);
        if (!(error < least))
            continue;
        *b = tried;
        least = error;
    }
}

// ---- rounding ----------------------------------------------------------------------------------

void kv_round(uint32_t type, uint16_t *k, size_t head_dim)
{
    struct block b;
    for (size_t c = 0; type != KV_F16 && c < head_dim; c += KV_BLOCK) {
        size_t n = head_dim - c < KV_BLOCK ? head_dim - c : KV_BLOCK;
        make_block(type, &b, k + c, n);
        numbers(type, &b, k + c, n);
    }
}

// Block of channels c and on of K and V of a token.
static void make_blocks(uint32_t type, struct block *key, struct block *value, const uint16_t *k,
                        const uint16_t *v, size_t c, size_t head_dim)
{
    make_key(type, key, k + c, head_dim - c < KV_BLOCK ? head_dim - c : KV_BLOCK);
    if (head_dim - c < KV_BLOCK)
        make_block(type, value, v + c, head_dim - c);
    else
        make_value(type, value, v + c, key);
}

void kv_round_value(uint32_t type, uint16_t *v, const uint16_t *k, size_t head_dim)
{
    struct block key, value;
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

static void put_tail(uint32_t type, uint8_t *at, const struct block *b)
{
    uint16_t word = (uint16_t)(b->scale << SCALE_SHIFT | b->zero);
    if (type == KV_Q8)
        *at = b->scale;
    else
        memcpy(at, &word, sizeof word);
}

static struct block tail_at(uint32_t type, const uint8_t *at)
{
    uint16_t word;
    if (type == KV_Q8)
        return (struct block){.scale = *at};
    memcpy(&word, at, sizeof word);
    return (struct block){.scale = (uint8_t)(word >> SCALE_SHIFT), .zero = word & 15};
}

// Scale and zero point of the block of channel c of K or V of token t.
static struct block block_at(const struct parts *p, size_t t, size_t c, bool of_key)
{
    size_t begin = c / KV_BLOCK * KV_BLOCK;
    if (p->head_dim - begin < KV_BLOCK)
        return tail_at(p->type, of_key ? key_tail(p, t) : value_tail(p, t));
    uint32_t hidden = kv_hidden(p->type, p->values + t * p->row + kv_value_codes(p->type, begin)) >>
                      (of_key ? 0 : 8);
    return (struct block){.scale = hidden & 0xff,
                          .zero =
                              (uint8_t)(p->type == KV_Q4 ? hidden >> (of_key ? 16 : 12) & 15 : 0)};
}

static void put_key(const struct parts *p, size_t t, size_t c, const struct block *b, size_t n)
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

static void put_value(const struct parts *p, size_t t, size_t c, const struct block *b, size_t n)
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
            struct block key, value;
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
            struct block key = block_at(&p, t, c, true), value = block_at(&p, t, c, false);
            for (size_t i = 0; i < left; i++) {
                key.code[i] = (int8_t)key_code(&p, t, c + i);
                value.code[i] = (int8_t)value_code(&p, t, c + i);
            }
            numbers(type, &key, k + c, left);
            numbers(type, &value, v + c, left);
        }
    }
}

float kv_key(uint32_t type, const void *keys, const void *values, size_t tokens, size_t head_dim,
             size_t t, size_t c)
{
    const struct parts p = parts_of(type, keys, values, tokens, head_dim);
    if (type == KV_F16)
        return kernel_f16_to_f32(((const uint16_t *)keys)[c * tokens + t]);
    struct block b = block_at(&p, t, c, true);
    return number(scale_of(type, b.scale), key_code(&p, t, c), b.zero);
}

float kv_value(uint32_t type, const void *values, size_t tokens, size_t head_dim, size_t t,
               size_t c)
{
    const struct parts p = parts_of(type, NULL, values, tokens, head_dim);
    if (type == KV_F16)
        return kernel_f16_to_f32(((const uint16_t *)values)[t * head_dim + c]);
    struct block b = block_at(&p, t, c, false);
    return number(scale_of(type, b.scale), value_code(&p, t, c), b.zero);
}
