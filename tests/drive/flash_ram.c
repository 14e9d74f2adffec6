// SPDX-License-Identifier: Apache-2.0
// RAM back end: views, memory given back by erase, the rate in virtual time; and the geometries
// that every back end refuses.
#include "flash_harness.h"
#include "tests/needs.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const struct flash_geometry geometry = {.page_bytes = 4096,
                                               .pages_per_block = 64,
                                               .blocks = 8,
                                               .dies = 4,
                                               .channels = 2,
                                               .read_bytes = 16384};

static size_t resident_pages(const void *place, size_t pages)
{
    unsigned char in[512];
    size_t n = 0;
    assert_true(pages <= sizeof in);
    assert_int_equal(mincore((void *)(uintptr_t)place, pages * 4096, in), 0);
    for (size_t i = 0; i < pages; i++)
        n += in[i] & 1;
    return n;
}

static void test_view(void **state)
{
    (void)state;
    struct flash *flash;
    assert_int_equal(flash_ram_open(&flash, &geometry, 0, NULL), 0);
    unsigned char *data = pages_new(64 * 4096);
    for (unsigned i = 0; i < 64; i++)
        page_fill(data + i * 4096, 4096, i);
    assert_null(flash->ops->view(flash, 3, 0));
    assert_int_equal(run_one(flash, FLASH_PROGRAM, 3, 0, 63, data), 0);
    for (unsigned i = 0; i < 63; i++)
        assert_true(page_is(flash->ops->view(flash, 3, i), 4096, i));
    assert_null(flash->ops->view(flash, 3, 63));
    assert_null(flash->ops->view(flash, 8, 0));
    const void *block = flash->ops->view(flash, 3, 0);
    assert_int_equal(resident_pages(block, 64), 63);
    assert_int_equal(run_one(flash, FLASH_ERASE, 3, 0, 0, NULL), 0);
    assert_int_equal(resident_pages(block, 64), 0);
    assert_null(flash->ops->view(flash, 3, 0));
    flash_close(flash);
    free(data);
}

// A pipe of 3 bytes per ns x 1e-9: times are exact, data moves at its time, nothing is early.
static void test_rate(void **state)
{
    (void)state;
    struct flash *flash;
    assert_int_equal(flash_ram_open(&flash, &geometry, 3000000000, NULL), 0);
    assert_null(flash->ops->view);
    unsigned char *data = pages_new(8 * 4096), *back = pages_new(8 * 4096);
    page_fill(data, 4096, 7);
    struct flash_io program = {.op = FLASH_PROGRAM, .block = 1, .pages = 1, .data = data};
    struct flash_io read = {.op = FLASH_READ, .block = 1, .pages = 1, .data = back};
    struct flash_io erase = {.op = FLASH_ERASE, .block = 1};
    struct flash_io late = {.op = FLASH_READ, .block = 1, .pages = 1, .data = back};
    program.next = &read, read.next = &erase, erase.next = &late;
    uint64_t t = 1000000;
    flash->ops->submit(flash, &program, t);
    struct flash_io *done = flash->ops->poll(flash, t);
    assert_ptr_equal(done, &late); // refused at once: erased in the order of submission
    assert_int_equal(late.status, INST_EINVAL);
    assert_null(flash->ops->poll(flash, t + 4096 / 3 - 1));
    assert_ptr_equal(flash->ops->poll(flash, t + 4096 / 3), &program);
    assert_int_equal(program.done_ns, t + 4096 / 3);
    assert_false(page_is(back, 4096, 7));
    assert_null(flash->ops->poll(flash, t + 2 * 4096 / 3 - 1));
    done = flash->ops->poll(flash, t + 2 * 4096 / 3);
    assert_ptr_equal(done, &read);
    assert_ptr_equal(done->next, &erase);
    assert_true(page_is(back, 4096, 7));
    assert_int_equal(read.done_ns, t + 2 * 4096 / 3);
    assert_int_equal(erase.done_ns, t + 2 * 4096 / 3);

    // Many small operations add up without a rounding drift, and an idle pipe earns no credit.
    t = 50000000;
    assert_int_equal(run_one(flash, FLASH_SYNC, 0, 0, 0, NULL), 0); // hands in a real clock
    flash_close(flash);
    assert_int_equal(flash_ram_open(&flash, &geometry, 3000000000, NULL), 0);
    program.next = NULL;
    flash->ops->submit(flash, &program, t);
    uint64_t count = 30000, last = 0;
    assert_ptr_equal(flash->ops->poll(flash, t * 2), &program);
    for (uint64_t i = 0; i < count; i++) {
        struct flash_io io = {.op = FLASH_READ, .block = 1, .pages = 1, .data = back};
        flash->ops->submit(flash, &io, t * 2);
        assert_ptr_equal(flash->ops->poll(flash, UINT64_MAX), &io);
        last = io.done_ns;
    }
    assert_int_equal(last, t * 2 + count * 4096 / 3);
    flash_close(flash);
    free(data);
    free(back);
}

static void test_rate_wait(void **state)
{
    (void)state;
    struct flash *flash;
    assert_int_equal(flash_ram_open(&flash, &geometry, 4096 * 100, NULL), 0); // 10 ms each
    unsigned char *data = pages_new(4096);
    struct flash_io io = {.op = FLASH_PROGRAM, .pages = 1, .data = data};
    uint64_t start = clock_ns(), waits = 0;
    flash->ops->submit(flash, &io, start);
    flash->ops->wait(flash, 1000000);
    assert_true(clock_ns() - start >= 1000000);
    assert_null(flash->ops->poll(flash, start + 1000000));
    while (!flash->ops->poll(flash, clock_ns())) {
        flash->ops->wait(flash, UINT64_C(60000000000));
        waits++;
    }
    assert_true(clock_ns() - start >= 10000000);
    assert_true(waits < 10); // sleeps, does not spin
    flash_close(flash);
    free(data);
}

static void test_geometry(void **state)
{
    (void)state;
    assert_int_equal(flash_geometry_check(&geometry, NULL), 0);
#define BAD(field, value)                                                                          \
    do {                                                                                           \
        struct flash_geometry g = geometry;                                                        \
        struct inst_msg msg = {0};                                                                 \
        struct flash *flash = NULL;                                                                \
        g.field = value;                                                                           \
        assert_int_equal(flash_geometry_check(&g, &msg), INST_EINVAL);                             \
        assert_true(msg.text[0]);                                                                  \
        assert_int_equal(flash_null_open(&flash, &g, NULL), INST_EINVAL);                          \
        assert_int_equal(flash_ram_open(&flash, &g, 0, NULL), INST_EINVAL);                        \
        struct flash_file_options options = {.directory = "/dev/shm", .geometry = g};              \
        assert_int_equal(flash_file_open(&flash, &options, NULL), INST_EINVAL);                    \
        assert_null(flash);                                                                        \
    } while (0)
    BAD(page_bytes, 0);
    BAD(page_bytes, 256);
    BAD(page_bytes, 4097);
    BAD(page_bytes, 1u << 31);
    BAD(pages_per_block, 0);
    BAD(pages_per_block, 65536);
    BAD(pages_per_block, UINT32_MAX);
    BAD(blocks, 0);
    BAD(blocks, 9); // of 4 dies
    BAD(blocks, UINT64_MAX - 3);
    BAD(blocks, UINT64_C(1) << 45);
    BAD(dies, 0);
    BAD(channels, 0);
    BAD(channels, 5);
    BAD(read_bytes, 0);
#undef BAD
    struct flash *flash;
    struct flash_geometry huge = geometry; // more than this machine has: reserved lazily
    huge.blocks = UINT64_C(1) << (SANITIZED ? 19 : 22); // sanitizers need the address space
    assert_int_equal(flash_ram_open(&flash, &huge, 0, NULL), 0);
    unsigned char *page = pages_new(4096);
    assert_int_equal(run_one(flash, FLASH_PROGRAM, huge.blocks - 1, 0, 1, page), 0);
    assert_int_equal(run_one(flash, FLASH_READ, huge.blocks - 1, 0, 1, page), 0);
    flash_close(flash);
    free(page);
}

// What smaps says of the mapping that holds `place`: whether large pages were asked for.
static bool large_pages_wanted(const void *place, unsigned long *large_kib)
{
    FILE *file = fopen("/proc/self/smaps", "r");
    char line[4096];
    bool here = false, wanted = false;
    assert_non_null(file);
    while (fgets(line, sizeof line, file)) {
        unsigned long from, to, kib;
        if (sscanf(line, "%lx-%lx ", &from, &to) == 2)
            here = (uintptr_t)place >= from && (uintptr_t)place < to;
        else if (here && sscanf(line, "AnonHugePages: %lu", &kib) == 1)
            *large_kib = kib;
        else if (here && !strncmp(line, "VmFlags:", 8))
            wanted = strstr(line, " hg") != NULL;
    }
    fclose(file);
    return wanted;
}

// What is large lies on large pages, also where a block is a little more than one (its summary),
// and is still given back block by block.
static void test_large_pages(void **state)
{
    (void)state;
    enum { BLOCKS = 16, PAGES = 516 };
    struct flash_geometry large = geometry;
    large.pages_per_block = PAGES;
    large.blocks = BLOCKS;
    large.dies = large.channels = 1;
    struct flash *flash;
    assert_int_equal(flash_ram_open(&flash, &large, 0, NULL), 0);
    unsigned char *data = pages_new(PAGES * 4096);
    for (uint64_t b = 0; b < BLOCKS; b++)
        assert_int_equal(run_one(flash, FLASH_PROGRAM, b, 0, PAGES, data), 0);
    const unsigned char *first = flash->ops->view(flash, 0, 0);
    assert_int_equal((uintptr_t)first % (2 << 20), 0);
    unsigned long kib = 0;
    bool wanted = large_pages_wanted(first, &kib);
    print_message("%lu KiB of %d are on large pages\n", kib, BLOCKS * PAGES * 4);
    assert_int_equal(run_one(flash, FLASH_ERASE, 3, 0, 0, NULL), 0);
    assert_int_equal(resident_pages(first + 3 * PAGES * 4096, 512), 0);
    assert_int_equal(resident_pages(first + 4 * PAGES * 4096, 512), 512);
    assert_int_equal(resident_pages(first + 2 * PAGES * 4096, 512), 512);
    flash_close(flash);
    free(data);
    if (access("/sys/kernel/mm/transparent_hugepage/enabled", F_OK))
        leave_out("whether memory flash asks for large pages: this system has none");
    assert_true(wanted);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_view),        cmocka_unit_test(test_rate),
        cmocka_unit_test(test_rate_wait),   cmocka_unit_test(test_geometry),
        cmocka_unit_test(test_large_pages),
    };
    return cmocka_run_group_tests_name("flash_ram", tests, NULL, NULL);
}
