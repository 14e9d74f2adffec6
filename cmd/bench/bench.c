// SPDX-License-Identifier: Apache-2.0
// instinfer bench: measurements, each a command of its own.
#include "cmd/bench/bench.h"
#include "cmd/commands.h"
#include "cmd/options.h"

#include <stdio.h>
#include <string.h>

static const struct {
    const char *name, *text;
    int (*run)(int argc, char **argv);
} benches[] = {
#define BENCH_ROW(name, text) {#name, text, bench_##name},
    BENCH_MAP(BENCH_ROW)
#undef BENCH_ROW
};

static void print_help(FILE *file)
{
    fputs("usage: instinfer bench WHAT [options]\n\n", file);
    for (size_t i = 0; i < sizeof benches / sizeof *benches; i++)
        fprintf(file, "  %-10s %s\n", benches[i].name, benches[i].text);
    fputs("\n  instinfer bench WHAT --help    options\n", file);
}

int command_bench(int argc, char **argv)
{
    if (argc < 2) {
        print_help(stderr);
        return EXIT_USAGE;
    }
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")) {
        print_help(stdout);
        return EXIT_OK;
    }
    for (size_t i = 0; i < sizeof benches / sizeof *benches; i++)
        if (!strcmp(argv[1], benches[i].name))
            return benches[i].run(argc - 1, argv + 1);
    return fail(EXIT_USAGE, "bench: '%s' cannot be measured (see instinfer bench --help)", argv[1]);
}
