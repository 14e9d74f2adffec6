// SPDX-License-Identifier: Apache-2.0
// The fault wrapper: injects errors by a seeded plan that depends on nothing but the order of
// operations. What it reports as failed may or may not have happened, as on a real device: failed
// programs do go through (their pages are used up), failed erases and reads do not. Never offers
// `view`, so every read can be hit.
#include "drive/flash/nand.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum fault { FAULT_NONE, FAULT_ERROR, FAULT_SHORT, FAULT_NO_SPACE, FAULT_FLIP, FAULT_DELAY };

enum { MILLION = 1000000, DELAY_POLLS_MAX = 16, DELAY_WAIT_NS = 50000, GARBAGE = 0x5a };

// Stands for the submitter's operation below.
struct proxy {
    struct flash_io io; // must be first: handed back by the inner flash
    struct flash_io *original;
    enum fault fault;
    uint64_t draw;      // what the fault does: position of a flip, length of a delay
    unsigned delay;     // polls left
    struct proxy *next; // in `free` or `delayed`
    struct proxy *all;  // in `all`
};

struct flash_fault {
    struct flash flash;
    struct flash *inner;
    struct flash_fault_plan plan;
    uint64_t random, seen, faults;
    struct flash_queue done;
    struct proxy *free, *delayed, *all;
};

// splitmix64
static uint64_t draw(struct flash_fault *self)
{
    uint64_t z = self->random += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static bool hit(struct flash_fault *self, uint32_t chance)
{
    return draw(self) % MILLION < chance;
}

static enum fault choose(struct flash_fault *self, const struct flash_io *io)
{
    const struct flash_fault_plan *plan = &self->plan;
    // Always the same number of draws for an operation: the plan of one kind of fault does not
    // shift that of another.
    bool read = io->op == FLASH_READ, program = io->op == FLASH_PROGRAM;
    bool error = hit(self, read                    ? plan->read_error
                           : program               ? plan->program_error
                           : io->op == FLASH_ERASE ? plan->erase_error
                                                   : 0);
    bool cut = hit(self, read || program ? plan->short_transfer : 0);
    bool full = hit(self, program ? plan->no_space : 0);
    bool flip = hit(self, read ? plan->bit_flip : 0);
    bool delay = hit(self, plan->delay);
    if (self->seen++ < plan->after || (plan->count && self->faults >= plan->count))
        return FAULT_NONE;
    enum fault fault = error   ? FAULT_ERROR
                       : cut   ? FAULT_SHORT
                       : full  ? FAULT_NO_SPACE
                       : flip  ? FAULT_FLIP
                       : delay ? FAULT_DELAY
                               : FAULT_NONE;
    self->faults += fault != FAULT_NONE;
    return fault;
}

static struct proxy *proxy_new(struct flash_fault *self)
{
    struct proxy *proxy = self->free;
    if (proxy) {
        self->free = proxy->next;
    } else if ((proxy = calloc(1, sizeof *proxy))) {
        proxy->all = self->all;
        self->all = proxy;
    }
    return proxy;
}

static void fault_submit(struct flash *flash, struct flash_io *list, uint64_t now_ns)
{
    struct flash_fault *self = (struct flash_fault *)flash;
    struct flash_queue inner = {0};
    for (struct flash_io *io = list, *next; io; io = next) {
        next = io->next;
        enum fault fault = choose(self, io);
        struct proxy *proxy =
            fault == FAULT_ERROR && io->op != FLASH_PROGRAM ? NULL : proxy_new(self);
        if (!proxy) { // an error, or no memory for anything better
            flash_queue_finish(&self->done, io, INST_EIO, now_ns);
            continue;
        }
        proxy->io = *io;
        proxy->original = io;
        proxy->fault = fault;
        proxy->draw = draw(self);
        flash_queue_push(&inner, &proxy->io);
    }
    if (inner.head)
        self->inner->ops->submit(self->inner, inner.head, now_ns);
}

static void hand_back(struct flash_fault *self, struct proxy *proxy, uint64_t now_ns)
{
    struct flash_io *io = proxy->original;
    unsigned char *data = io->data;
    uint64_t bytes = flash_io_bytes(&self->flash.geometry, io), part;
    int status = proxy->io.status;
    uint64_t done_ns = proxy->io.done_ns;
    if (status == 0) {
        switch (proxy->fault) {
        case FAULT_NONE:
            break;
        case FAULT_ERROR:
            status = INST_EIO;
            break;
        case FAULT_SHORT:
            part = proxy->draw % bytes;
            if (io->op == FLASH_READ)
                memset(data + part, GARBAGE, bytes - part);
            status = INST_EIO;
            break;
        case FAULT_NO_SPACE:
            status = INST_ENOSPC;
            break;
        case FAULT_FLIP:
            part = proxy->draw % (bytes * 8);
            data[part / 8] = (unsigned char)(data[part / 8] ^ (1u << part % 8));
            break;
        case FAULT_DELAY:
            done_ns = now_ns;
            break;
        }
    }
    flash_queue_finish(&self->done, io, status, done_ns);
    proxy->next = self->free;
    self->free = proxy;
}

static struct flash_io *fault_poll(struct flash *flash, uint64_t now_ns)
{
    struct flash_fault *self = (struct flash_fault *)flash;
    for (struct proxy **link = &self->delayed; *link;) {
        struct proxy *proxy = *link;
        if (--proxy->delay) {
            link = &proxy->next;
        } else {
            *link = proxy->next;
            hand_back(self, proxy, now_ns);
        }
    }
    struct flash_io *list = self->inner->ops->poll(self->inner, now_ns);
    for (struct flash_io *io = list, *next; io; io = next) {
        struct proxy *proxy = (struct proxy *)io;
        next = io->next;
        if (proxy->fault == FAULT_DELAY) {
            proxy->delay = 1 + (unsigned)(proxy->draw % DELAY_POLLS_MAX);
            proxy->next = self->delayed;
            self->delayed = proxy;
        } else {
            hand_back(self, proxy, now_ns);
        }
    }
    return flash_queue_take(&self->done);
}

static void fault_wait(struct flash *flash, uint64_t max_ns)
{
    struct flash_fault *self = (struct flash_fault *)flash;
    if (self->done.head)
        return;
    // Delays count polls, so that the plan needs no clock: short sleeps in between.
    if (self->delayed) {
        struct timespec time = {.tv_nsec = (long)(max_ns < DELAY_WAIT_NS ? max_ns : DELAY_WAIT_NS)};
        (void)nanosleep(&time, NULL);
    } else if (self->inner->ops->wait) {
        self->inner->ops->wait(self->inner, max_ns);
    }
}

static void fault_close(struct flash *flash)
{
    struct flash_fault *self = (struct flash_fault *)flash;
    flash_close(self->inner);
    for (struct proxy *proxy = self->all, *next; proxy; proxy = next) {
        next = proxy->all;
        free(proxy);
    }
    free(self);
}

static const struct flash_ops fault_ops = {
    .submit = fault_submit,
    .poll = fault_poll,
    .wait = fault_wait,
    .close = fault_close,
};

int flash_fault_open(struct flash **out, struct flash *inner, const struct flash_fault_plan *plan,
                     struct inst_msg *msg)
{
    struct flash_fault *self = calloc(1, sizeof *self);
    if (!self)
        return inst_fail(msg, INST_ENOMEM, "fault wrapper: no memory");
    self->flash.ops = &fault_ops;
    self->flash.geometry = inner->geometry;
    snprintf(self->flash.path, sizeof self->flash.path, "faults over %.140s", inner->path);
    self->inner = inner;
    self->plan = *plan;
    self->random = plan->seed;
    *out = &self->flash;
    return 0;
}

uint64_t flash_fault_count(const struct flash *wrapper)
{
    return ((const struct flash_fault *)wrapper)->faults;
}
