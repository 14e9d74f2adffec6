// SPDX-License-Identifier: Apache-2.0
// One decode step of a batch: every layer is one ATTEND that appends each session's k, v and
// attends with its q, and one COLLECT. KV never comes to the host. A session whose item fails
// leaves the batch; the others' rows close up and go on with the same bits (contract point 9).
#include "host/engine/engine.h"
#include "base/checked.h"
#include "base/le.h"

#include <stdlib.h>
#include <string.h>

struct batch {
    struct inst_engine *e;
    struct inst_session **sessions;
    int *status;  // of all, by the caller's index
    size_t n;     // rows alive
    uint32_t *at; // [n] the caller's index of each row
    struct attend_layout layout;
    struct number_fault fault;
    bool audit;
    int first_error;
    struct inst_msg *msg;
};

static void fail_row(struct batch *b, size_t row, int code, const char *text)
{
    b->status[b->at[row]] = code;
    if (!b->first_error) {
        b->first_error = code;
        inst_fail(b->msg, code, "%s", text);
    }
    b->at[row] = UINT32_MAX; // removed by close_up
}

static unsigned char *data_in(const struct batch *b)
{
    return engine_bytes(b->e, BUFFER_attend_in);
}

static float *attn_out(const struct batch *b)
{
    return (float *)(engine_bytes(b->e, BUFFER_attend_out) + b->layout.out);
}

// Removes failed rows from x, rope and the attention outputs.
static void close_up(struct batch *b)
{
    struct inst_engine *e = b->e;
    const struct model_config *c = &e->config;
    size_t width = row_stride(c->width), rope = row_stride(plan_rope_values(c));
    size_t q = (size_t)c->heads * c->head_dim, kept = 0;
    for (size_t row = 0; row < b->n; row++) {
        if (b->at[row] == UINT32_MAX)
            continue;
        if (kept != row) {
            float *x = engine_f32(e, BUFFER_x), *r = engine_f32(e, BUFFER_rope);
            memcpy(x + kept * width, x + row * width, width * sizeof *x);
            if (rope)
                memcpy(r + kept * rope, r + row * rope, rope * sizeof *r);
            memcpy(attn_out(b) + kept * q, attn_out(b) + row * q, q * sizeof *x);
            b->at[kept] = b->at[row];
        }
        kept++;
    }
    b->n = kept;
}

static void put_row(void *arg, size_t row, const float *q, const float *k, const float *v)
{
    struct batch *b = arg;
    const struct model_config *c = &b->e->config;
    size_t q_dim = (size_t)c->heads * c->head_dim, kv_dim = (size_t)c->kv_heads * c->head_dim;
    uint16_t *k16 = (uint16_t *)(data_in(b) + b->layout.k) + row * kv_dim;
    uint16_t *v16 = (uint16_t *)(data_in(b) + b->layout.v) + row * kv_dim;
    memcpy((float *)(data_in(b) + b->layout.q) + row * q_dim, q, q_dim * sizeof *q);
    b->e->kernels->f32_to_f16(k16, k, kv_dim);
    b->e->kernels->f32_to_f16(v16, v, kv_dim);
    numbers_check(&b->fault, row, NUMBER_Q, q, q_dim);
    numbers_check_f16(&b->fault, row, NUMBER_K, k16, k, kv_dim);
    numbers_check_f16(&b->fault, row, NUMBER_V, v16, v, kv_dim);
}

// q, k and v of the rows alive. Those whose numbers are none leave the batch, one by one: then the
// others are computed again, in their new places.
static int put_qkv(struct batch *b, uint32_t layer)
{
    const struct model_config *c = &b->e->config;
    size_t row;
    while (b->n) {
        if (!attend_layout(&b->layout, (uint32_t)b->n, c->heads, c->kv_heads, c->head_dim, true))
            return inst_fail(b->msg, INST_EINVAL, "the batch is too large");
        numbers_clear(&b->fault);
        layer_qkv(b->e, layer, b->n, put_row, b);
        if (!numbers_fault_row(&b->fault, &row))
            return 0;
        struct inst_msg msg = {0};
        numbers_fail(b->e, &b->fault, layer, b->sessions[b->at[row]]->length, &msg);
        fail_row(b, row, INST_ERANGE, msg.text);
        close_up(b);
    }
    return 0;
}

static void put_table(struct batch *b, uint32_t layer, unsigned char *table)
{
    struct table_header header = b->e->attend;
    header.audit = b->audit;
    if (model_layer_window(&b->e->config, layer))
        header.method = METHOD_DENSE; // a window is short, and its mean value is not kept
    table_put_header(table, &header);
    for (size_t row = 0; row < b->n; row++) {
        const struct inst_session *s = b->sessions[b->at[row]];
        table_put_item(table, (uint32_t)row,
                       &(struct table_item){.seq = s->slot,
                                            .epoch = s->epoch,
                                            .pos = s->length,
                                            .n_tokens = 1,
                                            .window = layer_window_start(b->e, layer, s->length)});
    }
}

// Status of a row's item, once ATTEND and COLLECT have succeeded.
static int item_status(const struct batch *b, size_t row)
{
    const unsigned char *out = engine_bytes(b->e, BUFFER_attend_out);
    return inst_status_from_nvme((uint16_t)le_get32(out + b->layout.status + 4 * row));
}

static bool rows_lack_room(const struct batch *b)
{
    size_t row = 0;
    while (row < b->n && item_status(b, row) != INST_ENORESOURCE)
        row++;
    return row < b->n;
}

// The commands of one layer. Where the drive has no room for some rows now, all are sent again:
// what was appended is then only looked at.
static int attend_commands(struct batch *b, uint32_t layer, struct inst_msg *msg)
{
    struct port *port = &b->e->port;
    struct port_patience patience = {0};
    unsigned char *table = engine_bytes(b->e, BUFFER_attend_table);
    put_table(b, layer, table);
    struct command attend = {.opcode = OP_ATTEND,
                             .layer = layer,
                             .count = (uint32_t)b->n,
                             .length = (uint32_t)b->layout.in_bytes};
    struct command collect = {
        .opcode = OP_COLLECT, .layer = layer, .length = (uint32_t)b->layout.out_bytes};
    int err;
    do {
        attend.ticket = collect.ticket = port_ticket(port);
        msg->text[0] = 0;
        // COLLECT goes only after an ATTEND that was accepted: a refused one leaves no ticket.
        err = port_call(port, attend, table, data_in(b), NULL, msg);
        if (!err)
            err = port_call(port, collect, NULL, engine_bytes(b->e, BUFFER_attend_out), NULL, msg);
    } while (!err && rows_lack_room(b) && port_patient(port, &patience));
    return err;
}

// ATTEND and COLLECT of one layer for the rows alive.
static void attend(struct batch *b, uint32_t layer)
{
    struct inst_engine *e = b->e;
    double start = engine_seconds();
    struct inst_msg msg = {0};
    int err = attend_commands(b, layer, &msg);
    bool failed = false;
    for (size_t row = 0; row < b->n; row++) {
        int code = err ? err : item_status(b, row);
        if (!code)
            continue;
        // The text that came with it is about the first item that failed.
        if (!err && (failed || !msg.text[0])) {
            msg.text[0] = 0;
            inst_fail(&msg, code, "attention in layer %u: %s", layer, inst_status_text(code));
        }
        fail_row(b, row, code, msg.text);
        failed = true;
    }
    if (failed)
        close_up(b);
    e->stats.attention_seconds += engine_seconds() - start;
}

static void fail_logits(struct batch *b, size_t row)
{
    struct inst_msg msg = {0};
    numbers_fail_logits(b->e, b->sessions[b->at[row]]->length, &msg);
    fail_row(b, row, INST_ERANGE, msg.text);
}

static void put_logits(struct batch *b)
{
    struct inst_engine *e = b->e;
    size_t vocab = row_stride(e->config.vocab);
    if (b->n == 1) {
        if (layer_logits(e, 0, 1, b->sessions[b->at[0]]->logits, vocab))
            fail_logits(b, 0);
        return;
    }
    float *out = engine_f32(e, BUFFER_logits);
    for (size_t first = 0; first < b->n; first += e->plan.logits_rows) {
        size_t n = min_u64(e->plan.logits_rows, b->n - first);
        uint64_t bad = layer_logits(e, first, n, out, vocab);
        for (size_t i = 0; i < n; i++) {
            if (bad >> i & 1)
                fail_logits(b, first + i);
            else
                memcpy(b->sessions[b->at[first + i]]->logits, out + i * vocab,
                       e->config.vocab * sizeof *out);
        }
    }
}

static void finish_row(struct batch *b, size_t row, const int32_t *tokens)
{
    struct inst_session *s = b->sessions[b->at[row]];
    s->tokens[s->length++] = tokens[b->at[row]];
    s->has_logits = true;
    b->e->stats.decode_tokens++;
    if (s->on_logits && !s->on_logits(s->on_logits_user, s->length - 1, s->logits))
        fail_row(b, row, INST_ECANCELLED, "cancelled");
}

// At most one ATTEND's worth of sessions.
static int batch_run(struct batch *b, const int32_t *tokens, uint32_t first)
{
    struct inst_engine *e = b->e;
    const struct model_config *c = &e->config;
    size_t q_stride = (size_t)c->heads * c->head_dim;
    for (size_t row = 0; row < b->n; row++)
        b->at[row] = first + (uint32_t)row;
    layer_embed(e, tokens + first, b->n);
    for (size_t row = 0; row < b->n; row++)
        layer_position(e, row, b->sessions[first + row]->length);
    for (uint32_t layer = 0; layer < c->layers && b->n; layer++) {
        int err = put_qkv(b, layer);
        if (err)
            return err;
        if (b->n)
            attend(b, layer);
        if (b->n)
            layer_finish(e, layer, attn_out(b), q_stride, b->n);
    }
    if (b->n)
        put_logits(b);
    close_up(b);
    for (size_t row = 0; row < b->n; row++)
        finish_row(b, row, tokens);
    return 0;
}

int decode_step(struct inst_engine *e, struct inst_session **sessions, const int32_t *tokens,
                size_t n, int *status, struct inst_msg *msg)
{
    struct batch b = {
        .e = e, .sessions = sessions, .status = status, .at = e->sync->rows, .msg = msg};
    int err = 0;
    // Evenly spread over the steps, whatever the share is.
    double step = (double)e->decode_steps++;
    b.audit = (uint64_t)((step + 1) * e->audit) > (uint64_t)(step * e->audit);
    memset(status, 0, n * sizeof *status);
    for (size_t first = 0; first < n && !err; first += e->max_items) {
        b.n = min_u64(e->max_items, n - first);
        err = batch_run(&b, tokens, (uint32_t)first);
    }
    for (size_t i = 0; i < n; i++)
        if (status[i] && status[i] != INST_ECANCELLED)
            session_cut(sessions[i], sessions[i]->length, NULL);
    return err ? err : b.first_error;
}
