// SPDX-License-Identifier: Apache-2.0
// Prints a made-up document and its questions as tools/recall/tasks.py does: eval_text TASK TOKENS
// SEED QUESTIONS.
#include "cmd/eval/text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv)
{
    static const char *const names[] = {
#define NAME(name, text) #name,
        EVAL_TASK_MAP(NAME)
#undef NAME
    };
    struct eval_document d;
    size_t task = 0;
    if (argc != 5)
        return 2;
    while (task < EVAL_TASKS && strcmp(names[task], argv[1]))
        task++;
    if (task == EVAL_TASKS ||
        !eval_document_make(&d, (enum eval_task)task, strtoull(argv[2], NULL, 10),
                            (uint32_t)strtoul(argv[3], NULL, 10), strtoul(argv[4], NULL, 10)))
        return 2;
    printf("%zu\n%s", d.tokens, d.text);
    for (size_t i = 0; i < d.n_questions; i++)
        for (size_t p = 0; p < d.questions[i].n_parts; p++)
            printf("%s|%s", d.questions[i].part[p].prompt, d.questions[i].part[p].answer);
    putchar('\n');
    eval_document_free(&d);
    return 0;
}
