// SPDX-License-Identifier: Apache-2.0
// Block types (docs/decisions/0005-quantised-types.md) for body.h: 16 codes at a time become
// signed bytes, bytes become floats, and a scale (and a minimum) makes them weights. Everything
// that says where a block keeps what is here; the reference says it once more, plainly.
//
// Values are exact products, rounded once where a minimum is added, so tables of all values that a
// code can take (VN_TABLES) give the same bits as arithmetic on the codes.

// The block types whose products are made here, and those that only become floats here.
#define BLOCK_TYPES(X)        X(Q4_0) X(Q4_1) X(Q5_0) X(Q5_1) X(IQ4_NL)
#define BLOCK_EXPAND_TYPES(X) BLOCK_TYPES(X) X(Q2_K) X(Q3_K) X(Q4_K) X(Q5_K) X(Q6_K)

INLINE int is_k_type(uint32_t type)
{
    return type >= TENSOR_Q2_K && type <= TENSOR_Q6_K;
}

INLINE size_t block_elements(uint32_t type)
{
    return is_k_type(type) ? 256 : 32;
}

INLINE size_t block_bytes(uint32_t type)
{
    switch (type) {
    case TENSOR_Q4_0:
    case TENSOR_IQ4_NL:
        return 18;
    case TENSOR_Q4_1:
        return 20;
    case TENSOR_Q5_0:
        return 22;
    case TENSOR_Q5_1:
        return 24;
    case TENSOR_Q2_K:
        return 84;
    case TENSOR_Q3_K:
        return 110;
    case TENSOR_Q4_K:
        return 144;
    case TENSOR_Q5_K:
        return 176;
    default:
        return 210; // Q6_K
    }
}

// Has a minimum that is added to the product.
INLINE int is_affine(uint32_t type)
{
    return type == TENSOR_Q4_1 || type == TENSOR_Q5_1 || type == TENSOR_Q2_K ||
           type == TENSOR_Q4_K || type == TENSOR_Q5_K;
}

INLINE uint16_t load_u16(const uint8_t *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE uint32_t load_u32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE uint64_t load_u64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE bytes16 load_bytes(const uint8_t *p)
{
    bytes16 v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE bytes16 bytes_all(uint8_t b)
{
    return (bytes16){b, b, b, b, b, b, b, b, b, b, b, b, b, b, b, b};
}

INLINE bytes16 bytes_of_words(uint32_t a, uint32_t b, uint32_t c, uint32_t d)
{
    typedef uint32_t words4 __attribute__((vector_size(16)));
    return (bytes16)(words4){a, b, c, d};
}

// Bits `shift` and up of each byte, moved to bit `to` and masked.
INLINE bytes16 bytes_field(bytes16 v, int shift, int to, uint8_t mask)
{
    if (shift > to)
        v = bytes_shr(v, shift - to);
    if (shift < to)
        v = bytes_shl(v, to - shift);
    return v & bytes_all(mask);
}

// `value` in byte i where bit i is set, else 0.
INLINE bytes16 bytes_where(uint16_t bits, uint8_t value)
{
    typedef uint64_t words2 __attribute__((vector_size(16)));
    const bytes16 mask = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    bytes16 v = (bytes16)(words2){(bits & 0xffu) * 0x0101010101010101u,
                                  (uint64_t)(bits >> 8) * 0x0101010101010101u};
    v &= mask;
    return (bytes16)(v == mask) & bytes_all(value);
}

// ---- scales ----------------------------------------------------------------------------------

// Of a block of 256: what codes are multiplied with and what is added, per 16 or 32 elements.
struct block_scales {
    float mul[16], add[16];
};

// 6-bit scales and minima of Q4_K and Q5_K: 8 of each.
INLINE bytes16 six_bits(const uint8_t *p)
{
    uint32_t a = load_u32(p), b = load_u32(p + 4), c = load_u32(p + 8);
    return bytes_of_words(a & 0x3f3f3f3f, (c & 0x0f0f0f0f) | (a >> 2 & 0x30303030), b & 0x3f3f3f3f,
                          (c >> 4 & 0x0f0f0f0f) | (b >> 2 & 0x30303030));
}

INLINE bytes16 six_bits_q3(const uint8_t *p)
{
    uint32_t a = load_u32(p), b = load_u32(p + 4), c = load_u32(p + 8);
    bytes16 v = bytes_of_words(
        (a & 0x0f0f0f0f) | (c << 4 & 0x30303030), (b & 0x0f0f0f0f) | (c << 2 & 0x30303030),
        (a >> 4 & 0x0f0f0f0f) | (c & 0x30303030), (b >> 4 & 0x0f0f0f0f) | (c >> 2 & 0x30303030));
    return v - bytes_all(32);
}

INLINE void scale_codes(float *out, vn scale, bytes16 codes)
{
    UNROLL
    for (int p = 0; p < PARTS; p++)
        vn_store(out + p * VN, vn_mul(scale, vn_codes(codes, p)));
}

// Reads the scales of the block at p; types without any inside a block need none.
INLINE void block_scales(uint32_t type, const uint8_t *p, struct block_scales *s)
{
    if (type == TENSOR_Q2_K) {
        bytes16 both = load_bytes(p);
        scale_codes(s->mul, vn_f16_set1(load_u16(p + 80)), both & bytes_all(15));
        scale_codes(s->add, vn_f16_set1(load_u16(p + 82) ^ 0x8000), bytes_field(both, 4, 0, 15));
    } else if (type == TENSOR_Q3_K) {
        scale_codes(s->mul, vn_f16_set1(load_u16(p + 108)), six_bits_q3(p + 96));
    } else if (type == TENSOR_Q6_K) {
        scale_codes(s->mul, vn_f16_set1(load_u16(p + 208)), load_bytes(p + 192));
    } else if (is_k_type(type)) {
        // The first 8 of the 16 are scales, the others minima.
        vn d = vn_f16_set1(load_u16(p)), m = vn_f16_set1(load_u16(p + 2) ^ 0x8000);
        bytes16 both = six_bits(p + 4);
        UNROLL
        for (int i = 0; i < PARTS; i++)
            vn_store(s->mul + i * VN, vn_mul(vn_halves(d, m, i), vn_codes(both, i)));
    }
}

// Scale and minimum of element e of the block at p.
INLINE vn block_mul(uint32_t type, const uint8_t *p, const struct block_scales *s, size_t e)
{
    if (!is_k_type(type))
        return vn_f16_set1(load_u16(p));
    return vn_set1(s->mul[type == TENSOR_Q4_K || type == TENSOR_Q5_K ? e / 32 : e / 16]);
}

INLINE vn block_add(uint32_t type, const uint8_t *p, const struct block_scales *s, size_t e)
{
    if (!is_k_type(type))
        return vn_f16_set1(load_u16(p + 2));
    return vn_set1(type == TENSOR_Q2_K ? s->add[e / 16] : s->mul[8 + e / 32]);
}

// ---- codes -----------------------------------------------------------------------------------

// Where the 16 bytes lie that hold the low (or only) bits of elements e to e + 15 (16 divides e)...
INLINE size_t low_at(uint32_t type, size_t e)
{
    switch (type) {
    case TENSOR_Q4_0:
    case TENSOR_IQ4_NL:
        return 2;
    case TENSOR_Q4_1:
        return 4;
    case TENSOR_Q5_0:
        return 6;
    case TENSOR_Q5_1:
        return 8;
    case TENSOR_Q2_K:
        return 16 + e / 128 * 32 + e % 32;
    case TENSOR_Q3_K:
        return 32 + e / 128 * 32 + e % 32;
    case TENSOR_Q4_K:
        return 16 + e / 64 * 32 + e % 32;
    case TENSOR_Q5_K:
        return 48 + e / 64 * 32 + e % 32;
    default:
        return e / 128 * 64 + e % 64; // Q6_K
    }
}

// ... and at which bit.
INLINE int low_shift(uint32_t type, size_t e)
{
    if (!is_k_type(type))
        return (int)(e / 16 * 4);
    if (type == TENSOR_Q2_K || type == TENSOR_Q3_K)
        return (int)(e / 32 % 4 * 2);
    return (int)(type == TENSOR_Q6_K ? e / 64 % 2 * 4 : e / 32 % 2 * 4);
}

// Codes of elements e to e + 15 of the block at p, as signed bytes.
INLINE bytes16 block_codes(uint32_t type, const uint8_t *p, size_t e)
{
    const int plane = (int)(e / 32);
    uint8_t mask = type == TENSOR_Q2_K || type == TENSOR_Q3_K ? 3 : 15;
    bytes16 q = bytes_field(load_bytes(p + low_at(type, e)), low_shift(type, e), 0, mask);
    switch (type) {
    case TENSOR_Q4_0:
        return q - bytes_all(8);
    case TENSOR_Q5_0:
        return (q | bytes_where(load_u16(p + 2 + e / 8), 16)) - bytes_all(16);
    case TENSOR_Q5_1:
        return q | bytes_where(load_u16(p + 4 + e / 8), 16);
    case TENSOR_IQ4_NL:
        return bytes_lookup((const int8_t[16]){IQ4_NL_VALUES}, q);
    case TENSOR_Q3_K:
        return (q | bytes_field(load_bytes(p + e % 32), plane, 2, 4)) - bytes_all(4);
    case TENSOR_Q5_K:
        return q | bytes_field(load_bytes(p + 16 + e % 32), plane, 4, 16);
    case TENSOR_Q6_K:
        return (q |
                bytes_field(load_bytes(p + 128 + e / 128 * 32 + e % 32), plane % 4 * 2, 4, 0x30)) -
               bytes_all(32);
    default: // Q4_1, Q2_K, Q4_K
        return q;
    }
}

#ifdef VN_TABLES
// Types whose codes have few values, and 4 bits of which lie together: their weights are looked up.
INLINE int is_looked_up(uint32_t type)
{
    return !is_k_type(type) || type == TENSOR_Q4_K;
}

// Weights of the codes 0 to 15 (high = 0) or 16 to 31, at element e of the block at p.
INLINE vn block_table(uint32_t type, const uint8_t *p, const struct block_scales *s, size_t e,
                      int high)
{
    static const float values[3][16] = {
        {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
        {16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31},
        {IQ4_NL_VALUES},
    };
    vn q = vn_load(values[type == TENSOR_IQ4_NL ? 2 : high]), mul = block_mul(type, p, s, e);
    if (is_affine(type))
        return vn_fma(mul, q, block_add(type, p, s, e));
    if (type == TENSOR_Q4_0)
        q = vn_sub(q, vn_set1(8));
    if (type == TENSOR_Q5_0)
        q = vn_sub(q, vn_set1(16));
    return vn_mul(mul, q);
}

INLINE v16 table_weights(uint32_t type, const uint8_t *p, const struct block_scales *s, size_t e)
{
    vn_index index = vn_index_at(p + low_at(type, e), low_shift(type, e));
    v16 w = {{vn_lookup(block_table(type, p, s, e, 0), index)}};
    if (type == TENSOR_Q5_0 || type == TENSOR_Q5_1) {
        uint16_t bits = load_u16(p + (type == TENSOR_Q5_0 ? 2 : 4) + e / 8);
        w.p[0] = vn_lookup_where(bits, block_table(type, p, s, e, 1), index, w.p[0]);
    }
    return w;
}
#endif

// Weights e to e + 15 of the block at p.
INLINE v16 block_weights(uint32_t type, const uint8_t *p, const struct block_scales *s, size_t e)
{
#ifdef VN_TABLES
    if (is_looked_up(type))
        return table_weights(type, p, s, e);
#endif
    v16 w;
    vn mul = block_mul(type, p, s, e);
    bytes16 codes = block_codes(type, p, e);
    UNROLL
    for (int i = 0; i < PARTS; i++) {
        vn q = vn_codes(codes, i);
        w.p[i] = is_affine(type) ? vn_fma(mul, q, block_add(type, p, s, e)) : vn_mul(mul, q);
    }
    return w;
}

enum { EXPAND_AHEAD = 1024 }; // bytes prefetched before a row that becomes floats

// ---- rows ------------------------------------------------------------------------------------

// Writes a row as floats: 16 of them every `stride`, their registers `part` apart.
INLINE void expand_blocks(uint32_t type, const uint8_t *row, size_t cols, float *out, size_t stride,
                          size_t part)
{
    for (size_t c = 0; c < cols; c += block_elements(type), row += block_bytes(type)) {
        struct block_scales s;
        UNROLL
        for (size_t line = 0; line < block_bytes(type); line += 64)
            prefetch(row, EXPAND_AHEAD + line);
        block_scales(type, row, &s);
        UNROLL
        for (size_t e = 0; e < block_elements(type); e += KERNEL_LANES, out += stride) {
            v16 w = block_weights(type, row, &s, e);
            UNROLL
            for (size_t i = 0; i < PARTS; i++)
                vn_store(out + i * part, w.p[i]);
        }
    }
}

// acc[j] = the lanes of dot16(x, row j).
INLINE void block_rows(uint32_t type, const size_t jr, const uint8_t *const *row, size_t cols,
                       const float *x, size_t ahead, v16 *acc)
{
    UNROLL
    for (size_t j = 0; j < jr; j++)
        acc[j] = v16_zero();
    for (size_t c = 0, at = 0; c < cols; c += block_elements(type), at += block_bytes(type)) {
        struct block_scales s[BLOCK_JR];
        UNROLL
        for (size_t j = 0; j < jr; j++) {
            UNROLL
            for (size_t line = 0; line < block_bytes(type); line += 64)
                prefetch(row[j] + at, ahead + line);
            block_scales(type, row[j] + at, &s[j]);
            // Read back from memory one by one, scales cost a load each. Left in registers they
            // would cost shuffles, which are what is scarce here.
            __asm__("" : "+m"(s[j]));
        }
        UNROLL
        for (size_t e = 0; e < block_elements(type); e += KERNEL_LANES) {
            UNROLL
            for (size_t j = 0; j < jr; j++) {
                v16 w = block_weights(type, row[j] + at, &s[j], e);
                UNROLL
                for (int i = 0; i < PARTS; i++)
                    acc[j].p[i] = vn_fma(vn_load(x + c + e + i * VN), w.p[i], acc[j].p[i]);
            }
        }
    }
}

// out[j] = dot16(x, row first + j), j < count.
INLINE void block_product(uint32_t type, const struct weight *w, uint64_t first, uint64_t count,
                          const float *x, float *out)
{
    const size_t row_bytes = (size_t)w->row_bytes;
    const uint8_t *data = (const uint8_t *)w->data + first * row_bytes, *row[BLOCK_JR];
    for (uint64_t j = 0; j < count; j += BLOCK_JR, data += BLOCK_JR * row_bytes) {
        size_t n = count - j < BLOCK_JR ? (size_t)(count - j) : BLOCK_JR;
        v16 acc[BLOCK_JR];
        float sums[BLOCK_JR + VN];
        UNROLL
        for (size_t k = 0; k < BLOCK_JR; k++) // the last row stands in for those not there
            row[k] = data + (k < n ? k : n - 1) * row_bytes;
        block_rows(type, BLOCK_JR, row, (size_t)w->cols, x, BLOCK_JR * row_bytes, acc);
        reduce_all(acc, BLOCK_JR, sums);
        memcpy(out + j, sums, n * sizeof out[0]);
    }
}

#define BLOCK_PRODUCT(type)                                                                        \
    static void block_product_##type(const struct weight *w, uint64_t first, uint64_t count,       \
                                     const float *x, float *out)                                   \
    {                                                                                              \
        block_product(TENSOR_##type, w, first, count, x, out);                                     \
    }
#define BLOCK_EXPAND(type)                                                                         \
    static void expand_blocks_##type(const uint8_t *row, size_t cols, float *out, size_t stride,   \
                                     size_t part)                                                  \
    {                                                                                              \
        expand_blocks(TENSOR_##type, row, cols, out, stride, part);                                \
    }
BLOCK_TYPES(BLOCK_PRODUCT)
BLOCK_EXPAND_TYPES(BLOCK_EXPAND)
#define block_product_Q2_K NULL
#define block_product_Q3_K NULL
#define block_product_Q4_K NULL
#define block_product_Q5_K NULL
#define block_product_Q6_K NULL

struct block_functions {
    uint32_t type;
    // NULL for the K types.
    void (*product)(const struct weight *w, uint64_t first, uint64_t count, const float *x,
                    float *out);
    void (*expand)(const uint8_t *row, size_t cols, float *out, size_t stride, size_t part);
};

// NULL for types that are not block types of this file.
static const struct block_functions *block_functions(uint32_t type)
{
#define BLOCK_ROW(type) {TENSOR_##type, block_product_##type, expand_blocks_##type},
    static const struct block_functions table[] = {BLOCK_EXPAND_TYPES(BLOCK_ROW)};
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        if (table[i].type == type)
            return &table[i];
    return NULL;
}
