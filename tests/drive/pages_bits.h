// SPDX-License-Identifier: Apache-2.0
// METHOD_PAGES answers with the same bits whatever the token group, the pages of flash, the place,
// threads, kernels, chunks of WRITE, forks and truncation.
#ifndef INST_TESTS_PAGES_BITS_H
#define INST_TESTS_PAGES_BITS_H

#include "sparf_scene.h"

enum {
    PAGES_LAYERS = 2,
    PAGES_KV_HEADS = 2,
    PAGES_Q_HEADS = 4,
    PAGES_HEAD_DIM = 64,
    PAGES_TOKENS = 1700
};

#define PAGES_OPTIONS                                                                              \
    {                                                                                              \
        .config = {.layers = PAGES_LAYERS,                                                         \
                   .kv_heads = PAGES_KV_HEADS,                                                     \
                   .head_dim = PAGES_HEAD_DIM,                                                     \
                   .group_tokens = 64,                                                             \
                   .max_sequences = 3,                                                             \
                   .max_tokens = PAGES_TOKENS + 64,                                                \
                   .q_heads = PAGES_Q_HEADS,                                                       \
                   .method = METHOD_PAGES},                                                        \
        .q_heads = PAGES_Q_HEADS, .threads = 2, .page_bytes = 4096, .pages_per_block = 512,        \
        .ram_rate = 1000000000000u, /* no views */                                                 \
            .no_read_ahead = true,                                                                 \
    }

struct scene pages_scene(enum scene_kind kind);

// How the tokens before the steps came to be there.
enum pages_way { PAGES_AT_ONCE, PAGES_BY_TOKENS, PAGES_FORKED, PAGES_CUT, PAGES_WAYS };

struct pages_bits {
    struct rig_options options;
    struct scene_knobs knobs;
    uint64_t first; // token of six steps; 0: 1000
    // ATTENDs before, at other lengths, of the parent of a fork, which then ends, of what is cut
    // off, and in between, so that what is kept between steps is of something else.
    bool busy;
};

// A hash of what the steps answer, and after them one at each of some lower positions.
uint64_t pages_run(const struct pages_bits *bits, const struct scene *scene, enum pages_way way);
// Fails the test where they differ.
void pages_same_bits(const struct pages_bits *bits);

#endif
