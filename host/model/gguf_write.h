// SPDX-License-Identifier: Apache-2.0
// Writes a GGUF file (version 3) front to back: keys, then tensor entries, then their data in the
// same order. Nothing but the caller's stream is used, so files may be larger than memory. The
// first failure sticks: later calls do nothing and gguf_writer_close reports it.
#ifndef INST_HOST_MODEL_GGUF_WRITE_H
#define INST_HOST_MODEL_GGUF_WRITE_H

#include "host/model/gguf.h"

#include <stdio.h>

struct gguf_writer;

// Writes from where the stream is and goes back there at the end: INST_ENOTSUP for a pipe. The
// stream stays the caller's; `name` stands in messages.
int gguf_writer_open(struct gguf_writer **out, FILE *file, const char *name, struct inst_msg *msg);

void gguf_writer_u32(struct gguf_writer *w, const char *key, uint32_t value);
void gguf_writer_f32(struct gguf_writer *w, const char *key, float value);
void gguf_writer_bool(struct gguf_writer *w, const char *key, bool value);
void gguf_writer_string(struct gguf_writer *w, const char *key, const char *value);
// An array of numbers as they lie in memory.
void gguf_writer_array(struct gguf_writer *w, const char *key, enum gguf_type type, uint64_t count,
                       const void *data);
// An array of strings, one element at a time: announce, then exactly `count` elements.
void gguf_writer_strings(struct gguf_writer *w, const char *key, uint64_t count);
void gguf_writer_element(struct gguf_writer *w, const char *data, uint64_t bytes);

// Entry of a tensor; dims fastest first. All entries come before the first data.
void gguf_writer_tensor(struct gguf_writer *w, const char *name, uint32_t type, uint32_t n_dims,
                        const uint64_t *dims);
// Appends to the data of the current tensor; full tensors are padded and the next one begins.
void gguf_writer_data(struct gguf_writer *w, const void *data, uint64_t bytes);

// Completes the file and frees in every case. Data missing from a tensor is INST_EINVAL.
int gguf_writer_close(struct gguf_writer *w, struct inst_msg *msg);

#endif
