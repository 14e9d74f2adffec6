// SPDX-License-Identifier: Apache-2.0
// --sparf r=16,k=1/8,local=64: how much SparF looks at.
#ifndef INST_CMD_SPARF_OPTION_H
#define INST_CMD_SPARF_OPTION_H

#include "cmd/options.h"

struct sparf_option {
    const char *text;  // as it was given, or NULL
    uint32_t channels; // r; 0: ceil(head_dim / 8)
    uint32_t tokens;   // k; 0: by the divisor
    uint32_t divisor;  // k = ceil(tokens / divisor); 0: 8
    uint32_t local;
};

// A row for an option table; S is a struct sparf_option.
#define SPARF_OPTION_ROW(S)                                                                        \
    {                                                                                              \
        "--sparf", 0, OPTION_TEXT, &(S).text, 0, 0, "r=R,k=K,local=L",                             \
            "channels ranked by, tokens attended to (a number, or 1/8 of all), newest tokens "     \
            "always among them; default: r = head_dim/8, k = 1/8, local = 0"                       \
    }

// Reads text into the numbers. 0 or an exit code, with the error line printed.
int sparf_option_read(struct sparf_option *option, const char *command);
// "r=1/8,k=1/8,local=0": what holds, for reports.
void sparf_option_text(const struct sparf_option *option, char *out, size_t size);

#endif
