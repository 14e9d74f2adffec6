// SPDX-License-Identifier: Apache-2.0
#include "drive/ftl/clusters.h"
#include "base/checked.h"
#include "base/le.h"

#include <math.h>
#include <string.h>

enum {
    BLOCK_LEAST = 64,      // tokens of the smallest block: half as many as are looked at, or the
    BLOCK_MOST = 4096,     // power of two below, but from this to this
    BLOCK_TOKENS = 262144, // of the largest
    BLOCK_DIGITS = 8,  // others are as many of the smallest as three binary digits and zeros say
    CLUSTER_KEYS = 64, // of a cluster, on average: half as many in a block of some keys, and a
    SOME_KEYS = 32768, // quarter in one of few
    FEW_KEYS = 8192,
    COARSE_MOST = 128,  // coarse clusters of a block
    SAMPLE_COARSE = 64, // keys for each coarse cluster, and for each fine one, that its centre is
    SAMPLE_FINE = 32,   // found from
    ROUNDS = 4,         // of finding centres
    SLICE = KERNEL_LANES,
};
#define MEAN_MOST 65504.0f // of fp16

// ---- sizes -------------------------------------------------------------------------------------

static uint64_t base_pieces(const struct index_shape *shape)
{
    uint64_t tokens = BLOCK_MOST;
    while (tokens > BLOCK_LEAST && tokens > shape->look / 2)
        tokens /= 2;
    return tokens / shape->piece;
}

static uint64_t largest_pieces(const struct index_shape *shape)
{
    return BLOCK_TOKENS / shape->piece;
}

// Pieces of the block that begins with piece `first`; 0: there is none. Most keys lie in the first
// one or two, and it is only when a sequence has grown by a part that these are made again.
static uint64_t block_at(const struct index_shape *shape, uint64_t first, uint64_t pieces)
{
    uint64_t size = min_u64(pieces - first, largest_pieces(shape)) / base_pieces(shape), zeros = 0;
    for (; size >= BLOCK_DIGITS; zeros++)
        size /= 2;
    return (size << zeros) * base_pieces(shape);
}

// Keys of a cluster on average. The fewer a block has the less alike are as many of them.
static uint32_t cluster_keys(uint64_t keys)
{
    return keys <= FEW_KEYS ? 16 : keys <= SOME_KEYS ? 32 : CLUSTER_KEYS;
}

// Coarse clusters of n keys: about twice the root of the number of fine ones.
static uint32_t coarse_of(uint64_t n)
{
    uint32_t coarse = 1;
    while (coarse < COARSE_MOST && (uint64_t)coarse * coarse * cluster_keys(n) <= n)
        coarse *= 2;
    return coarse;
}

// Fine clusters of n keys in so many coarse ones: as they are divided, and large ones in several.
static uint64_t fine_of(uint64_t n, uint64_t coarse, uint32_t each)
{
    return n / each + n / CLUSTER_KEYS_MOST + coarse;
}

uint64_t clusters_coarse_most(const struct index_shape *shape, uint64_t pieces)
{
    // Blocks that are not of the largest kind have half as many, a quarter, and so on.
    return (pieces / largest_pieces(shape) + 2) * COARSE_MOST;
}

uint64_t clusters_fine_most(const struct index_shape *shape, uint64_t pieces)
{
    const uint64_t keys = pieces * shape->keys, coarse = clusters_coarse_most(shape, pieces);
    // Where a piece has few keys the largest blocks have small clusters, too. Smaller blocks behind
    // them are no more than a small one and its quarter, and so on.
    const uint32_t each = cluster_keys(largest_pieces(shape) * shape->keys);
    return fine_of(keys, coarse, each) + min_u64(keys, 2 * SOME_KEYS) / 16;
}

bool clusters_least(const struct index_shape *shape, uint64_t pieces)
{
    return pieces >= base_pieces(shape);
}

uint64_t clusters_slice_bytes(const struct index_shape *shape)
{
    return MASS_HEADER + SLICE * (1ull + index_key_bytes(shape));
}

static bool counted(const struct index_shape *shape)
{
    return shape->keys != shape->piece;
}

// A head's arrays in its memory, one behind the other; NULL: only how long that is.
static uint64_t carve(const struct index_shape *shape, struct clusters_head *h, uint64_t keys,
                      uint8_t *memory)
{
    uint64_t at = 0, clusters = (uint64_t)h->coarse + h->fine;
#define CARVE(field, number) h->field = budget_carve(memory, &at, (number) * sizeof *h->field)
    CARVE(mean, clusters * shape->head_dim);
    CARVE(spread, clusters);
    CARVE(fine_first, h->coarse + 1ull);
    CARVE(keys, h->coarse);
    CARVE(key_first, h->fine + 1ull);
    CARVE(slices, div_round_up(keys, SLICE) * clusters_slice_bytes(shape));
    CARVE(piece, keys);
    CARVE(count, counted(shape) ? keys : 0);
#undef CARVE
    if (!counted(shape))
        h->count = NULL;
    return at;
}

// As many clusters as there can be, and the bytes that they take.
static uint64_t size_head(const struct index_shape *shape, struct clusters_head *h, uint64_t keys)
{
    h->coarse = coarse_of(keys);
    h->fine = (uint32_t)fine_of(keys, h->coarse, cluster_keys(keys));
    return carve(shape, h, keys, NULL);
}

enum { OVERHEAD = 4096 + 64 }; // of an allocation

uint64_t clusters_bytes(const struct space_config *c, uint64_t tokens)
{
    const struct index_shape shape = index_shape(c);
    const uint64_t pieces = tokens / shape.piece, base = base_pieces(&shape);
    const uint64_t blocks = pieces / largest_pieces(&shape) + 8;
    struct clusters_head h = {.coarse = (uint32_t)clusters_coarse_most(&shape, pieces),
                              .fine = (uint32_t)clusters_fine_most(&shape, pieces)};
    if (pieces < base)
        return 0;
    return sizeof(struct clusters) + blocks * (sizeof(void *) + sizeof(struct clusters_block)) +
           c->kv_heads * (carve(&shape, &h, pieces * shape.keys, NULL) +
                          blocks * (sizeof h + OVERHEAD + 8 * 64));
}

// What one head's keys take while they are put together. A key is what summaries have: the mean of
// its piece, and codes of the rest, times a size. It is compared by its signs: what they are of is
// the key less the mean of those among which it is compared, since what all of these share tells
// nothing. Their codes are of `row` bytes.
struct work {
    struct index_shape shape, signs;
    uint64_t keys;
    uint32_t dim, middle_dim;
    float *middle;    // [pieces][middle_dim]: means of pieces
    size_t rest_row;  // bytes of
    uint8_t *rest;    // [keys][rest_row], codes of the rest,
    float *size;      // [keys], which are multiplied with this
    float *square;    // [keys]: mean square of a channel of a key
    size_t row, rows; // of a centre's table, see mass_rows
    uint8_t *code;    // [keys][row], signs
    uint8_t *packed;  // of some keys, as nearest_means takes them
    uint16_t *which;  // the centre that each of these is nearest to
    uint32_t *pick;   // which keys these are
    uint32_t *sorted; // the same, or their places, by centre
    uint32_t *order;  // [keys]: all, in the order of clusters
    int8_t *tables;   // of centres
    float *step, *length;
    uint32_t *first; // [centres + 1]: where those of a centre begin
    float *sum;      // [dim]
    float *base;     // [dim]: what signs are taken about
    float *key;      // [middle_dim]
};

static uint64_t carve_work(const struct index_shape *shape, struct work *w, uint64_t keys,
                           uint8_t *memory)
{
    const uint64_t centres = keys / cluster_keys(keys) + COARSE_MOST,
                   padded = div_round_up(keys, SLICE) * SLICE;
    uint64_t at = 0;
    w->keys = keys;
    w->shape = *shape;
    w->dim = shape->head_dim;
    w->middle_dim = index_middle_dim(shape);
    w->signs = *shape;
    w->signs.key_bits = 1;
    w->rest_row = index_key_bytes(shape);
    w->row = index_key_bytes(&w->signs);
    w->rows = mass_rows(w->row);
#define CARVE(field, number) w->field = budget_carve(memory, &at, (number) * sizeof *w->field)
    CARVE(middle, keys / shape->keys * w->middle_dim);
    CARVE(rest, keys * w->rest_row);
    CARVE(size, keys);
    CARVE(square, keys);
    CARVE(code, keys * w->row);
    CARVE(packed, padded * w->rows / 2);
    CARVE(which, padded);
    CARVE(pick, keys);
    CARVE(sorted, keys);
    CARVE(order, keys);
    CARVE(tables, centres * w->rows * 16);
    CARVE(step, centres);
    CARVE(length, centres);
    CARVE(first, centres + 1);
    CARVE(sum, shape->head_dim);
    CARVE(base, shape->head_dim);
    CARVE(key, w->middle_dim);
#undef CARVE
    return at;
}

uint64_t clusters_change_bytes(const struct space_config *c)
{
    return clusters_bytes(c, min_u64(c->max_tokens, BLOCK_TOKENS));
}

size_t clusters_scratch(const struct space_config *c)
{
    const struct index_shape shape = index_shape(c);
    const uint64_t keys = block_at(&shape, 0, c->max_tokens / shape.piece) * shape.keys;
    struct work w;
    uint64_t bytes = carve_work(&shape, &w, keys, NULL);
    // A smaller block may have more centres.
    bytes = max_u64(bytes, carve_work(&shape, &w, min_u64(keys, SOME_KEYS), NULL));
    return max_u64(bytes, carve_work(&shape, &w, min_u64(keys, FEW_KEYS), NULL));
}

// ---- finding clusters --------------------------------------------------------------------------

static void take_summary(struct work *w, uint64_t piece, const uint8_t *summary)
{
    const struct index_shape *shape = &w->shape;
    const uint8_t *factors = summary + MASS_HEADER;
    const uint8_t *codes = factors + shape->keys * (counted(shape) ? 2u : 1u);
    const struct weight row = {.data = summary + index_middle_at(shape),
                               .rows = 1,
                               .cols = w->middle_dim,
                               .row_bytes = shape->middle,
                               .type = TENSOR_Q4_0};
    float scale = kernel_f16_to_f32(le_get16(summary)) * (1.0f / 255);
    scale = isfinite(scale) ? scale : 0;
    kernels_best()->weight_row(&row, 0, w->middle + piece * w->middle_dim);
    for (uint32_t i = 0; i < shape->keys; i++) {
        const uint64_t key = piece * shape->keys + i;
        w->size[key] = scale * (float)factors[i];
        for (size_t j = 0; j < w->rest_row; j++)
            w->rest[key * w->rest_row + j] = codes[j * shape->keys + i];
    }
}

static void take_keys(const struct space *space, const struct map *held,
                      const struct clusters_block *block, uint32_t head, struct work *w)
{
    const uint64_t bytes = index_bytes(&w->shape);
    for (uint64_t p = 0; p < block->pieces;) {
        struct index_run run = index_held(space, held, block->first + p, head);
        for (run.n = min_u64(run.n, block->pieces - p); run.n; run.n--, p++, run.summary += bytes)
            take_summary(w, p, run.summary);
    }
}

static const float *middle_of(const struct work *w, uint32_t key)
{
    return w->middle + key / w->shape.keys * (uint64_t)w->middle_dim;
}

// w->key = a key.
static void rebuild(struct work *w, uint32_t key)
{
    const uint8_t *codes = w->rest + key * w->rest_row;
    memcpy(w->key, middle_of(w, key), w->dim * sizeof *w->key);
    kernels_best()->code_axpy(&codes, 1, w->shape.key_bits, w->dim, &w->size[key], 1, 1, w->key,
                              w->dim);
}

// w->sum = the mean of n keys. Several of a piece often lie side by side.
static void mean_of(struct work *w, const uint32_t *keys, uint64_t n)
{
    enum { AT_A_TIME = 64 };
    const struct kernels *kernels = kernels_best();
    const uint8_t *codes[AT_A_TIME];
    float size[AT_A_TIME];
    memset(w->sum, 0, w->dim * sizeof *w->sum);
    for (uint64_t i = 0, same; i < n; i += same) {
        const float *middle = middle_of(w, keys[i]);
        for (same = 1; i + same < n && middle_of(w, keys[i + same]) == middle;)
            same++;
        kernels->axpy(w->sum, (float)same, middle, w->dim);
    }
    for (uint64_t some, done = 0; done < n; done += some) {
        some = min_u64(n - done, AT_A_TIME);
        for (uint64_t i = 0; i < some; i++) {
            codes[i] = w->rest + keys[done + i] * w->rest_row;
            size[i] = w->size[keys[done + i]];
        }
        kernels->code_axpy(codes, some, w->shape.key_bits, w->dim, size, AT_A_TIME, 1, w->sum,
                           w->dim);
    }
    kernels->scale(w->sum, 1 / (float)n, w->dim);
}

// Signs of n keys less w->base.
static void take_signs(struct work *w, const uint32_t *keys, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++) {
        uint8_t *code = w->code + keys[i] * w->row;
        rebuild(w, keys[i]);
        for (uint32_t d = 0; d < w->dim; d += 8) {
            uint8_t byte = 0;
            for (uint32_t bit = 0; bit < 8 && d + bit < w->dim; bit++)
                byte |= (uint8_t)((w->key[d + bit] > w->base[d + bit]) << bit);
            code[d / 8] = byte;
        }
    }
}

// Codes of n keys, 16 side by side.
static void pack(struct work *w, const uint32_t *keys, uint64_t n)
{
    uint8_t *out = w->packed;
    memset(out, 0, div_round_up(n, SLICE) * SLICE * w->rows / 2);
    for (uint64_t i = 0; i < n; i++) {
        const uint8_t *code = w->code + keys[i] * w->row;
        for (size_t j = 0; j < w->row; j++)
            out[j * SLICE + i % SLICE] = code[j];
        if (i % SLICE == SLICE - 1)
            out += SLICE * w->rows / 2;
    }
}

// Which of the centres each of the n packed keys is nearest to; order[] = their places by centre,
// first[c] is where those of centre c begin.
static void assign(struct work *w, uint64_t n, uint32_t centres, uint32_t *order)
{
    _Alignas(64) uint8_t scratch[MASS_SCRATCH];
    uint32_t *first = w->first;
    kernels_best()->nearest_means(w->packed, div_round_up(n, SLICE), w->row, w->tables, w->step,
                                  w->length, centres, w->which, scratch);
    memset(first, 0, (centres + 1ull) * sizeof *first);
    for (uint64_t i = 0; i < n; i++)
        first[w->which[i] + 1]++;
    for (uint32_t c = 0; c < centres; c++)
        first[c + 1] += first[c];
    for (uint64_t i = 0; i < n; i++)
        order[first[w->which[i]]++] = (uint32_t)i;
    memmove(first + 1, first, centres * sizeof *first);
    first[0] = 0;
}

// sum[dim] = the signs of keys pick[at[n]].
static void add_signs(const struct work *w, const uint32_t *at, uint64_t n)
{
    enum { AT_A_TIME = 64 };
    const uint8_t *codes[AT_A_TIME];
    float weight[AT_A_TIME];
    memset(w->sum, 0, w->dim * sizeof *w->sum);
    for (uint64_t some, done = 0; done < n; done += some) {
        some = min_u64(n - done, AT_A_TIME);
        for (uint64_t i = 0; i < some; i++) {
            codes[i] = w->code + w->pick[at[done + i]] * w->row;
            weight[i] = 1;
        }
        kernels_best()->code_axpy(codes, some, 1, w->dim, weight, AT_A_TIME, 1, w->sum, w->dim);
    }
}

// The mean of n signs becomes a centre.
static void set_centre(struct work *w, uint32_t c, const uint32_t *at, uint64_t n)
{
    const struct kernels *kernels = kernels_best();
    add_signs(w, at, n);
    kernels->scale(w->sum, 1 / (float)n, w->dim);
    w->step[c] = index_table(&w->signs, w->tables + c * w->rows * 16, w->sum);
    w->length[c] = kernels->dot(w->sum, w->sum, w->dim);
}

// Centres of n keys, found from a sample of them: k-means from ones that are spaced evenly, but for
// some disorder.
static void find_centres(struct work *w, const uint32_t *keys, uint64_t n, uint32_t centres,
                         uint64_t sample)
{
    sample = min_u64(sample, n);
    for (uint64_t i = 0; i < sample; i++) {
        const uint32_t odd = (uint32_t)i * 0x9e3779b1u; // texts have rhythms, too
        const uint64_t at = i * n / sample + (odd >> 16) % (n / sample);
        w->pick[i] = keys ? keys[at] : (uint32_t)at;
    }
    for (uint32_t c = 0; c < centres; c++) {
        const uint32_t seed = (uint32_t)((2ull * c + 1) * sample / (2ull * centres));
        set_centre(w, c, &seed, 1);
    }
    pack(w, w->pick, sample);
    for (int round = 0; centres > 1 && round < ROUNDS; round++) {
        assign(w, sample, centres, w->sorted);
        for (uint32_t c = 0; c < centres; c++)
            if (w->first[c] < w->first[c + 1]) // else it stays as it is
                set_centre(w, c, w->sorted + w->first[c], w->first[c + 1] - w->first[c]);
    }
}

// Puts the keys of a coarse cluster, n from `keys` on, in the order of its fine ones, and writes
// where these end, counted from `at` on. Returns how many there are. w->base: its mean.
static uint32_t divide(struct work *w, uint32_t *keys, uint64_t n, uint32_t at, uint32_t *ends)
{
    const uint32_t each = cluster_keys(w->keys);
    const uint32_t centres = (uint32_t)max_u64(1, (n + each / 2) / each);
    uint32_t found = 0;
    if (!n)
        return 0;
    take_signs(w, keys, n);
    find_centres(w, keys, n, centres, (uint64_t)centres * SAMPLE_FINE);
    pack(w, keys, n);
    assign(w, n, centres, w->sorted);
    for (uint64_t i = 0; i < n; i++)
        w->pick[i] = keys[w->sorted[i]];
    memcpy(keys, w->pick, n * sizeof *keys);
    for (uint32_t c = 0; c < centres; c++) // large ones in several
        for (uint32_t key = w->first[c]; key < w->first[c + 1];) {
            key += (uint32_t)min_u64(w->first[c + 1] - key, CLUSTER_KEYS_MOST);
            ends[found++] = at + key;
        }
    return found;
}

// ---- writing them down -------------------------------------------------------------------------

// Leaves the mean in w->sum.
static void put_mean(struct work *w, uint64_t first, uint64_t end, uint16_t *mean, float *spread)
{
    const struct kernels *kernels = kernels_best();
    const uint32_t dim = w->dim;
    double squares = 0;
    if (first == end) {
        memset(mean, 0, dim * sizeof *mean);
        *spread = 0;
        return;
    }
    mean_of(w, w->order + first, end - first);
    for (uint64_t i = first; i < end; i++)
        squares += (double)w->square[w->order[i]];
    squares /= (double)(end - first);
    squares -= (double)(kernels->dot(w->sum, w->sum, dim) / (float)dim);
    *spread = squares > 0 ? (float)sqrt(squares) : 0;
    for (uint32_t d = 0; d < dim; d++)
        w->key[d] = fminf(fmaxf(w->sum[d], -MEAN_MOST), MEAN_MOST);
    kernels->f32_to_f16(mean, w->key, dim);
}

static void put_slices(const struct index_shape *shape, const struct work *w, uint8_t *slices)
{
    for (uint64_t first = 0; first < w->keys; first += SLICE) {
        const uint64_t n = min_u64(w->keys - first, SLICE);
        uint8_t *factors = slices + MASS_HEADER, *codes = factors + SLICE;
        float most = 0;
        for (uint64_t i = 0; i < n; i++)
            most = fmaxf(most, w->size[w->order[first + i]]);
        const uint16_t scale = kernel_f32_to_f16(most);
        const float step = kernel_f16_to_f32(scale) * (1.0f / 255);
        memset(slices, 0, clusters_slice_bytes(shape));
        le_put16(slices, scale);
        for (uint64_t i = 0; i < n; i++) { // piece_scores has lane i of key `at`
            const uint64_t key = w->order[first + i], at = i < SLICE / 2 ? 2 * i : 2 * i - 15;
            const uint8_t *code = w->rest + key * w->rest_row;
            const float factor = step > 0 ? w->size[key] / step + 0.5f : 0;
            factors[at] = factor >= 255 ? 255 : (uint8_t)factor;
            for (size_t j = 0; j < w->rest_row; j++)
                codes[j * SLICE + at] = code[j];
        }
        slices += clusters_slice_bytes(shape);
    }
}

// The counts of a piece's keys stand behind their factors.
static void put_pieces(const struct space *space, const struct map *held, uint64_t first,
                       uint32_t head, const struct index_shape *shape, const struct work *w,
                       struct clusters_head *h)
{
    for (uint64_t i = 0; i < w->keys; i++) {
        const uint64_t piece = w->order[i] / shape->keys;
        h->piece[i] = (uint16_t)piece;
        if (h->count)
            h->count[i] = index_held(space, held, first + piece, head)
                              .summary[MASS_HEADER + shape->keys + w->order[i] % shape->keys];
    }
}

void clusters_make(const struct space *space, const struct map *held,
                   const struct clusters_block *block, struct clusters_head *h, uint32_t head,
                   uint8_t *memory)
{
    const struct index_shape shape = index_shape(&space->config);
    const uint32_t dim = shape.head_dim, coarse = h->coarse;
    uint32_t ends[COARSE_MOST];
    struct work w;
    carve_work(&shape, &w, block->pieces * shape.keys, memory);
    take_keys(space, held, block, head, &w);
    for (uint64_t i = 0; i < w.keys; i++) {
        w.pick[i] = w.order[i] = (uint32_t)i;
        rebuild(&w, (uint32_t)i);
        w.square[i] = kernels_best()->dot(w.key, w.key, dim) / (float)dim;
    }
    mean_of(&w, w.order, w.keys);
    memcpy(w.base, w.sum, dim * sizeof *w.base);
    take_signs(&w, w.order, w.keys);
    find_centres(&w, NULL, w.keys, coarse, (uint64_t)coarse * SAMPLE_COARSE);
    for (uint64_t i = 0; i < w.keys; i++)
        w.pick[i] = (uint32_t)i;
    pack(&w, w.pick, w.keys);
    assign(&w, w.keys, coarse, w.order);
    memcpy(ends, w.first + 1, coarse * sizeof *ends);
    h->fine_first[0] = h->key_first[0] = 0;
    for (uint32_t c = 0, at = 0; c < coarse; at = ends[c++]) {
        put_mean(&w, at, ends[c], h->mean + (uint64_t)c * dim, h->spread + c);
        memcpy(w.base, w.sum, dim * sizeof *w.base);
        h->keys[c] = ends[c] - at;
        h->fine_first[c + 1] = h->fine_first[c] + divide(&w, w.order + at, ends[c] - at, at,
                                                         h->key_first + 1 + h->fine_first[c]);
    }
    h->fine = h->fine_first[coarse];
    for (uint32_t f = 0; f < h->fine; f++)
        put_mean(&w, h->key_first[f], h->key_first[f + 1], h->mean + (uint64_t)(coarse + f) * dim,
                 h->spread + coarse + f);
    put_slices(&shape, &w, h->slices);
    put_pieces(space, held, block->first, head, &shape, &w, h);
}

// ---- blocks ------------------------------------------------------------------------------------

static void block_let_go(struct space *space, struct clusters_block *block)
{
    if (!block || --block->references)
        return;
    for (uint32_t head = 0; head < space->config.kv_heads; head++)
        budget_free(space->budget, block->head[head].mean);
    budget_free(space->budget, block);
}

// A block without clusters as yet.
static struct clusters_block *new_block(struct space *space, uint64_t first, uint64_t pieces,
                                        struct inst_msg *msg)
{
    const struct index_shape shape = index_shape(&space->config);
    const uint64_t keys = pieces * shape.keys;
    const uint32_t heads = space->config.kv_heads;
    struct clusters_block *block = budget_alloc(
        space->budget, 1, sizeof *block + heads * sizeof *block->head, "clusters", msg);
    if (!block)
        return NULL;
    block->references = 1;
    block->first = first;
    block->pieces = pieces;
    for (uint32_t i = 0; i < heads; i++) {
        struct clusters_head *h = &block->head[i];
        const uint64_t bytes = size_head(&shape, h, keys);
        uint8_t *memory = budget_alloc(space->budget, 1, bytes, "clusters of keys", msg);
        if (!memory) {
            block_let_go(space, block);
            return NULL;
        }
        carve(&shape, h, keys, memory);
        block->bytes += bytes;
    }
    return block;
}

// One of the latest, as far as that is still of this layer.
static struct clusters_block *known(const struct clusters_layer *layer, uint64_t first,
                                    uint64_t pieces)
{
    for (uint32_t i = 0; layer->latest && i < layer->latest->n; i++) {
        struct clusters_block *block = layer->latest->block[i];
        if (block->first == first && block->pieces == pieces && first + pieces <= layer->valid)
            return block;
    }
    return NULL;
}

int clusters_hold(struct space *space, struct clusters_layer *layer, uint64_t pieces,
                  struct clusters **out, struct inst_msg *msg)
{
    const struct index_shape shape = index_shape(&space->config);
    uint64_t n = 0, covered = pieces / base_pieces(&shape) * base_pieces(&shape);
    if (layer->latest && layer->latest->pieces == covered && covered <= layer->valid) {
        layer->latest->references++;
        *out = layer->latest;
        return 0;
    }
    for (uint64_t first = 0; first < covered; first += block_at(&shape, first, pieces))
        n++;
    struct clusters *made = budget_alloc(
        space->budget, 1, sizeof *made + n * sizeof(struct clusters_block *), "clusters", msg);
    if (!made)
        return INST_ENOMEM;
    made->references = 1;
    for (uint64_t size, first = 0; first < covered; first += size) {
        size = block_at(&shape, first, pieces);
        struct clusters_block *block = known(layer, first, size);
        if (block)
            block->references++;
        made->block[made->n++] = block;
    }
    clusters_close(space, layer); // what is left out goes before there is more
    for (uint64_t size, first = 0, i = 0; i < n; first += size, i++) {
        size = block_at(&shape, first, pieces);
        if (!made->block[i])
            made->block[i] = new_block(space, first, size, msg);
        if (!made->block[i]) {
            clusters_let_go(space, made);
            return INST_ENOMEM;
        }
    }
    made->pieces = covered;
    layer->latest = made;
    layer->valid = UINT64_MAX;
    made->references++;
    *out = made;
    return 0;
}

void clusters_let_go(struct space *space, struct clusters *clusters)
{
    if (!clusters || --clusters->references)
        return;
    for (uint32_t i = 0; i < clusters->n; i++)
        block_let_go(space, clusters->block[i]);
    budget_free(space->budget, clusters);
}

void clusters_truncate(struct clusters_layer *layer, uint64_t pieces)
{
    layer->valid = min_u64(layer->valid, pieces);
}

void clusters_fork(const struct clusters_layer *from, struct clusters_layer *to, uint64_t pieces)
{
    *to = *from;
    to->valid = min_u64(to->valid, pieces);
    if (to->latest)
        to->latest->references++;
}

void clusters_close(struct space *space, struct clusters_layer *layer)
{
    clusters_let_go(space, layer->latest);
    layer->latest = NULL;
}

uint64_t clusters_used(const struct clusters_layer *layer)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; layer->latest && i < layer->latest->n; i++)
        bytes += layer->latest->block[i]->bytes;
    return bytes;
}
