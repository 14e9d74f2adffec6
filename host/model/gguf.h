// SPDX-License-Identifier: Apache-2.0
// Read-only view of a GGUF file (version 2 and 3). The file is mapped, or read into memory as it
// is; strings, arrays and tensor data are pointers into that and weights are not copied again.
// Opening walks every key and tensor once and checks all of it, so nothing that comes out of here
// can point outside the file. What is wrong is one line that names the key or tensor and its offset
// in the file. A model in parts (NAME-00001-of-0000N.gguf) is opened by its first file and looks
// like one. Not done: version 1, big-endian files, arrays of arrays, overlapping or reordered
// tensor data. A file that somebody truncates while it is mapped raises SIGBUS where it is used, as
// mmap does; cmd/process.c turns that into a line.
#ifndef INST_HOST_MODEL_GGUF_H
#define INST_HOST_MODEL_GGUF_H

#include "base/budget.h"
#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum gguf_type {
    GGUF_U8 = 0,
    GGUF_I8 = 1,
    GGUF_U16 = 2,
    GGUF_I16 = 3,
    GGUF_U32 = 4,
    GGUF_I32 = 5,
    GGUF_F32 = 6,
    GGUF_BOOL = 7,
    GGUF_STRING = 8,
    GGUF_ARRAY = 9,
    GGUF_U64 = 10,
    GGUF_I64 = 11,
    GGUF_F64 = 12,
};

// Bytes inside the file; no terminating zero, any byte value possible.
struct gguf_string {
    const char *data;
    uint64_t bytes;
};

struct gguf_key {
    struct gguf_string name;
    uint32_t type;       // enum gguf_type
    uint32_t array_type; // type of the elements when type is GGUF_ARRAY
    uint64_t count;      // elements; 1 for a scalar
    const uint8_t *data; // the value; strings are 8 bytes of length and the bytes, back to back
    uint64_t bytes;      // of data
    uint64_t offset;     // of the key in the file
};

struct gguf_tensor {
    struct gguf_string name;
    uint32_t type; // GGUF number; tensor_type_info() knows it
    uint32_t n_dims;
    uint64_t dims[4];  // elements, fastest first; 1 beyond n_dims
    const void *data;  // at least 8-byte aligned
    uint64_t bytes;    // of data
    uint64_t offset;   // of data in the file (or its part)
    uint64_t declared; // offset of the tensor's entry in the file (or its part)
};

struct gguf;

// The index of keys and tensors comes from the budget; the file itself is file-backed memory.
int gguf_open(struct gguf **out, const char *path, struct budget *budget, struct inst_msg *msg);
// The same, but the file is read into memory of its own, in large pages where the system gives
// them. At most *room bytes of that, which are none of the budget's; what is taken is subtracted.
int gguf_open_read(struct gguf **out, const char *path, uint64_t *room, struct budget *budget,
                   struct inst_msg *msg);
// The same over bytes that outlive the result (8-byte aligned). `name` stands in messages.
int gguf_open_memory(struct gguf **out, const void *bytes, uint64_t size, const char *name,
                     struct budget *budget, struct inst_msg *msg);
void gguf_close(struct gguf *gguf); // NULL is fine

// Path of part `i`, from 0, of the model of which `path` names any part: judged by the name alone,
// nothing is opened. False when there is none, or no room.
bool gguf_part_path(const char *path, uint64_t i, char *out, size_t room);

const char *gguf_name(const struct gguf *gguf); // last component of the path
uint32_t gguf_version(const struct gguf *gguf);
uint64_t gguf_bytes(const struct gguf *gguf); // of the file, all its parts together
uint64_t gguf_key_count(const struct gguf *gguf);
uint64_t gguf_tensor_count(const struct gguf *gguf);
const struct gguf_key *gguf_key_at(const struct gguf *gguf, uint64_t index);
const struct gguf_tensor *gguf_tensor_at(const struct gguf *gguf, uint64_t index);

// By name; NULL when there is none.
const struct gguf_key *gguf_find(const struct gguf *gguf, const char *key);
const struct gguf_tensor *gguf_tensor(const struct gguf *gguf, const char *name);

// Typed getters. An absent optional key leaves *value, the default, as it is; an absent required
// key, a wrong type or a value out of [min, max] is INST_EFORMAT and names the key. Integers of any
// width and sign are accepted where the value fits. In gguf_get_u64 an array whose elements are all
// the same number counts as that number (per-layer keys); a mixed one is INST_ENOTSUP.
enum gguf_need { GGUF_OPTIONAL, GGUF_REQUIRED };
int gguf_get_u64(const struct gguf *gguf, const char *key, enum gguf_need need, uint64_t min,
                 uint64_t max, uint64_t *value, struct inst_msg *msg);
int gguf_get_u32(const struct gguf *gguf, const char *key, enum gguf_need need, uint32_t min,
                 uint32_t max, uint32_t *value, struct inst_msg *msg);
int gguf_get_f32(const struct gguf *gguf, const char *key, enum gguf_need need, float min,
                 float max, float *value, struct inst_msg *msg);
int gguf_get_bool(const struct gguf *gguf, const char *key, enum gguf_need need, bool *value,
                  struct inst_msg *msg);
int gguf_get_string(const struct gguf *gguf, const char *key, enum gguf_need need,
                    struct gguf_string *value, struct inst_msg *msg);
// *value = the key, NULL when absent. The elements have type `type`.
int gguf_get_array(const struct gguf *gguf, const char *key, enum gguf_need need, uint32_t type,
                   const struct gguf_key **value, struct inst_msg *msg);

// Walks an array of strings in order: start with *at = 0, call `count` times.
struct gguf_string gguf_next_string(const struct gguf_key *array, uint64_t *at);

bool gguf_string_is(struct gguf_string s, const char *text);

// A name from a file made fit for one line of text: printable ASCII and UTF-8 stay, anything else
// becomes '?', and the end is cut. Returns `out`.
struct gguf_print {
    char text[72];
};
const char *gguf_printable(struct gguf_string s, struct gguf_print *out);

// Fails with "FILE: key 'NAME' at offset N: DETAIL" / "FILE: tensor 'NAME' at offset N: DETAIL".
int gguf_fail_key(const struct gguf *gguf, const struct gguf_key *key, int code,
                  struct inst_msg *msg, const char *fmt, ...) __attribute__((format(printf, 5, 6)));
int gguf_fail_tensor(const struct gguf *gguf, const struct gguf_tensor *tensor, int code,
                     struct inst_msg *msg, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));

#endif
