// SPDX-License-Identifier: Apache-2.0
// What a directory lies on: a disk or memory, and how much room there is.
#ifndef INST_HOST_ENGINE_KV_PLACE_H
#define INST_HOST_ENGINE_KV_PLACE_H

#include "base/status.h"

#include <stdbool.h>
#include <stdint.h>

struct kv_place {
    bool memory;         // tmpfs, ramfs, a RAM disk, or an overlay upon one of them
    uint64_t free_bytes; // for this user; UINT64_MAX: not known
    uint64_t device;     // two places on one of them share its room
    char type[48];       // for people: "ext4", "tmpfs", "overlay upon tmpfs"
};

// Of a directory, or of the nearest one above it when it is still to be made. Fails where nothing
// can be written.
int kv_place_look(struct kv_place *place, const char *path, struct inst_msg *msg);
// The same with another list of mounts, for tests: "/proc/self/mountinfo" in the function above.
int kv_place_look_in(struct kv_place *place, const char *path, const char *mounts,
                     struct inst_msg *msg);

#endif
