// SPDX-License-Identifier: Apache-2.0
// Line charts as SVG text: both axes logarithmic or linear, a legend, nothing else. Colours and
// sizes work on light and dark pages.
#ifndef INST_BENCH_CHART_H
#define INST_BENCH_CHART_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

struct chart_series {
    const char *name;
    const double *x, *y; // [n]; values that an axis cannot show are left out
    size_t n;
};

struct chart {
    const char *title, *x_label, *y_label;
    bool x_log, y_log; // x in powers of 2, y in powers of 10
    const struct chart_series *series;
    size_t n_series; // 0: the space stays empty
};

// Panels below each other as one document. False when writing failed.
bool charts_write(FILE *file, const struct chart *charts, size_t count);

#endif
