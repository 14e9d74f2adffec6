// SPDX-License-Identifier: Apache-2.0
#include "tests/host/compute_async.h"
#include "base/checked.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { GATE_QUEUE = COMPUTE_QUEUES, RUBBISH = 0xff };

struct async_buffer {
    struct compute_buffer seen;  // what the host has
    struct compute_buffer *real; // of the CPU's table
};

enum job_kind {
    JOB_EMBED,
    JOB_QKV,
    JOB_ATTEND,
    JOB_QUERIES,
    JOB_OUTPUTS,
    JOB_FINISH,
    JOB_LOGITS,
    JOB_COPY,
    JOB_AFTER
};

struct job {
    struct job *next;
    enum job_kind kind;
    uint32_t slot, layer, first, n, count, flags;
    struct compute_rows rows;
    struct compute_slice a, b; // faults or outputs; logits' faults, or where a copy comes from
    uint64_t stride, bytes;
    struct compute_point point;
    void *list; // wires, runs, rows of logits
};

struct queue {
    struct async *of;
    pthread_t thread;
    bool started;
    struct job *head, **tail;
    uint64_t given, done;
    uint64_t random;
};

struct async {
    struct compute compute;
    struct compute_setup with;
    struct compute *cpu;
    struct pool *pool; // one thread: the engine's is the engine's
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct queue queue[COMPUTE_QUEUES];
    uint64_t gates, open_gate; // so many were made; those up to this one are open
    uint64_t calls, lose_at;
    int lost;
    bool hold, stop;
};

static struct async *of(struct compute *compute)
{
    return (struct async *)compute;
}

// ---- what the threads do -----------------------------------------------------------------------

static struct compute_slice real(struct compute_slice slice)
{
    if (slice.buffer)
        slice.buffer = ((struct async_buffer *)slice.buffer)->real;
    return slice;
}

static void spoil(struct compute_slice real_slice, uint64_t bytes)
{
    memset((char *)real_slice.buffer->host + real_slice.offset, RUBBISH, bytes);
}

static size_t q_bytes(const struct async *a)
{
    return sizeof(float) * a->with.config->heads * a->with.config->head_dim;
}

static int run_attend(struct async *a, const struct job *job)
{
    struct compute_run *run = job->list;
    for (uint32_t i = 0; i < job->count; i++)
        run[i].slab = real(run[i].slab);
    int err = a->cpu->ops->attend(a->cpu, job->slot, job->layer, job->first, job->n, run,
                                  job->count, job->flags);
    // Pieces that came back are of no use any more; the own slab is (it is on its way out).
    if (!(job->flags & ATTEND_LAST))
        for (uint32_t i = 0; i < job->count; i++)
            spoil(run[i].slab, run[i].slab_tokens * a->with.config->kv_heads *
                                   a->with.config->head_dim * 2 * sizeof(uint16_t));
    return err;
}

static int run_job(struct async *a, struct job *job)
{
    const struct compute_ops *cpu = a->cpu->ops;
    int err;
    switch (job->kind) {
    case JOB_EMBED:
        return cpu->embed(a->cpu, job->slot, &job->rows);
    case JOB_QKV:;
        struct compute_wire *wire = job->list;
        for (uint32_t i = 0; i < job->count; i++) {
            wire[i].q = real(wire[i].q);
            wire[i].k = real(wire[i].k);
            wire[i].v = real(wire[i].v);
        }
        return cpu->qkv(a->cpu, job->slot, job->layer, job->first, job->n, wire, job->count,
                        real(job->a));
    case JOB_ATTEND:
        return run_attend(a, job);
    case JOB_QUERIES:
        return cpu->queries(a->cpu, job->slot, job->first, job->n, real(job->a));
    case JOB_OUTPUTS:
        err = cpu->outputs(a->cpu, job->slot, job->first, job->n, real(job->a));
        spoil(real(job->a), job->n * q_bytes(a));
        return err;
    case JOB_FINISH:
        return cpu->finish(a->cpu, job->slot, job->layer, job->first, job->n);
    case JOB_LOGITS:
        return cpu->logits(a->cpu, job->slot, job->list, job->n, real(job->a), job->stride,
                           real(job->b));
    case JOB_COPY:
        err = cpu->copy(a->cpu, QUEUE_MAIN, real(job->a), real(job->b), job->bytes);
        if (job->flags) // the way in: the source is free now
            spoil(real(job->b), job->bytes);
        return err;
    case JOB_AFTER:
        break;
    }
    return 0;
}

// With the lock.
static bool passed(const struct async *a, struct compute_point point)
{
    return point.queue == GATE_QUEUE ? a->open_gate >= point.value
                                     : a->queue[point.queue].done >= point.value;
}

static void pause_by_chance(struct queue *q)
{
    q->random = q->random * 6364136223846793005u + 1442695040888963407u;
    uint64_t chance = q->random >> 40;
    if (chance % 4 == 0)
        nanosleep(&(struct timespec){.tv_nsec = (long)(chance % 100000)}, NULL);
}

static void *work(void *arg)
{
    struct queue *q = arg;
    struct async *a = q->of;
    pthread_mutex_lock(&a->lock);
    for (;;) {
        while (!q->head && !a->stop)
            pthread_cond_wait(&a->changed, &a->lock);
        struct job *job = q->head;
        if (!job)
            break;
        while (job->kind == JOB_AFTER && !passed(a, job->point) && !a->stop && !a->lost)
            pthread_cond_wait(&a->changed, &a->lock);
        bool drop = a->lost || a->stop;
        pthread_mutex_unlock(&a->lock);
        int err = 0;
        if (!drop) {
            pause_by_chance(q);
            err = run_job(a, job);
        }
        pthread_mutex_lock(&a->lock);
        q->head = job->next;
        if (!q->head)
            q->tail = &q->head;
        q->done++;
        a->lost = a->lost ? a->lost : err;
        pthread_cond_broadcast(&a->changed);
        free(job->list);
        free(job);
    }
    pthread_mutex_unlock(&a->lock);
    return NULL;
}

// ---- what the host calls -----------------------------------------------------------------------

// With the lock. Every call counts, so that a device is lost anywhere.
static int called(struct async *a)
{
    if (++a->calls == a->lose_at && !a->lost) {
        a->lost = INST_EINTERNAL;
        pthread_cond_broadcast(&a->changed);
    }
    return a->lost;
}

static int give(struct async *a, enum compute_queue queue, struct job job, const void *list,
                size_t bytes)
{
    struct job *copy = malloc(sizeof *copy);
    if (!copy)
        return INST_ENOMEM;
    job.list = bytes ? malloc(bytes) : NULL;
    if (bytes)
        memcpy(job.list, list, bytes);
    *copy = job;
    struct queue *q = &a->queue[queue];
    pthread_mutex_lock(&a->lock);
    int err = called(a);
    if (err) {
        free(copy->list);
        free(copy);
    } else {
        *q->tail = copy;
        q->tail = &copy->next;
        q->given++;
        pthread_cond_broadcast(&a->changed);
    }
    pthread_mutex_unlock(&a->lock);
    return err;
}

// What the host may look at later is rubbish from now on.
static void rubbish(struct compute_slice slice, uint64_t bytes)
{
    if (slice.buffer && slice.buffer->host)
        memset((char *)slice.buffer->host + slice.offset, RUBBISH, bytes);
}

static bool is_lost(struct async *a)
{
    pthread_mutex_lock(&a->lock);
    bool lost = a->lost;
    pthread_mutex_unlock(&a->lock);
    return lost;
}

static int async_buffer_new(struct compute *compute, uint64_t bytes, enum compute_place place,
                            const char *what, struct compute_buffer **out, struct inst_msg *msg)
{
    struct async *a = of(compute);
    struct async_buffer *b = calloc(1, sizeof *b);
    *out = NULL;
    int err = b ? a->cpu->ops->buffer_new(a->cpu, bytes, place, what, &b->real, msg)
                : inst_fail(msg, INST_ENOMEM, "out of memory");
    if (err) {
        free(b);
        return err;
    }
    b->seen.bytes = bytes;
    b->seen.host = place == PLACE_DEVICE ? NULL : b->real->host;
    if (place == PLACE_DEVICE)
        memset(b->real->host, RUBBISH, bytes);
    *out = &b->seen;
    return 0;
}

static void async_buffer_free(struct compute *compute, struct compute_buffer *buffer)
{
    struct async_buffer *b = (struct async_buffer *)buffer;
    if (b)
        of(compute)->cpu->ops->buffer_free(of(compute)->cpu, b->real);
    free(b);
}

static int async_embed(struct compute *compute, uint32_t slot, const struct compute_rows *rows)
{
    return give(of(compute), QUEUE_MAIN,
                (struct job){.kind = JOB_EMBED, .slot = slot, .rows = *rows}, NULL, 0);
}

static int async_qkv(struct compute *compute, uint32_t slot, uint32_t layer, uint32_t first,
                     uint32_t n, const struct compute_wire *wires, uint32_t n_wires,
                     struct compute_slice faults)
{
    struct async *a = of(compute);
    const struct model_config *c = a->with.config;
    size_t kv_bytes = 2 * (size_t)c->kv_heads * c->head_dim;
    for (uint32_t i = 0; i < n_wires && !is_lost(a); i++) {
        if (!wires[i].q.buffer)
            continue;
        rubbish(wires[i].q, wires[i].n * q_bytes(a));
        rubbish(wires[i].k, wires[i].n * kv_bytes);
        rubbish(wires[i].v, wires[i].n * kv_bytes);
    }
    if (!is_lost(a))
        rubbish(compute_at(faults, first * sizeof(uint32_t)), n * sizeof(uint32_t));
    return give(a, QUEUE_MAIN,
                (struct job){.kind = JOB_QKV,
                             .slot = slot,
                             .layer = layer,
                             .first = first,
                             .n = n,
                             .count = n_wires,
                             .a = faults},
                wires, n_wires * sizeof *wires);
}

static int async_attend(struct compute *compute, uint32_t slot, uint32_t layer, uint32_t first,
                        uint32_t n, const struct compute_run *runs, uint32_t n_runs, uint32_t flags)
{
    return give(of(compute), QUEUE_MAIN,
                (struct job){.kind = JOB_ATTEND,
                             .slot = slot,
                             .layer = layer,
                             .first = first,
                             .n = n,
                             .count = n_runs,
                             .flags = flags},
                runs, n_runs * sizeof *runs);
}

static int async_queries(struct compute *compute, uint32_t slot, uint32_t first, uint32_t n,
                         struct compute_slice to)
{
    if (!is_lost(of(compute)))
        rubbish(to, n * q_bytes(of(compute)));
    return give(of(compute), QUEUE_MAIN,
                (struct job){.kind = JOB_QUERIES, .slot = slot, .first = first, .n = n, .a = to},
                NULL, 0);
}

static int async_outputs(struct compute *compute, uint32_t slot, uint32_t first, uint32_t n,
                         struct compute_slice from)
{
    return give(of(compute), QUEUE_MAIN,
                (struct job){.kind = JOB_OUTPUTS, .slot = slot, .first = first, .n = n, .a = from},
                NULL, 0);
}

static int async_finish(struct compute *compute, uint32_t slot, uint32_t layer, uint32_t first,
                        uint32_t n)
{
    return give(
        of(compute), QUEUE_MAIN,
        (struct job){.kind = JOB_FINISH, .slot = slot, .layer = layer, .first = first, .n = n},
        NULL, 0);
}

static int async_logits(struct compute *compute, uint32_t slot, const uint32_t *row, uint32_t n,
                        struct compute_slice out, uint64_t stride, struct compute_slice faults)
{
    if (!is_lost(of(compute))) {
        rubbish(out, ((n - 1) * stride + of(compute)->with.config->vocab) * sizeof(float));
        rubbish(faults, n * sizeof(uint32_t));
    }
    return give(
        of(compute), QUEUE_MAIN,
        (struct job){
            .kind = JOB_LOGITS, .slot = slot, .n = n, .a = out, .b = faults, .stride = stride},
        row, n * sizeof *row);
}

static int async_copy(struct compute *compute, enum compute_queue queue, struct compute_slice to,
                      struct compute_slice from, uint64_t bytes)
{
    if (!is_lost(of(compute)))
        rubbish(to, bytes);
    return give(
        of(compute), queue,
        (struct job){
            .kind = JOB_COPY, .a = to, .b = from, .bytes = bytes, .flags = queue == QUEUE_IN},
        NULL, 0);
}

static int async_record(struct compute *compute, enum compute_queue queue,
                        struct compute_point *out)
{
    struct async *a = of(compute);
    pthread_mutex_lock(&a->lock);
    *out = (struct compute_point){.queue = queue, .value = a->queue[queue].given};
    int err = called(a);
    pthread_mutex_unlock(&a->lock);
    return err;
}

static int async_gate(struct compute *compute, struct compute_point *out)
{
    struct async *a = of(compute);
    pthread_mutex_lock(&a->lock);
    *out = (struct compute_point){.queue = GATE_QUEUE, .value = ++a->gates};
    int err = called(a);
    pthread_mutex_unlock(&a->lock);
    return err;
}

static int async_after(struct compute *compute, enum compute_queue queue,
                       struct compute_point point)
{
    return give(of(compute), queue, (struct job){.kind = JOB_AFTER, .point = point}, NULL, 0);
}

static void async_open_gate(struct compute *compute, struct compute_point gate)
{
    struct async *a = of(compute);
    pthread_mutex_lock(&a->lock);
    if (!a->hold && gate.value > a->open_gate)
        a->open_gate = gate.value;
    pthread_cond_broadcast(&a->changed);
    pthread_mutex_unlock(&a->lock);
}

static int async_done(struct compute *compute, struct compute_point point, uint64_t max_wait_ns,
                      struct inst_msg *msg)
{
    struct async *a = of(compute);
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    uint64_t ns = (uint64_t)until.tv_nsec + max_wait_ns;
    until.tv_sec += (time_t)(ns / 1000000000);
    until.tv_nsec = (long)(ns % 1000000000);
    pthread_mutex_lock(&a->lock);
    int late = max_wait_ns ? 0 : 1;
    while (!a->lost && !passed(a, point) && !late)
        late = pthread_cond_timedwait(&a->changed, &a->lock, &until);
    int state = a->lost            ? inst_fail(msg, a->lost, "the device was lost")
                : passed(a, point) ? 0
                                   : COMPUTE_BUSY;
    pthread_mutex_unlock(&a->lock);
    return state;
}

static void async_stop(struct compute *compute)
{
    struct async *a = of(compute);
    pthread_mutex_lock(&a->lock);
    a->stop = true;
    a->open_gate = a->gates;
    pthread_cond_broadcast(&a->changed);
    pthread_mutex_unlock(&a->lock);
    for (int i = 0; i < COMPUTE_QUEUES; i++) {
        if (a->queue[i].started)
            pthread_join(a->queue[i].thread, NULL);
        a->queue[i].started = false;
    }
}

static void async_close(struct compute *compute)
{
    struct async *a = of(compute);
    async_stop(compute);
    compute_close(a->cpu);
    pool_free(a->pool);
    pthread_mutex_destroy(&a->lock);
    pthread_cond_destroy(&a->changed);
    free(a);
}

static const struct compute_ops async_ops = {
    .buffer_new = async_buffer_new,
    .buffer_free = async_buffer_free,
    .embed = async_embed,
    .qkv = async_qkv,
    .attend = async_attend,
    .queries = async_queries,
    .outputs = async_outputs,
    .finish = async_finish,
    .logits = async_logits,
    .copy = async_copy,
    .record = async_record,
    .gate = async_gate,
    .after = async_after,
    .open = async_open_gate,
    .done = async_done,
    .stop = async_stop,
    .close = async_close,
};

static int async_open(struct compute **out, const struct compute_setup *setup, struct inst_msg *msg)
{
    struct async *a = calloc(1, sizeof *a);
    if (!a)
        return inst_fail(msg, INST_ENOMEM, "out of memory");
    *a = (struct async){.compute = {&async_ops}, .with = *setup};
    pthread_mutex_init(&a->lock, NULL);
    pthread_cond_init(&a->changed, NULL);
    struct compute_setup cpu = *setup;
    cpu.tick = NULL;
    int err = pool_new(&a->pool, 1, msg);
    cpu.pool = a->pool;
    if (!err)
        err = compute_cpu.open(&a->cpu, &cpu, msg);
    for (int i = 0; i < COMPUTE_QUEUES && !err; i++) {
        struct queue *q = &a->queue[i];
        *q = (struct queue){.of = a, .tail = &q->head, .random = (uint64_t)i + 1};
        q->started = !pthread_create(&q->thread, NULL, work, q);
        err = q->started ? 0 : inst_fail(msg, INST_ENOMEM, "no thread");
    }
    if (err)
        async_close(&a->compute);
    else
        *out = &a->compute;
    return err;
}

const struct compute_kind compute_async = {.name = "async", .apart = true, .open = async_open};

void compute_async_lose(struct compute *compute, uint64_t call)
{
    struct async *a = of(compute);
    pthread_mutex_lock(&a->lock);
    a->lose_at = call ? a->calls + call : 0;
    pthread_mutex_unlock(&a->lock);
}

void compute_async_hold_gates(struct compute *compute)
{
    struct async *a = of(compute);
    pthread_mutex_lock(&a->lock);
    a->hold = true;
    pthread_mutex_unlock(&a->lock);
}

uint64_t compute_async_calls(const struct compute *compute)
{
    struct async *a = of((struct compute *)(uintptr_t)compute);
    pthread_mutex_lock(&a->lock);
    uint64_t calls = a->calls;
    pthread_mutex_unlock(&a->lock);
    return calls;
}
