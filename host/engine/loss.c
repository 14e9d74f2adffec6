// SPDX-License-Identifier: Apache-2.0
// Drives of an array that do not give back what they were given: I/O errors, wrong checksums, a
// link that has died. With on_drive_loss "recompute" such a drive is given up: the others are
// opened anew with its heads divided among them, and every session's KV is computed again from its
// tokens, which gives the same bits (contract point 9). Then what had failed is done once more.
// Whoever called sees time pass, and a note. The last drive is never given up: its failures are
// failures.
#include "host/engine/loss.h"
#include "base/checked.h"
#include "host/engine/sequence.h"

#include <stdalign.h>
#include <stdio.h>
#include <string.h>

// In the place of drives that could not be opened anew.
static int no_submit(struct link *link, const struct command *command, const void *table,
                     void *data)
{
    (void)link;
    (void)command;
    (void)table;
    (void)data;
    return INST_EIO;
}

static size_t no_poll(struct link *link, struct completion *out, size_t max, uint64_t max_wait_ns)
{
    (void)link;
    (void)out;
    (void)max;
    (void)max_wait_ns;
    return 0;
}

static void no_abort(struct link *link)
{
    (void)link;
}

static const struct link_ops no_ops = {
    .submit = no_submit, .poll = no_poll, .abort = no_abort, .close = no_abort};
static struct link no_drives = {&no_ops};

// ---- counters ----------------------------------------------------------------------------------

void loss_add_counts(struct drive_stats *stats, const struct drive_stats *before)
{
    bool audits = stats->audits; // since
    for (size_t row = 0; row < STAT_ROWS; row++) {
        uint64_t *now = stat_at(stats, row), then = stat_of(before, row);
        switch (stat_rows[row].how) {
        case STAT_NOW:
        case STAT_NOW_SAME:
            break;
        case STAT_PEAK:
            *now = max_u64(*now, then);
            break;
        case STAT_LEAST:
            *now = !before->audits ? *now : !audits ? then : min_u64(*now, then);
            break;
        default:
            *now += then;
        }
    }
}

void loss_drive_counts(struct inst_drive_stats *out, const struct drive_stats *stats)
{
    out->flash_read_bytes += stats->flash_read_bytes;
    out->flash_program_bytes += stats->flash_program_bytes;
    out->stream_bytes += stats->stream_bytes;
    out->cache_hit_bytes += stats->cache_hit_bytes;
}

void loss_modelled_counts(struct inst_drive_stats *out, const struct store_modelled *modelled)
{
    const struct flash_nand_counters *c = &modelled->flash;
    const struct engine_model_counters *engine = &modelled->engine;
    out->emulated = true;
    out->modelled_flash_seconds += 1e-9 * (double)c->busy_ns;
    out->modelled_channel_seconds += 1e-9 * (double)c->channel_ns;
    out->modelled_die_seconds += 1e-9 * (double)c->die_ns;
    out->read_pages += c->read_pages;
    out->program_pages += c->program_pages;
    out->block_erases += c->erases;
    out->read_retries += c->retries;
    out->suspensions += c->suspends;
    out->joined_pages += c->joined_pages;
    out->bad_blocks = max_u64(out->bad_blocks, c->bad_blocks);
    out->grown_bad_blocks += c->grown_bad;
    out->failed_programs += c->failed_programs;
    out->failed_erases += c->failed_erases;
    out->failed_reads += c->failed_reads;
    out->most_erases = max_u64(out->most_erases, c->most_erases);
    out->modelled_engine_seconds += 1e-9 * (double)engine->busy_ns;
    out->modelled_gemv_seconds += 1e-9 * (double)engine->units.gemv_ns;
    out->modelled_softmax_seconds += 1e-9 * (double)engine->units.softmax_ns;
    out->modelled_argtopk_seconds += 1e-9 * (double)engine->units.argtopk_ns;
    out->modelled_link_seconds += 1e-9 * (double)modelled->link_ns;
}

// What all drives have counted so far, as far as they still say it.
static void keep_counts(struct inst_engine *e)
{
    struct loss *l = &e->loss;
    struct drive_stats stats[LINK_ARRAY_MOST], all;
    for (uint32_t i = 0; i < e->store.n; i++)
        stats[i] = *link_array_stats(e->store.link, i);
    uint64_t late = link_array_late(e->store.link);
    e->store.link->ops->abort(e->store.link);
    for (uint32_t i = 0; i < e->store.n; i++) {
        if (!(late >> i & 1))
            (void)link_stat(e->store.drives[i].link, &stats[i], NULL);
        loss_drive_counts(&l->before_of[l->place[i]], &stats[i]);
        struct store_modelled modelled;
        if (store_emulated(&e->store, i, &modelled))
            loss_modelled_counts(&l->before_of[l->place[i]], &modelled);
    }
    link_array_merge(stats, e->store.n,
                     e->plan.space.kv_heads / space_config_together(&e->plan.space), &all);
    loss_add_counts(&all, &l->before);
    l->before = all;
    e->has_counted = false; // other drives now
}

// ---- giving a drive up -------------------------------------------------------------------------

// Some drive has lost something, and what is left can be used without it.
static bool loss_pending(const struct inst_engine *e)
{
    return e->loss.recompute && !e->loss.busy && e->store.n > 1 &&
           link_array_failed(e->store.link) != 0;
}

// The places that are left; false: none.
static bool give_up(struct inst_engine *e, uint64_t lost)
{
    struct loss *l = &e->loss;
    uint32_t left = 0, place[LINK_ARRAY_MOST];
    for (uint32_t i = 0; i < e->store.n; i++) {
        if (!(lost >> i & 1))
            place[left++] = l->place[i];
    }
    if (!left)
        return false;
    for (uint32_t i = 0; i < e->store.n; i++) {
        if (lost >> i & 1)
            engine_note(e, "drive %u (%s) was given up, its part of KV is computed again",
                        l->place[i] + 1, e->where[l->place[i]].path);
    }
    e->stats.lost_drives += e->store.n - left;
    memcpy(l->place, place, left * sizeof *place);
    l->plan.drives = left;
    return true;
}

// The drives that are left, opened anew.
static int open_again(struct inst_engine *e, struct inst_msg *msg)
{
    struct loss *l = &e->loss;
    struct plan_place places[LINK_ARRAY_MOST];
    uint64_t wait_ns = e->port.wait_ns;
    keep_counts(e);
    l->plan.memory -= engine_close_drives(e);
    engine_open_port(e, &no_drives);
    e->port.wait_ns = wait_ns;
    for (uint32_t i = 0; i < l->plan.drives; i++)
        places[i] = engine_plan_place(&e->where[l->place[i]]);
    l->plan.places = places;
    int err = engine_plan_drives(&e->plan, &e->config, &l->plan, msg);
    if (!err)
        err = engine_open_drives(e, msg);
    e->port.wait_ns = wait_ns;
    return err;
}

static bool is_decoded(const struct inst_session *s, uint64_t at)
{
    return s->decoded && s->decoded[at / 8] >> at % 8 & 1;
}

void loss_note(struct inst_session *s, uint64_t first, uint64_t n, bool decoded)
{
    for (uint64_t at = first; s->decoded && at < first + n; at++) {
        unsigned bit = 1u << at % 8, byte = s->decoded[at / 8];
        s->decoded[at / 8] = (unsigned char)(decoded ? byte | bit : byte & ~bit);
    }
}

// One piece of the session's tokens, computed as it was the first time: what another method than
// dense had a part in goes the way of decode.
static int restore_piece(struct inst_session *s, const struct step_progress *progress)
{
    struct inst_engine *e = s->engine;
    const struct seq *q = s->seq;
    bool decoded = is_decoded(s, q->length);
    uint64_t n = 1, most = min_u64(s->length_before - q->length, e->plan.chunk);
    while (!decoded && n < most && !is_decoded(s, q->length + n))
        n++;
    struct inst_segment segment = {
        .session = s, .tokens = q->tokens + q->length, .n_tokens = n, .prompt = !decoded};
    e->stats.recomputed_tokens += n;
    return step_run(e, &segment, 1, progress, NULL);
}

static int restore(struct inst_session *s, const struct step_progress *progress)
{
    struct inst_engine *e = s->engine;
    struct seq *q = s->seq;
    inst_logits_fn *on_logits = s->on_logits;
    uint64_t shared;
    int err = 0;
    s->on_logits = NULL;
    struct seq *from = seq_find(e, q, q->tokens, s->exact_before, SHARE_LEAST, &shared);
    if (from)
        seq_fork(e, q, from, shared, NULL); // else it is computed
    while (q->length < s->length_before && !err)
        err = restore_piece(s, progress);
    s->on_logits = on_logits;
    s->has_logits = s->has_logits_before && !err;
    if (err && err != INST_ECANCELLED)
        s->dead = err;
    return err;
}

static int restore_all(struct inst_engine *e, const struct step_progress *progress)
{
    int err = 0;
    seqs_restart(e);
    for (uint32_t i = 0; i < e->max_sessions && err != INST_ECANCELLED; i++) {
        struct inst_session *s = e->sessions[i];
        if (!s)
            continue;
        s->dead = 0;
        err = restore(s, progress);
        if (err && e->store.n > 1 && link_array_failed(e->store.link))
            return 0; // one more: from the beginning
    }
    return err == INST_ECANCELLED ? err : 0;
}

// Gives such drives up. Sessions have what they had, or are dead. Not within a step.
static int loss_recover(struct inst_engine *e, const struct step_progress *progress,
                        struct inst_msg *msg)
{
    struct loss *l = &e->loss;
    struct step_progress still = {.fn = progress->fn,
                                  .user = progress->user,
                                  .before = progress->before,
                                  .total = progress->total};
    int err = 0;
    l->busy = true;
    for (uint32_t i = 0; i < e->max_sessions; i++) {
        struct inst_session *s = e->sessions[i];
        if (!s)
            continue;
        s->length_before = s->seq->length;
        s->exact_before = s->seq->exact;
        s->has_logits_before = s->has_logits;
    }
    while (!err && e->store.n > 1 && link_array_failed(e->store.link)) {
        if (!give_up(e, link_array_failed(e->store.link))) {
            err = inst_fail(msg, INST_EIO, "no drive is left");
            break;
        }
        err = open_again(e, msg);
        if (!err)
            err = restore_all(e, &still);
    }
    for (uint32_t i = 0; err && err != INST_ECANCELLED && i < e->max_sessions; i++) {
        if (e->sessions[i])
            e->sessions[i]->dead = err;
    }
    l->busy = false;
    return err;
}

// ---- what is done once more --------------------------------------------------------------------

// Segments that a loss has failed, one by one: their bits do not depend on who else is in a step.
static int run_again(struct inst_engine *e, struct inst_segment *segments, size_t count,
                     struct inst_msg *why)
{
    const unsigned char *refused = e->scratch.refused;
    int first = 0;
    for (size_t i = 0; i < count; i++) {
        struct inst_segment *s = &segments[i];
        struct inst_msg text = {0};
        int err = s->status;
        if (refused[i] || !err)
            continue;
        if (inst_status_is_loss(err)) {
            s->status = 0;
            if (s->msg)
                s->msg->text[0] = 0;
            err = step_run(e, s, 1, &(struct step_progress){0}, &text);
        } else {
            inst_fail(&text, err, "%s", inst_status_text(err));
        }
        if (err && !first)
            first = inst_fail(why, err, "%s", text.text);
        if (err && loss_pending(e))
            break;
    }
    return first;
}

int loss_step(struct inst_engine *e, struct inst_segment *segments, size_t count,
              const struct step_progress *progress, struct inst_msg *msg)
{
    struct inst_msg why = {0};
    for (size_t i = 0; i < count; i++)
        e->scratch.refused[i] = segments[i].status != 0;
    int err = step_run(e, segments, count, progress, &why);
    while (err && loss_pending(e)) {
        struct inst_msg not = {0};
        int stuck = loss_recover(e, progress, &not );
        if (stuck == INST_ECANCELLED)
            return inst_fail(msg, stuck, "cancelled");
        if (stuck)
            return inst_fail(msg, err, "%s; it cannot be computed again: %s", why.text, not .text);
        why.text[0] = 0;
        err = run_again(e, segments, count, &why);
    }
    return err ? inst_fail(msg, err, "%s", why.text) : 0;
}

int loss_cut(struct inst_session *s, uint64_t length, struct inst_msg *msg)
{
    struct inst_engine *e = s->engine;
    struct inst_msg why = {0};
    int err = session_cut(s, length, &why);
    while (err && loss_pending(e) && !loss_recover(e, &(struct step_progress){0}, &why)) {
        why.text[0] = 0;
        err = session_cut(s, length, &why);
    }
    return err ? inst_fail(msg, err, "%s", why.text) : 0;
}

int loss_stats(struct inst_engine *e, struct drive_stats *stats, struct inst_msg *msg)
{
    struct inst_msg why = {0};
    int err = engine_drive_stats(e, stats, &why);
    while (err && loss_pending(e) && !loss_recover(e, &(struct step_progress){0}, &why)) {
        why.text[0] = 0;
        err = engine_drive_stats(e, stats, &why);
    }
    return err ? inst_fail(msg, err, "%s", why.text) : 0;
}
