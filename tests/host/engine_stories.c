// SPDX-License-Identifier: Apache-2.0
// A trained model end to end: the greedy text equals llama.cpp's, wherever KV lives, and the
// attended tokens really came from flash. tools/reference/make_llamacpp_goldens.py made the golden.
#include "tests/host/engine_helper.h"
#include "tests/more.h"

#include <cjson/cJSON.h>

enum { GENERATED = 180 };

static const char model[] = TREE_MODEL("stories260K.gguf");
static char golden[1024];

static void generate(const char *kv, const struct inst_options *options, double from_flash)
{
    struct fixture f = {0};
    open_engine(&f, model, kv, options);
    int32_t *tokens;
    size_t n, bytes, written = 0;
    char text[1024];
    assert_int_equal(inst_tokenize(f.engine, "Once upon a time", 16, 0, &tokens, &n, &f.msg), 0);
    tokens = realloc(tokens, (n + GENERATED) * sizeof *tokens);
    struct inst_sampling greedy = {.top_p = 1, .repeat_penalty = 1};
    inst_sampler *sampler;
    assert_int_equal(inst_sampler_open(&sampler, f.engine, &greedy, NULL), 0);
    for (int i = 0; i < GENERATED; i++) {
        if (sync_tokens(&f, 0, tokens, n))
            fail_msg("%s", f.msg.text);
        tokens[n] = inst_sample(sampler, f.session[0], tokens, n);
        const char *piece = inst_token_text(f.engine, tokens[n++], &bytes);
        assert_true(written + bytes < sizeof text);
        memcpy(text + written, piece, bytes);
        written += bytes;
    }
    assert_int_equal(sync_tokens(&f, 0, tokens, n), 0); // the last one too, as the command does
    text[written] = 0;
    assert_string_equal(text, golden);
    struct inst_stats stats;
    if (from_flash > 0 && strncmp(kv, "ram:", 4))
        step_until_read(&f, tokens, n, &stats);
    assert_int_equal(inst_engine_stats(f.engine, &stats, NULL), 0);
    if (from_flash > 0) {
        // Whole groups only are on flash: 180 steps over 5 layers.
        double share = (double)stats.attended_tokens_from_flash / (double)stats.attended_tokens;
        assert_true(share >= from_flash);
        assert_true(stats.flash_program_bytes > 0);
        assert_true(stats.waf >= 1);
    }
    free(tokens);
    inst_sampler_close(sampler);
    close_engine(&f);
}

static void text_equals_llama_cpp_everywhere(void **state)
{
    (void)state;
    static const struct {
        uint32_t group;
        double share;
    } groups[] = {{16, 0.9}, {32, 0.83}, {64, 0.67}};
    static const char *const places[] = {"ram:64M", "/tmp"};
    generate(NULL, &(struct inst_options){.threads = 1}, 0);
    for (size_t g = 0; g < 3; g++)
        for (size_t p = 0; p < 2; p++)
            for (uint32_t threads = 1; threads <= 4; threads += 3)
                if (more() || (threads == 1) == (g + p) % 2)
                    generate(places[p],
                             &(struct inst_options){.group = groups[g].group, .threads = threads},
                             groups[g].share);
}

static void every_accepted_memory_gives_the_text(void **state)
{
    (void)state;
    unsigned accepted = 0, steps = more() ? 3 : 1;
    for (uint64_t memory = 1 << 20; memory <= 32 << 20; memory += memory / steps) {
        struct inst_options o = {.model = model,
                                 .memory = memory,
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
        generate("/tmp", &o, 0.9);
    }
    assert_true(accepted > steps + 1);
}

// The text of llama.cpp's 180 tokens.
static bool read_golden(void)
{
    char json[4096] = "";
    FILE *f = fopen(INST_SOURCE_DIR "/tests/data/stories260K_llamacpp.json", "r");
    if (!f)
        return false;
    size_t bytes = fread(json, 1, sizeof json - 1, f);
    fclose(f);
    cJSON *root = cJSON_ParseWithLength(json, bytes);
    const char *text = cJSON_GetStringValue(cJSON_GetObjectItem(root, "text"));
    size_t length = text ? strlen(text) : 0;
    if (length && length < sizeof golden)
        memcpy(golden, text, length + 1);
    cJSON_Delete(root);
    return golden[0];
}

int main(void)
{
    if (!read_golden())
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_equals_llama_cpp_everywhere),
        cmocka_unit_test(every_accepted_memory_gives_the_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
