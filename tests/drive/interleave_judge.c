// SPDX-License-Identifier: Apache-2.0
// What a completion must be: allowed statuses come from the model as it is when the command
// completes, and from the faults that happened; then the command's effect goes into the model.
#include "base/checked.h"
#include "interleave_run.h"
#include "kernels/kv.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// What may go wrong with any command, given what the flash did since `bad_reads` was noted.
static uint32_t surroundings(struct run *run, uint64_t bad_reads)
{
    uint32_t set = 0;
    if (run->scarce_memory || known(FAULT_DRAM_PROMISED_TWICE))
        set |= BIT(INST_ENORESOURCE) | BIT(INST_ENOMEM);
    if (run->scarce_flash)
        set |= BIT(INST_ENOSPC);
    if (run->chaos->bad_reads > (known(FAULT_READ_ERROR_LASTS) ? 0 : bad_reads))
        set |= BIT(INST_EIO) | (run->chaos->wrong_data ? BIT(INST_ECORRUPT) : 0);
    // A row is placed again, where there is room for it.
    if ((known(FAULT_PROGRAM_ERROR_KILLS) || run->scarce_flash) && run->chaos->program_faults)
        set |= BIT(INST_EIO) | BIT(INST_ENOSPC) | BIT(INST_ECORRUPT);
    return set;
}

#define ANY      (~0u)
#define REFUSALS (BIT(INST_ESEQUENCE) | BIT(INST_ENORESOURCE) | BIT(INST_ENOMEM) | BIT(INST_ENOSPC))

static void tell_sequence(struct run *run, uint32_t space, uint32_t seq)
{
    const struct model_sequence *s = &run->spaces[space].sequences[seq];
    tell(run, "model: sequence %u.%u presence %d%s", seq, s->epoch, s->presence,
         s->lost ? " lost" : "");
    for (uint32_t l = 0; l < run->spaces[space].config.layers; l++) {
        tell(run, " [");
        for (uint32_t h = 0; h < run->spaces[space].config.kv_heads; h++)
            tell(run, "%u..%u ", s->layers[l].have[h], s->layers[l].maybe[h]);
        tell(run, "]");
    }
    tell(run, "\n");
}

static bool allowed(struct run *run, const struct flight *f, int status, uint32_t set)
{
    if (status <= 0 && status > -32 && (BIT(status) & set))
        return true;
    for (uint32_t i = 0; run->trace && i < f->command.count && i < RUN_ITEMS; i++)
        tell_sequence(run, f->command.space, f->items[i].seq);
    char text[200] = "";
    for (int s = 0; s < 16; s++) {
        if (set & 1u << s) {
            size_t at = strlen(text);
            snprintf(text + at, sizeof text - at, "%s%s", at ? ", " : "",
                     s ? inst_status_text(-s) : "success");
        }
    }
    return wrong(run, "%s (cid %u, space %u, layer %u): '%s' instead of one of: %s",
                 opcode_name(f->command.opcode), f->command.cid, f->command.space, f->command.layer,
                 status ? inst_status_text(status) : "success", text);
}

// ---- WRITE -------------------------------------------------------------------------------------

static struct model_sequence *sequence_of(struct run *run, uint32_t space, uint32_t seq)
{
    return &run->spaces[space].sequences[seq];
}

// Statuses that looking the sequence up can give; 0: it is there for sure.
static uint32_t lookup(const struct model_sequence *s, const struct table_item *item, bool creates)
{
    uint32_t absent = creates && !item->pos ? OK : BIT(INST_ENOENT);
    if (s->lost)
        return ANY;
    if (s->presence == ABSENT)
        return absent;
    uint32_t there = s->epoch == item->epoch ? 0 : BIT(INST_ENOENT);
    if (s->presence == PRESENT)
        return there;
    return absent | (there ? there : OK);
}

// How far heads can be written: they may run ahead of others inside a token group only.
static uint32_t reach(const struct model_space *space, const struct model_layer *layer,
                      const struct table_header *header, uint32_t end)
{
    uint32_t others = UINT32_MAX, group = space->config.group_tokens;
    for (uint32_t h = 0; h < space->config.kv_heads; h++) {
        if (h < header->head_first || h >= header->head_first + header->head_count)
            others = (uint32_t)min_u64(others, layer->have[h]);
    }
    return others == UINT32_MAX ? end : (uint32_t)min_u64(end, (others / group + 1) * group);
}

// The next token of the layer belongs (or may belong) to a group that was given up.
static bool append_is_gone(const struct model_space *space, const struct model_layer *layer)
{
    uint32_t group = space->config.group_tokens;
    for (uint32_t t = model_tokens(space, layer); t <= model_tokens_maybe(space, layer); t++) {
        if (t % group && layer->gone[t / group])
            return true;
    }
    return false;
}

// What can be said of a WRITE's item before anything changes: 0, or why it is refused.
static uint32_t write_upfront(struct run *run, const struct flight *f, uint32_t i)
{
    const struct table_item *item = &f->items[i];
    const struct model_sequence *s = sequence_of(run, f->command.space, item->seq);
    uint32_t set = lookup(s, item, true);
    if (s->lost)
        return set;
    if (s->presence == ABSENT || (set && !(set & OK)))
        return set & ~OK;
    const struct model_layer *layer = &s->layers[f->command.layer];
    bool far = false, maybe_far = false;
    for (uint32_t h = f->header.head_first; h < f->header.head_first + f->header.head_count; h++) {
        far |= item->pos > layer->maybe[h];
        maybe_far |= item->pos > layer->have[h];
    }
    if (far)
        return (set & ~OK) | BIT(INST_ESEQUENCE);
    return maybe_far ? set | OK | BIT(INST_ESEQUENCE) : set;
}

// Why it can fail half-way; OK when it need not.
static uint32_t write_late(struct run *run, const struct flight *f, uint32_t i)
{
    static const struct model_layer empty;
    const struct table_item *item = &f->items[i];
    const struct model_space *space = &run->spaces[f->command.space];
    const struct model_sequence *s = &space->sequences[item->seq];
    const struct model_layer *layer = s->presence == ABSENT ? &empty : &s->layers[f->command.layer];
    uint32_t end = (uint32_t)(item->pos + item->n_tokens), set = 0;
    bool appends = false;
    for (uint32_t h = f->header.head_first; h < f->header.head_first + f->header.head_count; h++)
        appends |= end > layer->have[h];
    if (appends && reach(space, layer, &f->header, end) < end)
        set |= BIT(INST_ESEQUENCE);
    if (appends && append_is_gone(space, layer))
        set |= BIT(INST_ENOENT);
    return !set || !model_exact(space, s) ? set | OK : set;
}

static void write_item(struct run *run, const struct flight *f, uint32_t i, bool sure)
{
    const struct table_item *item = &f->items[i];
    struct model_space *space = &run->spaces[f->command.space];
    struct model_sequence *s = &space->sequences[item->seq];
    if (s->lost)
        return;
    if (s->presence == PERHAPS && s->epoch != item->epoch && !sure) {
        s->lost = true;
        return;
    }
    if (s->presence == ABSENT || s->epoch != item->epoch) {
        model_create(space, item->seq, item->epoch);
        s->presence = PERHAPS;
    }
    if (sure)
        s->presence = PRESENT;
    model_write(&s->layers[f->command.layer], f->header.head_first, f->header.head_count,
                (uint32_t)item->pos, (uint32_t)item->n_tokens, f->who[i], sure);
}

static bool judge_write(struct run *run, const struct flight *f, int status)
{
    uint32_t around = surroundings(run, f->bad_reads), set = OK;
    bool refused = false;
    for (uint32_t i = 0; i < f->command.count; i++) {
        uint32_t upfront = write_upfront(run, f, i);
        bool one = upfront && !(upfront & OK);
        refused |= one; // for sure, and so nothing of the command is done
        uint32_t all = one ? upfront : upfront | write_late(run, f, i);
        set = (set & all & OK) | ((set | all) & ~OK);
    }
    if (!allowed(run, f, status, set | around))
        return false;
    if (refused)
        return true;
    bool resources = status == INST_ENORESOURCE || status == INST_ENOMEM || status == INST_ENOSPC;
    if (status && !known(FAULT_REFUSAL_CHANGES_STATE) && !resources && !(around & BIT(status)))
        return true;
    for (uint32_t i = 0; i < f->command.count; i++)
        write_item(run, f, i, !status);
    return true;
}

// ---- READ and ATTEND: what the answer must be --------------------------------------------------

void ticket_forget(struct ticket *t)
{
    for (uint32_t i = 0; i < RUN_ITEMS; i++)
        free(t->expected[i].who);
    *t = (struct ticket){0};
}

// Remembers whose tokens [first, end) are, for all heads.
static void remember(struct run *run, struct ticket *t, uint32_t i)
{
    struct expected *e = &t->expected[i];
    const struct model_space *space = &run->spaces[t->space];
    const struct model_layer *layer = &space->sequences[e->seq].layers[t->layer];
    uint32_t n = e->end - e->first, heads = space->config.kv_heads;
    e->who = malloc(((size_t)n * heads + 1) * sizeof *e->who);
    for (uint32_t h = 0; e->who && h < heads; h++)
        memcpy(e->who + h * n, layer->who[h] + e->first, n * sizeof *e->who);
}

static uint32_t read_statuses(struct run *run, const struct flight *f, uint32_t i)
{
    const struct table_item *item = &f->items[i];
    const struct model_space *space = &run->spaces[f->command.space];
    const struct model_sequence *s = &space->sequences[item->seq];
    const struct model_layer *layer = &s->layers[f->command.layer];
    uint64_t end = item->pos + item->n_tokens;
    if (s->lost)
        return ANY;
    if (s->presence == ABSENT)
        return BIT(INST_ENOENT) | BIT(INST_ESEQUENCE);
    if (s->epoch != item->epoch)
        return BIT(INST_ENOENT) | (s->presence == PERHAPS ? BIT(INST_ESEQUENCE) : 0);
    uint32_t set = s->presence == PERHAPS ? BIT(INST_ENOENT) | BIT(INST_ESEQUENCE) : 0;
    if (end > model_tokens_maybe(space, layer))
        return set | BIT(INST_ESEQUENCE);
    return end > model_tokens(space, layer) ? set | OK | BIT(INST_ESEQUENCE) : set | OK;
}

// The drive has 64 tickets, which may have been in use when it looked at a command whose own ticket
// is one of these: what is open here may be free there already, and completions come later.
static uint32_t no_ticket(const struct run *run)
{
    uint32_t open = 0;
    for (uint32_t i = 0; i < RUN_TICKETS; i++)
        open += run->tickets[i].state >= TICKET_SENT;
    for (uint32_t i = 0; i < RUN_FLIGHTS; i++)
        open += run->flights[i].used && run->flights[i].command.opcode == OP_ABORT;
    return open > DRIVE_TICKETS ? BIT(INST_ENORESOURCE) : 0;
}

static bool judge_read(struct run *run, const struct flight *f, int status)
{
    struct ticket *t = f->ticket;
    uint32_t set = OK | no_ticket(run);
    for (uint32_t i = 0; i < f->command.count; i++) {
        uint32_t one = read_statuses(run, f, i);
        set = (set & one & OK) | ((set | one) & ~OK);
    }
    if (!allowed(run, f, status, set | surroundings(run, f->bad_reads)))
        return false;
    if (status)
        return true;
    for (uint32_t i = 0; i < f->command.count; i++) {
        const struct table_item *item = &f->items[i];
        struct model_space *space = &run->spaces[t->space];
        struct model_sequence *s = &space->sequences[item->seq];
        uint32_t first = (uint32_t)item->pos, end = (uint32_t)(item->pos + item->n_tokens);
        t->expected[i] =
            (struct expected){.allowed = ANY, .first = first, .end = end, .seq = item->seq};
        if (s->lost)
            continue;
        s->presence = PRESENT;
        model_seen(space, &s->layers[t->layer], end);
        t->expected[i].allowed =
            model_gone(space, &s->layers[t->layer], first, end) ? BIT(INST_ENOENT) : OK;
        remember(run, t, i);
    }
    return true;
}

// What becomes of an item's token: sure, perhaps or not at all; and which statuses the item can
// have for what it names.
static void attend_item(struct run *run, const struct flight *f, uint32_t i)
{
    static const struct model_layer empty;
    struct ticket *t = f->ticket;
    const struct table_item *item = &f->items[i];
    struct model_space *space = &run->spaces[t->space];
    struct model_sequence *s = &space->sequences[item->seq];
    struct expected *e = &t->expected[i];
    bool append = item->n_tokens == 1;
    uint32_t end = (uint32_t)(item->pos + append), found = lookup(s, item, append);
    *e = (struct expected){.seq = item->seq, .end = end, .allowed = found};
    if (s->lost || (found && !(found & OK)))
        return;
    uint64_t most = (space->config.max_tokens + 63) / 64 * 64;
    const struct model_layer *layer = s->presence == ABSENT ? &empty : &s->layers[t->layer];
    uint32_t have = model_tokens(space, layer), maybe = model_tokens_maybe(space, layer);
    e->allowed = found & ~OK;
    if (t->header.method != METHOD_DENSE && end > most) {
        e->allowed |= BIT(INST_ENORESOURCE);
        return;
    }
    if (item->pos > maybe) {
        e->allowed |= BIT(INST_ESEQUENCE);
        return;
    }
    e->allowed |= OK | (item->pos > have ? BIT(INST_ESEQUENCE) : 0);
    bool gone = append && item->pos >= have && append_is_gone(space, layer);
    if (gone)
        e->allowed |= BIT(INST_ENOENT);
    if (gone && model_exact(space, s)) {
        e->allowed &= ~OK;
        return;
    }
    if (append && item->pos >= have) {
        // Whether it was stored is known for sure only when its status is.
        write_item(run, f, i,
                   e->allowed == OK && !run->scarce_memory && !run->scarce_flash && !run->faults);
        e->appends = true;
    }
    layer = &s->layers[t->layer];
    e->life = s->life;
    e->cuts = layer->cuts;
    e->first = (uint32_t)item->window;
    uint32_t tile = e->first / 64 * 64; // reads begin there
    if (model_gone(space, layer, e->first, end))
        e->allowed =
            (e->allowed & ~OK) | BIT(INST_ENOENT) | (t->header.method != METHOD_DENSE ? OK : 0);
    else if (model_gone(space, layer, tile, end))
        e->allowed |= BIT(INST_ENOENT);
    remember(run, t, i);
}

static bool judge_attend(struct run *run, const struct flight *f, int status)
{
    if (!allowed(run, f, status, OK | surroundings(run, f->bad_reads) | no_ticket(run)))
        return false;
    for (uint32_t i = 0; !status && i < f->command.count; i++)
        attend_item(run, f, i);
    return true;
}

// ---- COLLECT -----------------------------------------------------------------------------------

static bool row_is(struct run *run, const struct ticket *t, const struct expected *e,
                   const uint16_t *row, uint32_t head, uint32_t token, bool v)
{
    uint32_t n = e->end - e->first, who = e->who[head * n + token - e->first];
    uint32_t dim = run->spaces[t->space].config.head_dim;
    uint16_t stored[KERNEL_HEAD_DIM_MAX];
    model_stored(who, t->layer, head, token, v, run->spaces[t->space].config.kv_type, dim, stored);
    if (!who || !memcmp(row, stored, 2 * dim))
        return true;
    if (known(FAULT_ROW_OF_ANOTHER)) {
        forgive(run, FAULT_ROW_OF_ANOTHER);
        run->over = true;
        return true;
    }
    char text[120];
    model_find_row(row, dim, run->writers, text, sizeof text);
    return wrong(run,
                 "READ of space %u sequence %u layer %u head %u token %u returned with status 0, "
                 "%c is not writer %u's: %s",
                 t->space, e->seq, t->layer, head, token, v ? 'V' : 'K', who, text);
}

static bool check_read(struct run *run, const struct ticket *t, const uint8_t *data)
{
    const struct space_config *c = &run->spaces[t->space].config;
    for (uint32_t i = 0; i < t->count; i++) {
        const struct expected *e = &t->expected[i];
        const uint16_t *row = (const uint16_t *)data;
        uint64_t bytes;
        for (uint32_t h = 0; e->who && h < t->header.head_count; h++) {
            for (uint32_t j = 0; j < 2 * (e->end - e->first); j++, row += c->head_dim) {
                uint32_t n = e->end - e->first;
                if (!row_is(run, t, e, row, t->header.head_first + h, e->first + j % n, j >= n))
                    return false;
                if (run->over)
                    return true;
            }
        }
        slab_bytes(t->header.head_count, e->end - e->first, c->head_dim, &bytes);
        data += (bytes + 63) / 64 * 64;
    }
    run->counts->reads_checked++;
    return true;
}

static bool judge_collected_read(struct run *run, const struct flight *f, int status)
{
    struct ticket *t = f->ticket;
    uint32_t set = OK;
    for (uint32_t i = 0; i < t->count; i++) {
        uint32_t one = t->expected[i].allowed;
        set = (set & one & OK) | ((set | one) & ~OK);
    }
    set |=
        surroundings(run, t->bad_reads) & (BIT(INST_EIO) | BIT(INST_ECORRUPT) | BIT(INST_ENOSPC));
    if (t->cancellable)
        set |= BIT(INST_ECANCELLED);
    if (!allowed(run, f, status, set))
        return false;
    return status || check_read(run, t, f->buffer.data);
}

static bool known_writers(const struct expected *e, uint32_t heads)
{
    for (uint32_t i = 0; i < (e->end - e->first) * heads; i++) {
        if (!e->who[i])
            return false;
    }
    return true;
}

static bool close_to(double got, double expected, double tolerance)
{
    return got == expected || fabs(got - expected) < tolerance;
}

// One query head of a dense item against attention in double.
static bool check_dense(struct run *run, const struct ticket *t, uint32_t i, uint32_t head,
                        const float *out, float lse)
{
    const struct expected *e = &t->expected[i];
    const struct space_config *c = &run->spaces[t->space].config;
    uint32_t kv = head / (t->header.q_heads / c->kv_heads), n = e->end - e->first;
    double want[KERNEL_HEAD_DIM_MAX], want_lse;
    uint32_t who[MODEL_TOKENS];
    memcpy(who + e->first, e->who + kv * n, n * sizeof *who);
    struct model_attention a = {
        .kv_type = c->kv_type,
        .head_dim = c->head_dim,
        .layer = t->layer,
        .head = kv,
        .first = e->first,
        .end = e->end,
        .who = who,
        .q = model_query(t->q_name + i * (Q_NAMES / RUN_ITEMS) + head),
        .scale = t->header.scale,
        .softcap = t->header.softcap,
    };
    model_attend(&a, want, &want_lse);
    bool good = close_to((double)lse, want_lse, 2e-4);
    for (uint32_t d = 0; d < c->head_dim; d++)
        good &= close_to((double)out[d], want[d], 5e-5);
    if (good)
        return true;
    if (known(FAULT_ROW_OF_ANOTHER)) {
        forgive(run, FAULT_ROW_OF_ANOTHER);
        run->over = true;
        return true;
    }
    return wrong(run,
                 "ATTEND of space %u sequence %u layer %u query head %u over tokens [%u, %u) "
                 "returned with status 0: out %.9g instead of %.9g, lse %.9g instead of %.9g",
                 t->space, e->seq, t->layer, head, e->first, e->end, (double)out[0], want[0],
                 (double)lse, want_lse);
}

static bool check_attend_item(struct run *run, const struct ticket *t, uint32_t i,
                              const uint8_t *data, const struct attend_layout *layout)
{
    const struct expected *e = &t->expected[i];
    const struct space_config *c = &run->spaces[t->space].config;
    uint32_t q_heads = t->header.q_heads;
    const float *lse = (const float *)(data + layout->lse) + i * q_heads;
    const float *captured = (const float *)(data + layout->captured) + i * q_heads;
    const float *out = (const float *)(data + layout->out) + (size_t)i * q_heads * c->head_dim;
    if (!e->who || !known_writers(e, c->kv_heads))
        return true;
    for (uint32_t h = 0; h < q_heads; h++) {
        if (!(captured[h] >= 0 && captured[h] <= 1.0001f) || isnan(lse[h]) || isnan(out[0]))
            return wrong(run, "ATTEND of sequence %u: captured %g, lse %g", e->seq,
                         (double)captured[h], (double)lse[h]);
    }
    run->counts->attends_checked++;
    if (t->header.method != METHOD_DENSE)
        return shadow_check(run, t, i, out, lse, captured);
    uint32_t one = (uint32_t)(run->counts->attends_checked % q_heads);
    if (!check_dense(run, t, i, one, out + (size_t)one * c->head_dim, lse[one]))
        return false;
    return run->over || run->counts->attends_checked % 16 ||
           shadow_check(run, t, i, out, lse, captured);
}

static bool judge_collected_attend(struct run *run, const struct flight *f)
{
    struct ticket *t = f->ticket;
    struct attend_layout layout;
    attend_layout(&layout, t->count, t->header.q_heads, run->spaces[t->space].config.kv_heads,
                  run->spaces[t->space].config.head_dim, false);
    bool refused = true;
    for (uint32_t i = 0; i < t->count && !run->over; i++) {
        struct expected *e = &t->expected[i];
        uint32_t code = ((const uint32_t *)(f->buffer.data + layout.status))[i];
        int status = inst_status_from_nvme((uint16_t)code);
        uint32_t set = e->allowed | surroundings(run, t->bad_reads);
        if (!(BIT(status) & set))
            return wrong(run,
                         "ATTEND item %u (sequence %u, tokens [%u, %u) of layer %u): '%s'; "
                         "allowed 0x%x",
                         i, e->seq, e->first, e->end, t->layer,
                         status ? inst_status_text(status) : "success", set);
        struct model_space *space = &run->spaces[t->space];
        struct model_sequence *s = &space->sequences[e->seq];
        struct model_layer *layer = &s->layers[t->layer];
        // One that was appended and then could not be attended to was not refused.
        bool flash = status == INST_EIO || status == INST_ECORRUPT;
        refused &= status && !flash && (!e->who || (BIT(status) & REFUSALS));
        if (!status && e->appends && s->life == e->life && !s->lost) {
            s->presence = PRESENT;
            if (layer->cuts == e->cuts)
                model_seen(space, layer, e->end);
        }
        if (!status && !check_attend_item(run, t, i, f->buffer.data, &layout))
            return false;
    }
    run->last_refused = refused;
    return true;
}

static bool judge_collect(struct run *run, const struct flight *f, const struct completion *done)
{
    struct ticket *t = f->ticket;
    int status = done->status;
    t->collecting = false;
    if (status == INST_ENORESOURCE && run->n_collects >= 64) { // too many wait
        if (t->state == TICKET_AWAITED)
            ticket_forget(t);
        return true;
    }
    if (status == INST_ETIMEOUT) {
        if (run->port.now_ns < f->deadline_ns)
            return wrong(run, "COLLECT timed out %llu ns early",
                         (unsigned long long)(f->deadline_ns - run->port.now_ns));
        if (t->state == TICKET_AWAITED)
            ticket_forget(t);
        return true;
    }
    bool short_buffer = t->state >= TICKET_SENT && f->buffer.data_bytes < t->bytes;
    if (status == INST_EINVAL && short_buffer)
        return true;
    if (t->state != TICKET_OPEN)
        return wrong(run, "COLLECT of ticket %u, which was not accepted yet: '%s'", t->number,
                     inst_status_text(status));
    if (short_buffer)
        return wrong(run, "COLLECT with %zu bytes instead of %llu: '%s'", f->buffer.data_bytes,
                     (unsigned long long)t->bytes, inst_status_text(status));
    bool good;
    if (t->opcode == OP_READ)
        good = judge_collected_read(run, f, status);
    else
        good = allowed(run, f, status, OK) && judge_collected_attend(run, f);
    if (good && !status && done->result != t->bytes)
        good = wrong(run, "COLLECT says %llu bytes instead of %llu",
                     (unsigned long long)done->result, (unsigned long long)t->bytes);
    for (uint64_t i = t->bytes; good && i < f->buffer.data_bytes; i++) {
        if (f->buffer.data[i] != 0xa5)
            good = wrong(run, "COLLECT wrote behind its %llu bytes", (unsigned long long)t->bytes);
    }
    ticket_forget(t);
    return good;
}

// ---- FORK, RECLAIM -----------------------------------------------------------------------------

static bool forked_so(const struct model_sequence *child, const struct table_item *item)
{
    return child->presence != ABSENT && child->forked && child->epoch == item->epoch &&
           child->parent == item->parent && child->parent_epoch == item->parent_epoch &&
           child->fork_pos == item->pos;
}

static uint32_t fork_statuses(struct run *run, const struct flight *f, uint32_t i)
{
    const struct table_item *item = &f->items[i];
    const struct model_space *space = &run->spaces[f->command.space];
    const struct model_sequence *parent = &space->sequences[item->parent];
    const struct model_sequence *child = &space->sequences[item->seq];
    bool repeats = known(FAULT_REPEATS_REFUSED);
    uint32_t set = 0;
    if (parent->lost || child->lost)
        return ANY;
    if (child->presence == PRESENT && !repeats)
        return forked_so(child, item) ? OK : BIT(INST_EEXIST);
    if (child->presence == PRESENT && parent->presence == PRESENT &&
        parent->epoch == item->parent_epoch)
        return BIT(INST_EEXIST);
    if (child->presence != ABSENT)
        set |= BIT(INST_EEXIST) | (forked_so(child, item) && !repeats ? OK : 0);
    if (parent->presence == ABSENT || parent->epoch != item->parent_epoch)
        return set | BIT(INST_ENOENT);
    set |= parent->presence == PERHAPS ? BIT(INST_ENOENT) : 0;
    for (uint32_t l = 0; l < space->config.layers; l++) {
        if (item->pos > model_tokens_maybe(space, &parent->layers[l]))
            return set | BIT(INST_ESEQUENCE);
        if (item->pos > model_tokens(space, &parent->layers[l]))
            set |= BIT(INST_ESEQUENCE);
    }
    return child->presence == PRESENT ? set : set | OK;
}

static void fork_item(struct run *run, const struct flight *f, uint32_t i, bool sure)
{
    const struct table_item *item = &f->items[i];
    struct model_space *space = &run->spaces[f->command.space];
    struct model_sequence *parent = &space->sequences[item->parent];
    struct model_sequence *child = &space->sequences[item->seq];
    if (child->lost || (!sure && child->presence == PRESENT))
        return;
    if (sure && forked_so(child, item) && !known(FAULT_REPEATS_REFUSED)) {
        if (child->presence == PERHAPS)
            child->lost = true; // made now, or then and perhaps changed since
        return;
    }
    if (parent->lost || (!sure && child->presence == PERHAPS)) {
        child->lost = true;
        child->presence = PERHAPS;
        return;
    }
    for (uint32_t l = 0; sure && l < space->config.layers; l++)
        model_seen(space, &parent->layers[l], (uint32_t)item->pos);
    if (sure)
        parent->presence = PRESENT;
    model_create(space, item->seq, item->epoch);
    child->presence = sure ? PRESENT : PERHAPS;
    child->forked = true;
    child->parent = item->parent;
    child->parent_epoch = item->parent_epoch;
    child->fork_pos = (uint32_t)item->pos;
    model_fork(space, parent, child, (uint32_t)item->pos);
    // Where it is not there, another command may make it, empty and whole.
    for (uint32_t l = 0; !sure && l < space->config.layers; l++) {
        memset(child->layers[l].have, 0, sizeof child->layers[l].have);
        child->lost |= model_gone(space, &child->layers[l], 0, (uint32_t)item->pos);
    }
}

static bool judge_fork(struct run *run, const struct flight *f, int status)
{
    uint32_t set = OK;
    for (uint32_t i = 0; i < f->command.count; i++) {
        uint32_t one = fork_statuses(run, f, i);
        set = (set & one & OK) | ((set | one) & ~OK);
    }
    uint32_t around = surroundings(run, f->bad_reads);
    bool scarce = run->scarce_memory || run->scarce_flash;
    if (!allowed(run, f, status, set | around))
        return false;
    if (status && f->command.count == 1 && !(BIT(status) & around))
        return true;
    if (status && !known(FAULT_REFUSAL_CHANGES_STATE))
        return true; // all items or none
    for (uint32_t i = 0; i < f->command.count; i++) {
        if (status && !(fork_statuses(run, f, i) & OK))
            return true; // not beyond this one
        fork_item(run, f, i, !status && !(known(FAULT_WAITING_FORK_SKIPPED) && scarce));
    }
    return true;
}

static void reclaim_one(struct run *run, const struct flight *f, const struct table_item *item,
                        uint32_t seq)
{
    struct model_space *space = &run->spaces[f->command.space];
    struct model_sequence *s = &space->sequences[seq];
    bool to_end = item->n_tokens == UINT64_MAX, exact = model_exact(space, s);
    if (s->presence == ABSENT || (s->lost && !item->seq_count))
        return;
    if (to_end && !item->pos && item->layer_count == space->config.layers) {
        s->presence = ABSENT;
        s->lost = false;
        s->life++;
        return;
    }
    for (uint32_t l = item->layer_first; l < item->layer_first + item->layer_count; l++) {
        struct model_layer *layer = &s->layers[l];
        uint32_t pos = (uint32_t)min_u64(item->pos, MODEL_TOKENS);
        uint64_t tokens = model_tokens(space, layer);
        if (to_end || (exact && item->n_tokens >= tokens - min_u64(item->pos, tokens)))
            model_cut(space, layer, pos);
        else if (exact)
            model_punch(space, layer, item->pos, item->n_tokens);
        else // one or the other
            s->lost = true;
    }
}

// Statuses of an item; a range of sequences is never refused.
static uint32_t reclaim_statuses(struct run *run, const struct flight *f, uint32_t i)
{
    const struct table_item *item = &f->items[i];
    const struct model_sequence *s = sequence_of(run, f->command.space, item->seq);
    // What is gone was given up before, and another sequence may have its number by now.
    if (item->seq_count || !known(FAULT_REPEATS_REFUSED))
        return OK;
    if (s->lost || s->presence == ABSENT)
        return OK | BIT(INST_ENOENT);
    if (s->epoch != item->epoch)
        return BIT(INST_ENOENT) | (s->presence == PERHAPS ? OK : 0);
    return OK | (s->presence == PERHAPS ? BIT(INST_ENOENT) : 0);
}

// The sequences of an item: what was asked for has happened, or (perhaps) some of it may have.
static void reclaim_item(struct run *run, const struct flight *f, uint32_t i, bool perhaps)
{
    const struct table_item *item = &f->items[i];
    struct model_space *space = &run->spaces[f->command.space];
    uint32_t n = item->seq_count ? item->seq_count : 1;
    for (uint32_t seq = item->seq; seq < item->seq + n && seq < MODEL_SEQUENCES; seq++) {
        struct model_sequence *s = &space->sequences[seq];
        if (s->presence == ABSENT || (!item->seq_count && !s->lost && s->epoch != item->epoch))
            continue;
        if (perhaps) {
            s->lost = true;
            s->presence = PERHAPS;
        } else {
            reclaim_one(run, f, item, seq);
        }
    }
}

static bool judge_reclaim(struct run *run, const struct flight *f, int status)
{
    uint32_t set = OK, memory = BIT(INST_ENORESOURCE) | BIT(INST_ENOMEM);
    for (uint32_t i = 0; i < f->command.count; i++) {
        uint32_t one = reclaim_statuses(run, f, i);
        set = (set & one & OK) | ((set | one) & ~OK);
    }
    // Maps that forks share are copied for a range inside.
    if (!allowed(run, f, status, set | (surroundings(run, f->bad_reads) & memory)))
        return false;
    bool perhaps = status && !(BIT(status) & set);
    for (uint32_t i = 0; i < f->command.count; i++) {
        const struct table_item *item = &f->items[i];
        struct model_sequence *s = sequence_of(run, f->command.space, item->seq);
        uint32_t one = reclaim_statuses(run, f, i);
        if (status && !perhaps && !(one & OK))
            return true; // it ended here
        bool may_fail = status && (one & BIT(status));
        if (may_fail && f->command.count == 1 && !s->lost && s->epoch == item->epoch)
            s->presence = ABSENT; // seen
        perhaps |= may_fail;
        reclaim_item(run, f, i, perhaps);
    }
    return true;
}

// ---- the others --------------------------------------------------------------------------------

static bool same_config(const struct space_config *a, const struct space_config *b)
{
    uint8_t x[CONFIG_BYTES], y[CONFIG_BYTES];
    space_config_encode(x, a);
    space_config_encode(y, b);
    return !memcmp(x, y, sizeof x);
}

static bool judge_config(struct run *run, const struct flight *f, const struct completion *done)
{
    struct model_space *space = &run->spaces[f->command.space];
    int status = done->status;
    if (space->open) {
        bool same = same_config(&f->config, &space->config);
        if (same && !known(FAULT_REPEATS_REFUSED))
            return allowed(run, f, status, OK);
        return allowed(run, f, status, same ? OK | BIT(INST_EEXIST) : BIT(INST_EEXIST));
    }
    if (!allowed(run, f, status, OK | surroundings(run, f->bad_reads)))
        return false;
    space->open = !status;
    if (!status && done->result != space->config.group_tokens)
        return wrong(run, "CONFIG chose %llu tokens for a group instead of %u",
                     (unsigned long long)done->result, space->config.group_tokens);
    return true;
}

static bool judge_stat(struct run *run, const struct flight *f, int status)
{
    struct drive_stats stats;
    if (!allowed(run, f, status, OK))
        return false;
    if (stats_decode(&stats, f->buffer.data, f->buffer.data_bytes))
        return wrong(run, "STAT cannot be decoded");
    if (stats.dram_used_bytes > run->shape.dram_bytes || stats.copied_bytes)
        return wrong(run, "STAT: %llu bytes of DRAM used of %llu, %llu copied",
                     (unsigned long long)stats.dram_used_bytes,
                     (unsigned long long)run->shape.dram_bytes,
                     (unsigned long long)stats.copied_bytes);
    return true;
}

// A text is about this command: of the sequences that it names, where it names any.
static bool judge_text(struct run *run, const struct flight *f, const struct completion *done)
{
    const struct ticket *t = f->command.opcode == OP_COLLECT ? f->ticket : NULL;
    const struct table_item *items = t ? t->items : f->items;
    uint32_t count = t ? t->count : f->command.count, seq;
    if (done->status && !done->text[0])
        return wrong(run, "%s failed without a text", opcode_name(f->command.opcode));
    const char *at = strstr(done->text, "sequence ");
    if (!at || sscanf(at, "sequence %u", &seq) != 1 || count > RUN_ITEMS)
        return true;
    for (uint32_t i = 0; i < count; i++) {
        if (items[i].seq == seq || (f->command.opcode == OP_FORK && items[i].parent == seq))
            return true;
    }
    return wrong(run, "the text of %s is about another command: %s", opcode_name(f->command.opcode),
                 done->text);
}

bool judge(struct run *run, const struct completion *done)
{
    struct flight *f = done->cid < RUN_FLIGHTS ? &run->flights[done->cid] : NULL;
    if (!f || !f->used)
        return wrong(run, "a completion for cid %u, which is not on its way", done->cid);
    tell_command(run, "done", f, done->status);
    if (done->status)
        tell(run, "     text: %s\n", done->text);
    if (f->queued && f->order != run->expected_order++)
        return wrong(run, "%s (cid %u) completed before its turn", opcode_name(f->command.opcode),
                     done->cid);
    bool good = judge_text(run, f, done);
    int status = done->status;
    uint8_t op = f->command.opcode;
    if (f->blocked)
        f->blocked->collecting = false;
    if (f->refusal)
        good = good && (status == f->refusal || (f->refusal > 0 && status)
                            ? true
                            : allowed(run, f, status, BIT(f->refusal)));
    else if (op == OP_WRITE)
        good = good && judge_write(run, f, status);
    else if (op == OP_ATTEND)
        good = good && judge_attend(run, f, status);
    else if (op == OP_READ)
        good = good && judge_read(run, f, status);
    else if (op == OP_COLLECT)
        good = good && judge_collect(run, f, done);
    else if (op == OP_FORK)
        good = good && judge_fork(run, f, status);
    else if (op == OP_RECLAIM)
        good = good && judge_reclaim(run, f, status);
    else if (op == OP_CONFIG)
        good = good && judge_config(run, f, done);
    else if (op == OP_STAT)
        good = good && judge_stat(run, f, status);
    else
        good = good && allowed(run, f, status,
                               OK | (run->chaos->sync_faults > f->sync_faults ? BIT(INST_EIO) : 0));
    if (f->ticket && op != OP_COLLECT && !f->refusal) {
        struct ticket *t = f->ticket;
        if (!status)
            t->state = TICKET_OPEN;
        else if (t->collecting)
            t->state = TICKET_AWAITED; // the COLLECT goes on waiting
        else
            ticket_forget(t);
    }
    run->last_status = status;
    run->last_opcode = op;
    run->last_ticket = f->ticket;
    if (op != OP_COLLECT)
        run->last_refused = status && status != INST_EIO && status != INST_ECORRUPT;
    outlook_settle(run, f);
    port_buffer_free(&f->buffer);
    run->n_flights--;
    run->n_collects -= op == OP_COLLECT;
    f->used = false;
    run->counts->completions++;
    return good;
}
