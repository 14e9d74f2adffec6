// SPDX-License-Identifier: Apache-2.0
// Answers questions about GGUF files. The checking is in gguf_parse.c; here everything can be
// trusted.
#include "host/model/gguf_internal.h"

#include "base/le.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "host/model/text.h"

uint64_t gguf_hash(struct gguf_string s)
{
    return XXH3_64bits(s.data, s.bytes);
}

uint32_t gguf_scalar_bytes(uint32_t type)
{
    static const uint8_t bytes[] = {
        [GGUF_U8] = 1,  [GGUF_I8] = 1,  [GGUF_U16] = 2, [GGUF_I16] = 2,
        [GGUF_U32] = 4, [GGUF_I32] = 4, [GGUF_F32] = 4, [GGUF_BOOL] = 1,
        [GGUF_U64] = 8, [GGUF_I64] = 8, [GGUF_F64] = 8,
    };
    return type < sizeof bytes ? bytes[type] : 0;
}

const char *gguf_name(const struct gguf *g)
{
    return g->name;
}

uint32_t gguf_version(const struct gguf *g)
{
    return g->version;
}

uint64_t gguf_bytes(const struct gguf *g)
{
    uint64_t bytes = g->size;
    for (uint64_t i = 0; i < g->n_parts; i++)
        bytes += g->part[i]->size; // of files on one machine: no overflow
    return bytes;
}

uint64_t gguf_key_count(const struct gguf *g)
{
    return g->n_keys;
}

uint64_t gguf_tensor_count(const struct gguf *g)
{
    return g->n_tensors;
}

const struct gguf_key *gguf_key_at(const struct gguf *g, uint64_t index)
{
    return &g->keys[index];
}

const struct gguf_tensor *gguf_tensor_at(const struct gguf *g, uint64_t index)
{
    return &g->tensors[index];
}

bool gguf_string_is(struct gguf_string s, const char *text)
{
    return s.bytes == strlen(text) && !memcmp(s.data, text, s.bytes);
}

const struct gguf_key *gguf_find(const struct gguf *g, const char *key)
{
    const struct gguf_index *index = &g->key_index;
    uint64_t i = gguf_hash((struct gguf_string){key, strlen(key)}) & index->mask;
    for (; index->slot[i]; i = (i + 1) & index->mask)
        if (gguf_string_is(g->keys[index->slot[i] - 1].name, key))
            return &g->keys[index->slot[i] - 1];
    return NULL;
}

const struct gguf_tensor *gguf_tensor(const struct gguf *g, const char *name)
{
    const struct gguf_index *index = &g->tensor_index;
    uint64_t i = gguf_hash((struct gguf_string){name, strlen(name)}) & index->mask;
    for (; index->slot[i]; i = (i + 1) & index->mask)
        if (gguf_string_is(g->tensors[index->slot[i] - 1].name, name))
            return &g->tensors[index->slot[i] - 1];
    return NULL;
}

// One integer of any type, as sign and magnitude so that every u64 and i64 has a place.
static bool read_integer(uint32_t type, const uint8_t *p, uint64_t *magnitude, bool *negative)
{
    int64_t v;
    *negative = false;
    switch (type) {
    case GGUF_U8:
        *magnitude = *p;
        return true;
    case GGUF_U16:
        *magnitude = le_get16(p);
        return true;
    case GGUF_U32:
        *magnitude = le_get32(p);
        return true;
    case GGUF_U64:
        *magnitude = le_get64(p);
        return true;
    case GGUF_I8:
        v = (int8_t)*p;
        break;
    case GGUF_I16:
        v = (int16_t)le_get16(p);
        break;
    case GGUF_I32:
        v = (int32_t)le_get32(p);
        break;
    case GGUF_I64:
        v = (int64_t)le_get64(p);
        break;
    default:
        return false;
    }
    *negative = v < 0;
    *magnitude = v < 0 ? -(uint64_t)v : (uint64_t)v;
    return true;
}

static int absent(const struct gguf *g, const char *key, enum gguf_need need, struct inst_msg *msg)
{
    if (need == GGUF_OPTIONAL)
        return 0;
    return inst_fail(msg, INST_EFORMAT, "%s: key '%s' is missing", g->name, key);
}

int gguf_get_u64(const struct gguf *g, const char *name, enum gguf_need need, uint64_t min,
                 uint64_t max, uint64_t *value, struct inst_msg *msg)
{
    const struct gguf_key *key = gguf_find(g, name);
    if (!key)
        return absent(g, name, need, msg);
    uint32_t type = key->type == GGUF_ARRAY ? key->array_type : key->type;
    uint32_t size = gguf_scalar_bytes(type);
    uint64_t v;
    bool negative;
    if (key->count == 0)
        return gguf_fail_key(g, key, INST_EFORMAT, msg, "an empty array where an integer belongs");
    if (!read_integer(type, key->data, &v, &negative))
        return gguf_fail_key(g, key, INST_EFORMAT, msg, "not an integer");
    for (uint64_t i = 1; i < key->count; i++)
        if (memcmp(key->data, key->data + i * size, size))
            return gguf_fail_key(g, key, INST_ENOTSUP, msg,
                                 "values that differ from layer to layer are not supported");
    if (negative || v < min || v > max)
        return gguf_fail_key(g, key, INST_EFORMAT, msg,
                             "%s%" PRIu64 " is out of range (%" PRIu64 " to %" PRIu64 ")",
                             negative ? "-" : "", v, min, max);
    *value = v;
    return 0;
}

int gguf_get_u32(const struct gguf *g, const char *name, enum gguf_need need, uint32_t min,
                 uint32_t max, uint32_t *value, struct inst_msg *msg)
{
    uint64_t wide = *value;
    int rc = gguf_get_u64(g, name, need, min, max, &wide, msg);
    if (!rc)
        *value = (uint32_t)wide;
    return rc;
}

int gguf_get_f32(const struct gguf *g, const char *name, enum gguf_need need, float min, float max,
                 float *value, struct inst_msg *msg)
{
    const struct gguf_key *key = gguf_find(g, name);
    double v;
    if (!key)
        return absent(g, name, need, msg);
    if (key->type == GGUF_F32)
        v = (double)le_getf32(key->data);
    else if (key->type == GGUF_F64)
        memcpy(&v, key->data, sizeof v);
    else
        return gguf_fail_key(g, key, INST_EFORMAT, msg, "not a floating-point number");
    if (!(v >= (double)min && v <= (double)max)) // also what is not a number
        return gguf_fail_key(g, key, INST_EFORMAT, msg, "%g is out of range (%g to %g)", v,
                             (double)min, (double)max);
    *value = (float)v;
    return 0;
}

int gguf_get_bool(const struct gguf *g, const char *name, enum gguf_need need, bool *value,
                  struct inst_msg *msg)
{
    const struct gguf_key *key = gguf_find(g, name);
    if (!key)
        return absent(g, name, need, msg);
    if (key->type != GGUF_BOOL)
        return gguf_fail_key(g, key, INST_EFORMAT, msg, "not a boolean");
    *value = *key->data != 0;
    return 0;
}

int gguf_get_string(const struct gguf *g, const char *name, enum gguf_need need,
                    struct gguf_string *value, struct inst_msg *msg)
{
    const struct gguf_key *key = gguf_find(g, name);
    if (!key)
        return absent(g, name, need, msg);
    if (key->type != GGUF_STRING)
        return gguf_fail_key(g, key, INST_EFORMAT, msg, "not a string");
    *value = (struct gguf_string){(const char *)key->data + 8, le_get64(key->data)};
    return 0;
}

int gguf_get_array(const struct gguf *g, const char *name, enum gguf_need need, uint32_t type,
                   const struct gguf_key **value, struct inst_msg *msg)
{
    const struct gguf_key *key = gguf_find(g, name);
    *value = NULL;
    if (!key)
        return absent(g, name, need, msg);
    if (key->type != GGUF_ARRAY || key->array_type != type)
        return gguf_fail_key(g, key, INST_EFORMAT, msg, "not an array of the expected type");
    *value = key;
    return 0;
}

struct gguf_string gguf_next_string(const struct gguf_key *array, uint64_t *at)
{
    struct gguf_string s = {(const char *)array->data + *at + 8, le_get64(array->data + *at)};
    *at += 8 + s.bytes;
    return s;
}

const char *gguf_printable(struct gguf_string s, struct gguf_print *out)
{
    size_t n = 0, i = 0, room = sizeof out->text - 4;
    while (i < s.bytes) {
        const unsigned char *p = (const unsigned char *)s.data + i;
        int length = text_utf8_length(p, s.bytes - i);
        bool plain = length > 1 || (length == 1 && *p >= 0x20 && *p != 0x7f && *p != '\'');
        if (length < 1)
            length = 1;
        // C1 controls are two-byte sequences that some terminals act on.
        if (length == 2 && *p == 0xc2 && p[1] < 0xa0)
            plain = false;
        if (n + (size_t)length > room) {
            memcpy(out->text + n, "...", 3);
            n += 3;
            break;
        }
        if (plain) {
            memcpy(out->text + n, p, (size_t)length);
            n += (size_t)length;
        } else {
            out->text[n++] = '?';
        }
        i += (size_t)length;
    }
    out->text[n] = 0;
    return out->text;
}

static int fail_at(const struct gguf *g, const char *what, struct gguf_string name, uint64_t offset,
                   int code, struct inst_msg *msg, const char *fmt, va_list args)
    __attribute__((format(printf, 7, 0)));

static int fail_at(const struct gguf *g, const char *what, struct gguf_string name, uint64_t offset,
                   int code, struct inst_msg *msg, const char *fmt, va_list args)
{
    struct gguf_print print;
    char detail[200];
    vsnprintf(detail, sizeof detail, fmt, args);
    return inst_fail(msg, code, "%s: %s '%s' at offset %" PRIu64 ": %s", g->name, what,
                     gguf_printable(name, &print), offset, detail);
}

int gguf_fail_key(const struct gguf *g, const struct gguf_key *key, int code, struct inst_msg *msg,
                  const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    fail_at(g, "key", key->name, key->offset, code, msg, fmt, args);
    va_end(args);
    return code;
}

int gguf_fail_tensor(const struct gguf *g, const struct gguf_tensor *tensor, int code,
                     struct inst_msg *msg, const char *fmt, ...)
{
    va_list args;
    for (uint64_t i = 0; i < g->n_parts; i++) { // name the file that the tensor is in
        const char *base = (const char *)g->part[i]->base;
        if (tensor->name.data >= base && tensor->name.data < base + g->part[i]->size) {
            g = g->part[i];
            break;
        }
    }
    va_start(args, fmt);
    fail_at(g, "tensor", tensor->name, tensor->declared, code, msg, fmt, args);
    va_end(args);
    return code;
}
