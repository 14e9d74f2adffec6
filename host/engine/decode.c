// SPDX-License-Identifier: Apache-2.0
// Decode rows of a step attend on the drive: in every layer one ATTEND appends each session's k, v
// and attends with its q, and one COLLECT brings the outputs. KV never comes to the host. Items are
// the rows whose sessions have not failed; on the wire they follow each other, so both ways they
// are moved where rows have failed.
#include "host/engine/step.h"
#include "base/le.h"

#include <string.h>

// The buffers begin with the first set's part; plan.c has room for both.
void decode_divide(struct step *t)
{
    const struct model_config *c = &t->e->config;
    struct attend_layout layout = {0};
    uint64_t table = 0, in = 0, out = 0;
    for (size_t i = 0, first = 0; i < t->n_sets; i++) {
        size_t n = (t->n_decode - first) / (t->n_sets - i);
        t->set[i] = (struct step_set){
            .first = first, .end = first + n, .table = table, .in = in, .out = out};
        first += n;
        // What does not fit in 64 bits decode_wire refuses.
        attend_layout(&layout, (uint32_t)n, c->heads, c->kv_heads, c->head_dim, true);
        table += plan_attend_align(table_bytes((uint32_t)n));
        in += plan_attend_align(layout.in_bytes);
        out += plan_attend_align(layout.out_bytes);
    }
}

static unsigned char *data_in(const struct step *t, const struct step_set *set)
{
    return engine_bytes(t->e, BUFFER_attend_in) + set->in;
}

static unsigned char *data_out(const struct step *t, const struct step_set *set)
{
    return engine_bytes(t->e, BUFFER_attend_out) + set->out;
}

bool decode_wire(struct step *t, struct step_set *set, struct compute_wire *wire)
{
    const struct model_config *c = &t->e->config;
    uint32_t n = (uint32_t)(set->end - set->first);
    if (!attend_layout(&set->all, n, c->heads, c->kv_heads, c->head_dim, true))
        return false;
    *wire = (struct compute_wire){
        .first = (uint32_t)set->first,
        .n = n,
        .q = engine_slice(t->e, BUFFER_attend_in, set->in + set->all.q),
        .k = engine_slice(t->e, BUFFER_attend_in, set->in + set->all.k),
        .v = engine_slice(t->e, BUFFER_attend_in, set->in + set->all.v),
        .q_row = (uint64_t)c->heads * c->head_dim,
        .kv_row = (uint64_t)c->kv_heads * c->head_dim,
        .kv_head = c->head_dim,
    };
    return true;
}

struct compute_slice decode_outputs(const struct step *t, const struct step_set *set)
{
    return engine_slice(t->e, BUFFER_attend_out, set->out + set->all.out);
}

// Items follow each other on the wire: rows that failed leave no gap. Ascending, as each part of a
// smaller command lies before or where it was.
static void close_up(struct step *t, struct step_set *set)
{
    const struct model_config *c = &t->e->config;
    size_t kv_bytes = 2 * (size_t)c->kv_heads * c->head_dim;
    unsigned char *in = data_in(t, set);
    set->items = 0;
    for (size_t i = set->first; i < set->end; i++)
        if (!t->seg[i].status)
            t->seg[i].item = set->items++;
    attend_layout(&set->layout, (uint32_t)set->items, c->heads, c->kv_heads, c->head_dim, true);
    const struct {
        uint64_t from, to;
        size_t bytes;
    } part[] = {{set->all.q, set->layout.q, sizeof(float) * c->heads * c->head_dim},
                {set->all.k, set->layout.k, kv_bytes},
                {set->all.v, set->layout.v, kv_bytes}};
    if (set->items == set->end - set->first)
        return;
    for (size_t p = 0; p < sizeof part / sizeof *part; p++)
        for (size_t i = set->first; i < set->end; i++)
            if (!t->seg[i].status)
                memmove(in + part[p].to + t->seg[i].item * part[p].bytes,
                        in + part[p].from + (i - set->first) * part[p].bytes, part[p].bytes);
}

// A window is short, and its mean value is not kept.
static bool is_dense(const struct step *t, const struct step_set *set)
{
    return t->dense || t->e->attend.method == METHOD_DENSE ||
           model_layer_window(&t->e->config, set->layer);
}

static void put_table(struct step *t, const struct step_set *set)
{
    struct table_header header = t->e->attend;
    unsigned char *table = engine_bytes(t->e, BUFFER_attend_table) + set->table;
    header.audit = t->audit || t->dense; // of a dense step: what it reads says nothing of the next
    if (is_dense(t, set))
        header.method = METHOD_DENSE;
    table_put_header(table, &header);
    for (size_t i = set->first; i < set->end; i++) {
        const struct step_segment *seg = &t->seg[i];
        if (seg->status)
            continue;
        table_put_item(table, (uint32_t)seg->item,
                       &(struct table_item){
                           .seq = seg->s->seq->slot,
                           .epoch = seg->s->seq->epoch,
                           .pos = seg->pos0,
                           .n_tokens = 1,
                           .window = compute_window_start(&t->e->config, set->layer, seg->pos0)});
    }
}

// Status of a row's item, once ATTEND and COLLECT have succeeded.
static int item_status(const struct step *t, const struct step_set *set,
                       const struct step_segment *seg)
{
    const unsigned char *at = data_out(t, set) + set->layout.status + 4 * seg->item;
    return inst_status_from_nvme((uint16_t)le_get32(at));
}

static bool rows_lack_room(const struct step *t, const struct step_set *set)
{
    for (size_t i = set->first; i < set->end; i++)
        if (!t->seg[i].status && item_status(t, set, &t->seg[i]) == INST_ENORESOURCE)
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
    int err = port_call(port, attend, engine_bytes(t->e, BUFFER_attend_table) + set->table,
                        data_in(t, set), NULL, msg);
    if (err)
        return err;
    set->collect = port_submit(port, collect, NULL, data_out(t, set), msg);
    return set->collect < 0 ? set->collect : 0;
}

static void fail_all(struct step *t, const struct step_set *set, int code, const char *text)
{
    for (size_t i = set->first; i < set->end; i++)
        step_fail(t, &t->seg[i], code, text);
}

// A wait for decode attention: what it takes here, and what it would take emulated drives.
struct attention_wait {
    double start;
    uint64_t since[LINK_ARRAY_MOST];
};

static void wait_begin(struct inst_engine *e, struct attention_wait *wait)
{
    uint64_t now = clock_ns();
    wait->start = 1e-9 * (double)now;
    store_pass(&e->store, now, false);
    store_waited_ns(&e->store, wait->since);
}

static void wait_end(struct inst_engine *e, struct attention_wait *wait)
{
    uint64_t now = clock_ns();
    store_pass(&e->store, now, true);
    e->stats.attention_seconds += 1e-9 * (double)now - wait->start;
    e->stats.modelled_attention_seconds += 1e-9 * (double)store_waited_ns(&e->store, wait->since);
}

void decode_begin(struct step *t, struct step_set *set)
{
    close_up(t, set);
    if (!set->items)
        return;
    struct attention_wait wait = {0};
    wait_begin(t->e, &wait);
    struct inst_msg msg = {0};
    put_table(t, set);
    int err = send(t, set, &msg);
    set->attending = !err;
    if (err)
        fail_all(t, set, err, msg.text);
    wait_end(t->e, &wait);
}

static void fail_items(struct step *t, const struct step_set *set, struct inst_msg *msg)
{
    bool failed = false;
    for (size_t i = set->first; i < set->end; i++) {
        struct step_segment *seg = &t->seg[i];
        int code = seg->status ? 0 : item_status(t, set, seg);
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

// What the method is predicted to capture; an audit measures instead.
static void note_captured(const struct step *t, const struct step_set *set)
{
    size_t heads = t->e->config.heads;
    if (t->audit || is_dense(t, set))
        return;
    for (size_t i = set->first; i < set->end; i++)
        if (!t->seg[i].status)
            audit_captured(
                t->e, data_out(t, set) + set->layout.captured + 4 * heads * t->seg[i].item, heads);
}

// Outputs of items to the rows of the set, zeros to those that have failed. Descending, as an item
// is never behind its row.
static void spread(struct step *t, struct step_set *set)
{
    size_t bytes = sizeof(float) * t->e->config.heads * t->e->config.head_dim;
    unsigned char *to = data_out(t, set) + set->all.out;
    const unsigned char *from = data_out(t, set) + set->layout.out;
    for (size_t i = set->end - set->first; i-- > 0;) {
        const struct step_segment *seg = &t->seg[set->first + i];
        if (seg->status)
            memset(to + i * bytes, 0, bytes);
        else if (to + i * bytes != from + seg->item * bytes)
            memmove(to + i * bytes, from + seg->item * bytes, bytes);
    }
}

static void collect(struct step *t, struct step_set *set)
{
    struct attention_wait wait = {0};
    wait_begin(t->e, &wait);
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
    if (!err)
        note_captured(t, set);
    wait_end(t->e, &wait);
}

void decode_end(struct step *t, struct step_set *set)
{
    if (set->attending)
        collect(t, set);
    spread(t, set);
}
