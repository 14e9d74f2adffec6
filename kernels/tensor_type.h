// SPDX-License-Identifier: Apache-2.0
// Storage types of weight tensors: one table row per type (numbers are those of GGUF).
#ifndef INST_KERNELS_TENSOR_TYPE_H
#define INST_KERNELS_TENSOR_TYPE_H

#include <stdint.h>

enum tensor_type {
    TENSOR_F32 = 0,
    TENSOR_F16 = 1,
    TENSOR_Q8_0 = 8, // blocks of 32: fp16 scale, 32 x int8
    TENSOR_BF16 = 30,
};

struct tensor_type_info {
    uint32_t type;           // GGUF number
    const char *name;        // as GGUF tools print it
    uint32_t block_elements; // a row is a whole number of blocks
    uint32_t block_bytes;
    int supported; // 0: known by name only, so that an error can name it
};

// NULL for a number nobody knows.
const struct tensor_type_info *tensor_type_info(uint32_t type);
// By name, case-insensitive; NULL when unknown.
const struct tensor_type_info *tensor_type_by_name(const char *name);

#endif
