// SPDX-License-Identifier: Apache-2.0
// Clusters of like keys, so that METHOD_PAGES need not look at every key of a long sequence
// (piece_look of CONFIG). The tokens of a sequence, but for a few of the newest, are divided into a
// few blocks, most of them in the first. A block's keys, as their summaries (ftl/index.h) have
// them, are put together by likeness, wherever they lie: into coarse clusters, and these into
// clusters of up to some 64 keys, of which mean and spread are kept, the codes of their keys side
// by side, and the pieces that these are of: the means that go with the codes are in the summaries.
//
// Which blocks there are is said by the number of complete pieces alone, and a block is a pure
// function of its summaries, made when it is first asked for and not changed after that: so it
// depends on nothing but K and its place, forks and units share it by reference, truncation leaves
// it out, and what was dropped is made again. It lies in DRAM alone.
#ifndef INST_DRIVE_FTL_CLUSTERS_H
#define INST_DRIVE_FTL_CLUSTERS_H

#include "drive/ftl/index.h"

// Of a cluster: with what lies beside them in slices they are taken apart in one call.
enum { CLUSTER_KEYS_MOST = (MASS_SLICES - 1) * KERNEL_LANES };

enum clusters_state { CLUSTERS_NEW, CLUSTERS_MAKING, CLUSTERS_MADE };

// A KV head's part of a block. Keys lie in the order of clusters.
struct clusters_head {
    enum clusters_state state; // whoever holds them makes them, one at a time
    uint32_t coarse, fine;     // clusters
    uint16_t *mean;            // fp16 [coarse + fine][head_dim], of turned keys; coarse ones first
    float *spread;             // [coarse + fine]: deviation of a channel of a key from the mean's
    uint32_t *fine_first;      // [coarse + 1]: the fine clusters of a coarse one
    uint32_t *keys;            // [coarse]: that it has
    uint32_t *key_first;       // [fine + 1]: the keys of a fine one, CLUSTER_KEYS_MOST at most
    uint8_t *slices; // codes of 16 keys each, as summaries of so many have them, but so that
                     // scores come out (piece_scores) in the order of keys
    uint16_t *piece; // [keys], counted from the block's first
    uint8_t *count;  // [keys]: tokens that a key stands for; NULL: each 1
};

struct clusters_block {
    uint32_t references;
    uint64_t first, pieces, bytes;
    struct clusters_head head[]; // [kv_heads]; each is memory of its own, from `mean` on
};

// The blocks of a length of a sequence.
struct clusters {
    uint32_t references, n;
    uint64_t pieces; // that they cover
    struct clusters_block *block[];
};

// Of a layer of a sequence.
struct clusters_layer {
    struct clusters *latest; // that were asked for
    uint64_t valid;          // as far as these pieces go they are of this layer
};

// Bytes of a slice; keys of a whole piece's codes are as many as its summary has.
uint64_t clusters_slice_bytes(const struct index_shape *shape);
// Clusters that so many pieces have at most.
uint64_t clusters_coarse_most(const struct index_shape *shape, uint64_t pieces);
uint64_t clusters_fine_most(const struct index_shape *shape, uint64_t pieces);
// So many pieces have any.
bool clusters_least(const struct index_shape *shape, uint64_t pieces);
// DRAM that a layer's take at most, and more, while one takes the place of others.
uint64_t clusters_bytes(const struct space_config *config, uint64_t tokens);
uint64_t clusters_change_bytes(const struct space_config *config);
// Scratch of a worker that makes them.
size_t clusters_scratch(const struct space_config *config);

// The clusters of the first `pieces` pieces. What there is not yet is new: to be made. Negative: no
// memory.
int clusters_hold(struct space *space, struct clusters_layer *layer, uint64_t pieces,
                  struct clusters **out, struct inst_msg *msg);
// Worker: makes those of KV head `head` from the summaries, which are held.
void clusters_make(const struct space *space, const struct map *held,
                   const struct clusters_block *block, struct clusters_head *h, uint32_t head,
                   uint8_t *scratch);
void clusters_let_go(struct space *space, struct clusters *clusters); // NULL is fine

void clusters_truncate(struct clusters_layer *layer, uint64_t pieces);
void clusters_fork(const struct clusters_layer *from, struct clusters_layer *to, uint64_t pieces);
void clusters_close(struct space *space, struct clusters_layer *layer);
// What the layer holds, shared with forks or not.
uint64_t clusters_used(const struct clusters_layer *layer);

#endif
