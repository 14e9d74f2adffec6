// SPDX-License-Identifier: Apache-2.0
// Storage types of weight tensors: one table row per type (numbers are those of GGUF).
#ifndef INST_KERNELS_TENSOR_TYPE_H
#define INST_KERNELS_TENSOR_TYPE_H

#include <stdint.h>

// Block types: what a block holds is in kernels/reference.c and
// docs/decisions/0005-quantised-types.md.
enum tensor_type {
    TENSOR_F32 = 0,
    TENSOR_F16 = 1,
    TENSOR_Q4_0 = 2,
    TENSOR_Q4_1 = 3,
    TENSOR_Q5_0 = 6,
    TENSOR_Q5_1 = 7,
    TENSOR_Q8_0 = 8, // blocks of 32: fp16 scale, 32 x int8
    TENSOR_Q2_K = 10,
    TENSOR_Q3_K = 11,
    TENSOR_Q4_K = 12,
    TENSOR_Q5_K = 13,
    TENSOR_Q6_K = 14,
    TENSOR_IQ4_NL = 20,
    TENSOR_BF16 = 30,
};

struct tensor_type_info {
    uint32_t type;           // GGUF number
    const char *name;        // as GGUF tools print it
    uint32_t block_elements; // a row is a whole number of blocks
    uint32_t block_bytes;
    int supported; // 0: known by name only, so that an error can name it
    // Of supported block types: where in a block its fp16 scale and its fp16 minimum lie; min_at is
    // scale_at where there is no minimum.
    uint32_t scale_at, min_at;
};

// NULL for a number nobody knows.
const struct tensor_type_info *tensor_type_info(uint32_t type);
// By name, case-insensitive; NULL when unknown.
const struct tensor_type_info *tensor_type_by_name(const char *name);
// Bytes of a row of `cols` elements; 0 when cols is not a whole number of blocks, the type is
// unknown or the product does not fit.
uint64_t tensor_type_row_bytes(uint32_t type, uint64_t cols);

#endif
