// SPDX-License-Identifier: Apache-2.0
// What lies where: spaces, their streams, sequences and the map (sequence, layer, stream, token
// group) -> row. Appending tokens fills group buffers (open frames); a full group becomes a row on
// flash. Forks share rows by reference; a shared row that is only partly inside the fork is loaded
// into a frame when the fork first appends (copy on append).
#ifndef INST_DRIVE_SPACE_H
#define INST_DRIVE_SPACE_H

#include "drive/drive.h"
#include "drive/frame.h"
#include "kernels/kernels.h"

enum {
    STREAM_KV = 0,
    STREAM_MAX = 4,
    GROUP_MIN = 16,
    GROUP_MAX = 1024,
    SPAN_LIMIT_MAX = 256,
};

// Rows of one span (see internal.h): max(T, 64) tokens.
static inline uint32_t span_rows(const struct space_config *config)
{
    return config->group_tokens < ATTENTION_TILE ? ATTENTION_TILE / config->group_tokens : 1;
}

static inline uint32_t span_tokens(const struct space_config *config)
{
    return config->group_tokens * span_rows(config);
}

// A kind of row: slots of all KV heads for row_tokens consecutive tokens of a layer.
struct stream {
    uint32_t row_tokens;
    uint32_t row_pages;
    uint64_t slot_bytes; // KV: K of row_tokens tokens, then V
    uint64_t row_bytes;  // padded to whole pages
};

// Map entry. The identity is the writer's: after a FORK it differs from the sequence that refers
// to the row.
struct row {
    struct place place;
    uint32_t seq, epoch;
    uint64_t sums[]; // row_pages checksums
};

struct layer_state {
    uint64_t tokens;       // stored for all heads
    uint64_t ahead_first;  // first token of the last ATTEND: a hint for reading ahead
    uint64_t *head_tokens; // [kv_heads], each >= tokens
    struct frame *open;    // group buffer of group n_rows, NULL when it is empty
    struct frame *loading; // copy on append: the row being read for the next append
    uint64_t n_rows;  // map entries; the last may reach beyond `tokens` after FORK or truncation
    uint8_t **chunks; // ROW_CHUNK entries each
    uint64_t chunk_slots;
};

struct sequence {
    uint32_t id, epoch;
    int failed; // a row of it could not be programmed: every further command on it gets this
    uint32_t lost_layer, lost_group; // which row
    uint32_t jobs;                   // READs and ATTENDs that look at it
    struct lifetime *lifetime;
    struct layer_state *layers;
    struct sequence *next; // hash chain
};

struct space {
    uint32_t id;
    struct space_config config; // group_tokens chosen
    struct stream streams[STREAM_MAX];
    uint32_t n_streams;
    struct flash *flash;
    struct segments *segments;
    struct frames *frames;
    struct budget *budget;
    struct sequence **table; // hash by id
    struct lifetime *lifetimes;
    uint64_t n_sequences, n_open_frames;
    uint64_t stream_bytes;
    uint32_t span_limit;   // spans that a job may have under way
    uint32_t read_reserve; // frames that appends leave to reads
    struct space *next;
};

int stream_layout(struct stream *kv, const struct flash_geometry *geometry,
                  const struct space_config *config, struct inst_msg *msg);
int space_open(struct space **out, uint32_t id, const struct space_config *config,
               struct flash *flash, struct segments *segments, struct budget *budget,
               struct inst_msg *msg);
// The space's DRAM: min_frames are kept for group buffers and the least that reads need.
int space_open_frames(struct space *space, const struct drive_plan *plan, uint64_t dram_bytes,
                      struct inst_msg *msg);
void space_close(struct space *space);

struct sequence *space_find(const struct space *space, uint32_t id);
// Walks over all sequences; NULL begins and ends.
struct sequence *space_next(const struct space *space, const struct sequence *sequence);
// What a command that names (id, epoch) works on. *out is NULL and 0 is returned when the sequence
// does not exist but may be created (pos == 0).
int space_lookup(struct space *space, const struct table_item *item, struct sequence **out,
                 struct inst_msg *msg);
int space_create(struct space *space, const struct table_item *item, struct sequence **out,
                 struct inst_msg *msg);
// Ends a sequence: its rows lose a reference. It must have no jobs.
void space_remove(struct space *space, struct sequence *sequence);

// Where appended K and V come from: rows of head_dim elements, consecutive tokens adjacent.
struct append_source {
    uint32_t head_first, head_count;
    const uint16_t *k, *v;               // of head_first and the token at `pos`
    size_t k_head_stride, v_head_stride; // elements from one head to the next
};

// A row did not get to flash; the first one is remembered.
void sequence_lost(struct sequence *sequence, int status, const struct page_identity *row);
// The answer to commands on a sequence that lost a row.
int sequence_refuse(const struct sequence *sequence, struct inst_msg *msg);

// Makes the group buffer ready that the layer's next token goes to. 0: ready. 1: wait (a frame or
// an erase is about to come free, or a row is being loaded). Negative: refused.
int sequence_prepare_append(struct space *space, struct sequence *sequence, uint32_t layer,
                            struct inst_msg *msg);
// Stores tokens [pos, pos + n) of the source's heads, as far as they lie in the group buffer's
// group and are not stored yet; returns how many of the n tokens are settled. Only after
// prepare_append returned 0. A group that is complete for all heads goes to flash.
uint64_t sequence_append(struct space *space, struct sequence *sequence, uint32_t layer,
                         const struct append_source *source, uint64_t pos, uint64_t n);

// Drops tokens from `tokens` on in one layer (0 = all of it).
void sequence_truncate(struct space *space, struct sequence *sequence, uint32_t layer,
                       uint64_t tokens);
// Gives up whole rows inside [pos, pos + n) of one layer; they can no longer be read.
void sequence_punch(struct space *space, struct sequence *sequence, uint32_t layer, uint64_t pos,
                    uint64_t n);
int sequence_fork(struct space *space, struct sequence *parent, const struct table_item *item,
                  struct sequence **out, struct inst_msg *msg);

// The map entry of a token group; NULL when it is in the group buffer or does not exist.
struct row *sequence_row(const struct space *space, const struct sequence *sequence, uint32_t layer,
                         uint64_t group);
void row_identity(const struct space *space, const struct row *row, uint32_t layer, uint64_t group,
                  struct page_identity *out);

#endif
