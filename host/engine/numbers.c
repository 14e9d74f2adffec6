// SPDX-License-Identifier: Apache-2.0
// Numbers that are none. NaN and infinity, be they in the weights or from values that overflow on
// their way, would come out as text like any other. So q, K and V are looked at where they leave a
// layer, K and V as fp16, and logits before anybody sees them; what feeds them shows there. The
// weights themselves are searched only once something was found, and once in an engine's life.
#include "host/engine/engine.h"
#include "base/checked.h"

#include <stdio.h>
#include <string.h>

enum { ROWS_AT_ONCE = 64 };

struct search {
    struct inst_engine *e;
    struct weight weight;
    _Atomic bool found;
};

static void search_item(void *arg, size_t item, unsigned worker)
{
    struct search *s = arg;
    float *row = pool_scratch(s->e->pool, worker);
    uint64_t end = min_u64((item + 1) * ROWS_AT_ONCE, s->weight.rows);
    for (uint64_t i = item * ROWS_AT_ONCE; i < end && !atomic_load(&s->found); i++) {
        s->e->kernels->weight_row(&s->weight, i, row);
        if (!numbers_are_finite(row, s->weight.cols))
            atomic_store(&s->found, true);
    }
}

static bool tensor_is_bad(struct inst_engine *e, const struct gguf_tensor *t)
{
    const struct tensor_type_info *info = tensor_type_info(t->type);
    uint64_t rows = t->dims[1] * t->dims[2] * t->dims[3]; // bounded by the file's size
    if (!info || !info->supported || !rows || t->dims[0] > KERNEL_SCRATCH_BYTES / sizeof(float))
        return false;
    struct search s = {.e = e,
                       .weight = {.data = t->data,
                                  .rows = rows,
                                  .cols = t->dims[0],
                                  .row_bytes = t->bytes / rows,
                                  .type = t->type}};
    atomic_init(&s.found, false);
    pool_run(e->pool, search_item, &s, (size_t)div_round_up(rows, ROWS_AT_ONCE));
    return atomic_load(&s.found);
}

// "; the tensor that is to blame", or nothing.
static const char *blame(struct inst_engine *e)
{
    for (uint64_t i = 0; !e->searched && i < gguf_tensor_count(e->gguf); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(e->gguf, i);
        struct gguf_print print;
        if (!tensor_is_bad(e, t))
            continue;
        snprintf(e->blame, sizeof e->blame, "; tensor %s holds NaN or infinity",
                 gguf_printable(t->name, &print));
        break;
    }
    e->searched = true;
    return e->blame;
}

int numbers_fail(struct inst_engine *e, uint32_t fault, uint32_t layer, uint64_t token,
                 struct inst_msg *msg)
{
    static const char *const names[] = {[FAULT_Q] = "q", [FAULT_K] = "K", [FAULT_V] = "V"};
    unsigned long long at = token;
    if (fault_kind(fault) == FAULT_LOGITS)
        return inst_fail(msg, INST_ERANGE, "logits of token %llu are not numbers%s", at, blame(e));
    const char *name = names[fault_kind(fault)];
    if (!fault_no_number(fault))
        return inst_fail(msg, INST_ERANGE, "layer %u: %s of token %llu exceeds fp16 (65504)", layer,
                         name, at);
    return inst_fail(msg, INST_ERANGE, "layer %u: %s of token %llu is not a number%s", layer, name,
                     at, blame(e));
}
