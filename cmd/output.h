// SPDX-License-Identifier: Apache-2.0
// Generated text on its way to stdout, at once.
#ifndef INST_CMD_OUTPUT_H
#define INST_CMD_OUTPUT_H

#include <stdbool.h>
#include <stddef.h>

struct output {
    bool newline; // the last character printed was one, or there was none
    int error;    // errno of a failed write
};

void output_open(struct output *out);
// False when stdout failed.
bool output_put(struct output *out, const char *bytes, size_t n);

#endif
