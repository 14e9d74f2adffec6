// SPDX-License-Identifier: Apache-2.0
#include "cmd/sim/recorded.h"
#include "sim/paper.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

int sim_recorded_open(struct sim_recorded *r, const struct option_list *paths)
{
    struct inst_msg msg = {0};
    *r = (struct sim_recorded){.paths = paths};
    drive_recorded_open(&r->drive, NULL);
    if (paths->n > RECORDED_MAX)
        return fail(EXIT_USAGE, "sim: --trace-selections: one file for sparf, one for pages");
    for (size_t i = 0; i < paths->n; i++) {
        if (selections_open(&r->files[i], paths->items[i], &msg))
            return fail(EXIT_FAILED, "sim: --trace-selections: %s", msg.text);
        struct selections_about about;
        selections_about(r->files[i], &about);
        const struct selections **of = about.sparf ? &r->drive.sparf : &r->drive.pages;
        if (*of)
            return fail(EXIT_USAGE, "sim: --trace-selections: two files of %s",
                        about.sparf ? "sparf" : "pages");
        *of = r->files[i];
    }
    return 0;
}

void sim_recorded_close(struct sim_recorded *r)
{
    for (int i = 0; i < RECORDED_MAX; i++)
        selections_free(r->files[i]);
}

int sim_recorded_print(const struct sim_recorded *r, uint32_t page_tokens)
{
    for (int i = 0; i < RECORDED_MAX && r->files[i]; i++) {
        struct inst_msg msg = {0};
        struct selections_about a;
        struct selections_pages p;
        selections_about(r->files[i], &a);
        if (selections_pages(r->files[i], &p, &msg))
            return fail(EXIT_FAILED, "sim: %s: %s", r->paths->items[i], msg.text);
        double all = p.dense ? (double)p.dense : 1;
        struct selection chain = {.tokens = a.token_share, .run = a.run};
        printf("%s: %s, %" PRIu64 " selections over up to %" PRIu64 " tokens: %.4f of the tokens, "
               "in runs of %.2f",
               r->paths->items[i], a.sparf ? "sparf" : "pages", a.records, a.tokens_most,
               a.token_share, a.run);
        if (a.sparf)
            printf(", by %.4f of the channels", a.channels);
        printf("\n    its run: %" PRIu64 " of %" PRIu64 " pages with K and V (%.4f)", p.token,
               p.dense, (double)p.token / all);
        if (a.sparf)
            printf(", %" PRIu64 " channel pages, %" PRIu64 " of K behind them", p.channel, p.tail);
        printf("\n    here: %.4f of pages of %u tokens",
               selections_page_share(r->files[i], page_tokens), page_tokens);
        if (a.sparf) // pages chooses pieces, which begin where pages do
            printf("; %.4f by the statistical model, with runs as long",
                   selection_page_share(&chain, page_tokens));
        putchar('\n');
    }
    return 0;
}

int sim_recorded_phi(struct sim_recorded *r, const struct constants *constants)
{
    for (uint32_t i = 0; i < paper_rows(); i++) {
        struct inst_msg msg = {0};
        struct paper_row model, own;
        if (!paper_row_is_phi(i) || !r->drive.sparf)
            continue;
        int err = paper_row(&model, i, constants, NULL, &msg);
        err = err ? err : paper_row(&own, i, constants, &r->drive.source, &msg);
        if (err)
            return fail(EXIT_FAILED, "sim: %s", msg.text);
        printf("Table III's phi: %.4g in the paper, %.4g by the statistical model, %.4g by the "
               "recorded selections.\n",
               model.paper, model.ours, own.ours);
    }
    return 0;
}
