// SPDX-License-Identifier: Apache-2.0
// The table of storage types: every number that GGUF files carry, so that an error can name the
// type; `supported` marks those with kernels.
#include "kernels/tensor_type.h"

#include <stddef.h>
#include <strings.h>

static const struct tensor_type_info tensor_types[] = {
    {0, "F32", 1, 4, 1, 0, 0},           {1, "F16", 1, 2, 1, 0, 0},
    {2, "Q4_0", 32, 18, 1, 0, 0},        {3, "Q4_1", 32, 20, 1, 0, 2},
    {6, "Q5_0", 32, 22, 1, 0, 0},        {7, "Q5_1", 32, 24, 1, 0, 2},
    {8, "Q8_0", 32, 34, 1, 0, 0},        {9, "Q8_1", 32, 36, 0, 0, 0},
    {10, "Q2_K", 256, 84, 1, 80, 82},    {11, "Q3_K", 256, 110, 1, 108, 108},
    {12, "Q4_K", 256, 144, 1, 0, 2},     {13, "Q5_K", 256, 176, 1, 0, 2},
    {14, "Q6_K", 256, 210, 1, 208, 208}, {15, "Q8_K", 256, 292, 0, 0, 0},
    {16, "IQ2_XXS", 256, 66, 0, 0, 0},   {17, "IQ2_XS", 256, 74, 0, 0, 0},
    {18, "IQ3_XXS", 256, 98, 0, 0, 0},   {19, "IQ1_S", 256, 50, 0, 0, 0},
    {20, "IQ4_NL", 32, 18, 1, 0, 0},     {21, "IQ3_S", 256, 110, 0, 0, 0},
    {22, "IQ2_S", 256, 82, 0, 0, 0},     {23, "IQ4_XS", 256, 136, 0, 0, 0},
    {24, "I8", 1, 1, 0, 0, 0},           {25, "I16", 1, 2, 0, 0, 0},
    {26, "I32", 1, 4, 0, 0, 0},          {27, "I64", 1, 8, 0, 0, 0},
    {28, "F64", 1, 8, 0, 0, 0},          {29, "IQ1_M", 256, 56, 0, 0, 0},
    {30, "BF16", 1, 2, 1, 0, 0},         {34, "TQ1_0", 256, 54, 0, 0, 0},
    {35, "TQ2_0", 256, 66, 0, 0, 0},     {39, "MXFP4", 32, 17, 0, 0, 0},
};

const struct tensor_type_info *tensor_type_info(uint32_t type)
{
    for (size_t i = 0; i < sizeof tensor_types / sizeof tensor_types[0]; i++)
        if (tensor_types[i].type == type)
            return &tensor_types[i];
    return NULL;
}

const struct tensor_type_info *tensor_type_by_name(const char *name)
{
    for (size_t i = 0; i < sizeof tensor_types / sizeof tensor_types[0]; i++)
        if (strcasecmp(tensor_types[i].name, name) == 0)
            return &tensor_types[i];
    return NULL;
}

uint64_t tensor_type_row_bytes(uint32_t type, uint64_t cols)
{
    const struct tensor_type_info *info = tensor_type_info(type);
    if (!info || cols % info->block_elements ||
        cols / info->block_elements > UINT64_MAX / info->block_bytes)
        return 0;
    return cols / info->block_elements * info->block_bytes;
}
