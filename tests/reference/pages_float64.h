// SPDX-License-Identifier: Apache-2.0
// What METHOD_PAGES computes for KV heads that choose together, in double and from the words of
// docs/pages.md alone.
#ifndef INST_TESTS_PAGES_FLOAT64_H
#define INST_TESTS_PAGES_FLOAT64_H

#include <stdbool.h>
#include <stdint.h>

struct pages_problem {
    uint32_t heads, head_dim, group, tokens, piece, keys, local;
    double scale, ratio, mass; // mass 0: the ratio alone
    double softcap;            // 0: none
    bool no_rest;
    uint32_t bits;           // a channel of a key
    const double *q, *k, *v; // [heads][group][head_dim], [heads][tokens][head_dim]
};

struct pages_answer {
    bool *token;      // [tokens]: read
    double *out;      // [heads][group][head_dim]
    double *captured; // [heads][group]: true share of the softmax
};

// `answer` has room.
void pages_solve(const struct pages_problem *problem, struct pages_answer *answer);

#endif
