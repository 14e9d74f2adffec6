// SPDX-License-Identifier: Apache-2.0
// Drives that have lost KV: given up, and their part computed again (loss.c says when).
#ifndef INST_HOST_ENGINE_LOSS_H
#define INST_HOST_ENGINE_LOSS_H

#include "host/engine/engine.h"

// step_run, session_cut and engine_drive_stats, done again after a loss.
int loss_step(struct inst_engine *e, struct inst_segment *segments, size_t count,
              const struct step_progress *progress, struct inst_msg *msg);
int loss_cut(struct inst_session *s, uint64_t length, struct inst_msg *msg);
int loss_stats(struct inst_engine *e, struct drive_stats *stats, struct inst_msg *msg);

// A method other than dense makes KV of decoded tokens that a prompt would not: to compute them
// again, it must be known which ones these are. Notes so much of a session's tokens.
void loss_note(struct inst_session *s, uint64_t first, uint64_t n, bool decoded);
static inline bool loss_notes(const struct inst_engine *e)
{
    return e->loss.recompute && e->attend.method != METHOD_DENSE;
}

// Adds what drives had counted that are not there any more.
void loss_add_counts(struct drive_stats *stats, const struct drive_stats *before);
// What emulated flash says of itself, on top of what is there.
void loss_modelled_counts(struct inst_drive_stats *out, const struct store_modelled *modelled);
void loss_drive_counts(struct inst_drive_stats *out, const struct drive_stats *stats);

#endif
