// SPDX-License-Identifier: Apache-2.0
// The ranking index of METHOD_PAGES: for every complete run of `piece_tokens` tokens (an index
// piece) and KV head a summary from which attention to them is predicted without reading them. It
// lies in DRAM alone, is made from the group buffer when a piece's last token arrives, and is a
// pure function of the piece's K and V: so forks share it by reference, truncation cuts it, and
// nothing ever has to be read back for it. The tokens of a piece that is not complete have no
// summary.
//
// A summary holds INDEX_KEYS typical keys, each the mean of the tokens nearest to it (k-means from
// the farthest tokens on), and the mean of V. All are turned by a Hadamard matrix in blocks, so
// that no channel is much larger than others, and rounded: keys to 1 bit a channel, V to 2.
//   fp16 scale of keys, fp16 scale of V, u8 factor[INDEX_KEYS], u8 count[INDEX_KEYS], codes
// A turned key is scale * factor / 255 * (code - 1/2) in each channel, V scale * (code - 3/2). That
// is the best of what was measured in so many bytes: docs/decisions/0016-pages.md.
#ifndef INST_DRIVE_FTL_INDEX_H
#define INST_DRIVE_FTL_INDEX_H

#include "drive/ftl/space.h"

enum {
    INDEX_KEYS = 10,
    INDEX_CODES = 4 + 2 * INDEX_KEYS, // where they begin
    INDEX_PIECE_MIN = GROUP_MIN,
    INDEX_PIECE_MAX = ATTENTION_TILE,
    INDEX_PIECE = 32, // where CONFIG leaves it to the drive
};

// Tokens of an index piece in a space of this configuration.
uint32_t index_piece(const struct space_config *config);
// Bytes of a summary.
uint64_t index_bytes(uint32_t head_dim);
// Bytes that a hold may take: a leaf of the map of its own, and a path to it.
uint64_t index_hold_bytes(const struct space_config *config);
// Holds the summaries of a layer's first `pieces` pieces, whatever becomes of the sequence: the map
// is filled in, which was empty. Workers may look at them until they are let go.
int index_hold(const struct space *space, const struct layer_state *layer, uint64_t pieces,
               struct map *held);
void index_let_go(const struct space *space, struct map *held);
// The summary of a piece and head.
const uint8_t *index_held(const struct space *space, const struct map *held, uint64_t piece,
                          uint32_t head);

// x[head_dim] times the Hadamard matrix, which is its own inverse.
void index_turn(float *x, uint32_t head_dim);
// Of a summary: tokens that a key stands for, what its codes are multiplied with, its codes (eight
// channels a byte, the first in the lowest bit).
static inline uint32_t index_count(const uint8_t *summary, uint32_t key)
{
    return summary[4 + INDEX_KEYS + key];
}
float index_scale(const uint8_t *summary, uint32_t key);
static inline const uint8_t *index_codes(const uint8_t *summary, uint32_t head_dim, uint32_t key)
{
    return summary + INDEX_CODES + key * ((head_dim + 7) / 8);
}
// The turned mean of V.
void index_value(const uint8_t *summary, uint32_t head_dim, float *out);

#endif
