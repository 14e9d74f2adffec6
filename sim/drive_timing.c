// SPDX-License-Identifier: Apache-2.0
#include "sim/drive_timing.h"
#include "link/link.h"
#include "base/timeline.h"

#include <math.h>
#include <string.h>

enum {
    CHANNELS_MAX = 64,
    PHASES_MAX = 3,
    PIECES_RUN = 48, // at most
    PIECES_LEAST = 16,
    PIECES_SKIPPED = 8,
    PAGES_RUN = 1 << 19, // of these pieces, where pieces are that large
};

// What a job does in one phase, but for its pages.
struct phase {
    double pages;    // expected
    double flops;    // of the products on them
    double elements; // that softmax and argtopk go through after
    double ranked;
};

struct drive {
    const struct csd *csd;
    struct timeline flash[CHANNELS_MAX], gemv, softmax, argtopk, cores;
    uint64_t read_ns[CHANNELS_MAX];
};

struct plan {
    struct phase phases[PHASES_MAX];
    int n;
    uint32_t page_tokens, groups; // token groups of a job
    uint32_t ranges;              // of channel pages, each so many tokens as they cover
    uint32_t tail_pages;          // of K that no channel page holds yet, where they are read
    double per_piece;             // jobs
};

// Pages of a piece on each flash channel.
struct load {
    uint32_t pages[CHANNELS_MAX];
    uint32_t first, step, channels; // of the job whose pages are being drawn
};

static void load_page(void *arg, uint32_t page)
{
    struct load *l = arg;
    l->pages[(l->first + page * l->step) % l->channels]++;
}

uint32_t drive_heads(const struct machine *m, const struct shape *s)
{
    // The last group has the fewest drives.
    uint32_t groups = link_array_share(m->drives, s->kv_heads, 1, 0).groups;
    return link_array_share(m->drives, s->kv_heads, 1, groups - 1).head_count;
}

uint32_t drive_sequences(const struct machine *m, const struct workload *w)
{
    uint32_t groups = link_array_share(m->drives, w->shape.kv_heads, 1, 0).groups;
    return (w->batch + groups - 1) / groups;
}

static double page_ns(const struct csd *c)
{
    // A flash controller passes a page on at the rate of its slowest part.
    return fmax(fmax(c->page_bytes / c->channel_rate, c->page_bytes / c->filter_rate) * 1e9,
                c->read_ns / c->dies_a_channel);
}

// Reads, then products, then softmax and ranking of one piece. Returns when its next phase may be
// asked for. Without overlap what the units compute on goes through the same DRAM as the pages, and
// every flash channel stands still meanwhile; no channel waits for another one.
static uint64_t run_phase(struct drive *d, const struct phase *phase, const struct load *load,
                          double jobs, uint64_t now_ns)
{
    const struct csd *c = d->csd;
    double pages = 0;
    for (uint32_t i = 0; i < load->channels; i++)
        pages += load->pages[i];
    uint64_t lookup = duration_ns(pages * c->lookup_ns / c->cores, 1e9),
             known = timeline_take(&d->cores, now_ns, lookup), read_end = known;
    uint64_t products =
        duration_ns(jobs * phase->flops, c->kernels * c->gemv_units * c->gemv_flops);
    for (uint32_t i = 0; i < load->channels; i++) {
        uint64_t ns = duration_ns(load->pages[i] * page_ns(c), 1e9);
        // The first pages are known long before the last ones are.
        read_end = later(read_end, timeline_take(&d->flash[i], known - lookup, ns));
        d->read_ns[i] += ns;
        if (c->overlap <= 0)
            (void)timeline_take(&d->flash[i], 0, products);
    }
    uint64_t end = timeline_take(&d->gemv, read_end, products);
    end = timeline_take(
        &d->softmax, end,
        duration_ns(jobs * phase->elements, c->kernels * c->softmax_units * c->softmax_rate));
    return timeline_take(&d->argtopk, end, duration_ns(jobs * phase->ranked, c->argtopk_rate));
}

static void draw_load(struct load *load, const struct plan *plan, int phase, const struct shape *s,
                      enum method_kind method, const struct selection *sel, struct draw *draw,
                      uint32_t first_job, uint32_t jobs)
{
    memset(load->pages, 0, sizeof load->pages);
    bool by_channel = method == SIM_SPARF && phase == 0;
    for (uint32_t j = first_job; j < first_job + jobs && method == SIM_DENSE; j++)
        for (uint32_t i = 0; i < load->channels; i++) // as drawn below, all of them
            load->pages[(2 * j + (phase == plan->n - 1) + i) % load->channels] +=
                plan->groups / load->channels + (i < plan->groups % load->channels);
    if (method == SIM_DENSE)
        return;
    for (uint32_t j = first_job; j < first_job + jobs; j++) {
        // Page p of row r lies on die p + r: a head's K and V are two pages of a row, its channel
        // pages are a row of their own.
        load->step = 1;
        load->first = by_channel ? j : 2 * j + (phase == plan->n - 1);
        for (uint32_t r = 0; by_channel && r < plan->ranges; r++, load->first++)
            selection_draw_channels(sel, draw, s->head_dim, load_page, load);
        const struct selection all = {.tokens = 1, .run = 1};
        // Of what is chosen; recorded selections are of tokens for every method.
        uint32_t unit = method == SIM_PAGES && !sel->recorded ? 1 : plan->page_tokens;
        if (by_channel) { // K of tokens that no channel page covers yet
            load->first = 2 * j;
            selection_draw_pages(&all, draw, plan->tail_pages, plan->page_tokens, load_page, load);
        } else {
            selection_draw_pages(sel, draw, plan->groups, unit, load_page, load);
        }
    }
}

static void make_plan(struct plan *p, const struct csd *c, const struct workload *w,
                      enum method_kind method, const struct selection *sel, double context)
{
    const struct shape *s = &w->shape;
    double group = (double)s->heads / s->kv_heads, dim = s->head_dim;
    *p = (struct plan){.page_tokens = (uint32_t)fmax(1, c->page_bytes / (2 * dim))};
    p->groups = (uint32_t)ceil(context / p->page_tokens);
    double kept = method == SIM_DENSE ? context : ceil(sel->tokens * context);
    double share = method == SIM_DENSE ? 1
                   : method == SIM_PAGES && !sel->recorded
                       ? sel->tokens // pages are chosen, all their tokens used
                       : selection_page_share(sel, p->page_tokens);
    if (method == SIM_SPARF) {
        double covered = c->page_bytes / (2.0 * sel->page_channels);
        p->ranges = (uint32_t)(context / covered);
        if (!sel->tail_in_dram)
            p->tail_pages = (uint32_t)(fmod(context, covered) / p->page_tokens);
        p->phases[p->n++] =
            (struct phase){.pages = p->tail_pages + p->ranges * dim / sel->page_channels *
                                                        selection_channel_share(sel, s->head_dim),
                           .flops = 2 * group * context * ceil(sel->channels * dim),
                           .elements = group * context,
                           .ranked = group * dim + context};
    }
    struct phase half = {.pages = p->groups * share, .flops = 2 * group * kept * dim};
    p->phases[p->n] = half;
    p->phases[p->n++].elements = group * kept;
    if (method == SIM_PAGES) // ranked by summaries in DRAM before the first read
        p->phases[0].ranked = context / p->page_tokens;
    p->phases[p->n++] = half;
    double most = 1;
    for (int i = 0; i < p->n; i++)
        most = fmax(most, p->phases[i].pages * c->page_bytes);
    p->per_piece = fmax(1, floor(c->staging_bytes / most));
}

// Piece i in phase 0, piece i - 1 in phase 1, ...: how long `pieces` of them take, and when each
// round of that began.
static uint64_t run_pieces(struct drive *d, const struct plan *plan, const struct workload *w,
                           enum method_kind method, const struct selection *sel, uint32_t pieces,
                           double jobs_in_piece, uint64_t begun[])
{
    uint64_t ready[PIECES_RUN + PHASES_MAX] = {0}, end = 0;
    struct draw draw = {.state = 1};
    struct load load = {.channels = (uint32_t)d->csd->flash_channels};
    for (uint32_t round = 0; round < pieces + (uint32_t)plan->n - 1; round++) {
        begun[round] = 0;
        for (uint32_t i = 0; i < load.channels; i++)
            begun[round] += d->flash[i].free_ns / load.channels;
        for (int p = 0; p < plan->n; p++) {
            if (round < (uint32_t)p || round - (uint32_t)p >= pieces)
                continue;
            uint32_t piece = round - (uint32_t)p, jobs = (uint32_t)ceil(jobs_in_piece);
            draw_load(&load, plan, p, &w->shape, method, sel, &draw, piece * jobs, jobs);
            ready[piece] = run_phase(d, &plan->phases[p], &load, jobs_in_piece, ready[piece]);
            end = later(end, ready[piece]);
        }
    }
    return end;
}

int drive_timing(struct drive_timing *out, const struct machine *m, const struct workload *w,
                 enum method_kind method, const struct selection *sel, double context,
                 struct inst_msg *msg)
{
    int err = machine_check(m, msg);
    err = err ? err : workload_check(w, msg);
    if (err)
        return err;
    if (!(context >= 1 && context <= 0x1p31))
        return inst_fail(msg, INST_EINVAL, "a context of %g tokens", context);
    struct plan plan;
    struct drive d = {.csd = &m->csd};
    double jobs = (double)drive_sequences(m, w) * drive_heads(m, &w->shape);
    make_plan(&plan, &m->csd, w, method, sel, context);
    double in_piece = fmin(plan.per_piece, jobs), pieces = jobs / in_piece;
    double most = 1, enough = PIECES_RUN;
    for (int i = 0; i < plan.n; i++)
        most = fmax(most, in_piece * plan.phases[i].pages);
    if (method != SIM_DENSE)
        enough = fmax(PIECES_LEAST, fmin(PIECES_RUN, PAGES_RUN / most));
    uint32_t run = (uint32_t)fmin(ceil(pieces), enough);
    if (pieces < enough) // all of them, as equal as they come
        in_piece = jobs / run;
    uint64_t begun[PIECES_RUN + PHASES_MAX];
    uint64_t end = run_pieces(&d, &plan, w, method, sel, run, in_piece, begun);
    double scale = jobs / (run * in_piece), seconds = 1e-9 * (double)end, sum = 0, squares = 0;
    if (scale > 1) { // from the piece that found the pipe full to the last one
        uint32_t n = run - PIECES_SKIPPED;
        for (uint32_t i = PIECES_SKIPPED; i < run; i++) {
            double each = 1e-9 * (double)(begun[i] - begun[i - 1]);
            sum += each;
            squares += each * each;
        }
        seconds += sum / n * (jobs / in_piece - run);
        out->error = sqrt(fmax(0, squares / n - sum / n * (sum / n)) / n) / (sum / n);
    }
    struct drive_timing t = {.seconds = seconds + 1e-9 * m->csd.read_ns, .error = out->error};
    t.error = scale > 1 ? t.error : 0;
    double pages = 0;
    for (int i = 0; i < plan.n; i++)
        pages += plan.phases[i].pages;
    double page = m->csd.page_bytes;
    t.bytes = jobs * pages * page;
    t.channel_bytes = method == SIM_SPARF ? jobs * plan.phases[0].pages * page : 0;
    t.token_bytes = t.bytes - t.channel_bytes;
    t.dense = jobs * 2.0 * plan.groups * page;
    for (uint32_t i = 0; i < CHANNELS_MAX; i++)
        t.read = fmax(t.read, scale * 1e-9 * (double)d.read_ns[i]);
    t.engine = scale * 1e-9 * (double)d.gemv.busy_ns;
    t.lookup = scale * 1e-9 * (double)d.cores.busy_ns;
    t.softmax = scale * 1e-9 * (double)d.softmax.busy_ns;
    if (method == SIM_SPARF && sel->tail_in_dram)
        t.tail_bytes =
            jobs * 2 * w->shape.head_dim * fmod(context, page / (2.0 * sel->page_channels));
    bool overflowed = d.gemv.overflowed || d.softmax.overflowed;
    for (uint32_t i = 0; i < CHANNELS_MAX; i++)
        overflowed |= d.flash[i].overflowed;
    if (overflowed || !(t.seconds < 1e9))
        return inst_fail(msg, INST_ERANGE, "one layer takes longer than 64-bit nanoseconds hold");
    *out = t;
    return 0;
}
