// SPDX-License-Identifier: Apache-2.0
// Segments of prompts in a step. K and V are rounded to fp16 into a slab that is both the WRITE
// payload and what the segment itself attends over, so every token sees exactly what decode would
// see. Earlier KV comes back through READ in pieces of whole tiles, two in flight, those of the
// next segment and layer already while this one computes. Where the memory of what computes is not
// the host's, slabs and pieces are copied on their way.
#include "host/engine/step.h"
#include "base/checked.h"
#include "host/engine/guest.h"

void prefill_place(struct step *t)
{
    t->slab_bytes = 0;
    for (size_t i = t->n_decode; i < t->n_seg; i++) {
        t->seg[i].slab = t->slab_bytes;
        t->slab_bytes += engine_slab_bytes(t->e, t->seg[i].n);
    }
    t->reader = (struct step_reader){.segment = t->n_decode};
    t->writes.issued = t->writes.done = 0;
}

// K, V of a segment in the current layer.
static struct compute_slice own_slab(const struct step *t, const struct step_segment *seg)
{
    return engine_slice(t->e, BUFFER_slab, (t->layer & 1) * t->e->plan.slab + seg->slab);
}

void prefill_wire(const struct step *t, const struct step_segment *seg, struct compute_wire *wire)
{
    uint64_t dim = t->e->config.head_dim;
    *wire = (struct compute_wire){.first = (uint32_t)seg->row,
                                  .n = (uint32_t)seg->n,
                                  .k = own_slab(t, seg),
                                  .v = compute_at(own_slab(t, seg), 2 * seg->n * dim),
                                  .kv_row = dim,
                                  .kv_head = 2 * seg->n * dim};
}

// ---- READ --------------------------------------------------------------------------------------

static uint64_t pieces(const struct step *t, const struct step_segment *seg)
{
    return div_round_up(seg->pos0, t->e->plan.piece);
}

static uint64_t piece_tokens(const struct step *t, const struct step_segment *seg, uint64_t piece)
{
    uint64_t tokens = t->e->plan.piece;
    return min_u64(tokens, seg->pos0 - piece * tokens);
}

// A piece as READ brings it, and as it is attended over.
static struct compute_slice piece_in(const struct step *t, uint64_t index)
{
    return engine_slice(t->e, t->e->compute_kind->apart ? BUFFER_piece_in : BUFFER_piece,
                        (index & 1) * t->e->plan.piece_bytes);
}

static struct compute_slice piece_slab(const struct step *t, uint64_t index)
{
    return engine_slice(t->e, BUFFER_piece, (index & 1) * t->e->plan.piece_bytes);
}

static bool guest_attends(const struct step *t, const struct step_segment *seg)
{
    return t->e->guest && seg->n == 1 && !seg->out->prompt;
}

// The first piece that the queries of a layer see.
static uint64_t first_piece(const struct step *t, const struct step_segment *seg, uint32_t layer)
{
    if (guest_attends(t, seg))
        return pieces(t, seg);
    return min_u64(compute_window_start(&t->e->config, layer, seg->pos0) / t->e->plan.piece,
                   pieces(t, seg));
}

static int issue_piece(struct step *t, const struct step_segment *seg, struct inst_msg *msg)
{
    struct step_reader *r = &t->reader;
    struct port *port = &t->e->port;
    struct one_item table;
    uint32_t bytes = engine_put_item(t->e, seg->s->seq, (uint64_t)r->piece * t->e->plan.piece,
                                     piece_tokens(t, seg, r->piece), &table);
    struct command read = {
        .opcode = OP_READ, .layer = r->layer, .count = 1, .ticket = port_ticket(port)};
    struct command collect = {
        .opcode = OP_COLLECT, .layer = r->layer, .ticket = read.ticket, .length = bytes};
    // A READ is complete once it is admitted and does its work when COLLECT has come. COLLECT
    // goes only after one that was accepted: a refused READ leaves no ticket to wait for.
    int err = port_call(port, read, table.bytes, NULL, NULL, msg);
    if (err)
        return err;
    struct compute_slice in = piece_in(t, r->issued);
    int handle =
        port_submit(port, collect, NULL, (unsigned char *)in.buffer->host + in.offset, msg);
    if (handle < 0)
        return handle;
    r->piece_of[r->issued & 1].handle = handle;
    r->piece_of[r->issued & 1].segment = r->segment;
    r->issued++;
    r->piece++;
    return 0;
}

void prefill_issue(struct step *t)
{
    struct step_reader *r = &t->reader;
    while (r->issued - r->consumed < 2 && r->layer < t->e->config.layers) {
        if (r->segment == t->n_seg) {
            r->segment = t->n_decode;
            r->piece = 0;
            r->layer++;
            continue;
        }
        struct step_segment *seg = &t->seg[r->segment];
        r->piece = (uint32_t)max_u64(r->piece, first_piece(t, seg, r->layer));
        if (seg->status || r->piece == pieces(t, seg)) {
            r->segment++;
            r->piece = 0;
            continue;
        }
        struct inst_msg msg = {0};
        int err = issue_piece(t, seg, &msg);
        if (err)
            step_fail(t, seg, err, msg.text);
    }
}

// The oldest piece in flight.
static int piece_wait(struct step *t, struct inst_msg *msg)
{
    return port_wait(&t->e->port, t->reader.piece_of[t->reader.consumed & 1].handle, NULL, msg);
}

// The next piece of a segment is there, behind what segments had asked for that failed since.
// False: this one has failed.
static bool next_piece(struct step *t, struct step_segment *seg)
{
    struct step_reader *r = &t->reader;
    while (!seg->status) {
        struct inst_msg msg = {0};
        bool own = &t->seg[r->piece_of[r->consumed & 1].segment] == seg;
        int err = piece_wait(t, &msg);
        if (own && !err)
            return true;
        if (own)
            step_fail(t, seg, err, msg.text);
        r->consumed++;
        prefill_issue(t);
    }
    return false;
}

// ---- WRITE -------------------------------------------------------------------------------------

static void write_wait(struct step *t)
{
    struct inst_msg msg = {0};
    size_t i = t->writes.done++ % STEP_WRITES;
    int err = port_wait(&t->e->port, t->writes.slot[i].handle, NULL, &msg);
    if (err)
        step_fail(t, &t->seg[t->writes.slot[i].segment], err, msg.text);
}

void prefill_write_room(struct step *t, uint32_t layer)
{
    struct step_writes *w = &t->writes;
    while (w->done < w->issued && w->slot[w->done % STEP_WRITES].layer + 2 <= layer)
        write_wait(t);
}

// The layer's slab to where WRITEs take it from.
static bool slab_out(struct step *t)
{
    struct compute *c = t->e->compute;
    uint64_t at = (t->layer & 1) * t->e->plan.slab;
    if (!t->e->compute_kind->apart || t->n_seg == t->n_decode || !t->alive)
        return t->alive;
    return step_order(t, QUEUE_OUT, QUEUE_MAIN) &&
           step_computes(t, c->ops->copy(c, QUEUE_OUT, engine_slice(t->e, BUFFER_slab_out, at),
                                         engine_slice(t->e, BUFFER_slab, at), t->slab_bytes)) &&
           step_wait(t, QUEUE_OUT);
}

void prefill_write(struct step *t)
{
    struct step_writes *w = &t->writes;
    if (!slab_out(t))
        return;
    unsigned char *out =
        engine_bytes(t->e, engine_slab_out(t->e)) + (t->layer & 1) * t->e->plan.slab;
    for (size_t i = t->n_decode; i < t->n_seg; i++) {
        struct step_segment *seg = &t->seg[i];
        if (w->issued - w->done == STEP_WRITES)
            write_wait(t);
        if (seg->status)
            continue;
        struct inst_msg msg = {0};
        size_t slot = w->issued % STEP_WRITES;
        struct command write = {.opcode = OP_WRITE, .layer = t->layer, .count = 1};
        write.length = engine_put_item(t->e, seg->s->seq, seg->pos0, seg->n, &w->slot[slot].table);
        int handle =
            port_submit(&t->e->port, write, w->slot[slot].table.bytes, out + seg->slab, &msg);
        if (handle < 0) {
            step_fail(t, seg, handle, msg.text);
            continue;
        }
        w->slot[slot].handle = handle;
        w->slot[slot].segment = i;
        w->slot[slot].layer = t->layer;
        w->issued++;
    }
}

void prefill_end(struct step *t)
{
    while (t->writes.done < t->writes.issued)
        write_wait(t);
    for (; t->reader.consumed < t->reader.issued; t->reader.consumed++)
        piece_wait(t, NULL);
}

// ---- Attention ---------------------------------------------------------------------------------

static bool attend(struct step *t, const struct step_segment *seg, const struct compute_run *run,
                   unsigned flags)
{
    struct compute *c = t->e->compute;
    return step_computes(t, c->ops->attend(c, 0, t->layer, (uint32_t)seg->row, (uint32_t)seg->n,
                                           run, run != NULL, flags));
}

// A piece to where it is attended over.
static bool bring(struct step *t, uint64_t bytes)
{
    struct compute *c = t->e->compute;
    uint64_t index = t->reader.consumed;
    if (!t->e->compute_kind->apart)
        return true;
    return step_computes(
               t, c->ops->copy(c, QUEUE_IN, piece_slab(t, index), piece_in(t, index), bytes)) &&
           step_order(t, QUEUE_MAIN, QUEUE_IN);
}

// Returns the flags of what comes next.
static unsigned attend_earlier(struct step *t, struct step_segment *seg)
{
    unsigned flags = ATTEND_FIRST;
    for (uint64_t i = first_piece(t, seg, t->layer); i < pieces(t, seg); i++) {
        if (!next_piece(t, seg))
            return flags;
        uint64_t tokens = piece_tokens(t, seg, i);
        const struct compute_run run = {.slab = piece_slab(t, t->reader.consumed),
                                        .slab_tokens = tokens,
                                        .pos = i * t->e->plan.piece,
                                        .tokens = tokens};
        bool there = bring(t, engine_slab_bytes(t->e, tokens)) && attend(t, seg, &run, flags) &&
                     step_wait(t, QUEUE_MAIN);
        flags = 0;
        t->reader.consumed++;
        if (!there)
            return flags;
        prefill_issue(t);
    }
    return flags;
}

// Shows a segment to the guest, and takes a decode row's outputs from it: true.
static bool ask_guest(struct step *t, const struct step_segment *seg)
{
    struct inst_engine *e = t->e;
    struct compute *compute = e->compute;
    const struct model_config *c = &e->config;
    struct compute_slice q = {.buffer = e->guest_rows}, out = {.buffer = e->guest_rows};
    out.offset = (uint64_t)e->plan.host_rows * c->heads * c->head_dim * sizeof(float);
    uint32_t row = (uint32_t)seg->row, n = (uint32_t)seg->n;
    const unsigned char *slab = engine_bytes(e, engine_slab_out(e)) + own_slab(t, seg).offset;
    float *rows = e->guest_rows->host;
    if (!step_computes(t, compute->ops->queries(compute, 0, row, n, q)) ||
        !step_wait(t, QUEUE_MAIN))
        return false;
    const struct guest_rows seen = {
        .session = seg->s->place,
        .layer = t->layer,
        .heads = c->heads,
        .kv_heads = c->kv_heads,
        .head_dim = c->head_dim,
        .pos = seg->pos0,
        .n = n,
        .window = model_layer_window(c, t->layer),
        .scale = c->score_scale,
        .softcap = c->score_softcap,
        .q = rows,
        .kv = (const uint16_t *)slab,
        .out = guest_attends(t, seg) ? rows + out.offset / sizeof *rows : NULL,
        .out_stride = c->head_dim,
    };
    e->guest->attend(e->guest->user, &seen);
    return seen.out && step_computes(t, compute->ops->outputs(compute, 0, row, 1, out)) &&
           step_wait(t, QUEUE_MAIN);
}

void prefill_attend(struct step *t)
{
    for (size_t i = t->n_decode; i < t->n_seg && t->alive; i++) {
        struct step_segment *seg = &t->seg[i];
        if (t->e->guest && !seg->status && ask_guest(t, seg))
            continue;
        unsigned flags = seg->status ? ATTEND_FIRST : attend_earlier(t, seg);
        const struct compute_run own = {
            .slab = own_slab(t, seg), .slab_tokens = seg->n, .pos = seg->pos0, .tokens = seg->n};
        if (seg->status) // zeros
            attend(t, seg, NULL, ATTEND_FIRST | ATTEND_LAST);
        else
            attend(t, seg, &own, flags | ATTEND_LAST);
    }
}
