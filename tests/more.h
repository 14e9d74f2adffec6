// SPDX-License-Identifier: Apache-2.0
// A test that shows more the more of the same it does comes twice: as NAME (label less) for every
// day, and as NAME_more (label more) with INST_MORE in the environment, with all of it.
#ifndef INST_TESTS_MORE_H
#define INST_TESTS_MORE_H

#include <stdbool.h>
#include <stdlib.h>

static inline bool more(void)
{
    return getenv("INST_MORE") != NULL;
}

#endif
