// SPDX-License-Identifier: Apache-2.0
// What is looked for among sequences is found by comparing tokens: an unrelated sequence differs
// after a few of them, and a search is made once for a prompt, not for a token.
#include "host/engine/sequence.h"
#include "base/checked.h"
#include "host/engine/engine.h"

#include <string.h>

enum { ROOM_LEAST = 256 };

uint32_t seqs_most(uint32_t sessions)
{
    return 2 * sessions + SEQUENCES_MORE;
}

static int call_item(struct inst_engine *e, enum opcode opcode, const struct table_item *item,
                     struct inst_msg *msg)
{
    struct one_item table = {{0}};
    table_put_header(table.bytes, &(struct table_header){0});
    table_put_item(table.bytes, 0, item);
    struct command command = {.opcode = (uint8_t)opcode, .count = 1};
    return port_call(&e->port, command, table.bytes, NULL, NULL, msg);
}

static int reclaim(struct inst_engine *e, const struct seq *q, uint64_t pos, struct inst_msg *msg)
{
    struct table_item item = {.seq = q->slot,
                              .epoch = q->epoch,
                              .pos = pos,
                              .n_tokens = UINT64_MAX,
                              .layer_count = e->config.layers};
    int err = call_item(e, OP_RECLAIM, &item, msg);
    // A sequence that never got a token does not exist.
    return err == INST_ENOENT ? 0 : err;
}

static void forget_tokens(struct inst_engine *e, struct seq *q)
{
    budget_free(&e->budget, q->tokens);
    q->tokens = NULL;
    q->room = q->length = q->exact = 0;
}

// Ends a sequence; what the drive does not give up is left.
static int give_up(struct inst_engine *e, struct seq *q, struct inst_msg *msg)
{
    forget_tokens(e, q);
    int err = reclaim(e, q, 0, msg);
    q->state = err ? SEQ_LEFT : SEQ_FREE;
    return err;
}

// The kept sequence that was of use least recently is given up.
static bool give_up_one(struct inst_engine *e)
{
    struct seq *least = NULL;
    for (uint32_t i = 0; i < e->n_sequences; i++) {
        struct seq *q = &e->sequence[i];
        if (q->state == SEQ_KEPT && (!least || q->used < least->used))
            least = q;
    }
    if (least)
        give_up(e, least, NULL);
    return least;
}

bool seqs_give_up(struct inst_engine *e)
{
    bool any = false;
    while (give_up_one(e))
        any = true;
    return any;
}

static uint32_t count(const struct inst_engine *e, uint64_t *room)
{
    uint32_t n = 0;
    *room = 0;
    for (uint32_t i = 0; i < e->n_sequences; i++) {
        n += e->sequence[i].state != SEQ_FREE;
        *room += e->sequence[i].room;
    }
    return n;
}

// Tokens of all sequences stay within those that the plan has, `more` included, as far as some are
// kept that nobody has. Methods that hold more than maps for a sequence have as many as the plan
// has sessions.
static void make_room(struct inst_engine *e, uint64_t more)
{
    uint64_t room, most = e->plan.tokens;
    uint32_t n = count(e, &room);
    uint32_t places = e->attend.method == METHOD_DENSE ? e->n_sequences : e->max_sessions;
    while ((room + more > most || n > places) && give_up_one(e))
        n = count(e, &room);
}

int seq_new(struct inst_engine *e, struct seq **out, struct inst_msg *msg)
{
    struct seq *q = NULL;
    struct inst_msg why = {0};
    int err = 0;
    for (int pass = 0; pass < 2 && !q; pass++) {
        for (uint32_t i = e->n_sequences; i-- > 0;) {
            struct seq *at = &e->sequence[i];
            if (at->state == SEQ_LEFT && !pass)
                err = give_up(e, at, err ? NULL : &why);
            if (at->state == SEQ_FREE)
                q = at; // the first one
        }
        if (!q && !give_up_one(e))
            break;
    }
    if (!q && err)
        return inst_fail(msg, err, "the drive does not give up a closed session: %s", why.text);
    if (!q)
        return inst_fail(msg, INST_ENORESOURCE, "all sequences of this engine are in use");
    *q = (struct seq){
        .state = SEQ_OWNED, .slot = (uint32_t)(q - e->sequence), .epoch = ++e->next_epoch};
    make_room(e, 0);
    *out = q;
    return 0;
}

// A list that holds less now.
static void shrink(struct inst_engine *e, struct seq *q, uint64_t room)
{
    if (room >= q->room)
        return;
    int32_t *tokens =
        budget_resize(&e->budget, q->tokens, room * sizeof *tokens, "a sequence's tokens", NULL);
    if (!tokens)
        return;
    q->tokens = tokens;
    q->room = room;
}

void seq_release(struct inst_engine *e, struct seq *q)
{
    // A group that is not full would hold a buffer of the drive.
    uint64_t whole = q->exact / e->plan.group * e->plan.group;
    if (!whole || q->suspect || (whole < q->length && reclaim(e, q, whole, NULL))) {
        give_up(e, q, NULL);
        return;
    }
    q->length = q->exact = whole;
    shrink(e, q, whole);
    q->state = SEQ_KEPT;
    q->used = ++e->clock;
    make_room(e, 0);
}

int seq_cut(struct inst_engine *e, struct seq *q, uint64_t length, struct inst_msg *msg)
{
    int err = reclaim(e, q, length, msg);
    if (err)
        return err;
    q->length = length;
    q->exact = min_u64(q->exact, length);
    if (q->room / 2 > length)
        shrink(e, q, max_u64(length, ROOM_LEAST));
    if (!length) {
        q->epoch = ++e->next_epoch;
        q->forked = q->suspect = false;
    }
    return 0;
}

int seq_reserve(struct inst_engine *e, struct seq *q, uint64_t tokens, struct inst_msg *msg)
{
    if (tokens <= q->room)
        return 0;
    make_room(e, tokens - q->room);
    uint64_t used, most = e->plan.tokens;
    count(e, &used);
    used -= q->room;
    if (used > most || tokens > most - used)
        return inst_fail(msg, INST_ENORESOURCE,
                         "the tokens of all sessions are more than there is memory for (%llu): "
                         "fewer sessions or more --memory",
                         (unsigned long long)most);
    // Room to grow, but no more than a fair share of what is free.
    uint64_t room = max_u64(max_u64(tokens, q->room + q->room / 2), ROOM_LEAST);
    room = min_u64(min_u64(room, tokens + (most - used - tokens) / e->max_sessions), e->context);
    int32_t *more =
        budget_resize(&e->budget, q->tokens, room * sizeof *more, "a session's tokens", msg);
    if (!more)
        return INST_ENOMEM;
    q->tokens = more;
    q->room = room;
    return 0;
}

uint64_t seq_common(const int32_t *a, const int32_t *b, uint64_t n)
{
    uint64_t i = 0;
    while (i < n && a[i] == b[i])
        i++;
    return i;
}

struct seq *seq_find(struct inst_engine *e, const struct seq *except, const int32_t *tokens,
                     uint64_t n, uint64_t least, uint64_t *shared)
{
    struct seq *best = NULL;
    *shared = 0;
    for (uint32_t i = 0; n >= least && i < e->n_sequences; i++) {
        struct seq *q = &e->sequence[i];
        uint64_t most = min_u64(n, q->exact);
        if (q == except || q->suspect || most < least || most <= *shared)
            continue;
        uint64_t common = seq_common(q->tokens, tokens, most);
        if (common >= least && common > *shared) {
            best = q;
            *shared = common;
        }
    }
    return best;
}

int seq_fork(struct inst_engine *e, struct seq *child, struct seq *parent, uint64_t pos,
             struct inst_msg *msg)
{
    parent->used = ++e->clock;
    int err = seq_reserve(e, child, pos, msg);
    // Room for the child may have been the parent's.
    if (!err && parent->length < pos)
        err = inst_fail(msg, INST_ENORESOURCE, "no room to share tokens");
    if (err)
        return err;
    struct table_item item = {.seq = child->slot,
                              .epoch = child->epoch,
                              .pos = pos,
                              .parent = parent->slot,
                              .parent_epoch = parent->epoch};
    err = call_item(e, OP_FORK, &item, msg);
    if (err)
        return err;
    memcpy(child->tokens, parent->tokens, pos * sizeof *child->tokens);
    child->length = pos;
    child->exact = min_u64(pos, parent->exact);
    child->forked = true;
    child->parent = parent->slot;
    child->parent_epoch = parent->epoch;
    return 0;
}

void seq_suspect(struct inst_engine *e, struct seq *q)
{
    q->suspect = true;
    while (q->forked) {
        struct seq *parent = &e->sequence[q->parent];
        if (parent->epoch != q->parent_epoch || parent->suspect)
            break;
        q = parent;
        q->suspect = true;
    }
    seqs_give_up(e);
}

void seqs_restart(struct inst_engine *e)
{
    for (uint32_t i = 0; i < e->n_sequences; i++) {
        struct seq *q = &e->sequence[i];
        if (q->state != SEQ_OWNED) {
            forget_tokens(e, q);
            q->state = SEQ_FREE;
            continue;
        }
        q->length = q->exact = 0;
        q->epoch = ++e->next_epoch;
        q->forked = q->suspect = false;
    }
}
