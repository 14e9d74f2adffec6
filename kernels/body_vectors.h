// SPDX-License-Identifier: Apache-2.0
// The part of body.h that works on one vector: sums, norms, activations, rotations. Included by it
// alone, after the operations on registers.

static float set_dot(const float *a, const float *b, size_t n)
{
    v16 acc = v16_zero();
    size_t i = 0;
    for (; i + KERNEL_LANES <= n; i += KERNEL_LANES)
        for (int p = 0; p < PARTS; p++)
            acc.p[p] = vn_fma(vn_load(a + i + p * VN), vn_load(b + i + p * VN), acc.p[p]);
    for (int p = 0; p < PARTS && i < n; p++, i += VN)
        acc.p[p] =
            vn_fma(vn_load_part(a + i, n - i, 0), vn_load_part(b + i, n - i, -0.0f), acc.p[p]);
    return v16_sum(acc);
}

static float set_sum(const float *a, size_t n)
{
    v16 acc = v16_zero();
    size_t i = 0;
    for (; i + KERNEL_LANES <= n; i += KERNEL_LANES)
        for (int p = 0; p < PARTS; p++)
            acc.p[p] = vn_add(acc.p[p], vn_load(a + i + p * VN));
    for (int p = 0; p < PARTS && i < n; p++, i += VN)
        acc.p[p] = vn_add(acc.p[p], vn_load_part(a + i, n - i, -0.0f));
    return v16_sum(acc);
}

static float set_max(const float *a, size_t n)
{
    vn m = vn_set1(-INFINITY);
    size_t i = 0;
    for (; i + VN <= n; i += VN)
        m = vn_max(vn_load(a + i), m);
    if (i < n)
        m = vn_max(vn_load_part(a + i, n - i, -INFINITY), m);
    return vn_greatest(m) + 0.0f; // a zero is positive whatever the order
}

static void set_rms_norm(float *out, const float *x, const float *weight, size_t n, float eps)
{
    float scale = 1.0f / sqrtf(set_dot(x, x, n) / (float)n + eps);
    vn r = vn_set1(scale);
    size_t i = 0;
    for (; i + VN <= n; i += VN)
        vn_store(out + i, vn_mul(vn_mul(vn_load(x + i), r), vn_load(weight + i)));
    for (; i < n; i++)
        out[i] = x[i] * scale * weight[i];
}

INLINE vn silu_mul(vn gate, vn up)
{
    // -1 * x, not 0 - x: the sign of a zero must come out as the reference's.
    vn e = vn_exp(vn_mul(gate, vn_set1(-1.0f)));
    return vn_mul(vn_div(gate, vn_add(vn_set1(1.0f), e)), up);
}

static void set_silu_mul(float *gate, const float *up, size_t n)
{
    size_t i = 0;
    for (; i + VN <= n; i += VN)
        vn_store(gate + i, silu_mul(vn_load(gate + i), vn_load(up + i)));
    if (i < n)
        vn_store_part(gate + i,
                      silu_mul(vn_load_part(gate + i, n - i, 0), vn_load_part(up + i, n - i, 0)),
                      n - i);
}

static void set_add(float *x, const float *y, size_t n)
{
    size_t i = 0;
    for (; i + VN <= n; i += VN)
        vn_store(x + i, vn_add(vn_load(x + i), vn_load(y + i)));
    for (; i < n; i++)
        x[i] += y[i];
}

static void set_rope(float *x, const float *cos_sin, size_t n)
{
    const float *cosine = cos_sin, *sine = cos_sin + n / 2;
    size_t i = 0;
    for (; i + VN <= n / 2; i += VN) {
        vn a, b, c = vn_load(cosine + i), s = vn_load(sine + i);
        vn_load2(x + 2 * i, &a, &b);
        vn minus_bs = vn_mul(vn_mul(b, s), vn_set1(-1.0f));
        vn_store2(x + 2 * i, vn_fma(a, c, minus_bs), vn_fma(a, s, vn_mul(b, c)));
    }
    for (; i < n / 2; i++) {
        float a = x[2 * i], b = x[2 * i + 1];
        x[2 * i] = fmaf(a, cosine[i], -(b * sine[i]));
        x[2 * i + 1] = fmaf(a, sine[i], b * cosine[i]);
    }
}

static void set_rope_halves(float *x, const float *cos_sin, size_t n)
{
    const float *cosine = cos_sin, *sine = cos_sin + n / 2;
    float *y = x + n / 2;
    size_t i = 0;
    for (; i + VN <= n / 2; i += VN) {
        vn a = vn_load(x + i), b = vn_load(y + i), c = vn_load(cosine + i), s = vn_load(sine + i);
        vn minus_bs = vn_mul(vn_mul(b, s), vn_set1(-1.0f));
        vn_store(x + i, vn_fma(a, c, minus_bs));
        vn_store(y + i, vn_fma(a, s, vn_mul(b, c)));
    }
    for (; i < n / 2; i++) {
        float a = x[i], b = y[i];
        x[i] = fmaf(a, cosine[i], -(b * sine[i]));
        y[i] = fmaf(a, sine[i], b * cosine[i]);
    }
}

static void set_layer_norm(float *out, const float *x, const float *weight, const float *bias,
                           size_t n, float eps)
{
    float mean = set_sum(x, n) / (float)n;
    size_t i = 0;
    for (; i + VN <= n; i += VN)
        vn_store(out + i, vn_sub(vn_load(x + i), vn_set1(mean)));
    for (; i < n; i++)
        out[i] = x[i] - mean;
    float r = 1.0f / sqrtf(set_dot(out, out, n) / (float)n + eps);
    for (i = 0; i + VN <= n; i += VN)
        vn_store(out + i, vn_fma(vn_mul(vn_load(out + i), vn_set1(r)), vn_load(weight + i),
                                 vn_load(bias + i)));
    for (; i < n; i++)
        out[i] = fmaf(out[i] * r, weight[i], bias[i]);
}

INLINE vn gelu_mul(vn x, vn up)
{
    vn slope = vn_fma(vn_mul(x, x), vn_set1(GELU_CUBIC), vn_set1(GELU_LINEAR));
    return vn_mul(vn_div(x, vn_add(vn_set1(1.0f), vn_exp(vn_mul(x, slope)))), up);
}

static void set_gelu_mul(float *gate, const float *up, size_t n)
{
    size_t i = 0;
    for (; i + VN <= n; i += VN)
        vn_store(gate + i, gelu_mul(vn_load(gate + i), vn_load(up + i)));
    if (i < n)
        vn_store_part(gate + i,
                      gelu_mul(vn_load_part(gate + i, n - i, 0), vn_load_part(up + i, n - i, 0)),
                      n - i);
}

static void set_relu(float *x, size_t n)
{
    size_t i = 0;
    for (; i + VN <= n; i += VN) {
        vn v = vn_load(x + i);
        vn_store(x + i, vn_if_less(vn_set1(0), v, v, vn_set1(0)));
    }
    for (; i < n; i++)
        x[i] = x[i] > 0 ? x[i] : 0;
}

static void set_scale(float *x, float factor, size_t n)
{
    size_t i = 0;
    for (; i + VN <= n; i += VN)
        vn_store(x + i, vn_mul(vn_load(x + i), vn_set1(factor)));
    for (; i < n; i++)
        x[i] *= factor;
}

INLINE vn softcap_vn(vn x, float cap)
{
    vn e = vn_add(vn_set1(1.0f), vn_exp(vn_mul(x, vn_set1(2.0f / cap))));
    return vn_mul(vn_set1(cap), vn_sub(vn_set1(1.0f), vn_div(vn_set1(2.0f), e)));
}

static void set_softcap(float *x, float cap, size_t n)
{
    size_t i = 0;
    for (; i + VN <= n; i += VN)
        vn_store(x + i, softcap_vn(vn_load(x + i), cap));
    if (i < n)
        vn_store_part(x + i, softcap_vn(vn_load_part(x + i, n - i, 0), cap), n - i);
}
