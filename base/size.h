// SPDX-License-Identifier: Apache-2.0
#ifndef INST_BASE_SIZE_H
#define INST_BASE_SIZE_H

#include <stddef.h>
#include <stdint.h>

// A size as people write it, from the first `bytes` of a text: a whole number, or a number with K,
// M, G or T, as messages print it, too: "512M", "2.6m", at most three decimals. INST_EINVAL: it is
// none; INST_ERANGE: it is too large.
int size_parse(const char *text, size_t bytes, uint64_t *out);

// For people: "100 bytes", "5.3M". Returns `out`.
enum { SIZE_TEXT_BYTES = 24 };
const char *size_text(uint64_t bytes, char out[SIZE_TEXT_BYTES]);

#endif
