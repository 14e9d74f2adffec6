// SPDX-License-Identifier: Apache-2.0
#include "sim/drive_real.h"
#include "base/checked.h"
#include "sim/drive_virtual.h"
#include "sim/selections.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK = 512, TICKET = 1 };

struct real {
    struct drive_virtual v;
    const struct drive_real_options *o;
    const struct machine *m;
    const struct workload *w;
    uint32_t q_heads, sequences;
    uint64_t tokens;
    const struct selections *recorded; // to be replayed, NULL: none
    bool measured;                     // the ATTEND that counts
    struct table_header header;        // of ATTEND; what the configuration says comes with that
    struct inst_msg *msg;
};

// Each head of each sequence is a record's, always the same.
static void selected(void *user, struct drive_selection *s)
{
    const struct real *r = user;
    uint64_t job = (uint64_t)s->seq * r->v.config.kv_heads + s->head;
    if (r->recorded && s->chosen)
        selections_replay_tokens(r->recorded, job, s->tokens, s->chosen);
    else if (r->recorded)
        selections_replay_channels(r->recorded, job, s->config->head_dim, s->channels,
                                   s->n_channels);
    if (r->o->selected && r->measured)
        r->o->selected(r->o->selected_user, s);
}

static int open_drive(struct real *r, enum method_kind method, const struct selection *sel)
{
    struct space_config config =
        drive_virtual_config(r->m, &r->w->shape, method, sel->page_channels);
    config.layers = 1;
    config.max_sequences = r->sequences;
    config.max_tokens = r->tokens;
    double payload = r->sequences * (double)r->tokens * config.kv_heads * config.head_dim * 4 *
                     (method == SIM_SPARF ? 1.5 : 1);
    uint64_t memory = r->o->memory ? r->o->memory : 4ull << 30;
    if (payload > (double)memory / 2)
        return inst_fail(r->msg, INST_ENOMEM,
                         "%u sequences of %llu tokens are %.1f GB: sample less", r->sequences,
                         (unsigned long long)r->tokens, payload / 1e9);
    char where[160];
    // Blocks that are open, and what striping leaves empty in them.
    snprintf(where, sizeof where, "%s:%lluM,payload=ram,bad=off,retries=off", r->o->profile,
             (unsigned long long)(2 * (uint64_t)payload / (1 << 20) + 2048));
    const struct drive_virtual_options o = {.where = where,
                                            .csd = &r->m->csd,
                                            .config = config,
                                            .memory = memory,
                                            .selected = selected,
                                            .selected_user = r};
    r->header.method = config.method;
    r->header.q_heads = r->q_heads = config.q_heads;
    return drive_virtual_open(&r->v, &o, r->msg);
}

static int fill(struct real *r)
{
    const struct drive_content *c = &r->o->content;
    uint32_t heads = r->v.config.kv_heads, dim = r->v.config.head_dim;
    uint64_t most = 0;
    if (!slab_bytes(heads, CHUNK, dim, &most))
        return inst_fail(r->msg, INST_EINVAL, "%u heads of %u", heads, dim);
    uint16_t *data = aligned_alloc(64, most);
    int err = data ? 0 : inst_fail(r->msg, INST_ENOMEM, "K and V of %d tokens", CHUNK);
    for (uint32_t seq = 0; seq < r->sequences && !err; seq++)
        for (uint64_t pos = 0, n; pos < r->tokens && !err; pos += n) {
            uint64_t bytes;
            n = min_u64(CHUNK, r->tokens - pos);
            slab_bytes(heads, n, dim, &bytes);
            for (uint32_t h = 0; h < heads; h++)
                c->kv(c->user, seq, h, pos, n, data + 2 * h * n * dim,
                      data + (2 * h + 1) * n * dim);
            table_put_header(r->v.table, &(struct table_header){.head_count = heads});
            // A batch that ends together shares its blocks.
            table_put_item(r->v.table, 0,
                           &(struct table_item){
                               .seq = seq, .epoch = 1, .pos = pos, .n_tokens = n, .lifetime = 1});
            err = drive_virtual_call(
                &r->v, (struct command){.opcode = OP_WRITE, .count = 1, .length = (uint32_t)bytes},
                data);
        }
    free(data);
    return err;
}

// One ATTEND over the first `count` sequences and its COLLECT. *ns: what it took.
static int attend(struct real *r, uint32_t count, uint64_t *ns)
{
    const struct drive_content *c = &r->o->content;
    struct attend_layout l;
    uint32_t heads = r->v.config.kv_heads, dim = r->v.config.head_dim, group = r->q_heads / heads;
    if (!attend_layout(&l, count, r->q_heads, heads, dim, false))
        return inst_fail(r->msg, INST_EINVAL, "%u sequences", count);
    unsigned char *in = aligned_alloc(64, (l.in_bytes + 63) / 64 * 64),
                  *out = aligned_alloc(64, (l.out_bytes + 63) / 64 * 64);
    int err = in && out ? 0 : inst_fail(r->msg, INST_ENOMEM, "queries of %u sequences", count);
    for (uint32_t i = 0; i < count * heads && !err; i++)
        c->query(c->user, i / heads, i % heads, r->tokens - 1, group,
                 (float *)(in + l.q) + (size_t)i * group * dim);
    table_put_header(r->v.table, &r->header);
    for (uint32_t i = 0; i < count && !err; i++)
        table_put_item(r->v.table, i, &(struct table_item){.seq = i, .epoch = 1, .pos = r->tokens});
    uint64_t start = r->v.now_ns;
    if (!err)
        err = drive_virtual_call(&r->v,
                                 (struct command){.opcode = OP_ATTEND,
                                                  .count = count,
                                                  .ticket = TICKET,
                                                  .length = (uint32_t)l.in_bytes},
                                 in);
    if (!err)
        err = drive_virtual_call(&r->v,
                                 (struct command){.opcode = OP_COLLECT,
                                                  .ticket = TICKET,
                                                  .length = (uint32_t)l.out_bytes},
                                 out);
    *ns = r->v.now_ns - start;
    for (uint32_t i = 0; i < count && !err; i++) {
        int status = inst_status_from_nvme((uint16_t)((uint32_t *)(out + l.status))[i]);
        if (status)
            err = inst_fail(r->msg, status, "ATTEND: %s", inst_status_text(status));
    }
    free(in);
    free(out);
    return err;
}

// All sequences end; *bytes: of the blocks that are erased for it.
static int reclaim(struct real *r, double *bytes)
{
    struct drive_stats before = {0}, after = {0};
    const struct flash_geometry *g = &r->v.flash->geometry;
    int err = drive_virtual_stats(&r->v, &before);
    err = err ? err : drive_virtual_reclaim(&r->v, r->sequences);
    err = err ? err : drive_virtual_stats(&r->v, &after);
    *bytes = (double)(after.flash_erased_blocks - before.flash_erased_blocks) * g->pages_per_block *
             g->page_bytes;
    return err;
}

// What the drive says of the sample, for all sequences.
static void account(struct drive_timing *t, struct drive_real_report *report, const struct real *r,
                    const struct drive_stats *before, const struct drive_stats *after,
                    uint64_t half, uint64_t whole)
{
    double all = drive_sequences(r->m, r->w), n = r->sequences;
    for (size_t i = 0; i < STAT_ROWS; i++)
        *stat_at(&report->stats, i) = stat_of(after, i) - stat_of(before, i);
    const struct drive_stats *d = &report->stats;
    double each = n > 1 ? 1e-9 * (double)(whole - half) / (n - floor(n / 2)) : 0;
    *t =
        (struct drive_timing){.seconds = 1e-9 * (double)whole + each * (all - n),
                              .bytes = all / n * (double)d->flash_read_bytes,
                              .channel_bytes = all / n * (double)(d->channel_bytes + d->tail_bytes),
                              .token_bytes = all / n * (double)d->token_bytes};
    t->dense = all * (double)r->tokens * r->v.config.kv_heads * r->v.config.head_dim * 4;
    t->read = t->seconds;
}

int drive_real_run(struct drive_timing *out, struct drive_real_report *report,
                   const struct drive_real_options *options, const struct machine *machine,
                   const struct workload *workload, enum method_kind method,
                   const struct selection *selection, double context, struct inst_msg *msg)
{
    int err = machine_check(machine, msg);
    err = err ? err : workload_check(workload, msg);
    if (err)
        return err;
    struct real *r = aligned_alloc(64, sizeof *r);
    if (!r)
        return inst_fail(msg, INST_ENOMEM, "a drive");
    memset(r, 0, sizeof *r);
    r->o = options;
    r->m = machine;
    r->w = workload;
    r->msg = msg;
    r->sequences = (uint32_t)min_u64(
        min_u64(options->sequences, drive_sequences(machine, workload)), VIRTUAL_ITEMS_MAX);
    r->tokens = (uint64_t)context;
    r->recorded = method == SIM_DENSE ? NULL : selection->recorded;
    r->header.scale = 1 / sqrtf((float)workload->shape.head_dim);
    if (method == SIM_SPARF) {
        r->header.sparf_channels = (uint32_t)ceil(selection->channels * workload->shape.head_dim);
        r->header.sparf_divisor = (uint32_t)fmax(1, round(1 / selection->tokens));
    } else if (method == SIM_PAGES) {
        r->header.pages_ratio = (float)selection->tokens;
    }
    struct drive_stats empty, before, middle, after;
    uint64_t half = 0, whole, start;
    err = open_drive(r, method, selection);
    err = err ? err : drive_virtual_stats(&r->v, &empty);
    start = r->v.now_ns;
    err = err ? err : fill(r);
    err = err ? err : drive_virtual_stats(&r->v, &before);
    uint64_t filled = r->v.now_ns - start;
    if (!err && r->sequences > 1)
        err = attend(r, r->sequences / 2, &half);
    err = err ? err : drive_virtual_stats(&r->v, &middle);
    r->measured = true;
    err = err ? err : attend(r, r->sequences, &whole);
    err = err ? err : drive_virtual_stats(&r->v, &after);
    if (!err) {
        account(out, report, r, &middle, &after, half, whole);
        double kv =
            r->sequences * (double)r->tokens * r->v.config.kv_heads * r->v.config.head_dim * 4;
        double programmed = (double)(before.flash_program_bytes - empty.flash_program_bytes);
        report->waf = programmed / (double)(before.stream_bytes - empty.stream_bytes);
        report->programmed = programmed / kv;
        report->write_rate = kv / (1e-9 * (double)filled);
        report->steps = r->v.steps;
        err = reclaim(r, &report->erased);
        report->erased /= kv;
    }
    drive_virtual_close(&r->v);
    free(r);
    return err;
}

// ---- as a source -------------------------------------------------------------------------------

static bool same_workload(const struct workload *a, const struct workload *b)
{
    const struct shape *s = &a->shape, *t = &b->shape;
    return a->batch == b->batch && a->input == b->input && a->output == b->output &&
           s->layers == t->layers && s->heads == t->heads && s->kv_heads == t->kv_heads &&
           s->head_dim == t->head_dim;
}

// Both ends of a line over the context: at a quarter and at three quarters of the output.
static int measure(struct drive_real_source *d, struct drive_real_line *line,
                   const struct machine *m, const struct workload *w, enum method_kind method,
                   const struct selection *sel, struct inst_msg *msg)
{
    line->workload = *w;
    line->drives = m->drives;
    for (int i = 0; i < 2; i++) {
        line->context[i] = floor(w->input + (i ? 0.75 : 0.25) * w->output);
        int err = drive_real_run(&line->at[i], &line->report[i], &d->options, m, w, method, sel,
                                 line->context[i], msg);
        if (err)
            return err;
    }
    line->known = true;
    return 0;
}

static int source_timing(struct drive_source *source, struct drive_timing *out,
                         const struct machine *m, const struct workload *w, enum method_kind method,
                         const struct selection *sel, double context, struct inst_msg *msg)
{
    struct drive_real_source *d = (struct drive_real_source *)source;
    struct drive_real_line *line = &d->lines[method];
    if (!line->known || line->drives != m->drives || !same_workload(&line->workload, w)) {
        line->known = false;
        int err = measure(d, line, m, w, method, sel, msg);
        if (err)
            return err;
    }
    double along = (context - line->context[0]) / fmax(1, line->context[1] - line->context[0]);
    const struct drive_timing *a = &line->at[0], *b = &line->at[1];
    *out = (struct drive_timing){
        .seconds = fmax(0, a->seconds + along * (b->seconds - a->seconds)),
        .read = fmax(0, a->read + along * (b->read - a->read)),
        .bytes = fmax(0, a->bytes + along * (b->bytes - a->bytes)),
        .dense = fmax(0, a->dense + along * (b->dense - a->dense)),
    };
    return 0;
}

void drive_real_source_open(struct drive_real_source *source,
                            const struct drive_real_options *options)
{
    *source = (struct drive_real_source){.source = {.timing = source_timing}, .options = *options};
}
