// SPDX-License-Identifier: Apache-2.0
#include "interleave_model.h"
#include "base/checked.h"
#include "chance.h"
#include "kernels/kernels.h"
#include "kernels/kv.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

// The loops over elements are not what sanitizers are here for.
#define PLAIN __attribute__((no_sanitize("address", "undefined")))

enum { VALUES = 1 << 16, EXTRA = KERNEL_HEAD_DIM_MAX };

static uint16_t values[VALUES + EXTRA];
static float values_f32[VALUES + EXTRA], queries[VALUES + EXTRA];

static void make_values(void)
{
    static bool made;
    if (made)
        return;
    made = true;
    struct chance chance = {.state = 2024};
    for (int i = 0; i < VALUES + EXTRA; i++) {
        float x = (float)below(&chance, 1 << 16) / 16384.0f - 2;
        values[i] = kernel_f32_to_f16(x);
        values_f32[i] = kernel_f16_to_f32(values[i]);
        queries[i] = 3 * ((float)below(&chance, 1 << 16) / 32768.0f - 1);
    }
}

static inline uint32_t place(uint32_t who, uint32_t layer, uint32_t head, uint32_t token, bool v)
{
    uint64_t x = (uint64_t)who << 32 | layer << 28 | head << 24 | (uint32_t)v << 23 | token;
    return (uint32_t)(chance_mix(x * UINT64_C(0x9e3779b97f4a7c15)) & (VALUES - 1));
}

const uint16_t *model_row(uint32_t who, uint32_t layer, uint32_t head, uint32_t token, bool v)
{
    make_values();
    return values + place(who, layer, head, token, v);
}

void model_stored(uint32_t who, uint32_t layer, uint32_t head, uint32_t token, bool v,
                  uint32_t kv_type, uint32_t dim, uint16_t *row)
{
    memcpy(row, model_row(who, layer, head, token, v), dim * sizeof *row);
    if (v)
        kv_round_value(kv_type, row, model_row(who, layer, head, token, false), dim);
    else
        kv_round(kv_type, row, dim);
}

// What is stored of a row, as fp32.
static const float *stored_row(const struct model_attention *a, uint32_t token, bool v, float *room)
{
    uint16_t row[KERNEL_HEAD_DIM_MAX];
    if (a->kv_type == KV_F16)
        return values_f32 + place(a->who[token], a->layer, a->head, token, v);
    model_stored(a->who[token], a->layer, a->head, token, v, a->kv_type, a->head_dim, row);
    kernels_best()->f16_to_f32(room, row, a->head_dim);
    return room;
}

const float *model_query(uint64_t name)
{
    make_values();
    return queries + (chance_mix(name * UINT64_C(0x9e3779b97f4a7c15) + 1) & (VALUES - 1));
}

void model_find_row(const uint16_t *row, uint32_t dim, uint32_t writers, char *text, size_t n)
{
    uint32_t heads = MODEL_LAYERS * MODEL_HEADS * 2;
    for (uint32_t who = 1; who < writers; who++) {
        for (uint32_t i = 0; i < heads * MODEL_TOKENS; i++) {
            uint32_t token = i / heads, layer = i % heads / (2 * MODEL_HEADS);
            uint32_t head = i / 2 % MODEL_HEADS;
            if (memcmp(model_row(who, layer, head, token, i & 1), row, 2 * dim))
                continue;
            snprintf(text, n, "%c of writer %u layer %u head %u token %u", i & 1 ? 'V' : 'K', who,
                     layer, head, token);
            return;
        }
    }
    snprintf(text, n, "nobody's (%04x %04x)", row[0], dim > 1 ? row[1] : 0);
}

static uint32_t least(const struct model_space *space, const uint32_t *heads)
{
    uint32_t tokens = UINT32_MAX;
    for (uint32_t h = 0; h < space->config.kv_heads; h++)
        tokens = heads[h] < tokens ? heads[h] : tokens;
    return tokens;
}

uint32_t model_tokens(const struct model_space *space, const struct model_layer *layer)
{
    return least(space, layer->have);
}

uint32_t model_tokens_maybe(const struct model_space *space, const struct model_layer *layer)
{
    return least(space, layer->maybe);
}

bool model_exact(const struct model_space *space, const struct model_sequence *sequence)
{
    if (sequence->presence == PERHAPS)
        return false;
    for (uint32_t l = 0; l < space->config.layers; l++) {
        for (uint32_t h = 0; h < space->config.kv_heads; h++) {
            if (sequence->layers[l].have[h] != sequence->layers[l].maybe[h])
                return false;
        }
    }
    return true;
}

void model_create(struct model_space *space, uint32_t seq, uint32_t epoch)
{
    struct model_sequence *s = &space->sequences[seq];
    s->presence = PRESENT;
    s->lost = s->forked = false;
    s->epoch = epoch;
    s->life++;
    for (uint32_t l = 0; l < MODEL_LAYERS; l++) {
        memset(s->layers[l].have, 0, sizeof s->layers[l].have);
        memset(s->layers[l].maybe, 0, sizeof s->layers[l].maybe);
        memset(s->layers[l].gone, 0, sizeof s->layers[l].gone);
        s->layers[l].cuts = 0;
    }
}

void model_write(struct model_layer *layer, uint32_t head_first, uint32_t head_count, uint32_t pos,
                 uint32_t n, uint32_t who, bool sure)
{
    uint32_t end = pos + n;
    for (uint32_t h = head_first; h < head_first + head_count; h++) {
        uint32_t *have = &layer->have[h], *maybe = &layer->maybe[h], *owner = layer->who[h];
        for (uint32_t t = *have > pos ? *have : pos; t < end; t++) {
            if (t >= *maybe)
                owner[t] = who;
            else if (owner[t] != who)
                owner[t] = 0;
        }
        *maybe = end > *maybe ? end : *maybe;
        if (sure)
            *have = end > *have ? end : *have;
    }
}

void model_cut(const struct model_space *space, struct model_layer *layer, uint32_t pos)
{
    for (uint32_t h = 0; h < space->config.kv_heads; h++) {
        layer->have[h] = (uint32_t)min_u64(layer->have[h], pos);
        layer->maybe[h] = (uint32_t)min_u64(layer->maybe[h], pos);
    }
    layer->cuts++;
    uint32_t group = space->config.group_tokens;
    for (uint32_t g = (pos + group - 1) / group; g < MODEL_GROUPS; g++)
        layer->gone[g] = false;
}

void model_punch(const struct model_space *space, struct model_layer *layer, uint64_t pos,
                 uint64_t n)
{
    uint64_t group = space->config.group_tokens, end = pos + n < pos ? UINT64_MAX : pos + n;
    uint64_t tokens = model_tokens(space, layer);
    for (uint64_t g = div_round_up(pos, group); g < end / group && g < tokens / group; g++)
        layer->gone[g] = true;
}

void model_fork(const struct model_space *space, const struct model_sequence *parent,
                struct model_sequence *child, uint32_t pos)
{
    uint32_t group = space->config.group_tokens;
    for (uint32_t l = 0; l < space->config.layers; l++) {
        const struct model_layer *from = &parent->layers[l];
        struct model_layer *to = &child->layers[l];
        memcpy(to->gone, from->gone, (pos + group - 1) / group * sizeof to->gone[0]);
        for (uint32_t h = 0; h < space->config.kv_heads; h++) {
            memcpy(to->who[h], from->who[h], pos * sizeof to->who[h][0]);
            to->have[h] = to->maybe[h] = pos;
        }
    }
}

void model_seen(const struct model_space *space, struct model_layer *layer, uint32_t tokens)
{
    for (uint32_t h = 0; h < space->config.kv_heads; h++) {
        layer->have[h] = (uint32_t)max_u64(layer->have[h], tokens);
        layer->maybe[h] = (uint32_t)max_u64(layer->maybe[h], tokens);
    }
}

bool model_gone(const struct model_space *space, const struct model_layer *layer, uint32_t first,
                uint32_t end)
{
    uint32_t group = space->config.group_tokens;
    for (uint32_t g = first / group; g * group < end; g++) {
        if (layer->gone[g])
            return true;
    }
    return false;
}

PLAIN void model_attend(const struct model_attention *a, double *out, double *lse)
{
    double score[MODEL_TOKENS], max = -INFINITY, sum = 0;
    float acc[EXTRA] = {0}, room[KERNEL_HEAD_DIM_MAX];
    make_values();
    for (uint32_t t = a->first; t < a->end; t++) {
        const float *k = stored_row(a, t, false, room);
        float s = 0;
        for (uint32_t d = 0; d < a->head_dim; d++)
            s += a->q[d] * k[d];
        score[t] = (double)s * (double)a->scale;
        if (a->softcap > 0)
            score[t] = (double)a->softcap * tanh(score[t] / (double)a->softcap);
        max = score[t] > max ? score[t] : max;
    }
    for (uint32_t t = a->first; t < a->end; t++) {
        const float *v = stored_row(a, t, true, room);
        double e = exp(score[t] - max);
        sum += e;
        for (uint32_t d = 0; d < a->head_dim; d++)
            acc[d] += (float)e * v[d];
    }
    for (uint32_t d = 0; d < a->head_dim; d++)
        out[d] = sum > 0 ? (double)acc[d] / sum : 0;
    *lse = sum > 0 ? max + log(sum) : -INFINITY;
}
