// SPDX-License-Identifier: Apache-2.0
// The models of parts, against schedules worked out by hand, and what must hold for all: time does
// not run backwards, nothing is busy twice, work is conserved.
#include "sim/system.h"
#include "base/timeline.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>

static void test_timeline(void **state)
{
    (void)state;
    struct timeline t = {0};
    assert_int_equal(timeline_take(&t, 10, 5), 15);
    assert_int_equal(timeline_take(&t, 12, 3), 18); // waits for its turn
    assert_int_equal(timeline_take(&t, 30, 0), 30); // idle meanwhile
    assert_int_equal(t.busy_ns, 8);
    assert_int_equal(timeline_take(&t, 0, UINT64_MAX), UINT64_MAX);
    assert_true(t.overflowed);
    assert_int_equal(t.free_ns, 30);
    assert_int_equal(duration_ns(4096, 1.4e9), 2926); // 2925.7
    assert_int_equal(duration_ns(0, 1), 0);
    assert_int_equal(duration_ns(1e30, 1), UINT64_MAX);
}

static void test_timeline_properties(void **state)
{
    (void)state;
    struct draw draw = {.state = 7};
    struct timeline t = {0};
    uint64_t last = 0, sum = 0;
    for (int i = 0; i < 10000; i++) {
        uint64_t now = (uint64_t)(draw_unit(&draw) * 1e6), ns = (uint64_t)(draw_unit(&draw) * 200);
        uint64_t end = timeline_take(&t, now, ns);
        assert_true(end >= last + ns); // begins when the one before has ended
        assert_true(end >= now + ns);
        last = end;
        sum += ns;
    }
    assert_int_equal(t.busy_ns, sum);
    assert_true(t.busy_ns <= t.free_ns);
}

// Two flash channels, a page in 1,000 ns, one unit that takes as long for a job, softmax too.
static struct machine by_hand(void)
{
    return (struct machine){.gpu = {48e9, 768e9, .85, 154.8e12, .65, 25e9, .9},
                            .host = {96e9, 6e9},
                            .csd = {.flash_channels = 2,
                                    .channel_rate = 4.096e9,
                                    .page_bytes = 4096,
                                    .read_ns = 500,
                                    .dies_a_channel = 8,
                                    .program_rate = 1e9,
                                    .link_rate = 7e9,
                                    .capacity_bytes = 1e12,
                                    .cycles = 3000,
                                    .dram_bytes = 1e9,
                                    .kernels = 1,
                                    .gemv_units = 1,
                                    .gemv_flops = 16.384e9,
                                    .softmax_units = 1,
                                    .softmax_rate = 64e6,
                                    .filter_rate = 5e9,
                                    .argtopk_rate = 1e12,
                                    .cores = 1,
                                    .lookup_ns = 0,
                                    .staging_bytes = 16384},
                            .gpus = 1,
                            .drives = 1};
}

static double ns_of(const struct machine *m, uint32_t batch, uint32_t heads, double context)
{
    struct workload w = {
        .shape = {"", 1, heads, heads, 128, 1e6}, .batch = batch, .input = 1, .output = 1};
    struct drive_timing t;
    assert_int_equal(drive_timing(&t, m, &w, SIM_DENSE, NULL, context, NULL), 0);
    return t.seconds * 1e9;
}

// Times in microseconds. One head of 64 tokens: 4 pages of K, 2 on each channel.
//   K read 0-2, products 2-3, softmax 3-4; V read 4-6, products 6-7; and 0.5 of the array's read.
// Two heads, a staging buffer for one:
//   K0 read 0-2, products 2-3, softmax 3-4; K1 read 3-5, products 5-6, softmax 6-7;
//   V0 read 6-8, products 8-9; V1 read 9-11, products 11-12.
// The same where reads go on while the unit computes:
//   K0 0-2, 2-3, 3-4; K1 2-4, 4-5, 5-6; V0 4-6, 6-7; V1 6-8, 8-9.
static void test_dense_by_hand(void **state)
{
    (void)state;
    struct machine m = by_hand();
    assert_true(fabs(ns_of(&m, 1, 1, 64) - 7500) < 1);
    assert_true(fabs(ns_of(&m, 1, 2, 64) - 12500) < 1);
    assert_true(fabs(ns_of(&m, 2, 1, 64) - 12500) < 1);
    m.csd.overlap = 1;
    assert_true(fabs(ns_of(&m, 1, 1, 64) - 7500) < 1);
    assert_true(fabs(ns_of(&m, 2, 1, 64) - 9500) < 1);
    m.csd.overlap = 0;
    // A filter half as fast as its channel makes every page take twice as long.
    m.csd.filter_rate = 2.048e9;
    assert_true(fabs(ns_of(&m, 1, 1, 64) - 11500) < 1);
    // So does one die that takes 2,000 ns to read a page.
    m.csd.filter_rate = 5e9;
    m.csd.read_ns = 2000;
    m.csd.dies_a_channel = 1;
    assert_true(fabs(ns_of(&m, 1, 1, 64) - 13000) < 1);
    // A softmax of 3,000 ns is waited for by one head and hidden by two but for 1,000 ns:
    // K0 0-2, 2-3, 3-6; K1 3-5, 5-6, 6-9; V0 6-8, 8-9; V1 9-11, 11-12.
    m = by_hand();
    m.csd.softmax_rate = 64e6 / 3;
    assert_true(fabs(ns_of(&m, 1, 1, 64) - 9500) < 1);
    assert_true(fabs(ns_of(&m, 2, 1, 64) - 12500) < 1);
}

static void test_sparf_work(void **state)
{
    (void)state;
    struct machine m = by_hand();
    struct selection sel = {
        .channels = 1.0 / 16, .tokens = 0.125, .run = 1 / 0.875, .page_channels = 1};
    struct workload w = {.shape = {"", 1, 1, 1, 128, 1e6}, .batch = 64, .input = 1, .output = 1};
    struct drive_timing t, tail;
    // 8 channels, each in pages of its own of 2,048 tokens.
    assert_int_equal(drive_timing(&t, &m, &w, SIM_SPARF, &sel, 4096, NULL), 0);
    double share = 1 - pow(0.875, 16); // no locality
    assert_true(fabs(selection_page_share(&sel, 16) - share) < 1e-9);
    assert_true(fabs(t.channel_bytes / (64 * 2 * 8 * 4096.0) - 1) < 1e-9);
    assert_true(fabs(t.token_bytes / (64 * 2 * 256 * 4096.0 * share) - 1) < 1e-9);
    // 160 tokens more fill no channel page: they are ranked from their K pages, or in DRAM.
    assert_int_equal(drive_timing(&tail, &m, &w, SIM_SPARF, &sel, 4096 + 160, NULL), 0);
    assert_true(fabs((tail.channel_bytes - t.channel_bytes) / (64 * 10 * 4096.0) - 1) < 1e-9);
    sel.tail_in_dram = true;
    assert_int_equal(drive_timing(&tail, &m, &w, SIM_SPARF, &sel, 4096 + 160, NULL), 0);
    assert_true(tail.channel_bytes == t.channel_bytes);
    assert_true(fabs(tail.tail_bytes - 64 * 160 * 256.0) < 1);
}

struct count {
    uint32_t n, last;
    bool ascending;
};

static void count_page(void *arg, uint32_t page)
{
    struct count *c = arg;
    c->ascending &= !c->n || page > c->last;
    c->last = page;
    c->n++;
}

static void test_selection(void **state)
{
    (void)state;
    const double runs[] = {1 / 0.875, 2, 4.633, 9.3};
    for (size_t i = 0; i < 4; i++) {
        struct selection sel = {
            .channels = 0.125, .tokens = 0.125, .run = runs[i], .page_channels = 2};
        double share = selection_page_share(&sel, 16);
        assert_true(fabs(selection_run_for(0.125, 16, share) / runs[i] - 1) < 1e-9);
        struct draw draw = {.state = 3};
        struct count c = {.ascending = true}, channels = {.ascending = true};
        uint32_t total = 0;
        for (int j = 0; j < 2000; j++) {
            c.n = 0;
            selection_draw_pages(&sel, &draw, 128, 16, count_page, &c);
            total += c.n;
        }
        assert_true(c.ascending);
        assert_true(fabs(total / (2000 * 128.0) / share - 1) < 0.03);
        total = 0;
        for (int j = 0; j < 2000; j++) {
            channels.n = 0;
            selection_draw_channels(&sel, &draw, 128, count_page, &channels);
            assert_true(channels.n >= 8 && channels.n <= 16);
            total += channels.n;
        }
        assert_true(channels.ascending);
        double expected = selection_channel_share(&sel, 128);
        assert_true(fabs(expected - (1 - 112.0 * 111 / (128 * 127))) < 1e-12);
        assert_true(fabs(total / (2000 * 64.0) / expected - 1) < 0.02);
    }
}

static void test_properties(void **state)
{
    (void)state;
    struct machine m = by_hand();
    double last = 0;
    for (double context = 16; context < 1e5; context *= 1.7) {
        double now = ns_of(&m, 3, 5, context);
        assert_true(now >= last);
        last = now;
    }
    // The drive with most heads decides: 14 and 16 drives have 3 of 40 at most.
    double one = ns_of(&m, 8, 40, 640);
    m.drives = 14;
    double fourteen = ns_of(&m, 8, 40, 640);
    m.drives = 16;
    assert_true(ns_of(&m, 8, 40, 640) == fourteen);
    assert_true(fourteen > one / 14 && fourteen < one / 12);
    m.drives = 1;
    // What is not simulated is like what is: twice the pieces take twice the time, but for the
    // ends. No channel is busier than the whole lasts.
    double whole = ns_of(&m, 100, 40, 640), twice = ns_of(&m, 200, 40, 640);
    assert_true(fabs(twice / whole - 2) < 0.01);
    struct workload w = {.shape = {"", 1, 40, 40, 128, 1e6}, .batch = 100, .input = 1, .output = 1};
    struct drive_timing t;
    assert_int_equal(drive_timing(&t, &m, &w, SIM_DENSE, NULL, 640, NULL), 0);
    assert_true(t.read <= t.seconds && t.engine <= t.seconds && t.softmax <= t.seconds);
    assert_true(fabs(t.read / (t.bytes / (2 * m.csd.channel_rate)) - 1) < 1e-3);
    assert_true(fabs(t.engine / (4000 * 2 * 2 * 640 * 128.0 / m.csd.gemv_flops) - 1) < 1e-3);
    assert_true(t.seconds >= t.read + t.engine);
}

static void test_refused(void **state)
{
    (void)state;
    struct inst_msg msg = {0};
    struct machine good = by_hand(), m = good;
    assert_int_equal(machine_check(&good, &msg), 0);
    for (const struct machine_field *f = csd_fields; f->name; f++) {
        m = good;
        *machine_value(&m.csd, f) = f->max * 2;
        assert_int_equal(machine_check(&m, NULL), INST_EINVAL);
        *machine_value(&m.csd, f) = NAN;
        assert_int_equal(machine_check(&m, NULL), INST_EINVAL);
    }
    m = good;
    m.csd.kernels = 1.5;
    assert_int_equal(machine_check(&m, NULL), INST_EINVAL);
    m = good;
    m.drives = 0;
    assert_int_equal(machine_check(&m, NULL), INST_EINVAL);
    m = good;
    m.host.system_bytes = 96e9;
    assert_int_equal(machine_check(&m, &msg), INST_EINVAL);
    assert_non_null(strstr(msg.text, "system_bytes"));
    struct workload w = {.shape = {"", 1, 3, 2, 128, 1e6}, .batch = 1, .input = 1, .output = 1};
    assert_int_equal(workload_check(&w, NULL), INST_EINVAL);
    // Longer than the nanoseconds hold.
    m = good;
    m.csd.channel_rate = 1e6;
    m.csd.gemv_flops = 1e6;
    w = (struct workload){
        .shape = {"", 1, 10000, 10000, 128, 1e6}, .batch = 1 << 20, .input = 1, .output = 1};
    struct drive_timing t;
    assert_int_equal(drive_timing(&t, &m, &w, SIM_DENSE, NULL, 4096, NULL), INST_ERANGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_timeline),      cmocka_unit_test(test_timeline_properties),
        cmocka_unit_test(test_dense_by_hand), cmocka_unit_test(test_sparf_work),
        cmocka_unit_test(test_selection),     cmocka_unit_test(test_properties),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests_name("models", tests, NULL, NULL);
}
