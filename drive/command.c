// SPDX-License-Identifier: Apache-2.0
#include "drive/command.h"
#include "base/checked.h"
#include "base/le.h"

#include <string.h>

void command_encode(uint8_t entry[COMMAND_BYTES], const struct command *command)
{
    memset(entry, 0, COMMAND_BYTES);
    entry[0] = command->opcode;
    le_put16(entry + 2, command->cid);
    le_put32(entry + 40, command->space);
    le_put32(entry + 44, command->layer);
    le_put32(entry + 48, command->count);
    le_put32(entry + 52, command->ticket);
    le_put32(entry + 56, command->length);
    le_put32(entry + 60, command->timeout_ms);
}

void command_decode(struct command *command, const uint8_t entry[COMMAND_BYTES])
{
    *command = (struct command){
        .opcode = entry[0],
        .cid = le_get16(entry + 2),
        .space = le_get32(entry + 40),
        .layer = le_get32(entry + 44),
        .count = le_get32(entry + 48),
        .ticket = le_get32(entry + 52),
        .length = le_get32(entry + 56),
        .timeout_ms = le_get32(entry + 60),
    };
}

// Dwords 0 and 1 carry the result; the status sits above the phase bit, as in NVMe.
void completion_encode(uint8_t entry[COMPLETION_BYTES], const struct completion *completion)
{
    memset(entry, 0, COMPLETION_BYTES);
    le_put64(entry, completion->result);
    le_put16(entry + 12, completion->cid);
    le_put16(entry + 14, (uint16_t)(inst_status_to_nvme(completion->status) << 1));
}

void completion_decode(struct completion *completion, const uint8_t entry[COMPLETION_BYTES])
{
    *completion = (struct completion){
        .result = le_get64(entry),
        .cid = le_get16(entry + 12),
        .status = inst_status_from_nvme((uint16_t)(le_get16(entry + 14) >> 1)),
    };
}

int space_config_check_together(const struct space_config *config, struct inst_msg *msg)
{
    const uint32_t together = space_config_together(config);
    if (config->kv_heads % together == 0)
        return 0;
    return inst_fail(msg, INST_EINVAL, "CONFIG: %u KV heads do not choose together by %u",
                     config->kv_heads, together);
}

void space_config_encode(uint8_t out[CONFIG_BYTES], const struct space_config *config)
{
    memset(out, 0, CONFIG_BYTES);
    le_put16(out, TABLE_VERSION);
    out[2] = (uint8_t)config->piece_bits;
    out[3] = (uint8_t)config->piece_flash;
    le_put32(out + 4, config->layers);
    le_put32(out + 8, config->kv_heads);
    le_put32(out + 12, config->head_dim);
    le_put32(out + 16, config->group_tokens);
    le_put32(out + 20, config->max_sequences);
    le_put64(out + 24, config->max_tokens);
    le_put32(out + 32, config->q_heads);
    le_put32(out + 36, config->method);
    le_put32(out + 40, config->page_channels);
    le_put32(out + 44, config->piece_tokens);
    le_put32(out + 48, config->kv_type);
    le_put32(out + 52, config->piece_keys);
    le_put32(out + 56, config->piece_heads);
    le_put32(out + 60, config->piece_look);
}

int space_config_decode(struct space_config *config, const void *in, size_t bytes)
{
    const uint8_t *p = in;
    if (bytes < CONFIG_BYTES || le_get16(p) != TABLE_VERSION)
        return INST_EINVAL;
    *config = (struct space_config){
        .layers = le_get32(p + 4),
        .kv_heads = le_get32(p + 8),
        .head_dim = le_get32(p + 12),
        .group_tokens = le_get32(p + 16),
        .max_sequences = le_get32(p + 20),
        .max_tokens = le_get64(p + 24),
        .q_heads = le_get32(p + 32),
        .method = le_get32(p + 36),
        .page_channels = le_get32(p + 40),
        .piece_tokens = le_get32(p + 44),
        .kv_type = le_get32(p + 48),
        .piece_keys = le_get32(p + 52),
        .piece_heads = le_get32(p + 56),
        .piece_look = le_get32(p + 60),
        .piece_bits = p[2],
        .piece_flash = p[3],
    };
    return 0;
}

size_t table_bytes(uint32_t count)
{
    return TABLE_HEADER_BYTES + (size_t)count * TABLE_ITEM_BYTES;
}

size_t command_table_bytes(const struct command *command)
{
    switch (command->opcode) {
    case OP_CONFIG:
        return CONFIG_BYTES;
    case OP_WRITE:
    case OP_READ:
    case OP_ATTEND:
    case OP_FORK:
    case OP_RECLAIM:
        return table_bytes(command->count);
    default:
        return 0;
    }
}

void table_put_header(void *table, const struct table_header *header)
{
    uint8_t *p = table;
    memset(p, 0, TABLE_HEADER_BYTES);
    le_put16(p, TABLE_VERSION);
    le_put32(p + 4, header->head_first);
    le_put32(p + 8, header->head_count);
    le_put32(p + 12, header->method);
    le_put32(p + 16, header->q_heads);
    le_putf32(p + 20, header->scale);
    le_putf32(p + 24, header->softcap);
    le_put32(p + 28, header->sparf_channels);
    le_put32(p + 32, header->sparf_tokens);
    le_put32(p + 36, header->sparf_divisor);
    le_put32(p + 40, header->sparf_local);
    le_put32(p + 44, header->audit);
    le_putf32(p + 48, header->pages_ratio);
    le_putf32(p + 52, header->pages_mass);
    le_put32(p + 56, header->pages_local);
    le_put32(p + 60, header->pages_rest);
}

int table_get_header(struct table_header *header, const void *table, size_t bytes, uint32_t count)
{
    const uint8_t *p = table;
    if (bytes < table_bytes(count) || le_get16(p) != TABLE_VERSION)
        return INST_EINVAL;
    *header = (struct table_header){
        .head_first = le_get32(p + 4),
        .head_count = le_get32(p + 8),
        .method = le_get32(p + 12),
        .q_heads = le_get32(p + 16),
        .scale = le_getf32(p + 20),
        .softcap = le_getf32(p + 24),
        .sparf_channels = le_get32(p + 28),
        .sparf_tokens = le_get32(p + 32),
        .sparf_divisor = le_get32(p + 36),
        .sparf_local = le_get32(p + 40),
        .audit = le_get32(p + 44),
        .pages_ratio = le_getf32(p + 48),
        .pages_mass = le_getf32(p + 52),
        .pages_local = le_get32(p + 56),
        .pages_rest = le_get32(p + 60),
    };
    return 0;
}

void table_put_item(void *table, uint32_t index, const struct table_item *item)
{
    uint8_t *p = (uint8_t *)table + table_bytes(index);
    memset(p, 0, TABLE_ITEM_BYTES);
    le_put32(p, item->seq);
    le_put32(p + 4, item->epoch);
    le_put64(p + 8, item->pos);
    le_put64(p + 16, item->n_tokens);
    le_put32(p + 24, item->lifetime);
    le_put32(p + 28, item->parent);
    le_put32(p + 32, item->parent_epoch);
    le_put32(p + 36, item->layer_first);
    le_put32(p + 40, item->layer_count);
    le_put32(p + 44, item->seq_count);
    le_put64(p + 48, item->window);
}

void table_get_item(struct table_item *item, const void *table, uint32_t index)
{
    const uint8_t *p = (const uint8_t *)table + table_bytes(index);
    *item = (struct table_item){
        .seq = le_get32(p),
        .epoch = le_get32(p + 4),
        .pos = le_get64(p + 8),
        .n_tokens = le_get64(p + 16),
        .lifetime = le_get32(p + 24),
        .parent = le_get32(p + 28),
        .parent_epoch = le_get32(p + 32),
        .layer_first = le_get32(p + 36),
        .layer_count = le_get32(p + 40),
        .seq_count = le_get32(p + 44),
        .window = le_get64(p + 48),
    };
}

bool slab_bytes(uint64_t heads, uint64_t n_tokens, uint64_t head_dim, uint64_t *out)
{
    uint64_t bytes;
    return checked_mul(heads, n_tokens, &bytes) && checked_mul(bytes, head_dim, &bytes) &&
           checked_mul(bytes, 4, out); // K and V, two bytes each
}

// Appends a region of a * b * c * element bytes at the 64-aligned end of what lies before.
static bool place(uint64_t *end, uint64_t *offset, uint64_t a, uint64_t b, uint64_t c,
                  uint64_t element)
{
    uint64_t bytes;
    if (!checked_round_up(*end, 64, offset) || !checked_mul(a, b, &bytes) ||
        !checked_mul(bytes, c, &bytes) || !checked_mul(bytes, element, &bytes))
        return false;
    return checked_add(*offset, bytes, end);
}

bool attend_layout(struct attend_layout *layout, uint32_t count, uint32_t q_heads,
                   uint32_t kv_heads, uint32_t head_dim, bool append)
{
    uint64_t in = 0, out = 0;
    *layout = (struct attend_layout){0};
    if (!place(&in, &layout->q, count, q_heads, head_dim, sizeof(float)))
        return false;
    if (append && (!place(&in, &layout->k, count, kv_heads, head_dim, sizeof(uint16_t)) ||
                   !place(&in, &layout->v, count, kv_heads, head_dim, sizeof(uint16_t))))
        return false;
    layout->in_bytes = in;
    if (!place(&out, &layout->out, count, q_heads, head_dim, sizeof(float)) ||
        !place(&out, &layout->lse, count, q_heads, 1, sizeof(float)) ||
        !place(&out, &layout->captured, count, q_heads, 1, sizeof(float)) ||
        !place(&out, &layout->status, count, 1, 1, sizeof(uint32_t)))
        return false;
    layout->out_bytes = out;
    return true;
}

#define COUNTER_PUT(name, text)                                                                    \
    le_put64(p, values->name);                                                                     \
    p += 8;
#define COUNTER_GET(name, text)                                                                    \
    if (n) {                                                                                       \
        values->name = le_get64(p);                                                                \
        p += 8;                                                                                    \
        n--;                                                                                       \
    }

static uint8_t *counters_put_header(uint8_t *out, size_t struct_bytes)
{
    memset(out, 0, 8);
    le_put16(out, TABLE_VERSION);
    le_put16(out + 2, (uint16_t)(struct_bytes / 8));
    return out + 8;
}

// How many values can be read; an older table is shorter and leaves the rest zero.
static int counters_get_header(const uint8_t *in, size_t bytes, size_t *n)
{
    if (bytes < 8 || le_get16(in) != TABLE_VERSION)
        return INST_EINVAL;
    *n = le_get16(in + 2);
    return *n * 8 > bytes - 8 ? INST_EINVAL : 0;
}

void identity_encode(uint8_t out[IDENTIFY_TABLE_BYTES], const struct drive_identity *values)
{
    uint8_t *p = counters_put_header(out, sizeof *values);
    IDENTIFY_MAP(COUNTER_PUT)
}

int identity_decode(struct drive_identity *values, const void *in, size_t bytes)
{
    size_t n;
    memset(values, 0, sizeof *values);
    int status = counters_get_header(in, bytes, &n);
    if (status)
        return status;
    const uint8_t *p = (const uint8_t *)in + 8;
    IDENTIFY_MAP(COUNTER_GET)
    return 0;
}

const struct stat_row stat_rows[] = {
#define ROW_DRIVE(name, how, text) {#name, text, STAT_##how, STAT_OF_DRIVE},
#define ROW_AUDIT(name, how, text) {#name, text, STAT_##how, STAT_OF_AUDITS},
#define ROW_SPARF(name, how, text) {#name, text, STAT_##how, METHOD_SPARF},
#define ROW_PAGES(name, how, text) {#name, text, STAT_##how, METHOD_PAGES},
    STAT_DRIVE_MAP(ROW_DRIVE) STAT_AUDIT_MAP(ROW_AUDIT) STAT_SPARF_MAP(ROW_SPARF)
        STAT_PAGES_MAP(ROW_PAGES)};

void stats_encode(uint8_t out[STAT_TABLE_BYTES], const struct drive_stats *values)
{
    uint8_t *p = counters_put_header(out, sizeof *values);
    for (size_t i = 0; i < STAT_ROWS; i++)
        le_put64(p + 8 * i, stat_of(values, i));
}

int stats_decode(struct drive_stats *values, const void *in, size_t bytes)
{
    size_t n;
    memset(values, 0, sizeof *values);
    int status = counters_get_header(in, bytes, &n);
    if (status)
        return status;
    const uint8_t *p = (const uint8_t *)in + 8;
    for (size_t i = 0; i < n && i < STAT_ROWS; i++)
        *stat_at(values, i) = le_get64(p + 8 * i);
    return 0;
}

const char *opcode_name(uint8_t opcode)
{
    switch (opcode) {
    case OP_IDENTIFY:
        return "IDENTIFY";
    case OP_STAT:
        return "STAT";
    case OP_CONFIG:
        return "CONFIG";
    case OP_WRITE:
        return "WRITE";
    case OP_READ:
        return "READ";
    case OP_ATTEND:
        return "ATTEND";
    case OP_COLLECT:
        return "COLLECT";
    case OP_FORK:
        return "FORK";
    case OP_RECLAIM:
        return "RECLAIM";
    case OP_FLUSH:
        return "FLUSH";
    case OP_SEAL:
        return "SEAL";
    case OP_OPEN:
        return "OPEN";
    case OP_REMOVE:
        return "REMOVE";
    case OP_ABORT:
        return "ABORT";
    default:
        return "unknown command";
    }
}
