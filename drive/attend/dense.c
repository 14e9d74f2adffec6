// SPDX-License-Identifier: Apache-2.0
// Dense attention: exact, over all tokens, and READ, which brings the same rows back as they are.
// Tiles of 64 absolute positions are computed for whatever pieces are ready, in any order and by
// any worker; their partials are merged in ascending order (contract point 8), so the bits do not
// depend on arrival, threads or the token group.
#include "drive/attend/walk.h"
#include "base/checked.h"

#include <math.h>
#include <string.h>

enum {
    PIECES_LEAST = 4,
    PIECES_MOST = 256,
    PIECES_LEVEL = 8, // doubled by every level
};

struct method_state {
    struct space *space;
    struct attend_env *env;
    struct pieces pieces;
    float *partials;  // [pieces][tiles][q_heads], dense only
    uint32_t q_heads; // planned
    uint64_t attended, from_flash;
};

static uint32_t planned_q_heads(const struct space_config *config)
{
    return config->q_heads ? config->q_heads : 8 * config->kv_heads;
}

static uint32_t pieces_at(unsigned level)
{
    return level ? (uint32_t)min_u64(PIECES_MOST, (uint64_t)PIECES_LEVEL << level) : PIECES_LEAST;
}

static uint64_t partial_floats(const struct space_config *config)
{
    return div_round_up(span_tokens(config), ATTENTION_TILE) * planned_q_heads(config) *
           partial_stride(config->head_dim);
}

static int copy_plan(struct method_plan *plan, const struct flash_geometry *geometry,
                     const struct space_config *config, const struct stream *streams,
                     unsigned level, struct inst_msg *msg)
{
    (void)geometry, (void)streams, (void)msg;
    *plan = (struct method_plan){
        .rows = span_rows(config), .pieces = pieces_at(level), .frames = span_rows(config)};
    plan->bytes =
        sizeof(struct method_state) + 4096 + 64 + pieces_bytes(plan->pieces, span_rows(config), 0);
    return 0;
}

static int dense_plan(struct method_plan *plan, const struct flash_geometry *geometry,
                      const struct space_config *config, const struct stream *streams,
                      unsigned level, struct inst_msg *msg)
{
    uint64_t floats;
    copy_plan(plan, geometry, config, streams, level, msg);
    plan->scratch = KERNEL_SCRATCH_BYTES;
    if (!checked_mul(partial_floats(config), plan->pieces * sizeof(float), &floats) ||
        floats > INT64_MAX / 4)
        return inst_fail(msg, INST_EINVAL, "CONFIG: %u query heads overflow", config->q_heads);
    plan->bytes += floats + 4096 + 64;
    return 0;
}

static int copy_open(struct method_state **out, struct walk *walk, unsigned level,
                     struct inst_msg *msg)
{
    struct space *space = walk->space;
    struct method_state *s = budget_alloc(space->budget, 1, sizeof *s, "attention", msg);
    *out = s;
    if (!s)
        return INST_ENOMEM;
    s->space = space;
    s->env = walk->env;
    return pieces_open(&s->pieces, space, pieces_at(level), span_rows(&space->config), 0, msg);
}

static int dense_open(struct method_state **out, struct walk *walk, unsigned level,
                      struct inst_msg *msg)
{
    int status = copy_open(out, walk, level, msg);
    struct method_state *s = *out;
    if (status)
        return status;
    uint64_t floats = partial_floats(&s->space->config);
    s->q_heads = planned_q_heads(&s->space->config);
    s->partials = budget_alloc(s->space->budget, s->pieces.count, floats * sizeof(float),
                               "attention partials", msg);
    for (uint32_t i = 0; s->partials && i < s->pieces.count; i++)
        s->pieces.all[i].partials = s->partials + i * floats;
    return s->partials ? 0 : INST_ENOMEM;
}

static void dense_close(struct method_state *s)
{
    struct budget *budget = s->space->budget;
    pieces_close(&s->pieces);
    budget_free(budget, s->partials);
    budget_free(budget, s);
}

static int dense_check(struct method_state *s, struct table_header *header,
                       const struct table_item *item, struct inst_msg *msg)
{
    (void)item;
    if (header->q_heads > s->q_heads)
        return inst_fail(msg, INST_ENORESOURCE, "ATTEND: the space was planned for %u query heads",
                         s->q_heads);
    return 0;
}

// ---- pieces ------------------------------------------------------------------------------------

static bool begin(struct unit *u)
{
    u->kind = UNIT_READS;
    u->cursor = u->job->items[u->item].first;
    u->wanted = u->cursor == u->job->items[u->item].end;
    return true;
}

// The next max(T, 64) tokens, whole rows.
static struct piece *want(struct unit *u)
{
    struct piece *piece = piece_get(&u->state->pieces);
    if (!piece)
        return NULL;
    const struct space_config *config = &u->job->space->config;
    uint64_t row_tokens = config->group_tokens, length = span_tokens(config);
    uint64_t end = min_u64(u->cursor / length * length + length, u->job->items[u->item].end);
    piece->stream = STREAM_KV;
    piece->use = USE_SCAN;
    piece->first = u->cursor;
    piece->tokens = (uint32_t)(end - u->cursor);
    for (uint64_t group = u->cursor / row_tokens; group * row_tokens < end; group++)
        piece_add_row(piece, (uint32_t)group);
    u->cursor = end;
    u->wanted = end == u->job->items[u->item].end;
    return piece;
}

static void computed(struct unit *u, const struct piece *piece)
{
    struct job_item *item = &u->job->items[u->item];
    uint64_t row_tokens = u->job->space->config.group_tokens;
    uint64_t start = max_u64(piece->first, item->window);
    uint64_t stop = max_u64(start, piece->first + piece->tokens);
    if (u->job->opcode != OP_ATTEND)
        return;
    item->attended += (stop - start) * u->n_heads;
    for (uint32_t r = 0; r < piece->n_rows; r++) {
        const struct piece_row *row = &piece->rows[r];
        uint64_t first = max_u64(start, row->index * row_tokens);
        uint64_t end = max_u64(first, min_u64(stop, (row->index + 1) * row_tokens));
        item->from_flash += row->on_flash ? (end - first) * u->n_heads : 0;
        item->programming += row->programming ? (end - first) * u->n_heads : 0;
    }
}

// ---- attention ---------------------------------------------------------------------------------

// K and V of `head` for the tokens of the piece from its token `at` on, up to a tile of them.
static void gather_tile(const struct space *space, const struct piece *piece, uint32_t head,
                        uint64_t at, struct attention_tile *tile)
{
    const struct stream *kv = &space->streams[STREAM_KV];
    uint64_t first_group = piece->first / kv->row_tokens, first = piece->first + at;
    tile->tokens = (uint32_t)min_u64(ATTENTION_TILE, piece->tokens - at);
    for (uint32_t t = 0; t < tile->tokens;) {
        const uint8_t *row = piece->rows[(first + t) / kv->row_tokens - first_group].data;
        t += slot_tile(&kv->slot, row + head * kv->slot_bytes, (first + t) % kv->row_tokens, tile,
                       t);
    }
}

// One piece and one KV head: the partials of its tiles for the group's query heads.
static void compute_head(const struct unit *u, const struct piece *piece, uint32_t head,
                         uint8_t *scratch)
{
    const struct job *job = u->job;
    const struct space *space = job->space;
    uint32_t dim = space->config.head_dim, group = u->group;
    const float *q = job->q + ((uint64_t)u->item * job->header.q_heads + head * group) * dim;
    struct attention_tile tile[2];
    for (int i = 0; i < 2; i++)
        tile[i] = (struct attention_tile){
            .head_dim = dim, .scale = job->header.scale, .softcap = job->header.softcap};
    // Only the first tile of an item can hold tokens before its window.
    uint64_t window = job->items[u->item].window;
    uint32_t first[MAX_GROUP_HEADS];
    uint32_t skipped = window > piece->first ? (uint32_t)(window - piece->first) : 0;
    for (uint32_t i = 0; skipped && i < group; i++)
        first[i] = skipped;
    gather_tile(space, piece, head, 0, &tile[0]);
    for (uint64_t t = 0; t < piece->tokens; t += ATTENTION_TILE) {
        uint64_t index = t / ATTENTION_TILE;
        struct attention_tile *this = &tile[index & 1], *next = &tile[~index & 1];
        // Next comes the piece's next tile or, as a rule, the next head's first one.
        bool last = t + ATTENTION_TILE >= piece->tokens;
        if (!last || head + 1 < space->config.kv_heads)
            gather_tile(space, piece, head + last, last ? 0 : t + ATTENTION_TILE, next);
        else
            next = NULL;
        this->next = next;
        this->first = skipped && !t ? first : NULL;
        u->state->env->kernels->attention_tile(
            this, q, dim, group, NULL,
            (float *)partial_at(piece->partials, index * job->header.q_heads + head * group, dim),
            0, scratch);
    }
}

static void dense_compute(const struct unit_task *task, uint8_t *scratch)
{
    for (uint32_t head = task->head; head < task->head + task->heads; head++)
        compute_head(task->unit, task->piece, task->unit->head_first + head, scratch);
}

static bool folds(const struct piece *piece)
{
    (void)piece;
    return true;
}

static void dense_fold(const struct unit_task *task)
{
    const struct unit *u = task->unit;
    const struct job *job = u->job;
    uint32_t dim = job->space->config.head_dim, q_heads = job->header.q_heads;
    uint32_t first = (u->head_first + task->head) * u->group;
    const struct piece *p = NULL;
    for (uint32_t i = 0; i < u->folding; i++) {
        p = i ? p->next : u->pieces;
        uint64_t tiles = div_round_up(p->tokens, ATTENTION_TILE);
        for (uint64_t t = 0; t < tiles; t++) {
            for (uint32_t h = first; h < first + task->heads * u->group; h++)
                u->state->env->kernels->partial_merge(
                    partial_at(job->partials, (uint64_t)u->item * q_heads + h, dim),
                    partial_at(p->partials, t * q_heads + h, dim), dim);
        }
    }
}

static void dense_think(const struct unit_task *task, uint8_t *scratch)
{
    const struct unit *u = task->unit;
    const struct job *job = u->job;
    uint32_t dim = job->space->config.head_dim;
    uint64_t at = (uint64_t)u->item * job->header.q_heads + (u->head_first + task->head) * u->group;
    float *out = (float *)(job->result + job->layout.out);
    float *lse = (float *)(job->result + job->layout.lse);
    float *captured = (float *)(job->result + job->layout.captured);
    (void)scratch;
    for (uint64_t end = at + task->heads * u->group; at < end; at++) {
        const struct partial *partial = partial_at(job->partials, at, dim);
        u->state->env->kernels->partial_output(partial, out + at * dim, dim);
        lse[at] = partial->sum > 0 ? partial->max + logf(partial->sum) : -INFINITY;
        captured[at] = partial->sum > 0 ? 1.0f : 0.0f;
    }
}

static void dense_work(const struct unit *u, const struct piece *piece, struct engine_work *work)
{
    uint64_t scores = piece ? (uint64_t)piece->tokens * u->n_heads * u->group : 0;
    work->products += 2 * scores * u->job->space->config.head_dim;
    work->elements += scores;
}

static void dense_advance(struct unit *u)
{
    u->kind = u->kind == UNIT_READS ? UNIT_THINKS : UNIT_ENDED;
}

static void end(struct unit *u)
{
    (void)u;
}

static void stats(const struct method_state *s, struct drive_stats *out)
{
    (void)s, (void)out;
}

const struct method method_dense = {
    .id = METHOD_DENSE,
    .name = "dense",
    .use = USE_SCAN,
    .plan = dense_plan,
    .open = dense_open,
    .close = dense_close,
    .check = dense_check,
    .begin = begin,
    .want = want,
    .compute = dense_compute,
    .computed = computed,
    .folds = folds,
    .fold = dense_fold,
    .think = dense_think,
    .work = dense_work,
    .advance = dense_advance,
    .end = end,
    .stats = stats,
};

// ---- READ --------------------------------------------------------------------------------------

// The rows of a piece, some heads of them, to the destination slab.
static void copy_compute(const struct unit_task *task, uint8_t *scratch)
{
    const struct piece *piece = task->piece;
    const struct job *job = task->unit->job;
    const struct stream *kv = &job->space->streams[STREAM_KV];
    const struct job_item *item = &job->items[task->unit->item];
    uint64_t dim = job->space->config.head_dim, n = item->end - item->first;
    uint32_t first = (uint32_t)max_u64(task->head, job->header.head_first);
    uint32_t last = (uint32_t)min_u64(task->head + task->heads,
                                      job->header.head_first + job->header.head_count);
    (void)scratch;
    for (uint32_t r = 0; r < piece->n_rows; r++) {
        uint64_t group = piece->rows[r].index;
        uint64_t begin = max_u64(piece->first, group * kv->row_tokens);
        uint64_t stop = min_u64(piece->first + piece->tokens, (group + 1) * kv->row_tokens);
        for (uint32_t head = first; head < last; head++) {
            const uint8_t *slot = piece->rows[r].data + head * kv->slot_bytes;
            uint16_t *k = (uint16_t *)(job->dest + item->offset) +
                          (2 * (head - job->header.head_first) * n + begin - item->first) * dim;
            slot_get(&kv->slot, slot, begin % kv->row_tokens, stop - begin, k, k + n * dim);
        }
    }
}

static bool copy_folds(const struct piece *piece)
{
    (void)piece;
    return false;
}

static void copy_advance(struct unit *u)
{
    u->kind = UNIT_ENDED;
}

const struct method method_copy = {
    .id = UINT32_MAX, // no ATTEND can name it
    .name = "read",
    .use = USE_SCAN,
    .plan = copy_plan,
    .open = copy_open,
    .close = dense_close,
    .begin = begin,
    .want = want,
    .compute = copy_compute,
    .computed = computed,
    .folds = copy_folds,
    .advance = copy_advance,
    .end = end,
    .stats = stats,
};
