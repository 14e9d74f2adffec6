// SPDX-License-Identifier: Apache-2.0
// What lies where: spaces, their streams, sequences and the map (sequence, layer, stream, token
// group) -> row. Appending tokens fills group buffers (open frames); a full group becomes a row on
// flash. Forks share rows by reference; a shared row that is only partly inside the fork is loaded
// into a frame when the fork first appends (copy on append). Streams beside that of K and V are
// derived from it and plug in (stream.h): this file knows none of them.
#ifndef INST_DRIVE_FTL_SPACE_H
#define INST_DRIVE_FTL_SPACE_H

#include "drive/command.h"
#include "drive/ftl/frame.h"
#include "drive/ftl/map.h"
#include "drive/ftl/stream.h"
#include "kernels/kernels.h"

enum {
    GROUP_MIN = 16,
    GROUP_MAX = 1024,
};

// Rows of one span, max(T, 64) tokens: the least that whole tiles are made of.
static inline uint32_t span_rows(const struct space_config *config)
{
    return config->group_tokens < ATTENTION_TILE ? ATTENTION_TILE / config->group_tokens : 1;
}

static inline uint32_t span_tokens(const struct space_config *config)
{
    return config->group_tokens * span_rows(config);
}

// Map entry. The identity is the writer's: after a FORK it differs from the sequence that refers
// to the row.
struct row {
    struct place place;
    uint32_t seq, epoch;
    uint64_t sums[]; // row_pages checksums
};

// What maps of the rows of a stream share.
struct row_maps {
    struct map_kind kind;
    struct space *space;
    uint32_t stream;
};

// Sequences that end together share a lifetime, and so segments.
struct lifetime {
    uint32_t handle; // the host's, 0 = private to one sequence
    uint32_t sequences;
    struct frontier frontiers[STREAM_MAX];
    struct lifetime *next;
};

// Where reading ahead has come to in a sequence (attend/ahead.h).
struct ahead_cursor {
    uint32_t layer;    // of the last ATTEND
    uint32_t distance; // layers after it: of the row read next; 1 to layers - 1, 0 = not expected
    uint64_t group;    // of that row
    uint64_t lost;     // rows read ahead that others had taken by the last ATTEND, of all sequences
    uint64_t round, round_before; // clock when the last two passes through the layers began
    bool queued;
    struct sequence *next, *before; // in the queue
};

// 1 = wait is a named value wherever a function of the drive can neither go on nor fail.
enum progress { DONE, WAIT, FAILED };

struct ahead_queue {
    struct sequence *first, *last;
    uint64_t clock; // counts ATTENDs
};

struct layer_state {
    uint64_t tokens;           // stored for all heads
    uint64_t ahead_first;      // first token of the last ATTEND: a hint for reading ahead
    uint64_t *head_tokens;     // [kv_heads], each >= tokens
    struct frame *open;        // group buffer of group rows.n, NULL when it is empty
    struct frame *loading;     // copy on append: the row being read for the next append
    uint32_t load_tries;       // reads of it that failed
    struct map rows;           // the last may reach beyond `tokens` after FORK or truncation
    uint64_t promised;         // rows of flash, for the WRITE at work
    struct sequence *sequence; // it belongs to
    void *derived[STREAM_MAX]; // what derived streams keep
};

struct sequence {
    uint32_t id, epoch;
    int failed; // a row of it could not be programmed: every further command on it gets this
    uint32_t lost_layer, lost_group; // which row
    uint32_t jobs;                   // READs and ATTENDs that look at it
    uint64_t serial;                 // later ones have larger numbers
    bool forked;                     // from these, at that position
    uint32_t parent, parent_epoch;
    uint64_t fork_pos;
    struct lifetime *lifetime;
    struct layer_state *layers;
    struct ahead_cursor ahead;
    struct sequence *next; // hash chain
};

struct space {
    uint32_t id;
    struct space_config config;        // group_tokens and page_channels chosen
    struct stream streams[STREAM_MAX]; // ops NULL: not of this space
    struct row_maps maps[STREAM_MAX];
    struct map_kind *beside;   // of maps that a derived stream has beside, NULL: none
    void *derived[STREAM_MAX]; // what derived streams keep
    struct flash *flash;
    struct segments *segments;
    struct frames *frames;
    struct budget own;     // of the drive's: what CONFIG promised, and what is taken beyond
    struct budget *budget; // that
    uint64_t promised_tickets, promised_tables; // what others hold in reserve for this space
    struct space_config asked;                  // as CONFIG came
    struct sequence **table;                    // hash by id
    struct lifetime *lifetimes;
    struct ahead_queue ahead;
    struct frame *stranded; // rows whose program failed and that have no new place yet
    uint64_t n_sequences, n_open_frames, serial;
    uint64_t stream_bytes, view_bytes, bridged_bytes, checksum_errors, replaced_rows;
    uint32_t read_reserve; // slabs that appends leave to others
    bool views;            // the flash may be memory
    void *walk;            // attend's
    struct space *next;
};

// What a space of this configuration needs, beside what its walk needs: tables, streams, and the
// maps of max_tokens tokens. `pages`: single pages that derived streams must be able to take.
struct space_plan {
    uint64_t bytes;
    uint64_t more; // for maps of all sequences at full length
    uint32_t pages;
    size_t scratch;
};
int space_plan(struct space_plan *plan, const struct flash_geometry *geometry,
               const struct space_config *config, const struct stream *streams, unsigned level,
               struct inst_msg *msg);

// `streams`: as stream_layouts filled them in. The space's memory is a part of `budget`.
int space_open(struct space **out, uint32_t id, const struct space_config *config,
               const struct stream *streams, struct flash *flash, struct segments *segments,
               struct budget *budget, struct inst_msg *msg);
// The space's pool, and what its streams need of it.
int space_open_frames(struct space *space, const struct frames_size *size, uint32_t read_reserve,
                      unsigned level, struct inst_msg *msg);
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

// The program of a frame failed. Its row is placed again from DRAM, for all that refer to it; where
// that cannot be (now: space_retry tries again) they lose it, and are told.
void space_program_failed(struct space *space, struct frame *frame);
bool space_retry(struct space *space); // true when something moved
// A row of the sequence did not get to flash; the first one is remembered.
void sequence_lost(struct sequence *sequence, int status, const struct page_identity *row);
// The answer to commands on a sequence that lost a row.
int sequence_refuse(const struct sequence *sequence, struct inst_msg *msg);

// What appending tokens up to `end` takes beyond what the layer has (NULL: a new sequence), before
// any of it: rows of flash, and whether a group buffer.
uint64_t append_rows(const struct space *space, const struct layer_state *layer, uint64_t end,
                     bool *buffer);
// Are there so many more group buffers? INST_ENORESOURCE
int space_buffers(const struct space *space, uint64_t more, struct inst_msg *msg);
// Promises rows of flash to the layer's next appends, so that none of them is refused for want of
// it. 1: wait. What is left over is to be given back.
int sequence_promise(struct space *space, struct sequence *sequence, uint32_t layer, uint64_t rows,
                     struct inst_msg *msg);
void sequence_unpromise(struct space *space, struct sequence *sequence, uint32_t layer);
// 0, or why nothing can be appended to the layer whatever room there is: the sequence has lost a
// row, or the one that has to be continued was given up.
int sequence_can_append(const struct space *space, const struct sequence *sequence, uint32_t layer,
                        struct inst_msg *msg);
// Nothing is stored in any layer.
bool sequence_empty(const struct space *space, const struct sequence *sequence);

// Makes the group buffer ready that the layer's next token goes to. 0: ready. 1: wait (a frame or
// an erase is about to come free, or a row is being loaded). Negative: refused.
int sequence_prepare_append(struct space *space, struct sequence *sequence, uint32_t layer,
                            struct inst_msg *msg);
// Nobody waits any more for the row that prepare_append is loading, if it is.
void sequence_unload(struct space *space, struct sequence *sequence, uint32_t layer);
// Stores tokens [pos, pos + n) of the source's heads, as far as they lie in the group buffer's
// group and are not stored yet; returns how many of the n tokens are settled. Only after
// prepare_append returned 0. A group that is complete for all heads goes to flash.
uint64_t sequence_append(struct space *space, struct sequence *sequence, uint32_t layer,
                         const struct append_source *source, uint64_t pos, uint64_t n);

// After an append: derived streams see all of it.
void sequence_appended(struct space *space, struct layer_state *layer);
// What a WRITE brought, for derived streams. 1: wait for frames.
int sequence_take_slab(struct space *space, struct sequence *sequence,
                       const struct stream_slab *slab);

// Drops tokens from `tokens` on in one layer (0 = all of it).
void sequence_truncate(struct space *space, struct sequence *sequence, uint32_t layer,
                       uint64_t tokens);
// Gives up whole rows inside [pos, pos + n) of one layer; they can no longer be read. Refused only
// for want of memory; to be asked again then.
int sequence_punch(struct space *space, struct sequence *sequence, uint32_t layer, uint64_t pos,
                   uint64_t n, struct inst_msg *msg);
// Can the sequence be forked there? *buffers += group buffers that it takes.
int sequence_can_fork(const struct space *space, const struct sequence *parent, uint64_t pos,
                      uint64_t *buffers, struct inst_msg *msg);
// The child is what a FORK of the item made, once.
bool sequence_forked_by(const struct sequence *child, const struct table_item *item);
// Creates the child without any token; its layers come one by one. 1: wait (a frame or an erase is
// about to come free); the layer has not changed. *bytes += what was copied.
int sequence_fork(struct space *space, const struct sequence *parent, const struct table_item *item,
                  struct sequence **out, struct inst_msg *msg);
int sequence_fork_layer(struct space *space, struct sequence *parent, struct sequence *child,
                        uint32_t layer, uint64_t *bytes, struct inst_msg *msg);

// The map entry of a token group; NULL when it is in the group buffer or does not exist.
struct row *sequence_row(const struct space *space, const struct sequence *sequence, uint32_t layer,
                         uint64_t group);
// The same of any stream.
struct row *stream_row(const struct space *space, const struct sequence *sequence, uint32_t layer,
                       uint32_t stream, uint64_t index);
// Identity of page 0 of a row.
void stream_identity(const struct space *space, const struct row *row, uint32_t layer,
                     uint32_t stream, uint64_t index, struct page_identity *out);

// Entry i < n of a map of the stream. What is changed in it holds for all maps that share it.
static inline struct row *row_map_at(const struct space *space, uint32_t stream,
                                     const struct map *map, uint64_t i)
{
    return map_at(&space->maps[stream].kind, map, i);
}
// Bytes that maps of the stream take in `layers` layers of `sequences` sequences which have `rows`
// rows together in each. False when that overflows.
bool row_maps_bytes(const struct stream *stream, uint32_t layers, uint64_t sequences, uint64_t rows,
                    uint64_t *out);
// Gives up references that nobody needs any more, a slice of them; true when there are more.
bool space_sweep(struct space *space, uint64_t work);
bool space_swept(const struct space *space);
// Entry i of a derived stream's map, to be written to; it has `n` entries at least then, without a
// place. NULL: no memory.
struct row *row_edit(struct space *space, uint32_t stream, struct map *map, uint64_t i, uint64_t n);
// Gives a row of a derived stream, whose pages are all there, a place and programs it. WAIT,
// FAILED: nothing can be programmed now, there is no room for it; the pages are free again.
enum progress row_program(struct space *space, struct layer_state *layer, uint32_t stream,
                          uint64_t index, struct row *row, struct frame **pages);
// Gives up the reference of an entry, for all maps that share it.
void row_drop(struct space *space, uint32_t stream, struct row *row);
static inline bool row_placed(const struct row *row)
{
    return row->place.segment != PLACE_NONE;
}
static inline bool space_has(const struct space *space, uint32_t stream)
{
    return space->streams[stream].row_pages != 0;
}

#endif
