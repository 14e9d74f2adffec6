// SPDX-License-Identifier: Apache-2.0
// The arithmetic of the whole system, single-threaded, no allocation, no state. One plain C
// reference and one file per instruction set; every set gives the same *bits* (contract points 8
// and 9 of docs/architecture.md), so results depend on no CPU feature, batch size or thread count.
//
// Fixed semantics, all in fp32 with fused multiply-add and round-to-nearest-even:
//   dot16(a, b, n): 16 lanes start at +0; lane l takes l, l + 16, l + 32, ... in ascending order,
//     lane = fma(a[i], b[i], lane); missing elements of the last step leave their lane alone. The
//     lanes are then summed by one tree: x[i] += x[i+8] (i < 8), x[i] += x[i+4] (i < 4),
//     x[i] += x[i+2] (i < 2), x[0] + x[1].
//   sum16(a, n): the same with lane += a[i].
//   chain(a, b, n): x = +0, then x = fma(a[i], b[i], x) in ascending i. It needs no lanes of its
//   own,
//     so that neighbouring outputs are the lanes: K lies channel by channel for its sake.
//   exp: kernel_exp, our own polynomial; exp(0) = 1 exactly, below -87 it is +0, above 88
//   +infinity. Where a result is NaN, its sign and payload mean nothing and may differ between
//   sets.
#ifndef INST_KERNELS_KERNELS_H
#define INST_KERNELS_KERNELS_H

#include "kernels/kv.h"
#include "kernels/tensor_type.h"

#include <math.h>
#include <stddef.h>
#include <stdint.h>

enum {
    KERNEL_LANES = 16,
    ATTENTION_TILE = 64, // tokens; tiles start at absolute positions that 64 divides
    ATTENTION_PARTS = ATTENTION_TILE / KERNEL_LANES, // of a tile, at most
    ROUNDED_BLOCK = 256,                             // elements of x that are rounded together
    // Scratch per worker for attention_tile and matmul (64-byte aligned).
    KERNEL_SCRATCH_BYTES = 320 * 1024,
    KERNEL_HEAD_DIM_MAX = 512,
};

// Softmax state of one query over some tokens: acc = sum_t exp(score_t - max) v_t. It is empty when
// sum == 0 (then max = -inf). Only ever merged in ascending token order. Lies 64-byte aligned.
struct partial {
    float max;
    float sum;
    float unused[14];
    float acc[]; // head_dim, padded to a multiple of 16
};

// Distance between consecutive partials of an array, in floats.
static inline size_t partial_stride(size_t head_dim)
{
    return 16 + (head_dim + 15) / 16 * 16;
}

static inline struct partial *partial_at(float *array, size_t index, size_t head_dim)
{
    return (struct partial *)(array + index * partial_stride(head_dim));
}

static inline void partial_clear(struct partial *p)
{
    p->max = -INFINITY;
    p->sum = 0;
}

// Up to 64 consecutive tokens of one KV head, in parts of part_tokens tokens that may lie apart.
// The first token's position is a multiple of ATTENTION_TILE.
struct attention_tile {
    // Part i of K and V as kv.h says. K of a part, and in blocks V, too, are readable as a whole
    // even where only some of its tokens are there; what lies in the place of the others has no
    // influence. Their V of fp16 is not read.
    const void *k[ATTENTION_PARTS], *v[ATTENTION_PARTS];
    uint32_t type; // enum kv_type: the bits that come out are those of the numbers as fp16
    uint32_t
        part_tokens; // 16, 32 or 64; 0: one part of fp16, K [tokens][head_dim], turned each time
    uint32_t tokens; // 1 to 64
    uint32_t head_dim;
    float scale; // multiplies chain(q, k)
    // Not 0: scores become softcap(scale * chain(q, k)).
    float softcap;
    // Not 0: of the tokens only those whose bits are set take part, as if they were the first ones
    // of a tile in this order. A part without any may have NULL for k and v; V of the others is not
    // read. There are no `first` and no limits then.
    uint64_t chosen;
    // A hint, or NULL: the tile that the caller takes next. Its K is brought closer while this one
    // is computed, and never read.
    const struct attention_tile *next;
    // NULL, or for each query the first token that it sees: those before it have the weight +0.
    const uint32_t *first;
};

// A weight matrix in its stored type: `rows` outputs, each a row of `cols` inputs.
struct weight {
    const void *data; // any alignment of 2 or more
    uint64_t rows, cols;
    uint64_t row_bytes;
    uint32_t type; // enum tensor_type
};

// x as the K types take it: integers of 15 bits with one scale per 256 elements.
//   a = max |x_i|, integer i = x_i * (16383 / a) to nearest even, scale = a / 16383. Where a is
//   below 2^-100 all is 0; where an element is not finite the integers are 0 and scale is NaN.
// It is exact in so far as an integer product of a whole block then is: 16 lanes of 32 bits hold
// 16 products each of 63 * 128 * 16383 at most.
struct rounded_x {
    int16_t q[ROUNDED_BLOCK]; // of each 64 elements first those with even numbers, then the others
    float sum[KERNEL_LANES];  // scale * the sum of integers 16 i to 16 i + 15
    float scale;
    float unused[15];
};

// Does matmul with this type take x rounded?
static inline int kernel_rounds_x(uint32_t type)
{
    return type >= TENSOR_Q2_K && type <= TENSOR_Q6_K;
}

// Floats that n elements take once they are rounded; 256 divides n.
static inline size_t rounded_floats(size_t n)
{
    return n / ROUNDED_BLOCK * (sizeof(struct rounded_x) / sizeof(float));
}

enum {
    MASS_HEADER = 4,
    MASS_SLICES = 16,                     // of 16 keys, or what is left of a piece, in one call
    MASS_ENTRY = 31,                      // four of them add up to a byte
    MASS_BYTES = KERNEL_HEAD_DIM_MAX / 4, // of a key's codes, at most
    MASS_SCRATCH = MASS_SLICES * 16 * (MASS_BYTES * 2 + 3 * 4),
};
#define MASS_FACTOR 0x1p96f // nothing overflows

enum { KV_PLANES = 4 };

struct kv_plane {
    float *x;                      // numbers of a key, which become those that its codes stand for
    const struct kv_block *blocks; // codes mean nothing
    const float *factor;
};

// Pieces of a KV cache as codes of their keys: fp16 scale, two bytes that mean nothing here, u8
// factor[keys], u8 count[keys] if `counted`, codes [bytes][keys].
struct mass_pieces {
    const uint8_t *summary[MASS_SLICES];
    size_t n, keys, bytes; // n * (keys / 16, rounded up) is MASS_SLICES at most
    int counted;
    float softcap; // 0: none
    // What is added to all scores of a piece, before the query's factor: of query q and piece i
    // bias[q * MASS_SLICES + i]. NULL: nothing.
    const float *bias;
};

// Rows of a query's table.
static inline size_t mass_rows(size_t bytes)
{
    return (bytes + 7) / 8 * 16;
}

struct kernels {
    const char *name;

    void (*f16_to_f32)(float *out, const uint16_t *in, size_t n);
    void (*f32_to_f16)(uint16_t *out, const float *in, size_t n); // round to nearest even

    // out[c] = the exact fp32 value of element c of weight row `row`, c < w->cols.
    void (*weight_row)(const struct weight *w, uint64_t row, float *out);

    float (*dot)(const float *a, const float *b, size_t n); // dot16
    float (*sum)(const float *a, size_t n);                 // sum16
    float (*max)(const float *a, size_t n); // n >= 1; passes over NaN, a zero comes out as +0

    // out[i * out_stride + j] = dot16(x + i * x_stride, exact fp32 row first + j of w, w->cols)
    // for i < n_rows, j < count. Any n_rows gives the same bits for row i. x rows are 64-byte
    // aligned when x_stride % 16 == 0 and x is.
    // The K types take rows of struct rounded_x instead (x_stride still counts floats and is
    // rounded_floats of something). With w_i = d s_i c_i - m_i, c_i >= 0 and s_i the integers that
    // the block stores (docs/decisions/0005-quantised-types.md; for Q3_K and Q6_K m_i is 4 d s_i
    // and 32 d s_i), each block in ascending order adds to the 16 lanes:
    //   lane l = fma(the sum of s_i c_i q_i over the i with i % 64 / 4 = l, d * scale, lane l)
    //   lane l = fma(-m of elements 16 l to 16 l + 15, sum[l], lane l)
    // and the lanes are summed by dot16's tree.
    void (*matmul)(const struct weight *w, uint64_t first, uint64_t count, const float *x,
                   size_t x_stride, size_t n_rows, float *out, size_t out_stride, void *scratch);

    // Rounds a row of n elements, n divisible by 256, to rounded_floats(n) floats.
    void (*round_x)(float *out, const float *x, size_t n);

    // For each of n_q queries (q + i * q_stride, head_dim floats) computes the tile's partial:
    //   s_t = scale * chain(q, k_t), soft-capped where asked for; m = max s_t; p_t = exp(s_t - m);
    //   sum = sum16(p); acc[d] = fma(p_t, v_t[d], acc[d]) in ascending t from +0
    // over the first limit[i] tokens (limit NULL: all tile->tokens; 0, or no more than
    // tile->first[i]: the partial is empty; before tile->first[i] s_t is -infinity) and
    // writes it to (fold = 0) or merges it into (fold = 1) partial i of `out`.
    void (*attention_tile)(const struct attention_tile *tile, const float *q, size_t q_stride,
                           size_t n_q, const uint32_t *limit, float *out, int fold, void *scratch);

    // into = into followed by next. M = max of both; a = exp(into.max - M), b = exp(next.max - M);
    // sum = fma(into.sum, a, next.sum * b), acc = fma(into.acc, a, next.acc * b). An empty side
    // leaves the other one's bits.
    void (*partial_merge)(struct partial *into, const struct partial *next, size_t head_dim);
    // out = acc / sum (zeros when empty).
    void (*partial_output)(const struct partial *p, float *out, size_t head_dim);

    // out[i] = x[i] * r * weight[i], r = 1 / sqrtf(dot16(x, x, n) / n + eps).
    void (*rms_norm)(float *out, const float *x, const float *weight, size_t n, float eps);
    // gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i]
    void (*silu_mul)(float *gate, const float *up, size_t n);
    // x[i] += y[i]
    void (*add)(float *x, const float *y, size_t n);
    // In place on head_dim interleaved pairs: (a, b) -> (a cos - b sin, a sin + b cos), products
    // as fma(a, cos, -(b * sin)) and fma(a, sin, b * cos). cos_sin holds n / 2 cosines, then n / 2
    // sines.
    void (*rope)(float *x, const float *cos_sin, size_t n);
    // The same on the pairs (x[i], x[i + n / 2]).
    void (*rope_halves)(float *x, const float *cos_sin, size_t n);

    // d[i] = x[i] - sum16(x, n) / n; out[i] = fma(d[i] * r, weight[i], bias[i]),
    // r = 1 / sqrtf(dot16(d, d, n) / n + eps). out may be x.
    void (*layer_norm)(float *out, const float *x, const float *weight, const float *bias, size_t n,
                       float eps);
    // gate[i] = gelu(gate[i]) * up[i] with the tanh form of gelu, which is x / (1 + exp(-2 u)),
    // -2 u = x * fma(x * x, GELU_CUBIC, GELU_LINEAR).
    void (*gelu_mul)(float *gate, const float *up, size_t n);
    // x[i] = x[i] > 0 ? x[i] : +0
    void (*relu)(float *x, size_t n);
    // x[i] *= factor
    void (*scale)(float *x, float factor, size_t n);
    // x[i] = cap * (1 - 2 / (1 + exp(x[i] * (2 / cap)))), which is cap * tanh(x[i] / cap).
    void (*softcap)(float *x, float cap, size_t n);

    // Ranking tokens by some channels: out[i * out_stride + t] = chain over c of q[i * q_stride +
    // c] and channels[c][t], for n_q queries and n tokens.
    void (*channel_scores)(const uint16_t *const *channels, size_t n_channels, size_t n,
                           const float *q, size_t q_stride, size_t n_q, float *out,
                           size_t out_stride);
    // The mass of each of the pieces for n_q queries, relative to 2^tops[q]. A query has a table of
    // bytes, `mass_rows` rows of 16, zeros where there is no byte, and a factor:
    //   a_i = (float)(the sum over j < bytes of what row j says of the low half of byte j of key i,
    //   and row mass_rows / 2 + j of the high half) * (scale * (1.0f / 255) * factor_i), plus the
    //   piece's bias, if there are any
    //   with a softcap: a_i = softcap(a_i * factor); the factor is 1 from then on
    //   top = factor * LOG2E * m, m = the largest a_i of all pieces
    //   e_i = 2^max((a_i - m) * (factor * LOG2E), -120), the polynomial of sets.h
    //   mass = the sum of e_i * count_i in 16 lanes, summed by dot16's tree: of each 16 keys those
    //   of even number belong to lanes 0 to 7, the others to 8 to 15.
    // Entries of a table are no larger than MASS_ENTRY, factors no larger than MASS_FACTOR and not
    // negative. Scratch: MASS_SCRATCH bytes, aligned to 64.
    void (*piece_masses)(const struct mass_pieces *pieces, const int8_t *tables,
                         const float *factors, size_t n_q, float *tops, size_t top_stride,
                         float *masses, size_t stride, void *scratch);
    // What each key scores for one query: a_i * factor as above, or with a softcap a_i. Of each
    // slice, 16 keys of a piece or what is left of it, 16 scores: its key i in lane i % 2 * 8 + i /
    // 2, and anything in lanes without a key.
    void (*piece_scores)(const struct mass_pieces *pieces, const int8_t *table, float factor,
                         float *scores, void *scratch);
    // which[i] = the number of the mean that key i is nearest to, the lowest of several: the one
    // with the largest fma((float)(the sum of what its table says of the key's half bytes, as
    // above), steps[m], -sizes[m]). Codes are [slices][mass_rows / 2][16], zeros where there is no
    // byte. 1 <= n_means <= 65536; no step or size is NaN. Scratch: MASS_SCRATCH bytes, aligned
    // to 64.
    void (*nearest_means)(const uint8_t *codes, size_t slices, size_t bytes, const int8_t *tables,
                          const float *steps, const float *sizes, size_t n_means, uint16_t *which,
                          void *scratch);
    // y[q * y_stride + d] = fma(weights[q * stride + t], element d of codes[t], y[...]) for t < n
    // in ascending order. An element is its code of 1 or 2 bits, the first in the lowest ones, less
    // half of the largest code.
    void (*code_axpy)(const uint8_t *const *codes, size_t n, size_t bits, size_t dim,
                      const float *weights, size_t stride, size_t n_q, float *y, size_t y_stride);
    // x[i] = exp(x[i] - max); returns sum16(x, n).
    float (*exp_sum)(float *x, size_t n, float max);
    // y[i] = fma(a, x[i], y[i])
    void (*axpy)(float *y, float a, const float *x, size_t n);

    // Blocks of K and V, as kernels/reference_kv.h says: n <= KV_BLOCK numbers of K, or of a last
    // block of V, to a block; KV_BLOCK numbers of V to a block that carries its scales and those of
    // `key`; what a block holds, as fp16. `type` is not KV_F16.
    void (*kv_make)(uint32_t type, struct kv_block *b, const uint16_t *in, size_t n);
    void (*kv_make_value)(uint32_t type, struct kv_block *b, const uint16_t *in,
                          const struct kv_block *key);
    void (*kv_numbers)(uint32_t type, const struct kv_block *b, uint16_t *out, size_t n);
    // Babai's nearest plane for n <= KV_PLANES keys: from the last channel on, each one is rounded
    // to its block's scale and zero point after the errors of those behind it, weighted with a row
    // of the factor (kernels/kv_keys.h), were taken from it. They do not touch each other.
    void (*kv_planes)(uint32_t type, const struct kv_plane *planes, size_t n, size_t head_dim);
    // kv_hadamard: for steps 1, 2, 4, ... < n, pairs (a, b) at that distance become (a + b, a - b).
    void (*hadamard)(float *x, size_t n);
};

// The plain C reference; always there, never replaced.
extern const struct kernels kernels_reference;

// The best set for this machine. Never NULL; does not change during a process.
const struct kernels *kernels_best(void);
// A set by name ("reference", "avx2", "avx512", "avx512vnni", "neon"); NULL when this machine
// cannot run it.
const struct kernels *kernels_by_name(const char *name);
// Names that kernels_by_name would accept here, best last, NULL-terminated.
const char *const *kernels_available(void);

// exp of one value, bit-equal to what every set computes inside its loops.
float kernel_exp(float x);
float kernel_f16_to_f32(uint16_t h);
uint16_t kernel_f32_to_f16(float f);
// out[c * out_stride + r] = in[r * in_stride + c] for r < rows, c < cols.
void kernel_transpose16(uint16_t *out, size_t out_stride, const uint16_t *in, size_t in_stride,
                        size_t rows, size_t cols);

#endif
