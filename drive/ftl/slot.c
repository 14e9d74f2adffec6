// SPDX-License-Identifier: Apache-2.0
#include "drive/ftl/slot.h"
#include "base/checked.h"

#include <string.h>

struct slot slot_layout(uint32_t tokens, uint32_t head_dim, uint32_t page_bytes)
{
    struct slot s = {.tokens = tokens, .head_dim = head_dim};
    s.k_tokens = (uint32_t)min_u64(tokens, ATTENTION_TILE);
    while (page_bytes && s.k_tokens > KERNEL_LANES && 2ull * s.k_tokens * head_dim > page_bytes)
        s.k_tokens /= 2;
    return s;
}

struct slot_range slot_k(const struct slot *s, uint64_t t, uint64_t n)
{
    uint64_t part = 2ull * s->k_tokens * s->head_dim;
    uint64_t first = t / s->k_tokens, end = div_round_up(t + n, s->k_tokens);
    return (struct slot_range){first * part, (end - first) * part};
}

struct slot_range slot_v(const struct slot *s, uint64_t t, uint64_t n)
{
    uint64_t row = 2ull * s->head_dim;
    return (struct slot_range){(s->tokens + t) * row, n * row};
}

void slot_put(const struct slot *s, void *slot, uint64_t t, uint64_t n, const uint16_t *k,
              const uint16_t *v)
{
    uint16_t *to = slot;
    size_t dim = s->head_dim;
    memcpy((uint8_t *)slot + slot_v(s, t, n).offset, v, slot_v(s, t, n).bytes);
    while (n) {
        uint64_t now = min_u64(n, s->k_tokens - t % s->k_tokens);
        kernel_transpose16(to + slot_channel(s, t, 0) / 2, s->k_tokens, k, dim, now, dim);
        k += now * dim;
        t += now;
        n -= now;
    }
}

void slot_get(const struct slot *s, const void *slot, uint64_t t, uint64_t n, uint16_t *k,
              uint16_t *v)
{
    const uint16_t *from = slot;
    size_t dim = s->head_dim;
    memcpy(v, (const uint8_t *)slot + slot_v(s, t, n).offset, slot_v(s, t, n).bytes);
    while (n) {
        uint64_t now = min_u64(n, s->k_tokens - t % s->k_tokens);
        kernel_transpose16(k, dim, from + slot_channel(s, t, 0) / 2, s->k_tokens, dim, now);
        k += now * dim;
        t += now;
        n -= now;
    }
}

uint32_t slot_tile(const struct slot *s, const void *slot, uint64_t t, struct attention_tile *tile,
                   uint32_t at)
{
    uint32_t n = (uint32_t)min_u64(ATTENTION_TILE - at, s->tokens - t);
    tile->part_tokens = s->k_tokens;
    for (uint32_t i = 0; i < n; i += s->k_tokens) {
        tile->k[(at + i) / s->k_tokens] =
            (const uint16_t *)((const uint8_t *)slot + slot_k(s, t + i, 1).offset);
        tile->v[(at + i) / s->k_tokens] =
            (const uint16_t *)((const uint8_t *)slot + slot_v(s, t + i, 1).offset);
    }
    return n;
}
