// SPDX-License-Identifier: Apache-2.0
// The user's text: from the command line, a file or standard input.
#ifndef INST_CMD_INPUT_H
#define INST_CMD_INPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct input {
    const char *text; // any bytes
    size_t bytes;
    bool mapped, owned;
};

// Exactly one of text and file must be given; file "-" is standard input. 0 or an exit code, with
// the error line printed. A regular file is mapped: a prompt of any length costs no memory.
int input_open(struct input *input, const char *command, const char *text, const char *file);
void input_close(struct input *input);

// One line when the text brought the begin token that the model adds itself; -1: it adds none.
void input_check_begin(int64_t begin, const int32_t *tokens, size_t n);

#endif
