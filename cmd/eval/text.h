// SPDX-License-Identifier: Apache-2.0
// Made-up documents and questions about them, for `instinfer eval`. The definition is that of
// tools/recall (corpus.py, tasks.py), which trains models on such text: the same task, length and
// seed give the same bytes here and there, and a test compares them.
#ifndef INST_CMD_EVAL_TEXT_H
#define INST_CMD_EVAL_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// X(name, what is asked)
#define EVAL_TASK_MAP(X)                                                                           \
    X(recall, "the number of one fact of a ledger")                                                \
    X(keys, "four facts, one after another; right when all are")                                   \
    X(hop, "the number of a thing that another thing lies with")                                   \
    X(vote, "what most of many sentences say")                                                     \
    X(copy, "how a passage of words goes on")

enum eval_task {
#define EVAL_TASK_ID(name, text) EVAL_##name,
    EVAL_TASK_MAP(EVAL_TASK_ID)
#undef EVAL_TASK_ID
        EVAL_TASKS
};

enum { EVAL_KEYS = 4 }; // asked in one question of task keys

struct eval_part {
    char *prompt, *answer;
};
struct eval_question {
    struct eval_part part[EVAL_KEYS]; // one after another
    size_t n_parts;
};
struct eval_document {
    char *text;
    size_t bytes, tokens; // tokens of the recall vocabulary, BOS not counted
    struct eval_question *questions;
    size_t n_questions; // as many as were asked for, fewer where there is not as much to ask
};

// A document of at least so many tokens. False: out of memory.
bool eval_document_make(struct eval_document *out, enum eval_task task, uint64_t least_tokens,
                        uint32_t seed, size_t questions);
void eval_document_free(struct eval_document *d);

#endif
