// SPDX-License-Identifier: Apache-2.0
// The part of body.h that attends: partials and tiles. Included by it alone, after the operations
// on registers.
//
// Both products of a tile, scores and weighted V, are chains (kernels.h): one row after the other
// of the second factor, a channel of K or the V of a token, is multiplied with one number of each
// query. So a block of accumulators, queries x vectors of columns, takes each vector of K or V once
// for all of its queries. Few queries take K and V as they are stored, in blocks (kv.h) or not:
// what a block holds is one scale times a code, exactly, so that such a tile gives the bits of one
// of fp16. Many take them from panels of fp32, made once for all.

enum {
    // Queries whose scores are held at once, where the scratch memory allows it.
    QUERY_BLOCK = 48,
    // Queries that share one pass over K and V as they are stored.
    FEW_QUERIES = 4,
    TAIL_BYTES = 2 * KV_BLOCK,
    SCALES_MAX = KERNEL_HEAD_DIM_MAX / KV_BLOCK * ATTENTION_TILE, // of K or of V of a tile
};

// ---- partials ----------------------------------------------------------------------------------

// partial_merge of n <= QUERY_BLOCK neighbours; their exponentials are computed together.
static void merge_partials(struct partial *into, const struct partial *next, size_t n,
                           size_t head_dim)
{
    const size_t stride = partial_stride(head_dim);
    float e[2 * QUERY_BLOCK + VN];
    for (size_t i = 0; i < n; i++) {
        float a = ((float *)into)[i * stride], b = ((const float *)next)[i * stride];
        float max = a > b ? a : b;
        e[2 * i] = a - max;
        e[2 * i + 1] = b - max;
    }
    vn_store(e + 2 * n, vn_set1(0));
    for (size_t i = 0; i < 2 * n; i += VN)
        vn_store(e + i, vn_exp(vn_load(e + i)));
    for (size_t i = 0; i < n; i++) {
        struct partial *p = (struct partial *)((float *)into + i * stride);
        const struct partial *o = (const struct partial *)((const float *)next + i * stride);
        if (o->sum == 0)
            continue;
        if (p->sum == 0) {
            p->max = o->max;
            p->sum = o->sum;
            memcpy(p->acc, o->acc, head_dim * sizeof p->acc[0]);
            continue;
        }
        p->max = p->max > o->max ? p->max : o->max;
        p->sum = fmaf(p->sum, e[2 * i], o->sum * e[2 * i + 1]);
        vn a = vn_set1(e[2 * i]), b = vn_set1(e[2 * i + 1]);
        for (size_t d = 0; d < head_dim; d += VN) // acc is padded
            vn_store(p->acc + d, vn_fma(vn_load(p->acc + d), a, vn_mul(vn_load(o->acc + d), b)));
    }
}

static void set_partial_merge(struct partial *into, const struct partial *next, size_t head_dim)
{
    merge_partials(into, next, 1, head_dim);
}

static void set_partial_output(const struct partial *p, float *out, size_t head_dim)
{
    vn sum = vn_set1(p->sum);
    size_t d = 0;
    if (p->sum == 0) {
        memset(out, 0, head_dim * sizeof out[0]);
        return;
    }
    for (; d + VN <= head_dim; d += VN)
        vn_store(out + d, vn_div(vn_load(p->acc + d), sum));
    for (; d < head_dim; d++)
        out[d] = p->acc[d] / p->sum;
}

// The scores of n tokens, n > from, from their products; those before `from` count as -infinity,
// and so do those behind n up to a multiple of 16. Sets p->max.
static void tile_scores(float *s, uint32_t from, uint32_t n, const struct attention_tile *tile,
                        struct partial *p)
{
    const vn factor = vn_set1(tile->scale);
    vn max = vn_set1(-INFINITY);
    if (n % KERNEL_LANES || from || tile->softcap != 0) {
        for (uint32_t t = n; t % KERNEL_LANES; t++)
            s[t] = 0;
        for (uint32_t t = 0; t < n; t += VN)
            vn_store(s + t, vn_mul(factor, vn_load(s + t)));
        for (uint32_t t = 0; tile->softcap != 0 && t < n; t += VN)
            vn_store(s + t, softcap_vn(vn_load(s + t), tile->softcap));
        for (uint32_t t = 0; t < from; t++)
            s[t] = -INFINITY;
        for (uint32_t t = n; t % KERNEL_LANES; t++)
            s[t] = -INFINITY;
        for (uint32_t t = 0; t < n; t += VN)
            max = vn_max(vn_load(s + t), max);
    } else {
        for (uint32_t t = 0; t < n; t += VN) {
            vn x = vn_mul(factor, vn_load(s + t));
            vn_store(s + t, x);
            max = vn_max(x, max);
        }
    }
    p->max = vn_greatest(max) + 0.0f;
}

// exp(score - max) of n scores. A loop of its own over the queries: one that also looked for their
// maxima would wait for each of them. Sets p->sum.
static void tile_weights(float *s, uint32_t n, struct partial *p)
{
    const vn max = vn_set1(p->max);
    v16 sum = v16_zero();
    for (uint32_t t = 0; t < n; t += KERNEL_LANES) {
        for (uint32_t part = 0; part < PARTS; part++) {
            // Beyond n: exp(-inf) = +0, which leaves a lane that is never -0 alone.
            vn e = vn_exp_falling(vn_sub(vn_load(s + t + part * VN), max));
            vn_store(s + t + part * VN, e);
            sum.p[part] = vn_add(sum.p[part], e);
        }
    }
    p->sum = v16_sum(sum);
}

// ---- chains ------------------------------------------------------------------------------------

// Where the second factor of a product lies.
enum source {
    KEYS,   // K as it is stored: rows are channels, columns are tokens
    VALUES, // V as it is stored: rows are tokens, columns are channels
    PANELS, // either as fp32: [16 columns][row][16]
    // In blocks.
    KEYS8,
    KEYS4,
    VALUES8,
    VALUES4,
};

struct factor {
    const uint8_t *key[ATTENTION_PARTS];  // KEYS: row 0 of 16 columns
    size_t key_stride;                    // bytes from row to row of codes
    const uint8_t *value[ATTENTION_TILE]; // VALUES: rows
    // In blocks: fp32 scales and, of Q4, what comes to them: scale * -zero. Of K [block][token],
    // of V the token's own, [block].
    const float *key_scale, *key_zero;
    uint32_t value_block[ATTENTION_TILE]; // where the scales of a row begin
    const float *value_scale, *value_zero;
    const float *panel; // PANELS
    size_t panel_rows;
};

INLINE int of_keys(const enum source source)
{
    return source == KEYS || source == KEYS8 || source == KEYS4;
}

INLINE int of_values(const enum source source)
{
    return source == VALUES || source == VALUES8 || source == VALUES4;
}

// Half bytes that a number takes.
INLINE size_t halves_of(const enum source source)
{
    return source == KEYS4 || source == VALUES4 ? 1 : source == KEYS8 || source == VALUES8 ? 2 : 4;
}

// Where the code of channel c lies in V of Q4; a vector of them may begin at multiples of VN.
INLINE size_t value4_at(size_t c)
{
    return c / KV_BLOCK * KERNEL_LANES + c % KERNEL_LANES;
}

// Vector v of a row. at[v]: where column v * VN of row 0 lies (not VALUES). `odd`, of half bytes
// alone: KEYS4, the row's number is odd; VALUES4, of vectors that fill less than a block, they lie
// in its second half.
INLINE vn chain_load(const enum source source, const struct factor *b, const void *const *at,
                     size_t v, size_t column, size_t row, const int odd)
{
    const size_t c = column + v * VN;
    const uint8_t *p;
    const float *s, *m;
    if (source == PANELS)
        return vn_load((const float *)at[v] + row * KERNEL_LANES);
    if (of_keys(source)) {
        p = (const uint8_t *)at[v] + (source == KEYS4 ? row / 2 : row) * b->key_stride;
        s = b->key_scale + row / KV_BLOCK * ATTENTION_TILE + c;
        m = b->key_zero + row / KV_BLOCK * ATTENTION_TILE + c;
        return source == KEYS    ? vn_f16(p)
               : source == KEYS8 ? vn_mul(vn_i8(p), vn_load(s))
                                 : vn_fma(vn_nibbles(p, odd ? 4 : 0), vn_load(s), vn_load(m));
    }
    p = b->value[row];
    if (source == VALUES)
        return vn_f16(p + 2 * c);
    s = b->value_scale + b->value_block[row] + c / KV_BLOCK;
    if (source == VALUES8)
        return vn_mul(vn_i8(p + c), vn_set1(*s));
    m = b->value_zero + b->value_block[row] + c / KV_BLOCK;
    const int high = (v * VN / KERNEL_LANES + (size_t)odd) % 2;
    return vn_fma(vn_nibbles(p + value4_at(c), high ? 4 : 0), vn_set1(*s), vn_set1(*m));
}

// One row for nq queries: acc[i * nv + v] = fma(a[i], vector v of the row, .). The fewer ones of
// the two factors stay in registers meanwhile.
INLINE void chain_step(const enum source source, const size_t nq, const size_t nv,
                       const struct factor *b, const void *const *at, size_t column, size_t row,
                       const int odd, const float *a, size_t a_stride, vn *acc)
{
    vn hold[8];
    UNROLL
    for (size_t i = 0; i < (nq < nv ? nq : nv); i++)
        hold[i] = nq < nv ? vn_set1(a[i * a_stride + row])
                          : chain_load(source, b, at, i, column, row, odd);
    UNROLL
    for (size_t v = 0; nq < nv && v < nv; v++) {
        vn x = chain_load(source, b, at, v, column, row, odd);
        UNROLL
        for (size_t i = 0; i < nq; i++)
            acc[i * nv + v] = vn_fma(hold[i], x, acc[i * nv + v]);
    }
    UNROLL
    for (size_t i = 0; nq >= nv && i < nq; i++) {
        vn w = vn_set1(a[i * a_stride + row]);
        UNROLL
        for (size_t v = 0; v < nv; v++)
            acc[i * nv + v] = vn_fma(w, hold[v], acc[i * nv + v]);
    }
}

// chain_block's rows.
INLINE void chain_rows(const enum source source, const size_t nq, const size_t nv,
                       const struct factor *b, const void *const *at, size_t column, const int high,
                       size_t row, size_t end, const float *a, size_t a_stride, vn *acc,
                       const void *ahead)
{
    enum { LINE = 64 };
    const size_t rows = source == PANELS ? 2 : 4;
    const size_t fetched = nv * VN * rows * halves_of(source) / 2; // bytes
    for (; row + rows <= end; row += rows) {
        if (source != PANELS && ahead) {
            UNROLL
            for (size_t line = 0; line < (fetched + LINE - 1) / LINE; line++)
                prefetch(ahead, line * LINE);
            ahead = (const void *)((uintptr_t)ahead + fetched);
        }
        UNROLL
        for (size_t i = 0; i < rows; i++)
            chain_step(source, nq, nv, b, at, column, row + i,
                       source == KEYS4 ? (int)(i % 2) : high, a, a_stride, acc);
    }
    for (; row < end; row += 2) { // rows of K begin at 0
        chain_step(source, nq, nv, b, at, column, row, high, a, a_stride, acc);
        if (row + 1 < end)
            chain_step(source, nq, nv, b, at, column, row + 1, source == KEYS4 ? 1 : high, a,
                       a_stride, acc);
    }
}

// out[i * out_stride + c] = chain over rows [r0, r1) of a[i * a_stride + row] and column c of b,
// for nq queries and nv vectors of columns from `column` on; it goes on from what is there unless
// r0 is 0. While rows are read, as many bytes of what lies `ahead` are prefetched.
INLINE void chain_block(const enum source source, const size_t nq, const size_t nv,
                        const struct factor *b, size_t column, const float *a, size_t a_stride,
                        size_t r0, size_t r1, float *out, size_t out_stride, const void *ahead)
{
    vn acc[24];
    const void *at[8];
    UNROLL
    for (size_t v = 0; v < nv; v++) {
        const size_t c = column + v * VN, part = c / KERNEL_LANES, lane = c % KERNEL_LANES;
        if (of_keys(source))
            at[v] = b->key[part] + (source == KEYS ? 2 * lane : lane);
        else if (source == PANELS)
            at[v] = b->panel + part * b->panel_rows * KERNEL_LANES + lane;
    }
    UNROLL
    for (size_t i = 0; i < nq; i++)
        UNROLL
    for (size_t v = 0; v < nv; v++)
        acc[i * nv + v] = r0 ? vn_load(out + i * out_stride + v * VN) : vn_set1(0);
    if (source == VALUES4 && nv * VN < KV_BLOCK && column % KV_BLOCK >= KERNEL_LANES)
        chain_rows(source, nq, nv, b, at, column, 1, r0, r1, a, a_stride, acc, ahead);
    else
        chain_rows(source, nq, nv, b, at, column, 0, r0, r1, a, a_stride, acc, ahead);
    UNROLL
    for (size_t i = 0; i < nq; i++)
        UNROLL
    for (size_t v = 0; v < nv; v++)
        vn_store(out + i * out_stride + v * VN, acc[i * nv + v]);
}

// Vectors of columns that nq queries take at most. A tile has 64 columns of K.
INLINE size_t most_vectors(const enum source source, const size_t nq)
{
    const size_t all = ATTENTION_TILE / VN;
    if (source == VALUES4 && FEW_VECTORS(nq) == 3)
        return 2; // so that a row of them begins in one half of the bytes
    return of_keys(source) && FEW_VECTORS(nq) > all ? all : FEW_VECTORS(nq);
}

// chain_block with nv, which few_vectors gave, as a constant.
#define FOR_VECTORS(nq, nv, source, ...)                                                           \
    do {                                                                                           \
        const size_t most_ = most_vectors(source, nq);                                             \
        if ((nv) == most_)                                                                         \
            chain_block(source, nq, most_, __VA_ARGS__);                                           \
        else if (most_ > 4 && (nv) == 4)                                                           \
            chain_block(source, nq, 4, __VA_ARGS__);                                               \
        else if (most_ > 2 && (nv) == 2)                                                           \
            chain_block(source, nq, 2, __VA_ARGS__);                                               \
        else                                                                                       \
            chain_block(source, nq, 1, __VA_ARGS__);                                               \
    } while (0)

// Calls f with n, 1 to FEW_QUERIES, as a constant.
#define FOR_FEW(n, f, ...)                                                                         \
    switch (n) {                                                                                   \
    case 1:                                                                                        \
        f(1, __VA_ARGS__);                                                                         \
        break;                                                                                     \
    case 2:                                                                                        \
        f(2, __VA_ARGS__);                                                                         \
        break;                                                                                     \
    case 3:                                                                                        \
        f(3, __VA_ARGS__);                                                                         \
        break;                                                                                     \
    default:                                                                                       \
        f(4, __VA_ARGS__);                                                                         \
        break;                                                                                     \
    }

// ---- tiles -------------------------------------------------------------------------------------

// A tile in work, and its scratch memory.
struct tile_work {
    const struct attention_tile *tile;
    struct factor key, value;
    struct factor tail; // VALUES: the last channels, filled up, where they are less than a vector
    float *scales;      // in blocks
    uint32_t there;     // bit i: of 16 i and the 15 tokens behind it some take part
    size_t block;       // queries that are worked on at once
    float *scores;      // [block][ATTENTION_TILE]
    float *partials;    // [block], for fold
    float *key_panel, *value_panel;
    uint8_t *tails; // [ATTENTION_TILE][TAIL_BYTES]
    int fetch;      // is memory worth prefetching?
};

// How many vectors of columns come next where `left` remain: accumulators enough to hide the
// latency of fma, and no single vector left over.
INLINE size_t few_vectors(const size_t most, size_t left)
{
    if (most == 3)
        return left >= 6 || left == 3 ? 3 : left >= 2 ? 2 : 1;
    return left >= most ? most : left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

// Scores of nq queries with the first `columns` tokens.
INLINE void key_queries(const size_t nq, const enum source source, const struct tile_work *w,
                        size_t columns, const float *q, size_t q_stride, float *scores, int fetch)
{
    const size_t dim = w->tile->head_dim;
    for (size_t c = 0, nv; c < columns; c += nv * VN) {
        nv = few_vectors(most_vectors(source, nq), (columns - c) / VN);
        const void *ahead = fetch ? w->value.value[c] : NULL;
        const size_t first = c / KERNEL_LANES, last = (c + nv * VN - 1) / KERNEL_LANES;
        if (w->there >> first & ((2u << (last - first)) - 1))
            FOR_VECTORS(nq, nv, source, &w->key, c, q, q_stride, 0, dim, scores + c, ATTENTION_TILE,
                        ahead);
    }
}

// What lies in K of the next tile as far behind its start as `column` of V behind that of this one.
INLINE const void *next_key(const struct attention_tile *tile, size_t column)
{
    const struct attention_tile *next = tile->next;
    size_t tokens = next->part_tokens ? next->part_tokens : ATTENTION_TILE;
    size_t part = tokens * kv_value_codes(tile->type, tile->head_dim);
    size_t at = column * part * (ATTENTION_TILE / tokens) / tile->head_dim;
    return (const uint8_t *)next->k[at / part] + at % part;
}

// V of tokens [t0, t1) weighted by nq rows of s.
INLINE void value_queries(const size_t nq, const enum source source, const struct tile_work *w,
                          const float *s, size_t t0, size_t t1, float *acc, size_t stride,
                          int fetch)
{
    const size_t dim = w->tile->head_dim;
    size_t c = 0;
    for (size_t nv; c + VN <= dim; c += nv * VN) {
        nv = few_vectors(most_vectors(source, nq), (dim - c) / VN);
        FOR_VECTORS(nq, nv, source, &w->value, c, s, ATTENTION_TILE, t0, t1, acc + c, stride,
                    fetch ? next_key(w->tile, c) : NULL);
    }
    if (c < dim) // of tails that begin where c does in its block
        chain_block(source, nq, 1, &w->tail, c % KV_BLOCK, s, ATTENTION_TILE, t0, t1, acc + c,
                    stride, NULL);
}

static void key_any(size_t nq, const struct tile_work *w, size_t columns, const float *q,
                    size_t q_stride, float *scores, int fetch)
{
    if (w->tile->type == KV_F16)
        FOR_FEW(nq, key_queries, KEYS, w, columns, q, q_stride, scores, fetch)
    else if (w->tile->type == KV_Q8)
        FOR_FEW(nq, key_queries, KEYS8, w, columns, q, q_stride, scores, fetch)
    else
        FOR_FEW(nq, key_queries, KEYS4, w, columns, q, q_stride, scores, fetch)
}

static void value_any(size_t nq, const struct tile_work *w, const float *s, size_t t0, size_t t1,
                      float *acc, size_t stride, int fetch)
{
    if (w->tile->type == KV_F16)
        FOR_FEW(nq, value_queries, VALUES, w, s, t0, t1, acc, stride, fetch)
    else if (w->tile->type == KV_Q8)
        FOR_FEW(nq, value_queries, VALUES8, w, s, t0, t1, acc, stride, fetch)
    else
        FOR_FEW(nq, value_queries, VALUES4, w, s, t0, t1, acc, stride, fetch)
}

// Of the queries' limits the least: so far they share each pass over V.
static uint32_t least_limit(const uint32_t *limit, size_t n)
{
    uint32_t least = limit[0];
    for (size_t i = 1; i < n; i++)
        least = limit[i] < least ? limit[i] : least;
    return least;
}

static void few_scores(const struct tile_work *w, size_t n, size_t columns, const float *q,
                       size_t q_stride)
{
    size_t groups = (n + FEW_QUERIES - 1) / FEW_QUERIES;
    for (size_t i = 0, nq; i < n; i += nq, groups--) {
        nq = (n - i + groups - 1) / groups;
        key_any(nq, w, columns, q + i * q_stride, q_stride, w->scores + i * ATTENTION_TILE,
                w->fetch && !i);
    }
}

// Together as far as all of them see, then each alone: nothing is read for a query beyond its
// limit.
static void few_values(const struct tile_work *w, size_t n, const uint32_t *limit, float *acc,
                       size_t stride)
{
    size_t groups = (n + FEW_QUERIES - 1) / FEW_QUERIES;
    for (size_t i = 0, nq; i < n; i += nq, groups--) {
        nq = (n - i + groups - 1) / groups;
        uint32_t common = least_limit(limit + i, nq);
        value_any(nq, w, w->scores + i * ATTENTION_TILE, 0, common, acc + i * stride, stride,
                  w->fetch && !i && w->tile->next);
        for (size_t j = i; j < i + nq; j++)
            if (limit[j] > common)
                value_any(1, w, w->scores + j * ATTENTION_TILE, common, limit[j], acc + j * stride,
                          stride, 0);
    }
}

// nv vectors of columns of a panel for n <= PANEL_QUERIES queries.
static void panel_any(size_t n, size_t nv, const struct factor *b, size_t column, const float *a,
                      size_t a_stride, size_t r0, size_t r1, float *out, size_t out_stride)
{
#define PANEL_CASE(nq)                                                                             \
    case nq:                                                                                       \
        if ((int)PANEL_VECTORS > (int)PARTS && nv == PARTS)                                        \
            chain_block(PANELS, nq, PARTS, b, column, a, a_stride, r0, r1, out, out_stride, NULL); \
        else                                                                                       \
            chain_block(PANELS, nq, PANEL_VECTORS, b, column, a, a_stride, r0, r1, out,            \
                        out_stride, NULL);                                                         \
        break
    switch (n) {
        PANEL_CASE(1);
        PANEL_CASE(2);
        PANEL_CASE(3);
        PANEL_CASE(4);
        PANEL_CASE(5);
        PANEL_CASE(6);
    }
}

// Vectors of a panel that are taken together where `columns` are left.
static size_t panel_vectors(size_t columns)
{
    return columns >= PANEL_VECTORS * VN ? PANEL_VECTORS : PARTS;
}

static void many_scores(const struct tile_work *w, size_t n, size_t columns, const float *q,
                        size_t q_stride)
{
    for (size_t c = 0, nv; c < columns; c += nv * VN) {
        nv = panel_vectors(columns - c);
        for (size_t i = 0; i < n; i += PANEL_QUERIES)
            panel_any(n - i < PANEL_QUERIES ? n - i : PANEL_QUERIES, nv, &w->key, c,
                      q + i * q_stride, q_stride, 0, w->tile->head_dim,
                      w->scores + i * ATTENTION_TILE + c, ATTENTION_TILE);
    }
}

static void many_values(const struct tile_work *w, size_t n, const uint32_t *limit, float *acc,
                        size_t stride)
{
    for (size_t c = 0, nv; c < w->tile->head_dim; c += nv * VN) {
        nv =
            panel_vectors((w->tile->head_dim + KERNEL_LANES - 1) / KERNEL_LANES * KERNEL_LANES - c);
        for (size_t i = 0; i < n; i += PANEL_QUERIES) {
            size_t nq = n - i < PANEL_QUERIES ? n - i : PANEL_QUERIES;
            uint32_t common = least_limit(limit + i, nq);
            panel_any(nq, nv, &w->value, c, w->scores + i * ATTENTION_TILE, ATTENTION_TILE, 0,
                      common, acc + i * stride + c, stride);
            for (size_t j = i; j < i + nq; j++)
                if (limit[j] > common)
                    panel_any(1, nv, &w->value, c, w->scores + j * ATTENTION_TILE, ATTENTION_TILE,
                              common, limit[j], acc + j * stride + c, stride);
        }
    }
}

// Scales of n blocks, which 16 divides, as fp32; of Q4 also scale * -zero.
static void kv_scales(uint32_t type, const uint8_t *in, const uint8_t *zeros, size_t n,
                      float *scale, float *zero)
{
    const vn unit = vn_set1(type == KV_Q8 ? 1.0f / 64 : 1.0f / 8);
    for (size_t i = 0; i < n; i += KERNEL_LANES) {
        uint16_t word[KERNEL_LANES];
        bytes16 codes;
        for (size_t l = 0; l < KERNEL_LANES; l++)
            word[l] = (uint16_t)(in[i + l] << 7);
        memcpy(&codes, zeros + i, sizeof codes);
        for (size_t p = 0; p < PARTS; p++) {
            vn s = vn_mul(vn_f16(word + p * VN), unit);
            vn_store(scale + i + p * VN, s);
            if (type == KV_Q4)
                vn_store(zero + i + p * VN,
                         vn_mul(vn_mul(vn_codes(codes, (int)p), vn_set1(-1.0f)), s));
        }
    }
}

// Scales and zero points of 16 tokens: of K [block][token], of V [token][block].
struct lane_scales {
    uint8_t key[SCALES_MAX / ATTENTION_PARTS], key_zero[SCALES_MAX / ATTENTION_PARTS];
    uint8_t value[SCALES_MAX / ATTENTION_PARTS], value_zero[SCALES_MAX / ATTENTION_PARTS];
};

// Of whole blocks, from the codes of V; `row` bytes a token.
INLINE void hidden_scales(const uint32_t type, struct lane_scales *s, const uint8_t *codes,
                          size_t row, size_t whole, size_t blocks)
{
    const size_t bytes = type == KV_Q8 ? KV_BLOCK : KV_BLOCK / 2;
    for (size_t t = 0; t < KERNEL_LANES; t++, codes += row)
        for (size_t b = 0; b < whole; b++) {
            uint32_t hidden =
                type == KV_Q8 ? hidden_q8(codes + b * bytes) : hidden_q4(codes + b * bytes);
            s->key[b * KERNEL_LANES + t] = (uint8_t)hidden;
            s->value[t * blocks + b] = (uint8_t)(hidden >> 8);
            if (type == KV_Q8)
                continue;
            s->key_zero[b * KERNEL_LANES + t] = hidden >> 16 & 15;
            s->value_zero[t * blocks + b] = hidden >> 20 & 15;
        }
}

// Of the last block where it is none, from behind the codes.
static void tail_scales(uint32_t type, struct lane_scales *s, const uint8_t *key,
                        const uint8_t *value, size_t whole, size_t blocks)
{
    for (size_t t = 0; t < KERNEL_LANES; t++) {
        size_t k = whole * KERNEL_LANES + t, v = t * blocks + whole;
        uint16_t words[2];
        if (type == KV_Q8) {
            s->key[k] = key[t];
            s->value[v] = value[t];
            continue;
        }
        memcpy(&words[0], key + 2 * t, sizeof words[0]);
        memcpy(&words[1], value + 2 * t, sizeof words[1]);
        s->key[k] = (uint8_t)(words[0] >> 7);
        s->value[v] = (uint8_t)(words[1] >> 7);
        s->key_zero[k] = words[0] & 15;
        s->value_zero[v] = words[1] & 15;
    }
}

// Scales of each 16 tokens of which some take part.
static void tile_block_scales(struct tile_work *w)
{
    const struct attention_tile *tile = w->tile;
    const uint32_t type = tile->type;
    const size_t dim = tile->head_dim, part = tile->part_tokens, row = kv_value_codes(type, dim);
    const size_t blocks = kv_blocks(dim), whole = dim / KV_BLOCK, tail = kv_tail_bytes(type, dim);
    float *scale = w->scales;
    struct lane_scales s;
    w->key.key_scale = scale;
    w->key.key_zero = scale + SCALES_MAX;
    w->value.value_scale = scale + 2 * SCALES_MAX;
    w->value.value_zero = scale + 3 * SCALES_MAX;
    for (size_t i = 0; i < ATTENTION_PARTS; i++) {
        const size_t first = i * KERNEL_LANES, at = first % part;
        if (!(w->there >> i & 1))
            continue;
        const uint8_t *key = tile->k[first / part], *value = tile->v[first / part];
        if (type == KV_Q8)
            hidden_scales(KV_Q8, &s, value + at * row, row, whole, blocks);
        else
            hidden_scales(KV_Q4, &s, value + at * row, row, whole, blocks);
        if (tail)
            tail_scales(type, &s, key + kv_key_rows(type, dim) * part + at * tail,
                        value + part * row + at * tail, whole, blocks);
        for (size_t b = 0; b < blocks; b++)
            kv_scales(type, s.key + b * KERNEL_LANES, s.key_zero + b * KERNEL_LANES, KERNEL_LANES,
                      scale + b * ATTENTION_TILE + first,
                      scale + SCALES_MAX + b * ATTENTION_TILE + first);
        kv_scales(type, s.value, s.value_zero, KERNEL_LANES * blocks,
                  scale + 2 * SCALES_MAX + first * blocks, scale + 3 * SCALES_MAX + first * blocks);
    }
}

// Where K of each 16 tokens lies. A part without chosen tokens may not be there: another one stands
// for it, whose scores nobody looks at. Of K [tokens][head_dim] a turned copy is made.
static void tile_keys(struct tile_work *w, uint64_t chosen, uint16_t *turned)
{
    const struct attention_tile *tile = w->tile;
    const size_t part = tile->part_tokens, each = tile->type == KV_F16 ? 2 : 1;
    const uint8_t *some = NULL;
    w->key.key_stride = each * (part ? part : ATTENTION_TILE);
    if (!part)
        kernel_transpose16(turned, ATTENTION_TILE, tile->k[0], tile->head_dim, tile->tokens,
                           tile->head_dim);
    for (size_t i = 0, number = 0, at = 0; i < ATTENTION_PARTS; i++) {
        int there = (chosen >> i * KERNEL_LANES & 0xffff) != 0;
        w->there |= (uint32_t)there << i;
        if (!part)
            w->key.key[i] = (const uint8_t *)(turned + i * KERNEL_LANES);
        else if (there)
            some = w->key.key[i] = (const uint8_t *)tile->k[number] + at * each;
        at += KERNEL_LANES;
        number += at == part;
        at = at == part ? 0 : at;
    }
    for (size_t i = 0; part && i < ATTENTION_PARTS; i++)
        if (!(w->there >> i & 1))
            w->key.key[i] = some;
}

// Where V of each token lies that takes part.
static void tile_values(struct tile_work *w, uint64_t chosen)
{
    const struct attention_tile *tile = w->tile;
    const size_t part = tile->part_tokens ? tile->part_tokens : ATTENTION_TILE;
    const size_t row = kv_value_codes(tile->type, tile->head_dim);
    const size_t blocks = tile->type == KV_F16 ? 0 : kv_blocks(tile->head_dim);
    size_t count = 0, shift = (size_t)__builtin_ctzll(part);
    for (size_t t = 0; t < tile->tokens; t += part) {
        const uint8_t *codes = tile->v[t >> shift];
        uint64_t some = chosen >> t & (~0ull >> (ATTENTION_TILE - part));
        if (!tile->chosen) { // of those beyond the last nothing is read
            for (size_t i = 0; i < part; i++, count++) {
                w->value.value[count] = codes + i * row;
                w->value.value_block[count] = (uint32_t)(count * blocks);
            }
            continue;
        }
        for (; some; some &= some - 1, count++) {
            size_t i = (size_t)__builtin_ctzll(some);
            w->value.value[count] = codes + i * row;
            w->value.value_block[count] = (uint32_t)((t + i) * blocks);
        }
    }
}

// The last block of V as rows of their own, so that vectors do not reach beyond its end.
static void tile_tails(struct tile_work *w, size_t tokens, size_t lanes)
{
    const uint32_t type = w->tile->type;
    const size_t dim = w->tile->head_dim, block = dim / KV_BLOCK;
    const size_t from = kv_value_codes(type, block * KV_BLOCK), end = kv_value_codes(type, dim);
    if (dim % lanes == 0)
        return;
    w->tail.value_scale = w->value.value_scale;
    w->tail.value_zero = w->value.value_zero;
    for (size_t t = 0; t < tokens; t++) {
        uint8_t *tail = w->tails + t * TAIL_BYTES;
        memset(tail, 0, TAIL_BYTES);
        memcpy(tail, w->value.value[t] + from, end - from);
        w->tail.value[t] = tail;
        w->tail.value_block[t] = w->value.value_block[t] + (uint32_t)block;
    }
}

// K and V as fp32, each number once.
INLINE void fill_panels(const enum source keys, const enum source values, struct tile_work *w,
                        size_t tokens)
{
    const size_t dim = w->tile->head_dim, each = keys == KEYS ? 2 : 1;
    for (size_t i = 0; i < ATTENTION_PARTS; i++) {
        float *out = w->key_panel + i * dim * KERNEL_LANES;
        const void *at[PARTS];
        for (size_t p = 0; p < PARTS; p++)
            at[p] = w->key.key[i] + p * VN * each;
        for (size_t c = 0; w->there >> i & 1 && c < dim; c += 2)
            for (size_t odd = 0; odd < 2 && c + odd < dim; odd++, out += KERNEL_LANES)
                for (size_t p = 0; p < PARTS; p++)
                    vn_store(out + p * VN,
                             chain_load(keys, &w->key, at, p, i * KERNEL_LANES, c + odd, (int)odd));
    }
    for (size_t c = 0; c < dim; c += KERNEL_LANES) {
        float *out = w->value_panel + c * ATTENTION_TILE;
        const int whole = c + KERNEL_LANES <= dim, high = c / KERNEL_LANES % 2;
        const struct factor *b = whole ? &w->value : &w->tail;
        for (size_t t = 0; t < tokens; t++, out += KERNEL_LANES)
            for (size_t p = 0; p < PARTS; p++)
                vn_store(out + p * VN,
                         chain_load(values, b, NULL, p, whole ? c : c % KV_BLOCK, t, high));
    }
    w->key.panel = w->key_panel;
    w->key.panel_rows = dim;
    w->value.panel = w->value_panel;
    w->value.panel_rows = ATTENTION_TILE;
}

static void tile_panels(struct tile_work *w, size_t tokens)
{
    if (w->tile->type == KV_F16)
        fill_panels(KEYS, VALUES, w, tokens);
    else if (w->tile->type == KV_Q8)
        fill_panels(KEYS8, VALUES8, w, tokens);
    else
        fill_panels(KEYS4, VALUES4, w, tokens);
}

// Moves the scores of chosen tokens to the front.
static void pack_scores(float *s, uint64_t chosen)
{
    for (size_t n = 0; chosen; chosen &= chosen - 1)
        s[n++] = s[__builtin_ctzll(chosen)];
}

static void tile_queries(const struct tile_work *w, int many, size_t n, size_t tokens,
                         const float *q, size_t q_stride, const uint32_t *limit,
                         const uint32_t *first, float *out, int fold)
{
    const struct attention_tile *tile = w->tile;
    const size_t dim = tile->head_dim, stride = partial_stride(dim);
    float *to = fold ? w->partials : out;
    uint32_t seen[QUERY_BLOCK], most = 0;
    for (size_t i = 0; i < n; i++) {
        seen[i] = limit ? limit[i] : (uint32_t)tokens;
        if (first && seen[i] <= first[i])
            seen[i] = 0;
        most = seen[i] > most ? seen[i] : most;
    }
    size_t columns = tile->chosen ? tile->tokens : most;
    columns = (columns + KERNEL_LANES - 1) / KERNEL_LANES * KERNEL_LANES;
    (many ? many_scores : few_scores)(w, n, columns, q, q_stride);
    for (size_t i = 0; i < n; i++) {
        float *s = w->scores + i * ATTENTION_TILE;
        partial_clear(partial_at(to, i, dim));
        if (tile->chosen)
            pack_scores(s, tile->chosen);
        if (seen[i])
            tile_scores(s, first ? first[i] : 0, seen[i], tile, partial_at(to, i, dim));
    }
    for (size_t i = 0; i < n; i++)
        if (seen[i])
            tile_weights(w->scores + i * ATTENTION_TILE, seen[i], partial_at(to, i, dim));
    (many ? many_values : few_values)(w, n, seen, partial_at(to, 0, dim)->acc, stride);
    if (fold)
        merge_partials((struct partial *)out, (struct partial *)to, n, dim);
}

static void set_attention_tile(const struct attention_tile *tile, const float *q, size_t q_stride,
                               size_t n_q, const uint32_t *limit, float *out, int fold,
                               void *scratch)
{
    const size_t dim = tile->head_dim, stride = partial_stride(dim);
    const size_t panel = ATTENTION_TILE * ((dim + KERNEL_LANES - 1) / KERNEL_LANES * KERNEL_LANES);
    const int many = n_q >= (size_t)(tile->type == KV_F16 ? MANY_QUERIES : MANY_BLOCK_QUERIES);
    const uint64_t chosen = tile->chosen ? tile->chosen : ~0ull >> (ATTENTION_TILE - tile->tokens);
    const size_t tokens = (size_t)__builtin_popcountll(chosen);
    struct tile_work w; // too large to be cleared for every tile
    w.tile = tile;
    w.fetch = !tile->chosen && !many;
    w.there = 0;
    _Static_assert(2 * ATTENTION_TILE * KERNEL_HEAD_DIM_MAX + // panels
                           ATTENTION_TILE * TAIL_BYTES / 4 +  // tails
                           4 * SCALES_MAX +
                           2 * PANEL_QUERIES * (ATTENTION_TILE + 16 + KERNEL_HEAD_DIM_MAX) <=
                       KERNEL_SCRATCH_BYTES / sizeof(float),
                   "scratch holds a tile and some queries");
    w.key_panel = scratch;
    w.value_panel = w.key_panel + panel;
    w.tails = (uint8_t *)(w.value_panel + panel);
    w.scales = w.value_panel + panel + ATTENTION_TILE * TAIL_BYTES / 4;
    w.scores = w.scales + (tile->type == KV_F16 ? 0 : 4 * SCALES_MAX);
    size_t room = KERNEL_SCRATCH_BYTES / sizeof(float) - (size_t)(w.scores - w.key_panel);
    w.block = room / (ATTENTION_TILE + stride) / PANEL_QUERIES * PANEL_QUERIES;
    w.block = w.block < QUERY_BLOCK ? w.block : QUERY_BLOCK;
    w.partials = w.scores + w.block * ATTENTION_TILE;
    // The copy is gone before V goes to its panel.
    tile_keys(&w, chosen, (uint16_t *)(many ? w.value_panel : w.key_panel));
    if (tile->type != KV_F16)
        tile_block_scales(&w);
    tile_values(&w, chosen);
    tile_tails(&w, tokens, many ? KERNEL_LANES : VN);
    if (many)
        tile_panels(&w, tokens);
    for (size_t i = 0; i < n_q; i += w.block)
        tile_queries(&w, many, n_q - i < w.block ? n_q - i : w.block, tokens, q + i * q_stride,
                     q_stride, limit ? limit + i : NULL, tile->first ? tile->first + i : NULL,
                     (float *)partial_at(out, i, dim), fold);
}
