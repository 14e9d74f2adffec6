// SPDX-License-Identifier: Apache-2.0
// Audits: what they say is true, and a run with them has the bits of one without.
#include "tests/host/engine_helper.h"

#include <math.h>

static const char model[] = TREE_MODEL("stories260K.gguf");

enum { PROMPT = 330, STEPS = 40, SESSIONS = 3 };

// Of a piece, that have to fail before the drive gives it up.
enum { READS = 3 };

static double counter(struct fixture *f, const char *name)
{
    struct inst_stats stats;
    assert_int_equal(inst_engine_stats(f->engine, &stats, NULL), 0);
    return inst_stats_method(&stats, name);
}

// In the plainest way.
static double divergence(const float *p, const float *q, size_t n)
{
    double p_sum = 0, q_sum = 0, kl = 0;
    for (size_t i = 0; i < n; i++) {
        p_sum += exp((double)p[i]);
        q_sum += exp((double)q[i]);
    }
    for (size_t i = 0; i < n; i++)
        kl += exp((double)p[i]) / p_sum *
              log(exp((double)p[i]) / p_sum / (exp((double)q[i]) / q_sum));
    return kl;
}

static size_t most(const float *x, size_t n)
{
    size_t best = 0;
    for (size_t i = 0; i < n; i++)
        best = x[i] > x[best] ? i : best;
    return best;
}

static void tokens_of(uint32_t seed, int32_t tokens[PROMPT + STEPS])
{
    for (size_t i = 0; i < PROMPT + STEPS; i++)
        tokens[i] = text_token(seed, i);
}

// Poor on purpose.
static struct inst_options poor(const char *attention, double audit)
{
    return (struct inst_options){.attention = attention,
                                 .sparf_channels = 1,
                                 .sparf_tokens = 8,
                                 .pages_piece = 16,
                                 .pages_newest = 16,
                                 .pages_ratio = 0.1,
                                 .group = 16,
                                 .audit = audit};
}

// The first token behind a prompt is attended over the same KV by both.
static void says_how_far_it_is_from_dense(void **state)
{
    (void)state;
    static const char *const methods[] = {"sparf", "pages"};
    int32_t tokens[PROMPT + STEPS];
    double kl_sum = 0, kl_most = 0, flips = 0;
    for (size_t m = 0; m < 2; m++) {
        struct inst_options o = poor(methods[m], 1);
        struct fixture dense = {0}, f = {0};
        open_engine(&dense, model, "ram:64M", NULL);
        open_engine(&f, model, "ram:64M", &o);
        size_t vocab = f.engine->config.vocab;
        kl_sum = kl_most = flips = 0;
        for (uint32_t text = 0; text < 6; text++) {
            tokens_of(text, tokens);
            for (size_t n = PROMPT; n <= PROMPT + 1; n++) {
                assert_int_equal(sync_tokens(&f, 0, tokens, n), 0);
                assert_int_equal(sync_tokens(&dense, 0, tokens, n), 0);
            }
            const float *p = inst_logits(dense.session[0]), *q = inst_logits(f.session[0]);
            double kl = divergence(p, q, vocab);
            kl_sum += kl;
            kl_most = fmax(kl_most, kl);
            flips += most(p, vocab) != most(q, vocab);
        }
        assert_true(kl_sum > 0.01);
        assert_int_equal((int)counter(&f, "audited_tokens"), 6);
        assert_true(fabs(counter(&f, "kl_mean") - kl_sum / 6) < 1e-5);
        assert_true(fabs(counter(&f, "kl_worst") - kl_most) < 1e-5);
        assert_int_equal((int)counter(&f, "flips"), (int)flips);
        assert_true(counter(&f, "captured_worst") < counter(&f, "captured_mean"));
        assert_true(counter(&f, "captured_mean") < 1);
        assert_true(counter(&f, "audit_read_bytes") > 0);
        close_engine(&dense);
        close_engine(&f);
    }
    assert_true(flips > 0); // else nothing was shown of them
}

static void says_nothing_against_what_is_exact(void **state)
{
    (void)state;
    struct inst_options o = {.attention = "pages", .pages_ratio = 1, .audit = 0.5};
    struct fixture f = {0};
    int32_t tokens[PROMPT + STEPS];
    tokens_of(1, tokens);
    open_engine(&f, model, "ram:64M", &o);
    for (size_t n = PROMPT; n <= PROMPT + 10; n++)
        assert_int_equal(sync_tokens(&f, 0, tokens, n), 0);
    assert_int_equal((int)counter(&f, "audited_tokens"), 5);
    assert_true(counter(&f, "kl_worst") <= 0);
    assert_int_equal((int)counter(&f, "flips"), 0);
    assert_true(counter(&f, "predicted_worst") >= 1);
    close_engine(&f);
}

// Groups are completed, cut back and completed again meanwhile; several sessions, not all of which
// want logits.
static void changes_nothing(void **state)
{
    (void)state;
    static const char *const methods[] = {"sparf", "pages"};
    static int32_t tokens[SESSIONS][PROMPT + STEPS];
    for (size_t m = 0; m < 4; m++) {
        struct fixture f[2];
        memset(f, 0, sizeof f);
        for (size_t i = 0; i < 2; i++) {
            struct inst_options o = poor(methods[m % 2], i ? 0.6 : 0);
            o.max_sessions = SESSIONS;
            open_engine(&f[i], model, m < 2 ? "ram:64M" : "/tmp", &o);
            for (uint32_t s = 0; s < SESSIONS; s++) {
                tokens_of(s, tokens[s]);
                assert_int_equal(sync_tokens(&f[i], s, tokens[s], PROMPT - 7 * s), 0);
            }
            for (size_t step = 0; step < STEPS; step++) {
                struct inst_segment segment[SESSIONS];
                for (uint32_t s = 0; s < SESSIONS; s++)
                    segment[s] = (struct inst_segment){.session = f[i].session[s],
                                                       .tokens = &tokens[s][PROMPT - 7 * s + step],
                                                       .n_tokens = 1,
                                                       .logits = s != 1 || step + 1 == STEPS};
                assert_int_equal(inst_step(f[i].engine, segment, SESSIONS, NULL, NULL, &f[i].msg),
                                 0);
            }
        }
        for (uint32_t s = 0; s < SESSIONS; s++)
            assert_memory_equal(inst_logits(f[0].session[s]), inst_logits(f[1].session[s]),
                                logits_bytes(&f[0]));
        assert_int_equal((int)counter(&f[0], "audited_tokens"), 0);
        // 24 of 40 steps, the last one, in which all want logits, among them
        assert_int_equal((int)counter(&f[1], "audited_tokens"), 24 * 2 + 1);
        assert_true(counter(&f[1], "kl_mean") > 0);
        close_engine(&f[0]);
        close_engine(&f[1]);
    }
}

// ---- reads that fail ---------------------------------------------------------------------------

static const struct flash_ops *sound;
static unsigned to_fail, failed;
static uint64_t bad_block, bad_page; // the first that was read

static struct flash_io *failing_poll(struct flash *flash, uint64_t now_ns)
{
    struct flash_io *list = sound->poll(flash, now_ns);
    for (struct flash_io *io = list; io && to_fail; io = io->next) {
        if (io->op != FLASH_READ)
            continue;
        if (!failed) {
            bad_block = io->block;
            bad_page = io->page;
        }
        if (io->block == bad_block && io->page <= bad_page && bad_page < io->page + io->pages) {
            io->status = INST_EIO;
            to_fail--;
            failed++;
        }
    }
    return list;
}

static void let_reads_fail(struct fixture *f)
{
    static struct flash_ops ops;
    struct flash *flash = f->engine->store.drives[0].flash;
    sound = flash->ops;
    ops = *sound;
    ops.poll = failing_poll;
    flash->ops = &ops;
    to_fail = failed = 0;
}

static void step_all(struct fixture *f, int32_t tokens[SESSIONS][PROMPT + STEPS], size_t step)
{
    struct inst_segment segment[SESSIONS];
    for (uint32_t s = 0; s < SESSIONS; s++)
        segment[s] = (struct inst_segment){.session = f->session[s],
                                           .tokens = &tokens[s][PROMPT + step],
                                           .n_tokens = 1,
                                           .logits = true};
    if (inst_step(f->engine, segment, SESSIONS, NULL, NULL, &f->msg))
        fail_msg("step %zu: %s", step, f->msg.text);
}

// A dense step is the first to read. What it cannot read is not compared, and nothing else comes of
// it: the step itself has the bits that it has without audits.
static void a_fault_in_an_audit_is_the_audits(void **state)
{
    (void)state;
    static int32_t tokens[SESSIONS][PROMPT + STEPS];
    struct fixture f[2];
    unsigned armed = 0, audited = 0;
    memset(f, 0, sizeof f);
    for (size_t i = 0; i < 2; i++) {
        struct inst_options o = poor("pages", i ? 1 : 0);
        o.max_sessions = SESSIONS;
        open_engine(&f[i], model, "ram:64M@20G", &o);
        for (uint32_t s = 0; s < SESSIONS; s++) {
            tokens_of(s, tokens[s]);
            assert_int_equal(sync_tokens(&f[i], s, tokens[s], PROMPT), 0);
        }
    }
    let_reads_fail(&f[1]);
    for (size_t step = 0; step < STEPS; step++) {
        struct inst_stats stats;
        double before = counter(&f[1], "audited_tokens");
        assert_int_equal(inst_engine_stats(f[1].engine, &stats, NULL), 0);
        to_fail = stats.flash_read_bytes && step % 3 == 0 ? READS : 0;
        failed = 0;
        armed += to_fail != 0;
        bool faults = to_fail;
        for (size_t i = 0; i < 2; i++)
            step_all(&f[i], tokens, step);
        assert_int_equal(to_fail, 0);
        assert_true(!faults == !failed);
        unsigned n = (unsigned)(counter(&f[1], "audited_tokens") - before);
        audited += n;
        assert_int_equal(n, faults ? SESSIONS - 1 : SESSIONS);
        for (uint32_t s = 0; s < SESSIONS; s++)
            assert_memory_equal(inst_logits(f[0].session[s]), inst_logits(f[1].session[s]),
                                logits_bytes(&f[0]));
    }
    assert_true(armed > STEPS / 4);
    assert_int_equal(audited, STEPS * SESSIONS - armed);
    for (size_t i = 0; i < 2; i++)
        close_engine(&f[i]);
}

// What does not want dense attention's memory does not take it.
static void takes_memory_only_for_audits(void **state)
{
    (void)state;
    struct fixture f = {0};
    struct inst_options o = poor("pages", 0);
    open_engine(&f, model, "ram:64M", &o);
    assert_null(f.engine->audit.dense);
    close_engine(&f);
    o.audit = 0.01;
    open_engine(&f, model, "ram:64M", &o);
    assert_non_null(f.engine->audit.dense);
    close_engine(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(says_how_far_it_is_from_dense),
        cmocka_unit_test(says_nothing_against_what_is_exact),
        cmocka_unit_test(changes_nothing),
        cmocka_unit_test(a_fault_in_an_audit_is_the_audits),
        cmocka_unit_test(takes_memory_only_for_audits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
