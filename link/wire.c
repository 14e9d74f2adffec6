// SPDX-License-Identifier: Apache-2.0
#include "link/wire.h"
#include "base/timeline.h"

#include <stdlib.h>

enum { WIRE_MOST = 256 }; // commands

struct slot {
    struct wire_command sent;
    struct completion answer;
    uint64_t at_ns; // when it arrives
    struct slot *next;
};

struct fifo {
    struct slot *first, *last;
};

struct wire {
    double rate;
    struct timeline down, up;
    struct fifo sent, answered; // on their way
    struct slot *with_drive, *unused;
    struct slot slots[WIRE_MOST];
};

static void push(struct fifo *f, struct slot *s)
{
    s->next = NULL;
    if (f->first)
        f->last->next = s;
    else
        f->first = s;
    f->last = s;
}

static struct slot *pop(struct fifo *f)
{
    struct slot *s = f->first;
    f->first = s->next;
    return s;
}

int wire_open(struct wire **out, uint64_t bytes_per_s, struct inst_msg *msg)
{
    *out = calloc(1, sizeof **out);
    if (!*out)
        return inst_fail(msg, INST_ENOMEM, "link: out of memory");
    (*out)->rate = (double)bytes_per_s;
    wire_forget(*out);
    return 0;
}

void wire_close(struct wire *w)
{
    free(w);
}

void wire_forget(struct wire *w)
{
    w->sent = w->answered = (struct fifo){0};
    w->with_drive = w->unused = NULL;
    for (size_t i = 0; i < WIRE_MOST; i++) {
        w->slots[i].next = w->unused;
        w->unused = &w->slots[i];
    }
}

// The low bits of an opcode say which way its data goes.
uint64_t wire_down_bytes(const struct command *c)
{
    return COMMAND_BYTES + command_table_bytes(c) + (c->opcode & 1 ? c->length : 0);
}

uint64_t wire_up_bytes(const struct command *c)
{
    return COMPLETION_BYTES + (c->opcode & 2 ? c->length : 0);
}

bool wire_send(struct wire *w, const struct wire_command *command, uint64_t now_ns)
{
    struct slot *s = w->unused;
    if (!s)
        return false;
    w->unused = s->next;
    s->sent = *command;
    s->at_ns = timeline_take(&w->down, now_ns,
                             duration_ns((double)wire_down_bytes(&command->command), w->rate));
    push(&w->sent, s);
    return true;
}

const struct wire_command *wire_arrived(const struct wire *w, uint64_t now_ns)
{
    const struct slot *s = w->sent.first;
    return s && s->at_ns <= now_ns ? &s->sent : NULL;
}

void wire_taken(struct wire *w)
{
    struct slot *s = pop(&w->sent);
    s->next = w->with_drive;
    w->with_drive = s;
}

void wire_answer(struct wire *w, const struct completion *completion, uint64_t now_ns)
{
    struct slot **link = &w->with_drive, *s;
    while (*link && (*link)->sent.command.cid != completion->cid)
        link = &(*link)->next;
    if (!(s = *link)) // was forgotten
        return;
    *link = s->next;
    s->answer = *completion;
    s->at_ns = timeline_take(&w->up, now_ns,
                             duration_ns((double)wire_up_bytes(&s->sent.command), w->rate));
    push(&w->answered, s);
}

size_t wire_received(struct wire *w, struct completion *out, size_t max, uint64_t now_ns)
{
    size_t n = 0;
    while (n < max && w->answered.first && w->answered.first->at_ns <= now_ns) {
        struct slot *s = pop(&w->answered);
        out[n++] = s->answer;
        s->next = w->unused;
        w->unused = s;
    }
    return n;
}

uint64_t wire_next_down_ns(const struct wire *w)
{
    return w->sent.first ? w->sent.first->at_ns : UINT64_MAX;
}

uint64_t wire_next_up_ns(const struct wire *w)
{
    return w->answered.first ? w->answered.first->at_ns : UINT64_MAX;
}

uint64_t wire_busy_ns(const struct wire *w)
{
    return w->down.busy_ns + w->up.busy_ns;
}
