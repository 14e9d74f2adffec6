// SPDX-License-Identifier: Apache-2.0
// The parts of instinfer sim.
#ifndef INST_CMD_SIM_H
#define INST_CMD_SIM_H

#include "sim/constants.h"

#include <stdbool.h>

// Writes every figure and table of the paper that has numbers to files in `folder`, which is made
// where it is missing, and prints the deviations. Without ranges it takes a tenth of the time. An
// exit code.
int sim_paper(const char *folder, const struct constants *constants, bool ranges);
// Writes figures of what goes beyond the paper to files there, and prints where it breaks even.
int sim_beyond(const char *folder, const struct constants *constants);

#endif
