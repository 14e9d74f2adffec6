// SPDX-License-Identifier: Apache-2.0
// How emulated NAND wears out: which blocks are bad, which go bad and when, how often a page has to
// be read again. Nothing is drawn: all of it follows from a seed, the block, the page and how often
// the block was erased, so the same work meets the same faults.
//
// Of all blocks a share (bad_blocks) is bad from the beginning and was replaced by spare blocks of
// the same plane. A block that is good lasts for so many erases: a share (grown_bad) goes bad
// within the endurance, evenly over it, the others between once and twice the endurance. The next
// program in it fails then; what follows goes to a spare block of the plane that replaces it, as
// the controllers of drives do it. Where none is left all programs and erases of the block fail.
//
// A page is read again, on average, retries_fresh times, plus retries_worn times the erases of its
// block over the endurance, plus retries_aged times the age of its block's data over retention_ns:
// the whole number below it, or one more for as many pages as the rest says. What needs more than
// retries_most is read so often in vain: ECC never gets it right, and the read fails.
#ifndef INST_DRIVE_FLASH_NAND_WEAR_H
#define INST_DRIVE_FLASH_NAND_WEAR_H

#include "drive/flash/nand_profile.h"

struct nand_wear_options {
    struct nand_wear_params params;
    uint64_t seed;
    uint64_t erases; // that every block has behind it
    uint64_t age_ns; // that all data is older than it is
    bool no_bad, no_retries;
};

struct nand_wear_counters {
    uint64_t bad_blocks;  // from the beginning
    uint64_t grown_bad;   // since
    uint64_t lost_blocks; // of these, those without a spare
    uint64_t most_erases, erases;
    uint64_t failed_programs, failed_erases, failed_reads;
};

struct nand_block {
    uint64_t programmed_ns; // its first page, since it was erased
    uint32_t erases;
    uint16_t replaced;
    bool lost;
};

struct nand_wear {
    struct nand_wear_options o;
    uint64_t blocks;
    uint32_t units; // block b is one of unit b % units
    struct nand_block *block;
    uint32_t *spares; // [units], left
    struct nand_wear_counters counters;
};

int nand_wear_init(struct nand_wear *wear, const struct nand_wear_options *options,
                   const struct flash_geometry *geometry, struct inst_msg *msg);
void nand_wear_free(struct nand_wear *wear);

// What an operation on a block comes to: 0 or INST_EIO.
int nand_wear_program(struct nand_wear *wear, uint64_t block, bool first, uint64_t now_ns);
int nand_wear_erase(struct nand_wear *wear, uint64_t block);
int nand_wear_read(struct nand_wear *wear, uint64_t block, uint32_t page, uint32_t pages,
                   uint64_t now_ns);
uint32_t nand_wear_retries(const struct nand_wear *wear, uint64_t block, uint32_t page,
                           uint64_t now_ns);

#endif
