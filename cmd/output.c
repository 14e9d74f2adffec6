// SPDX-License-Identifier: Apache-2.0
#include "cmd/output.h"

#include <errno.h>
#include <stdio.h>

void output_open(struct output *out)
{
    *out = (struct output){.newline = true};
}

bool output_put(struct output *out, const char *bytes, size_t n)
{
    if (n && !out->error) {
        out->newline = bytes[n - 1] == '\n';
        if (fwrite(bytes, 1, n, stdout) != n || fflush(stdout))
            out->error = errno ? errno : EIO;
    }
    return !out->error;
}
