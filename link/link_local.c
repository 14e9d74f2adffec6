// SPDX-License-Identifier: Apache-2.0
// The in-process link: commands go straight into a drive of this process, and the drive's work is
// done inside poll, on the caller's thread and the pool that the drive was given. This is the only
// place that reads a clock for the drive, or keeps one.
#include "base/clock.h"
#include "drive/drive.h"
#include "link/link.h"

#include <stdlib.h>
#include <time.h>

enum { OWNER = 1 }; // the drive's only connection

struct link_local {
    struct link link;
    struct drive *drive;
    struct flash *flash;
    uint64_t virtual_ns; // the time, 0: it is the real one
};

static uint64_t now_of(const struct link_local *local)
{
    return local->virtual_ns ? local->virtual_ns : clock_ns();
}

static int local_submit(struct link *link, const struct command *command, const void *table,
                        void *data)
{
    struct link_local *local = (struct link_local *)link;
    uint8_t entry[COMMAND_BYTES];
    command_encode(entry, command);
    return drive_submit(local->drive, OWNER, entry, table, command_table_bytes(command), data,
                        now_of(local));
}

static void sleep_ns(uint64_t ns)
{
    struct timespec t = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
    nanosleep(&t, NULL);
}

enum { SLICE_NS = 10 * 1000 * 1000, NAP_NS = 50 * 1000 };

// What makes the drive runnable again: virtual time goes on to the next event; where none is to
// come, or what is waited for happens outside of it (a file below the model), real time passes.
static void go_on(struct link_local *local)
{
    uint64_t next = drive_next_ns(local->drive);
    if (next != UINT64_MAX && next > local->virtual_ns) {
        local->virtual_ns = next;
        return;
    }
    if (next != UINT64_MAX && local->flash->ops->wait) {
        local->flash->ops->wait(local->flash, NAP_NS);
        return;
    }
    sleep_ns(NAP_NS);
    local->virtual_ns += NAP_NS; // limits of the drive's own come to their end
}

static size_t virtual_poll(struct link_local *local, struct completion *out, size_t max,
                           uint64_t max_wait_ns)
{
    uint64_t end = max_wait_ns ? clock_ns() + max_wait_ns : 0;
    for (;;) {
        size_t n = drive_step(local->drive, local->virtual_ns, out, max);
        if (n || !max_wait_ns)
            return n;
        if (!drive_runnable(local->drive))
            go_on(local);
        if (clock_ns() >= end)
            return 0;
    }
}

static size_t local_poll(struct link *link, struct completion *out, size_t max,
                         uint64_t max_wait_ns)
{
    struct link_local *local = (struct link_local *)link;
    if (local->virtual_ns)
        return virtual_poll(local, out, max, max_wait_ns);
    // A slice bounds every sleep, so that timeouts inside the drive are noticed.
    uint64_t now = clock_ns(), end = now + max_wait_ns;
    for (;;) {
        size_t n = drive_step(local->drive, now, out, max);
        if (n || !max_wait_ns)
            return n;
        now = clock_ns();
        if (now >= end)
            return 0;
        if (!drive_runnable(local->drive)) {
            uint64_t slice = end - now < SLICE_NS ? end - now : SLICE_NS;
            uint64_t next = drive_next_ns(local->drive);
            if (next > now && next - now < slice) // flash or an engine knows
                slice = next - now;
            if (local->flash->ops->wait)
                local->flash->ops->wait(local->flash, slice);
            else
                sleep_ns(slice < NAP_NS ? slice : NAP_NS);
            now = clock_ns();
        }
    }
}

static void local_abort(struct link *link)
{
    struct link_local *local = (struct link_local *)link;
    struct completion done;
    while (!drive_abort(local->drive, OWNER)) {
        drive_step(local->drive, now_of(local), &done, 1);
        if (drive_runnable(local->drive))
            continue;
        if (local->virtual_ns)
            go_on(local);
        else if (local->flash->ops->wait)
            local->flash->ops->wait(local->flash, SLICE_NS / 10);
    }
}

static bool local_runnable(const struct link *link)
{
    return drive_runnable(((const struct link_local *)link)->drive);
}

static void local_close(struct link *link)
{
    local_abort(link);
    free(link);
}

static const struct link_ops local_ops = {
    .submit = local_submit,
    .poll = local_poll,
    .abort = local_abort,
    .close = local_close,
    .runnable = local_runnable,
};

int link_local_open(struct link **out, struct drive *drive, struct flash *flash,
                    struct inst_msg *msg)
{
    struct link_local *local = calloc(1, sizeof *local);
    if (!local)
        return inst_fail(msg, INST_ENOMEM, "link: out of memory");
    *local = (struct link_local){.link = {&local_ops}, .drive = drive, .flash = flash};
    *out = &local->link;
    return 0;
}

int link_local_open_virtual(struct link **out, struct drive *drive, struct flash *flash,
                            struct inst_msg *msg)
{
    int err = link_local_open(out, drive, flash, msg);
    if (!err)
        ((struct link_local *)*out)->virtual_ns = 1;
    return err;
}

uint64_t link_local_virtual_ns(const struct link *link)
{
    return ((const struct link_local *)link)->virtual_ns;
}

void link_local_pass(struct link *link, uint64_t ns)
{
    struct link_local *local = (struct link_local *)link;
    local->virtual_ns += local->virtual_ns ? ns : 0;
}
