// SPDX-License-Identifier: Apache-2.0
// Inside of a generation, for the scheduler.
#ifndef INST_HOST_ENGINE_GENERATE_H
#define INST_HOST_ENGINE_GENERATE_H

#include "host/engine/engine.h"
#include "host/engine/reply.h"
#include "instinfer_generate.h"

struct inst_generation {
    struct inst_engine *engine;
    struct inst_generation_options options;
    inst_sampler *sampler; // NULL: not yet; its own unless options.sampler
    int32_t *tokens;       // [room]: prompt, then what was drawn
    size_t n_tokens, n_prompt;
    uint64_t room;
    struct reply reply;
    struct inst_logprob *logprobs; // [logprob_room] rows of 1 + top_logprobs
    size_t n_logprobs;
    uint64_t logprob_room;
    uint64_t reused;
    enum inst_finish finish, last; // last: as which it ends once its last token is computed
    int error;
    struct inst_msg why;
    _Atomic bool cancelled;
    // The scheduler's. A generation that lost its session goes the same way again up to `at`: the
    // prompt by prefill, what it has said by decode.
    struct inst_scheduler *scheduler;
    struct inst_generation *next; // of those that wait
    uint64_t order;               // in which it was added
    size_t at;                    // tokens to be in the session next
};

// Room for one more token in every list; asked before it is drawn. INST_ENOMEM.
int generation_reserve(struct inst_generation *g, struct inst_msg *msg);
// Draws the next token from the session's logits and sees what that ends.
void generation_draw(struct inst_generation *g, const struct inst_session *session);
void generation_end(struct inst_generation *g, enum inst_finish finish);
void generation_fail(struct inst_generation *g, int code, const char *text);

// scheduler.c: of a generation that is closed.
void scheduler_remove(struct inst_scheduler *s, struct inst_generation *g);

#endif
