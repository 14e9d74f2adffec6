// SPDX-License-Identifier: Apache-2.0
#include "cmd/lines.h"
#include "cmd/options.h"

#include <errno.h>
#include <histedit.h>
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct lines {
    EditLine *edit; // NULL: a pipe
    History *history;
    FILE *screen; // where editing shows
    const char *prompt;
    bool interrupted;
    // Of a pipe: what was read and not yet taken.
    char piece[4096];
    size_t at, end;
    bool begun;
};

static char *show_prompt(EditLine *edit)
{
    struct lines *lines;
    el_get(edit, EL_CLIENTDATA, &lines);
    return (char *)(uintptr_t)lines->prompt;
}

// Ctrl-C is a key like others while a line is edited: it ends the line, which is then forgotten.
static unsigned char on_interrupt_key(EditLine *edit, int key)
{
    (void)key;
    struct lines *lines;
    el_get(edit, EL_CLIENTDATA, &lines);
    lines->interrupted = true;
    el_push(edit, "\n");
    return CC_NORM;
}

static unsigned char on_suspend_key(EditLine *edit, int key)
{
    (void)edit;
    (void)key;
    raise(SIGTSTP); // libedit's handler gives the terminal back first
    return CC_REFRESH;
}

static void open_history(struct lines *lines)
{
    HistEvent event;
    lines->history = history_init();
    if (!lines->history)
        return;
    history(lines->history, &event, H_SETSIZE, 1000);
    history(lines->history, &event, H_SETUNIQUE, 1);
    el_set(lines->edit, EL_HIST, history, lines->history);
}

static int open_editor(struct lines *lines)
{
    // Characters are what the locale says; without one they are still UTF-8.
    setlocale(LC_CTYPE, "");
    if (MB_CUR_MAX == 1)
        setlocale(LC_CTYPE, "C.UTF-8");
    lines->screen = isatty(STDERR_FILENO) ? stderr : fopen("/dev/tty", "we");
    if (!lines->screen)
        lines->screen = stderr;
    lines->edit = el_init("instinfer", stdin, lines->screen, lines->screen);
    if (!lines->edit)
        return fail(EXIT_FAILED, "the terminal cannot be edited on");
    el_set(lines->edit, EL_CLIENTDATA, lines);
    el_set(lines->edit, EL_PROMPT, show_prompt);
    el_set(lines->edit, EL_EDITOR, "emacs");
    el_set(lines->edit, EL_SIGNAL, 1);
    open_history(lines);
    el_set(lines->edit, EL_ADDFN, "inst-interrupt", "forgets the line", on_interrupt_key);
    el_set(lines->edit, EL_ADDFN, "inst-suspend", "stops the program", on_suspend_key);
    el_source(lines->edit, NULL); // ~/.editrc
    // No signals from keys while editing: a read that Ctrl-C interrupts looks like the end.
    el_set(lines->edit, EL_SETTY, "-d", "-isig", NULL);
    el_set(lines->edit, EL_BIND, "^Z", "inst-suspend", NULL);
    el_set(lines->edit, EL_BIND, "^C", "inst-interrupt", NULL);
    return 0;
}

int lines_open(struct lines **out)
{
    struct lines *lines = *out = calloc(1, sizeof *lines);
    if (!lines)
        return fail(EXIT_FAILED, "out of memory");
    int code = isatty(STDIN_FILENO) ? open_editor(lines) : 0;
    if (code) {
        lines_close(lines);
        *out = NULL;
    }
    return code;
}

void lines_close(struct lines *lines)
{
    if (!lines)
        return;
    if (lines->edit)
        el_end(lines->edit);
    if (lines->history)
        history_end(lines->history);
    if (lines->screen && lines->screen != stderr)
        fclose(lines->screen);
    free(lines);
}

bool lines_typed(const struct lines *lines)
{
    return lines->edit;
}

static enum line append(struct text *text, const char *bytes, size_t n)
{
    enum text_fate fate = text_add(text, bytes, n);
    if (fate == TEXT_FITS)
        return LINE_TEXT;
    text_refused("this turn", text, fate);
    return LINE_REFUSED;
}

// The next piece of the pipe. LINE_TEXT: there is one.
static enum line fill(struct lines *lines)
{
    if (lines->at < lines->end)
        return LINE_TEXT;
    ssize_t n = read(STDIN_FILENO, lines->piece, sizeof lines->piece);
    if (n < 0 && errno == EINTR)
        return LINE_INTERRUPT;
    if (n < 0) {
        fail(EXIT_FAILED, "standard input: %s", strerror(errno));
        return LINE_FAILED;
    }
    lines->at = 0;
    lines->end = (size_t)n;
    return n ? LINE_TEXT : LINE_END;
}

static enum line read_pipe(struct lines *lines, struct text *text)
{
    bool some = false, whole = false;
    while (!whole) {
        enum line line = fill(lines);
        if (line == LINE_END && some)
            break;
        if (line != LINE_TEXT)
            return line;
        const char *start = lines->piece + lines->at;
        const char *feed = memchr(start, '\n', lines->end - lines->at);
        size_t n = feed ? (size_t)(feed - start) : lines->end - lines->at;
        whole = feed;
        some = true;
        lines->at += n + whole;
        line = append(text, start, n);
        if (line != LINE_TEXT)
            return line;
    }
    return LINE_TEXT;
}

static enum line read_typed(struct lines *lines, struct text *text)
{
    int n = 0;
    lines->interrupted = false;
    const char *typed = el_gets(lines->edit, &n);
    if (lines->interrupted)
        return LINE_INTERRUPT;
    if (!typed || n <= 0) {
        fputc('\n', lines->screen);
        fflush(lines->screen);
        return LINE_END;
    }
    if (lines->history && n > 1) {
        HistEvent event;
        history(lines->history, &event, H_ENTER, typed);
    }
    return append(text, typed, (size_t)(n - (typed[n - 1] == '\n')));
}

enum line lines_read(struct lines *lines, const char *prompt, bool goes_on, struct text *text)
{
    size_t before = text->n;
    lines->prompt = prompt;
    enum line line = append(text, "\n", goes_on);
    if (line == LINE_TEXT)
        line = lines->edit ? read_typed(lines, text) : read_pipe(lines, text);
    if (line != LINE_TEXT) {
        text->n = before;
        return line;
    }
    before += goes_on;
    size_t n = text->n - before;
    const char *start = text->bytes + before;
    if (!lines->begun && n && text_mark(start, n) < 0) {
        fail(EXIT_FAILED, "standard input: %s", text_not_utf8);
        return LINE_FAILED;
    }
    lines->begun = true;
    if (n) {
        text_trim_line(&start, &n);
        memmove(text->bytes + before, start, n);
        text->n = before + n;
    }
    return LINE_TEXT;
}
