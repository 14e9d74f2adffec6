// SPDX-License-Identifier: Apache-2.0
#include "cmd/npy.h"

#include <string.h>

enum { PREFIX = 10, TOTAL = 128 }; // bytes of the header

uint64_t npy_bytes(size_t rows, size_t cols)
{
    return TOTAL + (uint64_t)rows * cols * sizeof(float);
}

bool npy_begin(FILE *file, size_t rows, size_t cols)
{
    // Magic, version 1.0, length of the rest (little-endian), then a Python literal that is padded
    // with spaces so that the data starts at a multiple of 64.
    char header[TOTAL];
    memset(header, ' ', sizeof header);
    memcpy(header, "\x93NUMPY\x01\x00", 8);
    header[8] = TOTAL - PREFIX;
    header[9] = 0;
    int n = snprintf(header + PREFIX, TOTAL - PREFIX,
                     "{'descr': '<f4', 'fortran_order': False, 'shape': (%zu, %zu), }", rows, cols);
    if (n < 0 || n >= TOTAL - PREFIX - 1)
        return false;
    header[PREFIX + n] = ' ';
    header[TOTAL - 1] = '\n';
    return fwrite(header, 1, TOTAL, file) == TOTAL;
}

bool npy_row(FILE *file, const float *values, size_t cols)
{
    return fwrite(values, sizeof *values, cols, file) == cols;
}
