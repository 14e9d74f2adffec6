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
#include "base/size.h"
#include "base/checked.h"
#include "host/engine/system.h"

#include <stdarg.h>
#include <stdio.h>

enum { MEMORY_LEAST = 1 << 20 };

void engine_note(struct inst_engine *e, const char *format, ...)
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
    int err = 0;
    for (uint32_t i = 0; i < e->n_places && !err; i++) {
        const char *directory = store_where_directory(&e->where[i]);
        if (directory)
            err = kv_place_look(&e->place[i], directory, msg);
    }
    return err;
}

void preflight_model(struct inst_engine *e, const struct inst_options *o)
{
    const struct model_config *c = &e->config;
    if (o->memory > e->available) {
        char asked[24], have[24];
        engine_note(e, "--memory %s: only %s are available to this process",
                    size_text(o->memory, asked), size_text(e->available, have));
    }
    if (e->context > c->context)
        engine_note(
            e,
            "a context of %llu tokens: the model was trained for %u, beyond them its text may be "
            "worthless",
            (unsigned long long)e->context, c->context);
    uint32_t in_memory = 0;
    for (uint32_t i = 0; i < e->n_places; i++)
        in_memory += e->place[i].memory;
    if ((!in_memory && !o->read_weights) || o->memory)
        return;
    uint64_t kv =
        (uint64_t)c->layers * c->kv_heads * kv_token_bytes(kv_type_named(o->kv_type), c->head_dim);
    uint64_t tokens = e->context * max_u64(o->max_sessions, 1); // 2^32 * 2^16 at most
    if (!checked_mul(kv, tokens, &kv))
        kv = UINT64_MAX;
    kv = min_u64(kv, o->kv_limit ? o->kv_limit : UINT64_MAX);
    kv = kv / e->n_places * in_memory;
    e->memory = max_u64((e->available - min_u64(kv, e->available)) / 4, MEMORY_LEAST);
    e->budget.limit = e->memory;
}

// What KV may take in a place: of all contexts once, or what it is limited to.
static uint64_t kv_bytes(const struct inst_engine *e, uint32_t place)
{
    return min_u64(e->plan.part[place].kv_bytes, e->plan.part[place].capacity);
}

static bool is_directory(const struct inst_engine *e, uint32_t place)
{
    return store_where_directory(&e->where[place]) != NULL;
}

// The disk of a place, with the other places on it.
static int check_disk(struct inst_engine *e, uint32_t place, const struct inst_options *o,
                      struct inst_msg *msg)
{
    char need[24], have[24];
    uint64_t sum = 0, room = e->place[place].free_bytes;
    for (uint32_t i = 0; i < e->n_places; i++) {
        bool same = is_directory(e, i) && e->place[i].device == e->place[place].device;
        if (same && i < place)
            return 0; // it was checked with that one
        if (same && !checked_add(sum, kv_bytes(e, i), &sum))
            sum = UINT64_MAX;
    }
    if (sum <= room)
        return 0;
    size_text(sum, need);
    size_text(room, have);
    if (o->context)
        return inst_fail(msg, INST_ENOSPC,
                         "%s: KV of a context of %llu tokens takes %s, %s are free",
                         e->where[place].path, (unsigned long long)e->context, need, have);
    engine_note(e,
                "%s: KV of the whole context of %llu tokens takes %s, %s are free: less text fits",
                e->where[place].path, (unsigned long long)e->context, need, have);
    return 0;
}

// Places that are memory, beside the budget.
static int check_memory(struct inst_engine *e, struct inst_msg *msg)
{
    char need[24], budget[24], have[24];
    // A budget that is too large alone was noted as such, and nobody knows how much of it is meant.
    uint64_t ram = 0, directories = 0, meant = e->memory > e->available ? 0 : e->memory, both;
    uint32_t first = e->n_places;
    for (uint32_t i = 0; i < e->n_places; i++) {
        bool is_ram = store_where_is_memory(&e->where[i]);
        uint64_t *sum = is_ram ? &ram : &directories;
        if (!is_ram && !e->place[i].memory)
            continue;
        if (!is_ram && first == e->n_places)
            first = i;
        if (!checked_add(*sum, kv_bytes(e, i), sum))
            *sum = UINT64_MAX;
    }
    size_text(e->memory, budget);
    size_text(e->available, have);
    if (!checked_add(ram, directories, &both) || !checked_add(both, meant, &both))
        both = UINT64_MAX;
    if (ram && both > e->available)
        engine_note(
            e, "KV in memory, up to %s, and --memory %s are more than the %s that are available",
            size_text(ram, need), budget, have);
    if (first == e->n_places)
        return 0;
    size_text(directories, need);
    if (both > e->available)
        return inst_fail(msg, INST_ENOSPC,
                         "%s is memory (%s): KV of a context of %llu tokens takes %s there, beside "
                         "--memory %s, and %s are available",
                         e->where[first].path, e->place[first].type, (unsigned long long)e->context,
                         need, budget, have);
    engine_note(e, "%s is memory (%s): KV there, up to %s, counts beside --memory %s",
                e->where[first].path, e->place[first].type, need, budget);
    return 0;
}

int preflight_plan(struct inst_engine *e, const struct inst_options *o, struct inst_msg *msg)
{
    int err = check_memory(e, msg);
    for (uint32_t i = 0; i < e->n_places && !err; i++) {
        if (is_directory(e, i))
            err = check_disk(e, i, o, msg);
    }
    return err;
}
