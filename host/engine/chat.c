// SPDX-License-Identifier: Apache-2.0
// A conversation's turns as tokens. Which template counts is settled when the engine is opened, so
// that a model without one is refused before anything else is made.
#include "host/engine/engine.h"
#include "base/checked.h"

#include <stdlib.h>
#include <string.h>

int engine_chat_open(struct inst_engine *e, const char *name, struct inst_msg *msg)
{
    time_t now = time(NULL);
    struct tm today = {0};
    if (!name)
        return 0;
    if (strcmp(name, "auto"))
        return chat_template_named(&e->chat, name, msg);
    return chat_template_read(&e->chat, e->gguf, localtime_r(&now, &today), msg);
}

int inst_chat_turn(inst_engine *engine, bool first, const char *system, const char *text,
                   size_t bytes, int32_t **tokens, size_t *n_tokens, struct inst_msg *msg)
{
    struct token_list list = {.budget = &engine->budget};
    struct chat_turn turn = {.first = first, .system = system, .text = text, .bytes = bytes};
    *tokens = NULL;
    *n_tokens = 0;
    if (!engine->chat.form)
        return inst_fail(msg, INST_EINVAL, "this engine was opened without a chat template");
    int err = chat_template_encode(&engine->chat, engine->tokenizer, &turn, &list, msg);
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

size_t inst_chat_settle(inst_engine *engine, int32_t *tokens, size_t n_tokens, size_t answer)
{
    // Ids are of one size and never negative.
    return engine->chat.form ? chat_template_settle(&engine->chat, engine->tokenizer,
                                                    (uint32_t *)tokens, n_tokens, answer)
                             : n_tokens;
}
