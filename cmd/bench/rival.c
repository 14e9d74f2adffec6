// SPDX-License-Identifier: Apache-2.0
// What the other program prints goes to files without a name, so neither pipe can block the other.
#include "cmd/bench/rival.h"
#include "cmd/options.h"

#include <errno.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

enum { OUTPUT_MAX = 1 << 20 };

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

static int wait_for(const char *path, pid_t pid, FILE *err)
{
    int status;
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return fail(EXIT_FAILED, "%s: %s", path, strerror(errno));
    if (WIFEXITED(status) && !WEXITSTATUS(status))
        return 0;
    char *text = read_back(err);
    const char *line = text ? last_line(text) : "";
    int code;
    if (WIFSIGNALED(status))
        code = fail(EXIT_FAILED, "%s was ended by signal %d (%s)", path, WTERMSIG(status),
                    strsignal(WTERMSIG(status)));
    else
        code = fail(EXIT_FAILED, "%s failed with status %d%s%.400s", path, WEXITSTATUS(status),
                    *line ? ": " : "", line);
    free(text);
    return code;
}

// Runs it with its output in `out`.
static int run(const char *path, char **argv, FILE *out)
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
    int code = posix_spawnp(&pid, path, &files, &attributes, argv, environ);
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&attributes);
    code = code ? fail(EXIT_FAILED, "%s: %s", path, strerror(code)) : wait_for(path, pid, err);
    fclose(err);
    return code;
}

int rival_run(const char **argv, char **text)
{
    FILE *out = tmpfile();
    *text = NULL;
    if (!out)
        return fail(EXIT_FAILED, "temporary file: %s", strerror(errno));
    int code = run(argv[0], (char **)argv, out);
    if (!code && !(*text = read_back(out)))
        code = fail(EXIT_FAILED, "%s: out of memory", argv[0]);
    fclose(out);
    return code;
}
