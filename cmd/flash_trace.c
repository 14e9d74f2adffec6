// SPDX-License-Identifier: Apache-2.0
#include "cmd/flash_trace.h"

#include <inttypes.h>

enum { SECTOR = 512, DRIVES = 64 };

static void put_iolog(struct flash_trace_files *trace, const struct inst_flash_event *e,
                      uint64_t ns)
{
    static const char *const actions[] = {
        [INST_FLASH_READ] = "read",
        [INST_FLASH_PROGRAM] = "write",
        [INST_FLASH_ERASE] = "trim",
        [INST_FLASH_SYNC] = "sync",
    };
    FILE *f = trace->iolog.stream;
    if (!trace->known && !ns)
        fputs("fio version 3 iolog\n", f);
    if (!(trace->known >> e->drive & 1)) {
        fprintf(f, "%" PRIu64 " drive%" PRIu32 " add\n", ns / 1000, e->drive);
        fprintf(f, "%" PRIu64 " drive%" PRIu32 " open\n", ns / 1000, e->drive);
        trace->known |= UINT64_C(1) << e->drive;
    }
    fprintf(f, "%" PRIu64 " drive%" PRIu32 " %s %" PRIu64 " %" PRIu64 "\n", ns / 1000, e->drive,
            actions[e->op], e->offset, e->bytes);
}

static void put_mqsim(struct flash_trace_files *trace, const struct inst_flash_event *e,
                      uint64_t ns)
{
    if (e->op == INST_FLASH_READ || e->op == INST_FLASH_PROGRAM)
        fprintf(trace->mqsim.stream, "%" PRIu64 " %" PRIu32 " %" PRIu64 " %" PRIu64 " %d\n", ns,
                e->drive, e->offset / SECTOR, e->bytes / SECTOR, e->op == INST_FLASH_READ);
}

// Drives in virtual time have each their own: none goes back in the file.
static void put(void *user, const struct inst_flash_event *e)
{
    struct flash_trace_files *trace = user;
    if (!trace->begun)
        trace->start_ns = trace->last_ns = e->time_ns;
    trace->begun = true;
    if (e->time_ns > trace->last_ns)
        trace->last_ns = e->time_ns;
    uint64_t ns = trace->last_ns - trace->start_ns;
    if (trace->iolog.stream && e->drive < DRIVES)
        put_iolog(trace, e, ns);
    if (trace->mqsim.stream)
        put_mqsim(trace, e, ns);
}

void flash_trace_engine(struct flash_trace_files *trace, struct inst_options *options)
{
    if (!trace->iolog.stream && !trace->mqsim.stream)
        return;
    options->flash_trace = put;
    options->flash_trace_user = trace;
}

int flash_trace_close(struct flash_trace_files *trace)
{
    FILE *f = trace->iolog.stream;
    if (f && !trace->known)
        fputs("fio version 3 iolog\n", f);
    for (uint32_t i = 0; f && i < DRIVES; i++)
        if (trace->known >> i & 1)
            fprintf(f, "%" PRIu64 " drive%" PRIu32 " close\n",
                    (trace->last_ns - trace->start_ns) / 1000, i);
    int code = f ? output_file_close(&trace->iolog) : 0;
    int other = trace->mqsim.stream ? output_file_close(&trace->mqsim) : 0;
    return code ? code : other;
}
