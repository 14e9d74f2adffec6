// SPDX-License-Identifier: Apache-2.0
// What pages.c, which chooses pieces by the predicted masses of all of them, rows.c, which weighs
// them by an index on flash, and likely.c, which predicts those of the likeliest keys alone, have
// in common. Nobody else includes this.
#ifndef INST_DRIVE_ATTEND_PAGES_H
#define INST_DRIVE_ATTEND_PAGES_H

#include "drive/attend/sparf.h"
#include "drive/ftl/clusters.h"
#include "base/checked.h"

// Pieces whose values are added up together: those of a word of bits.
enum { REST_PIECES = 64 };
// Queries that look at a summary while it is at hand.
enum { QUERIES = 8 };
#define LN2 0x1.62e43p-1f

// What a worker needs at a time: to weigh pieces, or to add up what is not read.
struct pages_scratch {
    _Alignas(64) uint8_t kernels[KERNEL_SCRATCH_BYTES];
    _Alignas(64) uint8_t masses[MASS_SCRATCH];
    _Alignas(64) float q[KERNEL_HEAD_DIM_MAX];
    _Alignas(64) float steps[QUERIES * (KERNEL_HEAD_DIM_MAX + 32)]; // queries, in steps of tables
    float bias[QUERIES * MASS_SLICES];
    float rest[QUERIES][REST_PIECES];
    int8_t tables[]; // [QUERIES][mass_rows][16]
};

struct pages_view {
    struct sparf_view v;
    struct index_shape shape;
    uint64_t pieces, tokens; // complete pieces; tokens of one
    uint64_t blocks;
    uint32_t set, set_end; // heads of the unit that choose together, this one among them
    float *weights, *tops, *total, *together;
    uint64_t *bits; // chosen pieces
};
struct pages_view pages_view_of(const struct unit *unit, uint32_t head);

// Slices of a piece's keys, and pieces that are weighed together: always the same ones, whatever
// the length of the sequence and wherever their summaries lie.
static inline uint64_t block_pieces(const struct index_shape *shape)
{
    return MASS_SLICES / div_round_up(shape->keys, KERNEL_LANES);
}

static inline struct index_run pages_run_at(const struct pages_view *p, uint64_t piece)
{
    return index_held(p->v.s->space, &p->v.u->index, piece, p->v.unit->head_first + p->v.head);
}

// How pieces' keys are to be weighed.
static inline struct mass_pieces pages_block(const struct pages_view *p)
{
    return (struct mass_pieces){.keys = p->shape.keys,
                                .bytes = index_key_bytes(&p->shape),
                                .counted = p->shape.keys != p->shape.piece,
                                .softcap = p->v.job->header.softcap};
}

// The factor of a query's scores, as piece_masses takes it, its table, and it, turned.
float pages_query(const struct pages_view *p, uint32_t query, int8_t *table, float *q);

// A turned query as products with the mean of keys take it: in what is one to its table and factor.
void pages_in_steps(const struct pages_view *p, float *out, const float *q, float factor);
// What the mean of keys adds to the scores of each piece of a block: own->bias. own->steps: of n
// queries.
void pages_weigh_middles(const struct pages_view *p, struct mass_pieces *block, uint32_t n,
                         struct pages_scratch *own);

// Weights of the pieces of a block for n queries of the head from `first` on, relative to its top.
// own->steps: of these.
void pages_weigh_block(const struct pages_view *p, uint64_t at, struct mass_pieces *block,
                       uint32_t first, uint32_t n, const int8_t *tables, const float *factors,
                       struct pages_scratch *own);
// Of how many pieces one is a sample, by which it is judged how far scores are off.
uint64_t pages_sample_every(const struct pages_view *p);

// How many pieces are chosen: `local` newest ones and the first, whatever is predicted of them, and
// `most` with these.
struct pages_budget {
    uint64_t local, least, most;
};
struct pages_budget pages_budget(const struct pages_view *p);
// Chosen pieces become chosen tokens, with those behind the last piece.
void pages_choose_tokens(const struct pages_view *p);
// By how much scores are off, in nats, for each query of the head.
void pages_doubts(const struct pages_view *p, float *out);

// ---- an index on flash -------------------------------------------------------------------------

// What weighing needs of the queries of a head; and weighs what DRAM has of the index.
void rows_prepare(const struct pages_view *p, struct pages_scratch *own);
// The next row of the index that the unit reads; sets unit->wanted.
struct piece *rows_want(struct unit *unit);
// Weighs the pieces of that row for a head.
void rows_weigh(const struct pages_view *p, const struct piece *piece, struct pages_scratch *own);

// ---- the likeliest keys alone ------------------------------------------------------------------

// Keys to look at for each query head of an ATTEND over so many tokens; 0: all.
uint64_t likely_look(const struct space_config *config, const struct table_header *header,
                     uint64_t tokens);
// Floats that it takes for each KV head of a unit.
uint64_t likely_floats(const struct space_config *config, uint64_t tokens, uint32_t group);
// Predicts what the likeliest keys of a head make their pieces hold.
void likely_predict(const struct pages_view *p, uint8_t *scratch);
// Chooses pieces for all heads that choose together, once that is known of them, and what they are
// predicted to hold.
void likely_choose(const struct pages_view *p);

#endif
