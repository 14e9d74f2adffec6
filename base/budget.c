// SPDX-License-Identifier: Apache-2.0
#include "base/budget.h"
#include "base/checked.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

// Lies directly before every block; what was asked from the system and how to return it.
struct header {
    void *base;
    uint64_t bytes; // taken from the budget and from the system, header included
    uint64_t mapped;
};

enum { SMALL_ALIGN = 64, PAGE_ALIGN = 4096, MAP_FROM = 64 * 1024 };

// The leak sanitizer looks for pointers to blocks in its own heap, unless it is told of a mapping.
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/lsan_interface.h>
static void mapping_is(void *base, uint64_t bytes)
{
    __lsan_register_root_region(base, bytes);
}
static void mapping_was(void *base, uint64_t bytes)
{
    __lsan_unregister_root_region(base, bytes);
}
#else
static void mapping_is(void *base, uint64_t bytes)
{
    (void)base;
    (void)bytes;
}
static void mapping_was(void *base, uint64_t bytes)
{
    (void)base;
    (void)bytes;
}
#endif

void budget_init(struct budget *budget, uint64_t limit_bytes)
{
    *budget = (struct budget){.limit = limit_bytes};
}

void budget_init_part(struct budget *budget, struct budget *whole)
{
    *budget = (struct budget){.limit = UINT64_MAX, .whole = whole};
}

// What a part that uses so much takes from the whole beyond its reservation.
static uint64_t beyond(uint64_t used, uint64_t reserved)
{
    return used - min_u64(used, reserved);
}

int budget_reserve(struct budget *part, uint64_t bytes, const char *what, struct inst_msg *msg)
{
    uint64_t used = part->used, before = part->reserved + beyond(used, part->reserved);
    uint64_t after = max_u64(bytes, used);
    if (after > before) {
        int err = budget_take(part->whole, after - before, what, msg);
        if (err)
            return err;
    } else {
        budget_give(part->whole, before - after);
    }
    part->reserved = bytes;
    return 0;
}

int budget_take(struct budget *budget, uint64_t bytes, const char *what, struct inst_msg *msg)
{
    uint64_t used = atomic_load(&budget->used), next;
    do {
        if (!checked_add(used, bytes, &next) || next > budget->limit)
            return inst_fail(msg, INST_ENOMEM,
                             "%s needs %llu bytes, but only %llu of the memory budget of %llu "
                             "are left",
                             what, (unsigned long long)bytes,
                             (unsigned long long)(budget->limit - min_u64(used, budget->limit)),
                             (unsigned long long)budget->limit);
    } while (!atomic_compare_exchange_weak(&budget->used, &used, next));
    if (budget->whole) {
        uint64_t more = beyond(next, budget->reserved) - beyond(used, budget->reserved);
        int err = more ? budget_take(budget->whole, more, what, msg) : 0;
        if (err) {
            atomic_fetch_sub(&budget->used, bytes);
            return err;
        }
    }
    uint64_t peak = atomic_load(&budget->peak);
    while (peak < next && !atomic_compare_exchange_weak(&budget->peak, &peak, next))
        ;
    return 0;
}

void budget_give(struct budget *budget, uint64_t bytes)
{
    uint64_t used = atomic_fetch_sub(&budget->used, bytes);
    if (budget->whole)
        budget_give(budget->whole,
                    beyond(used, budget->reserved) - beyond(used - bytes, budget->reserved));
}

static void *alloc_aligned(struct budget *budget, uint64_t bytes, size_t align, const char *what,
                           struct inst_msg *msg)
{
    uint64_t total;
    if (!checked_add(bytes, align + sizeof(struct header), &total) || total > PTRDIFF_MAX) {
        inst_fail(msg, INST_ENOMEM, "%s needs %llu bytes, more than can be addressed", what,
                  (unsigned long long)bytes);
        return NULL;
    }
    if (budget_take(budget, total, what, msg))
        return NULL;
    bool mapped = total >= MAP_FROM;
    void *base = mapped
                     ? mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
                     : calloc(1, total);
    if (!base || base == MAP_FAILED) {
        budget_give(budget, total);
        inst_fail(msg, INST_ENOMEM, "%s: the system refused %llu bytes", what,
                  (unsigned long long)total);
        return NULL;
    }
    if (mapped)
        mapping_is(base, total);
    uintptr_t user =
        ((uintptr_t)base + sizeof(struct header) + align - 1) & ~(uintptr_t)(align - 1);
    struct header *header = (struct header *)user - 1;
    *header = (struct header){.base = base, .bytes = total, .mapped = mapped};
    return (void *)user;
}

void *budget_alloc(struct budget *budget, uint64_t count, uint64_t size, const char *what,
                   struct inst_msg *msg)
{
    uint64_t bytes;
    if (!checked_mul(count, size, &bytes)) {
        inst_fail(msg, INST_ENOMEM, "%s: the size of %llu x %llu bytes overflows", what,
                  (unsigned long long)count, (unsigned long long)size);
        return NULL;
    }
    return alloc_aligned(budget, bytes, bytes >= MAP_FROM ? PAGE_ALIGN : SMALL_ALIGN, what, msg);
}

void *budget_alloc_pages(struct budget *budget, uint64_t bytes, const char *what,
                         struct inst_msg *msg)
{
    return alloc_aligned(budget, bytes, PAGE_ALIGN, what, msg);
}

// Of a mapped block: the system moves pages, not bytes.
static void *resize_mapped(struct budget *budget, struct header header, uint64_t before,
                           uint64_t bytes, const char *what, struct inst_msg *msg)
{
    uint64_t total;
    if (!checked_add(bytes, before, &total) || total > PTRDIFF_MAX) {
        inst_fail(msg, INST_ENOMEM, "%s needs %llu bytes, more than can be addressed", what,
                  (unsigned long long)bytes);
        return NULL;
    }
    uint64_t more = total > header.bytes ? total - header.bytes : 0;
    if (more && budget_take(budget, more, what, msg))
        return NULL;
    mapping_was(header.base, header.bytes);
    char *base = mremap(header.base, header.bytes, total, MREMAP_MAYMOVE);
    mapping_is(base == MAP_FAILED ? header.base : base, base == MAP_FAILED ? header.bytes : total);
    if (base == MAP_FAILED) {
        budget_give(budget, more);
        inst_fail(msg, INST_ENOMEM, "%s: the system refused %llu bytes", what,
                  (unsigned long long)total);
        return NULL;
    }
    if (total < header.bytes)
        budget_give(budget, header.bytes - total);
    void *user = base + before;
    *((struct header *)user - 1) = (struct header){.base = base, .bytes = total, .mapped = true};
    return user;
}

void *budget_resize(struct budget *budget, void *p, uint64_t bytes, const char *what,
                    struct inst_msg *msg)
{
    if (!p)
        return budget_alloc(budget, bytes, 1, what, msg);
    struct header header = *((struct header *)p - 1);
    uint64_t before = (uint64_t)((char *)p - (char *)header.base);
    if (header.mapped)
        return resize_mapped(budget, header, before, bytes, what, msg);
    void *other = budget_alloc(budget, bytes, 1, what, msg);
    if (!other)
        return NULL;
    memcpy(other, p, min_u64(header.bytes - before, bytes));
    budget_free(budget, p);
    return other;
}

int budget_list(struct budget *budget, void **list, uint64_t *room, uint64_t used, uint64_t need,
                uint64_t size, const char *what, struct inst_msg *msg)
{
    enum { LEAST = 64 };
    if (need <= *room)
        return 0;
    uint64_t bytes, want[] = {max_u64(max_u64(need, *room * 2), LEAST), need};
    if (!used) { // nothing to be kept: not both at a time
        budget_free(budget, *list);
        *list = NULL;
        *room = 0;
    }
    for (int i = 0; i < 2; i++) {
        void *p = checked_mul(want[i], size, &bytes)
                      ? budget_resize(budget, *list, bytes, what, i ? msg : NULL)
                      : NULL;
        if (p) {
            *list = p;
            *room = want[i];
            return 0;
        }
    }
    return inst_fail(msg, INST_ENOMEM, "%s: too many", what);
}

void budget_free(struct budget *budget, void *p)
{
    if (!p)
        return;
    struct header header = *((struct header *)p - 1);
    if (header.mapped) {
        mapping_was(header.base, header.bytes);
        munmap(header.base, header.bytes);
    } else {
        free(header.base);
    }
    budget_give(budget, header.bytes);
}
