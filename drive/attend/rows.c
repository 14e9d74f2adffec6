// SPDX-License-Identifier: Apache-2.0
// Pages whose index lies on flash (ftl/index_rows.h): masses of pieces, run by run, from the rows
// that a unit reads before it chooses, and from what DRAM has of them. What comes of it are the
// weights that pages.c would have made of an index in DRAM, to the bit: blocks of pieces are the
// same, and a run is whole blocks.
#include "drive/attend/pages.h"
#include "drive/ftl/index_rows.h"

#include <string.h>

// What weighing needs of the head's queries.
static void prepare_queries(const struct pages_view *p, struct pages_scratch *own)
{
    const struct sparf_view *v = &p->v;
    const struct pages_queries *queries = &v->u->queries;
    const uint64_t table = v->s->size.table, middle = v->s->size.middle;
    for (uint32_t i = 0; i < v->group; i++) {
        const uint64_t query = v->head * v->group + i;
        queries->factors[query] = pages_query(p, i, queries->tables + query * table, own->q);
        pages_in_steps(p, queries->steps + query * middle, own->q, queries->factors[query]);
    }
}

// Weighs n pieces from `piece` on, the first of a run, whose summaries lie side by side.
static void weigh_run(const struct pages_view *p, uint64_t piece, uint64_t n,
                      const uint8_t *summaries, struct pages_scratch *own)
{
    const struct sparf_view *v = &p->v;
    const struct pages_queries *queries = &v->u->queries;
    const uint64_t each = block_pieces(&p->shape), bytes = index_bytes(&p->shape);
    const uint64_t every = pages_sample_every(p), table = v->s->size.table,
                   middle = v->s->size.middle;
    struct mass_pieces block = pages_block(p);
    for (uint64_t i = div_round_up(piece, every) * every; i < piece + n; i += every)
        queries->squares[v->head * PAGES_SAMPLES + i / every] =
            index_key_squares(summaries + (i - piece) * bytes, p->shape.keys);
    for (uint32_t first = 0; first < v->group; first += QUERIES) {
        const uint32_t n_q = v->group - first < QUERIES ? v->group - first : QUERIES;
        const uint64_t query = v->head * v->group + first;
        memcpy(own->steps, queries->steps + query * middle, n_q * middle * sizeof *own->steps);
        for (uint64_t at = 0; at < n; at += each) {
            block.n = min_u64(each, n - at);
            for (uint64_t i = 0; i < block.n; i++)
                block.summary[i] = summaries + (at + i) * bytes;
            pages_weigh_block(p, (piece + at) / each, &block, first, n_q,
                              queries->tables + query * table, queries->factors + query, own);
        }
    }
}

// Those runs that DRAM has.
static void weigh_held(const struct pages_view *p, struct pages_scratch *own)
{
    const struct space *space = p->v.s->space;
    const uint64_t each = index_row(&space->config).pieces;
    const uint32_t head = p->v.unit->head_first + p->v.head;
    for (uint64_t run = 0; run * each < p->pieces; run++) {
        const struct index_part part = index_rows_part(space, &p->v.u->index, run, head);
        if (part.summaries && !part.first)
            weigh_run(p, run * each, min_u64(each, p->pieces - run * each), part.summaries, own);
    }
}

void rows_prepare(const struct pages_view *p, struct pages_scratch *own)
{
    prepare_queries(p, own);
    weigh_held(p, own);
}

void rows_weigh(const struct pages_view *p, const struct piece *piece, struct pages_scratch *own)
{
    const struct space *space = p->v.s->space;
    const struct index_row row = index_row(&space->config);
    const uint64_t run = piece->rows[0].index, first = run * row.pieces;
    const uint64_t n = min_u64(row.pieces, p->pieces - first);
    const uint32_t head = p->v.unit->head_first + p->v.head;
    const struct index_part part = index_rows_part(space, &p->v.u->index, run, head);
    const uint64_t read = (part.summaries ? min_u64(part.first, n) : n) * row.summary_bytes;
    uint8_t *copy = (uint8_t *)own->tables + QUERIES * p->v.s->size.table;
    piece_copy(space, piece, 0, index_row_at(&row, head), read, copy);
    if (part.summaries)
        memcpy(copy + read, part.summaries + read, n * row.summary_bytes - read);
    weigh_run(p, first, n, copy, own);
}

// The next run that is not in DRAM. `cursor` is its number.
static struct piece *next_run(struct unit *unit)
{
    const struct method_state *s = unit->state;
    const struct sparf_unit *u = unit->own;
    const struct space *space = s->space;
    const struct index_row row = index_row(&space->config);
    const uint64_t tokens = row.tokens / row.pieces, pieces = u->tokens / tokens;
    const uint64_t page = space->flash->geometry.page_bytes;
    const uint64_t from = index_row_at(&row, unit->head_first);
    const uint64_t end = from + unit->n_heads / row.together * row.set_bytes;
    for (; unit->cursor * row.pieces < pieces; unit->cursor++) {
        const uint64_t first = unit->cursor * row.pieces, n = min_u64(row.pieces, pieces - first);
        const struct index_part part = index_rows_part(space, &u->index, unit->cursor, 0);
        if (part.summaries && !part.first)
            continue;
        struct piece *piece = sparf_piece(unit, PIECE_INDEX, first * tokens, (first + n) * tokens);
        if (!piece)
            return NULL;
        piece_add_pages(piece, (uint32_t)unit->cursor++, (uint32_t)(from / page),
                        (uint32_t)(div_round_up(end, page) - from / page));
        const uint64_t read = (part.summaries ? min_u64(part.first, n) : n) * row.summary_bytes;
        for (uint32_t i = 0; i < unit->n_heads; i++)
            piece_want(space, piece, 0, index_row_at(&row, unit->head_first + i), read, false);
        return piece;
    }
    return NULL;
}

struct piece *rows_want(struct unit *unit)
{
    const struct sparf_unit *u = unit->own;
    const struct space_config *config = &unit->state->space->config;
    struct piece *piece = next_run(unit);
    unit->wanted = unit->cursor * index_row(config).pieces >= u->tokens / index_piece(config);
    return piece;
}
