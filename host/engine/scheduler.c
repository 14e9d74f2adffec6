// SPDX-License-Identifier: Apache-2.0
// Many generations over few sessions. Each round brings all that run to their tokens in one
// inst_sync and draws one token for each. It owns sessions and the order of those that wait; what a
// generation says is its own business.
//
// Back-pressure: of several that find no room, in the drive or in the budget, the later half gives
// its sessions back and waits at the front. Until another one has ended no more run than then did.
#include "host/engine/generate.h"
#include "base/checked.h"

#include <stdlib.h>
#include <string.h>

struct place {
    struct inst_session *session; // NULL: not open
    struct inst_generation *g;    // NULL: free
};

struct inst_scheduler {
    struct inst_engine *engine;
    bool independent;
    uint32_t n_places, limit; // how many may run now
    struct place *places;     // [n_places]
    struct inst_prefix *prefixes;
    struct place **synced;                // [n_places] of the prefixes
    struct inst_generation *first, *last; // that wait
    uint64_t orders;
    size_t running, waiting;
    inst_progress_fn *progress;
    void *user;
};

int inst_scheduler_open(inst_scheduler **out, inst_engine *engine,
                        const struct inst_scheduler_options *options, struct inst_msg *msg)
{
    struct inst_scheduler_options o = {0};
    *out = NULL;
    if (!engine || !options || options->size < sizeof options->size || options->size > sizeof o)
        return inst_fail(msg, INST_EINVAL, "a scheduler needs an engine and its options");
    memcpy(&o, options, options->size);
    struct inst_scheduler *s = calloc(1, sizeof *s);
    if (!s)
        return inst_fail(msg, INST_ENOMEM, "scheduler: out of memory");
    uint32_t n =
        o.sessions ? (uint32_t)min_u64(o.sessions, engine->max_sessions) : engine->max_sessions;
    *s = (struct inst_scheduler){
        .engine = engine, .independent = o.independent, .n_places = n, .limit = n};
    s->places = calloc(n, sizeof *s->places);
    s->prefixes = calloc(n, sizeof *s->prefixes);
    s->synced = calloc(n, sizeof *s->synced);
    if (!s->places || !s->prefixes || !s->synced) {
        inst_scheduler_close(s);
        return inst_fail(msg, INST_ENOMEM, "scheduler: out of memory");
    }
    *out = s;
    return 0;
}

void inst_scheduler_close(inst_scheduler *s)
{
    if (!s)
        return;
    for (struct inst_generation *g = s->first, *next; g; g = next) {
        next = g->next;
        g->scheduler = NULL;
        g->next = NULL;
    }
    for (uint32_t i = 0; s->places && i < s->n_places; i++) {
        if (s->places[i].g)
            s->places[i].g->scheduler = NULL;
        inst_session_close(s->places[i].session);
    }
    free(s->places);
    free(s->prefixes);
    free(s->synced);
    free(s);
}

size_t inst_scheduler_running(const inst_scheduler *s)
{
    return s->running;
}

size_t inst_scheduler_waiting(const inst_scheduler *s)
{
    return s->waiting;
}

// In the order in which they were added, whenever they come.
static void wait_in_order(struct inst_scheduler *s, struct inst_generation *g)
{
    struct inst_generation **at = &s->first;
    if (s->last && s->last->order < g->order)
        at = &s->last->next;
    while (*at && (*at)->order < g->order)
        at = &(*at)->next;
    g->next = *at;
    *at = g;
    if (!g->next)
        s->last = g;
    s->waiting++;
}

static void take_waiting(struct inst_scheduler *s, struct inst_generation *g)
{
    struct inst_generation *before = NULL;
    for (struct inst_generation *at = s->first; at != g; at = at->next)
        before = at;
    if (before)
        before->next = g->next;
    else
        s->first = g->next;
    if (s->last == g)
        s->last = before;
    g->next = NULL;
    s->waiting--;
}

int inst_scheduler_add(inst_scheduler *s, inst_generation *g, struct inst_msg *msg)
{
    if (g->engine != s->engine)
        return inst_fail(msg, INST_EINVAL, "a generation of another engine");
    if (g->scheduler || g->finish)
        return inst_fail(msg, INST_EINVAL, "a generation that is in a scheduler or has ended");
    g->scheduler = s;
    g->order = ++s->orders;
    wait_in_order(s, g);
    return 0;
}

static void close_session(struct place *place)
{
    inst_session_close(place->session);
    place->session = NULL;
}

// Its session is free; what is in it may be of use to the next one.
static void leave(struct inst_scheduler *s, struct place *place)
{
    place->g = NULL;
    s->running--;
    if (place->session->dead)
        close_session(place);
}

// A generation has left for good, and with it went what it needed.
static void ended(struct inst_scheduler *s, struct inst_generation *g)
{
    g->scheduler = NULL;
    if (s->limit < s->n_places)
        s->limit++;
}

void scheduler_remove(struct inst_scheduler *s, struct inst_generation *g)
{
    for (uint32_t i = 0; i < s->n_places; i++)
        if (s->places[i].g == g) {
            leave(s, &s->places[i]);
            ended(s, g);
            return;
        }
    take_waiting(s, g);
    g->scheduler = NULL;
}

static size_t common_tokens(const struct inst_session *session, const struct inst_generation *g)
{
    size_t n = 0, most = min_u64(session->seq->length, g->at);
    while (n < most && session->seq->tokens[n] == g->tokens[n])
        n++;
    return n;
}

// The free place whose session shares most with the generation, then the one that holds least; with
// a session that is not open yet only if no other shares anything.
static struct place *best_place(struct inst_scheduler *s, const struct inst_generation *g,
                                size_t *common)
{
    struct place *best = NULL;
    *common = 0;
    for (uint32_t i = 0; i < s->n_places; i++) {
        struct place *place = &s->places[i];
        if (place->g)
            continue;
        size_t n = place->session ? common_tokens(place->session, g) : 0;
        uint64_t length = place->session ? place->session->seq->length : 0;
        if (!best || n > *common ||
            (n == *common && best->session && length < best->session->seq->length)) {
            best = place;
            *common = n;
        }
    }
    return best;
}

// Whether what a session holds may depend on how it came there.
static bool depends_on_path(const struct inst_scheduler *s)
{
    return s->independent && s->engine->attend.method != METHOD_DENSE;
}

// A session for the generation at the front. On failure with something running it goes on waiting.
static int join(struct inst_scheduler *s, struct inst_generation *g, struct inst_msg *msg)
{
    size_t common;
    struct place *place = best_place(s, g, &common);
    if (depends_on_path(s) && place->session)
        close_session(place);
    int err = place->session ? 0 : inst_session_open(&place->session, s->engine, msg);
    if (err)
        return err;
    take_waiting(s, g);
    place->g = g;
    s->running++;
    if (g->n_tokens == g->n_prompt)
        g->reused = min_u64(common, place->session->seq->length);
    return 0;
}

// Ends what was cancelled.
static void drop_cancelled(struct inst_scheduler *s)
{
    for (struct inst_generation *g = s->first, *next; g; g = next) {
        next = g->next;
        if (!atomic_load(&g->cancelled))
            continue;
        take_waiting(s, g);
        g->scheduler = NULL;
        generation_end(g, INST_FINISH_CANCELLED);
    }
    for (uint32_t i = 0; i < s->n_places; i++) {
        struct inst_generation *g = s->places[i].g;
        if (!g || !atomic_load(&g->cancelled))
            continue;
        leave(s, &s->places[i]);
        ended(s, g);
        generation_end(g, INST_FINISH_CANCELLED);
    }
}

static void admit(struct inst_scheduler *s)
{
    while (s->first && s->running < s->limit) {
        struct inst_msg why = {0};
        struct inst_generation *g = s->first;
        int err = join(s, g, &why);
        if (err && s->running) {
            s->limit = (uint32_t)s->running;
        } else if (err) {
            take_waiting(s, g);
            g->scheduler = NULL;
            generation_fail(g, err, why.text);
        }
    }
}

static bool is_back_pressure(int code)
{
    return code == INST_ENORESOURCE || code == INST_ENOSPC || code == INST_ENOMEM;
}

static void fail_place(struct inst_scheduler *s, struct place *place, int code, const char *text)
{
    struct inst_generation *g = place->g;
    generation_fail(g, code, text[0] ? text : inst_status_text(code));
    leave(s, place);
    ended(s, g);
}

// Its session goes, because the room that it takes is the point, and it waits for another one.
static void put_back(struct inst_scheduler *s, struct place *place)
{
    struct inst_generation *g = place->g;
    leave(s, place);
    close_session(place);
    s->limit = (uint32_t)max_u64(s->running, 1);
    // Dense attention gives the same KV either way; other methods have to go the way again.
    g->at = depends_on_path(s) ? g->n_prompt : g->n_tokens;
    wait_in_order(s, g);
}

// Gives up what sessions without a generation hold. False: they hold nothing.
static bool close_idle(struct inst_scheduler *s)
{
    bool any = false;
    for (uint32_t i = 0; i < s->n_places; i++) {
        struct place *place = &s->places[i];
        if (place->g || !place->session)
            continue;
        any |= place->session->seq->length > 0;
        close_session(place);
    }
    return seqs_give_up(s->engine) || any;
}

// Of n in this round some found no room: one whose KV is lost starts again, and if nothing else can
// be given up the later half of them gives its own up, unless it is the only one. The others try
// again.
static void relieve(struct inst_scheduler *s, size_t n, const char *text)
{
    size_t refused = 0, give_up;
    for (size_t i = 0; i < n; i++)
        refused += s->synced[i] && is_back_pressure(s->prefixes[i].status);
    give_up = refused && !close_idle(s) ? (refused + 1) / 2 : 0;
    if (n == 1 && give_up) {
        fail_place(s, s->synced[0], s->prefixes[0].status, text);
        s->synced[0] = NULL;
        return;
    }
    for (size_t i = 0; i < n; i++)
        if (s->synced[i] && is_back_pressure(s->prefixes[i].status) &&
            s->synced[i]->session->dead) {
            put_back(s, s->synced[i]);
            s->synced[i] = NULL;
            give_up -= give_up > 0;
        }
    for (; give_up; give_up--) {
        struct place **latest = NULL;
        for (size_t i = 0; i < n; i++)
            if (s->synced[i] && is_back_pressure(s->prefixes[i].status) &&
                (!latest || s->synced[i]->g->order > (*latest)->g->order))
                latest = &s->synced[i];
        if (!latest)
            return;
        put_back(s, *latest);
        *latest = NULL;
    }
}

// The next token of one that is synced, or one more that it had drawn before it lost its session.
static void advance(struct inst_scheduler *s, struct place *place, bool alone)
{
    struct inst_generation *g = place->g;
    struct inst_msg why = {0};
    if (atomic_load(&g->cancelled))
        return; // from another thread, meanwhile: the next round ends it
    if (g->at < g->n_tokens) {
        g->at++;
    } else {
        int err = generation_reserve(g, &why);
        if (err && close_idle(s))
            return; // and again
        if (err && alone)
            fail_place(s, place, err, why.text);
        else if (err)
            put_back(s, place);
        if (err)
            return;
        generation_draw(g, place->session);
        g->at = g->n_tokens;
    }
    if (g->finish) {
        leave(s, place);
        ended(s, g);
    }
}

static bool on_progress(void *user, uint64_t done, uint64_t total)
{
    const struct inst_scheduler *s = user;
    return !s->progress || s->progress(s->user, done, total);
}

int inst_scheduler_round(inst_scheduler *s, inst_progress_fn *progress, void *user,
                         struct inst_msg *msg)
{
    struct inst_msg why = {0};
    size_t n = 0;
    bool cancelled = false, any = false;
    drop_cancelled(s);
    admit(s);
    for (uint32_t i = 0; i < s->n_places; i++) {
        struct inst_generation *g = s->places[i].g;
        if (!g)
            continue;
        s->synced[n] = &s->places[i];
        s->prefixes[n++] = (struct inst_prefix){
            .session = s->places[i].session, .tokens = g->tokens, .n_tokens = g->at};
    }
    if (!n)
        return 0;
    s->progress = progress;
    s->user = user;
    int err = inst_sync(s->engine, s->prefixes, n, on_progress, s, &why), first = 0;
    for (size_t i = 0; i < n; i++) {
        int code = s->prefixes[i].status;
        cancelled |= code == INST_ECANCELLED;
        any |= code != 0;
        if (!code || code == INST_ECANCELLED)
            continue;
        if (!is_back_pressure(code)) {
            // The text is about the first failure.
            fail_place(s, s->synced[i], code, first ? "" : why.text);
            s->synced[i] = NULL;
        }
        first = code;
    }
    relieve(s, n, why.text);
    if (err && !any)
        return inst_fail(msg, err, "%s", why.text);
    if (cancelled || !on_progress(s, 0, 0))
        return inst_fail(msg, INST_ECANCELLED, "cancelled");
    for (size_t i = 0; i < n; i++)
        if (s->synced[i] && !s->prefixes[i].status)
            advance(s, s->synced[i], n == 1);
    return 0;
}
