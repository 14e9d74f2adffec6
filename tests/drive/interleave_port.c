// SPDX-License-Identifier: Apache-2.0
// The door to the drive: the one place of the harness that knows how a command is handed over.
#include "base/checked.h"
#include "interleave_harness.h"

#include <stdlib.h>
#include <string.h>

enum { CALL_STEPS = 20000, CALL_NS = 1000 };

int port_open(struct port *port, const struct port_options *o, struct chance *chance,
              struct inst_msg *msg)
{
    // Its scratch memory grows once and serves every run.
    static struct pool *pool;
    if (!pool && pool_new(&pool, 1, msg))
        return INST_ENOMEM;
    *port = (struct port){.pool = pool};
    int status = chaos_open(&port->flash, &o->geometry, chance, o->views, msg);
    if (status)
        return status;
    late_engine_init(&port->engine, o->late_engine, 1);
    struct drive_limits limits = {
        .dram_bytes = o->dram_bytes,
        .pool = pool,
        .engine = o->late_engine ? &port->engine.engine : NULL,
        .no_read_ahead = o->no_read_ahead,
        .no_row_cache = o->no_row_cache,
    };
    status = drive_open(&port->drive, port->flash, &limits, msg);
    if (status)
        flash_close(port->flash);
    return status;
}

void port_close(struct port *port)
{
    drive_close(port->drive);
    flash_close(port->flash);
    *port = (struct port){0};
}

// Exactly so long: what lies behind is nobody's.
static void *region(size_t bytes)
{
    void *memory = NULL;
    if (bytes && posix_memalign(&memory, 64, bytes))
        abort();
    return memory;
}

struct port_buffer port_buffer_raw(size_t table_bytes, size_t data_bytes)
{
    return (struct port_buffer){.table = region(table_bytes),
                                .table_bytes = table_bytes,
                                .data = region(data_bytes),
                                .data_bytes = data_bytes};
}

struct port_buffer port_buffer_new(uint32_t items, size_t data_bytes)
{
    return port_buffer_raw(items ? table_bytes(items) : 0, data_bytes);
}

struct port_buffer port_buffer_config(const struct space_config *config)
{
    struct port_buffer buffer = port_buffer_raw(CONFIG_BYTES, 0);
    space_config_encode(buffer.table, config);
    return buffer;
}

void port_buffer_table(struct port_buffer *buffer, const struct table_header *header,
                       const struct table_item *items, uint32_t count)
{
    table_put_header(buffer->table, header);
    for (uint32_t i = 0; i < count; i++)
        table_put_item(buffer->table, i, &items[i]);
}

void port_buffer_free(struct port_buffer *buffer)
{
    free(buffer->table);
    free(buffer->data);
    *buffer = (struct port_buffer){0};
}

bool port_submit(struct port *port, struct command *command, const struct port_buffer *buffer)
{
    uint8_t entry[COMMAND_BYTES];
    command->length = (uint32_t)buffer->data_bytes;
    command_encode(entry, command);
    return drive_submit(port->drive, 0, entry, buffer->table, buffer->table_bytes, buffer->data,
                        port->now_ns) == 0;
}

size_t port_step(struct port *port, uint64_t ns, struct completion *out, size_t max)
{
    port->now_ns += ns;
    return drive_step(port->drive, port->now_ns, out, max);
}

int port_call(struct port *port, struct command command, const struct port_buffer *buffer,
              uint64_t *result)
{
    static const struct port_buffer none;
    struct completion done;
    command.cid = UINT16_MAX;
    if (!port_submit(port, &command, buffer ? buffer : &none))
        return INST_ENORESOURCE;
    for (int i = 0; i < CALL_STEPS; i++) {
        if (!port_step(port, CALL_NS, &done, 1))
            continue;
        if (done.cid != command.cid)
            return INST_EINTERNAL;
        if (result)
            *result = done.result;
        return done.status;
    }
    return INST_ETIMEOUT;
}

bool port_abort(struct port *port)
{
    return drive_abort(port->drive, 0);
}

bool port_runnable(const struct port *port)
{
    return drive_runnable(port->drive) || late_engine_has(&port->engine, UINT32_MAX);
}

int port_check(const struct port *port, struct inst_msg *msg)
{
    return drive_check(port->drive, msg);
}

int port_stats(struct port *port, struct drive_stats *stats)
{
    struct port_buffer buffer = port_buffer_new(0, STAT_TABLE_BYTES);
    int status = port_call(port, (struct command){.opcode = OP_STAT}, &buffer, NULL);
    if (!status)
        status = stats_decode(stats, buffer.data, STAT_TABLE_BYTES);
    port_buffer_free(&buffer);
    return status;
}
