// SPDX-License-Identifier: Apache-2.0
// The file back end: a private unnamed sparse file of the size of the whole geometry; a block is a
// range of it, an erase punches a hole. Operations wait in one queue and start in order, at most
// FILE_SLOTS requests at a time; neighbours in the file are joined into one request. An operation
// that overlaps one in flight (and one of them is no read), or a SYNC behind programs and erases,
// holds the queue until that is done: orders inside a block are kept without a table of blocks.
// Of much that is to be moved only half is on its way at a time. The disk of a virtual machine may
// tell of nothing before it has done all that it was given; then it goes on with the other half
// while the first one is computed on.
// Opens no existing file and leaves none behind.
#include "drive/flash/file.h"
#include "base/checked.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    RETRIES_MAX = 1000,        // of a request without progress
    DROP_ALL_BYTES = 32 << 20, // page cache that programs may leave behind on the buffered path
    MOVING_LEAST = 2 << 20     // on its way at a time: keeps a disk of 14 GB/s busy for 150 us
};

struct flash_file {
    struct flash flash;
    struct flash_nand nand;
    struct budget *budget;
    int fd;
    bool direct;
    struct file_engine *engine;
    struct flash_queue pending; // accepted, not started
    struct flash_queue retry;   // of joined requests that failed; each is tried again alone
    struct flash_queue done;
    uint64_t outstanding; // operations accepted and not yet in `done`
    unsigned writers;     // programs and erases in flight
    unsigned in_flight;   // requests
    uint64_t moving;      // bytes of reads and programs in flight
    uint64_t waiting;     // of those that are pending or to be tried again
    uint64_t dirty_bytes; // programmed since the page cache was dropped as a whole
    struct file_request *free;
    struct file_request *slots; // (FILE_SLOTS)
};

static int status_of_errno(int error)
{
    switch (error) {
    case 0:
        return 0;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return INST_ENOSPC;
    default:
        return INST_EIO;
    }
}

static void io_done(struct flash_file *self, struct flash_io *io, int status, uint64_t now_ns)
{
    self->outstanding--;
    flash_queue_finish(&self->done, io, status, now_ns);
}

// ---- starting -----------------------------------------------------------------------------------

static enum file_op file_op_of(enum flash_op op)
{
    switch (op) {
    case FLASH_READ:
        return FILE_READ;
    case FLASH_PROGRAM:
        return FILE_WRITE;
    case FLASH_ERASE:
        return FILE_PUNCH;
    default:
        return FILE_SYNC;
    }
}

static bool file_op_changes(enum file_op op)
{
    return op == FILE_WRITE || op == FILE_PUNCH;
}

static void io_range(const struct flash_geometry *geometry, const struct flash_io *io,
                     uint64_t *start, uint64_t *end)
{
    if (io->op == FLASH_ERASE) {
        *start = io->block * flash_block_bytes(geometry);
        *end = *start + flash_block_bytes(geometry);
    } else if (io->op == FLASH_SYNC) {
        *start = *end = 0;
    } else {
        *start = flash_io_offset(geometry, io);
        *end = *start + flash_io_bytes(geometry, io);
    }
}

// Bytes that an operation moves from or to the file.
static uint64_t io_moves(const struct flash_file *self, const struct flash_io *io)
{
    bool moves = io->op == FLASH_READ || io->op == FLASH_PROGRAM;
    return moves ? flash_io_bytes(&self->flash.geometry, io) : 0;
}

// Enough is on its way.
static bool must_stay(const struct flash_file *self)
{
    return self->moving >= max_u64(MOVING_LEAST, (self->moving + self->waiting) / 2);
}

static bool must_wait(const struct flash_file *self, const struct flash_io *io)
{
    if (self->writers == 0 && io->op != FLASH_ERASE)
        return false;
    if (io->op == FLASH_SYNC)
        return true;
    uint64_t start, end;
    io_range(&self->flash.geometry, io, &start, &end);
    bool changes = io->op != FLASH_READ;
    for (unsigned i = 0; i < FILE_SLOTS; i++) {
        const struct file_request *other = &self->slots[i];
        if (other->ios && (changes || file_op_changes(other->op)) && start < other->end &&
            other->start < end)
            return true;
    }
    return false;
}

static void request_append(struct flash_file *self, struct file_request *request,
                           struct flash_io *io)
{
    uint64_t start, moves = io_moves(self, io);
    io_range(&self->flash.geometry, io, &start, &request->end);
    request->bytes = request->end - request->start;
    self->moving += moves;
    self->waiting -= moves;
    if (io->op != FLASH_READ && io->op != FLASH_PROGRAM)
        return;
    struct iovec *last = request->iov_count ? &request->iovecs[request->iov_count - 1] : NULL;
    if (last && (char *)last->iov_base + last->iov_len == (char *)io->data)
        last->iov_len += request->end - start;
    else
        request->iovecs[request->iov_count++] =
            (struct iovec){.iov_base = io->data, .iov_len = request->end - start};
}

// The queue's next operation continues the request: same kind, next in the file, room left.
static bool request_can_join(const struct flash_file *self, const struct file_request *request,
                             const struct flash_io *io)
{
    if (!io || (io->op != FLASH_READ && io->op != FLASH_PROGRAM) ||
        file_op_of(io->op) != request->op || request->iov_count == FILE_IOVECS)
        return false;
    uint64_t start, end;
    io_range(&self->flash.geometry, io, &start, &end);
    return start == request->end && end - request->start <= FILE_JOIN_BYTES && !must_wait(self, io);
}

static void request_start(struct flash_file *self, struct flash_queue *from, bool join)
{
    struct file_request *request = self->free;
    self->free = request->next;
    struct flash_io *io = flash_queue_pop(from);
    request->op = file_op_of(io->op);
    request->iov = request->iovecs;
    request->iov_count = 0;
    request->retries = 0;
    io_range(&self->flash.geometry, io, &request->start, &request->end);
    struct flash_queue ios = {0};
    flash_queue_push(&ios, io);
    request_append(self, request, io);
    while (join && request_can_join(self, request, from->head)) {
        io = flash_queue_pop(from);
        flash_queue_push(&ios, io);
        request_append(self, request, io);
    }
    request->ios = ios.head;
    request->offset = request->start;
    self->writers += file_op_changes(request->op);
    self->in_flight++;
    self->engine->ops->start(self->engine, request);
}

static void start_what_can(struct flash_file *self)
{
    // Retried operations were started once: nothing pending may overtake them.
    while (self->free && self->retry.head)
        request_start(self, &self->retry, false);
    while (self->free && self->pending.head && !must_stay(self) &&
           !must_wait(self, self->pending.head))
        request_start(self, &self->pending, true);
    self->engine->ops->flush(self->engine);
}

static void queue_io(struct flash_file *self, struct flash_queue *queue, struct flash_io *io)
{
    self->waiting += io_moves(self, io);
    flash_queue_push(queue, io);
}

// ---- finishing ----------------------------------------------------------------------------------

static void request_free(struct flash_file *self, struct file_request *request)
{
    request->ios = NULL;
    request->next = self->free;
    self->free = request;
    self->in_flight--;
}

// Skips the first `bytes` of what is left.
static void request_advance(struct file_request *request, uint64_t bytes)
{
    request->offset += bytes;
    request->bytes -= bytes;
    while (bytes) {
        if (bytes < request->iov->iov_len) {
            request->iov->iov_base = (char *)request->iov->iov_base + bytes;
            request->iov->iov_len -= bytes;
            return;
        }
        bytes -= request->iov->iov_len;
        request->iov++;
        request->iov_count--;
    }
}

// The error that ends the request, 0 when it is complete, -1 when it goes on and was restarted.
static int request_outcome(struct flash_file *self, struct file_request *request)
{
    int error = request->result < 0 ? (int)-request->result : 0;
    bool again = error == EINTR || error == EAGAIN;
    // A file system that cannot punch holes keeps the space: the block is rewritten in place.
    if (request->op == FILE_PUNCH && error != EIO && !again)
        return 0;
    if (error && !again)
        return error;
    uint64_t moved = error ? 0 : min_u64((uint64_t)request->result, request->bytes);
    if (!error &&
        (request->op == FILE_SYNC || request->op == FILE_PUNCH || moved == request->bytes))
        return 0;
    // Direct I/O goes on only at an aligned place, so the page that was cut is moved again.
    moved -= moved % self->flash.geometry.page_bytes;
    if (moved == 0 && ++request->retries > RETRIES_MAX)
        return error ? error : EIO;
    request_advance(request, moved);
    self->engine->ops->start(self->engine, request);
    return -1;
}

static void request_drop_cache(struct flash_file *self, struct file_request *request)
{
    request->offset = request->start;
    request->bytes = request->end - request->start;
    if (request->op == FILE_WRITE)
        self->dirty_bytes += request->bytes;
    // A first drop only starts the write-back; what has become clean since is dropped here.
    if (self->dirty_bytes >= DROP_ALL_BYTES || request->op == FILE_SYNC) {
        self->dirty_bytes = 0;
        request->offset = request->bytes = 0;
    }
    request->op = FILE_DROP;
    self->engine->ops->start(self->engine, request);
}

static void request_done(struct flash_file *self, struct file_request *request, uint64_t now_ns)
{
    if (request->op == FILE_DROP) {
        request_free(self, request);
        return;
    }
    int error = request_outcome(self, request);
    if (error < 0)
        return;
    struct flash_io *list = request->ios;
    bool joined = list->next != NULL;
    self->writers -= file_op_changes(request->op);
    request->ios = NULL;
    for (struct flash_io *io = list, *next; io; io = next) {
        next = io->next;
        self->moving -= io_moves(self, io);
        // One bad sector or the last free bytes must not fail the neighbours' operations too.
        if (error && joined)
            queue_io(self, &self->retry, io);
        else
            io_done(self, io, status_of_errno(error), now_ns);
    }
    if (!self->direct && !error && request->op != FILE_PUNCH)
        request_drop_cache(self, request);
    else
        request_free(self, request);
}

// ---- the table ----------------------------------------------------------------------------------

static void file_submit(struct flash *flash, struct flash_io *list, uint64_t now_ns)
{
    struct flash_file *self = (struct flash_file *)flash;
    for (struct flash_io *io = list, *next; io; io = next) {
        next = io->next;
        bool erased = io->op == FLASH_ERASE && io->block < flash->geometry.blocks &&
                      self->nand.next[io->block] == 0;
        int rc = flash_nand_accept(&self->nand, &flash->geometry, io);
        self->outstanding++;
        if (rc || erased) // nothing to do, or nothing that may be done
            io_done(self, io, rc, now_ns);
        else
            queue_io(self, &self->pending, io);
    }
    start_what_can(self);
}

static void reap_all(struct flash_file *self, uint64_t now_ns)
{
    struct file_request *request;
    while ((request = self->engine->ops->reap(self->engine)))
        request_done(self, request, now_ns);
}

static struct flash_io *file_poll(struct flash *flash, uint64_t now_ns)
{
    struct flash_file *self = (struct flash_file *)flash;
    reap_all(self, now_ns);
    start_what_can(self);
    return flash_queue_take(&self->done);
}

static void file_wait(struct flash *flash, uint64_t max_ns)
{
    struct flash_file *self = (struct flash_file *)flash;
    if (!self->done.head && self->outstanding)
        self->engine->ops->wait(self->engine, max_ns);
}

static void file_close(struct flash *flash)
{
    struct flash_file *self = (struct flash_file *)flash;
    if (self->engine) {
        // The system writes into the submitters' buffers until it has finished.
        self->pending = self->retry = (struct flash_queue){0};
        while (self->in_flight) {
            self->engine->ops->flush(self->engine);
            self->engine->ops->wait(self->engine, UINT64_MAX);
            reap_all(self, 0);
            self->retry = (struct flash_queue){0};
        }
        self->engine->ops->close(self->engine);
    }
    // Whoever still holds the file (the kernel may, for a ring that is gone), its room on the disk
    // is free when this returns: the next program may need it.
    if (self->fd >= 0 && ftruncate(self->fd, 0))
        (void)0; // closing it does the same, later
    budget_free(self->budget, self->slots);
    if (self->nand.next)
        flash_nand_free(&self->nand);
    if (self->fd >= 0)
        close(self->fd);
    free(self);
}

static const struct flash_ops file_ops = {
    .submit = file_submit,
    .poll = file_poll,
    .wait = file_wait,
    .close = file_close,
};

int flash_file_descriptor(const struct flash *flash)
{
    return flash->ops == &file_ops ? ((const struct flash_file *)flash)->fd : -1;
}

// ---- opening ------------------------------------------------------------------------------------

static int open_unnamed(const char *directory, int *out, struct inst_msg *msg)
{
    int fd = open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR || errno == EINVAL)) {
        char name[4096];
        int length = snprintf(name, sizeof name, "%s/.instinfer-XXXXXX", directory);
        if (length < 0 || (size_t)length >= sizeof name)
            return inst_fail(msg, INST_EINVAL, "%s: the name is too long", directory);
        fd = mkostemp(name, O_CLOEXEC);
        if (fd >= 0)
            (void)unlink(name);
    }
    if (fd < 0) {
        int code = errno == ENOENT || errno == ENOTDIR ? INST_ENOENT : status_of_errno(errno);
        return inst_fail(msg, code, "%s: cannot make a temporary file there: %s", directory,
                         strerror(errno));
    }
    *out = fd;
    return 0;
}

// Switches to direct I/O if a page can be written and read that way; else why not.
static int try_direct(int fd, uint32_t page_bytes, struct budget *budget)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_DIRECT))
        return -errno;
    void *base =
        budget_alloc_pages(budget, page_bytes + FLASH_DATA_ALIGN, "direct I/O probe", NULL);
    if (!base)
        return -ENOMEM;
    // Page 1, and a buffer aligned no better than buffers of small pages may be: file systems with
    // larger sectors show themselves here.
    char *page = (char *)base + page_bytes % FLASH_DATA_ALIGN;
    ssize_t n = pwrite(fd, page, page_bytes, (off_t)page_bytes);
    int rc = n < 0 ? -errno : 0;
    if (rc == 0 && pread(fd, page, page_bytes, (off_t)page_bytes) < 0)
        rc = -errno;
    if (rc == -ENOSPC || rc == -EDQUOT) // full already: says nothing about alignment
        rc = 0;
    budget_free(budget, base);
    if (rc)
        (void)fcntl(fd, F_SETFL, flags);
    return rc;
}

static int set_size(int fd, const struct flash_geometry *geometry, const char *directory,
                    struct inst_msg *msg)
{
    uint64_t bytes = geometry->blocks * flash_block_bytes(geometry);
    struct rlimit limit;
    // Beyond this limit the system would send a signal that ends the process.
    if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY &&
        limit.rlim_cur < bytes)
        return inst_fail(msg, INST_ENOSPC,
                         "%s: a file of %llu bytes is over this process's limit of %llu bytes "
                         "(ulimit -f)",
                         directory, (unsigned long long)bytes, (unsigned long long)limit.rlim_cur);
    if (ftruncate(fd, 0) || ftruncate(fd, (off_t)bytes))
        return inst_fail(msg, status_of_errno(errno == EINVAL ? EFBIG : errno),
                         "%s: cannot make a file of %llu bytes: %s", directory,
                         (unsigned long long)bytes, strerror(errno));
    return 0;
}

static const char *reason(bool switched_off, int rc)
{
    if (switched_off)
        return "switched off";
    return rc == -ENOSYS ? "not available" : strerror(-rc);
}

static int open_engine(struct flash_file *self, const struct flash_file_options *options,
                       int direct_rc, struct inst_msg *msg)
{
    int rc = options->no_uring ? -ENOSYS : file_uring_open(&self->engine, self->fd, self->budget);
    char engine[64], cache[64];
    snprintf(engine, sizeof engine, "io_uring");
    snprintf(cache, sizeof cache, "O_DIRECT");
    if (rc) {
        snprintf(engine, sizeof engine, "pread threads (io_uring: %.36s)",
                 reason(options->no_uring, rc));
        rc = file_threads_open(&self->engine, self->fd, self->budget);
        if (rc)
            return inst_fail(msg, rc == -ENOMEM ? INST_ENOMEM : INST_EIO,
                             "cannot start the threads of the KV file: %s", strerror(-rc));
    }
    if (!self->direct)
        snprintf(cache, sizeof cache, "buffered (O_DIRECT: %.36s)",
                 reason(options->no_direct, direct_rc));
    snprintf(self->flash.path, sizeof self->flash.path, "%s, %s", engine, cache);
    return 0;
}

static int file_init(struct flash_file *self, const struct flash_file_options *options,
                     struct inst_msg *msg)
{
    int rc = flash_nand_init(&self->nand, &options->geometry, options->budget, msg);
    if (rc)
        return rc;
    self->budget = self->nand.budget;
    self->slots = budget_alloc(self->budget, FILE_SLOTS, sizeof *self->slots,
                               "request slots of the KV file", msg);
    if (!self->slots)
        return INST_ENOMEM;
    for (unsigned i = FILE_SLOTS; i-- > 0;) {
        self->slots[i].next = self->free;
        self->free = &self->slots[i];
    }
    rc = open_unnamed(options->directory, &self->fd, msg);
    if (rc)
        return rc;
    int direct_rc = options->no_direct
                        ? -EINVAL
                        : try_direct(self->fd, options->geometry.page_bytes, self->budget);
    self->direct = direct_rc == 0;
    if (!self->direct) // no reading ahead: what is wanted is asked for
        (void)posix_fadvise(self->fd, 0, 0, POSIX_FADV_RANDOM);
    rc = set_size(self->fd, &options->geometry, options->directory, msg);
    if (rc)
        return rc;
    return open_engine(self, options, direct_rc, msg);
}

// What lies in the page cache says nothing about the disk.
static void probe_cost(struct flash_file *self, const struct flash_file_options *options)
{
    uint32_t *cost = &self->flash.geometry.request_bytes;
    if (!options->clock_ns || *cost)
        return;
    bool known = self->direct && flash_probe(&self->flash, options->clock_ns, self->budget, cost);
    if (!known)
        *cost = FLASH_REQUEST_FILE;
    size_t n = strlen(self->flash.path);
    snprintf(self->flash.path + n, sizeof self->flash.path - n, ", a request costs %s%u KiB",
             known ? "" : "perhaps ", *cost >> 10);
}

int flash_file_open(struct flash **out, const struct flash_file_options *options,
                    struct inst_msg *msg)
{
    int rc = flash_geometry_check(&options->geometry, msg);
    if (rc)
        return rc;
    struct flash_file *self = calloc(1, sizeof *self);
    if (!self)
        return inst_fail(msg, INST_ENOMEM, "KV file: no memory");
    self->flash.ops = &file_ops;
    self->flash.geometry = options->geometry;
    self->flash.geometry.no_data = false;
    self->flash.geometry.oob = false;
    self->fd = -1;
    rc = file_init(self, options, msg);
    if (rc) {
        file_close(&self->flash);
        return rc;
    }
    probe_cost(self, options);
    *out = &self->flash;
    return 0;
}
