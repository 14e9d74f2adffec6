// SPDX-License-Identifier: Apache-2.0
// Little-endian loads and stores at any alignment. Wire and disk formats are read and written
// field by field through these, never by casting structs.
#ifndef INST_BASE_LE_H
#define INST_BASE_LE_H

#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "big-endian machines are not supported: fp16 payloads are moved as they lie in memory"
#endif

#define LE_DEFINE(bits)                                                                            \
    static inline uint##bits##_t le_get##bits(const void *p)                                       \
    {                                                                                              \
        uint##bits##_t v;                                                                          \
        memcpy(&v, p, sizeof v);                                                                   \
        return v;                                                                                  \
    }                                                                                              \
    static inline void le_put##bits(void *p, uint##bits##_t v)                                     \
    {                                                                                              \
        memcpy(p, &v, sizeof v);                                                                   \
    }
LE_DEFINE(16)
LE_DEFINE(32)
LE_DEFINE(64)
#undef LE_DEFINE

static inline float le_getf32(const void *p)
{
    float v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline void le_putf32(void *p, float v)
{
    memcpy(p, &v, sizeof v);
}

#endif
