// SPDX-License-Identifier: Apache-2.0
// What lies where: spaces, their streams, sequences and the map (sequence, layer, stream, token
// group) -> row. Appending tokens fills group buffers (open frames); a full group becomes a row on
// flash. Forks share rows by reference; a shared row that is only partly inside the fork is loaded
// into a frame when the fork first appends (copy on append). What a space of METHOD_SPARF keeps
// beside K and V is in channels.h and means.h.
#ifndef INST_DRIVE_FTL_SPACE_H
#define INST_DRIVE_FTL_SPACE_H

#include "drive/drive.h"
#include "drive/ftl/frame.h"
#include "drive/ftl/means.h"
#include "drive/ftl/slot.h"
#include "kernels/kernels.h"

enum {
    STREAM_KV = 0,
    STREAM_CHANNELS = 1, // spaces of METHOD_SPARF only
    STREAM_MAX = 2,
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

// A kind of row. KV: slots of all KV heads for row_tokens consecutive tokens of a layer. Channels:
// see channels.h.
struct stream {
    uint32_t row_tokens;
    uint32_t row_pages;
    struct slot slot;    // KV: how K and V of one head lie
    uint64_t slot_bytes; // KV: of one head
    uint64_t data_bytes; // of a row
    uint64_t row_bytes;  // padded to whole pages
};

// Map entry. The identity is the writer's: after a FORK it differs from the sequence that refers
// to the row.
struct row {
    struct place place;
    uint32_t seq, epoch;
    uint64_t sums[]; // row_pages checksums
};

// A growing array of struct row.
struct row_map {
    uint64_t n;       // entries in use
    uint8_t **chunks; // ROW_CHUNK entries each
    uint64_t chunk_slots;
};

// Sequences that end together share a lifetime, and so segments.
struct lifetime {
    uint32_t handle; // the host's, 0 = private to one sequence
    uint32_t sequences;
    struct frontier frontiers[STREAM_MAX];
    struct lifetime *next;
};

struct layer_state {
    uint64_t tokens;       // stored for all heads
    uint64_t ahead_first;  // first token of the last ATTEND: a hint for reading ahead
    uint64_t *head_tokens; // [kv_heads], each >= tokens
    struct frame *open;    // group buffer of group rows.n, NULL when it is empty
    struct frame *loading; // copy on append: the row being read for the next append
    struct row_map rows;   // the last may reach beyond `tokens` after FORK or truncation
    // METHOD_SPARF
    struct row_map channels; // [channel group][kv_heads]; PLACE_NONE: there is no such row
    uint64_t channel_groups; // before this one all are built or given up
    struct means means;
    struct sequence *sequence;      // it belongs to
    struct layer_state *build_next; // in the queue of layers with groups to be built
    bool build_queued;
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
    struct space_config config; // group_tokens and page_channels chosen
    struct stream streams[STREAM_MAX];
    uint32_t n_streams;
    struct flash *flash;
    struct segments *segments;
    struct frames *frames;
    struct channels *channels; // METHOD_SPARF: channels.h
    struct sparf *sparf;       // METHOD_SPARF: sparf.h
    struct frames *sets[4];    // all frames there are, NULL behind the last one
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
// The same for all sequences that share the row at `place`.
void space_lost(struct space *space, struct place place, int status,
                const struct page_identity *row);
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
// 1: wait (a frame or an erase is about to come free); nothing has changed.
int sequence_fork(struct space *space, struct sequence *parent, const struct table_item *item,
                  struct sequence **out, struct inst_msg *msg);

// The map entry of a token group; NULL when it is in the group buffer or does not exist.
struct row *sequence_row(const struct space *space, const struct sequence *sequence, uint32_t layer,
                         uint64_t group);
// Identity of page 0 of a row.
void row_identity(const struct space *space, const struct row *row, uint32_t layer, uint32_t stream,
                  uint64_t group, struct page_identity *out);

// Entry i < n of a map of the stream.
struct row *row_map_at(const struct space *space, uint32_t stream, const struct row_map *map,
                       uint64_t i);
// Makes sure that entry i can be written; entries before it exist.
int row_map_ensure(struct space *space, uint32_t stream, struct row_map *map, uint64_t i,
                   struct inst_msg *msg);
// Gives up the reference of an entry.
void row_drop(struct space *space, struct row *row);
static inline bool row_placed(const struct row *row)
{
    return row->place.segment != PLACE_NONE;
}
static inline struct frames *const *space_frames(const struct space *space)
{
    return space->sets;
}
static inline bool space_is_sparf(const struct space *space)
{
    return space->config.method == METHOD_SPARF;
}

#endif
