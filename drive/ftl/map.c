// SPDX-License-Identifier: Apache-2.0
#include "drive/ftl/map.h"
#include "base/checked.h"

#include <string.h>

enum { FANOUT_BITS = 4, FANOUT = 1 << FANOUT_BITS, LINE = 64 };

// A leaf (height 0) or an inner node; `used` entries or children follow it.
struct map_node {
    uint32_t refs;
    uint32_t walk; // the latest one that came here
    uint16_t height;
    uint16_t used;
    struct map_node *next; // in the list of the dead
};

static struct map_node **children(struct map_node *node)
{
    return (struct map_node **)(node + 1);
}

// Entries that fill cache lines begin with one.
static size_t entries_at(const struct map_kind *kind)
{
    _Static_assert(sizeof(struct map_node) <= LINE, "entries lie behind it");
    return kind->entry_bytes % LINE ? sizeof(struct map_node) : LINE;
}

static void *entry(const struct map_kind *kind, struct map_node *leaf, uint64_t i)
{
    return (uint8_t *)leaf + entries_at(kind) + i * kind->entry_bytes;
}

// Entries below a node of this height.
static uint64_t capacity(const struct map_kind *kind, uint32_t height)
{
    uint64_t n = kind->leaf_entries;
    while (height--)
        n *= FANOUT;
    return n;
}

static size_t node_bytes(const struct map_kind *kind, uint32_t height)
{
    return height ? sizeof(struct map_node) + FANOUT * sizeof(struct map_node *)
                  : entries_at(kind) + kind->leaf_entries * kind->entry_bytes;
}

uint64_t map_bytes(const struct map_kind *kind, uint64_t n)
{
    enum { EXTRA = 128, EXTRA_LARGE = 4096 + 64, LARGE = 64 * 1024 - EXTRA };
    uint64_t leaf = node_bytes(kind, 0), nodes = div_round_up(n, kind->leaf_entries);
    uint64_t bytes = nodes * (leaf + (leaf < LARGE ? EXTRA : EXTRA_LARGE));
    while (nodes > 1) {
        nodes = div_round_up(nodes, FANOUT);
        bytes += nodes * (node_bytes(kind, 1) + EXTRA);
    }
    return bytes;
}

static struct map_node *new_node(struct map_kind *kind, uint32_t height, struct inst_msg *msg)
{
    struct map_node *node =
        budget_alloc(kind->budget, 1, node_bytes(kind, height), "a map of rows", msg);
    if (!node)
        return NULL;
    node->refs = 1;
    node->height = (uint16_t)height;
    return node;
}

static void release(struct map_kind *kind, struct map_node *node)
{
    if (--node->refs)
        return;
    node->next = kind->dead;
    kind->dead = node;
}

// How many of the node's entries or children lie before entry `limit` of it.
static uint32_t needed(const struct map_kind *kind, const struct map_node *node, uint64_t limit)
{
    uint64_t n = node->height ? div_round_up(limit, capacity(kind, node->height - 1u)) : limit;
    return (uint32_t)min_u64(n, node->used);
}

static void trim(struct map_kind *kind, struct map_node *node, uint32_t keep)
{
    for (; node->used > keep; node->used--) {
        if (node->height)
            release(kind, children(node)[node->used - 1]);
        else if (kind->drop)
            kind->drop(kind->arg, entry(kind, node, node->used - 1u));
    }
}

// The first `keep` entries or children of a node, for one that shares them.
static struct map_node *copy_node(struct map_kind *kind, struct map_node *node, uint32_t keep,
                                  struct inst_msg *msg)
{
    struct map_node *copy = new_node(kind, node->height, msg);
    if (!copy)
        return NULL;
    copy->used = (uint16_t)keep;
    if (node->height)
        memcpy(children(copy), children(node), keep * sizeof(struct map_node *));
    else
        memcpy(entry(kind, copy, 0), entry(kind, node, 0), keep * kind->entry_bytes);
    for (uint32_t i = 0; i < keep; i++) {
        if (node->height)
            children(copy)[i]->refs++;
        else if (kind->share)
            kind->share(kind->arg, entry(kind, copy, i));
    }
    return copy;
}

// Makes `*link` a node of its owner's alone with its first `keep` entries or children.
static struct map_node *own(struct map_kind *kind, struct map_node **link, uint32_t keep,
                            struct inst_msg *msg)
{
    struct map_node *node = *link;
    if (node->refs > 1) {
        struct map_node *copy = copy_node(kind, node, keep, msg);
        if (!copy)
            return NULL;
        release(kind, node);
        *link = node = copy;
    }
    trim(kind, node, keep);
    return node;
}

// The leaf of entry i <= n, which nobody shares, on a path that nobody shares. What lies beyond the
// end is gone from that path. NULL: no memory; the array is as it was.
static struct map_node *path(struct map_kind *kind, struct map *map, uint64_t i,
                             struct inst_msg *msg)
{
    if (!map->root && !(map->root = new_node(kind, 0, msg)))
        return NULL;
    while (i >= capacity(kind, map->root->height)) {
        struct map_node *top = new_node(kind, map->root->height + 1u, msg);
        if (!top)
            return NULL;
        children(top)[0] = map->root;
        top->used = 1;
        map->root = top;
    }
    struct map_node **link = &map->root;
    uint64_t limit = map->n; // within the node
    for (;;) {
        uint32_t keep = needed(kind, *link, limit);
        if (!(*link)->height)
            return own(kind, link, keep, msg);
        uint64_t each = capacity(kind, (*link)->height - 1u), k = i / each;
        // A leaf that was reserved is empty and stays.
        struct map_node *node =
            own(kind, link, (uint32_t)max_u64(keep, min_u64(k + 1, (*link)->used)), msg);
        if (!node)
            return NULL;
        if (k == node->used) {
            children(node)[k] = new_node(kind, node->height - 1u, msg);
            if (!children(node)[k])
                return NULL;
            node->used++;
        }
        link = &children(node)[k];
        limit = min_u64(limit - min_u64(limit, k * each), each);
        i %= each;
    }
}

void *map_at(const struct map_kind *kind, const struct map *map, uint64_t i)
{
    struct map_node *node = map->root;
    const unsigned leaf = (unsigned)__builtin_ctz(kind->leaf_entries);
    // Capacities are powers of two. Of nodes on the way only the children are looked at.
    for (unsigned height = node->height; height; height--) {
        const unsigned shift = leaf + (height - 1) * FANOUT_BITS;
        node = children(node)[i >> shift];
        i &= (1ull << shift) - 1;
    }
    return entry(kind, node, i);
}

void *map_edit(struct map_kind *kind, struct map *map, uint64_t i, struct inst_msg *msg)
{
    struct map_node *leaf = path(kind, map, i, msg);
    return leaf ? entry(kind, leaf, i % kind->leaf_entries) : NULL;
}

int map_reserve(struct map_kind *kind, struct map *map, struct inst_msg *msg)
{
    return path(kind, map, map->n, msg) ? 0 : INST_ENOMEM;
}

void *map_append(struct map_kind *kind, struct map *map, struct inst_msg *msg)
{
    struct map_node *leaf = path(kind, map, map->n, msg);
    if (!leaf)
        return NULL;
    void *p = entry(kind, leaf, leaf->used++);
    memset(p, 0, kind->entry_bytes);
    map->n++;
    return p;
}

// Does the path to the last entry hold anything beyond it?
static bool overhangs(const struct map_kind *kind, const struct map *map)
{
    struct map_node *node = map->root;
    uint64_t limit = map->n;
    for (;;) {
        uint32_t keep = needed(kind, node, limit);
        if (node->used > keep)
            return true;
        if (!node->height)
            return false;
        limit -= (keep - 1) * capacity(kind, node->height - 1u);
        node = children(node)[keep - 1];
    }
}

void map_truncate(struct map_kind *kind, struct map *map, uint64_t n)
{
    if (n >= map->n && n)
        return;
    map->n = n;
    if (!n) {
        if (map->root)
            release(kind, map->root);
        map->root = NULL;
    } else if (overhangs(kind, map)) {
        path(kind, map, n - 1, NULL);
    }
}

// The first `limit` of the `have` entries below a node.
static struct map_node *fork_node(struct map_kind *kind, struct map_node *node, uint64_t limit,
                                  uint64_t have, struct inst_msg *msg)
{
    if (limit == have) {
        node->refs++;
        return node;
    }
    uint32_t keep = needed(kind, node, limit);
    if (!node->height)
        return copy_node(kind, node, keep, msg);
    uint64_t each = capacity(kind, node->height - 1u), before = (keep - 1) * each;
    struct map_node *copy = copy_node(kind, node, keep - 1, msg);
    if (!copy)
        return NULL;
    struct map_node *last = fork_node(kind, children(node)[keep - 1], limit - before,
                                      min_u64(have - before, each), msg);
    if (!last) {
        release(kind, copy);
        return NULL;
    }
    children(copy)[copy->used++] = last;
    return copy;
}

int map_fork(struct map_kind *kind, const struct map *from, struct map *to, uint64_t n,
             struct inst_msg *msg)
{
    struct map_node *node = from->root;
    uint64_t have = from->n;
    map_truncate(kind, to, 0); // what was reserved
    if (!n)
        return 0;
    while (node->height && n <= capacity(kind, node->height - 1u)) {
        node = children(node)[0];
        have = min_u64(have, capacity(kind, node->height));
    }
    to->root = fork_node(kind, node, n, have, msg);
    if (!to->root)
        return INST_ENOMEM;
    to->n = n;
    return 0;
}

bool map_sweep(struct map_kind *kind, uint64_t *work)
{
    while (kind->dead && *work) {
        struct map_node *node = kind->dead;
        kind->dead = node->next;
        *work -= min_u64(*work, 1u + node->used);
        trim(kind, node, 0);
        budget_free(kind->budget, node);
    }
    return kind->dead != NULL;
}

static void walk(struct map_kind *kind, struct map_node *node, void (*fn)(void *arg, void *entry),
                 void *arg)
{
    if (node->walk == kind->walk)
        return;
    node->walk = kind->walk;
    for (uint32_t i = 0; i < node->used; i++) {
        if (node->height)
            walk(kind, children(node)[i], fn, arg);
        else
            fn(arg, entry(kind, node, i));
    }
}

void map_walk_begin(struct map_kind *kind, void (*fn)(void *arg, void *entry), void *arg)
{
    kind->walk++;
    for (struct map_node *node = kind->dead; node; node = node->next)
        walk(kind, node, fn, arg);
}

void map_walk(struct map_kind *kind, const struct map *map, void (*fn)(void *arg, void *entry),
              void *arg)
{
    if (map->root)
        walk(kind, map->root, fn, arg);
}
