// SPDX-License-Identifier: Apache-2.0
// A test that shows more the more of the same it does comes twice: as NAME (label less) for every
// day, and as NAME_more (label more) with INST_MORE in the environment, with all of it.
#ifndef INST_TESTS_MORE_H
#define INST_TESTS_MORE_H

#include <stdbool.h>
#include <stdlib.h>

// Ten to twenty times slower, and there for what threads do, not for how often: the largest tests
// run only those of their cases there that differ in threads.
#ifdef __SANITIZE_THREAD__
enum { THREAD_SANITIZER = 1 };
#else
enum { THREAD_SANITIZER = 0 };
#endif

static inline bool more(void)
{
    return getenv("INST_MORE") != NULL;
}

#endif
