// SPDX-License-Identifier: Apache-2.0
#include "drive_harness.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct flash_geometry rig_geometry(const struct rig_options *o)
{
    struct flash_geometry g = {
        .page_bytes = o->page_bytes ? o->page_bytes : 4096,
        .pages_per_block = o->pages_per_block ? o->pages_per_block : 67,
        .dies = o->dies ? o->dies : 1,
        .channels = 1,
        .read_bytes = 128 * 1024,
        .request_bytes = o->request_bytes,
    };
    g.blocks = o->blocks ? o->blocks : 4096 / g.dies * g.dies;
    return g;
}

void rig_open(struct rig *rig, const struct rig_options *o)
{
    *rig = (struct rig){
        .config = o->config, .q_heads = o->q_heads, .next_ticket = 1, .round = o->round};
    struct flash_geometry g = rig_geometry(o);
    rig->config.q_heads = o->q_heads;
    if (!rig->config.max_sequences)
        rig->config.max_sequences = 8;
    if (!rig->config.max_tokens)
        rig->config.max_tokens = 4096;
    struct inst_msg *msg = &rig->msg;
    assert_int_equal(pool_new(&rig->pool, o->threads ? o->threads : 1, msg), 0);
    if (o->nand) {
        g = flash_nand_about(o->nand).geometry;
        assert_int_equal(flash_nand_open(&rig->flash, o->nand, &g, NULL, msg), 0);
    } else if (o->directory) {
        struct flash_file_options file = {.directory = o->directory, .geometry = g};
        assert_int_equal(flash_file_open(&rig->flash, &file, msg), 0);
    } else {
        assert_int_equal(flash_ram_open(&rig->flash, &g, o->ram_rate, msg), 0);
    }
    if (o->faults)
        assert_int_equal(flash_fault_open(&rig->flash, rig->flash, o->faults, msg), 0);
    if (o->wrap) {
        o->wrap->geometry = rig->flash->geometry;
        *o->wrap_inner = rig->flash;
        rig->flash = o->wrap;
    }
    struct drive_limits limits = {
        .dram_bytes = o->dram_bytes ? o->dram_bytes : 256 << 20,
        .pool = rig->pool,
        .kernels = o->kernels ? kernels_by_name(o->kernels) : NULL,
        .engine = o->engine,
        .methods = o->methods,
        .no_read_ahead = o->no_read_ahead,
        .no_row_cache = !o->row_cache,
        .row_cache = o->row_cache_bytes,
    };
    if (drive_open(&rig->drive, rig->flash, &limits, msg))
        fail_msg("%s", msg->text);
    uint8_t payload[CONFIG_BYTES] __attribute__((aligned(64)));
    space_config_encode(payload, &rig->config);
    uint64_t group;
    int status =
        rig_call(rig, &(struct command){.opcode = OP_CONFIG, .space = 1}, payload, NULL, &group);
    if (status)
        fail_msg("%s: %s", inst_status_text(status), rig->text);
    rig->config.group_tokens = (uint32_t)group;
}

static void rig_check(struct rig *rig)
{
    struct inst_msg msg = {0};
    if (drive_check(rig->drive, &msg))
        fail_msg("%s", msg.text);
}

void rig_close(struct rig *rig)
{
    rig_check(rig);
    drive_close(rig->drive);
    flash_close(rig->flash);
    pool_free(rig->pool);
}

int rig_call(struct rig *rig, const struct command *command, const void *table, void *data,
             uint64_t *result)
{
    return rig_call_bytes(rig, command, table, command_table_bytes(command), data, result);
}

int rig_call_bytes(struct rig *rig, const struct command *command, const void *table,
                   size_t table_bytes, void *data, uint64_t *result)
{
    uint8_t entry[COMMAND_BYTES];
    struct completion done;
    command_encode(entry, command);
    assert_int_equal(drive_submit(rig->drive, 0, entry, table, table_bytes, data, rig->now_ns), 0);
    for (int i = 0; i < 1000000; i++) {
        rig->now_ns += 1000;
        if (drive_step(rig->drive, rig->now_ns, &done, 1)) {
            assert_int_equal(done.cid, command->cid);
            memcpy(rig->text, done.text, sizeof rig->text);
            if (result)
                *result = done.result;
            return done.status;
        }
        if (!drive_runnable(rig->drive) && rig->flash->ops->wait)
            rig->flash->ops->wait(rig->flash, 1000000);
    }
    fail_msg("%s never completed", opcode_name(command->opcode));
    return -1;
}

void rig_stats(struct rig *rig, struct drive_stats *stats)
{
    uint8_t table[STAT_TABLE_BYTES] __attribute__((aligned(64)));
    assert_int_equal(rig_call(rig, &(struct command){.opcode = OP_FLUSH}, NULL, NULL, NULL), 0);
    struct command command = {.opcode = OP_STAT, .length = sizeof table};
    assert_int_equal(rig_call(rig, &command, NULL, table, NULL), 0);
    assert_int_equal(stats_decode(stats, table, sizeof table), 0);
    rig_check(rig);
}

static float noise(uint64_t x)
{
    x = (x ^ (x >> 31)) * 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 29)) * 0xbf58476d1ce4e5b9u;
    x ^= x >> 32;
    return (float)(int32_t)(uint32_t)x / 2147483648.0f;
}

uint16_t rig_value(const struct rig *rig, uint32_t content, uint32_t layer, uint32_t head,
                   uint64_t token, uint32_t d, bool v)
{
    uint64_t x = rig->seed;
    x = x * 1000003 + content;
    x = x * 1000003 + layer;
    x = x * 1000003 + head;
    x = x * 1000003 + token;
    x = x * 1000003 + d * 2 + v;
    return kernel_f32_to_f16(2 * noise(x));
}

void rig_row(const struct rig *rig, uint32_t content, uint32_t layer, uint32_t head, uint64_t token,
             bool v, bool stored, uint16_t *row)
{
    uint16_t rows[2][KERNEL_HEAD_DIM_MAX];
    uint32_t dim = rig->config.head_dim;
    for (uint32_t i = 0; i < 2 * dim; i++)
        rows[i / dim][i % dim] = rig_value(rig, content, layer, head, token, i % dim, i >= dim);
    for (int again = 0; again < 1 + stored; again++) {
        uint32_t type = again ? rig->config.kv_type : rig->round;
        kv_round_value(type, rows[1], rows[0], dim);
        kv_round(type, rows[0], dim);
    }
    memcpy(row, rows[v], dim * sizeof *row);
}

int rig_write(struct rig *rig, uint32_t seq, uint32_t content, uint32_t layer, uint64_t pos,
              uint64_t n, uint32_t first, uint32_t count)
{
    uint32_t dim = rig->config.head_dim;
    uint64_t bytes;
    slab_bytes(count, n, dim, &bytes);
    size_t total = (bytes + 63) / 64 * 64;
    uint8_t table[128] __attribute__((aligned(64)));
    uint16_t *data = aligned_alloc(64, total), *p = data;
    table_put_header(table, &(struct table_header){.head_first = first, .head_count = count});
    table_put_item(table, 0,
                   &(struct table_item){.seq = seq, .epoch = 1, .pos = pos, .n_tokens = n});
    for (uint32_t h = first; h < first + count; h++)
        for (int v = 0; v < 2; v++)
            for (uint64_t t = pos; t < pos + n; t++, p += dim)
                rig_row(rig, content, layer, h, t, v, false, p);
    int status = rig_call(
        rig,
        &(struct command){
            .opcode = OP_WRITE, .space = 1, .layer = layer, .count = 1, .length = (uint32_t)total},
        table, data, NULL);
    free(data);
    return status;
}

int rig_write_all(struct rig *rig, uint32_t seq, uint32_t content, uint64_t pos, uint64_t n)
{
    int status = 0;
    for (uint32_t l = 0; !status && l < rig->config.layers; l++)
        status = rig_write(rig, seq, content, l, pos, n, 0, rig->config.kv_heads);
    return status;
}

int rig_read(struct rig *rig, uint32_t seq, uint32_t layer, uint64_t pos, uint64_t n,
             uint32_t first, uint32_t count, uint16_t *out)
{
    uint8_t table[128] __attribute__((aligned(64)));
    uint32_t ticket = rig->next_ticket++;
    uint64_t bytes;
    slab_bytes(count, n, rig->config.head_dim, &bytes);
    table_put_header(table, &(struct table_header){.head_first = first, .head_count = count});
    table_put_item(table, 0,
                   &(struct table_item){.seq = seq, .epoch = 1, .pos = pos, .n_tokens = n});
    struct command command = {
        .opcode = OP_READ, .space = 1, .layer = layer, .count = 1, .ticket = ticket};
    int status = rig_call(rig, &command, table, NULL, NULL);
    if (status)
        return status;
    size_t total = (bytes + 63) / 64 * 64;
    void *buffer = aligned_alloc(64, total);
    command = (struct command){
        .opcode = OP_COLLECT, .space = 1, .ticket = ticket, .length = (uint32_t)total};
    status = rig_call(rig, &command, NULL, buffer, NULL);
    memcpy(out, buffer, bytes);
    free(buffer);
    return status;
}

void rig_expect_content(struct rig *rig, uint32_t seq, uint32_t content, uint32_t layer,
                        uint64_t pos, uint64_t n)
{
    uint32_t dim = rig->config.head_dim, heads = rig->config.kv_heads;
    uint64_t bytes;
    slab_bytes(heads, n, dim, &bytes);
    uint16_t *out = malloc(bytes), *p = out, row[KERNEL_HEAD_DIM_MAX];
    int status = rig_read(rig, seq, layer, pos, n, 0, heads, out);
    if (status)
        fail_msg("READ of sequence %u: %s", seq, rig->text);
    for (uint32_t h = 0; h < heads; h++)
        for (int v = 0; v < 2; v++)
            for (uint64_t t = pos; t < pos + n; t++) {
                rig_row(rig, content, layer, h, t, v, true, row);
                for (uint32_t d = 0; d < dim; d++, p++)
                    if (*p != row[d])
                        fail_msg("sequence %u layer %u head %u token %llu %c[%u] differs", seq,
                                 layer, h, (unsigned long long)t, v ? 'v' : 'k', d);
            }
    free(out);
}

void rig_query_vector(const struct rig *rig, const struct rig_query *query, uint32_t layer,
                      uint32_t q_head, float *q)
{
    for (uint32_t d = 0; d < rig->config.head_dim; d++)
        q[d] = 3 * noise(query->pos * 7919 + query->content * 104729 + layer * 31 + q_head * 65537 +
                         d * 2654435761u + 17);
}

int rig_attend(struct rig *rig, uint32_t layer, struct rig_query *queries, uint32_t count,
               float *out, float *lse)
{
    uint32_t dim = rig->config.head_dim, heads = rig->config.kv_heads;
    struct attend_layout layout;
    assert_true(attend_layout(&layout, count, rig->q_heads, heads, dim, true));
    uint8_t *in = aligned_alloc(64, (layout.in_bytes + 63) / 64 * 64);
    uint8_t *table = aligned_alloc(64, table_bytes(count));
    table_put_header(table, &(struct table_header){.method = rig->method,
                                                   .pages_ratio = rig->ratio,
                                                   .q_heads = rig->q_heads,
                                                   .scale = 1 / sqrtf((float)dim),
                                                   .softcap = rig->softcap});
    for (uint32_t i = 0; i < count; i++) {
        const struct rig_query *query = &queries[i];
        table_put_item(table, i,
                       &(struct table_item){.seq = query->seq,
                                            .epoch = query->epoch ? query->epoch : 1,
                                            .pos = query->pos,
                                            .n_tokens = query->append,
                                            .window = query->window});
        for (uint32_t h = 0; h < rig->q_heads; h++)
            rig_query_vector(rig, query, layer, h,
                             (float *)(in + layout.q) + ((size_t)i * rig->q_heads + h) * dim);
        for (uint32_t h = 0; h < heads; h++) {
            size_t at = ((size_t)i * heads + h) * dim;
            rig_row(rig, query->content, layer, h, query->pos, false, false,
                    (uint16_t *)(in + layout.k) + at);
            rig_row(rig, query->content, layer, h, query->pos, true, false,
                    (uint16_t *)(in + layout.v) + at);
        }
    }
    uint32_t ticket = rig->next_ticket++;
    int status = rig_call(rig,
                          &(struct command){.opcode = OP_ATTEND,
                                            .space = 1,
                                            .layer = layer,
                                            .count = count,
                                            .ticket = ticket,
                                            .length = (uint32_t)layout.in_bytes},
                          table, in, NULL);
    free(table);
    free(in);
    if (status)
        return status;
    uint8_t *result = aligned_alloc(64, (layout.out_bytes + 63) / 64 * 64);
    status = rig_call(rig,
                      &(struct command){.opcode = OP_COLLECT,
                                        .space = 1,
                                        .ticket = ticket,
                                        .length = (uint32_t)layout.out_bytes},
                      NULL, result, NULL);
    assert_int_equal(status, 0);
    memcpy(out, result + layout.out, (size_t)count * rig->q_heads * dim * sizeof(float));
    memcpy(lse, result + layout.lse, (size_t)count * rig->q_heads * sizeof(float));
    for (uint32_t i = 0; i < count; i++) {
        queries[i].status =
            inst_status_from_nvme((uint16_t)((uint32_t *)(result + layout.status))[i]);
        status = status ? status : queries[i].status;
    }
    free(result);
    return status;
}

void rig_expect_attention(struct rig *rig, uint32_t layer, const struct rig_query *query,
                          const float *out, const float *lse)
{
    uint32_t dim = rig->config.head_dim, group = rig->q_heads / rig->config.kv_heads;
    uint64_t n = query->pos + query->append;
    double *p = malloc(n * sizeof *p);
    float q[KERNEL_HEAD_DIM_MAX];
    uint16_t row[KERNEL_HEAD_DIM_MAX];
    for (uint32_t h = 0; h < rig->q_heads; h++) {
        double max = -INFINITY, sum = 0, acc[KERNEL_HEAD_DIM_MAX] = {0};
        rig_query_vector(rig, query, layer, h, q);
        for (uint64_t t = query->window; t < n; t++) {
            p[t] = 0;
            rig_row(rig, query->content, layer, h / group, t, false, true, row);
            for (uint32_t d = 0; d < dim; d++)
                p[t] += (double)q[d] * (double)kernel_f16_to_f32(row[d]);
            p[t] *= 1 / sqrt((double)dim);
            if (rig->softcap > 0)
                p[t] = (double)rig->softcap * tanh(p[t] / (double)rig->softcap);
            max = fmax(max, p[t]);
        }
        for (uint64_t t = query->window; t < n; t++) {
            double e = exp(p[t] - max);
            sum += e;
            rig_row(rig, query->content, layer, h / group, t, true, true, row);
            for (uint32_t d = 0; d < dim; d++)
                acc[d] += e * (double)kernel_f16_to_f32(row[d]);
        }
        for (uint32_t d = 0; d < dim; d++)
            if (!(fabs(acc[d] / sum - (double)out[h * dim + d]) < 2e-5))
                fail_msg("layer %u pos %llu head %u dim %u: %.9g instead of %.9g", layer,
                         (unsigned long long)query->pos, h, d, (double)out[h * dim + d],
                         acc[d] / sum);
        assert_true(fabs(max + log(sum) - (double)lse[h]) < 1e-4);
    }
    free(p);
}

int rig_reclaim(struct rig *rig, uint32_t seq, uint64_t pos, uint64_t n, uint32_t layer_first,
                uint32_t layer_count)
{
    uint8_t table[128] __attribute__((aligned(64)));
    table_put_header(table, &(struct table_header){0});
    table_put_item(table, 0,
                   &(struct table_item){.seq = seq,
                                        .epoch = 1,
                                        .pos = pos,
                                        .n_tokens = n,
                                        .layer_first = layer_first,
                                        .layer_count = layer_count});
    return rig_call(rig, &(struct command){.opcode = OP_RECLAIM, .space = 1, .count = 1}, table,
                    NULL, NULL);
}

int rig_fork(struct rig *rig, uint32_t parent, uint32_t child, uint64_t pos)
{
    uint8_t table[128] __attribute__((aligned(64)));
    table_put_header(table, &(struct table_header){0});
    table_put_item(table, 0,
                   &(struct table_item){
                       .seq = child, .epoch = 1, .pos = pos, .parent = parent, .parent_epoch = 1});
    return rig_call(rig, &(struct command){.opcode = OP_FORK, .space = 1, .count = 1}, table, NULL,
                    NULL);
}
