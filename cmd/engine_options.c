// SPDX-License-Identifier: Apache-2.0
#include "cmd/engine_options.h"

#include <string.h>

int failed(int code, const struct inst_msg *msg)
{
    const char *hint = code == INST_ENOSPC    ? " (see --kv-limit and --kv)"
                       : code == INST_ENOCHAT ? "; --template NAME chats with one of these names, "
                                                "--raw without a template"
                                              : "";
    return fail(EXIT_FAILED, "%s%s", msg->text[0] ? msg->text : inst_status_text(code), hint);
}

int engine_options_open(inst_engine **engine, struct engine_options *options, const char *command)
{
    struct inst_options *o = &options->engine;
    struct inst_msg msg = {0};
    *engine = NULL;
    if (!o->model)
        return fail(EXIT_USAGE, "%s: no model given: use -m MODEL", command);
    if (o->group & (o->group - 1))
        return fail(EXIT_USAGE, "%s: --group: '%u' is not a power of two", command, o->group);
    if (o->attention && strcmp(o->attention, "dense"))
        return fail(EXIT_USAGE, "%s: --attention: '%s' is unknown (dense)", command, o->attention);
    o->kv = options->kv.items;
    o->n_kv = options->kv.n;
    int err = inst_engine_open(engine, o, &msg);
    return err ? failed(err, &msg) : 0;
}
