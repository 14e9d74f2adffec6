// SPDX-License-Identifier: Apache-2.0
// READ and ATTEND: jobs, from their admission until they have ended.
#include "drive/control/internal.h"
#include "base/checked.h"
#include "drive/attend/ahead.h"

#include <math.h>
#include <string.h>

static void enqueue_job(struct drive *drive, struct job *job)
{
    job->state = JOB_ADMITTED;
    job->since_ns = drive->now_ns;
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

static int check_read(struct drive *drive, const struct request *request, struct space *space,
                      const struct table_header *header)
{
    uint32_t layer = request->command.layer;
    uint64_t end = 0;
    for (uint32_t i = 0; i < request->command.count; i++) {
        struct table_item item;
        struct sequence *sequence;
        table_get_item(&item, request->table, i);
        if (!item.n_tokens || !item_slab(space, header, &item, &end))
            return inst_fail(&drive->msg, INST_EINVAL, "READ: item %u of %llu tokens", i,
                             (unsigned long long)item.n_tokens);
        int status = space_lookup(space, &item, &sequence, &drive->msg);
        if (status)
            return status;
        uint64_t have = sequence ? sequence->layers[layer].tokens : 0;
        if (item.pos + item.n_tokens > have)
            return inst_fail(&drive->msg, INST_ESEQUENCE,
                             "READ: sequence %u has %llu tokens in layer %u, not %llu", item.seq,
                             (unsigned long long)have, layer,
                             (unsigned long long)(item.pos + item.n_tokens));
    }
    return 0;
}

int do_read(struct drive *drive, struct request *request)
{
    struct space *space;
    struct table_header header;
    struct job *job;
    int status = check_table(drive, request, &space, &header);
    if (!status)
        status = ticket_free(drive, request);
    if (!status)
        status = check_read(drive, request, space, &header);
    if (!status)
        status = ticket_take(drive, request, space, &header, &(struct job_size){0}, &job);
    if (status)
        return status;
    job->method = &method_copy;
    for (uint32_t i = 0; i < job->count; i++) {
        struct table_item item;
        table_get_item(&item, request->table, i);
        job->items[i] = (struct job_item){
            .sequence = space_find(space, item.seq),
            .first = item.pos,
            .end = item.pos + item.n_tokens,
            .offset = job->layout.out_bytes,
        };
        item_slab(space, &header, &item, &job->layout.out_bytes); // was checked
    }
    enqueue_job(drive, job);
    return 0;
}

static int check_attend(struct drive *drive, struct request *request, struct space *space,
                        struct table_header *header, struct attend_layout *layout)
{
    const struct command *c = &request->command;
    bool append = false;
    for (uint32_t i = 0; i < c->count; i++) {
        struct table_item item;
        uint64_t end = 0;
        table_get_item(&item, request->table, i);
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
        table_get_item(&item, request->table, i);
        int status = method->check(state, header, &item, &drive->msg);
        if (status)
            return status;
    }
    return 0;
}

static int begin_attend(struct drive *drive, struct request *request, struct space *space,
                        struct table_header *header)
{
    struct job *job;
    struct attend_layout layout;
    int status = check_attend(drive, request, space, header, &layout);
    if (status)
        return status;
    uint64_t heads = (uint64_t)request->command.count * header->q_heads;
    uint64_t dim = space->config.head_dim;
    const struct job_size size = {
        .q_floats = heads * dim,
        .partial_floats = heads * partial_stride(dim),
        .result_bytes = layout.out_bytes,
    };
    status = ticket_take(drive, request, space, header, &size, &job);
    if (status)
        return status;
    job->layout = layout;
    job->method = attend_method(&drive->env, header->method);
    memcpy(job->q, request->data + layout.q, heads * dim * sizeof(float));
    for (uint64_t i = 0; i < heads; i++)
        partial_clear(partial_at(job->partials, i, dim));
    job->state = JOB_ADMITTED; // holds the ticket while tokens are appended
    request->job = job;
    request->serial = space->serial;
    request->begun = true;
    return 0;
}

// Appends the item's token where asked for, and says which tokens it attends to.
static int attend_item(struct drive *drive, struct request *request, uint32_t index)
{
    struct job *job = request->job;
    struct space *space = job->space;
    struct table_item item;
    struct sequence *sequence;
    table_get_item(&item, request->table, index);
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
            .k = (const uint16_t *)(request->data + job->layout.k) + row,
            .v = (const uint16_t *)(request->data + job->layout.v) + row,
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

int do_attend(struct drive *drive, struct request *request)
{
    if (!request->job) {
        struct space *space;
        struct table_header header;
        int status = check_table(drive, request, &space, &header);
        if (!status)
            status = begin_attend(drive, request, space, &header);
        if (status)
            return status;
    }
    struct job *job = request->job;
    for (; request->item < job->count; request->item++) {
        int status = attend_item(drive, request, request->item);
        while (status == INST_ENOMEM && make_room(drive, 1)) {
            drive->msg.text[0] = 0;
            status = attend_item(drive, request, request->item);
        }
        status = no_room(drive, status);
        if (status == WAIT)
            return WAIT;
        job->items[request->item].status = status; // others are unharmed
        if (status && !job->error.text[0])
            job->error = drive->msg;
        drive->msg.text[0] = 0;
    }
    enqueue_job(drive, job);
    // Who audits does not do so again next, and what the method reads is to be told apart from it.
    ahead_expect(job->space, job, job->method->use == USE_SCAN && !job->header.audit);
    return 0;
}

// A READ runs only when somebody waits for its data, so that it cannot hold frames for ever.
bool job_runnable(const struct job *job)
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
    struct job **link = &drive->first_job;
    while (*link != job)
        link = &(*link)->next;
    *link = job->next;
    if (!job->next)
        drive->last_job = link;
    ticket_done(drive, job);
}

bool finish_jobs(struct drive *drive)
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
