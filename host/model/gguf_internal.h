// SPDX-License-Identifier: Apache-2.0
// What the parts of the GGUF reader share. Each calls those before it only: gguf.c answers
// questions, gguf_parse.c checks a file and fills the tables, gguf_split.c makes the tables of
// several files one, gguf_open.c opens them.
#ifndef INST_HOST_MODEL_GGUF_INTERNAL_H
#define INST_HOST_MODEL_GGUF_INTERNAL_H

#include "base/mapping.h"
#include "host/model/gguf.h"

// Open addressing over the names of a table; `slot` holds row + 1, 0 = free.
struct gguf_index {
    uint32_t *slot;
    uint64_t mask;
};

struct gguf {
    const uint8_t *base;
    uint64_t size;
    void *map;           // to unmap, or NULL
    struct mapping copy; // what was read, or nothing; neither: memory of the caller
    struct budget *budget;
    char name[96];
    uint32_t version;
    uint64_t alignment;
    uint64_t n_keys, n_tensors;
    struct gguf_key *keys;
    struct gguf_tensor *tensors;
    struct gguf_index key_index, tensor_index;
    struct gguf **part; // the files after this one, whose tensors are in `tensors` too
    uint64_t n_parts;
};

// gguf.c
// Bytes of a scalar, 0 for strings, arrays and unknown types.
uint32_t gguf_scalar_bytes(uint32_t type);
uint64_t gguf_hash(struct gguf_string s);

// gguf_parse.c
int gguf_parse(struct gguf *g, struct inst_msg *msg);
void gguf_free_tensors(struct gguf *g);
int gguf_tensor_index_new(struct gguf *g, uint64_t rows, struct inst_msg *msg);
// False when an earlier row has the same name.
bool gguf_tensor_index_add(struct gguf *g, uint64_t row);

// gguf_split.c
// In how many files the model is, by this one; 1 for a model in one piece.
int gguf_split_count(const struct gguf *g, uint64_t *count, struct inst_msg *msg);
// Part `no` of `count` must say so, and how many tensors there are in all, as those before did
// (UINT64_MAX: none has).
int gguf_split_check(const struct gguf *g, uint64_t no, uint64_t count, uint64_t *tensors,
                     struct inst_msg *msg);
// Checks the parts in first->part against each other and moves their tensors to the first.
int gguf_join(struct gguf *first, struct inst_msg *msg);

// gguf_open.c
int gguf_load(struct gguf **out, const void *bytes, uint64_t size, const char *name,
              struct budget *budget, struct inst_msg *msg);

#endif
