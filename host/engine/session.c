// SPDX-License-Identifier: Apache-2.0
// Sessions. A session has a sequence of the drive and mirrors it: `length` tokens are there in
// every layer whenever no call is running. Whatever fails, the sequence is cut back to that; if
// even that fails the session is dead, because nobody knows what the drive holds. A prompt may find
// its first tokens in other sequences, those of sessions and those that are kept (sequence.c).
#include "base/checked.h"
#include "host/engine/loss.h"

#include <stdlib.h>
#include <string.h>

enum { KEEP_LEAST = 64 }; // tokens that a session moves away from, if they are to be kept

int session_cut(struct inst_session *s, uint64_t length, struct inst_msg *msg)
{
    s->has_logits = false;
    struct inst_msg why = {0};
    int err = seq_cut(s->engine, s->seq, length, &why);
    if (err) {
        s->dead = err;
        return inst_fail(msg, err, "%s", why.text);
    }
    return 0;
}

int inst_session_open(inst_session **out, inst_engine *engine, struct inst_msg *msg)
{
    *out = NULL;
    if (!engine)
        return inst_fail(msg, INST_EINVAL, "a session needs an engine");
    uint32_t place = 0;
    while (place < engine->max_sessions && engine->sessions[place])
        place++;
    if (place == engine->max_sessions)
        return inst_fail(msg, INST_ENORESOURCE, "all %u sessions of this engine are open",
                         engine->max_sessions);
    struct inst_session *s = calloc(1, sizeof *s);
    if (!s)
        return inst_fail(msg, INST_ENOMEM, "session: out of memory");
    *s = (struct inst_session){.engine = engine, .place = place};
    struct compute *compute = engine->compute;
    if (!compute->ops->buffer_new(compute, row_stride(engine->config.vocab) * sizeof *s->logits,
                                  PLACE_PINNED, "a session's logits", &s->logits_buffer, msg))
        s->logits = s->logits_buffer->host;
    if (s->logits && loss_notes(engine))
        s->decoded = budget_alloc(&engine->budget, engine->context / 8 + 1, 1,
                                  "notes of a session's tokens", msg);
    bool all = s->logits && (s->decoded || !loss_notes(engine));
    int err = all ? seq_new(engine, &s->seq, msg) : INST_ENOMEM;
    if (err) {
        budget_free(&engine->budget, s->decoded);
        compute->ops->buffer_free(compute, s->logits_buffer);
        free(s);
        return err;
    }
    engine->sessions[place] = s;
    *out = s;
    return 0;
}

void inst_session_close(inst_session *session)
{
    if (!session)
        return;
    struct inst_engine *e = session->engine;
    session->seq->suspect |= session->dead != 0;
    seq_release(e, session->seq);
    e->sessions[session->place] = NULL;
    e->compute->ops->buffer_free(e->compute, session->logits_buffer);
    budget_free(&e->budget, session->decoded);
    free(session);
}

void inst_engine_forget(inst_engine *engine)
{
    seqs_give_up(engine);
}

int inst_session_fork(inst_session **out, inst_session *parent, struct inst_msg *msg)
{
    *out = NULL;
    if (!parent)
        return inst_fail(msg, INST_EINVAL, "a fork needs a session");
    if (parent->dead)
        return inst_fail(msg, parent->dead, "the session's KV was lost by an earlier failure");
    struct inst_engine *e = parent->engine;
    struct inst_session *s;
    int err = inst_session_open(&s, e, msg);
    if (!err && parent->seq->length)
        err = seq_fork(e, s->seq, parent->seq, parent->seq->length, msg);
    if (err) {
        inst_session_close(s);
        return err;
    }
    e->stats.shared_tokens += parent->seq->length;
    if (s->decoded)
        memcpy(s->decoded, parent->decoded, e->context / 8 + 1);
    s->has_logits = parent->has_logits;
    memcpy(s->logits, parent->logits, e->config.vocab * sizeof *s->logits);
    *out = s;
    return 0;
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
    return session->seq->length;
}

int engine_check_tokens(const struct inst_engine *e, const int32_t *tokens, uint64_t first,
                        size_t n, struct inst_msg *msg)
{
    for (size_t i = 0; i < n; i++)
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= e->config.vocab)
            return inst_fail(msg, INST_EINVAL,
                             "token %d at position %llu is not in the vocabulary of %u", tokens[i],
                             (unsigned long long)first + i, e->config.vocab);
    return 0;
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
    int err = engine_check_tokens(e, tokens, first, n, msg);
    if (err)
        return err;
    if (s->dead)
        return inst_fail(msg, s->dead,
                         "the session's KV was lost by an earlier failure; open a new one");
    return 0;
}

// Gives the session the first tokens of a sequence, another one or its own, and leaves what it had
// to whoever comes back to it. A sequence is taken over where all of it is wanted and nobody else
// has it. On failure the session is as it was.
static int take(struct inst_session *s, struct seq *from, uint64_t shared)
{
    struct inst_engine *e = s->engine;
    struct seq *old = s->seq, *q = from;
    if (from->state == SEQ_KEPT && from->length == shared) {
        from->state = SEQ_OWNED;
    } else {
        // As long as `old` is there, too, one sequence more than sessions is in use.
        int err = seq_new(e, &q, NULL);
        if (!err && shared && (err = seq_fork(e, q, from, shared, NULL)))
            seq_release(e, q);
        if (err)
            return err;
    }
    s->seq = q;
    s->has_logits = false;
    seq_release(e, old);
    return 0;
}

int session_match(struct inst_session *s, const int32_t *tokens, size_t n, size_t *held,
                  struct inst_msg *msg)
{
    struct inst_engine *e = s->engine;
    const struct seq *own = s->seq;
    size_t common = seq_common(own->tokens, tokens, min_u64(n, own->length));
    *held = n;
    if (common == n && common == own->length && s->has_logits)
        return 0;
    *held = min_u64(common, n - 1);
    uint64_t shared;
    struct seq *from = seq_find(e, own, tokens, n - 1, *held + (uint64_t)SHARE_LEAST, &shared);
    if (from && !take(s, from, shared)) {
        e->stats.shared_tokens += shared - *held;
        loss_note(s, 0, shared, false);
        *held = shared;
        return 0;
    }
    if (*held == own->length || (*held + KEEP_LEAST <= own->exact && !take(s, s->seq, *held)))
        return 0;
    return loss_cut(s, *held, msg);
}

int inst_match(inst_session *session, const int32_t *tokens, size_t n_tokens, size_t *held,
               struct inst_msg *msg)
{
    *held = 0;
    int err = session_check(session, tokens, 0, n_tokens, msg);
    return err ? err : session_match(session, tokens, n_tokens, held, msg);
}
