// SPDX-License-Identifier: Apache-2.0
#include "cmd/sim/figures.h"
#include "bench/chart.h"
#include "cmd/options.h"
#include "cmd/output_file.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

int folder_open(const char *folder)
{
    struct stat st;
    if (mkdir(folder, 0777) && errno != EEXIST)
        return fail(EXIT_FAILED, "sim: -o: '%s': %s", folder, strerror(errno));
    if (stat(folder, &st) || !S_ISDIR(st.st_mode))
        return fail(EXIT_FAILED, "sim: -o: '%s' is not a folder", folder);
    return 0;
}

int folder_file(const char *folder, const char *name, void (*write)(FILE *file, const void *arg),
                const void *arg)
{
    char path[PATH_MAX];
    if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path)
        return fail(EXIT_FAILED, "sim: -o: '%s' is too long", folder);
    struct output_file out = {.path = path};
    const struct option row = {"-o", 0, OPTION_OUTPUT, &out, 0, 0, "DIR", ""};
    const struct options options = {"sim", NULL, "", &row, 1};
    int code = output_files_open(&options);
    if (!code) {
        write(out.stream, arg);
        code = output_file_close(&out);
    }
    options_free(&options);
    return code;
}

static void write_csv(FILE *f, const void *arg)
{
    const struct figure *g = arg;
    fprintf(f, "%s", g->x_label);
    for (size_t s = 0; s < g->n_series; s++)
        fprintf(f, ",%s", g->series[s]);
    fputc('\n', f);
    for (size_t i = 0; i < g->n; i++) {
        fprintf(f, "%.6g", g->x[i]);
        for (size_t s = 0; s < g->n_series; s++)
            if (isfinite(g->y[s][i]))
                fprintf(f, ",%.6g", g->y[s][i]);
            else
                fputc(',', f);
        fputc('\n', f);
    }
}

static void write_svg(FILE *f, const void *arg)
{
    const struct figure *g = arg;
    struct chart_series series[FIGURE_SERIES];
    for (size_t s = 0; s < g->n_series; s++)
        series[s] = (struct chart_series){g->series[s], g->x, g->y[s], g->n};
    const struct chart chart = {.title = g->title,
                                .x_label = g->x_label,
                                .y_label = g->y_label,
                                .x_log = g->x_log,
                                .y_log = g->y_log,
                                .series = series,
                                .n_series = g->n_series};
    (void)charts_write(f, &chart, 1);
}

int figure_write(const char *folder, const struct figure *g)
{
    char name[64];
    snprintf(name, sizeof name, "%s.csv", g->name);
    int code = folder_file(folder, name, write_csv, g);
    if (code)
        return code;
    snprintf(name, sizeof name, "%s.svg", g->name);
    return folder_file(folder, name, write_svg, g);
}
