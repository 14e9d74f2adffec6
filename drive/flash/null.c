// SPDX-License-Identifier: Apache-2.0
// The null back end: keeps the NAND state and moves no data, so that what remains is our own
// overhead. Read buffers are left as they are.
#include "drive/flash/nand.h"

#include <stdlib.h>

struct flash_null {
    struct flash flash;
    struct flash_nand nand;
    struct flash_queue done;
};

static void null_submit(struct flash *flash, struct flash_io *list, uint64_t now_ns)
{
    struct flash_null *self = (struct flash_null *)flash;
    for (struct flash_io *io = list, *next; io; io = next) {
        next = io->next;
        flash_queue_finish(&self->done, io, flash_nand_accept(&self->nand, &flash->geometry, io),
                           now_ns);
    }
}

static struct flash_io *null_poll(struct flash *flash, uint64_t now_ns)
{
    (void)now_ns;
    return flash_queue_take(&((struct flash_null *)flash)->done);
}

static uint64_t null_next_ns(struct flash *flash)
{
    return ((struct flash_null *)flash)->done.head ? 0 : UINT64_MAX;
}

static void null_close(struct flash *flash)
{
    struct flash_null *self = (struct flash_null *)flash;
    flash_nand_free(&self->nand);
    free(self);
}

static const struct flash_ops null_ops = {
    .submit = null_submit,
    .poll = null_poll,
    .next_ns = null_next_ns,
    .close = null_close,
};

int flash_null_open(struct flash **out, const struct flash_geometry *geometry, struct inst_msg *msg)
{
    int rc = flash_geometry_check(geometry, msg);
    if (rc)
        return rc;
    struct flash_null *self = calloc(1, sizeof *self);
    if (!self)
        return inst_fail(msg, INST_ENOMEM, "null flash: no memory");
    rc = flash_nand_init(&self->nand, geometry, NULL, msg);
    if (rc) {
        free(self);
        return rc;
    }
    self->flash = (struct flash){.ops = &null_ops, .geometry = *geometry, .path = "null (no data)"};
    self->flash.geometry.no_data = true;
    self->flash.geometry.oob = false;
    *out = &self->flash;
    return 0;
}
