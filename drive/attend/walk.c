// SPDX-License-Identifier: Apache-2.0
#include "drive/attend/walk.h"
#include "base/checked.h"

#include <string.h>

enum {
    BATCH_MIN = 4,     // pieces computed at a time, at least
    TASKS_EACH = 16,   // tasks for each worker, where heads can be told apart
    WORKERS_MOST = 16, // more share these
    THINK_HEADS = 1,   // heads that a worker thinks about at a time, where the device can read
    PIECE_TRIES = 2,   // reads of a piece that fail before its item does
};

// ---- opening -----------------------------------------------------------------------------------

// The methods that a space serves, NULL behind the last one.
static void served(const struct attend_env *env, const struct space_config *config,
                   const struct method *out[SERVED_MAX + 1])
{
    const struct method *own = attend_method(env, config->method);
    int n = 0;
    out[n++] = &method_copy;
    out[n++] = &method_dense;
    if (own && own != &method_dense)
        out[n++] = own;
    out[n] = NULL;
}

static size_t task_room(const struct walk_plan *plan)
{
    return max_u64(plan->pieces, UNITS_MAX) + 2 * TASKS_EACH * WORKERS_MOST;
}

int walk_plan(struct walk_plan *plan, const struct attend_env *env,
              const struct flash_geometry *geometry, const struct space_config *config,
              const struct stream *streams, unsigned level, struct inst_msg *msg)
{
    const struct method *methods[SERVED_MAX + 1];
    served(env, config, methods);
    *plan = (struct walk_plan){.bytes = sizeof(struct walk) + 4 * (4096 + 64)};
    for (int i = 0; methods[i]; i++) {
        struct method_plan own = {0};
        int status = methods[i]->plan(&own, geometry, config, streams, level, msg);
        if (status)
            return status;
        plan->bytes += own.bytes;
        // Each may hold a partly acquired piece, but only one of them at a time.
        plan->rows = (uint32_t)max_u64(plan->rows, own.rows);
        plan->pages = (uint32_t)max_u64(plan->pages, own.pages);
        plan->pieces += own.pieces;
        uint64_t each =
            own.pages ? own.pages * geometry->page_bytes : own.rows * streams[STREAM_KV].row_bytes;
        plan->window = max_u64(plan->window, own.pieces * each / max_u64(own.share, 1));
        plan->frames = (uint32_t)max_u64(plan->frames, own.frames);
        plan->scratch = max_u64(plan->scratch, own.scratch);
    }
    plan->bytes +=
        task_room(plan) * sizeof(struct unit_task) +
        (uint64_t)plan->pieces * (plan->frames * sizeof(struct frame *) + sizeof(struct unit_task));
    return 0;
}

int walk_open(struct walk **out, struct attend_env *env, struct space *space, unsigned level,
              struct inst_msg *msg)
{
    struct walk_plan plan;
    int status =
        walk_plan(&plan, env, &space->flash->geometry, &space->config, space->streams, level, msg);
    if (!status)
        status = pool_reserve_scratch(env->pool, plan.scratch, msg);
    if (status)
        return status;
    struct walk *w = budget_alloc(space->budget, 1, sizeof *w, "attention", msg);
    if (!w)
        return INST_ENOMEM;
    w->env = env;
    w->space = space;
    w->last = &w->first;
    for (int i = UNITS_MAX; i-- > 0;) {
        w->units[i].next = w->free_units;
        w->free_units = &w->units[i];
    }
    served(env, &space->config, w->methods);
    // A long batch would leave the device without requests meanwhile.
    w->batch = env->views ? plan.pieces : max_u64(BATCH_MIN, plan.pieces / 4);
    size_t tasks = task_room(&plan);
    size_t frames = (size_t)plan.pieces * plan.frames;
    w->tasks = budget_alloc(space->budget, tasks, sizeof *w->tasks, "attention", msg);
    w->ready = budget_alloc(space->budget, plan.pieces, sizeof *w->ready, "attention", msg);
    w->unchecked = budget_alloc(space->budget, frames, sizeof(struct frame *), "attention", msg);
    status = w->tasks && w->ready && w->unchecked ? 0 : INST_ENOMEM;
    for (int i = 0; w->methods[i] && !status; i++)
        status = w->methods[i]->open(&w->states[i], w, level, msg);
    if (status) {
        walk_close(w);
        return status;
    }
    *out = w;
    return 0;
}

void walk_close(struct walk *w)
{
    if (!w)
        return;
    while (w->busy) // far enough in the future for an engine with a time of its own
        engine_take(w->env->engine, UINT64_MAX / 2);
    for (int i = 0; w->methods[i]; i++) {
        if (w->states[i])
            w->methods[i]->close(w->states[i]);
    }
    struct budget *budget = w->space->budget;
    budget_free(budget, w->tasks);
    budget_free(budget, w->ready);
    budget_free(budget, w->unchecked);
    budget_free(budget, w);
}

struct method_state *walk_state(const struct walk *w, const struct method *method)
{
    for (int i = 0; w->methods[i]; i++) {
        if (w->methods[i] == method)
            return w->states[i];
    }
    return NULL;
}

// ---- units -------------------------------------------------------------------------------------

void item_failed(struct job *job, uint32_t index, int status, uint32_t stream, uint64_t row)
{
    struct job_item *item = &job->items[index];
    const struct stream *s = &job->space->streams[stream];
    if (item->status)
        return;
    // What a failed program left on flash is of no kind: that it failed is what is told. The text
    // is that of the first item that fails.
    item->status =
        item->sequence->failed
            ? sequence_refuse(item->sequence, &job->error)
            : inst_fail(&job->error, status, "sequence %u layer %u %s group %llu: %s",
                        item->sequence->id, job->layer,
                        stream == STREAM_KV ? "token" : s->ops->name,
                        (unsigned long long)(row / s->group_rows), inst_status_text(status));
}

static bool start_unit(struct walk *w, struct job *job, struct method_state *state)
{
    const struct method *method = job->method;
    struct job_item *item = &job->items[job->item_at];
    struct unit *u = w->free_units;
    if (!u)
        return false;
    uint32_t heads = job->space->config.kv_heads, next_head = job->head_at;
    uint32_t bundle = method->bundle ? method->bundle(state) : heads;
    struct unit *next = u->next;
    *u = (struct unit){
        .walk = w,
        .job = job,
        .state = state,
        .item = job->item_at,
        .head_first = next_head,
        .n_heads = (uint32_t)min_u64(bundle, heads - next_head),
        .group = job->header.q_heads / heads,
        .last = &u->pieces,
    };
    if (!method->begin(u)) {
        u->next = next;
        return false;
    }
    w->free_units = next;
    if (!next_head)
        item->units = (uint32_t)div_round_up(heads, bundle);
    *w->last = u;
    w->last = &u->next;
    job->units++;
    job->head_at += u->n_heads;
    return true;
}

bool walk_start(struct walk *w, struct job *job)
{
    struct method_state *state = walk_state(w, job->method);
    bool moved = false;
    while (job->item_at < job->count) {
        struct job_item *item = &job->items[job->item_at];
        if (!item->status && job->head_at < job->space->config.kv_heads) {
            if (!start_unit(w, job, state))
                break;
        } else {
            job->item_at++;
            job->head_at = 0;
        }
        moved = true;
    }
    return moved;
}

bool job_ended(const struct job *job)
{
    return job->item_at >= job->count && !job->units;
}

bool walk_idle(const struct walk *w)
{
    return !w->first && !w->busy;
}

static void unlink_piece(struct unit *u, struct piece *piece)
{
    struct piece **link = &u->pieces;
    while (*link != piece)
        link = &(*link)->next;
    *link = piece->next;
    if (!*link)
        u->last = link;
    u->waiting--;
    piece_put(piece);
}

// A unit that has ended, or whose item failed, goes with all that it holds.
static void end_unit(struct walk *w, struct unit *u)
{
    struct job *job = u->job;
    struct job_item *item = &job->items[u->item];
    while (u->pieces) {
        if (!u->pieces->computed)
            piece_release(w->space, u->pieces);
        unlink_piece(u, u->pieces);
    }
    job->method->end(u);
    job->units--;
    if (!--item->units && !item->status) {
        uint32_t heads = w->space->config.kv_heads;
        w->env->attended += item->attended / heads;
        w->env->from_flash += item->from_flash / heads;
        w->env->programming += item->programming / heads;
    }
    struct unit **link = &w->first;
    while (*link != u)
        link = &(*link)->next;
    *link = u->next;
    if (!*link)
        w->last = link;
    u->next = w->free_units;
    w->free_units = u;
    if (w->partial == u)
        w->partial = NULL;
}

static bool end_failed(struct walk *w)
{
    bool moved = false;
    for (struct unit *next, *u = w->first; u; u = next) {
        next = u->next;
        if (!u->job->items[u->item].status)
            continue;
        end_unit(w, u);
        moved = true;
    }
    return moved;
}

// ---- pieces ------------------------------------------------------------------------------------

// The piece of a unit that is not acquired yet: one that is partly, or whose read failed.
static struct piece *unacquired(const struct unit *u)
{
    struct piece *piece = u->pieces;
    while (piece && (piece->acquired || piece->computed))
        piece = piece->next;
    return piece;
}

static struct piece *next_piece(struct unit *u)
{
    struct piece *piece = unacquired(u);
    if (piece)
        return piece;
    if (u->kind != UNIT_READS || u->wanted || u->job->items[u->item].status)
        return NULL;
    piece = u->job->method->want(u);
    if (!piece)
        return NULL;
    *u->last = piece;
    u->last = &piece->next;
    piece->next = NULL;
    u->waiting++;
    return piece;
}

// Derived rows can be done without: one that cannot be had is given up by all that refer to it.
// False: the piece is of K and V.
static bool do_without(struct walk *w, struct unit *u, struct piece *piece, uint64_t index)
{
    const struct stream_ops *ops = w->space->streams[piece->stream].ops;
    const struct job *job = u->job;
    if (!ops || !job->method->redo)
        return false;
    const struct sequence *sequence = job->items[u->item].sequence;
    const struct row *row = stream_row(w->space, sequence, job->layer, piece->stream, index);
    if (row && row_placed(row)) {
        struct page_identity identity;
        stream_identity(w->space, row, job->layer, piece->stream, index, &identity);
        ops->lost(w->space, row->place, &identity);
    }
    job->method->redo(u, piece);
    piece_release(w->space, piece);
    piece->acquired = false;
    unlink_piece(u, piece);
    return true;
}

bool walk_fetch(struct walk *w)
{
    bool moved = false;
    struct unit *u = w->first;
    while (u) {
        if (w->partial) // before any other piece takes frames
            u = w->partial;
        struct piece *piece = next_piece(u);
        if (!piece) {
            w->partial = NULL;
            u = u->next;
            continue;
        }
        struct job *job = u->job;
        enum progress progress =
            piece_acquire(w->space, job->items[u->item].sequence, job->layer, piece);
        if (progress == WAIT) {
            w->partial = u;
            return moved;
        }
        moved = true;
        if (progress == FAILED && !do_without(w, u, piece, piece->failed_index)) {
            item_failed(job, u->item, piece->status, piece->stream, piece->failed_index);
            piece_release(w->space, piece);
            unlink_piece(u, piece);
        }
        if (w->partial) { // older units first
            w->partial = NULL;
            u = w->first;
        }
    }
    return moved;
}

bool walk_wants(const struct walk *w)
{
    for (const struct unit *u = w->first; u; u = u->next) {
        if (u->kind == UNIT_READS && (!u->wanted || unacquired(u)))
            return true;
    }
    return false;
}

// ---- arithmetic --------------------------------------------------------------------------------

// Cuts heads into tasks, so that workers have enough of them and no more.
static void add_tasks(struct walk *w, struct unit *u, struct piece *piece, uint32_t heads_each)
{
    for (uint32_t head = 0; head < u->n_heads; head += heads_each)
        w->tasks[w->n_tasks++] = (struct unit_task){
            .unit = u,
            .piece = piece,
            .head = head,
            .heads = (uint32_t)min_u64(heads_each, u->n_heads - head),
        };
}

static uint32_t heads_each(const struct walk *w, uint64_t heads)
{
    uint64_t workers = min_u64(pool_threads(w->env->pool), WORKERS_MOST);
    return (uint32_t)max_u64(1, heads / (TASKS_EACH * workers));
}

static uint8_t *scratch_of(const struct walk *w, unsigned worker)
{
    return pool_scratch(w->env->pool, worker);
}

static void run_check(void *arg, size_t index, unsigned worker)
{
    const struct walk *w = arg;
    (void)worker;
    piece_check_frame(w->unchecked, index);
}

static void run_compute(void *arg, size_t index, unsigned worker)
{
    const struct walk *w = arg;
    const struct unit_task *task = &w->tasks[index];
    task->unit->job->method->compute(task, scratch_of(w, worker));
}

static void run_fold(void *arg, size_t index, unsigned worker)
{
    const struct walk *w = arg;
    const struct unit_task *task = &w->tasks[index];
    (void)worker;
    task->unit->job->method->fold(task);
}

static void run_think(void *arg, size_t index, unsigned worker)
{
    const struct walk *w = arg;
    const struct unit_task *task = &w->tasks[index];
    task->unit->job->method->think(task, scratch_of(w, worker));
}

static void work_done(struct engine_task *task)
{
    struct walk *w = task->owner;
    w->busy = false;
    w->think_ns += task->kind == ENGINE_SELECT ? task->took_ns : 0;
}

// Hands work to the engine; false: there is none.
static bool submit(struct walk *w, enum engine_kind kind, pool_fn *fn, size_t items, uint64_t bytes,
                   uint64_t now_ns)
{
    if (!items)
        return false;
    w->work = (struct engine_task){.fn = fn,
                                   .arg = w,
                                   .items = items,
                                   .kind = kind,
                                   .bytes = bytes,
                                   .done = work_done,
                                   .owner = w};
    if (kind == ENGINE_ATTEND || kind == ENGINE_SELECT)
        w->work.work = w->counted;
    w->busy = true;
    w->env->engine->ops->submit(w->env->engine, &w->work, now_ns);
    return true;
}

static void count(struct walk *w, const struct unit *unit, const struct piece *piece)
{
    if (w->env->engine->counts && unit->job->method->work)
        unit->job->method->work(unit, piece, &w->counted);
}

// Ready pieces become tasks; pieces of several units, the oldest first. Returns the bytes of K and
// V that they are about.
static uint64_t collect(struct walk *w)
{
    uint64_t heads = 0, bytes = 0;
    size_t n = 0;
    for (struct unit *u = w->first; u && n < w->batch; u = u->next) {
        for (struct piece *p = u->pieces; p && n < w->batch; p = p->next) {
            if (p->computed || !piece_ready(p) || u->job->items[u->item].status)
                continue;
            w->ready[n++] = (struct unit_task){.unit = u, .piece = p};
            heads += u->n_heads;
            bytes += (uint64_t)p->tokens * u->n_heads;
            count(w, u, p);
            w->n_unchecked = piece_unchecked(p, w->unchecked, w->n_unchecked);
        }
    }
    uint32_t each = heads_each(w, heads);
    for (size_t i = 0; i < n; i++)
        add_tasks(w, w->ready[i].unit, w->ready[i].piece, each);
    const struct stream *kv = &w->space->streams[STREAM_KV];
    return bytes * kv->slot_bytes / kv->row_tokens;
}

// Pieces whose reads failed are acquired again, or end their item; the others stay.
static bool drop_bad(struct walk *w)
{
    size_t kept = 0;
    bool dropped = false;
    const struct piece *good = NULL; // tasks of a piece lie side by side
    for (size_t i = 0; i < w->n_tasks; i++) {
        struct unit_task *task = &w->tasks[i];
        struct piece *piece = task->piece;
        uint64_t index = 0;
        int status = 0;
        if (piece != good)
            status = piece->acquired ? piece_read_status(piece, &index) : INST_EIO;
        good = status ? NULL : piece;
        if (!status && !task->unit->job->items[task->unit->item].status) {
            w->tasks[kept++] = *task;
            continue;
        }
        dropped = true;
        if (!status || !piece->acquired)
            continue; // seen already, by a task before
        if (piece->tries < PIECE_TRIES)
            piece_again(w->space, piece);
        else if (!do_without(w, task->unit, piece, index))
            item_failed(task->unit->job, task->unit->item, status, piece->stream, index);
    }
    w->n_tasks = kept;
    return dropped;
}

// Pages go back, and so do pieces that nobody folds.
static void settle(struct walk *w)
{
    for (size_t i = 0; i < w->n_tasks; i++) {
        const struct unit_task *task = &w->tasks[i];
        const struct method *method = task->unit->job->method;
        if (task->head)
            continue;
        method->computed(task->unit, task->piece);
        piece_release(w->space, task->piece);
        task->piece->computed = true;
        if (!method->folds(task->piece))
            unlink_piece(task->unit, task->piece);
    }
    w->n_tasks = 0;
}

static bool folds_now(const struct unit *u)
{
    return u->pieces && u->pieces->computed && !u->job->items[u->item].status;
}

// Tasks of the units that `which` picks, the oldest first, up to about `most` heads.
static void unit_tasks(struct walk *w, bool (*which)(const struct unit *), uint64_t most)
{
    uint64_t heads = 0, taken = 0;
    for (const struct unit *u = w->first; u; u = u->next)
        heads += which(u) ? u->n_heads : 0;
    uint32_t each = heads_each(w, min_u64(heads, most));
    w->n_tasks = 0;
    for (struct unit *u = w->first; u && taken < most; u = u->next) {
        if (!which(u))
            continue;
        add_tasks(w, u, NULL, each);
        taken += u->n_heads;
    }
}

// Pieces that come to the list meanwhile, or leave it uncomputed, are none of the engine's.
static void mark_folding(struct walk *w)
{
    for (size_t i = 0; i < w->n_tasks; i++) {
        struct unit *u = w->tasks[i].unit;
        u->folding = 0;
        for (const struct piece *p = u->pieces; p && p->computed; p = p->next)
            u->folding++;
    }
}

static void folded(struct walk *w)
{
    for (size_t i = 0; i < w->n_tasks; i++) {
        struct unit *u = w->tasks[i].unit;
        for (; u->folding; u->folding--)
            unlink_piece(u, u->pieces);
    }
}

static bool thinks_now(const struct unit *u)
{
    return u->kind == UNIT_THINKS && !u->job->items[u->item].status;
}

// Others may begin to think before the engine has done with these.
static void mark_thinking(struct walk *w)
{
    for (size_t i = 0; i < w->n_tasks; i++) {
        if (!w->tasks[i].unit->thinking)
            count(w, w->tasks[i].unit, NULL);
        w->tasks[i].unit->thinking = true;
    }
}

// Phases that have ended: units that have read everything, or thought. Sets *again when one of them
// thinks on.
static bool advance(struct walk *w, bool thought, bool *again)
{
    bool moved = false;
    *again = false;
    for (struct unit *next, *u = w->first; u; u = next) {
        next = u->next;
        bool read = u->kind == UNIT_READS && u->wanted && !u->waiting;
        if (u->job->items[u->item].status || !(thought ? u->thinking : read))
            continue;
        u->wanted = u->thinking = false;
        u->job->method->advance(u);
        if (u->kind == UNIT_ENDED)
            end_unit(w, u);
        else
            *again |= u->kind == UNIT_THINKS;
        moved = true;
    }
    return moved;
}

// What some have chosen is read while the next ones think.
static bool think(struct walk *w, uint64_t now_ns)
{
    unit_tasks(w, thinks_now,
               w->env->views ? UINT64_MAX : THINK_HEADS * pool_threads(w->env->pool));
    w->counted = (struct engine_work){0};
    mark_thinking(w);
    w->stage = STAGE_THINK;
    return submit(w, ENGINE_SELECT, run_think, w->n_tasks, 0, now_ns);
}

// Goes on to the next stage, once the engine has done what this one submitted. True: that was work
// for the engine.
static bool next_stage(struct walk *w, uint64_t now_ns, bool *moved)
{
    bool again = false;
    switch (w->stage) {
    case STAGE_COLLECT:
        *moved |= end_failed(w);
        w->n_tasks = w->n_unchecked = 0;
        w->counted = (struct engine_work){0};
        w->work.bytes = collect(w);
        w->stage = STAGE_CHECK;
        return submit(w, ENGINE_CHECK, run_check, w->n_unchecked, w->work.bytes, now_ns);
    case STAGE_CHECK:
        piece_checked(w->space, w->unchecked, w->n_unchecked);
        *moved |= drop_bad(w);
        w->stage = STAGE_COMPUTE;
        return submit(w, ENGINE_ATTEND, run_compute, w->n_tasks, w->work.bytes, now_ns);
    case STAGE_COMPUTE:
        *moved |= w->n_tasks != 0;
        settle(w);
        *moved |= end_failed(w);
        unit_tasks(w, folds_now, UINT64_MAX);
        mark_folding(w);
        w->stage = STAGE_FOLD;
        return submit(w, ENGINE_FOLD, run_fold, w->n_tasks, 0, now_ns);
    case STAGE_FOLD:
        *moved |= w->n_tasks != 0;
        folded(w);
        *moved |= advance(w, false, &again);
        return think(w, now_ns);
    case STAGE_THINK:
        *moved |= w->n_tasks != 0; // units that failed meanwhile are ended by the next collection
        if (w->n_tasks)
            advance(w, true, &again);
        if (again) // the device waits for what comes of it
            return think(w, now_ns);
        w->stage = STAGE_COLLECT;
        break;
    }
    return false;
}

bool walk_compute(struct walk *w, uint64_t now_ns)
{
    bool moved = false;
    do {
        while (!w->busy && !next_stage(w, now_ns, &moved) && w->stage != STAGE_COLLECT)
            ;
        if (w->busy) // an engine that works when it is polled has finished then
            moved |= engine_take(w->env->engine, now_ns); // maybe somebody else's
    } while (!w->busy && w->stage != STAGE_COLLECT);
    return moved;
}
