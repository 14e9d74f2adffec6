// SPDX-License-Identifier: Apache-2.0
// Who holds what: heads are divided evenly over the drives of a group, the first ones get what is
// left over; sequences go to the group that has the fewest for its drives, forks to their parent's.
// A drive's part of a command is the same command about its own heads and sequences: tables are
// copied, K and V of a command with one item stay where the host has them (a range of heads is a
// range of the slab), all else is copied through the stage, which for one token of q, k, v and
// attention output is little.
#include "base/checked.h"
#include "base/le.h"
#include "link/array.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static uint64_t align(uint64_t bytes)
{
    return (bytes + ARRAY_ALIGN - 1) / ARRAY_ALIGN * ARRAY_ALIGN;
}

static uint64_t notes_bytes(uint32_t count)
{
    return align(count * sizeof(struct note));
}

struct link_share link_array_share(uint32_t drives, uint32_t kv_heads, uint32_t together,
                                   uint32_t drive)
{
    const uint32_t sets = kv_heads / together;
    uint32_t groups = sets && drives > sets ? (drives + sets - 1) / sets : 1;
    // Drives g, g + groups, g + 2 groups, ... are group g.
    struct link_share share = {.group = drive % groups, .groups = groups};
    uint32_t members = (drives - share.group + groups - 1) / groups, member = drive / groups;
    uint32_t each = sets / members, more = sets % members;
    share.head_first = (member * each + (member < more ? member : more)) * together;
    share.head_count = (each + (member < more)) * together;
    return share;
}

static struct link_share share_of(const struct array *a, const struct shape *shape, uint32_t drive)
{
    return link_array_share(a->drives, shape->kv_heads, shape->together, drive);
}

// ---- spaces ------------------------------------------------------------------------------------

struct array_space *array_space(struct array *a, uint32_t id)
{
    for (int i = 0; i < ARRAY_SPACES; i++) {
        if (a->space[i].used && a->space[i].id == id)
            return &a->space[i];
    }
    return NULL;
}

int array_space_new(struct array *a, uint32_t id, const struct space_config *config,
                    struct array_space **out, struct inst_msg *msg)
{
    struct array_space *space = a->space;
    while (space < a->space + ARRAY_SPACES && space->used)
        space++;
    if (space == a->space + ARRAY_SPACES)
        return inst_fail(msg, INST_ENORESOURCE, "CONFIG: a drive array has %d spaces at most",
                         ARRAY_SPACES);
    if (!config->kv_heads || config->q_heads % config->kv_heads)
        return inst_fail(msg, INST_EINVAL, "CONFIG: %u query heads over %u KV heads",
                         config->q_heads, config->kv_heads);
    int status = space_config_check_together(config, msg);
    if (status)
        return status;
    *space = (struct array_space){.used = true, .id = id, .config = *config};
    space->places = min_u64(max_u64(config->max_sequences, 16), ARRAY_SEQUENCES);
    space->load = budget_alloc(a->budget, a->drives, sizeof *space->load, "a space", msg);
    space->place =
        budget_alloc(a->budget, space->places, sizeof *space->place, "a space's sequences", msg);
    if (!space->load || !space->place) {
        array_space_end(a, space);
        return INST_ENOMEM;
    }
    space->shape =
        (struct shape){config->kv_heads, config->head_dim, space_config_together(config)};
    space->groups = share_of(a, &space->shape, 0).groups;
    *out = space;
    return 0;
}

void array_space_end(struct array *a, struct array_space *space)
{
    budget_free(a->budget, space->load);
    budget_free(a->budget, space->place);
    *space = (struct array_space){0};
}

struct space_config array_share_config(const struct array *a, const struct array_space *space,
                                       uint32_t drive)
{
    struct space_config config = space->config;
    uint32_t heads = config.kv_heads;
    config.kv_heads = share_of(a, &space->shape, drive).head_count;
    config.q_heads = config.q_heads / heads * config.kv_heads;
    return config;
}

// ---- the place of a sequence -------------------------------------------------------------------

static uint32_t least_loaded(const struct array *a, const struct array_space *space)
{
    uint32_t best = 0;
    uint64_t best_drives = 1;
    for (uint32_t g = 0; g < space->groups; g++) {
        uint64_t drives = (a->drives - g + space->groups - 1) / space->groups;
        if (!g || (space->load[g] + 1) * best_drives < (space->load[best] + 1) * drives) {
            best = g;
            best_drives = drives;
        }
    }
    return best;
}

static void unplace(struct array_space *space, struct place *place)
{
    if (place->group)
        space->load[place->group - 1]--;
    place->group = 0;
}

static void give_place(struct array_space *space, struct place *place, uint32_t epoch,
                       uint32_t group)
{
    *place = (struct place){.epoch = epoch, .group = group + 1};
    space->load[group]++;
}

static int find_place(struct array *a, struct array_space *space, uint32_t seq, struct place **out,
                      struct inst_msg *msg)
{
    if (seq >= ARRAY_SEQUENCES)
        return inst_fail(msg, INST_ENORESOURCE,
                         "sequence %u: a drive array has room for numbers below %d", seq,
                         ARRAY_SEQUENCES);
    if (seq >= space->places) {
        uint64_t more = min_u64(max_u64(2 * space->places, seq + 1ull), ARRAY_SEQUENCES);
        struct place *place = budget_resize(a->budget, space->place, more * sizeof *place,
                                            "a space's sequences", msg);
        if (!place)
            return INST_ENOMEM;
        memset(place + space->places, 0, (more - space->places) * sizeof *place);
        space->place = place;
        space->places = more;
    }
    *out = &space->place[seq];
    return 0;
}

// The group of a sequence; where it has none and `create` says so, it gets one.
static int group_of(struct array *a, struct array_space *space, uint32_t seq, uint32_t epoch,
                    bool create, struct note *note, struct inst_msg *msg)
{
    struct place *place = NULL;
    note->group = 0;
    note->fresh = false;
    if (seq >= space->places && !create)
        return 0; // its drives will say that there is no such sequence
    int err = find_place(a, space, seq, &place, msg);
    if (err)
        return err;
    if (place->group) {
        place->relied = true;
        note->group = place->group - 1;
    } else if (create) {
        note->fresh = true;
        note->group = least_loaded(a, space);
        give_place(space, place, epoch, note->group);
    }
    return 0;
}

static int place_child(struct array *a, struct array_space *space, const struct table_item *item,
                       struct note *note, struct inst_msg *msg)
{
    struct place *place = NULL;
    int err = group_of(a, space, item->parent, item->parent_epoch, false, note, msg);
    if (!err)
        err = find_place(a, space, item->seq, &place, msg);
    if (err)
        return err;
    if (place->group && place->group - 1 != note->group)
        return inst_fail(msg, INST_EEXIST, "FORK: sequence %u exists", item->seq);
    note->fresh = !place->group;
    place->relied = !note->fresh;
    if (note->fresh)
        give_place(space, place, item->epoch, note->group);
    return 0;
}

void array_reclaimed(struct array_space *space, const struct command *command, const void *table)
{
    for (uint32_t i = 0; i < command->count; i++) {
        struct table_item item;
        table_get_item(&item, table, i);
        if (item.pos || item.n_tokens != UINT64_MAX || item.layer_count != space->config.layers)
            continue;
        uint64_t end = item.seq + max_u64(item.seq_count, 1);
        for (uint64_t seq = item.seq; seq < min_u64(end, space->places); seq++) {
            if (item.seq_count || space->place[seq].epoch == item.epoch)
                unplace(space, &space->place[seq]);
        }
    }
}

static void unplace_first(struct array_space *space, const struct request *r,
                          const struct note *notes, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        struct table_item item;
        table_get_item(&item, r->table, i);
        if (notes[i].fresh && item.seq < space->places && !space->place[item.seq].relied)
            unplace(space, &space->place[item.seq]);
    }
}

void array_unplace(struct array_space *space, const struct request *r)
{
    unplace_first(space, r, r->ticket ? r->ticket->task.notes : r->task.notes, r->command.count);
}

const void *array_unfork(const struct array_space *space, struct request *r, uint32_t *count)
{
    unsigned char *table = r->task.stage + notes_bytes(r->command.count);
    *count = 0;
    table_put_header(table, &(struct table_header){0});
    for (uint32_t i = 0; i < r->command.count; i++) {
        struct table_item item;
        table_get_item(&item, r->table, i);
        if (!r->task.notes[i].fresh)
            continue;
        item = (struct table_item){.seq = item.seq,
                                   .epoch = item.epoch,
                                   .n_tokens = UINT64_MAX,
                                   .layer_count = space->config.layers};
        table_put_item(table, (*count)++, &item);
    }
    return *count ? table : NULL;
}

// ---- cutting -----------------------------------------------------------------------------------

int array_stage(struct array *a, struct task *task, uint64_t bytes, struct inst_msg *msg)
{
    if (bytes <= task->stage_bytes)
        return 0;
    unsigned char *stage =
        budget_resize(a->budget, task->stage, bytes, "commands of a drive array", msg);
    if (!stage)
        return INST_ENOMEM;
    task->stage = stage;
    task->stage_bytes = bytes;
    task->notes = (struct note *)stage;
    return 0;
}

// K and V of n tokens of some heads; fits in 64 bits once it was checked for all heads.
static uint64_t slab(const struct shape *shape, uint64_t heads, uint64_t n)
{
    return heads * n * shape->head_dim * 4;
}

static void cut_slabs(const struct shape *shape, const struct table_header *header,
                      const struct note *notes, uint32_t count, const struct link_share *share,
                      struct cut *cut)
{
    uint32_t first = max_u64(share->head_first, header->head_first) & UINT32_MAX;
    uint32_t end =
        min_u64(share->head_first + share->head_count, header->head_first + header->head_count) &
        UINT32_MAX;
    *cut = (struct cut){0};
    if (first >= end)
        return;
    cut->head_first = first;
    cut->head_count = end - first;
    for (uint32_t i = 0; i < count; i++) {
        if (notes[i].group != share->group)
            continue;
        cut->items++;
        cut->bytes += align(slab(shape, cut->head_count, notes[i].n_tokens));
    }
    if (count != 1)
        return;
    // The last heads may lie before padding, others must fill whole units.
    cut->at = slab(shape, first - header->head_first, notes->n_tokens);
    cut->in_place = cut->at % ARRAY_ALIGN == 0 &&
                    (end == header->head_first + header->head_count ||
                     slab(shape, cut->head_count, notes->n_tokens) % ARRAY_ALIGN == 0);
}

// The range of heads of every item between the host's slabs and a drive's.
static void copy_slabs(const struct shape *shape, const struct table_header *header,
                       const struct note *notes, uint32_t count, const struct link_share *share,
                       const struct cut *cut, unsigned char *host, unsigned char *drive,
                       bool to_host)
{
    for (uint32_t i = 0; i < count; i++) {
        uint64_t n = notes[i].n_tokens, bytes = slab(shape, cut->head_count, n);
        unsigned char *at = host + slab(shape, cut->head_first - header->head_first, n);
        if (notes[i].group == share->group) {
            memcpy(to_host ? at : drive, to_host ? drive : at, bytes);
            drive += align(bytes);
        }
        host += align(slab(shape, header->head_count, n));
    }
}

// Heads of one array [count][heads][width] between the host's and a drive's.
struct rows {
    uint32_t heads, first, n; // of the host's row, and those that are copied
    size_t width;             // bytes of one
};

static void copy_rows(const struct rows *rows, const struct note *notes, uint32_t count,
                      uint32_t group, unsigned char *host, unsigned char *drive, bool to_host)
{
    size_t bytes = rows->n * rows->width;
    for (uint32_t i = 0; i < count; i++) {
        unsigned char *at = host + (i * (size_t)rows->heads + rows->first) * rows->width;
        if (notes[i].group != group)
            continue;
        memcpy(to_host ? at : drive, to_host ? drive : at, bytes);
        drive += bytes;
    }
}

// A drive's share of the query heads.
static struct rows query_rows(const struct shape *shape, const struct table_header *header,
                              const struct link_share *share, size_t width)
{
    uint32_t each = header->q_heads / shape->kv_heads;
    return (struct rows){header->q_heads, share->head_first * each, share->head_count * each,
                         width};
}

static void lay_out_part(const struct shape *shape, const struct table_header *header,
                         const struct link_share *share, const struct cut *cut,
                         struct attend_layout *layout)
{
    uint32_t each = header->q_heads / shape->kv_heads;
    attend_layout(layout, cut->items, share->head_count * each, share->head_count, shape->head_dim,
                  cut->append); // smaller than the host's, which was checked
}

static void fill_attend(const struct shape *shape, const struct request *r,
                        const struct link_share *share, const struct cut *cut, unsigned char *drive)
{
    const struct ticket *t = r->ticket;
    const struct note *notes = t->task.notes;
    const size_t dim = shape->head_dim;
    unsigned char *host = r->data;
    struct attend_layout layout;
    lay_out_part(shape, &t->header, share, cut, &layout);
    struct rows q = query_rows(shape, &t->header, share, dim * sizeof(float));
    copy_rows(&q, notes, t->count, share->group, host + t->layout.q, drive + layout.q, false);
    if (!cut->append)
        return;
    struct rows kv = {shape->kv_heads, share->head_first, share->head_count,
                      dim * sizeof(uint16_t)};
    copy_rows(&kv, notes, t->count, share->group, host + t->layout.k, drive + layout.k, false);
    copy_rows(&kv, notes, t->count, share->group, host + t->layout.v, drive + layout.v, false);
}

// Of the data that goes.
static void cut_attend(const struct shape *shape, const struct table_header *header,
                       const struct note *notes, uint32_t count, const struct link_share *share,
                       struct cut *cut)
{
    struct attend_layout layout;
    *cut = (struct cut){0};
    for (uint32_t i = 0; i < count; i++) {
        if (notes[i].group != share->group)
            continue;
        cut->items++;
        cut->append |= notes[i].n_tokens == 1;
    }
    if (!cut->items)
        return;
    lay_out_part(shape, header, share, cut, &layout);
    cut->bytes = layout.in_bytes;
}

// ---- a request with items ----------------------------------------------------------------------

static int note_items(struct array *a, struct array_space *space, struct request *r,
                      struct note *notes, struct inst_msg *msg)
{
    uint8_t opcode = r->command.opcode;
    for (uint32_t i = 0; i < r->command.count; i++) {
        struct table_item item;
        table_get_item(&item, r->table, i);
        notes[i] = (struct note){.n_tokens = item.n_tokens};
        bool creates = opcode == OP_WRITE || (opcode == OP_ATTEND && item.n_tokens);
        int err = opcode == OP_FORK
                      ? place_child(a, space, &item, &notes[i], msg)
                      : group_of(a, space, item.seq, item.epoch, creates, &notes[i], msg);
        if (err) {
            unplace_first(space, r, notes, i);
            return err;
        }
    }
    return 0;
}

// The slabs of all items, as the host sees them.
static int check_slabs(const struct shape *shape, const struct request *r,
                       const struct table_header *header, uint64_t *end, struct inst_msg *msg)
{
    const char *name = opcode_name(r->command.opcode);
    uint32_t heads = shape->kv_heads;
    if (!header->head_count || header->head_count > heads ||
        header->head_first > heads - header->head_count)
        return inst_fail(msg, INST_EINVAL, "%s: heads %u + %u of %u", name, header->head_first,
                         header->head_count, heads);
    *end = 0;
    for (uint32_t i = 0; i < r->command.count; i++) {
        struct table_item item;
        uint64_t bytes;
        table_get_item(&item, r->table, i);
        if (!slab_bytes(header->head_count, item.n_tokens, shape->head_dim, &bytes) ||
            !checked_round_up(bytes, ARRAY_ALIGN, &bytes) || !checked_add(*end, bytes, end) ||
            *end > (r->command.opcode == OP_WRITE ? r->command.length : UINT32_MAX))
            return inst_fail(msg, INST_EINVAL, "%s: item %u of %llu tokens is too large", name, i,
                             (unsigned long long)item.n_tokens);
    }
    return 0;
}

static int check_attend(const struct shape *shape, const struct request *r,
                        const struct table_header *header, struct attend_layout *layout,
                        struct inst_msg *msg)
{
    uint32_t heads = shape->kv_heads;
    bool append = false;
    for (uint32_t i = 0; i < r->command.count; i++) {
        struct table_item item;
        table_get_item(&item, r->table, i);
        append |= item.n_tokens == 1;
    }
    if (!header->q_heads || header->q_heads % heads)
        return inst_fail(msg, INST_EINVAL, "ATTEND: %u query heads over %u KV heads",
                         header->q_heads, heads);
    if (!attend_layout(layout, r->command.count, header->q_heads, heads, shape->head_dim, append) ||
        layout->in_bytes > r->command.length)
        return inst_fail(msg, INST_EINVAL, "ATTEND: %u bytes of data are too few",
                         r->command.length);
    return 0;
}

// The items of a drive's group, behind a header about its heads.
static void fill_table(const struct shape *shape, const struct request *r,
                       const struct table_header *header, const struct note *notes,
                       const struct link_share *share, const struct cut *cut, unsigned char *table)
{
    struct table_header own = *header;
    uint8_t opcode = r->command.opcode;
    if (opcode == OP_WRITE || opcode == OP_READ) {
        own.head_first = cut->head_first - share->head_first;
        own.head_count = cut->head_count;
    }
    if (opcode == OP_ATTEND)
        own.q_heads = query_rows(shape, header, share, 0).n;
    table_put_header(table, &own);
    table += TABLE_HEADER_BYTES;
    for (uint32_t i = 0; i < r->command.count; i++) {
        if (notes[i].group != share->group)
            continue;
        memcpy(table, (const unsigned char *)r->table + table_bytes(i), TABLE_ITEM_BYTES);
        table += TABLE_ITEM_BYTES;
    }
}

static void cut_part(const struct shape *shape, const struct request *r,
                     const struct table_header *header, const struct note *notes,
                     const struct link_share *share, struct cut *cut)
{
    uint32_t count = r->command.count;
    switch (r->command.opcode) {
    case OP_ATTEND:
        cut_attend(shape, header, notes, count, share, cut);
        break;
    case OP_FORK:
        *cut = (struct cut){0};
        for (uint32_t i = 0; i < count; i++)
            cut->items += notes[i].group == share->group;
        break;
    case OP_READ:
        cut_slabs(shape, header, notes, count, share, cut);
        cut->bytes = 0; // the data comes with the COLLECT
        cut->in_place = false;
        break;
    default:
        cut_slabs(shape, header, notes, count, share, cut);
    }
}

// Copies what a drive gets to `at` of the stage, behind the table.
static void fill_data(const struct shape *shape, const struct request *r,
                      const struct table_header *header, const struct note *notes,
                      const struct link_share *share, const struct cut *cut, unsigned char *at)
{
    if (r->command.opcode == OP_ATTEND)
        fill_attend(shape, r, share, cut, at);
    else
        copy_slabs(shape, header, notes, r->command.count, share, cut, r->data, at, false);
}

// `keeper` has the notes, in a stage of its own or in the request's.
static int fill_parts(struct array *a, const struct shape *shape, struct request *r,
                      const struct table_header *header, const struct task *keeper,
                      struct inst_msg *msg)
{
    uint64_t at = notes_bytes(r->command.count), end = at;
    for (uint32_t i = 0; i < a->drives; i++) {
        struct cut *cut = &r->task.part[i].cut;
        struct link_share share = share_of(a, shape, i);
        cut_part(shape, r, header, keeper->notes, &share, cut);
        if (cut->items)
            end += table_bytes(cut->items) + (cut->in_place ? 0 : align(cut->bytes));
    }
    int err = array_stage(a, &r->task, end, msg);
    if (err)
        return err;
    for (uint32_t i = 0; i < a->drives; i++) {
        struct part *part = &r->task.part[i];
        struct link_share share = share_of(a, shape, i);
        const struct cut *cut = &part->cut;
        if (!cut->items)
            continue;
        part->table = r->task.stage + at;
        fill_table(shape, r, header, keeper->notes, &share, cut, r->task.stage + at);
        at += table_bytes(cut->items);
        part->command = r->command;
        part->command.count = cut->items;
        part->command.length = (uint32_t)cut->bytes;
        part->data = cut->in_place ? (unsigned char *)r->data + cut->at : NULL;
        part->state = PART_WAITS;
        if (cut->in_place || !cut->bytes)
            continue;
        part->data = r->task.stage + at;
        fill_data(shape, r, header, keeper->notes, &share, cut, part->data);
        at += align(cut->bytes);
    }
    return 0;
}

static int check_request(struct array *a, const struct request *r, struct array_space **space,
                         struct table_header *header, struct attend_layout *layout,
                         struct inst_msg *msg)
{
    const struct command *c = &r->command;
    const char *name = opcode_name(c->opcode);
    *layout = (struct attend_layout){0};
    *space = array_space(a, c->space);
    if (!*space || !(*space)->known)
        return inst_fail(msg, INST_ENOENT, "%s: space %u does not exist", name, c->space);
    if (!c->count || c->count > UINT16_MAX)
        return inst_fail(msg, INST_EINVAL, "%s: %u items", name, c->count);
    if (table_get_header(header, r->table, table_bytes(c->count), c->count))
        return inst_fail(msg, INST_EINVAL, "%s: malformed table", name);
    if (c->opcode == OP_ATTEND)
        return check_attend(&(*space)->shape, r, header, layout, msg);
    return c->opcode == OP_FORK ? 0
                                : check_slabs(&(*space)->shape, r, header, &layout->out_bytes, msg);
}

int array_split(struct array *a, struct request *r, struct inst_msg *msg)
{
    struct ticket *t = r->ticket;
    struct task *keeper = t ? &t->task : &r->task;
    struct array_space *space;
    struct table_header header;
    struct attend_layout layout;
    int err = check_request(a, r, &space, &header, &layout, msg);
    if (!err)
        err = array_stage(a, keeper, notes_bytes(r->command.count), msg);
    if (!err)
        err = note_items(a, space, r, keeper->notes, msg);
    if (err)
        return err;
    if (t) {
        t->opcode = r->command.opcode;
        t->space = r->command.space;
        t->count = r->command.count;
        t->header = header;
        t->layout = layout;
        t->shape = space->shape;
    }
    err = fill_parts(a, &space->shape, r, &header, keeper, msg);
    if (err)
        array_unplace(space, r);
    return err;
}

// ---- COLLECT -----------------------------------------------------------------------------------

int array_collect(struct array *a, struct ticket *t, unsigned char *data, struct inst_msg *msg)
{
    uint64_t end = notes_bytes(t->count);
    for (uint32_t i = 0; i < a->drives; i++) {
        struct link_share share = share_of(a, &t->shape, i);
        struct cut *cut = &t->task.part[i].cut;
        if (t->opcode == OP_READ)
            cut_slabs(&t->shape, &t->header, t->task.notes, t->count, &share, cut);
        else
            cut_attend(&t->shape, &t->header, t->task.notes, t->count, &share, cut);
        if (!cut->items || cut->in_place)
            continue;
        if (t->opcode == OP_ATTEND) {
            struct attend_layout layout;
            lay_out_part(&t->shape, &t->header, &share, cut, &layout);
            cut->bytes = layout.out_bytes;
        }
        cut->at = end;
        end += align(cut->bytes);
    }
    int err = array_stage(a, &t->task, end, msg);
    if (err)
        return err;
    for (uint32_t i = 0; i < a->drives; i++) {
        struct part *part = &t->task.part[i];
        if (!part->cut.items)
            continue;
        part->command = (struct command){.opcode = OP_COLLECT,
                                         .space = t->space,
                                         .ticket = t->number,
                                         .length = (uint32_t)part->cut.bytes};
        part->table = NULL;
        part->data = (part->cut.in_place ? data : t->task.stage) + part->cut.at;
        part->state = PART_WAITS;
    }
    return 0;
}

// Of several drives' statuses of one item: what failed, other failures before lack of room.
static uint32_t worse(uint32_t a, uint32_t b)
{
    const uint32_t room = inst_status_to_nvme(INST_ENORESOURCE);
    return !a || (a == room && b) ? b : a;
}

static bool gather_status(const struct ticket *t, const struct link_share *share,
                          const unsigned char *from, unsigned char *to)
{
    bool lost = false;
    for (uint32_t i = 0; i < t->count; i++, to += 4) {
        if (t->task.notes[i].group != share->group)
            continue;
        le_put32(to, worse(le_get32(to), le_get32(from)));
        lost |= inst_status_is_loss(inst_status_from_nvme((uint16_t)le_get32(from)));
        from += 4;
    }
    return lost;
}

// An item that failed on one drive has no result at all.
static void clear_failed(const struct ticket *t, unsigned char *data)
{
    size_t heads = t->header.q_heads, dim = t->shape.head_dim;
    for (uint32_t i = 0; i < t->count; i++) {
        if (!le_get32(data + t->layout.status + 4 * (size_t)i))
            continue;
        size_t at = i * heads;
        memset((float *)(data + t->layout.out) + at * dim, 0, heads * dim * sizeof(float));
        for (size_t h = at; h < at + heads; h++) {
            ((float *)(data + t->layout.lse))[h] = -INFINITY;
            ((float *)(data + t->layout.captured))[h] = 0;
        }
    }
}

// True when the drive has lost something of an item.
static bool gather_attend(const struct ticket *t, const struct link_share *share,
                          const struct part *part, unsigned char *data)
{
    struct attend_layout layout;
    unsigned char *from = t->task.stage + part->cut.at;
    const struct note *notes = t->task.notes;
    lay_out_part(&t->shape, &t->header, share, &part->cut, &layout);
    struct rows out = query_rows(&t->shape, &t->header, share, t->shape.head_dim * sizeof(float));
    struct rows one = out;
    one.width = sizeof(float);
    copy_rows(&out, notes, t->count, share->group, data + t->layout.out, from + layout.out, true);
    copy_rows(&one, notes, t->count, share->group, data + t->layout.lse, from + layout.lse, true);
    copy_rows(&one, notes, t->count, share->group, data + t->layout.captured,
              from + layout.captured, true);
    return gather_status(t, share, from + layout.status, data + t->layout.status);
}

void array_gather(struct array *a, struct ticket *t, unsigned char *data)
{
    if (t->opcode == OP_ATTEND)
        memset(data + t->layout.status, 0, 4 * (size_t)t->count);
    for (uint32_t i = 0; i < a->drives; i++) {
        const struct part *part = &t->task.part[i];
        struct link_share share = share_of(a, &t->shape, i);
        if (!part->cut.items || part->cut.in_place)
            continue;
        if (t->opcode == OP_ATTEND)
            a->failed |= (uint64_t)gather_attend(t, &share, part, data) << i;
        else
            copy_slabs(&t->shape, &t->header, t->task.notes, t->count, &share, &part->cut, data,
                       t->task.stage + part->cut.at, true);
    }
    if (t->opcode == OP_ATTEND)
        clear_failed(t, data);
}

// ---- statistics --------------------------------------------------------------------------------

// Of all drives, where those of a group count the same tokens or sequences, each for its heads.
static uint64_t sum_of_groups(const struct drive_stats *stats, uint32_t drives, uint32_t groups,
                              size_t row)
{
    uint64_t sum = 0;
    for (uint32_t g = 0; g < groups; g++) {
        uint64_t most = 0;
        for (uint32_t i = g; i < drives; i += groups)
            most = max_u64(most, stat_of(&stats[i], row));
        sum += most;
    }
    return sum;
}

void link_array_merge(const struct drive_stats *stats, uint32_t drives, uint32_t sets,
                      struct drive_stats *out)
{
    uint32_t groups = link_array_share(drives, sets, 1, 0).groups;
    for (size_t row = 0; row < STAT_ROWS; row++) {
        uint64_t sum = 0, most = 0, least = UINT64_MAX;
        for (uint32_t i = 0; i < drives; i++) {
            uint64_t one = stat_of(&stats[i], row);
            sum += one;
            most = max_u64(most, one);
            if (stats[i].audits)
                least = min_u64(least, one);
        }
        enum stat_how how = stat_rows[row].how;
        *stat_at(out, row) = how == STAT_SAME || how == STAT_NOW_SAME
                                 ? sum_of_groups(stats, drives, groups, row)
                             : how == STAT_TOGETHER ? most
                             : how != STAT_LEAST    ? sum
                             : least != UINT64_MAX  ? least
                                                    : 0;
    }
}

void array_merge_identity(struct drive_identity *all, const struct drive_identity *one)
{
    all->dram_bytes += one->dram_bytes;
    all->capacity_bytes += one->capacity_bytes;
    all->page_bytes = max_u64(all->page_bytes, one->page_bytes);
    all->block_bytes = max_u64(all->block_bytes, one->block_bytes);
    all->dies += one->dies;
    all->read_bytes = max_u64(all->read_bytes, one->read_bytes);
    all->max_tickets = min_u64(all->max_tickets, one->max_tickets);
    all->max_items = min_u64(all->max_items, one->max_items);
    all->ticket_ms = min_u64(all->ticket_ms, one->ticket_ms);
    all->methods &= one->methods;
    all->kv_types &= one->kv_types;
}

bool link_array_bytes(uint32_t drives, uint32_t count, const struct space_config *config,
                      uint64_t *out)
{
    struct attend_layout layout;
    // Twice: for a batch whose ATTEND goes while another one's result comes.
    enum { AT_A_TIME = 2, SLACK = 16 * ARRAY_ALIGN };
    uint64_t fixed = sizeof(struct array) + (uint64_t)config->max_sequences * sizeof(struct place);
    uint64_t part =
        sizeof(struct part) * (ARRAY_REQUESTS + ARRAY_TICKETS) + sizeof(struct drive_stats) + 256;
    uint64_t each = table_bytes(count) + SLACK, stage;
    if (!attend_layout(&layout, count, config->q_heads, config->kv_heads, config->head_dim, true) ||
        !checked_add(layout.in_bytes, layout.out_bytes, &stage) ||
        !checked_add(stage, 2 * notes_bytes(count), &stage) || !checked_mul(each, drives, &each) ||
        !checked_add(stage, each, &stage) || !checked_mul(stage, AT_A_TIME, &stage) ||
        !checked_mul(part, drives, &part) || !checked_add(fixed, part, out))
        return false;
    return checked_add(*out, stage, out);
}
