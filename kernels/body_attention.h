// SPDX-License-Identifier: Apache-2.0
// The part of body.h that attends: partials and tiles. Included by it alone, after the operations
// on registers.
//
// Both products of a tile, scores and weighted V, are chains (kernels.h): one row after the other
// of the second factor, a channel of K or the V of a token, is multiplied with one number of each
// query. So a block of accumulators, queries x vectors of columns, takes each vector of K or V once
// for all of its queries. Few queries take K and V as they are stored. Many take them from panels
// of fp32, made once for all.

enum {
    // Queries whose scores are held at once, where the scratch memory allows it.
    QUERY_BLOCK = 48,
    // Queries that share one pass over K and V as they are stored.
    FEW_QUERIES = 4,
    // Partials that are merged together.
    MERGE_QUERIES = 4,
};

// ---- partials ----------------------------------------------------------------------------------

// partial_merge of n <= MERGE_QUERIES neighbours; their exponentials are computed together.
static void merge_partials(struct partial *into, const struct partial *next, size_t n,
                           size_t head_dim)
{
    enum { EXPS = 2 * MERGE_QUERIES > VN ? 2 * MERGE_QUERIES : VN };
    const size_t stride = partial_stride(head_dim);
    float e[EXPS] = {0};
    for (size_t i = 0; i < n; i++) {
        float a = ((float *)into)[i * stride], b = ((const float *)next)[i * stride];
        float max = a > b ? a : b;
        e[2 * i] = a - max;
        e[2 * i + 1] = b - max;
    }
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

// Turns n <= ATTENTION_TILE products into exp(scale * product - max), n > from; scores before
// `from` count as -infinity.
INLINE void softmax(float *s, const uint32_t from, const uint32_t n, float scale, float cap,
                    struct partial *p)
{
    vn max = vn_set1(-INFINITY), factor = vn_set1(scale);
    for (uint32_t t = n; t % KERNEL_LANES; t++)
        s[t] = 0;
    for (uint32_t t = 0; t < n; t += VN)
        vn_store(s + t, vn_mul(factor, vn_load(s + t)));
    for (uint32_t t = 0; cap != 0 && t < n; t += VN)
        vn_store(s + t, softcap_vn(vn_load(s + t), cap));
    for (uint32_t t = 0; t < from; t++)
        s[t] = -INFINITY;
    for (uint32_t t = n; t % KERNEL_LANES; t++)
        s[t] = -INFINITY;
    for (uint32_t t = 0; t < n; t += VN)
        max = vn_max(vn_load(s + t), max);
    float m = vn_greatest(max) + 0.0f;
    max = vn_set1(m);
    v16 sum = v16_zero();
    for (uint32_t t = 0; t < n; t += KERNEL_LANES) {
        for (uint32_t part = 0; part < PARTS; part++) {
            // Beyond n: exp(-inf) = +0, which leaves a lane that is never -0 alone.
            vn e = vn_exp(vn_sub(vn_load(s + t + part * VN), max));
            vn_store(s + t + part * VN, e);
            sum.p[part] = vn_add(sum.p[part], e);
        }
    }
    p->max = m;
    p->sum = v16_sum(sum);
}

static void tile_softmax(float *s, uint32_t from, uint32_t n, const struct attention_tile *tile,
                         struct partial *p)
{
    if (n == ATTENTION_TILE && !from && tile->softcap == 0)
        softmax(s, 0, ATTENTION_TILE, tile->scale, 0, p); // the scores stay in registers
    else
        softmax(s, from, n, tile->scale, tile->softcap, p);
}

// ---- chains ------------------------------------------------------------------------------------

// Where the second factor of a product lies.
enum source {
    KEYS,   // K as it is stored: rows are channels, columns are tokens
    VALUES, // V as it is stored: rows are tokens, columns are channels
    PANELS, // either as fp32: [16 columns][row][16]
};

struct factor {
    const uint16_t *key[ATTENTION_PARTS];  // KEYS: row 0 of 16 columns
    size_t key_stride;                     // elements from row to row
    const uint16_t *value[ATTENTION_TILE]; // VALUES: rows
    const float *panel;                    // PANELS
    size_t panel_rows;
};

// One row for nq queries: acc[i * nv + v] = fma(a[i], vector v of the row, .). at[v]: vector v of
// row 0 (not VALUES).
INLINE void chain_step(const enum source source, const size_t nq, const size_t nv,
                       const struct factor *b, const void *const *at, size_t column, size_t row,
                       const float *a, size_t a_stride, vn *acc)
{
    vn x[8];
    UNROLL
    for (size_t v = 0; v < nv; v++) {
        if (source == KEYS)
            x[v] = vn_f16((const uint16_t *)at[v] + row * b->key_stride);
        else if (source == VALUES)
            x[v] = vn_f16(b->value[row] + column + v * VN);
        else
            x[v] = vn_load((const float *)at[v] + row * KERNEL_LANES);
    }
    UNROLL
    for (size_t i = 0; i < nq; i++) {
        vn w = vn_set1(a[i * a_stride + row]);
        UNROLL
        for (size_t v = 0; v < nv; v++)
            acc[i * nv + v] = vn_fma(w, x[v], acc[i * nv + v]);
    }
}

// out[i * out_stride + c] = chain over rows [r0, r1) of a[i * a_stride + row] and column c of b,
// for nq queries and nv vectors of columns from `column` on; it goes on from what is there unless
// r0 is 0. While a row is read, as many bytes of what lies `ahead` are prefetched.
INLINE void chain_block(const enum source source, const size_t nq, const size_t nv,
                        const struct factor *b, size_t column, const float *a, size_t a_stride,
                        size_t r0, size_t r1, float *out, size_t out_stride, const void *ahead)
{
    enum { LINE = 64 };
    vn acc[24];
    const void *at[8];
    UNROLL
    for (size_t v = 0; v < nv; v++) {
        const size_t c = column + v * VN, part = c / KERNEL_LANES, lane = c % KERNEL_LANES;
        if (source == KEYS)
            at[v] = b->key[part] + lane;
        else if (source == PANELS)
            at[v] = b->panel + part * b->panel_rows * KERNEL_LANES + lane;
    }
    UNROLL
    for (size_t i = 0; i < nq; i++)
        UNROLL
    for (size_t v = 0; v < nv; v++)
        acc[i * nv + v] = r0 ? vn_load(out + i * out_stride + v * VN) : vn_set1(0);
    size_t row = r0;
    for (; row + 2 <= r1; row += 2) {
        if (source != PANELS && ahead)
            UNROLL
        for (size_t line = 0; line < nv * VN * 4 / LINE; line++)
            prefetch(ahead, row * nv * VN * 2 + line * LINE);
        chain_step(source, nq, nv, b, at, column, row, a, a_stride, acc);
        chain_step(source, nq, nv, b, at, column, row + 1, a, a_stride, acc);
    }
    if (row < r1)
        chain_step(source, nq, nv, b, at, column, row, a, a_stride, acc);
    UNROLL
    for (size_t i = 0; i < nq; i++)
        UNROLL
    for (size_t v = 0; v < nv; v++)
        vn_store(out + i * out_stride + v * VN, acc[i * nv + v]);
}

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
    uint32_t there;     // bit i: of 16 i and the 15 tokens behind it some take part
    size_t block;       // queries that are worked on at once
    float *scores;      // [block][ATTENTION_TILE]
    float *partials;    // [block], for fold
    float *key_panel, *value_panel;
    uint16_t *tails; // [ATTENTION_TILE][KERNEL_LANES]
    int fetch;       // is memory worth prefetching?
};

// Scores of nq queries with the first `columns` tokens.
INLINE void key_queries(const size_t nq, const struct tile_work *w, size_t columns, const float *q,
                        size_t q_stride, float *scores, int fetch)
{
    const size_t nv = KEY_VECTORS(nq), dim = w->tile->head_dim;
    size_t c = 0;
    for (; c + nv * VN <= columns; c += nv * VN) {
        const void *ahead = fetch ? w->value.value[c] : NULL;
        if (w->there >> c / KERNEL_LANES & ((1u << nv * VN / KERNEL_LANES) - 1))
            chain_block(KEYS, nq, nv, &w->key, c, q, q_stride, 0, dim, scores + c, ATTENTION_TILE,
                        ahead);
    }
    for (; nv > PARTS && c < columns; c += KERNEL_LANES)
        if (w->there >> c / KERNEL_LANES & 1)
            chain_block(KEYS, nq, PARTS, &w->key, c, q, q_stride, 0, dim, scores + c,
                        ATTENTION_TILE, NULL);
}

// What lies in K of the next tile as far behind its start as `column` of V behind that of this one.
INLINE const void *next_key(const struct attention_tile *tile, size_t column)
{
    const struct attention_tile *next = tile->next;
    size_t at = column * ATTENTION_TILE;
    size_t part = (next->part_tokens ? next->part_tokens : ATTENTION_TILE) * tile->head_dim;
    return next->k[at / part] + at % part;
}

// V of tokens [t0, t1) weighted by nq rows of s.
INLINE void value_queries(const size_t nq, const struct tile_work *w, const float *s, size_t t0,
                          size_t t1, float *acc, size_t stride, int fetch)
{
    const size_t dim = w->tile->head_dim, nv = VALUE_VECTORS(nq);
    size_t c = 0;
    for (; c + nv * VN <= dim; c += nv * VN)
        chain_block(VALUES, nq, nv, &w->value, c, s, ATTENTION_TILE, t0, t1, acc + c, stride,
                    fetch ? next_key(w->tile, c) : NULL);
    if (nv > 4 && c + 4 * VN <= dim) {
        chain_block(VALUES, nq, 4, &w->value, c, s, ATTENTION_TILE, t0, t1, acc + c, stride, NULL);
        c += 4 * VN;
    }
    if (nv > 2 && c + 2 * VN <= dim) {
        chain_block(VALUES, nq, 2, &w->value, c, s, ATTENTION_TILE, t0, t1, acc + c, stride, NULL);
        c += 2 * VN;
    }
    for (; c + VN <= dim; c += VN)
        chain_block(VALUES, nq, 1, &w->value, c, s, ATTENTION_TILE, t0, t1, acc + c, stride, NULL);
    for (size_t lane = 0; c + lane < dim; lane += VN)
        chain_block(VALUES, nq, 1, &w->tail, lane, s, ATTENTION_TILE, t0, t1, acc + c + lane,
                    stride, NULL);
}

static void key_any(size_t nq, const struct tile_work *w, size_t columns, const float *q,
                    size_t q_stride, float *scores, int fetch)
{
    FOR_FEW(nq, key_queries, w, columns, q, q_stride, scores, fetch)
}

static void value_any(size_t nq, const struct tile_work *w, const float *s, size_t t0, size_t t1,
                      float *acc, size_t stride, int fetch)
{
    FOR_FEW(nq, value_queries, w, s, t0, t1, acc, stride, fetch)
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

// Where K of each 16 tokens and V of each token lies. Of K [tokens][head_dim] a turned copy is
// made.
static void tile_open(struct tile_work *w, uint16_t *turned)
{
    const struct attention_tile *tile = w->tile;
    const size_t dim = tile->head_dim, n = tile->tokens;
    const size_t part = tile->part_tokens ? tile->part_tokens : ATTENTION_TILE;
    uint64_t chosen = tile->chosen ? tile->chosen : ~0ull >> (ATTENTION_TILE - n);
    w->key.key_stride = part;
    const uint16_t *some = NULL; // stands for parts that are not there: what it gives is not used
    for (size_t i = 0; i < n; i += KERNEL_LANES) {
        int there = (chosen >> i & 0xffff) != 0;
        w->there |= (uint32_t)there << i / KERNEL_LANES;
        w->key.key[i / KERNEL_LANES] = there ? tile->k[i / part] + i % part : NULL;
        some = there ? w->key.key[i / KERNEL_LANES] : some;
    }
    for (size_t i = 0; i < ATTENTION_PARTS; i++)
        if (!(w->there >> i & 1))
            w->key.key[i] = some;
    if (!tile->part_tokens) {
        kernel_transpose16(turned, ATTENTION_TILE, tile->k[0], dim, n, dim);
        for (size_t i = 0; i < ATTENTION_PARTS; i++)
            w->key.key[i] = turned + i * KERNEL_LANES;
    }
    size_t count = 0;
    for (size_t t = 0; t < n; t++)
        if (chosen >> t & 1)
            w->value.value[count++] = tile->v[t / part] + t % part * dim;
}

// The last channels of V as rows of their own, so that vectors do not reach beyond its end.
static void tile_tails(struct tile_work *w, size_t tokens)
{
    const size_t dim = w->tile->head_dim, c = dim / VN * VN;
    for (size_t t = 0; t < tokens && c < dim; t++) {
        uint16_t *tail = w->tails + t * KERNEL_LANES;
        memset(tail, 0, KERNEL_LANES * sizeof *tail);
        memcpy(tail, w->value.value[t] + c, (dim - c) * sizeof *tail);
        w->tail.value[t] = tail;
    }
}

// K and V as fp32, each number once.
static void tile_panels(struct tile_work *w, size_t tokens)
{
    const size_t dim = w->tile->head_dim;
    for (size_t i = 0; i < ATTENTION_PARTS; i++) {
        float *out = w->key_panel + i * dim * KERNEL_LANES;
        const uint16_t *in = w->key.key[i];
        if (w->there >> i & 1)
            for (size_t c = 0; c < dim; c++, in += w->key.key_stride, out += KERNEL_LANES)
                for (size_t p = 0; p < PARTS; p++)
                    vn_store(out + p * VN, vn_f16(in + p * VN));
    }
    for (size_t t = 0; t < tokens; t++)
        expand_row(TENSOR_F16, (const uint8_t *)w->value.value[t], dim,
                   w->value_panel + t * KERNEL_LANES, ATTENTION_TILE * KERNEL_LANES);
    w->key.panel = w->key_panel;
    w->key.panel_rows = dim;
    w->value.panel = w->value_panel;
    w->value.panel_rows = ATTENTION_TILE;
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
        struct partial *p = partial_at(to, i, dim);
        float *s = w->scores + i * ATTENTION_TILE;
        partial_clear(p);
        if (tile->chosen)
            pack_scores(s, tile->chosen);
        if (seen[i])
            tile_softmax(s, first ? first[i] : 0, seen[i], tile, p);
    }
    (many ? many_values : few_values)(w, n, seen, partial_at(to, 0, dim)->acc, stride);
    for (size_t i = 0; fold && i < n; i += MERGE_QUERIES)
        merge_partials(partial_at(out, i, dim), partial_at(to, i, dim),
                       n - i < MERGE_QUERIES ? n - i : MERGE_QUERIES, dim);
}

static void set_attention_tile(const struct attention_tile *tile, const float *q, size_t q_stride,
                               size_t n_q, const uint32_t *limit, float *out, int fold,
                               void *scratch)
{
    const size_t dim = tile->head_dim, stride = partial_stride(dim);
    const size_t panel = ATTENTION_TILE * ((dim + KERNEL_LANES - 1) / KERNEL_LANES * KERNEL_LANES);
    const int many = n_q >= MANY_QUERIES;
    size_t tokens = tile->chosen ? (size_t)__builtin_popcountll(tile->chosen) : tile->tokens;
    struct tile_work w = {.tile = tile, .fetch = n_q > 1 && !tile->chosen && !many};
    _Static_assert(2 * ATTENTION_TILE * KERNEL_HEAD_DIM_MAX +  // panels
                           ATTENTION_TILE * KERNEL_LANES / 2 + // tails
                           2 * PANEL_QUERIES * (ATTENTION_TILE + 16 + KERNEL_HEAD_DIM_MAX) <=
                       KERNEL_SCRATCH_BYTES / sizeof(float),
                   "scratch holds a tile and some queries");
    w.key_panel = scratch;
    w.value_panel = w.key_panel + panel;
    w.tails = (uint16_t *)(w.value_panel + panel);
    w.scores = w.value_panel + panel + ATTENTION_TILE * KERNEL_LANES / 2;
    size_t room = KERNEL_SCRATCH_BYTES / sizeof(float) - (size_t)(w.scores - w.key_panel);
    w.block = room / (ATTENTION_TILE + stride) / PANEL_QUERIES * PANEL_QUERIES;
    w.block = w.block < QUERY_BLOCK ? w.block : QUERY_BLOCK;
    w.partials = w.scores + w.block * ATTENTION_TILE;
    // The copy is gone before V goes to its panel.
    tile_open(&w, (uint16_t *)(many ? w.value_panel : w.key_panel));
    (many ? tile_panels : tile_tails)(&w, tokens);
    for (size_t i = 0; i < n_q; i += w.block)
        tile_queries(&w, many, n_q - i < w.block ? n_q - i : w.block, tokens, q + i * q_stride,
                     q_stride, limit ? limit + i : NULL, tile->first ? tile->first + i : NULL,
                     (float *)partial_at(out, i, dim), fold);
}
