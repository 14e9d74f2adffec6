// SPDX-License-Identifier: Apache-2.0
// A job is published in one atomic word: its number in the upper half, the items left in the lower.
// Who takes an item counts that word down, so a worker that was late for one job can only ever get
// items of the present one, and nobody has to wait for workers that did not come: on a loaded
// machine the caller simply does more of the items itself. Idle workers spin for a short while
// (decode runs thousands of short jobs a second) and then sleep, so an idle engine costs nothing.
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
    struct seat {
        struct pool *pool;
        unsigned index;
    } * seats;
    // The present job. fn, arg and items are written before `left` and read after an item was
    // taken from it; they stay as they are until that item is finished.
    pool_fn *fn;
    void *arg;
    size_t items;
    _Atomic uint64_t left; // job number << 32 | items not taken yet
    _Atomic size_t finished;
    pthread_mutex_t lock;
    pthread_cond_t wake, idle;
    _Atomic unsigned sleeping; // workers about to wait for `wake`
    _Atomic bool waiting;      // the caller is about to wait for `idle`
    _Atomic bool stop;
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

static bool take(struct pool *pool, size_t *item)
{
    uint64_t left = atomic_load_explicit(&pool->left, memory_order_relaxed);
    do {
        if (!(uint32_t)left)
            return false;
    } while (!atomic_compare_exchange_weak_explicit(&pool->left, &left, left - 1,
                                                    memory_order_acquire, memory_order_relaxed));
    *item = pool->items - (uint32_t)left;
    return true;
}

static void work(struct pool *pool, unsigned worker)
{
    for (size_t item; take(pool, &item);) {
        size_t items = pool->items;
        pool->fn(pool->arg, item, worker);
        // From here on the job may be over and its fields may change.
        if (atomic_fetch_add(&pool->finished, 1) + 1 == items && atomic_load(&pool->waiting)) {
            pthread_mutex_lock(&pool->lock);
            pthread_cond_signal(&pool->idle);
            pthread_mutex_unlock(&pool->lock);
        }
    }
}

static bool nothing_to_do(struct pool *pool)
{
    return !(uint32_t)atomic_load(&pool->left) && !atomic_load(&pool->stop);
}

static void *worker_main(void *arg)
{
    struct seat *seat = arg;
    struct pool *pool = seat->pool;
    while (!atomic_load(&pool->stop)) {
        work(pool, seat->index);
        for (int i = 0; i < SPIN && nothing_to_do(pool); i++)
            cpu_relax();
        if (!nothing_to_do(pool))
            continue;
        pthread_mutex_lock(&pool->lock);
        atomic_fetch_add(&pool->sleeping, 1); // before the last look: publish looks at it after
        while (nothing_to_do(pool))
            pthread_cond_wait(&pool->wake, &pool->lock);
        atomic_fetch_sub(&pool->sleeping, 1);
        pthread_mutex_unlock(&pool->lock);
    }
    return NULL;
}

static void wake_workers(struct pool *pool)
{
    if (!atomic_load(&pool->sleeping))
        return;
    pthread_mutex_lock(&pool->lock);
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
    for (unsigned i = 0; i + 1 < threads && !err; i++) {
        pool->seats[i] = (struct seat){.pool = pool, .index = i + 1};
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
    atomic_store(&pool->stop, true);
    wake_workers(pool);
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
    if (!pool || pool->threads == 1 || items <= 1 || items > UINT32_MAX) {
        for (size_t i = 0; i < items; i++)
            fn(arg, i, 0);
        return;
    }
    pool->fn = fn;
    pool->arg = arg;
    pool->items = items;
    atomic_store_explicit(&pool->finished, 0, memory_order_relaxed);
    uint64_t job = (atomic_load_explicit(&pool->left, memory_order_relaxed) >> 32) + 1;
    atomic_store(&pool->left, job << 32 | items);
    wake_workers(pool);
    work(pool, 0);
    for (int i = 0; i < SPIN && atomic_load(&pool->finished) != items; i++)
        cpu_relax();
    if (atomic_load(&pool->finished) == items)
        return;
    pthread_mutex_lock(&pool->lock);
    atomic_store(&pool->waiting, true); // before the last look: the last item looks at it after
    while (atomic_load(&pool->finished) != items)
        pthread_cond_wait(&pool->idle, &pool->lock);
    atomic_store(&pool->waiting, false);
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
