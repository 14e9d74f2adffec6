// SPDX-License-Identifier: Apache-2.0
// The part of reference.c that ranks tokens. Included by it alone.

static void ref_channel_scores(const uint16_t *const *channels, size_t n_channels, size_t n,
                               const float *q, size_t q_stride, size_t n_q, float *out,
                               size_t out_stride)
{
    for (size_t i = 0; i < n_q; i++) {
        for (size_t t = 0; t < n; t++) {
            float s = 0;
            for (size_t c = 0; c < n_channels; c++)
                s = fmaf(q[i * q_stride + c], kernel_f16_to_f32(channels[c][t]), s);
            out[i * out_stride + t] = s;
        }
    }
}

static float ref_exp_sum(float *x, size_t n, float max)
{
    for (size_t i = 0; i < n; i++)
        x[i] = kernel_exp(x[i] - max);
    return ref_sum(x, n);
}

static void ref_axpy(float *y, float a, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] = fmaf(a, x[i], y[i]);
}
