// SPDX-License-Identifier: Apache-2.0
// What a method that does not read everything costs in quality, measured while it runs. Every
// decode step tells what share of the softmax its tokens are predicted to hold. A share of the
// steps is audited: the drive also measures that share exactly, and the step's rows are computed a
// second time, with dense attention over the same KV; how far the two predictions are from each
// other is counted. The dense step comes first and the sequences are cut back behind it, as after a
// step that failed: what the sparse step gives has the same bits with audits and without.
#ifndef INST_HOST_ENGINE_AUDIT_H
#define INST_HOST_ENGINE_AUDIT_H

#include "base/status.h"
#include "instinfer_stats.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct inst_engine;
struct drive_stats;

struct audit {
    double share;                 // of the steps that decode
    uint64_t steps;               // so far
    float *dense;                 // logits by the session's place, [max_sessions][vocab]
    bool *there;                  // [max_sessions]
    struct inst_segment *segment; // [max_sessions], of the dense step
    uint64_t rows, flips, heads;
    double kl_sum, kl_most;              // nats
    double captured_sum, captured_least; // as predicted, of `heads` query heads
    uint64_t read_bytes;                 // by dense steps
    double seconds;                      // of them
};

// Before the plan is made: takes what audits need from the budget.
int audit_open(struct inst_engine *e, uint64_t sessions, struct inst_msg *msg);
void audit_close(struct inst_engine *e);
// Whether the step that begins is one to audit; evenly spread, whatever the share is.
bool audit_is_due(struct inst_engine *e);
// Logits of a row's dense step; then those of the row itself.
void audit_dense(struct inst_engine *e, const struct inst_session *s, const float *logits);
void audit_compare(struct inst_engine *e, const struct inst_session *s, const float *logits);
// Shares that the drive has predicted for the query heads of a row.
void audit_captured(struct inst_engine *e, const unsigned char *share, size_t heads);

enum { AUDIT_COUNTERS = 12 };
// For people; returns how many.
size_t audit_counters(const struct inst_engine *e, const struct drive_stats *drive,
                      struct inst_counter out[AUDIT_COUNTERS]);

#endif
