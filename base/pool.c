// SPDX-License-Identifier: Apache-2.0
// A job is published by raising `epoch`; workers spin on it for a short while (decode runs
// thousands of short jobs a second) and then sleep on a condition variable, so an idle engine
// costs nothing. pool_run returns only when every worker has checked in, so a worker that wakes
// late never sees the items of a job it does not know.
#include "base/pool.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

enum { STACK_BYTES = 256 * 1024, SPIN = 4000 };

struct pool {
    unsigned threads;
    pthread_t *workers; // threads - 1
    pthread_mutex_t lock;
    pthread_cond_t wake, idle;
    unsigned sleeping;         // workers in pthread_cond_wait, under lock
    bool stop;                 // under lock, raised together with epoch
    _Atomic uint32_t epoch;    // number of the published job
    _Atomic uint32_t finished; // workers done with the published job
    pool_fn *fn;
    void *arg;
    size_t items;
    _Atomic size_t next;
    struct worker {
        struct pool *pool;
        unsigned index;
    } * seats;
    uint8_t *scratch; // threads pieces
    size_t scratch_bytes;
};

static inline void cpu_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void work(struct pool *pool, unsigned worker)
{
    for (;;) {
        size_t item = atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed);
        if (item >= pool->items)
            return;
        pool->fn(pool->arg, item, worker);
    }
}

// Returns the number of a job newer than `seen`.
static uint32_t await_job(struct pool *pool, uint32_t seen)
{
    for (int i = 0; i < SPIN; i++) {
        uint32_t epoch = atomic_load_explicit(&pool->epoch, memory_order_acquire);
        if (epoch != seen)
            return epoch;
        cpu_relax();
    }
    pthread_mutex_lock(&pool->lock);
    pool->sleeping++;
    while (atomic_load_explicit(&pool->epoch, memory_order_acquire) == seen)
        pthread_cond_wait(&pool->wake, &pool->lock);
    pool->sleeping--;
    pthread_mutex_unlock(&pool->lock);
    return atomic_load_explicit(&pool->epoch, memory_order_acquire);
}

static void *worker_main(void *arg)
{
    struct worker *seat = arg;
    struct pool *pool = seat->pool;
    uint32_t seen = 0;
    for (;;) {
        seen = await_job(pool, seen);
        if (pool->stop)
            return NULL;
        work(pool, seat->index);
        // Release: the caller that sees the last worker finish sees all results.
        if (atomic_fetch_add_explicit(&pool->finished, 1, memory_order_acq_rel) + 2 ==
            pool->threads) {
            pthread_mutex_lock(&pool->lock);
            pthread_cond_signal(&pool->idle);
            pthread_mutex_unlock(&pool->lock);
        }
    }
}

static void publish(struct pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    atomic_fetch_add_explicit(&pool->epoch, 1, memory_order_release);
    if (pool->sleeping)
        pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
}

int pool_new(struct pool **out, unsigned threads, struct inst_msg *msg)
{
    *out = NULL;
    if (threads < 1 || threads > 1024)
        return inst_fail(msg, INST_EINVAL, "%u threads: must be 1 to 1024", threads);
    struct pool *pool = calloc(1, sizeof *pool);
    if (!pool)
        return inst_fail(msg, INST_ENOMEM, "worker pool: out of memory");
    pool->threads = 1;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pthread_cond_init(&pool->idle, NULL);
    pool->workers = calloc(threads, sizeof *pool->workers);
    pool->seats = calloc(threads, sizeof *pool->seats);
    if (!pool->workers || !pool->seats) {
        pool_free(pool);
        return inst_fail(msg, INST_ENOMEM, "worker pool: out of memory");
    }
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, STACK_BYTES);
    int err = 0;
    // `threads` is read by workers only after a job is published, so it may grow here.
    for (unsigned i = 0; i + 1 < threads && !err; i++) {
        pool->seats[i] = (struct worker){.pool = pool, .index = i + 1};
        err = pthread_create(&pool->workers[i], &attr, worker_main, &pool->seats[i]);
        if (!err)
            pool->threads++;
    }
    pthread_attr_destroy(&attr);
    if (err) {
        unsigned got = pool->threads;
        pool_free(pool);
        return inst_fail(msg, INST_ENOMEM, "worker pool: thread %u of %u could not start", got + 1,
                         threads);
    }
    *out = pool;
    return 0;
}

void pool_free(struct pool *pool)
{
    if (!pool)
        return;
    pthread_mutex_lock(&pool->lock);
    pool->stop = true;
    pthread_mutex_unlock(&pool->lock);
    publish(pool);
    for (unsigned i = 0; i + 1 < pool->threads; i++)
        pthread_join(pool->workers[i], NULL);
    pthread_cond_destroy(&pool->idle);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
    free(pool->scratch);
    free(pool->workers);
    free(pool->seats);
    free(pool);
}

unsigned pool_threads(const struct pool *pool)
{
    return pool ? pool->threads : 1;
}

void pool_run(struct pool *pool, pool_fn *fn, void *arg, size_t items)
{
    if (!pool || pool->threads == 1 || items <= 1) {
        for (size_t i = 0; i < items; i++)
            fn(arg, i, 0);
        return;
    }
    // Every worker has finished the previous job before pool_run returned, so nobody reads these.
    pool->fn = fn;
    pool->arg = arg;
    pool->items = items;
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->finished, 0, memory_order_relaxed);
    publish(pool);
    work(pool, 0);
    for (int i = 0; i < SPIN; i++) {
        if (atomic_load_explicit(&pool->finished, memory_order_acquire) + 1 == pool->threads)
            return;
        cpu_relax();
    }
    pthread_mutex_lock(&pool->lock);
    while (atomic_load_explicit(&pool->finished, memory_order_acquire) + 1 != pool->threads)
        pthread_cond_wait(&pool->idle, &pool->lock);
    pthread_mutex_unlock(&pool->lock);
}

int pool_reserve_scratch(struct pool *pool, size_t bytes, struct inst_msg *msg)
{
    bytes = (bytes + 63) & ~(size_t)63;
    if (bytes <= pool->scratch_bytes)
        return 0;
    // Touched only as far as it is used, so it costs what the kernels really need.
    void *scratch = aligned_alloc(64, pool->threads * bytes);
    if (!scratch)
        return inst_fail(msg, INST_ENOMEM, "scratch memory of %u workers: out of memory",
                         pool->threads);
    free(pool->scratch);
    pool->scratch = scratch;
    pool->scratch_bytes = bytes;
    return 0;
}

void *pool_scratch(const struct pool *pool, unsigned worker)
{
    return pool->scratch + worker * pool->scratch_bytes;
}
