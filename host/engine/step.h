// SPDX-License-Identifier: Apache-2.0
// Inside of one step: what step.c shares with the two ways to attend. A step has rows, one for each
// token, those of decode first; every product of a layer is one for all of them. Decode rows attend
// on the drive (decode.c), rows of prompts attend here over what READ brings back and over their
// own (prefill.c). Whoever computes (host/compute) knows neither; the step knows segments and
// commands, and touches what the device wrote once its point is done.
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
    size_t item; // decode: of the layer's ATTEND
    size_t slab; // prompts: bytes in a layer's
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

// A micro-batch: decode rows that go through the layers together. While the drive attends for one,
// the host computes for the other. Rows of prompts are computed with the last one's.
struct step_set {
    size_t first, end;           // segments, which are rows
    uint32_t layer;              // that it is in
    struct attend_layout all;    // of all rows, as qkv gives them
    struct attend_layout layout; // of the rows alive, as the drive gets them
    size_t items;                // of the ATTEND: rows alive when they were placed
    uint64_t table, in, out;     // where its part of each buffer begins
    bool attending;
    int collect; // handle
};

struct step {
    struct inst_engine *e;
    struct step_segment *seg;
    size_t n_seg, n_decode, n_rows;
    size_t alive;
    uint32_t layer;
    struct compute_wire *wire; // of the layer, [n_wires]
    uint32_t n_wires;
    int first_error;
    struct inst_msg *msg;
    // decode
    struct step_set set[MICRO_MOST];
    size_t n_sets; // 1 at least
    bool audit;    // the drive measures what its method captures
    bool dense;    // whatever the method, and for an audit alone (audit.h)
    // prompts
    struct step_reader reader;
    struct step_writes writes;
    size_t slab_bytes; // of all segments
};

void step_fail(struct step *t, struct step_segment *seg, int code, const char *text);

// Whoever computes refused something, or is lost: all segments fail, and all later steps. Returns
// whether `err` is 0.
bool step_computes(struct step *t, int err);
// Waits for all that was put into a queue; false: step_computes.
bool step_wait(struct step *t, enum compute_queue queue);
// Makes a queue wait for what is in another one.
bool step_order(struct step *t, enum compute_queue later, enum compute_queue first);

// decode.c. Divides the decode rows into the step's sets.
void decode_divide(struct step *t);
// Where q, k and v of a set's rows go. False when the sizes overflow.
bool decode_wire(struct step *t, struct step_set *set, struct compute_wire *wire);
// Sends the ATTEND of the set's layer; then waits for what it gives. Rows without outputs get
// zeros.
void decode_begin(struct step *t, struct step_set *set);
void decode_end(struct step *t, struct step_set *set);
struct compute_slice decode_outputs(const struct step *t, const struct step_set *set);

// prefill.c.
void prefill_place(struct step *t);
void prefill_wire(const struct step *t, const struct step_segment *seg, struct compute_wire *wire);
void prefill_issue(struct step *t); // keeps the buffers of pieces busy
// Once the layer's slab is needed again, and once it is full.
void prefill_write_room(struct step *t, uint32_t layer);
void prefill_write(struct step *t);
void prefill_attend(struct step *t);
void prefill_end(struct step *t); // nothing is under way any more

#endif
