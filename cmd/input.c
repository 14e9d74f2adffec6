// SPDX-License-Identifier: Apache-2.0
#include "cmd/input.h"
#include "cmd/options.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static int read_all(struct input *input, int fd, const char *name)
{
    size_t room = 0, n = 0;
    char *text = NULL;
    for (;;) {
        if (n == room) {
            room = room ? 2 * room : 64 * 1024;
            char *more = realloc(text, room);
            if (!more) {
                free(text);
                return fail(EXIT_FAILED, "%s: out of memory", name);
            }
            text = more;
        }
        ssize_t got = read(fd, text + n, room - n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0) {
            free(text);
            return fail(EXIT_FAILED, "%s: %s", name, strerror(errno));
        }
        if (!got)
            break;
        n += (size_t)got;
    }
    *input = (struct input){.text = text, .bytes = n, .owned = true};
    return 0;
}

int input_open(struct input *input, const char *command, const char *text, const char *file)
{
    *input = (struct input){0};
    if (!text == !file)
        return fail(EXIT_USAGE,
                    text ? "%s: give either -p or -f, not both"
                         : "%s: no text given: use -p TEXT or -f FILE (- = stdin)",
                    command);
    if (text) {
        *input = (struct input){.text = text, .bytes = strlen(text)};
        return 0;
    }
    if (!strcmp(file, "-"))
        return read_all(input, STDIN_FILENO, "standard input");
    int fd = open(file, O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st)) {
        int err = errno;
        if (fd >= 0)
            close(fd);
        return fail(EXIT_FAILED, "%s: %s", file, strerror(err));
    }
    int err = 0;
    void *map = S_ISREG(st.st_mode) && st.st_size > 0
                    ? mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0)
                    : MAP_FAILED;
    if (map != MAP_FAILED)
        *input = (struct input){.text = map, .bytes = (size_t)st.st_size, .mapped = true};
    else
        err = read_all(input, fd, file);
    close(fd);
    return err;
}

void input_close(struct input *input)
{
    if (input->mapped)
        munmap((void *)(uintptr_t)input->text, input->bytes);
    else if (input->owned)
        free((void *)(uintptr_t)input->text);
    *input = (struct input){0};
}

void input_check_begin(int64_t begin, const int32_t *tokens, size_t n)
{
    if (n > 1 && tokens[0] == begin && tokens[1] == begin)
        warn("the prompt has two begin tokens: the model adds one, leave out the text's");
}
