// SPDX-License-Identifier: Apache-2.0
#include "flash_harness.h"
#include "drive/flash/nand_flash.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

const char *work_directory(void)
{
    static const char *directory = INST_BINARY_DIR "/flash-test";
    (void)mkdir(directory, 0700);
    return directory;
}

// Of any geometry, faster than a device, as tests are many.
static int nand_open(struct flash **flash, const struct flash_geometry *g, const char *directory,
                     struct inst_msg *msg)
{
    uint32_t channels = g->dies % g->channels ? 1 : g->channels;
    struct flash_nand_options o = {
        .profile.time = {.channels = channels,
                         .dies = g->dies / channels,
                         .planes = 1,
                         .page_bytes = g->page_bytes,
                         .spare_bytes = g->oob ? 64 : 0,
                         .pages_per_block = g->pages_per_block,
                         .read_ns = 1000,
                         .program_ns = 3000,
                         .erase_ns = 10000,
                         .command_ns = 20,
                         .bus = 100000000000,
                         .registers = 2,
                         .suspends = 2,
                         .suspend_ns = 500},
        .payload = directory ? NAND_PAYLOAD_FILE : NAND_PAYLOAD_RAM,
        .name = "tests",
    };
    snprintf(o.directory, sizeof o.directory, "%s", directory ? directory : "");
    return flash_nand_open(flash, &o, g, NULL, msg);
}

struct flash *kind_open(const struct flash_kind *kind, const struct flash_geometry *geometry)
{
    struct inst_msg msg = {0};
    struct flash *flash = NULL;
    int rc;
    if (kind->null) {
        rc = flash_null_open(&flash, geometry, &msg);
    } else if (kind->nand) {
        rc = nand_open(&flash, geometry, kind->directory, &msg);
    } else if (!kind->directory) {
        rc = flash_ram_open(&flash, geometry, kind->rate, &msg);
    } else {
        struct flash_file_options options = {.directory = kind->directory,
                                             .geometry = *geometry,
                                             .no_uring = kind->no_uring,
                                             .no_direct = kind->no_direct};
        rc = flash_file_open(&flash, &options, &msg);
    }
    if (rc)
        fail_msg("%s: %s", kind->name, msg.text);
    if (kind->path && !strstr(flash->path, kind->path))
        fail_msg("%s: path is \"%s\"", kind->name, flash->path);
    if (kind->wrapped) {
        struct flash_fault_plan plan = {.seed = 1, .delay = 200000};
        struct flash *outer = NULL;
        assert_int_equal(flash_fault_open(&outer, flash, &plan, &msg), 0);
        flash = outer;
        assert_int_equal(flash_check_open(&outer, flash, &msg), 0);
        flash = outer;
    }
    return flash;
}

uint64_t random_next(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

void *pages_new(uint64_t bytes)
{
    void *p = NULL;
    assert_int_equal(posix_memalign(&p, 4096, bytes), 0);
    memset(p, 0xee, bytes);
    return p;
}

void page_fill(void *page, uint32_t bytes, uint64_t seed)
{
    uint64_t *words = page;
    for (uint32_t i = 0; i < bytes / 8; i++)
        words[i] = seed * UINT64_C(0x9e3779b97f4a7c15) + i;
}

bool page_is(const void *page, uint32_t bytes, uint64_t seed)
{
    const uint64_t *words = page;
    for (uint32_t i = 0; i < bytes / 8; i++)
        if (words[i] != seed * UINT64_C(0x9e3779b97f4a7c15) + i)
            return false;
    return true;
}

void run_all(struct flash *flash, struct flash_io *ios, size_t n)
{
    static int mine;
    for (size_t i = 0; i < n; i++) {
        ios[i].status = 12345;
        ios[i].owner = &mine;
        ios[i].next = i + 1 < n ? &ios[i + 1] : NULL;
    }
    flash->ops->submit(flash, ios, clock_ns());
    for (size_t back = 0; back < n;) {
        struct flash_io *list = flash->ops->poll(flash, clock_ns());
        if (!list) {
            assert_non_null(flash->ops->wait);
            flash->ops->wait(flash, 1000000000);
        }
        for (; list; list = list->next) {
            assert_true(list >= ios && list < ios + n);
            assert_ptr_equal(list->owner, &mine);
            list->owner = NULL; // comes back once only
            assert_true(list->status <= 0);
            back++;
        }
    }
    assert_null(flash->ops->poll(flash, clock_ns()));
}

int run_one(struct flash *flash, enum flash_op op, uint64_t block, uint32_t page, uint32_t pages,
            void *data)
{
    struct flash_io io = {.op = op, .block = block, .page = page, .pages = pages, .data = data};
    run_all(flash, &io, 1);
    return io.status;
}
