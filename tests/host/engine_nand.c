// SPDX-License-Identifier: Apache-2.0
// KV on emulated NAND: the same logits, bit for bit, as in a file, for every method, clock and
// payload, on one drive and on several, whether pages have to be read again and blocks go bad or
// not; and what is modelled is told.
#include "tests/host/engine_helper.h"

enum { PROMPT = 150, TOKENS = 190, SESSIONS = 2 };

// A small device whose pages are read again often and whose blocks last for few erases.
static const char worn[] = "instinfer profile 1\n"
                           "[flash]\nchannels = 2\ndies = 2\nplanes = 2\npage = 512 B\n"
                           "pages_per_block = 8\nsize = 2 MiB\nread = 20 us\nprogram = 100 us\n"
                           "erase = 1 ms\nbus = 400 MB/s\nregisters = 2\nsuspends = 2\n"
                           "suspend = 5 us\ncommand = 200 ns\n"
                           "[wear]\nendurance = 10\nbad_blocks = 5 %\ngrown_bad = 60 %\n"
                           "spare_blocks = 50 %\nretries_fresh = 0.5\n";

static char profile[64];

static int make_profile(void **state)
{
    (void)state;
    snprintf(profile, sizeof profile, "/tmp/instinfer-test-%d.profile", (int)getpid());
    FILE *f = fopen(profile, "w");
    bool ok = f && fputs(worn, f) >= 0;
    return f && !fclose(f) && ok ? 0 : -1;
}

static int remove_profile(void **state)
{
    (void)state;
    return unlink(profile);
}

static uint64_t hash_logits(struct fixture *f, uint64_t hash)
{
    for (uint32_t s = 0; s < SESSIONS; s++) {
        const unsigned char *p = (const unsigned char *)inst_logits(f->session[s]);
        for (size_t i = 0; i < logits_bytes(f); i++)
            hash = (hash ^ p[i]) * 1099511628211u;
    }
    return hash;
}

// Prompts and decode, rewound and done again with other texts, so that blocks are erased.
static uint64_t walk(struct fixture *f, int rounds)
{
    static int32_t text[SESSIONS][TOKENS];
    uint64_t hash = 1469598103934665603u;
    for (int round = 0; round < rounds; round++) {
        for (uint32_t s = 0; s < SESSIONS; s++)
            for (size_t i = 0; i < TOKENS; i++)
                text[s][i] = text_token(s + 2 * (uint32_t)round, i);
        for (size_t n = PROMPT; n <= TOKENS; n += round ? 20 : 1) {
            struct inst_prefix prefix[SESSIONS];
            for (uint32_t s = 0; s < SESSIONS; s++)
                prefix[s] = (struct inst_prefix){
                    .session = f->session[s], .tokens = text[s], .n_tokens = n - s * 9};
            if (inst_sync(f->engine, prefix, SESSIONS, NULL, NULL, &f->msg))
                fail_msg("%s", f->msg.text);
            hash = hash_logits(f, hash);
        }
    }
    return hash;
}

// `places` with commas between them are several drives, as "%" stands for the profile above.
static uint64_t run(const char *model, const char *places, const struct inst_options *base,
                    int rounds, struct inst_stats *stats, struct inst_drive_stats *drive)
{
    char text[4][200];
    const char *kv[4];
    struct inst_options o = *base;
    struct fixture f = {0};
    for (const char *at = places; *at && o.n_kv < 4;) {
        size_t n = strcspn(at, ";");
        const char *percent = memchr(at, '%', n);
        if (percent)
            snprintf(text[o.n_kv], sizeof text[0], "%.*s%s%.*s", (int)(percent - at), at, profile,
                     (int)(n - (size_t)(percent - at)) - 1, percent + 1);
        else
            snprintf(text[o.n_kv], sizeof text[0], "%.*s", (int)n, at);
        kv[o.n_kv] = text[o.n_kv];
        o.n_kv++;
        at += n + (at[n] == ';');
    }
    o.model = model;
    o.kv = kv;
    o.memory = 64 << 20;
    o.max_sessions = SESSIONS;
    o.row_cache = INST_NO_ROW_CACHE;
    if (engine_open_on(&f.engine, &o, NULL, &f.msg))
        fail_msg("%s: %s", places, f.msg.text);
    for (uint32_t s = 0; s < SESSIONS; s++)
        assert_int_equal(inst_session_open(&f.session[s], f.engine, &f.msg), 0);
    uint64_t hash = walk(&f, rounds);
    assert_int_equal(inst_engine_stats(f.engine, stats, &f.msg), 0);
    assert_int_equal(inst_engine_drives(f.engine, drive, o.n_kv, &f.msg), 0);
    for (size_t i = 0; i < o.n_kv; i++)
        assert_int_equal(drive_check(f.engine->store.drives[i].drive, &f.msg), 0);
    close_engine(&f);
    return hash;
}

static void test_the_bits_of_a_file(void **state)
{
    (void)state;
    static const char *const places[] = {
        "nand:%",
        "nand:%,bad=off,retries=off",
        "nand:%,clock=paced",
        "nand:%,payload=file:/tmp,seed=9",
        "nand:instcsd-zynq7045",
        "nand:%;nand:%,seed=2;nand:%,clock=paced;/tmp",
    };
    static const char *const methods[] = {"dense", "sparf", "pages", "host"};
    char model[64];
    struct inst_stats stats;
    struct inst_drive_stats drives[4];
    write_model(model, TENSOR_F16);
    for (size_t m = 0; m < sizeof methods / sizeof *methods; m++) {
        // Pieces that are chosen have 32 tokens.
        struct inst_options o = {
            .attention = methods[m], .group = m == 2 ? 32 : 16, .threads = 1 + m % 2};
        uint64_t want = run(model, "/tmp", &o, 1, &stats, drives);
        assert_false(drives[0].emulated);
        assert_true(stats.modelled_flash_seconds == 0 && stats.modelled_attention_seconds == 0);
        for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
            if (m % 2 && strstr(places[i], "paced")) // real time is dear
                continue;
            if (run(model, places[i], &o, 1, &stats, drives) != want)
                fail_msg("%s on %s: other bits", methods[m], places[i]);
            assert_true(drives[0].emulated && drives[0].program_pages);
            assert_int_equal(drives[0].bad_blocks != 0, i != 1);
            assert_true(drives[0].modelled_flash_seconds > 0);
            assert_true(stats.modelled_flash_seconds >= drives[0].modelled_flash_seconds);
            if (i == 2)
                assert_true(stats.modelled_attention_seconds == 0); // no other time than the real
            // A real disk below, or real time, may be so slow that all rows are still in DRAM.
            if (strstr(places[i], "file:") || strstr(places[i], "paced"))
                continue;
            if (!drives[0].read_pages)
                fail_msg("%s on %s: nothing was read", methods[m], places[i]);
            assert_int_equal(drives[0].read_retries != 0, i == 0);
            bool waits = strcmp(methods[m], "host") != 0; // the host only reads
            assert_int_equal(stats.modelled_attention_seconds > 0, waits);
        }
    }
    unlink(model);
}

// So much is rewritten that blocks go bad and rows are placed again.
static void test_blocks_go_bad(void **state)
{
    (void)state;
    // Blocks are erased in virtual time that goes on with the real one: enough rounds for a fast
    // machine to come to a hundred erases, too few to wear all blocks out on a slow one.
    enum { ROUNDS = 20 };
    char model[64];
    struct inst_stats stats;
    struct inst_drive_stats drive;
    struct inst_options o = {.group = 16, .chunk = 64};
    write_model(model, TENSOR_F16);
    uint64_t want = run(model, "/tmp", &o, ROUNDS, &stats, &drive);
    assert_true(run(model, "nand:%,bad=off", &o, ROUNDS, &stats, &drive) == want);
    assert_true(drive.block_erases > 100 && !drive.failed_programs);
    assert_true(run(model, "nand:%,wear=2", &o, ROUNDS, &stats, &drive) == want);
    assert_true(drive.failed_programs && drive.grown_bad_blocks);
    assert_true(run(model, "nand:%,wear=2", &o, ROUNDS, &stats, &drive) == want);
    unlink(model);
}

// Timing alone: nothing is kept, as in null:, and the flash is as busy as with payload.
static void test_without_payload(void **state)
{
    (void)state;
    char model[64];
    struct inst_stats stats;
    struct inst_drive_stats with, without;
    struct inst_options o = {.group = 16};
    write_model(model, TENSOR_F16);
    run(model, "nand:%", &o, 1, &stats, &with);
    run(model, "nand:%,payload=none", &o, 1, &stats, &without);
    assert_true(without.read_pages > 0);
    assert_int_equal(with.program_pages, without.program_pages);
    unlink(model);
}

static void test_refused(void **state)
{
    (void)state;
    static const struct {
        const char *kv, *message;
    } cases[] = {
        {"nand:", "'' is not PROFILE"},
        {"nand:no-such", "no profile 'no-such'"},
        {"nand:ssd-980pro,clock=slow", "'clock=slow' is none of"},
        {"nand:ssd-980pro,payload=file:/no/such", "/no/such: No such file"},
        {"nand:ssd-980pro,payload=file:/dev/null", "/dev/null: not a directory"},
    };
    char model[64];
    write_model(model, TENSOR_F16);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct inst_msg msg = {0};
        inst_engine *engine = NULL;
        struct inst_options o = {.model = model, .kv = &cases[i].kv, .n_kv = 1};
        assert_true(inst_engine_open(&engine, &o, &msg) < 0);
        if (!strstr(msg.text, cases[i].message))
            fail_msg("%s: %s", cases[i].kv, msg.text);
    }
    unlink(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_bits_of_a_file),
        cmocka_unit_test(test_blocks_go_bad),
        cmocka_unit_test(test_without_payload),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests_name("engine_nand", tests, make_profile, remove_profile);
}
