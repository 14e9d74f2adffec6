// SPDX-License-Identifier: Apache-2.0
// UTF-8 for streams: tokens may end inside a character, so bytes are held back until a sequence is
// whole. What comes out is always valid UTF-8: bytes that cannot become a character are replaced by
// U+FFFD, one for each maximal broken part (Unicode chapter 3, "substitution of maximal subparts").
#ifndef INST_HOST_MODEL_TEXT_H
#define INST_HOST_MODEL_TEXT_H

#include <stddef.h>
#include <stdint.h>

struct text_stream {
    unsigned char held[4]; // start of a sequence that may still become whole
    uint32_t n;
};

// Room that text_stream_push needs for n bytes of input.
static inline size_t text_stream_room(size_t n)
{
    return 3 * (n + 4);
}

// Takes n bytes, writes what is whole to `out`, returns how many bytes that is. A zeroed stream is
// at the start.
size_t text_stream_push(struct text_stream *stream, const char *bytes, size_t n, char *out);
// The end: a broken rest becomes U+FFFD (at most 3 bytes).
size_t text_stream_end(struct text_stream *stream, char *out);

// Length of the valid UTF-8 sequence that starts at s (n > 0 bytes there): 1 to 4, 0 when no
// sequence can start so, or minus the length of a beginning that more bytes could complete.
int text_utf8_length(const unsigned char *s, size_t n);

#endif
