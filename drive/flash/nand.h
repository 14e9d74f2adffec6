// SPDX-License-Identifier: Apache-2.0
// What the flash back ends share: the NAND state that decides whether an operation is allowed, and
// a queue of operations. Private to drive/flash/.
//
// Fresh flash counts as erased. Pages of a block are programmed consecutively from page 0; a
// program that fails on its way has used its pages up. Operations on one block take effect in the
// order in which they were submitted.
#ifndef INST_DRIVE_FLASH_NAND_H
#define INST_DRIVE_FLASH_NAND_H

#include "drive/flash/flash.h"

#include <stddef.h>

enum { FLASH_PAGES_PER_BLOCK_MAX = UINT16_MAX, FLASH_DATA_ALIGN = 4096 };

struct flash_nand {
    // (blocks): pages programmed so far = the page to be programmed next. Only what is touched
    // takes memory.
    uint16_t *next;
    struct budget *budget, unlimited;
};

// budget may be NULL.
int flash_nand_init(struct flash_nand *nand, const struct flash_geometry *geometry,
                    struct budget *budget, struct inst_msg *msg);
void flash_nand_free(struct flash_nand *nand);

// 0 and the state moves on, or INST_EINVAL and nothing changes.
int flash_nand_accept(struct flash_nand *nand, const struct flash_geometry *geometry,
                      const struct flash_io *io);

static inline uint64_t flash_block_bytes(const struct flash_geometry *geometry)
{
    return (uint64_t)geometry->page_bytes * geometry->pages_per_block;
}

static inline uint64_t flash_io_bytes(const struct flash_geometry *geometry,
                                      const struct flash_io *io)
{
    return (uint64_t)geometry->page_bytes * io->pages;
}

// Byte address of the first page of an operation when the blocks lie one after another.
static inline uint64_t flash_io_offset(const struct flash_geometry *geometry,
                                       const struct flash_io *io)
{
    return io->block * flash_block_bytes(geometry) + (uint64_t)io->page * geometry->page_bytes;
}

struct flash_queue {
    struct flash_io *head, *tail;
};

static inline void flash_queue_push(struct flash_queue *queue, struct flash_io *io)
{
    io->next = NULL;
    if (queue->head)
        queue->tail->next = io;
    else
        queue->head = io;
    queue->tail = io;
}

static inline struct flash_io *flash_queue_pop(struct flash_queue *queue)
{
    struct flash_io *io = queue->head;
    if (io) {
        queue->head = io->next;
        io->next = NULL;
    }
    return io;
}

// The whole content as a list; the queue is empty afterwards.
static inline struct flash_io *flash_queue_take(struct flash_queue *queue)
{
    struct flash_io *list = queue->head;
    queue->head = NULL;
    return list;
}

static inline void flash_queue_finish(struct flash_queue *done, struct flash_io *io, int status,
                                      uint64_t now_ns)
{
    io->status = status;
    io->done_ns = now_ns;
    flash_queue_push(done, io);
}

#endif
