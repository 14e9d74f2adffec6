// SPDX-License-Identifier: Apache-2.0
// The in-process link: commands go straight into a drive of this process, and the drive's work is
// done inside poll, on the caller's thread and the pool that the drive was given. This is the only
// place that reads a clock for the drive.
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
};

static int local_submit(struct link *link, const struct command *command, const void *table,
                        void *data)
{
    struct link_local *local = (struct link_local *)link;
    uint8_t entry[COMMAND_BYTES];
    command_encode(entry, command);
    return drive_submit(local->drive, OWNER, entry, table, command_table_bytes(command), data,
                        clock_ns());
}

static void sleep_ns(uint64_t ns)
{
    struct timespec t = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
    nanosleep(&t, NULL);
}

static size_t local_poll(struct link *link, struct completion *out, size_t max,
                         uint64_t max_wait_ns)
{
    // A slice bounds every sleep, so that timeouts inside the drive are noticed.
    enum { SLICE_NS = 10 * 1000 * 1000, NAP_NS = 50 * 1000 };
    struct link_local *local = (struct link_local *)link;
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
    enum { SLICE_NS = 1000 * 1000 };
    struct link_local *local = (struct link_local *)link;
    struct completion done;
    while (!drive_abort(local->drive, OWNER)) {
        drive_step(local->drive, clock_ns(), &done, 1);
        if (!drive_runnable(local->drive) && local->flash->ops->wait)
            local->flash->ops->wait(local->flash, SLICE_NS);
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
    *local = (struct link_local){{&local_ops}, drive, flash};
    *out = &local->link;
    return 0;
}
