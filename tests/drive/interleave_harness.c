// SPDX-License-Identifier: Apache-2.0
// A run from its shape to its end.
#include "interleave_harness.h"
#include "base/checked.h"
#include "interleave_run.h"
#include "kernels/kv.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum {
    DRAIN_STEPS = 20000, // far more than any command takes once flash answers at once
    IDLE_NS = 20000000,  // the drive erases when it has been idle for less than that
    CHECK_EACH = 64,     // steps
    VERIFY_BATCH = 16,
};

bool wrong(struct run *run, const char *format, ...)
{
    va_list args;
    char text[sizeof run->msg->text];
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    inst_fail(run->msg, INST_EINTERNAL, "%s", text);
    run->failed = true;
    tell(run, "WRONG: %s\n", text);
    return false;
}

void tell(struct run *run, const char *format, ...)
{
    va_list args;
    if (!run->trace)
        return;
    va_start(args, format);
    vfprintf(run->trace, format, args);
    va_end(args);
}

void tell_command(struct run *run, const char *what, const struct flight *f, int status)
{
    if (!run->trace)
        return;
    const struct command *c = &f->command;
    tell(run, "%s %3u %-8s %s space %u layer %u ticket %08x timeout %u", what, c->cid,
         opcode_name(c->opcode), status ? inst_status_text(status) : "", c->space, c->layer,
         c->ticket, c->timeout_ms);
    for (uint32_t i = 0; i < c->count && i < RUN_ITEMS; i++) {
        const struct table_item *t = &f->items[i];
        tell(run, " {%u.%u @%llu +%lld", t->seq, t->epoch, (unsigned long long)t->pos,
             (long long)t->n_tokens);
        if (c->opcode == OP_FORK)
            tell(run, " of %u.%u", t->parent, t->parent_epoch);
        if (c->opcode == OP_RECLAIM)
            tell(run, " layers %u+%u sequences %u", t->layer_first, t->layer_count, t->seq_count);
        if (t->window)
            tell(run, " window %llu", (unsigned long long)t->window);
        if (f->who[i])
            tell(run, " by %u", f->who[i]);
        tell(run, "}");
    }
    tell(run, " heads %u+%u method %u\n", f->header.head_first, f->header.head_count,
         f->header.method);
}

void forgive(struct run *run, enum fault fault)
{
    tell(run, "FORGIVEN: %s\n", known_faults[fault].name);
    run->counts->forgiven[fault]++;
}

static bool check(struct run *run)
{
    struct inst_msg msg = {0};
    if (!port_check(&run->port, &msg))
        return true;
    if (known(FAULT_REFUSED_APPEND_STARVES) && (run->scarce_memory || run->scarce_flash) &&
        strstr(msg.text, "users of frames"))
        return true;
    if (known(FAULT_PROGRAM_ERROR_KILLS) && run->chaos->program_faults &&
        strstr(msg.text, "complete channel groups"))
        return true; // of a sequence that was killed in the middle of a WRITE
    return wrong(run, "drive_check: %s", msg.text);
}

// ---- steps -------------------------------------------------------------------------------------

static bool step(struct run *run, uint64_t ns, size_t max)
{
    enum { MOST = 64 };
    struct completion done[MOST];
    size_t n = port_step(&run->port, ns, done, min_u64(max, MOST));
    run->counts->steps++;
    for (size_t i = 0; i < n && !run->over; i++) {
        if (!judge(run, &done[i]))
            return false;
    }
    // A WRITE that waits in the middle is not what drive_check looks at.
    if (run->over || run->order != run->expected_order || run->counts->steps % CHECK_EACH)
        return true;
    return check(run);
}

bool run_step(struct run *run)
{
    static const uint64_t times[] = {1000, 50, 100000, 1000000, 7000000};
    uint64_t ns = one_in(&run->chance, 8) ? times[below(&run->chance, 5)] : 1000;
    return step(run, ns, one_in(&run->chance, 8) ? below(&run->chance, 3) : 64);
}

// Commands that can wait for ever: COLLECTs whose ticket was not sent.
static uint32_t patient_collects(const struct run *run)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < RUN_FLIGHTS; i++) {
        const struct flight *f = &run->flights[i];
        n += f->used && f->command.opcode == OP_COLLECT && f->ticket &&
             f->ticket->state == TICKET_AWAITED && !f->command.timeout_ms;
    }
    return n;
}

// Everything on its way comes to its end. The flash answers at once, so each step must do
// something until there is nothing left.
static bool drain(struct run *run)
{
    chaos_calm(run->port.flash, true);
    for (int i = 0; i < DRAIN_STEPS; i++) {
        uint32_t waiting = patient_collects(run), timed = 0;
        bool rest = run->n_flights == waiting;
        if (rest && !chaos_in_flight(run->port.flash) && !port_runnable(&run->port)) {
            chaos_calm(run->port.flash, false);
            return true;
        }
        for (uint32_t j = 0; j < RUN_FLIGHTS; j++) {
            const struct flight *f = &run->flights[j];
            timed += f->used && f->command.opcode == OP_COLLECT && f->command.timeout_ms;
        }
        bool asleep = !chaos_in_flight(run->port.flash) && !port_runnable(&run->port);
        bool starves = run->scarce_memory && known(FAULT_REFUSED_APPEND_STARVES);
        if (starves && ((asleep && run->n_flights > waiting + timed) || i == DRAIN_STEPS - 1)) {
            forgive(run, FAULT_REFUSED_APPEND_STARVES);
            return run->over = true;
        }
        if (asleep && run->n_flights > waiting + timed)
            return wrong(run, "the drive sleeps with %u commands to do",
                         run->n_flights - waiting - timed);
        if (!step(run, asleep ? 500000 : 1000, 64))
            return false;
        if (run->over)
            return true;
    }
    return wrong(run, "%u commands, %u operations of the flash without an end", run->n_flights,
                 chaos_in_flight(run->port.flash));
}

static bool state_unchanged(struct run *run, const struct drive_stats *a,
                            const struct drive_stats *b)
{
#define SAME(field)                                                                                \
    if (a->field != b->field)                                                                      \
    return wrong(run, "%s was refused (%s) and changed " #field " from %llu to %llu",              \
                 opcode_name(run->last_opcode), inst_status_text(run->last_status),                \
                 (unsigned long long)a->field, (unsigned long long)b->field)
    SAME(sequences);
    SAME(rows_in_dram);
    SAME(stream_bytes);
    SAME(live_bytes);
    SAME(allocated_bytes);
    SAME(free_bytes);
#undef SAME
    if (b->dram_used_bytes > a->dram_used_bytes)
        return wrong(run, "%s was refused (%s) and took %llu bytes of DRAM",
                     opcode_name(run->last_opcode), inst_status_text(run->last_status),
                     (unsigned long long)(b->dram_used_bytes - a->dram_used_bytes));
    return true;
}

static bool stats_of(struct run *run, struct drive_stats *stats)
{
    return !port_stats(&run->port, stats) || wrong(run, "STAT fails");
}

// The run goes on: nothing is wrong, and no known fault has ended it.
static bool well(const struct run *run)
{
    return !run->failed && !run->over;
}

// One command alone: what is refused leaves no trace.
static bool quiet_check(struct run *run)
{
    struct drive_stats before, after;
    if (!drain(run) || !well(run) || run->n_flights)
        return !run->failed;
    if (!send_simple(run, OP_FLUSH) || !drain(run) || !well(run) || !stats_of(run, &before) ||
        !draw_command(run) || !drain(run) || !well(run))
        return !run->failed;
    struct ticket *t = run->last_ticket;
    bool collected = run->last_opcode == OP_COLLECT; // COLLECT alone gives memory back
    if (run->last_opcode == OP_ATTEND && !run->last_status &&
        (!send_collect(run, t, 0, t->bytes) || !drain(run) || !well(run)))
        return !run->failed;
    if (!stats_of(run, &after))
        return false;
    run->counts->quiet_checks++;
    if (collected || !run->last_refused || known(FAULT_REFUSAL_CHANGES_STATE))
        return true;
    return state_unchanged(run, &before, &after);
}

// What a command that nobody hears of any more may have done to the sequences it names.
static void lose_sequences(struct run *run, const struct flight *f)
{
    uint8_t op = f->command.opcode;
    if (f->command.space >= MODEL_SPACES ||
        (op != OP_WRITE && op != OP_ATTEND && op != OP_FORK && op != OP_RECLAIM))
        return;
    struct model_space *space = &run->spaces[f->command.space];
    for (uint32_t i = 0; i < f->command.count && i < RUN_ITEMS; i++) {
        const struct table_item *item = &f->items[i];
        uint32_t n = item->seq_count ? item->seq_count : 1;
        for (uint32_t seq = item->seq; seq < item->seq + n && seq < MODEL_SEQUENCES; seq++) {
            struct model_sequence *s = &space->sequences[seq];
            if (op == OP_RECLAIM && s->presence == ABSENT)
                continue;
            s->lost = true;
            s->presence = PERHAPS;
        }
    }
}

// The host goes away and comes back: nothing of what it had under way is heard of again.
static bool lose_connection(struct run *run)
{
    struct completion done;
    tell(run, "the connection is lost\n");
    for (int i = 0; !port_abort(&run->port); i++) {
        if (i == DRAIN_STEPS)
            return wrong(run, "drive_abort never ends");
        if (port_step(&run->port, 1000, &done, 1))
            return wrong(run, "cid %u completes for an owner that has gone", done.cid);
    }
    for (uint32_t i = 0; i < RUN_FLIGHTS; i++) {
        struct flight *f = &run->flights[i];
        if (!f->used)
            continue;
        lose_sequences(run, f);
        outlook_settle(run, f);
        port_buffer_free(&f->buffer);
        f->used = false;
    }
    for (uint32_t i = 0; i < RUN_TICKETS; i++)
        ticket_forget(&run->tickets[i]);
    run->n_flights = run->n_collects = 0;
    run->expected_order = run->order;
    return true;
}

static bool send_remove(struct run *run, uint32_t space)
{
    if (!send_remove_space(run, space) || !drain(run) || !well(run))
        return false;
    for (uint32_t seq = 0; seq < MODEL_SEQUENCES; seq++) {
        run->spaces[space].sequences[seq].presence = ABSENT;
        run->spaces[space].sequences[seq].lost = false;
    }
    run->spaces[space].open = false;
    return true;
}

// A space ends with all that is in it, and another one takes its number.
static bool replace_space(struct run *run)
{
    uint32_t space = below(&run->chance, run->n_spaces);
    if (!send_remove(run, space) || !send_config(run, space, &run->spaces[space].config) ||
        !drain(run) || !well(run))
        return !run->failed;
    return run->spaces[space].open || wrong(run, "CONFIG after REMOVE of space %u: %s", space,
                                            inst_status_text(run->last_status));
}

// ---- beginning and end -------------------------------------------------------------------------

static bool begin(struct run *run)
{
    struct inst_msg msg = {0};
    struct drive_stats stats;
    run->writers = run->numbers = 1;
    draw_shape(run);
    if (one_in(&run->chance, 3)) // arithmetic ends in any order as well
        run->shape.late_engine = 1 + below(&run->chance, INT32_MAX);
    const struct flash_geometry *g = &run->shape.geometry;
    tell(run,
         "page %u%s, block %u pages, %u dies, %llu blocks, DRAM %llu (%s), flash %s, %s%s%s%s, "
         "depth "
         "%u, %u commands\n",
         g->page_bytes, g->oob ? " and OOB" : "", g->pages_per_block, g->dies,
         (unsigned long long)g->blocks, (unsigned long long)run->shape.dram_bytes,
         run->scarce_memory ? "scarce" : "plenty", run->scarce_flash ? "scarce" : "plenty",
         run->shape.views ? "views" : "reads", run->shape.no_read_ahead ? "" : ", read-ahead",
         run->shape.no_row_cache ? "" : ", row cache",
         run->shape.late_engine ? ", late engine" : "", run->depth, run->commands);
    if (port_open(&run->port, &run->shape, &run->chance, &msg))
        return wrong(run, "open: %s", msg.text);
    run->chaos = chaos_count(run->port.flash);
    if (!stats_of(run, &stats))
        return false;
    run->empty_dram = stats.dram_used_bytes;
    for (uint32_t i = 0; i < run->n_spaces; i++) {
        const struct space_config *c = &run->spaces[i].config;
        tell(run,
             "space %u: %u layers, %u KV heads of %u as %s, %u query heads, T %u, method %u, page "
             "channels %u, %u sequences of %llu\n",
             i, c->layers, c->kv_heads, c->head_dim, kv_type_name(c->kv_type), c->q_heads,
             c->group_tokens, c->method, c->page_channels, c->max_sequences,
             (unsigned long long)c->max_tokens);
        if (!send_config(run, i, c) || !drain(run))
            return false;
        if (!run->spaces[i].open)
            return wrong(run, "CONFIG of space %u: %s", i, inst_status_text(run->last_status));
    }
    chaos_set(run->port.flash, &run->plan);
    return true;
}

static bool collect_all(struct run *run)
{
    // COLLECTs that came first get something to collect.
    for (int tries = 0; tries < 3 && patient_collects(run); tries++) {
        for (uint32_t i = 0; i < RUN_TICKETS; i++) {
            if (run->tickets[i].state == TICKET_AWAITED && !send_for_collect(run, &run->tickets[i]))
                return false;
        }
        if (!drain(run) || run->over)
            return !run->failed;
        for (uint32_t i = 0; i < RUN_TICKETS; i++) {
            struct ticket *t = &run->tickets[i];
            if (t->state == TICKET_OPEN && !t->collecting && !send_collect(run, t, 0, t->bytes))
                return false;
        }
        if (!drain(run) || run->over)
            return !run->failed;
    }
    for (uint32_t i = 0; i < RUN_TICKETS; i++) {
        struct ticket *t = &run->tickets[i];
        if (t->state == TICKET_OPEN && !t->collecting && !send_collect(run, t, 0, t->bytes))
            return false;
    }
    return drain(run);
}

// Reads every sequence back.
static bool verify(struct run *run)
{
    uint32_t batch = 0;
    for (uint32_t space = 0; space < run->n_spaces; space++) {
        for (uint32_t seq = 0; seq < MODEL_SEQUENCES; seq++) {
            const struct model_sequence *s = &run->spaces[space].sequences[seq];
            for (uint32_t l = 0; l < run->spaces[space].config.layers; l++) {
                uint32_t n = model_tokens(&run->spaces[space], &s->layers[l]);
                if (s->presence != PRESENT || s->lost || !n)
                    continue;
                if (!send_read(run, space, seq, l, n) || !send_attend(run, space, seq, l, n))
                    return false;
                if (++batch % VERIFY_BATCH)
                    continue;
                if (!drain(run) || run->over || !collect_all(run) || run->over)
                    return !run->failed;
            }
        }
    }
    if (!drain(run) || run->over)
        return !run->failed;
    return collect_all(run);
}

static bool nothing_left(struct run *run)
{
    struct drive_stats stats;
    const struct flash_geometry *g = &run->shape.geometry;
    for (uint32_t space = 0; space < run->n_spaces; space++) {
        if (!send_reclaim_all(run, space, 0, MODEL_SEQUENCES) || !drain(run))
            return false;
    }
    if (!step(run, IDLE_NS, 64) || !drain(run) || !send_simple(run, OP_FLUSH) || !drain(run) ||
        !stats_of(run, &stats))
        return false;
    uint64_t bad = run->chaos->bad_stripes * g->dies * g->page_bytes * g->pages_per_block;
    bool forgiven = run->chaos->program_faults && known(FAULT_SUMMARY_LOSES_SEGMENT);
    if (stats.sequences || stats.live_bytes || stats.rows_in_dram ||
        (stats.allocated_bytes != bad && !forgiven))
        return wrong(run,
                     "all was reclaimed; left: %llu sequences, %llu live bytes, %llu group "
                     "buffers, %llu bytes of flash beside %llu in bad blocks",
                     (unsigned long long)stats.sequences, (unsigned long long)stats.live_bytes,
                     (unsigned long long)stats.rows_in_dram,
                     (unsigned long long)(stats.allocated_bytes - bad), (unsigned long long)bad);
    if (stats.checksum_errors && !run->chaos->wrong_data &&
        !(run->chaos->program_faults && (run->scarce_flash || known(FAULT_PROGRAM_ERROR_KILLS))))
        return wrong(run, "%llu checksum errors, though all that was read was right",
                     (unsigned long long)stats.checksum_errors);
    if (!check(run))
        return false;
    run->counts->index_bytes += stats.pages_index_bytes;
    for (uint32_t space = 0; space < run->n_spaces; space++) {
        if (!send_remove(run, space))
            return !run->failed;
    }
    if (!stats_of(run, &stats))
        return false;
    // What is known of blocks stays, 64 of them at a time. What wears out is filled in turn: there
    // any operation may be the first one of a block.
    uint64_t chunks = 2 + run->chaos->operations / (g->oob ? 1 : g->pages_per_block) / 64;
    return stats.dram_used_bytes <= run->empty_dram + chunks * 8192 ||
           wrong(run, "all spaces are gone; %llu bytes of DRAM are in use, %llu before them",
                 (unsigned long long)stats.dram_used_bytes, (unsigned long long)run->empty_dram);
}

static bool finish(struct run *run)
{
    if (!drain(run) || run->over || !collect_all(run) || run->over || !verify(run) || run->over)
        return !run->failed;
    return nothing_left(run);
}

// Ends the drive in the middle of everything.
static void close_all(struct run *run)
{
    if (run->port.drive) {
        run->counts->operations += run->chaos->operations;
        run->counts->flash_faults += run->chaos->bad_reads + run->chaos->program_faults +
                                     run->chaos->erase_faults + run->chaos->sync_faults;
        port_close(&run->port);
    }
    shadow_close(run);
    for (uint32_t i = 0; i < RUN_FLIGHTS; i++)
        port_buffer_free(&run->flights[i].buffer);
    for (uint32_t i = 0; i < RUN_TICKETS; i++)
        ticket_forget(&run->tickets[i]);
}

static bool go(struct run *run, uint32_t commands)
{
    if (!begin(run))
        return false;
    if (!commands)
        commands = run->commands;
    uint64_t first = run->counts->commands;
    while (!run->over && !chance_over(&run->chance) && run->counts->commands - first < commands) {
        uint32_t kind = below(&run->chance, 64);
        if (kind == 63) {
            if (!quiet_check(run))
                return false;
        } else if (kind == 62 && one_in(&run->chance, 8)) {
            if (!lose_connection(run) || (one_in(&run->chance, 3) && !replace_space(run)))
                return false;
        } else if (kind < 40 && run->n_flights - run->n_collects < run->depth) {
            if (!draw_command(run))
                return false;
        } else if (!run_step(run)) {
            return false;
        }
    }
    if (run->over || one_in(&run->chance, 8))
        return true;
    if (!finish(run) || run->over)
        return !run->failed;
    uint64_t violations = run->chaos->violations, records = run->chaos->bad_records;
    if (records)
        return wrong(run, "%llu pages were programmed with another's record",
                     (unsigned long long)records);
    return !violations ||
           wrong(run, "%llu operations broke the NAND contract", (unsigned long long)violations);
}

int interleave_run(const struct interleave_options *o, struct interleave_counts *counts,
                   struct inst_msg *msg)
{
    static struct run only; // large
    struct run *run = &only;
    memset(run, 0, sizeof *run);
    run->chance = (struct chance){.state = o->seed, .bytes = o->bytes, .n = o->n_bytes};
    struct interleave_counts own = {.runs = 1}; // a run depends on nothing that was before
    run->counts = &own;
    run->msg = msg;
    run->trace = o->trace;
    bool good = go(run, o->commands);
    close_all(run);
    interleave_add(counts, &own);
    return good ? 0 : INST_EINTERNAL;
}

void interleave_add(struct interleave_counts *sum, const struct interleave_counts *c)
{
    uint64_t *to = (uint64_t *)sum;
    const uint64_t *from = (const uint64_t *)c;
    for (size_t i = 0; i < sizeof *sum / sizeof *to; i++)
        to[i] += from[i];
}
