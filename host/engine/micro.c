// SPDX-License-Identifier: Apache-2.0
#include "host/engine/micro.h"

#include <stdbool.h>

// The first step of each way finds what the other has left, and is not counted.
enum { CYCLE = 64, TRIAL = 3, JUDGED = 2 * TRIAL };

// Of the time, before the ways are changed: a tie would change them at every cycle.
static const double gain = 0.03;

static uint32_t width_of(size_t rows)
{
    uint32_t width = 0;
    while (rows >> width > 1)
        width++;
    return width;
}

uint32_t micro_choose(struct micro *micro, size_t rows)
{
    if (rows < 2)
        return 1;
    if (micro->asked)
        return micro->asked;
    if (!micro->best || width_of(rows) != micro->width)
        *micro = (struct micro){.width = width_of(rows), .best = 1};
    return micro->step < TRIAL ? 3 - micro->best : micro->best;
}

void micro_note(struct micro *micro, size_t rows, uint32_t batches, double seconds)
{
    if (micro->asked || rows < 2)
        return;
    bool first = micro->step % TRIAL == 0 && micro->step < JUDGED;
    double *least = &micro->least[batches - 1], each = seconds / (double)rows;
    if (!first && (*least <= 0 || each < *least))
        *least = each;
    micro->step++;
    if (micro->step == JUDGED) {
        double now = micro->least[micro->best - 1], other = micro->least[2 - micro->best];
        if (other < now * (1 - gain))
            micro->best = 3 - micro->best;
    } else if (micro->step == CYCLE) {
        micro->step = 0;
        micro->least[0] = micro->least[1] = 0;
    }
}
