// SPDX-License-Identifier: Apache-2.0
#include "pages_bits.h"

#include <stdlib.h>

enum { STEPS = 6, Q_HEADS = PAGES_Q_HEADS, DIM = PAGES_HEAD_DIM };

struct scene pages_scene(enum scene_kind kind)
{
    struct scene s = {.kind = kind,
                      .layers = PAGES_LAYERS,
                      .kv_heads = PAGES_KV_HEADS,
                      .q_heads = Q_HEADS,
                      .head_dim = DIM,
                      .tokens = PAGES_TOKENS};
    scene_new(&s, 7);
    return s;
}

static uint64_t hash_result(uint64_t hash, const struct scene_result *r)
{
    const float *parts[] = {r->out, r->lse, r->captured};
    for (int part = 0; part < 3; part++) {
        const uint8_t *p = (const uint8_t *)parts[part];
        size_t n = (part ? Q_HEADS : Q_HEADS * DIM) * sizeof(float);
        for (size_t i = 0; i < n; i++)
            hash = (hash ^ p[i]) * 1099511628211u;
    }
    return hash;
}

// A step in all layers.
static uint64_t step(struct rig *rig, const struct pages_bits *b, const struct scene *s,
                     uint32_t seq, uint64_t pos, bool append, uint64_t hash)
{
    struct scene_result r;
    scene_result_new(&r, s);
    for (uint32_t l = 0; l < PAGES_LAYERS; l++) {
        assert_int_equal(scene_attend(rig, s, l, seq, pos, append, &b->knobs, &r), 0);
        hash = hash_result(hash, &r);
    }
    scene_result_free(&r);
    return hash;
}

static void meanwhile(struct rig *rig, const struct pages_bits *b, const struct scene *s,
                      uint32_t seq, uint64_t pos)
{
    if (b->busy)
        step(rig, b, s, seq, pos, false, 0);
}

// Other tokens from `pos` on, to behind `end`, which are there when the next step is about to come.
static void put_others(struct rig *rig, const struct pages_bits *b, uint64_t pos, uint64_t end)
{
    struct scene random = pages_scene(SCENE_RANDOM);
    assert_int_equal(rig_reclaim(rig, 1, pos, UINT64_MAX, 0, PAGES_LAYERS), 0);
    scene_write(rig, &random, 1, pos, end + 100 - pos, 0);
    meanwhile(rig, b, &random, 1, end);
    scene_free(&random);
}

static uint32_t prepare(struct rig *rig, const struct pages_bits *b, const struct scene *s,
                        enum pages_way way, uint64_t end)
{
    uint32_t seq = 1;
    scene_write(rig, s, 1, 0, 900, way == PAGES_BY_TOKENS ? 7 : 0);
    meanwhile(rig, b, s, 1, 899);
    if (way == PAGES_FORKED) { // in the middle of a piece; both go on
        if (b->busy)
            put_others(rig, b, 777, end);
        assert_int_equal(rig_fork(rig, 1, 2, 777), 0);
        if (!b->busy)
            scene_write(rig, s, 1, 900, 300, 50);
        meanwhile(rig, b, s, 1, end);
        scene_write(rig, s, 2, 777, 123, 60);
        seq = 2;
    } else if (way == PAGES_CUT) { // other tokens lay there before
        put_others(rig, b, 501, end);
        assert_int_equal(rig_reclaim(rig, 1, 501, UINT64_MAX, 0, PAGES_LAYERS), 0);
        scene_write(rig, s, 1, 501, 399, 0);
    }
    scene_write(rig, s, seq, 900, end - 900, 13);
    if (b->busy && seq == 2)
        assert_int_equal(rig_reclaim(rig, 1, 0, UINT64_MAX, 0, PAGES_LAYERS), 0);
    return seq;
}

uint64_t pages_run(const struct pages_bits *b, const struct scene *s, enum pages_way way)
{
    struct rig rig;
    uint64_t hash = 1469598103934665603u, first = b->first ? b->first : 1000, pos = first;
    rig_open(&rig, &b->options);
    const uint32_t seq = prepare(&rig, b, s, way, pos);
    for (int i = 0; i < STEPS; i++, pos++) {
        if (way == PAGES_BY_TOKENS || way == PAGES_CUT)
            meanwhile(&rig, b, s, seq, pos - 100 * (uint64_t)i - 1);
        hash = step(&rig, b, s, seq, pos, true, hash);
    }
    for (uint64_t back = 1; back < 8; back += 2)
        hash = step(&rig, b, s, seq, first - 50 * back, false, hash);
    assert_int_equal(drive_check(rig.drive, &rig.msg), 0);
    rig_close(&rig);
    return hash;
}

void pages_same_bits(const struct pages_bits *bits)
{
    struct scene s = pages_scene(SCENE_CLUSTERED);
    const uint32_t together = bits->options.config.piece_heads;
    uint64_t expected = pages_run(bits, &s, PAGES_AT_ONCE);
    unsigned runs = 0;
    // Together, rows of one piece are read as a whole.
    for (uint32_t group = together > 1 ? 16 : 32; group <= 256; group *= 2)
        for (int place = 0; place < 3; place++, runs++) {
            struct pages_bits other = *bits;
            struct rig_options *o = &other.options;
            o->config.group_tokens = group;
            o->page_bytes = place == 1 ? 512 : 4096u << (runs % 3);
            o->threads = 1 + runs % 4;
            o->ram_rate = place ? bits->options.ram_rate : 0;
            o->directory = place == 2 ? INST_BINARY_DIR : NULL;
            o->row_cache = runs % 2;
            o->request_bytes = place == 1 ? 8192 : 0;
            if (pages_run(&other, &s, (enum pages_way)(runs % PAGES_WAYS)) != expected)
                fail_msg("group %u, pages of %u, place %d, way %u: other bits", group,
                         o->page_bytes, place, runs % PAGES_WAYS);
        }
    for (int way = 0; way < PAGES_WAYS; way++)
        if (pages_run(bits, &s, (enum pages_way)way) != expected)
            fail_msg("way %d: other bits", way);
    for (const char *const *name = kernels_available(); *name; name++) {
        struct pages_bits other = *bits;
        other.options.kernels = *name;
        if (pages_run(&other, &s, PAGES_FORKED) != expected)
            fail_msg("kernels %s: other bits", *name);
    }
    scene_free(&s);
}
