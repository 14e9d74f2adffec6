// SPDX-License-Identifier: Apache-2.0
// Products of the K types with rounded x (docs/decisions/0006-rounded-activations.md): integer
// products of a block of 256 in 16 int32 lanes, exact, then one conversion and two fused
// operations per lane. Included by body.h alone. Where a block keeps what is said by blocks.h.
//
// A vector of bytes holds the codes of 4 * VN consecutive elements, so that the quad of a lane lies
// in the lane's four bytes. Its even and its odd bytes, times the scale of their group, become two
// vectors of words; x lies in the same order. One row of x unpacks weights on the way; more share a
// panel of words.

#define K_TYPES(X) X(Q2_K) X(Q3_K) X(Q4_K) X(Q5_K) X(Q6_K)

enum {
    K_BLOCK = 256,
    K_VECTORS = K_BLOCK / 64, // of 64 elements
    K_STEPS = 2 * K_VECTORS,  // of 32 words
    WORDS = 2 * VN,           // in a vector of words
    // From this many rows of x on, a panel pays.
    K_PANEL_MIN_ROWS = 3,
};

// ---- one block -------------------------------------------------------------------------------

// What belongs to the 16 groups of 16 elements. It is read back from memory, where broadcasts are
// free.
struct k_groups {
    int8_t scale[16]; // s
    bytes16 minimum;  // times `factor` what is added
    float d, factor;
};

// 6-bit scales and minima of Q4_K and Q5_K, each in two bytes that follow each other.
INLINE void six_bits_twice(const uint8_t *p, bytes16 *scale, bytes16 *minimum)
{
    uint64_t low = load_u64(p), high = load_u32(p + 8), six = 0x3f3f3f3f3f3f3f3f;
    high = ((high | high << 28) & 0x0f0f0f0f0f0f0f0f) | (low >> 2 & 0x3030303030303030);
    typedef uint64_t words2 __attribute__((vector_size(16)));
    bytes16 v = (bytes16)(words2){low & six, high}; // 4 scales, 4 minima, and again
    *scale = __builtin_shufflevector(v, v, 0, 0, 1, 1, 2, 2, 3, 3, 8, 8, 9, 9, 10, 10, 11, 11);
    *minimum =
        __builtin_shufflevector(v, v, 4, 4, 5, 5, 6, 6, 7, 7, 12, 12, 13, 13, 14, 14, 15, 15);
}

INLINE void k_groups(uint32_t type, const uint8_t *p, struct k_groups *g)
{
    bytes16 scale;
    if (type == TENSOR_Q2_K) {
        bytes16 both = load_bytes(p);
        scale = both & bytes_all(15);
        g->minimum = bytes_field(both, 4, 0, 15);
        g->d = half_float(load_u16(p + 80));
        g->factor = -half_float(load_u16(p + 82));
    } else if (type == TENSOR_Q3_K) {
        g->minimum = scale = six_bits_q3(p + 96);
        g->d = half_float(load_u16(p + 108));
        g->factor = -4 * g->d;
    } else if (type == TENSOR_Q6_K) {
        g->minimum = scale = load_bytes(p + 192);
        g->d = half_float(load_u16(p + 208));
        g->factor = -32 * g->d;
    } else {
        six_bits_twice(p + 4, &scale, &g->minimum);
        g->d = half_float(load_u16(p));
        g->factor = -half_float(load_u16(p + 2));
    }
    memcpy(g->scale, &scale, sizeof g->scale);
}

// What is added for the groups of a part.
INLINE vn k_minimum(const struct k_groups *g, int part)
{
    return vn_mul(vn_codes(g->minimum, part), vn_set1(g->factor));
}

// Codes of elements e to e + 4 * VN - 1, none less than 0.
INLINE vb k_codes(uint32_t type, const uint8_t *p, size_t e)
{
    const uint8_t mask = type == TENSOR_Q2_K || type == TENSOR_Q3_K ? 3 : 15;
    const int plane = (int)(e / 32);
    vb q = vb_field(p + low_at(type, e), p + low_at(type, e + 32), low_shift(type, e),
                    low_shift(type, e + 32), 0, mask);
    if (type == TENSOR_Q3_K)
        q = vb_or(q, vb_field(p + e % 32, p + e % 32, plane, plane + 1, 2, 4));
    if (type == TENSOR_Q5_K)
        q = vb_or(q, vb_field(p + 16 + e % 32, p + 16 + e % 32, plane, plane + 1, 4, 16));
    if (type == TENSOR_Q6_K) {
        const uint8_t *high = p + 128 + e / 128 * 32 + e % 32;
        q = vb_or(q, vb_field(high, high, plane % 4 * 2, plane % 4 * 2 + 2, 4, 0x30));
    }
    return q;
}

// lane = what one block adds to it.
INLINE vn k_fold(vn lane, vi sum, vn scale, vn minimum, const float *x_sum)
{
    lane = vn_fma(vi_float(sum), scale, lane);
    return vn_fma(minimum, vn_load(x_sum), lane);
}

// ---- one row of x ----------------------------------------------------------------------------

// acc[j] = the lanes of x times row j.
INLINE void k_rows(uint32_t type, const uint8_t *const *row, size_t blocks,
                   const struct rounded_x *x, size_t ahead, v16 *acc)
{
    UNROLL
    for (size_t j = 0; j < K_JR; j++)
        acc[j] = v16_zero();
    for (size_t b = 0, at = 0; b < blocks; b++, at += block_bytes(type), x++) {
        struct k_groups g[K_JR];
        UNROLL
        for (size_t j = 0; j < K_JR; j++) {
            UNROLL
            for (size_t line = 0; line < block_bytes(type); line += 64)
                prefetch(row[j] + at, ahead + line);
            k_groups(type, row[j] + at, &g[j]);
            g[j].d *= x->scale;
            __asm__("" : "+m"(g[j]));
        }
        UNROLL
        for (size_t part = 0; part < PARTS; part++) {
            vi sum[K_JR];
            UNROLL
            for (size_t j = 0; j < K_JR; j++)
                sum[j] = vi_zero();
            UNROLL
            for (size_t v = 0; v < K_VECTORS; v++) {
                vw even = vw_load(x->q + 64 * v + part * WORDS);
                vw odd = vw_load(x->q + 64 * v + 32 + part * WORDS);
                UNROLL
                for (size_t j = 0; j < K_JR; j++) {
                    size_t e = 64 * v + 4 * VN * part;
                    vb codes = k_codes(type, row[j] + at, e);
                    vw scale = vw_scales(g[j].scale + e / 16);
                    sum[j] = vi_dot(sum[j], vw_even(codes, scale), even);
                    sum[j] = vi_dot(sum[j], vw_odd(codes, scale), odd);
                }
            }
            UNROLL
            for (size_t j = 0; j < K_JR; j++)
                acc[j].p[part] = k_fold(acc[j].p[part], sum[j], vn_set1(g[j].d),
                                        k_minimum(&g[j], (int)part), x->sum + part * VN);
        }
    }
}

// out[j] = x times row first + j, j < count.
INLINE void k_product(uint32_t type, const struct weight *w, uint64_t first, uint64_t count,
                      const struct rounded_x *x, float *out)
{
    const size_t row_bytes = (size_t)w->row_bytes;
    const uint8_t *data = (const uint8_t *)w->data + first * row_bytes, *row[K_JR];
    for (uint64_t j = 0; j < count; j += K_JR, data += K_JR * row_bytes) {
        size_t n = count - j < K_JR ? (size_t)(count - j) : K_JR;
        v16 acc[K_JR];
        float sums[K_JR + VN];
        UNROLL
        for (size_t k = 0; k < K_JR; k++) // the last row stands in for those not there
            row[k] = data + (k < n ? k : n - 1) * row_bytes;
        k_rows(type, row, (size_t)w->cols / K_BLOCK, x, 2 * K_JR * row_bytes, acc);
        reduce_all(acc, K_JR, sums);
        memcpy(out + j, sums, n * sizeof out[0]);
    }
}

// ---- several rows of x: a panel --------------------------------------------------------------
// Rows of weights are taken K_OUTPUTS at a time and cut into pieces of K_PIECE blocks; a piece is
// unpacked once for up to K_ROWS rows of x. Lanes wait in scratch from piece to piece.

enum { K_OUTPUTS = 36, K_PIECE = 8, K_ROWS = 64 };

// One block of K_NR rows of weights.
struct k_panel {
    int16_t word[K_STEPS][K_NR][32];
    float minimum[K_NR][KERNEL_LANES];
    float d[KERNEL_LANES]; // [K_NR] of them
};
_Static_assert(K_OUTPUTS % K_NR == 0, "whole groups");
_Static_assert(K_OUTPUTS / K_NR * K_PIECE * sizeof(struct k_panel) +
                       K_ROWS * K_OUTPUTS * KERNEL_LANES * sizeof(float) <=
                   KERNEL_SCRATCH_BYTES,
               "scratch holds a panel and the lanes");

// Column j of `blocks` panels from the blocks at p.
INLINE void k_fill(uint32_t type, const uint8_t *p, size_t blocks, struct k_panel *panel, size_t j)
{
    for (size_t b = 0; b < blocks; b++, p += block_bytes(type), panel++) {
        struct k_groups g;
        UNROLL
        for (size_t line = 0; line < block_bytes(type); line += 64)
            prefetch(p, EXPAND_AHEAD + line);
        k_groups(type, p, &g);
        panel->d[j] = g.d;
        __asm__("" : "+m"(g));
        UNROLL
        for (size_t part = 0; part < PARTS; part++) {
            vn_store(panel->minimum[j] + part * VN, k_minimum(&g, (int)part));
            UNROLL
            for (size_t v = 0; v < K_VECTORS; v++) {
                size_t e = 64 * v + 4 * VN * part;
                vb codes = k_codes(type, p, e);
                vw scale = vw_scales(g.scale + e / 16);
                vw_store(panel->word[2 * v][j] + part * WORDS, vw_even(codes, scale));
                vw_store(panel->word[2 * v + 1][j] + part * WORDS, vw_odd(codes, scale));
            }
        }
    }
}

// into[i * K_OUTPUTS + j] takes `blocks` more blocks of mr rows of x and the K_NR rows of a panel.
INLINE void k_tile(const size_t mr, const struct k_panel *panel, const struct rounded_x *x,
                   size_t x_blocks, size_t blocks, v16 *into)
{
    for (size_t b = 0; b < blocks; b++, panel++, x++) {
        // The lanes stay in memory: there are no registers for them beside the sums.
        __asm__("" : : : "memory");
        UNROLL
        for (size_t part = 0; part < PARTS; part++) {
            vi sum[K_MR * K_NR];
            UNROLL
            for (size_t i = 0; i < mr * K_NR; i++)
                sum[i] = vi_zero();
            UNROLL
            for (size_t step = 0; step < K_STEPS; step++) {
                vw w[K_NR];
                UNROLL
                for (size_t j = 0; j < K_NR; j++)
                    w[j] = vw_load(panel->word[step][j] + part * WORDS);
                UNROLL
                for (size_t i = 0; i < mr; i++) {
                    vw a = vw_load(x[i * x_blocks].q + 32 * step + part * WORDS);
                    UNROLL
                    for (size_t j = 0; j < K_NR; j++)
                        sum[i * K_NR + j] = vi_dot(sum[i * K_NR + j], w[j], a);
                }
            }
            UNROLL
            for (size_t i = 0; i < mr; i++) {
                vn scale = vn_set1(x[i * x_blocks].scale);
                UNROLL
                for (size_t j = 0; j < K_NR; j++) {
                    vn *lane = &into[i * K_OUTPUTS + j].p[part];
                    *lane = k_fold(*lane, sum[i * K_NR + j], vn_mul(vn_set1(panel->d[j]), scale),
                                   vn_load(panel->minimum[j] + part * VN),
                                   x[i * x_blocks].sum + part * VN);
                }
            }
        }
    }
}

#define K_TILES(mr)                                                                                \
    static void k_tiles_##mr(const struct k_panel *panel, size_t groups,                           \
                             const struct rounded_x *x, size_t x_blocks, size_t blocks, v16 *into) \
    {                                                                                              \
        for (size_t g = 0; g < groups; g++)                                                        \
            k_tile(mr, panel + g * K_PIECE, x, x_blocks, blocks, into + g * K_NR);                 \
    }
K_TILES(1)
K_TILES(2)
K_TILES(3)
#if K_MR == 4
K_TILES(4)
#endif

typedef void k_tiles_fn(const struct k_panel *panel, size_t groups, const struct rounded_x *x,
                        size_t x_blocks, size_t blocks, v16 *into);

// ---- the types -------------------------------------------------------------------------------

#define K_FUNCTIONS(type)                                                                          \
    static void k_product_##type(const struct weight *w, uint64_t first, uint64_t count,           \
                                 const struct rounded_x *x, float *out)                            \
    {                                                                                              \
        k_product(TENSOR_##type, w, first, count, x, out);                                         \
    }                                                                                              \
    static void k_fill_##type(const uint8_t *p, size_t blocks, struct k_panel *panel, size_t j)    \
    {                                                                                              \
        k_fill(TENSOR_##type, p, blocks, panel, j);                                                \
    }
K_TYPES(K_FUNCTIONS)

struct k_functions {
    uint32_t type;
    void (*product)(const struct weight *w, uint64_t first, uint64_t count,
                    const struct rounded_x *x, float *out);
    void (*fill)(const uint8_t *p, size_t blocks, struct k_panel *panel, size_t j);
};

// One of the K types.
static const struct k_functions *k_functions(uint32_t type)
{
#define K_ROW(type) {TENSOR_##type, k_product_##type, k_fill_##type},
    static const struct k_functions table[] = {K_TYPES(K_ROW)};
    return &table[type - TENSOR_Q2_K];
}

// At most K_OUTPUTS outputs for at most K_ROWS rows of x.
static void k_panel_product(const struct weight *w, uint64_t first, size_t count,
                            const struct rounded_x *x, size_t x_blocks, size_t n_rows, float *out,
                            size_t out_stride, void *scratch)
{
    static k_tiles_fn *const tiles[] = {
        NULL,
        k_tiles_1,
        k_tiles_2,
        k_tiles_3,
#if K_MR == 4
        k_tiles_4
#endif
    };
    const struct k_functions *functions = k_functions(w->type);
    const size_t groups = (count + K_NR - 1) / K_NR, all = (size_t)w->cols / K_BLOCK;
    struct k_panel *panel = scratch;
    v16 *acc = (v16 *)(panel + K_OUTPUTS / K_NR * K_PIECE);
    for (size_t i = 0; i < n_rows * K_OUTPUTS; i++)
        acc[i] = v16_zero();
    for (size_t b = 0; b < all; b += K_PIECE) {
        size_t blocks = all - b < K_PIECE ? all - b : K_PIECE;
        for (size_t j = 0; j < groups * K_NR; j++) // copies of the last row fill the last group
            functions->fill(weight_at(w, first + (j < count ? j : count - 1)) +
                                tensor_type_row_bytes(w->type, b * K_BLOCK),
                            blocks, panel + j / K_NR * K_PIECE, j % K_NR);
        for (size_t i = 0; i < n_rows; i += K_MR) {
            size_t mr = n_rows - i < K_MR ? n_rows - i : K_MR;
            tiles[mr](panel, groups, x + i * x_blocks + b, x_blocks, blocks, acc + i * K_OUTPUTS);
        }
    }
    for (size_t i = 0; i < n_rows; i++) {
        float sums[K_OUTPUTS + VN];
        reduce_all(acc + i * K_OUTPUTS, count, sums);
        memcpy(out + i * out_stride, sums, count * sizeof out[0]);
    }
}

static void k_matmul(const struct weight *w, uint64_t first, uint64_t count, const float *x,
                     size_t x_stride, size_t n_rows, float *out, size_t out_stride, void *scratch)
{
    const struct rounded_x *rounded = (const struct rounded_x *)x;
    const size_t x_blocks = x_stride * sizeof *x / sizeof *rounded;
    if (n_rows < K_PANEL_MIN_ROWS) {
        for (size_t i = 0; i < n_rows; i++)
            k_functions(w->type)->product(w, first, count, rounded + i * x_blocks,
                                          out + i * out_stride);
        return;
    }
    for (size_t i = 0; i < n_rows; i += K_ROWS)
        for (uint64_t j = 0; j < count; j += K_OUTPUTS)
            k_panel_product(w, first + j, (size_t)(count - j < K_OUTPUTS ? count - j : K_OUTPUTS),
                            rounded + i * x_blocks, x_blocks,
                            n_rows - i < K_ROWS ? n_rows - i : K_ROWS, out + i * out_stride + j,
                            out_stride, scratch);
}

// ---- rounding --------------------------------------------------------------------------------

typedef int32_t ints __attribute__((vector_size(4 * VN)));
typedef int16_t shorts __attribute__((vector_size(2 * VN)));

// The greatest magnitude of 256 values as its bits: greater than those of infinity for NaN.
static uint32_t greatest_bits(const float *x)
{
    ints most = {0};
    for (size_t i = 0; i < K_BLOCK; i += VN) {
        ints bits = (ints)vn_load(x + i) & 0x7fffffff, more = bits > most;
        most = (bits & more) | (most & ~more);
    }
    uint32_t out = 0;
    for (size_t i = 0; i < VN; i++)
        out = (uint32_t)most[i] > out ? (uint32_t)most[i] : out;
    return out;
}

static void round_block(struct rounded_x *out, const float *x)
{
    float t[K_BLOCK], inverse;
    v16 value[KERNEL_LANES];
    if (!rounded_scale(greatest_bits(x), &out->scale, &inverse)) {
        memset(out->q, 0, sizeof out->q);
        memset(out->sum, 0, sizeof out->sum);
        return;
    }
    // Adding ROUND leaves the integer in the low bits of the sum.
    for (size_t i = 0; i < K_BLOCK; i += VN) {
        vn rounded = vn_fma(vn_load(x + i), vn_set1(inverse), vn_set1(EXP_ROUND));
        vn_store(t + i, rounded);
        value[i / KERNEL_LANES].p[i % KERNEL_LANES / VN] = vn_sub(rounded, vn_set1(EXP_ROUND));
    }
    for (size_t i = 0; i < K_BLOCK; i += 2 * VN) {
        vn even, odd;
        vn_load2(t + i, &even, &odd);
        shorts a = __builtin_convertvector((ints)even, shorts);
        shorts b = __builtin_convertvector((ints)odd, shorts);
        memcpy(out->q + i / 64 * 64 + i % 64 / 2, &a, sizeof a);
        memcpy(out->q + i / 64 * 64 + 32 + i % 64 / 2, &b, sizeof b);
    }
    reduce_all(value, KERNEL_LANES, out->sum); // exact
    for (size_t i = 0; i < KERNEL_LANES; i += VN)
        vn_store(out->sum + i, vn_mul(vn_load(out->sum + i), vn_set1(out->scale)));
}

static void set_round_x(float *out, const float *x, size_t n)
{
    struct rounded_x *to = (struct rounded_x *)out;
    for (size_t i = 0; i < n; i += K_BLOCK)
        round_block(to++, x + i);
}
