// SPDX-License-Identifier: Apache-2.0
// From a GGUF file to what the engine computes with: the hyper-parameters of the architecture and
// the weights bound to their places. Everything is checked against everything here (shapes against
// hyper-parameters, types against the kernels), so the engine checks nothing. What would change
// results and is not implemented (other architectures, biases, rope scaling, experts, ...) is
// refused by name with INST_ENOTSUP. Architectures are rows of a table in config.c; what a model
// has beyond the plainest one shows in numbers and pointers here, never in the architecture's name.
#ifndef INST_HOST_MODEL_CONFIG_H
#define INST_HOST_MODEL_CONFIG_H

#include "host/model/gguf.h"
#include "kernels/kernels.h"

enum model_activation { ACTIVATION_SILU, ACTIVATION_GELU_TANH, ACTIVATION_RELU };

// How angles are changed for contexts beyond the trained one.
enum rope_scaling { ROPE_PLAIN, ROPE_LINEAR, ROPE_YARN, ROPE_LONGROPE };

struct model_config {
    const char *architecture; // static string, the name in the table
    uint32_t layers;
    uint32_t width;    // elements of the residual stream ("embedding_length")
    uint32_t heads;    // query heads
    uint32_t kv_heads; // divides heads
    uint32_t head_dim; // even, at most KERNEL_HEAD_DIM_MAX
    uint32_t ffn;
    uint32_t vocab;     // rows of token_embd
    uint32_t context;   // trained length in tokens
    uint32_t rope_dims; // first elements of a head that are rotated; even, at most head_dim; 0:
                        // positions are learned embeddings
    bool rope_halves;   // element i turns with i + rope_dims / 2, not 2 i with 2 i + 1
    float rope_base;
    float rope_window_base; // of layers with a window; 0: the same angles as the others
    enum rope_scaling rope_scaling;
    float rope_factor;          // of linear and yarn
    float rope_attention;       // multiplies cosines and sines
    uint32_t rope_original;     // tokens: the context before scaling
    float rope_fast, rope_slow; // yarn: turns over rope_original, not scaled and fully scaled
    enum model_activation activation;
    float norm_eps;
    float embedding_scale;  // multiplies the embeddings
    float score_scale;      // multiplies q . k
    float score_softcap;    // of scaled scores, 0 = none
    float logit_softcap;    // 0 = none
    uint32_t window;        // tokens that a layer with a window sees, the current one included
    uint32_t window_period; // every so many layers one sees all tokens; 0 = none does
    bool tied;              // the output matrix is token_embd
};

// Tokens that this layer sees at a time; 0 = all.
static inline uint32_t model_layer_window(const struct model_config *config, uint32_t layer)
{
    bool full = config->window_period && (layer + 1) % config->window_period == 0;
    return full ? 0 : config->window;
}

// Shapes: rows x cols; vectors have their length beside them. What an architecture does not have is
// NULL, of a matrix the data. A norm with a bias is a LayerNorm, one without is by rms.
struct model_layer {
    const float *attn_norm, *attn_norm_bias;     // width
    const float *attn_q_bias;                    // heads * head_dim
    const float *attn_k_bias, *attn_v_bias;      // kv_heads * head_dim
    const float *attn_q_norm, *attn_k_norm;      // head_dim, of every head before rope
    const float *attn_output_bias;               // width
    const float *attn_post_norm, *ffn_post_norm; // width, of a block's output
    const float *ffn_norm, *ffn_norm_bias;       // width
    const float *ffn_up_bias;                    // ffn
    const float *ffn_down_bias;                  // width
    struct weight attn_q;                        // heads * head_dim x width
    struct weight attn_k;                        // kv_heads * head_dim x width
    struct weight attn_v;                        // kv_heads * head_dim x width
    struct weight attn_output;                   // width x heads * head_dim
    struct weight ffn_gate;                      // ffn x width
    struct weight ffn_up;                        // ffn x width
    struct weight ffn_down;                      // width x ffn
};

enum { POSITION_OFFSET = 2 }; // rows of position_embd before that of position 0

struct model_weights {
    struct weight token_embd;                    // vocab x width
    struct weight position_embd;                 // context + POSITION_OFFSET x width
    const float *output_norm, *output_norm_bias; // width
    struct weight output;                        // vocab x width; equals token_embd when tied
    const float *rope_freqs;             // rope_dims / 2 divisors of the frequencies, or NULL
    const float *rope_long, *rope_short; // the same for contexts beyond rope_original and within
    struct model_layer *layer;           // config.layers
    uint64_t bytes;                      // of all weights in the file
    struct budget *budget;
};

// Works on a file without tensors too, except that `vocab` then comes from the keys.
int model_config_read(const struct gguf *gguf, struct model_config *config, struct inst_msg *msg);

// Pointers go into the gguf's map, which must outlive the weights.
int model_weights_bind(const struct gguf *gguf, const struct model_config *config,
                       struct budget *budget, struct model_weights *weights, struct inst_msg *msg);
void model_weights_free(struct model_weights *weights); // zeroed weights are fine

#endif
