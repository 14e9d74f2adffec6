// SPDX-License-Identifier: Apache-2.0
// WRITE: refuses what it can before anything changes, then appends item by item, as far as group
// buffers allow, and goes on from there when it is asked again.
#include "drive/control/internal.h"
#include "base/checked.h"

// Everything that can be refused before state changes.
static int check_write(struct drive *drive, struct pending *pending, struct space *space,
                       const struct table_header *header)
{
    uint64_t end = 0;
    for (uint32_t i = 0; i < pending->command.count; i++) {
        struct table_item item;
        struct sequence *sequence;
        table_get_item(&item, pending->table, i);
        if (!item.n_tokens || !item_slab(space, header, &item, &end) ||
            end > pending->command.length)
            return inst_fail(&drive->msg, INST_EINVAL,
                             "WRITE: item %u of %llu tokens does not fit in the %u bytes of data",
                             i, (unsigned long long)item.n_tokens, pending->command.length);
        int status = space_lookup(space, &item, &sequence, &drive->msg);
        if (status)
            return status;
        for (uint32_t h = 0; h < header->head_count; h++) {
            const uint64_t *tokens =
                sequence ? sequence->layers[pending->command.layer].head_tokens : NULL;
            uint64_t have = tokens ? tokens[header->head_first + h] : 0;
            if (item.pos > have)
                return inst_fail(&drive->msg, INST_ESEQUENCE,
                                 "WRITE: sequence %u has %llu tokens in layer %u, not %llu",
                                 item.seq, (unsigned long long)have, pending->command.layer,
                                 (unsigned long long)item.pos);
        }
    }
    return 0;
}

static uint64_t least_head_tokens(const struct layer_state *layer,
                                  const struct table_header *header)
{
    uint64_t least = UINT64_MAX;
    for (uint32_t h = 0; h < header->head_count; h++)
        least = min_u64(least, layer->head_tokens[header->head_first + h]);
    return least;
}

static uint64_t most_head_tokens(const struct layer_state *layer, const struct table_header *header)
{
    uint64_t most = 0;
    for (uint32_t h = 0; h < header->head_count; h++)
        most = max_u64(most, layer->head_tokens[header->head_first + h]);
    return most;
}

// What the WRITE brought so far, for derived streams; what it only repeats may differ from what is
// stored.
static int write_derived(const struct pending *pending, struct space *space,
                         struct sequence *sequence, const struct table_header *header,
                         const struct table_item *item, const uint8_t *slab, uint64_t pos)
{
    uint64_t dim = space->config.head_dim, from = max_u64(item->pos, pending->stored);
    if (pos <= from)
        return 0;
    const uint16_t *k = (const uint16_t *)slab + (from - item->pos) * dim;
    struct stream_slab brought = {
        .layer = pending->command.layer,
        .head_first = header->head_first,
        .head_count = header->head_count,
        .from = from,
        .pos = pos,
        .k = k,
        .v = k + item->n_tokens * dim,
        .stride = 2 * item->n_tokens * dim,
    };
    return sequence_take_slab(space, sequence, &brought);
}

// Stores as much of one item as group buffers allow. 0 when it is done.
static int write_rows(struct drive *drive, struct pending *pending, struct space *space,
                      struct sequence *sequence, const struct table_header *header,
                      const struct table_item *item, const uint8_t *slab)
{
    uint32_t layer = pending->command.layer;
    size_t dim = space->config.head_dim, n = item->n_tokens;
    for (;;) {
        uint64_t pos = item->pos + pending->done;
        int status = write_derived(pending, space, sequence, header, item, slab, pos);
        if (status)
            return status;
        if (pending->done == n)
            return 0;
        uint64_t stored = least_head_tokens(&sequence->layers[layer], header);
        if (stored > pos) {
            pending->done = min_u64(stored - item->pos, n);
            continue;
        }
        status = sequence_prepare_append(space, sequence, layer, &drive->msg);
        if (status)
            return status;
        const uint16_t *k = (const uint16_t *)slab + pending->done * dim;
        struct append_source source = {
            .head_first = header->head_first,
            .head_count = header->head_count,
            .k = k,
            .v = k + n * dim,
            .k_head_stride = 2 * n * dim,
            .v_head_stride = 2 * n * dim,
        };
        uint64_t settled = sequence_append(space, sequence, layer, &source, pos, n - pending->done);
        if (!settled)
            return inst_fail(&drive->msg, INST_ESEQUENCE,
                             "WRITE: sequence %u layer %u: heads run ahead of others by more than "
                             "a token group",
                             item->seq, layer);
        pending->done += settled;
    }
}

static int write_item(struct drive *drive, struct pending *pending, struct space *space,
                      const struct table_header *header, const struct table_item *item,
                      const uint8_t *slab)
{
    struct sequence *sequence;
    int status = space_lookup(space, item, &sequence, &drive->msg);
    if (!status && !sequence)
        status = space_create(space, item, &sequence, &drive->msg);
    if (status)
        return status;
    struct layer_state *layer = &sequence->layers[pending->command.layer];
    if (!pending->done)
        pending->stored = most_head_tokens(layer, header);
    status = write_rows(drive, pending, space, sequence, header, item, slab);
    if (status <= 0)
        sequence_appended(space, layer); // also what was stored before it failed
    return status;
}

int command_write(struct drive *drive, struct pending *pending)
{
    struct space *space;
    struct table_header header;
    int status = check_table(drive, pending, &space, &header);
    if (!status && !pending->begun)
        status = check_write(drive, pending, space, &header);
    pending->begun = true;
    uint64_t offset = 0;
    for (uint32_t i = 0; !status && i < pending->command.count; i++) {
        struct table_item item;
        uint64_t end = offset;
        table_get_item(&item, pending->table, i);
        if (!item_slab(space, &header, &item, &end))
            return INST_EINTERNAL;
        if (i >= pending->item) {
            status = write_item(drive, pending, space, &header, &item, pending->data + offset);
            if (!status) {
                pending->item++;
                pending->done = 0;
            }
        }
        offset = end;
    }
    return status;
}
