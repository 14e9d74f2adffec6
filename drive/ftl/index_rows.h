// SPDX-License-Identifier: Apache-2.0
// The ranking index of METHOD_PAGES where it lies on flash (`piece_flash` of CONFIG): the same
// summaries as in ftl/index.h, less the mean of V. A row of the stream holds those of a fixed run
// of pieces, head by head; those of a run that is not on flash yet lie in a block of DRAM of the
// same form, which goes when its row is programmed. So what DRAM keeps of a long sequence is a
// block for each layer, and a map.
//
// A run of which a truncation or a fork left a part goes on in a new block that lacks the pieces
// before it: those are still in the row. Such a run stays in two parts. A row that could not be
// programmed is programmed again from its block, or the block stays. One that cannot be read fails
// who reads it, as a row of K and V does.
#ifndef INST_DRIVE_FTL_INDEX_ROWS_H
#define INST_DRIVE_FTL_INDEX_ROWS_H

#include "drive/ftl/index.h"

// How a row lies: sets of heads that choose together begin at multiples of INDEX_PAGE, so that
// nothing is read twice; of a set its heads, of a head its pieces follow one another.
struct index_row {
    uint32_t pieces, tokens;                              // in a row; tokens of all of these
    uint32_t together;                                    // heads of a set
    uint64_t summary_bytes, head_bytes, set_bytes, bytes; // bytes: of a row
};
struct index_row index_row(const struct space_config *config);
static inline uint64_t index_row_at(const struct index_row *row, uint32_t head)
{
    return head / row->together * row->set_bytes + head % row->together * row->head_bytes;
}
// The part of the bytes of K and V that reading all rows takes, of 1,024 tokens each: whatever the
// rows of this space are, since choices hang on it.
double index_row_share(const struct space_config *config);

int index_rows_hold(const struct space *space, const struct layer_state *layer, uint64_t pieces,
                    struct map *held);
void index_rows_let_go(const struct space *space, struct map *held);
uint64_t index_rows_hold_bytes(void);

// What DRAM has of a run of pieces: summaries of a head, side by side, of which those from `first`
// on count; NULL: none. What it has not is in the row.
struct index_part {
    const uint8_t *summaries;
    uint32_t first;
};
struct index_part index_rows_part(const struct space *space, const struct map *held, uint64_t run,
                                  uint32_t head);

extern const struct stream_ops stream_index_rows;

#endif
