// SPDX-License-Identifier: Apache-2.0
// instinfer sim --wear: all writes of a workload through the real control and FTL, and what is left
// of the flash after them.
#ifndef INST_CMD_SIM_WEAR_H
#define INST_CMD_SIM_WEAR_H

#include "sim/drive_wear.h"
#include "sim/system.h"

// An exit code; a table, a row for each wanted system whose KV is in the drives.
int sim_wear(const bool wanted[SYSTEM_COUNT], const struct drive_wear_options *options,
             const struct machine *machine, const struct workload *workload,
             const struct constants *constants);

#endif
