// SPDX-License-Identifier: Apache-2.0
// The subcommands. Each gets argv from its own name on and returns the exit status.
#ifndef INST_CMD_COMMANDS_H
#define INST_CMD_COMMANDS_H

// X(name, one line)
#define COMMAND_MAP(X)                                                                             \
    X(run, "generate text")                                                                        \
    X(batch, "answer the requests of a file")                                                      \
    X(logits, "write a prompt's logits to a .npy file")                                            \
    X(tokenize, "text to token ids")                                                               \
    X(inspect, "what a GGUF file holds")                                                           \
    X(synth, "write a random model of any shape")                                                  \
    X(eval, "compare attention methods: accuracy by bytes read")                                   \
    X(bench, "measure, beside others")                                                             \
    X(sim, "simulate drives, GPUs and rivals")

#define COMMAND_DECLARE(name, text) int command_##name(int argc, char **argv);
COMMAND_MAP(COMMAND_DECLARE)
#undef COMMAND_DECLARE

#endif
