// SPDX-License-Identifier: Apache-2.0
// Writer of NumPy's .npy files, version 1.0: float32, C order.
#ifndef INST_CMD_NPY_H
#define INST_CMD_NPY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

// Header of an array of rows x cols that follows by npy_rows.
bool npy_begin(FILE *file, size_t rows, size_t cols);
// Of the whole file.
uint64_t npy_bytes(size_t rows, size_t cols);
bool npy_row(FILE *file, const float *values, size_t cols);

#endif
