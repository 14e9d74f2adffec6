// SPDX-License-Identifier: Apache-2.0
// Sequences that come, grow, fork, shrink and go for millions of pages on a drive that holds only a
// small part of them: what is read back is what was written, the parts of the drive agree, no page
// is ever copied, and both amplifications stay near 1.
//
// churn [PAGES]: pages to program in each case (default: a quick version).
#include "drive_harness.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    HEAD_DIM = 16,
    KV_HEADS = 1,
    PAGE = 1024, // K and V of 16 tokens
    GROUP = 16,
    LIVE = 48, // sequences alive at a time
    CHUNK = 512,
    WORDS = HEAD_DIM * 2 / 8, // of K or V of a token
};

static uint64_t pages_wanted;

// A sequence as the test sees it: which contents its tokens have. A fork has its parent's up to
// where it began, which may itself be a fork.
struct timeline {
    uint32_t seq; // 0: none
    uint64_t tokens, target;
    uint32_t parts;
    struct {
        uint32_t content;
        uint64_t first; // token
    } part[12];
};

struct churn {
    struct rig rig;
    uint64_t random;
    uint32_t next_seq, next_content;
    struct timeline line[LIVE];
    uint64_t *data; // one WRITE
    uint64_t forks, truncations, ends, reads;
    double amplification, worst; // sum and most of the samples
    uint64_t samples;
};

static uint64_t draw(struct churn *c, uint64_t below)
{
    c->random = c->random * 6364136223846793005u + 1442695040888963407u;
    return (c->random >> 33) % below;
}

static uint64_t word(uint32_t content, uint64_t token, bool v, uint32_t i)
{
    uint64_t x = ((uint64_t)content << 34) + token * 16 + v * 8u + i + 1;
    return (x ^ (x >> 27)) * 0x9e3779b97f4a7c15u & 0xbfffbfffbfffbfff; // fp16 below 2
}

static uint32_t content_at(const struct timeline *line, uint64_t token)
{
    uint32_t i = line->parts;
    while (line->part[i - 1].first > token)
        i--;
    return line->part[i - 1].content;
}

// From `tokens` on this timeline gets values of its own.
static void begin_part(struct churn *c, struct timeline *line)
{
    while (line->parts && line->part[line->parts - 1].first >= line->tokens)
        line->parts--;
    if (line->parts == sizeof line->part / sizeof line->part[0])
        return; // its last part goes on
    line->part[line->parts].content = ++c->next_content;
    line->part[line->parts++].first = line->tokens;
}

static void append(struct churn *c, struct timeline *line)
{
    uint64_t n = 1 + draw(c, CHUNK), bytes;
    if (n > line->target - line->tokens)
        n = line->target - line->tokens;
    slab_bytes(KV_HEADS, n, HEAD_DIM, &bytes);
    uint8_t table[128];
    table_put_header(table, &(struct table_header){.head_count = KV_HEADS});
    table_put_item(
        table, 0,
        &(struct table_item){.seq = line->seq, .epoch = 1, .pos = line->tokens, .n_tokens = n});
    uint64_t *p = c->data;
    uint32_t content = line->part[line->parts - 1].content;
    for (int v = 0; v < 2; v++)
        for (uint64_t t = line->tokens; t < line->tokens + n; t++)
            for (uint32_t i = 0; i < WORDS; i++)
                *p++ = word(content, t, v, i);
    struct command command = {
        .opcode = OP_WRITE, .space = 1, .count = 1, .length = (uint32_t)bytes};
    if (rig_call(&c->rig, &command, table, c->data, NULL))
        fail_msg("%s", c->rig.text);
    line->tokens += n;
}

static void check_content(struct churn *c, const struct timeline *line, uint64_t from, uint64_t n)
{
    uint64_t bytes;
    slab_bytes(KV_HEADS, n, HEAD_DIM, &bytes);
    uint64_t *out = malloc(bytes), *p = out;
    if (rig_read(&c->rig, line->seq, 0, from, n, 0, KV_HEADS, (uint16_t *)out))
        fail_msg("%s", c->rig.text);
    for (int v = 0; v < 2; v++)
        for (uint64_t t = from; t < from + n; t++)
            for (uint32_t i = 0; i < WORDS; i++)
                if (*p++ != word(content_at(line, t), t, v, i))
                    fail_msg("sequence %u token %llu is another's", line->seq,
                             (unsigned long long)t);
    free(out);
    c->reads++;
}

// One ATTEND at the sequence's end with every channel; returns what it captured.
static float attend(struct churn *c, const struct timeline *line, bool audit)
{
    struct attend_layout layout;
    uint64_t in[32] __attribute__((aligned(64))), out[64] __attribute__((aligned(64)));
    uint32_t ticket = c->rig.next_ticket++;
    float captured;
    assert_true(attend_layout(&layout, 1, KV_HEADS, KV_HEADS, HEAD_DIM, false));
    assert_true(layout.in_bytes <= sizeof in && layout.out_bytes <= sizeof out);
    memset(in, 0, sizeof in);
    uint8_t table[128];
    table_put_header(table, &(struct table_header){.method = METHOD_SPARF,
                                                   .q_heads = KV_HEADS,
                                                   .scale = 0.25f,
                                                   .sparf_channels = HEAD_DIM,
                                                   .audit = audit});
    table_put_item(table, 0,
                   &(struct table_item){.seq = line->seq, .epoch = 1, .pos = line->tokens});
    for (uint32_t d = 0; d < HEAD_DIM; d++)
        ((float *)((uint8_t *)in + layout.q))[d] = (float)(d * 7 % 5) - 2;
    struct command command = {.opcode = OP_ATTEND,
                              .space = 1,
                              .count = 1,
                              .ticket = ticket,
                              .length = (uint32_t)layout.in_bytes};
    if (rig_call(&c->rig, &command, table, in, NULL))
        fail_msg("%s", c->rig.text);
    command = (struct command){
        .opcode = OP_COLLECT, .space = 1, .ticket = ticket, .length = (uint32_t)layout.out_bytes};
    assert_int_equal(rig_call(&c->rig, &command, NULL, out, NULL), 0);
    assert_int_equal(*(uint32_t *)((uint8_t *)out + layout.status), 0);
    memcpy(&captured, (uint8_t *)out + layout.captured, sizeof captured);
    return captured;
}

static void end(struct churn *c, struct timeline *line)
{
    assert_int_equal(rig_reclaim(&c->rig, line->seq, 0, UINT64_MAX, 0, 1), 0);
    *line = (struct timeline){0};
    c->ends++;
}

static void begin(struct churn *c, struct timeline *line, uint64_t least, uint64_t most)
{
    const struct timeline *parent = &c->line[draw(c, LIVE)];
    uint64_t target = least + draw(c, most - least);
    *line = (struct timeline){.seq = ++c->next_seq, .target = target};
    // Every third sequence continues another one, as a rule most of it.
    if (parent != line && parent->seq && parent->tokens > 1 && !draw(c, 3)) {
        uint64_t at = parent->tokens - draw(c, 1 + parent->tokens / 4);
        at = at < target ? at : target - 1;
        assert_int_equal(rig_fork(&c->rig, parent->seq, line->seq, at), 0);
        memcpy(line->part, parent->part, sizeof line->part);
        line->parts = parent->parts;
        line->tokens = at;
        c->forks++;
    }
    begin_part(c, line);
}

static void sample(struct churn *c, struct drive_stats *stats)
{
    rig_stats(&c->rig, stats); // walks over the invariants too
    assert_int_equal(stats->copied_bytes, 0);
    assert_int_equal(stats->checksum_errors, 0);
    double amplification = (double)stats->allocated_bytes / (double)stats->live_bytes;
    c->amplification += amplification;
    c->worst = amplification > c->worst ? amplification : c->worst;
    c->samples++;
    const struct timeline *line = &c->line[draw(c, LIVE)];
    if (!line->tokens)
        return;
    uint64_t n = 1 + draw(c, line->tokens < 700 ? line->tokens : 700);
    check_content(c, line, draw(c, line->tokens - n + 1), n);
    // With every channel the prediction is the truth, if the channels are this sequence's.
    if (c->rig.config.method == METHOD_SPARF && line->tokens < 20000) {
        float predicted = attend(c, line, false), exact = attend(c, line, true);
        if (!(predicted > 0 && predicted <= 1.0001f && fabsf(predicted - exact) < 1e-4f))
            fail_msg("sequence %u: %.7g of the weight predicted, %.7g true", line->seq,
                     (double)predicted, (double)exact);
    }
}

struct shape {
    const char *name;
    uint32_t dies, pages_per_block, method, page_channels;
};

static void churn(const struct shape *shape)
{
    struct churn c = {.random = 42};
    uint64_t segment = (uint64_t)shape->dies * shape->pages_per_block * GROUP; // tokens, about
    uint64_t least = 8 * segment, most = 24 * segment;
    struct rig_options o = {
        .config = {.layers = 1,
                   .kv_heads = KV_HEADS,
                   .head_dim = HEAD_DIM,
                   .group_tokens = GROUP,
                   .method = shape->method,
                   .page_channels = shape->page_channels,
                   .max_sequences = LIVE,
                   .max_tokens = most},
        .q_heads = KV_HEADS,
        .page_bytes = PAGE,
        .pages_per_block = shape->pages_per_block,
        .dies = shape->dies,
        .blocks = (uint64_t)shape->dies * 24 * LIVE * 3 / 2,
    };
    struct drive_stats stats = {0};
    rig_open(&c.rig, &o);
    c.data = aligned_alloc(64, CHUNK * HEAD_DIM * 4 * KV_HEADS);
    for (uint64_t step = 0; stats.flash_program_bytes < pages_wanted * PAGE; step++) {
        struct timeline *line = &c.line[draw(&c, LIVE)];
        if (!line->seq)
            begin(&c, line, least, most);
        append(&c, line);
        if (line->tokens == line->target) {
            end(&c, line);
        } else if (!draw(&c, 400)) {
            line->tokens -= draw(&c, line->tokens / 16 + 1);
            assert_int_equal(rig_reclaim(&c.rig, line->seq, line->tokens, UINT64_MAX, 0, 1), 0);
            if (!line->tokens)
                *line = (struct timeline){0};
            else
                begin_part(&c, line);
            c.truncations++;
        }
        // Only once sequences of every age are there do the amplifications mean anything.
        if (step % 128 == 0 && c.ends > LIVE / 4)
            sample(&c, &stats);
        else if (step % 128 == 0)
            rig_stats(&c.rig, &stats);
    }
    double waf = (double)stats.flash_program_bytes / (double)stats.stream_bytes;
    print_message("%s: %llu pages programmed in %llu blocks erased, %llu forks, %llu truncations, "
                  "%llu ends, %llu reads: WAF %.4f, allocated/live mean %.3f, worst %.3f\n",
                  shape->name, (unsigned long long)(stats.flash_program_bytes / PAGE),
                  (unsigned long long)stats.flash_erased_blocks, (unsigned long long)c.forks,
                  (unsigned long long)c.truncations, (unsigned long long)c.ends,
                  (unsigned long long)c.reads, waf, c.amplification / (double)c.samples, c.worst);
    assert_true(c.samples > 10 && c.forks > 2 && c.truncations > 2 && stats.flash_erased_blocks);
    assert_true(waf >= 1 && waf <= 1.05);
    assert_true(c.amplification / (double)c.samples <= 1.25);
    for (uint32_t i = 0; i < LIVE; i++)
        if (c.line[i].seq)
            end(&c, &c.line[i]);
    rig_stats(&c.rig, &stats);
    assert_int_equal(stats.live_bytes, 0);
    assert_int_equal(stats.allocated_bytes, 0);
    assert_int_equal(stats.rows_in_dram, 0);
    free(c.data);
    rig_close(&c.rig);
}

static void test_one_die(void **state)
{
    (void)state;
    churn(&(struct shape){"one die", 1, 128, METHOD_DENSE, 0});
}

static void test_four_dies(void **state)
{
    (void)state;
    churn(&(struct shape){"four dies", 4, 64, METHOD_DENSE, 0});
}

static void test_sparf(void **state)
{
    (void)state;
    churn(&(struct shape){"sparf, two dies", 2, 64, METHOD_SPARF, 4});
}

int main(int argc, char **argv)
{
    pages_wanted = argc > 1 ? strtoull(argv[1], NULL, 10) : 200000;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_die),
        cmocka_unit_test(test_four_dies),
        cmocka_unit_test(test_sparf),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
