// SPDX-License-Identifier: Apache-2.0
// A conversation's turns as tokens. Which template counts is settled when the engine is opened, so
// that a model without one is refused before anything else is made.
#include "host/engine/engine.h"
#include "base/checked.h"
#include "instinfer_generate.h"

#include <stdlib.h>
#include <string.h>

int engine_chat_open(struct inst_engine *e, const char *name, int64_t at, struct inst_msg *msg)
{
    time_t now = at ? (time_t)at : time(NULL);
    struct tm today = {0};
    if (!name)
        return 0;
    if (strcmp(name, "auto"))
        return chat_template_named(&e->chat, name, msg);
    return chat_template_read(&e->chat, e->gguf, localtime_r(&now, &today), msg);
}

static int encode(struct inst_engine *e, const struct chat_turn *turns, size_t n, int32_t **tokens,
                  size_t *n_tokens, struct inst_msg *msg)
{
    struct token_list list = {.budget = &e->budget};
    *tokens = NULL;
    *n_tokens = 0;
    if (!e->chat.form)
        return inst_fail(msg, INST_EINVAL, "this engine was opened without a chat template");
    int err = chat_template_encode_all(&e->chat, e->tokenizer, turns, n, &list, msg);
    if (!err) {
        *tokens = malloc(max_u64(list.count, 1) * sizeof **tokens);
        if (!*tokens)
            err = inst_fail(msg, INST_ENOMEM, "out of memory");
    }
    if (!err && list.count)
        memcpy(*tokens, list.ids, list.count * sizeof **tokens);
    if (!err)
        *n_tokens = list.count;
    token_list_free(&list);
    return err;
}

int inst_chat_turn(inst_engine *engine, bool first, const char *system, const char *text,
                   size_t bytes, int32_t **tokens, size_t *n_tokens, struct inst_msg *msg)
{
    struct chat_turn turn = {.first = first, .system = system, .text = text, .bytes = bytes};
    return encode(engine, &turn, 1, tokens, n_tokens, msg);
}

int inst_chat_messages(inst_engine *engine, const struct inst_chat_message *messages, size_t n,
                       int32_t **tokens, size_t *n_tokens, struct inst_msg *msg)
{
    bool system = n && messages[0].role == INST_ROLE_SYSTEM;
    char *system_text = NULL;
    size_t n_turns = (n - system + 1) / 2;
    *tokens = NULL;
    *n_tokens = 0;
    for (size_t i = system; i < n; i++)
        if (messages[i].role != ((i - system) % 2 ? INST_ROLE_ASSISTANT : INST_ROLE_USER))
            return inst_fail(msg, INST_EINVAL, "message %zu of a conversation is out of order", i);
    if ((n - system) % 2 == 0)
        return inst_fail(msg, INST_EINVAL, "a conversation ends with a message of the user");
    struct chat_turn *turns = calloc(n_turns, sizeof *turns);
    if (system)
        system_text = strndup(messages[0].text, messages[0].bytes);
    int err = !turns || (system && !system_text)
                  ? inst_fail(msg, INST_ENOMEM, "a conversation: out of memory")
                  : 0;
    for (size_t i = system; i < n && !err; i++) {
        struct chat_turn *turn = &turns[(i - system) / 2];
        if (messages[i].role == INST_ROLE_ASSISTANT) {
            turn->answer = messages[i].text;
            turn->answer_bytes = messages[i].bytes;
        } else {
            *turn = (struct chat_turn){.first = i == system,
                                       .system = i == system ? system_text : NULL,
                                       .text = messages[i].text,
                                       .bytes = messages[i].bytes};
        }
    }
    if (!err)
        err = encode(engine, turns, n_turns, tokens, n_tokens, msg);
    free(system_text);
    free(turns);
    return err;
}

size_t inst_chat_settle(inst_engine *engine, int32_t *tokens, size_t n_tokens, size_t answer)
{
    // Ids are of one size and never negative.
    return engine->chat.form ? chat_template_settle(&engine->chat, engine->tokenizer,
                                                    (uint32_t *)tokens, n_tokens, answer)
                             : n_tokens;
}
