// SPDX-License-Identifier: Apache-2.0
// SparF attention, Algorithm 1 of the paper, as a method over single pages:
//
//   prepare  the r channels with the largest |q| (summed over the group's query heads)
//   rank     scores of all S tokens from these channels: from channel rows, by pages that hold a
//            chosen channel; where there is no channel row, from token-indexed K
//   select   softmax of each query head, summed over the group; the k best tokens, the most recent
//            ones forced in; alpha = share of each head's softmax that they hold
//   tokens   exact attention over the chosen tokens, by pages that hold one of them
//   finish   out = alpha * attention + (1 - alpha) * mean V
//
// A unit is a bundle of KV heads whose slots fill whole pages. Orders are fixed (kernels.h; tiles
// of 64 absolute positions, ascending), so that results depend on neither page size, page_channels,
// T, threads, nor on where data lies. Shared by sparf.c (what is read when) and sparf_math.c (the
// arithmetic, in the engine's workers), and by pages.c, which chooses tokens in another way and
// then goes the same way from `tokens` on; nobody else includes this.
#ifndef INST_DRIVE_ATTEND_SPARF_H
#define INST_DRIVE_ATTEND_SPARF_H

#include "drive/attend/walk.h"
#include "drive/ftl/channels.h"
#include "drive/ftl/index.h"

enum sparf_phase { SPARF_PREPARE, SPARF_RANK, SPARF_SELECT, SPARF_TOKENS, SPARF_FINISH };

enum sparf_piece {
    PIECE_CHANNELS, // scores from the channel rows of a channel group
    PIECE_TAIL,     // scores from token-indexed K
    PIECE_MEAN,     // V of tokens that the sums of V lack
    PIECE_TOKENS,   // attention over chosen tokens
    PIECE_INDEX,    // pages: what a run of pieces holds, by its row of the index
};

// Pieces, at most, by which it is judged how far scores are off.
enum { PAGES_SAMPLES = 16 };

// What weighing pieces needs of each query, where that is done row by row.
struct pages_queries {
    int8_t *tables; // [queries][table]
    float *steps;   // [queries][middle], as products with the mean of keys take them
    float *factors; // [queries]
    float
        *squares; // [heads][samples] of sizes of keys: by these it is judged how far scores are off
};

// Arrays over heads are indexed from the unit's first, arrays over queries are [heads][group].
struct sparf_unit {
    struct sparf_unit *next; // free
    void *memory;
    uint32_t n_channels;
    bool all, audit;           // all: k == S
    uint64_t tokens, k, local; // S
    uint64_t mean_at, mean_end;
    struct map index;             // pages: what the unit chooses from
    struct clusters *clusters;    // pages: of these keys; NULL: all of them are looked at
    uint64_t look;                // pages: keys that are looked at for a query
    struct pages_queries queries; // pages with an index on flash
    uint64_t redo;                // rank again from this token on; UINT64_MAX: no need
    uint32_t means_waiting;       // pieces that add to the same sums: one at a time
    // [heads][size.head_floats]. sparf: [group + 1][size.tokens], exponentials, then their weighted
    // sum; pages: see pages.c
    float *scores;
    float *rest;           // [queries] partials, pages only: what is not read, estimated
    uint64_t *chosen;      // [heads] bits
    uint64_t *marks;       // [heads] bits of tiles: the others have no chosen token
    uint32_t *channels;    // [heads][head_dim], n_channels of them used
    float *q_kept;         // [queries][head_dim], n_channels of them used
    float *factor;         // [queries] of scores from channels; pages: doubts
    float *alpha;          // [queries]; pages: greatest predicted score
    float *captured;       // [queries]
    float *predicted;      // [queries], pages only
    float *dense;          // [queries] partials, audit only
    uint64_t *means;       // [heads][head_dim], less the gap
    uint64_t *gap_sums;    // [heads][head_dim]
    struct mean_gap *gaps; // [heads]
};

// How large things are; see METHOD_LEVELS.
struct sparf_size {
    uint32_t bundle;         // KV heads of a unit
    uint32_t group;          // query heads per KV head
    uint64_t tokens;         // S at most; multiple of the tile
    uint64_t head_floats;    // of scores
    size_t scratch;          // of each worker
    bool rest;               // there are estimates
    uint64_t held;           // bytes of a unit's part of the index, pages only
    bool rows;               // pages: the index lies on flash
    uint32_t table, middle;  // then: bytes of a query's table, channels of the mean of keys
    uint32_t units;          // under way
    uint32_t pieces;         // under way, of all units
    uint32_t span;           // tokens of one, at most
    uint32_t piece_rows;     // of one
    uint32_t piece_pages;    // at most
    uint64_t partial_floats; // of a piece
    uint64_t unit_bytes;
};

struct method_state {
    struct space *space;
    struct attend_env *env;
    struct sparf_size size;
    struct index_shape shape; // pages: of the index
    uint64_t bytes;
    struct pieces pieces;
    struct sparf_unit *units, *free_units;
    float *partials; // [pieces][2: chosen, audit][tiles][bundle][group]
    // Of STAT
    uint64_t steps, dense_pages, channel_pages, channel_kept_bytes, token_pages, token_kept_bytes,
        tail_bytes, mean_bytes, audit_pages, index_pages, audits, captured_sum, captured_worst,
        predicted, predicted_sum;
};

// Where channel c begins in a channel row.
static inline uint64_t sparf_channel_offset(const struct space *space, uint32_t c)
{
    uint32_t per_page = space->config.page_channels;
    return (uint64_t)(c / per_page) * space->flash->geometry.page_bytes +
           2ull * (c % per_page) * space->streams[STREAM_CHANNELS].row_tokens;
}

// 16-bit words that K or V of a token takes where a copy of them is made: of whatever type.
static inline size_t sparf_stage_row(uint32_t head_dim)
{
    return head_dim + 1;
}

// Bytes of scratch that each worker needs.
static inline size_t sparf_scratch(uint32_t head_dim)
{
    return KERNEL_SCRATCH_BYTES + 2 * sizeof(uint16_t) * ATTENTION_TILE * sparf_stage_row(head_dim);
}

// What all arithmetic on one KV head of a unit needs.
struct sparf_view {
    const struct method_state *s;
    const struct kernels *k;
    const struct job *job;
    const struct unit *unit;
    struct sparf_unit *u;
    uint32_t head, dim, group;
    const float *q; // [group][dim]
    float *scores;  // [size.head_floats]
    uint64_t *chosen;
};
struct sparf_view sparf_view_of(const struct unit *unit, uint32_t head);
// Bits of the tiles of `size` tokens, in words.
static inline uint64_t sparf_marks(const struct sparf_size *size)
{
    return (size->tokens / ATTENTION_TILE + 63) / 64;
}
// Of the head's queries over the chosen tokens.
float *sparf_partials(const struct sparf_view *v);
// Share of the softmax of query i of the head that the chosen tokens hold, by the audit.
float sparf_audited(const struct sparf_view *v, uint32_t i);

// Takes a free unit for all tokens of the item; NULL: there is none. Sets u->all as to k, and all
// that does not depend on how tokens are chosen.
struct sparf_unit *sparf_take(struct unit *unit, uint64_t k, bool audit);
int sparf_plan(struct method_plan *plan, const struct flash_geometry *geometry,
               const struct space_config *config, const struct stream *streams, unsigned level,
               struct inst_msg *msg);
int sparf_open(struct method_state **out, struct walk *walk, unsigned level, struct inst_msg *msg);
void sparf_close(struct method_state *s);
int sparf_check_heads(const struct method_state *s, const struct table_header *h,
                      const struct table_item *item, struct inst_msg *msg);
int sparf_check_item(const struct method_state *s, const struct table_item *item,
                     struct inst_msg *msg);
uint32_t sparf_bundle(const struct method_state *s);
// A piece of that kind of the unit; NULL: all are in use.
struct piece *sparf_piece(struct unit *unit, enum sparf_piece kind, uint64_t first, uint64_t end);
struct piece *sparf_want(struct unit *unit);
void sparf_computed(struct unit *unit, const struct piece *piece);
bool sparf_folds(const struct piece *piece);
void sparf_work_tokens(const struct unit *unit, const struct piece *piece,
                       struct engine_work *work);
void sparf_advance(struct unit *unit);
void sparf_end(struct unit *unit);
void sparf_audit_stats(const struct method_state *s, struct drive_stats *stats);

// Floats that pages needs for each KV head of a unit, and scratch of a worker (pages.c).
uint64_t pages_floats(const struct space_config *config, uint64_t tokens, uint32_t group);
size_t pages_scratch(const struct space_config *config);

void sparf_compute(const struct unit_task *task, uint8_t *scratch);
void sparf_fold(const struct unit_task *task);
void sparf_think(const struct unit_task *task, uint8_t *scratch);

#endif
