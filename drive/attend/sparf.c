// SPDX-License-Identifier: Apache-2.0
// Units of SparF and their pieces: what is read when, and what became of it. The arithmetic is in
// sparf_math.c.
#include "drive/attend/sparf.h"
#include "base/checked.h"
#include "drive/attend/select.h"
#include "drive/ftl/index_rows.h"

#include <string.h>

enum { WANT_K = 1, WANT_V = 2 };

enum {
    SPARF_UNITS_MAX = 16,
    PIECES_MIN = 2,
    PIECES_LEVEL = 8,  // doubled by every level
    PIECES_MORE = 4,   // pages: times as many, of each of which little is read
    SPAN_TOKENS = 256, // of a piece, where there is DRAM for it
    USUAL_SHARE = 8,   // pages: of tokens, by default
    // Of so many sequences some think while others read: pages then has so many heads in a unit,
    // which is less to keep account of, than it takes for heads of one to overlap.
    MANY_SEQUENCES = 4,
    MANY_HEADS = 32,
};

// ---- sizes -------------------------------------------------------------------------------------

// Sets the unit's pointers into its memory and returns how long that is. memory NULL: only that.
static uint64_t carve(struct sparf_unit *u, uint8_t *memory, const struct sparf_size *s,
                      uint32_t dim)
{
    uint64_t at = 0, heads = s->bundle, queries = heads * s->group;
    // Sizes are products of checked, small dimensions and the checked number of tokens.
#define CARVE(field, count) u->field = budget_carve(memory, &at, (count) * sizeof *u->field)
    CARVE(scores, heads * s->head_floats);
    CARVE(rest, s->rest ? queries * partial_stride(dim) : 0);
    CARVE(chosen, heads * (s->tokens / 64));
    CARVE(marks, heads * sparf_marks(s));
    CARVE(channels, heads * dim);
    CARVE(q_kept, queries * dim);
    CARVE(factor, queries);
    CARVE(alpha, queries);
    CARVE(dense, queries * partial_stride(dim));
    CARVE(means, heads * dim);
    CARVE(gap_sums, heads * dim);
    CARVE(gaps, heads);
    CARVE(captured, queries);
    CARVE(predicted, s->rest ? queries : 0);
    CARVE(queries.tables, s->rows ? queries * s->table : 0);
    CARVE(queries.steps, s->rows ? queries * s->middle : 0);
    CARVE(queries.factors, s->rows ? queries : 0);
    CARVE(queries.squares, s->rows ? heads * PAGES_SAMPLES : 0);
#undef CARVE
    return at;
}

static const char *name_of(const struct space_config *c)
{
    return c->method == METHOD_PAGES ? "pages" : "sparf";
}

// A unit of many heads, where there are many sequences: but not where a piece of heads that choose
// together is a smaller gap than what a request costs, since others' would be read to bridge it.
static bool many_heads(const struct flash_geometry *g, const struct space_config *c)
{
    return c->method == METHOD_PAGES && c->max_sequences >= MANY_SEQUENCES &&
           (uint64_t)space_config_together(c) * index_piece(c) *
                   kv_token_bytes(c->kv_type, c->head_dim) >
               g->request_bytes;
}

static int sparf_size(struct sparf_size *s, const struct flash_geometry *g,
                      const struct space_config *c, const struct stream *streams, unsigned level,
                      struct inst_msg *msg)
{
    const struct stream *kv = &streams[STREAM_KV];
    uint32_t dim = c->head_dim;
    uint64_t bundle = channels_bundle(g, c, kv), together = space_config_together(c);
    if (level > 1 && many_heads(g, c))
        bundle = max_u64(bundle, MANY_HEADS);
    bundle = div_round_up(bundle, together) * together;
    *s = (struct sparf_size){.bundle = (uint32_t)min_u64(bundle, c->kv_heads)};
    s->group = c->q_heads ? (c->q_heads + c->kv_heads - 1) / c->kv_heads : 8;
    if (!checked_round_up(max_u64(c->max_tokens, 1), ATTENTION_TILE, &s->tokens) ||
        s->tokens > (uint64_t)1 << 36 || s->group > MAX_GROUP_HEADS)
        return inst_fail(msg, INST_EINVAL, "CONFIG: %s over %llu tokens, %u query heads",
                         name_of(c), (unsigned long long)c->max_tokens, c->q_heads);
    s->rest = c->method == METHOD_PAGES;
    s->held = s->rest ? index_hold_bytes(c) : 0;
    s->rows = s->rest && c->piece_flash;
    if (s->rows) {
        const struct index_shape shape = index_shape(c);
        s->table = (uint32_t)index_table_bytes(&shape);
        s->middle = index_middle_dim(&shape);
    }
    s->head_floats = s->rest ? pages_floats(c, s->tokens, s->group) : (s->group + 1ull) * s->tokens;
    s->scratch = s->rest ? max_u64(sparf_scratch(dim), pages_scratch(c)) : sparf_scratch(dim);
    uint64_t units = div_round_up(c->kv_heads, s->bundle) * max_u64(c->max_sequences, 1);
    s->units = (uint32_t)min_u64(min_u64(1u << level, SPARF_UNITS_MAX), units);
    s->pieces = level ? (uint32_t)PIECES_LEVEL << (level - 1) : PIECES_MIN;
    if (level && s->rest)
        s->pieces *= PIECES_MORE;
    s->span = span_tokens(c);
    if (level > 1)
        s->span = (uint32_t)max_u64(s->span, SPAN_TOKENS);
    uint32_t rows = s->span / kv->row_tokens;
    uint64_t row_pages = div_round_up(s->bundle * kv->slot_bytes, g->page_bytes) + 1;
    s->piece_rows = (uint32_t)max_u64(rows, s->bundle);
    s->piece_pages = (uint32_t)max_u64(rows * row_pages,
                                       (uint64_t)s->bundle * streams[STREAM_CHANNELS].row_pages);
    if (s->rows)
        s->piece_pages = (uint32_t)max_u64(
            s->piece_pages,
            div_round_up(s->bundle / together * index_row(c).set_bytes, g->page_bytes) + 1);
    struct sparf_unit unit;
    s->unit_bytes = carve(&unit, NULL, s, dim);
    // With an audit's beside it.
    s->partial_floats =
        2ull * (s->span / ATTENTION_TILE) * s->bundle * s->group * partial_stride(dim);
    return 0;
}

int sparf_plan(struct method_plan *plan, const struct flash_geometry *geometry,
               const struct space_config *config, const struct stream *streams, unsigned level,
               struct inst_msg *msg)
{
    struct sparf_size s;
    int status = sparf_size(&s, geometry, config, streams, level, msg);
    *plan = (struct method_plan){0};
    if (status)
        return status;
    plan->pages = s.piece_pages;
    plan->pieces = s.pieces;
    plan->frames = s.piece_pages + s.piece_rows;
    plan->share = s.rest ? USUAL_SHARE : 0;
    plan->scratch = s.scratch;
    plan->bytes = sizeof(struct method_state) +
                  s.units * (sizeof(struct sparf_unit) + s.unit_bytes + s.held + 4096 + 64) +
                  pieces_bytes(s.pieces, s.piece_rows, s.piece_pages) +
                  s.pieces * s.partial_floats * sizeof(float) + 3 * (4096 + 64);
    return 0;
}

int sparf_open(struct method_state **out, struct walk *walk, unsigned level, struct inst_msg *msg)
{
    struct space *space = walk->space;
    struct budget *budget = space->budget;
    uint64_t before = budget->used;
    struct method_state *s = budget_alloc(budget, 1, sizeof *s, "sparf", msg);
    *out = s;
    if (!s)
        return INST_ENOMEM;
    s->space = space;
    s->env = walk->env;
    s->shape = index_shape(&space->config);
    int status =
        sparf_size(&s->size, &space->flash->geometry, &space->config, space->streams, level, msg);
    if (status)
        return status;
    const struct sparf_size *size = &s->size;
    s->units = budget_alloc(budget, size->units, sizeof *s->units, "sparf units", msg);
    s->partials = budget_alloc(budget, size->pieces, size->partial_floats * sizeof(float),
                               "sparf partials", msg);
    if (!s->units || !s->partials)
        return INST_ENOMEM;
    for (uint32_t i = 0; i < size->units; i++) {
        struct sparf_unit *u = &s->units[i];
        u->memory = budget_alloc(budget, size->unit_bytes, 1, "sparf scores", msg);
        if (!u->memory)
            return INST_ENOMEM;
        carve(u, u->memory, size, space->config.head_dim);
        u->next = s->free_units;
        s->free_units = u;
    }
    status = pieces_open(&s->pieces, space, size->pieces, size->piece_rows, size->piece_pages, msg);
    for (uint32_t i = 0; !status && i < size->pieces; i++)
        s->pieces.all[i].partials = s->partials + i * size->partial_floats;
    s->bytes = budget->used - before;
    return status;
}

void sparf_close(struct method_state *s)
{
    struct budget *budget = s->space->budget;
    for (uint32_t i = 0; s->units && i < s->size.units; i++)
        budget_free(budget, s->units[i].memory);
    pieces_close(&s->pieces);
    budget_free(budget, s->units);
    budget_free(budget, s->partials);
    budget_free(budget, s);
}

int sparf_check_heads(const struct method_state *s, const struct table_header *h,
                      const struct table_item *item, struct inst_msg *msg)
{
    const char *name = name_of(&s->space->config);
    if (h->q_heads / s->space->config.kv_heads > s->size.group)
        return inst_fail(msg, INST_ENORESOURCE, "ATTEND: %s was planned for %u query heads", name,
                         s->size.group * s->space->config.kv_heads);
    if (item->window)
        return inst_fail(msg, INST_ENOTSUP, "ATTEND: sequence %u: %s with a window", item->seq,
                         name);
    return 0;
}

static int sparf_check(struct method_state *s, struct table_header *h,
                       const struct table_item *item, struct inst_msg *msg)
{
    uint32_t dim = s->space->config.head_dim;
    int status = sparf_check_heads(s, h, item, msg);
    if (status)
        return status;
    if (h->sparf_channels > dim || h->audit > 1)
        return inst_fail(msg, INST_EINVAL, "ATTEND: sparf: %u channels of %u, audit %u",
                         h->sparf_channels, dim, h->audit);
    if (!h->sparf_channels)
        h->sparf_channels = (dim + 7) / 8;
    if (!h->sparf_divisor)
        h->sparf_divisor = 8;
    return 0;
}

int sparf_check_item(const struct method_state *s, const struct table_item *item,
                     struct inst_msg *msg)
{
    if (item->pos + item->n_tokens <= s->size.tokens)
        return 0;
    return inst_fail(msg, INST_ENORESOURCE, "ATTEND: sequence %u: %s was planned for %llu tokens",
                     item->seq, name_of(&s->space->config), (unsigned long long)s->size.tokens);
}

uint32_t sparf_bundle(const struct method_state *s)
{
    return s->size.bundle;
}

// ---- units -------------------------------------------------------------------------------------

// What the item would have cost, once.
static void count_item(struct method_state *s, const struct unit *unit)
{
    const struct job_item *item = &unit->job->items[unit->item];
    const struct stream *kv = &s->space->streams[STREAM_KV];
    uint64_t rows = min_u64(div_round_up(item->end, kv->row_tokens),
                            item->sequence->layers[unit->job->layer].rows.n);
    s->steps++;
    s->dense_pages += rows * kv->row_pages;
}

// What the sums of V lack of the unit's tokens.
static void begin_means(struct method_state *s, const struct unit *unit, struct sparf_unit *u)
{
    const struct layer_state *layer =
        &unit->job->items[unit->item].sequence->layers[unit->job->layer];
    uint32_t dim = s->space->config.head_dim;
    uint64_t mean_at = UINT64_MAX;
    for (uint32_t i = 0; i < unit->n_heads; i++) {
        uint32_t head = unit->head_first + i;
        means_get(channels_means(layer), head, layer->head_tokens[head], u->tokens,
                  u->means + i * dim, &u->gaps[i]);
        memset(u->gap_sums + i * dim, 0, dim * sizeof *u->gap_sums);
        if (u->gaps[i].first == u->gaps[i].end)
            continue;
        mean_at = min_u64(mean_at, u->gaps[i].first);
        u->mean_end = max_u64(u->mean_end, u->gaps[i].end);
    }
    u->mean_at = min_u64(mean_at, u->mean_end);
}

static bool all_heads_built(const struct method_state *s, const struct unit *u,
                            const struct layer_state *layer, uint64_t group)
{
    for (uint32_t i = 0; i < u->n_heads; i++) {
        if (!channels_row(s->space, layer, group, u->head_first + i))
            return false;
    }
    return true;
}

// Whoever listens is told of each head.
static void tell(const struct unit *unit, bool tokens_known)
{
    const struct method_state *s = unit->state;
    const struct job_item *item = &unit->job->items[unit->item];
    const struct layer_state *layer = &item->sequence->layers[unit->job->layer];
    const struct sparf_unit *u = unit->own;
    uint64_t ranked = 0, cover = s->space->streams[STREAM_CHANNELS].row_tokens;
    if (!s->env->selected)
        return;
    while (!u->all && !s->size.rest && ranked + cover <= u->tokens &&
           all_heads_built(s, unit, layer, ranked / cover))
        ranked += cover;
    for (uint32_t i = 0; i < unit->n_heads; i++) {
        struct drive_selection told = {
            .config = &s->space->config,
            .page_bytes = s->space->flash->geometry.page_bytes,
            .part_tokens = s->space->streams[STREAM_KV].slot.k_tokens,
            .method = s->space->config.method,
            .layer = unit->job->layer,
            .seq = item->sequence->id,
            .head = unit->head_first + i,
            .tokens = u->tokens,
            .flash_tokens =
                min_u64(u->tokens, layer->rows.n * s->space->streams[STREAM_KV].row_tokens),
            .ranked_tokens = ranked,
            .n_channels = u->all || s->size.rest ? 0 : u->n_channels,
            .channels = u->channels + i * s->space->config.head_dim,
            .chosen = tokens_known ? u->chosen + i * (s->size.tokens / 64) : NULL};
        s->env->selected(s->env->selected_user, &told);
    }
    if (tokens_known) // whoever listens may have put others in their place
        memset(u->marks, 0xff, unit->n_heads * sparf_marks(&s->size) * sizeof *u->marks);
}

struct sparf_unit *sparf_take(struct unit *unit, uint64_t k, bool audit)
{
    struct method_state *s = unit->state;
    struct sparf_unit *u = s->free_units;
    if (!u)
        return NULL;
    s->free_units = u->next;
    unit->own = u;
    if (!unit->head_first)
        count_item(s, unit);
    u->tokens = unit->job->items[unit->item].end;
    u->k = k;
    u->all = u->k == u->tokens;
    u->audit = audit;
    u->mean_at = u->mean_end = 0;
    u->means_waiting = 0;
    u->redo = UINT64_MAX;
    memset(u->marks, 0xff, unit->n_heads * sparf_marks(&s->size) * sizeof *u->marks);
    for (uint32_t i = 0; i < unit->n_heads * unit->group; i++) {
        u->alpha[i] = 1;
        partial_clear(partial_at(u->dense, i, s->space->config.head_dim));
    }
    if (u->all) { // nothing is ranked
        memset(u->chosen, 0xff, unit->n_heads * (s->size.tokens / 64) * sizeof *u->chosen);
        tell(unit, true);
    }
    unit->phase = SPARF_TOKENS;
    unit->kind = UNIT_READS;
    return u;
}

static bool sparf_begin(struct unit *unit)
{
    const struct table_header *h = &unit->job->header;
    uint64_t tokens = unit->job->items[unit->item].end, local = min_u64(h->sparf_local, tokens);
    uint64_t k = h->sparf_tokens ? h->sparf_tokens : div_round_up(tokens, h->sparf_divisor);
    struct sparf_unit *u = sparf_take(unit, min_u64(max_u64(k, local), tokens), h->audit != 0);
    if (!u)
        return false;
    u->n_channels = h->sparf_channels;
    u->local = local;
    if (u->all) // the mean has no weight
        return true;
    unit->phase = SPARF_PREPARE;
    unit->kind = UNIT_THINKS;
    begin_means(unit->state, unit, u);
    return true;
}

// ---- pieces ------------------------------------------------------------------------------------

struct piece *sparf_piece(struct unit *unit, enum sparf_piece kind, uint64_t first, uint64_t end)
{
    struct piece *piece = piece_get(&unit->state->pieces);
    if (!piece)
        return NULL;
    piece->kind = kind;
    piece->stream = kind == PIECE_CHANNELS ? STREAM_CHANNELS
                    : kind == PIECE_INDEX  ? STREAM_INDEX
                                           : STREAM_KV;
    // All rows of an index are read in a cycle: they are not to drive out what is chosen.
    piece->use = kind == PIECE_INDEX ? USE_SCAN : USE_CHOICE;
    piece->first = first;
    piece->tokens = (uint32_t)(end - first);
    return piece;
}

// Adds the token groups of the piece with the bundle's slots.
static void add_rows(const struct method_state *s, const struct unit *u, struct piece *piece)
{
    const struct stream *kv = &s->space->streams[STREAM_KV];
    uint64_t page = s->space->flash->geometry.page_bytes, from = u->head_first * kv->slot_bytes;
    uint32_t first_page = (uint32_t)(from / page);
    uint32_t n_pages =
        (uint32_t)(div_round_up(from + u->n_heads * kv->slot_bytes, page) - first_page);
    for (uint64_t g = piece->first / kv->row_tokens;
         g * kv->row_tokens < piece->first + piece->tokens; g++)
        piece_add_pages(piece, (uint32_t)g, first_page, n_pages);
}

// Wants K and/or V of the tokens [first, end) of one head, which lie in the piece's row `row`.
static void want(const struct method_state *s, struct piece *piece, uint32_t row, uint32_t head,
                 uint64_t first, uint64_t end, unsigned what, bool extra)
{
    const struct stream *kv = &s->space->streams[STREAM_KV];
    uint64_t at = head * kv->slot_bytes, t = first % kv->row_tokens;
    struct slot_range k = slot_k(&kv->slot, t, end - first), v = slot_v(&kv->slot, t, end - first);
    if (what & WANT_K)
        piece_want(s->space, piece, row, at + k.offset, k.bytes, extra);
    if (what & WANT_V)
        piece_want(s->space, piece, row, at + v.offset, v.bytes, extra);
}

// Tokens of the head's slot up to this one have their K and V in pages that hold those of token
// `last`, or before.
static uint64_t covered(const struct method_state *s, uint32_t head, uint64_t last)
{
    const struct slot *slot = &s->space->streams[STREAM_KV].slot;
    uint64_t page = s->space->flash->geometry.page_bytes, t = last % slot->tokens;
    uint64_t at = head * s->space->streams[STREAM_KV].slot_bytes;
    struct slot_range v = slot_v(slot, t, 1), start = slot_v(slot, 0, 1);
    uint64_t page_end = (at + v.offset + v.bytes - 1) / page * page + page;
    uint64_t values = (page_end - at - start.offset) / v.bytes * slot_v_tokens(slot);
    uint64_t keys = t / slot->k_tokens * slot->k_tokens + slot->k_tokens;
    return last - t + min_u64(keys, values);
}

// Wants the tokens that are chosen (all: of all) in every row of the piece.
static void want_tokens(const struct method_state *s, struct piece *piece, unsigned what,
                        const uint64_t *chosen, uint32_t head, bool extra)
{
    uint64_t row_tokens = s->space->streams[STREAM_KV].row_tokens;
    uint64_t end = piece->first + piece->tokens;
    for (uint32_t r = 0; r < piece->n_rows; r++) {
        uint64_t t = max_u64(piece->first, piece->rows[r].index * row_tokens);
        uint64_t stop = min_u64(end, (piece->rows[r].index + 1ull) * row_tokens);
        while ((t = chosen ? select_next(chosen, true, t, stop) : t) < stop) {
            uint64_t run = chosen ? select_next(chosen, false, t, stop) : stop;
            want(s, piece, r, head, t, run, what, extra);
            t = max_u64(run, covered(s, head, run - 1));
        }
    }
}

static struct piece *rank_piece(struct method_state *s, struct unit *unit)
{
    const struct space *space = s->space;
    const struct sparf_unit *u = unit->own;
    const struct stream *channels = &space->streams[STREAM_CHANNELS];
    const struct layer_state *layer =
        &unit->job->items[unit->item].sequence->layers[unit->job->layer];
    uint64_t cover = channels->row_tokens, group = unit->cursor / cover;
    uint64_t length = min_u64(s->size.span, cover), end;
    struct piece *piece;
    if (unit->cursor == u->tokens)
        return NULL;
    if (unit->cursor % cover == 0 && unit->cursor + cover <= u->tokens &&
        all_heads_built(s, unit, layer, group)) {
        end = unit->cursor + cover;
        piece = sparf_piece(unit, PIECE_CHANNELS, unit->cursor, end);
        for (uint32_t i = 0; piece && i < unit->n_heads; i++) {
            piece_add_pages(piece,
                            (uint32_t)(group * space->config.kv_heads + unit->head_first + i), 0,
                            channels->row_pages);
            const uint32_t *list = u->channels + i * space->config.head_dim;
            for (uint32_t c = 0; c < u->n_channels; c++)
                piece_want(space, piece, i, sparf_channel_offset(space, list[c]), 2 * cover, false);
        }
    } else {
        end = min_u64(u->tokens, (unit->cursor / length + 1) * length);
        piece = sparf_piece(unit, PIECE_TAIL, unit->cursor, end);
        if (piece)
            add_rows(s, unit, piece);
        for (uint32_t i = 0; piece && i < unit->n_heads; i++)
            want_tokens(s, piece, WANT_K, NULL, unit->head_first + i, false);
    }
    if (piece)
        unit->cursor = end;
    return piece;
}

static struct piece *mean_piece(struct method_state *s, struct unit *unit)
{
    struct sparf_unit *u = unit->own;
    uint64_t length = s->size.span;
    if (u->means_waiting)
        return NULL;
    uint64_t end = min_u64(u->mean_end, (u->mean_at / length + 1) * length);
    struct piece *piece = sparf_piece(unit, PIECE_MEAN, u->mean_at, end);
    if (!piece)
        return NULL;
    u->mean_at = end;
    u->means_waiting++;
    add_rows(s, unit, piece);
    for (uint32_t i = 0; i < unit->n_heads; i++)
        want_tokens(s, piece, WANT_V, NULL, unit->head_first + i, false);
    return piece;
}

// The first token from `cursor` on whose tile may have a chosen one, of any head.
static uint64_t next_marked(const struct unit *unit, uint64_t cursor)
{
    const struct sparf_unit *u = unit->own;
    const uint64_t words = sparf_marks(&unit->state->size);
    uint64_t tile = cursor / ATTENTION_TILE, mask = ~0ull << tile % 64;
    for (uint64_t at = tile / 64; at < words; at++, mask = ~0ull) {
        uint64_t marks = 0;
        for (uint32_t i = 0; i < unit->n_heads; i++)
            marks |= u->marks[i * words + at];
        if (marks &= mask) {
            tile = at * 64 + (uint64_t)__builtin_ctzll(marks);
            return min_u64(u->tokens, max_u64(cursor, tile * ATTENTION_TILE));
        }
    }
    return u->tokens;
}

static struct piece *token_piece(struct method_state *s, struct unit *unit)
{
    const struct sparf_unit *u = unit->own;
    uint64_t length = s->size.span, words = s->size.tokens / 64, end;
    for (; unit->cursor < u->tokens; unit->cursor = end) {
        if (!u->audit)
            unit->cursor = next_marked(unit, unit->cursor);
        if (unit->cursor == u->tokens)
            break;
        end = min_u64(u->tokens, (unit->cursor / length + 1) * length);
        uint64_t n = u->audit;
        for (uint32_t i = 0; i < unit->n_heads && !n; i++)
            n = select_count(u->chosen + i * words, unit->cursor, end);
        if (!n)
            continue;
        struct piece *piece = sparf_piece(unit, PIECE_TOKENS, unit->cursor, end);
        if (!piece)
            return NULL;
        unit->cursor = end;
        add_rows(s, unit, piece);
        for (uint32_t i = 0; i < unit->n_heads; i++) {
            want_tokens(s, piece, WANT_K | WANT_V, u->chosen + i * words, unit->head_first + i,
                        false);
            if (u->audit)
                want_tokens(s, piece, WANT_K | WANT_V, NULL, unit->head_first + i, true);
        }
        return piece;
    }
    return NULL;
}

struct piece *sparf_want(struct unit *unit)
{
    struct method_state *s = unit->state;
    const struct sparf_unit *u = unit->own;
    struct piece *piece;
    if (unit->phase == SPARF_RANK)
        piece = rank_piece(s, unit);
    else if (u->mean_at < u->mean_end)
        piece = mean_piece(s, unit);
    else
        piece = token_piece(s, unit);
    unit->wanted =
        unit->cursor == u->tokens && (unit->phase == SPARF_RANK || u->mean_at == u->mean_end);
    return piece;
}

// A channel row is lost: its tokens are ranked by K once the other pieces are through. Those behind
// it are ranked again with them, which changes no bit.
static void sparf_redo(struct unit *unit, const struct piece *piece)
{
    struct sparf_unit *u = unit->own;
    u->redo = min_u64(u->redo, piece->first);
}

// ---- results -----------------------------------------------------------------------------------

static void count_tokens(struct method_state *s, struct unit *unit, const struct piece *piece)
{
    const struct sparf_unit *u = unit->own;
    struct job_item *item = &unit->job->items[unit->item];
    uint64_t row_tokens = s->space->streams[STREAM_KV].row_tokens, words = s->size.tokens / 64;
    uint64_t end = piece->first + piece->tokens;
    for (uint32_t r = 0; r < piece->n_rows; r++) {
        const struct piece_row *row = &piece->rows[r];
        uint64_t first = max_u64(piece->first, row->index * row_tokens);
        uint64_t stop = min_u64(end, (row->index + 1ull) * row_tokens);
        for (uint32_t i = 0; i < unit->n_heads && row->on_flash; i++) {
            uint64_t n = select_count(u->chosen + i * words, first, stop);
            item->from_flash += n;
            if (row->programming)
                item->programming += n;
            else
                s->token_kept_bytes += n * 4ull * s->space->config.head_dim;
        }
    }
}

// What was read for a piece, filter by filter.
void sparf_computed(struct unit *unit, const struct piece *piece)
{
    struct method_state *s = unit->state;
    struct sparf_unit *u = unit->own;
    uint64_t bytes = (uint64_t)piece->read_pages * s->space->flash->geometry.page_bytes;
    switch ((enum sparf_piece)piece->kind) {
    case PIECE_CHANNELS:
        s->channel_pages += piece->read_pages;
        if (piece->read_pages)
            s->channel_kept_bytes += 2ull * piece->tokens * u->n_channels * unit->n_heads;
        break;
    case PIECE_TAIL:
        s->tail_bytes += bytes;
        break;
    case PIECE_MEAN:
        s->mean_bytes += bytes;
        u->means_waiting--;
        break;
    case PIECE_INDEX:
        s->index_pages += piece->read_pages;
        break;
    case PIECE_TOKENS:
        s->token_pages += piece->read_pages;
        s->audit_pages += piece->read_extra;
        count_tokens(s, unit, piece);
        break;
    }
}

// Of the tokens of a piece that are attended.
void sparf_work_tokens(const struct unit *unit, const struct piece *piece, struct engine_work *work)
{
    const struct sparf_unit *u = unit->own;
    uint64_t words = unit->state->size.tokens / 64, scores = 0;
    for (uint32_t i = 0; i < unit->n_heads; i++)
        scores += select_count(u->chosen + i * words, piece->first, piece->first + piece->tokens);
    scores *= unit->group;
    work->products += 2 * scores * unit->state->space->config.head_dim;
    work->elements += scores;
}

// Channels are ranked for each query, tokens for each KV head after a softmax of each query's
// scores by those channels. The mean of V has no unit.
static void sparf_work(const struct unit *unit, const struct piece *piece, struct engine_work *work)
{
    const struct sparf_unit *u = unit->own;
    uint64_t queries = (uint64_t)unit->n_heads * unit->group;
    if (piece && piece->kind == PIECE_TOKENS)
        sparf_work_tokens(unit, piece, work);
    else if (piece && piece->kind != PIECE_MEAN)
        work->products += queries * piece->tokens * u->n_channels;
    else if (!piece && unit->phase == SPARF_PREPARE)
        work->ranked += queries * unit->state->space->config.head_dim;
    else if (!piece && unit->phase == SPARF_SELECT) {
        work->elements += queries * u->tokens;
        work->ranked += unit->n_heads * u->tokens;
    }
}

bool sparf_folds(const struct piece *piece)
{
    return piece->kind == PIECE_TOKENS;
}

static void count_audit(struct method_state *s, const struct unit *unit)
{
    const struct sparf_unit *u = unit->own;
    for (uint32_t i = 0; u->audit && i < unit->n_heads * unit->group; i++) {
        double mass = u->captured[i] >= 0 ? (double)u->captured[i] : 0; // not NaN
        uint64_t millionths = (uint64_t)(mass * 1e6 + 0.5);
        s->captured_worst = s->audits ? min_u64(s->captured_worst, millionths) : millionths;
        s->captured_sum += millionths;
        s->audits++;
    }
}

// Chosen tokens of head i of the unit.
static uint64_t count_chosen(const struct unit *unit, uint32_t i)
{
    const struct sparf_unit *u = unit->own;
    const struct sparf_size *size = &unit->state->size;
    const uint64_t *chosen = u->chosen + i * (size->tokens / 64);
    const uint64_t *marks = u->marks + i * sparf_marks(size);
    uint64_t count = 0;
    for (uint64_t at = 0; at * 64 * ATTENTION_TILE < u->tokens; at++)
        for (uint64_t bits = marks[at]; bits; bits &= bits - 1) {
            uint64_t first = (at * 64 + (uint64_t)__builtin_ctzll(bits)) * ATTENTION_TILE;
            if (first < u->tokens)
                count += select_count(chosen, first, min_u64(first + ATTENTION_TILE, u->tokens));
        }
    return count;
}

static void finish_unit(struct method_state *s, struct unit *unit)
{
    const struct sparf_unit *u = unit->own;
    struct job_item *item = &unit->job->items[unit->item];
    struct layer_state *layer = &item->sequence->layers[unit->job->layer];
    for (uint32_t i = 0; i < unit->n_heads; i++) {
        uint32_t head = unit->head_first + i;
        item->attended += count_chosen(unit, i);
        if (u->all || s->size.rest)
            continue;
        means_fill(channels_means(layer), head, layer->head_tokens[head], &u->gaps[i],
                   u->gap_sums + i * s->space->config.head_dim);
    }
    count_audit(s, unit);
}

void sparf_advance(struct unit *unit)
{
    struct sparf_unit *u = unit->own;
    if (unit->phase == SPARF_RANK && u->redo != UINT64_MAX) {
        unit->cursor = u->redo;
        u->redo = UINT64_MAX;
        return;
    }
    unit->cursor = 0;
    switch ((enum sparf_phase)unit->phase) {
    case SPARF_PREPARE:
    case SPARF_SELECT:
        tell(unit, unit->phase == SPARF_SELECT);
        unit->kind = UNIT_READS;
        break;
    case SPARF_RANK:
    case SPARF_TOKENS:
        unit->kind = UNIT_THINKS;
        break;
    case SPARF_FINISH:
        finish_unit(unit->state, unit);
        unit->kind = UNIT_ENDED;
        return;
    }
    unit->phase++;
}

void sparf_end(struct unit *unit)
{
    struct sparf_unit *u = unit->own;
    u->next = unit->state->free_units;
    unit->state->free_units = u;
}

void sparf_audit_stats(const struct method_state *s, struct drive_stats *stats)
{
    stats->audit_read_bytes += s->audit_pages * s->space->flash->geometry.page_bytes;
    if (s->audits && (!stats->audits || s->captured_worst < stats->captured_worst))
        stats->captured_worst = s->captured_worst;
    stats->audits += s->audits;
    stats->captured_sum += s->captured_sum;
}

static void sparf_stats(const struct method_state *s, struct drive_stats *stats)
{
    uint64_t page = s->space->flash->geometry.page_bytes;
    stats->sparf_steps += s->steps;
    stats->dense_pages += s->dense_pages;
    stats->dense_bytes += s->dense_pages * page;
    stats->channel_pages += s->channel_pages;
    stats->channel_bytes += s->channel_pages * page;
    stats->channel_kept_bytes += s->channel_kept_bytes;
    stats->token_pages += s->token_pages;
    stats->token_bytes += s->token_pages * page;
    stats->token_kept_bytes += s->token_kept_bytes;
    stats->tail_bytes += s->tail_bytes;
    stats->mean_bytes += s->mean_bytes;
    stats->sparf_dram_bytes += s->bytes;
    sparf_audit_stats(s, stats);
}

const struct method method_sparf = {
    .id = METHOD_SPARF,
    .name = "sparf",
    .streams = 1u << STREAM_CHANNELS,
    .use = USE_CHOICE,
    .plan = sparf_plan,
    .open = sparf_open,
    .close = sparf_close,
    .check = sparf_check,
    .check_item = sparf_check_item,
    .bundle = sparf_bundle,
    .begin = sparf_begin,
    .want = sparf_want,
    .redo = sparf_redo,
    .compute = sparf_compute,
    .computed = sparf_computed,
    .folds = sparf_folds,
    .fold = sparf_fold,
    .think = sparf_think,
    .work = sparf_work,
    .advance = sparf_advance,
    .end = sparf_end,
    .stats = sparf_stats,
};
