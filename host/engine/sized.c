// SPDX-License-Identifier: Apache-2.0
#include "host/engine/sized.h"

#include <string.h>

int sized_read(void *to, size_t known, size_t first, const void *from, const char *what,
               struct inst_msg *msg)
{
    size_t size;
    memcpy(&size, from, sizeof size);
    if (!size)
        size = first;
    if (size < sizeof size)
        return inst_fail(msg, INST_EINVAL, "%s: a size of %zu bytes", what, size);
    for (size_t i = known; i < size; i++)
        if (((const unsigned char *)from)[i])
            return inst_fail(msg, INST_ENOTSUP,
                             "%s: something is set that this version of the library does not know",
                             what);
    memset(to, 0, known);
    memcpy(to, from, size < known ? size : known);
    return 0;
}

void sized_write(void *to, size_t size, const void *from, size_t known)
{
    memset(to, 0, size);
    memcpy(to, from, size < known ? size : known);
}
