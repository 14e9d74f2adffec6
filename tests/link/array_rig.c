// SPDX-License-Identifier: Apache-2.0
#include "tests/link/array_rig.h"
#include "base/checked.h"
#include "base/le.h"

#include <setjmp.h>
#include <stdalign.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { WAIT_NS = 1000 * 1000, HELD = 256, DATA_BYTES = 4 << 20, TABLE_BYTES = 8192 };

// ---- gates -------------------------------------------------------------------------------------

struct gate {
    struct link link;
    struct link *inner;
    struct gate_plan plan;
    uint64_t seen, full, passed[256];
    struct completion held[HELD]; // what comes out next
    size_t n_held;
    uint16_t inside[HELD]; // cids that the drive has
    size_t n_inside;
};

static void answer(struct gate *g, uint16_t cid, int code, const char *text)
{
    assert_true(g->n_held < HELD);
    g->held[g->n_held] = (struct completion){.cid = cid, .status = code};
    snprintf(g->held[g->n_held++].text, COMPLETION_TEXT_BYTES, "%s", text);
}

static int gate_submit(struct link *link, const struct command *c, const void *table, void *data)
{
    struct gate *g = (struct gate *)link;
    if (g->full < g->plan.full) {
        g->full++;
        return INST_ENORESOURCE;
    }
    if (g->plan.dead) {
        answer(g, c->cid, INST_EIO, "the link is dead");
        return 0;
    }
    if (c->opcode == g->plan.opcode && ++g->seen > g->plan.after &&
        g->seen <= g->plan.after + g->plan.refuse) {
        answer(g, c->cid, g->plan.code, "refused by the test");
        return 0;
    }
    int err = g->inner->ops->submit(g->inner, c, table, data);
    if (!err) {
        g->passed[c->opcode]++;
        g->inside[g->n_inside++] = c->cid;
    }
    return err;
}

static size_t gate_poll(struct link *link, struct completion *out, size_t max, uint64_t max_wait_ns)
{
    struct gate *g = (struct gate *)link;
    struct completion done[8];
    size_t n = g->inner->ops->poll(g->inner, done, 8, g->n_held ? 0 : max_wait_ns);
    for (size_t i = 0; i < n; i++) {
        size_t at = 0;
        while (at < g->n_inside && g->inside[at] != done[i].cid)
            at++;
        assert_true(at < g->n_inside);
        g->inside[at] = g->inside[--g->n_inside];
        if (!g->plan.dead)
            g->held[g->n_held++] = done[i];
        else
            answer(g, done[i].cid, INST_EIO, "the link is dead");
    }
    if (g->plan.hold)
        return 0;
    n = min_u64(max, g->n_held);
    memcpy(out, g->held, n * sizeof *out);
    g->n_held -= n;
    memmove(g->held, g->held + n, g->n_held * sizeof *out);
    return n;
}

static void gate_abort(struct link *link)
{
    struct gate *g = (struct gate *)link;
    g->n_held = g->n_inside = 0;
    g->inner->ops->abort(g->inner);
}

static void gate_close(struct link *link)
{
    gate_abort(link);
    free(link);
}

static const struct link_ops gate_ops = {
    .submit = gate_submit,
    .poll = gate_poll,
    .abort = gate_abort,
    .close = gate_close,
};

void rig_gate(struct rig *rig, uint32_t drive, const struct gate_plan *plan)
{
    struct gate *g = rig->gate[drive];
    g->plan = *plan;
    g->seen = g->full = 0;
    memset(g->passed, 0, sizeof g->passed);
}

uint64_t rig_passed(const struct rig *rig, uint32_t drive, uint8_t opcode)
{
    return rig->gate[drive]->passed[opcode];
}

// ---- opening -----------------------------------------------------------------------------------

static void open_unit(struct rig *rig, struct unit *unit, const struct space_config *config,
                      uint64_t dram)
{
    struct flash_geometry geometry;
    struct inst_msg *msg = &rig->msg;
    assert_int_equal(drive_geometry_for(&geometry, config, 16 << 20, 0, msg), 0);
    assert_int_equal(flash_ram_open(&unit->flash, &geometry, 0, msg), 0);
    struct drive_limits limits = {.dram_bytes = dram ? dram : 64 << 20, .pool = rig->pool};
    assert_int_equal(drive_open(&unit->drive, unit->flash, &limits, msg), 0);
    assert_int_equal(link_local_open(&unit->link, unit->drive, unit->flash, msg), 0);
}

void rig_open(struct rig *rig, const struct rig_options *o)
{
    static const char *const names[DRIVES_MOST] = {"a", "b", "c", "d", "e", "f", "g", "h"};
    struct link *links[DRIVES_MOST];
    *rig = (struct rig){.o = *o, .config = o->config};
    budget_init(&rig->budget, UINT64_MAX);
    assert_int_equal(pool_new(&rig->pool, 1, &rig->msg), 0);
    for (uint32_t i = 0; i < o->drives; i++) {
        struct space_config share = o->config;
        share.kv_heads =
            link_array_share(o->drives, share.kv_heads, space_config_together(&share), i)
                .head_count;
        share.q_heads = share.q_heads / o->config.kv_heads * share.kv_heads;
        open_unit(rig, &rig->unit[i], &share, o->dram_bytes);
        rig->gate[i] = calloc(1, sizeof(struct gate));
        rig->gate[i]->link.ops = &gate_ops;
        rig->gate[i]->inner = rig->unit[i].link;
        links[i] = &rig->gate[i]->link;
    }
    struct link_array_options options = {.links = links,
                                         .names = names,
                                         .drives = o->drives,
                                         .budget = &rig->budget,
                                         .limit_ns = o->limit_ns};
    assert_int_equal(link_array_open(&rig->array, &options, &rig->msg), 0);
    unsigned char table[CONFIG_BYTES];
    space_config_encode(table, &o->config);
    struct command configure = {.opcode = OP_CONFIG, .space = RIG_SPACE};
    if (!o->alone) {
        open_unit(rig, &rig->unit[DRIVES_MOST], &o->config, 0);
        rig->one = rig->unit[DRIVES_MOST].link;
        assert_int_equal(rig_link(rig, rig->one, configure, table, NULL), 0);
    }
    if (rig_array(rig, configure, table, NULL))
        fail_msg("%s", rig->msg.text);
}

void rig_close(struct rig *rig)
{
    link_close(rig->array);
    for (uint32_t i = 0; i < rig->o.drives; i++)
        link_close(&rig->gate[i]->link);
    for (uint32_t i = 0; i <= DRIVES_MOST; i++) {
        struct unit *unit = &rig->unit[i];
        if (!unit->drive)
            continue;
        if (drive_check(unit->drive, &rig->msg))
            fail_msg("drive %u: %s", i, rig->msg.text);
        link_close(unit->link);
        drive_close(unit->drive);
        flash_close(unit->flash);
    }
    pool_free(rig->pool);
    assert_int_equal(rig->budget.used, 0);
}

// ---- commands ----------------------------------------------------------------------------------

static int call(struct rig *rig, struct link *link, struct command command, const void *table,
                void *data, uint64_t *result)
{
    struct inst_msg msg = {0};
    command.cid = ++rig->cid;
    command.space = RIG_SPACE;
    int err = link_call(link, &command, table, data, result, &msg);
    if (link == rig->array)
        rig->msg = msg;
    return err;
}

int rig_link(struct rig *rig, struct link *link, struct command command, const void *table,
             void *data)
{
    return call(rig, link, command, table, data, NULL);
}

int rig_array(struct rig *rig, struct command command, const void *table, void *data)
{
    return call(rig, rig->array, command, table, data, NULL);
}

int rig_both(struct rig *rig, struct command command, const void *table, void *data)
{
    uint64_t result[2] = {0};
    int err = call(rig, rig->array, command, table, data, &result[0]);
    if (rig->o.alone)
        return err;
    int one = call(rig, rig->one, command, table, data, &result[1]);
    if (err != one)
        fail_msg("%s: the array says %d (%s), one drive %d", opcode_name(command.opcode), err,
                 rig->msg.text, one);
    assert_int_equal(result[0], result[1]);
    return err;
}

static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 31)) * 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 29)) * 0xbf58476d1ce4e5b9u;
    return x ^ (x >> 32);
}

uint32_t rig_random(uint64_t *state, uint32_t below)
{
    *state += 0x9e3779b97f4a7c15u;
    return (uint32_t)(mix(*state) % below);
}

// fp16 between 0.5 and 2 with either sign; the tokens of all sequences differ by their number
// alone, so that a fork holds what its parent would.
static uint16_t value(uint32_t layer, uint32_t head, uint64_t token, uint32_t d, bool v)
{
    uint64_t x = mix(token * 1000003 + layer * 7919 + head * 104729 + d * 31u + v);
    return (uint16_t)(0x3800u + x % 0x0800u + (x >> 40 & 1) * 0x8000u);
}

static uint32_t slab_of(const struct rig *rig, uint32_t heads, uint64_t n)
{
    return (uint32_t)((heads * n * rig->config.head_dim * 4 + 63) / 64 * 64);
}

static void fill_slab(const struct rig *rig, uint16_t *slab, uint32_t layer, uint64_t pos,
                      uint64_t n, uint32_t first, uint32_t count)
{
    uint32_t dim = rig->config.head_dim;
    for (uint32_t h = first; h < first + count; h++) {
        for (int v = 0; v < 2; v++) {
            for (uint64_t t = 0; t < n; t++) {
                for (uint32_t d = 0; d < dim; d++)
                    *slab++ = value(layer, h, pos + t, d, v);
            }
        }
    }
}

static void one_item(void *table, const struct table_header *header, struct table_item item)
{
    table_put_header(table, header);
    item.epoch = item.seq + 1;
    table_put_item(table, 0, &item);
}

int rig_write(struct rig *rig, struct link *link, uint32_t seq, uint32_t layer, uint64_t pos,
              uint64_t n, uint32_t first, uint32_t count)
{
    alignas(64) static unsigned char table[TABLE_BYTES], data[DATA_BYTES];
    one_item(table, &(struct table_header){.head_first = first, .head_count = count},
             (struct table_item){.seq = seq, .pos = pos, .n_tokens = n});
    assert_true(slab_of(rig, count, n) <= DATA_BYTES);
    fill_slab(rig, (uint16_t *)data, layer, pos, n, first, count);
    struct command c = {
        .opcode = OP_WRITE, .layer = layer, .count = 1, .length = slab_of(rig, count, n)};
    return link ? rig_link(rig, link, c, table, data) : rig_both(rig, c, table, data);
}

int rig_write_all(struct rig *rig, uint32_t seq, uint64_t pos, uint64_t n)
{
    int err = 0;
    for (uint32_t layer = 0; layer < rig->config.layers && !err; layer++)
        err = rig_write(rig, NULL, seq, layer, pos, n, 0, rig->config.kv_heads);
    return err;
}

void rig_expect_tokens(struct rig *rig, uint32_t seq, uint32_t layer, uint64_t pos, uint64_t n)
{
    alignas(64) static unsigned char table[TABLE_BYTES], data[DATA_BYTES], want[DATA_BYTES];
    uint32_t heads = rig->config.kv_heads, bytes = slab_of(rig, heads, n);
    one_item(table, &(struct table_header){.head_count = heads},
             (struct table_item){.seq = seq, .pos = pos, .n_tokens = n});
    struct command read = {.opcode = OP_READ, .layer = layer, .count = 1, .ticket = ++rig->ticket};
    struct command collect = {.opcode = OP_COLLECT, .ticket = read.ticket, .length = bytes};
    memset(data, 0, bytes + 64);
    if (rig_both(rig, read, table, NULL) || rig_array(rig, collect, NULL, data))
        fail_msg("READ of %u: %s", seq, rig->msg.text);
    memset(want, 0, bytes);
    fill_slab(rig, (uint16_t *)want, layer, pos, n, 0, heads);
    assert_memory_equal(data, want, heads * n * rig->config.head_dim * 4);
    for (uint32_t i = 0; i < 64; i++)
        assert_int_equal(data[bytes + i], 0); // nothing beyond
    if (!rig->o.alone)
        assert_int_equal(rig_link(rig, rig->one, collect, NULL, data), 0);
}

struct command rig_attend_command(struct rig *rig, uint32_t layer, const struct rig_query *query,
                                  uint32_t count, void *table, void *data, size_t *out_bytes)
{
    const struct space_config *s = &rig->config;
    struct attend_layout layout;
    bool append = false;
    table_put_header(
        table, &(struct table_header){.method = s->method, .q_heads = s->q_heads, .scale = 0.125f});
    for (uint32_t i = 0; i < count; i++) {
        struct table_item item = {.seq = query[i].seq,
                                  .epoch = query[i].seq + 1,
                                  .pos = query[i].pos,
                                  .n_tokens = query[i].append ? 1 : 0};
        table_put_item(table, i, &item);
        append |= query[i].append;
    }
    attend_layout(&layout, count, s->q_heads, s->kv_heads, s->head_dim, append);
    *out_bytes = layout.out_bytes;
    unsigned char *at = data;
    for (uint32_t i = 0; i < count; i++) {
        for (uint32_t j = 0; j < s->q_heads * s->head_dim; j++)
            ((float *)(at + layout.q))[i * s->q_heads * s->head_dim + j] =
                (float)(mix(query[i].pos * 977 + layer * 31 + j) % 2001) / 1000.0f - 1.0f;
        for (uint32_t h = 0; h < s->kv_heads && append; h++) {
            for (uint32_t d = 0; d < s->head_dim; d++) {
                size_t k = (i * s->kv_heads + h) * (size_t)s->head_dim + d;
                ((uint16_t *)(at + layout.k))[k] = value(layer, h, query[i].pos, d, false);
                ((uint16_t *)(at + layout.v))[k] = value(layer, h, query[i].pos, d, true);
            }
        }
    }
    return (struct command){.opcode = OP_ATTEND,
                            .layer = layer,
                            .count = count,
                            .ticket = ++rig->ticket,
                            .length = (uint32_t)layout.in_bytes};
}

int rig_expect_attention(struct rig *rig, uint32_t layer, const struct rig_query *query,
                         uint32_t count)
{
    alignas(64) static unsigned char table[TABLE_BYTES], data[DATA_BYTES], out[DATA_BYTES],
        want[DATA_BYTES];
    const struct space_config *s = &rig->config;
    size_t bytes;
    struct command attend = rig_attend_command(rig, layer, query, count, table, data, &bytes);
    struct command collect = {
        .opcode = OP_COLLECT, .ticket = attend.ticket, .length = (uint32_t)bytes};
    int err = rig_both(rig, attend, table, data);
    if (err)
        return err;
    assert_int_equal(rig_array(rig, collect, NULL, out), 0);
    struct attend_layout layout;
    attend_layout(&layout, count, s->q_heads, s->kv_heads, s->head_dim, true);
    if (!rig->o.alone) {
        assert_int_equal(rig_link(rig, rig->one, collect, NULL, want), 0);
        size_t heads = (size_t)count * s->q_heads, dim = s->head_dim;
        if (memcmp(out + layout.out, want + layout.out, heads * dim * 4) ||
            memcmp(out + layout.lse, want + layout.lse, heads * 4) ||
            memcmp(out + layout.captured, want + layout.captured, heads * 4) ||
            memcmp(out + layout.status, want + layout.status, count * 4))
            fail_msg("layer %u, %u items: not what one drive says", layer, count);
    }
    for (uint32_t i = 0; i < count && !err; i++)
        err = inst_status_from_nvme((uint16_t)le_get32(out + layout.status + 4 * (size_t)i));
    return err;
}

int rig_reclaim(struct rig *rig, uint32_t seq, uint64_t pos)
{
    unsigned char table[TABLE_HEADER_BYTES + TABLE_ITEM_BYTES];
    one_item(
        table, &(struct table_header){0},
        (struct table_item){
            .seq = seq, .pos = pos, .n_tokens = UINT64_MAX, .layer_count = rig->config.layers});
    return rig_both(rig, (struct command){.opcode = OP_RECLAIM, .count = 1}, table, NULL);
}

int rig_fork(struct rig *rig, uint32_t parent, uint32_t child, uint64_t pos)
{
    unsigned char table[TABLE_HEADER_BYTES + TABLE_ITEM_BYTES];
    one_item(table, &(struct table_header){0},
             (struct table_item){
                 .seq = child, .pos = pos, .parent = parent, .parent_epoch = parent + 1});
    return rig_both(rig, (struct command){.opcode = OP_FORK, .count = 1}, table, NULL);
}

void rig_stats(struct rig *rig, struct link *link, struct drive_stats *stats)
{
    alignas(64) unsigned char table[STAT_TABLE_BYTES];
    assert_int_equal(rig_link(rig, link, (struct command){.opcode = OP_FLUSH}, NULL, NULL), 0);
    struct command c = {.opcode = OP_STAT, .length = sizeof table};
    assert_int_equal(rig_link(rig, link, c, NULL, table), 0);
    assert_int_equal(stats_decode(stats, table, sizeof table), 0);
}

void rig_drive_stats(struct rig *rig, uint32_t drive, struct drive_stats *stats)
{
    rig_stats(rig, rig->unit[drive].link, stats);
}
