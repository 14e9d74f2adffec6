// SPDX-License-Identifier: Apache-2.0
// What llama-bench prints goes to files without a name, so neither pipe can block the other. Its
// answer is believed only where it is about what was asked.
#include "cmd/bench_llama.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

enum { OUTPUT_MAX = 1 << 20, OWN_ARGS = 20 };

// The text that was written, at most OUTPUT_MAX bytes of it; the caller's, NULL without memory.
static char *read_back(FILE *file)
{
    char *text = malloc(OUTPUT_MAX + 1);
    if (!text)
        return NULL;
    rewind(file);
    size_t n = fread(text, 1, OUTPUT_MAX, file);
    text[n] = 0;
    return text;
}

// The last line that says something.
static const char *last_line(char *text)
{
    size_t n = strlen(text);
    while (n && (text[n - 1] == '\n' || text[n - 1] == '\r' || text[n - 1] == ' '))
        text[--n] = 0;
    char *end = strrchr(text, '\n');
    return end ? end + 1 : text;
}

static int wait_for(const struct llama_bench *b, pid_t pid, FILE *err)
{
    int status;
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return fail(EXIT_FAILED, "%s: %s", b->path, strerror(errno));
    if (WIFEXITED(status) && !WEXITSTATUS(status))
        return 0;
    char *text = read_back(err);
    const char *line = text ? last_line(text) : "";
    int code;
    if (WIFSIGNALED(status))
        code = fail(EXIT_FAILED, "%s was ended by signal %d (%s)", b->path, WTERMSIG(status),
                    strsignal(WTERMSIG(status)));
    else
        code = fail(EXIT_FAILED, "%s failed with status %d%s%.400s", b->path, WEXITSTATUS(status),
                    *line ? ": " : "", line);
    free(text);
    return code;
}

// Runs it with its output in `out`.
static int run(const struct llama_bench *b, char **argv, FILE *out)
{
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attributes;
    sigset_t reset;
    pid_t pid;
    FILE *err = tmpfile();
    if (!err)
        return fail(EXIT_FAILED, "temporary file: %s", strerror(errno));
    // This process ignores them; that one shall not.
    sigemptyset(&reset);
    sigaddset(&reset, SIGPIPE);
    sigaddset(&reset, SIGXFSZ);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setsigdefault(&attributes, &reset);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF);
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", 0, 0);
    posix_spawn_file_actions_adddup2(&files, fileno(out), STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&files, fileno(err), STDERR_FILENO);
    int code = posix_spawnp(&pid, b->path, &files, &attributes, argv, environ);
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&attributes);
    code = code ? fail(EXIT_FAILED, "%s: %s", b->path, strerror(code)) : wait_for(b, pid, err);
    fclose(err);
    return code;
}

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

static int parse(struct llama_bench *b, FILE *out, struct llama_turn *turn)
{
    char *text = read_back(out);
    cJSON *rows = text ? cJSON_ParseWithOpts(text, NULL, true) : NULL;
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
    free(text);
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
    FILE *out = tmpfile();
    int code = 0;
    if (!argv || !out) {
        code = fail(EXIT_FAILED, "llama-bench: %s", strerror(errno));
    } else {
        memcpy(argv, own, n * sizeof *argv);
        for (size_t i = 0; i < b->extra->n; i++)
            argv[n + i] = b->extra->items[i];
        code = run(b, (char **)argv, out);
        if (!code)
            code = parse(b, out, turn);
    }
    if (out)
        fclose(out);
    free(argv);
    return code;
}
