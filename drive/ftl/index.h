// SPDX-License-Identifier: Apache-2.0
// The ranking index of METHOD_PAGES: for every complete run of `piece_tokens` tokens (an index
// piece) and KV head a summary from which attention to them is predicted without reading them. It
// lies in DRAM, is made from the group buffer when a piece's last token arrives, and is a
// pure function of the piece's K and V: so forks share it by reference, truncation cuts it, and
// nothing ever has to be read back for it. Some pieces' share an entry of the map, head by head.
// The tokens of a piece that is not complete have no summary. Where the index lies on flash
// (`piece_flash` of CONFIG) summaries are the same, less V: ftl/index_rows.h.
//
// A summary holds keys, their mean and the mean of V. Where there are as many keys as tokens they
// are the tokens' own, else typical ones, each the mean of the tokens nearest to it (k-means from
// the farthest tokens on). All are turned by a Hadamard matrix in blocks, so that no channel is
// much larger than others, and rounded: keys less their mean to `piece_bits` bits a channel, V of
// more than 16 tokens to 2, else to 1.
//   fp16 scale of keys, fp16 scale of V, u8 factor[keys], u8 count[keys] unless each is 1,
//   codes of keys [bytes][keys], the first channel in the lowest bits of the first byte; of V;
//   the mean of keys, a row of TENSOR_Q4_0, zeros behind head_dim
// A turned key is scale * factor / 255 * (code - half of the largest code) in each channel, and the
// mean; V scale * that. Why so: docs/decisions/0016-pages.md.
#ifndef INST_DRIVE_FTL_INDEX_H
#define INST_DRIVE_FTL_INDEX_H

#include "drive/ftl/space.h"
#include "base/le.h"
#include "kernels/kernels.h"

enum {
    INDEX_PIECE_MIN = GROUP_MIN,
    INDEX_PIECE_MAX = ATTENTION_TILE,
    // Pages that pieces are to fill, whatever those of the flash are: a choice is the same
    // everywhere.
    INDEX_PAGE = 4096,
    // The mean of keys: channels and bytes of a block of TENSOR_Q4_0.
    INDEX_MIDDLE_BLOCK = 32,
    INDEX_MIDDLE_BYTES = 18,
};

// How far the size of a rounded key's channels is from their mean size towards that which makes
// products with it right where it points to the query.
#define INDEX_SHARPER 0.375f

// What a summary is like, in a space of this configuration.
struct index_shape {
    uint32_t piece, keys, head_dim, key_bits;
    uint32_t value_bits; // 0: nothing is kept of V
    uint32_t look;       // piece_look of CONFIG
    uint32_t middle;     // bytes of the mean of keys
};
struct index_shape index_shape(const struct space_config *config);

// Tokens of an index piece in a space of this configuration: what it says, or what fills pages.
uint32_t index_piece(const struct space_config *config);
// Bytes of a key's codes.
static inline uint32_t index_key_bytes(const struct index_shape *shape)
{
    return (shape->head_dim * shape->key_bits + 7) / 8;
}
// Bytes of a summary.
uint64_t index_bytes(const struct index_shape *shape);
// Bytes that a hold may take: a leaf of the map of its own, and a path to it.
uint64_t index_hold_bytes(const struct space_config *config);
// Holds the summaries of a layer's first `pieces` pieces, whatever becomes of the sequence: the map
// is filled in, which was empty. Workers may look at them until they are let go.
int index_hold(const struct space *space, const struct layer_state *layer, uint64_t pieces,
               struct map *held);
void index_let_go(const struct space *space, struct map *held);
// Summaries of a head that lie side by side: those of pieces first to first + n - 1.
struct index_run {
    const uint8_t *summary; // of the first
    uint64_t n;
};
// From `piece` on; of these, those of held pieces count.
struct index_run index_held(const struct space *space, const struct map *held, uint64_t piece,
                            uint32_t head);

// What is kept of the clusters of a layer's keys (ftl/clusters.h).
struct clusters_layer *index_clusters(const struct layer_state *layer);

// What making summaries takes.
struct index_maker {
    struct index_shape shape;
    uint16_t *k, *v; // a piece's tokens
    float *scratch;
};
// INST_ENOMEM; to be closed then, too.
int index_maker_open(struct index_maker *maker, const struct space *space, struct inst_msg *msg);
void index_maker_close(struct index_maker *maker, const struct space *space);
uint64_t index_maker_bytes(const struct space_config *config);
// Makes the summary of a head's piece, whose tokens lie in the layer's group buffer.
void index_make(const struct index_maker *maker, const struct space *space,
                const struct layer_state *layer, uint32_t head, uint64_t piece, uint8_t *summary);

// x[head_dim] times the Hadamard matrix, which is its own inverse.
void index_turn(float *x, uint32_t head_dim);
// Writes what channels of the turned q with these codes, half a byte of them, add to a score, as a
// multiple of half the step that is returned: whole numbers, so that sums of them are the same in
// any order. First those of the low halves of bytes (piece_masses).
float index_table(const struct index_shape *shape, int8_t *table, const float *q);
static inline size_t index_table_bytes(const struct index_shape *shape)
{
    return mass_rows(index_key_bytes(shape)) * 16;
}
// Of the turned mean of V: where in a summary its codes lie, and what they are multiplied with.
uint64_t index_value_at(const struct index_shape *shape);
static inline float index_value_scale(const uint8_t *summary)
{
    return kernel_f16_to_f32(le_get16(summary + 2));
}
// Where in a summary the mean of keys lies, and channels that it has.
uint64_t index_middle_at(const struct index_shape *shape);
uint32_t index_middle_dim(const struct index_shape *shape);
// The sum of the squares of half a step over the keys of a summary: of one bit, as far as all
// channels are from 0.
static inline float index_key_squares(const uint8_t *summary, uint32_t keys)
{
    const float scale = kernel_f16_to_f32(le_get16(summary)) * (0.5f / 255);
    uint32_t sum = 0;
    for (uint32_t i = 0; i < keys; i++)
        sum += (uint32_t)summary[4 + i] * summary[4 + i];
    return scale * scale * (float)sum;
}

#endif
