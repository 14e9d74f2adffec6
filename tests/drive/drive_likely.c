// SPDX-License-Identifier: Apache-2.0
// METHOD_PAGES that looks at the likeliest keys alone (piece_look of CONFIG): the clusters of like
// keys that it makes, what it chooses and answers by them against a reference in double, the same
// bits whatever comes before and whatever lies where, what it promises and finds, and its DRAM.
#include "drive/control/internal.h"
#include "drive/ftl/clusters.h"
#include "likely_float64.h"
#include "pages_bits.h"
#include "tests/more.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// A space of one layer, and K, V and queries for it.
struct setting {
    enum scene_kind kind;
    uint32_t piece, keys, together, kv_heads, group, dim, look;
    uint64_t tokens;
    uint32_t bits; // 0: 1
};

static struct rig_options options_of(const struct setting *s)
{
    struct rig_options o = PAGES_OPTIONS;
    o.config.layers = 1;
    o.config.kv_heads = s->kv_heads;
    o.config.head_dim = s->dim;
    o.config.q_heads = o.q_heads = s->kv_heads * s->group;
    o.config.max_tokens = s->tokens;
    o.config.piece_tokens = s->piece;
    o.config.piece_keys = s->keys;
    o.config.piece_heads = s->together;
    o.config.piece_look = s->look;
    o.config.piece_bits = s->bits ? s->bits : 1; // of all keys it would be 2
    return o;
}

static struct scene scene_of(const struct setting *s, uint32_t layers, uint64_t seed)
{
    struct scene scene = {.kind = s->kind,
                          .layers = layers,
                          .kv_heads = s->kv_heads,
                          .q_heads = s->kv_heads * s->group,
                          .head_dim = s->dim,
                          .tokens = s->tokens};
    scene_new(&scene, seed);
    return scene;
}

static uint32_t keys_of(const struct setting *s)
{
    return s->keys ? s->keys : s->piece;
}

static uint32_t bits_of(const struct setting *s)
{
    return s->bits ? s->bits : 1;
}

// ---- what the drive has ------------------------------------------------------------------------

static struct layer_state *layer_of(const struct rig *rig)
{
    return &space_find(find_space(rig->drive, 1), 1)->layers[0];
}

static const struct clusters *clusters_of(const struct rig *rig)
{
    return index_clusters(layer_of(rig))->latest;
}

static void *grab(size_t n, size_t bytes)
{
    void *p = calloc(n + 1, bytes);
    assert_non_null(p);
    return p;
}

// Code and size of key i of slices that come out of piece_scores in the order of keys.
static const uint8_t *slice_key(const struct setting *s, const struct clusters_head *h, uint32_t i,
                                uint32_t *at, double *size)
{
    const uint32_t bytes = (s->dim * bits_of(s) + 7) / 8;
    const uint8_t *slice = h->slices + (size_t)i / 16 * (4 + 16 + 16 * bytes);
    for (*at = 0; *at % 2 * 8 + *at / 2 != i % 16;)
        ++*at;
    *size = (double)kernel_f16_to_f32(le_get16(slice)) / 255 * slice[4 + *at];
    return slice + 4 + 16;
}

// Codes as whole and half numbers, what `size` is multiplied with.
static void decode(double *x, const struct setting *s, const uint8_t *codes, uint32_t stride,
                   uint32_t at)
{
    const uint32_t bits = bits_of(s), each = 8 / bits;
    for (uint32_t d = 0; d < s->dim; d++) {
        const int code = codes[d / each * stride + at] >> d % each * bits;
        x[d] = bits == 1 ? (code & 1) - 0.5 : (code & 3) - 1.5;
    }
}

// What the drive has of a head's block, as numbers in memory of its own.
static void read_block(const struct setting *s, const struct clusters_block *block, uint32_t head,
                       struct likely_block *out)
{
    const struct clusters_head *h = &block->head[head];
    const uint32_t n = (uint32_t)block->pieces * keys_of(s), all = h->coarse + h->fine;
    double *mean = grab((size_t)all * s->dim, sizeof *mean), *spread = grab(all, sizeof *spread);
    double *key = grab((size_t)n * s->dim, sizeof *key), *size = grab(n, sizeof *size);
    uint32_t *piece = grab(n, sizeof *piece), *count = grab(n, sizeof *count), at;
    assert_int_equal(h->state, CLUSTERS_MADE);
    assert_int_equal(h->fine_first[0], 0);
    assert_int_equal(h->key_first[0], 0);
    assert_int_equal(h->fine_first[h->coarse], h->fine);
    assert_int_equal(h->key_first[h->fine], n);
    for (uint32_t i = 0; i < all * s->dim; i++)
        mean[i] = (double)kernel_f16_to_f32(h->mean[i]);
    for (uint32_t i = 0; i < all; i++)
        spread[i] = (double)h->spread[i];
    for (uint32_t i = 0; i < n; i++) {
        const uint8_t *codes = slice_key(s, h, i, &at, &size[i]);
        decode(key + (size_t)i * s->dim, s, codes, 16, at);
        for (uint32_t d = 0; d < s->dim; d++)
            key[(size_t)i * s->dim + d] *= size[i];
        piece[i] = h->piece[i];
        count[i] = h->count ? h->count[i] : 1;
        assert_true(piece[i] < block->pieces);
    }
    *out = (struct likely_block){.first = (uint32_t)block->first,
                                 .pieces = (uint32_t)block->pieces,
                                 .coarse = h->coarse,
                                 .fine = h->fine,
                                 .keys = n,
                                 .mean = mean,
                                 .spread = spread,
                                 .fine_first = h->fine_first,
                                 .key_first = h->key_first,
                                 .key = key,
                                 .size = size,
                                 .piece = piece,
                                 .count = count};
}

static void free_block(const struct likely_block *b)
{
    const void *own[] = {b->mean, b->spread, b->key, b->size, b->piece, b->count};
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        free((void *)(uintptr_t)own[i]);
}

// ---- clusters ----------------------------------------------------------------------------------

// A key as its summary has it: codes, what they are multiplied with, and what it is, the mean of
// its piece included.
struct index_key {
    double code[128], size, x[128];
    uint32_t count;
    bool taken;
};

// A row of 4 bits a channel: of 32 channels fp16, then the lower halves of bytes.
static void read_middle(const struct setting *s, const uint8_t *row, double *x)
{
    for (uint32_t d = 0; d < s->dim; d++) {
        const uint8_t *block = row + d / 32 * 18;
        const int code = block[2 + d % 16] >> d % 32 / 16 * 4 & 15;
        x[d] = (double)kernel_f16_to_f32(le_get16(block)) * (code - 8);
    }
}

static void read_keys(const struct rig *rig, const struct setting *s, uint64_t piece, uint32_t head,
                      const struct map *held, struct index_key *out)
{
    const uint32_t keys = keys_of(s), counted = keys != s->piece;
    const struct space *space = find_space(rig->drive, 1);
    const struct index_shape shape = index_shape(&space->config);
    const uint8_t *summary = index_held(space, held, piece, head).summary;
    const uint8_t *codes = summary + 4 + keys * (1 + counted);
    double middle[128];
    read_middle(s, summary + index_middle_at(&shape), middle);
    for (uint32_t i = 0; i < keys; i++) {
        out[i].size = (double)kernel_f16_to_f32(le_get16(summary)) / 255 * summary[4 + i];
        out[i].count = counted ? summary[4 + keys + i] : 1;
        out[i].taken = false;
        decode(out[i].code, s, codes, keys, i);
        for (uint32_t d = 0; d < s->dim; d++)
            out[i].x[d] = middle[d] + out[i].size * out[i].code[d];
    }
}

// The key of its piece that is most like key `at` of the block and in no cluster as yet.
static struct index_key *find_key(const struct setting *s, const struct likely_block *b,
                                  uint32_t at, struct index_key *all)
{
    const double *x = b->key + (size_t)at * s->dim, size = b->size[at];
    struct index_key *keys = all + (size_t)b->piece[at] * keys_of(s), *best = NULL;
    for (uint32_t i = 0; i < keys_of(s); i++) {
        bool same = !keys[i].taken && keys[i].count == b->count[at];
        for (uint32_t d = 0; d < s->dim && same; d++)
            same = x[d] == size * keys[i].code[d];
        const double off = fabs(keys[i].size - size);
        if (same && (!best || off < fabs(best->size - size)))
            best = &keys[i];
    }
    if (!best)
        fail_msg("pieces of %u, %u keys: key %u of a block is none of its piece", s->piece,
                 keys_of(s), at);
    best->taken = true;
    return best;
}

// Mean and spread of keys [first, end) in double.
static void check_mean(const struct setting *s, const struct likely_block *b, uint32_t cluster,
                       struct index_key *const *key, uint32_t first, uint32_t end)
{
    const double *mean = b->mean + (size_t)cluster * s->dim;
    double squares = 0, most = 0;
    if (first == end)
        return;
    for (uint32_t d = 0; d < s->dim; d++) {
        double sum = 0;
        for (uint32_t i = first; i < end; i++) {
            sum += key[i]->x[d] / (end - first);
            most = fmax(most, fabs(key[i]->x[d]));
        }
        for (uint32_t i = first; i < end; i++)
            squares += pow(key[i]->x[d] - sum, 2) / s->dim / (end - first);
        if (fabs(sum - mean[d]) > 0x1p-11 * fabs(sum) + 1e-6 * most)
            fail_msg("cluster %u, channel %u: mean %g instead of %g", cluster, d, mean[d], sum);
    }
    if (fabs(pow(b->spread[cluster], 2) - squares) > 1e-5 * most * most)
        fail_msg("cluster %u: spread %g instead of %g", cluster, b->spread[cluster], sqrt(squares));
}

static uint64_t state = 1;

static uint32_t pick(uint32_t below)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((state >> 33) % below);
}

// How far keys are from the middle of their cluster, against clusters of the same sizes by lot and
// against those of plain k-means: sums over blocks.
struct likeness {
    double own, lot, plain;
};

static void check_likeness(const struct setting *s, const struct likely_block *b,
                           struct index_key *const *key, struct likeness *all)
{
    const uint32_t each = b->keys <= 8192 ? 16 : 32;
    uint32_t *which = grab(b->keys, sizeof *which);
    double *x = grab((size_t)b->keys * s->dim, sizeof *x);
    for (uint32_t i = 0; i < b->keys; i++)
        memcpy(x + (size_t)i * s->dim, key[i]->x, s->dim * sizeof *x);
    for (uint32_t f = 0; f < b->fine; f++)
        for (uint32_t i = b->key_first[f]; i < b->key_first[f + 1]; i++)
            which[i] = f;
    all->own += b->keys * likely_scatter(x, b->keys, s->dim, which, b->fine);
    for (uint32_t i = b->keys; i-- > 1;) {
        const uint32_t other = pick(i + 1), mine = which[i];
        which[i] = which[other];
        which[other] = mine;
    }
    all->lot += b->keys * likely_scatter(x, b->keys, s->dim, which, b->fine);
    const uint32_t groups = likely_group(x, b->keys, s->dim, b->coarse, each, which);
    all->plain += b->keys * likely_scatter(x, b->keys, s->dim, which, groups);
    free(which);
    free(x);
}

// Each key of the block lies in one fine cluster, as it is in its summary.
static void check_block(const struct rig *rig, const struct setting *s,
                        const struct likely_block *b, uint32_t head, const struct map *held,
                        struct likeness *like)
{
    const uint32_t keys = keys_of(s);
    const uint32_t each = b->keys <= 8192 ? 16 : b->keys <= 32768 ? 32 : 64;
    struct index_key *all = grab(b->keys, sizeof *all), **key = grab(b->keys, sizeof *key);
    uint32_t coarse = 1;
    for (uint32_t i = 0; i < b->pieces; i++)
        read_keys(rig, s, b->first + i, head, held, all + (size_t)i * keys);
    for (uint32_t i = 0; i < b->keys; i++)
        key[i] = find_key(s, b, i, all);
    for (uint32_t i = 0; i < b->keys; i++) {
        double most = 0;
        for (uint32_t j = i / 16 * 16; j < b->keys && j < i / 16 * 16 + 16; j++)
            most = fmax(most, key[j]->size);
        // Rounded to whole steps, and the step to fp16.
        const double off = fabs(b->size[i] - key[i]->size);
        assert_true(off <= most * (0.5 / 255 + 0x1p-11));
    }
    while (coarse < 128 && (uint64_t)coarse * coarse <= b->keys / each)
        coarse *= 2;
    assert_int_equal(b->coarse, coarse);
    for (uint32_t c = 0; c < b->coarse; c++) {
        const uint32_t first = b->fine_first[c], end = b->fine_first[c + 1];
        const uint32_t n = b->key_first[end] - b->key_first[first];
        assert_true(first <= end);
        // One for each `each` keys, but that large ones are cut and empty ones are none.
        assert_true(end - first <= (n + each / 2) / each + n / 240 + 1);
        check_mean(s, b, c, key, b->key_first[first], b->key_first[end]);
    }
    for (uint32_t f = 0; f < b->fine; f++) {
        assert_in_range(b->key_first[f + 1] - b->key_first[f], 1, 240);
        check_mean(s, b, b->coarse + f, key, b->key_first[f], b->key_first[f + 1]);
    }
    if (b->keys >= 64)
        check_likeness(s, b, key, like);
    free(all);
    free(key);
}

static uint32_t clusters_case(const struct setting *s)
{
    struct rig rig;
    struct scene scene = scene_of(s, 1, 11);
    struct scene_result r;
    struct rig_options o = options_of(s);
    struct map held = {0};
    struct likely_block b;
    struct likeness like = {0};
    uint64_t first[16];
    const struct scene_knobs knobs = {.pages = true, .ratio = 0.01f};
    const uint64_t pieces = s->tokens / s->piece;
    const uint32_t blocks = likely_blocks(s->look, s->piece, pieces, first);
    scene_result_new(&r, &scene);
    rig_open(&rig, &o);
    scene_write(&rig, &scene, 1, 0, s->tokens, 0);
    assert_int_equal(scene_attend(&rig, &scene, 0, 1, s->tokens - 1, false, &knobs, &r), 0);
    const struct clusters *c = clusters_of(&rig);
    const struct space *space = find_space(rig.drive, 1);
    assert_non_null(c);
    assert_int_equal(c->n, blocks);
    assert_int_equal(c->pieces, first[blocks]);
    assert_int_equal(index_hold(space, layer_of(&rig), pieces, &held), 0);
    for (uint32_t i = 0; i < blocks; i++) {
        assert_int_equal(c->block[i]->first, first[i]);
        assert_int_equal(c->block[i]->pieces, first[i + 1] - first[i]);
        for (uint32_t head = 0; head < s->kv_heads; head++) {
            read_block(s, c->block[i], head, &b);
            check_block(&rig, s, &b, head, &held, &like);
            free_block(&b);
        }
    }
    index_let_go(space, &held);
    print_message("pieces of %u, %u keys, %u channels: %u blocks, scatter %.3f of that by lot, "
                  "%.3f of plain k-means\n",
                  s->piece, keys_of(s), s->dim, blocks, like.own / like.lot, like.own / like.plain);
    if (s->kind == SCENE_CLUSTERED) {
        assert_true(like.own < 0.65 * like.lot);
        assert_true(like.own < 1.05 * like.plain);
    }
    rig_close(&rig);
    scene_result_free(&r);
    scene_free(&scene);
    return blocks;
}

static void test_clusters(void **arg)
{
    (void)arg;
    static const struct setting settings[] = {
        {SCENE_CLUSTERED, 16, 0, 1, 2, 1, 64, 64, 1024 + 13, 0},       // 16 units of 64
        {SCENE_CLUSTERED, 16, 5, 1, 1, 1, 128, 30, 15 * 64 + 40, 0},   // 14 and 1
        {SCENE_CLUSTERED, 16, 10, 1, 1, 1, 80, 300, 30 * 128 + 50, 0}, // 28 and 2 of 128
        {SCENE_CLUSTERED, 32, 0, 1, 1, 1, 128, 140, 63 * 64 + 5, 0},   // 56 and 7
        {SCENE_CLUSTERED, 32, 10, 1, 2, 1, 64, 64, 61 * 64 + 31, 0},   // 56 and 5
        {SCENE_CLUSTERED, 64, 0, 1, 1, 1, 80, 64, 75 * 64 + 63, 0},    // 72 and 3
        {SCENE_CLUSTERED, 64, 5, 1, 1, 1, 64, 20, 191 * 64 + 12, 0},   // 160, 28 and 3
        {SCENE_CLUSTERED, 64, 10, 1, 1, 1, 80, 64, 127 * 64, 0},       // 112, 14 and 1
        {SCENE_RANDOM, 16, 0, 1, 1, 1, 64, 600, 31 * 256, 0},          // 28 and 3 of 256
        {SCENE_EQUAL, 16, 0, 1, 1, 1, 64, 64, 2000, 0},
        {SCENE_CLUSTERED, 16, 0, 1, 1, 1, 80, 64, 1500, 2},
        {SCENE_CLUSTERED, 16, 5, 1, 1, 1, 64, 64, 3000, 2},
    };
    uint32_t seen[16] = {0};
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++)
        seen[clusters_case(&settings[i])]++;
    assert_true(seen[1] && seen[2] && seen[3]);
}

// ---- choice ------------------------------------------------------------------------------------

struct tally {
    uint64_t heads, close; // answers of a KV head; those where a choice hung on rounding
    double error, promise; // the largest of the others
};

static void widen(const struct scene *s, uint32_t head, size_t n, double *k, double *v)
{
    const size_t at = (size_t)head * s->tokens * s->head_dim;
    for (size_t i = 0; i < n * s->head_dim; i++) {
        k[i] = (double)kernel_f16_to_f32(s->k[at + i]);
        v[i] = (double)kernel_f16_to_f32(s->v[at + i]);
    }
}

static void tell_apart(const struct likely_answer *a, const struct scene *s,
                       const struct scene_result *r, uint32_t first, uint32_t queries, bool audit,
                       struct tally *t)
{
    double error = 0, off = 0, promise = 0;
    for (uint32_t g = 0; g < queries; g++) {
        const double captured = (double)r->captured[first + g];
        for (uint32_t d = 0; d < s->head_dim; d++)
            error = fmax(error, fabs(a->pages.out[g * s->head_dim + d] -
                                     (double)r->out[(first + g) * s->head_dim + d]));
        if (audit)
            off = fmax(off, fabs(a->pages.captured[g] - captured));
        else
            promise = fmax(promise, fabs(a->predicted[g] - captured));
    }
    t->heads++;
    if (error > 2e-3 || off > 1e-4 || promise > 1e-3) {
        t->close++;
    } else {
        t->error = fmax(t->error, error);
        t->promise = fmax(t->promise, promise);
    }
}

static void compare(const struct rig *rig, const struct setting *set, const struct scene *s,
                    uint64_t pos, const struct scene_knobs *knobs, const struct scene_result *r,
                    struct tally *t)
{
    const uint32_t n = (uint32_t)pos + 1, dim = s->head_dim, together = set->together;
    const uint32_t queries = together * set->group;
    const struct clusters *c = clusters_of(rig);
    double *k = grab(2ull * together * n * dim, sizeof *k), *v = k + (size_t)together * n * dim;
    double *q = grab((size_t)queries * dim, sizeof *q), *out = grab(queries * dim, sizeof *out);
    double captured[64], predicted[64];
    struct likely_block *blocks = grab((size_t)together * c->n, sizeof *blocks);
    bool *token = grab(n, sizeof *token);
    for (uint32_t head = 0; head < s->kv_heads; head += together) {
        for (uint32_t h = 0; h < together; h++) {
            widen(s, head + h, n, k + (size_t)h * n * dim, v + (size_t)h * n * dim);
            for (uint32_t b = 0; b < c->n; b++)
                read_block(set, c->block[b], head + h, &blocks[h * c->n + b]);
        }
        const size_t at = (pos * s->q_heads + head * set->group) * dim;
        for (size_t i = 0; i < (size_t)queries * dim; i++)
            q[i] = (double)s->q[at + i];
        struct likely_problem p = {.pages = {.heads = together,
                                             .head_dim = dim,
                                             .group = set->group,
                                             .tokens = n,
                                             .piece = set->piece,
                                             .keys = keys_of(set),
                                             .local = knobs->local,
                                             .bits = bits_of(set),
                                             .scale = knobs->scale != 0
                                                          ? (double)knobs->scale
                                                          : (double)(1 / sqrtf((float)dim)),
                                             .softcap = (double)rig->softcap,
                                             .ratio = (double)knobs->ratio,
                                             .no_rest = true,
                                             .q = q,
                                             .k = k,
                                             .v = v},
                                   .look = set->look,
                                   .blocks = c->n,
                                   .block = blocks};
        if (!p.pages.local)
            p.pages.local = 16;
        assert_true(likely_looked(&p) > 0);
        struct likely_answer a = {.pages = {.token = token, .out = out, .captured = captured},
                                  .predicted = predicted};
        likely_solve(&p, &a);
        tell_apart(&a, s, r, head * set->group, queries, knobs->audit, t);
        for (uint32_t b = 0; b < together * c->n; b++)
            free_block(&blocks[b]);
    }
    free(k);
    free(q);
    free(out);
    free(blocks);
    free(token);
}

struct choice {
    struct setting set;
    float ratio, softcap, scale;
    uint32_t local;
};

static void choice_case(const struct choice *c, struct tally *all)
{
    struct rig rig;
    struct scene scene = scene_of(&c->set, 1, 5);
    struct scene_result r;
    struct rig_options o = options_of(&c->set);
    struct tally t = {0};
    enum { STEPS = 6 };
    const uint64_t first = c->set.tokens - STEPS;
    scene_result_new(&r, &scene);
    rig_open(&rig, &o);
    rig.softcap = c->softcap;
    scene_write(&rig, &scene, 1, 0, first, 0);
    for (uint64_t pos = first; pos < c->set.tokens; pos++) {
        const struct scene_knobs knobs = {.pages = true,
                                          .ratio = c->ratio,
                                          .local = c->local,
                                          .scale = c->scale,
                                          .audit = pos % 2,
                                          .no_rest = pos % 3 == 1};
        assert_int_equal(scene_attend(&rig, &scene, 0, 1, pos, true, &knobs, &r), 0);
        assert_non_null(clusters_of(&rig));
        compare(&rig, &c->set, &scene, pos, &knobs, &r, &t);
    }
    print_message("scene %d, pieces of %u, %u keys, %u heads together, groups of %u, %u channels: "
                  "%llu answers, %llu close, error %.2g, promise off by %.2g\n",
                  (int)c->set.kind, c->set.piece, c->set.keys, c->set.together, c->set.group,
                  c->set.dim, (unsigned long long)t.heads, (unsigned long long)t.close, t.error,
                  t.promise);
    assert_true(t.close * 8 <= t.heads);
    all->heads += t.heads;
    all->close += t.close;
    rig_close(&rig);
    scene_result_free(&r);
    scene_free(&scene);
}

static void test_choice(void **arg)
{
    (void)arg;
    static const struct choice choices[] = {
        {{SCENE_CLUSTERED, 16, 0, 1, 2, 2, 64, 64, 1700, 0}, 0.03125f, 0, 0, 0},
        {{SCENE_CLUSTERED, 16, 0, 2, 2, 1, 64, 100, 1700, 0}, 0.05f, 0, 0, 0},
        {{SCENE_CLUSTERED, 16, 5, 1, 1, 5, 64, 40, 1700, 0}, 0.03125f, 0, 0, 0},
        {{SCENE_CLUSTERED, 32, 10, 2, 4, 2, 64, 64, 3000, 0}, 0.05f, 0, 0, 0},
        {{SCENE_CLUSTERED, 64, 0, 1, 1, 2, 128, 64, 6000, 0}, 0.0625f, 0, 0, 0},
        {{SCENE_RANDOM, 16, 0, 1, 1, 9, 64, 64, 1500, 0}, 0.05f, 0, 0, 0},
        {{SCENE_RANDOM, 16, 10, 2, 2, 11, 64, 64, 1500, 0}, 0.03125f, 0, 0, 0},
        {{SCENE_CLUSTERED, 16, 0, 1, 1, 2, 128, 64, 1400, 0}, 0.05f, 4, 0, 0},
        {{SCENE_CLUSTERED, 16, 0, 2, 2, 2, 64, 64, 1400, 0}, 0.05f, 0, -0.125f, 0},
        {{SCENE_RANDOM, 32, 5, 1, 1, 2, 64, 30, 3000, 0}, 0.05f, 2, -0.25f, 0},
        {{SCENE_CLUSTERED, 16, 0, 1, 2, 2, 64, 64, 1700, 0}, 0.03125f, 0, 0, 300},
        {{SCENE_CLUSTERED, 16, 0, 1, 2, 2, 64, 64, 1700, 0}, 0.0625f, 0, 0, 1},
        {{SCENE_CLUSTERED, 16, 0, 1, 2, 2, 64, 64, 1700, 2}, 0.03125f, 0, 0, 0},
        {{SCENE_RANDOM, 16, 10, 2, 2, 3, 64, 64, 1500, 2}, 0.05f, 4, -0.125f, 0},
        {{SCENE_ZERO_Q, 16, 0, 2, 2, 2, 64, 64, 4000, 0}, 0.0625f, 0, 0, 0}, // ties
        {{SCENE_STEPS, 16, 0, 1, 2, 2, 64, 64, 1700, 0}, 0.0625f, 0, 0, 0},
        {{SCENE_HUGE, 16, 0, 1, 1, 2, 64, 64, 1700, 0}, 0.0625f, 0, 0, 0},
        {{SCENE_BLIND, 16, 0, 1, 1, 2, 64, 64, 1700, 0}, 0.0625f, 0, 0, 0},
    };
    struct tally all = {0};
    for (size_t i = 0; i < sizeof choices / sizeof *choices; i++)
        choice_case(&choices[i], &all);
    assert_true(all.close * 20 <= all.heads);
}

// ---- bits --------------------------------------------------------------------------------------

// From before the end of a unit of 64 tokens to behind it: from blocks of 14 units and 1 to one of
// 16, or to one of 18 and 1.
static void likely_bits(uint32_t together, uint32_t keys, uint64_t first)
{
    struct pages_bits bits = {
        .options = PAGES_OPTIONS, .knobs = {.pages = true, .ratio = 0.03125f}, .first = first};
    bits.options.config.piece_tokens = 16;
    bits.options.config.piece_heads = together;
    bits.options.config.piece_keys = keys;
    bits.options.config.piece_look = keys ? 30 : 64;
    struct pages_bits all = bits; // it is in use
    struct scene s = pages_scene(SCENE_CLUSTERED);
    all.options.config.piece_look = 0;
    assert_true(pages_run(&all, &s, PAGES_AT_ONCE) != pages_run(&bits, &s, PAGES_AT_ONCE));
    scene_free(&s);
    for (int busy = 0; busy < 2; busy++) {
        bits.busy = busy;
        pages_same_bits(&bits);
    }
}

static void test_bits(void **arg)
{
    (void)arg;
    likely_bits(1, 0, 1020);
}

static void test_bits_together(void **arg)
{
    (void)arg;
    likely_bits(2, 10, 1213);
}

// ---- what is found -----------------------------------------------------------------------------

// Means over query heads and steps: what was promised, and what was captured.
struct found {
    double promised, captured;
};

static struct found find(const struct setting *s, float ratio)
{
    struct rig rig;
    struct scene scene = scene_of(s, 1, 3);
    struct scene_result r;
    struct rig_options o = options_of(s);
    struct found f = {0};
    unsigned n = 0;
    scene_result_new(&r, &scene);
    rig_open(&rig, &o);
    scene_write(&rig, &scene, 1, 0, s->tokens - 16, 0);
    for (uint64_t pos = s->tokens - 16; pos < s->tokens; pos++)
        for (int audit = 0; audit < 2; audit++) {
            const struct scene_knobs knobs = {.pages = true, .ratio = ratio, .audit = audit};
            assert_int_equal(scene_attend(&rig, &scene, 0, 1, pos, !audit, &knobs, &r), 0);
            for (uint32_t i = 0; i < scene.q_heads; i++, n++)
                *(audit ? &f.captured : &f.promised) += 2 * (double)r.captured[i];
        }
    assert_true((clusters_of(&rig) != NULL) == (s->look != 0));
    f.promised /= n;
    f.captured /= n;
    rig_close(&rig);
    scene_result_free(&r);
    scene_free(&scene);
    return f;
}

// What is promised is captured, on average, and not much less than where all keys are weighed.
static void test_found(void **arg)
{
    (void)arg;
    static const struct {
        enum scene_kind kind;
        uint32_t keys, look;
        float ratio, least; // of what is captured without
    } cases[] = {
        {SCENE_CLUSTERED, 0, 128, 0.03125f, 0.96f},
        {SCENE_CLUSTERED, 0, 128, 0.015625f, 0.95f},
        {SCENE_CLUSTERED, 5, 100, 0.03125f, 0.95f},
        {SCENE_RANDOM, 0, 128, 0.03125f, 0.8f},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct setting s = {cases[i].kind, 16, cases[i].keys, 1, 2, 2, 64, cases[i].look, 4000, 0};
        const struct found some = find(&s, cases[i].ratio);
        s.look = 0;
        const struct found all = find(&s, cases[i].ratio);
        print_message("scene %d, %u keys, ratio %.3f: captured %.3f, of all keys %.3f; promised "
                      "%.3f, of all keys %.3f\n",
                      (int)s.kind, keys_of(&s), (double)cases[i].ratio, some.captured, all.captured,
                      some.promised, all.promised);
        // With fewer keys than tokens scores are off by more than is counted with.
        assert_true(some.promised <= some.captured * (s.keys ? 1.1 : 1));
        assert_true(some.captured >= (double)cases[i].least * all.captured);
    }
}

// The keys of half of the pieces are the same one, so that many coarse clusters have none, and all
// scores are far below 0, which is what the mean of nothing scores.
static void test_empty_clusters(void **arg)
{
    (void)arg;
    const struct choice c = {{SCENE_RANDOM, 16, 0, 1, 1, 1, 64, 64, 2000, 0}, 0.05f, 0, 0, 0};
    struct rig rig;
    struct scene s = scene_of(&c.set, 1, 5);
    struct scene_result r;
    struct rig_options o = options_of(&c.set);
    struct tally t = {0};
    for (uint64_t i = 0; i < s.tokens; i++)
        for (uint32_t d = 0; d < 64; d++) {
            const float x = i / 16 % 2 ? kernel_f16_to_f32(s.k[i * 64 + d]) : 0;
            s.k[i * 64 + d] = kernel_f32_to_f16(0.8f * x - 6);
            s.q[i * 64 + d] = 4 + s.q[i * 64 + d] / 4; // towards nobody
        }
    scene_result_new(&r, &s);
    rig_open(&rig, &o);
    scene_write(&rig, &s, 1, 0, s.tokens - 4, 0);
    for (uint64_t pos = s.tokens - 4; pos < s.tokens; pos++) {
        const struct scene_knobs knobs = {.pages = true, .ratio = c.ratio, .audit = pos % 2};
        assert_int_equal(scene_attend(&rig, &s, 0, 1, pos, true, &knobs, &r), 0);
        compare(&rig, &c.set, &s, pos, &knobs, &r, &t);
    }
    const struct clusters_head *h = &clusters_of(&rig)->block[0]->head[0];
    uint32_t empty = 0;
    for (uint32_t i = 0; i < h->coarse; i++)
        empty += h->fine_first[i] == h->fine_first[i + 1];
    print_message("%u of %u coarse clusters are empty, %llu of %llu answers close\n", empty,
                  h->coarse, (unsigned long long)t.close, (unsigned long long)t.heads);
    assert_true(empty > 0);
    assert_int_equal(t.close, 0);
    rig_close(&rig);
    scene_result_free(&r);
    scene_free(&s);
}

// What is no number harms nobody else: not the other KV head, nor the next step.
static void test_no_numbers(void **arg)
{
    (void)arg;
    static const float odd[] = {NAN, INFINITY, -INFINITY, 0, 1e30f, 1e-30f};
    struct setting set = {SCENE_CLUSTERED, 16, 0, 1, 2, 2, 64, 64, 1300, 0};
    const struct scene_knobs knobs = {.pages = true, .ratio = 0.03125f, .audit = true};
    struct scene s = scene_of(&set, 1, 5);
    struct scene_result good, r;
    scene_result_new(&good, &s);
    scene_result_new(&r, &s);
    for (int kind = 0; kind < 4; kind++) { // with all keys looked at, too
        struct rig rig;
        set.look = kind % 2 ? 64 : 0;
        struct rig_options o = options_of(&set);
        // Keys of KV head 1 that are infinite, or none.
        for (uint32_t d = 0; d < 64 && kind > 1; d++)
            s.k[(set.tokens + 500 + d) * 64 + d] = d % 3 ? 0x7c00 : 0x7e00;
        rig_open(&rig, &o);
        scene_write(&rig, &s, 1, 0, set.tokens, 0);
        float *q = s.q + (set.tokens - 1) * 4 * 64, before[64];
        assert_int_equal(scene_attend(&rig, &s, 0, 1, set.tokens - 1, false, &knobs, &good), 0);
        memcpy(before, q + 3 * 64, sizeof before);
        for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) {
            for (uint32_t d = 0; d < 64; d++)
                q[3 * 64 + d] = i < 3 && d % 7 ? before[d] : odd[i];
            assert_int_equal(scene_attend(&rig, &s, 0, 1, set.tokens - 1, false, &knobs, &r), 0);
            assert_memory_equal(r.out, good.out, 2 * 64 * sizeof(float));
            assert_memory_equal(r.captured, good.captured, 2 * sizeof(float));
        }
        memcpy(q + 3 * 64, before, sizeof before);
        assert_int_equal(scene_attend(&rig, &s, 0, 1, set.tokens - 1, false, &knobs, &r), 0);
        assert_memory_equal(r.out, good.out, 4 * 64 * sizeof(float));
        rig_close(&rig);
    }
    scene_result_free(&good);
    scene_result_free(&r);
    scene_free(&s);
}

// Where there is a mass, a large ratio, or too few keys, all keys are weighed: the same bits as
// where more keys are to be looked at than there are.
static void test_not_in_use(void **arg)
{
    (void)arg;
    struct setting set = {SCENE_CLUSTERED, 16, 0, 1, 2, 2, 64, 64, 1300, 0};
    static const struct {
        uint64_t pos;
        struct scene_knobs knobs;
        bool used;
    } cases[] = {
        {1299, {.pages = true, .ratio = 0.0625f}, true}, // 81 pieces: 162 keys, and 2 / 16 of all
        {1299, {.pages = true, .ratio = 0.07f}, false},
        {1299, {.pages = true}, false}, // an eighth
        {1299, {.pages = true, .mass = 0.9f}, false},
        {1299, {.pages = true, .mass = 0.9f, .ratio = 0.03125f}, false},
        {1299, {.pages = true, .ratio = 1}, false},
        {510, {.pages = true, .ratio = 0.03125f}, false}, // 31 pieces
        {511, {.pages = true, .ratio = 0.03125f}, true},  // 32: 8 * 64 keys
    };
    struct scene s = scene_of(&set, 1, 5);
    struct scene_result r[2];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (int look = 0; look < 2; look++) {
            struct rig rig;
            set.look = look ? 64 : 1 << 20;
            struct rig_options o = options_of(&set);
            scene_result_new(&r[look], &s);
            rig_open(&rig, &o);
            scene_write(&rig, &s, 1, 0, cases[i].pos + 1, 0);
            assert_int_equal(
                scene_attend(&rig, &s, 0, 1, cases[i].pos, false, &cases[i].knobs, &r[look]), 0);
            assert_int_equal(clusters_of(&rig) != NULL, cases[i].used && look);
            rig_close(&rig);
        }
        // What is not looked at counts for nothing: other bits, whatever is chosen.
        const size_t bytes = 4 * 64 * sizeof(float);
        assert_true((memcmp(r[0].out, r[1].out, bytes) != 0) == cases[i].used);
        assert_true((memcmp(r[0].captured, r[1].captured, 4 * sizeof(float)) != 0) ==
                    cases[i].used);
        scene_result_free(&r[0]);
        scene_result_free(&r[1]);
    }
    scene_free(&s);
}

// ---- memory ------------------------------------------------------------------------------------

// With the least DRAM: as many tokens as were planned, in `parts` sequences, and an ATTEND wherever
// other blocks are needed, and at lower positions.
static void memory_case(const struct setting *set, uint32_t sequences, uint32_t parts)
{
    enum { LAYERS = 4 };
    struct rig rig;
    struct scene s = scene_of(set, LAYERS, 9);
    struct scene_result r;
    struct rig_options o = options_of(set);
    struct flash_geometry g = rig_geometry(&o);
    struct drive_plan plan, plain;
    const struct scene_knobs knobs = {.pages = true, .ratio = 0.01f};
    const uint64_t each = set->tokens / parts;
    o.config.layers = LAYERS;
    o.config.max_sequences = sequences;
    assert_int_equal(drive_plan(&plan, &g, &o.config, 0, NULL), 0);
    struct space_config without = o.config;
    without.piece_look = 0;
    assert_int_equal(drive_plan(&plain, &g, &without, 0, NULL), 0);
    const uint64_t keys = set->tokens / set->piece * keys_of(set);
    // Codes, sizes and pieces at least.
    const uint64_t more = plan.min_dram_bytes - plain.min_dram_bytes;
    assert_true(plan.min_dram_bytes > plain.min_dram_bytes);
    assert_true(more > LAYERS * keys * set->kv_heads * (set->dim / 8 + 3));
    o.dram_bytes = plan.min_dram_bytes;
    scene_result_new(&r, &s);
    rig_open(&rig, &o);
    for (uint64_t pos = 0; pos + 64 <= each; pos += 64)
        for (uint32_t part = 0; part < parts; part++) {
            scene_write(&rig, &s, 1 + part, pos, 64, 0);
            for (uint32_t l = 0; l < LAYERS; l++) {
                const int status = scene_attend(&rig, &s, l, 1 + part, pos + 63, false, &knobs, &r);
                if (status)
                    fail_msg("%u sequences, %llu tokens of %u: %s (%d)", sequences,
                             (unsigned long long)pos + 64, parts, rig.text, status);
            }
            if (pos % 1024 == 960)
                assert_int_equal(scene_attend(&rig, &s, 0, 1 + part, pos / 2, false, &knobs, &r),
                                 0);
        }
    assert_true(parts > 1 || clusters_of(&rig));
    struct drive_stats stats;
    rig_stats(&rig, &stats);
    print_message("%u sequences planned, %llu tokens in %u: %.2f MiB, %.2f of them for clusters; "
                  "%.2f were used\n",
                  sequences, (unsigned long long)set->tokens, parts,
                  (double)plan.min_dram_bytes / (1 << 20), (double)more / (1 << 20),
                  (double)stats.dram_peak_bytes / (1 << 20));
    rig_close(&rig);
    scene_result_free(&r);
    scene_free(&s);
}

// Fine clusters of a block as docs/pages.md says, at most, and coarse ones.
static void count_clusters(uint64_t keys, uint64_t *fine, uint64_t *coarse)
{
    const uint64_t each = keys <= 8192 ? 16 : keys <= 32768 ? 32 : 64;
    uint64_t n = 1;
    while (n < 128 && n * n <= keys / each)
        n *= 2;
    *coarse += n;
    *fine += keys / each + keys / 240 + n;
}

// What is planned with holds all blocks of any length, and their making, in any shape.
static void bounds_case(struct space_config *c)
{
    const struct index_shape shape = index_shape(c);
    uint64_t scratch = 0;
    for (uint64_t tokens = 1000; tokens < 20000000; tokens += tokens / 7) {
        uint64_t first[16], fine = 0, coarse = 0, pieces = tokens / shape.piece;
        const uint64_t large = 262144 / shape.piece;
        for (; pieces >= large; pieces -= large)
            count_clusters(large * shape.keys, &fine, &coarse);
        const uint32_t blocks = likely_blocks(c->piece_look, shape.piece, pieces, first);
        for (uint32_t b = 0; b < blocks; b++)
            count_clusters((first[b + 1] - first[b]) * shape.keys, &fine, &coarse);
        pieces = tokens / shape.piece;
        if (coarse > clusters_coarse_most(&shape, pieces) ||
            fine > clusters_fine_most(&shape, pieces))
            fail_msg("pieces of %u, %u keys, %llu tokens: %llu and %llu clusters", shape.piece,
                     shape.keys, (unsigned long long)tokens, (unsigned long long)coarse,
                     (unsigned long long)fine);
        c->max_tokens = tokens;
        // Codes, sizes and places of keys; means and spreads.
        const uint64_t key = (shape.head_dim + 7) / 8 + 3, cluster = 2 * shape.head_dim + 4;
        const uint64_t least = pieces * shape.keys * key + (fine + coarse) * cluster;
        assert_true(!blocks || clusters_bytes(c, tokens) > least);
        assert_true(tokens > 262144 || clusters_change_bytes(c) == clusters_bytes(c, tokens));
        assert_true(tokens <= 262144 || clusters_change_bytes(c) == clusters_bytes(c, 262144));
        if (clusters_scratch(c) < scratch)
            fail_msg("pieces of %u, %u keys, %u channels: less scratch for %llu tokens than for "
                     "fewer",
                     shape.piece, shape.keys, shape.head_dim, (unsigned long long)tokens);
        scratch = clusters_scratch(c);
    }
}

static void test_bounds(void **arg)
{
    (void)arg;
    for (uint32_t piece = 16; piece <= 64; piece *= 2)
        for (uint32_t keys = 1; keys <= piece; keys++)
            for (uint32_t dim = 64; dim <= 512; dim *= 2) {
                struct space_config c = {.kv_heads = 1,
                                         .head_dim = dim,
                                         .group_tokens = 64,
                                         .method = METHOD_PAGES,
                                         .piece_tokens = piece,
                                         .piece_keys = keys,
                                         .piece_look = 64};
                bounds_case(&c);
                c.head_dim = dim / 2 * 3;
                c.piece_look = 8192;
                bounds_case(&c);
            }
}

static void test_memory(void **arg)
{
    (void)arg;
    const struct setting sets[] = {
        {SCENE_RANDOM, 16, 0, 1, 2, 2, 64, 64, 6144, 0},
        {SCENE_RANDOM, 16, 5, 1, 1, 2, 64, 64, 8192, 0},
        {SCENE_RANDOM, 64, 0, 1, 1, 2, 128, 300, 4096, 0},
    };
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++)
        for (uint32_t sequences = 1; sequences <= 4; sequences += 3) {
            memory_case(&sets[i], sequences, 1);
            if (sequences > 1)
                memory_case(&sets[i], sequences, sequences);
        }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_clusters),   cmocka_unit_test(test_choice),
        cmocka_unit_test(test_bits),       cmocka_unit_test(test_bits_together),
        cmocka_unit_test(test_found),      cmocka_unit_test(test_empty_clusters),
        cmocka_unit_test(test_no_numbers), cmocka_unit_test(test_not_in_use),
        cmocka_unit_test(test_bounds),     cmocka_unit_test(test_memory),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    if (THREAD_SANITIZER)
        cmocka_set_test_filter("test_bits");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
