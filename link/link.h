// SPDX-License-Identifier: Apache-2.0
// How commands travel from a host to a drive: in-process now, NVMe/TCP and Linux passthrough
// later. A host never sees a drive, only this table.
#ifndef INST_LINK_LINK_H
#define INST_LINK_LINK_H

#include "base/budget.h"
#include "drive/command.h"

struct link;

struct link_ops {
    // Hands over a command with its table (command_table_bytes, NULL where that is 0) and its data
    // (64-byte aligned, command->length bytes), which must stay alive and unchanged until the
    // completion. Does not block. INST_ENORESOURCE: the queue is full, poll first.
    int (*submit)(struct link *link, const struct command *command, const void *table, void *data);
    // Stores up to max completions, each with its own text, and returns how many. When there are
    // none it waits for at most max_wait_ns (0 = does not wait). Doing the drive's work happens in
    // here for an in-process drive.
    size_t (*poll)(struct link *link, struct completion *out, size_t max, uint64_t max_wait_ns);
    // Forgets all that was submitted: no completion of it comes any more, its data is not touched,
    // tickets are given up.
    void (*abort)(struct link *link);
    void (*close)(struct link *link); // aborts first
};

struct link {
    const struct link_ops *ops;
};

struct drive;
struct flash;
// In-process link. The drive and its flash stay the caller's and must outlive the link.
int link_local_open(struct link **out, struct drive *drive, struct flash *flash,
                    struct inst_msg *msg);

// One command from submit to completion; other completions that arrive meanwhile must not be
// outstanding. For CONFIG, STAT, IDENTIFY, FORK, RECLAIM, FLUSH and tests. *result may be NULL.
int link_call(struct link *link, const struct command *command, const void *table, void *data,
              uint64_t *result, struct inst_msg *msg);

static inline void link_close(struct link *link)
{
    if (link)
        link->ops->close(link);
}

#endif
