// SPDX-License-Identifier: Apache-2.0
// The one validating pass over a GGUF file: header, keys, tensor entries, data section. Nothing is
// believed: each length is compared with what is left of the file before it is used, and counts
// are bounded by the smallest entry, so that no table is larger than the file deserves.
#include "host/model/gguf_internal.h"

#include "base/checked.h"
#include "base/le.h"
#include "kernels/tensor_type.h"

#include <inttypes.h>

enum {
    NAME_BYTES_MAX = 65535,
    KEY_BYTES_MIN = 8 + 1 + 4 + 1,            // name, type, the smallest value
    TENSOR_BYTES_MIN = 8 + 1 + 4 + 8 + 4 + 8, // name, dimensions, type, offset
    ALIGNMENT_DEFAULT = 32,
    ALIGNMENT_MIN = 8, // kernels read floats in place
    ALIGNMENT_MAX = 1 << 20,
};

struct cursor {
    const struct gguf *g;
    uint64_t at;
};

static uint64_t left(const struct cursor *c)
{
    return c->g->size - c->at;
}

static bool take(struct cursor *c, uint64_t bytes, const uint8_t **p)
{
    if (bytes > left(c))
        return false;
    *p = c->g->base + c->at;
    c->at += bytes;
    return true;
}

static bool take_u32(struct cursor *c, uint32_t *value)
{
    const uint8_t *p;
    if (!take(c, 4, &p))
        return false;
    *value = le_get32(p);
    return true;
}

static bool take_u64(struct cursor *c, uint64_t *value)
{
    const uint8_t *p;
    if (!take(c, 8, &p))
        return false;
    *value = le_get64(p);
    return true;
}

static bool take_string(struct cursor *c, struct gguf_string *s)
{
    struct cursor start = *c;
    const uint8_t *p;
    uint64_t bytes;
    if (!take_u64(c, &bytes) || !take(c, bytes, &p)) {
        *c = start;
        return false;
    }
    *s = (struct gguf_string){(const char *)p, bytes};
    return true;
}

static int truncated(const struct gguf *g, const char *what, uint64_t index, uint64_t offset,
                     struct inst_msg *msg)
{
    return inst_fail(msg, INST_EFORMAT,
                     "%s: %s %" PRIu64 " at offset %" PRIu64 ": the file ends inside it (%" PRIu64
                     " bytes)",
                     g->name, what, index, offset, g->size);
}

// Reads the name of an entry; `what` is "key" or "tensor".
static int take_name(struct cursor *c, const char *what, uint64_t index, struct gguf_string *name,
                     struct inst_msg *msg)
{
    uint64_t offset = c->at, bytes;
    const uint8_t *p;
    if (!take_u64(c, &bytes))
        return truncated(c->g, what, index, offset, msg);
    if (bytes == 0 || bytes > NAME_BYTES_MAX)
        return inst_fail(msg, INST_EFORMAT,
                         "%s: %s %" PRIu64 " at offset %" PRIu64 ": name of %" PRIu64
                         " bytes (1 to %d allowed)",
                         c->g->name, what, index, offset, bytes, NAME_BYTES_MAX);
    if (!take(c, bytes, &p))
        return truncated(c->g, what, index, offset, msg);
    *name = (struct gguf_string){(const char *)p, bytes};
    return 0;
}

// Adds row `row` to the index. Returns the row that has the same name, or `row`.
static uint64_t index_add(struct gguf_index *index, struct gguf_string name, uint64_t row,
                          const struct gguf_string *(*name_of)(const struct gguf *, uint64_t),
                          const struct gguf *g)
{
    uint64_t i = gguf_hash(name) & index->mask;
    for (; index->slot[i]; i = (i + 1) & index->mask) {
        const struct gguf_string *other = name_of(g, index->slot[i] - 1);
        if (other->bytes == name.bytes && !memcmp(other->data, name.data, name.bytes))
            return index->slot[i] - 1;
    }
    index->slot[i] = (uint32_t)(row + 1);
    return row;
}

static const struct gguf_string *key_name(const struct gguf *g, uint64_t row)
{
    return &g->keys[row].name;
}

static const struct gguf_string *tensor_name(const struct gguf *g, uint64_t row)
{
    return &g->tensors[row].name;
}

static int index_new(struct gguf *g, struct gguf_index *index, uint64_t rows, struct inst_msg *msg)
{
    uint64_t slots = 8;
    while (slots < rows * 2)
        slots *= 2;
    index->slot = budget_alloc(g->budget, slots, sizeof *index->slot, "the GGUF index", msg);
    if (!index->slot)
        return INST_ENOMEM;
    index->mask = slots - 1;
    return 0;
}

void gguf_free_tensors(struct gguf *g)
{
    budget_free(g->budget, g->tensor_index.slot);
    budget_free(g->budget, g->tensors);
    g->tensor_index.slot = NULL;
    g->tensors = NULL;
}

int gguf_tensor_index_new(struct gguf *g, uint64_t rows, struct inst_msg *msg)
{
    return index_new(g, &g->tensor_index, rows, msg);
}

bool gguf_tensor_index_add(struct gguf *g, uint64_t row)
{
    return index_add(&g->tensor_index, g->tensors[row].name, row, tensor_name, g) == row;
}

static int parse_header(struct gguf *g, struct cursor *c, struct inst_msg *msg)
{
    const uint8_t *magic;
    if (!take(c, 4, &magic) || memcmp(magic, "GGUF", 4))
        return inst_fail(
            msg, INST_EFORMAT,
            "%s: header at offset 0: not a GGUF file (it does not start with \"GGUF\")", g->name);
    if (!take_u32(c, &g->version) || !take_u64(c, &g->n_tensors) || !take_u64(c, &g->n_keys))
        return inst_fail(msg, INST_EFORMAT,
                         "%s: header at offset 4: the file ends inside it (%" PRIu64 " bytes)",
                         g->name, g->size);
    if (g->version != 2 && g->version != 3)
        return inst_fail(msg, INST_EFORMAT, "%s: header at offset 4: GGUF version %" PRIu32 "%s",
                         g->name, g->version,
                         g->version && !(g->version & 0xffff)
                             ? " (a big-endian file?); versions 2 and 3 are read"
                             : "; versions 2 and 3 are read");
    if (g->n_tensors > left(c) / TENSOR_BYTES_MIN || g->n_tensors >= UINT32_MAX / 4)
        return inst_fail(msg, INST_EFORMAT,
                         "%s: header at offset 8: %" PRIu64
                         " tensors do not fit in a file of %" PRIu64 " bytes",
                         g->name, g->n_tensors, g->size);
    if (g->n_keys > left(c) / KEY_BYTES_MIN || g->n_keys >= UINT32_MAX / 4)
        return inst_fail(msg, INST_EFORMAT,
                         "%s: header at offset 16: %" PRIu64
                         " keys do not fit in a file of %" PRIu64 " bytes",
                         g->name, g->n_keys, g->size);
    return 0;
}

static int parse_array(struct gguf *g, struct cursor *c, struct gguf_key *key, struct inst_msg *msg)
{
    static const char cut[] = "the file ends inside its array";
    if (!take_u32(c, &key->array_type) || !take_u64(c, &key->count))
        return gguf_fail_key(g, key, INST_EFORMAT, msg, cut);
    key->data = g->base + c->at;
    uint32_t size = gguf_scalar_bytes(key->array_type);
    if (size) {
        const uint8_t *p;
        if (!checked_mul(key->count, size, &key->bytes) || !take(c, key->bytes, &p))
            return gguf_fail_key(g, key, INST_EFORMAT, msg,
                                 "array of %" PRIu64 " elements is longer than the file",
                                 key->count);
        return 0;
    }
    if (key->array_type == GGUF_ARRAY)
        return gguf_fail_key(g, key, INST_EFORMAT, msg, "arrays of arrays are not allowed");
    if (key->array_type != GGUF_STRING)
        return gguf_fail_key(g, key, INST_EFORMAT, msg, "unknown element type %" PRIu32,
                             key->array_type);
    if (key->count > left(c) / 8)
        return gguf_fail_key(g, key, INST_EFORMAT, msg,
                             "array of %" PRIu64 " strings is longer than the file", key->count);
    uint64_t start = c->at;
    for (uint64_t i = 0; i < key->count; i++) {
        struct gguf_string s;
        if (!take_string(c, &s))
            return gguf_fail_key(g, key, INST_EFORMAT, msg,
                                 "string %" PRIu64 " of the array, at offset %" PRIu64
                                 ", is longer than the file",
                                 i, c->at);
    }
    key->bytes = c->at - start;
    return 0;
}

static int parse_value(struct gguf *g, struct cursor *c, struct gguf_key *key, struct inst_msg *msg)
{
    uint32_t size = gguf_scalar_bytes(key->type);
    key->count = 1;
    key->data = g->base + c->at;
    if (size) {
        key->bytes = size;
        if (!take(c, size, &key->data))
            return gguf_fail_key(g, key, INST_EFORMAT, msg, "the file ends inside its value");
        if (key->type == GGUF_BOOL && *key->data > 1)
            return gguf_fail_key(g, key, INST_EFORMAT, msg, "a boolean of value %d", *key->data);
        return 0;
    }
    if (key->type == GGUF_STRING) {
        struct gguf_string s;
        if (!take_string(c, &s))
            return gguf_fail_key(g, key, INST_EFORMAT, msg, "its string is longer than the file");
        key->bytes = 8 + s.bytes;
        return 0;
    }
    if (key->type == GGUF_ARRAY)
        return parse_array(g, c, key, msg);
    return gguf_fail_key(g, key, INST_EFORMAT, msg, "unknown value type %" PRIu32, key->type);
}

static int parse_keys(struct gguf *g, struct cursor *c, struct inst_msg *msg)
{
    if (g->n_keys) {
        g->keys = budget_alloc(g->budget, g->n_keys, sizeof *g->keys, "the GGUF keys", msg);
        if (!g->keys)
            return INST_ENOMEM;
    }
    int rc = index_new(g, &g->key_index, g->n_keys, msg);
    for (uint64_t i = 0; i < g->n_keys && !rc; i++) {
        struct gguf_key *key = &g->keys[i];
        key->offset = c->at;
        rc = take_name(c, "key", i, &key->name, msg);
        if (rc)
            break;
        if (!take_u32(c, &key->type))
            return truncated(g, "key", i, key->offset, msg);
        rc = parse_value(g, c, key, msg);
        if (!rc && index_add(&g->key_index, key->name, i, key_name, g) != i)
            rc = gguf_fail_key(g, key, INST_EFORMAT, msg, "the key is there twice");
    }
    return rc;
}

static int parse_alignment(struct gguf *g, struct inst_msg *msg)
{
    const struct gguf_key *key = gguf_find(g, "general.alignment");
    g->alignment = ALIGNMENT_DEFAULT;
    if (!key)
        return 0;
    int rc = gguf_get_u64(g, "general.alignment", GGUF_REQUIRED, 0, UINT64_MAX, &g->alignment, msg);
    if (rc)
        return rc;
    if (!is_power_of_two(g->alignment) || g->alignment < ALIGNMENT_MIN ||
        g->alignment > ALIGNMENT_MAX)
        return gguf_fail_key(g, key, INST_EFORMAT, msg,
                             "alignment %" PRIu64 " is not a power of two from %d to %d",
                             g->alignment, ALIGNMENT_MIN, ALIGNMENT_MAX);
    return 0;
}

// Dimensions and type of one entry; gives the bytes of its data.
static int parse_shape(struct gguf *g, struct cursor *c, struct gguf_tensor *t,
                       struct inst_msg *msg)
{
    static const char cut[] = "the file ends inside its entry";
    uint64_t elements = 1;
    if (!take_u32(c, &t->n_dims))
        return gguf_fail_tensor(g, t, INST_EFORMAT, msg, cut);
    if (t->n_dims < 1 || t->n_dims > 4)
        return gguf_fail_tensor(g, t, INST_EFORMAT, msg, "%" PRIu32 " dimensions (1 to 4 allowed)",
                                t->n_dims);
    for (uint32_t i = 0; i < 4; i++) {
        t->dims[i] = 1;
        if (i < t->n_dims && !take_u64(c, &t->dims[i]))
            return gguf_fail_tensor(g, t, INST_EFORMAT, msg, cut);
        if (!t->dims[i])
            return gguf_fail_tensor(g, t, INST_EFORMAT, msg, "dimension %" PRIu32 " is 0", i);
        if (!checked_mul(elements, t->dims[i], &elements) || elements > INT64_MAX)
            return gguf_fail_tensor(g, t, INST_EFORMAT, msg,
                                    "its dimensions overflow 64 bits (dimension %" PRIu32
                                    " is %" PRIu64 ")",
                                    i, t->dims[i]);
    }
    if (!take_u32(c, &t->type))
        return gguf_fail_tensor(g, t, INST_EFORMAT, msg, cut);
    const struct tensor_type_info *type = tensor_type_info(t->type);
    if (!type || !type->block_elements)
        return gguf_fail_tensor(g, t, INST_EFORMAT, msg, "unknown tensor type %" PRIu32, t->type);
    if (t->dims[0] % type->block_elements)
        return gguf_fail_tensor(g, t, INST_EFORMAT, msg,
                                "rows of %" PRIu64 " elements are not whole blocks of %" PRIu32
                                " (type %s)",
                                t->dims[0], type->block_elements, type->name);
    if (!checked_mul(elements / type->block_elements, type->block_bytes, &t->bytes))
        return gguf_fail_tensor(g, t, INST_EFORMAT, msg, "its size overflows 64 bits");
    return 0;
}

static int parse_tensors(struct gguf *g, struct cursor *c, struct inst_msg *msg)
{
    if (g->n_tensors) {
        g->tensors =
            budget_alloc(g->budget, g->n_tensors, sizeof *g->tensors, "the GGUF tensors", msg);
        if (!g->tensors)
            return INST_ENOMEM;
    }
    int rc = gguf_tensor_index_new(g, g->n_tensors, msg);
    for (uint64_t i = 0; i < g->n_tensors && !rc; i++) {
        struct gguf_tensor *t = &g->tensors[i];
        t->declared = c->at;
        rc = take_name(c, "tensor", i, &t->name, msg);
        if (!rc)
            rc = parse_shape(g, c, t, msg);
        if (!rc && !take_u64(c, &t->offset))
            rc = gguf_fail_tensor(g, t, INST_EFORMAT, msg, "the file ends inside its entry");
        if (!rc && !gguf_tensor_index_add(g, i))
            rc = gguf_fail_tensor(g, t, INST_EFORMAT, msg, "the tensor is there twice");
    }
    return rc;
}

// Places tensor data. GGUF wants it in the order of the entries without gaps but for alignment;
// holding files to that finds every damaged offset.
static int place_tensors(struct gguf *g, uint64_t entries_end, struct inst_msg *msg)
{
    uint64_t start, expected = 0;
    if (!g->n_tensors)
        return 0;
    if (!checked_round_up(entries_end, g->alignment, &start))
        return inst_fail(msg, INST_EFORMAT, "%s: file too large", g->name);
    for (uint64_t i = 0; i < g->n_tensors; i++) {
        struct gguf_tensor *t = &g->tensors[i];
        uint64_t end;
        if (t->offset % g->alignment)
            return gguf_fail_tensor(g, t, INST_EFORMAT, msg,
                                    "data offset %" PRIu64 " is not a multiple of %" PRIu64,
                                    t->offset, g->alignment);
        if (!checked_add(start, t->offset, &end) || !checked_add(end, t->bytes, &end) ||
            end > g->size)
            return gguf_fail_tensor(g, t, INST_EFORMAT, msg,
                                    "%" PRIu64 " bytes of data at data offset %" PRIu64
                                    " reach beyond the end of the file (%" PRIu64 " bytes)",
                                    t->bytes, t->offset, g->size);
        if (t->offset != expected)
            return gguf_fail_tensor(g, t, INST_EFORMAT, msg,
                                    "data offset %" PRIu64 " where %" PRIu64 " is expected",
                                    t->offset, expected);
        // In range: bytes and offset are below the file's size.
        checked_round_up(t->offset + t->bytes, g->alignment, &expected);
        t->offset += start;
        t->data = g->base + t->offset;
    }
    return 0;
}

int gguf_parse(struct gguf *g, struct inst_msg *msg)
{
    struct cursor c = {g, 0};
    int rc = parse_header(g, &c, msg);
    if (!rc)
        rc = parse_keys(g, &c, msg);
    if (!rc)
        rc = parse_alignment(g, msg);
    if (!rc)
        rc = parse_tensors(g, &c, msg);
    if (!rc)
        rc = place_tensors(g, c.at, msg);
    return rc;
}
