// SPDX-License-Identifier: Apache-2.0
// instinfer synth: random models for tests and benchmarks.
#include "cmd/commands.h"
#include "cmd/options.h"
#include "cmd/output_file.h"
#include "host/model/synth.h"
#include "kernels/tensor_type.h"

#include <math.h>

int command_synth(int argc, char **argv)
{
    static struct synth_options o;
    static const char *type;
    static struct output_file out;
    static uint32_t seed;
    static bool overwrite;
    synth_defaults(&o);
    seed = (uint32_t)o.seed;
    const double big = 1 << 24;
    const struct option rows[] = {
        {"Shape", 0, OPTION_HEADING, NULL, 0, 0, NULL, NULL},
        {"--arch", 0, OPTION_TEXT, &o.architecture, 0, 0, "NAME",
         "llama, qwen2, qwen3, phi3, gemma2, gemma3 or opt"},
        {"--layers", 0, OPTION_U32, &o.layers, 1, 65536, "N", "layers"},
        {"--width", 0, OPTION_U32, &o.width, 1, big, "N", "elements of the residual stream"},
        {"--heads", 0, OPTION_U32, &o.heads, 1, 65536, "N", "query heads"},
        {"--kv-heads", 0, OPTION_U32, &o.kv_heads, 1, 65536, "N", "KV heads; divides --heads"},
        {"--head-dim", 0, OPTION_U32, &o.head_dim, 2, 512, "N", "elements of a head; even"},
        {"--ffn", 0, OPTION_U32, &o.ffn, 1, big, "N", "width of the feed-forward block"},
        {"--vocab", 0, OPTION_U32, &o.vocab, SYNTH_VOCAB_MIN, big, "N",
         "tokens; one for each byte and some more"},
        {"--context", 'c', OPTION_U32, &o.context, 1, 1 << 30, "N", "trained length to state"},
        {"--type", 0, OPTION_TEXT, &type, 0, 0, "TYPE",
         "of matrices: F32, F16, BF16, Q8_0, Q4_K, ..."},
        {"--tied", 0, OPTION_FLAG, &o.tied, 0, 0, NULL, "output matrix = embeddings"},
        {"--rope-freqs", 0, OPTION_FLAG, &o.rope_freqs, 0, 0, NULL, "with frequency factors"},
        {"--rope-base", 0, OPTION_F32, &o.rope_base, 1, 1e12, "B", "default 10000"},
        {"--rope-scaling", 0, OPTION_TEXT, &o.rope_scaling, 0, 0, "KIND", "linear or yarn"},
        {"--rope-factor", 0, OPTION_F32, &o.rope_factor, 1, 1e6, "F", "of the scaling"},
        {"--rope-original", 0, OPTION_U32, &o.rope_original, 1, 1 << 30, "N",
         "context before scaling; phi3: with longrope factors"},
        {"--window", 0, OPTION_U32, &o.window, 1, 1 << 30, "N", "tokens of a sliding window"},
        {"--seed", 0, OPTION_U32, &seed, 0, UINT32_MAX, "S", "of the weights"},
        {"--output", 'o', OPTION_OUTPUT, &out, 0, 0, "FILE.gguf", "the file to write"},
        {"--overwrite", 0, OPTION_FLAG, &overwrite, 0, 0, NULL, "even if it exists"},
    };
    const struct options options = {"synth", NULL, "Writes a model with random weights.", rows,
                                    sizeof rows / sizeof *rows};
    int n, code;
    if (!options_parse(&options, argc, argv, &n, &code))
        return code;
    if (!out.path)
        return fail(EXIT_USAGE, "synth: no output given: use -o FILE.gguf");
    o.seed = seed;
    if (type) {
        const struct tensor_type_info *info = tensor_type_by_name(type);
        if (!info || !info->supported)
            return fail(EXIT_USAGE,
                        "synth: --type: '%s' is not one of F32, F16, BF16, Q8_0, Q4_0, Q4_1, "
                        "Q5_0, Q5_1, IQ4_NL, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K",
                        type);
        o.type = info->type;
    }
    out.new_only = !overwrite;
    code = output_files_open(&options);
    if (code)
        return code;
    struct inst_msg msg = {0};
    int err = synth_write(&o, out.stream, out.path, &msg);
    if (err)
        code = fail(err == INST_EINVAL ? EXIT_USAGE : EXIT_FAILED, "synth: %s", msg.text);
    else
        code = output_file_close(&out);
    options_free(&options);
    return code;
}
