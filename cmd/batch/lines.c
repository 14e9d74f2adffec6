// SPDX-License-Identifier: Apache-2.0
#include "cmd/batch/lines.h"
#include "cmd/batch/request.h"
#include "cmd/options.h"
#include "cmd/text.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

enum { PIECE_BYTES = 256 * 1024 };

// What the pass over the file keeps beside the lines.
struct pass {
    struct batch_lines *lines;
    XXH3_state_t *print;
    uint64_t *ids;   // [room of the lines] prints of their custom_id, 0: none
    size_t n_text;   // bytes of the line so far that are in lines->text
    uint64_t start;  // of the line
    uint64_t length; // of the line so far
    uint32_t number;
};

static int no_memory(const struct batch_lines *lines)
{
    return fail(EXIT_FAILED, "%s: line %zu and those after it do not fit in memory", lines->path,
                lines->n + 1);
}

static bool text_room(struct batch_lines *lines, size_t bytes)
{
    if (bytes <= lines->text_room)
        return true;
    size_t room = bytes + bytes / 2 + 4096;
    char *text = realloc(lines->text, room);
    if (!text)
        return false;
    lines->text = text;
    lines->text_room = room;
    return true;
}

static bool line_room(struct pass *p)
{
    struct batch_lines *lines = p->lines;
    if (lines->n < lines->room)
        return true;
    size_t room = 2 * lines->room + 256;
    struct batch_line *line = realloc(lines->line, room * sizeof *line);
    if (line)
        lines->line = line;
    uint64_t *ids = line ? realloc(p->ids, room * sizeof *ids) : NULL;
    if (ids)
        p->ids = ids;
    lines->room = ids ? room : lines->room;
    return ids;
}

static uint64_t print_of_id(const char *text, size_t bytes)
{
    static const struct batch_defaults none;
    struct batch_request request;
    struct batch_error error;
    batch_request_parse(&request, text, bytes, &none, &error);
    uint64_t print = request.custom_id && *request.custom_id
                         ? XXH3_64bits(request.custom_id, strlen(request.custom_id)) | 1
                         : 0;
    batch_request_free(&request);
    return print;
}

// 0 or an exit code.
static int end_line(struct pass *p)
{
    struct batch_lines *lines = p->lines;
    bool long_line = p->length > BATCH_LINE_MAX;
    const char *text = lines->text;
    size_t n = p->n_text;
    p->number++;
    if (!long_line) {
        while (n && strchr(" \t\r", text[n - 1]) && text[n - 1])
            n--;
        if (!n)
            return 0;
    }
    if (p->number == UINT32_MAX || !line_room(p))
        return no_memory(lines);
    p->ids[lines->n] = long_line ? 0 : print_of_id(text, n);
    lines->line[lines->n++] = (struct batch_line){
        .offset = p->start, .bytes = long_line ? UINT32_MAX : (uint32_t)n, .number = p->number};
    return 0;
}

static int take_piece(struct pass *p, const char *piece, size_t n)
{
    struct batch_lines *lines = p->lines;
    XXH3_64bits_update(p->print, piece, n);
    if (!lines->bytes) {
        int mark = text_mark(piece, n);
        if (mark < 0)
            return fail(EXIT_FAILED, "%s: %s", lines->path, text_not_utf8);
        lines->bytes = p->start = (uint64_t)mark;
        piece += mark;
        n -= (size_t)mark;
    }
    while (n) {
        const char *end = memchr(piece, '\n', n);
        size_t part = end ? (size_t)(end - piece) : n;
        // A longer line is not kept: what it says will not be read.
        size_t kept = p->length > BATCH_LINE_MAX ? 0 : part;
        if (kept > BATCH_LINE_MAX + 1 - p->n_text)
            kept = BATCH_LINE_MAX + 1 - p->n_text;
        if (!text_room(lines, p->n_text + kept))
            return no_memory(lines);
        if (kept)
            memcpy(lines->text + p->n_text, piece, kept);
        p->n_text += kept;
        p->length += part;
        part += end != NULL;
        lines->bytes += part;
        piece += part;
        n -= part;
        int code = end ? end_line(p) : 0;
        if (code)
            return code;
        if (end) {
            p->start = lines->bytes;
            p->n_text = p->length = 0;
        }
    }
    return 0;
}

// Lines whose custom_id was there before: a table of places, open addressing.
static int find_same_ids(struct pass *p)
{
    struct batch_lines *lines = p->lines;
    size_t size = 64;
    while (size < 2 * lines->n)
        size *= 2;
    uint32_t *table = calloc(size, sizeof *table); // line + 1
    if (!table)
        return no_memory(lines);
    for (size_t i = 0; i < lines->n; i++) {
        if (!p->ids[i])
            continue;
        size_t at = p->ids[i] >> 7 & (size - 1);
        while (table[at] && p->ids[table[at] - 1] != p->ids[i])
            at = (at + 1) & (size - 1);
        if (table[at])
            lines->line[i].same_id = lines->line[table[at] - 1].number;
        else
            table[at] = (uint32_t)i + 1;
    }
    free(table);
    return 0;
}

static int pass(struct pass *p)
{
    char *piece = malloc(PIECE_BYTES);
    int code = piece && p->print ? 0 : no_memory(p->lines);
    ssize_t got = 0;
    if (!code)
        XXH3_64bits_reset(p->print);
    while (!code && (got = read(p->lines->fd, piece, PIECE_BYTES)) > 0)
        code = take_piece(p, piece, (size_t)got);
    if (!code && got < 0)
        code = fail(EXIT_FAILED, "%s: %s", p->lines->path, strerror(errno));
    if (!code && p->length)
        code = end_line(p);
    if (!code)
        code = find_same_ids(p);
    if (!code)
        p->lines->print = XXH3_64bits_digest(p->print);
    free(piece);
    return code;
}

int batch_lines_open(struct batch_lines *lines, const char *path)
{
    struct stat st;
    *lines = (struct batch_lines){.path = path, .fd = open(path, O_RDONLY | O_CLOEXEC)};
    if (lines->fd < 0 || fstat(lines->fd, &st))
        return fail(EXIT_FAILED, "%s: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode))
        return fail(EXIT_FAILED, "%s: is no file: lines are read more than once", path);
    lines->changed = st.st_mtim;
    struct pass p = {.lines = lines, .print = XXH3_createState()};
    int code = pass(&p);
    if (!code && !lines->n)
        code = fail(EXIT_FAILED, "%s: it has no lines", path);
    XXH3_freeState(p.print);
    free(p.ids);
    free(lines->text);
    lines->text = NULL;
    lines->text_room = 0;
    return code;
}

void batch_lines_close(struct batch_lines *lines)
{
    if (lines->path && lines->fd >= 0)
        close(lines->fd);
    free(lines->line);
    free(lines->text);
    *lines = (struct batch_lines){.fd = -1};
}

const char *batch_lines_read(struct batch_lines *lines, size_t index)
{
    const struct batch_line *line = &lines->line[index];
    if (!text_room(lines, line->bytes + 1)) {
        fail(EXIT_FAILED, "%s: line %u does not fit in memory", lines->path, line->number);
        return NULL;
    }
    for (size_t n = 0; n < line->bytes;) {
        ssize_t got = pread(lines->fd, lines->text + n, line->bytes - n, (off_t)(line->offset + n));
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0) {
            fail(EXIT_FAILED, "%s: line %u: %s", lines->path, line->number,
                 got ? strerror(errno) : "the file was shortened while in use");
            return NULL;
        }
        n += (size_t)got;
    }
    return lines->text;
}

int batch_lines_unchanged(const struct batch_lines *lines)
{
    struct stat st;
    if (fstat(lines->fd, &st))
        return fail(EXIT_FAILED, "%s: %s", lines->path, strerror(errno));
    if ((uint64_t)st.st_size == lines->bytes && st.st_mtim.tv_sec == lines->changed.tv_sec &&
        st.st_mtim.tv_nsec == lines->changed.tv_nsec)
        return 0;
    return fail(EXIT_FAILED, "%s: the file was changed while in use", lines->path);
}

struct batch_line *batch_lines_find(struct batch_lines *lines, uint32_t number)
{
    size_t low = 0, high = lines->n;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (lines->line[middle].number < number)
            low = middle + 1;
        else
            high = middle;
    }
    return low < lines->n && lines->line[low].number == number ? &lines->line[low] : NULL;
}
