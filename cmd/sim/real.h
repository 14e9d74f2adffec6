// SPDX-License-Identifier: Apache-2.0
// instinfer sim --real: K, V and q of stated locality for the project's own drive in virtual time,
// and what it says of itself.
#ifndef INST_CMD_SIM_REAL_H
#define INST_CMD_SIM_REAL_H

#include "bench/clusters.h"
#include "sim/drive_real.h"

struct sim_real {
    struct drive_real_source drive;
    struct clusters *clusters;
};

// An exit code. Of `sequences` sequences on the drive that has most heads.
int sim_real_open(struct sim_real *real, const char *profile, uint32_t sequences,
                  const struct machine *machine, const struct workload *workload);
void sim_real_close(struct sim_real *real);
// A line for each method that was asked for.
void sim_real_print(const struct sim_real *real, const struct machine *machine,
                    const struct workload *workload);

#endif
