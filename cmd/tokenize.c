// SPDX-License-Identifier: Apache-2.0
// instinfer tokenize: works on a file that holds a vocabulary only.
#include "cmd/commands.h"
#include "cmd/input.h"
#include "cmd/options.h"
#include "host/engine/system.h"
#include "host/model/tokenizer.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct tokenize {
    const char *model, *text, *file;
    bool no_bos, no_special, ids;
    uint64_t memory;
};

// Bytes of a token, control characters and quotes escaped.
static void print_piece(const char *bytes, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)bytes[i];
        if (c == '\n')
            fputs("\\n", stdout);
        else if (c < 0x20 || c == 0x7f)
            printf("\\x%02x", c);
        else if (c == '\'' || c == '\\')
            printf("\\%c", c);
        else
            putchar(c);
    }
}

static int print_tokens(const struct tokenizer *t, const struct token_list *list, bool ids)
{
    char *piece = malloc(tokenizer_piece_room(t) + 1);
    if (!piece)
        return fail(EXIT_FAILED, "out of memory");
    if (ids)
        putchar('[');
    for (uint64_t i = 0; i < list->count; i++) {
        if (ids) {
            printf(i ? ", %u" : "%u", list->ids[i]);
            continue;
        }
        printf("%6u '", list->ids[i]);
        print_piece(piece, tokenizer_piece(t, list->ids[i], TOKENIZER_SHOW_SPECIAL, piece));
        puts("'");
    }
    if (ids)
        puts("]");
    free(piece);
    if (fflush(stdout) || ferror(stdout))
        return fail(EXIT_FAILED, "standard output: %s", strerror(errno));
    return 0;
}

static int resize_text(void *budget, char **bytes, size_t size, struct inst_msg *msg)
{
    char *other = size ? budget_resize(budget, *bytes, size, "the text", msg) : NULL;
    if (!size)
        budget_free(budget, *bytes);
    else if (!other)
        return INST_ENOMEM;
    *bytes = other;
    return 0;
}

static int run(const struct tokenize *o)
{
    if (!o->model)
        return fail(EXIT_USAGE, "tokenize: no model given: use -m MODEL");
    struct budget budget;
    budget_init(&budget, o->memory ? o->memory : system_memory_available() / 4);
    const struct text_room room = {.resize = resize_text, .owner = &budget, .most = UINT64_MAX};
    struct input input = {.read.room = &room};
    struct inst_msg msg = {0};
    struct gguf *gguf = NULL;
    struct tokenizer *tokenizer = NULL;
    struct token_list list = {.budget = &budget};
    unsigned flags =
        (o->no_bos ? 0u : TOKENIZER_ADD_SPECIAL) | (o->no_special ? 0u : TOKENIZER_PARSE_SPECIAL);
    int err = gguf_open(&gguf, o->model, &budget, &msg), code = 0;
    if (!err)
        err = tokenizer_open(&tokenizer, gguf, &budget, &msg);
    if (!err)
        code = input_open(&input, "tokenize", o->text, o->file, &room);
    if (!err && !code)
        err = tokenizer_encode(tokenizer, input.text, input.bytes, flags, &list, &msg);
    if (!err && !code && !o->no_bos && tokenizer_adds_bos(tokenizer))
        input_check_begin(tokenizer_bos(tokenizer), (const int32_t *)list.ids, list.count);
    if (err)
        code = fail(EXIT_FAILED, "%s", msg.text);
    else if (!code)
        code = print_tokens(tokenizer, &list, o->ids);
    token_list_free(&list);
    input_close(&input);
    tokenizer_free(tokenizer);
    gguf_close(gguf);
    return code;
}

int command_tokenize(int argc, char **argv)
{
    static struct tokenize o;
    const struct option rows[] = {
        {"Options", 0, OPTION_HEADING, NULL, 0, 0, NULL, NULL},
        {"--model", 'm', OPTION_MODEL, &o.model, 0, 0, "MODEL", "GGUF file"},
        {"--prompt", 'p', OPTION_TEXT, &o.text, 0, 0, "TEXT", "the text"},
        {"--file", 'f', OPTION_INPUT, &o.file, 0, 0, "FILE",
         "text from a file, - = stdin; a byte order mark is left out, CR LF stays"},
        {"--no-bos", 0, OPTION_FLAG, &o.no_bos, 0, 0, NULL, "adds no begin and end tokens"},
        {"--no-special", 0, OPTION_FLAG, &o.no_special, 0, 0, NULL,
         "the texts of control tokens are ordinary text"},
        {"--ids", 0, OPTION_FLAG, &o.ids, 0, 0, NULL, "one JSON array of ids"},
        {"--memory", 0, OPTION_SIZE, &o.memory, 0, 0, "SIZE",
         "for text, tokens and tables; default: a quarter of what is available"},
    };
    const struct options options = {"tokenize", NULL, "Prints the tokens of a text.", rows,
                                    sizeof rows / sizeof *rows};
    int n, code;
    if (options_parse(&options, argc, argv, &n, &code))
        code = run(&o);
    return code;
}
