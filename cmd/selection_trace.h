// SPDX-License-Identifier: Apache-2.0
// What sparf and pages choose in a run, as `instinfer sim` takes it (sim/selections.h). It ends at
// SELECTION_TRACE_BYTES, with a whole record and a line that says so.
#ifndef INST_CMD_SELECTION_TRACE_H
#define INST_CMD_SELECTION_TRACE_H

#include "cmd/output_file.h"
#include "instinfer.h"

#define SELECTION_TRACE_BYTES (128 << 20)

struct selection_trace_file {
    struct output_file file;
    uint64_t known; // bit i: drive i is in it
    bool begun, full;
};

#define SELECTION_TRACE_ROW(T)                                                                     \
    {                                                                                              \
        "--trace-selections", 0, OPTION_OUTPUT, &(T).file, 0, 0, "FILE",                           \
            "tokens that sparf or pages chose, of every step, layer and KV head; for sim"          \
    }

void selection_trace_engine(struct selection_trace_file *trace, struct inst_options *options);
int selection_trace_close(struct selection_trace_file *trace);

#endif
