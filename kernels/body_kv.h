// SPDX-License-Identifier: Apache-2.0
// Rounding to blocks, the 32 numbers of a block in registers. What is meant is in reference_kv.h;
// here the operations on each number are the same ones, and sums are taken in the same order.
// Included by body.h alone.
#include "kernels/kv_blocks.h"

enum {
    KV_VN = KV_BLOCK / VN,
    KV_HALF = KV_VN / 2, // vectors of the first 16 numbers
};

// A number for each channel of a block.
struct kv_lanes {
    vn v[KV_VN];
};

INLINE vn vn_nearest(vn x)
{
    return vn_sub(vn_add(x, vn_set1(KV_ROUND)), vn_set1(KV_ROUND));
}

// between()
INLINE vn vn_between(vn x, vn low, vn high)
{
    return vn_if_less(x, low, low, vn_if_less(high, x, high, x));
}

// The 16 bits of half h of a comparison.
#define KV_BITS(bits, h, expression)                                                               \
    UNROLL                                                                                         \
    for (size_t p = 0; p < KV_HALF; p++) {                                                         \
        const size_t i = (h)*KV_HALF + p;                                                          \
        (bits) |= (expression) << p * VN;                                                          \
    }

INLINE struct kv_lanes kv_load(const uint16_t *in)
{
    struct kv_lanes x;
    UNROLL
    for (size_t i = 0; i < KV_VN; i++)
        x.v[i] = vn_f16(in + i * VN);
    return x;
}

// How far numbers reach to either side of 0. False: not all are finite.
INLINE int kv_range(const struct kv_lanes *x, float *low, float *high)
{
    const vn infinity = vn_set1(INFINITY), zero = vn_set1(0), below = vn_set1(-INFINITY);
    vn up = zero, down = zero;
    uint32_t finite = (1u << VN) - 1;
    UNROLL
    for (size_t i = 0; i < KV_VN; i++) {
        up = vn_max(x->v[i], up);
        down = vn_if_less(x->v[i], down, x->v[i], down);
        finite &= vn_less_bits(below, x->v[i]) & vn_less_bits(x->v[i], infinity);
    }
    *high = vn_greatest(up);
    *low = 0 - vn_greatest(vn_sub(zero, down));
    return finite == (1u << VN) - 1;
}

// The sum of squares, as the reference has it.
INLINE float kv_error(const struct kv_lanes *square)
{
    typedef float lanes8 __attribute__((vector_size(32)));
    float all[KV_BLOCK], lane[8];
    lanes8 part[KV_BLOCK / 8], sum;
    UNROLL
    for (size_t i = 0; i < KV_VN; i++)
        vn_store(all + i * VN, square->v[i]);
    memcpy(part, all, sizeof part);
    sum = part[0]; // 0 and a square are that square
    UNROLL
    for (size_t i = 1; i < KV_BLOCK / 8; i++)
        sum += part[i];
    memcpy(lane, &sum, sizeof lane);
    return sum_of_lanes(lane);
}

INLINE void kv_codes(struct kv_block *b, const struct kv_lanes *code, float zero)
{
    UNROLL
    for (size_t i = 0; i < KV_VN; i++)
        vn_to_i8(b->code + i * VN, vn_add(code->v[i], vn_set1(zero)));
}

static void set_kv_numbers(uint32_t type, const struct kv_block *b, uint16_t *out, size_t n)
{
    const vn s = vn_set1(scale_of(type, b->scale)), zero = vn_set1(b->zero);
    uint16_t all[KV_BLOCK], *to = n < KV_BLOCK ? all : out;
    UNROLL
    for (size_t i = 0; i < KV_VN; i++)
        vn_to_f16(to + i * VN,
                  vn_add(vn_mul(s, vn_sub(vn_i8(b->code + i * VN), zero)), vn_set1(0)));
    if (n < KV_BLOCK)
        memcpy(out, all, n * sizeof *out);
}

// ---- K -----------------------------------------------------------------------------------------

// code = the nearest codes with one scale.
INLINE void kv_nearest(const struct kv_lanes *x, float s, float least, float most,
                       struct kv_lanes *code)
{
    const vn inverse = vn_set1(inverse_of(s));
    UNROLL
    for (size_t i = 0; i < KV_VN; i++)
        code->v[i] =
            vn_between(vn_nearest(vn_mul(x->v[i], inverse)), vn_set1(least), vn_set1(most));
}

// q4_try
INLINE float kv_q4_try(struct kv_block *b, uint8_t scale, const struct kv_lanes *x, float low,
                       struct kv_lanes *code)
{
    const float s = scale_of(KV_Q4, scale);
    float least, most;
    struct kv_lanes square;
    b->scale = scale;
    b->zero = zero_for(KV_Q4, scale, low);
    code_range(KV_Q4, s, b->zero, &least, &most);
    kv_nearest(x, s, least, most, code);
    UNROLL
    for (size_t i = 0; i < KV_VN; i++) {
        vn d = vn_sub(vn_mul(code->v[i], vn_set1(s)), x->v[i]);
        square.v[i] = vn_mul(d, d);
    }
    return kv_error(&square);
}

static void kv_q4_block(struct kv_block *b, const struct kv_lanes *x, float low, float high)
{
    const uint8_t first = value_scale_for(KV_Q4, low, high);
    struct kv_lanes code, other;
    float least = kv_q4_try(b, first, x, low, &code);
    for (int by = 2; by >= -SCALES_SMALLER && least > 0; by--) {
        int scale = first + by;
        struct kv_block tried;
        if (!by || scale < 0 || scale > Q4_SCALE)
            continue;
        float error = kv_q4_try(&tried, (uint8_t)scale, x, low, &other);
        if (by > 0 ? error == 0 : error < least) {
            b->scale = tried.scale;
            b->zero = tried.zero;
            code = other;
            least = error;
        }
    }
    kv_codes(b, &code, b->zero);
}

static void set_kv_make(uint32_t type, struct kv_block *b, const uint16_t *in, size_t n)
{
    uint16_t all[KV_BLOCK];
    float low, high;
    if (n < KV_BLOCK) {
        memset(all, 0, sizeof all);
        memcpy(all, in, n * sizeof *in);
        in = all;
    }
    const struct kv_lanes x = kv_load(in);
    if (!kv_range(&x, &low, &high)) {
        *b = (struct kv_block){.scale = SCALE_NAN};
    } else if (type == KV_Q8) {
        struct kv_lanes code;
        b->scale = q8_scale_for(high > -low ? high : -low);
        b->zero = 0;
        kv_nearest(&x, scale_of(KV_Q8, b->scale), -Q8_CODE, Q8_CODE, &code);
        kv_codes(b, &code, 0);
    } else {
        kv_q4_block(b, &x, low, high);
    }
}

// y += error times a row of n of the factor, before whose end `rest` floats of it may be read. What
// lies in y behind n is not needed any more.
INLINE void kv_take(float *y, const float *row, size_t n, size_t rest, float error)
{
    const vn a = vn_set1(error);
    size_t j = 0;
    for (; j < n && j + VN <= rest; j += VN)
        vn_store(y + j, vn_fma(a, vn_load(row + j), vn_load(y + j)));
    for (; j < n; j++)
        y[j] = fmaf(error, row[j], y[j]);
}

// Side by side, because each channel waits long for the one behind it.
INLINE void kv_planes(uint32_t type, const struct kv_plane *planes, const size_t n, size_t head_dim)
{
    float wanted[KV_PLANES][KERNEL_HEAD_DIM_MAX];
    struct plane_block b[KV_PLANES] = {0};
    for (size_t k = 0; k < n; k++) {
        memcpy(wanted[k], planes[k].x, head_dim * sizeof(float));
        for (size_t i = head_dim; i % VN != 0; i++)
            wanted[k][i] = 0;
    }
    for (size_t i = head_dim; i-- > 0;) {
        const size_t row = i * (i + 1) / 2, rest = head_dim * (head_dim + 1) / 2 - row;
        float error[KV_PLANES];
        if (i % KV_BLOCK == KV_BLOCK - 1 || i + 1 == head_dim)
            for (size_t k = 0; k < n; k++)
                b[k] = plane_block(type, &planes[k].blocks[i / KV_BLOCK]);
        UNROLL
        for (size_t k = 0; k < n; k++) {
            float code = nearest(wanted[k][i] * b[k].inverse);
            code = code < b[k].least ? b[k].least : code;
            code = code > b[k].most ? b[k].most : code;
            const float out = b[k].scale * code + 0.0f;
            error[k] = planes[k].x[i] - out;
            planes[k].x[i] = out;
        }
        UNROLL
        for (size_t k = 0; k < n; k++)
            kv_take(wanted[k], planes[k].factor + row, i, rest, error[k]);
    }
}

static void set_kv_planes(uint32_t type, const struct kv_plane *planes, size_t n, size_t head_dim)
{
    if (n == KV_PLANES)
        kv_planes(type, planes, KV_PLANES, head_dim);
    else
        for (size_t k = 0; k < n; k++)
            kv_planes(type, planes + k, 1, head_dim);
}

// ---- V -----------------------------------------------------------------------------------------

// value_try, with codes less their zero point in *code.
INLINE float kv_value_try(uint32_t type, const struct kv_block *b, const struct kv_lanes *x,
                          const struct kv_block *key, struct kv_lanes *code)
{
    const float s = scale_of(type, b->scale);
    const uint32_t hidden = hidden_of(key, b);
    float low, high;
    code_range(type, s, b->zero, &low, &high);
    const vn scale = vn_set1(s), least = vn_set1(low), most = vn_set1(high);
    const vn one = vn_set1(1), back = vn_set1(-1);
    struct kv_lanes other, square, other_square, cost;
    kv_nearest(x, s, low, high, code);
    UNROLL
    for (size_t i = 0; i < KV_VN; i++) {
        vn c = code->v[i], d = vn_sub(vn_mul(c, scale), x->v[i]);
        vn up = vn_if_less(vn_set1(0), d, back, one), to = vn_add(c, up);
        up = vn_if_less(most, to, back, vn_if_less(to, least, one, up));
        other.v[i] = vn_add(c, up);
        square.v[i] = vn_mul(d, d);
        d = vn_sub(vn_mul(other.v[i], scale), x->v[i]);
        other_square.v[i] = vn_mul(d, d);
        cost.v[i] = vn_sub(other_square.v[i], square.v[i]);
    }
    uint32_t odd[2] = {0}, cheaper = 0, moved[2];
    KV_BITS(odd[0], 0, vn_odd_bits(code->v[i]))
    KV_BITS(odd[1], 1, vn_odd_bits(code->v[i]))
    KV_BITS(cheaper, 1, vn_less_bits(cost.v[i], cost.v[i - KV_HALF]))
    const uint32_t forced = type == KV_Q4 ? 0xff : 0;
    moved[0] = (odd[0] ^ (b->zero & 1 ? 0xff : 0) ^ hidden >> 16) & forced;
    const uint32_t wrong = (odd[0] ^ odd[1] ^ moved[0] ^ hidden) & 0xffff;
    moved[1] = wrong & (forced | cheaper);
    moved[0] |= wrong & ~moved[1];
    UNROLL
    for (size_t i = 0; i < KV_VN; i++) {
        const uint32_t bits = moved[i / KV_HALF] >> i % KV_HALF * VN;
        code->v[i] = vn_choose(bits, other.v[i], code->v[i]);
        square.v[i] = vn_choose(bits, other_square.v[i], square.v[i]);
    }
    return kv_error(&square);
}

INLINE int kv_multiples(const struct kv_lanes *x, float s)
{
    const vn scale = vn_set1(s), inverse = vn_set1(inverse_of(s));
    for (size_t i = 0; i < KV_VN; i++) { // most are found out by the first
        vn n = vn_mul(vn_nearest(vn_mul(x->v[i], inverse)), scale);
        if (vn_less_bits(n, x->v[i]) | vn_less_bits(x->v[i], n))
            return 0;
    }
    return 1;
}

// Numbers that a block of V held before. False: they are none.
INLINE int kv_found(uint32_t type, struct kv_block *b, const struct kv_lanes *x, float low,
                    int first, const struct kv_block *key)
{
    const int largest = type == KV_Q8 ? Q8_SCALE : Q4_SCALE, zeros = type == KV_Q8 ? 1 : 2;
    for (int scale = first; scale <= first + SCALES_GREATER && scale <= largest; scale++) {
        if (!kv_multiples(x, scale_of(type, (uint8_t)scale)))
            continue;
        for (int up = 0; up < zeros; up++) {
            struct kv_lanes code;
            b->scale = (uint8_t)scale;
            b->zero = (uint8_t)(zero_for(type, b->scale, low) + up);
            if (b->zero > Q4_CODE || kv_value_try(type, b, x, key, &code) != 0)
                continue;
            kv_codes(b, &code, b->zero);
            return 1;
        }
    }
    return 0;
}

INLINE void kv_beside(uint32_t type, struct kv_block *b, const struct kv_lanes *x, float low,
                      float high, const struct kv_block *key)
{
    const int first = value_scale_for(type, low, high);
    const int smaller = type == KV_Q8 ? 1 : SCALES_SMALLER;
    struct kv_lanes code, tried;
    if (kv_found(type, b, x, low, first, key))
        return;
    struct kv_block at = {.scale = (uint8_t)first, .zero = zero_for(type, (uint8_t)first, low)};
    float least = kv_value_try(type, &at, x, key, &code);
    *b = at;
    for (int scale = first - 1; scale >= 0 && scale >= first - smaller; scale--) {
        at.scale = (uint8_t)scale;
        at.zero = zero_for(type, at.scale, low);
        float error = kv_value_try(type, &at, x, key, &tried);
        if (!(error < least))
            continue;
        *b = at;
        code = tried;
        least = error;
    }
    kv_codes(b, &code, b->zero);
}

static void set_kv_make_value(uint32_t type, struct kv_block *b, const uint16_t *in,
                              const struct kv_block *key)
{
    const struct kv_lanes x = kv_load(in);
    float low, high;
    if (!kv_range(&x, &low, &high))
        kernels_reference.kv_make_value(type, b, in, key);
    else if (type == KV_Q8)
        kv_beside(KV_Q8, b, &x, low, high, key);
    else
        kv_beside(KV_Q4, b, &x, low, high, key);
}

// ---- Hadamard matrices -------------------------------------------------------------------------

// Each step makes pairs of neighbours to sums in the first half and differences in the second: so
// the next bit of every index comes to where neighbours differ, and after the last step all are
// where they were.
static void set_hadamard(float *x, size_t n)
{
    float one[KERNEL_HEAD_DIM_MAX], other[KERNEL_HEAD_DIM_MAX], *from = x, *to = one;
    if (n < 2 * VN || n > KERNEL_HEAD_DIM_MAX) {
        kernels_reference.hadamard(x, n);
        return;
    }
    for (size_t step = 1; step < n; step *= 2) {
        if (2 * step == n)
            to = x;
        for (size_t i = 0; i < n; i += 2 * VN) {
            vn a, b;
            vn_load2(from + i, &a, &b);
            vn_store(to + i / 2, vn_add(a, b));
            vn_store(to + i / 2 + n / 2, vn_sub(a, b));
        }
        from = to;
        to = from == one ? other : one;
    }
}
