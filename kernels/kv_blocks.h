// SPDX-License-Identifier: Apache-2.0
// Private to kernels/: what all who round to blocks (kernels/kv.h) say of scales. Every operation
// on floats is exact or has one fixed order, here and in the sets, so that there is nothing for a
// set to differ in.
#ifndef INST_KERNELS_KV_BLOCKS_H
#define INST_KERNELS_KV_BLOCKS_H

#include "kernels/kv.h"

enum {
    SCALE_NAN = 0xff,
    SCALE_SHIFT = 7, // from the byte of a scale to fp16
    Q8_CODE = 127,
    Q8_SCALE = 0xf0, // of 512: with a greater one codes would not be fp16
    Q4_CODE = 15,
    Q4_SCALE = 0xf7,    // the greatest
    SCALES_SMALLER = 4, // below the first one that are tried for Q4
    SCALES_GREATER = 5, // above the first one that V rounded before may have
};

static const float kv_largest = 65504; // fp16

union kv_bits {
    float value;
    uint32_t bits;
};

// fp16(scale << SCALE_SHIFT) times the type's unit.
static inline float scale_of(uint32_t type, uint8_t scale)
{
    const float unit = type == KV_Q8 ? 1.0f / 64 : 1.0f / 8;
    // 5 bits of exponent and 3 of mantissa.
    const uint32_t bias = scale < 0xf8 ? 127 - 15 : 255 - 31;
    union kv_bits u = {.bits = (scale + (bias << 3)) << 20};
    return (scale < 8 ? (float)scale * 0x1p-17f : u.value) * unit;
}

// The least scale that is not below x, `most` at most.
static inline uint8_t scale_for(uint32_t type, float x, uint8_t most)
{
    union kv_bits u = {x + 0.0f}; // not -0
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
#define KV_ROUND 0x1.8p23f
static inline float nearest(float x)
{
    return (x + KV_ROUND) - KV_ROUND;
}

static inline float between(float x, float low, float high)
{
    return x < low ? low : x > high ? high : x;
}

static inline float inverse_of(float scale)
{
    return scale > 0 ? 1 / scale : 0;
}

// The scale of a block of Q8 that reaches a to both sides. Where the greatest code would also fit
// in the next smaller scale, that one is taken, whether or not it cuts something off: what comes
// out is then rounded in the same way again.
static inline uint8_t q8_scale_for(float a)
{
    const uint8_t scale = scale_for(KV_Q8, a / Q8_CODE, Q8_SCALE);
    if (!scale)
        return 0;
    const float s = scale_of(KV_Q8, scale), less = scale_of(KV_Q8, (uint8_t)(scale - 1));
    return (uint8_t)(scale - (nearest(a / s) * s <= Q8_CODE * less));
}

// The greatest code of Q4, from 0 on, whose number is fp16.
static inline float code_limit(float s)
{
    return s * Q4_CODE > kv_largest ? (float)(int)(kv_largest / s) : Q4_CODE;
}

// Zero point of Q4 for numbers down to `low`.
static inline uint8_t zero_for(uint32_t type, uint8_t scale, float low)
{
    if (type == KV_Q8)
        return 0;
    const float s = scale_of(type, scale);
    return (uint8_t)between(nearest(-low * inverse_of(s)), 0, code_limit(s));
}

// What codes less their zero point may be: from *least to *most.
static inline void code_range(uint32_t type, float s, float zero, float *least, float *most)
{
    const float limit = type == KV_Q4 ? code_limit(s) : Q8_CODE;
    *least = type == KV_Q4 ? -zero : -Q8_CODE;
    *most = type == KV_Q4 && Q4_CODE - zero < limit ? Q4_CODE - zero : limit;
}

// How a channel of a key is rounded, whose block has a scale and a zero point.
struct plane_block {
    float scale, inverse, least, most;
};

static inline struct plane_block plane_block(uint32_t type, const struct kv_block *b)
{
    const float s = scale_of(type, b->scale);
    if (type == KV_Q8)
        return (struct plane_block){s, inverse_of(s), -Q8_CODE, Q8_CODE};
    return (struct plane_block){s, inverse_of(s), 0.0f - (float)b->zero,
                                (float)(Q4_CODE - b->zero)};
}

// The first scale that is looked at for a whole block of V.
static inline uint8_t value_scale_for(uint32_t type, float low, float high)
{
    if (type == KV_Q4)
        return scale_for(type, (high - low) / Q4_CODE, Q4_SCALE);
    return scale_for(type, (high > -low ? high : -low) / Q8_CODE, Q8_SCALE);
}

// kv_hidden.
static inline uint32_t hidden_of(const struct kv_block *key, const struct kv_block *value)
{
    return key->scale | (uint32_t)value->scale << 8 | (uint32_t)key->zero << 16 |
           (uint32_t)value->zero << 20;
}

// The squared error of a block is summed in 8 lanes, and they in ascending order.
static inline float sum_of_lanes(const float *lane)
{
    float sum = 0;
    for (size_t l = 0; l < 8; l++)
        sum += lane[l];
    return sum;
}

#endif
