// SPDX-License-Identifier: Apache-2.0
#include "cmd/text.h"
#include "cmd/options.h"

#include <string.h>

enum { FIRST_BYTES = 256 };

const char text_not_utf8[] =
    "is UTF-16 or UTF-32, and only UTF-8 is read (see iconv -f UTF-16 -t UTF-8)";

static int resize_of_engine(void *owner, char **bytes, size_t size, struct inst_msg *msg)
{
    return inst_text_resize(owner, bytes, size, msg);
}

struct text_room text_room_of_engine(inst_engine *engine, uint64_t left, uint64_t context)
{
    return (struct text_room){.resize = resize_of_engine,
                              .owner = engine,
                              .most = inst_text_most(engine, left),
                              .left = left,
                              .context = context};
}

enum text_fate text_reserve(struct text *text, size_t more)
{
    if (more > (size_t)PTRDIFF_MAX / 4 - text->n)
        return TEXT_NO_MEMORY;
    size_t need = text->n + more;
    if (need <= text->size)
        return TEXT_FITS;
    // Twice as much as before, or as much of that as there is.
    size_t spare = text->size > FIRST_BYTES ? text->size : FIRST_BYTES;
    for (;; spare /= 2) {
        if (!text->room->resize(text->room->owner, &text->bytes, need + spare, NULL)) {
            text->size = need + spare;
            return TEXT_FITS;
        }
        if (!spare)
            return TEXT_NO_MEMORY;
    }
}

int text_refused(const char *name, const struct text *text, enum text_fate fate)
{
    const struct text_room *room = text->room;
    unsigned long long most = room->most, left = room->left, context = room->context;
    if (fate == TEXT_NO_MEMORY)
        return fail(EXIT_FAILED,
                    "%s: a text of more than %zu bytes does not fit in the memory budget (see "
                    "--memory)",
                    name, text->n);
    if (left < context)
        return fail(EXIT_FAILED,
                    "%s: a text of more than %llu bytes does not fit in the %llu tokens that are "
                    "left of the context of %llu (see -c)",
                    name, most, left, context);
    return fail(EXIT_FAILED,
                "%s: a text of more than %llu bytes does not fit in the context of %llu tokens "
                "(see -c)",
                name, most, context);
}

void text_fit(struct text *text)
{
    if (text->n && !text->room->resize(text->room->owner, &text->bytes, text->n, NULL))
        text->size = text->n;
}

enum text_fate text_add(struct text *text, const char *bytes, size_t n)
{
    if (n > text->room->most || text->n > text->room->most - n)
        return TEXT_TOO_LONG;
    enum text_fate fate = text_reserve(text, n);
    if (fate == TEXT_FITS && n) {
        memcpy(text->bytes + text->n, bytes, n);
        text->n += n;
    }
    return fate;
}

void text_free(struct text *text)
{
    if (text->bytes)
        text->room->resize(text->room->owner, &text->bytes, 0, NULL);
    *text = (struct text){.room = text->room};
}

int text_mark(const char *bytes, size_t n)
{
    if (n >= 3 && !memcmp(bytes, "\xef\xbb\xbf", 3))
        return 3;
    bool other = (n >= 2 && (!memcmp(bytes, "\xff\xfe", 2) || !memcmp(bytes, "\xfe\xff", 2))) ||
                 (n >= 4 && !memcmp(bytes, "\0\0\xfe\xff", 4));
    return other ? -1 : 0;
}

void text_trim_line(const char **line, size_t *n)
{
    int mark = text_mark(*line, *n);
    if (mark > 0) {
        *line += mark;
        *n -= (size_t)mark;
    }
    if (*n && (*line)[*n - 1] == '\r')
        --*n;
}
