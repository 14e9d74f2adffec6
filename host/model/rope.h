// SPDX-License-Identifier: Apache-2.0
// Rotary position embedding: the angle by which each pair of elements turns from one position to
// the next, with whatever scaling of it a model has been trained for.
#ifndef INST_HOST_MODEL_ROPE_H
#define INST_HOST_MODEL_ROPE_H

#include "host/model/config.h"

// freq: of the config->rope_dims / 2 pairs, and, where layers with a window turn differently, as
// many for these. The choice that some models leave to the length of a text is made for the whole
// context: stored keys never turn again. What the scaling does to the scores goes to
// config->rope_attention.
void rope_set(struct model_config *config, const struct model_weights *weights, uint64_t context,
              double *freq);

#endif
