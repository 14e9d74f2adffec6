// SPDX-License-Identifier: Apache-2.0
// The NEON set (AArch64 baseline): vector operations here, algorithms in body.h. A 16-lane
// accumulator is four registers.
#include "kernels/sets.h"

#include <arm_neon.h>
#include <string.h>

#define SET_TABLE kernels_neon
#define SET_NAME  "neon"
#define OP        static inline __attribute__((always_inline))

typedef float32x4_t vn;
enum {
    VN = 4,
    // Blocking: 32 registers.
    TILE_NR = 6,
    TILE_MIN_ROWS = 24, // of x, for types that are not in blocks
    K_JR = 2,           // rows of a K type that share x
    K_NR = 3,           // of a panel of words
    BLOCK_JR = 2,       // rows of a block type that share x
    // From this many queries on, converting a tile to fp32 first pays.
    MANY_QUERIES = 16,
    MANY_BLOCK_QUERIES = 16, // of K and V in blocks
    // Accumulators of a panel of fp32.
    PANEL_QUERIES = 6,
    PANEL_VECTORS = 4,
};
#define TILE_MR       4
#define K_MR          3
#define DIRECT_JR(mr) ((mr) == 1 ? 4 : (mr) == 2 ? 2 : 1)
// Vectors of columns that nq <= 4 queries share: accumulators enough for the latency of fma.
#define FEW_VECTORS(nq) ((nq) <= 2 ? 8 : 4)

typedef struct {
    vn p[4];
} v16;

OP vn vn_set1(float x)
{
    return vdupq_n_f32(x);
}
OP vn vn_load(const void *p) // of any alignment
{
    return vreinterpretq_f32_u8(vld1q_u8(p));
}
OP void vn_store(float *p, vn v)
{
    vst1q_f32(p, v);
}
OP vn vn_fma(vn a, vn b, vn c)
{
    return vfmaq_f32(c, a, b);
}
OP vn vn_add(vn a, vn b)
{
    return vaddq_f32(a, b);
}
OP vn vn_sub(vn a, vn b)
{
    return vsubq_f32(a, b);
}
OP vn vn_mul(vn a, vn b)
{
    return vmulq_f32(a, b);
}
OP vn vn_div(vn a, vn b)
{
    return vdivq_f32(a, b);
}
// a > b ? a : b (vmaxq would pass a NaN on)
OP vn vn_max(vn a, vn b)
{
    return vbslq_f32(vcgtq_f32(a, b), a, b);
}
// a < b ? yes : no
OP vn vn_if_less(vn a, vn b, vn yes, vn no)
{
    return vbslq_f32(vcltq_f32(a, b), yes, no);
}
// a < b ? +0 : x
OP vn vn_zero_if_less(vn a, vn b, vn x)
{
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(x), vcltq_f32(a, b)));
}
// 2^n of the n in the low bits of t.
OP vn vn_exp2_low_bits(vn t)
{
    uint32x4_t n = vaddq_u32(vreinterpretq_u32_f32(t), vdupq_n_u32(127));
    return vreinterpretq_f32_u32(vshlq_n_u32(n, 23));
}
OP vn vn_f16(const void *p)
{
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p)));
}
OP vn vn_f16_set1(uint16_t h)
{
    return vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(h)));
}
OP float half_float(uint16_t h)
{
    return vgetq_lane_f32(vn_f16_set1(h), 0);
}
OP vn vn_bf16(const void *p)
{
    return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(p)), 16));
}
OP vn vn_i8(const void *p)
{
    int32_t four;
    memcpy(&four, p, sizeof four);
    int16x8_t wide = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
}
// (byte >> shift) & 15
OP vn vn_nibbles(const void *p, int shift)
{
    uint32_t four;
    memcpy(&four, p, sizeof four);
    uint16x8_t wide = vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four >> shift & 0x0f0f0f0f)));
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(wide)));
}
OP bytes16 bytes_shr(bytes16 v, int n)
{
    return (bytes16)vshlq_u8((uint8x16_t)v, vdupq_n_s8((int8_t)-n));
}
OP bytes16 bytes_shl(bytes16 v, int n)
{
    return (bytes16)vshlq_u8((uint8x16_t)v, vdupq_n_s8((int8_t)n));
}
OP bytes16 bytes_lookup(const int8_t *table, bytes16 index)
{
    return (bytes16)vqtbl1q_s8(vld1q_s8(table), (uint8x16_t)index);
}
// Signed bytes of one quarter.
OP vn vn_codes(bytes16 codes, int part)
{
    int8x16_t c = vreinterpretq_s8_u8((uint8x16_t)codes);
    int16x8_t wide = part & 2 ? vmovl_high_s8(c) : vmovl_s8(vget_low_s8(c));
    return vcvtq_f32_s32(part & 1 ? vmovl_high_s16(wide) : vmovl_s16(vget_low_s16(wide)));
}
// The part of: lanes 0 to 7 of a, then 8 to 15 of b.
OP vn vn_halves(vn a, vn b, int part)
{
    return part < 2 ? a : b;
}
OP void vn_to_f16(uint16_t *p, vn v)
{
    vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v)));
}
// Bit l: what is asked of lane l.
OP uint32_t lane_bits(uint32x4_t mask)
{
    const uint32x4_t bits = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(mask, bits));
}
OP uint32_t vn_less_bits(vn a, vn b)
{
    return lane_bits(vcltq_f32(a, b));
}
// Is the integer in the lane odd?
OP uint32_t vn_odd_bits(vn v)
{
    return lane_bits(vtstq_u32(vreinterpretq_u32_s32(vcvtq_s32_f32(v)), vdupq_n_u32(1)));
}
// yes in the lanes of set bits, no in the others.
OP vn vn_choose(uint32_t bits, vn yes, vn no)
{
    const uint32x4_t lanes = {1, 2, 4, 8};
    return vbslq_f32(vtstq_u32(vdupq_n_u32(bits), lanes), yes, no);
}
// Integers of 8 bits.
OP void vn_to_i8(int8_t *p, vn v)
{
    int16x4_t words = vmovn_s32(vcvtq_s32_f32(v));
    int8x8_t bytes = vmovn_s16(vcombine_s16(words, words));
    vst1_lane_s32((int32_t *)(void *)p, vreinterpret_s32_s8(bytes), 0);
}

// Integer products. vi: int32 in the lanes of a vn, those of lanes 0 and 1 as four sums in the
// first register; vw: pairs of words for each lane; vb: quads of codes for each lane.
typedef struct {
    int32x4_t p[2];
} vi;
typedef int16x8_t vw;
typedef bytes16 vb;
OP vi vi_zero(void)
{
    return (vi){{vdupq_n_s32(0), vdupq_n_s32(0)}};
}
// lane += the products of its pairs.
OP vi vi_dot(vi acc, vw a, vw b)
{
    acc.p[0] = vmlal_s16(acc.p[0], vget_low_s16(a), vget_low_s16(b));
    acc.p[1] = vmlal_high_s16(acc.p[1], a, b);
    return acc;
}
OP vn vi_float(vi v)
{
    return vcvtq_f32_s32(vpaddq_s32(v.p[0], v.p[1]));
}
OP vw vw_load(const int16_t *p)
{
    return vld1q_s16(p);
}
OP void vw_store(int16_t *p, vw v)
{
    vst1q_s16(p, v);
}
// Bits `from` and up of the 16 bytes at a, moved to bit `to` and masked.
OP vb vb_field(const uint8_t *a, const uint8_t *b, int from_a, int from_b, int to, uint8_t mask)
{
    (void)b, (void)from_b;
    uint8x16_t v = vshlq_u8(vld1q_u8(a), vdupq_n_s8((int8_t)(to - from_a)));
    return (vb)vandq_u8(v, vdupq_n_u8(mask));
}
OP vb vb_or(vb a, vb b)
{
    return a | b;
}
// The scale of the group of 16 codes.
OP uint32_t hidden_q8(const uint8_t *codes)
{
    return kv_hidden(KV_Q8, codes);
}
OP uint32_t hidden_q4(const uint8_t *codes)
{
    return kv_hidden(KV_Q4, codes);
}
OP vw vw_scales(const int8_t *s)
{
    return vdupq_n_s16(*s);
}
// The codes in even and in odd bytes, times their scale.
OP vw vw_even(vb codes, vw scales)
{
    uint16x8_t even = vandq_u16((uint16x8_t)codes, vdupq_n_u16(0xff));
    return vmulq_s16(vreinterpretq_s16_u16(even), scales);
}
OP vw vw_odd(vb codes, vw scales)
{
    return vmulq_s16(vreinterpretq_s16_u16(vshrq_n_u16((uint16x8_t)codes, 8)), scales);
}

// Splits 2 * VN interleaved floats.
OP void vn_load2(const float *p, vn *even, vn *odd)
{
    float32x4x2_t pair = vld2q_f32(p);
    *even = pair.val[0];
    *odd = pair.val[1];
}
OP void vn_store2(float *p, vn even, vn odd)
{
    vst2q_f32(p, (float32x4x2_t){{even, odd}});
}

// The first two levels of the tree.
OP vn fold4(const v16 *a)
{
    return vn_add(vn_add(a->p[0], a->p[2]), vn_add(a->p[1], a->p[3]));
}
OP vn fold2(vn s, vn t)
{
    float64x2_t a = vreinterpretq_f64_f32(s), b = vreinterpretq_f64_f32(t);
    return vn_add(vreinterpretq_f32_f64(vzip1q_f64(a, b)), vreinterpretq_f32_f64(vzip2q_f64(a, b)));
}
// Lane i of the result is the tree sum of acc[i]: all trees at once, transposing on the way.
OP vn vn_reduce(const v16 *acc)
{
    vn s = fold2(fold4(acc), fold4(acc + 1)), t = fold2(fold4(acc + 2), fold4(acc + 3));
    return vpaddq_f32(s, t);
}

// The tree sum of one accumulator.
OP float v16_sum(v16 acc)
{
    vn s = fold4(&acc);
    float32x2_t t = vadd_f32(vget_low_f32(s), vget_high_f32(s));
    return vget_lane_f32(t, 0) + vget_lane_f32(t, 1);
}
// The greatest lane; no lane is NaN.
OP float vn_greatest(vn v)
{
    return vmaxvq_f32(v);
}

// What the table's rows of 16 say of the rows of 16 indices, summed: 16 keys, even ones first.
OP v16 code_lanes(const uint8_t *index, const int8_t *table, const size_t rows)
{
    int16x8_t even = vdupq_n_s16(0), odd = even;
    for (size_t at = 0; at < rows * 16; at += 64) {
        int8x16_t sum = vdupq_n_s8(0);
        for (size_t i = at; i < at + 64; i += 16)
            sum = vaddq_s8(sum, vqtbl1q_s8(vld1q_s8(table + i), vld1q_u8(index + i)));
        int16x8_t words = vreinterpretq_s16_s8(sum);
        odd = vaddq_s16(odd, vshrq_n_s16(words, 8));
        even = vaddq_s16(even, vshrq_n_s16(vshlq_n_s16(words, 8), 8));
    }
    return (v16){{vcvtq_f32_s32(vmovl_s16(vget_low_s16(even))), vcvtq_f32_s32(vmovl_high_s16(even)),
                  vcvtq_f32_s32(vmovl_s16(vget_low_s16(odd))), vcvtq_f32_s32(vmovl_high_s16(odd))}};
}
OP vn vn_lanes(__attribute__((vector_size(16))) int32_t v)
{
    return vcvtq_f32_s32((int32x4_t)v);
}

#include "kernels/body.h"
