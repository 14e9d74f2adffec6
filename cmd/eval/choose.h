// SPDX-License-Identifier: Apache-2.0
// Inside of eval_here: what holds K and V (here.c) and what chooses among them (choose.c)
// share. K and V lie in tiles of 64 tokens as the kernels take them; marks are bits of a tile.
#ifndef INST_CMD_EVAL_CHOOSE_H
#define INST_CMD_EVAL_CHOOSE_H

#include "cmd/eval/here.h"
#include "kernels/kernels.h"

#include <stddef.h>

enum { EVAL_PAGE = 4096 };

// What lies behind the context, of one session in one layer and KV head.
struct eval_tail {
    uint16_t *tiles; // from the context's last, unfinished one on
    float *now;      // h2o, [room]: mass that came to a token
    uint64_t *kept;  // h2o: marks
};

// Of one layer and KV head.
struct eval_store {
    uint16_t *tiles; // of the context: {K [head_dim][64], V [64][head_dim]}
    double *v_sum;   // sparq, [head_dim], of the context
    float *sums;     // h2o, [context]: mass that came to a token within the context
    uint16_t *pages; // quest, [2: most, least][head_dim][pages]: of the context's whole pages
    struct eval_tail *tail; // [lines]
};

struct eval_here {
    struct eval_here_shape shape;
    const struct kernels *kernels;
    size_t room, tiles, group; // room: tokens, whole tiles
    size_t context_tiles;      // whole ones
    struct guest guest;
    enum eval_here_method method;
    uint32_t divisor;
    struct eval_store *stores; // [layers][kv_heads]
    size_t rows;               // that scores has
    float *scores;             // [rows][room]
    float *q;                  // [rows][2 head_dim], scaled
    float *ranks, *spare;      // [room]
    uint64_t *marks, *picks;   // [tiles]; picks: of what is no token
    uint16_t *late_pages;      // quest, [2][head_dim][pages]: of pages that no context completed
    float *partials;           // [group]
    void *scratch;
    double tokens, pages; // read, of one KV head
};

// One query group.
struct eval_choice {
    struct eval_here *h;
    struct eval_store *s;
    struct eval_tail *tail;
    const float *q; // [group][head_dim]
    size_t to;      // tokens that it sees, its own included
    float scale, softcap;
    float *alpha; // sparq, [group]; NULL: the marked tokens stand for all
};

static inline size_t eval_tile_words(const struct eval_here *h)
{
    return 2 * (size_t)ATTENTION_TILE * h->shape.head_dim;
}

// K of a tile; V follows.
static inline const uint16_t *eval_tile(const struct eval_choice *c, size_t tile)
{
    const struct eval_here *h = c->h;
    if (tile < h->context_tiles)
        return c->s->tiles + tile * eval_tile_words(h);
    return c->tail->tiles + (tile - h->context_tiles) * eval_tile_words(h);
}

// Scores of tokens [0, to) for n queries, in h->scores; `only`: of tiles with marks. What lies
// beyond `to` or without marks means nothing.
struct eval_channels {
    const uint32_t *channel; // these alone
    size_t n;
    const float *factor; // of each query's scores
};
void eval_score(const struct eval_choice *c, const float *q, size_t n,
                const struct eval_channels *some, const uint64_t *only);
// The first n, in place.
void eval_softmax(const struct eval_here *h, float *x, size_t n);

// Marks what the method chooses.
void eval_choose(struct eval_choice *c);
// After its attention: what h2o remembers.
void eval_choose_after(struct eval_choice *c);
// What a method needs to know of a context. False: out of memory.
bool eval_choose_prepare(struct eval_here *h);

void eval_mark_all(uint64_t *marks, size_t from, size_t to);

#endif
