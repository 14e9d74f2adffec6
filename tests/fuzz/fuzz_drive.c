// SPDX-License-Identifier: Apache-2.0
// Commands from an enemy: the input is a stream of records {entry, payload length, payload}. The
// drive may refuse anything but must neither crash, hang nor touch memory that is not its own.
#include "base/checked.h"
#include "drive/drive.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TABLE_BYTES = 1 << 10, DATA_BYTES = 1 << 16, RECORD_HEADER = 16, STEPS = 400 };
// What a record says of its command's table and data, bits of its eighth byte.
enum { WELL_FORMED = 1, SHORT_TABLE = 2, WITH_DATA = 64, ANY_SCALE = 128 };
enum { CHECK_EVERY = 8 }; // records: looking at the whole drive takes longer than most commands

struct target {
    struct pool *pool;
    struct flash *flash;
    struct drive *drive;
    uint64_t now_ns;
};

static void settle(struct target *t, size_t wanted)
{
    struct completion done[16];
    size_t got = 0;
    for (int i = 0; i < STEPS && (got < wanted || drive_runnable(t->drive)); i++)
        got += drive_step(t->drive, t->now_ns += 1000000, done, 16);
}

static void open_target(struct target *t, uint8_t shape)
{
    struct flash_geometry g = {.page_bytes = 512,
                               .pages_per_block = 20,
                               .dies = 1 + shape % 3,
                               .channels = 1,
                               .read_bytes = 4096};
    g.blocks = 30 * g.dies;
    if (pool_new(&t->pool, 1, NULL) ||
        flash_ram_open(&t->flash, &g, shape & 4 ? 1u << 30 : 0, NULL))
        abort();
    struct drive_limits limits = {.dram_bytes = 4 << 20, .pool = t->pool, .no_row_cache = true};
    if (drive_open(&t->drive, t->flash, &limits, NULL))
        abort();
    uint8_t entry[COMMAND_BYTES], payload[CONFIG_BYTES] __attribute__((aligned(64)));
    struct space_config config = {.layers = 2,
                                  .kv_heads = 2,
                                  .head_dim = 8,
                                  .group_tokens = 16,
                                  .max_tokens = 128,
                                  .max_sequences = 2,
                                  .q_heads = 4,
                                  .method = shape & 64  ? METHOD_PAGES
                                            : shape & 8 ? METHOD_DENSE
                                                        : METHOD_SPARF,
                                  .piece_tokens = 16,
                                  .piece_keys = shape & 16 ? 5 : 0,
                                  .piece_heads = shape & 32 ? 2 : 0,
                                  .piece_look = shape & 2 ? 3 : 0,
                                  .piece_bits = shape & 2 ? 0 : shape >> 5 & 3u,
                                  .piece_flash = (shape & 3) == 1,
                                  .kv_type = shape & 72 ? shape % 3u : KV_F16,
                                  // Channel rows of 256, 64, 32 or 16 tokens.
                                  .page_channels = 1u << "\0\2\3\4"[shape >> 4 & 3]};
    space_config_encode(payload, &config);
    command_encode(entry, &(struct command){.opcode = OP_CONFIG});
    drive_submit(t->drive, 0, entry, payload, sizeof payload, NULL, 0);
    settle(t, 1);
}

// A CONFIG that is likely to work.
static void put_config(uint8_t *data, const uint8_t *p)
{
    space_config_encode(data, &(struct space_config){.layers = p[0] % 4,
                                                     .kv_heads = p[1] % 5,
                                                     .head_dim = p[2] % 34,
                                                     .group_tokens = 8u << p[3] % 4,
                                                     .max_sequences = p[4] % 4,
                                                     .max_tokens = 1ull << p[5] % 40,
                                                     .q_heads = p[6] % 20,
                                                     .method = p[7] % 4,
                                                     .page_channels = p[8] % 18,
                                                     .piece_tokens = 8u << p[3] / 4 % 5,
                                                     .kv_type = p[8] / 18 % 4,
                                                     .piece_keys = p[4] / 4 % 9 * 4,
                                                     .piece_heads = p[4] / 36 % 4,
                                                     .piece_look = p[5] / 40 * 77u,
                                                     .piece_bits = p[6] / 20 % 4,
                                                     .piece_flash = p[6] / 80});
}

// K, V and queries: the payload over and over, numbers of all kinds.
static void put_data(uint8_t *data, const uint8_t *payload, size_t bytes)
{
    memcpy(data, payload, bytes);
    for (size_t at = bytes; at && at < DATA_BYTES; at *= 2)
        memcpy(data + at, data, min_u64(at, DATA_BYTES - at));
}

// 16 bytes choose the entry's fields from small ranges, so that most commands get past the first
// checks; the payload is used as it comes. `memory` holds table and data.
static void run_record(struct target *t, const uint8_t *record, const uint8_t *payload,
                       size_t payload_bytes, uint8_t *memory)
{
    static const uint8_t opcodes[] = {OP_WRITE, OP_ATTEND,   OP_READ,   OP_COLLECT,
                                      OP_FORK,  OP_RECLAIM,  OP_CONFIG, OP_FLUSH,
                                      OP_STAT,  OP_IDENTIFY, OP_SEAL,   OP_OPEN};
    struct command c = {
        .opcode = record[0] < 240 ? opcodes[record[0] % 12] : record[0],
        .space = record[1] % 3 == 2,
        .layer = record[2] % 3,
        .count = record[3] < 200 ? 1 + record[3] % 3 : record[3] * 65537u,
        .ticket = record[4] % 5,
        .timeout_ms = record[5] % 3 * 100,
        .length = record[6] < 200 ? DATA_BYTES : record[6],
    };
    uint8_t *table = memory, *data = memory + TABLE_BYTES;
    float any[2] = {1, 0}; // scale, soft cap
    memset(memory, 0, TABLE_BYTES + DATA_BYTES);
    if (record[7] & WITH_DATA)
        put_data(data, payload, payload_bytes);
    if (record[7] & ANY_SCALE)
        memcpy(any, payload, min_u64(payload_bytes, sizeof any));
    if (record[7] & WELL_FORMED && c.opcode == OP_CONFIG && payload_bytes >= 9) {
        put_config(table, payload);
    } else if (record[7] & WELL_FORMED) {
        // A well-formed table whose fields the input chooses.
        table_put_header(table,
                         &(struct table_header){.head_first = record[8] % 3,
                                                .head_count = record[9] % 4,
                                                .q_heads = record[10] % 9,
                                                .scale = any[0],
                                                .softcap = any[1],
                                                .method = record[11] % 4 ? 1 + record[11] / 128
                                                                         : record[11] % 16,
                                                .sparf_channels = record[12] % 10,
                                                .sparf_tokens = record[13] % 40,
                                                .sparf_divisor = record[13] / 40,
                                                .sparf_local = record[14] % 70,
                                                .audit = record[14] / 70,
                                                .pages_ratio = (float)(record[12] % 18) / 16,
                                                .pages_mass = (float)(record[13] % 17) / 16,
                                                .pages_local = record[14] % 40,
                                                .pages_rest = record[15] % 2});
        for (uint32_t i = 0; i < 3 && (i + 1) * 10 <= payload_bytes; i++) {
            const uint8_t *p = payload + i * 10;
            table_put_item(table, i,
                           &(struct table_item){
                               .seq = p[0] % 3,
                               .epoch = p[1] > 250,
                               .pos = (uint64_t)p[2] << p[3] % 56 * (p[4] > 240),
                               .n_tokens = p[5] == 255 ? UINT64_MAX : p[5] % 70,
                               .lifetime = p[6] % 2,
                               .parent = p[7] % 3,
                               .layer_first = p[8] % 3,
                               .layer_count = p[9] % 4,
                               .seq_count = p[1] % 4,
                           });
        }
    } else {
        memcpy(table, payload, payload_bytes);
    }
    uint8_t entry[COMMAND_BYTES];
    command_encode(entry, &c);
    size_t bytes = record[7] & SHORT_TABLE ? payload_bytes : TABLE_BYTES;
    if (drive_submit(t->drive, 0, entry, table, bytes, data, t->now_ns) == 0)
        settle(t, 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t bytes)
{
    struct target t = {0};
    // One buffer per command in flight: a COLLECT that waits keeps its own.
    static uint8_t *buffers[64];
    if (bytes < 1)
        return 0;
    open_target(&t, input[0]);
    size_t at = 1;
    for (int n = 0; n < 64 && at + RECORD_HEADER <= bytes; n++) {
        const uint8_t *record = input + at;
        size_t payload = min_u64(record[15], bytes - at - RECORD_HEADER);
        if (!buffers[n] && !(buffers[n] = aligned_alloc(64, TABLE_BYTES + DATA_BYTES)))
            abort();
        run_record(&t, record, record + RECORD_HEADER, payload, buffers[n]);
        at += RECORD_HEADER + payload;
        struct inst_msg msg = {0};
        bool look = n % CHECK_EVERY == 0 || at + RECORD_HEADER > bytes;
        if (look && drive_check(t.drive, &msg)) {
            fprintf(stderr, "%s\n", msg.text);
            abort();
        }
    }
    drive_close(t.drive);
    flash_close(t.flash);
    pool_free(t.pool);
    return 0;
}
