// SPDX-License-Identifier: Apache-2.0
// The drive's state machine. Commands are admitted in the order of their arrival: WRITE and the
// appending part of ATTEND change state there, waiting at the head of the queue while DRAM is
// short. READ and ATTEND then live on as jobs under their ticket; COLLECT, ABORT, STAT and IDENTIFY
// never queue. Every field is checked as if it came from an enemy.
#include "drive/control/internal.h"
#include "base/checked.h"
#include "drive/attend/ahead.h"

#include <stdio.h>

enum {
    IDLE_NS = 5000000,    // without commands and jobs: erases disturb nobody
    ROOM_BYTES = 1 << 20, // that a cache gives up at a time
    SWEEP_SLICE = 1024,   // map entries freed in one step
    STEP_BYTES = 4 << 20, // that commands move in one step, about
};

void request_append(struct request_list *list, struct request *request)
{
    request->next = NULL;
    *list->last = request;
    list->last = &request->next;
}

void request_remove(struct request_list *list, struct request *request)
{
    struct request **link = &list->first;
    while (*link != request)
        link = &(*link)->next;
    *link = request->next;
    if (!*link)
        list->last = link;
}

bool enough(struct drive *drive)
{
    return drive->work >= STEP_BYTES;
}

// What streams can make again, which takes long: the last thing to go.
static bool shed(struct drive *drive)
{
    bool any = false;
    for (struct space *space = drive->spaces; space; space = space->next)
        for (uint32_t i = 1; i < STREAM_MAX; i++)
            if (space->streams[i].ops && space->streams[i].ops->shed)
                any |= space->streams[i].ops->shed(space);
    return any;
}

bool make_room(struct drive *drive, uint64_t bytes)
{
    uint64_t before = drive->budget.used;
    tickets_shrink(drive);
    for (struct space *space = drive->spaces; space; space = space->next) {
        frames_may_grow(space->frames, false); // until request_end
        // What a space was promised stays its own whatever it gives.
        while (before - drive->budget.used < bytes && space->own.used > space->own.reserved &&
               frames_shrink(space->frames, bytes - (before - drive->budget.used)))
            ;
    }
    return drive->budget.used < before || shed(drive);
}

// True while flash holds operations of ours.
static bool flash_busy(const struct drive *drive)
{
    for (const struct space *space = drive->spaces; space; space = space->next) {
        if (frames_in_flight(space->frames))
            return true;
    }
    return segments_in_flight(drive->segments) || drive->syncing;
}

static bool runnable_jobs(const struct drive *drive)
{
    const struct job *job = drive->first_job;
    while (job && !job_runnable(job))
        job = job->next;
    return job != NULL;
}

// DRAM is still on its way back without anybody's doing: maps that are swept, frames of the flash,
// what derived streams bring there.
static bool room_to_come(const struct drive *drive)
{
    bool swept = true;
    for (const struct space *space = drive->spaces; space; space = space->next)
        swept &= space_swept(space) && !streams_working(space);
    return !swept || flash_busy(drive);
}

int no_room(const struct drive *drive, int status)
{
    if (status != INST_ENOMEM)
        return status;
    return room_to_come(drive) || runnable_jobs(drive) ? WAIT : INST_ENORESOURCE;
}

void complete(struct drive *drive, struct request *request, int status, uint64_t result,
              const struct inst_msg *text)
{
    struct completion *done = &request->completion;
    *done = (struct completion){
        .owner = request->owner, .cid = request->command.cid, .status = status, .result = result};
    if (text)
        snprintf(done->text, sizeof done->text, "%.*s", COMPLETION_TEXT_BYTES - 1, text->text);
    request_append(&drive->done, request);
}

struct space *find_space(const struct drive *drive, uint32_t id)
{
    struct space *space = drive->spaces;
    while (space && space->id != id)
        space = space->next;
    return space;
}

// Checks what WRITE, READ, ATTEND, FORK and RECLAIM have in common.
int check_table(struct drive *drive, const struct request *request, struct space **space,
                struct table_header *header)
{
    const struct command *c = &request->command;
    const char *name = opcode_name(c->opcode);
    *space = find_space(drive, c->space);
    if (!*space)
        return inst_fail(&drive->msg, INST_ENOENT, "%s: space %u does not exist", name, c->space);
    if (!c->count || c->count > MAX_ITEMS)
        return inst_fail(&drive->msg, INST_EINVAL, "%s: %u items, must be 1 to %u", name, c->count,
                         MAX_ITEMS);
    if (table_get_header(header, request->table, request->table_bytes, c->count))
        return inst_fail(&drive->msg, INST_EINVAL, "%s: malformed table of %zu bytes", name,
                         request->table_bytes);
    bool layered = c->opcode == OP_WRITE || c->opcode == OP_READ || c->opcode == OP_ATTEND;
    if (layered && c->layer >= (*space)->config.layers)
        return inst_fail(&drive->msg, INST_EINVAL, "%s: layer %u of %u", name, c->layer,
                         (*space)->config.layers);
    bool slabs = c->opcode == OP_WRITE || c->opcode == OP_READ;
    if (slabs && (!header->head_count || header->head_count > (*space)->config.kv_heads ||
                  header->head_first > (*space)->config.kv_heads - header->head_count))
        return inst_fail(&drive->msg, INST_EINVAL, "%s: heads %u + %u of %u", name,
                         header->head_first, header->head_count, (*space)->config.kv_heads);
    return 0;
}

// Adds the item's slab to *end; false when sizes overflow or tokens do not fit in 32-bit groups.
bool item_slab(const struct space *space, const struct table_header *header,
               const struct table_item *item, uint64_t *end)
{
    uint64_t bytes, last;
    return checked_add(item->pos, item->n_tokens, &last) &&
           last / space->config.group_tokens < UINT32_MAX &&
           slab_bytes(header->head_count, item->n_tokens, space->config.head_dim, &bytes) &&
           checked_round_up(bytes, 64, &bytes) && checked_add(*end, bytes, end);
}

int drive_open(struct drive **out, struct flash *flash, const struct drive_limits *limits,
               struct inst_msg *msg)
{
    struct budget budget;
    budget_init(&budget, limits->dram_bytes);
    if (!limits->pool)
        return inst_fail(msg, INST_EINVAL, "a drive needs a worker pool");
    int status = flash_geometry_check(&flash->geometry, msg);
    if (status)
        return status;
    struct drive *drive = budget_alloc(&budget, 1, sizeof *drive, "the drive", msg);
    if (!drive)
        return INST_ENOMEM;
    drive->budget = budget; // with the drive itself accounted for
    drive->flash = flash;
    drive->pool = limits->pool;
    drive->env = (struct attend_env){
        .engine = limits->engine,
        .selected = limits->selected,
        .selected_user = limits->selected_user,
        .pool = limits->pool,
        .kernels = limits->kernels ? limits->kernels : kernels_best(),
        .views = flash->ops->view && flash->geometry.dies == 1,
    };
    attend_methods(&drive->env, limits->methods);
    drive->read_ahead = !limits->no_read_ahead && !drive->env.views;
    drive->row_cache = limits->row_cache ? limits->row_cache : UINT64_MAX;
    if (limits->no_row_cache || drive->env.views) // in place it is as near as in a cache
        drive->row_cache = 0;
    budget_init_part(&drive->tickets, &drive->budget);
    budget_init_part(&drive->tables, &drive->budget);
    drive->last_job = &drive->first_job;
    drive->free.last = &drive->free.first;
    drive->queue.last = &drive->queue.first;
    drive->collects.last = &drive->collects.first;
    drive->done.last = &drive->done.first;
    for (int i = 0; i < MAX_REQUESTS; i++)
        request_append(&drive->free, &drive->requests[i]);
    status = segments_open(&drive->segments, flash, &drive->tables, msg);
    if (!status && !limits->engine)
        status = engine_pool_open(&drive->own_engine, limits->pool, msg);
    if (status) {
        drive_close(drive);
        return status;
    }
    if (!limits->engine)
        drive->env.engine = drive->own_engine;
    drive->own_bytes = drive->budget.used;
    drive->own_tables = drive->tables.used;
    *out = drive;
    return 0;
}

static void take_back(struct drive *drive, uint64_t now_ns);

bool drive_ends(struct drive *drive)
{
    drive->closing = true;
    if (!drive->segments || !flash_busy(drive))
        return true;
    // Time is not read here: far enough in the future for a timed back end.
    take_back(drive, UINT64_MAX / 2);
    return !flash_busy(drive);
}

void drive_close(struct drive *drive)
{
    if (!drive)
        return;
    while (!drive_ends(drive)) {
        if (drive->flash->ops->wait)
            drive->flash->ops->wait(drive->flash, 1000000);
    }
    struct space *next, *space = drive->spaces;
    for (; space; space = next) {
        next = space->next;
        walk_close(space->walk);
        space_close(space);
    }
    segments_close(drive->segments);
    engine_close(drive->own_engine);
    struct budget budget = drive->budget; // the block of the drive itself outlives its account
    for (int i = 0; i < MAX_TICKETS; i++)
        budget_free(&drive->tickets, drive->jobs[i].memory);
    budget_free(&budget, drive);
}

// ---- finished flash operations -----------------------------------------------------------------

static void frame_finished(struct drive *drive, struct frame *frame)
{
    drive->runnable = true;
    if (frame->state == FRAME_PROGRAM && !drive->closing)
        space_program_failed(find_space(drive, frame->identity.space), frame);
}

static void take_back(struct drive *drive, uint64_t now_ns)
{
    struct flash_io *next, *io = drive->flash->ops->poll(drive->flash, now_ns);
    for (; io; io = next) {
        next = io->next;
        if (io->owner == drive->segments) {
            segments_done(drive->segments, io);
            drive->runnable = true;
        } else if (io->owner == drive) {
            drive->syncing = false;
            drive->runnable = true;
        } else {
            struct frame *frame = frames_done(io);
            if (frame)
                frame_finished(drive, frame);
        }
    }
}

// ---- the machine -------------------------------------------------------------------------------

bool streams_working(const struct space *space)
{
    for (uint32_t i = 1; i < STREAM_MAX; i++) {
        if (space->streams[i].ops && space->streams[i].ops->working(space))
            return true;
    }
    return false;
}

static int do_flush(struct drive *drive, struct request *request)
{
    if (!request->synced) {
        for (struct space *space = drive->spaces; space; space = space->next) {
            if (frames_programming(space->frames) || !space_swept(space) || streams_working(space))
                return WAIT;
        }
        if (segments_busy(drive->segments)) {
            segments_press(drive->segments);
            return WAIT;
        }
        if (drive->syncing) // for a FLUSH that was aborted
            return WAIT;
        drive->sync_io = (struct flash_io){.op = FLASH_SYNC, .owner = drive};
        drive->syncing = request->synced = true;
        drive->flash->ops->submit(drive->flash, &drive->sync_io, drive->now_ns);
    }
    if (drive->syncing)
        return WAIT;
    int status = drive->sync_io.status;
    return status ? inst_fail(&drive->msg, status, "FLUSH: the flash: %s", inst_status_text(status))
                  : 0;
}

// Commands that never wait for others; true: it has completed.
static bool submit_now(struct drive *drive, struct request *request)
{
    uint64_t result = 0;
    int status;
    drive->msg.text[0] = 0;
    switch (request->command.opcode) {
    case OP_STAT:
        status = counters_stat(drive, &request->command, request->data);
        break;
    case OP_IDENTIFY:
        status = counters_identify(drive, &request->command, request->data);
        break;
    case OP_COLLECT:
        status = collect_begin(drive, request);
        if (!status)
            return false;
        break;
    case OP_ABORT:
        status = do_abort(drive, request, &result);
        break;
    case OP_SEAL:
    case OP_OPEN:
        status = inst_fail(&drive->msg, INST_ENOTSUP, "%s: not supported",
                           opcode_name(request->command.opcode));
        break;
    default:
        status = inst_fail(&drive->msg, INST_ENOTSUP, "opcode 0x%02x is not a command",
                           request->command.opcode);
    }
    complete(drive, request, status, result, status ? &drive->msg : NULL);
    return true;
}

int drive_submit(struct drive *drive, uint32_t owner, const uint8_t entry[COMMAND_BYTES],
                 const void *table, size_t table_bytes, void *data, uint64_t now_ns)
{
    struct request *request = drive->free.first;
    if (!request)
        return INST_ENORESOURCE;
    request_remove(&drive->free, request);
    *request =
        (struct request){.owner = owner, .table = table, .table_bytes = table_bytes, .data = data};
    command_decode(&request->command, entry);
    drive->now_ns = now_ns;
    drive->runnable = true;
    switch (request->command.opcode) {
    case OP_CONFIG:
    case OP_REMOVE:
    case OP_WRITE:
    case OP_READ:
    case OP_ATTEND:
    case OP_FORK:
    case OP_RECLAIM:
    case OP_FLUSH:
        request_append(&drive->queue, request);
        break;
    default:
        submit_now(drive, request);
    }
    return 0;
}

static int run_command(struct drive *drive, struct request *request, uint64_t *result)
{
    switch (request->command.opcode) {
    case OP_CONFIG:
        return do_config(drive, request, result);
    case OP_REMOVE:
        return do_remove(drive, request);
    case OP_WRITE:
        return do_write(drive, request);
    case OP_READ:
        return do_read(drive, request);
    case OP_ATTEND:
        return do_attend(drive, request);
    case OP_FORK:
        return do_fork(drive, request);
    case OP_RECLAIM:
        return do_reclaim(drive, request);
    default:
        return do_flush(drive, request);
    }
}

// Admits commands in order until one has to wait.
static bool admit(struct drive *drive)
{
    bool moved = false;
    drive->work = 0;
    while (drive->queue.first && !enough(drive)) {
        struct request *request = drive->queue.first;
        uint64_t result = 0;
        drive->msg.text[0] = 0;
        int status = run_command(drive, request, &result);
        // CONFIG has looked at what could give way itself.
        while (status == INST_ENOMEM && request->command.opcode != OP_CONFIG) {
            if (make_room(drive, ROOM_BYTES)) {
                drive->msg.text[0] = 0;
                status = run_command(drive, request, &result);
            } else {
                status = no_room(drive, status);
            }
        }
        if (status == WAIT) {
            if (enough(drive))
                return true;
            if (!request->waiting)
                request->since_ns = drive->now_ns;
            request->waiting = true;
            break;
        }
        if (request->waiting)
            drive->write_wait_ns += drive->now_ns - request->since_ns;
        request_remove(&drive->queue, request);
        request_end(drive, request, status);
        complete(drive, request, status, result, status ? &drive->msg : NULL);
        moved = true;
    }
    return moved;
}

// Somebody waits for the drive.
static bool wanted(const struct drive *drive)
{
    return runnable_jobs(drive) || drive->queue.first || drive->syncing;
}

static void submit_flash(struct drive *drive)
{
    for (struct space *space = drive->spaces; space; space = space->next)
        frames_submit(space->frames, drive->now_ns);
    // Short pauses, as between the layers of a token, are not for erasing.
    bool busy = wanted(drive);
    if (busy)
        drive->busy_ns = drive->now_ns;
    // What is closed without an operation may be all that a FLUSH waits for.
    drive->runnable |= segments_pump(drive->segments, drive->now_ns,
                                     !busy && drive->now_ns - drive->busy_ns >= IDLE_NS);
}

// A job whose next unit finds no DRAM, though nothing can give way any more and nothing is under
// way that will: its item is refused, the others are unharmed.
static bool refuse_item(struct drive *drive, struct job *job)
{
    struct job_item *item = &job->items[job->item_at];
    for (const struct space *space = drive->spaces; space; space = space->next) {
        if (!walk_idle(space->walk))
            return false;
    }
    if (room_to_come(drive))
        return false;
    item->status = inst_fail(&job->error, INST_ENORESOURCE,
                             "sequence %u layer %u: no DRAM is left to begin with it",
                             item->sequence->id, job->layer);
    return true;
}

// Frames go to jobs, the oldest first, then to what derived streams do in the background, then to
// reading ahead.
static bool fetch(struct drive *drive)
{
    bool moved = false;
    for (struct job *job = drive->first_job; job; job = job->next) {
        if (!job_runnable(job))
            continue;
        bool started = walk_start(job->space->walk, job);
        // With nothing under way only DRAM can be what it lacks, and caches may have that.
        if (!started && !job_ended(job) && walk_idle(job->space->walk))
            started = make_room(drive, ROOM_BYTES) || refuse_item(drive, job);
        moved |= started;
    }
    for (struct space *space = drive->spaces; space; space = space->next) {
        moved |= space->stranded && space_retry(space);
        moved |= walk_fetch(space->walk);
        for (uint32_t i = 1; i < STREAM_MAX; i++) {
            if (space->streams[i].ops)
                moved |= space->streams[i].ops->work(space, drive->env.engine, drive->now_ns);
        }
        if (drive->read_ahead && !walk_wants(space->walk))
            ahead_fetch(space);
    }
    return moved;
}

// What ended sequences leave behind goes bit by bit. True when some of it went: a command may be
// waiting for that.
static bool sweep(struct drive *drive)
{
    bool moved = false, more = false;
    for (struct space *space = drive->spaces; space; space = space->next) {
        moved |= !space_swept(space);
        more |= space_sweep(space, SWEEP_SLICE);
    }
    segments_giving_up(drive->segments, more);
    return moved;
}

size_t drive_step(struct drive *drive, uint64_t now_ns, struct completion *out, size_t max)
{
    drive->now_ns = now_ns;
    drive->runnable = false;
    take_back(drive, now_ns);
    bool moved = admit(drive);
    moved |= sweep(drive);
    moved |= fetch(drive);
    submit_flash(drive); // before computing: the device works meanwhile
    moved |= engine_take(drive->env.engine, now_ns);
    for (struct space *space = drive->spaces; space; space = space->next)
        moved |= walk_compute(space->walk, now_ns);
    moved |= finish_jobs(drive);
    collect_serve(drive);
    drive->runnable |= moved || drive->env.engine->ops->next_ns(drive->env.engine) <= now_ns;
    size_t n = 0;
    while (n < max && drive->done.first) {
        struct request *request = drive->done.first;
        out[n++] = request->completion;
        request_remove(&drive->done, request);
        request_append(&drive->free, request);
    }
    return n;
}

bool drive_runnable(const struct drive *drive)
{
    return drive->runnable || drive->done.first;
}

uint64_t drive_next_ns(const struct drive *drive)
{
    if (drive_runnable(drive))
        return drive->now_ns;
    uint64_t engine = drive->env.engine->ops->next_ns(drive->env.engine);
    if (drive->flash->ops->next_ns)
        return min_u64(engine, drive->flash->ops->next_ns(drive->flash));
    return flash_busy(drive) ? drive->now_ns : engine;
}
