// SPDX-License-Identifier: Apache-2.0
// Sessions. A session mirrors its sequence on the drive: `length` tokens are there
// in every layer whenever no call is running. Whatever fails, the sequence is cut back to that; if
// even that fails the session is dead, because nobody knows what the drive holds. A sequence that
// the drive does not give up when its session is closed keeps the slot until it does.
#include "host/engine/engine.h"
#include "base/checked.h"

#include <stdalign.h>
#include <stdlib.h>
#include <string.h>

static int reclaim(struct inst_engine *e, uint32_t slot, uint32_t epoch, uint64_t pos,
                   struct inst_msg *msg)
{
    alignas(64) unsigned char table[TABLE_HEADER_BYTES + TABLE_ITEM_BYTES];
    memset(table, 0, sizeof table);
    table_put_header(table, &(struct table_header){0});
    table_put_item(table, 0,
                   &(struct table_item){.seq = slot,
                                        .epoch = epoch,
                                        .pos = pos,
                                        .n_tokens = UINT64_MAX,
                                        .layer_count = e->config.layers});
    struct command command = {.opcode = OP_RECLAIM, .count = 1};
    int err = port_call(&e->port, command, table, NULL, NULL, msg);
    // A sequence that never got a token does not exist.
    return err == INST_ENOENT ? 0 : err;
}

int session_cut(struct inst_session *s, uint64_t length, struct inst_msg *msg)
{
    s->has_logits = false;
    struct inst_msg why = {0};
    int err = reclaim(s->engine, s->slot, s->epoch, length, &why);
    if (err) {
        s->dead = err;
        return inst_fail(msg, err, "%s", why.text);
    }
    s->length = length;
    if (!length)
        s->epoch = ++s->engine->next_epoch;
    return 0;
}

// A slot without a session and, on the drive, without a sequence.
static int find_slot(struct inst_engine *e, uint32_t *out, struct inst_msg *msg)
{
    struct inst_msg why = {0};
    int err = 0;
    for (uint32_t slot = 0; slot < e->max_sessions; slot++) {
        if (e->sessions[slot])
            continue;
        int kept = 0;
        if (e->left_epoch[slot])
            kept = reclaim(e, slot, e->left_epoch[slot], 0, err ? NULL : &why);
        if (!kept) {
            e->left_epoch[slot] = 0;
            *out = slot;
            return 0;
        }
        err = err ? err : kept;
    }
    if (err)
        return inst_fail(msg, err, "the drive does not give up a closed session: %s", why.text);
    return inst_fail(msg, INST_ENORESOURCE, "all %u sessions of this engine are open",
                     e->max_sessions);
}

int inst_session_open(inst_session **out, inst_engine *engine, struct inst_msg *msg)
{
    *out = NULL;
    if (!engine)
        return inst_fail(msg, INST_EINVAL, "a session needs an engine");
    uint32_t slot;
    int err = find_slot(engine, &slot, msg);
    if (err)
        return err;
    struct inst_session *s = calloc(1, sizeof *s);
    if (!s)
        return inst_fail(msg, INST_ENOMEM, "session: out of memory");
    *s = (struct inst_session){.engine = engine, .slot = slot, .epoch = ++engine->next_epoch};
    s->tokens = budget_alloc(&engine->budget, engine->context, sizeof *s->tokens,
                             "a session's tokens", msg);
    if (s->tokens)
        s->logits = budget_alloc(&engine->budget, row_stride(engine->config.vocab),
                                 sizeof *s->logits, "a session's logits", msg);
    if (!s->logits) {
        budget_free(&engine->budget, s->tokens);
        free(s);
        return INST_ENOMEM;
    }
    engine->sessions[slot] = s;
    *out = s;
    return 0;
}

void inst_session_close(inst_session *session)
{
    if (!session)
        return;
    struct inst_engine *e = session->engine;
    if (reclaim(e, session->slot, session->epoch, 0, NULL))
        e->left_epoch[session->slot] = session->epoch;
    e->sessions[session->slot] = NULL;
    budget_free(&e->budget, session->tokens);
    budget_free(&e->budget, session->logits);
    free(session);
}

const float *inst_logits(const inst_session *session)
{
    return session->has_logits ? session->logits : NULL;
}

void inst_session_on_logits(inst_session *session, inst_logits_fn *fn, void *user)
{
    session->on_logits = fn;
    session->on_logits_user = user;
}

uint64_t inst_session_length(const inst_session *session)
{
    return session->length;
}

int session_check(const struct inst_session *s, const int32_t *tokens, uint64_t first, size_t n,
                  struct inst_msg *msg)
{
    const struct inst_engine *e = s->engine;
    if (!n || !tokens)
        return inst_fail(msg, INST_EINVAL, "no tokens");
    if (n > e->context - first)
        return inst_fail(msg, INST_EINVAL, "%llu tokens do not fit in the context of %llu",
                         (unsigned long long)first + n, (unsigned long long)e->context);
    for (size_t i = 0; i < n; i++)
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= e->config.vocab)
            return inst_fail(msg, INST_EINVAL,
                             "token %d at position %llu is not in the vocabulary of %u", tokens[i],
                             (unsigned long long)first + i, e->config.vocab);
    if (s->dead)
        return inst_fail(msg, s->dead,
                         "the session's KV was lost by an earlier failure; open a new one");
    return 0;
}

int session_match(struct inst_session *s, const int32_t *tokens, size_t n, size_t *held,
                  struct inst_msg *msg)
{
    size_t common = 0, most = min_u64(n, s->length);
    while (common < most && s->tokens[common] == tokens[common])
        common++;
    *held = n;
    if (common == n && common == s->length && s->has_logits)
        return 0;
    *held = min_u64(common, n - 1);
    return *held < s->length ? session_cut(s, *held, msg) : 0;
}

int inst_match(inst_session *session, const int32_t *tokens, size_t n_tokens, size_t *held,
               struct inst_msg *msg)
{
    *held = 0;
    int err = session_check(session, tokens, 0, n_tokens, msg);
    return err ? err : session_match(session, tokens, n_tokens, held, msg);
}
