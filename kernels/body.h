// SPDX-License-Identifier: Apache-2.0
// The algorithms of a kernel set, once for all instruction sets. The file that includes this one
// has defined vn (a register of VN floats), v16 (the 16 lanes of an accumulator as registers), the
// vn_* operations, its blocking constants and the name of its table.
//
// Why bits are equal everywhere: an output's value is a chain of fused operations per lane and one
// tree, both fixed by kernels.h. Blocking only chooses which outputs are in registers together; no
// chain is ever split, reordered or shared.
//
// Padding: a chain is left alone by fma(+0, -0, lane), whatever the lane holds (a product of -0
// changes neither zero), so short vectors are filled up with +0 on one side and -0 on the other.
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

// Before a loop over registers, whose count is a constant: it must be gone before arrays of
// accumulators are turned into registers.
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif

enum {
    PARTS = KERNEL_LANES / VN,
    // Rows of x for which tiles of block types pay; dequantising costs more than the product.
    TILE_MIN_BLOCK_ROWS = 3,
};

static inline vn vn_load_part(const float *p, size_t n, float fill)
{
    float t[VN];
    for (size_t i = 0; i < VN; i++)
        t[i] = i < n ? p[i] : fill;
    return vn_load(t);
}

static inline void vn_store_part(float *p, vn v, size_t n)
{
    float t[VN];
    vn_store(t, v);
    memcpy(p, t, n * sizeof t[0]);
}

INLINE v16 v16_zero(void)
{
    v16 v;
    for (int p = 0; p < PARTS; p++)
        v.p[p] = vn_set1(0);
    return v;
}

// kernel_exp of each lane, none of which is above EXP_MAX.
INLINE vn vn_exp_falling(vn x)
{
    vn t = vn_fma(x, vn_set1(EXP_LOG2E), vn_set1(EXP_ROUND));
    vn n = vn_sub(t, vn_set1(EXP_ROUND));
    vn r = vn_fma(n, vn_set1(-EXP_LN2_HI), x);
    r = vn_fma(n, vn_set1(-EXP_LN2_LO), r);
    vn p = vn_fma(vn_set1(EXP_C6), r, vn_set1(EXP_C5));
    p = vn_fma(p, r, vn_set1(EXP_C4));
    p = vn_fma(p, r, vn_set1(EXP_C3));
    p = vn_fma(p, r, vn_set1(EXP_C2));
    p = vn_fma(p, r, vn_set1(1.0f));
    p = vn_fma(p, r, vn_set1(1.0f));
    p = vn_mul(p, vn_exp2_low_bits(t));
    return vn_zero_if_less(x, vn_set1(EXP_MIN), p);
}

// kernel_exp of each lane.
INLINE vn vn_exp(vn x)
{
    return vn_if_less(vn_set1(EXP_MAX), x, vn_set1(INFINITY), vn_exp_falling(x));
}

// Tree sums of n accumulators to out, which has room for n rounded up to VN.
INLINE void reduce_all(const v16 *acc, const size_t n, float *out)
{
    for (size_t g = 0; g < n; g += VN) {
        v16 group[VN];
        for (size_t i = 0; i < VN; i++)
            group[i] = acc[g + i < n ? g + i : n - 1];
        vn_store(out + g, vn_reduce(group));
    }
}

// Brings a line into the second cache. It may lie behind the end of the data: this is a hint, never
// an access.
INLINE void prefetch(const uint8_t *p, size_t offset)
{
    __builtin_prefetch((const void *)((uintptr_t)p + offset), 0, 2);
}

#include "kernels/blocks.h"

// ---- stored types ----------------------------------------------------------------------------

// Bytes of 32 elements.
INLINE size_t bytes_of_32(uint32_t type)
{
    return type == TENSOR_F32 ? 128 : type == TENSOR_Q8_0 ? 34 : 64;
}

// VN weights at element `sub` (< 32) of the 32 elements at p.
INLINE vn weight_vn(uint32_t type, const uint8_t *p, size_t sub)
{
    if (type == TENSOR_F32)
        return vn_load(p + 4 * sub);
    if (type == TENSOR_F16)
        return vn_f16(p + 2 * sub);
    if (type == TENSOR_BF16)
        return vn_bf16(p + 2 * sub);
    uint16_t scale;
    memcpy(&scale, p, sizeof scale);
    return vn_mul(vn_f16_set1(scale), vn_i8(p + 2 + sub)); // exact
}

// Copies the last n < 16 elements of a row to 16 elements filled up with -0.
INLINE void weight_tail(uint32_t type, const uint8_t *p, size_t n, uint8_t *out)
{
    if (type == TENSOR_F32) {
        for (int i = 0; i < KERNEL_LANES; i++)
            memcpy(out + 4 * i, &(float){-0.0f}, 4);
        memcpy(out, p, 4 * n);
    } else {
        for (int i = 0; i < KERNEL_LANES; i++)
            memcpy(out + 2 * i, &(uint16_t){0x8000}, 2);
        memcpy(out, p, 2 * n);
    }
}

// Writes the row, filled up with -0 to a multiple of 16, as floats: 16 of them every `stride`,
// their registers `part` apart.
INLINE void expand_row(uint32_t type, const uint8_t *row, size_t cols, float *out, size_t stride,
                       size_t part)
{
    size_t c = 0;
    for (; c + 32 <= cols; c += 32, row += bytes_of_32(type), out += 2 * stride) {
        for (size_t p = 0; p < PARTS; p++)
            vn_store(out + p * part, weight_vn(type, row, p * VN));
        for (size_t p = 0; p < PARTS; p++)
            vn_store(out + stride + p * part, weight_vn(type, row, 16 + p * VN));
    }
    uint8_t tail[4 * KERNEL_LANES];
    for (size_t sub = 0; c < cols; c += KERNEL_LANES, sub += KERNEL_LANES, out += stride) {
        const uint8_t *from = row;
        size_t at = sub;
        if (cols - c < KERNEL_LANES) {
            weight_tail(type, row + bytes_of_32(type) / 32 * sub, cols - c, tail);
            from = tail;
            at = 0;
        }
        for (size_t p = 0; p < PARTS; p++)
            vn_store(out + p * part, weight_vn(type, from, at + p * VN));
    }
}

static void expand_any(uint32_t type, const uint8_t *row, size_t cols, float *out, size_t stride,
                       size_t part)
{
    switch (type) {
    case TENSOR_F32:
        expand_row(TENSOR_F32, row, cols, out, stride, part);
        break;
    case TENSOR_F16:
        expand_row(TENSOR_F16, row, cols, out, stride, part);
        break;
    case TENSOR_BF16:
        expand_row(TENSOR_BF16, row, cols, out, stride, part);
        break;
    case TENSOR_Q8_0:
        expand_row(TENSOR_Q8_0, row, cols, out, stride, part);
        break;
    default:
        if (block_functions(type)) {
            block_functions(type)->expand(row, cols, out, stride, part);
            break;
        }
        // The loader refuses other types; NaN shows a hole in that.
        for (size_t c = 0; c < cols; c += KERNEL_LANES, out += stride)
            for (size_t p = 0; p < PARTS; p++)
                vn_store(out + p * part, vn_set1(NAN));
        break;
    }
}

static const uint8_t *weight_at(const struct weight *w, uint64_t row)
{
    return (const uint8_t *)w->data + row * w->row_bytes;
}

static void set_weight_row(const struct weight *w, uint64_t row, float *out)
{
    size_t whole = (size_t)w->cols / 32 * 32, rest = (size_t)w->cols - whole;
    const uint8_t *data = weight_at(w, row);
    float tail[32];
    if (block_functions(w->type)) { // whole blocks
        expand_any(w->type, data, (size_t)w->cols, out, KERNEL_LANES, VN);
        return;
    }
    expand_any(w->type, data, whole, out, KERNEL_LANES, VN);
    expand_any(w->type, data + whole / 32 * bytes_of_32(w->type), rest, tail, KERNEL_LANES, VN);
    memcpy(out + whole, tail, rest * sizeof tail[0]);
}

static void set_f16_to_f32(float *out, const uint16_t *in, size_t n)
{
    struct weight row = {.data = in, .rows = 1, .cols = n, .row_bytes = 2 * n, .type = TENSOR_F16};
    set_weight_row(&row, 0, out);
}

static void set_f32_to_f16(uint16_t *out, const float *in, size_t n)
{
    size_t i = 0;
    for (; i + VN <= n; i += VN)
        vn_to_f16(out + i, vn_load(in + i));
    uint16_t tail[VN];
    vn_to_f16(tail, vn_load_part(in + i, n - i, 0));
    memcpy(out + i, tail, (n - i) * sizeof tail[0]);
}

#include "kernels/body_vectors.h"

// ---- products: outputs [mr][jr] in registers -------------------------------------------------

// One step of 16 elements: weights straight from their stored type.
INLINE void direct_step(uint32_t type, const size_t mr, const size_t jr, const uint8_t *const *row,
                        size_t at, size_t sub, const float *x, size_t x_stride, v16 *acc)
{
    UNROLL
    for (size_t p = 0; p < PARTS; p++) {
        vn a[4];
        UNROLL
        for (size_t i = 0; i < mr; i++)
            a[i] = vn_load(x + i * x_stride + p * VN);
        UNROLL
        for (size_t j = 0; j < jr; j++) {
            vn b = weight_vn(type, row[j] + at, sub + p * VN);
            UNROLL
            for (size_t i = 0; i < mr; i++)
                acc[i * jr + j].p[p] = vn_fma(a[i], b, acc[i * jr + j].p[p]);
        }
    }
}

// The last columns of rows, fewer than a step, as a step takes them: filled up with zeros.
struct last_columns {
    uint8_t weights[16][4 * KERNEL_LANES];
    const uint8_t *row[16];
    float x[8 * KERNEL_LANES]; // rows of KERNEL_LANES
};
INLINE void take_last(struct last_columns *last, uint32_t type, const size_t mr, const size_t jr,
                      const uint8_t *const *row, size_t at, size_t n, const float *x,
                      size_t x_stride)
{
    for (size_t j = 0; j < jr; j++) {
        weight_tail(type, row[j] + at, n, last->weights[j]);
        last->row[j] = last->weights[j];
    }
    memset(last->x, 0, mr * KERNEL_LANES * sizeof last->x[0]);
    for (size_t i = 0; i < mr; i++)
        memcpy(last->x + i * KERNEL_LANES, x + i * x_stride, n * sizeof x[0]);
}

// out[i * jr + j] = dot16(x row i, weight row j); out has room for mr * jr rounded up to VN. What
// lies `ahead` bytes after each weight is prefetched: the rows are short, and a hardware prefetcher
// that has to find each of them anew leaves half of the memory's rate unused. Types that wait for
// memory alone go through what lies `ahead` of the first row from front to back (sweep), which the
// memory gives faster than jr rows side by side.
INLINE void direct_block(uint32_t type, const size_t mr, const size_t jr, const uint8_t *const *row,
                         size_t cols, const float *x, size_t x_stride, size_t ahead, int sweep,
                         float *out)
{
    v16 acc[16];
    UNROLL
    for (size_t i = 0; i < mr * jr; i++)
        UNROLL
    for (size_t p = 0; p < PARTS; p++)
        acc[i].p[p] = vn_set1(0);
    size_t c = 0, at = 0;
    for (; c + 32 <= cols; c += 32, at += bytes_of_32(type)) {
        UNROLL
        for (size_t j = 0; j < jr; j++)
            if (sweep)
                prefetch(row[0], ahead + at * jr + j * bytes_of_32(type));
            else
                prefetch(row[j], ahead + at);
        direct_step(type, mr, jr, row, at, 0, x + c, x_stride, acc);
        direct_step(type, mr, jr, row, at, 16, x + c + 16, x_stride, acc);
    }
    size_t sub = 0;
    if (c + 16 <= cols) {
        direct_step(type, mr, jr, row, at, 0, x + c, x_stride, acc);
        c += 16;
        sub = 16;
    }
    if (c < cols) {
        struct last_columns last;
        take_last(&last, type, mr, jr, row, at + bytes_of_32(type) / 32 * sub, cols - c, x + c,
                  x_stride);
        direct_step(type, mr, jr, last.row, 0, 0, last.x, KERNEL_LANES, acc);
    }
    reduce_all(acc, mr * jr, out);
}

// All `count` weight rows from `first` for mr rows of x. ahead = 0: the rows that come next.
INLINE void direct_rows(uint32_t type, const size_t mr, const struct weight *w, uint64_t first,
                        uint64_t count, const float *x, size_t x_stride, float *out,
                        size_t out_stride, size_t ahead)
{
    const size_t jr = DIRECT_JR(mr), cols = (size_t)w->cols, row_bytes = (size_t)w->row_bytes;
    const uint8_t *data = weight_at(w, first), *row[16];
    // Measured; of long rows the hardware's own prefetching takes its part.
    const int sweep = !ahead && type != TENSOR_Q8_0 && jr * row_bytes <= 32 * 1024;
    if (!ahead)
        ahead = type == TENSOR_Q8_0 || sweep ? jr * row_bytes : jr * row_bytes / 2;
    float block[32];
    uint64_t j = 0;
    for (; j + jr <= count; j += jr, data += jr * row_bytes) {
        UNROLL
        for (size_t k = 0; k < jr; k++)
            row[k] = data + k * row_bytes;
        direct_block(type, mr, jr, row, cols, x, x_stride, ahead, sweep, block);
        for (size_t i = 0; i < mr; i++)
            memcpy(out + i * out_stride + j, block + i * jr, jr * sizeof out[0]);
    }
    if (j == count)
        return;
    size_t rest = (size_t)(count - j);
    for (size_t k = 0; k < jr; k++) // the last row stands in for those that are not there
        row[k] = data + (k < rest ? k : rest - 1) * row_bytes;
    direct_block(type, mr, jr, row, cols, x, x_stride, ahead, sweep, block);
    for (size_t i = 0; i < mr; i++)
        memcpy(out + i * out_stride + j, block + i * jr, rest * sizeof out[0]);
}

typedef void direct_fn(const struct weight *w, uint64_t first, uint64_t count, const float *x,
                       size_t x_stride, float *out, size_t out_stride, size_t ahead);

#define DIRECT(type, mr)                                                                           \
    static void direct_##type##_##mr(const struct weight *w, uint64_t first, uint64_t count,       \
                                     const float *x, size_t x_stride, float *out,                  \
                                     size_t out_stride, size_t ahead)                              \
    {                                                                                              \
        direct_rows(TENSOR_##type, mr, w, first, count, x, x_stride, out, out_stride, ahead);      \
    }
#define DIRECT_TYPE(type) DIRECT(type, 1) DIRECT(type, 2) DIRECT(type, 3) DIRECT(type, 4)
#define DIRECT_NAMES(type)                                                                         \
    {                                                                                              \
        direct_##type##_1, direct_##type##_2, direct_##type##_3, direct_##type##_4                 \
    }

DIRECT_TYPE(F32)
DIRECT_TYPE(F16)
DIRECT_TYPE(BF16)
DIRECT_TYPE(Q8_0)

static unsigned direct_type(uint32_t type)
{
    return type == TENSOR_F32 ? 0 : type == TENSOR_F16 ? 1 : type == TENSOR_BF16 ? 2 : 3;
}

// Few rows of x: every weight is read once per four rows and never stored as fp32.
static void direct_product(const struct weight *w, uint64_t first, uint64_t count, const float *x,
                           size_t x_stride, size_t n_rows, float *out, size_t out_stride,
                           size_t ahead)
{
    static direct_fn *const table[4][4] = {DIRECT_NAMES(F32), DIRECT_NAMES(F16), DIRECT_NAMES(BF16),
                                           DIRECT_NAMES(Q8_0)};
    const unsigned t = direct_type(w->type);
    for (size_t i = 0; i < n_rows; i += 4) {
        size_t mr = n_rows - i < 4 ? n_rows - i : 4;
        table[t][mr - 1](w, first, count, x + i * x_stride, x_stride, out + i * out_stride,
                         out_stride, ahead);
    }
}

#include "kernels/body_tiles.h"
#ifdef WIDE_ROWS
#include "kernels/body_wide.h"
#endif
#include "kernels/body_k.h"

static void set_matmul(const struct weight *w, uint64_t first, uint64_t count, const float *x,
                       size_t x_stride, size_t n_rows, float *out, size_t out_stride, void *scratch)
{
    if (kernel_rounds_x(w->type)) {
        k_matmul(w, first, count, x, x_stride, n_rows, out, out_stride, scratch);
        return;
    }
    const struct block_functions *block = block_functions(w->type);
#ifdef WIDE_ROWS
    if (!block && n_rows >= WIDE_ROWS && (n_rows < TILE_MIN_ROWS || w->type != TENSOR_Q8_0)) {
        wide_product(w, first, count, x, x_stride, n_rows, out, out_stride, scratch);
        return;
    }
#endif
    if (n_rows >= (block ? TILE_MIN_BLOCK_ROWS : TILE_MIN_ROWS))
        tile_products(w, first, count, x, x_stride, n_rows, out, out_stride, scratch);
    else if (!block)
        direct_product(w, first, count, x, x_stride, n_rows, out, out_stride, 0);
    else
        for (size_t i = 0; i < n_rows; i++)
            block->product(w, first, count, x + i * x_stride, out + i * out_stride);
}

#include "kernels/body_attention.h"
#include "kernels/body_sparf.h"
#include "kernels/body_pages.h"
#include "kernels/body_kv.h"

const struct kernels SET_TABLE = {
    .name = SET_NAME,
    .f16_to_f32 = set_f16_to_f32,
    .f32_to_f16 = set_f32_to_f16,
    .weight_row = set_weight_row,
    .dot = set_dot,
    .sum = set_sum,
    .max = set_max,
    .matmul = set_matmul,
    .round_x = set_round_x,
    .attention_tile = set_attention_tile,
    .partial_merge = set_partial_merge,
    .partial_output = set_partial_output,
    .rms_norm = set_rms_norm,
    .silu_mul = set_silu_mul,
    .add = set_add,
    .rope = set_rope,
    .rope_halves = set_rope_halves,
    .layer_norm = set_layer_norm,
    .gelu_mul = set_gelu_mul,
    .relu = set_relu,
    .scale = set_scale,
    .softcap = set_softcap,
    .channel_scores = set_channel_scores,
    .piece_masses = set_piece_masses,
    .piece_scores = set_piece_scores,
    .nearest_means = set_nearest_means,
    .code_axpy = set_code_axpy,
    .exp_sum = set_exp_sum,
    .axpy = set_axpy,
    .kv_make = set_kv_make,
    .kv_make_value = set_kv_make_value,
    .kv_numbers = set_kv_numbers,
    .kv_planes = set_kv_planes,
    .hadamard = set_hadamard,
};
