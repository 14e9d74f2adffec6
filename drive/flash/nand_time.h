// SPDX-License-Identifier: Apache-2.0
// When NAND is done: a model of flash channels, dies and planes in virtual time. A state machine
// that is told operations and the time, and computes in whole nanoseconds; it moves no data, knows
// no FTL, reads no clock, and the same calls give the same times.
//
// A page is read by a command on the flash channel, tR in the die, and its transfer over the
// channel (then through the port, where the drive has one); programmed by command and transfer,
// then tPROG; erased by a command, then tBERS. A channel does one transfer or command at a time, a
// die one array operation, and a plane has registers for one or two pages. Who comes first:
//
//  - on a channel: commands for reads (waited for, ahead, in the background), then pages that were
//    read, then programs, then erases; in each class dies take turns;
//  - in a die: the same classes, in each the operation that came first. Planes of the die that
//    have an operation of the same class and the same page number waiting join it (multi-plane);
//  - a read that somebody waits for suspends a program or an erase, so often at most in each, when
//    more than the suspension itself is left of it; it goes on when no such read waits any more.
//
// Operations on one block take effect in the order in which they came: a read waits for programs
// and erases before it, an erase for reads. Programs and erases of a plane keep their order.
//
// A page that is read again (retries) takes tR and its transfer as often.
#ifndef INST_DRIVE_FLASH_NAND_TIME_H
#define INST_DRIVE_FLASH_NAND_TIME_H

#include "drive/flash/flash.h"

struct nand_params {
    uint64_t channels;
    uint64_t dies;   // of a channel
    uint64_t planes; // of a die
    uint64_t page_bytes, pages_per_block;
    uint64_t spare_bytes;                   // beside the data of a page; pass the channel with it
    uint64_t read_ns, program_ns, erase_ns; // tR, tPROG, tBERS
    uint64_t command_ns;                    // command and address, on the channel
    uint64_t bus;                           // bytes per second of a channel
    uint64_t filter; // of what the data of pages that are read passes on its channel; 0: nothing
    uint64_t port;   // of what all pages that are read pass; 0: nothing
    // Of a plane: 1, or 2 where the die can go on while a page waits for its transfer, and the data
    // of the next program can come while it is busy.
    uint64_t registers;
    uint64_t suspends;   // of one program or erase; 0: none
    uint64_t suspend_ns; // until a suspended die can read
};

int nand_params_check(const struct nand_params *params, struct inst_msg *msg);

// A plane is a unit: unit u lies on flash channel u % channels, in die u / channels % dies of it,
// and is plane u / channels / dies of that: neighbours share as little as they can.
static inline uint32_t nand_units(const struct nand_params *p)
{
    return (uint32_t)(p->channels * p->dies * p->planes);
}

enum nand_kind { NAND_READ, NAND_PROGRAM, NAND_ERASE };

// Owned by the submitter; the model holds it until nand_time_advance hands it back.
struct nand_op {
    enum nand_kind kind;
    enum flash_priority priority; // of a read
    uint32_t unit;
    uint64_t block;       // tells blocks of a unit apart
    uint32_t page, pages; // READ, PROGRAM: page .. page + pages - 1
    uint64_t done_ns;     // out
    struct nand_op *next;
    // The model's:
    uint64_t order;
    uint32_t issued, left;            // pages
    struct nand_op *before, *behind;  // outstanding ones of the unit, reads and others apart
    struct nand_op *held, *held_tail; // reads that wait for this one
};

enum nand_resource { NAND_CHANNEL, NAND_DIE, NAND_PORT };

struct nand_time_options {
    struct nand_params params;
    // How often a page has to be read again. NULL: never.
    uint32_t (*retries)(void *user, const struct nand_op *op, uint32_t page);
    // For tests: told of every time in which a resource is busy, as soon as its end is certain.
    void (*watch)(void *user, enum nand_resource resource, uint32_t index, uint64_t start,
                  uint64_t end);
    void *user;
};

struct nand_counters {
    uint64_t read_pages, program_pages, erases;
    uint64_t read_bytes, program_bytes; // over the channels, retries included
    uint64_t retries, suspends;
    uint64_t joined_pages; // beyond the first of a multi-plane operation
    uint64_t channel_ns;   // that channels were busy, summed over them
    uint64_t die_ns;       // that dies were busy, summed over them
    uint64_t busy_ns;      // while any operation was outstanding
};

struct nand_time;

int nand_time_open(struct nand_time **out, const struct nand_time_options *options,
                   struct inst_msg *msg);
void nand_time_close(struct nand_time *time); // forgets what is under way

// Takes a list; `now_ns` is not less than in any call before.
void nand_time_submit(struct nand_time *time, struct nand_op *list, uint64_t now_ns);
// Goes on to `now_ns`; what is done at or before it, in order.
struct nand_op *nand_time_advance(struct nand_time *time, uint64_t now_ns);
// When something happens next, at or before the last time handed in when an operation waits to be
// taken, UINT64_MAX when none is outstanding.
uint64_t nand_time_next(const struct nand_time *time);

// Nothing begins on any flash channel before then; what is under way there and in the dies goes on.
void nand_time_hold(struct nand_time *time, uint64_t until_ns);

void nand_time_counters(const struct nand_time *time, struct nand_counters *out);

#endif
