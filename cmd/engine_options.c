// SPDX-License-Identifier: Apache-2.0
#include "cmd/engine_options.h"
#include "cmd/text.h"

#include <stdlib.h>
#include <string.h>

int failed(int code, const struct inst_msg *msg)
{
    const char *hint = code == INST_ENOSPC ? " (see --kv-limit and --kv)"
                       : code == INST_ENOCHAT
                           ? "; --template NAME takes it for the one of that name, "
                             "--raw goes without"
                           : "";
    return fail(EXIT_FAILED, "%s%s", msg->text[0] ? msg->text : inst_status_text(code), hint);
}

static int row_cache_read(struct engine_options *options, const char *command)
{
    const char *text = options->row_cache, *what;
    if (!text)
        return 0;
    if (!strcmp(text, "off")) {
        options->engine.row_cache = INST_NO_ROW_CACHE;
        return 0;
    }
    what = option_size(text, &options->engine.row_cache);
    return what ? fail(EXIT_USAGE, "%s: --row-cache: '%s' %s, nor off", command, text, what) : 0;
}

// --ratio, as 1/8 or 0.125, and --mass.
static int pages_read(struct engine_options *options, bool pages, const char *command)
{
    struct inst_options *o = &options->engine;
    const char *text = options->ratio;
    if (!pages &&
        (text || options->mass > 0 || o->pages_piece || o->pages_keys || o->pages_heads ||
         o->pages_newest || o->pages_look || o->pages_bits || o->pages_rest || o->pages_flash))
        return fail(EXIT_USAGE,
                    "%s: --ratio, --mass, --piece, --keys, --bits, --look, --heads, --newest, "
                    "--rest and --index-on-disk need --attention pages",
                    command);
    if (o->pages_flash && (o->pages_look || o->pages_rest))
        return fail(EXIT_USAGE, "%s: --index-on-disk goes without --look and --rest", command);
    if (o->pages_piece & (o->pages_piece - 1))
        return fail(EXIT_USAGE, "%s: --piece: '%u' is not a power of two", command, o->pages_piece);
    if (options->mass >= 1)
        return fail(EXIT_USAGE, "%s: --mass: '%g' is not less than 1", command,
                    (double)options->mass);
    if (text && !option_part(text, &o->pages_ratio))
        return fail(EXIT_USAGE, "%s: --ratio: '%s' is not like 1/8", command, text);
    o->pages_mass = (double)options->mass;
    return 0;
}

int engine_options_read(struct engine_options *options, const char *command)
{
    struct inst_options *o = &options->engine;
    if (!o->model)
        return fail(EXIT_USAGE, "%s: no model given: use -m MODEL", command);
    bool sparf = o->attention && !strcmp(o->attention, "sparf");
    bool pages = o->attention && !strcmp(o->attention, "pages");
    if (!sparf && (options->sparf.text || o->page_channels))
        return fail(EXIT_USAGE, "%s: --sparf and --page-channels need --attention sparf", command);
    if (!sparf && !pages && options->audit > 0)
        return fail(EXIT_USAGE, "%s: --audit needs --attention sparf or pages", command);
    int wrong = pages_read(options, pages, command);
    if (!wrong)
        wrong = sparf_option_read(&options->sparf, command);
    if (!wrong)
        wrong = row_cache_read(options, command);
    if (wrong)
        return wrong;
    o->sparf_channels = options->sparf.channels;
    o->sparf_tokens = options->sparf.tokens;
    o->sparf_divisor = options->sparf.divisor;
    o->sparf_local = options->sparf.local;
    o->audit = (double)options->audit;
    o->drive_timeout_ms = (uint32_t)(1000 * (double)options->drive_timeout);
    o->kv = options->kv.items;
    o->n_kv = options->kv.n;
    struct inst_msg msg = {0};
    return inst_options_check(o, &msg) ? fail(EXIT_USAGE, "%s: %s", command, msg.text) : 0;
}

void engine_notes(const struct inst_model_info *info, size_t first)
{
    for (size_t i = first; i < info->n_notes; i++)
        warn("%s", info->notes[i]);
}

int engine_options_open(inst_engine **engine, struct engine_options *options, const char *command)
{
    struct inst_msg msg = {0};
    struct inst_model_info info;
    *engine = NULL;
    int code = engine_options_read(options, command);
    if (code)
        return code;
    int err = inst_engine_open(engine, &options->engine, &msg);
    if (err)
        return failed(err, &msg);
    inst_engine_info(*engine, &info);
    if (!options->warned)
        engine_notes(&info, 0);
    options->warned = true; // a benchmark opens many engines
    return 0;
}

int stops_check(const struct option_list *stops, const char *command)
{
    for (size_t i = 0; i < stops->n; i++) {
        size_t n = strlen(stops->items[i]);
        text_trim_line(&stops->items[i], &n);
        if (!n && !stops->items[i][0])
            return fail(EXIT_USAGE, "%s: --stop needs a text that is not empty", command);
        if (n)
            ((char *)(uintptr_t)stops->items[i])[n] = 0; // of argv
    }
    return 0;
}
