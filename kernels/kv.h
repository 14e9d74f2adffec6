// SPDX-License-Identifier: Apache-2.0
// How K and V of a token lie in a space: as fp16, or in blocks of 32 channels with 8 or 4 bits each
// (docs/decisions/0018-kv-types.md). Blocks are made of one token and head alone, so what a query
// sees of a token depends on nothing else.
//
// What a block holds are fp16 values: a scale s has 4 significant bits, so that s times a code is
// one exactly. Therefore K and V travel as fp16 everywhere, whoever rounds them (kv_round and
// kv_round_value) gets what will be stored, and rounding what was rounded changes nothing.
//   Q8: s c, c = -127 to 127; a byte b for s = fp16(b << 7) / 64
//   Q4: s (c - z), c and z = 0 to 15; a byte b for s = fp16(b << 7) / 8, 4 bits for z
// A block with a number that is not finite is NaN in all channels.
//
// Codes have 8 or 4 bits, and a whole block has nothing else: the scales of K and of V lie in the
// lowest bits of the codes of V (kv_hidden), which are rounded so that they do. So K and V take
// whole pages. Only a last block of less than 32 channels has its scales behind the codes: a byte
// each, of Q4 a word b << 7 | z.
//
// They lie in parts of `tokens` tokens (a multiple of 16) of one KV head, which attention takes as
// they are (struct attention_tile):
//   K f16: [channel][token]. Q8: codes [channel][token]. Q4: the same, with channels 2 i and
//     2 i + 1 in the low and high halves of a byte. Then the scales of the last block [token].
//   V f16: [token][channel]. Q8: codes [token][channel]. Q4: of each block the first 16 channels
//     in the low halves of bytes, the others in the high ones. Then scales as for K.
#ifndef INST_KERNELS_KV_H
#define INST_KERNELS_KV_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum kv_type { KV_F16, KV_Q8, KV_Q4, KV_TYPES };

enum { KV_BLOCK = 32 };

// A block: scale (a byte b above), zero point, and codes as integers.
struct kv_block {
    uint8_t scale, zero;
    int8_t code[KV_BLOCK];
};

static inline size_t kv_blocks(size_t head_dim)
{
    return (head_dim + KV_BLOCK - 1) / KV_BLOCK;
}

// Bytes of a token's scales behind the codes of K, and of V.
static inline size_t kv_tail_bytes(uint32_t type, size_t head_dim)
{
    return head_dim % KV_BLOCK == 0 ? 0 : type == KV_Q8 ? 1 : type == KV_Q4 ? 2 : 0;
}

// Rows of codes of a part of K, each of a byte or fp16 for a token.
static inline size_t kv_key_rows(uint32_t type, size_t head_dim)
{
    return type == KV_Q4 ? (head_dim + 1) / 2 : head_dim;
}

// Bytes of the codes of V of a token.
static inline size_t kv_value_codes(uint32_t type, size_t head_dim)
{
    size_t rest = head_dim % KV_BLOCK;
    if (type == KV_F16)
        return 2 * head_dim;
    if (type == KV_Q8)
        return head_dim;
    return head_dim / KV_BLOCK * (KV_BLOCK / 2) + (rest < KV_BLOCK / 2 ? rest : KV_BLOCK / 2);
}

// Bytes of a part.
static inline size_t kv_key_bytes(uint32_t type, size_t head_dim, size_t tokens)
{
    size_t codes = kv_key_rows(type, head_dim) * (type == KV_F16 ? 2 : 1);
    return tokens * (codes + kv_tail_bytes(type, head_dim));
}

static inline size_t kv_value_bytes(uint32_t type, size_t head_dim, size_t tokens)
{
    return tokens * (kv_value_codes(type, head_dim) + kv_tail_bytes(type, head_dim));
}

// K and V of a token of one head.
static inline size_t kv_token_bytes(uint32_t type, size_t head_dim)
{
    return kv_key_bytes(type, head_dim, 1) + kv_value_bytes(type, head_dim, 1);
}

// "f16", "q8", "q4"; NULL for what is no type.
const char *kv_type_name(uint32_t type);
// The other way round, f16 without a name; KV_TYPES for what is none.
uint32_t kv_type_named(const char *name);

// The lowest bits of 8 bytes.
static inline uint32_t kv_low_bits(uint64_t bytes)
{
    return (uint32_t)((bytes & 0x0101010101010101) * 0x0102040810204080 >> 56);
}

// What a whole block of V carries in its codes: b of K in bits 0 to 7, b of V in 8 to 15, of Q4
// also z of K in 16 to 19 and z of V in 20 to 23. Bit i < 16: are the codes of channels i and
// i + 16 odd together? Bit 16 + i: is that of channel i odd?
static inline uint32_t kv_hidden(uint32_t type, const uint8_t *codes)
{
    uint64_t low[2], high[2];
    memcpy(low, codes, sizeof low);
    if (type == KV_Q4)
        return kv_low_bits(low[0] ^ low[0] >> 4) | kv_low_bits(low[1] ^ low[1] >> 4) << 8 |
               kv_low_bits(low[0]) << 16;
    memcpy(high, codes + sizeof low, sizeof high);
    return kv_low_bits(low[0] ^ high[0]) | kv_low_bits(low[1] ^ high[1]) << 8;
}

// Rounds head_dim channels of K of one token and head to what would be stored.
void kv_round(uint32_t type, uint16_t *k, size_t head_dim);
// The same of V, beside whose token's K, rounded or not, it will lie.
void kv_round_value(uint32_t type, uint16_t *v, const uint16_t *k, size_t head_dim);

// x[n] times a Hadamard matrix of entries 1 and -1; n: a power of two. In a fixed order, equal
// everywhere.
void kv_hadamard(float *x, size_t n);

// Turns q or K of one head, in place: blocks of as many channels as the greatest power of two that
// divides head_dim go through a Hadamard matrix, so that no channel is much larger than the others,
// and some change their sign, so that turning them by that matrix again is not the way back. What
// was turned has the products with each other that it had before, but for rounding.
void kv_turn(float *x, size_t head_dim);

// Tokens [t, t + n) of parts of K and V of `tokens` tokens, from or to rows of head_dim.
void kv_put(uint32_t type, void *keys, void *values, size_t tokens, size_t head_dim, size_t t,
            size_t n, const uint16_t *k, const uint16_t *v);
void kv_get(uint32_t type, const void *keys, const void *values, size_t tokens, size_t head_dim,
            size_t t, size_t n, uint16_t *k, uint16_t *v);

// One number of K or V of a token.
float kv_key(uint32_t type, const void *keys, const void *values, size_t tokens, size_t head_dim,
             size_t t, size_t c);
float kv_value(uint32_t type, const void *values, size_t tokens, size_t head_dim, size_t t,
               size_t c);

#endif
