// SPDX-License-Identifier: Apache-2.0
#include "cmd/batch/part.h"
#include "cmd/options.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

static const char magic[] = "{\"instinfer_batch\":1,";

static int failed_call(const struct batch_part *part)
{
    return fail(EXIT_FAILED, "%s: %s", part->path, strerror(errno));
}

static int no_memory(const struct batch_part *part)
{
    return fail(EXIT_FAILED, "%s: out of memory", part->path);
}

// Opens and locks; -1 with errno.
static int open_locked(const char *path)
{
    for (;;) {
        struct stat ours, there;
        int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOCTTY, 0666);
        if (fd < 0)
            return -1;
        int err = flock(fd, LOCK_EX | LOCK_NB) || fstat(fd, &ours) ? errno : 0;
        if (!err && !S_ISREG(ours.st_mode))
            err = EINVAL;
        // Another process may have finished and removed it in between.
        if (!err && !stat(path, &there) && ours.st_dev == there.st_dev &&
            ours.st_ino == there.st_ino)
            return fd;
        close(fd);
        if (err) {
            errno = err;
            return -1;
        }
    }
}

static int open_reader(struct batch_part *part)
{
    int fd = fcntl(part->fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    part->reader = fd < 0 ? NULL : fdopen(fd, "rb");
    if (part->reader)
        return 0;
    int code = failed_call(part);
    if (fd >= 0)
        close(fd);
    return code;
}

int batch_part_open(struct batch_part *part, const char *path)
{
    *part = (struct batch_part){.path = path, .fd = open_locked(path)};
    if (part->fd < 0 && errno == EWOULDBLOCK)
        return fail(EXIT_FAILED, "%s: another process is working on it", path);
    if (part->fd < 0)
        return failed_call(part);
    return open_reader(part);
}

int batch_part_open_whole(struct batch_part *part, const char *path)
{
    *part = (struct batch_part){.path = path, .fd = open(path, O_RDONLY | O_CLOEXEC)};
    return part->fd < 0 ? failed_call(part) : open_reader(part);
}

void batch_part_close(struct batch_part *part)
{
    struct stat st;
    if (!part->path)
        return;
    if (part->fd >= 0 && (fcntl(part->fd, F_GETFL) & O_ACCMODE) == O_RDWR &&
        !fstat(part->fd, &st) && !st.st_size)
        unlink(part->path);
    if (part->reader)
        fclose(part->reader);
    if (part->fd >= 0)
        close(part->fd);
    cJSON_Delete(part->head);
    free(part->text);
    *part = (struct batch_part){.fd = -1};
}

const char *batch_head_text(const cJSON *head, const char *key)
{
    const char *text = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(head, key));
    return text ? text : "";
}

int batch_head_compare(const char *path, const cJSON *head, const cJSON *other, const char *but)
{
    const cJSON *item;
    cJSON_ArrayForEach(item, other)
    {
        const cJSON *same = cJSON_GetObjectItemCaseSensitive(head, item->string);
        if (!strcmp(item->string, "date") || !strcmp(item->string, but) ||
            cJSON_Compare(same, item, true))
            continue;
        return fail(EXIT_FAILED,
                    "%s: it holds answers of another run: its %s is '%.80s', not '%.80s' (the same "
                    "command goes on with it; without the file it begins anew)",
                    path, item->string, batch_head_text(head, item->string),
                    batch_head_text(other, item->string));
    }
    return 0;
}

// The line at the reader's place, its end left out. False at the end and for one without an end.
static bool read_record(struct batch_part *part, size_t *bytes)
{
    ssize_t n = getline(&part->text, &part->room, part->reader);
    if (n <= 0 || part->text[n - 1] != '\n')
        return false;
    part->text[n - 1] = 0;
    *bytes = (size_t)n - 1;
    return true;
}

// The file's head: 0, an exit code, or -1: it has none yet.
static int read_head(struct batch_part *part)
{
    size_t n = 0;
    struct stat st;
    if (fstat(part->fd, &st) || fseeko(part->reader, 0, SEEK_SET))
        return failed_call(part);
    bool whole = read_record(part, &n);
    if (!whole && st.st_size < (off_t)sizeof magic - 1)
        n = (size_t)st.st_size;
    else if (!whole)
        n = sizeof magic - 1;
    size_t common = n < sizeof magic - 1 ? n : sizeof magic - 1;
    bool ours = !n || (part->text && !memcmp(part->text, magic, common));
    if (!whole && ours)
        return -1; // it was only just begun
    part->head = ours ? cJSON_ParseWithLength(part->text, n) : NULL;
    if (!part->head)
        return fail(EXIT_FAILED, "%s: it is not what a batch left", part->path);
    part->begin = part->end = n + 1;
    return 0;
}

int batch_part_read_head(struct batch_part *part)
{
    int code = read_head(part);
    return code < 0 ? fail(EXIT_FAILED, "%s: it is not whole", part->path) : code;
}

static bool write_all(int fd, const char *bytes, size_t n, uint64_t offset)
{
    while (n) {
        ssize_t put = pwrite(fd, bytes, n, (off_t)offset);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0) {
            errno = put ? errno : ENOSPC;
            return false;
        }
        bytes += put;
        n -= (size_t)put;
        offset += (uint64_t)put;
    }
    return true;
}

int batch_part_begin(struct batch_part *part, cJSON *head)
{
    int code = head ? read_head(part) : no_memory(part);
    if (code >= 0) {
        if (!code)
            code = batch_head_compare(part->path, part->head, head, "");
        cJSON_Delete(head);
        return code;
    }
    part->head = head;
    char *text = cJSON_PrintUnformatted(head);
    if (!text)
        return no_memory(part);
    size_t n = strlen(text);
    text[n] = '\n'; // instead of the 0
    bool ok = !ftruncate(part->fd, 0) && write_all(part->fd, text, n + 1, 0);
    cJSON_free(text);
    part->begin = part->end = n + 1;
    return ok ? 0 : failed_call(part);
}

// The answer in a record, NULL: it is torn.
static const char *answer_in(const struct batch_part *part, size_t bytes, uint32_t *number,
                             size_t *answer_bytes)
{
    const char *text = part->text;
    char *end;
    unsigned long n = strtoul(text, &end, 10);
    if (end == text || *end != ' ' || !n || n >= UINT32_MAX || bytes < (size_t)(end - text) + 18 ||
        end[17] != ' ')
        return NULL;
    const char *answer = end + 18;
    *answer_bytes = bytes - (size_t)(answer - text);
    *number = (uint32_t)n;
    char *print_end;
    uint64_t print = strtoull(end + 1, &print_end, 16);
    bool whole =
        print_end == end + 17 && print == XXH3_64bits_withSeed(answer, *answer_bytes, *number);
    return whole ? answer : NULL;
}

int batch_part_each(struct batch_part *part, batch_record_fn *fn, void *user)
{
    size_t bytes, answer_bytes;
    uint32_t number;
    int code = 0;
    part->end = part->begin;
    if (fseeko(part->reader, (off_t)part->begin, SEEK_SET))
        return failed_call(part);
    while (!code && read_record(part, &bytes)) {
        const char *answer = answer_in(part, bytes, &number, &answer_bytes);
        if (!answer)
            break;
        code = fn(user, number, part->end, answer, answer_bytes);
        part->end += bytes + 1;
    }
    if (!code && ferror(part->reader))
        code = failed_call(part);
    return code;
}

int batch_part_cut(struct batch_part *part)
{
    if (ftruncate(part->fd, (off_t)part->end))
        return failed_call(part);
    fclose(part->reader); // it may have read some of what is gone
    return open_reader(part);
}

int batch_part_add(struct batch_part *part, uint32_t number, const char *answer, size_t bytes,
                   uint64_t *offset)
{
    char front[32];
    int n = snprintf(front, sizeof front, "%" PRIu32 " %016" PRIx64 " ", number,
                     (uint64_t)XXH3_64bits_withSeed(answer, bytes, number));
    char *record = malloc((size_t)n + bytes + 1);
    if (!record)
        return no_memory(part);
    memcpy(record, front, (size_t)n);
    memcpy(record + n, answer, bytes);
    record[(size_t)n + bytes] = '\n';
    errno = 0;
    bool ok = write_all(part->fd, record, (size_t)n + bytes + 1, part->end);
    free(record);
    if (!ok)
        return failed_call(part);
    *offset = part->end;
    part->end += (size_t)n + bytes + 1;
    return 0;
}

const char *batch_part_read(struct batch_part *part, uint64_t offset, size_t *bytes)
{
    uint32_t number;
    size_t n;
    const char *answer = NULL;
    errno = 0;
    if (!fseeko(part->reader, (off_t)offset, SEEK_SET) && read_record(part, &n))
        answer = answer_in(part, n, &number, bytes);
    if (!answer)
        fail(EXIT_FAILED, "%s: %s", part->path,
             errno ? strerror(errno) : "an answer changed after it was written");
    return answer;
}
