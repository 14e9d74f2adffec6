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

#endif
