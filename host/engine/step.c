// SPDX-License-Identifier: Apache-2.0
// One step: segments of several sessions, pieces of prompts and decode rows, go through the layers
// together. Embedding, products and logits know rows only; what a row gives depends on that row
// alone (contract point 9), so nobody's bits depend on who else is in the step or on how a prompt
// was cut. Only the two ways to attend differ (step.h). The plan bounds the rows: a chunk of
// prompts and one decode row for each other session.
#include "host/engine/step.h"
#include "base/checked.h"
#include "base/clock.h"
#include "host/engine/loss.h"

#include <string.h>

size_t step_segment_bytes(void)
{
    return sizeof(struct step_segment);
}

static void fail(struct step *t, const struct inst_segment *out, int code, const char *text)
{
    inst_fail(out->msg, code, "%s", text);
    if (!t->first_error)
        t->first_error = inst_fail(t->msg, code, "%s", text);
}

void step_fail(struct step *t, struct step_segment *seg, int code, const char *text)
{
    if (seg->status)
        return;
    seg->status = code;
    t->alive--;
    fail(t, seg->out, code, text);
}

static void fail_all(struct step *t, int code, const char *text)
{
    for (size_t i = 0; i < t->n_seg; i++)
        step_fail(t, &t->seg[i], code, text);
}

static bool is_decode(const struct inst_segment *s)
{
    return s->n_tokens == 1 && !s->prompt;
}

// Attended by the drive, not here.
static bool on_drive(const struct inst_engine *e, const struct inst_segment *s)
{
    return is_decode(s) && !e->host_attention;
}

// Gives rows to the segments of one kind.
static void place(struct step *t, struct inst_segment *segments, size_t count, bool drive)
{
    for (size_t i = 0; i < count; i++) {
        struct inst_segment *out = &segments[i];
        if (out->status || on_drive(t->e, out) != drive)
            continue;
        struct inst_msg why = {0};
        struct seq *q = out->session->seq;
        out->status = seq_reserve(t->e, q, q->length + out->n_tokens, &why);
        if (out->status) {
            fail(t, out, out->status, why.text);
            continue;
        }
        t->seg[t->n_seg] = (struct step_segment){
            .s = out->session, .out = out, .row = t->n_rows, .n = out->n_tokens, .pos0 = q->length};
        t->n_rows += out->n_tokens;
        t->n_seg++;
    }
}

// ---- Who computes ------------------------------------------------------------------------------

bool step_computes(struct step *t, int err)
{
    struct inst_engine *e = t->e;
    if (!err)
        return true;
    if (!e->compute_lost) {
        struct compute_point point;
        struct inst_msg why = {0};
        int lost = e->compute->ops->record(e->compute, QUEUE_MAIN, &point);
        if (lost) // it says why
            e->compute->ops->done(e->compute, point, 0, &why);
        e->compute_lost = err;
        inst_fail(&e->compute_message, err, "computing failed: %s",
                  why.text[0] ? why.text : inst_status_text(err));
    }
    fail_all(t, e->compute_lost, e->compute_message.text);
    return false;
}

// Waits in short turns, so that drives in this process go on meanwhile.
bool step_wait(struct step *t, enum compute_queue queue)
{
    enum { TURN_NS = 200 * 1000 };
    struct inst_engine *e = t->e;
    const struct compute_ops *ops = e->compute->ops;
    struct compute_point point;
    struct inst_msg why = {0};
    if (!step_computes(t, ops->record(e->compute, queue, &point)))
        return false;
    int done = ops->done(e->compute, point, 0, &why);
    for (uint64_t start = clock_ns(); done == COMPUTE_BUSY;) {
        if (clock_ns() - start > e->compute_limit_ns) {
            done = inst_fail(&why, INST_ETIMEOUT, "no answer in %.3g s",
                             1e-9 * (double)e->compute_limit_ns);
            break;
        }
        port_tick(&e->port);
        done = ops->done(e->compute, point, TURN_NS, &why);
    }
    if (done && !e->compute_lost) {
        e->compute_lost = done;
        inst_fail(&e->compute_message, done, "computing failed: %s", why.text);
    }
    return step_computes(t, done);
}

bool step_order(struct step *t, enum compute_queue later, enum compute_queue first)
{
    struct compute *c = t->e->compute;
    struct compute_point point;
    return step_computes(t, c->ops->record(c, first, &point)) &&
           step_computes(t, c->ops->after(c, later, point));
}

// ---- A layer -----------------------------------------------------------------------------------

// Segments behind those of a set: the next set's, or, behind the last one's rows of decode,
// nobody's.
static size_t set_end(const struct step *t, const struct step_set *set)
{
    return set == &t->set[t->n_sets - 1] ? t->n_seg : set->end;
}

// Rows [*row, *row + returned) are those of a set.
static size_t set_rows(const struct step *t, const struct step_set *set, size_t *row)
{
    size_t end = set_end(t, set);
    *row = set->first;
    return (end == t->n_seg ? t->n_rows : end) - set->first;
}

// Where q, k and v of a set's rows go.
static bool put_wires(struct step *t, struct step_set *set)
{
    t->n_wires = 0;
    if (set->first < set->end && !decode_wire(t, set, &t->wire[t->n_wires++])) {
        fail_all(t, INST_EINVAL, "the step is too large");
        return false;
    }
    for (size_t i = max_u64(t->n_decode, set->first); i < set_end(t, set); i++)
        prefill_wire(t, &t->seg[i], &t->wire[t->n_wires++]);
    return true;
}

// Segments with numbers that are none fail.
static void look_at_numbers(struct step *t, const struct step_set *set)
{
    const uint32_t *fault = (const uint32_t *)engine_bytes(t->e, BUFFER_faults);
    for (size_t i = set->first; i < set_end(t, set); i++) {
        struct step_segment *seg = &t->seg[i];
        size_t row = seg->row;
        while (row < seg->row + seg->n && !fault[row])
            row++;
        if (seg->status || row == seg->row + seg->n)
            continue;
        struct inst_msg msg = {0};
        int code = numbers_fail(t->e, fault[row], set->layer, seg->pos0 + row - seg->row, &msg);
        step_fail(t, seg, code, msg.text);
    }
}

static void put_qkv(struct step *t, struct step_set *set)
{
    struct compute *c = t->e->compute;
    size_t row, n = set_rows(t, set, &row);
    if (put_wires(t, set) &&
        step_computes(t, c->ops->qkv(c, 0, set->layer, (uint32_t)row, (uint32_t)n, t->wire,
                                     t->n_wires, engine_slice(t->e, BUFFER_faults, 0))) &&
        step_wait(t, QUEUE_MAIN))
        look_at_numbers(t, set);
}

// A stage of the step has ended; *since becomes the start of the next one.
static void stage(const struct step *t, const char *name, uint32_t layer, size_t rows,
                  uint64_t *since)
{
    const struct trace *trace = &t->e->trace;
    trace_end(trace, INST_TRACE_STAGE, name, layer, 0, rows, *since);
    *since = trace_begin(trace);
}

// Into a layer, up to what the drive does for the set.
static void begin_layer(struct step *t, struct step_set *set, uint32_t layer)
{
    uint64_t since = trace_begin(&t->e->trace);
    size_t row, rows = set_rows(t, set, &row);
    bool last = set == &t->set[t->n_sets - 1];
    t->layer = set->layer = layer;
    prefill_write_room(t, layer);
    put_qkv(t, set);
    stage(t, "qkv", layer, rows, &since);
    if (last)
        prefill_write(t);
    decode_begin(t, set);
    stage(t, "send", layer, rows, &since);
    if (last && t->n_seg > t->n_decode) {
        prefill_attend(t);
        stage(t, "attend", layer, t->n_rows - t->n_decode, &since);
    }
}

static void ask_finish(struct step *t, const struct step_set *set)
{
    struct compute *c = t->e->compute;
    size_t row, n = set_rows(t, set, &row), decoded = set->end - set->first;
    if (!t->alive)
        return;
    if (decoded)
        step_computes(
            t, c->ops->outputs(c, 0, (uint32_t)row, (uint32_t)decoded, decode_outputs(t, set)));
    step_computes(t, c->ops->finish(c, 0, set->layer, (uint32_t)row, (uint32_t)n));
}

// The rest of the layer that the set is in. Where there are gates it is asked for before the drive
// has answered, and begins when its gate is opened.
static void end_layer(struct step *t, struct step_set *set)
{
    uint64_t since = trace_begin(&t->e->trace);
    struct compute *c = t->e->compute;
    struct compute_point gate;
    size_t row, rows = set_rows(t, set, &row);
    bool gated = c->ops->gate && step_computes(t, c->ops->gate(c, &gate));
    if (gated && step_computes(t, c->ops->after(c, QUEUE_MAIN, gate)))
        ask_finish(t, set);
    decode_end(t, set);
    stage(t, "collect", set->layer, rows, &since);
    if (gated)
        c->ops->open(c, gate);
    else
        ask_finish(t, set);
    stage(t, "finish", set->layer, rows, &since);
}

static bool goes_on(struct step *t, const struct step_progress *progress, uint32_t layers_done)
{
    if (engine_cancelled(t->e))
        return false;
    // The last layer's call would say that tokens are done which may still fail.
    return !progress->fn || !layers_done ||
           progress->fn(progress->user,
                        progress->before + progress->tokens * layers_done / t->e->config.layers,
                        progress->total);
}

// Tokens and positions of all rows.
static void embed(struct step *t)
{
    struct inst_engine *e = t->e;
    if (!t->alive)
        return; // what a lost device may still read stays as it is
    int32_t *token = (int32_t *)engine_bytes(e, BUFFER_tokens);
    uint64_t *position = (uint64_t *)engine_bytes(e, BUFFER_positions);
    for (size_t i = 0; i < t->n_seg; i++) {
        const struct step_segment *seg = &t->seg[i];
        memcpy(token + seg->row, seg->out->tokens, seg->n * sizeof *token);
        for (size_t row = 0; row < seg->n; row++)
            position[seg->row + row] = seg->pos0 + row;
    }
    const struct compute_rows rows = {.n = (uint32_t)t->n_rows,
                                      .own = (uint32_t)t->n_decode,
                                      .token = token,
                                      .position = position};
    step_computes(t, e->compute->ops->embed(e->compute, 0, &rows));
}

// Every set ends a layer before it begins the next one; with two, one of them is always with the
// drive meanwhile.
static void run_layers(struct step *t, const struct step_progress *progress)
{
    struct inst_engine *e = t->e;
    uint64_t since = trace_begin(&e->trace);
    prefill_issue(t);
    embed(t);
    stage(t, "embed", INST_TRACE_NO_LAYER, t->n_rows, &since);
    for (uint32_t layer = 0; layer <= e->config.layers && t->alive; layer++) {
        for (size_t i = 0; i < t->n_sets; i++) {
            if (layer)
                end_layer(t, &t->set[i]);
            if (i == 0 && layer < e->config.layers && !goes_on(t, progress, layer))
                fail_all(t, INST_ECANCELLED, "cancelled");
            if (layer < e->config.layers && t->alive)
                begin_layer(t, &t->set[i], layer);
        }
    }
    for (size_t i = 0; i < t->n_sets; i++)
        if (t->set[i].attending) // of a step that failed
            decode_end(t, &t->set[i]);
    if (!e->compute_lost)
        step_wait(t, QUEUE_MAIN); // what the next step writes to is not read any more
    since = trace_begin(&e->trace);
    prefill_end(t);
    stage(t, "end", INST_TRACE_NO_LAYER, t->n_rows, &since);
}

// ---- Logits ------------------------------------------------------------------------------------

// Rows that share a pass over the output matrix.
struct wanted {
    struct step *t;
    uint32_t n, most;
    enum buffer_id out;
    bool alone; // no room for more than one: straight to its session
    uint32_t row[64];
    struct step_segment *seg[64];
};

// Slabs are free now; the larger of the two says how many rows fit.
static void wanted_begin(struct wanted *w, struct step *t)
{
    const struct inst_engine *e = t->e;
    enum buffer_id slab = engine_slab_out(e);
    w->t = t;
    w->n = 0;
    w->out = e->plan.buffer[BUFFER_logits] > e->plan.buffer[slab] ? BUFFER_logits : slab;
    uint64_t rows = e->plan.buffer[w->out] / sizeof(float) / row_stride(e->config.vocab);
    w->alone = !rows;
    w->most =
        (uint32_t)min_u64(min_u64(max_u64(rows, 1), e->plan.strip), sizeof w->row / sizeof *w->row);
}

// Logits of one row, to who wanted them.
static void give_logits(struct step *t, struct step_segment *seg, size_t row, const float *logits)
{
    struct inst_session *s = seg->s;
    if (t->dense) {
        audit_dense(t->e, s, logits);
        return;
    }
    if (t->audit)
        audit_compare(t->e, s, logits);
    if (row + 1 == seg->n && logits != s->logits)
        memcpy(s->logits, logits, t->e->config.vocab * sizeof *logits);
    if (s->on_logits && !s->on_logits(s->on_logits_user, seg->pos0 + row, logits))
        step_fail(t, seg, INST_ECANCELLED, "cancelled");
}

static void wanted_flush(struct wanted *w)
{
    struct step *t = w->t;
    struct compute *c = t->e->compute;
    size_t stride = row_stride(t->e->config.vocab);
    uint32_t n = w->n;
    w->n = 0;
    if (!n)
        return;
    struct compute_slice out = {.buffer = n == 1 || w->alone ? w->seg[0]->s->logits_buffer
                                                             : t->e->buffer[w->out]};
    if (!step_computes(t, c->ops->logits(c, 0, w->row, n, out, stride,
                                         engine_slice(t->e, BUFFER_faults, 0))) ||
        !step_wait(t, QUEUE_MAIN))
        return;
    const uint32_t *fault = (const uint32_t *)engine_bytes(t->e, BUFFER_faults);
    const float *logits = out.buffer->host;
    for (uint32_t i = 0; i < n; i++) {
        struct step_segment *seg = w->seg[i];
        size_t row = w->row[i] - seg->row;
        struct inst_msg msg = {0};
        if (seg->status)
            continue;
        if (fault[i]) {
            int code = numbers_fail(t->e, fault[i], t->layer, seg->pos0 + row, &msg);
            step_fail(t, seg, code, msg.text);
        } else {
            give_logits(t, seg, row, logits + i * stride);
        }
    }
}

static void put_logits(struct step *t)
{
    struct wanted w;
    wanted_begin(&w, t);
    for (size_t i = 0; i < t->n_seg; i++) {
        struct step_segment *seg = &t->seg[i];
        size_t row = seg->s->on_logits ? 0 : seg->out->logits ? seg->n - 1 : seg->n;
        for (; row < seg->n && !seg->status; row++) {
            w.seg[w.n] = seg;
            w.row[w.n++] = (uint32_t)(seg->row + row);
            if (w.n == w.most)
                wanted_flush(&w);
        }
    }
    wanted_flush(&w);
}

// ---- The step ----------------------------------------------------------------------------------

static bool method_is_exact(const struct inst_engine *e)
{
    return e->attend.method == METHOD_DENSE;
}

// What a segment's session has now.
static void settle(struct step *t, struct step_segment *seg)
{
    struct inst_session *s = seg->s;
    seg->out->status = seg->status;
    struct seq *q = s->seq;
    if (seg->status) {
        if (inst_status_is_loss(seg->status))
            seq_suspect(t->e, q);
        session_cut(s, q->length, NULL);
        return;
    }
    memmove(q->tokens + q->length, seg->out->tokens, seg->n * sizeof *q->tokens);
    if (q->exact == q->length && (seg >= t->seg + t->n_decode || method_is_exact(t->e)))
        q->exact += seg->n;
    loss_note(s, q->length, seg->n, seg < t->seg + t->n_decode);
    q->length += seg->n;
    s->has_logits = seg->out->logits || s->on_logits;
    if (is_decode(seg->out))
        t->e->stats.decode_tokens += seg->n;
    else
        t->e->stats.prefill_tokens += seg->n;
}

static uint64_t flash_read_bytes(struct inst_engine *e)
{
    struct drive_stats stats;
    return engine_drive_stats(e, &stats, NULL) ? 0 : stats.flash_read_bytes;
}

// A step's time is its rows'; what it read was for decode as soon as somebody decoded.
static void account(struct step *t, double seconds, size_t decoded, uint64_t read_before)
{
    struct inst_stats *stats = &t->e->stats;
    double decode = (double)decoded / (double)t->n_rows;
    stats->decode_seconds += seconds * decode;
    stats->prefill_seconds += seconds * (1 - decode);
    if (!decoded)
        t->e->prefill_read_bytes += flash_read_bytes(t->e) - read_before;
}

// Places are given: all layers, and the logits that are wanted.
static void run(struct step *t, size_t sets, const struct step_progress *progress)
{
    t->wire = (struct compute_wire *)engine_bytes(t->e, BUFFER_wires);
    t->alive = t->n_seg;
    t->n_sets = sets;
    if (t->e->compute_lost)
        fail_all(t, t->e->compute_lost, t->e->compute_message.text);
    prefill_place(t);
    decode_divide(t);
    run_layers(t, progress);
    uint64_t since = trace_begin(&t->e->trace);
    put_logits(t);
    stage(t, "logits", INST_TRACE_NO_LAYER, t->n_rows, &since);
}

// The decode rows of a step whose logits are wanted, densely; then all is as before. A row that
// fails here is not compared, and its step comes all the same. Only where the drive does not take
// back what was appended the row fails.
static void run_densely(struct step *later, struct inst_segment *segments, size_t count)
{
    struct inst_engine *e = later->e;
    struct step t = {.e = e, .seg = e->scratch.seg, .dense = true};
    struct inst_segment *copy = e->audit.segment;
    double start = clock_seconds(), attention = e->stats.attention_seconds,
           modelled = e->stats.modelled_attention_seconds;
    uint64_t read = flash_read_bytes(e);
    size_t n = 0;
    store_pass(&e->store, clock_ns(), false);
    memset(e->audit.there, 0, e->max_sessions * sizeof *e->audit.there);
    for (size_t i = 0; i < count; i++) {
        const struct inst_segment *s = &segments[i];
        if (s->status || !on_drive(e, s) || !(s->logits || s->session->on_logits))
            continue;
        copy[n] = *s;
        copy[n].logits = true;
        copy[n++].msg = NULL;
    }
    place(&t, copy, n, true);
    t.n_decode = t.n_seg;
    if (t.n_seg)
        run(&t, 1, &(struct step_progress){0});
    for (size_t i = 0; i < t.n_seg; i++) {
        struct inst_session *s = t.seg[i].s;
        struct inst_msg why = {0};
        int err = session_cut(s, s->seq->length, &why);
        for (size_t k = 0; k < count && err; k++)
            if (segments[k].session == s) {
                segments[k].status = err;
                fail(later, &segments[k], err, why.text);
            }
    }
    e->audit.seconds += clock_seconds() - start;
    e->audit.read_bytes += flash_read_bytes(e) - read;
    e->stats.attention_seconds = attention;
    e->stats.modelled_attention_seconds = modelled;
}

int step_run(struct inst_engine *e, struct inst_segment *segments, size_t count,
             const struct step_progress *progress, struct inst_msg *msg)
{
    struct step t = {.e = e, .seg = e->scratch.seg, .msg = msg};
    size_t decoded = 0, drive = 0; // rows, wherever they are attended
    for (size_t i = 0; i < count; i++)
        drive += !segments[i].status && on_drive(e, &segments[i]);
    t.audit = drive && audit_is_due(e);
    if (t.audit && !method_is_exact(e))
        run_densely(&t, segments, count);
    double start = clock_seconds();
    store_pass(&e->store, clock_ns(), false);
    place(&t, segments, count, true);
    t.n_decode = t.n_seg;
    place(&t, segments, count, false);
    if (!t.n_seg)
        return t.first_error;
    for (size_t i = 0; i < t.n_seg; i++)
        decoded += is_decode(t.seg[i].out);
    uint64_t read = decoded ? 0 : flash_read_bytes(e);
    bool alone = t.n_decode == t.n_seg;
    run(&t, alone ? micro_choose(&e->micro, t.n_decode) : 1, progress);
    for (size_t i = 0; i < t.n_seg; i++)
        settle(&t, &t.seg[i]);
    double seconds = clock_seconds() - start;
    account(&t, seconds, decoded, read);
    if (alone && !t.first_error)
        micro_note(&e->micro, t.n_decode, (uint32_t)t.n_sets, seconds);
    return t.first_error;
}

static int check_segment(struct inst_engine *e, const struct inst_segment *s, size_t index,
                         struct inst_msg *msg)
{
    if (!s->session || s->session->engine != e)
        return inst_fail(msg, INST_EINVAL, "segment %zu: not a session of this engine", index);
    if (s->session->call == e->call)
        return inst_fail(msg, INST_EINVAL, "segment %zu: the session of another one", index);
    s->session->call = e->call;
    return session_check(s->session, s->tokens, s->session->seq->length, s->n_tokens, msg);
}

// The whole step is within the plan.
static int check_size(const struct inst_engine *e, const struct inst_segment *segments,
                      size_t count, struct inst_msg *msg)
{
    uint64_t prompts = 0;
    if (!count || count > engine_step_sessions(e))
        return inst_fail(msg, INST_EINVAL, "a step takes 1 to %u segments, not %zu",
                         engine_step_sessions(e), count);
    for (size_t i = 0; i < count; i++)
        if (!is_decode(&segments[i]) && !checked_add(prompts, segments[i].n_tokens, &prompts))
            prompts = UINT64_MAX;
    if (prompts > e->plan.chunk)
        return inst_fail(msg, INST_EINVAL, "a step takes up to %u tokens of prompts, not %llu",
                         e->plan.chunk, (unsigned long long)prompts);
    return 0;
}

int inst_step(inst_engine *engine, struct inst_segment *segments, size_t count,
              inst_progress_fn *progress, void *user, struct inst_msg *msg)
{
    if (!engine)
        return inst_fail(msg, INST_EINVAL, "a step needs an engine");
    struct step_progress p = {.fn = progress, .user = user};
    struct inst_msg why = {0};
    int refused = check_size(engine, segments, count, &why), first = refused;
    engine->call++;
    for (size_t i = 0; i < count; i++) {
        struct inst_segment *s = &segments[i];
        struct inst_msg text = why;
        s->status = refused;
        if (!refused) {
            text.text[0] = 0;
            s->status = check_segment(engine, s, i, &text);
        }
        inst_fail(s->status ? s->msg : NULL, s->status, "%s", text.text);
        if (s->status && !first)
            first = inst_fail(&why, s->status, "%s", text.text);
        p.tokens += s->status ? 0 : s->n_tokens;
    }
    p.total = p.tokens;
    int err = refused ? 0 : loss_step(engine, segments, count, &p, first ? NULL : &why);
    first = first ? first : err;
    return first ? inst_fail(msg, first, "%s", why.text) : 0;
}
