// SPDX-License-Identifier: Apache-2.0
#include "cmd/eval/show.h"
#include "bench/chart.h"
#include "cmd/options.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BUDGET_TEXT = 16, TITLE = 64, NAME = 32 };

static void budget_text(const struct eval_cell *cell, char out[BUDGET_TEXT])
{
    if (cell->method->whole)
        strcpy(out, "");
    else if (cell->mass > 0)
        snprintf(out, BUDGET_TEXT, "mass %.4g", cell->mass);
    else
        snprintf(out, BUDGET_TEXT, "1/%u", cell->divisor);
}

static double share_read(const struct eval_result *r)
{
    return r->all > 0 ? r->read / r->all : 0;
}

static double share_counted(const struct eval_result *r)
{
    return r->all > 0 ? r->counted / r->all : 0;
}

static double bytes_per_token(const struct eval_result *r)
{
    return r->tokens ? r->read / (double)r->tokens : 0;
}

static void print_row(const struct eval_cell *cell, const struct eval_result *r,
                      const struct eval_result *dense)
{
    char budget[BUDGET_TEXT], method[NAME], gain[24] = "", kl[32] = "";
    snprintf(method, NAME, "%s%s%s", cell->method->name, cell->type ? " " : "",
             cell->type ? cell->type : "");
    struct eval_mean score = eval_mean_of(r, EVAL_SCORE, NULL);
    struct eval_mean less = eval_mean_of(r, EVAL_GAIN, dense);
    struct eval_mean far = eval_mean_of(r, EVAL_KL, NULL);
    budget_text(cell, budget);
    if (r != dense) {
        snprintf(gain, sizeof gain, "%+.1f ± %.1f", 100 * less.mean, 100 * less.error);
        snprintf(kl, sizeof kl, "%.2g ± %.1g", far.mean, far.error);
    }
    // "±" has two bytes and takes one place.
    printf("| %-12s | %9s | %5zu | %5.1f ± %-4.1f | %*s | %*s | %8.4g | %8.1f | %6.3f | %7.3f | "
           "%7.1f |\n",
           method, budget, r->n, 100 * score.mean, 100 * score.error, *gain ? 13 : 12, gain,
           *kl ? 18 : 17, kl, exp(eval_mean_of(r, EVAL_NLL, NULL).mean), bytes_per_token(r) / 1e3,
           share_read(r), share_counted(r), r->index / 1e3);
}

void eval_show_table(const struct eval_block *block, const struct eval_cell *cells, size_t n_cells,
                     bool cached)
{
    printf("\n%s, %llu tokens, row cache %s\n\n", block->task, (unsigned long long)block->tokens,
           cached ? "on" : "off");
    printf("| %-12s | %9s | %5s | %12s | %12s | %17s | %8s | %8s | %6s | %7s | %7s |\n"
           "|---|---|---|---|---|---|---|---|---|---|---|\n",
           "method", "budget", "n", "right %", "less dense", "KL to dense", "ppl", "kB/token",
           "of KV", "counted", "DRAM kB");
    for (size_t i = 0; i < n_cells; i++)
        if (cells[i].cached == cached)
            print_row(&cells[i], &block->results[i], &block->results[0]);
    fflush(stdout);
}

void eval_show_head(FILE *csv)
{
    fputs("task,tokens,method,budget,mass,kv_type,row_cache,n,right,right_error,less_dense,less_"
          "dense_error,"
          "kl,kl_error,nll,nll_error,bytes_per_token,of_kv,counted_of_kv,index_bytes\n",
          csv);
}

void eval_show_csv(FILE *csv, const struct eval_block *block, const struct eval_cell *cells,
                   size_t n_cells)
{
    for (size_t i = 0; i < n_cells; i++) {
        const struct eval_result *r = &block->results[i];
        struct eval_mean m[] = {eval_mean_of(r, EVAL_SCORE, NULL),
                                eval_mean_of(r, EVAL_GAIN, block->results),
                                eval_mean_of(r, EVAL_KL, NULL), eval_mean_of(r, EVAL_NLL, NULL)};
        fprintf(csv, "%s,%llu,%s,%.6g,%.6g,%s,%s,%zu", block->task,
                (unsigned long long)block->tokens, cells[i].method->name, 1.0 / cells[i].divisor,
                cells[i].mass, cells[i].type ? cells[i].type : "f16",
                cells[i].cached ? "on" : "off", r->n);
        for (size_t k = 0; k < sizeof m / sizeof *m; k++)
            fprintf(csv, ",%.6g,%.3g", m[k].mean, m[k].error);
        fprintf(csv, ",%.6g,%.6g,%.6g,%.6g\n", bytes_per_token(r), share_read(r), share_counted(r),
                r->index);
    }
    fflush(csv);
}

// ---- Pictures ----------------------------------------------------------------------------------

struct picture {
    struct chart_series *series;
    char (*names)[NAME];
    double *x, *y;
    char (*titles)[TITLE];
    struct chart *charts;
};

static const char *line_name(const struct eval_cell *cell, char out[NAME])
{
    snprintf(out, NAME, "%s%s%s%s", cell->method->name, cell->mass > 0 ? " by mass" : "",
             cell->type ? " " : "", cell->type ? cell->type : "");
    return out;
}

// One line for each run of cells of one method, and for its masses.
static size_t fill(struct picture *p, size_t at, const struct eval_block *block,
                   const struct eval_cell *cells, size_t n_cells, bool kl)
{
    size_t n = 0;
    struct chart_series *series = p->series + at;
    for (size_t i = 0; i < n_cells; i++) {
        const struct eval_result *r = &block->results[i];
        if (cells[i].cached) // dense has a KL of 0, which no such axis shows, but its colour
            continue;
        const char *name = line_name(&cells[i], p->names[at + n]);
        if (!n || strcmp(series[n - 1].name, name) != 0)
            series[n++] =
                (struct chart_series){.name = name, .x = p->x + at + i, .y = p->y + at + i};
        p->x[at + i] = share_read(r);
        p->y[at + i] =
            kl ? eval_mean_of(r, EVAL_KL, NULL).mean : 100 * eval_mean_of(r, EVAL_SCORE, NULL).mean;
        series[n - 1].n++;
    }
    return n;
}

int eval_show_svg(FILE *svg, const struct eval_block *blocks, size_t n_blocks,
                  const struct eval_cell *cells, size_t n_cells)
{
    size_t panels = 2 * n_blocks, n = panels * n_cells;
    struct picture p = {.series = calloc(n, sizeof *p.series),
                        .names = calloc(n, sizeof *p.names),
                        .x = calloc(n, sizeof *p.x),
                        .y = calloc(n, sizeof *p.y),
                        .titles = calloc(panels, sizeof *p.titles),
                        .charts = calloc(panels, sizeof *p.charts)};
    int code = 0;
    if (!p.series || !p.names || !p.x || !p.y || !p.titles || !p.charts) {
        code = fail(EXIT_FAILED, "out of memory");
    } else {
        for (size_t i = 0; i < panels; i++) {
            const struct eval_block *b = &blocks[i / 2];
            bool kl = i % 2;
            snprintf(p.titles[i], TITLE, "%s, %llu tokens", b->task, (unsigned long long)b->tokens);
            p.charts[i] = (struct chart){.title = p.titles[i],
                                         .x_label = "share of the KV bytes read",
                                         .y_label = kl ? "KL to dense, nats/token" : "right, %",
                                         .x_log = true,
                                         .y_log = kl,
                                         .series = p.series + i * n_cells};
            p.charts[i].n_series = fill(&p, i * n_cells, b, cells, n_cells, kl);
        }
        if (!charts_write(svg, p.charts, panels))
            code = fail(EXIT_FAILED, "--svg: %s", strerror(errno));
    }
    free(p.series);
    free(p.names);
    free(p.x);
    free(p.y);
    free(p.titles);
    free(p.charts);
    return code;
}
