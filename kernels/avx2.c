// SPDX-License-Identifier: Apache-2.0
// The AVX2 set (with FMA and F16C): vector operations here, algorithms in body.h. A 16-lane
// accumulator is two registers.
#include "kernels/sets.h"

#include <immintrin.h>

#define SET_TABLE kernels_avx2
#define SET_NAME  "avx2"
#define OP        static inline __attribute__((always_inline))

typedef __m256 vn;
enum {
    VN = 8,
    // Blocking: 16 registers.
    TILE_NR = 3,
    TILE_MIN_ROWS = 12, // of x, for types that are not in blocks
    K_JR = 2,           // rows of a K type that share x
    K_NR = 3,           // of a panel of words
    BLOCK_JR = 2,       // rows of a block type that share x
    // From this many queries on, converting a tile to fp32 first pays. Converting for every four of
    // them hides behind the products.
    MANY_QUERIES = 64,
    MANY_BLOCK_QUERIES = 16, // of K and V in blocks
    // Accumulators of a panel of fp32.
    PANEL_QUERIES = 6,
    PANEL_VECTORS = 2,
};
#define TILE_MR       4
#define K_MR          3
#define DIRECT_JR(mr) ((mr) == 1 ? 4 : (mr) == 2 ? 2 : 1)
// Vectors of columns that nq <= 4 queries share: accumulators enough for the latency of fma.
#define FEW_VECTORS(nq) ((nq) == 1 ? 8 : (nq) == 4 ? 3 : 4)

typedef struct {
    vn p[2];
} v16;

OP vn vn_set1(float x)
{
    return _mm256_set1_ps(x);
}
OP vn vn_load(const void *p)
{
    return _mm256_loadu_ps(p);
}
OP void vn_store(float *p, vn v)
{
    _mm256_storeu_ps(p, v);
}
OP vn vn_fma(vn a, vn b, vn c)
{
    return _mm256_fmadd_ps(a, b, c);
}
OP vn vn_add(vn a, vn b)
{
    return _mm256_add_ps(a, b);
}
OP vn vn_sub(vn a, vn b)
{
    return _mm256_sub_ps(a, b);
}
OP vn vn_mul(vn a, vn b)
{
    return _mm256_mul_ps(a, b);
}
OP vn vn_div(vn a, vn b)
{
    return _mm256_div_ps(a, b);
}
// a > b ? a : b
OP vn vn_max(vn a, vn b)
{
    return _mm256_max_ps(a, b);
}
// a < b ? yes : no
OP vn vn_if_less(vn a, vn b, vn yes, vn no)
{
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
// a < b ? +0 : x
OP vn vn_zero_if_less(vn a, vn b, vn x)
{
    return _mm256_andnot_ps(_mm256_cmp_ps(a, b, _CMP_LT_OQ), x);
}
// 2^n of the n in the low bits of t.
OP vn vn_exp2_low_bits(vn t)
{
    __m256i n = _mm256_add_epi32(_mm256_castps_si256(t), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(n, 23));
}
OP vn vn_f16(const void *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128(p));
}
OP vn vn_f16_set1(uint16_t h)
{
    return _mm256_cvtph_ps(_mm_set1_epi16((short)h));
}
OP float half_float(uint16_t h)
{
    return _cvtsh_ss(h);
}
OP vn vn_bf16(const void *p)
{
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
OP vn vn_i8(const void *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p)));
}
// (byte >> shift) & 15
OP vn vn_nibbles(const void *p, int shift)
{
    __m256i v = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p));
    v = shift ? _mm256_srli_epi32(v, 4) : _mm256_and_si256(v, _mm256_set1_epi32(15));
    return _mm256_cvtepi32_ps(v);
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
// Signed bytes of one half.
OP vn vn_codes(bytes16 codes, int part)
{
    __m128i c = (__m128i)codes;
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(part ? _mm_unpackhi_epi64(c, c) : c));
}
// The part of: lanes 0 to 7 of a, then 8 to 15 of b.
OP vn vn_halves(vn a, vn b, int part)
{
    return part ? b : a;
}
OP void vn_to_f16(uint16_t *p, vn v)
{
    _mm_storeu_si128((void *)p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
// Bit l: what is asked of lane l.
OP uint32_t vn_less_bits(vn a, vn b)
{
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
// Is the integer in the lane odd?
OP uint32_t vn_odd_bits(vn v)
{
    __m256i low = _mm256_slli_epi32(_mm256_cvtps_epi32(v), 31);
    return (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(low));
}
// yes in the lanes of set bits, no in the others.
OP vn vn_choose(uint32_t bits, vn yes, vn no)
{
    // To where blendv looks: the sign.
    const __m256i up = _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24);
    __m256i sign = _mm256_sllv_epi32(_mm256_set1_epi32((int)bits), up);
    return _mm256_blendv_ps(no, yes, _mm256_castsi256_ps(sign));
}
// Integers of 8 bits.
OP void vn_to_i8(int8_t *p, vn v)
{
    __m256i wide = _mm256_cvtps_epi32(v);
    __m128i words =
        _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    _mm_storel_epi64((void *)p, _mm_packs_epi16(words, words));
}

// Integer products. vi: int32 in the lanes of a vn; vw: pairs of words for each lane; vb: quads of
// codes for each lane.
typedef __m256i vi, vw, vb;
OP vi vi_zero(void)
{
    return _mm256_setzero_si256();
}
// lane += the products of its pairs.
OP vi vi_dot(vi acc, vw a, vw b)
{
    return _mm256_add_epi32(acc, _mm256_madd_epi16(a, b));
}
OP vn vi_float(vi v)
{
    return _mm256_cvtepi32_ps(v);
}
OP vw vw_load(const int16_t *p)
{
    return _mm256_loadu_si256((const void *)p);
}
OP void vw_store(int16_t *p, vw v)
{
    _mm256_storeu_si256((void *)p, v);
}
// Bits `from` and up of the 32 bytes at a, moved to bit `to` and masked.
OP vb vb_field(const uint8_t *a, const uint8_t *b, int from_a, int from_b, int to, uint8_t mask)
{
    (void)b, (void)from_b;
    vb v = _mm256_loadu_si256((const void *)a);
    if (from_a > to)
        v = _mm256_srli_epi16(v, from_a - to);
    if (from_a < to)
        v = _mm256_slli_epi16(v, to - from_a);
    return _mm256_and_si256(v, _mm256_set1_epi8((char)mask));
}
OP vb vb_or(vb a, vb b)
{
    return _mm256_or_si256(a, b);
}
// Scales of the 2 groups of 16 codes, as the even bytes of each group's quads.
OP vw vw_scales(const int8_t *s)
{
    const int64_t group = 0x0001000100010001; // its number as words, all odd bytes to be zero
    const vw spread =
        _mm256_or_si256(_mm256_set1_epi16(-0x8000), _mm256_set_epi64x(group, group, 0, 0));
    int16_t two;
    __builtin_memcpy(&two, s, sizeof two);
    return _mm256_shuffle_epi8(_mm256_set1_epi16(two), spread);
}
// The codes in even and in odd bytes, times their scales.
OP vw vw_even(vb codes, vw scales)
{
    return _mm256_maddubs_epi16(codes, scales);
}
OP vw vw_odd(vb codes, vw scales)
{
    return _mm256_maddubs_epi16(codes, _mm256_slli_epi16(scales, 8));
}

// Splits 2 * VN interleaved floats.
OP void vn_load2(const float *p, vn *even, vn *odd)
{
    vn a = vn_load(p), b = vn_load(p + VN);
    __m256d e = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0x88));
    __m256d o = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0xdd));
    *even = _mm256_castpd_ps(_mm256_permute4x64_pd(e, 0xd8));
    *odd = _mm256_castpd_ps(_mm256_permute4x64_pd(o, 0xd8));
}
OP void vn_store2(float *p, vn even, vn odd)
{
    vn lo = _mm256_unpacklo_ps(even, odd), hi = _mm256_unpackhi_ps(even, odd);
    vn_store(p, _mm256_permute2f128_ps(lo, hi, 0x20));
    vn_store(p + VN, _mm256_permute2f128_ps(lo, hi, 0x31));
}

// The first two levels of the tree for two accumulators: four lanes of a, four of b. A blend and a
// shuffle: which of two summands comes first does not change a sum.
OP vn fold4(const v16 *a, const v16 *b)
{
    vn s = vn_add(a->p[0], a->p[1]), t = vn_add(b->p[0], b->p[1]);
    return vn_add(_mm256_blend_ps(s, t, 0xf0), _mm256_permute2f128_ps(s, t, 0x21));
}
OP vn fold2(vn s, vn t)
{
    return vn_add(_mm256_blend_ps(s, t, 0xcc), _mm256_shuffle_ps(s, t, 0x4e));
}
// Lane i of the result is the tree sum of acc[i]: all trees at once, transposing on the way.
OP vn vn_reduce(const v16 *acc)
{
    vn s = fold2(fold4(acc, acc + 4), fold4(acc + 1, acc + 5));
    vn t = fold2(fold4(acc + 2, acc + 6), fold4(acc + 3, acc + 7));
    return vn_add(_mm256_shuffle_ps(s, t, 0x88), _mm256_shuffle_ps(s, t, 0xdd));
}

// The tree sum of one accumulator.
OP float v16_sum(v16 acc)
{
    vn s = fold4(&acc, &acc);
    s = fold2(s, s);
    return _mm256_cvtss_f32(vn_add(s, _mm256_shuffle_ps(s, s, 0xb1)));
}
// The greatest lane; no lane is NaN.
OP float vn_greatest(vn v)
{
    v = vn_max(v, _mm256_permute2f128_ps(v, v, 0x01));
    v = vn_max(v, _mm256_shuffle_ps(v, v, 0x4e));
    return _mm256_cvtss_f32(vn_max(v, _mm256_shuffle_ps(v, v, 0xb1)));
}

#include "kernels/x86.h"

OP __m256i lookup(const uint8_t *index, const int8_t *table)
{
    return _mm256_shuffle_epi8(_mm256_loadu_si256((const void *)table),
                               _mm256_loadu_si256((const void *)index));
}
// What the table's rows of 16 say of the rows of 16 indices, summed: 16 keys, even ones first.
OP v16 code_lanes(const uint8_t *index, const int8_t *table, const size_t rows)
{
    __m256i even = _mm256_setzero_si256(), odd = even;
    for (size_t i = 0; i < rows * 16; i += 128) {
        __m256i a =
            _mm256_add_epi8(lookup(index + i, table + i), lookup(index + i + 32, table + i + 32));
        __m256i b = _mm256_add_epi8(lookup(index + i + 64, table + i + 64),
                                    lookup(index + i + 96, table + i + 96));
        __m256i sum = _mm256_add_epi8(a, b);
        odd = _mm256_add_epi16(odd, _mm256_srai_epi16(sum, 8));
        even = _mm256_add_epi16(even, _mm256_srai_epi16(_mm256_slli_epi16(sum, 8), 8));
    }
    __m256i words = word_sums(even, odd);
    __m128i last = _mm256_extracti128_si256(words, 1);
    return (v16){{_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm256_castsi256_si128(words))),
                  _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(last))}};
}
OP vn vn_lanes(__attribute__((vector_size(32))) int32_t v)
{
    return _mm256_cvtepi32_ps((__m256i)v);
}

#include "kernels/body.h"
