// SPDX-License-Identifier: Apache-2.0
// The drive's state machine. Commands are admitted in the order of their arrival: WRITE and the
// appending part of ATTEND change state there, waiting at the head of the queue while DRAM is
// short. READ and ATTEND then live on as jobs under their ticket; COLLECT, STAT and IDENTIFY never
// queue. Every field is checked as if it came from an enemy; a command that is refused changes
// nothing (a command that fails half-way leaves a prefix, which positions make visible).
#include "drive/control/internal.h"
#include "base/checked.h"
#include "drive/attend/ahead.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

// Command handlers return 0, an error, or WAIT: not now.
enum { IDLE_NS = 5000000 }; // without commands and jobs: erases disturb nobody

// The text is this command's own, NULL: none.
static void complete(struct drive *drive, uint32_t owner, const struct command *command, int status,
                     uint64_t result, const struct inst_msg *text)
{
    uint32_t capacity = sizeof drive->done / sizeof drive->done[0];
    struct completion *done = &drive->done[(drive->first_done + drive->n_done++) % capacity];
    *done = (struct completion){
        .owner = owner, .cid = command->cid, .status = status, .result = result};
    if (text)
        snprintf(done->text, sizeof done->text, "%.*s", COMPLETION_TEXT_BYTES - 1, text->text);
}

static struct space *find_space(const struct drive *drive, uint32_t id)
{
    struct space *space = drive->spaces;
    while (space && space->id != id)
        space = space->next;
    return space;
}

static struct job *find_job(struct drive *drive, uint32_t owner, uint32_t ticket)
{
    for (int i = 0; i < MAX_TICKETS; i++) {
        struct job *job = &drive->jobs[i];
        if (job->state != JOB_FREE && job->owner == owner && job->ticket == ticket)
            return job;
    }
    return NULL;
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
        .pool = limits->pool,
        .kernels = limits->kernels ? limits->kernels : kernels_best(),
        .budget = &drive->budget,
        .views = flash->ops->view && flash->geometry.dies == 1,
    };
    control_methods(&drive->env, limits->methods);
    drive->read_ahead = !limits->no_read_ahead && !drive->env.views;
    drive->row_cache = limits->row_cache ? limits->row_cache : UINT64_MAX;
    if (limits->no_row_cache || drive->env.views) // in place it is as near as in a cache
        drive->row_cache = 0;
    drive->last_job = &drive->first_job;
    status = segments_open(&drive->segments, flash, &drive->budget, msg);
    if (!status && !limits->engine)
        status = engine_pool_open(&drive->own_engine, limits->pool, msg);
    if (status) {
        drive_close(drive);
        return status;
    }
    if (!limits->engine)
        drive->env.engine = drive->own_engine;
    drive->own_bytes = drive->budget.used;
    *out = drive;
    return 0;
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

static void take_back(struct drive *drive, uint64_t now_ns);

void drive_close(struct drive *drive)
{
    if (!drive)
        return;
    drive->closing = true;
    while (drive->segments && flash_busy(drive)) {
        if (drive->flash->ops->wait)
            drive->flash->ops->wait(drive->flash, 1000000);
        // Time is not read here: far enough in the future for a timed back end.
        take_back(drive, UINT64_MAX / 2);
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
        budget_free(&budget, drive->jobs[i].memory);
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

// ---- CONFIG ------------------------------------------------------------------------------------

static int open_space(struct drive *drive, uint32_t id, const struct space_config *config,
                      const struct control_plan *plan, struct space **out)
{
    struct inst_msg *msg = &drive->msg;
    struct space *space;
    struct walk *walk;
    int status = pool_reserve_scratch(drive->env.pool, plan->scratch, msg);
    if (!status)
        status = space_open(&space, id, config, plan->streams, drive->flash, drive->segments,
                            &drive->budget, msg);
    if (status)
        return status;
    space->views = drive->env.views;
    status = space_open_frames(space, &plan->frames, plan->reserve, plan->level, msg);
    if (!status)
        status = walk_open(&walk, &drive->env, space, plan->level, msg);
    if (status) {
        space_close(space);
        return status;
    }
    frames_set_window(space->frames, plan->ahead);
    space->walk = walk;
    *out = space;
    return 0;
}

static int do_config(struct drive *drive, struct pending *pending, uint64_t *result)
{
    struct inst_msg *msg = &drive->msg;
    struct space_config config;
    struct drive_plan chosen;
    struct control_plan plan;
    struct space *space;
    if (space_config_decode(&config, pending->table, pending->table_bytes))
        return inst_fail(msg, INST_EINVAL, "CONFIG: malformed table");
    if (find_space(drive, pending->command.space))
        return inst_fail(msg, INST_EEXIST, "CONFIG: space %u exists", pending->command.space);
    // What other spaces were promised is theirs, used or not yet. Plans count the drive's own
    // structures, which are in use already.
    uint64_t left = drive->budget.limit;
    for (const struct space *other = drive->spaces; other; other = other->next)
        left -= min_u64(left, other->promised);
    int status = 0;
    if (!config.group_tokens) {
        status = drive_plan(&chosen, &drive->flash->geometry, &config, left, msg);
        config.group_tokens = chosen.group_tokens;
    }
    if (!status)
        status = control_plan(&plan, &drive->env, &drive->flash->geometry, &config, left,
                              drive->row_cache != 0, msg);
    if (!status && plan.min_bytes > left)
        status = inst_fail(msg, INST_ENOMEM,
                           "CONFIG: %llu bytes of DRAM are left, this space needs at least %llu",
                           (unsigned long long)left, (unsigned long long)plan.min_bytes);
    plan.frames.cache_bytes = drive->row_cache;
    if (!status)
        status = open_space(drive, pending->command.space, &config, &plan, &space);
    if (status)
        return status;
    space->promised = plan.bytes;
    space->next = drive->spaces;
    drive->spaces = space;
    *result = config.group_tokens;
    return 0;
}

// ---- what commands have in common ---------------------------------------------------------------

int check_table(struct drive *drive, const struct pending *pending, struct space **space,
                struct table_header *header)
{
    const struct command *c = &pending->command;
    const char *name = opcode_name(c->opcode);
    *space = find_space(drive, c->space);
    if (!*space)
        return inst_fail(&drive->msg, INST_ENOENT, "%s: space %u does not exist", name, c->space);
    if (!c->count || c->count > MAX_ITEMS)
        return inst_fail(&drive->msg, INST_EINVAL, "%s: %u items, must be 1 to %u", name, c->count,
                         MAX_ITEMS);
    if (table_get_header(header, pending->table, pending->table_bytes, c->count))
        return inst_fail(&drive->msg, INST_EINVAL, "%s: malformed table of %zu bytes", name,
                         pending->table_bytes);
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

bool item_slab(const struct space *space, const struct table_header *header,
               const struct table_item *item, uint64_t *end)
{
    uint64_t bytes, last;
    return checked_add(item->pos, item->n_tokens, &last) &&
           last / space->config.group_tokens < UINT32_MAX &&
           slab_bytes(header->head_count, item->n_tokens, space->config.head_dim, &bytes) &&
           checked_round_up(bytes, 64, &bytes) && checked_add(*end, bytes, end);
}

// ---- READ and ATTEND ---------------------------------------------------------------------------

static int new_job(struct drive *drive, const struct pending *pending, struct space *space,
                   const struct table_header *header, struct job **out)
{
    const struct command *c = &pending->command;
    if (find_job(drive, pending->owner, c->ticket))
        return inst_fail(&drive->msg, INST_EEXIST, "%s: ticket %u is in use",
                         opcode_name(c->opcode), c->ticket);
    struct job *job = NULL;
    for (int i = 0; i < MAX_TICKETS && !job; i++) {
        if (drive->jobs[i].state == JOB_FREE)
            job = &drive->jobs[i];
    }
    if (!job)
        return inst_fail(&drive->msg, INST_ENORESOURCE, "%s: all %d tickets are in use",
                         opcode_name(c->opcode), MAX_TICKETS);
    void *memory = job->memory;
    uint64_t memory_bytes = job->memory_bytes;
    *job = (struct job){
        .opcode = c->opcode,
        .owner = pending->owner,
        .ticket = c->ticket,
        .space = space,
        .layer = c->layer,
        .count = c->count,
        .header = *header,
        .memory = memory,
        .memory_bytes = memory_bytes,
    };
    *out = job;
    return 0;
}

// Lays items, q, partials and result out in the job's memory, which grows when it must.
static int job_memory(struct drive *drive, struct job *job, uint64_t q_floats,
                      uint64_t partial_floats, uint64_t result_bytes)
{
    uint64_t items, q, partials, bytes;
    if (!checked_round_up(job->count * sizeof *job->items, 64, &items) ||
        !checked_round_up(q_floats * sizeof(float), 64, &q) ||
        !checked_round_up(partial_floats * sizeof(float), 64, &partials) ||
        !checked_add(items, q, &bytes) || !checked_add(bytes, partials, &bytes) ||
        !checked_add(bytes, result_bytes, &bytes))
        return inst_fail(&drive->msg, INST_EINVAL, "%s: sizes overflow", opcode_name(job->opcode));
    if (bytes > job->memory_bytes) {
        budget_free(&drive->budget, job->memory);
        job->memory_bytes = 0;
        job->memory = budget_alloc(&drive->budget, bytes, 1, "a ticket", &drive->msg);
        if (!job->memory)
            return INST_ENORESOURCE;
        job->memory_bytes = bytes;
    }
    job->items = job->memory;
    job->q = (float *)((uint8_t *)job->memory + items);
    job->partials = (float *)((uint8_t *)job->q + q);
    job->result = (uint8_t *)job->partials + partials;
    memset(job->items, 0, job->count * sizeof *job->items);
    return 0;
}

static void enqueue_job(struct drive *drive, struct job *job)
{
    job->state = JOB_ADMITTED;
    job->next = NULL;
    *drive->last_job = job;
    drive->last_job = &job->next;
    for (uint32_t i = 0; i < job->count; i++) {
        if (job->items[i].status)
            job->items[i].sequence = NULL;
        else
            job->items[i].sequence->jobs++;
    }
}

static int do_read(struct drive *drive, struct pending *pending)
{
    struct space *space;
    struct table_header header;
    struct job *job;
    int status = check_table(drive, pending, &space, &header);
    if (!status)
        status = new_job(drive, pending, space, &header, &job);
    if (!status)
        status = job_memory(drive, job, 0, 0, 0);
    if (!status)
        job->method = &method_copy;
    uint64_t end = 0;
    for (uint32_t i = 0; !status && i < job->count; i++) {
        struct table_item item;
        table_get_item(&item, pending->table, i);
        uint64_t offset = end;
        if (!item.n_tokens || !item_slab(space, &header, &item, &end))
            return inst_fail(&drive->msg, INST_EINVAL, "READ: item %u of %llu tokens", i,
                             (unsigned long long)item.n_tokens);
        struct sequence *sequence;
        status = space_lookup(space, &item, &sequence, &drive->msg);
        uint64_t have = sequence ? sequence->layers[job->layer].tokens : 0;
        if (!status && item.pos + item.n_tokens > have)
            status = inst_fail(&drive->msg, INST_ESEQUENCE,
                               "READ: sequence %u has %llu tokens in layer %u, not %llu", item.seq,
                               (unsigned long long)have, job->layer,
                               (unsigned long long)(item.pos + item.n_tokens));
        job->items[i] = (struct job_item){
            .sequence = sequence,
            .first = item.pos,
            .end = item.pos + item.n_tokens,
            .offset = offset,
        };
    }
    if (status)
        return status;
    job->layout.out_bytes = end;
    enqueue_job(drive, job);
    return 0;
}

static int check_attend(struct drive *drive, struct pending *pending, struct space *space,
                        struct table_header *header, struct attend_layout *layout)
{
    const struct command *c = &pending->command;
    bool append = false;
    for (uint32_t i = 0; i < c->count; i++) {
        struct table_item item;
        uint64_t end = 0;
        table_get_item(&item, pending->table, i);
        if (item.n_tokens > 1 || !item_slab(space, header, &item, &end))
            return inst_fail(&drive->msg, INST_EINVAL, "ATTEND: item %u: %llu tokens at %llu", i,
                             (unsigned long long)item.n_tokens, (unsigned long long)item.pos);
        // A window leaves at least one token.
        if (item.window && item.window >= item.pos + item.n_tokens)
            return inst_fail(&drive->msg, INST_EINVAL,
                             "ATTEND: item %u: a window from %llu on at "
                             "%llu",
                             i, (unsigned long long)item.window, (unsigned long long)item.pos);
        append |= item.n_tokens == 1;
    }
    const struct method *method = attend_method(&drive->env, header->method);
    if (!method)
        return inst_fail(&drive->msg, INST_ENOTSUP, "ATTEND: unknown method %u", header->method);
    struct method_state *state = walk_state(space->walk, method);
    if (!state)
        return inst_fail(&drive->msg, INST_ENOTSUP, "ATTEND: space %u was not made for %s",
                         space->id, method->name);
    if (!header->q_heads || header->q_heads % space->config.kv_heads ||
        header->q_heads / space->config.kv_heads > MAX_GROUP_HEADS)
        return inst_fail(&drive->msg, INST_EINVAL, "ATTEND: %u query heads over %u KV heads",
                         header->q_heads, space->config.kv_heads);
    if (!isfinite(header->scale))
        return inst_fail(&drive->msg, INST_EINVAL, "ATTEND: the scale is not a number");
    if (!isfinite(header->softcap) || header->softcap < 0)
        return inst_fail(&drive->msg, INST_EINVAL, "ATTEND: the soft cap is not a positive number");
    if (!attend_layout(layout, c->count, header->q_heads, space->config.kv_heads,
                       space->config.head_dim, append) ||
        layout->in_bytes > c->length)
        return inst_fail(&drive->msg, INST_EINVAL, "ATTEND: %u bytes of data are too few",
                         c->length);
    if (!method->check)
        return 0;
    for (uint32_t i = 0; i < c->count; i++) {
        struct table_item item;
        table_get_item(&item, pending->table, i);
        int status = method->check(state, header, &item, &drive->msg);
        if (status)
            return status;
    }
    return 0;
}

static int begin_attend(struct drive *drive, struct pending *pending, struct space *space,
                        struct table_header *header)
{
    struct job *job;
    struct attend_layout layout;
    int status = check_attend(drive, pending, space, header, &layout);
    if (!status)
        status = new_job(drive, pending, space, header, &job);
    if (status)
        return status;
    uint64_t heads = (uint64_t)job->count * header->q_heads, dim = space->config.head_dim;
    status = job_memory(drive, job, heads * dim, heads * partial_stride(dim), layout.out_bytes);
    if (status)
        return status;
    job->layout = layout;
    job->method = attend_method(&drive->env, header->method);
    memcpy(job->q, pending->data + layout.q, heads * dim * sizeof(float));
    for (uint64_t i = 0; i < heads; i++)
        partial_clear(partial_at(job->partials, i, dim));
    job->state = JOB_ADMITTED; // holds the ticket while tokens are appended
    pending->job = job;
    return 0;
}

// Appends the item's token where asked for, and says which tokens it attends to.
static int attend_item(struct drive *drive, struct pending *pending, uint32_t index)
{
    struct job *job = pending->job;
    struct space *space = job->space;
    struct table_item item;
    struct sequence *sequence;
    table_get_item(&item, pending->table, index);
    int status = space_lookup(space, &item, &sequence, &drive->msg);
    if (!status && !sequence) {
        if (!item.n_tokens)
            return inst_fail(&drive->msg, INST_ENOENT, "ATTEND: sequence %u does not exist",
                             item.seq);
        status = space_create(space, &item, &sequence, &drive->msg);
    }
    if (status)
        return status;
    struct layer_state *layer = &sequence->layers[job->layer];
    const struct method *method = job->method;
    status = method->check_item
                 ? method->check_item(walk_state(space->walk, method), &item, &drive->msg)
                 : 0;
    if (status)
        return status;
    if (item.pos > layer->tokens)
        return inst_fail(&drive->msg, INST_ESEQUENCE,
                         "ATTEND: sequence %u has %llu tokens in layer %u, not %llu", item.seq,
                         (unsigned long long)layer->tokens, job->layer,
                         (unsigned long long)item.pos);
    if (item.n_tokens && item.pos == layer->tokens) {
        status = sequence_prepare_append(space, sequence, job->layer, &drive->msg);
        if (status)
            return status;
        uint64_t dim = space->config.head_dim, row = (uint64_t)index * space->config.kv_heads * dim;
        struct append_source source = {
            .head_count = space->config.kv_heads,
            .k = (const uint16_t *)(pending->data + job->layout.k) + row,
            .v = (const uint16_t *)(pending->data + job->layout.v) + row,
            .k_head_stride = dim,
            .v_head_stride = dim,
        };
        sequence_append(space, sequence, job->layer, &source, item.pos, 1);
        sequence_appended(space, layer);
        if (sequence->failed)
            return sequence_refuse(sequence, &drive->msg);
    }
    job->items[index].sequence = sequence;
    job->items[index].window = item.window;
    job->items[index].first = item.window / ATTENTION_TILE * ATTENTION_TILE; // tiles are absolute
    job->items[index].end = item.pos + item.n_tokens;
    return 0;
}

static int do_attend(struct drive *drive, struct pending *pending)
{
    if (!pending->job) {
        struct space *space;
        struct table_header header;
        int status = check_table(drive, pending, &space, &header);
        if (!status)
            status = begin_attend(drive, pending, space, &header);
        if (status)
            return status;
    }
    struct job *job = pending->job;
    for (; pending->item < job->count; pending->item++) {
        int status = attend_item(drive, pending, pending->item);
        if (status == WAIT)
            return WAIT;
        job->items[pending->item].status = status; // others are unharmed
        if (status && !job->error.text[0])
            job->error = drive->msg;
        drive->msg.text[0] = 0;
    }
    enqueue_job(drive, job);
    ahead_expect(job->space, job, job->method->use == USE_SCAN);
    return 0;
}

// ---- FORK, RECLAIM, FLUSH ----------------------------------------------------------------------

static int do_fork(struct drive *drive, struct pending *pending)
{
    struct space *space;
    struct table_header header;
    int status = check_table(drive, pending, &space, &header);
    while (!status && pending->item < pending->command.count) {
        struct table_item item, parent_item;
        struct sequence *parent, *child;
        table_get_item(&item, pending->table, pending->item);
        parent_item = (struct table_item){
            .seq = item.parent, .epoch = item.parent_epoch, .pos = 1 /* must exist */};
        status = space_lookup(space, &parent_item, &parent, &drive->msg);
        if (!status && space_find(space, item.seq))
            status = inst_fail(&drive->msg, INST_EEXIST, "FORK: sequence %u exists", item.seq);
        if (!status)
            status = sequence_fork(space, parent, &item, &child, &drive->msg);
        pending->item += status == 0; // one that has to wait comes again
    }
    return status;
}

static int do_reclaim(struct drive *drive, struct pending *pending)
{
    struct space *space;
    struct table_header header;
    int status = check_table(drive, pending, &space, &header);
    while (!status && pending->item < pending->command.count) {
        struct table_item item;
        table_get_item(&item, pending->table, pending->item);
        status = reclaim_range(drive, space, &item);
        pending->item += status == 0;
    }
    return status;
}

static int do_flush(struct drive *drive, struct pending *pending, uint64_t now_ns)
{
    if (!pending->synced) {
        for (struct space *space = drive->spaces; space; space = space->next) {
            if (frames_programming(space->frames))
                return WAIT;
            for (uint32_t i = 1; i < STREAM_MAX; i++) {
                const struct stream_ops *ops = space->streams[i].ops;
                if (ops && ops->working(space))
                    return WAIT;
            }
        }
        if (segments_busy(drive->segments)) {
            segments_press(drive->segments);
            return WAIT;
        }
        drive->sync_io = (struct flash_io){.op = FLASH_SYNC, .owner = drive};
        drive->syncing = pending->synced = true;
        drive->flash->ops->submit(drive->flash, &drive->sync_io, now_ns);
    }
    if (drive->syncing)
        return WAIT;
    int status = drive->sync_io.status;
    return status ? inst_fail(&drive->msg, status, "FLUSH: the flash: %s", inst_status_text(status))
                  : 0;
}

// ---- COLLECT -----------------------------------------------------------------------------------

static void free_job(struct job *job)
{
    job->state = JOB_FREE;
}

static int begin_collect(struct drive *drive, uint32_t owner, const struct command *command,
                         uint8_t *data, uint64_t now_ns)
{
    struct collect *slot = NULL;
    for (int i = 0; i < MAX_TICKETS; i++) {
        struct collect *collect = &drive->collects[i];
        if (collect->used && collect->owner == owner && collect->command.ticket == command->ticket)
            return inst_fail(&drive->msg, INST_EEXIST, "COLLECT: ticket %u is being collected",
                             command->ticket);
        if (!collect->used)
            slot = collect;
    }
    if (!slot)
        return inst_fail(&drive->msg, INST_ENORESOURCE, "COLLECT: %d are waiting", MAX_TICKETS);
    uint64_t wait_ns = (uint64_t)command->timeout_ms * 1000000;
    *slot = (struct collect){
        .command = *command,
        .owner = owner,
        .data = data,
        .deadline_ns = wait_ns ? now_ns + wait_ns : UINT64_MAX,
        .used = true,
    };
    return 0;
}

static void end_collect(struct drive *drive, struct collect *collect, int status, uint64_t result,
                        const struct inst_msg *text)
{
    collect->used = false;
    complete(drive, collect->owner, &collect->command, status, result, text);
    drive->runnable = true;
}

static void serve_collect(struct drive *drive, struct collect *collect, uint64_t now_ns)
{
    struct job *job = find_job(drive, collect->owner, collect->command.ticket);
    struct inst_msg msg = {0};
    if (job && collect->command.length < job->layout.out_bytes) {
        inst_fail(&msg, INST_EINVAL, "COLLECT: ticket %u needs %llu bytes", job->ticket,
                  (unsigned long long)job->layout.out_bytes);
        end_collect(drive, collect, INST_EINVAL, 0, &msg);
        return;
    }
    if (job && job->state == JOB_DONE) {
        int status = job->opcode == OP_READ ? job->status : 0;
        if (job->opcode == OP_ATTEND)
            memcpy(collect->data, job->result, job->layout.out_bytes);
        // READ fails as a whole; the items of an ATTEND have codes, this is the text beside them.
        end_collect(drive, collect, status, job->layout.out_bytes, &job->error);
        free_job(job);
        return;
    }
    if (job && job->opcode == OP_READ && !job->dest) {
        job->dest = collect->data;
        drive->runnable = true;
    }
    // A READ that copies into the buffer is not interrupted: it ends by itself.
    if (now_ns >= collect->deadline_ns && !(job && job->dest)) {
        inst_fail(&msg, INST_ETIMEOUT, "COLLECT: ticket %u did not come in %u ms",
                  collect->command.ticket, collect->command.timeout_ms);
        end_collect(drive, collect, INST_ETIMEOUT, 0, &msg);
    }
}

// ---- the machine -------------------------------------------------------------------------------

int drive_submit(struct drive *drive, uint32_t owner, const uint8_t entry[COMMAND_BYTES],
                 const void *table, size_t table_bytes, void *data, uint64_t now_ns)
{
    struct command command;
    command_decode(&command, entry);
    if (drive->n_done + drive->n_pending >= MAX_PENDING)
        return INST_ENORESOURCE;
    drive->runnable = true;
    bool immediate = true;
    int status = 0;
    drive->msg.text[0] = 0;
    switch (command.opcode) {
    case OP_STAT:
        status = counters_stat(drive, &command, data);
        break;
    case OP_IDENTIFY:
        status = counters_identify(drive, &command, data);
        break;
    case OP_COLLECT:
        status = begin_collect(drive, owner, &command, data, now_ns);
        immediate = status != 0;
        break;
    case OP_SEAL:
    case OP_OPEN:
        status =
            inst_fail(&drive->msg, INST_ENOTSUP, "%s: not supported", opcode_name(command.opcode));
        break;
    case OP_CONFIG:
    case OP_WRITE:
    case OP_READ:
    case OP_ATTEND:
    case OP_FORK:
    case OP_RECLAIM:
    case OP_FLUSH: {
        uint32_t slot = (drive->pending_first + drive->n_pending++) % MAX_PENDING;
        drive->pending[slot] = (struct pending){.command = command,
                                                .owner = owner,
                                                .table = table,
                                                .table_bytes = table_bytes,
                                                .data = data};
        immediate = false;
        break;
    }
    default:
        status =
            inst_fail(&drive->msg, INST_ENOTSUP, "opcode 0x%02x is not a command", command.opcode);
    }
    if (immediate)
        complete(drive, owner, &command, status, 0, status ? &drive->msg : NULL);
    return 0;
}

static int run_command(struct drive *drive, struct pending *pending, uint64_t now_ns,
                       uint64_t *result)
{
    switch (pending->command.opcode) {
    case OP_CONFIG:
        return do_config(drive, pending, result);
    case OP_WRITE:
        return command_write(drive, pending);
    case OP_READ:
        return do_read(drive, pending);
    case OP_ATTEND:
        return do_attend(drive, pending);
    case OP_FORK:
        return do_fork(drive, pending);
    case OP_RECLAIM:
        return do_reclaim(drive, pending);
    default:
        return do_flush(drive, pending, now_ns);
    }
}

// Admits commands in order until one has to wait.
static bool admit(struct drive *drive, uint64_t now_ns)
{
    bool moved = false;
    while (drive->n_pending) {
        struct pending *pending = &drive->pending[drive->pending_first];
        uint64_t result = 0;
        drive->msg.text[0] = 0;
        int status = run_command(drive, pending, now_ns, &result);
        if (status == WAIT) {
            if (!pending->waiting)
                pending->since_ns = now_ns;
            pending->waiting = true;
            break;
        }
        if (pending->waiting)
            drive->write_wait_ns += now_ns - pending->since_ns;
        drive->pending_first = (drive->pending_first + 1) % MAX_PENDING;
        drive->n_pending--;
        complete(drive, pending->owner, &pending->command, status, result,
                 status ? &drive->msg : NULL);
        moved = true;
    }
    return moved;
}

static void submit_flash(struct drive *drive, uint64_t now_ns)
{
    for (struct space *space = drive->spaces; space; space = space->next)
        frames_submit(space->frames, now_ns);
    // Short pauses, as between the layers of a token, are not for erasing.
    bool busy = drive->n_pending || drive->first_job || drive->syncing;
    if (busy)
        drive->busy_ns = now_ns;
    segments_pump(drive->segments, now_ns, !busy && now_ns - drive->busy_ns >= IDLE_NS);
}

// A READ runs only when somebody waits for its data, so that it cannot hold frames for ever.
static bool job_runnable(const struct job *job)
{
    return job->opcode == OP_ATTEND || job->dest;
}

static void finish_job(struct drive *drive, struct job *job)
{
    uint32_t q_heads = job->header.q_heads;
    uint64_t dim = job->space->config.head_dim;
    for (uint32_t i = 0; i < job->count; i++) {
        struct job_item *item = &job->items[i];
        if (item->status && !job->status)
            job->status = item->status;
        if (item->sequence)
            item->sequence->jobs--;
        item->sequence = NULL;
        if (job->opcode != OP_ATTEND)
            continue;
        ((uint32_t *)(job->result + job->layout.status))[i] = inst_status_to_nvme(item->status);
        uint64_t at = (uint64_t)i * q_heads;
        if (!item->status)
            continue; // its method has filled these in
        memset((float *)(job->result + job->layout.out) + at * dim, 0,
               q_heads * dim * sizeof(float));
        for (uint64_t h = at; h < at + q_heads; h++) {
            ((float *)(job->result + job->layout.lse))[h] = -INFINITY;
            ((float *)(job->result + job->layout.captured))[h] = 0;
        }
    }
    job->state = JOB_DONE;
    struct job **link = &drive->first_job;
    while (*link != job)
        link = &(*link)->next;
    *link = job->next;
    if (!job->next)
        drive->last_job = link;
}

static bool finish_jobs(struct drive *drive)
{
    bool moved = false;
    for (struct job *next, *job = drive->first_job; job; job = next) {
        next = job->next;
        if (!job_ended(job))
            continue;
        finish_job(drive, job);
        moved = true;
    }
    return moved;
}

// Frames go to jobs, the oldest first, then to what derived streams do in the background, then to
// reading ahead.
static bool fetch(struct drive *drive, uint64_t now_ns)
{
    bool moved = false;
    for (struct job *job = drive->first_job; job; job = job->next) {
        if (job_runnable(job))
            moved |= walk_start(job->space->walk, job);
    }
    for (struct space *space = drive->spaces; space; space = space->next) {
        moved |= space->stranded && space_retry(space);
        moved |= walk_fetch(space->walk);
        for (uint32_t i = 1; i < STREAM_MAX; i++) {
            if (space->streams[i].ops)
                moved |= space->streams[i].ops->work(space, drive->env.engine, now_ns);
        }
        if (drive->read_ahead && !walk_wants(space->walk))
            ahead_fetch(space);
    }
    return moved;
}

size_t drive_step(struct drive *drive, uint64_t now_ns, struct completion *out, size_t max)
{
    drive->runnable = false;
    take_back(drive, now_ns);
    bool moved = admit(drive, now_ns);
    moved |= fetch(drive, now_ns);
    submit_flash(drive, now_ns); // before computing: the device works meanwhile
    moved |= engine_take(drive->env.engine, now_ns);
    for (struct space *space = drive->spaces; space; space = space->next)
        moved |= walk_compute(space->walk, now_ns);
    moved |= finish_jobs(drive);
    for (int i = 0; i < MAX_TICKETS; i++) {
        if (drive->collects[i].used)
            serve_collect(drive, &drive->collects[i], now_ns);
    }
    drive->runnable |= moved;
    uint32_t capacity = sizeof drive->done / sizeof drive->done[0];
    size_t n = 0;
    for (; n < max && drive->n_done; n++) {
        out[n] = drive->done[drive->first_done];
        drive->first_done = (drive->first_done + 1) % capacity;
        drive->n_done--;
    }
    return n;
}

bool drive_runnable(const struct drive *drive)
{
    return drive->runnable || drive->n_done;
}
