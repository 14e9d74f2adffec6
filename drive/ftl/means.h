// SPDX-License-Identifier: Apache-2.0
// Running sums of V of one layer, from which SparF takes the mean value of a prefix. Sums are kept
// in fixed point, units of 2^-24 (the least fp16): every addition is exact, so that no order of
// appending, forking or reading back changes a bit. Marks keep the sums at every MEANS_STEP tokens;
// a FORK or truncation goes back to a mark and leaves a gap of fewer tokens, whose V somebody reads
// and adds later (means_fill). An infinite or NaN element counts as a number of 2^16 to 2^17.
#ifndef INST_DRIVE_FTL_MEANS_H
#define INST_DRIVE_FTL_MEANS_H

#include "drive/ftl/map.h"

#include <stdint.h>

enum { MEANS_STEP = 1024 };

// Tokens [first, end); empty when both are equal.
struct mean_gap {
    uint64_t first, end;
};

struct mean_head {
    struct mean_gap gap;  // the sums lack these tokens, and so do marks behind them
    struct mean_gap hole; // marks at (first, end] are wrong: several gaps met there
};

struct means {
    uint32_t kv_heads, head_dim;
    struct budget *budget;
    struct mean_head *heads; // [kv_heads]
    uint64_t *sums;          // [kv_heads][head_dim], two's complement
    struct map_kind *kind;
    struct map marks; // entry i: sums at (i + 1) * MEANS_STEP tokens
};

// Bytes that a layer of `tokens` tokens takes.
uint64_t means_bytes(uint32_t kv_heads, uint32_t head_dim, uint64_t tokens);

// Of the marks of all means that can be forked from each other.
void means_kind(struct map_kind *kind, uint32_t kv_heads, uint32_t head_dim, struct budget *budget);
int means_open(struct means *means, struct map_kind *kind, uint32_t kv_heads, uint32_t head_dim,
               struct budget *budget, struct inst_msg *msg);
void means_close(struct means *means, struct budget *budget); // zeroed is fine
// Room for the marks of `tokens` tokens.
int means_reserve(struct means *means, uint64_t tokens, struct inst_msg *msg);
// V [n][head_dim] of tokens [first, first + n); first is how many the head has so far. Room was
// reserved.
void means_append(struct means *means, uint32_t head, uint64_t first, const uint16_t *v,
                  uint64_t n);
// Before a layer is cut to `tokens`; head_tokens are those before the cut.
void means_truncate(struct means *means, const uint64_t *head_tokens, uint64_t tokens);
// Makes the empty `to` the means of the first `tokens` tokens.
int means_fork(const struct means *from, const uint64_t *head_tokens, struct means *to,
               uint64_t tokens, struct inst_msg *msg);

// Sums of the head's first `tokens` tokens, less those of *gap.
void means_get(const struct means *means, uint32_t head, uint64_t head_tokens, uint64_t tokens,
               uint64_t *sums, struct mean_gap *gap);
// Gives the head the sums over its gap, if that is still the same one.
void means_fill(struct means *means, uint32_t head, uint64_t head_tokens,
                const struct mean_gap *gap, const uint64_t *sums);
// sums[d] += v[i][d]
void means_add(uint64_t *sums, const uint16_t *v, uint64_t n, uint32_t head_dim);
float means_value(uint64_t sum, uint64_t tokens);

#endif
