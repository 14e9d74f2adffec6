// SPDX-License-Identifier: Apache-2.0
// The AVX-512 set (F, BW, VL, DQ): vector operations here, algorithms in body.h. avx512_vnni.c
// includes this file to make the set of CPUs that have VNNI too.
#include "kernels/sets.h"

#include <immintrin.h>

#ifndef SET_TABLE
#define SET_TABLE kernels_avx512
#define SET_NAME  "avx512"
#endif
#define OP static inline __attribute__((always_inline))

typedef __m512 vn;
enum {
    VN = 16,
    // Blocking, in accumulators of 32 registers.
    TILE_NR = 6,
    TILE_MIN_ROWS = 28, // of x, for Q8_0; other types not in blocks are taken wide however many
    K_JR = 4,           // rows of a K type that share x
    K_NR = 6,           // of a panel of words
    BLOCK_JR = 4,       // rows of a block type that share x
    // From this many queries on, converting a tile to fp32 first pays.
    MANY_QUERIES = 16,
    MANY_BLOCK_QUERIES = 8, // of K and V in blocks
    // Accumulators of a panel of fp32.
    PANEL_QUERIES = 6,
    PANEL_VECTORS = 4,
};
#define TILE_MR       4
#define K_MR          4
#define DIRECT_JR(mr) ((mr) == 1 ? 8 : 4)
// Rows of x from which on each weight is converted once for eight of them (body_wide.h).
#define WIDE_ROWS 5
// Vectors of columns that nq <= 4 queries share: accumulators enough for the latency of fma.
#define FEW_VECTORS(nq) ((nq) == 1 ? 8 : 4)

typedef struct {
    vn p[1];
} v16;

OP vn vn_set1(float x)
{
    return _mm512_set1_ps(x);
}
OP vn vn_load(const void *p)
{
    return _mm512_loadu_ps(p);
}
OP void vn_store(float *p, vn v)
{
    _mm512_storeu_ps(p, v);
}
// It stays in a register: products would each load it again.
OP vn vn_keep(vn a)
{
    __asm__("" : "+v"(a));
    return a;
}
OP vn vn_fma(vn a, vn b, vn c)
{
    return _mm512_fmadd_ps(a, b, c);
}
OP vn vn_add(vn a, vn b)
{
    return _mm512_add_ps(a, b);
}
OP vn vn_sub(vn a, vn b)
{
    return _mm512_sub_ps(a, b);
}
OP vn vn_mul(vn a, vn b)
{
    return _mm512_mul_ps(a, b);
}
OP vn vn_div(vn a, vn b)
{
    return _mm512_div_ps(a, b);
}
// a > b ? a : b
OP vn vn_max(vn a, vn b)
{
    return _mm512_max_ps(a, b);
}
// a < b ? yes : no
OP vn vn_if_less(vn a, vn b, vn yes, vn no)
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
}
// a < b ? +0 : x
OP vn vn_zero_if_less(vn a, vn b, vn x)
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ), x);
}
// 2^n of the n in the low bits of t.
OP vn vn_exp2_low_bits(vn t)
{
    __m512i n = _mm512_add_epi32(_mm512_castps_si512(t), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(n, 23));
}
OP vn vn_f16(const void *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256(p));
}
OP vn vn_f16_set1(uint16_t h)
{
    return _mm512_cvtph_ps(_mm256_set1_epi16((short)h));
}
OP float half_float(uint16_t h)
{
    return _cvtsh_ss(h);
}
OP vn vn_bf16(const void *p)
{
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
OP vn vn_i8(const void *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p)));
}
// (byte >> shift) & 15
OP vn vn_nibbles(const void *p, int shift)
{
    const vn numbers = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i v = _mm512_cvtepu8_epi32(_mm_loadu_si128(p));
    return _mm512_permutexvar_ps(shift ? _mm512_srli_epi32(v, 4) : v, numbers);
}
// Bits move in from the neighbouring byte: the caller masks.
OP bytes16 bytes_shr(bytes16 v, int n)
{
    return (bytes16)_mm_srli_epi16((__m128i)v, n);
}
OP bytes16 bytes_shl(bytes16 v, int n)
{
    return (bytes16)_mm_slli_epi16((__m128i)v, n);
}
OP bytes16 bytes_lookup(const int8_t *table, bytes16 index)
{
    return (bytes16)_mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)table), (__m128i)index);
}
// Looking up 16 values by the low 4 bits of an index.
#define VN_TABLES
typedef __m512i vn_index;
OP vn_index vn_index_at(const void *p, int shift)
{
    return _mm512_srli_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128(p)), (unsigned)shift);
}
OP vn vn_lookup(vn table, vn_index index)
{
    return _mm512_permutexvar_ps(index, table);
}
// The same in the lanes of set bits, the others' in the rest.
OP vn vn_lookup_where(uint16_t bits, vn table, vn_index index, vn others)
{
    return _mm512_mask_permutexvar_ps(others, bits, index, table);
}
// Signed bytes; there is one part.
OP vn vn_codes(bytes16 codes, int part)
{
    (void)part;
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)codes));
}
// Lanes 0 to 7 of a, then 8 to 15 of b.
OP vn vn_halves(vn a, vn b, int part)
{
    (void)part;
    return _mm512_mask_blend_ps(0xff00, a, b);
}
OP void vn_to_f16(uint16_t *p, vn v)
{
    _mm256_storeu_si256((void *)p,
                        _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
// Bit l: what is asked of lane l.
OP uint32_t vn_less_bits(vn a, vn b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ);
}
// Is the integer in the lane odd?
OP uint32_t vn_odd_bits(vn v)
{
    return _mm512_test_epi32_mask(_mm512_cvtps_epi32(v), _mm512_set1_epi32(1));
}
// yes in the lanes of set bits, no in the others.
OP vn vn_choose(uint32_t bits, vn yes, vn no)
{
    return _mm512_mask_blend_ps((__mmask16)bits, no, yes);
}
// Integers of 8 bits.
OP void vn_to_i8(int8_t *p, vn v)
{
    _mm_storeu_si128((void *)p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v)));
}

// Integer products. vi: int32 in the lanes of a vn; vw: pairs of words for each lane; vb: quads of
// codes for each lane.
typedef __m512i vi, vw, vb;
OP vi vi_zero(void)
{
    return _mm512_setzero_si512();
}
// lane += the products of its pairs.
OP vi vi_dot(vi acc, vw a, vw b)
{
#ifdef __AVX512VNNI__
    return _mm512_dpwssd_epi32(acc, a, b);
#else
    return _mm512_add_epi32(acc, _mm512_madd_epi16(a, b));
#endif
}
OP vn vi_float(vi v)
{
    return _mm512_cvtepi32_ps(v);
}
OP vw vw_load(const int16_t *p)
{
    return _mm512_loadu_si512(p);
}
OP void vw_store(int16_t *p, vw v)
{
    _mm512_storeu_si512(p, v);
}
// Bits `from` and up of 64 bytes, moved to bit `to` and masked: the first 32 lie at a, the others
// at b, which is behind them or is a.
OP vb vb_field(const uint8_t *a, const uint8_t *b, int from_a, int from_b, int to, uint8_t mask)
{
    vb v = a == b ? _mm512_broadcast_i64x4(_mm256_loadu_si256((const void *)a))
                  : _mm512_loadu_si512(a);
    // What is rotated in from a neighbour is masked.
    int32_t ra = (to - from_a) & 31, rb = (to - from_b) & 31;
    if (ra || rb)
        v = _mm512_rolv_epi32(v,
                              _mm512_inserti64x4(_mm512_set1_epi32(ra), _mm256_set1_epi32(rb), 1));
    return _mm512_and_si512(v, _mm512_set1_epi8((char)mask));
}
OP vb vb_or(vb a, vb b)
{
    return _mm512_or_si512(a, b);
}
// Scales of the 4 groups of 16 codes, as the even bytes of each group's quads.
OP vw vw_scales(const int8_t *s)
{
    const int64_t group = 0x0001000100010001; // its number as words, all odd bytes to be zero
    const vw spread = _mm512_or_si512(
        _mm512_set1_epi16(-0x8000),
        _mm512_set_epi64(3 * group, 3 * group, 2 * group, 2 * group, group, group, 0, 0));
    int32_t four;
    __builtin_memcpy(&four, s, sizeof four);
    return _mm512_shuffle_epi8(_mm512_set1_epi32(four), spread);
}
// The codes in even and in odd bytes, times their scales.
OP vw vw_even(vb codes, vw scales)
{
    return _mm512_maddubs_epi16(codes, scales);
}
OP vw vw_odd(vb codes, vw scales)
{
    return _mm512_maddubs_epi16(codes, _mm512_slli_epi16(scales, 8));
}

// Splits 2 * VN interleaved floats.
OP void vn_load2(const float *p, vn *even, vn *odd)
{
    const __m512i index =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    vn a = vn_load(p), b = vn_load(p + VN);
    *even = _mm512_permutex2var_ps(a, index, b);
    *odd = _mm512_permutex2var_ps(a, _mm512_add_epi32(index, _mm512_set1_epi32(1)), b);
}
OP void vn_store2(float *p, vn even, vn odd)
{
    const __m512i index = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    vn_store(p, _mm512_permutex2var_ps(even, index, odd));
    vn_store(p + VN,
             _mm512_permutex2var_ps(even, _mm512_add_epi32(index, _mm512_set1_epi32(8)), odd));
}

// Tree levels of several accumulators at once. Each takes half of its pairs from a blend and half
// from a shuffle; which of two summands comes first does not change a sum.
// Lanes i + i + 8 of a in the low half, of b in the high half.
OP vn fold8(vn a, vn b)
{
    return vn_add(_mm512_mask_blend_ps(0xff00, a, b), _mm512_shuffle_f32x4(a, b, 0x4e));
}
// Of [a | b] and [c | d]: quarters of a, c, b, d.
OP vn fold4(vn ab, vn cd)
{
    const __m512i index =
        _mm512_setr_epi32(4, 5, 6, 7, 16, 17, 18, 19, 12, 13, 14, 15, 24, 25, 26, 27);
    return vn_add(_mm512_mask_blend_ps(0xf0f0, ab, cd), _mm512_permutex2var_ps(ab, index, cd));
}
OP vn fold2(vn s, vn t)
{
    return vn_add(_mm512_mask_blend_ps(0xcccc, s, t), _mm512_shuffle_ps(s, t, 0x4e));
}
OP vn fold1(vn s, vn t)
{
    return vn_add(_mm512_shuffle_ps(s, t, 0x88), _mm512_shuffle_ps(s, t, 0xdd));
}
// Lane i of the result is the tree sum of acc[i]: all trees at once, transposing on the way.
OP vn vn_reduce(const v16 *acc)
{
    vn s[4];
    for (int i = 0; i < 4; i++)
        s[i] = fold4(fold8(acc[i].p[0], acc[i + 8].p[0]), fold8(acc[i + 4].p[0], acc[i + 12].p[0]));
    return fold1(fold2(s[0], s[1]), fold2(s[2], s[3]));
}
// The tree sum of one accumulator.
OP float v16_sum(v16 acc)
{
    vn s = fold8(acc.p[0], acc.p[0]);
    s = vn_add(s, _mm512_shuffle_f32x4(s, s, 0xb1));
    s = vn_add(s, _mm512_shuffle_ps(s, s, 0x4e));
    return _mm512_cvtss_f32(vn_add(s, _mm512_shuffle_ps(s, s, 0xb1)));
}
// The greatest lane; no lane is NaN.
OP float vn_greatest(vn v)
{
    return _mm512_reduce_max_ps(v);
}

#include "kernels/x86.h"

OP __m512i lookup(const uint8_t *index, const int8_t *table)
{
    return _mm512_shuffle_epi8(_mm512_loadu_si512(table), _mm512_loadu_si512(index));
}
// What the table's rows of 16 say of the rows of 16 indices, summed: 16 keys, even ones first.
OP v16 code_lanes(const uint8_t *index, const int8_t *table, const size_t rows)
{
    __m512i even = _mm512_setzero_si512(), odd = even;
    for (size_t i = 0; i < rows * 16; i += 256) {
        __m512i a =
            _mm512_add_epi8(lookup(index + i, table + i), lookup(index + i + 64, table + i + 64));
        __m512i b = _mm512_add_epi8(lookup(index + i + 128, table + i + 128),
                                    lookup(index + i + 192, table + i + 192));
        __m512i sum = _mm512_add_epi8(a, b);
        odd = _mm512_add_epi16(odd, _mm512_srai_epi16(sum, 8));
        even = _mm512_add_epi16(even, _mm512_srai_epi16(_mm512_slli_epi16(sum, 8), 8));
    }
    __m256i words = word_sums(
        _mm256_add_epi16(_mm512_castsi512_si256(even), _mm512_extracti64x4_epi64(even, 1)),
        _mm256_add_epi16(_mm512_castsi512_si256(odd), _mm512_extracti64x4_epi64(odd, 1)));
    return (v16){{_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(words))}};
}
OP vn vn_lanes(__attribute__((vector_size(64))) int32_t v)
{
    return _mm512_cvtepi32_ps((__m512i)v);
}

#include "kernels/body.h"
