// SPDX-License-Identifier: Apache-2.0
#include "drive/flash/nand_wear.h"
#include "base/checked.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { RETRIES_MOST = 15 };

// splitmix64 of several numbers: one in [0, 1) for each use.
static double share(uint64_t seed, uint64_t what, uint64_t a, uint64_t b, uint64_t c)
{
    uint64_t parts[] = {what, a, b, c}, z = seed;
    for (size_t i = 0; i < 4; i++) {
        z += parts[i] + UINT64_C(0x9e3779b97f4a7c15);
        z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
        z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
        z ^= z >> 31;
    }
    return (double)(z >> 11) * 0x1p-53;
}

enum { USE_BAD = 1, USE_LIFE, USE_RETRY };

static void take_spare(struct nand_wear *w, uint64_t block)
{
    uint32_t *left = &w->spares[block % w->units];
    struct nand_block *b = &w->block[block];
    b->lost = !*left;
    b->replaced++;
    w->counters.lost_blocks += b->lost;
    *left -= *left > 0;
}

int nand_wear_init(struct nand_wear *w, const struct nand_wear_options *options,
                   const struct flash_geometry *g, struct inst_msg *msg)
{
    const struct nand_wear_params *p = &options->params;
    *w = (struct nand_wear){.o = *options, .blocks = g->blocks, .units = g->dies};
    w->block = calloc(g->blocks, sizeof *w->block); // what is not used takes no memory
    w->spares = calloc(g->dies, sizeof *w->spares);
    if (!w->block || !w->spares) {
        nand_wear_free(w);
        return inst_fail(msg, INST_ENOMEM, "no memory for the state of %llu blocks",
                         (unsigned long long)g->blocks);
    }
    uint64_t each = g->blocks / g->dies;
    for (uint32_t u = 0; u < g->dies; u++)
        w->spares[u] = (uint32_t)((double)each * p->spare_blocks + 0.999);
    for (uint64_t b = 0; b < g->blocks && p->bad_blocks > 0 && !w->o.no_bad; b++) {
        if (share(w->o.seed, USE_BAD, b, 0, 0) >= p->bad_blocks)
            continue;
        w->counters.bad_blocks++;
        take_spare(w, b);
    }
    return 0;
}

void nand_wear_free(struct nand_wear *w)
{
    free(w->block);
    free(w->spares);
    w->block = NULL;
    w->spares = NULL;
}

// Erases that a block, or what has replaced it, lasts for.
static uint64_t life(const struct nand_wear *w, uint64_t block)
{
    const struct nand_wear_params *p = &w->o.params;
    double u = share(w->o.seed, USE_LIFE, block, w->block[block].replaced, 0);
    double endurance = (double)p->endurance;
    if (u < p->grown_bad)
        return (uint64_t)(endurance * u / p->grown_bad);
    return (uint64_t)(endurance * (1 + (u - p->grown_bad) / (1 - p->grown_bad)));
}

static uint64_t erases_of(const struct nand_wear *w, uint64_t block)
{
    return w->o.erases + w->block[block].erases;
}

int nand_wear_program(struct nand_wear *w, uint64_t block, bool first, uint64_t now_ns)
{
    struct nand_block *b = &w->block[block];
    if (first)
        b->programmed_ns = now_ns;
    if (w->o.no_bad || !w->o.params.endurance)
        return 0;
    if (!b->lost && erases_of(w, block) < life(w, block))
        return 0;
    w->counters.failed_programs++;
    if (!b->lost) {
        w->counters.grown_bad++;
        take_spare(w, block);
        b->erases = 0; // new, but as old as the drive
    }
    return INST_EIO;
}

int nand_wear_erase(struct nand_wear *w, uint64_t block)
{
    struct nand_block *b = &w->block[block];
    if (b->lost) {
        w->counters.failed_erases++;
        return INST_EIO;
    }
    b->erases++;
    w->counters.erases++;
    w->counters.most_erases = max_u64(w->counters.most_erases, b->erases);
    return 0;
}

// How often a page has to be read again until ECC gets it right.
static double needed(const struct nand_wear *w, uint64_t block, uint32_t page, uint64_t now_ns)
{
    const struct nand_wear_params *p = &w->o.params;
    if (w->o.no_retries || !p->endurance)
        return 0;
    const struct nand_block *b = &w->block[block];
    uint64_t age = w->o.age_ns + (now_ns > b->programmed_ns ? now_ns - b->programmed_ns : 0);
    double expected =
        p->retries_fresh + p->retries_worn * (double)erases_of(w, block) / (double)p->endurance;
    if (p->retention_ns)
        expected += p->retries_aged * (double)age / (double)p->retention_ns;
    if (!(expected > 0))
        return 0;
    // Its whole part is one more for `share` beyond the rest.
    return floor(expected + share(w->o.seed, USE_RETRY, block, page, erases_of(w, block)));
}

static double most(const struct nand_wear *w)
{
    return w->o.params.retries_most ? (double)w->o.params.retries_most : RETRIES_MOST;
}

uint32_t nand_wear_retries(const struct nand_wear *w, uint64_t block, uint32_t page,
                           uint64_t now_ns)
{
    return (uint32_t)fmin(needed(w, block, page, now_ns), most(w));
}

int nand_wear_read(struct nand_wear *w, uint64_t block, uint32_t page, uint32_t pages,
                   uint64_t now_ns)
{
    for (uint32_t i = 0; i < pages && w->o.params.retries_most; i++) {
        if (needed(w, block, page + i, now_ns) <= most(w))
            continue;
        w->counters.failed_reads++;
        return INST_EIO;
    }
    return 0;
}
