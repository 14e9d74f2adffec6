// SPDX-License-Identifier: Apache-2.0
// The channel-indexed copy of K. A channel group is Tc consecutive tokens (a multiple of T); for
// each KV head it is one row: head_dim channels of Tc fp16 values, page_channels of them in a page,
// the last page padded with zeros. Rows are derived data: a token whose row does not exist (the
// group is not complete or not built yet, or flash failed) is ranked from its token-indexed K,
// with the same bits.
//
// A WRITE that brings a whole group has it transposed from its payload. Otherwise the group is
// built in the background when its last token is there: K is read back a few pages at a time,
// transposed and programmed.
#ifndef INST_DRIVE_FTL_CHANNELS_H
#define INST_DRIVE_FTL_CHANNELS_H

#include "drive/ftl/space.h"
#include "drive/ftl/step.h"

struct channel_counters {
    uint64_t build_read_bytes, program_bytes, lost_rows;
};

// How large things are; see channels_size.
struct channels_size {
    uint32_t bundle;   // KV heads whose slots of a token group fill whole pages: worked on together
    uint32_t programs; // page frames
    uint32_t steps;    // reads of a build under way
    uint32_t step_rows;  // token groups
    uint32_t step_pages; // at most
    uint64_t bytes;      // of everything
};

// Chooses page_channels where it is 0.
void channels_choose(struct space_config *config, const struct flash_geometry *geometry);
int channels_layout(struct stream *stream, const struct flash_geometry *geometry,
                    const struct space_config *config, struct inst_msg *msg);
// level 0 is the least that works.
void channels_size(struct channels_size *size, const struct flash_geometry *geometry,
                   const struct space_config *config, const struct stream *streams, unsigned level);

int channels_open(struct space *space, const struct channels_size *size, struct inst_msg *msg);
void channels_close(struct channels *channels);
struct frames *channels_programs(const struct channels *channels);
const struct channel_counters *channels_counters(const struct channels *channels);

// The row of a head, NULL when there is none.
struct row *channels_row(const struct space *space, const struct layer_state *layer, uint64_t group,
                         uint32_t head);

// Builds the rows of a group from K [tokens][head_dim] of `count` heads, `stride` elements apart.
// 0: done, or given up for want of flash. 1: wait for page frames.
int channels_write(struct space *space, struct pool *pool, struct sequence *sequence,
                   uint32_t layer, uint64_t group, uint32_t head_first, uint32_t count,
                   const uint16_t *k, size_t stride);
// Tokens were appended: what became complete is queued.
void channels_appended(struct space *space, struct layer_state *layer);

void channels_truncate(struct space *space, struct layer_state *layer, uint64_t tokens);
// Gives up the rows that hold any of the tokens [first, end).
void channels_punch(struct space *space, struct layer_state *layer, uint64_t first, uint64_t end);
int channels_fork(struct space *space, const struct layer_state *from, struct layer_state *to,
                  uint64_t tokens, struct inst_msg *msg);
// A page did not get to flash: its row is given up by all that refer to it.
void channels_lost(struct space *space, struct place place, const struct page_identity *identity);

// Goes on building; true when something moved. Nothing of it waits.
bool channels_build(struct space *space, struct pool *pool, const struct step_source *source);
bool channels_building(const struct channels *channels);

#endif
