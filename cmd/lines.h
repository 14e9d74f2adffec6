// SPDX-License-Identifier: Apache-2.0
// Lines that a person types, with editing and a history (libedit), or lines of a pipe. They end
// with LF or CR LF; a byte order mark in front of one is left out.
#ifndef INST_CMD_LINES_H
#define INST_CMD_LINES_H

#include "cmd/text.h"

struct lines;

int lines_open(struct lines **out); // of standard input; 0 or an exit code
void lines_close(struct lines *lines);
bool lines_typed(const struct lines *lines); // a terminal

enum line {
    LINE_TEXT,
    LINE_END,       // of the input: Ctrl-D
    LINE_INTERRUPT, // Ctrl-C
    LINE_REFUSED,   // it does not fit in the text, and it has been said why
    LINE_FAILED,    // the same of the input
};
// Appends the line, without its end, to the text; behind a line feed when it `goes_on`. Nothing is
// appended at the end of the input.
enum line lines_read(struct lines *lines, const char *prompt, bool goes_on, struct text *text);

#endif
