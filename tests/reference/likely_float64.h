// SPDX-License-Identifier: Apache-2.0
// What METHOD_PAGES computes where it looks at the likeliest keys alone, in double and from the
// words of docs/pages.md. Which clusters there are is given: they are checked by themselves.
// Beside it, how well keys can be put together.
#ifndef INST_TESTS_LIKELY_FLOAT64_H
#define INST_TESTS_LIKELY_FLOAT64_H

#include "pages_float64.h"

struct likely_block {
    uint32_t first, pieces, coarse, fine, keys;
    const double *mean, *spread;            // [coarse + fine][head_dim], turned; [coarse + fine]
    const uint32_t *fine_first, *key_first; // [coarse + 1], [fine + 1]
    const double *key;                      // [keys][head_dim], turned, less the mean of the piece
    const double *size;                     // [keys]: of 2 bits, a step, and of 1 that of 0 to 1
    const uint32_t *piece, *count;          // [keys]; pieces are counted from `first`
};

struct likely_problem {
    struct pages_problem pages; // without a mass; `no_rest` is understood
    uint32_t look, blocks;
    const struct likely_block *block; // [heads][blocks]
};

struct likely_answer {
    struct pages_answer pages;
    double *predicted; // [heads][group]: share that is promised to be captured
};

// Blocks of so many complete pieces; what is in none is left out. first[i], first[i + 1]: where
// block i begins and ends. Returns how many there are.
uint32_t likely_blocks(uint32_t look, uint32_t piece, uint64_t pieces, uint64_t first[16]);

// Keys that a query head weighs; 0: all.
double likely_looked(const struct likely_problem *problem);
// Only where that is not 0. `answer` has room.
void likely_solve(const struct likely_problem *problem, struct likely_answer *answer);

// The mean square of a key's distance from the middle of its group, summed over channels. which[n]
// names the groups of keys x[n][dim].
double likely_scatter(const double *x, uint32_t n, uint32_t dim, const uint32_t *which,
                      uint32_t groups);
// Plain k-means in two levels, all keys in ten rounds: which[n]. Returns the number of groups.
uint32_t likely_group(const double *x, uint32_t n, uint32_t dim, uint32_t coarse, uint32_t each,
                      uint32_t *which);

#endif
