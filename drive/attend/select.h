// SPDX-License-Identifier: Apache-2.0
// Which channels and tokens SparF takes. Pure; ties go to the lower index; NaN ranks last.
#ifndef INST_DRIVE_ATTEND_SELECT_H
#define INST_DRIVE_ATTEND_SELECT_H

#include <stdbool.h>
#include <stdint.h>

// The r <= dim largest of weight[dim], in ascending order of their index.
void select_channels(const double *weight, uint32_t dim, uint32_t r, uint32_t *channels);
// Sets the bits of the last `local` tokens and of the k - local largest scores among the others;
// scores are not negative. local <= k <= n. `chosen` holds n bits, rounded up to words of 64.
void select_tokens(const float *scores, uint64_t n, uint64_t k, uint64_t local, uint64_t *chosen);
// Bits set in [first, end).
uint64_t select_count(const uint64_t *chosen, uint64_t first, uint64_t end);

// The first token of [first, end) whose bit is `value`; end: there is none.
uint64_t select_next(const uint64_t *chosen, bool value, uint64_t first, uint64_t end);

#endif
