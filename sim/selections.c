// SPDX-License-Identifier: Apache-2.0
#include "sim/selections_own.h"
#include "base/checked.h"
#include "drive/attend/select.h"
#include "drive/ftl/slot.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

// ---- writing -----------------------------------------------------------------------------------

void selections_write_head(FILE *f)
{
    fputs(SELECTIONS_HEAD "\n", f);
}

void selections_write_layout(FILE *f, uint32_t drive, const struct selections_layout *l)
{
    fprintf(f, "drive %u %s %s page=%u heads=%u dim=%u group=%u part=%u page_channels=%u\n", drive,
            l->sparf ? "sparf" : "pages", kv_type_name(l->kv_type), l->page_bytes, l->kv_heads,
            l->head_dim, l->group_tokens, l->part_tokens, l->page_channels);
}

void selections_write(FILE *f, const struct selections_record *r)
{
    fprintf(f, "%u %u %u %u %" PRIu64 " %" PRIu64 " %" PRIu64 " ", r->drive, r->layer, r->sequence,
            r->head, r->tokens, r->flash_tokens, r->ranked_tokens);
    for (uint32_t i = 0; i < r->n_channels; i++)
        fprintf(f, i ? ",%u" : "%u", r->channels[i]);
    fputs(r->n_channels ? " " : "- ", f);
    uint64_t at = 0, first = select_next(r->chosen, true, 0, r->tokens);
    if (first == r->tokens)
        fputc('-', f);
    while (first < r->tokens) {
        uint64_t end = select_next(r->chosen, false, first, r->tokens);
        fprintf(f, at ? ",%" PRIu64 : "%" PRIu64, first - at);
        if (end - first > 1)
            fprintf(f, "+%" PRIu64, end - first - 1);
        at = end;
        first = select_next(r->chosen, true, at, r->tokens);
    }
    fputc('\n', f);
}

// ---- what it says of the run that was recorded -------------------------------------------------

void selections_about(const struct selections *t, struct selections_about *out)
{
    *out = (struct selections_about){.sparf = t->sparf, .records = t->n_records};
    uint64_t chosen = 0, channels = 0, dims = 0;
    for (size_t i = 0; i < t->n_records; i++) {
        const struct record *r = &t->records[i];
        out->tokens_most = max_u64(out->tokens_most, r->tokens);
        chosen += r->chosen;
        channels += r->n_channels;
        dims += r->n_channels ? t->layouts[r->drive].head_dim : 0;
    }
    out->token_share = (double)chosen / (double)t->tokens;
    out->run = (double)chosen / fmax(1, (double)t->n_runs);
    out->channels = dims ? (double)channels / (double)dims : 0;
}

// Marks of the pages of a unit's rows: bits, of which few are set.
struct marks {
    uint64_t *bits;
    uint64_t words, count;
};

static void mark(struct marks *m, uint64_t first, uint64_t last)
{
    for (uint64_t page = first; page <= last; page++) {
        uint64_t bit = 1ull << page % 64;
        m->count += !(m->bits[page / 64] & bit);
        m->bits[page / 64] |= bit;
    }
}

// Pages with K and V, or K alone, of tokens [first, end), in rows of flash, as the drive marks
// them.
static void mark_tokens(struct marks *m, const struct selections_layout *l, const struct record *r,
                        uint64_t first, uint64_t end, bool values)
{
    const struct slot slot = {l->group_tokens, l->part_tokens, l->head_dim, l->kv_type};
    uint64_t each = slot_bytes(&slot), row_pages = div_round_up(each * l->kv_heads, l->page_bytes);
    uint64_t rows_end = div_round_up(r->flash_tokens, l->group_tokens) * l->group_tokens;
    end = min_u64(end, rows_end);
    for (uint64_t t = first, stop; t < end; t = stop) {
        uint64_t row = t / l->group_tokens, in = t % l->group_tokens;
        stop = min_u64(end, (row + 1) * l->group_tokens);
        struct slot_range ranges[] = {slot_k(&slot, in, stop - t), slot_v(&slot, in, stop - t)};
        for (int i = 0; i < 1 + values; i++) {
            uint64_t at = r->head * each + ranges[i].offset;
            mark(m, row * row_pages + at / l->page_bytes,
                 row * row_pages + (at + ranges[i].bytes - 1) / l->page_bytes);
        }
    }
}

static bool same_item(const struct record *a, const struct record *b)
{
    return a->drive == b->drive && a->layer == b->layer && a->sequence == b->sequence &&
           a->tokens == b->tokens && a->flash_tokens == b->flash_tokens && a->head < b->head;
}

static int marks_for(struct marks *m, const struct selections_layout *l, uint64_t rows,
                     struct inst_msg *msg)
{
    const struct slot slot = {l->group_tokens, l->part_tokens, l->head_dim, l->kv_type};
    uint64_t pages = rows * div_round_up(slot_bytes(&slot) * l->kv_heads, l->page_bytes);
    uint64_t words = pages / 64 + 1;
    m->count = 0;
    if (words > m->words) {
        uint64_t *bits = pages < UINT64_C(1) << 26 ? realloc(m->bits, words * sizeof *bits) : NULL;
        if (!bits)
            return inst_fail(msg, INST_ENOMEM, "selections of %llu pages",
                             (unsigned long long)pages);
        m->bits = bits;
        m->words = words;
    }
    memset(m->bits, 0, words * sizeof *m->bits);
    return 0;
}

// Distinct channel pages of a record.
static uint64_t channel_pages(const struct selections *t, const struct record *r)
{
    const struct selections_layout *l = &t->layouts[r->drive];
    uint64_t n = 0;
    for (uint32_t i = 0, page = UINT32_MAX; i < r->n_channels; i++) {
        uint32_t own = t->channels[r->channels_at + i] / l->page_channels;
        n += own != page;
        page = own;
    }
    return n;
}

int selections_pages(const struct selections *t, struct selections_pages *out, struct inst_msg *msg)
{
    struct marks chosen = {0}, tail = {0};
    int err = 0;
    *out = (struct selections_pages){0};
    for (size_t i = 0, end; i < t->n_records && !err; i = end) {
        const struct record *first = &t->records[i];
        const struct selections_layout *l = &t->layouts[first->drive];
        uint64_t rows = div_round_up(first->flash_tokens, l->group_tokens);
        err = marks_for(&chosen, l, rows, msg);
        err = err ? err : marks_for(&tail, l, rows, msg);
        // Heads of an item follow each other; a page may hold K or V of several.
        for (end = i; end < t->n_records && !err; end++) {
            const struct record *r = &t->records[end];
            if (end > i && !same_item(r - 1, r))
                break;
            for (size_t j = 0; j < r->n_runs; j++)
                mark_tokens(&chosen, l, r, t->runs[r->runs_at + j].first,
                            t->runs[r->runs_at + j].end, true);
            if (!r->n_channels)
                continue;
            uint64_t cover = max_u64(1, l->page_bytes / 2 / l->page_channels);
            out->channel += r->ranked_tokens / cover * channel_pages(t, r);
            mark_tokens(&tail, l, r, r->ranked_tokens, r->flash_tokens, false);
        }
        const struct slot slot = {l->group_tokens, l->part_tokens, l->head_dim, l->kv_type};
        if (!first->head)
            out->dense += rows * div_round_up(slot_bytes(&slot) * l->kv_heads, l->page_bytes);
        out->token += chosen.count;
        out->tail += tail.count;
    }
    free(chosen.bits);
    free(tail.bits);
    return err;
}

// ---- as a source -------------------------------------------------------------------------------

// Tokens of whole pages, or all where there is none.
static uint64_t whole(const struct record *r, uint32_t page_tokens)
{
    uint64_t n = r->tokens / page_tokens * page_tokens;
    return n ? n : r->tokens;
}

// Tells the pages [0, pages) of which token start + page * page_tokens and those behind it in its
// page are chosen, around the end of the record.
static uint64_t walk_pages(const struct selections *t, const struct record *r, uint64_t start,
                           uint64_t pages, uint32_t page_tokens, select_fn *fn, void *arg)
{
    const struct run *runs = t->runs + r->runs_at;
    uint64_t length = whole(r, page_tokens), told = 0, at = start % length;
    for (uint64_t page = 0, run = 0; page < pages; page++, at += page_tokens) {
        if (at >= length) {
            at = 0;
            run = 0;
        }
        while (run < r->n_runs && runs[run].end <= at)
            run++;
        if (run == r->n_runs || runs[run].first >= min_u64(at + page_tokens, length))
            continue;
        told++;
        if (fn)
            fn(arg, (uint32_t)page);
    }
    return told;
}

// Long records count for more.
static const struct record *any_record(const struct selections *t, struct draw *draw)
{
    uint64_t token = (uint64_t)(draw_unit(draw) * (double)t->tokens);
    size_t low = 0, high = t->n_records - 1;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (t->records[middle].tokens_end > token)
            high = middle;
        else
            low = middle + 1;
    }
    return &t->records[low];
}

double selections_page_share(const struct selections *t, uint32_t page_tokens)
{
    double share = 0;
    for (size_t i = 0; i < t->n_records; i++) {
        const struct record *r = &t->records[i];
        uint64_t pages = div_round_up(whole(r, page_tokens), page_tokens);
        share += (double)r->tokens * (double)walk_pages(t, r, 0, pages, page_tokens, NULL, NULL) /
                 (double)pages;
    }
    return share / (double)t->tokens;
}

void selections_draw_pages(const struct selections *t, struct draw *draw, uint32_t pages,
                           uint32_t page_tokens, select_fn *fn, void *arg)
{
    const struct record *r = any_record(t, draw);
    uint64_t count = div_round_up(whole(r, page_tokens), page_tokens);
    uint64_t first = (uint64_t)(draw_unit(draw) * (double)count);
    walk_pages(t, r, first * page_tokens, pages, page_tokens, fn, arg);
}

// Pages of `page_channels` of a head of head_dim channels that hold one of the record's: its own
// channels over and over where it has fewer.
static uint32_t walk_channels(const struct selections *t, const struct record *r, uint32_t head_dim,
                              uint32_t page_channels, select_fn *fn, void *arg)
{
    uint32_t own = t->layouts[r->drive].head_dim, told = 0;
    uint64_t next = 0; // pages below are told
    for (uint32_t base = 0; base < head_dim; base += own) {
        for (uint32_t i = 0; i < r->n_channels; i++) {
            uint32_t c = base + t->channels[r->channels_at + i];
            if (c >= head_dim || c / page_channels < next)
                continue;
            told++;
            next = c / page_channels + 1;
            if (fn)
                fn(arg, c / page_channels);
        }
    }
    return told;
}

double selections_channel_share(const struct selections *t, uint32_t head_dim,
                                uint32_t page_channels)
{
    double share = 0, pages = ceil((double)head_dim / page_channels);
    for (size_t i = 0; i < t->n_records; i++)
        share += (double)t->records[i].tokens *
                 walk_channels(t, &t->records[i], head_dim, page_channels, NULL, NULL) / pages;
    return share / (double)t->tokens;
}

void selections_draw_channels(const struct selections *t, struct draw *draw, uint32_t head_dim,
                              uint32_t page_channels, select_fn *fn, void *arg)
{
    walk_channels(t, any_record(t, draw), head_dim, page_channels, fn, arg);
}

void selections_replay_tokens(const struct selections *t, uint64_t job, uint64_t tokens,
                              uint64_t *chosen)
{
    const struct record *r = &t->records[job % t->n_records];
    memset(chosen, 0, div_round_up(tokens, 64) * sizeof *chosen);
    for (uint64_t base = 0; base < tokens; base += r->tokens) {
        for (size_t i = 0; i < r->n_runs; i++) {
            struct run run = t->runs[r->runs_at + i];
            for (uint64_t at = base + run.first; at < min_u64(base + run.end, tokens); at++)
                chosen[at / 64] |= 1ull << at % 64;
        }
    }
}

void selections_replay_channels(const struct selections *t, uint64_t job, uint32_t head_dim,
                                uint32_t *channels, uint32_t n)
{
    const struct record *r = &t->records[job % t->n_records];
    uint32_t own = t->layouts[r->drive].head_dim, at = 0;
    for (uint32_t base = 0; base < head_dim && at < n; base += own) {
        for (uint32_t i = 0; i < r->n_channels && at < n; i++) {
            uint32_t c = base + t->channels[r->channels_at + i];
            if (c < head_dim)
                channels[at++] = c;
        }
    }
    // Too few: those that are left, from the first on.
    for (uint32_t c = 0; c < head_dim && at < n; c++) {
        uint32_t i = 0;
        while (i < at && channels[i] != c)
            i++;
        if (i < at)
            continue;
        for (i = at++; i && channels[i - 1] > c; i--)
            channels[i] = channels[i - 1];
        channels[i] = c;
    }
}
