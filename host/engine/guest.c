// SPDX-License-Identifier: Apache-2.0
#include "host/engine/guest.h"
#include "host/engine/engine.h"

int engine_set_guest(inst_engine *engine, const struct guest *guest, struct inst_msg *msg)
{
    if (guest && !engine->host_attention)
        return inst_fail(msg, INST_EINVAL, "only attention \"host\" takes a guest");
    engine->guest = guest;
    return 0;
}
