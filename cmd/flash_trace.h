// SPDX-License-Identifier: Apache-2.0
// Every flash operation of an engine's drives, as other programs read it: fio's iolog, version 3,
// and the ASCII traces of MQSim. Both know one row of bytes: page p of block b lies at b times the
// size of a block plus p times that of a page.
//
// iolog: "MICROSECONDS driveN read|write|trim|sync OFFSET BYTES"; an erase is a trim of its block.
// MQSim: "NANOSECONDS N SECTOR SECTORS 0|1", sectors of 512 bytes, 1 a read; it has no erases.
// Times are those at which the drive hands over, from the first of all operations on.
#ifndef INST_CMD_FLASH_TRACE_H
#define INST_CMD_FLASH_TRACE_H

#include "cmd/output_file.h"
#include "instinfer.h"

struct flash_trace_files {
    struct output_file iolog, mqsim;
    bool begun;
    uint64_t start_ns, last_ns;
    uint64_t known; // bit i: drive i is in the iolog
};

#define FLASH_TRACE_ROWS(T)                                                                        \
    {"--flash-trace",                                                                              \
     0,                                                                                            \
     OPTION_OUTPUT,                                                                                \
     &(T).iolog,                                                                                   \
     0,                                                                                            \
     0,                                                                                            \
     "FILE",                                                                                       \
     "every flash operation, as fio's iolog (version 3)"},                                         \
    {                                                                                              \
        "--flash-trace-mqsim", 0, OPTION_OUTPUT, &(T).mqsim, 0, 0, "FILE",                         \
            "the same as MQSim reads it"                                                           \
    }

void flash_trace_engine(struct flash_trace_files *trace, struct inst_options *options);
int flash_trace_close(struct flash_trace_files *trace);

#endif
