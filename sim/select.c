// SPDX-License-Identifier: Apache-2.0
#include "sim/select.h"
#include "sim/selections.h"

#include <math.h>

double draw_unit(struct draw *d) // splitmix64
{
    uint64_t z = d->state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

// The chance that a token is chosen when the one before it is not.
static double begins(const struct selection *s)
{
    double b = s->tokens < 1 ? s->tokens / (s->run * (1 - s->tokens)) : 1;
    return b < 1 ? b : 1;
}

double selection_page_share(const struct selection *s, double page_tokens)
{
    if (s->recorded)
        return selections_page_share(s->recorded, (uint32_t)page_tokens);
    return 1 - (1 - s->tokens) * pow(1 - begins(s), page_tokens - 1);
}

double selection_run_for(double tokens, double page_tokens, double share)
{
    double begin = 1 - pow((1 - share) / (1 - tokens), 1 / (page_tokens - 1));
    return tokens / (begin * (1 - tokens));
}

double selection_channel_share(const struct selection *s, uint32_t head_dim)
{
    if (s->recorded)
        return selections_channel_share(s->recorded, head_dim, s->page_channels);
    double none = 1, chosen = ceil(s->channels * head_dim);
    for (uint32_t i = 0; i < s->page_channels; i++)
        none *= fmax(0, (head_dim - chosen - i) / (head_dim - i));
    return 1 - none;
}

// Tokens until one is chosen, the next one being 0, where each is with chance p.
static double wait_for(struct draw *draw, double p)
{
    if (p >= 1)
        return 0;
    return floor(log(1 - draw_unit(draw)) / log(1 - p));
}

void selection_draw_pages(const struct selection *s, struct draw *draw, uint32_t pages,
                          uint32_t page_tokens, select_fn *fn, void *arg)
{
    if (s->recorded) {
        selections_draw_pages(s->recorded, draw, pages, page_tokens, fn, arg);
        return;
    }
    double at = 0, end = (double)pages * page_tokens, begin = begins(s);
    uint32_t told = 0; // pages below this one are settled
    bool chosen = draw_unit(draw) < s->tokens;
    if (s->tokens >= 1) {
        for (uint32_t i = 0; i < pages; i++)
            fn(arg, i);
        return;
    }
    while (at < end) {
        if (!chosen) {
            at += 1 + wait_for(draw, begin);
            chosen = true;
            continue;
        }
        double last = at + wait_for(draw, 1 / s->run);
        uint32_t from = (uint32_t)(at / page_tokens),
                 to = (uint32_t)(fmin(last, end - 1) / page_tokens);
        for (uint32_t i = from > told ? from : told; i <= to; i++)
            fn(arg, i);
        told = to + 1;
        at = last + 1;
        chosen = false;
    }
}

void selection_draw_channels(const struct selection *s, struct draw *draw, uint32_t head_dim,
                             select_fn *fn, void *arg)
{
    if (s->recorded) {
        selections_draw_channels(s->recorded, draw, head_dim, s->page_channels, fn, arg);
        return;
    }
    // Each channel in turn is chosen with the chance that leaves the right number in the end.
    double left = ceil(s->channels * head_dim);
    for (uint32_t i = 0, page = UINT32_MAX; i < head_dim; i++) {
        if (draw_unit(draw) * (head_dim - i) >= left)
            continue;
        left--;
        if (i / s->page_channels != page)
            fn(arg, page = i / s->page_channels);
    }
}
