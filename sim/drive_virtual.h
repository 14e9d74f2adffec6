// SPDX-License-Identifier: Apache-2.0
// The project's drive as it is (control, FTL, methods, kernels) over emulated NAND and timed units,
// asked command by command in virtual time: time goes on to when the drive can do something, and
// nowhere else. What is asked, and what of, is the caller's.
#ifndef INST_SIM_DRIVE_VIRTUAL_H
#define INST_SIM_DRIVE_VIRTUAL_H

#include "drive/drive.h"
#include "drive/engine.h"
#include "sim/drive_timing.h"

enum { VIRTUAL_SPACE = 1, VIRTUAL_ITEMS_MAX = 256 };

struct drive_virtual {
    struct space_config config;
    struct pool *pool;
    struct engine *engine;
    struct budget budget;
    struct flash_nand_options *nand;
    struct flash *flash;
    struct drive *drive;
    uint64_t now_ns, steps, dram_bytes;
    _Alignas(64) unsigned char table[TABLE_HEADER_BYTES + VIRTUAL_ITEMS_MAX * TABLE_ITEM_BYTES];
    struct inst_msg *msg;
};

struct drive_virtual_options {
    const char *where;          // as behind nand:
    const struct csd *csd;      // units
    struct space_config config; // its group and what the drive chooses are filled in
    uint64_t memory;            // of the drive, and of payload in RAM
    drive_selection_fn *selected;
    void *selected_user;
};

// Of the drive of an array that has most heads; page_channels is SparF's. Layers, sequences and
// tokens are the caller's.
struct space_config drive_virtual_config(const struct machine *machine, const struct shape *shape,
                                         enum method_kind method, uint32_t page_channels);
// `v` is zeroed, aligned to 64 bytes, and to be closed whatever this says.
int drive_virtual_open(struct drive_virtual *v, const struct drive_virtual_options *options,
                       struct inst_msg *msg);
void drive_virtual_close(struct drive_virtual *v);
// One command to its completion, with the table as it stands.
int drive_virtual_call(struct drive_virtual *v, struct command command, void *data);
// After a FLUSH.
int drive_virtual_stats(struct drive_virtual *v, struct drive_stats *stats);
// Sequences [0, n) end.
int drive_virtual_reclaim(struct drive_virtual *v, uint32_t n);

#endif
