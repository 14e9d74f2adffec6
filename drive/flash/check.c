// SPDX-License-Identifier: Apache-2.0
// The check wrapper: keeps a NAND state of its own and refuses, and counts, what breaks the
// contract before the flash below sees it. After a failed erase the block counts as full: it must
// be erased again before it is programmed.
#include "drive/flash/nand.h"

#include <stdio.h>
#include <stdlib.h>

struct flash_check {
    struct flash flash;
    struct flash_ops ops;
    struct flash *inner;
    struct flash_nand nand;
    struct flash_queue refused;
    uint64_t violations;
};

static void check_submit(struct flash *flash, struct flash_io *list, uint64_t now_ns)
{
    struct flash_check *self = (struct flash_check *)flash;
    struct flash_queue allowed = {0};
    for (struct flash_io *io = list, *next; io; io = next) {
        next = io->next;
        int rc = flash_nand_accept(&self->nand, &flash->geometry, io);
        if (rc) {
            self->violations++;
            flash_queue_finish(&self->refused, io, rc, now_ns);
        } else {
            flash_queue_push(&allowed, io);
        }
    }
    if (allowed.head)
        self->inner->ops->submit(self->inner, allowed.head, now_ns);
}

static struct flash_io *check_poll(struct flash *flash, uint64_t now_ns)
{
    struct flash_check *self = (struct flash_check *)flash;
    struct flash_queue done = {0};
    struct flash_io *io;
    while ((io = flash_queue_pop(&self->refused)))
        flash_queue_push(&done, io);
    for (struct flash_io *next, *list = self->inner->ops->poll(self->inner, now_ns); list;
         list = next) {
        next = list->next;
        if (list->op == FLASH_ERASE && list->status)
            self->nand.next[list->block] = (uint16_t)flash->geometry.pages_per_block;
        flash_queue_push(&done, list);
    }
    return done.head;
}

static uint64_t check_next_ns(struct flash *flash)
{
    const struct flash_check *self = (const struct flash_check *)flash;
    if (self->refused.head)
        return 0;
    return self->inner->ops->next_ns(self->inner);
}

static void check_wait(struct flash *flash, uint64_t max_ns)
{
    struct flash_check *self = (struct flash_check *)flash;
    if (!self->refused.head)
        self->inner->ops->wait(self->inner, max_ns);
}

static const void *check_view(struct flash *flash, uint64_t block, uint32_t page)
{
    struct flash_check *self = (struct flash_check *)flash;
    if (block < flash->geometry.blocks && page < self->nand.next[block])
        return self->inner->ops->view(self->inner, block, page);
    self->violations++;
    return NULL;
}

static void check_close(struct flash *flash)
{
    struct flash_check *self = (struct flash_check *)flash;
    flash_close(self->inner);
    flash_nand_free(&self->nand);
    free(self);
}

int flash_check_open(struct flash **out, struct flash *inner, struct inst_msg *msg)
{
    struct flash_check *self = calloc(1, sizeof *self);
    if (!self)
        return inst_fail(msg, INST_ENOMEM, "check wrapper: no memory");
    int rc = flash_nand_init(&self->nand, &inner->geometry, NULL, msg);
    if (rc) {
        free(self);
        return rc;
    }
    const struct flash_ops *below = inner->ops; // has what it has of the optional entries
    self->ops = (struct flash_ops){.submit = check_submit,
                                   .poll = check_poll,
                                   .next_ns = below->next_ns ? check_next_ns : NULL,
                                   .wait = below->wait ? check_wait : NULL,
                                   .view = below->view ? check_view : NULL,
                                   .close = check_close};
    self->flash.ops = &self->ops;
    self->flash.geometry = inner->geometry;
    snprintf(self->flash.path, sizeof self->flash.path, "checked %.140s", inner->path);
    self->inner = inner;
    *out = &self->flash;
    return 0;
}

uint64_t flash_check_violations(const struct flash *wrapper)
{
    return ((const struct flash_check *)wrapper)->violations;
}
