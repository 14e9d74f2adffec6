// SPDX-License-Identifier: Apache-2.0
// Processor time, for tests that hold work to be no more than linear: it does not grow with what
// else the machine does. Limits are a hundred times what the work takes. No test has a limit on the
// time of day; a hang ends with CTest's TIMEOUT.
#ifndef INST_TESTS_PROCESSOR_TIME_H
#define INST_TESTS_PROCESSOR_TIME_H

#include <time.h>

static inline double processor_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#endif
