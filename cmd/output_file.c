// SPDX-License-Identifier: Apache-2.0
#include "cmd/output_file.h"
#include "host/model/gguf.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    LINKS_MAX = 40,          // as the kernel follows
    NAME_MAX_KEPT = 200,     // bytes of the file's name in that of the unfinished one
    FIRST_BYTES = 64 * 1024, // that every disk must have room for
};

// Names of unfinished files, NULL = free. Handlers read them, so they change in single steps and
// what they point to is freed after.
static _Atomic(char *) unfinished[OUTPUT_FILES_MAX];

void output_files_discard(void)
{
    for (size_t i = 0; i < OUTPUT_FILES_MAX; i++) {
        const char *name = unfinished[i];
        if (name)
            unlink(name);
    }
}

static void on_deadly_signal(int signal)
{
    output_files_discard();
    raise(signal); // the handler is gone by now: it waits until this one returns
}

static void watch_deadly_signals(void)
{
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT};
    struct sigaction old,
        action = {.sa_handler = on_deadly_signal, .sa_flags = (int)SA_RESETHAND | SA_RESTART};
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
        if (!sigaction(signals[i], NULL, &old) && old.sa_handler == SIG_DFL)
            sigaction(signals[i], &action, NULL);
}

static int refuse(const struct options *options, const struct option *row, const char *what)
{
    const struct output_file *out = row->value;
    return fail(EXIT_USAGE, "%s: %s: '%s' %s", options->command, row->name, out->path, what);
}

int output_file_failed(const struct output_file *out)
{
    return fail(EXIT_FAILED, "%s: %s", out->path, errno ? strerror(errno) : "it cannot be written");
}

// What cannot be replaced by another file but is an input or output of its own.
static bool is_one_file(const struct stat *a, const struct stat *b)
{
    return (S_ISREG(a->st_mode) || S_ISBLK(a->st_mode)) && a->st_dev == b->st_dev &&
           a->st_ino == b->st_ino;
}

// Whether the model at `path`, in one or several files, has this one.
static bool model_has(const char *path, const struct stat *file)
{
    struct stat st;
    char part[PATH_MAX];
    if (!stat(path, &st) && is_one_file(file, &st))
        return true;
    for (uint64_t i = 0; gguf_part_path(path, i, part, sizeof part); i++)
        if (!stat(part, &st) && is_one_file(file, &st))
            return true;
    return false;
}

// The option that reads this file, or NULL.
static const char *reader_of(const struct options *options, const struct stat *file)
{
    struct stat st;
    for (size_t i = 0; i < options->n_rows; i++) {
        const struct option *row = &options->rows[i];
        if (row->kind != OPTION_INPUT && row->kind != OPTION_MODEL)
            continue;
        const char *path = *(const char **)row->value;
        if (!path)
            continue;
        bool model = row->kind == OPTION_MODEL;
        if (model ? model_has(path, file) : !stat(path, &st) && is_one_file(file, &st))
            return row->name;
    }
    return NULL;
}

// What is there must not be in use by this command in another way.
static int check_present(const struct options *options, const struct option *row,
                         const struct stat *file)
{
    static const char *const streams[] = {"standard input", "standard output", "standard error"};
    char what[96];
    struct stat st;
    const char *reader = reader_of(options, file);
    if (reader) {
        snprintf(what, sizeof what, "is the file that %s reads", reader);
        return refuse(options, row, what);
    }
    for (int fd = 0; fd <= STDERR_FILENO; fd++)
        if (!fstat(fd, &st) && is_one_file(file, &st)) {
            snprintf(what, sizeof what, "is open as %s", streams[fd]);
            return refuse(options, row, what);
        }
    return 0;
}

// "-" and names of descriptors that are open here; -1: another name.
static int own_descriptor(const char *path)
{
    static const char *const folders[] = {"/dev/fd/", "/proc/self/fd/"};
    if (!strcmp(path, "-") || !strcmp(path, "/dev/stdout"))
        return STDOUT_FILENO;
    if (!strcmp(path, "/dev/stderr"))
        return STDERR_FILENO;
    for (size_t i = 0; i < 2; i++) {
        size_t n = strlen(folders[i]), digits = 0;
        if (!strncmp(path, folders[i], n) && (digits = strspn(path + n, "0123456789")) &&
            digits < 8 && !path[n + digits])
            return atoi(path + n);
    }
    return -1;
}

// The path with links followed at its end, whether there is a file yet or not; the caller's. NULL
// with errno.
static char *follow_links(const char *path)
{
    char at[PATH_MAX], link[PATH_MAX], *folder;
    if (strlen(path) >= sizeof at) {
        errno = ENAMETOOLONG;
        return NULL;
    }
    strcpy(at, path);
    for (int links = 0; links <= LINKS_MAX; links++) {
        char *slash = strrchr(at, '/'), *name = slash ? slash + 1 : at;
        ssize_t n = readlink(at, link, sizeof link - 1);
        if (n >= 0) {
            link[n] = 0;
            size_t before = *link == '/' ? 0 : (size_t)(name - at);
            if (before + (size_t)n >= sizeof at) {
                errno = ENAMETOOLONG;
                return NULL;
            }
            memcpy(at + before, link, (size_t)n + 1);
            continue;
        }
        if (errno != EINVAL && errno != ENOENT)
            return NULL;
        if (!*name) {
            errno = slash ? EISDIR : ENOENT;
            return NULL;
        }
        char *whole = NULL, last[NAME_MAX + 2];
        snprintf(last, sizeof last, "%s", name);
        *name = 0;
        if ((folder = realpath(*at ? at : ".", NULL)) &&
            asprintf(&whole, "%s/%s", strcmp(folder, "/") ? folder : "", last) < 0)
            whole = NULL;
        free(folder);
        return whole;
    }
    errno = ELOOP;
    return NULL;
}

static int open_straight(struct output_file *out, int fd)
{
    int flags = fd < 0 ? -1 : fcntl(fd, F_GETFL);
    if (flags >= 0 && (flags & O_ACCMODE) == O_RDONLY)
        errno = EBADF;
    else if (flags >= 0)
        out->stream = fdopen(fd, "wb");
    if (out->stream)
        return 0;
    int code = output_file_failed(out);
    if (fd >= 0)
        close(fd);
    return code;
}

// Some files can be written, but no other can take their place.
static int check_place(const struct output_file *out, const struct stat *file)
{
    struct statx x;
    if (!statx(AT_FDCWD, out->target, 0, STATX_BASIC_STATS, &x) &&
        (x.stx_attributes & STATX_ATTR_MOUNT_ROOT)) {
        errno = EBUSY; // a container's single files are mounted so
        return output_file_failed(out);
    }
    struct stat folder;
    char *copy = strdup(out->target), *slash = copy ? strrchr(copy, '/') : NULL;
    if (!slash)
        return fail(EXIT_FAILED, "out of memory");
    slash[slash == copy] = 0;
    bool sticky = !stat(copy, &folder) && folder.st_mode & S_ISVTX;
    free(copy);
    uid_t me = geteuid();
    if (sticky && me && me != file->st_uid && me != folder.st_uid) {
        errno = EPERM;
        return output_file_failed(out);
    }
    return 0;
}

// Makes the unfinished file beside the target and writes its name where handlers find it.
static int open_beside(struct output_file *out)
{
    const char *slash = strrchr(out->target, '/');
    char *name = NULL;
    size_t slot = 0;
    while (slot < OUTPUT_FILES_MAX && unfinished[slot])
        slot++;
    if (slot == OUTPUT_FILES_MAX)
        return fail(EXIT_FAILED, "%s: too many output files", out->path);
    if (out->unfinished)
        name = strdup(out->unfinished);
    else if (asprintf(&name, "%.*s%.*s.part-XXXXXX", (int)(slash + 1 - out->target), out->target,
                      NAME_MAX_KEPT, slash + 1) < 0)
        name = NULL;
    if (!name)
        return fail(EXIT_FAILED, "out of memory");
    sigset_t all, before;
    sigfillset(&all);
    watch_deadly_signals();
    sigprocmask(SIG_BLOCK, &all, &before); // or it could stay behind without being known
    int fd = out->unfinished
                 ? open(name, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600)
                 : mkostemp(name, O_CLOEXEC);
    if (fd >= 0) {
        out->name = &unfinished[slot];
        *out->name = name;
    }
    sigprocmask(SIG_SETMASK, &before, NULL);
    if (fd < 0) {
        int code = output_file_failed(out);
        free(name);
        return code;
    }
    out->stream = fdopen(fd, "wb");
    if (!out->stream) {
        close(fd);
        return output_file_failed(out);
    }
    return 0;
}

// As the old file, or as a new one would be.
static void give_permissions(const struct output_file *out, const struct stat *file)
{
    int fd = fileno(out->stream);
    mode_t mask = umask(0);
    umask(mask);
    // What is not ours to give stays its writer's.
    if (out->replaces && fchown(fd, file->st_uid, file->st_gid) &&
        fchown(fd, (uid_t)-1, file->st_gid))
        errno = 0;
    fchmod(fd, out->replaces ? file->st_mode & 0777 : 0666 & ~mask);
}

static int open_output(const struct options *options, const struct option *row)
{
    struct output_file *out = row->value;
    struct stat file;
    errno = 0;
    int own = own_descriptor(out->path);
    if (own >= 0)
        return open_straight(out, fcntl(own, F_DUPFD_CLOEXEC, STDERR_FILENO + 1));
    bool present = !stat(out->path, &file);
    if (!present && errno != ENOENT)
        return output_file_failed(out);
    int code = present ? check_present(options, row, &file) : 0;
    if (code)
        return code;
    if (present && out->new_only && S_ISREG(file.st_mode))
        return fail(EXIT_FAILED, "%s: the file exists (see --overwrite)", out->path);
    // That the old file may be written is asked of the system, by opening it for that.
    int fd = present ? open(out->path, O_WRONLY | O_CLOEXEC | O_NOCTTY) : -1;
    if (present && (fd < 0 || !S_ISREG(file.st_mode)))
        return open_straight(out, fd);
    if (present)
        close(fd);
    out->replaces = present;
    if (!(out->target = follow_links(out->path)))
        return output_file_failed(out);
    for (const struct option *other = options->rows; other < row; other++) {
        const struct output_file *earlier = other->value;
        if (other->kind == OPTION_OUTPUT && earlier->target &&
            !strcmp(earlier->target, out->target))
            return refuse(options, row, "is the output of another option, too");
    }
    code = present ? check_place(out, &file) : 0;
    if (!code)
        code = open_beside(out);
    if (!code)
        give_permissions(out, &file);
    return code ? code : output_file_reserve(out, FIRST_BYTES);
}

int output_files_open(const struct options *options)
{
    int code = 0;
    for (size_t i = 0; i < options->n_rows && !code; i++) {
        struct output_file *out = options->rows[i].value;
        if (options->rows[i].kind == OPTION_OUTPUT && out->path && !out->stream)
            code = open_output(options, &options->rows[i]);
    }
    for (size_t i = 0; i < options->n_rows && code; i++)
        if (options->rows[i].kind == OPTION_OUTPUT)
            output_file_abandon(options->rows[i].value);
    return code;
}

int output_file_reserve(struct output_file *out, uint64_t bytes)
{
    if (!out->target || bytes > INT64_MAX)
        return 0;
    errno = 0;
    if (fallocate(fileno(out->stream), FALLOC_FL_KEEP_SIZE, 0, (off_t)bytes) &&
        (errno == ENOSPC || errno == EDQUOT || errno == EFBIG))
        return output_file_failed(out);
    return 0; // where nothing can be reserved it will be seen
}

void output_file_abandon(struct output_file *out)
{
    if (out->name) {
        char *name = *out->name;
        unlink(name);
        *out->name = NULL;
        free(name);
        out->name = NULL;
    }
    if (out->stream)
        fclose(out->stream);
    out->stream = NULL;
    free(out->target);
    out->target = NULL;
}

// Everything in the file, the reserve given back and, where an old file is at stake, on the disk.
static bool complete(struct output_file *out)
{
    struct stat st;
    int fd = fileno(out->stream);
    errno = 0;
    if (fflush(out->stream) || ferror(out->stream))
        return false;
    if (!out->target)
        return true;
    return !fstat(fd, &st) && !ftruncate(fd, st.st_size) && (!out->replaces || !fsync(fd));
}

int output_file_close(struct output_file *out)
{
    if (!out->stream)
        return 0;
    bool ok = complete(out);
    FILE *stream = out->stream;
    int saved = errno;
    out->stream = NULL;
    if (fclose(stream) && ok) {
        ok = false;
        saved = errno;
    }
    errno = saved;
    if (ok && out->target) {
        ok = !renameat2(AT_FDCWD, *out->name, AT_FDCWD, out->target,
                        out->new_only && !out->replaces ? RENAME_NOREPLACE : 0);
        if (!ok && errno == EINVAL) // not on every file system
            ok = !rename(*out->name, out->target);
    }
    int code = ok ? 0 : output_file_failed(out);
    if (ok && out->name) {
        char *name = *out->name;
        *out->name = NULL;
        free(name);
        out->name = NULL;
    }
    output_file_abandon(out);
    return code;
}
