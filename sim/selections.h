// SPDX-License-Identifier: Apache-2.0
// Selections of real runs: what sparf and pages chose, for each KV head, layer and step, as a text
// that `--trace-selections` writes and `instinfer sim --trace-selections` reads (docs/research.md
// describes it). Here are its writer, its reader, and what a simulator asks of it. Foreign bytes:
// whatever does not parse is refused with its line, and nothing is allocated by a number that the
// text claims.
#ifndef INST_SIM_SELECTIONS_H
#define INST_SIM_SELECTIONS_H

#include "sim/select.h"
#include "base/status.h"

#include <stddef.h>
#include <stdio.h>

enum {
    SELECTIONS_TOKENS_MAX = 1 << 30, // of a record
    SELECTIONS_DRIVES_MAX = 64,
    SELECTIONS_BYTES_MAX = 256 << 20, // of a text
};

// How a drive laid out K and V: with it the pages of the recorded run follow exactly.
struct selections_layout {
    bool sparf; // else pages
    uint32_t page_bytes, kv_heads, head_dim, group_tokens, part_tokens, page_channels, kv_type;
};

// One KV head of a sequence in one layer and step.
struct selections_record {
    uint32_t drive, layer, sequence, head;
    uint64_t tokens, flash_tokens; // attended; of these, the first so many in rows on flash
    uint64_t ranked_tokens;        // the first so many were ranked by channel rows
    const uint32_t *channels;      // ascending
    uint32_t n_channels;
    const uint64_t *chosen; // bits
};

// ---- writing: the head once, each drive's layout before its first record ------------------------
void selections_write_head(FILE *f);
void selections_write_layout(FILE *f, uint32_t drive, const struct selections_layout *layout);
void selections_write(FILE *f, const struct selections_record *record);

// ---- reading -----------------------------------------------------------------------------------
struct selections;
int selections_parse(struct selections **out, const char *name, const char *text, size_t bytes,
                     struct inst_msg *msg);
int selections_open(struct selections **out, const char *path, struct inst_msg *msg);
void selections_free(struct selections *selections);

// All of it; shares are of tokens that are on flash in whole pages, so that ends do not count.
struct selections_about {
    bool sparf;
    uint64_t records;
    uint64_t tokens_most;
    double token_share; // of tokens, chosen
    double run;         // mean length of a run of chosen tokens
    double channels;    // share of the channels that rank (sparf)
};
void selections_about(const struct selections *selections, struct selections_about *out);

// Pages that the recorded run read by these selections: of K and V, and of channel-indexed K (that
// is, of whole ranges: the rest is ranked by token); and what dense attention would have read.
// What it found in DRAM is among them: rows still being programmed, and its row cache.
struct selections_pages {
    uint64_t dense, token, channel, tail;
};
int selections_pages(const struct selections *selections, struct selections_pages *out,
                     struct inst_msg *msg);

// As a source of selections for other shapes. A job sees a window of a record, cyclic where it is
// longer, which begins at a page: any, or for `replay` the record's own beginning.
double selections_page_share(const struct selections *selections, uint32_t page_tokens);
double selections_channel_share(const struct selections *selections, uint32_t head_dim,
                                uint32_t page_channels);
void selections_draw_pages(const struct selections *selections, struct draw *draw, uint32_t pages,
                           uint32_t page_tokens, select_fn *fn, void *arg);
void selections_draw_channels(const struct selections *selections, struct draw *draw,
                              uint32_t head_dim, uint32_t page_channels, select_fn *fn, void *arg);
// Of record (job mod their number): its bits, and its channels (as many as *n says and there are).
void selections_replay_tokens(const struct selections *selections, uint64_t job, uint64_t tokens,
                              uint64_t *chosen);
void selections_replay_channels(const struct selections *selections, uint64_t job,
                                uint32_t head_dim, uint32_t *channels, uint32_t n);

#endif
