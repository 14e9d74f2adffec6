// SPDX-License-Identifier: Apache-2.0
#include "cmd/input.h"
#include "cmd/options.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PIECE_BYTES = 64 * 1024, MARK_BYTES = 4 };

static int make_room(struct text *text, size_t more, const char *name)
{
    enum text_fate fate = text_reserve(text, more);
    return fate == TEXT_FITS ? 0 : text_refused(name, text, fate);
}

// All that comes, until it is too much. *mark: bytes of a byte order mark in front.
static int read_all(struct text *text, int fd, const char *name, size_t *mark)
{
    for (;;) {
        int code = make_room(text, text->n ? 1 : PIECE_BYTES, name);
        if (code)
            return code;
        ssize_t got = read(fd, text->bytes + text->n, text->size - text->n);
        if (got < 0)
            return errno == EINTR ? EXIT_INTERRUPTED
                                  : fail(EXIT_FAILED, "%s: %s", name, strerror(errno));
        bool unsure = text->n < MARK_BYTES;
        text->n += (size_t)got;
        int bytes = unsure ? text_mark(text->bytes, text->n) : 0;
        if (bytes < 0)
            return fail(EXIT_FAILED, "%s: %s", name, text_not_utf8);
        if (bytes)
            *mark = (size_t)bytes;
        if (text->n - *mark > text->room->most)
            return text_refused(name, text, TEXT_TOO_LONG);
        if (!got)
            return 0;
    }
}

// What is known before anything is read: of a regular file its size.
static int prepare(struct text *text, int fd, const char *name)
{
    struct stat st;
    if (fstat(fd, &st) || !S_ISREG(st.st_mode))
        return 0;
    off_t at = lseek(fd, 0, SEEK_CUR);
    uint64_t left = at >= 0 && at < st.st_size ? (uint64_t)(st.st_size - at) : 0;
    if (left > MARK_BYTES && left - MARK_BYTES > text->room->most)
        return text_refused(name, text, TEXT_TOO_LONG);
    return make_room(text, (size_t)left + 1, name); // one more, to see its end
}

static int read_text(struct input *input, int fd, const char *name)
{
    struct text *text = &input->read;
    size_t mark = 0;
    int code = prepare(text, fd, name);
    if (!code)
        code = read_all(text, fd, name, &mark);
    if (code) {
        text_free(text);
        return code;
    }
    text_fit(text);
    input->text = text->bytes + mark;
    input->bytes = text->n - mark;
    return 0;
}

int input_open(struct input *input, const char *command, const char *text, const char *file,
               const struct text_room *room)
{
    *input = (struct input){.read.room = room};
    if (!text == !file)
        return fail(EXIT_USAGE,
                    text ? "%s: give either -p or -f, not both"
                         : "%s: no text given: use -p TEXT or -f FILE (- = stdin)",
                    command);
    if (text) {
        input->text = text;
        input->bytes = strlen(text);
        return 0;
    }
    if (!strcmp(file, "-"))
        return read_text(input, STDIN_FILENO, "standard input");
    int fd = open(file, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (fd < 0)
        return fail(EXIT_FAILED, "%s: %s", file, strerror(errno));
    int code = read_text(input, fd, file);
    close(fd);
    return code;
}

void input_close(struct input *input)
{
    text_free(&input->read);
    *input = (struct input){.read.room = input->read.room};
}

void input_check_begin(int64_t begin, const int32_t *tokens, size_t n)
{
    if (n > 1 && tokens[0] == begin && tokens[1] == begin)
        warn("the prompt has two begin tokens: the model adds one, leave out the text's");
}
