// SPDX-License-Identifier: Apache-2.0
// What a run is made of: its shape, and one command after the other. Most commands are right, as
// far as can be said before those on their way have had their effect; some are wrong on purpose.
#include "base/checked.h"
#include "drive/ftl/index_rows.h"
#include "interleave_run.h"
#include "kernels/kv.h"

#include <math.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

// ---- the shape ---------------------------------------------------------------------------------

void draw_config(struct run *run, struct space_config *c)
{
    static const uint32_t dims[] = {16, 8, 20, 5, 16, 32, 8, 1, 64, 7};
    struct chance *chance = &run->chance;
    *c = (struct space_config){
        .layers = 1 + below(chance, MODEL_LAYERS),
        .kv_heads = 1 + below(chance, MODEL_HEADS),
        .head_dim = dims[below(chance, COUNT(dims))],
        .group_tokens = 16u << below(chance, 3) % 3,
        .max_sequences = 2 + below(chance, 7),
        .max_tokens = 64u << below(chance, 3),
        .method = below(chance, 2) ? METHOD_SPARF : METHOD_DENSE,
    };
    c->q_heads = c->kv_heads * (1 + below(chance, 3));
    if (c->method == METHOD_DENSE && below(chance, 2)) {
        c->method = METHOD_PAGES;
        c->piece_tokens = 16; // of short sequences: several
        c->piece_look = below(chance, 3) * below(chance, 12);
        c->piece_bits = c->head_dim / 8 % 2 + 1;
        c->piece_keys = c->kv_heads % 2 ? 0 : 6;
        c->piece_heads = below(chance, 2) ? c->kv_heads : 1;
        c->piece_flash = !c->piece_look && below(chance, 2);
        if (c->piece_flash) // rows of its index are 256 tokens
            c->max_tokens = MODEL_TOKENS;
    }
    if (c->method != METHOD_SPARF) {
        c->kv_type = below(chance, KV_TYPES);
        return;
    }
    // A page of channels covers at least a token group.
    uint32_t most = run->shape.geometry.page_bytes / (2 * c->group_tokens);
    c->page_channels = 1;
    while (c->page_channels < 16 && 2 * c->page_channels <= most && one_in(chance, 2))
        c->page_channels *= 2;
}

static uint32_t widest_row(const struct run *run, const struct space_config *c)
{
    uint64_t page = run->shape.geometry.page_bytes;
    uint64_t token = c->kv_heads * kv_token_bytes(c->kv_type, c->head_dim);
    uint64_t kv = div_round_up(c->group_tokens * token, page);
    uint64_t channels = c->page_channels ? div_round_up(c->head_dim, c->page_channels) : 0;
    if (c->piece_flash) {
        struct stream index;
        const struct flash_geometry any = {
            .page_bytes = (uint32_t)page, .pages_per_block = 65535, .blocks = 1, .dies = 1};
        stream_index_rows.layout(&index, &any, c, NULL);
        kv = max_u64(kv, index.row_pages);
    }
    return (uint32_t)max_u64(kv, channels);
}

static void draw_plan(struct run *run)
{
    static const uint32_t polls[] = {0, 1, 3, 8, 20}, rates[] = {500, 100, 20};
    struct chance *chance = &run->chance;
    struct chaos_plan *p = &run->plan;
    p->polls = polls[below(chance, COUNT(polls))];
    if (one_in(chance, 2)) {
        p->slow = CHAOS_EVER / (8u << below(chance, 6));
        p->slow_polls = below(chance, 2) ? 400 : 40;
    }
    run->faults = one_in(chance, 2);
    if (!run->faults)
        return;
    uint32_t *kinds[] = {&p->read_error, &p->bit_flip,    &p->rot,       &p->program_error,
                         &p->no_space,   &p->erase_error, &p->sync_error};
    for (size_t i = 0; i < COUNT(kinds); i++) {
        if (one_in(chance, 2))
            *kinds[i] = CHAOS_EVER / rates[below(chance, COUNT(rates))];
    }
    if (run->shape.views)
        p->rot = 0; // memory does not; what is looked at in place is not verified
}

void draw_shape(struct run *run)
{
    struct chance *chance = &run->chance;
    struct flash_geometry *g = &run->shape.geometry;
    static const uint32_t dies[] = {1, 2, 3, 5}, depths[] = {4, 16, 60, 150};
    *g = (struct flash_geometry){
        .dies = below(chance, 2) ? dies[below(chance, COUNT(dies))] : 1,
        .channels = 1,
        .read_bytes = 16384,
    };
    run->n_spaces = one_in(chance, 4) ? 2 + one_in(chance, 4) : 1;
    run->scarce_memory = run->n_spaces == 1 && !one_in(chance, 8);
    // With all the memory it can use a drive has 32 MiB of rows: better few large ones.
    g->page_bytes = run->scarce_memory ? 512u << below(chance, 2) : 8192;
    uint32_t widest = 1;
    for (uint32_t i = 0; i < run->n_spaces; i++) {
        draw_config(run, &run->spaces[i].config);
        widest = (uint32_t)max_u64(widest, widest_row(run, &run->spaces[i].config));
    }
    // Few rows in a segment, so that segments come and go.
    uint32_t rows = 1 + below(chance, 4);
    uint32_t pages = (uint32_t)div_round_up((uint64_t)(rows + (g->dies > 1)) * widest, g->dies) + 1;
    g->pages_per_block = pages + pages / 16 + 1;
    g->oob = g->pages_per_block % 2; // not drawn: seeds stay what they are
    run->scarce_flash = one_in(chance, 3);
    g->blocks = (run->scarce_flash ? 8 + below(chance, 60) : 4096) * g->dies;
    run->shape.views = g->dies == 1 && one_in(chance, 6);
    run->shape.no_read_ahead = one_in(chance, 4);
    run->shape.no_row_cache = one_in(chance, 2);
    // Memory: the least that CONFIG takes and a little, or as much as it can use.
    uint64_t least = 0, good = 0;
    for (uint32_t i = 0; i < run->n_spaces; i++) {
        struct drive_plan plan;
        if (drive_plan(&plan, g, &run->spaces[i].config, 0, NULL))
            continue;
        least += plan.min_dram_bytes;
        good += plan.good_dram_bytes;
    }
    run->shape.dram_bytes =
        run->scarce_memory ? least + below(chance, 8) * (uint64_t)16384 : good + (8 << 20);
    draw_plan(run);
    run->depth = 1 + below(chance, depths[below(chance, COUNT(depths))]);
    run->commands = 50 + below(chance, 1000);
}

// ---- sending -----------------------------------------------------------------------------------

static struct flight *new_flight(struct run *run, uint8_t opcode)
{
    for (uint32_t i = 0; i < RUN_FLIGHTS; i++) {
        struct flight *f = &run->flights[i];
        if (f->used)
            continue;
        *f = (struct flight){.command = {.opcode = opcode, .cid = (uint16_t)i}};
        return f;
    }
    return NULL;
}

static void outlook_touch(struct run *run, const struct flight *f, int by)
{
    const struct command *c = &f->command;
    if (c->space >= MODEL_SPACES)
        return;
    for (uint32_t i = 0; i < c->count && i < RUN_ITEMS; i++) {
        const struct table_item *item = &f->items[i];
        uint32_t n = item->seq_count ? item->seq_count : 1;
        for (uint32_t s = item->seq; s < item->seq + n && s < MODEL_SEQUENCES; s++)
            run->outlook[c->space][s].on_their_way += (uint32_t)by;
        if (c->opcode == OP_FORK && item->parent < MODEL_SEQUENCES)
            run->outlook[c->space][item->parent].on_their_way += (uint32_t)by;
    }
}

// Nothing is on its way any more: what the model says counts.
static void outlook_reset(struct run *run, uint32_t space, uint32_t seq)
{
    const struct model_sequence *s = &run->spaces[space].sequences[seq];
    struct outlook *o = &run->outlook[space][seq];
    if (o->on_their_way)
        return;
    o->there = s->presence != ABSENT;
    o->epoch = s->epoch;
    for (uint32_t l = 0; l < MODEL_LAYERS; l++)
        memcpy(o->tokens[l], s->layers[l].have, sizeof o->tokens[l]);
}

void outlook_settle(struct run *run, const struct flight *f)
{
    outlook_touch(run, f, -1);
    if (f->command.space >= MODEL_SPACES)
        return;
    for (uint32_t s = 0; s < MODEL_SEQUENCES; s++)
        outlook_reset(run, f->command.space, s);
}

// Reads of what is reclaimed now may be cancelled from now on.
static void mark_cancellable(struct run *run, const struct flight *f)
{
    for (uint32_t i = 0; f->command.opcode == OP_RECLAIM && i < f->command.count && i < RUN_ITEMS;
         i++) {
        uint32_t first = f->items[i].seq, n = f->items[i].seq_count ? f->items[i].seq_count : 1;
        for (uint32_t t = 0; t < RUN_TICKETS; t++) {
            struct ticket *ticket = &run->tickets[t];
            for (uint32_t j = 0; ticket->state >= TICKET_SENT && j < ticket->count; j++)
                ticket->cancellable |= ticket->space == f->command.space &&
                                       ticket->items[j].seq >= first &&
                                       ticket->items[j].seq - first < n;
        }
    }
}

// Hands it over, waiting while the queue is full.
static bool send(struct run *run, struct flight *f)
{
    uint8_t op = f->command.opcode;
    f->queued = op == OP_CONFIG || op == OP_WRITE || op == OP_READ || op == OP_ATTEND ||
                op == OP_FORK || op == OP_RECLAIM || op == OP_FLUSH;
    f->used = true;
    for (int i = 0; !port_submit(&run->port, &f->command, &f->buffer); i++) {
        f->used = false;
        if (i == 20000)
            return wrong(run, "the queue stays full");
        if (!run_step(run))
            return false;
        f->used = true;
    }
    f->bad_reads = run->chaos->bad_reads;
    f->sync_faults = run->chaos->sync_faults;
    f->order = f->queued ? run->order++ : 0;
    if (f->ticket && op != OP_COLLECT) {
        f->ticket->state = TICKET_SENT;
        f->ticket->bad_reads = f->bad_reads;
    }
    f->deadline_ns = f->command.timeout_ms
                         ? run->port.now_ns + (uint64_t)f->command.timeout_ms * 1000000
                         : UINT64_MAX;
    outlook_touch(run, f, 1);
    mark_cancellable(run, f);
    run->counts->commands++;
    run->counts->interleavings += run->n_flights || chaos_in_flight(run->port.flash);
    run->n_flights++;
    run->n_collects += op == OP_COLLECT;
    tell_command(run, "send", f, 0);
    return true;
}

// Puts the table down and sends.
static bool send_table(struct run *run, struct flight *f, size_t data_bytes)
{
    f->buffer = port_buffer_new(f->command.count, data_bytes);
    port_buffer_table(&f->buffer, &f->header, f->items, f->command.count);
    return send(run, f);
}

bool send_config(struct run *run, uint32_t space, const struct space_config *config)
{
    struct flight *f = new_flight(run, OP_CONFIG);
    if (!f)
        return true;
    f->command.space = space;
    f->config = *config;
    f->buffer = port_buffer_config(config);
    return send(run, f);
}

bool send_simple(struct run *run, uint8_t opcode)
{
    struct flight *f = new_flight(run, opcode);
    if (!f)
        return true;
    if (opcode == OP_STAT || opcode == OP_IDENTIFY)
        f->buffer = port_buffer_new(0, opcode == OP_STAT ? STAT_TABLE_BYTES : IDENTIFY_TABLE_BYTES);
    return send(run, f);
}

bool send_remove_space(struct run *run, uint32_t space)
{
    struct flight *f = new_flight(run, OP_REMOVE);
    if (!f)
        return true;
    f->command.space = space;
    return send(run, f);
}

// ---- choosing ----------------------------------------------------------------------------------

static uint32_t draw_space(struct run *run)
{
    return below(&run->chance, run->n_spaces);
}

// A sequence that is there, if one can be found; else any.
static uint32_t draw_sequence(struct run *run, uint32_t space)
{
    uint32_t seq = 0;
    for (int i = 0; i < 6; i++) {
        seq = below(&run->chance, MODEL_SEQUENCES);
        if (run->outlook[space][seq].there)
            return seq;
    }
    return seq;
}

static uint32_t expected_tokens(const struct run *run, uint32_t space, uint32_t seq, uint32_t layer)
{
    uint32_t tokens = UINT32_MAX;
    for (uint32_t h = 0; h < run->spaces[space].config.kv_heads; h++)
        tokens = (uint32_t)min_u64(tokens, run->outlook[space][seq].tokens[layer][h]);
    return tokens;
}

// Layers are filled alike, as a rule.
static uint32_t draw_layer(struct run *run, uint32_t space, uint32_t seq)
{
    uint32_t layers = run->spaces[space].config.layers, layer = below(&run->chance, layers);
    for (uint32_t l = 0; l < layers && !one_in(&run->chance, 6); l++) {
        if (expected_tokens(run, space, seq, l) < expected_tokens(run, space, seq, layer))
            layer = l;
    }
    return layer;
}

// The sequence's, or the next one that was never used.
static uint32_t good_epoch(struct run *run, uint32_t space, uint32_t seq)
{
    struct outlook *o = &run->outlook[space][seq];
    if (o->there)
        return o->epoch;
    return o->last_epoch =
               1 + (uint32_t)max_u64(o->last_epoch, run->spaces[space].sequences[seq].epoch);
}

static uint32_t draw_epoch(struct run *run, uint32_t space, uint32_t seq)
{
    uint32_t epoch = good_epoch(run, space, seq);
    return one_in(&run->chance, 60) ? epoch - 1 : epoch; // a stale one
}

static struct ticket *new_ticket(struct run *run)
{
    for (uint32_t i = 0; i < RUN_TICKETS; i++) {
        struct ticket *t = &run->tickets[i];
        if (t->state != TICKET_FREE)
            continue;
        *t = (struct ticket){.number = run->numbers++ * 2654435761u};
        return t;
    }
    return NULL;
}

// One that a COLLECT waits for already, or a fresh one.
static struct ticket *draw_ticket(struct run *run)
{
    for (uint32_t i = 0; i < RUN_TICKETS && !one_in(&run->chance, 4); i++) {
        if (run->tickets[i].state == TICKET_AWAITED)
            return &run->tickets[i];
    }
    return new_ticket(run);
}

// ---- WRITE -------------------------------------------------------------------------------------

static void fill_slab(const struct run *run, const struct flight *f, uint32_t index, uint8_t *slab)
{
    const struct table_item *item = &f->items[index];
    uint32_t dim = run->spaces[f->command.space].config.head_dim;
    uint16_t *p = (uint16_t *)slab;
    for (uint32_t h = 0; h < f->header.head_count; h++) {
        for (int v = 0; v < 2; v++) {
            for (uint32_t t = 0; t < item->n_tokens; t++, p += dim)
                memcpy(p,
                       model_row(f->who[index], f->command.layer, f->header.head_first + h,
                                 (uint32_t)item->pos + t, v),
                       2 * dim);
        }
    }
}

static size_t slab_size(const struct run *run, const struct flight *f, uint32_t index)
{
    uint64_t bytes = 0;
    slab_bytes(f->header.head_count, f->items[index].n_tokens,
               run->spaces[f->command.space].config.head_dim, &bytes);
    return (bytes + 63) / 64 * 64;
}

static bool send_write(struct run *run, struct flight *f)
{
    size_t bytes = 0, at = 0;
    for (uint32_t i = 0; i < f->command.count; i++)
        bytes += slab_size(run, f, i);
    f->buffer = port_buffer_new(f->command.count, bytes);
    port_buffer_table(&f->buffer, &f->header, f->items, f->command.count);
    for (uint32_t i = 0; i < f->command.count; i++) {
        fill_slab(run, f, i, f->buffer.data + at);
        at += slab_size(run, f, i);
    }
    return send(run, f);
}

// True when another item of the command is about the same sequence.
static bool twice(const struct flight *f, uint32_t index)
{
    for (uint32_t i = 0; i < index; i++) {
        if (f->items[i].seq == f->items[index].seq)
            return true;
    }
    return false;
}

static bool draw_write(struct run *run)
{
    struct chance *chance = &run->chance;
    struct flight *f = new_flight(run, OP_WRITE);
    if (!f)
        return true;
    uint32_t space = draw_space(run);
    const struct space_config *c = &run->spaces[space].config;
    // Where they are to fill rows of an index they are longer.
    uint32_t group = c->piece_flash ? 128 : c->group_tokens;
    uint32_t n_items = one_in(chance, 4) ? 2 + below(chance, 2) : 1;
    f->command.space = space;
    f->header.head_count = c->kv_heads;
    if (c->kv_heads > 1 && one_in(chance, 4)) { // some heads
        f->header.head_first = below(chance, c->kv_heads);
        f->header.head_count = 1 + below(chance, c->kv_heads - f->header.head_first);
    }
    for (uint32_t i = 0; i < n_items; i++) {
        struct table_item *item = &f->items[f->command.count];
        uint32_t seq =
            one_in(chance, 5) ? below(chance, MODEL_SEQUENCES) : draw_sequence(run, space);
        struct outlook *o = &run->outlook[space][seq];
        if (!i)
            f->command.layer = draw_layer(run, space, seq);
        uint32_t *tokens = o->tokens[f->command.layer], at = UINT32_MAX;
        for (uint32_t h = 0; h < f->header.head_count; h++)
            at = (uint32_t)min_u64(at, tokens[f->header.head_first + h]);
        uint32_t pos = o->there ? at : 0,
                 n = 1 + below(chance, one_in(chance, 3) ? 3 * group : group);
        if (pos && one_in(chance, 8)) // partly or wholly a replay
            pos -= 1 + below(chance, pos);
        else if (one_in(chance, 30))
            pos += 1 + below(chance, 3);
        if (pos + n > MODEL_TOKENS)
            continue;
        *item = (struct table_item){.seq = seq,
                                    .epoch = draw_epoch(run, space, seq),
                                    .pos = pos,
                                    .n_tokens = n,
                                    .lifetime = below(chance, 3) * (1 + below(chance, 2))};
        if (!pos) // a stale epoch must not make a sequence
            item->epoch = good_epoch(run, space, seq);
        if (twice(f, f->command.count))
            continue;
        f->who[f->command.count++] = run->writers++;
        if (!o->there)
            o->epoch = item->epoch;
        o->there = true;
        for (uint32_t h = f->header.head_first; h < f->header.head_first + f->header.head_count;
             h++)
            tokens[h] = (uint32_t)max_u64(tokens[h], pos + n);
    }
    return !f->command.count || send_write(run, f);
}

// ---- ATTEND, READ, COLLECT ---------------------------------------------------------------------

static void fill_attend(const struct run *run, const struct flight *f,
                        const struct attend_layout *layout, bool append)
{
    const struct space_config *c = &run->spaces[f->command.space].config;
    uint32_t dim = c->head_dim, q_heads = f->header.q_heads;
    float *q = (float *)(f->buffer.data + layout->q);
    for (uint32_t i = 0; i < f->command.count; i++) {
        for (uint32_t h = 0; h < q_heads; h++)
            memcpy(q + ((size_t)i * q_heads + h) * dim,
                   model_query(f->ticket->q_name + i * (Q_NAMES / RUN_ITEMS) + h), 4 * dim);
        for (uint32_t h = 0; append && h < c->kv_heads; h++) {
            size_t at = ((size_t)i * c->kv_heads + h) * dim;
            uint32_t pos = (uint32_t)f->items[i].pos;
            memcpy((uint16_t *)(f->buffer.data + layout->k) + at,
                   model_row(f->who[i], f->command.layer, h, pos, false), 2 * dim);
            memcpy((uint16_t *)(f->buffer.data + layout->v) + at,
                   model_row(f->who[i], f->command.layer, h, pos, true), 2 * dim);
        }
    }
}

static bool send_ticketed(struct run *run, struct flight *f, struct ticket *t)
{
    struct attend_layout layout;
    bool append = false;
    uint8_t op = f->command.opcode;
    f->ticket = t;
    f->command.ticket = t->number;
    t->state = TICKET_SENT; // a COLLECT that times out while the drive's queue is full leaves it be
    t->opcode = op;
    t->space = f->command.space;
    t->layer = f->command.layer;
    t->count = f->command.count;
    t->header = f->header;
    memcpy(t->items, f->items, sizeof t->items);
    t->q_name = ++run->q_names * Q_NAMES;
    t->cancellable = false;
    if (op == OP_READ) {
        t->bytes = 0;
        for (uint32_t i = 0; i < f->command.count; i++)
            t->bytes += slab_size(run, f, i);
        return send_table(run, f, 0);
    }
    for (uint32_t i = 0; i < f->command.count; i++)
        append |= f->items[i].n_tokens == 1;
    const struct space_config *c = &run->spaces[t->space].config;
    if (!attend_layout(&layout, f->command.count, f->header.q_heads, c->kv_heads, c->head_dim,
                       append))
        return wrong(run, "attend_layout overflows");
    t->bytes = layout.out_bytes;
    f->buffer = port_buffer_new(f->command.count, layout.in_bytes);
    port_buffer_table(&f->buffer, &f->header, f->items, f->command.count);
    fill_attend(run, f, &layout, append);
    f->header.head_count = run->spaces[t->space].config.kv_heads; // what it appends
    return send(run, f);
}

static void draw_method(struct run *run, const struct space_config *c, struct table_header *h)
{
    struct chance *chance = &run->chance;
    h->q_heads = c->kv_heads * (1 + below(chance, c->q_heads / c->kv_heads));
    h->scale = 1 / sqrtf((float)c->head_dim);
    h->softcap = one_in(chance, 8) ? 5 : 0;
    h->method = c->method != METHOD_DENSE && below(chance, 3) ? c->method : METHOD_DENSE;
    if (h->method == METHOD_PAGES) {
        h->pages_ratio = c->piece_look && below(chance, 4) ? 0.03f : (float)below(chance, 9) / 8;
        h->pages_mass = one_in(chance, 3) ? 0.7f : 0;
        h->pages_local = 1 + below(chance, 40);
        h->pages_rest = !c->piece_flash && one_in(chance, 2);
        h->audit = one_in(chance, 4);
    }
    if (h->method != METHOD_SPARF)
        return;
    h->sparf_channels = below(chance, c->head_dim + 1);
    h->sparf_tokens = below(chance, 2) ? below(chance, 80) : 0;
    h->sparf_divisor = below(chance, 12);
    h->sparf_local = below(chance, 2) ? below(chance, 30) : 0;
    h->audit = one_in(chance, 4);
}

static bool draw_attend(struct run *run)
{
    struct chance *chance = &run->chance;
    struct flight *f = new_flight(run, OP_ATTEND);
    struct ticket *t = f ? draw_ticket(run) : NULL;
    if (!t)
        return true;
    uint32_t space = draw_space(run),
             n_items = one_in(chance, 2) ? 1 + below(chance, RUN_ITEMS) : 1;
    f->command.space = space;
    draw_method(run, &run->spaces[space].config, &f->header);
    for (uint32_t i = 0; i < n_items; i++) {
        struct table_item *item = &f->items[f->command.count];
        uint32_t seq = draw_sequence(run, space);
        if (!i)
            f->command.layer = draw_layer(run, space, seq);
        uint32_t tokens = expected_tokens(run, space, seq, f->command.layer);
        bool append = tokens < MODEL_TOKENS && below(chance, 8) < 5;
        *item = (struct table_item){.seq = seq,
                                    .epoch = draw_epoch(run, space, seq),
                                    .pos = tokens,
                                    .n_tokens = append,
                                    .lifetime = below(chance, 3)};
        if (!append && tokens && one_in(chance, 3))
            item->pos = 1 + below(chance, tokens);
        else if (append && tokens && one_in(chance, 12))
            item->pos = below(chance, tokens); // a replay
        else if (one_in(chance, 40))
            item->pos = tokens + 1;
        if (f->header.method == METHOD_DENSE && one_in(chance, 4))
            item->window = below(chance, (uint32_t)(item->pos + append) + 1);
        if (item->window >= item->pos + append)
            item->window = 0;
        if (item->pos + append > MODEL_TOKENS)
            continue;
        if (!item->pos)
            item->epoch = good_epoch(run, space, seq);
        f->who[f->command.count++] = run->writers++;
        struct outlook *o = &run->outlook[space][seq];
        for (uint32_t h = 0; append && item->pos == tokens && h < MODEL_HEADS; h++)
            o->tokens[f->command.layer][h] =
                (uint32_t)max_u64(o->tokens[f->command.layer][h], tokens + 1);
        if (append && !o->there) {
            o->there = true;
            o->epoch = item->epoch;
        }
    }
    return !f->command.count || send_ticketed(run, f, t);
}

bool send_attend(struct run *run, uint32_t space, uint32_t seq, uint32_t layer, uint32_t pos)
{
    struct flight *f = new_flight(run, OP_ATTEND);
    struct ticket *t = f ? new_ticket(run) : NULL;
    if (!t)
        return true;
    f->command.space = space;
    f->command.layer = layer;
    f->command.count = 1;
    draw_method(run, &run->spaces[space].config, &f->header);
    f->items[0] = (struct table_item){
        .seq = seq, .epoch = run->spaces[space].sequences[seq].epoch, .pos = pos};
    return send_ticketed(run, f, t);
}

bool send_read(struct run *run, uint32_t space, uint32_t seq, uint32_t layer, uint32_t n)
{
    struct flight *f = new_flight(run, OP_READ);
    struct ticket *t = f ? new_ticket(run) : NULL;
    if (!t)
        return true;
    f->command.space = space;
    f->command.layer = layer;
    f->command.count = 1;
    f->header.head_count = run->spaces[space].config.kv_heads;
    f->items[0] = (struct table_item){
        .seq = seq, .epoch = run->spaces[space].sequences[seq].epoch, .n_tokens = n};
    return send_ticketed(run, f, t);
}

static bool draw_read(struct run *run)
{
    struct chance *chance = &run->chance;
    struct flight *f = new_flight(run, OP_READ);
    struct ticket *t = f ? draw_ticket(run) : NULL;
    if (!t)
        return true;
    uint32_t space = draw_space(run), n_items = one_in(chance, 3) ? 2 : 1;
    const struct space_config *c = &run->spaces[space].config;
    f->command.space = space;
    f->header.head_count = c->kv_heads;
    if (one_in(chance, 3)) {
        f->header.head_first = below(chance, c->kv_heads);
        f->header.head_count = 1 + below(chance, c->kv_heads - f->header.head_first);
    }
    for (uint32_t i = 0; i < n_items; i++) {
        uint32_t seq = draw_sequence(run, space);
        if (!i)
            f->command.layer = draw_layer(run, space, seq);
        uint32_t tokens = expected_tokens(run, space, seq, f->command.layer);
        uint32_t pos = tokens ? below(chance, tokens) : 0;
        uint32_t n = tokens > pos ? 1 + below(chance, tokens - pos) : 1;
        if (one_in(chance, 40))
            n = tokens - pos + 1;
        f->items[f->command.count++] = (struct table_item){
            .seq = seq, .epoch = draw_epoch(run, space, seq), .pos = pos, .n_tokens = n};
    }
    return send_ticketed(run, f, t);
}

bool send_collect(struct run *run, struct ticket *t, uint32_t timeout_ms, size_t bytes)
{
    enum { CANARY = 0xa5 };
    struct flight *f = new_flight(run, OP_COLLECT);
    if (!f)
        return true;
    f->ticket = t;
    f->command.ticket = t->number;
    f->command.timeout_ms = timeout_ms;
    f->buffer = port_buffer_new(0, bytes);
    if (bytes)
        memset(f->buffer.data, CANARY, bytes);
    t->collecting = true;
    t->patient = !timeout_ms;
    if (t->state == TICKET_FREE)
        t->state = TICKET_AWAITED;
    return send(run, f);
}

static bool draw_collect(struct run *run)
{
    struct chance *chance = &run->chance;
    uint32_t timeout_ms = one_in(chance, 4) ? 1 + below(chance, 3) : 0;
    uint32_t first = below(chance, RUN_TICKETS);
    struct ticket *t = NULL;
    for (uint32_t i = 0; i < RUN_TICKETS && !t; i++) {
        struct ticket *at = &run->tickets[(first + i) % RUN_TICKETS];
        if (at->state >= TICKET_SENT && !at->collecting)
            t = at;
    }
    if (!t || one_in(chance, 8)) { // before its ATTEND
        t = new_ticket(run);
        return !t || send_collect(run, t, timeout_ms, 16384);
    }
    size_t bytes = t->bytes + below(chance, 3) * 64;
    if (one_in(chance, 50))
        bytes = below(chance, (uint32_t)t->bytes); // too few
    return send_collect(run, t, timeout_ms, bytes);
}

static bool draw_abort(struct run *run)
{
    struct ticket *t = &run->tickets[below(&run->chance, RUN_TICKETS)];
    if (t->collecting || t->state != TICKET_OPEN)
        return true;
    struct flight *f = new_flight(run, OP_ABORT);
    if (!f)
        return true;
    f->command.ticket = t->number;
    ticket_forget(t);
    return send(run, f);
}

bool send_for_collect(struct run *run, struct ticket *t)
{
    struct flight *f = new_flight(run, OP_ATTEND);
    if (!f)
        return true;
    f->command.count = 1;
    draw_method(run, &run->spaces[0].config, &f->header);
    f->items[0] = (struct table_item){.seq = 0, .epoch = run->spaces[0].sequences[0].epoch};
    return send_ticketed(run, f, t);
}

// ---- FORK, RECLAIM -----------------------------------------------------------------------------

static bool draw_fork(struct run *run)
{
    struct chance *chance = &run->chance;
    struct flight *f = new_flight(run, OP_FORK);
    if (!f)
        return true;
    uint32_t space = draw_space(run), n_items = one_in(chance, 4) ? 2 : 1;
    f->command.space = space;
    for (uint32_t i = 0; i < n_items; i++) {
        uint32_t parent = draw_sequence(run, space), child = below(chance, MODEL_SEQUENCES);
        struct outlook *o = &run->outlook[space][child];
        for (int tries = 0; tries < 4 && o->there && !one_in(chance, 12); tries++) {
            child = below(chance, MODEL_SEQUENCES);
            o = &run->outlook[space][child];
        }
        uint32_t tokens = UINT32_MAX;
        for (uint32_t l = 0; l < run->spaces[space].config.layers; l++)
            tokens = (uint32_t)min_u64(tokens, expected_tokens(run, space, parent, l));
        uint32_t pos = below(chance, 2) ? below(chance, tokens + 1) : tokens;
        pos += one_in(chance, 40);
        f->items[i] = (struct table_item){.seq = child,
                                          .epoch = good_epoch(run, space, child),
                                          .pos = pos,
                                          .lifetime = below(chance, 3),
                                          .parent = parent,
                                          .parent_epoch = draw_epoch(run, space, parent)};
        const struct model_sequence *made = &run->spaces[space].sequences[child];
        if (made->presence == PRESENT && made->forked && one_in(chance, 2)) { // once more
            f->items[i].epoch = made->epoch;
            f->items[i].pos = made->fork_pos;
            f->items[i].parent = parent = made->parent;
            f->items[i].parent_epoch = made->parent_epoch;
        }
        bool chained = false;
        for (uint32_t j = 0; j < i; j++)
            chained |= f->items[j].seq == parent || f->items[j].parent == child;
        if (child == parent || chained || twice(f, i))
            break;
        f->command.count++;
        if (o->there)
            continue;
        o->there = true;
        o->epoch = f->items[i].epoch;
        for (uint32_t l = 0; l < MODEL_LAYERS; l++) {
            for (uint32_t h = 0; h < MODEL_HEADS; h++)
                o->tokens[l][h] = pos;
        }
    }
    return !f->command.count || send_table(run, f, 0);
}

static void outlook_cut(struct run *run, uint32_t space, const struct table_item *item)
{
    uint32_t n = item->seq_count ? item->seq_count : 1;
    for (uint32_t s = item->seq; s < item->seq + n && s < MODEL_SEQUENCES; s++) {
        struct outlook *o = &run->outlook[space][s];
        if (!item->pos && item->layer_count == run->spaces[space].config.layers)
            o->there = false;
        for (uint32_t l = item->layer_first; l < item->layer_first + item->layer_count; l++) {
            for (uint32_t h = 0; h < MODEL_HEADS; h++)
                o->tokens[l][h] = (uint32_t)min_u64(o->tokens[l][h], item->pos);
        }
    }
}

bool send_reclaim_all(struct run *run, uint32_t space, uint32_t seq, uint32_t count)
{
    struct flight *f = new_flight(run, OP_RECLAIM);
    if (!f)
        return true;
    f->command.space = space;
    f->command.count = 1;
    f->items[0] = (struct table_item){.seq = seq,
                                      .epoch = run->outlook[space][seq].epoch,
                                      .n_tokens = UINT64_MAX,
                                      .layer_count = run->spaces[space].config.layers,
                                      .seq_count = count};
    outlook_cut(run, space, &f->items[0]);
    return send_table(run, f, 0);
}

static bool draw_reclaim(struct run *run)
{
    struct chance *chance = &run->chance;
    struct flight *f = new_flight(run, OP_RECLAIM);
    if (!f)
        return true;
    uint32_t space = draw_space(run), n_items = one_in(chance, 6) ? 2 : 1;
    uint32_t layers = run->spaces[space].config.layers;
    f->command.space = space;
    for (uint32_t i = 0; i < n_items; i++) {
        uint32_t seq = draw_sequence(run, space);
        struct table_item *item = &f->items[i];
        *item = (struct table_item){
            .seq = seq, .epoch = draw_epoch(run, space, seq), .n_tokens = UINT64_MAX};
        bool lost = run->spaces[space].sequences[seq].lost;
        if (lost || one_in(chance, 8))
            item->seq_count = 1 + below(chance, 3);
        item->layer_count = layers;
        if (twice(f, i))
            break;
        f->command.count++;
        uint32_t kind = lost ? 0 : below(chance, 8);
        if (kind < 3) { // the whole sequence
            outlook_cut(run, space, item);
            continue;
        }
        if (one_in(chance, 2)) {
            item->layer_first = below(chance, layers);
            item->layer_count = 1 + below(chance, layers - item->layer_first);
        }
        item->pos = below(chance, expected_tokens(run, space, seq, item->layer_first) + 2);
        if (kind < 7)
            outlook_cut(run, space, item); // a cut
        else
            item->n_tokens = below(chance, MODEL_TOKENS);
    }
    return send_table(run, f, 0);
}

// ---- wrong on purpose --------------------------------------------------------------------------

static bool draw_wrong_table(struct run *run)
{
    static const uint8_t opcodes[] = {OP_WRITE, OP_READ, OP_ATTEND, OP_FORK, OP_RECLAIM};
    struct chance *chance = &run->chance;
    struct flight *f = new_flight(run, opcodes[below(chance, COUNT(opcodes))]);
    if (!f)
        return true;
    uint32_t space = draw_space(run), seq = draw_sequence(run, space);
    const struct space_config *c = &run->spaces[space].config;
    struct command *command = &f->command;
    command->space = space;
    command->count = 1;
    command->ticket = run->numbers++ * 2654435761u;
    f->header =
        (struct table_header){.head_count = c->kv_heads, .q_heads = c->kv_heads, .scale = 1};
    f->items[0] = (struct table_item){.seq = seq,
                                      .epoch = run->outlook[space][seq].epoch,
                                      .n_tokens = command->opcode == OP_RECLAIM ? UINT64_MAX : 1,
                                      .layer_count = c->layers};
    f->refusal = INST_EINVAL;
    size_t bytes = 0;
    bool layered = command->opcode != OP_FORK && command->opcode != OP_RECLAIM;
    switch (below(chance, layered ? 5 : 3)) {
    case 0:
        command->space = 77;
        f->refusal = INST_ENOENT;
        break;
    case 1:
        f->buffer = port_buffer_new(1, 0);
        port_buffer_table(&f->buffer, &f->header, f->items, 1);
        command->count = one_in(chance, 2) ? 0 : 5000;
        return send(run, f);
    case 2: // too short for its table
        f->buffer = port_buffer_raw(64 + below(chance, 64), 0);
        memset(f->buffer.table, 0, f->buffer.table_bytes);
        table_put_header(f->buffer.table, &f->header);
        return send(run, f);
    case 3:
        command->layer = c->layers + below(chance, 2);
        break;
    default: // data missing, or something in the header
        if (command->opcode == OP_READ)
            f->header.head_count = c->kv_heads + 1;
        if (command->opcode == OP_ATTEND && one_in(chance, 2)) {
            f->header.scale = NAN;
            bytes = 65536;
        }
    }
    return send_table(run, f, bytes);
}

static bool draw_wrong(struct run *run)
{
    static const uint8_t none[] = {0, 1, 0xc1, 0xc3, 0xee, 0xff};
    struct chance *chance = &run->chance;
    struct flight *f;
    struct ticket *t = &run->tickets[below(chance, RUN_TICKETS)];
    struct space_config config;
    switch (below(chance, 6)) {
    case 0:
    case 1:
        return draw_wrong_table(run);
    case 2: // a ticket that is in use
        f = new_flight(run, OP_READ);
        if (!f || t->state != TICKET_OPEN || t->collecting)
            return true;
        f->command.ticket = t->number;
        f->command.count = f->header.head_count = 1;
        f->items[0].n_tokens = 1;
        f->refusal = 1; // or for what else is wrong with it
        f->blocked = t;
        t->collecting = true; // it must still be there
        return send_table(run, f, 0);
    case 3: // a ticket that is being collected
        f = new_flight(run, OP_COLLECT);
        if (!f || !t->patient || t->state != TICKET_AWAITED)
            return true;
        f->command.ticket = t->number;
        f->buffer = port_buffer_new(0, 64);
        f->refusal = INST_EEXIST;
        return send(run, f);
    case 4:
        f = new_flight(run, none[below(chance, COUNT(none))]);
        if (!f)
            return true;
        f->refusal = INST_ENOTSUP;
        return send(run, f);
    default:
        draw_config(run, &config);
        if (one_in(chance, 2))
            config.head_dim = 0;
        else
            config.group_tokens = 24;
        f = new_flight(run, OP_CONFIG);
        if (!f)
            return true;
        f->config = config;
        f->command.space = 50;
        f->refusal = INST_EINVAL;
        f->buffer = port_buffer_config(&config);
        return send(run, f);
    }
}

// ---- one command -------------------------------------------------------------------------------

bool draw_command(struct run *run)
{
    struct chance *chance = &run->chance;
    uint32_t kind = below(chance, 100);
    if (kind < 28)
        return draw_write(run);
    if (kind < 50)
        return draw_attend(run);
    if (kind < 60)
        return draw_read(run);
    if (kind < 78)
        return draw_collect(run);
    if (kind < 80)
        return draw_abort(run);
    if (kind < 86)
        return draw_fork(run);
    if (kind < 93)
        return draw_reclaim(run);
    if (kind < 96)
        return draw_wrong(run);
    if (kind < 97)
        return send_config(run, draw_space(run), &run->spaces[0].config);
    if (kind < 98)
        return send_simple(run, OP_FLUSH);
    return send_simple(run, one_in(chance, 4) ? OP_IDENTIFY : OP_STAT);
}
