// SPDX-License-Identifier: Apache-2.0
#include "host/engine/fill.h"
#include "base/checked.h"
#include "host/engine/engine.h"

#include <stdalign.h>
#include <string.h>

// xorshift64.
static void made_up(uint16_t *values, size_t n, uint64_t *random)
{
    for (size_t i = 0; i < n; i++) {
        *random ^= *random << 13;
        *random ^= *random >> 7;
        *random ^= *random << 17;
        values[i] = kernel_f32_to_f16((float)(int32_t)(*random >> 32) / 2147483648.0f);
    }
}

static int write_layer(struct inst_session *s, uint32_t layer, uint64_t n, uint64_t bytes,
                       void *slab, struct inst_msg *msg)
{
    alignas(64) unsigned char table[TABLE_HEADER_BYTES + TABLE_ITEM_BYTES];
    struct command write = {
        .opcode = OP_WRITE, .layer = layer, .count = 1, .length = (uint32_t)bytes};
    table_put_header(table, &(struct table_header){.head_count = s->engine->config.kv_heads});
    table_put_item(
        table, 0,
        &(struct table_item){
            .seq = s->seq->slot, .epoch = s->seq->epoch, .pos = s->seq->length, .n_tokens = n});
    return port_call(&s->engine->port, write, table, slab, NULL, msg);
}

int engine_fill(inst_session *session, const int32_t *tokens, size_t n, struct inst_msg *msg)
{
    struct inst_engine *e = session->engine;
    const struct model_config *c = &e->config;
    uint64_t random = session->seq->length + 0x9e3779b97f4a7c15u;
    if (session->dead)
        return inst_fail(msg, session->dead, "the session's KV was lost by an earlier failure");
    if (n > e->context - session->seq->length)
        return inst_fail(msg, INST_EINVAL, "%zu more tokens do not fit in the context of %llu", n,
                         (unsigned long long)e->context);
    int err = seq_reserve(e, session->seq, session->seq->length + n, msg);
    if (err)
        return err;
    for (size_t done = 0; done < n;) {
        uint64_t count = min_u64(e->plan.chunk, n - done), bytes = 0;
        uint16_t *slab = (uint16_t *)engine_bytes(e, BUFFER_slab0);
        err = slab_bytes(c->kv_heads, count, c->head_dim, &bytes) ? 0 : INST_EINVAL;
        made_up(slab, (size_t)(bytes / sizeof *slab), &random);
        for (uint32_t layer = 0; layer < c->layers && !err; layer++)
            err = write_layer(session, layer, count, bytes, slab, msg);
        if (err) {
            session_cut(session, session->seq->length, NULL);
            return err;
        }
        memcpy(session->seq->tokens + session->seq->length, tokens + done, count * sizeof *tokens);
        session->seq->length += count;
        session->has_logits = false;
        done += count;
    }
    struct command flush = {.opcode = OP_FLUSH};
    return port_call(&e->port, flush, NULL, NULL, NULL, msg);
}
