// SPDX-License-Identifier: Apache-2.0
// Recorded selections: a text of what the real drive chose says which pages it read, to the page;
// the model reads as many by it, and the real drive reads them again when it is told to.
#include "bench/clusters.h"
#include "sim/drive_real.h"
#include "sim/selections.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { HEADS = 8, SEQUENCES = 2, CONTEXT = 1536, PAGE = 4096 };

struct text {
    FILE *f;
    char *at;
    size_t bytes;
    bool begun;
};

static void record(void *user, struct drive_selection *s)
{
    struct text *text = user;
    if (!s->chosen)
        return;
    if (!text->begun) {
        const struct selections_layout l = {.sparf = s->method == METHOD_SPARF,
                                            .page_bytes = s->page_bytes,
                                            .kv_heads = s->config->kv_heads,
                                            .head_dim = s->config->head_dim,
                                            .group_tokens = s->config->group_tokens,
                                            .part_tokens = s->part_tokens,
                                            .page_channels = s->config->page_channels,
                                            .kv_type = s->config->kv_type};
        selections_write_head(text->f);
        selections_write_layout(text->f, 0, &l);
    }
    text->begun = true;
    const struct selections_record r = {.layer = s->layer,
                                        .sequence = s->seq,
                                        .head = s->head,
                                        .tokens = s->tokens,
                                        .flash_tokens = s->flash_tokens,
                                        .ranked_tokens = s->ranked_tokens,
                                        .channels = s->channels,
                                        .n_channels = s->n_channels,
                                        .chosen = s->chosen};
    selections_write(text->f, &r);
}

struct run {
    struct drive_timing timing;
    struct drive_real_report report;
    struct selections *recorded;
};

// The real drive, as it chooses or by `replayed`; what it chose is recorded either way.
static void run_real(struct run *out, enum method_kind method, const struct drive_content *content,
                     const struct selections *replayed)
{
    struct machine m = {.gpus = 1, .drives = 1};
    struct inst_msg msg = {0};
    struct text text = {0};
    text.f = open_memstream(&text.at, &text.bytes);
    assert_non_null(text.f);
    if (machine_load(&m, "a6000", "xeon-5320", "instcsd-zynq7045", &msg))
        fail_msg("%s", msg.text);
    m.csd.overlap = 1;
    struct workload w = {
        .shape = {"", 1, 2 * HEADS, HEADS, 128, 1e9}, .batch = SEQUENCES, .input = 1, .output = 1};
    struct selection sel = {.channels = 0.125,
                            .tokens = 0.125,
                            .run = 8 / 7.0,
                            .page_channels = 8,
                            .recorded = replayed};
    const struct drive_real_options o = {.profile = "instcsd-zynq7045",
                                         .sequences = SEQUENCES,
                                         .content = *content,
                                         .selected = record,
                                         .selected_user = &text};
    if (drive_real_run(&out->timing, &out->report, &o, &m, &w, method, &sel, CONTEXT, &msg))
        fail_msg("%s", msg.text);
    fclose(text.f);
    if (selections_parse(&out->recorded, "recorded", text.at, text.bytes, &msg))
        fail_msg("%s", msg.text);
    free(text.at);
}

static void by_model(struct drive_timing *out, enum method_kind method, const struct selections *of)
{
    struct machine m = {.gpus = 1, .drives = 1};
    struct inst_msg msg = {0};
    if (machine_load(&m, "a6000", "xeon-5320", "instcsd-zynq7045", &msg))
        fail_msg("%s", msg.text);
    struct workload w = {
        .shape = {"", 1, 2 * HEADS, HEADS, 128, 1e9}, .batch = SEQUENCES, .input = 1, .output = 1};
    struct selection sel = {.channels = 0.5, .tokens = 0.5, .run = 2, .page_channels = 8};
    struct drive_recorded recorded;
    drive_recorded_open(&recorded, NULL);
    recorded.sparf = recorded.pages = of;
    if (recorded.source.timing(&recorded.source, out, &m, &w, method, &sel, CONTEXT, &msg))
        fail_msg("%s", msg.text);
}

static void test_recorded(void **state)
{
    (void)state;
    static const enum method_kind methods[] = {SIM_PAGES, SIM_SPARF};
    struct drive_content content = {clusters_content_kv, clusters_content_query, NULL};
    for (int i = 0; i < 2; i++) {
        struct run own, again;
        struct selections_pages pages, replayed;
        struct selections_about about;
        assert_int_equal(clusters_new((struct clusters **)&content.user, &clusters_usual, SEQUENCES,
                                      1, HEADS, 128, CONTEXT, NULL),
                         0);
        run_real(&own, methods[i], &content, NULL);
        selections_about(own.recorded, &about);
        assert_int_equal(about.records, HEADS * SEQUENCES);
        assert_true(fabs(about.token_share - 0.125) < 0.011);
        assert_int_equal(selections_pages(own.recorded, &pages, NULL), 0);
        // To the page: what the drive counted while it read.
        const struct drive_stats *s = &own.report.stats;
        if (methods[i] == SIM_PAGES) {
            assert_int_equal(pages.token * PAGE, s->pages_read_bytes);
            assert_int_equal(pages.dense * PAGE, s->pages_dense_bytes);
        } else {
            assert_int_equal(pages.token, s->token_pages);
            assert_int_equal(pages.channel, s->channel_pages);
            assert_int_equal(pages.tail * PAGE, s->tail_bytes);
            assert_int_equal(pages.dense, s->dense_pages);
        }
        assert_true(pages.token && pages.token < pages.dense);
        // The model, which has pages of 16 tokens as this drive does, reads as many: but for the
        // last group of each head, which the drive may still have in DRAM.
        struct drive_timing model;
        by_model(&model, methods[i], own.recorded);
        double more = model.token_bytes / PAGE - (double)pages.token;
        if (!(more > -1e-6 && more <= 2 * HEADS * SEQUENCES + 1e-6))
            fail_msg("the model reads %g pages more than the drive's %g", more,
                     (double)pages.token);
        assert_true(
            fabs(selections_page_share(own.recorded, 16) * model.dense - model.token_bytes) < 1);
        // Replayed: other K, V and q, the same pages.
        clusters_free(content.user);
        struct clusters_options other = clusters_usual;
        other.cohesion = 0.3f;
        assert_int_equal(clusters_new((struct clusters **)&content.user, &other, SEQUENCES, 1,
                                      HEADS, 128, CONTEXT, NULL),
                         0);
        run_real(&again, methods[i], &content, own.recorded);
        assert_int_equal(selections_pages(again.recorded, &replayed, NULL), 0);
        assert_memory_equal(&replayed, &pages, sizeof pages);
        assert_int_equal(again.report.stats.flash_read_bytes, s->flash_read_bytes);
        assert_int_equal(again.report.stats.token_pages, s->token_pages);
        clusters_free(content.user);
        selections_free(own.recorded);
        selections_free(again.recorded);
    }
}

#define HEAD   "instinfer selections 1\n"
#define LAYOUT "drive 0 sparf f16 page=4096 heads=2 dim=64 group=32 part=32 page_channels=2\n"

static void add(void *arg, uint32_t page)
{
    *(uint64_t *)arg |= 1ull << page;
}

static void test_by_hand(void **state)
{
    (void)state;
    // 100 tokens, 96 of them on flash: three rows of one page of K and one of V for each head.
    static const char text[] = HEAD "# a comment\n" LAYOUT "0 3 7 0 100 96 0 0,1,6 5+2,20,60+9\n"
                                    "0 3 7 1 100 96 0 9 31+32\n";
    struct selections *t;
    struct inst_msg msg = {0};
    if (selections_parse(&t, "t", text, sizeof text - 1, &msg))
        fail_msg("%s", msg.text);
    struct selections_about about;
    selections_about(t, &about);
    assert_true(about.sparf && about.records == 2 && about.tokens_most == 100);
    // Head 0: 5, 6, 7, 28, 89 to 98; head 1: 31 to 63.
    assert_true(fabs(about.token_share - (14 + 33) / 200.0) < 1e-12);
    assert_true(fabs(about.run - 47 / 4.0) < 1e-12 && fabs(about.channels - 2 / 64.0) < 1e-12);
    struct selections_pages pages;
    assert_int_equal(selections_pages(t, &pages, NULL), 0);
    // Rows 0 and 2 of head 0, 0 and 1 of head 1, K and V. No channel page covers 96 tokens.
    assert_int_equal(pages.token, 8);
    assert_int_equal(pages.dense, 12);
    assert_int_equal(pages.channel, 0);
    assert_int_equal(pages.tail, 6);
    // Pages of 16 tokens, whole ones: 0, 1 and 5 of head 0 of 6; 1, 2, 3 of head 1.
    assert_true(fabs(selections_page_share(t, 16) - 0.5) < 1e-12);
    // Channels of 2 a page: of 32 pages 2 and 1.
    assert_true(fabs(selections_channel_share(t, 64, 2) - 3 / 64.0) < 1e-12);
    // 128 channels have these twice.
    assert_true(fabs(selections_channel_share(t, 128, 2) - 3 / 64.0) < 1e-12);
    uint64_t chosen[2], seen = 0;
    selections_replay_tokens(t, 2, 128, chosen); // record 0, and its beginning again
    assert_true(chosen[0] == (7ull << 5 | 1ull << 28) &&
                chosen[1] == (0x3ffull << 25 | 7ull << 41));
    uint32_t channels[4];
    selections_replay_channels(t, 0, 64, channels, 4);
    assert_true(channels[0] == 0 && channels[1] == 1 && channels[2] == 2 && channels[3] == 6);
    struct draw draw = {.state = 1};
    double told = 0;
    for (int i = 0; i < 4000; i++) {
        seen = 0;
        selections_draw_pages(t, &draw, 6, 16, add, &seen);
        assert_true(__builtin_popcountll(seen) == 3);
        told += (double)(seen & 1);
    }
    assert_true(fabs(told / 4000 - 0.5) < 0.03);
    selections_free(t);
}

static void test_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "",
        "instinfer selections 2\n",
        HEAD,
        HEAD LAYOUT,
        HEAD "0 0 0 0 10 10 0 - 1\n",                // no layout
        HEAD LAYOUT LAYOUT "0 0 0 0 10 10 0 - 1\n",  // twice
        HEAD LAYOUT "0 0 0 2 10 10 0 - 1\n",         // head
        HEAD LAYOUT "0 0 0 0 10 11 0 - 1\n",         // more on flash
        HEAD LAYOUT "0 0 0 0 0 0 0 - -\n",           // no tokens
        HEAD LAYOUT "0 0 0 0 10 10 0 3,3 1\n",       // channels
        HEAD LAYOUT "0 0 0 0 10 10 0 64 1\n",        //
        HEAD LAYOUT "0 0 0 0 10 10 0 - 10\n",        // beyond
        HEAD LAYOUT "0 0 0 0 10 10 0 - 1,0\n",       // not ascending
        HEAD LAYOUT "0 0 0 0 10 10 0 - 1+\n",        //
        HEAD LAYOUT "0 0 0 0 10 10 0 - 1 \n",        // more
        HEAD LAYOUT "0 0 0 0 10 10 0 -\n",           // less
        HEAD LAYOUT "0 0 0 0 9999999999 10 0 - 1\n", // too many
        HEAD LAYOUT "0 0 0 0 10 99999999999999999999999999 0 - 1\n",
        HEAD LAYOUT "0 0 0 0 10 10 11 - 1\n", // more ranked
        HEAD LAYOUT "64 0 0 0 10 10 0 - 1\n",
        HEAD "drive 0 dense f16 page=4096 heads=2 dim=64 group=32 part=32 page_channels=2\n",
        HEAD "drive 0 sparf f17 page=4096 heads=2 dim=64 group=32 part=32 page_channels=2\n",
        HEAD "drive 0 sparf f16 page=4097 heads=2 dim=64 group=32 part=32 page_channels=2\n",
        HEAD "drive 0 sparf f16 page=4096 heads=2 dim=64 group=32 part=64 page_channels=2\n",
        HEAD "drive 0 sparf f16 page=4096 heads=2 dim=64 group=32 part=32 page_channels=0\n",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct selections *t;
        struct inst_msg msg = {0};
        if (!selections_parse(&t, "t", bad[i], strlen(bad[i]), &msg))
            fail_msg("taken: %s", bad[i]);
        assert_null(t);
        assert_true(*msg.text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_by_hand),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_recorded),
    };
    return cmocka_run_group_tests_name("selections", tests, NULL, NULL);
}
