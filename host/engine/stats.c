// SPDX-License-Identifier: Apache-2.0
// What the engine and its drives have counted, as the public header says it.
#include "host/engine/loss.h"
#include "host/engine/sized.h"

#include <math.h>
#include <stdalign.h>
#include <string.h>

int engine_drive_stats(struct inst_engine *e, struct drive_stats *stats, struct inst_msg *msg)
{
    alignas(64) unsigned char table[STAT_TABLE_BYTES];
    struct command command = {.opcode = OP_STAT, .length = sizeof table};
    int err = port_call(&e->port, command, NULL, table, NULL, msg);
    if (err)
        return err;
    if (stats_decode(stats, table, sizeof table))
        return inst_fail(msg, INST_EIO, "the drive's statistics are malformed");
    loss_add_counts(stats, &e->loss.before);
    return 0;
}

// What the engine's method counts, and what audits of it say. Only decode attends by a method, so
// these are decode's.
static void put_method(struct inst_engine *e, struct inst_stats *stats,
                       const struct drive_stats *drive)
{
    size_t n = 0;
    if (e->attend.method == METHOD_DENSE)
        return;
    for (size_t row = 0; row < STAT_ROWS; row++) {
        const struct stat_row *r = &stat_rows[row];
        if (r->of != (int)e->attend.method)
            continue;
        e->counter[n++] = (struct inst_counter){r->name, r->text, (double)stat_of(drive, row)};
    }
    n += audit_counters(e, drive, e->counter + n);
    stats->method = e->counter;
    stats->n_method = n;
}

double inst_stats_method(const struct inst_stats *stats, const char *name)
{
    for (size_t i = 0; i < stats->n_method; i++) {
        if (!strcmp(stats->method[i].name, name))
            return stats->method[i].value;
    }
    return 0;
}

// Each of the drive that was busy for the longest.
static void put_modelled(const struct inst_engine *e, struct inst_stats *stats)
{
    for (uint32_t i = 0; i < e->plan.drives; i++) {
        struct inst_drive_stats drive = e->loss.before_of[e->loss.place[i]];
        struct store_modelled modelled;
        if (store_emulated(&e->store, i, &modelled))
            loss_modelled_counts(&drive, &modelled);
        stats->modelled_flash_seconds =
            fmax(stats->modelled_flash_seconds, drive.modelled_flash_seconds);
        stats->modelled_engine_seconds =
            fmax(stats->modelled_engine_seconds, drive.modelled_engine_seconds);
        stats->modelled_link_seconds =
            fmax(stats->modelled_link_seconds, drive.modelled_link_seconds);
    }
}

int inst_engine_stats_sized(inst_engine *e, struct inst_stats *out, size_t size,
                            struct inst_msg *msg)
{
    struct inst_stats own, *stats = &own;
    int err = loss_stats(e, &e->counted, msg);
    if (err)
        return err;
    e->has_counted = true;
    const struct drive_stats drive = e->counted;
    *stats = e->stats;
    stats->flash_read_bytes = drive.flash_read_bytes;
    stats->flash_program_bytes = drive.flash_program_bytes;
    stats->decode_flash_read_bytes = drive.flash_read_bytes - e->prefill_read_bytes;
    stats->stream_bytes = drive.stream_bytes;
    if (drive.stream_bytes)
        stats->waf = (double)drive.flash_program_bytes / (double)drive.stream_bytes;
    if (drive.live_bytes)
        stats->space_amplification = (double)drive.allocated_bytes / (double)drive.live_bytes;
    stats->attended_tokens = drive.attended_tokens;
    stats->attended_tokens_from_flash = drive.attended_tokens_from_flash;
    stats->budget_peak_bytes = e->budget.peak;
    stats->drive_dram_bytes = e->drive_dram;
    stats->drive_dram_peak_bytes = drive.dram_peak_bytes;
    stats->cache_hit_bytes = drive.cache_hit_bytes;
    stats->cached_bytes = drive.cached_bytes;
    stats->bridged_bytes = drive.bridged_bytes;
    stats->read_ahead_rows = drive.read_ahead_rows;
    stats->read_ahead_hits = drive.read_ahead_hits;
    put_modelled(e, stats);
    put_method(e, stats, &drive);
    sized_write(out, size, stats, sizeof *stats);
    return 0;
}

int inst_engine_drives_sized(inst_engine *e, struct inst_drive_stats *out, size_t n, size_t size,
                             struct inst_msg *msg)
{
    struct inst_drive_stats drives[LINK_ARRAY_MOST];
    // A row read ahead between two answers would make the parts differ from their sum.
    int err = e->has_counted ? 0 : loss_stats(e, &e->counted, msg);
    if (err)
        return err;
    e->has_counted = true;
    struct drive_stats all = e->counted;
    for (uint32_t i = 0; i < e->n_places; i++) {
        drives[i] = e->loss.before_of[i];
        drives[i].place = e->where[i].path;
    }
    // Of what drives have counted that are there, not of those before.
    const struct drive_stats *before = &e->loss.before;
    all.flash_read_bytes -= before->flash_read_bytes;
    all.flash_program_bytes -= before->flash_program_bytes;
    all.stream_bytes -= before->stream_bytes;
    all.cache_hit_bytes -= before->cache_hit_bytes;
    for (uint32_t i = 0; i < e->plan.drives; i++) {
        loss_drive_counts(&drives[e->loss.place[i]],
                          e->store.n > 1 ? link_array_stats(e->store.link, i) : &all);
        struct store_modelled modelled;
        if (store_emulated(&e->store, i, &modelled))
            loss_modelled_counts(&drives[e->loss.place[i]], &modelled);
    }
    for (size_t i = 0; i < n && i < e->n_places; i++)
        sized_write((unsigned char *)out + i * size, size, &drives[i], sizeof *drives);
    return 0;
}
