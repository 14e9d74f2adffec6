// SPDX-License-Identifier: Apache-2.0
#include "host/engine/plan.h"
#include "base/checked.h"

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
    STRIP_ROWS = 64,
    MIXED_ROWS = STRIP_ROWS, // fewer leave part of a pass over the weights unused
    LOGITS_ROWS = 8,
    PIECE_BYTES = 256 * 1024,
    PIECE_SHARE = 32, // but no more than this part of the budget each
    GROUP_LEAST = 16, // tokens, of those that are tried
    GROUP_MOST = 256,
    SLAB_ALIGN = 64, // a slab is padded to this on the wire
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

const char *plan_bytes_text(uint64_t bytes, char out[24])
{
    static const char unit[] = "BKMGTPE";
    double value = (double)bytes;
    int i = 0;
    for (; value >= 1024 && unit[i + 1]; i++)
        value /= 1024;
    if (i == 0)
        snprintf(out, 24, "%llu bytes", (unsigned long long)bytes);
    else
        snprintf(out, 24, value < 100 ? "%.1f%c" : "%.0f%c", value, unit[i]);
    return out;
}

// Fills in everything that follows from threads, chunk and piece. False when it overflows.
static bool size_buffers(struct engine_plan *p, const struct model_config *c,
                         const struct plan_input *in)
{
    struct sum s = {false};
    uint64_t q_dim = mul(&s, c->heads, c->head_dim), kv_dim = mul(&s, c->kv_heads, c->head_dim);
    uint64_t token_bytes = mul(&s, kv_dim, 4); // K and V, fp16
    uint64_t rows = add(&s, p->chunk, in->sessions - 1);
    p->rows = (uint32_t)min_u64(rows, UINT32_MAX);
    p->mixed_chunk = p->chunk < MIXED_ROWS ? p->chunk : MIXED_ROWS;
    p->strip = p->rows < STRIP_ROWS ? p->rows : STRIP_ROWS;
    p->logits_rows = in->sessions == 1            ? 1
                     : in->sessions < LOGITS_ROWS ? in->sessions
                                                  : LOGITS_ROWS;
    uint64_t *b = p->buffer;
    b[BUFFER_x] = floats(&s, p->rows, c->width);
    b[BUFFER_q] = floats(&s, p->rows, q_dim);
    b[BUFFER_partials] =
        mul(&s, mul(&s, p->chunk, c->heads), partial_stride(c->head_dim) * sizeof(float));
    b[BUFFER_segment_of] = mul(&s, p->rows, sizeof(uint32_t));
    b[BUFFER_rope] = floats(&s, p->rows, plan_rope_values(c));
    b[BUFFER_norm] = floats(&s, p->strip, c->width);
    b[BUFFER_t1] = floats(&s, p->strip, max_u64(q_dim, c->ffn));
    b[BUFFER_t2] = floats(&s, p->strip, max_u64(2 * kv_dim, c->ffn));
    uint64_t widest = max_u64(max_u64(c->width, q_dim), c->ffn);
    b[BUFFER_rounded] = in->rounds_x ? mul(&s, p->strip, 4 * rounded_floats(widest)) : 0;
    // Each segment has a slab of its own.
    uint64_t slabs = min_u64(in->sessions, p->chunk);
    b[BUFFER_slab0] = b[BUFFER_slab1] =
        add(&s, mul(&s, slabs, SLAB_ALIGN), mul(&s, p->chunk, token_bytes));
    b[BUFFER_piece0] = b[BUFFER_piece1] = add(&s, SLAB_ALIGN, mul(&s, p->piece, token_bytes));
    b[BUFFER_stage] = mul(&s, ATTENTION_TILE, token_bytes);
    struct attend_layout layout;
    if (!attend_layout(&layout, in->sessions, c->heads, c->kv_heads, c->head_dim, true))
        return false;
    b[BUFFER_attend_table] = table_bytes(in->sessions);
    b[BUFFER_attend_in] = layout.in_bytes;
    b[BUFFER_attend_out] = layout.out_bytes;
    b[BUFFER_logits] = in->sessions == 1 ? 0 : floats(&s, p->logits_rows, c->vocab);
    p->buffers = 0;
    for (int i = 0; i < BUFFER_COUNT; i++)
        p->buffers = add(&s, p->buffers, b[i] ? add(&s, b[i], ALLOC_BYTES) : 0);

    // A tile of K and V that the drive puts together lies behind the kernels' own scratch.
    p->scratch = KERNEL_SCRATCH_BYTES + mul(&s, 4 * ATTENTION_TILE, c->head_dim);
    p->fixed = FIXED_BYTES + mul(&s, p->threads, add(&s, STACK_BYTES, p->scratch));
    p->text =
        add(&s, TEXT_BYTES, min_u64(mul(&s, in->context, TEXT_PER_TOKEN), in->memory / TEXT_SHARE));
    // Tokens, logits, and the sampler's {id, logit} for every token of the vocabulary.
    p->sessions = mul(&s, in->sessions,
                      add(&s, 3 * ALLOC_BYTES + PLAN_SESSION_BYTES,
                          add(&s, mul(&s, in->context, sizeof(int32_t)), mul(&s, c->vocab, 12))));
    return !s.overflow;
}

// All but the drive.
static uint64_t host_bytes(const struct engine_plan *p, const struct plan_input *in)
{
    return in->tables + p->fixed + p->text + p->sessions + p->buffers + FLASH_BYTES;
}

static uint32_t piece_tokens(const struct model_config *c, const struct plan_input *in)
{
    uint64_t token_bytes = (uint64_t)c->kv_heads * c->head_dim * 4;
    uint64_t bytes = min_u64(PIECE_BYTES, in->memory / PIECE_SHARE);
    uint64_t tokens = max_u64(bytes / token_bytes, ATTENTION_TILE);
    // Whole token groups where the group is known, so that a row is read once.
    uint64_t unit = max_u64(in->group, ATTENTION_TILE);
    tokens = max_u64(tokens / unit, 1) * unit;
    uint64_t context = div_round_up(in->context, ATTENTION_TILE) * ATTENTION_TILE;
    return (uint32_t)min_u64(tokens, context);
}

// The drive with this token group (0: the best, in the geometry that suits it) and `rest` bytes of
// DRAM, of which it may need more.
static int try_group(struct engine_plan *p, const struct plan_input *in, uint32_t group,
                     uint64_t rest, struct drive_plan *drive, struct inst_msg *msg)
{
    // The geometry suits a group and the best group depends on the geometry: the second round is
    // about the group that the first one settled on.
    for (int round = 0; round < 2; round++) {
        p->space.group_tokens = group;
        int err = drive_geometry_for(&p->geometry, &p->space, in->kv_limit, rest, msg);
        if (!err)
            err = drive_plan(drive, &p->geometry, &p->space, rest, msg);
        if (err)
            return err;
        group = drive->group_tokens;
    }
    return 0;
}

// Group and DRAM of the drive when it may have `rest` bytes: what keeps its device busy, and the
// rest for its row cache, as far as there are rows. INST_ENOMEM, with p->drive what would do, when
// no group works with that little.
static int plan_drive(struct engine_plan *p, const struct plan_input *in, uint64_t rest,
                      struct inst_msg *msg)
{
    struct drive_plan drive;
    rest = max_u64(rest, 1); // 0 would mean that memory does not matter
    int err = try_group(p, in, in->group, rest, &drive, NULL);
    uint64_t least = err ? UINT64_MAX : drive.min_dram_bytes;
    // In its own geometry the best group can be too large, for memory or for the store, where a
    // smaller one works.
    for (uint32_t group = GROUP_MOST;
         !in->group && (err || drive.min_dram_bytes > rest) && group >= GROUP_LEAST; group /= 2) {
        err = try_group(p, in, group, rest, &drive, NULL);
        least = err ? least : min_u64(least, drive.min_dram_bytes);
    }
    if (err && least == UINT64_MAX)
        return try_group(p, in, in->group, rest, &drive, msg);
    if (err || drive.min_dram_bytes > rest) {
        p->drive = least;
        return INST_ENOMEM;
    }
    p->group = drive.group_tokens;
    p->capacity =
        (uint64_t)p->geometry.page_bytes * p->geometry.pages_per_block * p->geometry.blocks;
    p->kv_bytes = drive.full_bytes;
    uint64_t cache = in->row_cache == UINT64_MAX ? 0 : in->row_cache ? in->row_cache : UINT64_MAX;
    uint64_t more = drive.full_dram_bytes - drive.good_dram_bytes;
    p->drive = min_u64(rest, drive.good_dram_bytes + min_u64(more, cache));
    return 0;
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
    int err = plan_drive(p, in, rest, msg);
    p->needed = host + p->drive;
    return err ? err : p->needed > in->memory ? INST_ENOMEM : 0;
}

static int refuse(const struct engine_plan *p, const struct plan_input *in, struct inst_msg *msg)
{
    char have[24], need[24], tables[24], buffers[24], text[24], drive[24], fixed[24];
    // Room for text grows with the budget, up to what the context can take.
    uint64_t others = p->needed - (p->text - TEXT_BYTES);
    uint64_t enough = others + min_u64(in->context * TEXT_PER_TOKEN, others / (TEXT_SHARE - 1) + 1);
    return inst_fail(msg, INST_ENOMEM,
                     "--memory %s is too small for this model at context %llu: at least %s needed "
                     "(tables %s, buffers %s, sessions and text %s, drive %s, fixed %s)",
                     plan_bytes_text(in->memory, have), (unsigned long long)in->context,
                     // Rounded up, so that the number said is one that works.
                     plan_bytes_text(enough + enough / 16, need),
                     plan_bytes_text(in->tables, tables), plan_bytes_text(p->buffers, buffers),
                     plan_bytes_text(p->sessions + p->text, text), plan_bytes_text(p->drive, drive),
                     plan_bytes_text(p->fixed, fixed));
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
    };
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
