// SPDX-License-Identifier: Apache-2.0
#include "bench/measure.h"
#include "base/clock.h"
#include "base/mapping.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static int cpu_time;

void measure_cpu_time(int wanted)
{
    cpu_time = wanted;
}

static double seconds(void)
{
    struct timespec t;
    if (!cpu_time)
        return clock_seconds();
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void measure_round(struct measure *m, measure_fn *fn, void *arg, double min_seconds)
{
    int calls = 0;
    double start = seconds(), end;
    do {
        fn(arg);
        calls++;
        end = seconds();
    } while (end - start < min_seconds);
    if (m->rounds < MEASURE_ROUNDS_MAX)
        m->seconds[m->rounds++] = (end - start) / calls;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static struct measure_ratio spread(double *values, int n)
{
    qsort(values, (size_t)n, sizeof values[0], ascending);
    return (struct measure_ratio){values[n / 2], values[0], values[n - 1]};
}

double measure_median(const struct measure *m)
{
    double values[MEASURE_ROUNDS_MAX];
    memcpy(values, m->seconds, sizeof values);
    return spread(values, m->rounds).median;
}

double measure_best(const struct measure *m)
{
    double values[MEASURE_ROUNDS_MAX];
    memcpy(values, m->seconds, sizeof values);
    return spread(values, m->rounds).min;
}

struct measure_ratio measure_speedup(const struct measure *m, const struct measure *other)
{
    double values[MEASURE_ROUNDS_MAX];
    int n = m->rounds < other->rounds ? m->rounds : other->rounds;
    for (int i = 0; i < n; i++)
        values[i] = other->seconds[i] / m->seconds[i];
    return spread(values, n);
}

struct measure_ratio measure_rate(const struct measure *m, double count)
{
    struct measure all = {.rounds = m->rounds};
    for (int i = 0; i < m->rounds; i++)
        all.seconds[i] = count;
    return measure_speedup(m, &all);
}

const char *measure_text(struct measure_ratio ratio, int digits, char out[48])
{
    snprintf(out, 48, "%.*f (%.*f to %.*f)", digits, ratio.median, digits, ratio.min, digits,
             ratio.max);
    return out;
}

void measure_cpu_name(char *out, size_t size)
{
    char line[256];
    FILE *f = fopen("/proc/cpuinfo", "r");
    snprintf(out, size, "unknown CPU");
    while (f && fgets(line, sizeof line, f)) {
        char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) == 0 && colon) {
            snprintf(out, size, "%s", colon + 2);
            out[strcspn(out, "\n")] = 0;
            break;
        }
    }
    if (f)
        fclose(f);
}

void measure_random(void *out, size_t bytes, uint64_t seed)
{
    uint8_t *p = out;
    for (size_t i = 0; i + 8 <= bytes; i += 8) {
        uint64_t z = seed += 0x9e3779b97f4a7c15u;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        z ^= z >> 31;
        memcpy(p + i, &z, 8);
    }
}

void *measure_alloc(size_t bytes)
{
    struct mapping mapping;
    if (!mapping_open(&mapping, bytes, true)) {
        fprintf(stderr, "bench: no memory for %zu bytes\n", bytes);
        exit(1);
    }
    memset(mapping.data, 0, bytes);
    return mapping.data;
}
