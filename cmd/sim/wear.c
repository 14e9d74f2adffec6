// SPDX-License-Identifier: Apache-2.0
#include "cmd/sim/wear.h"
#include "cmd/options.h"

#include <stdio.h>

#define YEAR (365.25 * 86400)

// Years of the arithmetic (every byte programmed once, and its record, on all blocks alike), and
// by the blocks that this drive erased. Both at the speed that the model of the system has.
static int print_row(enum system_id id, const struct drive_wear_report *r, const struct machine *m,
                     const struct workload *w, const struct constants *c)
{
    struct sim_result system;
    struct inst_msg msg = {0};
    if (sim_run(&system, id, m, w, c, NULL, &msg))
        return fail(EXIT_FAILED, "sim: %s: %s", system_names[id], msg.text);
    double all = (double)w->input + w->output,
           rate = system.tokens_per_s * all / w->output, // that are stored in a second
        own = rate * r->sequences / w->batch;            // of these, on this drive
    double erased = r->erased / r->tokens;
    printf("| %s | %u x %u | %.1f | %.4f | %.4f | %.4f | %.4f | %llu / %.2f / %llu | %.2f | %.3g | "
           "%.3g |\n",
           system_names[id], r->heads, r->sequences, r->kv / 1e9, r->accepted / r->kv,
           r->programmed / r->accepted, r->programmed / r->kv, r->erased / r->kv,
           (unsigned long long)r->least, r->mean, (unsigned long long)r->most, r->deviation,
           system.endurance / rate / YEAR,
           m->csd.capacity_bytes * m->csd.cycles / erased / own / YEAR);
    return 0;
}

int sim_wear(const bool wanted[SYSTEM_COUNT], const struct drive_wear_options *options,
             const struct machine *m, const struct workload *w, const struct constants *constants)
{
    static const struct {
        enum system_id system;
        enum method_kind method;
    } systems[] = {
        {SIM_insta, SIM_DENSE}, {SIM_insta_sparf, SIM_SPARF}, {SIM_insta_pages, SIM_PAGES}};
    printf("| system | heads x sequences | K and V, GB | accepted / K and V | WAF: programmed / "
           "accepted "
           "| programmed / K and V | erased / K and V | erases of a block: least / mean / most | "
           "deviation | years, arithmetic | years, by erases |\n"
           "|---|---|---|---|---|---|---|---|---|---|---|\n");
    for (size_t i = 0; i < sizeof systems / sizeof *systems; i++) {
        struct drive_wear_report report;
        struct inst_msg msg = {0};
        if (!wanted[systems[i].system])
            continue;
        if (drive_wear_run(&report, options, m, w, systems[i].method, &msg))
            return fail(EXIT_FAILED, "sim: --wear: %s: %s", system_names[systems[i].system],
                        msg.text);
        int code = print_row(systems[i].system, &report, m, w, constants);
        if (code)
            return code;
        fflush(stdout);
    }
    return 0;
}
