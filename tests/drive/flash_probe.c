// SPDX-License-Identifier: Apache-2.0
// What a request costs is found out on flash whose cost is known, on a clock of the test's own; in
// bounded time, within the budget, by the NAND contract, and without a trace.
#include "flash_harness.h"

#include "tests/needs.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

// One pipe in virtual time: every request takes request_ns and its bytes. The clock moves only
// while somebody waits for it.
struct pipe_flash {
    struct flash flash;
    struct flash *inner;
    double request_ns, byte_ns;
    uint64_t busy_ns, stall_every, requests;
    uint64_t reads, programmed;
    int read_status;
    struct flash_io *first, **end;
};

static uint64_t virtual_ns;

static uint64_t virtual_clock(void)
{
    return virtual_ns;
}

static void pipe_submit(struct flash *flash, struct flash_io *list, uint64_t now_ns)
{
    struct pipe_flash *p = (struct pipe_flash *)flash;
    for (struct flash_io *io = list, *next; io; io = next) {
        next = io->next;
        io->next = NULL;
        p->inner->ops->submit(p->inner, io, now_ns);
        assert_ptr_equal(p->inner->ops->poll(p->inner, now_ns), io);
        assert_int_equal(io->status, 0);
        double bytes = (double)io->pages * flash->geometry.page_bytes;
        p->busy_ns = p->busy_ns > now_ns ? p->busy_ns : now_ns;
        p->busy_ns += (uint64_t)(p->request_ns + bytes * p->byte_ns);
        if (p->stall_every && ++p->requests % p->stall_every == 0)
            p->busy_ns += 3000000; // somebody else's work
        io->done_ns = p->busy_ns;
        if (io->op == FLASH_READ) {
            p->reads++;
            io->status = p->read_status;
        }
        p->programmed += io->op == FLASH_PROGRAM ? (uint64_t)bytes : 0;
        io->next = NULL;
        *p->end = io;
        p->end = &io->next;
    }
}

static struct flash_io *pipe_poll(struct flash *flash, uint64_t now_ns)
{
    struct pipe_flash *p = (struct pipe_flash *)flash;
    struct flash_io *io = p->first;
    if (!io || io->done_ns > now_ns)
        return NULL;
    p->first = io->next;
    if (!p->first)
        p->end = &p->first;
    io->next = NULL;
    return io;
}

static void pipe_wait(struct flash *flash, uint64_t max_ns)
{
    const struct pipe_flash *p = (const struct pipe_flash *)flash;
    assert_non_null(p->first);
    assert_true(p->first->done_ns - virtual_ns <= max_ns);
    virtual_ns = p->first->done_ns;
}

static const struct flash_ops pipe_ops = {
    .submit = pipe_submit, .poll = pipe_poll, .wait = pipe_wait};

static const struct flash_geometry geometry = {.page_bytes = 4096,
                                               .pages_per_block = 260,
                                               .blocks = 64,
                                               .dies = 1,
                                               .channels = 1,
                                               .read_bytes = 262144};

enum { PLENTY = 20 << 20 };

struct probed {
    bool known;
    uint32_t request_bytes;
    uint64_t ns, reads, programmed;
};

// Asks a flash like `like`, and looks that it is as new afterwards.
static struct probed ask(struct pipe_flash like, const struct flash_geometry *g, uint64_t memory)
{
    struct pipe_flash p = like;
    struct budget budget;
    struct probed out = {0};
    budget_init(&budget, memory);
    assert_int_equal(flash_ram_open(&p.inner, g, 0, NULL), 0);
    assert_int_equal(flash_check_open(&p.inner, p.inner, NULL), 0);
    p.flash = (struct flash){.ops = &pipe_ops, .geometry = *g};
    p.end = &p.first;
    uint64_t start = virtual_ns;
    out.known = flash_probe(&p.flash, virtual_clock, &budget, &out.request_bytes);
    out.ns = virtual_ns - start;
    out.reads = p.reads;
    out.programmed = p.programmed;
    assert_int_equal(budget.used, 0);
    assert_true(budget.peak <= memory / 4);
    assert_null(p.first);
    void *page = pages_new(g->page_bytes);
    for (uint64_t b = 0; b < g->blocks; b++)
        assert_int_equal(run_one(p.inner, FLASH_PROGRAM, b, 0, 1, page), 0);
    free(page);
    assert_int_equal(flash_check_violations(p.inner), 0);
    flash_close(p.inner);
    return out;
}

static void expect(struct pipe_flash like, const struct flash_geometry *g, double bytes)
{
    struct probed out = ask(like, g, PLENTY);
    assert_true(out.known);
    if (!(out.request_bytes > bytes * 0.98 - 16 && out.request_bytes < bytes * 1.02 + 16))
        fail_msg("a request costs %u bytes instead of %.0f", out.request_bytes, bytes);
    assert_true(out.ns < 150000000);
    assert_true(out.programmed <= g->blocks * g->page_bytes * g->pages_per_block / 4);
}

static void test_known_costs(void **state)
{
    (void)state;
    // t = 10.2 us + size / 3.5 GB/s, and one that costs three times as much.
    expect((struct pipe_flash){.request_ns = 10200, .byte_ns = 1 / 3.5}, &geometry, 35700);
    expect((struct pipe_flash){.request_ns = 45000, .byte_ns = 1 / 2.2}, &geometry, 99000);
    expect((struct pipe_flash){.request_ns = 0, .byte_ns = 1}, &geometry, 0);
    struct flash_geometry g = geometry; // blocks smaller than a large read, large pages
    g.pages_per_block = 33;
    g.blocks = 512;
    expect((struct pipe_flash){.request_ns = 10200, .byte_ns = 1 / 3.5}, &g, 35700);
    g = geometry;
    g.page_bytes = 16384;
    expect((struct pipe_flash){.request_ns = 10200, .byte_ns = 1 / 3.5}, &g, 35700);
    // Now and then the device is somebody else's.
    expect((struct pipe_flash){.request_ns = 10200, .byte_ns = 1 / 3.5, .stall_every = 90},
           &geometry, 35700);
}

static void test_slow(void **state)
{
    (void)state;
    // A disk that turns: what can be learnt in the time is that nothing costs more.
    struct probed out =
        ask((struct pipe_flash){.request_ns = 4e6, .byte_ns = 1 / 0.2}, &geometry, PLENTY);
    assert_true(out.known);
    assert_int_equal(out.request_bytes, FLASH_REQUEST_MAX);
    assert_true(out.ns < 200000000);
    // So slow that not even the writing ends.
    out = ask((struct pipe_flash){.request_ns = 10e6, .byte_ns = 1 / 0.01}, &geometry, PLENTY);
    assert_false(out.known);
    assert_true(out.reads == 0 && out.ns < 400000000);
}

static void test_unknown(void **state)
{
    (void)state;
    const struct pipe_flash disk = {.request_ns = 10200, .byte_ns = 1 / 3.5};
    struct flash_geometry small = geometry;
    small.blocks = 4;
    struct probed out = ask(disk, &small, PLENTY);
    assert_true(!out.known && !out.programmed);
    small = geometry;
    small.page_bytes = 65536;
    out = ask(disk, &small, PLENTY);
    assert_true(!out.known && !out.programmed);
    out = ask(disk, &geometry, 15 << 20); // memory is short
    assert_true(!out.known && !out.programmed);
    struct pipe_flash bad = disk;
    bad.read_status = INST_EIO;
    out = ask(bad, &geometry, PLENTY);
    assert_true(!out.known && out.programmed);
}

static struct flash *file_open(uint64_t (*clock)(void), uint32_t request_bytes, bool no_direct)
{
    struct flash *flash = NULL;
    struct flash_file_options options = {.directory = work_directory(),
                                         .geometry = geometry,
                                         .clock_ns = clock,
                                         .no_direct = no_direct};
    options.geometry.request_bytes = request_bytes;
    assert_int_equal(flash_file_open(&flash, &options, NULL), 0);
    struct stat st;
    assert_int_equal(fstat(flash_file_descriptor(flash), &st), 0);
    assert_true(st.st_blocks * 512 < 1 << 20);
    return flash;
}

// A file is asked only where that is wished, and only where the answer would be the disk's.
static void test_file(void **state)
{
    (void)state;
    struct flash *flash = file_open(NULL, 0, false);
    assert_int_equal(flash->geometry.request_bytes, 0);
    flash_close(flash);
    flash = file_open(clock_ns, 12345, false);
    assert_int_equal(flash->geometry.request_bytes, 12345);
    assert_null(strstr(flash->path, "request"));
    flash_close(flash);
    flash = file_open(clock_ns, 0, true);
    assert_int_equal(flash->geometry.request_bytes, FLASH_REQUEST_FILE);
    assert_non_null(strstr(flash->path, ", a request costs perhaps 32 KiB"));
    flash_close(flash);
    flash = file_open(clock_ns, 0, false);
    bool direct = strstr(flash->path, "O_DIRECT, a request costs ") != NULL;
    assert_true(flash->geometry.request_bytes <= FLASH_REQUEST_MAX);
    print_message("%s\n", flash->path);
    flash_close(flash);
    if (!direct)
        leave_out("what a request to this disk costs: direct I/O is refused");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_costs),
        cmocka_unit_test(test_slow),
        cmocka_unit_test(test_unknown),
        cmocka_unit_test(test_file),
    };
    return cmocka_run_group_tests_name("flash_probe", tests, NULL, NULL);
}
