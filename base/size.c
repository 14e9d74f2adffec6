// SPDX-License-Identifier: Apache-2.0
#include "base/size.h"
#include "base/status.h"

#include <stdio.h>
#include <string.h>

enum { DIGITS_MOST = 19, DECIMALS_MOST = 3 };

static size_t digits(const char *text, size_t from, size_t bytes)
{
    size_t n = from;
    while (n < bytes && text[n] >= '0' && text[n] <= '9')
        n++;
    return n - from;
}

// Bytes of a unit, 0: it is none.
static uint64_t unit(char c)
{
    static const char units[] = "KMGT";
    const char *at = c ? strchr(units, c >= 'a' && c <= 'z' ? c - 'a' + 'A' : c) : NULL;
    return at ? (uint64_t)1024 << 10 * (at - units) : 0;
}

int size_parse(const char *text, size_t bytes, uint64_t *out)
{
    size_t n = digits(text, 0, bytes), decimals = 0, end = n;
    uint64_t value = 0, unit_bytes = 1;
    if (!n || n > DIGITS_MOST)
        return INST_EINVAL;
    for (size_t i = 0; i < n; i++)
        value = 10 * value + (uint64_t)(text[i] - '0');
    if (n < bytes && text[n] == '.')
        decimals = digits(text, n + 1, bytes);
    if (decimals)
        end += 1 + decimals;
    if (end < bytes && (end + 1 != bytes || !(unit_bytes = unit(text[end]))))
        return INST_EINVAL;
    if ((decimals && unit_bytes == 1) || decimals > DECIMALS_MOST)
        return INST_EINVAL;
    uint64_t part = 0, scale = 1;
    for (size_t i = 1; i <= decimals; i++, scale *= 10)
        part = 10 * part + (uint64_t)(text[n + i] - '0');
    if (__builtin_mul_overflow(value, unit_bytes, &value) ||
        __builtin_add_overflow(value, part * unit_bytes / scale, &value))
        return INST_ERANGE;
    *out = value;
    return 0;
}

const char *size_text(uint64_t bytes, char out[SIZE_TEXT_BYTES])
{
    static const char units[] = "KMGTPE";
    double value = (double)bytes;
    int i = -1;
    for (; value >= 1024 && i < 5; i++)
        value /= 1024;
    if (i < 0)
        snprintf(out, SIZE_TEXT_BYTES, "%llu bytes", (unsigned long long)bytes);
    else
        snprintf(out, SIZE_TEXT_BYTES, value < 100 ? "%.1f%c" : "%.0f%c", value, units[i]);
    return out;
}
