// SPDX-License-Identifier: Apache-2.0
// What a request costs beside its bytes, measured on blocks of a new store that nobody has used
// yet, and that are erased again: single pages and large runs of pages, read in turn from anywhere
// in them, with as many in flight as a busy drive has. Least times count, as whatever else the
// machine does only adds to them. Ends within PROBE_NS and one round of reads, however slow the
// device is.
#include "base/checked.h"
#include "drive/flash/nand.h"

enum {
    DEPTH = 64,               // small reads in flight
    LARGE_DEPTH = 8,          // large ones
    ROUNDS = 4,               // of each size
    LARGE_BYTES = 256 << 10,  // a large read
    LARGE_PAGES = 8,          // and at least so many pages, or the difference says nothing
    SPAN_LEAST = 2 << 20,     // bytes written: from less nothing is learnt,
    SPAN_MOST = 8 << 20,      // more is not needed,
    STORE_SHARE = 4,          // nor more than this part of the store
    MEMORY_SHARE = 8,         // nor memory of more than this part of what is left
    PROBE_NS = 100 * 1000000, // for all of it
    SLOW_NS = 30 * 1000000,   // that a round of small reads may take
    FIRST = 4,                // small reads which say how many that are
};

struct probe {
    struct flash *flash;
    uint64_t (*clock_ns)(void);
    uint64_t until_ns;
    uint8_t *data;            // LARGE_DEPTH large reads
    uint32_t large;           // pages
    uint32_t runs;            // large ones in each block
    uint64_t blocks, written; // in use; large runs
    uint64_t random;
    struct flash_io ios[DEPTH];
};

static uint64_t draw(struct probe *p, uint64_t below)
{
    p->random ^= p->random << 13; // xorshift64
    p->random ^= p->random >> 7;
    p->random ^= p->random << 17;
    return p->random % below;
}

// Submits the first n operations as one list and waits for all. *ns: what that took.
static int run(struct probe *p, uint32_t n, uint64_t *ns)
{
    const struct flash_ops *ops = p->flash->ops;
    uint64_t start = p->clock_ns(), now = start;
    int status = 0;
    for (uint32_t i = 0; i < n; i++)
        p->ios[i].next = i + 1 < n ? &p->ios[i + 1] : NULL;
    ops->submit(p->flash, p->ios, now);
    for (uint32_t back = 0; back < n;) {
        struct flash_io *list = ops->poll(p->flash, now);
        if (!list && ops->wait)
            ops->wait(p->flash, PROBE_NS);
        now = p->clock_ns();
        for (; list; list = list->next) {
            status = list->status ? list->status : status;
            back++;
        }
    }
    *ns = now - start;
    return status;
}

// Run number `index` of all: one after another in a block, as pages must be programmed.
static struct flash_io operation(struct probe *p, enum flash_op op, uint64_t index, uint32_t page,
                                 uint32_t pages, uint32_t slot)
{
    return (struct flash_io){
        .op = op,
        .block = index / p->runs,
        .page = (uint32_t)(index % p->runs) * p->large + page,
        .pages = pages,
        .data = p->data + (uint64_t)slot * p->flash->geometry.page_bytes,
    };
}

// Writes until the span is full or half of the time is over.
static bool fill(struct probe *p, uint64_t span)
{
    uint64_t large_bytes = (uint64_t)p->large * p->flash->geometry.page_bytes, ns;
    uint64_t started = p->clock_ns(), now = started;
    uint64_t *words = (uint64_t *)(void *)p->data;
    for (uint64_t i = 0; i < LARGE_DEPTH * large_bytes / sizeof *words; i++)
        words[i] = draw(p, UINT64_MAX); // nothing that a file system could make small
    uint64_t runs = span / large_bytes;
    for (uint32_t n = 1; p->written < runs && now - started < (p->until_ns - started) / 2;
         n = n < LARGE_DEPTH ? 2 * n : n) { // few at first: a slow device holds us up no longer
        n = (uint32_t)min_u64(n, runs - p->written);
        for (uint32_t i = 0; i < n; i++)
            p->ios[i] = operation(p, FLASH_PROGRAM, p->written + i, 0, p->large, i * p->large);
        p->blocks = (p->written + n - 1) / p->runs + 1;
        if (run(p, n, &ns))
            return false;
        p->written += n;
        now = p->clock_ns();
    }
    return p->written * large_bytes >= SPAN_LEAST;
}

// Nanoseconds of one of n reads of so many pages, negative when they failed; *ns: of all.
static double read_round(struct probe *p, uint32_t n, uint32_t pages, uint64_t *ns)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t page = pages == p->large ? 0 : (uint32_t)draw(p, p->large);
        p->ios[i] = operation(p, FLASH_READ, draw(p, p->written), page, pages, i * pages);
    }
    return run(p, n, ns) || !*ns ? -1 : (double)*ns / n;
}

static double least(double a, double b)
{
    return a > 0 && a < b ? a : b;
}

static bool measure(struct probe *p, uint32_t *request_bytes)
{
    double small_bytes = p->flash->geometry.page_bytes, large_bytes = p->large * small_bytes;
    double small = 1e18, large = 1e18;
    uint64_t ns;
    if (read_round(p, FIRST, 1, &ns) < 0)
        return false;
    uint32_t n = (uint32_t)max_u64(2 * FIRST, min_u64(DEPTH, FIRST * (uint64_t)SLOW_NS / ns));
    n = (uint32_t)min_u64(n, (uint64_t)LARGE_DEPTH * p->large);
    for (int i = 0; i < ROUNDS && (i == 0 || p->clock_ns() < p->until_ns); i++) {
        double each = read_round(p, n, 1, &ns),
               each_large = read_round(p, LARGE_DEPTH, p->large, &ns);
        if (each < 0 || each_large < 0)
            return false;
        small = least(each, small);
        large = least(each_large, large);
    }
    if (large <= small)
        return false;
    double byte_ns = (large - small) / (large_bytes - small_bytes);
    double bytes = small / byte_ns - small_bytes;
    *request_bytes = bytes < 0                   ? 0
                     : bytes < FLASH_REQUEST_MAX ? (uint32_t)bytes
                                                 : FLASH_REQUEST_MAX;
    return true;
}

static void erase(struct probe *p)
{
    uint64_t ns;
    for (uint64_t block = 0; block < p->blocks;) {
        uint32_t n = 0;
        for (; n < DEPTH && block < p->blocks; n++)
            p->ios[n] = (struct flash_io){.op = FLASH_ERASE, .block = block++};
        (void)run(p, n, &ns); // a range that is not given back is written over
    }
}

bool flash_probe(struct flash *flash, uint64_t (*clock_ns)(void), struct budget *budget,
                 uint32_t *request_bytes)
{
    const struct flash_geometry *g = &flash->geometry;
    uint64_t block = flash_block_bytes(g), bytes = LARGE_BYTES;
    while (bytes > block)
        bytes /= 2;
    uint64_t span = min_u64(g->blocks * block / STORE_SHARE, SPAN_MOST);
    if (bytes < (uint64_t)LARGE_PAGES * g->page_bytes || span < SPAN_LEAST ||
        LARGE_DEPTH * bytes > (budget->limit - budget->used) / MEMORY_SHARE)
        return false;
    struct probe *p = budget_alloc(budget, 1, sizeof *p, "flash probe", NULL);
    if (!p)
        return false;
    *p = (struct probe){
        .flash = flash,
        .clock_ns = clock_ns,
        .until_ns = clock_ns() + PROBE_NS,
        .large = (uint32_t)(bytes / g->page_bytes),
        .runs = (uint32_t)(block / bytes),
        .random = 0x9e3779b97f4a7c15u,
        .data = budget_alloc_pages(budget, LARGE_DEPTH * bytes, "flash probe", NULL),
    };
    bool known =
        p->data && fill(p, min_u64(span, g->blocks * p->runs * bytes)) && measure(p, request_bytes);
    erase(p);
    budget_free(budget, p->data);
    budget_free(budget, p);
    return known;
}
