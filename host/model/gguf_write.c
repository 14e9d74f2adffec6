// SPDX-License-Identifier: Apache-2.0
#include "host/model/gguf_write.h"

#include "base/checked.h"
#include "base/le.h"
#include "kernels/tensor_type.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 32 };

struct gguf_writer {
    FILE *file;
    char *name;
    off_t start; // of the file in the stream
    int rc;      // the first failure
    struct inst_msg msg;
    uint64_t at; // bytes written
    uint64_t n_keys, n_tensors;
    uint64_t declared, written; // bytes of data, padding included
    uint64_t *ends;             // where each tensor's data ends, padding excluded
    uint64_t capacity, current; // tensors in `ends`; the one being filled
};

static void fail(struct gguf_writer *w, int code, const char *what)
{
    if (!w->rc)
        w->rc = inst_fail(&w->msg, code, "%s: %s", w->name, what);
}

static void put(struct gguf_writer *w, const void *data, uint64_t bytes)
{
    if (w->rc || !bytes)
        return;
    errno = 0;
    if (fwrite(data, 1, bytes, w->file) != bytes)
        fail(w, errno == ENOSPC ? INST_ENOSPC : INST_EIO, strerror(errno));
    w->at += bytes;
}

static void put_u32(struct gguf_writer *w, uint32_t value)
{
    uint8_t raw[4];
    le_put32(raw, value);
    put(w, raw, sizeof raw);
}

static void put_u64(struct gguf_writer *w, uint64_t value)
{
    uint8_t raw[8];
    le_put64(raw, value);
    put(w, raw, sizeof raw);
}

static void put_string(struct gguf_writer *w, const char *s)
{
    put_u64(w, strlen(s));
    put(w, s, strlen(s));
}

static void put_zeros(struct gguf_writer *w, uint64_t bytes)
{
    static const char zeros[ALIGNMENT];
    put(w, zeros, bytes);
}

int gguf_writer_open(struct gguf_writer **out, FILE *file, const char *name, struct inst_msg *msg)
{
    *out = NULL;
    off_t start = ftello(file);
    int flags = fcntl(fileno(file), F_GETFL);
    if (start < 0 || (flags >= 0 && flags & O_APPEND))
        return inst_fail(msg, INST_ENOTSUP,
                         "%s: a GGUF file can neither go through a pipe nor be appended", name);
    struct gguf_writer *w = calloc(1, sizeof *w);
    if (!w || !(w->name = strdup(name))) {
        free(w);
        return inst_fail(msg, INST_ENOMEM, "no memory");
    }
    w->file = file;
    w->start = start;
    put(w, "GGUF", 4);
    put_u32(w, 3);
    put_u64(w, 0); // the counts come when they are known
    put_u64(w, 0);
    *out = w;
    return 0;
}

static void begin_key(struct gguf_writer *w, const char *key, enum gguf_type type)
{
    if (w->n_tensors)
        fail(w, INST_EINVAL, "a key after the tensors");
    w->n_keys++;
    put_string(w, key);
    put_u32(w, type);
}

void gguf_writer_u32(struct gguf_writer *w, const char *key, uint32_t value)
{
    begin_key(w, key, GGUF_U32);
    put_u32(w, value);
}

void gguf_writer_f32(struct gguf_writer *w, const char *key, float value)
{
    uint8_t raw[4];
    begin_key(w, key, GGUF_F32);
    le_putf32(raw, value);
    put(w, raw, sizeof raw);
}

void gguf_writer_bool(struct gguf_writer *w, const char *key, bool value)
{
    uint8_t raw = value;
    begin_key(w, key, GGUF_BOOL);
    put(w, &raw, 1);
}

void gguf_writer_string(struct gguf_writer *w, const char *key, const char *value)
{
    begin_key(w, key, GGUF_STRING);
    put_string(w, value);
}

static uint32_t element_bytes(enum gguf_type type)
{
    switch (type) {
    case GGUF_U8:
    case GGUF_I8:
    case GGUF_BOOL:
        return 1;
    case GGUF_U16:
    case GGUF_I16:
        return 2;
    case GGUF_U32:
    case GGUF_I32:
    case GGUF_F32:
        return 4;
    case GGUF_U64:
    case GGUF_I64:
    case GGUF_F64:
        return 8;
    case GGUF_STRING:
    case GGUF_ARRAY:
        break;
    }
    return 0;
}

void gguf_writer_array(struct gguf_writer *w, const char *key, enum gguf_type type, uint64_t count,
                       const void *data)
{
    begin_key(w, key, GGUF_ARRAY);
    put_u32(w, type);
    put_u64(w, count);
    put(w, data, count * element_bytes(type));
}

void gguf_writer_strings(struct gguf_writer *w, const char *key, uint64_t count)
{
    begin_key(w, key, GGUF_ARRAY);
    put_u32(w, GGUF_STRING);
    put_u64(w, count);
}

void gguf_writer_element(struct gguf_writer *w, const char *data, uint64_t bytes)
{
    put_u64(w, bytes);
    put(w, data, bytes);
}

void gguf_writer_tensor(struct gguf_writer *w, const char *name, uint32_t type, uint32_t n_dims,
                        const uint64_t *dims)
{
    const struct tensor_type_info *info = tensor_type_info(type);
    uint64_t elements = 1;
    if (w->current || w->written)
        fail(w, INST_EINVAL, "a tensor after the first data");
    if (!info || n_dims < 1 || n_dims > 4 || dims[0] % info->block_elements)
        fail(w, INST_EINVAL, "a tensor of impossible type or shape");
    for (uint32_t i = 0; i < n_dims && !w->rc; i++)
        if (!checked_mul(elements, dims[i], &elements) || !elements)
            fail(w, INST_EINVAL, "a tensor of impossible shape");
    if (!w->rc && w->n_tensors == w->capacity) {
        w->capacity = w->capacity ? 2 * w->capacity : 256;
        uint64_t *ends = realloc(w->ends, w->capacity * sizeof *ends);
        if (ends)
            w->ends = ends;
        else
            fail(w, INST_ENOMEM, "no memory");
    }
    if (w->rc)
        return;
    put_string(w, name);
    put_u32(w, n_dims);
    for (uint32_t i = 0; i < n_dims; i++)
        put_u64(w, dims[i]);
    put_u32(w, type);
    put_u64(w, w->declared);
    uint64_t end = w->declared + elements / info->block_elements * info->block_bytes;
    w->ends[w->n_tensors++] = end;
    w->declared = (end + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

// Now all of the size is known: a disk without room for it is not filled first.
static void reserve(struct gguf_writer *w)
{
    uint64_t bytes = (uint64_t)w->start + w->at + w->declared;
    if (bytes <= INT64_MAX && fallocate(fileno(w->file), FALLOC_FL_KEEP_SIZE, 0, (off_t)bytes) &&
        (errno == ENOSPC || errno == EDQUOT))
        fail(w, INST_ENOSPC, strerror(errno));
}

void gguf_writer_data(struct gguf_writer *w, const void *data, uint64_t bytes)
{
    const char *p = data;
    if (!w->rc && !w->current && !w->written) {
        put_zeros(w, (ALIGNMENT - w->at % ALIGNMENT) % ALIGNMENT);
        reserve(w);
    }
    while (bytes && !w->rc) {
        if (w->current == w->n_tensors) {
            fail(w, INST_EINVAL, "more data than tensors");
            return;
        }
        uint64_t end = w->ends[w->current], n = min_u64(bytes, end - w->written);
        put(w, p, n);
        p += n;
        bytes -= n;
        w->written += n;
        if (w->written == end) {
            uint64_t padding = (ALIGNMENT - end % ALIGNMENT) % ALIGNMENT;
            put_zeros(w, padding);
            w->written += padding;
            w->current++;
        }
    }
}

int gguf_writer_close(struct gguf_writer *w, struct inst_msg *msg)
{
    if (w->current != w->n_tensors)
        fail(w, INST_EINVAL, "data of a tensor is missing");
    if (!w->rc && fseeko(w->file, w->start + 8, SEEK_SET))
        fail(w, INST_EIO, strerror(errno));
    put_u64(w, w->n_tensors);
    put_u64(w, w->n_keys);
    errno = 0;
    if (fflush(w->file) || fseeko(w->file, 0, SEEK_END))
        fail(w, errno == ENOSPC ? INST_ENOSPC : INST_EIO, strerror(errno));
    int rc = w->rc;
    if (rc)
        inst_fail(msg, rc, "%s", w->msg.text);
    free(w->ends);
    free(w->name);
    free(w);
    return rc;
}
