// SPDX-License-Identifier: Apache-2.0
// The flash of a drive as a profile has it (docs/profiles.md, [flash] and [wear]), checked.
#ifndef INST_DRIVE_FLASH_NAND_PROFILE_H
#define INST_DRIVE_FLASH_NAND_PROFILE_H

#include "base/profile.h"
#include "drive/flash/nand_time.h"

// How flash wears out; nand_wear.c says what the numbers do.
struct nand_wear_params {
    uint64_t endurance;   // erases of a block
    double bad_blocks;    // share of blocks that are bad from the beginning
    double grown_bad;     // share that goes bad within the endurance
    double spare_blocks;  // share of blocks that replace bad ones
    double retries_fresh; // times a page is read again, on average: of a new block
    double retries_worn;  // more at the end of the endurance
    double retries_aged;  // more after `retention_ns`
    uint64_t retention_ns;
    uint64_t retries_most; // a page that needs more is lost: ECC does not get it right; 0: none
};

struct nand_profile {
    struct nand_params time;
    uint64_t size_bytes;
    bool has_wear;
    struct nand_wear_params wear;
};

int nand_profile_read(struct nand_profile *out, const struct profile *profile,
                      struct inst_msg *msg);

// What the drive sees: every unit as a die. size_bytes 0: the profile's; at least one block of
// every unit.
int nand_profile_geometry(const struct nand_profile *profile, uint64_t size_bytes,
                          struct flash_geometry *out, struct inst_msg *msg);

#endif
