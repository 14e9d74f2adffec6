// SPDX-License-Identifier: Apache-2.0
// Every kernel over a fixed, deterministic set of inputs: odd sizes, all types, limits, values
// that are hard (zeros of both signs, subnormals, infinities, NaN). Stands on kernels/ and libc
// alone, so that it also runs on other CPUs.
#ifndef INST_TESTS_KERNELS_CASES_H
#define INST_TESTS_KERNELS_CASES_H

#include "kernels/kernels.h"

// One case: its name and the hash of the bits it gave (any NaN counts as the same NaN).
typedef void case_fn(void *arg, const char *name, uint64_t hash);

void cases_run(const struct kernels *k, case_fn *emit, void *arg);
// Parts of it, in files of their own: K and V in blocks, ranking tokens.
void cases_kv(const struct kernels *k, case_fn *emit, void *arg);
void cases_sparf(const struct kernels *k, case_fn *emit, void *arg);

// A deterministic stream of numbers.
uint64_t cases_random(uint64_t *state);
// About uniform in (-1, 1).
float cases_uniform(uint64_t *state);

// A random weight matrix of this type in `data` (rows * row_bytes bytes, which it computes).
struct weight cases_weight(uint64_t *state, uint32_t type, size_t rows, size_t cols, uint8_t *data);

// Rows of x as products with the type take them, to be freed, and *stride of these rows; NULL where
// they take x as it is.
float *cases_rounded(const struct kernels *k, uint32_t type, const float *x, size_t *stride,
                     size_t cols, size_t n_rows);

// A tile over copies of K and V [tokens][head_dim], each part of them an allocation of its own.
struct attention_tile cases_tile(const uint16_t *k, const uint16_t *v, uint32_t tokens,
                                 uint32_t head_dim, uint32_t part_tokens);
// The same in blocks (enum kv_type); part_tokens is not 0.
struct attention_tile cases_tile_of(uint32_t type, const uint16_t *k, const uint16_t *v,
                                    uint32_t tokens, uint32_t head_dim, uint32_t part_tokens);
void cases_tile_free(struct attention_tile *tile);

#endif
