// SPDX-License-Identifier: Apache-2.0
// Methods that belong in no drive, to compare with: as published, in plain arithmetic over all of
// K and V in memory, with the bytes that each would have to read. docs/eval.md has their rules.
#ifndef INST_CMD_EVAL_HERE_H
#define INST_CMD_EVAL_HERE_H

#include "host/engine/guest.h"
#include "instinfer.h"

// X(name, how it chooses)
#define EVAL_HERE_MAP(X)                                                                           \
    X(oracle, "the tokens with the most attention mass, known for nothing")                        \
    X(sparq, "tokens ranked by a few channels of K, any byte read alone")                          \
    X(quest, "pages ranked by the least and the largest of each channel of K")                     \
    X(h2o, "half the tokens that were attended to most so far, half the newest; others are lost")  \
    X(streaming, "4 sinks and the newest tokens")                                                  \
    X(window, "the newest tokens")

enum eval_here_method {
#define EVAL_HERE_ID(name, text) EVAL_HERE_##name,
    EVAL_HERE_MAP(EVAL_HERE_ID)
#undef EVAL_HERE_ID
};

struct eval_here_shape {
    uint32_t layers, heads, kv_heads, head_dim;
    uint64_t tokens; // of the longest sequence
    bool sums;       // keep what h2o needs of a context
};

struct eval_here;

// One sequence at a time: a row at a position makes it end there.
int eval_here_open(struct eval_here **out, const struct eval_here_shape *shape,
                   struct inst_msg *msg);
void eval_here_close(struct eval_here *h);
const struct guest *eval_here_guest(struct eval_here *h);

// From now on with this method at 1/divisor of dense's bytes (1: all tokens), behind a context of
// so many tokens, which was shown as a prompt.
void eval_here_set(struct eval_here *h, enum eval_here_method method, uint32_t divisor,
                   uint64_t context);
// Since it was set: bytes to read, and what is kept in DRAM to choose by.
double eval_here_bytes(const struct eval_here *h);
double eval_here_index(const struct eval_here *h);

#endif
