// SPDX-License-Identifier: Apache-2.0
// What an engine spends its time on: every stage of a step, every wait for a drive and every
// command, each told once it has ended.
#ifndef INSTINFER_TRACE_H
#define INSTINFER_TRACE_H

#include <stdint.h>

enum inst_trace_kind {
    INST_TRACE_STAGE,   // work of the host; stages follow each other
    INST_TRACE_WAIT,    // for the drive, inside of a stage
    INST_TRACE_COMMAND, // from its submission to its completion; several overlap
};

#define INST_TRACE_NO_LAYER UINT32_MAX

struct inst_trace_event {
    enum inst_trace_kind kind;
    const char *name;          // "qkv", "ATTEND"; a constant
    uint32_t layer;            // or INST_TRACE_NO_LAYER
    uint32_t slot;             // of two commands under way at a time, different ones
    uint64_t count;            // rows of a stage, bytes of a command's data
    uint64_t start_ns, end_ns; // CLOCK_MONOTONIC
};

// On the thread that called the engine, in the order in which they end.
typedef void inst_trace_fn(void *user, const struct inst_trace_event *event);

#endif
