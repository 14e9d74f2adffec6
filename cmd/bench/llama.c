// SPDX-License-Identifier: Apache-2.0
// llama-bench's answer is believed only where it is about what was asked.
#include "cmd/bench/llama.h"
#include "cmd/bench/rival.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OWN_ARGS = 20 };

static double number(const cJSON *row, const char *name)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(row, name);
    return cJSON_IsNumber(item) ? item->valuedouble : 0;
}

// Seconds per token of the test with these lengths.
static int find(const struct llama_bench *b, const cJSON *rows, double prompt, double tokens,
                uint64_t depth, double *seconds)
{
    const cJSON *row;
    cJSON_ArrayForEach(row, rows)
    {
        double rate = number(row, "avg_ts");
        if (fabs(number(row, "n_prompt") - prompt) > 0 || fabs(number(row, "n_gen") - tokens) > 0 ||
            fabs(number(row, "n_depth") - (double)depth) > 0 || !(rate > 0) || !isfinite(rate))
            continue;
        *seconds = 1 / rate;
        return 0;
    }
    return fail(EXIT_FAILED, "%s gave no result for %s of %.0f tokens at depth %llu", b->path,
                prompt > 0 ? "prefill" : "decode", prompt > 0 ? prompt : tokens,
                (unsigned long long)depth);
}

static int parse(struct llama_bench *b, const char *text, struct llama_turn *turn)
{
    cJSON *rows = cJSON_ParseWithOpts(text, NULL, true);
    int code = 0;
    if (!cJSON_IsArray(rows))
        code = fail(EXIT_FAILED, "%s did not print what llama-bench prints with -o json", b->path);
    if (!code && turn->prompt)
        code = find(b, rows, turn->prompt, 0, turn->depth, &turn->prefill);
    if (!code && turn->tokens)
        code = find(b, rows, 0, turn->tokens, turn->depth, &turn->decode);
    const cJSON *first = cJSON_GetArrayItem(rows, 0);
    const cJSON *commit = cJSON_GetObjectItemCaseSensitive(first, "build_commit");
    snprintf(b->build, sizeof b->build, "%s",
             cJSON_IsString(commit) ? commit->valuestring : "of an unknown build");
    cJSON_Delete(rows);
    return code;
}

int llama_bench_turn(struct llama_bench *b, struct llama_turn *turn)
{
    char threads[16], prompt[16], tokens[16], depth[24];
    snprintf(threads, sizeof threads, "%u", turn->threads);
    snprintf(prompt, sizeof prompt, "%u", turn->prompt);
    snprintf(tokens, sizeof tokens, "%u", turn->tokens);
    snprintf(depth, sizeof depth, "%llu", (unsigned long long)turn->depth);
    const char *own[OWN_ARGS] = {b->path, "-m",   turn->model, "-t", threads, "-p",  prompt,
                                 "-n",    tokens, "-r",        "1",  "-o",    "json"};
    size_t n = 13;
    // Older ones know no depth.
    if (turn->depth) {
        own[n++] = "-d";
        own[n++] = depth;
    }
    const char **argv = calloc(n + b->extra->n + 1, sizeof *argv);
    if (!argv)
        return fail(EXIT_FAILED, "llama-bench: %s", strerror(errno));
    memcpy(argv, own, n * sizeof *argv);
    for (size_t i = 0; i < b->extra->n; i++)
        argv[n + i] = b->extra->items[i];
    char *text;
    int code = rival_run(argv, &text);
    if (!code)
        code = parse(b, text, turn);
    free(text);
    free(argv);
    return code;
}
