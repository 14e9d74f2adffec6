// SPDX-License-Identifier: Apache-2.0
// K, V and queries of several kinds as plain arrays, the commands that bring them to a drive, and
// the comparison of what comes back with Algorithm 1 in double (tests/reference/sparf_float64.h).
#ifndef INST_TESTS_SPARF_SCENE_H
#define INST_TESTS_SPARF_SCENE_H

#include "drive_harness.h"
#include "sparf_float64.h"

enum scene_kind {
    SCENE_RANDOM,
    SCENE_CLUSTERED, // segments of a few topics, queries that look for some of them
    SCENE_EQUAL,     // every token's K alike: every rank a tie
    SCENE_STEPS,     // K and q of a few small whole numbers: many exact ties
    SCENE_HUGE,      // scores of tens of thousands
    SCENE_ZERO_Q,
    SCENE_BLIND, // a query head that is zero where the others are large
    SCENE_KINDS
};

struct scene {
    enum scene_kind kind;
    uint32_t layers, kv_heads, q_heads, head_dim;
    uint64_t tokens;
    bool one_hot;    // V of token t in layer l: 1 at t - l * head_dim, 0 elsewhere
    bool same;       // K and q are alike in all layers
    uint16_t *k, *v; // [layer][head][token][head_dim]
    float *q;        // [layer][token][q_head][head_dim]: of the step that appends the token
};

void scene_new(struct scene *scene, uint64_t seed);
void scene_free(struct scene *scene);

struct scene_knobs {
    uint32_t channels, tokens, divisor, local;
    bool dense, audit;
    bool pages, no_rest; // METHOD_PAGES, with `local`
    float ratio, mass;
    float scale; // 0: 1 / sqrt(head_dim)
};

// Tokens [pos, pos + n) in all layers by WRITE, in chunks of `chunk` (0: at once).
void scene_write(struct rig *rig, const struct scene *scene, uint32_t seq, uint64_t pos, uint64_t n,
                 uint64_t chunk);

// One WRITE of one layer; returns its status.
int scene_try_write(struct rig *rig, const struct scene *scene, uint32_t seq, uint32_t layer,
                    uint64_t pos, uint64_t n);

struct scene_result {
    float *out;      // [q_heads][head_dim]
    float *lse;      // [q_heads]
    float *captured; // [q_heads]
};
void scene_result_new(struct scene_result *result, const struct scene *scene);
void scene_result_free(struct scene_result *result);

// The step of token pos: appended if `append`, else already there. Returns the item's status.
int scene_attend(struct rig *rig, const struct scene *scene, uint32_t layer, uint32_t seq,
                 uint64_t pos, bool append, const struct scene_knobs *knobs,
                 struct scene_result *result);

// Close calls met: tokens that fp32 and double may rank differently.
struct scene_calls {
    uint64_t problems, close, tokens;
    double mass; // the most softmax weight that hung on such tokens
};
// The reference's answer for the step of token pos, KV head `head`; `answer` is to be freed.
void scene_solve(const struct scene *scene, uint32_t layer, uint32_t head, uint64_t pos,
                 const struct scene_knobs *knobs, struct sparf_answer *answer);
// Fails the test when a result is not the reference's; beyond close calls, within rounding.
void scene_expect(const struct scene *scene, uint32_t layer, uint64_t pos,
                  const struct scene_knobs *knobs, const struct scene_result *result,
                  struct scene_calls *calls);
// With one_hot V in all layers: which tokens weigh something is seen in the outputs; they must be
// those that the reference chose.
void scene_expect_sets(const struct scene *scene, uint64_t pos, const struct scene_knobs *knobs,
                       const struct scene_result *results, struct scene_calls *calls);

#endif
