// SPDX-License-Identifier: Apache-2.0
#include "host/engine/reply.h"

#include "base/checked.h"

#include <string.h>

int reply_open(struct reply *reply, struct budget *budget, const char *const *stops,
               const size_t *stop_bytes, size_t n_stops, struct inst_msg *msg)
{
    *reply = (struct reply){.budget = budget};
    if (!n_stops)
        return 0;
    reply->stops = budget_alloc(budget, n_stops, sizeof *reply->stops, "stop texts", msg);
    if (!reply->stops)
        return INST_ENOMEM;
    for (size_t i = 0; i < n_stops; i++) {
        size_t n = stop_bytes ? stop_bytes[i] : strlen(stops[i]);
        if (!n)
            return inst_fail(msg, INST_EINVAL, "a stop text is empty");
        struct reply_stop *stop = &reply->stops[reply->n_stops];
        stop->text = budget_alloc(budget, n, 1, "a stop text", msg);
        if (!stop->text)
            return INST_ENOMEM;
        memcpy(stop->text, stops[i], n);
        stop->bytes = n;
        reply->n_stops++;
        reply->longest_stop = max_u64(reply->longest_stop, n);
    }
    return 0;
}

void reply_close(struct reply *reply)
{
    for (size_t i = 0; i < reply->n_stops; i++)
        budget_free(reply->budget, reply->stops[i].text);
    budget_free(reply->budget, reply->stops);
    budget_free(reply->budget, reply->text);
    *reply = (struct reply){.budget = reply->budget};
}

int reply_reserve(struct reply *reply, size_t bytes, struct inst_msg *msg)
{
    uint64_t more, need, room;
    if (!checked_add(bytes, 4, &more) || !checked_mul(more, 3, &more) ||
        !checked_add(reply->n, more, &need) || !checked_add(need, need, &room))
        return inst_fail(msg, INST_ENOMEM, "a text longer than memory");
    if (need <= reply->room)
        return 0;
    char *text = budget_resize(reply->budget, reply->text, room, "the text", NULL);
    if (!text) {
        room = need;
        text = budget_resize(reply->budget, reply->text, room, "the text", msg);
    }
    if (!text)
        return INST_ENOMEM;
    reply->text = text;
    reply->room = room;
    return 0;
}

static void drop_taken(struct reply *reply)
{
    memmove(reply->text, reply->text + reply->taken, reply->n - reply->taken);
    reply->n -= reply->taken;
    reply->ready -= reply->taken;
    reply->taken = 0;
}

static void make_ready(struct reply *reply, size_t end)
{
    reply->put += end - reply->ready;
    reply->ready = end;
}

// Where the earliest stop text begins in what is held back; NULL: none is whole.
static const char *find_stop(const struct reply *reply)
{
    const char *held = reply->text + reply->ready, *first = NULL;
    for (size_t i = 0; i < reply->n_stops; i++) {
        const struct reply_stop *stop = &reply->stops[i];
        const char *at = memmem(held, reply->n - reply->ready, stop->text, stop->bytes);
        if (at && (!first || at < first))
            first = at;
    }
    return first;
}

// Length of the longest end of what is held back that is the beginning of a stop text.
static size_t possible_stop(const struct reply *reply)
{
    size_t most = min_u64(reply->n - reply->ready, reply->longest_stop);
    for (size_t n = most; n > 0; n--)
        for (size_t i = 0; i < reply->n_stops; i++)
            if (reply->stops[i].bytes > n &&
                !memcmp(reply->stops[i].text, reply->text + reply->n - n, n))
                return n;
    return 0;
}

bool reply_put(struct reply *reply, const char *bytes, size_t n)
{
    if (reply->taken)
        drop_taken(reply);
    reply->n += text_stream_push(&reply->stream, bytes, n, reply->text + reply->n);
    const char *stop = find_stop(reply);
    if (stop) {
        reply->stopped = true;
        make_ready(reply, (size_t)(stop - reply->text));
        reply->n = reply->ready;
        return false;
    }
    make_ready(reply, reply->n - possible_stop(reply));
    return true;
}

void reply_end(struct reply *reply)
{
    if (reply->stopped)
        return;
    if (reply->text) // nothing was put otherwise
        reply->n += text_stream_end(&reply->stream, reply->text + reply->n);
    make_ready(reply, reply->n);
}

const char *reply_take(struct reply *reply, size_t *bytes)
{
    const char *text = reply->text ? reply->text + reply->taken : "";
    *bytes = reply->ready - reply->taken;
    reply->taken = reply->ready;
    return text;
}
