// SPDX-License-Identifier: Apache-2.0
// SparF (Algorithm 1 of arXiv 2409.04992) for one KV head and its group of query heads, in plain
// double, straight from the equations: what the drive's SparF is held against. No pages, no tiles,
// no filters: those change what is read, never what comes out. Shares no code with the drive.
//
// For query heads g = 1..G of one KV head, K and V of S tokens, r channels, k tokens:
//   a[c] = sum_g |q_g[c]|;  i = the r channels with the largest a, ties to the lower channel
//   f_g = sqrt(head_dim / (head_dim * |q_g[i]|_1 / |q_g|_1)); 1 where that is no number
//   s^_g = softmax_t(scale * f_g * (q_g[i] . K[t, i]))     (scale = 1/sqrt(head_dim) in the paper;
//   less than e^-87 of the largest counts as 0, as in fp32, so that such tokens tie)
//   rank[t] = sum_g s^_g[t];  j = the `local` last tokens and, of the others, the tokens with the
//   largest rank, ties to the lower token, k in all
//   alpha_g = sum of s^_g over j
//   s_g = softmax over j of (scale * q_g . K[t]);  v_bar = mean of V over all S tokens
//   out_g = alpha_g * (s_g . V[j]) + (1 - alpha_g) * v_bar
// One query head per KV head (G = 1) is the paper's case; the sums over g are SparQ's rule for GQA.
#ifndef INST_TESTS_SPARF_FLOAT64_H
#define INST_TESTS_SPARF_FLOAT64_H

#include <stdbool.h>
#include <stdint.h>

// All arrays are the caller's.
struct sparf_problem {
    uint32_t head_dim, group; // G
    uint32_t tokens;          // S >= 1
    uint32_t channels;        // r, 1 to head_dim
    uint32_t keep;            // k; less than `local` counts as local, more than S as S
    uint32_t local;
    double scale;
    double softcap;  // not 0: scores, predicted ones too, become softcap * tanh(score / softcap)
    const double *q; // [group][head_dim]
    const double *k; // [tokens][head_dim]
    const double *v; // [tokens][head_dim]
};

struct sparf_answer {
    double *out;      // [group][head_dim]
    double *lse;      // [group], log sum exp of the chosen tokens' exact scores
    double *alpha;    // [group], predicted mass of the chosen tokens
    double *captured; // [group], their true share of the dense softmax
    double *rank;     // [tokens]
    bool *channel;    // [head_dim]: chosen
    bool *token;      // [tokens]: chosen
    // The last chosen that had a choice, and the best not chosen: how close a call it was. The
    // second is -1 when nothing was left out.
    double least_chosen, best_left; // rank
    double least_channel, best_left_channel;
};

// ceil(x / divisor), the number that "1/8" stands for.
uint32_t sparf_share(uint32_t x, uint32_t divisor);

int sparf_answer_alloc(struct sparf_answer *answer, const struct sparf_problem *problem);
void sparf_answer_free(struct sparf_answer *answer);

// All of it.
void sparf_solve(const struct sparf_problem *problem, struct sparf_answer *answer);
// Only what follows the choice of tokens: answer->rank and answer->channel are there, answer->token
// was changed by the caller. For choices that fp32 and double may make differently.
void sparf_finish(const struct sparf_problem *problem, struct sparf_answer *answer);
// Dense attention of one query head over the same tokens.
void sparf_dense(const struct sparf_problem *problem, uint32_t head, double *out, double *lse);

#endif
