// SPDX-License-Identifier: Apache-2.0
// A few threads with blocking calls under the file back end, for systems that refuse io_uring.
// They are the only threads of the drive and touch nothing but the request they were handed.
#include "drive/flash/file.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum {
    THREADS = 8,
    STACK_BYTES = 128 * 1024,  // address space
    STACK_TOUCHED = 16 * 1024, // what such a thread really uses of it
};

struct file_threads {
    struct file_engine engine;
    struct budget *budget;
    int fd;
    unsigned threads; // started
    pthread_t thread[THREADS];
    struct file_request *held, **held_end; // started, not flushed; the caller's alone
    pthread_mutex_t lock;                  // everything below
    pthread_cond_t work, finished;
    struct file_request *todo, **todo_end;
    struct file_request *done, **done_end;
    bool stop;
};

static int64_t execute(int fd, const struct file_request *request)
{
    off_t offset = (off_t)request->offset, bytes = (off_t)request->bytes;
    ssize_t n = 0;
    switch (request->op) {
    case FILE_READ:
        n = preadv(fd, request->iov, (int)request->iov_count, offset);
        break;
    case FILE_WRITE:
        n = pwritev(fd, request->iov, (int)request->iov_count, offset);
        break;
    case FILE_PUNCH:
        n = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, bytes);
        break;
    case FILE_SYNC:
        n = fdatasync(fd);
        break;
    case FILE_DROP:
        return -posix_fadvise(fd, offset, bytes, POSIX_FADV_DONTNEED);
    }
    return n < 0 ? -errno : n;
}

static void *thread_main(void *arg)
{
    struct file_threads *self = arg;
    pthread_mutex_lock(&self->lock);
    for (;;) {
        while (!self->todo && !self->stop)
            pthread_cond_wait(&self->work, &self->lock);
        struct file_request *request = self->todo;
        if (!request)
            break;
        self->todo = request->next;
        if (!self->todo)
            self->todo_end = &self->todo;
        pthread_mutex_unlock(&self->lock);
        request->result = execute(self->fd, request);
        pthread_mutex_lock(&self->lock);
        request->next = NULL;
        *self->done_end = request;
        self->done_end = &request->next;
        pthread_cond_signal(&self->finished);
    }
    pthread_mutex_unlock(&self->lock);
    return NULL;
}

static void threads_start(struct file_engine *engine, struct file_request *request)
{
    struct file_threads *self = (struct file_threads *)engine;
    request->next = NULL;
    *self->held_end = request;
    self->held_end = &request->next;
}

static void threads_flush(struct file_engine *engine)
{
    struct file_threads *self = (struct file_threads *)engine;
    if (!self->held)
        return;
    bool many = self->held->next != NULL;
    pthread_mutex_lock(&self->lock);
    *self->todo_end = self->held;
    self->todo_end = self->held_end;
    if (many)
        pthread_cond_broadcast(&self->work);
    else
        pthread_cond_signal(&self->work);
    pthread_mutex_unlock(&self->lock);
    self->held = NULL;
    self->held_end = &self->held;
}

static struct file_request *threads_reap(struct file_engine *engine)
{
    struct file_threads *self = (struct file_threads *)engine;
    pthread_mutex_lock(&self->lock);
    struct file_request *request = self->done;
    if (request) {
        self->done = request->next;
        if (!self->done)
            self->done_end = &self->done;
    }
    pthread_mutex_unlock(&self->lock);
    return request;
}

static void threads_wait(struct file_engine *engine, uint64_t max_ns)
{
    struct file_threads *self = (struct file_threads *)engine;
    const uint64_t second = 1000000000, longest = 3600 * second;
    if (max_ns > longest)
        max_ns = longest;
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    uint64_t ns = (uint64_t)until.tv_nsec + max_ns;
    until.tv_sec += (time_t)(ns / second);
    until.tv_nsec = (long)(ns % second);
    threads_flush(engine);
    pthread_mutex_lock(&self->lock);
    while (!self->done && pthread_cond_timedwait(&self->finished, &self->lock, &until) == 0)
        ;
    pthread_mutex_unlock(&self->lock);
}

static void threads_close(struct file_engine *engine)
{
    struct file_threads *self = (struct file_threads *)engine;
    pthread_mutex_lock(&self->lock);
    self->stop = true;
    pthread_cond_broadcast(&self->work);
    pthread_mutex_unlock(&self->lock);
    for (unsigned i = 0; i < self->threads; i++)
        pthread_join(self->thread[i], NULL);
    pthread_cond_destroy(&self->finished);
    pthread_cond_destroy(&self->work);
    pthread_mutex_destroy(&self->lock);
    budget_give(self->budget, THREADS * STACK_TOUCHED);
    free(self);
}

static const struct file_engine_ops threads_ops = {
    .start = threads_start,
    .flush = threads_flush,
    .reap = threads_reap,
    .wait = threads_wait,
    .close = threads_close,
};

// Fewer threads than wished are fine, none is an error.
static int start_threads(struct file_threads *self)
{
    pthread_attr_t attr;
    int rc = -pthread_attr_init(&attr);
    if (rc)
        return rc;
    (void)pthread_attr_setstacksize(&attr, STACK_BYTES);
    // Signals are for the program's own threads.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (self->threads < THREADS && rc == 0) {
        rc = -pthread_create(&self->thread[self->threads], &attr, thread_main, self);
        self->threads += rc == 0;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    return self->threads ? 0 : rc;
}

int file_threads_open(struct file_engine **out, int fd, struct budget *budget)
{
    if (budget_take(budget, THREADS * STACK_TOUCHED, "threads of the KV file", NULL))
        return -ENOMEM;
    struct file_threads *self = calloc(1, sizeof *self);
    if (!self) {
        budget_give(budget, THREADS * STACK_TOUCHED);
        return -ENOMEM;
    }
    self->engine.ops = &threads_ops;
    self->budget = budget;
    self->fd = fd;
    self->held_end = &self->held;
    self->todo_end = &self->todo;
    self->done_end = &self->done;
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&self->lock, NULL);
    pthread_cond_init(&self->work, NULL);
    pthread_cond_init(&self->finished, &attr);
    pthread_condattr_destroy(&attr);
    int rc = start_threads(self);
    if (rc) {
        threads_close(&self->engine);
        return rc;
    }
    *out = &self->engine;
    return 0;
}
