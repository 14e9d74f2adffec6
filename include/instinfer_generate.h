// SPDX-License-Identifier: Apache-2.0
// Generations and the scheduler that runs many of them over the few sessions of an engine: what a
// program, a batch and a server share.
//
//     inst_generation_open(&g, engine, tokens, n, &options, &msg);
//     inst_scheduler_add(scheduler, g);
//     while (!inst_scheduler_round(scheduler, NULL, NULL, &msg) && !inst_generation_finish(g))
//         text = inst_generation_text(g, &bytes);
//
// What a generation says does not depend on what else runs: each has a sampler of its own, and row
// invariance makes the logits equal to the last bit.
#ifndef INSTINFER_GENERATE_H
#define INSTINFER_GENERATE_H

#include "instinfer.h"

#ifdef __cplusplus
extern "C" {
#endif

// A conversation of before, whose next answer is to come: a system message first or none, then user
// and assistant in turns, the last one the user's. *tokens becomes the caller's (malloc). What the
// messages say cannot become structure.
enum inst_role { INST_ROLE_SYSTEM, INST_ROLE_USER, INST_ROLE_ASSISTANT };
struct inst_chat_message {
    enum inst_role role;
    const char *text;
    size_t bytes; // a system text ends at a NUL, too
};
INST_API int inst_chat_messages(inst_engine *engine, const struct inst_chat_message *messages,
                                size_t n, int32_t **tokens, size_t *n_tokens, struct inst_msg *msg);

typedef struct inst_generation inst_generation;
typedef struct inst_scheduler inst_scheduler;

// Zero-initialise, set size and what differs. The strings are copied.
struct inst_generation_options {
    size_t size;
    struct inst_sampling sampling;
    inst_sampler *sampler;    // instead: the caller's, which goes on and outlives the generation
    uint64_t max_tokens;      // to generate at most; UINT64_MAX: until something else ends it
    const char *const *stops; // it ends before any of these texts
    const size_t *stop_bytes; // NULL: they end with NUL
    size_t n_stops;
    bool ignore_end;       // goes on after end tokens
    bool whole_kv;         // the last token is computed too, for a session that will go on with it
    bool logprobs;         // keeps those of the tokens drawn
    uint32_t top_logprobs; // and of so many of the likeliest, 0 to INST_TOP_LOGPROBS_MAX
};
enum { INST_TOP_LOGPROBS_MAX = 20 };

// tokens: the prompt, 1 or more, at most the context.
INST_API int inst_generation_open(inst_generation **out, inst_engine *engine, const int32_t *tokens,
                                  size_t n_tokens, const struct inst_generation_options *options,
                                  struct inst_msg *msg);
// Leaves its scheduler, too. Before the engine is closed; NULL is fine.
INST_API void inst_generation_close(inst_generation *generation);

// May be called from any thread and from signal handlers. The generation ends in the next round
// without another token.
INST_API void inst_generation_cancel(inst_generation *generation);

enum inst_finish {
    INST_FINISH_NOT, // it waits or runs
    INST_FINISH_END, // an end token
    INST_FINISH_STOP,
    INST_FINISH_LENGTH,  // max_tokens
    INST_FINISH_CONTEXT, // it is full
    INST_FINISH_CANCELLED,
    INST_FINISH_ERROR,
};
INST_API enum inst_finish inst_generation_finish(const inst_generation *generation);
// The code of INST_FINISH_ERROR, with the message.
INST_API int inst_generation_error(const inst_generation *generation, struct inst_msg *msg);

// What has become certain of the text since the last call: whole characters, and nothing that may
// still be a stop text. Valid until the next round; not NUL-terminated.
INST_API const char *inst_generation_text(inst_generation *generation, size_t *bytes);
// Prompt and what was drawn, but for an end token. Valid until the next round.
INST_API const int32_t *inst_generation_tokens(const inst_generation *generation, size_t *n);

struct inst_usage {
    uint64_t prompt_tokens, completion_tokens; // an end token is not counted
    uint64_t reused_tokens;                    // of the prompt, whose KV was there already
};
INST_API void inst_generation_usage_sized(const inst_generation *generation,
                                          struct inst_usage *usage, size_t size);
static inline void inst_generation_usage(const inst_generation *generation,
                                         struct inst_usage *usage)
{
    inst_generation_usage_sized(generation, usage, sizeof *usage);
}

// Natural logarithm of the model's probability, before penalties, temperature and cuts.
struct inst_logprob {
    int32_t token;
    float logprob;
};
// Of the index-th generated token: the one drawn, then *n - 1 of the likeliest, best first. NULL
// beyond the last one or when they were not asked for.
INST_API const struct inst_logprob *inst_generation_logprobs(const inst_generation *generation,
                                                             size_t index, size_t *n);

// Runs up to `sessions` generations at a time, 0: as many as the engine has sessions. It opens
// sessions as it needs them and closes them at its end.
struct inst_scheduler_options {
    size_t size;
    uint32_t sessions;
    // Tokens of prompts in a round in which others decode; 0: mixed_chunk (inst_model_info), so
    // that these go on; up to `chunk`, where only the whole counts.
    uint32_t chunk;
    // A generation's text is the one it has in a fresh session. With dense attention it always is;
    // sparf computes a prompt and an answer in different ways, so sessions go on with answers of
    // before, as a conversation wants it, only when this is false.
    bool independent;
};
INST_API int inst_scheduler_open(inst_scheduler **out, inst_engine *engine,
                                 const struct inst_scheduler_options *options,
                                 struct inst_msg *msg);
// Generations that have not ended leave it as they are. Before the engine is closed; NULL is fine.
INST_API void inst_scheduler_close(inst_scheduler *scheduler);

// It waits until a session is free, in the order of this call, and takes the free session that
// shares most of its prompt.
INST_API int inst_scheduler_add(inst_scheduler *scheduler, inst_generation *generation,
                                struct inst_msg *msg);

// One step of the model (inst_step): a token more for each that is past its prompt, and pieces of
// prompts beside them. Those that end leave, those that wait join. Where memory or the drive has no
// room for all, fewer run and the rest waits; only one that fails alone has failed. `progress` is
// called while the step goes on and, with nothing to do, before tokens are drawn; when it returns
// false the round ends with INST_ECANCELLED, without a trace, and may be called again.
INST_API int inst_scheduler_round(inst_scheduler *scheduler, inst_progress_fn *progress, void *user,
                                  struct inst_msg *msg);
INST_API size_t inst_scheduler_running(const inst_scheduler *scheduler);
INST_API size_t inst_scheduler_waiting(const inst_scheduler *scheduler);

#ifdef __cplusplus
}
#endif
#endif
