// SPDX-License-Identifier: Apache-2.0
#include "sparf_scene.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static uint64_t state;

static float noise(void) // about normal
{
    float sum = 0;
    for (int i = 0; i < 4; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        sum += (float)(int32_t)(uint32_t)(state >> 32) / 2147483648.0f;
    }
    return sum * 0.866f;
}

static uint64_t pick(uint64_t below)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (state >> 33) % below;
}

enum { TOPICS = 12, SEGMENT = 20 };

static uint16_t *row_of(const struct scene *s, uint16_t *array, uint32_t layer, uint32_t head,
                        uint64_t token)
{
    return array + (((size_t)layer * s->kv_heads + head) * s->tokens + token) * s->head_dim;
}

static float *query_of(const struct scene *s, uint32_t layer, uint64_t token, uint32_t q_head)
{
    return s->q + (((size_t)layer * s->tokens + token) * s->q_heads + q_head) * s->head_dim;
}

static float key_value(const struct scene *s, const float *centre, uint32_t d)
{
    switch (s->kind) {
    case SCENE_CLUSTERED:
        return 0.8f * centre[d] + 0.6f * noise();
    case SCENE_EQUAL:
        return centre[d];
    case SCENE_STEPS:
        return (float)pick(3) - 1;
    case SCENE_HUGE:
        return 100 * noise();
    default:
        return noise();
    }
}

static void fill_head(struct scene *s, uint32_t layer, uint32_t head)
{
    uint32_t dim = s->head_dim, group = s->q_heads / s->kv_heads;
    float *centres = malloc(TOPICS * dim * sizeof *centres);
    uint64_t topic = 0;
    for (uint32_t i = 0; i < TOPICS * dim; i++)
        centres[i] = noise();
    for (uint64_t t = 0; t < s->tokens; t++) {
        if (s->kind == SCENE_CLUSTERED && !pick(SEGMENT))
            topic = pick(TOPICS);
        for (uint32_t d = 0; d < dim; d++) {
            row_of(s, s->k, layer, head, t)[d] =
                kernel_f32_to_f16(key_value(s, centres + topic * dim, d));
            float v = s->one_hot ? t == (uint64_t)layer * dim + d : noise();
            row_of(s, s->v, layer, head, t)[d] = kernel_f32_to_f16(v);
        }
        const float *wanted = centres + pick(TOPICS) * dim;
        for (uint32_t g = 0; g < group; g++) {
            float *q = query_of(s, layer, t, head * group + g);
            for (uint32_t d = 0; d < dim; d++) {
                float x = 1.5f * noise();
                if (s->kind == SCENE_CLUSTERED)
                    x = 0.7f * noise() + wanted[d];
                else if (s->kind == SCENE_STEPS)
                    x = (float)pick(5) - 2;
                else if (s->kind == SCENE_HUGE)
                    x *= 50;
                else if (s->kind == SCENE_ZERO_Q)
                    x = 0;
                else if (s->kind == SCENE_BLIND)
                    x *= g ? d < dim / 2 ? 4 : 1e-3f : d < dim / 2 ? 0 : 1;
                q[d] = x;
            }
        }
    }
    free(centres);
}

void scene_new(struct scene *s, uint64_t seed)
{
    size_t rows = (size_t)s->layers * s->kv_heads * s->tokens;
    s->k = malloc(rows * s->head_dim * sizeof *s->k);
    s->v = malloc(rows * s->head_dim * sizeof *s->v);
    s->q = malloc((size_t)s->layers * s->tokens * s->q_heads * s->head_dim * sizeof *s->q);
    for (uint32_t l = 0; l < s->layers; l++)
        for (uint32_t h = 0; h < s->kv_heads; h++) {
            state = seed * 1000003 + (s->same ? 0 : l) * 1009 + h;
            fill_head(s, l, h);
        }
}

void scene_free(struct scene *s)
{
    free(s->k);
    free(s->v);
    free(s->q);
}

int scene_try_write(struct rig *rig, const struct scene *s, uint32_t seq, uint32_t layer,
                    uint64_t pos, uint64_t n)
{
    uint64_t bytes;
    slab_bytes(s->kv_heads, n, s->head_dim, &bytes);
    size_t total = (bytes + 63) / 64 * 64;
    uint8_t table[128];
    uint16_t *data = aligned_alloc(64, total), *p = data;
    size_t part = n * s->head_dim;
    memset(data, 0, total);
    table_put_header(table, &(struct table_header){.head_count = s->kv_heads});
    table_put_item(table, 0,
                   &(struct table_item){.seq = seq, .epoch = 1, .pos = pos, .n_tokens = n});
    for (uint32_t h = 0; h < s->kv_heads; h++, p += 2 * part) {
        memcpy(p, row_of(s, s->k, layer, h, pos), part * sizeof *p);
        memcpy(p + part, row_of(s, s->v, layer, h, pos), part * sizeof *p);
    }
    struct command command = {
        .opcode = OP_WRITE, .space = 1, .layer = layer, .count = 1, .length = (uint32_t)total};
    int status = rig_call(rig, &command, table, data, NULL);
    free(data);
    return status;
}

void scene_write(struct rig *rig, const struct scene *s, uint32_t seq, uint64_t pos, uint64_t n,
                 uint64_t chunk)
{
    for (uint64_t done = 0; done < n;) {
        uint64_t now = chunk && chunk < n - done ? chunk : n - done;
        for (uint32_t l = 0; l < s->layers; l++)
            if (scene_try_write(rig, s, seq, l, pos + done, now))
                fail_msg("WRITE: %s", rig->text);
        done += now;
    }
}

void scene_result_new(struct scene_result *r, const struct scene *s)
{
    r->out = calloc((size_t)s->q_heads * s->head_dim, sizeof *r->out);
    r->lse = calloc(s->q_heads, sizeof *r->lse);
    r->captured = calloc(s->q_heads, sizeof *r->captured);
}

void scene_result_free(struct scene_result *r)
{
    free(r->out);
    free(r->lse);
    free(r->captured);
}

int scene_attend(struct rig *rig, const struct scene *s, uint32_t layer, uint32_t seq, uint64_t pos,
                 bool append, const struct scene_knobs *knobs, struct scene_result *r)
{
    struct attend_layout layout;
    uint32_t dim = s->head_dim, ticket = rig->next_ticket++;
    assert_true(attend_layout(&layout, 1, s->q_heads, s->kv_heads, dim, append));
    uint8_t *in = aligned_alloc(64, (layout.in_bytes + 63) / 64 * 64);
    uint8_t *out = aligned_alloc(64, (layout.out_bytes + 63) / 64 * 64);
    memset(in, 0, (layout.in_bytes + 63) / 64 * 64);
    struct table_header header = {.method = knobs->dense ? METHOD_DENSE : METHOD_SPARF,
                                  .q_heads = s->q_heads,
                                  .scale = knobs->scale != 0 ? knobs->scale : 1 / sqrtf((float)dim),
                                  .softcap = rig->softcap};
    if (knobs->pages) {
        header.method = METHOD_PAGES;
        header.pages_ratio = knobs->ratio;
        header.pages_mass = knobs->mass;
        header.pages_local = knobs->local;
        header.pages_rest = !knobs->no_rest;
        header.audit = knobs->audit;
    } else if (!knobs->dense) {
        header.sparf_channels = knobs->channels;
        header.sparf_tokens = knobs->tokens;
        header.sparf_divisor = knobs->divisor;
        header.sparf_local = knobs->local;
        header.audit = knobs->audit;
    }
    uint8_t table[128];
    table_put_header(table, &header);
    table_put_item(
        table, 0,
        &(struct table_item){.seq = seq, .epoch = 1, .pos = pos + !append, .n_tokens = append});
    memcpy(in + layout.q, query_of(s, layer, pos, 0), (size_t)s->q_heads * dim * sizeof(float));
    for (uint32_t h = 0; h < s->kv_heads && append; h++) {
        memcpy((uint16_t *)(in + layout.k) + h * dim, row_of(s, s->k, layer, h, pos), 2 * dim);
        memcpy((uint16_t *)(in + layout.v) + h * dim, row_of(s, s->v, layer, h, pos), 2 * dim);
    }
    struct command attend = {.opcode = OP_ATTEND,
                             .space = 1,
                             .layer = layer,
                             .count = 1,
                             .ticket = ticket,
                             .length = (uint32_t)layout.in_bytes};
    struct command collect = {
        .opcode = OP_COLLECT, .space = 1, .ticket = ticket, .length = (uint32_t)layout.out_bytes};
    int status = rig_call(rig, &attend, table, in, NULL);
    if (!status) {
        assert_int_equal(rig_call(rig, &collect, NULL, out, NULL), 0);
        memcpy(r->out, out + layout.out, (size_t)s->q_heads * dim * sizeof(float));
        memcpy(r->lse, out + layout.lse, s->q_heads * sizeof(float));
        memcpy(r->captured, out + layout.captured, s->q_heads * sizeof(float));
        status = inst_status_from_nvme((uint16_t) * (uint32_t *)(out + layout.status));
    }
    free(in);
    free(out);
    return status;
}

// The problem of one KV head at the step of token pos; its arrays are to be freed.
static void state_problem(const struct scene *s, uint32_t layer, uint32_t head, uint64_t pos,
                          const struct scene_knobs *knobs, struct sparf_problem *p)
{
    uint32_t dim = s->head_dim, group = s->q_heads / s->kv_heads, n = (uint32_t)pos + 1;
    double *q = malloc((size_t)group * dim * sizeof *q);
    double *k = malloc((size_t)n * dim * sizeof *k), *v = malloc((size_t)n * dim * sizeof *v);
    for (uint32_t g = 0; g < group; g++)
        for (uint32_t d = 0; d < dim; d++)
            q[g * dim + d] = (double)query_of(s, layer, pos, head * group + g)[d];
    for (uint32_t t = 0; t < n; t++)
        for (uint32_t d = 0; d < dim; d++) {
            k[t * dim + d] = (double)kernel_f16_to_f32(row_of(s, s->k, layer, head, t)[d]);
            v[t * dim + d] = (double)kernel_f16_to_f32(row_of(s, s->v, layer, head, t)[d]);
        }
    uint32_t divisor = knobs->divisor ? knobs->divisor : 8;
    *p = (struct sparf_problem){
        .head_dim = dim,
        .group = group,
        .tokens = n,
        .channels = knobs->channels ? knobs->channels : sparf_share(dim, 8),
        .keep = knobs->tokens ? knobs->tokens : sparf_share(n, divisor),
        .local = knobs->local,
        .scale = (double)(1 / sqrtf((float)dim)),
        .q = q,
        .k = k,
        .v = v,
    };
}

static void free_problem(struct sparf_problem *p)
{
    free((void *)(uintptr_t)p->q);
    free((void *)(uintptr_t)p->k);
    free((void *)(uintptr_t)p->v);
}

void scene_solve(const struct scene *s, uint32_t layer, uint32_t head, uint64_t pos,
                 const struct scene_knobs *knobs, struct sparf_answer *answer)
{
    struct sparf_problem p;
    state_problem(s, layer, head, pos, knobs, &p);
    assert_int_equal(sparf_answer_alloc(answer, &p), 0);
    sparf_solve(&p, answer);
    free_problem(&p);
}

// Largest |score| of any query head and token: what fp32 rounding is proportional to.
static double largest_score(const struct sparf_problem *p)
{
    double most = 0;
    for (uint32_t g = 0; g < p->group; g++)
        for (uint32_t t = 0; t < p->tokens; t++) {
            double sum = 0; // of sizes: rounding happens on the way too
            for (uint32_t d = 0; d < p->head_dim; d++)
                sum += fabs(p->q[g * p->head_dim + d] * p->k[(size_t)t * p->head_dim + d]);
            most = fmax(most, p->scale * sum);
        }
    return most;
}

// Marks tokens whose rank is so near the border that fp32 may see it otherwise; exact ties are not
// close calls, the lower index wins in both. Returns how many.
static uint32_t close_calls(const struct sparf_problem *p, const struct sparf_answer *a,
                            double score, bool *close)
{
    double epsilon = 3e-7 * (10 + score), border[2] = {a->least_chosen, a->best_left};
    uint32_t n = 0;
    memset(close, 0, p->tokens * sizeof *close);
    if (a->best_left < 0 || a->least_chosen < 0)
        return 0; // nothing was left out, or only the window is in
    bool tie = border[0] == border[1];
    for (uint32_t t = 0; t < p->tokens; t++) {
        double rank = a->rank[t];
        // The other side's border, so that a clear gap between the two makes nobody close.
        double against = a->token[t] ? border[1] : border[0];
        if (p->tokens - t <= p->local || (tie && rank == against))
            continue;
        // Near e^-87 it may be 0 for one of the two.
        bool tiny = rank != against && rank < 1e-36 && against < 1e-36;
        close[t] = tiny || fabs(rank - against) <= epsilon * fmax(rank, against);
        n += close[t];
    }
    // Another one among equals moves the line between them.
    for (uint32_t t = 0; t < p->tokens && tie && n; t++)
        if (p->tokens - t > p->local && a->rank[t] == border[0]) {
            close[t] = true;
            n++;
        }
    return n;
}

// What hangs on the close calls: their weight, predicted and exact, in the set that has them all.
static double slack_of(const struct sparf_problem *p, const struct sparf_answer *a,
                       const bool *close, uint32_t head)
{
    struct sparf_answer set;
    bool any = false;
    assert_int_equal(sparf_answer_alloc(&set, p), 0);
    memcpy(set.rank, a->rank, p->tokens * sizeof *a->rank);
    memcpy(set.channel, a->channel, p->head_dim * sizeof *a->channel);
    for (uint32_t t = 0; t < p->tokens; t++)
        any |= set.token[t] = a->token[t] && !close[t];
    sparf_finish(p, &set);
    double lse = any ? set.lse[head] : -INFINITY, alpha = any ? set.alpha[head] : 0;
    for (uint32_t t = 0; t < p->tokens; t++)
        set.token[t] = a->token[t] || close[t];
    sparf_finish(p, &set);
    double slack = fmax(1 - exp(lse - set.lse[head]), set.alpha[head] - alpha);
    sparf_answer_free(&set);
    return slack;
}

static void expect_head(const struct scene *s, uint32_t layer, uint32_t head, uint64_t pos,
                        const struct scene_knobs *knobs, const struct scene_result *r,
                        struct scene_calls *calls)
{
    struct sparf_problem p;
    struct sparf_answer a;
    uint32_t dim = s->head_dim;
    state_problem(s, layer, head, pos, knobs, &p);
    assert_int_equal(sparf_answer_alloc(&a, &p), 0);
    sparf_solve(&p, &a);
    double score = largest_score(&p), range = 0, rounding = 3e-7 * (20 + score);
    bool *close = malloc(p.tokens * sizeof *close);
    calls->problems++;
    // Channels that fp32 sums may order differently: with one query head there are no sums.
    double gap = a.least_channel - a.best_left_channel;
    bool blind =
        p.group > 1 && a.best_left_channel >= 0 && gap != 0 && gap < 1e-6 * a.least_channel;
    uint32_t n = blind ? 0 : close_calls(&p, &a, score, close);
    for (size_t i = 0; i < (size_t)p.tokens * dim; i++)
        range = fmax(range, fabs(p.v[i]));
    calls->close += blind || n;
    calls->tokens += n;
    for (uint32_t g = 0; g < p.group && !blind; g++) {
        uint32_t h = head * p.group + g;
        double slack = n ? slack_of(&p, &a, close, g) : 0, tolerance = rounding + slack;
        calls->mass = fmax(calls->mass, slack);
        if (slack > 0.5)
            continue; // nothing can be said
        double captured = knobs->audit ? a.captured[g] : a.alpha[g];
        if (!(fabs((double)r->captured[h] - captured) <= tolerance))
            fail_msg("kind %d layer %u pos %llu head %u: captured %.9g instead of %.9g", s->kind,
                     layer, (unsigned long long)pos, h, (double)r->captured[h], captured);
        if (!(fabs((double)r->lse[h] - a.lse[g]) <= tolerance - log(1 - slack) + 1e-6 * score))
            fail_msg("kind %d layer %u pos %llu head %u: lse %.9g instead of %.9g", s->kind, layer,
                     (unsigned long long)pos, h, (double)r->lse[h], a.lse[g]);
        for (uint32_t d = 0; d < dim; d++)
            if (!(fabs((double)r->out[h * dim + d] - a.out[g * dim + d]) <= 2 * range * tolerance))
                fail_msg("kind %d layer %u pos %llu head %u dim %u: %.9g instead of %.9g (%u close "
                         "calls, tolerance %.2g)",
                         s->kind, layer, (unsigned long long)pos, h, d, (double)r->out[h * dim + d],
                         a.out[g * dim + d], n, 2 * range * tolerance);
    }
    free(close);
    sparf_answer_free(&a);
    free_problem(&p);
}

void scene_expect(const struct scene *s, uint32_t layer, uint64_t pos,
                  const struct scene_knobs *knobs, const struct scene_result *r,
                  struct scene_calls *calls)
{
    for (uint32_t head = 0; head < s->kv_heads; head++)
        expect_head(s, layer, head, pos, knobs, r, calls);
}

static void expect_set(const struct scene *s, uint32_t head, uint64_t pos,
                       const struct scene_knobs *knobs, const struct scene_result *results,
                       struct scene_calls *calls)
{
    struct sparf_problem p;
    struct sparf_answer a;
    uint32_t dim = s->head_dim;
    state_problem(s, 0, head, pos, knobs, &p);
    assert_int_equal(sparf_answer_alloc(&a, &p), 0);
    sparf_solve(&p, &a);
    double score = largest_score(&p);
    bool *close = malloc(p.tokens * sizeof *close);
    uint32_t n = close_calls(&p, &a, score, close);
    double moved = n ? a.least_chosen * n / p.tokens : 0; // of alpha, spread over all tokens
    calls->tokens += n;
    calls->problems++;
    for (uint32_t t = 0; t < p.tokens; t++) {
        // Without the token its element is what the mean has of it; the weight comes on top.
        bool seen = false, expected = false;
        for (uint32_t g = 0; g < p.group; g++) {
            uint32_t h = head * p.group + g;
            double base = (1 - a.alpha[g]) / p.tokens, dot = 0;
            for (uint32_t d = 0; d < dim; d++)
                dot += p.q[g * dim + d] * p.k[(size_t)t * dim + d];
            double weight = a.alpha[g] * exp(p.scale * dot - a.lse[g]);
            double margin = 1e-7 + 1e-6 * (20 + score) * base + moved;
            seen |= (double)results[t / dim].out[h * dim + t % dim] > base + margin;
            expected |= a.token[t] && weight > 2 * margin;
        }
        if (close[t])
            continue;
        if (seen && !a.token[t])
            fail_msg("kind %d pos %llu KV head %u: token %u was attended, the reference leaves it "
                     "out (rank %.9g, least chosen %.9g)",
                     s->kind, (unsigned long long)pos, head, t, a.rank[t], a.least_chosen);
        if (expected && !seen)
            fail_msg("kind %d pos %llu KV head %u: token %u was not attended, the reference "
                     "chooses it (rank %.9g, best left %.9g)",
                     s->kind, (unsigned long long)pos, head, t, a.rank[t], a.best_left);
    }
    free(close);
    sparf_answer_free(&a);
    free_problem(&p);
}

void scene_expect_sets(const struct scene *s, uint64_t pos, const struct scene_knobs *knobs,
                       const struct scene_result *results, struct scene_calls *calls)
{
    for (uint32_t head = 0; head < s->kv_heads; head++)
        expect_set(s, head, pos, knobs, results, calls);
}
