// SPDX-License-Identifier: Apache-2.0
// The output of a batch, from its part file or from the parts of all shares: answers in the order
// of the input, or as they were finished. The output takes its name when it is whole.
#include "cmd/batch/batch.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int write_answer(struct output_file *out, const char *answer, size_t bytes)
{
    errno = 0;
    return fwrite(answer, 1, bytes, out->stream) == bytes && fputc('\n', out->stream) != EOF
               ? 0
               : output_file_failed(out);
}

static int write_record(void *user, uint32_t number, uint64_t offset, const char *answer,
                        size_t bytes)
{
    (void)number, (void)offset;
    return write_answer(user, answer, bytes);
}

// On the disk before the parts go.
static int close_output(struct output_file *out)
{
    errno = 0;
    if (fflush(out->stream) || (out->target && fdatasync(fileno(out->stream))))
        return output_file_failed(out);
    return output_file_close(out);
}

int batch_write(struct batch *b, const struct options *options)
{
    int code = b->out.stream ? 0 : output_files_open(options);
    if (!code && b->unordered)
        code = batch_part_each(&b->part, write_record, &b->out);
    for (size_t i = 0; i < b->lines.n && !code && !b->unordered; i++) {
        size_t bytes;
        const char *answer = batch_part_read(&b->part, b->lines.line[i].result, &bytes);
        code = answer ? write_answer(&b->out, answer, bytes) : EXIT_FAILED;
    }
    return code ? code : close_output(&b->out);
}

struct answer_place {
    uint64_t offset; // 0: none
    uint32_t part;
};

struct merge {
    struct batch_part *parts;
    size_t n, lines, found;
    struct answer_place *places; // [lines of the file + 1], by number
    size_t n_places;
    uint32_t part; // that is read
};

static int note_record(void *user, uint32_t number, uint64_t offset, const char *answer,
                       size_t bytes)
{
    struct merge *m = user;
    const char *path = m->parts[m->part].path;
    (void)answer, (void)bytes;
    if (number >= m->n_places)
        return fail(EXIT_FAILED, "%s: it answers line %u, which the input does not have", path,
                    number);
    if (m->places[number].offset)
        return fail(EXIT_FAILED, "%s: line %u is answered in %s, too", path, number,
                    m->parts[m->places[number].part].path);
    m->places[number] = (struct answer_place){offset, m->part};
    m->found++;
    return 0;
}

static size_t head_number(const cJSON *head, const char *key)
{
    const char *text = batch_head_text(head, key);
    return strtoull(text, NULL, 10);
}

// Where each line's answer lies.
static int read_parts(struct merge *m)
{
    int code = 0;
    for (size_t i = 0; i < m->n && !code; i++) {
        struct batch_part *part = &m->parts[i];
        code = batch_part_read_head(part);
        if (!code && i)
            code = batch_head_compare(part->path, part->head, m->parts[0].head, "share");
        if (!code && !i) {
            m->lines = head_number(part->head, "lines");
            m->n_places = head_number(part->head, "last_line") + 1;
            m->places = m->n_places < UINT32_MAX ? calloc(m->n_places, sizeof *m->places) : NULL;
            if (!m->places)
                code = fail(EXIT_FAILED, "%s: out of memory", part->path);
        }
        m->part = (uint32_t)i;
        if (!code)
            code = batch_part_each(part, note_record, m);
    }
    if (!code && m->found != m->lines)
        code =
            fail(EXIT_FAILED,
                 "%zu of %zu lines have no answer in these parts: a share is missing or not done",
                 m->lines - m->found, m->lines);
    return code;
}

static int write_merged(struct batch *b, struct merge *m)
{
    int code = 0;
    for (size_t i = 0; i < m->n_places && !code; i++) {
        if (!m->places[i].offset)
            continue;
        size_t bytes;
        const char *answer =
            batch_part_read(&m->parts[m->places[i].part], m->places[i].offset, &bytes);
        code = answer ? write_answer(&b->out, answer, bytes) : EXIT_FAILED;
    }
    return code ? code : close_output(&b->out);
}

int batch_merge(struct batch *b, const struct options *options, char **paths, size_t n)
{
    struct merge m = {.n = n};
    // The parts are inputs like others: no output takes their place.
    struct options all = *options;
    struct option *rows = calloc(options->n_rows + n, sizeof *rows);
    m.parts = calloc(n, sizeof *m.parts);
    int code = rows && m.parts ? 0 : fail(EXIT_FAILED, "out of memory");
    for (size_t i = 0; i < n && !code; i++) {
        rows[options->n_rows + i] =
            (struct option){.name = paths[i], .kind = OPTION_INPUT, .value = &paths[i]};
        code = batch_part_open_whole(&m.parts[i], paths[i]);
    }
    if (!code) {
        memcpy(rows, options->rows, options->n_rows * sizeof *rows);
        all.rows = rows;
        all.n_rows += n;
        code = output_files_open(&all);
    }
    if (!code)
        code = read_parts(&m);
    if (!code)
        code = write_merged(b, &m);
    output_file_abandon(&b->out);
    for (size_t i = 0; m.parts && i < n; i++)
        batch_part_close(&m.parts[i]);
    free(m.parts);
    free(m.places);
    free(rows);
    return code;
}
