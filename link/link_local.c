// SPDX-License-Identifier: Apache-2.0
// The in-process link: commands go straight into a drive of this process, and the drive's work is
// done inside poll, on the caller's thread and the pool that the drive was given. This is the only
// place that reads a clock for the drive, or keeps one.
#include "base/checked.h"
#include "base/clock.h"
#include "drive/drive.h"
#include "link/link.h"
#include "link/wire.h"

#include <stdlib.h>
#include <time.h>

enum { OWNER = 1 }; // the drive's only connection

struct link_local {
    struct link link;
    struct drive *drive;
    struct flash *flash;
    struct wire *wire;   // NULL: nothing takes time on its way
    bool full;           // the drive, for what has arrived
    uint64_t virtual_ns; // the time, 0: it is the real one
};

static uint64_t now_of(const struct link_local *local)
{
    return local->virtual_ns ? local->virtual_ns : clock_ns();
}

static int to_drive(struct link_local *local, const struct command *command, const void *table,
                    void *data, uint64_t now)
{
    uint8_t entry[COMMAND_BYTES];
    command_encode(entry, command);
    return drive_submit(local->drive, OWNER, entry, table, command_table_bytes(command), data, now);
}

static int local_submit(struct link *link, const struct command *command, const void *table,
                        void *data)
{
    struct link_local *local = (struct link_local *)link;
    const struct wire_command sent = {*command, table, data};
    if (local->wire)
        return wire_send(local->wire, &sent, now_of(local)) ? 0 : INST_ENORESOURCE;
    return to_drive(local, command, table, data, now_of(local));
}

// What has arrived goes into the drive, as far as its queue takes it.
static void deliver(struct link_local *local, uint64_t now)
{
    const struct wire_command *c;
    local->full = false;
    while ((c = wire_arrived(local->wire, now))) {
        struct completion refused = {.cid = c->command.cid, .owner = OWNER};
        refused.status = to_drive(local, &c->command, c->table, c->data, now);
        local->full = refused.status == INST_ENORESOURCE;
        if (local->full)
            return;
        wire_taken(local->wire);
        if (refused.status)
            wire_answer(local->wire, &refused, now);
    }
}

static size_t step(struct link_local *local, uint64_t now, struct completion *out, size_t max)
{
    enum { AT_ONCE = 8 };
    if (!local->wire)
        return drive_step(local->drive, now, out, max);
    struct completion done[AT_ONCE];
    deliver(local, now);
    for (size_t n; (n = drive_step(local->drive, now, done, AT_ONCE));)
        for (size_t i = 0; i < n; i++)
            wire_answer(local->wire, &done[i], now);
    return wire_received(local->wire, out, max, now);
}

static uint64_t wire_next_ns(const struct link_local *local)
{
    if (!local->wire)
        return UINT64_MAX;
    uint64_t up = wire_next_up_ns(local->wire);
    return local->full ? up : min_u64(up, wire_next_down_ns(local->wire));
}

static uint64_t next_ns(const struct link_local *local)
{
    return min_u64(drive_next_ns(local->drive), wire_next_ns(local));
}

static void sleep_ns(uint64_t ns)
{
    struct timespec t = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
    nanosleep(&t, NULL);
}

enum { SLICE_NS = 10 * 1000 * 1000, NAP_NS = 50 * 1000 };

static bool local_runnable(const struct link *link)
{
    const struct link_local *local = (const struct link_local *)link;
    return drive_runnable(local->drive) || wire_next_ns(local) <= now_of(local);
}

// What makes the drive runnable again: virtual time goes on to the next event; where none is to
// come, or what is waited for happens outside of it (a file below the model), real time passes.
static void go_on(struct link_local *local)
{
    uint64_t next = next_ns(local);
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
        size_t n = step(local, local->virtual_ns, out, max);
        if (n || !max_wait_ns)
            return n;
        if (!local_runnable(&local->link))
            go_on(local);
        if (clock_ns() >= end)
            return 0;
    }
}

// Flash that has nothing to do comes back at once: then an engine or the wire is waited for, and
// what is shorter than a nap is not slept.
static void rest(struct link_local *local, uint64_t ns)
{
    const struct flash_ops *flash = local->flash->ops;
    bool idle = flash->next_ns && flash->next_ns(local->flash) == UINT64_MAX;
    if (flash->wait && !(idle && ns >= NAP_NS))
        flash->wait(local->flash, ns);
    else
        sleep_ns(ns < NAP_NS ? ns : NAP_NS);
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
        size_t n = step(local, now, out, max);
        if (n || !max_wait_ns)
            return n;
        now = clock_ns();
        if (now >= end)
            return 0;
        if (!local_runnable(&local->link)) {
            uint64_t slice = end - now < SLICE_NS ? end - now : SLICE_NS;
            uint64_t next = next_ns(local);
            if (next > now && next - now < slice) // flash, an engine or the wire knows
                slice = next - now;
            rest(local, slice);
            now = clock_ns();
        }
    }
}

static void local_abort(struct link *link)
{
    struct link_local *local = (struct link_local *)link;
    struct completion done;
    if (local->wire)
        wire_forget(local->wire);
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

static void local_close(struct link *link)
{
    local_abort(link);
    wire_close(((struct link_local *)link)->wire);
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

int link_local_wire(struct link *link, uint64_t bytes_per_s, struct inst_msg *msg)
{
    return wire_open(&((struct link_local *)link)->wire, bytes_per_s, msg);
}

uint64_t link_local_wire_ns(const struct link *link)
{
    const struct link_local *local = (const struct link_local *)link;
    return local->wire ? wire_busy_ns(local->wire) : 0;
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
