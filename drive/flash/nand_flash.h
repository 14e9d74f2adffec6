// SPDX-License-Identifier: Apache-2.0
// Emulated NAND: what is programmed lies in a flash below (RAM, a file, or nowhere), when it is
// done says the timing model, and what fails says the wear. Time is what is handed in: a
// simulator's, or the real one, to which completions are then held back.
#ifndef INST_DRIVE_FLASH_NAND_FLASH_H
#define INST_DRIVE_FLASH_NAND_FLASH_H

#include "drive/flash/nand_wear.h"

struct flash_nand_options {
    struct nand_profile profile;
    uint64_t size_bytes; // 0: the profile's
    enum { NAND_PAYLOAD_RAM, NAND_PAYLOAD_FILE, NAND_PAYLOAD_NONE } payload;
    char name[192];      // of the profile, or its path
    char directory[192]; // NAND_PAYLOAD_FILE: as in flash_file_options
    bool paced;          // whoever drives it shall go by the real clock
    bool no_bad, no_retries, no_engine;
    uint64_t seed, erases, age_ns; // as in nand_wear_options
};

// PROFILE[:SIZE][,KEY=VALUE]...: payload=ram|file:DIRECTORY|none, clock=virtual|paced, bad=on|off,
// retries=on|off, engine=on|off, wear=ERASES, age=DAYS, seed=N.
int flash_nand_parse(struct flash_nand_options *out, const char *text, struct inst_msg *msg);

#endif
