// SPDX-License-Identifier: Apache-2.0
// What the machine has to say about a place for KV, a context and a budget, before any work begins.
// What cannot end well is refused; what the user should know is noted, one line each, for whoever
// opened the engine to print.
//
// KV in a directory of a file system that is memory counts as memory: the default budget is a
// quarter of what it leaves, and what does not fit beside the budget is refused. A disk without
// room for a context that was asked for is refused too; for the context that is the model's own
// that is a note, because most runs need a small part of it.
#include "host/engine/engine.h"
#include "base/checked.h"
#include "host/engine/system.h"

#include <stdarg.h>
#include <stdio.h>

enum { MEMORY_LEAST = 1 << 20 };

static void __attribute__((format(printf, 2, 3)))
note(struct inst_engine *e, const char *format, ...)
{
    if (e->n_notes == NOTES_MAX)
        return;
    va_list args;
    va_start(args, format);
    vsnprintf(e->note_text[e->n_notes], sizeof e->note_text[0], format, args);
    va_end(args);
    e->note[e->n_notes] = e->note_text[e->n_notes];
    e->n_notes++;
}

int preflight_place(struct inst_engine *e, const struct inst_options *o, struct inst_msg *msg)
{
    e->available = system_memory_available();
    e->memory = o->memory ? o->memory : max_u64(e->available / 4, MEMORY_LEAST);
    if (o->memory > e->available) {
        char asked[24], have[24];
        note(e, "--memory %s: only %s are available to this process",
             plan_bytes_text(o->memory, asked), plan_bytes_text(e->available, have));
    }
    return e->where.kind == STORE_DIRECTORY ? kv_place_look(&e->place, e->where.path, msg) : 0;
}

void preflight_model(struct inst_engine *e, const struct inst_options *o)
{
    const struct model_config *c = &e->config;
    if (e->context > c->context)
        note(e,
             "a context of %llu tokens: the model was trained for %u, beyond them its text may be "
             "worthless",
             (unsigned long long)e->context, c->context);
    if (!e->place.memory || o->memory)
        return;
    uint64_t kv = (uint64_t)c->layers * c->kv_heads * c->head_dim * 4;
    uint64_t tokens = e->context * max_u64(o->max_sessions, 1); // 2^32 * 2^16 at most
    if (!checked_mul(kv, tokens, &kv))
        kv = UINT64_MAX;
    kv = min_u64(kv, o->kv_limit ? o->kv_limit : UINT64_MAX);
    e->memory = max_u64((e->available - min_u64(kv, e->available)) / 4, MEMORY_LEAST);
    e->budget.limit = e->memory;
}

// What KV may take where it lies: of all contexts once, or what it is limited to.
static uint64_t kv_bytes(const struct inst_engine *e)
{
    return min_u64(e->plan.kv_bytes, e->plan.capacity);
}

static int check_disk(struct inst_engine *e, const struct inst_options *o, struct inst_msg *msg)
{
    char need[24], have[24];
    if (kv_bytes(e) <= e->place.free_bytes)
        return 0;
    plan_bytes_text(kv_bytes(e), need);
    plan_bytes_text(e->place.free_bytes, have);
    if (o->context)
        return inst_fail(msg, INST_ENOSPC,
                         "%s: KV of a context of %llu tokens takes %s, %s are free", e->where.path,
                         (unsigned long long)e->context, need, have);
    note(e, "%s: KV of the whole context of %llu tokens takes %s, %s are free: less text fits",
         e->where.path, (unsigned long long)e->context, need, have);
    return 0;
}

int preflight_plan(struct inst_engine *e, const struct inst_options *o, struct inst_msg *msg)
{
    char need[24], budget[24], have[24];
    // A budget that is too large alone was noted as such, and nobody knows how much of it is meant.
    uint64_t both, meant = e->memory > e->available ? 0 : e->memory;
    if (!checked_add(kv_bytes(e), meant, &both))
        both = UINT64_MAX;
    plan_bytes_text(kv_bytes(e), need);
    plan_bytes_text(e->memory, budget);
    plan_bytes_text(e->available, have);
    if (e->where.kind == STORE_RAM && both > e->available)
        note(e, "KV in memory, up to %s, and --memory %s are more than the %s that are available",
             need, budget, have);
    if (e->where.kind != STORE_DIRECTORY)
        return 0;
    if (e->place.memory && both > e->available)
        return inst_fail(msg, INST_ENOSPC,
                         "%s is memory (%s): KV of a context of %llu tokens takes %s there, beside "
                         "--memory %s, and %s are available",
                         e->where.path, e->place.type, (unsigned long long)e->context, need, budget,
                         have);
    if (e->place.memory)
        note(e, "%s is memory (%s): KV there, up to %s, counts beside --memory %s", e->where.path,
             e->place.type, need, budget);
    return check_disk(e, o, msg);
}
