// SPDX-License-Identifier: Apache-2.0
// Which faults the drive still has. See interleave_harness.h.
#include "interleave_harness.h"

const struct known_fault known_faults[FAULTS] = {
    [FAULT_ROW_OF_ANOTHER] = {"a row of another sequence comes back with status 0", false},
    [FAULT_READ_ERROR_LASTS] = {"a transient read error lasts", false},
    [FAULT_REFUSAL_CHANGES_STATE] = {"a refused command changes state", false},
    [FAULT_TICKETS_STAY] = {"a ticket whose host is gone never comes back", false},
    [FAULT_TICKET_MEMORY_STAYS] = {"the memory of a collected ticket never comes back", false},
    [FAULT_DRAM_PROMISED_TWICE] = {"DRAM is promised to two spaces", false},
    [FAULT_TEXT_OF_ANOTHER] = {"a completion has the error text of another command", false},
    [FAULT_DERIVED_PAGE_FAILS] = {"a rotten derived page fails an ATTEND whose K is whole", false},
    [FAULT_PROGRAM_ERROR_KILLS] = {"a failed program kills a sequence whose row is in DRAM", false},
    [FAULT_REPEATS_REFUSED] = {"a repeated CONFIG, FORK or RECLAIM is refused", false},
    [FAULT_REFUSED_APPEND_STARVES] = {"a refused append keeps a frame from all others", false},
    [FAULT_SUMMARY_LOSES_SEGMENT] = {"a segment whose summary failed is never used again", false},
    [FAULT_WAITING_FORK_SKIPPED] = {"a FORK that had to wait is left out", false},
};
