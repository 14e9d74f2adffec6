// SPDX-License-Identifier: Apache-2.0
#include "chaos_flash.h"
#include "drive/flash/nand.h"
#include "drive/ftl/frame.h"
#include "drive/ftl/segment.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { GARBAGE = 0x5a };

struct entry {
    struct flash_io *io;
    uint64_t due; // poll
    int status;
    bool refused, applied;
    bool flip, rot; // what is read is wrong
};

struct chaos {
    struct flash flash;
    struct flash_nand nand;
    struct chance *chance;
    struct chaos_plan plan;
    uint8_t **blocks;      // contents, then a byte for each page: it rots; NULL = erased
    bool *broken;          // [blocks / dies]
    struct entry *entries; // in the order of submission
    uint32_t n, capacity, held;
    uint32_t good_programs; // before another may fail
    uint64_t tick;
    bool calm;
    struct {
        bool on;
        enum flash_op op;
        uint64_t block;
    } hold;
    struct {
        enum flash_op op;
        int status;
        uint32_t skip, left;
    } fail;
    struct chaos_counters counters;
};

static struct chaos *self_of(struct flash *flash)
{
    return (struct chaos *)flash;
}

static bool concerns(enum flash_op op, uint64_t block, const struct flash_io *io)
{
    return io->op == op && (block == UINT64_MAX || io->block == block);
}

static uint64_t due_at(struct chaos *c)
{
    if (c->calm)
        return 0;
    if (c->plan.slow && below(c->chance, CHAOS_EVER) < c->plan.slow)
        return c->tick + 1 + below(c->chance, c->plan.slow_polls);
    return c->tick + 1 + below(c->chance, c->plan.polls + 1);
}

// At most one fault for each operation. After a program that failed CHAOS_GOOD_PROGRAMS go well:
// who tries again gets its data down.
static void draw_fault(struct chaos *c, struct entry *e)
{
    const struct chaos_plan *p = &c->plan;
    uint32_t chances[4] = {0};
    switch (e->io->op) {
    case FLASH_READ:
        chances[0] = p->read_error;
        chances[2] = p->bit_flip;
        chances[3] = p->rot;
        break;
    case FLASH_PROGRAM:
        chances[0] = p->program_error;
        chances[1] = p->no_space;
        break;
    case FLASH_ERASE:
        chances[0] = p->erase_error;
        break;
    case FLASH_SYNC:
        chances[0] = p->sync_error;
        break;
    }
    if (!(chances[0] | chances[1] | chances[2] | chances[3]))
        return;
    uint32_t at = CHAOS_EVER - 1 - below(c->chance, CHAOS_EVER), sum = 0;
    int which = 0;
    while (which < 4 && at >= (sum += chances[which]))
        which++;
    if (e->io->op == FLASH_PROGRAM && c->good_programs) {
        c->good_programs--;
        return;
    }
    if (e->io->op == FLASH_PROGRAM && which < 2)
        c->good_programs = CHAOS_GOOD_PROGRAMS;
    if (which < 2)
        e->status = which ? INST_ENOSPC : INST_EIO;
    e->flip = which == 2;
    e->rot = which == 3;
}

static void chaos_submit(struct flash *flash, struct flash_io *list, uint64_t now_ns)
{
    struct chaos *c = self_of(flash);
    (void)now_ns;
    for (struct flash_io *io = list, *next; io; io = next) {
        next = io->next;
        if (c->n == c->capacity) {
            c->capacity = c->capacity ? 2 * c->capacity : 64;
            c->entries = realloc(c->entries, c->capacity * sizeof *c->entries);
            if (!c->entries)
                abort();
        }
        struct entry *e = &c->entries[c->n++];
        *e = (struct entry){.io = io, .due = due_at(c)};
        c->counters.operations++;
        e->refused = flash_nand_accept(&c->nand, &flash->geometry, io) != 0;
        if (e->refused) {
            c->counters.violations++;
            e->status = INST_EINVAL;
            continue;
        }
        if (io->op == FLASH_READ)
            memset(io->data, GARBAGE, flash_io_bytes(&flash->geometry, io));
        if (io->op == FLASH_PROGRAM && io->block >= c->counters.blocks_used)
            c->counters.blocks_used = io->block + 1;
        if (c->fail.left && c->fail.op == io->op) {
            if (c->fail.skip) {
                c->fail.skip--;
            } else {
                c->fail.left--;
                e->status = c->fail.status;
            }
        } else if (!c->calm) {
            draw_fault(c, e);
        }
        if (c->hold.on && concerns(c->hold.op, c->hold.block, io)) {
            e->due = UINT64_MAX;
            c->held++;
        }
    }
}

static void flip_bit(struct chaos *c, uint8_t *data, uint64_t bytes)
{
    uint32_t bit = below(c->chance, (uint32_t)bytes * 8);
    data[bit / 8] = (uint8_t)(data[bit / 8] ^ 1u << bit % 8);
}

static uint8_t *rot_of(const struct chaos *c, uint8_t *block, uint32_t page)
{
    return block + flash_block_bytes(&c->flash.geometry) + page;
}

static void apply_read(struct chaos *c, struct entry *e)
{
    const struct flash_io *io = e->io;
    uint64_t bytes = flash_io_bytes(&c->flash.geometry, io);
    uint8_t *block = c->blocks[io->block];
    if (!block || e->status) {
        memset(io->data, GARBAGE, bytes);
        return;
    }
    uint8_t *from = block + (uint64_t)io->page * c->flash.geometry.page_bytes;
    if (e->rot) {
        uint32_t page = below(c->chance, io->pages), page_bytes = c->flash.geometry.page_bytes;
        flip_bit(c, from + (uint64_t)page * page_bytes, page_bytes);
        *rot_of(c, block, io->page + page) = 1;
    }
    for (uint32_t i = 0; i < io->pages; i++)
        e->rot |= *rot_of(c, block, io->page + i);
    memcpy(io->data, from, bytes);
    if (e->flip)
        flip_bit(c, io->data, bytes);
}

static void look_at_records(struct chaos *c, const struct flash_io *io)
{
    uint32_t page_bytes = c->flash.geometry.page_bytes;
    for (uint32_t i = 0; i < io->pages; i++) {
        struct page_identity id;
        uint64_t sum;
        if (io->oob)
            page_record_read((const uint8_t *)io->oob + (size_t)i * PAGE_RECORD_BYTES, &id, &sum);
        const uint8_t *data = (const uint8_t *)io->data + (size_t)i * page_bytes;
        if (!io->oob || page_checksum(&id, data, page_bytes) != sum)
            c->counters.bad_records++;
    }
}

static void apply_program(struct chaos *c, struct entry *e)
{
    const struct flash_geometry *g = &c->flash.geometry;
    uint8_t **block = &c->blocks[e->io->block];
    if (!*block)
        *block = calloc(1, flash_block_bytes(g) + g->pages_per_block);
    if (!*block)
        abort();
    if (g->oob)
        look_at_records(c, e->io);
    uint8_t *to = *block + (uint64_t)e->io->page * g->page_bytes;
    uint64_t bytes = flash_io_bytes(g, e->io);
    memcpy(to, e->io->data, bytes);
    if (e->status)
        memset(to + bytes / 2, GARBAGE, bytes - bytes / 2);
}

static void apply(struct chaos *c, struct entry *e)
{
    if (e->applied)
        return;
    e->applied = true;
    if (e->refused)
        return;
    if (e->io->op == FLASH_READ)
        apply_read(c, e);
    else if (e->io->op == FLASH_PROGRAM)
        apply_program(c, e);
    else if (e->io->op == FLASH_ERASE) {
        if (e->status) { // must be erased again before it is programmed
            c->nand.next[e->io->block] = (uint16_t)c->flash.geometry.pages_per_block;
        } else {
            free(c->blocks[e->io->block]); // a view of it is a use after free
            c->blocks[e->io->block] = NULL;
        }
    }
}

static void count_finished(struct chaos *c, const struct entry *e)
{
    bool fault = e->status && !e->refused;
    switch (e->io->op) {
    case FLASH_READ:
        c->counters.bad_reads += fault || e->flip || e->rot;
        c->counters.wrong_data += e->flip || e->rot;
        break;
    case FLASH_PROGRAM:
        c->counters.program_faults += fault;
        break;
    case FLASH_ERASE:
        c->counters.erase_faults += fault;
        if (fault && !c->broken[e->io->block / c->flash.geometry.dies]) {
            c->broken[e->io->block / c->flash.geometry.dies] = true;
            c->counters.bad_stripes++;
        }
        break;
    case FLASH_SYNC:
        c->counters.sync_faults += fault;
        break;
    }
}

static bool finishes(const struct chaos *c, const struct entry *e, uint64_t now_ns)
{
    return e->due <= c->tick || c->calm || now_ns >= UINT64_MAX / 2;
}

static struct flash_io *chaos_poll(struct flash *flash, uint64_t now_ns)
{
    struct chaos *c = self_of(flash);
    struct flash_io *list = NULL, **end = &list;
    uint32_t kept = 0;
    c->tick++;
    for (uint32_t i = 0; i < c->n; i++) {
        struct entry *e = &c->entries[i];
        if (!finishes(c, e, now_ns)) {
            if (kept != i)
                c->entries[kept] = *e;
            kept++;
            continue;
        }
        if (!e->refused && e->io->op != FLASH_SYNC) {
            for (uint32_t j = 0; j < kept; j++) { // what came before on this block
                if (c->entries[j].io->op != FLASH_SYNC && c->entries[j].io->block == e->io->block)
                    apply(c, &c->entries[j]);
            }
        }
        apply(c, e);
        count_finished(c, e);
        e->io->status = e->status;
        e->io->done_ns = now_ns;
        if (!c->calm && one_in(c->chance, 2)) { // in front
            e->io->next = list;
            list = e->io;
            if (!list->next)
                end = &list->next;
        } else {
            e->io->next = NULL;
            *end = e->io;
            end = &e->io->next;
        }
    }
    c->n = kept;
    return list;
}

static const void *chaos_view(struct flash *flash, uint64_t block, uint32_t page)
{
    struct chaos *c = self_of(flash);
    const struct flash_geometry *g = &flash->geometry;
    if (block >= g->blocks || page >= c->nand.next[block]) {
        c->counters.violations++;
        return NULL;
    }
    for (uint32_t i = 0; i < c->n; i++) {
        if (!c->entries[i].applied && c->entries[i].io->op != FLASH_SYNC &&
            c->entries[i].io->block == block)
            return NULL;
    }
    return c->blocks[block] ? c->blocks[block] + (uint64_t)page * g->page_bytes : NULL;
}

static void chaos_close(struct flash *flash)
{
    struct chaos *c = self_of(flash);
    for (uint64_t b = 0; c->blocks && b < flash->geometry.blocks; b++)
        free(c->blocks[b]);
    flash_nand_free(&c->nand);
    free(c->blocks);
    free(c->broken);
    free(c->entries);
    free(c);
}

static const struct flash_ops chaos_ops = {
    .submit = chaos_submit, .poll = chaos_poll, .close = chaos_close};
static const struct flash_ops chaos_view_ops = {
    .submit = chaos_submit, .poll = chaos_poll, .view = chaos_view, .close = chaos_close};

int chaos_open(struct flash **out, const struct flash_geometry *geometry, struct chance *chance,
               bool views, struct inst_msg *msg)
{
    int status = flash_geometry_check(geometry, msg);
    if (status)
        return status;
    struct chaos *c = calloc(1, sizeof *c);
    if (!c)
        return inst_fail(msg, INST_ENOMEM, "chaos flash: no memory");
    c->flash = (struct flash){
        .ops = views ? &chaos_view_ops : &chaos_ops, .geometry = *geometry, .path = "chaos"};
    c->chance = chance;
    c->blocks = calloc(geometry->blocks, sizeof *c->blocks);
    c->broken = calloc(geometry->blocks / geometry->dies, sizeof *c->broken);
    status = flash_nand_init(&c->nand, geometry, NULL, msg);
    if (status || !c->blocks || !c->broken) {
        free(c->blocks);
        free(c->broken);
        free(c);
        return status ? status : inst_fail(msg, INST_ENOMEM, "chaos flash: no memory");
    }
    *out = &c->flash;
    return 0;
}

void chaos_set(struct flash *flash, const struct chaos_plan *plan)
{
    self_of(flash)->plan = *plan;
}

void chaos_calm(struct flash *flash, bool on)
{
    struct chaos *c = self_of(flash);
    c->calm = on;
    c->hold.on = c->hold.on && !on;
    c->held = on ? 0 : c->held;
}

const struct chaos_counters *chaos_count(const struct flash *flash)
{
    return &((const struct chaos *)flash)->counters;
}

uint32_t chaos_in_flight(const struct flash *flash)
{
    return ((const struct chaos *)flash)->n;
}

uint32_t chaos_held(const struct flash *flash)
{
    return ((const struct chaos *)flash)->held;
}

void chaos_hold(struct flash *flash, enum flash_op op, uint64_t block)
{
    struct chaos *c = self_of(flash);
    c->hold.on = true;
    c->hold.op = op;
    c->hold.block = block;
}

void chaos_release(struct flash *flash)
{
    struct chaos *c = self_of(flash);
    c->hold.on = false;
    c->held = 0;
    for (uint32_t i = 0; i < c->n; i++) {
        if (c->entries[i].due == UINT64_MAX)
            c->entries[i].due = 0;
    }
}

void chaos_fail(struct flash *flash, enum flash_op op, int status, uint32_t skip, uint32_t count)
{
    struct chaos *c = self_of(flash);
    c->fail.op = op;
    c->fail.status = status;
    c->fail.skip = skip;
    c->fail.left = count;
}

bool chaos_rot(struct flash *flash, uint64_t block, uint32_t page)
{
    struct chaos *c = self_of(flash);
    if (block >= flash->geometry.blocks || !c->blocks[block] || page >= c->nand.next[block])
        return false;
    c->blocks[block][(uint64_t)page * flash->geometry.page_bytes] ^= 1;
    *rot_of(c, c->blocks[block], page) ^= 1;
    return true;
}
