// SPDX-License-Identifier: Apache-2.0
// The text of a generation on its way out: whole UTF-8 characters only (what cannot become one is
// replaced by U+FFFD), and nothing of a stop text, so that an end which may still become one is
// held back. Memory is asked for before a token is drawn, so that a refusal leaves everything as it
// was.
#ifndef INST_HOST_ENGINE_REPLY_H
#define INST_HOST_ENGINE_REPLY_H

#include "base/budget.h"
#include "host/model/text.h"

#include <stdbool.h>

struct reply_stop {
    char *text;
    size_t bytes; // 1 or more
};

struct reply {
    struct budget *budget;
    struct text_stream stream;
    struct reply_stop *stops;
    size_t n_stops, longest_stop;
    char *text;     // [room]: what was taken since the last put, what is ready, what is held back
    size_t n, room; // bytes
    size_t taken, ready; // ends of the first two
    size_t put;          // bytes that are or were ready, all in all
    bool stopped;        // a stop text came
};

// `stops` are copied; an empty one is INST_EINVAL.
int reply_open(struct reply *reply, struct budget *budget, const char *const *stops,
               const size_t *stop_bytes, size_t n_stops, struct inst_msg *msg);
void reply_close(struct reply *reply);

// Room for the bytes of one more token and for the end.
int reply_reserve(struct reply *reply, size_t bytes, struct inst_msg *msg);
// Takes reserved bytes. False when a stop text came: what was before it is ready.
bool reply_put(struct reply *reply, const char *bytes, size_t n);
// Nothing follows: what was held back is ready.
void reply_end(struct reply *reply);
// What is ready and was not taken before; valid until the next call of another function.
const char *reply_take(struct reply *reply, size_t *bytes);

#endif
