// SPDX-License-Identifier: Apache-2.0
// The type comes from the list of mounts: statfs knows tmpfs, but not what is below an overlay or a
// RAM disk. An overlay's upper directory can lie outside of what this process sees (in a container,
// as a rule); then nothing is known about it and it counts as a disk.
#include "host/engine/kv_place.h"
#include "base/checked.h"

#include <errno.h>
#include <limits.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <unistd.h>

enum { DEPTH_MAX = 4 }; // overlays upon overlays

// Of the line of a mount: "ID PARENT MAJOR:MINOR ROOT POINT OPTIONS ... - TYPE SOURCE
// SUPER_OPTIONS".
struct mount {
    char type[32], source[PATH_MAX], upper[PATH_MAX];
};

// Copies a field, which ends before a space or one of `ends`; octal escapes become their
// characters.
static void copy_field(char *out, size_t room, const char *in, const char *ends)
{
    size_t n = 0;
    for (; *in && *in != ' ' && !strchr(ends, *in) && n + 1 < room; n++) {
        unsigned value;
        if (*in == '\\' && sscanf(in + 1, "%3o", &value) == 1) {
            out[n] = (char)value;
            in += 4;
        } else {
            out[n] = *in++;
        }
    }
    out[n] = 0;
}

static const char *skip_fields(const char *at, unsigned n)
{
    while (at && n--) {
        at = strchr(at, ' ');
        at += at != NULL;
    }
    return at;
}

static bool is_within(const char *path, const char *point)
{
    size_t n = strlen(point);
    if (n && point[n - 1] == '/')
        n--;
    return !strncmp(path, point, n) && (path[n] == '/' || !path[n]);
}

// The mount that `path` (absolute, without links) lies on: the last of those with the longest
// point. *mount stays as it is when that cannot be told.
static void find_mount(struct mount *mount, const char *path, const char *mounts)
{
    FILE *f = fopen(mounts, "re");
    char *line = NULL, point[PATH_MAX];
    size_t room = 0, longest = 0;
    while (f && getline(&line, &room, f) > 0) {
        const char *at = skip_fields(line, 4), *end = strstr(line, " - ");
        if (!at || !end)
            continue;
        copy_field(point, sizeof point, at, "\n");
        if (!is_within(path, point) || strlen(point) < longest)
            continue;
        longest = strlen(point);
        const char *source = skip_fields(end + 3, 1), *options = skip_fields(end + 3, 2);
        copy_field(mount->type, sizeof mount->type, end + 3, "\n");
        copy_field(mount->source, sizeof mount->source, source ? source : "", "\n");
        const char *upper = options ? strstr(options, ",upperdir=") : NULL;
        copy_field(mount->upper, sizeof mount->upper, upper ? upper + strlen(",upperdir=") : "",
                   ",\n");
    }
    free(line);
    if (f)
        fclose(f);
}

static bool is_ram_disk(const char *source)
{
    return !strncmp(source, "/dev/ram", 8) || !strncmp(source, "/dev/zram", 9);
}

static void judge(struct kv_place *place, const char *path, const char *mounts, int depth)
{
    char real[PATH_MAX];
    struct mount mount[1] = {{.type = "file system of unknown type"}};
    struct statfs fs;
    if (realpath(path, real))
        find_mount(mount, real, mounts);
    const char *type = mount->type;
    uint32_t magic = statfs(path, &fs) ? 0 : (uint32_t)fs.f_type;
    if (magic == TMPFS_MAGIC || magic == RAMFS_MAGIC)
        type = magic == TMPFS_MAGIC ? "tmpfs" : "ramfs";
    place->memory = magic == TMPFS_MAGIC || magic == RAMFS_MAGIC || is_ram_disk(mount->source);
    size_t n = strlen(place->type);
    snprintf(place->type + n, sizeof place->type - n, "%s%s", n ? " upon " : "", type);
    if (!strcmp(mount->type, "overlay") && *mount->upper && depth < DEPTH_MAX &&
        !access(mount->upper, F_OK))
        judge(place, mount->upper, mounts, depth + 1);
}

// The nearest directory that exists, in `at`.
static int find_existing(char at[PATH_MAX], const char *path, struct inst_msg *msg)
{
    struct stat st;
    if (snprintf(at, PATH_MAX, "%s", path) >= PATH_MAX)
        return inst_fail(msg, INST_EINVAL, "%.64s...: the name is too long", path);
    while (stat(at, &st)) {
        char *slash = strrchr(at, '/');
        if (errno != ENOENT || !strcmp(at, "/") || !strcmp(at, "."))
            return inst_fail(msg, INST_EIO, "%s: %s (use --kv)", at, strerror(errno));
        if (!slash)
            strcpy(at, ".");
        else
            slash[slash == at] = 0;
    }
    if (!S_ISDIR(st.st_mode))
        return inst_fail(msg, INST_EIO, "%s: not a directory (use --kv)", at);
    return 0;
}

int kv_place_look_in(struct kv_place *place, const char *path, const char *mounts,
                     struct inst_msg *msg)
{
    char at[PATH_MAX];
    struct statvfs room;
    *place = (struct kv_place){.free_bytes = UINT64_MAX};
    int err = find_existing(at, path, msg);
    if (err)
        return err;
    if (access(at, W_OK | X_OK))
        return inst_fail(msg, INST_EIO, "%s: cannot be written: %s (use --kv)", at,
                         strerror(errno));
    judge(place, at, mounts, 0);
    struct stat st;
    if (!stat(at, &st))
        place->device = st.st_dev;
    // Without blocks, a file system does not say.
    if (!statvfs(at, &room) && room.f_blocks &&
        !checked_mul(room.f_bavail, room.f_frsize, &place->free_bytes))
        place->free_bytes = UINT64_MAX;
    return 0;
}

int kv_place_look(struct kv_place *place, const char *path, struct inst_msg *msg)
{
    return kv_place_look_in(place, path, "/proc/self/mountinfo", msg);
}
