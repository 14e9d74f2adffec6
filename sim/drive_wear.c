// SPDX-License-Identifier: Apache-2.0
#include "sim/drive_wear.h"
#include "base/checked.h"
#include "sim/drive_virtual.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK = 512, COUNTS = 4096 };

struct wear {
    struct drive_virtual drive;
    const struct workload *w;
    const struct drive_wear_options *o;
    uint32_t sequences, generation;
    unsigned char *data; // of one WRITE, zeros: there is no payload
};

// Tokens [pos, pos + n) of `count` sequences from `first` on, in one layer.
static int put(struct wear *s, uint32_t layer, uint32_t first, uint32_t count, uint64_t pos,
               uint64_t n)
{
    struct drive_virtual *v = &s->drive;
    uint64_t bytes = 0;
    slab_bytes(v->config.kv_heads, n, v->config.head_dim, &bytes);
    table_put_header(v->table, &(struct table_header){.head_count = v->config.kv_heads});
    for (uint32_t i = 0; i < count; i++)
        table_put_item(v->table, i,
                       &(struct table_item){.seq = first + i,
                                            .epoch = s->generation + 1,
                                            .pos = pos,
                                            .n_tokens = n,
                                            .lifetime = s->o->own_blocks ? 0 : 1});
    return drive_virtual_call(v,
                              (struct command){.opcode = OP_WRITE,
                                               .layer = layer,
                                               .count = count,
                                               .length = (uint32_t)(count * bytes)},
                              s->data);
}

// Time passes for what the drive does behind the commands: programs, channel rows, erases. The GPU
// takes long enough for it between two steps.
static int rest(struct wear *s)
{
    return drive_virtual_call(&s->drive, (struct command){.opcode = OP_FLUSH}, NULL);
}

// A batch: its prompts one after another, layer by layer; then a token of every sequence in each
// layer, step by step; then it ends.
static int run_generation(struct wear *s)
{
    const struct workload *w = s->w;
    uint32_t layers = s->drive.config.layers;
    int err = 0;
    for (uint32_t seq = 0; seq < s->sequences && !err; seq++) {
        for (uint64_t pos = 0; pos < w->input && !err; pos += CHUNK)
            for (uint32_t layer = 0; layer < layers && !err; layer++)
                err = put(s, layer, seq, 1, pos, min_u64(CHUNK, w->input - pos));
        err = err ? err : rest(s);
    }
    for (uint64_t pos = w->input; pos < (uint64_t)w->input + w->output && !err; pos++) {
        for (uint32_t layer = 0; layer < layers && !err; layer++)
            for (uint32_t seq = 0; seq < s->sequences && !err; seq += VIRTUAL_ITEMS_MAX)
                err = put(s, layer, seq, (uint32_t)min_u64(VIRTUAL_ITEMS_MAX, s->sequences - seq),
                          pos, 1);
        err = err ? err : rest(s);
    }
    return err ? err : drive_virtual_reclaim(&s->drive, s->sequences);
}

static int open_all(struct wear *s, const struct machine *m, enum method_kind method,
                    double generation, struct inst_msg *msg)
{
    const struct shape *shape = &s->w->shape;
    char where[160];
    snprintf(where, sizeof where, "%s:%.0fM,payload=none", s->o->profile,
             ceil(generation * fmax(1.2, s->o->room) / (1 << 20)));
    struct drive_virtual_options o = {
        .where = where,
        .csd = &m->csd,
        .config = drive_virtual_config(m, shape, method, s->o->page_channels),
        .memory = s->o->memory ? s->o->memory : 6ull << 30};
    o.config.layers = shape->layers;
    o.config.max_sequences = s->sequences;
    o.config.max_tokens = (uint64_t)s->w->input + s->w->output;
    int err = drive_virtual_open(&s->drive, &o, msg);
    uint64_t one = 0, chunk = 0;
    slab_bytes(o.config.kv_heads, 1, shape->head_dim, &one);
    slab_bytes(o.config.kv_heads, CHUNK, shape->head_dim, &chunk);
    s->data = err ? NULL : aligned_alloc(64, max_u64(chunk, VIRTUAL_ITEMS_MAX * one));
    if (!err && !s->data)
        err = inst_fail(msg, INST_ENOMEM, "K and V of %d tokens", CHUNK);
    if (!err)
        memset(s->data, 0, max_u64(chunk, VIRTUAL_ITEMS_MAX * one));
    return err;
}

static int count(struct drive_wear_report *out, struct wear *s)
{
    const struct flash_geometry *g = &s->drive.flash->geometry;
    struct drive_stats stats;
    struct flash_nand_counters nand;
    static uint64_t blocks[COUNTS]; // by how often they were erased
    int err = drive_virtual_stats(&s->drive, &stats);
    if (err)
        return err;
    flash_nand_counters(s->drive.flash, &nand);
    flash_nand_erase_counts(s->drive.flash, blocks, COUNTS);
    out->accepted = (double)stats.stream_bytes;
    out->programmed = (double)stats.flash_program_bytes;
    double block = (double)g->page_bytes * g->pages_per_block, squares = 0;
    out->erased = (double)stats.flash_erased_blocks * block;
    out->flash = (double)g->blocks * block;
    out->blocks = g->blocks;
    out->least = UINT64_MAX;
    for (uint64_t i = 0; i < COUNTS; i++) {
        if (!blocks[i])
            continue;
        out->least = min_u64(out->least, i);
        out->most = i;
        out->erases += i * blocks[i];
        squares += (double)(i * i) * (double)blocks[i];
    }
    out->mean = (double)out->erases / (double)g->blocks;
    out->deviation = sqrt(fmax(0, squares / (double)g->blocks - out->mean * out->mean));
    out->bad = nand.grown_bad;
    out->copied = stats.copied_bytes;
    out->dram = s->drive.dram_bytes;
    out->seconds = 1e-9 * (double)s->drive.now_ns;
    return 0;
}

int drive_wear_run(struct drive_wear_report *out, const struct drive_wear_options *o,
                   const struct machine *m, const struct workload *w, enum method_kind method,
                   struct inst_msg *msg)
{
    int err = machine_check(m, msg);
    err = err ? err : workload_check(w, msg);
    if (!err && (!o->generations || o->generations >= COUNTS))
        err = inst_fail(msg, INST_EINVAL, "%u generations of requests", o->generations);
    if (err)
        return err;
    struct wear *s = aligned_alloc(64, sizeof *s);
    if (!s)
        return inst_fail(msg, INST_ENOMEM, "a drive");
    memset(s, 0, sizeof *s);
    *out = (struct drive_wear_report){0};
    s->w = w;
    s->o = o;
    s->sequences = drive_sequences(m, w);
    out->heads = drive_heads(m, &w->shape);
    out->sequences = s->sequences;
    double each = (double)w->shape.layers * out->heads * w->shape.head_dim * 4,
           tokens = (double)s->sequences * ((double)w->input + w->output);
    err = open_all(s, m, method, tokens * each * (method == SIM_SPARF ? 1.5 : 1), msg);
    for (; s->generation < o->generations && !err; s->generation++)
        err = run_generation(s);
    out->group_tokens = s->drive.config.group_tokens;
    out->tokens = tokens * o->generations;
    out->kv = out->tokens * each;
    err = err ? err : count(out, s);
    drive_virtual_close(&s->drive);
    free(s->data);
    free(s);
    return err;
}
