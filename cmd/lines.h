// SPDX-License-Identifier: Apache-2.0
// Lines that a person types, with editing and a history (libedit), or lines of a pipe.
#ifndef INST_CMD_LINES_H
#define INST_CMD_LINES_H

#include <stdbool.h>
#include <stddef.h>

struct lines;

int lines_open(struct lines **out); // of standard input; 0 or an exit code
void lines_close(struct lines *lines);
bool lines_typed(const struct lines *lines); // a terminal

enum line {
    LINE_TEXT,
    LINE_END,       // of the input: Ctrl-D
    LINE_INTERRUPT, // Ctrl-C
    LINE_FAILED,    // and it has been said why
};
// The text has no line break and stays until the next call.
enum line lines_read(struct lines *lines, const char *prompt, const char **text, size_t *bytes);

#endif
