// SPDX-License-Identifier: Apache-2.0
// What the reader of selections (selections_read.c) and what is asked of them (selections.c) share.
#ifndef INST_SIM_SELECTIONS_OWN_H
#define INST_SIM_SELECTIONS_OWN_H

#include "sim/selections.h"

#define SELECTIONS_HEAD "instinfer selections 1"

struct run { // of chosen tokens: [first, end)
    uint32_t first, end;
};

struct record {
    uint32_t drive, layer, sequence, head;
    uint64_t tokens, flash_tokens, ranked_tokens, chosen;
    size_t runs_at, n_runs, channels_at;
    uint32_t n_channels;
    uint64_t tokens_end; // of all records up to this one
};

struct selections {
    bool sparf, known[SELECTIONS_DRIVES_MAX];
    struct selections_layout layouts[SELECTIONS_DRIVES_MAX];
    uint32_t drives;
    struct record *records;
    struct run *runs;
    uint16_t *channels;
    size_t n_records, records_room, n_runs, runs_room, n_channels, channels_room;
    uint64_t tokens; // of all records
};

#endif
