// SPDX-License-Identifier: Apache-2.0
#include "sim/drive_timing.h"
#include "sim/selections.h"

#include <math.h>

static int recorded_timing(struct drive_source *source, struct drive_timing *out,
                           const struct machine *machine, const struct workload *workload,
                           enum method_kind method, const struct selection *selection,
                           double context, struct inst_msg *msg)
{
    const struct drive_recorded *d = (const struct drive_recorded *)source;
    const struct selections *recorded = method == SIM_SPARF   ? d->sparf
                                        : method == SIM_PAGES ? d->pages
                                                              : NULL;
    struct selection own;
    if (recorded) {
        struct selections_about about;
        selections_about(recorded, &about);
        own = *selection;
        own.recorded = recorded;
        own.tokens = about.token_share;
        own.run = about.run;
        if (about.channels > 0)
            own.channels = about.channels;
        selection = &own;
    }
    if (d->inner)
        return d->inner->timing(d->inner, out, machine, workload, method, selection, context, msg);
    return drive_timing(out, machine, workload, method, selection, context, msg);
}

void drive_recorded_open(struct drive_recorded *recorded, struct drive_source *inner)
{
    *recorded = (struct drive_recorded){.source = {.timing = recorded_timing}, .inner = inner};
}
