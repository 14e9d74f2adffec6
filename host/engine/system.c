// SPDX-License-Identifier: Apache-2.0
// Page cache of a control group counts as free: the kernel drops it when memory is asked for.
#include "host/engine/system.h"

#include <limits.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint32_t system_cpus(void)
{
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
    return n < 1 ? 1 : (uint32_t)n;
}

// Value of the line "name N" of a file ("" = the file holds just the number).
static bool read_value(const char *path, const char *name, uint64_t *value)
{
    FILE *f = fopen(path, "re");
    if (!f)
        return false;
    char line[256];
    size_t n = strlen(name);
    bool found = false;
    while (!found && fgets(line, sizeof line, f)) {
        if (strncmp(line, name, n))
            continue;
        char *end;
        *value = strtoull(line + n, &end, 10);
        found = end != line + n;
    }
    fclose(f);
    return found;
}

// What is left in the group at `dir`, whose files are named limit_name and use_name.
static uint64_t group_left(const char *dir, const char *limit_name, const char *use_name)
{
    char path[PATH_MAX + 64];
    uint64_t limit, use, cache = 0, part;
    snprintf(path, sizeof path, "%s/%s", dir, limit_name);
    if (!read_value(path, "", &limit)) // "max" is no number
        return UINT64_MAX;
    snprintf(path, sizeof path, "%s/%s", dir, use_name);
    if (!read_value(path, "", &use))
        return UINT64_MAX;
    snprintf(path, sizeof path, "%s/memory.stat", dir);
    if (read_value(path, "inactive_file ", &part))
        cache += part;
    if (read_value(path, "active_file ", &part))
        cache += part;
    use = use > cache ? use - cache : 0;
    return limit > use ? limit - use : 0;
}

// The least of the group `path` below `root` and of all groups above it.
static uint64_t groups_left(const char *root, const char *path, const char *limit_name,
                            const char *use_name)
{
    char dir[PATH_MAX];
    if (snprintf(dir, sizeof dir, "%s%s", root, path) >= (int)sizeof dir)
        return UINT64_MAX;
    uint64_t least = UINT64_MAX;
    size_t root_bytes = strlen(root);
    for (;;) {
        uint64_t left = group_left(dir, limit_name, use_name);
        least = left < least ? left : least;
        char *slash = strrchr(dir, '/');
        if (strlen(dir) <= root_bytes || !slash || slash < dir + root_bytes)
            return least;
        *slash = 0;
    }
}

uint64_t system_memory_available_in(const char *proc, const char *cgroup)
{
    enum { LEAST = 1024 * 1024 };
    char path[PATH_MAX + 64], line[PATH_MAX];
    uint64_t least = UINT64_MAX, value;
    snprintf(path, sizeof path, "%s/meminfo", proc);
    if (read_value(path, "MemAvailable:", &value) && value < UINT64_MAX / 1024)
        least = value * 1024;
    snprintf(path, sizeof path, "%s/self/cgroup", proc);
    FILE *f = fopen(path, "re");
    while (f && fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = 0;
        // "0::PATH" (v2) or "N:memory:PATH" (v1).
        char *kind = strchr(line, ':'), *group = kind ? strchr(kind + 1, ':') : NULL;
        if (!group)
            continue;
        *group++ = 0;
        kind++;
        if (!*kind) {
            value = groups_left(cgroup, group, "memory.max", "memory.current");
        } else if (!strcmp(kind, "memory")) {
            char root[PATH_MAX];
            snprintf(root, sizeof root, "%s/memory", cgroup);
            value = groups_left(root, group, "memory.limit_in_bytes", "memory.usage_in_bytes");
        } else {
            continue;
        }
        least = value < least ? value : least;
    }
    if (f)
        fclose(f);
    if (least == UINT64_MAX)
        least = (uint64_t)1 << 30;
    return least < LEAST ? LEAST : least;
}

uint64_t system_memory_available(void)
{
    return system_memory_available_in("/proc", "/sys/fs/cgroup");
}
