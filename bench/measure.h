// SPDX-License-Identifier: Apache-2.0
// What the kernel benchmarks share: time, statistics over rounds, the CPU's name, random bytes.
#ifndef INST_BENCH_MEASURE_H
#define INST_BENCH_MEASURE_H

#include <stddef.h>
#include <stdint.h>

// One contender's rounds. Contenders take turns, so a slow phase of the machine meets all of them.
enum { MEASURE_ROUNDS_MAX = 64 };
struct measure {
    double seconds[MEASURE_ROUNDS_MAX]; // per call
    int rounds;
};

typedef void measure_fn(void *arg);

// Calls fn for at least min_seconds and adds the time per call as one round.
void measure_round(struct measure *m, measure_fn *fn, void *arg, double min_seconds);
// From now on rounds count what the process computed, all threads together, instead of time.
void measure_cpu_time(int wanted);
double measure_median(const struct measure *m);
double measure_best(const struct measure *m);
// Median, least and greatest of other / mine over the rounds: how much faster m is.
struct measure_ratio {
    double median, min, max;
};
struct measure_ratio measure_speedup(const struct measure *m, const struct measure *other);
// The same of how many per second that is, when there are so many in a call.
struct measure_ratio measure_rate(const struct measure *m, double count);
// "1.50 (1.21 to 1.75)"
const char *measure_text(struct measure_ratio ratio, int digits, char out[48]);

void measure_cpu_name(char *out, size_t size);
void measure_random(void *out, size_t bytes, uint64_t seed);
// Zeroed memory for the rest of the process, on huge pages where the system gives them; if there is
// none, the program ends with a message.
void *measure_alloc(size_t bytes);

#endif
