// SPDX-License-Identifier: Apache-2.0
#include "bench/clusters.h"
#include "kernels/kernels.h"

#include <math.h>
#include <stdlib.h>

enum { NOISE = 1 << 16 }; // normal numbers; each vector starts somewhere in them

const struct clusters_options clusters_usual = {.seed = 1,
                                                .segment = 32,
                                                .topics = 64,
                                                .focus = 4,
                                                .cohesion = 0.8f,
                                                .sharpness = 6,
                                                .outliers = 0.6f};

struct clusters {
    struct clusters_options o;
    uint32_t layers, kv_heads, head_dim;
    uint64_t tokens;
    float *noise;    // [NOISE + head_dim]
    float *size;     // [kv_heads][head_dim]: s
    uint16_t *topic; // [sequence][layer][head][tokens]
};

static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static double uniform(uint64_t x) // (0, 1)
{
    return ((double)(mix(x) >> 11) + 0.5) / 9007199254740992.0;
}

static double normal(uint64_t x)
{
    return sqrt(-2 * log(uniform(2 * x))) * cos(6.283185307179586 * uniform(2 * x + 1));
}

static uint64_t key(const struct clusters *c, uint32_t kind, uint32_t head, uint64_t a, uint64_t b)
{
    uint64_t x = mix(c->o.seed * 31 + kind);
    x = mix(x + head);
    x = mix(x + a);
    return mix(x + b);
}

enum { CENTRE_K, CENTRE_V, TOKEN_K, TOKEN_V, QUERY, FOCUS, SEGMENT, SIZE };

// A vector of independent normal elements that has this name.
static const float *vector(const struct clusters *c, uint32_t kind, uint32_t head, uint64_t a,
                           uint64_t b)
{
    return c->noise + key(c, kind, head, a, b) % NOISE;
}

static uint16_t *topics_of(const struct clusters *c, uint32_t sequence, uint32_t layer,
                           uint32_t head)
{
    return c->topic + (((size_t)sequence * c->layers + layer) * c->kv_heads + head) * c->tokens;
}

static void write_text(const struct clusters *c, uint16_t *topic, uint64_t name)
{
    uint16_t now = 0;
    for (uint64_t t = 0; t < c->tokens; t++) {
        uint64_t x = mix(name * 0x9e3779b97f4a7c15u + t);
        if (!t || uniform(x) * c->o.segment < 1)
            now = (uint16_t)(mix(x + 1) % c->o.topics);
        topic[t] = now;
    }
}

int clusters_new(struct clusters **out, const struct clusters_options *options, uint32_t sequences,
                 uint32_t layers, uint32_t kv_heads, uint32_t head_dim, uint64_t tokens,
                 struct inst_msg *msg)
{
    size_t texts = (size_t)sequences * layers * kv_heads;
    struct clusters *c = calloc(1, sizeof *c);
    *out = c;
    if (c) {
        *c = (struct clusters){.o = *options,
                               .layers = layers,
                               .kv_heads = kv_heads,
                               .head_dim = head_dim,
                               .tokens = tokens};
        c->noise = malloc((NOISE + (size_t)head_dim) * sizeof *c->noise);
        c->size = malloc((size_t)kv_heads * head_dim * sizeof *c->size);
        c->topic = malloc(texts * tokens * sizeof *c->topic);
    }
    if (!c || !c->noise || !c->size || !c->topic) {
        clusters_free(c);
        *out = NULL;
        return inst_fail(msg, INST_ENOMEM, "no memory for texts of %llu tokens",
                         (unsigned long long)tokens);
    }
    for (size_t i = 0; i < NOISE + (size_t)head_dim; i++)
        c->noise[i] = (float)normal(options->seed * NOISE * 2 + i);
    for (uint32_t h = 0; h < kv_heads; h++) {
        // Scaled so that the score of two equal centres is 1 on average (sum of s^2 is
        // sqrt(head_dim), and a score is divided by that).
        float *size = c->size + (size_t)h * head_dim;
        double squares = 0;
        for (uint32_t d = 0; d < head_dim; d++) {
            size[d] = (float)exp((double)options->outliers * normal(key(c, SIZE, h, d, 0)));
            squares += (double)size[d] * (double)size[d];
        }
        for (uint32_t d = 0; d < head_dim; d++)
            size[d] *= (float)sqrt(sqrt((double)head_dim) / squares);
    }
    for (size_t i = 0; i < texts; i++)
        write_text(c, c->topic + i * tokens, key(c, SEGMENT, 0, i, 0));
    return 0;
}

void clusters_free(struct clusters *c)
{
    if (!c)
        return;
    free(c->noise);
    free(c->size);
    free(c->topic);
    free(c);
}

void clusters_kv(const struct clusters *c, uint32_t sequence, uint32_t layer, uint32_t head,
                 uint64_t pos, uint64_t n, uint16_t *k, uint16_t *v)
{
    const struct kernels *kernels = kernels_best();
    const uint16_t *topic = topics_of(c, sequence, layer, head);
    const float *size = c->size + (size_t)head * c->head_dim;
    float cohesion = c->o.cohesion, rest = sqrtf(1 - cohesion * cohesion);
    uint64_t text = (uint64_t)sequence * c->layers + layer;
    float row[KERNEL_HEAD_DIM_MAX];
    for (uint64_t t = 0; t < n; t++, k += c->head_dim, v += c->head_dim) {
        const float *centre = vector(c, CENTRE_K, head, text, topic[pos + t]);
        const float *own = vector(c, TOKEN_K, head, text, pos + t);
        for (uint32_t d = 0; d < c->head_dim; d++)
            row[d] = size[d] * (cohesion * centre[d] + rest * own[d]);
        kernels->f32_to_f16(k, row, c->head_dim);
        centre = vector(c, CENTRE_V, head, text, topic[pos + t]);
        own = vector(c, TOKEN_V, head, text, pos + t);
        for (uint32_t d = 0; d < c->head_dim; d++)
            row[d] = cohesion * centre[d] + rest * own[d];
        kernels->f32_to_f16(v, row, c->head_dim);
    }
}

void clusters_query(const struct clusters *c, uint32_t sequence, uint32_t layer, uint32_t head,
                    uint64_t pos, uint32_t group, float *q)
{
    const uint16_t *topic = topics_of(c, sequence, layer, head);
    const float *size = c->size + (size_t)head * c->head_dim;
    uint64_t text = (uint64_t)sequence * c->layers + layer;
    const uint64_t stay = c->o.stay ? c->o.stay : 1;
    float pull = c->o.sharpness / (c->o.cohesion > 0 ? c->o.cohesion : 1);
    for (uint32_t g = 0; g < group; g++, q += c->head_dim) {
        const float *own = vector(c, QUERY, head * group + g, text, pos);
        for (uint32_t d = 0; d < c->head_dim; d++)
            q[d] = own[d];
        for (uint32_t f = 0; f < c->o.focus; f++) {
            const uint64_t since = (pos + f * stay / c->o.focus) / stay;
            uint64_t other = key(c, FOCUS, head, text * c->tokens + since, f) % c->o.topics;
            const float *centre = vector(c, CENTRE_K, head, text, f ? other : topic[pos]);
            for (uint32_t d = 0; d < c->head_dim; d++)
                q[d] += pull * centre[d];
        }
        for (uint32_t d = 0; d < c->head_dim; d++)
            q[d] *= size[d];
    }
}

void clusters_content_kv(void *user, uint32_t sequence, uint32_t head, uint64_t pos, uint64_t n,
                         uint16_t *k, uint16_t *v)
{
    clusters_kv(user, sequence, 0, head, pos, n, k, v);
}

void clusters_content_query(void *user, uint32_t sequence, uint32_t head, uint64_t pos,
                            uint32_t group, float *q)
{
    clusters_query(user, sequence, 0, head, pos, group, q);
}
