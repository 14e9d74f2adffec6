// SPDX-License-Identifier: Apache-2.0
#include "cmd/commands.h"
#include "cmd/options.h"
#include "cmd/process.h"
#include "instinfer.h"

#include <errno.h>
#include <malloc.h>
#include <stdio.h>
#include <string.h>

static const struct {
    const char *name, *text;
    int (*run)(int argc, char **argv);
} commands[] = {
#define COMMAND_ROW(name, text) {#name, text, command_##name},
    COMMAND_MAP(COMMAND_ROW)
#undef COMMAND_ROW
};

static void print_help(FILE *file)
{
    fputs("usage: instinfer COMMAND [options]\n\n", file);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        fprintf(file, "  %-10s %s\n", commands[i].name, commands[i].text);
    fputs("\n  instinfer COMMAND --help    options of a command\n"
          "  instinfer --version\n"
          "\nexit status: 0 success, 1 failure at run time, 2 wrong usage, 130 interrupted\n",
          file);
}

// Text that did not arrive is an error, whoever printed it.
static int finish(int code)
{
    errno = 0;
    bool lost = fflush(stdout) || ferror(stdout);
    if (lost && code == EXIT_OK)
        code = fail(EXIT_FAILED, "standard output: %s",
                    errno ? strerror(errno) : "it cannot be written");
    return code;
}

int main(int argc, char **argv)
{
    if (!process_begin())
        return EXIT_FAILED;
    // One heap for all threads, and large blocks go back to the system when freed: --memory counts
    // what the process really holds.
    mallopt(M_ARENA_MAX, 1);
    mallopt(M_MMAP_THRESHOLD, 64 * 1024);
    if (argc < 2) {
        print_help(stderr);
        return EXIT_USAGE;
    }
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
        print_help(stdout);
        return finish(EXIT_OK);
    }
    if (!strcmp(argv[1], "--version")) {
        printf("instinfer %s\n", inst_version());
        return finish(EXIT_OK);
    }
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (!strcmp(argv[1], commands[i].name))
            return finish(commands[i].run(argc - 1, argv + 1));
    return fail(EXIT_USAGE, "unknown command '%s' (see instinfer --help)", argv[1]);
}
