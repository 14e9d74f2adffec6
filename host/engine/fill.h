// SPDX-License-Identifier: Apache-2.0
#ifndef INST_HOST_ENGINE_FILL_H
#define INST_HOST_ENGINE_FILL_H

#include "instinfer.h"

// For measurements: makes a session n tokens longer without computing them. Their K and V are made
// up, each number evenly spread between -1 and 1, written as those of a prompt are, and flushed.
// What the model then says is nonsense; how long it takes is not, but for methods that choose among
// tokens.
int engine_fill(inst_session *session, const int32_t *tokens, size_t n, struct inst_msg *msg);

#endif
