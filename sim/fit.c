// SPDX-License-Identifier: Apache-2.0
// Levenberg and Marquardt in the logarithms of the few fitted constants.
#include "sim/paper.h"

#include <math.h>
#include <string.h>

enum { FITTED_MAX = 6, ROWS_MAX = 32, ITERATIONS = 60 };

struct fit {
    uint32_t ids[FITTED_MAX], n, rows[ROWS_MAX], n_rows;
    struct drive_source *drives;
    struct inst_msg *msg;
};

static int residuals(const struct fit *f, const struct constants *c, double *out)
{
    for (uint32_t i = 0; i < f->n_rows; i++) {
        struct paper_row row;
        int err = paper_row(&row, f->rows[i], c, f->drives, f->msg);
        if (err)
            return err;
        out[i] = log(row.ours / row.paper);
    }
    return 0;
}

static double squares(const double *r, uint32_t n)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += r[i] * r[i];
    return sum;
}

// a x = b in place, by elimination with pivots; the answer is in b.
static void solve(double a[FITTED_MAX][FITTED_MAX], double *b, uint32_t n)
{
    for (uint32_t k = 0; k < n; k++) {
        uint32_t p = k;
        for (uint32_t i = k + 1; i < n; i++)
            if (fabs(a[i][k]) > fabs(a[p][k]))
                p = i;
        for (uint32_t j = 0; j < n; j++) {
            double t = a[k][j];
            a[k][j] = a[p][j];
            a[p][j] = t;
        }
        double t = b[k];
        b[k] = b[p];
        b[p] = t;
        for (uint32_t i = k + 1; i < n; i++) {
            double m = a[i][k] / a[k][k];
            for (uint32_t j = k; j < n; j++)
                a[i][j] -= m * a[k][j];
            b[i] -= m * b[k];
        }
    }
    for (uint32_t k = n; k--;) {
        for (uint32_t j = k + 1; j < n; j++)
            b[k] -= a[k][j] * b[j];
        b[k] /= a[k][k];
    }
}

// One damped step from c with residuals r; `moved` gets where it leads.
static int try_step(const struct fit *f, const struct constants *c, const double *r, double damping,
                    struct constants *moved)
{
    double jacobian[ROWS_MAX][FITTED_MAX], near[ROWS_MAX], a[FITTED_MAX][FITTED_MAX] = {0},
                                                           b[FITTED_MAX] = {0};
    const double h = 1e-4;
    for (uint32_t j = 0; j < f->n; j++) {
        struct constants other = *c;
        *constant_at(&other, f->ids[j]) *= exp(h);
        int err = residuals(f, &other, near);
        if (err)
            return err;
        for (uint32_t i = 0; i < f->n_rows; i++)
            jacobian[i][j] = (near[i] - r[i]) / h;
    }
    for (uint32_t i = 0; i < f->n_rows; i++)
        for (uint32_t j = 0; j < f->n; j++) {
            b[j] -= jacobian[i][j] * r[i];
            for (uint32_t k = 0; k < f->n; k++)
                a[j][k] += jacobian[i][j] * jacobian[i][k];
        }
    for (uint32_t j = 0; j < f->n; j++)
        a[j][j] += damping * a[j][j] + 1e-12;
    solve(a, b, f->n);
    *moved = *c;
    for (uint32_t j = 0; j < f->n; j++)
        *constant_at(moved, f->ids[j]) *= exp(fmax(-1, fmin(1, b[j])));
    return 0;
}

int sim_fit(struct constants *constants, double *rms, struct drive_source *drives,
            struct inst_msg *msg)
{
    struct fit f = {.drives = drives, .msg = msg};
    for (uint32_t i = 0; i < CONSTANT_COUNT && f.n < FITTED_MAX; i++)
        if (constant_infos[i].kind == CONSTANT_FITTED)
            f.ids[f.n++] = i;
    for (uint32_t i = 0; i < paper_rows() && f.n_rows < ROWS_MAX; i++)
        if (paper_row_class(i) == ROW_FITTED)
            f.rows[f.n_rows++] = i;
    double r[ROWS_MAX], next[ROWS_MAX], damping = 1e-3;
    struct constants c = *constants, moved;
    int err = residuals(&f, &c, r);
    for (int i = 0; i < ITERATIONS && !err && damping < 1e6; i++) {
        err = try_step(&f, &c, r, damping, &moved);
        err = err ? err : residuals(&f, &moved, next);
        if (err)
            break;
        double gain = squares(r, f.n_rows) - squares(next, f.n_rows);
        if (gain > 0) {
            c = moved;
            memcpy(r, next, sizeof r);
            damping /= 10;
            if (gain < 1e-12)
                break;
        } else {
            damping *= 10;
        }
    }
    if (err)
        return err;
    *constants = c;
    *rms = sqrt(squares(r, f.n_rows) / fmax(1, (double)f.n_rows - f.n));
    return 0;
}
