// SPDX-License-Identifier: Apache-2.0
// A growing array whose forks share it by reference. Entries lie in leaves, leaves hang in a tree
// of nodes, and both count who refers to them. A fork of the whole array takes a reference to its
// root; one of a prefix builds the nodes along its right edge and refers to all that lies left of
// them. Whatever is shared is copied before it is written to, along one path of the tree. So fork,
// truncation and write cost O(height), whatever the length.
//
// What nobody refers to any more is put aside and freed in slices (map_sweep): the end of a long
// array costs nothing at once.
//
// A leaf that is shared can hold entries beyond the end of one of its arrays. Nobody reads them;
// they are dropped when the leaf is next written to, or with it.
#ifndef INST_DRIVE_FTL_MAP_H
#define INST_DRIVE_FTL_MAP_H

#include "base/budget.h"

#include <stdbool.h>

// What all arrays of one kind share.
struct map_kind {
    size_t entry_bytes;
    uint32_t leaf_entries; // power of two
    // Told of every copy of an entry that comes into being and of every one that goes, the original
    // included when it goes. NULL: entries refer to nothing.
    void (*share)(void *arg, void *entry);
    void (*drop)(void *arg, void *entry);
    void *arg;
    struct budget *budget;
    struct map_node *dead; // not freed yet
    uint32_t walk;         // number of the latest map_walk
};

struct map {
    struct map_node *root; // NULL: empty
    uint64_t n;            // entries
};

// Bytes that an array of n entries takes, less what others share of it.
uint64_t map_bytes(const struct map_kind *kind, uint64_t n);

// Entry i < n, as it is: not to be written to, except to say something that holds for all arrays
// that share it.
void *map_at(const struct map_kind *kind, const struct map *map, uint64_t i);
// Entry i < n to be written to. NULL: no memory; nothing has changed.
void *map_edit(struct map_kind *kind, struct map *map, uint64_t i, struct inst_msg *msg);
// A zeroed entry n, which then belongs to the array; `share` is not called. NULL: no memory.
void *map_append(struct map_kind *kind, struct map *map, struct inst_msg *msg);
// Makes sure that the next map_append finds memory, if nothing is forked before it.
int map_reserve(struct map_kind *kind, struct map *map, struct inst_msg *msg);
// Drops entries from n on. Never fails: where there is no memory to copy a shared node it keeps
// referring to what lies beyond.
void map_truncate(struct map_kind *kind, struct map *map, uint64_t n);
// Makes the empty `to` the first n entries of `from`.
int map_fork(struct map_kind *kind, const struct map *from, struct map *to, uint64_t n,
             struct inst_msg *msg);

// Frees what nobody refers to, about *work entries and nodes of it; *work is what is left of it.
// True while there is more.
bool map_sweep(struct map_kind *kind, uint64_t *work);

// For drive_check: shows `fn` every entry that exists exactly once, however many arrays share it,
// in one walk over many arrays: map_walk_begin, map_walk of each.
void map_walk_begin(struct map_kind *kind, void (*fn)(void *arg, void *entry), void *arg);
void map_walk(struct map_kind *kind, const struct map *map, void (*fn)(void *arg, void *entry),
              void *arg);

#endif
