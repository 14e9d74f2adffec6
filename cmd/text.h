// SPDX-License-Identifier: Apache-2.0
// Text from outside on its way into memory: piece by piece, in memory that a budget counts, and
// never more of it than can be of use.
#ifndef INST_CMD_TEXT_H
#define INST_CMD_TEXT_H

#include "instinfer.h"

// Where a text's memory comes from, and how long it may be.
struct text_room {
    // As inst_text_resize.
    int (*resize)(void *owner, char **bytes, size_t size, struct inst_msg *msg);
    void *owner;
    uint64_t most;    // bytes; what is longer cannot fit in `left` tokens
    uint64_t left;    // tokens of the context that the text may take
    uint64_t context; // all of them, 0: there is no context
};
// Of an engine's budget and context, `left` tokens of which are free.
struct text_room text_room_of_engine(inst_engine *engine, uint64_t left, uint64_t context);

struct text {
    const struct text_room *room;
    char *bytes;
    size_t n, size;
};

// What becomes of a text that is growing.
enum text_fate {
    TEXT_FITS,
    TEXT_TOO_LONG, // more than room->most
    TEXT_NO_MEMORY
};

// Makes place for `more` bytes behind those that are there.
enum text_fate text_reserve(struct text *text, size_t more);
enum text_fate text_add(struct text *text, const char *bytes, size_t n);
// The error line of a text that does not fit; an exit code.
int text_refused(const char *name, const struct text *text, enum text_fate fate);
// Gives back what it did not need.
void text_fit(struct text *text);
void text_free(struct text *text);

// Encodings that files and terminals of other systems bring along. How many bytes of a byte order
// mark are in front; -1: it is that of UTF-16 or UTF-32, which nobody here reads.
int text_mark(const char *bytes, size_t n);
// What to say of these.
extern const char text_not_utf8[];
// Takes a byte order mark in front and a carriage return at the end off a line, whose line feed is
// gone already.
void text_trim_line(const char **line, size_t *n);

#endif
