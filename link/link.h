// SPDX-License-Identifier: Apache-2.0
// How commands travel from a host to a drive: in-process now, NVMe/TCP and Linux passthrough
// later. A host never sees a drive, only this table.
#ifndef INST_LINK_LINK_H
#define INST_LINK_LINK_H

#include "base/budget.h"
#include "drive/command.h"

struct link;

struct link_ops {
    // A link that has lost its drive answers everything with INST_EIO: what it is given, and what
    // was in flight.

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
    // True when poll can do more without anything outside happening; NULL: never.
    bool (*runnable)(const struct link *link);
};

struct link {
    const struct link_ops *ops;
};

struct drive;
struct flash;
// In-process link. The drive and its flash stay the caller's and must outlive the link.
int link_local_open(struct link **out, struct drive *drive, struct flash *flash,
                    struct inst_msg *msg);
// The same in virtual time, for flash that is emulated: it stands still while the drive works, and
// where the drive can do nothing more it goes on at once to when it can. What the host does takes
// what link_local_pass is told. link_local_virtual_ns: the time, 0 where it is the real one.
int link_local_open_virtual(struct link **out, struct drive *drive, struct flash *flash,
                            struct inst_msg *msg);
uint64_t link_local_virtual_ns(const struct link *link);
// From now on commands and answers take the time that a link of that rate takes (wire.h).
int link_local_wire(struct link *link, uint64_t bytes_per_s, struct inst_msg *msg);
uint64_t link_local_wire_ns(const struct link *link); // that it was busy, 0 without
void link_local_pass(struct link *link, uint64_t ns);

// A drive array: a link made of links (array.c says how). They and `budget` stay the caller's and
// must outlive it; nobody else uses them meanwhile.
struct link_array_options {
    struct link *const *links;
    const char *const *names; // what messages call them
    uint32_t drives;          // 1 to LINK_ARRAY_MOST
    struct budget *budget;
    // A drive whose command has been waited for so long, in poll, has failed (INST_EIO): all that
    // it was given is aborted. A FLUSH: twenty times that. 0: no limit.
    uint64_t limit_ns;
};
enum { LINK_ARRAY_MOST = 64 };
int link_array_open(struct link **out, const struct link_array_options *options,
                    struct inst_msg *msg);
// Which heads one of the drives holds. `together`, which divides kv_heads: so many neighbours are
// on one drive (space_config_together); a set of heads. Where there are more drives than sets they
// are divided into groups; each has all heads, and a sequence lives in one of them.
struct link_share {
    uint32_t group, groups;
    uint32_t head_first, head_count;
};
struct link_share link_array_share(uint32_t drives, uint32_t kv_heads, uint32_t together,
                                   uint32_t drive);
// What the array takes of its budget while an ATTEND and a COLLECT of `count` items are under way.
// False when it overflows.
bool link_array_bytes(uint32_t drives, uint32_t count, const struct space_config *config,
                      uint64_t *out);
// K and V of any number of heads and tokens can stay where the host has them; else they are copied.
static inline bool link_array_in_place(uint32_t head_dim)
{
    return head_dim % 16 == 0;
}
// Of one drive, as of the last STAT; and what an array makes of its drives'.
const struct drive_stats *link_array_stats(const struct link *link, uint32_t drive);
void link_array_merge(const struct drive_stats *stats, uint32_t drives, uint32_t sets,
                      struct drive_stats *out);
// The drives (bit i: drive i) that have not given back what they were given, in any command or item
// since the array was opened: INST_EIO or INST_ECORRUPT.
uint64_t link_array_failed(const struct link *link);
// Those that have not answered in time, and nothing since.
uint64_t link_array_late(const struct link *link);

// One command from submit to completion; other completions that arrive meanwhile must not be
// outstanding. For CONFIG, STAT, IDENTIFY, FORK, RECLAIM, FLUSH and tests. *result may be NULL.
// After ten minutes the link is aborted: INST_ETIMEOUT.
int link_call(struct link *link, const struct command *command, const void *table, void *data,
              uint64_t *result, struct inst_msg *msg);
// STAT in this way, which needs no time: two seconds at most. *stats changes on success alone.
int link_stat(struct link *link, struct drive_stats *stats, struct inst_msg *msg);

static inline void link_close(struct link *link)
{
    if (link)
        link->ops->close(link);
}

#endif
