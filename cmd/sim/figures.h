// SPDX-License-Identifier: Apache-2.0
// A figure as numbers and as a drawing: NAME.csv and NAME.svg in a folder.
#ifndef INST_CMD_SIM_FIGURES_H
#define INST_CMD_SIM_FIGURES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

enum { FIGURE_SERIES = 12, FIGURE_POINTS = 48 };

struct figure {
    const char *name, *title, *x_label, *y_label;
    bool x_log, y_log;
    size_t n_series, n; // points of each series, at the same x
    const char *series[FIGURE_SERIES];
    double x[FIGURE_POINTS], y[FIGURE_SERIES][FIGURE_POINTS]; // NAN: nothing there
};

// Makes the folder where it is missing. An exit code.
int folder_open(const char *folder);
// A file in it: what `write` puts into it is there as a whole or not at all. An exit code.
int folder_file(const char *folder, const char *name, void (*write)(FILE *file, const void *arg),
                const void *arg);
int figure_write(const char *folder, const struct figure *figure);

#endif
