// SPDX-License-Identifier: Apache-2.0
// The channel-indexed copy of K. A channel group is Tc consecutive tokens (a multiple of T); for
// each KV head it is one row: head_dim channels of Tc fp16 values, page_channels of them in a page,
// the last page padded with zeros. Rows are derived data: a token whose row does not exist (the
// group is not complete or not built yet, or flash failed) is ranked from its token-indexed K,
// with the same bits.
//
// A WRITE that brings a whole group has it transposed from its payload. Otherwise the group is
// built in the background when its last token is there: K is read back a few pages at a time,
// transposed and programmed. Beside it the stream keeps running sums of V (means.h).
#ifndef INST_DRIVE_FTL_CHANNELS_H
#define INST_DRIVE_FTL_CHANNELS_H

#include "drive/ftl/means.h"
#include "drive/ftl/space.h"

// KV heads whose slots of a token group fill whole pages: worked on together.
uint32_t channels_bundle(const struct flash_geometry *geometry, const struct space_config *config,
                         const struct stream *kv);
// The row of a head, NULL when there is none.
struct row *channels_row(const struct space *space, const struct layer_state *layer, uint64_t group,
                         uint32_t head);
// Running sums of V that are kept beside.
struct means *channels_means(const struct layer_state *layer);

#endif
