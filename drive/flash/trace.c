// SPDX-License-Identifier: Apache-2.0
// The trace wrapper: tells of every operation when it is handed over, and changes nothing. It
// offers no `view`, so that nothing is read without being told.
#include "drive/flash/nand.h"

#include <stdio.h>
#include <stdlib.h>

struct flash_trace {
    struct flash flash;
    struct flash_ops ops;
    struct flash *inner;
    flash_trace_fn *fn;
    void *user;
};

static void trace_submit(struct flash *flash, struct flash_io *list, uint64_t now_ns)
{
    struct flash_trace *self = (struct flash_trace *)flash;
    for (const struct flash_io *io = list; io; io = io->next)
        self->fn(self->user, io, now_ns);
    self->inner->ops->submit(self->inner, list, now_ns);
}

static struct flash_io *trace_poll(struct flash *flash, uint64_t now_ns)
{
    struct flash_trace *self = (struct flash_trace *)flash;
    return self->inner->ops->poll(self->inner, now_ns);
}

static uint64_t trace_next_ns(struct flash *flash)
{
    struct flash_trace *self = (struct flash_trace *)flash;
    return self->inner->ops->next_ns(self->inner);
}

static void trace_wait(struct flash *flash, uint64_t max_ns)
{
    struct flash_trace *self = (struct flash_trace *)flash;
    self->inner->ops->wait(self->inner, max_ns);
}

static void trace_close(struct flash *flash)
{
    flash_close(((struct flash_trace *)flash)->inner);
    free(flash);
}

int flash_trace_open(struct flash **out, struct flash *inner, flash_trace_fn *fn, void *user,
                     struct inst_msg *msg)
{
    struct flash_trace *self = calloc(1, sizeof *self);
    if (!self)
        return inst_fail(msg, INST_ENOMEM, "flash trace: no memory");
    const struct flash_ops *below = inner->ops; // has what it has of the optional entries
    self->ops = (struct flash_ops){.submit = trace_submit,
                                   .poll = trace_poll,
                                   .next_ns = below->next_ns ? trace_next_ns : NULL,
                                   .wait = below->wait ? trace_wait : NULL,
                                   .close = trace_close};
    self->flash = *inner;
    self->flash.ops = &self->ops;
    self->inner = inner;
    self->fn = fn;
    self->user = user;
    *out = &self->flash;
    return 0;
}
