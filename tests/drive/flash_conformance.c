// SPDX-License-Identifier: Apache-2.0
// One set of tests for every back end and every fallback: what is programmed is read back, in any
// mixture, list length and order, OOB with it where there is any; what breaks the NAND contract is
// refused and changes nothing.
#include "flash_harness.h"
#include "tests/more.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct flash_geometry small_pages = {.page_bytes = 512,
                                                  .pages_per_block = 24,
                                                  .blocks = 12,
                                                  .dies = 3,
                                                  .channels = 2,
                                                  .read_bytes = 4096};
static const struct flash_geometry middle_pages = {.page_bytes = 4096,
                                                   .pages_per_block = 16,
                                                   .blocks = 32,
                                                   .dies = 4,
                                                   .channels = 4,
                                                   .read_bytes = 32768};
static const struct flash_geometry large_pages = {.page_bytes = 65536,
                                                  .pages_per_block = 8,
                                                  .blocks = 8,
                                                  .dies = 1,
                                                  .channels = 1,
                                                  .read_bytes = 131072};

// A seed that has it: programmed without OOB, which then is zero.
#define BARE (UINT64_C(1) << 63)

// What a flash must hold: the reference beside it.
struct model {
    const struct flash_geometry *geometry;
    uint64_t *seeds;  // (blocks, pages_per_block): content of a programmed page
    uint32_t *filled; // (blocks)
    uint64_t version;
};

static void model_init(struct model *model, const struct flash_geometry *geometry)
{
    model->geometry = geometry;
    model->seeds = calloc(geometry->blocks * geometry->pages_per_block, sizeof *model->seeds);
    model->filled = calloc(geometry->blocks, sizeof *model->filled);
    model->version = 1;
    assert_true(model->seeds && model->filled);
}

static void model_free(struct model *model)
{
    free(model->seeds);
    free(model->filled);
}

struct step {
    int expected;
    uint64_t seeds[32]; // of the pages that a read must find
};

// A random operation that the model allows, or (one in sixteen) breaks.
static void random_step(struct model *model, uint64_t *random, struct flash_io *io,
                        struct step *step, unsigned char *data, unsigned char *oob)
{
    const struct flash_geometry *g = model->geometry;
    uint64_t block = random_next(random) % g->blocks;
    uint32_t filled = model->filled[block], kind = (uint32_t)(random_next(random) % 64);
    *io = (struct flash_io){.op = FLASH_SYNC, .block = block, .data = data, .oob = oob};
    step->expected = 0;
    if (kind < 2) {
        io->op = FLASH_ERASE;
        model->filled[block] = 0;
    } else if (kind < 6) { // violations
        step->expected = INST_EINVAL;
        io->op = kind < 4 ? FLASH_READ : FLASH_PROGRAM;
        io->pages = 1;
        io->page = filled; // not yet programmed
        if (kind == 3)
            io->page = 0, io->pages = filled + 1;
        if (kind == 4)
            io->page = filled ? filled - 1 : 1; // again, or skipping one
        if (kind == 5)
            io->pages = g->pages_per_block - filled + 1;
    } else if (kind == 6) {
        return;
    } else if (filled && (kind < 44 || filled == g->pages_per_block)) {
        io->op = FLASH_READ;
        io->page = (uint32_t)(random_next(random) % filled);
        io->pages = 1 + (uint32_t)(random_next(random) % (filled - io->page));
        memcpy(step->seeds, &model->seeds[block * g->pages_per_block + io->page],
               io->pages * sizeof *step->seeds);
    } else {
        io->op = FLASH_PROGRAM;
        io->page = filled;
        io->pages = 1 + (uint32_t)(random_next(random) % (g->pages_per_block - filled));
        uint64_t bare = random_next(random) % 4 ? 0 : BARE;
        if (bare)
            io->oob = NULL;
        for (uint32_t i = 0; i < io->pages; i++) {
            uint64_t seed = model->version++ | bare;
            model->seeds[block * g->pages_per_block + filled + i] = seed;
            page_fill(data + (uint64_t)i * g->page_bytes, g->page_bytes, seed);
            page_fill(oob + (uint64_t)i * FLASH_OOB_BYTES, FLASH_OOB_BYTES, seed);
        }
        model->filled[block] += io->pages;
    }
}

static bool oob_is(const struct flash *flash, const unsigned char *oob, uint64_t seed)
{
    static const unsigned char zero[FLASH_OOB_BYTES];
    if (flash->geometry.oob && seed & BARE)
        return !memcmp(oob, zero, sizeof zero);
    if (flash->geometry.oob)
        return page_is(oob, FLASH_OOB_BYTES, seed);
    for (unsigned i = 0; i < FLASH_OOB_BYTES; i++) // nobody looked at it
        if (oob[i] != 0xee)
            return false;
    return true;
}

static void random_mixture(const struct flash_kind *kind, const struct flash_geometry *g,
                           size_t lists, size_t longest)
{
    struct flash_geometry with_oob = *g;
    with_oob.oob = true;
    struct flash *flash = kind_open(kind, &with_oob);
    assert_int_equal(flash->geometry.oob, kind->nand);
    assert_int_equal(flash->geometry.page_bytes, g->page_bytes);
    assert_int_equal(flash->geometry.no_data, kind->null);
    struct model model;
    model_init(&model, g);
    uint64_t random = 42, block_bytes = (uint64_t)g->page_bytes * g->pages_per_block, refused = 0;
    struct flash_io *ios = calloc(longest, sizeof *ios);
    struct step *steps = calloc(longest, sizeof *steps);
    unsigned char *data = pages_new((longest * block_bytes + 4095) & ~UINT64_C(4095));
    uint64_t oob_bytes = (uint64_t)FLASH_OOB_BYTES * g->pages_per_block;
    unsigned char *oob = pages_new(longest * oob_bytes);
    for (size_t l = 0; l < lists; l++) {
        memset(oob, 0xee, longest * oob_bytes);
        // Operations on one block may follow each other within a list: the order must hold.
        size_t n = 1 + random_next(&random) % longest;
        for (size_t i = 0; i < n; i++)
            random_step(&model, &random, &ios[i], &steps[i], data + i * block_bytes,
                        oob + i * oob_bytes);
        run_all(flash, ios, n);
        for (size_t i = 0; i < n; i++) {
            if (ios[i].status != steps[i].expected)
                fail_msg("%s: list %zu, operation %zu: status %d, expected %d", kind->name, l, i,
                         ios[i].status, steps[i].expected);
            refused += steps[i].expected != 0;
            if (ios[i].op != FLASH_READ || ios[i].status || kind->null)
                continue;
            for (uint32_t p = 0; p < ios[i].pages; p++)
                if (!page_is((unsigned char *)ios[i].data + (uint64_t)p * g->page_bytes,
                             g->page_bytes, steps[i].seeds[p]) ||
                    !oob_is(flash, oob + i * oob_bytes + (size_t)p * FLASH_OOB_BYTES,
                            steps[i].seeds[p]))
                    fail_msg("%s: list %zu: block %llu page %u read wrong", kind->name, l,
                             (unsigned long long)ios[i].block, ios[i].page + p);
        }
    }
    assert_true(refused > 0);
    if (kind->wrapped)
        assert_int_equal(flash_check_violations(flash), refused);
    flash_close(flash);
    free(oob);
    free(data);
    free(steps);
    free(ios);
    model_free(&model);
}

static void test_random_mixture(void **state)
{
    const struct flash_kind *kind = *state;
    random_mixture(kind, &middle_pages, 60, 300);
    random_mixture(kind, &middle_pages, 400, 4);
    random_mixture(kind, &large_pages, 25, 40);
}

static void test_small_pages(void **state)
{
    // A file system with larger sectors must fall back to buffered I/O by itself.
    struct flash_kind kind = *(const struct flash_kind *)*state;
    kind.path = NULL;
    random_mixture(&kind, &small_pages, 60, 200);
}

// Whole flash, page by page, in one list far longer than the queue: ascending (joined), descending
// and strided.
static void test_joined(void **state)
{
    const struct flash_kind *kind = *state;
    const struct flash_geometry *g = &middle_pages;
    struct flash *flash = kind_open(kind, g);
    size_t n = g->blocks * g->pages_per_block;
    struct flash_io *ios = calloc(n, sizeof *ios);
    unsigned char *data = pages_new(n * g->page_bytes);
    for (size_t i = 0; i < n; i++) {
        ios[i] = (struct flash_io){.op = FLASH_PROGRAM,
                                   .block = i / g->pages_per_block,
                                   .page = (uint32_t)(i % g->pages_per_block),
                                   .pages = 1,
                                   .data = data + i * g->page_bytes};
        page_fill(ios[i].data, g->page_bytes, i + 1);
    }
    run_all(flash, ios, n);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(ios[i].status, 0);
    assert_int_equal(run_one(flash, FLASH_SYNC, 0, 0, 0, NULL), 0);
    size_t strides[] = {1, n - 1, 37}; // all prime to n
    for (size_t s = 0; s < 3; s++) {
        memset(data, 0, n * g->page_bytes);
        for (size_t i = 0; i < n; i++) {
            size_t place = i * strides[s] % n;
            ios[i] = (struct flash_io){.op = FLASH_READ,
                                       .block = place / g->pages_per_block,
                                       .page = (uint32_t)(place % g->pages_per_block),
                                       .pages = 1,
                                       .data = data + (n - 1 - i) * g->page_bytes};
        }
        run_all(flash, ios, n);
        for (size_t i = 0; i < n && !kind->null; i++) {
            assert_int_equal(ios[i].status, 0);
            if (!page_is(ios[i].data, g->page_bytes, i * strides[s] % n + 1))
                fail_msg("%s: stride %zu: operation %zu read wrong", kind->name, strides[s], i);
        }
    }
    flash_close(flash);
    free(data);
    free(ios);
}

static void test_bad_arguments(void **state)
{
    const struct flash_geometry *g = &middle_pages;
    struct flash *flash = kind_open(*state, g);
    unsigned char *page = pages_new(g->page_bytes * 2);
    assert_int_equal(run_one(flash, FLASH_ERASE, g->blocks, 0, 0, NULL), INST_EINVAL);
    assert_int_equal(run_one(flash, FLASH_ERASE, UINT64_MAX, 0, 0, NULL), INST_EINVAL);
    assert_int_equal(run_one(flash, FLASH_PROGRAM, g->blocks, 0, 1, page), INST_EINVAL);
    assert_int_equal(run_one(flash, FLASH_PROGRAM, 0, 0, 0, page), INST_EINVAL);
    assert_int_equal(run_one(flash, FLASH_PROGRAM, 0, 0, 1, NULL), INST_EINVAL);
    assert_int_equal(run_one(flash, FLASH_PROGRAM, 0, 0, 1, page + 512), INST_EINVAL);
    assert_int_equal(run_one(flash, FLASH_PROGRAM, 0, 0, UINT32_MAX, page), INST_EINVAL);
    assert_int_equal(run_one(flash, FLASH_PROGRAM, 0, UINT32_MAX, 2, page), INST_EINVAL);
    assert_int_equal(run_one(flash, (enum flash_op)17, 0, 0, 1, page), INST_EINVAL);
    assert_int_equal(run_one(flash, FLASH_READ, 0, 0, 1, page), INST_EINVAL);
    assert_int_equal(run_one(flash, FLASH_PROGRAM, 0, 0, 2, page), 0);
    assert_int_equal(run_one(flash, FLASH_READ, 0, 1, 1, page), 0);
    assert_int_equal(run_one(flash, FLASH_READ, 0, 1, UINT32_MAX, page), INST_EINVAL);
    assert_int_equal(run_one(flash, FLASH_PROGRAM, 0, 1, 1, page), INST_EINVAL);
    assert_int_equal(run_one(flash, FLASH_ERASE, 0, 0, 0, NULL), 0);
    assert_int_equal(run_one(flash, FLASH_READ, 0, 0, 1, page), INST_EINVAL);
    assert_int_equal(run_one(flash, FLASH_PROGRAM, 0, 0, 1, page), 0);
    flash_close(flash);
    free(page);
}

static void test_wait(void **state)
{
    const struct flash_geometry *g = &middle_pages;
    struct flash *flash = kind_open(*state, g);
    unsigned char *page = pages_new(g->page_bytes);
    if (flash->ops->wait) {
        const uint64_t for_ever = UINT64_C(1000000000000000); // who is not woken hangs
        flash->ops->wait(flash, for_ever);                    // nothing in flight
        struct flash_io io = {.op = FLASH_PROGRAM, .pages = 1, .data = page};
        flash->ops->submit(flash, &io, clock_ns());
        struct flash_io *back;
        while (!(back = flash->ops->poll(flash, clock_ns())))
            flash->ops->wait(flash, for_ever); // woken by the completion
        assert_ptr_equal(back, &io);
        struct flash_io wrong = {.op = FLASH_READ, .block = g->blocks};
        flash->ops->submit(flash, &wrong, clock_ns());
        flash->ops->wait(flash, for_ever); // one waits to be polled
        assert_ptr_equal(flash->ops->poll(flash, clock_ns()), &wrong);
    }
    flash_close(flash);
    free(page);
}

// Closing with operations on their way neither hangs nor touches freed buffers afterwards.
static void test_close_in_flight(void **state)
{
    const struct flash_geometry *g = &middle_pages;
    struct flash *flash = kind_open(*state, g);
    struct flash_io ios[300];
    unsigned char *data = pages_new(g->page_bytes);
    for (size_t i = 0; i < 300; i++)
        ios[i] = (struct flash_io){.op = FLASH_PROGRAM,
                                   .block = i / g->pages_per_block,
                                   .page = (uint32_t)(i % g->pages_per_block),
                                   .pages = 1,
                                   .data = data,
                                   .next = i < 299 ? &ios[i + 1] : NULL};
    flash->ops->submit(flash, ios, clock_ns());
    flash_close(flash);
    free(data);
}

int main(void)
{
    static struct flash_kind kinds[] = {
        {.name = "null", .null = true},
        {.name = "ram", .path = "RAM"},
        {.name = "ram at a rate", .rate = 4000000000, .path = "RAM at 4000000000"},
        {.name = "wrapped ram", .wrapped = true},
        {.name = "nand", .nand = true, .path = "emulated NAND, tests, over RAM"},
        {.name = "wrapped nand", .nand = true, .wrapped = true},
        {.name = "nand, file", .nand = true, .directory = "disk"},
        {.name = "file", .directory = "disk"},
        {.name = "file, threads", .directory = "disk", .no_uring = true, .path = "pread threads"},
        {.name = "file, buffered", .directory = "disk", .no_direct = true, .path = "buffered"},
        {.name = "file, threads, buffered",
         .directory = "disk",
         .no_uring = true,
         .no_direct = true,
         .path = "pread threads (io_uring: switched off), buffered (O_DIRECT: switched off)"},
        {.name = "wrapped file", .directory = "disk", .wrapped = true},
        {.name = "tmpfs", .directory = "/dev/shm"},
        {.name = "tmpfs, threads", .directory = "/dev/shm", .no_uring = true},
        {.name = "tmpfs, buffered", .directory = "/dev/shm", .no_direct = true},
    };
    static const struct {
        const char *name;
        CMUnitTestFunction function;
    } tests[] = {{"random mixture", test_random_mixture},
                 {"small pages", test_small_pages},
                 {"joined", test_joined},
                 {"bad arguments", test_bad_arguments},
                 {"wait", test_wait},
                 {"close in flight", test_close_in_flight}};
    enum { KINDS = sizeof kinds / sizeof *kinds, TESTS = sizeof tests / sizeof *tests };
    static struct CMUnitTest units[KINDS * TESTS];
    static char names[KINDS * TESTS][80];
    for (size_t k = 0; k < KINDS; k++) {
        if (kinds[k].directory && strcmp(kinds[k].directory, "disk") == 0)
            kinds[k].directory = work_directory();
        for (size_t t = 0; t < TESTS; t++) {
            size_t u = k * TESTS + t;
            snprintf(names[u], sizeof names[u], "%s: %s", kinds[k].name, tests[t].name);
            units[u] = (struct CMUnitTest){
                .name = names[u], .test_func = tests[t].function, .initial_state = &kinds[k]};
        }
    }
#ifdef SHORT_TRANSFERS
    extern _Atomic uint64_t flash_short_cuts;
    cmocka_set_test_filter("*threads*");
    int failed = cmocka_run_group_tests_name("flash_short", units, NULL, NULL);
    return failed || flash_short_cuts < 1000;
#else
    if (THREAD_SANITIZER)
        cmocka_set_test_filter("*threads*");
    return cmocka_run_group_tests_name("flash_conformance", units, NULL, NULL);
#endif
}
