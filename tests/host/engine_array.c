// SPDX-License-Identifier: Apache-2.0
// KV over several drives: the same logits, bit for bit, as with one, whatever the number of drives
// and heads, the places, the method and the way to the prefix; and what single drives do wrong is
// somebody's clear error and nobody else's loss.
#include "tests/host/engine_helper.h"
#include "tests/more.h"

enum { DRIVES_MOST = 8, PROMPT = 90, TOKENS = 110, SESSIONS = 3 };

static void synth_model(char path[64], uint32_t heads, uint32_t kv_heads, uint32_t head_dim)
{
    struct synth_options o;
    struct inst_msg msg = {0};
    synth_defaults(&o);
    o.layers = 2;
    o.width = 48;
    o.heads = heads;
    o.kv_heads = kv_heads;
    o.head_dim = head_dim;
    o.ffn = 64;
    o.vocab = SYNTH_VOCAB_MIN;
    o.context = 256;
    o.type = TENSOR_F16;
    o.seed = heads * 100 + kv_heads;
    snprintf(path, 64, "/tmp/instinfer-test-%d-%u-%u.gguf", (int)getpid(), heads, kv_heads);
    if (synth_to(&o, path, &msg))
        fail_msg("%s", msg.text);
}

// Drives in the places, in turn.
static int open_over(struct fixture *f, const char *model, uint32_t drives,
                     const char *const *places, uint32_t n_places, const struct inst_options *base)
{
    const char *kv[LINK_ARRAY_MOST];
    struct inst_options o = *base;
    for (uint32_t i = 0; i < drives; i++)
        kv[i] = places[i % n_places];
    o.model = model;
    o.kv = kv;
    o.n_kv = drives;
    o.memory = o.memory ? o.memory : 64 << 20;
    o.row_cache = o.row_cache ? o.row_cache : INST_NO_ROW_CACHE;
    memset(f, 0, sizeof *f);
    int err = engine_open_on(&f->engine, &o, NULL, &f->msg);
    for (uint32_t i = 0; !err && i < f->engine->max_sessions && i < 8; i++)
        err = inst_session_open(&f->session[i], f->engine, &f->msg);
    return err;
}

// FNV-1a over logits on a way through prompts, decode in a batch, rewinds and other texts.
static uint64_t walk(struct fixture *f)
{
    static int32_t text[SESSIONS][TOKENS];
    uint64_t hash = 1469598103934665603u;
    for (uint32_t s = 0; s < SESSIONS; s++) {
        for (size_t i = 0; i < TOKENS; i++)
            text[s][i] = text_token(s, i);
    }
    for (int round = 0; round < 3; round++) {
        size_t from = round ? PROMPT - 30u * (unsigned)round : PROMPT;
        for (size_t n = from; n <= TOKENS; n++) {
            struct inst_prefix prefix[SESSIONS];
            for (uint32_t s = 0; s < SESSIONS; s++)
                prefix[s] = (struct inst_prefix){
                    .session = f->session[s], .tokens = text[s], .n_tokens = n - s * 7};
            if (inst_sync(f->engine, prefix, SESSIONS, NULL, NULL, &f->msg))
                fail_msg("%s", f->msg.text);
            for (uint32_t s = 0; s < SESSIONS; s++) {
                const unsigned char *p = (const unsigned char *)inst_logits(f->session[s]);
                for (size_t i = 0; i < logits_bytes(f); i++)
                    hash = (hash ^ p[i]) * 1099511628211u;
            }
        }
        for (uint32_t s = 0; s < SESSIONS; s++) // the end of the text is another one
            text[s][TOKENS - 20] = text_token((uint32_t)round + 9, s);
    }
    return hash;
}

static const char *const ram[] = {"ram:4M"};

static void the_same_bits_for_every_number_of_drives(void **state)
{
    (void)state;
    static const struct {
        uint32_t heads, kv_heads, head_dim;
    } shapes[] = {{4, 2, 16}, {4, 4, 16}, {8, 8, 16}, {6, 3, 10}, {5, 5, 16}, {3, 1, 32}};
    static const uint32_t drives[] = {1, 2, 3, 4, 8};
    static const char *const mixed[] = {"ram:4M", "/tmp", "ram:8M@2G"};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        char model[64];
        synth_model(model, shapes[i].heads, shapes[i].kv_heads, shapes[i].head_dim);
        for (int sparf = 0; sparf < 2; sparf++) {
            struct inst_options o = {.max_sessions = SESSIONS,
                                     .group = 16,
                                     .attention = sparf ? "sparf" : NULL,
                                     .sparf_divisor = 3,
                                     .micro_batches = 2 - (uint32_t)i % 2,
                                     .threads = 1 + (uint32_t)i % 2};
            uint64_t want = 0;
            for (size_t d = 0; d < sizeof drives / sizeof *drives; d++) {
                struct fixture f;
                // In memory alone, and in a mix of places.
                for (int mix = 0; mix < (more() || (d + i) % 2 ? 2 : 1); mix++) {
                    struct inst_stats stats;
                    o.chunk = mix ? 48 : 0;
                    if (open_over(&f, model, drives[d], mix ? mixed : ram, mix ? 3 : 1, &o))
                        fail_msg("%u drives: %s", drives[d], f.msg.text);
                    uint64_t hash = walk(&f);
                    want = want ? want : hash;
                    if (hash != want)
                        fail_msg("%u KV heads over %u drives%s%s: other bits", shapes[i].kv_heads,
                                 drives[d], sparf ? ", sparf" : "", mix ? ", mixed" : "");
                    assert_int_equal(inst_engine_stats(f.engine, &stats, NULL), 0);
                    assert_true(stats.attended_tokens_from_flash > 0);
                    assert_true(stats.flash_read_bytes > 0);
                    for (uint32_t k = 0; k < drives[d]; k++)
                        assert_int_equal(drive_check(f.engine->store.drives[k].drive, &f.msg), 0);
                    close_engine(&f);
                }
            }
        }
        unlink(model);
    }
}

// The plan keeps to the budget, and the drives and the array to the plan.
static void memory_is_the_plans(void **state)
{
    (void)state;
    char model[64];
    synth_model(model, 8, 8, 16);
    uint64_t least[DRIVES_MOST + 1] = {0};
    for (uint32_t drives = 1; drives <= DRIVES_MOST; drives++) {
        struct fixture f;
        struct inst_options o = {.max_sessions = SESSIONS, .threads = 1, .memory = 1 << 20};
        // The number in a refusal works.
        for (int tries = 0;; tries++) {
            assert_true(tries < 3);
            int err = open_over(&f, model, drives, ram, 1, &o);
            if (!err)
                break;
            const char *at = strstr(f.msg.text, "at least ");
            assert_int_equal(err, INST_ENOMEM);
            assert_non_null(at);
            double value = strtod(at + 9, NULL);
            o.memory = (uint64_t)(value * (strchr(at, 'M') ? 1048576 : 1024));
        }
        least[drives] = o.memory;
        uint64_t dram = 0;
        for (uint32_t i = 0; i < drives; i++)
            dram += f.engine->plan.part[i].dram;
        assert_int_equal(dram, f.engine->plan.drive);
        walk(&f);
        assert_true(f.engine->budget.peak <= o.memory);
        close_engine(&f);
    }
    // A drive more costs what a drive needs, not what all of KV does.
    assert_true(least[8] < 8 * least[1]);
    unlink(model);
}

static void a_drives_failure_names_it(void **state)
{
    (void)state;
    char model[64];
    int32_t text[TOKENS];
    struct fixture f;
    struct inst_options o = {.group = 16};
    // Of three stores, one is too small for its share.
    static const char *const places[] = {"ram:4M", "ram:256K", "ram:4M"};
    synth_model(model, 3, 3, 32);
    for (size_t i = 0; i < TOKENS; i++)
        text[i] = text_token(5, i);
    o.max_sessions = 6;
    if (open_over(&f, model, 3, places, 3, &o))
        fail_msg("%s", f.msg.text);
    int err = 0;
    uint32_t s = 0;
    for (; s < 6 && !err; s++)
        err = sync_tokens(&f, s, text, TOKENS);
    assert_int_equal(err, INST_ENOSPC);
    assert_non_null(strstr(f.msg.text, "drive 2 of 3 (ram:256K)"));
    // Those that were there before are right, and go on once there is room.
    inst_session_close(f.session[s - 1]);
    f.session[s - 1] = NULL;
    inst_session_close(f.session[0]);
    f.session[0] = NULL;
    assert_int_equal(sync_tokens(&f, 1, text, TOKENS / 2), 0);
    assert_int_equal(sync_tokens(&f, 1, text, TOKENS), 0);
    float *logits = malloc(logits_bytes(&f));
    memcpy(logits, inst_logits(f.session[1]), logits_bytes(&f));
    close_engine(&f);
    if (open_over(&f, model, 1, ram, 1, &o))
        fail_msg("%s", f.msg.text);
    assert_int_equal(sync_tokens(&f, 0, text, TOKENS), 0);
    assert_memory_equal(logits, inst_logits(f.session[0]), logits_bytes(&f));
    free(logits);
    close_engine(&f);
    unlink(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_same_bits_for_every_number_of_drives),
        cmocka_unit_test(memory_is_the_plans),
        cmocka_unit_test(a_drives_failure_names_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
