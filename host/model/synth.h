// SPDX-License-Identifier: Apache-2.0
// Synthetic models: GGUF files of any shape with random weights, for tests and benchmarks. The same
// options give the same bytes on every machine (own generator, no libm, nothing but exactly rounded
// arithmetic). Weights are scaled by 1 / sqrt(columns), so activations keep their size.
#ifndef INST_HOST_MODEL_SYNTH_H
#define INST_HOST_MODEL_SYNTH_H

#include "base/status.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum {
    SYNTH_VOCAB_MIN = 260, // <unk>, <s>, </s>, 256 bytes, the space
};

struct synth_options {
    const char *architecture; // NULL = llama
    uint32_t layers, width, heads, kv_heads, head_dim, ffn;
    uint32_t vocab;   // 0 = SYNTH_VOCAB_MIN; what is more is filled with tokens nobody sees
    uint32_t context; // trained length that the file states
    uint32_t type;    // of matrices, any supported type; vectors are F32
    uint64_t seed;
    float rope_base; // 0 = 10000
    // Where the architecture has them; 0 or NULL = not stated in the file. Longrope of phi3:
    // factors in both lengths when rope_original is not 0.
    const char *rope_scaling; // "linear" or "yarn"
    float rope_factor;
    uint32_t rope_original, window;
    bool rope_freqs, tied;
};

// Small, valid values for everything; the caller changes what it wants.
void synth_defaults(struct synth_options *options);

// Writes to the stream; memory in use does not depend on the model's size. `name` stands in
// messages.
int synth_write(const struct synth_options *options, FILE *file, const char *name,
                struct inst_msg *msg);

// Text -> ids needs no tokenizer here: byte b is token SYNTH_BYTE_BASE + b (a space also has its
// own).
enum { SYNTH_BYTE_BASE = 3 };

#endif
