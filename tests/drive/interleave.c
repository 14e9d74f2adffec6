// SPDX-License-Identifier: Apache-2.0
// Interleavings of commands and flash operations by seed. Without arguments: the same 150 every
// day, or 1,000 (tests/more.h). With arguments, to look for more:
//   --seeds N        so many runs
//   --seconds N      as many as fit
//   --seed N         the first seed (also: environment INTERLEAVE_SEED)
//   --commands N     of a run, instead of as many as it draws: to make a failing run short
//   --all            goes on after a run that fails
//   --trace          prints every command and completion
#include "base/clock.h"
#include "interleave_harness.h"
#include "tests/more.h"

#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { RUN_SECONDS = 240 };

static uint64_t seed_at_work;

// A step that never returns.
static void too_long(int signal)
{
    (void)signal;
    fprintf(stderr, "seed %" PRIu64 ": still in one step after %d s\n", seed_at_work, RUN_SECONDS);
    abort();
}

static void print_counts(const struct interleave_counts *c, uint64_t first, double seconds)
{
    printf("seeds %" PRIu64 " to %" PRIu64 ": %" PRIu64 " commands, %" PRIu64
           " interleavings, %" PRIu64 " flash operations, %" PRIu64 " faults of flash, %.1f s, "
           "%.0f commands/s\n",
           first, first + c->runs - 1, c->commands, c->interleavings, c->operations,
           c->flash_faults, seconds, (double)c->commands / seconds);
    printf("checked: %" PRIu64 " READs, %" PRIu64 " items of ATTEND, %" PRIu64
           " of them for equal bits, %" PRIu64 " commands alone; %" PRIu64
           " KiB of an index read\n",
           c->reads_checked, c->attends_checked, c->shadows_checked, c->quiet_checks,
           c->index_bytes / 1024);
    for (int i = 0; i < FAULTS; i++) {
        if (c->forgiven[i])
            printf("known fault: %s, %" PRIu64 " times\n", known_faults[i].name, c->forgiven[i]);
    }
}

int main(int argc, char **argv)
{
    struct interleave_options options = {0};
    struct interleave_counts counts = {0};
    uint64_t first = 1, seeds = 0;
    bool all = false, failed = false;
    double seconds = 0, start = clock_seconds();
    const char *seed = getenv("INTERLEAVE_SEED");
    if (seed)
        first = strtoull(seed, NULL, 0);
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "0";
        if (!strcmp(argv[i], "--trace")) {
            options.trace = stdout;
            continue;
        }
        if (!strcmp(argv[i], "--all")) {
            all = true;
            continue;
        }
        if (!strcmp(argv[i], "--seeds"))
            seeds = strtoull(value, NULL, 0);
        else if (!strcmp(argv[i], "--seed"))
            first = strtoull(value, NULL, 0);
        else if (!strcmp(argv[i], "--seconds"))
            seconds = strtod(value, NULL);
        else if (!strcmp(argv[i], "--commands"))
            options.commands = (uint32_t)strtoul(value, NULL, 0);
        else {
            fprintf(stderr, "unknown argument %s\n", argv[i]);
            return 2;
        }
        i++;
    }
    signal(SIGALRM, too_long);
    if (!seeds && !(seconds > 0))
        seeds = more() ? 1000 : 150;
    for (uint64_t i = 0; seeds ? i < seeds : clock_seconds() - start < seconds; i++) {
        struct inst_msg msg = {0};
        options.seed = seed_at_work = first + i;
        alarm(RUN_SECONDS);
        if (interleave_run(&options, &counts, &msg)) {
            fflush(stdout);
            fprintf(stderr, "seed %" PRIu64 ": %s\n", options.seed, msg.text);
            failed = true;
            if (!all)
                return 1;
        }
    }
    print_counts(&counts, first, clock_seconds() - start);
    return failed;
}
