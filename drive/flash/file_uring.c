// SPDX-License-Identifier: Apache-2.0
// io_uring under the file back end. Refuses (with the system's reason) where the ring cannot be
// made or does not work; the caller then takes threads. A ring that stops taking requests later is
// asked again for a while; then it counts as broken, what it never took fails, and what it did take
// is waited for without it.
#include "drive/flash/file.h"

#include <errno.h>

#ifdef HAVE_LIBURING

#include <fcntl.h>
#include <liburing.h>
#include <stdlib.h>
#include <time.h>

enum {
    // Twice the slots: a full set of requests and the timeouts that old kernels need in `wait`.
    RING_ENTRIES = 2 * FILE_SLOTS,
    RING_BYTES = RING_ENTRIES * (64 + 2 * 16) + 4096, // entries, completions, heads
    NAP_NS = 1000000,                                 // between two tries of a ring that refuses
    NAPS_MAX = 1000,                                  // then it is broken
};

// Linked through file_request.next, oldest first.
struct request_list {
    struct file_request *first, **end;
    unsigned count;
};

struct file_uring {
    struct file_engine engine;
    struct io_uring ring;
    struct budget *budget;
    int fd; // as the ring knows it: 0 of the registered files, or the descriptor
    unsigned char sqe_flags;
    struct request_list held;   // in the ring, not yet taken by the kernel
    struct request_list failed; // never will be
    unsigned naps;              // since the kernel last took something
    bool broken;                // the ring is not entered any more
};

static void list_clear(struct request_list *list)
{
    *list = (struct request_list){.end = &list->first};
}

static void list_push(struct request_list *list, struct file_request *request)
{
    request->next = NULL;
    *list->end = request;
    list->end = &request->next;
    list->count++;
}

static struct file_request *list_pop(struct request_list *list)
{
    struct file_request *request = list->first;
    if (!request)
        return NULL;
    list->first = request->next;
    if (!list->first)
        list->end = &list->first;
    list->count--;
    return request;
}

static void fail_request(struct file_uring *self, struct file_request *request)
{
    request->result = -EIO; // whatever the reason: no other error says that nothing happened
    list_push(&self->failed, request);
}

static void nap(uint64_t max_ns)
{
    struct timespec time = {.tv_nsec = (long)(max_ns < NAP_NS ? max_ns : NAP_NS)};
    (void)nanosleep(&time, NULL);
}

static void uring_start(struct file_engine *engine, struct file_request *request)
{
    struct file_uring *self = (struct file_uring *)engine;
    if (self->broken) {
        fail_request(self, request);
        return;
    }
    struct io_uring_sqe *sqe = io_uring_get_sqe(&self->ring);
    switch (request->op) {
    case FILE_READ:
        io_uring_prep_readv(sqe, self->fd, request->iov, request->iov_count, request->offset);
        break;
    case FILE_WRITE:
        io_uring_prep_writev(sqe, self->fd, request->iov, request->iov_count, request->offset);
        break;
    // These two by hand: the types of liburing's own functions differ between its versions.
    case FILE_PUNCH:
        io_uring_prep_rw(IORING_OP_FALLOCATE, sqe, self->fd, NULL,
                         FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, request->offset);
        sqe->addr = request->bytes;
        break;
    case FILE_SYNC:
        io_uring_prep_fsync(sqe, self->fd, IORING_FSYNC_DATASYNC);
        break;
    case FILE_DROP:
        // The kernel's length is 32 bits; anything longer is dropped to the end of the file.
        io_uring_prep_rw(IORING_OP_FADVISE, sqe, self->fd, NULL,
                         request->bytes > INT32_MAX ? 0 : (unsigned)request->bytes,
                         request->offset);
        sqe->fadvise_advice = POSIX_FADV_DONTNEED;
        break;
    }
    sqe->flags |= self->sqe_flags;
    io_uring_sqe_set_data(sqe, request);
    list_push(&self->held, request);
}

static void uring_flush(struct file_engine *engine)
{
    struct file_uring *self = (struct file_uring *)engine;
    if (self->broken || !io_uring_sq_ready(&self->ring))
        return;
    // What is refused, for want of memory say, stays in the ring and goes with the next flush.
    (void)io_uring_submit(&self->ring);
    // The kernel takes entries in order, and a timeout of liburing's own is only ever before ours.
    while (self->held.count > io_uring_sq_ready(&self->ring)) {
        list_pop(&self->held);
        self->naps = 0;
    }
}

// The entries of what is held stay in the ring, which is never submitted again.
static void give_up(struct file_uring *self)
{
    struct file_request *request;
    self->broken = true;
    while ((request = list_pop(&self->held)))
        fail_request(self, request);
}

static struct file_request *uring_reap(struct file_engine *engine)
{
    struct file_uring *self = (struct file_uring *)engine;
    struct io_uring_cqe *cqe;
    while (io_uring_peek_cqe(&self->ring, &cqe) == 0 && cqe) {
        // Old kernels: liburing's own timeouts come back here too.
        struct file_request *request =
            cqe->user_data == LIBURING_UDATA_TIMEOUT ? NULL : io_uring_cqe_get_data(cqe);
        if (request)
            request->result = cqe->res;
        io_uring_cqe_seen(&self->ring, cqe);
        if (request)
            return request;
    }
    return list_pop(&self->failed);
}

static void uring_wait(struct file_engine *engine, uint64_t max_ns)
{
    struct file_uring *self = (struct file_uring *)engine;
    const uint64_t second = 1000000000, longest = 3600 * second;
    if (max_ns > longest)
        max_ns = longest;
    struct __kernel_timespec time = {.tv_sec = (long long)(max_ns / second),
                                     .tv_nsec = (long long)(max_ns % second)};
    struct io_uring_cqe *cqe;
    uring_flush(engine);
    if (self->failed.first)
        return;
    if (self->broken) { // completions come without entering
        nap(max_ns);
    } else if (io_uring_sq_ready(&self->ring)) {
        nap(max_ns);
        if (++self->naps > NAPS_MAX)
            give_up(self);
    } else {
        int rc = io_uring_wait_cqe_timeout(&self->ring, &cqe, &time);
        if (rc < 0 && rc != -ETIME && rc != -EINTR)
            nap(max_ns);
    }
}

static void uring_close(struct file_engine *engine)
{
    struct file_uring *self = (struct file_uring *)engine;
    // The kernel takes a ring apart some time later; the file must not have to wait for that.
    if (self->sqe_flags & IOSQE_FIXED_FILE)
        (void)io_uring_unregister_files(&self->ring);
    io_uring_queue_exit(&self->ring);
    budget_give(self->budget, RING_BYTES);
    free(self);
}

static const struct file_engine_ops uring_ops = {
    .start = uring_start,
    .flush = uring_flush,
    .reap = uring_reap,
    .wait = uring_wait,
    .close = uring_close,
};

// Sandboxes may allow the set-up and refuse the use: one empty request goes through first.
static int ring_try(struct io_uring *ring)
{
    struct io_uring_cqe *cqe;
    struct __kernel_timespec time = {.tv_sec = 5};
    io_uring_prep_nop(io_uring_get_sqe(ring));
    int rc = io_uring_submit(ring);
    if (rc >= 0)
        rc = io_uring_wait_cqe_timeout(ring, &cqe, &time);
    if (rc < 0)
        return rc;
    io_uring_cqe_seen(ring, cqe);
    return 0;
}

int file_uring_open(struct file_engine **out, int fd, struct budget *budget)
{
    if (budget_take(budget, RING_BYTES, "io_uring", NULL))
        return -ENOMEM;
    struct file_uring *self = calloc(1, sizeof *self);
    int rc = self ? io_uring_queue_init(RING_ENTRIES, &self->ring, 0) : -ENOMEM;
    if (rc)
        goto fail;
    // Came with fallocate and fadvise (5.6); what is older lacks them.
    rc = self->ring.features & IORING_FEAT_RW_CUR_POS ? ring_try(&self->ring) : -ENOSYS;
    if (rc) {
        io_uring_queue_exit(&self->ring);
        goto fail;
    }
    self->engine.ops = &uring_ops;
    self->budget = budget;
    self->fd = fd;
    list_clear(&self->held);
    list_clear(&self->failed);
    if (io_uring_register_files(&self->ring, &fd, 1) == 0) {
        self->fd = 0;
        self->sqe_flags = IOSQE_FIXED_FILE;
    }
    *out = &self->engine;
    return 0;
fail:
    free(self);
    budget_give(budget, RING_BYTES);
    return rc;
}

#else

int file_uring_open(struct file_engine **out, int fd, struct budget *budget)
{
    (void)out, (void)fd, (void)budget;
    return -ENOSYS;
}

#endif
