// SPDX-License-Identifier: Apache-2.0
#include "drive/ftl/slot.h"
#include "base/checked.h"

struct slot slot_layout(uint32_t type, uint32_t tokens, uint32_t head_dim, uint32_t part_bytes,
                        uint32_t part_tokens)
{
    struct slot s = {.type = type, .tokens = tokens, .head_dim = head_dim};
    s.k_tokens = (uint32_t)min_u64(min_u64(tokens, ATTENTION_TILE), part_tokens);
    while (part_bytes && s.k_tokens > KERNEL_LANES &&
           kv_key_bytes(type, head_dim, s.k_tokens) > part_bytes)
        s.k_tokens /= 2;
    return s;
}

struct slot_range slot_k(const struct slot *s, uint64_t t, uint64_t n)
{
    uint64_t part = kv_key_bytes(s->type, s->head_dim, s->k_tokens);
    uint64_t first = t / s->k_tokens, end = div_round_up(t + n, s->k_tokens);
    return (struct slot_range){first * part, (end - first) * part};
}

struct slot_range slot_v(const struct slot *s, uint64_t t, uint64_t n)
{
    uint64_t each = slot_v_tokens(s), bytes = kv_value_bytes(s->type, s->head_dim, each);
    uint64_t first = t / each, end = div_round_up(t + n, each);
    return (struct slot_range){kv_key_bytes(s->type, s->head_dim, s->tokens) + first * bytes,
                               (end - first) * bytes};
}

// The parts of token t.
static uint8_t *k_part(const struct slot *s, const void *slot, uint64_t t)
{
    return (uint8_t *)(uintptr_t)slot + slot_k(s, t, 1).offset;
}

static uint8_t *v_part(const struct slot *s, const void *slot, uint64_t t)
{
    return (uint8_t *)(uintptr_t)slot + slot_v(s, t / s->k_tokens * s->k_tokens, 1).offset;
}

void slot_put(const struct slot *s, void *slot, uint64_t t, uint64_t n, const uint16_t *k,
              const uint16_t *v)
{
    size_t dim = s->head_dim, w = s->k_tokens;
    for (uint64_t now; n; n -= now, t += now, k += now * dim, v += now * dim) {
        now = min_u64(n, w - t % w);
        kv_put(s->type, k_part(s, slot, t), v_part(s, slot, t), w, dim, t % w, now, k, v);
    }
}

void slot_get(const struct slot *s, const void *slot, uint64_t t, uint64_t n, uint16_t *k,
              uint16_t *v)
{
    size_t dim = s->head_dim, w = s->k_tokens;
    for (uint64_t now; n; n -= now, t += now, k += now * dim, v += now * dim) {
        now = min_u64(n, w - t % w);
        kv_get(s->type, k_part(s, slot, t), v_part(s, slot, t), w, dim, t % w, now, k, v);
    }
}

uint32_t slot_tile(const struct slot *s, const void *slot, uint64_t t, struct attention_tile *tile,
                   uint32_t at)
{
    uint32_t n = (uint32_t)min_u64(ATTENTION_TILE - at, s->tokens - t);
    tile->type = s->type;
    tile->part_tokens = s->k_tokens;
    for (uint32_t i = 0; i < n; i += s->k_tokens) {
        tile->k[(at + i) / s->k_tokens] = k_part(s, slot, t + i);
        tile->v[(at + i) / s->k_tokens] = v_part(s, slot, t + i);
    }
    return n;
}
