// SPDX-License-Identifier: Apache-2.0
// CONFIG and REMOVE: spaces come into being and end. What a space is promised (plan.c) is taken
// from the drive's DRAM here, once and in full, so that no other space can be promised it again;
// beyond that a space takes from what nobody has been promised. Row caches do too, and give way.
#include "drive/control/internal.h"
#include "base/checked.h"
#include "drive/attend/ahead.h"

#include <string.h>

static int close_config(struct drive *drive, struct space *space, int status)
{
    if (space->walk)
        walk_close(space->walk);
    budget_reserve(&drive->tickets, drive->tickets.reserved - space->promised_tickets, "", NULL);
    budget_reserve(&drive->tables, drive->tables.reserved - space->promised_tables, "", NULL);
    space_close(space);
    return status;
}

// Takes what the plan promises; all of it is still there.
static int promise(struct drive *drive, struct space *space, const struct control_plan *plan)
{
    struct inst_msg *msg = &drive->msg;
    int status = budget_reserve(&space->own, plan->promised, "a space", msg);
    if (!status)
        status = budget_reserve(&drive->tickets, drive->tickets.reserved + plan->tickets, "tickets",
                                msg);
    space->promised_tickets = status ? 0 : plan->tickets;
    if (!status)
        status = budget_reserve(&drive->tables, drive->tables.reserved + plan->tables,
                                "flash allocation", msg);
    space->promised_tables = status ? 0 : plan->tables;
    return status;
}

static int open_space(struct drive *drive, uint32_t id, const struct space_config *config,
                      const struct control_plan *plan, struct space **out)
{
    struct inst_msg *msg = &drive->msg;
    struct space *space;
    struct walk *walk = NULL;
    int status = pool_reserve_scratch(drive->env.pool, plan->scratch, msg);
    if (!status)
        status = space_open(&space, id, config, plan->streams, drive->flash, drive->segments,
                            &drive->budget, msg);
    if (status)
        return status;
    space->views = drive->env.views;
    status = promise(drive, space, plan);
    if (!status)
        status = space_open_frames(space, &plan->frames, plan->reserve, plan->level, msg);
    if (!status)
        status = walk_open(&walk, &drive->env, space, plan->level, msg);
    space->walk = walk;
    if (status)
        return close_config(drive, space, status);
    frames_set_window(space->frames, plan->ahead);
    *out = space;
    return 0;
}

// What the allocation of flash keeps of spaces that have gone: a new promise covers it.
static uint64_t tables_left(const struct drive *drive)
{
    uint64_t used = drive->tables.used, known = max_u64(drive->tables.reserved, drive->own_tables);
    return used - min_u64(used, known);
}

// DRAM that nobody has.
static uint64_t unused(const struct drive *drive)
{
    return drive->budget.limit - drive->budget.used + tables_left(drive);
}

// DRAM that a space may be promised: free, or merely kept by caches.
static uint64_t spare(const struct drive *drive)
{
    uint64_t bytes = unused(drive);
    for (const struct space *space = drive->spaces; space; space = space->next) {
        uint64_t used = space->own.used, promised = space->own.reserved;
        bytes += min_u64(frames_spare(space->frames), used - min_u64(used, promised));
    }
    return bytes + tickets_kept(drive);
}

// A plan that fits, and the room for it. WAIT: what is kept is in use right now.
static int make_plan(struct drive *drive, struct space_config *config, struct control_plan *plan)
{
    struct inst_msg *msg = &drive->msg;
    const struct flash_geometry *g = &drive->flash->geometry;
    // Plans count the drive's own structures, which are in use already.
    uint64_t own = drive->own_bytes, most = spare(drive) + own;
    struct drive_plan chosen;
    int status = 0;
    if (!config->group_tokens) {
        status = drive_plan(&chosen, g, config, most, msg);
        config->group_tokens = chosen.group_tokens;
    }
    uint64_t free = unused(drive) + own;
    if (!status)
        status = control_plan(plan, &drive->env, g, config, free, drive->row_cache != 0, msg);
    if (!status && plan->min_bytes > most)
        status = inst_fail(msg, INST_ENOMEM,
                           "CONFIG: %llu bytes of DRAM are left, this space needs at least %llu",
                           (unsigned long long)most, (unsigned long long)plan->min_bytes);
    if (status || plan->min_bytes <= free)
        return status;
    make_room(drive, plan->min_bytes - free);
    free = unused(drive) + own;
    if (plan->min_bytes > free)
        return WAIT;
    return control_plan(plan, &drive->env, g, config, free, drive->row_cache != 0, msg);
}

static bool same_config(const struct space_config *a, const struct space_config *b)
{
    uint8_t x[CONFIG_BYTES], y[CONFIG_BYTES];
    space_config_encode(x, a);
    space_config_encode(y, b);
    return !memcmp(x, y, CONFIG_BYTES);
}

int do_config(struct drive *drive, struct request *request, uint64_t *result)
{
    struct space_config config, asked;
    struct control_plan plan;
    struct space *space = find_space(drive, request->command.space);
    if (space_config_decode(&config, request->table, request->table_bytes))
        return inst_fail(&drive->msg, INST_EINVAL, "CONFIG: malformed table");
    if (space && !same_config(&space->asked, &config))
        return inst_fail(&drive->msg, INST_EEXIST, "CONFIG: space %u exists and is another one",
                         request->command.space);
    asked = config;
    int status = space ? 0 : make_plan(drive, &config, &plan);
    if (!status && !space) {
        plan.frames.cache_bytes = drive->row_cache;
        status = open_space(drive, request->command.space, &config, &plan, &space);
        if (status)
            return status;
        space->asked = asked;
        space->next = drive->spaces;
        drive->spaces = space;
    }
    *result = status ? 0 : space->config.group_tokens;
    return status;
}

// ---- REMOVE ------------------------------------------------------------------------------------

// Jobs let go of the space. False: some still look at it.
static bool leave_jobs(struct drive *drive, const struct space *space)
{
    bool left = true;
    for (int i = 0; i < MAX_TICKETS; i++) {
        struct job *job = &drive->jobs[i];
        if (job->state == JOB_FREE || job->space != space)
            continue;
        if (job->state == JOB_ADMITTED && !job_runnable(job))
            job_cancel(drive, job); // a READ that nobody has collected
        if (job->state == JOB_DONE)
            job->space = NULL; // its result is its own
        left &= job->state != JOB_ADMITTED;
    }
    return left;
}

int do_remove(struct drive *drive, const struct request *request)
{
    struct space *space = find_space(drive, request->command.space);
    if (!space)
        return 0; // a repetition
    if (!leave_jobs(drive, space))
        return WAIT;
    struct sequence *sequence;
    while ((sequence = space_next(space, NULL))) {
        ahead_forget(space, sequence);
        space_remove(space, sequence);
    }
    space_retry(space);
    if (streams_working(space) || !space_swept(space) || frames_in_flight(space->frames) ||
        !walk_idle(space->walk))
        return WAIT;
    struct space **link = &drive->spaces;
    while (*link != space)
        link = &(*link)->next;
    *link = space->next;
    close_config(drive, space, 0);
    tickets_shrink(drive);
    return 0;
}
