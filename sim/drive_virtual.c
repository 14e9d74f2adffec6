// SPDX-License-Identifier: Apache-2.0
#include "sim/drive_virtual.h"
#include "base/checked.h"
#include "base/timeline.h"
#include "drive/engine_model.h"

static struct engine_params engine_of(const struct csd *c)
{
    return (struct engine_params){.kernels = (uint64_t)c->kernels,
                                  .gemv_units = (uint64_t)c->gemv_units,
                                  .softmax_units = (uint64_t)c->softmax_units,
                                  .gemv = c->gemv_flops,
                                  .softmax = c->softmax_rate,
                                  .argtopk = c->argtopk_rate,
                                  .overlap = c->overlap > 0};
}

struct space_config drive_virtual_config(const struct machine *machine, const struct shape *shape,
                                         enum method_kind method, uint32_t page_channels)
{
    static const uint32_t methods[] = {METHOD_DENSE, METHOD_SPARF, METHOD_PAGES};
    uint32_t heads = drive_heads(machine, shape);
    return (struct space_config){.kv_heads = heads,
                                 .head_dim = shape->head_dim,
                                 .q_heads = heads * (shape->heads / shape->kv_heads),
                                 .method = methods[method],
                                 .page_channels = method == SIM_SPARF ? page_channels : 0};
}

int drive_virtual_call(struct drive_virtual *v, struct command command, void *data)
{
    uint8_t entry[COMMAND_BYTES];
    struct completion done;
    command.space = VIRTUAL_SPACE;
    command_encode(entry, &command);
    int err =
        drive_submit(v->drive, 0, entry, v->table, command_table_bytes(&command), data, v->now_ns);
    while (!err && !drive_step(v->drive, v->now_ns, &done, 1)) {
        uint64_t next = drive_next_ns(v->drive);
        if (next == UINT64_MAX)
            return inst_fail(v->msg, INST_EINTERNAL, "the drive waits for nothing");
        v->now_ns = later(v->now_ns, next);
        v->steps++;
    }
    if (err)
        return inst_fail(v->msg, err, "the drive: %s", inst_status_text(err));
    return done.status ? inst_fail(v->msg, done.status, "the drive: %s", done.text) : 0;
}

int drive_virtual_stats(struct drive_virtual *v, struct drive_stats *stats)
{
    unsigned char data[(STAT_TABLE_BYTES + 63) / 64 * 64] __attribute__((aligned(64)));
    int err = drive_virtual_call(v, (struct command){.opcode = OP_FLUSH}, NULL);
    err = err ? err
              : drive_virtual_call(
                    v, (struct command){.opcode = OP_STAT, .length = STAT_TABLE_BYTES}, data);
    return err ? err : stats_decode(stats, data, STAT_TABLE_BYTES);
}

int drive_virtual_reclaim(struct drive_virtual *v, uint32_t n)
{
    table_put_header(v->table, &(struct table_header){0});
    table_put_item(v->table, 0,
                   &(struct table_item){
                       .n_tokens = UINT64_MAX, .layer_count = v->config.layers, .seq_count = n});
    return drive_virtual_call(v, (struct command){.opcode = OP_RECLAIM, .count = 1}, NULL);
}

int drive_virtual_open(struct drive_virtual *v, const struct drive_virtual_options *o,
                       struct inst_msg *msg)
{
    v->config = o->config;
    v->msg = msg;
    budget_init(&v->budget, o->memory);
    int err = pool_new(&v->pool, 1, msg);
    err = err ? err : flash_nand_options_new(&v->nand, o->where, msg);
    if (err)
        return err;
    struct flash_nand_about about = flash_nand_about(v->nand);
    err = flash_nand_open(&v->flash, v->nand, &about.geometry, &v->budget, msg);
    if (err)
        return err;
    if (!v->config.group_tokens) { // the least whose K of a head fills a page
        v->config.group_tokens = 16;
        while (4ull * v->config.group_tokens * v->config.head_dim <= about.geometry.page_bytes)
            v->config.group_tokens *= 2;
    }
    if (v->config.method == METHOD_PAGES)
        v->config.piece_tokens = (uint32_t)min_u64(v->config.group_tokens, 64);
    struct drive_plan plan;
    err = drive_plan(&plan, &v->flash->geometry, &v->config, 0, msg);
    if (err)
        return err;
    if (plan.good_dram_bytes > o->memory)
        return inst_fail(msg, INST_ENOMEM, "%llu MiB for the drive's DRAM",
                         (unsigned long long)(plan.good_dram_bytes >> 20));
    v->dram_bytes = plan.good_dram_bytes;
    const struct engine_params units = engine_of(o->csd);
    err = engine_model_open(&v->engine, &units, v->pool, v->flash, msg);
    if (err)
        return err;
    struct drive_limits limits = {.dram_bytes = plan.good_dram_bytes,
                                  .pool = v->pool,
                                  .engine = v->engine,
                                  .no_row_cache = true,
                                  .no_read_ahead = true,
                                  .selected = o->selected,
                                  .selected_user = o->selected_user};
    err = drive_open(&v->drive, v->flash, &limits, msg);
    if (err)
        return err;
    space_config_encode(v->table, &v->config);
    return drive_virtual_call(v, (struct command){.opcode = OP_CONFIG}, NULL);
}

void drive_virtual_close(struct drive_virtual *v)
{
    drive_close(v->drive);
    engine_close(v->engine);
    flash_close(v->flash);
    flash_nand_options_free(v->nand);
    pool_free(v->pool);
}
