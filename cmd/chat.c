// SPDX-License-Identifier: Apache-2.0
// instinfer run --chat: a conversation in one session. Its tokens only ever grow at the end, so
// each turn costs the prefill of that turn and no more.
#include "cmd/input.h"
#include "cmd/lines.h"
#include "cmd/run.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

// Takes `end` off the message's end.
static bool cut_end(struct text *m, const char *end)
{
    size_t n = strlen(end);
    if (m->n < n || memcmp(m->bytes + m->n - n, end, n))
        return false;
    m->n -= n;
    return true;
}

// Lines until the message is whole: a line goes on after a backslash at its end, and all lines
// between """ and """ are one message. An end of the input ends the message too.
static enum line read_message(struct lines *lines, struct text *m)
{
    static const char quotes[] = "\"\"\"";
    m->n = 0;
    enum line line = lines_read(lines, "> ", false, m);
    if (line != LINE_TEXT)
        return line;
    bool quoted = m->n >= 3 && !memcmp(m->bytes, quotes, 3);
    if (quoted) {
        m->n -= 3;
        memmove(m->bytes, m->bytes + 3, m->n);
    }
    while (line == LINE_TEXT && (quoted ? !cut_end(m, quotes) : cut_end(m, "\\")))
        line = lines_read(lines, ". ", true, m);
    return line == LINE_END ? LINE_TEXT : line;
}

// Appends the turn to the conversation. 0, an exit code, or -1: it does not fit.
static int add_turn(struct run *r, const char *text, size_t bytes)
{
    struct inst_msg msg = {0};
    int32_t *tokens;
    size_t n;
    int err = inst_chat_turn(r->e, !r->n_tokens, r->system, text, bytes, &tokens, &n, &msg);
    if (err)
        return failed(err, &msg);
    // At least one token of an answer must fit too.
    size_t left = (size_t)r->info.context - r->n_tokens;
    bool fits = n < left && r->n_tokens + n > 0;
    if (fits && n) {
        memcpy(r->tokens + r->n_tokens, tokens, n * sizeof *tokens);
        r->n_tokens += n;
        r->result.prompt_tokens += n;
    }
    free(tokens);
    if (!fits && n)
        fail(EXIT_FAILED,
             "this turn of %zu tokens and an answer do not fit: %zu of the context of %zu are left "
             "(see -c)",
             n, left, (size_t)r->info.context);
    else if (!fits)
        fail(EXIT_FAILED, "the prompt has no tokens");
    return fits ? 0 : -1;
}

// One turn and its answer, with a line break behind it if asked for. The same.
static int converse(struct run *r, const char *text, size_t bytes, bool line_break)
{
    size_t before = r->n_tokens;
    int code = add_turn(r, text, bytes);
    if (code)
        return code;
    size_t answer = r->n_tokens;
    output_open(&r->output);
    run_forget_interrupt();
    code = run_generate(r);
    terminal_end_progress(&r->terminal);
    bool written = !r->output.error;
    if (written && line_break && !r->output.newline)
        written = putchar('\n') != EOF && !fflush(stdout);
    if (!written && !code)
        code = fail(EXIT_FAILED, "standard output: %s",
                    strerror(r->output.error ? r->output.error : errno));
    meter_sample(&r->meter, true);
    r->result.turns++;
    if (run_interrupted() && r->n_tokens == answer) { // as if nothing had been said
        r->n_tokens = before;
        r->result.prompt_tokens -= answer - before;
    } else {
        r->n_tokens = inst_chat_settle(r->e, r->tokens, r->n_tokens, answer);
    }
    return code;
}

// Nothing more can be said: told plainly, and no error.
static bool is_full(const struct run *r)
{
    if (r->n_tokens < r->info.context)
        return false;
    fail(EXIT_OK, "the context of %zu tokens is full: the conversation ends here (see -c)",
         (size_t)r->info.context);
    return true;
}

// What can still be said, in bytes and tokens.
static struct text_room room_left(const struct run *r)
{
    return text_room_of_engine(r->e, r->info.context - r->n_tokens, r->info.context);
}

static int converse_in_lines(struct run *r, struct lines *lines)
{
    bool typed = lines_typed(lines);
    struct text_room room = room_left(r);
    struct text m = {.room = &room};
    int code = 0;
    while (!code && !is_full(r)) {
        room = room_left(r);
        enum line line = read_message(lines, &m);
        if (line == LINE_END)
            break;
        if (line == LINE_FAILED) {
            code = EXIT_FAILED;
            break;
        }
        if (line == LINE_INTERRUPT && typed)
            continue;
        if (line == LINE_INTERRUPT) {
            r->result.stop_reason = "interrupt";
            code = EXIT_INTERRUPTED;
            break;
        }
        if (line == LINE_TEXT && !m.n)
            continue;
        code = line == LINE_TEXT ? converse(r, m.bytes, m.n, true) : -1;
        if (code < 0) // a shorter turn may fit
            code = typed ? 0 : EXIT_FAILED;
        else if (!code && run_interrupted() && !typed)
            code = EXIT_INTERRUPTED;
        else if (run_interrupted() && typed)
            fputc('\n', stderr); // behind the ^C
    }
    text_free(&m);
    return code;
}

static int converse_once(struct run *r)
{
    struct input input;
    struct text_room room = room_left(r);
    int code = input_open(&input, "run", r->prompt, r->file, &room);
    if (!code && run_interrupted()) // just before a read began
        code = EXIT_INTERRUPTED;
    if (code == EXIT_INTERRUPTED)
        r->result.stop_reason = "interrupt";
    else if (!code)
        code = converse(r, input.text, input.bytes, false);
    input_close(&input);
    return code < 0 ? EXIT_FAILED : !code && run_interrupted() ? EXIT_INTERRUPTED : code;
}

int chat_run(struct run *r)
{
    r->tokens = malloc((size_t)r->info.context * sizeof *r->tokens);
    if (!r->tokens)
        return fail(EXIT_FAILED, "out of memory");
    if (r->prompt || r->file)
        return converse_once(r);
    struct lines *lines;
    int code = lines_open(&lines);
    if (!code)
        code = converse_in_lines(r, lines);
    lines_close(lines);
    return code;
}
