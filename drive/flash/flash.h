// SPDX-License-Identifier: Apache-2.0
// The flash below the drive, behind one small table: null, RAM, file (later a block device and
// emulated NAND) and wrappers. All of them keep the NAND contract: a block is erased before it is
// programmed, its pages are programmed whole and in ascending order, any programmed page may be
// read. Fresh flash is erased; no page of a block is skipped; a program that fails has used its
// pages up. Operations on one block take effect in the order of submission.
// Nothing here blocks except `wait`; nothing reads a clock: time is handed in.
#ifndef INST_DRIVE_FLASH_FLASH_H
#define INST_DRIVE_FLASH_FLASH_H

#include "base/budget.h"
#include "base/status.h"

#include <stdbool.h>
#include <stdint.h>

struct flash_geometry {
    uint32_t page_bytes;      // smallest program and read; power of two, 512 or more
    uint32_t pages_per_block; // block = erase unit
    uint64_t blocks;          // multiple of dies; block b lies on die b % dies
    uint32_t dies;
    uint32_t channels;   // flash channels; die d sits on flash channel d % channels
    uint32_t read_bytes; // the size from which a read costs little more per request than per byte
    bool no_data;        // null back end: what is read is not what was programmed
    // A request costs as much as reading so many bytes: gaps up to this size are cheaper read than
    // left out. 0: not known.
    uint32_t request_bytes;
    bool oob; // pages keep FLASH_OOB_BYTES beside their data, programmed and read with them
};

// Of a page's spare area what is not the controller's own, for ECC: room for what the FTL says of
// a page.
enum { FLASH_OOB_BYTES = 32 };

enum flash_op { FLASH_READ, FLASH_PROGRAM, FLASH_ERASE, FLASH_SYNC };

// What a device that has to choose does first. Whoever submits already holds back what nobody waits
// for, so a back end need not look at it.
enum flash_priority { FLASH_DEMAND, FLASH_AHEAD, FLASH_BACKGROUND };

// One operation on consecutive pages of one block. Owned by the submitter; the back end holds it
// from submit until poll hands it back. `data` is 4096-byte aligned (page_bytes if that is less).
struct flash_io {
    enum flash_op op;
    enum flash_priority priority;
    uint32_t pages; // READ and PROGRAM: page .. page + pages - 1 of `block`
    uint64_t block; // ERASE: the block; SYNC: unused
    uint32_t page;
    int status; // out: 0 or INST_E*
    void *data; // pages * page_bytes
    // pages * FLASH_OOB_BYTES, where geometry.oob, else nobody looks at it. NULL: zeros are
    // programmed, what was is not wanted.
    void *oob;
    uint64_t done_ns; // out: when it finished (virtual time on timed back ends)
    struct flash_io *next;
    void *owner; // the submitter's
};

struct flash;

struct flash_ops {
    // Takes a list (in the order wished; adjacent reads may be joined into one request). Always
    // accepts; what the device has no room for waits inside. An operation that breaks the NAND
    // contract finishes with INST_EINVAL.
    void (*submit)(struct flash *flash, struct flash_io *list, uint64_t now_ns);
    // Returns finished operations as a list, NULL when there are none now.
    struct flash_io *(*poll)(struct flash *flash, uint64_t now_ns);
    // When the next operation finishes, or a step towards that ends: at or before the last time
    // handed in when one waits to be polled, UINT64_MAX when none is in flight. NULL: not known.
    uint64_t (*next_ns)(struct flash *flash);
    // Sleeps until an operation finishes or max_ns have passed; returns at once when one waits to
    // be polled or none is in flight. NULL where poll never has to wait.
    void (*wait)(struct flash *flash, uint64_t max_ns);
    // Address of a programmed page where the flash is memory itself and reading it is free of any
    // model, else NULL. Valid until the block is erased. May be NULL as a whole.
    const void *(*view)(struct flash *flash, uint64_t block, uint32_t page);
    void (*close)(struct flash *flash);
};

struct flash {
    const struct flash_ops *ops;
    struct flash_geometry geometry;
    char path[160]; // how bytes travel, for people: "io_uring, O_DIRECT" or what it fell back to
};

// Of these only emulated NAND has OOB: the others open with geometry.oob false, whatever is asked.
//
// Reads and programs nothing; every operation finishes at once.
int flash_null_open(struct flash **out, const struct flash_geometry *geometry,
                    struct inst_msg *msg);

// Memory of the whole geometry (not part of any budget; reserved lazily). bytes_per_s limits reads
// and programs together, 0 = unlimited (then pages can be viewed in place).
int flash_ram_open(struct flash **out, const struct flash_geometry *geometry, uint64_t bytes_per_s,
                   struct inst_msg *msg);

struct flash_file_options {
    const char *directory; // a private unnamed temporary file is made here
    struct flash_geometry geometry;
    struct budget *budget; // for bounce buffers of the fallbacks, rings, the probe
    // Measures what a request costs where geometry.request_bytes is 0 (flash_probe, about a tenth
    // of a second); what cannot be measured is FLASH_REQUEST_FILE. NULL: it stays as it is.
    uint64_t (*clock_ns)(void);
    // For tests and `-v`: refuse what the system would allow, so that each fallback can be shown.
    bool no_uring, no_direct;
};
int flash_file_open(struct flash **out, const struct flash_file_options *options,
                    struct inst_msg *msg);

enum {
    FLASH_REQUEST_FILE = 32 << 10, // on an ordinary disk, where nothing better is known
    FLASH_REQUEST_MAX = 256 << 10, // nothing costs more: large reads are no larger either
};
// Measures what a request costs, in bytes of reading, on a flash that nobody has used yet: writes a
// part of it, reads that in small and large pieces, erases it. False: it is too small, too slow or
// memory is short; then nothing is known. The budget gets back what it gave.
bool flash_probe(struct flash *flash, uint64_t (*clock_ns)(void), struct budget *budget,
                 uint32_t *request_bytes);

// Emulated NAND (nand_flash.h): what a profile describes, over memory, a file or nothing. Time is
// what is handed in.
struct flash_nand_options;
// PROFILE[:SIZE][,KEY=VALUE]...; flash_nand_options_free gives it back, NULL is fine.
int flash_nand_options_new(struct flash_nand_options **out, const char *text, struct inst_msg *msg);
void flash_nand_options_free(struct flash_nand_options *options);
struct flash_nand_about {
    struct flash_geometry geometry;
    const char *directory; // where payload lies, NULL: in memory or nowhere
    bool in_memory;
    bool paced; // time shall be the real one; else it goes on as nothing else is to be done
    const char *profile; // its name or path
    bool no_engine;      // flash alone shall take time
};
struct flash_nand_about flash_nand_about(const struct flash_nand_options *options);
// Pages that are read pass a filter of that rate in each flash controller.
void flash_nand_options_filter(struct flash_nand_options *options, uint64_t bytes_per_s);
// The geometry may have fewer blocks than the options'.
int flash_nand_open(struct flash **out, const struct flash_nand_options *options,
                    const struct flash_geometry *geometry, struct budget *budget,
                    struct inst_msg *msg);
// Flash channels begin nothing before then: what computes has the DRAM that pages go into.
void flash_nand_hold(struct flash *flash, uint64_t until_ns);
struct flash_nand_counters {
    uint64_t busy_ns;             // while any operation was outstanding
    uint64_t channel_ns, die_ns;  // that channels and dies were busy, summed over them
    uint64_t read_pages, retries; // retries beside them
    uint64_t program_pages, erases, suspends;
    uint64_t joined_pages; // beyond the first of a multi-plane operation
    uint64_t bad_blocks;   // from the beginning
    uint64_t grown_bad;    // blocks that have gone bad
    uint64_t lost_blocks;  // of both, those without a spare
    uint64_t failed_programs, failed_erases;
    uint64_t failed_reads; // of pages that ECC does not get right any more
    uint64_t most_erases;  // of a block
};
void flash_nand_counters(const struct flash *flash, struct flash_nand_counters *out);
// blocks[i]: how many were erased i times, for i < n - 1; the last one: those erased more often.
void flash_nand_erase_counts(const struct flash *flash, uint64_t *blocks, size_t n);

// The file below, for measuring the raw disk beside it (block b lies at b * block size; only
// programmed pages have extents). Stays the back end's. -1 if `flash` is none of these.
int flash_file_descriptor(const struct flash *flash);
// Wrapper for tests: takes ownership of `inner` and injects faults by a seeded plan.
struct flash_fault_plan {
    uint64_t seed;
    // Chance in 1/1,000,000 of each operation to suffer the fault.
    uint32_t read_error, program_error, erase_error, short_transfer, no_space, bit_flip, delay;
    uint64_t after; // operations that pass untouched first
    uint64_t count; // at most so many faults in all (0 = no limit)
};
int flash_fault_open(struct flash **out, struct flash *inner, const struct flash_fault_plan *plan,
                     struct inst_msg *msg);
uint64_t flash_fault_count(const struct flash *wrapper); // faults injected so far

// Wrapper: tells of every operation, in order, when it is handed over. Takes ownership of `inner`.
typedef void flash_trace_fn(void *user, const struct flash_io *io, uint64_t now_ns);
int flash_trace_open(struct flash **out, struct flash *inner, flash_trace_fn *fn, void *user,
                     struct inst_msg *msg);

// Wrapper for tests: fails (INST_EINVAL, and counts) whatever breaks the NAND contract.
int flash_check_open(struct flash **out, struct flash *inner, struct inst_msg *msg);
uint64_t flash_check_violations(const struct flash *wrapper);

int flash_geometry_check(const struct flash_geometry *geometry, struct inst_msg *msg);

static inline void flash_close(struct flash *flash)
{
    if (flash)
        flash->ops->close(flash);
}

#endif
