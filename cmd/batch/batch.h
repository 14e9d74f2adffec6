// SPDX-License-Identifier: Apache-2.0
// What the files of the batch command share.
#ifndef INST_CMD_BATCH_H
#define INST_CMD_BATCH_H

#include "cmd/batch/answer.h"
#include "cmd/batch/lines.h"
#include "cmd/batch/part.h"
#include "cmd/engine_options.h"
#include "cmd/output_file.h"
#include "cmd/terminal.h"
#include "cmd/trace.h"
#include "instinfer_generate.h"

struct batch {
    struct engine_options engine;
    const char *input;
    struct output_file out, stats;
    struct trace_file trace;
    const char *part_path, *share_text, *template;
    char *own_path[2]; // made of the output's name: of the share, of the part
    char *unfinished;
    struct inst_sampling sampling;
    struct option_list stops;
    uint64_t predict;
    uint32_t parallel;
    uint32_t share, shares; // from 1; 0: all lines are ours
    bool ignore_eos, no_special, unordered, merge, verbose;

    struct batch_lines lines;
    struct batch_part part;
    size_t errors; // among the answers that it brought
    struct batch_defaults defaults;
    inst_engine *e;
    inst_scheduler *scheduler;
    struct inst_model_info info;
    bool no_chat; // the model has no template
    struct terminal terminal;
    struct meter meter;
    struct run_result result;
};

// Whether this process answers the index-th line.
static inline bool batch_is_ours(const struct batch *b, size_t index)
{
    return !b->shares || index % b->shares == b->share - 1;
}

// run.c: answers what has no answer yet. 0 or an exit code.
int batch_run(struct batch *b);

// merge.c: writes the output from the part file, or from n of all shares.
int batch_write(struct batch *b, const struct options *options);
int batch_merge(struct batch *b, const struct options *options, char **paths, size_t n);

#endif
