// SPDX-License-Identifier: Apache-2.0
// What the files of `instinfer eval` share: what is asked, who answers (a method and its budget;
// run.c), and what the answers were.
#ifndef INST_CMD_EVAL_H
#define INST_CMD_EVAL_H

#include "cmd/eval/here.h"
#include "instinfer.h"

#include <stdbool.h>

// A context and what is asked behind it, in tokens.
struct eval_ask {
    int32_t *tokens; // the question and its answer
    bool *scored;    // whether a token is part of the answer
    size_t n;        // the first one is never scored
    uint64_t first;  // where its predictions lie among those of the context
};
struct eval_context {
    int32_t *tokens;
    size_t n;
    struct eval_ask *asks;
    size_t n_asks;
    uint64_t predictions; // of all asks
    uint64_t longest;     // ask, in tokens
    bool by_token;        // a question's score is the share of its tokens, not all or nothing
};
void eval_context_free(struct eval_context *c);

// X(name, whether it has no budget, whether it takes a mass, text): those of the drive
#define EVAL_DRIVE_MAP(X)                                                                          \
    X(dense, true, false, "all tokens")                                                            \
    X(pages, false, true, "the drive's, with the budget as its ratio")                             \
    X(sparf, false, false, "the drive's, r and k by the budget; reads more, see docs/sparf.md")

struct eval_method {
    const char *name, *text;
    bool whole;  // has no budget
    bool adapts; // takes a mass in place of a budget
    bool here;   // not the drive's: answered by here.h, as `id`
    enum eval_here_method id;
};
const struct eval_method *eval_method_find(const char *name); // NULL: none of that name
void eval_method_names(char *out, size_t size);
enum { EVAL_METHODS_MOST = 16 };
size_t eval_methods_all(const struct eval_method *out[EVAL_METHODS_MOST]); // how many; dense first

// A method and its share of dense's bytes.
struct eval_cell {
    const struct eval_method *method;
    uint32_t divisor; // the budget is 1/divisor
    double mass;      // not 0: no budget, but this share of the softmax
    bool cached;      // with the row cache of the options, else without
    const char *type; // how the drive holds K and V; NULL: as they are, in fp16
};

// Of one question.
struct eval_answer {
    double score;   // 0 or 1; of a text, the share of tokens that were the likeliest
    double nll, kl; // nats for each token of the answer, mean
};

// What a cell's questions gave, in the order of the questions.
struct eval_result {
    struct eval_answer *answers;
    size_t n, room;
    uint64_t tokens; // decoded
    // Bytes: read for them, in whole pages; the same by the method's own account, which for those
    // of the drive is no other; of all KV that was behind them
    double read, counted, all;
    double index; // bytes of DRAM, the most
};

// Appends what another context gave. False: out of memory.
bool eval_result_add(struct eval_result *to, const struct eval_result *more);

struct eval_runner {
    struct inst_options options;               // of every engine, less what belongs to a cell
    const struct inst_model_info *info;        // of its model
    void (*answered)(void *user, size_t asks); // so many of one cell
    void *user;
    struct inst_msg *msg;
};

// Answers all questions of a context with each cell. `results` has one for each cell; the first
// cell is dense, whose predictions are what KL is to. 0 or a status.
int eval_run(struct eval_runner *r, const struct eval_context *context,
             const struct eval_cell *cells, size_t n_cells, struct eval_result *results);

// Mean and its standard error.
struct eval_mean {
    double mean, error;
};
enum eval_figure { EVAL_SCORE, EVAL_KL, EVAL_NLL, EVAL_GAIN };
// EVAL_GAIN: score less that of `other`, question by question.
struct eval_mean eval_mean_of(const struct eval_result *r, enum eval_figure figure,
                              const struct eval_result *other);

#endif
