// SPDX-License-Identifier: Apache-2.0
// What a drive must answer, kept as plain arrays: for every sequence, layer and KV head, which
// writer's K and V lie at each token. A writer is one item of one command, so values that got mixed
// up in any way differ. Where a fault leaves open whether a token was stored, its place is between
// `have` and `maybe`; where it leaves open whose it is, the writer is 0 and nothing is compared.
#ifndef INST_TESTS_INTERLEAVE_MODEL_H
#define INST_TESTS_INTERLEAVE_MODEL_H

#include "drive/command.h"

enum {
    MODEL_SPACES = 3,
    MODEL_SEQUENCES = 12,
    MODEL_LAYERS = 3,
    MODEL_HEADS = 3,
    MODEL_TOKENS = 576,
    MODEL_GROUPS = MODEL_TOKENS / 16,
};

enum presence { ABSENT, PERHAPS, PRESENT };

struct model_layer {
    uint32_t have[MODEL_HEADS], maybe[MODEL_HEADS]; // tokens; have <= maybe
    uint32_t cuts;                                  // how often it was truncated
    bool gone[MODEL_GROUPS];                        // token groups that were given up
    uint32_t who[MODEL_HEADS][MODEL_TOKENS];
};

struct model_sequence {
    enum presence presence;
    uint32_t epoch;
    bool lost;   // not even its epoch is known: only RECLAIM whatever the epoch helps
    bool forked; // from this parent, at this position
    uint32_t parent, parent_epoch, fork_pos;
    uint32_t life; // counts sequences that had this number, and their ends
    struct model_layer layers[MODEL_LAYERS];
};

struct model_space {
    bool open;
    struct space_config config;
    struct model_sequence sequences[MODEL_SEQUENCES];
};

// K (or V) of one token as fp16, as it is written: not rounded to blocks; head_dim elements.
const uint16_t *model_row(uint32_t who, uint32_t layer, uint32_t head, uint32_t token, bool v);
// What is stored of it.
void model_stored(uint32_t who, uint32_t layer, uint32_t head, uint32_t token, bool v,
                  uint32_t kv_type, uint32_t dim, uint16_t *row);
// A query vector; any number names one.
const float *model_query(uint64_t name);
// Whose row this is, as text, by looking through all writers below `writers`.
void model_find_row(const uint16_t *row, uint32_t head_dim, uint32_t writers, char *text, size_t n);

uint32_t model_tokens(const struct model_space *space, const struct model_layer *layer);
uint32_t model_tokens_maybe(const struct model_space *space, const struct model_layer *layer);
bool model_exact(const struct model_space *space, const struct model_sequence *sequence);

// A sequence comes into being, empty.
void model_create(struct model_space *space, uint32_t seq, uint32_t epoch);
// Tokens [pos, pos + n) of some heads were stored, or (sure = false) some of them may have been.
void model_write(struct model_layer *layer, uint32_t head_first, uint32_t head_count, uint32_t pos,
                 uint32_t n, uint32_t who, bool sure);
// Everything from `pos` on is given up; a range inside is.
void model_cut(const struct model_space *space, struct model_layer *layer, uint32_t pos);
void model_punch(const struct model_space *space, struct model_layer *layer, uint64_t pos,
                 uint64_t n);
void model_fork(const struct model_space *space, const struct model_sequence *parent,
                struct model_sequence *child, uint32_t pos);
// The layer was seen to hold so many tokens.
void model_seen(const struct model_space *space, struct model_layer *layer, uint32_t tokens);
// A token group in [first, end) was given up.
bool model_gone(const struct model_space *space, const struct model_layer *layer, uint32_t first,
                uint32_t end);

// Dense attention in double over tokens [first, end) whose writers are who[token].
struct model_attention {
    uint32_t kv_type, head_dim, layer, head, first, end;
    const uint32_t *who;
    const float *q;
    float scale, softcap;
};
void model_attend(const struct model_attention *a, double *out, double *lse);

#endif
