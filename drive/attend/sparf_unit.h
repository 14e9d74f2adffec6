// SPDX-License-Identifier: Apache-2.0
// What sparf.c (what is read when) and sparf_math.c (the arithmetic, in the pool's workers) share.
#ifndef INST_DRIVE_ATTEND_SPARF_UNIT_H
#define INST_DRIVE_ATTEND_SPARF_UNIT_H

#include "drive/attend/sparf.h"

enum unit_phase { UNIT_PREPARE, UNIT_RANK, UNIT_SELECT, UNIT_TOKENS, UNIT_FINISH, UNIT_ENDED };

enum step_kind {
    STEP_CHANNELS, // scores from the channel rows of a channel group
    STEP_TAIL,     // scores from token-indexed K
    STEP_MEAN,     // V of tokens that the sums of V lack
    STEP_TOKENS,   // attention over chosen tokens
};

enum { WANT_K = 1, WANT_V = 2 };

// One item, one bundle of KV heads. Arrays over heads are indexed from head_first, arrays over
// queries are [heads][group].
struct unit {
    struct unit *next; // under way, in the order of their start, or free
    void *memory;
    uint32_t item, head_first, n_heads, group, n_channels;
    enum unit_phase phase;
    bool all, audit;           // all: k == S
    uint64_t tokens, k, local; // S
    uint64_t cursor;           // of rank and tokens: what lies before has a step
    uint64_t mean_at, mean_end;
    uint32_t waiting;                          // steps in the list
    struct step *steps, **last;                // oldest first
    uint64_t flash_tokens, programming_tokens; // chosen, summed over heads
    float *scores;         // [heads][group + 1][size.tokens]: exponentials, then their weighted sum
    uint64_t *chosen;      // [heads] bits
    uint32_t *channels;    // [heads][head_dim], n_channels of them used
    float *q_kept;         // [queries][head_dim], n_channels of them used
    float *factor;         // [queries] of scores from channels
    float *alpha;          // [queries]
    float *captured;       // [queries]
    float *dense;          // [queries] partials, audit only
    uint64_t *means;       // [heads][head_dim], less the gap
    uint64_t *gap_sums;    // [heads][head_dim]
    struct mean_gap *gaps; // [heads]
};

struct task {
    struct unit *unit;
    struct step *step; // NULL: the unit itself
    uint32_t head;     // from head_first
};

struct sparf_counters {
    uint64_t steps, dense_pages, channel_pages, channel_kept_bytes, token_pages, token_kept_bytes,
        tail_bytes, mean_bytes, audit_pages, audits, captured_sum, captured_worst;
};

struct sparf {
    struct space *space;
    struct sparf_size size;
    uint64_t bytes;
    struct frames *pages; // for reads
    struct steps steps;
    struct unit *units, *free_units;
    struct unit *first_unit, **last_unit;
    struct unit *partial; // whose newest step is partly acquired
    uint32_t item, head;  // of the next unit
    float *partials;      // [steps][2: chosen, audit][tiles][bundle][group]
    struct task *tasks;
    size_t n_tasks;
    struct frame **unverified;
    struct sparf_counters counters;
    // For the workers
    struct drive *drive;
    struct job *job;
};

// Where channel c begins in a channel row.
static inline uint64_t sparf_channel_offset(const struct space *space, uint32_t c)
{
    uint32_t per_page = space->config.page_channels;
    return (uint64_t)(c / per_page) * space->flash->geometry.page_bytes +
           2ull * (c % per_page) * space->streams[STREAM_CHANNELS].row_tokens;
}

// Bytes of scratch that each worker needs.
static inline size_t sparf_scratch(uint32_t head_dim)
{
    return KERNEL_SCRATCH_BYTES + 2 * sizeof(uint16_t) * ATTENTION_TILE * head_dim;
}

const struct sparf_counters *sparf_counters(const struct sparf *sparf);

// Functions of pool_run over sparf->tasks.
void sparf_phase(void *arg, size_t index, unsigned worker); // prepare, select, finish
void sparf_step(void *arg, size_t index, unsigned worker);
void sparf_fold(void *arg, size_t index, unsigned worker);

#endif
