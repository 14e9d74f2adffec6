// SPDX-License-Identifier: Apache-2.0
// What a workload's writes do to a drive, all of them: the real control and FTL write generations
// of requests, every layer, sequence and token of one drive's heads, to emulated NAND without a
// payload, which is so small that blocks are used again. Bytes and erases are counted, nothing is
// extrapolated but years.
#ifndef INST_SIM_DRIVE_WEAR_H
#define INST_SIM_DRIVE_WEAR_H

#include "sim/drive_timing.h"

struct drive_wear_options {
    const char *profile;
    uint32_t generations;   // of requests: a batch each, all of which ends together
    uint32_t page_channels; // SparF
    double room;            // size of the flash over what a generation programs; from 1.2 on
    bool own_blocks;        // every sequence fills blocks of its own, instead of the batch together
    uint64_t memory;        // 0: 6 GiB
};

struct drive_wear_report {
    uint32_t heads, sequences, group_tokens;
    double tokens;     // written, of a sequence, over all generations and sequences
    double kv;         // bytes of K and V
    double accepted;   // of these, and of what is derived, in whole rows
    double programmed; // padding and records included
    double erased;     // bytes of blocks
    double flash;      // bytes of the flash
    uint64_t blocks, least, most, erases; // erases: of all blocks; least, most: of one
    double mean, deviation;               // of the erases of a block
    uint64_t bad, copied, dram;           // blocks gone bad; bytes moved; of the drive's DRAM
    double seconds;                       // virtual
};

int drive_wear_run(struct drive_wear_report *out, const struct drive_wear_options *options,
                   const struct machine *machine, const struct workload *workload,
                   enum method_kind method, struct inst_msg *msg);

#endif
