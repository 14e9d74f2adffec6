// SPDX-License-Identifier: Apache-2.0
// Drives a drive into every order of events. A run is drawn from a seed (or from a fuzzer's
// bytes): a shape of flash, spaces, memory and faults, then many commands in flight at once, while
// the flash delays, reorders and fails operations. Every answer is compared with the model.
//
// The model is applied in the order in which commands complete, which for those that change state
// is the order of their arrival. What is promised, and so checked:
//   - a command that succeeds has its whole effect, and data returned with status 0 is right;
//   - a command fails only for a reason that is there: what it names, a fault of the flash since it
//     was submitted, memory or flash that the run made scarce;
//   - what was refused leaves no trace, what failed half-way leaves a prefix that repeating it
//     completes;
//   - every command completes once, in bounded time once the flash has done its part, and the drive
//     never sleeps while it could go on;
//   - at the end nothing is left: no memory, no flash, no ticket.
#ifndef INST_TESTS_INTERLEAVE_HARNESS_H
#define INST_TESTS_INTERLEAVE_HARNESS_H

#include "chaos_flash.h"
#include "drive/drive.h"
#include "late_engine.h"

#include <stdio.h>

// ---- known faults ------------------------------------------------------------------------------

// Faults that the drive has today: the named tests of interleave_faults.c assert that they show,
// and runs forgive them. Who repairs one sets it to false in known_faults[]: from then on its test
// asserts that it is gone, and runs do not forgive it any more.
enum fault {
    FAULT_ROW_OF_ANOTHER,
    FAULT_READ_ERROR_LASTS,
    FAULT_REFUSAL_CHANGES_STATE,
    FAULT_TICKETS_STAY,
    FAULT_TICKET_MEMORY_STAYS,
    FAULT_DRAM_PROMISED_TWICE,
    FAULT_TEXT_OF_ANOTHER,
    FAULT_DERIVED_PAGE_FAILS,
    FAULT_PROGRAM_ERROR_KILLS,
    FAULT_REPEATS_REFUSED,
    FAULT_REFUSED_APPEND_STARVES,
    FAULT_SUMMARY_LOSES_SEGMENT,
    FAULT_WAITING_FORK_SKIPPED,
    FAULTS
};
struct known_fault {
    const char *name;
    bool known;
};
extern const struct known_fault known_faults[FAULTS];

static inline bool known(enum fault fault)
{
    return known_faults[fault].known;
}

// ---- the door to the drive: all that knows its call signatures ---------------------------------

struct port {
    struct pool *pool;
    struct flash *flash; // chaos
    struct late_engine engine;
    struct drive *drive;
    uint64_t now_ns;
};

struct port_options {
    struct flash_geometry geometry;
    uint64_t dram_bytes;
    bool views, no_read_ahead, no_row_cache;
    uint32_t late_engine; // its seed, 0: the pool
};

// One command's memory: a table and a data region, alive until it completes.
struct port_buffer {
    void *table;
    size_t table_bytes;
    uint8_t *data;
    size_t data_bytes;
};

int port_open(struct port *port, const struct port_options *options, struct chance *chance,
              struct inst_msg *msg);
void port_close(struct port *port);
// items 0: no table, only data.
struct port_buffer port_buffer_new(uint32_t items, size_t data_bytes);
struct port_buffer port_buffer_raw(size_t table_bytes, size_t data_bytes);
struct port_buffer port_buffer_config(const struct space_config *config);
void port_buffer_table(struct port_buffer *buffer, const struct table_header *header,
                       const struct table_item *items, uint32_t count);
void port_buffer_free(struct port_buffer *buffer);
// False: the queue is full.
bool port_submit(struct port *port, struct command *command, const struct port_buffer *buffer);
// Passes some time and steps once.
size_t port_step(struct port *port, uint64_t ns, struct completion *out, size_t max);
// It can go on without the flash and without time passing.
// The host has gone; false: again after a step.
bool port_abort(struct port *port);
bool port_runnable(const struct port *port);
int port_check(const struct port *port, struct inst_msg *msg); // invariants of the drive
// One command to its completion with the flash as it is; INST_ETIMEOUT when it never comes.
int port_call(struct port *port, struct command command, const struct port_buffer *buffer,
              uint64_t *result);
int port_stats(struct port *port, struct drive_stats *stats);

// ---- runs --------------------------------------------------------------------------------------

struct interleave_options {
    uint64_t seed;
    const uint8_t *bytes; // of a fuzzer instead
    size_t n_bytes;
    uint32_t commands; // 0: as drawn
    FILE *trace;       // every event, NULL: none
};

struct interleave_counts {
    uint64_t runs, commands, completions;
    uint64_t interleavings; // commands that met others, or operations of the flash, in flight
    uint64_t steps, operations, flash_faults;
    uint64_t reads_checked, attends_checked, shadows_checked, quiet_checks;
    uint64_t index_bytes;      // of an index on flash, read
    uint64_t forgiven[FAULTS]; // runs that known faults ended, or excused
};

// One run. 0, or INST_EINTERNAL with *msg saying what went wrong.
int interleave_run(const struct interleave_options *options, struct interleave_counts *counts,
                   struct inst_msg *msg);
void interleave_add(struct interleave_counts *sum, const struct interleave_counts *counts);

#endif
