// SPDX-License-Identifier: Apache-2.0
#include "host/model/rope.h"

#include <math.h>

// The share of pair i that yarn leaves as trained: all of it for pairs that turn more than
// `rope_fast` times within the original context, nothing below `rope_slow` turns.
static double yarn_share(const struct model_config *c, size_t pair)
{
    const double pi = 3.14159265358979323846;
    double base = 2 * log((double)c->rope_base), original = c->rope_original;
    double low = floor(c->rope_dims * log(original / (2 * pi * (double)c->rope_fast)) / base);
    double high = ceil(c->rope_dims * log(original / (2 * pi * (double)c->rope_slow)) / base);
    low = fmax(low, 0);
    high = fmin(high, c->rope_dims - 1);
    double ramp = ((double)pair - low) / fmax(high - low, 0.001);
    return 1 - fmin(fmax(ramp, 0), 1);
}

void rope_set(struct model_config *c, const struct model_weights *weights, uint64_t context,
              double *freq)
{
    size_t pairs = c->rope_dims / 2;
    const float *divisors = weights->rope_freqs;
    if (weights->rope_long)
        divisors = context > c->rope_original ? weights->rope_long : weights->rope_short;
    for (size_t i = 0; i < pairs; i++) {
        double exponent = -2.0 * (double)i / c->rope_dims, factor = (double)c->rope_factor;
        double f = pow((double)c->rope_base, exponent) / (divisors ? (double)divisors[i] : 1);
        if (c->rope_scaling == ROPE_LINEAR)
            f /= factor;
        if (c->rope_scaling == ROPE_YARN) {
            double share = yarn_share(c, i);
            f = f / factor * (1 - share) + f * share;
        }
        freq[i] = f;
        if (c->rope_window_base > 0)
            freq[pairs + i] = pow((double)c->rope_window_base, exponent);
    }
    if (c->rope_scaling == ROPE_YARN && c->rope_factor > 1)
        c->rope_attention *= 1 + 0.1f * logf(c->rope_factor);
}
