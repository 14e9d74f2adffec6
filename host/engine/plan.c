// SPDX-License-Identifier: Apache-2.0
#include "host/engine/plan.h"
#include "base/checked.h"
#include "base/size.h"

#include <stdio.h>
#include <string.h>

enum {
    // Measured on glibc 2.36, x86-64: heap and data of libc and libraries after a run, less the
    // budget's own. docs/memory.md has the numbers.
    FIXED_BYTES = 768 * 1024,
    STACK_BYTES = 64 * 1024,  // touched by a worker
    FLASH_BYTES = 192 * 1024, // the file back end's own: rings, request tables, stacks
    ALLOC_BYTES = 4096 + 64,  // alignment and header of one allocation
    TEXT_BYTES = 64 * 1024,   // least room for text
    TEXT_PER_TOKEN = 16,      // text, token lists while they grow and when they are done
    TEXT_SHARE = 8, // but no more than an eighth of the budget: inst_tokenize refuses more
    // Lists of tokens: a full context, and so many of every session ...
    TOKENS_EACH = 512,
    TOKENS_SHARE = 32, // ... or this part of the budget, if it is more
    STRIP_ROWS = 64,
    MIXED_ROWS = STRIP_ROWS, // fewer leave part of a pass over the weights unused
    LOGITS_ROWS = 8,
    PIECE_BYTES = 256 * 1024,
    HOST_PIECE_BYTES = 4 << 20, // where all KV comes back in every step: what keeps a disk busy
    PIECE_SHARE = 32,           // but no more than this part of the budget each
    GROUP_LEAST = 16,           // tokens, of those that are tried
    GROUP_MOST = 256,
    SLAB_ALIGN = 64, // a slab is padded to this on the wire
    PAGE_BYTES = 4096,
};

struct sum {
    bool overflow;
};

static uint64_t mul(struct sum *s, uint64_t a, uint64_t b)
{
    uint64_t r = 0;
    s->overflow |= !checked_mul(a, b, &r);
    return r;
}

static uint64_t add(struct sum *s, uint64_t a, uint64_t b)
{
    uint64_t r = 0;
    s->overflow |= !checked_add(a, b, &r);
    return r;
}

// Bytes of `rows` rows of `n` floats, the rows padded to 16 floats.
static uint64_t floats(struct sum *s, uint64_t rows, uint64_t n)
{
    return mul(s, rows, mul(s, add(s, n, 15) / 16 * 16, sizeof(float)));
}

// One of `whole` bytes, or two of `half`.
static uint64_t pair(struct sum *s, uint64_t whole, uint64_t half)
{
    return max_u64(whole, mul(s, 2, add(s, half, 64)));
}

// As many tokens as sessions can have, where that is little of the budget; otherwise what lets one
// of them fill its context, and all of them work.
static uint64_t live_tokens(struct sum *s, const struct plan_input *in)
{
    uint64_t all,
        least = add(s, in->context, mul(s, in->sessions, min_u64(in->context, TOKENS_EACH)));
    if (!checked_mul(in->context, in->sessions, &all))
        all = UINT64_MAX;
    return min_u64(all, max_u64(least, in->memory / TOKENS_SHARE / sizeof(int32_t)));
}

struct compute_plan engine_compute_plan(const struct engine_plan *p, const struct plan_input *in)
{
    return (struct compute_plan){.rows = p->rows,
                                 .own_rows = p->host_rows,
                                 .strip = p->strip,
                                 .slots = 1,
                                 .rounds_x = in->rounds_x,
                                 .kv_type = in->kv_type};
}

// Fills in everything that follows from threads, chunk and piece. False when it overflows.
static bool size_buffers(struct engine_plan *p, const struct model_config *c,
                         const struct plan_input *in)
{
    struct sum s = {false};
    uint64_t kv_dim = mul(&s, c->kv_heads, c->head_dim);
    uint64_t token_bytes = mul(&s, kv_dim, 4); // K and V, fp16
    uint64_t rows = add(&s, p->chunk, in->sessions - 1);
    p->rows = (uint32_t)min_u64(rows, UINT32_MAX);
    p->host_rows = in->host_attention ? p->rows : p->chunk;
    p->mixed_chunk = p->chunk < MIXED_ROWS ? p->chunk : MIXED_ROWS;
    p->strip = p->rows < STRIP_ROWS ? p->rows : STRIP_ROWS;
    p->logits_rows = in->sessions == 1            ? 1
                     : in->sessions < LOGITS_ROWS ? in->sessions
                                                  : LOGITS_ROWS;
    uint64_t *b = p->buffer;
    const struct compute_plan compute = engine_compute_plan(p, in);
    s.overflow |= !compute_cpu_bytes(c, &compute, &p->compute);
    b[BUFFER_tokens] = mul(&s, p->rows, sizeof(int32_t));
    b[BUFFER_positions] = mul(&s, p->rows, sizeof(uint64_t));
    b[BUFFER_wires] = mul(&s, add(&s, in->sessions, 1), sizeof(struct compute_wire));
    b[BUFFER_faults] = mul(&s, p->rows, sizeof(uint32_t));
    // Each segment has a slab of its own.
    uint64_t slabs = min_u64(in->sessions, p->host_rows);
    p->slab = add(&s, mul(&s, slabs, SLAB_ALIGN), mul(&s, p->host_rows, token_bytes));
    p->piece_bytes = add(&s, SLAB_ALIGN, mul(&s, p->piece, token_bytes));
    p->slab = add(&s, p->slab, PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
    p->piece_bytes = add(&s, p->piece_bytes, PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
    b[BUFFER_slab] = mul(&s, 2, p->slab);
    b[BUFFER_piece] = mul(&s, 2, p->piece_bytes);
    b[BUFFER_slab_out] = in->apart ? b[BUFFER_slab] : 0;
    b[BUFFER_piece_in] = in->apart ? b[BUFFER_piece] : 0;
    // Of all sessions in one, or of half of them in each of two.
    struct attend_layout layout, half;
    uint32_t n_half = in->sessions / 2 + in->sessions % 2;
    if (!attend_layout(&layout, in->sessions, c->heads, c->kv_heads, c->head_dim, true) ||
        !attend_layout(&half, n_half, c->heads, c->kv_heads, c->head_dim, true))
        return false;
    b[BUFFER_attend_table] = pair(&s, table_bytes(in->sessions), table_bytes(n_half));
    b[BUFFER_attend_in] = pair(&s, layout.in_bytes, half.in_bytes);
    b[BUFFER_attend_out] = pair(&s, layout.out_bytes, half.out_bytes);
    b[BUFFER_logits] = in->sessions == 1 ? 0 : floats(&s, p->logits_rows, c->vocab);
    p->buffers = add(&s, p->compute, ALLOC_BYTES);
    for (int i = 0; i < BUFFER_COUNT; i++)
        p->buffers = add(&s, p->buffers, b[i] ? add(&s, b[i], ALLOC_BYTES) : 0);

    p->array = 0;
    if (p->drives > 1) {
        uint64_t halves;
        s.overflow |= !link_array_bytes(p->drives, in->sessions, &p->space, &p->array) ||
                      !link_array_bytes(p->drives, n_half, &p->space, &halves);
        p->array = s.overflow ? 0 : max_u64(p->array, mul(&s, 2, halves));
        // Two WRITEs and two READs whose heads cannot stay where they are.
        uint64_t slabs_and_pieces = add(&s, p->slab, p->piece_bytes);
        if (!link_array_in_place(c->head_dim))
            p->array = add(&s, p->array, mul(&s, 2, slabs_and_pieces));
    }

    // A tile of K and V that the drive puts together lies behind the kernels' own scratch.
    p->scratch = KERNEL_SCRATCH_BYTES + mul(&s, 4 * ATTENTION_TILE, c->head_dim + 1ull);
    p->fixed = FIXED_BYTES + mul(&s, p->threads, add(&s, STACK_BYTES, p->scratch));
    p->text = add(&s, TEXT_BYTES,
                  min_u64(mul(&s, mul(&s, in->context, in->sessions), TEXT_PER_TOKEN),
                          in->memory / TEXT_SHARE));
    // Tokens, logits, and the sampler's {id, logit} for every token of the vocabulary; other
    // methods than dense may need to know how a token was computed.
    p->tokens = live_tokens(&s, in);
    uint64_t notes = in->method != METHOD_DENSE ? in->context / 8 + ALLOC_BYTES : 0;
    p->sessions = add(
        &s, mul(&s, p->tokens, sizeof(int32_t)),
        mul(&s, in->sessions,
            add(&s, 4 * ALLOC_BYTES + PLAN_SESSION_BYTES, add(&s, notes, mul(&s, c->vocab, 12)))));
    return !s.overflow;
}

// All but the drives.
static uint64_t host_bytes(const struct engine_plan *p, const struct plan_input *in)
{
    return in->tables + p->fixed + p->text + p->sessions + p->buffers + p->array +
           (uint64_t)p->drives * FLASH_BYTES;
}

static uint32_t piece_tokens(const struct model_config *c, const struct plan_input *in)
{
    uint64_t token_bytes = (uint64_t)c->kv_heads * c->head_dim * 4;
    uint64_t most = in->host_attention ? HOST_PIECE_BYTES : PIECE_BYTES;
    uint64_t bytes = min_u64(most, in->memory / PIECE_SHARE);
    uint64_t tokens = max_u64(bytes / token_bytes, ATTENTION_TILE);
    // Whole token groups where the group is known, so that a row is read once.
    uint64_t unit = max_u64(in->group, ATTENTION_TILE);
    tokens = max_u64(tokens / unit, 1) * unit;
    uint64_t context = div_round_up(in->context, ATTENTION_TILE) * ATTENTION_TILE;
    return (uint32_t)min_u64(tokens, context);
}

// ---- the drives --------------------------------------------------------------------------------

// What one drive is to all of them.
struct share {
    uint32_t heads, of; // by these, whatever is divided is divided
    uint32_t groups;
};

static struct share share_of(const struct engine_plan *p, uint32_t drive)
{
    struct link_share s =
        link_array_share(p->drives, p->space.kv_heads, space_config_together(&p->space), drive);
    return (struct share){s.head_count, s.groups * p->space.kv_heads, s.groups};
}

static uint64_t part_of(uint64_t bytes, struct share s)
{
    return bytes / s.of * s.heads + bytes % s.of * s.heads / s.of;
}

// So much of all that this drive's part is enough.
static uint64_t whole_of(uint64_t bytes, struct share s)
{
    uint64_t all;
    return checked_mul(div_round_up(bytes, s.heads), s.of, &all) ? all : UINT64_MAX;
}

static struct space_config drive_space(const struct engine_plan *p, struct share s)
{
    struct space_config space = p->space;
    space.q_heads = space.q_heads / space.kv_heads * s.heads;
    space.kv_heads = s.heads;
    return space;
}

static uint64_t drive_limit(const struct plan_input *in, uint32_t drive, struct share s)
{
    uint64_t limit = in->kv_limit ? max_u64(part_of(in->kv_limit, s), 1) : 0;
    uint64_t own = in->places ? in->places[drive].limit : 0;
    return own && limit ? min_u64(own, limit) : own + limit;
}

// As much of a device as the limit allows, a block of each die at least.
static struct flash_geometry device_geometry(const struct flash_geometry *device, uint64_t limit)
{
    struct flash_geometry g = *device;
    uint64_t row = (uint64_t)g.page_bytes * g.pages_per_block * g.dies;
    if (limit)
        g.blocks = min_u64(g.blocks, max_u64(limit / row, 1) * g.dies);
    return g;
}

// One drive with this token group (0: the best, in the geometry that suits it) and `dram` bytes, of
// which it may need more.
static int try_drive(struct engine_plan *p, const struct plan_input *in, uint32_t i, uint32_t group,
                     uint64_t dram, struct drive_plan *drive, struct inst_msg *msg)
{
    struct share share = share_of(p, i);
    struct space_config space = drive_space(p, share);
    struct plan_drive *part = &p->part[i];
    part->heads = share.heads;
    if (in->places && in->places[i].has_geometry) {
        part->geometry = device_geometry(&in->places[i].geometry, drive_limit(in, i, share));
        space.group_tokens = group;
        return drive_plan(drive, &part->geometry, &space, dram, msg);
    }
    // The geometry suits a group and the best group depends on the geometry: the second round is
    // about the group that the first one settled on.
    for (int round = 0; round < 2; round++) {
        space.group_tokens = group;
        int err = drive_geometry_for(&part->geometry, &space, drive_limit(in, i, share), dram, msg);
        if (!err)
            err = drive_plan(drive, &part->geometry, &space, dram, msg);
        if (err)
            return err;
        group = drive->group_tokens;
    }
    return 0;
}

// What keeps a drive's device busy, and the rest of its part for its row cache, as far as there are
// rows.
static void settle_drive(struct engine_plan *p, const struct plan_input *in, uint32_t i,
                         uint64_t dram, const struct drive_plan *drive)
{
    struct share share = share_of(p, i);
    struct plan_drive *part = &p->part[i];
    const struct flash_geometry *g = &part->geometry;
    part->capacity = (uint64_t)g->page_bytes * g->pages_per_block * g->blocks;
    part->geometry.request_bytes = in->request_bytes;
    part->kv_bytes = drive->full_bytes / share.groups; // a sequence lives in one group
    part->row_cache = in->row_cache;
    if (in->places && in->places[i].in_place)
        part->row_cache = UINT64_MAX;
    else if (in->row_cache && in->row_cache != UINT64_MAX)
        part->row_cache = max_u64(part_of(in->row_cache, share), 1);
    uint64_t cache = part->row_cache == UINT64_MAX ? 0
                     : part->row_cache             ? part->row_cache
                                                   : UINT64_MAX;
    uint64_t more = drive->full_dram_bytes - drive->good_dram_bytes;
    part->dram = min_u64(dram, drive->good_dram_bytes + min_u64(more, cache));
    p->capacity += part->capacity;
    p->kv_bytes += part->kv_bytes;
    p->drive += part->dram;
}

// All drives with this token group, or the best for the one that has the most heads. *least: bytes
// for all of them that would do.
static int try_group(struct engine_plan *p, const struct plan_input *in, uint32_t group,
                     uint64_t rest, uint64_t *least, struct inst_msg *msg)
{
    uint32_t first = 0;
    for (uint32_t i = 1; i < p->drives; i++) {
        if (share_of(p, i).heads > share_of(p, first).heads)
            first = i;
    }
    *least = p->capacity = p->kv_bytes = p->drive = 0;
    for (uint32_t n = 0; n < p->drives; n++) {
        uint32_t i = (first + n) % p->drives;
        struct share share = share_of(p, i);
        uint64_t dram = max_u64(part_of(rest, share), 1); // 0: memory does not matter
        struct drive_plan drive;
        int err = try_drive(p, in, i, group, dram, &drive, msg);
        if (err)
            return err;
        group = drive.group_tokens;
        *least = max_u64(*least, whole_of(drive.min_dram_bytes, share));
        settle_drive(p, in, i, dram, &drive);
    }
    p->group = group;
    return 0;
}

// Group and DRAM of the drives when they may have `rest` bytes. INST_ENOMEM, with p->drive what
// would do, when no group works with that little.
static int plan_drives(struct engine_plan *p, const struct plan_input *in, uint64_t rest,
                       struct inst_msg *msg)
{
    uint64_t now, least;
    int err = try_group(p, in, in->group, rest, &now, NULL);
    least = err ? UINT64_MAX : now;
    // In its own geometry the best group can be too large, for memory or for a store, where a
    // smaller one works.
    for (uint32_t group = GROUP_MOST; !in->group && (err || now > rest) && group >= GROUP_LEAST;
         group /= 2) {
        err = try_group(p, in, group, rest, &now, NULL);
        least = err ? least : min_u64(least, now);
    }
    if (err && least == UINT64_MAX)
        return try_group(p, in, in->group, rest, &now, msg);
    if (!err && now <= rest)
        return 0;
    p->drive = least;
    return INST_ENOMEM;
}

bool plan_flash_bytes(const struct engine_plan *plan, uint32_t drive, uint64_t tokens,
                      uint64_t *bytes)
{
    struct space_config space = drive_space(plan, share_of(plan, drive));
    struct drive_plan sized;
    space.group_tokens = plan->group;
    space.max_sequences = 1;
    space.max_tokens = tokens;
    *bytes = 0;
    if (tokens && drive_plan(&sized, &plan->part[drive].geometry, &space, 0, NULL))
        return false;
    *bytes = tokens ? sized.flash_bytes : 0;
    return true;
}

// Tries one chunk and piece. 0 when it fits; INST_ENOMEM when not, with p->needed set.
static int try_plan(struct engine_plan *p, const struct model_config *c,
                    const struct plan_input *in, uint32_t chunk, uint32_t piece,
                    struct inst_msg *msg)
{
    p->chunk = chunk;
    p->piece = piece;
    if (!size_buffers(p, c, in))
        return inst_fail(msg, INST_EINVAL, "the model's dimensions overflow");
    uint64_t host = host_bytes(p, in);
    uint64_t rest = in->memory > host ? in->memory - host : 0;
    int err = plan_drives(p, in, rest, msg);
    p->needed = host + p->drive;
    return err ? err : p->needed > in->memory ? INST_ENOMEM : 0;
}

static int refuse(struct engine_plan *p, const struct plan_input *in, struct inst_msg *msg)
{
    char have[24], need[24], tables[24], buffers[24], text[24], drive[24], fixed[24];
    // Room for text grows with the budget, up to what the context can take.
    uint64_t others = p->needed - (p->text - TEXT_BYTES);
    uint64_t text_most = in->context * in->sessions * TEXT_PER_TOKEN; // it was checked
    p->needed = others + min_u64(text_most, others / (TEXT_SHARE - 1) + 1);
    return inst_fail(msg, INST_ENOMEM,
                     "--memory %s is too small for this model at context %llu: at least %s needed "
                     "(tables %s, buffers %s, sessions and text %s, drive %s, fixed %s)%s",
                     size_text(in->memory, have), (unsigned long long)in->context,
                     // Rounded up, so that the number said is one that works.
                     size_text(p->needed + p->needed / 16, need), size_text(in->tables, tables),
                     size_text(p->buffers + p->array, buffers),
                     size_text(p->sessions + p->text, text), size_text(p->drive, drive),
                     size_text(p->fixed, fixed),
                     in->method == METHOD_PAGES && !in->piece_flash
                         ? "; with --index-on-disk the drive needs less"
                         : "");
}

// Chunks from the best to the least, with a fixed number of threads: first the largest whose
// buffers leave at least half as much to the drive, then the largest that works at all. The chunk
// comes first because prefill reads all earlier KV once per chunk.
static int plan_threads(struct engine_plan *p, const struct model_config *c,
                        const struct plan_input *in, struct inst_msg *msg)
{
    static const uint32_t chunks[] = {512, 256, 128, 64, 32, 16, 8, 4, 2, 1};
    enum { CHUNKS = sizeof chunks / sizeof *chunks, PASSES = 2 };
    uint32_t big = piece_tokens(c, in);
    for (int pass = 0; pass < PASSES; pass++) {
        for (size_t i = 0; i < CHUNKS; i++) {
            uint32_t chunk = in->chunk ? in->chunk : (uint32_t)min_u64(chunks[i], in->context);
            // Large pieces are worth less than a chunk of a tile or more.
            uint32_t piece = chunk < ATTENTION_TILE || pass ? ATTENTION_TILE : big;
            int err = try_plan(p, c, in, chunk, piece, msg);
            if (err && err != INST_ENOMEM)
                return err;
            if (!err && (pass || p->buffers / 2 <= in->memory - host_bytes(p, in)))
                return 0;
            if (in->chunk)
                break;
        }
    }
    return INST_ENOMEM;
}

// KV heads that choose together: as many as it takes for fp16 of a piece of 16 tokens to be a
// request of 16 KiB, which disks give at a better rate than smaller ones.
static uint32_t piece_heads(const struct model_config *config)
{
    enum { REQUEST = 16 << 10, TOKENS = 16 };
    uint32_t heads = 1;
    while (config->kv_heads % (2 * heads) == 0 &&
           2ull * heads * TOKENS * config->head_dim * 2 * sizeof(uint16_t) <= REQUEST)
        heads *= 2;
    return heads;
}

int engine_plan(struct engine_plan *plan, const struct model_config *config,
                const struct plan_input *input, struct inst_msg *msg)
{
    memset(plan, 0, sizeof *plan);
    plan->space = (struct space_config){
        .layers = config->layers,
        .kv_heads = config->kv_heads,
        .head_dim = config->head_dim,
        .q_heads = config->heads,
        .max_sequences = input->sessions,
        .max_tokens = input->context,
        .method = input->method,
        .page_channels = input->page_channels,
        .piece_tokens = input->piece_tokens,
        .piece_keys = input->piece_keys,
        .piece_heads = input->piece_heads,
        .piece_look = input->piece_look,
        .piece_bits = input->piece_bits,
        .piece_flash = input->piece_flash,
        .kv_type = input->kv_type,
    };
    if (input->method == METHOD_PAGES && !input->piece_heads)
        plan->space.piece_heads = piece_heads(config);
    int status = space_config_check_together(&plan->space, msg);
    if (status)
        return status;
    plan->drives = input->drives ? input->drives : 1;
    plan->threads = input->threads ? input->threads : input->max_threads;
    for (;;) {
        int err = plan_threads(plan, config, input, msg);
        if (err != INST_ENOMEM)
            return err;
        if (input->threads || plan->threads == 1)
            return refuse(plan, input, msg);
        plan->threads = (plan->threads + 1) / 2;
    }
}

int engine_plan_drives(struct engine_plan *plan, const struct model_config *config,
                       const struct plan_input *input, struct inst_msg *msg)
{
    char need[24], rest_text[24];
    plan->drives = input->drives;
    size_buffers(plan, config, input); // they are what they were
    uint64_t host = host_bytes(plan, input);
    uint64_t rest = input->memory > host ? input->memory - host : 0;
    int err = plan_drives(plan, input, rest, msg);
    plan->needed = host + plan->drive;
    return err == INST_ENOMEM
               ? inst_fail(msg, err, "the drives that are left need %s of memory, %s are there",
                           size_text(plan->drive, need), size_text(rest, rest_text))
               : err;
}
