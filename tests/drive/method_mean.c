// SPDX-License-Identifier: Apache-2.0
#include "method_mean.h"
#include "base/checked.h"
#include "drive/attend/walk.h"

#include <math.h>
#include <string.h>

// Sums of V of one unit, [head][head_dim]; of a piece they lie in its partials.
struct mean_unit {
    float *sums;
    struct mean_unit *next;
};

struct method_state {
    struct space *space;
    struct pieces pieces;
    struct mean_unit *units, *free_units;
    float *memory; // [units + pieces][kv_heads][head_dim]
    uint32_t n_units;
};

static uint32_t units_at(unsigned level)
{
    return 1u << level;
}

static uint32_t pieces_at(unsigned level)
{
    return 2u << level;
}

static uint64_t sum_floats(const struct space_config *c)
{
    return (uint64_t)c->kv_heads * c->head_dim;
}

static int mean_plan(struct method_plan *plan, const struct flash_geometry *g,
                     const struct space_config *c, const struct stream *streams, unsigned level,
                     struct inst_msg *msg)
{
    uint32_t pages = span_rows(c) * streams[STREAM_KV].row_pages;
    uint64_t count = units_at(level) + pieces_at(level);
    (void)g, (void)msg;
    *plan = (struct method_plan){
        .pages = pages, .pieces = pieces_at(level), .frames = pages + span_rows(c)};
    plan->bytes = sizeof(struct method_state) + count * sum_floats(c) * sizeof(float) +
                  units_at(level) * sizeof(struct mean_unit) +
                  pieces_bytes(pieces_at(level), span_rows(c), pages) + 3 * (4096 + 64);
    return 0;
}

static int mean_open(struct method_state **out, struct walk *walk, unsigned level,
                     struct inst_msg *msg)
{
    struct space *space = walk->space;
    uint64_t floats = sum_floats(&space->config);
    struct method_state *s = budget_alloc(space->budget, 1, sizeof *s, "mean", msg);
    *out = s;
    if (!s)
        return INST_ENOMEM;
    s->space = space;
    s->n_units = units_at(level);
    s->units = budget_alloc(space->budget, s->n_units, sizeof *s->units, "mean", msg);
    s->memory = budget_alloc(space->budget, s->n_units + pieces_at(level), floats * sizeof(float),
                             "mean", msg);
    if (!s->units || !s->memory)
        return INST_ENOMEM;
    uint32_t rows = span_rows(&space->config);
    int status = pieces_open(&s->pieces, space, pieces_at(level), rows,
                             rows * space->streams[STREAM_KV].row_pages, msg);
    for (uint32_t i = 0; !status && i < pieces_at(level); i++)
        s->pieces.all[i].partials = s->memory + (s->n_units + i) * floats;
    for (uint32_t i = 0; i < s->n_units; i++) {
        s->units[i] = (struct mean_unit){.sums = s->memory + i * floats, .next = s->free_units};
        s->free_units = &s->units[i];
    }
    return status;
}

static void mean_close(struct method_state *s)
{
    struct budget *budget = s->space->budget;
    pieces_close(&s->pieces);
    budget_free(budget, s->units);
    budget_free(budget, s->memory);
    budget_free(budget, s);
}

static bool mean_begin(struct unit *unit)
{
    struct method_state *s = unit->state;
    struct mean_unit *own = s->free_units;
    if (!own)
        return false;
    s->free_units = own->next;
    memset(own->sums, 0, sum_floats(&s->space->config) * sizeof *own->sums);
    unit->own = own;
    unit->kind = UNIT_READS;
    unit->cursor = unit->job->items[unit->item].window;
    unit->wanted = unit->cursor == unit->job->items[unit->item].end;
    return true;
}

// Tokens of the piece that lie in its row r.
static void tokens_of(const struct piece *piece, uint32_t r, uint64_t row_tokens, uint64_t *first,
                      uint64_t *end)
{
    uint64_t start = piece->rows[r].index * row_tokens;
    *first = max_u64(piece->first, start);
    *end = min_u64(piece->first + piece->tokens, start + row_tokens);
}

static struct piece *mean_want(struct unit *unit)
{
    const struct space *space = unit->job->space;
    const struct stream *kv = &space->streams[STREAM_KV];
    struct piece *piece = piece_get(&unit->state->pieces);
    if (!piece)
        return NULL;
    uint64_t length = span_tokens(&space->config), stop = unit->job->items[unit->item].end;
    uint64_t end = min_u64(stop, unit->cursor / length * length + length);
    piece->stream = STREAM_KV;
    piece->use = USE_CHOICE;
    piece->first = unit->cursor;
    piece->tokens = (uint32_t)(end - unit->cursor);
    for (uint64_t group = unit->cursor / kv->row_tokens; group * kv->row_tokens < end; group++) {
        uint64_t first, last;
        piece_add_pages(piece, (uint32_t)group, 0, kv->row_pages);
        tokens_of(piece, piece->n_rows - 1, kv->row_tokens, &first, &last);
        struct slot_range v = slot_v(&kv->slot, first % kv->row_tokens, last - first);
        for (uint32_t head = 0; head < unit->n_heads; head++)
            piece_want(space, piece, piece->n_rows - 1,
                       (unit->head_first + head) * kv->slot_bytes + v.offset, v.bytes, false);
    }
    unit->cursor = end;
    unit->wanted = end == stop;
    return piece;
}

static void mean_compute(const struct unit_task *task, uint8_t *scratch)
{
    const struct piece *piece = task->piece;
    const struct space *space = task->unit->job->space;
    const struct stream *kv = &space->streams[STREAM_KV];
    uint32_t dim = space->config.head_dim;
    uint16_t value[KERNEL_HEAD_DIM_MAX];
    (void)scratch;
    for (uint32_t head = task->head; head < task->head + task->heads; head++) {
        float *sums = piece->partials + head * dim;
        uint64_t slot = (task->unit->head_first + head) * kv->slot_bytes, first, end;
        memset(sums, 0, dim * sizeof *sums);
        for (uint32_t r = 0; r < piece->n_rows; r++) {
            tokens_of(piece, r, kv->row_tokens, &first, &end);
            for (uint64_t t = first; t < end; t++) {
                struct slot_range v = slot_v(&kv->slot, t % kv->row_tokens, 1);
                piece_copy(space, piece, r, slot + v.offset, v.bytes, value);
                for (uint32_t d = 0; d < dim; d++)
                    sums[d] += kernel_f16_to_f32(value[d]);
            }
        }
    }
}

static void mean_computed(struct unit *unit, const struct piece *piece)
{
    struct job_item *item = &unit->job->items[unit->item];
    item->attended += (uint64_t)piece->tokens * unit->n_heads;
    for (uint32_t r = 0; r < piece->n_rows; r++) {
        uint64_t first, end;
        tokens_of(piece, r, unit->job->space->config.group_tokens, &first, &end);
        item->from_flash += piece->rows[r].on_flash ? (end - first) * unit->n_heads : 0;
        item->programming += piece->rows[r].programming ? (end - first) * unit->n_heads : 0;
    }
}

static bool mean_folds(const struct piece *piece)
{
    (void)piece;
    return true;
}

static void mean_fold(const struct unit_task *task)
{
    const struct mean_unit *own = task->unit->own;
    size_t dim = task->unit->job->space->config.head_dim;
    const struct piece *p = NULL;
    for (uint32_t n = 0; n < task->unit->folding; n++) {
        p = n ? p->next : task->unit->pieces;
        for (size_t i = task->head * dim; i < (task->head + task->heads) * dim; i++)
            own->sums[i] += p->partials[i];
    }
}

static void mean_think(const struct unit_task *task, uint8_t *scratch)
{
    const struct unit *unit = task->unit;
    const struct mean_unit *own = unit->own;
    const struct job *job = unit->job;
    const struct job_item *item = &job->items[unit->item];
    size_t dim = job->space->config.head_dim;
    float n = (float)(item->end - item->window);
    (void)scratch;
    for (uint32_t head = task->head; head < task->head + task->heads; head++) {
        uint64_t q =
            (uint64_t)unit->item * job->header.q_heads + (unit->head_first + head) * unit->group;
        for (uint64_t end = q + unit->group; q < end; q++) {
            for (size_t d = 0; d < dim; d++)
                ((float *)(job->result + job->layout.out))[q * dim + d] =
                    own->sums[head * dim + d] / n;
            ((float *)(job->result + job->layout.lse))[q] = logf(n);
            ((float *)(job->result + job->layout.captured))[q] = 1;
        }
    }
}

static void mean_advance(struct unit *unit)
{
    unit->kind = unit->kind == UNIT_READS ? UNIT_THINKS : UNIT_ENDED;
}

static void mean_end(struct unit *unit)
{
    struct mean_unit *own = unit->own;
    own->next = unit->state->free_units;
    unit->state->free_units = own;
}

static void mean_stats(const struct method_state *s, struct drive_stats *stats)
{
    (void)s, (void)stats;
}

const struct method method_mean = {
    .id = METHOD_MEAN,
    .name = "mean",
    .use = USE_CHOICE,
    .plan = mean_plan,
    .open = mean_open,
    .close = mean_close,
    .begin = mean_begin,
    .want = mean_want,
    .compute = mean_compute,
    .computed = mean_computed,
    .folds = mean_folds,
    .fold = mean_fold,
    .think = mean_think,
    .advance = mean_advance,
    .end = mean_end,
    .stats = mean_stats,
};
