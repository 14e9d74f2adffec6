// SPDX-License-Identifier: Apache-2.0
// Each fault of known_faults[] by itself, with as little around it as shows it. A known one must
// still show, so that its repair is noticed here; any other must not.
#include "base/checked.h"
#include "interleave_harness.h"
#include "interleave_model.h"

#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static const uint64_t second = 1000000000;

// ---- a drive and plain calls -------------------------------------------------------------------

struct box {
    struct port port;
    struct chance chance;
    struct space_config config; // of space 0
    uint32_t ticket;
};

static void box_open(struct box *box, const struct space_config *config,
                     const struct port_options *options)
{
    struct inst_msg msg = {0};
    *box = (struct box){.config = *config, .ticket = 1};
    if (port_open(&box->port, options, &box->chance, &msg))
        fail_msg("%s", msg.text);
}

static int box_config(struct box *box, uint32_t space)
{
    struct port_buffer buffer = port_buffer_config(&box->config);
    int status =
        port_call(&box->port, (struct command){.opcode = OP_CONFIG, .space = space}, &buffer, NULL);
    port_buffer_free(&buffer);
    return status;
}

// A drive over flash that answers at once, with one space.
static void box_plain(struct box *box, const struct space_config *config,
                      const struct flash_geometry *geometry, uint64_t dram_bytes, bool read_ahead)
{
    struct port_options o = {.geometry = *geometry,
                             .dram_bytes = dram_bytes,
                             .no_read_ahead = !read_ahead,
                             .no_row_cache = true};
    box_open(box, config, &o);
    assert_int_equal(box_config(box, 0), 0);
}

static void box_close(struct box *box)
{
    port_close(&box->port);
}

static struct drive_stats box_stats(struct box *box)
{
    struct drive_stats stats;
    assert_int_equal(port_call(&box->port, (struct command){.opcode = OP_FLUSH}, NULL, NULL), 0);
    assert_int_equal(port_stats(&box->port, &stats), 0);
    return stats;
}

// One command that is all table.
static int box_table(struct box *box, uint8_t opcode, uint32_t ticket,
                     const struct table_item *items, uint32_t count)
{
    struct port_buffer buffer = port_buffer_new(count, 0);
    struct command command = {.opcode = opcode, .count = count, .ticket = ticket};
    port_buffer_table(&buffer, &(struct table_header){.head_count = box->config.kv_heads}, items,
                      count);
    int status = port_call(&box->port, command, &buffer, NULL);
    port_buffer_free(&buffer);
    return status;
}

static int box_write(struct box *box, uint32_t space, uint32_t seq, uint32_t layer, uint32_t pos,
                     uint32_t n)
{
    uint32_t dim = box->config.head_dim;
    uint64_t bytes = 0;
    struct table_item item = {.seq = seq, .epoch = 1, .pos = pos, .n_tokens = n};
    slab_bytes(box->config.kv_heads, n, dim, &bytes);
    struct port_buffer buffer = port_buffer_new(1, (bytes + 63) / 64 * 64);
    port_buffer_table(&buffer, &(struct table_header){.head_count = box->config.kv_heads}, &item,
                      1);
    uint16_t *p = (uint16_t *)buffer.data;
    for (uint32_t i = 0; i < box->config.kv_heads * 2 * n; i++, p += dim)
        memcpy(p, model_row(seq, layer, i / (2 * n), pos + i % n, i / n % 2), 2 * dim);
    int status =
        port_call(&box->port,
                  (struct command){.opcode = OP_WRITE, .space = space, .layer = layer, .count = 1},
                  &buffer, NULL);
    port_buffer_free(&buffer);
    return status;
}

static int box_reclaim(struct box *box, uint32_t seq, uint32_t pos)
{
    struct table_item item = {.seq = seq,
                              .epoch = 1,
                              .pos = pos,
                              .n_tokens = UINT64_MAX,
                              .layer_count = box->config.layers};
    return box_table(box, OP_RECLAIM, 0, &item, 1);
}

static int box_fork(struct box *box, uint32_t parent, uint32_t child, uint32_t pos)
{
    struct table_item item = {
        .seq = child, .epoch = 1, .pos = pos, .parent = parent, .parent_epoch = 1};
    return box_table(box, OP_FORK, 0, &item, 1);
}

static bool rows_are(const struct box *box, const uint8_t *data, uint32_t who, uint32_t n)
{
    uint32_t dim = box->config.head_dim;
    const uint16_t *p = (const uint16_t *)data;
    for (uint32_t i = 0; i < box->config.kv_heads * 2 * n; i++, p += dim) {
        if (memcmp(p, model_row(who, 0, i / (2 * n), i % n, i / n % 2), 2 * dim))
            return false;
    }
    return true;
}

// READ of layer 0 from token 0 on. *right: all of it is what sequence `who` wrote.
static int box_read(struct box *box, uint32_t seq, uint32_t who, uint32_t n, bool *right)
{
    uint64_t bytes = 0;
    uint32_t ticket = box->ticket++;
    struct table_item item = {.seq = seq, .epoch = 1, .n_tokens = n};
    slab_bytes(box->config.kv_heads, n, box->config.head_dim, &bytes);
    *right = false;
    int status = box_table(box, OP_READ, ticket, &item, 1);
    if (status)
        return status;
    struct port_buffer buffer = port_buffer_new(0, (bytes + 63) / 64 * 64);
    status = port_call(&box->port, (struct command){.opcode = OP_COLLECT, .ticket = ticket},
                       &buffer, NULL);
    *right = !status && rows_are(box, buffer.data, who, n);
    port_buffer_free(&buffer);
    return status;
}

struct box_query {
    uint32_t layer, method, count; // count items of the same sequence
    uint32_t seq, pos, channels, keep;
    bool append;
};

// ATTEND; the ticket stays when `keep_ticket`, else the status of its first item comes back.
static int box_attend(struct box *box, const struct box_query *q, bool keep_ticket)
{
    enum { ITEMS_MAX = 512 };
    static struct table_item items[ITEMS_MAX];
    const struct space_config *c = &box->config;
    struct attend_layout layout;
    uint32_t ticket = box->ticket++, dim = c->head_dim, count = q->count ? q->count : 1;
    struct command command = {
        .opcode = OP_ATTEND, .layer = q->layer, .count = count, .ticket = ticket};
    struct table_header header = {.method = q->method,
                                  .q_heads = c->q_heads,
                                  .scale = 0.25f,
                                  .sparf_channels = q->channels,
                                  .sparf_tokens = q->keep};
    attend_layout(&layout, count, c->q_heads, c->kv_heads, c->head_dim, q->append);
    struct port_buffer in = port_buffer_new(count, layout.in_bytes);
    for (uint32_t i = 0; i < count; i++)
        items[i] =
            (struct table_item){.seq = q->seq, .epoch = 1, .pos = q->pos, .n_tokens = q->append};
    port_buffer_table(&in, &header, items, count);
    for (uint32_t i = 0; i < count * c->q_heads; i++)
        memcpy((float *)(in.data + layout.q) + (size_t)i * dim, model_query(i), 4 * dim);
    for (uint32_t h = 0; q->append && h < c->kv_heads; h++) {
        memcpy((uint16_t *)(in.data + layout.k) + h * dim,
               model_row(q->seq, q->layer, h, q->pos, false), 2 * dim);
        memcpy((uint16_t *)(in.data + layout.v) + h * dim,
               model_row(q->seq, q->layer, h, q->pos, true), 2 * dim);
    }
    int status = port_call(&box->port, command, &in, NULL);
    port_buffer_free(&in);
    if (status || keep_ticket)
        return status;
    struct port_buffer out = port_buffer_new(0, layout.out_bytes);
    status =
        port_call(&box->port, (struct command){.opcode = OP_COLLECT, .ticket = ticket}, &out, NULL);
    if (!status)
        status = inst_status_from_nvme((uint16_t) * (const uint32_t *)(out.data + layout.status));
    port_buffer_free(&out);
    return status;
}

static const struct flash_geometry plain = {.page_bytes = 4096,
                                            .pages_per_block = 67,
                                            .blocks = 4096,
                                            .dies = 1,
                                            .channels = 1,
                                            .read_bytes = 131072};
// A segment holds one row of a page.
static const struct flash_geometry single = {.page_bytes = 1024,
                                             .pages_per_block = 2,
                                             .blocks = 64,
                                             .dies = 1,
                                             .channels = 1,
                                             .read_bytes = 4096};
static const struct space_config small = {.layers = 2,
                                          .kv_heads = 2,
                                          .head_dim = 16,
                                          .group_tokens = 16,
                                          .max_tokens = 4096,
                                          .max_sequences = 8,
                                          .q_heads = 4};
static const struct space_config tiny = {.layers = 1,
                                         .kv_heads = 1,
                                         .head_dim = 16,
                                         .group_tokens = 16,
                                         .max_tokens = 256,
                                         .max_sequences = 8,
                                         .q_heads = 1};
enum { PLENTY = 64 << 20 };

// ---- the faults: each says whether it shows ----------------------------------------------------

// A frame in use outlives its row: the read of sequence 2's first group takes its time, while the
// frame of its last one stays; that row is given up, erased and another written to its place.
static bool row_of_another(void)
{
    struct box box;
    bool right;
    box_plain(&box, &tiny, &single, PLENTY, false);
    box_write(&box, 0, 1, 0, 0, 48);
    box_fork(&box, 1, 2, 40);
    box_reclaim(&box, 1, 0);
    chaos_hold(box.port.flash, FLASH_READ, 0);
    struct table_item item = {.seq = 2, .epoch = 1, .n_tokens = 40};
    assert_int_equal(box_table(&box, OP_READ, 5, &item, 1), 0);
    struct port_buffer slow = port_buffer_new(0, 40 * 64);
    struct command collect = {.opcode = OP_COLLECT, .ticket = 5};
    assert_true(port_submit(&box.port, &collect, &slow));
    struct completion done;
    for (int i = 0; i < 20; i++)
        port_step(&box.port, 1000, &done, 0);
    struct command flush = {.opcode = OP_FLUSH};
    box_write(&box, 0, 2, 0, 40, 8); // copy on append gives it a row of its own
    port_call(&box.port, flush, NULL, NULL);
    box_write(&box, 0, 3, 0, 0, 16);
    port_call(&box.port, flush, NULL, NULL);
    box_reclaim(&box, 3, 8);
    box_write(&box, 0, 3, 0, 8, 8);
    chaos_release(box.port.flash);
    for (int i = 0; i < 100; i++)
        port_step(&box.port, 1000, &done, 1);
    int status = box_read(&box, 3, 3, 16, &right);
    box_close(&box);
    port_buffer_free(&slow);
    return !status && !right;
}

// One read fails, once. Whoever needed it may fail; trying again must help.
static bool read_error_lasts(void)
{
    struct space_config config = small;
    config.layers = 3;
    for (uint32_t skip = 0; skip < 120; skip++) {
        struct box box;
        box_plain(&box, &config, &plain, PLENTY, true);
        for (uint32_t l = 0; l < 3; l++)
            box_write(&box, 0, 1, l, 0, 200);
        chaos_fail(box.port.flash, FLASH_READ, INST_EIO, skip, 1);
        int status = 0;
        for (uint32_t i = 0; i < 18 && !status; i++) {
            struct box_query q = {.seq = 1, .layer = i % 3, .pos = 200 + i / 3, .append = true};
            status = box_attend(&box, &q, false);
            for (int tries = 0; status && tries < 20; tries++) {
                box.port.now_ns += second / 100;
                status = box_attend(&box, &q, false);
            }
        }
        box_close(&box);
        if (status)
            return true;
    }
    return false;
}

static bool differ(const struct drive_stats *a, const struct drive_stats *b)
{
    return a->sequences != b->sequences || a->rows_in_dram != b->rows_in_dram ||
           a->dram_used_bytes != b->dram_used_bytes || a->live_bytes != b->live_bytes ||
           a->stream_bytes != b->stream_bytes;
}

static bool refusal_changes_state(void)
{
    struct space_config config = small;
    struct drive_plan plan;
    struct drive_stats before, after;
    struct box box;
    bool shows = false;
    config.max_sequences = 2;
    config.max_tokens = 100;
    assert_int_equal(drive_plan(&plan, &plain, &config, 0, NULL), 0);
    // A WRITE of a new sequence that there is no group buffer for.
    box_plain(&box, &config, &plain, plan.min_dram_bytes, false);
    for (uint32_t seq = 0, status = 0; seq < 1000 && !status; seq++) {
        before = box_stats(&box);
        status = (uint32_t)box_write(&box, 0, seq, 0, 0, 5);
        after = box_stats(&box);
        shows |= status && differ(&before, &after);
    }
    box_close(&box);
    // A FORK and a RECLAIM of two items, the second of which is wrong.
    box_plain(&box, &small, &plain, PLENTY, false);
    box_write(&box, 0, 1, 0, 0, 40);
    box_write(&box, 0, 1, 1, 0, 40);
    struct table_item fork[2] = {
        {.seq = 2, .epoch = 1, .pos = 16, .parent = 1, .parent_epoch = 1},
        {.seq = 3, .epoch = 1, .pos = 16, .parent = 77, .parent_epoch = 1}};
    before = box_stats(&box);
    assert_int_not_equal(box_table(&box, OP_FORK, 0, fork, 2), 0);
    after = box_stats(&box);
    shows |= differ(&before, &after);
    struct table_item reclaim[2] = {
        {.seq = 1, .epoch = 1, .n_tokens = UINT64_MAX, .layer_count = 2},
        {.seq = 1, .epoch = 1, .n_tokens = UINT64_MAX, .layer_first = 7, .layer_count = 2}};
    before = after;
    assert_int_not_equal(box_table(&box, OP_RECLAIM, 0, reclaim, 2), 0);
    after = box_stats(&box);
    shows |= differ(&before, &after);
    box_close(&box);
    return shows;
}

// A host takes all tickets and is never seen again.
static bool tickets_stay(void)
{
    struct box box;
    struct box_query q = {.seq = 1, .pos = 40};
    box_plain(&box, &small, &plain, PLENTY, false);
    box_write(&box, 0, 1, 0, 0, 40);
    int status = 0;
    for (int i = 0; i < 100 && !status; i++)
        status = box_attend(&box, &q, true);
    assert_int_equal(status, INST_ENORESOURCE);
    box.port.now_ns += 3600 * second;
    status = box_attend(&box, &q, true);
    box_close(&box);
    return status != 0;
}

static bool ticket_memory_stays(void)
{
    enum { ITEMS = 512, SLACK = 64 << 10 };
    struct box box;
    struct box_query q = {.seq = 1, .pos = 40}, large = {.seq = 1, .pos = 40, .count = ITEMS};
    box_plain(&box, &small, &plain, PLENTY, false);
    box_write(&box, 0, 1, 0, 0, 40);
    assert_int_equal(box_attend(&box, &q, false), 0);
    uint64_t before = box_stats(&box).dram_used_bytes;
    assert_int_equal(box_attend(&box, &large, false), 0);
    uint64_t after = box_stats(&box).dram_used_bytes;
    box_close(&box);
    return after > before + SLACK;
}

// Spaces are accepted until there is no room; each then takes no more than was planned for it.
static bool dram_promised_twice(void)
{
    enum { SPACES = 12, TOKENS = 8192 };
    struct space_config config = {.layers = 2,
                                  .kv_heads = 1,
                                  .head_dim = 8,
                                  .group_tokens = 16,
                                  .max_tokens = TOKENS,
                                  .max_sequences = 4,
                                  .q_heads = 1};
    struct flash_geometry g = single;
    struct drive_plan plan;
    struct box box;
    int status = 0;
    g.page_bytes = 512;
    g.pages_per_block = 64;
    g.blocks = 4096;
    assert_int_equal(drive_plan(&plan, &g, &config, 0, NULL), 0);
    struct port_options o = {.geometry = g,
                             .dram_bytes = 3 * plan.min_dram_bytes,
                             .no_read_ahead = true,
                             .no_row_cache = true};
    box_open(&box, &config, &o);
    uint32_t spaces = 0;
    while (spaces < SPACES && !box_config(&box, spaces))
        spaces++;
    assert_true(spaces);
    for (uint32_t i = 0; i < spaces * 8 && !status; i++) {
        for (uint32_t pos = 0; pos < TOKENS && !status; pos += 256)
            status = box_write(&box, i / 8, i / 2 % 4, i % 2, pos, 256);
    }
    box_close(&box);
    return status != 0;
}

static bool text_of_another(void)
{
    struct box box;
    struct completion done[2];
    struct port_buffer buffers[2];
    struct table_item item = {.seq = 1, .epoch = 1, .n_tokens = 1};
    struct command commands[2] = {
        {.opcode = OP_READ, .cid = 0, .space = 77, .count = 1, .ticket = 1},
        {.opcode = OP_READ, .cid = 1, .layer = 9, .count = 1, .ticket = 2}};
    const char *texts[2] = {"space 77", "layer 9"};
    box_plain(&box, &small, &plain, PLENTY, false);
    for (int i = 0; i < 2; i++) {
        buffers[i] = port_buffer_new(1, 0);
        port_buffer_table(&buffers[i], &(struct table_header){.head_count = 2}, &item, 1);
        assert_true(port_submit(&box.port, &commands[i], &buffers[i]));
    }
    assert_int_equal(port_step(&box.port, 1000, done, 2), 2);
    bool shows = false;
    for (int i = 0; i < 2; i++) {
        assert_int_not_equal(done[i].status, 0);
        shows |= !strstr(done[i].text, texts[done[i].cid]);
    }
    box_close(&box);
    port_buffer_free(&buffers[0]);
    port_buffer_free(&buffers[1]);
    return shows;
}

// Pages rot one at a time; where all of K and V can be read, SparF must not fail.
static bool derived_page_fails(void)
{
    struct space_config config = {.layers = 1,
                                  .kv_heads = 1,
                                  .head_dim = 64,
                                  .group_tokens = 16,
                                  .max_tokens = 2048,
                                  .max_sequences = 2,
                                  .q_heads = 1,
                                  .method = METHOD_SPARF,
                                  .page_channels = 8};
    struct flash_geometry g = plain;
    struct box box;
    struct box_query q = {.seq = 1, .pos = 600, .method = METHOD_SPARF, .channels = 64, .keep = 1};
    bool shows = false, right;
    g.pages_per_block = 80;
    box_plain(&box, &config, &g, PLENTY, false);
    box_write(&box, 0, 1, 0, 0, 600);
    assert_true(box_stats(&box).channel_program_bytes);
    assert_int_equal(box_attend(&box, &q, false), 0);
    for (uint32_t i = 0; i < 4 * 80 && !shows; i++) {
        if (!chaos_rot(box.port.flash, i / 80, i % 80))
            continue;
        int read = box_read(&box, 1, 1, 600, &right);
        shows = box_attend(&box, &q, false) && !read && right;
        chaos_rot(box.port.flash, i / 80, i % 80); // back again
    }
    box_close(&box);
    return shows;
}

static bool program_error_kills(void)
{
    struct box box;
    bool right;
    box_plain(&box, &small, &plain, PLENTY, false);
    chaos_fail(box.port.flash, FLASH_PROGRAM, INST_EIO, 1, 1);
    assert_int_equal(box_write(&box, 0, 1, 0, 0, 40), 0);
    box_stats(&box);
    int status = box_read(&box, 1, 1, 40, &right);
    if (!status)
        assert_true(right);
    box_close(&box);
    return status != 0;
}

static bool repeats_refused(void)
{
    struct box box;
    bool shows;
    box_plain(&box, &small, &plain, PLENTY, false);
    box_write(&box, 0, 1, 0, 0, 40);
    box_write(&box, 0, 1, 1, 0, 40);
    assert_int_equal(box_fork(&box, 1, 2, 20), 0);
    shows = box_config(&box, 0) || box_fork(&box, 1, 2, 20);
    assert_int_equal(box_reclaim(&box, 1, 0), 0);
    shows |= box_reclaim(&box, 1, 0) != 0;
    box_close(&box);
    return shows;
}

// Copy on append reads the last row, then finds no group buffer.
static bool refused_append_starves(void)
{
    enum { FORKS = 200 };
    struct space_config config = small;
    struct drive_plan plan;
    struct inst_msg msg = {0};
    struct box box;
    int status = 0;
    config.max_tokens = 100;
    config.max_sequences = FORKS + 2;
    config.layers = 1;
    assert_int_equal(drive_plan(&plan, &plain, &config, 0, NULL), 0);
    box_plain(&box, &config, &plain, plan.min_dram_bytes, false);
    assert_int_equal(box_write(&box, 0, 1, 0, 0, 32), 0);
    for (uint32_t i = 0; i < FORKS && !status; i++)
        status = box_fork(&box, 1, 1000 + i, 20);
    status = 0;
    for (uint32_t seq = 2; seq < 3000 && !status; seq++)
        status = box_write(&box, 0, seq, 0, 0, 5);
    uint32_t refused = 0;
    for (uint32_t i = 0; i < FORKS; i++)
        refused += box_write(&box, 0, 1000 + i, 0, 20, 5) != 0;
    assert_true(refused);
    bool right, shows = port_check(&box.port, &msg) != 0;
    shows |= box_read(&box, 1, 1, 32, &right) != 0;
    box_close(&box);
    return shows;
}

static bool summary_loses_segment(void)
{
    struct box box;
    box_plain(&box, &tiny, &single, PLENTY, false);
    chaos_fail(box.port.flash, FLASH_PROGRAM, INST_EIO, 1, 1);
    assert_int_equal(box_write(&box, 0, 1, 0, 0, 16), 0); // row and summary
    box_stats(&box);
    assert_int_equal(box_reclaim(&box, 1, 0), 0);
    struct drive_stats stats = box_stats(&box);
    assert_int_equal(chaos_count(box.port.flash)->program_faults, 1);
    box_close(&box);
    return stats.allocated_bytes != 0;
}

// All flash is taken or waits for its erase.
static bool waiting_fork_skipped(void)
{
    struct box box;
    struct flash_geometry g = single;
    bool right;
    int status = 0;
    g.blocks = 12;
    box_plain(&box, &tiny, &g, PLENTY, false);
    assert_int_equal(box_write(&box, 0, 1, 0, 0, 8), 0);
    for (uint32_t pos = 0; !status; pos += 16)
        status = box_write(&box, 0, 2, 0, pos, 16);
    assert_int_equal(status, INST_ENOSPC);
    chaos_hold(box.port.flash, FLASH_ERASE, UINT64_MAX);
    box_reclaim(&box, 2, 0);
    struct table_item item = {.seq = 3, .epoch = 1, .pos = 8, .parent = 1, .parent_epoch = 1};
    struct port_buffer buffer = port_buffer_new(1, 0);
    port_buffer_table(&buffer, &(struct table_header){0}, &item, 1);
    struct command fork = {.opcode = OP_FORK, .count = 1};
    assert_true(port_submit(&box.port, &fork, &buffer));
    struct completion done;
    size_t n = 0;
    for (int i = 0; i < 100 && !n; i++)
        n = port_step(&box.port, 1000, &done, 1);
    chaos_release(box.port.flash);
    for (int i = 0; i < 100 && !n; i++)
        n = port_step(&box.port, 1000, &done, 1);
    assert_int_equal(n, 1);
    assert_int_equal(done.status, 0);
    status = box_read(&box, 3, 1, 8, &right);
    box_close(&box);
    port_buffer_free(&buffer);
    return status != 0;
}

// ---- all of them -------------------------------------------------------------------------------

static bool (*const shows[FAULTS])(void) = {
    [FAULT_ROW_OF_ANOTHER] = row_of_another,
    [FAULT_READ_ERROR_LASTS] = read_error_lasts,
    [FAULT_REFUSAL_CHANGES_STATE] = refusal_changes_state,
    [FAULT_TICKETS_STAY] = tickets_stay,
    [FAULT_TICKET_MEMORY_STAYS] = ticket_memory_stays,
    [FAULT_DRAM_PROMISED_TWICE] = dram_promised_twice,
    [FAULT_TEXT_OF_ANOTHER] = text_of_another,
    [FAULT_DERIVED_PAGE_FAILS] = derived_page_fails,
    [FAULT_PROGRAM_ERROR_KILLS] = program_error_kills,
    [FAULT_REPEATS_REFUSED] = repeats_refused,
    [FAULT_REFUSED_APPEND_STARVES] = refused_append_starves,
    [FAULT_SUMMARY_LOSES_SEGMENT] = summary_loses_segment,
    [FAULT_WAITING_FORK_SKIPPED] = waiting_fork_skipped,
};

static void test_fault(void **state)
{
    enum fault fault = (enum fault)(uintptr_t)*state;
    if (known(fault) && !shows[fault]())
        fail_msg("no longer shows: set its entry of known_faults[] to false");
    if (!known(fault) && shows[fault]())
        fail_msg("it is back");
}

int main(void)
{
    struct CMUnitTest tests[FAULTS];
    for (uintptr_t i = 0; i < FAULTS; i++)
        tests[i] = (struct CMUnitTest){
            .name = known_faults[i].name, .test_func = test_fault, .initial_state = (void *)i};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
