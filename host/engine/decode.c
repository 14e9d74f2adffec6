// SPDX-License-Identifier: Apache-2.0
// Decode rows of a step attend on the drive: in every layer one ATTEND appends each session's k, v
// and attends with its q, and one COLLECT brings the outputs. KV never comes to the host. Items are
// the rows whose sessions have not failed.
#include "host/engine/step.h"
#include "base/le.h"

#include <string.h>

// The buffers begin with the first set's part; plan.c has room for both.
void decode_divide(struct step *t)
{
    const struct model_config *c = &t->e->config;
    struct attend_layout layout = {0};
    unsigned char *table = engine_bytes(t->e, BUFFER_attend_table);
    unsigned char *in = engine_bytes(t->e, BUFFER_attend_in);
    unsigned char *out = engine_bytes(t->e, BUFFER_attend_out);
    for (size_t i = 0, first = 0; i < t->n_sets; i++) {
        size_t n = (t->n_decode - first) / (t->n_sets - i);
        t->set[i] = (struct step_set){
            .first = first, .end = first + n, .table = table, .in = in, .out = out};
        first += n;
        // What does not fit in 64 bits decode_place refuses.
        attend_layout(&layout, (uint32_t)n, c->heads, c->kv_heads, c->head_dim, true);
        table += plan_attend_align(table_bytes((uint32_t)n));
        in += plan_attend_align(layout.in_bytes);
        out += plan_attend_align(layout.out_bytes);
    }
}

static struct step_set *set_of(struct step *t, const struct step_segment *seg)
{
    struct step_set *set = t->set;
    while ((size_t)(seg - t->seg) >= set->end)
        set++;
    return set;
}

bool decode_place(struct step *t, struct step_set *set)
{
    const struct model_config *c = &t->e->config;
    set->items = 0;
    for (size_t i = set->first; i < set->end; i++)
        if (!t->seg[i].status)
            t->seg[i].item = set->items++;
    return !set->items || attend_layout(&set->layout, (uint32_t)set->items, c->heads, c->kv_heads,
                                        c->head_dim, true);
}

void decode_put_row(struct step *t, struct step_segment *seg, const float *q, const float *k,
                    const float *v)
{
    const struct model_config *c = &t->e->config;
    size_t q_dim = (size_t)c->heads * c->head_dim, kv_dim = (size_t)c->kv_heads * c->head_dim;
    const struct step_set *set = set_of(t, seg);
    uint16_t *k16 = (uint16_t *)(set->in + set->layout.k) + seg->item * kv_dim;
    uint16_t *v16 = (uint16_t *)(set->in + set->layout.v) + seg->item * kv_dim;
    memcpy((float *)(set->in + set->layout.q) + seg->item * q_dim, q, q_dim * sizeof *q);
    t->e->kernels->f32_to_f16(k16, k, kv_dim);
    t->e->kernels->f32_to_f16(v16, v, kv_dim);
    numbers_check(&seg->fault, 0, NUMBER_Q, q, q_dim);
    numbers_check_f16(&seg->fault, 0, NUMBER_K, k16, k, kv_dim);
    numbers_check_f16(&seg->fault, 0, NUMBER_V, v16, v, kv_dim);
}

static void put_table(struct step *t, const struct step_set *set)
{
    struct table_header header = t->e->attend;
    header.audit = t->audit;
    if (model_layer_window(&t->e->config, set->layer))
        header.method = METHOD_DENSE; // a window is short, and its mean value is not kept
    table_put_header(set->table, &header);
    for (size_t i = set->first; i < set->end; i++) {
        const struct step_segment *seg = &t->seg[i];
        if (seg->status)
            continue;
        table_put_item(
            set->table, (uint32_t)seg->item,
            &(struct table_item){.seq = seg->s->seq->slot,
                                 .epoch = seg->s->seq->epoch,
                                 .pos = seg->pos0,
                                 .n_tokens = 1,
                                 .window = layer_window_start(t->e, set->layer, seg->pos0)});
    }
}

// Status of a row's item, once ATTEND and COLLECT have succeeded.
static int item_status(const struct step_set *set, const struct step_segment *seg)
{
    const unsigned char *at = set->out + set->layout.status + 4 * seg->item;
    return inst_status_from_nvme((uint16_t)le_get32(at));
}

static bool rows_lack_room(const struct step *t, const struct step_set *set)
{
    for (size_t i = set->first; i < set->end; i++)
        if (!t->seg[i].status && item_status(set, &t->seg[i]) == INST_ENORESOURCE)
            return true;
    return false;
}

// ATTEND, accepted, and its COLLECT, on its way. A refused ATTEND leaves no ticket to wait for.
static int send(struct step *t, struct step_set *set, struct inst_msg *msg)
{
    struct port *port = &t->e->port;
    struct command attend = {.opcode = OP_ATTEND,
                             .layer = set->layer,
                             .count = (uint32_t)set->items,
                             .ticket = port_ticket(port),
                             .length = (uint32_t)set->layout.in_bytes};
    struct command collect = {.opcode = OP_COLLECT,
                              .layer = set->layer,
                              .ticket = attend.ticket,
                              .length = (uint32_t)set->layout.out_bytes};
    int err = port_call(port, attend, set->table, set->in, NULL, msg);
    if (err)
        return err;
    set->collect = port_submit(port, collect, NULL, set->out, msg);
    return set->collect < 0 ? set->collect : 0;
}

static void fail_all(struct step *t, const struct step_set *set, int code, const char *text)
{
    for (size_t i = set->first; i < set->end; i++)
        step_fail(t, &t->seg[i], code, text);
}

void decode_begin(struct step *t, struct step_set *set)
{
    if (!set->items)
        return;
    double start = clock_seconds();
    struct inst_msg msg = {0};
    put_table(t, set);
    int err = send(t, set, &msg);
    set->attending = !err;
    if (err)
        fail_all(t, set, err, msg.text);
    t->e->stats.attention_seconds += clock_seconds() - start;
}

static void fail_items(struct step *t, const struct step_set *set, struct inst_msg *msg)
{
    bool failed = false;
    for (size_t i = set->first; i < set->end; i++) {
        struct step_segment *seg = &t->seg[i];
        int code = seg->status ? 0 : item_status(set, seg);
        if (!code)
            continue;
        // The text that came with it is about the first item that failed.
        if (failed || !msg->text[0]) {
            msg->text[0] = 0;
            inst_fail(msg, code, "attention in layer %u: %s", set->layer, inst_status_text(code));
        }
        step_fail(t, seg, code, msg->text);
        failed = true;
    }
}

void decode_end(struct step *t, struct step_set *set)
{
    if (!set->attending)
        return;
    double start = clock_seconds();
    struct port *port = &t->e->port;
    struct port_patience patience = {0};
    struct inst_msg msg = {0};
    int err = port_wait(port, set->collect, NULL, &msg);
    // Where the drive has no room for some rows now, all are sent again: what was appended is then
    // only looked at.
    while (!err && rows_lack_room(t, set) && port_patient(port, &patience)) {
        msg.text[0] = 0;
        err = send(t, set, &msg);
        if (!err)
            err = port_wait(port, set->collect, NULL, &msg);
    }
    set->attending = false;
    if (err)
        fail_all(t, set, err, msg.text);
    else
        fail_items(t, set, &msg);
    const float *out = (const float *)(set->out + set->layout.out);
    size_t q_dim = (size_t)t->e->config.heads * t->e->config.head_dim;
    for (size_t i = set->first; i < set->end; i++)
        if (!t->seg[i].status)
            memcpy(step_output(t, t->seg[i].row), out + t->seg[i].item * q_dim,
                   q_dim * sizeof *out);
    t->e->stats.attention_seconds += clock_seconds() - start;
}
