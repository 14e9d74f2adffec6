// SPDX-License-Identifier: Apache-2.0
// Opening and closing an engine: file, plan, workers, buffers, drive, in this order, so that a
// budget that is too small is refused before a drive or a thread exists.
#include "host/engine/engine.h"
#include "base/checked.h"
#include "host/engine/loss.h"
#include "host/engine/sized.h"
#include "host/engine/system.h"
#include "host/model/rope.h"

#include <stdalign.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define INST_VERSION "0.1.0"

enum { TIMEOUT_MS = 60000 };

const char *inst_version(void)
{
    return INST_VERSION;
}

static int check_options(const struct inst_options *o, struct inst_msg *msg)
{
    if (!o->model)
        return inst_fail(msg, INST_EINVAL, "no model is named");
    if (o->n_kv > LINK_ARRAY_MOST)
        return inst_fail(msg, INST_EINVAL, "KV in %zu places: at most %d", o->n_kv,
                         LINK_ARRAY_MOST);
    if (o->attention && strcmp(o->attention, "dense") && strcmp(o->attention, "sparf") &&
        strcmp(o->attention, "pages") && strcmp(o->attention, "host"))
        return inst_fail(msg, INST_ENOTSUP,
                         "attention '%s' is not supported: dense, sparf, pages or host is",
                         o->attention);
    if (kv_type_named(o->kv_type) == KV_TYPES)
        return inst_fail(msg, INST_ENOTSUP, "KV as '%s' is not supported: f16, q8 or q4 is",
                         o->kv_type);
    if (o->attention && !strcmp(o->attention, "sparf") && kv_type_named(o->kv_type) != KV_F16)
        return inst_fail(msg, INST_ENOTSUP, "attention 'sparf' needs KV as f16, not %s",
                         o->kv_type);
    if (o->on_drive_loss && strcmp(o->on_drive_loss, "fail") &&
        strcmp(o->on_drive_loss, "recompute"))
        return inst_fail(msg, INST_EINVAL, "on the loss of a drive: '%s' is not fail or recompute",
                         o->on_drive_loss);
    if (o->page_channels && (!is_power_of_two(o->page_channels) || o->page_channels > 16))
        return inst_fail(msg, INST_EINVAL, "%u channels in a page: must be a power of two up to 16",
                         o->page_channels);
    if (o->micro_batches > MICRO_MOST)
        return inst_fail(msg, INST_EINVAL, "%u micro-batches: at most %d", o->micro_batches,
                         MICRO_MOST);
    if (!(o->audit >= 0 && o->audit <= 1))
        return inst_fail(msg, INST_EINVAL, "an audit of %g of the steps: must be 0 to 1", o->audit);
    if (o->group && (!is_power_of_two(o->group) || o->group < 16 || o->group > 1024))
        return inst_fail(msg, INST_EINVAL,
                         "a token group of %u: must be a power of two from 16 to 1024", o->group);
    if (o->threads > 1024)
        return inst_fail(msg, INST_EINVAL, "%u threads: at most 1024", o->threads);
    if (o->max_sessions > 65536)
        return inst_fail(msg, INST_EINVAL, "%u sessions: at most 65536", o->max_sessions);
    if (o->chunk > 65536)
        return inst_fail(msg, INST_EINVAL, "a chunk of %u tokens: at most 65536", o->chunk);
    if (o->context > (uint64_t)1 << 32)
        return inst_fail(msg, INST_EINVAL, "a context of %llu tokens: at most 2^32",
                         (unsigned long long)o->context);
    return 0;
}

static int choose_kernels(inst_engine *e, const char *name, struct inst_msg *msg)
{
    e->kernels = name ? kernels_by_name(name) : kernels_best();
    if (!e->kernels)
        return inst_fail(msg, INST_ENOTSUP, "kernel set '%s' is unknown or cannot run here", name);
    return 0;
}

static int read_names(inst_engine *e, struct inst_msg *msg)
{
    struct gguf_string name = {0};
    int err = gguf_get_string(e->gguf, "general.name", GGUF_OPTIONAL, &name, msg);
    if (err)
        return err;
    struct gguf_print print;
    const char *text = name.bytes ? gguf_printable(name, &print) : gguf_name(e->gguf);
    e->name = strdup(text);
    return e->name ? 0 : inst_fail(msg, INST_ENOMEM, "out of memory");
}

static int rope_frequencies(inst_engine *e, struct inst_msg *msg)
{
    struct model_config *c = &e->config;
    if (!c->rope_dims)
        return 0;
    e->rope_freq = budget_alloc(&e->budget, compute_rope_values(c) / 2, sizeof *e->rope_freq,
                                "rope frequencies", msg);
    if (!e->rope_freq)
        return INST_ENOMEM;
    rope_set(c, &e->weights, e->context, e->rope_freq);
    return 0;
}

static int load_model(inst_engine *e, const struct inst_options *o, struct inst_msg *msg)
{
    int err = o->read_weights ? gguf_open_read(&e->gguf, o->model, &e->available, &e->budget, msg)
                              : gguf_open(&e->gguf, o->model, &e->budget, msg);
    if (!err)
        err = model_config_read(e->gguf, &e->config, msg);
    if (!err)
        err = model_weights_bind(e->gguf, &e->config, &e->budget, &e->weights, msg);
    if (!err)
        err = tokenizer_open(&e->tokenizer, e->gguf, &e->budget, msg);
    if (!err)
        err = read_names(e, msg);
    if (!err)
        err = engine_chat_open(e, o->chat, o->chat_time, msg);
    e->context = o->context ? o->context : e->config.context;
    if (!err)
        err = rope_frequencies(e, msg);
    if (err)
        return err;
    const struct model_config *c = &e->config;
    if (c->heads / c->kv_heads > GROUP_MAX)
        return inst_fail(msg, INST_ENOTSUP, "%u query heads for one KV head: at most %d",
                         c->heads / c->kv_heads, GROUP_MAX);
    if (e->weights.position_embd.data && e->context > c->context)
        return inst_fail(msg, INST_EINVAL,
                         "a context of %llu tokens: the model has learned positions for %u only",
                         (unsigned long long)e->context, c->context);
    e->piece = budget_alloc(&e->budget, tokenizer_piece_room(e->tokenizer), 1, "token text", msg);
    return e->piece ? 0 : INST_ENOMEM;
}

static int choose_attention(inst_engine *e, const struct inst_options *o, struct inst_msg *msg)
{
    const struct model_config *c = &e->config;
    bool sparf = o->attention && !strcmp(o->attention, "sparf");
    bool pages = o->attention && !strcmp(o->attention, "pages");
    // Written so that NaN is refused.
    if (!(o->pages_ratio >= 0 && o->pages_ratio <= 1 && o->pages_mass >= 0 && o->pages_mass < 1))
        return inst_fail(msg, INST_EINVAL,
                         "pages with a ratio of %g and a mass of %g: must be 0 to 1, a mass less",
                         o->pages_ratio, o->pages_mass);
    if (o->pages_flash && (o->pages_look || o->pages_rest))
        return inst_fail(msg, INST_EINVAL,
                         "an index on the disk goes without pages_look and pages_rest");
    if (o->sparf_channels > c->head_dim)
        return inst_fail(msg, INST_EINVAL, "sparf with %u channels: a head of this model has %u",
                         o->sparf_channels, c->head_dim);
    e->attend = (struct table_header){
        .head_count = c->kv_heads,
        .method = sparf   ? METHOD_SPARF
                  : pages ? METHOD_PAGES
                          : METHOD_DENSE,
        .q_heads = c->heads,
        .scale = c->score_scale,
        .softcap = c->score_softcap,
        .sparf_channels = o->sparf_channels,
        .sparf_tokens = o->sparf_tokens,
        .sparf_divisor = o->sparf_divisor,
        .sparf_local = o->sparf_local,
        .pages_ratio = (float)o->pages_ratio,
        .pages_mass = fminf((float)o->pages_mass, nextafterf(1, 0)),
        .pages_local = o->pages_newest,
        .pages_rest = o->pages_rest,
    };
    return 0;
}

int engine_attend_as(struct inst_engine *e, const struct inst_options *o, struct inst_msg *msg)
{
    struct table_header before = e->attend;
    int err = choose_attention(e, o, msg);
    if (!err && e->attend.method != METHOD_DENSE && e->attend.method != e->loss.plan.method)
        err = inst_fail(msg, INST_EINVAL, "the drive was not prepared for attention \"%s\"",
                        o->attention);
    if (err)
        e->attend = before;
    return err;
}

static bool rounds_x(const struct gguf *gguf)
{
    for (uint64_t i = 0; i < gguf_tensor_count(gguf); i++)
        if (kernel_rounds_x(gguf_tensor_at(gguf, i)->type))
            return true;
    return false;
}

struct plan_place engine_plan_place(const struct store_where *where)
{
    bool ram = where->kind == STORE_RAM;
    if (where->kind == STORE_NAND)
        return (struct plan_place){.has_geometry = true,
                                   .geometry = flash_nand_about(where->nand).geometry};
    return (struct plan_place){
        .limit = ram ? where->size : 0,
        // Memory itself is attended in place.
        .in_place = (ram && !where->rate) || where->kind == STORE_NULL,
    };
}

// On NAND, where pages are what is read, K of a group of one head fills one. 0: the drive chooses;
// it does so where pieces are chosen.
static uint32_t group_for(const inst_engine *e, const struct plan_place *places)
{
    enum { LEAST = 16, MOST = 1024 };
    if (e->attend.method == METHOD_PAGES)
        return 0;
    for (uint32_t i = 0; i < e->n_places; i++) {
        uint32_t group = LEAST, most = places[i].geometry.page_bytes / 2 / e->config.head_dim;
        while (places[i].has_geometry && group < MOST && 2 * group <= most)
            group *= 2;
        if (places[i].has_geometry)
            return group;
    }
    return 0;
}

static int make_plan(inst_engine *e, const struct inst_options *o, struct inst_msg *msg)
{
    e->max_sessions = o->max_sessions ? o->max_sessions : 1;
    struct plan_place places[LINK_ARRAY_MOST];
    for (uint32_t i = 0; i < e->n_places; i++) {
        places[i] = engine_plan_place(&e->where[i]);
        e->loss.place[i] = i;
    }
    struct plan_input input = {
        .memory = e->memory,
        .tables = e->budget.used,
        .context = e->context,
        .kv_limit = o->kv_limit,
        .row_cache = o->row_cache,
        .places = places,
        .drives = e->n_places,
        .sessions = e->max_sessions,
        .threads = o->threads,
        .max_threads = system_cpus(),
        .group = o->group ? o->group : group_for(e, places),
        .chunk = (uint32_t)min_u64(o->chunk, e->context),
        .method = e->attend.method,
        .page_channels = o->page_channels,
        .piece_tokens = o->pages_piece,
        .piece_keys = o->pages_keys,
        .piece_heads = o->pages_heads,
        .piece_look = o->pages_look,
        .piece_bits = o->pages_bits,
        .piece_flash = o->pages_flash,
        .kv_type = kv_type_named(o->kv_type),
        .request_bytes = (uint32_t)min_u64(o->request_cost, UINT32_MAX),
        .rounds_x = rounds_x(e->gguf),
        .host_attention = e->host_attention,
        .apart = e->compute_kind->apart,
    };
    e->loss.plan = input;
    e->loss.recompute = o->on_drive_loss && !strcmp(o->on_drive_loss, "recompute");
    int err = engine_plan(&e->plan, &e->config, &input, msg);
    if (err)
        return err;
    e->kv_limit = e->plan.capacity;
    return 0;
}

static int make_buffers(inst_engine *e, struct inst_msg *msg)
{
    static const char *const names[] = {
#define BUFFER_NAME(name, where, text) "buffer " #name,
        BUFFER_MAP(BUFFER_NAME)
#undef BUFFER_NAME
    };
    static const enum compute_place place[] = {
#define BUFFER_PLACE(name, where, text) PLACE_##where,
        BUFFER_MAP(BUFFER_PLACE)
#undef BUFFER_PLACE
    };
    struct compute *c = e->compute;
    for (int i = 0; i < BUFFER_COUNT; i++) {
        int err = e->plan.buffer[i] ? c->ops->buffer_new(c, e->plan.buffer[i], place[i], names[i],
                                                         &e->buffer[i], msg)
                                    : 0;
        if (err)
            return err;
    }
    uint32_t n = e->max_sessions;
    size_t each = sizeof *e->sessions + (2 + SEQUENCES_MORE) * sizeof *e->sequence +
                  step_segment_bytes() + sync_item_bytes() + sizeof *e->scratch.segment +
                  sizeof *e->scratch.refused;
    if (each > PLAN_SESSION_BYTES)
        return inst_fail(msg, INST_EINTERNAL, "the plan has %d bytes for a session, not %zu",
                         PLAN_SESSION_BYTES, each);
    e->sessions = budget_alloc(&e->budget, n, sizeof *e->sessions, "sessions", msg);
    e->n_sequences = seqs_most(n);
    e->sequence = budget_alloc(&e->budget, e->n_sequences, sizeof *e->sequence, "sequences", msg);
    struct scratch *s = &e->scratch;
    s->seg = budget_alloc(&e->budget, n, step_segment_bytes(), "a step's segments", msg);
    s->item = budget_alloc(&e->budget, n, sync_item_bytes(), "prefixes", msg);
    s->segment = budget_alloc(&e->budget, n, sizeof *s->segment, "segments", msg);
    s->refused = budget_alloc(&e->budget, n, sizeof *s->refused, "segments", msg);
    bool all = e->sessions && e->sequence && s->seg && s->item && s->segment && s->refused;
    return all ? 0 : INST_ENOMEM;
}

// The first words with the drive: what it is, and the space.
static int configure_drive(inst_engine *e, struct inst_msg *msg)
{
    alignas(64) unsigned char table[IDENTIFY_TABLE_BYTES], config[CONFIG_BYTES];
    struct drive_identity identity;
    uint64_t group;
    struct command identify = {.opcode = OP_IDENTIFY, .length = sizeof table};
    int err = port_call(&e->port, identify, NULL, table, NULL, msg);
    if (err)
        return err;
    if (identity_decode(&identity, table, sizeof table) || !identity.max_items)
        return inst_fail(msg, INST_EIO, "the drive's identity is malformed");
    e->max_items = (uint32_t)min_u64(identity.max_items, UINT32_MAX);
    e->drive_dram = identity.dram_bytes;
    struct space_config space = e->plan.space;
    space.group_tokens = e->plan.group;
    space_config_encode(config, &space);
    struct command configure = {.opcode = OP_CONFIG};
    err = port_call(&e->port, configure, config, NULL, &group, msg);
    if (err)
        return err;
    e->plan.group = (uint32_t)group;
    return 0;
}

// "a, b, a" as "a, b".
static char *join(const inst_engine *e, const char *(*text)(const inst_engine *, uint32_t))
{
    size_t bytes = 1, at = 0;
    for (uint32_t i = 0; i < e->n_places; i++)
        bytes += strlen(text(e, i)) + 2;
    char *out = calloc(1, bytes);
    for (uint32_t i = 0; out && i < e->n_places; i++) {
        uint32_t same = 0;
        while (strcmp(text(e, same), text(e, i)))
            same++;
        if (same == i)
            at += (size_t)snprintf(out + at, bytes - at, "%s%s", at ? ", " : "", text(e, i));
    }
    return out;
}

static const char *place_text(const inst_engine *e, uint32_t i)
{
    return e->where[i].path;
}

static const char *path_text(const inst_engine *e, uint32_t i)
{
    return e->store.drives ? e->store.drives[i].flash->path : "";
}

static int open_places(inst_engine *e, const struct inst_options *o, struct inst_msg *msg)
{
    size_t n = o->n_kv ? o->n_kv : 1;
    e->where = calloc(n, sizeof *e->where);
    e->place = calloc(n, sizeof *e->place);
    e->loss.before_of = calloc(n, sizeof *e->loss.before_of);
    if (!e->where || !e->place || !e->loss.before_of)
        return inst_fail(msg, INST_ENOMEM, "out of memory");
    while (e->n_places < n) {
        struct store_where *where = &e->where[e->n_places++];
        int err = store_where_open(where, o->n_kv ? o->kv[e->n_places - 1] : NULL, msg);
        if (err)
            return err;
    }
    e->kv_places = join(e, place_text);
    return e->kv_places ? 0 : inst_fail(msg, INST_ENOMEM, "out of memory");
}

static int prepare(inst_engine *e, const struct inst_options *o, struct inst_msg *msg)
{
    int err = choose_kernels(e, o->kernels, msg);
    if (!err)
        err = open_places(e, o, msg);
    if (!err)
        err = preflight_place(e, o, msg);
    if (err)
        return err;
    budget_init(&e->budget, e->memory);
    err = load_model(e, o, msg);
    if (err)
        return err;
    preflight_model(e, o);
    e->audit.share = o->audit;
    e->micro.asked = o->micro_batches;
    e->host_attention = o->attention && !strcmp(o->attention, "host");
    err = choose_attention(e, o, msg);
    if (!err)
        err = audit_open(e, o->max_sessions ? o->max_sessions : 1, msg);
    if (!err)
        err = make_plan(e, o, msg);
    return err ? err : preflight_plan(e, o, msg);
}

// Until 0.1 is released, its size is that of now.
static int read_options(struct inst_options *out, const struct inst_options *options,
                        struct inst_msg *msg)
{
    *out = (struct inst_options){0};
    int err = options ? sized_read(out, sizeof *out, sizeof *out, options, "inst_options", msg) : 0;
    return err ? err : check_options(out, msg);
}

int inst_options_check(const struct inst_options *options, struct inst_msg *msg)
{
    struct inst_options o;
    return read_options(&o, options, msg);
}

static int prepare_with(inst_engine **out, const struct inst_options *options,
                        const struct compute_kind *compute, struct inst_msg *msg)
{
    struct inst_options o;
    *out = NULL;
    int err = read_options(&o, options, msg);
    if (err)
        return err;
    inst_engine *e = calloc(1, sizeof *e);
    if (!e)
        return inst_fail(msg, INST_ENOMEM, "engine: out of memory");
    e->trace = (struct trace){o.trace, o.trace_user};
    e->flash_trace = o.flash_trace;
    e->flash_trace_user = o.flash_trace_user;
    e->selection_trace = o.selection_trace;
    e->selection_trace_user = o.selection_trace_user;
    e->compute_kind = compute;
    e->compute_limit_ns = 1000000ull * TIMEOUT_MS;
    e->drive_limit_ns = 1000000ull * (o.drive_timeout_ms ? o.drive_timeout_ms : TIMEOUT_MS);
    err = prepare(e, &o, msg);
    if (err)
        inst_engine_close(e);
    else
        *out = e;
    return err;
}

int engine_open_drives(inst_engine *e, struct inst_msg *msg)
{
    struct store_where where[LINK_ARRAY_MOST];
    for (uint32_t i = 0; i < e->plan.drives; i++)
        where[i] = e->where[e->loss.place[i]];
    const struct store_options options = {.plan = &e->plan,
                                          .budget = &e->budget,
                                          .pool = e->pool,
                                          .kernels = e->kernels,
                                          .limit_ns = e->drive_limit_ns,
                                          .trace = e->flash_trace,
                                          .trace_user = e->flash_trace_user,
                                          .selected = e->selection_trace,
                                          .selected_user = e->selection_trace_user,
                                          .place = e->loss.place};
    int err = store_open(&e->store, where, &options, msg);
    if (err)
        return err;
    engine_open_port(e, e->store.link);
    return configure_drive(e, msg);
}

uint64_t engine_close_drives(struct inst_engine *e)
{
    // Whoever does not wait for an answer any more does not wait for a disk either.
    bool soon =
        e->port.late || engine_cancelled(e) || (e->store.n > 1 && link_array_late(e->store.link));
    return store_close(&e->store,
                       soon ? min_u64(e->drive_limit_ns, 2000000000) : e->drive_limit_ns);
}

void engine_open_port(struct inst_engine *e, struct link *link)
{
    // An array ends what a drive of it does not answer by itself, and says which one that is.
    uint64_t limit = e->drive_limit_ns, more = e->store.n > 1 ? limit / 4 + 1000000000u : 0;
    port_open(&e->port, &(struct port_options){.link = link,
                                               .trace = &e->trace,
                                               .place = e->kv_places,
                                               .limit_ns = limit + more,
                                               .cancel = &e->cancel});
}

void inst_engine_cancel(inst_engine *engine, bool cancel)
{
    atomic_store(&engine->cancel, cancel);
}

static void let_drive_work(void *user)
{
    struct inst_engine *e = user;
    if (e->port.with.link)
        port_tick(&e->port);
}

static int open_compute(struct inst_engine *e, struct inst_msg *msg)
{
    const struct compute_setup setup = {.plan = engine_compute_plan(&e->plan, &e->loss.plan),
                                        .config = &e->config,
                                        .weights = &e->weights,
                                        .rope_freq = e->rope_freq,
                                        .kernels = e->kernels,
                                        .pool = e->pool,
                                        .budget = &e->budget,
                                        .tick = let_drive_work,
                                        .tick_user = e};
    return e->compute_kind->open(&e->compute, &setup, msg);
}

int engine_prepare(inst_engine **out, const struct inst_options *options, struct inst_msg *msg)
{
    return prepare_with(out, options, &compute_cpu, msg);
}

// Makes what was planned.
static int start(inst_engine *e, struct link *link, struct inst_msg *msg)
{
    // What the budget cannot see is taken from it here, and the text's share is lent to the caller.
    int err = budget_take(&e->budget, e->plan.fixed, "fixed overhead", msg);
    if (!err)
        err = pool_new(&e->pool, e->plan.threads, msg);
    if (!err)
        err = pool_reserve_scratch(e->pool, e->plan.scratch, msg);
    if (!err)
        err = open_compute(e, msg);
    if (!err)
        err = make_buffers(e, msg);
    if (!err && !link)
        err = engine_open_drives(e, msg);
    if (!err && !(e->kv_paths = join(e, path_text)))
        err = inst_fail(msg, INST_ENOMEM, "out of memory");
    if (err || !link)
        return err;
    engine_open_port(e, link);
    return configure_drive(e, msg);
}

int engine_open_with(inst_engine **out, const struct inst_options *options, struct link *link,
                     const struct compute_kind *compute, struct inst_msg *msg)
{
    int err = prepare_with(out, options, compute, msg);
    if (!err && (err = start(*out, link, msg))) {
        inst_engine_close(*out);
        *out = NULL;
    }
    return err;
}

int engine_open_on(inst_engine **out, const struct inst_options *options, struct link *link,
                   struct inst_msg *msg)
{
    return engine_open_with(out, options, link, &compute_cpu, msg);
}

int inst_engine_open(inst_engine **out, const struct inst_options *options, struct inst_msg *msg)
{
    return engine_open_on(out, options, NULL, msg);
}

void inst_engine_close(inst_engine *e)
{
    if (!e)
        return;
    for (uint32_t i = 0; e->sessions && i < e->max_sessions; i++)
        inst_session_close(e->sessions[i]);
    if (e->sequence)
        seqs_give_up(e);
    engine_close_drives(e);
    if (e->compute) {
        e->compute->ops->stop(e->compute);
        e->compute->ops->buffer_free(e->compute, e->guest_rows);
    }
    for (int i = 0; e->compute && i < BUFFER_COUNT; i++)
        e->compute->ops->buffer_free(e->compute, e->buffer[i]);
    compute_close(e->compute);
    pool_free(e->pool);
    audit_close(e);
    budget_free(&e->budget, e->scratch.seg);
    budget_free(&e->budget, e->scratch.item);
    budget_free(&e->budget, e->scratch.segment);
    budget_free(&e->budget, e->scratch.refused);
    budget_free(&e->budget, e->sessions);
    budget_free(&e->budget, e->sequence);
    budget_free(&e->budget, e->piece);
    budget_free(&e->budget, e->rope_freq);
    free(e->name);
    tokenizer_free(e->tokenizer);
    model_weights_free(&e->weights);
    gguf_close(e->gguf);
    for (uint32_t i = 0; i < e->n_places; i++)
        store_where_free(&e->where[i]);
    free(e->where);
    free(e->place);
    free(e->loss.before_of);
    free(e->kv_places);
    free(e->kv_paths);
    free(e);
}

void inst_engine_info_sized(const inst_engine *e, struct inst_model_info *out, size_t size)
{
    const struct model_config *c = &e->config;
    const struct inst_model_info info = {
        .architecture = c->architecture,
        .name = e->name,
        .layers = c->layers,
        .width = c->width,
        .heads = c->heads,
        .kv_heads = c->kv_heads,
        .head_dim = c->head_dim,
        .ffn = c->ffn,
        .vocab = c->vocab,
        .trained_context = c->context,
        .context = e->context,
        .weight_bytes = e->weights.bytes,
        .kv_bytes_per_token =
            (uint64_t)c->layers * c->kv_heads * kv_token_bytes(e->plan.space.kv_type, c->head_dim),
        .memory = e->memory,
        .kv_limit = e->kv_limit,
        .chunk = e->plan.chunk,
        .mixed_chunk = e->plan.mixed_chunk,
        .step_sessions = engine_step_sessions(e),
        .group = e->plan.group,
        .threads = pool_threads(e->pool),
        .kv_place = e->kv_places,
        .kv_path = e->kv_paths ? e->kv_paths : "",
        .kv_drives = e->n_places,
        .kernels = e->kernels->name,
        .chat = chat_template_name(&e->chat),
        .notes = e->note,
        .n_notes = e->n_notes,
        .kv_type = kv_type_name(e->plan.space.kv_type),
        .begin_token = tokenizer_adds_bos(e->tokenizer) ? (int32_t)tokenizer_bos(e->tokenizer) : -1,
    };
    sized_write(out, size, &info, sizeof info);
}

size_t engine_slab_bytes(const struct inst_engine *e, uint64_t n)
{
    return (size_t)((n * e->config.kv_heads * e->config.head_dim * 4 + 63) / 64 * 64);
}

uint32_t engine_put_item(const struct inst_engine *e, const struct seq *q, uint64_t pos, uint64_t n,
                         struct one_item *table)
{
    table_put_header(table->bytes, &(struct table_header){.head_count = e->config.kv_heads});
    table_put_item(
        table->bytes, 0,
        &(struct table_item){.seq = q->slot, .epoch = q->epoch, .pos = pos, .n_tokens = n});
    return (uint32_t)engine_slab_bytes(e, n);
}

int inst_text_resize(inst_engine *engine, char **text, size_t bytes, struct inst_msg *msg)
{
    if (!bytes) {
        budget_free(&engine->budget, *text);
        *text = NULL;
        return 0;
    }
    char *other = budget_resize(&engine->budget, *text, bytes, "the text", msg);
    if (!other)
        return INST_ENOMEM;
    *text = other;
    return 0;
}

uint64_t inst_text_most(const inst_engine *engine, uint64_t tokens)
{
    // A character that the vocabulary does not have is one token, too.
    uint64_t most, longest = max_u64(tokenizer_piece_room(engine->tokenizer), 4);
    return checked_mul(tokens, longest, &most) ? most : UINT64_MAX;
}

int inst_tokenize(inst_engine *engine, const char *text, size_t bytes, unsigned flags,
                  int32_t **tokens, size_t *n_tokens, struct inst_msg *msg)
{
    struct token_list list = {.budget = &engine->budget};
    unsigned how = (flags & INST_TOKENIZE_NO_BOS ? 0u : TOKENIZER_ADD_SPECIAL) |
                   (flags & INST_TOKENIZE_NO_SPECIAL ? 0u : TOKENIZER_PARSE_SPECIAL);
    *tokens = NULL;
    *n_tokens = 0;
    int err = tokenizer_encode(engine->tokenizer, text, bytes, how, &list, msg);
    if (!err) {
        *tokens = malloc(max_u64(list.count, 1) * sizeof **tokens);
        if (*tokens) {
            if (list.count) // an empty list has no ids to point to
                memcpy(*tokens, list.ids, list.count * sizeof **tokens);
            *n_tokens = list.count;
        } else {
            err = inst_fail(msg, INST_ENOMEM, "out of memory");
        }
    }
    token_list_free(&list);
    return err;
}

const char *inst_token_text(inst_engine *engine, int32_t token, size_t *bytes)
{
    *bytes = token < 0 ? 0 : tokenizer_piece(engine->tokenizer, (uint32_t)token, 0, engine->piece);
    return engine->piece;
}

bool inst_token_is_end(const inst_engine *engine, int32_t token)
{
    return token >= 0 && tokenizer_is_end(engine->tokenizer, (uint32_t)token);
}
