// SPDX-License-Identifier: Apache-2.0
// An operation is accepted, given to the flash below at once, so that there it keeps its order, and
// to the model; it is handed back when both are done with it. Nobody looks at a buffer in between.
// What is refused or fails by wear takes its time, too, but for what no device would begin.
#include "drive/flash/nand_flash.h"
#include "base/checked.h"
#include "base/mapping.h"
#include "base/size.h"
#include "drive/flash/nand.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

// Stands for the submitter's operation below and in the model.
struct proxy {
    struct flash_io io; // must be first: handed back by the flash below
    struct nand_op op;
    struct flash_io *original;
    int status;        // by wear
    unsigned open;     // below, in the model
    struct proxy *all; // every proxy
};

struct flash_nand_emulated {
    struct flash flash;
    struct flash *below;
    struct flash_nand nand;
    struct nand_wear wear;
    struct mapping oob; // (blocks, pages_per_block, FLASH_OOB_BYTES) where there is any
    struct nand_time *time;
    struct proxy *free_list, *all;
    uint64_t below_open; // operations that the flash below holds
    uint64_t now_ns;
    struct flash_queue done;
};

static struct proxy *proxy_of(struct nand_op *op)
{
    return (struct proxy *)((char *)op - offsetof(struct proxy, op));
}

static struct proxy *proxy_new(struct flash_nand_emulated *self)
{
    struct proxy *proxy = self->free_list;
    if (proxy) {
        self->free_list = (struct proxy *)proxy->io.next;
    } else if ((proxy = calloc(1, sizeof *proxy))) {
        proxy->all = self->all;
        self->all = proxy;
    }
    return proxy;
}

static void end(struct flash_nand_emulated *self, struct proxy *proxy)
{
    if (--proxy->open)
        return;
    int status = proxy->status ? proxy->status : proxy->io.status;
    flash_queue_finish(&self->done, proxy->original, status, proxy->op.done_ns);
    proxy->io.next = (struct flash_io *)self->free_list;
    self->free_list = proxy;
}

static void take_below(struct flash_nand_emulated *self, uint64_t now_ns)
{
    if (!self->below_open)
        return;
    struct flash_io *next, *io = self->below->ops->poll(self->below, now_ns);
    for (; io; io = next) {
        next = io->next;
        self->below_open--;
        end(self, (struct proxy *)io);
    }
}

static void take_model(struct flash_nand_emulated *self, uint64_t now_ns)
{
    struct nand_op *next, *op = nand_time_advance(self->time, now_ns);
    for (; op; op = next) {
        next = op->next;
        end(self, proxy_of(op));
    }
}

// What it comes to before anything is begun: 0, a failure that takes its time (*status), or one
// that does not.
static int accept(struct flash_nand_emulated *self, const struct flash_io *io, uint64_t now_ns,
                  int *status)
{
    *status = 0;
    if (io->op == FLASH_ERASE && io->block < self->flash.geometry.blocks)
        *status = nand_wear_erase(&self->wear, io->block);
    if (*status) {
        self->nand.next[io->block] = (uint16_t)self->flash.geometry.pages_per_block;
        return 0;
    }
    int err = flash_nand_accept(&self->nand, &self->flash.geometry, io);
    if (!err && io->op == FLASH_PROGRAM)
        *status = nand_wear_program(&self->wear, io->block, io->page == 0, now_ns);
    if (!err && io->op == FLASH_READ)
        *status = nand_wear_read(&self->wear, io->block, io->page, io->pages, now_ns);
    return err;
}

// Moves what lies beside the data at once, whenever its time comes: nobody looks before.
static void move_oob(struct flash_nand_emulated *self, const struct flash_io *io)
{
    uint64_t n = (uint64_t)io->pages * FLASH_OOB_BYTES;
    if (!self->oob.data || (io->op != FLASH_READ && io->op != FLASH_PROGRAM))
        return;
    uint64_t first = io->block * self->flash.geometry.pages_per_block + io->page;
    uint8_t *place = self->oob.data + first * FLASH_OOB_BYTES;
    if (io->op == FLASH_READ && io->oob)
        memcpy(io->oob, place, n);
    else if (io->op == FLASH_PROGRAM && io->oob)
        memcpy(place, io->oob, n);
    else if (io->op == FLASH_PROGRAM)
        memset(place, 0, n);
}

static void begin(struct flash_nand_emulated *self, struct flash_io *io, int status,
                  struct flash_queue *below, struct nand_op ***model)
{
    struct proxy *proxy = proxy_new(self);
    if (!proxy) {
        flash_queue_finish(&self->done, io, INST_ENOMEM, self->now_ns);
        return;
    }
    struct proxy *all = proxy->all;
    *proxy = (struct proxy){.io = *io, .original = io, .status = status, .all = all};
    proxy->io.status = 0;
    proxy->op.done_ns = self->now_ns;
    if (io->op != FLASH_SYNC) {
        uint32_t units = self->flash.geometry.dies;
        proxy->op = (struct nand_op){
            .kind = io->op == FLASH_READ      ? NAND_READ
                    : io->op == FLASH_PROGRAM ? NAND_PROGRAM
                                              : NAND_ERASE,
            .priority = io->priority,
            .unit = (uint32_t)(io->block % units),
            .block = io->block,
            .page = io->page,
            .pages = io->pages,
        };
        proxy->open++;
        **model = &proxy->op;
        *model = &proxy->op.next;
    }
    move_oob(self, io);
    // A program that fails has used its pages up; others that fail have done nothing.
    if (!status || io->op == FLASH_PROGRAM) {
        proxy->open++;
        self->below_open++;
        flash_queue_push(below, &proxy->io);
    }
}

static void nand_submit(struct flash *flash, struct flash_io *list, uint64_t now_ns)
{
    struct flash_nand_emulated *self = (struct flash_nand_emulated *)flash;
    struct flash_queue below = {0};
    struct nand_op *ops = NULL, **model = &ops;
    self->now_ns = now_ns;
    for (struct flash_io *io = list, *next; io; io = next) {
        int status, err = accept(self, io, now_ns, &status);
        next = io->next;
        if (err)
            flash_queue_finish(&self->done, io, err, now_ns);
        else
            begin(self, io, status, &below, &model);
    }
    if (ops)
        nand_time_submit(self->time, ops, now_ns);
    if (below.head)
        self->below->ops->submit(self->below, below.head, now_ns);
}

static struct flash_io *nand_poll(struct flash *flash, uint64_t now_ns)
{
    struct flash_nand_emulated *self = (struct flash_nand_emulated *)flash;
    self->now_ns = now_ns;
    take_below(self, now_ns);
    take_model(self, now_ns);
    return flash_queue_take(&self->done);
}

static uint64_t nand_next_ns(struct flash *flash)
{
    const struct flash_nand_emulated *self = (const struct flash_nand_emulated *)flash;
    if (self->done.head)
        return 0;
    uint64_t next = nand_time_next(self->time);
    // What only the flash below still holds: it may end at any time.
    return next == UINT64_MAX && self->below_open ? 0 : next;
}

static void nand_wait(struct flash *flash, uint64_t max_ns)
{
    struct flash_nand_emulated *self = (struct flash_nand_emulated *)flash;
    uint64_t next = nand_time_next(self->time);
    if (self->done.head || next <= self->now_ns)
        return;
    if (next == UINT64_MAX && self->below_open && self->below->ops->wait) {
        self->below->ops->wait(self->below, max_ns);
        return;
    }
    if (next == UINT64_MAX)
        return;
    uint64_t ns = min_u64(max_ns, next - self->now_ns);
    struct timespec time = {.tv_sec = (time_t)(ns / 1000000000),
                            .tv_nsec = (long)(ns % 1000000000)};
    // A signal ends the sleep early; the caller polls and comes back.
    (void)clock_nanosleep(CLOCK_MONOTONIC, 0, &time, NULL);
}

static void nand_close(struct flash *flash)
{
    struct flash_nand_emulated *self = (struct flash_nand_emulated *)flash;
    flash_close(self->below);
    nand_time_close(self->time);
    nand_wear_free(&self->wear);
    mapping_close(&self->oob);
    if (self->nand.next)
        flash_nand_free(&self->nand);
    for (struct proxy *proxy = self->all, *next; proxy; proxy = next) {
        next = proxy->all;
        free(proxy);
    }
    free(self);
}

static const struct flash_ops nand_ops = {
    .submit = nand_submit,
    .poll = nand_poll,
    .next_ns = nand_next_ns,
    .wait = nand_wait,
    .close = nand_close,
};

static uint32_t retries(void *user, const struct nand_op *op, uint32_t page)
{
    const struct flash_nand_emulated *self = user;
    return nand_wear_retries(&self->wear, op->block, page, self->now_ns);
}

// Lies in memory wherever the payload lies, but where there is none.
static int open_oob(struct flash_nand_emulated *self, const struct flash_nand_options *o,
                    struct inst_msg *msg)
{
    const struct flash_geometry *g = &self->flash.geometry;
    uint64_t bytes = g->blocks * g->pages_per_block * FLASH_OOB_BYTES;
    if (!g->oob || o->payload == NAND_PAYLOAD_NONE || mapping_open(&self->oob, bytes, false))
        return 0;
    return inst_fail(msg, INST_ENOMEM, "NAND: the system refused %llu bytes for the OOB",
                     (unsigned long long)bytes);
}

static int open_below(struct flash **out, const struct flash_nand_options *o,
                      const struct flash_geometry *g, struct budget *budget, struct inst_msg *msg)
{
    if (o->payload == NAND_PAYLOAD_NONE)
        return flash_null_open(out, g, msg);
    if (o->payload == NAND_PAYLOAD_RAM)
        return flash_ram_open(out, g, 0, msg);
    const struct flash_file_options file = {
        .directory = o->directory, .geometry = *g, .budget = budget};
    return flash_file_open(out, &file, msg);
}

int flash_nand_open(struct flash **out, const struct flash_nand_options *o,
                    const struct flash_geometry *geometry, struct budget *budget,
                    struct inst_msg *msg)
{
    struct flash_nand_emulated *self = calloc(1, sizeof *self);
    if (!self)
        return inst_fail(msg, INST_ENOMEM, "NAND: no memory");
    const struct nand_wear_options wear = {.params = o->profile.wear,
                                           .seed = o->seed,
                                           .erases = o->erases,
                                           .age_ns = o->age_ns,
                                           .no_bad = o->no_bad,
                                           .no_retries = o->no_retries};
    const struct nand_time_options time = {
        .params = o->profile.time, .retries = retries, .user = self};
    self->flash.ops = &nand_ops;
    self->flash.geometry = *geometry;
    int err = 0;
    if (geometry->dies != nand_units(&o->profile.time) ||
        geometry->oob > (o->profile.time.spare_bytes >= FLASH_OOB_BYTES) ||
        geometry->page_bytes != o->profile.time.page_bytes)
        err = inst_fail(msg, INST_EINVAL, "NAND: the geometry is not that of profile %s", o->name);
    if (!err)
        err = flash_nand_init(&self->nand, geometry, NULL, msg);
    if (!err)
        err = nand_wear_init(&self->wear, &wear, geometry, msg);
    if (!err)
        err = nand_time_open(&self->time, &time, msg);
    if (!err)
        err = open_oob(self, o, msg);
    if (!err)
        err = open_below(&self->below, o, geometry, budget, msg);
    if (err) {
        nand_close(&self->flash);
        return err;
    }
    self->flash.geometry.no_data = self->below->geometry.no_data;
    snprintf(self->flash.path, sizeof self->flash.path, "emulated NAND, %.40s, over %.60s", o->name,
             self->below->path);
    *out = &self->flash;
    return 0;
}

void flash_nand_hold(struct flash *flash, uint64_t until_ns)
{
    nand_time_hold(((struct flash_nand_emulated *)flash)->time, until_ns);
}

void flash_nand_counters(const struct flash *flash, struct flash_nand_counters *out)
{
    const struct flash_nand_emulated *self = (const struct flash_nand_emulated *)flash;
    const struct nand_wear_counters *wear = &self->wear.counters;
    struct nand_counters time;
    nand_time_counters(self->time, &time);
    *out = (struct flash_nand_counters){
        .busy_ns = time.busy_ns,
        .channel_ns = time.channel_ns,
        .die_ns = time.die_ns,
        .read_pages = time.read_pages,
        .retries = time.retries,
        .program_pages = time.program_pages,
        .erases = time.erases,
        .suspends = time.suspends,
        .joined_pages = time.joined_pages,
        .bad_blocks = wear->bad_blocks,
        .grown_bad = wear->grown_bad,
        .lost_blocks = wear->lost_blocks,
        .failed_programs = wear->failed_programs,
        .failed_erases = wear->failed_erases,
        .failed_reads = wear->failed_reads,
        .most_erases = wear->most_erases,
    };
}

void flash_nand_erase_counts(const struct flash *flash, uint64_t *blocks, size_t n)
{
    const struct flash_nand_emulated *self = (const struct flash_nand_emulated *)flash;
    memset(blocks, 0, n * sizeof *blocks);
    for (uint64_t b = 0; b < self->wear.blocks; b++)
        blocks[min_u64(self->wear.block[b].erases, n - 1)]++;
}

// ---- PROFILE[:SIZE][,KEY=VALUE]... -------------------------------------------------------------

static bool is(const char *text, size_t n, const char *word)
{
    return strlen(word) == n && !memcmp(text, word, n);
}

static bool read_number(const char *text, size_t n, uint64_t most, uint64_t *out)
{
    uint64_t value = 0;
    for (size_t i = 0; i < n; i++) {
        if (text[i] < '0' || text[i] > '9' || value > most / 10)
            return false;
        value = 10 * value + (uint64_t)(text[i] - '0');
    }
    *out = value;
    return n && value <= most;
}

static bool read_switch(const char *text, size_t n, bool *off)
{
    *off = is(text, n, "off");
    return *off || is(text, n, "on");
}

static bool read_payload(struct flash_nand_options *o, const char *text, size_t n)
{
    static const char file[] = "file:";
    if (n > strlen(file) && !memcmp(text, file, strlen(file))) {
        o->payload = NAND_PAYLOAD_FILE;
        n -= strlen(file);
        if (n >= sizeof o->directory)
            return false;
        memcpy(o->directory, text + strlen(file), n);
        o->directory[n] = 0;
        return true;
    }
    o->payload = is(text, n, "none") ? NAND_PAYLOAD_NONE : NAND_PAYLOAD_RAM;
    return is(text, n, "none") || is(text, n, "ram");
}

static bool read_option(struct flash_nand_options *o, const char *key, size_t key_n,
                        const char *text, size_t n)
{
    enum { DAYS_MOST = 36500, WEAR_MOST = 1000000 };
    if (is(key, key_n, "payload"))
        return read_payload(o, text, n);
    if (is(key, key_n, "clock")) {
        o->paced = is(text, n, "paced");
        return o->paced || is(text, n, "virtual");
    }
    if (is(key, key_n, "bad"))
        return read_switch(text, n, &o->no_bad);
    if (is(key, key_n, "retries"))
        return read_switch(text, n, &o->no_retries);
    if (is(key, key_n, "engine"))
        return read_switch(text, n, &o->no_engine);
    if (is(key, key_n, "seed"))
        return read_number(text, n, UINT64_MAX / 16, &o->seed);
    if (is(key, key_n, "wear"))
        return read_number(text, n, WEAR_MOST, &o->erases);
    if (is(key, key_n, "age") && read_number(text, n, DAYS_MOST, &o->age_ns)) {
        o->age_ns *= UINT64_C(86400000000000);
        return true;
    }
    return false;
}

int flash_nand_parse(struct flash_nand_options *o, const char *text, struct inst_msg *msg)
{
    static const char form[] = "PROFILE[:SIZE][,payload=ram|file:DIR|none][,clock=virtual|paced]"
                               "[,bad=on|off][,retries=on|off][,engine=on|off][,wear=N]"
                               "[,age=DAYS][,seed=N]";
    char where[sizeof o->directory];
    *o = (struct flash_nand_options){.seed = 1};
    const char *comma = strchr(text, ','), *stop = comma ? comma : text + strlen(text);
    const char *colon = memchr(text, ':', (size_t)(stop - text));
    size_t n = (size_t)((colon ? colon : stop) - text);
    bool size_ok = !colon || (!size_parse(colon + 1, (size_t)(stop - colon - 1), &o->size_bytes) &&
                              o->size_bytes);
    if (!n || n >= sizeof where || !size_ok)
        return inst_fail(msg, INST_EINVAL, "'%.60s' is not %s", text, form);
    memcpy(where, text, n);
    where[n] = 0;
    for (const char *key = comma; key; key = comma) {
        key++;
        comma = strchr(key, ',');
        stop = comma ? comma : key + strlen(key);
        const char *equals = memchr(key, '=', (size_t)(stop - key));
        if (!equals ||
            !read_option(o, key, (size_t)(equals - key), equals + 1, (size_t)(stop - equals - 1)))
            return inst_fail(msg, INST_EINVAL, "'%.*s' is none of %s", (int)(stop - key), key,
                             strchr(form, ',') - 1);
    }
    static _Thread_local struct profile profile; // too large for small stacks
    int err = profile_open(&profile, where, msg);
    if (err)
        return err;
    snprintf(o->name, sizeof o->name, "%s", where);
    struct flash_geometry geometry;
    err = nand_profile_read(&o->profile, &profile, msg);
    return err ? err : nand_profile_geometry(&o->profile, o->size_bytes, &geometry, msg);
}

int flash_nand_options_new(struct flash_nand_options **out, const char *text, struct inst_msg *msg)
{
    *out = malloc(sizeof **out);
    int err = *out ? flash_nand_parse(*out, text, msg) : inst_fail(msg, INST_ENOMEM, "no memory");
    if (err) {
        free(*out);
        *out = NULL;
    }
    return err;
}

void flash_nand_options_free(struct flash_nand_options *options)
{
    free(options);
}

void flash_nand_options_filter(struct flash_nand_options *options, uint64_t bytes_per_s)
{
    options->profile.time.filter = bytes_per_s;
}

struct flash_nand_about flash_nand_about(const struct flash_nand_options *o)
{
    struct flash_nand_about about = {.directory = *o->directory ? o->directory : NULL,
                                     .in_memory = o->payload == NAND_PAYLOAD_RAM,
                                     .paced = o->paced,
                                     .profile = o->name,
                                     .no_engine = o->no_engine};
    // It was looked at when the options were parsed.
    (void)nand_profile_geometry(&o->profile, o->size_bytes, &about.geometry, NULL);
    return about;
}
