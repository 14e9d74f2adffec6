// SPDX-License-Identifier: Apache-2.0
#include "cmd/trace.h"

#include <inttypes.h>

enum { PROCESS = 1, HOST = 1, DRIVE = 2 }; // "pid" and "tid"

static double us(uint64_t ns)
{
    return (double)ns / 1e3;
}

static void put_place(FILE *f, const struct inst_trace_event *e)
{
    if (e->layer != INST_TRACE_NO_LAYER)
        fprintf(f, "\"layer\":%" PRIu32 ",", e->layer);
    fprintf(f, "\"%s\":%" PRIu64, e->kind == INST_TRACE_COMMAND ? "bytes" : "rows", e->count);
}

// An event begins before those that it contains are told, so the first start may not be the least:
// times before it are below zero, which viewers take.
static void put(void *user, const struct inst_trace_event *e)
{
    struct trace_file *trace = user;
    FILE *f = trace->file.stream;
    if (!f)
        return; // the engine is being closed
    if (!trace->begun)
        trace->start_ns = e->start_ns;
    fputs(trace->begun ? ",\n" : "[\n", f);
    trace->begun = true;
    double start = us(e->start_ns) - us(trace->start_ns), end = us(e->end_ns) - us(trace->start_ns);
    if (e->kind == INST_TRACE_COMMAND) {
        for (int last = 0; last < 2; last++) {
            fprintf(f,
                    "%s{\"name\":\"%s\",\"cat\":\"command\",\"ph\":\"%c\",\"id\":%" PRIu32
                    ",\"pid\":%d,\"tid\":%d,\"ts\":%.3f,\"args\":{",
                    last ? ",\n" : "", e->name, last ? 'e' : 'b', e->slot, PROCESS, DRIVE,
                    last ? end : start);
            put_place(f, e);
            fputs("}}", f);
        }
        return;
    }
    fprintf(f,
            "{\"name\":\"%s\",\"cat\":\"%s\",\"ph\":\"X\",\"pid\":%d,\"tid\":%d,\"ts\":%.3f,"
            "\"dur\":%.3f,\"args\":{",
            e->name, e->kind == INST_TRACE_WAIT ? "wait" : "stage", PROCESS, HOST, start,
            end - start);
    put_place(f, e);
    fputs("}}", f);
}

void trace_file_engine(struct trace_file *trace, struct inst_options *options)
{
    flash_trace_engine(&trace->flash, options);
    selection_trace_engine(&trace->selections, options);
    if (!trace->file.stream)
        return;
    options->trace = put;
    options->trace_user = trace;
}

int trace_file_close(struct trace_file *trace)
{
    FILE *f = trace->file.stream;
    int code = flash_trace_close(&trace->flash);
    int chosen = selection_trace_close(&trace->selections);
    code = code ? code : chosen;
    if (!f)
        return code;
    fputs(trace->begun ? ",\n" : "[\n", f);
    fprintf(f,
            "{\"name\":\"thread_name\",\"ph\":\"M\",\"pid\":%d,\"tid\":%d,\"args\":{\"name\":"
            "\"host\"}},\n"
            "{\"name\":\"thread_name\",\"ph\":\"M\",\"pid\":%d,\"tid\":%d,\"args\":{\"name\":"
            "\"commands\"}}\n]\n",
            PROCESS, HOST, PROCESS, DRIVE);
    int other = output_file_close(&trace->file);
    return code ? code : other;
}
