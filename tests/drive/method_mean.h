// SPDX-License-Identifier: Apache-2.0
// A method of the tests' own, as small as one can be: every token weighs the same, so that an
// output is the mean of V. It reads the pages that hold V and no others, which no other method
// does.
#ifndef INST_TESTS_METHOD_MEAN_H
#define INST_TESTS_METHOD_MEAN_H

#include "drive/attend/method.h"

enum { METHOD_MEAN = 0x4d45414e };

extern const struct method method_mean;

#endif
