// SPDX-License-Identifier: Apache-2.0
// Inside of the engine: what its files share. Nothing of this leaves the room.
#ifndef INST_HOST_ENGINE_ENGINE_H
#define INST_HOST_ENGINE_ENGINE_H

#include "host/compute/compute.h"
#include "host/engine/audit.h"
#include "host/engine/kv_place.h"
#include "host/engine/micro.h"
#include "host/engine/plan.h"
#include "host/engine/port.h"
#include "host/engine/sequence.h"
#include "host/engine/store.h"
#include "host/engine/trace.h"
#include "host/model/config.h"
#include "host/model/template.h"
#include "host/model/tokenizer.h"
#include "instinfer_stats.h"

enum {
    GROUP_MAX = 256, // query heads that share a KV head
    NOTES_MAX = 10,
};

struct inst_session {
    struct inst_engine *engine;
    uint32_t place; // among the engine's
    struct seq *seq;
    struct compute_buffer *logits_buffer;
    float *logits; // [vocab], of the last token, in the buffer
    bool has_logits;
    int dead;      // not 0: the drive's state is unknown, with this code
    uint64_t call; // the last one that named it
    inst_logits_fn *on_logits;
    void *on_logits_user;
    // What it had when a drive was lost
    uint64_t length_before, exact_before;
    unsigned char *decoded; // a bit for each token of the context, or NULL (loss.h)
    bool has_logits_before;
};

// Room for one step and one call of inst_sync, [max_sessions] each: a step allocates nothing.
struct scratch {
    struct step_segment *seg;
    struct sync_item *item;
    struct inst_segment *segment;
    unsigned char *refused; // segments that were, before the step
};

// What loss.c needs to go on without a drive.
struct loss {
    bool recompute, busy;
    uint32_t place[LINK_ARRAY_MOST]; // of each drive that there is
    struct plan_input plan;
    struct drive_stats before;          // counted by drives that are not there any more
    struct inst_drive_stats *before_of; // [n_places]
};

struct inst_engine {
    struct budget budget;
    struct gguf *gguf;
    struct model_config config;
    struct model_weights weights;
    struct tokenizer *tokenizer;
    struct chat_template chat;  // without a form: no chat
    uint32_t n_places;          // a drive in each
    struct store_where *where;  // [n_places]
    struct kv_place *place;     // [n_places], of directories
    char *kv_places, *kv_paths; // for people
    uint64_t available;         // memory for this process at opening, less weights that are read
    struct engine_plan plan;
    const char *note[NOTES_MAX]; // what preflight.c has to say
    char note_text[NOTES_MAX][256];
    size_t n_notes;
    struct pool *pool;
    const struct kernels *kernels;
    const struct compute_kind *compute_kind;
    struct compute *compute;
    uint64_t compute_limit_ns;       // that work is waited for
    int compute_lost;                // not 0: nothing can be computed any more, with this code
    struct inst_msg compute_message; // and this text
    struct loss loss;
    struct trace trace;
    inst_flash_trace_fn *flash_trace;
    void *flash_trace_user;
    inst_selection_trace_fn *selection_trace;
    void *selection_trace_user;
    struct store store; // empty when the link is somebody else's
    struct port port;
    uint64_t drive_limit_ns;                     // that a command of a drive is waited for
    atomic_bool cancel;                          // from any thread: what computes fails
    uint32_t max_items;                          // of one ATTEND
    struct compute_buffer *buffer[BUFFER_COUNT]; // of the plan, NULL where it has none
    char *piece;                                 // text of one token
    char *arch, *name;                           // for inst_model_info
    double *rope_freq;  // angle per position of pair i; of both sets where there are two
    uint64_t row_cache; // bytes, as in inst_options
    uint64_t memory, context, kv_limit;
    struct table_header attend;        // method and its knobs, for every ATTEND
    struct audit audit;
    const struct guest *guest;         // attends in the engine's place (guest.h), or NULL
    struct compute_buffer *guest_rows; // q of the host's rows, and outputs of one
    bool host_attention; // the drive only stores: what decode attends comes back by READ
    struct micro micro;
    uint64_t drive_dram; // bytes, as the drive states
    uint32_t next_epoch;
    uint32_t max_sessions;
    bool searched;                  // weights for NaN
    char blame[128];                // what was found
    struct inst_session **sessions; // [max_sessions], NULL = free
    struct seq *sequence;           // [n_sequences], by slot
    uint32_t n_sequences;
    uint64_t clock; // of uses of sequences
    struct scratch scratch;
    uint64_t call;                          // calls that named sessions, counted
    struct inst_stats stats;                // what the drive does not count
    struct inst_counter counter[STAT_ROWS + AUDIT_COUNTERS]; // of the method, for whoever asked last
    uint64_t prefill_read_bytes;            // flash read while prefilling
    struct drive_stats counted;             // by all drives, as inst_engine_stats last told
    bool has_counted;
};

// As far as the plan, its notes and its refusals: nothing is made, neither on disk nor threads nor
// buffers. Such an engine can be looked at and closed.
int engine_prepare(inst_engine **out, const struct inst_options *options, struct inst_msg *msg);
// Opens on somebody else's link (a test's) when `link` is not NULL; and on another kind of what
// computes than the CPU.
int engine_open_on(inst_engine **out, const struct inst_options *options, struct link *link,
                   struct inst_msg *msg);
int engine_open_with(inst_engine **out, const struct inst_options *options, struct link *link,
                     const struct compute_kind *compute, struct inst_msg *msg);

// From the next step on with another method's knobs, or densely: what `attention` names has to be
// what the engine was opened with, or dense.
int engine_attend_as(struct inst_engine *e, const struct inst_options *options,
                     struct inst_msg *msg);

// For the host, of a buffer that is.
static inline unsigned char *engine_bytes(const struct inst_engine *e, enum buffer_id id)
{
    return e->buffer[id]->host;
}

static inline struct compute_slice engine_slice(const struct inst_engine *e, enum buffer_id id,
                                                uint64_t offset)
{
    return (struct compute_slice){e->buffer[id], offset};
}

// Where WRITEs take their data from: the slabs, or a copy of them where they are not for the host.
static inline enum buffer_id engine_slab_out(const struct inst_engine *e)
{
    return e->compute_kind->apart ? BUFFER_slab_out : BUFFER_slab;
}

// The table of a command with one item.
struct one_item {
    unsigned char bytes[TABLE_HEADER_BYTES + TABLE_ITEM_BYTES];
};
// Of a WRITE or READ of n tokens of a sequence, all heads; returns the bytes of their slab.
uint32_t engine_put_item(const struct inst_engine *e, const struct seq *q, uint64_t pos, uint64_t n,
                         struct one_item *table);
// Bytes of K and V of n tokens in the data of a command, padded as its regions are.
size_t engine_slab_bytes(const struct inst_engine *e, uint64_t n);

// How many candidates the last draw had to put in order.
size_t sampler_ranked(const inst_sampler *sampler);
int engine_drive_stats(struct inst_engine *e, struct drive_stats *stats, struct inst_msg *msg);

// numbers.c: INST_ERANGE, with the layer or the tensor in *msg, for a fault that was told of.
int numbers_fail(struct inst_engine *e, uint32_t fault, uint32_t layer, uint64_t token,
                 struct inst_msg *msg);

// preflight.c: before anything, once the model is known, and once the plan is.
int preflight_place(struct inst_engine *e, const struct inst_options *o, struct inst_msg *msg);
void preflight_model(struct inst_engine *e, const struct inst_options *o);
int preflight_plan(struct inst_engine *e, const struct inst_options *o, struct inst_msg *msg);
// One line for whoever opened the engine; dropped where there are too many.
void engine_note(struct inst_engine *e, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

// engine.c: the drives of the plan, in the places that are left.
struct plan_place engine_plan_place(const struct store_where *where);
int engine_open_drives(struct inst_engine *e, struct inst_msg *msg);
// Returns the bytes of the budget that do not come back (store.h).
uint64_t engine_close_drives(struct inst_engine *e);
// The port of the engine's commands.
void engine_open_port(struct inst_engine *e, struct link *link);
static inline bool engine_cancelled(const struct inst_engine *e)
{
    return atomic_load_explicit(&e->cancel, memory_order_relaxed);
}

// step.c: segments whose status is 0, within the bounds of a step. Sets each status; returns the
// first failure. `progress` as in the public header: `before` tokens done of `total`, and so many
// `tokens` that the step adds.
struct step_progress {
    inst_progress_fn *fn;
    void *user;
    uint64_t before, total, tokens;
};
int step_run(struct inst_engine *e, struct inst_segment *segments, size_t count,
             const struct step_progress *progress, struct inst_msg *msg);
size_t step_segment_bytes(void);

// sync.c
size_t sync_item_bytes(void);

// Segments of a step at most: their decode rows go in one ATTEND.
static inline uint32_t engine_step_sessions(const struct inst_engine *e)
{
    return e->max_sessions < e->max_items ? e->max_sessions : e->max_items;
}

// chat.c: settles the chat template, by the options of these names.
int engine_chat_open(struct inst_engine *e, const char *name, int64_t at, struct inst_msg *msg);

// session.c: forgets everything from token `length` on, on the drive too.
int session_cut(struct inst_session *s, uint64_t length, struct inst_msg *msg);
// That n tokens, at positions from `first` on, are of the vocabulary.
int engine_check_tokens(const struct inst_engine *e, const int32_t *tokens, uint64_t first,
                        size_t n, struct inst_msg *msg);
// That n tokens from position `first` on can be the session's.
int session_check(const struct inst_session *s, const int32_t *tokens, uint64_t first, size_t n,
                  struct inst_msg *msg);
// Brings the session to the longest part of the tokens that is held, by itself or another sequence,
// all but the last of them at most, unless its logits are there already. *held = how many.
int session_match(struct inst_session *s, const int32_t *tokens, size_t n, size_t *held,
                  struct inst_msg *msg);

#endif
