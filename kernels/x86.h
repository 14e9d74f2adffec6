// SPDX-License-Identifier: Apache-2.0
// What the sets of x86-64 share: operations on 16 bytes, which wider registers do not make faster.
// They have included immintrin.h and defined OP.
#ifndef INST_KERNELS_X86_H
#define INST_KERNELS_X86_H

// Sums of 16 neighbouring codes; see code_sums.
OP void code_sums16(const uint8_t *codes, size_t stride, size_t bytes, const int8_t (*table)[16],
                    int16_t *sums)
{
    const __m128i half = _mm_set1_epi8(15);
    __m256i acc = _mm256_setzero_si256();
    for (size_t j = 0; j < bytes; j++) {
        __m128i code = _mm_loadu_si128((const __m128i *)(codes + j * stride));
        __m128i low = _mm_loadu_si128((const __m128i *)table[2 * j]);
        __m128i high = _mm_loadu_si128((const __m128i *)table[2 * j + 1]);
        low = _mm_shuffle_epi8(low, _mm_and_si128(code, half));
        high = _mm_shuffle_epi8(high, _mm_and_si128(_mm_srli_epi16(code, 4), half));
        acc = _mm256_add_epi16(
            acc, _mm256_add_epi16(_mm256_cvtepi8_epi16(low), _mm256_cvtepi8_epi16(high)));
    }
    _mm256_storeu_si256((__m256i *)sums, acc);
}

#endif
