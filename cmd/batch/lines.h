// SPDX-License-Identifier: Apache-2.0
// The lines of a batch file: where each lies, found in one pass over the file in pieces, so that
// any number of lines takes some bytes each and no line more than its limit. Lines end with LF or
// CR LF; empty ones do not count; a byte order mark in front is left out.
#ifndef INST_CMD_BATCH_LINES_H
#define INST_CMD_BATCH_LINES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

struct batch_line {
    uint64_t offset;
    uint64_t result;  // where its answer lies in the part file; 0: it has none yet
    uint32_t bytes;   // without its end; more than BATCH_LINE_MAX: too long
    uint32_t number;  // as an editor counts, from 1
    uint32_t same_id; // the earlier line with its custom_id, 0: none
    uint32_t failed;  // how often the engine failed it
};

struct batch_lines {
    const char *path;
    int fd;
    struct batch_line *line;
    size_t n, room;
    uint64_t bytes, print; // of the whole file
    struct timespec changed;
    char *text; // [text_room] of the line that was read last
    size_t text_room;
};

// 0 or an exit code, with the error line printed.
int batch_lines_open(struct batch_lines *lines, const char *path);
void batch_lines_close(struct batch_lines *lines);
// The text of a line, not too long, until the next call. NULL with the error line printed.
const char *batch_lines_read(struct batch_lines *lines, size_t index);
// 0, or an exit code with the error line printed: somebody wrote to the file since it was opened.
int batch_lines_unchanged(const struct batch_lines *lines);
// The line of this number, NULL: there is none.
struct batch_line *batch_lines_find(struct batch_lines *lines, uint32_t number);

#endif
