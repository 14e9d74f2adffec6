// SPDX-License-Identifier: Apache-2.0
// The part of reference.c that weighs pieces. Included by it alone.

static float ref_exp2(float x)
{
    float t = x + EXP_ROUND, r = x - (t - EXP_ROUND);
    float p = fmaf(EXP2_C4, r, EXP2_C3);
    p = fmaf(p, r, EXP2_C2);
    p = fmaf(p, r, EXP2_C1);
    p = fmaf(p, r, 1.0f);
    return p * bits_to_float((float_to_bits(t) + 127) << 23);
}

// What key i of piece p scores for query q, less its factor.
static float code_score(const struct mass_pieces *m, size_t p, size_t i, size_t q,
                        const int8_t *table)
{
    const size_t half = mass_rows(m->bytes) / 2;
    const uint8_t *summary = m->summary[p];
    const uint8_t *factors = summary + MASS_HEADER, *codes = factors + m->keys;
    float scale = half_at(summary);
    int sum = 0;
    if (m->counted)
        codes += m->keys;
    for (size_t j = 0; j < m->bytes; j++) {
        uint8_t code = codes[j * m->keys + i];
        sum += table[j * 16 + (code & 15)] + table[(half + j) * 16 + (code >> 4)];
    }
    scale = isfinite(scale) ? scale * (1.0f / 255) : 0;
    float score = (float)sum * (scale * (float)factors[i]);
    return m->bias ? score + m->bias[q * MASS_SLICES + p] : score;
}

static float ref_mass_query(const struct mass_pieces *m, size_t q, const int8_t *table,
                            float factor, float *masses)
{
    float most = -INFINITY, scores[MASS_SLICES * KERNEL_LANES];
    const float log2e = m->softcap != 0 ? EXP_LOG2E : factor * EXP_LOG2E;
    for (size_t p = 0; p < m->n; p++) {
        for (size_t i = 0; i < m->keys; i++) {
            float s = code_score(m, p, i, q, table);
            if (m->softcap != 0)
                s = softcap(s * factor, m->softcap);
            scores[p * m->keys + i] = s;
            most = s > most ? s : most;
        }
    }
    for (size_t p = 0; p < m->n; p++) {
        const uint8_t *counts = m->summary[p] + MASS_HEADER + m->keys;
        float lane[KERNEL_LANES] = {0};
        for (size_t i = 0; i < m->keys; i++) {
            float x = (scores[p * m->keys + i] - most) * log2e;
            float e = ref_exp2(x > MASS_LEAST ? x : MASS_LEAST);
            lane[i % 2 * 8 + i % 16 / 2] += m->counted ? e * (float)counts[i] : e;
        }
        masses[p] = tree(lane);
    }
    return log2e * most + 0.0f;
}

static void ref_piece_masses(const struct mass_pieces *m, const int8_t *tables,
                             const float *factors, size_t n_q, float *tops, size_t top_stride,
                             float *masses, size_t stride, void *scratch)
{
    (void)scratch;
    for (size_t q = 0; q < n_q; q++)
        tops[q * top_stride] = ref_mass_query(m, q, tables + q * mass_rows(m->bytes) * 16,
                                              factors[q], masses + q * stride);
}

static void ref_piece_scores(const struct mass_pieces *m, const int8_t *table, float factor,
                             float *scores, void *scratch)
{
    (void)scratch;
    for (size_t p = 0; p < m->n; p++) {
        for (size_t first = 0; first < m->keys; first += KERNEL_LANES, scores += KERNEL_LANES) {
            for (size_t i = 0; i < KERNEL_LANES && first + i < m->keys; i++) {
                float s = code_score(m, p, first + i, 0, table) * factor;
                scores[i % 2 * 8 + i / 2] = m->softcap != 0 ? softcap(s, m->softcap) : s;
            }
        }
    }
}

static void ref_nearest_means(const uint8_t *codes, size_t slices, size_t bytes,
                              const int8_t *tables, const float *steps, const float *sizes,
                              size_t n_means, uint16_t *which, void *scratch)
{
    const size_t half = mass_rows(bytes) / 2;
    (void)scratch;
    for (size_t i = 0; i < slices * KERNEL_LANES; i++) {
        const uint8_t *code = codes + i / KERNEL_LANES * half * KERNEL_LANES + i % KERNEL_LANES;
        float best = -INFINITY;
        which[i] = 0;
        for (size_t m = 0; m < n_means; m++) {
            const int8_t *table = tables + m * 2 * half * 16;
            int sum = 0;
            for (size_t j = 0; j < half; j++)
                sum += table[j * 16 + (code[j * KERNEL_LANES] & 15)] +
                       table[(half + j) * 16 + (code[j * KERNEL_LANES] >> 4)];
            float x = fmaf((float)sum, steps[m], -sizes[m]);
            if (!(x > best))
                continue;
            best = x;
            which[i] = (uint16_t)m;
        }
    }
}

static void ref_code_axpy(const uint8_t *const *codes, size_t n, size_t bits, size_t dim,
                          const float *weights, size_t stride, size_t n_q, float *y,
                          size_t y_stride)
{
    for (size_t q = 0; q < n_q; q++)
        for (size_t d = 0; d < dim; d++)
            for (size_t t = 0; t < n; t++)
                y[q * y_stride + d] = fmaf(weights[q * stride + t], code_value(codes[t], bits, d),
                                           y[q * y_stride + d]);
}
