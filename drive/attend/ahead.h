// SPDX-License-Identifier: Apache-2.0
// Reading ahead. Decode visits the layers in turn, and dense reads do not depend on q: so the rows
// of a sequence's next layers can be read before their ATTEND comes. Each sequence has a cursor of
// its own, so that batches which join, leave or take turns lose nothing; what a sequence that fell
// silent has left in the window makes room for others after one of their rounds.
#ifndef INST_DRIVE_ATTEND_AHEAD_H
#define INST_DRIVE_ATTEND_AHEAD_H

#include "drive/attend/job.h"

// An ATTEND was admitted; `scans`: it reads all rows whatever q is.
void ahead_expect(struct space *space, const struct job *job, bool scans);
// Reads ahead as far as there is room.
void ahead_fetch(struct space *space);
// The sequence ends.
void ahead_forget(struct space *space, struct sequence *sequence);

#endif
