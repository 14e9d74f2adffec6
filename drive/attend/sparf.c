// SPDX-License-Identifier: Apache-2.0
// Units and their steps: what is read when, and what became of it. The arithmetic is in
// sparf_math.c.
#include "drive/attend/sparf_unit.h"
#include "base/checked.h"
#include "drive/attend/select.h"

#include <string.h>

enum {
    UNITS_MAX = 16,
    STEPS_MIN = 2,
    STEPS_LEVEL = 8,        // doubled by every level
    SPAN_TOKENS = 256,      // of a step, where there is DRAM for it
    PAGE_BYTES = 512 << 10, // for reads, doubled by every level
};

// ---- sizes -------------------------------------------------------------------------------------

// Sets the unit's pointers into its memory and returns how long that is. memory NULL: only that.
static uint64_t carve(struct unit *u, uint8_t *memory, const struct sparf_size *s, uint32_t dim)
{
    uint64_t at = 0, heads = s->channels.bundle, queries = heads * s->group;
    // Sizes are products of checked, small dimensions and the checked number of tokens.
#define CARVE(field, count)                                                                        \
    u->field = memory ? (void *)(memory + at) : NULL;                                              \
    at += ((count) * sizeof *u->field + 63) / 64 * 64
    CARVE(scores, (heads + queries) * s->tokens);
    CARVE(chosen, heads * (s->tokens / 64));
    CARVE(channels, heads * dim);
    CARVE(q_kept, queries * dim);
    CARVE(factor, queries);
    CARVE(alpha, queries);
    CARVE(dense, queries * partial_stride(dim));
    CARVE(means, heads * dim);
    CARVE(gap_sums, heads * dim);
    CARVE(gaps, heads);
    CARVE(captured, queries);
#undef CARVE
    return at;
}

int sparf_size(struct sparf_size *s, const struct flash_geometry *g, const struct space_config *c,
               const struct stream *streams, unsigned level, struct inst_msg *msg)
{
    *s = (struct sparf_size){0};
    channels_size(&s->channels, g, c, streams, level);
    uint32_t bundle = s->channels.bundle, dim = c->head_dim;
    uint32_t channel_pages = bundle * streams[STREAM_CHANNELS].row_pages;
    s->group = c->q_heads ? (c->q_heads + c->kv_heads - 1) / c->kv_heads : 8;
    if (!checked_round_up(max_u64(c->max_tokens, 1), ATTENTION_TILE, &s->tokens) ||
        s->tokens > (uint64_t)1 << 36 || s->group > MAX_GROUP_HEADS)
        return inst_fail(msg, INST_EINVAL, "CONFIG: sparf over %llu tokens, %u query heads",
                         (unsigned long long)c->max_tokens, c->q_heads);
    uint64_t units = div_round_up(c->kv_heads, bundle) * max_u64(c->max_sequences, 1);
    s->units = (uint32_t)min_u64(min_u64(1u << level, UNITS_MAX), units);
    s->steps = level ? (uint32_t)STEPS_LEVEL << (level - 1) : STEPS_MIN;
    s->span = span_tokens(c);
    if (level > 1)
        s->span = (uint32_t)max_u64(s->span, SPAN_TOKENS);
    uint32_t spans = s->span / span_tokens(c);
    s->step_rows = (uint32_t)max_u64(spans * s->channels.step_rows, bundle);
    s->step_pages = (uint32_t)max_u64(spans * s->channels.step_pages, channel_pages);
    uint64_t least = s->step_pages + (uint64_t)s->channels.steps * s->channels.step_pages;
    uint64_t more = level ? ((uint64_t)PAGE_BYTES << level) / g->page_bytes : 0;
    s->pages = (uint32_t)(least + min_u64(more, (uint64_t)s->steps * s->step_pages));
    struct unit unit;
    s->unit_bytes = carve(&unit, NULL, s, dim);
    // With an audit's beside it.
    s->partial_floats = 2ull * (s->span / ATTENTION_TILE) * bundle * s->group * partial_stride(dim);
    uint64_t each = sizeof(struct unit) + s->unit_bytes + 4096 + 64;
    s->bytes = s->channels.bytes + s->units * each +
               steps_bytes(s->steps, s->step_rows, s->step_pages) +
               s->steps * (s->partial_floats * sizeof(float) + bundle * sizeof(struct task)) +
               (uint64_t)s->units * bundle * sizeof(struct task) +
               s->pages * (frames_bytes_each(g, 1) + sizeof(struct frame *)) +
               sizeof(struct sparf) + 16 * (4096 + 64);
    return 0;
}

int sparf_open(struct space *space, const struct sparf_size *size, struct inst_msg *msg)
{
    struct budget *budget = space->budget;
    uint64_t before = budget->used, bundle = size->channels.bundle;
    struct sparf *s = budget_alloc(budget, 1, sizeof *s, "sparf", msg);
    if (!s)
        return INST_ENOMEM;
    space->sparf = s;
    s->space = space;
    s->size = *size;
    s->last_unit = &s->first_unit;
    s->units = budget_alloc(budget, size->units, sizeof *s->units, "sparf units", msg);
    s->partials = budget_alloc(budget, size->steps, size->partial_floats * sizeof(float),
                               "sparf partials", msg);
    s->tasks = budget_alloc(budget, (size->units + size->steps) * bundle, sizeof *s->tasks,
                            "sparf tasks", msg);
    s->unverified = budget_alloc(budget, size->pages, sizeof *s->unverified, "sparf pages", msg);
    if (!s->units || !s->partials || !s->tasks || !s->unverified)
        return INST_ENOMEM;
    for (uint32_t i = 0; i < size->units; i++) {
        struct unit *u = &s->units[i];
        u->memory = budget_alloc(budget, size->unit_bytes, 1, "sparf scores", msg);
        if (!u->memory)
            return INST_ENOMEM;
        carve(u, u->memory, size, space->config.head_dim);
        u->next = s->free_units;
        s->free_units = u;
    }
    int status = steps_open(&s->steps, space, size->steps, size->step_rows, size->step_pages, msg);
    for (uint32_t i = 0; !status && i < size->steps; i++)
        s->steps.all[i].partials = s->partials + i * size->partial_floats;
    if (!status)
        status = frames_open(&s->pages, space->flash, space->segments, budget, size->pages, 1, msg);
    if (!status)
        status = channels_open(space, &size->channels, msg);
    s->bytes = budget->used - before;
    return status;
}

void sparf_close(struct sparf *s)
{
    if (!s)
        return;
    struct budget *budget = s->space->budget;
    for (uint32_t i = 0; s->units && i < s->size.units; i++)
        budget_free(budget, s->units[i].memory);
    steps_close(&s->steps);
    frames_close(s->pages);
    budget_free(budget, s->units);
    budget_free(budget, s->partials);
    budget_free(budget, s->tasks);
    budget_free(budget, s->unverified);
    budget_free(budget, s);
}

struct frames *sparf_pages(const struct sparf *s)
{
    return s->pages;
}

uint64_t sparf_bytes(const struct sparf *s)
{
    return s->bytes;
}

bool sparf_idle(const struct sparf *s)
{
    return !s->first_unit;
}

uint64_t sparf_max_tokens(const struct space *space)
{
    return space->sparf->size.tokens;
}

const struct sparf_counters *sparf_counters(const struct sparf *s)
{
    return &s->counters;
}

struct step_source sparf_source(struct drive *drive, struct space *space)
{
    return (struct step_source){
        .space = space,
        .pages = space->sparf->pages,
        .programs = channels_programs(space->channels),
        .views = drive->views,
        .view_bytes = &drive->view_bytes,
        .checksum_errors = &drive->checksum_errors,
    };
}

int sparf_check(const struct space *space, struct table_header *h, struct inst_msg *msg)
{
    uint32_t dim = space->config.head_dim;
    if (!space_is_sparf(space))
        return inst_fail(msg, INST_ENOTSUP, "ATTEND: space %u was not made for sparf", space->id);
    if (h->q_heads / space->config.kv_heads > space->sparf->size.group)
        return inst_fail(msg, INST_ENORESOURCE, "ATTEND: sparf was planned for %u query heads",
                         space->sparf->size.group * space->config.kv_heads);
    if (h->sparf_channels > dim || h->audit > 1)
        return inst_fail(msg, INST_EINVAL, "ATTEND: sparf: %u channels of %u, audit %u",
                         h->sparf_channels, dim, h->audit);
    if (!h->sparf_channels)
        h->sparf_channels = (dim + 7) / 8;
    if (!h->sparf_divisor)
        h->sparf_divisor = 8;
    return 0;
}

// ---- units -------------------------------------------------------------------------------------

void sparf_begin(struct drive *drive, struct job *job)
{
    struct sparf *s = job->space->sparf;
    (void)drive;
    s->item = 0;
    s->head = 0;
}

// What the item would have cost, once.
static void count_item(struct sparf *s, const struct job *job, struct job_item *item)
{
    const struct space *space = s->space;
    const struct layer_state *layer = &item->sequence->layers[job->layer];
    const struct stream *kv = &space->streams[STREAM_KV];
    uint64_t rows = min_u64(div_round_up(item->end, kv->row_tokens), layer->rows.n);
    item->units = (uint32_t)div_round_up(space->config.kv_heads, s->size.channels.bundle);
    s->counters.steps++;
    s->counters.dense_pages += rows * kv->row_pages;
}

static void start_unit(struct sparf *s, const struct job *job)
{
    const struct space *space = s->space;
    const struct table_header *h = &job->header;
    struct job_item *item = &job->items[s->item];
    const struct layer_state *layer = &item->sequence->layers[job->layer];
    struct unit *u = s->free_units;
    s->free_units = u->next;
    u->next = NULL;
    *s->last_unit = u;
    s->last_unit = &u->next;
    if (!s->head)
        count_item(s, job, item);
    u->item = s->item;
    u->head_first = s->head;
    u->n_heads = (uint32_t)min_u64(s->size.channels.bundle, space->config.kv_heads - s->head);
    u->group = h->q_heads / space->config.kv_heads;
    u->n_channels = h->sparf_channels;
    u->tokens = item->end;
    u->local = min_u64(h->sparf_local, u->tokens);
    u->k = h->sparf_tokens ? h->sparf_tokens : div_round_up(u->tokens, h->sparf_divisor);
    u->k = min_u64(max_u64(u->k, u->local), u->tokens);
    u->all = u->k == u->tokens;
    u->audit = h->audit != 0;
    u->cursor = 0;
    u->phase = u->all ? UNIT_TOKENS : UNIT_PREPARE;
    u->waiting = 0;
    u->steps = NULL;
    u->last = &u->steps;
    u->flash_tokens = u->programming_tokens = 0;
    u->mean_at = u->mean_end = 0;
    for (uint32_t i = 0; i < u->n_heads * u->group; i++) {
        u->alpha[i] = 1;
        partial_clear(partial_at(u->dense, i, space->config.head_dim));
    }
    if (u->all) { // nothing is ranked, and the mean has no weight
        memset(u->chosen, 0xff, u->n_heads * (s->size.tokens / 64) * sizeof *u->chosen);
        return;
    }
    uint64_t mean_at = UINT64_MAX;
    for (uint32_t i = 0; i < u->n_heads; i++) {
        uint32_t head = u->head_first + i, dim = space->config.head_dim;
        means_get(&layer->means, head, layer->head_tokens[head], u->tokens, u->means + i * dim,
                  &u->gaps[i]);
        memset(u->gap_sums + i * dim, 0, dim * sizeof *u->gap_sums);
        if (u->gaps[i].first == u->gaps[i].end)
            continue;
        mean_at = min_u64(mean_at, u->gaps[i].first);
        u->mean_end = max_u64(u->mean_end, u->gaps[i].end);
    }
    u->mean_at = min_u64(mean_at, u->mean_end);
}

static bool start_units(struct sparf *s, const struct job *job)
{
    bool moved = false;
    while (s->item < job->count) {
        if (!job->items[s->item].status && s->head < s->space->config.kv_heads) {
            if (!s->free_units)
                break;
            start_unit(s, job);
            s->head += s->size.channels.bundle;
        } else {
            s->item++;
            s->head = 0;
        }
        moved = true;
    }
    return moved;
}

static void free_unit(struct sparf *s, struct unit *u)
{
    struct unit **link = &s->first_unit;
    while (*link != u)
        link = &(*link)->next;
    *link = u->next;
    if (!*link)
        s->last_unit = link;
    u->next = s->free_units;
    s->free_units = u;
    if (s->partial == u)
        s->partial = NULL;
}

static void unlink_step(struct unit *u, struct step *step)
{
    struct step **link = &u->steps;
    while (*link != step)
        link = &(*link)->next;
    *link = step->next;
    if (!*link)
        u->last = link;
    u->waiting--;
}

// Units whose item failed end here, with all they hold.
static bool drop_failed(struct sparf *s, const struct job *job, const struct step_source *source)
{
    bool moved = false;
    for (struct unit *next, *u = s->first_unit; u; u = next) {
        next = u->next;
        if (!job->items[u->item].status)
            continue;
        for (struct step *step = u->steps, *after; step; step = after) {
            after = step->next;
            if (!step->computed)
                step_release(source, step);
            step_put(&s->steps, step);
        }
        free_unit(s, u);
        moved = true;
    }
    return moved;
}

// ---- steps -------------------------------------------------------------------------------------

static struct step *new_step(struct sparf *s, struct unit *u, enum step_kind kind, uint64_t first,
                             uint64_t end)
{
    struct step *step = step_get(&s->steps);
    if (!step)
        return NULL;
    step->kind = kind;
    step->stream = kind == STEP_CHANNELS ? STREAM_CHANNELS : STREAM_KV;
    step->first = first;
    step->tokens = (uint32_t)(end - first);
    *u->last = step;
    u->last = &step->next;
    step->next = NULL;
    u->waiting++;
    return step;
}

// Adds the token groups of the step with the bundle's slots.
static void add_rows(const struct sparf *s, const struct unit *u, struct step *step)
{
    const struct stream *kv = &s->space->streams[STREAM_KV];
    uint64_t page = s->space->flash->geometry.page_bytes, from = u->head_first * kv->slot_bytes;
    uint32_t first_page = (uint32_t)(from / page);
    uint32_t n_pages =
        (uint32_t)(div_round_up(from + u->n_heads * kv->slot_bytes, page) - first_page);
    for (uint64_t g = step->first / kv->row_tokens; g * kv->row_tokens < step->first + step->tokens;
         g++)
        step_add_row(step, (uint32_t)g, first_page, n_pages);
}

// Wants K and/or V of the tokens [first, end) of one head, which lie in the step's row `row`.
static void want(const struct sparf *s, struct step *step, uint32_t row, uint32_t head,
                 uint64_t first, uint64_t end, unsigned what, bool extra)
{
    const struct stream *kv = &s->space->streams[STREAM_KV];
    uint64_t at = head * kv->slot_bytes, t = first % kv->row_tokens;
    struct slot_range k = slot_k(&kv->slot, t, end - first), v = slot_v(&kv->slot, t, end - first);
    if (what & WANT_K)
        step_want(s->space, step, row, at + k.offset, k.bytes, extra);
    if (what & WANT_V)
        step_want(s->space, step, row, at + v.offset, v.bytes, extra);
}

// Wants runs of the tokens that are chosen (all: of all) in every row of the step.
static void want_tokens(const struct sparf *s, struct step *step, unsigned what,
                        const uint64_t *chosen, uint32_t head, bool extra)
{
    uint64_t row_tokens = s->space->streams[STREAM_KV].row_tokens;
    uint64_t end = step->first + step->tokens;
    for (uint32_t r = 0; r < step->n_rows; r++) {
        uint64_t t = max_u64(step->first, step->rows[r].index * row_tokens);
        uint64_t stop = min_u64(end, (step->rows[r].index + 1ull) * row_tokens);
        while (t < stop) {
            while (t < stop && chosen && !(chosen[t / 64] >> t % 64 & 1))
                t++;
            uint64_t run = t;
            while (run < stop && (!chosen || chosen[run / 64] >> run % 64 & 1))
                run++;
            if (run > t)
                want(s, step, r, head, t, run, what, extra);
            t = run;
        }
    }
}

static bool all_heads_built(const struct sparf *s, const struct unit *u,
                            const struct layer_state *layer, uint64_t group)
{
    for (uint32_t i = 0; i < u->n_heads; i++) {
        if (!channels_row(s->space, layer, group, u->head_first + i))
            return false;
    }
    return true;
}

static struct step *rank_step(struct sparf *s, struct unit *u, const struct layer_state *layer)
{
    const struct space *space = s->space;
    const struct stream *channels = &space->streams[STREAM_CHANNELS];
    uint64_t cover = channels->row_tokens, group = u->cursor / cover;
    uint64_t length = min_u64(s->size.span, cover), end;
    struct step *step;
    if (u->cursor == u->tokens)
        return NULL;
    if (u->cursor % cover == 0 && u->cursor + cover <= u->tokens &&
        all_heads_built(s, u, layer, group)) {
        end = u->cursor + cover;
        step = new_step(s, u, STEP_CHANNELS, u->cursor, end);
        for (uint32_t i = 0; step && i < u->n_heads; i++) {
            step_add_row(step, (uint32_t)(group * space->config.kv_heads + u->head_first + i), 0,
                         channels->row_pages);
            const uint32_t *list = u->channels + i * space->config.head_dim;
            for (uint32_t c = 0; c < u->n_channels; c++)
                step_want(space, step, i, sparf_channel_offset(space, list[c]), 2 * cover, false);
        }
    } else {
        end = min_u64(u->tokens, (u->cursor / length + 1) * length);
        step = new_step(s, u, STEP_TAIL, u->cursor, end);
        if (step)
            add_rows(s, u, step);
        for (uint32_t i = 0; step && i < u->n_heads; i++)
            want_tokens(s, step, WANT_K, NULL, u->head_first + i, false);
    }
    if (step)
        u->cursor = end;
    return step;
}

static struct step *token_step(struct sparf *s, struct unit *u)
{
    uint64_t length = s->size.span, words = s->size.tokens / 64, end;
    struct step *step;
    if (u->mean_at < u->mean_end) {
        end = min_u64(u->mean_end, (u->mean_at / length + 1) * length);
        step = new_step(s, u, STEP_MEAN, u->mean_at, end);
        if (!step)
            return NULL;
        u->mean_at = end;
        add_rows(s, u, step);
        for (uint32_t i = 0; i < u->n_heads; i++)
            want_tokens(s, step, WANT_V, NULL, u->head_first + i, false);
        return step;
    }
    for (; u->cursor < u->tokens; u->cursor = end) {
        end = min_u64(u->tokens, (u->cursor / length + 1) * length);
        uint64_t n = u->audit;
        for (uint32_t i = 0; i < u->n_heads && !n; i++)
            n = select_count(u->chosen + i * words, u->cursor, end);
        if (!n)
            continue;
        step = new_step(s, u, STEP_TOKENS, u->cursor, end);
        if (!step)
            return NULL;
        u->cursor = end;
        add_rows(s, u, step);
        for (uint32_t i = 0; i < u->n_heads; i++) {
            want_tokens(s, step, WANT_K | WANT_V, u->chosen + i * words, u->head_first + i, false);
            if (u->audit)
                want_tokens(s, step, WANT_K | WANT_V, NULL, u->head_first + i, true);
        }
        return step;
    }
    return NULL;
}

static bool reading(const struct unit *u)
{
    return u->phase == UNIT_RANK || u->phase == UNIT_TOKENS;
}

// The step that a unit needs next, or the one of it that is partly acquired.
static struct step *next_step(struct sparf *s, struct unit *u, const struct job *job)
{
    const struct job_item *item = &job->items[u->item];
    if (s->partial == u) {
        struct step *step = u->steps;
        while (step->next)
            step = step->next;
        return step;
    }
    if (item->status || !reading(u))
        return NULL;
    if (u->phase == UNIT_RANK)
        return rank_step(s, u, &item->sequence->layers[job->layer]);
    return token_step(s, u);
}

bool sparf_fetch(struct drive *drive)
{
    struct job *job = drive->active;
    struct sparf *s = job->space->sparf;
    const struct step_source source = sparf_source(drive, job->space);
    bool moved = start_units(s, job);
    for (struct unit *u = s->first_unit; u;) {
        bool resume = s->partial != NULL;
        if (resume) // before any other step takes page frames
            u = s->partial;
        struct step *step = next_step(s, u, job);
        if (!step) {
            u = u->next;
            continue;
        }
        enum step_result result =
            step_acquire(&source, job->items[u->item].sequence, job->layer, step);
        s->partial = result == STEP_NO_FRAME ? u : NULL;
        if (result == STEP_NO_FRAME)
            break;
        moved = true;
        if (result == STEP_FAILED)
            item_failed(job, u->item, step->status, step->stream, step->failed_group);
        if (resume)
            u = s->first_unit;
    }
    return moved;
}

// ---- results -----------------------------------------------------------------------------------

// What was read for a step, filter by filter.
static void count_step(struct sparf *s, struct unit *u, const struct step *step)
{
    const struct space *space = s->space;
    const struct stream *kv = &space->streams[STREAM_KV];
    struct sparf_counters *c = &s->counters;
    uint64_t page = space->flash->geometry.page_bytes, bytes = step->read_pages * page;
    uint64_t words = s->size.tokens / 64;
    switch ((enum step_kind)step->kind) {
    case STEP_CHANNELS:
        c->channel_pages += step->read_pages;
        if (step->read_pages)
            c->channel_kept_bytes += 2ull * step->tokens * u->n_channels * u->n_heads;
        return;
    case STEP_TAIL:
        c->tail_bytes += bytes;
        return;
    case STEP_MEAN:
        c->mean_bytes += bytes;
        return;
    case STEP_TOKENS:
        break;
    }
    c->token_pages += step->read_pages;
    c->audit_pages += step->read_extra;
    uint64_t end = step->first + step->tokens;
    for (uint32_t r = 0; r < step->n_rows; r++) {
        uint64_t first = max_u64(step->first, step->rows[r].index * (uint64_t)kv->row_tokens);
        uint64_t stop = min_u64(end, (step->rows[r].index + 1ull) * kv->row_tokens);
        for (uint32_t i = 0; i < u->n_heads && step->rows[r].on_flash; i++) {
            uint64_t n = select_count(u->chosen + i * words, first, stop);
            u->flash_tokens += n;
            if (step->rows[r].frame)
                u->programming_tokens += n;
            else
                c->token_kept_bytes += n * 4ull * space->config.head_dim;
        }
    }
}

static void count_audit(struct sparf *s, const struct unit *u)
{
    struct sparf_counters *c = &s->counters;
    for (uint32_t i = 0; u->audit && i < u->n_heads * u->group; i++) {
        double mass = u->captured[i] >= 0 ? (double)u->captured[i] : 0; // not NaN
        uint64_t millionths = (uint64_t)(mass * 1e6 + 0.5);
        c->captured_worst = c->audits ? min_u64(c->captured_worst, millionths) : millionths;
        c->captured_sum += millionths;
        c->audits++;
    }
}

static void end_unit(struct drive *drive, struct sparf *s, struct job *job, struct unit *u)
{
    struct job_item *item = &job->items[u->item];
    struct layer_state *layer = &item->sequence->layers[job->layer];
    for (uint32_t i = 0; i < u->n_heads && !u->all; i++) {
        uint32_t head = u->head_first + i;
        means_fill(&layer->means, head, layer->head_tokens[head], &u->gaps[i],
                   u->gap_sums + i * s->space->config.head_dim);
    }
    count_audit(s, u);
    item->flash_tokens += u->flash_tokens;
    item->programming_tokens += u->programming_tokens;
    if (!--item->units) {
        drive->attended += u->k;
        drive->attended_from_flash += item->flash_tokens / s->space->config.kv_heads;
        drive->attended_programming += item->programming_tokens / s->space->config.kv_heads;
    }
    free_unit(s, u);
}

static void add_tasks(struct sparf *s, struct unit *u, struct step *step)
{
    for (uint32_t i = 0; i < u->n_heads; i++)
        s->tasks[s->n_tasks++] = (struct task){u, step, i};
}

// Verifies what was read for ready steps and makes tasks of them.
static void collect_steps(struct drive *drive, struct sparf *s, struct job *job,
                          const struct step_source *source)
{
    size_t n_unverified = 0, n_steps = 0;
    // A long batch would leave the device without requests meanwhile.
    size_t most = drive->views ? s->size.steps : max_u64(4, s->size.steps / 4);
    for (struct unit *u = s->first_unit; u && n_steps < most; u = u->next) {
        bool mean = false; // one at a time: they add to the same sums
        for (struct step *step = u->steps; step && n_steps < most; step = step->next) {
            if (step->computed || !step_ready(step) || (step->kind == STEP_MEAN && mean))
                continue;
            mean |= step->kind == STEP_MEAN;
            n_unverified = step_unverified(step, s->unverified, n_unverified);
            add_tasks(s, u, step);
            n_steps++;
        }
    }
    step_verify(drive->pool, source, s->unverified, n_unverified);
    size_t kept = 0;
    for (size_t i = 0; i < s->n_tasks; i++) {
        struct task *task = &s->tasks[i];
        uint64_t group = 0;
        int status = step_read_status(task->step, &group);
        if (status)
            item_failed(job, task->unit->item, status, task->step->stream, group);
        if (!job->items[task->unit->item].status)
            s->tasks[kept++] = *task;
    }
    s->n_tasks = kept;
}

// After the arithmetic: pages go back, and so do steps that nobody folds.
static void settle_steps(struct sparf *s, const struct step_source *source)
{
    for (size_t i = 0; i < s->n_tasks; i++) {
        struct task *task = &s->tasks[i];
        struct step *step = task->step;
        if (task->head)
            continue;
        count_step(s, task->unit, step);
        step_release(source, step);
        step->computed = true;
        if (step->kind == STEP_TOKENS)
            continue;
        unlink_step(task->unit, step);
        step_put(&s->steps, step);
    }
}

// Merges what is computed at the front of each unit.
static bool fold(struct drive *drive, struct sparf *s)
{
    s->n_tasks = 0;
    for (struct unit *u = s->first_unit; u; u = u->next) {
        if (u->steps && u->steps->computed)
            add_tasks(s, u, NULL);
    }
    if (!s->n_tasks)
        return false;
    pool_run(drive->pool, sparf_fold, s, s->n_tasks);
    for (struct unit *u = s->first_unit; u; u = u->next) {
        while (u->steps && u->steps->computed) {
            struct step *step = u->steps;
            unlink_step(u, step);
            step_put(&s->steps, step);
        }
    }
    return true;
}

// Units that wait for nothing but arithmetic, and their next phase.
static bool advance(struct drive *drive, struct sparf *s, struct job *job)
{
    static const enum unit_phase after[] = {
        [UNIT_PREPARE] = UNIT_RANK,
        [UNIT_SELECT] = UNIT_TOKENS,
        [UNIT_FINISH] = UNIT_ENDED,
    };
    bool moved = false;
    s->n_tasks = 0;
    for (struct unit *u = s->first_unit; u; u = u->next) {
        if (reading(u) && !u->waiting && u->cursor == u->tokens)
            u->phase = u->phase == UNIT_RANK ? UNIT_SELECT : UNIT_FINISH;
        if (!reading(u))
            add_tasks(s, u, NULL);
    }
    if (!s->n_tasks)
        return false;
    pool_run(drive->pool, sparf_phase, s, s->n_tasks);
    for (struct unit *next, *u = s->first_unit; u; u = next) {
        next = u->next;
        if (reading(u))
            continue;
        u->phase = after[u->phase];
        u->cursor = 0;
        moved = true;
        if (u->phase == UNIT_ENDED)
            end_unit(drive, s, job, u);
    }
    return moved;
}

bool sparf_compute(struct drive *drive, bool *done)
{
    struct job *job = drive->active;
    struct sparf *s = job->space->sparf;
    const struct step_source source = sparf_source(drive, job->space);
    s->drive = drive;
    s->job = job;
    s->n_tasks = 0;
    bool moved = drop_failed(s, job, &source);
    collect_steps(drive, s, job, &source);
    moved |= s->n_tasks != 0;
    pool_run(drive->pool, sparf_step, s, s->n_tasks);
    settle_steps(s, &source);
    moved |= drop_failed(s, job, &source);
    moved |= fold(drive, s);
    moved |= advance(drive, s, job);
    *done = !s->first_unit && s->item >= job->count;
    return moved || *done;
}
