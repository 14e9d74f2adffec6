// SPDX-License-Identifier: Apache-2.0
// WRITE: K and V of token ranges. All that can refuse it is looked at before anything is stored:
// positions, flash for all rows, group buffers. What fails after that (a row that cannot be read
// back, page records) leaves a prefix, which positions make visible.
#include "drive/control/internal.h"
#include "base/checked.h"

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

// Tokens that the heads of the WRITE may reach: the group that other heads have not completed yet
// stays in its buffer.
static uint64_t head_limit(const struct space *space, const struct layer_state *layer,
                           const struct table_header *header)
{
    uint64_t least = UINT64_MAX, row_tokens = space->config.group_tokens;
    for (uint32_t h = 0; h < space->config.kv_heads; h++) {
        if (h < header->head_first || h - header->head_first >= header->head_count)
            least = min_u64(least, layer ? layer->head_tokens[h] : 0);
    }
    return least == UINT64_MAX ? UINT64_MAX : (least / row_tokens + 1) * row_tokens;
}

static int check_item(struct drive *drive, const struct request *request, struct space *space,
                      const struct table_header *header, const struct table_item *item)
{
    uint32_t layer = request->command.layer;
    struct sequence *sequence;
    int status = space_lookup(space, item, &sequence, &drive->msg);
    if (status)
        return status;
    const struct layer_state *state = sequence ? &sequence->layers[layer] : NULL;
    uint64_t have = state ? least_head_tokens(state, header) : 0;
    if (item->pos > have)
        return inst_fail(&drive->msg, INST_ESEQUENCE,
                         "WRITE: sequence %u has %llu tokens in layer %u, not %llu", item->seq,
                         (unsigned long long)have, layer, (unsigned long long)item->pos);
    if (state && item->pos + item->n_tokens > have)
        status = sequence_can_append(space, sequence, layer, &drive->msg);
    if (status)
        return status;
    if (item->pos + item->n_tokens > head_limit(space, state, header))
        return inst_fail(&drive->msg, INST_ESEQUENCE,
                         "WRITE: sequence %u layer %u: heads run ahead of others by more than a "
                         "token group",
                         item->seq, layer);
    return 0;
}

static int check_write(struct drive *drive, const struct request *request, struct space *space,
                       const struct table_header *header)
{
    uint64_t end = 0;
    int status = 0;
    for (uint32_t i = 0; i < request->command.count && !status; i++) {
        struct table_item item;
        table_get_item(&item, request->table, i);
        if (!item.n_tokens || !item_slab(space, header, &item, &end) ||
            end > request->command.length)
            return inst_fail(&drive->msg, INST_EINVAL,
                             "WRITE: item %u of %llu tokens does not fit in the %u bytes of data",
                             i, (unsigned long long)item.n_tokens, request->command.length);
        status = check_item(drive, request, space, header, &item);
    }
    return status;
}

// ---- what it takes -----------------------------------------------------------------------------

void request_sequences(struct space *space, const struct request *request, uint32_t items,
                       request_sequence_fn *fn)
{
    for (uint32_t i = 0; i < items; i++) {
        struct table_item item;
        table_get_item(&item, request->table, i);
        struct sequence *sequence = space_find(space, item.seq);
        if (sequence && sequence->epoch == item.epoch)
            fn(space, sequence, sequence->serial > request->serial, request);
    }
}

// What a request holds of a sequence goes back, and so do sequences that got no token. One that was
// aborted half-way has stored a part.
static void give_back(struct space *space, struct sequence *sequence, bool made,
                      const struct request *request)
{
    uint32_t layer = request->command.layer;
    sequence_unload(space, sequence, layer);
    sequence_unpromise(space, sequence, layer);
    if (request->command.opcode == OP_WRITE)
        sequence_appended(space, &sequence->layers[layer]);
    if (made && sequence_empty(space, sequence))
        space_remove(space, sequence);
}

// Sequences, and promises of flash for all rows.
static int take_item(struct drive *drive, struct request *request, struct space *space,
                     const struct table_header *header, const struct table_item *item,
                     uint64_t *buffers)
{
    struct sequence *sequence;
    int status = space_lookup(space, item, &sequence, &drive->msg);
    if (!status && !sequence)
        status = space_create(space, item, &sequence, &drive->msg);
    if (status)
        return status;
    const struct layer_state *layer = &sequence->layers[request->command.layer];
    uint64_t end = item->pos + item->n_tokens;
    if (least_head_tokens(layer, header) >= end)
        return 0; // a replay
    bool buffer;
    uint64_t rows = append_rows(space, layer, end, &buffer);
    *buffers += buffer;
    return rows > layer->promised ? sequence_promise(space, sequence, request->command.layer,
                                                     rows - layer->promised, &drive->msg)
                                  : 0;
}

static int take(struct drive *drive, struct request *request, struct space *space,
                const struct table_header *header)
{
    uint64_t buffers = 0;
    uint32_t i = 0;
    int status = 0;
    request->serial = space->serial;
    for (; i < request->command.count && !status; i++) {
        struct table_item item;
        table_get_item(&item, request->table, i);
        status = take_item(drive, request, space, header, &item, &buffers);
    }
    if (!status)
        status = space_buffers(space, buffers, &drive->msg);
    if (status)
        request_sequences(space, request, i, give_back);
    return status;
}

void request_end(struct drive *drive, struct request *request, int status)
{
    uint8_t opcode = request->command.opcode;
    for (struct space *space = drive->spaces; space; space = space->next)
        frames_may_grow(space->frames, true);
    if (!request->begun)
        return;
    struct space *space = find_space(drive, request->command.space);
    if (opcode == OP_WRITE || opcode == OP_ATTEND) // sequences whose first token was refused
        request_sequences(space, request, request->command.count, give_back);
    if (opcode == OP_FORK && status)
        fork_undo(space, request);
}

// ---- storing -----------------------------------------------------------------------------------

// What the WRITE brought so far, for derived streams; what it only repeats may differ from what is
// stored.
static int write_derived(const struct request *request, struct space *space,
                         struct sequence *sequence, const struct table_header *header,
                         const struct table_item *item, const uint8_t *slab, uint64_t pos)
{
    uint64_t dim = space->config.head_dim, from = max_u64(item->pos, request->stored);
    if (pos <= from)
        return 0;
    const uint16_t *k = (const uint16_t *)slab + (from - item->pos) * dim;
    struct stream_slab brought = {
        .layer = request->command.layer,
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
static int write_rows(struct drive *drive, struct request *request, struct space *space,
                      struct sequence *sequence, const struct table_header *header,
                      const struct table_item *item, const uint8_t *slab)
{
    uint32_t layer = request->command.layer;
    size_t dim = space->config.head_dim, n = item->n_tokens;
    for (;;) {
        uint64_t pos = item->pos + request->done;
        int status = write_derived(request, space, sequence, header, item, slab, pos);
        if (status)
            return status;
        if (request->done == n)
            return 0;
        if (enough(drive))
            return WAIT;
        uint64_t stored = least_head_tokens(&sequence->layers[layer], header);
        if (stored > pos) {
            request->done = min_u64(stored - item->pos, n);
            continue;
        }
        status = sequence_prepare_append(space, sequence, layer, &drive->msg);
        if (status)
            return status;
        const uint16_t *k = (const uint16_t *)slab + request->done * dim;
        struct append_source source = {
            .head_first = header->head_first,
            .head_count = header->head_count,
            .k = k,
            .v = k + n * dim,
            .k_head_stride = 2 * n * dim,
            .v_head_stride = 2 * n * dim,
        };
        uint64_t settled = sequence_append(space, sequence, layer, &source, pos, n - request->done);
        request->done += settled;
        drive->work += settled * 4 * dim * header->head_count;
    }
}

static int write_item(struct drive *drive, struct request *request, struct space *space,
                      const struct table_header *header, const struct table_item *item,
                      const uint8_t *slab)
{
    struct sequence *sequence;
    int status = space_lookup(space, item, &sequence, &drive->msg);
    if (status)
        return status;
    struct layer_state *layer = &sequence->layers[request->command.layer];
    if (!request->done)
        request->stored = most_head_tokens(layer, header);
    status = write_rows(drive, request, space, sequence, header, item, slab);
    if (!status)
        sequence_appended(space, layer);
    return status;
}

int do_write(struct drive *drive, struct request *request)
{
    struct space *space;
    struct table_header header;
    int status = check_table(drive, request, &space, &header);
    if (!status && !request->begun) {
        status = check_write(drive, request, space, &header);
        if (!status)
            status = take(drive, request, space, &header);
    }
    if (status)
        return status;
    request->begun = true;
    uint64_t offset = 0;
    for (uint32_t i = 0; !status && i < request->command.count; i++) {
        struct table_item item;
        uint64_t end = offset;
        table_get_item(&item, request->table, i);
        item_slab(space, &header, &item, &end); // was checked
        if (i >= request->item) {
            status = write_item(drive, request, space, &header, &item, request->data + offset);
            if (!status) {
                request->item++;
                request->done = 0;
            }
        }
        offset = end;
    }
    return status;
}
