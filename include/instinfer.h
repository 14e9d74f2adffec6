// SPDX-License-Identifier: Apache-2.0
// InstInfer: text generation with models whose KV cache does not fit in memory. The KV cache lives
// on a drive and decode attention is computed there.
//
// Two nouns: an engine (a model, its memory budget and its drive) and a session (one timeline of
// tokens, whose KV lives in the drive). One verb: inst_sync brings sessions to whole token
// prefixes and decides itself what is reused, extended or rebuilt.
//
// Every function returns 0 or a negative INST_E* code and never prints, exits or aborts; detail
// goes into *msg where one is given. Counters are in instinfer_stats.h, generations and the
// scheduler of many in instinfer_generate.h.
//
// Threads: an engine and all that was made of it (sessions, samplers, generations, schedulers) are
// used by one thread at a time; several engines by several threads at the same time. What is given
// to be called back is called on the thread that called. inst_engine_cancel and
// inst_generation_cancel may be called by any thread at any time until the engine or the generation
// is closed, and so may functions that name neither.
//
// Structs grow at their end. Those that a caller fills begin with `size`: that of the struct as the
// caller was compiled, 0 means as in version 0.1. What a shorter one lacks is 0; a longer one is
// taken as long as what this library does not know is 0 (else INST_ENOTSUP). For those that a
// caller receives the size is an argument, which inline functions give.
#ifndef INSTINFER_H
#define INSTINFER_H

#include "instinfer_status.h"
#include "instinfer_trace.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

INST_API const char *inst_version(void);

typedef struct inst_engine inst_engine;
typedef struct inst_session inst_session;

// Called while long work goes on. done and total count prompt tokens. Return false to cancel
// (the call then fails with INST_ECANCELLED and what was synced stays).
typedef bool inst_progress_fn(void *user, uint64_t done, uint64_t total);

#define INST_NO_ROW_CACHE UINT64_MAX

// Zero-initialise, set size and what differs.
struct inst_options {
    size_t size;
    const char *model;     // path of a GGUF file; required
    const char *const *kv; // where KV lives: directories, "ram:SIZE[@RATE]", "null:"; heads divided
    size_t n_kv;           // 0: a directory under $XDG_CACHE_HOME
    uint64_t kv_limit;     // bytes the store may grow to; 0: what the context needs
    uint64_t row_cache;    // bytes of `memory` in which the drive keeps rows that it has read or
                           // written; 0: all that nothing else needs; INST_NO_ROW_CACHE: none
    uint64_t request_cost; // bytes whose reading costs as much as a request to the disk: of single
                           // pages, gaps that cost less are read; 0: measured
    uint64_t memory;       // bytes for everything but weights and "ram:" drives;
                           // 0: a quarter of what is available to the process
    uint64_t context;      // tokens per session; 0: the model's trained length
    uint32_t max_sessions; // sessions alive at a time; 0: 1
    uint32_t threads;      // 0: all CPUs of the process, within its control group's quota
    uint32_t group;        // token group; 0: chosen by the drive
    uint32_t chunk;        // prefill chunk in tokens; 0: chosen from the budget
    // "dense" (NULL); "sparf": the best tokens by a channel index of K; "pages": the pieces that an
    // index in DRAM predicts most of the softmax for; "host": dense, but the drive only stores: KV
    // comes back for every token
    const char *attention;
    // sparf; each 0: its default
    uint32_t sparf_channels;   // r: channels ranked by; ceil(head_dim / 8)
    uint32_t sparf_tokens;     // k as a number of tokens; by the divisor
    uint32_t sparf_divisor;    // k = ceil(tokens / divisor); 8
    uint32_t sparf_local;      // most recent tokens that are always among the k; 0
    uint32_t page_channels;    // channels that share a flash page; chosen by the drive
    uint32_t micro_batches;    // of a step of decode: 1 or 2; 0: whichever turns out to be faster
    double audit;              // share of decode steps, 0 to 1, that measure the captured mass
                               // exactly and are computed densely, too, to compare the logits
    uint32_t drive_timeout_ms; // that a command of a drive is waited for; 0: a minute
    const char *on_drive_loss; // of several, one gives back errors, or nothing for that time:
                               // "fail" (NULL) or "recompute"
    const char *kernels;       // a kernel set by name, for tests; NULL: the best
    const char *chat;          // chat template: "auto" (the file's), a name, or NULL: no chat
    int64_t chat_time;         // templates that state the date: of this second since 1970; 0: now
    inst_trace_fn *trace;      // NULL, or told what time goes to, with trace_user
    void *trace_user;
    // pages; each 0: its default
    double pages_ratio;   // part of the bytes of dense attention that is read; 1/8, with a mass: 1
    double pages_mass;    // read only until this share of the softmax is predicted to be captured
    uint32_t pages_piece; // tokens of a piece: 16, 32 or 64; the least that fills pages of the disk
    uint32_t pages_keys;  // keys that stand for a piece: fewer find less; one for each token
    uint32_t pages_heads; // neighbouring KV heads that choose the same tokens, and lie on one
                          // drive; as many as make a piece of 16 tokens 16 KiB of fp16
    uint32_t pages_newest; // most recent tokens that are always read; default: 16
    uint32_t pages_look;   // keys that a query looks at, the likeliest, of sequences that have many
                           // times as many; all
    uint32_t pages_bits;   // that are kept of each channel of these keys: 1 finds less; 2, with
                           // pages_look or pages_flash 1
    bool pages_rest;       // what is not read is estimated instead of counting for nothing
    bool pages_flash; // these keys lie on the disk, and reading them counts in pages_ratio; not
                      // with pages_rest and pages_look
    inst_flash_trace_fn *flash_trace; // NULL, or told of every flash operation
    void *flash_trace_user;
    inst_selection_trace_fn *selection_trace; // NULL, or told of all that sparf and pages choose
    void *selection_trace_user;
    // How the drive stores K and V: "f16" (NULL), or rounded to blocks of 8 or 4 bits: "q8", "q4".
    // Not with sparf.
    const char *kv_type;
    bool read_weights; // into memory of their own instead of mapping the file
};

// What can be said of options alone, without looking at model or machine. inst_engine_open does.
INST_API int inst_options_check(const struct inst_options *options, struct inst_msg *msg);

// The path of each place is opened, memory is planned, and a budget that is too small is refused
// here with a message that says what is needed.
INST_API int inst_engine_open(inst_engine **out, const struct inst_options *options,
                              struct inst_msg *msg);
INST_API void inst_engine_close(inst_engine *engine); // closes its sessions; NULL is fine
// From any thread, also in signal handlers. While true, whatever computes or waits for a drive ends
// soon with INST_ECANCELLED, as a progress function that returns false would end it.
INST_API void inst_engine_cancel(inst_engine *engine, bool cancel);

struct inst_model_info {
    const char *architecture, *name; // the engine's
    uint32_t layers, width, heads, kv_heads, head_dim, ffn, vocab;
    uint64_t trained_context, context;
    uint64_t weight_bytes, kv_bytes_per_token;
    uint64_t memory, kv_limit;
    uint32_t chunk, group, threads, kv_drives;
    uint32_t step_sessions, mixed_chunk;      // see inst_step
    const char *kv_place, *kv_path, *kernels; // places with commas
    const char *chat;                         // name of the chat template, NULL: none
    int32_t begin_token; // that goes first where text is tokenized; -1: none does
    // Worth knowing of these options on this machine, a line each: KV in memory, a disk without
    // room for the whole context, a context beyond the trained one, a budget beyond the machine.
    const char *const *notes;
    size_t n_notes;
    const char *kv_type; // how K and V are stored
};
INST_API void inst_engine_info_sized(const inst_engine *engine, struct inst_model_info *info,
                                     size_t size);
static inline void inst_engine_info(const inst_engine *engine, struct inst_model_info *info)
{
    inst_engine_info_sized(engine, info, sizeof *info);
}

INST_API int inst_session_open(inst_session **out, inst_engine *engine, struct inst_msg *msg);
// What it holds is kept for prompts that begin like it while nobody needs the room. NULL is fine.
INST_API void inst_session_close(inst_session *session);
INST_API void inst_engine_forget(inst_engine *engine); // gives up all that is kept so
// Another session with the same tokens and logits, whose KV the drive shares.
INST_API int inst_session_fork(inst_session **out, inst_session *parent, struct inst_msg *msg);

// Brings each session to exactly its token prefix: what it shares with the session's tokens, or
// with any other sequence of the engine if that is more, is kept, what is missing is computed
// (prefill of several tokens, decode of one, in steps that all share). On failure of one session
// its status says so and the others go on; the return value is the first failure. NaN, infinity and
// K or V beyond fp16 are a failure: INST_ERANGE.
struct inst_prefix {
    inst_session *session;
    const int32_t *tokens; // the whole prefix, length 1 or more
    size_t n_tokens;
    int status;           // out
    struct inst_msg *msg; // NULL, or filled in where status is not 0
};
INST_API int inst_sync(inst_engine *engine, struct inst_prefix *prefixes, size_t count,
                       inst_progress_fn *progress, void *user, struct inst_msg *msg);

// What a session gets in a step: tokens that go to its end.
struct inst_segment {
    inst_session *session; // each at most once in a step
    const int32_t *tokens;
    size_t n_tokens;      // several are a piece of a prompt, one is a decode row unless `prompt`
    bool prompt;          // attended exactly, whatever the method
    bool logits;          // wanted after the last of them: inst_logits
    int status;           // out
    struct inst_msg *msg; // NULL, or filled in where status is not 0
};
// One step of the model: all segments share each pass over the weights and keep the bits that they
// have alone. Pieces of prompts have `chunk` tokens (inst_model_info) together at most;
// `mixed_chunk` keeps the step short for those who decode. `step_sessions` segments at most. A
// segment that fails harms no other: its session is what it was before, without logits.
// INST_ENORESOURCE is back-pressure: again, later. The progress is that of the step's tokens.
INST_API int inst_step(inst_engine *engine, struct inst_segment *segments, size_t count,
                       inst_progress_fn *progress, void *user, struct inst_msg *msg);
// Brings the session, without computing anything, to the most of `tokens` that is held, all but the
// last one unless its logits are there. The others are for inst_step.
INST_API int inst_match(inst_session *session, const int32_t *tokens, size_t n_tokens, size_t *held,
                        struct inst_msg *msg);
INST_API uint64_t inst_session_length(const inst_session *session); // in tokens

// Logits (vocab floats) after the session's last token; the session's until its next sync. NULL
// before the first.
INST_API const float *inst_logits(const inst_session *session);

// Called by inst_sync for every position that it computes, in order, when set: logits of all
// positions of a prompt. Return false to cancel.
typedef bool inst_logits_fn(void *user, uint64_t position, const float *logits);
INST_API void inst_session_on_logits(inst_session *session, inst_logits_fn *fn, void *user);

// Sampling. Defaults as in llama.cpp: inst_sampling_default.
struct inst_sampling {
    float temperature; // <= 0: greedy
    int32_t top_k;     // <= 0: all
    float top_p, min_p;
    float repeat_penalty; // 1: off
    int32_t repeat_last;  // tokens looked back at
    uint32_t seed;
};
INST_API void inst_sampling_default(struct inst_sampling *sampling);
typedef struct inst_sampler inst_sampler;
INST_API int inst_sampler_open(inst_sampler **out, inst_engine *engine,
                               const struct inst_sampling *sampling, struct inst_msg *msg);
INST_API void inst_sampler_close(inst_sampler *sampler);
// The next token after `tokens` (the history for the penalty) from the session's logits.
INST_API int32_t inst_sample(inst_sampler *sampler, const inst_session *session,
                             const int32_t *tokens, size_t n_tokens);

// Text that the caller gathers, in memory that counts in the engine's budget: *text (NULL at first)
// gets room for `bytes`, what is there is kept. 0 gives it back, before the engine is closed.
INST_API int inst_text_resize(inst_engine *engine, char **text, size_t bytes, struct inst_msg *msg);
// The most bytes that so many tokens can stand for: of a longer text it is clear before it is
// tokenized that it does not fit. (White space that a special token swallows is not seen here.)
INST_API uint64_t inst_text_most(const inst_engine *engine, uint64_t tokens);

// Text to tokens. *tokens is allocated with malloc and becomes the caller's.
enum { INST_TOKENIZE_NO_BOS = 1, INST_TOKENIZE_NO_SPECIAL = 2 };
INST_API int inst_tokenize(inst_engine *engine, const char *text, size_t bytes, unsigned flags,
                           int32_t **tokens, size_t *n_tokens, struct inst_msg *msg);
// Bytes of one token (control tokens give none). Not NUL-terminated; the engine's.
INST_API const char *inst_token_text(inst_engine *engine, int32_t token, size_t *bytes);
INST_API bool inst_token_is_end(const inst_engine *engine, int32_t token);

// Chat. The tokens that go on with a conversation when its user says `text`, up to the start of the
// answer: in the first turn from the beginning, `system` (NULL: none, or the template's) included,
// then from the end of the answer before. What the user says cannot become structure: names of
// special tokens in it are plain text. *tokens becomes the caller's, as above.
INST_API int inst_chat_turn(inst_engine *engine, bool first, const char *system, const char *text,
                            size_t bytes, int32_t **tokens, size_t *n_tokens, struct inst_msg *msg);
// Once tokens[answer, n_tokens) is a whole answer: removes what the template does not keep of it (a
// model's thoughts) and returns how many tokens are left.
INST_API size_t inst_chat_settle(inst_engine *engine, int32_t *tokens, size_t n_tokens,
                                 size_t answer);

#ifdef __cplusplus
}
#endif
#endif
