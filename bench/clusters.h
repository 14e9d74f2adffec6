// SPDX-License-Identifier: Apache-2.0
// K, V and q of stated locality, for measuring methods that read only a part of the KV cache: with
// independent random K every such method looks useless, and with real text nobody can say what the
// locality was.
//
// The model of a KV head. The text is cut into segments of random length (geometric, mean
// `segment` tokens); each is about one of `topics` topics, drawn anew. For token t of topic z, with
// C, E, noise vectors of independent normal elements and s a fixed size for each channel
// (log-normal with `outliers` as its sigma: real queries and keys have a few large channels, which
// is what ranking by few channels lives on):
//   k_t = s * (c C_z + sqrt(1 - c^2) E_t)               c = `cohesion`, 0 to 1
//   q   = s * (b sum_{f in focus} C_f + E)              b so that the expected score of a token of
//                                                        a focus topic is `sharpness`
//   v_t = c D_z + sqrt(1 - c^2) E'_t
// The query's `focus` topics are its own segment's and others at random for every KV head; each of
// the others stays for `stay` tokens (0: 1), and they change one after another. The query heads of a
// group share the topics and have E of their own.
#ifndef INST_BENCH_CLUSTERS_H
#define INST_BENCH_CLUSTERS_H

#include "base/status.h"

#include <stdint.h>

struct clusters_options {
    uint64_t seed;
    uint32_t segment, topics, focus, stay;
    float cohesion, sharpness, outliers;
};

// What `instinfer bench drive` measures unless told otherwise.
extern const struct clusters_options clusters_usual;

struct clusters;

// Texts of `tokens` tokens for every head of every layer of every sequence.
int clusters_new(struct clusters **out, const struct clusters_options *options, uint32_t sequences,
                 uint32_t layers, uint32_t kv_heads, uint32_t head_dim, uint64_t tokens,
                 struct inst_msg *msg);
void clusters_free(struct clusters *clusters);

// Tokens [pos, pos + n) of one head: k and v [n][head_dim] in fp16.
void clusters_kv(const struct clusters *clusters, uint32_t sequence, uint32_t layer, uint32_t head,
                 uint64_t pos, uint64_t n, uint16_t *k, uint16_t *v);
// The queries of the token at pos: [group][head_dim].
void clusters_query(const struct clusters *clusters, uint32_t sequence, uint32_t layer,
                    uint32_t head, uint64_t pos, uint32_t group, float *q);

// The same of layer 0, as callbacks: user is a struct clusters.
void clusters_content_kv(void *user, uint32_t sequence, uint32_t head, uint64_t pos, uint64_t n,
                         uint16_t *k, uint16_t *v);
void clusters_content_query(void *user, uint32_t sequence, uint32_t head, uint64_t pos,
                            uint32_t group, float *q);

#endif
