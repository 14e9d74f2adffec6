// SPDX-License-Identifier: Apache-2.0
#include "host/engine/store.h"
#include "base/clock.h"
#include "base/size.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

// More than nothing.
static bool parse_size(const char *text, size_t bytes, uint64_t *out)
{
    return !size_parse(text, bytes, out) && *out;
}

static int parse_ram(struct store_where *where, const char *text, struct inst_msg *msg)
{
    const char *size = text + strlen("ram:"), *at = strchr(size, '@');
    size_t size_bytes = at ? (size_t)(at - size) : strlen(size);
    if (!parse_size(size, size_bytes, &where->size) ||
        (at && !parse_size(at + 1, strlen(at + 1), &where->rate)))
        return inst_fail(msg, INST_EINVAL,
                         "'%s' is not ram:SIZE[@RATE], for example ram:2G or ram:512M@1G", text);
    return 0;
}

// mkdir -p; what exists is fine.
static int make_directories(char *path)
{
    for (char *p = path + 1; *p; p++) {
        if (*p != '/')
            continue;
        *p = 0;
        int err = mkdir(path, 0777) && errno != EEXIST ? errno : 0;
        *p = '/';
        if (err)
            return err;
    }
    return mkdir(path, 0777) && errno != EEXIST ? errno : 0;
}

static int default_directory(struct store_where *where, struct inst_msg *msg)
{
    const char *base = getenv("XDG_CACHE_HOME"), *middle = "";
    // The XDG rules: a relative path there is to be ignored.
    if (!base || *base != '/') {
        base = getenv("HOME");
        middle = "/.cache";
    }
    if (!base || *base != '/')
        return inst_fail(msg, INST_EINVAL,
                         "no place for KV: neither XDG_CACHE_HOME nor HOME is an absolute path "
                         "(use --kv)");
    struct stat st;
    if (*middle && stat(base, &st)) // somebody's home is not ours to make
        return inst_fail(msg, INST_EIO, "no place for KV: HOME is %s: %s (use --kv)", base,
                         strerror(errno));
    size_t bytes = strlen(base) + strlen(middle) + sizeof "/instinfer";
    char *path = malloc(bytes);
    if (!path)
        return inst_fail(msg, INST_ENOMEM, "out of memory");
    snprintf(path, bytes, "%s%s/instinfer", base, middle);
    where->path = path;
    where->is_default = true;
    return 0;
}

static int check_directory(const char *text, struct inst_msg *msg)
{
    struct stat st;
    if (stat(text, &st))
        return inst_fail(msg, errno == ENOENT ? INST_ENOENT : INST_EIO, "%s: %s", text,
                         strerror(errno));
    if (!S_ISDIR(st.st_mode))
        return inst_fail(msg, INST_ENOTSUP,
                         "%s: not a directory (files and devices cannot hold KV yet)", text);
    return 0;
}

int store_where_open(struct store_where *where, const char *text, struct inst_msg *msg)
{
    *where = (struct store_where){.kind = STORE_DIRECTORY};
    if (!text)
        return default_directory(where, msg);
    if (!(where->path = strdup(text)))
        return inst_fail(msg, INST_ENOMEM, "out of memory");
    if (!strcmp(text, "null:")) {
        where->kind = STORE_NULL;
        return 0;
    }
    if (!strncmp(text, "ram:", 4)) {
        where->kind = STORE_RAM;
        return parse_ram(where, text, msg);
    }
    if (!strncmp(text, "nand:", 5)) {
        where->kind = STORE_NAND;
        int err = flash_nand_options_new(&where->nand, text + 5, msg);
        err = err ? err : emulated_units_read(&where->units, where->nand, msg);
        const char *directory = err ? NULL : store_where_directory(where);
        return directory ? check_directory(directory, msg) : err;
    }
    return check_directory(text, msg);
}

const char *store_where_directory(const struct store_where *where)
{
    return where->kind == STORE_DIRECTORY ? where->path
           : where->kind == STORE_NAND    ? flash_nand_about(where->nand).directory
                                          : NULL;
}

bool store_where_is_memory(const struct store_where *where)
{
    return where->kind == STORE_RAM ||
           (where->kind == STORE_NAND && flash_nand_about(where->nand).in_memory);
}

void store_where_free(struct store_where *where)
{
    free(where->path);
    flash_nand_options_free(where->nand);
    *where = (struct store_where){0};
}

// ---- the drives --------------------------------------------------------------------------------

static int open_file(struct flash **flash, const struct store_where *where,
                     const struct plan_drive *part, bool dense, struct budget *budget,
                     struct inst_msg *msg)
{
    struct flash_file_options options = {
        .directory = where->path,
        .geometry = part->geometry,
        .budget = budget,
        // Dense attention reads whole rows: it has no use for the answer.
        .clock_ns = dense ? NULL : clock_ns,
    };
    int failed = where->is_default ? make_directories(where->path) : 0;
    if (failed)
        return inst_fail(msg, INST_EIO, "%s: cannot be created: %s (use --kv)", where->path,
                         strerror(failed));
    struct inst_msg why = {0};
    int err = flash_file_open(flash, &options, &why);
    bool place = err == INST_EIO || err == INST_ENOENT;
    return err ? inst_fail(msg, err, "%s%s", why.text, place ? " (use --kv)" : "") : 0;
}

static int open_flash(struct flash **flash, const struct store_where *where,
                      const struct plan_drive *part, bool dense, struct budget *budget,
                      struct inst_msg *msg)
{
    switch (where->kind) {
    case STORE_NULL:
        return flash_null_open(flash, &part->geometry, msg);
    case STORE_RAM:
        return flash_ram_open(flash, &part->geometry, where->rate, msg);
    case STORE_NAND:
        return flash_nand_open(flash, where->nand, &part->geometry, budget, msg);
    default:
        return open_file(flash, where, part, dense, budget, msg);
    }
}

static void tell(void *user, const struct flash_io *io, uint64_t now_ns)
{
    const struct store_drive *d = user;
    const struct flash_geometry *g = &d->flash->geometry;
    uint64_t block = (uint64_t)g->page_bytes * g->pages_per_block;
    static const enum inst_flash_op ops[] = {[FLASH_READ] = INST_FLASH_READ,
                                             [FLASH_PROGRAM] = INST_FLASH_PROGRAM,
                                             [FLASH_ERASE] = INST_FLASH_ERASE,
                                             [FLASH_SYNC] = INST_FLASH_SYNC};
    struct inst_flash_event e = {.drive = d->place, .op = ops[io->op], .time_ns = now_ns};
    if (io->op != FLASH_SYNC) {
        bool erase = io->op == FLASH_ERASE;
        e.block = io->block;
        e.page = erase ? 0 : io->page;
        e.pages = erase ? g->pages_per_block : io->pages;
        e.offset = io->block * block + (uint64_t)e.page * g->page_bytes;
        e.bytes = (uint64_t)e.pages * g->page_bytes;
    }
    d->trace(d->trace_user, &e);
}

static void tell_selection(void *user, struct drive_selection *s)
{
    const struct store_drive *d = user;
    if (!s->chosen)
        return;
    const struct inst_selection_event e = {.drive = d->place,
                                           .method = s->method == METHOD_SPARF ? "sparf" : "pages",
                                           .kv_type = kv_type_name(s->config->kv_type),
                                           .page_bytes = s->page_bytes,
                                           .kv_heads = s->config->kv_heads,
                                           .head_dim = s->config->head_dim,
                                           .group_tokens = s->config->group_tokens,
                                           .part_tokens = s->part_tokens,
                                           .page_channels = s->config->page_channels,
                                           .layer = s->layer,
                                           .sequence = s->seq,
                                           .head = s->head,
                                           .tokens = s->tokens,
                                           .flash_tokens = s->flash_tokens,
                                           .ranked_tokens = s->ranked_tokens,
                                           .channels = s->channels,
                                           .n_channels = s->n_channels,
                                           .chosen = s->chosen};
    d->selected(d->selected_user, &e);
}

static int open_traced(struct store_drive *d, uint32_t i, const struct store_where *where,
                       const struct store_options *options, bool dense, struct inst_msg *msg)
{
    struct flash *inner;
    int err = open_flash(&inner, where, &options->plan->part[i], dense, options->budget, msg);
    if (err)
        return err;
    d->flash = inner;
    d->nand = where->kind == STORE_NAND ? inner : NULL;
    d->trace = options->trace;
    d->trace_user = options->trace_user;
    d->place = options->place ? options->place[i] : i;
    return d->trace ? flash_trace_open(&d->flash, inner, tell, d, msg) : 0;
}

static int open_drive(struct store *store, struct store_drive *d, const struct store_where *where,
                      const struct plan_drive *part, const struct store_options *options,
                      struct inst_msg *msg)
{
    int err = budget_take(store->budget, part->dram, "a drive", msg);
    if (err)
        return err;
    d->bytes = part->dram;
    if (where->units.has_engine)
        err = engine_model_open(&d->engine, &where->units.engine, options->pool, d->nand, msg);
    if (err)
        return err;
    struct drive_limits limits = {
        .dram_bytes = part->dram,
        .pool = options->pool,
        .engine = d->engine,
        .kernels = options->kernels,
        .row_cache = part->row_cache,
        .no_row_cache = part->row_cache == UINT64_MAX,
        .selected = options->selected ? tell_selection : NULL,
        .selected_user = d,
    };
    d->selected = options->selected;
    d->selected_user = options->selected_user;
    err = drive_open(&d->drive, d->flash, &limits, msg);
    if (err)
        return err;
    err = d->nand && !flash_nand_about(where->nand).paced
              ? link_local_open_virtual(&d->link, d->drive, d->flash, msg)
              : link_local_open(&d->link, d->drive, d->flash, msg);
    return err || !where->units.link ? err : link_local_wire(d->link, where->units.link, msg);
}

static int open_array(struct store *store, const struct store_where *where, uint64_t limit_ns,
                      struct inst_msg *msg)
{
    struct link *links[LINK_ARRAY_MOST];
    const char *names[LINK_ARRAY_MOST];
    for (uint32_t i = 0; i < store->n; i++) {
        links[i] = store->drives[i].link;
        names[i] = where[i].path;
    }
    struct link_array_options options = {links, names, store->n, store->budget, limit_ns};
    return link_array_open(&store->link, &options, msg);
}

int store_open(struct store *store, const struct store_where *where,
               const struct store_options *options, struct inst_msg *msg)
{
    const struct engine_plan *plan = options->plan;
    bool dense = plan->space.method == METHOD_DENSE;
    int err = 0;
    *store = (struct store){.budget = options->budget, .n = plan->drives};
    store->drives = calloc(store->n, sizeof *store->drives);
    if (!store->drives)
        err = inst_fail(msg, INST_ENOMEM, "out of memory");
    // First all flash: what it measures on the way uses memory that will be the drives'.
    for (uint32_t i = 0; i < store->n && !err; i++)
        err = open_traced(&store->drives[i], i, &where[i], options, dense, msg);
    for (uint32_t i = 0; i < store->n && !err; i++)
        err = open_drive(store, &store->drives[i], &where[i], &plan->part[i], options, msg);
    if (!err && store->n == 1)
        store->link = store->drives->link;
    else if (!err)
        err = open_array(store, where, options->limit_ns, msg);
    if (err)
        store_close(store, options->limit_ns);
    return err;
}

void store_pass(struct store *store, uint64_t now_ns, bool waiting)
{
    uint64_t ns = store->passed_ns && !waiting ? now_ns - store->passed_ns : 0;
    store->passed_ns = now_ns;
    for (uint32_t i = 0; i < store->n && store->drives; i++) {
        if (store->drives[i].link)
            link_local_pass(store->drives[i].link, ns);
    }
}

uint64_t store_waited_ns(const struct store *store, uint64_t *since)
{
    uint64_t most = 0;
    for (uint32_t i = 0; i < store->n && store->drives; i++) {
        const struct store_drive *d = &store->drives[i];
        uint64_t now = d->link ? link_local_virtual_ns(d->link) : 0;
        most = now > since[i] && now - since[i] > most ? now - since[i] : most;
        since[i] = now;
    }
    return most;
}

bool store_emulated(const struct store *store, uint32_t i, struct store_modelled *out)
{
    if (i >= store->n || !store->drives || !store->drives[i].nand)
        return false;
    const struct store_drive *d = &store->drives[i];
    *out = (struct store_modelled){.link_ns = d->link ? link_local_wire_ns(d->link) : 0};
    flash_nand_counters(d->nand, &out->flash);
    if (d->engine)
        engine_model_counters(d->engine, &out->engine);
    return true;
}

// ---- closing -----------------------------------------------------------------------------------

// What a disk has not given back when the program ends; nobody reads it.
struct left {
    struct store_drive drive;
    struct left *next;
};
static _Atomic(struct left *) left_behind;

// False: flash does not give back what it holds of the drive.
static bool ends(struct store_drive *d, uint64_t limit_ns)
{
    enum { SLICE_NS = 1000 * 1000 };
    uint64_t end = clock_ns() + limit_ns;
    while (!drive_ends(d->drive)) {
        if (clock_ns() >= end)
            return false;
        if (d->flash->ops->wait)
            d->flash->ops->wait(d->flash, SLICE_NS);
    }
    return true;
}

static void leave(struct store_drive *d)
{
    struct left *left = malloc(sizeof *left);
    if (!left) // then nobody knows where it is
        return;
    *left = (struct left){*d, atomic_load(&left_behind)};
    while (!atomic_compare_exchange_weak(&left_behind, &left->next, left))
        ;
}

uint64_t store_close(struct store *store, uint64_t limit_ns)
{
    uint64_t kept = 0;
    if (store->n > 1)
        link_close(store->link);
    for (uint32_t i = 0; i < store->n && store->drives; i++) {
        struct store_drive *d = &store->drives[i];
        link_close(d->link);
        if (d->drive && !ends(d, limit_ns)) {
            leave(d);
            kept += d->bytes;
            continue;
        }
        if (d->drive)
            drive_close(d->drive);
        engine_close(d->engine);
        flash_close(d->flash);
        if (store->budget)
            budget_give(store->budget, d->bytes);
    }
    free(store->drives);
    *store = (struct store){0};
    return kept;
}
