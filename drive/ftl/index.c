// SPDX-License-Identifier: Apache-2.0
#include "drive/ftl/index.h"
#include "base/checked.h"
#include "base/le.h"
#include "drive/ftl/clusters.h"
#include "drive/ftl/index_rows.h"

#include <math.h>
#include <string.h>

enum {
    LEAF_BYTES = 4096,
    ROUNDS = 2,
    RUN_BYTES = 2048,       // of a head's summaries lie side by side: who chooses reads all of them
    BLOCK_BYTES = 32 << 10, // of all heads' together at most: each sequence has one to fill
};

#define MIDDLE_MOST 500000.0f // of a channel: an eighth of it is a fp16 number

// Of a space.
struct index {
    struct space *space;
    uint32_t piece;
    struct index_maker maker;
    uint64_t bytes;       // of a summary
    uint32_t block;       // pieces whose summaries lie in an entry
    struct map_kind kind; // entries: [kv_heads][block] summaries
};

// Of a layer of a sequence.
struct index_layer {
    struct map entries; // with room beyond the last complete piece
    struct clusters_layer clusters;
};

static struct index *index_of(const struct space *space)
{
    return space->derived[STREAM_INDEX];
}

static struct index_layer *state_of(const struct layer_state *layer)
{
    return layer->derived[STREAM_INDEX];
}

struct clusters_layer *index_clusters(const struct layer_state *layer)
{
    return &state_of(layer)->clusters;
}

uint32_t index_piece(const struct space_config *config)
{
    if (config->piece_tokens)
        return config->piece_tokens;
    // The least of which K and V are whole pages, or, where there are none, the least that fill
    // one.
    uint64_t tokens = INDEX_PIECE_MIN, head = kv_token_bytes(config->kv_type, config->head_dim);
    while (tokens <= INDEX_PIECE_MAX && tokens * head % INDEX_PAGE)
        tokens *= 2;
    if (tokens > INDEX_PIECE_MAX)
        for (tokens = INDEX_PIECE_MIN; tokens < INDEX_PIECE_MAX && tokens * head < INDEX_PAGE;)
            tokens *= 2;
    bool fits = !config->group_tokens || tokens <= config->group_tokens;
    return (uint32_t)(fits ? tokens : config->group_tokens);
}

struct index_shape index_shape(const struct space_config *config)
{
    uint32_t piece = index_piece(config);
    const uint32_t blocks = (config->head_dim + INDEX_MIDDLE_BLOCK - 1) / INDEX_MIDDLE_BLOCK;
    return (struct index_shape){
        .piece = piece,
        .keys = config->piece_keys ? config->piece_keys : piece,
        .head_dim = config->head_dim,
        .key_bits = config->piece_bits                          ? config->piece_bits
                    : config->piece_look || config->piece_flash ? 1
                                                                : 2,
        .value_bits = config->piece_flash       ? 0
                      : piece > INDEX_PIECE_MIN ? 2
                                                : 1,
        .look = config->piece_look,
        .middle = blocks * INDEX_MIDDLE_BYTES,
    };
}

static uint64_t value_bytes(const struct index_shape *shape)
{
    return div_round_up((uint64_t)shape->head_dim * shape->value_bits, 8);
}

uint64_t index_bytes(const struct index_shape *shape)
{
    const uint64_t bytes = index_value_at(shape) + value_bytes(shape);
    return (bytes + 1) / 2 * 2 + shape->middle; // at even places
}

int index_hold(const struct space *space, const struct layer_state *layer, uint64_t pieces,
               struct map *held)
{
    if (space->config.piece_flash)
        return index_rows_hold(space, layer, pieces, held);
    struct index *index = index_of(space);
    return map_fork(&index->kind, &state_of(layer)->entries, held,
                    div_round_up(pieces, index->block), NULL);
}

void index_let_go(const struct space *space, struct map *held)
{
    if (space->config.piece_flash) {
        index_rows_let_go(space, held);
        return;
    }
    map_truncate(&index_of(space)->kind, held, 0);
}

struct index_run index_held(const struct space *space, const struct map *held, uint64_t piece,
                            uint32_t head)
{
    const struct index *index = index_of(space);
    const uint64_t at = piece % index->block;
    const uint8_t *entry = map_at(&index->kind, held, piece / index->block);
    return (struct index_run){.summary = entry + (head * index->block + at) * index->bytes,
                              .n = index->block - at};
}

// ---- arithmetic --------------------------------------------------------------------------------

void index_turn(float *x, uint32_t head_dim)
{
    for (uint32_t at = 0, n; at < head_dim; at += n) { // blocks of powers of two
        for (n = 1; n * 2 <= head_dim - at;)
            n *= 2;
        kv_hadamard(x + at, n);
        float scale = 1.0f / sqrtf((float)n);
        for (uint32_t i = at; i < at + n; i++)
            x[i] *= scale;
    }
}

// Channels of q whose codes are half a byte, four of one bit or two of two, from d on.
static void half_byte(const struct index_shape *shape, float c[4], const float *q, uint32_t d)
{
    for (uint32_t i = 0; i < 4; i++)
        c[i] = i < 4 / shape->key_bits && d + i < shape->head_dim ? q[d + i] : 0;
}

// The greatest of what they add, as code_sums has it, to the bit.
static float greatest_sum(const struct index_shape *shape, const float c[4])
{
    const float end = shape->key_bits == 1 ? 1 : 1.5f;
    return (end * fabsf(c[0]) + end * fabsf(c[1])) + (end * fabsf(c[2]) + end * fabsf(c[3]));
}

// What they add with each of these codes.
static void code_sums(const struct index_shape *shape, float sums[16], const float c[4])
{
    const uint32_t bits = shape->key_bits;
    for (uint32_t code = 0; code < 16; code++) {
        if (bits == 1) {
            const float even = (code & 1 ? c[0] : -c[0]) + (code & 2 ? c[1] : -c[1]);
            sums[code] = even + ((code & 4 ? c[2] : -c[2]) + (code & 8 ? c[3] : -c[3]));
        } else {
            sums[code] = ((float)(code & 3) - 1.5f) * c[0] + ((float)(code >> 2) - 1.5f) * c[1];
        }
    }
}

float index_table(const struct index_shape *shape, int8_t *table, const float *q)
{
    const uint32_t each = 4 / shape->key_bits, n = (shape->head_dim + each - 1) / each;
    const size_t half = mass_rows(index_key_bytes(shape)) / 2;
    const float round = 0x1.8p23f; // added, it leaves a whole number to nearest even
    float most = 0, sums[16], c[4];
    for (uint32_t j = 0; j < n; j++) {
        half_byte(shape, c, q, j * each);
        const float sum = greatest_sum(shape, c);
        most = sum > most ? sum : most;
    }
    memset(table, 0, index_table_bytes(shape));
    if (!(most > 0x1p-100f && most < INFINITY))
        return 0; // nothing, or infinite: counts for nothing
    const float entry = MASS_ENTRY / most;
    for (uint32_t j = 0; j < n; j++) {
        int8_t *row = table + (j / 2 + j % 2 * half) * 16;
        half_byte(shape, c, q, j * each);
        code_sums(shape, sums, c);
        for (uint32_t i = 0; i < 16; i++)
            row[i] =
                (int8_t)(fabsf(sums[i]) <= most ? sums[i] * entry + round - round : 0); // no NaN
    }
    return most / MASS_ENTRY * (shape->key_bits == 1 ? 1 : 2);
}

// Rounds x to codes of `bits` bits in steps of `step`. Where x is no number the codes are the
// least.
static void round_to(uint8_t *codes, const float *x, uint32_t n, uint32_t bits, float step)
{
    float levels = (float)(1 << bits);
    uint32_t each = 8 / bits;
    memset(codes, 0, (n + each - 1) / each);
    for (uint32_t i = 0; i < n; i++) {
        float at = step > 0 ? x[i] / step + levels / 2 : levels / 2;
        uint32_t code = at >= levels ? (1u << bits) - 1 : at >= 0 ? (uint32_t)at : 0;
        codes[i / each] |= (uint8_t)(code << i % each * bits);
    }
}

// The size that one bit a channel keeps best.
static float mean_size(const float *x, uint32_t n)
{
    float sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += fabsf(x[i]);
    return sum / (float)n;
}

// The size by which keys are ranked best. With the mean one a product with a query that the key
// points to comes out too small (by 2/pi, channels that are normal); with the mean square over the
// mean one such products come out right, but so does their noise. What lies between was found by
// trying (docs/decisions/0016-pages.md).
static float key_size(const float *x, uint32_t n)
{
    float mean = mean_size(x, n), square = kernels_best()->dot(x, x, n) / (float)n;
    return mean > 0 ? mean + INDEX_SHARPER * (square / mean - mean) : mean;
}

static uint8_t *key_codes(const struct index_shape *shape, uint8_t *summary)
{
    return summary + MASS_HEADER + shape->keys * (shape->keys == shape->piece ? 1 : 2);
}

uint64_t index_value_at(const struct index_shape *shape)
{
    const uint64_t counts = shape->keys == shape->piece ? 0 : shape->keys;
    return MASS_HEADER + counts + shape->keys * (1 + (uint64_t)index_key_bytes(shape));
}

uint64_t index_middle_at(const struct index_shape *shape)
{
    return index_bytes(shape) - shape->middle;
}

uint32_t index_middle_dim(const struct index_shape *shape)
{
    return shape->middle / INDEX_MIDDLE_BYTES * INDEX_MIDDLE_BLOCK;
}

// The key that is nearest to x; ties go to the lower one.
static uint32_t nearest(const struct kernels *kernels, const float *keys, const float *sizes,
                        uint32_t n_keys, const float *x, uint32_t dim, float *distance)
{
    uint32_t best = 0;
    for (uint32_t i = 0; i < n_keys; i++) { // less |x|^2, which is the same for all
        float d = sizes[i] - 2 * kernels->dot(keys + i * dim, x, dim);
        if (i && !(d < *distance))
            continue;
        *distance = d;
        best = i;
    }
    return best;
}

static void mean(float *out, const float *x, uint32_t n, uint32_t dim, const uint8_t *which,
                 uint8_t value)
{
    uint32_t count = 0;
    for (uint32_t t = 0; t < n; t++)
        count += which[t] == value;
    if (!count)
        return; // stays as it is
    memset(out, 0, dim * sizeof *out);
    for (uint32_t t = 0; t < n; t++) {
        for (uint32_t d = 0; which[t] == value && d < dim; d++)
            out[d] += x[t * dim + d];
    }
    for (uint32_t d = 0; d < dim; d++)
        out[d] /= (float)count;
}

// The tokens that lie farthest, first from the mean, then from those found.
static void first_keys(const struct kernels *kernels, float *keys, uint32_t n_keys, const float *x,
                       uint32_t n, uint32_t dim)
{
    float sizes[INDEX_PIECE_MAX], distance;
    uint8_t all[INDEX_PIECE_MAX] = {0};
    mean(keys, x, n, dim, all, 0);
    for (uint32_t found = 0; found < n_keys; found++) {
        uint32_t farthest = 0, known = found ? found : 1;
        float most = -1;
        sizes[known - 1] = kernels->dot(keys + (known - 1) * dim, keys + (known - 1) * dim, dim);
        for (uint32_t t = 0; t < n; t++) {
            nearest(kernels, keys, sizes, known, x + t * dim, dim, &distance);
            distance += kernels->dot(x + t * dim, x + t * dim, dim);
            if (!(distance > most))
                continue;
            most = distance;
            farthest = t;
        }
        memcpy(keys + found * dim, x + farthest * dim, dim * sizeof *keys);
    }
}

// Typical keys of n tokens x, and which one each token is nearest to.
static void find_keys(const struct kernels *kernels, float *keys, uint32_t n_keys, const float *x,
                      uint32_t n, uint32_t dim, uint8_t *which)
{
    float sizes[INDEX_PIECE_MAX], distance;
    first_keys(kernels, keys, n_keys, x, n, dim);
    for (int round = 0; round <= ROUNDS; round++) {
        for (uint32_t i = 0; i < n_keys; i++) {
            if (round)
                mean(keys + i * dim, x, n, dim, which, (uint8_t)i);
            sizes[i] = kernels->dot(keys + i * dim, keys + i * dim, dim);
        }
        for (uint32_t t = 0; t < n && round < ROUNDS; t++)
            which[t] = (uint8_t)nearest(kernels, keys, sizes, n_keys, x + t * dim, dim, &distance);
    }
}

// 32 numbers to a block of TENSOR_Q4_0: the one farthest from 0 has code 0, -8 steps.
static void middle_block(uint8_t *out, const float *x)
{
    float far = 0;
    bool finite = true;
    for (uint32_t i = 0; i < INDEX_MIDDLE_BLOCK; i++) {
        far = fabsf(x[i]) > fabsf(far) ? x[i] : far;
        finite = finite && isfinite(x[i]);
    }
    far = fminf(fmaxf(far, -MIDDLE_MOST), MIDDLE_MOST);
    const uint16_t step = kernel_f32_to_f16(finite ? far / -8 : 0);
    const float size = kernel_f16_to_f32(step);
    le_put16(out, step);
    memset(out + 2, 0, INDEX_MIDDLE_BYTES - 2);
    for (uint32_t i = 0; i < INDEX_MIDDLE_BLOCK; i++) {
        const float at = size != 0 ? x[i] / size + 8.5f : 8;
        const uint32_t code = at >= 15 ? 15 : at >= 0 ? (uint32_t)at : 0;
        out[2 + i % 16] |= (uint8_t)(code << i / 16 * 4);
    }
}

// Rounds the mean of keys, turned, to 4 bits a channel, and takes what it became from all of them:
// what all tokens of a piece have in common would else take up their bits. Where it is no number
// that is nothing.
static void round_middle(const struct index_shape *shape, uint8_t *summary, float *keys)
{
    const struct kernels *kernels = kernels_best();
    const uint32_t n = shape->keys, dim = shape->head_dim, all = index_middle_dim(shape);
    uint8_t *row = summary + index_middle_at(shape);
    float middle[KERNEL_HEAD_DIM_MAX + INDEX_MIDDLE_BLOCK] = {0};
    for (uint32_t i = 0; i < n; i++)
        kernels->axpy(middle, 1.0f / (float)n, keys + i * dim, dim);
    for (uint32_t at = 0; at < all; at += INDEX_MIDDLE_BLOCK, row += INDEX_MIDDLE_BYTES)
        middle_block(row, middle + at);
    const struct weight w = {.data = summary + index_middle_at(shape),
                             .rows = 1,
                             .cols = all,
                             .row_bytes = shape->middle,
                             .type = TENSOR_Q4_0};
    kernels->weight_row(&w, 0, middle);
    for (uint32_t i = 0; i < n; i++)
        kernels->axpy(keys + i * dim, -1, middle, dim);
}

// The step of a key's codes.
static float key_step(const struct index_shape *shape, const float *x)
{
    const uint32_t dim = shape->head_dim;
    return shape->key_bits == 1 ? 2 * key_size(x, dim)
                                : sqrtf(kernels_best()->dot(x, x, dim) / (float)dim);
}

// Rounds turned keys.
static void round_keys(const struct index_shape *shape, uint8_t *summary, float *keys)
{
    float steps[INDEX_PIECE_MAX], most = 0;
    uint8_t *factors = summary + MASS_HEADER, codes[MASS_BYTES];
    uint32_t dim = shape->head_dim;
    for (uint32_t i = 0; i < shape->keys; i++) {
        steps[i] = key_step(shape, keys + i * dim);
        most = steps[i] > most ? steps[i] : most;
        round_to(codes, keys + i * dim, dim, shape->key_bits, steps[i]);
        for (uint32_t j = 0; j < index_key_bytes(shape); j++)
            key_codes(shape, summary)[j * shape->keys + i] = codes[j];
    }
    uint16_t scale = kernel_f32_to_f16(most);
    le_put16(summary, scale);
    most = kernel_f16_to_f32(scale);
    for (uint32_t i = 0; i < shape->keys; i++) {
        float factor = steps[i] / most * 255 + 0.5f;
        factors[i] = factor >= 255 ? 255 : factor >= 0 ? (uint8_t)factor : 0; // 0: of no number too
    }
}

static void round_value(const struct index_shape *shape, uint8_t *summary, float *value)
{
    uint32_t dim = shape->head_dim, bits = shape->value_bits;
    index_turn(value, dim);
    float step = bits == 1 ? 2 * mean_size(value, dim)
                           : sqrtf(kernels_best()->dot(value, value, dim) / (float)dim);
    le_put16(summary + 2, kernel_f32_to_f16(step));
    round_to(summary + index_value_at(shape), value, dim, bits, step);
}

// Rows of head_dim; scratch: as many floats, and as many for keys.
static void summarise(const struct index_shape *shape, uint8_t *summary, const uint16_t *k,
                      const uint16_t *v, float *scratch)
{
    const struct kernels *kernels = kernels_best();
    uint32_t n = shape->piece, dim = shape->head_dim;
    float *x = scratch, *keys = scratch + (size_t)n * dim;
    uint8_t which[INDEX_PIECE_MAX] = {0}, *counts = summary + MASS_HEADER + shape->keys;
    if (shape->value_bits) {
        kernels->f16_to_f32(x, v, (size_t)n * dim);
        mean(keys, x, n, dim, which, 0);
        round_value(shape, summary, keys);
    } else {
        le_put16(summary + 2, 0);
    }
    kernels->f16_to_f32(x, k, (size_t)n * dim);
    if (shape->keys == n) {
        memcpy(keys, x, (size_t)n * dim * sizeof *keys);
    } else {
        find_keys(kernels, keys, shape->keys, x, n, dim, which);
        memset(counts, 0, shape->keys);
        for (uint32_t t = 0; t < n; t++)
            counts[which[t]]++;
    }
    for (uint32_t i = 0; i < shape->keys; i++)
        index_turn(keys + i * dim, dim);
    round_middle(shape, summary, keys);
    round_keys(shape, summary, keys);
}

int index_maker_open(struct index_maker *maker, const struct space *space, struct inst_msg *msg)
{
    const struct space_config *c = &space->config;
    const uint64_t values = (uint64_t)c->piece_tokens * c->head_dim;
    struct budget *budget = space->budget;
    maker->shape = index_shape(c);
    maker->k = budget_alloc(budget, values, sizeof *maker->k, "the index", msg);
    maker->v = budget_alloc(budget, values, sizeof *maker->v, "the index", msg);
    maker->scratch = budget_alloc(budget, 2 * values, sizeof *maker->scratch, "the index", msg);
    return maker->k && maker->v && maker->scratch ? 0 : INST_ENOMEM;
}

void index_maker_close(struct index_maker *maker, const struct space *space)
{
    budget_free(space->budget, maker->k);
    budget_free(space->budget, maker->v);
    budget_free(space->budget, maker->scratch);
}

uint64_t index_maker_bytes(const struct space_config *c)
{
    return (uint64_t)c->piece_tokens * c->head_dim * (2 * sizeof(uint16_t) + 2 * sizeof(float)) +
           3 * (4096 + 64);
}

void index_make(const struct index_maker *maker, const struct space *space,
                const struct layer_state *layer, uint32_t head, uint64_t piece, uint8_t *summary)
{
    const struct stream *kv = &space->streams[STREAM_KV];
    const uint8_t *slot = layer->open->data + head * kv->slot_bytes;
    const uint32_t n = maker->shape.piece;
    slot_get(&kv->slot, slot, piece * n % kv->row_tokens, n, maker->k, maker->v);
    summarise(&maker->shape, summary, maker->k, maker->v, maker->scratch);
}

// ---- the stream --------------------------------------------------------------------------------

// Pieces of an entry, a power of two.
static uint32_t block_of(const struct space_config *c)
{
    const struct index_shape shape = index_shape(c);
    const uint64_t each = index_bytes(&shape);
    uint32_t block = 1;
    while (block * each < RUN_BYTES && 2 * block * each * c->kv_heads <= BLOCK_BYTES)
        block *= 2;
    return block;
}

static void index_kind(struct map_kind *kind, const struct space_config *c, struct budget *budget)
{
    const struct index_shape shape = index_shape(c);
    *kind = (struct map_kind){.entry_bytes = c->kv_heads * block_of(c) * index_bytes(&shape),
                              .leaf_entries = 1,
                              .budget = budget};
    while (kind->leaf_entries * kind->entry_bytes < LEAF_BYTES)
        kind->leaf_entries *= 2;
}

uint64_t index_hold_bytes(const struct space_config *c)
{
    if (c->piece_flash)
        return index_rows_hold_bytes();
    struct map_kind kind;
    index_kind(&kind, c, NULL);
    return map_bytes(&kind, 1) + 4096;
}

static void index_choose(struct space_config *c, const struct flash_geometry *g)
{
    (void)g;
    c->piece_tokens = index_piece(c);
}

static int index_layout(struct stream *stream, const struct flash_geometry *g,
                        const struct space_config *c, struct inst_msg *msg)
{
    (void)g;
    if (!is_power_of_two(c->piece_tokens) || c->piece_tokens < INDEX_PIECE_MIN ||
        c->piece_tokens > INDEX_PIECE_MAX)
        return inst_fail(msg, INST_EINVAL,
                         "CONFIG: pieces of %u tokens, must be a power of two from %u to %u",
                         c->piece_tokens, INDEX_PIECE_MIN, INDEX_PIECE_MAX);
    if (c->piece_tokens > c->group_tokens)
        return inst_fail(msg, INST_EINVAL,
                         "CONFIG: pieces of %u tokens do not fit in a token group of %u",
                         c->piece_tokens, c->group_tokens);
    int status = space_config_check_together(c, msg);
    if (status)
        return status;
    stream->row_tokens = c->piece_tokens;
    stream->group_rows = 1;
    const struct index_shape shape = index_shape(c);
    if (shape.keys > c->piece_tokens)
        return inst_fail(msg, INST_EINVAL, "CONFIG: %u keys for a piece of %u tokens", shape.keys,
                         c->piece_tokens);
    if (c->piece_bits > 2)
        return inst_fail(msg, INST_EINVAL, "CONFIG: %u bits a channel of keys, must be 1 or 2",
                         c->piece_bits);
    if (c->piece_flash > 1)
        return inst_fail(msg, INST_EINVAL, "CONFIG: an index in place %u, must be 0 or 1",
                         c->piece_flash);
    stream->slot_bytes = index_bytes(&shape);
    return 0;
}

// Entries that tokens need, with those of the group that is being filled.
static uint64_t blocks_for(const struct space_config *c, uint64_t tokens)
{
    uint64_t pieces = (tokens / c->group_tokens + 1) * (c->group_tokens / c->piece_tokens);
    return div_round_up(pieces, block_of(c));
}

static int index_plan(struct stream_plan *plan, const struct flash_geometry *g,
                      const struct space_config *c, const struct stream *streams, unsigned level,
                      struct inst_msg *msg)
{
    struct map_kind kind;
    uint64_t sequences = max_u64(c->max_sequences, 1), least, full, more, all;
    (void)g, (void)streams, (void)level;
    index_kind(&kind, c, NULL);
    if (c->max_tokens > (uint64_t)1 << 36)
        return inst_fail(msg, INST_EINVAL, "CONFIG: an index of %llu tokens",
                         (unsigned long long)c->max_tokens);
    // A leaf and a path to it for each sequence; most is shared.
    least = map_bytes(&kind, blocks_for(c, 0) + kind.leaf_entries) + 1024 +
            sizeof(struct index_layer) + 128;
    full = map_bytes(&kind, blocks_for(c, c->max_tokens) + kind.leaf_entries);
    if (c->piece_look)
        full += clusters_bytes(c, c->max_tokens);
    if (!checked_mul(full, c->layers, &full) || !checked_mul(least, c->layers, &least) ||
        !checked_mul(least, sequences, &least) || !checked_mul(full, sequences - 1, &more) ||
        !checked_add(full, least, &all) || all > INT64_MAX / 8 || more > INT64_MAX / 8)
        return inst_fail(msg, INST_EINVAL, "CONFIG: an index of %llu tokens overflows",
                         (unsigned long long)c->max_tokens);
    plan->bytes = all + sizeof(struct index) + index_maker_bytes(c) + 4096 + 64 +
                  (c->piece_look ? clusters_change_bytes(c) : 0);
    plan->more = more;
    return 0;
}

static uint64_t index_rows(const struct space_config *config, const struct stream *streams)
{
    (void)config, (void)streams;
    return 0;
}

static int index_open(struct space *space, unsigned level, struct inst_msg *msg)
{
    const struct space_config *c = &space->config;
    struct index *own = budget_alloc(space->budget, 1, sizeof *own, "the index", msg);
    (void)level;
    if (!own)
        return INST_ENOMEM;
    space->derived[STREAM_INDEX] = own;
    own->space = space;
    own->piece = c->piece_tokens;
    own->block = block_of(c);
    index_kind(&own->kind, c, space->budget);
    space->beside = &own->kind;
    const int status = index_maker_open(&own->maker, space, msg);
    own->bytes = index_bytes(&own->maker.shape);
    return status;
}

static void index_close(struct space *space)
{
    struct index *own = index_of(space);
    if (!own)
        return;
    space->beside = NULL;
    index_maker_close(&own->maker, space);
    budget_free(space->budget, own);
}

static int index_layer_open(struct space *space, struct layer_state *layer, struct inst_msg *msg)
{
    layer->derived[STREAM_INDEX] =
        budget_alloc(space->budget, 1, sizeof(struct index_layer), "the index", msg);
    return layer->derived[STREAM_INDEX] ? 0 : INST_ENOMEM;
}

static void index_layer_close(struct space *space, struct layer_state *layer)
{
    if (!state_of(layer))
        return;
    map_truncate(&index_of(space)->kind, &state_of(layer)->entries, 0);
    clusters_close(space, &state_of(layer)->clusters);
    budget_free(space->budget, state_of(layer));
}

static struct row *index_no_row(const struct space *space, const struct layer_state *layer,
                                uint64_t index)
{
    (void)space, (void)layer, (void)index;
    return NULL; // it has none
}

static int index_reserve(struct space *space, struct layer_state *layer, uint64_t tokens,
                         struct inst_msg *msg)
{
    struct index *own = index_of(space);
    struct map *entries = &state_of(layer)->entries;
    const uint64_t first = layer->tokens / own->piece, pieces = tokens / own->piece;
    const uint64_t end = pieces > first ? div_round_up(pieces, own->block) : 0;
    // What is written to is this sequence's alone, not a fork's or a unit's, too.
    for (uint64_t i = first / own->block; i < end; i++) {
        if (!(i < entries->n ? map_edit(&own->kind, entries, i, msg)
                             : map_append(&own->kind, entries, msg)))
            return INST_ENOMEM;
    }
    return 0;
}

// Summaries of the pieces that are complete now; their tokens lie in the group buffer.
static void index_append(struct space *space, struct layer_state *layer, uint32_t head,
                         uint64_t first, const uint16_t *k, const uint16_t *v, uint64_t n)
{
    struct index *own = index_of(space);
    (void)k, (void)v;
    for (uint64_t p = first / own->piece; (p + 1) * own->piece <= first + n; p++) {
        const uint64_t at = head * own->block + p % own->block;
        uint8_t *entry = map_at(&own->kind, &state_of(layer)->entries, p / own->block); // reserved
        index_make(&own->maker, space, layer, head, p, entry + at * own->bytes);
    }
}

static void index_appended(struct space *space, struct layer_state *layer)
{
    (void)space, (void)layer;
}

static int index_take_slab(struct space *space, struct sequence *sequence,
                           const struct stream_slab *slab)
{
    (void)space, (void)sequence, (void)slab;
    return 0;
}

static void index_truncate(struct space *space, struct layer_state *layer, uint64_t tokens)
{
    struct index *own = index_of(space);
    map_truncate(&own->kind, &state_of(layer)->entries,
                 div_round_up(tokens / own->piece, own->block));
    clusters_truncate(&state_of(layer)->clusters, tokens / own->piece);
}

// Rows that were given up cannot be attended to; that says who reads them.
static int index_punch(struct space *space, struct layer_state *layer, uint64_t first, uint64_t end,
                       struct inst_msg *msg)
{
    (void)space, (void)layer, (void)first, (void)end, (void)msg;
    return 0;
}

static int index_fork(struct space *space, const struct layer_state *from, struct layer_state *to,
                      uint64_t tokens, struct inst_msg *msg)
{
    struct index *own = index_of(space);
    int status = map_fork(&own->kind, &state_of(from)->entries, &state_of(to)->entries,
                          div_round_up(tokens / own->piece, own->block), msg);
    if (!status)
        clusters_fork(&state_of(from)->clusters, &state_of(to)->clusters, tokens / own->piece);
    return status;
}

static void index_lost(struct space *space, struct place place,
                       const struct page_identity *identity)
{
    (void)space, (void)place, (void)identity; // nothing of it is on flash
}

static bool index_work(struct space *space, struct engine *engine, uint64_t now_ns)
{
    (void)space, (void)engine, (void)now_ns;
    return false;
}

static bool index_working(const struct space *space)
{
    (void)space;
    return false;
}

static bool index_shed(struct space *space)
{
    bool any = false;
    for (struct sequence *s = NULL; (s = space_next(space, s));) {
        for (uint32_t l = 0; l < space->config.layers; l++) {
            struct clusters_layer *clusters = index_clusters(&s->layers[l]);
            any |= clusters->latest != NULL;
            clusters_close(space, clusters);
        }
    }
    return any;
}

static void index_stats(const struct space *space, struct drive_stats *stats)
{
    const struct index *own = index_of(space);
    for (struct sequence *s = NULL; (s = space_next(space, s));) {
        for (uint32_t l = 0; l < space->config.layers; l++)
            stats->pages_dram_bytes += map_bytes(&own->kind, state_of(&s->layers[l])->entries.n) +
                                       clusters_used(&state_of(&s->layers[l])->clusters);
    }
}

static int index_check(const struct space *space, const struct layer_state *layer,
                       struct inst_msg *msg)
{
    const struct index *own = index_of(space);
    uint64_t n = state_of(layer)->entries.n * own->block, pieces = layer->tokens / own->piece;
    if (n < pieces)
        return inst_fail(msg, INST_EINTERNAL, "room of an index, pieces: %llu and %llu",
                         (unsigned long long)n, (unsigned long long)pieces);
    return 0;
}

static const struct map *index_rows_of(const struct layer_state *layer)
{
    return &state_of(layer)->entries;
}

const struct stream_ops stream_index = {
    .name = "index",
    .choose = index_choose,
    .layout = index_layout,
    .plan = index_plan,
    .rows = index_rows,
    .open = index_open,
    .close = index_close,
    .layer_open = index_layer_open,
    .layer_close = index_layer_close,
    .row = index_no_row,
    .reserve = index_reserve,
    .append = index_append,
    .appended = index_appended,
    .take_slab = index_take_slab,
    .truncate = index_truncate,
    .punch = index_punch,
    .fork = index_fork,
    .lost = index_lost,
    .work = index_work,
    .working = index_working,
    .shed = index_shed,
    .stats = index_stats,
    .check = index_check,
    .rows_of = index_rows_of,
};
