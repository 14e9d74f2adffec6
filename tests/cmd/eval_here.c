// SPDX-License-Identifier: Apache-2.0
// The methods that `instinfer eval` compares with, held against their definitions in double
// precision, written apart: token by token, with sorting in place of selection.
#include "cmd/eval/here.h"
#include "kernels/kernels.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
// after those
#include <cmocka.h>

enum { HEADS = 6, KV = 2, GROUP = HEADS / KV, DIM = 24, CONTEXT = 203, DECODED = 7 };
enum { TOKENS = CONTEXT + DECODED, LINES = 2 };

static double q[TOKENS][HEADS][DIM], k[TOKENS][KV][DIM], v[TOKENS][KV][DIM];

static double noise(void)
{
    static uint64_t x = 88172645463325252u;
    double sum = 0;
    for (int i = 0; i < 4; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        sum += (double)(x >> 11) / 9007199254740992 - 0.5;
    }
    return 2 * sum;
}

static void make_up(void)
{
    for (size_t t = 0; t < TOKENS; t++) {
        for (size_t i = 0; i < HEADS * DIM; i++)
            (&q[t][0][0])[i] = (double)(float)noise() * 2;
        for (size_t i = 0; i < KV * DIM; i++) {
            (&k[t][0][0])[i] = kernel_f16_to_f32(kernel_f32_to_f16((float)noise()));
            (&v[t][0][0])[i] = kernel_f16_to_f32(kernel_f32_to_f16((float)noise()));
        }
    }
}

// ---- Definitions -------------------------------------------------------------------------------

static double scale_of(void)
{
    return 1 / sqrt((double)DIM);
}

static double dot(const double *a, const double *b)
{
    double sum = 0;
    for (size_t i = 0; i < DIM; i++)
        sum += a[i] * b[i];
    return sum;
}

static void soft(double *x, size_t n)
{
    double most = -INFINITY, sum = 0;
    for (size_t i = 0; i < n; i++)
        most = fmax(most, x[i]);
    for (size_t i = 0; i < n; i++)
        sum += x[i] = exp(x[i] - most);
    for (size_t i = 0; i < n; i++)
        x[i] /= sum;
}

static const double *order_by;
static int by_rank(const void *a, const void *b)
{
    size_t x = *(const size_t *)a, y = *(const size_t *)b;
    if (order_by[x] < order_by[y] || order_by[x] > order_by[y])
        return order_by[x] < order_by[y] ? 1 : -1;
    return x < y ? -1 : 1;
}

static void best(const double *rank, size_t n, size_t many, bool *chosen)
{
    size_t index[TOKENS];
    for (size_t i = 0; i < n; i++)
        index[i] = i;
    order_by = rank;
    qsort(index, n, sizeof *index, by_rank);
    for (size_t i = 0; i < many && i < n; i++)
        chosen[index[i]] = true;
}

static void mass(size_t t, size_t kv, const bool *among, double *sum)
{
    for (size_t g = 0; g < GROUP; g++) {
        double x[TOKENS];
        for (size_t p = 0; p <= t; p++)
            x[p] = !among || among[p] ? dot(q[t][kv * GROUP + g], k[p][kv]) * scale_of() : -1e30;
        soft(x, t + 1);
        for (size_t p = 0; p <= t; p++)
            sum[p] += x[p];
    }
}

static size_t up(size_t n, size_t by)
{
    return (n + by - 1) / by;
}

// Chosen tokens of a KV head for the query at t; what ranking read, in tokens.
static double define_sparq(size_t t, size_t kv, size_t div, bool *chosen, double *alpha)
{
    size_t n = t + 1, r = DIM / div ? DIM / div : 1;
    double size[DIM] = {0}, sum[TOKENS] = {0}, each[GROUP][TOKENS];
    bool channel[DIM] = {0};
    for (size_t c = 0; c < DIM; c++)
        for (size_t g = 0; g < GROUP; g++)
            size[c] += fabs(q[t][kv * GROUP + g][c]);
    best(size, DIM, r, channel);
    for (size_t g = 0; g < GROUP; g++) {
        const double *query = q[t][kv * GROUP + g];
        double some = 0, all = 0;
        for (size_t c = 0; c < DIM; c++) {
            all += fabs(query[c]);
            some += channel[c] ? fabs(query[c]) : 0;
        }
        for (size_t p = 0; p < n; p++) {
            each[g][p] = 0;
            for (size_t c = 0; c < DIM; c++)
                each[g][p] += channel[c] ? query[c] * k[p][kv][c] : 0;
            each[g][p] /= sqrt(DIM * some / all);
        }
        soft(each[g], n);
        for (size_t p = 0; p < n; p++)
            sum[p] += each[g][p];
    }
    double index = (double)(n * r) / (2 * DIM), left = (double)n / (double)div - index;
    chosen[t] = true;
    best(sum, t, left > 1 ? (size_t)left - 1 : 0, chosen);
    for (size_t g = 0; g < GROUP; g++) {
        alpha[g] = 0;
        for (size_t p = 0; p < n; p++)
            alpha[g] += chosen[p] ? each[g][p] : 0;
    }
    return index;
}

static double define_quest(size_t t, size_t kv, size_t div, bool *chosen)
{
    size_t n = t + 1, page = 2 * div > 16 ? 2 * div : 16, pages = up(n, page);
    double sum[TOKENS] = {0};
    for (size_t g = 0; g < GROUP; g++) {
        double bound[TOKENS];
        for (size_t i = 0; i < pages; i++) {
            bound[i] = 0;
            for (size_t c = 0; c < DIM; c++) {
                double x = q[t][kv * GROUP + g][c], most = -INFINITY;
                for (size_t p = i * page; p < n && p < (i + 1) * page; p++)
                    most = fmax(most, x * k[p][kv][c]);
                bound[i] += most * scale_of();
            }
        }
        soft(bound, pages);
        for (size_t i = 0; i < pages; i++)
            sum[i] += bound[i];
    }
    bool page_chosen[TOKENS] = {0};
    double left = (double)n / (double)div - (double)pages;
    size_t many = left > (double)page ? (size_t)(left / (double)page) : 1;
    page_chosen[pages - 1] = true;
    best(sum, pages - 1, many - 1, page_chosen);
    for (size_t p = 0; p < n; p++)
        chosen[p] = page_chosen[p / page];
    return (double)pages;
}

static void define_pieces(size_t t, size_t kv, size_t size, size_t many, bool *chosen)
{
    double sum[TOKENS] = {0}, piece[TOKENS] = {0};
    bool piece_chosen[TOKENS] = {0};
    mass(t, kv, NULL, sum);
    for (size_t p = 0; p <= t; p++)
        piece[p / size] += sum[p];
    best(piece, t / size + 1, many < size ? 1 : many / size, piece_chosen);
    for (size_t p = 0; p <= t; p++)
        chosen[p] = piece_chosen[p / size];
}

// All steps from the context's end to t.
static void define_h2o(size_t t, size_t kv, size_t div, bool *chosen)
{
    size_t many = up(CONTEXT, div), heavy = many / 2, recent = many - heavy;
    double sum[TOKENS] = {0};
    for (size_t p = 0; p < CONTEXT; p++)
        mass(p, kv, NULL, sum);
    for (size_t p = 0; p < CONTEXT; p++)
        chosen[p] = true;
    for (size_t now = CONTEXT; now <= t; now++) {
        bool next[TOKENS] = {0};
        double old[TOKENS];
        chosen[now] = true;
        size_t before = now + 1 - recent;
        for (size_t p = 0; p < before; p++)
            old[p] = chosen[p] ? sum[p] : -1;
        best(old, before, heavy, next);
        for (size_t p = 0; p <= now; p++)
            chosen[p] = chosen[p] && (next[p] || p >= before);
        mass(now, kv, chosen, sum);
    }
}

static double define(enum eval_here_method method, size_t t, size_t kv, size_t div, bool *chosen,
                     double *alpha)
{
    size_t n = t + 1, many = up(n, div);
    double sum[TOKENS] = {0};
    memset(chosen, 0, TOKENS * sizeof *chosen);
    for (size_t g = 0; g < GROUP; g++)
        alpha[g] = 1;
    if (div == 1) {
        memset(chosen, 1, n * sizeof *chosen);
        return 0;
    }
    switch (method) {
    case EVAL_HERE_sparq:
        return define_sparq(t, kv, div, chosen, alpha);
    case EVAL_HERE_quest:
        return define_quest(t, kv, div, chosen);
    case EVAL_HERE_h2o:
        define_h2o(t, kv, div, chosen);
        return 0;
    case EVAL_HERE_oracle:
        mass(t, kv, NULL, sum);
        best(sum, n, many, chosen);
        return 0;
    case EVAL_HERE_oracle16:
    case EVAL_HERE_oracle32:
        define_pieces(t, kv, method == EVAL_HERE_oracle16 ? 16 : 32, many, chosen);
        return 0;
    default:
        for (size_t p = 0; p < n; p++) {
            size_t sinks = method == EVAL_HERE_window ? 0 : many > 4 ? 4 : many - 1;
            chosen[p] = p < sinks || p >= n - (many - sinks);
        }
        return 0;
    }
}

static void output(size_t t, size_t kv, size_t g, const bool *chosen, double alpha, double *out)
{
    double x[TOKENS];
    for (size_t p = 0; p <= t; p++)
        x[p] = chosen[p] ? dot(q[t][kv * GROUP + g], k[p][kv]) * scale_of() : -1e30;
    soft(x, t + 1);
    for (size_t d = 0; d < DIM; d++) {
        double mean = 0;
        out[d] = 0;
        for (size_t p = 0; p <= t; p++) {
            out[d] += x[p] * v[p][kv][d];
            mean += v[p][kv][d] / (double)(t + 1);
        }
        out[d] = alpha * out[d] + (1 - alpha) * mean;
    }
}

// ---- What is tested ----------------------------------------------------------------------------

// Shows tokens [pos, pos + n) of a session; out: of a decode row.
static void show(struct eval_here *h, uint32_t session, size_t pos, size_t n, float *out)
{
    static float queries[CONTEXT * HEADS * DIM];
    static uint16_t kv[CONTEXT * KV * DIM * 2];
    struct guest_rows rows = {.session = session,
                              .heads = HEADS,
                              .kv_heads = KV,
                              .head_dim = DIM,
                              .pos = pos,
                              .n = n,
                              .scale = (float)scale_of(),
                              .q = queries,
                              .kv = kv,
                              .out = out,
                              .out_stride = DIM + 16};
    for (size_t head = 0; head < KV; head++)
        for (size_t t = 0; t < n; t++)
            for (size_t d = 0; d < DIM; d++) {
                uint16_t *at = kv + (head * 2 * n + t) * DIM + d;
                at[0] = kernel_f32_to_f16((float)k[pos + t][head][d]);
                at[n * DIM] = kernel_f32_to_f16((float)v[pos + t][head][d]);
                for (size_t g = 0; g < GROUP; g++)
                    queries[((head * n + t) * GROUP + g) * DIM + d] =
                        (float)q[pos + t][head * GROUP + g][d];
            }
    eval_here_guest(h)->attend(eval_here_guest(h)->user, &rows);
}

static struct eval_here *open_behind_context(void)
{
    struct eval_here *h;
    struct eval_here_shape shape = {.layers = 1,
                                    .heads = HEADS,
                                    .kv_heads = KV,
                                    .head_dim = DIM,
                                    .context = CONTEXT,
                                    .longest = DECODED,
                                    .lines = LINES,
                                    .sums = true};
    assert_int_equal(eval_here_open(&h, &shape, NULL), 0);
    show(h, 0, 0, 70, NULL);
    show(h, 0, 70, CONTEXT - 70, NULL);
    return h;
}

// Pages of 4 KiB with a byte of a chosen token, and those that ranking reads.
static size_t pages_of(enum eval_here_method method, size_t n, size_t div, const bool *chosen)
{
    bool page[TOKENS * 4 * DIM / 4096 + 1] = {0};
    size_t bytes = 0, count = 0, quest_page = 2 * div > 16 ? 2 * div : 16;
    for (size_t p = 0; p < n; p++)
        for (size_t i = 0; i < 4 * DIM && chosen[p]; i++)
            page[(p * 4 * DIM + i) / 4096] = true;
    for (size_t i = 0; i < sizeof page; i++)
        count += page[i];
    if (div == 1)
        return count;
    if (method == EVAL_HERE_quest)
        bytes = up(up(n, quest_page) * 4 * DIM, 4096);
    if (method == EVAL_HERE_sparq)
        bytes = (DIM / div ? DIM / div : 1) * up(2 * n, 4096);
    return count + bytes;
}

struct seen {
    double tokens, pages;
};

static void check_row(struct eval_here *h, uint32_t session, enum eval_here_method method, size_t t,
                      size_t div, struct seen *seen)
{
    static float out[HEADS][DIM + 16];
    show(h, session, t, 1, &out[0][0]);
    for (size_t kv = 0; kv < KV; kv++) {
        bool chosen[TOKENS];
        double alpha[GROUP], want[DIM];
        seen->tokens += define(method, t, kv, div, chosen, alpha);
        seen->pages += (double)pages_of(method, t + 1, div, chosen);
        for (size_t p = 0; p <= t; p++)
            seen->tokens += chosen[p];
        for (size_t g = 0; g < GROUP; g++) {
            output(t, kv, g, chosen, alpha[g], want);
            for (size_t d = 0; d < DIM; d++)
                if (fabs((double)out[kv * GROUP + g][d] - want[d]) > 1e-5)
                    fail_msg("method %d at 1/%zu, token %zu, head %zu, channel %zu: %g, not %g",
                             method, div, t, kv * GROUP + g, d, (double)out[kv * GROUP + g][d],
                             want[d]);
        }
    }
}

static void test_as_defined(void **state)
{
    (void)state;
    static const uint32_t divisors[] = {1, 2, 4, 8, 16, 32};
    struct eval_here *h = open_behind_context();
    for (size_t m = 0; m <= EVAL_HERE_window; m++)
        for (size_t i = 0; i < sizeof divisors / sizeof *divisors; i++) {
            struct seen seen = {0};
            assert_int_equal(eval_here_set(h, (enum eval_here_method)m, divisors[i], NULL), 0);
            for (size_t t = CONTEXT; t < TOKENS; t++)
                check_row(h, 1, (enum eval_here_method)m, t, divisors[i], &seen);
            assert_true(fabs(eval_here_bytes(h) - seen.tokens * 2 * DIM * 2) < 1e-3);
            assert_true(fabs(eval_here_page_bytes(h) - seen.pages * 4096) < 1e-3);
        }
    eval_here_close(h);
}

// Questions leave nothing behind that another one would see, neither one after another nor side by
// side.
static void test_questions_do_not_meet(void **state)
{
    (void)state;
    struct eval_here *h = open_behind_context();
    struct seen seen = {0};
    assert_int_equal(eval_here_set(h, EVAL_HERE_h2o, 8, NULL), 0);
    for (int question = 0; question < 2; question++)
        for (size_t t = CONTEXT; t < TOKENS; t++)
            check_row(h, 1, EVAL_HERE_h2o, t, 8, &seen);
    for (size_t t = CONTEXT; t < TOKENS + 2; t++)
        for (uint32_t session = 1; session <= LINES; session++) {
            size_t at = t - 2 * (session - 1); // the second one is two tokens behind
            if (at >= CONTEXT && at < TOKENS)
                check_row(h, session, EVAL_HERE_h2o, at, 8, &seen);
        }
    eval_here_close(h);
}

// Layers with a window are attended exactly by all.
static void test_window_of_the_layer(void **state)
{
    (void)state;
    float out[HEADS][DIM + 16];
    struct eval_here *h = open_behind_context();
    for (size_t m = 0; m <= EVAL_HERE_window; m++) {
        struct guest windowed = *eval_here_guest(h);
        struct guest_rows rows = {.session = 1,
                                  .heads = HEADS,
                                  .kv_heads = KV,
                                  .head_dim = DIM,
                                  .pos = CONTEXT,
                                  .n = 1,
                                  .window = 10,
                                  .scale = (float)scale_of(),
                                  .out = &out[0][0],
                                  .out_stride = DIM + 16};
        float queries[HEADS * DIM];
        uint16_t kv[KV * 2 * DIM];
        for (size_t i = 0; i < HEADS * DIM; i++)
            queries[i] = (float)(&q[CONTEXT][0][0])[i];
        for (size_t head = 0; head < KV; head++)
            for (size_t d = 0; d < DIM; d++) {
                kv[head * 2 * DIM + d] = kernel_f32_to_f16((float)k[CONTEXT][head][d]);
                kv[(head * 2 + 1) * DIM + d] = kernel_f32_to_f16((float)v[CONTEXT][head][d]);
            }
        rows.q = queries;
        rows.kv = kv;
        assert_int_equal(eval_here_set(h, (enum eval_here_method)m, 4, NULL), 0);
        windowed.attend(windowed.user, &rows);
        for (size_t head = 0; head < HEADS; head++) {
            bool chosen[TOKENS] = {0};
            double want[DIM];
            for (size_t p = CONTEXT - 9; p <= CONTEXT; p++)
                chosen[p] = true;
            output(CONTEXT, head / GROUP, head % GROUP, chosen, 1, want);
            for (size_t d = 0; d < DIM; d++)
                assert_true(fabs((double)out[head][d] - want[d]) < 1e-5);
        }
        assert_true(fabs(eval_here_bytes(h) - KV * 10 * 2 * DIM * 2) < 1e-3);
    }
    eval_here_close(h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_as_defined),
        cmocka_unit_test(test_questions_do_not_meet),
        cmocka_unit_test(test_window_of_the_layer),
    };
    make_up();
    return cmocka_run_group_tests_name("eval_here", tests, NULL, NULL);
}
