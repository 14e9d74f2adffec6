// SPDX-License-Identifier: Apache-2.0
// The one verb: what is missing of every prefix goes through steps that all of them share. Where
// one token is missing it is a decode row, where several are they are pieces of a prompt; each step
// takes a chunk of these, the first prefix's first.
#include "host/engine/engine.h"
#include "base/checked.h"
#include "host/engine/loss.h"

struct sync_item {
    size_t kept;    // tokens that need no computing
    size_t missing; // tokens to compute
    bool decode;
    size_t segment; // of the step that runs, SIZE_MAX: none
    size_t leader;  // whose first `shared` tokens it waits for, SIZE_MAX: nobody's
    uint64_t shared;
};

struct sync {
    inst_engine *e;
    struct inst_prefix *prefixes;
    size_t count;
    struct sync_item *item; // [count]
    struct step_progress progress;
    struct inst_msg *msg;
    int first_error;
};

size_t sync_item_bytes(void)
{
    return sizeof(struct sync_item);
}

static void fail_prefix(struct sync *y, size_t index, int code, const char *text)
{
    y->prefixes[index].status = code;
    y->item[index].missing = 0;
    inst_fail(y->prefixes[index].msg, code, "%s", text);
    if (!y->first_error)
        y->first_error = inst_fail(y->msg, code, "%s", text);
}

// Looks at one prefix and cuts its session to what they share.
static void begin_prefix(struct sync *y, size_t index)
{
    struct inst_prefix *p = &y->prefixes[index];
    struct sync_item *item = &y->item[index];
    struct inst_msg why = {0};
    int err = 0;
    p->status = 0;
    if (p->msg)
        p->msg->text[0] = 0;
    *item = (struct sync_item){.leader = SIZE_MAX};
    if (!p->session || p->session->engine != y->e)
        err = inst_fail(&why, INST_EINVAL, "prefix %zu: not a session of this engine", index);
    else if (p->session->call == y->e->call)
        err = inst_fail(&why, INST_EINVAL, "prefix %zu: the session of another one", index);
    if (!err) {
        p->session->call = y->e->call;
        err = inst_match(p->session, p->tokens, p->n_tokens, &item->kept, &why);
    }
    if (err) {
        fail_prefix(y, index, err, why.text);
        return;
    }
    item->missing = p->n_tokens - item->kept;
    item->decode = item->missing == 1;
    if (!item->decode)
        y->progress.total += item->missing;
}

// Blocks of which some rows died by rewinding stay allocated, so the store can be full although
// all that is alive would fit. True when that must be it: the session kept something, and all
// sessions would fit if each had got its tokens at once.
static bool rebuilding_helps(const struct sync *y, size_t index)
{
    const struct inst_engine *e = y->e;
    const struct inst_prefix *p = &y->prefixes[index];
    if (p->session->dead || !y->item[index].kept)
        return false;
    for (uint32_t drive = 0; drive < e->plan.drives; drive++) {
        uint64_t sum = 0, bytes;
        for (uint32_t i = 0; i < e->max_sessions; i++) {
            const struct inst_session *s = e->sessions[i];
            uint64_t tokens = s == p->session ? p->n_tokens : s ? s->seq->length : 0;
            if (!plan_flash_bytes(&e->plan, drive, tokens, &bytes) ||
                !checked_add(sum, bytes, &sum))
                return false;
        }
        if (sum > e->plan.part[drive].capacity)
            return false;
    }
    return true;
}

// A prefix that failed. Where only that makes room, all of it will be computed again.
static void end_in_failure(struct sync *y, size_t index, int code, const char *text)
{
    struct sync_item *item = &y->item[index];
    struct inst_msg why = {0};
    if (code == INST_ENOSPC && rebuilding_helps(y, index)) {
        struct inst_msg *msg = y->prefixes[index].msg;
        if (msg)
            msg->text[0] = 0;
        code = session_cut(y->prefixes[index].session, 0, &why);
        text = why.text;
    }
    if (code) {
        fail_prefix(y, index, code, text);
        return;
    }
    size_t n = y->prefixes[index].n_tokens;
    // What it had done counts as done before, so all of it is added.
    y->progress.total += n;
    *item = (struct sync_item){.missing = n, .leader = SIZE_MAX};
}

// An earlier prompt that will have more of a prefix's tokens than anybody has now.
static void find_leader(struct sync *y, size_t index)
{
    struct sync_item *item = &y->item[index];
    const struct inst_prefix *p = &y->prefixes[index];
    uint64_t least = item->kept + SHARE_LEAST;
    for (size_t i = 0; i < index && !item->decode && item->missing; i++) {
        const struct inst_prefix *other = &y->prefixes[i];
        uint64_t most = min_u64(p->n_tokens - 1, other->n_tokens);
        if (y->item[i].decode || !y->item[i].missing || most < least || most <= item->shared)
            continue;
        uint64_t common = seq_common(p->tokens, other->tokens, most);
        if (common >= least && common > item->shared) {
            item->leader = i;
            item->shared = common;
        }
    }
}

// Whether a prefix still waits. When its leader has come so far, or has failed, it takes what there
// is.
static bool waits(struct sync *y, size_t index)
{
    struct sync_item *item = &y->item[index];
    struct inst_prefix *p = &y->prefixes[index];
    if (item->leader == SIZE_MAX)
        return false;
    const struct inst_prefix *leader = &y->prefixes[item->leader];
    if (y->item[item->leader].missing && leader->session->seq->length < item->shared)
        return true;
    struct inst_msg why = {0};
    size_t before = item->kept;
    int err = session_match(p->session, p->tokens, p->n_tokens, &item->kept, &why);
    item->leader = SIZE_MAX;
    item->missing = p->n_tokens - item->kept;
    y->progress.before += item->kept - before;
    if (err)
        fail_prefix(y, index, err, why.text);
    return err;
}

// Fills a step; returns its segments. *prompts = tokens of prompts among them.
static size_t fill(struct sync *y, struct inst_segment *segments, uint64_t *prompts)
{
    size_t n = 0;
    *prompts = 0;
    for (size_t i = 0; i < y->count; i++)
        y->item[i].segment = SIZE_MAX;
    for (int decode = 1; decode >= 0; decode--) {
        for (size_t i = 0; i < y->count && n < engine_step_sessions(y->e); i++) {
            const struct inst_prefix *p = &y->prefixes[i];
            size_t missing = y->item[i].missing, take = missing;
            if (!missing || y->item[i].decode != decode || waits(y, i))
                continue;
            missing = take = y->item[i].missing;
            if (!decode)
                take = min_u64(missing, y->e->plan.chunk - *prompts);
            if (!take)
                break;
            *prompts += decode ? 0 : take;
            y->item[i].segment = n;
            segments[n++] = (struct inst_segment){.session = p->session,
                                                  .tokens = p->tokens + (p->n_tokens - missing),
                                                  .n_tokens = take,
                                                  .prompt = !decode,
                                                  .logits = take == missing,
                                                  .msg = p->msg};
        }
    }
    return n;
}

// Takes what became of a step's segments. True when somebody cancelled.
static bool take_results(struct sync *y, const struct inst_segment *segments, int err,
                         const char *text)
{
    bool cancelled = false, more_room = false;
    for (size_t i = 0; i < y->count; i++) {
        struct sync_item *item = &y->item[i];
        struct inst_msg *msg = y->prefixes[i].msg;
        if (item->segment == SIZE_MAX)
            continue;
        const struct inst_segment *s = &segments[item->segment];
        if (!s->status) {
            item->missing -= s->n_tokens;
            y->progress.before += item->decode ? 0 : s->n_tokens;
            continue;
        }
        cancelled |= s->status == INST_ECANCELLED;
        if (s->status == INST_ENOSPC || s->status == INST_ENORESOURCE)
            more_room |= seqs_give_up(y->e);
        if ((s->status == INST_ENOSPC || s->status == INST_ENORESOURCE) && more_room) {
            if (msg)
                msg->text[0] = 0;
            continue; // and again
        }
        y->progress.before += item->decode ? 0 : item->missing;
        end_in_failure(y, i, s->status, s->status == err ? text : inst_status_text(s->status));
    }
    return cancelled;
}

static void cancel(struct sync *y)
{
    for (size_t i = 0; i < y->count; i++)
        if (y->item[i].missing)
            fail_prefix(y, i, INST_ECANCELLED, "cancelled");
}

static void run(struct sync *y)
{
    struct inst_segment *segments = y->e->scratch.segment;
    size_t n;
    uint64_t prompts;
    while ((n = fill(y, segments, &prompts))) {
        struct step_progress p = y->progress;
        struct inst_msg why = {0};
        p.tokens = prompts;
        if (!prompts)
            p.fn = NULL;
        int err = loss_step(y->e, segments, n, &p, &why);
        bool stop = take_results(y, segments, err, why.text);
        if (!stop && p.fn)
            stop = !p.fn(p.user, y->progress.before, y->progress.total);
        if (stop) {
            cancel(y);
            return;
        }
    }
}

int inst_sync(inst_engine *engine, struct inst_prefix *prefixes, size_t count,
              inst_progress_fn *progress, void *user, struct inst_msg *msg)
{
    if (!engine || !count || count > engine->max_sessions)
        return inst_fail(msg, INST_EINVAL, "1 to %u prefixes can be synced at a time, not %zu",
                         engine ? engine->max_sessions : 0, count);
    struct sync y = {.e = engine,
                     .prefixes = prefixes,
                     .count = count,
                     .item = engine->scratch.item,
                     .msg = msg,
                     .progress = {.fn = progress, .user = user}};
    engine->call++;
    for (size_t i = 0; i < count; i++)
        begin_prefix(&y, i);
    for (size_t i = 0; i < count; i++)
        find_leader(&y, i);
    run(&y);
    return y.first_error;
}
