// SPDX-License-Identifier: Apache-2.0
// Rounding to blocks (kernels/kv.h, docs/decisions/0018-kv-types.md), as it is meant. Included by
// reference.c alone.
#include "kernels/kv_blocks.h"

#include <stdbool.h>

static void q8_block(struct kv_block *b, const float *x, float low, float high)
{
    b->scale = q8_scale_for(high > -low ? high : -low);
    const float inverse = inverse_of(scale_of(KV_Q8, b->scale));
    for (size_t i = 0; i < KV_BLOCK; i++)
        b->code[i] = (int8_t)between(nearest(x[i] * inverse), -Q8_CODE, Q8_CODE);
}

// Codes with one scale; their squared error.
static float q4_try(struct kv_block *b, uint8_t scale, const float *x, float low)
{
    const float s = scale_of(KV_Q4, scale), inverse = inverse_of(s);
    float zero = zero_for(KV_Q4, scale, low), least, most, lane[8] = {0};
    code_range(KV_Q4, s, zero, &least, &most);
    b->scale = scale;
    b->zero = (uint8_t)zero;
    for (size_t i = 0; i < KV_BLOCK; i++) {
        float code = between(nearest(x[i] * inverse), least, most);
        float d = code * s - x[i];
        lane[i % 8] += d * d;
        b->code[i] = (int8_t)(code + zero);
    }
    return sum_of_lanes(lane);
}

// The scale of the least error: the least one that reaches all numbers, and some that cut the
// outermost off. Greater ones only where they are exact, as for numbers that were rounded before.
static void q4_block(struct kv_block *b, const float *x, float low, float high)
{
    const uint8_t first = value_scale_for(KV_Q4, low, high);
    float least = q4_try(b, first, x, low);
    for (int by = 2; by >= -SCALES_SMALLER && least > 0; by--) {
        int scale = first + by;
        struct kv_block other;
        if (!by || scale < 0 || scale > Q4_SCALE)
            continue;
        float error = q4_try(&other, (uint8_t)scale, x, low);
        if (by > 0 ? error == 0 : error < least) {
            *b = other;
            least = error;
        }
    }
}

// Numbers as fp32, and how far they reach to either side of 0. False: not all are finite.
static bool block_range(const uint16_t *in, size_t n, float *x, float *low, float *high)
{
    bool finite = true;
    *low = *high = 0;
    memset(x, 0, KV_BLOCK * sizeof *x);
    for (size_t i = 0; i < n; i++) {
        x[i] = kernel_f16_to_f32(in[i]);
        finite &= (in[i] & 0x7c00) != 0x7c00;
        *low = x[i] < *low ? x[i] : *low;
        *high = x[i] > *high ? x[i] : *high;
    }
    return finite;
}

static void ref_kv_make(uint32_t type, struct kv_block *b, const uint16_t *in, size_t n)
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

static void ref_kv_numbers(uint32_t type, const struct kv_block *b, uint16_t *out, size_t n)
{
    const float s = scale_of(type, b->scale);
    for (size_t i = 0; i < n; i++) // a zero is positive
        out[i] = kernel_f32_to_f16(s * (float)(b->code[i] - b->zero) + 0.0f);
}

// ---- blocks of V, which carry scales -----------------------------------------------------------

// Codes with scale and zero point as they are in *b, of which the scales beside K's can be had: the
// nearest ones, of which some are moved by one. Their squared error.
static float value_try(uint32_t type, struct kv_block *b, const float *x,
                       const struct kv_block *key)
{
    const float s = scale_of(type, b->scale), inverse = inverse_of(s), zero = b->zero;
    const uint32_t hidden = hidden_of(key, b);
    float code[KV_BLOCK], other[KV_BLOCK], cost[KV_BLOCK], lane[8] = {0}, least, most;
    code_range(type, s, zero, &least, &most);
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
    for (size_t i = 0; i < KV_BLOCK; i++) {
        float d = code[i] * s - x[i];
        lane[i % 8] += d * d;
        b->code[i] = (int8_t)(code[i] + zero);
    }
    return sum_of_lanes(lane);
}

static bool multiples_of(const float *x, float s)
{
    for (size_t i = 0; i < KV_BLOCK; i++)
        if (nearest(x[i] * inverse_of(s)) * s != x[i])
            return false;
    return true;
}

// What was rounded before is found as it was: its scale is the least that reaches both ends or one
// of some greater ones, as codes of the ends may have been moved, and so may its zero point be
// greater by one. Else it is the one of least error among the first and some smaller ones, as of K.
static void ref_kv_make_value(uint32_t type, struct kv_block *b, const uint16_t *in,
                              const struct kv_block *key)
{
    float x[KV_BLOCK], low, high;
    memset(b, 0, sizeof *b);
    if (!block_range(in, KV_BLOCK, x, &low, &high)) {
        memset(x, 0, sizeof x);
        b->scale = SCALE_NAN;
        value_try(type, b, x, key);
        return;
    }
    const bool q8 = type == KV_Q8;
    const int largest = q8 ? Q8_SCALE : Q4_SCALE, first = value_scale_for(type, low, high);
    for (int scale = first; scale <= first + SCALES_GREATER && scale <= largest; scale++) {
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
    for (int scale = first; scale >= 0 && scale >= first - (q8 ? 1 : SCALES_SMALLER); scale--) {
        struct kv_block tried = {.scale = (uint8_t)scale,
                                 .zero = zero_for(type, (uint8_t)scale, low)};
        float error = value_try(type, &tried, x, key);
        if (!(error < least))
            continue;
        *b = tried;
        least = error;
    }
}

static void ref_kv_planes(uint32_t type, const struct kv_plane *planes, size_t n, size_t head_dim)
{
    for (const struct kv_plane *p = planes; p < planes + n; p++) {
        float wanted[KERNEL_HEAD_DIM_MAX];
        memcpy(wanted, p->x, head_dim * sizeof wanted[0]);
        for (size_t i = head_dim; i-- > 0;) {
            const struct plane_block b = plane_block(type, &p->blocks[i / KV_BLOCK]);
            const float code = between(nearest(wanted[i] * b.inverse), b.least, b.most);
            const float out = b.scale * code + 0.0f, error = p->x[i] - out;
            for (size_t j = 0; j < i; j++)
                wanted[j] = fmaf(error, p->factor[i * (i + 1) / 2 + j], wanted[j]);
            p->x[i] = out;
        }
    }
}

static void ref_hadamard(float *x, size_t n)
{
    for (size_t step = 1; step < n; step *= 2)
        for (size_t first = 0; first < n; first += 2 * step)
            for (size_t i = first; i < first + step; i++) {
                float a = x[i], b = x[i + step];
                x[i] = a + b;
                x[i + step] = a - b;
            }
}
