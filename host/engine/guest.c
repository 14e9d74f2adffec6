// SPDX-License-Identifier: Apache-2.0
#include "host/engine/guest.h"
#include "host/engine/engine.h"

int engine_set_guest(inst_engine *engine, const struct guest *guest, struct inst_msg *msg)
{
    if (guest && !engine->host_attention)
        return inst_fail(msg, INST_EINVAL, "only attention \"host\" takes a guest");
    if (guest && !engine->guest_rows) {
        uint64_t rows = (uint64_t)engine->plan.host_rows + 1;
        uint64_t bytes = rows * engine->config.heads * engine->config.head_dim * sizeof(float);
        int err = engine->compute->ops->buffer_new(engine->compute, bytes, PLACE_PINNED,
                                                   "rows for a guest", &engine->guest_rows, msg);
        if (err)
            return err;
    }
    engine->guest = guest;
    return 0;
}
