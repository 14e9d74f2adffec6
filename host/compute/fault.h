// SPDX-License-Identifier: Apache-2.0
// Numbers that are none, as whoever computes tells of them: a word for each row, 0 where all is
// well. Of several faults of a row the least counts.
#ifndef INST_HOST_COMPUTE_FAULT_H
#define INST_HOST_COMPUTE_FAULT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum fault_kind { FAULT_Q, FAULT_K, FAULT_V, FAULT_LOGITS };

static inline uint32_t fault_word(enum fault_kind kind, bool no_number)
{
    return 1 + ((unsigned)kind << 1 | no_number);
}

static inline enum fault_kind fault_kind(uint32_t word)
{
    return (enum fault_kind)((word - 1) >> 1);
}

// False: a number that fp16 cannot hold.
static inline bool fault_no_number(uint32_t word)
{
    return (word - 1) & 1;
}

bool numbers_are_finite(const float *x, size_t n);
// Look at n numbers; h holds them as fp16. *word gets what is worse than what it has.
void fault_check(uint32_t *word, enum fault_kind kind, const float *x, size_t n);
void fault_check_f16(uint32_t *word, enum fault_kind kind, const uint16_t *h, const float *x,
                     size_t n);

#endif
