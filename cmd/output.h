// SPDX-License-Identifier: Apache-2.0
// Generated text on its way to stdout: whole UTF-8 characters only (what cannot become one is
// replaced by U+FFFD), and nothing of a stop text, so a tail that may still become one is held
// back.
#ifndef INST_CMD_OUTPUT_H
#define INST_CMD_OUTPUT_H

#include "cmd/options.h"

struct output {
    const struct option_list *stops;
    unsigned char partial[4]; // start of a character
    size_t n_partial;
    char *held; // valid text that is not printed yet
    size_t n_held, room;
    bool stopped; // a stop text came
    bool newline; // the last character printed was one, or there was none
    int error;    // errno of a failed write
};

void output_open(struct output *out, const struct option_list *stops);
// False when the generation shall end: a stop text, or stdout failed (error is set).
bool output_put(struct output *out, const char *bytes, size_t n);
// Prints what is held back. False when stdout failed.
bool output_end(struct output *out);
void output_close(struct output *out);

#endif
