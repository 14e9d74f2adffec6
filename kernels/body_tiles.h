// SPDX-License-Identifier: Apache-2.0
// Products of many rows of x, in tiles whose operands lie in the first cache. Included by body.h
// alone.
//
// A tile is TILE_MR rows of x times TILE_NR rows of weights in one vector of each accumulator: the
// lanes of an output never meet before its tree, so the vectors (parts) of an accumulator are taken
// one after the other, and a tile has fewer loads for as many products. Both operands are copied to
// where a tile reads them front to back: rows at a distance of a power of two would drive each
// other out of the cache. Columns are taken in pieces, so that 16 rows of x stay in the first cache
// while weights come out of the second; sums wait in scratch from piece to piece, and the chain of
// products stays one chain.

enum {
    TILE_COLS = 256, // of a piece; whole blocks of every type
    TILE_STEPS = TILE_COLS / KERNEL_LANES,
    TILE_QUADS = 8, // of TILE_MR rows, at most
    TILE_ROWS = TILE_QUADS * TILE_MR,
    // Rows of weights that become floats together: where the first cache holds all rows of x of a
    // piece, one group is enough, and its floats stay there.
    TILE_BAND = PARTS == 1 ? TILE_NR : 24,
    TILE_GROUPS = TILE_BAND / TILE_NR,
    TILE_OUTPUTS = 128,                 // at most
    TILE_X = TILE_STEPS * TILE_MR * VN, // floats of a part of a piece
    TILE_W = TILE_STEPS * TILE_NR * VN,
    TILE_BLOCK = 16 * 1024 / (4 * TILE_X), // quads that stay in the first cache for all groups
};

// The scratch of one product.
struct tiles {
    float x[PARTS][TILE_QUADS][TILE_X];
    float w[PARTS][TILE_GROUPS][TILE_W];
    vn sum[(TILE_OUTPUTS + TILE_NR - 1) / TILE_NR][PARTS][TILE_QUADS][TILE_MR][TILE_NR];
};
_Static_assert(TILE_BAND % TILE_NR == 0, "whole groups");
_Static_assert(sizeof(struct tiles) <= KERNEL_SCRATCH_BYTES, "fits in scratch");

// What the next band of weights needs, brought closer a little with each tile. Where a band is one
// group there are few tiles, and each brings a row closer, a little with each step.
struct tile_ahead {
    const uint8_t *data;
    size_t row, row_bytes, at, piece_bytes, rows, lines; // bytes from data and from row; per tile
};

// The band from row `first` and column c on. Behind the last piece of the last band that is what
// the next call is likely to be asked for.
INLINE struct tile_ahead next_band(const struct weight *w, uint64_t first, uint64_t c, size_t tiles)
{
    struct tile_ahead a = {.data = w->data, .row_bytes = (size_t)w->row_bytes, .rows = TILE_BAND};
    a.row = (size_t)first * a.row_bytes + (size_t)tensor_type_row_bytes(w->type, c);
    a.piece_bytes = (size_t)tensor_type_row_bytes(
        w->type, w->cols - c < TILE_COLS ? w->cols - c : (uint64_t)TILE_COLS);
    a.lines = (a.rows * ((a.piece_bytes + 63) / 64) + tiles - 1) / tiles;
    return a;
}

INLINE void bring_closer(struct tile_ahead *a, size_t lines)
{
    for (size_t i = 0; i < lines && a->rows; i++) {
        prefetch(a->data, a->row + a->at);
        a->at += 64;
        if (a->at >= a->piece_bytes) {
            a->at = 0;
            a->row += a->row_bytes;
            a->rows--;
        }
    }
}

// A row that a tile brings closer.
struct tile_row {
    const uint8_t *data;
    size_t row, step; // bytes from data, and for each step
};

// The next row; the last one again where none is left.
INLINE struct tile_row next_row(struct tile_ahead *a, size_t steps)
{
    const struct tile_row row = {a->data, a->row, a->piece_bytes / steps};
    if (a->rows > 1)
        a->row += a->row_bytes;
    a->rows -= a->rows > 0;
    return row;
}

// sum takes `steps` more steps of mr rows of x, from its zeros on if this is the first piece.
INLINE void tile(const size_t mr, const float *x, const float *w, size_t steps, int first,
                 const struct tile_row *ahead, vn sum[TILE_MR][TILE_NR])
{
    vn acc[TILE_MR * TILE_NR];
    const struct tile_row row = PARTS == 1 ? *ahead : (struct tile_row){0};
    size_t next = row.row;
    UNROLL
    for (size_t i = 0; i < mr; i++)
        UNROLL
    for (size_t j = 0; j < TILE_NR; j++)
        acc[i * TILE_NR + j] = first ? vn_set1(0) : sum[i][j];
    for (size_t s = 0; s < steps; s++, x += TILE_MR * VN, w += TILE_NR * VN) {
        vn b[TILE_NR];
        if (PARTS == 1) {
            prefetch(row.data, next);
            next += row.step;
        }
        UNROLL
        for (size_t j = 0; j < TILE_NR; j++)
            b[j] = vn_load(w + j * VN);
        UNROLL
        for (size_t i = 0; i < mr; i++) {
            vn a = vn_load(x + i * VN);
            UNROLL
            for (size_t j = 0; j < TILE_NR; j++)
                acc[i * TILE_NR + j] = vn_fma(a, b[j], acc[i * TILE_NR + j]);
        }
    }
    UNROLL
    for (size_t i = 0; i < mr; i++)
        UNROLL
    for (size_t j = 0; j < TILE_NR; j++)
        sum[i][j] = acc[i * TILE_NR + j];
}

typedef void tile_fn(const float *x, const float *w, size_t steps, int first,
                     const struct tile_row *ahead, vn sum[TILE_MR][TILE_NR]);

#define TILE(mr)                                                                                   \
    static void tile_##mr(const float *x, const float *w, size_t steps, int first,                 \
                          const struct tile_row *ahead, vn sum[TILE_MR][TILE_NR])                  \
    {                                                                                              \
        tile(mr, x, w, steps, first, ahead, sum);                                                  \
    }
TILE(1) TILE(2) TILE(3) TILE(4) _Static_assert(TILE_MR == 4, "all heights of a tile are there");

// The first of the rows of x that are in quad q: they are spread evenly, because a tile of one row
// would wait for its sums.
INLINE size_t quad_row(size_t q, size_t quads, size_t n_rows)
{
    return n_rows * q / quads;
}

// Copies columns c to c + cols of x, filled up with +0 to whole steps.
static void tile_x(struct tiles *t, const float *x, size_t x_stride, size_t n_rows, size_t quads,
                   size_t cols)
{
    for (size_t q = 0; q < quads; q++) {
        const size_t row = quad_row(q, quads, n_rows), rows = quad_row(q + 1, quads, n_rows) - row;
        const float *from = x + row * x_stride;
        size_t c = 0, at = 0;
        for (; c + KERNEL_LANES <= cols; c += KERNEL_LANES, at += TILE_MR * VN)
            for (size_t k = 0; k < rows; k++)
                UNROLL
        for (size_t p = 0; p < PARTS; p++)
            vn_store(&t->x[p][q][at + k * VN], vn_load(from + k * x_stride + c + p * VN));
        for (size_t k = 0; k < rows && c < cols; k++) {
            float tail[KERNEL_LANES] = {0};
            memcpy(tail, from + k * x_stride + c, (cols - c) * sizeof tail[0]);
            for (size_t p = 0; p < PARTS; p++)
                vn_store(&t->x[p][q][at + k * VN], vn_load(tail + p * VN));
        }
    }
}

// One band of at most TILE_BAND rows of weights, as floats; the last group is completed
// with copies of the last row, so that no output is computed from rubbish.
static void tile_w(struct tiles *t, const struct weight *piece, uint64_t first, size_t count,
                   size_t groups)
{
    for (size_t j = 0; j < groups * TILE_NR; j++)
        expand_any(piece->type, weight_at(piece, first + (j < count ? j : count - 1)),
                   (size_t)piece->cols, &t->w[0][j / TILE_NR][j % TILE_NR * VN], TILE_NR * VN,
                   TILE_GROUPS * TILE_W);
}

static void tile_band(struct tiles *t, size_t group, size_t groups, size_t n_rows, size_t quads,
                      size_t steps, int first, struct tile_ahead *ahead)
{
    static tile_fn *const by_rows[] = {NULL, tile_1, tile_2, tile_3, tile_4};
    tile_fn *fn[TILE_QUADS];
    for (size_t q = 0; q < quads; q++)
        fn[q] = by_rows[quad_row(q + 1, quads, n_rows) - quad_row(q, quads, n_rows)];
    for (size_t p = 0; p < PARTS; p++)
        for (size_t block = 0; block < quads; block += TILE_BLOCK)
            for (size_t g = 0; g < groups; g++)
                for (size_t q = block; q < quads && q < block + TILE_BLOCK; q++) {
                    struct tile_row row = {0};
                    if (PARTS == 1)
                        row = next_row(ahead, steps);
                    fn[q](t->x[p][q], t->w[p][g], steps, first, &row, t->sum[group + g][p][q]);
                    if (PARTS > 1)
                        bring_closer(ahead, ahead->lines);
                }
    if (PARTS == 1) // rows for which there were no tiles
        bring_closer(ahead, SIZE_MAX);
}

// Trees of all outputs.
static void tile_sums(const struct tiles *t, size_t count, size_t n_rows, size_t quads, float *out,
                      size_t out_stride)
{
    for (size_t j = 0; j < count; j += VN) {
        for (size_t q = 0; q < quads; q++) {
            for (size_t i = quad_row(q, quads, n_rows), k = 0; i < quad_row(q + 1, quads, n_rows);
                 i++, k++) {
                v16 lanes[VN];
                for (size_t n = 0; n < VN; n++) {
                    size_t o = j + n < count ? j + n : count - 1;
                    UNROLL
                    for (size_t p = 0; p < PARTS; p++)
                        lanes[n].p[p] = t->sum[o / TILE_NR][p][q][k][o % TILE_NR];
                }
                vn sums = vn_reduce(lanes);
                vn_store_part(out + i * out_stride + j, sums, count - j < VN ? count - j : VN);
            }
        }
    }
}

// At most TILE_OUTPUTS outputs for at most TILE_ROWS rows of x.
static void tile_block(const struct weight *w, uint64_t first, size_t count, const float *x,
                       size_t x_stride, size_t n_rows, float *out, size_t out_stride,
                       struct tiles *t)
{
    const size_t quads = (n_rows + TILE_MR - 1) / TILE_MR;
    struct weight piece = *w;
    for (uint64_t c = 0; c < w->cols; c += TILE_COLS) {
        piece.cols = w->cols - c < TILE_COLS ? w->cols - c : TILE_COLS;
        piece.data = (const uint8_t *)w->data + tensor_type_row_bytes(w->type, c);
        tile_x(t, x + c, x_stride, n_rows, quads, (size_t)piece.cols);
        for (size_t j = 0; j < count; j += TILE_BAND) {
            size_t n = count - j < TILE_BAND ? count - j : TILE_BAND,
                   groups = (n + TILE_NR - 1) / TILE_NR;
            uint64_t next = first + j + TILE_BAND, next_c = c;
            if (j + TILE_BAND >= count) {
                next = first;
                next_c += TILE_COLS;
            }
            if (next_c >= w->cols) {
                next = first + count;
                next_c = 0;
            }
            struct tile_ahead ahead = next_band(w, next, next_c, groups * quads * PARTS);
            tile_w(t, &piece, first + j, n, groups);
            tile_band(t, j / TILE_NR, groups, n_rows, quads,
                      ((size_t)piece.cols + KERNEL_LANES - 1) / KERNEL_LANES, c == 0, &ahead);
        }
    }
    tile_sums(t, count, n_rows, quads, out, out_stride);
}

static void tile_products(const struct weight *w, uint64_t first, uint64_t count, const float *x,
                          size_t x_stride, size_t n_rows, float *out, size_t out_stride,
                          void *scratch)
{
    // Blocks of outputs and of rows as even as they can be.
    const uint64_t blocks = (count + TILE_OUTPUTS - 1) / TILE_OUTPUTS;
    const size_t parts = (n_rows + TILE_ROWS - 1) / TILE_ROWS;
    for (uint64_t b = 0; b < blocks; b++) {
        uint64_t j = count * b / blocks, end = count * (b + 1) / blocks;
        for (size_t r = 0; r < parts; r++) {
            size_t i = n_rows * r / parts, i_end = n_rows * (r + 1) / parts;
            tile_block(w, first + j, (size_t)(end - j), x + i * x_stride, x_stride, i_end - i,
                       out + i * out_stride + j, out_stride, scratch);
        }
    }
}
