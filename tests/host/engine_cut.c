// SPDX-License-Identifier: Apache-2.0
// A session that is rewound and extended again and again, as in a chat or a tree search: the store
// of the default size never runs out although no page is ever copied, and the bits are those of a
// session that got its tokens at once.
#include "tests/host/engine_helper.h"
#include "tests/more.h"

enum { CONTEXT = 640, CHECK_EVERY = 10 };

static char model[64];

static uint64_t draw(uint64_t *state)
{
    *state = *state * UINT64_C(6364136223846793005) + 1442695040888963407u;
    return *state >> 33;
}

struct walk {
    const char *name;
    // The next length to rewind to and the one to extend to.
    size_t (*rewind)(uint64_t *random, size_t length, unsigned round);
    size_t (*extend)(uint64_t *random, size_t length, unsigned round);
};

static size_t anywhere(uint64_t *random, size_t length, unsigned round)
{
    (void)round;
    return draw(random) % length;
}

static size_t extend_anywhere(uint64_t *random, size_t length, unsigned round)
{
    (void)round;
    return length + 1 + draw(random) % (CONTEXT - length);
}

static size_t to_the_end(uint64_t *random, size_t length, unsigned round)
{
    (void)random;
    (void)length;
    (void)round;
    return CONTEXT;
}

// Keeps one token group more each time: every block that the rest filled keeps a few live rows.
static size_t creep(uint64_t *random, size_t length, unsigned round)
{
    (void)random;
    (void)length;
    return 8 + round * 6;
}

static size_t nearly_nothing(uint64_t *random, size_t length, unsigned round)
{
    (void)round;
    return length - 1 - draw(random) % 20;
}

static const struct walk walks[] = {
    {"anywhere", anywhere, extend_anywhere},
    {"to the end and back", creep, to_the_end},
    {"small steps at the end", nearly_nothing, to_the_end},
};

static void walk(const struct walk *w, const char *kv, uint32_t group)
{
    struct inst_options o = {.threads = 2, .group = group, .context = CONTEXT};
    struct fixture f = {0}, fresh = {0};
    static int32_t tokens[CONTEXT];
    uint64_t random = group;
    open_engine(&f, model, kv, &o);
    size_t length = CONTEXT;
    for (size_t i = 0; i < CONTEXT; i++)
        tokens[i] = text_token(0, i);
    unsigned rounds = more() ? 100 : 20;
    for (unsigned round = 0; round < rounds; round++) {
        if (sync_tokens(&f, 0, tokens, length))
            fail_msg("%s, group %u, round %u: %s", w->name, group, round, f.msg.text);
        if (round % CHECK_EVERY == CHECK_EVERY - 1) {
            open_engine(&fresh, model, "ram:64M", &o);
            assert_int_equal(sync_tokens(&fresh, 0, tokens, length), 0);
            if (memcmp(inst_logits(f.session[0]), inst_logits(fresh.session[0]), logits_bytes(&f)))
                fail_msg("%s, group %u, round %u: other bits than a fresh session", w->name, group,
                         round);
            close_engine(&fresh);
        }
        size_t keep = w->rewind(&random, length, round);
        length = w->extend(&random, keep, round);
        for (size_t i = keep; i < length; i++)
            tokens[i] = text_token(round + 1, i);
    }
    assert_int_equal(drive_check(f.engine->store.drives->drive, &f.msg), 0);
    close_engine(&f);
}

static void rewinding_never_runs_out_of_space(void **state)
{
    (void)state;
    write_model(model, TENSOR_F16);
    for (size_t i = 0; i < sizeof walks / sizeof *walks; i++) {
        walk(&walks[i], "/tmp", 16);
        walk(&walks[i], "/tmp", 64);
    }
    unlink(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(rewinding_never_runs_out_of_space)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
