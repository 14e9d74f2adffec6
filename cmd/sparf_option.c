// SPDX-License-Identifier: Apache-2.0
#include "cmd/sparf_option.h"

#include <stdio.h>
#include <string.h>

// A whole number from `least` on; where it ends.
static const char *number(const char *text, uint32_t least, uint32_t *out)
{
    uint64_t n = 0;
    const char *p = text;
    for (; *p >= '0' && *p <= '9' && n <= UINT32_MAX; p++)
        n = n * 10 + (uint64_t)(*p - '0');
    if (p == text || n > UINT32_MAX || n < least)
        return NULL;
    *out = (uint32_t)n;
    return p;
}

// One "name=value"; where it ends, NULL when it is wrong.
static const char *part(struct sparf_option *o, const char *text)
{
    if (!strncmp(text, "r=", 2))
        return number(text + 2, 1, &o->channels);
    if (!strncmp(text, "k=1/", 4))
        return number(text + 4, 1, &o->divisor);
    if (!strncmp(text, "k=", 2))
        return number(text + 2, 1, &o->tokens);
    if (!strncmp(text, "local=", 6))
        return number(text + 6, 0, &o->local);
    return NULL;
}

int sparf_option_read(struct sparf_option *o, const char *command)
{
    const char *p = o->text;
    while (p && *p) {
        p = part(o, p);
        if (p && *p == ',' && p[1])
            p++;
        else if (p && *p)
            p = NULL;
    }
    if (o->text && (!p || !*o->text))
        return fail(EXIT_USAGE, "%s: --sparf: '%s' is not like r=16,k=1/8,local=64", command,
                    o->text);
    return 0;
}

void sparf_option_text(const struct sparf_option *o, char *out, size_t size)
{
    char r[24] = "1/8", k[24];
    if (o->channels)
        snprintf(r, sizeof r, "%u", o->channels);
    snprintf(k, sizeof k, "1/%u", o->divisor ? o->divisor : 8);
    if (o->tokens)
        snprintf(k, sizeof k, "%u", o->tokens);
    snprintf(out, size, "r=%s,k=%s,local=%u", r, k, o->local);
}
