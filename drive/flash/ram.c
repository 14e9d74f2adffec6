// SPDX-License-Identifier: Apache-2.0
// The RAM back end: one lazily populated mapping of the whole geometry, on large pages where it is
// large; erased blocks go back to the system. Without a rate every operation takes effect inside
// submit and pages can be viewed in place. With a rate it behaves as one pipe of that many bytes
// per second: reads and programs pass through it one after another, and each takes effect (data
// included) when it is polled at or after its time.
#include "drive/flash/nand.h"
#include "base/checked.h"
#include "base/mapping.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define NS_PER_S UINT64_C(1000000000)
enum {
    SYSTEM_PAGE = 4096,
};

struct flash_ram {
    struct flash flash;
    struct flash_nand nand;
    unsigned char *memory; // (blocks, pages_per_block, page_bytes), from a large page on
    struct mapping mapping;
    uint64_t rate;            // bytes per second, 0 = unlimited
    uint64_t busy_until_ns;   // when the pipe has done all that was accepted
    uint64_t rest;            // busy_until's fraction of a nanosecond, in 1/rate
    uint64_t now_ns;          // the last time handed in
    struct flash_queue queue; // accepted, in order of done_ns
    struct flash_queue done;
};

static void ram_apply(struct flash_ram *self, const struct flash_io *io)
{
    const struct flash_geometry *g = &self->flash.geometry;
    unsigned char *place = self->memory + flash_io_offset(g, io);
    uint64_t bytes = flash_io_bytes(g, io);
    if (io->op == FLASH_READ) {
        memcpy(io->data, place, bytes);
    } else if (io->op == FLASH_PROGRAM) {
        memcpy(place, io->data, bytes);
    } else if (io->op == FLASH_ERASE) {
        uint64_t block = flash_block_bytes(g);
        // Blocks smaller than a page of the system stay populated until close.
        if (block % SYSTEM_PAGE == 0)
            (void)madvise(self->memory + io->block * block, block, MADV_DONTNEED);
    }
}

// Time at which the pipe has moved the bytes of this operation too.
static uint64_t ram_schedule(struct flash_ram *self, const struct flash_io *io, uint64_t now_ns)
{
    if (self->busy_until_ns < now_ns) {
        self->busy_until_ns = now_ns;
        self->rest = 0;
    }
    if (io->op == FLASH_READ || io->op == FLASH_PROGRAM) {
        // The remainder is carried on: rounding each of many small reads would bend the rate.
        unsigned __int128 ns =
            (unsigned __int128)flash_io_bytes(&self->flash.geometry, io) * NS_PER_S + self->rest;
        self->busy_until_ns += (uint64_t)(ns / self->rate);
        self->rest = (uint64_t)(ns % self->rate);
    }
    return self->busy_until_ns;
}

static void ram_submit(struct flash *flash, struct flash_io *list, uint64_t now_ns)
{
    struct flash_ram *self = (struct flash_ram *)flash;
    self->now_ns = now_ns;
    for (struct flash_io *io = list, *next; io; io = next) {
        next = io->next;
        int rc = flash_nand_accept(&self->nand, &flash->geometry, io);
        if (rc) {
            flash_queue_finish(&self->done, io, rc, now_ns);
        } else if (self->rate) {
            flash_queue_finish(&self->queue, io, 0, ram_schedule(self, io, now_ns));
        } else {
            if (io->op != FLASH_SYNC)
                ram_apply(self, io);
            flash_queue_finish(&self->done, io, 0, now_ns);
        }
    }
}

static struct flash_io *ram_poll(struct flash *flash, uint64_t now_ns)
{
    struct flash_ram *self = (struct flash_ram *)flash;
    self->now_ns = now_ns;
    while (self->queue.head && self->queue.head->done_ns <= now_ns) {
        struct flash_io *io = flash_queue_pop(&self->queue);
        if (io->op != FLASH_SYNC)
            ram_apply(self, io);
        flash_queue_push(&self->done, io);
    }
    return flash_queue_take(&self->done);
}

static uint64_t ram_next_ns(struct flash *flash)
{
    const struct flash_ram *self = (const struct flash_ram *)flash;
    if (self->done.head)
        return 0;
    return self->queue.head ? self->queue.head->done_ns : UINT64_MAX;
}

static void ram_wait(struct flash *flash, uint64_t max_ns)
{
    struct flash_ram *self = (struct flash_ram *)flash;
    if (self->done.head || !self->queue.head || self->queue.head->done_ns <= self->now_ns)
        return;
    uint64_t ns = min_u64(max_ns, self->queue.head->done_ns - self->now_ns);
    struct timespec time = {.tv_sec = (time_t)(ns / NS_PER_S), .tv_nsec = (long)(ns % NS_PER_S)};
    // A signal ends the sleep early; the caller polls and comes back.
    (void)clock_nanosleep(CLOCK_MONOTONIC, 0, &time, NULL);
}

static const void *ram_view(struct flash *flash, uint64_t block, uint32_t page)
{
    struct flash_ram *self = (struct flash_ram *)flash;
    const struct flash_geometry *g = &flash->geometry;
    if (block >= g->blocks || page >= self->nand.next[block])
        return NULL;
    return self->memory + block * flash_block_bytes(g) + (uint64_t)page * g->page_bytes;
}

static void ram_close(struct flash *flash)
{
    struct flash_ram *self = (struct flash_ram *)flash;
    mapping_close(&self->mapping);
    if (self->nand.next)
        flash_nand_free(&self->nand);
    free(self);
}

static const struct flash_ops ram_ops = {
    .submit = ram_submit,
    .poll = ram_poll,
    .next_ns = ram_next_ns,
    .view = ram_view,
    .close = ram_close,
};

static const struct flash_ops ram_rate_ops = {
    .submit = ram_submit,
    .poll = ram_poll,
    .next_ns = ram_next_ns,
    .wait = ram_wait,
    .close = ram_close,
};

// Large pages spare the scan of attention its TLB misses. They are asked for where what is erased
// together, the blocks of all dies, is no smaller than one; an erase cuts up those at its ends.
static int map_memory(struct flash_ram *self, struct inst_msg *msg)
{
    const struct flash_geometry *g = &self->flash.geometry;
    uint64_t bytes = g->blocks * flash_block_bytes(g);
    bool large = bytes >= HUGE_PAGES_LEAST && g->dies * flash_block_bytes(g) >= HUGE_PAGE;
    if (!mapping_open(&self->mapping, bytes, large))
        return inst_fail(msg, INST_ENOMEM, "RAM flash: the system refused %llu bytes",
                         (unsigned long long)bytes);
    self->memory = self->mapping.data;
    return 0;
}

int flash_ram_open(struct flash **out, const struct flash_geometry *geometry, uint64_t bytes_per_s,
                   struct inst_msg *msg)
{
    int rc = flash_geometry_check(geometry, msg);
    if (rc)
        return rc;
    struct flash_ram *self = calloc(1, sizeof *self);
    if (!self)
        return inst_fail(msg, INST_ENOMEM, "RAM flash: no memory");
    self->flash.ops = bytes_per_s ? &ram_rate_ops : &ram_ops;
    self->flash.geometry = *geometry;
    self->flash.geometry.no_data = false;
    self->flash.geometry.oob = false;
    self->rate = bytes_per_s;
    rc = map_memory(self, msg);
    if (rc)
        goto fail;
    rc = flash_nand_init(&self->nand, geometry, NULL, msg);
    if (rc)
        goto fail;
    if (bytes_per_s)
        snprintf(self->flash.path, sizeof self->flash.path, "RAM at %llu bytes/s",
                 (unsigned long long)bytes_per_s);
    else
        snprintf(self->flash.path, sizeof self->flash.path, "RAM");
    *out = &self->flash;
    return 0;
fail:
    ram_close(&self->flash);
    return rc;
}
