// SPDX-License-Identifier: Apache-2.0
// Tells whoever asked for it (instinfer_trace.h) what time goes to. Costs nothing when nobody did.
#ifndef INST_HOST_ENGINE_TRACE_H
#define INST_HOST_ENGINE_TRACE_H

#include "base/clock.h"
#include "instinfer_trace.h"

#include <stddef.h>

struct trace {
    inst_trace_fn *fn; // NULL: nobody asked
    void *user;
};

// The start of something, for trace_end.
static inline uint64_t trace_begin(const struct trace *trace)
{
    return trace->fn ? clock_ns() : 0;
}

static inline void trace_end(const struct trace *trace, enum inst_trace_kind kind, const char *name,
                             uint32_t layer, uint32_t slot, uint64_t count, uint64_t start_ns)
{
    if (trace->fn)
        trace->fn(trace->user, &(struct inst_trace_event){.kind = kind,
                                                          .name = name,
                                                          .layer = layer,
                                                          .slot = slot,
                                                          .count = count,
                                                          .start_ns = start_ns,
                                                          .end_ns = clock_ns()});
}

#endif
