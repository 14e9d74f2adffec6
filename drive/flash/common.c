// SPDX-License-Identifier: Apache-2.0
// Geometry check and NAND state of the flash back ends. Refuses geometries whose arithmetic could
// overflow anywhere later, so that the back ends can multiply without looking again.
#include "drive/flash/nand.h"
#include "base/checked.h"

#include <string.h>
#include <sys/mman.h>

enum { PAGE_MIN = 512, PAGE_MAX = 1 << 20, BLOCK_MAX = 1 << 30 };

int flash_geometry_check(const struct flash_geometry *geometry, struct inst_msg *msg)
{
    const struct flash_geometry *g = geometry;
    if (!is_power_of_two(g->page_bytes) || g->page_bytes < PAGE_MIN || g->page_bytes > PAGE_MAX)
        return inst_fail(msg, INST_EINVAL,
                         "flash page of %u bytes: must be a power of two from %d to %d",
                         g->page_bytes, PAGE_MIN, PAGE_MAX);
    if (!g->pages_per_block || g->pages_per_block > FLASH_PAGES_PER_BLOCK_MAX ||
        flash_block_bytes(g) > BLOCK_MAX)
        return inst_fail(msg, INST_EINVAL,
                         "flash block of %u pages of %u bytes: must have 1 to %d pages and at "
                         "most %d bytes",
                         g->pages_per_block, g->page_bytes, FLASH_PAGES_PER_BLOCK_MAX, BLOCK_MAX);
    if (!g->dies || !g->blocks || g->blocks % g->dies)
        return inst_fail(msg, INST_EINVAL, "%llu flash blocks cannot be spread over %u dies evenly",
                         (unsigned long long)g->blocks, g->dies);
    if (!g->channels || g->channels > g->dies)
        return inst_fail(msg, INST_EINVAL, "%u flash channels for %u dies: must be 1 to %u",
                         g->channels, g->dies, g->dies);
    if (g->read_bytes < g->page_bytes)
        return inst_fail(msg, INST_EINVAL,
                         "best flash read size of %u bytes is smaller than a page of %u bytes",
                         g->read_bytes, g->page_bytes);
    uint64_t bytes;
    if (!checked_mul(g->blocks, flash_block_bytes(g), &bytes) || bytes > INT64_MAX)
        return inst_fail(msg, INST_EINVAL, "%llu flash blocks of %llu bytes overflow 63 bits",
                         (unsigned long long)g->blocks, (unsigned long long)flash_block_bytes(g));
    return 0;
}

int flash_nand_init(struct flash_nand *nand, const struct flash_geometry *geometry,
                    struct budget *budget, struct inst_msg *msg)
{
    memset(nand, 0, sizeof *nand);
    budget_init(&nand->unlimited, UINT64_MAX);
    nand->budget = budget ? budget : &nand->unlimited;
    nand->next = budget_alloc(nand->budget, geometry->blocks, sizeof *nand->next,
                              "state of the flash blocks", msg);
    return nand->next ? 0 : INST_ENOMEM;
}

void flash_nand_free(struct flash_nand *nand)
{
    budget_free(nand->budget, nand->next);
    nand->next = NULL;
}

static bool range_is_valid(const struct flash_geometry *geometry, const struct flash_io *io)
{
    uintptr_t align = min_u64(geometry->page_bytes, FLASH_DATA_ALIGN);
    return io->pages && io->page < geometry->pages_per_block &&
           io->pages <= geometry->pages_per_block - io->page && io->data &&
           ((uintptr_t)io->data & (align - 1)) == 0;
}

int flash_nand_accept(struct flash_nand *nand, const struct flash_geometry *geometry,
                      const struct flash_io *io)
{
    if (io->op == FLASH_SYNC)
        return 0;
    if (io->block >= geometry->blocks)
        return INST_EINVAL;
    uint16_t *next = &nand->next[io->block];
    switch (io->op) {
    case FLASH_ERASE:
        *next = 0;
        return 0;
    case FLASH_READ:
        return range_is_valid(geometry, io) && io->page + io->pages <= *next ? 0 : INST_EINVAL;
    case FLASH_PROGRAM:
        if (!range_is_valid(geometry, io) || io->page != *next)
            return INST_EINVAL;
        *next = (uint16_t)(io->page + io->pages);
        return 0;
    default:
        return INST_EINVAL;
    }
}
