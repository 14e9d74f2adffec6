// SPDX-License-Identifier: Apache-2.0
// Options that every command with an engine shares.
#ifndef INST_CMD_ENGINE_OPTIONS_H
#define INST_CMD_ENGINE_OPTIONS_H

#include "cmd/sparf_option.h"
#include "instinfer.h"

struct engine_options {
    struct inst_options engine;
    struct option_list kv;
    struct sparf_option sparf;
    const char *row_cache;
    float audit, drive_timeout; // in seconds
    const char *ratio;
    float mass;
    bool warned;
};

// Rows for an option table; E is a struct engine_options. A command with threads and context of its
// own takes the first and the last of the three groups.
#define ENGINE_OPTION_ROWS(E) ENGINE_MODEL_ROWS(E), ENGINE_SIZE_ROWS(E), ENGINE_MEMORY_ROWS(E)

#define ENGINE_MODEL_ROWS(E)                                                                       \
    {"Model and machine", 0, OPTION_HEADING, NULL, 0, 0, NULL, NULL},                              \
    {                                                                                              \
        "--model", 'm', OPTION_MODEL, &(E).engine.model, 0, 0, "MODEL", "GGUF file"                \
    }
#define ENGINE_SIZE_ROWS(E)                                                                        \
    {"--threads", 't', OPTION_U32, &(E).engine.threads, 1, 1024, "N", "default: all CPUs"},        \
    {                                                                                              \
        "--context", 'c', OPTION_U64, &(E).engine.context, 1, 4294967296.0, "N",                   \
            "tokens of context; default: the model's"                                              \
    }
#define ENGINE_MEMORY_ROWS(E)                                                                      \
    {"--memory",                                                                                   \
     0,                                                                                            \
     OPTION_SIZE,                                                                                  \
     &(E).engine.memory,                                                                           \
     0,                                                                                            \
     0,                                                                                            \
     "SIZE",                                                                                       \
     "for everything but weights and ram: drives; default: a quarter of what is available"},       \
        {"--no-mmap",                                                                              \
         0,                                                                                        \
         OPTION_FLAG,                                                                              \
         &(E).engine.read_weights,                                                                 \
         0,                                                                                        \
         0,                                                                                        \
         NULL,                                                                                     \
         "weights are read into memory of their own instead of mapping the file: decode may be "   \
         "faster, and nothing else can push them out"},                                            \
        {"--kv",                                                                                   \
         0,                                                                                        \
         OPTION_LIST,                                                                              \
         &(E).kv,                                                                                  \
         0,                                                                                        \
         0,                                                                                        \
         "WHERE",                                                                                  \
         "where KV lives: a directory, ram:SIZE[@RATE], null: or nand:PROFILE; default: the "      \
         "cache directory; may be given several times: each drive gets a part of the heads"},      \
        {"--on-drive-loss",                                                                        \
         0,                                                                                        \
         OPTION_TEXT,                                                                              \
         &(E).engine.on_drive_loss,                                                                \
         0,                                                                                        \
         0,                                                                                        \
         "WHAT",                                                                                   \
         "of several, one gives back errors: recompute its part of KV on the others, or fail; "    \
         "default: fail"},                                                                         \
        {"--drive-timeout",                                                                        \
         0,                                                                                        \
         OPTION_F32,                                                                               \
         &(E).drive_timeout,                                                                       \
         0.01,                                                                                     \
         1e6,                                                                                      \
         "SECONDS",                                                                                \
         "that a command of a drive is waited for, before it has failed; default: 60"},            \
        {"--kv-limit",                                                                             \
         0,                                                                                        \
         OPTION_SIZE,                                                                              \
         &(E).engine.kv_limit,                                                                     \
         0,                                                                                        \
         0,                                                                                        \
         "SIZE",                                                                                   \
         "what KV may grow to; default: what the context needs"},                                  \
        {"--row-cache",                                                                            \
         0,                                                                                        \
         OPTION_TEXT,                                                                              \
         &(E).row_cache,                                                                           \
         0,                                                                                        \
         0,                                                                                        \
         "SIZE",                                                                                   \
         "rows of KV kept in --memory, or off; default: as many as fit"},                          \
        {"--request-cost",                                                                         \
         0,                                                                                        \
         OPTION_SIZE,                                                                              \
         &(E).engine.request_cost,                                                                 \
         0,                                                                                        \
         0,                                                                                        \
         "SIZE",                                                                                   \
         "what could be read for a request to the disk, of single pages; default: measured"},      \
        {"--group",  0,                                                                            \
         OPTION_U32, &(E).engine.group,                                                            \
         16,         1024,                                                                         \
         "T",        "tokens of a token group, a power of two; default: chosen by the drive"},     \
        {"--attention",                                                                            \
         0,                                                                                        \
         OPTION_TEXT,                                                                              \
         &(E).engine.attention,                                                                    \
         0,                                                                                        \
         0,                                                                                        \
         "METHOD",                                                                                 \
         "dense; sparf: only tokens that a few channels of K rank highest; pages: the pieces "     \
         "that an index predicts most of the softmax for; host: the drive only "                   \
         "stores, and all of KV comes back for every token, to compare; default: dense"},          \
        {"--kv-type", 0,                                                                           \
         OPTION_TEXT, &(E).engine.kv_type,                                                         \
         0,           0,                                                                           \
         "TYPE",      "how KV is stored: f16, or rounded to 8 or 4 bits: q8, q4; default: f16"},   \
        SPARF_OPTION_ROW((E).sparf),                                                               \
        {"--page-channels",                                                                        \
         0,                                                                                        \
         OPTION_U32,                                                                               \
         &(E).engine.page_channels,                                                                \
         1,                                                                                        \
         16,                                                                                       \
         "N",                                                                                      \
         "channels of K that share a flash page, a power of two; default: chosen by the drive"},   \
        {"--ratio",   0,                                                                           \
         OPTION_TEXT, &(E).ratio,                                                                  \
         0,           0,                                                                           \
         "R",         "of pages: part of what dense reads that is read; 1/8, with --mass 1"},      \
        {"--mass",   0,                                                                            \
         OPTION_F32, &(E).mass,                                                                    \
         0,          1,                                                                            \
         "P",        "of pages: read only until this share of the softmax is predicted"},          \
        {"--piece",  0,                                                                            \
         OPTION_U32, &(E).engine.pages_piece,                                                      \
         16,         64,                                                                           \
         "N",        "of pages: tokens chosen together, a power of two; default: 16 or 32"},       \
        {"--keys",   0,                                                                            \
         OPTION_U32, &(E).engine.pages_keys,                                                       \
         1,          64,                                                                           \
         "N",        "of pages: keys kept of each piece; default: one for each token"},            \
        {"--bits",                                                                                 \
         0,                                                                                        \
         OPTION_U32,                                                                               \
         &(E).engine.pages_bits,                                                                   \
         1,                                                                                        \
         2,                                                                                        \
         "N",                                                                                      \
         "of pages: bits for each channel of these keys, 1 or 2; default: 2, with "                \
         "--look or --index-on-disk 1"},                                                           \
        {"--look",                                                                                 \
         0,                                                                                        \
         OPTION_U32,                                                                               \
         &(E).engine.pages_look,                                                                   \
         1,                                                                                        \
         4294967295.0,                                                                             \
         "N",                                                                                      \
         "of pages: keys that a query looks at, the likeliest, where there are many more; "        \
         "default: all"},                                                                          \
        {"--heads",                                                                                \
         0,                                                                                        \
         OPTION_U32,                                                                               \
         &(E).engine.pages_heads,                                                                  \
         1,                                                                                        \
         4096,                                                                                     \
         "N",                                                                                      \
         "of pages: KV heads that choose the same tokens; default: for pieces of 16 KiB"},         \
        {"--newest", 0,                                                                            \
         OPTION_U32, &(E).engine.pages_newest,                                                     \
         1,          4294967295.0,                                                                 \
         "N",        "of pages: newest tokens that are always read; default: 16"},                 \
        {"--rest", 0, OPTION_FLAG, &(E).engine.pages_rest,                                         \
         0,        0, NULL,        "of pages: estimate what is not read"},                         \
        {"--index-on-disk",                                                                        \
         0,                                                                                        \
         OPTION_FLAG,                                                                              \
         &(E).engine.pages_flash,                                                                  \
         0,                                                                                        \
         0,                                                                                        \
         NULL,                                                                                     \
         "of pages: keys lie on the disk, not in DRAM, and reading them counts in --ratio"},       \
        {"--audit",                                                                                \
         0,                                                                                        \
         OPTION_F32,                                                                               \
         &(E).audit,                                                                               \
         0,                                                                                        \
         1,                                                                                        \
         "P",                                                                                      \
         "share of decode steps that are computed densely, too, to say what was captured "         \
         "and how far the logits are"},                                                            \
        {"--micro-batches",                                                                        \
         0,                                                                                        \
         OPTION_U32,                                                                               \
         &(E).engine.micro_batches,                                                                \
         1,                                                                                        \
         2,                                                                                        \
         "N",                                                                                      \
         "parts of a decode step, one with the drive while the other computes; default: as is "    \
         "faster"},                                                                                \
        {"--chunk", 0,     OPTION_U32, &(E).engine.chunk,                                          \
         1,         65536, "C",        "prefill chunk in tokens; default: chosen from --memory"},  \
    {                                                                                              \
        "--kernels", 0, OPTION_TEXT, &(E).engine.kernels, 0, 0, "NAME", "kernel set, for tests"    \
    }

// How tokens are drawn; S is a struct inst_sampling.
#define SAMPLING_ROWS(S)                                                                           \
    {"--temp", 0, OPTION_F32, &(S).temperature, 0, 100, "T", "0 = greedy; default 0.8"},           \
        {"--top-k", 0, OPTION_I32, &(S).top_k, 0, INT32_MAX, "K", "0 = all; default 40"},          \
        {"--top-p", 0, OPTION_F32, &(S).top_p, 0, 1, "P", "default 0.95"},                         \
        {"--min-p", 0, OPTION_F32, &(S).min_p, 0, 1, "P", "default 0.05"},                         \
        {"--repeat-penalty",    0, OPTION_F32, &(S).repeat_penalty, 0.01, 100, "P",                \
         "1 = off, the default"},                                                                  \
    {                                                                                              \
        "--repeat-last", 0, OPTION_I32, &(S).repeat_last, -1, INT32_MAX, "N",                      \
            "tokens that the penalty looks at, -1 = all; default 64"                               \
    }

// Checks what the table cannot and fills in options->engine. 0 or an exit code, with the error line
// printed.
int engine_options_read(struct engine_options *options, const char *command);
// The same, and opens. What is worth knowing of the options on this machine is printed, once.
int engine_options_open(inst_engine **engine, struct engine_options *options, const char *command);
// Prints what is worth knowing of an engine, from note `first` on.
void engine_notes(const struct inst_model_info *info, size_t first);
// Stop texts come from files with other ends of lines, too: `--stop "$(head -1 FILE)"`. A carriage
// return alone is meant. 0 or an exit code.
int stops_check(const struct option_list *stops, const char *command);
// Prints the error line of a failed call; the exit code.
int failed(int code, const struct inst_msg *msg);

#endif
