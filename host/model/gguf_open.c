// SPDX-License-Identifier: Apache-2.0
// Opening and closing: maps or reads the file or the files of a model, has each checked, and makes
// several one.
#include "base/checked.h"
#include "base/size.h"
#include "host/model/gguf_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int gguf_load(struct gguf **out, const void *bytes, uint64_t size, const char *name,
              struct budget *budget, struct inst_msg *msg)
{
    struct gguf *g = budget_alloc(budget, 1, sizeof *g, "the GGUF reader", msg);
    *out = NULL;
    if (!g)
        return INST_ENOMEM;
    g->base = bytes;
    g->size = size;
    g->budget = budget;
    snprintf(g->name, sizeof g->name, "%s", name);
    int rc = gguf_parse(g, msg);
    if (rc) {
        gguf_close(g);
        return rc;
    }
    *out = g;
    return 0;
}

int gguf_open_memory(struct gguf **out, const void *bytes, uint64_t size, const char *name,
                     struct budget *budget, struct inst_msg *msg)
{
    uint64_t count;
    int rc = gguf_load(out, bytes, size, name, budget, msg);
    if (!rc)
        rc = gguf_split_count(*out, &count, msg);
    if (!rc && count > 1)
        rc = gguf_fail_key(*out, gguf_find(*out, "split.count"), INST_ENOTSUP, msg,
                           "one of %" PRIu64 " parts, and no way to the others", count);
    if (rc) {
        gguf_close(*out);
        *out = NULL;
    }
    return rc;
}

static int map_file(void **map, int fd, uint64_t bytes, const char *path, struct inst_msg *msg)
{
    void *base = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED)
        return inst_fail(msg, INST_EIO, "%s: cannot map: %s", path, strerror(errno));
    // A wish: with large pages, where the file system has them, decode reads 10 % more.
    (void)madvise(base, bytes, MADV_HUGEPAGE);
    *map = base;
    return 0;
}

static int read_file(struct mapping *copy, int fd, uint64_t bytes, uint64_t *room, const char *path,
                     struct inst_msg *msg)
{
    enum { STEP = 64 << 20 };
    char need[SIZE_TEXT_BYTES], have[SIZE_TEXT_BYTES];
    if (bytes > *room)
        return inst_fail(msg, INST_ENOMEM,
                         "%s: %s do not fit into the memory that is available, %s; mapped "
                         "they need not",
                         path, size_text(bytes, need), size_text(*room, have));
    if (!mapping_open(copy, bytes, true))
        return inst_fail(msg, INST_ENOMEM, "%s: the system refuses %s of memory", path,
                         size_text(bytes, need));
    *room -= bytes;
    for (uint64_t at = 0; at < bytes;) {
        ssize_t n = pread(fd, copy->data + at, min_u64(STEP, bytes - at), (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return inst_fail(msg, INST_EIO, "%s: cannot be read at offset %" PRIu64 ": %s", path,
                             at, n ? strerror(errno) : "it has become shorter");
        at += (uint64_t)n;
    }
    return 0;
}

// One file as it is, whether it is a part or not; room: NULL, or it is read (gguf_open_read).
static int open_file(struct gguf **out, const char *path, uint64_t *room, struct budget *budget,
                     struct inst_msg *msg)
{
    const char *slash = strrchr(path, '/'), *name = slash && slash[1] ? slash + 1 : path;
    struct stat st;
    *out = NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return inst_fail(msg, errno == ENOENT ? INST_ENOENT : INST_EIO, "%s: %s", path,
                         strerror(errno));
    int rc = fstat(fd, &st) ? inst_fail(msg, INST_EIO, "%s: %s", path, strerror(errno)) : 0;
    if (!rc && !S_ISREG(st.st_mode))
        rc = inst_fail(msg, INST_EFORMAT, "%s: not a regular file", path);
    if (!rc && !st.st_size)
        rc = inst_fail(msg, INST_EFORMAT, "%s: header at offset 0: the file is empty", name);
    void *map = NULL;
    struct mapping copy = {0};
    const uint64_t bytes = rc ? 0 : (uint64_t)st.st_size;
    if (!rc)
        rc = room ? read_file(&copy, fd, bytes, room, path, msg)
                  : map_file(&map, fd, bytes, path, msg);
    close(fd);
    if (!rc)
        rc = gguf_load(out, room ? copy.data : map, bytes, name, budget, msg);
    if (rc) {
        if (map)
            munmap(map, bytes);
        mapping_close(&copy);
        return rc;
    }
    (*out)->map = map;
    (*out)->copy = copy;
    return 0;
}

// Opens the parts after the first, which is at `path`, and joins them.
static int open_parts(struct gguf *first, const char *path, uint64_t *room, struct inst_msg *msg)
{
    uint64_t count, unused = UINT64_MAX;
    char suffix[64], *name;
    int rc = gguf_split_count(first, &count, msg);
    if (rc || count == 1)
        return rc;
    rc = gguf_split_check(first, 0, count, &unused, msg);
    if (rc)
        return rc;
    size_t suffix_bytes =
        (size_t)snprintf(suffix, sizeof suffix, "-00001-of-%05" PRIu64 ".gguf", count);
    size_t bytes = strlen(path), stem = bytes - suffix_bytes;
    if (bytes <= suffix_bytes || strcmp(path + stem, suffix))
        return gguf_fail_key(first, gguf_find(first, "split.count"), INST_EFORMAT, msg,
                             "one of %" PRIu64 " parts, but not named NAME%s", count, suffix);
    first->part =
        budget_alloc(first->budget, count - 1, sizeof(struct gguf *), "the GGUF parts", msg);
    name = budget_alloc(first->budget, bytes + 1, 1, "the GGUF parts", msg);
    if (!first->part || !name)
        rc = INST_ENOMEM;
    for (uint64_t i = 1; i < count && !rc; i++) {
        gguf_part_path(path, i, name, bytes + 1);
        if (access(name, F_OK))
            rc = inst_fail(msg, INST_ENOENT,
                           "%s: part %" PRIu64 " of %" PRIu64 " is missing: no file %s",
                           first->name, i + 1, count, name);
        else
            rc = open_file(&first->part[i - 1], name, room, first->budget, msg);
        if (!rc)
            first->n_parts = i;
    }
    budget_free(first->budget, name);
    return rc ? rc : gguf_join(first, msg);
}

static int open_model(struct gguf **out, const char *path, uint64_t *room, struct budget *budget,
                      struct inst_msg *msg)
{
    int rc = open_file(out, path, room, budget, msg);
    if (!rc)
        rc = open_parts(*out, path, room, msg);
    if (rc) {
        gguf_close(*out);
        *out = NULL;
    }
    return rc;
}

int gguf_open(struct gguf **out, const char *path, struct budget *budget, struct inst_msg *msg)
{
    return open_model(out, path, NULL, budget, msg);
}

int gguf_open_read(struct gguf **out, const char *path, uint64_t *room, struct budget *budget,
                   struct inst_msg *msg)
{
    return open_model(out, path, room, budget, msg);
}

void gguf_close(struct gguf *g)
{
    if (!g)
        return;
    struct budget *budget = g->budget;
    for (uint64_t i = 0; i < g->n_parts; i++)
        gguf_close(g->part[i]);
    if (g->map)
        munmap(g->map, g->size);
    mapping_close(&g->copy);
    gguf_free_tensors(g);
    budget_free(budget, g->part);
    budget_free(budget, g->key_index.slot);
    budget_free(budget, g->keys);
    budget_free(budget, g);
}
