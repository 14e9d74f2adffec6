// SPDX-License-Identifier: Apache-2.0
// The benches of `instinfer bench`. Each gets argv from its own name on and returns the exit
// status.
#ifndef INST_CMD_BENCH_H
#define INST_CMD_BENCH_H

// X(name, one line)
#define BENCH_MAP(X)                                                                               \
    X(model, "prefill and decode of a model, beside llama.cpp's llama-bench")                      \
    X(batch, "decode of many sequences, beside FlexGen and the disk's own rate")                   \
    X(drive, "attention in the drive: dense and sparf, bytes, pages and time")

#define BENCH_DECLARE(name, text) int bench_##name(int argc, char **argv);
BENCH_MAP(BENCH_DECLARE)
#undef BENCH_DECLARE

#endif
