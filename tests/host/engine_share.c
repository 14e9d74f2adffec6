// SPDX-License-Identifier: Apache-2.0
// Sequences apart from sessions: what several prompts begin with is computed once, whoever holds
// it, an open session, a closed one or one that is in the same call; the bits are those of a
// session that computes everything itself; and what is kept gives way to who needs the room.
#include "base/checked.h"
#include "tests/host/engine_helper.h"

enum { N = 300, SHARED = 200, SESSIONS = 4, CONTEXT = 512 };

static char model[64];
static int32_t text[8][CONTEXT];  // the first SHARED are the same
static int32_t other[8][CONTEXT]; // nothing is

static int setup(void **state)
{
    (void)state;
    write_model(model, TENSOR_F16);
    for (uint32_t s = 0; s < 8; s++)
        for (size_t i = 0; i < CONTEXT; i++) {
            text[s][i] = text_token(i < SHARED ? 100 : s, i);
            other[s][i] = text_token(200 + s, i);
        }
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    unlink(model);
    return 0;
}

static uint64_t computed(const struct fixture *f)
{
    return f->engine->stats.prefill_tokens + f->engine->stats.decode_tokens;
}

static uint64_t shared_tokens(struct fixture *f)
{
    struct inst_stats stats;
    assert_int_equal(inst_engine_stats(f->engine, &stats, NULL), 0);
    return stats.shared_tokens;
}

// The session's logits are those of one that had to compute all n tokens.
static void check_bits(struct fixture *f, size_t session, const int32_t *tokens, size_t n)
{
    struct fixture fresh = {0};
    open_engine(&fresh, model, NULL, NULL);
    assert_int_equal(sync_tokens(&fresh, 0, tokens, n), 0);
    assert_non_null(inst_logits(f->session[session]));
    assert_memory_equal(inst_logits(f->session[session]), inst_logits(fresh.session[0]),
                        logits_bytes(f));
    close_engine(&fresh);
}

// The fake drive, one drive and several: of two, each has a KV head; of three, each has sequences.
static const struct place {
    const char *kv[3];
    size_t n;
} places[] = {
    {{NULL}, 0},
    {{"ram:64M"}, 1},
    {{"/tmp"}, 1},
    {{"ram:64M", "/tmp"}, 2},
    {{"ram:64M", "ram:64M", "/tmp"}, 3},
};

enum { PLACES = sizeof places / sizeof *places };

static void open_sharing(struct fixture *f, const struct place *place, uint32_t sessions)
{
    struct inst_options o = {
        .max_sessions = sessions, .group = 16, .chunk = 64, .threads = 2, .context = CONTEXT};
    if (place->n < 2) {
        open_engine(f, model, place->kv[0], &o);
        return;
    }
    o.model = model;
    o.kv = place->kv;
    o.n_kv = place->n;
    o.memory = 64 << 20;
    o.row_cache = INST_NO_ROW_CACHE;
    if (inst_engine_open(&f->engine, &o, &f->msg))
        fail_msg("%s", f->msg.text);
    for (uint32_t i = 0; i < sessions; i++)
        assert_int_equal(inst_session_open(&f->session[i], f->engine, &f->msg), 0);
}

// In one call: the first computes what they share, the others wait for it and fork.
static void prompts_of_one_call_share(void **state)
{
    (void)state;
    for (size_t at = 0; at < PLACES; at++) {
        struct fixture f = {0};
        struct inst_prefix p[SESSIONS];
        open_sharing(&f, &places[at], SESSIONS);
        for (size_t s = 0; s < SESSIONS; s++)
            p[s] = (struct inst_prefix){f.session[s], text[s], N - 10 * s, -1, NULL};
        p[3].tokens = other[3]; // which shares nothing
        if (inst_sync(f.engine, p, SESSIONS, NULL, NULL, &f.msg))
            fail_msg("%s", f.msg.text);
        assert_int_equal(shared_tokens(&f), 2 * SHARED);
        assert_int_equal(computed(&f), 4 * N - 60 - 2 * SHARED);
        for (int step = 0; step < 3; step++) { // each goes on by itself
            for (size_t s = 0; s < SESSIONS; s++)
                p[s].n_tokens++;
            assert_int_equal(inst_sync(f.engine, p, SESSIONS, NULL, NULL, &f.msg), 0);
        }
        for (size_t s = 0; s < SESSIONS; s++)
            check_bits(&f, s, p[s].tokens, p[s].n_tokens);
        close_engine(&f);
    }
}

// What a session that is open or closed holds is found by the next one.
static void later_prompts_find_what_is_held(void **state)
{
    (void)state;
    for (size_t at = 0; at < PLACES; at++) {
        struct fixture f = {0};
        open_sharing(&f, &places[at], 2);
        uint64_t group = f.engine->plan.group;
        assert_int_equal(sync_tokens(&f, 0, text[0], N), 0);
        assert_int_equal(sync_tokens(&f, 1, text[1], N), 0);
        assert_int_equal(shared_tokens(&f), SHARED);
        check_bits(&f, 1, text[1], N);
        // The parent changes and ends; its child does not mind.
        assert_int_equal(sync_tokens(&f, 0, other[0], 50), 0);
        assert_int_equal(sync_tokens(&f, 1, text[1], N + 1), 0);
        check_bits(&f, 1, text[1], N + 1);
        // A closed one's whole groups are taken over by who goes on with them.
        inst_session_close(f.session[1]);
        inst_session_close(f.session[0]);
        assert_int_equal(inst_session_open(&f.session[0], f.engine, NULL), 0);
        uint64_t before = computed(&f), whole = (N + 1) / group * group;
        assert_int_equal(sync_tokens(&f, 0, text[1], N + 20), 0);
        assert_int_equal(computed(&f) - before, N + 20 - whole);
        check_bits(&f, 0, text[1], N + 20);
        // And the very same prompt, of which the last token is computed.
        assert_int_equal(inst_session_open(&f.session[1], f.engine, NULL), 0);
        before = computed(&f);
        assert_int_equal(sync_tokens(&f, 1, text[1], N + 20), 0);
        assert_int_equal(computed(&f) - before, 1);
        check_bits(&f, 1, text[1], N + 20);
        close_engine(&f);
    }
}

// A session that turns to other tokens finds the first ones again.
static void what_a_session_moves_away_from_is_kept(void **state)
{
    (void)state;
    for (size_t at = 0; at < PLACES; at++) {
        struct fixture f = {0};
        open_sharing(&f, &places[at], 2);
        uint64_t group = f.engine->plan.group;
        assert_int_equal(sync_tokens(&f, 0, text[0], N), 0);
        assert_int_equal(sync_tokens(&f, 0, text[1], N), 0); // behind what they share
        assert_int_equal(computed(&f), 2 * N - SHARED);
        assert_int_equal(sync_tokens(&f, 0, other[0], 90), 0); // shares nothing
        check_bits(&f, 0, other[0], 90);
        uint64_t before = computed(&f), whole = N / group * group;
        assert_int_equal(sync_tokens(&f, 0, text[0], N), 0); // the first ones again
        assert_int_equal(computed(&f) - before, N - whole);
        check_bits(&f, 0, text[0], N);
        before = computed(&f);
        assert_int_equal(sync_tokens(&f, 1, text[1], N), 0); // and the second ones, elsewhere
        assert_int_equal(computed(&f) - before, N - whole);
        check_bits(&f, 1, text[1], N);
        close_engine(&f);
    }
}

static void a_fork_is_a_session_of_its_own(void **state)
{
    (void)state;
    for (size_t at = 0; at < PLACES; at++) {
        struct fixture f = {0};
        open_sharing(&f, &places[at], 3);
        inst_session_close(f.session[1]);
        inst_session_close(f.session[2]);
        assert_int_equal(sync_tokens(&f, 0, text[0], 210), 0);
        for (size_t s = 1; s < 3; s++)
            assert_int_equal(inst_session_fork(&f.session[s], f.session[0], &f.msg), 0);
        inst_session *fourth;
        assert_int_equal(inst_session_fork(&fourth, f.session[0], NULL), INST_ENORESOURCE);
        assert_null(fourth);
        uint64_t before = computed(&f);
        for (size_t s = 0; s < 3; s++) {
            assert_int_equal(inst_session_length(f.session[s]), 210);
            check_bits(&f, s, text[0], 210);
            int32_t mine[230];
            memcpy(mine, text[0], sizeof mine);
            for (size_t i = 210; i < 230; i++)
                mine[i] = text_token((uint32_t)s, i);
            assert_int_equal(sync_tokens(&f, s, mine, 230), 0);
            check_bits(&f, s, mine, 230);
        }
        assert_int_equal(computed(&f) - before, 60);
        assert_int_equal(shared_tokens(&f), 420);
        close_engine(&f);
    }
}

// Kept tokens never exceed those that sessions may have, and the drive has no more sequences than
// there are places, however many sessions come and go.
static void what_is_kept_is_bounded(void **state)
{
    (void)state;
    struct fixture f = {0};
    open_sharing(&f, &places[1], 1);
    uint64_t most = 0;
    for (uint32_t i = 0; i < 40; i++) {
        struct drive_stats stats;
        uint64_t room = 0;
        assert_int_equal(sync_tokens(&f, 0, other[i % 8], 70 + 9 * i), 0);
        for (uint32_t q = 0; q < f.engine->n_sequences; q++)
            room += f.engine->sequence[q].room;
        assert_true(room <= CONTEXT);
        assert_int_equal(engine_drive_stats(f.engine, &stats, NULL), 0);
        assert_true(stats.sequences <= seqs_most(1));
        most = max_u64(most, stats.sequences);
        inst_session_close(f.session[0]);
        assert_int_equal(inst_session_open(&f.session[0], f.engine, NULL), 0);
    }
    assert_true(most > 2); // something was kept
    assert_true(f.engine->budget.peak <= f.engine->budget.limit);
    close_engine(&f);
}

// A drive without room gets what is kept before anybody fails.
static void what_is_kept_gives_way(void **state)
{
    (void)state;
    static const int codes[] = {INST_ENOSPC, INST_ENORESOURCE};
    for (size_t i = 0; i < 2; i++) {
        struct fixture f = {0};
        open_sharing(&f, &places[0], 3);
        assert_int_equal(sync_tokens(&f, 0, other[0], 150), 0);
        assert_int_equal(sync_tokens(&f, 1, other[1], 150), 0);
        inst_session_close(f.session[0]);
        inst_session_close(f.session[1]);
        assert_int_equal(f.engine->sequence[0].state, SEQ_KEPT);
        assert_int_equal(f.engine->sequence[1].state, SEQ_KEPT);
        struct fake_faults fault = {
            .opcode = OP_WRITE, .fail_command = 2, .code = codes[i], .fail_item = -1};
        fault.fail_count = codes[i] == INST_ENOSPC ? 1 : 70; // for longer than it is waited for
        fake_drive_faults(f.link, &fault);
        struct inst_msg why = {"of an earlier call"};
        struct inst_prefix p = {f.session[2], text[2], 150, -1, &why};
        if (inst_sync(f.engine, &p, 1, NULL, NULL, &f.msg))
            fail_msg("%s", f.msg.text);
        assert_int_equal(p.status, 0);
        assert_string_equal(why.text, "");
        assert_int_equal(f.engine->sequence[0].state, SEQ_FREE);
        assert_int_equal(f.engine->sequence[1].state, SEQ_FREE);
        check_bits(&f, 2, text[2], 150);
        f.session[0] = f.session[1] = NULL;
        close_engine(&f);
    }
}

// What could not be read once is nobody's prefix any more.
static void a_bad_sequence_is_not_shared(void **state)
{
    (void)state;
    struct fixture f = {0};
    open_sharing(&f, &places[0], 3);
    assert_int_equal(sync_tokens(&f, 0, text[0], N), 0);
    fake_drive_faults(
        f.link, &(struct fake_faults){
                    .opcode = OP_READ, .fail_command = 1, .code = INST_ECORRUPT, .fail_item = -1});
    assert_int_equal(sync_tokens(&f, 1, text[1], N), INST_ECORRUPT);
    fake_drive_faults(f.link, &(struct fake_faults){0});
    uint64_t before = computed(&f);
    inst_session_close(f.session[1]);
    assert_int_equal(inst_session_open(&f.session[1], f.engine, NULL), 0);
    assert_int_equal(sync_tokens(&f, 1, text[1], N), 0);
    assert_int_equal(computed(&f) - before, N);
    check_bits(&f, 1, text[1], N);
    close_engine(&f);
}

// A FORK that is refused costs computing, no more.
static void without_forks_all_is_computed(void **state)
{
    (void)state;
    struct fixture f = {0};
    open_sharing(&f, &places[0], 2);
    assert_int_equal(sync_tokens(&f, 0, text[0], N), 0);
    fake_drive_faults(f.link, &(struct fake_faults){.opcode = OP_FORK,
                                                    .fail_command = 1,
                                                    .fail_count = 100,
                                                    .code = INST_EIO,
                                                    .fail_item = -1});
    assert_int_equal(sync_tokens(&f, 1, text[1], N), 0);
    assert_int_equal(computed(&f), 2 * N);
    assert_int_equal(shared_tokens(&f), 0);
    check_bits(&f, 1, text[1], N);
    close_engine(&f);
}

// Tokens that sparf had a part in depend on how they came to be: only those of the prompt are
// shared.
static void sparf_shares_what_is_exact(void **state)
{
    (void)state;
    struct fixture f = {0}, alone = {0};
    struct inst_options o = {.max_sessions = 3,
                             .group = 16,
                             .context = CONTEXT,
                             .attention = "sparf",
                             .sparf_divisor = 8};
    open_engine(&f, model, "ram:64M", &o);
    for (size_t n = SHARED + 20; n <= SHARED + 60; n++)
        assert_int_equal(sync_tokens(&f, 0, text[0], n), 0);
    uint64_t before = computed(&f);
    assert_int_equal(sync_tokens(&f, 1, text[0], SHARED + 60), 0);
    assert_int_equal(computed(&f) - before, 40);
    open_engine(&alone, model, "ram:64M", &o);
    assert_int_equal(sync_tokens(&alone, 0, text[0], SHARED + 60), 0);
    assert_memory_equal(inst_logits(f.session[1]), inst_logits(alone.session[0]), logits_bytes(&f));
    assert_memory_not_equal(inst_logits(f.session[0]), inst_logits(alone.session[0]),
                            logits_bytes(&f));
    close_engine(&f);
    close_engine(&alone);
}

// More sessions than tokens: what is kept goes first, then somebody is told, and is served once
// others have ended.
static void tokens_are_short(void **state)
{
    (void)state;
    struct fixture f = {0};
    open_engine(&f, model, NULL,
                &(struct inst_options){.max_sessions = SESSIONS, .context = CONTEXT, .threads = 1});
    assert_int_equal(f.engine->plan.tokens, SESSIONS * CONTEXT);
    f.engine->plan.tokens = 2 * N + 200;
    assert_int_equal(sync_tokens(&f, 0, other[0], N), 0);
    assert_int_equal(sync_tokens(&f, 1, other[1], N), 0);
    assert_int_equal(sync_tokens(&f, 2, other[2], N), INST_ENORESOURCE);
    assert_non_null(strstr(f.msg.text, "tokens of all sessions"));
    assert_int_equal(inst_session_length(f.session[2]), 0);
    assert_int_equal(sync_tokens(&f, 2, other[2], 150), 0); // that much there is
    check_bits(&f, 2, other[2], 150);
    assert_int_equal(sync_tokens(&f, 2, other[2], N), INST_ENORESOURCE);
    assert_int_equal(inst_session_length(f.session[2]), 150);
    // A session that has become shorter holds less, and one that was closed is kept no longer.
    assert_int_equal(sync_tokens(&f, 0, other[0], 20), 0);
    assert_int_equal(sync_tokens(&f, 2, other[2], 250), 0);
    inst_session_close(f.session[1]);
    assert_int_equal(sync_tokens(&f, 2, other[2], N), 0);
    check_bits(&f, 2, other[2], N);
    assert_int_equal(sync_tokens(&f, 3, other[3], N), 0);
    check_bits(&f, 3, other[3], N);
    uint64_t room = 0;
    for (uint32_t i = 0; i < f.engine->n_sequences; i++)
        room += f.engine->sequence[i].room;
    assert_true(room <= f.engine->plan.tokens);
    close_engine(&f);
}

// Sessions with short prompts do not pay for what a context could hold.
static void many_sessions_of_a_large_context(void **state)
{
    (void)state;
    enum { MANY = 200 };
    struct fixture f = {0};
    static inst_session *session[MANY];
    static struct inst_prefix prefix[MANY];
    open_engine(&f, model, "null:",
                &(struct inst_options){.max_sessions = MANY,
                                       .context = 1 << 20, // tokens of all: 800 MiB
                                       .memory = 48 << 20,
                                       .chunk = 64,
                                       .threads = 1});
    for (size_t i = 0; i < MANY; i++) {
        if (i < 8)
            session[i] = f.session[i];
        else
            assert_int_equal(inst_session_open(&session[i], f.engine, &f.msg), 0);
        prefix[i] = (struct inst_prefix){
            .session = session[i], .tokens = other[i % 8] + i / 8, .n_tokens = 12 + i % 5};
    }
    if (inst_sync(f.engine, prefix, MANY, NULL, NULL, &f.msg))
        fail_msg("%s", f.msg.text);
    for (size_t i = 0; i < MANY; i++)
        assert_int_equal(inst_session_length(session[i]), 12 + i % 5);
    assert_true(f.engine->budget.peak <= f.engine->memory);
    close_engine(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tokens_are_short),
        cmocka_unit_test(many_sessions_of_a_large_context),
        cmocka_unit_test(prompts_of_one_call_share),
        cmocka_unit_test(later_prompts_find_what_is_held),
        cmocka_unit_test(what_a_session_moves_away_from_is_kept),
        cmocka_unit_test(a_fork_is_a_session_of_its_own),
        cmocka_unit_test(what_is_kept_is_bounded),
        cmocka_unit_test(what_is_kept_gives_way),
        cmocka_unit_test(a_bad_sequence_is_not_shared),
        cmocka_unit_test(without_forks_all_is_computed),
        cmocka_unit_test(sparf_shares_what_is_exact),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
