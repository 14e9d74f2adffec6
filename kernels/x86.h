// SPDX-License-Identifier: Apache-2.0
// What the sets of x86-64 share: operations on 16 bytes, which wider registers do not make faster.
// They have included immintrin.h and defined OP.
#ifndef INST_KERNELS_X86_H
#define INST_KERNELS_X86_H

// The sums of byte lookups of 16 keys, even ones first; see code_lanes.
OP __m256i word_sums(__m256i even, __m256i odd)
{
    return _mm256_add_epi16(_mm256_permute2x128_si256(even, odd, 0x20),
                            _mm256_permute2x128_si256(even, odd, 0x31));
}

// kv_hidden.
OP uint32_t hidden_q8(const uint8_t *codes)
{
    __m128i low = _mm_loadu_si128((const __m128i *)codes);
    __m128i high = _mm_loadu_si128((const __m128i *)(codes + 16));
    return (uint32_t)_mm_movemask_epi8(_mm_slli_epi16(_mm_xor_si128(low, high), 7));
}
OP uint32_t hidden_q4(const uint8_t *codes)
{
    __m128i both = _mm_loadu_si128((const __m128i *)codes);
    __m128i odd = _mm_xor_si128(both, _mm_srli_epi16(both, 4));
    return (uint32_t)_mm_movemask_epi8(_mm_slli_epi16(odd, 7)) |
           ((uint32_t)_mm_movemask_epi8(_mm_slli_epi16(both, 7)) & 0xff) << 16;
}

#endif
