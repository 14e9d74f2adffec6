// SPDX-License-Identifier: Apache-2.0
#include "cmd/selection_trace.h"
#include "kernels/kv.h"
#include "sim/selections.h"

#include <string.h>

static void begin(struct selection_trace_file *trace)
{
    if (!trace->begun)
        selections_write_head(trace->file.stream);
    trace->begun = true;
}

static void put(void *user, const struct inst_selection_event *e)
{
    struct selection_trace_file *trace = user;
    FILE *f = trace->file.stream;
    if (trace->full || e->drive >= SELECTIONS_DRIVES_MAX)
        return;
    begin(trace);
    if (!(trace->known >> e->drive & 1)) {
        const struct selections_layout layout = {.sparf = !strcmp(e->method, "sparf"),
                                                 .page_bytes = e->page_bytes,
                                                 .kv_heads = e->kv_heads,
                                                 .head_dim = e->head_dim,
                                                 .group_tokens = e->group_tokens,
                                                 .part_tokens = e->part_tokens,
                                                 .page_channels = e->page_channels,
                                                 .kv_type = kv_type_named(e->kv_type)};
        selections_write_layout(f, e->drive, &layout);
        trace->known |= UINT64_C(1) << e->drive;
    }
    const struct selections_record record = {.drive = e->drive,
                                             .layer = e->layer,
                                             .sequence = e->sequence,
                                             .head = e->head,
                                             .tokens = e->tokens,
                                             .flash_tokens = e->flash_tokens,
                                             .ranked_tokens = e->ranked_tokens,
                                             .channels = e->channels,
                                             .n_channels = e->n_channels,
                                             .chosen = e->chosen};
    selections_write(f, &record);
    if (ftell(f) >= SELECTION_TRACE_BYTES) {
        trace->full = true;
        fputs("# ends here: long enough\n", f);
    }
}

void selection_trace_engine(struct selection_trace_file *trace, struct inst_options *options)
{
    if (!trace->file.stream)
        return;
    options->selection_trace = put;
    options->selection_trace_user = trace;
}

int selection_trace_close(struct selection_trace_file *trace)
{
    if (trace->file.stream)
        begin(trace);
    return output_file_close(&trace->file);
}
