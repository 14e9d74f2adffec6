// SPDX-License-Identifier: Apache-2.0
// Decode rows of a step attend on the drive: in every layer one ATTEND appends each session's k, v
// and attends with its q, and one COLLECT brings the outputs. KV never comes to the host. Items are
// the rows whose sessions have not failed.
#include "host/engine/step.h"
#include "base/le.h"

#include <string.h>

static unsigned char *data_in(const struct step *t)
{
    return engine_bytes(t->e, BUFFER_attend_in);
}

bool decode_place(struct step *t)
{
    const struct model_config *c = &t->e->config;
    size_t item = 0;
    for (size_t i = 0; i < t->n_decode; i++)
        if (!t->seg[i].status)
            t->seg[i].item = item++;
    return !item ||
           attend_layout(&t->layout, (uint32_t)item, c->heads, c->kv_heads, c->head_dim, true);
}

void decode_put_row(struct step *t, struct step_segment *seg, const float *q, const float *k,
                    const float *v)
{
    const struct model_config *c = &t->e->config;
    size_t q_dim = (size_t)c->heads * c->head_dim, kv_dim = (size_t)c->kv_heads * c->head_dim;
    uint16_t *k16 = (uint16_t *)(data_in(t) + t->layout.k) + seg->item * kv_dim;
    uint16_t *v16 = (uint16_t *)(data_in(t) + t->layout.v) + seg->item * kv_dim;
    memcpy((float *)(data_in(t) + t->layout.q) + seg->item * q_dim, q, q_dim * sizeof *q);
    t->e->kernels->f32_to_f16(k16, k, kv_dim);
    t->e->kernels->f32_to_f16(v16, v, kv_dim);
    numbers_check(&seg->fault, 0, NUMBER_Q, q, q_dim);
    numbers_check_f16(&seg->fault, 0, NUMBER_K, k16, k, kv_dim);
    numbers_check_f16(&seg->fault, 0, NUMBER_V, v16, v, kv_dim);
}

static void put_table(struct step *t, unsigned char *table)
{
    struct table_header header = t->e->attend;
    header.audit = t->audit;
    if (model_layer_window(&t->e->config, t->layer))
        header.method = METHOD_DENSE; // a window is short, and its mean value is not kept
    table_put_header(table, &header);
    for (size_t i = 0; i < t->n_decode; i++) {
        const struct step_segment *seg = &t->seg[i];
        if (seg->status)
            continue;
        table_put_item(
            table, (uint32_t)seg->item,
            &(struct table_item){.seq = seg->s->seq->slot,
                                 .epoch = seg->s->seq->epoch,
                                 .pos = seg->pos0,
                                 .n_tokens = 1,
                                 .window = layer_window_start(t->e, t->layer, seg->pos0)});
    }
}

// Status of a row's item, once ATTEND and COLLECT have succeeded.
static int item_status(const struct step *t, const struct step_segment *seg)
{
    const unsigned char *out = engine_bytes(t->e, BUFFER_attend_out);
    return inst_status_from_nvme((uint16_t)le_get32(out + t->layout.status + 4 * seg->item));
}

static bool rows_lack_room(const struct step *t)
{
    for (size_t i = 0; i < t->n_decode; i++)
        if (!t->seg[i].status && item_status(t, &t->seg[i]) == INST_ENORESOURCE)
            return true;
    return false;
}

// ATTEND, accepted, and its COLLECT, on its way. A refused ATTEND leaves no ticket to wait for.
static int send(struct step *t, struct inst_msg *msg)
{
    struct port *port = &t->e->port;
    struct command attend = {.opcode = OP_ATTEND,
                             .layer = t->layer,
                             .count = (uint32_t)t->alive_decode,
                             .ticket = port_ticket(port),
                             .length = (uint32_t)t->layout.in_bytes};
    struct command collect = {.opcode = OP_COLLECT,
                              .layer = t->layer,
                              .ticket = attend.ticket,
                              .length = (uint32_t)t->layout.out_bytes};
    int err =
        port_call(port, attend, engine_bytes(t->e, BUFFER_attend_table), data_in(t), NULL, msg);
    if (err)
        return err;
    t->collect = port_submit(port, collect, NULL, engine_bytes(t->e, BUFFER_attend_out), msg);
    return t->collect < 0 ? t->collect : 0;
}

static void fail_all(struct step *t, int code, const char *text)
{
    for (size_t i = 0; i < t->n_decode; i++)
        step_fail(t, &t->seg[i], code, text);
}

void decode_begin(struct step *t)
{
    if (!t->alive_decode)
        return;
    double start = engine_seconds();
    struct inst_msg msg = {0};
    put_table(t, engine_bytes(t->e, BUFFER_attend_table));
    int err = send(t, &msg);
    t->attending = !err;
    if (err)
        fail_all(t, err, msg.text);
    t->e->stats.attention_seconds += engine_seconds() - start;
}

static void fail_items(struct step *t, struct inst_msg *msg)
{
    bool failed = false;
    for (size_t i = 0; i < t->n_decode; i++) {
        struct step_segment *seg = &t->seg[i];
        int code = seg->status ? 0 : item_status(t, seg);
        if (!code)
            continue;
        // The text that came with it is about the first item that failed.
        if (failed || !msg->text[0]) {
            msg->text[0] = 0;
            inst_fail(msg, code, "attention in layer %u: %s", t->layer, inst_status_text(code));
        }
        step_fail(t, seg, code, msg->text);
        failed = true;
    }
}

void decode_end(struct step *t)
{
    if (!t->attending)
        return;
    double start = engine_seconds();
    struct port *port = &t->e->port;
    struct port_patience patience = {0};
    struct inst_msg msg = {0};
    int err = port_wait(port, t->collect, NULL, &msg);
    // Where the drive has no room for some rows now, all are sent again: what was appended is then
    // only looked at.
    while (!err && rows_lack_room(t) && port_patient(port, &patience)) {
        msg.text[0] = 0;
        err = send(t, &msg);
        if (!err)
            err = port_wait(port, t->collect, NULL, &msg);
    }
    t->attending = false;
    if (err)
        fail_all(t, err, msg.text);
    else
        fail_items(t, &msg);
    const float *out = (const float *)(engine_bytes(t->e, BUFFER_attend_out) + t->layout.out);
    size_t q_dim = (size_t)t->e->config.heads * t->e->config.head_dim;
    for (size_t i = 0; i < t->n_decode; i++)
        if (!t->seg[i].status)
            memcpy(step_output(t, t->seg[i].row), out + t->seg[i].item * q_dim,
                   q_dim * sizeof *out);
    t->e->stats.attention_seconds += engine_seconds() - start;
}
