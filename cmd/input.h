// SPDX-License-Identifier: Apache-2.0
// The user's text: from the command line, a file or standard input. Whatever it comes from, it is
// read in pieces into memory that a budget counts, and not on when it is clear that it is too long.
// A byte order mark in front of a file is not part of its text; all else is, CR LF too.
#ifndef INST_CMD_INPUT_H
#define INST_CMD_INPUT_H

#include "cmd/text.h"

#include <stdint.h>

struct input {
    const char *text; // any bytes
    size_t bytes;
    struct text read; // where it is, if it is not the command line's
};

// Exactly one of text and file must be given; file "-" is standard input. 0 or an exit code, with
// the error line printed (Ctrl-C needs none). `room` outlives the input.
int input_open(struct input *input, const char *command, const char *text, const char *file,
               const struct text_room *room);
void input_close(struct input *input);

// One line when the text brought the begin token that the model adds itself; -1: it adds none.
void input_check_begin(int64_t begin, const int32_t *tokens, size_t n);

#endif
