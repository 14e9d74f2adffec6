// SPDX-License-Identifier: Apache-2.0
// Runs the units of all jobs of a space. See method.h for what a unit is.
#ifndef INST_DRIVE_ATTEND_WALK_H
#define INST_DRIVE_ATTEND_WALK_H

#include "drive/attend/method.h"
#include "drive/engine.h"
#include "drive/selection.h"
#include "kernels/kernels.h"

enum { UNITS_MAX = 64, METHODS_MAX = 8, SERVED_MAX = 3 };

// What attention needs of its drive.
struct attend_env {
    struct engine *engine;
    struct pool *pool; // scratch memory of its workers
    const struct kernels *kernels;
    bool views; // the flash may be memory
    // Known methods; NULL behind the last one.
    const struct method *methods[METHODS_MAX + 1];
    uint64_t attended, from_flash, programming; // tokens
    drive_selection_fn *selected;               // NULL, or to be told
    void *selected_user;
};
// Fills in the methods: those that every drive has, then the caller's (NULL: none).
void attend_methods(struct attend_env *env, const struct method *const *extra);
// The method of that number, NULL: there is none.
const struct method *attend_method(const struct attend_env *env, uint32_t id);

// Which step of the arithmetic is under way.
enum walk_stage { STAGE_COLLECT, STAGE_CHECK, STAGE_COMPUTE, STAGE_FOLD, STAGE_THINK };

struct walk {
    struct attend_env *env;
    struct space *space;
    const struct method *methods[SERVED_MAX + 1]; // that it serves, NULL behind the last one
    struct method_state *states[SERVED_MAX];
    struct unit units[UNITS_MAX], *free_units;
    struct unit *first, **last;
    struct unit *partial; // whose newest piece is partly acquired
    enum walk_stage stage;
    struct engine_task work;
    struct engine_work counted; // of what is about to be submitted
    bool busy;                  // work is with the engine
    uint64_t think_ns;          // that it took to think, in all
    size_t batch;               // pieces computed at a time, at most
    struct unit_task *ready, *tasks;
    size_t n_tasks;
    struct frame **unchecked;
    size_t n_unchecked;
};

// What a walk needs for a space of this configuration, its methods included.
struct walk_plan {
    uint64_t bytes;
    uint32_t rows, pages, pieces, frames; // as method_plan, of all methods together
    uint64_t window;                      // bytes that the pieces of one method may have under way
    size_t scratch;
};
int walk_plan(struct walk_plan *plan, const struct attend_env *env,
              const struct flash_geometry *geometry, const struct space_config *config,
              const struct stream *streams, unsigned level, struct inst_msg *msg);

// Opens the walk of a space and the methods that it serves: dense attention and READ always, that
// of its configuration too.
int walk_open(struct walk **out, struct attend_env *env, struct space *space, unsigned level,
              struct inst_msg *msg);
void walk_close(struct walk *walk);
// NULL: the space does not serve it.
struct method_state *walk_state(const struct walk *walk, const struct method *method);

// Starts units of the job as far as there is room, and acquires pieces for all units; true when
// something moved. Jobs come in the order of their admission.
bool walk_start(struct walk *walk, struct job *job);
bool walk_fetch(struct walk *walk);
// Some unit still wants pieces: not the time to read ahead.
bool walk_wants(const struct walk *walk);
// Arithmetic on what is ready; true when something moved.
bool walk_compute(struct walk *walk, uint64_t now_ns);
// All units of the job have been started and have ended.
bool job_ended(const struct job *job);
bool walk_idle(const struct walk *walk);

#endif
