// SPDX-License-Identifier: Apache-2.0
// Which tokens are chosen, against a plain definition: of any length, with ties, zeros, NaN and
// infinities; and runs of them.
#include "chance.h"
#include "drive/attend/select.h"

#include <math.h>
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <cmocka.h>

enum { TOKENS = 700, WORDS = (TOKENS + 63) / 64, ROUNDS = 3000 };

static float score_of(struct chance *chance, int kind)
{
    switch (kind) {
    case 0: // ties everywhere
        return (float)below(chance, 4);
    case 1:
        return one_in(chance, 9) ? NAN : (float)below(chance, 1 << 30);
    case 2: // neighbours differ in their last bits only
        return 0.7f + (float)below(chance, 64) * 0x1p-24f;
    case 3: // half are nothing
        return one_in(chance, 2) ? 0 : ldexpf((float)(1 + below(chance, 100)), -140);
    case 4:
        return one_in(chance, 20) ? INFINITY : expf((float)below(chance, 1000) * -0.05f);
    default: // alike in runs, as topics are
        return chance->state >> 40 & 7 ? 0x1p-20f : (float)below(chance, 1000);
    }
}

static bool bit(const uint64_t *bits, uint64_t i)
{
    return bits[i / 64] >> i % 64 & 1;
}

// How many tokens before `rest` rank above token t: higher, or as high and earlier. NaN is nothing.
static uint64_t above(const float *scores, uint64_t rest, uint64_t t)
{
    uint64_t n = 0;
    float own = scores[t] > 0 ? scores[t] : 0;
    for (uint64_t i = 0; i < rest; i++) {
        float other = scores[i] > 0 ? scores[i] : 0;
        n += other > own || (other == own && i < t);
    }
    return n;
}

static void test_tokens(void **state)
{
    (void)state;
    struct chance chance = {.state = 11};
    for (int round = 0; round < ROUNDS; round++) {
        float scores[TOKENS];
        uint64_t chosen[WORDS], n = 1 + below(&chance, round % 4 ? 150 : TOKENS);
        uint64_t k = 1 + below(&chance, (uint32_t)n), local = below(&chance, (uint32_t)k + 1);
        for (uint64_t i = 0; i < n; i++)
            scores[i] = score_of(&chance, round % 6);
        for (int i = 0; i < WORDS; i++)
            chosen[i] = ~0ull;
        select_tokens(scores, n, k, local, chosen);
        for (uint64_t t = 0; t < n; t++)
            if (bit(chosen, t) != (t >= n - local || above(scores, n - local, t) < k - local))
                fail_msg("round %d: token %llu of %llu, the best %llu and %llu new ones", round,
                         (unsigned long long)t, (unsigned long long)n, (unsigned long long)k,
                         (unsigned long long)local);
        for (uint64_t t = n; t < (n + 63) / 64 * 64; t++)
            assert_false(bit(chosen, t));
    }
}

static void test_runs(void **state)
{
    (void)state;
    struct chance chance = {.state = 12};
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t bits[WORDS] = {0}, end = below(&chance, TOKENS), first = 0;
        first = below(&chance, (uint32_t)end + 1);
        for (uint32_t left = below(&chance, 6); left; left--)
            for (uint32_t i = below(&chance, TOKENS), to = i + below(&chance, 200);
                 i < to && i < TOKENS; i++)
                bits[i / 64] |= 1ull << i % 64;
        uint64_t count = 0;
        for (int value = 0; value < 2; value++) {
            uint64_t t = first;
            while (t < end && bit(bits, t) != value)
                t++;
            assert_int_equal(select_next(bits, value, first, end), t);
        }
        for (uint64_t t = first; t < end; t++)
            count += bit(bits, t);
        assert_int_equal(select_count(bits, first, end), count);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_tokens), cmocka_unit_test(test_runs)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
