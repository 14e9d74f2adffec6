// SPDX-License-Identifier: Apache-2.0
#include "sim/paper.h"

#include <math.h>

static int widen(struct paper_row *rows, const struct constants *c, struct drive_source *drives,
                 struct inst_msg *msg)
{
    for (uint32_t i = 0; i < paper_rows(); i++) {
        struct paper_row row;
        int err = paper_row(&row, i, c, drives, msg);
        if (err)
            return err;
        rows[i].least = fmin(rows[i].least, row.ours);
        rows[i].most = fmax(rows[i].most, row.ours);
    }
    return 0;
}

int paper_ranges(struct paper_row *rows, const struct constants *constants,
                 struct drive_source *drives, struct inst_msg *msg)
{
    for (uint32_t i = 0; i < paper_rows(); i++)
        rows[i].least = rows[i].most = rows[i].ours;
    for (uint32_t i = 0; i < CONSTANT_COUNT; i++) {
        const struct constant_info *info = &constant_infos[i];
        if (info->kind != CONSTANT_ASSUMED)
            continue;
        for (int end = 0; end < 2; end++) {
            struct constants c = *constants;
            double rms;
            *constant_at(&c, i) = end ? info->most : info->least;
            if (*constant_at(&c, i) == ((const double *)constants)[i])
                continue;
            int err = sim_fit(&c, &rms, drives, msg);
            err = err ? err : widen(rows, &c, drives, msg);
            if (err)
                return err;
        }
    }
    return 0;
}
