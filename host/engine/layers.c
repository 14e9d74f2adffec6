// SPDX-License-Identifier: Apache-2.0
// The arithmetic of a layer around attention, in strips of rows so that buffers stay small.
// Matrix products are spread over outputs, everything else over rows.
#include "host/engine/engine.h"
#include "base/checked.h"

#include <math.h>
#include <string.h>

// Work for fewer values than this is not worth waking the pool.
enum { PARALLEL_VALUES = 16 * 1024 };

static void run_rows(struct inst_engine *e, pool_fn *fn, void *arg, size_t rows, size_t values)
{
    pool_run(rows * values < PARALLEL_VALUES ? NULL : e->pool, fn, arg, rows);
}

static float *x_row(const struct inst_engine *e, size_t row)
{
    return engine_f32(e, BUFFER_x) + row * row_stride(e->config.width);
}

struct row_job {
    struct inst_engine *e;
    const float *in;
    float *out;
    const float *weight, *bias; // of a norm
    size_t in_stride, out_stride, n;
    const int32_t *tokens;
};

static void embed_row(void *arg, size_t row, unsigned worker)
{
    (void)worker;
    const struct row_job *job = arg;
    const struct kernels *k = job->e->kernels;
    float *x = job->out + row * job->out_stride, scale = job->e->config.embedding_scale;
    k->weight_row(&job->e->weights.token_embd, (uint32_t)job->tokens[row], x);
    if (scale != 1)
        k->scale(x, scale, job->n);
}

void layer_embed(struct inst_engine *e, size_t row, const int32_t *tokens, size_t n)
{
    struct row_job job = {.e = e,
                          .tokens = tokens,
                          .out = x_row(e, row),
                          .out_stride = row_stride(e->config.width),
                          .n = e->config.width};
    run_rows(e, embed_row, &job, n, e->config.width);
}

// Angles are exact to double precision before they are rounded once: at position 100,000 a float
// product would be off by a hundredth of a radian.
static void rope_row(struct inst_engine *e, size_t row, uint64_t position)
{
    size_t pairs = e->config.rope_dims / 2, sets = plan_rope_values(&e->config) / (2 * pairs);
    float *out = engine_f32(e, BUFFER_rope) + row * row_stride(plan_rope_values(&e->config));
    for (size_t set = 0; set < sets; set++, out += 2 * pairs) {
        double size = set ? 1 : (double)e->config.rope_attention;
        for (size_t i = 0; i < pairs; i++) {
            double angle = (double)position * e->rope_freq[set * pairs + i];
            out[i] = (float)(cos(angle) * size);
            out[pairs + i] = (float)(sin(angle) * size);
        }
    }
}

// norm lends its first row, so one row at a time.
static void learned_row(struct inst_engine *e, size_t row, uint64_t position)
{
    float *embedding = engine_f32(e, BUFFER_norm);
    e->kernels->weight_row(&e->weights.position_embd, position + POSITION_OFFSET, embedding);
    e->kernels->add(x_row(e, row), embedding, e->config.width);
}

struct rope_job {
    struct inst_engine *e;
    size_t row;
    uint64_t first;
};

static void rope_item(void *arg, size_t i, unsigned worker)
{
    (void)worker;
    const struct rope_job *job = arg;
    rope_row(job->e, job->row + i, job->first + i);
}

void layer_positions(struct inst_engine *e, size_t row, uint64_t first, size_t n)
{
    if (e->config.rope_dims)
        run_rows(e, rope_item, &(struct rope_job){e, row, first}, n, 32 * e->config.rope_dims);
    else
        for (size_t i = 0; i < n; i++)
            learned_row(e, row + i, first + i);
}

static void norm_row(void *arg, size_t row, unsigned worker)
{
    (void)worker;
    const struct row_job *job = arg;
    const struct kernels *k = job->e->kernels;
    float *out = job->out + row * job->out_stride, eps = job->e->config.norm_eps;
    const float *in = job->in + row * job->in_stride;
    if (job->bias)
        k->layer_norm(out, in, job->weight, job->bias, job->n, eps);
    else
        k->rms_norm(out, in, job->weight, job->n, eps);
}

// norm = the norm of rows [first, first + n) of x.
static void norm_strip(struct inst_engine *e, const float *weight, const float *bias, size_t first,
                       size_t n)
{
    size_t stride = row_stride(e->config.width);
    struct row_job job = {.e = e,
                          .in = x_row(e, first),
                          .in_stride = stride,
                          .out = engine_f32(e, BUFFER_norm),
                          .out_stride = stride,
                          .weight = weight,
                          .bias = bias,
                          .n = e->config.width};
    run_rows(e, norm_row, &job, n, e->config.width);
}

static void matmul(struct inst_engine *e, const struct product *products, size_t n_products,
                   const float *x, size_t x_stride, size_t rows)
{
    e->compute->ops->matmul(e->compute, products, n_products, x, x_stride, rows);
    port_tick(&e->port);
}

struct qkv_job {
    struct inst_engine *e;
    const struct model_layer *w;
    size_t rope;  // where the layer's cosines and sines lie in a row of the table
    size_t first; // row of the chunk that is row 0 of the strip
    float *q, *k, *v;
    size_t q_stride, kv_stride;
    layer_qkv_fn *put;
    void *arg;
};

// What lies between the product and attention, for all heads of q or of k.
static void finish_heads(const struct inst_engine *e, float *x, size_t heads, const float *bias,
                         const float *norm, const float *cos_sin)
{
    const struct model_config *c = &e->config;
    if (bias)
        e->kernels->add(x, bias, heads * c->head_dim);
    for (size_t h = 0; h < heads; h++, x += c->head_dim) {
        if (norm)
            e->kernels->rms_norm(x, x, norm, c->head_dim, c->norm_eps);
        if (c->rope_halves)
            e->kernels->rope_halves(x, cos_sin, c->rope_dims);
        else if (c->rope_dims)
            e->kernels->rope(x, cos_sin, c->rope_dims);
    }
}

static void qkv_row(void *arg, size_t row, unsigned worker)
{
    (void)worker;
    const struct qkv_job *job = arg;
    struct inst_engine *e = job->e;
    const struct model_config *c = &e->config;
    const struct model_layer *w = job->w;
    const float *cos_sin = engine_f32(e, BUFFER_rope);
    if (c->rope_dims)
        cos_sin += (job->first + row) * row_stride(plan_rope_values(c)) + job->rope;
    float *q = job->q + row * job->q_stride, *k = job->k + row * job->kv_stride;
    float *v = job->v + row * job->kv_stride;
    finish_heads(e, q, c->heads, w->attn_q_bias, w->attn_q_norm, cos_sin);
    finish_heads(e, k, c->kv_heads, w->attn_k_bias, w->attn_k_norm, cos_sin);
    if (w->attn_v_bias)
        e->kernels->add(v, w->attn_v_bias, (size_t)c->kv_heads * c->head_dim);
    job->put(job->arg, job->first + row, q, k, v);
}

void layer_qkv(struct inst_engine *e, uint32_t layer, size_t row, size_t n, layer_qkv_fn *put,
               void *arg)
{
    const struct model_config *c = &e->config;
    const struct model_layer *w = &e->weights.layer[layer];
    size_t kv_dim = (size_t)c->kv_heads * c->head_dim;
    struct qkv_job job = {.e = e, .w = w, .put = put, .arg = arg};
    if (c->rope_window_base > 0 && model_layer_window(c, layer))
        job.rope = c->rope_dims;
    job.q = engine_f32(e, BUFFER_t1);
    job.q_stride = row_stride((uint64_t)c->heads * c->head_dim);
    job.k = engine_f32(e, BUFFER_t2);
    job.v = job.k + kv_dim;
    job.kv_stride = row_stride(2 * kv_dim);
    for (size_t first = row, end = row + n; first < end; first += e->plan.strip) {
        size_t rows = min_u64(e->plan.strip, end - first);
        norm_strip(e, w->attn_norm, w->attn_norm_bias, first, rows);
        const struct product products[] = {
            {&w->attn_q, job.q, job.q_stride},
            {&w->attn_k, job.k, job.kv_stride},
            {&w->attn_v, job.v, job.kv_stride},
        };
        matmul(e, products, 3, engine_f32(e, BUFFER_norm), row_stride(c->width), rows);
        job.first = first;
        run_rows(e, qkv_row, &job, rows, job.q_stride + job.kv_stride);
    }
}

// A block's output, in norm: + bias, normed where there is a norm behind it, added to x.
struct output_job {
    struct inst_engine *e;
    const float *bias, *post_norm;
    size_t first;
};

static void output_row(void *arg, size_t row, unsigned worker)
{
    (void)worker;
    const struct output_job *job = arg;
    const struct kernels *k = job->e->kernels;
    size_t width = job->e->config.width;
    float *y = engine_f32(job->e, BUFFER_norm) + row * row_stride(width);
    if (job->bias)
        k->add(y, job->bias, width);
    if (job->post_norm)
        k->rms_norm(y, y, job->post_norm, width, job->e->config.norm_eps);
    k->add(x_row(job->e, job->first + row), y, width);
}

static void add_strip(struct inst_engine *e, const float *bias, const float *post_norm,
                      size_t first, size_t n)
{
    struct output_job job = {e, bias, post_norm, first};
    run_rows(e, output_row, &job, n, e->config.width);
}

static void activation_row(void *arg, size_t row, unsigned worker)
{
    (void)worker;
    const struct row_job *job = arg;
    const struct kernels *k = job->e->kernels;
    float *gate = job->out + row * job->out_stride;
    const float *up = job->in + row * job->in_stride;
    if (job->bias)
        k->add(gate, job->bias, job->n);
    switch (job->e->config.activation) {
    case ACTIVATION_SILU:
        k->silu_mul(gate, up, job->n);
        break;
    case ACTIVATION_GELU_TANH:
        k->gelu_mul(gate, up, job->n);
        break;
    case ACTIVATION_RELU:;
        bool finite = numbers_are_finite(gate, job->n);
        k->relu(gate, job->n);
        if (!finite)
            gate[0] = NAN; // which relu would have made 0
        break;
    }
}

static void feed_forward(struct inst_engine *e, const struct model_layer *w, size_t first,
                         size_t rows)
{
    size_t width = row_stride(e->config.width), ffn = row_stride(e->config.ffn);
    float *norm = engine_f32(e, BUFFER_norm), *gate = engine_f32(e, BUFFER_t1);
    float *up = engine_f32(e, BUFFER_t2);
    norm_strip(e, w->ffn_norm, w->ffn_norm_bias, first, rows);
    // Without a gate, up takes its place.
    const struct product products[] = {
        {w->ffn_gate.data ? &w->ffn_gate : &w->ffn_up, gate, ffn},
        {&w->ffn_up, up, ffn},
    };
    matmul(e, products, w->ffn_gate.data ? 2 : 1, norm, width, rows);
    struct row_job job = {.e = e,
                          .in = up,
                          .in_stride = ffn,
                          .out = gate,
                          .out_stride = ffn,
                          .bias = w->ffn_up_bias,
                          .n = e->config.ffn};
    run_rows(e, activation_row, &job, rows, 4 * ffn);
    matmul(e, &(struct product){&w->ffn_down, norm, width}, 1, gate, ffn, rows);
    add_strip(e, w->ffn_down_bias, w->ffn_post_norm, first, rows);
}

void layer_finish(struct inst_engine *e, uint32_t layer, size_t row, size_t n, const float *attn,
                  size_t attn_stride)
{
    const struct model_layer *w = &e->weights.layer[layer];
    float *norm = engine_f32(e, BUFFER_norm);
    for (size_t first = row, end = row + n; first < end; first += e->plan.strip) {
        size_t rows = min_u64(e->plan.strip, end - first);
        matmul(e, &(struct product){&w->attn_output, norm, row_stride(e->config.width)}, 1,
               attn + first * attn_stride, attn_stride, rows);
        add_strip(e, w->attn_output_bias, w->attn_post_norm, first, rows);
        feed_forward(e, w, first, rows);
    }
}

struct logits_job {
    struct inst_engine *e;
    float *out;
    size_t out_stride;
    _Atomic uint64_t bad;
};

static void logits_row(void *arg, size_t row, unsigned worker)
{
    (void)worker;
    struct logits_job *job = arg;
    const struct model_config *c = &job->e->config;
    float *out = job->out + row * job->out_stride;
    if (!numbers_are_finite(out, c->vocab))
        atomic_fetch_or(&job->bad, (uint64_t)1 << row); // before the cap hides it
    if (c->logit_softcap > 0)
        job->e->kernels->softcap(out, c->logit_softcap, c->vocab);
}

uint64_t layer_logits(struct inst_engine *e, size_t first, size_t n, float *out, size_t out_stride)
{
    norm_strip(e, e->weights.output_norm, e->weights.output_norm_bias, first, n);
    matmul(e, &(struct product){&e->weights.output, out, out_stride}, 1, engine_f32(e, BUFFER_norm),
           row_stride(e->config.width), n);
    struct logits_job job = {.e = e, .out = out, .out_stride = out_stride};
    atomic_init(&job.bad, 0);
    run_rows(e, logits_row, &job, n,
             (e->config.logit_softcap > 0 ? 4 : 1) * (size_t)e->config.vocab);
    return atomic_load(&job.bad);
}
