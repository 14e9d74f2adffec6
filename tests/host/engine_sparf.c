// SPDX-License-Identifier: Apache-2.0
// SparF inside a trained model: the tokens are those of Algorithm 1 in float64 NumPy
// (tools/reference/sparf_float64.py), wherever KV lives and however it lies there, and the logits
// have the same bits. How the references were made: tools/reference/make_sparf_goldens.py.
#include "tests/host/engine_helper.h"
#include "tests/more.h"

static const char model[] = TREE_MODEL("stories260K.gguf");

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
    uint32_t group, threads, page_channels, chunk;
    uint64_t memory;
    const char *kernels;
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
        .chunk = place->chunk,
        .memory = place->memory,
        .kernels = place->kernels,
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
    if (*place->kv == '/')
        step_until_read(&f, tokens, n - 1, stats); // the last token was not computed
    assert_int_equal(inst_engine_stats(f.engine, stats, NULL), 0);
    static struct inst_counter kept[64]; // they go with the engine
    assert_in_range(stats->n_method, 1, 64);
    memcpy(kept, stats->method, stats->n_method * sizeof *kept);
    stats->method = kept;
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
    double channel_pages = 0, token_pages = 0;
    uint64_t read = 0;
    for (size_t i = 0; i < n_goldens; i += more() ? 1 : 16) {
        const struct golden *g = &goldens[i];
        size_t length = g->prompt + g->generated;
        struct inst_stats stats;
        uint64_t expected = generate(g, &places[0], &stats);
        // The first token comes from the prefill; 5 layers.
        assert_int_equal(inst_stats_method(&stats, "sparf_steps"), 5 * (g->generated - 1));
        assert_int_equal(inst_stats_method(&stats, "audits"), 0);
        // 8 channels of 256 tokens fill a page of 4 KiB; decode builds it when it finds the time.
        if (length <= 256 || g->tokens >= length)
            assert_int_equal(inst_stats_method(&stats, "channel_pages"), 0);
        else if (g->prompt >= 256)
            assert_true(inst_stats_method(&stats, "channel_pages") > 0);
        channel_pages += inst_stats_method(&stats, "channel_pages");
        if (i % 3)
            continue; // files take their time
        assert_true(generate(g, &places[1], &stats) == expected);
        token_pages += inst_stats_method(&stats, "token_pages");
        read += stats.flash_read_bytes;
    }
    assert_true(channel_pages > 0 && token_pages > 0 && read > 0);
}

// The shortest text that begins with a whole channel row.
static const struct golden *short_text(void)
{
    const struct golden *g = NULL;
    for (size_t i = 0; i < n_goldens; i++)
        if (goldens[i].prompt >= 256 && (!g || goldens[i].generated < g->generated))
            g = &goldens[i];
    assert_non_null(g);
    return g;
}

// The same bits for every group, page shape, thread count, prefill chunk, kernel set and audit.
static void bits_do_not_depend_on_the_place(void **state)
{
    (void)state;
    const struct golden *g = short_text();
    struct inst_stats stats;
    uint64_t expected = generate(g, &(struct place){.kv = "ram:64M"}, &stats);
    unsigned runs = 0;
    for (uint32_t group = 16; group <= 64; group *= 2, runs++)
        for (uint32_t channels = 1; channels <= 8; channels *= 2, runs++) {
            if (runs % 5 && !more())
                continue;
            struct place place = {.kv = runs % 2 ? "/tmp" : "ram:64M",
                                  .group = group,
                                  .threads = 1 + runs % 4,
                                  .page_channels = channels,
                                  .audit = channels == 4 ? 0.25 : 0};
            assert_true(generate(g, &place, &stats) == expected);
            if (place.audit > 0) {
                assert_true(inst_stats_method(&stats, "audits") > 0);
                assert_true(inst_stats_method(&stats, "captured_mean") > 0 &&
                            inst_stats_method(&stats, "captured_mean") <= 1.000001);
                assert_true(inst_stats_method(&stats, "captured_worst") <=
                            inst_stats_method(&stats, "captured_mean"));
            }
        }
    for (const char *const *name = kernels_available(); *name; name++)
        assert_true(generate(g, &(struct place){.kv = "ram:64M", .kernels = *name}, &stats) ==
                    expected);
    // A prompt read in chunks, be they of one token, is still prefill, which is dense.
    static const uint32_t chunks[] = {7, 1, 64};
    for (size_t i = 0; i < (more() ? 3 : 1); i++)
        assert_true(generate(g, &(struct place){.kv = "ram:64M", .chunk = chunks[i]}, &stats) ==
                    expected);
}

static void every_accepted_memory_gives_the_bits(void **state)
{
    (void)state;
    const struct golden *g = short_text();
    struct inst_stats stats;
    uint64_t expected = generate(g, &(struct place){.kv = "ram:64M"}, &stats);
    unsigned accepted = 0, steps = more() ? 2 : 1;
    for (uint64_t memory = 1 << 20; memory <= 32 << 20; memory += memory / steps) {
        struct inst_options o = {.model = model,
                                 .memory = memory,
                                 .attention = "sparf",
                                 .threads = 2,
                                 .group = 16,
                                 .kv = (const char *const[]){"/tmp"},
                                 .n_kv = 1};
        inst_engine *e;
        struct inst_msg msg = {0};
        int err = inst_engine_open(&e, &o, &msg);
        inst_engine_close(e);
        if (err) {
            assert_int_equal(err, INST_ENOMEM);
            assert_non_null(strstr(msg.text, "is too small for this model"));
            assert_int_equal(accepted, 0);
            continue;
        }
        accepted++;
        struct place place = {.kv = "/tmp", .group = 16, .threads = 2, .memory = memory};
        assert_true(generate(g, &place, &stats) == expected);
    }
    assert_true(accepted > 2 * steps);
}

// Sessions of different lengths, one step of all at a time; each has the bits that it has alone.
static void batch_equals_alone(void **state)
{
    (void)state;
    enum { SESSIONS = 8, STEPS = 12 };
    static const size_t lengths[SESSIONS] = {1, 15, 16, 64, 65, 100, 255, 256};
    const struct golden *g = short_text();
    struct inst_options o = {.attention = "sparf",
                             .sparf_channels = 2,
                             .sparf_local = 4,
                             .max_sessions = SESSIONS,
                             .group = 16,
                             .threads = 2};
    struct fixture f = {0}, alone = {0};
    open_engine(&f, model, "/tmp", &o);
    o.max_sessions = 1;
    o.threads = 1;
    open_engine(&alone, model, "ram:64M", &o);
    for (size_t step = 0; step < STEPS; step++) {
        struct inst_prefix p[SESSIONS];
        for (size_t i = 0; i < SESSIONS; i++)
            p[i] = (struct inst_prefix){f.session[i], g->ids, lengths[i] + step, -1, NULL};
        if (inst_sync(f.engine, p, SESSIONS, NULL, NULL, &f.msg))
            fail_msg("%s", f.msg.text);
    }
    for (size_t i = 0; i < SESSIONS; i++) {
        inst_session_close(alone.session[0]);
        assert_int_equal(inst_session_open(&alone.session[0], alone.engine, &alone.msg), 0);
        for (size_t step = 0; step < STEPS; step++)
            assert_int_equal(sync_tokens(&alone, 0, g->ids, lengths[i] + step), 0);
        assert_memory_equal(inst_logits(alone.session[0]), inst_logits(f.session[i]),
                            logits_bytes(&f));
    }
    close_engine(&f);
    close_engine(&alone);
}

int main(void)
{
    if (!read_goldens()) {
        fputs("tests/data/stories260K_sparf.txt is not what make_sparf_goldens.py writes\n",
              stderr);
        return 1;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tokens_are_the_references),
        cmocka_unit_test(bits_do_not_depend_on_the_place),
        cmocka_unit_test(every_accepted_memory_gives_the_bits),
        cmocka_unit_test(batch_equals_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
