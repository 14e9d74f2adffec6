// SPDX-License-Identifier: Apache-2.0
// Sequences of the drive, apart from sessions. A session has one to which its tokens go; more are
// kept although no session has them any more, and whoever needs their tokens takes them over or
// forks them. Their number and tokens are bounded by what the plan has for sessions, and they are
// given up, the least recently used first, when anybody needs the room.
#ifndef INST_HOST_ENGINE_SEQUENCE_H
#define INST_HOST_ENGINE_SEQUENCE_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct inst_engine;
struct inst_session;

enum {
    SEQUENCES_MORE = 3, // than two for every session
    SHARE_LEAST = 16,   // tokens that must be won by taking another sequence's
};

enum seq_state {
    SEQ_FREE,
    SEQ_OWNED, // by a session
    SEQ_KEPT,
    SEQ_LEFT, // the drive did not give it up; it is asked again when its place is needed
};

struct seq {
    enum seq_state state;
    uint32_t slot;       // its number on the drive, and its place among the engine's
    uint32_t epoch;      // a new one whenever the sequence ended
    uint64_t length;     // tokens whose KV is on the drive, in every layer
    uint64_t exact;      // the first of them that no method but dense has had a part in: others may
                         // have these, as they would be computed again
    int32_t *tokens;     // [room], `length` of them valid
    uint64_t room, used; // when it was last of use
    uint32_t parent, parent_epoch;
    bool forked, suspect; // a command about it failed: not for others
};

// A free place, its sequence without tokens. INST_ENORESOURCE, or what the drive says, when there
// is none.
int seq_new(struct inst_engine *e, struct seq **out, struct inst_msg *msg);
// Its owner needs it no more: it is kept as far as whole token groups go, or given up.
void seq_release(struct inst_engine *e, struct seq *q);
// Forgets everything from token `length` on, on the drive too. After a failure nobody knows what
// the drive holds.
int seq_cut(struct inst_engine *e, struct seq *q, uint64_t length, struct inst_msg *msg);
// Room for so many tokens.
int seq_reserve(struct inst_engine *e, struct seq *q, uint64_t tokens, struct inst_msg *msg);
// The sequence that has most of the tokens, or NULL when none has `least`; *shared = how many.
struct seq *seq_find(struct inst_engine *e, const struct seq *except, const int32_t *tokens,
                     uint64_t n, uint64_t least, uint64_t *shared);
// An empty sequence gets the first `pos` tokens of another one.
int seq_fork(struct inst_engine *e, struct seq *child, struct seq *parent, uint64_t pos,
             struct inst_msg *msg);
// How many tokens the two begin with.
uint64_t seq_common(const int32_t *a, const int32_t *b, uint64_t n);
// What it holds, or whom it was forked from holds, cannot be trusted.
void seq_suspect(struct inst_engine *e, struct seq *q);
// Gives up all that are kept; false: there were none.
bool seqs_give_up(struct inst_engine *e);
// The drives have forgotten all sequences: those of sessions are empty (their tokens stay to be
// computed again), others are gone.
void seqs_restart(struct inst_engine *e);
uint32_t seqs_most(uint32_t sessions); // places

#endif
