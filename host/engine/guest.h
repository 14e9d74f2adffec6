// SPDX-License-Identifier: Apache-2.0
// Somebody who attends in the place of an engine that attends on the host ("host"): how methods are
// compared that belong in no drive. The guest sees q, k and v of every segment of a step, as the
// drive will hold them, layer by layer, and answers for decode rows; prompts are attended exactly
// all the same. It keeps what it needs: nothing comes back from the drive for a row it answers.
#ifndef INST_HOST_ENGINE_GUEST_H
#define INST_HOST_ENGINE_GUEST_H

#include "instinfer.h"

// Rows of one segment in one layer; rope is applied.
struct guest_rows {
    uint32_t session; // its place among the engine's
    uint32_t layer, heads, kv_heads, head_dim;
    uint64_t pos; // of the first
    size_t n;
    uint32_t window; // of the layer: tokens that a query sees, its own included; 0: all
    float scale, softcap;
    const float *q;     // [kv_heads][n][heads / kv_heads][head_dim]
    const uint16_t *kv; // [kv_heads]{K [n][head_dim], V the same}, fp16
    float *out;         // of head h at out + h * out_stride; NULL: attended exactly, only look
    size_t out_stride;
};

struct guest {
    void (*attend)(void *user, const struct guest_rows *rows);
    void *user;
};

// The engine's until another one is set. It has to be opened with attention "host".
int engine_set_guest(inst_engine *engine, const struct guest *guest, struct inst_msg *msg);

#endif
