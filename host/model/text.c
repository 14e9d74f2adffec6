// SPDX-License-Identifier: Apache-2.0
#include "host/model/text.h"

#include <string.h>

int text_utf8_length(const unsigned char *s, size_t n)
{
    // The second byte's range carries all the special cases (no surrogates, no overlong forms,
    // nothing above U+10FFFF); Unicode table 3-7.
    unsigned char low = 0x80, high = 0xbf;
    int length;
    if (s[0] < 0x80)
        return 1;
    if (s[0] >= 0xc2 && s[0] <= 0xdf) {
        length = 2;
    } else if (s[0] >= 0xe0 && s[0] <= 0xef) {
        length = 3;
        low = s[0] == 0xe0 ? 0xa0 : 0x80;
        high = s[0] == 0xed ? 0x9f : 0xbf;
    } else if (s[0] >= 0xf0 && s[0] <= 0xf4) {
        length = 4;
        low = s[0] == 0xf0 ? 0x90 : 0x80;
        high = s[0] == 0xf4 ? 0x8f : 0xbf;
    } else {
        return 0;
    }
    for (int i = 1; i < length; i++) {
        if ((size_t)i == n)
            return -i;
        if (s[i] < low || s[i] > high)
            return 0;
        low = 0x80;
        high = 0xbf;
    }
    return length;
}

static size_t put_replacement(char *out)
{
    memcpy(out, "\xef\xbf\xbd", 3);
    return 3;
}

size_t text_stream_push(struct text_stream *stream, const char *bytes, size_t n, char *out)
{
    size_t written = 0;
    for (size_t i = 0; i < n; i++) {
        stream->held[stream->n++] = (unsigned char)bytes[i];
        int length = text_utf8_length(stream->held, stream->n);
        if (length < 0) // a beginning: wait for more
            continue;
        if (length > 0) {
            memcpy(out + written, stream->held, stream->n);
            written += stream->n;
        } else {
            // The new byte broke the sequence. What was held is one broken part; the byte itself
            // may begin something new.
            written += put_replacement(out + written);
            if (stream->n > 1) {
                stream->n = 0;
                i--;
                continue;
            }
        }
        stream->n = 0;
    }
    return written;
}

size_t text_stream_end(struct text_stream *stream, char *out)
{
    size_t written = stream->n ? put_replacement(out) : 0;
    stream->n = 0;
    return written;
}
