// SPDX-License-Identifier: Apache-2.0
// Products of some rows of x and more where there are registers for them: each weight is converted
// once for up to WIDE_MR rows, and nothing but x is stored as floats. Columns are taken in pieces,
// so that these rows of x stay in the first cache while weights come from memory; sums wait in
// scratch from piece to piece, and the chain of products stays one chain. Included by body.h alone.

enum {
    WIDE_MR = 8,
    WIDE_COLS = 1024,  // of a piece; whole blocks of every type
    WIDE_GROUPS = 8,   // of rows of weights, whose sums wait
    WIDE_OUTPUTS = 24, // of a group
};
#define WIDE_JR(mr) ((mr) > 6 ? 3 : 4)

struct wide {
    v16 sum[WIDE_GROUPS][WIDE_OUTPUTS];
};
_Static_assert(sizeof(struct wide) <= KERNEL_SCRATCH_BYTES, "fits in scratch");

// One step of 16 elements.
INLINE void wide_step(uint32_t type, const size_t mr, const size_t jr, const uint8_t *const *row,
                      size_t at, size_t sub, const float *x, size_t x_stride, v16 *acc)
{
    UNROLL
    for (size_t p = 0; p < PARTS; p++) {
        vn b[4];
        UNROLL
        for (size_t j = 0; j < jr; j++)
            b[j] = weight_vn(type, row[j] + at, sub + p * VN);
        UNROLL
        for (size_t i = 0; i < mr; i++) {
            const vn a = vn_keep(vn_load(x + i * x_stride + p * VN));
            UNROLL
            for (size_t j = 0; j < jr; j++)
                acc[i * jr + j].p[p] = vn_fma(a, b[j], acc[i * jr + j].p[p]);
        }
    }
}

// The sums of mr rows of x and jr rows of weights take `cols` more columns. What lies `ahead` bytes
// after each weight is prefetched.
INLINE void wide_piece(uint32_t type, const size_t mr, const size_t jr, const uint8_t *const *row,
                       size_t cols, const float *x, size_t x_stride, ptrdiff_t ahead, int first,
                       v16 *sum)
{
    v16 acc[WIDE_OUTPUTS];
    UNROLL
    for (size_t i = 0; i < mr * jr; i++)
        UNROLL
    for (size_t p = 0; p < PARTS; p++)
        acc[i].p[p] = first ? vn_set1(0) : sum[i].p[p];
    size_t c = 0, at = 0;
    for (; c + 32 <= cols; c += 32, at += bytes_of_32(type)) {
        UNROLL
        for (size_t j = 0; j < jr; j++)
            prefetch(row[j], (size_t)ahead + at);
        wide_step(type, mr, jr, row, at, 0, x + c, x_stride, acc);
        wide_step(type, mr, jr, row, at, 16, x + c + 16, x_stride, acc);
    }
    size_t sub = 0;
    if (c + 16 <= cols) {
        wide_step(type, mr, jr, row, at, 0, x + c, x_stride, acc);
        c += 16;
        sub = 16;
    }
    if (c < cols) {
        struct last_columns last;
        take_last(&last, type, mr, jr, row, at + bytes_of_32(type) / 32 * sub, cols - c, x + c,
                  x_stride);
        wide_step(type, mr, jr, last.row, 0, 0, last.x, KERNEL_LANES, acc);
    }
    UNROLL
    for (size_t i = 0; i < mr * jr; i++)
        UNROLL
    for (size_t p = 0; p < PARTS; p++)
        sum[i].p[p] = acc[i].p[p];
}

// At most WIDE_GROUPS * jr rows of weights.
INLINE void wide_block(uint32_t type, const size_t mr, const struct weight *w, uint64_t first,
                       size_t count, const float *x, size_t x_stride, float *out, size_t out_stride,
                       struct wide *t)
{
    const size_t jr = WIDE_JR(mr), row_bytes = (size_t)w->row_bytes;
    const size_t groups = (count + jr - 1) / jr, piece_bytes = WIDE_COLS / 32 * bytes_of_32(type);
    const uint8_t *const data = weight_at(w, first);
    for (size_t c = 0, at = 0; c < w->cols; c += WIDE_COLS, at += piece_bytes) {
        const size_t cols = w->cols - c < WIDE_COLS ? (size_t)w->cols - c : WIDE_COLS;
        const int last = c + cols == w->cols;
        for (size_t g = 0; g < groups; g++) {
            const uint8_t *row[4];
            for (size_t k = 0; k < jr; k++) // the last row stands in for those that are not there
                row[k] = data + (g * jr + k < count ? g * jr + k : count - 1) * row_bytes + at;
            // The same columns of the next group, then the next columns of the first one.
            ptrdiff_t ahead = (ptrdiff_t)(jr * row_bytes);
            if (g + 1 == groups && !last)
                ahead = (ptrdiff_t)piece_bytes - (ptrdiff_t)(g * jr * row_bytes);
            else if (g + 1 == groups)
                ahead -= (ptrdiff_t)at;
            wide_piece(type, mr, jr, row, cols, x + c, x_stride, ahead, !c, t->sum[g]);
        }
    }
    for (size_t g = 0; g < groups; g++) {
        float block[WIDE_OUTPUTS + VN];
        reduce_all(t->sum[g], mr * jr, block);
        const size_t n = count - g * jr < jr ? count - g * jr : jr;
        for (size_t i = 0; i < mr; i++)
            memcpy(out + i * out_stride + g * jr, block + i * jr, n * sizeof out[0]);
    }
}

typedef void wide_fn(const struct weight *w, uint64_t first, size_t count, const float *x,
                     size_t x_stride, float *out, size_t out_stride, struct wide *t);

#define WIDE(type, mr)                                                                             \
    static void wide_##type##_##mr(const struct weight *w, uint64_t first, size_t count,           \
                                   const float *x, size_t x_stride, float *out, size_t out_stride, \
                                   struct wide *t)                                                 \
    {                                                                                              \
        wide_block(TENSOR_##type, mr, w, first, count, x, x_stride, out, out_stride, t);           \
    }
#define WIDE_TYPE(type) WIDE(type, 4) WIDE(type, 5) WIDE(type, 6) WIDE(type, 7) WIDE(type, 8)
#define WIDE_NAMES(type)                                                                           \
    {                                                                                              \
        wide_##type##_4, wide_##type##_5, wide_##type##_6, wide_##type##_7, wide_##type##_8        \
    }

WIDE_TYPE(F32)
WIDE_TYPE(F16)
WIDE_TYPE(BF16)
WIDE_TYPE(Q8_0)

// n_rows >= WIDE_ROWS. Parts of rows of x are as even as they can be: none has less than four.
static void wide_product(const struct weight *w, uint64_t first, uint64_t count, const float *x,
                         size_t x_stride, size_t n_rows, float *out, size_t out_stride,
                         struct wide *t)
{
    static wide_fn *const table[4][5] = {WIDE_NAMES(F32), WIDE_NAMES(F16), WIDE_NAMES(BF16),
                                         WIDE_NAMES(Q8_0)};
    const size_t parts = (n_rows + WIDE_MR - 1) / WIDE_MR;
    for (uint64_t j = 0, n; j < count; j += n) {
        n = count - j < WIDE_GROUPS * 3 ? count - j : WIDE_GROUPS * 3;
        for (size_t part = 0; part < parts; part++) {
            const size_t i = n_rows * part / parts, mr = n_rows * (part + 1) / parts - i;
            table[direct_type(w->type)][mr - 4](w, first + j, (size_t)n, x + i * x_stride, x_stride,
                                                out + i * out_stride + j, out_stride, t);
        }
    }
}
