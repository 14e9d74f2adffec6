// SPDX-License-Identifier: Apache-2.0
// The part of body.h that ranks tokens: scores from single channels, and a softmax over more than
// one tile. Included by it alone, after the operations on registers.

// out[i][t] for nv vectors of tokens from token t on and nq queries.
INLINE void channel_block(const uint16_t *const *channels, size_t n_channels, size_t t,
                          const float *q, size_t q_stride, const size_t nq, const size_t nv,
                          float *out, size_t out_stride)
{
    vn acc[8];
    UNROLL
    for (size_t i = 0; i < nq * nv; i++)
        acc[i] = vn_set1(0);
    for (size_t c = 0; c < n_channels; c++) {
        const uint16_t *k = channels[c] + t;
        UNROLL
        for (size_t v = 0; v < nv; v++) {
            vn x = vn_f16(k + v * VN);
            UNROLL
            for (size_t i = 0; i < nq; i++)
                acc[i * nv + v] = vn_fma(vn_set1(q[i * q_stride + c]), x, acc[i * nv + v]);
        }
    }
    UNROLL
    for (size_t i = 0; i < nq; i++)
        UNROLL
    for (size_t v = 0; v < nv; v++)
        vn_store(out + i * out_stride + t + v * VN, acc[i * nv + v]);
}

// nq queries over all tokens; nv is how many vectors of tokens fit beside them in registers.
INLINE void channel_queries(const uint16_t *const *channels, size_t n_channels, size_t n,
                            const float *q, size_t q_stride, const size_t nq, const size_t nv,
                            float *out, size_t out_stride)
{
    size_t t = 0;
    for (; t + nv * VN <= n; t += nv * VN)
        channel_block(channels, n_channels, t, q, q_stride, nq, nv, out, out_stride);
    for (; t + VN <= n; t += VN)
        channel_block(channels, n_channels, t, q, q_stride, nq, 1, out, out_stride);
    for (; t < n; t++) {
        for (size_t i = 0; i < nq; i++) {
            float s = 0;
            for (size_t c = 0; c < n_channels; c++)
                s = fmaf(q[i * q_stride + c], kernel_f16_to_f32(channels[c][t]), s);
            out[i * out_stride + t] = s;
        }
    }
}

static void set_channel_scores(const uint16_t *const *channels, size_t n_channels, size_t n,
                               const float *q, size_t q_stride, size_t n_q, float *out,
                               size_t out_stride)
{
    for (; n_q >= 4; n_q -= 4, q += 4 * q_stride, out += 4 * out_stride)
        channel_queries(channels, n_channels, n, q, q_stride, 4, 2, out, out_stride);
    for (; n_q >= 2; n_q -= 2, q += 2 * q_stride, out += 2 * out_stride)
        channel_queries(channels, n_channels, n, q, q_stride, 2, 4, out, out_stride);
    if (n_q)
        channel_queries(channels, n_channels, n, q, q_stride, 1, 8, out, out_stride);
}

static float set_exp_sum(float *x, size_t n, float max)
{
    v16 sum = v16_zero();
    vn m = vn_set1(max);
    size_t i = 0;
    for (; i + KERNEL_LANES <= n; i += KERNEL_LANES) {
        for (int p = 0; p < PARTS; p++) {
            vn e = vn_exp(vn_sub(vn_load(x + i + p * VN), m));
            vn_store(x + i + p * VN, e);
            sum.p[p] = vn_add(sum.p[p], e);
        }
    }
    for (int p = 0; p < PARTS && i < n; p++, i += VN) {
        // Beyond n: exp(-inf) = +0, which leaves a lane that is never -0 alone.
        vn e = vn_exp(vn_sub(vn_load_part(x + i, n - i, -INFINITY), m));
        vn_store_part(x + i, e, n - i < VN ? n - i : VN);
        sum.p[p] = vn_add(sum.p[p], e);
    }
    return v16_sum(sum);
}

static void set_axpy(float *y, float a, const float *x, size_t n)
{
    vn factor = vn_set1(a);
    size_t i = 0;
    for (; i + VN <= n; i += VN)
        vn_store(y + i, vn_fma(factor, vn_load(x + i), vn_load(y + i)));
    for (; i < n; i++)
        y[i] = fmaf(a, x[i], y[i]);
}
