// SPDX-License-Identifier: Apache-2.0
// The arithmetic of a layer around attention, in strips of rows so that buffers stay small.
// Matrix products are spread over outputs, everything else over rows.
#include "host/compute/cpu.h"
#include "base/checked.h"

#include <math.h>
#include <string.h>

static void run_rows(const struct compute_cpu *cpu, pool_fn *fn, void *arg, size_t rows,
                     size_t values)
{
    pool_run(rows * values < PARALLEL_VALUES ? NULL : cpu->with.pool, fn, arg, rows);
}

static float *x_row(const struct compute_cpu *cpu, const struct cpu_slot *slot, size_t row)
{
    return slot->work[WORK_x] + row * row_stride(cpu->with.config->width);
}

// ---- embed -------------------------------------------------------------------------------------

struct embed_job {
    struct compute_cpu *cpu;
    struct cpu_slot *slot;
};

// Angles are exact to double precision before they are rounded once: at position 100,000 a float
// product would be off by a hundredth of a radian.
static void rope_row(const struct compute_cpu *cpu, float *out, uint64_t position)
{
    const struct model_config *c = cpu->with.config;
    size_t pairs = c->rope_dims / 2, sets = compute_rope_values(c) / (2 * pairs);
    for (size_t set = 0; set < sets; set++, out += 2 * pairs) {
        double size = set ? 1 : (double)c->rope_attention;
        for (size_t i = 0; i < pairs; i++) {
            double angle = (double)position * cpu->with.rope_freq[set * pairs + i];
            out[i] = (float)(cos(angle) * size);
            out[pairs + i] = (float)(sin(angle) * size);
        }
    }
}

static void embed_row(void *arg, size_t row, unsigned worker)
{
    (void)worker;
    const struct embed_job *job = arg;
    const struct compute_cpu *cpu = job->cpu;
    const struct model_config *c = cpu->with.config;
    const struct kernels *k = cpu->with.kernels;
    const struct compute_rows *rows = &job->slot->rows;
    float *x = x_row(cpu, job->slot, row);
    k->weight_row(&cpu->with.weights->token_embd, (uint32_t)rows->token[row], x);
    if (c->embedding_scale != 1)
        k->scale(x, c->embedding_scale, c->width);
    if (c->rope_dims)
        rope_row(cpu, job->slot->work[WORK_rope] + row * row_stride(compute_rope_values(c)),
                 rows->position[row]);
}

int cpu_embed(struct compute *compute, uint32_t slot, const struct compute_rows *rows)
{
    struct compute_cpu *cpu = cpu_of(compute);
    struct embed_job job = {cpu, &cpu->slot[slot]};
    const struct model_config *c = cpu->with.config;
    job.slot->rows = *rows;
    run_rows(cpu, embed_row, &job, rows->n, c->width + 32 * (size_t)c->rope_dims);
    // Learned positions: norm lends its first row, so one row at a time.
    float *embedding = cpu->work[WORK_norm];
    for (size_t row = 0; !c->rope_dims && row < rows->n; row++) {
        cpu->with.kernels->weight_row(&cpu->with.weights->position_embd,
                                      rows->position[row] + POSITION_OFFSET, embedding);
        cpu->with.kernels->add(x_row(cpu, job.slot, row), embedding, c->width);
    }
    return 0;
}

// ---- rows of a strip ---------------------------------------------------------------------------

struct row_job {
    const struct compute_cpu *cpu;
    const float *in;
    float *out;
    const float *weight, *bias; // of a norm
    const uint32_t *row;        // of `in`; NULL: as they come
    size_t in_stride, out_stride, n;
};

static void norm_row(void *arg, size_t row, unsigned worker)
{
    (void)worker;
    const struct row_job *job = arg;
    const struct kernels *k = job->cpu->with.kernels;
    float *out = job->out + row * job->out_stride, eps = job->cpu->with.config->norm_eps;
    const float *in = job->in + (job->row ? job->row[row] : row) * job->in_stride;
    if (job->bias)
        k->layer_norm(out, in, job->weight, job->bias, job->n, eps);
    else
        k->rms_norm(out, in, job->weight, job->n, eps);
}

// norm = the norm of rows [first, first + n) of x, or of those that `row` names, counted from
// first.
static void norm_strip(const struct compute_cpu *cpu, const struct cpu_slot *slot,
                       const float *weight, const float *bias, size_t first, const uint32_t *row,
                       size_t n)
{
    size_t width = cpu->with.config->width, stride = row_stride(width);
    struct row_job job = {.cpu = cpu,
                          .in = x_row(cpu, slot, first),
                          .row = row,
                          .in_stride = stride,
                          .out = cpu->work[WORK_norm],
                          .out_stride = stride,
                          .weight = weight,
                          .bias = bias,
                          .n = width};
    run_rows(cpu, norm_row, &job, n, width);
}

// ---- q, k and v --------------------------------------------------------------------------------

struct qkv_job {
    const struct compute_cpu *cpu;
    const struct cpu_slot *slot;
    const struct model_layer *w;
    uint32_t layer;
    const struct compute_wire *wire; // NULL: q, k and v stay where they are
    uint32_t n_wires;
    uint32_t *faults;
    size_t rope;  // where the layer's cosines and sines lie in a row of the table
    size_t first; // row of the step that is row 0 of the strip
    float *q, *k, *v;
    size_t q_stride, kv_stride;
};

// What lies between the product and attention, for all heads of q or of k.
static void finish_heads(const struct compute_cpu *cpu, float *x, size_t heads, const float *bias,
                         const float *norm, const float *cos_sin)
{
    const struct model_config *c = cpu->with.config;
    const struct kernels *k = cpu->with.kernels;
    if (bias)
        k->add(x, bias, heads * c->head_dim);
    for (size_t h = 0; h < heads; h++, x += c->head_dim) {
        if (norm)
            k->rms_norm(x, x, norm, c->head_dim, c->norm_eps);
        if (c->rope_halves)
            k->rope_halves(x, cos_sin, c->rope_dims);
        else if (c->rope_dims)
            k->rope(x, cos_sin, c->rope_dims);
    }
}

static const struct compute_wire *wire_of(const struct qkv_job *job, size_t row)
{
    uint32_t low = 0, high = job->n_wires;
    while (high - low > 1) {
        uint32_t middle = (low + high) / 2;
        if (row < job->wire[middle].first)
            high = middle;
        else
            low = middle;
    }
    return &job->wire[low];
}

static void put_q(const struct qkv_job *job, const struct compute_wire *wire, size_t row,
                  const float *q)
{
    const struct compute_cpu *cpu = job->cpu;
    const struct model_config *c = cpu->with.config;
    if (wire->q.buffer) {
        memcpy((float *)cpu_at(wire->q) + row * wire->q_row, q,
               (size_t)c->heads * c->head_dim * sizeof *q);
        return;
    }
    size_t group_dim = cpu->group * c->head_dim;
    float *to = job->slot->work[WORK_q] + wire->first * cpu_q_stride(cpu);
    for (size_t h = 0; h < c->kv_heads; h++)
        memcpy(to + (h * wire->n + row) * group_dim, q + h * group_dim, group_dim * sizeof *q);
}

// A row's q, k and v in the order of its wire.
static void put_row(const struct qkv_job *job, size_t row, const float *q, const float *k,
                    const float *v)
{
    const struct compute_cpu *cpu = job->cpu;
    const struct model_config *c = cpu->with.config;
    const struct compute_wire *wire = wire_of(job, row);
    size_t dim = c->head_dim, at = row - wire->first;
    uint32_t fault = 0, type = cpu->with.plan.kv_type;
    put_q(job, wire, at, q);
    fault_check(&fault, FAULT_Q, q, c->heads * dim);
    const size_t to = at * wire->kv_row;
    uint16_t *k16 = (uint16_t *)cpu_at(wire->k) + to, *v16 = (uint16_t *)cpu_at(wire->v) + to;
    for (size_t h = 0; h < c->kv_heads; h++) {
        uint16_t *k_to = k16 + h * wire->kv_head, *v_to = v16 + h * wire->kv_head;
        cpu->with.kernels->f32_to_f16(k_to, k + h * dim, dim);
        cpu->with.kernels->f32_to_f16(v_to, v + h * dim, dim);
        fault_check_f16(&fault, FAULT_K, k_to, k + h * dim, dim);
        fault_check_f16(&fault, FAULT_V, v_to, v + h * dim, dim);
    }
    if (type != KV_F16)
        kv_round_keys(type, k16, wire->kv_head, c->kv_heads, dim, cpu_keys(cpu, job->layer, 0));
    for (size_t h = 0; h < c->kv_heads; h++)
        kv_round_value(type, v16 + h * wire->kv_head, k16 + h * wire->kv_head, dim);
    job->faults[row] = fault;
}

// Before K is rounded to blocks.
static void turn_heads(float *x, size_t heads, size_t head_dim)
{
    for (size_t h = 0; h < heads; h++)
        kv_turn(x + h * head_dim, head_dim);
}

static void qkv_row(void *arg, size_t index, unsigned worker)
{
    (void)worker;
    const struct qkv_job *job = arg;
    const struct compute_cpu *cpu = job->cpu;
    const struct model_config *c = cpu->with.config;
    const struct model_layer *w = job->w;
    const float *cos_sin = job->slot->work[WORK_rope];
    if (c->rope_dims)
        cos_sin += (job->first + index) * row_stride(compute_rope_values(c)) + job->rope;
    float *q = job->q + index * job->q_stride, *k = job->k + index * job->kv_stride;
    float *v = job->v + index * job->kv_stride;
    finish_heads(cpu, q, c->heads, w->attn_q_bias, w->attn_q_norm, cos_sin);
    finish_heads(cpu, k, c->kv_heads, w->attn_k_bias, w->attn_k_norm, cos_sin);
    if (w->attn_v_bias)
        cpu->with.kernels->add(v, w->attn_v_bias, (size_t)c->kv_heads * c->head_dim);
    if (cpu->with.plan.kv_type != KV_F16) {
        turn_heads(q, c->heads, c->head_dim);
        turn_heads(k, c->kv_heads, c->head_dim);
    }
    if (job->wire)
        put_row(job, job->first + index, q, k, v);
}

// Products, rope and the like of a strip of rows from job->first on.
static void qkv_strip(struct compute_cpu *cpu, struct qkv_job *job, size_t rows)
{
    const struct model_layer *w = job->w;
    norm_strip(cpu, job->slot, w->attn_norm, w->attn_norm_bias, job->first, NULL, rows);
    const struct product products[] = {
        {&w->attn_q, job->q, job->q_stride},
        {&w->attn_k, job->k, job->kv_stride},
        {&w->attn_v, job->v, job->kv_stride},
    };
    cpu_matmul(cpu, products, 3, cpu->work[WORK_norm], row_stride(cpu->with.config->width), rows);
    run_rows(cpu, qkv_row, job, rows, job->q_stride + job->kv_stride);
}

static struct qkv_job qkv_job(struct compute_cpu *cpu, uint32_t slot, uint32_t layer)
{
    const struct model_config *c = cpu->with.config;
    size_t kv_dim = (size_t)c->kv_heads * c->head_dim;
    float *kv = cpu->work[WORK_t2];
    return (struct qkv_job){
        .cpu = cpu,
        .slot = &cpu->slot[slot],
        .w = &cpu->with.weights->layer[layer],
        .layer = layer,
        .rope = c->rope_window_base > 0 && model_layer_window(c, layer) ? c->rope_dims : 0,
        .q = cpu->work[WORK_t1],
        .q_stride = cpu_q_stride(cpu),
        .k = kv,
        .v = kv + kv_dim,
        .kv_stride = row_stride(2 * kv_dim)};
}

void cpu_queries_of(struct compute_cpu *cpu, uint32_t layer, size_t first, size_t n,
                    const float **q, const float **v, size_t *v_stride)
{
    struct qkv_job job = qkv_job(cpu, 0, layer);
    job.first = first;
    qkv_strip(cpu, &job, n);
    *q = job.q;
    *v = job.v;
    *v_stride = job.kv_stride;
}

int cpu_qkv(struct compute *compute, uint32_t slot, uint32_t layer, uint32_t first, uint32_t n,
            const struct compute_wire *wires, uint32_t n_wires, struct compute_slice faults)
{
    struct compute_cpu *cpu = cpu_of(compute);
    size_t strip = cpu->with.plan.strip;
    struct qkv_job job = qkv_job(cpu, slot, layer);
    job.wire = wires;
    job.n_wires = n_wires;
    job.faults = cpu_at(faults);
    for (size_t at = 0; at < n; at += strip) {
        job.first = first + at;
        qkv_strip(cpu, &job, min_u64(strip, n - at));
    }
    return 0;
}

// ---- the rest of a layer -----------------------------------------------------------------------

// A block's output, in norm: + bias, normed where there is a norm behind it, added to x.
struct output_job {
    const struct compute_cpu *cpu;
    const struct cpu_slot *slot;
    const float *bias, *post_norm;
    size_t first;
};

static void output_row(void *arg, size_t row, unsigned worker)
{
    (void)worker;
    const struct output_job *job = arg;
    const struct compute_cpu *cpu = job->cpu;
    const struct kernels *k = cpu->with.kernels;
    size_t width = cpu->with.config->width;
    float *y = cpu->work[WORK_norm] + row * row_stride(width);
    if (job->bias)
        k->add(y, job->bias, width);
    if (job->post_norm)
        k->rms_norm(y, y, job->post_norm, width, cpu->with.config->norm_eps);
    k->add(x_row(cpu, job->slot, job->first + row), y, width);
}

static void add_strip(const struct compute_cpu *cpu, const struct cpu_slot *slot, const float *bias,
                      const float *post_norm, size_t first, size_t n)
{
    struct output_job job = {cpu, slot, bias, post_norm, first};
    run_rows(cpu, output_row, &job, n, cpu->with.config->width);
}

static void activation_row(void *arg, size_t row, unsigned worker)
{
    (void)worker;
    const struct row_job *job = arg;
    const struct kernels *k = job->cpu->with.kernels;
    float *gate = job->out + row * job->out_stride;
    const float *up = job->in + row * job->in_stride;
    if (job->bias)
        k->add(gate, job->bias, job->n);
    switch (job->cpu->with.config->activation) {
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

static void feed_forward(struct compute_cpu *cpu, const struct cpu_slot *slot,
                         const struct model_layer *w, size_t first, size_t rows)
{
    const struct model_config *c = cpu->with.config;
    size_t width = row_stride(c->width), ffn = row_stride(c->ffn);
    float *norm = cpu->work[WORK_norm], *gate = cpu->work[WORK_t1], *up = cpu->work[WORK_t2];
    norm_strip(cpu, slot, w->ffn_norm, w->ffn_norm_bias, first, NULL, rows);
    // Without a gate, up takes its place.
    const struct product products[] = {
        {w->ffn_gate.data ? &w->ffn_gate : &w->ffn_up, gate, ffn},
        {&w->ffn_up, up, ffn},
    };
    cpu_matmul(cpu, products, w->ffn_gate.data ? 2 : 1, norm, width, rows);
    struct row_job job = {.cpu = cpu,
                          .in = up,
                          .in_stride = ffn,
                          .out = gate,
                          .out_stride = ffn,
                          .bias = w->ffn_up_bias,
                          .n = c->ffn};
    run_rows(cpu, activation_row, &job, rows, 4 * ffn);
    cpu_matmul(cpu, &(struct product){&w->ffn_down, norm, width}, 1, gate, ffn, rows);
    add_strip(cpu, slot, w->ffn_down_bias, w->ffn_post_norm, first, rows);
}

int cpu_finish(struct compute *compute, uint32_t slot_index, uint32_t layer, uint32_t first,
               uint32_t n)
{
    struct compute_cpu *cpu = cpu_of(compute);
    const struct cpu_slot *slot = &cpu->slot[slot_index];
    const struct model_config *c = cpu->with.config;
    const struct model_layer *w = &cpu->with.weights->layer[layer];
    size_t stride = cpu_q_stride(cpu);
    float *norm = cpu->work[WORK_norm], *out = slot->work[WORK_q] + first * stride;
    for (size_t at = 0; at < n; at += cpu->with.plan.strip) {
        size_t rows = min_u64(cpu->with.plan.strip, n - at);
        cpu_matmul(cpu, &(struct product){&w->attn_output, norm, row_stride(c->width)}, 1,
                   out + at * stride, stride, rows);
        add_strip(cpu, slot, w->attn_output_bias, w->attn_post_norm, first + at, rows);
        feed_forward(cpu, slot, w, first + at, rows);
    }
    return 0;
}

// ---- logits ------------------------------------------------------------------------------------

struct logits_job {
    const struct compute_cpu *cpu;
    float *out;
    size_t out_stride;
    uint32_t *faults;
};

static void logits_row(void *arg, size_t row, unsigned worker)
{
    (void)worker;
    const struct logits_job *job = arg;
    const struct model_config *c = job->cpu->with.config;
    float *out = job->out + row * job->out_stride;
    uint32_t fault = 0;
    fault_check(&fault, FAULT_LOGITS, out, c->vocab); // before the cap hides it
    job->faults[row] = fault;
    if (c->logit_softcap > 0)
        job->cpu->with.kernels->softcap(out, c->logit_softcap, c->vocab);
}

int cpu_logits(struct compute *compute, uint32_t slot, const uint32_t *row, uint32_t n,
               struct compute_slice out, uint64_t stride, struct compute_slice faults)
{
    struct compute_cpu *cpu = cpu_of(compute);
    const struct model_config *c = cpu->with.config;
    const struct model_weights *w = cpu->with.weights;
    norm_strip(cpu, &cpu->slot[slot], w->output_norm, w->output_norm_bias, 0, row, n);
    cpu_matmul(cpu, &(struct product){&w->output, cpu_at(out), stride}, 1, cpu->work[WORK_norm],
               row_stride(c->width), n);
    struct logits_job job = {
        .cpu = cpu, .out = cpu_at(out), .out_stride = stride, .faults = cpu_at(faults)};
    run_rows(cpu, logits_row, &job, n, (c->logit_softcap > 0 ? 4 : 1) * (size_t)c->vocab);
    return 0;
}
