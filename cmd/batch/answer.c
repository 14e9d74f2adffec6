// SPDX-License-Identifier: Apache-2.0
#include "cmd/batch/answer.h"
#include "host/model/text.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TOKEN_TEXT_MAX = 4096 }; // bytes; more of a token is not shown

static char *make_room(struct batch_answer *a, size_t more)
{
    if (a->n + more > a->room) {
        size_t room = 2 * (a->n + more) + 256;
        char *text = realloc(a->text, room);
        a->no_memory |= !text;
        if (!text)
            return NULL;
        a->text = text;
        a->room = room;
    }
    return a->text + a->n;
}

void batch_answer_free(struct batch_answer *a)
{
    free(a->text);
    *a = (struct batch_answer){0};
}

static void put(struct batch_answer *a, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void put(struct batch_answer *a, const char *fmt, ...)
{
    enum { MOST = 256 };
    char *at = make_room(a, MOST);
    va_list args;
    va_start(args, fmt);
    if (at)
        a->n += (size_t)vsnprintf(at, MOST, fmt, args);
    va_end(args);
}

static void put_text(struct batch_answer *a, const char *text, size_t bytes)
{
    static const char from[] = "\"\\\b\f\n\r\t", to[] = "\"\\bfnrt";
    put(a, "\"");
    for (size_t i = 0; i < bytes; i++) {
        char c = text[i], *at = make_room(a, 8);
        const char *short_form = c ? strchr(from, c) : NULL;
        if (!at)
            return;
        if (short_form)
            a->n += (size_t)snprintf(at, 8, "\\%c", to[short_form - from]);
        else if ((unsigned char)c < 0x20)
            a->n += (size_t)snprintf(at, 8, "\\u%04x", (unsigned)c);
        else
            a->text[a->n++] = c;
    }
    put(a, "\"");
}

static void put_string(struct batch_answer *a, const char *text)
{
    put_text(a, text, strlen(text));
}

// Whole characters of one token; the number of bytes.
static size_t token_text(inst_engine *e, int32_t token, char out[TOKEN_TEXT_MAX])
{
    struct text_stream stream = {0};
    size_t n;
    const char *bytes = inst_token_text(e, token, &n);
    if (text_stream_room(n) > TOKEN_TEXT_MAX)
        n = TOKEN_TEXT_MAX / 3 - 4;
    size_t all = text_stream_push(&stream, bytes, n, out);
    return all + text_stream_end(&stream, out + all);
}

static void put_token(struct batch_answer *a, inst_engine *e, int32_t token)
{
    char text[TOKEN_TEXT_MAX];
    size_t n = token_text(e, token, text);
    put_text(a, text, n);
}

static void put_logprob(struct batch_answer *a, float logprob)
{
    if (isfinite(logprob))
        put(a, "%.6f", (double)logprob);
    else
        put(a, "-9999.0"); // as there
}

static void put_chat_token(struct batch_answer *a, inst_engine *e, const struct inst_logprob *row)
{
    size_t n;
    put(a, "{\"token\":");
    put_token(a, e, row->token);
    put(a, ",\"logprob\":");
    put_logprob(a, row->logprob);
    put(a, ",\"bytes\":[");
    const char *bytes = inst_token_text(e, row->token, &n);
    for (size_t i = 0; i < n; i++)
        put(a, i ? ",%u" : "%u", (unsigned)(unsigned char)bytes[i]);
    put(a, "]");
}

static void put_chat_logprobs(struct batch_answer *a, inst_engine *e, const inst_generation *g,
                              size_t shown)
{
    const struct inst_logprob *row;
    size_t n;
    put(a, "{\"content\":[");
    for (size_t i = 0; i < shown && (row = inst_generation_logprobs(g, i, &n)); i++) {
        if (i)
            put(a, ",");
        put_chat_token(a, e, row);
        put(a, ",\"top_logprobs\":[");
        for (size_t k = 1; k < n && row[k].token >= 0; k++) {
            if (k > 1)
                put(a, ",");
            put_chat_token(a, e, &row[k]);
            put(a, "}");
        }
        put(a, "]}");
    }
    put(a, "]}");
}

// An object by the texts of tokens: of several with one text the likeliest.
static void put_top(struct batch_answer *a, inst_engine *e, const struct inst_logprob *row,
                    size_t n)
{
    char text[TOKEN_TEXT_MAX], other[TOKEN_TEXT_MAX];
    bool any = false;
    put(a, "{");
    for (size_t k = 1; k < n && row[k].token >= 0; k++) {
        size_t bytes = token_text(e, row[k].token, text), before = 1;
        while (before < k && (token_text(e, row[before].token, other) != bytes ||
                              memcmp(other, text, bytes) != 0))
            before++;
        if (before < k)
            continue;
        if (any)
            put(a, ",");
        any = true;
        put_text(a, text, bytes);
        put(a, ":");
        put_logprob(a, row[k].logprob);
    }
    put(a, "}");
}

// Characters of whole text.
static size_t characters(const char *text, size_t bytes)
{
    size_t n = 0;
    for (size_t i = 0; i < bytes; i++)
        n += (text[i] & 0xc0) != 0x80;
    return n;
}

static void put_logprobs(struct batch_answer *a, inst_engine *e, const inst_generation *g,
                         size_t shown)
{
    const struct inst_logprob *row;
    struct text_stream stream = {0};
    char text[TOKEN_TEXT_MAX];
    size_t n, offset = 0;
    put(a, "{\"tokens\":[");
    for (size_t i = 0; i < shown && (row = inst_generation_logprobs(g, i, &n)); i++) {
        put(a, i ? "," : "");
        put_token(a, e, row->token);
    }
    put(a, "],\"token_logprobs\":[");
    for (size_t i = 0; i < shown && (row = inst_generation_logprobs(g, i, &n)); i++) {
        put(a, i ? "," : "");
        put_logprob(a, row->logprob);
    }
    put(a, "],\"top_logprobs\":");
    for (size_t i = 0; i < shown && (row = inst_generation_logprobs(g, i, &n)) && n > 1; i++) {
        put(a, i ? "," : "[");
        put_top(a, e, row, n);
    }
    bool tops = shown && inst_generation_logprobs(g, 0, &n) && n > 1;
    put(a, tops ? "],\"text_offset\":[" : "null,\"text_offset\":[");
    for (size_t i = 0; i < shown && (row = inst_generation_logprobs(g, i, &n)); i++) {
        size_t bytes;
        const char *piece = inst_token_text(e, row->token, &bytes);
        put(a, i ? ",%zu" : "%zu", offset);
        if (text_stream_room(bytes) <= sizeof text)
            offset += characters(text, text_stream_push(&stream, piece, bytes, text));
    }
    put(a, "]}");
}

// Tokens that have a part in the text: a stop text cut the others off.
static size_t tokens_shown(inst_engine *e, const inst_generation *g, size_t text_bytes)
{
    struct text_stream stream = {0};
    char text[TOKEN_TEXT_MAX];
    size_t n, prompt, at = 0;
    struct inst_usage usage;
    inst_generation_usage(g, &usage);
    const int32_t *tokens = inst_generation_tokens(g, &n);
    prompt = (size_t)usage.prompt_tokens;
    if (inst_generation_finish(g) != INST_FINISH_STOP)
        return n - prompt;
    size_t shown = 0;
    for (; prompt + shown < n && at < text_bytes; shown++) {
        size_t bytes;
        const char *piece = inst_token_text(e, tokens[prompt + shown], &bytes);
        at += text_stream_room(bytes) > sizeof text ? bytes
                                                    : text_stream_push(&stream, piece, bytes, text);
    }
    return shown;
}

static void put_choice(struct batch_answer *a, inst_engine *e, const struct batch_request *r,
                       inst_generation *g, size_t index)
{
    enum inst_finish finish = inst_generation_finish(g);
    bool cut = finish == INST_FINISH_LENGTH || finish == INST_FINISH_CONTEXT;
    size_t bytes;
    const char *text = inst_generation_text(g, &bytes);
    bool chat = r->url == BATCH_CHAT;
    put(a, "%s{\"index\":%zu,", index ? "," : "", index);
    put(a, chat ? "\"message\":{\"role\":\"assistant\",\"content\":" : "\"text\":");
    put_text(a, text, bytes);
    put(a, chat ? ",\"refusal\":null},\"logprobs\":" : ",\"logprobs\":");
    size_t shown = r->options.logprobs ? tokens_shown(e, g, bytes) : 0;
    if (!r->options.logprobs)
        put(a, "null");
    else if (chat)
        put_chat_logprobs(a, e, g, shown);
    else
        put_logprobs(a, e, g, shown);
    put(a, ",\"finish_reason\":\"%s\"}", cut ? "length" : "stop");
}

static void put_head(struct batch_answer *a, uint64_t print, const char *custom_id)
{
    put(a, "{\"id\":\"batch_req_%016" PRIx64 "\",\"custom_id\":", print);
    if (custom_id)
        put_string(a, custom_id);
    else
        put(a, "null");
}

void batch_answer_write(struct batch_answer *a, inst_engine *engine, uint64_t print,
                        const struct batch_request *r, inst_generation *const *generations,
                        size_t n_choices)
{
    struct inst_model_info info;
    struct inst_usage usage;
    uint64_t prompt = 0, completion = 0;
    bool chat = r->url == BATCH_CHAT;
    inst_engine_info(engine, &info);
    put_head(a, print, r->custom_id);
    put(a,
        ",\"response\":{\"status_code\":200,\"request_id\":\"req_%016" PRIx64
        "\",\"body\":{\"id\":\"%s-%016" PRIx64 "\",\"object\":\"%s\",\"created\":0,\"model\":",
        print, chat ? "chatcmpl" : "cmpl", print, chat ? "chat.completion" : "text_completion");
    put_string(a, info.name);
    put(a, ",\"choices\":[");
    for (size_t i = 0; i < n_choices; i++) {
        inst_generation_usage(generations[i], &usage);
        prompt += i % r->n ? 0 : usage.prompt_tokens;
        completion += usage.completion_tokens;
        put_choice(a, engine, r, generations[i], i);
    }
    put(a,
        "],\"usage\":{\"prompt_tokens\":%" PRIu64 ",\"completion_tokens\":%" PRIu64
        ",\"total_tokens\":%" PRIu64 "},\"seed\":%" PRIu32 "}},\"error\":null}",
        prompt, completion, prompt + completion, r->options.sampling.seed);
}

void batch_answer_error(struct batch_answer *a, uint64_t print, uint32_t line,
                        const char *custom_id, const struct batch_error *error)
{
    char message[512];
    snprintf(message, sizeof message, "line %" PRIu32 ": %s%s%s", line, error->field,
             error->field[0] ? " " : "", error->text);
    put_head(a, print, custom_id);
    put(a, ",\"response\":null,\"error\":{\"code\":");
    put_string(a, error->code);
    put(a, ",\"message\":");
    put_string(a, message);
    put(a, ",\"param\":");
    if (error->field[0])
        put_string(a, error->field);
    else
        put(a, "null");
    put(a, ",\"line\":%" PRIu32 "}}", line);
}
