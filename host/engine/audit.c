// SPDX-License-Identifier: Apache-2.0
#include "host/engine/audit.h"
#include "base/checked.h"
#include "base/le.h"
#include "host/engine/engine.h"

#include <math.h>
#include <string.h>

int audit_open(struct inst_engine *e, uint64_t sessions, struct inst_msg *msg)
{
    struct audit *a = &e->audit;
    if (!(a->share > 0) || e->attend.method == METHOD_DENSE)
        return 0;
    uint64_t logits;
    if (!checked_mul(sessions, e->config.vocab, &logits))
        return inst_fail(msg, INST_ENOMEM, "%llu sessions: too many to audit",
                         (unsigned long long)sessions);
    a->dense = budget_alloc(&e->budget, logits, sizeof *a->dense, "logits of audits", msg);
    a->there = budget_alloc(&e->budget, sessions, sizeof *a->there, "audits", msg);
    a->segment = budget_alloc(&e->budget, sessions, sizeof *a->segment, "audits", msg);
    return a->dense && a->there && a->segment ? 0 : INST_ENOMEM;
}

void audit_close(struct inst_engine *e)
{
    budget_free(&e->budget, e->audit.dense);
    budget_free(&e->budget, e->audit.there);
    budget_free(&e->budget, e->audit.segment);
}

bool audit_is_due(struct inst_engine *e)
{
    double step = (double)e->audit.steps++;
    return (uint64_t)((step + 1) * e->audit.share) > (uint64_t)(step * e->audit.share);
}

void audit_dense(struct inst_engine *e, const struct inst_session *s, const float *logits)
{
    size_t vocab = e->config.vocab;
    memcpy(e->audit.dense + s->place * vocab, logits, vocab * sizeof *logits);
    e->audit.there[s->place] = true;
}

// The first of the largest, as greedy sampling has it.
static size_t likeliest(const float *logits, size_t n)
{
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        best = logits[i] > logits[best] ? i : best;
    return best;
}

// log of the sum of e to each
static double log_sum(const float *logits, size_t n)
{
    double most = (double)logits[likeliest(logits, n)], sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += exp((double)logits[i] - most);
    return most + log(sum);
}

// From p to q, in nats. No term is below 0 in this form, and all are 0 where nothing differs.
static double divergence(const float *p, const float *q, size_t n)
{
    double p_sum = log_sum(p, n), q_sum = log_sum(q, n), kl = 0;
    for (size_t i = 0; i < n; i++) {
        double log_p = (double)p[i] - p_sum, log_q = (double)q[i] - q_sum, weight = exp(log_p);
        kl += weight * (log_p - log_q) - weight + exp(log_q);
    }
    return fmax(kl, 0);
}

void audit_compare(struct inst_engine *e, const struct inst_session *s, const float *logits)
{
    struct audit *a = &e->audit;
    size_t vocab = e->config.vocab;
    if (!a->there || !a->there[s->place])
        return;
    a->there[s->place] = false;
    const float *dense = a->dense + s->place * vocab;
    double kl = divergence(dense, logits, vocab);
    a->rows++;
    a->kl_sum += kl;
    a->kl_most = fmax(a->kl_most, kl);
    a->flips += likeliest(dense, vocab) != likeliest(logits, vocab);
}

void audit_captured(struct inst_engine *e, const unsigned char *share, size_t heads)
{
    struct audit *a = &e->audit;
    for (size_t i = 0; i < heads; i++) {
        double captured = (double)le_getf32(share + 4 * i);
        a->captured_sum += captured;
        a->captured_least = a->heads++ ? fmin(a->captured_least, captured) : captured;
    }
}

size_t audit_counters(const struct inst_engine *e, const struct drive_stats *drive,
                      struct inst_counter out[AUDIT_COUNTERS])
{
    const struct audit *a = &e->audit;
    double audits = (double)drive->audits, heads = (double)a->heads, rows = (double)a->rows;
    const struct inst_counter all[] = {
        {"predicted_mean", "mean share of softmax weight that chosen tokens are predicted to hold",
         heads > 0 ? a->captured_sum / heads : 0},
        {"predicted_worst", "the least of a query head", heads > 0 ? a->captured_least : 0},
        {"audit_read_bytes", "read by audits only",
         (double)(drive->audit_read_bytes + a->read_bytes)},
        {"audit_seconds", "that dense steps of audits took, in no other time", a->seconds},
        {"audits", "query heads whose captured mass was measured", audits},
        {"captured_mean", "of these, the mean share of softmax weight held by the chosen tokens",
         audits > 0 ? 1e-6 * (double)drive->captured_sum / audits : 0},
        {"captured_worst", "of these, the least", 1e-6 * (double)drive->captured_worst},
        {"audited_tokens", "predictions that dense attention was asked for, too", rows},
        {"kl_mean", "of these, the mean divergence from dense attention's, in nats",
         rows > 0 ? a->kl_sum / rows : 0},
        {"kl_worst", "the largest", a->kl_most},
        {"flips", "of these, those whose likeliest token is another one", (double)a->flips},
    };
    _Static_assert(sizeof all / sizeof *all <= AUDIT_COUNTERS, "all of them fit");
    memcpy(out, all, sizeof all);
    return sizeof all / sizeof *all;
}
