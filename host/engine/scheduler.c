// SPDX-License-Identifier: Apache-2.0
// Many generations over few sessions. Each round is one step of the model: a decode row for each
// that is past its prompt, then pieces of prompts, oldest first, up to a number of tokens; after it
// a token is drawn for each that is complete. It owns sessions and the order of those that wait;
// what a generation says is its own business.
//
// Back-pressure: of several that find no room, in the drive or in the budget, the later half gives
// its sessions back and waits at the front. Until another one has ended no more run than then did.
#include "host/engine/generate.h"
#include "base/checked.h"
#include "host/engine/sized.h"

#include <stdlib.h>
#include <string.h>

struct place {
    struct inst_session *session; // NULL: not open
    struct inst_generation *g;    // NULL: free
    size_t held;                  // tokens that were in the session when it came
    bool prompting;               // on the way to g->at by pieces of a prompt
    bool waits;                   // in this round, for an older prompt
    struct inst_segment *segment; // in the step of this round, or NULL
    struct inst_msg why;
};

struct inst_scheduler {
    struct inst_engine *engine;
    bool independent;
    uint32_t n_places, limit; // how many may run now
    uint32_t chunk;           // prompt tokens beside decode rows
    struct place *places;     // [n_places]
    struct inst_segment *segments;
    struct inst_generation *first, *last; // that wait
    uint64_t orders;
    size_t running, waiting;
    inst_progress_fn *progress;
    void *user;
    uint64_t done, total, part; // prompt tokens of those that run; of them in this step
};

int inst_scheduler_open(inst_scheduler **out, inst_engine *engine,
                        const struct inst_scheduler_options *options, struct inst_msg *msg)
{
    struct inst_scheduler_options o = {0};
    *out = NULL;
    if (!engine || !options)
        return inst_fail(msg, INST_EINVAL, "a scheduler needs an engine and its options");
    int err = sized_read(&o, sizeof o, sizeof o, options, "inst_scheduler_options", msg);
    if (err)
        return err;
    struct inst_scheduler *s = calloc(1, sizeof *s);
    if (!s)
        return inst_fail(msg, INST_ENOMEM, "scheduler: out of memory");
    uint32_t most = engine_step_sessions(engine);
    uint32_t n = o.sessions ? (uint32_t)min_u64(o.sessions, most) : most;
    uint32_t chunk = o.chunk ? o.chunk : engine->plan.mixed_chunk;
    *s = (struct inst_scheduler){.engine = engine,
                                 .independent = o.independent,
                                 .n_places = n,
                                 .limit = n,
                                 .chunk = (uint32_t)min_u64(chunk, engine->plan.chunk)};
    s->places = calloc(n, sizeof *s->places);
    s->segments = calloc(n, sizeof *s->segments);
    if (!s->places || !s->segments) {
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
    free(s->segments);
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
    place->segment = NULL;
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
    const struct seq *q = session->seq;
    return seq_common(q->tokens, g->tokens, min_u64(q->length, g->at));
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
    size_t common, held = 0;
    struct place *place = best_place(s, g, &common);
    if (depends_on_path(s) && place->session)
        close_session(place);
    int err = place->session ? 0 : inst_session_open(&place->session, s->engine, msg);
    if (!err)
        err = inst_match(place->session, g->tokens, g->at, &held, msg);
    if (err && place->session && place->session->dead)
        close_session(place);
    if (err)
        return err;
    take_waiting(s, g);
    place->g = g;
    place->held = held;
    // As it would be alone: the last token of a prompt is attended as the others are.
    place->prompting = g->at - held > 1 || (s->independent && g->at == g->n_prompt && g->at > 1);
    s->running++;
    if (g->n_tokens == g->n_prompt)
        g->reused = held;
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
        if (err == INST_ECANCELLED) // not its own failure
            return;
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
    seqs_give_up(s->engine);
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

static bool found_no_room(const struct place *place)
{
    return place->segment && is_back_pressure(place->segment->status);
}

// Some found no room: one whose KV is lost starts again, and if nothing else can be given up the
// later half of them gives its own up. The others try again. `alone`: there was only one, and it
// fails, unless it goes on with a session that was cut back, whose dead rows may be what fills the
// drive.
static void relieve(struct inst_scheduler *s, bool alone)
{
    size_t refused = 0, give_up;
    for (uint32_t i = 0; i < s->n_places; i++)
        refused += found_no_room(&s->places[i]);
    give_up = refused && !close_idle(s) ? (refused + 1) / 2 : 0;
    for (uint32_t i = 0; i < s->n_places; i++) {
        struct place *place = &s->places[i];
        if (!found_no_room(place))
            continue;
        if (alone && give_up && !place->held) {
            fail_place(s, place, place->segment->status, place->why.text);
            return;
        }
        if (place->session->dead) {
            put_back(s, place);
            give_up -= give_up > 0;
        }
    }
    for (; give_up; give_up--) {
        struct place *latest = NULL;
        for (uint32_t i = 0; i < s->n_places; i++)
            if (found_no_room(&s->places[i]) &&
                (!latest || s->places[i].g->order > latest->g->order))
                latest = &s->places[i];
        if (!latest)
            return;
        put_back(s, latest);
    }
}

// The next token of one that is complete, or one more that it had drawn before it lost its session.
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

static bool is_complete(const struct place *place)
{
    return place->g && place->session->seq->length == place->g->at && place->session->has_logits;
}

static void add_segment(struct inst_scheduler *s, size_t *n, struct place *place, size_t take)
{
    struct inst_session *session = place->session;
    place->why.text[0] = 0;
    place->segment = &s->segments[(*n)++];
    *place->segment = (struct inst_segment){.session = session,
                                            .tokens = place->g->tokens + session->seq->length,
                                            .n_tokens = take,
                                            .prompt = place->prompting,
                                            .logits = session->seq->length + take == place->g->at,
                                            .msg = &place->why};
}

static bool is_prompting(const struct place *place)
{
    return place->g && place->prompting && !is_complete(place);
}

// Whether an older prompt is on its way through tokens that this one, not begun yet, could have of
// it.
static bool waits_for_another(const struct inst_scheduler *s, const struct place *place)
{
    const struct inst_generation *g = place->g;
    for (uint32_t i = 0; i < s->n_places; i++) {
        const struct place *other = &s->places[i];
        if (!is_prompting(other) || other->g->order >= g->order)
            continue;
        uint64_t most = min_u64(other->g->at, g->at - 1);
        if (most < place->held + SHARE_LEAST)
            continue;
        uint64_t common = seq_common(other->g->tokens, g->tokens, most);
        if (common >= place->held + SHARE_LEAST && other->session->seq->length < common)
            return true;
    }
    return false;
}

// A prompt that has not begun takes what others have computed of it since it came. True when it
// waits for more of that.
static bool is_held_up(struct inst_scheduler *s, struct place *place)
{
    struct inst_generation *g = place->g;
    size_t held;
    if (place->session->seq->length != place->held || place->session->dead)
        return false;
    if (waits_for_another(s, place))
        return true;
    if (!inst_match(place->session, g->tokens, g->at, &held, NULL)) {
        place->held = held;
        g->reused = g->n_tokens == g->n_prompt ? held : g->reused;
    }
    return false;
}

// Decode rows, then pieces of prompts as far as the step has room: what several prompts begin with
// goes through the model once, in the oldest of them. The number of segments.
static size_t fill(struct inst_scheduler *s)
{
    size_t n = 0, left;
    s->done = s->total = s->part = 0;
    for (uint32_t i = 0; i < s->n_places; i++) {
        struct place *place = &s->places[i];
        place->segment = NULL;
        place->waits = false;
        if (!place->g || is_complete(place)) // complete: nothing was drawn after the last step
            continue;
        if (place->prompting) {
            s->done += place->session->seq->length - place->held;
            s->total += place->g->at - place->held;
        } else {
            add_segment(s, &n, place, 1);
        }
    }
    for (left = n ? s->chunk : s->engine->plan.chunk; left;) {
        struct place *oldest = NULL;
        for (uint32_t i = 0; i < s->n_places; i++) {
            struct place *place = &s->places[i];
            if (is_prompting(place) && !place->segment && !place->waits &&
                (!oldest || place->g->order < oldest->g->order))
                oldest = place;
        }
        if (!oldest)
            break;
        oldest->waits = is_held_up(s, oldest);
        if (oldest->waits)
            continue;
        size_t take = min_u64(oldest->g->at - oldest->session->seq->length, left);
        add_segment(s, &n, oldest, take);
        s->part += take;
        left -= take;
    }
    return n;
}

// Of prompts, where there are any.
static bool on_progress(void *user, uint64_t done, uint64_t total)
{
    const struct inst_scheduler *s = user;
    if (!s->progress)
        return true;
    return s->progress(s->user, s->total && total ? s->done + done * s->part / total : 0, s->total);
}

// What became of a step. INST_ECANCELLED, or a failure that is nobody's own.
static int take_results(struct inst_scheduler *s, int err)
{
    bool alone = s->running == 1, cancelled = false, any = false;
    for (uint32_t i = 0; i < s->n_places; i++) {
        struct place *place = &s->places[i];
        int code = place->segment ? place->segment->status : 0;
        cancelled |= code == INST_ECANCELLED;
        any |= code != 0;
        if (code && code != INST_ECANCELLED && !is_back_pressure(code))
            fail_place(s, place, code, place->why.text);
    }
    relieve(s, alone);
    return cancelled ? INST_ECANCELLED : any ? 0 : err;
}

int inst_scheduler_round(inst_scheduler *s, inst_progress_fn *progress, void *user,
                         struct inst_msg *msg)
{
    struct inst_msg why = {0};
    s->progress = progress;
    s->user = user;
    drop_cancelled(s);
    admit(s);
    if ((s->running || s->waiting) && engine_cancelled(s->engine))
        return inst_fail(msg, INST_ECANCELLED, "cancelled");
    if (!s->running)
        return 0;
    bool alone = s->running == 1;
    size_t n = fill(s);
    int err = n ? inst_step(s->engine, s->segments, n, on_progress, s, &why) : 0;
    if (n)
        err = take_results(s, err);
    s->part = s->total = 0;
    if (!err && !on_progress(s, 0, 0))
        err = inst_fail(&why, INST_ECANCELLED, "cancelled");
    if (err)
        return inst_fail(msg, err, "%s", why.text);
    for (uint32_t i = 0; i < s->n_places; i++)
        if (is_complete(&s->places[i])) {
            s->places[i].prompting = false;
            advance(s, &s->places[i], alone);
        }
    return 0;
}
