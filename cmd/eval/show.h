// SPDX-License-Identifier: Apache-2.0
// How the answers of `instinfer eval` are shown: a table, the same as CSV, and pictures.
#ifndef INST_CMD_EVAL_SHOW_H
#define INST_CMD_EVAL_SHOW_H

#include "cmd/eval/eval.h"

#include <stdio.h>

// The answers to one task behind contexts of one length, a result for each cell.
struct eval_block {
    const char *task;
    uint64_t tokens;
    struct eval_result *results;
};

void eval_show_head(FILE *csv);
// Cells with or without the row cache.
void eval_show_table(const struct eval_block *block, const struct eval_cell *cells, size_t n_cells,
                     bool cached);
void eval_show_csv(FILE *csv, const struct eval_block *block, const struct eval_cell *cells,
                   size_t n_cells);
// For each block, accuracy and KL over the share of KV that was read; a line for each method. 0 or
// an exit code.
int eval_show_svg(FILE *svg, const struct eval_block *blocks, size_t n_blocks,
                  const struct eval_cell *cells, size_t n_cells);

#endif
