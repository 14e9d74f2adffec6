// SPDX-License-Identifier: Apache-2.0
// Private to kernels/: the sets that dispatch.c chooses from, and the constants of kernel_exp,
// which every set evaluates with the same operations in the same order.
#ifndef INST_KERNELS_SETS_H
#define INST_KERNELS_SETS_H

#include "kernels/kernels.h"

extern const struct kernels kernels_avx2, kernels_avx512, kernels_avx512vnni, kernels_neon;

// 16 codes of a block type.
typedef uint8_t bytes16 __attribute__((vector_size(16)));

// What the 16 codes of IQ4_NL stand for.
#define IQ4_NL_VALUES -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113

// Scale of a block of x whose greatest magnitude has these bits, and what x is multiplied with.
// 0 where the integers are 0: nothing there, or not finite.
static inline int rounded_scale(uint32_t greatest, float *scale, float *inverse)
{
    const float most = 16383;
    union {
        uint32_t bits;
        float value;
    } a = {greatest};
    *scale = greatest < 0x7f800000 ? 0 : NAN;
    if (greatest >= 0x7f800000 || a.value < 0x1p-100f)
        return 0;
    *scale = a.value / most;
    *inverse = most / a.value;
    return 1;
}

// exp(x) = 2^n exp(r), n = x / ln 2 rounded to nearest, |r| <= ln 2 / 2 and
// exp(r) = 1 + r + r^2 (C2 + C3 r + C4 r^2 + C5 r^3 + C6 r^4), a Chebyshev interpolant whose own
// error is 0.2 units of 2^-24. Adding ROUND leaves n in the low bits of the sum.
#define EXP_LOG2E  0x1.715476p+0f
#define EXP_LN2_HI 0x1.62e43p-1f
#define EXP_LN2_LO -0x1.05c61p-29f
#define EXP_ROUND  0x1.8p23f
#define EXP_C2     0x1.0p-1f
#define EXP_C3     0x1.5554dcp-3f
#define EXP_C4     0x1.555518p-5f
#define EXP_C5     0x1.120be2p-7f
#define EXP_C6     0x1.6d117cp-10f
#define EXP_MIN    -87.0f // below: +0
#define EXP_MAX    88.0f  // above: +infinity

// 2^x = 2^n 2^r, n = x rounded to nearest: 2^r = 1 + C1 r + ... + C4 r^4, to 3e-6 of it. It is
// never asked for less than 2^MASS_LEAST.
#define EXP2_C1    0x1.62e12cp-1f
#define EXP2_C2    0x1.ec0378p-3f
#define EXP2_C3    0x1.c9fc48p-5f
#define EXP2_C4    0x1.3a02c8p-7f
#define MASS_LEAST -120.0f

// Element d of a vector in codes of 1 or 2 bits.
static inline float code_value(const uint8_t *codes, size_t bits, size_t d)
{
    const int code = codes[d * bits / 8] >> d * bits % 8 & ((1 << bits) - 1);
    return (float)code - (bits == 1 ? 0.5f : 1.5f);
}

// -2 sqrt(2 / pi), and that times 0.044715.
#define GELU_LINEAR -0x1.988454p+0f
#define GELU_CUBIC  -0x1.2444f2p-4f

#endif
