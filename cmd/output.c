// SPDX-License-Identifier: Apache-2.0
#include "cmd/output.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void output_open(struct output *out, const struct option_list *stops)
{
    *out = (struct output){.stops = stops, .newline = true};
}

static void hold(struct output *out, const void *bytes, size_t n)
{
    if (out->n_held + n > out->room) {
        size_t room = 2 * (out->n_held + n) + 64;
        char *held = realloc(out->held, room);
        if (!held) {
            out->error = ENOMEM;
            return;
        }
        out->held = held;
        out->room = room;
    }
    memcpy(out->held + out->n_held, bytes, n);
    out->n_held += n;
}

// What the next byte of a character may be, by the bytes before it (Unicode table 3-7).
static bool may_follow(const unsigned char *s, size_t n, unsigned char c)
{
    if (n == 0)
        return c < 0x80 || (c >= 0xc2 && c <= 0xf4);
    if (n > 1)
        return c >= 0x80 && c <= 0xbf;
    unsigned char low = s[0] == 0xe0 ? 0xa0 : s[0] == 0xf0 ? 0x90 : 0x80;
    unsigned char high = s[0] == 0xed ? 0x9f : s[0] == 0xf4 ? 0x8f : 0xbf;
    return c >= low && c <= high;
}

static size_t character_bytes(unsigned char lead)
{
    return lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
}

static void take_byte(struct output *out, unsigned char c)
{
    static const char replacement[] = "\xef\xbf\xbd";
    if (!may_follow(out->partial, out->n_partial, c)) {
        if (out->n_partial) {
            out->n_partial = 0;
            hold(out, replacement, 3);
            take_byte(out, c); // it may start a character of its own
        } else {
            hold(out, replacement, 3);
        }
        return;
    }
    out->partial[out->n_partial++] = c;
    if (out->n_partial == character_bytes(out->partial[0])) {
        hold(out, out->partial, out->n_partial);
        out->n_partial = 0;
    }
}

static bool print(struct output *out, size_t n)
{
    if (n && !out->error) {
        out->newline = out->held[n - 1] == '\n';
        if (fwrite(out->held, 1, n, stdout) != n || fflush(stdout))
            out->error = errno ? errno : EIO;
    }
    memmove(out->held, out->held + n, out->n_held - n);
    out->n_held -= n;
    return !out->error;
}

// Length of the longest end of the held text that is the beginning of a stop text.
static size_t possible_stop(const struct output *out)
{
    for (size_t n = out->n_held; n > 0; n--)
        for (size_t i = 0; i < out->stops->n; i++)
            if (!strncmp(out->stops->items[i], out->held + out->n_held - n, n) &&
                strlen(out->stops->items[i]) > n)
                return n;
    return 0;
}

bool output_put(struct output *out, const char *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++)
        take_byte(out, (unsigned char)bytes[i]);
    if (!out->n_held)
        return !out->error;
    const char *first = NULL;
    for (size_t i = 0; i < out->stops->n; i++) {
        const char *stop = out->stops->items[i];
        const char *at = memmem(out->held, out->n_held, stop, strlen(stop));
        if (at && (!first || at < first))
            first = at;
    }
    if (first) {
        out->stopped = true;
        print(out, (size_t)(first - out->held));
        out->n_held = 0;
        return false;
    }
    return print(out, out->n_held - possible_stop(out));
}

bool output_end(struct output *out)
{
    if (out->stopped)
        return !out->error;
    if (out->n_partial) {
        out->n_partial = 0;
        hold(out, "\xef\xbf\xbd", 3);
    }
    return out->n_held ? print(out, out->n_held) : !out->error;
}

void output_close(struct output *out)
{
    free(out->held);
    out->held = NULL;
}
