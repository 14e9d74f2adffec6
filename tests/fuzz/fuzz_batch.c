// SPDX-License-Identifier: Apache-2.0
// Any line of a batch file. What is accepted is whole and within its limits, is the same when it is
// read again and when it has given its JSON back; what is refused says why in one line of UTF-8.
#include "cmd/batch/request.h"
#include "host/model/text.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static void check(bool ok)
{
    if (!ok)
        abort();
}

static void check_text(const char *text)
{
    size_t n = strlen(text);
    for (size_t i = 0; i < n;) {
        int length = text_utf8_length((const unsigned char *)text + i, n - i);
        check(length > 0);
        i += (size_t)length;
    }
}

static void check_error(const struct batch_error *error)
{
    check(error->code && *error->code && *error->text);
    for (const char *c = error->field; *c; c++)
        check(*c >= ' ' && *c <= '~');
    for (const char *c = error->text; *c; c++)
        check(*c >= ' ' && *c <= '~');
}

static void check_request(const struct batch_request *r)
{
    const struct inst_generation_options *o = &r->options;
    size_t prompts = r->url == BATCH_CHAT ? 1 : r->n_prompts;
    check(r->custom_id && *r->custom_id);
    check_text(r->custom_id);
    check(r->n >= 1 && r->n * prompts >= 1 && r->n * prompts <= BATCH_CHOICES_MAX);
    check(isfinite(o->sampling.temperature) && o->sampling.temperature >= 0);
    check(o->sampling.top_p >= 0 && o->sampling.top_p <= 1 && o->sampling.repeat_penalty > 0);
    check(o->top_logprobs <= INST_TOP_LOGPROBS_MAX && (o->logprobs || !o->top_logprobs));
    check(o->max_tokens >= 1 && o->n_stops <= BATCH_STOPS_MAX && o->stops == r->stops);
    for (size_t i = 0; i < o->n_stops; i++) {
        check(*o->stops[i]);
        check_text(o->stops[i]);
    }
    for (size_t i = 0; i < r->n_prompts; i++) {
        check(r->prompts[i].text || r->prompts[i].n_tokens);
        if (r->prompts[i].text)
            check_text(r->prompts[i].text);
        for (size_t k = 0; k < r->prompts[i].n_tokens; k++)
            check(r->prompts[i].tokens[k] >= 0);
    }
    check(r->url == BATCH_CHAT ? !r->n_prompts && r->n_messages % 2 <= 1 : !r->n_messages);
    for (size_t i = 0; i < r->n_messages; i++) {
        check(strlen(r->messages[i].text) == r->messages[i].bytes);
        check_text(r->messages[i].text);
    }
    if (r->url == BATCH_CHAT)
        check(r->n_messages && r->messages[r->n_messages - 1].role == INST_ROLE_USER);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const stops[] = {"default"};
    const struct batch_defaults defaults = {
        .sampling = {.temperature = 0.8f, .top_p = 0.95f, .repeat_penalty = 1},
        .max_tokens = UINT64_MAX,
        .stops = stops,
        .n_stops = 1};
    struct batch_request r, again;
    struct batch_error error, error_again;
    char *line = malloc(size ? size : 1); // so that a byte too many is seen
    memcpy(line, data, size);
    batch_request_limit(1 << 20);
    bool ok = batch_request_parse(&r, line, size, &defaults, &error);
    check(ok == batch_request_parse(&again, line, size, &defaults, &error_again));
    free(line);
    if (!ok) {
        check_error(&error);
        check(!strcmp(error.text, error_again.text) && !strcmp(error.field, error_again.field));
        if (r.custom_id)
            check_text(r.custom_id);
    } else {
        check_request(&r);
        check(batch_request_shrink(&again));
        check(!strcmp(r.custom_id, again.custom_id));
        for (size_t i = 0; i < r.options.n_stops; i++)
            check(!strcmp(r.options.stops[i], again.options.stops[i]));
        check(!again.json && !again.n_prompts && !again.n_messages);
    }
    batch_request_free(&r);
    batch_request_free(&again);
    return 0;
}
