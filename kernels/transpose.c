// SPDX-License-Identifier: Apache-2.0
// Transposing 16-bit elements: moves bits, so that there is nothing for a set to differ in.
#include "kernels/kernels.h"

#include <string.h>

typedef uint16_t u16x8 __attribute__((vector_size(16)));

static u16x8 load(const uint16_t *p)
{
    u16x8 v;
    memcpy(&v, p, sizeof v);
    return v;
}

// Element pairs, then pairs of pairs, then halves change places.
#define LOW(a, b)  __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define HIGH(a, b) __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15)

static void block8(uint16_t *out, size_t out_stride, const uint16_t *in, size_t in_stride)
{
    u16x8 a[8], b[8];
    for (size_t i = 0; i < 8; i++)
        a[i] = load(in + i * in_stride);
    for (int round = 0; round < 3; round++) {
        for (size_t i = 0; i < 4; i++) {
            b[2 * i] = LOW(a[i], a[i + 4]);
            b[2 * i + 1] = HIGH(a[i], a[i + 4]);
        }
        memcpy(a, b, sizeof a);
    }
    for (size_t i = 0; i < 8; i++)
        memcpy(out + i * out_stride, &a[i], sizeof a[i]);
}

void kernel_transpose16(uint16_t *out, size_t out_stride, const uint16_t *in, size_t in_stride,
                        size_t rows, size_t cols)
{
    size_t whole_rows = rows / 8 * 8, whole_cols = cols / 8 * 8;
    for (size_t r = 0; r < whole_rows; r += 8) {
        for (size_t c = 0; c < whole_cols; c += 8)
            block8(out + c * out_stride + r, out_stride, in + r * in_stride + c, in_stride);
    }
    for (size_t r = 0; r < rows; r++) {
        for (size_t c = r < whole_rows ? whole_cols : 0; c < cols; c++)
            out[c * out_stride + r] = in[r * in_stride + c];
    }
}
