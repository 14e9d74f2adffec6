// SPDX-License-Identifier: Apache-2.0
// The real drive in virtual time beside the model of one: the same bytes, and times that agree
// where both overlap reads and products.
#include "bench/clusters.h"
#include "sim/constants.h"
#include "sim/drive_real.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

static uint64_t mix(uint64_t z)
{
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

// fp16 in [1, 2): K and V without locality.
static uint16_t half_of(uint64_t seed)
{
    return (uint16_t)(0x3c00 | (mix(seed) & 0x3ff));
}

static void kv(void *user, uint32_t sequence, uint32_t head, uint64_t pos, uint64_t n, uint16_t *k,
               uint16_t *v)
{
    (void)user;
    uint64_t seed = ((uint64_t)sequence << 40 | (uint64_t)head << 32) + (pos << 8);
    for (uint64_t i = 0; i < n * 128; i++) {
        k[i] = half_of(2 * (seed + i));
        v[i] = half_of(2 * (seed + i) + 1);
    }
}

static void query(void *user, uint32_t sequence, uint32_t head, uint64_t pos, uint32_t group,
                  float *q)
{
    (void)user;
    for (uint32_t i = 0; i < group * 128; i++)
        q[i] = (float)(mix(sequence * 977 + head * 131 + pos + i) & 0xff) / 256 - 0.5f;
}

struct pair {
    struct drive_timing model, real;
    struct drive_real_report report;
    double tail; // bytes that are in group buffers, not on flash
};

static void run_both(struct pair *p, enum method_kind method, uint32_t heads, uint32_t kv_heads,
                     uint32_t batch, double context, const struct drive_content *content,
                     double run)
{
    struct machine m = {.gpus = 1, .drives = 1};
    struct inst_msg msg = {0};
    if (machine_load(&m, "a6000", "xeon-5320", "instcsd-zynq7045", &msg))
        fail_msg("%s", msg.text);
    m.csd.overlap = 1; // as our drive works
    struct workload w = {
        .shape = {"", 1, heads, kv_heads, 128, 1e9}, .batch = batch, .input = 1, .output = 1};
    struct selection sel = {.channels = 0.125, .tokens = 0.125, .run = run, .page_channels = 8};
    const struct drive_real_options o = {
        .profile = "instcsd-zynq7045", .sequences = 4, .content = *content};
    int err = drive_timing(&p->model, &m, &w, method, &sel, context, &msg);
    err = err ? err : drive_real_run(&p->real, &p->report, &o, &m, &w, method, &sel, context, &msg);
    if (err)
        fail_msg("%s", msg.text);
    p->tail = batch * kv_heads * 16 * 512.0; // at most the last group of every head
    print_message("method %d, %u/%u heads, %u x %g tokens: model %.3f ms, real %.3f ms\n", method,
                  heads, kv_heads, batch, context, 1e3 * p->model.seconds, 1e3 * p->real.seconds);
}

static const struct drive_content plain = {kv, query, NULL};

static void test_times(void **state)
{
    (void)state;
    // The same times but for a read's latency and what an odd number of rows does to the dies.
    static const struct {
        enum method_kind method;
        uint32_t heads, kv_heads, batch;
        double context, least, most;
    } cases[] = {{SIM_DENSE, 8, 8, 4, 512, 0.85, 1.25},
                 {SIM_DENSE, 32, 8, 4, 1024, 0.85, 1.25},
                 {SIM_DENSE, 40, 40, 4, 512, 0.85, 1.4},
                 // A row has 80 pages here: single pages of many heads have to be under way.
                 {SIM_SPARF, 40, 40, 4, 512, 0.85, 3.5}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct pair p;
        run_both(&p, cases[i].method, cases[i].heads, cases[i].kv_heads, cases[i].batch,
                 cases[i].context, &plain, 1 / 0.875);
        double ratio = p.real.seconds / p.model.seconds;
        if (!(ratio >= cases[i].least && ratio <= cases[i].most))
            fail_msg("the real drive takes %.3f of the model's time", ratio);
        if (cases[i].method != SIM_DENSE)
            continue;
        assert_true(p.real.bytes <= p.model.bytes && p.real.bytes >= p.model.bytes - p.tail);
        assert_true(p.report.programmed <= 1.01 && p.report.programmed > 0.95);
    }
}

// SparF and pages read what the model says.
static void test_selections(void **state)
{
    (void)state;
    struct pair p;
    run_both(&p, SIM_SPARF, 8, 8, 4, 1024, &plain, 1 / 0.875);
    assert_true(fabs(p.real.channel_bytes / p.model.channel_bytes - 1) < 0.05);
    assert_true(fabs(p.real.token_bytes / p.model.token_bytes - 1) < 0.05);
    assert_true(p.report.programmed > 1.4 && p.report.programmed < 1.52);
    run_both(&p, SIM_PAGES, 8, 8, 4, 1024, &plain, 8 / 7.0);
    assert_true(fabs(p.real.bytes / p.model.bytes - 1) < 0.15);
}

// The run length that the evaluation assumes is what the drive's own SparF chooses on K and V as
// bench drive has them.
static void test_locality(void **state)
{
    (void)state;
    struct drive_content content = {clusters_content_kv, clusters_content_query, NULL};
    struct constants c;
    struct pair p;
    constants_default(&c);
    assert_int_equal(
        clusters_new((struct clusters **)&content.user, &clusters_usual, 4, 1, 16, 128, 1536, NULL),
        0);
    run_both(&p, SIM_SPARF, 16, 16, 4, 1536, &content, c.run);
    clusters_free(content.user);
    double ratio = p.real.token_bytes / p.model.token_bytes;
    if (fabs(ratio - 1) > 0.06)
        fail_msg("%.3f of the pages that a run of %g gives", ratio, c.run);
    assert_true(fabs(p.real.channel_bytes / p.model.channel_bytes - 1) < 0.05);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_times),
        cmocka_unit_test(test_selections),
        cmocka_unit_test(test_locality),
    };
    return cmocka_run_group_tests_name("real", tests, NULL, NULL);
}
