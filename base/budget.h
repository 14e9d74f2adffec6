// SPDX-License-Identifier: Apache-2.0
// The memory budget: every sizeable allocation asks here first, so that an engine stays inside
// --memory and a refusal is an error message instead of an OOM kill. Large pieces are mapped
// directly, so freeing them gives the memory back to the system. Thread-safe.
//
// A budget may be a part of another one: what it has reserved there is its own, whoever asks for
// memory meanwhile; beyond that it takes from the other one like everybody else. Parts are for one
// thread at a time.
#ifndef INST_BASE_BUDGET_H
#define INST_BASE_BUDGET_H

#include "base/status.h"

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

struct budget {
    uint64_t limit; // bytes
    _Atomic uint64_t used, peak;
    struct budget *whole; // of which this is a part, or NULL
    uint64_t reserved;    // taken from it in advance
};

void budget_init(struct budget *budget, uint64_t limit_bytes);
// An empty part of `whole` without a reservation.
void budget_init_part(struct budget *budget, struct budget *whole);
// Changes a part's reservation; only taking more can fail. `what` as below.
int budget_reserve(struct budget *part, uint64_t bytes, const char *what, struct inst_msg *msg);

// Accounts for memory that somebody else allocates (stacks, a library's buffers).
int budget_take(struct budget *budget, uint64_t bytes, const char *what, struct inst_msg *msg);
void budget_give(struct budget *budget, uint64_t bytes);

// count * size bytes, zeroed, aligned to at least 64 (to 4096 from 64 KiB on, as direct I/O wants).
// NULL with *msg filled (code INST_ENOMEM) when the budget or the system refuses. `what` names the
// thing for the message.
void *budget_alloc(struct budget *budget, uint64_t count, uint64_t size, const char *what,
                   struct inst_msg *msg);
// The same with 4096-byte alignment whatever the size.
void *budget_alloc_pages(struct budget *budget, uint64_t bytes, const char *what,
                         struct inst_msg *msg);
// The block with room for `bytes`, what is in it kept as far as it fits; it may move. NULL gives a
// new one. When it is refused the block stays as it was. Large blocks grow without being copied.
void *budget_resize(struct budget *budget, void *p, uint64_t bytes, const char *what,
                    struct inst_msg *msg);
// A list that grows: room for `need` elements of `size` bytes, of which the first `used` are kept;
// twice as much as before where there is memory for that. *room = elements.
int budget_list(struct budget *budget, void **list, uint64_t *room, uint64_t used, uint64_t need,
                uint64_t size, const char *what, struct inst_msg *msg);
void budget_free(struct budget *budget, void *p); // NULL is fine

// Where the next `bytes` of a block lie, from *at on, which goes on to the next multiple of 64.
// memory NULL: nowhere, so that the same code says how long the block has to be.
static inline void *budget_carve(uint8_t *memory, uint64_t *at, uint64_t bytes)
{
    void *p = memory ? memory + *at : NULL;
    *at += (bytes + 63) / 64 * 64;
    return p;
}

#endif
