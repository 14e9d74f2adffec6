// SPDX-License-Identifier: Apache-2.0
#include "cmd/sim/real.h"
#include "cmd/options.h"

#include <math.h>
#include <stdio.h>

int sim_real_open(struct sim_real *real, const char *profile, uint32_t sequences,
                  const struct machine *m, const struct workload *w)
{
    struct inst_msg msg = {0};
    int err =
        clusters_new(&real->clusters, &clusters_usual, sequences, 1, drive_heads(m, &w->shape),
                     w->shape.head_dim, (uint64_t)w->input + w->output, &msg);
    if (err)
        return fail(EXIT_FAILED, "sim: --real: %s", msg.text);
    const struct drive_real_options options = {
        .profile = profile,
        .sequences = sequences,
        .content = {clusters_content_kv, clusters_content_query, real->clusters}};
    drive_real_source_open(&real->drive, &options);
    return 0;
}

void sim_real_close(struct sim_real *real)
{
    clusters_free(real->clusters);
}

void sim_real_print(const struct sim_real *real, const struct machine *m, const struct workload *w)
{
    static const char *const names[] = {"dense", "sparf", "pages"};
    for (int i = 0; i < 3; i++) {
        const struct drive_real_line *line = &real->drive.lines[i];
        for (int j = 0; j < 2 && line->known; j++) {
            const struct drive_timing *t = &line->at[j];
            const struct drive_real_report *r = &line->report[j];
            printf(
                "real drive, %s: %u heads, a layer of %u sequences of %.0f tokens (%u run): %.4g "
                "ms, "
                "%.3g GB/s, %.3f of dense; prefill writes %.3g GB/s, %.4f programmed "
                "and %.4f erased for each byte of K and V\n",
                names[i], drive_heads(m, &w->shape), drive_sequences(m, w), line->context[j],
                (uint32_t)fmin(real->drive.options.sequences, drive_sequences(m, w)),
                1e3 * t->seconds, t->bytes / t->seconds / 1e9, t->bytes / t->dense,
                r->write_rate / 1e9, r->programmed, r->erased);
        }
    }
}
