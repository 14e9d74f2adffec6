// SPDX-License-Identifier: Apache-2.0
// The same ATTEND on a second drive that does one thing at a time over flash that neither waits nor
// fails: results must be equal in bits, wherever the data lay and whatever went on beside.
#include "base/checked.h"
#include "interleave_run.h"

#include <stdlib.h>
#include <string.h>

enum { SHADOW_DRAM_EXTRA = 1 << 20 };

static bool shadow_open(struct run *run)
{
    struct port_options o = {.geometry = {.dies = 1, .channels = 1, .read_bytes = 16384}};
    struct inst_msg msg = {0};
    uint64_t least = 0;
    o.geometry.page_bytes = run->shape.geometry.page_bytes; // channels of a page fit in it
    o.geometry.pages_per_block = 200;
    o.geometry.blocks = 600;
    for (uint32_t i = 0; i < run->n_spaces; i++) {
        struct drive_plan plan = {0};
        if (drive_plan(&plan, &o.geometry, &run->spaces[i].config, 0, &msg))
            return wrong(run, "shadow: %s", msg.text);
        least += plan.good_dram_bytes;
    }
    o.dram_bytes = least + SHADOW_DRAM_EXTRA;
    struct port *port = &run->shadow.port;
    if (port_open(port, &o, &run->chance, &msg))
        return wrong(run, "shadow: %s", msg.text);
    run->shadow.open = true;
    chaos_calm(port->flash, true);
    for (uint32_t i = 0; i < run->n_spaces; i++) {
        struct port_buffer buffer = port_buffer_config(&run->spaces[i].config);
        int status =
            port_call(port, (struct command){.opcode = OP_CONFIG, .space = i}, &buffer, NULL);
        port_buffer_free(&buffer);
        if (status)
            return wrong(run, "shadow: CONFIG: %s", inst_status_text(status));
    }
    return true;
}

void shadow_close(struct run *run)
{
    if (run->shadow.open)
        port_close(&run->shadow.port);
    run->shadow.open = false;
}

static int shadow_write(struct run *run, const struct ticket *t, const struct expected *e,
                        struct table_item *item)
{
    const struct space_config *c = &run->spaces[t->space].config;
    uint32_t n = e->end - e->first, dim = c->head_dim;
    uint64_t bytes = 0;
    slab_bytes(c->kv_heads, e->end, dim, &bytes);
    struct port_buffer buffer = port_buffer_new(1, (bytes + 63) / 64 * 64);
    uint16_t *p = (uint16_t *)buffer.data;
    item->n_tokens = e->end;
    port_buffer_table(&buffer, &(struct table_header){.head_count = c->kv_heads}, item, 1);
    for (uint32_t h = 0; h < c->kv_heads; h++) {
        for (int v = 0; v < 2; v++) {
            for (uint32_t token = 0; token < e->end; token++, p += dim) {
                // Nothing before the window counts.
                uint32_t who = token < e->first ? 1 : e->who[h * n + token - e->first];
                memcpy(p, model_row(who, t->layer, h, token, v), 2 * dim);
            }
        }
    }
    int status = port_call(
        &run->shadow.port,
        (struct command){.opcode = OP_WRITE, .space = t->space, .layer = t->layer, .count = 1},
        &buffer, NULL);
    port_buffer_free(&buffer);
    return status;
}

static int shadow_attend(struct run *run, const struct ticket *t, uint32_t index,
                         struct table_item *item, struct port_buffer *out)
{
    const struct space_config *c = &run->spaces[t->space].config;
    struct attend_layout layout;
    struct command command = {
        .opcode = OP_ATTEND, .space = t->space, .layer = t->layer, .count = 1, .ticket = 1};
    item->pos = item->n_tokens;
    item->n_tokens = 0;
    item->window = t->items[index].window;
    attend_layout(&layout, 1, t->header.q_heads, c->kv_heads, c->head_dim, false);
    struct port_buffer in = port_buffer_new(1, layout.in_bytes);
    port_buffer_table(&in, &t->header, item, 1);
    for (uint32_t h = 0; h < t->header.q_heads; h++)
        memcpy((float *)(in.data + layout.q) + (size_t)h * c->head_dim,
               model_query(t->q_name + index * (Q_NAMES / RUN_ITEMS) + h), 4 * c->head_dim);
    int status = port_call(&run->shadow.port, command, &in, NULL);
    port_buffer_free(&in);
    *out = port_buffer_new(0, layout.out_bytes);
    if (!status)
        status = port_call(&run->shadow.port, (struct command){.opcode = OP_COLLECT, .ticket = 1},
                           out, NULL);
    if (!status)
        status = inst_status_from_nvme((uint16_t) * (const uint32_t *)(out->data + layout.status));
    return status;
}

bool shadow_check(struct run *run, const struct ticket *t, uint32_t index, const float *out,
                  const float *lse, const float *captured)
{
    const struct space_config *c = &run->spaces[t->space].config;
    const struct expected *e = &t->expected[index];
    struct table_item item = {.seq = 1, .epoch = 1};
    struct attend_layout layout;
    struct port_buffer got = {0};
    if (!run->shadow.open && !shadow_open(run))
        return false;
    int status = e->end ? shadow_write(run, t, e, &item) : 0;
    if (!status && e->end)
        status = shadow_attend(run, t, index, &item, &got);
    if (status) {
        port_buffer_free(&got);
        return wrong(run, "shadow: %s", inst_status_text(status));
    }
    if (!e->end)
        return true;
    attend_layout(&layout, 1, t->header.q_heads, c->kv_heads, c->head_dim, false);
    size_t heads = t->header.q_heads * sizeof(float);
    bool same = !memcmp(out, got.data + layout.out, heads * c->head_dim) &&
                !memcmp(lse, got.data + layout.lse, heads) &&
                !memcmp(captured, got.data + layout.captured, heads);
    float wanted = *(const float *)(got.data + layout.out);
    float wanted_lse = *(const float *)(got.data + layout.lse);
    port_buffer_free(&got);
    struct port_buffer table = port_buffer_new(1, 0);
    item =
        (struct table_item){.seq = 1, .epoch = 1, .n_tokens = UINT64_MAX, .layer_count = c->layers};
    port_buffer_table(&table, &(struct table_header){0}, &item, 1);
    status = port_call(&run->shadow.port,
                       (struct command){.opcode = OP_RECLAIM, .space = t->space, .count = 1},
                       &table, NULL);
    port_buffer_free(&table);
    if (status)
        return wrong(run, "shadow: RECLAIM: %s", inst_status_text(status));
    run->counts->shadows_checked++;
    if (same)
        return true;
    if (known(FAULT_ROW_OF_ANOTHER)) {
        forgive(run, FAULT_ROW_OF_ANOTHER);
        run->over = true;
        return true;
    }
    return wrong(run,
                 "ATTEND (method %u) of space %u sequence %u layer %u over tokens [%u, %u): bits "
                 "differ from those of an idle drive: out %.9g instead of %.9g, lse %.9g instead "
                 "of %.9g",
                 t->header.method, t->space, e->seq, t->layer, e->first, e->end, (double)out[0],
                 (double)wanted, (double)lse[0], (double)wanted_lse);
}
