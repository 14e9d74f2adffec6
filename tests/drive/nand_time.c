// SPDX-License-Identifier: Apache-2.0
// The timing model of NAND against schedules worked out by hand, against what must hold of any
// schedule, and against the bandwidth of random reads that other models' documented rules give.
//
// The schedules are in nanoseconds. A command takes 100, a page's transfer 1,000, tR 50,000, tPROG
// 500,000, tBERS 3,000,000, a suspension 10,000. Two flash channels of two dies of two planes: unit
// 0 is channel 0, die 0, plane 0; unit 1 the same of channel 1; 2 the second die of channel 0; 4
// the second plane of unit 0's die.
#include "drive/flash/nand_time.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

static const struct nand_params by_hand = {
    .channels = 2,
    .dies = 2,
    .planes = 2,
    .page_bytes = 4096,
    .pages_per_block = 64,
    .read_ns = 50000,
    .program_ns = 500000,
    .erase_ns = 3000000,
    .command_ns = 100,
    .bus = 4096000000,
    .registers = 2,
    .suspends = 2,
    .suspend_ns = 10000,
};

static struct nand_time *open_time(const struct nand_params *params)
{
    struct nand_time *time;
    struct inst_msg msg = {0};
    struct nand_time_options o = {.params = *params};
    if (nand_time_open(&time, &o, &msg))
        fail_msg("%s", msg.text);
    return time;
}

struct step {
    struct nand_op op;
    uint64_t at, done; // submitted, expected
};

#define READ(u, b, p, n)                                                                           \
    {                                                                                              \
        .kind = NAND_READ, .unit = u, .block = b, .page = p, .pages = n                            \
    }
#define AHEAD(u, b, p, n)                                                                          \
    {                                                                                              \
        .kind = NAND_READ, .priority = FLASH_AHEAD, .unit = u, .block = b, .page = p, .pages = n   \
    }
#define PROGRAM(u, b, p, n)                                                                        \
    {                                                                                              \
        .kind = NAND_PROGRAM, .unit = u, .block = b, .page = p, .pages = n                         \
    }
#define ERASE(u, b)                                                                                \
    {                                                                                              \
        .kind = NAND_ERASE, .unit = u, .block = b                                                  \
    }

// Steps in the order of their times; those of one time are one list.
static void check_steps(struct nand_time *time, struct step *steps, size_t n)
{
    size_t taken = 0;
    struct nand_op *op;
    for (size_t i = 0; i < n;) {
        struct nand_op *list = NULL, **end = &list;
        uint64_t at = steps[i].at;
        for (; i < n && steps[i].at == at; i++) {
            *end = &steps[i].op;
            end = &steps[i].op.next;
        }
        nand_time_submit(time, list, at);
    }
    uint64_t next, last = 0;
    while ((next = nand_time_next(time)) != UINT64_MAX) {
        for (op = nand_time_advance(time, next); op; op = op->next, taken++) {
            assert_true(op->done_ns >= last);
            last = op->done_ns;
        }
    }
    assert_int_equal(taken, n);
    for (size_t i = 0; i < n; i++)
        if (steps[i].op.done_ns != steps[i].done)
            fail_msg("step %zu: %llu, expected %llu", i, (unsigned long long)steps[i].op.done_ns,
                     (unsigned long long)steps[i].done);
    nand_time_close(time);
}

#define CHECK(params, ...)                                                                         \
    do {                                                                                           \
        struct step steps[] = __VA_ARGS__;                                                         \
        check_steps(open_time(params), steps, sizeof steps / sizeof *steps);                       \
    } while (0)

static void test_reads(void **state)
{
    (void)state;
    // Command, tR, transfer.
    CHECK(&by_hand, {{READ(0, 0, 0, 1), 0, 51100}});
    CHECK(&by_hand, {{READ(0, 0, 0, 1), 7000, 58100}});
    // Two flash channels have nothing to do with each other.
    CHECK(&by_hand, {{READ(0, 0, 0, 1), 0, 51100}, {READ(1, 0, 0, 1), 0, 51100}});
    // Two dies of a channel: the second command follows the first (100..200), its die reads to
    // 50200, the channel is taken by the first page to 51100.
    CHECK(&by_hand, {{READ(0, 0, 0, 1), 0, 51100}, {READ(2, 0, 0, 1), 0, 52100}});
    // One plane: the die is free at 50100, the next command to 50200, then the page to 51200; the
    // second is read to 100200.
    CHECK(&by_hand, {{READ(0, 0, 0, 1), 0, 51200}, {READ(0, 1, 9, 1), 0, 101200}});
    CHECK(&by_hand, {{READ(0, 0, 0, 2), 0, 101200}});
    // With one register the page goes first, to 51100: 51200, 101200, 102200.
    struct nand_params p = by_hand;
    p.registers = 1;
    CHECK(&p, {{READ(0, 0, 0, 1), 0, 51100}, {READ(0, 1, 9, 1), 0, 102200}});
    CHECK(&p, {{READ(0, 0, 0, 2), 0, 102200}});
    // Somebody waits for the third: it is second (50100..50200, 100200), although the other came
    // before it. When the first is begun nobody waits yet.
    CHECK(&by_hand, {{AHEAD(0, 0, 0, 1), 0, 51200},
                     {AHEAD(0, 0, 1, 1), 10, 151300},
                     {READ(0, 0, 2, 1), 20, 101300}});
}

static void test_planes(void **state)
{
    (void)state;
    // The same page of two planes: commands to 200, both read to 50200, pages one after the other.
    CHECK(&by_hand, {{READ(0, 3, 5, 1), 0, 51200}, {READ(4, 8, 5, 1), 0, 52200}});
    // Another page: the die reads one after the other.
    CHECK(&by_hand, {{READ(0, 3, 5, 1), 0, 51200}, {READ(4, 8, 6, 1), 0, 101200}});
    // Another class: the same.
    CHECK(&by_hand, {{AHEAD(0, 3, 5, 1), 0, 101200}, {READ(4, 8, 5, 1), 0, 51200}});
    // Programs: two commands and pages to 2200, one tPROG.
    CHECK(&by_hand, {{PROGRAM(0, 3, 0, 1), 0, 502200}, {PROGRAM(4, 8, 0, 1), 0, 502200}});
    CHECK(&by_hand, {{ERASE(0, 3), 0, 3000200}, {ERASE(4, 8), 0, 3000200}});
}

static void test_programs(void **state)
{
    (void)state;
    struct nand_params p = by_hand;
    // The second page comes (1100..2200) while the first is programmed (1100..501100).
    CHECK(&p, {{PROGRAM(0, 0, 0, 2), 0, 1001100}});
    p.registers = 1; // it comes then: 501100..502200
    CHECK(&p, {{PROGRAM(0, 0, 0, 2), 0, 1002200}});
    // Two dies of a channel: the second page follows the first one over the channel.
    CHECK(&p, {{PROGRAM(0, 0, 0, 1), 0, 501100}, {PROGRAM(2, 0, 0, 1), 0, 502200}});
    // Erase, program, read of one block, in this order: erased at 3000100; 3001200, 3501200;
    // 3501300, 3551300, 3552300. The block beside it is read meanwhile, as an erase may wait:
    // 3000100 is not yet reached, the read suspends it.
    p.suspends = p.suspend_ns = 0;
    CHECK(&p, {{ERASE(0, 0), 0, 3000100},
               {PROGRAM(0, 0, 0, 1), 0, 3501200},
               {READ(0, 0, 0, 1), 0, 3552300}});
    // With a second register its data is there (100..1200) before the erase ends.
    p.registers = 2;
    CHECK(&p, {{ERASE(0, 0), 0, 3000100},
               {PROGRAM(0, 0, 0, 1), 0, 3500100},
               {READ(0, 0, 0, 1), 0, 3551200}});
    // An erase waits for reads of its block that came before it, others do not.
    CHECK(
        &p,
        {{READ(0, 0, 0, 1), 0, 51100}, {ERASE(0, 0), 0, 3051200}, {READ(0, 0, 0, 1), 0, 3102300}});
    // A read comes before programs of other blocks, whose data may be loaded before (1100) but
    // waits: command 1100..1200, read to 51200, 52200; program 51200..551200.
    CHECK(&p, {{PROGRAM(0, 0, 0, 1), 0, 551200}, {READ(0, 1, 0, 1), 50, 52200}});
}

static void test_suspend(void **state)
{
    (void)state;
    struct nand_params p = by_hand;
    // Programmed from 1100; a read at 100000: command to 100100, where 401000 are left; suspended
    // and read to 160100, page to 161100; the program goes on 160100..561100.
    CHECK(&p, {{PROGRAM(0, 0, 0, 1), 0, 561100}, {READ(4, 1, 0, 1), 100000, 161100}});
    // Nobody waits for it: after the program, 501100..501200, 551200, 552200.
    CHECK(&p, {{PROGRAM(0, 0, 0, 1), 0, 501100}, {AHEAD(4, 1, 0, 1), 100000, 552200}});
    // A second one, of the same die, comes while the first reads: the die stays suspended. Its
    // command, 160100..160200, comes before the page; read to 210200, page to 211200. The program
    // goes on 210200..611200.
    CHECK(&p, {{PROGRAM(0, 0, 0, 1), 0, 611200},
               {READ(4, 1, 0, 1), 100000, 161200},
               {READ(4, 1, 9, 1), 120000, 211200}});
    // Not more than twice in one program: 160100 and, at 200000, 200100 + 60000 = 260100; what is
    // left (361000) goes on to 621100; the third read comes then: 621200, 671200, 672200.
    CHECK(&p, {{PROGRAM(0, 0, 0, 1), 0, 621100},
               {READ(4, 1, 0, 1), 100000, 161100},
               {READ(4, 1, 1, 1), 200000, 261100},
               {READ(4, 1, 2, 1), 300000, 672200}});
    // With 6100 left the end is nearer than the suspension.
    CHECK(&p, {{PROGRAM(0, 0, 0, 1), 0, 501100}, {READ(4, 1, 0, 1), 495000, 552200}});
    // The command arrives in the moment in which the program ends: nothing is suspended.
    p.suspend_ns = 50;
    CHECK(&p, {{PROGRAM(0, 0, 0, 1), 0, 501100}, {READ(4, 1, 0, 1), 501000, 552100}});
    p = by_hand;
    p.suspends = p.suspend_ns = 0;
    CHECK(&p, {{ERASE(0, 0), 0, 3000100}, {READ(4, 1, 0, 1), 100000, 3051200}});
    p = by_hand; // 100100: 2900000 left; 160100..3060100
    CHECK(&p, {{ERASE(0, 0), 0, 3060100}, {READ(4, 1, 0, 1), 100000, 161100}});
}

static uint32_t retry_odd(void *user, const struct nand_op *op, uint32_t page)
{
    (void)user;
    return page % 2 ? 1 + (uint32_t)op->block : 0;
}

static void test_port_and_retries(void **state)
{
    (void)state;
    struct nand_params p = by_hand;
    p.port = 2048000000; // 2000 ns a page
    CHECK(&p, {{READ(0, 0, 0, 1), 0, 53100}, {READ(1, 0, 0, 1), 0, 55100}});
    // Three times tR and three transfers: 100 + 150000 + 3000.
    struct nand_time *time;
    struct nand_time_options o = {.params = by_hand, .retries = retry_odd};
    assert_int_equal(nand_time_open(&time, &o, NULL), 0);
    struct step steps[] = {{READ(0, 1, 1, 1), 0, 153100}, {READ(1, 1, 2, 1), 0, 51100}};
    check_steps(time, steps, 2);
}

// 4096 and 1024 bytes beside them take 1,250 on the channel; the port of 1,000 takes data alone.
static void test_spare(void **state)
{
    (void)state;
    struct nand_params p = by_hand;
    p.spare_bytes = 1024;
    CHECK(&p, {{READ(0, 0, 0, 1), 0, 51350}, {READ(2, 0, 0, 1), 0, 52600}});
    CHECK(&p, {{PROGRAM(0, 3, 0, 1), 0, 501350}});
    p.port = 4096000000;
    CHECK(&p, {{READ(0, 0, 0, 1), 0, 52350}});
    struct nand_time *time = open_time(&p);
    struct nand_op op = READ(0, 0, 0, 2);
    struct nand_counters c;
    nand_time_submit(time, &op, 0);
    assert_ptr_equal(nand_time_advance(time, 1000000), &op);
    nand_time_counters(time, &c);
    assert_int_equal(c.read_bytes, 2 * (4096 + 1024));
    nand_time_close(time);
}

// A hold keeps channels from what comes, not from what is under way.
static void test_hold(void **state)
{
    (void)state;
    struct nand_time *time = open_time(&by_hand);
    struct nand_op ops[] = {READ(0, 0, 0, 1), READ(1, 0, 0, 1), PROGRAM(2, 3, 0, 1)};
    nand_time_hold(time, 40000);
    assert_true(nand_time_next(time) == UINT64_MAX); // nothing waits for it
    nand_time_submit(time, &ops[0], 30000);
    assert_int_equal(nand_time_next(time), 40000);
    // Command to 40100, tR to 90100; the channel is taken then, but for a hold, to 91100.
    assert_null(nand_time_advance(time, 90000));
    nand_time_submit(time, &ops[1], 90000); // command to 90100, tR to 140100
    nand_time_submit(time, &ops[2], 90000); // loaded to 91100: the page of the first comes after
    nand_time_hold(time, 95000);
    nand_time_hold(time, 94000); // no shorter
    assert_null(nand_time_advance(time, 95999));
    assert_ptr_equal(nand_time_advance(time, 96000), &ops[0]);
    assert_ptr_equal(nand_time_advance(time, 141100), &ops[1]);
    assert_int_equal(ops[1].done_ns, 141100);
    assert_ptr_equal(nand_time_advance(time, 10000000), &ops[2]);
    assert_int_equal(ops[2].done_ns, 591100);
    assert_true(nand_time_next(time) == UINT64_MAX);
    nand_time_close(time);
}

static void test_refused(void **state)
{
    (void)state;
    struct inst_msg msg;
    assert_int_equal(nand_params_check(&by_hand, NULL), 0);
#define REFUSED(field, value, why)                                                                 \
    do {                                                                                           \
        struct nand_params p = by_hand;                                                            \
        p.field = value;                                                                           \
        msg.text[0] = 0;                                                                           \
        assert_int_equal(nand_params_check(&p, &msg), INST_EINVAL);                                \
        assert_non_null(strstr(msg.text, why));                                                    \
    } while (0)
    REFUSED(channels, 0, "channels: 0 is not in 1 to 64");
    REFUSED(channels, 65, "channels");
    REFUSED(dies, UINT64_MAX, "dies");
    REFUSED(planes, 9, "planes");
    REFUSED(page_bytes, 4095, "page: 4095 is not a power of two");
    REFUSED(page_bytes, 256, "page");
    REFUSED(pages_per_block, 1, "pages_per_block");
    REFUSED(pages_per_block, 65536, "pages_per_block");
    REFUSED(read_ns, 0, "read");
    REFUSED(program_ns, 1000000001, "program");
    REFUSED(erase_ns, 0, "erase");
    REFUSED(bus, 0, "bus");
    REFUSED(port, 1, "port");
    REFUSED(registers, 3, "registers");
    REFUSED(suspend_ns, 500000, "suspend");
    REFUSED(suspends, 0, "suspend needs suspends");
    struct nand_params p = by_hand;
    p.page_bytes = 1 << 20;
    p.pages_per_block = 1025;
    assert_int_equal(nand_params_check(&p, NULL), INST_EINVAL);
}

// ---- what must hold of any schedule
// --------------------------------------------------------------

enum { OPS = 3000, BLOCKS = 6, RESOURCES = 64 };

struct watched {
    uint64_t end[3][RESOURCES], busy[3];
};

static void on_busy(void *user, enum nand_resource resource, uint32_t index, uint64_t start,
                    uint64_t end)
{
    struct watched *w = user;
    assert_true(index < RESOURCES);
    assert_true(start >= w->end[resource][index]); // never busy twice
    assert_true(end > start);
    w->end[resource][index] = end;
    w->busy[resource] += end - start;
}

static uint32_t retry_some(void *user, const struct nand_op *op, uint32_t page)
{
    (void)user;
    return (op->block * 31 + page * 7) % 11 == 0 ? 2 : 0;
}

static uint64_t draw(uint64_t *random)
{
    uint64_t z = *random += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

struct mixture {
    struct nand_op ops[OPS];
    uint64_t at[OPS];
    uint64_t pages[3];
};

static void draw_mixture(struct mixture *m, const struct nand_params *p, uint64_t seed)
{
    uint64_t random = seed, now = 0;
    memset(m, 0, sizeof *m);
    for (size_t i = 0; i < OPS; i++) {
        uint64_t kind = draw(&random) % 32;
        struct nand_op *op = &m->ops[i];
        *op = (struct nand_op){
            .kind = kind < 24   ? NAND_READ
                    : kind < 31 ? NAND_PROGRAM
                                : NAND_ERASE,
            .priority = (enum flash_priority)(draw(&random) % 3),
            .unit = (uint32_t)(draw(&random) % nand_units(p)),
            .block = draw(&random) % BLOCKS,
            .page = (uint32_t)(draw(&random) % 8),
            .pages = 1 + (uint32_t)(draw(&random) % 4),
        };
        m->pages[op->kind] += op->kind == NAND_ERASE ? 1 : op->pages;
        // Now and then nothing happens for a while, as a rule much comes at once.
        uint64_t pause = draw(&random) % 64;
        now += pause == 0 ? 20000000 : pause < 16 ? draw(&random) % 30000 : 0;
        m->at[i] = now;
    }
}

// Runs it, looked at at every event and, by `often`, in between.
static void run_mixture(struct nand_time *time, struct mixture *m, unsigned often)
{
    size_t taken = 0, next_op = 0;
    uint64_t now = 0, random = often;
    while (taken < OPS) {
        uint64_t next = nand_time_next(time);
        if (next < now)
            next = now;
        if (often && next != UINT64_MAX && next > now + 2)
            next = now + 1 + draw(&random) % (next - now);
        if (next_op < OPS && m->at[next_op] <= next) {
            now = m->at[next_op];
            struct nand_op *list = NULL, **end = &list;
            for (; next_op < OPS && m->at[next_op] == now; next_op++) {
                *end = &m->ops[next_op];
                end = &m->ops[next_op].next;
            }
            nand_time_submit(time, list, now);
        } else {
            assert_true(next != UINT64_MAX);
            now = next;
        }
        uint64_t last = 0;
        for (struct nand_op *op = nand_time_advance(time, now); op; op = op->next, taken++) {
            assert_true(op->done_ns <= now && op->done_ns >= last); // time goes forward
            assert_true(op->done_ns > m->at[op - m->ops]);
            last = op->done_ns;
        }
    }
    assert_true(nand_time_next(time) == UINT64_MAX);
}

// Operations on one block of a unit: what follows what.
static void check_order(const struct mixture *m)
{
    for (size_t i = 0; i < OPS; i++) {
        for (size_t j = i + 1; j < OPS; j++) {
            const struct nand_op *a = &m->ops[i], *b = &m->ops[j];
            if (a->unit != b->unit || a->block != b->block)
                continue;
            bool ordered = b->kind == NAND_ERASE || a->kind != NAND_READ;
            if (ordered && a->done_ns > b->done_ns)
                fail_msg("%zu is done before %zu", j, i);
        }
    }
}

static void check_mixture(const struct nand_params *p, uint64_t seed)
{
    static struct mixture m, again;
    static struct watched w;
    struct nand_time *time;
    struct nand_counters c;
    struct nand_time_options o = {
        .params = *p, .retries = retry_some, .watch = on_busy, .user = &w};
    memset(&w, 0, sizeof w);
    draw_mixture(&m, p, seed);
    again = m;
    assert_int_equal(nand_time_open(&time, &o, NULL), 0);
    run_mixture(time, &m, 0);
    nand_time_counters(time, &c);
    nand_time_close(time);
    check_order(&m);
    // Nothing is lost, nothing is done twice.
    assert_int_equal(c.read_pages, m.pages[NAND_READ]);
    assert_int_equal(c.program_pages, m.pages[NAND_PROGRAM]);
    assert_int_equal(c.erases, m.pages[NAND_ERASE]);
    uint64_t page_ns = (p->page_bytes * 1000000000 + p->bus - 1) / p->bus;
    assert_int_equal(c.channel_ns, w.busy[NAND_CHANNEL]);
    assert_int_equal(c.channel_ns, (c.read_pages + c.program_pages + c.erases) * p->command_ns +
                                       (c.read_pages + c.retries + c.program_pages) * page_ns);
    assert_int_equal(c.die_ns, w.busy[NAND_DIE]);
    uint64_t array = (c.read_pages + c.retries) * p->read_ns + c.program_pages * p->program_ns +
                     c.erases * p->erase_ns;
    if (p->planes == 1)
        assert_int_equal(c.die_ns, array + c.suspends * p->suspend_ns);
    else
        assert_true(c.die_ns < array && c.joined_pages);
    assert_int_equal(p->suspends != 0, c.suspends != 0);
    if (p->port)
        assert_int_equal(w.busy[NAND_PORT],
                         c.read_pages * ((p->page_bytes * 1000000000 + p->port - 1) / p->port));
    assert_true(c.busy_ns >= w.busy[NAND_CHANNEL] / p->channels);
    // The times are the same however often it is looked at.
    o.watch = NULL;
    assert_int_equal(nand_time_open(&time, &o, NULL), 0);
    run_mixture(time, &again, 1 + (unsigned)seed);
    nand_time_close(time);
    for (size_t i = 0; i < OPS; i++)
        assert_int_equal(m.ops[i].done_ns, again.ops[i].done_ns);
}

static void test_any_schedule(void **state)
{
    (void)state;
    struct nand_params p = by_hand;
    for (uint64_t seed = 1; seed <= 3; seed++) {
        p.planes = 2;
        check_mixture(&p, seed);
        p.planes = 1;
        check_mixture(&p, seed);
        p.channels = 3;
        p.dies = 5;
        p.planes = 4;
        p.port = 3000000000;
        p.bus = 1400000000;
        p.registers = 1;
        check_mixture(&p, seed);
        p.command_ns = p.suspends = p.suspend_ns = 0;
        check_mixture(&p, seed);
        p = by_hand;
    }
}

// ---- bandwidth of random reads
// -------------------------------------------------------------------

enum { READS = 20000, DEPTH_MAX = 256 };

// Pages per second with always `depth` reads outstanding, each of a unit drawn at random.
static double measured(const struct nand_params *p, uint32_t depth)
{
    static struct nand_op ops[DEPTH_MAX];
    struct nand_time *time = open_time(p);
    uint64_t random = 5, now = 0;
    size_t done = 0, begun = 0;
    for (; begun < depth; begun++) {
        ops[begun] = (struct nand_op)READ((uint32_t)(draw(&random) % nand_units(p)), 0, 0, 1);
        nand_time_submit(time, &ops[begun], 0);
    }
    while (done < READS) {
        now = nand_time_next(time);
        for (struct nand_op *next, *op = nand_time_advance(time, now); op; op = next, done++) {
            next = op->next;
            *op = (struct nand_op)READ((uint32_t)(draw(&random) % nand_units(p)), 0, 0, 1);
            nand_time_submit(time, op, now);
        }
    }
    nand_time_close(time);
    return 1e9 * (double)done / (double)now;
}

// The same by FEMU's rule, as its ftl.c has it: a read begins when its die has done all that came
// before, the die is free after tR, and the page takes the flash channel when both have it.
static double femu(const struct nand_params *p, uint32_t depth)
{
    uint64_t die[256] = {0}, channel[64] = {0}, end[DEPTH_MAX] = {0}, random = 5, now = 0;
    uint64_t page_ns = (p->page_bytes * 1000000000 + p->bus - 1) / p->bus;
    for (size_t done = 0; done < READS + depth; done++) {
        size_t slot = 0;
        for (size_t i = 1; i < depth; i++)
            slot = end[i] < end[slot] ? i : slot;
        now = end[slot];
        uint32_t u = (uint32_t)(draw(&random) % nand_units(p)), c = u % (uint32_t)p->channels;
        uint64_t start = now > die[u] ? now : die[u];
        die[u] = start + p->command_ns + p->read_ns;
        channel[c] = (channel[c] > die[u] ? channel[c] : die[u]) + page_ns;
        end[slot] = channel[c];
    }
    return 1e9 * READS / (double)now;
}

// On paper. Each read needs one of D dies, drawn at random, for a time, and that die's flash
// channel, one of C, for another. Never more can be done than one by one without waiting, N / (sum
// of the two); nor more than D dies, or C channels, that never rest (Denning and Buzen 1978). If
// the times were exponential, mean value analysis would be exact (Reiser and Lavenberg 1980); times
// that do not vary give more.
static double mean_value(double die_s, double dies, double channel_s, double channels,
                         uint32_t depth)
{
    double at_die = 0, at_channel = 0, x = 0;
    for (uint32_t n = 1; n <= depth; n++) {
        double die = die_s * (1 + at_die), channel = channel_s * (1 + at_channel);
        x = n / (die + channel);
        at_die = x * die / dies; // in each of them
        at_channel = x * channel / channels;
    }
    return x;
}

static void check_curve(const struct nand_params *p)
{
    double dies = (double)(p->channels * p->dies), channels = (double)p->channels, last = 0;
    double page_s = (double)p->page_bytes / (double)p->bus,
           command_s = 1e-9 * (double)p->command_ns;
    double die_s = 1e-9 * (double)p->read_ns + command_s, channel_s = page_s + command_s;
    for (uint32_t depth = 1; depth <= DEPTH_MAX; depth *= 2) {
        double x = measured(p, depth), f = femu(p, depth), most = depth / (die_s + page_s);
        most = most < dies / die_s ? most : dies / die_s;
        most = most < channels / channel_s ? most : channels / channel_s;
        double least = mean_value(die_s, dies, channel_s, channels, depth);
        if (x > 1.001 * most || x < 0.99 * least || x < last)
            fail_msg("depth %u: %.0f reads/s, on paper %.0f to %.0f", depth, x, least, most);
        // Its rule keeps a channel for a page whose die is still busy, from others that are ready:
        // no difference while channels are idle, and the more the deeper the queue.
        if (x / f < 0.97 || (depth <= 8 && x / f > 1.03))
            fail_msg("depth %u: %.0f reads/s, FEMU's rule gives %.0f", depth, x, f);
        last = x;
        if (depth == 1)
            assert_true(x > 0.999 * most);
        if (depth == DEPTH_MAX)
            assert_true(x > 0.94 * most);
    }
}

static void test_bandwidth(void **state)
{
    (void)state;
    struct nand_params p = {.channels = 8,
                            .dies = 4,
                            .planes = 1,
                            .page_bytes = 4096,
                            .pages_per_block = 256,
                            .read_ns = 50000,
                            .program_ns = 500000,
                            .erase_ns = 3000000,
                            .command_ns = 100,
                            .bus = 4096000000,
                            .registers = 2};
    check_curve(&p); // 32 dies are the limit
    p.bus = 409600000;
    p.dies = 16;
    check_curve(&p); // the channels are, with 10 us for a page
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads),
        cmocka_unit_test(test_planes),
        cmocka_unit_test(test_programs),
        cmocka_unit_test(test_suspend),
        cmocka_unit_test(test_port_and_retries),
        cmocka_unit_test(test_spare),
        cmocka_unit_test(test_hold),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_any_schedule),
        cmocka_unit_test(test_bandwidth),
    };
    return cmocka_run_group_tests_name("nand_time", tests, NULL, NULL);
}
