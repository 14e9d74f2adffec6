// SPDX-License-Identifier: Apache-2.0
// The parts of a machine as numbers: GPU, host, drive. A table of fields says what each may be.
#ifndef INST_SIM_MACHINE_H
#define INST_SIM_MACHINE_H

#include "base/status.h"

#include <stddef.h>
#include <stdint.h>

struct gpu {
    double vram_bytes;
    double vram_rate;       // bytes/s, by the data sheet
    double vram_efficiency; // what products reach of it
    double flops;           // fp16, dense, by the data sheet
    double flops_efficiency;
    double link_rate; // bytes/s to the host
    double usable;    // share of VRAM that a server may fill
};

struct host {
    double dram_bytes;
    double system_bytes; // of it, never a page cache
};

struct csd {
    double flash_channels;
    double channel_rate; // bytes/s
    double page_bytes;
    double read_ns;        // array to page register
    double dies_a_channel; // that read at the same time
    double program_rate;   // bytes/s of the whole drive, sequential
    double link_rate;      // bytes/s to its host
    double capacity_bytes;
    double cycles; // program and erase cycles of a block
    double dram_bytes;
    double kernels;       // attention kernels
    double gemv_units;    // of a kernel
    double gemv_flops;    // of a unit
    double softmax_units; // of a kernel
    double softmax_rate;  // elements/s of a unit
    double filter_rate;   // bytes/s in each flash controller
    double argtopk_rate;  // elements/s
    double cores;         // for the FTL
    double lookup_ns;     // of a core, per page
    double staging_bytes; // read before the units compute on it
    double overlap;       // 1: the next piece is read meanwhile, 0: not
};

struct machine {
    struct gpu gpu;
    struct host host;
    struct csd csd;
    uint32_t gpus, drives;
};

// A field of one of the three: name, place, least and most.
struct machine_field {
    const char *name;
    size_t offset;
    double min, max;
};
extern const struct machine_field gpu_fields[], host_fields[], csd_fields[]; // to name NULL

static inline double *machine_value(void *part, const struct machine_field *field)
{
    return (double *)((char *)part + field->offset);
}

// From profiles, by name or path; gpus and drives stay as they are.
int machine_load(struct machine *machine, const char *gpu, const char *host, const char *drive,
                 struct inst_msg *msg);

// Every field in its range, and the parts fit together.
int machine_check(const struct machine *machine, struct inst_msg *msg);

#endif
