// SPDX-License-Identifier: Apache-2.0
#include "host/engine/fill.h"
#include "base/checked.h"
#include "host/engine/engine.h"

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

int engine_fill(inst_session *session, const int32_t *tokens, size_t n, struct inst_msg *msg)
{
    struct inst_engine *e = session->engine;
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
        uint64_t count = min_u64(e->plan.chunk, n - done);
        uint16_t *slab = (uint16_t *)engine_bytes(e, engine_slab_out(e));
        struct command write = {.opcode = OP_WRITE, .count = 1};
        struct one_item table;
        write.length = engine_put_item(e, session->seq, session->seq->length, count, &table);
        made_up(slab, write.length / sizeof *slab, &random);
        for (; write.layer < e->config.layers && !err; write.layer++)
            err = port_call(&e->port, write, table.bytes, slab, NULL, msg);
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
