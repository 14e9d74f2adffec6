// SPDX-License-Identifier: Apache-2.0
// A line of the output in OpenAI's batch output format. Written directly: a generated text may hold
// a NUL, which cJSON's strings cannot. Nothing in it depends on when or beside what it was
// computed: ids are made of the line, `created` is 0.
#ifndef INST_CMD_BATCH_ANSWER_H
#define INST_CMD_BATCH_ANSWER_H

#include "cmd/batch/request.h"

struct batch_answer {
    char *text;
    size_t n, room;
    bool no_memory; // what was written is not whole
};
void batch_answer_free(struct batch_answer *answer);

// print: of the line. The generations have ended, nothing of their texts was taken; those of each
// prompt follow each other.
void batch_answer_write(struct batch_answer *answer, inst_engine *engine, uint64_t print,
                        const struct batch_request *request, inst_generation *const *generations,
                        size_t n_choices);
void batch_answer_error(struct batch_answer *answer, uint64_t print, uint32_t line,
                        const char *custom_id, const struct batch_error *error);

#endif
