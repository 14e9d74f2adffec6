// SPDX-License-Identifier: Apache-2.0
#include "tests/host/fake_drive.h"
#include "base/checked.h"
#include "base/le.h"
#include "drive/command.h"
#include "kernels/kernels.h"

#include <stdalign.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { QUEUE = 64, SEQUENCES = 64, TICKETS = 64 };

struct layer_kv {
    uint64_t length, room;
    uint16_t *kv; // [token][head]{K, V}[head_dim]
};

struct ticket {
    bool used;
    uint32_t id;
    size_t bytes;
    void *data;
    char text[COMPLETION_TEXT_BYTES]; // of the first item that failed
};

struct fake_drive {
    struct link link;
    struct space_config config;
    uint32_t epoch[SEQUENCES];
    struct layer_kv *layers[SEQUENCES]; // NULL: the sequence does not exist
    struct ticket tickets[TICKETS];
    struct completion queue[QUEUE];
    size_t queued;
    struct fake_faults faults;
    uint64_t seen;
    struct drive_stats stats;
    char text[COMPLETION_TEXT_BYTES]; // of the command at work
};

static int fail(struct fake_drive *d, int code, const char *text)
{
    snprintf(d->text, sizeof d->text, "%s", text);
    return code;
}

static size_t token_values(const struct fake_drive *d)
{
    return (size_t)2 * d->config.kv_heads * d->config.head_dim;
}

static void *xcalloc(size_t n, size_t size)
{
    void *p = aligned_alloc(64, (n * size + 63) / 64 * 64);
    if (!p)
        abort();
    memset(p, 0, (n * size + 63) / 64 * 64);
    return p;
}

static int find(struct fake_drive *d, const struct table_item *item, bool create,
                struct layer_kv **out)
{
    if (item->seq >= SEQUENCES)
        return fail(d, INST_ENORESOURCE, "too many sequences");
    if (!d->layers[item->seq]) {
        if (!create || item->pos)
            return fail(d, INST_ENOENT, "no such sequence");
        d->layers[item->seq] = xcalloc(d->config.layers, sizeof(struct layer_kv));
        d->epoch[item->seq] = item->epoch;
    }
    if (d->epoch[item->seq] != item->epoch)
        return fail(d, INST_ESEQUENCE, "stale epoch");
    *out = d->layers[item->seq];
    return 0;
}

// Room for one more token at the end of the layer.
static uint16_t *append(struct fake_drive *d, struct layer_kv *l)
{
    size_t n = token_values(d);
    if (l->length == l->room) {
        uint64_t room = l->room ? 2 * l->room : 64;
        uint16_t *kv = xcalloc(room * n, sizeof *kv);
        if (l->kv)
            memcpy(kv, l->kv, l->length * n * sizeof *kv);
        free(l->kv);
        l->kv = kv;
        l->room = room;
    }
    return l->kv + l->length++ * n;
}

static int do_write(struct fake_drive *d, const struct command *c, const void *table,
                    const unsigned char *data)
{
    const uint16_t *slab = (const uint16_t *)data;
    size_t dim = d->config.head_dim;
    for (uint32_t i = 0; i < c->count; i++) {
        struct table_item item;
        struct layer_kv *l;
        table_get_item(&item, table, i);
        int err = find(d, &item, true, &l);
        if (err)
            return err;
        l += c->layer;
        if (item.pos != l->length)
            return fail(d, INST_ESEQUENCE, "WRITE is not at the end");
        for (uint64_t t = 0; t < item.n_tokens; t++) {
            uint16_t *to = append(d, l);
            for (size_t h = 0; h < d->config.kv_heads; h++)
                for (size_t kind = 0; kind < 2; kind++)
                    memcpy(to + (2 * h + kind) * dim,
                           slab + ((2 * h + kind) * item.n_tokens + t) * dim, dim * 2);
        }
        slab += (item.n_tokens * token_values(d) + 31) / 32 * 32;
        d->stats.stream_bytes += item.n_tokens * token_values(d) * 2;
    }
    return 0;
}

static struct ticket *new_ticket(struct fake_drive *d, uint32_t id, size_t bytes)
{
    for (size_t i = 0; i < TICKETS; i++)
        if (!d->tickets[i].used) {
            d->tickets[i] =
                (struct ticket){.used = true, .id = id, .bytes = bytes, .data = xcalloc(1, bytes)};
            return &d->tickets[i];
        }
    return NULL;
}

static int do_read(struct fake_drive *d, const struct command *c, const void *table)
{
    struct table_item item;
    struct layer_kv *l;
    table_get_item(&item, table, 0);
    int err = find(d, &item, false, &l);
    if (err)
        return err;
    l += c->layer;
    if (c->count != 1 || item.pos + item.n_tokens > l->length)
        return fail(d, INST_EINVAL, "READ beyond the end");
    size_t dim = d->config.head_dim;
    struct ticket *ticket =
        new_ticket(d, c->ticket, (item.n_tokens * token_values(d) * 2 + 63) / 64 * 64);
    if (!ticket)
        return fail(d, INST_ENORESOURCE, "no ticket");
    uint16_t *slab = ticket->data;
    for (uint64_t t = 0; t < item.n_tokens; t++)
        for (size_t i = 0; i < 2 * (size_t)d->config.kv_heads; i++)
            memcpy(slab + (i * item.n_tokens + t) * dim,
                   l->kv + (item.pos + t) * token_values(d) + i * dim, dim * 2);
    d->stats.flash_read_bytes += ticket->bytes;
    return 0;
}

static void attend_head(struct fake_drive *d, const struct layer_kv *l, size_t kv_head,
                        const float *q, const struct table_header *header, uint64_t window,
                        float *out, float *lse)
{
    const struct kernels *k = &kernels_reference;
    size_t dim = d->config.head_dim, stride = token_values(d);
    float *partial = xcalloc(partial_stride(dim), sizeof(float));
    void *scratch = xcalloc(1, KERNEL_SCRATCH_BYTES);
    uint16_t *rows = xcalloc(2 * ATTENTION_TILE * dim, sizeof *rows);
    partial_clear((struct partial *)partial);
    for (uint64_t t = 0; t < l->length; t += ATTENTION_TILE) {
        uint32_t first = window > t ? (uint32_t)min_u64(window - t, ATTENTION_TILE) : 0;
        uint32_t tokens = (uint32_t)min_u64(l->length - t, ATTENTION_TILE);
        for (uint32_t i = 0; i < tokens; i++) {
            const uint16_t *token = l->kv + (t + i) * stride + 2 * kv_head * dim;
            memcpy(rows + i * dim, token, dim * sizeof *rows);
            memcpy(rows + (ATTENTION_TILE + i) * dim, token + dim, dim * sizeof *rows);
        }
        struct attention_tile tile = {
            .k = {rows},
            .v = {rows + ATTENTION_TILE * dim},
            .head_dim = (uint32_t)dim,
            .scale = header->scale,
            .softcap = header->softcap,
            .first = &first,
            .tokens = tokens,
        };
        k->attention_tile(&tile, q, dim, 1, NULL, partial, 1, scratch);
    }
    k->partial_output((struct partial *)partial, out, dim);
    *lse = partial[0] + logf(partial[1]);
    free(partial);
    free(rows);
    free(scratch);
}

static int attend_item(struct fake_drive *d, const struct command *c, const void *table,
                       const struct table_header *header, const struct attend_layout *layout,
                       const unsigned char *data, unsigned char *out, uint32_t i)
{
    size_t dim = d->config.head_dim, kv_heads = d->config.kv_heads;
    struct table_item item;
    struct layer_kv *l;
    table_get_item(&item, table, i);
    int err = find(d, &item, item.n_tokens == 1, &l);
    if (err)
        return err;
    l += c->layer;
    bool again = item.n_tokens && item.pos + 1 == l->length;
    if (item.pos != l->length && !again)
        return fail(d, INST_ESEQUENCE, "ATTEND is not at the end");
    if (item.n_tokens && !again) {
        uint16_t *to = append(d, l);
        for (size_t h = 0; h < kv_heads; h++) {
            memcpy(to + 2 * h * dim, data + layout->k + (i * kv_heads + h) * dim * 2, dim * 2);
            memcpy(to + (2 * h + 1) * dim, data + layout->v + (i * kv_heads + h) * dim * 2,
                   dim * 2);
        }
    }
    for (size_t h = 0; h < header->q_heads; h++) {
        size_t at = i * header->q_heads + h;
        attend_head(d, l, h / (header->q_heads / kv_heads),
                    (const float *)(data + layout->q) + at * dim, header, item.window,
                    (float *)(out + layout->out) + at * dim, (float *)(out + layout->lse) + at);
    }
    d->stats.attended_tokens += l->length - item.window;
    return 0;
}

static int do_attend(struct fake_drive *d, const struct command *c, const void *table,
                     const unsigned char *data, int fail_item)
{
    struct table_header header;
    struct attend_layout layout;
    int err = table_get_header(&header, table, command_table_bytes(c), c->count);
    if (err)
        return err;
    if (!attend_layout(&layout, c->count, header.q_heads, d->config.kv_heads, d->config.head_dim,
                       true) ||
        layout.in_bytes != c->length)
        return fail(d, INST_EINVAL, "ATTEND of a wrong length");
    struct ticket *ticket = new_ticket(d, c->ticket, layout.out_bytes);
    if (!ticket)
        return fail(d, INST_ENORESOURCE, "no ticket");
    for (uint32_t i = 0; i < c->count; i++) {
        unsigned char *out = ticket->data;
        int code = (int)i == fail_item ? fail(d, d->faults.code, "injected")
                                       : attend_item(d, c, table, &header, &layout, data, out, i);
        le_put32(out + layout.status + 4 * i, inst_status_to_nvme(code));
        if (code && !*ticket->text)
            memcpy(ticket->text, d->text, sizeof d->text);
        d->text[0] = 0;
    }
    return 0;
}

static int do_collect(struct fake_drive *d, const struct command *c, void *data)
{
    for (size_t i = 0; i < TICKETS; i++) {
        struct ticket *t = &d->tickets[i];
        if (!t->used || t->id != c->ticket)
            continue;
        int err = t->bytes == c->length ? 0 : fail(d, INST_EINVAL, "COLLECT of a wrong length");
        if (!err) {
            memcpy(data, t->data, t->bytes);
            memcpy(d->text, t->text, sizeof d->text);
        }
        free(t->data);
        t->used = false;
        return err;
    }
    return fail(d, INST_ENOENT, "no such ticket");
}

static void drop(struct fake_drive *d, uint32_t seq)
{
    for (uint32_t l = 0; d->layers[seq] && l < d->config.layers; l++)
        free(d->layers[seq][l].kv);
    free(d->layers[seq]);
    d->layers[seq] = NULL;
}

static int do_reclaim(struct fake_drive *d, const void *table)
{
    struct table_item item;
    struct layer_kv *l;
    table_get_item(&item, table, 0);
    int err = find(d, &item, false, &l);
    if (err)
        return err;
    if (item.n_tokens != UINT64_MAX || item.layer_first || item.layer_count != d->config.layers)
        return fail(d, INST_ENOTSUP, "the fake drive reclaims tails of all layers only");
    for (uint32_t i = 0; i < d->config.layers; i++)
        if (l[i].length > item.pos)
            l[i].length = item.pos;
    if (!item.pos)
        drop(d, item.seq);
    return 0;
}

static int do_fork(struct fake_drive *d, const void *table)
{
    struct table_item item;
    struct layer_kv *from;
    table_get_item(&item, table, 0);
    struct table_item parent = {.seq = item.parent, .epoch = item.parent_epoch, .pos = 1};
    int err = find(d, &parent, false, &from);
    if (err)
        return err;
    if (item.seq >= SEQUENCES || d->layers[item.seq])
        return fail(d, INST_EEXIST, "FORK of a sequence that exists");
    for (uint32_t i = 0; i < d->config.layers; i++)
        if (from[i].length < item.pos)
            return fail(d, INST_ESEQUENCE, "FORK beyond the parent");
    struct layer_kv *to = d->layers[item.seq] = xcalloc(d->config.layers, sizeof *to);
    d->epoch[item.seq] = item.epoch;
    size_t n = token_values(d);
    for (uint32_t i = 0; i < d->config.layers; i++)
        for (uint64_t t = 0; t < item.pos; t++)
            memcpy(append(d, &to[i]), from[i].kv + t * n, n * sizeof *from->kv);
    return 0;
}

static int run(struct fake_drive *d, const struct command *c, const void *table, void *data,
               uint64_t *result)
{
    int fail_item = -1;
    if (d->faults.fail_command && d->faults.opcode == c->opcode) {
        uint64_t n = ++d->seen, first = d->faults.fail_command;
        if (n >= first && n < first + (d->faults.fail_count ? d->faults.fail_count : 1)) {
            if (d->faults.fail_item < 0)
                return fail(d, d->faults.code, "injected");
            fail_item = d->faults.fail_item;
        }
    }
    switch (c->opcode) {
    case OP_IDENTIFY:
        identity_encode(data, &(struct drive_identity){.max_items = 8, .max_tickets = TICKETS});
        return 0;
    case OP_STAT:
        stats_encode(data, &d->stats);
        return 0;
    case OP_CONFIG:
        *result = 64;
        return space_config_decode(&d->config, table, CONFIG_BYTES);
    case OP_WRITE:
        return do_write(d, c, table, data);
    case OP_READ:
        return do_read(d, c, table);
    case OP_ATTEND:
        return do_attend(d, c, table, data, fail_item);
    case OP_COLLECT:
        return do_collect(d, c, data);
    case OP_RECLAIM:
        return do_reclaim(d, table);
    case OP_FORK:
        return do_fork(d, table);
    default:
        return fail(d, INST_ENOTSUP, "not a command of the fake drive");
    }
}

static int fake_submit(struct link *link, const struct command *command, const void *table,
                       void *data)
{
    struct fake_drive *d = (struct fake_drive *)link;
    if (d->queued == QUEUE)
        return INST_ENORESOURCE;
    struct completion *done = &d->queue[d->queued++];
    *done = (struct completion){.cid = command->cid};
    d->text[0] = 0;
    done->status = run(d, command, table, data, &done->result);
    memcpy(done->text, d->text, sizeof d->text);
    return 0;
}

static size_t fake_poll(struct link *link, struct completion *out, size_t max, uint64_t max_wait_ns)
{
    (void)max_wait_ns;
    struct fake_drive *d = (struct fake_drive *)link;
    if (!d->queued || !max)
        return 0;
    size_t n = min_u64(d->queued, max);
    memcpy(out, d->queue, n * sizeof *out);
    d->queued -= n;
    memmove(d->queue, d->queue + n, d->queued * sizeof *d->queue);
    return n;
}

static void fake_abort(struct link *link)
{
    struct fake_drive *d = (struct fake_drive *)link;
    d->queued = 0;
    for (size_t i = 0; i < TICKETS; i++) {
        if (d->tickets[i].used)
            free(d->tickets[i].data);
        d->tickets[i].used = false;
    }
}

static void fake_close(struct link *link)
{
    struct fake_drive *d = (struct fake_drive *)link;
    fake_abort(link);
    for (uint32_t i = 0; i < SEQUENCES; i++)
        drop(d, i);
    free(d);
}

static const struct link_ops fake_ops = {
    .submit = fake_submit,
    .poll = fake_poll,
    .abort = fake_abort,
    .close = fake_close,
};

struct link *fake_drive_open(void)
{
    struct fake_drive *d = xcalloc(1, sizeof *d);
    d->link.ops = &fake_ops;
    return &d->link;
}

void fake_drive_faults(struct link *link, const struct fake_faults *faults)
{
    struct fake_drive *d = (struct fake_drive *)link;
    d->faults = *faults;
    d->seen = 0;
}

uint64_t fake_drive_length(struct link *link, uint32_t seq, uint32_t layer)
{
    struct fake_drive *d = (struct fake_drive *)link;
    return seq < SEQUENCES && d->layers[seq] ? d->layers[seq][layer].length : 0;
}
