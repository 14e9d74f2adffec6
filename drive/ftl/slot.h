// SPDX-License-Identifier: Apache-2.0
// The inside of a slot: K of T tokens, then V of T tokens, of one KV head, each in parts of
// k_tokens consecutive tokens as attention takes them (kernels/kv.h): fp16, K channel by channel
// and V token by token, or blocks of fewer bits. Nobody else does arithmetic inside a slot, and
// nothing of this order shows outside the drive: commands carry K and V token by token, as fp16.
#ifndef INST_DRIVE_FTL_SLOT_H
#define INST_DRIVE_FTL_SLOT_H

#include "kernels/kernels.h"

struct slot {
    uint32_t tokens;   // T, a power of two from 16 on
    uint32_t k_tokens; // of a part: 16, 32 or 64
    uint32_t head_dim;
    uint32_t type; // enum kv_type
};

// part_bytes, not 0: parts of K are no larger, so that K of a token lies in one page; for methods
// that read single pages. Nor have parts more than part_tokens tokens.
struct slot slot_layout(uint32_t type, uint32_t tokens, uint32_t head_dim, uint32_t part_bytes,
                        uint32_t part_tokens);

static inline uint64_t slot_bytes(const struct slot *s)
{
    return kv_key_bytes(s->type, s->head_dim, s->tokens) +
           kv_value_bytes(s->type, s->head_dim, s->tokens);
}

// Consecutive tokens of V that are had together.
static inline uint32_t slot_v_tokens(const struct slot *s)
{
    return s->type == KV_F16 ? 1 : s->k_tokens;
}

// Which bytes of a slot hold K, or V, of the tokens [t, t + n).
struct slot_range {
    uint64_t offset, bytes;
};
struct slot_range slot_k(const struct slot *s, uint64_t t, uint64_t n); // whole parts
struct slot_range slot_v(const struct slot *s, uint64_t t, uint64_t n); // the same, of blocks
// Of fp16: channel c of K of token t and of the tokens behind it in its part. Never in two pages.
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
// the end of one of them. Returns how many that were. Sets nothing of the tile but parts and their
// type.
uint32_t slot_tile(const struct slot *s, const void *slot, uint64_t t, struct attention_tile *tile,
                   uint32_t at);

#endif
