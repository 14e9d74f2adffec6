// SPDX-License-Identifier: Apache-2.0
// METHOD_PAGES: what it chooses and answers against a reference in double that was written apart;
// dense attention to the bit where everything is chosen; the same bits whatever the token group,
// the pages, the place, threads, kernels, the order in which tokens came, forks and truncation; how
// many bytes it reads; what it refuses.
#include "pages_bits.h"
#include "pages_float64.h"
#include "tests/more.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    LAYERS = PAGES_LAYERS,
    KV_HEADS = PAGES_KV_HEADS,
    Q_HEADS = PAGES_Q_HEADS,
    DIM = PAGES_HEAD_DIM,
    GROUP = Q_HEADS / KV_HEADS,
    TOKENS = PAGES_TOKENS
};

static const struct rig_options base = PAGES_OPTIONS;

static struct scene scene_of(enum scene_kind kind)
{
    return pages_scene(kind);
}

// ---- the reference -----------------------------------------------------------------------------

struct tally {
    uint64_t heads, close; // answers of a KV head; those where a choice hung on rounding
    double error;          // the largest of the others
};

// K and V of tokens 0 to n - 1 of a head.
static void widen(const struct scene *s, uint32_t layer, uint32_t head, size_t n, double *k,
                  double *v)
{
    size_t at = ((size_t)layer * KV_HEADS + head) * TOKENS * DIM;
    for (size_t i = 0; i < n * DIM; i++) {
        k[i] = (double)kernel_f16_to_f32(s->k[at + i]);
        v[i] = (double)kernel_f16_to_f32(s->v[at + i]);
    }
}

// As if another piece had been chosen?
static void tell_apart(const struct pages_answer *a, const struct scene_result *r, uint32_t first,
                       uint32_t heads, bool audit, struct tally *t)
{
    double error = 0, off = 0;
    for (uint32_t g = 0; g < heads * GROUP; g++) {
        const uint32_t query = first * GROUP + g;
        for (uint32_t d = 0; d < DIM; d++)
            error = fmax(error, fabs(a->out[g * DIM + d] - (double)r->out[query * DIM + d]));
        off = fmax(off, fabs(a->captured[g] - (double)r->captured[query]));
    }
    t->heads++;
    if (error > 2e-3 || (audit && off > 1e-4))
        t->close++;
    else
        t->error = fmax(t->error, error);
}

// Of the bytes of K and V, what an index on flash has in rows of so many tokens: docs/pages.md.
static double index_share(const struct space_config *c, double tokens)
{
    const uint32_t keys = c->piece_keys ? c->piece_keys : c->piece_tokens;
    const uint32_t counts = keys < c->piece_tokens ? keys : 0, bits = c->piece_bits == 2 ? 2 : 1;
    const uint32_t bytes = 4 + keys + counts + keys * DIM * bits / 8, heads = c->piece_heads;
    const double set = (bytes + bytes % 2 + 18.0 * DIM / 32) * tokens / c->piece_tokens * heads;
    return ceil(set / 4096) * 4096 / (4.0 * DIM * tokens * heads);
}

static void compare(const struct scene *s, uint32_t layer, uint64_t pos,
                    const struct space_config *c, const struct scene_knobs *knobs,
                    const struct scene_result *r, struct tally *t)
{
    const uint32_t n = (uint32_t)pos + 1, heads = space_config_together(c);
    double *k = malloc(2ull * heads * n * DIM * sizeof *k), *v = k + (size_t)heads * n * DIM;
    double q[Q_HEADS * DIM], out[Q_HEADS * DIM], captured[Q_HEADS];
    bool *token = malloc(n);
    for (uint32_t head = 0; head < KV_HEADS; head += heads) {
        for (uint32_t h = 0; h < heads; h++)
            widen(s, layer, head + h, n, k + (size_t)h * n * DIM, v + (size_t)h * n * DIM);
        size_t at = (((size_t)layer * TOKENS + pos) * Q_HEADS + head * GROUP) * DIM;
        for (size_t i = 0; i < (size_t)heads * GROUP * DIM; i++)
            q[i] = (double)s->q[at + i];
        struct pages_problem p = {.heads = heads,
                                  .head_dim = DIM,
                                  .group = GROUP,
                                  .tokens = n,
                                  .piece = c->piece_tokens,
                                  .keys = c->piece_keys ? c->piece_keys : c->piece_tokens,
                                  .local = knobs->local,
                                  .scale = (double)(1 / sqrtf((float)DIM)),
                                  .ratio = knobs->ratio != 0  ? (double)knobs->ratio
                                           : knobs->mass != 0 ? 1
                                                              : 0.125,
                                  .mass = (double)knobs->mass,
                                  .no_rest = knobs->no_rest,
                                  .bits = c->piece_bits                     ? c->piece_bits
                                          : c->piece_look || c->piece_flash ? 1
                                                                            : 2,
                                  .q = q,
                                  .k = k,
                                  .v = v};
        if (!p.local)
            p.local = 16;
        if (c->piece_flash && (knobs->ratio != 0 || knobs->mass == 0))
            p.ratio = fmax(p.ratio / 3, p.ratio - index_share(c, 1024));
        struct pages_answer a = {.token = token, .out = out, .captured = captured};
        pages_solve(&p, &a);
        tell_apart(&a, r, head, heads, knobs->audit, t);
    }
    free(k);
    free(token);
}

static void test_reference(void **state)
{
    (void)state;
    static const enum scene_kind kinds[] = {SCENE_CLUSTERED, SCENE_RANDOM, SCENE_STEPS};
    static const struct {
        uint32_t piece, keys, heads, bits, look, flash;
    } shapes[] = {{16, 0, 1, 0, 0, 0}, {16, 5, 1, 1, 0, 0},       {32, 10, 2, 1, 0, 0},
                  {64, 0, 1, 0, 0, 0}, {16, 0, 1, 2, 0, 0},       {32, 9, 2, 2, 0, 0},
                  {16, 0, 2, 0, 0, 0}, {16, 0, 1, 0, 1 << 20, 0}, // keys rounded as they are
                  {16, 0, 1, 0, 0, 1}, {16, 5, 2, 2, 0, 1}};
    static const struct scene_knobs knobs[] = {
        {.pages = true},
        {.pages = true, .ratio = 0.25f, .local = 100, .audit = true, .no_rest = true},
        {.pages = true, .mass = 0.9f, .audit = true},
        {.pages = true, .mass = 0.95f, .ratio = 0.2f, .local = 1},
    };
    struct tally all = {0};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        struct scene s = scene_of(kinds[i]);
        struct scene_result r;
        scene_result_new(&r, &s);
        for (size_t shape = 0; shape < sizeof shapes / sizeof *shapes; shape++) {
            struct rig rig;
            struct rig_options o = base;
            struct tally t = {0};
            uint32_t piece = shapes[shape].piece;
            o.config.piece_tokens = piece;
            o.config.piece_keys = shapes[shape].keys;
            o.config.piece_heads = shapes[shape].heads;
            o.config.piece_look = shapes[shape].look;
            o.config.piece_bits = shapes[shape].bits;
            o.config.piece_flash = shapes[shape].flash;
            rig_open(&rig, &o);
            scene_write(&rig, &s, 1, 0, 800, 333);
            for (uint64_t pos = 800; pos < 808; pos++)
                for (uint32_t l = 0; l < LAYERS; l++) {
                    struct scene_knobs now = knobs[pos % 4];
                    now.no_rest |= shapes[shape].flash;
                    assert_int_equal(scene_attend(&rig, &s, l, 1, pos, true, &now, &r), 0);
                    compare(&s, l, pos, &o.config, &now, &r, &t);
                }
            // Keys of small whole numbers tie everywhere: which token is farthest is a matter of
            // rounding there, if that matters.
            print_message("scene %d, pieces of %u, %u keys, %u heads together: %llu answers, %llu "
                          "close, error %.2g\n",
                          (int)kinds[i], piece, o.config.piece_keys, o.config.piece_heads,
                          (unsigned long long)t.heads, (unsigned long long)t.close, t.error);
            if (kinds[i] != SCENE_STEPS || !o.config.piece_keys)
                assert_true(t.close * 8 <= t.heads);
            all.heads += t.heads;
            rig_close(&rig);
        }
        scene_result_free(&r);
        scene_free(&s);
    }
    assert_int_equal(all.heads, 3 * (6 * KV_HEADS + 4) * 8 * LAYERS);
}

// ---- bits --------------------------------------------------------------------------------------

static void test_bits(void **state)
{
    (void)state;
    const struct pages_bits bits = {.options = base, .knobs = {.pages = true, .ratio = 0.25f}};
    pages_same_bits(&bits);
}

static void test_bits_together(void **state)
{
    (void)state;
    struct pages_bits bits = {.options = base, .knobs = {.pages = true, .ratio = 0.25f}};
    bits.options.config.piece_heads = 2;
    pages_same_bits(&bits);
    bits.options.config.piece_bits = 2;
    pages_same_bits(&bits);
}

// An index on flash: the bits of one in DRAM where as many tokens are chosen.
static void test_bits_flash(void **state)
{
    (void)state;
    const struct scene_knobs knobs = {.pages = true, .ratio = 0.25f, .local = 40, .no_rest = true};
    struct pages_bits flash = {.options = base, .knobs = knobs}, dram = flash;
    flash.options.config.piece_tokens = dram.options.config.piece_tokens = 16;
    for (uint32_t bits = 1; bits <= 2; bits++) {
        flash.options.config.piece_bits = dram.options.config.piece_bits = bits;
        flash.options.config.piece_heads = dram.options.config.piece_heads = bits;
        flash.options.config.piece_flash = 1;
        dram.knobs.ratio = (float)(0.25 - index_share(&flash.options.config, 1024));
        struct scene s = scene_of(SCENE_CLUSTERED);
        assert_true(pages_run(&flash, &s, PAGES_AT_ONCE) == pages_run(&dram, &s, PAGES_AT_ONCE));
        scene_free(&s);
        pages_same_bits(&flash);
        flash.busy = true;
        pages_same_bits(&flash);
        flash.busy = false;
    }
}

// K and V in blocks: the bits of a space that holds the same numbers as fp16, whose index therefore
// is made of what is stored.
static void test_blocks(void **state)
{
    (void)state;
    const struct scene_knobs knobs = {.pages = true, .ratio = 0.25f, .audit = true};
    for (uint32_t type = KV_Q8; type < KV_TYPES; type++) {
        struct scene s = scene_of(SCENE_CLUSTERED), rounded = scene_of(SCENE_CLUSTERED);
        for (size_t row = 0; row < (size_t)LAYERS * KV_HEADS * TOKENS; row++) {
            kv_round_value(type, rounded.v + row * DIM, rounded.k + row * DIM, DIM);
            kv_round(type, rounded.k + row * DIM, DIM);
        }
        struct pages_bits same = {.options = base, .knobs = knobs};
        same.options.config.piece_tokens = 32; // else as many as fill a page
        uint64_t expected = pages_run(&same, &rounded, PAGES_AT_ONCE);
        assert_true(pages_run(&same, &s, PAGES_AT_ONCE) != expected);
        unsigned runs = 0;
        for (uint32_t group = 32; group <= 256; group *= 2, runs++) {
            struct pages_bits other = same;
            struct rig_options *o = &other.options;
            o->config.group_tokens = group;
            o->config.kv_type = type;
            o->page_bytes = runs % 2 ? 512 : 4096;
            o->threads = 1 + runs % 3;
            o->row_cache = runs == 2;
            o->ram_rate = runs == 3 ? 0 : base.ram_rate;
            o->request_bytes = runs == 1 ? 8192 : 0;
            if (pages_run(&other, &s, (enum pages_way)(runs % PAGES_WAYS)) != expected)
                fail_msg("%s, group %u, pages of %u, way %u: other bits", kv_type_name(type), group,
                         o->page_bytes, runs % PAGES_WAYS);
        }
        scene_free(&s);
        scene_free(&rounded);
    }
}

// Everything is chosen: by the ratio, by the window, and where there is no complete piece but one.
static void test_dense(void **state)
{
    (void)state;
    struct scene s = scene_of(SCENE_RANDOM);
    struct scene_result r, dense;
    struct rig rig;
    const struct scene_knobs full[] = {{.pages = true, .ratio = 1},
                                       {.pages = true, .local = TOKENS},
                                       {.pages = true, .mass = 0.999999f, .local = TOKENS}};
    const struct scene_knobs exact = {.dense = true}, short_one = {.pages = true, .ratio = 0.01f};
    scene_result_new(&r, &s);
    scene_result_new(&dense, &s);
    rig_open(&rig, &base);
    for (uint64_t pos = 0; pos < 1300; pos += 97) {
        if (pos)
            scene_write(&rig, &s, 1, pos - 96, 96, 0);
        for (uint32_t l = 0; l < LAYERS; l++) {
            assert_int_equal(scene_attend(&rig, &s, l, 1, pos, true, &exact, &dense), 0);
            for (size_t i = 0; i < sizeof full / sizeof *full + (pos < 63); i++) {
                const struct scene_knobs *knobs = i < 3 ? &full[i] : &short_one;
                assert_int_equal(scene_attend(&rig, &s, l, 1, pos, false, knobs, &r), 0);
                assert_memory_equal(r.out, dense.out, Q_HEADS * DIM * sizeof(float));
                assert_memory_equal(r.lse, dense.lse, Q_HEADS * sizeof(float));
                assert_memory_equal(r.captured, dense.captured, Q_HEADS * sizeof(float));
            }
        }
    }
    rig_close(&rig);
    scene_result_free(&r);
    scene_result_free(&dense);
    scene_free(&s);
}

// ---- bytes -------------------------------------------------------------------------------------

static void bytes_of(struct scene *s, uint32_t type, uint32_t group, uint32_t piece, bool flash)
{
    struct rig rig;
    struct rig_options o = base;
    struct drive_stats before, after;
    struct scene_result r;
    scene_result_new(&r, s);
    o.config.group_tokens = group;
    o.config.piece_tokens = piece;
    o.config.kv_type = type;
    o.config.piece_flash = flash;
    o.config.piece_heads = 1;
    rig_open(&rig, &o);
    scene_write(&rig, s, 1, 0, 1600, 0);
    assert_int_equal(rig_call(&rig, &(struct command){.opcode = OP_FLUSH}, NULL, NULL, NULL), 0);
    // The first piece and the newest tokens alone are more than 1/16 where pieces have 64 tokens,
    // or more than what is left beside an index where they have 32.
    const bool large = group >= 64 && (type != KV_F16 || flash);
    for (int divisor = 4; divisor <= (large ? 8 : 16); divisor *= 2) {
        const struct scene_knobs knobs = {
            .pages = true, .ratio = 1 / (float)divisor, .no_rest = flash};
        rig_stats(&rig, &before);
        for (uint32_t l = 0; l < LAYERS; l++)
            assert_int_equal(scene_attend(&rig, s, l, 1, 1599, false, &knobs, &r), 0);
        rig_stats(&rig, &after);
        double read = (double)(after.flash_read_bytes - before.flash_read_bytes);
        double whole = (double)(after.pages_dense_bytes - before.pages_dense_bytes);
        assert_true(read > 0 && whole > 0);
        // An index on flash is read as a whole, here in short rows, and a third of the ratio is
        // left.
        const double most =
            flash ? fmax(1.0 / divisor + 0.016, index_share(&o.config, 256) + 1.0 / 3 / divisor)
                  : 1.0 / divisor;
        if (read > 1.1 * whole * most || (divisor < 16 && read < 0.5 * whole / divisor))
            fail_msg("%s, groups of %u, 1/%d: %.3f of dense", kv_type_name(type), group, divisor,
                     read / whole);
        double predicted = 1e-6 * (double)(after.pages_predicted_sum - before.pages_predicted_sum) /
                           (double)(after.pages_predicted - before.pages_predicted);
        assert_int_equal(after.pages_predicted - before.pages_predicted, LAYERS * Q_HEADS);
        assert_true(predicted > 0 && predicted <= 1);
        // The rows of an index: 1,536 of 1,600 tokens, of both heads.
        const uint64_t index = after.pages_index_bytes - before.pages_index_bytes;
        const double rows =
            flash ? index_share(&o.config, 256) * 1536 * KV_HEADS * 4 * DIM * LAYERS : 0;
        assert_true((double)index == rows);
        // An audit reads the others, too, and they are told apart.
        const uint64_t told = after.pages_read_bytes - before.pages_read_bytes;
        struct scene_knobs audited = knobs;
        audited.audit = true;
        before = after;
        for (uint32_t l = 0; l < LAYERS; l++)
            assert_int_equal(scene_attend(&rig, s, l, 1, 1599, false, &audited, &r), 0);
        rig_stats(&rig, &after);
        assert_int_equal(after.pages_read_bytes - before.pages_read_bytes, told);
    }
    rig_close(&rig);
    scene_result_free(&r);
}

// At most 1.1 of the ratio: where a piece lies in pages of its own, and in larger groups where its
// K does, of every type.
static void test_bytes(void **state)
{
    (void)state;
    struct scene s = scene_of(SCENE_CLUSTERED);
    bytes_of(&s, KV_F16, 16, 0, false);
    bytes_of(&s, KV_F16, 16, 16, true);
    bytes_of(&s, KV_F16, 64, 32, true);
    for (uint32_t group = 32; group <= 256; group *= 2)
        bytes_of(&s, KV_F16, group, 32, false);
    bytes_of(&s, KV_Q8, 32, 0, false);
    for (uint32_t group = 64; group <= 256; group *= 4)
        bytes_of(&s, KV_Q8, group, 64, false);
    bytes_of(&s, KV_Q4, 64, 0, false);
    scene_free(&s);
}

// Clustered K: most of the softmax is found in an eighth of the bytes, and the estimate of the rest
// brings the output nearer to that of dense attention.
static void test_captures(void **state)
{
    (void)state;
    struct scene s = scene_of(SCENE_CLUSTERED);
    struct scene_result r, dense;
    struct rig rig;
    double captured = 0, error[2] = {0};
    unsigned n = 0;
    scene_result_new(&r, &s);
    scene_result_new(&dense, &s);
    rig_open(&rig, &base);
    scene_write(&rig, &s, 1, 0, 1600, 0);
    for (uint64_t pos = 1600; pos < 1616; pos++)
        for (uint32_t l = 0; l < LAYERS; l++) {
            struct scene_knobs knobs = {.dense = true};
            assert_int_equal(scene_attend(&rig, &s, l, 1, pos, true, &knobs, &dense), 0);
            for (int rest = 0; rest < 2; rest++) {
                knobs = (struct scene_knobs){.pages = true, .audit = true, .no_rest = !rest};
                assert_int_equal(scene_attend(&rig, &s, l, 1, pos, false, &knobs, &r), 0);
                for (uint32_t i = 0; i < Q_HEADS * DIM; i++)
                    error[rest] += pow((double)r.out[i] - (double)dense.out[i], 2);
            }
            for (uint32_t i = 0; i < Q_HEADS; i++, n++)
                captured += (double)r.captured[i];
        }
    print_message("captured %.3f, error with the rest estimated %.3f of that without\n",
                  captured / n, sqrt(error[1] / error[0]));
    assert_true(captured / n > 0.3); // 0.125 is what choosing blindly would bring
    assert_true(error[1] < 0.9 * error[0]);
    rig_close(&rig);
    scene_result_free(&r);
    scene_result_free(&dense);
    scene_free(&s);
}

// ---- an index on flash in the least DRAM ------------------------------------------------------

// One WRITE of more runs than DRAM has blocks for: complete ones go to flash while it goes on.
static void test_long_write(void **state)
{
    (void)state;
    enum { ROWS = 24, ROW = 1024 };
    struct rig_options o = base;
    struct drive_plan plan;
    struct inst_msg msg = {0};
    o.config = (struct space_config){.layers = 1,
                                     .kv_heads = 8,
                                     .head_dim = 64,
                                     .group_tokens = 16,
                                     .max_sequences = 1,
                                     .max_tokens = ROWS * ROW + 64,
                                     .q_heads = 8,
                                     .method = METHOD_PAGES,
                                     .piece_flash = 1};
    o.q_heads = 8;
    o.pages_per_block = 4096;
    const struct flash_geometry g = rig_geometry(&o);
    assert_int_equal(drive_plan(&plan, &g, &o.config, 0, &msg), 0);
    o.dram_bytes = plan.min_dram_bytes;
    struct rig rig;
    rig_open(&rig, &o);
    assert_int_equal(rig_write(&rig, 1, 1, 0, 0, ROWS * ROW, 0, 8), 0);
    struct drive_stats stats;
    rig_stats(&rig, &stats);
    // Only the maps are left of it.
    const uint64_t row = 8 * (ROW / 16) * 184;
    assert_true(stats.flash_program_bytes > ROWS * (row + (uint64_t)ROW * 8 * 256));
    assert_true(stats.pages_dram_bytes < plan.min_dram_bytes);
    rig_close(&rig);
}

// ---- refusals ----------------------------------------------------------------------------------

static void test_refused(void **state)
{
    (void)state;
    struct scene s = scene_of(SCENE_RANDOM);
    struct scene_result r;
    struct rig rig;
    const struct scene_knobs wrong[] = {{.pages = true, .ratio = 1.5f},
                                        {.pages = true, .ratio = -0.1f},
                                        {.pages = true, .mass = 1},
                                        {.pages = true, .mass = NAN}};
    struct inst_msg msg = {0};
    struct drive_plan plan;
    struct flash_geometry g = rig_geometry(&base);
    struct space_config c = base.config;
    scene_result_new(&r, &s);
    rig_open(&rig, &base);
    scene_write(&rig, &s, 1, 0, 200, 0);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_int_equal(scene_attend(&rig, &s, 0, 1, 200, true, &wrong[i], &r), INST_EINVAL);
        assert_non_null(strstr(rig.text, "pages"));
    }
    rig_close(&rig);
    struct rig_options on_flash = base;
    const struct scene_knobs rest = {.pages = true}; // with the rest
    on_flash.config.piece_flash = 1;
    rig_open(&rig, &on_flash);
    scene_write(&rig, &s, 1, 0, 200, 0);
    assert_int_equal(scene_attend(&rig, &s, 0, 1, 200, true, &rest, &r), INST_ENOTSUP);
    assert_non_null(strstr(rig.text, "knows nothing of the rest"));
    rig_close(&rig);
    c.piece_flash = 1;
    c.piece_look = 100;
    assert_int_equal(drive_plan(&plan, &g, &c, 0, &msg), INST_EINVAL);
    assert_non_null(strstr(msg.text, "no piece_look"));
    c.piece_look = 0;
    c.piece_flash = 2;
    msg = (struct inst_msg){0};
    assert_int_equal(drive_plan(&plan, &g, &c, 0, &msg), INST_EINVAL);
    assert_non_null(strstr(msg.text, "an index in place 2"));
    // All pages of a row are programmed at once.
    struct flash_geometry large = g;
    large.pages_per_block = 65535;
    struct space_config wide = c;
    wide.piece_flash = 1;
    wide.kv_heads = wide.q_heads = 4096;
    wide.group_tokens = wide.piece_tokens = 16;
    msg = (struct inst_msg){0};
    assert_int_equal(drive_plan(&plan, &large, &wide, 0, &msg), INST_EINVAL);
    assert_non_null(strstr(msg.text, "a row of the index of 4096 pages, no more than 1024"));
    wide.kv_heads = wide.q_heads = 1024;
    assert_int_equal(drive_plan(&plan, &large, &wide, 0, &msg), 0);
    c.piece_flash = 0;
    c.piece_tokens = 48;
    msg = (struct inst_msg){0};
    assert_int_equal(drive_plan(&plan, &g, &c, 0, &msg), INST_EINVAL);
    assert_non_null(strstr(msg.text, "pieces of 48 tokens"));
    c.piece_tokens = 16;
    c.piece_keys = 17;
    msg = (struct inst_msg){0};
    assert_int_equal(drive_plan(&plan, &g, &c, 0, &msg), INST_EINVAL);
    assert_non_null(strstr(msg.text, "17 keys for a piece of 16 tokens"));
    c.piece_keys = 0;
    c.piece_heads = 3;
    msg = (struct inst_msg){0};
    assert_int_equal(drive_plan(&plan, &g, &c, 0, &msg), INST_EINVAL);
    assert_non_null(strstr(msg.text, "2 KV heads do not choose together by 3"));
    c.piece_heads = 0;
    c.piece_tokens = 64;
    c.group_tokens = 32;
    msg = (struct inst_msg){0};
    assert_int_equal(drive_plan(&plan, &g, &c, 0, &msg), INST_EINVAL);
    assert_non_null(strstr(msg.text, "do not fit in a token group of 32"));
    // Where the drive chooses the group, a piece is one.
    c.group_tokens = 0;
    assert_int_equal(drive_plan(&plan, &g, &c, 0, &msg), 0);
    assert_int_equal(plan.group_tokens, 64);
    // The index is promised: 1/26 of K and V in DRAM, whatever the length.
    c.group_tokens = 64;
    c.piece_tokens = 32;
    uint64_t least[2];
    for (int i = 0; i < 2; i++) {
        c.max_tokens = i ? 1 << 20 : 1 << 10;
        assert_int_equal(drive_plan(&plan, &g, &c, 0, &msg), 0);
        least[i] = plan.min_dram_bytes;
    }
    assert_true(least[1] - least[0] > (uint64_t)LAYERS * KV_HEADS * (1 << 15) * 300);
    // On flash what grows with the length is maps, of K and V above all: 1/400 of K and V.
    uint64_t flash[2];
    c.piece_flash = 1;
    c.piece_tokens = 0;
    for (int i = 0; i < 2; i++) {
        c.max_tokens = i ? 1 << 20 : 1 << 10;
        assert_int_equal(drive_plan(&plan, &g, &c, 0, &msg), 0);
        flash[i] = plan.min_dram_bytes;
    }
    print_message("DRAM for 1M tokens: %.1f MB, %.1f MB with the index on flash\n",
                  1e-6 * (double)(least[1] - least[0]), 1e-6 * (double)(flash[1] - flash[0]));
    scene_result_free(&r);
    scene_free(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference),     cmocka_unit_test(test_bits),
        cmocka_unit_test(test_bits_together), cmocka_unit_test(test_bits_flash),
        cmocka_unit_test(test_blocks),        cmocka_unit_test(test_dense),
        cmocka_unit_test(test_bytes),         cmocka_unit_test(test_captures),
        cmocka_unit_test(test_long_write),    cmocka_unit_test(test_refused),
    };
    if (THREAD_SANITIZER)
        cmocka_set_test_filter("test_bits");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
