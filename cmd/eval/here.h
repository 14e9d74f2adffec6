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
    X(oracle16, "the same of pieces of 16 tokens")                                                 \
    X(oracle32, "the same of pieces of 32 tokens")                                                 \
    X(sparq, "tokens ranked by a few channels of K, any byte read alone")                          \
    X(quest, "pages ranked by the least and the largest of each channel of K")                     \
    X(h2o, "half the tokens that were attended to most so far, half the newest; others are lost")  \
    X(streaming, "4 sinks and the newest tokens")                                                  \
    X(window, "the newest tokens")

enum eval_here_method {
#define EVAL_HERE_ID(name, text) EVAL_HERE_##name,
    EVAL_HERE_MAP(EVAL_HERE_ID)
#undef EVAL_HERE_ID
        EVAL_HERE_METHODS
};

struct eval_here_shape {
    uint32_t layers, heads, kv_heads, head_dim;
    uint64_t context; // tokens, of session 0
    uint64_t longest; // tokens behind it, of any other session
    uint32_t lines;   // other sessions, 1 to this
    bool sums;        // keep what h2o needs of a context
};

struct eval_here;

// Session 0 is shown the context as a prompt; the others go on behind it, token by token, each as
// often as it likes: a row behind the context's end begins anew.
int eval_here_open(struct eval_here **out, const struct eval_here_shape *shape,
                   struct inst_msg *msg);
void eval_here_close(struct eval_here *h);
const struct guest *eval_here_guest(struct eval_here *h);

// From now on with this method at 1/divisor of dense's bytes (1: all tokens). The context is there.
int eval_here_set(struct eval_here *h, enum eval_here_method method, uint32_t divisor,
                  struct inst_msg *msg);
// Since it was set: bytes by the method's own account, and bytes of the whole pages of 4 KiB that
// hold them; and what is kept in DRAM to choose by.
double eval_here_bytes(const struct eval_here *h);
double eval_here_page_bytes(const struct eval_here *h);
double eval_here_index(const struct eval_here *h);

#endif
