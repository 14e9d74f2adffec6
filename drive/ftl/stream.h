// SPDX-License-Identifier: Apache-2.0
// Streams as data: the kinds of rows of a space. K and V is the first; the others are derived from
// it and can always be made again or done without. A derived stream plugs in through stream_ops and
// keeps what it likes for a space and for each layer of a sequence.
#ifndef INST_DRIVE_FTL_STREAM_H
#define INST_DRIVE_FTL_STREAM_H

#include "drive/command.h"
#include "drive/engine.h"
#include "drive/ftl/segment.h"
#include "drive/ftl/slot.h"

enum {
    STREAM_KV = 0,
    STREAM_CHANNELS = 1, // K by channel: channels.h
    STREAM_INDEX = 2,    // ranking index, in DRAM or on flash: index.h, index_rows.h
    STREAM_MAX = 3,
};

struct space;
struct sequence;
struct layer_state;
struct row;
struct stream_ops;

struct stream {
    const struct stream_ops *ops; // NULL for K and V
    uint32_t row_tokens;
    uint32_t group_rows; // rows of a group: 1, or one for each KV head
    uint32_t row_pages;  // 0: the space has no rows of this stream
    struct slot slot;    // K and V: how they lie for one head
    uint64_t slot_bytes; // of one head
    uint64_t data_bytes; // of a row
    uint64_t row_bytes;  // padded to whole pages
};

// What a WRITE brought, as far as it fills a group of a derived stream.
struct stream_slab {
    uint32_t layer, head_first, head_count;
    uint64_t from, pos;    // tokens [from, pos) are new and lie there
    const uint16_t *k, *v; // of token `from` and the first head
    size_t stride;         // elements from one head to the next
};

struct stream_plan {
    uint64_t bytes;
    uint64_t more;  // for maps of all sequences at full length
    uint32_t pages; // single page frames without which it cannot go on
    size_t scratch; // of each worker
};

struct stream_ops {
    const char *name;
    // Fills in what the configuration leaves to the drive.
    void (*choose)(struct space_config *config, const struct flash_geometry *geometry);
    int (*layout)(struct stream *stream, const struct flash_geometry *geometry,
                  const struct space_config *config, struct inst_msg *msg);
    // Maps of one full sequence included.
    int (*plan)(struct stream_plan *plan, const struct flash_geometry *geometry,
                const struct space_config *config, const struct stream *streams, unsigned level,
                struct inst_msg *msg);
    uint64_t (*rows)(const struct space_config *config,
                     const struct stream *streams); // of a sequence

    int (*open)(struct space *space, unsigned level, struct inst_msg *msg);
    void (*close)(struct space *space);
    int (*layer_open)(struct space *space, struct layer_state *layer, struct inst_msg *msg);
    void (*layer_close)(struct space *space, struct layer_state *layer);

    struct row *(*row)(const struct space *space, const struct layer_state *layer, uint64_t index);
    // DRAM for the layer's tokens up to `tokens`.
    int (*reserve)(struct space *space, struct layer_state *layer, uint64_t tokens,
                   struct inst_msg *msg);
    // V of n tokens of a head from `first` on was stored: first is how many it had.
    void (*append)(struct space *space, struct layer_state *layer, uint32_t head, uint64_t first,
                   const uint16_t *k, const uint16_t *v, uint64_t n);
    // All of what an append brings is stored.
    void (*appended)(struct space *space, struct layer_state *layer);
    // 0: done with what a WRITE brought, 1: wait for frames.
    int (*take_slab)(struct space *space, struct sequence *sequence,
                     const struct stream_slab *slab);
    void (*truncate)(struct space *space, struct layer_state *layer, uint64_t tokens);
    int (*punch)(struct space *space, struct layer_state *layer, uint64_t first, uint64_t end,
                 struct inst_msg *msg);
    int (*fork)(struct space *space, const struct layer_state *from, struct layer_state *to,
                uint64_t tokens, struct inst_msg *msg);
    // A page did not get to flash.
    void (*lost)(struct space *space, struct place place, const struct page_identity *identity);
    // Goes on in the background; true when something moved.
    bool (*work)(struct space *space, struct engine *engine, uint64_t now_ns);
    bool (*working)(const struct space *space); // FLUSH waits for it
    // Gives back DRAM of what is made again when it is needed; false: there is nothing like that.
    // NULL: there never is.
    bool (*shed)(struct space *space);
    void (*stats)(const struct space *space, struct drive_stats *stats);
    // For drive_check.
    int (*check)(const struct space *space, const struct layer_state *layer, struct inst_msg *msg);
    const struct map *(*rows_of)(const struct layer_state *layer);
};

extern const struct stream_ops stream_channels, stream_index;

// Streams of a space: K and V and the derived ones of `derived` (bits 1 << id), chosen values
// written back to *config.
int stream_layouts(struct stream streams[STREAM_MAX], struct space_config *config, uint32_t derived,
                   const struct flash_geometry *geometry, struct inst_msg *msg);

#endif
