// SPDX-License-Identifier: Apache-2.0
// Drives that die in the middle, by their link or by their flash, at any point, or that answer
// nothing any more: with "recompute" all logits are those of an undisturbed run, bit for bit, as
// long as a drive is left; with "fail" one line names the drive.
#include "tests/host/engine_helper.h"
#include "tests/more.h"

enum { PROMPT = 70, TOKENS = 80, SESSIONS = 3, DRIVES = 3 };

static char model[64];
static const char *attention; // of the engines that are opened
static int32_t text[SESSIONS][TOKENS];

// ---- dying -------------------------------------------------------------------------------------

// After so many submissions to it a drive is dead; it stays what it is to abort and close. A mute
// one does not say so.
static struct {
    struct link *link;
    struct flash *flash;
    uint64_t left;
    bool mute;
} dying[DRIVES];
static uint32_t limit_ms;
static const struct link_ops *link_inner;
static const struct flash_ops *flash_inner;
static struct flash_io *failed; // of dead flash, to be polled

static int dying_submit(struct link *link, const struct command *c, const void *table, void *data)
{
    for (int i = 0; i < DRIVES; i++) {
        if (dying[i].link == link && !dying[i].left--) {
            dying[i].left = 0;
            return dying[i].mute ? 0 : INST_EIO;
        }
    }
    return link_inner->submit(link, c, table, data);
}

static void dying_flash_submit(struct flash *flash, struct flash_io *list, uint64_t now_ns)
{
    for (struct flash_io *next, *io = list; io; io = next) {
        int i = 0;
        next = io->next;
        io->next = NULL;
        while (dying[i].flash != flash)
            i++;
        if (dying[i].left) {
            dying[i].left--;
            flash_inner->submit(flash, io, now_ns);
        } else if (!dying[i].mute) {
            io->status = INST_EIO;
            io->next = failed;
            failed = io;
        }
    }
}

// Operations of several dead drives lie in one list, so only one flash dies in a test.
static struct flash_io *dying_flash_poll(struct flash *flash, uint64_t now_ns)
{
    struct flash_io *list = failed;
    failed = NULL;
    return list ? list : flash_inner->poll(flash, now_ns);
}

static void kill_link(struct fixture *f, uint32_t drive, uint64_t left)
{
    static struct link_ops ops;
    struct link *link = f->engine->store.drives[drive].link;
    if (link->ops != &ops)
        link_inner = link->ops;
    ops = *link_inner;
    ops.submit = dying_submit;
    link->ops = &ops;
    dying[drive].link = link;
    dying[drive].flash = NULL;
    dying[drive].mute = false;
    dying[drive].left = left;
}

static void kill_flash(struct fixture *f, uint32_t drive, uint64_t left)
{
    static struct flash_ops ops;
    struct flash *flash = f->engine->store.drives[drive].flash;
    flash_inner = flash->ops;
    ops = *flash_inner;
    ops.submit = dying_flash_submit;
    ops.poll = dying_flash_poll;
    flash->ops = &ops;
    dying[drive].link = NULL;
    dying[drive].flash = flash;
    dying[drive].mute = false;
    dying[drive].left = left;
}

// ---- a run -------------------------------------------------------------------------------------

static void open_drives(struct fixture *f, uint32_t drives, const char *on_loss)
{
    static const char *const kv[DRIVES] = {"ram:8M@4G", "ram:9M@4G", "ram:7M@4G"};
    const struct inst_options o = {.model = model,
                                   .kv = kv,
                                   .n_kv = drives,
                                   .memory = 16 << 20,
                                   .row_cache = INST_NO_ROW_CACHE,
                                   .max_sessions = SESSIONS,
                                   .group = 16,
                                   .chunk = 32,
                                   .threads = 1,
                                   .micro_batches = 1 + drives % 2,
                                   .attention = attention,
                                   .sparf_divisor = 3,
                                   .drive_timeout_ms = limit_ms,
                                   .on_drive_loss = on_loss};
    memset(f, 0, sizeof *f);
    memset(dying, 0, sizeof dying);
    if (inst_engine_open(&f->engine, &o, &f->msg))
        fail_msg("%s", f->msg.text);
    for (uint32_t i = 0; i < SESSIONS; i++)
        assert_int_equal(inst_session_open(&f->session[i], f->engine, &f->msg), 0);
}

static int sync_all(struct fixture *f, size_t n)
{
    struct inst_prefix prefix[SESSIONS];
    memset(&f->msg, 0, sizeof f->msg);
    for (uint32_t s = 0; s < SESSIONS; s++)
        prefix[s] = (struct inst_prefix){
            .session = f->session[s], .tokens = text[s], .n_tokens = n - 9 * s};
    return inst_sync(f->engine, prefix, SESSIONS, NULL, NULL, &f->msg);
}

// Prompts, decode in a batch, a rewind, decode; FNV-1a over all logits. Returns the first failure.
static int walk(struct fixture *f, uint64_t *hash)
{
    static const size_t lengths[] = {PROMPT, PROMPT + 1, PROMPT + 2, PROMPT + 3, 50, 51, TOKENS};
    *hash = 1469598103934665603u;
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        int err = sync_all(f, lengths[i]);
        if (err)
            return err;
        for (uint32_t s = 0; s < SESSIONS; s++) {
            const unsigned char *p = (const unsigned char *)inst_logits(f->session[s]);
            assert_non_null(p);
            for (size_t b = 0; b < logits_bytes(f); b++)
                *hash = (*hash ^ p[b]) * 1099511628211u;
        }
    }
    return 0;
}

static uint64_t undisturbed(uint32_t drives, uint64_t submissions[DRIVES])
{
    struct fixture f;
    uint64_t hash;
    open_drives(&f, drives, NULL);
    for (uint32_t i = 0; i < drives; i++)
        kill_link(&f, i, UINT64_MAX);
    assert_int_equal(walk(&f, &hash), 0);
    for (uint32_t i = 0; i < drives; i++)
        submissions[i] = UINT64_MAX - dying[i].left;
    close_engine(&f);
    return hash;
}

static void expect_stats(struct fixture *f, uint32_t lost)
{
    struct inst_stats stats;
    struct inst_drive_stats drives[DRIVES] = {{0}};
    struct inst_model_info info;
    assert_int_equal(inst_engine_stats(f->engine, &stats, &f->msg), 0);
    assert_int_equal(stats.lost_drives, lost);
    assert_int_equal(inst_engine_drives(f->engine, drives, DRIVES, &f->msg), 0);
    uint64_t read = 0, programmed = 0;
    for (uint32_t i = 0; i < DRIVES; i++) {
        read += drives[i].flash_read_bytes;
        programmed += drives[i].flash_program_bytes;
    }
    assert_int_equal(read, stats.flash_read_bytes);
    assert_int_equal(programmed, stats.flash_program_bytes);
    inst_engine_info(f->engine, &info);
    assert_true(info.n_notes >= lost);
    if (lost)
        assert_non_null(strstr(info.notes[info.n_notes - 1], "was given up"));
    assert_true(f->engine->budget.peak <= f->engine->memory);
}

// ---- tests -------------------------------------------------------------------------------------

static void link_dies(const char *method)
{
    unsigned failures = 0;
    attention = method;
    for (uint32_t drives = 2; drives <= DRIVES; drives++) {
        uint64_t count[DRIVES], hash, want = undisturbed(drives, count);
        for (uint32_t drive = 0; drive < drives; drive++) {
            uint64_t step = count[drive] / (more() ? 30 : 9) + 1;
            for (uint64_t at = drive; at < count[drive]; at += step) {
                struct fixture f;
                open_drives(&f, drives, "recompute");
                kill_link(&f, drive, at);
                if (walk(&f, &hash))
                    fail_msg("drive %u of %u after %u: %s", drive, drives, (unsigned)at,
                             f.msg.text);
                if (hash != want)
                    fail_msg("drive %u of %u after %u: other bits", drive, drives, (unsigned)at);
                expect_stats(&f, 1);
                assert_int_equal(f.engine->store.n, drives - 1);
                close_engine(&f);

                open_drives(&f, drives, NULL);
                kill_link(&f, drive, at);
                char name[16];
                snprintf(name, sizeof name, "drive %u of %u", drive + 1, drives);
                int err = walk(&f, &hash);
                failures += err != 0;
                // What nobody can lose by, as giving up what was kept, is no failure.
                assert_true(err == INST_EIO || (!err && hash == want));
                if (err && (!strstr(f.msg.text, name) || strchr(f.msg.text, '\n')))
                    fail_msg("not clear: '%s'", f.msg.text);
                close_engine(&f);
            }
        }
    }
    assert_true(failures > 2 * DRIVES);
}

static void a_link_that_dies_anywhere(void **state)
{
    (void)state;
    link_dies(NULL);
}

// What was decoded is decoded again: its KV is not what a prompt's would be.
static void with_sparf_too(void **state)
{
    (void)state;
    link_dies("sparf");
}

// The index of what was lost is made again, and chooses the same.
static void with_pages_too(void **state)
{
    (void)state;
    link_dies("pages");
}

// What decode attends comes back by READ.
static void with_attention_of_the_host_too(void **state)
{
    (void)state;
    link_dies("host");
}

// A drive of which nothing comes any more is late, and then counts as lost.
static void a_drive_that_falls_silent(void **state)
{
    (void)state;
    for (int host = 0; host < 2; host++) {
        attention = host ? "host" : NULL;
        limit_ms = 0;
        uint64_t count[DRIVES], hash, want = undisturbed(DRIVES, count);
        limit_ms = 250;
        for (uint32_t drive = host ? 1 : 0; drive < DRIVES; drive++) {
            uint64_t step = count[drive] / (more() ? 12 : 3) + 1;
            for (uint64_t at = 4 * drive; at < count[drive]; at += step) {
                struct fixture f;
                open_drives(&f, DRIVES, "recompute");
                kill_link(&f, drive, at);
                dying[drive].mute = true;
                if (walk(&f, &hash))
                    fail_msg("drive %u after %u: %s", drive, (unsigned)at, f.msg.text);
                assert_int_equal(hash, want);
                expect_stats(&f, 1);
                close_engine(&f);
            }
        }
        struct fixture f;
        open_drives(&f, DRIVES, NULL);
        kill_link(&f, 1, count[1] / 2);
        dying[1].mute = true;
        assert_int_equal(walk(&f, &hash), INST_EIO);
        if (!strstr(f.msg.text, "drive 2 of 3 (ram:9M@4G): no answer in 0.25 s") ||
            strchr(f.msg.text, '\n'))
            fail_msg("not clear: '%s'", f.msg.text);
        close_engine(&f);
    }
    limit_ms = 0;
}

// A disk that hangs: what it may still write to stays where it is, and nobody waits for it.
static void flash_that_falls_silent(void **state)
{
    (void)state;
    attention = NULL;
    uint64_t count[DRIVES], hash, want = undisturbed(DRIVES, count);
    limit_ms = 250;
    unsigned lost = 0;
    for (uint64_t at = 10; at < 200; at += more() ? 20 : 90) {
        struct fixture f;
        open_drives(&f, DRIVES, "recompute");
        kill_flash(&f, 1, at);
        dying[1].mute = true;
        if (walk(&f, &hash))
            fail_msg("after %u: %s", (unsigned)at, f.msg.text);
        assert_int_equal(hash, want);
        struct inst_stats stats;
        assert_int_equal(inst_engine_stats(f.engine, &stats, &f.msg), 0);
        lost += (unsigned)stats.lost_drives;
        close_engine(&f);
    }
    assert_true(lost > 0);
    struct fixture f;
    open_drives(&f, 2, NULL);
    kill_flash(&f, 1, 10);
    dying[1].mute = true;
    assert_int_equal(walk(&f, &hash), INST_EIO);
    close_engine(&f);
    limit_ms = 0;
}

static void flash_that_dies_anywhere(void **state)
{
    (void)state;
    attention = NULL;
    uint64_t count[DRIVES], hash, want = undisturbed(DRIVES, count);
    unsigned lost = 0;
    for (uint32_t drive = 0; drive < DRIVES; drive++) {
        for (uint64_t at = 0; at < 400; at += more() ? 15 : 90) {
            struct fixture f;
            struct inst_stats stats;
            open_drives(&f, DRIVES, "recompute");
            kill_flash(&f, drive, at);
            if (walk(&f, &hash))
                fail_msg("drive %u after %u: %s", drive, (unsigned)at, f.msg.text);
            assert_int_equal(hash, want);
            assert_int_equal(inst_engine_stats(f.engine, &stats, &f.msg), 0);
            lost += stats.lost_drives == 1;
            close_engine(&f);
        }
    }
    assert_true(lost >= 6);
}

// One after the other, until one is left; its death ends the run.
static void drives_that_die_one_after_the_other(void **state)
{
    (void)state;
    attention = NULL;
    uint64_t count[DRIVES], hash, want = undisturbed(DRIVES, count);
    for (uint64_t second = 0; second < count[1]; second += count[1] / (more() ? 20 : 8) + 1) {
        struct fixture f;
        open_drives(&f, DRIVES, "recompute");
        kill_link(&f, 0, count[0] / 3);
        kill_link(&f, 1, second);
        if (walk(&f, &hash))
            fail_msg("%u: %s", (unsigned)second, f.msg.text);
        assert_int_equal(hash, want);
        if (f.engine->store.n == 2) // it was opened anew before it could die
            kill_link(&f, 1, 3);
        assert_int_equal(sync_all(&f, PROMPT), 0);
        assert_int_equal(sync_all(&f, TOKENS), 0);
        expect_stats(&f, 2);
        assert_int_equal(f.engine->store.n, 1);
        kill_link(&f, 0, 0);
        assert_true(sync_all(&f, PROMPT) < 0);
        close_engine(&f);
    }
    // All at once: nothing is left to go on with.
    struct fixture f;
    open_drives(&f, DRIVES, "recompute");
    for (uint32_t i = 0; i < DRIVES; i++)
        kill_link(&f, i, 60);
    assert_true(walk(&f, &hash) < 0);
    assert_int_equal(strchr(f.msg.text, '\n') == NULL, 1);
    close_engine(&f);
}

// Seen by nobody but the statistics, or by a rewind.
static void a_drive_that_dies_in_its_sleep(void **state)
{
    (void)state;
    attention = NULL;
    for (int how = 0; how < 3; how++) {
        struct fixture f;
        struct inst_stats stats;
        uint64_t count[DRIVES], hash, want = undisturbed(DRIVES, count);
        open_drives(&f, DRIVES, "recompute");
        assert_int_equal(sync_all(&f, PROMPT), 0);
        kill_link(&f, 1, 0);
        if (how == 0)
            assert_int_equal(inst_engine_stats(f.engine, &stats, &f.msg), 0);
        if (how == 1)
            assert_int_equal(sync_all(&f, 40), 0);
        if (how == 2) { // closing a session fails; the next step sees it
            inst_session_close(f.session[0]);
            assert_int_equal(inst_session_open(&f.session[0], f.engine, &f.msg), 0);
        }
        assert_int_equal(walk(&f, &hash), 0);
        assert_int_equal(hash, want);
        expect_stats(&f, 1);
        close_engine(&f);
    }
}

static int setup(void **state)
{
    (void)state;
    struct synth_options o;
    struct inst_msg msg = {0};
    synth_defaults(&o);
    o.layers = 2;
    o.width = 48;
    o.heads = 6;
    o.kv_heads = 3;
    o.head_dim = 16;
    o.ffn = 64;
    o.vocab = SYNTH_VOCAB_MIN;
    o.context = 256;
    o.type = TENSOR_F16;
    o.seed = 3;
    snprintf(model, sizeof model, "/tmp/instinfer-test-%d-loss.gguf", (int)getpid());
    if (synth_to(&o, model, &msg))
        fail_msg("%s", msg.text);
    for (uint32_t s = 0; s < SESSIONS; s++) {
        for (size_t i = 0; i < TOKENS; i++)
            text[s][i] = text_token(s, i);
    }
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    unlink(model);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_link_that_dies_anywhere),
        cmocka_unit_test(with_sparf_too),
        cmocka_unit_test(with_pages_too),
        cmocka_unit_test(with_attention_of_the_host_too),
        cmocka_unit_test(a_drive_that_falls_silent),
        cmocka_unit_test(flash_that_falls_silent),
        cmocka_unit_test(flash_that_dies_anywhere),
        cmocka_unit_test(drives_that_die_one_after_the_other),
        cmocka_unit_test(a_drive_that_dies_in_its_sleep),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
