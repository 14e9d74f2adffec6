// SPDX-License-Identifier: Apache-2.0
// instinfer logits: logits of a prompt's last or of all its positions, as a .npy array of
// [positions][vocabulary] (one row for the last position).
#include "cmd/commands.h"
#include "cmd/engine_options.h"
#include "cmd/input.h"
#include "cmd/npy.h"
#include "cmd/output_file.h"
#include "cmd/terminal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct logits {
    struct engine_options engine;
    const char *prompt, *file, *list;
    struct output_file out;
    bool all, verbose, no_special;
    int error; // errno of a write that failed
    inst_engine *e;
    int32_t *tokens;
    size_t n_tokens;
    struct inst_model_info info;
};

static bool on_logits(void *user, uint64_t position, const float *values)
{
    struct logits *l = user;
    bool ok = npy_row(l->out.stream, values, l->info.vocab);
    (void)position;
    l->error = ok ? 0 : errno ? errno : EIO;
    return ok;
}

static int parse_tokens(struct logits *l)
{
    size_t room = 1;
    for (const char *p = l->list; *p; p++)
        room += *p == ',';
    l->tokens = malloc(room * sizeof *l->tokens);
    if (!l->tokens)
        return fail(EXIT_FAILED, "out of memory");
    for (const char *p = l->list;; p++) {
        char *end;
        errno = 0;
        long id = strtol(p, &end, 10);
        if (end == p || *p < '0' || *p > '9' || errno || id > INT32_MAX || (*end && *end != ','))
            return fail(EXIT_USAGE, "logits: --tokens: '%s' is not a list of ids like 1,2,3",
                        l->list);
        l->tokens[l->n_tokens++] = (int32_t)id;
        if (!*end)
            return 0;
        p = end;
    }
}

static int read_tokens(struct logits *l)
{
    struct input input;
    struct inst_msg msg = {0};
    if (l->list)
        return parse_tokens(l);
    struct text_room room = text_room_of_engine(l->e, l->info.context, l->info.context);
    int code = input_open(&input, "logits", l->prompt, l->file, &room);
    if (code)
        return code;
    code =
        inst_tokenize(l->e, input.text, input.bytes, l->no_special ? INST_TOKENIZE_NO_SPECIAL : 0u,
                      &l->tokens, &l->n_tokens, &msg);
    input_close(&input);
    if (code)
        return failed(code, &msg);
    input_check_begin(l->info.begin_token, l->tokens, l->n_tokens);
    return l->n_tokens ? 0 : fail(EXIT_FAILED, "the prompt has no tokens");
}

static int compute(struct logits *l)
{
    struct inst_msg msg = {0};
    inst_session *session;
    int err = inst_session_open(&session, l->e, &msg);
    if (err)
        return failed(err, &msg);
    size_t rows = l->all ? l->n_tokens : 1;
    int code = output_file_reserve(&l->out, npy_bytes(rows, l->info.vocab));
    if (code)
        return code;
    if (!npy_begin(l->out.stream, rows, l->info.vocab))
        return output_file_failed(&l->out);
    if (l->all)
        inst_session_on_logits(session, on_logits, l);
    struct inst_prefix prefix = {.session = session, .tokens = l->tokens, .n_tokens = l->n_tokens};
    err = inst_sync(l->e, &prefix, 1, NULL, NULL, &msg);
    if (err && err != INST_ECANCELLED)
        return failed(err, &msg);
    if (!l->all && !err)
        on_logits(l, l->n_tokens - 1, inst_logits(session));
    errno = l->error;
    return l->error ? output_file_failed(&l->out) : output_file_close(&l->out);
}

static int run(struct logits *l, const struct options *options)
{
    if (!l->out.path)
        return fail(EXIT_USAGE, "logits: no output given: use -o FILE.npy");
    if (l->list && (l->prompt || l->file))
        return fail(EXIT_USAGE, "logits: give either a text or --tokens, not both");
    if (!l->list && !l->prompt == !l->file)
        return fail(EXIT_USAGE, "logits: give one of -p TEXT, -f FILE and --tokens 1,2,3");
    int code = output_files_open(options);
    if (!code)
        code = engine_options_open(&l->e, &l->engine, "logits");
    if (code)
        return code;
    inst_engine_info(l->e, &l->info);
    struct terminal terminal;
    terminal_open(&terminal, l->verbose);
    terminal_first_line(&terminal, &l->info);
    code = read_tokens(l);
    return code ? code : compute(l);
}

int command_logits(int argc, char **argv)
{
    static struct logits l;
    const struct option rows[] = {
        {"Text", 0, OPTION_HEADING, NULL, 0, 0, NULL, NULL},
        {"--prompt", 'p', OPTION_TEXT, &l.prompt, 0, 0, "TEXT", "the prompt"},
        {"--file", 'f', OPTION_INPUT, &l.file, 0, 0, "FILE",
         "prompt from a file, - = stdin; UTF-8, a byte order mark is left out, CR LF stays"},
        {"--no-special", 0, OPTION_FLAG, &l.no_special, 0, 0, NULL,
         "the texts of control tokens are ordinary text"},
        {"--tokens", 0, OPTION_TEXT, &l.list, 0, 0, "1,2,3", "the prompt as ids"},
        {"--all", 0, OPTION_FLAG, &l.all, 0, 0, NULL, "all positions instead of the last"},
        {"--output", 'o', OPTION_OUTPUT, &l.out, 0, 0, "FILE.npy", "float32 [positions][vocab]"},
        ENGINE_OPTION_ROWS(l.engine),
        {"--verbose", 'v', OPTION_FLAG, &l.verbose, 0, 0, NULL, "says what is used"},
    };
    const struct options options = {"logits", NULL, "Writes a prompt's logits to a .npy file.",
                                    rows, sizeof rows / sizeof *rows};
    int n, code;
    if (options_parse(&options, argc, argv, &n, &code))
        code = run(&l, &options);
    inst_engine_close(l.e);
    free(l.tokens);
    options_free(&options);
    return code;
}
