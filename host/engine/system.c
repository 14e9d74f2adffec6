// SPDX-License-Identifier: Apache-2.0
// Page cache of a control group counts as free: the kernel drops it when memory is asked for.
#include "host/engine/system.h"

#include <limits.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

// Value of a file in a directory; false also where it says "max" or -1.
static bool read_in(const char *dir, const char *file, const char *name, uint64_t *value)
{
    char path[PATH_MAX + 64];
    snprintf(path, sizeof path, "%s/%s", dir, file);
    return read_value(path, name, value) && *value <= INT64_MAX;
}

// What a kind of limit leaves in the group at `dir`; UINT64_MAX = no limit.
typedef uint64_t group_fn(const char *dir);

static uint64_t memory_left(const char *dir, const char *limit_file, const char *use_file,
                            const char *inactive, const char *active)
{
    uint64_t limit, use, cache = 0, part;
    if (!read_in(dir, limit_file, "", &limit) || !read_in(dir, use_file, "", &use))
        return UINT64_MAX;
    if (read_in(dir, "memory.stat", inactive, &part))
        cache += part;
    if (read_in(dir, "memory.stat", active, &part))
        cache += part;
    use = use > cache ? use - cache : 0;
    return limit > use ? limit - use : 0;
}

static uint64_t memory_v2(const char *dir)
{
    static const char current[] = "memory.current", in[] = "inactive_file ", act[] = "active_file ";
    uint64_t max = memory_left(dir, "memory.max", current, in, act);
    uint64_t high = memory_left(dir, "memory.high", current, in, act); // beyond it all is slow
    return max < high ? max : high;
}

static uint64_t memory_v1(const char *dir)
{
    // The use is that of all groups below, so the page cache must be too.
    return memory_left(dir, "memory.limit_in_bytes", "memory.usage_in_bytes",
                       "total_inactive_file ", "total_active_file ");
}

static uint64_t cpus_of(uint64_t quota, uint64_t period)
{
    return !period ? UINT64_MAX : quota <= period ? 1 : quota / period + (quota % period != 0);
}

static uint64_t cpus_v2(const char *dir)
{
    char path[PATH_MAX + 64];
    unsigned long long quota, period;
    snprintf(path, sizeof path, "%s/cpu.max", dir);
    FILE *f = fopen(path, "re");
    int n = f ? fscanf(f, "%llu %llu", &quota, &period) : 0; // "max 100000" gives no number
    if (f)
        fclose(f);
    return n == 2 ? cpus_of(quota, period) : UINT64_MAX;
}

static uint64_t cpus_v1(const char *dir)
{
    uint64_t quota, period;
    bool limited = read_in(dir, "cpu.cfs_quota_us", "", &quota) &&
                   read_in(dir, "cpu.cfs_period_us", "", &period);
    return limited ? cpus_of(quota, period) : UINT64_MAX;
}

// The least of the group `path` below `root` and of all groups above it. In a container `path` may
// be the name outside, of which only the root is there.
static uint64_t least_above(const char *root, const char *path, group_fn *fn)
{
    char dir[PATH_MAX];
    if (snprintf(dir, sizeof dir, "%s%s", root, path) >= (int)sizeof dir)
        return UINT64_MAX;
    uint64_t least = UINT64_MAX;
    size_t root_bytes = strlen(root);
    for (;;) {
        uint64_t left = fn(dir);
        least = left < least ? left : least;
        char *slash = strrchr(dir, '/');
        if (strlen(dir) <= root_bytes || !slash || slash < dir + root_bytes)
            return least;
        *slash = 0;
    }
}

static bool list_has(const char *list, const char *name)
{
    size_t n = strlen(name);
    for (; list; list = strchr(list, ','), list += list != NULL)
        if (!strncmp(list, name, n) && (!list[n] || list[n] == ','))
            return true;
    return false;
}

// The least over all groups of the process that have the controller.
static uint64_t least_of_groups(const char *proc, const char *cgroup, const char *controller,
                                group_fn *v2, group_fn *v1)
{
    char path[PATH_MAX + 64], line[PATH_MAX], root[PATH_MAX];
    uint64_t least = UINT64_MAX, value;
    snprintf(path, sizeof path, "%s/self/cgroup", proc);
    FILE *f = fopen(path, "re");
    while (f && fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = 0;
        // "0::PATH" (v2) or "N:CONTROLLER,...:PATH" (v1).
        char *kind = strchr(line, ':'), *group = kind ? strchr(kind + 1, ':') : NULL;
        if (!group)
            continue;
        *group++ = 0;
        kind++;
        if (!*kind) {
            value = least_above(cgroup, group, v2);
        } else if (list_has(kind, controller)) {
            snprintf(root, sizeof root, "%s/%s", cgroup, controller);
            value = least_above(root, group, v1);
        } else {
            continue;
        }
        least = value < least ? value : least;
    }
    if (f)
        fclose(f);
    return least;
}

uint64_t system_memory_available_in(const char *proc, const char *cgroup)
{
    enum { LEAST = 1024 * 1024 };
    uint64_t least = UINT64_MAX, value;
    if (read_in(proc, "meminfo", "MemAvailable:", &value) && value < UINT64_MAX / 1024)
        least = value * 1024;
    value = least_of_groups(proc, cgroup, "memory", memory_v2, memory_v1);
    least = value < least ? value : least;
    if (least == UINT64_MAX)
        least = (uint64_t)1 << 30;
    return least < LEAST ? LEAST : least;
}

uint64_t system_memory_available(void)
{
    return system_memory_available_in("/proc", "/sys/fs/cgroup");
}

uint64_t system_cpu_quota_in(const char *proc, const char *cgroup)
{
    return least_of_groups(proc, cgroup, "cpu", cpus_v2, cpus_v1);
}

uint32_t system_cpus(void)
{
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
    uint64_t quota = system_cpu_quota_in("/proc", "/sys/fs/cgroup");
    uint32_t cpus = n < 1 ? 1 : (uint32_t)n;
    return quota < cpus ? (uint32_t)quota : cpus;
}
