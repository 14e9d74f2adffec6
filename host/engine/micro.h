// SPDX-License-Identifier: Apache-2.0
// How many micro-batches a step of decode is divided into. With two, the drive attends and reads
// for one while the host computes for the other, and every weight is read twice: what is faster
// depends on the model, the batch, the method and the drive, and is tried. Every CYCLE steps a few
// go the other way, and the faster one is kept (contract point 9: the bits are the same).
#ifndef INST_HOST_ENGINE_MICRO_H
#define INST_HOST_ENGINE_MICRO_H

#include <stddef.h>
#include <stdint.h>

enum { MICRO_MOST = 2 };

// Begins zeroed.
struct micro {
    uint32_t asked;  // always so many, where there are rows enough; 0: whichever is faster
    uint32_t width;  // of the steps counted: log2 of their rows
    uint32_t step;   // in the cycle
    uint32_t best;   // micro-batches
    double least[2]; // seconds per row of the cycle's steps with 1 and 2; 0: none yet
};

// For a step of `rows` decode rows and nothing else.
uint32_t micro_choose(struct micro *micro, size_t rows);
// What it took.
void micro_note(struct micro *micro, size_t rows, uint32_t batches, double seconds);

#endif
