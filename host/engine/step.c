// SPDX-License-Identifier: Apache-2.0
// One step: segments of several sessions, pieces of prompts and decode rows, go through the layers
// together. Embedding, products and logits know rows only; what a row gives depends on that row
// alone (contract point 9), so nobody's bits depend on who else is in the step or on how a prompt
// was cut. Only the two ways to attend differ (step.h). The plan bounds the rows: a chunk of
// prompts and one decode row for each other session.
#include "host/engine/step.h"
#include "base/checked.h"
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
        for (size_t row = 0; row < out->n_tokens; row++)
            t->segment_of[t->n_rows + row] = (uint32_t)t->n_seg;
        t->n_rows += out->n_tokens;
        t->n_seg++;
    }
}

// ---- A layer -----------------------------------------------------------------------------------

static void put_row(void *arg, size_t row, const float *q, const float *k, const float *v)
{
    struct step *t = arg;
    struct step_segment *seg = &t->seg[t->segment_of[row]];
    if (seg->status)
        return;
    if (row < t->n_decode)
        decode_put_row(t, seg, q, k, v);
    else
        prefill_put_row(t, seg, row - seg->row, q, k, v);
}

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

// Segments with numbers that are none fail; true when that leaves a gap among the items of ATTEND.
static bool look_at_numbers(struct step *t, const struct step_set *set)
{
    bool gap = false;
    for (size_t i = set->first; i < set_end(t, set); i++) {
        struct step_segment *seg = &t->seg[i];
        struct inst_msg msg = {0};
        size_t bad;
        if (seg->status || !numbers_fault_row(&seg->fault, &bad))
            continue;
        int code = numbers_fail(t->e, &seg->fault, set->layer, seg->pos0 + bad, &msg);
        step_fail(t, seg, code, msg.text);
        gap |= i < t->n_decode;
    }
    return gap;
}

// q, k and v of a set's rows to where they are needed. Items follow each other, so after a gap all
// of them are computed again.
static void put_qkv(struct step *t, struct step_set *set)
{
    size_t row, n = set_rows(t, set, &row);
    do {
        if (!decode_place(t, set)) {
            fail_all(t, INST_EINVAL, "the step is too large");
            return;
        }
        for (size_t i = set->first; i < set_end(t, set); i++)
            numbers_clear(&t->seg[i].fault);
        layer_qkv(t->e, set->layer, row, n, put_row, t);
    } while (look_at_numbers(t, set) && t->alive);
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
        prefill_outputs(t);
        stage(t, "attend", layer, t->n_rows - t->n_decode, &since);
    }
}

// The rest of the layer that the set is in.
static void end_layer(struct step *t, struct step_set *set)
{
    const struct model_config *c = &t->e->config;
    uint64_t since = trace_begin(&t->e->trace);
    size_t row, rows = set_rows(t, set, &row);
    size_t stride = row_stride((uint64_t)c->heads * c->head_dim);
    decode_end(t, set);
    stage(t, "collect", set->layer, rows, &since);
    for (size_t i = set->first; i < set_end(t, set); i++)
        if (t->seg[i].status)
            memset(step_output(t, t->seg[i].row), 0, t->seg[i].n * stride * sizeof(float));
    if (t->alive)
        layer_finish(t->e, set->layer, row, rows, engine_f32(t->e, BUFFER_q), stride);
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

// Every set ends a layer before it begins the next one; with two, one of them is always with the
// drive meanwhile.
static void run_layers(struct step *t, const struct step_progress *progress)
{
    struct inst_engine *e = t->e;
    uint64_t since = trace_begin(&e->trace);
    prefill_issue(t);
    for (size_t i = 0; i < t->n_seg; i++) {
        const struct step_segment *seg = &t->seg[i];
        layer_embed(e, seg->row, seg->out->tokens, seg->n);
        layer_positions(e, seg->row, seg->pos0, seg->n);
    }
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
        decode_end(t, &t->set[i]); // of a step that failed
    since = trace_begin(&e->trace);
    prefill_end(t);
    stage(t, "end", INST_TRACE_NO_LAYER, t->n_rows, &since);
}

// ---- Logits ------------------------------------------------------------------------------------

// Rows that share a pass over the output matrix; they lie at the front of x.
struct wanted {
    struct step *t;
    size_t n, most;
    float *out; // NULL: one row, straight to its session
    struct {
        struct step_segment *seg;
        size_t row; // of the segment
    } row[64];
};

// The strip's buffer is free now; the larger of the two says how many rows fit.
static void wanted_begin(struct wanted *w, struct step *t)
{
    const struct inst_engine *e = t->e;
    enum buffer_id id =
        e->plan.buffer[BUFFER_logits] > e->plan.buffer[BUFFER_t1] ? BUFFER_logits : BUFFER_t1;
    uint64_t rows = e->plan.buffer[id] / sizeof(float) / row_stride(e->config.vocab);
    w->t = t;
    w->n = 0;
    w->out = rows ? engine_f32(e, id) : NULL;
    w->most = min_u64(min_u64(max_u64(rows, 1), e->plan.strip), sizeof w->row / sizeof *w->row);
}

// Logits of one row, to who wanted them.
static void give_logits(struct step *t, struct step_segment *seg, size_t row, const float *logits)
{
    struct inst_session *s = seg->s;
    if (row + 1 == seg->n && logits != s->logits)
        memcpy(s->logits, logits, t->e->config.vocab * sizeof *logits);
    if (s->on_logits && !s->on_logits(s->on_logits_user, seg->pos0 + row, logits))
        step_fail(t, seg, INST_ECANCELLED, "cancelled");
}

static void wanted_flush(struct wanted *w)
{
    struct step *t = w->t;
    size_t stride = row_stride(t->e->config.vocab);
    if (!w->n)
        return;
    float *out = w->n == 1 || !w->out ? w->row[0].seg->s->logits : w->out;
    uint64_t bad = layer_logits(t->e, 0, w->n, out, stride);
    for (size_t i = 0; i < w->n; i++) {
        struct step_segment *seg = w->row[i].seg;
        struct inst_msg msg = {0};
        if (seg->status)
            continue;
        if (bad >> i & 1) {
            int code = numbers_fail_logits(t->e, seg->pos0 + w->row[i].row, &msg);
            step_fail(t, seg, code, msg.text);
        } else {
            give_logits(t, seg, w->row[i].row, out + i * stride);
        }
    }
    w->n = 0;
}

static void put_logits(struct step *t)
{
    struct wanted w;
    size_t width = row_stride(t->e->config.width);
    float *x = engine_f32(t->e, BUFFER_x);
    wanted_begin(&w, t);
    for (size_t i = 0; i < t->n_seg; i++) {
        struct step_segment *seg = &t->seg[i];
        size_t row = seg->s->on_logits ? 0 : seg->out->logits ? seg->n - 1 : seg->n;
        for (; row < seg->n && !seg->status; row++) {
            // Rows come in ascending order, so this is one that was dealt with.
            if (seg->row + row != w.n)
                memcpy(x + w.n * width, x + (seg->row + row) * width, width * sizeof *x);
            w.row[w.n].seg = seg;
            w.row[w.n++].row = row;
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

// Evenly spread over the steps, whatever the share is.
static bool audits(struct inst_engine *e)
{
    double step = (double)e->decode_steps++;
    return (uint64_t)((step + 1) * e->audit) > (uint64_t)(step * e->audit);
}

int step_run(struct inst_engine *e, struct inst_segment *segments, size_t count,
             const struct step_progress *progress, struct inst_msg *msg)
{
    double start = clock_seconds();
    struct step t = {.e = e,
                     .seg = e->scratch.seg,
                     .segment_of = (uint32_t *)engine_bytes(e, BUFFER_segment_of),
                     .group = e->config.heads / e->config.kv_heads,
                     .msg = msg};
    place(&t, segments, count, true);
    t.n_decode = t.n_seg;
    place(&t, segments, count, false);
    t.alive = t.n_seg;
    if (!t.n_seg)
        return t.first_error;
    t.audit = t.n_decode && audits(e);
    size_t decoded = 0; // rows, wherever they are attended
    for (size_t i = 0; i < t.n_seg; i++)
        decoded += is_decode(t.seg[i].out);
    uint64_t read = decoded ? 0 : flash_read_bytes(e);
    prefill_place(&t);
    bool alone = t.n_decode == t.n_seg;
    t.n_sets = alone ? micro_choose(&e->micro, t.n_decode) : 1;
    decode_divide(&t);
    run_layers(&t, progress);
    uint64_t since = trace_begin(&e->trace);
    put_logits(&t);
    stage(&t, "logits", INST_TRACE_NO_LAYER, t.n_rows, &since);
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
