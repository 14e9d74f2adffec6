// SPDX-License-Identifier: Apache-2.0
// Structs of the public header that grow at their end: a caller's may be shorter or longer than
// ours.
#ifndef INST_HOST_ENGINE_SIZED_H
#define INST_HOST_ENGINE_SIZED_H

#include "base/status.h"

#include <stddef.h>

// Reads a struct that begins with its size into *to, `known` bytes of ours, zeroed. `first`: its
// size in version 0.1.
int sized_read(void *to, size_t known, size_t first, const void *from, const char *what,
               struct inst_msg *msg);
// Writes ours to a caller's of `size` bytes.
void sized_write(void *to, size_t size, const void *from, size_t known);

#endif
