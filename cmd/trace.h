// SPDX-License-Identifier: Apache-2.0
// An engine's time as a Chrome trace (chrome://tracing, ui.perfetto.dev): JSON, an object a line.
// Stages and waits are one thread, commands are asynchronous spans.
#ifndef INST_CMD_TRACE_H
#define INST_CMD_TRACE_H

#include "cmd/flash_trace.h"
#include "cmd/selection_trace.h"
#include "instinfer.h"

struct trace_file {
    struct output_file file;
    struct flash_trace_files flash;
    struct selection_trace_file selections;
    bool begun;
    uint64_t start_ns; // of the first event: the trace begins there
};

#define TRACE_ROWS(T)                                                                              \
    {"--trace", 0, OPTION_OUTPUT, &(T).file,                                                       \
     0,         0, "FILE.json",   "what each stage, wait and command takes, as a Chrome trace"},   \
        FLASH_TRACE_ROWS((T).flash), SELECTION_TRACE_ROW((T).selections)

// Sets the engine's options where files were asked for and are open.
void trace_file_engine(struct trace_file *trace, struct inst_options *options);
// The end of them, whatever ended the run. 0 or an exit code.
int trace_file_close(struct trace_file *trace);

#endif
