// SPDX-License-Identifier: Apache-2.0
// The inside of a slot: what is put comes back whatever the pieces, lies where the ranges say, and
// is what a tile over the slot shows; a part is no larger than a page where pages are read.
#include "drive/ftl/slot.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static uint64_t state = 3;

static uint64_t pick(uint64_t below)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (state >> 33) % below;
}

struct scene {
    struct slot slot;
    uint16_t *k, *v; // [T][head_dim]
    uint8_t *bytes;
};

static struct scene scene_new(uint32_t tokens, uint32_t head_dim, uint32_t page_bytes)
{
    struct scene s = {.slot = slot_layout(KV_F16, tokens, head_dim, page_bytes, 64)};
    size_t n = (size_t)tokens * head_dim;
    s.k = malloc(2 * n);
    s.v = malloc(2 * n);
    for (size_t i = 0; i < n; i++) {
        s.k[i] = (uint16_t)pick(65536);
        s.v[i] = (uint16_t)pick(65536);
    }
    assert_int_equal(slot_bytes(&s.slot), 4 * n);
    s.bytes = malloc(4 * n);
    return s;
}

static void scene_free(struct scene *s)
{
    free(s->k);
    free(s->v);
    free(s->bytes);
}

static void put(struct scene *s, uint64_t t, uint64_t n)
{
    uint32_t dim = s->slot.head_dim;
    slot_put(&s->slot, s->bytes, t, n, s->k + t * dim, s->v + t * dim);
}

// K and V of all tokens, one after the other, through ranges and channels.
static void expect_tokens(const struct scene *s)
{
    uint32_t dim = s->slot.head_dim;
    uint64_t half = slot_bytes(&s->slot) / 2;
    for (uint64_t t = 0; t < s->slot.tokens; t++) {
        struct slot_range k = slot_k(&s->slot, t, 1), v = slot_v(&s->slot, t, 1);
        assert_true(v.offset >= half && v.offset + v.bytes <= 2 * half && v.bytes == 2 * dim);
        assert_memory_equal(s->bytes + v.offset, s->v + t * dim, 2 * dim);
        assert_true(k.offset + k.bytes <= half && k.bytes == 2ull * s->slot.k_tokens * dim);
        for (uint32_t c = 0; c < dim; c++) {
            uint64_t at = slot_channel(&s->slot, t, c);
            assert_true(at >= k.offset && at < k.offset + k.bytes);
            assert_memory_equal(s->bytes + at, s->k + t * dim + c, 2);
        }
    }
}

static void expect_tiles(const struct scene *s)
{
    uint32_t dim = s->slot.head_dim;
    for (uint64_t first = 0; first < s->slot.tokens; first += ATTENTION_TILE) {
        struct attention_tile tile = {0};
        uint32_t n = slot_tile(&s->slot, s->bytes, first, &tile, 0);
        assert_int_equal(n, s->slot.tokens < 64 ? s->slot.tokens : 64);
        for (uint32_t i = 0; i < n; i++) {
            uint32_t w = tile.part_tokens;
            assert_memory_equal((const uint16_t *)tile.v[i / w] + i % w * dim,
                                s->v + (first + i) * dim, 2 * dim);
            for (uint32_t c = 0; c < dim; c++)
                assert_int_equal(((const uint16_t *)tile.k[i / w])[c * w + i % w],
                                 s->k[(first + i) * dim + c]);
        }
    }
}

static void test_pieces(void **state_)
{
    (void)state_;
    static const uint32_t groups[] = {16, 32, 64, 128, 1024}, dims[] = {1, 8, 24, 63, 64, 80, 128};
    for (size_t g = 0; g < 5; g++) {
        for (size_t d = 0; d < 7; d++) {
            struct scene s = scene_new(groups[g], dims[d], pick(2) ? 0 : 512u << pick(5));
            for (uint64_t t = 0, n; t < groups[g]; t += n) {
                n = 1 + pick(groups[g] - t < 70 ? groups[g] - t : 70);
                put(&s, t, n);
            }
            expect_tokens(&s);
            expect_tiles(&s);
            for (int round = 0; round < 50; round++) {
                uint64_t t = pick(groups[g]), n = 1 + pick(groups[g] - t);
                uint16_t *k = malloc(2 * n * dims[d]), *v = malloc(2 * n * dims[d]);
                slot_get(&s.slot, s.bytes, t, n, k, v);
                assert_memory_equal(k, s.k + t * dims[d], 2 * n * dims[d]);
                assert_memory_equal(v, s.v + t * dims[d], 2 * n * dims[d]);
                free(k);
                free(v);
            }
            scene_free(&s);
        }
    }
}

// Appending leaves what is there alone.
static void test_append(void **state_)
{
    (void)state_;
    struct scene s = scene_new(64, 40, 0);
    memset(s.bytes, 0x5a, 64 * 40 * 4);
    put(&s, 0, 21);
    for (uint64_t t = 21; t < 64; t++) {
        put(&s, t, 1);
        uint16_t k[64 * 40], v[64 * 40];
        slot_get(&s.slot, s.bytes, 0, t + 1, k, v);
        assert_memory_equal(k, s.k, 2 * (t + 1) * 40);
        assert_memory_equal(v, s.v, 2 * (t + 1) * 40);
    }
    scene_free(&s);
}

// Four short slots make a tile.
static void test_short_slots(void **state_)
{
    (void)state_;
    struct scene s[4];
    struct attention_tile tile = {0};
    uint32_t at = 0;
    for (int i = 0; i < 4; i++) {
        s[i] = scene_new(16, 8, 0);
        put(&s[i], 0, 16);
        at += slot_tile(&s[i].slot, s[i].bytes, 0, &tile, at);
    }
    assert_int_equal(at, 64);
    assert_int_equal(tile.part_tokens, 16);
    for (uint32_t t = 0; t < 64; t++) {
        assert_memory_equal((const uint16_t *)tile.v[t / 16] + t % 16 * 8, s[t / 16].v + t % 16 * 8,
                            16);
        for (uint32_t c = 0; c < 8; c++)
            assert_int_equal(((const uint16_t *)tile.k[t / 16])[c * 16 + t % 16],
                             s[t / 16].k[t % 16 * 8 + c]);
    }
    for (int i = 0; i < 4; i++)
        scene_free(&s[i]);
}

static void test_pages(void **state_)
{
    (void)state_;
    static const struct {
        uint32_t tokens, head_dim, page, k_tokens;
    } cases[] = {{16, 128, 4096, 16}, {64, 64, 4096, 32}, {64, 128, 4096, 16},  {256, 64, 0, 64},
                 {32, 128, 0, 32},    {64, 8, 4096, 64},  {64, 512, 4096, 16},  {128, 80, 4096, 16},
                 {64, 32, 4096, 64},  {64, 64, 8192, 64}, {64, 128, 16384, 64}, {16, 8, 512, 16}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct slot s = slot_layout(KV_F16, cases[i].tokens, cases[i].head_dim, cases[i].page, 64);
        assert_int_equal(s.k_tokens, cases[i].k_tokens);
        // Tokens that shared a page before they were turned still do.
        for (uint64_t t = 0; cases[i].page && cases[i].head_dim <= 128 &&
                             !(cases[i].head_dim & (cases[i].head_dim - 1)) && t < s.tokens;
             t++) {
            struct slot_range k = slot_k(&s, t, 1);
            assert_int_equal(k.offset / cases[i].page, 2 * t * s.head_dim / cases[i].page);
            assert_int_equal((k.offset + k.bytes - 1) / cases[i].page, k.offset / cases[i].page);
        }
        // Nor does a channel of a part straddle pages, whatever the head that the slot is of.
        for (uint64_t head = 0; cases[i].page && head < 5; head++)
            for (uint32_t c = 0; c < s.head_dim; c++) {
                uint64_t at = head * slot_bytes(&s) + slot_channel(&s, 0, c);
                assert_int_equal(at / cases[i].page, (at + 2 * s.k_tokens - 1) / cases[i].page);
            }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_append),
        cmocka_unit_test(test_short_slots),
        cmocka_unit_test(test_pages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
