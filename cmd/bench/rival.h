// SPDX-License-Identifier: Apache-2.0
// Another program that is measured in turns with ours.
#ifndef INST_CMD_BENCH_RIVAL_H
#define INST_CMD_BENCH_RIVAL_H

// Runs argv[0] (looked for as the shell does; NULL behind the last argument) to its end without
// input. *text: what it printed on standard output, at most 1 MiB of it, the caller's. 0 or an exit
// code, with the error line printed: that of the other program where it said one.
int rival_run(const char **argv, char **text);

#endif
