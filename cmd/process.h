// SPDX-License-Identifier: Apache-2.0
// What the process is given and what the system does to it, settled before anything else happens.
#ifndef INST_CMD_PROCESS_H
#define INST_CMD_PROCESS_H

#include <stdbool.h>

// Descriptors 0 to 2 exist from now on. One that was closed fails every read and write, and no file
// that is opened later takes its place. Signals that would end the process where a call can fail
// instead are ignored, and a mapped file that cannot be read any more (its weights are used where
// they lie) ends it with a line and status 1. False: not even that was possible.
bool process_begin(void);

#endif
