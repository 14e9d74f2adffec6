// SPDX-License-Identifier: Apache-2.0
// instinfer run --chat: a conversation in one session. Its tokens only ever grow at the end, so
// each turn costs the prefill of that turn and no more.
#include "cmd/input.h"
#include "cmd/lines.h"
#include "cmd/run.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

// What the user says in one turn, of one or more lines.
struct message {
    char *text;
    size_t bytes, room;
};

static bool message_add(struct message *m, const char *text, size_t bytes)
{
    if (m->bytes + bytes > m->room) {
        size_t room = 2 * (m->bytes + bytes);
        char *bigger = realloc(m->text, room);
        if (!bigger)
            return false;
        m->text = bigger;
        m->room = room;
    }
    if (bytes)
        memcpy(m->text + m->bytes, text, bytes);
    m->bytes += bytes;
    return true;
}

// Takes `end` off the message's end.
static bool cut_end(struct message *m, const char *end)
{
    size_t n = strlen(end);
    if (m->bytes < n || memcmp(m->text + m->bytes - n, end, n))
        return false;
    m->bytes -= n;
    return true;
}

// Lines until the message is whole: a line goes on after a backslash at its end, and all lines
// between """ and """ are one message. An end of the input ends the message too.
static enum line read_message(struct lines *lines, struct message *m)
{
    static const char quotes[] = "\"\"\"";
    const char *text;
    size_t bytes;
    m->bytes = 0;
    enum line line = lines_read(lines, "> ", &text, &bytes);
    if (line != LINE_TEXT)
        return line;
    bool quoted = bytes >= 3 && !memcmp(text, quotes, 3);
    bool ok = message_add(m, text + 3 * quoted, bytes - 3 * quoted);
    while (ok && (quoted ? !cut_end(m, quotes) : cut_end(m, "\\"))) {
        line = lines_read(lines, ". ", &text, &bytes);
        if (line == LINE_END)
            break;
        if (line != LINE_TEXT)
            return line;
        ok = message_add(m, "\n", 1) && message_add(m, text, bytes);
    }
    if (ok)
        return LINE_TEXT;
    fail(EXIT_FAILED, "out of memory");
    return LINE_FAILED;
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
    output_open(&r->output, &r->stops);
    run_forget_interrupt();
    code = run_generate(r);
    terminal_end_progress(&r->terminal);
    bool written = output_end(&r->output);
    if (written && line_break && !r->output.newline)
        written = putchar('\n') != EOF && !fflush(stdout);
    if (!written && !code)
        code = fail(EXIT_FAILED, "standard output: %s", strerror(errno));
    output_close(&r->output);
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

static int converse_in_lines(struct run *r, struct lines *lines)
{
    bool typed = lines_typed(lines);
    struct message m = {0};
    int code = 0;
    while (!code && !is_full(r)) {
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
        if (!m.bytes)
            continue;
        code = converse(r, m.text, m.bytes, true);
        if (code < 0) // a shorter turn may fit
            code = typed ? 0 : EXIT_FAILED;
        else if (!code && run_interrupted() && !typed)
            code = EXIT_INTERRUPTED;
        else if (run_interrupted() && typed)
            fputc('\n', stderr); // behind the ^C
    }
    free(m.text);
    return code;
}

static int converse_once(struct run *r)
{
    struct input input;
    int code = input_open(&input, "run", r->prompt, r->file);
    if (code)
        return code;
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
