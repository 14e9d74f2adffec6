// SPDX-License-Identifier: Apache-2.0
// SparF inside a trained model: the tokens are those of Algorithm 1 in float64 NumPy
// (tools/reference/sparf_float64.py), wherever KV lives and however it lies there, and the logits
// have the same bits. How the references were made: tools/reference/make_sparf_goldens.py.
#include "tests/host/engine_helper.h"

static const char model[] = SHARED_MODEL("stories260K.gguf");

enum { CASES_MAX = 80, TOKENS_MAX = 512 };

struct golden {
    uint32_t channels, tokens, divisor, local;
    size_t prompt, generated;
    int32_t ids[TOKENS_MAX]; // prompt, then generated
};

static struct golden goldens[CASES_MAX];
static size_t n_goldens;

static bool read_goldens(void)
{
    FILE *f = fopen(INST_SOURCE_DIR "/tests/data/stories260K_sparf.txt", "r");
    char line[256];
    while (f && n_goldens < CASES_MAX && fgets(line, sizeof line, f)) {
        struct golden *g = &goldens[n_goldens];
        if (*line == '#')
            continue;
        if (sscanf(line, "%u %u %u %u %zu %zu", &g->channels, &g->tokens, &g->divisor, &g->local,
                   &g->prompt, &g->generated) != 6 ||
            g->prompt + g->generated > TOKENS_MAX)
            break;
        size_t n = 0;
        while (n < g->prompt + g->generated && fscanf(f, "%d ", &g->ids[n]) == 1)
            n++;
        n_goldens += n == g->prompt + g->generated;
    }
    bool whole = f && feof(f);
    if (f)
        fclose(f);
    return whole && n_goldens;
}

struct place {
    const char *kv;
    uint32_t group, threads, page_channels;
    uint64_t memory;
    double audit;
};

// FNV-1a over the bits of the logits of every step.
static uint64_t generate(const struct golden *g, const struct place *place,
                         struct inst_stats *stats)
{
    struct fixture f = {0};
    const struct inst_options options = {
        .attention = "sparf",
        .sparf_channels = g->channels,
        .sparf_tokens = g->tokens,
        .sparf_divisor = g->divisor,
        .sparf_local = g->local,
        .page_channels = place->page_channels,
        .group = place->group,
        .threads = place->threads,
        .memory = place->memory,
        .audit = place->audit,
    };
    int32_t tokens[TOKENS_MAX];
    size_t n = g->prompt;
    uint64_t hash = 1469598103934665603u;
    open_engine(&f, model, place->kv, &options);
    struct inst_sampling greedy = {.top_p = 1, .repeat_penalty = 1};
    inst_sampler *sampler;
    assert_int_equal(inst_sampler_open(&sampler, f.engine, &greedy, NULL), 0);
    memcpy(tokens, g->ids, n * sizeof *tokens);
    for (size_t i = 0; i < g->generated; i++) {
        if (sync_tokens(&f, 0, tokens, n))
            fail_msg("%s", f.msg.text);
        const uint8_t *bytes = (const uint8_t *)inst_logits(f.session[0]);
        for (size_t b = 0; b < logits_bytes(&f); b++)
            hash = (hash ^ bytes[b]) * 1099511628211u;
        tokens[n] = inst_sample(sampler, f.session[0], tokens, n);
        if (tokens[n] != g->ids[n])
            fail_msg("r %u, k %u or 1/%u, local %u, prompt %zu: token %zu is %d, the reference "
                     "says %d (%s, group %u, %u threads, %u channels per page)",
                     g->channels, g->tokens, g->divisor, g->local, g->prompt, i, tokens[n],
                     g->ids[n], place->kv, place->group, place->threads, place->page_channels);
        n++;
    }
    assert_int_equal(inst_engine_stats(f.engine, stats, NULL), 0);
    inst_sampler_close(sampler);
    close_engine(&f);
    return hash;
}

static void tokens_are_the_references(void **state)
{
    (void)state;
    static const struct place places[] = {
        {.kv = "ram:64M", .group = 16, .threads = 1, .page_channels = 8},
        {.kv = "/tmp", .group = 32, .threads = 4, .page_channels = 4},
    };
    uint64_t channel_pages = 0, token_pages = 0, read = 0;
    for (size_t i = 0; i < n_goldens; i++) {
        const struct golden *g = &goldens[i];
        size_t length = g->prompt + g->generated;
        struct inst_stats stats;
        uint64_t expected = generate(g, &places[0], &stats);
        // The first token comes from the prefill; 5 layers.
        assert_int_equal(stats.sparf_steps, 5 * (g->generated - 1));
        assert_int_equal(stats.audits, 0);
        // 8 channels of 256 tokens fill a page of 4 KiB; decode builds it when it finds the time.
        if (length <= 256 || g->tokens >= length)
            assert_int_equal(stats.channel_pages, 0);
        else if (g->prompt >= 256)
            assert_true(stats.channel_pages > 0);
        channel_pages += stats.channel_pages;
        if (i % 3)
            continue; // files take their time
        assert_true(generate(g, &places[1], &stats) == expected);
        token_pages += stats.token_pages;
        read += stats.flash_read_bytes;
    }
    assert_true(channel_pages > 0 && token_pages > 0 && read > 0);
}

// The same bits for every group, page shape, thread count, budget and audit.
static void bits_do_not_depend_on_the_place(void **state)
{
    (void)state;
    const struct golden *g = NULL; // the shortest text that begins with a channel row
    for (size_t i = 0; i < n_goldens; i++)
        if (goldens[i].prompt >= 256 && (!g || goldens[i].generated < g->generated))
            g = &goldens[i];
    assert_non_null(g);
    struct inst_stats stats;
    uint64_t expected = generate(g, &(struct place){.kv = "ram:64M"}, &stats);
    for (uint32_t group = 16; group <= 64; group *= 2)
        for (uint32_t channels = 1; channels <= 8; channels *= 2)
            for (uint32_t disk = 0; disk < 2; disk++) {
                struct place place = {.kv = disk ? "/tmp" : "ram:64M",
                                      .group = group,
                                      .threads = 1 + (group / 16 + channels + disk) % 4,
                                      .page_channels = channels,
                                      .audit = channels == 4 ? 0.25 : 0};
                assert_true(generate(g, &place, &stats) == expected);
                if (place.audit > 0) {
                    assert_true(stats.audits > 0);
                    assert_true(stats.captured_mean > 0 && stats.captured_mean <= 1.000001);
                    assert_true(stats.captured_worst <= stats.captured_mean);
                }
            }
}

int main(void)
{
    if (access(model, R_OK))
        return 77;
    if (!read_goldens()) {
        fputs("tests/data/stories260K_sparf.txt is not what make_sparf_goldens.py writes\n",
              stderr);
        return 1;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tokens_are_the_references),
        cmocka_unit_test(bits_do_not_depend_on_the_place),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
