// SPDX-License-Identifier: Apache-2.0
// Asks a model many questions about one document in one session, through the public header alone:
// each prompt is document + question, inst_sync keeps the document's KV and drops the question
// before it, and the answer comes from decode steps whose attention runs in the drive.
//
// ask MODEL KV MEMORY DOCUMENT QUESTIONS ANSWER_TOKENS [NAME=VALUE ...]
// NAME: attention, context, r, k, divisor, local, page_channels, audit, group as in inst_options;
// stepwise=1 reads the questions too token by token, by decode steps, so that they see the document
// as the answers do.
// QUESTIONS holds texts that each end with a NUL; so do the answers on stdout. A last line on
// stderr gives the counters as JSON.
#include "instinfer_stats.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct text {
    char *bytes; // n, and a NUL after them
    size_t n;
};

static int complain(const char *what, int code, const struct inst_msg *msg)
{
    fprintf(stderr, "%s: %s\n", what, msg->text[0] ? msg->text : inst_status_text(code));
    return 1;
}

static bool read_file(const char *path, struct text *text)
{
    FILE *file = fopen(path, "rb");
    long n = -1;
    *text = (struct text){0};
    if (file && !fseek(file, 0, SEEK_END))
        n = ftell(file);
    if (n >= 0)
        text->bytes = malloc((size_t)n + 1);
    if (text->bytes) {
        rewind(file);
        text->n = fread(text->bytes, 1, (size_t)n, file);
        text->bytes[text->n] = 0;
    }
    if (file)
        fclose(file);
    if (!text->bytes || text->n != (size_t)n) {
        fprintf(stderr, "%s: cannot be read\n", path);
        free(text->bytes);
        text->bytes = NULL;
        return false;
    }
    return true;
}

static int32_t best_token(const float *logits, uint32_t vocab)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < vocab; i++)
        if (logits[i] > logits[best])
            best = i;
    return (int32_t)best;
}

// Brings the session to the prompt, then generates greedily; the text goes to stdout. The tokens
// after `known` come one by one (0: all at once).
static int answer(inst_engine *engine, inst_session *session, const char *prompt, size_t bytes,
                  size_t known, size_t count, uint32_t vocab)
{
    struct inst_msg msg = {0};
    int32_t *prompt_tokens;
    size_t n;
    int err = inst_tokenize(engine, prompt, bytes, 0, &prompt_tokens, &n, &msg);
    if (err)
        return complain("tokenize", err, &msg);
    int32_t *tokens = realloc(prompt_tokens, (n + count) * sizeof *tokens);
    if (!tokens) {
        free(prompt_tokens);
        return complain("tokenize", INST_ENOMEM, &msg);
    }
    for (size_t at = known; known && at < n && !err; at++) {
        struct inst_prefix prefix = {.session = session, .tokens = tokens, .n_tokens = at};
        err = inst_sync(engine, &prefix, 1, NULL, NULL, &msg);
    }
    for (size_t i = 0; i < count && !err; i++) {
        struct inst_prefix prefix = {.session = session, .tokens = tokens, .n_tokens = n};
        err = inst_sync(engine, &prefix, 1, NULL, NULL, &msg);
        if (err)
            break;
        tokens[n] = best_token(inst_logits(session), vocab);
        size_t length;
        const char *text = inst_token_text(engine, tokens[n++], &length);
        fwrite(text, 1, length, stdout);
    }
    putchar(0);
    free(tokens);
    return err ? complain("sync", err, &msg) : 0;
}

static int ask_all(inst_engine *engine, const struct text *document, const struct text *questions,
                   size_t count, bool stepwise)
{
    struct inst_msg msg = {0};
    struct inst_model_info info;
    inst_session *session;
    inst_engine_info(engine, &info);
    int err = inst_session_open(&session, engine, &msg);
    if (err)
        return complain("session", err, &msg);
    size_t known = 0; // tokens of the document
    int32_t *tokens = NULL;
    if (stepwise)
        err = inst_tokenize(engine, document->bytes, document->n, 0, &tokens, &known, &msg);
    free(tokens);
    if (err)
        return complain("tokenize", err, &msg);
    char *prompt = malloc(document->n + questions->n + 1);
    int failed = !prompt;
    if (prompt)
        memcpy(prompt, document->bytes, document->n);
    for (size_t at = 0; at < questions->n && !failed;) {
        size_t n = strlen(questions->bytes + at);
        memcpy(prompt + document->n, questions->bytes + at, n);
        failed = answer(engine, session, prompt, document->n + n, known, count, info.vocab);
        at += n + 1;
    }
    free(prompt);
    inst_session_close(session);
    return failed;
}

static int print_stats(inst_engine *engine)
{
    struct inst_msg msg = {0};
    struct inst_stats stats;
    int err = inst_engine_stats(engine, &stats, &msg);
    if (err)
        return complain("stats", err, &msg);
    const char *comma = "{";
#define PRINT(type, name, text)                                                                    \
    fprintf(stderr, "%s\"" #name "\": %.17g", comma, (double)stats.name);                          \
    comma = ", ";
    INST_STATS_MAP(PRINT)
#undef PRINT
    for (size_t i = 0; i < stats.n_method; i++)
        fprintf(stderr, ", \"%s\": %.17g", stats.method[i].name, stats.method[i].value);
    fprintf(stderr, "}\n");
    return 0;
}

static bool read_option(struct inst_options *o, bool *stepwise, const char *text)
{
    const char *value = strchr(text, '=');
    struct {
        const char *name;
        uint32_t *number;
    } numbers[] = {{"r", &o->sparf_channels},
                   {"k", &o->sparf_tokens},
                   {"divisor", &o->sparf_divisor},
                   {"local", &o->sparf_local},
                   {"page_channels", &o->page_channels},
                   {"group", &o->group}};
    if (!value++)
        return false;
    size_t n = (size_t)(value - text) - 1;
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        if (strlen(numbers[i].name) == n && !strncmp(text, numbers[i].name, n)) {
            *numbers[i].number = (uint32_t)strtoul(value, NULL, 10);
            return true;
        }
    if (!strncmp(text, "attention=", 10))
        o->attention = value;
    else if (!strncmp(text, "audit=", 6))
        o->audit = strtod(value, NULL);
    else if (!strncmp(text, "context=", 8))
        o->context = strtoull(value, NULL, 10);
    else if (!strncmp(text, "stepwise=", 9))
        *stepwise = *value == '1';
    else
        return false;
    return true;
}

int main(int argc, char **argv)
{
    struct inst_msg msg = {0};
    struct text document = {0}, questions = {0};
    inst_engine *engine = NULL;
    bool stepwise = false, usable = argc >= 7;
    const char *kv = usable ? argv[2] : NULL;
    struct inst_options options = {0};
    for (int i = 7; i < argc && usable; i++)
        usable = read_option(&options, &stepwise, argv[i]);
    if (!usable) {
        fprintf(stderr, "usage: ask MODEL KV MEMORY DOCUMENT QUESTIONS ANSWER_TOKENS "
                        "[NAME=VALUE ...]\n");
        return 2;
    }
    options.model = argv[1];
    options.kv = &kv;
    options.n_kv = 1;
    options.memory = strtoull(argv[3], NULL, 10);
    int failed = !read_file(argv[4], &document) || !read_file(argv[5], &questions);
    int err = failed ? 0 : inst_engine_open(&engine, &options, &msg);
    if (err)
        failed = complain("engine", err, &msg);
    if (!failed)
        failed = ask_all(engine, &document, &questions, strtoul(argv[6], NULL, 10), stepwise);
    if (!failed)
        failed = print_stats(engine);
    inst_engine_close(engine);
    free(document.bytes);
    free(questions.bytes);
    return failed ? 1 : 0;
}
