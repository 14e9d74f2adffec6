// SPDX-License-Identifier: Apache-2.0
#include "sim/constants.h"

const struct constant_info constant_infos[CONSTANT_COUNT] = {
#define CONSTANT_INFO(kind, name, value, least, most, what)                                        \
    {CONSTANT_##kind, #name, what, value, least, most},
    CONSTANTS(CONSTANT_INFO)
#undef CONSTANT_INFO
};

void constants_default(struct constants *c)
{
    for (uint32_t i = 0; i < CONSTANT_COUNT; i++)
        *constant_at(c, i) = constant_infos[i].value;
}
