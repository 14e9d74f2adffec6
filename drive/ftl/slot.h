// SPDX-License-Identifier: Apache-2.0
// The inside of a slot: K of T tokens, then V of T tokens, of one KV head. V lies token by token. K
// lies channel by channel in parts of k_tokens consecutive tokens, [T /
// k_tokens][head_dim][k_tokens], as attention takes it (struct attention_tile). Nobody else does
// arithmetic inside a slot, and nothing of this order shows outside the drive: commands carry K
// token by token.
#ifndef INST_DRIVE_FTL_SLOT_H
#define INST_DRIVE_FTL_SLOT_H

#include "kernels/kernels.h"

struct slot {
    uint32_t tokens;   // T, a power of two from 16 on
    uint32_t k_tokens; // of a part: 16, 32 or 64
    uint32_t head_dim;
};

// page_bytes: parts are no larger than a page, so that K of a token lies in one; for methods that
// read single pages. 0: rows are read as a whole.
struct slot slot_layout(uint32_t tokens, uint32_t head_dim, uint32_t page_bytes);

static inline uint64_t slot_bytes(const struct slot *s)
{
    return 4ull * s->tokens * s->head_dim;
}

// Which bytes of a slot hold K, or V, of the tokens [t, t + n).
struct slot_range {
    uint64_t offset, bytes;
};
struct slot_range slot_k(const struct slot *s, uint64_t t, uint64_t n); // whole parts
struct slot_range slot_v(const struct slot *s, uint64_t t, uint64_t n);
// Channel c of K of token t and of the tokens behind it in its part. Never in two pages.
static inline uint64_t slot_channel(const struct slot *s, uint64_t t, uint32_t c)
{
    return 2 * (t / s->k_tokens * s->k_tokens * s->head_dim + c * s->k_tokens + t % s->k_tokens);
}

// Stores tokens [t, t + n); k and v are rows of head_dim.
void slot_put(const struct slot *s, void *slot, uint64_t t, uint64_t n, const uint16_t *k,
              const uint16_t *v);
// Gives them back.
void slot_get(const struct slot *s, const void *slot, uint64_t t, uint64_t n, uint16_t *k,
              uint16_t *v);

// Makes the slot's tokens from t on, which k_tokens divides, the tile's tokens from `at` on, up to
// the end of one of them. Returns how many that were. Sets nothing of the tile but parts.
uint32_t slot_tile(const struct slot *s, const void *slot, uint64_t t, struct attention_tile *tile,
                   uint32_t at);

#endif
