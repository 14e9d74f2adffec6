// SPDX-License-Identifier: Apache-2.0
#include "bench/chart.h"

#include <math.h>

enum { WIDTH = 720, HEIGHT = 340, LEFT = 80, RIGHT = 190, TOP = 40, BOTTOM = 52, COLOURS = 8 };

static const char *const colours[COLOURS] = {"#1f77b4", "#d62728", "#2ca02c", "#ff7f0e",
                                             "#9467bd", "#8c564b", "#17becf", "#7f7f7f"};

struct axis {
    double low, high; // in log units on a logarithmic axis
    double base;      // 0: linear
    double from, to;  // pixels
};

static bool shown(const struct axis *axis, double value)
{
    return isfinite(value) && (axis->base == 0 || value > 0);
}

static double unit(const struct axis *axis, double value)
{
    return axis->base == 0 ? value : log(value) / log(axis->base);
}

static double place(const struct axis *axis, double value)
{
    double share = (unit(axis, value) - axis->low) / (axis->high - axis->low);
    return axis->from + share * (axis->to - axis->from);
}

static struct axis axis_of(const struct chart *chart, bool y, double from, double to)
{
    bool is_log = y ? chart->y_log : chart->x_log;
    struct axis axis = {.low = INFINITY,
                        .high = -INFINITY,
                        .from = from,
                        .to = to,
                        .base = is_log ? y ? 10 : 2 : 0};
    for (size_t s = 0; s < chart->n_series; s++)
        for (size_t i = 0; i < chart->series[s].n; i++) {
            double value = y ? chart->series[s].y[i] : chart->series[s].x[i];
            if (!shown(&axis, value))
                continue;
            axis.low = fmin(axis.low, unit(&axis, value));
            axis.high = fmax(axis.high, unit(&axis, value));
        }
    if (axis.low > axis.high)
        axis.low = axis.high = 0;
    if (axis.base == 0)
        axis.low = fmin(axis.low, 0);
    else if (y)
        axis.low = floor(axis.low);
    if (axis.base != 0 && y)
        axis.high = ceil(axis.high);
    if (axis.low == axis.high)
        axis.high++;
    return axis;
}

// The step between marks: 1, 2 or 5 times a power of ten; at least 1 on a logarithmic axis.
static double step_of(const struct axis *axis)
{
    double rough = (axis->high - axis->low) / 6, power = pow(10, floor(log10(rough)));
    double step = power;
    if (rough / power > 1)
        step = rough / power > 5 ? 10 * power : rough / power > 2 ? 5 * power : 2 * power;
    return axis->base == 0 ? step : fmax(1, round(step));
}

static void put_text(FILE *f, double x, double y, const char *anchor, const char *text)
{
    fprintf(f, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">", x, y, anchor);
    for (; *text; text++)
        if (*text == '<' || *text == '>' || *text == '&')
            fprintf(f, "&#%d;", *text);
        else
            fputc(*text, f);
    fputs("</text>\n", f);
}

static void put_marks(FILE *f, const struct axis *axis, bool y, double across_from,
                      double across_to)
{
    double step = step_of(axis);
    // What is added makes -0 a 0.
    for (double u = (ceil(axis->low / step - 1e-9) + 0.0) * step; u <= axis->high + 1e-9;
         u += step) {
        double value = axis->base == 0 ? u : pow(axis->base, u);
        double at = place(axis, value);
        char text[32];
        if (!y && axis->base == 2 && value >= 1024)
            snprintf(text, sizeof text, "%.3gK", value / 1024);
        else
            snprintf(text, sizeof text, "%.4g", value);
        if (y) {
            fprintf(f, "<path class=\"grid\" d=\"M%.1f %.1fH%.1f\"/>\n", across_from, at,
                    across_to);
            put_text(f, across_from - 6, at + 4, "end", text);
        } else {
            fprintf(f, "<path class=\"grid\" d=\"M%.1f %.1fV%.1f\"/>\n", at, across_from,
                    across_to);
            put_text(f, at, across_from + 18, "middle", text);
        }
    }
}

static void put_series(FILE *f, const struct chart_series *s, size_t index, const struct axis *x,
                       const struct axis *y, double top)
{
    const char *colour = colours[index % COLOURS];
    const char *dash = index / COLOURS % 2 ? " stroke-dasharray=\"5 3\"" : "";
    char letter = 'M';
    fprintf(f, "<path class=\"line\" stroke=\"%s\"%s d=\"", colour, dash);
    for (size_t i = 0; i < s->n; i++)
        if (shown(x, s->x[i]) && shown(y, s->y[i])) {
            fprintf(f, "%c%.1f %.1f", letter, place(x, s->x[i]), place(y, s->y[i]));
            letter = 'L';
        }
    fputs("\"/>\n", f);
    for (size_t i = 0; i < s->n; i++)
        if (shown(x, s->x[i]) && shown(y, s->y[i]))
            fprintf(f, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"2.6\" fill=\"%s\"/>\n",
                    place(x, s->x[i]), place(y, s->y[i]), colour);
    double at = top + TOP + 8 + 17 * (double)index;
    fprintf(f, "<path class=\"line\" stroke=\"%s\"%s d=\"M%d %.1fh18\"/>\n", colour, dash,
            WIDTH - RIGHT + 10, at);
    put_text(f, WIDTH - RIGHT + 33, at + 4, "start", s->name);
}

static void put_chart(FILE *f, const struct chart *chart, double top)
{
    struct axis x = axis_of(chart, false, LEFT, WIDTH - RIGHT);
    struct axis y = axis_of(chart, true, top + HEIGHT - BOTTOM, top + TOP);
    put_marks(f, &x, false, y.from, y.to);
    put_marks(f, &y, true, x.from, x.to);
    fputs("<g class=\"name\">", f);
    put_text(f, LEFT, top + 22, "start", chart->title);
    fputs("</g>\n", f);
    put_text(f, (x.from + x.to) / 2, top + HEIGHT - 12, "middle", chart->x_label);
    fprintf(f, "<g transform=\"translate(20 %.1f) rotate(-90)\">", (y.from + y.to) / 2);
    put_text(f, 0, 0, "middle", chart->y_label);
    fputs("</g>\n", f);
    for (size_t s = 0; s < chart->n_series; s++)
        put_series(f, &chart->series[s], s, &x, &y, top);
}

bool charts_write(FILE *f, const struct chart *charts, size_t count)
{
    fprintf(f,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%zu\" "
            "viewBox=\"0 0 %d %zu\">\n"
            "<style>text{font:12px sans-serif;fill:#777}.name text{font-size:14px;"
            "font-weight:bold}.grid{stroke:#8884;fill:none}.line{fill:none;stroke-width:1.8}"
            "</style>\n",
            WIDTH, count * HEIGHT, WIDTH, count * HEIGHT);
    for (size_t i = 0; i < count; i++)
        if (charts[i].n_series)
            put_chart(f, &charts[i], (double)(i * HEIGHT));
    fputs("</svg>\n", f);
    return !ferror(f);
}
