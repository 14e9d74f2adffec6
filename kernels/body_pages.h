// SPDX-License-Identifier: Apache-2.0
// The part of body.h that weighs pieces of a KV cache by codes of their keys. Included by it alone,
// after the operations on registers. Codes are taken 16 keys at a time, a *slice*: once apart into
// half bytes for all queries, then a byte shuffle answers 16 keys for four channels, and four
// answers are added as bytes before they are widened.

typedef uint8_t bytes32 __attribute__((vector_size(32)));
typedef int32_t vn_bits __attribute__((vector_size(VN * sizeof(float))));

// What a block of pieces looks like once it is taken apart. It lies in the caller's scratch.
struct mass_work {
    const struct mass_pieces *pieces;
    size_t each, slices;  // slices of a piece, of all
    size_t rows;          // of half bytes of a slice: 8 divides them
    uint8_t *index;       // [slices][rows][16]: low halves, then high ones
    float *scale, *count; // [slices][16], even keys first
    float *scores;        // [slices][16]
};

// 2^x, x >= MASS_LEAST and not much above 0.
INLINE vn vn_exp2(vn x)
{
    vn t = vn_add(x, vn_set1(EXP_ROUND));
    vn r = vn_sub(x, vn_sub(t, vn_set1(EXP_ROUND)));
    vn p = vn_fma(vn_set1(EXP2_C4), r, vn_set1(EXP2_C3));
    p = vn_fma(p, r, vn_set1(EXP2_C2));
    p = vn_fma(p, r, vn_set1(EXP2_C1));
    p = vn_fma(p, r, vn_set1(1.0f));
    return vn_mul(p, vn_exp2_low_bits(t));
}

// Takes codes of 16 keys apart: low halves of bytes of eight channels, then high ones. `codes` have
// these bytes one behind the other.
INLINE void split_codes(uint8_t *index, const uint8_t *codes, const size_t rows)
{
    for (size_t at = 0; at < rows * 8; at += 32) {
        bytes32 v, low, high;
        memcpy(&v, codes + at, sizeof v);
        low = v & 15;
        high = v >> 4;
        memcpy(index + at, &low, sizeof low);
        memcpy(index + rows * 8 + at, &high, sizeof high);
    }
}

// The same of 16 among more keys, whose bytes are `stride` apart.
INLINE void split_strided(uint8_t *index, const uint8_t *codes, size_t stride, const size_t rows)
{
    for (size_t at = 0; at < rows * 8; at += KERNEL_LANES, codes += stride) {
        bytes16 v, low, high;
        memcpy(&v, codes, sizeof v);
        low = v & 15;
        high = v >> 4;
        memcpy(index + at, &low, sizeof low);
        memcpy(index + rows * 8 + at, &high, sizeof high);
    }
}

// 16 bytes as floats times a factor, even ones first; of fewer the first stands for the others.
INLINE void spread_bytes(float *out, const uint8_t *in, size_t n, float factor)
{
    const bytes16 even = {0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15};
    uint8_t all[KERNEL_LANES];
    if (n < KERNEL_LANES) {
        memset(all, in[0], sizeof all);
        memcpy(all, in, n);
        in = all;
    }
    bytes16 bytes = bytes_lookup((const int8_t *)in, even) ^ 0x80;
    UNROLL
    for (int p = 0; p < PARTS; p++)
        vn_store(out + p * VN,
                 vn_mul(vn_set1(factor), vn_add(vn_codes(bytes, p), vn_set1(128.0f))));
}

static void take_slice(const struct mass_work *w, const uint8_t *summary, size_t first,
                       size_t slice)
{
    const struct mass_pieces *m = w->pieces;
    const size_t left = m->keys - first, n = left < KERNEL_LANES ? left : KERNEL_LANES;
    const uint8_t *factors = summary + MASS_HEADER + first;
    const uint8_t *codes = summary + MASS_HEADER + (m->counted ? 2 : 1) * m->keys;
    uint8_t *index = w->index + slice * w->rows * KERNEL_LANES;
    uint16_t half;
    memcpy(&half, summary, sizeof half);
    // A scale that is no number, or infinite, counts for nothing.
    float scale = (half & 0x7c00) == 0x7c00 ? 0 : half_float(half) * (1.0f / 255);
    spread_bytes(w->scale + slice * KERNEL_LANES, factors, n, scale);
    if (m->counted || m->keys % KERNEL_LANES) {
        float *count = w->count + slice * KERNEL_LANES;
        for (size_t i = 0; i < KERNEL_LANES; i++)
            count[i % 2 * 8 + i / 2] = i >= n ? 0 : m->counted ? (float)factors[m->keys + i] : 1;
    }
    if (n == KERNEL_LANES && m->bytes * 2 == w->rows) {
        if (w->rows == 16 && m->keys == KERNEL_LANES)
            split_codes(index, codes, 16);
        else if (w->rows == 16)
            split_strided(index, codes + first, m->keys, 16);
        else
            split_strided(index, codes + first, m->keys, w->rows);
        return;
    }
    uint8_t all[MASS_BYTES * KERNEL_LANES];
    memset(all, 0, w->rows * 8);
    for (size_t j = 0; j < m->bytes; j++) {
        memset(all + j * KERNEL_LANES, codes[j * m->keys + first], KERNEL_LANES);
        memcpy(all + j * KERNEL_LANES, codes + j * m->keys + first, n);
    }
    split_codes(index, all, w->rows);
}

// Scores of all keys for one query, less its factor; the largest one. bias[pieces]; NULL: none.
INLINE float mass_scores(const struct mass_work *w, const size_t rows, const int8_t *table,
                         const float *bias)
{
    const size_t each = w->each;
    float *restrict scores = w->scores;
    const float *restrict scale = w->scale;
    const uint8_t *restrict index = w->index;
    v16 most;
    UNROLL
    for (int p = 0; p < PARTS; p++)
        most.p[p] = vn_set1(-INFINITY);
    for (size_t s = 0; s < w->slices; s++) {
        v16 a = code_lanes(index + s * rows * KERNEL_LANES, table, rows);
        const vn more = vn_set1(bias ? bias[each == 1 ? s : s / each] : 0);
        UNROLL
        for (int p = 0; p < PARTS; p++) {
            vn x = vn_mul(a.p[p], vn_load(scale + s * KERNEL_LANES + p * VN));
            x = bias ? vn_add(x, more) : x;
            vn_store(scores + s * KERNEL_LANES + p * VN, x);
            most.p[p] = vn_max(x, most.p[p]);
        }
    }
    vn all = most.p[0];
    UNROLL
    for (int p = 1; p < PARTS; p++)
        all = vn_max(all, most.p[p]);
    return vn_greatest(all);
}

static float mass_capped(const struct mass_work *w, float factor)
{
    vn most = vn_set1(-INFINITY);
    for (size_t i = 0; i < w->slices * KERNEL_LANES; i += VN) {
        vn x = softcap_vn(vn_mul(vn_load(w->scores + i), vn_set1(factor)), w->pieces->softcap);
        vn_store(w->scores + i, x);
        most = vn_max(x, most);
    }
    return vn_greatest(most);
}

// Lanes of the sum over the keys of a piece, whose slices begin with `slice`.
INLINE v16 mass_lanes(const struct mass_work *w, size_t slice, const size_t each, const int counted,
                      vn most, vn factor)
{
    v16 sum = v16_zero();
    for (size_t s = slice; s < slice + each; s++) {
        UNROLL
        for (int p = 0; p < PARTS; p++) {
            const size_t at = s * KERNEL_LANES + (size_t)p * VN;
            vn x = vn_mul(vn_sub(vn_load(w->scores + at), most), factor);
            vn e = vn_exp2(vn_max(x, vn_set1(MASS_LEAST)));
            if (counted)
                e = vn_mul(e, vn_load(w->count + at));
            sum.p[p] = vn_add(sum.p[p], e);
        }
    }
    return sum;
}

INLINE void mass_sums(const struct mass_work *w, const size_t each, const int counted, float most,
                      float factor, float *masses)
{
    const size_t n = w->pieces->n;
    for (size_t g = 0; g < n; g += VN) {
        const size_t here = n - g < VN ? n - g : VN;
        v16 group[VN];
        for (size_t i = 0; i < here; i++)
            group[i] = mass_lanes(w, (g + i) * each, each, counted, vn_set1(most), vn_set1(factor));
        for (size_t i = here; i < VN; i++)
            group[i] = group[0]; // no rubbish in what is left out
        vn_store_part(masses + g, vn_reduce(group), here);
    }
}

// For query q.
static float mass_scores_any(const struct mass_work *w, size_t q, const int8_t *table)
{
    const float *bias = w->pieces->bias;
    if (!bias && w->rows == 16)
        return mass_scores(w, 16, table, NULL);
    bias = bias ? bias + q * MASS_SLICES : NULL;
    if (w->rows == 16)
        return mass_scores(w, 16, table, bias);
    if (w->rows == 32)
        return mass_scores(w, 32, table, bias);
    return mass_scores(w, w->rows, table, bias);
}

static float mass_query(const struct mass_work *w, size_t q, const int8_t *table, float factor,
                        float *masses)
{
    const struct mass_pieces *m = w->pieces;
    float most = mass_scores_any(w, q, table);
    if (m->softcap != 0) {
        most = mass_capped(w, factor);
        factor = 1;
    }
    factor *= EXP_LOG2E;
    if (m->counted || m->keys % KERNEL_LANES)
        mass_sums(w, w->each, 1, most, factor, masses);
    else if (w->each == 1)
        mass_sums(w, 1, 0, most, factor, masses);
    else
        mass_sums(w, w->each, 0, most, factor, masses);
    return factor * most + 0.0f;
}

// Lays out the scratch and takes all slices apart.
static struct mass_work mass_begin(const struct mass_pieces *m, void *scratch)
{
    struct mass_work w = {.pieces = m, .rows = mass_rows(m->bytes)};
    w.each = (m->keys + KERNEL_LANES - 1) / KERNEL_LANES;
    w.slices = m->n * w.each;
    w.index = scratch;
    w.scale = (float *)(w.index + w.slices * w.rows * KERNEL_LANES);
    w.count = w.scale + MASS_SLICES * KERNEL_LANES;
    w.scores = w.count + MASS_SLICES * KERNEL_LANES;
    for (size_t i = 0; i < m->n; i++)
        for (size_t s = 0; s < w.each; s++)
            take_slice(&w, m->summary[i], s * KERNEL_LANES, i * w.each + s);
    return w;
}

static void set_piece_masses(const struct mass_pieces *m, const int8_t *tables,
                             const float *factors, size_t n_q, float *tops, size_t top_stride,
                             float *masses, size_t stride, void *scratch)
{
    struct mass_work w = mass_begin(m, scratch);
    for (size_t q = 0; q < n_q; q++)
        tops[q * top_stride] =
            mass_query(&w, q, tables + q * w.rows * KERNEL_LANES, factors[q], masses + q * stride);
}

static void set_piece_scores(const struct mass_pieces *m, const int8_t *table, float factor,
                             float *scores, void *scratch)
{
    struct mass_work w = mass_begin(m, scratch);
    w.scores = scores;
    mass_scores_any(&w, 0, table);
    if (m->softcap != 0)
        mass_capped(&w, factor);
    else
        set_scale(scores, factor, w.slices * KERNEL_LANES);
}

// ---- likeness of codes -------------------------------------------------------------------------

// Of 16 keys that are taken apart.
INLINE void nearest_lanes(const uint8_t *index, const size_t rows, const int8_t *tables,
                          const float *steps, const float *sizes, size_t n_means, uint16_t *which)
{
    v16 best;
    vn_bits at[PARTS];
    UNROLL
    for (int p = 0; p < PARTS; p++) {
        best.p[p] = vn_set1(-INFINITY);
        at[p] = (vn_bits){0};
    }
    for (size_t m = 0; m < n_means; m++) {
        v16 a = code_lanes(index, tables + m * rows * KERNEL_LANES, rows);
        UNROLL
        for (int p = 0; p < PARTS; p++) {
            const vn x = vn_fma(a.p[p], vn_set1(steps[m]), vn_set1(-sizes[m]));
            const vn_bits more = (vn_bits)(x > best.p[p]), here = (vn_bits){0} + (int32_t)m;
            best.p[p] = vn_max(x, best.p[p]);
            at[p] = (here & more) | (at[p] & ~more);
        }
    }
    for (int l = 0; l < KERNEL_LANES; l++)
        which[l < 8 ? 2 * l : 2 * l - 15] = (uint16_t)at[l / VN][l % VN];
}

static void set_nearest_means(const uint8_t *codes, size_t slices, size_t bytes,
                              const int8_t *tables, const float *steps, const float *sizes,
                              size_t n_means, uint16_t *which, void *scratch)
{
    const size_t rows = mass_rows(bytes);
    for (size_t s = 0; s < slices; s++, which += KERNEL_LANES) {
        split_codes(scratch, codes + s * rows * 8, rows);
        if (rows == 16)
            nearest_lanes(scratch, 16, tables, steps, sizes, n_means, which);
        else
            nearest_lanes(scratch, rows, tables, steps, sizes, n_means, which);
    }
}

// ---- sums of coded vectors ---------------------------------------------------------------------

// KERNEL_LANES elements from d on for nq queries.
INLINE void code_axpy_lanes(const uint8_t *const *codes, size_t n, const size_t bits, size_t d,
                            const float *weights, size_t stride, const size_t nq, float *y,
                            size_t y_stride)
{
    v16 acc[4];
    vn_bits shift[PARTS];
    UNROLL
    for (int p = 0; p < PARTS; p++)
        for (int l = 0; l < VN; l++) // one bit: to the place of the sign
            shift[p][l] = bits == 1 ? 31 - (p * VN + l) : 2 * (p * VN + l);
    UNROLL
    for (size_t i = 0; i < nq; i++)
        UNROLL
    for (int p = 0; p < PARTS; p++)
        acc[i].p[p] = vn_load(y + i * y_stride + d + p * VN);
    for (size_t t = 0; t < n; t++) {
        uint32_t word = 0;
        memcpy(&word, codes[t] + d * bits / 8, bits == 1 ? 2 : 4);
        UNROLL
        for (int p = 0; p < PARTS; p++) {
            const vn_bits all = (vn_bits){0} + (int32_t)word;
            const vn_bits least = (vn_bits){0} + (int32_t)0xbf000000; // -0.5
            vn c = bits == 1 ? (vn)(((all << shift[p]) & INT32_MIN) ^ least)
                             : vn_sub(vn_lanes((all >> shift[p]) & 3), vn_set1(1.5f));
            UNROLL
            for (size_t i = 0; i < nq; i++)
                acc[i].p[p] = vn_fma(vn_set1(weights[i * stride + t]), c, acc[i].p[p]);
        }
    }
    UNROLL
    for (size_t i = 0; i < nq; i++)
        UNROLL
    for (int p = 0; p < PARTS; p++)
        vn_store(y + i * y_stride + d + p * VN, acc[i].p[p]);
}

INLINE void code_axpy_queries(const uint8_t *const *codes, size_t n, const size_t bits, size_t dim,
                              const float *weights, size_t stride, const size_t nq, float *y,
                              size_t y_stride)
{
    size_t d = 0;
    for (; d + KERNEL_LANES <= dim; d += KERNEL_LANES)
        code_axpy_lanes(codes, n, bits, d, weights, stride, nq, y, y_stride);
    for (; d < dim; d++)
        for (size_t t = 0; t < n; t++)
            for (size_t i = 0; i < nq; i++)
                y[i * y_stride + d] = fmaf(weights[i * stride + t], code_value(codes[t], bits, d),
                                           y[i * y_stride + d]);
}

static void set_code_axpy(const uint8_t *const *codes, size_t n, size_t bits, size_t dim,
                          const float *weights, size_t stride, size_t n_q, float *y,
                          size_t y_stride)
{
    for (size_t nq; n_q; n_q -= nq, weights += nq * stride, y += nq * y_stride) {
        nq = n_q >= 4 ? 4 : n_q >= 2 ? 2 : 1;
        if (bits == 1 && nq == 4)
            code_axpy_queries(codes, n, 1, dim, weights, stride, 4, y, y_stride);
        else if (bits == 1 && nq == 2)
            code_axpy_queries(codes, n, 1, dim, weights, stride, 2, y, y_stride);
        else if (bits == 1)
            code_axpy_queries(codes, n, 1, dim, weights, stride, 1, y, y_stride);
        else if (nq == 4)
            code_axpy_queries(codes, n, 2, dim, weights, stride, 4, y, y_stride);
        else if (nq == 2)
            code_axpy_queries(codes, n, 2, dim, weights, stride, 2, y, y_stride);
        else
            code_axpy_queries(codes, n, 2, dim, weights, stride, 1, y, y_stride);
    }
}
