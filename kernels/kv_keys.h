// SPDX-License-Identifier: Apache-2.0
// Rounding K for the queries that will meet it. Of kv.h's rounding this is the sender's part: what
// comes out is a fixed point of kv_round, so that whoever stores it needs to know nothing of it.
#ifndef INST_KERNELS_KV_KEYS_H
#define INST_KERNELS_KV_KEYS_H

#include "kernels/kv.h"

// How much the errors of channels matter together: M = the sum of q q^T over queries q of a head,
// its lower triangle row by row. kv_factor makes of it, in place, what kv_round_keys takes: L below
// the diagonal and D on it, where L D L^T = M and a little of the identity. Plain C in a fixed
// order, equal everywhere.
static inline size_t kv_triangle(size_t n)
{
    return n * (n + 1) / 2;
}
void kv_factor(float *m, size_t head_dim);

// Rounds K of some heads, `stride` numbers apart, to what would be stored, so that its products
// with such queries change least: what rounding a channel does to them, the channels that are not
// rounded yet make good again. What comes out is a fixed point of kv_round. The factors of heads
// follow each other.
void kv_round_keys(uint32_t type, uint16_t *k, size_t stride, size_t heads, size_t head_dim,
                   const float *factors);

#endif
