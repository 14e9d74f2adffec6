// SPDX-License-Identifier: Apache-2.0
// Sessions and the one verb. A session mirrors its sequence on the drive: `length` tokens are there
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

static int check_prefix(const inst_engine *e, const struct inst_prefix *prefixes, size_t index,
                        struct inst_msg *msg)
{
    const struct inst_prefix *p = &prefixes[index];
    if (!p->session || p->session->engine != e)
        return inst_fail(msg, INST_EINVAL, "prefix %zu: not a session of this engine", index);
    if (!p->n_tokens || !p->tokens)
        return inst_fail(msg, INST_EINVAL, "prefix %zu: no tokens", index);
    if (p->n_tokens > e->context)
        return inst_fail(msg, INST_EINVAL, "%zu tokens do not fit in the context of %llu",
                         p->n_tokens, (unsigned long long)e->context);
    for (size_t i = 0; i < p->n_tokens; i++)
        if (p->tokens[i] < 0 || (uint32_t)p->tokens[i] >= e->config.vocab)
            return inst_fail(msg, INST_EINVAL,
                             "token %d at position %zu is not in the vocabulary of %u",
                             p->tokens[i], i, e->config.vocab);
    for (size_t i = 0; i < index; i++)
        if (prefixes[i].session == p->session)
            return inst_fail(msg, INST_EINVAL, "prefix %zu: the session of prefix %zu again", index,
                             i);
    if (p->session->dead)
        return inst_fail(msg, p->session->dead,
                         "the session's KV was lost by an earlier failure; open a new one");
    return 0;
}

// Cuts the session to what it shares with the prefix; the last token is always computed again,
// unless its logits are there already. *missing = tokens to compute.
static int match_prefix(struct inst_prefix *p, size_t *missing, struct inst_msg *msg)
{
    struct inst_session *s = p->session;
    size_t common = 0, most = min_u64(p->n_tokens, s->length);
    while (common < most && s->tokens[common] == p->tokens[common])
        common++;
    *missing = 0;
    if (common == p->n_tokens && common == s->length && s->has_logits)
        return 0;
    size_t keep = min_u64(common, p->n_tokens - 1);
    *missing = p->n_tokens - keep;
    return keep < s->length ? session_cut(s, keep, msg) : 0;
}

struct sync {
    inst_engine *e;
    struct inst_prefix *prefixes;
    size_t count;
    size_t *missing; // [count]
    struct prefill_progress progress;
    struct inst_msg *msg;
    int first_error;
};

static void fail_prefix(struct sync *y, size_t index, int code)
{
    y->prefixes[index].status = code;
    y->missing[index] = 0;
    if (!y->first_error)
        y->first_error = code;
}

static uint64_t flash_read_bytes(inst_engine *e)
{
    struct drive_stats stats;
    return engine_drive_stats(e, &stats, NULL) ? 0 : stats.flash_read_bytes;
}

// Blocks of which some rows died by rewinding stay allocated, so the store can be full although
// all that is alive would fit. True when that must be it: the session kept something, and all
// sessions would fit if each had got its tokens at once.
static bool rebuilding_helps(const struct sync *y, size_t index)
{
    const struct inst_engine *e = y->e;
    const struct inst_prefix *p = &y->prefixes[index];
    if (p->session->dead || y->missing[index] == p->n_tokens)
        return false;
    struct space_config space = e->plan.space;
    space.group_tokens = e->plan.group;
    space.max_sequences = 1;
    uint64_t sum = 0;
    for (uint32_t i = 0; i < e->max_sessions; i++) {
        const struct inst_session *s = e->sessions[i];
        struct drive_plan plan;
        space.max_tokens = s == p->session ? p->n_tokens : s ? s->length : 0;
        if (space.max_tokens && (drive_plan(&plan, &e->plan.geometry, &space, 0, NULL) ||
                                 !checked_add(sum, plan.flash_bytes, &sum)))
            return false;
    }
    return sum <= e->plan.capacity;
}

// Computes what is missing of one prefix; all of it when only that makes room.
static int prefill_prefix(struct sync *y, size_t index, bool rebuild, struct inst_msg *msg)
{
    struct inst_prefix *p = &y->prefixes[index];
    size_t n = y->missing[index];
    struct inst_msg why = {0};
    int err = INST_ENOSPC;
    if (!rebuild)
        err = prefill_run(p->session, p->tokens + (p->n_tokens - n), n, &y->progress, &why);
    if (err == INST_ENOSPC && (rebuild || rebuilding_helps(y, index))) {
        why.text[0] = 0;
        y->progress.total += p->n_tokens - n;
        err = session_cut(p->session, 0, &why);
        if (!err)
            err = prefill_run(p->session, p->tokens, p->n_tokens, &y->progress, &why);
        y->progress.before += p->n_tokens - n;
    }
    return err ? inst_fail(msg, err, "%s", why.text) : 0;
}

static void sync_prefill(struct sync *y)
{
    bool any = false, cancelled = false;
    for (size_t i = 0; i < y->count; i++)
        if (y->missing[i] > 1)
            any = true;
    if (!any)
        return;
    double start = engine_seconds();
    uint64_t read = flash_read_bytes(y->e);
    for (size_t i = 0; i < y->count; i++) {
        if (y->missing[i] <= 1)
            continue;
        int err = INST_ECANCELLED;
        if (!cancelled)
            err = prefill_prefix(y, i, false, y->first_error ? NULL : y->msg);
        y->progress.before += y->missing[i];
        cancelled |= err == INST_ECANCELLED;
        if (err)
            fail_prefix(y, i, err);
    }
    for (size_t i = 0; cancelled && i < y->count; i++)
        if (y->missing[i] == 1)
            fail_prefix(y, i, INST_ECANCELLED);
    y->e->stats.prefill_seconds += engine_seconds() - start;
    y->e->prefill_read_bytes += flash_read_bytes(y->e) - read;
}

static void sync_decode(struct sync *y, struct inst_session **sessions, int32_t *tokens,
                        int *status)
{
    double start = engine_seconds();
    size_t n = 0;
    for (size_t i = 0; i < y->count; i++)
        if (y->missing[i] == 1) {
            sessions[n] = y->prefixes[i].session;
            tokens[n++] = y->prefixes[i].tokens[y->prefixes[i].n_tokens - 1];
        }
    if (!n)
        return;
    bool failed = false;
    struct inst_msg why = {0};
    int err = decode_step(y->e, sessions, tokens, n, status, &why);
    y->e->stats.decode_seconds += engine_seconds() - start;
    n = 0;
    for (size_t i = 0; i < y->count; i++) {
        int code = y->missing[i] == 1 ? status[n++] : 0;
        if (!code)
            continue;
        struct inst_msg *msg = y->first_error ? NULL : y->msg;
        failed = true;
        if (code == INST_ENOSPC && rebuilding_helps(y, i)) {
            start = engine_seconds();
            uint64_t read = flash_read_bytes(y->e);
            code = prefill_prefix(y, i, true, msg);
            y->e->stats.prefill_seconds += engine_seconds() - start;
            y->e->prefill_read_bytes += flash_read_bytes(y->e) - read;
        } else {
            inst_fail(msg, code, "%s", code == err ? why.text : inst_status_text(code));
        }
        if (code)
            fail_prefix(y, i, code);
    }
    if (err && !failed && !y->first_error)
        y->first_error = inst_fail(y->msg, err, "%s", why.text);
}

int inst_sync(inst_engine *engine, struct inst_prefix *prefixes, size_t count,
              inst_progress_fn *progress, void *user, struct inst_msg *msg)
{
    if (!engine || !count || count > engine->max_sessions)
        return inst_fail(msg, INST_EINVAL, "1 to %u prefixes can be synced at a time, not %zu",
                         engine ? engine->max_sessions : 0, count);
    struct sync_scratch *scratch = engine->sync;
    struct sync y = {.e = engine,
                     .prefixes = prefixes,
                     .count = count,
                     .missing = scratch->missing,
                     .msg = msg,
                     .progress = {.fn = progress, .user = user}};
    for (size_t i = 0; i < count; i++) {
        prefixes[i].status = 0;
        y.missing[i] = 0;
        struct inst_msg *first = y.first_error ? NULL : msg;
        int err = check_prefix(engine, prefixes, i, first);
        if (!err)
            err = match_prefix(&prefixes[i], &y.missing[i], first);
        if (err)
            fail_prefix(&y, i, err);
        else if (y.missing[i] > 1)
            y.progress.total += y.missing[i];
    }
    sync_prefill(&y);
    sync_decode(&y, scratch->sessions, scratch->tokens, scratch->status);
    return y.first_error;
}
