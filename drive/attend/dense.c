// SPDX-License-Identifier: Apache-2.0
// Attention on rows that are in DRAM. Tiles of 64 absolute positions are computed for whatever
// spans are ready, in any order and by any worker; their partials are merged in ascending order
// (contract point 8), so the bits do not depend on arrival, threads or the token group.
#include "drive/attend/sparf.h"
#include "base/checked.h"

#include <math.h>
#include <string.h>

struct batch {
    struct drive *drive;
    struct job *job;
    struct span *spans[SPANS_MAX];
    size_t n_spans;
    uint32_t heads_per_item; // whole rows where there are enough of them, else single heads
    struct frame *verify[SPANS_MAX * SPAN_ROWS_MAX];
    bool bad[SPANS_MAX * SPAN_ROWS_MAX];
    size_t n_verify;
    struct {
        uint32_t first, count; // of spans of one item
    } runs[SPANS_MAX];
    size_t n_runs;
};

int attention_open(struct drive *drive, struct inst_msg *msg)
{
    drive->batch = budget_alloc(&drive->budget, 1, sizeof *drive->batch, "attention", msg);
    return drive->batch ? 0 : INST_ENOMEM;
}

int attention_prepare(struct drive *drive, struct job *job, struct inst_msg *msg)
{
    const struct space *space = job->space;
    if (job_is_sparf(job))
        return 0; // CONFIG made what it needs
    uint64_t tiles = span_tokens(&space->config) / ATTENTION_TILE, floats;
    job->span_floats = tiles * job->header.q_heads * partial_stride(space->config.head_dim);
    floats = job->span_floats * space->span_limit;
    int status = pool_reserve_scratch(drive->pool, KERNEL_SCRATCH_BYTES, msg);
    if (status || floats <= drive->span_partial_floats)
        return status;
    if (drive->active)
        return 1; // its spans point into the memory that would move
    budget_free(&drive->budget, drive->span_partials);
    drive->span_partial_floats = 0;
    drive->span_partials =
        budget_alloc(&drive->budget, floats, sizeof(float), "attention partials", msg);
    if (!drive->span_partials)
        return INST_ENOMEM;
    drive->span_partial_floats = floats;
    return 0;
}

static void verify_frame(void *arg, size_t index, unsigned worker)
{
    struct batch *batch = arg;
    (void)worker;
    batch->bad[index] = !frame_verify(batch->job->space->frames, batch->verify[index]);
}

// K and V of `head` for the tokens of the span from its token `at` on, up to a tile of them.
static void gather_tile(const struct space *space, const struct span *span, uint32_t head,
                        uint64_t at, struct attention_tile *tile)
{
    const struct stream *kv = &space->streams[STREAM_KV];
    uint64_t first_group = span->first / kv->row_tokens, first = span->first + at;
    tile->tokens = (uint32_t)min_u64(ATTENTION_TILE, span->tokens - at);
    for (uint32_t t = 0; t < tile->tokens;) {
        const uint8_t *row = span->rows[(first + t) / kv->row_tokens - first_group];
        t += slot_tile(&kv->slot, row + head * kv->slot_bytes, (first + t) % kv->row_tokens, tile,
                       t);
    }
}

// One span and one KV head: the partials of its tiles for the group's query heads.
static void compute_span(const struct batch *batch, const struct span *span, uint32_t head,
                         unsigned worker)
{
    const struct job *job = batch->job;
    const struct space *space = job->space;
    uint32_t dim = space->config.head_dim, group = job->header.q_heads / space->config.kv_heads;
    uint8_t *scratch = pool_scratch(batch->drive->pool, worker);
    const float *q = job->q + ((uint64_t)span->item * job->header.q_heads + head * group) * dim;
    struct attention_tile tile[2];
    for (int i = 0; i < 2; i++)
        tile[i] = (struct attention_tile){
            .head_dim = dim, .scale = job->header.scale, .softcap = job->header.softcap};
    // Only the first tile of an item can hold tokens before its window.
    uint64_t window = job->items[span->item].window;
    uint32_t first[MAX_GROUP_HEADS];
    uint32_t skipped = window > span->first ? (uint32_t)(window - span->first) : 0;
    for (uint32_t i = 0; skipped && i < group; i++)
        first[i] = skipped;
    gather_tile(space, span, head, 0, &tile[0]);
    for (uint64_t t = 0; t < span->tokens; t += ATTENTION_TILE) {
        uint64_t index = t / ATTENTION_TILE;
        struct attention_tile *this = &tile[index & 1], *next = &tile[~index & 1];
        // Next comes the span's next tile or, as a rule, the next head's first one.
        bool last = t + ATTENTION_TILE >= span->tokens;
        if (!last || head + 1 < space->config.kv_heads)
            gather_tile(space, span, head + last, last ? 0 : t + ATTENTION_TILE, next);
        else
            next = NULL;
        this->next = next;
        this->first = skipped && !t ? first : NULL;
        batch->drive->kernels->attention_tile(
            this, q, dim, group, NULL,
            (float *)partial_at(span->partials, index * job->header.q_heads + head * group, dim), 0,
            scratch);
    }
}

static void compute_item(void *arg, size_t index, unsigned worker)
{
    struct batch *batch = arg;
    uint32_t heads = batch->heads_per_item;
    uint32_t parts = batch->job->space->config.kv_heads / heads;
    const struct span *span = batch->spans[index / parts];
    uint32_t first = (uint32_t)(index % parts) * heads;
    for (uint32_t head = first; head < first + heads; head++)
        compute_span(batch, span, head, worker);
}

// Merges the partials of one item's run of spans, one KV head.
static void fold_run(void *arg, size_t index, unsigned worker)
{
    struct batch *batch = arg;
    const struct job *job = batch->job;
    uint32_t kv_heads = job->space->config.kv_heads, dim = job->space->config.head_dim;
    uint32_t q_heads = job->header.q_heads, group = q_heads / kv_heads;
    size_t run = index / kv_heads;
    uint32_t first_head = (uint32_t)(index % kv_heads) * group;
    (void)worker;
    for (uint32_t s = 0; s < batch->runs[run].count; s++) {
        const struct span *span = batch->spans[batch->runs[run].first + s];
        uint64_t tiles = div_round_up(span->tokens, ATTENTION_TILE);
        for (uint64_t t = 0; t < tiles; t++) {
            for (uint32_t h = first_head; h < first_head + group; h++)
                batch->drive->kernels->partial_merge(
                    partial_at(job->partials, (uint64_t)span->item * q_heads + h, dim),
                    partial_at(span->partials, t * q_heads + h, dim), dim);
        }
    }
}

// READ: one row of one span to the destination slab.
static void copy_row(void *arg, size_t index, unsigned worker)
{
    struct batch *batch = arg;
    const struct job *job = batch->job;
    const struct space *space = job->space;
    const struct stream *kv = &space->streams[STREAM_KV];
    const struct span *span = batch->spans[index];
    const struct job_item *item = &job->items[span->item];
    uint64_t dim = space->config.head_dim, n = item->end - item->first;
    (void)worker;
    for (uint32_t r = 0; r < span->n_rows; r++) {
        uint64_t group = span->first / kv->row_tokens + r;
        uint64_t begin = max_u64(span->first, group * kv->row_tokens);
        uint64_t end = min_u64(span->first + span->tokens, (group + 1) * kv->row_tokens);
        for (uint32_t h = 0; h < job->header.head_count; h++) {
            const uint8_t *slot = span->rows[r] + (job->header.head_first + h) * kv->slot_bytes;
            uint16_t *k =
                (uint16_t *)(job->dest + item->offset) + (2 * h * n + begin - item->first) * dim;
            slot_get(&kv->slot, slot, begin % kv->row_tokens, end - begin, k, k + n * dim);
        }
    }
}

static void collect_ready(struct batch *batch)
{
    struct drive *drive = batch->drive;
    // A long batch would leave the device without requests meanwhile.
    size_t most = drive->views ? drive->max_spans : max_u64(4, drive->max_spans / 4);
    for (uint32_t i = 0; i < drive->n_spans && batch->n_spans < most; i++) {
        struct span *span = ring_span(drive, i);
        if (span->computed || span->status || !span_ready(span))
            continue;
        batch->spans[batch->n_spans++] = span;
        for (uint32_t r = 0; r < span->n_rows; r++) {
            struct frame *frame = span->frames[r];
            if (frame && frame->verify) {
                frame->verify = false;
                batch->verify[batch->n_verify++] = frame;
            }
        }
    }
}

// Spans whose rows failed are taken out of the batch; their item fails, others are unharmed.
static void drop_failed(struct batch *batch)
{
    struct drive *drive = batch->drive;
    for (size_t i = 0; i < batch->n_verify; i++) {
        if (batch->bad[i] && !batch->verify[i]->status) {
            batch->verify[i]->status = INST_ECORRUPT;
            drive->checksum_errors++;
        }
    }
    size_t kept = 0;
    for (size_t i = 0; i < batch->n_spans; i++) {
        struct span *span = batch->spans[i];
        for (uint32_t r = 0; r < span->n_rows && !span->status; r++) {
            struct frame *frame = span->frames[r];
            if (!frame || !frame->status || !frame->read)
                continue;
            span->status = frame->status;
            item_failed(batch->job, span->item, frame->status, STREAM_KV, frame->identity.group);
        }
        if (span->status)
            fetch_release(drive, span);
        else
            batch->spans[kept++] = span;
    }
    batch->n_spans = kept;
}

static void compute_spans(struct batch *batch)
{
    struct pool *pool = batch->drive->pool;
    uint32_t kv_heads = batch->job->space->config.kv_heads;
    bool whole = batch->n_spans >= 4 * (size_t)pool_threads(pool);
    batch->heads_per_item = whole ? kv_heads : 1;
    pool_run(pool, compute_item, batch, batch->n_spans * (kv_heads / batch->heads_per_item));
}

static void compute_ready(struct batch *batch)
{
    struct drive *drive = batch->drive;
    struct job *job = batch->job;
    collect_ready(batch);
    if (!batch->n_spans)
        return;
    pool_run(drive->pool, verify_frame, batch, batch->n_verify);
    drop_failed(batch);
    if (job->opcode == OP_READ)
        pool_run(drive->pool, copy_row, batch, batch->n_spans);
    else
        compute_spans(batch);
    for (size_t i = 0; i < batch->n_spans; i++) {
        struct span *span = batch->spans[i];
        span->computed = true;
        if (job->opcode == OP_ATTEND) {
            uint64_t window = job->items[span->item].window;
            drive->attended += span->tokens - (window > span->first ? window - span->first : 0);
            drive->attended_from_flash += span->from_flash;
            drive->attended_programming += span->programming;
        }
        fetch_release(drive, span);
    }
}

// Takes the spans off the ring that are settled from its front on.
static bool fold_front(struct batch *batch)
{
    struct drive *drive = batch->drive;
    struct job *job = batch->job;
    batch->n_spans = batch->n_runs = 0;
    bool moved = false;
    while (drive->n_spans) {
        struct span *span = ring_span(drive, 0);
        if (!span->computed && !span->status)
            break;
        if (!span->status && !job->items[span->item].status) {
            size_t n = batch->n_spans;
            if (n && batch->spans[n - 1]->item == span->item) {
                batch->runs[batch->n_runs - 1].count++;
            } else {
                batch->runs[batch->n_runs].first = (uint32_t)n;
                batch->runs[batch->n_runs++].count = 1;
            }
            batch->spans[batch->n_spans++] = span;
        }
        drive->first_span = (drive->first_span + 1) % drive->max_spans;
        drive->n_spans--;
        moved = true;
    }
    if (job->opcode == OP_ATTEND)
        pool_run(drive->pool, fold_run, batch, batch->n_runs * job->space->config.kv_heads);
    return moved;
}

static void finish_attend(struct drive *drive, struct job *job)
{
    uint32_t dim = job->space->config.head_dim, q_heads = job->header.q_heads;
    float *out = (float *)(job->result + job->layout.out);
    float *lse = (float *)(job->result + job->layout.lse);
    float *captured = (float *)(job->result + job->layout.captured);
    uint32_t *status = (uint32_t *)(job->result + job->layout.status);
    for (uint32_t i = 0; i < job->count; i++) {
        status[i] = inst_status_to_nvme(job->items[i].status);
        if (job_is_sparf(job) && !job->items[i].status)
            continue; // its units have done it
        for (uint32_t h = 0; h < q_heads; h++) {
            uint64_t at = (uint64_t)i * q_heads + h;
            struct partial *partial = partial_at(job->partials, at, dim);
            if (job->items[i].status)
                partial_clear(partial);
            drive->kernels->partial_output(partial, out + at * dim, dim);
            lse[at] = partial->sum > 0 ? partial->max + logf(partial->sum) : -INFINITY;
            captured[at] = partial->sum > 0 ? 1.0f : 0.0f;
        }
    }
}

static void finish_job(struct drive *drive, struct job *job)
{
    if (job->opcode == OP_ATTEND)
        finish_attend(drive, job);
    for (uint32_t i = 0; i < job->count; i++) {
        if (job->items[i].status && !job->status)
            job->status = job->items[i].status;
        if (job->items[i].sequence)
            job->items[i].sequence->jobs--;
        job->items[i].sequence = NULL;
    }
    job->state = JOB_DONE;
    struct job **link = &drive->first_job;
    while (*link != job)
        link = &(*link)->next;
    *link = job->next;
    if (!job->next)
        drive->last_job = link;
    drive->active = NULL;
}

bool attention_step(struct drive *drive)
{
    struct job *job = drive->active;
    if (!job)
        return false;
    if (job_is_sparf(job)) {
        bool done, moved = sparf_compute(drive, &done);
        if (done)
            finish_job(drive, job);
        return moved;
    }
    struct batch *batch = drive->batch;
    batch->drive = drive;
    batch->job = job;
    batch->n_spans = batch->n_verify = 0;
    compute_ready(batch);
    bool moved = batch->n_spans != 0;
    moved |= fold_front(batch);
    if (!drive->n_spans && job->fetch_item >= job->count) {
        finish_job(drive, job);
        return true;
    }
    return moved;
}
