// SPDX-License-Identifier: Apache-2.0
// Orders of events: the input draws shapes, commands, and what the flash does when. See
// tests/drive/interleave_harness.h.
#include "interleave_harness.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t bytes)
{
    enum { COMMANDS_MAX = 4000 };
    struct interleave_options options = {
        .bytes = input, .n_bytes = bytes, .commands = COMMANDS_MAX};
    struct interleave_counts counts = {0};
    struct inst_msg msg = {0};
    if (!bytes)
        return 0;
    if (interleave_run(&options, &counts, &msg)) {
        fprintf(stderr, "%s\n", msg.text);
        abort();
    }
    return 0;
}
