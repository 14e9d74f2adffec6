// SPDX-License-Identifier: Apache-2.0
// Inside of one step: what step.c shares with the two ways to attend. A step has rows, one for each
// token, those of decode first; every product of a layer is one for all of them. Decode rows attend
// on the drive (decode.c), rows of prompts attend here over what READ brings back and over their
// own (prefill.c). Outputs of both meet in the buffer q, one row for each row of the step.
//
// What fails is a segment. It stays in its place until the step ends, with outputs of zero, sends
// no command any more, and harms nobody (contract point 9); then its session is cut back.
#ifndef INST_HOST_ENGINE_STEP_H
#define INST_HOST_ENGINE_STEP_H

#include "host/engine/engine.h"

enum { STEP_WRITES = 16 }; // under way at a time

struct step_segment {
    struct inst_session *s;
    struct inst_segment *out;
    size_t row, n; // rows [row, row + n) of the step
    uint64_t pos0; // position of the first
    int status;
    struct number_fault fault; // in its rows of the current layer
    size_t item;               // decode: of the layer's ATTEND
    // Prompts: where q and the partials of its queries begin, counted in queries; and its slab, in
    // bytes.
    size_t query, slab;
};

// READs of what the step's prompts have on the drive, in the order in which they are wanted:
// layers, in each the segments, in each the pieces that its queries see.
struct step_reader {
    uint32_t layer, piece; // next to issue
    size_t segment;
    uint64_t issued, consumed;
    struct {
        int handle;
        size_t segment;
    } piece_of[2];
};

// WRITEs under way, oldest first.
struct step_writes {
    uint64_t issued, done;
    struct {
        int handle;
        size_t segment;
        uint32_t layer;
        struct one_item table;
    } slot[STEP_WRITES];
};

// Consecutive tokens in a slab, from a position that the tile divides.
struct step_run {
    const uint16_t *slab; // [kv_heads]{K [slab_tokens][head_dim], V the same}
    uint64_t slab_tokens;
    uint64_t offset; // of the first token in the slab
    uint64_t pos, tokens;
};

// A micro-batch: decode rows that go through the layers together. While the drive attends for one,
// the host computes for the other. Rows of prompts are computed with the last one's.
struct step_set {
    size_t first, end; // segments, which are rows
    uint32_t layer;    // that it is in
    struct attend_layout layout;
    size_t items; // of the ATTEND: rows alive when they were placed
    unsigned char *table, *in, *out;
    bool attending;
    int collect; // handle
};

struct step {
    struct inst_engine *e;
    struct step_segment *seg;
    uint32_t *segment_of; // [rows]
    size_t n_seg, n_decode, n_rows, n_logits;
    size_t alive;
    uint32_t layer;
    size_t group; // query heads of a KV head
    int first_error;
    struct inst_msg *msg;
    // decode
    struct step_set set[MICRO_MOST];
    size_t n_sets; // 1 at least
    bool audit;
    // prompts
    struct step_reader reader;
    struct step_writes writes;
    const struct step_segment *at; // that attends now
    struct step_run run[2];
    size_t n_runs;
};

void step_fail(struct step *t, struct step_segment *seg, int code, const char *text);

static inline float *step_output(const struct step *t, size_t row)
{
    const struct model_config *c = &t->e->config;
    return engine_f32(t->e, BUFFER_q) + row * row_stride((uint64_t)c->heads * c->head_dim);
}

// decode.c. Divides the decode rows into the step's sets.
void decode_divide(struct step *t);
// Items of a set's rows alive; false when the sizes overflow.
bool decode_place(struct step *t, struct step_set *set);
void decode_put_row(struct step *t, struct step_segment *seg, const float *q, const float *k,
                    const float *v);
// Sends the ATTEND of the set's layer; then waits for what it gives.
void decode_begin(struct step *t, struct step_set *set);
void decode_end(struct step *t, struct step_set *set);

// prefill.c.
void prefill_place(struct step *t);
void prefill_put_row(struct step *t, struct step_segment *seg, size_t row, const float *q,
                     const float *k, const float *v);
void prefill_issue(struct step *t); // keeps the buffers of pieces busy
// Once the layer's slab is needed again, and once it is full.
void prefill_write_room(struct step *t, uint32_t layer);
void prefill_write(struct step *t);
void prefill_attend(struct step *t);
void prefill_outputs(struct step *t); // queries are gone after it
void prefill_end(struct step *t);     // nothing is under way any more

#endif
